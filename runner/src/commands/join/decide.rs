//! Deciding how this node starts: pure, from what was heard and what this node is.
//!
//! What never happens, whatever was heard: a server that starts as an empty master while a Sentinel names a master; a
//! server that starts alone while a Sentinel that is known does not answer; a server whose data is thrown away without
//! the Sentinels knowing it as a member of this system.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use broker_fn::api::Group;

use super::position::Position;
use crate::node::endpoint::Endpoint;
use crate::node::sentinel::{Monitored, Peer, SentinelState};

/// What was heard, at about one moment.
#[derive(Debug, Clone)]
pub struct Heard {
    /// What the broker says, or why it says nothing.
    pub broker: Result<BrokerSays, String>,
    /// Every Sentinel that was asked, at each of its addresses; never this node itself.
    pub sentinels: Vec<Asked>,
    /// The servers that a Sentinel names: what each says of itself, or why it says nothing.
    pub servers: BTreeMap<Endpoint, Result<NamedServer, String>>,
    /// Those of all addresses in here that are this very node's.
    pub own: BTreeSet<Endpoint>,
}

/// What the broker says of the group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BrokerSays {
    /// How many Sentinels a complete group has.
    pub expected_sentinels: usize,
    /// The master of the system that a runner has verified, if one has.
    pub verified: Option<String>,
}

#[derive(Debug, Clone)]
pub struct Asked {
    pub endpoint: Endpoint,
    /// What it said, or why it said nothing.
    pub answer: Result<SentinelState, String>,
}

/// A Redis server that a Sentinel names, as it describes itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NamedServer {
    pub is_master: bool,
    /// Whether its `join` holds it: nobody can synchronise from it.
    pub is_held: bool,
    /// Whether it holds keys, or may: it is still loading them.
    pub holds_data: bool,
    /// Whether all that it holds is what it found on its disk when it started: nothing was replicated to it, or from it,
    /// since.
    pub is_from_disk: bool,
    /// Whether it has only just started, and its `join` may still say how far its data goes.
    pub is_yet_to_tell: bool,
    /// How far its data goes; `None` while that changes altogether.
    pub position: Option<Position>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum This {
    Redis(ThisRedis),
    Sentinel {
        /// Whether its file monitors the group already.
        monitors: bool,
    },
}

/// This node, where it is a Redis server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ThisRedis {
    /// What it will find on its disk.
    pub disk: Disk,
    /// How far that goes.
    pub position: Option<Position>,
    /// How far the data went that was there once, by what this node has noted.
    pub noted: Option<Position>,
    /// Whether it goes less far than that.
    pub is_of_before: bool,
    /// Whether the operator lets data go that no one knows as the system's.
    pub discard_data: bool,
    /// Whether an empty start is as good as any: what it holds can be had again from elsewhere.
    pub is_cache: bool,
    /// Whether it runs, and is held.
    pub is_held: bool,
}

/// What a Redis server finds on its disk when it starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Disk {
    Empty,
    /// An append-only file without a key in it: it was there, and held nothing in the end.
    Blank,
    /// An append-only file from before its last synchronisation: the rewrite that follows one had not ended.
    Outdated,
    /// Data, which it loads.
    Data,
    /// Data in an RDB file, which it does not load, and overwrites with its next save: with `appendonly yes` it reads the
    /// append-only file alone, and there is none.
    Unread,
}

