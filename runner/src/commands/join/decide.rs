//! Decides how this node starts, from the answers of other nodes and this node's own state. No I/O.
//!
//! Three things never happen, regardless of the answers: a server starts as an empty master while a Sentinel
//! reports a master; a server starts alone while a known Sentinel does not answer; a server's data is thrown
//! away although no Sentinel knows the server as a member of this system.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use broker_fn::api::Group;

use super::position::Position;
use crate::node::endpoint::Endpoint;
use crate::node::sentinel::{Monitored, Peer, SentinelState};

/// The answers of all nodes at about one moment.
#[derive(Debug, Clone)]
pub struct Heard {
    /// The broker's answer, or why there is none.
    pub broker: Result<BrokerSays, String>,
    /// Every Sentinel that was asked, at each of its addresses; never this node itself.
    pub sentinels: Vec<AskedSentinel>,
    /// The servers that a Sentinel reports: each server's answer, or why there is none.
    pub servers: BTreeMap<Endpoint, Result<NamedServer, String>>,
    /// The addresses among these that are this node's own.
    pub own: BTreeSet<Endpoint>,
}

/// The broker's answer about the group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BrokerSays {
    /// How many Sentinels a complete group has.
    pub expected_sentinels: usize,
    /// The master of the system that a runner has verified, if there is such a system.
    pub verified: Option<String>,
}

#[derive(Debug, Clone)]
pub struct AskedSentinel {
    pub endpoint: Endpoint,
    /// The Sentinel's answer, or why there is none.
    pub answer: Result<SentinelState, String>,
}

/// A Redis server that a Sentinel reports, as it describes itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NamedServer {
    pub is_master: bool,
    /// Whether the server's `join` holds it, so that no replica can synchronise from it.
    pub is_held: bool,
    /// Whether the server holds keys, or may hold keys because it is still loading.
    pub holds_data: bool,
    /// Whether the server holds only the data that it found on its disk when it started. Since then, it has
    /// received and sent no replication data.
    pub is_from_disk: bool,
    /// Whether the server has only just started, and its `join` may still report how far its data goes.
    pub is_yet_to_report: bool,
    /// How far the server's data goes. `None` while the whole data set changes.
    pub position: Option<Position>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum This {
    Redis(ThisRedis),
    Sentinel {
        /// Whether the Sentinel's file monitors the group already.
        monitors: bool,
    },
}

/// This node, if it is a Redis server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ThisRedis {
    /// What the server will find on its disk.
    pub disk: Disk,
    /// How far the data on the disk goes.
    pub position: Option<Position>,
    /// How far this node's data went, according to its journal.
    pub noted: Option<Position>,
    /// Whether the data on the disk goes less far than `noted`.
    pub is_rolled_back: bool,
    /// Whether the operator permits deleting this node's data if no Sentinel knows the node as a member.
    pub discard_data: bool,
    /// Whether the server is a cache, which may start empty.
    pub is_cache: bool,
    /// Whether the server is running, and is held.
    pub is_held: bool,
}

/// What a Redis server finds on its disk when it starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Disk {
    Empty,
    /// An append-only file without keys.
    Blank,
    /// An append-only file from before the last synchronisation: the rewrite after that synchronisation had
    /// not ended.
    Outdated,
    /// Data that the server loads.
    Data,
    /// Data in an RDB file that the server does not load, and overwrites with its next save. With `appendonly
    /// yes` it reads only the append-only file, and there is none.
    Unread,
}

