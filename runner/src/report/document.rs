//! `--output json`: one document, however the command ends. `docs/output.schema.json` and `docs/output.md`
//! are generated from these types.

use std::time::Duration;

use broker_fn::api::Kind;
use serde::Serialize;

use super::record::{NodeRecord, NodeStatus, Record, SentCommand};
use crate::error::{Failure, Finding};
use crate::node::unusable::Unusable;
use crate::outcome::{OutcomeWord, exit_code};
use crate::system::judge::Unproved;
use crate::system::plan::Plan;
use crate::system::timings::Phase;

/// Grows when a field is removed or changes its meaning; a new field or a new word does not change it.
pub const VERSION: u32 = 1;

/// The result of a command that has succeeded.
#[derive(Debug)]
pub enum Ending {
    /// The system is verified. The record contains whether anything was changed.
    Bootstrapped,
    /// A dry run.
    Planned(Box<Plan>),
    /// The system was looked at, and is verified.
    Verified,
    /// A failover was made, and the system is verified again.
    FailedOver(FailoverJson),
    /// The command was run for every Redis server, and the system is verified.
    Rolled(RollJson),
    /// An ACL user has another password, and the system is verified with it.
    Rotated(RotationJson),
    /// A node has left, and the system is verified without it.
    Left(RegistrationJson),
    /// A node answers, and has the requested role and state.
    Probed,
    /// A node was registered.
    Registered(RegistrationJson),
    /// A node was deregistered.
    Deregistered(RegistrationJson),
    /// A dry run of `join`.
    Decided(LaunchJson),
    /// The server that `join` has started has ended, with this exit code. Only the server has written to
    /// standard output.
    Ended(u8),
}

/// The result of a command.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema, serde::Deserialize, PartialEq))]
pub struct Document {
    /// The version of this format: 1. New fields and new words may come without a new version.
    pub version: u32,
    /// The command.
    pub command: CommandName,
    /// The result, in one word.
    pub outcome: OutcomeWord,
    /// The process's exit code.
    pub exit_code: u8,
    /// The group, which is the Sentinel master name; null before the broker has answered.
    pub group: Option<String>,
    /// The master of the verified system, otherwise of the plan, as `host:port`.
    pub master: Option<String>,
    /// Every registered node: Redis servers first, each kind in the order of registration.
    pub nodes: Vec<NodeJson>,
    /// How many nodes have yet to register.
    pub missing: MissingJson,
    /// The plan; null if there was nothing to do, or if no plan was made.
    pub plan: Option<PlanJson>,
    /// The commands that were sent and change something, in the order of their answers.
    pub steps: Vec<StepJson>,
    /// Whether every check of a verified system was possible: false if a right was missing for some of them,
    /// null if the system is not verified.
    pub proved: Option<bool>,
    /// What could not be seen of a verified system.
    pub unproved: Vec<UnprovedJson>,
    /// How long the command took.
    pub timings: TimingsJson,
    /// Problems that did not end the command.
    pub warnings: Vec<String>,
    /// Why the command failed; null if it did not.
    pub failure: Option<ReasonJson>,
    /// What `register`, `deregister` and `leave` did.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(test, serde(default))]
    pub registration: Option<RegistrationJson>,
    /// What `join --dry-run` would start, or wait for.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(test, serde(default))]
    pub launch: Option<LaunchJson>,
    /// What `failover` or `verify --failover` did.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(test, serde(default))]
    pub failover: Option<FailoverJson>,
    /// What `roll` did.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(test, serde(default))]
    pub roll: Option<RollJson>,
    /// What `rotate` did.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(test, serde(default))]
    pub rotation: Option<RotationJson>,
}

/// A command, as it is typed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
#[cfg_attr(test, derive(schemars::JsonSchema, serde::Deserialize))]
#[cfg_attr(test, schemars(rename = "Command"))]
pub enum CommandName {
    /// Makes the registered nodes one system.
    Bootstrap,
    /// Shows the system.
    Status,
    /// Checks the system, or practises a failover.
    Verify,
    /// Makes another server the master.
    Failover,
    /// Runs a command for each Redis server.
    Roll,
    /// Changes the password of an ACL user.
    Rotate,
    /// Removes a node from the system.
    Leave,
    /// Registers a node.
    Register,
    /// Removes a node from the broker.
    Deregister,
    /// Starts a server.
    Join,
    /// Checks one node.
    Probe,
    /// No command was typed.
    #[serde(rename = "")]
    None,
}

