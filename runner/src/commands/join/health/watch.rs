//! Looks at the server and at the Sentinels, again and again. Each one is asked separately, so that a silent
//! one delays no other.

use std::collections::{BTreeSet, HashMap};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use broker_fn::api::Kind;
use futures::StreamExt as _;
use tokio::sync::watch as channel;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};

use super::seen::{Candidate, Lag, NodeAnswer, SeenNodes, SentinelView};
use crate::commands::join::ask::OwnAddresses;
use crate::node::command::command;
use crate::node::connection::{ConnectionError, Connections};
use crate::node::endpoint::Endpoint;
use crate::node::ready::{SentinelNow, ServerNow};
use crate::node::replication::{Replication, Role};
use crate::node::reply::text;
use crate::node::sentinel::{Monitored, NamedMaster, named_address, peers};
use crate::report::Report;
use crate::system::servers::Servers;

/// How often the server is asked. This is also the longest delay until a balancer learns of a change.
const SERVER: Duration = Duration::from_millis(100);

/// How long after an answer a Sentinel is asked again: at most, and at least. Messages that a Sentinel
/// publishes arrive at once.
const SENTINEL: (Duration, Duration) = (Duration::from_secs(1), Duration::from_millis(100));

/// How often a replica's lag is measured.
const LAG: Duration = Duration::from_secs(1);

/// How often the server that the Sentinels report in place of this one is asked.
const RIVAL: Duration = Duration::from_millis(50);

/// How long the result of a lookup is used, and how long a lookup may take.
const LOOKED_UP_FOR: Duration = Duration::from_secs(5);
const LOOKUP: Duration = Duration::from_secs(1);

/// How long after a Sentinel has refused a subscription the next attempt follows.
const DENIED: Duration = Duration::from_secs(60);

/// How long a master may hear of no Sentinel before there is a warning.
const UNHEARD_FOR: Duration = Duration::from_secs(60);

/// The channel on which a Sentinel publishes that it names another master.
const SWITCH: &str = "+switch-master";

/// How many Sentinels are asked at most.
const SENTINELS: usize = 32;

/// How long a Sentinel may be silent before it is no longer asked.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(600);

/// The name of these connections.
const NAME: &str = "sentinel-runner-health";

/// Looks at the server and at the Sentinels.
#[derive(Debug)]
pub struct Watch {
    pub seen: channel::Sender<SeenNodes>,
    pub sentinels: channel::Sender<BTreeSet<Endpoint>>,
    /// The Sentinels that the operator has named.
    pub named: BTreeSet<Endpoint>,
    pub group: channel::Sender<Option<String>>,
    pub servers: Servers,
    /// Connections to this node's own server.
    pub own: Connections,
    /// The addresses at which the server may answer, and which of them is asked.
    pub reached_at: Vec<Endpoint>,
    pub reached: AtomicUsize,
    pub own_addresses: OwnAddresses,
    /// Which addresses are this node's, and when that was looked up.
    pub lookups: Mutex<HashMap<Endpoint, (Instant, Option<bool>)>>,
    /// How often a Sentinel has published that it names another master. Each time, all Sentinels are asked at
    /// once.
    pub switched: channel::Sender<u64>,
}

impl Watch {
    /// Asks the server, again and again.
    pub async fn ask_server(self: Arc<Self>) {
        loop {
            let endpoint = self.own_endpoint();
            let now = Instant::now();
            let answer = match self.own.kind() {
                Kind::Redis => {
                    let replies = self.own.send(endpoint, &ServerNow::question()).await;
                    replies.map(|replies| {
                        ServerNow::parse(&replies).map(|now| NodeAnswer::Server(Box::new(now)))
                    })
                }
                Kind::Sentinel => {
                    let replies = self.own.send(endpoint, &SentinelNow::question()).await;
                    replies.map(|replies| SentinelNow::parse(&replies).map(NodeAnswer::Sentinel))
                }
            };
            match answer.map_err(|error| error.to_string()).and_then(|answer| answer) {
                Ok(answer) => self.seen.send_modify(|seen| {
                    seen.last_answer = Some((now, answer));
                    seen.silent = None;
                }),
                Err(why) => {
                    // The server may listen at another address.
                    self.reached.fetch_add(1, Ordering::Relaxed);
                    self.seen.send_modify(|seen| seen.silent = Some(format!("{endpoint}: {why}")));
                }
            }
            sleep(SERVER).await;
        }
    }

    fn own_endpoint(&self) -> &Endpoint {
        &self.reached_at[self.reached.load(Ordering::Relaxed) % self.reached_at.len()]
    }

