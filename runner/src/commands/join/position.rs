//! How far a node's data goes: through which histories of writes, and up to which byte of the last history.

use std::fmt;
use std::str::FromStr;

use crate::node::info::Info;
use crate::node::replication::Replication;

/// How many histories a position remembers. A new one begins with each failover, and with each restart of a
/// master.
const STEPS: usize = 8;

/// A place in a history, and the places in the histories before it, at which each went on to the next
/// history.
///
/// Two servers with the same replication id hold the same data up to the lower offset. A server that went on
/// from a place holds everything before that place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Position {
    /// The last history comes first. Never empty.
    steps: Vec<Step>,
    /// By how many bytes the data may go further.
    slack: i64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Step {
    /// The replication id.
    history: [u8; 40],
    /// In bytes of the stream.
    offset: i64,
}

impl Step {
    fn new(history: &str, offset: i64) -> Option<Self> {
        let is_id = history.bytes().all(|byte| byte.is_ascii_hexdigit());
        Some(Self { history: history.as_bytes().try_into().ok().filter(|_| is_id)?, offset })
    }
}

impl Position {
    /// `None` if `history` is no replication id.
    pub fn new(history: &str, offset: i64) -> Option<Self> {
        Some(Self { steps: vec![Step::new(history, offset)?], slack: 0 })
    }

    /// The position of a running server, as the server reports it. `None` while the whole data set changes.
    pub fn living(replication: &Replication, persistence: &Info) -> Option<Self> {
        let is = |field: &str| persistence.get(field) == Some("1");
        let place = replication.place().filter(|_| !is("loading") && !is("async_loading"));
        let history = &replication.history;
        let mut position = Self::new(&history.id, place?)?;
        // Without a previous history, its id is all zeros, and it ends at -1.
        if history.previous_until > 0 {
            position.steps.extend(Step::new(&history.previous_id, history.previous_until - 1));
        }
        Some(position)
    }

    /// The place that is this many bytes further. The data may go further by another `slack` bytes.
    #[must_use]
    pub fn advanced(mut self, by: i64, slack: i64) -> Self {
        self.steps[0].offset = self.steps[0].offset.saturating_add(by);
        self.slack = slack;
        self
    }

    /// The beginning of the last history.
    #[must_use]
    pub fn begun(self) -> Self {
        let offset = self.steps[0].offset;
        self.advanced(-offset, 0)
    }

    /// The same place, with the histories before it that `of` contains. `of` is a position of the same data,
    /// at another time or on another node.
    #[must_use]
    pub fn with_ancestors(mut self, of: &Self) -> Self {
        let meet = self.steps.iter().enumerate().find_map(|(ours, step)| Some((ours, of.find(step)?)));
        if let Some((ours, theirs)) = meet {
            self.steps.truncate(ours + 1);
            self.steps.extend(&of.steps[theirs + 1..]);
            self.steps.truncate(STEPS);
        }
        self
    }

    /// The same place, in a history that goes on from `before`.
    #[must_use]
    pub fn after(mut self, before: &Self) -> Self {
        self.steps.truncate(1);
        self.steps.extend(&before.steps);
        self.steps.truncate(STEPS);
        self
    }

    /// How far the data goes at most, in bytes that are counted on from one history to the next. `None`: the
    /// server has loaded its append-only file, and counts from the beginning again.
    pub fn most(&self) -> Option<i64> {
        let last = self.steps[0].offset;
        let counts_on = self.steps.iter().all(|step| step.offset <= last);
        counts_on.then_some(last.saturating_add(self.slack))
    }

    /// Whether the two have a history in common.
    pub fn meets(&self, other: &Self) -> bool {
        self.steps.iter().any(|step| other.find(step).is_some())
    }

    /// Whether no history before the last one is known.
    pub fn has_one_history(&self) -> bool {
        self.steps.len() == 1
    }

