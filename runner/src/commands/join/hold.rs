//! A server that is held: what it is to be comes from a runner, from a person, or from the Sentinels, which find it by its address
//! and introduce themselves on its hello channel. So it learns of its system also where the broker knows nothing of it.

use std::collections::BTreeSet;
use std::time::Duration;

use futures::StreamExt as _;
use redis::Value;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::sleep;

use super::decide::{Asked, Disk, Heard, NamedServer, Start, This, ThisRedis, Waiting, how_to_start};
use super::registration::{Registrar, StartedRedis, jittered};
use crate::node::clients::HOLDER;
use crate::node::command::{Command, command};
use crate::node::endpoint::Endpoint;
use crate::node::hello::{HELLO_CHANNEL, Hello};
use crate::node::redis::{promote, set};
use crate::node::replication::{NOBODY, Role};

/// How long after the connection to the server was lost the next one is made.
const LISTEN_AGAIN: Duration = Duration::from_secs(1);

/// The master of a held server: it takes connections, and says nothing. One that refused them would have the server write three lines
/// a second into its log; so it tries again only after its `repl-timeout`, which is a minute.
#[derive(Debug, Default)]
pub struct Nobody {
    port: u16,
    _listening: JoinSet<()>,
}

impl Nobody {
    pub async fn listen() -> Self {
        // Where there is no such address, a held server finds nobody all the same.
        let Ok(listener) = TcpListener::bind((NOBODY, 0)).await else { return Self::default() };
        let port = listener.local_addr().map(|addr| addr.port()).unwrap_or_default();
        let mut listening = JoinSet::new();
        listening.spawn(async move {
            let mut held = None;
            loop {
                match listener.accept().await {
                    // The last one, for as long as there is no next.
                    Ok((stream, _)) => drop(held.replace(stream)),
                    // Too many open files, say.
                    Err(_) => sleep(LISTEN_AGAIN).await,
                }
            }
        });
        Self { port, _listening: listening }
    }

    pub fn port(&self) -> u16 {
        self.port
    }
}

/// Whether a failover is sure to be to somebody who has more than this node: one that was heard, holds data, and goes further, or has any
/// at all where this node has none. A Sentinel would promote whom it can, an empty one too.
fn may_ask_for_failover(waiting: &Waiting, heard: &Heard, this: ThisRedis) -> bool {
    let Waiting::Outlived(nodes) = waiting else { return false };
    let servers: Vec<_> = nodes.iter().filter_map(|node| heard.servers.get(node)?.as_ref().ok()).collect();
    let has_more = |server: &&NamedServer| {
        let goes_further =
            this.position.zip(server.position).and_then(|(ours, theirs)| ours.is_behind(&theirs));
        server.holds_data && (this.disk != Disk::Data || goes_further == Some(true))
    };
    !servers.is_empty() && servers.iter().all(has_more)
}

