//! Runs against existing systems: the run keeps what is right, and adds what is missing.

use std::collections::BTreeSet;

use anyhow::{Result, ensure};
use broker_fn::api::Kind;
use e2e::{Broker, Lab, Ledger, System, eventually, redis_version, scenario};

use crate::support::{LIMIT, expect_code, expect_healthy, fail_over, fingerprint, run, sweep};

/// The commands that a run may send if it has nothing to do.
const READS: [&str; 15] = [
    "CLIENT LIST",
    "CONFIG GET",
    "INFO",
    "PING",
    "ROLE",
    "SENTINEL CKQUORUM",
    "SENTINEL CONFIG GET",
    "SENTINEL IS-MASTER-DOWN-BY-ADDR",
    "SENTINEL MASTER",
    "SENTINEL MYID",
    "SENTINEL REPLICAS",
    "SENTINEL SENTINELS",
    "SENTINEL SLAVES",
    // This message is no hello. The runner sends it to check that the stream flows.
    "PUBLISH __sentinel__:hello sentinel-runner:",
    // Makes a slow replica confirm its offset at once. A replica also confirms once a second.
    "REPLCONF GETACK *",
];

/// A configured system of two Redis servers and this many Sentinels. The first server to register is not the
/// master, because the other server holds a key.
async fn standing(lab: &Lab, ledger: &Ledger, sentinels: usize) -> Result<System> {
    let system = lab.system_of(2, sentinels, |node| node.behind(ledger)).await?;
    system.redis[1].command(&["SET", "precious", "1"]).await?;
    system.register_all().await?;
    expect_code(&run(lab, &system.broker, &[]).await?, 0);
    expect_healthy(&system, 1).await?;
    Ok(system)
}

/// Waits until the nodes are a healthy system, without a run.
async fn settled(system: &System, master: usize) -> Result<()> {
    eventually(LIMIT, async || {
        let wrong = system.wrong("mymaster", master).await;
        ensure!(wrong.is_empty(), "not settled: {wrong:?}");
        Ok(())
    })
    .await
}

async fn expect_precious(system: &System) -> Result<()> {
    for redis in &system.redis {
        assert_eq!(
            redis.query::<Option<String>>(&["GET", "precious"]).await?.as_deref(),
            Some("1"),
            "{redis}"
        );
    }
    Ok(())
}

#[test]
fn a_run_after_a_failover_sends_nothing_that_changes_a_node() {
    scenario(async |lab| {
        let ledger = Ledger::new();
        let system = standing(lab, &ledger, 3).await?;
        fail_over(&system.sentinels[1]).await?;
        settled(&system, 0).await?;
        let before = fingerprint(&system).await?;
        let sent = ledger.sent().len();
        let ran = run(lab, &system.broker, &[]).await?;
        expect_code(&ran, 0);
        assert!(ran.stderr.contains("already configured"), "{ran}");
        // The commands between `MULTI` and `EXEC` are rehearsed, and not executed.
        let mut rehearsing = BTreeSet::new();
        for sent in &ledger.sent()[sent..] {
            if sent.is("MULTI") {
                rehearsing.insert(sent.node.clone());
            }
            let reads = READS.iter().any(|read| sent.is(read) || sent.to_string().contains(read));
            assert!(reads || rehearsing.contains(&sent.node), "it sends {sent}");
            if sent.is("EXEC") {
                rehearsing.remove(&sent.node);
            }
        }
        assert!(rehearsing.is_empty(), "{rehearsing:?}");
        assert_eq!(before, fingerprint(&system).await?);
        expect_healthy(&system, 0).await?;
        expect_precious(&system).await
    });
}

#[test]
fn a_replica_that_was_added_is_attached() {
    scenario(async |lab| {
        let ledger = Ledger::new();
        let mut system = standing(lab, &ledger, 3).await?;
        let added = lab.redis().behind(&ledger).start().await?;
        system.broker.register(&added).await?;
        system.redis.push(added);
        expect_code(&run(lab, &system.broker, &["--redis", "3"]).await?, 0);
        expect_healthy(&system, 1).await?;
        expect_precious(&system).await
    });
}

