//! The broker keeps every registration that it has answered: under load, across a crash, and with several
//! hosts on one store.

use std::collections::BTreeSet;
use std::iter;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use broker_fn::api::{Kind, Registration, Roster};
use e2e::host::Wasi;
use e2e::{Broker, Reply, Request, eventually, scenario};
use futures::StreamExt;
use futures::future::try_join_all;
use http::Method;
use tempfile::TempDir;

use crate::contract::spin;
use crate::host;
use crate::support::{LIMIT, whole_sweep};

/// How many different nodes register.
fn nodes() -> usize {
    if whole_sweep() { 2000 } else { 1200 }
}

/// How many groups the nodes belong to.
const GROUPS: usize = 100;
/// How many nodes register at the same time, each over a separate connection.
const CONNECTIONS: usize = 64;
/// How many readers read rosters during the registrations.
const READERS: usize = 4;

/// Each round, and the component that it uses. The interleavings differ from round to round.
fn rounds() -> impl Iterator<Item = (usize, Wasi)> {
    let rounds = if whole_sweep() { 10 } else { 1 };
    (0..rounds).flat_map(|round| Wasi::ALL.map(|wasi| (round, wasi)))
}

/// A folder for SQLite's file, in memory if the system has such a folder. A killed process loses no write
/// that the kernel has accepted, and on a disk the test would mostly wait for `fsync`.
fn folder() -> std::io::Result<TempDir> {
    let memory = Path::new("/dev/shm");
    if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() }
}

/// One of the nodes. Half of a group's nodes are Redis servers, half are Sentinels.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Node(usize);

impl Node {
    fn all() -> Vec<Self> {
        (0..nodes()).map(Self).collect()
    }

    fn group(self) -> usize {
        self.0 % GROUPS
    }

    fn kind(self) -> Kind {
        Kind::ALL[self.0 / GROUPS % 2]
    }

    fn host(self) -> String {
        format!("10.0.{}.{}", self.0 / 200, self.0 % 200 + 1)
    }
}

/// Allows one load at a time: a load takes all processors, and a store that is slower than 10 s is an error.
static LOADS: Mutex<()> = Mutex::new(());

/// Hosts that share a store, and the registrations that they have answered.
struct Load {
    hosts: Vec<SocketAddr>,
    /// Whether the hosts may end during a request.
    may_end: bool,
    /// The registrations that were answered, by group.
    answered: Vec<Mutex<Vec<(Kind, Registration)>>>,
}

impl Load {
    fn on(hosts: impl IntoIterator<Item = SocketAddr>) -> Self {
        let answered = (0..GROUPS).map(|_| Mutex::default()).collect();
        Self { hosts: hosts.into_iter().collect(), may_end: false, answered }
    }

    /// Registers nodes, each host with its share. Returns the nodes that got no answer.
    ///
    /// An answer that is not 2xx is an error. A registration that is missing from a roster during the load is
    /// also an error.
    async fn register(&self, nodes: Vec<Node>) -> Result<Vec<Node>> {
        let done = AtomicBool::new(false);
        let writing = async {
            let lost: Vec<Result<Option<Node>>> = futures::stream::iter(nodes)
                .map(|node| self.register_one(node))
                .buffer_unordered(CONNECTIONS)
                .collect()
                .await;
            done.store(true, Ordering::Relaxed);
            lost.into_iter().filter_map(Result::transpose).collect::<Result<Vec<Node>>>()
        };
        let reading = try_join_all((0..READERS).map(|reader| self.read_until(&done, reader)));
        let (lost, read) = tokio::join!(writing, reading);
        read?;
        lost
    }

    async fn register_one(&self, node: Node) -> Result<Option<Node>> {
        let to = self.hosts[node.0 % self.hosts.len()];
        let path = format!("/groups/group-{}/{}", node.group(), node.kind());
        let request = Request::new(to, Method::POST, path).json(&serde_json::json!({"host": node.host()}));
        let Ok(reply) = request.send().await else { return Ok(Some(node)) };
        ensure!(reply.status.is_success(), "{}: {reply}", node.host());
        let registration: Registration = reply.json()?;
        ensure!(
            registration.addr.to_string().starts_with(&format!("{}:", node.host())),
            "another's: {reply}"
        );
        self.answered(node.group()).push((node.kind(), registration));
        Ok(None)
    }

    /// Reads one roster after the other. Each must contain every registration that was answered before.
    async fn read_until(&self, done: &AtomicBool, reader: usize) -> Result<()> {
        let groups = (0..GROUPS).cycle().skip(reader * GROUPS / READERS);
        for (turn, group) in groups.enumerate() {
            if done.load(Ordering::Relaxed) {
                break;
            }
            let answered = self.answered(group).clone();
            let host = self.hosts[(turn + reader) % self.hosts.len()];
            let reply = match self.ask(group, host).await {
                // The writers count the requests that got no answer.
                Err(_) if self.may_end => {
                    tokio::time::sleep(Duration::from_millis(10)).await;
                    continue;
                }
                reply => reply?,
            };
            // On a host that is not optimised, a listing may take longer than a store may take. The host
            // answers 503, and is asked again.
            if reply.status == 503 {
                continue;
            }
            ensure!(reply.status.is_success(), "group {group}: {reply}");
            let roster = reply.json()?;
            expect_all(&roster, &answered)?;
            expect_order(&roster)?;
        }
        Ok(())
    }

    async fn ask(&self, group: usize, host: SocketAddr) -> Result<Reply> {
        Request::new(host, Method::GET, format!("/groups/group-{group}")).send().await
    }

    async fn roster(&self, group: usize, host: SocketAddr) -> Result<Roster> {
        self.ask(group, host).await?.json()
    }

