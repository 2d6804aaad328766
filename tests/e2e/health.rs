//! What balancers, probes and dashboards get: `join --health`, `probe`, `status --output prometheus`; and
//! `--on-event`.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use broker_fn::api::Kind;
use e2e::{
    Broker, HaProxy, Lab, Machine, Network, Node, NodeBuilder, Request, Signal, System, at_once, eventually,
    scenario, scenario_within, steady_port,
};
use http::Method;
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::process::Command;
use tokio::task::JoinHandle;

use crate::failover::{Client, OFTEN};
use crate::join::{FAST, joining, launched, until_failed_over, until_healthy};
use crate::support::{LIMIT, expect_code, run, tried, whole_sweep};

/// A short `down-after-milliseconds`, and the default `failover-timeout`.
const FAST_ONLY: [&str; 2] = ["--sentinel-set", "down-after-milliseconds=2000"];

/// The interval between two checks.
const POLL: Duration = Duration::from_millis(5);

/// A free address for `--health`.
fn at() -> SocketAddr {
    let port = steady_port(Ipv4Addr::LOCALHOST.into()).expect("a port is free");
    (Ipv4Addr::LOCALHOST, port).into()
}

/// Launches nodes, without waiting for any of them. Returns the addresses at which the `join`s of the Redis
/// servers answer.
fn launched_with_health(
    lab: &Lab,
    redis: usize,
    make: impl Fn(NodeBuilder) -> NodeBuilder,
) -> Result<(System, Vec<SocketAddr>)> {
    let health = RefCell::new(Vec::new());
    let system = launched(lab, redis, 3, |node| {
        let at = at();
        health.borrow_mut().push(at);
        make(node).join_flags(["--health", &at.to_string()])
    })?;
    Ok((system, health.into_inner()))
}

async fn ask(at: SocketAddr, path: &str) -> Result<(u16, Value)> {
    let reply = Request::new(at, Method::GET, path).send().await?;
    Ok((reply.status.as_u16(), serde_json::from_slice(&reply.body).unwrap_or_default()))
}

async fn status(at: SocketAddr, path: &str) -> Result<u16> {
    Ok(ask(at, path).await?.0)
}

/// Waits until the address answers with this status. Returns the reason in the answer.
async fn until(at: SocketAddr, path: &str, expected: u16) -> Result<String> {
    eventually(LIMIT, async || match ask(at, path).await {
        Ok((status, body)) if status == expected => Ok(body["why"].as_str().unwrap_or_default().to_owned()),
        other => bail!("{path} does not answer {expected}: {other:?}"),
    })
    .await
}

/// The `promtool` that was unpacked for the tests, or else the machine's.
fn promtool() -> Command {
    let unpacked = concat!(env!("CARGO_MANIFEST_DIR"), "/../target/promtool/usr/bin/promtool");
    let mut command = Command::new(if Path::new(unpacked).exists() { unpacked } else { "promtool" });
    command.current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/..")).kill_on_drop(true);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// Checks with promtool that a text is valid as metrics.
async fn check_metrics(text: &str) -> Result<()> {
    let mut promtool = promtool()
        .args(["check", "metrics"])
        .spawn()
        .context("promtool is not there; `make test` brings it (tests/scripts/setup.sh test)")?;
    promtool.stdin.take().context("stdin")?.write_all(text.as_bytes()).await?;
    let output = promtool.wait_with_output().await?;
    let said = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success() && said.trim().is_empty(), "{said}\n{text}");
    Ok(())
}

async fn metrics(at: SocketAddr) -> Result<String> {
    let reply = Request::new(at, Method::GET, "/metrics").send().await?;
    assert_eq!(reply.status, 200);
    let text = reply.text();
    check_metrics(&text).await?;
    Ok(text)
}

/// Checks every answer of a server that has its role.
async fn expect_answers(at: SocketAddr, is_master: bool) -> Result<()> {
    let (primary, replica) = if is_master { (200, 503) } else { (503, 200) };
    until(at, "/primary", primary).await?;
    until(at, "/replica?lag=100000", replica).await?;
    assert_eq!(status(at, "/master").await?, primary);
    assert_eq!(status(at, "/replica").await?, replica);
    assert_eq!((status(at, "/ready").await?, status(at, "/live").await?), (200, 200));
    for method in [Method::HEAD, Method::OPTIONS] {
        let reply = Request::new(at, method, "/primary").send().await?;
        assert_eq!((reply.status.as_u16(), reply.body.len()), (primary, 0));
    }
    assert_eq!(Request::new(at, Method::POST, "/primary").send().await?.status, 405);
    let text = metrics(at).await?;
    let role = if is_master { "master" } else { "replica" };
    ensure!(text.contains(&format!("sentinel_broker_role{{role=\"{role}\"}} 1")), "{text}");
    ensure!(text.contains(&format!("sentinel_broker_primary {}", u8::from(is_master))), "{text}");
    Ok(())
}

