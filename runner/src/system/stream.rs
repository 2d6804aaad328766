//! Whether the master's replication stream flows to its replicas: sends a harmless command through the
//! stream, and checks that it arrives.
//!
//! A link that is up does not prove this. Redis 7.0 starts the stream only when a replica has confirmed its
//! synchronisation for the first time, up to a second after the master and the replica both show the
//! synchronisation as done.

use std::time::Duration;

use futures::future::join_all;
use redis::Value;
use tokio::time::{Instant, sleep};

use super::judge::{Flow, Unmet, Unproved, master_is_up, replica_is_up};
use super::members::{Member, System};
use super::servers::Servers;
use crate::node::command::command;
use crate::node::connection::ConnectionError;
use crate::node::endpoint::Endpoint;
use crate::node::hello::{HELLO_CHANNEL, NO_HELLO};
use crate::node::info::Info;
use crate::node::replication::Replication;
use crate::node::reply::{Reply, text};
use crate::node::rights;

/// The time between two observations of a replica.
const POLL: Duration = Duration::from_millis(2);

/// The result of [`prove`].
#[derive(Debug)]
pub enum Proof {
    Flows(Flow),
    /// The check was impossible.
    Unproved(Unproved),
    Fails(Vec<Unmet>),
}

/// Sends a command through the stream, and waits until it has reached every replica, or until `until`.
/// `helps`: a replica whose stream has not begun is made to [`confirm`].
pub async fn prove(servers: &Servers, system: &System, helps: bool, until: Instant) -> Proof {
    let master = &system.master.endpoint;
    let sent = [command!("PUBLISH", HELLO_CHANNEL, NO_HELLO), command!("INFO", "replication")];
    let replies = match servers.redis.send(master, &sent).await {
        Ok(replies) => replies,
        Err(error) => return Proof::Fails(vec![no_answer(servers, master, &error).await]),
    };
    if let Err(error) = &replies[0] {
        if error.code == "NOPERM" {
            let what = "that the master's stream flows to the replicas";
            let right = format!("+publish &{HELLO_CHANNEL}");
            return Proof::Unproved(Unproved { right: Some(right), what, node: master.clone() });
        }
        return Proof::Fails(vec![Unmet::new(master, format!("`PUBLISH` was answered with `{error}`"))]);
    }
    let replication = match replication(&replies[1]) {
        Ok(replication) => replication,
        Err(what) => return Proof::Fails(vec![Unmet::new(master, what)]),
    };
    if let Err(unmet) = master_is_up(system, replication.as_ref()) {
        return Proof::Fails(vec![unmet]);
    }
    let history = replication.map(|replication| replication.history).unwrap_or_default();
    let flow = Flow { id: history.id, offset: history.offset };
    let arrived =
        system.replicas.iter().map(|replica| arrives(servers, system, replica, &flow, helps, until));
    let missing: Vec<Unmet> = join_all(arrived).await.into_iter().filter_map(Result::err).collect();
    if missing.is_empty() { Proof::Flows(flow) } else { Proof::Fails(missing) }
}

/// If writes are paused, a `PUBLISH` waits for the end of the pause.
async fn no_answer(servers: &Servers, master: &Endpoint, error: &ConnectionError) -> Unmet {
    let answers = async || servers.redis.send(master, &[command!("PING")]).await.is_ok();
    if matches!(error, ConnectionError::TimedOut { .. }) && answers().await {
        return Unmet::new(master, "writes are paused on it, so the stream can't be checked")
            .hint(format!("wait for the end of the pause, or CLIENT UNPAUSE on {master}"));
    }
    Unmet::new(master, error.to_string())
}

async fn arrives(
    servers: &Servers,
    system: &System,
    replica: &Member,
    flow: &Flow,
    helps: bool,
    until: Instant,
) -> Result<(), Unmet> {
    let node = &replica.endpoint;
    let (mut is_first, mut from) = (true, None);
    loop {
        let between = || format!("check the network between {} and {node}", system.master.endpoint);
        let (what, hint) = match look(servers, node).await {
            Ok(seen) => {
                if seen.as_ref().is_some_and(|seen| flow.has_reached(seen)) {
                    return Ok(());
                }
                replica_is_up(system, replica, seen.as_ref())?;
                let applied = seen.as_ref().and_then(|seen| seen.applied).unwrap_or_default();
                let from = *from.get_or_insert(applied);
                // Data that was on its way at the first observation has arrived by the second one.
                if helps && !is_first {
                    confirm(servers, replica).await;
                }
                if applied > from {
                    let hint = "check again later; if the replica does not catch up, its machine or \
                         network is too slow";
                    let what = format!("is {} bytes behind the master's stream", flow.offset - applied);
                    (what, hint.to_owned())
                } else {
                    let what = format!(
                        "its link is up, but the master's stream does not reach it: it is at byte \
                         {applied} of {}",
                        flow.offset
                    );
                    (what, between())
                }
            }
            Err(what) => (what, between()),
        };
        if Instant::now() >= until && !is_first {
            return Err(Unmet::new(node, what).hint(hint));
        }
        is_first = false;
        sleep(POLL).await;
    }
}

/// Makes a replica confirm its offset at once. On a confirmation, a master (Redis 7.0 and Valkey) checks
/// whether the data set, of which it sends one at a time, has gone out, and starts the stream to the replica.
/// Without the right to this command, that happens within a second.
pub async fn confirm(servers: &Servers, replica: &Member) {
    if !replica.lacks.contains_key(rights::REPLCONF) {
        // An error is ignored, because the next command to the replica meets it again.
        let _ = servers.redis.send_unanswered(&replica.endpoint, &rights::confirm()).await;
    }
}

async fn look(servers: &Servers, node: &Endpoint) -> Result<Option<Replication>, String> {
    let replies = servers.redis.send(node, &[command!("INFO", "replication")]).await;
    replication(&replies.map_err(|error| error.to_string())?[0])
}

fn replication(reply: &Reply) -> Result<Option<Replication>, String> {
    let value: &Value = reply.as_ref().map_err(ToString::to_string)?;
    Ok(Replication::parse(&Info::parse(&text(value))))
}
