//! Servers that `join` holds because their role is not known yet.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use broker_fn::api::{Kind, Registration};
use e2e::{
    Broker, Lab, Node, NodeBuilder, System, eventually, host::StoreAt, redis_version, scenario,
    scenario_within,
};

use crate::join::{
    brought_up, is_synchronising, joining, launched, own_priority, until_failed_over, until_healthy,
    until_healthy_within, until_priority, until_saved, wipe,
};
use crate::support::{LIMIT, expect_code, roster, run, save, tried};

/// How many keys a system has before something happens to it.
const KEYS: usize = 1000;

/// Writes keys to the master, and waits until every replica has them.
pub(crate) async fn filled(system: &System, master: usize) -> Result<()> {
    let script = "for key = 1, tonumber(ARGV[1]) do redis.call('SET', 'key:' .. key, key) end";
    system.redis[master].command(&["EVAL", script, "0", &KEYS.to_string()]).await?;
    system.replicates(master).await
}

/// The broker loses its store: a broker without registrations starts at its address.
pub(crate) fn without_its_store(lab: &Lab, system: System) -> Result<System> {
    with_store(lab, system, ":memory:")
}

/// Restarts the broker with this store.
pub(crate) fn with_store(lab: &Lab, system: System, store: impl Into<StoreAt>) -> Result<System> {
    let System { broker, redis, sentinels } = system;
    let expected = redis.len();
    let addr = broker.addr();
    drop(broker);
    let broker = Broker::builder().listen(addr).variable("expected_redis", expected).store(store);
    Ok(System { broker: lab.broker(broker)?, redis, sentinels })
}

pub(crate) async fn expect_all_keys(system: &System) -> Result<()> {
    for node in &system.redis {
        let keys: usize = node.query(&["DBSIZE"]).await?;
        ensure!(keys >= KEYS, "{node} has {keys} of {KEYS} keys:\n{}", node.log());
    }
    Ok(())
}

#[test]
fn long_a_broker_that_lost_its_store_learns_of_the_system_in_a_minute() {
    scenario_within(Duration::from_secs(180), async |lab| {
        let system = brought_up(lab, 2, 3, |node| node).await?;
        let before = until_healthy(&system).await?;
        let system = without_its_store(lab, system)?;
        let master = system.redis[before].addr().to_string();
        let is_told = |node: &Registration| {
            node.ttl.is_some() && node.master.as_ref().is_some_and(|told| told.to_string() == master)
        };
        // The nodes register every minute.
        eventually(Duration::from_secs(80), async || {
            let roster = roster(&system.broker).await?;
            let mut nodes = roster.redis.iter().chain(&roster.sentinels);
            let is_complete = nodes.clone().count() == 5 && nodes.all(is_told);
            ensure!(is_complete, "the broker has no more than {roster:?}");
            Ok(())
        })
        .await?;
        // If no other node answers, only the broker knows of the system.
        for node in system.redis.iter().chain(&system.sentinels) {
            node.kill();
        }
        system.redis[1 - before].relaunch()?;
        system.redis[1 - before]
            .until_logged(&format!("the broker has a record of a system with the master {master}"))
            .await
    });
}

/// How long a system may take to be whole behind a broker that has lost its store: `down-after-milliseconds`
/// (2 s), and 15 s.
const FOUND_WITHIN: Duration = Duration::from_secs(2 + 15);

/// The old master comes back behind a broker that knows of no system. Another server soon leads, and all
/// servers have all keys.
pub(crate) async fn comes_back_and_empties_nobody(system: &System, before: usize) -> Result<()> {
    system.redis[before].relaunch()?;
    let started = Instant::now();
    system.redis[before].until_logged("starting held").await?;
    assert_ne!(until_healthy(system).await?, before);
    ensure!(started.elapsed() < FOUND_WITHIN, "it took {:?}", started.elapsed());
    expect_all_keys(system).await
}

async fn role(node: &Node) -> Result<String> {
    Ok(node.info("replication").await?["role"].clone())
}

#[test]
fn a_new_server_is_held_until_the_system_is_configured() {
    scenario(async |lab| {
        let system = launched(lab, 2, 3, |node| node.config("replica-priority 90"))?;
        let node = &system.redis[0];
        node.until_logged("registered as").await?;
        node.until_logged("starting held").await?;
        let refused = node.command(&["SET", "a", "1"]).await.map(drop);
        ensure!(
            refused.as_ref().is_err_and(|error| format!("{error:#}").contains("ReadOnly")),
            "{refused:?}"
        );
        let status = lab.runner(["status", "--broker", &system.broker.url()]).run(LIMIT).await?;
        assert!(status.stdout.contains("held: takes no writes"), "{status}");
        expect_code(&run(lab, &system.broker, &[]).await?, 0);
        let master = until_healthy(&system).await?;
        system.replicates(master).await?;
        for node in &system.redis {
            assert_eq!(own_priority(node).await?, "90", "{node}");
            let file = std::fs::read_to_string(node.config_file())?;
            assert!(file.contains("replica-priority 90") && !file.contains("replica-priority 0"), "{file}");
        }
        Ok(())
    });
}

