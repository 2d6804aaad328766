//! Compares the output for people and machines with the files in `runner/tests/golden`. Constructed runs go
//! through the real renderers, at 80 columns, with colour and without. `UPDATE_EXPECT=1 cargo test -p runner
//! golden` rewrites the files.

use std::path::{Path, PathBuf};
use std::time::Duration;

use broker_fn::api::{Expected, Kind, Roster};
use expect_test::expect_file;
use serde_json::Value;

use crate::broker::{BrokerError, RequestUrl};
use crate::commands::{Look, status};
use crate::error::{Failure, WaitingFor};
use crate::node::command::{Command, command};
use crate::node::connection::PipelineAnswer;
use crate::node::endpoint::Endpoint;
use crate::node::redis::RedisState;
use crate::node::replication::{Replica, Role};
use crate::node::reply::{Reply, ServerError};
use crate::node::secret::{Login, Secret};
use crate::node::sentinel::{Monitored, NamedMaster, Peer, SentinelState};
use crate::node::unusable::Unusable;
use crate::outcome::exit_code;
use crate::report::document::{
    CommandName, Document, Ending, FailoverJson, KindWord, OldPasswordWord, RegistrationJson, RotationJson,
};
use crate::report::event::Event;
use crate::report::lines::EventWords;
use crate::report::live;
use crate::report::record::Record;
use crate::report::style::Style;

use crate::system::decide::{Decision, Leaving, Refusal, RefusalKind, Request, Wait, decide};
use crate::system::judge::Unmet;
use crate::system::members::System;
use crate::system::observe::{Observed, ObservedNode};
use crate::system::timings::Phase;

const PLAIN: Style = Style { colour: false, columns: None };
const WIDE: Style = Style { colour: false, columns: Some(80) };
const COLOUR: Style = Style { colour: true, columns: Some(80) };

/// Compares a text with its file, or writes the file.
fn golden(name: &str, text: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name);
    expect_file![path].assert_eq(text);
}

fn redis_at(number: u8) -> Endpoint {
    Endpoint::new(format!("10.0.0.{number}"), 6379)
}

fn sentinel_at(number: u8) -> Endpoint {
    Endpoint::new(format!("10.0.0.{number}"), 26379)
}

fn redis(number: u8) -> RedisState {
    RedisState::fresh(redis_at(number), &number.to_string())
}

fn sentinel(number: u8) -> SentinelState {
    SentinelState::fresh(sentinel_at(number), &format!("id-{number}"), &format!("sentinel-run-{number}"))
}

fn good<T>(endpoint: Endpoint, state: T) -> ObservedNode<T> {
    ObservedNode { endpoint, state: Ok(state) }
}

/// Two Redis servers and three Sentinels, fresh.
fn fresh() -> Observed {
    Observed {
        redis: (1..=2).map(|number| good(redis_at(number), redis(number))).collect(),
        sentinels: (1..=3).map(|number| good(sentinel_at(number), sentinel(number))).collect(),
    }
}

/// The nodes of [`fresh`] as a system. The first server is the master.
fn standing() -> Observed {
    let mut observed = fresh();
    let master = observed.redis[0].state.as_mut().unwrap();
    master.replicas = vec![Replica { endpoint: redis_at(2), online: true, confirmed: 14, silent_s: Some(0) }];
    master.data.keys = 12;
    let replica = observed.redis[1].state.as_mut().unwrap();
    (replica.role, replica.data.keys) = (Role::Replica { of: redis_at(1), link_up: true }, 12);
    for (index, node) in observed.sentinels.iter_mut().enumerate() {
        let fields =
            [("flags", "master"), ("num-slaves", "1"), ("num-other-sentinels", "2"), ("quorum", "2")];
        let peers = (1..=3).filter(|&number| usize::from(number) != index + 1);
        node.state.as_mut().unwrap().monitored = Some(Monitored {
            master: NamedMaster {
                endpoint: redis_at(1),
                fields: fields.map(|(name, value)| (name.to_owned(), value.to_owned())).into(),
            },
            peers: peers
                .map(|number| {
                    let id = format!("id-{number}");
                    (id.clone(), Peer::reached(sentinel_at(number), &id, "sentinel"))
                })
                .collect(),
            replicas: vec![Peer::reached(redis_at(2), "run-2", "slave")],
        });
    }
    observed
}

