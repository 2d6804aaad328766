//! From registered nodes to a verified system, with the real component, real servers and the real runner.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::time::{Duration, Instant};

use anyhow::Result;
use broker_fn::api::Registration;
use e2e::{Broker, Lab, Node, Signal, System, Timings, scenario};
use futures::future::try_join_all;

use crate::support::{
    LIMIT, expect_code, expect_healthy, fail_over, fingerprint, roster, run, start, until_stderr,
};

/// Checks that a fresh system comes up, and that the run leaves nothing behind on its nodes.
async fn comes_up(lab: &Lab, redis: usize, sentinels: usize) -> Result<()> {
    let system = lab.system(redis, sentinels).await?;
    let running = start(lab, &system.broker, &[])?;
    system.register_all().await?;
    let ran = running.wait(LIMIT).await?;
    expect_code(&ran, 0);
    assert!(ran.stdout.contains(&format!("master    {}", system.redis[0].addr())), "{ran}");
    expect_healthy(&system, 0).await?;
    let delay: Vec<String> = system.redis[0].query(&["CONFIG", "GET", "repl-diskless-sync-delay"]).await?;
    assert_eq!(delay[1], "5", "the default, as it was");
    for replica in &system.redis[1..] {
        let config = std::fs::read_to_string(replica.config_file())?;
        let line = format!("replicaof {} {}", system.redis[0].addr().ip(), system.redis[0].addr().port());
        assert!(config.contains(&line), "{replica} forgets its master with its next restart:\n{config}");
    }
    Ok(())
}

#[test]
fn two_redis_and_three_sentinels_come_up() {
    scenario(async |lab| comes_up(lab, 2, 3).await);
}

#[test]
fn three_redis_and_three_sentinels_come_up() {
    scenario(async |lab| comes_up(lab, 3, 3).await);
}

#[test]
fn five_redis_and_five_sentinels_come_up() {
    scenario(async |lab| comes_up(lab, 5, 5).await);
}

#[test]
fn a_bootstrap_takes_less_than_a_second() {
    // With Sentinel's own timers, a bootstrap takes five seconds: the delay of diskless synchronisation alone
    // takes that long. On an idle machine the median is below 0.2 s. The limit here leaves room for a busy
    // machine.
    scenario(async |lab| {
        let mut took = vec![];
        for _ in 0..7 {
            let system = lab.system(2, 3).await?;
            let running = start(lab, &system.broker, &[])?;
            system.register_all().await?;
            let registered = Instant::now();
            expect_code(&running.wait(LIMIT).await?, 0);
            took.push(registered.elapsed());
        }
        took.sort();
        println!("2 Redis + 3 Sentinels, from the last registration to exit code 0: {took:.0?}");
        assert!(took[took.len() / 2] < Duration::from_secs(1), "{took:?}");
        Ok(())
    });
}

#[test]
fn a_slow_network_costs_few_round_trips_in_sequence() {
    scenario(async |lab| {
        let system = lab.system_of(3, 3, |node| node.slow(Duration::from_millis(20))).await?;
        let running = start(lab, &system.broker, &["--timings", "--sentinel-set", "parallel-syncs=1"])?;
        system.register_all().await?;
        let ran = running.wait(LIMIT).await?;
        expect_code(&ran, 0);
        expect_healthy(&system, 0).await?;
        let timings = Timings::of(&ran)?;
        assert_eq!(timings.nodes, 6, "{ran}");
        // How often the runner asks the master for its replicas depends on how fast the replicas connect.
        let attach = timings.phases["attach"];
        assert!(attach >= 2, "REPLICAOF, and the master's list: {ran}");
        assert!(
            timings.in_sequence() - attach <= 6,
            "observe twice, prepare, monitor twice, introduce: {ran}"
        );
        Ok(())
    });
}

