//! The server's command and configuration file, as the server will read them; and the file that Sentinel keeps its
//! state in.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, chown};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

use super::decide::Disk;

/// What the servers' programs are called; before them in a command stands what starts them.
const PROGRAMS: [&str; 4] = ["redis-server", "redis-sentinel", "valkey-server", "valkey-sentinel"];

/// How deep files may include each other.
const DEEPEST: usize = 16;

/// The command that starts a server, taken apart.
#[derive(Debug, Clone)]
pub struct ServerCommand {
    /// All words.
    pub words: Vec<OsString>,
    /// The configuration file, where one is named.
    pub config_file: Option<PathBuf>,
    /// Whether it reads more configuration from its standard input.
    pub reads_stdin: bool,
    /// Whether there is a server among the words. Without, nothing of what it will do can be known.
    pub is_known: bool,
    /// The options behind the file, as configuration lines.
    options: Vec<Vec<String>>,
}

impl ServerCommand {
    /// Takes a command apart, as `main` in Redis's `server.c` does.
    #[must_use]
    pub fn new(words: Vec<OsString>) -> Self {
        let is_program = |word: &OsString| {
            Path::new(word).file_name().is_some_and(|name| PROGRAMS.iter().any(|program| name == *program))
        };
        // The first: what comes behind may be a folder of that name.
        let program = words.iter().position(is_program);
        let arguments = program.and_then(|program| words.get(program + 1..)).unwrap_or_default();
        let mut arguments = arguments.iter().peekable();
        let config_file =
            arguments.next_if(|word| !word.as_encoded_bytes().starts_with(b"-")).map(PathBuf::from);
        let (mut options, mut reads_stdin) = (Vec::<Vec<String>>::new(), false);
        for word in arguments {
            let word = word.to_string_lossy();
            if word == "-" {
                reads_stdin = true;
            } else if let Some(option) = word.strip_prefix("--") {
                options.push(split(option));
            } else if let Some(option) = options.last_mut() {
                option.push(word.into_owned());
            }
        }
        Self { words, config_file, reads_stdin, is_known: program.is_some(), options }
    }

    /// The settings that the server will have: those of the file, and over them those of the command.
    ///
    /// # Errors
    ///
    /// When a file can't be read that is there.
    pub fn settings(&self) -> Result<Settings> {
        let mut settings = Settings::default();
        if let Some(path) = &self.config_file {
            settings.read(path, 0)?;
        }
        for option in &self.options {
            settings.take(option.clone(), 0)?;
        }
        Ok(settings)
    }
}

/// A server's settings. Where one is given twice, the last counts.
#[derive(Debug, Clone, Default)]
pub struct Settings {
    values: BTreeMap<String, Vec<String>>,
    /// The masters that a Sentinel's file monitors.
    monitored: Vec<String>,
    /// Whether a `replicaof` names a master, be it taken back by a later one: see [`Settings::follows`].
    follows: bool,
    /// Where relative paths begin: the server changes to `dir` as it reads it.
    folder: PathBuf,
}

impl Settings {
    fn read(&mut self, path: &Path, depth: usize) -> Result<()> {
        let text = match fs::read(path) {
            Ok(text) => text,
            // The server will say so itself; a Sentinel's file is made before.
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            // To the server, a folder is an empty file.
            Err(error) if error.kind() == io::ErrorKind::IsADirectory => return Ok(()),
            Err(error) => return Err(error).with_context(|| format!("reading `{}`", path.display())),
        };
        for line in String::from_utf8_lossy(&text).lines() {
            self.take(split(line), depth)?;
        }
        Ok(())
    }

