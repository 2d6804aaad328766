//! Measures how long it takes from the last registration to a verified system: `make bench`.
//!
//! Three ways alternate, each with fresh servers: the runner; the usual order of commands, one after the
//! other, as a script or the program of 2018 sends them; and the floor, which is the least that has to be
//! sent, all at once, without reading anything. The same code here checks all three systems: a write to the
//! master is read from every replica, and every Sentinel has arrived at every other node.

use std::fmt::Write as _;
use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::Parser;
use e2e::{Lab, Node, NodeBuilder, Ran, Running, System, Timings, runner_program};
use futures::future::{join_all, try_join_all};
use redis::aio::MultiplexedConnection;
use redis::{Pipeline, Value};

const GROUP: &str = "mymaster";
/// The options for every Sentinel.
const OPTIONS: [(&str, &str); 3] =
    [("down-after-milliseconds", "5000"), ("failover-timeout", "10000"), ("parallel-syncs", "1")];
/// The numbers of Redis servers, Sentinels, and fresh systems for each way.
const SIZES: [(usize, usize, usize); 5] = [(2, 3, 101), (3, 3, 101), (5, 5, 10), (10, 5, 5), (21, 9, 5)];
/// The usual order waits for seconds at any size, and the floor for one, so fewer samples suffice.
const USUAL_SAMPLES: usize = 10;
const FLOOR_SAMPLES: usize = 31;
/// When the check begins to ask. No system works before: a Sentinel connects to the replicas with its second
/// tick, and its shortest tick takes 52 ms. Until then the check leaves the processors to the nodes.
const FIRST_LOOK: Duration = Duration::from_millis(50);
/// The delay that the slow line adds to every answer of every node.
const LATENCY: Duration = Duration::from_millis(20);
/// How late the last node is, in the runs with a late node.
const LATE: Duration = Duration::from_secs(6);
/// How often everything else is measured.
const SAMPLES: usize = 10;
/// More than any of these takes.
const LIMIT: Duration = Duration::from_secs(60);

/// Measures how long it takes from the last registration to a verified system, and prints it as Markdown.
#[derive(Parser)]
struct Args {
    /// Three samples of everything, to see whether it works
    #[arg(long)]
    quick: bool,
}

#[tokio::main]
async fn main() -> Result<()> {
    let Args { quick } = Args::parse();
    let samples = |usual: usize| if quick { usual.min(3) } else { usual };
    let version = lab_version().await?;
    println!("{} cores; {}; {version}\n", std::thread::available_parallelism()?, kernel()?);

    println!(
        "| Redis + Sentinels | the runner | the usual order | the floor | usual ÷ runner | runner ÷ floor |"
    );
    println!("| ---: | ---: | ---: | ---: | ---: | ---: |");
    for (redis, sentinels, count) in SIZES {
        let mut took: [Samples; 3] = Default::default();
        for sample in 0..samples(count) {
            took[0].0.push(by_runner(redis, sentinels, |node| node, Duration::ZERO).await?.verified);
            if sample < samples(USUAL_SAMPLES) {
                took[1].0.push(by_hand(redis, sentinels, usual_order).await?);
            }
            if sample < samples(FLOOR_SAMPLES) {
                took[2].0.push(by_hand(redis, sentinels, floor).await?);
            }
        }
        let [runner, usual, floor] = &mut took;
        println!(
            "| {redis} + {sentinels} | {runner} | {usual} | {floor} | {:.0} | {:.2} |",
            usual.median().as_secs_f64() / runner.median().as_secs_f64(),
            runner.median().as_secs_f64() / floor.median().as_secs_f64()
        );
    }

    println!("\n| the runner otherwise | |");
    println!("| --- | ---: |");
    for (redis, sentinels, _) in [SIZES[0], SIZES[1], SIZES[4]] {
        let mut ended = Samples::default();
        for _ in 0..samples(SAMPLES) {
            ended.0.push(by_runner(redis, sentinels, |node| node, Duration::ZERO).await?.ended);
        }
        println!("| {redis} + {sentinels}, to the end of the program, exit code 0 | {ended} |");
    }
    let mut late = Samples::default();
    for _ in 0..samples(SAMPLES) {
        late.0.push(by_runner(2, 3, |node| node, LATE).await?.verified);
    }
    println!("| 2 + 3, when the last node registers {LATE:?} after the others | {late} |");
    let (mut slow, mut in_sequence) = (Samples::default(), vec![]);
    for _ in 0..samples(SAMPLES) {
        let run = by_runner(2, 3, |node| node.slow(LATENCY), Duration::ZERO).await?;
        slow.0.push(run.verified);
        in_sequence.push(Timings::of(&run.ran)?.in_sequence());
    }
    println!("| 2 + 3, with {LATENCY:?} more for each answer of each node | {slow} |");
    println!("| the same, round trips in sequence until all was sent | {} |", spread(in_sequence));
    others(samples(SAMPLES)).await
}

