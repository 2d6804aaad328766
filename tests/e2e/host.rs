//! The local host as a separate process, as the demo and people start it.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use e2e::host::Wasi;
use e2e::{Broker, Lab, LocalHost, Signal, eventually, scenario};
use futures::future::try_join_all;
use http::Method;
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::process::Command;

const LIMIT: Duration = Duration::from_secs(30);

fn command(listen: &str, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_local-host"));
    command.args(["--listen", listen]).args(args);
    command
}

/// A local host with these arguments, on a free port.
pub(crate) async fn start(lab: &Lab, args: &[&str]) -> Result<LocalHost> {
    LocalHost::start(lab, command("127.0.0.1:0", args)).await
}

/// Runs the local host to its end, which must be a failure. Returns what it printed on standard error.
async fn refusal(lab: &Lab, listen: &str, args: &[&str]) -> Result<String> {
    let mut process = lab.spawn("local-host", command(listen, args))?;
    let status = process.wait(LIMIT).await?;
    ensure!(!status.success(), "it took {listen} and {args:?}");
    Ok(process.stderr())
}

#[test]
fn the_local_host_answers_and_ends_with_0_on_sigterm_and_sigint() {
    scenario(async |lab| {
        for signal in [Signal::TERM, Signal::INT] {
            let host = start(lab, &[]).await?;
            let addr = host.addr();
            let reply = host.request(Method::GET, "/healthcheck").send().await?;
            assert_eq!(reply.status, 200, "{reply}");
            host.end(signal).await?;
            assert!(TcpStream::connect(addr).await.is_err(), "a process still listens");
        }
        Ok(())
    });
}

#[test]
fn a_store_at_a_path_survives_a_restart_and_one_in_memory_does_not() {
    scenario(async |lab| {
        let path = lab.dir().join("store.db");
        let path = path.to_str().context("a path of text")?;
        for (store, kept) in [(path, true), (":memory:", false)] {
            let host = start(lab, &["--store", store]).await?;
            let registered = host.request(Method::POST, "/redis").send().await?;
            assert_eq!(registered.status, 201, "{registered}");
            host.end(Signal::TERM).await?;

            let host = start(lab, &["--store", store]).await?;
            let list: Value = host.request(Method::GET, "/redis").send().await?.json()?;
            let expected = if kept { vec![registered.json::<Value>()?] } else { vec![] };
            assert_eq!(list["redis"], Value::Array(expected));
        }
        Ok(())
    });
}

#[test]
fn variables_come_from_the_manifest_and_the_command_line() {
    scenario(async |lab| {
        let host = start(lab, &["--variable", "expected_redis=5"]).await?;
        let config: Value = host.request(Method::GET, "/config").send().await?.json()?;
        assert_eq!(config["expected"]["redis"], 5);
        assert_eq!(config["default_group"], "mymaster");
        Ok(())
    });
}

#[test]
fn wrong_arguments_end_the_local_host_and_are_named() {
    scenario(async |lab| {
        let undeclared = refusal(lab, "127.0.0.1:0", &["--variable", "nonsense=1"]).await?;
        assert!(undeclared.contains("`nonsense`"), "{undeclared}");
        let missing = refusal(lab, "127.0.0.1:0", &["--component", "/nowhere.wasm"]).await?;
        assert!(missing.contains("/nowhere.wasm"), "{missing}");
        let host = start(lab, &[]).await?;
        let taken = refusal(lab, &host.addr().to_string(), &[]).await?;
        assert!(taken.contains("in use"), "{taken}");
        Ok(())
    });
}

#[test]
fn the_callers_address_comes_after_whatever_the_caller_says_it_is() {
    scenario(async |lab| {
        let host = start(lab, &[]).await?;
        let post = host.request(Method::POST, "/redis").from([127, 0, 0, 2]);
        let reply = post.header("spin-client-addr", "10.9.9.9:1").send().await?;
        assert_eq!(reply.json::<Value>()?["host"], "127.0.0.2");
        Ok(())
    });
}

#[test]
fn a_header_that_is_not_utf8_is_answered_as_spin_answers_it() {
    scenario(async |lab| {
        let host = start(lab, &[]).await?;
        let reply = host.request(Method::GET, "/").header("x-bytes", b"\xff").send().await?;
        assert_eq!(reply.status, 500);
        let health = host.request(Method::GET, "/.well-known/spin/health").send().await?;
        assert_eq!((health.status.as_u16(), health.text()), (200, "OK".to_owned()));
        Ok(())
    });
}

#[test]
fn a_changed_variable_is_used_a_second_later_under_requests() {
    scenario(async |lab| {
        let broker = lab.broker(Broker::builder().variable("api_token", "old-s3cret"))?;
        let status = async |token: &str| {
            let request = broker.get("/config").header("authorization", format!("Bearer {token}"));
            anyhow::Ok(request.send().await?.status)
        };
        assert_eq!((status("old-s3cret").await?.as_u16(), status("new-s3cret").await?.as_u16()), (200, 401));
        broker.inside().set_variable("api_token", "new-s3cret");
        let changed = Instant::now();
        eventually(LIMIT, async || {
            ensure!(status("old-s3cret").await? == 401, "the old token is still taken");
            Ok(())
        })
        .await?;
        // An instance uses the variables that it has read for one second. Then no instance from before the
        // change is left.
        tokio::time::sleep(Duration::from_secs(1).saturating_sub(changed.elapsed())).await;
        assert_eq!((status("old-s3cret").await?.as_u16(), status("new-s3cret").await?.as_u16()), (401, 200));
        Ok(())
    });
}