#[test]
fn nodes_of_both_kinds_may_register_in_any_order() {
    scenario(async |lab| {
        let orders: [fn(&System) -> Vec<&Node>; 3] = [
            |system| system.redis.iter().chain(&system.sentinels).collect(),
            |system| system.sentinels.iter().chain(&system.redis).collect(),
            |system| {
                let [r0, r1] = &system.redis[..] else { unreachable!("two were started") };
                let [s0, s1, s2] = &system.sentinels[..] else { unreachable!("three were started") };
                vec![s0, r0, s1, r1, s2]
            },
        ];
        for order in orders {
            let system = lab.system(2, 3).await?;
            let running = start(lab, &system.broker, &[])?;
            for node in order(&system) {
                system.broker.register(node).await?;
            }
            expect_code(&running.wait(LIMIT).await?, 0);
            expect_healthy(&system, 0).await?;
        }
        Ok(())
    });
}

#[test]
fn a_node_that_registers_twice_counts_once_and_keeps_its_place() {
    scenario(async |lab| {
        let system = lab.system(2, 3).await?;
        let mut running = start(lab, &system.broker, &[])?;
        let first: Registration = system.broker.register(&system.redis[0]).await?;
        for sentinel in &system.sentinels {
            system.broker.register(sentinel).await?;
        }
        for _ in 0..2 {
            system.broker.register(&system.sentinels[0]).await?;
        }
        let again = system.broker.register(&system.redis[0]).await?;
        assert_eq!(first.registered_at, again.registered_at);
        until_stderr(&mut running, "waiting: still to register: 1 Redis server").await?;
        system.broker.register(&system.redis[1]).await?;
        system.broker.register(&system.redis[0]).await?;
        expect_code(&running.wait(LIMIT).await?, 0);
        expect_healthy(&system, 0).await
    });
}

#[test]
fn clients_of_2018_register_with_a_bare_post_from_their_own_address() {
    scenario(async |lab| {
        // There is no body and no port: every node has the usual port and a separate address. The addresses
        // contain the process id, so another run of these tests has other addresses.
        let [_, _, high, low] = std::process::id().to_be_bytes();
        let address = |host| Ipv4Addr::new(127, high.max(1), low, host).into();
        let addresses: Vec<IpAddr> = (1..=5).map(address).collect();
        let redis = addresses[..2].iter().map(|&address| lab.redis().host(address).port(6379).start());
        let sentinels =
            addresses[2..].iter().map(|&address| lab.sentinel().host(address).port(26379).start());
        let (redis, sentinels) = (try_join_all(redis).await?, try_join_all(sentinels).await?);
        let broker = lab.broker(Broker::builder().listen("127.0.0.1:0".parse()?))?;
        let system = System { broker, redis, sentinels };

        let running = start(lab, &system.broker, &[])?;
        for node in system.redis.iter().chain(&system.sentinels) {
            let reply = system.broker.post(format!("/{}", node.kind())).from(node.addr().ip()).send().await?;
            assert_eq!(reply.status, 201, "{reply}");
            assert_eq!(reply.json::<Registration>()?.addr.to_string(), node.addr().to_string());
        }
        expect_code(&running.wait(LIMIT).await?, 0);
        expect_healthy(&system, 0).await
    });
}

#[test]
fn a_dead_node_is_reported_and_waited_for() {
    scenario(async |lab| {
        let system = lab.system(2, 3).await?;
        system.redis[0].kill();
        system.register_all().await?;
        let dead = system.redis[0].addr().to_string();

        let short = lab.runner(["bootstrap", "--broker", &system.broker.url(), "--timeout", "1s"]);
        let ran = short.run(LIMIT).await?;
        expect_code(&ran, 3);
        assert!(ran.stderr.contains(&format!("{dead}: unreachable")), "{ran}");
        assert!(ran.stderr.contains("1 of 2 Redis servers"), "{ran}");
        let outcome = roster(&system.broker).await?.outcome.expect("the runner has reported");
        assert!(!outcome.verified && outcome.reason.unwrap().contains(&dead));
        let untouched: String = system.redis[1].info("replication").await?["role"].clone();
        assert_eq!(untouched, "master");

        let mut running = start(lab, &system.broker, &[])?;
        until_stderr(&mut running, &format!("{dead}: unreachable")).await?;
        system.redis[0].restart().await?;
        expect_code(&running.wait(LIMIT).await?, 0);
        expect_healthy(&system, 0).await
    });
}

