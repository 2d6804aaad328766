//! `join`: nodes that ask for their role before they start, and that are killed and restarted in every order.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::hash::{BuildHasher, RandomState};
use std::io::Write as _;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;
use std::{fs, io};

use anyhow::{Context, Result, ensure};
use broker_fn::api::Kind;
use e2e::{
    Broker, Lab, Ledger, Network, Node, NodeBuilder, Running, Signal, SlowLine, System, Tls, eventually,
    is_running, redis_version, runner_program, scenario, steady_port,
};
use futures::future::try_join_all;

use crate::access::{REPLICATION_RIGHTS, SENTINEL_RIGHTS, redis_rights};
use crate::chaos::Writer;
use crate::support::{
    LIMIT, Random, expect_code, roster, run, start, sweep, tried, until_stderr, whole_sweep,
};

/// With these settings a failover is short, but a machine that is busy for a moment usually causes none. It
/// may still cause one, so no test depends on which server is the master afterwards.
pub(crate) const FAST: [&str; 2] = ["--sentinel-set", "down-after-milliseconds=2000,failover-timeout=4000"];

/// A node that joins with this broker.
pub(crate) fn joining(lab: &Lab, kind: Kind, broker: &Broker) -> NodeBuilder {
    let node = match kind {
        Kind::Redis => lab.redis(),
        Kind::Sentinel => lab.sentinel(),
    };
    node.joining(["--broker", &broker.url(), "--poll-interval", "100ms"])
}

/// Launches this many nodes, without waiting for any of them. `make` sets the options of the Redis servers.
pub(crate) fn launched(
    lab: &Lab,
    redis: usize,
    sentinels: usize,
    make: impl Fn(NodeBuilder) -> NodeBuilder,
) -> Result<System> {
    let broker =
        Broker::builder().variable("expected_redis", redis).variable("expected_sentinels", sentinels);
    let broker = lab.broker(broker)?;
    let redis =
        (0..redis).map(|_| make(joining(lab, Kind::Redis, &broker)).launch()).collect::<Result<_>>()?;
    let sentinels =
        (0..sentinels).map(|_| joining(lab, Kind::Sentinel, &broker).launch()).collect::<Result<_>>()?;
    Ok(System { broker, redis, sentinels })
}

/// Launches the nodes, and makes them a system with one bootstrap.
pub(crate) async fn brought_up(
    lab: &Lab,
    redis: usize,
    sentinels: usize,
    make: impl Fn(NodeBuilder) -> NodeBuilder,
) -> Result<System> {
    let system = launched(lab, redis, sentinels, make)?;
    expect_code(&run(lab, &system.broker, &FAST).await?, 0);
    until_healthy(&system).await?;
    Ok(system)
}

fn append_only(node: NodeBuilder) -> NodeBuilder {
    node.config("appendonly yes")
}

/// The index of the Redis server that all Sentinels name as the master.
pub(crate) async fn master(system: &System) -> Result<usize> {
    let masters = system.sentinels.iter().map(async |sentinel| {
        let fields: BTreeMap<String, String> = sentinel.query(&["SENTINEL", "MASTER", "mymaster"]).await?;
        Ok::<_, anyhow::Error>(format!("{}:{}", fields["ip"], fields["port"]))
    });
    let masters: BTreeSet<String> = try_join_all(masters).await?.into_iter().collect();
    ensure!(masters.len() == 1, "the Sentinels name {masters:?}");
    let index = system.redis.iter().position(|node| masters.contains(&node.addr().to_string()));
    index.with_context(|| format!("{masters:?} is none of the servers"))
}

/// Waits until the nodes are one whole system, as the harness sees it. Returns the master's index.
pub(crate) async fn until_healthy(system: &System) -> Result<usize> {
    until_healthy_within(LIMIT, system).await
}

pub(crate) async fn until_healthy_within(limit: Duration, system: &System) -> Result<usize> {
    eventually(limit, async || {
        let master = master(system).await?;
        let wrong = system.wrong("mymaster", master).await;
        ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
        Ok(master)
    })
    .await
}

/// Waits until the Sentinels name a master other than `from`. Returns its index.
pub(crate) async fn until_failed_over(system: &System, from: usize) -> Result<usize> {
    eventually(LIMIT, async || {
        let master = master(system).await?;
        ensure!(master != from, "no failover: the Sentinels name {}", system.redis[from]);
        Ok(master)
    })
    .await
}

/// Checks that a replica's link to its master is up.
pub(crate) async fn expect_linked(replica: &Node) -> Result<()> {
    let info = replica.info("replication").await?;
    let link = info.get("master_link_status").map(String::as_str);
    ensure!(link == Some("up"), "{replica} is not linked: {info:?}");
    Ok(())
}

/// Whether a replica receives its master's data. A server that does not answer receives none.
pub(crate) async fn is_synchronising(replica: &Node) -> bool {
    let info = replica.info("replication").await.unwrap_or_default();
    info.get("master_sync_in_progress").map(String::as_str) == Some("1")
}

/// A server's `replica-priority`. The priority of a server that stands back is 0.
pub(crate) async fn own_priority(node: &Node) -> Result<String> {
    Ok(node.query::<(String, String)>(&["CONFIG", "GET", "replica-priority"]).await?.1)
}

/// Waits until a server has this `replica-priority`.
pub(crate) async fn until_priority(node: &Node, priority: &str) -> Result<()> {
    eventually(LIMIT, async || {
        let own = own_priority(node).await?;
        ensure!(own == priority, "{node} has the priority {own}, and not {priority}:\n{}", node.log());
        Ok(())
    })
    .await
}