fn roster(observed: &Observed) -> Roster {
    let registered = |nodes: &mut dyn Iterator<Item = &Endpoint>| -> Vec<Value> {
        let at = "2026-11-22T10:00:00.123456789Z";
        nodes
            .map(|node| {
                serde_json::json!({
                    "host": node.host, "port": node.port, "run_id": null, "registered_at": at, "last_seen": at
                })
            })
            .collect()
    };
    let outcome = serde_json::json!({
        "verified": true, "master": {"host": "10.0.0.1", "port": 6379}, "at": "2026-11-22T10:00:01Z"
    });
    serde_json::from_value(serde_json::json!({
        "group": "mymaster", "ready": false,
        "expected": {"redis": 2, "sentinels": 3, "quorum": 2}, "missing": {"redis": 0, "sentinels": 0},
        "redis": registered(&mut observed.redis.iter().map(|node| &node.endpoint)),
        "sentinels": registered(&mut observed.sentinels.iter().map(|node| &node.endpoint)),
        "outcome": if observed.redis.iter().any(|node| node.state.as_ref().is_ok_and(|s| !s.data.is_empty())) {
            outcome
        } else {
            Value::Null
        },
    }))
    .unwrap()
}

fn request() -> Request {
    Request {
        group: "mymaster".parse().unwrap(),
        expected: Expected { redis: 2, sentinels: 3, quorum: 2 },
        quorum_given: false,
        options: [("down-after-milliseconds".to_owned(), "5000".to_owned())].into(),
        redis_settings: [].into(),
        leaving: Leaving::default(),
        sentinel_login: Some(Login { username: None, password: Secret::new("s3cret") }),
        replication_login: Some(Login { username: None, password: Secret::new("s3cret") }),
        redis_user: "default".to_owned(),
        renamed: [].into(),
        master: None,
        discard_data: false,
    }
}

fn system() -> System {
    let sentinels: Vec<_> = (1..=3).map(|number| (sentinel_at(number), format!("id-{number}"))).collect();
    System::of(&[redis_at(1), redis_at(2)], &sentinels)
}

/// A run whose events and clock a test sets by hand.
struct RecordedRun {
    record: Record,
    at: Duration,
    entered: Duration,
    words: Vec<(Duration, EventWords)>,
}

impl RecordedRun {
    fn new() -> Self {
        let mut recorded = Self {
            record: Record::default(),
            at: Duration::ZERO,
            entered: Duration::ZERO,
            words: Vec::new(),
        };
        recorded.tell(0, &Event::Deadline(Duration::from_secs(300)));
        recorded.enter(0, Phase::Wait);
        recorded
    }

    fn tell(&mut self, after: u64, event: &Event<'_>) {
        self.at += Duration::from_millis(after);
        self.record.note(self.at, event);
        self.words.extend(EventWords::of(event).map(|words| (self.at, words)));
    }

    fn enter(&mut self, after: u64, phase: Phase) {
        self.at += Duration::from_millis(after);
        self.leave();
        (self.record.phase, self.entered) = (Some(phase), self.at);
    }

    fn leave(&mut self) {
        let took = self.at - self.entered;
        self.record.phases.extend(self.record.phase.take().map(|phase| (phase, took)));
    }