    fn take(&mut self, mut words: Vec<String>, depth: usize) -> Result<()> {
        if words.first().is_none_or(|name| name.starts_with('#')) {
            return Ok(());
        }
        let name = words.remove(0).to_ascii_lowercase();
        match (name.as_str(), words.as_slice()) {
            ("include", [path]) if depth < DEEPEST => return self.include(path, depth + 1),
            ("sentinel", [directive, group, ..]) if directive.eq_ignore_ascii_case("monitor") => {
                self.monitored.push(group.clone());
            }
            ("dir", [dir]) => {
                self.folder = self.folder.join(dir);
                self.values.insert(name, words);
            }
            ("replicaof" | "slaveof", [host, port]) => {
                self.follows |= !(host.eq_ignore_ascii_case("no") && port.eq_ignore_ascii_case("one"));
            }
            _ => {
                self.values.insert(name, words);
            }
        }
        Ok(())
    }

    /// A file, or since Redis 7.0 all that a pattern names, in order.
    fn include(&mut self, path: &str, depth: usize) -> Result<()> {
        if !path.contains(['*', '?', '[']) {
            return self.read(&self.folder.join(path), depth);
        }
        let folder = glob::Pattern::escape(&self.folder.to_string_lossy());
        let pattern = Path::new(&folder).join(path);
        // As glob(3) has it; what can't be looked into has no files.
        let options = glob::MatchOptions { require_literal_leading_dot: true, ..glob::MatchOptions::new() };
        let found = glob::glob_with(&pattern.to_string_lossy(), options);
        let found = found.with_context(|| format!("`include {path}`"))?;
        for file in found.flatten() {
            self.read(&file, depth)?;
        }
        Ok(())
    }

    /// Whether a `replicaof` in the file or among the options names a master.
    ///
    /// `replicaof no one` does not take that back: it forgets the master's address, and the server tries to connect all the
    /// same, to localhost, at the master's port, which may be its own (seen with Redis 7.0.15; `setConfigReplicaOfOption` in
    /// `config.c` leaves `repl_state` and `masterport` as they are).
    #[must_use]
    pub fn follows(&self) -> bool {
        self.follows
    }

    /// The first word of a setting's value.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&str> {
        self.all(name).first().map(String::as_str)
    }

    /// All words of a setting's value.
    #[must_use]
    pub fn all(&self, name: &str) -> &[String] {
        self.values.get(name).map(Vec::as_slice).unwrap_or_default()
    }

    /// A port, where it is set to one.
    #[must_use]
    pub fn port(&self, name: &str) -> Option<u16> {
        self.get(name)?.parse().ok()
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

    /// What a server with these settings finds on its disk when it starts.
    ///
    /// With `appendonly yes` it reads the append-only file alone, and starts empty where there is none, even beside an RDB
    /// file (`loadDataFromDisk` in Redis's `server.c`).
    #[must_use]
    pub fn disk(&self) -> Disk {
        let dir = Path::new(".").join(&self.folder);
        let in_rdb_file = || holds_keys(&dir.join(self.get("dbfilename").unwrap_or("dump.rdb")));
        if self.get("appendonly").is_some_and(|value| value.eq_ignore_ascii_case("yes")) {
            let name = self.get("appendfilename").unwrap_or("appendonly.aof");
            // Redis 7 has a folder of files; before, and until Redis 7 has converted it, it is a single one.
            let folder = dir.join(self.get("appenddirname").unwrap_or("appendonlydir"));
            let parts = fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
            let parts = parts.filter(|path| {
                let part = path.file_name().unwrap_or_default().to_string_lossy();
                part.starts_with(name) && (part.ends_with(".rdb") || part.ends_with(".aof"))
            });
            let files: Vec<PathBuf> =
                parts.chain(Some(dir.join(name)).filter(|path| path.exists())).collect();
            return match files.as_slice() {
                [] if in_rdb_file() => Disk::Unread,
                [] => Disk::Empty,
                files if files.iter().any(|path| holds_keys(path)) => Disk::Data,
                _ => Disk::Blank,
            };
        }
        if in_rdb_file() { Disk::Data } else { Disk::Empty }
    }
}

