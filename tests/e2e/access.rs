//! Passwords, ACL users, TLS, host names, and the networks that the runner may connect to, on real servers.

use std::fs;

use anyhow::Result;
use e2e::{Broker, Lab, Node, Ran, System, Tls, redis_version, scenario};
use futures::future::try_join_all;

use crate::output::document;
use crate::support::{LIMIT, expect_code, expect_healthy, fail_over, run};

const ADMIN: &str = "adm1n-s3cret";
pub(crate) const OPS: &str = "0ps-s3cret";
const REPLICA: &str = "repl1ca-s3cret";
const SENTINEL: &str = "sent1nel-s3cret";
const PEER: &str = "p33r-s3cret";

/// The least rights that the runner and the Sentinels need on a Redis server. docs/access.md contains this
/// line.
pub(crate) const REDIS_RIGHTS: &str = "&* +ping +info +config|get +config|set +config|rewrite +replicaof +slaveof +multi +exec \
                            +subscribe +publish +client|setname +client|kill +client|list +script|kill +replconf";

/// The least rights that a replica needs on its master.
pub(crate) const REPLICATION_RIGHTS: &str = "+ping +psync +replconf";

/// The least rights that the runner needs on a Sentinel.
pub(crate) const SENTINEL_RIGHTS: &str = "&* +info +publish +sentinel|myid +sentinel|master +sentinel|sentinels +sentinel|replicas +sentinel|config \
                               +sentinel|monitor +sentinel|set +sentinel|flushconfig +sentinel|ckquorum \
                               +sentinel|reset +sentinel|remove +client|list +acl|dryrun";

/// The least rights that Sentinels need on each other.
pub(crate) const PEER_RIGHTS: &str =
    "&__sentinel__:hello +ping +publish +client|setname +sentinel|is-master-down-by-addr";

/// The least rights that Sentinels need on a Redis server, if they log in as a separate user.
pub(crate) const WATCHER_RIGHTS: &str = "&__sentinel__:hello +ping +info +multi +exec +subscribe +publish +slaveof +config|rewrite \
                              +client|setname +client|kill +script|kill";

/// The further rights that a change of master needs, on the Redis servers and on the Sentinels.
pub(crate) const HANDOVER_RIGHTS: &str = "+client|pause +client|unpause";
pub(crate) const FAILOVER_RIGHTS: &str = "+sentinel|failover +sentinel|get-master-addr-by-name";

/// The further rights that a drill's client needs.
pub(crate) const DRILL_RIGHTS: &str = "~sentinel-runner:drill +set +get +del";

/// The rights that are needed on Redis servers of this version.
pub(crate) fn redis_rights() -> String {
    format!("{REDIS_RIGHTS}{}", failover_right())
}

/// The rights that Sentinels of this version need on Redis servers, if they log in as a separate user.
pub(crate) fn watcher_rights() -> String {
    format!("{WATCHER_RIGHTS}{}", failover_right())
}

/// The Sentinel of Valkey 9.0.0 sends `FAILOVER` (valkey-io/valkey#2779, fixed in 9.0.1).
fn failover_right() -> &'static str {
    if redis_version().is_ok_and(|version| version == (9, 0)) { " +failover" } else { "" }
}

/// Checks that the run has printed no secret.
#[track_caller]
fn expect_no_secret(ran: &Ran) {
    for secret in [ADMIN, OPS, REPLICA, SENTINEL, PEER] {
        assert!(!format!("{}{}", ran.stdout, ran.stderr).contains(secret), "{secret} is shown: {ran}");
    }
}

/// Checks that the broker got no secret. The broker's answers contain everything that it got.
async fn expect_broker_knows_no_secret(broker: &Broker) -> Result<()> {
    let told = broker.get("/").send().await?.text();
    for secret in [ADMIN, OPS, REPLICA, SENTINEL, PEER] {
        assert!(!told.contains(secret), "the broker was told {secret}: {told}");
    }
    Ok(())
}

async fn refused(lab: &Lab, broker: &Broker, flags: &[&str], says: &[&str]) -> Result<()> {
    let ran = run(lab, broker, flags).await?;
    expect_code(&ran, 5);
    for text in says {
        assert!(ran.stderr.contains(text), "does not print `{text}`: {ran}");
    }
    expect_no_secret(&ran);
    expect_broker_knows_no_secret(broker).await
}

