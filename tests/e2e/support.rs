//! Helpers of the end-to-end tests.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::io::Write as _;
use std::net::SocketAddr;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use broker_fn::api::Roster;
use e2e::{Broker, Held, Lab, Node, Ran, Running, SCENARIO_LIMIT, Sent, System, eventually, scenario_within};

/// Longer than any run here takes. The runner's own limit is shorter.
pub(crate) const LIMIT: Duration = Duration::from_secs(60);

/// How many cases of a sweep run at once. They mostly wait for timers.
const AT_ONCE: usize = 4;

pub(crate) fn start(lab: &Lab, broker: &Broker, flags: &[&str]) -> Result<Running> {
    // The limit is set in the environment, so that a test can still set its own with a flag.
    lab.runner(["bootstrap", "--broker", &broker.url()])
        .env("SENTINEL_RUNNER_BOOTSTRAP_TIMEOUT", "40s")
        .args(flags)
        .start()
}

pub(crate) async fn run(lab: &Lab, broker: &Broker, flags: &[&str]) -> Result<Ran> {
    start(lab, broker, flags)?.wait(LIMIT).await
}

#[track_caller]
pub(crate) fn expect_code(ran: &Ran, code: i32) {
    assert_eq!(ran.code, Some(code), "{ran}");
}

/// Waits until a run has printed this on standard error.
pub(crate) async fn until_stderr(running: &mut Running, text: &str) -> Result<()> {
    running.until_stderr(text, 1, LIMIT).await
}

/// Waits until a run has sent the command that is to be held. `None` if the run has ended without it.
pub(crate) async fn until_held(running: &mut Running, held: &mut Held) -> Result<Option<Sent>> {
    tokio::select! {
        sent = held.reached() => sent.map(Some),
        ended = running.ended(LIMIT) => ended.map(|()| None),
    }
}

/// Has a Sentinel fail over to a replica. A Sentinel examines a new replica at its next tick, and can't
/// promote the replica before that.
pub(crate) async fn fail_over(sentinel: &Node) -> Result<()> {
    eventually(LIMIT, async || {
        let asked = sentinel.command(&["SENTINEL", "FAILOVER", "mymaster"]).await;
        if let Err(error) = &asked {
            assert!(format!("{error:?}").contains("NOGOODSLAVE"), "{error:?}");
        }
        asked.map(drop)
    })
    .await
}

/// Checks the whole system without the runner, and checks that the broker has the outcome.
pub(crate) async fn expect_healthy(system: &System, master: usize) -> Result<()> {
    assert_eq!(system.wrong("mymaster", master).await, Vec::<String>::new());
    system.replicates(master).await?;
    let outcome = roster(&system.broker).await?.outcome.expect("the runner has reported");
    assert!(outcome.verified, "{outcome:?}");
    assert_eq!(outcome.master.unwrap().to_string(), system.redis[master].registered_at().to_string());
    Ok(())
}

pub(crate) async fn roster(broker: &Broker) -> Result<Roster> {
    broker.get("/").header("accept", "application/json").send().await?.json()
}

/// Has a server save its data. First waits for a child process that may still save the data for a replica.
pub(crate) async fn save(node: &Node) -> Result<()> {
    eventually(LIMIT, async || {
        ensure!(node.info("persistence").await?["rdb_bgsave_in_progress"] == "0", "{node} still saves");
        Ok(())
    })
    .await?;
    node.command(&["SAVE"]).await.map(drop)
}

/// Everything about the nodes that a run may change, and must not change if there is nothing to do. Values
/// that change without a run are left out.
pub(crate) async fn fingerprint(system: &System) -> Result<Vec<BTreeMap<String, String>>> {
    let mut all = vec![];
    for sentinel in &system.sentinels {
        // One map for each master that the Sentinel monitors.
        let masters: Vec<BTreeMap<String, String>> = sentinel.query(&["SENTINEL", "MASTERS"]).await?;
        for mut fields in masters {
            fields.retain(|name, _| {
                !name.starts_with("last-")
                    && !["info-refresh", "role-reported-time", "link-pending-commands"].contains(&&**name)
            });
            fields.insert("of".to_owned(), sentinel.to_string());
            all.push(fields);
        }
    }
    for redis in &system.redis {
        let mut fields = redis.info("replication").await?;
        // The offset and the lag change with every heartbeat.
        fields.retain(|name, _| {
            !name.contains("offset") && !name.contains("histlen") && !name.contains("_io_seconds")
        });
        for value in fields.values_mut() {
            *value = value.split(",offset=").next().unwrap_or_default().to_owned();
        }
        let config: BTreeMap<String, String> = redis.query(&["CONFIG", "GET", "*"]).await?;
        fields.extend(config);
        fields.insert("keys".to_owned(), redis.query::<u64>(&["DBSIZE"]).await?.to_string());
        all.push(fields);
    }
    Ok(all)
}