impl CommandName {
    /// All commands that can be typed.
    pub const ALL: [Self; 11] = [
        Self::Bootstrap,
        Self::Status,
        Self::Verify,
        Self::Failover,
        Self::Roll,
        Self::Rotate,
        Self::Leave,
        Self::Register,
        Self::Deregister,
        Self::Join,
        Self::Probe,
    ];

    /// As it is typed.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Bootstrap => "bootstrap",
            Self::Status => "status",
            Self::Verify => "verify",
            Self::Failover => "failover",
            Self::Roll => "roll",
            Self::Rotate => "rotate",
            Self::Leave => "leave",
            Self::Register => "register",
            Self::Deregister => "deregister",
            Self::Join => "join",
            Self::Probe => "probe",
            Self::None => "",
        }
    }
}

/// The two kinds of nodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
#[cfg_attr(test, derive(schemars::JsonSchema, serde::Deserialize))]
#[cfg_attr(test, schemars(rename = "Kind"))]
pub enum KindWord {
    /// A Redis server.
    Redis,
    /// A Sentinel.
    Sentinel,
}

impl From<Kind> for KindWord {
    fn from(kind: Kind) -> Self {
        match kind {
            Kind::Redis => Self::Redis,
            Kind::Sentinel => Self::Sentinel,
        }
    }
}

/// The state of a node, in one word.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
#[cfg_attr(test, derive(schemars::JsonSchema, serde::Deserialize))]
#[cfg_attr(test, schemars(rename = "State"))]
pub enum StateWord {
    /// The node is registered, and was not asked anything yet.
    Registered,
    /// The node does not answer.
    Unreachable,
    /// The node is loading its data set from disk.
    Loading,
    /// The node can't be used as it is.
    Unusable,
    /// The node can be used, and has no role in the system yet.
    Ready,
    /// A master.
    Master,
    /// A replica whose link to the master is not up yet.
    Syncing,
    /// A replica that follows its master.
    Replica,
    /// A Sentinel that monitors the group.
    Monitoring,
}

impl From<&NodeStatus> for StateWord {
    fn from(status: &NodeStatus) -> Self {
        match status {
            NodeStatus::Registered => Self::Registered,
            NodeStatus::Unusable(Unusable::Unreachable(_) | Unusable::Silent(_)) => Self::Unreachable,
            NodeStatus::Unusable(Unusable::Loading) => Self::Loading,
            NodeStatus::Unusable(_) => Self::Unusable,
            NodeStatus::Ready => Self::Ready,
            NodeStatus::Master { .. } => Self::Master,
            NodeStatus::Syncing(_) => Self::Syncing,
            NodeStatus::Replica { .. } => Self::Replica,
            NodeStatus::Monitoring { .. } => Self::Monitoring,
        }
    }
}

/// A registered node.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema, serde::Deserialize, PartialEq))]
#[cfg_attr(test, schemars(rename = "Node"))]
pub struct NodeJson {
    /// The kind as which the node registered.
    pub kind: KindWord,
    /// The address that the node registered, as `host:port`.
    pub address: String,
    /// The state of the node.
    pub state: StateWord,
    /// The state for a person, with details.
    pub detail: String,
    /// What is wrong with the node; null if nothing is wrong.
    pub problem: Option<String>,
}

/// How `join` would start its server.
#[derive(Debug, Clone, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema, serde::Deserialize, PartialEq))]
#[cfg_attr(test, schemars(rename = "Launch"))]
pub struct LaunchJson {
    /// The decision, in words.
    pub decision: String,
    /// The command, its standard input and the lines in its file, without secrets; empty if `join` would
    /// wait.
    pub commands: Vec<String>,
}

/// How many nodes have yet to register.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema, serde::Deserialize, PartialEq))]
#[cfg_attr(test, schemars(rename = "Missing"))]
pub struct MissingJson {
    /// Redis servers.
    pub redis: usize,
    /// Sentinels.
    pub sentinels: usize,
}