/// One of the processes that a round starts, one after the other.
#[derive(Debug, Clone, Copy)]
enum Started {
    Runner,
    Redis,
    Sentinel,
}

/// The order of one round. The same seed gives the same order.
struct Order {
    seed: u64,
    order: Vec<Started>,
}

impl fmt::Display for Order {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "seed {}: {:?}", self.seed, self.order)
    }
}

#[test]
fn six_joins_and_one_bootstrap_make_a_system_in_any_order() {
    let seed = match std::env::var("SEED") {
        Ok(seed) => seed.parse().expect("SEED is a number"),
        Err(_) => RandomState::new().hash_one(0) >> 16,
    };
    tried(format_args!("seed of the orders in which nodes join: SEED={seed}"));
    let rounds: Vec<Order> = (0..if whole_sweep() { 20 } else { 4 })
        .map(|round| {
            use Started::{Redis, Runner, Sentinel};
            let seed = seed + round;
            let mut order = vec![Runner, Redis, Redis, Redis, Sentinel, Sentinel, Sentinel];
            Random::new(seed).shuffle(&mut order);
            Order { seed, order }
        })
        .collect();
    sweep(&rounds, async |lab, round| {
        let broker = lab.broker(Broker::builder().variable("expected_redis", 3))?;
        let (mut redis, mut sentinels, mut runner) = (vec![], vec![], None);
        // In half of the rounds, every node gets the addresses of all Sentinels, whether these run yet or
        // not.
        let ports = (0..3).map(|_| steady_port(Ipv4Addr::LOCALHOST.into())).collect::<Result<Vec<_>>>()?;
        let named: Vec<String> = ports.iter().map(|port| format!("--sentinel=127.0.0.1:{port}")).collect();
        let named = if round.seed.is_multiple_of(2) { named } else { vec![] };
        let joining = |kind| {
            let flags = ["--broker".to_owned(), broker.url(), "--poll-interval=100ms".to_owned()];
            let node = if kind == Kind::Redis { lab.redis() } else { lab.sentinel() };
            node.joining(flags.into_iter().chain(named.iter().cloned()))
        };
        for started in &round.order {
            match started {
                Started::Runner => runner = Some(start(lab, &broker, &FAST)?),
                Started::Redis => redis.push(joining(Kind::Redis).launch()?),
                Started::Sentinel => {
                    sentinels.push(joining(Kind::Sentinel).port(ports[sentinels.len()]).launch()?);
                }
            }
        }
        expect_code(&runner.context("it is in every order")?.wait(LIMIT).await?, 0);
        let system = System { broker, redis, sentinels };
        let master = until_healthy(&system).await?;
        system.replicates(master).await?;
        for node in &system.redis {
            node.until_logged("the system is configured").await?;
        }
        let registered = roster(&system.broker).await?;
        for node in registered.redis.iter().chain(&registered.sentinels) {
            assert!(node.run_id.is_some(), "{node:?}");
        }
        Ok(())
    });
    tried(format_args!("worlds tried: {} orders of six joins and a bootstrap", rounds.len()));
}

#[test]
fn no_confirmed_write_is_lost_while_every_node_is_killed_and_rejoins() {
    scenario(async |lab| {
        // With two servers, the replica that confirms a write is the one that is promoted. No server has
        // anything on its disk.
        let system = brought_up(lab, 2, 3, |node| node).await?;
        let writer = Writer::to(&system).await?;
        let mut masters = BTreeSet::new();
        for node in system.nodes() {
            masters.insert(until_healthy(&system).await?);
            writer.goes_on().await?;
            node.restart().await?;
            masters.insert(until_healthy(&system).await?);
        }
        assert_eq!(masters.len(), 2, "each was the master once");
        for node in &system.redis {
            let log = node.log();
            let held = log.matches("starting held").count();
            assert!(
                held == 1 && log.contains("starting as a replica") && !log.contains("starting as the master"),
                "{log}"
            );
        }
        writer.expect_kept_by(&system.redis[until_healthy(&system).await?]).await
    });
}

#[test]
fn an_old_master_that_rejoins_after_a_failover_is_a_replica() {
    scenario(async |lab| {
        let system = brought_up(lab, 3, 3, append_only).await?;
        let old = until_healthy(&system).await?;
        system.redis[old].command(&["SET", "of-the-old-master", "1"]).await?;
        system.redis[old].kill();
        let new = until_failed_over(&system, old).await?;
        // The old master's file contains no `replicaof`, so the server would start as a master, with data
        // that differs from the data of the others.
        let file = fs::read_to_string(system.redis[old].config_file())?;
        assert!(!file.contains("\nreplicaof"), "{file}");
        system.redis[new].command(&["SET", "of-the-new-master", "1"]).await?;
        system.redis[old].restart().await?;
        system.redis[old].until_logged("starting as a replica of").await?;
        system.replicates(until_healthy(&system).await?).await?;
        let kept: Option<String> = system.redis[old].query(&["GET", "of-the-new-master"]).await?;
        assert!(kept.is_some());
        Ok(())
    });
}

#[test]
fn a_replica_that_no_sentinel_knows_yet_follows_the_next_master() {
    scenario(async |lab| {
        let mut system = brought_up(lab, 2, 3, |node| node).await?;
        let old = until_healthy(&system).await?;
        // The Sentinels learn of the new replica from the master's next `INFO`, up to 10 s from now. The
        // master dies before that.
        let new = joining(lab, Kind::Redis, &system.broker).launch()?;
        new.until_ready().await?;
        eventually(LIMIT, async || expect_linked(&new).await).await?;
        system.redis[old].kill();
        system.redis.push(new);
        until_failed_over(&system, old).await?;
        system.redis[old].restart().await?;
        until_healthy(&system).await?;
        system.replicates(master(&system).await?).await
    });
}

