//! Deciding: which server is the master and what is to be done, from what was observed. No I/O.
//!
//! The order, of which the first that applies wins:
//!
//! 1. the Sentinels' word: what some Sentinel already monitors stands;
//! 2. replication that already stands;
//! 3. data: the one server that holds any;
//! 4. the first to register.
//!
//! Everything that would lose data or contradict the Sentinels is a [`Refusal`]; what time may solve is a [`Wait`].

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use broker_fn::api::{Expected, Group};

use crate::connection::{Command, command};
use crate::endpoint::Endpoint;
use crate::observe::{Node, Observed, Unusable};
use crate::redis::{DISKLESS_DELAY, Data, RedisState, Role};
use crate::secret::Login;
use crate::sentinel::{HELLO_CHANNEL, Monitored, SentinelState};

/// What the operator asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// The group: the Sentinel master name.
    pub group: Group,
    /// How many usable nodes there must be, and the quorum for Sentinels that are new to the group.
    pub expected: Expected,
    /// Whether the operator gave the quorum, so that Sentinels that have another are changed.
    pub quorum_given: bool,
    /// Options of `SENTINEL SET` for every Sentinel.
    pub options: BTreeMap<String, String>,
    /// The login that the Sentinels are to use on the Redis servers.
    pub sentinel_login: Option<Login>,
    /// The login that replicas are to use on their master.
    pub replication_login: Option<Login>,
    /// The server that the operator wants as master.
    pub master: Option<Endpoint>,
    /// Whether data that the master lacks may be lost.
    pub discard_data: bool,
}

impl Request {
    /// What every Sentinel is to have: the options, and the quorum where the operator gave it.
    #[must_use]
    pub fn wanted(&self) -> BTreeMap<String, String> {
        let quorum = self.quorum_given.then(|| ("quorum".to_owned(), self.expected.quorum.to_string()));
        self.options.clone().into_iter().chain(quorum).collect()
    }
}

/// What to do next.
#[must_use]
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// Carry this out; an empty plan means that all is as it should be.
    Proceed(Box<Plan>),
    /// Nothing can be done yet: observe again later.
    Wait(Wait),
    /// Nothing may be done without a person.
    Refuse(Refusal),
}

/// What has to pass before anything can be done.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Wait {
    /// Too few registered nodes can be used.
    #[error(
        "{usable_redis} of {expected_redis} Redis servers and {usable_sentinels} of {expected_sentinels} Sentinels \
         can be used"
    )]
    NotEnough {
        /// Distinct Redis servers that can be used.
        usable_redis: usize,
        /// How many there must be.
        expected_redis: u16,
        /// Distinct Sentinels that can be used.
        usable_sentinels: usize,
        /// How many there must be.
        expected_sentinels: u16,
    },
    /// Roles are changing right now.
    #[error("a failover is under way, says {0}")]
    Failover(Endpoint),
    /// The master that others follow or monitor does not answer, or is not one.
    #[error("{master}, the master that {named_by} names, {problem}; the Sentinels are to deal with it")]
    MasterDown {
        /// The master.
        master: Endpoint,
        /// Who says that it is.
        named_by: Endpoint,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// The Sentinels know this server as a replica, and will make it one again.
    #[error("the Sentinel {named_by} knows {node} as a replica, and is to make it one again")]
    Returning {
        /// The server.
        node: Endpoint,
        /// Who says so.
        named_by: Endpoint,
    },
    /// Some Sentinels have not heard of the last failover.
    #[error("the Sentinels name different masters, of which the newer is to win: {0}")]
    Converging(String),
}

/// Why nothing may be done, with a way out.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub struct Refusal {
    /// Which kind, for the exit code.
    pub kind: RefusalKind,
    /// What was found, with the nodes named.
    pub reason: String,
    /// What the operator can do.
    pub hint: String,
}

/// The two kinds of refusals.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RefusalKind {
    /// It would lose data or contradict what stands.
    Unsafe,
    /// A node can't be used as it is.
    Unusable,
}

/// The system as it is to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct System {
    /// The Sentinel master name.
    pub group: Group,
    /// Where the master is reached.
    pub master: Endpoint,
    /// The address of the master that everybody is told.
    pub master_announced: Endpoint,
    /// All addresses that the master goes by.
    pub master_aliases: Vec<Endpoint>,
    /// The replicas, in the order of registration.
    pub replicas: Vec<Endpoint>,
    /// All addresses that each of the replicas goes by.
    pub replica_aliases: Vec<Vec<Endpoint>>,
    /// The Sentinels, in the order of registration.
    pub sentinels: Vec<Endpoint>,
    /// Their ids.
    pub sentinel_ids: BTreeSet<String>,
}