/// What a run would change.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema, serde::Deserialize, PartialEq))]
#[cfg_attr(test, schemars(rename = "Plan"))]
pub struct PlanJson {
    /// The master, present or future, as `host:port`.
    pub master: String,
    /// Why this server is the master.
    pub because: String,
    /// Every command that changes something, in the order in which a single client would send them.
    pub commands: Vec<NodeCommandJson>,
}

/// A command to a node.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema, serde::Deserialize, PartialEq))]
#[cfg_attr(test, schemars(rename = "NodeCommand"))]
pub struct NodeCommandJson {
    /// The node, as `host:port`.
    pub node: String,
    /// As a person would type it, with `***` for secrets.
    pub command: String,
}

/// A command that was sent and changes something.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema, serde::Deserialize, PartialEq))]
#[cfg_attr(test, schemars(rename = "Step"))]
pub struct StepJson {
    /// When the node answered, in milliseconds since the start.
    pub at_ms: f64,
    /// The node, as `host:port`.
    pub node: String,
    /// As a person would type it, with `***` for secrets.
    pub command: String,
    /// The error that the node answered with; null if it accepted the command.
    pub error: Option<String>,
}

/// What could not be seen because a right is missing.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema, serde::Deserialize, PartialEq))]
#[cfg_attr(test, schemars(rename = "Unproved"))]
pub struct UnprovedJson {
    /// The node where it could not be seen, as `host:port`.
    pub node: String,
    /// The missing right, in the syntax of an ACL; null if no right would show it.
    pub right: Option<String>,
    /// What is not proved.
    pub what: String,
}

/// How long the command took.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema, serde::Deserialize, PartialEq))]
#[cfg_attr(test, schemars(rename = "Timings"))]
pub struct TimingsJson {
    /// From the start to the end, in milliseconds.
    pub total_ms: f64,
    /// From the last registration to the verified system, in milliseconds; null if the system was not
    /// verified.
    pub complete_to_verified_ms: Option<f64>,
    /// The phases, in the order of a run; the times of a phase that was repeated are added up.
    pub phases: Vec<PhaseTimeJson>,
}

/// How long a phase took.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema, serde::Deserialize, PartialEq))]
#[cfg_attr(test, schemars(rename = "PhaseTime"))]
pub struct PhaseTimeJson {
    /// The phase.
    pub phase: Phase,
    /// How long it took, in milliseconds.
    pub ms: f64,
}

/// Why a command failed.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema, serde::Deserialize, PartialEq))]
#[cfg_attr(test, schemars(rename = "Reason"))]
pub struct ReasonJson {
    /// What happened.
    pub message: String,
    /// What was found, node by node.
    pub nodes: Vec<FindingJson>,
    /// What to do about it; null if there is no hint.
    pub hint: Option<String>,
}

/// What was found on a node.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema, serde::Deserialize, PartialEq))]
#[cfg_attr(test, schemars(rename = "Finding"))]
pub struct FindingJson {
    /// The node, as `host:port`.
    pub node: String,
    /// What is wrong.
    pub problem: String,
    /// What to do about it; null if there is no hint.
    pub hint: Option<String>,
}

/// A node that was registered or deregistered.
#[derive(Debug, Clone, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema, serde::Deserialize, PartialEq))]
#[cfg_attr(test, schemars(rename = "Registration"))]
pub struct RegistrationJson {
    /// The kind of the node.
    pub kind: KindWord,
    /// As `host:port`.
    pub address: String,
    /// Whether the node was registered before.
    pub known: bool,
    /// When the node registered, as RFC 3339 in UTC; null if it was not registered and is not registered now.
    pub registered_at: Option<String>,
}

/// What a failover did, and how long it took.
#[derive(Debug, Clone, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema, serde::Deserialize, PartialEq))]
#[cfg_attr(test, schemars(rename = "Failover"))]
pub struct FailoverJson {
    /// The master before, as `host:port`.
    pub from: String,
    /// The master after, as `host:port`.
    pub to: String,
    /// For how long writes were paused, in milliseconds.
    pub paused_ms: f64,
    /// From the pause until a majority of the Sentinels reported the new master, in milliseconds.
    pub named_ms: f64,
    /// From the pause to the verified system, in milliseconds.
    pub verified_ms: f64,
    /// With `verify --failover`: the longest time, in milliseconds, in which no write of a client that asks
    /// the Sentinels was answered with `OK`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(test, serde(default))]
    pub unwritable_ms: Option<f64>,
    /// With `verify --failover`: how many writes were answered with `OK`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(test, serde(default))]
    pub writes: Option<u64>,
    /// With `verify --failover`: how many of these writes the new master did not have.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(test, serde(default))]
    pub lost: Option<u64>,
}