/// What the runner uses besides time.
async fn others(samples: usize) -> Result<()> {
    for (redis, sentinels) in [(2, 3), (3, 3), (21, 9)] {
        let (mut again, mut cpu, mut peak) = (Samples::default(), Samples::default(), vec![]);
        let (mut round_trips, mut commands) = (vec![], vec![]);
        for _ in 0..samples {
            let lab = Lab::new()?;
            let system = lab.system(redis, sentinels).await?;
            let running = start(&lab, &system)?;
            system.register_all().await?;
            let used = usage(running.id());
            let (ran, used) = tokio::join!(running.wait(LIMIT), used);
            let ran = expect_ok(ran?)?;
            cpu.0.push(used.cpu);
            peak.push(used.peak_kb);
            let timings = Timings::of(&ran)?;
            round_trips.push(timings.round_trips / (redis + sentinels));
            commands.push(timings.commands / (redis + sentinels));
            let started = Instant::now();
            expect_ok(start(&lab, &system)?.wait(LIMIT).await?)?;
            again.0.push(started.elapsed());
        }
        let size = format!("{redis} + {sentinels}");
        println!("| {size}, a second run, from its start to its end | {again} |");
        println!("| {size}, processor time | {cpu} |");
        println!("| {size}, memory at its most, kB | {} |", spread(peak));
        println!("| {size}, round trips a node, verifying included | {} |", spread(round_trips));
        println!("| {size}, commands a node, verifying included | {} |", spread(commands));
    }
    println!("| size of the program, kB | {} |", fs::metadata(runner_program())?.len() / 1000);
    Ok(())
}

/// One run from nothing.
struct Run {
    /// The time from the answer to the last registration to the verified system.
    verified: Duration,
    /// The time to the end of the program.
    ended: Duration,
    ran: Ran,
}

/// One run of the runner. The last node registers this much later than all others.
async fn by_runner(
    redis: usize,
    sentinels: usize,
    make: impl Fn(NodeBuilder) -> NodeBuilder,
    late: Duration,
) -> Result<Run> {
    let lab = Lab::new()?;
    let measured = async {
        let system = lab.system_of(redis, sentinels, make).await?;
        let check = Check::new(&system).await?;
        let mut running = start(&lab, &system)?;
        let nodes: Vec<&Node> = system.nodes().collect();
        let (last, others) = nodes.split_last().context("there are nodes")?;
        for node in others {
            system.broker.register(node).await?;
        }
        running.until_stderr("registered: ", others.len(), LIMIT).await?;
        tokio::time::sleep(late).await;
        system.broker.register(last).await?;
        let started = Instant::now();
        check.verified().await?;
        let verified = started.elapsed();
        running.ended(LIMIT).await?;
        let ended = started.elapsed();
        Ok(Run { verified, ended, ran: expect_ok(running.wait(LIMIT).await?)? })
    };
    let measured = measured.await;
    if measured.is_err() {
        eprintln!("{}", lab.logs());
    }
    measured
}

fn start(lab: &Lab, system: &System) -> Result<Running> {
    let options = OPTIONS.map(|(name, value)| format!("--sentinel-set={name}={value}"));
    let url = system.broker.url();
    lab.runner(["bootstrap", "--timings", "--broker", &url]).args(options).start()
}

fn expect_ok(ran: Ran) -> Result<Ran> {
    ensure!(ran.code == Some(0), "{ran}");
    Ok(ran)
}