/// How a node starts in one of its groups.
#[derive(Debug, Clone)]
pub struct InGroup {
    pub start: Start,
    /// `None`: the broker's default group, whose name is not known yet.
    pub group: Option<Group>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
#[must_use]
pub enum Start {
    /// As a replica of no server: it takes no writes and empties no server. No node knows of a system, so it
    /// is not known whether this server may be a master. The server registers after that.
    Held,
    /// A Sentinel that monitors nothing yet.
    Alone,
    /// A Sentinel whose own file already monitors the group.
    AsItIs,
    /// As a replica of this master.
    Follow {
        master: Endpoint,
        /// Whether the master is up as a master. If it is not, the Sentinels may promote this node in its
        /// place.
        is_up: bool,
        /// The servers that are up and have more data than this node. Until this node has reached its master,
        /// it must not be promoted.
        ahead: Vec<Endpoint>,
    },
    /// As the master: the Sentinels report this node, it has its data, and no other node can have newer data.
    Lead,
    /// A Sentinel that monitors this master as the others do.
    Monitor {
        master: Endpoint,
        /// How many Sentinels have to agree that the master is down.
        quorum: u64,
        /// The options of the other Sentinels, as in their files.
        options: Vec<(String, String)>,
        /// The id by which the other Sentinels know a Sentinel at this node's address. That Sentinel was this
        /// node, which has lost its file.
        id: Option<String>,
    },
    Wait(Waiting),
}

/// Why this node does not start yet.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Waiting {
    /// No node knows whether there is a system.
    #[error("no Sentinel that answers monitors the group, and the broker gives no roster: {0}")]
    Broker(String),
    /// A runner has verified a system, and no Sentinel that answers knows that system.
    #[error("the broker has a record of a system with the master {master}, but no Sentinel that answers \
         monitors this master{}", Silent(.silent))]
    Lost {
        /// The master, according to the broker.
        master: String,
        /// The Sentinels that do not answer.
        silent: Vec<(Endpoint, String)>,
    },
    /// A Sentinel that does not answer may know of a system.
    #[error("no Sentinel that answers monitors a master, but some Sentinels do not answer{}", Silent(.0))]
    Unheard(Vec<(Endpoint, String)>),
    /// Too few Sentinels report the same master.
    #[error(
        "no majority of the {expected} Sentinels reports the same master; {}{}",
        Votes(.votes), Silent(.silent)
    )]
    NoMajority {
        /// The masters that are named, and by how many Sentinels.
        votes: Vec<(Endpoint, usize)>,
        /// The number of Sentinels of which a majority has to agree.
        expected: usize,
        /// The Sentinels that do not answer.
        silent: Vec<(Endpoint, String)>,
    },
    /// The master is about to change.
    #[error("the Sentinels are failing over from {0}")]
    Failover(Endpoint),
    /// The server that the Sentinels report as the master is a replica.
    #[error("the Sentinels report {0} as the master, but {0} is a replica")]
    NotMaster(Endpoint),
    /// The master does not answer, and this node has no data with which it could replace the master.
    #[error("the Sentinels report {master} as the master, which does not answer: {why}")]
    MasterSilent { master: Endpoint, why: String },
    /// This node was the master, and its replicas may have data that it lacks.
    #[error(
        "the Sentinels still report this node as the master, but {} may have writes that this node has \
         lost: waiting for the Sentinels to fail over",
        List(.0)
    )]
    Outlived(Vec<Endpoint>),
    /// This node was the master, and servers that may have data that it lacks can't be asked.
    #[error(
        "the Sentinels still report this node as the master, but {} can't be reached and may have writes \
         that this node has lost",
        List(.0)
    )]
    Unasked(Vec<Endpoint>),
    /// This node was the master, and is empty.
    #[error(
        "the Sentinels report this node as the master, but its disk has no data, and its replicas may \
         still have the data"
    )]
    Wiped,
    /// This node was the master, and its disk lacks data that it held.
    #[error(
        "the Sentinels report this node as the master, but its append-only file is from before its last \
         synchronisation: the server died before it had rewritten the file"
    )]
    Outdated,
    /// This node would start without its data.
    #[error(
        "this node has data in an RDB file, and would start without that data: with `appendonly yes` a \
         server reads only its append-only file, and there is none"
    )]
    Unread,
    /// This node's address is in use.
    #[error("a server already answers at {0}, this node's own address")]
    AlreadyRunning(Endpoint),
    /// This node's data would be lost.
    #[error(
        "the data on this node's disk may not be the data of {master}: the Sentinels do not know this \
         node as a member"
    )]
    Stranger { master: Endpoint },
}

