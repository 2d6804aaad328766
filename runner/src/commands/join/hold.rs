//! A server that is held gets its role from a runner, from a person, or from the Sentinels. The Sentinels
//! find the server by its address, and introduce themselves on its hello channel. So the server learns of its
//! system even if the broker knows nothing of it.

use std::collections::BTreeSet;
use std::sync::PoisonError;
use std::time::Duration;

use futures::StreamExt as _;
use redis::Value;
use redis::aio::PubSubStream;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

use super::decide::{Disk, Heard, NamedServer, Start, This, ThisRedis, Waiting, how_to_start};
use super::position::Position;
use super::registration::{Followed, Registrar, StartedRedis, jittered};
use super::systemd;
use crate::node::clients;
use crate::node::command::{Command, command};
use crate::node::endpoint::Endpoint;
use crate::node::hello::{HELLO_CHANNEL, Hello};
use crate::node::redis::{promote, set};
use crate::node::replication::{HELD_MASTER, Role};
use crate::node::sentinel::{Monitored, Peer};

/// How long after the connection to the server was lost the next one is made.
const LISTEN_AGAIN: Duration = Duration::from_secs(1);

/// If Sentinels reach a server that this node can't ask, how long to wait before this node asks for a
/// failover. If two servers start at once, a Sentinel may reach the other server first.
const UNASKED_FOR: Duration = Duration::from_secs(3);

/// The master of a held server: it accepts connections and sends nothing. If it refused connections, the
/// server would write three lines a second into its log. So the server tries again only after its
/// `repl-timeout`, which is a minute.
#[derive(Debug, Default)]
pub struct HeldMaster {
    port: u16,
    _listening: JoinSet<()>,
}

