//! Observing: what the registered servers are and know, read without changing anything.

use broker_fn::api::{Kind, Registration, Roster};
use futures::future::{join, join_all};

use crate::connection::{Command, ConnectionError, Connections, Reply, ServerError};
use crate::endpoint::Endpoint;
use crate::redis::{self, RedisState};
use crate::sentinel::{self, SentinelState};

/// Every registered server, in the order of registration.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Observed {
    /// The Redis servers.
    pub redis: Vec<Node<RedisState>>,
    /// The Sentinels.
    pub sentinels: Vec<Node<SentinelState>>,
}

/// One registered server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node<T> {
    /// Where it registered, and is reached.
    pub endpoint: Endpoint,
    /// What it is, or why it can't be used.
    pub state: Result<T, Unusable>,
}

/// Why a registered server can't be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unusable {
    /// It may come up yet.
    #[error("unreachable: {0}")]
    Unreachable(String),
    /// It is reading its data from disk, and will be there in a while.
    #[error("loading its data set")]
    Loading,
    /// It asks for a password and got none, or got a wrong one, or runs in protected mode.
    #[error("refuses us: {0}")]
    Denied(ServerError),
    /// A Sentinel where a Redis server was registered, or the other way round.
    #[error("registered as {registered}, but it is {found}")]
    WrongKind {
        /// As what it registered.
        registered: &'static str,
        /// What answers there.
        found: &'static str,
    },
    /// `REPLICAOF` is not allowed in cluster mode.
    #[error("runs in cluster mode, which Sentinel does not manage")]
    ClusterMode,
    /// Another server lives at that address now, or the same one was restarted and has not registered again.
    #[error("registered with run_id {registered}, but the server there has {found}")]
    Replaced {
        /// The id that was registered.
        registered: String,
        /// The id that answers there.
        found: String,
    },
    /// Something else listens there.
    #[error("{0}")]
    NotRedis(String),
}

impl Unusable {
    /// Whether waiting can help. What can't pass by itself needs a person.
    #[must_use]
    pub fn may_pass(&self) -> bool {
        match self {
            Unusable::Unreachable(_) | Unusable::Loading => true,
            Unusable::Denied(_)
            | Unusable::WrongKind { .. }
            | Unusable::ClusterMode
            | Unusable::Replaced { .. }
            | Unusable::NotRedis(_) => false,
        }
    }

    /// What to do about it.
    #[must_use]
    pub fn hint(&self) -> String {
        match self {
            Unusable::Unreachable(_) => "start it, or let another register in its place".into(),
            Unusable::Loading => "wait until it has loaded its data set".into(),
            Unusable::Denied(error) if error.code == "DENIED" => {
                "bind it to an address and set a password, or set `protected-mode no` on it".into()
            }
            Unusable::Denied(error) if matches!(error.code.as_str(), "NOAUTH" | "WRONGPASS") => {
                "servers that ask for a password can't be configured by this version: remove `requirepass` \
                 until the system is configured"
                    .into()
            }
            Unusable::Denied(_) => {
                "give the user that the runner connects as the right to run that command".into()
            }
            Unusable::WrongKind { found, .. } => {
                format!("forget this registration and register it as {found}")
            }
            Unusable::ClusterMode => "set `cluster-enabled no` on it, or forget this registration".into(),
            Unusable::Replaced { .. } => {
                "let the server that is there now register, or forget this registration".into()
            }
            Unusable::NotRedis(_) => {
                "check host and port, and forget this registration if they are wrong".into()
            }
        }
    }
}

impl From<ConnectionError> for Unusable {
    fn from(error: ConnectionError) -> Self {
        match error {
            ConnectionError::Unreachable(_) | ConnectionError::TimedOut(_) => {
                Unusable::Unreachable(error.to_string())
            }
            ConnectionError::Denied(error) => error.into(),
            ConnectionError::NotRedis(what) => Unusable::NotRedis(what),
        }
    }
}

impl From<ServerError> for Unusable {
    fn from(error: ServerError) -> Self {
        if error.code == "LOADING" { Unusable::Loading } else { Unusable::Denied(error) }
    }
}

/// Reads all servers of a roster at once.
pub async fn observe(connections: &Connections, roster: &Roster) -> Observed {
    let group = roster.group.as_str();
    let redis = roster.redis.iter().map(|registration| observe_redis(connections, registration));
    let sentinels =
        roster.sentinels.iter().map(|registration| observe_sentinel(connections, registration, group));
    let (redis, sentinels) = join(join_all(redis), join_all(sentinels)).await;
    Observed { redis, sentinels }
}

async fn observe_redis(connections: &Connections, registration: &Registration) -> Node<RedisState> {
    let endpoint = Endpoint::from(&registration.addr);
    let state = async {
        let replies = ask(connections, &endpoint, Kind::Redis, &redis::observation()).await?;
        let mut state = RedisState::parse(&endpoint, &replies)?;
        if state.cluster {
            return Err(Unusable::ClusterMode);
        }
        if let Some(registered) = &registration.run_id
            && registered.as_str() != state.run_id
        {
            return Err(Unusable::Replaced { registered: registered.to_string(), found: state.run_id });
        }
        if state.loading {
            return Err(Unusable::Loading);
        }
        // Sentinels and replicas name it by the address that the name stands for.
        if registration.addr.host.ip().is_none() {
            state.aliases.extend(resolve(&endpoint).await);
        }
        Ok(state)
    };
    Node { state: state.await, endpoint }
}

async fn observe_sentinel(
    connections: &Connections,
    registration: &Registration,
    group: &str,
) -> Node<SentinelState> {
    let endpoint = Endpoint::from(&registration.addr);
    let state = async {
        let replies = ask(connections, &endpoint, Kind::Sentinel, &sentinel::observation(group)).await?;
        let state = SentinelState::parse(&endpoint, &replies)?;
        if let Some(registered) = &registration.run_id
            && ![state.run_id.as_str(), &state.my_id].contains(&registered.as_str())
        {
            return Err(Unusable::Replaced { registered: registered.to_string(), found: state.my_id });
        }
        Ok(state)
    };
    Node { state: state.await, endpoint }
}

/// Sends what identifies a node of that kind; the first reply is `INFO server`, which says what it really is.
async fn ask(
    connections: &Connections,
    endpoint: &Endpoint,
    kind: Kind,
    commands: &[Command],
) -> Result<Vec<Reply>, Unusable> {
    let replies = connections.send(endpoint, commands).await?;
    let info = redis::Info::parse(&redis::text(replies[0].as_ref().map_err(Clone::clone)?));
    let is_sentinel = info.get("redis_mode") == Some("sentinel");
    match kind {
        Kind::Redis if is_sentinel => Err(Unusable::WrongKind { registered: "redis", found: "a sentinel" }),
        Kind::Sentinel if !is_sentinel => {
            Err(Unusable::WrongKind { registered: "sentinel", found: "a redis" })
        }
        Kind::Redis | Kind::Sentinel => Ok(replies),
    }
}

async fn resolve(endpoint: &Endpoint) -> Vec<Endpoint> {
    match tokio::net::lookup_host((endpoint.host.as_str(), endpoint.port)).await {
        Ok(addresses) => {
            addresses.map(|address| Endpoint::new(address.ip().to_string(), address.port())).collect()
        }
        // The connection stands, so the name did resolve; without its addresses only the name itself is known.
        Err(_) => Vec::new(),
    }
}