    /// All nodes register, 20 ms apart.
    fn register(&mut self, observed: &Observed) {
        let roster = roster(observed);
        let expected = roster.expected;
        self.tell(20, &Event::Roster { roster: &roster, expected });
        for node in &observed.redis {
            self.tell(20, &Event::Registered { kind: Kind::Redis, node: &node.endpoint });
        }
        for node in &observed.sentinels {
            self.tell(20, &Event::Registered { kind: Kind::Sentinel, node: &node.endpoint });
        }
    }

    fn observe(&mut self, observed: &Observed) {
        self.enter(1, Phase::Observe);
        self.tell(2, &Event::Observed(observed));
        self.enter(0, Phase::Plan);
    }

    fn answered(&mut self, kind: Kind, node: &Endpoint, command: Command, reply: Reply) {
        self.tell(
            2,
            &Event::Answered(&PipelineAnswer {
                kind,
                node,
                commands: &[command],
                replies: &[reply],
                is_rehearsal: false,
            }),
        );
    }

    fn lines(&self, style: Style) -> String {
        self.words.iter().map(|(at, words)| words.lines(*at, style)).collect()
    }
}

/// The ends that are also kept as a terminal shows them.
const ON_A_TERMINAL: [&str; 2] = ["success", "status-not-verified"];

/// Checks everything that is shown at an end, in each format.
fn end(
    name: &str,
    command: CommandName,
    mut recorded: RecordedRun,
    shown: &dyn Fn(Style) -> String,
    ended: &Result<Ending, Failure>,
) {
    let failure =
        ended.as_ref().err().map(|failure| EventWords::of_failure(failure, !shown(PLAIN).is_empty()));
    let text = |style: Style| {
        let mut text = recorded.lines(style);
        let shown = shown(style);
        if !shown.is_empty() {
            text += &format!("{shown}\n");
        }
        text + &failure.as_ref().map(|words| words.lines(recorded.at, style)).unwrap_or_default()
    };
    let plain = text(PLAIN);
    assert!(!plain.contains('\u{1b}'), "off a terminal there are no control codes: {plain}");
    golden(&format!("{name}.txt"), &plain);
    let wide = text(WIDE);
    for line in wide.lines() {
        assert!(line.chars().count() <= 80, "{name}: {line}");
    }
    if ON_A_TERMINAL.contains(&name) {
        golden(&format!("{name}.80.txt"), &wide);
        golden(&format!("{name}.80.ansi"), &text(COLOUR));
    }
    let mut log: String = recorded.words.iter().map(|(at, words)| words.json(*at)).collect();
    log += &failure.as_ref().map(|words| words.json(recorded.at)).unwrap_or_default();
    for line in log.lines() {
        valid("LogLine", &serde_json::from_str(line).unwrap());
    }
    golden(&format!("{name}.log.jsonl"), &log);
    recorded.leave();
    let document = Document::new(command, &recorded.record, recorded.at, ended).text();
    valid("Document", &serde_json::from_str(&document).unwrap());
    golden(&format!("{name}.json"), &document);
    for text in [plain, log, document] {
        assert!(!text.contains("s3cret"), "{text}");
    }
}

fn nothing(_: Style) -> String {
    String::new()
}

/// Validates a document with the schema in `docs/`.
fn valid(definition: &str, value: &Value) {
    let mut schema = crate::report::document::tests::schema();
    if definition != "Document" {
        let definitions = schema["$defs"].clone();
        schema = schema["$defs"][definition].clone();
        schema["$defs"] = definitions;
    }
    let validator = jsonschema::validator_for(&schema).unwrap();
    let errors: Vec<_> = validator.iter_errors(value).map(|error| error.to_string()).collect();
    assert!(errors.is_empty(), "{errors:?}: {value}");
}

fn table(style: Style) -> String {
    crate::report::table::table(&system(), style)
}

fn sync(fields: &str) -> Reply {
    Ok(redis::Value::BulkString(
        format!("role:slave\r\nmaster_host:10.0.0.1\r\nmaster_port:6379\r\n{fields}").into_bytes(),
    ))
}

