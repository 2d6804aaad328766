//! Verified means seen to work: one test for each way in which a system seems to work, and does not.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use broker_fn::api::Kind;
use e2e::{
    Broker, HeldStream, Lab, Node, NodeBuilder, Ran, System, eventually, redis_version, runner_program,
    scenario, steady_port,
};
use futures::future::try_join_all;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use crate::access::{
    OPS, PEER_RIGHTS, REDIS_RIGHTS, REPLICATION_RIGHTS, SENTINEL_RIGHTS, redis_rights, watcher_rights,
};
use crate::failover::standing;
use crate::join::until_healthy;
use crate::output::document;
use crate::support::{
    LIMIT, SOON, expect_code, expect_healthy, expect_refused, fail_over, fingerprint, run, save, start,
    sweep, tried, until_stderr,
};

/// Long enough for a run to see that a fault does not pass.
const A_WHILE: [&str; 2] = ["--timeout", "2s"];

/// Registers an address, which may differ from the node's address.
async fn register_at(broker: &Broker, kind: Kind, at: SocketAddr) -> Result<()> {
    let body = json!({"host": at.ip(), "port": at.port()});
    let reply = broker.post(format!("/{kind}")).json(&body).send().await?;
    ensure!(reply.status.is_success(), "{reply}");
    Ok(())
}

async fn registered(system: System) -> Result<System> {
    system.register_all().await?;
    Ok(system)
}

/// Two Redis servers and three Sentinels, registered. `redis` and `sentinel` set their options.
async fn system_of(
    lab: &Lab,
    redis: impl Fn(usize, NodeBuilder) -> NodeBuilder,
    sentinel: impl Fn(usize, NodeBuilder) -> NodeBuilder,
) -> Result<System> {
    registered(System {
        broker: lab.broker(Broker::builder())?,
        redis: try_join_all((0..2).map(|index| redis(index, lab.redis()).start())).await?,
        sentinels: try_join_all((0..3).map(|index| sentinel(index, lab.sentinel()).start())).await?,
    })
    .await
}

fn plain(_: usize, node: NodeBuilder) -> NodeBuilder {
    node
}

/// Checks that the run has ended with "not verified", and has printed all of these texts and a hint.
#[track_caller]
fn expect_not_verified(ran: &Ran, says: &[&str]) {
    expect_code(ran, 6);
    for text in says {
        assert!(ran.stderr.contains(text), "does not say `{text}`: {ran}");
    }
    assert!(ran.stderr.contains("hint: "), "without a hint: {ran}");
}

async fn looks(lab: &Lab, broker: &Broker, command: &str, flags: &[&str]) -> Result<Ran> {
    let url = broker.url();
    lab.runner([command, "--broker", &url].into_iter().chain(flags.iter().copied())).run(LIMIT).await
}

// The stream.

struct Round(usize);

impl fmt::Display for Round {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "round {}", self.0)
    }
}

#[test]
fn a_write_right_after_the_verification_outlives_the_master() {
    let rounds: Vec<Round> = (1..=30).map(Round).collect();
    sweep(&rounds, async |lab, _| {
        let system = standing(lab, 3).await?;
        let master = &system.redis[0];
        master.command(&["SET", "acknowledged", "1"]).await?;
        master.kill();
        for replica in &system.redis[1..] {
            // A write that is on its way arrives before the link breaks.
            eventually(LIMIT, async || {
                let info = replica.info("replication").await?;
                ensure!(info["master_link_status"] != "up", "{replica} still has a link: {info:?}");
                Ok(())
            })
            .await?;
            let value: Option<String> = replica.query(&["GET", "acknowledged"]).await?;
            ensure!(value.is_some(), "{replica} lacks an acknowledged write");
        }
        Ok(())
    });
}

#[test]
fn a_system_whose_stream_is_held_back_is_not_verified() {
    scenario(async |lab| {
        // The replicas reach the master through a line that lets them synchronise, and holds the stream back.
        let line = HeldStream::start().await?;
        let announce = |index: usize, node: NodeBuilder| match index {
            0 => node
                .config(format!("replica-announce-ip {}", line.addr().ip()))
                .config(format!("replica-announce-port {}", line.addr().port())),
            _ => node,
        };
        let system = System {
            broker: lab.broker(Broker::builder())?,
            redis: try_join_all((0..2).map(|index| announce(index, lab.redis()).start())).await?,
            sentinels: try_join_all((0..3).map(|_| lab.sentinel().start())).await?,
        };
        let replica = system.redis[1].addr().to_string();
        line.lead_to(system.redis[0].addr());
        register_at(&system.broker, Kind::Redis, line.addr()).await?;
        for node in system.nodes().skip(1) {
            system.broker.register(node).await?;
        }
        let ran = run(lab, &system.broker, &A_WHILE).await?;
        expect_not_verified(&ran, &[&replica, "the master's stream does not reach it"]);
        let info = system.redis[1].info("replication").await?;
        assert_eq!(info["master_link_status"], "up", "it looks as if all were well");
        for command in ["verify", "status"] {
            let ran = looks(lab, &system.broker, command, &[]).await?;
            expect_code(&ran, 6);
            assert!(ran.to_string().contains("the master's stream does not reach it"), "{ran}");
        }
        line.release();
        expect_code(&run(lab, &system.broker, &[]).await?, 0);
        expect_code(&looks(lab, &system.broker, "verify", &[]).await?, 0);
        Ok(())
    });
}

#[test]
fn writes_that_are_paused_are_named() {
    scenario(async |lab| {
        let system = standing(lab, 2).await?;
        let master = &system.redis[0];
        let pause = if redis_version()? >= (6, 2) { &["WRITE"][..] } else { &[] };
        master.command(&[&["CLIENT", "PAUSE", "20000"], pause].concat()).await?;
        let ran = looks(lab, &system.broker, "verify", &[]).await?;
        expect_code(&ran, 6);
        assert!(
            ran.stderr.contains("writes are paused on it") && ran.stderr.contains("CLIENT UNPAUSE"),
            "{ran}"
        );
        master.command(&["CLIENT", "UNPAUSE"]).await?;
        expect_code(&looks(lab, &system.broker, "verify", &[]).await?, 0);
        Ok(())
    });
}

// Every node reaches every other node.

