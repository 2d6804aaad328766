//! Why a node can't be used, and what to do about it.

use broker_fn::api::Kind;

use super::connection::ConnectionError;
use super::reply::ServerError;

/// Why a registered server can't be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unusable {
    /// The node may still start.
    #[error("unreachable: {0}")]
    Unreachable(String),
    /// The node accepts connections, or drops them without a word, and does not answer.
    #[error("unreachable: {0}")]
    Silent(String),
    /// The node is loading its data from disk, and will be usable after that.
    #[error("loading its data set")]
    Loading,
    /// The node requires a password and got none or a wrong one, or runs in protected mode.
    #[error("access denied: {error}")]
    Denied {
        /// The kind as which the node was asked.
        kind: Kind,
        error: ServerError,
    },
    /// TLS could not be agreed on.
    #[error("no TLS connection: {0}")]
    Tls(String),
    /// The node is reached by TLS, but would connect to its master without TLS.
    #[error("uses TLS, but has `tls-replication no`")]
    PlainReplication,
    /// The operator does not allow connections to this address.
    #[error("{0}")]
    NotAllowed(String),
    /// A Sentinel was registered as a Redis server, or a Redis server as a Sentinel.
    #[error("registered as {registered}, but it is {found}")]
    WrongKind {
        /// The kind as which the node was registered.
        registered: &'static str,
        /// The kind that answers at the address.
        found: &'static str,
    },
    /// `REPLICAOF` is not allowed in cluster mode.
    #[error("runs in cluster mode, which Sentinel does not support")]
    ClusterMode,
    /// Another server is at that address now, or the same server was restarted and has not registered again.
    #[error("registered with run_id {registered}, but the server at this address has run_id {found}")]
    Replaced { registered: String, found: String },
    /// Something other than Redis listens at the address.
    #[error("{0}")]
    NotRedis(String),
}

impl Unusable {
    /// Whether waiting can help. Everything else needs a person.
    #[must_use]
    pub fn may_pass(&self) -> bool {
        match self {
            // A node at an address that is not allowed is no node of this system. Another node may register
            // in its place.
            Unusable::Unreachable(_) | Unusable::Silent(_) | Unusable::Loading | Unusable::NotAllowed(_) => {
                true
            }
            // The server may have been restarted, and may register again.
            Unusable::Replaced { .. } => true,
            Unusable::Denied { .. }
            | Unusable::Tls(_)
            | Unusable::PlainReplication
            | Unusable::WrongKind { .. }
            | Unusable::ClusterMode
            | Unusable::NotRedis(_) => false,
        }
    }

    #[must_use]
    pub fn hint(&self) -> String {
        match self {
            Unusable::Unreachable(_) => {
                "start the node; if it is gone permanently, deregister it (`sentinel-runner deregister`), \
                 and register another node in its place"
                    .into()
            }
            Unusable::Silent(_) => {
                "read the node's log, or check the network between this machine and the node".into()
            }
            Unusable::Loading => "wait until the node has loaded its data set".into(),
            Unusable::Denied { kind, error } if error.code == "DENIED" => format!(
                "set a password on the node, and --{kind}-password-file; or set `protected-mode no` on it: \
                 then everybody who reaches the node can use it"
            ),
            Unusable::Denied { kind, error } if error.code == "NOAUTH" => {
                format!("set --{kind}-password-file, and --{kind}-username if the node has ACL users")
            }
            Unusable::Denied { kind, error } if error.code == "WRONGPASS" => {
                format!("check --{kind}-username and --{kind}-password-file")
            }
            Unusable::Denied { kind, error } if error.detail.contains("without any password configured") => {
                format!("remove --{kind}-password, or set that password on the node")
            }
            Unusable::Denied { kind, .. } => format!(
                "grant the user of --{kind}-username the missing right; docs/access.md lists the rights"
            ),
            Unusable::Tls(_) => {
                "check --tls, --tls-ca, --tls-cert and --tls-key, and the node's registered port".into()
            }
            Unusable::PlainReplication => "CONFIG SET tls-replication yes on the node".into(),
            Unusable::NotAllowed(_) => {
                "if the node is yours, add its network with --allow; otherwise deregister it with \
                 `sentinel-runner deregister`"
                    .into()
            }
            Unusable::WrongKind { registered, found } => format!(
                "deregister the node (`sentinel-runner deregister {registered} HOST:PORT`), then \
                 register it as {found}"
            ),
            Unusable::ClusterMode => {
                "set `cluster-enabled no` in the node's configuration and restart it, or deregister it with \
                 `sentinel-runner deregister`"
                    .into()
            }
            Unusable::Replaced { .. } => {
                "wait if a `join` has restarted the server: it registers the server again; otherwise \
                 deregister the address (`sentinel-runner deregister`), and register it again \
                 (`sentinel-runner register`) if the server there is part of this system"
                    .into()
            }
            Unusable::NotRedis(_) => {
                "check host and port; if they are wrong, deregister the node with `sentinel-runner \
                 deregister`"
                    .into()
            }
        }
    }
}

impl Unusable {
    /// From a failed connection to a node of that kind.
    #[must_use]
    pub fn from_connection(kind: Kind, error: ConnectionError) -> Self {
        match error {
            ConnectionError::Unreachable(_) => Unusable::Unreachable(error.to_string()),
            ConnectionError::TimedOut { .. } => Unusable::Silent(error.to_string()),
            ConnectionError::Denied(error) => Self::from_reply(kind, error),
            ConnectionError::Tls(what) => Unusable::Tls(what),
            ConnectionError::NotAllowed(_) => Unusable::NotAllowed(error.to_string()),
            ConnectionError::NotRedis(what) => Unusable::NotRedis(what),
        }
    }

    /// From an error with which a node of that kind answered.
    #[must_use]
    pub fn from_reply(kind: Kind, error: ServerError) -> Self {
        match error.code.as_str() {
            "LOADING" => Unusable::Loading,
            // Momentary: a script is running, a failover is in progress, or the link to the master is down.
            "BUSY" | "TRYAGAIN" | "MASTERDOWN" => Unusable::Unreachable(error.to_string()),
            _ => Unusable::Denied { kind, error },
        }
    }
}
