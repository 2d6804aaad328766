//! `leave`: a node leaves for good. The master hands over first; then the node is cut off, the broker forgets it, and the Sentinels do,
//! one after the other.

use std::time::Duration;

use broker_fn::api::{Addr, Kind, Registration, Roster, Timestamp};
use tokio::time::{Instant, sleep};

use super::bootstrap::bootstrap;
use super::failover::Change;
use super::look::Watcher;
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
use crate::node::replication::{NOBODY, Replication, Role};
use crate::node::reply::text;
use crate::node::sentinel::Monitored;
use crate::node::unusable::Unusable;
use crate::report::Report;
use crate::report::document::{Ending, RegistrationJson};
use crate::system::decide::{Leaving, Refusal, RefusalKind};
use crate::system::members::System;
use crate::system::observe::{Observed, ObservedNode, observe};
use crate::words::count;

/// How often a server that has left is looked at, until nobody knows it any more.
const LOOK_AGAIN: Duration = Duration::from_millis(100);

/// The least time for what comes after a handover.
const LEAST: Duration = Duration::from_secs(1);

/// `leave`.
///
/// # Errors
///
/// Where the system is not verified, or would not be without the node; where it does not come to its end. It may be run again then.
pub async fn leave(typed: LeaveArgs, report: &Report) -> Result<Ending, Failure> {
    let LeaveArgs { kind, at, quorum, look, timeout } = typed;
    let config = LookConfig::resolve(look, &[("--timeout", timeout)])?;
    let watcher = Watcher::new(&config, report)?;
    let mut stop = Stop::new()?;
    let deadline = Instant::now() + timeout;
    let broker = Broker::new(&config.broker).map_err(Failure::Other)?;
    let roster = stop.or(async { broker.roster(REQUEST_TIMEOUT).await.map_err(Failure::Broker) }).await?;
    let registered = registrations(&roster, kind).iter().find(|one| one.addr == at).cloned();
    let all = with(&roster, kind, &at);
    let find = async {
        loop {
            let observed = observe(watcher.servers(), &all).await;
            let node = Leaver::find(kind, &at, &observed, registered.is_some())?;
            let Some(sentinel) = node.is_seen_by(&observed).cloned().filter(|_| !node.answers) else {
                return Ok((node, observed));
            };
            if Instant::now() >= deadline {
                let reason = format!("{at} does not answer here, and the Sentinel {sentinel} still sees it");
                return Err(refused(reason, "stop it; or see what is between this machine and it".into()));
            }
            sleep(LOOK_AGAIN).await;
        }
    };
    let (node, observed) = stop.or(find).await?;
    node.others_are_enough(&roster, &config, quorum, &observed)?;
    if registered.is_some() && node.answers {
        let looked = stop.or(watcher.look()).await?;
        let before = looked.verdict?;
        node.others_take_writes(&before)?;
        if kind == Kind::Redis && before.master.is_at(&node.endpoint) {
            let change =
                Change { config: &config, watcher: &watcher, report, before: &before, deadline, timeout };
            let changed = change.run(None, looked.roster, &mut stop).await?;
            report.event(format_args!("{} is the master now", changed.system.master.endpoint));
        }
    }
    let priority = node.priority;
    if node.answers {
        stop.or(node.cut_off(watcher.servers().of(kind), roster.group.as_str())).await?;
    }
    broker.deregister(kind, &at).await.map_err(Failure::Broker)?;
    report.event(format_args!("{kind} {at}: deregistered"));
    let rest = BootstrapConfig {
        broker: config.broker.clone(),
        expected_redis: config.expected_redis,
        expected_sentinels: config.expected_sentinels,
        quorum,
        options: [].into(),
        redis_settings: [].into(),
        master: None,
        discard_data: false,
        leaving: node.leaving.clone(),
        timeout: deadline.saturating_duration_since(Instant::now()).max(LEAST),
        poll_interval: LOOK_AGAIN,
        nodes: config.nodes.clone(),
        dry_run: false,
        timings: false,
    };
    let forgotten = tokio::select! {
        ended = bootstrap(&rest, report) => ended,
        never = stay_cut_off(&node, &watcher.servers().redis) => match never {},
    };
    forgotten?;
    if kind == Kind::Redis && node.answers {
        // Nobody looks at it any more; and where it is made a member again, it is one as before.
        let _ = watcher.servers().redis.send(&node.endpoint, &[set(PRIORITY, &priority.to_string())]).await;
    }
    let what = match (kind, node.answers) {
        (_, false) => "has left",
        (Kind::Redis, true) => {
            "has left: it follows nobody, and takes no writes; stop it, and keep it from starting again"
        }
        (Kind::Sentinel, true) => {
            "has left: it monitors nothing of that name; stop it, and keep it from starting again"
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

/// What never comes.
enum Never {}

fn registrations(roster: &Roster, kind: Kind) -> &[Registration] {
    match kind {
        Kind::Redis => &roster.redis,
        Kind::Sentinel => &roster.sentinels,
    }
}

/// The roster, and this node where a run before has deregistered it.
fn with(roster: &Roster, kind: Kind, at: &Addr) -> Roster {
    let mut roster = roster.clone();
    let all = match kind {
        Kind::Redis => &mut roster.redis,
        Kind::Sentinel => &mut roster.sentinels,
    };
    if all.iter().all(|registration| registration.addr != *at) {
        let now = Timestamp::now();
        all.push(Registration { addr: at.clone(), run_id: None, registered_at: now, last_seen: now });
    }
    roster
}

/// The node that leaves.
struct Leaver {
    kind: Kind,
    endpoint: Endpoint,
    leaving: Leaving,
    answers: bool,
    /// Its `replica-priority`.
    priority: u32,
}

impl Leaver {
    /// Who it is, as far as it says.
    fn find(kind: Kind, at: &Addr, observed: &Observed, is_registered: bool) -> Result<Self, Failure> {
        let endpoint = Endpoint::from(at);
        let (answers, leaving, priority) = match kind {
            Kind::Redis => {
                let state = state(&observed.redis, &endpoint)?;
                let aliases = state.map(|state| state.aliases.clone()).unwrap_or_default();
                let ids = state.map(|state| state.run_id.clone());
                let priority = state.and_then(|state| state.settings.priority());
                let leaving =
                    Leaving { ids: ids.into_iter().collect(), endpoints: with_own(aliases, &endpoint) };
                (state.is_some(), leaving, priority.unwrap_or(DEFAULT_PRIORITY))
            }
            Kind::Sentinel => {
                let state = state(&observed.sentinels, &endpoint)?;
                let announced = state.map(|state| state.announced.clone());
                let ids = state.map(|state| state.my_id.clone()).into_iter().collect();
                let endpoints = with_own(announced.into_iter().collect(), &endpoint);
                (state.is_some(), Leaving { ids, endpoints }, DEFAULT_PRIORITY)
            }
        };
        let node = Self { kind, endpoint, leaving, answers, priority };
        let others = observed.sentinels.iter().filter(|other| other.endpoint != node.endpoint);
        let monitored: Vec<_> =
            others.filter_map(|node| Some((node, node.state.as_ref().ok()?.monitored.as_ref()?))).collect();
        let is_known = monitored.iter().any(|(_, monitored)| {
            let mut peers = monitored.replicas.iter().chain(monitored.peers.values());
            peers.any(|peer| node.leaving.is(peer))
        });
        if !is_registered && !is_known {
            let what = format!("{kind} {at} is not registered, and no Sentinel knows it");
            return Err(usage(what, "`sentinel-runner status` lists the nodes".into()));
        }
        let names = monitored
            .iter()
            .find(|(_, monitored)| node.leaving.endpoints.contains(&monitored.master.endpoint));
        if let (Kind::Redis, false, Some((sentinel, _))) = (kind, node.answers, names) {
            let reason =
                format!("the Sentinel {} names {at} as the master, which does not answer", sentinel.endpoint);
            let hint =
                "wait until the Sentinels have failed over (`sentinel-runner status`), or start it again";
            return Err(refused(reason, hint.into()));
        }
        Ok(node)
    }

    /// A Sentinel that has not lost it.
    fn is_seen_by<'a>(&self, observed: &'a Observed) -> Option<&'a Endpoint> {
        let others = observed.sentinels.iter().filter(|other| other.endpoint != self.endpoint);
        let sees = |monitored: &Monitored| {
            let mut peers = monitored.replicas.iter().chain(monitored.peers.values());
            peers.any(|peer| self.leaving.is(peer) && !peer.is_gone())
        };
        let mut see = others
            .filter(|node| node.state.as_ref().is_ok_and(|state| state.monitored.as_ref().is_some_and(sees)));
        see.next().map(|node| &node.endpoint)
    }

    /// What is left is what there must be, and can agree.
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
            let what = format!("without {} there would be {} of {needed}", self.endpoint, count(others, one));
            let hint = format!(
                "let another register first; or say how many there are to be from now on: {flag} {others}"
            );
            return Err(usage(what, hint));
        }
        let quorums =
            observed.sentinels.iter().filter(|node| node.endpoint != self.endpoint).filter_map(|node| {
                Some((&node.endpoint, node.state.as_ref().ok()?.monitored.as_ref()?.master.quorum()))
            });
        let hint = format!("say the quorum from now on: --quorum {}", sentinels / 2 + 1);
        match (quorum, quorums.max_by_key(|(_, quorum)| *quorum)) {
            (Some(quorum), _) if usize::from(quorum) > sentinels => Err(usage(
                format!("--quorum: {quorum} of {} can never agree", count(sentinels, "Sentinel")),
                hint,
            )),
            (None, Some((sentinel, quorum)))
                if usize::try_from(quorum).is_ok_and(|quorum| quorum > sentinels) =>
            {
                let what = format!(
                    "the Sentinel {sentinel} has quorum {quorum}, and there would be {}",
                    count(sentinels, "Sentinel")
                );
                Err(usage(what, hint))
            }
            _ => Ok(()),
        }
    }

    /// The master is left with the replicas that it takes to write.
    fn others_take_writes(&self, system: &System) -> Result<(), Failure> {
        let left = system.replicas.len().saturating_sub(1);
        let needs = system
            .redis()
            .filter(|member| !member.is_at(&self.endpoint))
            .find(|member| member.settings.number::<usize>(MIN_REPLICAS).is_some_and(|needed| needed > left));
        match (self.kind, needs) {
            (Kind::Redis, Some(member)) => Err(refused(
                format!(
                    "no client could write any more: `{MIN_REPLICAS}` is more than the {} that a master would have",
                    count(left, "replica")
                ),
                format!("CONFIG SET {MIN_REPLICAS} {left} on {}", member.endpoint),
            )),
            _ => Ok(()),
        }
    }

    /// A Redis server follows nobody and is not to be promoted; a Sentinel monitors nothing of that name.
    async fn cut_off(&self, connections: &Connections, group: &str) -> Result<(), Failure> {
        let commands = match self.kind {
            // Into its file goes its own priority.
            Kind::Redis => {
                vec![follow_nobody(), command!("CONFIG", "REWRITE"), set(PRIORITY, "0")]
            }
            Kind::Sentinel => vec![command!("SENTINEL", "REMOVE", group)],
        };
        let unusable = |what: String| Failure::Unusable {
            node: self.endpoint.clone(),
            what,
            hint: "see to that node, and run this again".into(),
        };
        let replies =
            connections.send(&self.endpoint, &commands).await.map_err(|error| unusable(error.to_string()))?;
        for (command, reply) in commands.iter().zip(&replies) {
            let Err(error) = reply else { continue };
            // It is cut off all the same: a server has no file, and a Sentinel has done this already.
            let is_fine = command.words()[1] == "REWRITE" || error.detail.contains("No such master");
            if !is_fine {
                return Err(unusable(format!("`{}` was answered with `{error}`", command.shown())));
            }
        }
        Ok(())
    }
}