#[test]
fn sentinels_that_lack_a_login_for_each_other_are_named() {
    scenario(async |lab| {
        for default in [&["off"][..], &["resetpass", "nopass", "-@all", "+ping", "+info"]] {
            let system = lab.system(2, 3).await?;
            for sentinel in &system.sentinels {
                let ops = format!(">{OPS}");
                sentinel.command(&["ACL", "SETUSER", "ops", "on", &ops, "allchannels", "+@all"]).await?;
                sentinel.command(&[&["ACL", "SETUSER", "default"], default].concat()).await?;
            }
            let system = registered(system).await?;
            let flags = [&A_WHILE[..], &["--sentinel-username", "ops", "--sentinel-password", OPS]].concat();
            let ran = run(lab, &system.broker, &flags).await?;
            let one = system.sentinels[0].addr().to_string();
            expect_not_verified(&ran, &[&one, "sentinel-user"]);
        }
        Ok(())
    });
}

#[test]
fn sentinels_that_announce_where_nobody_listens_are_named() {
    scenario(async |lab| {
        for (wrong, line) in [
            (vec![1], "sentinel announce-ip 127.0.0.9"),
            (vec![0, 1, 2], "sentinel announce-ip 127.0.0.9"),
            (vec![2], "sentinel announce-port 1"),
        ] {
            let misled = |index: usize, node: NodeBuilder| {
                if wrong.contains(&index) { node.config(line) } else { node }
            };
            let system = system_of(lab, plain, misled).await?;
            let ran = run(lab, &system.broker, &A_WHILE).await?;
            for &index in &wrong {
                let registered = system.sentinels[index].addr();
                let announced = match line.strip_prefix("sentinel announce-port ") {
                    Some(port) => format!("127.0.0.1:{port}"),
                    None => format!("127.0.0.9:{}", registered.port()),
                };
                expect_not_verified(&ran, &[&registered.to_string(), &announced, "announce-ip"]);
            }
        }
        Ok(())
    });
}

#[test]
fn a_replica_that_announces_where_nobody_listens_is_named() {
    scenario(async |lab| {
        let misled = |index: usize, node: NodeBuilder| match index {
            1 => node.config("replica-announce-ip 127.0.0.9"),
            _ => node,
        };
        let system = system_of(lab, misled, plain).await?;
        let ran = run(lab, &system.broker, &A_WHILE).await?;
        let replica = system.redis[1].addr();
        let announced = format!("127.0.0.9:{}", replica.port());
        expect_not_verified(&ran, &[&replica.to_string(), &announced, "replica-announce-ip"]);
        Ok(())
    });
}

#[test]
fn a_replica_that_the_master_sees_elsewhere_is_named() {
    scenario(async |lab| {
        if redis_version()? < (7, 0) {
            tried(
                "not tried here: a replica that the master sees elsewhere, by `bind-source-addr`, which Redis has since 7.0",
            );
            return Ok(());
        }
        // The replica listens on one address, and its connections come from another address.
        let elsewhere = |index: usize, node: NodeBuilder| match index {
            1 => node.host(Ipv4Addr::new(127, 0, 0, 2)).from(Ipv4Addr::new(127, 0, 0, 3)),
            _ => node.everywhere().config("protected-mode no"),
        };
        let system = system_of(lab, elsewhere, plain).await?;
        let replica = system.redis[1].addr();
        let seen_at = SocketAddr::from(([127, 0, 0, 3], replica.port()));
        for flags in [&A_WHILE, &["--timeout", "1s"]] {
            let ran = run(lab, &system.broker, flags).await?;
            expect_not_verified(
                &ran,
                &[&replica.to_string(), &seen_at.to_string(), "CONFIG SET replica-announce-ip 127.0.0.2"],
            );
        }
        for sentinel in &system.sentinels {
            assert!(!sentinel.log().contains("+reset-master"), "{}", sentinel.log());
        }
        Ok(())
    });
}

// The servers of another system.

/// A system of servers that another system has, and of this many new Sentinels.
async fn with_other_sentinels(lab: &Lab, redis: Vec<Node>, sentinels: usize) -> Result<System> {
    let broker = lab.broker(Broker::builder())?;
    let sentinels = try_join_all((0..sentinels).map(|_| lab.sentinel().start())).await?;
    registered(System { broker, redis, sentinels }).await
}

#[test]
fn servers_that_another_systems_sentinels_watch_are_refused() {
    scenario(async |lab| {
        let first = standing(lab, 2).await?;
        let System { redis, sentinels, .. } = first;
        let other = with_other_sentinels(lab, redis, 3).await?;
        let before = fingerprint(&other).await?;
        let ran = run(lab, &other.broker, &[]).await?;
        expect_code(&ran, 4);
        for text in [&other.redis[0].addr().to_string(), "monitored by 3 Sentinels", "at 127.0.0.1"] {
            assert!(ran.stderr.contains(text), "does not say `{text}`: {ran}");
        }
        assert_eq!(before, fingerprint(&other).await?, "it has changed something: {ran}");
        // `verify` ends with the same code.
        expect_code(&looks(lab, &other.broker, "verify", &[]).await?, 4);
        drop(sentinels);
        Ok(())
    });
}

#[test]
fn a_second_group_of_the_same_servers_and_sentinels_is_refused() {
    scenario(async |lab| {
        let system = standing(lab, 2).await?;
        let url = system.broker.url();
        let other = ["--broker", &url, "--group", "other"];
        for (kind, nodes) in [("redis", &system.redis), ("sentinel", &system.sentinels)] {
            for node in nodes {
                let at = node.addr().to_string();
                expect_code(&lab.runner(["register", kind, &at]).args(other).run(LIMIT).await?, 0);
            }
        }
        let before = fingerprint(&system).await?;
        let ran = run(lab, &system.broker, &other[2..]).await?;
        expect_code(&ran, 4);
        for text in ["already monitors", "as `mymaster`", "--group mymaster"] {
            assert!(ran.stderr.contains(text), "does not say `{text}`: {ran}");
        }
        assert_eq!(before, fingerprint(&system).await?, "it has changed something: {ran}");
        // If a person configures the second group by hand, neither group is verified.
        let (host, port) =
            (system.redis[0].addr().ip().to_string(), system.redis[0].addr().port().to_string());
        for sentinel in &system.sentinels {
            sentinel.command(&["SENTINEL", "MONITOR", "other", &host, &port, "2"]).await?;
        }
        expect_code(&looks(lab, &system.broker, "verify", &[]).await?, 4);
        expect_code(&looks(lab, &system.broker, "verify", &other[2..]).await?, 4);
        Ok(())
    });
}

