//! The journal notes through which histories a server's data has come, and how far its append-only file went.
//! It is stored beside the data.
//!
//! A server that loads an append-only file begins a new history, so it does not know how far its data goes in
//! the previous history. `join` runs all the time. Once a second, it notes the position, and how long the
//! file was at that moment. The data goes further by as much as the file has grown since. An RDB file
//! contains its own position, but not the histories before.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::iter;
use std::os::unix::ffi::OsStrExt as _;
use std::path::PathBuf;

use super::config_line::{quote, split};
use super::position::Position;
use super::server_command::ServerSettings;
use crate::node::replication::{Replication, Role};

/// The stream contains what the file does not: `GETACK`s, at most one for each write, and `PING`s. So the
/// data may go further than a position that is derived from the file: by this many times the file's growth,
/// and by this many bytes.
const SLACK: (i64, i64) = (2, 1024);

/// The end of an entry. An entry without it was cut off. The end of the line is part of it, because the name
/// of a file may begin like the word.
const END: &str = " end\n";

/// A part of an append-only file, and its size.
pub type Part = (OsString, u64);

/// What identifies an append-only file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parts {
    /// The file that the last rewrite made. It never changes: a base with the same name and another size is
    /// part of another append-only file.
    pub base: Option<Part>,
    /// The part that is written to.
    pub last: Part,
}

/// The notes about a server, and where they are stored.
#[derive(Debug)]
pub struct Journal {
    pub path: PathBuf,
    append_only: Option<AppendOnly>,
}

/// An append-only file. The server writes to its last part.
#[derive(Debug)]
struct AppendOnly {
    folder: PathBuf,
    name: OsString,
}

impl AppendOnly {
    /// The base, and the parts that are written to, the last one last, each with its size. There are none if
    /// there is no manifest. (Before Redis 7.0, the append-only file is one file, which is replaced as a
    /// whole.)
    fn manifest(&self) -> (Option<Part>, Vec<Part>) {
        let mut manifest = self.name.clone();
        manifest.push(".manifest");
        let lines = fs::read(self.folder.join(manifest)).unwrap_or_default();
        let lines: Vec<_> = lines.split(|&byte| byte == b'\n').map(split).collect();
        let size =
            |name: &OsString| fs::metadata(self.folder.join(name)).map(|file| file.len()).unwrap_or_default();
        // `file appendonly.aof.1.incr.aof seq 1 type i`
        let of_kind = |wanted: &str| -> Vec<Part> {
            let parts = lines.iter().filter_map(|words| match words.as_slice() {
                [_, name, _, _, _, kind, ..] if kind == wanted => Some((name.clone(), size(name))),
                _ => None,
            });
            parts.collect()
        };
        (of_kind("b").pop(), of_kind("i"))
    }

    /// The present parts. A server that starts without any makes the first part.
    fn parts(&self) -> Parts {
        let (base, mut parts) = self.manifest();
        let last = parts.pop().unwrap_or_else(|| {
            let mut first = self.name.clone();
            first.push(".1.incr.aof");
            (first, 0)
        });
        Parts { base, last }
    }

    /// How far the file goes, from the entry that was noted when the file had the parts `known`.
    fn position(&self, noted: Position, known: &Parts) -> Option<Position> {
        let (base, parts) = self.manifest();
        let (last, _) = parts.last()?;
        let is_other = |((name, size), known): (Part, &Part)| name == known.0 && size != known.1;
        if base.zip(known.base.as_ref()).is_some_and(is_other) {
            // An older file is in the place of the noted one. Its last part may have the same name, and be
            // longer.
            return Some(noted.begun());
        }
        let (part, size) = &known.last;
        let Some(index) = parts.iter().position(|(name, _)| name == part) else {
            // If the last part is a later one, the file was rewritten within the last second. It goes at
            // least as far as was noted, and nothing shows how much further. If the last part is an earlier
            // one, an older file is in the place of the noted one.
            let slack = if sequence(last) > sequence(part) { i64::MAX } else { 0 };
            return Some(if slack > 0 { noted.advanced(0, slack) } else { noted.begun() });
        };
        let Some(grown) = parts[index].1.checked_sub(*size) else {
            // A file that has become shorter is an older one too. The stream lacks at least as many bytes.
            let lacks = i64::try_from(size - parts[index].1).ok()?;
            return Some(noted.advanced(-lacks, 0));
        };
        let later: u64 = parts[index + 1..].iter().map(|(_, size)| size).sum();
        let by = i64::try_from(grown + later).ok()?;
        Some(noted.advanced(by, by.saturating_mul(SLACK.0).saturating_add(SLACK.1)))
    }
}