    /// Whether the data of this position went from the last history of `from` on to the last history of `to`.
    pub fn went_from(&self, from: &Self, to: &Self) -> bool {
        let [from, to] = [from, to].map(|position| self.find(&position.steps[0]));
        from.zip(to).is_some_and(|(from, to)| to < from)
    }

    /// Whether both have come through the same histories.
    pub fn has_same_histories(&self, other: &Self) -> bool {
        self.steps[0].history == other.steps[0].history && self.steps[1..] == other.steps[1..]
    }

    fn find(&self, step: &Step) -> Option<usize> {
        self.steps.iter().position(|other| other.history == step.history)
    }

    /// Whether `other` goes further. `None` if neither position continues the other, or if the end of one
    /// position is unknown.
    pub fn is_behind(&self, other: &Self) -> Option<bool> {
        let (ours, theirs) = (&self.steps[0], &other.steps[0]);
        match (other.find(ours), self.find(theirs)) {
            (Some(0), _) if ours.offset.saturating_add(self.slack) < theirs.offset => Some(true),
            (Some(0), _) if other.slack == i64::MAX => None,
            (Some(0), _) => Some(false),
            // The data may have gone on to any history.
            _ if self.slack == i64::MAX || other.slack == i64::MAX => None,
            // `other` has gone on to another history. What `self` was sent after that in the old history
            // makes no difference.
            (Some(_), _) => Some(true),
            (None, Some(_)) => Some(false),
            (None, None) => None,
        }
    }

    /// Whether `other` most likely goes further, if that is not certain. This compares the middle of the
    /// range in which each position lies. Of two positions, at most one is behind.
    pub fn is_likely_behind(&self, other: &Self) -> bool {
        let is_same_history = self.steps[0].history == other.steps[0].history;
        match self.is_behind(other) {
            Some(_) if is_same_history && self.slack != i64::MAX && other.slack != i64::MAX => {
                self.middle() < other.middle()
            }
            is_behind => is_behind == Some(true),
        }
    }

    fn middle(&self) -> i64 {
        self.steps[0].offset.saturating_add(self.slack / 2)
    }
}

/// `id:offset+id:offset~slack`. It contains no blank, because it is part of a connection's name.
impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, Step { history, offset }) in self.steps.iter().enumerate() {
            let plus = if index == 0 { "" } else { "+" };
            write!(f, "{plus}{}:{offset}", String::from_utf8_lossy(history))?;
        }
        if self.slack != 0 {
            write!(f, "~{}", self.slack)?;
        }
        Ok(())
    }
}

/// The text is no position.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NoPosition;

impl FromStr for Position {
    type Err = NoPosition;