/// A run that has carried out a part of its plan.
fn under_way() -> RecordedRun {
    let observed = fresh();
    let mut recorded = RecordedRun::new();
    recorded.register(&observed);
    recorded.observe(&observed);
    let Decision::Proceed(plan) = decide(&observed, &request()) else { panic!("no plan") };
    recorded.tell(0, &Event::Plan(&plan));
    recorded.enter(0, Phase::Attach);
    recorded.answered(Kind::Redis, &redis_at(2), plan.replicaof_command(), Ok(redis::Value::Okay));
    let list = |words: &[&str]| {
        redis::Value::Array(
            words.iter().map(|word| redis::Value::BulkString(word.as_bytes().to_vec())).collect(),
        )
    };
    for number in 1..=3 {
        recorded.answered(
            Kind::Sentinel,
            &sentinel_at(number),
            plan.monitor_command(),
            Ok(redis::Value::Okay),
        );
    }
    let set = plan.set_command(&sentinel_at(1)).unwrap();
    recorded.answered(Kind::Sentinel, &sentinel_at(1), set, Ok(redis::Value::Okay));
    recorded.enter(0, Phase::Verify);
    let master = list(&["ip", "10.0.0.1", "port", "6379", "num-slaves", "1", "num-other-sentinels", "2"]);
    recorded.answered(
        Kind::Sentinel,
        &sentinel_at(1),
        command!("SENTINEL", "MASTER", "mymaster"),
        Ok(master),
    );
    let syncing =
        "master_link_status:down\r\nmaster_sync_total_bytes:41943040\r\nmaster_sync_left_bytes:31457280";
    recorded.answered(Kind::Redis, &redis_at(2), command!("INFO", "replication"), sync(syncing));
    recorded
}

fn out_of_time(waiting_for: WaitingFor, nodes: Vec<(Endpoint, Unusable)>) -> Failure {
    Failure::OutOfTime { after: Duration::from_secs(300), waiting_for: Box::new(waiting_for), nodes }
}

#[test]
fn a_success_prints_its_golden_files() {
    let mut recorded = under_way();
    recorded.answered(
        Kind::Redis,
        &redis_at(2),
        command!("INFO", "replication"),
        sync("master_link_status:up"),
    );
    recorded.tell(0, &Event::Observed(&standing()));
    let (system, took) = (system(), Duration::from_millis(96));
    recorded.tell(90, &Event::Verified { system: &system, took, how: "verified" });
    recorded.enter(0, Phase::Finish);
    recorded.tell(
        1,
        &Event::Warning(
            "10.0.0.2:6379 can't write its configuration file (ERR The server is running without a \
             config file): run `sentinel-runner bootstrap` again after a restart of this node",
        ),
    );
    end("success", CommandName::Bootstrap, recorded, &table, &Ok(Ending::Bootstrapped));
}

#[test]
fn a_run_with_nothing_to_do_prints_its_golden_files() {
    let mut recorded = RecordedRun::new();
    recorded.register(&standing());
    recorded.observe(&standing());
    let (system, took) = (system(), Duration::from_millis(7));
    recorded.tell(5, &Event::Verified { system: &system, took, how: "already configured; verified" });
    end("already-configured", CommandName::Bootstrap, recorded, &table, &Ok(Ending::Bootstrapped));
}

#[test]
fn a_dry_run_prints_its_golden_files() {
    let observed = fresh();
    let mut recorded = RecordedRun::new();
    recorded.register(&observed);
    recorded.observe(&observed);
    let Decision::Proceed(plan) = decide(&observed, &request()) else { panic!("no plan") };
    let text = plan.to_string();
    // A person copies the commands, so they are not broken into lines. `end` would find them too long.
    golden("dry-run.txt", &format!("{}{text}\n", recorded.lines(PLAIN)));
    let document =
        Document::new(CommandName::Bootstrap, &recorded.record, recorded.at, &Ok(Ending::Planned(plan)))
            .text();
    valid("Document", &serde_json::from_str(&document).unwrap());
    golden("dry-run.json", &document);
}

