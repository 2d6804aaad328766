//! Whether the master's stream of commands flows to its replicas: something harmless is sent through it, and seen to arrive.
//!
//! A link that is up proves nothing: Redis 7.0 starts the stream only when a replica has confirmed its synchronisation for the
//! first time, up to a second after master and replica both show it as done.

use std::collections::BTreeSet;
use std::sync::Mutex;
use std::time::Duration;

use futures::future::join_all;
use redis::Value;
use tokio::time::{Instant, sleep};

use super::judge::{Unmet, Unproved, master_is_up, replica_is_up};
use super::members::{Member, System};
use super::servers::Servers;
use crate::node::command::command;
use crate::node::connection::ConnectionError;
use crate::node::endpoint::Endpoint;
use crate::node::hello::{HELLO_CHANNEL, NO_HELLO};
use crate::node::info::Info;
use crate::node::replication::{Replication, Role};
use crate::node::reply::{Reply, text};

/// The time between two looks at a replica.
const POLL: Duration = Duration::from_millis(2);

/// A point in the master's stream that was seen to reach every replica.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Flow {
    /// The replication id, which names the history.
    pub id: String,
    /// In bytes.
    pub offset: i64,
}

impl Flow {
    /// By one `INFO` reply: the offset alone would lie, since a replica of a longer history is past it for all of its
    /// synchronisation.
    pub fn has_reached(&self, replica: &Replication) -> bool {
        matches!(replica.role, Role::Replica { link_up: true, .. })
            && replica.history.id == self.id
            && replica.applied.is_some_and(|applied| applied >= self.offset)
    }
}

/// What came of it.
#[derive(Debug)]
pub enum Proof {
    Flows(Flow),
    /// It could not be tried.
    Unproved(Unproved),
    Fails(Vec<Unmet>),
}

/// The replicas that were made to connect again. A second time may cost a whole synchronisation under load.
#[derive(Debug, Default)]
pub struct Kicked(Mutex<BTreeSet<Endpoint>>);

impl Kicked {
    fn is_first(&self, node: &Endpoint) -> bool {
        self.0.lock().expect("no holder panics").insert(node.clone())
    }
}

/// Sends something through the stream, and waits until every replica has it, or until it is time. `kicked`: a replica whose
/// stream has not begun is made to connect again, once.
pub async fn prove(servers: &Servers, system: &System, kicked: Option<&Kicked>, until: Instant) -> Proof {
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
            return Proof::Unproved(Unproved { right, what, node: master.clone() });
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
        system.replicas.iter().map(|replica| arrives(servers, system, replica, &flow, kicked, until));
    let missing: Vec<Unmet> = join_all(arrived).await.into_iter().filter_map(Result::err).collect();
    if missing.is_empty() { Proof::Flows(flow) } else { Proof::Fails(missing) }
}

/// A `PUBLISH` waits for as long as writes are paused.
async fn no_answer(servers: &Servers, master: &Endpoint, error: &ConnectionError) -> Unmet {
    let answers = async || servers.redis.send(master, &[command!("PING")]).await.is_ok();
    if matches!(error, ConnectionError::TimedOut { .. }) && answers().await {
        return Unmet::new(master, "writes are paused on it, so that the stream can't be seen to flow")
            .hint(format!("wait for the end of the pause, or CLIENT UNPAUSE on {master}"));
    }
    Unmet::new(master, error.to_string())
}

async fn arrives(
    servers: &Servers,
    system: &System,
    replica: &Member,
    flow: &Flow,
    kicked: Option<&Kicked>,
    until: Instant,
) -> Result<(), Unmet> {
    let node = &replica.endpoint;
    let mut is_first = true;
    loop {
        let what = match look(servers, node).await {
            Ok(seen) => {
                if seen.as_ref().is_some_and(|seen| flow.has_reached(seen)) {
                    return Ok(());
                }
                replica_is_up(system, replica, seen.as_ref())?;
                let applied = seen.as_ref().and_then(|seen| seen.applied).unwrap_or_default();
                // What is on its way has had time to arrive.
                if !is_first && let (Some(kicked), Some(seen)) = (kicked, &seen) {
                    kick(servers, system, replica, seen, flow, kicked).await;
                }
                format!(
                    "its link is up, and the master's stream does not reach it: it is at {applied} of {}",
                    flow.offset
                )
            }
            Err(what) => what,
        };
        if Instant::now() >= until && !is_first {
            let master = &system.master.endpoint;
            return Err(Unmet::new(node, what).hint(format!("see what is between {master} and {node}")));
        }
        is_first = false;
        sleep(POLL).await;
    }
}

/// Has a replica connect again that is synchronised, and whose stream waits for its first confirmation: it goes on at once by
/// a partial resynchronisation. Only if the master still has what it will ask for.
async fn kick(
    servers: &Servers,
    system: &System,
    replica: &Member,
    seen: &Replication,
    flow: &Flow,
    kicked: &Kicked,
) {
    let Ok(Some(master)) = look(servers, &system.master.endpoint).await else { return };
    let waits = master
        .replicas
        .iter()
        .any(|known| replica.is_at(&known.endpoint) && known.online && known.confirmed == 0);
    let goes_on = seen.history.id == flow.id
        && matches!((master.backlog_from, seen.applied), (Some(from), Some(applied)) if from <= applied + 1);
    if waits && goes_on && kicked.is_first(&replica.endpoint) {
        // Without the right to it the stream begins by itself within a second.
        let _ = servers.redis.send(&replica.endpoint, &[command!("CLIENT", "KILL", "TYPE", "master")]).await;
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_replica_has_what_it_has_applied_of_this_history_while_its_link_is_up() {
        let flow = Flow { id: "aa".into(), offset: 100 };
        let reached = |id: &str, link: &str, offset: &str| {
            let info = format!(
                "role:slave\r\nmaster_host:10.0.0.1\r\nmaster_port:6379\r\nmaster_link_status:{link}\r\n\
                 master_replid:{id}\r\nmaster_repl_offset:{offset}\r\nslave_repl_offset:{offset}\r\n"
            );
            flow.has_reached(&Replication::parse(&Info::parse(&info)).unwrap())
        };
        assert!(reached("aa", "up", "100") && reached("aa", "up", "101"));
        assert!(!reached("aa", "up", "99"), "it lags");
        assert!(!reached("bb", "up", "5000"), "from a longer history");
        assert!(!reached("aa", "down", "100"));
        assert!(
            !flow.has_reached(
                &Replication::parse(&Info::parse("role:master\r\nmaster_replid:aa\r\n")).unwrap()
            )
        );
    }
}