/// All nodes are killed, and started again with the Sentinels in this order.
struct Outage {
    sentinels: [usize; 3],
    wiped: bool,
}

impl Outage {
    fn all() -> Vec<Self> {
        let orders = [[0, 1, 2], [2, 1, 0], [1, 0, 2], [0, 2, 1], [1, 2, 0], [2, 0, 1]];
        let all = orders
            .into_iter()
            .flat_map(|sentinels| [false, true].into_iter().map(move |wiped| Outage { sentinels, wiped }));
        all.step_by(if whole_sweep() { 1 } else { 3 }).collect()
    }
}

impl fmt::Display for Outage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let disk = if self.wiped { "wiped" } else { "kept" };
        write!(f, "Sentinels in the order {:?}, the master's disk {disk}", self.sentinels)
    }
}

#[test]
fn all_nodes_killed_at_once_come_back_as_one_system_with_its_data() {
    let outages = Outage::all();
    sweep(&outages, async |lab, outage| {
        let system = brought_up(lab, 3, 3, append_only).await?;
        let before = until_healthy(&system).await?;
        system.redis[before].command(&["SET", "precious", "1"]).await?;
        system.replicates(before).await?;
        for node in &system.redis {
            until_saved(node).await?;
        }
        for node in system.nodes() {
            node.kill();
        }
        if outage.wiped {
            wipe(&system.redis[before])?;
        }
        // Sentinels and servers start in turn, so that servers wait for Sentinels that are not there yet.
        for (index, sentinel) in outage.sentinels.into_iter().enumerate() {
            system.sentinels[sentinel].relaunch()?;
            system.redis[index].relaunch()?;
        }
        for node in system.nodes() {
            node.until_ready().await?;
        }
        let after = until_healthy(&system).await?;
        if outage.wiped {
            assert_ne!(after, before, "it had nothing left");
        }
        for node in &system.redis {
            let precious: Option<String> = node.query(&["GET", "precious"]).await?;
            ensure!(precious.is_some(), "{node} has lost it");
        }
        system.replicates(after).await
    });
    tried(format_args!("worlds tried: {} outages of all six nodes", outages.len()));
}

#[test]
fn a_master_with_a_replicaof_line_in_its_file_starts_as_a_master() {
    scenario(async |lab| {
        let system = brought_up(lab, 2, 3, append_only).await?;
        let before = until_healthy(&system).await?;
        let node = &system.redis[before];
        node.command(&["SET", "precious", "1"]).await?;
        system.replicates(before).await?;
        for node in system.nodes() {
            node.kill();
        }
        // Such a line stays if the server can't rewrite its file, or if a tool replaces the file. With the
        // server's own port in it, `replicaof no one` would make the server replicate itself.
        let mut file = fs::File::options().append(true).open(node.config_file())?;
        writeln!(file, "replicaof 127.0.0.1 {}", node.addr().port())?;
        for node in system.nodes() {
            node.relaunch()?;
        }
        assert_eq!(until_healthy(&system).await?, before);
        assert!(node.log().contains("starting as the master"), "{}", node.log());
        assert!(!node.log().contains("(null)"), "{}", node.log());
        let info = node.info("replication").await?;
        assert_eq!((&*info["role"], &*info["connected_slaves"]), ("master", "1"));
        assert!(node.query::<Option<String>>(&["GET", "precious"]).await?.is_some());
        system.replicates(before).await
    });
}

#[test]
fn an_empty_system_comes_back_after_all_nodes_were_killed() {
    scenario(async |lab| {
        let system = brought_up(lab, 2, 3, append_only).await?;
        let before = until_healthy(&system).await?;
        for node in system.nodes() {
            node.kill();
        }
        for node in system.nodes() {
            node.relaunch()?;
        }
        assert_eq!(until_healthy(&system).await?, before);
        system.replicates(before).await
    });
}

#[test]
fn a_restart_does_not_empty_a_server_that_was_never_attached() {
    scenario(async |lab| {
        // Two servers with data were held and have registered. The operator chooses one of them.
        let system = launched(lab, 2, 3, append_only)?;
        for node in system.nodes() {
            node.until_logged("registered as").await?;
        }
        for node in &system.redis {
            // A person does this to load data into the server.
            node.command(&["REPLICAOF", "NO", "ONE"]).await?;
            node.command(&["SET", &format!("of-{}", node.addr().port()), "1"]).await?;
        }
        expect_code(&run(lab, &system.broker, &[]).await?, 4);
        let (kept, other) = (&system.redis[0], &system.redis[1]);
        other.kill();
        expect_code(&run(lab, &system.broker, &["--redis", "1"]).await?, 0);
        other.relaunch()?;
        other.until_logged("the Sentinels do not know this node as a member").await?;
        assert_eq!(other.server_pid(), None, "it has started:\n{}", other.log());
        assert_eq!(kept.info("replication").await?["connected_slaves"], "0");
        Ok(())
    });
}