impl Waiting {
    /// What a person can do about it.
    #[must_use]
    pub fn hint(&self) -> String {
        match self {
            Waiting::Broker(_) => {
                "check --broker and --token; or set --sentinel and --group: `join` then asks the Sentinels \
                 without the broker"
                    .into()
            }
            Waiting::Lost { .. } => {
                "start the Sentinels of that system; if all of them or their files are gone permanently: \
                 DELETE /groups/GROUP at the broker (docs/recovery.md), which deletes the registrations and \
                 the record of the verified system"
                    .into()
            }
            Waiting::Unheard(_) => {
                "start these Sentinels; if one is gone permanently, deregister it (`sentinel-runner \
                 deregister sentinel HOST:PORT`), or remove its --sentinel"
                    .into()
            }
            Waiting::NoMajority { .. } => {
                "start the other Sentinels; if they or their files are gone permanently, set --sentinels to \
                 the number of remaining Sentinels, for this start only; do not set it if the others are \
                 only unreachable: they may have another master"
                    .into()
            }
            Waiting::Failover(_) => "wait until the failover has ended".into(),
            Waiting::NotMaster(master) => {
                format!("wait; if this lasts, check ROLE on {master}, and the log of its `join`")
            }
            Waiting::MasterSilent { master, .. } => format!(
                "start {master}, and check its password and TLS; or SENTINEL FAILOVER GROUP on a Sentinel \
                 makes a replica the master, without the writes that only {master} has"
            ),
            Waiting::Outlived(_) => {
                "wait for `down-after-milliseconds`, and until the Sentinels agree; if no failover comes, \
                 check `replica-priority` on the replicas; last resort: start the server without `join`: it \
                 is then the master with the data on its disk, and its replicas lose data that only they \
                 have"
                    .into()
            }
            Waiting::Unasked(_) => {
                "start that server, or let this node connect to it (password, TLS, network); if the \
                 server is gone permanently, wait until the Sentinels consider it down: \
                 `down-after-milliseconds`"
                    .into()
            }
            Waiting::Wiped => {
                "start the replicas: the Sentinels promote one that has the data; if no node has the data \
                 any more, or the server is a cache, set --cache for one start: the server then starts \
                 empty as the master, and empties its replicas"
                    .into()
            }
            Waiting::Outdated => {
                "start the replicas: the Sentinels promote one that has the data; if no node has the data \
                 any more, remove `temp-*.incr` from this node's append-only folder: the server then starts \
                 as the master with the older data, and its replicas lose data that only they have"
                    .into()
            }
            Waiting::Unread => {
                "start the server once without `join`, with `--appendonly no`; then run `CONFIG SET \
                 appendonly yes`, and stop the server when `INFO persistence` shows \
                 aof_rewrite_in_progress:0; to start without this data, move the file away"
                    .into()
            }
            Waiting::AlreadyRunning(_) => {
                "stop that server; if the address belongs to another node, set this node's own address \
                 with --announce"
                    .into()
            }
            Waiting::Stranger { .. } => {
                "if this node's address has changed, set --announce to the address that the Sentinels know; \
                 if you do not need the data on this node's disk, move the files away, or set \
                 --discard-data for one start, which deletes this data (for example, if a new replica was \
                 restarted within 10 s, before the Sentinels knew it)"
                    .into()
            }
        }
    }
}

/// Whether a Redis server can be held while it waits. Other nodes can ask a held server, and may be waiting
/// for its answer. It can't be held if it is reported as the master and lacks data that others have, or may
/// have. The Sentinels promote one of the other servers only while this server is down.
#[must_use]
pub fn can_be_held_meanwhile(waiting: &Waiting, heard: &Heard, this: &ThisRedis) -> bool {
    match waiting {
        // The Sentinels do not reach the replicas either.
        Waiting::Unasked(unasked) if this.disk == Disk::Data => {
            let known = monitored(heard);
            let mut replicas = known.values().flat_map(|known| &known.replicas);
            replicas.all(|replica| replica.is_gone() || !unasked.contains(&replica.endpoint))
        }
        // This node's disk was wiped. If this node were held, another node that comes back would wait because
        // this node might have more data.
        Waiting::MasterSilent { .. } | Waiting::NotMaster(_) => {
            matches!(this.disk, Disk::Empty | Disk::Blank) && is_known(heard)
        }
        _ => false,
    }
}