fn follow_nobody() -> Command {
    command!("REPLICAOF", NOBODY, 0)
}

/// A Sentinel that has yet to forget it may make it a replica again.
async fn stay_cut_off(node: &Leaver, redis: &Connections) -> Never {
    loop {
        sleep(LOOK_AGAIN).await;
        if node.kind != Kind::Redis || !node.answers {
            continue;
        }
        let Ok(replies) = redis.send(&node.endpoint, &[command!("INFO", "replication")]).await else {
            continue;
        };
        let Ok(info) = &replies[0] else { continue };
        let is_cut_off =
            Replication::parse(&Info::parse(&text(info))).is_none_or(|now| now.role == Role::Held);
        if !is_cut_off {
            let _ = redis.send(&node.endpoint, &[follow_nobody()]).await;
        }
    }
}

/// What it is, or `None` where nobody is there. One that is there and can't be told to leave would come back.
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

fn with_own(mut endpoints: Vec<Endpoint>, own: &Endpoint) -> Vec<Endpoint> {
    if !endpoints.contains(own) {
        endpoints.push(own.clone());
    }
    endpoints
}

fn usage(reason: String, hint: String) -> Failure {
    Failure::Refused(Refusal { kind: RefusalKind::Usage, reason, hint })
}

fn refused(reason: String, hint: String) -> Failure {
    Failure::Refused(Refusal { kind: RefusalKind::Unsafe, reason, hint })
}