    /// Checks every group on every host: the roster contains the answered registrations, in order, and no
    /// node of another group.
    async fn expect_rosters(&self) -> Result<()> {
        for group in 0..GROUPS {
            let own: BTreeSet<String> =
                Node::all().into_iter().filter(|node| node.group() == group).map(Node::host).collect();
            for host in &self.hosts {
                let roster = self.roster(group, *host).await?;
                expect_all(&roster, &self.answered(group))?;
                expect_order(&roster)?;
                for registration in roster.redis.iter().chain(&roster.sentinels) {
                    let host = registration.addr.host.to_string();
                    ensure!(own.contains(&host), "group {group} shows {host}, which is of another");
                }
            }
        }
        Ok(())
    }

    /// Checks that the rosters contain only answered registrations.
    async fn expect_nothing_else(&self) -> Result<()> {
        for group in 0..GROUPS {
            let roster = self.roster(group, self.hosts[0]).await?;
            let (held, answered) = (roster.redis.len() + roster.sentinels.len(), self.answered(group).len());
            ensure!(held == answered, "group {group} holds {held}, and {answered} were answered");
        }
        Ok(())
    }

    fn answered(&self, group: usize) -> std::sync::MutexGuard<'_, Vec<(Kind, Registration)>> {
        self.answered[group].lock().expect("nothing panics while it holds this lock")
    }

    fn count(&self) -> usize {
        (0..GROUPS).map(|group| self.answered(group).len()).sum()
    }
}

fn expect_all(roster: &Roster, answered: &[(Kind, Registration)]) -> Result<()> {
    for (kind, registration) in answered {
        let listed = match kind {
            Kind::Redis => &roster.redis,
            Kind::Sentinel => &roster.sentinels,
        };
        let group = &roster.group;
        ensure!(listed.contains(registration), "{group}: {} was answered and is lost", registration.addr);
    }
    Ok(())
}

fn expect_order(roster: &Roster) -> Result<()> {
    for listed in [&roster.redis, &roster.sentinels] {
        ensure!(
            listed.is_sorted_by_key(|registration| registration.registered_at),
            "out of order: {listed:?}"
        );
    }
    Ok(())
}

#[test]
fn nothing_is_lost_under_load() {
    let _alone = LOADS.lock().unwrap_or_else(PoisonError::into_inner);
    let spin = spin();
    for (round, wasi) in rounds() {
        let spin = spin.as_ref().filter(|spin| spin.has(wasi));
        for on in iter::once(None).chain(spin.map(Some)) {
            scenario(async |lab| {
                let folder = folder()?;
                let builder = Broker::builder().built_for(wasi).store(&folder.path().join("store.db"));
                let broker = lab.broker(match on {
                    Some(spin) => builder.on_spin(spin),
                    None => builder,
                })?;
                let load = Load::on([broker.addr()]);
                let lost = load.register(Node::all()).await?;
                ensure!(lost.is_empty(), "round {round}, {wasi}: {} got no answer", lost.len());
                load.expect_rosters().await?;
                load.expect_nothing_else().await
            });
        }
    }
}

#[test]
fn long_nothing_is_lost_when_the_host_is_killed() {
    let _alone = LOADS.lock().unwrap_or_else(PoisonError::into_inner);
    for (_, wasi) in rounds() {
        scenario(async |lab| {
            let folder = folder()?;
            let store = folder.path().join("store.db");
            let component = wasi.component().to_str().context("a path of text")?;
            let args = ["--store", store.to_str().context("a path of text")?, "--component", component];
            let broker = host::start(lab, &args).await?;
            let mut load = Load::on([broker.addr()]);
            load.may_end = true;
            let kill = async {
                eventually(LIMIT, async || {
                    let count = load.count();
                    ensure!(count >= nodes() / 3, "only {count} of {} nodes got an answer", nodes());
                    Ok(())
                })
                .await?;
                broker.kill();
                anyhow::Ok(())
            };
            let (lost, killed) = tokio::join!(load.register(Node::all()), kill);
            let lost = lost?;
            killed?;
            ensure!(lost.len() >= CONNECTIONS / 2, "it was killed, and only {} got no answer", lost.len());
            assert_eq!(lost.len() + load.count(), nodes());

            let broker = host::start(lab, &args).await?;
            (load.hosts, load.may_end) = (vec![broker.addr()], false);
            load.expect_rosters().await?;
            // A node that got no answer registers again, as a real node does.
            assert_eq!(load.register(lost).await?.len(), 0);
            load.expect_rosters().await?;
            load.expect_nothing_else().await
        });
    }
}

#[test]
fn long_nothing_is_lost_where_two_hosts_share_a_store() {
    let _alone = LOADS.lock().unwrap_or_else(PoisonError::into_inner);
    // With WASI 0.2, one host is older than the other, as while all hosts are replaced. With WASI 0.3 both
    // hosts are new; only the whole sweep has the time for it.
    for (_, wasi) in rounds().filter(|(_, wasi)| *wasi == Wasi::V0_2 || whole_sweep()) {
        scenario(async |lab| {
            let redis = lab.redis().start().await?;
            let store = format!("redis://{}", redis.addr());
            let hosts = [
                lab.broker(Broker::builder().built_for(wasi).store(store.as_str()))?,
                lab.broker(Broker::builder().store(store.as_str()))?,
            ];
            let load = Load::on(hosts.iter().map(Broker::addr));
            let lost = load.register(Node::all()).await?;
            assert_eq!(lost.len(), 0, "got no answer");
            load.expect_rosters().await?;
            load.expect_nothing_else().await
        });
    }
}