#[test]
fn servers_that_other_sentinels_no_longer_monitor_are_accepted() {
    scenario(async |lab| {
        let first = standing(lab, 2).await?;
        let System { redis, sentinels, .. } = first;
        let other = with_other_sentinels(lab, redis, 3).await?;
        for sentinel in &sentinels {
            sentinel.command(&["SENTINEL", "REMOVE", "mymaster"]).await?;
        }
        expect_code(&run(lab, &other.broker, &[]).await?, 0);
        expect_healthy(&other, 0).await
    });
}

#[test]
fn foreign_sentinels_are_refused_beside_a_dead_registration() {
    scenario(async |lab| {
        let first = standing(lab, 2).await?;
        let System { redis, sentinels: watching, .. } = first;
        let other = with_other_sentinels(lab, redis, 4).await?;
        // The dead Sentinel may be one of the three that watch the servers, but not all of them.
        other.sentinels[3].kill();
        let ran = run(lab, &other.broker, &["--sentinels", "3"]).await?;
        expect_code(&ran, 4);
        assert!(ran.stderr.contains("monitored by 3 Sentinels"), "{ran}");
        for sentinel in &watching {
            let master: BTreeMap<String, String> =
                sentinel.query(&["SENTINEL", "MASTER", "mymaster"]).await?;
            assert_eq!(master["num-other-sentinels"], "2", "the other system knows of it: {ran}");
        }
        Ok(())
    });
}

#[test]
fn a_sentinel_whose_machine_died_is_replaced() {
    scenario(async |lab| {
        let mut system = registered(lab.system(2, 3).await?).await?;
        let fast = ["--sentinel-set", "down-after-milliseconds=1000"];
        expect_code(&run(lab, &system.broker, &fast).await?, 0);
        // A frozen Sentinel, like one on a dead machine, closes no connection and answers nothing.
        let dead = system.sentinels.remove(2);
        dead.stop()?;
        let forgotten = system.broker.delete(format!("/sentinel/{}", dead.addr())).send().await?;
        ensure!(forgotten.status.is_success(), "{forgotten}");
        let next = lab.sentinel().start().await?;
        system.broker.register(&next).await?;
        system.sentinels.push(next);
        expect_code(&run(lab, &system.broker, &fast).await?, 0);
        expect_code(&looks(lab, &system.broker, "verify", &[]).await?, 0);
        expect_healthy(&system, 0).await
    });
}

#[test]
fn sentinels_in_tilt_are_named() {
    scenario(async |lab| {
        let system = standing(lab, 2).await?;
        for sentinel in &system.sentinels {
            sentinel.stop()?;
        }
        // Longer than the two seconds after which a Sentinel mistrusts its clock (`SENTINEL_TILT_TRIGGER`).
        tokio::time::sleep(Duration::from_millis(2500)).await;
        for sentinel in &system.sentinels {
            sentinel.cont()?;
        }
        for sentinel in &system.sentinels {
            eventually(LIMIT, async || {
                let info = sentinel.info("sentinel").await?;
                ensure!(info["sentinel_tilt"] == "1", "{sentinel} is not in TILT: {info:?}");
                Ok(())
            })
            .await?;
        }
        let ran = looks(lab, &system.broker, "verify", &[]).await?;
        expect_code(&ran, 6);
        assert!(ran.stderr.contains("is in TILT"), "{ran}");
        Ok(())
    });
}

#[test]
fn nodes_that_announce_one_address_are_refused() {
    scenario(async |lab| {
        let twin = |_: usize, node: NodeBuilder| {
            node.config("replica-announce-ip 127.0.0.1").config("replica-announce-port 7000")
        };
        let system = system_of(lab, twin, plain).await?;
        let named: Vec<_> = system.redis.iter().map(Node::addr).collect();
        expect_refused(lab, &system, 4, &named, "127.0.0.1:7000").await?;

        let twin = |_: usize, node: NodeBuilder| {
            node.config("sentinel announce-ip 127.0.0.1").config("sentinel announce-port 7001")
        };
        let system = system_of(lab, plain, twin).await?;
        let named: Vec<_> = system.sentinels.iter().take(2).map(Node::addr).collect();
        expect_refused(lab, &system, 4, &named, "127.0.0.1:7001").await
    });
}

// A failover would work.

#[test]
fn a_renamed_command_is_named_before_anything_is_changed() {
    scenario(async |lab| {
        for (command, name) in [("CONFIG", "\"\""), ("SLAVEOF", "\"\""), ("CONFIG", "other-c0nfig")] {
            let renamed =
                |_: usize, node: NodeBuilder| node.config(format!("rename-command {command} {name}"));
            let system = system_of(lab, renamed, plain).await?;
            let first = system.redis[0].addr();
            let before = sentinels_know(&system).await?;
            let ran = run(lab, &system.broker, &[]).await?;
            expect_code(&ran, 5);
            for text in [&first.to_string(), &format!("`{command}`"), &format!("--rename-command {command}=")]
            {
                assert!(ran.stderr.contains(text), "does not say `{text}`: {ran}");
            }
            assert!(ran.stderr.contains("SENTINEL SET mymaster rename-command"), "{ran}");
            assert_eq!(before, sentinels_know(&system).await?, "it has changed something: {ran}");
        }
        Ok(())
    });
}

/// How many masters each Sentinel monitors.
async fn sentinels_know(system: &System) -> Result<Vec<usize>> {
    let masters = system.sentinels.iter().map(async |sentinel| {
        let masters: Vec<BTreeMap<String, String>> = sentinel.query(&["SENTINEL", "MASTERS"]).await?;
        Ok::<_, anyhow::Error>(masters.len())
    });
    try_join_all(masters).await
}

#[test]
fn a_system_with_renamed_commands_comes_up_and_fails_over() {
    scenario(async |lab| {
        let renamed = |_: usize, node: NodeBuilder| {
            node.config("rename-command CONFIG other-c0nfig").config("rename-command SLAVEOF other-sl4veof")
        };
        let system = system_of(lab, renamed, plain).await?;
        let flags = [
            "--rename-command",
            "CONFIG=other-c0nfig",
            "--rename-command",
            "SLAVEOF=other-sl4veof",
            "--verbose",
        ];
        let ran = run(lab, &system.broker, &flags).await?;
        expect_code(&ran, 0);
        expect_healthy(&system, 0).await?;
        // A command may have its new name to keep it secret, so the name is not printed.
        assert!(!ran.to_string().contains("c0nfig"), "{ran}");
        fail_over(&system.sentinels[0]).await?;
        expect_code(&run(lab, &system.broker, &flags).await?, 0);
        expect_healthy(&system, 1).await
    });
}