#[test]
fn a_run_that_is_out_of_time_prints_its_golden_files() {
    let mut observed = fresh();
    observed.sentinels.pop();
    observed.redis[1].state = Err(Unusable::Unreachable("Connection refused (os error 111)".into()));
    let mut recorded = RecordedRun::new();
    recorded.register(&observed);
    let waiting = || WaitingFor::Registrations { redis: 0, sentinels: 1 };
    recorded.tell(5, &Event::WaitingFor { what: &waiting(), nodes: &[] });
    recorded.at = Duration::from_secs(300);
    recorded.observe(&observed);
    let nodes = observed.problems();
    end("out-of-time", CommandName::Bootstrap, recorded, &nothing, &Err(out_of_time(waiting(), nodes)));
}

#[test]
fn a_run_that_waited_for_nodes_prints_its_golden_files() {
    let mut observed = standing();
    observed.redis[0].state = Err(Unusable::Loading);
    for (name, wait) in [
        (
            "not-enough",
            Wait::NotEnough {
                usable_redis: 1,
                expected_redis: 2,
                usable_sentinels: 3,
                expected_sentinels: 3,
            },
        ),
        ("failover", Wait::Failover(sentinel_at(1))),
        (
            "converging",
            Wait::Converging(
                "10.0.0.1:26379 reports 10.0.0.1:6379, 10.0.0.2:26379 reports 10.0.0.2:6379".into(),
            ),
        ),
    ] {
        let mut recorded = RecordedRun::new();
        recorded.register(&observed);
        recorded.observe(&observed);
        let nodes = observed.problems();
        recorded.tell(0, &Event::WaitingFor { what: &WaitingFor::Nodes(wait.clone()), nodes: &nodes });
        recorded.at = Duration::from_secs(300);
        let failure = out_of_time(WaitingFor::Nodes(wait), nodes);
        end(&format!("out-of-time-{name}"), CommandName::Bootstrap, recorded, &nothing, &Err(failure));
    }
}

/// What is refused, with the name of its golden files.
fn refused() -> Vec<(&'static str, Observed)> {
    let with = |change: &dyn Fn(&mut Observed)| {
        let mut observed = fresh();
        change(&mut observed);
        observed
    };
    let keys = |observed: &mut Observed, index: usize, keys: u64| {
        observed.redis[index].state.as_mut().unwrap().data.keys = keys;
    };
    let monitors = |observed: &mut Observed, index: usize, master: Endpoint| {
        let monitored = standing().sentinels[0].state.clone().unwrap().monitored.map(|monitored| Monitored {
            master: NamedMaster {
                endpoint: master,
                fields: [("flags".to_owned(), "master".to_owned())].into(),
            },
            replicas: vec![],
            ..monitored
        });
        observed.sentinels[index].state.as_mut().unwrap().monitored = monitored;
    };
    vec![
        ("two-data-sets", with(&|observed| (0..2).for_each(|index| keys(observed, index, 100)))),
        (
            "data-that-the-master-lacks",
            with(&|observed| {
                monitors(observed, 0, redis_at(1));
                keys(observed, 1, 3);
            }),
        ),
        (
            "sentinels-disagree",
            with(&|observed| {
                monitors(observed, 0, redis_at(1));
                monitors(observed, 1, redis_at(2));
            }),
        ),
        ("unregistered-master", with(&|observed| monitors(observed, 0, Endpoint::new("192.0.2.1", 6379)))),
        (
            "replica-of-a-stranger",
            with(&|observed| {
                observed.redis[0].state.as_mut().unwrap().role =
                    Role::Replica { of: Endpoint::new("192.0.2.1", 6379), link_up: true };
            }),
        ),
        (
            "one-server-twice",
            with(&|observed| observed.redis[1].state.as_mut().unwrap().run_id = "run-1".to_owned()),
        ),
        (
            "one-sentinel-id-twice",
            with(&|observed| observed.sentinels[1].state.as_mut().unwrap().my_id = "id-1".to_owned()),
        ),
        ("cluster-mode", with(&|observed| observed.redis[1].state = Err(Unusable::ClusterMode))),
        (
            "no-password",
            with(&|observed| {
                let error = ServerError { code: "NOAUTH".into(), detail: "Authentication required.".into() };
                observed.redis[1].state = Err(Unusable::Denied { kind: Kind::Redis, error });
            }),
        ),
    ]
}

