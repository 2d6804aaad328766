//! The node's registration at the broker: it is made once the server answers, and kept for as long as the
//! server runs.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::Duration;

use broker_fn::api::{Addr, Group, Kind, Outcome, Register, RunId};
use futures::future::{join, join4};
use redis::Value;
use tokio::sync::watch;
use tokio::time::{Instant, sleep};

use super::ask::Asker;
use super::decide::{
    Disk, ExpectedSentinels, Start, ThisRedis, current_master, is_awaited, is_known, servers_with_more_data,
};
use super::health::Health;
use super::journal::{Journal, Part};
use crate::broker::{Broker, REQUEST_TIMEOUT};
use crate::node::command::{Command, command};
use crate::node::connection::{ConnectionError, Connections};
use crate::node::endpoint::Endpoint;
use crate::node::hello::Hello;
use crate::node::info::Info;
use crate::node::redis::{promote, set};
use crate::node::replication::{Replication, Role};
use crate::node::reply::text;
use crate::node::sentinel::{MonitoredMaster, monitored_masters};
use crate::report::Report;

/// How often the server is asked whether it is ready.
const READY_POLL: Duration = Duration::from_millis(20);

/// How often the server is asked once this has taken a while.
const READY_POLL_LATER: Duration = Duration::from_secs(1);

/// How long after a failed registration the next one is sent: the first time, and at most.
const RETRY: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(30));

/// How long after a registration that the broker rejected the next one is sent. A retry soon after a
/// rejection would also be rejected.
const REFUSED_RETRY: Duration = Duration::from_secs(60);

/// How long after a look at the outcome the next one follows: at first, and at most.
pub(super) const OUTCOME_POLL: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(15));

/// The longest time until a registered node registers again. From this, a broker that has lost its store
/// learns of the node.
const REFRESH: Duration = Duration::from_secs(60);

/// How long a Sentinel's hello on the server is valid. A Sentinel sends one every two seconds.
const HELLOS: Duration = Duration::from_secs(10);

/// How long a registration is valid, in seconds: three times `REFRESH`.
const TTL: u64 = 180;

/// How often the node is asked whether it is still a member.
const MEMBER_POLL: Duration = Duration::from_millis(500);

/// How often in a row a node that has left has to be seen as a member before it is one again.
const BACK_AFTER: u32 = 20;

/// How long a replica that has reached its master may be unknown to the Sentinels: three of their INFO
/// periods. Only a replica that does not recognise its own address takes longer.
const KNOWN_WITHIN: Duration = Duration::from_secs(30);

/// How long a replica may take to reach its master and to get its data before it stands back. Most replicas
/// are faster.
const LINKED_WITHIN: Duration = Duration::from_secs(1);

/// How long an empty cache stands back.
const EMPTY_AFTER: Duration = Duration::from_secs(60);

/// A running server that is to be registered.
#[derive(Debug)]
pub struct Registrar<'a> {
    pub broker: &'a Broker,
    /// Connections to nodes of this kind.
    pub connections: &'a Connections,
    /// The addresses at which the server may answer this process, the most likely one first.
    pub reached_at: Vec<Endpoint>,
    /// The address that other nodes are to use, if it is not the address that the broker sees.
    pub announce: Option<Addr>,
    pub port: u16,
    pub start: &'a Start,
    /// The group of this registration, once the broker has named its default group.
    pub group: Option<&'a Group>,
    /// Whether this is the first of the node's groups. Work for the whole node is done only for the first
    /// group.
    pub is_first: bool,
    /// ` in GROUP`, for messages. Empty if there is only one group.
    pub in_group: String,
    /// Whether the server has to be sent `REPLICAOF NO ONE`.
    pub promotes: bool,
    /// Asks other nodes if the server's master does not answer.
    pub asker: &'a Asker,
    /// Gets the hellos of the Sentinels that watch the server.
    pub health: &'a Health,
    pub expected: ExpectedSentinels,
    /// What the server was when it started, if it is a Redis server.
    pub redis: Option<StartedRedis>,
    /// The address at which the server answers, once it does.
    pub ready_at: OnceLock<Endpoint>,
    pub poll_interval: Duration,
    pub report: &'a Report,
    /// The last hello of each Sentinel that watches the server, and when it came.
    pub watched: Mutex<BTreeMap<Endpoint, (Instant, Hello)>>,
}

