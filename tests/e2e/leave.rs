//! `leave` removes a node from a system permanently: neither the broker nor another node lists it any more.

use std::fmt;
use std::time::Duration;

use anyhow::{Context, Result};
use broker_fn::api::Kind;
use e2e::{Broker, Lab, Ledger, Node, Ran, Running, System, scenario};
use serde_json::Value;

use crate::chaos::Writer;
use crate::join::{FAST, brought_up, until_healthy};
use crate::support::{LIMIT, expect_code, roster, run, sweep, until_held, whole_sweep};

fn start(lab: &Lab, system: &System, node: &Node, flags: &[&str]) -> Result<Running> {
    let (kind, at) = (node.kind().to_string(), node.registered_at().to_string());
    lab.runner(["leave", &kind, &at, "--broker", &system.broker.url(), "--output", "json"])
        .args(flags)
        .start()
}

/// How many nodes remain: fewer than the broker expects.
const LEFT: [&str; 4] = ["--redis", "2", "--sentinels", "2"];

async fn leave(lab: &Lab, system: &System, node: &Node, flags: &[&str]) -> Result<Ran> {
    start(lab, system, node, flags)?.wait(LIMIT).await
}

/// Checks that the remaining nodes are one whole system, with the harness and with `verify`, and that the
/// broker lists no other nodes.
async fn without(lab: &Lab, system: System, node: &Node) -> Result<System> {
    let System { broker, mut redis, mut sentinels } = system;
    redis.retain(|other| other.addr() != node.addr());
    sentinels.retain(|other| other.addr() != node.addr());
    let rest = System { broker, redis, sentinels };
    until_healthy(&rest).await?;
    let (redis, sentinels) = (rest.redis.len().to_string(), rest.sentinels.len().to_string());
    let flags = ["--broker", &rest.broker.url(), "--redis", &redis, "--sentinels", &sentinels];
    let ran = lab.runner(["verify"]).args(flags).run(LIMIT).await?;
    expect_code(&ran, 0);
    let known = roster(&rest.broker).await?;
    assert_eq!((known.redis.len(), known.sentinels.len()), (rest.redis.len(), rest.sentinels.len()));
    Ok(rest)
}

/// Which node leaves.
struct Case {
    leaver: &'static str,
    is_dead: bool,
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.leaver, if self.is_dead { " that is dead" } else { "" })
    }
}

/// Takes the node out of the system's lists, and returns it.
fn take_out(system: &mut System, leaver: &str) -> Node {
    match leaver {
        "the master" => system.redis.remove(0),
        "a replica" => system.redis.remove(1),
        _ => system.sentinels.remove(0),
    }
}

/// Checks that a node which has left is a Sentinel that monitors nothing, or a server that takes no writes.
async fn expect_left(node: &Node) -> Result<()> {
    if node.kind() == Kind::Sentinel {
        assert_eq!(node.info("sentinel").await?["sentinel_masters"], "0");
        return Ok(());
    }
    let error = node.command(&["SET", "key", "value"]).await.expect_err("it takes no writes");
    assert!(format!("{error:?}").contains("read only replica"), "{error:?}");
    assert_eq!(node.query::<Vec<String>>(&["CONFIG", "GET", "replica-priority"]).await?[1], "100");
    // The server's file contains the same settings, even if a Sentinel has made the server write it.
    let file = std::fs::read_to_string(node.config_file())?;
    let follows: Vec<_> = file.lines().filter(|line| line.starts_with("replica")).collect();
    assert!(follows.iter().any(|line| line.starts_with("replicaof 127.26.37.9 ")), "{follows:?}");
    assert!(!follows.contains(&"replica-priority 0"), "{follows:?}");
    Ok(())
}

