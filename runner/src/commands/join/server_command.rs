//! The server's command and configuration file, as the server will read them.

use std::collections::BTreeMap;
use std::ffi::{CStr, CString, OsStr, OsString};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::str::FromStr;
use std::{fs, io};

use anyhow::{Context as _, Result};

use super::config_line::split;
use crate::node::replication::HELD_MASTER;
use crate::node::secret::is_secret_setting;
use crate::node::version::Version;

/// The names of the servers' programs. The words before such a name in a command start the program.
const PROGRAMS: [&str; 4] = ["redis-server", "redis-sentinel", "valkey-server", "valkey-sentinel"];

/// How deep files may include each other.
const DEEPEST: usize = 16;

/// The command that starts a server, taken apart.
#[derive(Debug, Clone)]
pub struct ServerCommand {
    pub words: Vec<OsString>,
    /// The configuration file, if one is named.
    pub config_file: Option<PathBuf>,
    /// Whether the server reads more configuration from its standard input.
    pub reads_stdin: bool,
    /// The place of the server's program among the words. Without it, nothing can be known of what the
    /// command will do.
    program: Option<usize>,
    /// The options behind the file, as configuration lines.
    options: Vec<Vec<OsString>>,
}

impl ServerCommand {
    /// Takes a command apart, as `main` in Redis's `server.c` does.
    #[must_use]
    pub fn new(words: Vec<OsString>) -> Self {
        let is_program = |word: &OsString| {
            Path::new(word).file_name().is_some_and(|name| PROGRAMS.iter().any(|program| name == *program))
        };
        // The first match is the program: a later word may be a folder of that name.
        let program = words.iter().position(is_program);
        let arguments = program.and_then(|program| words.get(program + 1..)).unwrap_or_default();
        let mut arguments = arguments.iter().peekable();
        let config_file =
            arguments.next_if(|word| !word.as_encoded_bytes().starts_with(b"-")).map(PathBuf::from);
        let (mut options, mut reads_stdin) = (Vec::<Vec<OsString>>::new(), false);
        for word in arguments {
            if word == "-" {
                reads_stdin = true;
            } else if let Some(option) = word.as_encoded_bytes().strip_prefix(b"--") {
                options.push(split(option));
            } else if let Some(option) = options.last_mut() {
                option.push(word.clone());
            }
        }
        Self { words, config_file, reads_stdin, program, options }
    }

    /// Whether the command contains a server.
    pub fn is_known(&self) -> bool {
        self.program.is_some()
    }

    /// The version that the server prints with `--version`.
    pub fn version(&self) -> Option<Version> {
        let printed = Command::new(&self.words[self.program?]).arg("--version").output().ok()?;
        Version::printed(&String::from_utf8_lossy(&printed.stdout))
    }

    /// The settings that the server will have: those of the file, and those of the command, which take
    /// precedence.
    ///
    /// # Errors
    ///
    /// If a file exists and can't be read.
    pub fn settings(&self) -> Result<ServerSettings> {
        let mut settings = ServerSettings::default();
        if let Some(path) = &self.config_file {
            settings.read(path, 0)?;
        }
        for option in &self.options {
            settings.take(option.clone(), 0)?;
        }
        Ok(settings)
    }
}

/// A server's settings. If a setting is given twice, the last value takes precedence.
#[derive(Debug, Clone, Default)]
pub struct ServerSettings {
    values: BTreeMap<String, Vec<OsString>>,
    /// The masters that a Sentinel's file monitors.
    monitored: Vec<String>,
    /// Whether a Sentinel's file contains its id.
    has_sentinel_id: bool,
    /// Whether a `replicaof` names a master, even if a later `replicaof no one` follows: see
    /// [`ServerSettings::follows`].
    follows: bool,
    /// Where relative paths begin: the server changes to `dir` when it reads this setting.
    folder: PathBuf,
}

impl ServerSettings {
    fn read(&mut self, path: &Path, depth: usize) -> Result<()> {
        let text = match fs::read(path) {
            Ok(text) => text,
            // The server reports a missing file itself. For a Sentinel, `join` creates the file before the
            // start.
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            // The server reads a folder as an empty file.
            Err(error) if error.kind() == io::ErrorKind::IsADirectory => return Ok(()),
            Err(error) => return Err(error).with_context(|| format!("reading `{}`", path.display())),
        };
        for line in text.split(|&byte| byte == b'\n') {
            let first = line.iter().find(|byte| !b" \t\r".contains(byte));
            if first != Some(&b'#') {
                self.take(split(line), depth)?;
            }
        }
        Ok(())
    }

