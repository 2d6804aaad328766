//! Faults at every step: the runner killed, nodes killed or frozen, connections cut, nodes that can't be
//! used, and servers that are not a broker.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use std::{fmt, fs};

use anyhow::{Context, Result, ensure};
use broker_fn::api::Kind;
use e2e::{
    Broker, Fault, Held, Lab, Ledger, Node, NodeBuilder, Ran, Running, Sent, System, eventually,
    redis_version, scenario,
};
use futures::FutureExt;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream, UdpSocket};
use tokio::task::AbortHandle;

use crate::support::{
    LIMIT, SOON, expect_code, expect_healthy, expect_refused, fingerprint, roster, run, sample, start, sweep,
    tried, until_held, until_stderr, whole_sweep,
};

/// The `repl-diskless-sync-delay` that the masters have before a run. It is not Redis' default, so that only
/// this value is right in the end.
const DELAY: &str = "3";

/// Three Redis servers, the first with data, and three Sentinels, each behind a proxy.
async fn system_with_data(lab: &Lab, ledger: &Ledger) -> Result<System> {
    let system = lab.system_of(3, 3, |node| node.behind(ledger)).await?;
    for redis in &system.redis {
        redis.command(&["CONFIG", "SET", "repl-diskless-sync-delay", DELAY]).await?;
    }
    system.redis[0].command(&["MSET", "a", "1", "b", "2", "c", "3"]).await?;
    system.register_all().await?;
    Ok(system)
}

/// Checks that the system is verified, that all the data is on every server, and that the setting is as it
/// was.
async fn expect_nothing_lost(system: &System) -> Result<()> {
    expect_healthy(system, 0).await?;
    for redis in &system.redis {
        let data: Vec<Option<String>> = redis.query(&["MGET", "a", "b", "c"]).await?;
        assert_eq!(data, ["1", "2", "3"].map(|value| Some(value.to_owned())), "{redis}");
        let delay: Vec<String> = redis.query(&["CONFIG", "GET", "repl-diskless-sync-delay"]).await?;
        assert_eq!(delay[1], DELAY, "repl-diskless-sync-delay of {redis} is not what it was");
    }
    Ok(())
}

/// The commands of an undisturbed run.
fn undisturbed() -> Vec<Sent> {
    let sent = Mutex::default();
    scenario(async |lab| {
        let ledger = Ledger::new();
        let system = system_with_data(lab, &ledger).await?;
        expect_code(&run(lab, &system.broker, &[]).await?, 0);
        *sent.lock().unwrap() = ledger.sent();
        expect_nothing_lost(&system).await
    });
    sent.into_inner().unwrap()
}

/// The moment at which the runner is killed.
struct Kill {
    /// The number of the run's command, over all nodes.
    number: usize,
    /// Whether the node still gets the command.
    executed: bool,
}

impl fmt::Display for Kill {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "killed {} command {}", if self.executed { "after" } else { "before" }, self.number)
    }
}

#[test]
fn a_runner_killed_at_any_command_leaves_what_the_next_one_completes() {
    let commands = undisturbed().len();
    let kills: Vec<Kill> = sample(commands, 7)
        .flat_map(|number| [false, true].map(|executed| Kill { number, executed }))
        .collect();
    sweep(&kills, async |lab, kill| {
        let ledger = Ledger::new();
        let number = kill.number;
        let mut held = ledger.hold(move |sent| sent.number == number);
        let system = system_with_data(lab, &ledger).await?;
        let mut running = start(lab, &system.broker, &[])?;
        let Some(sent) = until_held(&mut running, &mut held).await? else {
            // The number of a run's checks depends on the nodes' speed, so it may need fewer commands than
            // the undisturbed run.
            expect_code(&running.wait(LIMIT).await?, 0);
            return expect_nothing_lost(&system).await;
        };
        println!("{kill}: {sent}");
        running.kill();
        if kill.executed {
            held.pass().await;
        }
        ledger.cut();
        let again = run(lab, &system.broker, &[]).await?;
        ensure!(again.code == Some(0), "the next run: {again}");
        expect_nothing_lost(&system).await
    });
    tried(format_args!(
        "faults tried: the runner killed at {} commands, {} runs",
        kills.len() / 2,
        kills.len()
    ));
}

