//! What is known of a run so far: every event is noted here, and the live view and the JSON document are drawn from it.
//! No I/O.

use std::time::Duration;

use broker_fn::api::{Expected, Kind};
use redis::Value;

use crate::connection::{Command, Reply};
use crate::endpoint::Endpoint;
use crate::observe::Unusable;
use crate::plan::{Plan, System};
use crate::redis::{Info, replicas, text};
use crate::report::Event;
use crate::sentinel::fields;
use crate::timings::Phase;
use crate::verify::Unmet;

/// A run as it stands. All times count from its start.
#[derive(Debug, Clone, Default)]
pub struct Record {
    /// The group, once the broker has said which.
    pub group: Option<String>,
    /// How many nodes there must be.
    pub expected: Option<Expected>,
    /// The registered nodes: Redis servers first, each kind in the order of registration.
    pub nodes: Vec<Node>,
    /// When the time is up.
    pub deadline: Option<Duration>,
    /// What is waited for.
    pub waiting: Option<String>,
    /// What was not as it should be when the system was last verified.
    pub unmet: Vec<Unmet>,
    /// What was planned last, where there was anything to do.
    pub plan: Option<Plan>,
    /// The commands that changed something, or were to.
    pub steps: Vec<Step>,
    /// What is being done.
    pub phase: Option<Phase>,
    /// How long each part of the work has taken, in the order in which they come in a run.
    pub phases: Vec<(Phase, Duration)>,
    /// What was not as it should be, and did not end the run.
    pub warnings: Vec<String>,
    /// The system that was verified.
    pub system: Option<System>,
    /// Whether anything had to be changed.
    pub changed: bool,
    /// How long the nodes took from the last registration to the verified system.
    pub took: Option<Duration>,
}

/// A registered node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// What it registered as.
    pub kind: Kind,
    /// Where it registered.
    pub endpoint: Endpoint,
    /// What it is now.
    pub state: State,
}

/// What a node is, as far as its last answer tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum State {
    /// Nothing was asked of it yet.
    Registered,
    /// It can't be used, for now or for good.
    Unusable(Unusable),
    /// It can be used, and has no part yet.
    Ready,
    /// It takes writes, and others replicate it.
    Master {
        /// Replicas that follow the stream.
        online: usize,
        /// Replicas that are connected, in whatever state.
        replicas: usize,
    },
    /// It is to be a replica, and its link to the master is not up yet.
    Syncing {
        /// Bytes of the master's data set that have arrived, where the master has begun to send it.
        read: Option<u64>,
        /// Bytes that there are in all, where the master knows: what is sent without a file on disk has no size.
        total: Option<u64>,
    },
    /// It follows its master.
    Replica {
        /// Whom.
        of: Endpoint,
    },
    /// A Sentinel that monitors the group.
    Monitoring {
        /// The master that it names.
        master: Endpoint,
        /// How many replicas it knows.
        replicas: u64,
        /// How many other Sentinels.
        others: u64,
    },
}

/// A command that changes something.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// When it was answered.
    pub at: Duration,
    /// To whom.
    pub node: Endpoint,
    /// As a person would type it, without secrets.
    pub command: String,
    /// What the node answered.
    pub reply: Result<(), String>,
}

