//! Whose data is the newest leads, by how far it goes, and not by signs.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use broker_fn::api::Kind;
use e2e::{Broker, NodeBuilder, System, scenario};

use crate::join::{FAST, brought_up, joining, until_healthy};
use crate::support::{LIMIT, expect_code, run};

const POLL: Duration = Duration::from_millis(10);

fn durable(node: NodeBuilder) -> NodeBuilder {
    node.config("appendonly yes").config("appendfsync always")
}

/// Writes so many keys, each of which is answered before the next.
async fn write(system: &System, master: usize, name: &str, count: usize, size: usize) -> Result<()> {
    let addr = system.redis[master].addr();
    let client = redis::Client::open(format!("redis://{addr}"))?;
    let mut connection = client.get_multiplexed_async_connection().await?;
    let value = "x".repeat(size);
    for number in 0..count {
        let set = redis::cmd("SET").arg(format!("{name}:{number}")).arg(&value).to_owned();
        let answer: String = set.query_async(&mut connection).await?;
        ensure!(answer == "OK", "{answer}");
    }
    Ok(())
}

async fn kept(system: &System, node: usize, name: &str) -> Result<usize> {
    let keys: Vec<String> = system.redis[node].query(&["KEYS", &format!("{name}:*")]).await?;
    Ok(keys.len())
}

/// Waits until what a server's journal says is of now.
async fn until_noted(system: &System, node: usize) -> Result<()> {
    let node = &system.redis[node];
    let journal = node.dir().join("appendonly.aof.journal");
    let read = || fs::read_to_string(&journal).unwrap_or_default();
    let started = Instant::now();
    let offset = node.info("replication").await?["master_repl_offset"].clone();
    // `id:offset`, and the histories before.
    while read().split([':', '+', ' ']).nth(1) != Some(&offset) {
        ensure!(started.elapsed() < LIMIT, "{} says `{}`, and it is at {offset}", journal.display(), read());
        tokio::time::sleep(POLL).await;
    }
    Ok(())
}

pub(crate) fn copy(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy(&entry.path(), &target)?;
        } else if entry.file_type()?.is_file() {
            fs::copy(entry.path(), target)?;
        }
    }
    Ok(())
}

#[test]
fn a_durable_master_that_restarts_leads_a_replica_that_lags() {
    scenario(async |lab| {
        let system = brought_up(lab, 2, 3, durable).await?;
        let master = until_healthy(&system).await?;
        until_noted(&system, master).await?;
        // More than what is on its way to it can be.
        system.redis[1 - master].stop()?;
        write(&system, master, "written", 1500, 15_000).await?;
        system.redis[master].kill();
        system.redis[1 - master].cont()?;
        system.redis[master].restart().await?;
        let master = until_healthy(&system).await?;
        assert_eq!(kept(&system, master, "written").await?, 1500);
        Ok(())
    });
}

#[test]
fn an_old_disk_does_not_lead_though_the_sentinels_name_it() {
    scenario(async |lab| {
        let system = brought_up(lab, 2, 3, durable).await?;
        let master = until_healthy(&system).await?;
        write(&system, master, "old", 100, 100).await?;
        until_noted(&system, master).await?;
        let (dir, before) = (system.redis[master].dir().to_owned(), lab.dir().join("before"));
        copy(&dir.join("appendonlydir"), &before.join("appendonlydir"))?;
        let journal = "appendonly.aof.journal";
        fs::copy(dir.join(journal), before.join(journal))?;
        write(&system, master, "new", 100, 100).await?;
        system.replicates(master).await?;
        system.redis[master].kill();
        fs::remove_dir_all(dir.join("appendonlydir"))?;
        copy(&before, &dir)?;
        system.redis[master].relaunch()?;
        system.redis[master].until_said("may hold what it has lost").await?;
        let after = until_healthy(&system).await?;
        assert_eq!((kept(&system, after, "old").await?, kept(&system, after, "new").await?), (100, 100));
        Ok(())
    });
}

#[test]
fn of_two_dumps_the_newer_one_leads_though_the_sentinels_name_the_other() {
    scenario(async |lab| {
        // Nothing is saved but when it is told to.
        let system = brought_up(lab, 2, 3, |node| node.config("save 86400 1000000")).await?;
        let master = until_healthy(&system).await?;
        write(&system, master, "old", 5, 10).await?;
        system.redis[master].command(&["SAVE"]).await?;
        write(&system, master, "new", 50, 10).await?;
        system.replicates(master).await?;
        system.redis[1 - master].command(&["SAVE"]).await?;
        for node in system.nodes() {
            node.kill();
        }
        for node in system.nodes() {
            node.relaunch()?;
        }
        let after = until_healthy(&system).await?;
        assert_eq!(kept(&system, after, "new").await?, 50);
        assert_ne!(after, master);
        Ok(())
    });
}

#[test]
fn a_cache_comes_back_empty_after_everybody_was_down() {
    scenario(async |lab| {
        let broker = lab.broker(Broker::builder())?;
        let url = broker.url();
        let cache =
            || lab.redis().joining(["--broker", &url, "--poll-interval", "100ms", "--cache"]).launch();
        let redis = (0..2).map(|_| cache()).collect::<Result<_>>()?;
        let sentinels =
            (0..3).map(|_| joining(lab, Kind::Sentinel, &broker).launch()).collect::<Result<_>>()?;
        let system = System { broker, redis, sentinels };
        expect_code(&run(lab, &system.broker, &FAST).await?, 0);
        let before = until_healthy(&system).await?;
        write(&system, before, "cached", 10, 10).await?;
        for node in system.nodes() {
            node.kill();
        }
        for node in system.nodes() {
            node.relaunch()?;
        }
        let after = until_healthy(&system).await?;
        assert_eq!((after, kept(&system, after, "cached").await?), (before, 0));
        Ok(())
    });
}
