//! How far a node's data goes: to which history of writes it belongs, and up to which byte of it.

use std::fmt;

use crate::node::info::Info;
use crate::node::replication::Replication;

/// A place in a history. Two servers with the same replication id hold the same data up to the lower offset.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Position {
    /// The replication id.
    history: [u8; 40],
    /// In bytes of the stream.
    offset: i64,
    /// By how many bytes it may be further.
    slack: i64,
}

impl Position {
    /// `None`: that is no replication id.
    pub fn new(history: &str, offset: i64) -> Option<Self> {
        Some(Self { history: history.as_bytes().try_into().ok()?, offset, slack: 0 })
    }

    /// What a living server says of itself; `None` while that changes altogether.
    pub fn living(replication: &Replication, persistence: &Info) -> Option<Self> {
        let is = |field: &str| persistence.get(field) == Some("1");
        let place = replication.place().filter(|_| !is("loading") && !is("async_loading"));
        Self::new(&replication.history.id, place?)
    }

    /// So many bytes further, and perhaps as many as `slack` more.
    #[must_use]
    pub fn advanced(self, by: i64, slack: i64) -> Self {
        Self { offset: self.offset.saturating_add(by), slack, ..self }
    }

    /// Whether what is there goes further than what is here; `None` where they belong to different histories.
    pub fn is_behind(&self, other: &Self) -> Option<bool> {
        (self.history == other.history).then(|| self.offset.saturating_add(self.slack) < other.offset)
    }
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", String::from_utf8_lossy(&self.history), self.offset)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "0123456789abcdef0123456789abcdef01234567";

    #[test]
    fn positions_of_one_history_are_compared() {
        let at = |offset| Position::new(ID, offset).unwrap();
        assert_eq!(at(10).is_behind(&at(11)), Some(true));
        assert_eq!(at(10).is_behind(&at(10)), Some(false));
        assert_eq!(at(10).advanced(5, 4).is_behind(&at(19)), Some(false));
        assert_eq!(at(10).advanced(5, 4).is_behind(&at(20)), Some(true));
        assert_eq!(at(10).is_behind(&Position::new(&ID.replace('0', "f"), 99).unwrap()), None);
        assert_eq!(Position::new("short", 1), None);
    }
}