/// How a node starts in one of its groups.
#[derive(Debug, Clone)]
pub struct InGroup {
    pub start: Start,
    /// `None`: the broker's default group, which it has yet to name.
    pub group: Option<Group>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
#[must_use]
pub enum Start {
    /// Nobody knows of a system, and so it is not known whether it may be a master: as a replica of nobody, which takes no
    /// writes and empties nobody. Then it registers.
    Held,
    /// A Sentinel that monitors nothing yet.
    Alone,
    /// A Sentinel, with what its file says.
    AsItIs,
    /// As a replica of this master.
    Follow {
        master: Endpoint,
        /// Whether that one is up as a master. Where not, the Sentinels may promote this node in its place.
        is_up: bool,
        /// Those that have more than this node, and are up: before it has reached its master, nobody is to promote this one.
        ahead: Vec<Endpoint>,
    },
    /// As the master: the Sentinels name this node, it has its data, and nobody else can have newer.
    Lead,
    /// A Sentinel, that monitors this master as the others do.
    Monitor {
        master: Endpoint,
        /// How many of them have to agree that it is down.
        quorum: u64,
        /// Options of its peers, as in their files.
        options: Vec<(String, String)>,
        /// The id that its peers know a Sentinel of this node's address by: it was this node, and has lost its file.
        id: Option<String>,
    },
    Wait(Waiting),
}

/// Why this node does not start yet.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Waiting {
    /// Nobody can say whether there is a system.
    #[error("no Sentinel that answers monitors the group, and the broker gives no roster: {0}")]
    Broker(String),
    /// A runner has verified a system, and no Sentinel that answers knows it.
    #[error("the broker has a record of a system with the master {master}, but no Sentinel that answers \
         monitors this master{}", Silent(.silent))]
    Lost {
        /// The master, as the broker was told.
        master: String,
        /// The Sentinels that do not answer.
        silent: Vec<(Endpoint, String)>,
    },
    /// One of those that do not answer may know of a system.
    #[error("no Sentinel that answers monitors a master, but some Sentinels do not answer{}", Silent(.0))]
    Unheard(Vec<(Endpoint, String)>),
    /// Too few Sentinels name the same master.
    #[error(
        "no majority of the {expected} Sentinels names the same master; {}{}",
        Votes(.votes), Silent(.silent)
    )]
    NoMajority {
        /// The masters that are named, and by how many.
        votes: Vec<(Endpoint, usize)>,
        /// Of how many a majority has to agree.
        expected: usize,
        /// The Sentinels that do not answer.
        silent: Vec<(Endpoint, String)>,
    },
    /// Who is master is about to change.
    #[error("the Sentinels are failing over from {0}")]
    Failover(Endpoint),
    /// The one that the Sentinels name says that it is none.
    #[error("the Sentinels name {0} as the master, but {0} is a replica")]
    NotMaster(Endpoint),
    /// The master does not answer, and this node has nothing to offer in its place.
    #[error("the Sentinels name {master} as the master, which does not answer: {why}")]
    MasterSilent { master: Endpoint, why: String },
    /// It was the master, and its replicas may have what it lacks.
    #[error(
        "the Sentinels still name this node as the master, but {} may have writes that this node has \
         lost: waiting for the Sentinels to fail over",
        List(.0)
    )]
    Outlived(Vec<Endpoint>),
    /// It was the master, and who may have what it lacks can't be asked.
    #[error(
        "the Sentinels still name this node as the master, but {} can't be reached and may have writes \
         that this node has lost",
        List(.0)
    )]
    Unasked(Vec<Endpoint>),
    /// It was the master, and is empty.
    #[error(
        "the Sentinels name this node as the master, but its disk has no data, and its replicas may \
         still have the data"
    )]
    Wiped,
    /// It was the master, and its disk lacks what it held.
    #[error(
        "the Sentinels name this node as the master, but its append-only file is from before its last \
         synchronisation: the server died before it had rewritten the file"
    )]
    Outdated,
    /// It would start without its data.
    #[error(
        "this node has data in an RDB file, and would start without that data: with `appendonly yes` a \
         server reads only its append-only file, and there is none"
    )]
    Unread,
    /// Its address is in use.
    #[error("a server already answers at {0}, this node's own address")]
    AlreadyRunning(Endpoint),
    /// Its data would be lost.
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
                "check --broker and --token; with --sentinel and --group, join asks the Sentinels \
                 without the broker"
                    .into()
            }
            Waiting::Lost { .. } => {
                "start the Sentinels of that system; if they are gone permanently, delete the group at \
                 the broker: DELETE /groups/GROUP"
                    .into()
            }
            Waiting::Unheard(_) => {
                "start these Sentinels; if one is gone permanently, deregister it (`sentinel-runner \
                 deregister sentinel HOST:PORT`), or remove its --sentinel"
                    .into()
            }
            Waiting::NoMajority { .. } => {
                "start the other Sentinels; if their files are lost permanently, set --sentinels to the \
                 number that is left, for this start"
                    .into()
            }
            Waiting::Failover(_) => "wait until the failover has ended".into(),
            Waiting::NotMaster(master) => {
                format!(
                    "wait; if this does not end by itself, check the role of the server: ROLE on {master}"
                )
            }
            Waiting::MasterSilent { master, .. } => format!(
                "start {master}, and check its password and TLS; to make a replica the master instead: \
                 SENTINEL FAILOVER GROUP on a Sentinel"
            ),
            Waiting::Outlived(_) => {
                "wait for `down-after-milliseconds`, and until the Sentinels agree; if no replica can be \
                 promoted, start the server without join"
                    .into()
            }
            Waiting::Unasked(_) => {
                "start that server, or let this node connect to it (password, TLS, network); if the \
                 server is gone permanently, wait until the Sentinels consider it down: \
                 `down-after-milliseconds`"
                    .into()
            }
            Waiting::Wiped => {
                "start the replicas: the Sentinels promote one that has the data; if no node has the \
                 data any more, or the server is a cache, pass --cache"
                    .into()
            }
            Waiting::Outdated => {
                "start the replicas: the Sentinels promote one that has the data; if no node has the \
                 data any more, remove `temp-*.incr` from this node's append-only folder: the server \
                 then starts with the older data"
                    .into()
            }
            Waiting::Unread => {
                "start the server once without join, with `--appendonly no`; then run `CONFIG SET \
                 appendonly yes`, and stop the server when `INFO persistence` shows \
                 aof_rewrite_in_progress:0; if the data may be lost, move the file away"
                    .into()
            }
            Waiting::AlreadyRunning(_) => {
                "stop that server; if the address belongs to another node, set this node's own address \
                 with --announce"
                    .into()
            }
            Waiting::Stranger { .. } => {
                "if this node's address has changed, set --announce to the address that the Sentinels \
                 know; if its data may be lost, like that of a replica that was restarted before the \
                 Sentinels knew it (10 s), pass --discard-data, or move the files away"
                    .into()
            }
        }
    }
}