/// What is to be changed, in the order in which it is applied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// What stands when all is done.
    pub system: System,
    /// Why this master.
    pub because: &'static str,
    /// The servers to be given the replication login: the master too, which will be a replica one day.
    pub credentials: Vec<Endpoint>,
    /// That login.
    pub replication_login: Option<Login>,
    /// The servers to make replicas.
    pub attach: Vec<Attach>,
    /// Whether the master has to stop following another first.
    pub promote: bool,
    /// The master's [`DISKLESS_DELAY`], where it would hold up the replicas.
    pub diskless_delay: Option<u32>,
    /// The Sentinels to give the master to. The first decides where runners race: it is the one with the lowest id of
    /// all, whatever the order of registration, and refuses a name that it has.
    pub monitor: Vec<Endpoint>,
    /// The quorum that they are given.
    pub quorum: u16,
    /// Options to be set, by Sentinel.
    pub configure: Vec<(Endpoint, BTreeMap<String, String>)>,
    /// The Sentinels to be given the login for the Redis servers.
    pub authenticate: Vec<Endpoint>,
    /// That login.
    pub sentinel_login: Option<Login>,
    /// Sentinels that have yet to hear of others.
    pub introduce: Vec<Introduction>,
    /// Sentinels that count on nodes that are gone for good, and what to tell each of them once it has forgotten all: a
    /// Sentinel forgets only everything at once. One after the other.
    pub reset: Vec<Introduction>,
    /// Registered nodes that are left out, and why.
    pub left_out: Vec<(Endpoint, Unusable)>,
}

/// A server to be made a replica.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attach {
    /// Where it is reached.
    pub node: Endpoint,
    /// What it holds: the master's takes its place.
    pub data: Data,
}

/// A Sentinel that is to be told of others.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Introduction {
    /// Where it is reached.
    pub to: Endpoint,
    /// The messages, one for each Sentinel that it does not know.
    pub hellos: Vec<String>,
}

impl Introduction {
    /// One `PUBLISH` for each message.
    #[must_use]
    pub fn commands(&self) -> Vec<Command> {
        self.hellos.iter().map(|hello| command!("PUBLISH", HELLO_CHANNEL, hello)).collect()
    }
}

