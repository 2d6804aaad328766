//! Compares the reader of configuration with the server itself. The server is started with generated files,
//! and prints what it has read.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStringExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use fastrand::Rng;

use super::*;

/// How many generated files the server has to start with.
const FILES: usize = 2000;

/// The number of threads. Each thread has a different seed.
const THREADS: usize = 4;

/// What values consist of: blanks, quotes, escapes, the characters of patterns and comments, and bytes that
/// are not UTF-8.
const BYTES: &[u8] = b"ab1 \t\"'\\#*x\x07\n\r\x0b\xc3\xa9\xff";

#[test]
fn what_the_server_reads_is_read() {
    let threads: Vec<_> =
        (0..THREADS).map(|seed| thread::spawn(move || compare(&mut Rng::with_seed(seed as u64)))).collect();
    for thread in threads {
        thread.join().unwrap();
    }
}

fn compare(rng: &mut Rng) {
    let (mut started, mut refused) = (0, 0);
    while started < FILES / THREADS {
        let folder = tempfile::tempdir().unwrap();
        let base = folder.path().canonicalize().unwrap();
        let file = generate(rng, &base);
        match Server::start(&base, &file) {
            Some(server) => {
                started += 1;
                let settings = ServerCommand::new(server.words.clone()).settings().unwrap();
                expect_same(&settings, &server.settings(), &file);
            }
            None => refused += 1,
        }
    }
    assert!(refused > started / 100, "quotes are left open as well");
}

fn expect_same(ours: &ServerSettings, theirs: &BTreeMap<String, Vec<u8>>, file: &Path) {
    let wrote = || {
        let files = fs::read_dir(file.parent().unwrap()).unwrap().map(|entry| entry.unwrap().path());
        let files = files.filter(|path| path.extension() == Some(OsStr::new("conf")));
        let files = files.map(|path| format!("{path:?}: {}", fs::read(&path).unwrap().escape_ascii()));
        files.collect::<Vec<_>>().join("\n")
    };
    for (name, theirs) in theirs {
        let ours = match name.as_str() {
            "dir" => ours.folder().canonicalize().unwrap().into_os_string().into_vec(),
            "replicaof" => {
                assert!(ours.follows() || theirs.is_empty(), "{name} in\n{}", wrote());
                continue;
            }
            "appendonly" => match ours.get(name) {
                Some(word) => word.as_bytes().to_ascii_lowercase(),
                None => continue,
            },
            "dbfilename" | "appendfilename" | "appenddirname" | "replica-priority" | "masteruser"
            | "bind" => match ours.all(name) {
                [] => continue,
                words => words.join(OsStr::new(" ")).into_vec(),
            },
            _ => continue,
        };
        assert_eq!(
            ours.escape_ascii().to_string(),
            theirs.escape_ascii().to_string(),
            "{name} in\n{}",
            wrote()
        );
    }
}

/// A file, and the files that it includes.
fn generate(rng: &mut Rng, base: &Path) -> PathBuf {
    let mut folders = vec![base.to_owned()];
    for name in [&b"plain"[..], b"a blank", b"qu\"ote's", b"\xff\xfe", b"back\\slash", b"star*"] {
        let folder = base.join(OsStr::from_bytes(name));
        fs::create_dir(&folder).unwrap();
        folders.push(folder);
    }
    for index in 0..3 {
        let mut text = Vec::new();
        for _ in 0..rng.usize(0..4) {
            setting(rng, &mut text, &folders);
        }
        fs::write(base.join(format!("more-{index}.conf")), text).unwrap();
    }
    // From here on, relative paths begin in a known folder.
    let mut text = [b"dir ", quoted(rng, base.as_os_str().as_bytes()).as_slice(), b"\n"].concat();
    for _ in 0..rng.usize(1..8) {
        if rng.u8(0..6) == 0 {
            let path = match rng.u8(0..4) {
                0 => "more-*.conf".into(),
                1 => "more-[01].conf".into(),
                _ => base.join(format!("more-{}.conf", rng.u8(0..3))).into_os_string(),
            };
            // A relative path may not exist in the server's present folder. Then the server does not start.
            line(rng, &mut text, "include", &[path.as_bytes()]);
        } else {
            setting(rng, &mut text, &folders);
        }
    }
    let file = base.join("redis.conf");
    fs::write(&file, text).unwrap();
    file
}