#[test]
fn a_dry_run_after_a_runner_that_was_killed_changes_nothing() {
    scenario(async |lab| {
        let ledger = Ledger::new();
        let mut held = ledger.hold(Sent::attaches);
        let system = system_with_data(lab, &ledger).await?;
        let mut running = start(lab, &system.broker, &[])?;
        until_held(&mut running, &mut held).await?.context("it attaches replicas")?;
        running.kill();
        ledger.cut();
        let delay = async || {
            let delay: Vec<String> =
                system.redis[0].query(&["CONFIG", "GET", "repl-diskless-sync-delay"]).await?;
            anyhow::Ok(delay[1].clone())
        };
        assert_eq!(delay().await?, "0", "the run had changed it");
        let told = roster(&system.broker).await?.outcome;
        let ran = run(lab, &system.broker, &["--dry-run"]).await?;
        expect_code(&ran, 0);
        assert_eq!(delay().await?, "0");
        assert_eq!(roster(&system.broker).await?.outcome, told);
        expect_code(&run(lab, &system.broker, &[]).await?, 0);
        expect_nothing_lost(&system).await
    });
}

/// A moment in a run, by the command that is held there.
#[derive(Debug, Clone, Copy)]
enum Phase {
    /// All nodes have registered, and the first command is on its way.
    Registered,
    /// All replicas were sent `REPLICAOF`, and no Sentinel has the master yet.
    Attached,
    /// Only the deciding Sentinel has the master.
    Decided,
    /// All Sentinels have the master, and the verification begins.
    Monitored,
    /// The verification is under way, and asks this node.
    Verifying,
}

const PHASES: [Phase; 5] =
    [Phase::Registered, Phase::Attached, Phase::Decided, Phase::Monitored, Phase::Verifying];

impl Phase {
    /// Holds the command of this phase, for the node of this name.
    fn hold(self, ledger: &Ledger, node: String) -> Held {
        let (command, time) = match self {
            Phase::Registered => ("INFO", 1),
            Phase::Attached => ("SENTINEL MONITOR", 1),
            Phase::Decided => ("SENTINEL MONITOR", 2),
            // `PUBLISH` introduces the Sentinels to each other.
            Phase::Monitored | Phase::Verifying => ("PUBLISH", 1),
        };
        let mut seen = 0;
        ledger.hold(move |sent| {
            let verifying = seen >= time;
            seen += usize::from(sent.is(command));
            match self {
                // In the end the run asks every node once more, so this command is certain to come.
                Phase::Verifying => {
                    verifying && sent.node == node && (sent.is("INFO") || sent.is("SENTINEL MASTER"))
                }
                _ => seen == time,
            }
        })
    }
}

/// A node that is killed or frozen at a phase.
struct Fate {
    /// The node's place in [`System::nodes`]: three Redis servers, three Sentinels.
    node: usize,
    phase: Phase,
}

impl Fate {
    fn hold(&self, system: &System, ledger: &Ledger) -> Held {
        let node = system.nodes().nth(self.node).expect("there are six");
        self.phase.hold(ledger, node.name().to_owned())
    }

    /// How long a run may take to find another way: Sentinels read the `INFO` of a master every ten seconds,
    /// and learn of its replicas only then. Without the whole sweep, it is enough to see that a run which
    /// can't succeed stops in time.
    fn patience(&self) -> &'static str {
        match self.phase {
            // The run has not changed anything yet. So a replacement is in time even on a slow machine.
            Phase::Registered => "30s",
            _ if whole_sweep() => "14s",
            _ => "3s",
        }
    }
}

impl fmt::Display for Fate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = if self.node < 3 { "redis" } else { "sentinel" };
        write!(f, "{kind}-{} when {:?}", self.node % 3 + 1, self.phase)
    }
}

/// Every node at every phase. Without the whole sweep, a selection that contains each node, each phase, and
/// the master more than once.
fn fates() -> Vec<Fate> {
    let all = (0..6).flat_map(|node| PHASES.map(|phase| Fate { node, phase }));
    all.step_by(if whole_sweep() { 1 } else { 4 }).collect()
}