impl Plan {
    /// Whether there is nothing to do.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        !self.promote
            && self.credentials.is_empty()
            && self.attach.is_empty()
            && self.monitor.is_empty()
            && self.configure.is_empty()
            && self.authenticate.is_empty()
            && self.introduce.is_empty()
            && self.reset.is_empty()
    }

    /// Whether a server that holds data is to be emptied. Such a plan takes the deciding Sentinel's word first; any
    /// other attaches first, because a Sentinel whose first look at the master shows no replica looks again only after
    /// 10 s (`sentinel_info_period`).
    #[must_use]
    pub fn replaces_data(&self) -> bool {
        self.attach.iter().any(|attach| !attach.data.is_empty())
    }

    /// `REPLICAOF`, for every server in [`Plan::attach`].
    #[must_use]
    pub fn replicaof(&self) -> Command {
        let master = &self.system.master_announced;
        command!("REPLICAOF", master.host, master.port)
    }

    /// `SENTINEL MONITOR`, for every Sentinel in [`Plan::monitor`].
    #[must_use]
    pub fn monitor(&self) -> Command {
        let System { group, master_announced: master, .. } = &self.system;
        command!("SENTINEL", "MONITOR", group, master.host, master.port, self.quorum)
    }

    /// The commands that give a server the replication login, for every one in [`Plan::credentials`]. Several settings in
    /// one `CONFIG SET` are understood since 7.0 only.
    #[must_use]
    pub fn set_credentials(&self) -> Vec<Command> {
        let Some(Login { username, password }) = &self.replication_login else { return Vec::new() };
        let username = username.as_deref().unwrap_or_default();
        vec![
            command!("CONFIG", "SET", "masteruser", username),
            command!("CONFIG", "SET", "masterauth", password.reveal()),
        ]
    }

    /// `SENTINEL RESET`, for every Sentinel in [`Plan::reset`].
    #[must_use]
    pub fn reset(&self) -> Command {
        command!("SENTINEL", "RESET", self.system.group)
    }

    /// The options that a Sentinel is to be given, in one `SENTINEL SET`, because each costs it one write of its file.
    #[must_use]
    pub fn set(&self, sentinel: &Endpoint) -> Option<Command> {
        let options = self.configure.iter().filter(|(to, _)| to == sentinel).flat_map(|(_, options)| options);
        let mut words: Vec<&str> = options.flat_map(|(name, value)| [name.as_str(), value]).collect();
        if let Some(Login { username, password }) = &self.sentinel_login
            && self.authenticate.contains(sentinel)
        {
            words.extend(username.iter().flat_map(|username| ["auth-user", username]));
            words.extend(["auth-pass", password.reveal()]);
        }
        let set = ["SENTINEL", "SET", self.system.group.as_str()].into_iter().chain(words.iter().copied());
        (!words.is_empty()).then(|| Command::new(set))
    }

    /// Every command that changes anything, in the order in which a single client would send them.
    #[must_use]
    pub fn commands(&self) -> Vec<(Endpoint, Command)> {
        let master = || self.system.master.clone();
        let mut commands: Vec<_> = self
            .credentials
            .iter()
            .flat_map(|node| self.set_credentials().into_iter().map(|command| (node.clone(), command)))
            .collect();
        if self.promote {
            commands.push((master(), promote()));
        }
        if self.diskless_delay.is_some() {
            commands.push((master(), set_diskless_delay(0)));
        }
        let attach = self.attach.iter().map(|attach| (attach.node.clone(), self.replicaof()));
        let decide = self.monitor.first().map(|decider| (decider.clone(), self.monitor()));
        if self.replaces_data() {
            commands.extend(decide.into_iter().chain(attach));
        } else {
            commands.extend(attach.chain(decide));
        }
        commands.extend(self.monitor.iter().skip(1).map(|sentinel| (sentinel.clone(), self.monitor())));
        for sentinel in &self.system.sentinels {
            commands.extend(self.set(sentinel).map(|command| (sentinel.clone(), command)));
        }
        for introduction in &self.introduce {
            commands.extend(
                introduction.commands().into_iter().map(|command| (introduction.to.clone(), command)),
            );
        }
        for introduction in &self.reset {
            let reset = std::iter::once(self.reset()).chain(introduction.commands());
            commands.extend(reset.map(|command| (introduction.to.clone(), command)));
        }
        commands.extend(self.diskless_delay.map(|seconds| (master(), set_diskless_delay(seconds))));
        commands.extend(self.changed_redis().map(|node| (node.clone(), command!("CONFIG", "REWRITE"))));
        commands
    }

    /// What is going to be done, for a person to follow.
    #[must_use]
    pub fn summary(&self) -> String {
        let list = |nodes: &mut dyn Iterator<Item = String>| nodes.collect::<Vec<_>>().join(", ");
        let master = &self.system.master;
        let mut lines = vec![format!("{master} is to be the master: {}", self.because)];
        if !self.credentials.is_empty() {
            let nodes = list(&mut self.credentials.iter().map(ToString::to_string));
            lines.push(format!("given the replication login: {nodes}"));
        }
        if self.promote {
            lines.push("it stops replicating another".to_owned());
        }
        if !self.attach.is_empty() {
            let attach = self.attach.iter().map(|Attach { node, data }| {
                if data.is_empty() { node.to_string() } else { format!("{node} (replacing its {data})") }
            });
            lines.push(format!("new replicas: {}", list(&mut { attach })));
        }
        if !self.monitor.is_empty() {
            let sentinels = list(&mut self.monitor.iter().map(ToString::to_string));
            lines.push(format!("Sentinels to monitor it, with quorum {}: {sentinels}", self.quorum));
        }
        let mut by_options: BTreeMap<_, Vec<_>> = BTreeMap::new();
        for (sentinel, options) in &self.configure {
            by_options.entry(options).or_default().push(sentinel);
        }
        for (options, sentinels) in by_options {
            let options = list(&mut options.iter().map(|(name, value)| format!("{name} {value}")));
            lines.push(format!("{options} on {}", list(&mut sentinels.iter().map(ToString::to_string))));
        }
        if !self.authenticate.is_empty() {
            let sentinels = list(&mut self.authenticate.iter().map(ToString::to_string));
            lines.push(format!("given the login for the Redis servers: {sentinels}"));
        }
        if !self.introduce.is_empty() {
            lines.push("the Sentinels are introduced to each other".to_owned());
        }
        if !self.reset.is_empty() {
            let sentinels = list(&mut self.reset.iter().map(|introduction| introduction.to.to_string()));
            lines
                .push(format!("Sentinels that forget the nodes that are gone, up to 10 s each: {sentinels}"));
        }
        lines.join("\n")
    }

    /// The Redis servers whose role or login changes, and with it what their configuration file should say.
    pub fn changed_redis(&self) -> impl Iterator<Item = &Endpoint> {
        let promoted = self.promote.then_some(&self.system.master);
        let attached = self.attach.iter().map(|attach| &attach.node);
        promoted.into_iter().chain(attached).chain(&self.credentials).collect::<BTreeSet<_>>().into_iter()
    }
}

/// `REPLICAOF NO ONE`.
#[must_use]
pub fn promote() -> Command {
    command!("REPLICAOF", "NO", "ONE")
}

/// `CONFIG SET repl-diskless-sync-delay`, in seconds.
#[must_use]
pub fn set_diskless_delay(seconds: u32) -> Command {
    command!("CONFIG", "SET", DISKLESS_DELAY, seconds)
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "master {}: {}", self.system.master, self.because)?;
        let commands = self.commands();
        if commands.is_empty() {
            return write!(f, "nothing to do");
        }
        let width = commands.iter().map(|(node, _)| node.to_string().len()).max().unwrap_or_default();
        let lines: Vec<_> = commands
            .iter()
            .map(|(node, command)| format!("{:width$}  {}", node.to_string(), command.shown()))
            .collect();
        write!(f, "{}", lines.join("\n"))
    }
}