#[test]
fn nodes_that_know_the_sentinels_come_back_without_the_broker() {
    scenario(async |lab| {
        let broker = lab.broker(Broker::builder())?;
        let ports = (0..3).map(|_| steady_port(Ipv4Addr::LOCALHOST.into())).collect::<Result<Vec<_>>>()?;
        // `localhost` may stand for an address of either family (IPv4, IPv6), and the Sentinels listen on
        // only one of them.
        let sentinels: Vec<String> = ports.iter().map(|port| format!("localhost:{port}")).collect();
        let (url, named) = (broker.url(), sentinels.join(","));
        let flags =
            ["--broker", &url, "--group", "mymaster", "--sentinel", &named, "--poll-interval", "100ms"];
        let redis = (0..2).map(|_| lab.redis().joining(flags).launch()).collect::<Result<Vec<_>>>()?;
        let sentinels = ports.iter().map(|&port| lab.sentinel().joining(flags).port(port).launch());
        let sentinels = sentinels.collect::<Result<Vec<_>>>()?;
        expect_code(&run(lab, &broker, &FAST).await?, 0);
        let mut system = System { broker, redis, sentinels };
        until_healthy(&system).await?;
        // A new broker, of which no node has heard, at an address that no node asks.
        system.broker = lab.broker(Broker::builder())?;
        for node in system.nodes() {
            node.restart().await?;
            until_healthy(&system).await?;
        }
        Ok(())
    });
}

/// Waits until the data of a replica's first synchronisation is in its append-only file.
pub(crate) async fn until_saved(node: &Node) -> Result<()> {
    eventually(LIMIT, async || {
        let info = node.info("persistence").await?;
        let is_saved = info["aof_rewrite_in_progress"] == "0" && info["aof_rewrite_scheduled"] == "0";
        ensure!(is_saved, "{node} still writes its append-only file: {info:?}");
        Ok(())
    })
    .await
}

/// Removes a server's data.
pub(crate) fn wipe(node: &Node) -> Result<()> {
    if redis_version()? < (7, 0) {
        return Ok(fs::remove_file(node.dir().join("appendonly.aof"))?);
    }
    Ok(fs::remove_dir_all(node.dir().join("appendonlydir"))?)
}

#[test]
fn a_master_that_can_not_reach_the_sentinels_waits() {
    scenario(async |lab| {
        // The nodes behind `join` reach the Sentinels through proxies. The Sentinels reach every node.
        let ledger = Ledger::new();
        let broker = lab.broker(Broker::builder())?;
        let sentinels = try_join_all((0..3).map(|_| lab.sentinel().behind(&ledger).start())).await?;
        for sentinel in &sentinels {
            broker.register(sentinel).await?;
        }
        let redis =
            (0..2).map(|_| joining(lab, Kind::Redis, &broker).launch()).collect::<Result<Vec<_>>>()?;
        expect_code(&run(lab, &broker, &FAST).await?, 0);
        let system = System { broker, redis, sentinels };
        let old = until_healthy(&system).await?;
        system.redis[old].command(&["SET", "precious", "1"]).await?;
        system.replicates(old).await?;

        for sentinel in &system.sentinels {
            sentinel.proxy().swallow();
        }
        system.redis[old].relaunch()?;
        system.redis[old].until_logged("the broker has a record of a system").await?;
        until_failed_over(&system, old).await?;
        assert_eq!(system.redis[old].server_pid(), None, "it has started:\n{}", system.redis[old].log());

        // The answer of one of three Sentinels is not enough.
        for sentinel in &system.sentinels[1..] {
            sentinel.kill();
        }
        system.sentinels[0].proxy().heal();
        system.redis[old].until_logged("no majority of the 3 Sentinels reports the same master").await?;
        assert_eq!(system.redis[old].server_pid(), None, "it has started:\n{}", system.redis[old].log());

        // `join` learns of the second Sentinel from the first.
        system.sentinels[1].restart().await?;
        system.redis[old].until_ready().await?;
        system.redis[old].until_logged("starting as a replica of").await?;
        system.sentinels[2].restart().await?;
        until_healthy(&system).await?;
        let precious: Option<String> = system.redis[old].query(&["GET", "precious"]).await?;
        assert!(precious.is_some());
        Ok(())
    });
}

#[test]
fn a_master_parted_from_the_sentinels_does_not_start_as_a_second_one() {
    scenario(async |lab| {
        // In this test each node is on a separate machine. Not every machine allows a test to create such
        // machines.
        let mut network = match Network::new(lab).await {
            Ok(network) => network,
            Err(error) => {
                tried(format_args!("not tried here: a partition between network namespaces: {error:#}"));
                return Ok(());
            }
        };
        let (alone, others) = (network.machine(lab).await?, network.machine(lab).await?);
        let broker = lab.broker(Broker::builder().listen((network.addr(), 0).into()))?;
        let redis = |machine| joining(lab, Kind::Redis, &broker).on(machine, 6379).launch();
        let old = redis(&alone)?;
        old.until_logged("registered as").await?;
        let sentinels = [26379, 26380, 26381]
            .map(|port| joining(lab, Kind::Sentinel, &broker).on(&others, port).launch());
        let redis = vec![old, redis(&others)?];
        let sentinels = sentinels.into_iter().collect::<Result<_>>()?;
        expect_code(&run(lab, &broker, &FAST).await?, 0);
        let system = System { broker, redis, sentinels };
        ensure!(until_healthy(&system).await? == 0, "the first that registered is the master");
        let old = &system.redis[0];
        old.command(&["SET", "precious", "1"]).await?;
        system.replicates(0).await?;

        // The old master still reaches the broker, which has a record of the system. It does not reach the
        // Sentinels.
        network.part(&[&alone, &others]).await?;
        old.relaunch()?;
        old.until_logged("the broker has a record of a system").await?;
        until_failed_over(&system, 0).await?;
        assert_eq!(old.server_pid(), None, "it has started:\n{}", old.log());
        system.redis[1].command(&["SET", "of-the-new-master", "1"]).await?;

        // The old master reaches neither the broker nor the Sentinels.
        network.unplug(&alone).await?;
        old.relaunch()?;
        old.until_logged("hint: check --broker").await?;
        assert_eq!(old.server_pid(), None, "it has started:\n{}", old.log());

        network.plug_in(&alone).await?;
        network.heal(&[&alone, &others]).await?;
        old.until_logged("starting as a replica of").await?;
        old.until_ready().await?;
        assert_eq!(until_healthy(&system).await?, 1);
        for key in ["precious", "of-the-new-master"] {
            assert!(old.query::<Option<String>>(&["GET", key]).await?.is_some(), "{key} is lost");
        }
        Ok(())
    });
}

