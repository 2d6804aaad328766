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
    /// Fewer are registered than are expected, and it is not known who was there.
    Fewer,
}

/// What has changed since a system was verified: nothing where none ever was.
pub(super) fn changes(roster: &Roster) -> Vec<Change> {
    let mut changes = vec![];
    changes.extend(new_master(roster).cloned().map(Change::Master));
    let Some(last) = &roster.last_verified else {
        // As brokers stored it that kept no members.
        let Some(outcome) = roster.outcome.as_ref().filter(|outcome| outcome.verified) else {
            return changes;
        };
        let nodes = of_both(roster).filter(|(_, node)| node.registered_at > outcome.at);
        changes.extend(nodes.map(|(kind, node)| Change::Joined(kind, node.addr.clone())));
        changes.extend((!roster.ready).then_some(Change::Fewer));
        return changes;
    };
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
    changes
}

/// The master that members name which have registered again since the system was verified, if all of them name the same, and another.
pub(super) fn new_master(roster: &Roster) -> Option<&Addr> {
    let (at, verified) = match (&roster.last_verified, &roster.outcome) {
        (Some(last), _) => (last.at, &last.master),
        (None, Some(outcome)) if outcome.verified => (outcome.at, outcome.master.as_ref()?),
        _ => return None,
    };
    let since = of_both(roster).filter(|(_, node)| !node.stale && node.last_seen > at);
    let named: BTreeSet<&Addr> = since.filter_map(|(_, node)| node.master.as_ref()).collect();
    let master = named.first().filter(|_| named.len() == 1)?;
    // Sentinels may know it by another name than it has registered by.
    let is_registered = roster.redis.iter().any(|node| node.addr == **master);
    (is_registered && *master != verified).then_some(*master)
}

fn of_both(roster: &Roster) -> impl Iterator<Item = (Kind, &Registration)> {
    let redis = roster.redis.iter().map(|node| (Kind::Redis, node));
    redis.chain(roster.sentinels.iter().map(|node| (Kind::Sentinel, node)))
}
