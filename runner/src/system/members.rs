//! A system as it should be: its master, its replicas and its Sentinels.

use broker_fn::api::Group;

use crate::node::endpoint::Endpoint;
use crate::node::redis::RedisSettings;
use crate::node::rights::Lacks;
use crate::node::version::Version;

/// The system as it should be.
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
    /// The address at which it is reached.
    pub endpoint: Endpoint,
    /// The address for other nodes and clients.
    pub announced: Endpoint,
    /// All addresses of the server.
    pub aliases: Vec<Endpoint>,
    pub run_id: String,
    pub settings: RedisSettings,
    /// The commands that a failover needs and that the server rejects from our user.
    pub lacks: Lacks,
}

/// A Sentinel of the system.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SentinelMember {
    /// The address at which it is reached.
    pub endpoint: Endpoint,
    /// The address that the Sentinel tells other Sentinels.
    pub announced: Endpoint,
    /// `SENTINEL MYID`.
    pub id: String,
    /// The ACL user as which the Sentinel logs in to other Sentinels, if one is set.
    pub sentinel_user: Option<String>,
    pub version: Option<Version>,
    /// The address by which the Sentinel knows a server that is registered by a host name. If that address
    /// changes, the Sentinel loses the server.
    pub knows_by_address: Option<Endpoint>,
}

impl Member {
    /// Whether the address is one of this server's.
    pub fn is_at(&self, endpoint: &Endpoint) -> bool {
        self.endpoint == *endpoint || self.announced == *endpoint || self.aliases.contains(endpoint)
    }
}

impl System {
    /// The master, then the replicas.
    pub fn redis(&self) -> impl Iterator<Item = &Member> {
        std::iter::once(&self.master).chain(&self.replicas)
    }

    /// All Sentinels except this one.
    pub fn others<'a>(&'a self, sentinel: &'a SentinelMember) -> impl Iterator<Item = &'a SentinelMember> {
        self.sentinels.iter().filter(|other| other.id != sentinel.id)
    }
}

#[cfg(test)]
impl System {
    /// A system of these servers, the master first, and of these Sentinels with their ids.
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