#[test]
fn a_held_server_can_be_promoted_by_hand() {
    scenario(async |lab| {
        let system = launched(lab, 1, 1, |node| node)?;
        let node = &system.redis[0];
        node.until_logged("registered as").await?;
        node.command(&["REPLICAOF", "NO", "ONE"]).await?;
        node.command(&["SET", "a", "1"]).await?;
        until_priority(node, "100").await?;
        assert_eq!(role(node).await?, "master");
        Ok(())
    });
}

#[test]
fn a_server_keeps_the_name_of_its_join_until_there_is_a_new_one() {
    scenario(async |lab| {
        let system = launched(lab, 1, 1, |node| node)?;
        let node = &system.redis[0];
        let is_named = async |name: &str| -> Result<()> {
            let subscribers: String = node.query(&["CLIENT", "LIST", "TYPE", "pubsub"]).await?;
            ensure!(subscribers.contains(&format!("name=join-priority-100{name}")), "{subscribers}");
            Ok(())
        };
        eventually(LIMIT, async || is_named(" ").await).await?;
        // The next name contains a position, and the server refuses it.
        node.command(&["ACL", "SETUSER", "default", "-client|setname"]).await?;
        node.command(&["REPLICAOF", "NO", "ONE"]).await?;
        node.until_logged("can't listen for Sentinels").await?;
        is_named(" ").await?;
        node.command(&["ACL", "SETUSER", "default", "+client|setname"]).await?;
        eventually(LIMIT, async || is_named("-at-").await).await
    });
}

#[test]
fn a_held_server_logs_at_most_one_line_a_second() {
    scenario(async |lab| {
        let system = launched(lab, 1, 1, |node| node)?;
        let node = &system.redis[0];
        node.until_logged("registered as").await?;
        let lines = || node.log().lines().count();
        let before = lines();
        // A replica tries to connect once a second: five times in this time.
        tokio::time::sleep(Duration::from_secs(5)).await;
        let more = lines() - before;
        assert!(more <= 5, "{more} lines in 5 s:\n{}", node.log());
        Ok(())
    });
}

#[test]
fn a_master_without_its_disk_empties_no_server_if_the_store_is_lost() {
    scenario(async |lab| {
        let system = brought_up(lab, 3, 3, |node| node).await?;
        let before = until_healthy(&system).await?;
        filled(&system, before).await?;
        let system = without_its_store(lab, system)?;
        // The master has nothing on its disk.
        comes_back_and_empties_nobody(&system, before).await
    });
}

#[test]
fn a_master_with_an_old_dump_empties_no_server_if_the_store_is_lost() {
    scenario(async |lab| {
        let system = brought_up(lab, 3, 3, |node| node.config("save 86400 1000000")).await?;
        let before = until_healthy(&system).await?;
        let master = &system.redis[before];
        master.command(&["SET", "old", "1"]).await?;
        save(master).await?;
        filled(&system, before).await?;
        let system = without_its_store(lab, system)?;
        comes_back_and_empties_nobody(&system, before).await
    });
}

#[test]
fn servers_with_an_old_dump_stand_back_if_the_store_is_lost() {
    scenario(async |lab| {
        let system = brought_up(lab, 3, 3, |node| node.config("save 86400 1000000")).await?;
        let before = until_healthy(&system).await?;
        let (master, replica) = (&system.redis[before], &system.redis[(before + 1) % 3]);
        master.command(&["SET", "old", "1"]).await?;
        system.replicates(before).await?;
        for node in [master, replica] {
            save(node).await?;
        }
        filled(&system, before).await?;
        let system = without_its_store(lab, system)?;
        // All other keys are only in the memory of the third server.
        let (master, replica) = (&system.redis[before], &system.redis[(before + 1) % 3]);
        for node in [master, replica] {
            node.kill();
        }
        replica.relaunch()?;
        master.relaunch()?;
        let started = Instant::now();
        replica.until_logged("standing back").await?;
        assert_eq!(until_failed_over(&system, before).await?, (before + 2) % 3);
        until_healthy(&system).await?;
        ensure!(started.elapsed() < FOUND_WITHIN, "it took {:?}", started.elapsed());
        expect_all_keys(&system).await
    });
}

#[test]
fn long_all_servers_come_back_behind_a_broker_that_lost_its_store() {
    for wiped in [false, true] {
        scenario(async |lab| {
            let system = brought_up(lab, 2, 3, |node| node.config("appendonly yes")).await?;
            let before = until_healthy(&system).await?;
            filled(&system, before).await?;
            for node in &system.redis {
                until_saved(node).await?;
            }
            // This is longer than a restart takes on a busy machine, so that no failover comes before the
            // restarted nodes decide.
            for sentinel in &system.sentinels {
                sentinel
                    .command(&["SENTINEL", "SET", "mymaster", "down-after-milliseconds", "20000"])
                    .await?;
            }
            let system = without_its_store(lab, system)?;
            for node in &system.redis {
                node.kill();
            }
            if wiped {
                wipe(&system.redis[before])?;
            }
            for node in &system.redis {
                node.relaunch()?;
            }
            for node in &system.redis {
                node.until_ready().await?;
            }
            let after = until_healthy(&system).await?;
            assert_eq!(after != before, wiped);
            expect_all_keys(&system).await
        });
    }
}