#[test]
fn sentinels_that_monitor_already_are_told_of_renamed_commands() {
    scenario(async |lab| {
        let renamed = |_: usize, node: NodeBuilder| node.config("rename-command SLAVEOF other-sl4veof");
        let system = system_of(lab, renamed, plain).await?;
        system.redis[1]
            .command(&["REPLICAOF", "127.0.0.1", &system.redis[0].addr().port().to_string()])
            .await?;
        let port = system.redis[0].addr().port().to_string();
        for sentinel in &system.sentinels {
            sentinel.command(&["SENTINEL", "MONITOR", "mymaster", "127.0.0.1", &port, "2"]).await?;
        }
        let flags = ["--rename-command", "SLAVEOF=other-sl4veof"];
        // The Sentinels discover each other within seconds.
        let ran = eventually(LIMIT, async || {
            let flags = [&flags[..], &["--output", "json"]].concat();
            let ran = looks(lab, &system.broker, "verify", &flags).await?;
            ensure!(ran.code == Some(0), "{ran}");
            Ok(ran)
        })
        .await?;
        assert_eq!(document(&ran)["proved"], json!(false), "nobody can see what they know: {ran}");
        assert!(ran.stderr.contains("not proved on") && ran.stderr.contains("--rename-command"), "{ran}");
        expect_code(&run(lab, &system.broker, &flags).await?, 0);
        fail_over(&system.sentinels[0]).await?;
        expect_code(&run(lab, &system.broker, &flags).await?, 0);
        expect_healthy(&system, 1).await
    });
}

/// A system whose nodes have a user `ops` with these rights. The default user stays as it is.
async fn with_rights(lab: &Lab, redis: &str, sentinel: &str) -> Result<System> {
    let ops = |rights: &str| format!("user ops on >{OPS} resetchannels {rights}");
    // The replicas log in to their master with the login that the run has for the Redis servers.
    let (redis, sentinel) = (ops(&format!("{redis} {REPLICATION_RIGHTS}")), ops(sentinel));
    system_of(lab, |_, node| node.config(redis.as_str()), |_, node| node.config(sentinel.as_str())).await
}

const AS_OPS: [&str; 8] = [
    "--redis-username",
    "ops",
    "--redis-password",
    OPS,
    "--sentinel-username",
    "ops",
    "--sentinel-password",
    OPS,
];

/// These rights without one of them.
fn without(rights: &str, right: &str) -> String {
    assert!(rights.split_whitespace().any(|one| one == right), "{right} is not in {rights}");
    rights.split_whitespace().filter(|one| *one != right).collect::<Vec<_>>().join(" ")
}

#[test]
fn a_right_that_a_failover_takes_is_named_before_anything_is_changed() {
    scenario(async |lab| {
        for right in [
            "+slaveof",
            "+config|rewrite",
            "+client|kill",
            "+multi",
            "+exec",
            "+client|setname",
            "+subscribe",
        ] {
            let system = with_rights(lab, &without(&redis_rights(), right), SENTINEL_RIGHTS).await?;
            let ran = run(lab, &system.broker, &AS_OPS).await?;
            expect_code(&ran, 5);
            let says = [system.redis[0].addr().to_string(), format!("ACL SETUSER ops {right}")];
            for text in says {
                assert!(ran.stderr.contains(&text), "without {right} it does not say `{text}`: {ran}");
            }
            assert_eq!(sentinels_know(&system).await?, [0, 0, 0], "it has changed something: {ran}");
            assert_eq!(system.redis[1].info("replication").await?["role"], "master", "{ran}");
        }
        Ok(())
    });
}

#[test]
fn what_is_rehearsed_is_never_executed() {
    scenario(async |lab| {
        let system = standing(lab, 2).await?;
        for node in &system.redis {
            node.command(&["CONFIG", "RESETSTAT"]).await?;
        }
        let ran = looks(lab, &system.broker, "verify", &["--verbose"]).await?;
        expect_code(&ran, 0);
        for node in &system.redis {
            let ran = node.info("commandstats").await?;
            for never in ["slaveof", "replicaof", "config|rewrite", "client|kill", "script|kill", "failover"]
            {
                let stats = ran.get(&format!("cmdstat_{never}"));
                assert!(
                    stats.is_none_or(|stats| stats.starts_with("calls=0,")),
                    "{node}: {never}: {stats:?}"
                );
            }
        }
        Ok(())
    });
}

#[test]
fn sentinels_that_may_not_be_asked_for_their_vote_are_named() {
    scenario(async |lab| {
        // The other rights contain all channels.
        let rights =
            without(&without(PEER_RIGHTS, "+sentinel|is-master-down-by-addr"), "&__sentinel__:hello");
        let user = format!("user ops on >{OPS} resetchannels {SENTINEL_RIGHTS} {rights}");
        let sentinel = |_: usize, node: NodeBuilder| {
            let node = node.config(user.as_str()).config("sentinel sentinel-user ops");
            node.config(format!("sentinel sentinel-pass {OPS}"))
        };
        let system = system_of(lab, plain, sentinel).await?;
        let flags = [&A_WHILE[..], &["--sentinel-username", "ops", "--sentinel-password", OPS]].concat();
        let ran = run(lab, &system.broker, &flags).await?;
        expect_not_verified(&ran, &["ask for its vote", "ACL SETUSER ops +sentinel|is-master-down-by-addr"]);
        Ok(())
    });
}

#[test]
fn replicas_of_which_none_may_be_promoted_are_named() {
    scenario(async |lab| {
        let system = system_of(lab, |_, node| node.config("replica-priority 0"), plain).await?;
        expect_refused(lab, &system, 5, &[system.redis[1].addr()], "replica-priority").await?;
        // One replica that may be promoted is enough.
        system.redis[1].command(&["CONFIG", "SET", "replica-priority", "10"]).await?;
        expect_code(&run(lab, &system.broker, &[]).await?, 0);
        Ok(())
    });
}