/// Decides.
pub fn plan(observed: &Observed, request: &Request) -> Decision {
    match Planner::new(observed, request).and_then(Planner::plan) {
        Ok(plan) => Decision::Proceed(Box::new(plan)),
        Err(Halt::Wait(wait)) => Decision::Wait(wait),
        Err(Halt::Refuse(refusal)) => Decision::Refuse(refusal),
    }
}

/// Why there is no plan.
enum Halt {
    Wait(Wait),
    Refuse(Refusal),
}

fn refuse<T>(reason: String, hint: impl Into<String>) -> Result<T, Halt> {
    Err(Halt::Refuse(Refusal { kind: RefusalKind::Unsafe, reason, hint: hint.into() }))
}

fn unusable<T>(reason: String, hint: impl Into<String>) -> Result<T, Halt> {
    Err(Halt::Refuse(Refusal { kind: RefusalKind::Unusable, reason, hint: hint.into() }))
}

fn wait<T>(wait: Wait) -> Result<T, Halt> {
    Err(Halt::Wait(wait))
}

/// A Redis server that can be used.
#[derive(Clone, Copy)]
struct Redis<'a> {
    endpoint: &'a Endpoint,
    state: &'a RedisState,
}

/// A Sentinel that can be used.
#[derive(Clone, Copy)]
struct Sentinel<'a> {
    endpoint: &'a Endpoint,
    state: &'a SentinelState,
}

/// The master that was chosen: its place in [`Planner::redis`], its address for the others, and why.
struct Choice {
    index: usize,
    announced: Endpoint,
    because: &'static str,
}

/// Whom a Sentinel is taken to know.
#[derive(Clone, Copy)]
enum Knows {
    WhatItSays,
    Nobody,
}

/// The usable nodes, in the order of registration.
struct Planner<'a> {
    request: &'a Request,
    redis: Vec<Redis<'a>>,
    sentinels: Vec<Sentinel<'a>>,
    /// Registered, but not usable now.
    absent_redis: Vec<&'a Endpoint>,
    left_out: Vec<(Endpoint, Unusable)>,
}

impl<'a> Planner<'a> {
    /// Sorts out what can be used; halts where that is not enough.
    fn new(observed: &'a Observed, request: &'a Request) -> Result<Self, Halt> {
        let redis: Vec<_> =
            usable(&observed.redis).map(|(endpoint, state)| Redis { endpoint, state }).collect();
        let sentinels: Vec<_> =
            usable(&observed.sentinels).map(|(endpoint, state)| Sentinel { endpoint, state }).collect();
        let left_out: Vec<_> = problems(&observed.redis)
            .chain(problems(&observed.sentinels))
            .map(|(e, u)| (e.clone(), u.clone()))
            .collect();

        if let Some((endpoint, problem)) = left_out.iter().find(|(_, problem)| !problem.may_pass()) {
            return unusable(format!("{endpoint} can't be used: {problem}"), problem.hint());
        }
        for (index, one) in redis.iter().enumerate() {
            if let Some(other) = redis[..index].iter().find(|other| other.state.run_id == one.state.run_id) {
                return refuse(
                    format!(
                        "{} and {} are one server (run_id {})",
                        other.endpoint, one.endpoint, one.state.run_id
                    ),
                    format!("forget one of the two registrations: DELETE /redis/{}", one.endpoint),
                );
            }
        }
        for (index, one) in sentinels.iter().enumerate() {
            let Some(other) = sentinels[..index].iter().find(|other| other.state.my_id == one.state.my_id)
            else {
                continue;
            };
            let nodes = format!("{} and {}", other.endpoint, one.endpoint);
            return if one.state.run_id == other.state.run_id {
                refuse(
                    format!("{nodes} are one Sentinel (id {})", one.state.my_id),
                    format!("forget one of the two registrations: DELETE /sentinel/{}", one.endpoint),
                )
            } else {
                refuse(
                    format!(
                        "{nodes} are two Sentinels with the same id {}: they count as one",
                        one.state.my_id
                    ),
                    format!(
                        "stop {}, remove the line `sentinel myid` from its configuration file, and start it again",
                        one.endpoint
                    ),
                )
            };
        }
        let Expected { redis: expected_redis, sentinels: expected_sentinels, .. } = request.expected;
        if redis.len() < expected_redis.into() || sentinels.len() < expected_sentinels.into() {
            return wait(Wait::NotEnough {
                usable_redis: redis.len(),
                expected_redis,
                usable_sentinels: sentinels.len(),
                expected_sentinels,
            });
        }
        if let Some(node) = redis.iter().find(|node| node.state.failing_over) {
            return wait(Wait::Failover(node.endpoint.clone()));
        }
        let absent_redis =
            observed.redis.iter().filter(|node| node.state.is_err()).map(|node| &node.endpoint).collect();
        Ok(Self { request, redis, sentinels, absent_redis, left_out })
    }