/// The number of a part: `appendonly.aof.7.incr.aof`.
fn sequence(part: &OsStr) -> u64 {
    let number = part.as_bytes().rsplit(|&byte| byte == b'.').nth(2).unwrap_or_default();
    str::from_utf8(number).ok().and_then(|number| number.parse().ok()).unwrap_or_default()
}

impl Journal {
    /// The journal of a server with these settings. It is named after the data, so that it goes where the
    /// data goes.
    pub fn of(settings: &ServerSettings) -> Self {
        let append_only = settings.is_yes("appendonly").then(|| AppendOnly {
            folder: settings.append_folder(),
            name: settings.append_name().to_owned(),
        });
        let data = match &append_only {
            Some(file) => settings.folder().join(&file.name),
            None => settings.rdb_file(),
        };
        Self { path: data.with_added_extension("journal"), append_only }
    }

    /// What identifies the append-only file now, if there is such a file.
    pub fn parts(&self) -> Option<Parts> {
        self.append_only.as_ref().map(AppendOnly::parts)
    }

    /// Writes an entry, in one step, so that there is always a whole entry.
    pub fn note(&self, position: &Position, parts: Option<&Parts>) -> std::io::Result<()> {
        let parts = parts.into_iter().flat_map(|Parts { base, last }| iter::once(last).chain(base));
        let parts = parts.map(|(part, size)| format!(" {} {size}", quote(&part.to_string_lossy())));
        let unfinished = self.path.with_extension("journal.new");
        fs::write(&unfinished, format!("{position}{}{END}", parts.collect::<String>()))?;
        fs::rename(unfinished, &self.path)
    }

    fn entry(&self) -> Option<(Position, Option<Parts>)> {
        let entry = fs::read(&self.path).ok()?;
        let entry = split(entry.strip_suffix(END.as_bytes())?);
        let (position, parts) = entry.split_first()?;
        let part =
            |name: &OsString, size: &OsString| Some((name.clone(), size.to_str()?.parse::<u64>().ok()?));
        let parts = match parts {
            [] => None,
            // An entry without a base, or from a `join` that did not note the base yet.
            [last, size] => Some(Parts { base: None, last: part(last, size)? }),
            [last, size, base, base_size] => {
                Some(Parts { base: Some(part(base, base_size)?), last: part(last, size)? })
            }
            _ => return None,
        };
        Some((position.to_str()?.parse().ok()?, parts))
    }

    /// How far the append-only file goes, from the last entry and from the growth since.
    pub fn position(&self) -> Option<Position> {
        let (noted, parts) = self.entry()?;
        self.append_only.as_ref()?.position(noted, &parts?)
    }

    /// Whether an older file has replaced the noted file, or the file has lost its end.
    pub fn is_rolled_back(&self) -> bool {
        let (Some(file), Some((noted, Some(parts)))) = (&self.append_only, self.entry()) else {
            return false;
        };
        let place = file.position(noted.clone(), &parts);
        place.is_some_and(|place| place.is_behind(&noted) == Some(true))
    }

    /// The last noted position, with the histories before it.
    pub fn noted(&self) -> Option<Position> {
        Some(self.entry()?.0)
    }
}

/// The history that the file holds, and the last part of the file when this was seen.
#[derive(Debug)]
pub struct FileHistory {
    id: Option<String>,
    part: OsString,
    /// Whether the server followed no master then. With its first replica, it begins a new history of the
    /// same data.
    leads: bool,
}