/// Checks that the system comes up verified with these flags, and that a second run has nothing to do. After
/// a failover, the old master, which has never been a replica, follows the new one.
async fn comes_up_and_fails_over(lab: &Lab, system: &System, flags: &[&str]) -> Result<()> {
    let ran = run(lab, &system.broker, &[flags, &["--dry-run"]].concat()).await?;
    expect_code(&ran, 0);
    expect_no_secret(&ran);
    let ran = run(lab, &system.broker, &[flags, &["--verbose"]].concat()).await?;
    expect_code(&ran, 0);
    expect_no_secret(&ran);
    expect_healthy(system, 0).await?;
    let ran = run(lab, &system.broker, flags).await?;
    expect_code(&ran, 0);
    assert!(ran.stderr.contains("already configured"), "{ran}");

    fail_over(&system.sentinels[0]).await?;
    expect_code(&run(lab, &system.broker, flags).await?, 0);
    expect_healthy(system, 1).await?;
    expect_broker_knows_no_secret(&system.broker).await
}

async fn register(system: System) -> Result<System> {
    system.register_all().await?;
    Ok(system)
}

#[test]
fn servers_with_passwords_come_up_and_wrong_ones_are_named() {
    scenario(async |lab| {
        let system = register(System {
            broker: lab.broker(Broker::builder())?,
            redis: try_join_all((0..2).map(|_| lab.redis().password(ADMIN).start())).await?,
            sentinels: try_join_all((0..3).map(|_| lab.sentinel().password(SENTINEL).start())).await?,
        })
        .await?;
        let first = system.redis[0].addr().to_string();
        refused(lab, &system.broker, &[], &[&first, "NOAUTH", "--redis-password-file"]).await?;
        refused(
            lab,
            &system.broker,
            &["--redis-password", OPS],
            &[&first, "WRONGPASS", "--redis-password-file"],
        )
        .await?;
        let sentinel = system.sentinels[0].addr().to_string();
        let only_redis = ["--redis-password", ADMIN];
        refused(lab, &system.broker, &only_redis, &[&sentinel, "NOAUTH", "--sentinel-password-file"]).await?;

        let [redis_file, sentinel_file] =
            ["redis-password", "sentinel-password"].map(|name| lab.dir().join(name));
        fs::write(&redis_file, format!("{ADMIN}\n"))?;
        fs::write(&sentinel_file, SENTINEL)?;
        let (redis_file, sentinel_file) =
            (redis_file.display().to_string(), sentinel_file.display().to_string());
        let flags = ["--redis-password-file", &redis_file, "--sentinel-password-file", &sentinel_file];
        comes_up_and_fails_over(lab, &system, &flags).await
    });
}

#[test]
fn a_password_for_servers_that_have_none_is_refused() {
    scenario(async |lab| {
        let system = register(lab.system(2, 3).await?).await?;
        let says = ["without any password configured", "remove --redis-password"];
        refused(lab, &system.broker, &["--redis-password", ADMIN], &says).await
    });
}

/// 2 + 3 with users that have the least rights, registered.
async fn with_acl_users(lab: &Lab) -> Result<System> {
    let redis = || {
        lab.redis()
            .password(ADMIN)
            .config(format!("user ops on >{OPS} resetchannels {}", redis_rights()))
            .config(format!("user replica on >{REPLICA} {REPLICATION_RIGHTS}"))
    };
    let sentinel = || {
        lab.sentinel()
            .password(SENTINEL)
            .config(format!("user ops on >{OPS} resetchannels {SENTINEL_RIGHTS}"))
            .config(format!("user peer on >{PEER} resetchannels {PEER_RIGHTS}"))
            .config("sentinel sentinel-user peer")
            .config(format!("sentinel sentinel-pass {PEER}"))
    };
    register(System {
        broker: lab.broker(Broker::builder())?,
        redis: try_join_all((0..2).map(|_| redis().start())).await?,
        sentinels: try_join_all((0..3).map(|_| sentinel().start())).await?,
    })
    .await
}