#[test]
fn a_body_of_unknown_or_absurd_length_is_a_problem() {
    scenario(async |lab| {
        let broker = lab.broker(Broker::builder())?;
        let raw = async |request: String| -> Result<String> {
            let mut stream = TcpStream::connect(broker.addr()).await?;
            stream.write_all(request.as_bytes()).await?;
            let mut answer = vec![];
            tokio::time::timeout(LIMIT, stream.read_to_end(&mut answer)).await??;
            Ok(String::from_utf8_lossy(&answer).into_owned())
        };
        let head =
            "POST /redis HTTP/1.1\r\nhost: broker\r\nconnection: close\r\ncontent-type: application/json";
        // The body is sent in chunks, so that no length is announced.
        let chunk = format!("400\r\n{}\r\n", " ".repeat(0x400)).repeat(5);
        let answer = raw(format!("{head}\r\ntransfer-encoding: chunked\r\n\r\n{chunk}0\r\n\r\n")).await?;
        assert!(answer.starts_with("HTTP/1.1 413 "), "{answer}");
        assert!(answer.contains("application/problem+json"), "{answer}");
        // More than an `i64` can hold, and the component reads the length into an `i64`.
        let answer = raw(format!("{head}\r\ncontent-length: 9223372036854775808\r\n\r\n")).await?;
        assert!(answer.starts_with("HTTP/1.1 400 "), "{answer}");
        assert!(answer.contains("application/problem+json"), "{answer}");
        assert_eq!(broker.get("/redis").send().await?.text(), r#"{"redis":[]}"#);
        Ok(())
    });
}

#[test]
fn a_body_that_does_not_arrive_is_a_408_after_ten_seconds() {
    scenario(async |lab| {
        let brokers = Wasi::ALL.into_iter().map(|wasi| lab.broker(Broker::builder().built_for(wasi)));
        let brokers: Vec<Broker> = brokers.collect::<Result<_>>()?;
        // The client sends no body, a part of the body, or one byte after the other.
        let bodies = ["", "{\"port\"", "trickle"];
        let wait = async |broker: &Broker, body: &str| -> Result<()> {
            let mut stream = TcpStream::connect(broker.addr()).await?;
            let head = "POST /redis HTTP/1.1\r\nhost: broker\r\ncontent-type: application/json\r\ncontent-length: 1000\r\n\r\n";
            stream.write_all(head.as_bytes()).await?;
            let started = Instant::now();
            let (mut reading, mut writing) = stream.split();
            let write = async {
                if body != "trickle" {
                    writing.write_all(body.as_bytes()).await?;
                    return std::future::pending().await;
                }
                loop {
                    writing.write_all(b" ").await?;
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            };
            let mut answer = [0; 1024];
            let length = tokio::select! {
                length = tokio::time::timeout(LIMIT, reading.read(&mut answer)) => length??,
                broken = write => return broken,
            };
            let answer = String::from_utf8_lossy(&answer[..length]);
            ensure!(answer.starts_with("HTTP/1.1 408 "), "{answer}");
            let took = started.elapsed();
            ensure!((Duration::from_secs(9)..Duration::from_secs(15)).contains(&took), "{took:?}");
            Ok(())
        };
        let cases = brokers.iter().flat_map(|broker| bodies.map(|body| wait(broker, body)));
        try_join_all(cases).await?;
        for broker in &brokers {
            assert_eq!(broker.get("/redis").send().await?.text(), r#"{"redis":[]}"#);
        }
        Ok(())
    });
}

#[test]
fn an_answer_calls_its_host_only_to_read_and_write() {
    scenario(async |lab| {
        let broker = lab.broker(Broker::builder())?;
        broker.post("/redis").send().await?;
        for (method, path, calls) in [
            (Method::GET, "/config", 0),
            // The revision. The instance already has the snapshot of that revision.
            (Method::GET, "/", 1),
            (Method::GET, "/redis", 1),
            // The revision, the registration, the write of the registration, the revision again, and a fresh
            // revision, because the registration is new.
            (Method::POST, "/redis", 5),
            // The keys, and each registration, which shows whether it is stale.
            (Method::GET, "/groups", 2),
        ] {
            let mut least = usize::MAX;
            // Sometimes an instance is new or reads its variables again. Then it makes more calls.
            for _ in 0..10 {
                let before = broker.inside().calls();
                let reply = broker.request(method.clone(), path).send().await?;
                assert!(reply.status.is_success(), "{reply}");
                least = least.min(broker.inside().calls() - before);
            }
            assert_eq!(least, calls, "{method} {path}");
        }
        Ok(())
    });
}
