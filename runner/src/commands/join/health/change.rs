//! Derives what has happened from one state to the next. No I/O.

use std::time::Duration;

use tokio::time::Instant;

use super::judge;
use super::seen::SeenNodes;
use crate::node::endpoint::Endpoint;
use crate::node::replication::Role;

/// A failover that no Sentinel has reported for this long has failed.
const ABORTED_AFTER: Duration = Duration::from_secs(5);

/// The change for which the operator's command runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RoleChange {
    pub what: What,
    /// The master that most Sentinels report, as far as that is known.
    pub master: Option<Endpoint>,
    /// The previous master, if the Sentinels report another master now.
    pub previous: Option<Endpoint>,
    pub why: String,
}

/// What has happened, in one word.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum What {
    /// This server has become the master.
    Promoted,
    /// This server is no longer the master.
    Demoted,
    /// This server reports itself as the master, and is to get no writes.
    Fenced,
    /// The server is no longer fenced.
    Unfenced,
    /// The Sentinels have begun to replace the master.
    FailoverBegun,
    /// The Sentinels report another master, or have given up the failover.
    FailoverEnded,
}

impl What {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Promoted => "promoted",
            Self::Demoted => "demoted",
            Self::Fenced => "fenced",
            Self::Unfenced => "unfenced",
            Self::FailoverBegun => "failover-begun",
            Self::FailoverEnded => "failover-ended",
        }
    }
}

/// The state before.
#[derive(Debug, Default)]
pub struct Before {
    is_master: Option<bool>,
    is_fenced: bool,
    /// Whether the server was to get writes at any moment since it became a master.
    was_confirmed: bool,
    named: Option<Endpoint>,
    failing: Option<Failing>,
}

/// The progress of a failover, as the Sentinels report it.
#[derive(Debug)]
enum Failing {
    /// A Sentinel reports that it fails over.
    Now,
    /// No Sentinel has reported a failover since this moment.
    Until(Instant),
    /// The failover has ended, and a Sentinel still reports it.
    Ended,
}

impl Before {
    /// The state before the first answer. `as_no_master`: the server was started as a replica, or held. If it
    /// is then seen as a master, it was promoted.
    pub fn started(as_no_master: bool) -> Self {
        Self { is_master: as_no_master.then_some(false), ..Self::default() }
    }

    /// What has happened since the last state.
    pub fn next(&mut self, seen: &SeenNodes, now: Instant) -> Vec<RoleChange> {
        let mut changes = Vec::new();
        let named = seen.named(now).map(|(named, _)| named.clone());
        let mut add = |what, previous: Option<&Endpoint>, why: &str| {
            let (master, previous) = (named.clone(), previous.cloned());
            changes.push(RoleChange { what, master, previous, why: why.to_owned() });
        };
        let fails_over = seen.fresh(now).any(|view| view.is_failing_over);
        let is_begun = matches!(self.failing, Some(Failing::Now | Failing::Until(_)));
        let previous = self.named.as_ref().filter(|before| named.as_ref().is_some_and(|now| now != *before));
        if let Some(previous) = previous {
            if !is_begun {
                add(What::FailoverBegun, None, "the Sentinels have changed the master");
            }
            add(What::FailoverEnded, Some(previous), "most Sentinels name another master");
            self.failing = fails_over.then_some(Failing::Ended);
        } else {
            self.failing = match (self.failing.take(), fails_over) {
                (None, false) | (Some(Failing::Ended), false) => None,
                (None, true) => {
                    add(What::FailoverBegun, None, "a Sentinel is failing over");
                    Some(Failing::Now)
                }
                (Some(Failing::Ended), true) => Some(Failing::Ended),
                (Some(_), true) => Some(Failing::Now),
                (Some(Failing::Now), false) => Some(Failing::Until(now)),
                (Some(Failing::Until(since)), false) if now - since >= ABORTED_AFTER => {
                    add(
                        What::FailoverEnded,
                        None,
                        "the Sentinels gave up the failover: the master is the same as before",
                    );
                    None
                }
                (until, false) => until,
            };
        }
        if named.is_some() {
            self.named.clone_from(&named);
        }
        let Some(server) = seen.server() else { return changes };
        let is_master = server.replication.role == Role::Master;
        let verdict = judge::primary(seen, now);
        match self.is_master.replace(is_master) {
            Some(false) if is_master => add(What::Promoted, None, "the server is a master"),
            Some(true) if !is_master => {
                let why = verdict.as_ref().err().cloned().unwrap_or_default();
                add(What::Demoted, None, &why);
            }
            _ => {}
        }
        match (&verdict, self.is_fenced) {
            _ if !is_master => self.is_fenced = false,
            (Err(why), false) if self.was_confirmed => {
                self.is_fenced = true;
                add(What::Fenced, None, why);
            }
            (Ok(why), true) => {
                self.is_fenced = false;
                add(What::Unfenced, None, why);
            }
            _ => {}
        }
        // The Sentinels do not report this new master yet.
        self.was_confirmed = is_master && (self.was_confirmed || verdict.is_ok());
        changes
    }
}

#[cfg(test)]
mod tests;