#[test]
fn every_refusal_prints_its_golden_files() {
    for (name, observed) in refused() {
        let mut recorded = RecordedRun::new();
        recorded.register(&observed);
        recorded.observe(&observed);
        let Decision::Refuse(refusal) = decide(&observed, &request()) else {
            panic!("{name} is not refused")
        };
        end(
            &format!("refused-{name}"),
            CommandName::Bootstrap,
            recorded,
            &nothing,
            &Err(Failure::Refused(refusal)),
        );
    }
}

#[test]
fn other_failures_print_their_golden_files() {
    let unusable = Failure::Unusable {
        node: sentinel_at(2),
        what: "`SENTINEL MONITOR` was answered with `ERR Failed to save config file. Check server logs.`"
            .into(),
        hint: "let the Sentinel write its configuration file and the folder of the file; its log shows the \
             cause"
            .into(),
    };
    end("unusable", CommandName::Bootstrap, under_way(), &nothing, &Err(unusable));
    let unmet = vec![
        Unmet::new(&redis_at(1), "has 0 of 1 replicas online"),
        Unmet::new(&redis_at(2), "its link to the master is not up"),
    ];
    let mut recorded = under_way();
    recorded.tell(1000, &Event::Unmet(&unmet));
    recorded.at = Duration::from_secs(300);
    let failure = Failure::NotVerified { after: Duration::from_secs(300), unmet };
    end("not-verified", CommandName::Bootstrap, recorded, &nothing, &Err(failure));
    let gone = || BrokerError::Unreachable {
        url: RequestUrl {
            url: "http://broker:3000/".into(),
            health_check: "http://broker:3000/healthcheck".into(),
        },
        cause: "Connection refused (os error 111)".into(),
    };
    let mut recorded = RecordedRun::new();
    recorded.tell(3, &Event::NoBroker(&gone()));
    recorded.at = Duration::from_secs(300);
    end("broker-unreachable", CommandName::Bootstrap, recorded, &nothing, &Err(Failure::Broker(gone())));
    end(
        "stopped",
        CommandName::Bootstrap,
        under_way(),
        &nothing,
        &Err(Failure::Stopped(exit_code::INTERRUPTED)),
    );
    let usage = Failure::Usage(vec!["--timeout: must be greater than zero and at most 7 days".into()]);
    let recorded =
        RecordedRun { words: vec![], record: Record::default(), at: Duration::ZERO, entered: Duration::ZERO };
    end("usage", CommandName::Bootstrap, recorded, &nothing, &Err(usage));
}

