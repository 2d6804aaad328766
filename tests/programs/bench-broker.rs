//! Measures the broker and a minimal component in the same host: `make bench-broker`. The host is the local
//! host, and also Spin if it is installed.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};
use std::{env, fs};

use anyhow::{Context, Result, bail, ensure};
use clap::{Parser, ValueEnum};
use e2e::host::{COMPONENT, MANIFEST, StoreAt, Wasi};
use e2e::spin::{Search, Spin, SpinUp};
use e2e::{FrontBuilder, Lab, Node, Process, Running};
use futures::future::try_join_all;
use rustix::net::sockopt::set_tcp_quickack;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::process::Command;

/// How many connections are kept busy at once.
const CONNECTIONS: [usize; 3] = [1, 16, 64];
/// Each figure is taken in this many turns, alternating with the figures that it is compared with, so that
/// other load on the machine affects all of them.
const TURNS: usize = 3;
const TURN: Duration = Duration::from_millis(1000);
/// The requests of the first table.
const REQUESTS: [&str; 8] = [
    "hello",
    "hello, one value read",
    "GET config",
    "GET roster",
    "GET page",
    "POST, known",
    "POST, new",
    "POST, new, SQLite on disk",
];
/// How many registrations the other groups hold in all.
const OTHERS: [u32; 4] = [60, 9_000, 60_000, 600_000];
/// How many registrations each of the other groups holds.
const OF_ANOTHER: u32 = 50;
/// More groups than by default, with fewer nodes each.
const BOUNDS: [(&str, &str); 2] = [("max_groups", "15000"), ("max_registrations", "32")];
/// How many nodes the measured group has: two Redis servers and three Sentinels.
const GROUP: u32 = 5;
/// How long a host may take to answer for the first time.
const START_LIMIT: Duration = Duration::from_secs(60);
/// Longer than a host keeps an idle instance.
const IDLE: Duration = Duration::from_millis(1200);
/// How often the time of a single request is taken without load.
const SAMPLES: usize = 15;
/// How long runs wait when the cost of waiting is measured.
const MINUTE: Duration = Duration::from_secs(60);
/// The time between two registrations, and the time before the last registration.
const APART: [(Duration, Duration); 3] = [
    (Duration::ZERO, Duration::ZERO),
    (Duration::from_millis(300), Duration::from_millis(300)),
    (Duration::ZERO, Duration::from_secs(3)),
];
/// How often each of these measurements is repeated.
const RUNS: usize = 15;
/// More than a run takes.
const LIMIT: Duration = Duration::from_secs(60);