/// Valkey 9.0.0's Sentinel sends `FAILOVER` (valkey-io/valkey#2779).
#[test]
fn the_right_to_failover_is_asked_for_where_the_sentinel_sends_it() {
    scenario(async |lab| {
        let system = with_rights(lab, REDIS_RIGHTS, SENTINEL_RIGHTS).await?;
        let info = system.redis[0].info("server").await?;
        let needs = info.get("valkey_version").is_some_and(|version| version == "9.0.0");
        let ran = run(lab, &system.broker, &AS_OPS).await?;
        if needs {
            expect_code(&ran, 5);
            assert!(ran.stderr.contains("ACL SETUSER ops +failover"), "{ran}");
            let system = with_rights(lab, &redis_rights(), SENTINEL_RIGHTS).await?;
            expect_code(&run(lab, &system.broker, &AS_OPS).await?, 0);
            fail_over(&system.sentinels[0]).await?;
            expect_code(&run(lab, &system.broker, &AS_OPS).await?, 0);
            expect_healthy(&system, 1).await?;
        } else {
            tried("not tried here: the right to FAILOVER, which the Sentinel of Valkey 9.0.0 alone needs");
            expect_code(&ran, 0);
        }
        Ok(())
    });
}

/// Passwords that a Sentinel can't keep in its file, and what the runner names in them.
fn odd_passwords() -> Vec<(&'static str, &'static str)> {
    let mut odd =
        vec![("s3cret\nword", "a control character (U+000A)"), ("s3cret\tword", "a control character")];
    // Since 9.1.2, Valkey writes the password in quotes.
    if redis_version().is_ok_and(|version| version < (9, 1)) {
        odd.extend([
            ("s3cret word", "a blank"),
            ("s3cret'word", "a quote (')"),
            ("s3cret\"word", "a quote (\")"),
        ]);
    }
    odd
}

#[test]
fn a_login_that_no_sentinel_can_keep_is_refused() {
    scenario(async |lab| {
        for (password, named) in odd_passwords() {
            let system = system_of(lab, |_, node| node.password(password), plain).await?;
            let before = fingerprint(&system).await?;
            let ran = run(lab, &system.broker, &["--redis-password", password]).await?;
            expect_code(&ran, 2);
            assert!(ran.stderr.contains(named) && ran.stderr.contains("hint: "), "`{named}`: {ran}");
            assert!(!ran.to_string().contains("s3cret"), "{ran}");
            assert_eq!(before, fingerprint(&system).await?, "it has changed something: {ran}");

            let url = system.broker.url();
            let join = lab.runner(["join", "sentinel", "--broker", &url, "--redis-password", password]);
            let program = std::env::var("REDIS_SERVER").unwrap_or_else(|_| "redis-sentinel".to_owned());
            let ran = join.args(["--", &program]).run(LIMIT).await?;
            expect_code(&ran, 2);
            assert!(ran.stderr.contains(named) && !ran.to_string().contains("s3cret"), "`{named}`: {ran}");
        }
        Ok(())
    });
}

#[test]
fn a_login_that_a_sentinel_can_not_restart_with_is_named() {
    if redis_version().is_ok_and(|version| version >= (9, 1)) {
        tried(
            "not tried here: a password that a Sentinel can't keep and takes all the same, which Valkey 9.1.2 refuses",
        );
        return;
    }
    scenario(async |lab| {
        let password = "s3cret\tword";
        let system = system_of(lab, |_, node| node.password(password), plain).await?;
        let port = system.redis[0].addr().port().to_string();
        for words in [&["CONFIG", "SET", "masterauth", password][..], &["REPLICAOF", "127.0.0.1", &port]] {
            system.redis[1].command(words).await?;
        }
        for sentinel in &system.sentinels {
            sentinel.command(&["SENTINEL", "MONITOR", "mymaster", "127.0.0.1", &port, "2"]).await?;
            sentinel.command(&["SENTINEL", "SET", "mymaster", "auth-pass", password]).await?;
        }
        let ran = eventually(LIMIT, async || {
            let ran = looks(lab, &system.broker, "verify", &["--redis-password", password]).await?;
            assert_ne!(ran.code, Some(0), "it is verified: {ran}");
            ensure!(ran.code == Some(5) && ran.stderr.contains("it could not start again"), "{ran}");
            Ok(ran)
        })
        .await?;
        assert!(ran.stderr.contains("a control character") && !ran.to_string().contains("s3cret"), "{ran}");
        Ok(())
    });
}

// A client can write.

#[test]
fn a_master_that_takes_no_writes_is_named() {
    scenario(async |lab| {
        let kept = |index: usize, node: NodeBuilder| if index == 0 { in_a_folder(lab, node) } else { node };
        let system = system_of(lab, kept, plain).await?;
        expect_code(&run(lab, &system.broker, &[]).await?, 0);
        let master = &system.redis[0];
        let verify = async |code: i32, says: &[&str]| -> Result<()> {
            let mut runs = vec![looks(lab, &system.broker, "verify", &[]).await?];
            if code != 0 {
                runs.push(run(lab, &system.broker, &["--timeout", "1s"]).await?);
            }
            for ran in runs {
                expect_code(&ran, code);
                for text in says {
                    assert!(ran.stderr.contains(text), "does not say `{text}`: {ran}");
                }
            }
            Ok(())
        };
        master.command(&["SET", "filler", &"x".repeat(100_000)]).await?;
        master.command(&["CONFIG", "SET", "maxmemory", "100kb"]).await?;
        verify(6, &[&master.addr().to_string(), "no client can write to it", "(OOM)"]).await?;
        master.command(&["CONFIG", "SET", "maxmemory", "0"]).await?;
        verify(0, &[]).await?;

        master.command(&["CONFIG", "SET", "min-replicas-to-write", "2"]).await?;
        verify(5, &[&master.addr().to_string(), "min-replicas-to-write"]).await?;
        master.command(&["CONFIG", "SET", "min-replicas-to-write", "0"]).await?;

        master.command(&["CONFIG", "SET", "save", "3600 1"]).await?;
        fs::remove_dir_all(folder(lab))?;
        master.command(&["BGSAVE"]).await?;
        eventually(LIMIT, async || {
            let info = master.info("persistence").await?;
            ensure!(info["rdb_last_bgsave_status"] != "ok", "the save does not fail: {info:?}");
            Ok(())
        })
        .await?;
        assert!(
            master
                .command(&["SET", "x", "1"])
                .await
                .is_err_and(|error| format!("{error:#}").contains("MISCONF"))
        );
        verify(6, &["no client can write to it", "(MISCONF)"]).await
    });
}

/// A node with its files in a folder that a test can remove. After that, not even root can write a file
/// there.
fn in_a_folder(lab: &Lab, node: NodeBuilder) -> NodeBuilder {
    let folder = folder(lab);
    fs::create_dir_all(&folder).expect("the lab's folder takes another one");
    node.config(format!("dir {}", folder.display()))
}

fn folder(lab: &Lab) -> PathBuf {
    lab.dir().join("taken-away")
}

