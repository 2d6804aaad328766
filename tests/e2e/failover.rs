//! A change of master that loses nothing: `failover`, `verify --failover`, and a `join` that gets SIGTERM.

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use e2e::{
    Broker, Lab, Ledger, Node, NodeBuilder, Ran, Running, Sent, System, eventually, scenario, scenario_within,
};
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};

use crate::chaos::{Writer, expect_kept};
use crate::health::signal_server;
use crate::join::{
    FAST, brought_up, launched, master, own_priority, until_healthy, until_priority, until_saved,
};
use crate::support::{LIMIT, expect_code, run, sweep, tried, until_held, whole_sweep};

/// The longest time that a client may be without an acknowledged write, and the median of these times.
pub(crate) const GAP_MS: (f64, f64) = (2000.0, 1300.0);

/// How long a test may take that repeats a failover twenty times.
pub(crate) const OFTEN: Duration = Duration::from_secs(900);

/// A program that uses redis-py: `tests/programs/writer.py` with its default settings, unless something else
/// is set.
pub(crate) struct Client {
    _child: Child,
    stdin: ChildStdin,
    stdout: Lines<BufReader<ChildStdout>>,
}

impl Client {
    fn start(system: &System) -> Result<Self> {
        let sentinels = system.sentinels.iter().map(|node| node.addr().to_string());
        Self::run([String::from("mymaster")].into_iter().chain(sentinels))
    }

    /// A client that asks no Sentinels, and uses one address, behind which there is a master.
    pub(crate) fn at(address: SocketAddr) -> Result<Self> {
        Self::run(["--at".to_owned(), address.to_string()])
    }

    fn run(arguments: impl IntoIterator<Item = String>) -> Result<Self> {
        Self::program("writer.py", arguments)
    }

    /// Another program of `tests/programs`, which answers each line with a line.
    pub(crate) fn program(name: &str, arguments: impl IntoIterator<Item = String>) -> Result<Self> {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        let python = root.join("target/redis-py/bin/python");
        ensure!(
            python.exists(),
            "redis-py is not there; `make test` brings it (tests/scripts/setup.sh test)"
        );
        let mut command = Command::new(python);
        command.arg(root.join("tests/programs").join(name)).args(arguments);
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .context("python")?;
        let (stdin, stdout) = (child.stdin.take().context("stdin")?, child.stdout.take().context("stdout")?);
        Ok(Self { _child: child, stdin, stdout: BufReader::new(stdout).lines() })
    }

    pub(crate) async fn ask(&mut self, word: &str) -> Result<Value> {
        self.stdin.write_all(format!("{word}\n").as_bytes()).await?;
        let line = tokio::time::timeout(LIMIT, self.stdout.next_line()).await??;
        Ok(serde_json::from_str(&line.context("the client has ended")?)?)
    }

    /// Waits until the client has written. Its longest gap begins here.
    pub(crate) async fn begin(&mut self) -> Result<()> {
        let answer = self.ask("begin").await?;
        ensure!(answer["written"].as_u64() >= Some(20), "{answer}");
        Ok(())
    }

    /// Waits until the client has written again, and checks that it has lost nothing. Returns its longest gap
    /// in milliseconds.
    pub(crate) async fn end(&mut self) -> Result<f64> {
        let answer = self.ask("end").await?;
        ensure!(answer["written"].as_u64() >= Some(20), "{answer}");
        let lost = answer["lost"].as_array().context("a list")?;
        ensure!(lost.is_empty(), "{} of {} writes are lost: {answer}", lost.len(), answer["acknowledged"]);
        answer["longest_gap_ms"].as_f64().context("a number")
    }
}

/// A configured system with the default `down-after-milliseconds` of 30 s.
pub(crate) async fn standing(lab: &Lab, redis: usize) -> Result<System> {
    let system = lab.system(redis, 3).await?;
    system.register_all().await?;
    expect_code(&run(lab, &system.broker, &[]).await?, 0);
    Ok(system)
}

/// Like [`standing`], with all nodes behind proxies, and with these flags of `bootstrap`.
async fn standing_behind(ledger: &Ledger, lab: &Lab, redis: usize, flags: &[&str]) -> Result<System> {
    let system = lab.system_of(redis, 3, |node| node.behind(ledger)).await?;
    system.register_all().await?;
    expect_code(&run(lab, &system.broker, flags).await?, 0);
    Ok(system)
}

