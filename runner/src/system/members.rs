//! A system as it is to be: who is its master, who are its replicas and its Sentinels.

use broker_fn::api::Group;

use crate::node::endpoint::Endpoint;
use crate::node::redis::RedisSettings;
use crate::node::rights::Lacks;
use crate::node::version::Version;

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
    /// Where it is reached.
    pub endpoint: Endpoint,
    /// The address that everybody is told.
    pub announced: Endpoint,
    /// All addresses that it goes by.
    pub aliases: Vec<Endpoint>,
    pub run_id: String,
    pub settings: RedisSettings,
    /// What it does not take from us of what a failover needs.
    pub lacks: Lacks,
}

/// A Sentinel of the system.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SentinelMember {
    /// Where it is reached.
    pub endpoint: Endpoint,
    /// The address that it tells the others.
    pub announced: Endpoint,
    /// `SENTINEL MYID`.
    pub id: String,
    /// The ACL user that it logs in as on the others, where one is set.
    pub sentinel_user: Option<String>,
    pub version: Option<Version>,
    /// The address that it keeps of a server which is registered by its name: where that changes, it knows nobody there.
    pub knows_by_address: Option<Endpoint>,
}

impl Member {
    /// Whether it goes by that address.
    pub fn is_at(&self, endpoint: &Endpoint) -> bool {
        self.endpoint == *endpoint || self.announced == *endpoint || self.aliases.contains(endpoint)
    }
}

impl System {
    /// The master, then the replicas.
    pub fn redis(&self) -> impl Iterator<Item = &Member> {
        std::iter::once(&self.master).chain(&self.replicas)
    }

    /// All Sentinels but this one.
    pub fn others<'a>(&'a self, sentinel: &'a SentinelMember) -> impl Iterator<Item = &'a SentinelMember> {
        self.sentinels.iter().filter(|other| other.id != sentinel.id)
    }
}

#[cfg(test)]
impl System {
    /// A system of these servers, the master first, and of these Sentinels, each with its id.
    pub fn of(redis: &[Endpoint], sentinels: &[(Endpoint, String)]) -> Self {
        let mut members = redis.iter().map(|at| Member {
            endpoint: at.clone(),
            announced: at.clone(),
            aliases: vec![at.clone()],
            run_id: format!("run-{at}"),
            settings: RedisSettings::default(),
            lacks: Lacks::new(),
        });
        let sentinel = |(at, id): &(Endpoint, String)| SentinelMember {
            endpoint: at.clone(),
            announced: at.clone(),
            id: id.clone(),
            sentinel_user: None,
            version: None,
            knows_by_address: None,
        };
        Self {
            group: "mymaster".parse().unwrap(),
            master: members.next().unwrap(),
            replicas: members.collect(),
            sentinels: sentinels.iter().map(sentinel).collect(),
        }
    }
}