/// A Redis server that was started.
#[derive(Debug)]
pub struct StartedRedis {
    pub this: ThisRedis,
    pub journal: Journal,
    /// The part of its append-only file that was written to before the start.
    pub last: Option<Part>,
    /// The `replica-priority` in the server's own configuration.
    pub priority: u32,
}

/// What a server follows after it has become a replica.
pub(super) struct Followed {
    pub master: Endpoint,
    /// Whether the master was up when the server began to follow it.
    pub is_up: bool,
    /// Whether the server must not be promoted until it has reached the master.
    pub stands_back: bool,
    /// The servers with more data, because of which it stands back.
    pub ahead: Vec<Endpoint>,
}

impl Registrar<'_> {
    /// Registers the server when it is ready, and keeps it registered. The server keeps running even if the
    /// broker fails.
    pub async fn keep(&self) -> ! {
        let (endpoint, run_id) = self.ready().await;
        let _ = self.ready_at.set(endpoint.clone());
        if self.promotes {
            self.promote(&endpoint).await;
        }
        let hellos = watch::Sender::new(BTreeSet::new());
        let own_position =
            watch::Sender::new(self.redis.as_ref().and_then(|redis| redis.this.position.clone()));
        let settle = async {
            let Some(redis) = &self.redis else {
                if *self.start == Start::Alone {
                    self.find_system(&endpoint).await;
                }
                return;
            };
            let followed = match self.start {
                Start::Held => self.hold(&endpoint, redis, hellos.subscribe()).await,
                Start::Follow { master, is_up, ahead } => Some(Followed {
                    master: master.clone(),
                    is_up: *is_up,
                    stands_back: !ahead.is_empty(),
                    ahead: ahead.clone(),
                }),
                // The server is a replica by its own configuration.
                Start::Alone => match self.replication(&endpoint).await {
                    Ok(Some(Replication { role: Role::Replica { of, .. }, .. })) => {
                        Some(Followed { master: of, is_up: true, stands_back: false, ahead: Vec::new() })
                    }
                    _ => None,
                },
                _ => None,
            };
            if let Some(followed) = followed {
                self.follow(&endpoint, followed, redis, &hellos.subscribe()).await;
            }
        };
        let tell = async {
            let Some(redis) = &self.redis else { return };
            let listen = self.listen(&endpoint, redis.priority, own_position.subscribe(), &hellos);
            join(listen, self.keep_journal(&endpoint, redis, &own_position)).await;
        };
        let registered = self.stay_registered(&endpoint, run_id);
        let systemd = async {
            if self.is_first {
                self.tell_systemd(&endpoint).await;
            }
        };
        let ((), (), (), never) = join4(settle, tell, systemd, registered).await;
        never
    }

    /// Makes the server a master by `REPLICAOF NO ONE`, and repeats that until the server accepts it.
    async fn promote(&self, endpoint: &Endpoint) {
        let mut reported = String::new();
        loop {
            let why = match self.send(endpoint, promote()).await {
                Ok(_) => return,
                Err(why) => why,
            };
            if reported != why {
                self.report.warning(format_args!(
                    "can't make the server the master, and tries again: {why}\nhint: grant the user of \
                     --redis-username +replicaof, or send REPLICAOF NO ONE: the Sentinels report this \
                     server as the master"
                ));
                reported = why;
            }
            sleep(READY_POLL_LATER).await;
        }
    }

    /// Watches a new replica until a Sentinel knows it. Until the replica has reached its master, it must not
    /// be promoted if another node has more data. This works even if the broker knows no Sentinel: the
    /// Sentinels whose `hellos` arrive on the server itself are asked.
    async fn follow(
        &self,
        endpoint: &Endpoint,
        followed: Followed,
        redis: &StartedRedis,
        hellos: &watch::Receiver<BTreeSet<Hello>>,
    ) {
        let Followed { master: mut followed, is_up, mut stands_back, ahead } = followed;
        let (mut reported, mut up_since) = (String::new(), None::<Instant>);
        let (mut ahead, since) = (ahead.into_iter().collect::<BTreeSet<Endpoint>>(), Instant::now());
        loop {
            sleep(jittered(self.poll_interval)).await;
            let Ok(replication) = self.replication(endpoint).await else { continue };
            let link_up = match replication {
                Some(Replication { role: Role::Replica { link_up, .. }, .. }) => link_up,
                _ => {
                    if stands_back {
                        self.was_released(endpoint, redis.priority).await;
                    }
                    return;
                }
            };
            let known = hellos.borrow().clone();
            let (heard, _) = self.asker.ask(&known).await;
            // If the master was not up, there is no link to wait for.
            let is_late = !link_up && (!is_up || since.elapsed() >= LINKED_WITHIN);
            // As long as the server does not report its position, its priority does not change.
            let this =
                if is_late { self.asker.ask_server(self.connections, endpoint).await.ok() } else { None };
            let this = this.filter(|this| !this.is_yet_to_report);
            let is_told = this.is_some();
            let is_second = this.is_some_and(|this| {
                ahead.retain(|server| is_awaited(&heard, server));
                ahead.extend(servers_with_more_data(&heard, &this));
                // If this replica were promoted without data, it would empty all others, and a node with the
                // data may come back. A cache may go on without data if no such node comes.
                let may_be_empty =
                    redis.this.disk == Disk::Blank || redis.this.is_cache && since.elapsed() >= EMPTY_AFTER;
                let is_hollow = this.is_from_disk && !this.holds_data && !may_be_empty;
                is_hollow || !ahead.is_empty()
            });
            if is_second && !stands_back {
                stands_back = self.send(endpoint, set("replica-priority", "0")).await.is_ok();
                if stands_back {
                    self.report.event(
                        "standing back (replica-priority 0) until this node has reached its master: it \
                         has less data than other nodes",
                    );
                }
            } else if stands_back && !is_second && (link_up || is_told) {
                self.was_released(endpoint, redis.priority).await;
                stands_back = false;
            }
            if link_up {
                if is_known(&heard) || up_since.get_or_insert_with(Instant::now).elapsed() >= KNOWN_WITHIN {
                    return;
                }
                continue;
            }
            up_since = None;
            let Some(next) = current_master(&heard, &followed, self.expected) else { continue };
            self.follow_next(endpoint, next, &mut followed, &mut reported).await;
        }
    }

    /// Makes a replica of `followed` a replica of `next`. An error that was `reported` before is not reported
    /// again.
    async fn follow_next(
        &self,
        endpoint: &Endpoint,
        next: Endpoint,
        followed: &mut Endpoint,
        reported: &mut String,
    ) {
        let replicaof = command!("REPLICAOF", next.host, next.port);
        match self.send(endpoint, replicaof).await {
            Ok(_) => {
                self.report.event(format_args!(
                    "the Sentinels replaced {followed} before they knew this node as its replica: \
                     following {next}"
                ));
                *followed = next;
            }
            Err(why) if *reported == why => {}
            Err(why) => {
                self.report.warning(format_args!(
                    "the Sentinels now report {next} as the master, but the server did not accept \
                     REPLICAOF: {why}"
                ));
                *reported = why;
            }
        }
    }

    pub(super) async fn send(&self, endpoint: &Endpoint, command: Command) -> Result<Value, String> {
        let replies = self.connections.send(endpoint, &[command]).await.map_err(|error| error.to_string())?;
        match replies.into_iter().next() {
            Some(reply) => reply.map_err(|error| error.to_string()),
            None => unreachable!("one reply for each command"),
        }
    }

    async fn stay_registered(&self, endpoint: &Endpoint, run_id: Option<RunId>) -> ! {
        let mut addr = None;
        // A server that was started as a member needs no runner.
        let mut configured = !matches!(self.start, Start::Alone | Start::Held);
        let mut membership = Membership::default();
        let (mut pause, mut register_at, mut look_at) = (OUTCOME_POLL.0, Instant::now(), Instant::now());
        loop {
            self.check_membership(&mut membership, endpoint).await;
            if membership.has_left {
                // If the node becomes a member again, it is registered at once.
                register_at = Instant::now();
            } else if register_at <= Instant::now() {
                let now = self.register(endpoint, run_id.clone()).await;
                register_at = Instant::now() + REFRESH.mul_f64(0.8 + fastrand::f64() / 5.0);
                if addr.as_ref() != Some(&now) {
                    self.report.event(format_args!("registered as {now}{}", self.in_group));
                    addr = Some(now);
                }
            }
            if !configured && look_at <= Instant::now() {
                if let Some(outcome) = self.verified().await {
                    // The node may be a member for less than a pause of this loop. So the membership is also
                    // checked here: a node that was never seen as a member can't be seen to leave.
                    self.check_membership(&mut membership, endpoint).await;
                    self.report_configured(endpoint, addr.as_ref(), &outcome).await;
                    configured = true;
                }
                look_at = Instant::now() + jittered(pause);
                pause = pause.mul_f64(1.5).min(OUTCOME_POLL.1);
            }
            sleep(MEMBER_POLL).await;
        }
    }

    /// Looks whether the node has left. If it can't be asked, nothing changes.
    async fn check_membership(&self, membership: &mut Membership, endpoint: &Endpoint) {
        let Some(is_member) = self.is_member(endpoint).await else { return };
        if membership.is_now(is_member) {
            self.report.event(format_args!(
                "this node was removed from the system{}: join no longer registers it; stop the node, \
                 and keep it from starting again{}",
                self.in_group,
                if self.in_group.is_empty() { "" } else { " with that group" }
            ));
        }
    }

    /// Whether the node is part of a system, or may become part of one. [`leave`](crate::commands::leave)
    /// ends this. `None`: the node does not answer.
    async fn is_member(&self, endpoint: &Endpoint) -> Option<bool> {
        match self.connections.kind() {
            Kind::Redis => Some(self.replication(endpoint).await.ok()??.role != Role::Held),
            Kind::Sentinel => {
                let info = self.send(endpoint, command!("INFO", "sentinel")).await.ok()?;
                let info = Info::parse(&text(&info));
                let masters: usize = info.number("sentinel_masters")?;
                Some(if self.group.is_none() { masters > 0 } else { monitored(&info, self.group).is_some() })
            }
        }
    }

    /// Waits until the server answers and has loaded its data.
    async fn ready(&self) -> (Endpoint, Option<RunId>) {
        let mut reported = String::new();
        let mut waited = Duration::ZERO;
        loop {
            let mut last = String::new();
            for endpoint in &self.reached_at {
                match self.is_ready(endpoint).await {
                    Ok(run_id) => return (endpoint.clone(), run_id),
                    Err(NotReady::Passes) => {}
                    Err(NotReady::Stays(what)) => last = format!("{endpoint}: {what}"),
                }
            }
            if !last.is_empty() && reported != last {
                self.report
                    .warning(format_args!("not registered yet, because the server can't be checked: {last}"));
                reported = last;
            }
            let pause = if waited < REQUEST_TIMEOUT { READY_POLL } else { READY_POLL_LATER };
            waited += pause;
            sleep(pause).await;
        }
    }

    async fn is_ready(&self, endpoint: &Endpoint) -> Result<Option<RunId>, NotReady> {
        let kind = self.connections.kind();
        let asked = [
            command!("INFO", "server"),
            command!("INFO", "persistence"),
            match kind {
                Kind::Redis => command!("PING"),
                Kind::Sentinel => command!("SENTINEL", "MYID"),
            },
        ];
        let replies = match self.connections.send(endpoint, &asked).await {
            Ok(replies) => replies,
            Err(ConnectionError::Unreachable(_)) => return Err(NotReady::Passes),
            Err(error) => return Err(NotReady::Stays(error.to_string())),
        };
        let [server, persistence, last] = replies.as_slice() else {
            unreachable!("one reply for each command")
        };
        let (server, last) = match (server, last) {
            (Ok(server), Ok(last)) => (server, text(last)),
            // A replica without a link to its master answers with this error if `replica-serve-stale-data` is
            // `no`.
            (Ok(server), Err(error)) if error.code == "MASTERDOWN" => (server, String::new()),
            (Err(error), _) | (_, Err(error)) if error.code == "LOADING" => return Err(NotReady::Passes),
            (Err(error), _) | (_, Err(error)) => return Err(NotReady::Stays(error.to_string())),
        };
        let persistence = persistence.as_ref().map(|value| Info::parse(&text(value))).unwrap_or_default();
        if persistence.get("loading") == Some("1") {
            return Err(NotReady::Passes);
        }
        let id = match kind {
            Kind::Redis => Info::parse(&text(server)).get("run_id").unwrap_or_default().to_owned(),
            // A Sentinel's `run_id` changes with every start. Its peers know it by this id.
            Kind::Sentinel => last,
        };
        Ok(id.parse().ok())
    }

    /// Registers until the broker accepts the registration.
    async fn register(&self, endpoint: &Endpoint, run_id: Option<RunId>) -> Addr {
        let (mut pause, longest) = RETRY;
        let mut reported = String::new();
        loop {
            let body = Register {
                host: self.announce.as_ref().map(|addr| addr.host.clone()),
                port: self.announce.as_ref().map(|addr| addr.port).or_else(|| self.port.try_into().ok()),
                run_id: run_id.clone(),
                ttl: TTL.try_into().ok(),
                master: self.master(endpoint).await,
            };
            let error = match self.broker.register(self.connections.kind(), &body).await {
                Ok(registration) => return registration.addr,
                Err(error) => error,
            };
            let passes = error.may_pass();
            let text = error.to_string();
            if reported != text {
                if passes {
                    self.report.event(format_args!("not registered yet: {text}"));
                } else {
                    let hint = error.hint();
                    self.report.warning(format_args!(
                        "the broker rejected the registration of this node: {text}\nhint: {hint}"
                    ));
                }
                reported = text;
            }
            sleep(jittered(if passes { pause } else { REFUSED_RETRY }).max(error.retry_after())).await;
            pause = (pause * 2).min(longest);
        }
    }

    /// The master of the system of which this node is a member, according to the Sentinels.
    async fn master(&self, endpoint: &Endpoint) -> Option<Addr> {
        let master = match self.connections.kind() {
            // The Sentinels that watch a server name its master on the server itself.
            Kind::Redis => {
                let hellos = self.lately_heard();
                hellos.iter().max_by_key(|hello| hello.config_epoch)?.master.to_string()
            }
            Kind::Sentinel => {
                let info = self.send(endpoint, command!("INFO", "sentinel")).await.ok()?;
                monitored(&Info::parse(&text(&info)), self.group)?.to_string()
            }
        };
        master.parse().ok()
    }

    /// The last hello of each Sentinel that monitors this server in this group.
    pub(super) fn lately_heard(&self) -> BTreeSet<Hello> {
        let watched = self.watched.lock().unwrap_or_else(PoisonError::into_inner);
        let is_ours = |hello: &&Hello| self.group.is_none_or(|group| hello.group == group.as_str());
        let lately = watched.values().filter(|(at, _)| at.elapsed() < HELLOS);
        lately.map(|(_, hello)| hello).filter(is_ours).cloned().collect()
    }

    /// The outcome of a run that has verified the system.
    async fn verified(&self) -> Option<Outcome> {
        self.broker.roster(REQUEST_TIMEOUT).await.ok()?.outcome.filter(|outcome| outcome.verified)
    }

    /// Reports that the system is configured. A node that started alone after the run is not part of the
    /// system.
    async fn report_configured(&self, endpoint: &Endpoint, addr: Option<&Addr>, outcome: &Outcome) {
        let master =
            outcome.master.as_ref().map(|master| format!(", with the master {master}")).unwrap_or_default();
        let left_over = self.connections.kind() == Kind::Redis
            && outcome.master.as_ref() != addr
            && self.is_master_without_replicas(endpoint).await;
        if left_over {
            self.report.warning(format_args!(
                "the system is configured{master}, but without this node, which runs alone\n\
                 hint: to attach this node, run `sentinel-runner bootstrap` again"
            ));
        } else {
            self.report.event(format_args!("the system is configured{}{master}", self.in_group));
        }
    }

    /// Whether it is a master without replicas.
    async fn is_master_without_replicas(&self, endpoint: &Endpoint) -> bool {
        matches!(
            self.replication(endpoint).await,
            Ok(Some(Replication { role: Role::Master, replicas, .. })) if replicas.is_empty()
        )
    }

    pub(super) async fn replication(&self, endpoint: &Endpoint) -> Result<Option<Replication>, String> {
        Replication::ask(self.connections, endpoint).await
    }
}