/// Sets up a system without the runner. The time begins after the connections have been made.
async fn by_hand(redis: usize, sentinels: usize, way: impl AsyncFn(&Hand) -> Result<()>) -> Result<Duration> {
    let lab = Lab::new()?;
    let system = lab.system(redis, sentinels).await?;
    let check = Check::new(&system).await?;
    let hand = Hand {
        redis: try_join_all(system.redis.iter().map(connect)).await?,
        sentinels: try_join_all(system.sentinels.iter().map(connect)).await?,
        ports: system.sentinels.iter().map(|node| node.addr().port()).collect(),
        master: system.redis[0].addr().port(),
        quorum: sentinels / 2 + 1,
    };
    let started = Instant::now();
    way(&hand).await?;
    check.verified().await?;
    Ok(started.elapsed())
}

/// Connections to all nodes of a system.
struct Hand {
    redis: Vec<MultiplexedConnection>,
    sentinels: Vec<MultiplexedConnection>,
    ports: Vec<u16>,
    master: u16,
    quorum: usize,
}

impl Hand {
    fn monitor(&self) -> String {
        format!("SENTINEL MONITOR {GROUP} 127.0.0.1 {} {}", self.master, self.quorum)
    }
}

/// The order of a script and of the program of 2018: one command after the other, without tuning.
async fn usual_order(hand: &Hand) -> Result<()> {
    for node in hand.redis.iter().chain(&hand.sentinels) {
        send(node, &["PING".into()]).await?;
    }
    for replica in &hand.redis[1..] {
        send(replica, &[format!("REPLICAOF 127.0.0.1 {}", hand.master)]).await?;
    }
    for sentinel in &hand.sentinels {
        send(sentinel, &[hand.monitor()]).await?;
        for (name, value) in OPTIONS {
            send(sentinel, &[format!("SENTINEL SET {GROUP} {name} {value}")]).await?;
        }
    }
    Ok(())
}

/// The least that is necessary, for all nodes at once: it does not read, plan, check or restore anything.
async fn floor(hand: &Hand) -> Result<()> {
    send(&hand.redis[0], &["CONFIG SET repl-diskless-sync-delay 0".into()]).await?;
    let replicaof =
        ["CONFIG SET repl-diskless-load on-empty-db".into(), format!("REPLICAOF 127.0.0.1 {}", hand.master)];
    try_join_all(hand.redis[1..].iter().map(|replica| send(replica, &replicaof))).await?;
    let mut set = format!("SENTINEL SET {GROUP}");
    for (name, value) in OPTIONS {
        write!(set, " {name} {value}")?;
    }
    let monitor = ["SENTINEL MYID".into(), hand.monitor(), set];
    let answers = try_join_all(hand.sentinels.iter().map(|sentinel| send(sentinel, &monitor))).await?;
    let hello = |index: usize| {
        format!(
            "PUBLISH __sentinel__:hello 127.0.0.1,{},{},0,{GROUP},127.0.0.1,{},0",
            hand.ports[index],
            text(&answers[index][0]),
            hand.master
        )
    };
    try_join_all(hand.sentinels.iter().enumerate().map(async |(to, sentinel)| {
        let others = (0..hand.ports.len()).filter(|&other| other != to);
        send(sentinel, &others.map(hello).collect::<Vec<_>>()).await
    }))
    .await?;
    Ok(())
}

/// The check, over separate connections: a write reaches every replica, and every Sentinel reaches every
/// other node.
struct Check {
    master: MultiplexedConnection,
    replicas: Vec<MultiplexedConnection>,
    sentinels: Vec<MultiplexedConnection>,
    /// The prefixes of the names of the Sentinels' connections, which contain 8 characters of the Sentinel's
    /// id.
    names: Vec<String>,
    port: String,
    poll: Duration,
}

impl Check {
    async fn new(system: &System) -> Result<Self> {
        let nodes = system.nodes().count();
        let ids = system.sentinels.iter().map(|node| node.query::<String>(&["SENTINEL", "MYID"]));
        let names = try_join_all(ids).await?.into_iter().map(|id| format!("name=sentinel-{}-", &id[..8]));
        Ok(Self {
            master: connect(&system.redis[0]).await?,
            replicas: try_join_all(system.redis[1..].iter().map(connect)).await?,
            sentinels: try_join_all(system.sentinels.iter().map(connect)).await?,
            names: names.collect(),
            port: system.redis[0].addr().port().to_string(),
            // The check must be frequent enough to see the moment, and must leave the processors to the
            // nodes.
            poll: Duration::from_micros(300) * u32::try_from(nodes)?,
        })
    }

