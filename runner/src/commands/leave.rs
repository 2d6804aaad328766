//! `leave`: a node leaves permanently. A master hands over first. The broker deregisters the node. Then the
//! node is detached: a Redis server replicates no server, and a Sentinel stops monitoring the group. Last,
//! the Sentinels forget it, one after the other.

use std::time::Duration;

use broker_fn::api::{Addr, Kind, Registration, Roster, Timestamp};
use tokio::time::{Instant, sleep};

use super::bootstrap::bootstrap;
use super::failover::MasterChange;
use super::look::Watcher;
use super::register::registrations;
use super::stop::Stop;
use crate::broker::{Broker, REQUEST_TIMEOUT};
use crate::cli::LeaveArgs;
use crate::config::{BootstrapConfig, LookConfig};
use crate::error::Failure;
use crate::node::command::{Command, command};
use crate::node::connection::Connections;
use crate::node::endpoint::Endpoint;
use crate::node::info::Info;
use crate::node::redis::{DEFAULT_PRIORITY, MIN_REPLICAS, PRIORITY, set};
use crate::node::replication::{HELD_MASTER, Replication, Role};
use crate::node::reply::text;
use crate::node::sentinel::{Monitored, Peer};
use crate::node::unusable::Unusable;
use crate::report::Report;
use crate::report::document::{Ending, RegistrationJson};
use crate::system::decide::{Leaving, Refusal, RefusalKind};
use crate::system::members::System;
use crate::system::observe::{Observed, ObservedNode, observe};
use crate::system::servers::Servers;
use crate::words::count;

/// The time between two looks at a server that leaves, until all Sentinels have forgotten it.
const LOOK_AGAIN: Duration = Duration::from_millis(100);

/// The shortest time that the steps after a handover get.
const LEAST: Duration = Duration::from_secs(1);

/// `leave`.
///
/// # Errors
///
/// If the system is not verified, or would not be without the node; if the command does not complete. It can
/// then be run again.
pub async fn leave(typed: LeaveArgs, report: &Report) -> Result<Ending, Failure> {
    let LeaveArgs { kind, at, quorum, look, timeout } = typed;
    let config = LookConfig::resolve(look, &[("--timeout", timeout)])?;
    let watcher = Watcher::new(&config, report)?;
    let mut stop = Stop::new()?;
    let deadline = Instant::now() + timeout;
    let broker = Broker::new(&config.broker).map_err(Failure::Other)?;
    let roster = stop.or(async { broker.roster(REQUEST_TIMEOUT).await.map_err(Failure::Broker) }).await?;
    let registered = registrations(&roster, kind).iter().find(|one| one.addr == at).cloned();
    let all = with_node(&roster, kind, &at);
    let find = Leaver::find_settled(kind, &at, registered.is_some(), watcher.servers(), &all, deadline);
    let (node, observed) = stop.or(find).await?;
    node.others_are_enough(&roster, &config, quorum, &observed)?;
    // A node that an earlier run has detached is no part of the system that is to be verified.
    if registered.is_some() && node.answers && !node.is_detached {
        let looked = stop.or(watcher.settled()).await?;
        let before = looked.verdict?;
        node.others_take_writes(&before)?;
        if kind == Kind::Redis && before.master.is_at(&node.endpoint) {
            let change = MasterChange {
                config: &config,
                watcher: &watcher,
                report,
                before: &before,
                deadline,
                timeout,
            };
            let changed = change.run(None, looked.roster, &mut stop).await?;
            report.event(format_args!("{} is the master now", changed.system.master.endpoint));
        }
    }
    // This comes first, so that a token that is too weak leaves the node as it is.
    broker.deregister(kind, &at).await.map_err(Failure::Broker)?;
    report.event(format_args!("{kind} {at}: deregistered"));
    if node.answers {
        stop.or(node.detach(watcher.servers().of(kind), roster.group.as_str())).await?;
        // `join` may have registered the node again before the node was detached.
        broker.deregister(kind, &at).await.map_err(Failure::Broker)?;
    }
    let rest = node.bootstrap_of_the_rest(&config, quorum, deadline);
    let forgotten = tokio::select! {
        ended = bootstrap(&rest, report) => ended,
        never = keep_detached(&node, &watcher.servers().redis) => match never {},
    };
    forgotten?;
    if kind == Kind::Redis && node.answers {
        node.restore_priority(watcher.servers().of(kind), report).await;
    }
    let what = match (kind, node.answers) {
        (_, false) => "has left",
        (Kind::Redis, true) => {
            "has left: it replicates no server, and takes no writes; stop it, and keep it from starting again"
        }
        (Kind::Sentinel, true) => {
            "has left: it does not monitor the group any more; stop it, and keep it from starting again"
        }
    };
    report.result(format_args!("\n{kind} {at} {what}"));
    Ok(Ending::Left(RegistrationJson {
        kind: kind.into(),
        address: at.to_string(),
        known: registered.is_some(),
        registered_at: registered.map(|registration| registration.registered_at.to_string()),
    }))
}

