//! A store that is missing, fails, or is slow: clients get an error, and a partial change is never reported
//! as a success.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use broker_fn::api::Roster;
use e2e::host::Wasi;
use e2e::{Broker, BrokerBuilder, Lab, Node, Reply, at_once, eventually, scenario};
use futures::future::try_join_all;

use crate::contract::spin;

/// Runs a test with brokers of both builds, in the local host and, if there is one, in Spin.
#[expect(clippy::needless_pass_by_value, reason = "a closure that is written where it is given")]
fn on_each_build(test: impl AsyncFn(&Lab, BrokerBuilder) -> Result<()>) {
    let spin = spin();
    for wasi in Wasi::ALL {
        scenario(async |lab| test(lab, Broker::builder().built_for(wasi)).await);
        if let Some(spin) = spin.as_ref().filter(|spin| spin.has(wasi)) {
            scenario(async |lab| test(lab, Broker::builder().built_for(wasi).on_spin(spin)).await);
        }
    }
}

#[track_caller]
fn expect_unavailable(reply: &Reply) {
    assert_eq!(reply.status, 503, "{reply}");
    assert_eq!(reply.header("content-type"), Some("application/problem+json"), "{reply}");
    assert!(reply.header("retry-after").is_some(), "{reply}");
}

/// Registers a Redis server, and tries again after each 503, as a client should.
async fn register(broker: &Broker, host: &str) -> Result<()> {
    eventually(Duration::from_secs(30), async || {
        let reply = at_once(broker.post("/redis").json(&serde_json::json!({"host": host})).send().await);
        if !reply.status.is_success() {
            expect_unavailable(&reply);
            bail!("{host} is not registered: {reply}");
        }
        Ok(())
    })
    .await
}

async fn hosts(broker: &Broker) -> Result<Vec<String>> {
    let roster: Roster = broker.get("/").send().await?.json()?;
    Ok(roster.redis.iter().map(|registration| registration.addr.host.to_string()).collect())
}

