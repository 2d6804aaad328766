//! What waiting for nodes costs, and that nothing between the runner and the broker keeps the runner from
//! seeing nodes.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::{Broker, Front, FrontBuilder, Lab, Node, Running, System, Tls, eventually, scenario};

use crate::support::{LIMIT, expect_code, expect_healthy, until_stderr};

/// How long the tests wait while they count requests and reads.
const A_WHILE: Duration = Duration::from_secs(15);

/// The share of a number per minute that falls in [`A_WHILE`].
fn share(of_a_minute: usize) -> usize {
    of_a_minute * usize::try_from(A_WHILE.as_secs()).expect("it is short") / 60
}

/// Two Redis servers and three Sentinels, none of which has registered.
async fn nodes(lab: &Lab, broker: Broker) -> Result<System> {
    let redis = vec![lab.redis().start().await?, lab.redis().start().await?];
    let mut sentinels = vec![];
    for _ in 0..3 {
        sentinels.push(lab.sentinel().start().await?);
    }
    Ok(System { broker, redis, sentinels })
}

fn all(system: &System) -> impl Iterator<Item = &Node> {
    system.redis.iter().chain(&system.sentinels)
}

/// Starts a run with this address of the broker.
fn start(lab: &Lab, url: &str, flags: &[&str]) -> Result<Running> {
    lab.runner(["bootstrap", "--broker", url])
        .env("SENTINEL_RUNNER_BOOTSTRAP_TIMEOUT", "40s")
        .args(flags)
        .start()
}

/// Waits until this many requests have come through.
async fn until_requests(front: &Front, count: usize) -> Result<()> {
    eventually(LIMIT, async || {
        let [connections, requests, ..] = front.traffic();
        ensure!(requests >= count, "{requests} of {count} requests, on {connections} connections");
        Ok(())
    })
    .await
}

/// Waits for the run to end, with a verified system.
async fn expect_verified(running: Running, system: &System) -> Result<String> {
    let ran = running.wait(LIMIT).await?;
    expect_code(&ran, 0);
    expect_healthy(system, 0).await?;
    Ok(ran.stderr)
}

#[test]
fn long_waiting_takes_few_requests_and_few_reads() {
    for registered in [0, 4] {
        scenario(async |lab| {
            let store = lab.redis().start().await?;
            let broker = lab.broker(Broker::builder().store(format!("redis://{}", store.addr()).as_str()))?;
            let system = nodes(lab, broker).await?;
            let front = FrontBuilder::default().start(system.broker.addr()).await?;
            let mut running = start(lab, front.url(), &[])?;
            until_stderr(&mut running, "still to register").await?;
            for node in all(&system).take(registered) {
                system.broker.register(node).await?;
                until_stderr(&mut running, &node.addr().to_string()).await?;
            }
            let (before, [connections, requests, ..]) = (store.reads().await?, front.traffic());
            tokio::time::sleep(A_WHILE).await;
            let (after, [connections_after, requests_after, ..]) = (store.reads().await?, front.traffic());
            let (requests, reads) = (requests_after - requests, after - before);
            println!("{A_WHILE:?} with {registered} nodes: {requests} requests, {reads} reads");
            // Each request waits for as long as the broker may keep it.
            assert!(requests <= share(10) && connections_after - connections <= share(10), "{requests}");
            // After a change, the store is listed some more times, mostly in the first seconds.
            let listings = if registered == 0 { 0 } else { share(150) / 2 };
            assert!((share(30)..=share(150) + listings).contains(&reads), "{reads}");
            for node in all(&system).skip(registered) {
                system.broker.register(node).await?;
            }
            expect_verified(running, &system).await.map(drop)
        });
    }
}

#[test]
fn a_broker_that_does_not_wait_is_asked_again() {
    scenario(async |lab| {
        let system = nodes(lab, lab.broker(Broker::builder())?).await?;
        let front = FrontBuilder::default().asks_anew().start(system.broker.addr()).await?;
        let mut running = start(lab, front.url(), &[])?;
        until_stderr(&mut running, "still to register").await?;
        until_requests(&front, 30).await?;
        for node in all(&system) {
            system.broker.register(node).await?;
        }
        expect_verified(running, &system).await.map(drop)
    });
}

