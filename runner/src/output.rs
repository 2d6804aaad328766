//! `--output json`: the one document that a command ends with, however it ends. `docs/output.schema.json` is generated
//! from these types, and `docs/output.md` says it in words.

use std::time::Duration;

use serde::Serialize;

use crate::error::{Failure, exit_code};
use crate::plan::Plan as Planned;
use crate::report::record::{self, Record, State};

/// Grows when a field is removed or changes its meaning; a new field or a new word does not change it.
pub const VERSION: u32 = 1;

/// What a command that did what it was for has done.
#[derive(Debug)]
pub enum Ending {
    /// The system is verified; whether anything had to be changed, the record tells.
    Bootstrapped,
    /// A dry run.
    Planned(Box<Planned>),
    /// The system was looked at, and is verified.
    Verified,
    /// A failover was made, and the system is verified again.
    FailedOver(Failover),
    /// A node was registered.
    Registered(Registration),
    /// A node was forgotten.
    Deregistered(Registration),
    /// A dry run of `join`.
    Decided(Launch),
    /// The server that `join` has started has ended, with this exit code. Standard output was the server's.
    Ended(u8),
}

/// What came of a command.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema, serde::Deserialize, PartialEq))]
pub struct Document {
    /// The version of this document's shape: 1. New fields and new words may come without a new version.
    pub version: u32,
    /// The command: `bootstrap`, `status`, `verify`, `register`, `deregister` or `join`.
    pub command: String,
    /// What came of it, in one word.
    pub outcome: Outcome,
    /// The process's exit code.
    pub exit_code: u8,
    /// The group, which is the Sentinel master name; null until the broker has said which.
    pub group: Option<String>,
    /// The master of the verified system, or else of the plan, as `host:port`.
    pub master: Option<String>,
    /// Every registered node: Redis servers first, each kind in the order of registration.
    pub nodes: Vec<Node>,
    /// How many nodes have yet to register.
    pub missing: Missing,
    /// What was planned; null where there was nothing to do, or it did not come to a plan.
    pub plan: Option<Plan>,
    /// The commands that were sent and change something, in the order of their answers.
    pub steps: Vec<Step>,
    /// How long it took.
    pub timings: Timings,
    /// What was not as it should be, and did not end the command.
    pub warnings: Vec<String>,
    /// Why it failed; null where it did not.
    pub failure: Option<Reason>,
    /// What `register` and `deregister` did.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(test, serde(default))]
    pub registration: Option<Registration>,
    /// What `join --dry-run` would start, or wait for.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(test, serde(default))]
    pub launch: Option<Launch>,
    /// What `verify --failover` measured.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(test, serde(default))]
    pub failover: Option<Failover>,
}

/// What came of a command, in one word.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
#[cfg_attr(test, derive(schemars::JsonSchema, serde::Deserialize))]
pub enum Outcome {
    /// The system is verified, and something had to be changed for it (exit code 0).
    Configured,
    /// The system is verified, and nothing had to be changed (0).
    AlreadyConfigured,
    /// A dry run: this is what would be done (0).
    Planned,
    /// The system was looked at, and is verified (0).
    Verified,
    /// The node is registered (0).
    Registered,
    /// The node is not registered any more (0).
    Deregistered,
    /// The server that `join` has started has ended (its own exit code).
    Ended,
    /// Anything that has no word of its own (1).
    Failed,
    /// A flag, or an environment variable, is wrong (2).
    Usage,
    /// Not enough usable nodes have registered, or something that has to pass first did not (3).
    Incomplete,
    /// It would lose data, or contradict the Sentinels (4).
    Refused,
    /// A node can't be used as it is (5).
    Unusable,
    /// The system is not, or not yet, what it should be (6).
    NotVerified,
    /// The broker can't be reached, or refuses the token (7).
    Broker,
    /// Stopped by SIGINT or SIGTERM (130, 143).
    Stopped,
}

/// A registered node.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema, serde::Deserialize, PartialEq))]
pub struct Node {
    /// `redis` or `sentinel`.
    pub kind: String,
    /// Where it registered, as `host:port`.
    pub address: String,
    /// One of `registered` (nothing was asked of it yet), `unreachable`, `loading`, `unusable`, `ready` (it has no part
    /// yet), `master`, `syncing`, `replica`, `monitoring`.
    pub state: String,
    /// The same for a person, with what else is known of it.
    pub detail: String,
    /// What is wrong with it; null where nothing is.
    pub problem: Option<String>,
}

/// How `join` would start its server.
#[derive(Debug, Clone, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema, serde::Deserialize, PartialEq))]
pub struct Launch {
    /// The decision, in words.
    pub decision: String,
    /// The command, and what else the server is given, without secrets; empty where it would wait.
    pub commands: Vec<String>,
}

/// How many nodes have yet to register.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema, serde::Deserialize, PartialEq))]
pub struct Missing {
    /// Redis servers.
    pub redis: usize,
    /// Sentinels.
    pub sentinels: usize,
}