/// The result of a task that never ends.
enum Never {}

/// The roster, plus this node if an earlier run has deregistered it.
fn with_node(roster: &Roster, kind: Kind, at: &Addr) -> Roster {
    let mut roster = roster.clone();
    let all = match kind {
        Kind::Redis => &mut roster.redis,
        Kind::Sentinel => &mut roster.sentinels,
    };
    if all.iter().all(|registration| registration.addr != *at) {
        all.push(Registration::new(at.clone(), Timestamp::now()));
    }
    roster
}

/// The node that leaves.
struct Leaver {
    kind: Kind,
    endpoint: Endpoint,
    leaving: Leaving,
    answers: bool,
    /// Whether an earlier run has detached the node.
    is_detached: bool,
    /// The node's own `replica-priority`, if it is known.
    priority: Option<u32>,
}

impl Leaver {
    /// Finds out what the node is. If the node does not answer, but a Sentinel still reaches it, this waits
    /// until `deadline`: the node may be about to end.
    async fn find_settled(
        kind: Kind,
        at: &Addr,
        is_registered: bool,
        servers: &Servers,
        all: &Roster,
        deadline: Instant,
    ) -> Result<(Self, Observed), Failure> {
        loop {
            let observed = observe(servers, all).await;
            let node = Self::find(kind, at, &observed, is_registered)?;
            let Some(sentinel) = node.sentinel_that_reaches(&observed).cloned().filter(|_| !node.answers)
            else {
                return Ok((node, observed));
            };
            if Instant::now() >= deadline {
                let reason =
                    format!("{at} does not answer this machine, but still answers the Sentinel {sentinel}");
                return Err(refused(
                    reason,
                    "stop the node, or check the network between this machine and the node".into(),
                ));
            }
            sleep(LOOK_AGAIN).await;
        }
    }

    /// Finds out what the node is, as far as it answers.
    fn find(kind: Kind, at: &Addr, observed: &Observed, is_registered: bool) -> Result<Self, Failure> {
        let endpoint = Endpoint::from(at);
        let mut node = Self {
            kind,
            leaving: Leaving { ids: Vec::new(), endpoints: vec![endpoint.clone()] },
            endpoint,
            answers: false,
            is_detached: false,
            priority: None,
        };
        match kind {
            Kind::Redis => {
                if let Some(state) = state(&observed.redis, &node.endpoint)? {
                    node.leaving =
                        Leaving { ids: vec![state.run_id.clone()], endpoints: state.aliases.clone() };
                    node.answers = true;
                    node.is_detached = state.role == Role::Held;
                    // An earlier run that has deregistered the node has left the priority at 0.
                    node.priority = state.settings.priority().filter(|_| is_registered);
                }
            }
            Kind::Sentinel => {
                if let Some(state) = state(&observed.sentinels, &node.endpoint)? {
                    node.leaving.ids.push(state.my_id.clone());
                    node.leaving.endpoints.push(state.announced.clone());
                    node.answers = true;
                    node.is_detached = state.monitored.is_none();
                }
            }
        }
        let names = node
            .monitored(observed)
            .find(|(_, monitored)| node.leaving.endpoints.contains(&monitored.master.endpoint));
        if let (Kind::Redis, false, Some((sentinel, _))) = (kind, node.answers, names) {
            let reason = format!("the Sentinel {sentinel} reports {at} as the master, which does not answer");
            let hint =
                "start the master, or wait until the Sentinels have failed over (`sentinel-runner status`)";
            return Err(refused(reason, hint.into()));
        }
        if let (Kind::Redis, false, false, Some((sentinel, _))) =
            (kind, is_registered, node.is_detached, names)
        {
            let reason = format!(
                "the Sentinel {sentinel} reports {at} as the master, but {at} is not registered, so it can't \
                 hand over"
            );
            let hint = format!("run `sentinel-runner register redis {at}`, then run this again");
            return Err(refused(reason, hint));
        }
        if !is_registered && node.known_as(observed).next().is_none() {
            let what = format!("{kind} {at} is not registered, and no Sentinel knows it");
            return Err(usage(what, "`sentinel-runner status` lists the nodes".into()));
        }
        Ok(node)
    }