/// Checks that `failover` names each right that it lacks, and does nothing, until no right is missing.
async fn failover_names_each_right(lab: &Lab, system: &System, flags: &[&str]) -> Result<()> {
    let url = system.broker.url();
    let words = [&["failover", "--broker", &url], flags].concat();
    for (nodes, rights) in [(&system.redis, HANDOVER_RIGHTS), (&system.sentinels, FAILOVER_RIGHTS)] {
        for right in rights.split(' ') {
            let ran = lab.runner(&words).run(LIMIT).await?;
            expect_code(&ran, 5);
            assert!(ran.stderr.contains(&format!("ACL SETUSER ops {right} on")), "{ran}");
            for node in nodes {
                node.command(&["ACL", "SETUSER", "ops", right]).await?;
            }
        }
    }
    expect_code(&lab.runner(&words).run(LIMIT).await?, 0);
    Ok(())
}

#[test]
fn acl_users_need_no_more_than_the_rights_in_the_docs() {
    scenario(async |lab| {
        let system = with_acl_users(lab).await?;
        let flags = [
            ["--redis-username", "ops"],
            ["--redis-password", OPS],
            ["--replication-username", "replica"],
            ["--replication-password", REPLICA],
            ["--sentinel-username", "ops"],
            ["--sentinel-password", OPS],
        ]
        .concat();
        comes_up_and_fails_over(lab, &system, &flags).await?;
        let url = system.broker.url();
        let words = [&["verify", "--broker", &url, "--output", "json"], &flags[..]].concat();
        let ran = lab.runner(words).run(LIMIT).await?;
        expect_code(&ran, 0);
        // Before 7.0, no command shows the rights of another user.
        assert_eq!(document(&ran)["proved"], serde_json::json!(redis_version()? >= (7, 0)), "{ran}");
        let user: Vec<String> = system.redis[0].query(&["CONFIG", "GET", "masteruser"]).await?;
        assert_eq!(user[1], "replica");
        failover_names_each_right(lab, &system, &flags).await?;
        let drill = DRILL_RIGHTS.split(' ');
        let words = [&["verify", "--failover", "--broker", &url], &flags[..]].concat();
        for node in &system.redis {
            node.command(&["ACL", "SETUSER", "ops"].into_iter().chain(drill.clone()).collect::<Vec<_>>())
                .await?;
        }
        expect_code(&lab.runner(&words).run(LIMIT).await?, 0);
        // A run sends these only if a node was replaced, or if a Sentinel can't write its file.
        if redis_version()? >= (7, 0) {
            for command in ["RESET", "REMOVE"] {
                let may = ["ACL", "DRYRUN", "ops", "SENTINEL", command, "mymaster"];
                assert_eq!(system.sentinels[0].query::<String>(&may).await?, "OK");
            }
        }
        Ok(())
    });
}

#[test]
fn help_shows_no_secret_of_the_environment() {
    scenario(async |lab| {
        let help = lab
            .runner(["bootstrap", "--help"])
            .env("REDIS_PASSWORD", ADMIN)
            .env("SENTINEL_PASSWORD", SENTINEL);
        let ran = help.env("REPLICATION_PASSWORD", REPLICA).env("BROKER_TOKEN", OPS).run(LIMIT).await?;
        expect_code(&ran, 0);
        assert!(ran.stdout.contains("REDIS_PASSWORD"), "{ran}");
        expect_no_secret(&ran);
        Ok(())
    });
}

#[test]
fn the_rights_are_those_in_the_docs() {
    let page = include_str!("../../docs/access.md").split_whitespace().collect::<Vec<_>>().join(" ");
    let least = [REDIS_RIGHTS, WATCHER_RIGHTS, REPLICATION_RIGHTS, SENTINEL_RIGHTS, PEER_RIGHTS];
    for rights in least.into_iter().chain([HANDOVER_RIGHTS, FAILOVER_RIGHTS, DRILL_RIGHTS]) {
        let rights = rights.split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(page.contains(&rights), "docs/access.md lacks `{rights}`");
    }
}

/// 2 + 3 that ask for certificates, registered.
async fn speaking_tls(lab: &Lab, tls: &Tls) -> Result<System> {
    register(System {
        broker: lab.broker(Broker::builder())?,
        redis: try_join_all((0..2).map(|_| lab.redis().tls(tls).start())).await?,
        sentinels: try_join_all((0..3).map(|_| lab.sentinel().tls(tls).start())).await?,
    })
    .await
}