#[test]
fn a_failed_run_does_not_erase_the_last_verified_system() {
    scenario(async |lab| {
        let system = brought_up(lab, 2, 3, |node| node).await?;
        let master = until_healthy(&system).await?;
        system.redis[1 - master].kill();
        expect_code(&run(lab, &system.broker, &["--timeout", "1s"]).await?, 3);
        let outcome = roster(&system.broker).await?.outcome.context("it was told")?;
        assert!(!outcome.verified, "{outcome:?}");
        let named = outcome.master.context("the last master")?.to_string();
        assert_eq!(named, system.redis[master].addr().to_string());

        // A node must not start alone because the Sentinels have lost their state.
        for sentinel in &system.sentinels {
            sentinel.command(&["SENTINEL", "REMOVE", "mymaster"]).await?;
        }
        let url = system.broker.url();
        let join = ["join", "redis", "--broker", &url, "--dry-run", "--", "redis-server", "--port", "6399"];
        let ran = lab.runner(join).run(LIMIT).await?;
        expect_code(&ran, 0);
        assert!(ran.stdout.contains("would wait: the broker has a record of a system"), "{ran}");
        assert!(ran.stdout.contains(&named), "{ran}");
        Ok(())
    });
}

#[test]
fn a_sentinel_that_lost_its_file_monitors_again_as_its_peers_do() {
    scenario(async |lab| {
        let system = brought_up(lab, 2, 3, |node| node).await?;
        let master = until_healthy(&system).await?;
        let sentinel = &system.sentinels[0];
        let id: String = sentinel.query(&["SENTINEL", "MYID"]).await?;
        sentinel.kill();
        fs::remove_file(sentinel.config_file())?;
        sentinel.restart().await?;
        let fields: BTreeMap<String, String> = sentinel.query(&["SENTINEL", "MASTER", "mymaster"]).await?;
        assert_eq!(fields["port"], system.redis[master].addr().port().to_string());
        assert_eq!((&*fields["quorum"], &*fields["down-after-milliseconds"]), ("2", "2000"));
        assert_eq!(fields["failover-timeout"], "4000");
        // With another id, the Sentinel may hear a late hello of its former self, and list itself as another
        // Sentinel.
        assert_eq!(sentinel.query::<String>(&["SENTINEL", "MYID"]).await?, id);
        // With its file, the Sentinel has its id again, and asks no other node.
        sentinel.restart().await?;
        assert_eq!(sentinel.query::<String>(&["SENTINEL", "MYID"]).await?, id);
        Ok(())
    });
}

#[test]
fn a_server_with_foreign_data_is_refused_and_keeps_its_data() {
    scenario(async |lab| {
        let system = brought_up(lab, 2, 3, |node| node).await?;
        until_healthy(&system).await?;
        let stranger = append_only(lab.redis()).start().await?;
        stranger.command(&["SET", "precious", "1"]).await?;
        stranger.kill();
        let (url, file) = (system.broker.url(), stranger.config_file());
        let join = |flags: &[&str]| {
            let runner = lab.runner(["join", "redis", "--broker", &url, "--patience", "300ms"]).args(flags);
            runner.args(["--", "redis-server"]).args([&file])
        };
        let ran = join(&[]).run(LIMIT).await?;
        expect_code(&ran, 3);
        assert!(ran.stderr.contains("may not be the data of") && ran.stderr.contains("hint: "), "{ran}");
        let ran = join(&["--discard-data", "--dry-run"]).run(LIMIT).await?;
        expect_code(&ran, 0);
        assert!(ran.stdout.contains("--replicaof 127.0.0.1"), "{ran}");
        stranger.restart().await?;
        assert!(stranger.query::<Option<String>>(&["GET", "precious"]).await?.is_some());
        Ok(())
    });
}

/// Checks that no password is on a command line or in a log.
fn expect_no_secret(system: &System) -> Result<()> {
    for node in system.nodes() {
        for pid in [Some(node.pid()), node.server_pid()].into_iter().flatten() {
            let line = fs::read_to_string(format!("/proc/{pid}/cmdline"))?;
            assert!(!line.contains("s3cret"), "{line}");
        }
        assert!(!node.log().contains("s3cret"), "{}", node.log());
    }
    Ok(())
}

#[test]
fn passwords_are_on_no_command_line() {
    scenario(async |lab| {
        let password = "s3cret#word";
        let file = lab.dir().join("password");
        fs::write(&file, password)?;
        let flags = ["--redis-password-file", file.to_str().context("UTF-8")?];
        let broker = lab.broker(Broker::builder())?;
        let url = broker.url();
        let node = |kind| {
            let flags = [&["--broker", &url], &flags[..]].concat();
            let node = match kind {
                Kind::Redis => lab.redis().password(password),
                Kind::Sentinel => lab.sentinel(),
            };
            node.joining(flags).launch()
        };
        let redis = vec![node(Kind::Redis)?, node(Kind::Redis)?];
        let sentinels = vec![node(Kind::Sentinel)?, node(Kind::Sentinel)?, node(Kind::Sentinel)?];
        expect_code(&run(lab, &broker, &[&FAST[..], &flags].concat()).await?, 0);
        let system = System { broker, redis, sentinels };
        let old = until_healthy(&system).await?;
        // The server, restarted as a replica, logs in to its master. A Sentinel without its file logs in too.
        system.redis[old].restart().await?;
        system.sentinels[0].kill();
        fs::remove_file(system.sentinels[0].config_file())?;
        system.sentinels[0].restart().await?;
        system.replicates(master(&system).await?).await?;
        expect_no_secret(&system)
    });
}

