//! The server with the newest data becomes the master. Only the positions of the data decide this.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use broker_fn::api::Kind;
use e2e::{Broker, Lab, Node, NodeBuilder, System, eventually, scenario};
use redis::aio::MultiplexedConnection;
use tokio::process::Command;

use crate::join::{
    FAST, brought_up, expect_linked, joining, launched, own_priority, until_failed_over, until_healthy,
    until_priority, wipe,
};
use crate::support::{LIMIT, expect_code, run, save, tried};

fn durable(node: NodeBuilder) -> NodeBuilder {
    node.config("appendonly yes").config("appendfsync always")
}

/// Writes this many keys, each after the answer to the previous write.
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

/// Waits until a server's journal shows at least the server's present offset.
async fn until_noted(system: &System, node: usize) -> Result<()> {
    let node = &system.redis[node];
    let journal = node.dir().join("appendonly.aof.journal");
    let read = || fs::read_to_string(&journal).unwrap_or_default();
    let offset: u64 = node.info("replication").await?["master_repl_offset"].parse()?;
    // The journal begins with `id:offset`, and the earlier histories follow. The offset still grows with the
    // Sentinels' hellos.
    let noted = || read().split([':', '+', ' ']).nth(1).and_then(|noted| noted.parse::<u64>().ok());
    eventually(LIMIT, async || {
        let is_noted = noted().is_some_and(|noted| noted >= offset);
        ensure!(is_noted, "{} contains `{}`, and {node} is at {offset}", journal.display(), read());
        Ok(())
    })
    .await
}

/// The entry of a server's journal: the offset, and the length of the append-only file at that moment.
fn noted(node: &Node) -> Option<(i64, i64)> {
    let entry = fs::read_to_string(node.dir().join("appendonly.aof.journal")).ok()?;
    // `id:offset+id:offset appendonly.aof.1.incr.aof 2048 …`
    let mut words = entry.split(' ');
    let offset = words.next()?.split([':', '+', '~']).nth(1)?.parse().ok()?;
    Some((offset, words.nth(1)?.parse().ok()?))
}