/// Whether a file of Redis's holds a key: an RDB file does where a database or a function follows the fields at its start, and a
/// log does where it holds anything. What can't be read may well hold some.
fn holds_keys(path: &Path) -> bool {
    let mut start = Vec::new();
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) => return error.kind() != io::ErrorKind::NotFound,
    };
    if file.take(64 * 1024).read_to_end(&mut start).is_err() {
        return true;
    }
    match start.strip_prefix(b"REDIS").and_then(|rest| rest.get(4..)) {
        Some(rest) => !is_end_of_rdb(rest),
        None => !start.is_empty(),
    }
}

/// Whether nothing but fields (`RDB_OPCODE_AUX`) stands before the end (`RDB_OPCODE_EOF`).
fn is_end_of_rdb(mut rest: &[u8]) -> bool {
    const AUX: u8 = 0xfa;
    const EOF: u8 = 0xff;
    const CHECKSUM: usize = 8;
    // A string is 6, 14 or 32 bits of length and as many bytes, or a number of 1, 2 or 4 bytes.
    fn skip_string(bytes: &[u8]) -> Option<&[u8]> {
        let (&first, rest) = bytes.split_first()?;
        let (length, rest) = match first >> 6 {
            0 => (usize::from(first & 0x3f), rest),
            1 => (usize::from(first & 0x3f) << 8 | usize::from(*rest.first()?), &rest[1..]),
            3 if first & 0x3f < 3 => (1 << (first & 0x3f), rest),
            // Longer than any field at the start is.
            _ => return None,
        };
        rest.get(length..)
    }
    loop {
        match rest.split_first() {
            // Before Redis 7.0 the commands of an append-only file follow behind the checksum, in the same file.
            Some((&EOF, behind)) => return behind.len() <= CHECKSUM,
            Some((&AUX, field)) => match skip_string(field).and_then(skip_string) {
                Some(behind) => rest = behind,
                None => return false,
            },
            _ => return false,
        }
    }
}

/// Splits a line as Redis does (`sdssplitargs`): words between blanks, or in quotes. A line that it would not take has no
/// words.
#[must_use]
pub fn split(line: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut rest = line.bytes().peekable();
    loop {
        while rest.next_if(u8::is_ascii_whitespace).is_some() {}
        let Some(&first) = rest.peek() else { return words };
        let mut word = Vec::new();
        if first == b'"' || first == b'\'' {
            rest.next();
            loop {
                match rest.next() {
                    None => return Vec::new(),
                    Some(byte) if byte == first => break,
                    Some(b'\\') if first == b'"' => match rest.next() {
                        None => return Vec::new(),
                        Some(b'x') => {
                            // What a character outside of ASCII is rewritten as.
                            let digits: Vec<u8> = rest.clone().take(2).collect();
                            let number = str::from_utf8(&digits).ok().filter(|digits| digits.len() == 2);
                            match number.and_then(|digits| u8::from_str_radix(digits, 16).ok()) {
                                Some(byte) => {
                                    rest.nth(1);
                                    word.push(byte);
                                }
                                None => word.push(b'x'),
                            }
                        }
                        Some(b'n') => word.push(b'\n'),
                        Some(b'r') => word.push(b'\r'),
                        Some(b't') => word.push(b'\t'),
                        Some(b'a') => word.push(0x07),
                        Some(b'b') => word.push(0x08),
                        Some(byte) => word.push(byte),
                    },
                    Some(b'\\') if rest.next_if_eq(&b'\'').is_some() => word.push(b'\''),
                    Some(byte) => word.push(byte),
                }
            }
        } else {
            while let Some(byte) = rest.next_if(|byte| !byte.is_ascii_whitespace()) {
                word.push(byte);
            }
        }
        words.push(String::from_utf8_lossy(&word).into_owned());
    }
}

