//! Runs against systems that stand already: what is right stays, and what is missing is completed.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use broker_fn::api::Kind;
use e2e::{Broker, Lab, Ledger, System, redis_version, scenario};

use crate::support::{LIMIT, expect_code, expect_healthy, fail_over, fingerprint, run, sweep};

/// What a run that has nothing to do may send.
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
    // A text that is no hello: it shows whether the stream flows.
    "PUBLISH __sentinel__:hello sentinel-runner:",
    // A replica on which that takes a while says how far it is, as it does each second.
    "REPLCONF GETACK *",
];

/// Two Redis servers and so many Sentinels, configured. The first to register is not the master, because the other holds
/// a key.
async fn standing(lab: &Lab, ledger: &Ledger, sentinels: usize) -> Result<System> {
    let system = lab.system_of(2, sentinels, |node| node.behind(ledger)).await?;
    system.redis[1].command(&["SET", "precious", "1"]).await?;
    system.register_all().await?;
    expect_code(&run(lab, &system.broker, &[]).await?, 0);
    expect_healthy(&system, 1).await?;
    Ok(system)
}

/// Waits until the nodes themselves have made this a healthy system.
async fn settled(system: &System, master: usize) -> Result<()> {
    let started = Instant::now();
    loop {
        let wrong = system.wrong("mymaster", master).await;
        if wrong.is_empty() {
            return Ok(());
        }
        ensure!(started.elapsed() < LIMIT, "not settled: {wrong:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
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
fn what_sentinel_has_made_of_a_system_stays_as_it_is() {
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
        // What is between `MULTI` and `EXEC` is gone through, and not executed.
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
    // There are none before.
    if redis_version().expect("it says it") < (7, 0) {
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
        // Alone with its functions it becomes the master, though it registered last.
        system.redis[0].command(&["DEL", "precious"]).await?;
        expect_code(&run(lab, &system.broker, &[]).await?, 0);
        expect_healthy(&system, 1).await
    });
}

#[test]
fn sentinels_that_do_not_know_the_master_of_the_others_are_told() {
    scenario(async |lab| {
        let mut system = lab.system(2, 4).await?;
        // What the other half knows is not what a fresh system would become.
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

/// A node that Sentinels know dies for good, and another takes its place.
///
/// A Sentinel never forgets another by itself, nor a replica. Four known Sentinels, of which one is gone for ever, need
/// three votes for a failover: of the three that are left not one may fail.
async fn is_replaced(lab: &Lab, kind: Kind) -> Result<()> {
    let ledger = Ledger::new();
    // Two survivors that have to forget, each of which takes ten seconds.
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

    // Registered and dead, it may come back: it is for the operator to say that it will not.
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
    // Each Sentinel takes its time to forget: both kinds at once.
    sweep(&[Kind::Redis, Kind::Sentinel], async |lab, &kind| is_replaced(lab, kind).await);
}
