//! What was seen last of this node's server, and of the Sentinels that watch it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use broker_fn::api::Kind;
use tokio::time::Instant;

use crate::node::endpoint::Endpoint;
use crate::node::ready::{SentinelNow, ServerNow};

/// Sentinel's own default of `down-after-milliseconds`, for as long as no Sentinel has said another.
const DOWN_AFTER: Duration = Duration::from_secs(30);

const SECOND: Duration = Duration::from_secs(1);

/// Those that are cut off at once were heard last within this: each is asked once a second at the least.
const SAME_MOMENT: Duration = Duration::from_secs(5);

#[derive(Debug, Clone)]
pub struct Seen {
    pub kind: Kind,
    pub phase: Phase,
    /// What the server said of itself last, and when.
    pub said: Option<(Instant, Said)>,
    /// Why it said nothing when it was asked last.
    pub silent: Option<String>,
    /// What each Sentinel said last, by its id.
    pub voices: BTreeMap<String, Voice>,
    /// How many Sentinels there are, where the operator has said so.
    pub sentinels: Option<usize>,
    /// What was so when most Sentinels were last heard, and what any has added since.
    heard: Heard,
    /// How far a replica is behind the master, and when that was seen.
    pub lag: Option<(Instant, Lag)>,
    /// When another server whom most Sentinels name said last that it follows this one.
    pub followed_by: Option<(Instant, Endpoint)>,
}

#[derive(Debug, Clone, Default)]
struct Heard {
    /// How many Sentinels there are.
    all: usize,
    /// The replicas that they may promote, each by its process, or else its address, with all addresses that it is known by.
    candidates: BTreeMap<String, BTreeSet<Endpoint>>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Phase {
    /// The server has not been started, for this reason.
    Waits(String),
    /// It was started.
    Runs,
}

#[derive(Debug, Clone)]
pub enum Said {
    Server(Box<ServerNow>),
    Sentinel(SentinelNow),
}

/// What a Sentinel says of the system.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Voice {
    /// When it said so.
    pub at: Instant,
    pub endpoint: Endpoint,
    /// Whom it names as the master, to clients.
    pub names: Endpoint,
    /// Whether that is this node; `None` if that can't be told, because a name can't be looked up.
    pub is_this: Option<bool>,
    /// Whether it knows this node, as the master or as a replica. If not, it is of another system.
    pub knows_this: bool,
    pub config_epoch: u64,
    pub quorum: u64,
    pub is_failing_over: bool,
    /// Whether it has found the master to be down, by itself or with others.
    pub is_down: bool,
    pub down_after: Duration,
    /// The other Sentinels that it knows, by id.
    pub peers: BTreeMap<String, Endpoint>,
    /// The replicas that it may promote, now or soon. One may be there at several addresses.
    pub candidates: Vec<Candidate>,
}

/// A replica that may be promoted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    pub endpoint: Endpoint,
    /// The id of its process; empty before the Sentinel has read it.
    pub run_id: String,
}

/// How far a replica is behind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lag {
    /// Behind whom.
    pub master: Endpoint,
    pub bytes: u64,
}

impl Seen {
    /// Nothing yet.
    pub fn new(kind: Kind, sentinels: Option<u16>) -> Self {
        Self {
            kind,
            phase: Phase::Waits("starting".into()),
            said: None,
            silent: None,
            voices: BTreeMap::new(),
            sentinels: sentinels.map(usize::from),
            heard: Heard::default(),
            lag: None,
            followed_by: None,
        }
    }

    /// The Sentinels of this system.
    fn ours(&self) -> impl Iterator<Item = &Voice> {
        self.voices.values().filter(|voice| voice.knows_this)
    }

    /// For how long something may be silent before it counts as gone: what most Sentinels go by, and a second at the least.
    pub fn down_after(&self) -> Duration {
        let mut all: Vec<Duration> = self.ours().map(|voice| voice.down_after).collect();
        all.sort();
        all.get(all.len() / 2).copied().unwrap_or(DOWN_AFTER).max(SECOND)
    }

    /// The Sentinels that have answered within that.
    pub fn fresh(&self, now: Instant) -> impl Iterator<Item = &Voice> {
        let down_after = self.down_after();
        self.ours().filter(move |voice| now - voice.at < down_after)
    }

    /// How many Sentinels there are: as most of them have said, or one that knows more.
    pub fn all_sentinels(&self) -> usize {
        self.heard.all.max(self.sentinels.unwrap_or_default())
    }

    /// The last word of each Sentinel, but for those that are silent and knew of fewer failovers than one that answers.
    fn words(&self, now: Instant) -> impl Iterator<Item = &Voice> {
        let down_after = self.down_after();
        let newest = self.fresh(now).map(|voice| voice.config_epoch).max().unwrap_or_default();
        self.ours().filter(move |voice| now - voice.at < down_after || voice.config_epoch >= newest)
    }