/// Checks that a client which holds on to connections keeps no other client out.
async fn expect_answers_despite_idle_connections(at: SocketAddr) -> Result<()> {
    let mut idle = Vec::new();
    for _ in 0..200 {
        idle.push(TcpStream::connect(at).await?);
    }
    assert_eq!(status(at, "/primary").await?, 200);
    let mut ended = 0;
    for mut stream in idle {
        // A connection that is still open is silent.
        let read = tokio::time::timeout(POLL, stream.read(&mut [0])).await;
        ended += usize::from(read.is_ok());
    }
    ensure!(ended >= 200 - 64, "only {ended} of 200 idle connections were ended");
    Ok(())
}

#[test]
fn join_answers_over_http_in_which_role_its_server_is() {
    scenario(async |lab| {
        let (system, health) = launched_with_health(lab, 3, |node| node)?;
        // Before there is a system, the servers are held.
        for at in &health {
            until(*at, "/live", 200).await?;
            until_why(*at, "/ready", 503, "held").await?;
            assert_eq!(status(*at, "/primary").await?, 503);
        }
        expect_code(&run(lab, &system.broker, &FAST).await?, 0);
        let master = until_healthy(&system).await?;
        for (index, at) in health.iter().enumerate() {
            expect_answers(*at, index == master).await?;
        }
        eventually(LIMIT, async || {
            let text = metrics(health[master]).await?;
            ensure!(
                text.contains("sentinel_broker_sentinels_answering 3"),
                "not all Sentinels answer:\n{text}"
            );
            Ok(())
        })
        .await?;
        expect_answers_despite_idle_connections(health[master]).await?;

        // Sentinels that are down do not fence the master. But if a replica is gone too, it may have been
        // promoted.
        system.sentinels[0].kill();
        system.sentinels[1].kill();
        until_why(health[master], "/primary", 200, "only 1 of 3 Sentinels answer").await?;
        system.sentinels[2].kill();
        until_why(health[master], "/primary", 200, "only 0 of 3 Sentinels answer").await?;
        assert_eq!(status(health[master], "/primary").await?, 200);
        let replica = (master + 1) % 3;
        system.redis[replica].kill();
        let why = until(health[master], "/primary", 503).await?;
        ensure!(
            why.contains(&format!("{} does not follow this server", system.redis[replica].addr())),
            "{why}"
        );
        system.redis[replica].relaunch()?;
        Ok(())
    });
}

/// Waits until the reason in the answer contains this text. Every answer until then must have this status.
async fn until_why(at: SocketAddr, path: &str, expected: u16, text: &str) -> Result<()> {
    eventually(LIMIT, async || {
        let (status, body) = at_once(ask(at, path).await);
        assert_eq!(status, expected, "{body}");
        let is_why = body["why"].as_str().is_some_and(|why| why.contains(text));
        ensure!(is_why, "{path} does not answer `{text}`: {body}");
        Ok(())
    })
    .await
}

#[test]
fn a_sentinel_says_whether_it_monitors_and_nobody_hears_a_password() {
    scenario(async |lab| {
        let (redis_at, sentinel_at) = (at(), at());
        let broker =
            lab.broker(Broker::builder().variable("expected_redis", 1).variable("expected_sentinels", 1))?;
        let node = |kind, at: SocketAddr| {
            joining(lab, kind, &broker).password("s3cret").join_flags([
                "--health",
                &at.to_string(),
                "--redis-password",
                "s3cret",
                "--sentinel-password",
                "s3cret",
            ])
        };
        let system = System {
            redis: vec![node(Kind::Redis, redis_at).launch()?],
            sentinels: vec![node(Kind::Sentinel, sentinel_at).launch()?],
            broker,
        };
        until(sentinel_at, "/live", 200).await?;
        until_why(sentinel_at, "/ready", 503, "monitors no master").await?;
        let password = ["--redis-password", "s3cret", "--sentinel-password", "s3cret"];
        expect_code(&run(lab, &system.broker, &[&FAST[..], &password].concat()).await?, 0);
        assert_eq!(until(sentinel_at, "/ready", 200).await?, "monitors mymaster");
        assert_eq!(status(sentinel_at, "/primary").await?, 503);
        until(redis_at, "/primary", 200).await?;
        ensure!(
            metrics(sentinel_at)
                .await?
                .contains("sentinel_broker_sentinel_master_down{group=\"mymaster\"} 0")
        );
        for at in [redis_at, sentinel_at] {
            for path in ["/primary", "/replica", "/ready", "/live", "/metrics", "/"] {
                let reply = Request::new(at, Method::GET, path).send().await?;
                ensure!(!reply.text().contains("s3cret"), "{path}: {}", reply.text());
            }
        }
        Ok(())
    });
}