    fn plan(self) -> Result<Plan, Halt> {
        let choice = self.choose_master()?;
        let attach = self.attach(choice.index)?;
        let master = self.redis[choice.index];
        if choice.announced.host.parse::<std::net::IpAddr>().is_err()
            && let Some(sentinel) = self.sentinels.iter().find(|sentinel| !sentinel.state.resolves_hostnames)
        {
            return unusable(
                format!(
                    "the Sentinel {} takes addresses only, and the master is registered by the name {}",
                    sentinel.endpoint, choice.announced.host
                ),
                format!(
                    "redis-cli -h {} -p {} SENTINEL CONFIG SET resolve-hostnames yes",
                    sentinel.endpoint.host, sentinel.endpoint.port
                ),
            );
        }

        let deciding = self.sentinels.iter().min_by_key(|sentinel| &sentinel.state.my_id);
        let mut new: Vec<_> = self
            .sentinels
            .iter()
            .filter(|sentinel| sentinel.state.monitored.is_none())
            .map(|s| s.endpoint.clone())
            .collect();
        if let Some(first) =
            new.iter().position(|endpoint| deciding.is_some_and(|node| node.endpoint == endpoint))
        {
            new[..=first].rotate_right(1);
        }
        let configure =
            self.sentinels.iter().map(|sentinel| (sentinel.endpoint.clone(), self.options_to_set(sentinel)));
        let introduce = self
            .sentinels
            .iter()
            .map(|sentinel| self.introduction(sentinel, &choice.announced, Knows::WhatItSays));
        let forgetful = self.sentinels.iter().filter(|sentinel| self.counts_on_the_gone(sentinel));
        let reset =
            forgetful.map(|sentinel| self.introduction(sentinel, &choice.announced, Knows::Nobody)).collect();
        let promote = master.state.role != Role::Master;
        Ok(Plan {
            because: choice.because,
            promote,
            diskless_delay: master.state.diskless_delay.filter(|&seconds| seconds > 0 && !attach.is_empty()),
            credentials: self.credentials(),
            replication_login: self.request.replication_login.clone(),
            attach,
            authenticate: self.authenticate(),
            sentinel_login: self.request.sentinel_login.clone(),
            monitor: new,
            quorum: self.request.expected.quorum,
            configure: configure.filter(|(_, options)| !options.is_empty()).collect(),
            reset,
            introduce: introduce.filter(|introduction| !introduction.hellos.is_empty()).collect(),
            system: System {
                group: self.request.group.clone(),
                master: master.endpoint.clone(),
                master_announced: choice.announced,
                master_aliases: master.state.aliases.clone(),
                replicas: self.others(choice.index).map(|node| node.endpoint.clone()).collect(),
                replica_aliases: self.others(choice.index).map(|node| node.state.aliases.clone()).collect(),
                sentinels: self.sentinels.iter().map(|sentinel| sentinel.endpoint.clone()).collect(),
                sentinel_ids: self.sentinels.iter().map(|sentinel| sentinel.state.my_id.clone()).collect(),
            },
            left_out: self.left_out,
        })
    }

    fn choose_master(&self) -> Result<Choice, Halt> {
        if let Some(choice) = self.sentinels_word()? {
            return Ok(choice);
        }
        let (index, because) = if let Some(wanted) = &self.request.master {
            (self.wanted(wanted)?, "named by the operator")
        } else if let Some(index) = self.standing_replication()? {
            (index, "the others replicate it already")
        } else if let Some(index) = self.holder_of_data()? {
            (index, "it holds the data")
        } else {
            // `new` has made sure that there is one.
            (0, "the first to register")
        };
        Ok(Choice { index, announced: self.redis[index].state.announced.clone(), because })
    }

    /// The server that the operator named.
    fn wanted(&self, wanted: &Endpoint) -> Result<usize, Halt> {
        match self.position(wanted) {
            Some(index) => Ok(index),
            None => refuse(
                format!(
                    "{wanted}, the master that was asked for, is not among the usable registered Redis servers"
                ),
                "start it and let it register, or name another with --master",
            ),
        }
    }