/// The views that a terminal shows, one below the other.
#[test]
fn the_live_view_draws_its_golden_files() {
    let mut observed = fresh();
    observed.redis.truncate(1);
    observed.sentinels.truncate(2);
    observed.sentinels[1].state = Err(Unusable::Unreachable("Connection refused (os error 111)".into()));
    let mut recorded = RecordedRun::new();
    let mut views = vec![recorded.record.clone()];
    recorded.register(&observed);
    recorded.tell(0, &Event::Observed(&observed));
    let waiting = WaitingFor::Registrations { redis: 1, sentinels: 1 };
    recorded.tell(0, &Event::WaitingFor { what: &waiting, nodes: &[] });
    views.push(recorded.record.clone());
    views.push(under_way().record);
    let mut recorded = under_way();
    let unmet = [Unmet::new(&sentinel_at(1), "knows 0 of 2 other Sentinels, and a long story to tell of it")];
    recorded.tell(1000, &Event::Unmet(&unmet));
    views.push(recorded.record);
    for (name, style) in [("live.80.txt", WIDE), ("live.80.ansi", COLOUR)] {
        let mut text = String::new();
        for (number, record) in (0..).zip(&views) {
            let at = Duration::from_secs(7 * number);
            text += &(live::frame(record, at, style, 24).join("\n") + "\n\n");
        }
        golden(name, &text);
    }
    for columns in [30, 40, 80, 200] {
        for rows in [3, 5, 24] {
            let style = Style { colour: false, columns: Some(columns) };
            for record in &views {
                let frame = live::frame(record, Duration::from_secs(3), style, rows);
                assert!(frame.len() <= rows.max(3), "{frame:?}");
                assert!(frame.iter().all(|line| line.chars().count() < columns), "{columns}: {frame:?}");
            }
        }
    }
}

fn look(observed: Observed, expected: Expected, unmet: Vec<Unmet>, verdict: Result<System, Failure>) -> Look {
    Look { roster: roster(&observed), expected, observed, unmet, verdict }
}

/// Compares what `status` prints of a look with its golden files.
fn golden_look(name: &str, look: Look) {
    let mut recorded = RecordedRun::new();
    recorded.words.clear();
    recorded.tell(1, &Event::Roster { roster: &look.roster, expected: look.expected });
    recorded.tell(1, &Event::Observed(&look.observed));
    recorded.tell(1, &Event::Found(&look.unmet));
    let trees = [PLAIN, WIDE, COLOUR].map(|style| status::tree(&look, style));
    let shown = move |style: Style| {
        let index = [PLAIN, WIDE, COLOUR].iter().position(|known| *known == style).unwrap();
        trees[index].clone()
    };
    let ended = look.verdict.map(|system| {
        recorded.record.system = Some(system);
        Ending::Verified
    });
    end(name, CommandName::Status, recorded, &shown, &ended);
}

#[test]
fn status_prints_its_golden_files() {
    let expected = Expected { redis: 2, sentinels: 3, quorum: 2 };
    golden_look("status-verified", look(standing(), expected, vec![], Ok(system())));

    let mut observed = standing();
    observed.redis[1].state.as_mut().unwrap().role = Role::Replica { of: redis_at(1), link_up: false };
    observed.redis[0].state.as_mut().unwrap().replicas.clear();
    let monitored = observed.sentinels[2].state.as_mut().unwrap().monitored.as_mut().unwrap();
    monitored.master.fields.insert("flags".into(), "s_down,master".into());
    let unmet = vec![
        Unmet::new(&redis_at(1), "has 0 of 1 replicas online"),
        Unmet::new(&redis_at(2), "its link to the master is not up"),
        Unmet::new(&sentinel_at(3), "sees the master as `s_down,master`"),
    ];
    let failure = Failure::NotAsItShouldBe { commands: 0, unmet: unmet.clone() };
    golden_look("status-not-verified", look(observed, expected, unmet, Err(failure)));

    let mut observed = fresh();
    observed.redis[1].state = Err(Unusable::Unreachable("Connection refused (os error 111)".into()));
    observed.sentinels.pop();
    let nodes = observed.problems();
    let waiting_for = Box::new(WaitingFor::Registrations { redis: 0, sentinels: 1 });
    golden_look(
        "status-incomplete",
        look(observed, expected, vec![], Err(Failure::NotReady { waiting_for, nodes })),
    );

    let Decision::Proceed(plan) = decide(&fresh(), &request()) else { panic!("no plan") };
    let commands = plan.commands().len();
    golden_look(
        "status-fresh",
        look(fresh(), expected, vec![], Err(Failure::NotAsItShouldBe { commands, unmet: vec![] })),
    );

    // Two servers replicate each other, and a third one follows one of them. The tree has to show all three.
    let mut observed = fresh();
    observed.redis.push(good(redis_at(3), redis(3)));
    for (index, of) in [(0, 2), (1, 1), (2, 1)] {
        observed.redis[index].state.as_mut().unwrap().role =
            Role::Replica { of: redis_at(of), link_up: false };
    }
    let refusal = Refusal {
        kind: RefusalKind::Unsafe,
        reason: "10.0.0.1:6379 and 10.0.0.2:6379 replicate each other: neither is a master".into(),
        hint: "choose the server whose data you keep, 10.0.0.1:6379 or 10.0.0.2:6379, and send it REPLICAOF \
            NO ONE: it takes writes, and its data replaces the other server's data at once"
            .into(),
    };
    golden_look("status-circle", look(observed, expected, vec![], Err(Failure::Refused(refusal))));
}