/// Checks that no two of these Sentinels name different masters.
async fn expect_no_split(sentinels: &[&Node]) -> Result<()> {
    let mut named = BTreeSet::new();
    for sentinel in sentinels {
        let masters: Vec<BTreeMap<String, String>> = sentinel.query(&["SENTINEL", "MASTERS"]).await?;
        named.extend(masters.into_iter().map(|fields| format!("{}:{}", fields["ip"], fields["port"])));
    }
    ensure!(named.len() <= 1, "the Sentinels believe in {named:?}");
    Ok(())
}

/// Checks that a run which did not succeed has ended with one of these codes, and names the node and what is
/// wrong with it.
#[track_caller]
fn expect_named(ran: &Ran, codes: &[i32], node: &Node) {
    assert!(ran.code.is_some_and(|code| codes.contains(&code)), "{ran}");
    let addr = node.registered_at();
    let named = [format!("{addr}: "), format!("{addr} is left out: ")];
    assert!(named.iter().any(|text| ran.stderr.contains(text)), "{node} (or {addr}) is not named: {ran}");
    // A registered node that does not answer must not be called unregistered.
    assert!(!ran.stderr.contains("not registered"), "{ran}");
}

#[test]
fn a_node_killed_at_any_phase_is_replaced_or_named_in_time() {
    let fates = fates();
    sweep(&fates, async |lab, fate| {
        let ledger = Ledger::new();
        let mut system = lab.system_of(3, 3, |node| node.behind(&ledger)).await?;
        let mut held = fate.hold(&system, &ledger);
        system.register_all().await?;
        let mut running = start(lab, &system.broker, &["--timeout", fate.patience()])?;
        let sent = until_held(&mut running, &mut held).await?;
        println!("{fate}: {}", sent.context("the run ended before this phase")?);
        let among = if fate.node < 3 { &mut system.redis } else { &mut system.sentinels };
        let dead = among.remove(fate.node % 3);
        dead.kill();
        held.release();

        // A replacement registers as soon as the run has noticed the dead node. If the run ends instead, it
        // has to print the reason.
        if until_stderr(&mut running, &format!("{}: ", dead.registered_at())).await.is_ok() {
            let replacement = match dead.kind() {
                Kind::Redis => lab.redis(),
                Kind::Sentinel => lab.sentinel(),
            };
            let replacement = replacement.behind(&ledger).start().await?;
            system.broker.register(&replacement).await?;
            match dead.kind() {
                Kind::Redis => system.redis.push(replacement),
                Kind::Sentinel => system.sentinels.push(replacement),
            }
        }
        let ran = running.wait(LIMIT).await?;
        expect_no_split(&system.sentinels.iter().collect::<Vec<_>>()).await?;
        if ran.code == Some(0) {
            let outcome = roster(&system.broker).await?.outcome.context("the run has reported")?;
            let master = outcome.master.context("a verified system has one")?.to_string();
            let master = system.redis.iter().position(|node| node.registered_at().to_string() == master);
            expect_healthy(&system, master.context("it lives")?).await?;
        } else {
            expect_named(&ran, &[3, 4, 6], &dead);
            assert!(
                !matches!(fate.phase, Phase::Registered),
                "nothing was in the way of a replacement: {ran}"
            );
        }
        Ok(())
    });
    tried(format_args!(
        "faults tried: a node killed, {} of {} nodes × phases",
        fates.len(),
        6 * PHASES.len()
    ));
}

#[test]
fn long_a_node_frozen_at_any_phase_is_named_and_used_when_it_goes_on() {
    let fates = fates();
    sweep(&fates, async |lab, fate| {
        let ledger = Ledger::new();
        let system = lab.system_of(3, 3, |node| node.behind(&ledger)).await?;
        let mut held = fate.hold(&system, &ledger);
        system.register_all().await?;
        let mut running = start(lab, &system.broker, &["--timeout", "2s", "--command-timeout", "300ms"])?;
        let sent = until_held(&mut running, &mut held).await?;
        println!("{fate}: {}", sent.context("the run ended before this phase")?);
        let node = system.nodes().nth(fate.node).context("there are six")?;
        node.stop()?;
        held.release();
        let ran = running.wait(LIMIT).await?;
        expect_named(&ran, &[3, 6], node);
        assert!(ran.elapsed < SOON, "{ran}");
        node.cont()?;
        expect_no_split(&system.sentinels.iter().collect::<Vec<_>>()).await?;
        expect_code(&run(lab, &system.broker, &[]).await?, 0);
        expect_healthy(&system, 0).await
    });
    tried(format_args!(
        "faults tried: a node frozen, {} of {} nodes × phases",
        fates.len(),
        6 * PHASES.len()
    ));
}