#[test]
fn the_journal_does_not_count_what_a_slow_disk_has_not_written() {
    /// How many bytes the stream has that the file does not have (the Sentinels' hellos, and pings): at
    /// first, and per second.
    const OF_THE_STREAM: (i64, i64) = (4096, 500);
    scenario(async |lab| {
        let system = brought_up(lab, 2, 3, |node| node.config("appendonly yes")).await?;
        let master = until_healthy(&system).await?;
        let node = &system.redis[master];
        until_noted(&system, master).await?;
        let (first_offset, first_size) = noted(node).context("the journal has an entry")?;
        let mut slow = Command::new("strace");
        slow.args(["-f", "-qq", "-o", "/dev/null", "-e", "trace=fdatasync,fsync"]);
        slow.args(["-e", "inject=fdatasync,fsync:delay_enter=3000000", "-p"]);
        let slow = lab.spawn("strace", {
            slow.arg(&node.info("server").await?["process_id"]);
            slow
        })?;
        let (mut last, mut while_kept_back, started) = (None, 0, Instant::now());
        // A server writes to its file after two seconds in any case, and `join` asks it once a second.
        while while_kept_back < 3 {
            if slow.output().contains("not permitted") {
                tried(format_args!("not tried here: a slow disk: {}", slow.output()));
                return Ok(());
            }
            ensure!(started.elapsed() < LIMIT, "the server keeps nothing back: {}", slow.output());
            write(&system, master, "a", 5, 1000).await?;
            let entry = noted(node);
            let kept_back: u64 = node.info("persistence").await?["aof_buffer_length"].parse()?;
            if entry == last {
                continue;
            }
            last = entry;
            let Some((offset, size)) = entry else { continue };
            while_kept_back += usize::from(kept_back > 16_000);
            let (by_stream, by_file) = (offset - first_offset, size - first_size);
            let seconds = i64::try_from(started.elapsed().as_secs())?;
            ensure!(
                by_stream <= by_file + OF_THE_STREAM.0 + OF_THE_STREAM.1 * seconds,
                "noted {by_stream} bytes further, and the file has grown by {by_file}; {kept_back} are kept back"
            );
        }
        Ok(())
    });
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
        // This is more than can be on its way to the replica.
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

/// A durable system whose master was killed. The master's disk lacks the last hundred writes.
async fn with_an_old_disk(lab: &Lab) -> Result<(System, usize)> {
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
    Ok((system, master))
}

#[test]
fn a_master_with_an_old_disk_does_not_lead_its_replica() {
    scenario(async |lab| {
        let (system, master) = with_an_old_disk(lab).await?;
        system.redis[master].relaunch()?;
        system.redis[master].until_logged("may have writes that this node has lost").await?;
        let after = until_healthy(&system).await?;
        assert_eq!((kept(&system, after, "old").await?, kept(&system, after, "new").await?), (100, 100));
        Ok(())
    });
}

/// Sets a password on the replica. The Sentinels have it, and `join` does not.
async fn lock(system: &System, replica: &Node) -> Result<()> {
    for sentinel in &system.sentinels {
        sentinel.command(&["SENTINEL", "SET", "mymaster", "auth-pass", "s3cret"]).await?;
    }
    replica.command(&["CONFIG", "SET", "requirepass", "s3cret"]).await?;
    Ok(())
}

async fn unlocked(replica: &Node) -> Result<MultiplexedConnection> {
    let client = redis::Client::open(format!("redis://:s3cret@{}", replica.addr()))?;
    Ok(client.get_multiplexed_async_connection().await?)
}

/// Waits until the replica, which has what its master has lost, is promoted. Then removes the replica's
/// password.
async fn until_the_replica_leads(system: &System, master: usize) -> Result<()> {
    assert_eq!(until_failed_over(system, master).await?, 1 - master);
    // The link has to be up first: a replica that is let in halfway through its handshake has no port, and
    // the Sentinels never forget such a replica.
    let follower = &system.redis[master];
    eventually(LIMIT, async || {
        // The server may not have started yet.
        follower.command(&["CONFIG", "SET", "masterauth", "s3cret"]).await?;
        expect_linked(follower).await
    })
    .await?;
    // A Sentinel has the server that it promotes close all connections, so this needs a new one.
    let mut replica = unlocked(&system.redis[1 - master]).await?;
    let set = redis::cmd("CONFIG").arg(&["SET", "requirepass", ""]).to_owned();
    let _: () = set.query_async(&mut replica).await?;
    assert_eq!(until_healthy(system).await?, 1 - master);
    for node in [0, 1] {
        assert_eq!((kept(system, node, "old").await?, kept(system, node, "new").await?), (100, 100));
    }
    Ok(())
}

#[test]
fn a_replica_that_refuses_joins_login_counts_as_alive() {
    scenario(async |lab| {
        let (system, master) = with_an_old_disk(lab).await?;
        lock(&system, &system.redis[1 - master]).await?;
        system.redis[master].relaunch()?;
        system.redis[master].until_logged("may have writes that this node has lost").await?;
        until_the_replica_leads(&system, master).await
    });
}

#[test]
fn a_replica_that_only_the_sentinels_reach_is_promoted() {
    scenario(async |lab| {
        let (system, master) = with_an_old_disk(lab).await?;
        lock(&system, &system.redis[1 - master]).await?;
        let mut replica = unlocked(&system.redis[1 - master]).await?;
        system.redis[master].relaunch()?;
        // The replica looks like a server that has not started yet: the Sentinels have lost their connections
        // to it, but have not marked it as down.
        let kill = redis::cmd("CLIENT").arg(&["KILL", "TYPE", "normal"]).to_owned();
        let lose_it = async {
            loop {
                let _: u64 = kill.query_async(&mut replica).await?;
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::select! {
            held = system.redis[master].until_logged("held: the Sentinels still report this node") => held?,
            lost = lose_it => return lost,
        }
        until_the_replica_leads(&system, master).await
    });
}

#[test]
fn the_newer_of_two_dumps_leads_though_the_sentinels_name_the_older() {
    scenario(async |lab| {
        // The servers save only on `SAVE`.
        let system = brought_up(lab, 2, 3, |node| node.config("save 86400 1000000")).await?;
        let master = until_healthy(&system).await?;
        write(&system, master, "old", 5, 10).await?;
        save(&system.redis[master]).await?;
        write(&system, master, "new", 50, 10).await?;
        system.replicates(master).await?;
        save(&system.redis[1 - master]).await?;
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
fn a_cache_comes_back_empty_after_all_nodes_were_down() {
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

#[test]
fn the_newest_disk_leads_if_the_masters_disk_is_gone() {
    // A difference of ten writes is too small to be certain which append-only file goes further. So the
    // decision is only likely right.
    for more in [50, 10] {
        scenario(async |lab| {
            let system = brought_up(lab, 3, 3, durable).await?;
            let master = until_healthy(&system).await?;
            let [away, other] = [(master + 1) % 3, (master + 2) % 3];
            write(&system, master, "old", 50, 10).await?;
            system.replicates(master).await?;
            until_noted(&system, away).await?;
            // This replica must not be promoted, even if its run id is the lowest: among equal replicas,
            // Sentinel takes the one with the lowest run id.
            system.redis[away].kill();
            write(&system, master, "new", more, 10).await?;
            until_noted(&system, other).await?;
            for node in &system.redis {
                node.kill();
            }
            wipe(&system.redis[master])?;
            for node in [away, other, master] {
                system.redis[node].relaunch()?;
            }
            assert_eq!(until_healthy(&system).await?, other);
            assert_eq!((kept(&system, other, "old").await?, kept(&system, other, "new").await?), (50, more));
            // This replica no longer stands back.
            until_priority(&system.redis[away], "100").await
        });
    }
}

#[test]
fn an_empty_replica_is_not_promoted_while_it_synchronises() {
    scenario(async |lab| {
        let system = brought_up(lab, 2, 3, durable).await?;
        let master = until_healthy(&system).await?;
        write(&system, master, "written", 200, 10).await?;
        system.replicates(master).await?;
        // The synchronisation takes half a minute.
        system.redis[master].command(&["CONFIG", "SET", "rdb-key-save-delay", "150000"]).await?;
        system.redis[1 - master].kill();
        wipe(&system.redis[1 - master])?;
        system.redis[1 - master].relaunch()?;
        let replica = &system.redis[1 - master];
        until_priority(replica, "0").await?;
        system.redis[master].kill();
        let finds_nobody = |sentinel: &Node| sentinel.log().contains("-failover-abort-no-good-slave");
        eventually(LIMIT, async || {
            let has_tried = system.sentinels.iter().any(finds_nobody);
            ensure!(has_tried, "the Sentinels do not try to fail over:\n{}", replica.log());
            Ok(())
        })
        .await?;
        system.redis[master].restart().await?;
        assert_eq!(until_healthy(&system).await?, master);
        assert_eq!(kept(&system, 1 - master, "written").await?, 200);
        Ok(())
    });
}

/// All three servers are killed. One replica lags, and `other` prepares how the other replica comes back.
async fn after_all_were_down(lab: &Lab, other: impl AsyncFnOnce(&Node) -> Result<()>) -> Result<()> {
    let system = brought_up(lab, 3, 3, durable).await?;
    let master = until_healthy(&system).await?;
    let [lagging, other_replica] = [(master + 1) % 3, (master + 2) % 3].map(|index| &system.redis[index]);
    write(&system, master, "all", 100, 100).await?;
    system.replicates(master).await?;
    lagging.stop()?;
    write(&system, master, "later", 100, 10_000).await?;
    for node in &system.redis {
        node.kill();
    }
    lagging.relaunch()?;
    other(other_replica).await?;
    system.redis[master].relaunch()?;
    system.redis[master].until_logged("the Sentinels report this node").await?;
    other_replica.relaunch()?;
    let after = until_healthy(&system).await?;
    ensure!(after == master, "{} was promoted", system.redis[after]);
    assert_eq!((kept(&system, after, "all").await?, kept(&system, after, "later").await?), (100, 100));
    Ok(())
}

#[test]
fn a_replica_that_lags_is_not_promoted_after_all_servers_were_down() {
    scenario(async |lab| {
        after_all_were_down(lab, async |node| {
            wipe(node)?;
            node.relaunch()
        })
        .await
    });
    // The other replica stays away until the master waits.
    scenario(async |lab| after_all_were_down(lab, async |_| Ok(())).await);
}

#[test]
fn an_empty_held_server_is_not_promoted_before_it_has_data() {
    scenario(async |lab| {
        // With 200 keys, this delay makes a synchronisation take four seconds.
        let system = brought_up(lab, 2, 3, |node| durable(node).config("rdb-key-save-delay 20000")).await?;
        let master = until_healthy(&system).await?;
        let (named, replica) = (&system.redis[master], &system.redis[1 - master]);
        write(&system, master, "written", 200, 10).await?;
        system.replicates(master).await?;
        named.kill();
        replica.kill();
        wipe(replica)?;
        replica.relaunch()?;
        replica.until_logged("starting held").await?;
        named.relaunch()?;
        replica.until_logged("following it").await?;
        let info = replica.info("replication").await?;
        assert_eq!((own_priority(replica).await?.as_str(), &*info["master_link_status"]), ("0", "down"));
        until_priority(replica, "100").await?;
        assert_eq!(replica.info("replication").await?["master_link_status"], "up");
        assert_eq!(until_healthy(&system).await?, master);
        for node in [0, 1] {
            assert_eq!(kept(&system, node, "written").await?, 200);
        }
        Ok(())
    });
}

#[test]
fn a_replica_with_less_data_is_not_promoted_while_it_starts() {
    scenario(async |lab| {
        let system = brought_up(lab, 3, 3, durable).await?;
        let master = until_healthy(&system).await?;
        let [less, more] = [1, 2].map(|next| &system.redis[(master + next) % 3]);
        write(&system, master, "before", 20, 10).await?;
        system.replicates(master).await?;
        until_noted(&system, (master + 1) % 3).await?;
        less.kill();
        write(&system, master, "after", 200, 100).await?;
        until_noted(&system, (master + 2) % 3).await?;
        system.redis[master].kill();
        more.kill();
        more.relaunch()?;
        more.until_ready().await?;
        // The name of a connection contains how far the server's data goes.
        eventually(LIMIT, async || {
            let clients: String = more.query(&["CLIENT", "LIST", "TYPE", "pubsub"]).await?;
            ensure!(
                clients.contains("-at-"),
                "no name of a connection contains it: {clients}\n{}",
                more.log()
            );
            Ok(())
        })
        .await?;
        less.relaunch()?;
        less.until_ready().await?;
        // From now on, the Sentinels read the priority with their first `INFO`, before any decision.
        assert_eq!(own_priority(less).await?, "0", "{}", less.log());
        assert_eq!(own_priority(more).await?, "100", "{}", more.log());
        assert_eq!(until_failed_over(&system, master).await?, (master + 2) % 3);
        system.redis[master].relaunch()?;
        until_healthy(&system).await?;
        for node in [less, more] {
            until_priority(node, "100").await?;
        }
        for node in 0..3 {
            assert_eq!(kept(&system, node, "after").await?, 200);
        }
        Ok(())
    });
}

#[test]
fn long_a_master_that_restarts_leads_if_no_failover_is_possible() {
    for priority in [None, Some("0")] {
        scenario(async |lab| {
            let quorum = if priority.is_none() { "3" } else { "2" };
            let system = launched(lab, 2, 3, durable)?;
            expect_code(&run(lab, &system.broker, &[&FAST[..], &["--quorum", quorum]].concat()).await?, 0);
            let master = until_healthy(&system).await?;
            let (named, replica) = (&system.redis[master], &system.redis[1 - master]);
            write(&system, master, "written", 20, 10).await?;
            system.replicates(master).await?;
            until_noted(&system, master).await?;
            match priority {
                Some(priority) => {
                    replica.command(&["CONFIG", "SET", "replica-priority", priority]).await?;
                    for sentinel in &system.sentinels {
                        until_listed_with_priority(sentinel, priority).await?;
                    }
                }
                None => system.sentinels[0].kill(),
            }
            named.kill();
            // Without the journal, nothing shows which of the two servers' data goes further.
            fs::remove_file(named.dir().join("appendonly.aof.journal"))?;
            named.relaunch()?;
            named.until_logged("starting as the master").await?;
            named.until_ready().await?;
            assert_eq!(kept(&system, master, "written").await?, 20);
            Ok(())
        });
    }
    scenario(async |lab| {
        let system = brought_up(lab, 2, 3, durable).await?;
        let master = until_healthy(&system).await?;
        let (named, replica) = (&system.redis[master], &system.redis[1 - master]);
        for node in [named, replica] {
            node.kill();
        }
        named.relaunch()?;
        named.until_logged(&format!("warning: {} can't be reached", replica.addr())).await?;
        named.until_ready().await
    });
}

/// Waits until a Sentinel lists all replicas with this priority.
async fn until_listed_with_priority(sentinel: &Node, priority: &str) -> Result<()> {
    eventually(LIMIT, async || {
        let replicas: Vec<BTreeMap<String, String>> =
            sentinel.query(&["SENTINEL", "REPLICAS", "mymaster"]).await?;
        let all = replicas.iter().all(|replica| replica["slave-priority"] == priority);
        ensure!(all, "{sentinel} does not list the priority {priority}: {replicas:?}");
        Ok(())
    })
    .await
}