    /// The first rule: what some Sentinel already monitors stands.
    fn sentinels_word(&self) -> Result<Option<Choice>, Halt> {
        let monitoring: Vec<(&Endpoint, &Monitored)> = self
            .sentinels
            .iter()
            .filter_map(|sentinel| Some((sentinel.endpoint, sentinel.state.monitored.as_ref()?)))
            .collect();
        let Some(&(witness, first)) = monitoring.first() else { return Ok(None) };

        if let Some((endpoint, _)) =
            monitoring.iter().find(|(_, monitored)| monitored.has_flag("failover_in_progress"))
        {
            return wait(Wait::Failover((*endpoint).clone()));
        }
        self.sentinels_agree(&monitoring)?;

        let named = &first.master;
        let has_replicas = monitoring.iter().any(|(_, monitored)| monitored.number("num-slaves") > 0);
        let Some(index) = self.position(named) else {
            if self.absent_redis.contains(&named) {
                return if has_replicas {
                    wait(Wait::MasterDown {
                        master: named.clone(),
                        named_by: witness.clone(),
                        problem: "does not answer",
                    })
                } else {
                    refuse(
                        format!(
                            "the Sentinel {witness} monitors {named}, which does not answer, and knows no replica to \
                             fail over to"
                        ),
                        format!(
                            "start {named} again; or, to give it up: SENTINEL REMOVE {} on each Sentinel",
                            self.request.group
                        ),
                    )
                };
            }
            // A server that does not answer can't say by which address the others know it: this may be the one.
            if !self.absent_redis.is_empty() {
                return wait(Wait::MasterDown {
                    master: named.clone(),
                    named_by: witness.clone(),
                    problem: "is none of the servers that answer",
                });
            }
            return refuse(
                format!(
                    "the Sentinel {witness} monitors {named}, which is not registered: it may belong to another system"
                ),
                format!(
                    "let {named} register if it belongs here; otherwise choose another --group, or SENTINEL REMOVE {} on \
                     each Sentinel",
                    self.request.group
                ),
            );
        };
        if let Some(wanted) = &self.request.master
            && self.position(wanted) != Some(index)
        {
            return refuse(
                format!("the Sentinel {witness} monitors {named}, and {wanted} was asked for"),
                format!(
                    "leave out --master, and move the role afterwards: SENTINEL FAILOVER {}",
                    self.request.group
                ),
            );
        }
        if let Some((endpoint, _)) = monitoring.iter().find(|(_, monitored)| monitored.has_flag("o_down")) {
            if !has_replicas {
                return refuse(
                    format!(
                        "{named}, the master, is down for the Sentinel {endpoint}, which knows no replica to fail over to"
                    ),
                    format!(
                        "make {named} reachable for the Sentinels; or, to give it up: SENTINEL REMOVE {} on each Sentinel",
                        self.request.group
                    ),
                );
            }
            return wait(Wait::MasterDown {
                master: named.clone(),
                named_by: (*endpoint).clone(),
                problem: "is down for the Sentinels",
            });
        }
        if let Role::Replica { of, .. } = &self.redis[index].state.role {
            // Before any failover only a second runner can have done that: this one completes what the Sentinels say.
            // After one, the Sentinels themselves are putting roles right.
            if monitoring.iter().any(|(_, monitored)| monitored.config_epoch() > 0) {
                return wait(Wait::MasterDown {
                    master: named.clone(),
                    named_by: witness.clone(),
                    problem: "is a replica",
                });
            }
            if self.position(of).is_none() {
                return refuse(
                    format!(
                        "{named}, which the Sentinel {witness} monitors, replicates {of}, which is not registered"
                    ),
                    format!("let {of} register, or detach {named} from it: REPLICAOF NO ONE"),
                );
            }
        }
        Ok(Some(Choice { index, announced: named.clone(), because: "the Sentinels monitor it already" }))
    }

    fn sentinels_agree(&self, monitoring: &[(&Endpoint, &Monitored)]) -> Result<(), Halt> {
        // A name and an address of one server are one answer.
        let answer = |monitored: &Monitored| match self.position(&monitored.master) {
            Some(index) => self.redis[index].endpoint.clone(),
            None => monitored.master.clone(),
        };
        let answers: BTreeSet<_> = monitoring.iter().map(|(_, monitored)| answer(monitored)).collect();
        if answers.len() < 2 {
            return Ok(());
        }
        let listed: Vec<_> = monitoring
            .iter()
            .map(|(endpoint, monitored)| format!("{endpoint} names {}", monitored.master))
            .collect();
        let listed = listed.join(", ");
        // The greater epoch wins by itself, as soon as those Sentinels hear of each other.
        let newest = monitoring.iter().map(|(_, monitored)| monitored.config_epoch()).max();
        let winners: BTreeSet<_> = monitoring
            .iter()
            .filter(|(_, monitored)| Some(monitored.config_epoch()) == newest)
            .map(|(_, monitored)| answer(monitored))
            .collect();
        if winners.len() == 1 {
            return wait(Wait::Converging(listed));
        }
        refuse(
            format!("the Sentinels monitor different masters, and will not agree by themselves: {listed}"),
            format!("on each Sentinel that names the wrong one: SENTINEL REMOVE {}", self.request.group),
        )
    }