#[test]
fn a_node_of_any_kind_that_is_frozen_from_the_start_is_named_in_time() {
    scenario(async |lab| {
        let system = lab.system(2, 3).await?;
        system.register_all().await?;
        let flags = ["--timeout", "1s", "--command-timeout", "200ms"];
        let [master, replica] = &system.redis[..] else { unreachable!("two were started") };
        for node in [master, replica, &system.sentinels[0]] {
            node.stop()?;
            let ran = run(lab, &system.broker, &flags).await?;
            expect_named(&ran, &[3], node);
            assert!(ran.stderr.contains("no answer within 200ms") && ran.elapsed < SOON, "{ran}");
            node.cont()?;
        }
        expect_code(&run(lab, &system.broker, &[]).await?, 0);
        expect_healthy(&system, 0).await
    });
}

#[test]
fn an_address_that_drops_packets_is_named_in_time() {
    scenario(async |lab| {
        // A listener whose queue is full, so that the TCP handshake gets no answer.
        let socket = TcpSocket::new_v4()?;
        socket.bind((Ipv4Addr::LOCALHOST, 0).into())?;
        let listener = socket.listen(1)?;
        let silent = listener.local_addr()?;
        let mut queue: Vec<_> = (0..8).map(|_| Box::pin(TcpStream::connect(silent))).collect();
        for connect in &mut queue {
            // This sends the first packet. Two connections get a place in the queue, and keep it as long as
            // nothing accepts them.
            let _ = connect.now_or_never();
        }
        let body = serde_json::json!({"host": silent.ip(), "port": silent.port()});
        let flags = ["--redis", "2", "--sentinels", "3", "--timeout", "1s", "--command-timeout", "200ms"];
        for kind in [Kind::Redis, Kind::Sentinel] {
            let (redis, sentinels) = if kind == Kind::Redis { (1, 3) } else { (2, 2) };
            let system = lab.system(redis, sentinels).await?;
            system.register_all().await?;
            system.broker.post(format!("/{kind}")).json(&body).send().await?;
            let ran = run(lab, &system.broker, &flags).await?;
            expect_code(&ran, 3);
            assert!(ran.stderr.contains(&format!("{silent}: unreachable: no answer within 200ms")), "{ran}");
            assert!(ran.elapsed < SOON, "{ran}");
        }
        Ok(())
    });
}

#[test]
fn a_node_that_falls_silent_in_the_middle_of_a_run_is_named_in_time() {
    scenario(async |lab| {
        let monitors: fn(&Sent) -> bool = |sent| sent.is("SENTINEL MONITOR");
        for (kind, command) in
            [(Kind::Redis, Sent::attaches as fn(&Sent) -> bool), (Kind::Sentinel, monitors)]
        {
            let ledger = Ledger::new();
            let system = lab.system_of(2, 3, |node| node.behind(&ledger)).await?;
            system.register_all().await?;
            let node = match kind {
                Kind::Redis => &system.redis[1],
                Kind::Sentinel => &system.sentinels[1],
            };
            node.proxy().fault(Fault::Swallow, command);
            let ran = run(lab, &system.broker, &["--timeout", "1s", "--command-timeout", "200ms"]).await?;
            expect_named(&ran, &[3], node);
            assert!(ran.elapsed < SOON, "{ran}");
        }
        Ok(())
    });
}

/// A connection that is cut at a command.
struct Cut {
    number: usize,
    fault: Fault,
}

impl fmt::Display for Cut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} at command {}", self.fault, self.number)
    }
}