struct Silent<'a>(&'a [(Endpoint, String)]);

impl fmt::Display for Silent<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|(endpoint, why)| write!(f, "\n{endpoint}: {why}"))
    }
}

struct Votes<'a>(&'a [(Endpoint, usize)]);

impl fmt::Display for Votes<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, (master, votes)) in self.0.iter().enumerate() {
            let comma = if index == 0 { "" } else { ", " };
            let (s, verb) = if *votes == 1 { ("", "reports") } else { ("s", "report") };
            write!(f, "{comma}{votes} Sentinel{s} {verb} {master}")?;
        }
        Ok(())
    }
}

pub struct List<'a>(pub &'a [Endpoint]);

impl fmt::Display for List<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, endpoint) in self.0.iter().enumerate() {
            write!(f, "{}{endpoint}", if index == 0 { "" } else { ", " })?;
        }
        Ok(())
    }
}

/// Decides how this node starts. `expected` is how many Sentinels there are according to the operator: the
/// number itself, or else how many were named. A majority of them has to agree.
pub fn how_to_start(heard: &Heard, this: This, expected: ExpectedSentinels) -> Start {
    if let This::Sentinel { monitors: true } = this {
        return Start::AsItIs;
    }
    let monitored = monitored(heard);
    if monitored.is_empty() {
        return decide_without_system(heard, this);
    }
    let agreed = match agreed(heard, &monitored, expected) {
        Ok(agreed) => agreed,
        Err(waiting) => return Start::Wait(waiting),
    };
    if agreed.witnesses.iter().any(|witness| witness.master.has_flag("failover_in_progress")) {
        return Start::Wait(Waiting::Failover(agreed.master.clone()));
    }
    match this {
        This::Sentinel { .. } => decide_sentinel(heard, &agreed),
        This::Redis(redis) if heard.own.contains(agreed.master) => decide_named_master(heard, &agreed, redis),
        This::Redis(redis) => decide_replica(heard, &agreed, &redis),
    }
}

/// The master that this node has to follow now, if it has started as a replica of `followed` and does not
/// reach that master. Another server may have been promoted before any Sentinel knew this node. Sentinels
/// that know this node send it the new master themselves.
#[must_use]
pub fn current_master(heard: &Heard, followed: &Endpoint, expected: ExpectedSentinels) -> Option<Endpoint> {
    let monitored = monitored(heard);
    let Agreed { master, witnesses } = agreed(heard, &monitored, expected).ok()?;
    let is_settled = !witnesses.iter().any(|witness| witness.master.has_flag("failover_in_progress"));
    let is_master = matches!(heard.servers.get(master), Some(Ok(server)) if server.is_master);
    let is_other = master != followed && !heard.own.contains(master);
    (is_other && is_master && is_settled && !is_known(heard)).then(|| master.clone())
}

/// The replicas that some Sentinel knows, and that do not answer. They may hold data that no other node
/// holds.
#[must_use]
pub fn unheard(heard: &Heard) -> Vec<Endpoint> {
    let known =
        monitored(heard).into_values().flat_map(|known| &known.replicas).map(|replica| &replica.endpoint);
    let is_unheard = |endpoint: &&Endpoint| {
        !heard.own.contains(*endpoint) && !matches!(heard.servers.get(*endpoint), Some(Ok(_)))
    };
    known.filter(is_unheard).cloned().collect::<BTreeSet<_>>().into_iter().collect()
}

/// The servers that answered and have more data than this server. If this server has only the data from its
/// disk, also the servers that most likely have more. They are to be promoted before this server. (If nothing
/// shows which of two servers has more, the Sentinels take the one with the lowest run id.) The master is
/// left out: if the master is gone, standing back for the master is useless.
#[must_use]
pub fn servers_with_more_data(heard: &Heard, this: &NamedServer) -> Vec<Endpoint> {
    let known = monitored(heard);
    let is_master = |endpoint: &Endpoint| known.values().any(|known| known.master.endpoint == *endpoint);
    let has_more = |server: &NamedServer| {
        let both = this.position.as_ref().zip(server.position.as_ref());
        let is_behind = both.is_some_and(|(ours, theirs)| ours.is_likely_behind(theirs));
        this.is_from_disk && server.holds_data && is_behind
    };
    let others =
        heard.servers.iter().filter(|(endpoint, _)| !heard.own.contains(endpoint) && !is_master(endpoint));
    let more = others.filter(|(_, answer)| answer.as_ref().is_ok_and(has_more));
    more.map(|(endpoint, _)| endpoint.clone()).collect()
}