// States that look wrong and are right, and faults that earlier versions reported unclearly.

#[test]
fn a_replica_that_is_not_announced_counts_and_is_named() {
    if redis_version().is_ok_and(|version| version < (6, 2)) {
        tried("not tried here: `replica-announced`, which this version does not have");
        return;
    }
    scenario(async |lab| {
        let silent = |index: usize, node: NodeBuilder| match index {
            1 => node.config("replica-announced no"),
            _ => node,
        };
        let system = system_of(lab, silent, plain).await?;
        let ran = run(lab, &system.broker, &[]).await?;
        expect_code(&ran, 0);
        let says = format!("{} has `replica-announced no`", system.redis[1].addr());
        assert!(ran.stderr.contains(&says), "{ran}");
        let ran = looks(lab, &system.broker, "verify", &[]).await?;
        expect_code(&ran, 0);
        assert!(ran.stderr.contains(&says), "{ran}");
        Ok(())
    });
}

#[test]
fn replicas_that_follow_the_master_by_a_name_are_adopted() {
    scenario(async |lab| {
        let system = lab.system(3, 3).await?;
        let master = system.redis[0].addr().port().to_string();
        for replica in &system.redis[1..] {
            replica.command(&["REPLICAOF", "localhost", &master]).await?;
        }
        let system = registered(system).await?;
        expect_code(&run(lab, &system.broker, &[]).await?, 0);
        system.replicates(0).await?;
        let ran = run(lab, &system.broker, &[]).await?;
        expect_code(&ran, 0);
        assert!(ran.stderr.contains("already configured"), "{ran}");
        Ok(())
    });
}

#[test]
fn a_replica_that_cannot_write_what_it_is_sent_is_named_with_its_log() {
    scenario(async |lab| {
        let log = lab.dir().join("replica.log");
        let replica = in_a_folder(lab, lab.redis()).config(format!("logfile {}", log.display()));
        let redis = vec![lab.redis().start().await?, replica.start().await?];
        let system = System { redis, ..lab.system(1, 3).await? };
        let (master, replica) = (&system.redis[0], &system.redis[1]);
        master.command(&["CONFIG", "SET", "repl-diskless-sync-delay", "0"]).await?;
        master.command(&["SET", "precious", "1"]).await?;
        fs::remove_dir_all(folder(lab))?;
        replica.command(&["REPLICAOF", "127.0.0.1", &master.addr().port().to_string()]).await?;
        let system = registered(system).await?;
        // The replica tries five times, a second each, and does not answer other nodes during this time. So
        // the run may not even get to ask it.
        let ran = run(lab, &system.broker, &["--timeout", "8s"]).await?;
        assert!([Some(3), Some(6)].contains(&ran.code), "{ran}");
        let (_, error) = ran.stderr.split_once("error: ").context("it ends with an error")?;
        assert!(error.contains(&system.redis[1].addr().to_string()) && error.contains("in its log"), "{ran}");
        let says = fs::read_to_string(&log)?;
        assert!(says.contains("temp file needed for"), "that is where the cause is:\n{says}");
        Ok(())
    });
}

#[test]
fn a_sentinels_file_that_is_mounted_by_itself_is_named() {
    let unshare = ["--user", "--map-root-user", "--mount"];
    let allowed = std::process::Command::new("unshare").args(unshare).arg("true").status();
    if !allowed.is_ok_and(|status| status.success()) {
        tried("not tried here: a file that is mounted by itself (`unshare --mount` is not allowed)");
        return;
    }
    scenario(async |lab| {
        // The system has a master, so `join` has to write it into the Sentinel's file.
        let system = standing(lab, 2).await?;
        let (file, outside) = (lab.dir().join("mounted.conf"), lab.dir().join("outside.conf"));
        for path in [&file, &outside] {
            fs::write(path, format!("port {}\n", steady_port(Ipv4Addr::LOCALHOST.into())?))?;
        }
        let mut command = tokio::process::Command::new("unshare");
        command.args(unshare).args([
            "sh",
            "-c",
            "mount --bind \"$1\" \"$2\" && shift 2 && exec \"$@\"",
            "sh",
        ]);
        command.arg(&outside).arg(&file).arg(runner_program());
        command
            .args(["join", "sentinel", "--broker", &system.broker.url(), "--", "redis-sentinel"])
            .arg(&file);
        command.current_dir(lab.dir()).env_remove("SENTINELS");
        let mut process = lab.spawn("unshare", command)?;
        let status = process.wait(LIMIT).await?;
        ensure!(!status.success(), "{status}: {}", process.output());
        let said = process.stderr();
        assert!(
            said.contains("the file itself is mounted") && said.contains("hint: mount the folder"),
            "{said}"
        );
        Ok(())
    });
}

// A server that is not ready yet.

#[test]
fn a_server_that_loads_its_data_is_waited_for() {
    scenario(async |lab| {
        if redis_version()? < (7, 0) {
            tried(
                "not tried here: a server that loads slowly and answers meanwhile, which can be had since Redis 7.0",
            );
            return Ok(());
        }
        let system = lab.system(2, 3).await?;
        let holder = lab.redis().config("rdbcompression no").start().await?;
        for index in 0..500 {
            holder.command(&["SET", &format!("key:{index}"), &"x".repeat(2000)]).await?;
        }
        save(&holder).await?;
        holder.kill();
        // Loading takes about six seconds: longer than the runner waits for nodes that do not answer.
        let mut file = fs::File::options().append(true).open(holder.config_file())?;
        std::io::Write::write_all(
            &mut file,
            b"key-load-delay 12000\nloading-process-events-interval-bytes 1024\n",
        )?;
        holder.relaunch()?;
        eventually(LIMIT, async || {
            let info = holder.info("persistence").await?;
            ensure!(info["loading"] == "1", "it does not load:\n{}", holder.log());
            Ok(())
        })
        .await?;
        let System { broker, mut redis, sentinels } = system;
        redis.insert(0, holder);
        let system = registered(System { broker, redis, sentinels }).await?;
        let mut running = start(lab, &system.broker, &[])?;
        let says = format!("{} is loading its data set", system.redis[0].addr());
        until_stderr(&mut running, &says).await?;
        let ran = running.wait(LIMIT).await?;
        expect_code(&ran, 0);
        expect_healthy(&system, 0).await?;
        for node in &system.redis {
            assert!(node.query::<u64>(&["DBSIZE"]).await? >= 500, "{node} lacks data: {ran}");
        }
        Ok(())
    });
}