impl Record {
    /// Notes what has happened at that time.
    pub fn note(&mut self, at: Duration, event: &Event<'_>) {
        match *event {
            Event::Deadline(within) => self.deadline = Some(at + within),
            Event::Roster { roster, expected } => {
                self.group = Some(roster.group.to_string());
                self.expected = Some(expected);
                let redis = roster.redis.iter().map(|registration| (Kind::Redis, registration));
                let sentinels = roster.sentinels.iter().map(|registration| (Kind::Sentinel, registration));
                let registered = redis.chain(sentinels).map(|(kind, r)| (kind, Endpoint::from(&r.addr)));
                self.nodes = registered.map(|(kind, endpoint)| self.or_new(kind, endpoint)).collect();
            }
            Event::Observed(observed) => {
                for node in &observed.redis {
                    let of = node.state.as_ref().ok().map(|state| match &state.role {
                        crate::redis::Role::Master if state.replicas.is_empty() => State::Ready,
                        crate::redis::Role::Master => State::Master {
                            online: state.replicas.iter().filter(|replica| replica.online).count(),
                            replicas: state.replicas.len(),
                        },
                        crate::redis::Role::Replica { of, link_up: true } => {
                            State::Replica { of: of.clone() }
                        }
                        crate::redis::Role::Replica { .. } => State::Syncing { read: None, total: None },
                    });
                    self.observed(Kind::Redis, &node.endpoint, of, node.state.as_ref().err());
                }
                for node in &observed.sentinels {
                    let state = node.state.as_ref().ok().map(|state| match &state.monitored {
                        None => State::Ready,
                        Some(monitored) => State::Monitoring {
                            master: monitored.master.clone(),
                            replicas: monitored.number("num-slaves"),
                            others: monitored.number("num-other-sentinels"),
                        },
                    });
                    self.observed(Kind::Sentinel, &node.endpoint, state, node.state.as_ref().err());
                }
            }
            Event::WaitingFor { what, .. } => self.waiting = Some(what.to_string()),
            Event::NoBroker(error) => self.waiting = Some(error.to_string()),
            Event::Unmet(unmet) | Event::Found(unmet) => self.unmet = unmet.to_vec(),
            Event::Plan(plan) => {
                self.waiting = None;
                self.changed |= !plan.is_empty();
                if !plan.is_empty() || self.plan.is_none() {
                    self.plan = Some(plan.clone());
                }
            }
            Event::Answered { kind, node, commands, replies } => {
                self.answered(at, kind, node, commands, replies);
            }
            Event::Lost { kind, node, error } => {
                let lost = Unusable::from_connection(kind, error.clone());
                self.observed(kind, node, None, Some(&lost));
            }
            Event::Warning(what) => self.warnings.push(what.to_owned()),
            Event::Verified { system, took, .. } => {
                self.waiting = None;
                self.unmet.clear();
                self.system = Some(system.clone());
                self.took = Some(took);
            }
            Event::Registered { .. } | Event::Announced { .. } | Event::Note(_) => {}
        }
    }

    /// How many expected nodes of a kind have yet to register.
    #[must_use]
    pub fn missing(&self, kind: Kind) -> usize {
        let expected = self.expected.map_or(0, |expected| match kind {
            Kind::Redis => expected.redis,
            Kind::Sentinel => expected.sentinels,
        });
        usize::from(expected).saturating_sub(self.nodes.iter().filter(|node| node.kind == kind).count())
    }

    /// What was not as it should be on that node when the system was last verified.
    #[must_use]
    pub fn unmet_on(&self, endpoint: &Endpoint) -> Option<&str> {
        self.unmet.iter().find(|unmet| unmet.node == *endpoint).map(|unmet| unmet.what.as_str())
    }

    fn or_new(&self, kind: Kind, endpoint: Endpoint) -> Node {
        let known = self.nodes.iter().find(|node| node.kind == kind && node.endpoint == endpoint);
        known.cloned().unwrap_or(Node { kind, endpoint, state: State::Registered })
    }

    fn observed(
        &mut self,
        kind: Kind,
        endpoint: &Endpoint,
        state: Option<State>,
        problem: Option<&Unusable>,
    ) {
        let state = state.or_else(|| problem.cloned().map(State::Unusable));
        let node = self.nodes.iter_mut().find(|node| node.kind == kind && node.endpoint == *endpoint);
        if let (Some(node), Some(state)) = (node, state) {
            node.state = state;
        }
    }

    /// The nodes are asked for what the run needs to know, and never for the sake of being shown: what passes by is read.
    fn answered(
        &mut self,
        at: Duration,
        kind: Kind,
        node: &Endpoint,
        commands: &[Command],
        replies: &[Reply],
    ) {
        for (command, reply) in commands.iter().zip(replies) {
            if command.changes() {
                self.steps.push(Step {
                    at,
                    node: node.clone(),
                    command: command.shown(),
                    reply: reply.as_ref().map(drop).map_err(ToString::to_string),
                });
            }
            let Ok(value) = reply else { continue };
            let state = match (kind, command.words()) {
                // Only what changes while a plan is carried out; all else comes with what is observed.
                (Kind::Redis, [info, section]) if info == "INFO" && section == "replication" => {
                    replication(&Info::parse(&text(value)))
                }
                (Kind::Sentinel, [sentinel, master, _]) if sentinel == "SENTINEL" && master == "MASTER" => {
                    monitoring(value)
                }
                _ => continue,
            };
            self.observed(kind, node, Some(state), None);
        }
    }
}

