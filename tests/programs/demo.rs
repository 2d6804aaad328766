//! `make demo`: from nothing to a verified Redis system with Sentinel, and to its first failover, on this
//! machine.
//!
//! Everything is real: the component that ships, in the local host; the runner that ships; redis-server and
//! redis-sentinel. The demo ends without input, leaves no process running, and fails if a step fails.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use e2e::{Lab, Node, Running, System, eventually};
use tokio::signal::unix::{SignalKind, signal};

const REDIS_SERVERS: usize = 3;
const SENTINELS: usize = 3;
const GROUP: &str = "mymaster";

/// How long the Sentinels may take to promote a replica. They need about two seconds here.
const FAILOVER_LIMIT: Duration = Duration::from_secs(30);

/// How often the output of a run is read.
const POLL: Duration = Duration::from_millis(2);

#[tokio::main]
async fn main() -> ExitCode {
    let (Ok(mut interrupt), Ok(mut terminate)) =
        (signal(SignalKind::interrupt()), signal(SignalKind::terminate()))
    else {
        eprintln!("error: the signals can't be caught");
        return ExitCode::FAILURE;
    };
    // All processes end when the demo's future is dropped, even after an error.
    tokio::select! {
        ended = demo() => match ended {
            Ok(()) => {
                println!("\nDone. Everything that was started has been stopped.");
                ExitCode::SUCCESS
            }
            Err(error) => {
                eprintln!("error: {error:?}");
                ExitCode::FAILURE
            }
        },
        _ = interrupt.recv() => ExitCode::from(130),
        _ = terminate.recv() => ExitCode::from(143),
    }
}

async fn demo() -> Result<()> {
    let lab = Lab::new()?;
    let shown = async {
        println!(
            "Starting the broker, {REDIS_SERVERS} Redis servers and {SENTINELS} Sentinels, all on their own"
        );
        let system = lab.system(REDIS_SERVERS, SENTINELS).await?;
        bootstrap(&lab, &system).await?;
        fail_over(&system).await
    };
    let ended = shown.await;
    if ended.is_err() {
        eprintln!("{}", lab.logs());
    }
    ended
}

async fn bootstrap(lab: &Lab, system: &System) -> Result<()> {
    let flags = "--sentinel-set down-after-milliseconds=1000 --sentinel-set failover-timeout=5000";
    let command = format!("bootstrap --broker {} {flags}", system.broker.url());
    println!("\n$ sentinel-runner {command}");
    let mut runner = Shown { running: lab.runner(command.split_whitespace()).start()?, shown: 0 };
    runner.until(|runner| runner.stderr().contains("waiting")).await?;

    println!("\nEach node registers, as it would when it starts:");
    let mut registered = Instant::now();
    for node in system.redis.iter().chain(&system.sentinels) {
        let body = serde_json::json!({ "port": node.addr().port() });
        println!("$ curl --json '{body}' {}/{}", system.broker.url(), node.kind());
        let reply = system.broker.post(format!("/{}", node.kind())).json(&body).send().await?;
        registered = Instant::now();
        ensure!(reply.status == 201, "registering {node}: {reply}");
    }

    println!();
    runner.until(|_| false).await?;
    let took = registered.elapsed();
    let ran = runner.running.wait(Duration::ZERO).await?;
    ensure!(ran.code == Some(0), "the runner has failed: {ran}");
    println!("\n{}", ran.stdout.trim_end());

    let wrong = system.wrong(GROUP, 0).await;
    ensure!(wrong.is_empty(), "the runner prints verified, but:\n{}", wrong.join("\n"));
    system.replicates(0).await?;
    println!("\nFrom the last registration to exit code 0: {} ms.", took.as_millis());
    println!("Checked once more without the runner: all of that is so, and a write reaches every replica.");
    Ok(())
}

async fn fail_over(system: &System) -> Result<()> {
    let master = &system.redis[0];
    master.command(&["SET", "greeting", "hello"]).await?;
    let confirmed: i64 = master.query(&["WAIT", "2", "5000"]).await?;
    ensure!(confirmed == 2, "{confirmed} of 2 replicas have the write");
    println!(
        "\nSET greeting hello, on the master; both replicas have it. Now the master is killed: {}",
        master.addr()
    );
    master.kill();

    let killed = Instant::now();
    let promoted = eventually(FAILOVER_LIMIT, async || promoted(system).await).await?;
    println!("Sentinel has promoted {} after {:.1} s.", promoted.addr(), killed.elapsed().as_secs_f64());
    let greeting: String = promoted.query(&["GET", "greeting"]).await?;
    ensure!(greeting == "hello", "the write is lost: {greeting}");
    println!("GET greeting, on the new master: {greeting}. The write has survived.");
    promoted.command(&["SET", "greeting", "hello again"]).await?;
    println!("SET greeting \"hello again\": it takes writes.");
    Ok(())
}

/// The new server that every Sentinel names as the master, once it is a master.
async fn promoted(system: &System) -> Result<&Node> {
    let mut named = vec![];
    for sentinel in &system.sentinels {
        let (host, port): (String, u16) = sentinel
            .query(&["SENTINEL", "GET-MASTER-ADDR-BY-NAME", GROUP])
            .await
            .context("asking for the master")?;
        named.push(format!("{host}:{port}"));
    }
    for node in &system.redis[1..] {
        if named.iter().all(|addr| *addr == node.addr().to_string())
            && node.info("replication").await?["role"] == "master"
        {
            return Ok(node);
        }
    }
    bail!("the Sentinels have promoted no replica: they name {named:?}")
}

/// A run whose output is shown while it runs.
struct Shown {
    running: Running,
    shown: usize,
}

impl Shown {
    /// Shows the output until `holds` is true or the run ends.
    async fn until(&mut self, holds: impl Fn(&Running) -> bool) -> Result<()> {
        loop {
            let ended = !self.running.is_running()?;
            let text = self.running.stderr();
            // Only whole lines, and the unfinished last line of a run that has ended.
            let end = if ended { text.len() } else { text.rfind('\n').map_or(0, |newline| newline + 1) };
            for line in text[self.shown.min(end)..end].lines() {
                println!("  {line}");
            }
            self.shown = self.shown.max(end);
            if ended || holds(&self.running) {
                return Ok(());
            }
            tokio::time::sleep(POLL).await;
        }
    }
}