/// What is to be done.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema, serde::Deserialize, PartialEq))]
pub struct Plan {
    /// Who is, or is to be, the master.
    pub master: String,
    /// Why.
    pub because: String,
    /// Every command that changes something, in the order in which a single client would send them.
    pub commands: Vec<NodeCommand>,
}

/// A command to a node.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema, serde::Deserialize, PartialEq))]
pub struct NodeCommand {
    /// The node, as `host:port`.
    pub node: String,
    /// As a person would type it, with `***` for secrets.
    pub command: String,
}

/// A command that was sent and changes something.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema, serde::Deserialize, PartialEq))]
pub struct Step {
    /// When it was answered, in milliseconds since the start.
    pub at_ms: f64,
    /// The node, as `host:port`.
    pub node: String,
    /// As a person would type it, with `***` for secrets.
    pub command: String,
    /// The error that the node answered with; null where it did not.
    pub error: Option<String>,
}

/// How long it took.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema, serde::Deserialize, PartialEq))]
pub struct Timings {
    /// From the start to the end, in milliseconds.
    pub total_ms: f64,
    /// From the last registration to the verified system, in milliseconds; null where it did not come to that.
    pub complete_to_verified_ms: Option<f64>,
    /// The parts of the work, in the order in which they come in a run; what was done more than once is added up.
    pub phases: Vec<PhaseTime>,
}

/// How long a part of the work took.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema, serde::Deserialize, PartialEq))]
pub struct PhaseTime {
    /// `wait` (for registrations, or for something to pass), `observe`, `plan`, `prepare`, `attach` (`REPLICAOF`),
    /// `monitor` (`SENTINEL MONITOR` and `SET`), `introduce` (the Sentinels to each other), `verify` or `finish`.
    pub phase: String,
    /// In milliseconds.
    pub ms: f64,
}

/// Why a command failed.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema, serde::Deserialize, PartialEq))]
pub struct Reason {
    /// What happened.
    pub message: String,
    /// What was found, node by node.
    pub nodes: Vec<Finding>,
    /// What to do about it.
    pub hint: Option<String>,
}

/// What was found on a node.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema, serde::Deserialize, PartialEq))]
pub struct Finding {
    /// The node, as `host:port`.
    pub node: String,
    /// What is not as it should be.
    pub problem: String,
}

/// What was registered, or is not any more.
#[derive(Debug, Clone, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema, serde::Deserialize, PartialEq))]
pub struct Registration {
    /// `redis` or `sentinel`.
    pub kind: String,
    /// As `host:port`.
    pub address: String,
    /// Whether the broker knew it before.
    pub known: bool,
    /// Since when, as RFC 3339 in UTC; null where it was not known, and is not.
    pub registered_at: Option<String>,
}

/// What a failover took.
#[derive(Debug, Clone, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema, serde::Deserialize, PartialEq))]
pub struct Failover {
    /// The master before, as `host:port`.
    pub from: String,
    /// The master since.
    pub to: String,
    /// The longest time, in milliseconds, in which no write of a client that asks the Sentinels was answered with `OK`.
    pub unwritable_ms: f64,
    /// From Sentinel's `OK` to the verified system, in milliseconds.
    pub verified_ms: f64,
    /// How many writes were answered with `OK`.
    pub writes: u64,
}