impl HeldMaster {
    pub async fn listen() -> Self {
        // If no listener can be opened here, the server's connection is refused. The server is held even
        // then.
        let Ok(listener) = TcpListener::bind((HELD_MASTER, 0)).await else { return Self::default() };
        let port = listener.local_addr().map(|addr| addr.port()).unwrap_or_default();
        let mut listening = JoinSet::new();
        listening.spawn(async move {
            let mut held = None;
            loop {
                match listener.accept().await {
                    // Keeps the last connection until the next one comes.
                    Ok((stream, _)) => drop(held.replace(stream)),
                    // For example, there are too many open files.
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

/// The Sentinel that may be asked for a failover, instead of waiting for one. If the server were not started,
/// the Sentinels would mark it as down and fail over without a request. But a held server is up for them, and
/// later its replicas have been without a master for too long to be promoted.
///
/// A Sentinel may promote any replica that looks suitable in the data that the Sentinel has read. So all
/// replicas that it can promote must have data. None of them may be known to have less than this node, or
/// have most likely less than another server. Among replicas that were linked, the Sentinel takes the one
/// with the greatest offset. A replica that this node can't ask, and the Sentinels reach, is accepted if they
/// have read that it is at least as far as this node's disk.
fn sentinel_for_failover<'a>(waiting: &Waiting, heard: &'a Heard, this: &ThisRedis) -> Option<&'a Endpoint> {
    let (Waiting::Outlived(others) | Waiting::Unasked(others)) = waiting else { return None };
    let is_unasked = |candidate: &Peer| {
        matches!(waiting, Waiting::Unasked(_))
            && others.contains(&candidate.endpoint)
            && candidate.was_reached()
            && (this.disk != Disk::Data
                || this
                    .position
                    .as_ref()
                    .and_then(Position::most)
                    .is_some_and(|most| most <= candidate.offset))
    };
    let is_behind = |one: &NamedServer, other: Option<&Position>| {
        one.position.as_ref().zip(other).is_some_and(|(one, other)| one.is_behind(other) == Some(true))
    };
    // The server that likely has less stands back if it can: see `servers_with_more_data`.
    let is_second = |one: &NamedServer, other: &NamedServer| {
        one.position
            .as_ref()
            .zip(other.position.as_ref())
            .is_some_and(|(one, other)| one.is_likely_behind(other))
    };
    let is_good = |candidate: &Peer| {
        let Some(Ok(server)) = heard.servers.get(&candidate.endpoint) else { return is_unasked(candidate) };
        let ours = this.position.as_ref().filter(|_| this.disk == Disk::Data);
        let others = heard.servers.iter().filter(|(endpoint, _)| !heard.own.contains(endpoint));
        let rivals = others.filter_map(|(_, answer)| answer.as_ref().ok());
        let mut rivals = rivals.filter(|rival| server.is_from_disk || rival.is_from_disk);
        server.holds_data && !is_behind(server, ours) && !rivals.any(|rival| is_second(server, rival))
    };
    let is_sure = |known: &Monitored| {
        let mut candidates = known.replicas.iter().filter(|peer| !peer.is_gone() && known.may_promote(peer));
        heard.own.contains(&known.master.endpoint)
            && candidates.clone().any(|candidate| others.contains(&candidate.endpoint))
            && candidates.all(is_good)
    };
    let sentinel = heard
        .sentinels
        .iter()
        .find(|asked| asked.answer.as_ref().is_ok_and(|state| state.monitored.as_ref().is_some_and(is_sure)));
    sentinel.map(|asked| &asked.endpoint)
}

impl Registrar<'_> {
    /// Collects the Sentinels that watch this server. The name of the connection contains the position of the
    /// server's data, for other nodes. It also contains the priority that a held server gets back, for the
    /// runner. Another name needs another connection. The old one stays until the new one has its name,
    /// because the name tells everybody that this server is behind `join`.
    pub(super) async fn listen(
        &self,
        endpoint: &Endpoint,
        priority: u32,
        mut own_position: watch::Receiver<Option<Position>>,
        hellos: &watch::Sender<BTreeSet<Hello>>,
    ) -> ! {
        let (mut reported, mut messages) = (String::new(), None);
        loop {
            let position = own_position.borrow_and_update().as_ref().map(ToString::to_string);
            let name = clients::holder(priority, position.as_deref());
            let connected = self.connections.listen(endpoint, &name, HELLO_CHANNEL).await;
            let is_refused = connected.is_err();
            match connected {
                Ok(new) => messages = Some(new),
                Err(error) => {
                    let why = error.to_string();
                    // Only a held server depends on this connection.
                    if *self.start == Start::Held && reported != why {
                        self.report.warning(format_args!(
                            "can't listen for Sentinels on the held server: {why}\nhint: grant the user \
                             of --redis-username +subscribe +client|setname &{HELLO_CHANNEL}"
                        ));
                        reported = why;
                    }
                }
            }
            let collect = async {
                if let Some(messages) = &mut messages {
                    self.collect(messages, hellos).await;
                }
            };
            tokio::select! {
                () = collect => {
                    messages = None;
                    sleep(LISTEN_AGAIN).await;
                }
                () = sleep(LISTEN_AGAIN), if is_refused => {}
                Ok(()) = own_position.changed() => {}
            }
        }
    }

    /// Collects the Sentinels that introduce themselves, until the connection is lost.
    async fn collect(&self, messages: &mut PubSubStream, hellos: &watch::Sender<BTreeSet<Hello>>) {
        while let Some(message) = messages.next().await {
            let text = String::from_utf8_lossy(message.get_payload_bytes());
            let Some(hello) = Hello::parse(&text) else { continue };
            self.health.heard(&hello);
            let entry = (Instant::now(), hello.clone());
            let mut watched = self.watched.lock().unwrap_or_else(PoisonError::into_inner);
            watched.insert(hello.sentinel.clone(), entry);
            drop(watched);
            hellos.send_if_modified(|hellos| {
                let is_same = |known: &Hello| known.sentinel == hello.sentinel && known.group == hello.group;
                hellos.retain(|known| *known == hello || !is_same(known));
                hellos.insert(hello)
            });
        }
    }

    /// Watches a held server until it is no longer held. Returns the server that it follows then.
    pub(super) async fn hold(
        &self,
        endpoint: &Endpoint,
        redis: &StartedRedis,
        mut hellos: watch::Receiver<BTreeSet<Hello>>,
    ) -> Option<Followed> {
        let (mut reported, mut warned, mut unasked_since) = (None, false, None);
        loop {
            tokio::select! {
                () = self.asker.pause(jittered(self.poll_interval)) => {}
                Ok(()) = hellos.changed() => {}
            }
            let known = hellos.borrow_and_update().clone();
            let (heard, group) = self.asker.ask(&known).await;
            // The role is read last, so that nothing is decided for a server that a runner has just given a
            // role.
            let Ok(replication) = self.replication(endpoint).await else { continue };
            let role = replication.map(|replication| replication.role);
            if role != Some(Role::Held) {
                self.was_released(endpoint, redis.priority).await;
                return match role {
                    Some(Role::Replica { of, .. }) => {
                        Some(Followed { master: of, is_up: true, stands_back: false, ahead: Vec::new() })
                    }
                    _ => None,
                };
            }
            if !warned {
                warned = self.warn_of_another_group(&known);
            }
            let this = ThisRedis { is_held: true, ..redis.this.clone() };
            match how_to_start(&heard, This::Redis(this.clone()), self.expected) {
                Start::Lead => {
                    if self.release(endpoint, redis.priority, promote()).await {
                        self.report.event(
                            "the Sentinels report this node as the master, and no replica has data that \
                             this node lacks: the server is the master",
                        );
                        return None;
                    }
                }
                Start::Follow { master, is_up, ahead } => {
                    // Until the server has the master's data, it must not be promoted: there may be a
                    // failover at this moment.
                    let stands_back = matches!(this.disk, Disk::Empty | Disk::Blank) || !ahead.is_empty();
                    let followed = Followed { master, is_up, stands_back, ahead };
                    if self.release_to_follow(endpoint, redis, &followed).await {
                        return Some(followed);
                    }
                }
                Start::Wait(waiting) => {
                    if reported.as_ref() != Some(&waiting) {
                        systemd::send_status(&format!("held: {waiting}"));
                        self.report.event(format_args!("held: {waiting}\nhint: {}", waiting.hint()));
                    }
                    let sentinel = sentinel_for_failover(&waiting, &heard, &this);
                    unasked_since = match (&waiting, sentinel) {
                        (Waiting::Unasked(_), Some(_)) => unasked_since.or_else(|| Some(Instant::now())),
                        _ => None,
                    };
                    if let (Some(sentinel), Some(group)) = (sentinel, group)
                        && unasked_since.is_none_or(|since: Instant| since.elapsed() >= UNASKED_FOR)
                    {
                        self.ask_for_failover(sentinel, group.as_str()).await;
                    }
                    reported = Some(waiting);
                }
                Start::Held | Start::Alone | Start::AsItIs | Start::Monitor { .. } => {}
            }
        }
    }

    /// Warns if the Sentinels that watch this server name its group differently than the operator does.
    /// Returns whether they do.
    fn warn_of_another_group(&self, hellos: &BTreeSet<Hello>) -> bool {
        let (Some(asked), Some(hello)) = (&self.asker.group, hellos.first()) else { return false };
        if hello.group == asked.as_str() {
            return false;
        }
        self.report.warning(format_args!(
            "the Sentinel {} monitors this server as `{}`, but --group is `{asked}`: the Sentinels' name \
             takes precedence",
            hello.sentinel, hello.group
        ));
        true
    }

    /// Ends the hold with `REPLICAOF`. A server that stands back keeps priority 0. Returns whether the server
    /// accepted the command.
    async fn release_to_follow(
        &self,
        endpoint: &Endpoint,
        redis: &StartedRedis,
        followed: &Followed,
    ) -> bool {
        let master = &followed.master;
        let replicaof = command!("REPLICAOF", master.host, master.port);
        let is_released = if followed.stands_back {
            self.is_accepted(endpoint, replicaof).await
        } else {
            self.release(endpoint, redis.priority, replicaof).await
        };
        if is_released {
            self.report.event(format_args!("the Sentinels report {master} as the master: following it"));
        }
        is_released
    }

    /// Ends the hold with this command. The server gets its own priority back first, because a rewritten file
    /// would otherwise keep the 0.
    async fn release(&self, endpoint: &Endpoint, priority: u32, command: Command) -> bool {
        self.give_back_priority(endpoint, priority).await;
        self.is_accepted(endpoint, command).await
    }

    /// Sends a command. Returns whether the server accepted it.
    async fn is_accepted(&self, endpoint: &Endpoint, command: Command) -> bool {
        match self.send(endpoint, command.clone()).await {
            Ok(_) => true,
            Err(why) => {
                self.report.warning(format_args!("the server rejected `{}`: {why}", command.shown()));
                false
            }
        }
    }

    /// Sets the priority back when the server is no longer held, or no longer stands back. If a Sentinel has
    /// given the server a role, the server has written its file with priority 0.
    pub(super) async fn was_released(&self, endpoint: &Endpoint, priority: u32) {
        self.give_back_priority(endpoint, priority).await;
        // Without a file, nothing was written. A file that can't be written now could not be written then
        // either.
        let _ = self.send(endpoint, command!("CONFIG", "REWRITE")).await;
    }

    async fn give_back_priority(&self, endpoint: &Endpoint, priority: u32) {
        let priority = set("replica-priority", &priority.to_string());
        if let Err(why) = self.send(endpoint, priority.clone()).await {
            self.report.warning(format_args!(
                "the server was held with `replica-priority 0`, which can't be set back: {why}\nhint: {} \
                 on {endpoint}; until then no Sentinel promotes it",
                priority.shown()
            ));
        }
    }

    /// Asks a Sentinel that names this server to promote one of the servers with more data. Without the
    /// request, the Sentinels mark a master that reports itself as a replica as down only after
    /// `down-after-milliseconds` and 20 s.
    async fn ask_for_failover(&self, sentinel: &Endpoint, group: &str) {
        let failover = [command!("SENTINEL", "FAILOVER", group)];
        let replies = self.asker.servers.sentinels.send(sentinel, &failover).await;
        if let Ok(replies) = replies
            && let Some(Ok(Value::Okay)) = replies.first()
        {
            self.report.event(format_args!("asked the Sentinel {sentinel} for a failover"));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::super::decide::AskedSentinel;
    use super::*;
    use crate::node::sentinel::{NamedMaster, SentinelState};

    fn at(offset: i64) -> Option<Position> {
        Position::new(&"a".repeat(40), offset)
    }

    fn endpoint(host: u8) -> Endpoint {
        Endpoint::new(format!("10.0.0.{host}"), 6379)
    }

    fn server(holds_data: bool, position: Option<Position>) -> Result<NamedServer, String> {
        Ok(NamedServer {
            is_master: false,
            is_held: false,
            holds_data,
            is_from_disk: false,
            is_yet_to_report: false,
            position,
        })
    }

    fn silent() -> Result<NamedServer, String> {
        Err("unreachable".to_owned())
    }

    /// A replica: its answer, its flags and its priority, as a Sentinel reports both.
    type Replica = (Result<NamedServer, String>, &'static str, u32);

    fn gone() -> Replica {
        (silent(), "slave,s_down", 100)
    }

    fn up(data: bool, position: Option<Position>) -> Replica {
        (server(data, position), "slave", 100)
    }

    /// Whether this node, 10.0.0.1, asks for a failover while it waits so. `offset`: how far the Sentinel has
    /// read that the replicas are.
    fn asks_while(waiting: &Waiting, disk: Disk, offset: i64, replicas: [Replica; 2]) -> bool {
        let sentinel = Endpoint::new("10.0.1.1", 26379);
        let (mut peers, mut answers) = (vec![], BTreeMap::new());
        for (at, (answer, flags, priority)) in [endpoint(2), endpoint(3)].into_iter().zip(replicas) {
            let reached = Peer::reached(at.clone(), "", flags);
            peers.push(Peer { priority: Some(priority), offset, ..reached });
            answers.insert(at, answer);
        }
        let monitored = Monitored {
            master: NamedMaster { endpoint: endpoint(1), fields: BTreeMap::new() },
            peers: BTreeMap::new(),
            replicas: peers,
        };
        let state =
            SentinelState { monitored: Some(monitored), ..SentinelState::fresh(sentinel.clone(), "1", "") };
        let heard = Heard {
            broker: Err("down".into()),
            sentinels: vec![AskedSentinel { endpoint: sentinel.clone(), answer: Ok(state) }],
            servers: answers,
            own: BTreeSet::from([endpoint(1)]),
        };
        let this = ThisRedis {
            disk,
            position: at(50),
            noted: None,
            is_rolled_back: false,
            discard_data: false,
            is_cache: false,
            is_held: true,
        };
        assert_eq!(sentinel_for_failover(&Waiting::Wiped, &heard, &this), None);
        sentinel_for_failover(waiting, &heard, &this) == Some(&sentinel)
    }

    /// The same for a master that its replicas have outlived.
    fn asks(disk: Disk, replicas: [Replica; 2]) -> bool {
        asks_while(&Waiting::Outlived(vec![endpoint(2), endpoint(3)]), disk, 50, replicas)
    }

    #[test]
    fn a_failover_is_asked_for_only_to_a_replica_that_has_data() {
        assert!(asks(Disk::Empty, [up(true, None), gone()]));
        // A Sentinel would promote any replica that it can.
        assert!(!asks(Disk::Empty, [up(true, None), up(false, None)]));
        assert!(asks(Disk::Empty, [up(true, None), (server(false, None), "slave", 0)]));
        assert!(!asks(Disk::Empty, [up(true, None), (silent(), "slave", 100)]));
        assert!(!asks(Disk::Empty, [(server(true, None), "slave", 0), up(false, None)]));
        assert!(!asks(Disk::Empty, [gone(), gone()]));
        // This node has data.
        assert!(asks(Disk::Data, [up(true, at(51)), gone()]));
        assert!(asks(Disk::Data, [up(true, None), gone()]));
        assert!(!asks(Disk::Data, [up(true, at(49)), gone()]));
    }

    #[test]
    fn a_failover_is_asked_for_only_if_the_sentinel_promotes_the_newest() {
        // Of two replicas that were linked, the Sentinel takes the right one. It can't compare what replicas
        // had on their disks.
        assert!(asks(Disk::Empty, [up(true, at(90)), up(true, at(91))]));
        let from_disk = |offset| {
            let server = server(true, at(offset));
            (server.map(|server| NamedServer { is_from_disk: true, ..server }), "slave", 100)
        };
        assert!(!asks(Disk::Empty, [from_disk(90), from_disk(91)]));
        assert!(asks(Disk::Empty, [from_disk(91), from_disk(91)]));
        let by_its_file = |(server, flags, priority): Replica| {
            let advanced = |server: NamedServer| NamedServer {
                position: server.position.map(|at| at.advanced(40, 80)),
                ..server
            };
            (server.map(advanced), flags, priority)
        };
        assert!(!asks(Disk::Empty, [by_its_file(from_disk(10)), from_disk(91)]), "most likely");
    }

    #[test]
    fn a_failover_is_asked_for_to_a_replica_that_only_sentinels_reach() {
        let unasked = |flags, offset| {
            let waiting = Waiting::Unasked(vec![endpoint(2)]);
            asks_while(&waiting, Disk::Data, offset, [(silent(), flags, 100), gone()])
        };
        assert!(unasked("slave", 50));
        assert!(!unasked("slave,disconnected", 50) && !unasked("slave,s_down", 50));
        // The replica lags, or was in its first synchronisation.
        assert!(!unasked("slave", 49));
    }
}