    /// What each of the other Sentinels monitors.
    fn monitored<'a>(&self, observed: &'a Observed) -> impl Iterator<Item = (&'a Endpoint, &'a Monitored)> {
        let others = observed.sentinels.iter().filter(|other| other.endpoint != self.endpoint);
        others.filter_map(|node| Some((&node.endpoint, node.state.as_ref().ok()?.monitored.as_ref()?)))
    }

    /// The entries under which the other Sentinels know the node.
    fn known_as<'a>(&self, observed: &'a Observed) -> impl Iterator<Item = (&'a Endpoint, &'a Peer)> {
        let all = self.monitored(observed).flat_map(|(sentinel, monitored)| {
            let peers = monitored.replicas.iter().chain(monitored.peers.values());
            peers.map(move |peer| (sentinel, peer))
        });
        all.filter(|(_, peer)| self.leaving.is(peer))
    }

    /// A Sentinel that still reaches the node.
    fn sentinel_that_reaches<'a>(&self, observed: &'a Observed) -> Option<&'a Endpoint> {
        self.known_as(observed).find(|(_, peer)| !peer.is_gone()).map(|(sentinel, _)| sentinel)
    }

    /// Checks that enough nodes are left, and that the remaining Sentinels can reach the quorum.
    fn others_are_enough(
        &self,
        roster: &Roster,
        config: &LookConfig,
        quorum: Option<u16>,
        observed: &Observed,
    ) -> Result<(), Failure> {
        let expected = config.expected(roster);
        let left = |kind: Kind| {
            let leaves =
                |one: &&Registration| kind == self.kind && Endpoint::from(&one.addr) == self.endpoint;
            registrations(roster, kind).iter().filter(|one| !leaves(one)).count()
        };
        let (needed, flag, one) = match self.kind {
            Kind::Redis => (expected.redis, "--redis", "Redis server"),
            Kind::Sentinel => (expected.sentinels, "--sentinels", "Sentinel"),
        };
        let (others, sentinels) = (left(self.kind), left(Kind::Sentinel));
        if others < needed.into() {
            let what =
                format!("without {} the system would have {} of {needed}", self.endpoint, count(others, one));
            let hint = format!("register another node first, or set the new number: {flag} {others}");
            return Err(usage(what, hint));
        }
        let quorums =
            self.monitored(observed).map(|(sentinel, monitored)| (sentinel, monitored.master.quorum()));
        let hint = format!("set the new quorum: --quorum {}", sentinels / 2 + 1);
        match (quorum, quorums.max_by_key(|(_, quorum)| *quorum)) {
            (Some(quorum), _) if usize::from(quorum) > sentinels => Err(usage(
                format!("--quorum: {quorum} is greater than {sentinels}, the number of Sentinels"),
                hint,
            )),
            (None, Some((sentinel, quorum)))
                if usize::try_from(quorum).is_ok_and(|quorum| quorum > sentinels) =>
            {
                let what = format!(
                    "the Sentinel {sentinel} has quorum {quorum}, but only {} would be left",
                    count(sentinels, "Sentinel")
                );
                Err(usage(what, hint))
            }
            _ => Ok(()),
        }
    }

    /// Checks that a master keeps as many replicas as it needs to accept writes.
    fn others_take_writes(&self, system: &System) -> Result<(), Failure> {
        let left = system.replicas.len().saturating_sub(1);
        let needs = system
            .redis()
            .filter(|member| !member.is_at(&self.endpoint))
            .find(|member| member.settings.number::<usize>(MIN_REPLICAS).is_some_and(|needed| needed > left));
        match (self.kind, needs) {
            (Kind::Redis, Some(member)) => Err(refused(
                format!(
                    "no client could write any more: `{MIN_REPLICAS}` is above the number of replicas that \
                     a master would have ({})",
                    count(left, "replica")
                ),
                format!(
                    "add a replica first; or CONFIG SET {MIN_REPLICAS} {left} on {}, but then more writes \
                     are lost if a master is cut off",
                    member.endpoint
                ),
            )),
            _ => Ok(()),
        }
    }

    /// Makes a Redis server replicate no server, with priority 0 so that no Sentinel promotes it. Makes a
    /// Sentinel stop monitoring the group.
    async fn detach(&self, connections: &Connections, group: &str) -> Result<(), Failure> {
        let commands = match self.kind {
            Kind::Redis => vec![replicate_no_server(), set(PRIORITY, "0")],
            Kind::Sentinel => vec![command!("SENTINEL", "REMOVE", group)],
        };
        let unusable = |what: String| Failure::Unusable {
            node: self.endpoint.clone(),
            what,
            hint: "check that node, then run this again".into(),
        };
        let replies =
            connections.send(&self.endpoint, &commands).await.map_err(|error| unusable(error.to_string()))?;
        for (command, reply) in commands.iter().zip(&replies) {
            let Err(error) = reply else { continue };
            // An earlier run has removed the group from this Sentinel.
            if !error.detail.contains("No such master") {
                return Err(unusable(format!("`{}` was answered with `{error}`", command.shown())));
            }
        }
        Ok(())
    }

    /// The bootstrap that makes the Sentinels forget the node, and verifies the rest of the system.
    fn bootstrap_of_the_rest(
        &self,
        config: &LookConfig,
        quorum: Option<u16>,
        deadline: Instant,
    ) -> BootstrapConfig {
        BootstrapConfig {
            broker: config.broker.clone(),
            expected_redis: config.expected_redis,
            expected_sentinels: config.expected_sentinels,
            quorum,
            options: [].into(),
            redis_settings: [].into(),
            master: None,
            discard_data: false,
            leaving: self.leaving.clone(),
            timeout: deadline.saturating_duration_since(Instant::now()).max(LEAST),
            poll_interval: LOOK_AGAIN,
            nodes: config.nodes.clone(),
            dry_run: false,
            timings: false,
        }
    }

    /// Sets the server's priority back, so that it can be promoted if it becomes a member again. Has the
    /// server write its file, because a Sentinel may have attached the server and had it write its file. Now
    /// no Sentinel monitors the server.
    async fn restore_priority(&self, redis: &Connections, report: &Report) {
        let priority = self.priority.map(|priority| set(PRIORITY, &priority.to_string()));
        if priority.is_none() {
            report.warning(format_args!(
                "{} still has replica-priority 0 from an earlier run; before it becomes a member again, \
                 send it CONFIG SET replica-priority {DEFAULT_PRIORITY} and CONFIG REWRITE",
                self.endpoint
            ));
        }
        let commands: Vec<_> = priority.into_iter().chain([command!("CONFIG", "REWRITE")]).collect();
        // An error is ignored: a server without a file answers with one.
        let _ = redis.send(&self.endpoint, &commands).await;
    }
}