impl Ending {
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
    /// What came of a command: from what is known of it, and how it ended.
    #[must_use]
    pub fn new(command: &str, record: &Record, total: Duration, ended: &Result<Ending, Failure>) -> Self {
        let (exit_code, outcome) = match ended {
            Ok(ending) => (ending.exit_code(), outcome(ending, record)),
            Err(failure) => (failure.exit_code(), outcome_of(failure.exit_code())),
        };
        let dry_run = match ended {
            Ok(Ending::Planned(plan)) => Some(&**plan),
            _ => None,
        };
        let plan = dry_run.or(record.plan.as_ref()).filter(|plan| !plan.is_empty());
        let system = record.system.as_ref().or(dry_run.or(record.plan.as_ref()).map(|plan| &plan.system));
        Self {
            version: VERSION,
            command: command.to_owned(),
            outcome,
            exit_code,
            group: record.group.clone(),
            master: system.map(|system| system.master.to_string()),
            nodes: record.nodes.iter().map(|node| self::node(node, record)).collect(),
            missing: Missing {
                redis: record.missing(broker_fn::api::Kind::Redis),
                sentinels: record.missing(broker_fn::api::Kind::Sentinel),
            },
            plan: plan.map(|plan| Plan {
                master: plan.system.master.to_string(),
                because: plan.because.to_owned(),
                commands: plan
                    .commands()
                    .into_iter()
                    .map(|(node, command)| NodeCommand { node: node.to_string(), command: command.shown() })
                    .collect(),
            }),
            steps: record.steps.iter().map(step).collect(),
            timings: Timings {
                total_ms: ms(total),
                complete_to_verified_ms: record.took.map(ms),
                phases: record
                    .phases
                    .iter()
                    .map(|(phase, took)| PhaseTime { phase: phase.name().to_owned(), ms: ms(*took) })
                    .collect(),
            },
            warnings: record.warnings.clone(),
            failure: ended.as_ref().err().map(|failure| Reason {
                message: failure.to_string(),
                nodes: failure
                    .nodes()
                    .into_iter()
                    .map(|(node, problem)| Finding { node: node.to_string(), problem })
                    .collect(),
                hint: failure.hint(),
            }),
            registration: match ended {
                Ok(Ending::Registered(registration) | Ending::Deregistered(registration)) => {
                    Some(registration.clone())
                }
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
        }
    }

    /// A command that did not come to run: what was typed is wrong.
    #[must_use]
    pub fn usage(command: &str, what: String) -> Self {
        let failure = Failure::Usage(vec![what]);
        Self::new(command, &Record::default(), Duration::ZERO, &Err(failure))
    }

    /// As it is printed, with its line break.
    #[must_use]
    pub fn text(&self) -> String {
        serde_json::to_string_pretty(self).unwrap_or_default() + "\n"
    }
}

fn outcome(ending: &Ending, record: &Record) -> Outcome {
    match ending {
        Ending::Bootstrapped if record.changed => Outcome::Configured,
        Ending::Bootstrapped => Outcome::AlreadyConfigured,
        Ending::Planned(_) | Ending::Decided(_) => Outcome::Planned,
        Ending::Verified | Ending::FailedOver(_) => Outcome::Verified,
        Ending::Registered(_) => Outcome::Registered,
        Ending::Deregistered(_) => Outcome::Deregistered,
        Ending::Ended(_) => Outcome::Ended,
    }
}

/// The word for an exit code other than 0.
fn outcome_of(code: u8) -> Outcome {
    match code {
        exit_code::USAGE => Outcome::Usage,
        exit_code::OUT_OF_TIME => Outcome::Incomplete,
        exit_code::REFUSED => Outcome::Refused,
        exit_code::UNUSABLE => Outcome::Unusable,
        exit_code::NOT_VERIFIED => Outcome::NotVerified,
        exit_code::BROKER => Outcome::Broker,
        exit_code::INTERRUPTED | exit_code::TERMINATED => Outcome::Stopped,
        _ => Outcome::Failed,
    }
}

fn node(node: &record::Node, record: &Record) -> Node {
    let is_master = record.system.as_ref().is_some_and(|system| system.master == node.endpoint);
    let state = match &node.state {
        // The master of a system without replicas.
        State::Ready if is_master => State::Master { online: 0, replicas: 0 },
        state => state.clone(),
    };
    let problem = match &state {
        State::Unusable(problem) => Some(problem.to_string()),
        _ => record.unmet_on(&node.endpoint).map(str::to_owned),
    };
    Node {
        kind: node.kind.to_string(),
        address: node.endpoint.to_string(),
        state: state.word().to_owned(),
        detail: state.text(),
        problem,
    }
}

fn step(step: &record::Step) -> Step {
    Step {
        at_ms: ms(step.at),
        node: step.node.to_string(),
        command: step.command.clone(),
        error: step.reply.as_ref().err().cloned(),
    }
}

/// Milliseconds with one decimal.
#[must_use]
pub fn ms(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 10_000.0).round() / 10.0
}

#[cfg(test)]
pub(crate) mod tests {
    use schemars::generate::SchemaSettings;
    use serde_json::Value;

    use super::Document;
    use crate::report::lines::LogLine;

    const SCHEMA: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/output.schema.json");
    const PAGE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/output.md");

    /// What the types give: the document, and among its definitions the log line.
    pub(crate) fn schema() -> Value {
        // As it is written: what may be null is always there, and what may be missing is not.
        let mut generator = SchemaSettings::draft2020_12().for_serialize().into_generator();
        let line = generator.subschema_for::<LogLine<'static>>();
        assert_eq!(line.get("$ref").and_then(Value::as_str), Some("#/$defs/LogLine"));
        let schema = generator.into_root_schema_for::<Document>();
        serde_json::to_value(schema).unwrap()
    }

    fn current(path: &str, text: &str) {
        if std::env::var_os("UPDATE").is_some() {
            std::fs::write(path, text).unwrap();
        } else {
            let known = std::fs::read_to_string(path).unwrap_or_default();
            assert!(
                known == text,
                "{path} is out of date: `UPDATE=1 cargo test -p runner output` writes it anew"
            );
        }
    }

    #[test]
    fn the_schema_is_the_one_that_the_types_give() {
        let text = serde_json::to_string_pretty(&schema()).unwrap();
        current(SCHEMA, &(text + "\n"));
    }

    /// The rows of one type's table.
    fn fields(definition: &Value) -> String {
        let mut rows = String::from("| field | type | says |\n| --- | --- | --- |\n");
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
             Generated from the types in `runner/src/output.rs`; `UPDATE=1 cargo test -p runner` writes it anew.\n\n\
             With `--output json` every command of `sentinel-runner` writes exactly one JSON document to standard output,\n\
             however it ends: also when it is refused, stopped by a signal, or typed wrong. What people read goes on to\n\
             standard error, or with `--log-format json` one JSON object a line. [output.schema.json](output.schema.json) is\n\
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
        current(PAGE, &page);
    }
}