#[test]
fn a_health_address_that_is_taken_does_not_keep_the_server_from_running() {
    scenario(async |lab| {
        let taken = tokio::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let at = taken.local_addr()?;
        let broker = lab.broker(Broker::builder())?;
        let node = joining(lab, Kind::Redis, &broker).join_flags(["--health", &at.to_string()]).launch()?;
        node.until_logged("--health: can't listen on").await?;
        node.until_logged("registered as").await?;
        drop(taken);
        until(at, "/live", 200).await.map(drop)
    });
}

/// Signals only the server, and not its `join`.
pub(crate) fn signal_server(node: &Node, signal: Signal) -> Result<()> {
    let server = node.server_pid().context("it runs")?;
    let server = rustix::process::Pid::from_raw(server.try_into()?).context("a process id")?;
    Ok(rustix::process::kill_process(server, signal)?)
}

/// The files to which the commands of `--on-event` append each event, one file for each server.
struct Events(PathBuf);

impl Events {
    fn file(&self, index: usize) -> PathBuf {
        self.0.join(format!("events-{index}"))
    }

    /// The command for a server.
    fn command(&self, index: usize) -> String {
        let line = "$EVENT $EVENT_NODE $EVENT_GROUP ${EVENT_MASTER:--} ${EVENT_PREVIOUS_MASTER:--}";
        format!("echo \"{line}\" >>{}", self.file(index).display())
    }

    fn of(&self, index: usize) -> String {
        fs::read_to_string(self.file(index)).unwrap_or_default()
    }

    async fn until(&self, index: usize, event: &str) -> Result<()> {
        eventually(LIMIT, async || {
            let events = self.of(index);
            let is_there = events.lines().any(|line| line.starts_with(event));
            ensure!(is_there, "server {index} is not told of `{event}`:\n{events}");
            Ok(())
        })
        .await
    }

    fn clear(&self, servers: usize) {
        for index in 0..servers {
            // There is no file before the first event.
            let _ = fs::remove_file(self.file(index));
        }
    }

    /// Checks that the command of each server ran exactly once for each event of a failover, and for no other
    /// event.
    fn expect_one_failover(&self, system: &System, old: usize, new: usize) {
        let (old_addr, new_addr) = (system.redis[old].addr(), system.redis[new].addr());
        for (index, server) in system.redis.iter().enumerate() {
            let events = self.of(index);
            let mut times = BTreeMap::<&str, usize>::new();
            for line in events.lines() {
                let words: Vec<&str> = line.split(' ').collect();
                *times.entry(words[0]).or_default() += 1;
                let node = format!("127.0.0.1:{}", server.addr().port());
                assert_eq!((words[1], words[2]), (&*node, "mymaster"));
                if words[0] == "failover-ended" {
                    assert_eq!((words[3], words[4]), (&*new_addr.to_string(), &*old_addr.to_string()));
                }
            }
            let mut expected = BTreeMap::from([("failover-begun", 1), ("failover-ended", 1)]);
            if index == old {
                expected.extend([("fenced", 1), ("demoted", 1)]);
            } else if index == new {
                expected.extend([("promoted", 1)]);
            }
            assert_eq!(times, expected, "{events}");
        }
    }
}

/// Waits until an old master is a replica. It must never answer as the master until then.
async fn until_replica_and_never_master(at: SocketAddr) -> Result<()> {
    let started = Instant::now();
    // Asks without a pause, so that no answer is missed.
    loop {
        let (status, body) = ask(at, "/primary").await?;
        assert_eq!(status, 503, "{body}");
        if body["role"] == "replica" && self::status(at, "/replica").await? == 200 {
            return Ok(());
        }
        ensure!(started.elapsed() < LIMIT, "it does not become a replica: {body}");
    }
}

#[test]
fn a_frozen_master_is_fenced_and_everybody_is_told_once() {
    scenario(async |lab| {
        let (events, count) = (Events(lab.dir().to_owned()), Cell::new(0));
        let (system, health) = launched_with_health(lab, 3, |node| {
            let index = count.replace(count.get() + 1);
            node.join_flags(["--on-event", &events.command(index)])
        })?;
        expect_code(&run(lab, &system.broker, &FAST).await?, 0);
        let old = until_healthy(&system).await?;
        until_why(health[old], "/primary", 200, "3 of 3 Sentinels report it").await?;
        events.until(old, "promoted").await?;
        events.clear(3);

        // Only the server is frozen. Its `join` still answers, and clients still ask it.
        signal_server(&system.redis[old], Signal::STOP)?;
        let new = until_failed_over(&system, old).await?;
        let why = until(health[old], "/primary", 503).await?;
        ensure!(why.contains("no longer the master") || why.contains("has not answered"), "{why}");
        until(health[new], "/primary", 200).await?;
        signal_server(&system.redis[old], Signal::CONT)?;
        until_replica_and_never_master(health[old]).await?;
        until_healthy(&system).await?;
        for (index, event) in
            [(old, "demoted"), (new, "promoted"), (old, "failover-ended"), (new, "failover-ended")]
        {
            events.until(index, event).await?;
        }
        events.expect_one_failover(&system, old, new);
        Ok(())
    });
}