    /// Asks all known Sentinels, each one separately.
    pub async fn ask_sentinels(self: Arc<Self>) {
        let mut asking = JoinSet::new();
        let mut asked = BTreeSet::new();
        let mut known = self.sentinels.subscribe();
        loop {
            let now = known.borrow_and_update().clone();
            for endpoint in now.into_iter().filter(|endpoint| !asked.contains(endpoint)).collect::<Vec<_>>() {
                asked.insert(endpoint.clone());
                asking.spawn(Arc::clone(&self).until_forgotten(endpoint));
            }
            tokio::select! {
                changed = known.changed() => if changed.is_err() { return },
                // If another Sentinel has named this Sentinel since then, it is asked again.
                Some(Ok(forgotten)) = asking.join_next() => drop(asked.remove(&forgotten)),
            }
        }
    }

    /// Asks one Sentinel and listens to it, until it has been silent for so long that it will not come back
    /// at this address. If it does come back, it introduces itself on the server.
    async fn until_forgotten(self: Arc<Self>, endpoint: Endpoint) -> Endpoint {
        let silent = tokio::select! {
            () = self.ask_sentinel(&endpoint) => true,
            () = self.listen(&endpoint) => false,
        };
        if silent {
            self.sentinels.send_if_modified(|known| known.remove(&endpoint));
        }
        endpoint
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

    /// Warns once that a master can't be fenced, if no Sentinel that knows the master is heard.
    pub async fn warn(self: Arc<Self>, report: Report) {
        loop {
            sleep(UNHEARD_FOR).await;
            let is_unheard = {
                let seen = self.seen.borrow();
                let is_master = seen.server().is_some_and(|server| server.replication.role == Role::Master);
                is_master && !seen.views.values().any(|view| view.knows_this)
            };
            if is_unheard {
                report.warning(
                    "--health: no Sentinel that knows this server has answered, so /primary answers 200 \
                     as long as the server is a master\nhint: name the Sentinels with --sentinel, or \
                     grant the login +subscribe and &__sentinel__:hello on the server, and +sentinel on \
                     the Sentinels",
                );
                return;
            }
        }
    }

    /// Asks one Sentinel about the group. Returns whether the Sentinel has answered.
    async fn hear(&self, endpoint: &Endpoint, group: &str) -> bool {
        let question = [
            command!("SENTINEL", "MYID"),
            command!("SENTINEL", "GET-MASTER-ADDR-BY-NAME", group),
            command!("SENTINEL", "MASTER", group),
            command!("SENTINEL", "SENTINELS", group),
            command!("SENTINEL", "REPLICAS", group),
        ];
        // The answer is not older than this moment.
        let now = Instant::now();
        let Ok(replies) = self.servers.sentinels.send(endpoint, &question).await else { return false };
        let [Ok(id), named, master, sentinels, replicas] = replies.as_slice() else { return true };
        let mut gone = BTreeSet::new();
        let view = match (master, sentinels, replicas) {
            (Ok(master), Ok(sentinels), Ok(replicas)) => {
                let known = Monitored {
                    master: NamedMaster::parse(master),
                    peers: peers(sentinels).into_iter().map(|peer| (peer.id.clone(), peer)).collect(),
                    replicas: peers(replicas),
                };
                gone.extend(
                    known.peers.values().filter(|peer| peer.is_down()).map(|peer| peer.endpoint.clone()),
                );
                // The Sentinel that fails over names the new master to clients before the failover is
                // complete. `SENTINEL MASTER` names the old master until then, which is when all replicas are
                // synchronised (`sentinelGetCurrentMasterAddress` in Redis 7.0's `sentinel.c`).
                let named = named.as_ref().ok().and_then(named_address);
                Some(self.view(endpoint, now, named, &known).await)
            }
            // The Sentinel monitors no master of this name.
            (Err(error), ..) if error.code == "ERR" => None,
            _ => return true,
        };
        if let Some(view) = view.as_ref().filter(|view| view.knows_this) {
            add_sentinels(&self.sentinels, view.peers.values().filter(|peer| !gone.contains(peer)).cloned());
        }
        self.seen.send_modify(|seen| seen.take(text(id), view, Instant::now()));
        true
    }

    /// What a Sentinel answers about the system.
    async fn view(
        &self,
        endpoint: &Endpoint,
        at: Instant,
        named: Option<Endpoint>,
        known: &Monitored,
    ) -> SentinelView {
        let Monitored { master, peers, replicas } = known;
        let names = named.unwrap_or_else(|| master.endpoint.clone());
        let is_master = self.is_this(&master.endpoint).await;
        let mut own = BTreeSet::new();
        for replica in replicas {
            if self.is_this(&replica.endpoint).await == Some(true) {
                own.insert(&replica.endpoint);
            }
        }
        let is_replica = !own.is_empty();
        // If the Sentinel lists this node as a replica, or as a master that was replaced, the reported master
        // is another node. This needs no lookup.
        let is_other = is_replica || is_master == Some(true) && names != master.endpoint;
        let is_this = if names == master.endpoint { is_master } else { self.is_this(&names).await };
        let is_this = is_this.or(is_other.then_some(false));
        let knows_this = is_replica || is_this == Some(true) || is_master == Some(true);
        // A replica that has been down for this long is not about to be promoted.
        let long = 10 * master.down_after().as_millis();
        let candidates =
            replicas.iter().filter(|peer| known.may_promote(peer) && u128::from(peer.down_ms) < long);
        let candidates = candidates.filter(|peer| !own.contains(&peer.endpoint));
        SentinelView {
            at,
            endpoint: endpoint.clone(),
            names,
            is_this,
            knows_this,
            config_epoch: master.config_epoch(),
            quorum: master.quorum(),
            is_failing_over: master.has_flag("failover_in_progress"),
            is_down: master.has_flag("s_down"),
            down_after: master.down_after(),
            peers: peers.iter().map(|(id, peer)| (id.clone(), peer.endpoint.clone())).collect(),
            candidates: candidates
                .map(|peer| Candidate { endpoint: peer.endpoint.clone(), run_id: peer.id.clone() })
                .collect(),
        }
    }

    /// Whether an address is this node's. If its name can't be looked up, the previous result stays.
    async fn is_this(&self, endpoint: &Endpoint) -> Option<bool> {
        let known = self.lookups.lock().unwrap_or_else(PoisonError::into_inner).get(endpoint).copied();
        if let Some((at, is)) = known
            && at.elapsed() < if is.is_some() { LOOKED_UP_FOR } else { LOOKUP }
        {
            return is;
        }
        let is = timeout(LOOKUP, self.own_addresses.look_up(endpoint)).await.ok().flatten();
        let is = is.or_else(|| known.and_then(|(_, is)| is));
        let mut lookups = self.lookups.lock().unwrap_or_else(PoisonError::into_inner);
        if lookups.len() > 16 * SENTINELS {
            lookups.clear();
        }
        lookups.insert(endpoint.clone(), (Instant::now(), is));
        is
    }

    /// Listens to one Sentinel. Without the right to do so, its answers come only when it is asked.
    async fn listen(&self, endpoint: &Endpoint) {
        loop {
            let pause = match self.servers.sentinels.listen(endpoint, NAME, SWITCH).await {
                Ok(mut messages) => {
                    while messages.next().await.is_some() {
                        self.switched.send_modify(|count| *count += 1);
                    }
                    SENTINEL.0
                }
                Err(ConnectionError::Denied(_)) => DENIED,
                Err(_) => SENTINEL.0,
            };
            sleep(pause).await;
        }
    }

    /// Measures how far a replica is behind: the length of the stream at the master, minus what the replica
    /// has of it. The master is the server that the Sentinels report, or else the server that the replica
    /// follows.
    pub async fn measure_lag(self: Arc<Self>) {
        loop {
            let (replication, named) = {
                let seen = self.seen.borrow();
                let replication = seen.server().map(|server| server.replication.clone());
                (replication, seen.named(Instant::now()).map(|(named, _)| named.clone()))
            };
            if let Some(replication) = replication
                && let Role::Replica { of, .. } = &replication.role
            {
                let (master, now) = (named.unwrap_or_else(|| of.clone()), Instant::now());
                let of_master = Replication::ask(&self.servers.redis, &master).await.ok().flatten();
                // The replica is asked after the master, so that data that arrives between the two answers
                // does not count as lag.
                let own = Replication::ask(&self.own, self.own_endpoint()).await.ok().flatten();
                if let Some((Replication { role: Role::Master, history, .. }, own)) = of_master.zip(own)
                    && own.history.id == history.id
                    && let Some(applied) = own.place()
                {
                    let bytes = u64::try_from(history.offset - applied).unwrap_or_default();
                    self.seen.send_modify(|seen| seen.lag = Some((now, Lag { master, bytes })));
                }
            }
            sleep(LAG).await;
        }
    }

    /// If this server reports itself as the master and the Sentinels report another server, asks that server
    /// whether it follows this one. It does so during a handover, until the Sentinels report the new master.
    pub async fn ask_rival(self: Arc<Self>) {
        let mut seen = self.seen.subscribe();
        loop {
            let rival = {
                let seen = seen.borrow_and_update();
                let is_master = seen.server().is_some_and(|server| server.replication.role == Role::Master);
                seen.other_named(Instant::now()).filter(|_| is_master).map(|(other, _)| other.clone())
            };
            let Some(rival) = rival else {
                if seen.changed().await.is_err() {
                    return;
                }
                continue;
            };
            let now = Instant::now();
            let replication = Replication::ask(&self.servers.redis, &rival).await;
            if let Ok(Some(Replication { role: Role::Replica { of, link_up: true }, .. })) = replication
                && self.is_this(&of).await == Some(true)
            {
                self.seen.send_modify(|seen| seen.followed_by = Some((now, rival)));
            }
            sleep(RIVAL).await;
        }
    }
}

/// Adds Sentinels to those that are asked, as long as there are not too many.
pub fn add_sentinels(
    sentinels: &channel::Sender<BTreeSet<Endpoint>>,
    new: impl IntoIterator<Item = Endpoint>,
) {
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
