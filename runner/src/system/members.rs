//! A system as it is to be: who is its master, who are its replicas and its Sentinels.

use broker_fn::api::Group;

use crate::node::endpoint::Endpoint;

/// The system as it is to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct System {
    /// The Sentinel master name.
    pub group: Group,
    pub master: Member,
    /// In the order of registration.
    pub replicas: Vec<Member>,
    /// In the order of registration.
    pub sentinels: Vec<SentinelMember>,
}

/// A Redis server of the system.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    pub endpoint: Endpoint,
    /// The address that everybody is told.
    pub announced: Endpoint,
    /// All addresses that it goes by.
    pub aliases: Vec<Endpoint>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SentinelMember {
    pub endpoint: Endpoint,
    /// `SENTINEL MYID`.
    pub id: String,
}

impl Member {
    /// Whether it goes by that address.
    pub fn is_at(&self, endpoint: &Endpoint) -> bool {
        self.endpoint == *endpoint || self.announced == *endpoint || self.aliases.contains(endpoint)
    }
}