#[test]
fn a_command_that_fails_or_hangs_is_named_and_holds_nothing_up() {
    scenario(async |lab| {
        // The command gets the environment that `join` was given, but no secrets.
        let command = "env | grep -q BROKER_TOKEN && exit 4; exit 3";
        let (system, health) = launched_with_health(lab, 2, |node| {
            node.env("BROKER_TOKEN", "not-asked-for").join_flags(["--on-event", command])
        })?;
        expect_code(&run(lab, &system.broker, &FAST).await?, 0);
        let master = until_healthy(&system).await?;
        until(health[master], "/primary", 200).await?;
        system.redis[master]
            .until_logged("--on-event: the command for `promoted` ended with exit code 3")
            .await
    });
}

/// `redis-cli`, which writes one key after the other to an address. Records when each acknowledged write was
/// sent.
struct Cli {
    acknowledged: Arc<Mutex<Vec<(usize, Instant)>>>,
    task: JoinHandle<()>,
}

impl Drop for Cli {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Cli {
    fn start(at: SocketAddr) -> Self {
        let acknowledged = Arc::new(Mutex::new(Vec::new()));
        let noted = Arc::clone(&acknowledged);
        let task = tokio::spawn(async move {
            let mut number = 0;
            loop {
                // `redis-cli` ends if no process listens at the address.
                let _ = Self::write_on(at, &mut number, &noted).await;
                tokio::time::sleep(POLL).await;
            }
        });
        Self { acknowledged, task }
    }

    async fn write_on(
        at: SocketAddr,
        number: &mut usize,
        noted: &Mutex<Vec<(usize, Instant)>>,
    ) -> Result<()> {
        let (host, port) = (at.ip().to_string(), at.port().to_string());
        // `redis-cli` prints on standard error why there was no answer.
        let mut command = Command::new("sh");
        command.args(["-c", "exec redis-cli -h \"$0\" -p \"$1\" 2>&1", &host, &port]).kill_on_drop(true);
        let mut cli = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let mut stdin = cli.stdin.take().context("stdin")?;
        let mut lines = BufReader::new(cli.stdout.take().context("stdout")?).lines();
        loop {
            *number += 1;
            let sent = Instant::now();
            stdin.write_all(format!("SET c:{number} 1\n").as_bytes()).await?;
            let line = lines.next_line().await?.context("it has ended")?;
            if line == "OK" {
                noted.lock().expect("nothing panics while it holds this lock").push((*number, sent));
            } else {
                // `redis-cli` prints an error and then an empty line. After an error, the lines can no longer
                // be assigned to writes.
                return Ok(());
            }
        }
    }

    fn acknowledged(&self) -> Vec<(usize, Instant)> {
        self.acknowledged.lock().expect("nothing panics while it holds this lock").clone()
    }

    /// Waits until 20 more writes were acknowledged.
    async fn goes_on(&self) -> Result<()> {
        let before = self.acknowledged().len();
        eventually(LIMIT, async || {
            let more = self.acknowledged().len() - before;
            ensure!(more >= 20, "only {more} writes of redis-cli were acknowledged");
            Ok(())
        })
        .await
    }

    /// The longest time between two acknowledged writes since `since`, in milliseconds.
    fn longest_gap_ms(&self, since: Instant) -> f64 {
        let sent = self.acknowledged().into_iter().map(|(_, sent)| sent).filter(|sent| *sent >= since);
        let sent: Vec<Instant> = [since].into_iter().chain(sent).collect();
        let gaps = sent.windows(2).map(|pair| pair[1] - pair[0]);
        gaps.max().unwrap_or_default().as_secs_f64() * 1000.0
    }
}

/// The numbers of `redis-cli`'s keys that a server has.
async fn has(node: &Node) -> Result<BTreeSet<usize>> {
    let keys: Vec<String> = node.query(&["KEYS", "c:*"]).await?;
    Ok(keys.iter().filter_map(|key| key.strip_prefix("c:")?.parse().ok()).collect())
}

fn median(mut gaps: Vec<f64>) -> String {
    gaps.sort_by(f64::total_cmp);
    match gaps[..] {
        [] => "none".to_owned(),
        _ => format!(
            "longest {:.0} ms, median {:.0} ms, of {}",
            gaps[gaps.len() - 1],
            gaps[gaps.len() / 2],
            gaps.len()
        ),
    }
}

/// A system behind HAProxy, with two clients that write at one address.
struct Balanced {
    system: System,
    /// The addresses of `join --health`.
    health: Vec<SocketAddr>,
    haproxy: HaProxy,
    cli: Cli,
    python: Client,
    master: usize,
}

impl Balanced {
    async fn start(lab: &Lab) -> Result<Self> {
        let (system, health) = launched_with_health(lab, 3, |node| node.config("appendonly yes"))?;
        expect_code(&run(lab, &system.broker, &FAST).await?, 0);
        let master = until_healthy(&system).await?;
        let servers: Vec<_> = system.redis.iter().map(Node::addr).zip(health.iter().copied()).collect();
        let haproxy = HaProxy::start(lab, &servers).await?;
        haproxy.until_master(master).await?;
        let (cli, python) = (Cli::start(haproxy.writes), Client::at(haproxy.writes)?);
        Ok(Self { system, health, haproxy, cli, python, master })
    }