/// Whether to wait for a server that does not answer now, or that may still report its position. The wait for
/// a server that does not answer ends when a majority of the answering Sentinels lists the server as
/// `s_down`.
#[must_use]
pub fn is_awaited(heard: &Heard, server: &Endpoint) -> bool {
    if let Some(Ok(server)) = heard.servers.get(server) {
        // The server has only just come back, and may still report how far its data goes.
        return server.is_yet_to_report;
    }
    let known = monitored(heard);
    let has_it_down = |known: &&&Monitored| {
        let is_master_down = known.master.endpoint == *server && known.master.has_flag("s_down");
        is_master_down
            || known.replicas.iter().any(|replica| replica.endpoint == *server && replica.is_down())
    };
    known.values().filter(has_it_down).count() <= known.len() / 2
}

/// Whether a Sentinel knows this node as a replica.
#[must_use]
pub fn is_known(heard: &Heard) -> bool {
    let replicas = monitored(heard).into_values().flat_map(|known| &known.replicas);
    replicas.into_iter().any(|replica| heard.own.contains(&replica.endpoint))
}

/// How many Sentinels there are, according to the operator.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ExpectedSentinels {
    /// The number, if it was given. It takes precedence over the broker's number.
    pub number: Option<usize>,
    /// How many Sentinels were named. This number is used if the broker can't be asked.
    pub named: usize,
}

impl ThisRedis {
    /// The server as it will describe itself when it runs, before it replicates from another node.
    fn on_disk(&self) -> NamedServer {
        NamedServer {
            is_master: false,
            is_held: self.is_held,
            holds_data: self.disk == Disk::Data,
            is_from_disk: true,
            is_yet_to_report: false,
            position: self.position.clone().filter(|_| self.disk == Disk::Data),
        }
    }
}

/// What each Sentinel that monitors the group knows of the group. A Sentinel that was reached at two
/// addresses has one entry.
fn monitored(heard: &Heard) -> BTreeMap<&str, &Monitored> {
    let answers = heard.sentinels.iter().filter_map(|asked| asked.answer.as_ref().ok());
    answers.filter_map(|state| Some((state.my_id.as_str(), state.monitored.as_ref()?))).collect()
}

fn silent(heard: &Heard) -> Vec<(Endpoint, String)> {
    let asked = heard.sentinels.iter();
    asked.filter_map(|asked| Some((asked.endpoint.clone(), asked.answer.as_ref().err()?.clone()))).collect()
}

/// A master that a majority of the Sentinels reports.
struct Agreed<'a> {
    master: &'a Endpoint,
    /// The views of the Sentinels that report the master.
    witnesses: Vec<&'a Monitored>,
}

fn agreed<'a>(
    heard: &Heard,
    monitored: &BTreeMap<&str, &'a Monitored>,
    expected: ExpectedSentinels,
) -> Result<Agreed<'a>, Waiting> {
    let ids: BTreeSet<&str> =
        heard.sentinels.iter().filter_map(|asked| Some(asked.answer.as_ref().ok()?.my_id.as_str())).collect();
    // Sentinel itself counts all Sentinels that it has ever met, and a name may have several addresses. If
    // there are more Sentinels than were expected, a majority of the larger number has to agree.
    let met = monitored.values().map(|known| known.peers.len() + 1).max().unwrap_or_default();
    let expected = match (expected.number, &heard.broker) {
        (Some(number), _) => number,
        (None, Ok(says)) => says.expected_sentinels.max(met),
        (None, Err(_)) => expected.named.max(ids.len() + silent(heard).len()).max(met),
    }
    .max(ids.len());
    let mut votes: BTreeMap<&Endpoint, Vec<&Monitored>> = BTreeMap::new();
    for known in monitored.values() {
        votes.entry(&known.master.endpoint).or_default().push(known);
    }
    let majority = votes.iter().find(|(_, witnesses)| witnesses.len() > expected / 2);
    match majority {
        Some((master, witnesses)) => Ok(Agreed { master, witnesses: witnesses.clone() }),
        None => Err(Waiting::NoMajority {
            votes: votes.iter().map(|(master, witnesses)| ((*master).clone(), witnesses.len())).collect(),
            expected,
            silent: silent(heard),
        }),
    }
}

