//! What is no longer as it was verified.

use std::collections::BTreeSet;

use crate::api::{Addr, Kind, Registration, Roster};

/// One way in which a roster differs from what was verified.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Change {
    /// Its members say that another is the master.
    Master(Addr),
    /// It was not there.
    Joined(Kind, Addr),
    /// It has not registered again in time.
    Stale(Kind, Addr),
    /// It is not registered any more.
    Left(Kind, Addr),
    /// Fewer are registered than are expected by now.
    Fewer,
    /// It is not known who was there: this broker was told by another build, or has yet to hear of it.
    Unknown,
}

/// What has changed since a system was verified: nothing where none ever was.
pub(super) fn changes(roster: &Roster) -> Vec<Change> {
    let mut changes = vec![];
    let Some(last) = &roster.last_verified else {
        changes.extend(roster.outcome.as_ref().filter(|outcome| outcome.verified).map(|_| Change::Unknown));
        return changes;
    };
    changes.extend(new_master(roster).cloned().map(Change::Master));
    let members = |kind| match kind {
        Kind::Redis => &last.redis,
        Kind::Sentinel => &last.sentinels,
    };
    for (kind, node) in of_both(roster) {
        match (members(kind).contains(&node.addr), node.stale) {
            (true, true) => changes.push(Change::Stale(kind, node.addr.clone())),
            (false, false) => changes.push(Change::Joined(kind, node.addr.clone())),
            (true, false) | (false, true) => {}
        }
    }
    for kind in Kind::ALL {
        let there: BTreeSet<&Addr> =
            of_both(roster).filter(|(of, _)| *of == kind).map(|(_, node)| &node.addr).collect();
        let left = members(kind).iter().filter(|addr| !there.contains(addr));
        changes.extend(left.map(|addr| Change::Left(kind, addr.clone())));
    }
    // More are expected than then. A run that said how many itself asked for no more than it has seen.
    let is_by_broker = roster.outcome.as_ref().is_none_or(|outcome| outcome.expected.is_none());
    if changes.is_empty() && !roster.ready && is_by_broker {
        changes.push(Change::Fewer);
    }
    changes
}

/// The master by the word of the system's members, since it was last verified, if it was: most of the Sentinels that say it, or else most of the
/// Redis servers. A master that has died says for as long as it is not stale that it is one.
pub(super) fn master_by_word(roster: &Roster) -> Option<&Addr> {
    let since = roster.last_verified.as_ref().map(|last| last.at);
    let words = |nodes: &'_ [Registration]| -> Vec<Addr> {
        let heard = nodes.iter().filter(|node| !node.stale && since.is_none_or(|at| node.last_seen > at));
        heard.filter_map(|node| node.master.clone()).collect()
    };
    let sentinels = words(&roster.sentinels);
    let words = if sentinels.is_empty() { words(&roster.redis) } else { sentinels };
    let is_named = |addr: &&Addr| 2 * words.iter().filter(|word| word == addr).count() > words.len();
    // Sentinels may know it by another name than it has registered by.
    roster.redis.iter().map(|node| &node.addr).find(is_named)
}

/// The same, where that is another than was verified.
pub(super) fn new_master(roster: &Roster) -> Option<&Addr> {
    let last = roster.last_verified.as_ref()?;
    master_by_word(roster).filter(|master| **master != last.master)
}

fn of_both(roster: &Roster) -> impl Iterator<Item = (Kind, &Registration)> {
    let redis = roster.redis.iter().map(|node| (Kind::Redis, node));
    redis.chain(roster.sentinels.iter().map(|node| (Kind::Sentinel, node)))
}