/// Whether the long sweeps are complete: `SWEEP=all`.
pub(crate) fn whole_sweep() -> bool {
    std::env::var_os("SWEEP").is_some_and(|value| value == "all")
}

/// The numbers of the commands to try: all of them, or at most twelve at regular intervals. On a slow machine
/// a run sends more commands, because it checks the nodes more often.
pub(crate) fn sample(commands: usize, every: usize) -> impl Iterator<Item = usize> {
    (1..=commands).step_by(if whole_sweep() { 1 } else { every.max(commands.div_ceil(12)) })
}

/// Numbers that look random, the same for the same seed (xorshift).
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        // This spreads seeds that lie close together.
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 % end as u64).expect("it is below `end`")
    }

    pub(crate) fn one_of<T: Clone>(&mut self, items: &[T]) -> T {
        items[self.below(items.len())].clone()
    }

    pub(crate) fn shuffle<T>(&mut self, items: &mut [T]) {
        for last in (1..items.len()).rev() {
            items.swap(last, self.below(last + 1));
        }
    }
}

/// Runs each case as a separate scenario, a few at a time. Panics at the end, naming every case that failed.
pub(crate) fn sweep<C: Display + Sync>(cases: &[C], run: impl AsyncFn(&Lab, &C) -> Result<()> + Sync) {
    sweep_within(SCENARIO_LIMIT, cases, run);
}

/// Like [`sweep`], for scenarios that may take this long.
pub(crate) fn sweep_within<C: Display + Sync>(
    limit: Duration,
    cases: &[C],
    run: impl AsyncFn(&Lab, &C) -> Result<()> + Sync,
) {
    let next = AtomicUsize::new(0);
    let worker = || {
        let mut failed = vec![];
        while let Some(case) = cases.get(next.fetch_add(1, Ordering::Relaxed)) {
            let ran =
                catch_unwind(AssertUnwindSafe(|| scenario_within(limit, async |lab| run(lab, case).await)));
            if let Err(panic) = ran {
                let text = panic.downcast_ref::<String>().map(String::as_str);
                let text = text.or(panic.downcast_ref::<&str>().copied()).unwrap_or("panicked");
                failed.push(format!("{case}: {text}"));
            }
        }
        failed
    };
    let failed: Vec<String> = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..AT_ONCE).map(|_| scope.spawn(worker)).collect();
        workers.into_iter().flat_map(|worker| worker.join().expect("panics are caught")).collect()
    });
    assert!(failed.is_empty(), "{} of {} failed:\n{}", failed.len(), cases.len(), failed.join("\n"));
}

/// Prints how much was tried, also if the output of tests that pass is not shown.
pub(crate) fn tried(what: impl Display) {
    // If the text can't be written, nothing is lost.
    let _ = writeln!(std::io::stderr(), "{what}");
}

/// A run that ends without waiting takes less than this, even on a busy machine. A run that waits in vain
/// takes far longer.
pub(crate) const SOON: Duration = Duration::from_secs(15);

/// Checks that a run ends at once with this code, that its error contains these addresses and this text, and
/// that the run has changed nothing.
pub(crate) async fn expect_refused(
    lab: &Lab,
    system: &System,
    code: i32,
    named: &[SocketAddr],
    text: &str,
) -> Result<()> {
    let before = fingerprint(system).await?;
    let ran = run(lab, &system.broker, &[]).await?;
    expect_code(&ran, code);
    let (_, error) = ran.stderr.split_once("error: ").context("it ends with an error")?;
    for addr in named {
        assert!(error.contains(&addr.to_string()), "{addr} is not named: {ran}");
    }
    assert!(error.contains(text) && error.contains("hint: "), "`{text}`, or a hint, is missing: {ran}");
    assert!(ran.elapsed < SOON, "{ran}");
    assert_eq!(before, fingerprint(system).await?, "it has changed something: {ran}");
    Ok(())
}
