//! What has changed since the system was verified.

use std::collections::BTreeSet;

use crate::api::{Addr, Kind, Registration, Roster};

/// One difference between a roster and the verified system.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Change {
    /// The members report this node as the master.
    Master(Addr),
    /// The node was not a member.
    Joined(Kind, Addr),
    /// The node has not registered again in time.
    Stale(Kind, Addr),
    /// The node is not registered any more.
    Left(Kind, Addr),
    /// Fewer nodes are registered than are expected now.
    Fewer,
    /// The members at that time are unknown: another version took the outcome, or `last_verified` has not
    /// arrived yet.
    Unknown,
}

/// The changes since the system was verified. Empty if it never was.
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
    // The broker expects more nodes now. A run that sent its own numbers expected no more nodes than it saw.
    let is_by_broker = roster.outcome.as_ref().is_none_or(|outcome| outcome.expected.is_none());
    if changes.is_empty() && !roster.ready && is_by_broker {
        changes.push(Change::Fewer);
    }
    changes
}

/// The master that most Sentinels have reported since the system was last verified, or at any time if it
/// never was. If no Sentinel has reported a master, the Redis servers' reports count. The report of a dead
/// master counts until its registration is stale.
pub(super) fn reported_master(roster: &Roster) -> Option<&Addr> {
    let since = roster.last_verified.as_ref().map(|last| last.at);
    let words = |nodes: &'_ [Registration]| -> Vec<Addr> {
        let heard = nodes.iter().filter(|node| !node.stale && since.is_none_or(|at| node.last_seen > at));
        heard.filter_map(|node| node.master.clone()).collect()
    };
    let sentinels = words(&roster.sentinels);
    let words = if sentinels.is_empty() { words(&roster.redis) } else { sentinels };
    let is_named = |addr: &&Addr| 2 * words.iter().filter(|word| word == addr).count() > words.len();
    // Sentinels may know the master by an address that it did not register.
    roster.redis.iter().map(|node| &node.addr).find(is_named)
}

/// The reported master, if it differs from the verified master.
pub(super) fn new_master(roster: &Roster) -> Option<&Addr> {
    let last = roster.last_verified.as_ref()?;
    reported_master(roster).filter(|master| **master != last.master)
}

fn of_both(roster: &Roster) -> impl Iterator<Item = (Kind, &Registration)> {
    let redis = roster.redis.iter().map(|node| (Kind::Redis, node));
    redis.chain(roster.sentinels.iter().map(|node| (Kind::Sentinel, node)))
}
