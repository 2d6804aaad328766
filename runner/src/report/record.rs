//! The state of a run so far. Every event is recorded here, and the live view and the JSON document are made
//! from it. No I/O.

use std::time::Duration;

use broker_fn::api::{Expected, Kind};
use redis::Value;

use super::event::Event;
use crate::node::command::Command;
use crate::node::connection::PipelineAnswer;
use crate::node::endpoint::Endpoint;
use crate::node::info::Info;
use crate::node::replication::{Replica, Replication, Role, Transfer, online};
use crate::node::reply::text;
use crate::node::sentinel::NamedMaster;
use crate::node::unusable::Unusable;
use crate::system::judge::{Unmet, Unproved};
use crate::system::members::System;
use crate::system::plan::Plan;
use crate::system::timings::Phase;
use crate::words::{bytes, count};

/// The state of a run. All times are since its start.
#[derive(Debug, Clone, Default)]
pub struct Record {
    /// The group, as soon as the broker has sent it.
    pub group: Option<String>,
    /// How many nodes there must be.
    pub expected: Option<Expected>,
    /// The registered nodes: Redis servers first, each kind in the order of registration.
    pub nodes: Vec<NodeRecord>,
    pub deadline: Option<Duration>,
    pub waiting: Option<String>,
    /// What was wrong at the last verification.
    pub unmet: Vec<Unmet>,
    /// The last plan that contained a command, or else the first plan.
    pub plan: Option<Plan>,
    /// The commands that changed something or tried to.
    pub steps: Vec<SentCommand>,
    pub phase: Option<Phase>,
    /// How long each phase has taken, in the order of a run.
    pub phases: Vec<(Phase, Duration)>,
    /// What was wrong, but did not end the run.
    pub warnings: Vec<String>,
    pub system: Option<System>,
    /// The checks of the system that were impossible.
    pub unproved: Vec<Unproved>,
    /// Whether anything had to be changed.
    pub changed: bool,
    /// How long it took from the last registration to the verified system.
    pub took: Option<Duration>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeRecord {
    pub kind: Kind,
    pub endpoint: Endpoint,
    pub state: NodeStatus,
}

/// The state of a node, according to its last reply.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NodeStatus {
    /// The node was asked nothing yet.
    Registered,
    /// The node can't be used, for a while or permanently.
    Unusable(Unusable),
    /// The node can be used, and has no role yet.
    Ready,
    /// The server takes writes and has replicas.
    Master {
        /// Replicas that follow the stream.
        online: usize,
        /// Replicas that are connected, in any state.
        replicas: usize,
    },
    /// The server becomes a replica. Its link to the master is not up yet.
    Syncing(Transfer),
    Replica {
        of: Endpoint,
    },
    /// A Sentinel that monitors the group.
    Monitoring {
        master: Endpoint,
        replicas: u64,
        others: u64,
    },
}

/// A command that changes something.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SentCommand {
    pub at: Duration,
    pub node: Endpoint,
    /// As a person would type it, without secrets.
    pub command: String,
    pub reply: Result<(), String>,
}