/// The master of this group, from a Sentinel's `INFO`. Without a group, the only master that there is.
fn monitored(info: &Info, group: Option<&Group>) -> Option<Endpoint> {
    let masters = monitored_masters(info);
    let is_its = |master: &&MonitoredMaster| match group {
        Some(group) => master.name == group.as_str(),
        None => masters.len() == 1,
    };
    masters.iter().find(is_its).map(|master| master.endpoint.clone())
}

/// Why a server is not ready.
enum NotReady {
    /// The server is starting, or is loading its data.
    Passes,
    /// For example, the server requires another password.
    Stays(String),
}

/// Whether the node is a member of a system. A node that has never been a member has not left.
#[derive(Debug, Default)]
struct Membership {
    was: bool,
    has_left: bool,
    /// How often in a row the node was seen as a member since it left.
    back: u32,
}

impl Membership {
    /// Records one observation. Returns whether the node has just left.
    fn is_now(&mut self, is: bool) -> bool {
        self.was |= is;
        if is && self.has_left {
            self.back += 1;
            // A Sentinel that has not forgotten the node yet may make it a replica for a moment.
            self.has_left = self.back < BACK_AFTER;
            return false;
        }
        self.back = 0;
        let leaves = self.was && !is && !self.has_left;
        self.has_left |= leaves;
        leaves
    }
}

