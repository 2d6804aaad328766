//! How a run can fail: what happened, and what to do about it.

use std::time::Duration;

use crate::broker::BrokerError;
use crate::node::endpoint::Endpoint;
use crate::node::unusable::Unusable;
use crate::outcome::{OutcomeWord, exit_code};
use crate::system::apply::Setback;
use crate::system::decide::{Refusal, RefusalKind, Wait};
use crate::system::judge::Unmet;
use crate::words::count;

/// Why a run did not end in a verified system.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The flags contradict each other, or what the broker expects. Contains everything that is wrong with
    /// them.
    #[error("{}", .0.join("\n"))]
    Usage(Vec<String>),
    /// What the run waited for did not happen.
    #[error("out of time after {}: {waiting_for}", humantime::format_duration(*.after))]
    OutOfTime {
        /// How long the run was allowed to take.
        after: Duration,
        /// The nodes that were missing at the end.
        waiting_for: Box<WaitingFor>,
        /// The registered nodes that can't be used, and why.
        nodes: Vec<(Endpoint, Unusable)>,
    },
    /// Nothing was done, because it would do harm or could not work.
    #[error("{}{}", if .0.kind == RefusalKind::Unsafe { "refused: " } else { "" }, .0.reason)]
    Refused(Refusal),
    /// A node failed to do its part, and a retry would not help.
    #[error("{node}: {what}")]
    Unusable { node: Endpoint, what: String, hint: String },
    /// The system is not as it should be at the end of a run that may have changed it.
    #[error(
        "not verified after {}; changes of this run are not undone",
        humantime::format_duration(*.after)
    )]
    NotVerified {
        /// How long the run was allowed to take.
        after: Duration,
        unmet: Vec<Unmet>,
    },
    /// A look at the system found that something has to happen first. A look changes nothing.
    #[error("not verified: {waiting_for}")]
    NotReady {
        waiting_for: Box<WaitingFor>,
        /// The registered nodes that can't be used, and why.
        nodes: Vec<(Endpoint, Unusable)>,
    },
    /// A look at the system found that it is not as it should be. A look changes nothing.
    #[error("not verified: {}", match commands {
        0 => "some checks failed".to_owned(),
        1 => "one command has yet to be sent".to_owned(),
        commands => format!("{commands} commands have yet to be sent"),
    })]
    NotAsItShouldBe {
        /// How many commands a bootstrap would send.
        commands: usize,
        unmet: Vec<Unmet>,
    },
    /// The broker gave no roster.
    #[error("{0}")]
    Broker(BrokerError),
    /// `join` did not find out how its server has to start.
    #[error("the server was not started within --patience {}: {waiting_for}", humantime::format_duration(*.after))]
    OutOfPatience {
        /// How long `join` was to wait.
        after: Duration,
        waiting_for: String,
        hint: String,
    },
    /// A `roll` stopped before its end.
    #[error("stopped at {at}: {cause}")]
    Halted {
        at: Endpoint,
        /// The servers that are done.
        done: Vec<Endpoint>,
        cause: Box<Failure>,
    },
    /// A person or a supervisor stopped the run.
    #[error("stopped by {}", signal_name(*.0))]
    Stopped(u8),
    /// A file can't be used as it is.
    #[error("{what}")]
    File { what: String, hint: String },
    /// The operating system refuses something.
    #[error("{0:#}")]
    Other(anyhow::Error),
}

/// What a run was waiting for when its time was up.
#[derive(Debug, thiserror::Error)]
pub enum WaitingFor {
    #[error("still to register: {}", missing(*redis, *sentinels))]
    Registrations { redis: u16, sentinels: u16 },
    /// Something that the plan depends on.
    #[error("{0}")]
    Nodes(Wait),
    /// A node that changed while the plan was carried out.
    #[error("{0}")]
    Setback(Setback),
    /// Registered nodes that will be left out if they do not come up soon.
    #[error(
        "some registered nodes can't be used: waiting up to 5 s (a quarter of --timeout if that is less) \
         for these nodes before continuing without them"
    )]
    Grace,
    #[error("no time was left to carry out the plan; none of its commands was sent")]
    Time,
}

fn missing(redis: u16, sentinels: u16) -> String {
    let missing = [(redis, "Redis server"), (sentinels, "Sentinel")].into_iter();
    let missing = missing.filter(|(number, _)| *number > 0).map(|(number, one)| count(number, one));
    missing.collect::<Vec<_>>().join(" and ")
}