#[test]
fn a_dead_node_is_left_out_if_there_is_one_more_than_expected() {
    scenario(async |lab| {
        let system = lab.system(3, 3).await?;
        system.redis[0].kill();
        system.register_all().await?;
        let ran = run(lab, &system.broker, &["--redis", "2"]).await?;
        expect_code(&ran, 0);
        assert!(
            ran.stderr.contains(&format!("{} is left out: unreachable", system.redis[0].addr())),
            "{ran}"
        );
        let sentinels: Vec<&Node> = system.sentinels.iter().collect();
        let wrong = e2e::wrong("mymaster", &system.redis[1], &[&system.redis[2]], &sentinels).await;
        assert_eq!(wrong, Vec::<String>::new());
        Ok(())
    });
}

#[test]
fn a_second_run_changes_nothing() {
    scenario(async |lab| {
        let system = lab.system(3, 3).await?;
        system.register_all().await?;
        expect_code(&run(lab, &system.broker, &[]).await?, 0);
        let before = fingerprint(&system).await?;
        let configs = || -> std::io::Result<Vec<String>> {
            system.sentinels.iter().map(|node| std::fs::read_to_string(node.config_file())).collect()
        };
        let files = configs()?;
        let ran = run(lab, &system.broker, &["--verbose"]).await?;
        expect_code(&ran, 0);
        assert!(ran.stderr.contains("already configured"), "{ran}");
        for command in ["MONITOR", "REPLICAOF", " SET ", "REWRITE"] {
            assert!(!ran.stderr.contains(command), "sends {command}: {ran}");
        }
        for line in ran.stderr.lines().filter(|line| line.contains("PUBLISH")) {
            assert!(line.contains("does the stream flow?"), "a hello: {line}");
        }
        assert_eq!(before, fingerprint(&system).await?);
        assert_eq!(files, configs()?, "a Sentinel wrote its file again");
        expect_healthy(&system, 0).await
    });
}

#[test]
fn after_a_failover_the_new_master_stays() {
    scenario(async |lab| {
        let system = lab.system(2, 3).await?;
        system.register_all().await?;
        let fast =
            ["--sentinel-set", "down-after-milliseconds=500", "--sentinel-set", "failover-timeout=2000"];
        expect_code(&run(lab, &system.broker, &fast).await?, 0);
        let options: BTreeMap<String, String> =
            system.sentinels[0].query(&["SENTINEL", "MASTER", "mymaster"]).await?;
        assert_eq!((&*options["down-after-milliseconds"], &*options["failover-timeout"]), ("500", "2000"));

        fail_over(&system.sentinels[0]).await?;
        let ran = run(lab, &system.broker, &[]).await?;
        expect_code(&ran, 0);
        expect_healthy(&system, 1).await?;
        let ran = run(lab, &system.broker, &[]).await?;
        assert!(ran.stderr.contains("already configured"), "{ran}");
        expect_healthy(&system, 1).await
    });
}

#[test]
fn a_dry_run_shows_the_commands_and_sends_none() {
    scenario(async |lab| {
        let system = lab.system(2, 3).await?;
        system.register_all().await?;
        let ran = run(lab, &system.broker, &["--dry-run", "--sentinel-set", "parallel-syncs=2"]).await?;
        expect_code(&ran, 0);
        let [master, replica] = [0, 1].map(|number| system.redis[number].addr());
        for line in [
            format!("master {master}: the first to register"),
            format!("{replica}  REPLICAOF {} {}", master.ip(), master.port()),
            format!(
                "{}  SENTINEL MONITOR mymaster {} {} 2",
                system.sentinels[2].addr(),
                master.ip(),
                master.port()
            ),
            format!("{}  SENTINEL SET mymaster parallel-syncs 2", system.sentinels[0].addr()),
        ] {
            assert!(ran.stdout.contains(&line), "{line}: {ran}");
        }
        assert_eq!(system.redis[1].info("replication").await?["role"], "master");
        assert!(system.sentinels[0].command(&["SENTINEL", "MASTER", "mymaster"]).await.is_err());
        assert_eq!(roster(&system.broker).await?.outcome, None);
        Ok(())
    });
}