impl Record {
    /// Notes an event that happened at that time.
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
                    let status = node.state.as_ref().ok().map(|state| {
                        // The progress of a transfer comes with later replies.
                        redis_status(&state.role, &state.replicas, Transfer::default())
                    });
                    self.observed(Kind::Redis, &node.endpoint, status, node.state.as_ref().err());
                }
                for node in &observed.sentinels {
                    let status = node.state.as_ref().ok().map(|state| match &state.monitored {
                        None => NodeStatus::Ready,
                        Some(monitored) => sentinel_status(&monitored.master),
                    });
                    self.observed(Kind::Sentinel, &node.endpoint, status, node.state.as_ref().err());
                }
            }
            Event::WaitingFor { what, .. } => self.waiting = Some(what.to_string()),
            Event::NoBroker(error) => self.waiting = Some(error.to_string()),
            Event::Unmet(unmet) | Event::Found(unmet) => self.unmet = unmet.to_vec(),
            Event::Unproved(unproved) => self.unproved = unproved.to_vec(),
            Event::Plan(plan) => {
                self.waiting = None;
                self.changed |= !plan.is_empty();
                if !plan.is_empty() || self.plan.is_none() {
                    self.plan = Some(plan.clone());
                }
            }
            Event::Answered(answer) => self.answered(at, answer),
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

    /// How many expected nodes of a kind are missing.
    #[must_use]
    pub fn missing(&self, kind: Kind) -> usize {
        let expected = self.expected.map_or(0, |expected| match kind {
            Kind::Redis => expected.redis,
            Kind::Sentinel => expected.sentinels,
        });
        usize::from(expected).saturating_sub(self.nodes.iter().filter(|node| node.kind == kind).count())
    }

    /// What was wrong on that node at the last verification.
    #[must_use]
    pub fn unmet_on(&self, endpoint: &Endpoint) -> Option<&str> {
        self.unmet.iter().find(|unmet| unmet.node == *endpoint).map(|unmet| unmet.what.as_str())
    }

    fn or_new(&self, kind: Kind, endpoint: Endpoint) -> NodeRecord {
        let known = self.nodes.iter().find(|node| node.kind == kind && node.endpoint == endpoint);
        known.cloned().unwrap_or(NodeRecord { kind, endpoint, state: NodeStatus::Registered })
    }

    fn observed(
        &mut self,
        kind: Kind,
        endpoint: &Endpoint,
        state: Option<NodeStatus>,
        problem: Option<&Unusable>,
    ) {
        let state = state.or_else(|| problem.cloned().map(NodeStatus::Unusable));
        let node = self.nodes.iter_mut().find(|node| node.kind == kind && node.endpoint == *endpoint);
        if let (Some(node), Some(state)) = (node, state) {
            node.state = state;
        }
    }

    /// The run sends no commands only for display. So this reads the replies to the commands that the run
    /// needs.
    fn answered(&mut self, at: Duration, answer: &PipelineAnswer<'_>) {
        let PipelineAnswer { kind, node, commands, replies, is_rehearsal } = *answer;
        if is_rehearsal {
            return;
        }
        for (command, reply) in commands.iter().zip(replies) {
            if command.changes() {
                self.steps.push(SentCommand {
                    at,
                    node: node.clone(),
                    command: command.shown(),
                    reply: reply.as_ref().map(drop).map_err(ToString::to_string),
                });
            }
            if let Ok(value) = reply {
                self.observed(kind, node, passing_status(kind, command, value), None);
            }
        }
    }
}

/// The state of a node according to a reply. Only replies that change while a plan is carried out are read.
/// Everything else comes with [`Event::Observed`].
fn passing_status(kind: Kind, command: &Command, value: &Value) -> Option<NodeStatus> {
    match (kind, command.words()) {
        (Kind::Redis, [info, section]) if info == "INFO" && section == "replication" => {
            let Replication { role, replicas, transfer, .. } =
                Replication::parse(&Info::parse(&text(value)))?;
            Some(redis_status(&role, &replicas, transfer))
        }
        (Kind::Sentinel, [sentinel, master, _]) if sentinel == "SENTINEL" && master == "MASTER" => {
            Some(sentinel_status(&NamedMaster::parse(value)))
        }
        _ => None,
    }
}

fn redis_status(role: &Role, replicas: &[Replica], transfer: Transfer) -> NodeStatus {
    match role {
        Role::Master if replicas.is_empty() => NodeStatus::Ready,
        Role::Held => NodeStatus::Ready,
        Role::Master => NodeStatus::Master { online: online(replicas), replicas: replicas.len() },
        Role::Replica { of, link_up: true } => NodeStatus::Replica { of: of.clone() },
        Role::Replica { .. } => NodeStatus::Syncing(transfer),
    }
}

fn sentinel_status(master: &NamedMaster) -> NodeStatus {
    NodeStatus::Monitoring {
        master: master.endpoint.clone(),
        replicas: master.replicas(),
        others: master.other_sentinels(),
    }
}

impl NodeStatus {
    #[must_use]
    pub fn text(&self) -> String {
        match self {
            NodeStatus::Registered => "registered".to_owned(),
            NodeStatus::Unusable(problem) => problem.to_string(),
            NodeStatus::Ready => "ready".to_owned(),
            NodeStatus::Master { online, replicas } => {
                format!("master, {online} of {} online", count(replicas, "replica"))
            }
            NodeStatus::Syncing(transfer) => match (transfer.read, transfer.total) {
                (None, None) => "waiting for the master's data".to_owned(),
                (Some(read), None) => format!("syncing, {} so far", bytes(read)),
                (read, Some(total)) => {
                    format!("syncing, {} of {}", bytes(read.unwrap_or_default()), bytes(total))
                }
            },
            NodeStatus::Replica { of } => format!("replica of {of}"),
            NodeStatus::Monitoring { master, replicas, others } => {
                format!("monitoring {master} ({}, {})", count(replicas, "replica"), count(others, "other"))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_replica_that_syncs_says_how_far_it_is() {
        let state = |fields: &str| {
            let info = format!("role:slave\r\nmaster_link_status:down\r\n{fields}");
            let value = Value::BulkString(info.into_bytes());
            let command = Command::new(["INFO", "replication"]);
            passing_status(Kind::Redis, &command, &value).unwrap().text()
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