/// Like [`standing`], behind `join` and with append-only files. Also returns a client that writes.
pub(crate) async fn standing_behind_join(lab: &Lab) -> Result<(System, Client)> {
    standing_behind_join_with(lab, &[]).await
}

async fn standing_behind_join_with(lab: &Lab, flags: &[&str]) -> Result<(System, Client)> {
    let joins = |node: NodeBuilder| node.config("appendonly yes").join_flags(flags.iter().copied());
    let system = launched(lab, 3, 3, joins)?;
    expect_code(&run(lab, &system.broker, &[]).await?, 0);
    until_healthy(&system).await?;
    let client = Client::start(&system)?;
    Ok((system, client))
}

fn start(lab: &Lab, system: &System, flags: &[&str]) -> Result<Running> {
    lab.runner(["failover", "--broker", &system.broker.url()]).args(flags).start()
}

async fn fail_over(lab: &Lab, system: &System, flags: &[&str]) -> Result<Ran> {
    start(lab, system, flags)?.wait(LIMIT).await
}

fn check_gaps(what: &str, mut gaps: Vec<f64>) {
    gaps.sort_by(f64::total_cmp);
    let (median, longest) = (gaps[gaps.len() / 2], gaps[gaps.len() - 1]);
    tried(format_args!(
        "failovers tried: {what}: no write lost, longest gap {longest} ms, median {median} ms, of {}",
        gaps.len()
    ));
    // Times are not checked if the machine is busy with other tests.
    if whole_sweep() {
        assert!(longest <= GAP_MS.0 && median <= GAP_MS.1, "{gaps:?}");
    }
}

async fn priorities(system: &System) -> Result<Vec<String>> {
    let mut all = Vec::new();
    for node in &system.redis {
        all.push(own_priority(node).await?);
        let file = std::fs::read_to_string(node.config_file())?;
        all.extend(file.lines().filter(|line| line.starts_with("replica-priority")).map(str::to_owned));
    }
    Ok(all)
}

#[test]
fn a_failover_loses_no_write_of_a_client_that_keeps_its_connection() {
    scenario_within(OFTEN, async |lab| {
        let system = standing(lab, 3).await?;
        let mut client = Client::start(&system)?;
        let mut gaps = Vec::new();
        for _ in 0..if whole_sweep() { 20 } else { 3 } {
            let before = master(&system).await?;
            client.begin().await?;
            expect_code(&fail_over(lab, &system, &[]).await?, 0);
            gaps.push(client.end().await?);
            ensure!(until_healthy(&system).await? != before, "the master is the same");
        }
        check_gaps("failover", gaps);
        Ok(())
    });
}

#[test]
fn long_a_failover_promotes_the_given_replica_and_leaves_no_setting() {
    scenario(async |lab| {
        let system = standing(lab, 3).await?;
        let mut client = Client::start(&system)?;
        for to in [2, 1] {
            let addr = system.redis[to].addr().to_string();
            client.begin().await?;
            let ran = fail_over(lab, &system, &["--to", &addr, "--output", "json"]).await?;
            expect_code(&ran, 0);
            client.end().await?;
            let document: Value = serde_json::from_str(&ran.stdout)?;
            assert_eq!(
                (&document["failover"]["to"], &document["outcome"]),
                (&addr.clone().into(), &"verified".into())
            );
            assert_eq!(until_healthy(&system).await?, to);
            let known = priorities(&system).await?;
            assert!(known.iter().all(|one| one.split(' ').next_back() == Some("100")), "{known:?}");
            let outcome = crate::support::roster(&system.broker).await?.outcome.expect("it was reported");
            assert_eq!((outcome.master.map(|addr| addr.to_string()), outcome.restore.len()), (Some(addr), 0));
        }
        let own = system.redis[1].addr().to_string();
        let ran = fail_over(lab, &system, &["--to", &own]).await?;
        expect_code(&ran, 0);
        assert!(ran.stderr.contains("is the master already"), "{ran}");
        let ran = fail_over(lab, &system, &["--to", "127.0.0.1:1"]).await?;
        expect_code(&ran, 2);
        assert!(ran.stderr.contains("is not a replica of this system"), "{ran}");
        system.redis[0].command(&["CONFIG", "SET", "replica-priority", "0"]).await?;
        let ran = fail_over(lab, &system, &["--to", &system.redis[0].addr().to_string()]).await?;
        expect_code(&ran, 4);
        assert!(ran.stderr.contains("can't be promoted: its replica-priority is 0"), "{ran}");
        Ok(())
    });
}