/// A word as it stands in a configuration file, in quotes where it needs them.
#[must_use]
pub fn quote(word: &str) -> String {
    let plain = |char: char| char.is_ascii_graphic() && !matches!(char, '"' | '\'' | '\\' | '#');
    if !word.is_empty() && word.chars().all(plain) {
        return word.to_owned();
    }
    let mut quoted = String::from("\"");
    for char in word.chars() {
        match char {
            '"' | '\\' => quoted.extend(['\\', char]),
            '\n' => quoted.push_str("\\n"),
            '\r' => quoted.push_str("\\r"),
            '\t' => quoted.push_str("\\t"),
            char => quoted.push(char),
        }
    }
    quoted.push('"');
    quoted
}

/// One line of a configuration file.
#[must_use]
pub fn line(words: &[&str]) -> String {
    words.iter().map(|word| quote(word)).collect::<Vec<_>>().join(" ")
}

/// Adds these lines to a Sentinel's file, in place of those that begin with the same two words and are set once for the whole
/// Sentinel. Makes the file, and its folder, where they are missing.
///
/// Only its owner can read it afterwards: it may hold passwords. A new file belongs to the owner of its folder, so that a
/// Sentinel that gives up being root can still write it. It has no `sentinel myid`: Sentinel makes one, and writes it there.
///
/// # Errors
///
/// When it can't be written.
pub fn write_sentinel_file(path: &Path, lines: &[String]) -> Result<()> {
    let write = || -> io::Result<()> {
        let folder = match path.parent() {
            Some(folder) if folder != Path::new("") => folder,
            _ => Path::new("."),
        };
        fs::create_dir_all(folder)?;
        let before = match fs::read(path) {
            Ok(text) => Some(text),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(error),
        };
        let owner = fs::metadata(if before.is_some() { path } else { folder })?;
        let replaced = |old: &[u8]| {
            let old = split(&String::from_utf8_lossy(old));
            lines.iter().map(|new| split(new)).any(|new| {
                new.len() == 3
                    && old.len() == 3
                    && new[..2].iter().zip(&old).all(|(a, b)| a.eq_ignore_ascii_case(b))
            })
        };
        // As bytes: a comment may be in any encoding.
        let before = before.as_deref().unwrap_or_default();
        let kept = before.split(|byte| *byte == b'\n').filter(|old| !old.is_empty() && !replaced(old));
        let mut text = Vec::new();
        for line in kept.chain(lines.iter().map(String::as_bytes)) {
            text.extend_from_slice(line);
            text.push(b'\n');
        }
        // In one step, so that a crash leaves the old file or the new one. The folder has to take new files anyway: Sentinel
        // does the same.
        let mut name = path.file_name().unwrap_or_default().to_owned();
        name.push(format!(".join-{}", std::process::id()));
        let unfinished = folder.join(name);
        // Of one that was killed here: in a container the id is always the same.
        let _ = fs::remove_file(&unfinished);
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&unfinished)?;
        let written = file.write_all(&text).and_then(|()| file.sync_all()).and_then(|()| {
            let ours = file.metadata()?;
            if (ours.uid(), ours.gid()) != (owner.uid(), owner.gid()) {
                // Only root may give a file away; anybody else goes on with a file of their own.
                let _ = chown(&unfinished, Some(owner.uid()), Some(owner.gid()));
            }
            fs::rename(&unfinished, path)
        });
        // The new name has to outlive a loss of power as well. Where a folder can't be synchronised, it may not.
        let _ = File::open(folder).and_then(|folder| folder.sync_all());
        if written.is_err() {
            let _ = fs::remove_file(&unfinished);
        }
        written
    };
    write().with_context(|| format!("writing Sentinel's file `{}`", path.display()))
}

/// After these options comes what must not be seen.
const SECRET_OPTIONS: [&str; 7] = [
    "--masterauth",
    "--requirepass",
    "--tls-key-file-pass",
    "--tls-client-key-file-pass",
    "--user",
    "--sentinel",
    "--rename-command",
];