#[derive(Parser)]
struct Args {
    /// The component that says hello.
    #[arg(long, value_name = "PATH")]
    hello: PathBuf,
    /// One of the tables, instead of all.
    #[arg(long, value_name = "TABLE")]
    only: Option<Table>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Table {
    Throughput,
    Waiting,
    Store,
    Builds,
    Component,
}

fn main() -> Result<()> {
    let Args { hello, only } = Args::parse();
    let lab = Lab::new()?;
    let runtime = tokio::runtime::Runtime::new()?;
    let measured = runtime.block_on(measure(&lab, &hello, only));
    if measured.is_err() {
        eprintln!("{}", lab.logs());
    }
    measured
}

async fn measure(lab: &Lab, hello: &Path, only: Option<Table>) -> Result<()> {
    println!("{} cores; {}\n", std::thread::available_parallelism()?, kernel()?);
    println!("In the local host:\n");
    measure_in(lab, None, hello, only).await?;
    match Spin::search()? {
        Search::Found(spin) if spin.has(Wasi::V0_3) => {
            println!("\nIn Spin {}:\n", spin.version());
            measure_in(lab, Some(&spin), hello, only).await?;
        }
        Search::Found(spin) => println!("\nNot in Spin: {} has no WASI 0.3.", spin.version()),
        Search::None(why) => println!("\nNot in Spin: {why}."),
    }
    Ok(())
}

/// All tables, in Spin or in the local host.
async fn measure_in(lab: &Lab, spin: Option<&Spin>, hello: &Path, only: Option<Table>) -> Result<()> {
    let is_asked_for = |table| only.is_none_or(|only| only == table);
    // In memory, so that the disk has no effect. One line measures it with the disk.
    let hello = Server::start(lab, spin, hello, &StoreAt::Memory).await?;
    let broker = Server::start(lab, spin, Path::new(COMPONENT), &StoreAt::Memory).await?;
    let on_disk = StoreAt::Path(tempfile::tempdir_in(lab.dir())?.keep().join("store.db"));
    let on_disk = Server::start(lab, spin, Path::new(COMPONENT), &on_disk).await?;
    for node in 0..GROUP {
        broker.expect_ok(&register("/", node)).await?;
    }
    if is_asked_for(Table::Throughput) {
        throughput(&hello, &broker, &on_disk).await?;
    }
    if is_asked_for(Table::Waiting) {
        waiting(lab, spin).await?;
    }
    if is_asked_for(Table::Store) {
        full_store(lab, spin).await?;
    }
    if is_asked_for(Table::Builds) {
        builds(lab, spin).await?;
    }
    if is_asked_for(Table::Component) {
        component(&broker, &hello).await?;
    }
    Ok(())
}

/// The size, the start time and the memory of the component and its host.
async fn component(broker: &Server, hello: &Server) -> Result<()> {
    println!("| the component, its host and its start | broker | hello |");
    println!("| --- | ---: | ---: |");
    let size = |path: &Path| -> Result<String> { Ok(format!("{} kB", fs::metadata(path)?.len() / 1000)) };
    println!("| size of the component | {} | {} |", size(&broker.component)?, size(&hello.component)?);
    println!(
        "| from the host's start to its first answer (it compiles the component) | {} | {} |",
        ms(broker.cold),
        ms(hello.cold)
    );
    println!(
        "| an answer by an instance that has yet to start, median | {} | {} |",
        ms(broker.first_answer().await?),
        ms(hello.first_answer().await?)
    );
    println!(
        "| memory of the host before any load | {} MB | {} MB |",
        broker.rss_at_start, hello.rss_at_start
    );
    println!(
        "| memory of the host at its most, under load | {} MB | {} MB |",
        broker.memory("VmHWM")?,
        hello.memory("VmHWM")?
    );
    Ok(())
}

/// The component's two builds side by side.
async fn builds(lab: &Lab, spin: Option<&Spin>) -> Result<()> {
    let roster = request("GET", "/", "");
    let known = register("/", 0);
    let numbers = AtomicU32::new(0);
    let new = || {
        let number = numbers.fetch_add(1, Ordering::Relaxed);
        register(&format!("/groups/load-{}/", number / GROUP), number)
    };
    let (mut servers, mut kept) = (vec![], vec![]);
    for wasi in Wasi::ALL {
        let server = Server::start(lab, spin, wasi.component(), &StoreAt::Memory).await?;
        for node in 0..GROUP {
            server.expect_ok(&register("/", node)).await?;
        }
        kept.push(format!(
            "| {wasi} | {} kB | {} | {} | {} MB |",
            fs::metadata(&server.component)?.len() / 1000,
            ms(server.cold),
            ms(server.first_answer().await?),
            server.rss_at_start
        ));
        servers.push(server);
    }
    println!("| connections | request | build | a second | p50 | p99 | host's CPU per request |");
    println!("| ---: | --- | --- | ---: | ---: | ---: | ---: |");
    for connections in CONNECTIONS {
        let mut loads: [[Load; 3]; 2] = Default::default();
        for _ in 0..TURNS {
            for (server, loads) in servers.iter().zip(&mut loads) {
                loads[0].run(server, connections, || roster.clone()).await?;
                loads[1].run(server, connections, || known.clone()).await?;
                loads[2].run(server, connections, new).await?;
            }
        }
        for (index, name) in ["GET roster", "POST, known", "POST, new"].into_iter().enumerate() {
            for (wasi, loads) in Wasi::ALL.iter().zip(&mut loads) {
                let load = &mut loads[index];
                println!(
                    "| {connections} | {name} | {wasi} | {:.0} | {} | {} | {:.0} µs |",
                    load.rate(),
                    ms(load.percentile(50)),
                    ms(load.percentile(99)),
                    load.cpu.as_secs_f64() * 1e6 / load.latencies.len() as f64,
                );
            }
        }
    }
    println!();
    println!(
        "| build | size | from the host's start to its first answer (it compiles the component) | an answer by an instance that has yet to start, median | memory of the host before any load |"
    );
    println!("| --- | ---: | ---: | ---: | ---: |");
    println!("{}\n", kept.join("\n"));
    Ok(())
}

/// The first table: how many requests a host answers in a second, and how long they take.
async fn throughput(hello: &Server, broker: &Server, on_disk: &Server) -> Result<()> {
    println!("| connections | request | a second | of hello's | p50 | p99 | host's CPU per request |");
    println!("| ---: | --- | ---: | ---: | ---: | ---: | ---: |");
    let say_hello = request("GET", "/", "");
    // The cost of any answer that needs a value, such as the revision of a roster.
    let value = request("GET", "/value", "");
    // The cost of an answer without the store.
    let config = request("GET", "/config", "");
    let roster = request("GET", "/", "");
    let page = b"GET / HTTP/1.1\r\nhost: bench\r\naccept: text/html\r\n\r\n".to_vec();
    let again = register("/", 0);
    let numbers = AtomicU32::new(0);
    let new = || {
        let number = numbers.fetch_add(1, Ordering::Relaxed);
        register(&format!("/groups/load-{}/", number / GROUP), number)
    };
    for connections in CONNECTIONS {
        let mut loads: [Load; REQUESTS.len()] = Default::default();
        for _ in 0..TURNS {
            loads[0].run(hello, connections, || say_hello.clone()).await?;
            loads[1].run(hello, connections, || value.clone()).await?;
            loads[2].run(broker, connections, || config.clone()).await?;
            loads[3].run(broker, connections, || roster.clone()).await?;
            loads[4].run(broker, connections, || page.clone()).await?;
            loads[5].run(broker, connections, || again.clone()).await?;
            loads[6].run(broker, connections, new).await?;
            loads[7].run(on_disk, connections, new).await?;
        }
        let hello = loads[0].rate();
        for (name, load) in REQUESTS.iter().zip(&mut loads) {
            println!(
                "| {connections} | {name} | {:.0} | {:.0} % | {} | {} | {:.0} µs |",
                load.rate(),
                100.0 * load.rate() / hello,
                ms(load.percentile(50)),
                ms(load.percentile(99)),
                load.cpu.as_secs_f64() * 1e6 / load.latencies.len() as f64,
            );
        }
    }
    println!();
    Ok(())
}

/// The cost of a run that waits for its nodes, and how soon the run sees the last node: with a broker that
/// waits for a change, and with a broker that always answers at once.
async fn waiting(lab: &Lab, spin: Option<&Spin>) -> Result<()> {
    println!(
        "| a minute of waiting | requests | connections | reads of the store | bytes sent | bytes got | host's CPU |"
    );
    println!("| --- | ---: | ---: | ---: | ---: | ---: | ---: |");
    let cases = [(0, false), (0, true), (GROUP - 1, false), (GROUP - 1, true)];
    let rows = cases.map(async |(registered, anew)| {
        let store = lab.redis().start().await?;
        let at = StoreAt::Redis(format!("redis://{}", store.addr()));
        let server = Server::start(lab, spin, Path::new(COMPONENT), &at).await?;
        let front = front(anew).start(server.addr).await?;
        let running = run(lab, front.url())?;
        let (reads, cpu) = (store.reads().await?, server.cpu()?);
        let started = Instant::now();
        for node in 0..registered {
            // Like servers that are started together.
            tokio::time::sleep(Duration::from_millis(300)).await;
            server.expect_ok(&register("/", node)).await?;
        }
        tokio::time::sleep(MINUTE - started.elapsed()).await;
        let [connections, requests, sent, got] = front.traffic();
        let (reads, cpu) = (store.reads().await? - reads, server.cpu()? - cpu);
        drop(running);
        let who = if registered == 0 {
            "nobody registers".into()
        } else {
            format!("{registered} of {GROUP} register")
        };
        let how = if anew { "the broker answers at once" } else { "the broker waits too" };
        anyhow::Ok(format!(
            "| {who}; {how} | {requests} | {connections} | {reads} | {sent} | {got} | {:.2} s |",
            cpu.as_secs_f64()
        ))
    });
    for row in try_join_all(rows).await? {
        println!("{row}");
    }
    println!();
    println!(
        "| from the last `POST` to the end of the run, exit code 0 | the broker waits too | the broker answers at once |"
    );
    println!("| --- | ---: | ---: |");
    for (apart, late) in APART {
        let mut took = [vec![], vec![]];
        for _ in 0..RUNS {
            for (anew, took) in [false, true].into_iter().zip(&mut took) {
                took.push(last_post_to_end(spin, apart, late, anew).await?);
            }
        }
        let [waits, anew] = took.map(|took| {
            let (least, most) = (took.iter().min().copied(), took.iter().max().copied());
            let (least, most) = (least.unwrap_or_default(), most.unwrap_or_default());
            format!("{} ({} to {})", ms(median(took)), ms(least), ms(most))
        });
        println!("| nodes register {apart:?} apart, the last {late:?} after the others | {waits} | {anew} |");
    }
    println!();
    Ok(())
}

fn front(anew: bool) -> FrontBuilder {
    if anew { FrontBuilder::default().asks_anew() } else { FrontBuilder::default() }
}

/// A run of the runner that waits for its nodes for longer than the measurement takes.
fn run(lab: &Lab, url: &str) -> Result<Running> {
    lab.runner(["bootstrap", "--timeout", "10m", "--broker", url]).start()
}

/// The time from the answer to the last registration, of two servers and three Sentinels, to the end of the
/// run.
async fn last_post_to_end(
    spin: Option<&Spin>,
    apart: Duration,
    late: Duration,
    anew: bool,
) -> Result<Duration> {
    let lab = Lab::new()?;
    let server = Server::start(&lab, spin, Path::new(COMPONENT), &StoreAt::Memory).await?;
    let mut nodes = vec![];
    for number in 0..GROUP {
        let node = if number < 2 { lab.redis() } else { lab.sentinel() };
        nodes.push(node.start().await?);
    }
    let front = front(anew).start(server.addr).await?;
    let mut running = run(&lab, front.url())?;
    let (last, others) = nodes.split_last().context("there are nodes")?;
    let register = |node: &Node| {
        let body = format!(r#"{{"host":"{}","port":{}}}"#, node.addr().ip(), node.addr().port());
        request("POST", &format!("/{}", node.kind()), &body)
    };
    for node in others {
        server.expect_ok(&register(node)).await?;
        tokio::time::sleep(apart).await;
    }
    running.until_stderr("registered: ", others.len(), LIMIT).await?;
    tokio::time::sleep(late.saturating_sub(apart)).await;
    server.expect_ok(&register(last)).await?;
    let started = Instant::now();
    running.ended(LIMIT).await?;
    let took = started.elapsed();
    let ran = running.wait(LIMIT).await?;
    ensure!(ran.code == Some(0), "{ran}");
    Ok(took)
}

/// The roster of one group, with many registrations in other groups.
async fn full_store(lab: &Lab, spin: Option<&Spin>) -> Result<()> {
    let broker = Server::start(lab, spin, Path::new(COMPONENT), &StoreAt::Memory).await?;
    for node in 0..GROUP {
        broker.expect_ok(&register("/", node)).await?;
    }
    let roster = request("GET", "/", "");
    println!(
        "| other keys | GET roster, p50 | p99 | after a change, median | {} connections, a change a second: p50 | p99 | longest | memory of the host |",
        CONNECTIONS[2]
    );
    println!("| ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |");
    let (mut held, mut first) = (0, None);
    for others in OTHERS {
        // One registration after the other: the count of registrations at the same moment is too high, and
        // near a bound, that costs a listing.
        let mut client = Client::connect(broker.addr).await?;
        for number in held..others {
            let path = format!("/groups/other-{}/", number / OF_ANOTHER);
            client.exchange(&register(&path, number)).await?;
        }
        held = others;

        let mut changed = vec![];
        let mut refused = None;
        for _ in 0..(if others < 60_000 { SAMPLES } else { 3 }) {
            client.exchange(&change()).await?;
            match client.exchange(&roster).await {
                Ok(took) => changed.push(took),
                Err(error) => {
                    refused = Some(error.to_string());
                    break;
                }
            }
        }
        if let Some(refused) = refused {
            let status = refused.split(' ').nth(1).unwrap_or(&refused);
            println!("| {others} | | | {status} | | | | {} MB |", broker.memory("VmRSS")?);
            continue;
        }
        let mut load = Load::default();
        for _ in 0..TURNS {
            load.run(&broker, 1, || roster.clone()).await?;
        }
        let p50 = load.percentile(50);
        let ratio = p50.as_secs_f64() / first.get_or_insert(p50).as_secs_f64();
        let busy = changing(&broker, &roster).await.map(|mut load| {
            let [p50, p99, longest] = [50, 99, 100].map(|percent| ms(load.percentile(percent)));
            format!("{p50} | {p99} | {longest}")
        });
        println!(
            "| {others} | {} ({ratio:.2}) | {} | {} | {} | {} MB |",
            ms(p50),
            ms(load.percentile(99)),
            ms(median(changed)),
            busy.unwrap_or_else(|error| format!(
                "{} | |",
                error.to_string().lines().next().unwrap_or_default()
            )),
            broker.memory("VmRSS")?,
        );
    }
    println!();
    Ok(())
}

/// Many clients read a roster that changes once a second, five times.
async fn changing(broker: &Server, roster: &[u8]) -> Result<Load> {
    let started = Instant::now();
    let lasts = 5 * Duration::from_secs(1);
    let changes = async {
        let mut client = Client::connect(broker.addr).await?;
        while started.elapsed() < lasts {
            client.exchange(&change()).await?;
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        anyhow::Ok(())
    };
    let read = try_join_all((0..CONNECTIONS[2]).map(async |_| {
        let mut client = Client::connect(broker.addr).await?;
        let mut latencies = vec![];
        while started.elapsed() < lasts {
            latencies.push(client.exchange(roster).await?);
        }
        anyhow::Ok(latencies)
    }));
    let ((), latencies) = futures::future::try_join(changes, read).await?;
    Ok(Load { latencies: latencies.into_iter().flatten().collect(), ..Load::default() })
}

/// A host in separate processes.
struct Server {
    runs: Runs,
    addr: SocketAddr,
    component: PathBuf,
    /// The time from its start to its first answer.
    cold: Duration,
    rss_at_start: u64,
}

enum Runs {
    LocalHost(Process),
    Spin(SpinUp),
}

impl Server {
    async fn start(lab: &Lab, spin: Option<&Spin>, component: &Path, store: &StoreAt) -> Result<Self> {
        let started = Instant::now();
        let (runs, addr) = match spin {
            Some(spin) => {
                let dir = tempfile::tempdir_in(lab.dir())?.keep();
                let variables = BOUNDS.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
                let up = spin.up(Path::new(MANIFEST), component, store, &variables, &dir)?;
                let addr = up.addr();
                (Runs::Spin(up), addr)
            }
            None => {
                let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port();
                let addr = SocketAddr::new(Ipv4Addr::LOCALHOST.into(), port);
                let mut command = Command::new(env::current_exe()?.with_file_name("local-host"));
                command.arg("--listen").arg(addr.to_string()).arg("--component").arg(component);
                for (name, value) in BOUNDS {
                    command.arg("--variable").arg(format!("{name}={value}"));
                }
                match store {
                    StoreAt::Memory => {}
                    StoreAt::Path(path) => drop(command.arg("--store").arg(path)),
                    StoreAt::Redis(url) => drop(command.arg("--store").arg(url)),
                }
                (Runs::LocalHost(lab.spawn("local-host", command)?), addr)
            }
        };
        let mut server =
            Self { runs, addr, component: component.to_owned(), cold: Duration::ZERO, rss_at_start: 0 };
        while server.expect_ok(&request("GET", "/", "")).await.is_err() {
            ensure!(started.elapsed() < START_LIMIT, "no answer: {}", server.process().output());
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        server.cold = started.elapsed();
        server.rss_at_start = server.memory("VmRSS")?;
        Ok(server)
    }

    fn process(&self) -> &Process {
        match &self.runs {
            Runs::LocalHost(process) => process,
            Runs::Spin(up) => up.process(),
        }
    }

    async fn expect_ok(&self, request: &[u8]) -> Result<Duration> {
        Client::connect(self.addr).await?.exchange(request).await
    }

    /// The time of a request for which the host has to start an instance.
    async fn first_answer(&self) -> Result<Duration> {
        let mut samples = vec![];
        for _ in 0..SAMPLES / 3 {
            tokio::time::sleep(IDLE).await;
            samples.push(self.expect_ok(&request("GET", "/", "")).await?);
        }
        Ok(median(samples))
    }

    /// A field of `/proc/…/status`, summed over the host's processes, in megabytes.
    fn memory(&self, field: &str) -> Result<u64> {
        let mut kib = 0;
        for pid in family(self.process().id())? {
            let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
            let line = status.lines().find(|line| line.starts_with(field)).context("no such field")?;
            kib += line.split_whitespace().nth(1).context("no value")?.parse::<u64>()?;
        }
        Ok(kib * 1024 / 1_000_000)
    }

    /// The processor time that the host's processes have used.
    fn cpu(&self) -> Result<Duration> {
        let mut ticks = 0;
        for pid in family(self.process().id())? {
            let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
            // The second field, the name, may contain blanks. It ends at the last parenthesis.
            let (_, fields) = stat.rsplit_once(')').context("it has a name")?;
            let fields: Vec<&str> = fields.split_whitespace().collect();
            ticks += fields[11].parse::<u64>()? + fields[12].parse::<u64>()?;
        }
        Ok(Duration::from_secs(ticks) / u32::try_from(rustix::param::clock_ticks_per_second())?)
    }
}

/// A process and those that it has started: `spin up` starts one that serves.
fn family(pid: u32) -> Result<Vec<u32>> {
    let mut family = vec![pid];
    let mut next = 0;
    while let Some(pid) = family.get(next).copied() {
        next += 1;
        for task in fs::read_dir(format!("/proc/{pid}/task"))? {
            let children = fs::read_to_string(task?.path().join("children")).unwrap_or_default();
            family.extend(children.split_whitespace().filter_map(|child| child.parse::<u32>().ok()));
        }
    }
    Ok(family)
}

/// The measurements of one kind of request.
#[derive(Default)]
struct Load {
    latencies: Vec<Duration>,
    took: Duration,
    cpu: Duration,
}

impl Load {
    /// Keeps this many connections busy for a turn. The turn begins once each connection has had an answer,
    /// so that it does not include work that the turn before has left, such as listing the store after a
    /// change.
    async fn run(
        &mut self,
        server: &Server,
        connections: usize,
        request: impl Fn() -> Vec<u8>,
    ) -> Result<()> {
        let mut clients = try_join_all((0..connections).map(|_| Client::connect(server.addr))).await?;
        let request = &request;
        try_join_all(clients.iter_mut().map(async |client| client.exchange(&request()).await)).await?;
        let (cpu, started) = (server.cpu()?, Instant::now());
        let latencies = try_join_all(clients.iter_mut().map(async |client| {
            let mut latencies = vec![];
            while started.elapsed() < TURN {
                latencies.push(client.exchange(&request()).await?);
            }
            anyhow::Ok(latencies)
        }))
        .await?;
        self.took += started.elapsed();
        self.cpu += server.cpu()? - cpu;
        self.latencies.extend(latencies.into_iter().flatten());
        Ok(())
    }

    fn rate(&self) -> f64 {
        self.latencies.len() as f64 / self.took.as_secs_f64()
    }

    fn percentile(&mut self, percent: usize) -> Duration {
        self.latencies.sort_unstable();
        self.latencies[(self.latencies.len() - 1) * percent / 100]
    }
}

/// A connection. It does as little as possible: on a small machine, the client takes processor time from the
/// host.
struct Client {
    stream: TcpStream,
    answer: Vec<u8>,
}

impl Client {
    async fn connect(addr: SocketAddr) -> Result<Self> {
        let stream = TcpStream::connect(addr).await?;
        stream.set_nodelay(true)?;
        Ok(Self { stream, answer: vec![] })
    }

    /// The time that a 2xx answer took. Any other answer is an error.
    async fn exchange(&mut self, request: &[u8]) -> Result<Duration> {
        let started = Instant::now();
        self.stream.write_all(request).await?;
        self.answer.clear();
        while !is_complete(&self.answer)? {
            // Spin does not set TCP_NODELAY. Without this option, many answers would wait 44 ms for a delayed
            // ACK, and nothing else would be measured. The kernel resets the option, so it is set for each
            // read.
            set_tcp_quickack(&self.stream, true)?;
            ensure!(self.stream.read_buf(&mut self.answer).await? > 0, "the host closed the connection");
        }
        let took = started.elapsed();
        if !self.answer.starts_with(b"HTTP/1.1 2") {
            bail!("{}", String::from_utf8_lossy(&self.answer));
        }
        Ok(took)
    }
}

/// Whether this is a complete answer: of a known length, or in chunks of which none contains the end of the
/// last chunk.
fn is_complete(answer: &[u8]) -> Result<bool> {
    let Some(head) = answer.windows(4).position(|four| four == b"\r\n\r\n") else { return Ok(false) };
    let (head, body) = (std::str::from_utf8(&answer[..head])?, &answer[head + 4..]);
    for line in head.lines() {
        if let Some((name, value)) = line.split_once(':')
            && name.eq_ignore_ascii_case("content-length")
        {
            return Ok(body.len() >= value.trim().parse()?);
        }
    }
    Ok(body.ends_with(b"0\r\n\r\n"))
}

fn request(method: &str, path: &str, body: &str) -> Vec<u8> {
    let mut request = format!("{method} {path} HTTP/1.1\r\nhost: bench\r\n");
    if !body.is_empty() {
        request += &format!("content-type: application/json\r\ncontent-length: {}\r\n", body.len());
    }
    format!("{request}\r\n{body}").into_bytes()
}

/// The registration of a node by its number, which determines its kind and its address.
fn register(prefix: &str, number: u32) -> Vec<u8> {
    let kind = if number % GROUP < 2 { "redis" } else { "sentinel" };
    let host = Ipv4Addr::from_bits(Ipv4Addr::new(10, 0, 0, 0).to_bits() + number);
    request("POST", &format!("{prefix}{kind}"), &format!(r#"{{"host":"{host}"}}"#))
}

/// A registration of the first node that changes something each time, as after a restart.
fn change() -> Vec<u8> {
    static RUNS: AtomicU32 = AtomicU32::new(0);
    let run_id = RUNS.fetch_add(1, Ordering::Relaxed);
    request("POST", "/redis", &format!(r#"{{"host":"10.0.0.0","run_id":"{run_id}"}}"#))
}

fn median(mut samples: Vec<Duration>) -> Duration {
    samples.sort_unstable();
    samples[samples.len() / 2]
}

fn ms(duration: Duration) -> String {
    format!("{:.2} ms", duration.as_secs_f64() * 1e3)
}

fn kernel() -> Result<String> {
    let uname = rustix::system::uname();
    Ok(format!("{} {} {}", uname.sysname().to_str()?, uname.release().to_str()?, uname.machine().to_str()?))
}