/// At which command a run is killed.
struct Kill {
    command: &'static str,
    executed: bool,
}

impl fmt::Display for Kill {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "killed {} `{}`", if self.executed { "after" } else { "before" }, self.command)
    }
}

/// Whether this is the command at which a run is held, and not a rehearsal of it.
fn is(command: &str, sent: &Sent) -> bool {
    sent.is(command)
        && (!sent.is("CLIENT PAUSE") || sent.words[2] != "0")
        && (!sent.is("REPLICAOF") || sent.attaches())
        && (!sent.is("SENTINEL FAILOVER") || !sent.words[2].is_empty())
        && (!sent.is("CLIENT UNPAUSE") || sent.words.len() == 2)
}

#[test]
fn a_failover_killed_at_any_step_loses_nothing_that_was_confirmed() {
    let steps = ["CLIENT PAUSE", "SENTINEL FAILOVER", "REPLICAOF", "CONFIG REWRITE"];
    let kills =
        steps.into_iter().flat_map(|command| [true, false].map(|executed| Kill { command, executed }));
    let kills: Vec<Kill> = kills.filter(|kill| whole_sweep() || kill.executed).collect();
    sweep(&kills, async |lab, kill| {
        let ledger = Ledger::new();
        let system = standing_behind(&ledger, lab, 3, &FAST).await?;
        let writer = Writer::to(&system).await?;
        let command = kill.command;
        let mut held = ledger.hold(move |sent| is(command, sent));
        let mut running = start(lab, &system, &[])?;
        until_held(&mut running, &mut held).await?.context("it sends that")?;
        running.kill();
        if kill.executed {
            held.pass().await;
        }
        ledger.cut();
        // The writer writes again, and the Sentinels have made one system of the nodes.
        writer.goes_on().await?;
        let named = until_healthy(&system).await?;
        writer.goes_on().await?;
        writer.expect_kept_by(&system.redis[named]).await?;
        expect_code(&run(lab, &system.broker, &[]).await?, 0);
        expect_code(&fail_over(lab, &system, &[]).await?, 0);
        Ok(())
    });
}

#[test]
fn long_a_runner_killed_once_a_sentinel_was_asked_costs_no_write() {
    scenario_within(OFTEN, async |lab| {
        let ledger = Ledger::new();
        let system = standing_behind(&ledger, lab, 3, &[]).await?;
        let mut client = Client::start(&system)?;
        let mut gaps = Vec::new();
        for _ in 0..if whole_sweep() { 10 } else { 1 } {
            client.begin().await?;
            let mut held = ledger.hold(|sent| is("SENTINEL FAILOVER", sent));
            let mut running = start(lab, &system, &[])?;
            until_held(&mut running, &mut held).await?.context("it sends that")?;
            running.kill();
            held.pass().await;
            ledger.cut();
            // The Sentinels attach the old master while its writes are still paused.
            until_healthy(&system).await?;
            gaps.push(client.end().await?);
        }
        tried(format_args!(
            "failovers tried: killed once a Sentinel was asked: no write lost, gaps {gaps:?} ms"
        ));
        Ok(())
    });
}

/// Which node, or the run, is frozen or killed, and at which command.
struct Blow {
    command: &'static str,
    who: &'static str,
    freezes: bool,
}

impl fmt::Display for Blow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "at `{}` {} is {}", self.command, self.who, if self.freezes { "frozen" } else { "killed" })
    }
}

impl Blow {
    /// The node that is frozen or killed, or `None` if it is the run.
    fn victim<'a>(&self, system: &'a System, ledger: &Ledger) -> Result<Option<&'a Node>> {
        // If no Sentinel was asked yet, the test takes any Sentinel.
        let asked = ledger.sent().into_iter().rfind(|sent| is("SENTINEL FAILOVER", sent));
        let leads = |node: &&Node| asked.as_ref().is_none_or(|sent| sent.node == node.name());
        let leader = system.sentinels.iter().position(|node| leads(&node)).context("one of them is asked")?;
        Ok(match self.who {
            "the leading Sentinel" => Some(&system.sentinels[leader]),
            "another Sentinel" => Some(&system.sentinels[(leader + 1) % 3]),
            "a replica" => Some(&system.redis[1]),
            "the master" => Some(&system.redis[0]),
            _ => None,
        })
    }
}