impl WaitingFor {
    /// Of the nodes that can't be used, the first one that the run waits for.
    fn node<'a>(&self, nodes: &'a [(Endpoint, Unusable)]) -> Option<&'a (Endpoint, Unusable)> {
        let of_this = |awaited: &Endpoint| nodes.iter().find(|(node, _)| node == awaited);
        match self {
            WaitingFor::Registrations { .. } | WaitingFor::Grace => nodes.first(),
            WaitingFor::Nodes(wait) => match wait {
                Wait::NotEnough { .. } => nodes.first(),
                Wait::MasterDown { master: node, .. } | Wait::Loading(node) | Wait::Replaced { node, .. } => {
                    of_this(node)
                }
                Wait::Failover(_) | Wait::Returning { .. } | Wait::Watched { .. } | Wait::Converging(_) => {
                    None
                }
            },
            WaitingFor::Setback(Setback::Changed { node, .. } | Setback::Unusable { node, .. }) => {
                of_this(node)
            }
            WaitingFor::Time => None,
        }
    }
}

/// The hint of a run that has waited in vain: about the node that it has waited for, if that node can't be
/// used.
fn how_to_end_the_wait(waiting_for: &WaitingFor, nodes: &[(Endpoint, Unusable)], otherwise: &str) -> String {
    let about = waiting_for.node(nodes).map(|(node, problem)| format!("{node}: {}", problem.hint()));
    match waiting_for {
        WaitingFor::Registrations { .. } => {
            let register = "register the missing nodes with `sentinel-runner join` or `sentinel-runner \
                 register`, then run this again";
            about.map_or_else(|| register.to_owned(), |about| format!("{register}; {about}"))
        }
        _ => about.unwrap_or_else(|| otherwise.to_owned()),
    }
}

/// The first hint among the checks that failed.
fn first_hint(unmet: &[Unmet]) -> Option<String> {
    unmet.iter().find_map(|unmet| unmet.hint.clone())
}

/// The hint of a `roll` that stopped. It names the servers that are done, so that they are not rolled again.
fn how_to_go_on(done: &[Endpoint], cause: &Failure) -> String {
    let list = done.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
    let again = if done.is_empty() {
        "run this again; no server is done yet".to_owned()
    } else {
        format!("run this again with --done {list}")
    };
    match cause {
        Failure::Stopped(_) => again,
        cause => cause.hint().map_or_else(|| again.clone(), |hint| format!("{hint}; then {again}")),
    }
}

fn signal_name(code: u8) -> String {
    match code {
        exit_code::INTERRUPTED => "SIGINT".into(),
        exit_code::TERMINATED => "SIGTERM".into(),
        code => format!("signal {}", code.saturating_sub(128)),
    }
}

/// What was found on a node.
#[derive(Debug)]
pub struct Finding<'a> {
    pub node: &'a Endpoint,
    pub what: String,
    pub hint: Option<String>,
}

impl Failure {
    pub fn exit_code(&self) -> u8 {
        match (self.outcome(), self) {
            (_, Failure::Halted { cause, .. }) => cause.exit_code(),
            (OutcomeWord::Usage, _) => exit_code::USAGE,
            (OutcomeWord::Incomplete, _) => exit_code::OUT_OF_TIME,
            (OutcomeWord::Refused, _) => exit_code::REFUSED,
            (OutcomeWord::Unusable, _) => exit_code::UNUSABLE,
            (OutcomeWord::NotVerified, _) => exit_code::NOT_VERIFIED,
            (OutcomeWord::Broker, _) => exit_code::BROKER,
            (_, Failure::Stopped(code)) => *code,
            _ => exit_code::OTHER,
        }
    }