    /// Waits until all conditions are true, and then checks them all again at once.
    async fn verified(&self) -> Result<()> {
        let started = Instant::now();
        tokio::time::sleep(FIRST_LOOK).await;
        for round in 0.. {
            let value = format!("{round}");
            let (streams, settled) = tokio::join!(self.streams(&value, started), self.wrong(Some(started)));
            streams?;
            settled?;
            let wrong = self.wrong(None).await?;
            if wrong.is_empty() {
                break;
            }
            ensure!(started.elapsed() < LIMIT, "not verified: {wrong:?}");
        }
        Ok(())
    }

    /// Writes to the master once every link is up, and waits until every replica has the write. An earlier
    /// write might arrive with the data set.
    async fn streams(&self, value: &str, started: Instant) -> Result<()> {
        let has = |text: &'static str| move |answers: &[Value]| self::text(&answers[0]).contains(text);
        let info = ["INFO replication".to_owned()];
        self.until(&self.master, &info, Some(started), &|answers| self.is_master(answers)).await?;
        let up = has("master_link_status:up");
        try_join_all(self.replicas.iter().map(|node| self.until(node, &info, Some(started), &up))).await?;
        send(&self.master, &[format!("SET bench {value}")]).await?;
        let get = ["GET bench".to_owned()];
        let is_there = |answers: &[Value]| text(&answers[0]) == value;
        try_join_all(self.replicas.iter().map(|node| self.until(node, &get, Some(started), &is_there)))
            .await?;
        Ok(())
    }

    fn is_master(&self, answers: &[Value]) -> bool {
        let text = text(&answers[0]);
        text.contains("role:master") && text.matches("state=online").count() == self.replicas.len()
    }

    /// Asks a node until `judge` is true. If it never is, returns the last answer. Asks only once without
    /// `waiting_since`.
    async fn until(
        &self,
        node: &MultiplexedConnection,
        commands: &[String],
        waiting_since: Option<Instant>,
        judge: &dyn Fn(&[Value]) -> bool,
    ) -> Result<Option<String>> {
        loop {
            let answers = send(node, commands).await?;
            if judge(&answers) {
                return Ok(None);
            }
            if waiting_since.is_none_or(|since| since.elapsed() > LIMIT) {
                return Ok(Some(format!("{answers:?}")));
            }
            tokio::time::sleep(self.poll).await;
        }
    }

    /// The conditions that are not true, except those of the stream.
    async fn wrong(&self, waiting_since: Option<Instant>) -> Result<Vec<String>> {
        let is_watched = |answers: &[Value]| {
            let clients = text(&answers[1]);
            self.names.iter().all(|name| clients.contains(&format!("{name}pubsub ")))
        };
        let is_master = |answers: &[Value]| self.is_master(answers) && is_watched(answers);
        let is_replica =
            |answers: &[Value]| text(&answers[0]).contains("master_link_status:up") && is_watched(answers);
        let is_content = |own: &str, answers: &[Value]| {
            let Value::Array(fields) = &answers[0] else { return false };
            let has = |name: &str, value: &str| {
                fields.chunks_exact(2).any(|pair| text(&pair[0]) == name && text(&pair[1]) == value)
            };
            let clients = text(&answers[2]);
            has("port", &self.port)
                && has("flags", "master")
                && has("num-slaves", &self.replicas.len().to_string())
                && has("num-other-sentinels", &(self.sentinels.len() - 1).to_string())
                && OPTIONS.iter().all(|(name, value)| has(name, value))
                && text(&answers[1]).starts_with("OK")
                && self.names.iter().all(|name| name == own || clients.contains(&format!("{name}cmd ")))
        };
        let ask_redis = ["INFO replication".to_owned(), "CLIENT LIST TYPE pubsub".to_owned()];
        let ask_sentinel = [
            format!("SENTINEL MASTER {GROUP}"),
            format!("SENTINEL CKQUORUM {GROUP}"),
            "CLIENT LIST".to_owned(),
        ];
        let sentinels = self.sentinels.iter().zip(&self.names).map(async |(node, own)| {
            self.until(node, &ask_sentinel, waiting_since, &|answers| is_content(own, answers)).await
        });
        let replicas =
            self.replicas.iter().map(|node| self.until(node, &ask_redis, waiting_since, &is_replica));
        let (master, replicas, sentinels) = tokio::join!(
            self.until(&self.master, &ask_redis, waiting_since, &is_master),
            join_all(replicas),
            join_all(sentinels),
        );
        let all = std::iter::once(master).chain(replicas).chain(sentinels);
        Ok(all.collect::<Result<Vec<_>>>()?.into_iter().flatten().collect())
    }
}