#[test]
fn status_shows_what_a_quorum_above_the_majority_costs() {
    let expected = Expected { redis: 2, sentinels: 3, quorum: 2 };
    let shown = |quorum: &str| {
        let mut observed = standing();
        for sentinel in &mut observed.sentinels {
            let monitored = sentinel.state.as_mut().unwrap().monitored.as_mut().unwrap();
            monitored.master.fields.insert("quorum".into(), quorum.to_owned());
        }
        status::tree(&look(observed, expected, vec![], Ok(system())), WIDE)
    };
    assert!(shown("3").contains("no failover while fewer than 3 of them are up"), "{}", shown("3"));
    assert!(!shown("2").contains("no failover"), "{}", shown("2"));
}

#[test]
fn other_ends_print_their_golden_documents() {
    let document = |name: &str, command: CommandName, ending: Ending| {
        let document =
            Document::new(command, &Record::default(), Duration::from_millis(4), &Ok(ending)).text();
        valid("Document", &serde_json::from_str(&document).unwrap());
        golden(name, &document);
    };
    let registration = |known: bool| RegistrationJson {
        kind: KindWord::Redis,
        address: "10.0.0.7:6379".to_owned(),
        known,
        registered_at: known.then(|| "2026-11-22T10:00:00.123456789Z".to_owned()),
    };
    document("register.json", CommandName::Register, Ending::Registered(registration(true)));
    document("deregister.json", CommandName::Deregister, Ending::Deregistered(registration(false)));
    let failover = FailoverJson {
        from: "10.0.0.1:6379".to_owned(),
        to: "10.0.0.2:6379".to_owned(),
        paused_ms: 204.8,
        named_ms: 1104.2,
        verified_ms: 1804.9,
        unwritable_ms: None,
        writes: None,
        lost: None,
    };
    document("failover.json", CommandName::Failover, Ending::FailedOver(failover.clone()));
    let drill = FailoverJson { unwritable_ms: Some(1112.4), writes: Some(1210), lost: Some(0), ..failover };
    let rotation = RotationJson {
        user: "default".to_owned(),
        old_password: OldPasswordWord::Kept,
        sentinels: (1..=3).map(|number| format!("10.0.1.{number}:26379")).collect(),
    };
    document("rotation.json", CommandName::Rotate, Ending::Rotated(rotation));
    document("drill.json", CommandName::Verify, Ending::FailedOver(drill));
}

#[test]
fn every_golden_file_is_of_some_test() {
    // No test would notice a file that no test writes any more.
    let source = include_str!("golden.rs");
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    for entry in std::fs::read_dir(folder).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        let stem = name.split('.').next().unwrap();
        let stem = stem.strip_prefix("refused-").or(stem.strip_prefix("out-of-time-")).unwrap_or(stem);
        assert!(source.contains(&format!("\"{stem}")), "{name}");
    }
}