/// What a server's `INFO replication` says of it.
fn replication(info: &Info) -> State {
    if info.get("role") != Some("slave") {
        let replicas = replicas(info);
        return match replicas.len() {
            0 => State::Ready,
            connected => State::Master {
                online: replicas.iter().filter(|replica| replica.online).count(),
                replicas: connected,
            },
        };
    }
    if info.get("master_link_status") == Some("up") {
        return State::Replica {
            of: Endpoint::new(
                info.get("master_host").unwrap_or_default(),
                info.number("master_port").unwrap_or_default(),
            ),
        };
    }
    // Before the transfer begins, and where its size is not known, these are missing, 0 or -1.
    let number = |name: &str| info.number::<i64>(name).and_then(|number| u64::try_from(number).ok());
    let total = number("master_sync_total_bytes").filter(|&total| total > 0);
    let left = number("master_sync_left_bytes");
    let read = match (total, left) {
        (Some(total), Some(left)) => Some(total.saturating_sub(left)),
        _ => number("master_sync_read_bytes").filter(|&read| read > 0),
    };
    State::Syncing { read, total }
}

/// What a Sentinel's `SENTINEL MASTER` says of it.
fn monitoring(value: &Value) -> State {
    let fields = fields(value);
    let number =
        |name: &str| fields.get(name).and_then(|number| number.parse::<u64>().ok()).unwrap_or_default();
    State::Monitoring {
        master: Endpoint::new(
            fields.get("ip").cloned().unwrap_or_default(),
            fields.get("port").and_then(|port| port.parse().ok()).unwrap_or_default(),
        ),
        replicas: number("num-slaves"),
        others: number("num-other-sentinels"),
    }
}

impl State {
    /// One word for it: what a machine tells states apart by.
    #[must_use]
    pub fn word(&self) -> &'static str {
        match self {
            State::Registered => "registered",
            State::Unusable(Unusable::Unreachable(_)) => "unreachable",
            State::Unusable(Unusable::Loading) => "loading",
            State::Unusable(_) => "unusable",
            State::Ready => "ready",
            State::Master { .. } => "master",
            State::Syncing { .. } => "syncing",
            State::Replica { .. } => "replica",
            State::Monitoring { .. } => "monitoring",
        }
    }

    /// What a person is told.
    #[must_use]
    pub fn text(&self) -> String {
        match self {
            State::Registered => "registered".to_owned(),
            State::Unusable(problem) => problem.to_string(),
            State::Ready => "ready".to_owned(),
            State::Master { online, replicas } => format!("master, {online} of {replicas} replicas online"),
            State::Syncing { read: None, total: None } => "waiting for the master's data".to_owned(),
            State::Syncing { read: Some(read), total: None } => format!("syncing, {} so far", bytes(*read)),
            State::Syncing { read, total: Some(total) } => {
                format!("syncing, {} of {}", bytes(read.unwrap_or_default()), bytes(*total))
            }
            State::Replica { of } => format!("replica of {of}"),
            State::Monitoring { master, replicas, others } => {
                format!("monitoring {master} ({replicas} replicas, {others} others)")
            }
        }
    }
}

/// A size as people say it.
#[must_use]
pub fn bytes(bytes: u64) -> String {
    indicatif::HumanBytes(bytes).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_replica_that_syncs_says_how_far_it_is() {
        let state = |fields: &str| {
            replication(&Info::parse(&format!("role:slave\r\nmaster_link_status:down\r\n{fields}"))).text()
        };
        assert_eq!(state(""), "waiting for the master's data");
        assert_eq!(
            state(
                "master_sync_in_progress:1\r\nmaster_sync_total_bytes:4194304\r\nmaster_sync_left_bytes:1048576"
            ),
            "syncing, 3.00 MiB of 4.00 MiB"
        );
        assert_eq!(
            state("master_sync_total_bytes:0\r\nmaster_sync_read_bytes:2048\r\nmaster_sync_left_bytes:-2048"),
            "syncing, 2.00 KiB so far"
        );
    }
}
