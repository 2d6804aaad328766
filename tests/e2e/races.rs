//! Many runners at once: they configure one system, and each of them reports it.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Mutex;

use anyhow::{Context, Result, ensure};
use e2e::{Broker, Lab, Ledger, Running, Sent, Signal, System, scenario};
use futures::future::try_join;

use crate::support::{
    LIMIT, expect_code, expect_healthy, roster, run, sample, start, sweep, tried, until_held, whole_sweep,
};

/// A fresh system, and five runners.
struct Round(usize);

impl Round {
    fn all() -> Vec<Self> {
        (1..=if whole_sweep() { 20 } else { 5 }).map(Round).collect()
    }

    /// In half of the rounds, the runners find all nodes registered. In the other half, they wait for the
    /// last node, which wakes them all.
    fn registers_first(&self) -> bool {
        self.0.is_multiple_of(2)
    }
}

impl fmt::Display for Round {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "round {}", self.0)
    }
}

/// Starts a runner for each of these brokers. The runners begin once all of them are there.
fn start_together(lab: &Lab, brokers: &[&Broker]) -> Result<Vec<Running>> {
    let runners = brokers.iter().map(|broker| {
        let running = start(lab, broker, &[])?;
        running.signal(Signal::STOP)?;
        Ok(running)
    });
    let runners: Vec<Running> = runners.collect::<Result<_>>()?;
    for running in &runners {
        running.signal(Signal::CONT)?;
    }
    Ok(runners)
}

/// The Redis server that the first Sentinel monitors.
async fn master(system: &System) -> Result<usize> {
    let fields: BTreeMap<String, String> =
        system.sentinels[0].query(&["SENTINEL", "MASTER", "mymaster"]).await?;
    let master = format!("{}:{}", fields["ip"], fields["port"]);
    let index = system.redis.iter().position(|node| node.addr().to_string() == master);
    index.with_context(|| format!("{master} is none of the servers"))
}

#[test]
fn five_runners_at_once_make_one_system_and_each_exits_with_0() {
    let rounds = Round::all();
    sweep(&rounds, async |lab, round| {
        let system = lab.system(3, 3).await?;
        if round.registers_first() {
            system.register_all().await?;
        }
        let runners = start_together(lab, &[&system.broker; 5])?;
        if !round.registers_first() {
            system.register_all().await?;
        }
        for running in runners {
            expect_code(&running.wait(LIMIT).await?, 0);
        }
        expect_healthy(&system, 0).await
    });
    tried(format_args!("races tried: 5 runners × {} rounds", rounds.len()));
}

/// Registers the same nodes with another broker, in the opposite order, each at the address on which it
/// listens.
async fn register_reversed(system: &System, broker: &Broker) -> Result<()> {
    for node in system.redis.iter().rev().chain(system.sentinels.iter().rev()) {
        let body = serde_json::json!({"host": node.addr().ip(), "port": node.addr().port()});
        let reply = broker.post(format!("/{}", node.kind())).json(&body).send().await?;
        ensure!(reply.status == 201, "registering {node}: {reply}");
    }
    Ok(())
}

/// Checks that the system is verified, and that both brokers got the same outcome.
async fn expect_one_system(system: &System, other: &Broker) -> Result<()> {
    let master = master(system).await?;
    expect_healthy(system, master).await?;
    let outcome = roster(other).await?.outcome.context("its runners have reported")?;
    assert!(outcome.verified, "{outcome:?}");
    assert_eq!(outcome.master.unwrap().to_string(), system.redis[master].addr().to_string());
    Ok(())
}

#[test]
fn runners_that_see_opposite_orders_make_one_system() {
    let rounds = Round::all();
    sweep(&rounds, async |lab, round| {
        let system = lab.system(3, 3).await?;
        let other = lab.broker(Broker::builder().variable("expected_redis", 3))?;
        let register =
            async || try_join(system.register_all(), register_reversed(&system, &other)).await.map(drop);
        if round.registers_first() {
            register().await?;
        }
        let (one, two) = (&system.broker, &other);
        let runners = start_together(lab, &[one, two, one, two, one])?;
        if !round.registers_first() {
            register().await?;
        }
        for running in runners {
            expect_code(&running.wait(LIMIT).await?, 0);
        }
        expect_one_system(&system, &other).await
    });
    tried(format_args!("races tried: 3 + 2 runners of two orders × {} rounds", rounds.len()));
}

/// A runner is held up at this command while another runner, which sees the opposite order, does all of its
/// work.
struct Overtaken(usize);

impl fmt::Display for Overtaken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "held at command {}", self.0)
    }
}

#[test]
fn a_runner_that_is_overtaken_at_any_command_adopts_what_it_finds() {
    let commands = Mutex::new(0);
    scenario(async |lab| {
        let ledger = Ledger::new();
        let system = lab.system_of(3, 3, |node| node.behind(&ledger)).await?;
        system.register_all().await?;
        expect_code(&run(lab, &system.broker, &[]).await?, 0);
        *commands.lock().unwrap() = ledger.sent().len();
        Ok(())
    });
    let commands = commands.into_inner().unwrap();
    let overtaken: Vec<_> = sample(commands, 7).map(Overtaken).collect();
    sweep(&overtaken, async |lab, Overtaken(number)| {
        let ledger = Ledger::new();
        let number = *number;
        let mut held = ledger.hold(move |sent| sent.number == number);
        let system = lab.system_of(3, 3, |node| node.behind(&ledger)).await?;
        system.register_all().await?;
        // The addresses in the other runner's broker bypass the proxies.
        let other = lab.broker(Broker::builder().variable("expected_redis", 3))?;
        register_reversed(&system, &other).await?;
        let mut slow = start(lab, &system.broker, &["--command-timeout", "30s"])?;
        let sent = until_held(&mut slow, &mut held).await?;
        let quick = run(lab, &other, &[]).await?;
        ensure!(quick.code == Some(0), "the quick one: {quick}");
        let settled = master(&system).await?;
        assert_eq!(system.wrong("mymaster", settled).await, Vec::<String>::new());
        // From here on the system is in use. Only a `REPLICAOF` that was already sent can't be called back:
        // in that case, the test writes nothing that could be lost.
        let in_use = !sent.as_ref().is_some_and(Sent::attaches);
        if in_use {
            system.redis[settled].command(&["SET", "precious", "1"]).await?;
        }
        held.release();
        let slow = slow.wait(LIMIT).await?;
        let sent = sent.map(|sent| sent.to_string()).unwrap_or_default();
        ensure!(slow.code == Some(0), "held at {sent}: {slow}");
        assert_eq!(master(&system).await?, settled, "the master stays");
        if in_use {
            let precious: Option<String> = system.redis[settled].query(&["GET", "precious"]).await?;
            ensure!(precious.is_some(), "held at {sent}, it has emptied the master: {slow}");
        }
        expect_healthy(&system, settled).await
    });
    tried(format_args!("races tried: a runner overtaken at {} of {commands} commands", overtaken.len()));
}