#[test]
fn a_server_that_was_restarted_is_waited_for_until_it_registers_again() {
    scenario(async |lab| {
        let system = lab.system(2, 3).await?;
        let node = &system.redis[0];
        let register = async || -> Result<()> {
            let run_id = node.info("server").await?["run_id"].clone();
            let body = json!({"host": node.addr().ip(), "port": node.addr().port(), "run_id": run_id});
            system.broker.post("/redis").json(&body).send().await?;
            Ok(())
        };
        register().await?;
        node.restart().await?;
        for other in system.redis[1..].iter().chain(&system.sentinels) {
            system.broker.register(other).await?;
        }
        let mut running = start(lab, &system.broker, &[])?;
        until_stderr(&mut running, &format!("{} registered with run_id", node.addr())).await?;
        register().await?;
        expect_code(&running.wait(LIMIT).await?, 0);
        expect_healthy(&system, 0).await
    });
}

// The runner reads only so much of an answer, and names a server that is not a Redis server.

/// Listens, and answers each connection with `first` and then with `then`, again and again, for as long as
/// the other side reads. Returns the address.
async fn endless(first: &'static str, then: &'static str) -> Result<SocketAddr> {
    let listener = TcpListener::bind((Ipv4Addr::new(127, 0, 0, 77), 0)).await?;
    let at = listener.local_addr()?;
    tokio::spawn(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            tokio::spawn(async move {
                // A Redis server sends nothing before it gets a command.
                let _ = client.read(&mut [0; 4096]).await;
                let more = then.repeat(65_536 / then.len().max(1));
                let mut said = client.write_all(first.as_bytes()).await;
                while said.is_ok() && !more.is_empty() {
                    said = client.write_all(more.as_bytes()).await;
                }
                // Waits until the other side leaves.
                let _ = client.read(&mut [0; 4096]).await;
            });
        }
    });
    Ok(at)
}

/// The most memory that a process has used, in bytes.
fn most_memory(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kilobytes = line.and_then(|line| line.trim().strip_suffix(" kB")?.parse::<u64>().ok());
    kilobytes.unwrap_or_default() * 1024
}

/// Runs a bootstrap, and measures how much memory it takes.
async fn run_and_weigh(lab: &Lab, url: &str) -> Result<(Ran, u64)> {
    let mut running = lab.runner(["bootstrap", "--broker", url, "--timeout", "4s"]).start()?;
    let mut most = 0;
    while running.is_running()? {
        most = most.max(most_memory(running.id()));
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    Ok((running.wait(LIMIT).await?, most))
}

/// Far more than a run takes, and far less than the endless answers would take.
const MEMORY: u64 = 150 * 1024 * 1024;

#[test]
fn an_endless_answer_of_a_broker_is_not_read_to_its_end() {
    scenario(async |lab| {
        for head in [
            "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 99999999999\r\n\r\n",
        ] {
            let at = endless(head, "          ").await?;
            let (ran, memory) = run_and_weigh(lab, &format!("http://{at}")).await?;
            expect_code(&ran, 7);
            assert!(memory < MEMORY && ran.elapsed < SOON, "{memory} bytes: {ran}");
        }
        Ok(())
    });
}

#[test]
fn a_server_that_does_not_speak_redis_is_named_and_not_read_to_its_end() {
    scenario(async |lab| {
        for (first, then) in [
            ("+", "endless line "),
            ("$9223372036854775807\r\n", "x"),
            ("*1000000000\r\n", "$1\r\nx\r\n"),
            ("HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n", ""),
            ("SSH-2.0-OpenSSH_9.2p1 Debian-2\r\n", ""),
            ("220 mail.example.com ESMTP\r\n", ""),
        ] {
            let at = endless(first, then).await?;
            let system = lab.system(1, 3).await?;
            let broker = lab.broker(Broker::builder())?;
            register_at(&broker, Kind::Redis, at).await?;
            for node in system.nodes() {
                broker.register(node).await?;
            }
            let (ran, memory) = run_and_weigh(lab, &broker.url()).await?;
            expect_code(&ran, 5);
            assert!(
                ran.stderr.contains(&at.to_string())
                    && ran.stderr.contains("does not speak the Redis protocol"),
                "{first:?}: {ran}"
            );
            assert!(memory < MEMORY && ran.elapsed < SOON, "{memory} bytes: {ran}");
        }
        Ok(())
    });
}

// What can't be proved.

#[test]
fn what_a_missing_right_leaves_unproved_is_reported() {
    scenario(async |lab| {
        let redis = without(&redis_rights(), "+client|list");
        let system = with_rights(lab, &redis, SENTINEL_RIGHTS).await?;
        let ran = run(lab, &system.broker, &AS_OPS).await?;
        expect_code(&ran, 0);
        assert!(ran.stderr.contains("not proved, because the right `+client|list` is missing"), "{ran}");
        let ran =
            looks(lab, &system.broker, "verify", &[&AS_OPS[..], &["--output", "json"]].concat()).await?;
        expect_code(&ran, 0);
        let document = document(&ran);
        assert_eq!(document["proved"], json!(false), "{ran}");
        let lacks = document["unproved"].as_array().context("it says what")?;
        assert!(lacks.iter().any(|lack| lack["right"] == "+client|list"), "{ran}");

        for node in &system.redis {
            node.command(&["ACL", "SETUSER", "ops", "+client|list"]).await?;
        }
        let ran =
            looks(lab, &system.broker, "verify", &[&AS_OPS[..], &["--output", "json"]].concat()).await?;
        let document = crate::output::document(&ran);
        // Before 7.0, no command shows the rights of another user.
        assert_eq!(document["proved"], json!(redis_version()? >= (7, 0)), "{ran}");
        assert!(!document["unproved"].to_string().contains("+client|list"), "{ran}");
        Ok(())
    });
}

/// A right of docs/access.md that is missing.
struct Missing {
    on: Kind,
    right: String,
}

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} without {}", self.on, self.right)
    }
}