impl FileHistory {
    /// For a server that has just started, and was to write to this part.
    pub fn new(part: OsString) -> Self {
        Self { id: None, part, leads: false }
    }

    /// Whether the file holds the data of the server's present history. After a full synchronisation it does
    /// so once it has been rewritten. Another last part shows the rewrite.
    pub fn follow(&mut self, replication: &Replication, is_rewriting: bool, part: &OsString) -> bool {
        let history = &replication.history;
        let leads = !matches!(replication.role, Role::Replica { .. });
        let has_synchronised = !leads && replication.place().is_some();
        let goes_on = match &self.id {
            Some(id) => *id == history.id || *id == history.previous_id || (self.leads && leads),
            None => !has_synchronised,
        };
        let is_rewritten = self.part != *part && !is_rewriting;
        if goes_on || is_rewritten {
            *self = Self { id: Some(history.id.clone()), part: part.clone(), leads };
        }
        goes_on || is_rewritten
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::commands::join::test_files::{command, write};
    use crate::node::info::Info;

    const ID: &str = "0123456789abcdef0123456789abcdef01234567";

    #[test]
    fn a_position_is_told_from_the_last_entry_and_the_growth_since() {
        let folder = tempfile::tempdir().unwrap();
        let words = ["redis-server", "--dir", folder.path().to_str().unwrap(), "--appendonly", "yes"];
        let settings = command(&words).settings().unwrap();
        let journal = Journal::of(&settings);
        let (one, two) = ("appendonly.aof.1.incr.aof", "appendonly.aof.2.incr.aof");
        assert_eq!(journal.parts(), Some(Parts { base: None, last: (one.into(), 0) }));
        assert_eq!(journal.position(), None);
        let manifest = |parts: &[&str]| {
            let line = |part: &&str| format!("file {part} seq 1 type i\n");
            let text: String = parts.iter().map(line).collect();
            write(
                &folder,
                "appendonlydir/appendonly.aof.manifest",
                format!("file base seq 1 type b\n{text}"),
            );
        };
        let is_long =
            |part: &str, size: usize| write(&folder, &format!("appendonlydir/{part}"), vec![b'x'; size]);
        manifest(&[one]);
        is_long(one, 100);
        let noted = Position::new(ID, 5000).unwrap().after(&Position::new(&"a".repeat(40), 7).unwrap());
        journal.note(&noted, journal.parts().as_ref()).unwrap();
        assert_eq!(journal.noted(), Some(noted.clone()));
        let at = |grown| Some(noted.clone().advanced(grown, 2 * grown + 1024));
        assert_eq!(journal.position(), at(0));
        is_long(one, 130);
        assert_eq!(journal.position(), at(30));
        assert!(!journal.is_rolled_back());
        manifest(&[one, two]);
        is_long(two, 7);
        assert_eq!(journal.position(), at(37));
        manifest(&[two]);
        assert_eq!(journal.position(), Some(noted.clone().advanced(0, i64::MAX)), "rewritten");
        manifest(&[one]);
        is_long(one, 99);
        assert_eq!(journal.position(), Some(noted.clone().advanced(-1, 0)), "an old file");
        assert!(journal.is_rolled_back());
        manifest(&["appendonly.aof.0.incr.aof"]);
        assert_eq!(journal.position(), Some(noted.begun()), "an older one");
        manifest(&[]);
        assert_eq!(journal.position(), None, "no file");
        manifest(&[one]);
        let entry = fs::read_to_string(&journal.path).unwrap();
        for end in 0..entry.len() {
            write(&folder, "appendonly.aof.journal", &entry[..end]);
            assert_eq!(journal.noted(), None, "cut off: {}", &entry[..end]);
        }
    }

    #[test]
    fn an_older_file_is_known_by_its_base() {
        let folder = tempfile::tempdir().unwrap();
        // The name of this file begins like the end of an entry.
        let words = ["--dir", folder.path().to_str().unwrap(), "--appendonly", "yes"];
        let words = [&["redis-server"], &words[..], &["--appendfilename", "end"]].concat();
        let journal = Journal::of(&command(&words).settings().unwrap());
        let (base, incr) = ("end.2.base.rdb", "end.2.incr.aof");
        let is_there = |base: Option<(&str, usize)>, incr: (&str, usize)| {
            let mut manifest = String::new();
            for (kind, (name, size)) in base.map(|base| ("b", base)).into_iter().chain([("i", incr)]) {
                write(&folder, &format!("appendonlydir/{name}"), vec![b'x'; size]);
                manifest.push_str(&format!("file {name} seq 2 type {kind}\n"));
            }
            write(&folder, "appendonlydir/end.manifest", manifest);
        };
        let noted = Position::new(ID, 5000).unwrap();
        let grown = |by| Some(noted.clone().advanced(by, 2 * by + 1024));
        is_there(Some((base, 2255)), (incr, 395));
        journal.note(&noted, journal.parts().as_ref()).unwrap();
        let entry = fs::read_to_string(&journal.path).unwrap();
        assert_eq!(entry, format!("{noted} {incr} 395 {base} 2255 end\n"));
        let older = Some(noted.clone().begun());
        for (there, size, expected) in [
            (Some((base, 2255)), 400, grown(5)),
            (Some((base, 89)), 5278, older.clone()),
            (Some((base, 9000)), 5278, older),
            (Some(("end.3.base.rdb", 89)), 5278, grown(4883)),
            (None, 5278, grown(4883)),
        ] {
            is_there(there, (incr, size));
            assert_eq!(journal.position(), expected, "{there:?}, {size}");
            assert_eq!(
                journal.is_rolled_back(),
                expected == Some(noted.clone().begun()),
                "{there:?}, {size}"
            );
        }
        is_there(Some((base, 89)), (incr, 5278));
        for end in 0..entry.len() {
            write(&folder, "end.journal", &entry[..end]);
            assert_eq!(journal.noted(), None, "cut off: {}", &entry[..end]);
        }
        write(&folder, "end.journal", format!("{noted} {incr} 395 end\n"));
        assert_eq!(journal.position(), grown(4883), "without a base, as it was noted before");
        is_there(None, (incr, 395));
        journal.note(&noted, journal.parts().as_ref()).unwrap();
        assert_eq!(journal.position(), grown(0), "no base");
    }

    #[test]
    fn the_journal_stops_from_a_synchronisation_to_its_rewrite() {
        let info = |text: &str| Replication::parse(&Info::parse(text)).unwrap();
        let replica = |id: &str, previous: &str, applied: i64| {
            info(&format!(
                "role:slave\r\nmaster_host:10.0.0.7\r\nmaster_port:6379\r\nmaster_link_status:up\r\nslave_repl_offset:{applied}\r\n\
                 master_replid:{id}\r\nmaster_replid2:{previous}\r\n"
            ))
        };
        let (one, two) = (OsString::from("one"), OsString::from("two"));
        let mut holds = FileHistory::new(one.clone());
        assert!(!holds.follow(&replica("aa", "", 90), true, &one), "it has synchronised already");
        assert!(!holds.follow(&replica("aa", "", 95), false, &one), "the rewrite has not begun");
        assert!(holds.follow(&replica("aa", "", 99), false, &two));
        assert!(holds.follow(&replica("aa", "", 120), true, &two), "another rewrite");
        assert!(holds.follow(&replica("bb", "aa", 150), false, &two), "another master, the same history");
        assert!(!holds.follow(&replica("cc", "", 150), false, &two), "another history");
        let mut fresh = FileHistory::new(one.clone());
        assert!(fresh.follow(&info("role:master\r\nmaster_replid:aa\r\n"), false, &one));
        assert!(fresh.follow(&info("role:master\r\nmaster_replid:bb\r\n"), false, &one), "its first replica");
        assert!(!fresh.follow(&replica("cc", "", 7), false, &one), "it was made a replica");
    }
}