/// How long a node or the run is frozen or gone: longer than the Sentinels take to fail over.
const GONE_FOR: Duration = Duration::from_secs(6);

#[test]
fn no_confirmed_write_is_lost_if_a_node_dies_or_hangs_in_a_failover() {
    let steps = ["CLIENT PAUSE", "SENTINEL FAILOVER", "REPLICAOF", "CLIENT UNPAUSE"];
    let everybody = ["the runner", "the leading Sentinel", "another Sentinel", "a replica", "the master"];
    let blows = steps.into_iter().flat_map(|command| {
        everybody.into_iter().flat_map(move |who| [true, false].map(|freezes| Blow { command, who, freezes }))
    });
    // Without the whole sweep, some of each kind are tried. A separate test covers a runner that is killed.
    let blows: Vec<Blow> = blows
        .filter(|blow| blow.freezes || blow.who != "the runner")
        .enumerate()
        .filter(|(index, _)| whole_sweep() || index % 9 == 4)
        .map(|(_, blow)| blow)
        .collect();
    sweep(&blows, async |lab, blow| {
        let ledger = Ledger::new();
        let durable = |node: NodeBuilder| node.config("appendonly yes").config("appendfsync always");
        let redis = (0..3).map(|_| durable(lab.redis()).behind(&ledger).start());
        let sentinels = (0..3).map(|_| lab.sentinel().behind(&ledger).start());
        let system = System {
            broker: lab.broker(Broker::builder())?,
            redis: futures::future::try_join_all(redis).await?,
            sentinels: futures::future::try_join_all(sentinels).await?,
        };
        system.register_all().await?;
        expect_code(&run(lab, &system.broker, &FAST).await?, 0);
        let writer = Writer::to(&system).await?;
        let command = blow.command;
        let mut held = ledger.hold(move |sent| is(command, sent));
        let mut running = start(lab, &system, &["--timeout", "20s"])?;
        until_held(&mut running, &mut held).await?.context("it sends that")?;
        let node = blow.victim(&system, &ledger)?;
        match (node, blow.freezes) {
            (Some(node), true) => node.stop()?,
            (Some(node), false) => node.kill(),
            (None, _) => running.signal(e2e::Signal::STOP)?,
        }
        held.release();
        tokio::time::sleep(GONE_FOR).await;
        match (node, blow.freezes) {
            (Some(node), true) => node.cont()?,
            (Some(node), false) => node.restart().await?,
            (None, _) => running.signal(e2e::Signal::CONT)?,
        }
        let ran = running.wait(LIMIT).await?;
        let named = until_healthy(&system).await.with_context(|| format!("{ran}"))?;
        writer.goes_on().await?;
        writer.expect_kept_by(&system.redis[named]).await.with_context(|| format!("{ran}"))?;
        expect_code(&run(lab, &system.broker, &[]).await?, 0);
        Ok(())
    });
    tried(format_args!("failovers tried: {} in which somebody dies or hangs", blows.len()));
}

/// Holds a failover at a command, does something, and lets the failover go on.
async fn held_at(
    lab: &Lab,
    system: &System,
    ledger: &Ledger,
    command: &'static str,
    meanwhile: impl AsyncFnOnce() -> Result<()>,
) -> Result<Ran> {
    let mut held = ledger.hold(move |sent| is(command, sent));
    let mut running = start(lab, system, &["--timeout", "20s"])?;
    until_held(&mut running, &mut held).await?.context("it sends that")?;
    meanwhile().await?;
    held.release();
    running.wait(LIMIT).await
}

async fn takes_writes(node: &Node) -> Result<()> {
    let set = tokio::time::timeout(Duration::from_secs(1), node.command(&["SET", "is-there", "1"]));
    set.await.context("it is paused")?.map(drop)
}

