//! `status`, `verify`, `register` and `deregister`: the commands for a system that exists.

use std::fs;

use anyhow::{Result, ensure};
use e2e::{Broker, Lab, Ran, System, eventually, scenario};

use crate::output::document;
use crate::support::{LIMIT, expect_code, expect_healthy, fingerprint, roster, run, until_stderr};

async fn command(lab: &Lab, broker: &Broker, words: &[&str]) -> Result<Ran> {
    let mut words = words.to_vec();
    let url = broker.url();
    words.extend(["--broker", &url]);
    lab.runner(words).run(LIMIT).await
}

async fn standing(lab: &Lab, redis: usize) -> Result<System> {
    let system = lab.system(redis, 3).await?;
    system.register_all().await?;
    expect_code(&run(lab, &system.broker, &[]).await?, 0);
    Ok(system)
}

#[test]
fn a_node_registers_and_is_forgotten_by_name() {
    scenario(async |lab| {
        let broker = lab.broker(Broker::builder())?;
        let ran = command(lab, &broker, &["register", "redis", "10.0.0.7:6380"]).await?;
        expect_code(&ran, 0);
        assert_eq!(ran.stdout, "redis 10.0.0.7:6380: registered\n");
        let ran = command(lab, &broker, &["register", "redis", "10.0.0.7:6380"]).await?;
        assert!(ran.stdout.starts_with("redis 10.0.0.7:6380: already registered, since 20"), "{ran}");
        let ran = command(lab, &broker, &["register", "sentinel", "--output", "json"]).await?;
        let registered = &document(&ran)["registration"];
        assert_eq!(
            (&registered["address"], &registered["known"]),
            (&"127.0.0.1:26379".into(), &false.into())
        );
        let ran = command(lab, &broker, &["register", "sentinel", ":26380", "--group", "other"]).await?;
        assert_eq!(ran.stdout, "sentinel 127.0.0.1:26380: registered (other)\n");

        let ran = command(lab, &broker, &["deregister", "redis", "10.0.0.7:6380"]).await?;
        expect_code(&ran, 0);
        assert!(ran.stdout.contains("deregistered; it had been registered since 20"), "{ran}");
        let ran =
            command(lab, &broker, &["deregister", "redis", "10.0.0.7:6380", "--output", "json"]).await?;
        assert_eq!(document(&ran)["registration"]["known"], false);
        let roster = roster(&broker).await?;
        assert_eq!((roster.redis.len(), roster.sentinels.len()), (0, 1));

        let closed = lab.broker(Broker::builder().variable("api_token", "s3cret"))?;
        expect_code(&command(lab, &closed, &["register", "redis"]).await?, 7);
        expect_code(&command(lab, &closed, &["register", "redis", "--token", "s3cret"]).await?, 0);
        expect_code(&command(lab, &closed, &["register", "master"]).await?, 2);
        Ok(())
    });
}

#[test]
fn a_token_is_taken_from_wherever_it_can_be_given() {
    scenario(async |lab| {
        let closed = lab.broker(Broker::builder().variable("api_token", "s3cret"))?;
        let (url, file, wrong) = (closed.url(), lab.dir().join("token"), lab.dir().join("wrong"));
        fs::write(&file, "s3cret\n")?;
        fs::write(&wrong, "wr0ng\n")?;
        let [file, wrong] = [&file, &wrong].map(|path| path.display().to_string());
        let register = || lab.runner(["register", "redis", "--broker", &url]);
        for (command, code) in [
            (register(), 7),
            (register().args(["--token", "wr0ng"]), 7),
            (register().args(["--token-file", &wrong]), 7),
            (register().env("BROKER_TOKEN", "wr0ng"), 7),
            (register().env("BROKER_TOKEN_FILE", &wrong), 7),
            (register().args(["--token", "s3cret"]), 0),
            (register().args(["--token-file", &file]), 0),
            (register().env("BROKER_TOKEN", "s3cret"), 0),
            (register().env("BROKER_TOKEN_FILE", &file), 0),
            // A token file takes precedence over a token.
            (register().env("BROKER_TOKEN", "wr0ng").args(["--token-file", &file]), 0),
        ] {
            let ran = command.run(LIMIT).await?;
            expect_code(&ran, code);
            for token in ["s3cret", "wr0ng"] {
                assert!(!format!("{}{}", ran.stdout, ran.stderr).contains(token), "shows {token}: {ran}");
            }
        }
        Ok(())
    });
}

#[test]
fn status_prints_every_node_and_changes_nothing() {
    scenario(async |lab| {
        let system = lab.system(2, 3).await?;
        let ran = command(lab, &system.broker, &["status"]).await?;
        expect_code(&ran, 3);
        assert_eq!(ran.stdout.matches("not registered").count(), 5, "{ran}");
        system.register_all().await?;
        let ran = command(lab, &system.broker, &["status"]).await?;
        expect_code(&ran, 6);
        assert!(ran.stderr.contains("hint: `sentinel-runner bootstrap --dry-run`"), "{ran}");
        assert_eq!(system.redis[1].info("replication").await?["role"], "master");

        expect_code(&run(lab, &system.broker, &[]).await?, 0);
        let before = fingerprint(&system).await?;
        let ran = command(lab, &system.broker, &["status", "-v"]).await?;
        expect_code(&ran, 0);
        let [master, replica] = [0, 1].map(|index| system.redis[index].addr().to_string());
        for line in [
            "mymaster  verified".to_owned(),
            format!("└─ {master}  master, 1 of 1 replica online, 0 keys"),
            format!("   └─ {replica}  replica, link up, 0 keys"),
            format!("reports {master}, 1 replica, 2 other Sentinels, quorum 2"),
        ] {
            assert!(ran.stdout.contains(&line), "{line}: {ran}");
        }
        for command in ["MONITOR", "REPLICAOF", " SET ", "REWRITE", "KILL"] {
            assert!(!ran.stderr.contains(command), "sends {command}: {ran}");
        }
        let seen = document(&command(lab, &system.broker, &["status", "--output", "json"]).await?);
        assert_eq!((&seen["outcome"], &seen["master"]), (&"verified".into(), &master.into()));
        expect_code(&command(lab, &system.broker, &["verify"]).await?, 0);
        assert_eq!(before, fingerprint(&system).await?);

        system.redis[1].kill();
        let ran = command(lab, &system.broker, &["status"]).await?;
        expect_code(&ran, 3);
        assert!(ran.stdout.contains(&format!("{replica}  unreachable: ")), "{ran}");
        let ran = command(lab, &system.broker, &["verify", "--output", "json"]).await?;
        assert_eq!((ran.code, &document(&ran)["nodes"][1]["state"]), (Some(3), &"unreachable".into()));
        Ok(())
    });
}