    /// Hands over with `failover`, or by stopping the master. Returns the clients' longest gaps in
    /// milliseconds.
    async fn hands_over(&mut self, lab: &Lab, by_failover: bool) -> Result<[f64; 2]> {
        self.cli.goes_on().await?;
        self.python.begin().await?;
        let since = Instant::now();
        let old = &self.system.redis[self.master];
        if by_failover {
            let failover = lab.runner(["failover", "--broker", &self.system.broker.url()]);
            expect_code(&failover.run(LIMIT).await?, 0);
        } else {
            old.terminate(LIMIT).await?;
            until_failed_over(&self.system, self.master).await?;
            old.relaunch()?;
        }
        // Both clients write again. `Client::end` checks that no acknowledged write is lost, and
        // `expect_nothing_lost` checks the writes of `redis-cli`.
        self.cli.goes_on().await?;
        let gaps = [self.python.end().await?, self.cli.longest_gap_ms(since)];
        self.master = until_healthy(&self.system).await?;
        self.haproxy.until_master(self.master).await?;
        Ok(gaps)
    }

    async fn expect_nothing_lost(&self) -> Result<()> {
        let acknowledged = self.cli.acknowledged().into_iter().map(|(number, _)| number);
        let acknowledged: BTreeSet<usize> = acknowledged.collect();
        let kept = has(&self.system.redis[self.master]).await?;
        let lost: Vec<_> = acknowledged.difference(&kept).take(10).collect();
        ensure!(lost.is_empty(), "{lost:?} of {} are lost", acknowledged.len());
        Ok(())
    }

