//! Whether this node is to get writes, or reads. Decides from the last answers, without I/O.
//!
//! A master is the master for clients as long as no failover can have made another one. Sentinels promote by
//! majority, so:
//!
//! - If most Sentinels report another master, this server is immediately not the master. There is one
//!   exception: the reported server answers that it follows this server. Then the roles have changed, and the
//!   Sentinels do not report the change yet.
//! - If most Sentinels answer and do not report another master, this server is the master.
//! - If most Sentinels have been silent for `down-after-milliseconds`, they may have found this server to be
//!   down, and promoted a replica. A promoted replica leaves its master at once. So this server is the master
//!   as long as all replicas that could have been promoted follow it. So if only Sentinels are down, writes
//!   continue. If the network is partitioned, writes stop.

use std::time::Duration;

use tokio::time::Instant;

use super::seen::{Lag, NodeAnswer, SeenNodes};
use crate::node::endpoint::Endpoint;
use crate::node::ready::ServerNow;
use crate::node::replication::Role;

/// How long a measured lag is used, at most.
const FRESH_LAG: Duration = Duration::from_secs(5);

/// How long the answer of another server that it follows this one is used. The other server is asked twenty
/// times a second.
const FRESH_FOLLOWER: Duration = Duration::from_secs(1);

/// `Ok` is yes and `Err` is no, each with the reason.
pub type Verdict = Result<String, String>;

/// Whether the server is to get writes.
///
/// # Errors
///
/// Why it is not.
pub fn primary(seen: &SeenNodes, now: Instant) -> Verdict {
    let server = server(seen, now)?;
    match &server.replication.role {
        Role::Master => {}
        Role::Replica { of, .. } => return Err(format!("a replica of {of}")),
        Role::Held => return Err("held: its role is not known yet".into()),
    }
    if server.is_loading {
        return Err("a master that is loading its data".into());
    }
    let all = seen.all_sentinels();
    if let Some((other, naming)) = seen.other_named(now) {
        let follows = seen
            .followed_by
            .as_ref()
            .is_some_and(|(at, follower)| follower == other && now - *at < FRESH_FOLLOWER);
        if follows {
            return Ok(format!(
                "a master; {naming} of {all} Sentinels still report {other}, which already follows this \
                 server"
            ));
        }
        return Err(format!("no longer the master: {naming} of {all} Sentinels report {other}"));
    }
    let answering = seen.fresh(now).count();
    let naming = seen.fresh(now).filter(|view| view.is_this == Some(true)).count();
    let is_unclear = seen.fresh(now).any(|view| view.is_this.is_none());
    if answering > all / 2 && (naming > 0 || !is_unclear) {
        return Ok(format!("a master; {naming} of {all} Sentinels report it"));
    }
    if all == 0 {
        return Ok("a master; no Sentinel is known".into());
    }
    // A replica confirms the stream once a second, and a busy replica a little later.
    let silent = seen.down_after().as_secs().clamp(3, 5);
    let follows = |endpoint: &Endpoint| {
        let mut replicas = server.replication.replicas.iter();
        replicas.any(|replica| {
            replica.endpoint == *endpoint
                && replica.online
                && replica.silent_s.is_some_and(|seconds| seconds < silent)
        })
    };
    let rivals = seen.rivals(now);
    let gone = rivals.iter().find(|known_at| !known_at.iter().any(|endpoint| follows(endpoint)));
    match gone.and_then(|known_at| known_at.first()) {
        Some(gone) => Err(format!(
            "a master that may have been replaced: only {answering} of {all} Sentinels answer, and \
             {gone} does not follow this server"
        )),
        None => Ok(format!(
            "a master; only {answering} of {all} Sentinels answer, but every replica that they could \
             have promoted follows this server"
        )),
    }
}

/// Whether the server is to get reads that may be a little old: it may be this many bytes behind, if a limit
/// was asked for.
///
/// # Errors
///
/// Why it is not.
pub fn replica(seen: &SeenNodes, most: Option<u64>, now: Instant) -> Verdict {
    let server = server(seen, now)?;
    match &server.replication.role {
        Role::Replica { .. } => server.ready()?,
        Role::Master => return Err("a master".into()),
        Role::Held => return Err("held: its role is not known yet".into()),
    }
    let Some(most) = most else { return Ok("a replica, linked to its master".into()) };
    match lag(seen, now) {
        Some(lag) if lag.bytes <= most => Ok(format!("a replica, {} bytes behind {}", lag.bytes, lag.master)),
        Some(lag) => Err(format!(
            "a replica, {} bytes behind {}: more than the {most} bytes of `lag`",
            lag.bytes, lag.master
        )),
        None => Err("a replica with an unknown lag: the position of its master is not known".into()),
    }
}

/// How far a replica is behind, if that was seen lately.
pub fn lag(seen: &SeenNodes, now: Instant) -> Option<&Lag> {
    seen.lag.as_ref().filter(|(at, _)| now - *at < FRESH_LAG).map(|(_, lag)| lag)
}

/// Whether the server's data can be read, even if the data is old.
///
/// # Errors
///
/// Why it can't.
pub fn readable(seen: &SeenNodes, now: Instant) -> Verdict {
    let server = server(seen, now)?;
    match server.replication.role {
        _ if server.is_loading => Err("is loading its data".into()),
        Role::Held => Err("held: its role is not known yet".into()),
        Role::Master | Role::Replica { .. } => Ok(role(server).to_owned()),
    }
}

/// Whether the server or Sentinel serves in its present role.
///
/// # Errors
///
/// Why it does not.
pub fn ready(seen: &SeenNodes, now: Instant) -> Verdict {
    match seen.answers(now)? {
        NodeAnswer::Server(server) => {
            server.ready()?;
            Ok(role(server).to_owned())
        }
        NodeAnswer::Sentinel(sentinel) => {
            sentinel.ready()?;
            let names: Vec<&str> = sentinel.masters.iter().map(|master| master.name.as_str()).collect();
            Ok(format!("monitors {}", names.join(", ")))
        }
    }
}

/// The word for the server's role.
pub fn role(server: &ServerNow) -> &'static str {
    match server.replication.role {
        Role::Master => "master",
        Role::Replica { .. } => "replica",
        Role::Held => "held",
    }
}

fn server(seen: &SeenNodes, now: Instant) -> Result<&ServerNow, String> {
    match seen.answers(now)? {
        NodeAnswer::Server(server) => Ok(server),
        NodeAnswer::Sentinel(_) => Err("a Sentinel".into()),
    }
}

#[cfg(test)]
pub mod tests;