/// Whether a Redis server that waits can be held meanwhile, so that others can ask it: they may wait for its answer. Not one that is
/// named as the master, and lacks what others have, or may: only while it is down do the Sentinels choose one of those.
#[must_use]
pub fn can_be_held_meanwhile(waiting: &Waiting, heard: &Heard, this: &ThisRedis) -> bool {
    match waiting {
        // Gone for the Sentinels too, and not only for this node.
        Waiting::Unasked(unasked) if this.disk == Disk::Data => {
            let known = monitored(heard);
            let mut replicas = known.values().flat_map(|known| &known.replicas);
            replicas.all(|replica| replica.is_gone() || !unasked.contains(&replica.endpoint))
        }
        // Its disk was wiped, and whoever comes back is not to fear that it has more.
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
            let (s, verb) = if *votes == 1 { ("", "names") } else { ("s", "name") };
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

/// Decides. `expected` is how many Sentinels there are by the operator's word: the number itself, or else how many were
/// named; a majority of them has to agree.
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

/// The master that this node is to follow by now, where it has started as a replica of `followed` and does not reach it: another
/// may have been promoted before any Sentinel knew this node. Those that know it tell it themselves.
#[must_use]
pub fn moved(heard: &Heard, followed: &Endpoint, expected: ExpectedSentinels) -> Option<Endpoint> {
    let monitored = monitored(heard);
    let Agreed { master, witnesses } = agreed(heard, &monitored, expected).ok()?;
    let is_settled = !witnesses.iter().any(|witness| witness.master.has_flag("failover_in_progress"));
    let is_master = matches!(heard.servers.get(master), Some(Ok(server)) if server.is_master);
    let is_other = master != followed && !heard.own.contains(master);
    (is_other && is_master && is_settled && !is_known(heard)).then(|| master.clone())
}

/// The replicas that some Sentinel knows, and that say nothing of themselves: they may hold what nobody else does.
#[must_use]
pub fn unheard(heard: &Heard) -> Vec<Endpoint> {
    let known =
        monitored(heard).into_values().flat_map(|known| &known.replicas).map(|replica| &replica.endpoint);
    let is_unheard = |endpoint: &&Endpoint| {
        !heard.own.contains(*endpoint) && !matches!(heard.servers.get(*endpoint), Some(Ok(_)))
    };
    known.filter(is_unheard).cloned().collect::<BTreeSet<_>>().into_iter().collect()
}

/// Those that were heard and have more than this server, or most likely so, which has only what it found on its disk: they are to be
/// promoted first. (Of two of whom nothing says it the Sentinels would take the one with the lowest run id.) Not the master: where that is
/// gone, nobody is left to stand back for.
#[must_use]
pub fn who_has_more(heard: &Heard, this: &NamedServer) -> Vec<Endpoint> {
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

/// Whether a server is to be waited for, though it says nothing just now, or not enough: no majority of the Sentinels that were heard has had it
/// `s_down`.
#[must_use]
pub fn is_missed(heard: &Heard, server: &Endpoint) -> bool {
    if let Some(Ok(server)) = heard.servers.get(server) {
        // It has only just come back, and may say yet how far its data goes.
        return server.is_yet_to_tell;
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

/// How many Sentinels the operator says there are.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ExpectedSentinels {
    /// The number, where it was given; it counts before the broker's.
    pub number: Option<usize>,
    /// How many were named; it counts where the broker can't be asked.
    pub named: usize,
}

impl ThisRedis {
    /// As it will describe itself once it runs, and has heard of nobody.
    fn on_disk(&self) -> NamedServer {
        NamedServer {
            is_master: false,
            is_held: self.is_held,
            holds_data: self.disk == Disk::Data,
            is_from_disk: true,
            is_yet_to_tell: false,
            position: self.position.clone().filter(|_| self.disk == Disk::Data),
        }
    }
}

/// What each Sentinel that monitors the group knows of it; one that was reached at two addresses counts once.
fn monitored(heard: &Heard) -> BTreeMap<&str, &Monitored> {
    let answers = heard.sentinels.iter().filter_map(|asked| asked.answer.as_ref().ok());
    answers.filter_map(|state| Some((state.my_id.as_str(), state.monitored.as_ref()?))).collect()
}

fn silent(heard: &Heard) -> Vec<(Endpoint, String)> {
    let asked = heard.sentinels.iter();
    asked.filter_map(|asked| Some((asked.endpoint.clone(), asked.answer.as_ref().err()?.clone()))).collect()
}

/// A master that a majority names.
struct Agreed<'a> {
    master: &'a Endpoint,
    /// What those who name it know of it.
    witnesses: Vec<&'a Monitored>,
}

fn agreed<'a>(
    heard: &Heard,
    monitored: &BTreeMap<&str, &'a Monitored>,
    expected: ExpectedSentinels,
) -> Result<Agreed<'a>, Waiting> {
    let ids: BTreeSet<&str> =
        heard.sentinels.iter().filter_map(|asked| Some(asked.answer.as_ref().ok()?.my_id.as_str())).collect();
    // Sentinel itself counts all that it has ever met, and a name may have several addresses. More than were expected are not a
    // reason to ask fewer of them.
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

/// No Sentinel that was heard monitors the group.
fn decide_without_system(heard: &Heard, this: This) -> Start {
    let says = match &heard.broker {
        Ok(says) => says,
        Err(error) => return Start::Wait(Waiting::Broker(error.clone())),
    };
    if let Some(master) = &says.verified {
        return Start::Wait(Waiting::Lost { master: master.clone(), silent: silent(heard) });
    }
    let This::Redis(redis) = this else {
        // One that monitors nothing votes for nothing: it does no harm, and Sentinels that waited for each other would wait for
        // ever. What a Redis server is asked for, it answers as a master.
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
        // One that never sees the master learns of nobody else, and of no failover either.
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

/// The Sentinels name another server as the master.
fn decide_replica(heard: &Heard, agreed: &Agreed, this: &ThisRedis) -> Start {
    let ThisRedis { disk, discard_data, .. } = *this;
    let master = agreed.master.clone();
    let answer = heard.servers.get(&master);
    // By the Sentinels alone: whoever was started alone has registered too.
    let is_member = monitored(heard).values().any(|known| {
        let replicas = known.replicas.iter().map(|replica| &replica.endpoint);
        replicas.chain([&known.master.endpoint]).any(|endpoint| heard.own.contains(endpoint))
    });
    // A replica is only emptied when it synchronises. Until the master is back it offers its data, and is there to be promoted.
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
    // From its first moment: of two that come back, the Sentinels may choose within a second.
    let ahead = who_has_more(heard, &this.on_disk());
    match answer {
        Some(Ok(server)) if server.is_master => Start::Follow { master, is_up: true, ahead: Vec::new() },
        Some(Ok(_)) => Start::Follow { master, is_up: false, ahead },
        Some(Err(_)) if offers_data => Start::Follow { master, is_up: false, ahead },
        answer => Start::Wait(Waiting::MasterSilent { master, why: why(answer) }),
    }
}

/// The Sentinels name this very node: it was the master, and comes back before anybody failed over.
fn decide_named_master(heard: &Heard, agreed: &Agreed, this: ThisRedis) -> Start {
    let ThisRedis { disk, position, noted, is_of_before, is_cache, is_held, .. } = this;
    let own = agreed.master;
    if let Some(Ok(_)) = heard.servers.get(own)
        && !is_held
    {
        return Start::Wait(Waiting::AlreadyRunning(own.clone()));
    }
    // Whoever knows of this master, in the majority or not, may know of a replica.
    let (mut outlived, mut unasked) = (BTreeSet::new(), BTreeSet::new());
    let (mut has_replicas, mut all_heard) = (false, true);
    let by_all = monitored(heard);
    // Each knows it by what it has read itself.
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
                    // It has what this node has had, and does not find on its disk any more.
                    (Some(ours), Some(theirs))
                        if noted.as_ref().is_some_and(|noted| noted.went_on(ours, theirs)) =>
                    {
                        true
                    }
                    _ if server.is_yet_to_tell && server.holds_data => true,
                    // What it has is from its disk, as what this node has.
                    _ if server.is_from_disk => server.holds_data && (disk != Disk::Data || is_of_before),
                    // Nobody will ever promote it; and nothing says that it goes further.
                    _ if disk == Disk::Data && !is_candidate(replica) => false,
                    _ => true,
                }
            }
            Some(Err(_)) | None => {
                // It may be about to start, or somebody in between sees it.
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
        // What it held last is what it has, be it nothing.
        Disk::Data | Disk::Blank => Start::Lead,
        Disk::Unread => Start::Wait(Waiting::Unread),
        // Older than what it held, and all that there is.
        Disk::Outdated if all_heard => Start::Lead,
        Disk::Outdated => Start::Wait(Waiting::Outdated),
        // Without a replica nobody else has ever had anything.
        Disk::Empty if is_cache || !has_replicas => Start::Lead,
        Disk::Empty => Start::Wait(Waiting::Wiped),
    }
}

#[cfg(test)]
mod tests;