    /// Kills the master, or freezes it and continues it while the clients still write. Returns the longest
    /// gap of `redis-cli` in milliseconds.
    async fn crashes(&mut self, hangs: bool) -> Result<f64> {
        self.cli.goes_on().await?;
        let since = Instant::now();
        let (dead, at) = (&self.system.redis[self.master], self.health[self.master]);
        if hangs {
            signal_server(dead, Signal::STOP)?;
        } else {
            dead.kill();
        }
        self.master = until_failed_over(&self.system, self.master).await?;
        let named = Instant::now();
        if hangs {
            until(at, "/primary", 503).await?;
            signal_server(dead, Signal::CONT)?;
        }
        self.cli.goes_on().await?;
        self.haproxy.until_master(self.master).await?;
        self.python.begin().await?;
        let gap = self.cli.longest_gap_ms(since);
        if !hangs {
            dead.relaunch()?;
        }
        ensure!(until_healthy(&self.system).await? == self.master, "the master has changed again");
        // Every acknowledged write that was sent since the Sentinels name the new master went to that master.
        // None went to the old master, because its `/primary` already answers 503.
        self.cli.goes_on().await?;
        let acknowledged = self.cli.acknowledged();
        let kept = has(&self.system.redis[self.master]).await?;
        let since_named = acknowledged.iter().filter(|(_, sent)| *sent >= named);
        let lost = since_named.filter(|(number, _)| !kept.contains(number)).count();
        ensure!(lost == 0, "{lost} are lost");
        Ok(gap)
    }
}

#[test]
fn long_plain_clients_write_on_through_handovers_and_crashes() {
    scenario_within(OFTEN, async |lab| {
        let (handovers, crashes) = if whole_sweep() { (20, 5) } else { (2, 2) };
        let mut balanced = Balanced::start(lab).await?;
        let mut gaps = (Vec::new(), Vec::new());
        for index in 0..handovers {
            gaps.0.extend(balanced.hands_over(lab, index % 2 == 0).await?);
        }
        balanced.expect_nothing_lost().await?;
        // The replicas answer reads.
        let (replicas, master) = (balanced.haproxy.replicas().await?, balanced.master);
        ensure!(!replicas.contains(&master) && !replicas.is_empty(), "{replicas:?} of the master {master}");
        for index in 0..crashes {
            gaps.1.push(balanced.crashes(index % 2 == 1).await?);
        }
        tried(format_args!(
            "failovers tried: behind HAProxy: handovers: no write lost, gaps: {}; crashes, down-after-milliseconds 2000: gaps: {}",
            median(gaps.0),
            median(gaps.1)
        ));
        Ok(())
    });
}

/// A system on two machines, of which the first has only a Redis server. That server is the master, because
/// it registers first.
async fn system_on_two_machines(lab: &Lab, network: &Network, machines: [&Machine; 2]) -> Result<System> {
    let [alone, others] = machines;
    let broker = lab.broker(Broker::builder().listen((network.addr(), 0).into()))?;
    let redis = |machine: &Machine| {
        joining(lab, Kind::Redis, &broker)
            .config("protected-mode no")
            .join_flags(["--health", &format!("{}:8008", machine.addr())])
            .on(machine, 6379)
            .launch()
    };
    let old = redis(alone)?;
    old.until_logged("registered as").await?;
    let sentinels =
        [26379, 26380, 26381].map(|port| joining(lab, Kind::Sentinel, &broker).on(others, port).launch());
    let redis = vec![old, redis(others)?];
    let system = System { redis, sentinels: sentinels.into_iter().collect::<Result<_>>()?, broker };
    expect_code(&run(lab, &system.broker, &FAST).await?, 0);
    ensure!(until_healthy(&system).await? == 0, "the first that registered is the master");
    Ok(system)
}

#[test]
fn long_a_master_that_is_cut_off_gets_no_writes_from_a_balancer() {
    scenario(async |lab| {
        let mut network = match Network::new(lab).await {
            Ok(network) => network,
            Err(error) => {
                tried(format_args!("not tried here: a balancer that reaches who is cut off: {error:#}"));
                return Ok(());
            }
        };
        let (alone, others) = (network.machine(lab).await?, network.machine(lab).await?);
        let system = system_on_two_machines(lab, &network, [&alone, &others]).await?;
        let servers: Vec<_> =
            system.redis.iter().map(|node| (node.addr(), SocketAddr::new(node.addr().ip(), 8008))).collect();
        let haproxy = HaProxy::start(lab, &servers).await?;
        haproxy.until_master(0).await?;
        until_why(servers[0].1, "/primary", 200, "3 of 3 Sentinels report it").await?;
        let cli = Cli::start(haproxy.writes);
        cli.goes_on().await?;

        // The balancer and its clients reach both sides of the partition.
        network.part(&[&alone, &others]).await?;
        eventually(LIMIT, async || {
            let masters = haproxy.masters().await?;
            ensure!(!masters.contains(&0), "for haproxy the masters are {masters:?}");
            Ok(())
        })
        .await?;
        let fenced = Instant::now();
        until_failed_over(&system, 0).await?;
        cli.goes_on().await?;
        let why = ask(servers[0].1, "/primary").await?.1;
        ensure!(why["why"].as_str().is_some_and(|why| why.contains("may have been replaced")), "{why}");
        // The old master is still a master, and would take writes if a client sent any.
        let kept = has(&system.redis[0]).await?;
        let after: Vec<_> = cli
            .acknowledged()
            .into_iter()
            .filter(|(number, sent)| *sent >= fenced && kept.contains(number))
            .collect();
        ensure!(after.is_empty(), "{} writes went to it after it was fenced", after.len());
        assert_eq!(system.redis[0].info("replication").await?["role"], "master");

        network.heal(&[&alone, &others]).await?;
        assert_eq!(until_healthy(&system).await?, 1);
        cli.goes_on().await
    });
}

#[test]
fn the_exit_code_of_probe_tells_role_and_readiness() {
    scenario(async |lab| {
        let system = lab.system_of(2, 3, |node| node.password("s3cret")).await?;
        let probe = async |kind: &str, at: SocketAddr, flags: &[&str]| {
            let at = at.to_string();
            let words = [&["probe", kind, &at], flags].concat();
            let password = [("REDIS_PASSWORD", "s3cret"), ("SENTINEL_PASSWORD", "s3cret")];
            let runner =
                password.iter().fold(lab.runner(words), |runner, (name, value)| runner.env(name, value));
            anyhow::Ok(runner.run(LIMIT).await?)
        };
        let expect = async |kind: &str, at: SocketAddr, flags: &[&str], code: i32, says: &str| {
            let ran = probe(kind, at, flags).await?;
            expect_code(&ran, code);
            ensure!(ran.stdout.contains(says) || ran.stderr.contains(says), "does not print `{says}`: {ran}");
            anyhow::Ok(())
        };
        let (redis, sentinel) = (&system.redis, &system.sentinels[0]);
        // The Sentinel answers, and monitors nothing yet.
        expect("sentinel", sentinel.addr(), &[], 0, "monitors no master").await?;
        expect("sentinel", sentinel.addr(), &["--ready"], 1, "monitors no master").await?;
        system.register_all().await?;
        let password = ["--redis-password", "s3cret", "--sentinel-password", "s3cret"];
        expect_code(&run(lab, &system.broker, &password).await?, 0);
        expect("sentinel", sentinel.addr(), &["--ready"], 0, "monitors mymaster at").await?;
        for (index, role, other) in [(0, "master", "replica"), (1, "replica", "master")] {
            let at = redis[index].addr();
            expect("redis", at, &["--ready"], 0, role).await?;
            expect("redis", at, &["--ready", "--role", role], 0, role).await?;
            expect("redis", at, &["--role", other], 1, role).await?;
        }
        // A node of the other kind, a wrong password, a wrong flag, and a node that is gone.
        expect("redis", sentinel.addr(), &[], 1, "is not a Redis server").await?;
        expect("sentinel", redis[0].addr(), &[], 1, "is not a Sentinel").await?;
        expect("redis", redis[0].addr(), &["--redis-password", "another"], 1, "").await?;
        expect("sentinel", sentinel.addr(), &["--role", "master"], 2, "--role").await?;
        redis[0].kill();
        expect("redis", redis[0].addr(), &[], 1, "unreachable").await?;
        expect("redis", redis[1].addr(), &[], 0, "replica of").await?;
        eventually(LIMIT, async || {
            let ran = probe("redis", redis[1].addr(), &["--ready"]).await?;
            ensure!(ran.code == Some(1), "a replica whose master is gone is ready: {ran}");
            Ok(())
        })
        .await?;
        // Also checks the JSON document.
        let ran = probe("redis", redis[1].addr(), &["--output", "json"]).await?;
        let document: Value = serde_json::from_str(&ran.stdout)?;
        assert_eq!((&document["command"], &document["outcome"]), (&"probe".into(), &"probed".into()));
        Ok(())
    });
}

#[test]
fn status_prints_valid_metrics_for_prometheus() {
    scenario(async |lab| {
        let system = lab.system(2, 3).await?;
        system.register_all().await?;
        let status = async |flags: &[&str]| {
            lab.runner(["status", "--broker", &system.broker.url()]).args(flags).run(LIMIT).await
        };
        let before = status(&["--output", "prometheus"]).await?;
        expect_code(&before, 6);
        check_metrics(&before.stdout).await?;
        ensure!(before.stdout.contains("sentinel_broker_verified{group=\"mymaster\"} 0"), "{before}");
        expect_code(&run(lab, &system.broker, &[]).await?, 0);
        let ran = status(&["--output", "prometheus"]).await?;
        expect_code(&ran, 0);
        check_metrics(&ran.stdout).await?;
        let (master, replica) = (system.redis[0].addr(), system.redis[1].addr());
        let sentinel = system.sentinels[0].addr();
        for line in [
            "sentinel_broker_verified{group=\"mymaster\"} 1".to_owned(),
            "sentinel_broker_expected_nodes{group=\"mymaster\",kind=\"sentinel\"} 3".to_owned(),
            "sentinel_broker_registered_nodes{group=\"mymaster\",kind=\"redis\"} 2".to_owned(),
            "sentinel_broker_sentinels_agree{group=\"mymaster\"} 1".to_owned(),
            format!("sentinel_broker_up{{group=\"mymaster\",kind=\"redis\",node=\"{master}\"}} 1"),
            format!("sentinel_broker_role{{group=\"mymaster\",node=\"{master}\",role=\"master\"}} 1"),
            format!("sentinel_broker_role{{group=\"mymaster\",node=\"{replica}\",role=\"replica\"}} 1"),
            format!("sentinel_broker_replicas_online{{group=\"mymaster\",node=\"{master}\"}} 1"),
            format!("sentinel_broker_replica_link_up{{group=\"mymaster\",node=\"{replica}\"}} 1"),
            format!("sentinel_broker_sentinel_quorum{{group=\"mymaster\",node=\"{sentinel}\"}} 2"),
            format!("sentinel_broker_sentinel_peers{{group=\"mymaster\",node=\"{sentinel}\"}} 2"),
            format!(
                "sentinel_broker_sentinel_names_master{{group=\"mymaster\",master=\"{master}\",node=\"{sentinel}\"}} 1"
            ),
        ] {
            ensure!(ran.stdout.lines().any(|one| one == line), "no `{line}`: {ran}");
        }
        for name in [
            "last_verified_timestamp_seconds",
            "looked_timestamp_seconds",
            "replica_lag_bytes",
            "replica_lag_seconds",
        ] {
            ensure!(ran.stdout.contains(&format!("\nsentinel_broker_{name}{{")), "no {name}: {ran}");
        }
        // Only a single look of `status` has these outputs.
        for words in [&["verify", "--output", "prometheus"][..], &["status", "--watch", "--output", "env"]] {
            let ran = lab.runner(words).args(["--broker", &system.broker.url()]).run(LIMIT).await?;
            expect_code(&ran, 2);
            ensure!(ran.stderr.contains("one look of `status`"), "{ran}");
        }
        Ok(())
    });
}

#[test]
fn clients_connect_with_what_status_prints() {
    scenario(async |lab| {
        let system = lab.system(2, 3).await?;
        system.register_all().await?;
        expect_code(&run(lab, &system.broker, &[]).await?, 0);
        let output = async |form: &str| {
            let ran =
                lab.runner(["status", "--broker", &system.broker.url(), "--output", form]).run(LIMIT).await?;
            expect_code(&ran, 0);
            anyhow::Ok(ran.stdout)
        };
        // redis-py, as in docs/clients.md.
        let script = "import os\nfrom redis.sentinel import Sentinel\n\
            sentinels = [address.rsplit(':', 1) for address in os.environ['REDIS_SENTINELS'].split(',')]\n\
            master = Sentinel(sentinels).master_for(os.environ['REDIS_SENTINEL_GROUP'])\n\
            master.set('by', 'redis-py')\nprint(master.get('by').decode())\n";
        let page = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/clients.md"))?;
        ensure!(page.contains(script), "docs/clients.md has another script");
        let mut python = Command::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../target/redis-py/bin/python"));
        python.args(["-c", script]);
        for line in output("env").await?.lines() {
            let (name, value) = line.split_once('=').context("a variable")?;
            python.env(name, value);
        }
        let said = python.output().await?;
        ensure!(said.status.success() && said.stdout == b"redis-py\n", "{said:?}");

        // redis-rs.
        let uri = output("uri").await?;
        let rest = uri.trim().strip_prefix("redis-sentinel://").context("the scheme")?;
        let (sentinels, group) = rest.split_once('#').context("the group")?;
        let urls = sentinels.split(',').map(|address| format!("redis://{address}")).collect();
        let kind = redis::sentinel::SentinelServerType::Master;
        let mut client = redis::sentinel::SentinelClient::build(urls, group, None, kind)?;
        let mut connection = client.get_async_connection().await?;
        let by: String = redis::cmd("GET").arg("by").query_async(&mut connection).await?;
        assert_eq!(by, "redis-py");
        Ok(())
    });
}

#[test]
fn alerts_fire_as_their_tests_expect_on_documented_metrics() {
    scenario(async |_| {
        for words in [["check", "rules", "deploy/alerts.yaml"], ["test", "rules", "tests/sites/alerts.yaml"]]
        {
            let output = promtool().args(words).output().await.context("promtool")?;
            ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
        }
        let read =
            |path: &str| fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path));
        let (alerts, page) = (read("deploy/alerts.yaml")?, read("docs/metrics.md")?);
        let is_name = |letter: char| letter.is_ascii_lowercase() || letter == '_';
        let names = alerts.split("sentinel_broker_").skip(1);
        let names: BTreeSet<&str> =
            names.map(|rest| &rest[..rest.find(|letter| !is_name(letter)).unwrap_or(rest.len())]).collect();
        ensure!(names.len() > 8, "{names:?}");
        for name in names {
            ensure!(page.contains(&format!("`sentinel_broker_{name}`")), "there is no metric {name}");
        }
        Ok(())
    });
}