#[test]
fn a_connection_that_is_cut_at_any_command_is_opened_again() {
    let commands = undisturbed().len();
    let faults = [Fault::CutBefore, Fault::CutBeforeReply, Fault::CutAfterReply];
    let cuts: Vec<Cut> = if whole_sweep() {
        sample(commands, 1).flat_map(|number| faults.map(|fault| Cut { number, fault })).collect()
    } else {
        let faults = faults.into_iter().cycle();
        sample(commands, 5).zip(faults).map(|(number, fault)| Cut { number, fault }).collect()
    };
    sweep(&cuts, async |lab, cut| {
        let ledger = Ledger::new();
        let system = system_with_data(lab, &ledger).await?;
        let number = cut.number;
        for node in system.nodes() {
            node.proxy().fault(cut.fault, move |sent| sent.number == number);
        }
        let ran = run(lab, &system.broker, &[]).await?;
        ensure!(ran.code == Some(0), "{ran}");
        expect_nothing_lost(&system).await
    });
    tried(format_args!("faults tried: a connection cut at one of {commands} commands, {} runs", cuts.len()));
}

#[test]
fn a_slow_network_is_waited_for() {
    scenario(async |lab| {
        let ledger = Ledger::new();
        let system = system_with_data(lab, &ledger).await?;
        for node in system.nodes() {
            node.proxy().delay(Duration::from_millis(10), Duration::from_millis(10));
        }
        expect_code(&run(lab, &system.broker, &[]).await?, 0);
        expect_nothing_lost(&system).await
    });
}

/// Two Redis servers and three Sentinels. The first Redis server is this one.
async fn with_redis(lab: &Lab, redis: NodeBuilder) -> Result<System> {
    let mut system = lab.system(1, 3).await?;
    system.redis.insert(0, redis.start().await?);
    complete(lab, system).await
}

/// Two Redis servers and three Sentinels. The first Sentinel is this one.
async fn with_sentinel(lab: &Lab, sentinel: NodeBuilder) -> Result<System> {
    let mut system = lab.system(2, 2).await?;
    system.sentinels.insert(0, sentinel.start().await?);
    complete(lab, system).await
}

/// Gives these nodes a broker that expects them, and registers them.
async fn complete(lab: &Lab, system: System) -> Result<System> {
    let System { redis, sentinels, .. } = system;
    let system = System { broker: lab.broker(Broker::builder())?, redis, sentinels };
    system.register_all().await?;
    Ok(system)
}

#[test]
fn a_server_in_cluster_mode_is_named() {
    scenario(async |lab| {
        let system = with_redis(lab, lab.redis().cluster()).await?;
        expect_refused(lab, &system, 5, &[system.redis[0].addr()], "cluster mode").await
    });
}

#[test]
fn a_server_in_protected_mode_is_named() {
    scenario(async |lab| {
        // In protected mode, a server refuses clients that are not on its own machine. So the proxy connects
        // from the machine's own address, if the machine has one. If it has none, an address like 127.0.0.3
        // is strange enough for Redis 7.0. Before 7.0, a server is protected only if it listens everywhere.
        let outside = UdpSocket::bind("0.0.0.0:0").await?;
        // This sends no packet, but shows the address from which a packet would be sent.
        let own = match outside.connect("192.0.2.1:9").await {
            Ok(()) => outside.local_addr()?.ip(),
            Err(_) => Ipv4Addr::new(127, 0, 0, 3).into(),
        };
        let system =
            with_redis(lab, lab.redis().everywhere().behind(&Ledger::new()).reached_from(own)).await?;
        let named = [system.redis[0].registered_at()];
        expect_refused(lab, &system, 5, &named, "protected mode").await
    });
}

#[test]
fn a_password_that_is_missing_or_wrong_is_named() {
    scenario(async |lab| {
        for (kind, variable) in [(Kind::Redis, "REDIS_PASSWORD"), (Kind::Sentinel, "SENTINEL_PASSWORD")] {
            let system = match kind {
                Kind::Redis => with_redis(lab, lab.redis().password("s3cret")).await?,
                Kind::Sentinel => with_sentinel(lab, lab.sentinel().password("s3cret")).await?,
            };
            let node = match kind {
                Kind::Redis => &system.redis[0],
                Kind::Sentinel => &system.sentinels[0],
            };
            expect_refused(lab, &system, 5, &[node.addr()], "NOAUTH").await?;

            let before = fingerprint(&system).await?;
            let wrong = lab.runner(["bootstrap", "--broker", &system.broker.url()]).env(variable, "m1staken");
            let ran = wrong.run(LIMIT).await?;
            expect_code(&ran, 5);
            assert!(ran.stderr.contains("can't be used: ") && !ran.stderr.contains("m1staken"), "{ran}");
            assert_eq!(before, fingerprint(&system).await?);
        }
        Ok(())
    });
}