#[test]
fn status_watch_prints_each_change_once() {
    scenario(async |lab| {
        let system = standing(lab, 2).await?;
        let url = system.broker.url();
        let args = ["status", "--watch", "--interval", "20ms", "--broker", &url];
        let mut running = lab.runner(args).start()?;
        let master = system.redis[0].addr();
        running.until_stdout(&format!("group mymaster: verified, master {master}"), LIMIT).await?;
        let replica = &system.redis[1];
        replica.kill();
        running.until_stdout(&format!("redis {}: unreachable", replica.addr()), LIMIT).await?;
        replica.restart().await?;
        eventually(LIMIT, async || {
            let printed = running.stdout();
            let last = printed.lines().rfind(|line| line.contains("  group mymaster: "));
            let is_verified = last.is_some_and(|line| line.contains(": verified, master"));
            ensure!(is_verified, "it is not verified again: {printed}");
            Ok(())
        })
        .await?;
        running.signal(e2e::Signal::TERM)?;
        let ran = running.wait(LIMIT).await?;
        expect_code(&ran, 0);
        let mut said = std::collections::BTreeMap::new();
        for line in ran.stdout.lines() {
            let (_, change) = line.split_once("  ").expect("a moment, and what has changed");
            let (who, what) = change.split_once(": ").expect("who, and what");
            assert_ne!(said.insert(who, what), Some(what), "said twice: {line}");
        }

        let mut terminal = lab.terminal(args, &[], (24, 80), "")?;
        terminal.until("mymaster  verified", LIMIT).await?;
        terminal.keys("\x03").await?;
        assert_eq!(terminal.ended(LIMIT).await?.code(), Some(0));
        assert_eq!(terminal.text().matches("mymaster").count(), 1, "what was seen last: {}", terminal.text());
        Ok(())
    });
}

#[test]
fn a_drill_fails_over_and_prints_how_long_no_write_was_taken() {
    scenario(async |lab| {
        // Right after the bootstrap, the Sentinels have no replica to promote yet.
        let system = standing(lab, 3).await?;
        let ran = command(lab, &system.broker, &["verify", "--failover", "--output", "json"]).await?;
        expect_code(&ran, 0);
        let drill = document(&ran)["failover"].clone();
        assert_eq!(drill["from"], system.redis[0].addr().to_string(), "{ran}");
        let new =
            (1..3).find(|&index| drill["to"] == system.redis[index].addr().to_string()).expect("a replica");
        let number = |name: &str| drill[name].as_f64().expect("a number");
        assert!(number("writes") > 1.0 && number("unwritable_ms") > 0.0, "{ran}");
        assert!(
            number("verified_ms") < 60_000.0 && number("unwritable_ms") <= number("verified_ms") + 5_000.0,
            "{ran}"
        );
        // The outcome at the broker is that of the last bootstrap, so this checks the system itself.
        assert_eq!(system.wrong("mymaster", new).await, Vec::<String>::new());
        // The master has deleted the drill's key. A replica deletes the key when it gets the deletion from
        // the stream.
        for node in &system.redis {
            eventually(LIMIT, async || {
                let has = node.query::<u32>(&["EXISTS", "sentinel-runner:drill"]).await?;
                ensure!(has == 0, "{node} keeps the key");
                Ok(())
            })
            .await?;
        }
        expect_code(&run(lab, &system.broker, &[]).await?, 0);
        expect_healthy(&system, new).await
    });
}

#[test]
fn a_drill_is_refused_where_it_would_do_harm() {
    scenario(async |lab| {
        let alone = standing(lab, 1).await?;
        let ran = command(lab, &alone.broker, &["verify", "--failover"]).await?;
        expect_code(&ran, 4);
        assert!(
            ran.stderr.contains("has no replica to fail over to") && ran.stderr.contains("hint: "),
            "{ran}"
        );

        let fresh = lab.system(2, 3).await?;
        fresh.register_all().await?;
        expect_code(&command(lab, &fresh.broker, &["verify", "--failover"]).await?, 6);
        assert!(fresh.sentinels[0].command(&["SENTINEL", "MASTER", "mymaster"]).await.is_err());

        let broken = standing(lab, 2).await?;
        broken.redis[1].kill();
        let mut running =
            lab.runner(["verify", "--failover", "-v", "--broker", &broken.broker.url()]).start()?;
        until_stderr(&mut running, "error: ").await?;
        let ran = running.wait(LIMIT).await?;
        assert!(matches!(ran.code, Some(3 | 6)), "{ran}");
        assert!(!ran.stderr.contains("SENTINEL FAILOVER"), "{ran}");
        Ok(())
    });
}