impl Registrar<'_> {
    /// Looks after a held server until it is held no longer. The answer is the master that it was made to follow here.
    pub(super) async fn hold(&self, endpoint: &Endpoint, redis: &StartedRedis) -> Option<Endpoint> {
        let hellos = watch::Sender::new(BTreeSet::new());
        tokio::select! {
            never = self.listen(endpoint, redis.priority, &hellos) => never,
            followed = self.find_out(endpoint, redis, hellos.subscribe()) => followed,
        }
    }

    /// Collects who watches this server. The name of the connection tells the runner what priority it gets back.
    async fn listen(&self, endpoint: &Endpoint, priority: u32, hellos: &watch::Sender<BTreeSet<Hello>>) -> ! {
        let name = format!("{HOLDER}{priority}");
        let mut said = String::new();
        loop {
            match self.connections.listen(endpoint, &name, HELLO_CHANNEL).await {
                Ok(mut messages) => {
                    while let Some(message) = messages.next().await {
                        let text = String::from_utf8_lossy(message.get_payload_bytes());
                        let Some(hello) = Hello::parse(&text) else { continue };
                        hellos.send_if_modified(|hellos| hellos.insert(hello));
                    }
                }
                Err(error) => {
                    let why = error.to_string();
                    if said != why {
                        self.report.warning(format_args!(
                            "can't listen for Sentinels on the server, which is held: {why}\nhint: its user needs +subscribe \
                             +client|setname &{HELLO_CHANNEL}"
                        ));
                        said = why;
                    }
                }
            }
            sleep(LISTEN_AGAIN).await;
        }
    }

    async fn find_out(
        &self,
        endpoint: &Endpoint,
        redis: &StartedRedis,
        mut hellos: watch::Receiver<BTreeSet<Hello>>,
    ) -> Option<Endpoint> {
        let (mut said, mut warned) = (None, false);
        loop {
            tokio::select! {
                () = sleep(jittered(self.poll_interval)) => {}
                Ok(()) = hellos.changed() => {}
            }
            let known = hellos.borrow_and_update().clone();
            let (heard, group) = self.asker.ask(&known).await;
            // Last, so that nothing is decided for a server that a runner has given a role meanwhile.
            let Ok(replication) = self.replication(endpoint).await else { continue };
            let role = replication.map(|replication| replication.role);
            if role != Some(Role::Held) {
                self.was_released(endpoint, redis.priority).await;
                return match role {
                    Some(Role::Replica { of, .. }) => Some(of),
                    _ => None,
                };
            }
            if !warned {
                warned = self.warn_of_another_group(&known);
            }
            let this = ThisRedis { is_held: true, ..redis.this };
            match how_to_start(&heard, This::Redis(this), self.expected) {
                Start::Lead => {
                    if self.release(endpoint, redis.priority, promote()).await {
                        self.report.event("the Sentinels name this node, and no replica has what it lacks: it is the master");
                        return None;
                    }
                }
                Start::Follow { master, .. } => {
                    let replicaof = command!("REPLICAOF", master.host, master.port);
                    if self.release(endpoint, redis.priority, replicaof).await {
                        self.report
                            .event(format_args!("the Sentinels name {master} as the master: following it"));
                        return Some(master);
                    }
                }
                Start::Wait(waiting) => {
                    if said.as_ref() != Some(&waiting) {
                        self.report.event(format_args!("held: {waiting}\nhint: {}", waiting.hint()));
                    }
                    if let Some(group) = group.filter(|_| may_ask_for_failover(&waiting, &heard, this)) {
                        self.ask_for_failover(&heard, group.as_str()).await;
                    }
                    said = Some(waiting);
                }
                Start::Held | Start::Alone | Start::AsItIs | Start::Monitor { .. } => {}
            }
        }
    }

    /// Whether the Sentinels that watch this server call its system something else than the operator does.
    fn warn_of_another_group(&self, hellos: &BTreeSet<Hello>) -> bool {
        let (Some(asked), Some(hello)) = (&self.asker.group, hellos.first()) else { return false };
        if hello.group == asked.as_str() {
            return false;
        }
        self.report.warning(format_args!(
            "the Sentinel {} watches this server as `{}`, and --group says `{asked}`: the Sentinels' word counts",
            hello.sentinel, hello.group
        ));
        true
    }

    /// Makes the server something else than held; with its own priority, which a rewritten file would lack otherwise.
    async fn release(&self, endpoint: &Endpoint, priority: u32, command: Command) -> bool {
        self.give_back_priority(endpoint, priority).await;
        match self.send(endpoint, command.clone()).await {
            Ok(_) => true,
            Err(why) => {
                self.report.warning(format_args!("the server does not take `{}`: {why}", command.shown()));
                false
            }
        }
    }

    /// Somebody else has made it something. A Sentinel has it write its file with that, and with the priority of a held server.
    async fn was_released(&self, endpoint: &Endpoint, priority: u32) {
        self.give_back_priority(endpoint, priority).await;
        // Without a file nothing was written, and what can't be written now could not be then.
        let _ = self.send(endpoint, command!("CONFIG", "REWRITE")).await;
    }

    async fn give_back_priority(&self, endpoint: &Endpoint, priority: u32) {
        let priority = set("replica-priority", &priority.to_string());
        if let Err(why) = self.send(endpoint, priority.clone()).await {
            self.report.warning(format_args!(
                "the server was held with `replica-priority 0`, and does not take another: {why}\nhint: {} on {endpoint}, or no \
                 Sentinel will ever promote it",
                priority.shown()
            ));
        }
    }

    /// Asks a Sentinel that names this server, which lacks what others have, to make one of those the master. A server that says
    /// that it is a replica is down for the Sentinels by itself, but only after `down-after-milliseconds` and 20 s.
    async fn ask_for_failover(&self, heard: &Heard, group: &str) {
        let names_us = |asked: &&Asked| {
            let monitored = asked.answer.as_ref().ok().and_then(|state| state.monitored.as_ref());
            monitored.is_some_and(|monitored| heard.own.contains(&monitored.master.endpoint))
        };
        let Some(sentinel) = heard.sentinels.iter().find(names_us) else { return };
        let failover = [command!("SENTINEL", "FAILOVER", group)];
        let replies = self.asker.servers.sentinels.send(&sentinel.endpoint, &failover).await;
        if let Ok(replies) = replies
            && let Some(Ok(Value::Okay)) = replies.first()
        {
            self.report.event(format_args!("asked the Sentinel {} for a failover", sentinel.endpoint));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::commands::join::position::Position;

    #[test]
    fn a_failover_is_asked_for_only_where_it_is_sure_to_be_to_one_that_has_more() {
        let at = |offset| Position::new(&"a".repeat(40), offset);
        let [one, other] = [1, 2].map(|host| Endpoint::new(format!("10.0.0.{host}"), 6379));
        let server = |holds_data, position| {
            Ok(NamedServer { is_master: false, is_held: false, holds_data, is_from_disk: false, position })
        };
        let asks = |waiting: &Waiting, disk: Disk, servers: &[(&Endpoint, Result<NamedServer, String>)]| {
            let servers: BTreeMap<_, _> =
                servers.iter().map(|(node, answer)| ((*node).clone(), answer.clone())).collect();
            let heard =
                Heard { broker: Err("down".into()), sentinels: vec![], servers, own: BTreeSet::new() };
            let this =
                ThisRedis { disk, position: at(50), discard_data: false, is_cache: false, is_held: true };
            may_ask_for_failover(waiting, &heard, this)
        };
        let outlived = Waiting::Outlived(vec![one.clone(), other.clone()]);
        let silent = || Err("unreachable".to_owned());
        assert!(asks(&outlived, Disk::Empty, &[(&one, server(true, None)), (&other, silent())]));
        // A Sentinel would promote whom it can.
        assert!(!asks(&outlived, Disk::Empty, &[(&one, server(true, None)), (&other, server(false, None))]));
        assert!(!asks(&outlived, Disk::Empty, &[(&one, silent()), (&other, silent())]));
        assert!(!asks(&Waiting::Wiped, Disk::Empty, &[(&one, server(true, None))]));
        // Its own data is whole: then only by position.
        assert!(asks(&outlived, Disk::Data, &[(&one, server(true, at(51)))]));
        assert!(!asks(&outlived, Disk::Data, &[(&one, server(true, None))]));
    }
}