#[test]
fn all_servers_come_back_if_the_broker_lacks_most_sentinels() {
    scenario(async |lab| {
        let system = brought_up(lab, 2, 3, |node| node.config("appendonly yes")).await?;
        let before = until_healthy(&system).await?;
        filled(&system, before).await?;
        for node in &system.redis {
            node.kill();
        }
        // The broker gets one Sentinel, which knows the others. The other nodes register again only after up
        // to a minute.
        let system = without_its_store(lab, system)?;
        system.broker.register(&system.sentinels[0]).await?;
        for node in &system.redis {
            node.relaunch()?;
        }
        until_healthy_within(FOUND_WITHIN, &system).await?;
        expect_all_keys(&system).await
    });
}

#[test]
fn a_server_with_a_mistyped_group_joins_the_sentinels_group() {
    scenario(async |lab| {
        let mut system = brought_up(lab, 2, 3, |node| node).await?;
        let before = until_healthy(&system).await?;
        filled(&system, before).await?;
        let at = system.redis[before].addr();
        // The server's container is created again, with an empty disk.
        drop(system.redis.remove(before));
        let url = system.broker.url();
        let mistyped =
            lab.redis().joining(["--broker", &url, "--poll-interval", "100ms", "--group", "mymastre"]);
        system.redis.insert(before, mistyped.port(at.port()).launch()?);
        system.redis[before].until_logged("monitors this server as `mymaster`").await?;
        assert_ne!(until_healthy(&system).await?, before);
        expect_all_keys(&system).await
    });
}

#[test]
fn long_a_new_master_that_dies_before_its_rewrite_does_not_lead_empty() {
    if redis_version().is_ok_and(|version| version < (7, 0)) {
        tried(
            "not tried here: an append-only file that was being rewritten, which can be told since Redis 7.0",
        );
        return;
    }
    scenario(async |lab| {
        let durable = |node: NodeBuilder| node.config("appendonly yes").config("appendfsync always");
        let mut system = brought_up(lab, 1, 3, durable).await?;
        filled(&system, 0).await?;
        // With this delay, a rewrite takes this server more than a minute.
        let slow = durable(joining(lab, Kind::Redis, &system.broker)).config("rdb-key-save-delay 100000");
        system.redis.push(slow.launch()?);
        until_healthy(&system).await?;
        if system.redis[1].log().contains("Reused RDB file from primary sync as AOF base file") {
            tried(
                "not tried here: an append-only file that was being rewritten; Valkey 9.1 makes one of what it has received",
            );
            return Ok(());
        }
        system.redis[0].kill();
        until_failed_over(&system, 0).await?;
        system.redis[1].kill();
        system.redis[1].relaunch()?;
        system.redis[1].until_logged("its append-only file is from before its last synchronisation").await?;
        system.redis[0].relaunch()?;
        system.redis[0].until_ready().await?;
        assert_eq!(until_healthy(&system).await?, 0);
        expect_all_keys(&system).await
    });
}

#[test]
fn long_a_master_that_restarts_leads_a_replica_that_still_synchronises() {
    scenario(async |lab| {
        let durable = |node: NodeBuilder| node.config("appendonly yes").config("appendfsync always");
        let mut system = brought_up(lab, 1, 3, durable).await?;
        let master = &system.redis[0];
        let script = "for key = 1, 1000 do redis.call('SET', 'key:' .. key, string.rep('x', 1000)) end";
        master.command(&["EVAL", script, "0"]).await?;
        // A synchronisation takes half a minute. The Sentinels learn of the replica within ten seconds, from
        // the master's `INFO`.
        master.command(&["CONFIG", "SET", "rdb-key-save-delay", "30000"]).await?;
        let replica = durable(joining(lab, Kind::Redis, &system.broker)).launch()?;
        eventually(LIMIT, async || {
            ensure!(is_synchronising(&replica).await, "it does not synchronise:\n{}", replica.log());
            Ok(())
        })
        .await?;
        eventually(LIMIT, async || {
            for sentinel in &system.sentinels {
                let replicas: Vec<redis::Value> =
                    sentinel.query(&["SENTINEL", "REPLICAS", "mymaster"]).await?;
                ensure!(!replicas.is_empty(), "{sentinel} does not list the replica");
            }
            Ok(())
        })
        .await?;
        ensure!(is_synchronising(&replica).await, "it has ended too soon to be of use");
        master.restart().await.context("the master")?;
        system.redis.push(replica);
        until_healthy(&system).await?;
        expect_all_keys(&system).await
    });
}