/// Decides if no Sentinel that answered monitors the group.
fn decide_without_system(heard: &Heard, this: This) -> Start {
    let says = match &heard.broker {
        Ok(says) => says,
        Err(error) => return Start::Wait(Waiting::Broker(error.clone())),
    };
    if let Some(master) = &says.verified {
        return Start::Wait(Waiting::Lost { master: master.clone(), silent: silent(heard) });
    }
    let This::Redis(redis) = this else {
        // A Sentinel that monitors nothing does no harm, so it starts. Sentinels that waited for each other
        // would wait forever. A Redis server waits, because it would start as a master.
        return Start::Alone;
    };
    if heard.sentinels.iter().any(|asked| asked.answer.is_err()) {
        return Start::Wait(Waiting::Unheard(silent(heard)));
    }
    if redis.disk == Disk::Unread { Start::Wait(Waiting::Unread) } else { Start::Held }
}

fn decide_sentinel(heard: &Heard, agreed: &Agreed) -> Start {
    let master = agreed.master.clone();
    match heard.servers.get(&master) {
        Some(Ok(server)) if server.is_master => {
            let Some(newest) = agreed.witnesses.iter().max_by_key(|witness| witness.master.config_epoch())
            else {
                unreachable!("a majority is at least one")
            };
            let option = |name: &&str| Some(((*name).to_owned(), newest.master.fields.get(*name)?.clone()));
            let known_here = newest.peers.iter().find(|(_, peer)| heard.own.contains(&peer.endpoint));
            Start::Monitor {
                master,
                quorum: newest.master.quorum().max(1),
                options: COPIED_OPTIONS.iter().filter_map(option).collect(),
                id: known_here.map(|(id, _)| id.clone()),
            }
        }
        Some(Ok(_)) => Start::Wait(Waiting::NotMaster(master)),
        // A Sentinel that never sees the master learns of no other Sentinel, and of no failover.
        answer => Start::Wait(Waiting::MasterSilent { master, why: why(answer) }),
    }
}

/// The options that a Sentinel takes over from its peers.
const COPIED_OPTIONS: [&str; 5] = [
    "down-after-milliseconds",
    "failover-timeout",
    "parallel-syncs",
    "notification-script",
    "client-reconfig-script",
];

fn why(answer: Option<&Result<NamedServer, String>>) -> String {
    match answer {
        Some(Err(why)) => why.clone(),
        Some(Ok(_)) | None => "it was not asked".into(),
    }
}

/// Decides if the Sentinels report another server as the master.
fn decide_replica(heard: &Heard, agreed: &Agreed, this: &ThisRedis) -> Start {
    let ThisRedis { disk, discard_data, .. } = *this;
    let master = agreed.master.clone();
    let answer = heard.servers.get(&master);
    // Only the Sentinels decide this: a server that was started alone has registered too.
    let is_member = monitored(heard).values().any(|known| {
        let replicas = known.replicas.iter().map(|replica| &replica.endpoint);
        replicas.chain([&known.master.endpoint]).any(|endpoint| heard.own.contains(endpoint))
    });
    // A replica is emptied only when it synchronises. Until the master is back, this node offers its data,
    // and can be promoted.
    let offers_data = matches!(disk, Disk::Data | Disk::Outdated) && is_member;
    if let Some(Ok(server)) = answer
        && !server.is_master
        && !(server.is_held && offers_data)
    {
        return Start::Wait(Waiting::NotMaster(master));
    }
    if matches!(disk, Disk::Data | Disk::Outdated | Disk::Unread) && !is_member && !discard_data {
        return Start::Wait(Waiting::Stranger { master });
    }
    // This applies from the first moment: of two replicas that come back, the Sentinels may choose one within
    // a second.
    let ahead = servers_with_more_data(heard, &this.on_disk());
    match answer {
        Some(Ok(server)) if server.is_master => Start::Follow { master, is_up: true, ahead: Vec::new() },
        Some(Ok(_)) => Start::Follow { master, is_up: false, ahead },
        Some(Err(_)) if offers_data => Start::Follow { master, is_up: false, ahead },
        answer => Start::Wait(Waiting::MasterSilent { master, why: why(answer) }),
    }
}