/// The flags with which nodes and runs use TLS, and log in as the ACL users `ops` and `replica`.
fn access_with_tls(lab: &Lab, tls: &Tls, ops: &str, replica: &str) -> Result<Vec<String>> {
    let file = |name: &str, secret: &str| -> Result<String> {
        let path = lab.dir().join(name);
        fs::write(&path, secret)?;
        Ok(path.display().to_string())
    };
    let (ops_file, replica_file) = (file("ops", ops)?, file("replica", replica)?);
    let [ca, cert, key] = [&tls.ca, &tls.cert, &tls.key].map(|path| path.display().to_string());
    let flags: Vec<&str> = [
        ["--tls-ca", &ca],
        ["--tls-cert", &cert],
        ["--tls-key", &key],
        ["--redis-username", "ops"],
        ["--redis-password-file", &ops_file],
        ["--replication-username", "replica"],
        ["--replication-password-file", &replica_file],
        ["--sentinel-username", "ops"],
        ["--sentinel-password-file", &ops_file],
    ]
    .concat();
    Ok(["--tls"].into_iter().chain(flags).map(str::to_owned).collect())
}

/// Kills a Sentinel, and removes from its file what the Sentinel and `join` have written there.
fn kill_and_restore_first_file(sentinel: &Node) -> Result<()> {
    sentinel.kill();
    let file = fs::read_to_string(sentinel.config_file())?;
    let made_with = file.lines().filter(|line| !line.starts_with("sentinel "));
    Ok(fs::write(sentinel.config_file(), made_with.collect::<Vec<_>>().join("\n"))?)
}

#[test]
fn nodes_with_tls_and_only_acl_users_join_and_rejoin() {
    scenario(async |lab| {
        let tls = Tls::new(lab.dir())?;
        let [admin, ops, replica, sentinel] =
            ["adm1n-s3cret", "0ps-s3cret", "repl1ca-s3cret", "sent1nel-s3cret"];
        let access = access_with_tls(lab, &tls, ops, replica)?;
        let access: Vec<&str> = access.iter().map(String::as_str).collect();

        let broker = lab.broker(Broker::builder())?;
        let url = broker.url();
        let flags = [&["--broker", &url, "--poll-interval", "100ms"], &access[..]].concat();
        let redis = || {
            let node = lab.redis().tls(&tls).password(admin);
            let node = node.config(format!("user ops on >{ops} resetchannels {}", redis_rights()));
            let node = node.config(format!("user replica on >{replica} {REPLICATION_RIGHTS}"));
            node.joining(flags.iter().copied()).launch()
        };
        let sentinel = || {
            let node = lab.sentinel().tls(&tls).password(sentinel);
            let node = node.config(format!("user ops on >{ops} resetchannels {SENTINEL_RIGHTS}"));
            node.joining(flags.iter().copied()).launch()
        };
        let redis = vec![redis()?, redis()?];
        let sentinels = vec![sentinel()?, sentinel()?, sentinel()?];
        expect_code(&run(lab, &broker, &[&FAST[..], &access].concat()).await?, 0);
        let system = System { broker, redis, sentinels };
        let old = until_healthy(&system).await?;
        system.redis[old].kill();
        until_failed_over(&system, old).await?;
        system.redis[old].restart().await?;
        system.redis[old].until_logged("starting as a replica of").await?;
        until_healthy(&system).await?;

        let sentinel = &system.sentinels[0];
        kill_and_restore_first_file(sentinel)?;
        sentinel.restart().await?;
        sentinel.until_logged("starting to monitor").await?;
        system.replicates(until_healthy(&system).await?).await?;
        expect_no_secret(&system)
    });
}

/// A node, and the line through which the other nodes reach it: at another port than the node listens on,
/// like a container behind its host.
type Reached = (Node, SlowLine);

async fn reached_elsewhere(lab: &Lab, kind: Kind, broker: &Broker) -> Result<Reached> {
    let listens = SocketAddr::new(Ipv4Addr::LOCALHOST.into(), steady_port(Ipv4Addr::LOCALHOST.into())?);
    let line = SlowLine::start(listens, Duration::ZERO).await?;
    let node = joining(lab, kind, broker).join_flags(["--announce".to_owned(), line.addr().to_string()]);
    Ok((node.port(listens.port()).launch()?, line))
}

fn announced(nodes: &[Reached]) -> BTreeSet<String> {
    nodes.iter().map(|(_, line)| line.addr().to_string()).collect()
}

/// The addresses of the nodes that a Sentinel lists as the answer to a command.
async fn listed(sentinel: &Node, command: &[&str]) -> Result<BTreeSet<String>> {
    let known: Vec<BTreeMap<String, String>> = sentinel.query(command).await?;
    let mut addresses = BTreeSet::new();
    for fields in known {
        ensure!(!fields["flags"].contains("down"), "{sentinel}: {fields:?}");
        addresses.insert(format!("{}:{}", fields["ip"], fields["port"]));
    }
    Ok(addresses)
}