fn replicate_no_server() -> Command {
    command!("REPLICAOF", HELD_MASTER, 0)
}

/// Detaches the server again if a Sentinel that has not forgotten it yet has made it a replica.
async fn keep_detached(node: &Leaver, redis: &Connections) -> Never {
    loop {
        sleep(LOOK_AGAIN).await;
        if node.kind != Kind::Redis || !node.answers {
            continue;
        }
        let Ok(replies) = redis.send(&node.endpoint, &[command!("INFO", "replication")]).await else {
            continue;
        };
        let Ok(info) = &replies[0] else { continue };
        let is_detached =
            Replication::parse(&Info::parse(&text(info))).is_none_or(|now| now.role == Role::Held);
        if !is_detached {
            let _ = redis.send(&node.endpoint, &[replicate_no_server()]).await;
        }
    }
}

/// The node's state, or `None` if nothing answers at its address. If the node answers but can't be detached,
/// this is an error, because the Sentinels would find it again.
fn state<'a, T>(nodes: &'a [ObservedNode<T>], at: &Endpoint) -> Result<Option<&'a T>, Failure> {
    match nodes.iter().find(|node| node.endpoint == *at).map(|node| &node.state) {
        Some(Ok(state)) => Ok(Some(state)),
        None | Some(Err(Unusable::Unreachable(_) | Unusable::Silent(_))) => Ok(None),
        Some(Err(problem)) => {
            let (node, what, hint) = (at.clone(), problem.to_string(), problem.hint());
            Err(Failure::Unusable { node, what, hint })
        }
    }
}

fn usage(reason: String, hint: String) -> Failure {
    Failure::Refused(Refusal { kind: RefusalKind::Usage, reason, hint })
}

fn refused(reason: String, hint: String) -> Failure {
    Failure::Refused(Refusal { kind: RefusalKind::Unsafe, reason, hint })
}
