//! The harness itself: the processes that it starts answer, and are gone afterwards.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use e2e::{Broker, Lab, eventually, scenario};
use rustix::process::{Pid, test_kill_process};
use tokio::net::TcpStream;

fn is_running(pid: u32) -> bool {
    let pid = Pid::from_raw(pid.try_into().expect("a process id is small")).expect("a process id is not 0");
    test_kill_process(pid).is_ok()
}

#[test]
fn redis_and_sentinel_answer_and_are_gone_once_dropped() {
    scenario(async |lab| {
        for builder in [lab.redis(), lab.sentinel(), lab.redis().host([127, 0, 0, 2]).password("s3cret")] {
            let node = builder.start().await?;
            assert_eq!(node.query::<String>(&["PING"]).await?, "PONG");
            let (pid, addr) = (node.pid(), node.addr());
            assert!(is_running(pid));
            drop(node);
            assert!(!is_running(pid));
            assert!(TcpStream::connect(addr).await.is_err(), "a process still listens");
        }
        Ok(())
    });
}

#[test]
fn a_node_can_be_stopped_killed_and_restarted() {
    scenario(async |lab| {
        let node = lab.redis().config("appendonly yes").start().await?;
        node.command(&["SET", "key", "value"]).await?;
        node.stop()?;
        let get = node.query::<String>(&["GET", "key"]);
        let answered = tokio::time::timeout(Duration::from_millis(100), get).await;
        assert!(answered.is_err(), "it is stopped");
        node.cont()?;
        assert_eq!(node.query::<String>(&["GET", "key"]).await?, "value");
        node.kill();
        assert!(node.command(&["PING"]).await.is_err(), "it is dead");
        let taken = std::net::TcpListener::bind(node.addr()).expect_err("its port is free for others");
        assert_eq!(taken.kind(), std::io::ErrorKind::AddrInUse);
        node.restart().await?;
        assert_eq!(node.query::<String>(&["GET", "key"]).await?, "value");
        Ok(())
    });
}

#[test]
fn a_node_that_cannot_start_fails_at_once_with_its_log() {
    scenario(async |lab| {
        let started = Instant::now();
        let error = lab.redis().config("no-such-directive 1").start().await.expect_err("it can't start");
        assert!(format!("{error:#}").contains("no-such-directive"), "{error:#}");
        assert!(started.elapsed() < Duration::from_secs(5));

        let node = lab.redis().start().await?;
        let error = lab.redis().port(node.addr().port()).start().await.expect_err("the port is taken");
        assert!(format!("{error:#}").contains("in use"), "{error:#}");
        Ok(())
    });
}

#[test]
fn a_broker_sees_its_callers_at_different_addresses() {
    scenario(async |lab| {
        let broker = lab.broker(Broker::builder().variable("expected_redis", 7))?;
        for last in [2, 3] {
            let reply = broker.post("/redis").from([127, 0, 0, last]).send().await?;
            assert_eq!(reply.status, 201, "{reply}");
            assert_eq!(reply.json::<serde_json::Value>()?["host"], format!("127.0.0.{last}"));
        }
        let roster: broker_fn::api::Roster = broker.get("/").send().await?.json()?;
        assert_eq!((roster.expected.redis, roster.redis.len()), (7, 2));
        Ok(())
    });
}

#[test]
fn the_runner_runs_without_the_callers_environment() {
    scenario(async |lab| {
        let ran = lab.runner(["--help"]).run(Duration::from_secs(10)).await?;
        assert_eq!(ran.code, Some(0), "{ran}");
        assert!(ran.stdout.contains("bootstrap"), "{ran}");
        Ok(())
    });
}

#[test]
fn a_system_that_nobody_configured_is_found_to_be_wrong() {
    scenario(async |lab| {
        let system = lab.system(2, 1).await?;
        system.register_all().await?;
        let wrong = system.wrong("mymaster", 0).await.join("\n");
        for expected in ["No such master", "the replicas online are {}", "role is `master`, not `slave`"] {
            assert!(wrong.contains(expected), "`{expected}` is missing in:\n{wrong}");
        }
        Ok(())
    });
}

#[tokio::test]
async fn what_was_started_dies_with_a_killed_test() -> Result<()> {
    // A killed test can't remove its folder, so its folder is in one that this test removes.
    let dir = tempfile::tempdir()?;
    // This test program again, running only the test below, which waits to be killed.
    let mut holder = Command::new(std::env::current_exe()?)
        .env("TMPDIR", dir.path())
        .args(["--exact", "harness::holds_a_redis_server", "--ignored", "--nocapture"])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()?;
    let stdout = BufReader::new(holder.stdout.take().context("it is piped")?);
    let pid =
        stdout.lines().map_while(Result::ok).find_map(|line| line.strip_prefix("holding ")?.parse().ok());
    holder.kill()?;
    holder.wait()?;
    let pid = pid.context("it never said what it holds")?;
    eventually(Duration::from_secs(10), async || {
        ensure!(!is_running(pid), "process {pid} is still there");
        Ok(())
    })
    .await
}

/// The other half of [`what_was_started_dies_with_a_killed_test`].
#[tokio::test]
#[ignore = "waits to be killed"]
async fn holds_a_redis_server() {
    let lab = Lab::new().expect("a folder");
    let node = lab.redis().start().await.expect("a Redis server");
    println!("\nholding {}", node.pid());
    std::future::pending::<()>().await;
}
