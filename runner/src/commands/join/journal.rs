//! The journal: how far the append-only file of a server went, noted beside it once a second.
//!
//! A server that loads an append-only file begins a history of its own, and so does not know how far its data goes in the one
//! before. `join`, which is there all the time, notes the replication id, the offset, and how long the file was at that moment. By as
//! much as the file has grown since, the data goes further.

use std::ffi::OsString;
use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::path::PathBuf;

use super::config_line::{quote, split};
use super::position::Position;
use super::server_command::ServerSettings;
use crate::node::replication::{Replication, Role};

/// What the stream has that the file has not: `GETACK`s, of which there is at most one for each write, and `PING`s. So a position that
/// is told from the file may be further by this many times the growth, and this many bytes.
const SLACK: (i64, i64) = (2, 1024);

/// What ends an entry: without it, it was cut off.
const END: &str = "end";

/// An append-only file, of which the last part is written to.
#[derive(Debug)]
pub struct AppendOnly {
    folder: PathBuf,
    name: OsString,
    pub journal: PathBuf,
}

impl AppendOnly {
    /// `None`: a server with these settings has none that consists of parts. (Before Redis 7.0 it is one file, which is replaced
    /// whole.)
    pub fn of(settings: &ServerSettings, port: u16) -> Option<Self> {
        if !settings.is_yes("appendonly") {
            return None;
        }
        let journal = settings.folder().join(format!("join-{port}.journal"));
        Some(Self { folder: settings.append_folder(), name: settings.append_name().to_owned(), journal })
    }

    /// The parts that are written to, the last one last, each with its size; none where there is no manifest.
    fn parts(&self) -> Vec<(OsString, u64)> {
        let mut manifest = self.name.clone();
        manifest.push(".manifest");
        let lines = fs::read(self.folder.join(manifest)).unwrap_or_default();
        let lines = lines.split(|&byte| byte == b'\n').map(split);
        // `file appendonly.aof.1.incr.aof seq 1 type i`
        let parts = lines.filter_map(|words| match words.as_slice() {
            [_, name, _, _, _, kind, ..] if kind == "i" => Some(name.clone()),
            _ => None,
        });
        let size =
            |name: &OsString| fs::metadata(self.folder.join(name)).map(|file| file.len()).unwrap_or_default();
        parts.map(|name| (name.clone(), size(&name))).collect()
    }

    /// The part that is written to. A server that starts without any makes the first.
    pub fn last(&self) -> (OsString, u64) {
        self.parts().pop().unwrap_or_else(|| {
            let mut first = self.name.clone();
            first.push(".1.incr.aof");
            (first, 0)
        })
    }

    /// In one step, so that there is always a whole entry.
    pub fn note(&self, position: &Position, (part, size): &(OsString, u64)) -> std::io::Result<()> {
        let part = quote(&part.to_string_lossy());
        let unfinished = self.journal.with_extension("journal.new");
        fs::write(&unfinished, format!("{position} {part} {size} {END}\n"))?;
        fs::rename(unfinished, &self.journal)
    }
}

/// How far the append-only file goes, by the last entry and by what it has grown since.
pub fn read(settings: &ServerSettings, port: u16) -> Option<Position> {
    let file = AppendOnly::of(settings, port)?;
    let entry = split(fs::read(&file.journal).ok()?.trim_ascii());
    let [id, offset, part, size, end] = entry.as_slice() else { return None };
    let offset = offset.to_str()?.parse().ok()?;
    let size: u64 = size.to_str()?.parse().ok()?;
    let position = Position::new(id.to_str()?, offset).filter(|_| end == END)?;
    let parts = file.parts();
    let Some(noted) = parts.iter().position(|(name, _)| name.as_bytes() == part.as_bytes()) else {
        // It was rewritten within the last second, and goes at least as far: how much further nothing says.
        return (!parts.is_empty()).then(|| position.advanced(0, i64::MAX));
    };
    // One that has become shorter is not the one that was noted.
    let grown = parts[noted].1.checked_sub(size)?;
    let later: u64 = parts[noted + 1..].iter().map(|(_, size)| size).sum();
    let by = i64::try_from(grown + later).ok()?;
    Some(position.advanced(by, by.saturating_mul(SLACK.0).saturating_add(SLACK.1)))
}