#[test]
fn servers_that_speak_tls_and_ask_for_certificates_come_up() {
    scenario(async |lab| {
        let tls = Tls::new(lab.dir())?;
        let system = speaking_tls(lab, &tls).await?;
        let [ca, cert, key] = [&tls.ca, &tls.cert, &tls.key].map(|path| path.display().to_string());
        let first = system.redis[0].addr().to_string();
        refused(lab, &system.broker, &["--tls"], &[&first, "certificate", "--tls-ca"]).await?;
        let flags = ["--tls", "--tls-ca", &ca, "--tls-cert", &cert, "--tls-key", &key];
        comes_up_and_fails_over(lab, &system, &flags).await?;

        system.redis[0].command(&["CONFIG", "SET", "tls-replication", "no"]).await?;
        refused(
            lab,
            &system.broker,
            &flags,
            &[&first, "tls-replication no", "CONFIG SET tls-replication yes"],
        )
        .await
    });
}

/// Checks the table in docs/access.md.
#[test]
fn renewed_certificates_are_taken_as_the_docs_describe() {
    scenario(async |lab| {
        let tls = Tls::new(lab.dir())?;
        let system = speaking_tls(lab, &tls).await?;
        let [ca, cert, key] = [&tls.ca, &tls.cert, &tls.key].map(|path| path.display().to_string());
        let flags = ["--tls", "--tls-ca", &ca, "--tls-cert", &cert, "--tls-key", &key];
        expect_code(&run(lab, &system.broker, &flags).await?, 0);
        let url = system.broker.url();
        let verified = async || {
            let ran = lab.runner(["verify", "--broker", &url]).args(flags).run(LIMIT).await?;
            expect_code(&ran, 0);
            anyhow::Ok(())
        };
        let id = async |node: &Node| anyhow::Ok(node.info("server").await?["run_id"].clone());
        tls.renew()?;
        for node in &system.redis {
            assert!(!tls.is_shown_by(node.addr()).await?, "{node}");
            let before = id(node).await?;
            // The names are the same, and the server reads the files again.
            node.command(&["CONFIG", "SET", "tls-cert-file", &cert, "tls-key-file", &key]).await?;
            assert!(tls.is_shown_by(node.addr()).await?, "{node}");
            assert_eq!(id(node).await?, before);
        }
        verified().await?;
        for node in &system.sentinels {
            assert!(!tls.is_shown_by(node.addr()).await?, "{node}");
            let refused = node.command(&["CONFIG", "SET", "tls-cert-file", &cert]).await.unwrap_err();
            assert!(format!("{refused:#}").contains("unknown command"), "{refused:#}");
            node.restart().await?;
            assert!(tls.is_shown_by(node.addr()).await?, "{node}");
            // The next Sentinel is restarted only once this one is back.
            expect_code(&run(lab, &system.broker, &flags).await?, 0);
        }
        verified().await
    });
}

#[test]
fn servers_without_tls_are_named_if_tls_is_asked_for() {
    scenario(async |lab| {
        // Such a server reads the TLS handshake as the start of a command, and waits for the rest.
        let system = register(lab.system(2, 3).await?).await?;
        let url = system.broker.url();
        let flags = ["bootstrap", "--broker", &url, "--tls", "--command-timeout", "200ms", "--timeout", "1s"];
        let ran = lab.runner(flags).run(LIMIT).await?;
        expect_code(&ran, 3);
        let says = format!(
            "{}: unreachable: no answer within 200ms; does this port use TLS?",
            system.redis[0].addr()
        );
        assert!(ran.stderr.contains(&says), "{ran}");
        Ok(())
    });
}

async fn register_as_localhost(broker: &Broker, nodes: &[Node]) -> Result<()> {
    for node in nodes {
        let body = serde_json::json!({"host": "localhost", "port": node.addr().port()});
        let reply = broker.post(format!("/{}", node.kind())).json(&body).send().await?;
        assert_eq!(reply.status, 201, "{reply}");
    }
    Ok(())
}