    /// The second rule: a master that has registered replicas stays it.
    fn standing_replication(&self) -> Result<Option<usize>, Halt> {
        let mut roots = BTreeSet::new();
        for (index, node) in self.redis.iter().enumerate() {
            let Role::Replica { of, .. } = &node.state.role else { continue };
            if node.state.is_at(of) {
                continue;
            }
            if self.position(of).is_none() {
                // A server that does not answer can't say by which address the others know it: this may be the one.
                if !self.absent_redis.is_empty() {
                    return wait(Wait::MasterDown {
                        master: of.clone(),
                        named_by: node.endpoint.clone(),
                        problem: "is none of the servers that answer",
                    });
                }
                return refuse(
                    format!("{} replicates {of}, which is not registered", node.endpoint),
                    format!(
                        "let {of} register if it belongs here; otherwise detach {}: REPLICAOF NO ONE, which keeps its data",
                        node.endpoint
                    ),
                );
            }
            match self.root(index) {
                Some(root) => {
                    roots.insert(root);
                }
                // Without data there is nothing to choose between: it is what runners leave that race each other.
                None if self.redis.iter().all(|node| node.state.data.is_empty()) => {}
                None => {
                    return refuse(
                        format!("{} and {of} replicate each other: neither is a master", node.endpoint),
                        format!(
                            "make the one whose data counts the master: REPLICAOF NO ONE on {} or {of}",
                            node.endpoint
                        ),
                    );
                }
            }
        }
        let mut roots = roots.into_iter();
        match (roots.next(), roots.next()) {
            (root, None) => Ok(root),
            (Some(one), Some(other)) => refuse(
                format!(
                    "{} and {} both have replicas already",
                    self.redis[one].endpoint, self.redis[other].endpoint
                ),
                "name the master with --master, and say --discard-data if the other's data may be lost",
            ),
            (None, Some(_)) => unreachable!("an iterator that has ended stays so"),
        }
    }

    /// The third rule: what holds data becomes the master, so that nothing is lost.
    fn holder_of_data(&self) -> Result<Option<usize>, Halt> {
        let holders: Vec<usize> =
            (0..self.redis.len()).filter(|&index| !self.redis[index].state.data.is_empty()).collect();
        if holders.is_empty() {
            return Ok(None);
        }
        let has_all = |&index: &usize| {
            holders.iter().all(|&other| {
                other == index || self.redis[index].state.has_all_data_of(self.redis[other].state)
            })
        };
        match holders.iter().copied().find(has_all) {
            Some(index) => Ok(Some(index)),
            None => {
                let listed: Vec<_> = holders
                    .iter()
                    .map(|&index| {
                        format!("{} ({})", self.redis[index].endpoint, self.redis[index].state.data)
                    })
                    .collect();
                refuse(
                    format!("more than one server holds data that the others lack: {}", listed.join(", ")),
                    "name the one whose data counts with --master, and say --discard-data to lose the others'",
                )
            }
        }
    }

    /// Who is to be made a replica; a refusal where that would lose data.
    fn attach(&self, master: usize) -> Result<Vec<Attach>, Halt> {
        let chosen = self.redis[master];
        let mut attach = Vec::new();
        for (index, node) in self.redis.iter().enumerate().filter(|&(index, _)| index != master) {
            if matches!(&node.state.role, Role::Replica { of, .. } if chosen.state.is_at(of)) {
                continue;
            }
            let may_be_emptied = self.root(index) == Some(master)
                || chosen.state.has_all_data_of(node.state)
                || (self.request.discard_data && self.request.master.is_some());
            if !may_be_emptied {
                // An old master that came back: what it was given after the failover is lost by the Sentinels' decision.
                if let Some(named_by) = self.sentinel_that_has_as_replica(node) {
                    return wait(Wait::Returning { node: node.endpoint.clone(), named_by: named_by.clone() });
                }
                return refuse(
                    format!(
                        "{} holds {} that the master {} may not have: making it a replica would lose them",
                        node.endpoint, node.state.data, chosen.endpoint
                    ),
                    format!(
                        "save what you need from {0}; then forget it (DELETE /redis/{0}), empty it, or say --master {1} \
                         --discard-data",
                        node.endpoint, chosen.endpoint
                    ),
                );
            }
            attach.push(Attach { node: node.endpoint.clone(), data: node.state.data });
        }
        Ok(attach)
    }