/// Checks that every node names the other nodes only by their announced addresses. Returns the master's.
async fn expect_known_as_announced(redis: &[Reached], sentinels: &[Reached]) -> Result<String> {
    for (sentinel, line) in sentinels {
        let mut named = listed(sentinel, &["SENTINEL", "MASTERS"]).await?;
        named.extend(listed(sentinel, &["SENTINEL", "REPLICAS", "mymaster"]).await?);
        ensure!(named == announced(redis), "{sentinel} names {named:?}");
        let known = listed(sentinel, &["SENTINEL", "SENTINELS", "mymaster"]).await?;
        let mut others = announced(sentinels);
        others.remove(&line.addr().to_string());
        ensure!(known == others, "{sentinel} lists the Sentinels {known:?}");
    }
    let mut masters = vec![];
    for (node, line) in redis {
        let info = node.info("replication").await?;
        if info["role"] == "master" {
            masters.push(line.addr().to_string());
            continue;
        }
        let follows = format!("{}:{}", info["master_host"], info["master_port"]);
        ensure!(announced(redis).contains(&follows), "{node} follows {follows}");
        ensure!(info["master_link_status"] == "up", "{node}: {info:?}");
    }
    ensure!(masters.len() == 1, "the masters are {masters:?}");
    Ok(masters.remove(0))
}

#[test]
fn nodes_that_are_reached_at_another_port_announce_that_port() {
    scenario(async |lab| {
        let broker = lab.broker(Broker::builder())?;
        let reached = async |kind| reached_elsewhere(lab, kind, &broker).await;
        let redis = [reached(Kind::Redis).await?, reached(Kind::Redis).await?];
        let sentinels =
            [reached(Kind::Sentinel).await?, reached(Kind::Sentinel).await?, reached(Kind::Sentinel).await?];
        expect_code(&run(lab, &broker, &FAST).await?, 0);
        let registered = roster(&broker).await?;
        for (nodes, registrations) in [(&redis[..], &registered.redis), (&sentinels, &registered.sentinels)] {
            assert_eq!(announced(nodes), registrations.iter().map(|node| node.addr.to_string()).collect());
        }
        // The addresses are the same after a restart and a promotion.
        let until_known =
            async || eventually(LIMIT, async || expect_known_as_announced(&redis, &sentinels).await).await;
        let old = until_known().await?;
        let (old_master, _) =
            redis.iter().find(|(_, line)| line.addr().to_string() == old).context("one of them")?;
        old_master.kill();
        let (sentinel, _) = &sentinels[0];
        eventually(LIMIT, async || {
            let (ip, port): (String, u16) =
                sentinel.query(&["SENTINEL", "GET-MASTER-ADDR-BY-NAME", "mymaster"]).await?;
            ensure!(format!("{ip}:{port}") != old, "no failover: {sentinel} names {old}");
            Ok(())
        })
        .await?;
        old_master.restart().await?;
        old_master.until_logged("starting as a replica of").await?;
        assert_ne!(until_known().await?, old);
        Ok(())
    });
}

/// A shell under the server's name, because `join` starts no other program.
fn server_that_is_a_shell(lab: &Lab) -> Result<PathBuf> {
    let path = lab.dir().join("redis-server");
    match std::os::unix::fs::symlink("/bin/sh", &path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error.into()),
        _ => Ok(path),
    }
}

/// `join redis` with a shell in place of the server, and with a broker that has no registrations.
fn shell(lab: &Lab, broker: &Broker, script: &str) -> Result<Running> {
    let shell = server_that_is_a_shell(lab)?;
    lab.runner(["join", "redis", "--broker", &broker.url(), "--"]).args([&shell]).args(["-c", script]).start()
}

#[test]
fn signals_reach_the_server_and_join_ends_with_its_exit_code() {
    scenario(async |lab| {
        let broker = lab.broker(Broker::builder())?;
        let waiting = "echo ready; while :; do sleep 0.02; done";
        let cases = [
            (Signal::HUP, format!("trap 'echo got; exit 7' HUP; {waiting}"), 7),
            (Signal::USR1, format!("trap 'echo got; exit 8' USR1; {waiting}"), 8),
            (Signal::INT, format!("trap 'echo got; exit 0' INT; {waiting}"), 0),
            (Signal::TERM, format!("trap 'echo got; kill -KILL $$' TERM; {waiting}"), 137),
        ];
        for (signal, script, code) in cases {
            let mut running = shell(lab, &broker, &script)?;
            running.until_stdout("ready", LIMIT).await?;
            running.signal(signal)?;
            let ran = running.wait(LIMIT).await?;
            expect_code(&ran, code);
            assert_eq!(ran.stdout, "ready\ngot\n", "join adds nothing: {ran}");
        }
        let mut running = shell(lab, &broker, waiting)?;
        running.until_stdout("ready", LIMIT).await?;
        running.signal(Signal::TERM)?;
        expect_code(&running.wait(LIMIT).await?, 143);
        let ran = shell(lab, &broker, "exit 5")?.wait(LIMIT).await?;
        expect_code(&ran, 5);
        Ok(())
    });
}

#[test]
fn a_server_saves_and_ends_when_join_gets_a_sigterm() {
    scenario(async |lab| {
        let broker = lab.broker(Broker::builder())?;
        let node = joining(lab, Kind::Redis, &broker).config("save 3600 1").launch()?;
        node.until_ready().await?;
        node.command(&["REPLICAOF", "NO", "ONE"]).await?;
        node.command(&["SET", "a", "1"]).await?;
        let server = node.server_pid().context("it is ready")?;
        let join = rustix_pid(node.pid())?;
        rustix::process::kill_process(join, Signal::TERM)?;
        until_gone(server).await?;
        assert!(node.dir().join("dump.rdb").exists(), "{}", node.log());
        node.relaunch()?;
        node.until_logged("the server has data on its disk").await
    });
}