#[test]
fn a_proxy_that_gives_up_on_an_answer_is_not_a_broker_that_is_gone() {
    scenario(async |lab| {
        let system = nodes(lab, lab.broker(Broker::builder())?).await?;
        let patience = Duration::from_secs(2);
        let front = FrontBuilder::default().patience(patience).start(system.broker.addr()).await?;
        let mut running = start(lab, front.url(), &[])?;
        until_stderr(&mut running, "still to register").await?;
        // The runner asks the broker to wait for 20 s, for 10 s, and for 5 s. Each time that a request is
        // given up, the runner also asks whether the broker is there.
        until_requests(&front, 7).await?;
        ensure!(!running.stderr().contains("can't be reached"), "{}", running.stderr());
        for node in all(&system) {
            system.broker.register(node).await?;
        }
        expect_verified(running, &system).await.map(drop)
    });
}

#[test]
fn a_connection_by_https_is_kept() {
    scenario(async |lab| {
        let tls = Tls::new(lab.dir())?;
        let system = nodes(lab, lab.broker(Broker::builder())?).await?;
        let front = FrontBuilder::default().tls(&tls).start(system.broker.addr()).await?;
        let running = lab.runner(["bootstrap", "--broker", front.url()]).env("SSL_CERT_FILE", &tls.ca);
        let mut running = running.env("SENTINEL_RUNNER_BOOTSTRAP_TIMEOUT", "40s").start()?;
        until_stderr(&mut running, "still to register").await?;
        for node in all(&system) {
            system.broker.register(node).await?;
            until_stderr(&mut running, &node.addr().to_string()).await?;
        }
        expect_verified(running, &system).await?;
        let [connections, requests, ..] = front.traffic();
        // A request waits for the roster to change when the run has something to report, so there may be two
        // connections.
        assert!(connections <= 2 && requests >= 6, "{requests} requests on {connections} connections");
        Ok(())
    });
}

#[test]
fn a_broker_that_is_restarted_while_it_is_waited_on_is_found_again() {
    scenario(async |lab| {
        let path = lab.dir().join("store.db");
        let mut system = nodes(lab, lab.broker(Broker::builder().store(&path))?).await?;
        let addr = system.broker.addr();
        let mut running = start(lab, &system.broker.url(), &[])?;
        until_stderr(&mut running, "still to register").await?;
        system.broker.register(&system.redis[0]).await?;
        until_stderr(&mut running, &system.redis[0].addr().to_string()).await?;
        let System { broker, redis, sentinels } = system;
        drop(broker);
        until_stderr(&mut running, "can't be reached").await?;
        let broker =
            lab.broker(Broker::builder().listen(addr).store(&path)).context("at the same address")?;
        system = System { broker, redis, sentinels };
        for node in all(&system).skip(1) {
            system.broker.register(node).await?;
        }
        expect_verified(running, &system).await.map(drop)
    });
}

#[test]
fn servers_that_are_held_ask_the_broker_seldom() {
    scenario(async |lab| {
        let broker = lab.broker(Broker::builder())?;
        let front = FrontBuilder::default().start(broker.addr()).await?;
        let servers: Vec<Node> =
            (0..2).map(|_| lab.redis().joining(["--broker", front.url()]).launch()).collect::<Result<_>>()?;
        for server in &servers {
            server.until_logged("registered as").await?;
        }
        let before = front.traffic()[1];
        tokio::time::sleep(A_WHILE).await;
        let requests = front.traffic()[1] - before;
        println!("{A_WHILE:?} with two held servers: {requests} requests");
        // Each server's `join` asks separately whether the system is configured: seven times in this time, at
        // growing intervals.
        assert!(requests <= servers.len() * (share(10) + 7), "{requests}");
        Ok(())
    });
}