    fn take(&mut self, mut words: Vec<OsString>, depth: usize) -> Result<()> {
        if words.is_empty() {
            return Ok(());
        }
        // Most settings with `slave` in their name exist with `replica` as well, and both mean the same.
        let name = words.remove(0).to_string_lossy().to_ascii_lowercase().replace("slave", "replica");
        match (name.as_str(), words.as_slice()) {
            ("include", [path]) if depth < DEEPEST => return self.include(path, depth + 1),
            ("sentinel", [directive, group, ..]) if directive.eq_ignore_ascii_case("monitor") => {
                self.monitored.push(group.to_string_lossy().into_owned());
            }
            ("sentinel", [directive, _]) if directive.eq_ignore_ascii_case("myid") => {
                self.has_sentinel_id = true;
            }
            ("dir", [dir]) => {
                self.folder = self.folder.join(dir);
                self.values.insert(name, words);
            }
            ("replicaof", [host, port]) => {
                let is_no_one = host.eq_ignore_ascii_case("no") && port.eq_ignore_ascii_case("one");
                self.follows |= host != HELD_MASTER && !is_no_one;
            }
            _ => {
                self.values.insert(name, words);
            }
        }
        Ok(())
    }

    /// Reads a file, or since Redis 7.0 all files that match a pattern, in order.
    fn include(&mut self, path: &OsStr, depth: usize) -> Result<()> {
        let is_pattern = path.as_encoded_bytes().iter().any(|byte| b"*?[".contains(byte));
        if !is_pattern {
            return self.read(&self.folder.join(path), depth);
        }
        // The folder in which a relative pattern begins is no pattern, so it is escaped.
        let mut pattern = Vec::new();
        if !path.as_encoded_bytes().starts_with(b"/") {
            for &byte in self.folder.as_os_str().as_encoded_bytes() {
                pattern.extend(Some(b'\\').filter(|_| b"*?[\\".contains(&byte)));
                pattern.push(byte);
            }
            pattern.extend((!pattern.is_empty()).then_some(b'/'));
        }
        pattern.extend(path.as_encoded_bytes());
        for file in matching(&pattern) {
            self.read(&file, depth)?;
        }
        Ok(())
    }

    /// Whether a `replicaof` in the file or among the options names a master.
    ///
    /// A later `replicaof no one` does not undo this. It only clears the master's address. The server still
    /// tries to connect, to localhost at the master's port, which may be its own port (seen on Redis 7.0.15;
    /// `setConfigReplicaOfOption` in `config.c` leaves `repl_state` and `masterport` as they are).
    #[must_use]
    pub fn follows(&self) -> bool {
        self.follows
    }

    /// The first word of a setting's value.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&OsStr> {
        self.all(name).first().map(OsString::as_os_str)
    }

    /// All words of a setting's value.
    #[must_use]
    pub fn all(&self, name: &str) -> &[OsString] {
        self.values.get(name).map(Vec::as_slice).unwrap_or_default()
    }

    /// Whether the setting is `yes`.
    pub fn is_yes(&self, name: &str) -> bool {
        self.get(name).is_some_and(|value| value.eq_ignore_ascii_case("yes"))
    }

    /// The setting as a number, if it is one.
    #[must_use]
    pub fn number<N: FromStr>(&self, name: &str) -> Option<N> {
        self.get(name)?.to_str()?.parse().ok()
    }

    /// Whether a Sentinel with this file monitors the group.
    #[must_use]
    pub fn monitors(&self, group: &str) -> bool {
        self.monitored.iter().any(|monitored| monitored == group)
    }

    /// The masters that a Sentinel with this file monitors.
    #[must_use]
    pub fn monitored(&self) -> &[String] {
        &self.monitored
    }

    /// Whether a Sentinel with this file keeps the id that it had.
    #[must_use]
    pub fn has_sentinel_id(&self) -> bool {
        self.has_sentinel_id
    }

    /// The file in which the server saves its data.
    pub fn rdb_file(&self) -> PathBuf {
        self.folder().join(self.get("dbfilename").unwrap_or("dump.rdb".as_ref()))
    }

    /// The name of the append-only file. Before Redis 7.0, there is only this file.
    pub fn append_name(&self) -> &OsStr {
        self.get("appendfilename").unwrap_or("appendonly.aof".as_ref())
    }

    /// The folder with the parts of the append-only file.
    pub fn append_folder(&self) -> PathBuf {
        self.folder().join(self.get("appenddirname").unwrap_or("appendonlydir".as_ref()))
    }

    /// The folder that the server works in.
    pub fn folder(&self) -> PathBuf {
        Path::new(".").join(&self.folder)
    }
}