#[test]
fn data_makes_the_master_and_two_data_sets_are_refused() {
    scenario(async |lab| {
        let system = lab.system(2, 3).await?;
        system.register_all().await?;
        system.redis[1].command(&["SET", "precious", "1"]).await?;
        expect_code(&run(lab, &system.broker, &[]).await?, 0);
        expect_healthy(&system, 1).await?;
        assert_eq!(system.redis[0].query::<String>(&["GET", "precious"]).await?, "1");

        let system = lab.system(2, 3).await?;
        system.register_all().await?;
        for node in &system.redis {
            node.command(&["SET", "precious", node.name()]).await?;
        }
        expect_code(&run(lab, &system.broker, &["--dry-run"]).await?, 4);
        let ran = run(lab, &system.broker, &[]).await?;
        expect_code(&ran, 4);
        for node in &system.redis {
            assert!(ran.stderr.contains(&node.addr().to_string()), "{ran}");
            assert_eq!(node.query::<String>(&["GET", "precious"]).await?, node.name(), "nothing was touched");
        }
        assert!(ran.stderr.contains("hint: "), "{ran}");
        let named = system.redis[1].addr().to_string();
        expect_code(&run(lab, &system.broker, &["--master", &named]).await?, 4);
        expect_code(&run(lab, &system.broker, &["--master", &named, "--discard-data"]).await?, 0);
        expect_healthy(&system, 1).await
    });
}

#[test]
fn a_server_that_follows_the_second_one_leaves_that_the_master() {
    // The 2018 program left the two servers replicating each other.
    scenario(async |lab| {
        let system = lab.system(2, 3).await?;
        system.register_all().await?;
        let master = system.redis[1].addr();
        let (host, port) = (master.ip().to_string(), master.port().to_string());
        system.redis[0].command(&["REPLICAOF", &host, &port]).await?;
        expect_code(&run(lab, &system.broker, &[]).await?, 0);
        expect_healthy(&system, 1).await
    });
}

#[test]
fn a_sentinel_registered_as_redis_is_named() {
    scenario(async |lab| {
        let system = lab.system(2, 3).await?;
        let body = serde_json::json!({"host": "127.0.0.1", "port": system.sentinels[0].addr().port()});
        system.broker.post("/redis").json(&body).send().await?;
        system.register_all().await?;
        let ran = run(lab, &system.broker, &[]).await?;
        expect_code(&ran, 5);
        assert!(ran.stderr.contains(&format!("{} can't be used", system.sentinels[0].addr())), "{ran}");
        Ok(())
    });
}

#[test]
fn a_run_that_fails_half_way_puts_the_masters_setting_back() {
    scenario(async |lab| {
        let system = lab.system(2, 3).await?;
        system.register_all().await?;
        let mut running =
            start(lab, &system.broker, &["--sentinel-set", "notification-script=/nonexistent"])?;
        let ran = {
            until_stderr(&mut running, "the first to register").await?;
            running.wait(LIMIT).await?
        };
        // Sentinel refuses scripts over the network by default, so the run fails halfway.
        expect_code(&ran, 5);
        assert!(ran.stderr.contains("notification-script"), "{ran}");
        let delay: Vec<String> =
            system.redis[0].query(&["CONFIG", "GET", "repl-diskless-sync-delay"]).await?;
        assert_eq!(delay[1], "5");
        // The next run continues from the state that this run has left.
        expect_code(&run(lab, &system.broker, &[]).await?, 0);
        expect_healthy(&system, 0).await
    });
}