/// What `roll` did.
#[derive(Debug, Clone, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema, serde::Deserialize, PartialEq))]
#[cfg_attr(test, schemars(rename = "Roll"))]
pub struct RollJson {
    /// The Redis servers, in the order in which `roll` ran the command for them.
    pub servers: Vec<RolledJson>,
    /// The handover of the master; null if an earlier run did it.
    pub failover: Option<FailoverJson>,
}

/// A Redis server that `roll` has run the command for.
#[derive(Debug, Clone, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema, serde::Deserialize, PartialEq))]
#[cfg_attr(test, schemars(rename = "Rolled"))]
pub struct RolledJson {
    /// As `host:port`.
    pub address: String,
    /// Whether the server was restarted.
    pub restarted: bool,
    /// How long the command took, in milliseconds.
    pub command_ms: f64,
    /// From the end of the command until the system was verified with that server, in milliseconds.
    pub verified_ms: f64,
}

/// What `rotate` did.
#[derive(Debug, Clone, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema, serde::Deserialize, PartialEq))]
#[cfg_attr(test, schemars(rename = "Rotation"))]
pub struct RotationJson {
    /// The ACL user.
    pub user: String,
    /// Whether the servers still accept the old password.
    pub old_password: OldPasswordWord,
    /// The Sentinels that use the new password, each as `host:port`; empty if they log in as another user.
    pub sentinels: Vec<String>,
}

/// What became of the old password.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
#[cfg_attr(test, derive(schemars::JsonSchema, serde::Deserialize))]
#[cfg_attr(test, schemars(rename = "OldPassword"))]
pub enum OldPasswordWord {
    /// Every server accepts both passwords.
    Kept,
    /// No server accepts the old password.
    Dropped,
}

impl Ending {
    /// The outcome. The record contains whether anything was changed.
    fn outcome(&self, record: &Record) -> OutcomeWord {
        match self {
            Ending::Bootstrapped if record.changed => OutcomeWord::Configured,
            Ending::Bootstrapped => OutcomeWord::AlreadyConfigured,
            Ending::Planned(_) | Ending::Decided(_) => OutcomeWord::Planned,
            Ending::Verified
            | Ending::FailedOver(_)
            | Ending::Rolled(_)
            | Ending::Rotated(_)
            | Ending::Left(_) => OutcomeWord::Verified,
            Ending::Probed => OutcomeWord::Probed,
            Ending::Registered(_) => OutcomeWord::Registered,
            Ending::Deregistered(_) => OutcomeWord::Deregistered,
            Ending::Ended(_) => OutcomeWord::Ended,
        }
    }

    /// The process's exit code.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self {
            Ending::Ended(code) => *code,
            _ => exit_code::OK,
        }
    }
}