/// Decides if the Sentinels report this node as the master: it comes back before any failover.
fn decide_named_master(heard: &Heard, agreed: &Agreed, this: ThisRedis) -> Start {
    let ThisRedis { disk, position, noted, is_rolled_back, is_cache, is_held, .. } = this;
    let own = agreed.master;
    if let Some(Ok(_)) = heard.servers.get(own)
        && !is_held
    {
        return Start::Wait(Waiting::AlreadyRunning(own.clone()));
    }
    // Any Sentinel that knows this master may know a replica of it, also a Sentinel outside the majority.
    let (mut outlived, mut unasked) = (BTreeSet::new(), BTreeSet::new());
    let (mut has_replicas, mut all_heard) = (false, true);
    let by_all = monitored(heard);
    // Each Sentinel decides by the state that it has read itself.
    let is_candidate = |replica: &Peer| {
        by_all.values().filter(|known| known.has_quorum()).any(|known| {
            known.replicas.iter().any(|same| same.endpoint == replica.endpoint && known.may_promote(same))
        })
    };
    for replica in by_all.values().flat_map(|known| &known.replicas) {
        if heard.own.contains(&replica.endpoint) {
            continue;
        }
        has_replicas = true;
        all_heard &= matches!(heard.servers.get(&replica.endpoint), Some(Ok(_)));
        let has_what_was_lost = match heard.servers.get(&replica.endpoint) {
            Some(Ok(server)) if server.is_master => {
                return Start::Wait(Waiting::Failover(own.clone()));
            }
            Some(Ok(server)) => {
                let ours = position.as_ref().filter(|_| disk == Disk::Data);
                match (ours, &server.position) {
                    (Some(ours), Some(theirs)) if let Some(is_behind) = ours.is_behind(theirs) => is_behind,
                    // The replica has data that this node has had, and no longer finds on its disk.
                    (Some(ours), Some(theirs))
                        if noted.as_ref().is_some_and(|noted| noted.went_from(ours, theirs)) =>
                    {
                        true
                    }
                    _ if server.is_yet_to_report && server.holds_data => true,
                    // The replica's data is from its disk, like this node's data.
                    _ if server.is_from_disk => server.holds_data && (disk != Disk::Data || is_rolled_back),
                    // No Sentinel will ever promote this replica, and nothing shows that it goes further.
                    _ if disk == Disk::Data && !is_candidate(replica) => false,
                    _ => true,
                }
            }
            Some(Err(_)) | None => {
                // The replica may be about to start, or another node may still reach it.
                if !replica.is_down() {
                    unasked.insert(replica.endpoint.clone());
                }
                continue;
            }
        };
        if has_what_was_lost {
            outlived.insert(replica.endpoint.clone());
        }
    }
    if !outlived.is_empty() {
        return Start::Wait(Waiting::Outlived(outlived.into_iter().collect()));
    }
    if !unasked.is_empty() {
        return Start::Wait(Waiting::Unasked(unasked.into_iter().collect()));
    }
    match disk {
        // The disk has the last data of this node, even if that data is empty.
        Disk::Data | Disk::Blank => Start::Lead,
        Disk::Unread => Start::Wait(Waiting::Unread),
        // This data is older than the data that this node held, but no other node has data.
        Disk::Outdated if all_heard => Start::Lead,
        Disk::Outdated => Start::Wait(Waiting::Outdated),
        // Without replicas, no other node has ever had data.
        Disk::Empty if is_cache || !has_replicas => Start::Lead,
        Disk::Empty => Start::Wait(Waiting::Wiped),
    }
}

#[cfg(test)]
mod tests;