#[test]
fn signals_end_a_run_with_their_codes() {
    scenario(async |lab| {
        let broker = lab.broker(Broker::builder())?;
        for (signal, code) in [(Signal::INT, 130), (Signal::TERM, 143)] {
            let mut running = start(lab, &broker, &[])?;
            until_stderr(&mut running, "waiting: still to register: 2 Redis servers and 3 Sentinels").await?;
            running.signal(signal)?;
            expect_code(&running.wait(LIMIT).await?, code);
        }
        Ok(())
    });
}

#[test]
fn wrong_flags_end_a_run_with_2() {
    scenario(async |lab| {
        for flags in [
            vec!["bootstrap"],
            vec!["bootstrap", "--broker", "ftp://broker"],
            vec!["bootstrap", "--broker", "http://127.0.0.1:1", "--redis", "0"],
            vec!["bootstrap", "--broker", "http://127.0.0.1:1", "--discard-data"],
            vec!["bootstrap", "--broker", "http://127.0.0.1:1", "--group", "no group"],
            vec!["bootstrap", "--broker", "http://127.0.0.1:1", "--sentinel-set", "nonsense=1"],
        ] {
            let ran = lab.runner(&flags).run(LIMIT).await?;
            expect_code(&ran, 2);
            assert!(ran.stderr.contains("error:"), "{ran}");
        }
        Ok(())
    });
}

#[test]
fn every_flag_is_an_environment_variable() {
    scenario(async |lab| {
        let system = lab.system(2, 1).await?;
        let group = |node: &Node| format!("/groups/other/{}", node.kind());
        for node in system.redis.iter().chain(&system.sentinels) {
            let body = serde_json::json!({"host": "127.0.0.1", "port": node.addr().port()});
            let reply = system.broker.post(group(node)).json(&body).send().await?;
            assert_eq!(reply.status, 201, "{reply}");
        }
        let runner =
            lab.runner(["bootstrap"]).env("BROKER_URL", system.broker.url()).env("SENTINEL_GROUP", "other");
        let runner =
            runner.env("EXPECTED_SENTINELS", "1").env("SENTINEL_QUORUM", "1").env("EXPECTED_REDIS", "2");
        let runner = runner
            .env("SENTINEL_SET", "parallel-syncs=3,failover-timeout=9000")
            .env("SENTINEL_RUNNER_BOOTSTRAP_TIMEOUT", "40s");
        expect_code(&runner.run(LIMIT).await?, 0);
        assert_eq!(system.wrong("other", 0).await, Vec::<String>::new());
        let fields: BTreeMap<String, String> =
            system.sentinels[0].query(&["SENTINEL", "MASTER", "other"]).await?;
        assert_eq!(
            (&*fields["parallel-syncs"], &*fields["failover-timeout"], &*fields["quorum"]),
            ("3", "9000", "1")
        );
        Ok(())
    });
}

#[test]
fn a_broker_that_is_not_there_or_refuses_ends_a_run_with_7() {
    scenario(async |lab| {
        let gone = lab.broker(Broker::builder())?.url();
        let ran = lab.runner(["bootstrap", "--broker", &gone, "--timeout", "300ms"]).run(LIMIT).await?;
        expect_code(&ran, 7);
        assert!(ran.stderr.contains("can't be reached"), "{ran}");

        let closed = lab.broker(Broker::builder().variable("api_token", "s3cret"))?;
        let ran = run(lab, &closed, &[]).await?;
        expect_code(&ran, 7);
        assert!(ran.stderr.contains("401") && ran.stderr.contains("--token-file"), "{ran}");
        let mut running = start(lab, &closed, &["--token", "s3cret", "--verbose"])?;
        until_stderr(&mut running, "still to register").await?;
        assert!(!running.stderr().contains("s3cret"));
        Ok(())
    });
}