#[test]
fn a_node_that_is_registered_as_the_other_kind_is_named() {
    scenario(async |lab| {
        for (as_kind, found) in [(Kind::Redis, "it is a sentinel"), (Kind::Sentinel, "it is a redis")] {
            let system = lab.system(2, 3).await?;
            let addr = match as_kind {
                Kind::Redis => system.sentinels[0].addr(),
                Kind::Sentinel => system.redis[0].addr(),
            };
            system.register_all().await?;
            let body = serde_json::json!({"host": addr.ip(), "port": addr.port()});
            system.broker.post(format!("/{as_kind}")).json(&body).send().await?;
            expect_refused(lab, &system, 5, &[addr], found).await?;
        }
        Ok(())
    });
}

#[test]
fn two_sentinels_with_one_id_are_named() {
    scenario(async |lab| {
        let id = "0123456789abcdef".repeat(3)[..40].to_owned();
        let copied = || lab.sentinel().config(format!("sentinel myid {id}"));
        let mut system = lab.system(2, 1).await?;
        system.sentinels.insert(0, copied().start().await?);
        system.sentinels.push(copied().start().await?);
        let system = complete(lab, system).await?;
        let named = [system.sentinels[0].addr(), system.sentinels[2].addr()];
        expect_refused(lab, &system, 4, &named, &id).await
    });
}

#[test]
fn one_server_under_two_addresses_is_named() {
    scenario(async |lab| {
        let redis = lab.redis().config("bind 127.0.0.1 127.0.0.2").start().await?;
        let mut system = lab.system(0, 3).await?;
        system.redis.push(redis);
        let system = complete(lab, system).await?;
        let one = system.redis[0].addr();
        let other = SocketAddr::from(([127, 0, 0, 2], one.port()));
        let body = serde_json::json!({"host": other.ip(), "port": other.port()});
        system.broker.post("/redis").json(&body).send().await?;
        expect_refused(lab, &system, 4, &[one, other], "one server").await
    });
}

#[test]
fn an_address_where_another_server_lives_now_is_named() {
    scenario(async |lab| {
        let system = lab.system(2, 3).await?;
        let node = &system.redis[0];
        let run_id = node.info("server").await?["run_id"].clone();
        let body =
            serde_json::json!({"host": node.addr().ip(), "port": node.addr().port(), "run_id": run_id});
        system.broker.post("/redis").json(&body).send().await?;
        // A server gets a fresh run id with every start, even with the same data.
        node.restart().await?;
        for other in system.redis[1..].iter().chain(&system.sentinels) {
            system.broker.register(other).await?;
        }
        // The server may register again, so the run waits for it, and names it in the end.
        let before = fingerprint(&system).await?;
        let ran = run(lab, &system.broker, &["--timeout", "1s"]).await?;
        expect_code(&ran, 5);
        assert!(ran.stderr.contains(&run_id) && ran.stderr.contains("hint: "), "{ran}");
        assert_eq!(before, fingerprint(&system).await?);
        Ok(())
    });
}

#[test]
fn a_sentinel_that_can_not_write_its_file_is_named() {
    scenario(async |lab| {
        if redis_version()? < (7, 0) {
            return says_nothing_of_an_unwritable_file(lab).await;
        }
        // The Sentinel with the lowest id is asked before the others.
        for number in 0..2 {
            let mut system = lab.system(2, 0).await?;
            for id in 0..3 {
                let sentinel = lab.sentinel().config(format!("sentinel myid {id:040x}"));
                system.sentinels.push(sentinel.start().await?);
            }
            let system = complete(lab, system).await?;
            let sentinel = &system.sentinels[number];
            // Not even root can rename a file over a folder.
            let file = sentinel.config_file();
            fs::remove_file(&file)?;
            fs::create_dir(&file)?;
            let ran = run(lab, &system.broker, &[]).await?;
            expect_code(&ran, 5);
            let (_, error) = ran.stderr.split_once("error: ").context("it ends with an error")?;
            assert!(error.contains(&format!("{}: ", sentinel.addr())), "{ran}");
            assert!(
                error.contains("Failed to save config file")
                    && error.contains("hint: let the Sentinel write")
                    && ran.elapsed < SOON,
                "{ran}"
            );

            fs::remove_dir(&file)?;
            expect_code(&run(lab, &system.broker, &[]).await?, 0);
            expect_healthy(&system, 0).await?;
            let written = fs::read_to_string(&file).unwrap_or_default();
            assert!(written.contains("sentinel monitor mymaster"), "a restart would forget it:\n{written}");
        }
        Ok(())
    });
}