async fn connect(node: &Node) -> Result<MultiplexedConnection> {
    let client = redis::Client::open(format!("redis://{}", node.addr()))?;
    let mut connection = client.get_multiplexed_async_connection().await?;
    redis::cmd("PING").query_async::<Value>(&mut connection).await.with_context(|| node.to_string())?;
    Ok(connection)
}

/// Sends commands in one pipeline. An error reply is an answer too: the Sentinel may have no master yet.
async fn send(node: &MultiplexedConnection, commands: &[String]) -> Result<Vec<Value>> {
    let mut pipeline = Pipeline::new();
    for command in commands {
        let mut words = command.split(' ');
        pipeline.cmd(words.next().unwrap_or_default()).arg(words.collect::<Vec<_>>());
    }
    Ok(node.clone().send_packed_commands(&pipeline, 0, commands.len()).await?)
}

fn text(value: &Value) -> String {
    match value {
        Value::BulkString(bytes) => String::from_utf8_lossy(bytes).into_owned(),
        Value::SimpleString(text) => text.clone(),
        Value::Okay => "OK".into(),
        Value::Int(number) => number.to_string(),
        _ => String::new(),
    }
}

/// The resources that a process has used until its end.
struct Usage {
    cpu: Duration,
    peak_kb: usize,
}

/// Watches a process until it is gone.
async fn usage(pid: u32) -> Usage {
    let mut usage = Usage { cpu: Duration::ZERO, peak_kb: 0 };
    let read = || {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
        let mut cpu = Duration::ZERO;
        for task in fs::read_dir(format!("/proc/{pid}/task")).ok()?.flatten() {
            let stat = fs::read_to_string(task.path().join("schedstat")).ok()?;
            cpu += Duration::from_nanos(stat.split(' ').next()?.parse().ok()?);
        }
        Some((cpu, peak.split_whitespace().next()?.parse().ok()?))
    };
    while let Some((cpu, peak_kb)) = read() {
        usage = Usage { cpu: usage.cpu.max(cpu), peak_kb };
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    usage
}

/// The times of one measurement.
#[derive(Default)]
struct Samples(Vec<Duration>);

impl Samples {
    fn median(&mut self) -> Duration {
        self.0.sort_unstable();
        self.0[self.0.len() / 2]
    }
}

impl std::fmt::Display for Samples {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let ms = self.0.iter().map(|took| took.as_secs_f64() * 1e3).collect::<Vec<_>>();
        if ms.iter().all(|&ms| ms < 10.0) {
            return write!(f, "{} ms", spread(ms.iter().map(|ms| (ms * 10.0).round() / 10.0)));
        }
        write!(f, "{} ms", spread(ms.iter().map(|ms| ms.round())))
    }
}

/// The median, the minimum and the maximum.
fn spread<T: PartialOrd + std::fmt::Display>(samples: impl IntoIterator<Item = T>) -> String {
    let mut samples: Vec<T> = samples.into_iter().collect();
    samples.sort_by(|a, b| a.partial_cmp(b).expect("nothing here is not a number"));
    match (samples.first(), samples.get(samples.len() / 2), samples.last()) {
        (Some(least), Some(median), Some(most)) => format!("{median} ({least} to {most})"),
        _ => "none".into(),
    }
}

async fn lab_version() -> Result<String> {
    let lab = Lab::new()?;
    let node = lab.redis().start().await?;
    let info = node.info("server").await?;
    Ok(match info.get("valkey_version") {
        Some(version) => format!("Valkey {version}"),
        None => format!("Redis {}", info["redis_version"]),
    })
}

fn kernel() -> Result<String> {
    let uname = rustix::system::uname();
    Ok(format!("{} {} {}", uname.sysname().to_str()?, uname.release().to_str()?, uname.machine().to_str()?))
}