#[test]
fn a_store_that_the_manifest_does_not_declare_is_a_503() {
    for wasi in Wasi::ALL {
        scenario(async |lab| {
            let manifest = lab.dir().join("spin.toml");
            let (declared, undeclared) = (r#"key_value_stores = ["default"]"#, "key_value_stores = []");
            let text = fs::read_to_string(wasi.manifest())?;
            ensure!(text.contains(declared), "the manifest declares the store in another way");
            fs::write(&manifest, text.replace(declared, undeclared))?;

            let broker = lab.broker(Broker::builder().built_for(wasi).manifest(manifest))?;
            for path in ["/", "/redis", "/groups", "/metrics", "/healthcheck"] {
                expect_unavailable(&broker.get(path).send().await?);
            }
            expect_unavailable(&broker.post("/redis").send().await?);
            assert_eq!(broker.get("/config").send().await?.status, 200);
            Ok(())
        });
    }
}

#[test]
fn long_a_store_that_is_down_is_a_503_until_it_is_back() {
    on_each_build(async |lab, broker| {
        let redis = lab.redis().config("appendonly yes").start().await?;
        let broker = lab.broker(broker.store(format!("redis://{}", redis.addr()).as_str()))?;
        register(&broker, "10.0.0.1").await?;
        redis.kill();
        // The requests are sent at once, because with WASI 0.2 each takes as long as the host tries.
        let replies = try_join_all([
            broker.post("/redis").send(),
            broker.get("/").send(),
            broker.get("/healthcheck").send(),
        ]);
        replies.await?.iter().for_each(expect_unavailable);
        redis.restart().await?;
        register(&broker, "10.0.0.2").await?;
        assert_eq!(hosts(&broker).await?, ["10.0.0.1", "10.0.0.2"]);
        Ok(())
    });
}

/// Only with WASI 0.3: with WASI 0.2, a component waits for its store as long as the host lets it.
#[test]
fn a_store_that_does_not_answer_is_a_503_in_time() {
    scenario(async |lab| {
        let redis = lab.redis().start().await?;
        let broker = lab.broker(Broker::builder().store(format!("redis://{}", redis.addr()).as_str()))?;
        register(&broker, "10.0.0.1").await?;
        redis.stop()?;
        let asked = Instant::now();
        let outcome = serde_json::json!({"verified": false, "reason": "nothing comes of it"});
        let replies = try_join_all([
            broker.get("/").send(),
            broker.post("/redis").json(&serde_json::json!({"host": "10.0.0.9"})).send(),
            broker.delete("/redis/10.0.0.1:6379").send(),
            broker.delete("/").send(),
            broker.put("/outcome").json(&outcome).send(),
        ]);
        replies.await?.iter().for_each(expect_unavailable);
        assert!(asked.elapsed() < Duration::from_secs(25), "after {:?}", asked.elapsed());
        redis.cont()?;
        // None of these requests was or will be carried out. They have only reached their first steps, which
        // read the store.
        for host in ["10.0.0.2", "10.0.0.3", "10.0.0.2"] {
            register(&broker, host).await?;
        }
        let roster: Roster = broker.get("/").send().await?.json()?;
        assert_eq!(roster.outcome, None);
        assert_eq!(hosts(&broker).await?, ["10.0.0.1", "10.0.0.2", "10.0.0.3"]);
        Ok(())
    });
}

#[test]
fn a_file_that_is_no_store_any_more_is_a_503_until_it_is_one() {
    on_each_build(async |lab, broker| {
        let path = lab.dir().join("store.db");
        let broker = lab.broker(broker.store(&path))?;
        register(&broker, "10.0.0.1").await?;
        assert_eq!(hosts(&broker).await?, ["10.0.0.1"]);
        let file = rusqlite::Connection::open(&path)?;
        file.execute_batch("ALTER TABLE spin_key_value RENAME TO away")?;
        for path in ["/", "/redis", "/groups", "/metrics", "/healthcheck"] {
            expect_unavailable(&broker.get(path).send().await?);
        }
        expect_unavailable(&broker.post("/redis").send().await?);
        expect_unavailable(&broker.delete("/redis/10.0.0.1:6379").send().await?);
        file.execute_batch("ALTER TABLE away RENAME TO spin_key_value")?;
        register(&broker, "10.0.0.2").await?;
        assert_eq!(hosts(&broker).await?, ["10.0.0.1", "10.0.0.2"]);
        Ok(())
    });
}

/// How often the store has been listed.
async fn listings(redis: &Node) -> Result<u64> {
    let stats = redis.info("commandstats").await?;
    let calls = stats.get("cmdstat_scan").and_then(|stats| stats.split(',').next()?.strip_prefix("calls="));
    Ok(calls.unwrap_or("0").parse()?)
}

#[test]
fn a_request_waits_a_moment_for_the_listing_of_another_host() {
    on_each_build(async |lab, broker| {
        let redis = lab.redis().start().await?;
        let broker = lab.broker(broker.store(format!("redis://{}", redis.addr()).as_str()))?;
        register(&broker, "10.0.0.1").await?;
        // Another host has begun to list for this revision, and is gone.
        let keys: Vec<String> = redis.query(&["KEYS", "rev:*"]).await?;
        let shard = keys[0].trim_start_matches("rev:");
        let [revision_key, snapshot_key, listing_key] =
            ["rev", "snap", "list"].map(|prefix| format!("{prefix}:{shard}"));
        // Only the listing for a revision that is some seconds old is shared.
        let settle = async || -> Result<String> {
            let revision: String = redis.query(&["GET", &revision_key]).await?;
            let mut revision: serde_json::Value = serde_json::from_str(&revision)?;
            revision["set_at"] = "2026-01-01T00:00:00Z".into();
            redis.command(&["SET", &revision_key, &revision.to_string()]).await?;
            Ok(revision["nonce"].as_str().context("it has a name")?.to_owned())
        };
        let nonce = settle().await?;
        redis.command(&["SET", &listing_key, &nonce]).await?;
        let asked = Instant::now();
        assert_eq!(hosts(&broker).await?, ["10.0.0.1"]);
        // The reader waits for 0.7 s. The two clocks differ, so the test expects a little less.
        assert!(asked.elapsed() > Duration::from_millis(500), "after {:?}", asked.elapsed());
        assert_eq!(listings(&redis).await?, 1);

        // All other readers take the snapshot that this reader has built.
        assert_eq!(hosts(&broker).await?, ["10.0.0.1"]);
        assert_eq!(listings(&redis).await?, 1);

        // Another host lists, and finishes: its snapshot is what the reader was waiting for.
        register(&broker, "10.0.0.2").await?;
        settle().await?;
        assert_eq!(hosts(&broker).await?, ["10.0.0.1", "10.0.0.2"]);
        assert_eq!(listings(&redis).await?, 2, "for another revision nobody is waited for");
        let snapshot: String = redis.query(&["GET", &snapshot_key]).await?;
        let purpose: String = redis.query(&["GET", &listing_key]).await?;
        assert!(purpose.contains(" instead of "), "{purpose}");
        redis.command(&["DEL", &snapshot_key]).await?;
        let nonce = purpose.split(' ').next().context("a name")?;
        redis.command(&["SET", &listing_key, nonce]).await?;
        let store = ["SET", &snapshot_key, &snapshot];
        let (read, built) = tokio::join!(hosts(&broker), redis.command(&store));
        built?;
        assert_eq!(read?, ["10.0.0.1", "10.0.0.2"]);
        assert_eq!(listings(&redis).await?, 2);
        Ok(())
    });
}
