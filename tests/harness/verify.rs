//! An independent check of a system that the runner reports as verified. The check shares no code with the
//! runner, and asks the nodes directly.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::node::Node;
use crate::{at_once, eventually};

/// How long a write may take to reach a replica. A replica that has just come back gets its data only after
/// the master's `repl-diskless-sync-delay`, 5 s by default.
const REPLICATION_LIMIT: Duration = Duration::from_secs(15);

/// Everything that keeps this from being a verified system with the master `master` and with these other
/// nodes. Empty if nothing is wrong.
pub async fn wrong(group: &str, master: &Node, replicas: &[&Node], sentinels: &[&Node]) -> Vec<String> {
    let mut found = Findings(vec![]);
    for sentinel in sentinels {
        let result = check_sentinel(group, master, replicas, sentinel, sentinels, &mut found).await;
        found.note(sentinel, result);
    }
    let result = check_master(master, replicas, &mut found).await;
    found.note(master, result);
    for replica in replicas {
        let result = check_replica(master, replica, &mut found).await;
        found.note(replica, result);
    }
    found.0
}

struct Findings(Vec<String>);

impl Findings {
    fn expect(&mut self, node: &Node, what: &str, actual: Option<&str>, expected: &str) {
        if actual != Some(expected) {
            let actual = actual.unwrap_or("missing");
            self.0.push(format!("{node}: {what} is `{actual}`, not `{expected}`"));
        }
    }

    fn note(&mut self, node: &Node, result: Result<()>) {
        if let Err(error) = result {
            self.0.push(format!("{node}: {error:#}"));
        }
    }
}

async fn check_sentinel(
    group: &str,
    master: &Node,
    replicas: &[&Node],
    sentinel: &Node,
    sentinels: &[&Node],
    found: &mut Findings,
) -> Result<()> {
    let fields: BTreeMap<String, String> = sentinel.query(&["SENTINEL", "MASTER", group]).await?;
    let mut expect = |field: &str, expected: String| {
        found.expect(sentinel, field, fields.get(field).map(String::as_str), &expected);
    };
    expect("name", group.to_owned());
    expect("ip", master.addr().ip().to_string());
    expect("port", master.addr().port().to_string());
    expect("flags", "master".to_owned());
    expect("num-other-sentinels", (sentinels.len() - 1).to_string());
    expect("num-slaves", replicas.len().to_string());
    // The number of nodes is not enough: old nodes may be gone, and new nodes may be there.
    let others = sentinels.iter().filter(|other| other.addr() != sentinel.addr());
    for (command, expected) in [("REPLICAS", addresses(replicas)), ("SENTINELS", addresses(others))] {
        let known: Vec<BTreeMap<String, String>> = sentinel.query(&["SENTINEL", command, group]).await?;
        let known: BTreeSet<String> =
            known.iter().map(|fields| format!("{}:{}", fields["ip"], fields["port"])).collect();
        ensure!(known == expected, "`SENTINEL {command}` lists {known:?}, not {expected:?}");
    }
    let quorum: String = sentinel.query(&["SENTINEL", "CKQUORUM", group]).await?;
    ensure!(quorum.starts_with("OK"), "`SENTINEL CKQUORUM` says `{quorum}`");
    Ok(())
}

fn addresses<'a>(nodes: impl IntoIterator<Item = &'a &'a Node>) -> BTreeSet<String> {
    nodes.into_iter().map(|node| node.addr().to_string()).collect()
}

async fn check_master(master: &Node, replicas: &[&Node], found: &mut Findings) -> Result<()> {
    let (role, _, attached): (String, i64, Vec<(String, u16, i64)>) = master.query(&["ROLE"]).await?;
    found.expect(master, "ROLE", Some(&role), "master");
    // `ROLE` lists only the replicas that are online.
    let online: BTreeSet<SocketAddr> = attached
        .iter()
        .map(|(ip, port, _)| {
            Ok(SocketAddr::new(ip.parse().with_context(|| format!("a replica at `{ip}`"))?, *port))
        })
        .collect::<Result<_>>()?;
    let expected: BTreeSet<SocketAddr> = replicas.iter().map(|replica| replica.addr()).collect();
    ensure!(online == expected, "the replicas online are {online:?}, not {expected:?}");
    Ok(())
}

async fn check_replica(master: &Node, replica: &Node, found: &mut Findings) -> Result<()> {
    let info = replica.info("replication").await?;
    let mut expect = |field: &str, expected: &str| {
        found.expect(replica, field, info.get(field).map(String::as_str), expected);
    };
    expect("role", "slave");
    expect("master_host", &master.addr().ip().to_string());
    expect("master_port", &master.addr().port().to_string());
    expect("master_link_status", "up");
    Ok(())
}

/// Writes a key to the master, and waits until each replica has it.
pub async fn replicates(master: &Node, replicas: &[&Node]) -> Result<()> {
    let key = "e2e:replicates";
    // A new value each time, so that an older value can't be mistaken for it.
    let value = master.query::<Vec<String>>(&["TIME"]).await?.join(".");
    master.command(&["SET", key, &value]).await?;
    let written = Instant::now();
    for replica in replicas {
        eventually(REPLICATION_LIMIT.saturating_sub(written.elapsed()), async || {
            let has: Option<String> = at_once(replica.query(&["GET", key]).await);
            ensure!(has.as_ref() == Some(&value), "{replica} has {has:?}, and {master} was given {value}");
            Ok(())
        })
        .await?;
    }
    Ok(())
}
