//! Whether this node is to get writes, or reads. Pure, from what was seen.
//!
//! A master is one for clients as long as no failover can have made another. Sentinels promote by majority, so:
//!
//! - where most Sentinels name another, it is none, at once; unless that one says itself that it follows this server: then the roles have
//!   changed, and the Sentinels have yet to say so;
//! - where most answer and do not, it is;
//! - where most have been silent for `down-after-milliseconds`, they may have found it to be down, and promoted somebody. Whom they
//!   promote leaves his master at once. So it is the master for as long as all follow it that could have been promoted: Sentinels that are
//!   down stop no writes, and a network that is cut does.

use std::time::Duration;

use tokio::time::Instant;

use super::seen::{Lag, Said, Seen};
use crate::node::endpoint::Endpoint;
use crate::node::ready::ServerNow;
use crate::node::replication::Role;

/// For how long it is known how far a replica is behind, at most.
const FRESH_LAG: Duration = Duration::from_secs(5);

/// For how long it is known that another server follows this one: it is asked twenty times a second.
const FRESH_FOLLOWER: Duration = Duration::from_secs(1);

/// Yes, and why.
pub type Verdict = Result<String, String>;

/// Whether it is to get writes.
///
/// # Errors
///
/// Why not.
pub fn primary(seen: &Seen, now: Instant) -> Verdict {
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
                "a master; {naming} of {all} Sentinels still name {other}, which already follows this server"
            ));
        }
        return Err(format!("no longer the master: {naming} of {all} Sentinels name {other}"));
    }
    let answering = seen.fresh(now).count();
    let naming = seen.fresh(now).filter(|voice| voice.is_this == Some(true)).count();
    let is_unclear = seen.fresh(now).any(|voice| voice.is_this.is_none());
    if answering > all / 2 && (naming > 0 || !is_unclear) {
        return Ok(format!("a master; {naming} of {all} Sentinels name it"));
    }
    if all == 0 {
        return Ok("a master; no Sentinel is known".into());
    }
    // It says each second how far it is, and a busy one a little later.
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

/// Whether it is to get reads that may be a little old: at most so many bytes behind, where that is asked.
///
/// # Errors
///
/// Why not.
pub fn replica(seen: &Seen, most: Option<u64>, now: Instant) -> Verdict {
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
pub fn lag(seen: &Seen, now: Instant) -> Option<&Lag> {
    seen.lag.as_ref().filter(|(at, _)| now - *at < FRESH_LAG).map(|(_, lag)| lag)
}

/// Whether what it holds can be read, however old it may be.
///
/// # Errors
///
/// Why not.
pub fn readable(seen: &Seen, now: Instant) -> Verdict {
    let server = server(seen, now)?;
    match server.replication.role {
        _ if server.is_loading => Err("is loading its data".into()),
        Role::Held => Err("held: its role is not known yet".into()),
        Role::Master | Role::Replica { .. } => Ok(role(server).to_owned()),
    }
}

/// Whether it does its part, whichever that is.
///
/// # Errors
///
/// Why not.
pub fn ready(seen: &Seen, now: Instant) -> Verdict {
    match seen.answers(now)? {
        Said::Server(server) => {
            server.ready()?;
            Ok(role(server).to_owned())
        }
        Said::Sentinel(sentinel) => {
            sentinel.ready()?;
            let names: Vec<&str> = sentinel.masters.iter().map(|master| master.name.as_str()).collect();
            Ok(format!("monitors {}", names.join(", ")))
        }
    }
}

/// The word for its part.
pub fn role(server: &ServerNow) -> &'static str {
    match server.replication.role {
        Role::Master => "master",
        Role::Replica { .. } => "replica",
        Role::Held => "held",
    }
}

fn server(seen: &Seen, now: Instant) -> Result<&ServerNow, String> {
    match seen.answers(now)? {
        Said::Server(server) => Ok(server),
        Said::Sentinel(_) => Err("a Sentinel".into()),
    }
}

#[cfg(test)]
pub mod tests;