#[test]
fn a_failover_that_can_not_succeed_is_given_up_and_writes_go_on() {
    let cases = ["a replica that leaves", "a replica that hangs", "a replica that dies"];
    sweep(&cases, async |lab, case| {
        let ledger = Ledger::new();
        let system = standing_behind(&ledger, lab, 2, &[]).await?;
        let replica = &system.redis[1];
        let ran = match *case {
            "a replica that leaves" => {
                held_at(lab, &system, &ledger, "CLIENT PAUSE", async || {
                    replica.command(&["REPLICAOF", "NO", "ONE"]).await.map(drop)
                })
                .await?
            }
            "a replica that hangs" => {
                held_at(lab, &system, &ledger, "CLIENT PAUSE", async || replica.stop()).await?
            }
            _ => {
                held_at(lab, &system, &ledger, "SENTINEL FAILOVER", async || {
                    replica.kill();
                    Ok(())
                })
                .await?
            }
        };
        takes_writes(&system.redis[0]).await?;
        let (code, says) = match *case {
            "a replica that leaves" => (4, "bytes behind the master"),
            "a replica that hangs" => (5, "no answer within"),
            _ => (5, "NOGOODSLAVE"),
        };
        expect_code(&ran, code);
        assert!(ran.stderr.contains(says) && ran.stderr.contains("hint: "), "{ran}");
        Ok(())
    });
}

#[test]
fn two_failovers_at_once_lose_nothing() {
    scenario(async |lab| {
        let system = standing(lab, 3).await?;
        let mut client = Client::start(&system)?;
        client.begin().await?;
        let (one, other) = (start(lab, &system, &[])?, start(lab, &system, &[])?);
        let (one, other) = tokio::try_join!(one.wait(LIMIT), other.wait(LIMIT))?;
        for ran in [&one, &other] {
            assert!(matches!(ran.code, Some(0 | 3 | 4 | 6)), "{ran}");
        }
        client.end().await?;
        until_healthy(&system).await?;
        // At the same time, a Sentinel gets `SENTINEL FAILOVER`.
        client.begin().await?;
        let ran = start(lab, &system, &[])?;
        let _ = system.sentinels[0].command(&["SENTINEL", "FAILOVER", "mymaster"]).await;
        let ran = ran.wait(LIMIT).await?;
        assert!(matches!(ran.code, Some(0 | 3 | 4 | 6)), "{ran}");
        until_healthy(&system).await?;
        Ok(())
    });
}

#[test]
fn a_right_that_a_failover_needs_is_named_before_anything_is_paused() {
    scenario(async |lab| {
        let system = lab.system(2, 3).await?;
        system.register_all().await?;
        let secret = lab.dir().join("password");
        std::fs::write(&secret, "s3cret\n")?;
        for node in &system.redis {
            node.command(&["ACL", "SETUSER", "ops", "on", ">s3cret", "~*", "&*", "+@all", "-client|pause"])
                .await?;
        }
        let secret = secret.to_string_lossy();
        let flags = ["--redis-username", "ops", "--redis-password-file", &secret];
        expect_code(&run(lab, &system.broker, &flags).await?, 0);
        let ran = fail_over(lab, &system, &flags).await?;
        expect_code(&ran, 5);
        let hint = format!("ACL SETUSER ops +client|pause on {}", system.redis[0].addr());
        assert!(ran.stderr.contains(&hint) && !ran.stderr.contains("SENTINEL FAILOVER"), "{ran}");
        takes_writes(&system.redis[0]).await
    });
}

/// Waits until all servers have rewritten their append-only files. After a synchronisation, a server does not
/// end before that.
pub(crate) async fn until_written(system: &System) -> Result<()> {
    for node in &system.redis {
        // A server that stands back does so for another moment.
        until_priority(node, "100").await?;
        until_saved(node).await?;
    }
    Ok(())
}