/// Before 7.0, no answer of a Sentinel shows that its file could not be written, so the runner can't see
/// that.
async fn says_nothing_of_an_unwritable_file(lab: &Lab) -> Result<()> {
    let sentinel = lab.sentinel().start().await?;
    fs::remove_file(sentinel.config_file())?;
    fs::create_dir(sentinel.config_file())?;
    let monitor = ["SENTINEL", "MONITOR", "mymaster", "127.0.0.1", "6379", "1"];
    for command in [&monitor[..], &["SENTINEL", "FLUSHCONFIG"]] {
        assert_eq!(sentinel.query::<String>(command).await?, "OK");
    }
    Ok(())
}

/// Answers every connection with these bytes and closes it, for as long as the runtime lives.
async fn answers(listen: SocketAddr, answer: String) -> Result<(SocketAddr, AbortHandle)> {
    let listener = TcpListener::bind(listen).await?;
    let addr = listener.local_addr()?;
    let serve = async move {
        while let Ok((mut client, _)) = listener.accept().await {
            // Reads the whole request, which is small enough for one read. A client that is answered before
            // it has asked may see an error instead of the answer.
            let mut request = [0; 4096];
            if client.read(&mut request).await.is_ok() {
                // An error is ignored: the client may have left.
                let _ = client.write_all(answer.as_bytes()).await;
            }
        }
    };
    Ok((addr, tokio::spawn(serve).abort_handle()))
}

fn response(status: &str, headers: &str, body: &str) -> String {
    let length = body.len();
    format!("HTTP/1.1 {status}\r\n{headers}Content-Length: {length}\r\nConnection: close\r\n\r\n{body}")
}

/// An address for a broker that is stopped and started. No other process takes its port in between, because
/// everything else is on 127.0.0.1.
fn address_of_its_own() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 77], 0))
}

#[test]
fn an_address_without_a_broker_ends_a_run_with_7() {
    scenario(async |lab| {
        for (answer, text) in [
            (response("200 OK", "", "<html>welcome</html>"), "is not a roster"),
            (response("200 OK", "Content-Type: application/json\r\n", "{}"), "is not a roster"),
            (response("302 Found", "Location: http://127.0.0.1:1/\r\n", ""), "redirects"),
            (response("401 Unauthorized", "", ""), "--token-file"),
            (response("404 Not Found", "", ""), "404"),
        ] {
            let (addr, _) = answers(address_of_its_own(), answer).await?;
            let ran = lab.runner(["bootstrap", "--broker", &format!("http://{addr}")]).run(LIMIT).await?;
            expect_code(&ran, 7);
            assert!(ran.stderr.contains(text) && ran.elapsed < SOON, "`{text}`: {ran}");
        }
        Ok(())
    });
}

#[test]
fn a_broker_that_may_recover_is_waited_for_and_named_in_time() {
    scenario(async |lab| {
        for (answer, text) in [
            (response("503 Service Unavailable", "Retry-After: 1\r\n", ""), "503"),
            ("220 mail.example.com ESMTP\r\n".to_owned(), "can't be reached"),
            (String::new(), "can't be reached"),
        ] {
            let (addr, responder) = answers(address_of_its_own(), answer).await?;
            let url = format!("http://{addr}");
            let ran = lab.runner(["bootstrap", "--broker", &url, "--timeout", "500ms"]).run(LIMIT).await?;
            expect_code(&ran, 7);
            assert!(ran.stderr.contains(text) && ran.elapsed < SOON, "`{text}`: {ran}");

            let running = lab.runner(["bootstrap", "--broker", &url, "--timeout", "40s"]).start()?;
            becomes_a_broker(lab, running, text, || responder.abort(), addr).await?;
        }
        Ok(())
    });
}

