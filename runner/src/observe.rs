//! Observing: what the registered servers are and know, read without changing anything.

use broker_fn::api::{Kind, Registration, Roster};
use futures::future::{join, join_all};

use crate::connection::{Command, ConnectionError, Connections, Reply, ServerError, Servers};
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
    #[error("refuses us: {error}")]
    Denied {
        /// As what it was asked.
        kind: Kind,
        /// What it said.
        error: ServerError,
    },
    /// The two sides do not agree on TLS.
    #[error("no TLS connection: {0}")]
    Tls(String),
    /// It is reached by TLS, and would reach its master without.
    #[error("is reached by TLS, but has `tls-replication no`")]
    PlainReplication,
    /// The operator does not allow to connect there.
    #[error("{0}")]
    NotAllowed(String),
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
            // What is not allowed is none of ours: another node may register in its place.
            Unusable::Unreachable(_) | Unusable::Loading | Unusable::NotAllowed(_) => true,
            Unusable::Denied { .. }
            | Unusable::Tls(_)
            | Unusable::PlainReplication
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
            Unusable::Denied { error, .. } if error.code == "DENIED" => {
                "set a password on it, or bind it to its address and set `protected-mode no`".into()
            }
            Unusable::Denied { kind, error } if error.code == "NOAUTH" => {
                format!(
                    "give its password with --{kind}-password-file, and --{kind}-username where it has ACL users"
                )
            }
            Unusable::Denied { kind, error } if error.code == "WRONGPASS" => {
                format!("check --{kind}-username and --{kind}-password-file")
            }
            Unusable::Denied { kind, error } if error.detail.contains("without any password configured") => {
                format!("leave out --{kind}-password, or set that password on it")
            }
            Unusable::Denied { kind, .. } => format!(
                "give the user that --{kind}-username names the right to run it; the README lists the rights that are needed"
            ),
            Unusable::Tls(_) => {
                "check --tls, --tls-ca, --tls-cert and --tls-key, and the port that it registered".into()
            }
            Unusable::PlainReplication => "CONFIG SET tls-replication yes on it".into(),
            Unusable::NotAllowed(_) => {
                "name its network with --allow if it is one of yours; otherwise forget it".into()
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

impl Unusable {
    /// From a failed connection to a node of that kind.
    #[must_use]
    pub fn from_connection(kind: Kind, error: ConnectionError) -> Self {
        match error {
            ConnectionError::Unreachable(_) | ConnectionError::TimedOut { .. } => {
                Unusable::Unreachable(error.to_string())
            }
            ConnectionError::Denied(error) => Self::from_reply(kind, error),
            ConnectionError::Tls(what) => Unusable::Tls(what),
            ConnectionError::NotAllowed(_) => Unusable::NotAllowed(error.to_string()),
            ConnectionError::NotRedis(what) => Unusable::NotRedis(what),
        }
    }

    /// From an error that a node of that kind answered with.
    #[must_use]
    pub fn from_reply(kind: Kind, error: ServerError) -> Self {
        match error.code.as_str() {
            "LOADING" => Unusable::Loading,
            // Momentary: a script, a failover, a master that is not there yet.
            "BUSY" | "TRYAGAIN" | "MASTERDOWN" => Unusable::Unreachable(error.to_string()),
            _ => Unusable::Denied { kind, error },
        }
    }
}

/// Reads all servers of a roster at once.
pub async fn observe(servers: &Servers, roster: &Roster) -> Observed {
    let group = roster.group.as_str();
    let redis = roster.redis.iter().map(|registration| observe_redis(&servers.redis, registration));
    let sentinels =
        roster.sentinels.iter().map(|registration| observe_sentinel(&servers.sentinels, registration, group));
    let (redis, sentinels) = join(join_all(redis), join_all(sentinels)).await;
    Observed { redis, sentinels }
}

async fn observe_redis(connections: &Connections, registration: &Registration) -> Node<RedisState> {
    let endpoint = Endpoint::from(&registration.addr);
    let state = async {
        let replies = ask(connections, &endpoint, &redis::observation()).await?;
        let mut state = RedisState::parse(&endpoint, &replies)
            .map_err(|error| Unusable::from_reply(connections.kind(), error))?;
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
        if connections.use_tls() && state.tls_replication == Some(false) {
            return Err(Unusable::PlainReplication);
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
        let replies = ask(connections, &endpoint, &sentinel::observation(group)).await?;
        let mut state = SentinelState::parse(&endpoint, &replies)
            .map_err(|error| Unusable::from_reply(connections.kind(), error))?;
        if let Some(registered) = &registration.run_id
            && ![state.run_id.as_str(), &state.my_id].contains(&registered.as_str())
        {
            return Err(Unusable::Replaced { registered: registered.to_string(), found: state.my_id });
        }
        // Sentinels that don't resolve names drop a hello with one.
        if !state.resolves_hostnames
            && registration.addr.host.as_str() == state.announced.host
            && registration.addr.host.ip().is_none()
            && let Some(address) = resolve(&endpoint).await.into_iter().next()
        {
            state.announced.host = address.host;
        }
        Ok(state)
    };
    Node { state: state.await, endpoint }
}

/// Sends what identifies a node; the first reply is `INFO server`, which says what it really is.
async fn ask(
    connections: &Connections,
    endpoint: &Endpoint,
    commands: &[Command],
) -> Result<Vec<Reply>, Unusable> {
    let kind = connections.kind();
    let replies =
        connections.send(endpoint, commands).await.map_err(|error| Unusable::from_connection(kind, error))?;
    let first = replies[0].as_ref().map_err(|error| Unusable::from_reply(kind, error.clone()))?;
    let info = redis::Info::parse(&redis::text(first));
    let is_sentinel = info.mode() == Some("sentinel");
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
