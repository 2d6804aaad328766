//! What a server finds on its disk when it starts.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use super::decide::Disk;
use super::journal::Journal;
use super::position::Position;
use super::server_command::ServerSettings;

/// What a server with these settings finds on its disk when it starts.
///
/// With `appendonly yes` it reads only the append-only file. If there is none, it starts empty, even beside
/// an RDB file (`loadDataFromDisk` in Redis's `server.c`).
#[must_use]
pub fn disk(settings: &ServerSettings) -> Disk {
    let in_rdb_file = || holds_keys(&settings.rdb_file());
    if settings.is_yes("appendonly") {
        // Redis 7 has a folder of files. Before Redis 7, and until Redis 7 has converted it, the append-only
        // file is a single file.
        let (name, folder) = (settings.append_name(), settings.append_folder());
        let parts = fs::read_dir(&folder).into_iter().flatten().flatten().map(|entry| entry.path());
        let parts: Vec<PathBuf> = parts.collect();
        if is_outdated(&folder, name, &parts) {
            return Disk::Outdated;
        }
        let parts = parts.into_iter().filter(|path| {
            let part = path.file_name().unwrap_or_default().as_encoded_bytes();
            part.starts_with(name.as_encoded_bytes()) && (part.ends_with(b".rdb") || part.ends_with(b".aof"))
        });
        let files: Vec<PathBuf> =
            parts.chain(Some(settings.folder().join(name)).filter(|path| path.exists())).collect();
        return match files.as_slice() {
            [] if in_rdb_file() => Disk::Unread,
            [] => Disk::Empty,
            files if files.iter().any(|path| holds_keys(path)) => Disk::Data,
            _ => Disk::Blank,
        };
    }
    if in_rdb_file() { Disk::Data } else { Disk::Empty }
}

/// How far the data goes that a server with these settings will load. `None` if nothing shows this.
pub fn position_on_disk(settings: &ServerSettings) -> Option<Position> {
    let journal = Journal::of(settings);
    if settings.is_yes("appendonly") {
        return journal.position();
    }
    let dump = in_rdb_file(&settings.rdb_file())?;
    Some(match journal.noted() {
        Some(noted) => dump.with_ancestors(&noted),
        None => dump,
    })
}

/// The position that a server has saved in its RDB file. A replica saves it, and so does a master that has
/// had replicas (`rdbPopulateSaveInfo` in `rdb.c`).
fn in_rdb_file(path: &Path) -> Option<Position> {
    let mut start = Vec::new();
    File::open(path).ok()?.take(64 * 1024).read_to_end(&mut start).ok()?;
    let (mut id, mut offset) = (None, None);
    for (name, value) in rdb_fields(behind_version(&start)?) {
        match name.as_slice() {
            b"repl-id" => id = String::from_utf8(value).ok(),
            b"repl-offset" => offset = str::from_utf8(&value).ok()?.parse().ok(),
            _ => {}
        }
    }
    Position::new(&id?, offset?)
}

/// Whether the server ended while it rewrote its append-only file after a synchronisation. During the
/// rewrite, the server writes new commands to a temporary file that it does not load (`getTempIncrAofName` in
/// `aof.c`, since Redis 7.0). The other files are from before the synchronisation. The temporary file is
/// never removed, so it counts only if no other file was written later.
fn is_outdated(folder: &Path, name: &OsStr, parts: &[PathBuf]) -> bool {
    let written = |path: &Path| fs::metadata(path).and_then(|file| file.modified()).ok();
    let mut temporary = OsString::from("temp-");
    temporary.push(name);
    temporary.push(".incr");
    let temporary = folder.join(temporary);
    let Some(at) = written(&temporary) else { return false };
    parts.iter().filter(|path| **path != temporary).filter_map(|path| written(path)).all(|other| other <= at)
}

/// Whether a file of Redis holds a key. An RDB file does if a database or a function follows the fields at
/// its start. A log does if it holds anything. A file that can't be read may hold keys.
fn holds_keys(path: &Path) -> bool {
    let mut start = Vec::new();
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) => return error.kind() != io::ErrorKind::NotFound,
    };
    if file.take(64 * 1024).read_to_end(&mut start).is_err() {
        return true;
    }
    match behind_version(&start) {
        Some(rest) => !is_end_of_rdb(rest),
        None => !start.is_empty(),
    }
}

/// What follows the magic and the version of an RDB file: `REDIS0010`, or `VALKEY080` (Valkey 9).
fn behind_version(file: &[u8]) -> Option<&[u8]> {
    let is_rdb = file.starts_with(b"REDIS") || file.starts_with(b"VALKEY");
    file.get(9..).filter(|_| is_rdb)
}

/// A field at the start of an RDB file (`RDB_OPCODE_AUX`).
const AUX: u8 = 0xfa;

/// Whether there is nothing but fields before the end (`RDB_OPCODE_EOF`).
fn is_end_of_rdb(mut rest: &[u8]) -> bool {
    const EOF: u8 = 0xff;
    const CHECKSUM: usize = 8;
    loop {
        match rest.split_first() {
            // Before Redis 7.0, the commands of an append-only file follow the checksum, in the same file.
            Some((&EOF, behind)) => return behind.len() <= CHECKSUM,
            _ => match field(rest) {
                Some((_, behind)) => rest = behind,
                None => return false,
            },
        }
    }
}

/// The fields at the start of an RDB file, behind its magic and its version: names and values.
fn rdb_fields(mut rest: &[u8]) -> Vec<Field> {
    let mut fields = Vec::new();
    while let Some((found, behind)) = field(rest) {
        fields.push(found);
        rest = behind;
    }
    fields
}

type Field = (Vec<u8>, Vec<u8>);

