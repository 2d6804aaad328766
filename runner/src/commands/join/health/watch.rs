//! Looks at the server and at the Sentinels, again and again. Each is asked by itself: one that is silent holds nobody up.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use broker_fn::api::Kind;
use futures::StreamExt as _;
use tokio::sync::watch as channel;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

use super::seen::{Lag, Said, Seen, Voice};
use crate::commands::join::ask::Place;
use crate::node::command::command;
use crate::node::connection::Connections;
use crate::node::endpoint::Endpoint;
use crate::node::info::Info;
use crate::node::ready::{SentinelNow, ServerNow};
use crate::node::replication::{Replication, Role};
use crate::node::reply::text;
use crate::node::sentinel::{Monitored, NamedMaster, peers};
use crate::system::servers::Servers;

/// How often the server is asked: a balancer hears of it no later than that.
const SERVER: Duration = Duration::from_millis(100);

/// How often each Sentinel is asked at the least, and at the most. What it says on its own comes at once.
const SENTINEL: (Duration, Duration) = (Duration::from_secs(1), Duration::from_millis(100));

/// How often it is measured how far a replica is behind.
const LAG: Duration = Duration::from_secs(1);

/// How often whom the Sentinels name in place of this server is asked.
const RIVAL: Duration = Duration::from_millis(50);

/// Where a Sentinel says that it names another master.
const SWITCH: &str = "+switch-master";

/// How many Sentinels are asked at most.
const SENTINELS: usize = 32;

/// How long a Sentinel may be silent before it is not asked any more.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(600);

/// How these connections are called.
const NAME: &str = "sentinel-runner-health";

/// What looks.
#[derive(Debug)]
pub struct Watch {
    pub seen: channel::Sender<Seen>,
    pub sentinels: channel::Sender<BTreeSet<Endpoint>>,
    /// Those of them that the operator has named.
    pub named: BTreeSet<Endpoint>,
    pub group: channel::Sender<Option<String>>,
    pub servers: Servers,
    /// To the server itself.
    pub own: Connections,
    /// Where it may answer.
    pub reached_at: Vec<Endpoint>,
    pub place: Place,
    /// How often a Sentinel has said that it names another: all are asked at once then.
    pub switched: channel::Sender<u64>,
}

impl Watch {
    /// Asks the server.
    pub async fn ask_server(self: Arc<Self>) {
        let mut index = 0;
        loop {
            let endpoint = &self.reached_at[index % self.reached_at.len()];
            let now = Instant::now();
            let said = match self.own.kind() {
                Kind::Redis => {
                    let replies = self.own.send(endpoint, &ServerNow::question()).await;
                    replies.map(|replies| ServerNow::parse(&replies).map(|now| Said::Server(Box::new(now))))
                }
                Kind::Sentinel => {
                    let replies = self.own.send(endpoint, &SentinelNow::question()).await;
                    replies.map(|replies| SentinelNow::parse(&replies).map(Said::Sentinel))
                }
            };
            match said.map_err(|error| error.to_string()).and_then(|said| said) {
                Ok(said) => self.seen.send_modify(|seen| {
                    seen.said = Some((now, said));
                    seen.silent = None;
                }),
                Err(why) => {
                    // It may listen elsewhere.
                    index += 1;
                    self.seen.send_modify(|seen| seen.silent = Some(format!("{endpoint}: {why}")));
                }
            }
            sleep(SERVER).await;
        }
    }

    /// Asks all Sentinels that are known, each by itself.
    pub async fn ask_sentinels(self: Arc<Self>) {
        let mut asking = JoinSet::new();
        let mut asked = BTreeSet::new();
        let mut known = self.sentinels.subscribe();
        loop {
            let now = known.borrow_and_update().clone();
            // Those that were forgotten have ended by themselves.
            asked.retain(|endpoint| now.contains(endpoint));
            while asking.try_join_next().is_some() {}
            for endpoint in now.into_iter().filter(|endpoint| !asked.contains(endpoint)).collect::<Vec<_>>() {
                asked.insert(endpoint.clone());
                asking.spawn(Arc::clone(&self).until_forgotten(endpoint));
            }
            if known.changed().await.is_err() {
                return;
            }
        }
    }

    /// Asks one Sentinel, and listens to it, until it has been silent for so long that it will not come back at this address; if it does,
    /// it says so on the server itself.
    async fn until_forgotten(self: Arc<Self>, endpoint: Endpoint) {
        let silent = tokio::select! {
            () = self.ask_sentinel(&endpoint) => true,
            () = self.listen(&endpoint) => false,
        };
        if silent {
            self.sentinels.send_if_modified(|known| known.remove(&endpoint));
        }
    }

    async fn ask_sentinel(&self, endpoint: &Endpoint) {
        let mut group = self.group.subscribe();
        let mut switched = self.switched.subscribe();
        let mut answered = Instant::now();
        while answered.elapsed() < FORGOTTEN_AFTER || self.named.contains(endpoint) {
            let name = group.borrow_and_update().clone();
            if let Some(name) = name
                && self.hear(endpoint, &name).await
            {
                answered = Instant::now();
            }
            let pause = (self.seen.borrow().down_after() / 4).clamp(SENTINEL.1, SENTINEL.0);
            tokio::select! {
                () = sleep(pause) => {}
                Ok(()) = group.changed() => {}
                Ok(()) = switched.changed() => {}
            }
        }
    }