#[test]
fn a_server_that_writes_its_first_append_only_file_ends_after_that() {
    scenario(async |lab| {
        let broker = lab.broker(Broker::builder())?;
        let node = joining(lab, Kind::Redis, &broker).join_flags(["--handover", "0s"]).launch()?;
        node.until_ready().await?;
        node.command(&["REPLICAOF", "NO", "ONE"]).await?;
        let fill = "for i = 1, 100 do redis.call('SET', i, i) end";
        node.command(&["EVAL", fill, "0"]).await?;
        // Two seconds for all keys.
        node.command(&["CONFIG", "SET", "rdb-key-save-delay", "20000"]).await?;
        node.command(&["CONFIG", "SET", "appendonly", "yes"]).await?;
        node.signal(Signal::TERM)?;
        node.until_ended(LIMIT).await?;
        assert!(node.log().contains("Writing initial AOF, can't exit"), "{}", node.log());
        Ok(())
    });
}

#[test]
fn the_server_does_not_outlive_a_join_that_is_killed() {
    scenario(async |lab| {
        let broker = lab.broker(Broker::builder())?;
        let node = joining(lab, Kind::Redis, &broker).launch()?;
        node.until_ready().await?;
        let server = node.server_pid().context("it is ready")?;
        rustix::process::kill_process(rustix_pid(node.pid())?, Signal::KILL)?;
        until_gone(server).await
    });
}

fn rustix_pid(pid: u32) -> Result<rustix::process::Pid> {
    rustix::process::Pid::from_raw(pid.try_into()?).context("a process id is not 0")
}

async fn until_gone(pid: u32) -> Result<()> {
    eventually(LIMIT, async || {
        ensure!(!is_running(pid), "process {pid} is still there");
        Ok(())
    })
    .await
}

#[test]
fn join_stops_waiting_at_a_signal_or_when_its_patience_ends() {
    scenario(async |lab| {
        // No process listens on this port, which a broker had.
        let url = lab.broker(Broker::builder())?.url();
        let shell = server_that_is_a_shell(lab)?;
        let join = |flags: &[&str]| {
            let runner = lab.runner(["join", "redis", "--broker", &url]).args(flags);
            runner.args(["--"]).args([&shell]).args(["-c", "echo started"])
        };
        for (signal, code) in [(Signal::TERM, 143), (Signal::INT, 130)] {
            let mut running = join(&[]).start()?;
            until_stderr(&mut running, "waiting: ").await?;
            // Redis also ignores this signal.
            running.signal(Signal::HUP)?;
            running.signal(signal)?;
            let ran = running.wait(LIMIT).await?;
            expect_code(&ran, code);
            assert_eq!(ran.stdout, "", "{ran}");
        }
        let ran = join(&["--patience", "300ms", "--poll-interval", "20ms"]).run(LIMIT).await?;
        expect_code(&ran, 3);
        assert_eq!(ran.stdout, "", "{ran}");
        assert_eq!(ran.stderr.matches("waiting: ").count(), 1, "once a change, not once a look: {ran}");
        assert!(ran.stderr.contains("hint: check --broker"), "{ran}");
        Ok(())
    });
}

#[test]
fn join_as_process_1_reaps_orphans() {
    // Not every machine allows a test to start a process 1 in a new namespace.
    let unshare = ["--user", "--map-root-user", "--pid", "--fork", "--mount-proc"];
    let allowed = std::process::Command::new("unshare").args(unshare).arg("true").status();
    if !allowed.is_ok_and(|status| status.success()) {
        tried("not tried here: join as process 1 (`unshare --pid` is not allowed)");
        return;
    }
    scenario(async |lab| {
        let broker = lab.broker(Broker::builder())?;
        // The inner shell ends, and leaves its child to process 1, which is `join`. The child's entry in
        // /proc is gone once the child has ended and `join` has reaped it.
        let script = "sh -c 'sleep 0.05 & echo $! > orphan'; while [ -e /proc/$(cat orphan) ]; do sleep \
                      0.01; done; tr '\\0' ' ' < /proc/1/cmdline; exit 9";
        let mut command = tokio::process::Command::new("unshare");
        command.args(unshare).arg(runner_program());
        command.args(["join", "redis", "--broker", &broker.url(), "--"]);
        command.arg(server_that_is_a_shell(lab)?).args(["-c", script]);
        command.current_dir(lab.dir()).env_remove("SENTINELS");
        let mut process = lab.spawn("unshare", command)?;
        let status = process.wait(Duration::from_secs(20)).await?;
        ensure!(status.code() == Some(9), "{status}: {}", process.output());
        assert!(process.stdout().contains("join redis"), "{}", process.output());
        Ok(())
    });
}

#[test]
fn a_server_runs_while_the_broker_refuses_its_registration() {
    scenario(async |lab| {
        let broker = lab.broker(Broker::builder())?;
        let node = joining(lab, Kind::Redis, &broker).launch()?;
        node.until_ready().await?;
        node.until_logged("registered as").await?;
        // This broker allows one registration of a kind in a group.
        let full = lab.broker(
            Broker::builder()
                .variable("max_registrations", 1)
                .variable("expected_redis", 1)
                .variable("expected_sentinels", 1),
        )?;
        full.register(&node).await?;
        let late = joining(lab, Kind::Redis, &full).launch()?;
        late.until_ready().await?;
        late.until_logged("not registered yet").await?;
        assert_eq!(late.query::<String>(&["PING"]).await?, "PONG");
        // The node registers as soon as there is room.
        let forgotten = full.delete(format!("/redis/{}", node.addr())).send().await?;
        ensure!(forgotten.status.is_success(), "{forgotten}");
        late.until_logged("registered as").await
    });
}