#[test]
fn the_documented_rights_are_the_least_that_prove_everything() {
    // A run sends these only if a node is replaced, if a Sentinel can't write its file, or if a server has a
    // name. The last two are also among the replicas' rights.
    let seldom = [
        "+sentinel|reset",
        "+sentinel|remove",
        "+sentinel|flushconfig",
        "+sentinel|config",
        "+ping",
        "+replconf",
    ];
    let of = |on: Kind, rights: &str| -> Vec<Missing> {
        // On a Sentinel, this right only makes a run quick: it introduces the Sentinels to each other, and
        // they would discover each other within two seconds anyway.
        let is_seldom =
            |right: &str| seldom.contains(&right) || (on == Kind::Sentinel && right == "+publish");
        let rights = rights.split_whitespace().filter(|right| right.starts_with('+') && !is_seldom(right));
        rights.map(|right| Missing { on, right: right.to_owned() }).collect()
    };
    let missing: Vec<_> =
        of(Kind::Redis, &redis_rights()).into_iter().chain(of(Kind::Sentinel, SENTINEL_RIGHTS)).collect();
    sweep(&missing, async |lab, Missing { on, right }| {
        let (redis, sentinel) = match on {
            Kind::Redis => (without(&redis_rights(), right), SENTINEL_RIGHTS.to_owned()),
            Kind::Sentinel => (redis_rights(), without(SENTINEL_RIGHTS, right)),
        };
        let system = with_rights(lab, &redis, &sentinel).await?;
        let ran = run(lab, &system.broker, &[&AS_OPS[..], &A_WHILE, &["--output", "json"]].concat()).await?;
        let document = document(&ran);
        // A run that ends with another code shows nothing about the right.
        let command = right.trim_start_matches('+').replace('|', " ").to_uppercase();
        let name = command.split(' ').next().unwrap_or_default().to_owned();
        let says = |text: &str| ran.stderr.to_uppercase().contains(text);
        ensure!(
            match ran.code {
                Some(0) => document["proved"] == json!(false) && says(&right.to_uppercase()),
                Some(5 | 6) => says("NOPERM") || says(&right.to_uppercase()) || says(&name),
                _ => false,
            },
            "it does not say that `{right}` is missing: {ran}"
        );
        Ok(())
    });
}

#[test]
fn a_right_that_the_user_of_the_sentinels_lacks_is_named() {
    if redis_version().is_ok_and(|version| version < (7, 0)) {
        tried("not tried here: `ACL DRYRUN`, which this version does not have");
        return;
    }
    scenario(async |lab| {
        // The run logs in as the default user, which has all rights. The Sentinels log in as a user that
        // lacks one.
        let rights = without(&watcher_rights(), "+slaveof");
        let user = format!("user ops on >{OPS} resetchannels {rights}");
        let system = system_of(lab, |_, node| node.config(user.as_str()), plain).await?;
        expect_code(&run(lab, &system.broker, &[]).await?, 0);
        for sentinel in &system.sentinels {
            sentinel.command(&["SENTINEL", "SET", "mymaster", "auth-user", "ops", "auth-pass", OPS]).await?;
        }
        // The Sentinels connect again with their new login.
        eventually(LIMIT, async || {
            let clients = system.redis.iter().map(|node| node.query::<String>(&["CLIENT", "LIST"]));
            let clients = try_join_all(clients).await?.join("\n");
            let sentinels: Vec<_> = clients.lines().filter(|line| line.contains("name=sentinel-")).collect();
            let all = sentinels.len() >= 12 && sentinels.iter().all(|line| line.contains("user=ops"));
            ensure!(all, "not all Sentinels are connected as ops:\n{clients}");
            Ok(())
        })
        .await?;
        let ran = looks(lab, &system.broker, "verify", &[]).await?;
        expect_code(&ran, 6);
        assert!(
            ran.stderr.contains("the user `ops` of the Sentinels")
                && ran.stderr.contains("ACL SETUSER ops +slaveof"),
            "{ran}"
        );
        for node in &system.redis {
            node.command(&["ACL", "SETUSER", "ops", "+slaveof"]).await?;
        }
        let ran = looks(lab, &system.broker, "verify", &["--output", "json"]).await?;
        expect_code(&ran, 0);
        assert_eq!(document(&ran)["proved"], json!(true), "{ran}");
        Ok(())
    });
}

/// Checks these keys of the documents: with a misspelled key, another test could pass by mistake.
#[test]
fn a_verified_system_is_proved() {
    scenario(async |lab| {
        let system = registered(lab.system(2, 3).await?).await?;
        let ran = run(lab, &system.broker, &["--output", "json"]).await?;
        expect_code(&ran, 0);
        let document = document(&ran);
        assert_eq!(document["proved"], json!(true), "{ran}");
        document["unproved"]
            .as_array()
            .context("a list")?
            .is_empty()
            .then_some(())
            .context("nothing is unproved")
    });
}

#[test]
fn partition_safety_is_given_to_every_server_and_kept() {
    scenario(async |lab| {
        let system = lab.system(3, 3).await?;
        system.register_all().await?;
        let bootstrap = async |setting: &str| run(lab, &system.broker, &["--redis-set", setting]).await;
        let has = async |replicas: &str| {
            for node in &system.redis {
                let settings: BTreeMap<String, String> =
                    node.query(&["CONFIG", "GET", "min-replicas-*"]).await?;
                assert_eq!(
                    (&*settings["min-replicas-to-write"], &*settings["min-replicas-max-lag"]),
                    (replicas, "5")
                );
                let file = fs::read_to_string(node.config_file())?;
                assert_eq!(file.contains("min-replicas-to-write 1"), replicas == "1", "{file}");
            }
            anyhow::Ok(())
        };
        let status = async || lab.runner(["status", "--broker", &system.broker.url()]).run(LIMIT).await;
        expect_code(&bootstrap("min-replicas-to-write=1,min-replicas-max-lag=5").await?, 0);
        has("1").await?;
        let ran = status().await?;
        expect_code(&ran, 0);
        assert!(!ran.stdout.contains("min-replicas-to-write"), "{ran}");
        let ran = bootstrap("min-replicas-to-write=1").await?;
        expect_code(&ran, 0);
        assert!(ran.stderr.contains("already configured"), "{ran}");
        let ran = bootstrap("min-replicas-to-write=2").await?;
        expect_code(&ran, 4);
        assert!(ran.stderr.contains("as soon as one replica is gone"), "{ran}");
        system.redis[1].restart().await?;
        until_healthy(&system).await?;
        has("1").await?;
        // The run waits until the Sentinels have found the server again.
        expect_code(&bootstrap("min-replicas-to-write=1").await?, 0);
        let ran = lab.runner(["failover", "--broker", &system.broker.url()]).run(LIMIT).await?;
        expect_code(&ran, 0);
        expect_code(&bootstrap("min-replicas-to-write=0").await?, 0);
        has("0").await?;
        let ran = status().await?;
        expect_code(&ran, 0);
        assert!(ran.stdout.contains("min-replicas-to-write is 0 on every Redis server"), "{ran}");
        Ok(())
    });
}