#[test]
fn join_hands_over_before_it_stops_the_master() {
    scenario_within(OFTEN, async |lab| {
        let (system, mut client) = standing_behind_join(lab).await?;
        let mut gaps = Vec::new();
        for _ in 0..if whole_sweep() { 10 } else { 2 } {
            let before = master(&system).await?;
            until_written(&system).await?;
            client.begin().await?;
            system.redis[before].signal(e2e::Signal::TERM)?;
            // A signal that does not end a server must not replace the SIGTERM, and must not shorten the
            // handover.
            system.redis[before].signal(e2e::Signal::HUP)?;
            system.redis[before].until_ended(LIMIT).await?;
            assert!(system.redis[before].log().contains("handed over to"), "{}", system.redis[before].log());
            gaps.push(client.end().await?);
            system.redis[before].relaunch()?;
            assert_ne!(until_healthy(&system).await?, before);
        }
        // A replica has nothing to hand over.
        let replica = (master(&system).await? + 1) % 3;
        until_written(&system).await?;
        client.begin().await?;
        system.redis[replica].terminate(LIMIT).await?;
        system.redis[replica].relaunch()?;
        until_healthy(&system).await?;
        client.end().await?;
        // The server stood back until its link was up, and its `join` sees that a moment later.
        until_priority(&system.redis[replica], "100").await?;
        check_gaps("handover by join", gaps);
        Ok(())
    });
}

#[test]
fn join_hands_over_although_a_replica_answers_late() {
    scenario(async |lab| {
        let (system, mut client) = standing_behind_join_with(lab, &["--handover", "20s"]).await?;
        until_written(&system).await?;
        let named = master(&system).await?;
        let (old, replica) = (&system.redis[named], &system.redis[(named + 1) % 3]);
        client.begin().await?;
        signal_server(replica, e2e::Signal::STOP)?;
        old.signal(e2e::Signal::TERM)?;
        // Longer than `join` waits for any answer.
        tokio::time::sleep(Duration::from_secs(4)).await;
        signal_server(replica, e2e::Signal::CONT)?;
        old.until_ended(LIMIT).await?;
        ensure!(old.log().contains("handed over to"), "{}", old.log());
        client.end().await.map(drop)
    });
}

#[test]
fn join_hands_over_although_the_broker_is_gone() {
    scenario(async |lab| {
        let (mut system, mut client) = standing_behind_join(lab).await?;
        until_written(&system).await?;
        let named = master(&system).await?;
        client.begin().await?;
        let old = &system.redis[named];
        // From then on, no request of this `join` waits at the broker.
        old.until_logged("the system is configured").await?;
        eventually(LIMIT, async || {
            let stats = old.info("commandstats").await?;
            let said = stats.get("cmdstat_publish").map_or("", String::as_str);
            let said = said.split(',').next().and_then(|calls| calls.strip_prefix("calls=")?.parse().ok());
            ensure!(said.is_some_and(|said: u32| said >= 3), "not all Sentinels have said hello: {stats:?}");
            Ok(())
        })
        .await?;
        // A new broker, of which no node has heard.
        system.broker = lab.broker(Broker::builder())?;
        old.signal(e2e::Signal::TERM)?;
        old.until_ended(LIMIT).await?;
        ensure!(old.log().contains("handed over to"), "{}", old.log());
        client.end().await.map(drop)
    });
}

/// At which point of its handover `join` is killed or frozen.
struct InHandover {
    /// Whether the master has executed the command by then, or a replica.
    by_master: bool,
    /// The command's name in `INFO commandstats`.
    command: &'static str,
    freezes: bool,
}

impl fmt::Display for InHandover {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (who, what) = (
            if self.by_master { "the master" } else { "a replica" },
            if self.freezes { "frozen" } else { "killed" },
        );
        write!(f, "once {who} has executed `{}`, join is {what}", self.command)
    }
}

impl InHandover {
    /// How often the command was executed.
    async fn count(&self, system: &System, named: usize) -> Result<u64> {
        let mut count = 0;
        for (index, node) in system.redis.iter().enumerate() {
            if (index == named) == self.by_master {
                let stats = node.info("commandstats").await?;
                let calls = stats.get(&format!("cmdstat_{}", self.command));
                let calls = calls
                    .and_then(|calls| calls.strip_prefix("calls=")?.split(',').next()?.parse::<u64>().ok());
                count += calls.unwrap_or_default();
            }
        }
        Ok(count)
    }
}