fn field(bytes: &[u8]) -> Option<(Field, &[u8])> {
    let rest = bytes.strip_prefix(&[AUX])?;
    let (name, rest) = string(rest)?;
    let (value, rest) = string(rest)?;
    Some(((name, value), rest))
}

/// A string is a length of 6 or 14 bits and as many bytes, or a number of 1, 2 or 4 bytes.
fn string(bytes: &[u8]) -> Option<(Vec<u8>, &[u8])> {
    let (&first, rest) = bytes.split_first()?;
    let (length, rest) = match first >> 6 {
        0 => (usize::from(first & 0x3f), rest),
        1 => (usize::from(first & 0x3f) << 8 | usize::from(*rest.first()?), &rest[1..]),
        3 if first & 0x3f < 3 => {
            let (bytes, rest) = rest.split_at_checked(1 << (first & 0x3f))?;
            let number = match *bytes {
                [byte] => i64::from(i8::from_le_bytes([byte])),
                [low, high] => i64::from(i16::from_le_bytes([low, high])),
                _ => i64::from(i32::from_le_bytes(bytes.try_into().ok()?)),
            };
            return Some((number.to_string().into_bytes(), rest));
        }
        // Longer than any field at the start.
        _ => return None,
    };
    let (text, rest) = rest.split_at_checked(length)?;
    Some((text.to_vec(), rest))
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, SystemTime};

    use super::*;
    use crate::commands::join::test_files::{command, write};

    /// As Redis 7.0.15 writes it for a server without keys.
    const EMPTY_RDB: &[u8] =
        b"REDIS0010\xfa\x09redis-ver\x067.0.15\xfa\x0aredis-bits\xc0\x40\xfa\x05ctime\xc2\xf0\x4d\x25\x69\
          \xfa\x08used-mem\xc2\x30\x11\x0e\x00\xfa\x08aof-base\xc0\x00\xff\x01\x02\x03\x04\x05\x06\x07\x08";

    #[test]
    fn data_is_what_the_server_would_load() {
        let folder = tempfile::tempdir().unwrap();
        let dir = folder.path().to_str().unwrap();
        let disk = |options: &[&str]| {
            let words = [&["redis-server", "--dir", dir], options].concat();
            disk(&command(&words).settings().unwrap())
        };
        let has_data = |options: &[&str]| disk(options) == Disk::Data;
        let append_only = ["--appendonly", "yes"];
        assert!(!has_data(&[]) && !has_data(&append_only));
        write(&folder, "dump.rdb", EMPTY_RDB);
        assert!(!has_data(&[]), "no key in it");
        write(&folder, "dump.rdb", [b"VALKEY080", &EMPTY_RDB[9..]].concat());
        assert!(!has_data(&[]), "no key in it");
        let mut rdb = EMPTY_RDB.to_vec();
        let end = rdb.iter().rposition(|&byte| byte == 0xff).unwrap();
        rdb.splice(end..end, *b"\xfe\x00\xfb\x01\x00\x00\x01a\x011");
        write(&folder, "dump.rdb", &rdb);
        assert!(has_data(&[]));
        assert_eq!(disk(&append_only), Disk::Unread);
        assert!(!has_data(&["--dbfilename", "other.rdb"]));
        write(&folder, "appendonlydir/appendonly.aof.1.base.rdb", EMPTY_RDB);
        write(&folder, "appendonlydir/appendonly.aof.1.incr.aof", b"");
        write(
            &folder,
            "appendonlydir/appendonly.aof.manifest",
            b"file appendonly.aof.1.base.rdb seq 1 type b\n",
        );
        assert_eq!(disk(&append_only), Disk::Blank, "the folder of a server that was never written to");
        write(&folder, "appendonlydir/appendonly.aof.1.incr.aof", b"*1\r\n");
        assert!(has_data(&append_only));
        let temporary = write(&folder, "appendonlydir/temp-appendonly.aof.incr", b"*1\r\n");
        assert_eq!(disk(&append_only), Disk::Outdated, "a rewrite had not ended");
        let before = SystemTime::now() - Duration::from_secs(60);
        File::options().append(true).open(&temporary).unwrap().set_modified(before).unwrap();
        assert!(has_data(&append_only), "it is of an earlier time");
        assert!(!has_data(&["--appendonly", "yes", "--appenddirname", "elsewhere"]));
        let old =
            [&append_only[..], &["--appenddirname", "elsewhere", "--appendfilename", "old.aof"]].concat();
        write(&folder, "old.aof", [EMPTY_RDB, b"*2\r\n$6\r\nSELECT"].concat());
        assert!(has_data(&old));
        write(&folder, "old.aof", b"*1\r\n");
        assert!(has_data(&old));
    }

    const ID: &str = "0123456789abcdef0123456789abcdef01234567";

    #[test]
    fn a_dump_says_how_far_it_goes() {
        let folder = tempfile::tempdir().unwrap();
        let file = |fields: &[u8]| {
            write(&folder, "dump.rdb", [b"REDIS0010\xfa\x09redis-ver\x067.0.15", fields, b"\xff"].concat());
            let words = ["redis-server", "--dir", folder.path().to_str().unwrap()];
            position_on_disk(&command(&words).settings().unwrap())
        };
        let id = [b"\xfa\x07repl-id\x28", ID.as_bytes()].concat();
        assert_eq!(file(&[&id[..], b"\xfa\x0brepl-offset\xc1\x39\x30"].concat()), Position::new(ID, 12345));
        assert_eq!(file(&[&id[..], b"\xfa\x0brepl-offset\x7f12"].concat()), None, "cut off");
        assert_eq!(
            file(&[&id[..], b"\xfa\x0brepl-offset\x0b12345678901"].concat()),
            Position::new(ID, 12_345_678_901)
        );
        assert_eq!(file(b""), None, "a master that never had a replica");
    }
}
