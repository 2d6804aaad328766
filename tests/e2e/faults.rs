//! Faults at every step: the runner killed, nodes killed or frozen, connections cut, nodes that can't be used, and a
//! broker that is not one.

use std::fmt;
use std::sync::Mutex;

use anyhow::{Result, ensure};
use e2e::{Lab, Ledger, Sent, System};

use crate::support::{LIMIT, expect_code, expect_healthy, run, start, sweep, tried, whole_sweep};

/// What the masters are given as `repl-diskless-sync-delay`: another value than Redis's own, so that only the original
/// is right in the end.
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

/// Verified, with all the data everywhere, and the setting as it was.
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
    e2e::scenario(async |lab| {
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
    /// At this command of the run, over all nodes.
    number: usize,
    /// Whether the node still gets it.
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
    let step = if whole_sweep() { 1 } else { 7 };
    let kills: Vec<Kill> = (1..=commands)
        .step_by(step)
        .flat_map(|number| [false, true].map(|executed| Kill { number, executed }))
        .collect();
    sweep(&kills, async |lab, kill| {
        let ledger = Ledger::new();
        let number = kill.number;
        let mut held = ledger.hold(move |sent| sent.number == number);
        let system = system_with_data(lab, &ledger).await?;
        let mut running = start(lab, &system.broker, &[])?;
        tokio::select! {
            sent = held.reached() => println!("{kill}: {}", sent?),
            // How often it asks whether all is done is up to the nodes: it may need fewer commands than the one before.
            ended = running.ended(LIMIT) => {
                ended?;
                expect_code(&running.wait(LIMIT).await?, 0);
                return expect_nothing_lost(&system).await;
            }
        }
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