    fn from_str(text: &str) -> Result<Self, NoPosition> {
        let (steps, slack) = text.split_once('~').unwrap_or((text, "0"));
        let step = |text: &str| {
            let (history, offset) = text.split_once(':')?;
            Step::new(history, offset.parse().ok()?)
        };
        let steps: Option<Vec<Step>> = steps.split('+').map(step).collect();
        let slack = slack.parse().map_err(|_| NoPosition)?;
        let steps = steps.filter(|steps| steps.len() <= STEPS).ok_or(NoPosition)?;
        Ok(Self { steps, slack })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> Position {
        // One letter stands for each id.
        let long = |letter: char| {
            if letter.is_ascii_lowercase() { letter.to_string().repeat(40) } else { letter.into() }
        };
        text.chars().map(long).collect::<String>().parse().unwrap()
    }

    #[test]
    fn bytes_are_counted_on_until_a_server_has_loaded_its_file() {
        let [old, new] = ["a", "b"].map(|id| Position::new(&id.repeat(40), 1000).unwrap());
        assert_eq!(old.most(), Some(1000));
        assert_eq!(old.clone().advanced(50, 20).most(), Some(1070));
        assert_eq!(new.clone().advanced(5, 0).after(&old).most(), Some(1005));
        assert_eq!(new.advanced(-950, 0).after(&old).most(), None);
    }

    #[test]
    fn positions_of_one_history_are_compared() {
        assert_eq!(at("a:10").is_behind(&at("a:11")), Some(true));
        assert_eq!(at("a:10").is_behind(&at("a:10")), Some(false));
        assert_eq!(at("a:10").advanced(5, 4).is_behind(&at("a:19")), Some(false));
        assert_eq!(at("a:10").advanced(5, 4).is_behind(&at("a:20")), Some(true));
        assert_eq!(at("a:10").is_behind(&at("b:99")), None);
        assert_eq!(Position::new("short", 1), None);
    }

    #[test]
    fn of_two_that_may_both_be_further_one_is_likely_behind() {
        // A position from a file that has grown by 40 bytes since.
        let grown = at("a:10").advanced(40, 80);
        for (theirs, is_behind) in [("a:89", false), ("a:91", true), ("a:131", true), ("b:2+a:10", true)] {
            assert_eq!(grown.is_likely_behind(&at(theirs)), is_behind, "{theirs}");
            assert_eq!(at(theirs).is_likely_behind(&grown), !is_behind, "{theirs}");
        }
        assert!(!grown.is_likely_behind(&at("a:90")) && !at("a:90").is_likely_behind(&grown), "the same");
        assert!(!grown.is_likely_behind(&at("b:999")));
        let unknown = at("a:10").advanced(0, i64::MAX);
        assert!(!unknown.is_likely_behind(&grown) && !grown.is_likely_behind(&unknown));
        assert!(at("a:9").is_likely_behind(&unknown));
    }

    #[test]
    fn who_has_gone_on_is_further() {
        assert_eq!(at("a:10").is_behind(&at("b:2+a:10")), Some(true));
        assert_eq!(at("b:2+a:10").is_behind(&at("a:10")), Some(false));
        // The server was sent more by a master that was then replaced.
        assert_eq!(at("a:12").is_behind(&at("b:2+a:10")), Some(true));
        assert_eq!(at("b:2+a:10").is_behind(&at("b:3")), Some(true));
        assert_eq!(at("c:2+a:10").is_behind(&at("b:3+a:10")), None, "both went on");
        assert!(at("c:1+b:2+a:10").went_from(&at("a:3"), &at("c:9+d:1")));
        assert!(!at("c:1+b:2+a:10").went_from(&at("c:1"), &at("a:9")));
        assert!(!at("c:1+b:2+a:10").went_from(&at("a:1"), &at("d:9")));
        let unknown = at("a:10").advanced(0, i64::MAX);
        assert_eq!(unknown.is_behind(&at("b:2+a:10")), None);
        assert_eq!(at("b:2+a:10").is_behind(&unknown), None);
        assert_eq!((at("a:9").is_behind(&unknown), at("a:10").is_behind(&unknown)), (Some(true), None));
        assert_eq!(unknown.is_behind(&at("a:11")), Some(false));
    }

    #[test]
    fn ancestors_are_taken_over_where_the_histories_meet() {
        assert_eq!(at("b:7").with_ancestors(&at("b:2+a:10")), at("b:7+a:10"));
        assert_eq!(at("c:1+b:3").with_ancestors(&at("b:2+a:10")), at("c:1+b:3+a:10"));
        assert_eq!(at("c:1").with_ancestors(&at("b:2+a:10")), at("c:1"));
        assert_eq!(at("c:1+d:9").after(&at("b:2+a:10")), at("c:1+b:2+a:10"));
        let long = (0..20).fold(at("a:1"), |before, _| at("b:1").after(&before));
        assert_eq!(long.steps.len(), STEPS);
    }

    #[test]
    fn a_position_is_read_as_it_is_written() {
        for position in [at("a:10"), at("b:7+a:10"), at("a:10").advanced(1, i64::MAX)] {
            assert_eq!(position.to_string().parse(), Ok(position));
        }
        for text in ["", "a:1", ":", "~", "+"] {
            assert_eq!(text.parse::<Position>(), Err(NoPosition), "{text}");
        }
    }
}