/// The files that match a pattern, in order, by the C function that Redis calls. (No crate does this for
/// names that are not UTF-8.)
#[expect(unsafe_code, reason = "a function of C")]
fn matching(pattern: &[u8]) -> Vec<PathBuf> {
    let Ok(pattern) = CString::new(pattern) else { return Vec::new() };
    // SAFETY: a `glob_t` consists of numbers and pointers, and glob(3) takes it filled with zeros.
    let mut found: libc::glob_t = unsafe { std::mem::zeroed() };
    // SAFETY: the pattern ends with a zero, and `found` outlives the call.
    let answer = unsafe { libc::glob(pattern.as_ptr(), 0, None, &raw mut found) };
    // If the call fails, its partial result is not used.
    let count = if answer == 0 { found.gl_pathc } else { 0 };
    let path = |index: usize| {
        // SAFETY: there are `gl_pathc` pointers, each to a text that ends with a zero.
        let path = unsafe { CStr::from_ptr(*found.gl_pathv.add(index)) };
        PathBuf::from(OsStr::from_bytes(path.to_bytes()))
    };
    let paths = (0..count).map(path).collect();
    // SAFETY: glob(3) has filled `found`, or left it zero.
    unsafe { libc::globfree(&raw mut found) };
    paths
}

/// A command as a person would type it, with secrets left out.
#[must_use]
pub fn shown(words: &[OsString]) -> String {
    let mut hidden = false;
    let words = words.iter().map(|word| {
        let text = OsStr::to_string_lossy(word);
        if text.starts_with("--") {
            let option = text.split_whitespace().next().unwrap_or_default();
            // A Sentinel's settings are the words behind `--sentinel`.
            hidden = is_secret_setting(&option[2..]) || option.eq_ignore_ascii_case("--sentinel");
            return if hidden { option.to_owned() } else { in_shell(&text) };
        }
        if hidden && text != "-" { "***".to_owned() } else { in_shell(&text) }
    });
    words.collect::<Vec<_>>().join(" ")
}

fn in_shell(word: &str) -> String {
    let plain = |char: char| char.is_ascii_alphanumeric() || "-_./:=@,+%[]".contains(char);
    if !word.is_empty() && word.chars().all(plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

#[cfg(test)]
mod against_redis;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::commands::join::test_files::{command, write};

    #[test]
    fn a_command_is_read_as_the_server_reads_it() {
        let folder = tempfile::tempdir().unwrap();
        let included = write(&folder, "more.conf", b"dir /srv\nappendonly yes\n");
        let file = write(
            &folder,
            "redis.conf",
            format!(
                "# port 1\nport 7000\nBIND 10.0.0.7 ::1\ninclude {}\ndir \"/var/lib\"\n",
                included.display()
            )
            .as_bytes(),
        );
        let command = command(&[
            "tini",
            "/usr/bin/redis-server",
            file.to_str().unwrap(),
            "--port",
            "7001",
            "--tls-port 7002",
        ]);
        assert_eq!(command.config_file, Some(file));
        let settings = command.settings().unwrap();
        assert_eq!((settings.number("port"), settings.number("tls-port")), (Some(7001), Some(7002)));
        assert_eq!(settings.all("bind"), ["10.0.0.7", "::1"]);
        assert_eq!(
            (settings.get("dir"), settings.is_yes("appendonly")),
            (Some(OsStr::new("/var/lib")), true)
        );
    }

    #[test]
    fn files_are_included_as_the_server_includes_them() {
        let folder = tempfile::tempdir().unwrap();
        for (name, text) in [
            ("conf.d/10-port.conf", "port 7000\nreplicaof 10.0.0.9 6379\n"),
            ("conf.d/20-port.conf", "port 7001\n"),
            ("conf.d/.old.conf", "port 7002\n"),
            ("conf.d/more.conf/x", ""),
            ("data/behind.conf", "appendonly yes\n"),
        ] {
            write(&folder, name, text.as_bytes());
        }
        let dir = folder.path().display();
        let file =
            format!("include {dir}/conf.d/*\ndir {dir}/data\ninclude behind.conf\ninclude beh*.conf\n");
        let file = write(&folder, "redis.conf", file.as_bytes());
        let settings = command(&["redis-server", file.to_str().unwrap()]).settings().unwrap();
        assert_eq!((settings.number("port"), settings.is_yes("appendonly")), (Some(7001), true));
        assert!(settings.follows());
        assert_eq!(settings.folder(), folder.path().join("data"));
    }

    #[test]
    fn a_command_needs_no_file() {
        let command = command(&["redis-server", "--port", "7001", "-"]);
        assert_eq!((command.config_file.as_deref(), command.reads_stdin), (None, true));
        assert_eq!(command.settings().unwrap().number("port"), Some(7001));
    }

    #[test]
    fn a_shown_command_hides_secrets() {
        let words =
            ["redis-server", "a b", "--requirepass", "s3cret", "--masterauth s3cret", "--port", "1", "-"];
        let words: Vec<OsString> = words.iter().map(OsString::from).collect();
        assert_eq!(shown(&words), "redis-server 'a b' --requirepass *** --masterauth --port 1 -");
    }
}