/// A command as a person would type it, with secrets left out.
#[must_use]
pub fn shown(words: &[OsString]) -> String {
    let mut hidden = false;
    let words = words.iter().map(|word| {
        let text = OsStr::to_string_lossy(word);
        if text.starts_with("--") {
            let option = text.split_whitespace().next().unwrap_or_default();
            hidden = SECRET_OPTIONS.iter().any(|secret| option.eq_ignore_ascii_case(secret));
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
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    /// A folder of this test's own, which goes with it.
    struct Folder(PathBuf);

    impl Folder {
        fn new(name: &str) -> Self {
            let path = std::env::temp_dir().join(format!("sentinel-runner-{name}-{}", std::process::id()));
            fs::create_dir_all(&path).unwrap();
            Self(path)
        }

        fn write(&self, name: &str, bytes: &[u8]) -> PathBuf {
            let path = self.0.join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, bytes).unwrap();
            path
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    fn command(words: &[&str]) -> ServerCommand {
        ServerCommand::new(words.iter().map(OsString::from).collect())
    }

    /// As Redis 7.0.15 writes it for a server without keys.
    const EMPTY_RDB: &[u8] =
        b"REDIS0010\xfa\x09redis-ver\x067.0.15\xfa\x0aredis-bits\xc0\x40\xfa\x05ctime\xc2\xf0\x4d\x25\x69\
          \xfa\x08used-mem\xc2\x30\x11\x0e\x00\xfa\x08aof-base\xc0\x00\xff\x01\x02\x03\x04\x05\x06\x07\x08";

    #[test]
    fn a_command_is_read_as_the_server_reads_it() {
        let folder = Folder::new("command");
        let included = folder.write("more.conf", b"dir /srv\nappendonly yes\n");
        let file = folder.write(
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
        assert_eq!((settings.port("port"), settings.port("tls-port")), (Some(7001), Some(7002)));
        assert_eq!(settings.all("bind"), ["10.0.0.7", "::1"]);
        assert_eq!((settings.get("dir"), settings.get("appendonly")), (Some("/var/lib"), Some("yes")));
    }

    #[test]
    fn files_are_included_as_the_server_includes_them() {
        let folder = Folder::new("include");
        for (name, text) in [
            ("conf.d/10-port.conf", "port 7000\nreplicaof 10.0.0.9 6379\n"),
            ("conf.d/20-port.conf", "port 7001\n"),
            ("conf.d/.old.conf", "port 7002\n"),
            ("conf.d/more.conf/x", ""),
            ("data/behind.conf", "appendonly yes\n"),
        ] {
            folder.write(name, text.as_bytes());
        }
        let dir = folder.0.display();
        let file =
            format!("include {dir}/conf.d/*\ndir {dir}/data\ninclude behind.conf\ninclude beh*.conf\n");
        let file = folder.write("redis.conf", file.as_bytes());
        let settings = command(&["redis-server", file.to_str().unwrap()]).settings().unwrap();
        assert_eq!((settings.port("port"), settings.get("appendonly")), (Some(7001), Some("yes")));
        assert!(settings.follows());
        folder.write("data/dump.rdb", b"REDIS0010");
        assert_eq!(settings.disk(), Disk::Unread);
    }

    #[test]
    fn a_command_needs_no_file() {
        let command = command(&["redis-server", "--port", "7001", "-"]);
        assert_eq!((command.config_file.as_deref(), command.reads_stdin), (None, true));
        assert_eq!(command.settings().unwrap().port("port"), Some(7001));
    }

    #[test]
    fn words_are_split_and_quoted_as_redis_does() {
        assert_eq!(split(r#"requirepass "a \"b\"\n" 'c d' e"#), ["requirepass", "a \"b\"\n", "c d", "e"]);
        assert_eq!(split("requirepass \"never closed"), [""; 0]);
        // As `CONFIG REWRITE` writes it.
        assert_eq!(split(r#"dir "/srv/donn\xc3\xa9e \x7""#), ["dir", "/srv/donnée x7"]);
        for word in ["plain", "", "two words", "q\"uo\\te", "#5", "new\nline", "it's", "pässwort"] {
            assert_eq!(split(&quote(word)), [word]);
        }
    }

    #[test]
    fn data_is_what_the_server_would_load() {
        let folder = Folder::new("data");
        let dir = folder.0.to_str().unwrap();
        let disk = |options: &[&str]| {
            command(&[&["redis-server", "--dir", dir], options].concat()).settings().unwrap().disk()
        };
        let has_data = |options: &[&str]| disk(options) == Disk::Data;
        let append_only = ["--appendonly", "yes"];
        assert!(!has_data(&[]) && !has_data(&append_only));
        folder.write("dump.rdb", EMPTY_RDB);
        assert!(!has_data(&[]), "no key in it");
        let mut rdb = EMPTY_RDB.to_vec();
        let end = rdb.iter().rposition(|&byte| byte == 0xff).unwrap();
        rdb.splice(end..end, *b"\xfe\x00\xfb\x01\x00\x00\x01a\x011");
        folder.write("dump.rdb", &rdb);
        assert!(has_data(&[]));
        assert_eq!(disk(&append_only), Disk::Unread);
        assert!(!has_data(&["--dbfilename", "other.rdb"]));
        folder.write("appendonlydir/appendonly.aof.1.base.rdb", EMPTY_RDB);
        folder.write("appendonlydir/appendonly.aof.1.incr.aof", b"");
        folder
            .write("appendonlydir/appendonly.aof.manifest", b"file appendonly.aof.1.base.rdb seq 1 type b\n");
        assert_eq!(disk(&append_only), Disk::Blank, "the folder of a server that was never written to");
        folder.write("appendonlydir/appendonly.aof.1.incr.aof", b"*1\r\n");
        assert!(has_data(&append_only));
        assert!(!has_data(&["--appendonly", "yes", "--appenddirname", "elsewhere"]));
        let old =
            [&append_only[..], &["--appenddirname", "elsewhere", "--appendfilename", "old.aof"]].concat();
        folder.write("old.aof", &[EMPTY_RDB, b"*2\r\n$6\r\nSELECT"].concat());
        assert!(has_data(&old));
        folder.write("old.aof", b"*1\r\n");
        assert!(has_data(&old));
    }

    #[test]
    fn a_sentinels_file_is_made_and_kept() {
        let folder = Folder::new("sentinel");
        let path = folder.0.join("new/sentinel.conf");
        write_sentinel_file(&path, &[line(&["sentinel", "announce-port", "1"])]).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        fs::write(
            &path,
            "port 5\nsentinel myid abc\nsentinel announce-port 1\nsentinel monitor other 10.0.0.9 1 2\n",
        )
        .unwrap();
        // What one that was killed has left: in a container, the id of a process is always the same.
        folder.write(&format!("new/sentinel.conf.join-{}", std::process::id()), b"half of it");
        let lines = [
            line(&["sentinel", "announce-port", "2"]),
            line(&["sentinel", "monitor", "mymaster", "10.0.0.7", "1", "2"]),
        ];
        write_sentinel_file(&path, &lines).unwrap();
        assert_eq!(
            fs::read_to_string(&path).unwrap(),
            "port 5\nsentinel myid abc\nsentinel monitor other 10.0.0.9 1 2\nsentinel announce-port 2\n\
             sentinel monitor mymaster 10.0.0.7 1 2\n"
        );
        let settings = command(&["redis-sentinel", path.to_str().unwrap()]).settings().unwrap();
        assert!(settings.monitors("mymaster") && settings.monitors("other") && !settings.monitors("third"));
    }

    #[test]
    fn a_shown_command_hides_secrets() {
        let words =
            ["redis-server", "a b", "--requirepass", "s3cret", "--masterauth s3cret", "--port", "1", "-"];
        let words: Vec<OsString> = words.iter().map(OsString::from).collect();
        assert_eq!(shown(&words), "redis-server 'a b' --requirepass *** --masterauth --port 1 -");
    }
}