impl Document {
    /// The document of a command that has ended like this.
    #[must_use]
    pub fn new(
        command: CommandName,
        record: &Record,
        total: Duration,
        ended: &Result<Ending, Failure>,
    ) -> Self {
        let (exit_code, outcome) = match ended {
            Ok(ending) => (ending.exit_code(), ending.outcome(record)),
            Err(failure) => (failure.exit_code(), failure.outcome()),
        };
        let dry_run = match ended {
            Ok(Ending::Planned(plan)) => Some(&**plan),
            _ => None,
        };
        let plan = dry_run.or(record.plan.as_ref());
        let system = record.system.as_ref().or(plan.map(|plan| &plan.system));
        Self {
            version: VERSION,
            command,
            outcome,
            exit_code,
            group: record.group.clone(),
            master: system.map(|system| system.master.endpoint.to_string()),
            nodes: record.nodes.iter().map(|node| NodeJson::new(node, record)).collect(),
            missing: MissingJson {
                redis: record.missing(Kind::Redis),
                sentinels: record.missing(Kind::Sentinel),
            },
            plan: plan.filter(|plan| !plan.is_empty()).map(PlanJson::new),
            steps: record.steps.iter().map(StepJson::new).collect(),
            proved: record.system.as_ref().filter(|_| ended.is_ok()).map(|_| record.unproved.is_empty()),
            unproved: record.unproved.iter().map(UnprovedJson::new).collect(),
            timings: TimingsJson::new(record, total),
            warnings: record.warnings.clone(),
            failure: ended.as_ref().err().map(ReasonJson::new),
            registration: match ended {
                Ok(
                    Ending::Registered(registration)
                    | Ending::Deregistered(registration)
                    | Ending::Left(registration),
                ) => Some(registration.clone()),
                _ => None,
            },
            launch: match ended {
                Ok(Ending::Decided(launch)) => Some(launch.clone()),
                _ => None,
            },
            failover: match ended {
                Ok(Ending::FailedOver(failover)) => Some(failover.clone()),
                _ => None,
            },
            roll: match ended {
                Ok(Ending::Rolled(roll)) => Some(roll.clone()),
                _ => None,
            },
            rotation: match ended {
                Ok(Ending::Rotated(rotation)) => Some(rotation.clone()),
                _ => None,
            },
        }
    }

    /// The document of a command that was not run, because the command line is wrong.
    #[must_use]
    pub fn usage(command: CommandName, what: String) -> Self {
        let failure = Failure::Usage(vec![what]);
        Self::new(command, &Record::default(), Duration::ZERO, &Err(failure))
    }

    /// The document as text, with a line break at its end.
    #[must_use]
    pub fn text(&self) -> String {
        serde_json::to_string_pretty(self).unwrap_or_default() + "\n"
    }
}

impl NodeJson {
    fn new(node: &NodeRecord, record: &Record) -> Self {
        let is_master = record.system.as_ref().is_some_and(|system| system.master.endpoint == node.endpoint);
        let status = match &node.state {
            // The master of a system without replicas.
            NodeStatus::Ready if is_master => NodeStatus::Master { online: 0, replicas: 0 },
            status => status.clone(),
        };
        let problem = match &status {
            NodeStatus::Unusable(problem) => Some(problem.to_string()),
            _ => record.unmet_on(&node.endpoint).map(str::to_owned),
        };
        Self {
            kind: node.kind.into(),
            address: node.endpoint.to_string(),
            state: (&status).into(),
            detail: status.text(),
            problem,
        }
    }
}

impl PlanJson {
    fn new(plan: &Plan) -> Self {
        let commands = plan.commands().into_iter();
        Self {
            master: plan.system.master.endpoint.to_string(),
            because: plan.because.to_owned(),
            commands: commands
                .map(|(node, command)| NodeCommandJson { node: node.to_string(), command: command.shown() })
                .collect(),
        }
    }
}

impl StepJson {
    fn new(step: &SentCommand) -> Self {
        Self {
            at_ms: ms(step.at),
            node: step.node.to_string(),
            command: step.command.clone(),
            error: step.reply.as_ref().err().cloned(),
        }
    }
}

impl UnprovedJson {
    fn new(unproved: &Unproved) -> Self {
        let Unproved { right, what, node } = unproved;
        Self { node: node.to_string(), right: right.clone(), what: (*what).to_owned() }
    }
}

impl TimingsJson {
    fn new(record: &Record, total: Duration) -> Self {
        let phase = |&(phase, took): &(Phase, Duration)| PhaseTimeJson { phase, ms: ms(took) };
        Self {
            total_ms: ms(total),
            complete_to_verified_ms: record.took.map(ms),
            phases: record.phases.iter().map(phase).collect(),
        }
    }
}

impl ReasonJson {
    fn new(failure: &Failure) -> Self {
        let finding = |finding: Finding<'_>| FindingJson {
            node: finding.node.to_string(),
            problem: finding.what,
            hint: finding.hint,
        };
        Self {
            message: failure.to_string(),
            nodes: failure.nodes().into_iter().map(finding).collect(),
            hint: failure.hint(),
        }
    }
}

/// Milliseconds with one decimal.
#[must_use]
pub fn ms(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 10_000.0).round() / 10.0
}