#[test]
fn no_node_lists_one_that_has_left_and_no_write_is_lost() {
    let cases = ["the master", "a replica", "a Sentinel"]
        .into_iter()
        .flat_map(|leaver| [false, true].map(|is_dead| Case { leaver, is_dead }))
        .filter(|case| case.leaver != "the master" || !case.is_dead)
        .filter(|case| whole_sweep() || case.is_dead == (case.leaver == "a Sentinel"));
    sweep(&cases.collect::<Vec<_>>(), async |lab, case| {
        let ledger = Ledger::new();
        let mut system = lab.system_of(3, 3, |node| node.behind(&ledger)).await?;
        system.register_all().await?;
        // A Sentinel that has not forgotten a replica yet attaches it again, `failover-timeout` later at the
        // earliest.
        let quick = ["--sentinel-set", "down-after-milliseconds=2000,failover-timeout=1000"];
        expect_code(&run(lab, &system.broker, &quick).await?, 0);
        let writer = Writer::to(&system).await?;
        let node = take_out(&mut system, case.leaver);
        if case.is_dead {
            node.kill();
        }
        let ran = leave(lab, &system, &node, &LEFT).await?;
        expect_code(&ran, 0);
        let document: Value = serde_json::from_str(&ran.stdout)?;
        let registration = &document["registration"];
        assert_eq!(
            (&document["outcome"], &registration["known"]),
            (&"verified".into(), &true.into()),
            "{ran}"
        );
        writer.goes_on().await?;
        let rest = without(lab, system, &node).await?;
        writer.expect_kept_by(&rest.redis[crate::join::master(&rest).await?]).await?;
        if case.is_dead {
            return Ok(());
        }
        expect_left(&node).await?;
        // A second `leave` finds nothing to remove.
        let ran = leave(lab, &rest, &node, &LEFT).await?;
        expect_code(&ran, 2);
        assert!(ran.stderr.contains("is not registered, and no Sentinel knows it"), "{ran}");
        Ok(())
    });
}

#[test]
fn a_leave_that_was_killed_is_completed_by_the_next_one() {
    let steps = [
        ("a replica", "REPLICAOF"),
        ("a replica", "SENTINEL RESET"),
        ("a Sentinel", "SENTINEL REMOVE"),
        ("a Sentinel", "SENTINEL RESET"),
        ("the master", "REPLICAOF"),
    ];
    let steps: Vec<_> =
        steps.into_iter().filter(|step| whole_sweep() || *step == ("a replica", "SENTINEL RESET")).collect();
    let steps: Vec<_> = steps.into_iter().map(|(leaver, command)| Step { leaver, command }).collect();
    sweep(&steps, async |lab, step| {
        let ledger = Ledger::new();
        let mut system = lab.system_of(3, 3, |node| node.behind(&ledger)).await?;
        system.register_all().await?;
        expect_code(&run(lab, &system.broker, &FAST).await?, 0);
        let node = take_out(&mut system, step.leaver);
        let command = step.command;
        let mut held = ledger.hold(move |sent| sent.is(command));
        let mut running = start(lab, &system, &node, &LEFT)?;
        until_held(&mut running, &mut held).await?.context("it sends that")?;
        running.kill();
        held.pass().await;
        ledger.cut();
        expect_code(&leave(lab, &system, &node, &LEFT).await?, 0);
        without(lab, system, &node).await.map(drop)
    });
}

struct Step {
    leaver: &'static str,
    command: &'static str,
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, killed after `{}`", self.leaver, self.command)
    }
}

#[test]
fn long_a_node_behind_join_that_has_left_does_not_register_again() {
    scenario(async |lab| {
        let mut system = brought_up(lab, 3, 3, |node| node).await?;
        for leaver in ["a replica", "a Sentinel"] {
            let node = take_out(&mut system, leaver);
            node.until_logged("the system is configured").await?;
            let ran = leave(lab, &system, &node, &[]).await?;
            expect_code(&ran, 2);
            let flag = if leaver == "a replica" { "--redis 2" } else { "--sentinels 2" };
            assert!(ran.stderr.contains(flag), "{ran}");
            expect_code(&leave(lab, &system, &node, &LEFT).await?, 0);
            node.until_logged("this node was removed from the system").await?;
            if whole_sweep() {
                // Longer than a minute: a node that had not left would have registered again by then.
                tokio::time::sleep(Duration::from_secs(90)).await;
            }
            let known = roster(&system.broker).await?;
            assert_eq!(known.redis.len() + known.sentinels.len(), system.nodes().count());
            until_healthy(&system).await?;
        }
        Ok(())
    });
}