#[test]
fn a_new_master_gets_writes_while_the_failover_still_waits_for_a_replica() {
    scenario(async |lab| {
        let password = ["--redis-password", "s3cret"];
        let count = RefCell::new(0);
        let (system, health) = launched_with_health(lab, 3, |node| {
            *count.borrow_mut() += 1;
            let node = node.password("s3cret").join_flags(password);
            // The third server can't be promoted.
            if *count.borrow() == 3 { node.config("replica-priority 0") } else { node }
        })?;
        let flags = ["--master", &system.redis[0].registered_at().to_string(), FAST_ONLY[0], FAST_ONLY[1]];
        expect_code(&run(lab, &system.broker, &[&password[..], &flags].concat()).await?, 0);
        ensure!(until_healthy(&system).await? == 0, "it was named");
        until_why(health[0], "/primary", 200, "3 of 3 Sentinels report it").await?;
        until(health[1], "/replica?lag=1000000", 200).await?;
        // The third server can't log in to the new master, so the Sentinel that fails over waits for it, for
        // three minutes. A machine dies, with the master and a Sentinel on it.
        system.redis[2].command(&["CONFIG", "SET", "masterauth", "another"]).await?;
        system.sentinels[0].kill();
        system.redis[0].kill();
        let why = until(health[1], "/primary", 200).await?;
        ensure!(why.contains("of 3 Sentinels report it"), "{why}");
        let mut fails_over = 0;
        for sentinel in &system.sentinels[1..] {
            let fields: BTreeMap<String, String> =
                sentinel.query(&["SENTINEL", "MASTER", "mymaster"]).await?;
            fails_over += usize::from(fields["flags"].contains("failover_in_progress"));
        }
        ensure!(fails_over == 1, "the failover is through");
        Ok(())
    });
}