    /// The result, in one word.
    pub fn outcome(&self) -> OutcomeWord {
        match self {
            Failure::Usage(_) => OutcomeWord::Usage,
            Failure::OutOfTime { waiting_for, .. } | Failure::NotReady { waiting_for, .. } => {
                match **waiting_for {
                    WaitingFor::Registrations { .. } | WaitingFor::Grace | WaitingFor::Time => {
                        OutcomeWord::Incomplete
                    }
                    WaitingFor::Nodes(Wait::Converging(_)) => OutcomeWord::Refused,
                    WaitingFor::Nodes(Wait::Replaced { .. }) => OutcomeWord::Unusable,
                    WaitingFor::Nodes(_) => OutcomeWord::Incomplete,
                    WaitingFor::Setback(_) => OutcomeWord::NotVerified,
                }
            }
            Failure::OutOfPatience { .. } => OutcomeWord::Incomplete,
            Failure::Refused(Refusal { kind: RefusalKind::Unsafe, .. }) => OutcomeWord::Refused,
            Failure::Refused(Refusal { kind: RefusalKind::Usage, .. }) => OutcomeWord::Usage,
            Failure::Refused(Refusal { kind: RefusalKind::Unusable, .. }) | Failure::Unusable { .. } => {
                OutcomeWord::Unusable
            }
            Failure::NotVerified { .. } | Failure::NotAsItShouldBe { .. } => OutcomeWord::NotVerified,
            Failure::Broker(_) => OutcomeWord::Broker,
            Failure::Stopped(_) => OutcomeWord::Stopped,
            Failure::Halted { cause, .. } => cause.outcome(),
            Failure::File { .. } | Failure::Other(_) => OutcomeWord::Failed,
        }
    }

    /// What was found, node by node.
    pub fn nodes(&self) -> Vec<Finding<'_>> {
        match self {
            Failure::OutOfTime { nodes, .. } | Failure::NotReady { nodes, .. } => nodes
                .iter()
                .map(|(node, problem)| Finding {
                    node,
                    what: problem.to_string(),
                    hint: Some(problem.hint()),
                })
                .collect(),
            Failure::NotVerified { unmet, .. } | Failure::NotAsItShouldBe { unmet, .. } => unmet
                .iter()
                .map(|Unmet { node, what, hint }| Finding { node, what: what.clone(), hint: hint.clone() })
                .collect(),
            Failure::Halted { cause, .. } => cause.nodes(),
            Failure::Usage(_)
            | Failure::Refused(_)
            | Failure::Unusable { .. }
            | Failure::Broker(_)
            | Failure::OutOfPatience { .. }
            | Failure::Stopped(_)
            | Failure::File { .. }
            | Failure::Other(_) => Vec::new(),
        }
    }

    /// What was found, a line for each node.
    pub fn details(&self) -> Vec<String> {
        self.nodes().into_iter().map(|Finding { node, what, .. }| format!("{node}: {what}")).collect()
    }

    /// What to do about the failure, if the message does not contain this already.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        match self {
            Failure::Usage(_) => Some(
                "`sentinel-runner --help` lists the commands, `sentinel-runner COMMAND --help` lists the \
                 flags"
                    .into(),
            ),
            Failure::OutOfPatience { hint, .. } => Some(hint.clone()),
            Failure::OutOfTime { nodes, waiting_for, .. } => {
                Some(how_to_end_the_wait(waiting_for, nodes, "run this again; it continues where it stopped"))
            }
            Failure::NotReady { nodes, waiting_for } => {
                Some(how_to_end_the_wait(waiting_for, nodes, "wait a moment, then run this again"))
            }
            Failure::Refused(refusal) => Some(refusal.hint.clone()),
            Failure::Unusable { hint, .. } | Failure::File { hint, .. } => Some(hint.clone()),
            Failure::NotVerified { unmet, .. } => Some(first_hint(unmet).unwrap_or_else(|| {
                "fix the nodes above, or deregister nodes that are gone permanently (`sentinel-runner \
                 deregister`), then run this again"
                    .into()
            })),
            Failure::NotAsItShouldBe { commands: 0, unmet } => Some(first_hint(unmet).unwrap_or_else(|| {
                "fix the nodes above, or run `sentinel-runner bootstrap`, which waits until the system \
                 is verified"
                    .into()
            })),
            Failure::NotAsItShouldBe { .. } => Some(
                "`sentinel-runner bootstrap --dry-run` shows the commands, and `sentinel-runner \
                 bootstrap` sends them"
                    .into(),
            ),
            Failure::Halted { done, cause, .. } => Some(how_to_go_on(done, cause)),
            Failure::Stopped(_) => Some("run this again; it continues where it stopped".into()),
            Failure::Broker(error) => Some(error.hint()),
            Failure::Other(_) => None,
        }
    }
}