#[test]
fn a_broker_is_not_asked_again_before_its_retry_after() {
    const ASKED_FOR: Duration = Duration::from_secs(1);
    scenario(async |lab| {
        let asked = Arc::new(Mutex::new(Vec::<Instant>::new()));
        let listener = TcpListener::bind(address_of_its_own()).await?;
        let url = format!("http://{}", listener.local_addr()?);
        let noted = Arc::clone(&asked);
        tokio::spawn(async move {
            let answer = response("503 Service Unavailable", "Retry-After: 1\r\n", "");
            while let Ok((mut client, _)) = listener.accept().await {
                noted.lock().expect("nothing panics while it holds this lock").push(Instant::now());
                let mut request = [0; 4096];
                if client.read(&mut request).await.is_ok() {
                    let _ = client.write_all(answer.as_bytes()).await;
                }
            }
        });
        let times = || asked.lock().expect("nothing panics while it holds this lock").clone();
        let expect_apart = |times: &[Instant]| {
            let soonest = times.windows(2).map(|pair| pair[1] - pair[0]).min();
            assert!(soonest.is_some_and(|soonest| soonest >= ASKED_FOR), "{soonest:?} in {}", times.len());
        };
        let ran = lab.runner(["bootstrap", "--broker", &url, "--timeout", "2500ms"]).run(LIMIT).await?;
        expect_code(&ran, 7);
        expect_apart(&times());

        let by_runner = times().len();
        let node = lab.redis().joining(["--broker", &url, "--poll-interval", "50ms"]).launch()?;
        node.until_logged("the broker gives no roster").await?;
        eventually(LIMIT, async || {
            let asked = times().len() - by_runner;
            ensure!(asked >= 3, "join has asked only {asked} times:\n{}", node.log());
            Ok(())
        })
        .await?;
        expect_apart(&times()[by_runner..]);
        Ok(())
    });
}

/// Checks that a run which has printed this goes on waiting, and completes the system once a broker is at
/// this address.
async fn becomes_a_broker(
    lab: &Lab,
    mut running: Running,
    text: &str,
    end: impl FnOnce(),
    addr: SocketAddr,
) -> Result<()> {
    until_stderr(&mut running, text).await?;
    end();
    let System { redis, sentinels, .. } = lab.system(2, 3).await?;
    let broker = listening(lab, addr).await?;
    let system = System { broker, redis, sentinels };
    system.register_all().await?;
    expect_code(&running.wait(LIMIT).await?, 0);
    expect_healthy(&system, 0).await
}

/// Starts a broker at this address, as soon as the address is free.
async fn listening(lab: &Lab, addr: SocketAddr) -> Result<Broker> {
    eventually(LIMIT, async || lab.broker(Broker::builder().listen(addr))).await
}

#[test]
fn a_broker_that_never_answers_does_not_hold_a_run_up() {
    scenario(async |lab| {
        let silent = TcpListener::bind(address_of_its_own()).await?;
        let url = format!("http://{}", silent.local_addr()?);
        let ran = lab.runner(["bootstrap", "--broker", &url, "--timeout", "500ms"]).run(LIMIT).await?;
        expect_code(&ran, 7);
        // The limit of a single request is 5 s. The run's own limit takes precedence.
        assert!(ran.elapsed < Duration::from_secs(4), "{ran}");
        Ok(())
    });
}

#[test]
fn a_broker_that_goes_away_and_comes_back_is_waited_for() {
    scenario(async |lab| {
        let store = lab.dir().join("broker.db");
        let builder = || Broker::builder().store(&store);
        let mut system = lab.system(2, 3).await?;
        system.broker = lab.broker(builder().listen(address_of_its_own()))?;
        let addr = system.broker.addr();
        let mut running = start(lab, &system.broker, &[])?;
        for node in system.nodes().take(3) {
            system.broker.register(node).await?;
        }
        until_stderr(&mut running, "still to register: 2 Sentinels").await?;

        // A broker that is dropped is gone before another one takes its place.
        let System { broker, redis, sentinels } = system;
        drop(broker);
        until_stderr(&mut running, "can't be reached").await?;
        let system = System { broker: lab.broker(builder().listen(addr))?, redis, sentinels };
        for node in system.nodes().skip(3) {
            system.broker.register(node).await?;
        }
        expect_code(&running.wait(LIMIT).await?, 0);
        expect_healthy(&system, 0).await
    });
}