/// Varies a pause a little. Nodes that start together would otherwise always ask together.
pub(super) fn jittered(pause: Duration) -> Duration {
    pause.mul_f64(0.75 + fastrand::f64() / 2.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sentinel_names_the_master_of_each_group() {
        let info = Info::parse(
            "sentinel_masters:2\r\nmaster0:name=a,status=ok,address=10.0.0.7:6379,slaves=1,sentinels=3\r\n\
             master1:name=b,status=odown,address=fd00::7:6380,slaves=1,sentinels=3\r\n",
        );
        let master = |group: &str| monitored(&info, Some(&group.parse().unwrap()));
        assert_eq!(master("a"), Some(Endpoint::new("10.0.0.7", 6379)));
        assert_eq!(master("b"), Some(Endpoint::new("fd00::7", 6380)));
        assert_eq!((master("c"), monitored(&info, None)), (None, None));
        let one = Info::parse("sentinel_masters:1\r\nmaster0:name=a,status=ok,address=10.0.0.7:6379\r\n");
        assert_eq!(monitored(&one, None), Some(Endpoint::new("10.0.0.7", 6379)));
    }

    #[test]
    fn who_is_made_a_replica_for_a_moment_has_left_all_the_same() {
        let mut membership = Membership::default();
        let mut sees = |times: u32, is: bool| {
            let reported = (0..times).filter(|_| membership.is_now(is)).count();
            (reported, membership.has_left)
        };
        assert_eq!(sees(3, false), (0, false), "it has yet to be one");
        assert_eq!(sees(3, true), (0, false));
        assert_eq!(sees(3, false), (1, true));
        assert_eq!(sees(BACK_AFTER - 1, true), (0, true));
        assert_eq!(sees(1, false), (0, true), "it is said once");
        assert_eq!(sees(BACK_AFTER, true), (0, false), "it is one again");
        assert_eq!(sees(1, false), (1, true));
    }
}
