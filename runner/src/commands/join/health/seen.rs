//! The last answers of this node's server, and of the Sentinels that monitor it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use broker_fn::api::Kind;
use tokio::time::Instant;

use crate::node::endpoint::Endpoint;
use crate::node::ready::{SentinelNow, ServerNow};

/// Sentinel's own default of `down-after-milliseconds`. It is used until a Sentinel has reported its value.
const DOWN_AFTER: Duration = Duration::from_secs(30);

const SECOND: Duration = Duration::from_secs(1);

/// If several Sentinels are cut off at the same moment, their last answers are at most this far apart: each
/// Sentinel is asked at least once a second.
const SAME_MOMENT: Duration = Duration::from_secs(5);

#[derive(Debug, Clone)]
pub struct SeenNodes {
    pub kind: Kind,
    pub phase: ServerPhase,
    /// The last answer of the server, and when the server was asked.
    pub last_answer: Option<(Instant, NodeAnswer)>,
    /// Why the server did not answer when it was asked last.
    pub silent: Option<String>,
    /// The last answer of each Sentinel, by its id.
    pub views: BTreeMap<String, SentinelView>,
    /// How many Sentinels there are, if the operator has set this.
    pub sentinels: Option<usize>,
    /// What the Sentinels reported when most of them were last heard, and what any Sentinel has added since.
    last_majority: LastMajority,
    /// How far a replica is behind the master, and when that was seen.
    pub lag: Option<(Instant, Lag)>,
    /// Another server that most Sentinels report and that follows this server, and when it last reported
    /// this.
    pub followed_by: Option<(Instant, Endpoint)>,
}

#[derive(Debug, Clone, Default)]
struct LastMajority {
    /// How many Sentinels there are.
    all: usize,
    /// The replicas that the Sentinels may promote, each with all addresses at which it is known. The key is
    /// its process, or else its address.
    candidates: BTreeMap<String, BTreeSet<Endpoint>>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ServerPhase {
    /// The server has not been started, for this reason.
    Waits(String),
    /// The server was started.
    Runs,
}

#[derive(Debug, Clone)]
pub enum NodeAnswer {
    Server(Box<ServerNow>),
    Sentinel(SentinelNow),
}

/// What a Sentinel answers about the system.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SentinelView {
    /// When the Sentinel was asked.
    pub at: Instant,
    pub endpoint: Endpoint,
    /// The master that the Sentinel reports to clients.
    pub names: Endpoint,
    /// Whether that master is this node. `None` if a name can't be looked up.
    pub is_this: Option<bool>,
    /// Whether the Sentinel knows this node, as the master or as a replica. If it does not, it is of another
    /// system.
    pub knows_this: bool,
    pub config_epoch: u64,
    pub quorum: u64,
    pub is_failing_over: bool,
    /// Whether the Sentinel has marked the master as `s_down` or `o_down`.
    pub is_down: bool,
    pub down_after: Duration,
    /// The other Sentinels that this one knows, by id.
    pub peers: BTreeMap<String, Endpoint>,
    /// The replicas that the Sentinel may promote now or in a moment. A replica may be listed at several
    /// addresses.
    pub candidates: Vec<Candidate>,
}

/// A replica that may be promoted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    pub endpoint: Endpoint,
    /// The id of the replica's process. Empty before the Sentinel has read it.
    pub run_id: String,
}

/// How far a replica is behind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lag {
    /// The master that the replica is behind.
    pub master: Endpoint,
    pub bytes: u64,
}

impl SeenNodes {
    /// Nothing was seen yet.
    pub fn new(kind: Kind, sentinels: Option<u16>) -> Self {
        Self {
            kind,
            phase: ServerPhase::Waits("starting".into()),
            last_answer: None,
            silent: None,
            views: BTreeMap::new(),
            sentinels: sentinels.map(usize::from),
            last_majority: LastMajority::default(),
            lag: None,
            followed_by: None,
        }
    }

    /// The Sentinels of this system.
    fn of_this_system(&self) -> impl Iterator<Item = &SentinelView> {
        self.views.values().filter(|view| view.knows_this)
    }

    /// How long a node may be silent before it is treated as gone: the median `down-after-milliseconds` of
    /// the Sentinels, but at least a second.
    pub fn down_after(&self) -> Duration {
        let mut all: Vec<Duration> = self.of_this_system().map(|view| view.down_after).collect();
        all.sort();
        all.get(all.len() / 2).copied().unwrap_or(DOWN_AFTER).max(SECOND)
    }

    /// The Sentinels that have answered within `down_after`.
    pub fn fresh(&self, now: Instant) -> impl Iterator<Item = &SentinelView> {
        let down_after = self.down_after();
        self.of_this_system().filter(move |view| now - view.at < down_after)
    }

    /// How many Sentinels there are, as the Sentinels report it. If the operator has set a larger number, it
    /// is that number.
    pub fn all_sentinels(&self) -> usize {
        self.last_majority.all.max(self.sentinels.unwrap_or_default())
    }

    /// The last answer of each Sentinel. Silent Sentinels that knew of fewer failovers than one that answers
    /// are left out.
    fn last_views(&self, now: Instant) -> impl Iterator<Item = &SentinelView> {
        let down_after = self.down_after();
        let newest = self.fresh(now).map(|view| view.config_epoch).max().unwrap_or_default();
        self.of_this_system().filter(move |view| now - view.at < down_after || view.config_epoch >= newest)
    }

