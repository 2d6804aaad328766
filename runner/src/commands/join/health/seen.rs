//! What was seen last of this node's server, and of the Sentinels that watch it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use broker_fn::api::Kind;
use tokio::time::Instant;

use crate::node::endpoint::Endpoint;
use crate::node::ready::{SentinelNow, ServerNow};

/// Sentinel's own default of `down-after-milliseconds`, for as long as no Sentinel has said another.
const DOWN_AFTER: Duration = Duration::from_secs(30);

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
    /// How far a replica is behind the master, and when that was seen.
    pub lag: Option<(Instant, Lag)>,
    /// When another server whom most Sentinels name said last that it follows this one.
    pub followed_by: Option<(Instant, Endpoint)>,
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
    /// Whom it names as the master.
    pub names: Endpoint,
    /// Whether that is this node.
    pub is_this: bool,
    pub config_epoch: u64,
    pub quorum: u64,
    pub is_failing_over: bool,
    /// Whether it has found the master to be down, by itself or with others.
    pub is_down: bool,
    pub down_after: Duration,
    /// The other Sentinels that it knows, by id.
    pub peers: BTreeMap<String, Endpoint>,
    /// The replicas that it reaches, and may promote.
    pub candidates: BTreeSet<Endpoint>,
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
            lag: None,
            followed_by: None,
        }
    }

    /// For how long something may be silent before it counts as gone: what the Sentinels go by themselves.
    pub fn down_after(&self) -> Duration {
        self.voices.values().map(|voice| voice.down_after).min().unwrap_or(DOWN_AFTER)
    }

    /// The Sentinels that have answered within that.
    pub fn fresh(&self, now: Instant) -> impl Iterator<Item = &Voice> {
        let down_after = self.down_after();
        self.voices.values().filter(move |voice| now - voice.at < down_after)
    }

    /// How many Sentinels there are: as those say that answer, or else as they did.
    pub fn all_sentinels(&self, now: Instant) -> usize {
        let known = |voice: &Voice| voice.peers.len() + 1;
        let fresh = self.fresh(now).map(known).max();
        let all = fresh.or_else(|| self.voices.values().map(known).max());
        all.unwrap_or_default().max(self.sentinels.unwrap_or_default())
    }

    /// The master by the last word of most Sentinels, and how many name it.
    pub fn named(&self, now: Instant) -> Option<(&Endpoint, usize)> {
        let all = self.all_sentinels(now);
        let mut count = BTreeMap::<&Endpoint, usize>::new();
        for voice in self.voices.values() {
            *count.entry(&voice.names).or_default() += 1;
        }
        count.into_iter().find(|(_, naming)| *naming > all / 2)
    }

    /// Whether what Sentinels name is this node.
    pub fn is_this(&self, named: &Endpoint) -> bool {
        self.voices.values().any(|voice| voice.names == *named && voice.is_this)
    }

    /// Takes what a Sentinel said. One that nobody knows any more has been taken out of the system.
    pub fn take(&mut self, id: String, voice: Option<Voice>, now: Instant) {
        match voice {
            Some(voice) => drop(self.voices.insert(id, voice)),
            None => drop(self.voices.remove(&id)),
        }
        if self.fresh(now).count() > self.all_sentinels(now) / 2 {
            let known: BTreeSet<String> =
                self.fresh(now).flat_map(|voice| voice.peers.keys()).cloned().collect();
            let down_after = self.down_after();
            self.voices.retain(|id, voice| now - voice.at < down_after || known.contains(id));
        }
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
        let silent = || self.silent.as_deref().unwrap_or("it was asked nothing yet");
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