    /// Asks one Sentinel what it says of the group. Whether it has answered.
    async fn hear(&self, endpoint: &Endpoint, group: &str) -> bool {
        let question = [
            command!("SENTINEL", "MYID"),
            command!("SENTINEL", "MASTER", group),
            command!("SENTINEL", "SENTINELS", group),
            command!("SENTINEL", "REPLICAS", group),
        ];
        // What it says is of this moment, or of a later one.
        let now = Instant::now();
        let Ok(replies) = self.servers.sentinels.send(endpoint, &question).await else { return false };
        let [Ok(id), master, sentinels, replicas] = replies.as_slice() else { return true };
        let voice = match (master, sentinels, replicas) {
            (Ok(master), Ok(sentinels), Ok(replicas)) => {
                let known = Monitored {
                    master: NamedMaster::parse(master),
                    peers: peers(sentinels).into_iter().map(|peer| (peer.id.clone(), peer)).collect(),
                    replicas: peers(replicas),
                };
                let is_this = self.place.is(&known.master.endpoint).await;
                Some(voice(endpoint, now, &known, is_this))
            }
            // It monitors no master of that name.
            (Err(error), ..) if error.code == "ERR" => None,
            _ => return true,
        };
        know(&self.sentinels, voice.iter().flat_map(|voice| voice.peers.values().cloned()));
        self.seen.send_modify(|seen| seen.take(text(id), voice, Instant::now()));
        true
    }

    /// Listens to one Sentinel. Without the right to it, what it says is heard when it is asked.
    async fn listen(&self, endpoint: &Endpoint) {
        loop {
            if let Ok(mut messages) = self.servers.sentinels.listen(endpoint, NAME, SWITCH).await {
                while messages.next().await.is_some() {
                    self.switched.send_modify(|count| *count += 1);
                }
            }
            sleep(SENTINEL.0).await;
        }
    }

    /// Measures how far a replica is behind: what it has of the stream, and then how long that is at its master's. The master is the one that
    /// the Sentinels name, or else its own.
    pub async fn measure_lag(self: Arc<Self>) {
        loop {
            let (replication, named) = {
                let seen = self.seen.borrow();
                let replication = seen.server().map(|server| server.replication.clone());
                (replication, seen.named(Instant::now()).map(|(named, _)| named.clone()))
            };
            if let Some(replication) = replication
                && let Role::Replica { of, .. } = &replication.role
                && let Some(applied) = replication.place()
            {
                let (master, now) = (named.unwrap_or_else(|| of.clone()), Instant::now());
                if let Some(Replication { role: Role::Master, history, .. }) = self.replication(&master).await
                {
                    let bytes = u64::try_from(history.offset - applied).unwrap_or_default();
                    self.seen.send_modify(|seen| seen.lag = Some((now, Lag { master, bytes })));
                }
            }
            sleep(LAG).await;
        }
    }

    /// Asks whom the Sentinels name in place of this server, which says that it is the master, whether it follows this one: so it is in a
    /// handover, until they name the new master.
    pub async fn ask_rival(self: Arc<Self>) {
        let mut seen = self.seen.subscribe();
        loop {
            let rival = {
                let seen = seen.borrow_and_update();
                let is_master = seen.server().is_some_and(|server| server.replication.role == Role::Master);
                let named = seen.named(Instant::now()).map(|(named, _)| named);
                named.filter(|named| is_master && !seen.is_this(named)).cloned()
            };
            let Some(rival) = rival else {
                if seen.changed().await.is_err() {
                    return;
                }
                continue;
            };
            let now = Instant::now();
            let replication = self.replication(&rival).await;
            if let Some(Replication { role: Role::Replica { of, link_up: true }, .. }) = replication
                && self.place.is(&of).await
            {
                self.seen.send_modify(|seen| seen.followed_by = Some((now, rival)));
            }
            sleep(RIVAL).await;
        }
    }

    async fn replication(&self, server: &Endpoint) -> Option<Replication> {
        let replies = self.servers.redis.send(server, &[command!("INFO", "replication")]).await.ok()?;
        Replication::parse(&Info::parse(&text(replies[0].as_ref().ok()?)))
    }
}

/// What a Sentinel says.
fn voice(endpoint: &Endpoint, at: Instant, known: &Monitored, is_this: bool) -> Voice {
    let Monitored { master, peers, replicas } = known;
    let candidates = replicas.iter().filter(|peer| !peer.is_gone() && known.may_promote(peer));
    Voice {
        at,
        endpoint: endpoint.clone(),
        names: master.endpoint.clone(),
        is_this,
        config_epoch: master.config_epoch(),
        quorum: master.quorum(),
        is_failing_over: master.has_flag("failover_in_progress"),
        is_down: master.has_flag("s_down"),
        down_after: master.down_after(),
        peers: peers.iter().map(|(id, peer)| (id.clone(), peer.endpoint.clone())).collect(),
        candidates: candidates.map(|peer| peer.endpoint.clone()).collect(),
    }
}

/// Adds Sentinels to those that are asked, as long as they are not too many.
pub fn know(sentinels: &channel::Sender<BTreeSet<Endpoint>>, new: impl IntoIterator<Item = Endpoint>) {
    sentinels.send_if_modified(|known| {
        let before = known.len();
        for endpoint in new {
            if known.len() < SENTINELS {
                known.insert(endpoint);
            }
        }
        known.len() > before
    });
}