#[test]
fn a_replica_that_was_added_with_data_of_its_own_is_refused() {
    scenario(async |lab| {
        let ledger = Ledger::new();
        let mut system = standing(lab, &ledger, 3).await?;
        let added = lab.redis().behind(&ledger).start().await?;
        added.command(&["SET", "other", "2"]).await?;
        system.broker.register(&added).await?;
        system.redis.push(added);
        let before = fingerprint(&system).await?;
        let ran = run(lab, &system.broker, &["--redis", "3"]).await?;
        expect_code(&ran, 4);
        let named = system.redis[2].registered_at();
        assert!(ran.stderr.contains(&format!("{named} holds 1 key that")), "{ran}");
        assert_eq!(before, fingerprint(&system).await?);
        Ok(())
    });
}

#[test]
fn a_server_that_holds_nothing_but_functions_is_not_emptied() {
    // Earlier versions have no functions.
    if redis_version().expect("it prints its version") < (7, 0) {
        return;
    }
    scenario(async |lab| {
        let system = lab.system(2, 3).await?;
        system.redis[0].command(&["SET", "precious", "1"]).await?;
        let library = "#!lua name=mylib\nredis.register_function('answer', function() return 42 end)";
        system.redis[1].command(&["FUNCTION", "LOAD", library]).await?;
        system.register_all().await?;
        let ran = run(lab, &system.broker, &[]).await?;
        expect_code(&ran, 4);
        let (keys, functions) = (system.redis[0].registered_at(), system.redis[1].registered_at());
        assert!(ran.stderr.contains(&format!("{keys} (1 key), {functions} (1 function)")), "{ran}");
        let answer: u64 = system.redis[1].query(&["FCALL", "answer", "0"]).await?;
        assert_eq!(answer, 42);
        // Once this server is the only one with data, it becomes the master, although it registered last.
        system.redis[0].command(&["DEL", "precious"]).await?;
        expect_code(&run(lab, &system.broker, &[]).await?, 0);
        expect_healthy(&system, 1).await
    });
}

#[test]
fn sentinels_that_do_not_know_the_master_of_the_others_are_told() {
    scenario(async |lab| {
        let mut system = lab.system(2, 4).await?;
        // The other half monitors a server that would not become the master of a fresh system.
        let master = system.redis[1].addr();
        let (host, port) = (master.ip().to_string(), master.port().to_string());
        for sentinel in &system.sentinels[2..] {
            sentinel.command(&["SENTINEL", "MONITOR", "mymaster", &host, &port, "3"]).await?;
        }
        system.broker = lab.broker(Broker::builder().variable("expected_sentinels", 4))?;
        system.redis[1].command(&["SET", "precious", "1"]).await?;
        system.register_all().await?;
        expect_code(&run(lab, &system.broker, &[]).await?, 0);
        expect_healthy(&system, 1).await?;
        expect_precious(&system).await
    });
}

/// A node that the Sentinels know dies permanently, and another node takes its place.
///
/// A Sentinel never forgets another Sentinel or a replica without a reset. If four Sentinels are known and
/// one of them is gone permanently, a failover takes three votes: of the three Sentinels that are left, none
/// may fail.
async fn is_replaced(lab: &Lab, kind: Kind) -> Result<()> {
    let ledger = Ledger::new();
    // Two Sentinels remain that have to forget the dead node, and each takes ten seconds.
    let sentinels = if kind == Kind::Redis { 2 } else { 3 };
    let mut system = standing(lab, &ledger, sentinels).await?;
    let (dead, new) = match kind {
        Kind::Redis => (system.redis.remove(0), lab.redis()),
        Kind::Sentinel => (system.sentinels.remove(1), lab.sentinel()),
    };
    dead.kill();
    let new = new.behind(&ledger).start().await?;
    system.broker.register(&new).await?;
    match kind {
        Kind::Redis => system.redis.insert(0, new),
        Kind::Sentinel => system.sentinels.push(new),
    }

    // The dead node is still registered, so it may come back. Only the operator knows that it is gone
    // permanently.
    let ran = run(lab, &system.broker, &["--timeout", "3s"]).await?;
    expect_code(&ran, 6);
    assert!(ran.stderr.contains(&format!("{} is left out: ", dead.registered_at())), "{ran}");

    let reply = system.broker.delete(format!("/{kind}/{}", dead.registered_at())).send().await?;
    ensure!(reply.status == 204, "{reply}");
    expect_code(&run(lab, &system.broker, &["--timeout", "50s"]).await?, 0);
    expect_healthy(&system, 1).await?;
    expect_precious(&system).await
}

#[test]
fn a_node_that_was_replaced_is_forgotten_by_the_sentinels() {
    // Each Sentinel takes its time to forget a node, so both kinds are tried at once.
    sweep(&[Kind::Redis, Kind::Sentinel], async |lab, &kind| is_replaced(lab, kind).await);
}