    fn sentinel_that_has_as_replica(&self, node: &Redis<'_>) -> Option<&Endpoint> {
        let has = |sentinel: &&Sentinel<'_>| {
            let monitored = sentinel.state.monitored.as_ref();
            monitored.is_some_and(|monitored| {
                monitored.replicas.iter().any(|replica| node.state.is_at(&replica.endpoint))
            })
        };
        self.sentinels.iter().find(has).map(|sentinel| sentinel.endpoint)
    }

    /// The Redis servers that have another replication login than they should.
    fn credentials(&self) -> Vec<Endpoint> {
        let Some(wanted) = &self.request.replication_login else { return Vec::new() };
        // Where it can't be read, it is set once: before any Sentinel watches.
        let fresh = self.sentinels.iter().all(|sentinel| sentinel.state.monitored.is_none());
        let lacks = |node: &&Redis<'_>| match &node.state.replication_login {
            Some(login) => login.as_ref() != Some(wanted),
            None => fresh,
        };
        self.redis.iter().filter(lacks).map(|node| node.endpoint.clone()).collect()
    }

    /// The Sentinels that lack the login for the Redis servers. It can't be read back; but a Sentinel that has it has
    /// read the master's `INFO`.
    fn authenticate(&self) -> Vec<Endpoint> {
        if self.request.sentinel_login.is_none() {
            return Vec::new();
        }
        let lacks = |sentinel: &&Sentinel<'_>| match &sentinel.state.monitored {
            None => true,
            Some(monitored) => monitored.has_flag("s_down") || !monitored.has_read_master(),
        };
        self.sentinels.iter().filter(lacks).map(|sentinel| sentinel.endpoint.clone()).collect()
    }

    /// The options that a Sentinel lacks. What it monitors already keeps what it has, except for what was asked for.
    fn options_to_set(&self, sentinel: &Sentinel<'_>) -> BTreeMap<String, String> {
        let Some(monitored) = &sentinel.state.monitored else {
            // The quorum comes with `MONITOR`.
            return self.request.options.clone();
        };
        let mut options = self.request.wanted();
        options.retain(|name, value| monitored.fields.get(name) != Some(value));
        options
    }

    /// The hellos of the Sentinels that this one does not know: `ip,port,myid,current-epoch,group,master-ip,master-port,
    /// master-config-epoch`, which is what they would say themselves within two seconds.
    fn introduction(&self, to: &Sentinel<'_>, master: &Endpoint, knows: Knows) -> Introduction {
        let peers = match knows {
            Knows::WhatItSays => to.state.monitored.as_ref().map(|monitored| &monitored.peers),
            Knows::Nobody => None,
        };
        let known = |id: &str| peers.is_some_and(|peers| peers.contains_key(id));
        let strangers = self
            .sentinels
            .iter()
            .map(|sentinel| sentinel.state)
            .filter(|state| state.my_id != to.state.my_id && !known(&state.my_id));
        let hellos = strangers
            .map(|state| {
                let epoch = state.monitored.as_ref().map(Monitored::config_epoch).unwrap_or_default();
                format!(
                    "{},{},{},0,{},{},{},{epoch}",
                    state.announced.host,
                    state.announced.port,
                    state.my_id,
                    self.request.group,
                    master.host,
                    master.port
                )
            })
            .collect();
        Introduction { to: to.endpoint.clone(), hellos }
    }

    /// Whether a Sentinel counts on nodes that are not registered any more and that it has lost: as votes, as candidates.
    /// One that is registered and does not answer may come back, and may be known by any address.
    fn counts_on_the_gone(&self, sentinel: &Sentinel<'_>) -> bool {
        let Some(monitored) = &sentinel.state.monitored else { return false };
        let is_sentinel = |id: &str| self.sentinels.iter().any(|other| other.state.my_id == id);
        self.left_out.is_empty()
            && (monitored.peers.iter().any(|(id, peer)| peer.gone && !is_sentinel(id))
                || monitored.replicas.iter().any(|peer| peer.gone && self.position(&peer.endpoint).is_none()))
    }

    /// The usable Redis server that goes by this address.
    fn position(&self, endpoint: &Endpoint) -> Option<usize> {
        self.redis.iter().position(|node| node.state.is_at(endpoint))
    }

    /// The registered master at the end of the chain that a server replicates; `None` for a circle or a stranger.
    fn root(&self, start: usize) -> Option<usize> {
        let mut index = start;
        for _ in 0..self.redis.len() {
            match &self.redis[index].state.role {
                Role::Replica { of, .. } if !self.redis[index].state.is_at(of) => {
                    index = self.position(of)?;
                }
                // A replica of itself follows nobody: `REPLICAOF` to one's own address is answered with OK.
                Role::Master | Role::Replica { .. } => return Some(index),
            }
        }
        None
    }

    fn others(&self, master: usize) -> impl Iterator<Item = &Redis<'a>> {
        self.redis.iter().enumerate().filter(move |&(index, _)| index != master).map(|(_, node)| node)
    }
}

fn usable<T>(nodes: &[Node<T>]) -> impl Iterator<Item = (&Endpoint, &T)> {
    nodes.iter().filter_map(|node| Some((&node.endpoint, node.state.as_ref().ok()?)))
}

fn problems<T>(nodes: &[Node<T>]) -> impl Iterator<Item = (&Endpoint, &Unusable)> {
    nodes.iter().filter_map(|node| Some((&node.endpoint, node.state.as_ref().err()?)))
}

#[cfg(test)]
mod tests;