#[test]
fn a_node_that_the_system_needs_does_not_leave() {
    scenario(async |lab| {
        let system = lab.system(2, 3).await?;
        system.register_all().await?;
        expect_code(&run(lab, &system.broker, &["--quorum", "3"]).await?, 0);
        let ran = leave(lab, &system, &system.redis[1], &[]).await?;
        expect_code(&ran, 2);
        assert!(ran.stderr.contains("the system would have 1 Redis server of 2"), "{ran}");
        let ran = leave(lab, &system, &system.sentinels[1], &["--sentinels", "2"]).await?;
        expect_code(&ran, 2);
        assert!(ran.stderr.contains("--quorum 2"), "{ran}");
        system.redis[1].command(&["CONFIG", "SET", "requirepass", "another"]).await?;
        let ran = leave(lab, &system, &system.redis[1], &["--redis", "1"]).await?;
        expect_code(&ran, 5);
        assert_eq!(roster(&system.broker).await?.redis.len(), 2, "{ran}");
        let flags = ["--redis", "1", "--redis-password", "another"];
        let ran = leave(lab, &system, &system.redis[1], &flags).await?;
        assert_ne!(ran.code, Some(0), "the master has none: {ran}");
        assert_eq!(roster(&system.broker).await?.redis.len(), 2, "{ran}");
        system.redis[1].restart().await?;
        // The run waits until the Sentinels have found the server again.
        expect_code(&run(lab, &system.broker, &[]).await?, 0);
        system.redis[0].command(&["CONFIG", "SET", "min-replicas-to-write", "1"]).await?;
        let ran = leave(lab, &system, &system.redis[1], &["--redis", "1"]).await?;
        expect_code(&ran, 4);
        assert!(ran.stderr.contains("no client could write any more"), "{ran}");
        until_healthy(&system).await?;
        Ok(())
    });
}

#[test]
fn a_token_that_is_too_weak_leaves_the_node_as_it_is() {
    scenario(async |lab| {
        let broker = Broker::builder().variable("expected_redis", 3).variable("api_token", "n0de");
        let broker = lab.broker(broker.variable("read_token", "l00k"))?;
        let system = System { broker, ..lab.system(3, 3).await? };
        let url = system.broker.url();
        for node in system.nodes() {
            let (kind, at) = (node.kind().to_string(), node.addr().to_string());
            let flags = ["register", &kind, &at, "--broker", &url, "--token", "n0de"];
            expect_code(&lab.runner(flags).run(LIMIT).await?, 0);
        }
        expect_code(&run(lab, &system.broker, &[&FAST[..], &["--token", "n0de"]].concat()).await?, 0);
        let ran = leave(lab, &system, &system.redis[2], &[&LEFT[..], &["--token", "l00k"]].concat()).await?;
        expect_code(&ran, 7);
        let replica = &system.redis[2];
        assert_eq!(replica.info("replication").await?["master_link_status"], "up", "{ran}");
        assert_eq!(replica.query::<(String, u32)>(&["CONFIG", "GET", "replica-priority"]).await?.1, 100);
        until_healthy(&system).await.map(drop)
    });
}

#[test]
fn a_node_that_is_not_registered_leaves_unless_it_is_the_master() {
    scenario(async |lab| {
        let mut system = lab.system(3, 3).await?;
        system.register_all().await?;
        expect_code(&run(lab, &system.broker, &FAST).await?, 0);
        let master = &system.redis[0];
        deregister(&system, master).await?;
        let ran = leave(lab, &system, master, &LEFT).await?;
        expect_code(&ran, 4);
        assert!(ran.stderr.contains(&format!("register redis {}", master.addr())), "{ran}");
        master.command(&["SET", "it", "takes writes"]).await?;
        system.broker.register(master).await?;
        until_healthy(&system).await?;
        // As a leave that is killed after its first step leaves a replica.
        let node = take_out(&mut system, "a replica");
        deregister(&system, &node).await?;
        expect_code(&leave(lab, &system, &node, &LEFT).await?, 0);
        without(lab, system, &node).await.map(drop)
    });
}

async fn deregister(system: &System, node: &Node) -> Result<()> {
    let reply = system.broker.delete(format!("/redis/{}", node.addr())).send().await?;
    assert_eq!(reply.status, 204, "{reply}");
    Ok(())
}