#[cfg(test)]
pub(crate) mod tests {
    use expect_test::expect_file;
    use schemars::generate::SchemaSettings;
    use serde_json::Value;

    use super::Document;
    use crate::report::lines::LogLine;

    const SCHEMA: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/output.schema.json");
    const PAGE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/output.md");

    /// The schema of the types. The log line is among its definitions.
    pub(crate) fn schema() -> Value {
        // For writing: a field that may be null is required, and a field that may be missing is not.
        let mut generator = SchemaSettings::draft2020_12().for_serialize().into_generator();
        let line = generator.subschema_for::<LogLine<'static>>();
        assert_eq!(line.get("$ref").and_then(Value::as_str), Some("#/$defs/LogLine"));
        let schema = generator.into_root_schema_for::<Document>();
        serde_json::to_value(schema).unwrap()
    }

    #[test]
    fn the_schema_is_the_one_that_the_types_give() {
        let text = serde_json::to_string_pretty(&schema()).unwrap();
        expect_file![SCHEMA].assert_eq(&(text + "\n"));
    }

    /// The rows of one type's table.
    fn fields(definition: &Value) -> String {
        let mut rows = String::from("| field | type | meaning |\n| --- | --- | --- |\n");
        for (name, field) in definition["properties"].as_object().unwrap() {
            let says = field["description"].as_str().unwrap_or_default().replace('\n', " ");
            rows += &format!("| `{name}` | {} | {says} |\n", kind(field));
        }
        rows
    }

    fn kind(field: &Value) -> String {
        let of_ref = |field: &Value| {
            let name = field["$ref"].as_str()?.rsplit('/').next()?;
            Some(format!("[`{name}`](#{})", name.to_lowercase()))
        };
        if let Some(link) = of_ref(field) {
            return link;
        }
        if let Some(link) = field["anyOf"].as_array().and_then(|any| of_ref(&any[0])) {
            return format!("{link} or null");
        }
        match &field["type"] {
            Value::String(kind) if kind == "array" => format!("list of {}", kind_of_items(&field["items"])),
            Value::String(kind) => kind.clone(),
            Value::Array(kinds) => kinds.iter().filter_map(Value::as_str).collect::<Vec<_>>().join(" or "),
            _ => String::new(),
        }
    }

    fn kind_of_items(items: &Value) -> String {
        kind(items)
    }

    #[test]
    fn the_page_is_the_one_that_the_types_give() {
        let schema = schema();
        let read = |name: &str| {
            let path = format!("{}/tests/golden/{name}", env!("CARGO_MANIFEST_DIR"));
            std::fs::read_to_string(path).unwrap_or_default()
        };
        let (sample, log) = (read("out-of-time.json"), read("out-of-time.log.jsonl"));
        let mut page = format!(
            "# Output for machines\n\n\
             Generated from the types in `runner/src/report/document.rs`; `UPDATE_EXPECT=1 cargo test -p runner` writes it anew.\n\n\
             With `--output json` every command of `sentinel-runner` writes exactly one JSON document to standard output,\n\
             however it ends: also if it is refused, stopped by a signal, or typed wrong. The text for people goes to\n\
             standard error, or with `--log-format json` one JSON object per line. [output.schema.json](output.schema.json) is\n\
             the schema of both. Times are in milliseconds, addresses `host:port` with an IPv6 host in brackets, moments\n\
             RFC 3339 in UTC. Secrets are `***`.\n\n\
             A run that was out of time:\n\n```json\n{sample}```\n\n## Document\n\n{}",
            fields(&schema)
        );
        for (name, definition) in schema["$defs"].as_object().unwrap() {
            page += &format!("\n## {name}\n\n");
            page += &format!("{}\n\n", definition["description"].as_str().unwrap_or_default());
            if definition["properties"].is_object() {
                page += &fields(definition);
            } else if let Some(words) = definition["oneOf"].as_array() {
                page += "| word | means |\n| --- | --- |\n";
                for word in words {
                    let means = word["description"].as_str().unwrap_or_default();
                    page += &format!("| `{}` | {means} |\n", word["const"].as_str().unwrap_or_default());
                }
            }
            if name == "LogLine" {
                page += &format!("\nThe same run:\n\n```json\n{log}```\n");
            }
        }
        expect_file![PAGE].assert_eq(&page);
    }
}