#[test]
fn host_names_are_used_if_the_sentinels_resolve_them_else_refused() {
    scenario(async |lab| {
        for resolve in ["yes", "no"] {
            let broker = lab.broker(Broker::builder())?;
            let redis = try_join_all((0..2).map(|_| lab.redis().start())).await?;
            let settings = ["resolve", "announce"].map(|what| format!("sentinel {what}-hostnames {resolve}"));
            let sentinel = || settings.iter().fold(lab.sentinel(), e2e::NodeBuilder::config);
            let sentinels = try_join_all((0..3).map(|_| sentinel().start())).await?;
            register_as_localhost(&broker, &redis).await?;
            register_as_localhost(&broker, &sentinels).await?;
            if resolve == "no" {
                refused(lab, &broker, &[], &["localhost", "SENTINEL CONFIG SET resolve-hostnames yes"])
                    .await?;
                continue;
            }
            expect_code(&run(lab, &broker, &[]).await?, 0);
            let followed = redis[1].info("replication").await?;
            assert_eq!((&*followed["master_host"], &*followed["master_link_status"]), ("localhost", "up"));
            for sentinel in &sentinels {
                let quorum: String = sentinel.query(&["SENTINEL", "CKQUORUM", "mymaster"]).await?;
                assert!(quorum.starts_with("OK 3 usable Sentinels"), "{quorum}");
            }
            let ran = run(lab, &broker, &[]).await?;
            assert!(ran.code == Some(0) && ran.stderr.contains("already configured"), "{ran}");
        }
        Ok(())
    });
}

#[test]
fn an_address_that_a_sentinel_keeps_of_a_node_with_a_name_is_warned_of() {
    scenario(async |lab| {
        let system = register(lab.system(2, 3).await?).await?;
        expect_code(&run(lab, &system.broker, &[]).await?, 0);
        // The same nodes, now registered by their names.
        let broker = lab.broker(Broker::builder())?;
        register_as_localhost(&broker, &system.redis).await?;
        register_as_localhost(&broker, &system.sentinels).await?;
        let ran = lab.runner(["verify", "--broker", &broker.url()]).run(LIMIT).await?;
        expect_code(&ran, 0);
        let kept = format!("keeps the address {}", system.redis[0].addr());
        assert!(ran.stderr.contains(&kept) && ran.stderr.contains("SENTINEL REMOVE mymaster"), "{ran}");
        // This is the command in the hint.
        for server in &system.redis {
            server.command(&["CONFIG", "SET", "replica-announce-ip", "localhost"]).await?;
            server.command(&["CLIENT", "KILL", "TYPE", "master"]).await?;
        }
        for sentinel in &system.sentinels {
            for setting in ["resolve-hostnames", "announce-hostnames"] {
                sentinel.command(&["SENTINEL", "CONFIG", "SET", setting, "yes"]).await?;
            }
            sentinel.command(&["SENTINEL", "REMOVE", "mymaster"]).await?;
        }
        expect_code(&run(lab, &broker, &[]).await?, 0);
        let ran = lab.runner(["verify", "--broker", &broker.url()]).run(LIMIT).await?;
        expect_code(&ran, 0);
        assert!(!ran.stderr.contains("keeps the address"), "{ran}");
        Ok(())
    });
}

#[test]
fn nothing_outside_of_the_allowed_networks_is_connected_to() {
    scenario(async |lab| {
        let system = register(lab.system(2, 3).await?).await?;
        let before: String = system.redis[0].info("stats").await?["total_connections_received"].clone();
        let url = system.broker.url();
        let flags = ["bootstrap", "--broker", &url, "--allow", "10.0.0.0/8", "--timeout", "1s"];
        let ran = lab.runner(flags).run(LIMIT).await?;
        expect_code(&ran, 3);
        assert!(ran.stderr.contains("127.0.0.1 is not in any `--allow` network"), "{ran}");
        let after: String = system.redis[0].info("stats").await?["total_connections_received"].clone();
        assert_eq!(after.parse::<u64>()?, before.parse::<u64>()? + 1, "the one is this test's own");

        expect_code(&run(lab, &system.broker, &["--allow", "10.0.0.0/8,127.0.0.0/8"]).await?, 0);
        expect_healthy(&system, 0).await
    });
}