    /// The master by the last word of most Sentinels, and how many name it.
    pub fn named(&self, now: Instant) -> Option<(&Endpoint, usize)> {
        let all = self.all_sentinels();
        most_named(self.words(now)).filter(|(_, naming)| *naming > all / 2)
    }

    /// Another than this node, if most Sentinels name others; and how many do.
    pub fn other_named(&self, now: Instant) -> Option<(&Endpoint, usize)> {
        let others = || self.words(now).filter(|voice| voice.is_this == Some(false));
        let naming = others().count();
        let (other, _) = most_named(others())?;
        (naming > self.all_sentinels() / 2).then_some((other, naming))
    }

    /// Those whom Sentinels could have promoted since most of them were last heard, each by all addresses that it is known by; and whoever is
    /// named as the master by one that knows of the last failover.
    pub fn rivals(&self, now: Instant) -> Vec<BTreeSet<&Endpoint>> {
        let named = self.words(now).filter(|voice| voice.is_this == Some(false));
        let named = named.map(|voice| BTreeSet::from([&voice.names]));
        self.heard.candidates.values().map(|known_at| known_at.iter().collect()).chain(named).collect()
    }

    /// Takes what a Sentinel said. One that nobody knows any more has been taken out of the system.
    pub fn take(&mut self, id: String, voice: Option<Voice>, now: Instant) {
        match voice {
            Some(mut voice) => {
                if let Some(before) = self.voices.get(&id) {
                    if before.at > voice.at {
                        return;
                    }
                    // One that has forgotten this server (`SENTINEL RESET`) is still of its system.
                    voice.knows_this |= before.knows_this;
                }
                self.voices.insert(id, voice);
            }
            None => drop(self.voices.remove(&id)),
        }
        let fresh = self.fresh(now).count();
        let all = self.fresh(now).map(|voice| voice.peers.len() + 1).max().unwrap_or_default();
        let candidates = self.candidates();
        if fresh > self.heard.all / 2 && fresh > all / 2 {
            self.heard = Heard { all, candidates };
            let known: BTreeSet<String> =
                self.fresh(now).flat_map(|voice| voice.peers.keys()).cloned().collect();
            let down_after = self.down_after();
            self.voices.retain(|id, voice| now - voice.at < down_after || known.contains(id));
        } else {
            // What a few say may be what the others have given up long ago; but nothing that they say is less.
            self.heard.all = self.heard.all.max(all);
            for (id, known_at) in candidates {
                self.heard.candidates.entry(id).or_default().extend(known_at);
            }
        }
    }

    /// The replicas that may be promoted, by those that were heard last. What one said that was silent before is old.
    fn candidates(&self) -> BTreeMap<String, BTreeSet<Endpoint>> {
        let Some(last) = self.ours().map(|voice| voice.at).max() else { return BTreeMap::new() };
        let own = self.server().map(|server| server.run_id.as_str()).unwrap_or_default();
        let heard_last = self.ours().filter(|voice| last - voice.at < SAME_MOMENT);
        let mut replicas = BTreeMap::<String, BTreeSet<Endpoint>>::new();
        for candidate in heard_last.flat_map(|voice| &voice.candidates) {
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

    /// What the Redis server said last.
    pub fn server(&self) -> Option<&ServerNow> {
        match &self.said {
            Some((_, Said::Server(now))) => Some(now),
            _ => None,
        }
    }

    /// Why the server does not answer.
    ///
    /// # Errors
    ///
    /// In words.
    pub fn answers(&self, now: Instant) -> Result<&Said, String> {
        if let Phase::Waits(why) = &self.phase {
            return Err(format!("the server has not been started: {why}"));
        }
        let silent = || self.silent.as_deref().unwrap_or("it has not been asked yet");
        match &self.said {
            None => Err(format!("the server does not answer: {}", silent())),
            Some((at, _)) if now - *at >= self.down_after() => {
                let after = humantime::format_duration(Duration::from_secs((now - *at).as_secs()));
                Err(format!("the server has not answered for {after}: {}", silent()))
            }
            Some((_, said)) => Ok(said),
        }
    }
}

/// Whom most of these name, and how many do.
fn most_named<'a>(voices: impl Iterator<Item = &'a Voice>) -> Option<(&'a Endpoint, usize)> {
    let mut count = BTreeMap::<&Endpoint, usize>::new();
    for voice in voices {
        *count.entry(&voice.names).or_default() += 1;
    }
    count.into_iter().max_by_key(|(_, naming)| *naming)
}
