//! Observes the registered servers: reads their state and their view of the group, and changes nothing.

use std::collections::BTreeSet;

use broker_fn::api::{Kind, Registration, Roster};
use futures::future::{join, join_all};

use super::servers::Servers;
use crate::node::command::Command;
use crate::node::connection::Connections;
use crate::node::endpoint::Endpoint;
use crate::node::info::Info;
use crate::node::redis::{self, RedisState};
use crate::node::replication::Role;
use crate::node::reply::{Reply, text};
use crate::node::rights::{self, Lacks, RehearsalCheck};
use crate::node::sentinel::{self, SentinelState};
use crate::node::unusable::Unusable;

/// Every registered server, in the order of registration.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Observed {
    pub redis: Vec<ObservedNode<RedisState>>,
    pub sentinels: Vec<ObservedNode<SentinelState>>,
}

impl Observed {
    /// The registered servers that can't be used, and why.
    pub fn problems(&self) -> Vec<(Endpoint, Unusable)> {
        fn of<T>(nodes: &[ObservedNode<T>]) -> impl Iterator<Item = (Endpoint, Unusable)> {
            nodes.iter().filter_map(|node| Some((node.endpoint.clone(), node.state.as_ref().err()?.clone())))
        }
        of(&self.redis).chain(of(&self.sentinels)).collect()
    }
}

/// One registered server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObservedNode<T> {
    /// The registered address, at which the server is reached.
    pub endpoint: Endpoint,
    pub state: Result<T, Unusable>,
}

/// Reads all servers of a roster at once.
pub async fn observe(servers: &Servers, roster: &Roster) -> Observed {
    let group = roster.group.as_str();
    let redis = roster.redis.iter().map(|registration| observe_redis(&servers.redis, registration));
    let sentinels =
        roster.sentinels.iter().map(|registration| observe_sentinel(&servers.sentinels, registration, group));
    let (redis, sentinels) = join(join_all(redis), join_all(sentinels)).await;
    let mut observed = Observed { redis, sentinels };
    resolve_names(&mut observed).await;
    observed
}

async fn observe_redis(connections: &Connections, registration: &Registration) -> ObservedNode<RedisState> {
    let endpoint = Endpoint::from(&registration.addr);
    let state = async {
        let replies = ask(connections, &endpoint, &redis::observation()).await?;
        let mut state = RedisState::parse(&endpoint, &replies)
            .map_err(|error| Unusable::from_reply(connections.kind(), error))?;
        if state.cluster {
            return Err(Unusable::ClusterMode);
        }
        // This check comes before the comparison of ids. A server that was just restarted has a new run_id,
        // and registers it only after loading.
        if state.loading {
            return Err(Unusable::Loading);
        }
        if let Some(registered) = &registration.run_id
            && registered.as_str() != state.run_id
        {
            return Err(Unusable::Replaced { registered: registered.to_string(), found: state.run_id });
        }
        if connections.use_tls() && state.settings.get("tls-replication") == Some("no") {
            return Err(Unusable::PlainReplication);
        }
        let may_rehearse = &replies[replies.len() - rights::question().len()..];
        state.lacks = rehearse(connections, &endpoint, may_rehearse, &rights::of_failover()).await;
        // Sentinels and replicas name the server by the address to which its host name resolves.
        if registration.addr.host.ip().is_none() {
            state.aliases.extend(resolve(&endpoint).await);
        }
        Ok(state)
    };
    ObservedNode { state: state.await, endpoint }
}

/// Rehearses commands on a server, without executing them. `replies`: the replies to [`rights::question`].
pub async fn rehearse(
    connections: &Connections,
    endpoint: &Endpoint,
    replies: &[Reply],
    parts: &[(rights::Right, Command)],
) -> Lacks {
    match rights::may_rehearse(replies) {
        RehearsalCheck::Lacks(right, lack) => [(right, lack)].into(),
        RehearsalCheck::Stuck(lack) => {
            connections.forget(endpoint);
            lack.map(|lack| ("exec", lack)).into_iter().collect()
        }
        RehearsalCheck::NotNow => Lacks::new(),
        // An error is ignored here, because the next command to the server returns it again.
        RehearsalCheck::Ready => match connections.rehearse(endpoint, &rights::rehearsal(parts)).await {
            Ok(replies) => rights::lacking(parts, &replies),
            Err(_) => Lacks::new(),
        },
    }
}

/// A replica may follow its master by a host name by which no server is registered. Then the addresses to
/// which the name resolves are compared. The same applies to the name by which a Sentinel knows the master.
async fn resolve_names(observed: &mut Observed) {
    let followed = observed.redis.iter().filter_map(|node| match &node.state.as_ref().ok()?.role {
        Role::Replica { of, .. } => Some(of),
        Role::Master | Role::Held => None,
    });
    let named = observed
        .sentinels
        .iter()
        .filter_map(|node| Some(&node.state.as_ref().ok()?.monitored.as_ref()?.master.endpoint));
    let states = || observed.redis.iter().filter_map(|node| node.state.as_ref().ok());
    let names: BTreeSet<Endpoint> = followed
        .chain(named)
        .filter(|name| name.is_name() && !states().any(|state| state.is_at(name)))
        .cloned()
        .collect();
    let resolved = join_all(names.into_iter().map(async |name| (resolve(&name).await, name))).await;
    for (addresses, name) in resolved {
        let mut states = observed.redis.iter_mut().filter_map(|node| node.state.as_mut().ok());
        if let Some(state) = states.find(|state| addresses.iter().any(|address| state.is_at(address))) {
            state.aliases.push(name);
        }
    }
}

async fn observe_sentinel(
    connections: &Connections,
    registration: &Registration,
    group: &str,
) -> ObservedNode<SentinelState> {
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
        // A Sentinel that does not resolve host names drops a hello that contains one. Such Sentinels are
        // those that already monitor the group by addresses.
        if !state.resolves_hostnames
            && registration.addr.host.as_str() == state.announced.host
            && registration.addr.host.ip().is_none()
            && let Some(address) = resolve(&endpoint).await.into_iter().next()
        {
            state.announced.host = address.host;
        }
        Ok(state)
    };
    ObservedNode { state: state.await, endpoint }
}

/// Sends the commands that observe a node. The first reply is to `INFO`, which shows the real kind of the
/// node.
async fn ask(
    connections: &Connections,
    endpoint: &Endpoint,
    commands: &[Command],
) -> Result<Vec<Reply>, Unusable> {
    let kind = connections.kind();
    let replies =
        connections.send(endpoint, commands).await.map_err(|error| Unusable::from_connection(kind, error))?;
    let first = replies[0].as_ref().map_err(|error| Unusable::from_reply(kind, error.clone()))?;
    let info = Info::parse(&text(first));
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
        // The node is connected, so its name did resolve. Without addresses, only the name itself is known.
        Err(_) => Vec::new(),
    }
}