    /// The master that most Sentinels report in their last answer, and how many report it.
    pub fn named(&self, now: Instant) -> Option<(&Endpoint, usize)> {
        let all = self.all_sentinels();
        most_named(self.last_views(now)).filter(|(_, naming)| *naming > all / 2)
    }

    /// Another master than this node, if most Sentinels report other masters; and how many Sentinels do.
    pub fn other_named(&self, now: Instant) -> Option<(&Endpoint, usize)> {
        let others = || self.last_views(now).filter(|view| view.is_this == Some(false));
        let naming = others().count();
        let (other, _) = most_named(others())?;
        (naming > self.all_sentinels() / 2).then_some((other, naming))
    }

    /// The servers that Sentinels could have promoted since most Sentinels were last heard, each with all
    /// addresses at which it is known. Also each other master that a Sentinel names, if that Sentinel knows
    /// of the last failover.
    pub fn rivals(&self, now: Instant) -> Vec<BTreeSet<&Endpoint>> {
        let named = self.last_views(now).filter(|view| view.is_this == Some(false));
        let named = named.map(|view| BTreeSet::from([&view.names]));
        self.last_majority
            .candidates
            .values()
            .map(|known_at| known_at.iter().collect())
            .chain(named)
            .collect()
    }

    /// Takes a Sentinel's answer. Drops each silent Sentinel that no other Sentinel knows any more: it has
    /// left the system.
    pub fn take(&mut self, id: String, view: Option<SentinelView>, now: Instant) {
        match view {
            Some(mut view) => {
                if let Some(before) = self.views.get(&id) {
                    if before.at > view.at {
                        return;
                    }
                    // A Sentinel that has forgotten this server (`SENTINEL RESET`) is still of its system.
                    view.knows_this |= before.knows_this;
                }
                self.views.insert(id, view);
            }
            None => drop(self.views.remove(&id)),
        }
        let fresh = self.fresh(now).count();
        let all = self.fresh(now).map(|view| view.peers.len() + 1).max().unwrap_or_default();
        let candidates = self.candidates();
        if fresh > self.last_majority.all / 2 && fresh > all / 2 {
            self.last_majority = LastMajority { all, candidates };
            let known: BTreeSet<String> =
                self.fresh(now).flat_map(|view| view.peers.keys()).cloned().collect();
            let down_after = self.down_after();
            self.views.retain(|id, view| now - view.at < down_after || known.contains(id));
        } else {
            // A few Sentinels may report an old state. So their reports only add servers, and remove none.
            self.last_majority.all = self.last_majority.all.max(all);
            for (id, known_at) in candidates {
                self.last_majority.candidates.entry(id).or_default().extend(known_at);
            }
        }
    }

    /// The replicas that may be promoted, according to the Sentinels that were heard last. An answer of a
    /// Sentinel that was silent before that is old.
    fn candidates(&self) -> BTreeMap<String, BTreeSet<Endpoint>> {
        let Some(last) = self.of_this_system().map(|view| view.at).max() else { return BTreeMap::new() };
        let own = self.server().map(|server| server.run_id.as_str()).unwrap_or_default();
        let heard_last = self.of_this_system().filter(|view| last - view.at < SAME_MOMENT);
        let mut replicas = BTreeMap::<String, BTreeSet<Endpoint>>::new();
        for candidate in heard_last.flat_map(|view| &view.candidates) {
            let key = match candidate.run_id.as_str() {
                "" => candidate.endpoint.to_string(),
                // A Sentinel may know this very server at a second address.
                id if id == own => continue,
                id => id.to_owned(),
            };
            replicas.entry(key).or_default().insert(candidate.endpoint.clone());
        }
        replicas
    }

    /// The last answer of the Redis server.
    pub fn server(&self) -> Option<&ServerNow> {
        match &self.last_answer {
            Some((_, NodeAnswer::Server(now))) => Some(now),
            _ => None,
        }
    }

    /// The last answer of the server or Sentinel of this node.
    ///
    /// # Errors
    ///
    /// Why it does not answer, in words.
    pub fn answers(&self, now: Instant) -> Result<&NodeAnswer, String> {
        if let ServerPhase::Waits(why) = &self.phase {
            return Err(format!("the server has not been started: {why}"));
        }
        let silent = || self.silent.as_deref().unwrap_or("it has not been asked yet");
        match &self.last_answer {
            None => Err(format!("the server does not answer: {}", silent())),
            Some((at, _)) if now - *at >= self.down_after() => {
                let after = humantime::format_duration(Duration::from_secs((now - *at).as_secs()));
                Err(format!("the server has not answered for {after}: {}", silent()))
            }
            Some((_, answer)) => Ok(answer),
        }
    }
}

/// The master that most of these Sentinels report, and how many report it.
fn most_named<'a>(views: impl Iterator<Item = &'a SentinelView>) -> Option<(&'a Endpoint, usize)> {
    let mut count = BTreeMap::<&Endpoint, usize>::new();
    for view in views {
        *count.entry(&view.names).or_default() += 1;
    }
    count.into_iter().max_by_key(|(_, naming)| *naming)
}