#[test]
fn a_join_that_dies_or_hangs_in_its_handover_loses_nothing() {
    // A Sentinel sends `SLAVEOF` to replicas, which is the old name of `REPLICAOF`.
    let steps = [(true, "client|pause"), (false, "slaveof"), (true, "replicaof"), (true, "client|unpause")];
    let all = steps.into_iter().flat_map(|(by_master, command)| {
        [true, false].map(|freezes| InHandover { by_master, command, freezes })
    });
    let all: Vec<InHandover> = all
        .enumerate()
        .filter(|(index, _)| whole_sweep() || [0, 3].contains(index))
        .map(|(_, one)| one)
        .collect();
    sweep(&all, async |lab, blow| {
        let system = brought_up(lab, 3, 3, |node| node.config("appendonly yes")).await?;
        let writer = Writer::to(&system).await?;
        until_written(&system).await?;
        let named = master(&system).await?;
        let (node, before) = (&system.redis[named], blow.count(&system, named).await?);
        node.signal(e2e::Signal::TERM)?;
        let started = Instant::now();
        // Without a pause between two looks: the next command may follow a millisecond later.
        loop {
            match blow.count(&system, named).await {
                Ok(count) if count > before => break,
                Ok(_) => ensure!(started.elapsed() < LIMIT / 6, "that is not executed:\n{}", node.log()),
                // The handover was over before the test saw the command, and the server is gone.
                Err(_) => {
                    node.until_logged("handed over to").await?;
                    break;
                }
            }
        }
        if blow.freezes {
            node.signal(e2e::Signal::STOP)?;
            tokio::time::sleep(GONE_FOR).await;
            node.signal(e2e::Signal::CONT)?;
            node.until_ended(LIMIT).await?;
        } else {
            node.kill();
            tokio::time::sleep(GONE_FOR).await;
        }
        node.relaunch()?;
        until_healthy(&system).await?;
        writer.goes_on().await?;
        writer.expect_kept_by(&system.redis[master(&system).await?]).await?;
        expect_code(&run(lab, &system.broker, &[]).await?, 0);
        Ok(())
    });
    tried(format_args!("failovers tried: {} in which join dies or hangs", all.len()));
}

#[test]
fn all_nodes_stopped_at_once_come_back_with_every_confirmed_write() {
    // `0s` stops without a handover, for comparison.
    let handovers = if whole_sweep() { vec!["5s", "0s"] } else { vec!["5s"] };
    let mut times = Vec::new();
    for handover in handovers {
        scenario_within(OFTEN, async |lab| {
            let mut took = Vec::new();
            let joins =
                |node: NodeBuilder| node.config("appendonly yes").join_flags(["--handover", handover]);
            let system = brought_up(lab, 3, 3, joins).await?;
            for _ in 0..if whole_sweep() { 20 } else { 2 } {
                took.push(stop_all_and_start_them(&system).await?);
            }
            took.sort();
            tried(format_args!(
                "failovers tried: all nodes stopped at once, --handover {handover}: {} times, median {:?}, longest {:?}",
                took.len(),
                took[took.len() / 2],
                took[took.len() - 1]
            ));
            times.push(took[took.len() / 2]);
            Ok(())
        });
    }
    if let [with, without] = times[..] {
        assert!(with <= without + Duration::from_secs(1), "{with:?}, without a handover {without:?}");
    }
}

/// Stops all nodes under a writer, as `docker compose down` does, and starts them again. Returns how long the
/// stop took.
async fn stop_all_and_start_them(system: &System) -> Result<Duration> {
    let writer = Writer::to(system).await?;
    until_written(system).await?;
    let started = Instant::now();
    futures::future::try_join_all(system.nodes().map(|node| node.terminate(LIMIT))).await?;
    let took = started.elapsed();
    ensure!(took < LIMIT / 6, "it took {took:?}");
    let confirmed = writer.confirmed();
    drop(writer);
    for node in system.nodes() {
        node.relaunch()?;
    }
    let named = until_healthy(system).await?;
    expect_kept(&confirmed, &system.redis[named]).await?;
    system.redis[named].command(&["FLUSHALL"]).await?;
    Ok(took)
}

#[test]
fn a_drill_reports_that_no_write_is_lost() {
    scenario(async |lab| {
        let system = standing(lab, 3).await?;
        let url = system.broker.url();
        let ran =
            lab.runner(["verify", "--failover", "--output", "json", "--broker", &url]).run(LIMIT).await?;
        expect_code(&ran, 0);
        let document: BTreeMap<String, Value> = serde_json::from_str(&ran.stdout)?;
        let drill = &document["failover"];
        assert_eq!(drill["lost"], 0, "{ran}");
        assert!(drill["writes"].as_u64() > Some(10) && drill["paused_ms"].as_f64() > Some(0.0), "{ran}");
        Ok(())
    });
}