/// The history that the file holds, and its last part when that was seen.
#[derive(Debug)]
pub struct Holds {
    id: Option<String>,
    part: OsString,
    /// Whether the server followed nobody then. It begins a new history with its first replica, of the same data.
    leads: bool,
}

impl Holds {
    /// A server that has just started, and this part that it was to write to.
    pub fn new(part: OsString) -> Self {
        Self { id: None, part, leads: false }
    }

    /// Whether the file holds the data of the history that the server is in by now. After a full synchronisation it does once it
    /// was rewritten, and then its last part is another.
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
        let file = AppendOnly::of(&settings, 7000).unwrap();
        let read = || read(&settings, 7000);
        assert_eq!(file.last(), ("appendonly.aof.1.incr.aof".into(), 0));
        assert_eq!(read(), None);
        let manifest = |parts: &[&str]| {
            let line = |part: &&str| format!("file {part} seq 1 type i\n");
            let text: String = parts.iter().map(line).collect();
            write(
                &folder,
                "appendonlydir/appendonly.aof.manifest",
                format!("file base seq 1 type b\n{text}"),
            );
        };
        manifest(&["one"]);
        write(&folder, "appendonlydir/one", [b'x'; 100]);
        file.note(&Position::new(ID, 5000).unwrap(), &file.last()).unwrap();
        let at = |offset, grown| Position::new(ID, offset).unwrap().advanced(grown, 2 * grown + 1024);
        assert_eq!(read(), Some(at(5000, 0)));
        write(&folder, "appendonlydir/one", [b'x'; 130]);
        assert_eq!(read(), Some(at(5000, 30)));
        manifest(&["one", "two"]);
        write(&folder, "appendonlydir/two", [b'x'; 7]);
        assert_eq!(read(), Some(at(5000, 37)));
        manifest(&["two"]);
        assert_eq!(read(), Some(Position::new(ID, 5000).unwrap().advanced(0, i64::MAX)), "rewritten");
        manifest(&["one"]);
        write(&folder, "appendonlydir/one", [b'x'; 99]);
        assert_eq!(read(), None, "another file of that name");
        write(&folder, "appendonlydir/one", [b'x'; 100]);
        let entry = fs::read_to_string(folder.path().join("join-7000.journal")).unwrap();
        for end in 0..entry.trim_end().len() {
            write(&folder, "join-7000.journal", &entry[..end]);
            assert_eq!(read(), None, "cut off: {}", &entry[..end]);
        }
    }

    #[test]
    fn the_journal_does_not_advance_between_a_synchronisation_and_the_rewrite_after_it() {
        let info = |text: &str| Replication::parse(&Info::parse(text)).unwrap();
        let replica = |id: &str, previous: &str, applied: i64| {
            info(&format!(
                "role:slave\r\nmaster_host:10.0.0.7\r\nmaster_port:6379\r\nmaster_link_status:up\r\nslave_repl_offset:{applied}\r\n\
                 master_replid:{id}\r\nmaster_replid2:{previous}\r\n"
            ))
        };
        let (one, two) = (OsString::from("one"), OsString::from("two"));
        let mut holds = Holds::new(one.clone());
        assert!(!holds.follow(&replica("aa", "", 90), true, &one), "it has synchronised already");
        assert!(!holds.follow(&replica("aa", "", 95), false, &one), "the rewrite has not begun");
        assert!(holds.follow(&replica("aa", "", 99), false, &two));
        assert!(holds.follow(&replica("aa", "", 120), true, &two), "another rewrite");
        assert!(holds.follow(&replica("bb", "aa", 150), false, &two), "another master, the same history");
        assert!(!holds.follow(&replica("cc", "", 150), false, &two), "another history");
        let mut fresh = Holds::new(one.clone());
        assert!(fresh.follow(&info("role:master\r\nmaster_replid:aa\r\n"), false, &one));
        assert!(fresh.follow(&info("role:master\r\nmaster_replid:bb\r\n"), false, &one), "its first replica");
        assert!(!fresh.follow(&replica("cc", "", 7), false, &one), "it was made a replica");
    }
}