fn setting(rng: &mut Rng, text: &mut Vec<u8>, folders: &[PathBuf]) {
    let name = |value: &[u8]| [b"n".as_slice(), value].concat();
    match rng.u8(0..12) {
        0 => text.extend(b"# dir \"/nowhere\n"),
        1 => text.extend(b" \t\r\n"),
        2 | 3 => {
            let folder = rng.choice(folders).unwrap();
            let relative = folder.strip_prefix(&folders[0]).unwrap();
            let is_relative = rng.u8(0..4) == 0 && relative != Path::new("");
            let folder = if is_relative { relative } else { folder.as_path() };
            line(rng, text, "dir", &[folder.as_os_str().as_bytes()]);
        }
        4 => {
            let value = *rng.choice(&[b"yes", b"no ", b"YES"]).unwrap();
            line(rng, text, "appendonly", &[value.trim_ascii()]);
        }
        5 => {
            let setting = *rng.choice(&["replica-priority", "slave-priority"]).unwrap();
            let value = rng.u8(..).to_string();
            line(rng, text, setting, &[value.as_bytes()]);
        }
        6 => {
            let all: [&[u8]; 3] = [b"127.0.0.1", b"-::1", b"-127.0.0.9"];
            let few = rng.usize(1..=all.len());
            line(rng, text, "bind", &all[..few]);
        }
        7 => {
            let setting = *rng.choice(&["replicaof", "slaveof"]).unwrap();
            line(rng, text, setting, &[b"127.0.0.1", b"1"]);
        }
        8 | 9 => {
            let value = value(rng);
            line(rng, text, "masteruser", &[&value]);
        }
        _ => {
            let setting = *rng.choice(&["dbfilename", "appendfilename", "appenddirname"]).unwrap();
            let value = name(&value(rng));
            line(rng, text, setting, &[&value]);
        }
    }
}

fn value(rng: &mut Rng) -> Vec<u8> {
    (0..rng.usize(1..6)).map(|_| *rng.choice(BYTES).unwrap()).collect()
}

fn line(rng: &mut Rng, text: &mut Vec<u8>, name: &str, words: &[&[u8]]) {
    if rng.u8(0..8) == 0 {
        text.extend(b"  ");
    }
    let is_shouted = rng.u8(0..8) == 0;
    text.extend(if is_shouted { name.to_ascii_uppercase() } else { name.to_owned() }.bytes());
    for word in words {
        text.extend(*rng.choice(&[&b" "[..], b" ", b"\t", b"  \t"]).unwrap());
        text.extend(quoted(rng, word));
    }
    text.extend(*rng.choice(&[&b"\n"[..], b"\n", b"\r\n", b" \r\n", b"\t\n"]).unwrap());
}

/// A word in one of the notations that Redis reads, or unchanged, which may be invalid.
fn quoted(rng: &mut Rng, word: &[u8]) -> Vec<u8> {
    let double = |rng: &mut Rng, word: &[u8]| {
        let mut text = vec![b'"'];
        for &byte in word {
            match byte {
                b'\n' => text.extend(b"\\n"),
                b'\r' => text.extend(b"\\r"),
                b'"' | b'\\' => text.extend([b'\\', byte]),
                byte if rng.u8(0..6) == 0 => text.extend(format!("\\x{byte:02x}").bytes()),
                byte if rng.u8(0..12) == 0 && !b"xnrtab".contains(&byte) => text.extend([b'\\', byte]),
                byte => text.push(byte),
            }
        }
        text.push(b'"');
        text
    };
    let single = |word: &[u8]| {
        let inner = word.iter().flat_map(|&byte| if byte == b'\'' { vec![b'\\', byte] } else { vec![byte] });
        [b"'".to_vec(), inner.collect(), b"'".to_vec()].concat()
    };
    match rng.u8(0..8) {
        0 => word.to_vec(),
        1 if !word.contains(&b'\n') => single(word),
        // The beginning is unquoted as far as it needs no quote, and the rest is in quotes.
        2 | 3 => {
            let plain = word.iter().take_while(|byte| byte.is_ascii_alphanumeric() || **byte == b'/').count();
            let (plain, rest) = word.split_at(rng.usize(0..=plain));
            [plain.to_vec(), double(rng, rest)].concat()
        }
        _ => double(rng, word),
    }
}

/// A server that has started. It ends when this value is dropped.
struct Server {
    child: Child,
    words: Vec<OsString>,
    connection: redis::Connection,
}

impl Server {
    /// `None` if the server rejects the file.
    fn start(base: &Path, file: &Path) -> Option<Self> {
        let program = std::env::var_os("REDIS_SERVER").unwrap_or_else(|| "redis-server".into());
        let socket = base.join("s");
        let mut words = vec![program, file.into(), "--port".into(), "0".into(), "--unixsocket".into()];
        words.push(socket.clone().into_os_string());
        let mut child = Command::new(&words[0])
            .args(&words[1..])
            .current_dir(base)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("redis-server is installed, or REDIS_SERVER names it");
        let client = redis::Client::open(format!("unix://{}", socket.display())).unwrap();
        let started = Instant::now();
        loop {
            if let Ok(connection) = client.get_connection() {
                return Some(Self { child, words, connection });
            }
            if child.try_wait().unwrap().is_some() {
                return None;
            }
            assert!(started.elapsed() < Duration::from_secs(60), "it does not start: {words:?}");
            thread::sleep(Duration::from_millis(1));
        }
    }

    fn settings(mut self) -> BTreeMap<String, Vec<u8>> {
        let words: Vec<Vec<u8>> =
            redis::cmd("CONFIG").arg("GET").arg("*").query(&mut self.connection).unwrap();
        let pairs = words.chunks_exact(2);
        pairs.map(|pair| (String::from_utf8(pair[0].clone()).unwrap(), pair[1].clone())).collect()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
