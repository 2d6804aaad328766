//! Asks the broker, the Sentinels, and the servers that they name. Nothing is changed.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use broker_fn::api::{Addr, Group, Kind, Registration, Roster};
use futures::future::join_all;
use tokio::sync::Mutex;
use tokio::time::Instant;

use super::decide::{AskedSentinel, BrokerSays, Heard, NamedServer};
use super::position::Position;
use crate::broker::watch::RosterWatch;
use crate::broker::{Broker, BrokerError};
use crate::node::clients::{self, Holder};
use crate::node::command::{Command, command};
use crate::node::connection::Connections;
use crate::node::endpoint::Endpoint;
use crate::node::hello::Hello;
use crate::node::info::Info;
use crate::node::redis::Data;
use crate::node::replication::{Replication, Role};
use crate::node::reply::{Reply, text};
use crate::node::sentinel::{self, SentinelState};
use crate::node::unusable::Unusable;
use crate::system::servers::Servers;

/// How long after a server's start its `join` may report how far the data goes. A server without `join` never
/// reports it.
const REPORTED_WITHIN: Duration = Duration::from_secs(5);

/// Asks about one of the node's groups.
#[derive(Debug)]
pub struct Asker {
    pub kind: Kind,
    pub own_addresses: OwnAddresses,
    pub broker: Arc<Broker>,
    /// The watch on the broker's roster, for the time in which this node waits for answers.
    pub watch: Mutex<RosterWatch>,
    /// The group, if it is not the broker's default.
    pub group: Option<Group>,
    /// The Sentinels that the operator names.
    pub named: Vec<Addr>,
    pub servers: Servers,
    /// How long each node may take to answer.
    pub command_timeout: Duration,
}

/// This node's addresses, as far as its configuration and its flags show them.
#[derive(Debug, Clone)]
pub struct OwnAddresses {
    pub announce: Option<Addr>,
    pub port: u16,
    /// The addresses that the server listens on, if it does not listen on all.
    pub bind: Vec<IpAddr>,
}

impl OwnAddresses {
    /// Whether an address is this node's. `false` if its name can't be looked up.
    pub async fn contains(&self, endpoint: &Endpoint) -> bool {
        self.look_up(endpoint).await.unwrap_or_default()
    }

    /// Whether an address is this node's. `None` if its name can't be looked up at this moment.
    pub async fn look_up(&self, endpoint: &Endpoint) -> Option<bool> {
        let OwnAddresses { announce, port, bind } = self;
        let announced = announce.as_ref().map(Endpoint::from);
        if announced.as_ref() == Some(endpoint) {
            return Some(true);
        }
        if endpoint.port != *port
            && announced.as_ref().is_none_or(|announced| announced.port != endpoint.port)
        {
            return Some(false);
        }
        let addresses = lookup(endpoint).await.ok()?;
        if endpoint.port == *port
            && addresses.iter().any(|ip| if bind.is_empty() { is_local(*ip) } else { bind.contains(ip) })
        {
            return Some(true);
        }
        match announced {
            Some(announced) if announced.port == endpoint.port => {
                let ours = lookup(&announced).await.ok()?;
                Some(addresses.iter().any(|ip| ours.contains(ip)))
            }
            Some(_) | None => Some(false),
        }
    }
}

impl Asker {
    /// Asks all nodes. First the broker, for the Sentinels to ask. Then every Sentinel at once, including
    /// those that have sent `hellos` on this node's own server. Then the peers of these Sentinels. Then every
    /// server that they name, at once.
    pub async fn ask(&self, hellos: &BTreeSet<Hello>) -> (Heard, Option<Group>) {
        let roster = match self.watch.try_lock() {
            Ok(mut watch) => watch.current(self.command_timeout).await,
            // Another task waits for the roster to change.
            Err(_) => self.broker.roster(self.command_timeout).await,
        };
        self.ask_with(roster, hellos).await
    }

    /// Like [`Self::ask`], but with the roster of this moment. The watch's roster may be from before a change
    /// that the broker is yet to tell.
    pub async fn ask_afresh(&self, hellos: &BTreeSet<Hello>) -> (Heard, Option<Group>) {
        self.ask_with(self.broker.roster(self.command_timeout).await, hellos).await
    }

    async fn ask_with(
        &self,
        roster: Result<Roster, BrokerError>,
        hellos: &BTreeSet<Hello>,
    ) -> (Heard, Option<Group>) {
        // If Sentinels monitor this very server in a group, the server belongs to that group.
        let watched_as = hellos.iter().find_map(|hello| hello.group.parse().ok());
        let group =
            watched_as.or_else(|| self.group.clone()).or_else(|| Some(roster.as_ref().ok()?.group.clone()));
        let registered = roster.as_ref().map(|roster| roster.sentinels.as_slice()).unwrap_or_default();
        let sentinels = match &group {
            Some(group) => self.ask_sentinels(group, registered, hellos).await,
            None => Vec::new(),
        };
        let known = || sentinels.iter().filter_map(|asked| asked.answer.as_ref().ok()?.monitored.as_ref());
        let named: BTreeSet<Endpoint> = known()
            .flat_map(|known| {
                known.replicas.iter().map(|replica| &replica.endpoint).chain([&known.master.endpoint])
            })
            .cloned()
            .collect();
        let own = match self.kind {
            Kind::Redis => self.own(&named).await,
            Kind::Sentinel => {
                let peers = known().flat_map(|known| known.peers.values()).map(|peer| peer.endpoint.clone());
                self.own(&peers.collect()).await
            }
        };
        // Only a Redis server needs to know whose data is the newest.
        let masters: BTreeSet<&Endpoint> = known().map(|known| &known.master.endpoint).collect();
        let asked = named.iter().filter(|endpoint| self.kind == Kind::Redis || masters.contains(endpoint));
        let servers = asked
            .map(async |endpoint| (endpoint.clone(), self.ask_server(&self.servers.redis, endpoint).await));
        let servers: BTreeMap<_, _> = join_all(servers).await.into_iter().collect();
        let broker = match &roster {
            Ok(roster) => Ok(BrokerSays {
                // The numbers of the verified system take precedence over the numbers that the broker expects
                // now.
                expected_sentinels: roster
                    .last_verified
                    .as_ref()
                    .map_or(roster.expected, |last| last.expected)
                    .sentinels
                    .into(),
                verified: verified(roster),
            }),
            Err(error) => Err(error.to_string()),
        };
        (Heard { broker, sentinels, servers, own }, group)
    }

    /// Waits for this time, or until the broker's roster changes.
    pub async fn pause(&self, pause: Duration) {
        self.watch.lock().await.changed(Instant::now() + pause).await;
    }

    async fn ask_sentinels(
        &self,
        group: &Group,
        registered: &[Registration],
        hellos: &BTreeSet<Hello>,
    ) -> Vec<AskedSentinel> {
        let registered: BTreeSet<Endpoint> =
            registered.iter().map(|node| Endpoint::from(&node.addr)).collect();
        let named = self.named.iter().map(Endpoint::from);
        let hellos = hellos.iter().map(|hello| hello.sentinel.clone());
        let names: BTreeSet<Endpoint> = named.chain(registered.iter().cloned()).chain(hellos).collect();
        let asked = names.iter().map(async |name| {
            let asked = |endpoint: Endpoint, answer| AskedSentinel { endpoint, answer };
            let addresses = match self.resolve(name).await {
                Ok(addresses) => addresses,
                Err(why) => return vec![asked(name.clone(), Err(why))],
            };
            let answers = addresses.into_iter().map(async |address| {
                if self.kind == Kind::Sentinel && self.is_own(&address).await {
                    return None;
                }
                let answer = self.ask_sentinel(&address, group).await;
                Some(asked(address, answer))
            });
            let mut answers: Vec<AskedSentinel> = join_all(answers).await.into_iter().flatten().collect();
            forget_other_family(&mut answers);
            answers
        });
        let mut all: Vec<AskedSentinel> = join_all(asked).await.into_iter().flatten().collect();
        let peers = self.ask_peers(group, &all).await;
        all.extend(peers);
        // A Sentinel that was named by its name and by its address is one Sentinel.
        all.sort_by(|a, b| a.endpoint.cmp(&b.endpoint));
        all.dedup_by(|a, b| a.endpoint == b.endpoint);
        all
    }

    /// Asks the peers of the Sentinels that have answered: these peers may not have registered with the
    /// broker yet. A silent peer is left out, because the Sentinels that know this peer count it.
    async fn ask_peers(&self, group: &Group, all: &[AskedSentinel]) -> Vec<AskedSentinel> {
        let known = all.iter().filter_map(|asked| asked.answer.as_ref().ok()?.monitored.as_ref());
        let peers: BTreeMap<&Endpoint, &String> =
            known.flat_map(|known| &known.peers).map(|(id, peer)| (&peer.endpoint, id)).collect();
        let new = peers.into_iter().filter(|(peer, _)| all.iter().all(|asked| asked.endpoint != **peer));
        let answers = new.map(async |(peer, id)| {
            if self.kind == Kind::Sentinel && self.is_own(peer).await {
                return None;
            }
            // Another Sentinel may have this address by now.
            let state = self.ask_sentinel(peer, group).await.ok().filter(|state| state.my_id == *id)?;
            Some(AskedSentinel { endpoint: peer.clone(), answer: Ok(state) })
        });
        join_all(answers).await.into_iter().flatten().collect()
    }

    async fn ask_sentinel(&self, endpoint: &Endpoint, group: &Group) -> Result<SentinelState, String> {
        let connections = &self.servers.sentinels;
        let replies = send(connections, endpoint, &sentinel::observation(group.as_str())).await?;
        let info = info(connections, &replies[0])?;
        if info.mode() != Some("sentinel") {
            return Err("is not a Sentinel".into());
        }
        let mut state = SentinelState::parse(endpoint, &replies)
            .map_err(|error| Unusable::from_reply(Kind::Sentinel, error).to_string())?;
        let names_loopback =
            state.monitored.as_ref().is_some_and(|known| is_loopback(&known.master.endpoint));
        if names_loopback && !is_here(endpoint).await {
            state.monitored = None;
        }
        Ok(state)
    }

    /// Asks a server through these connections. `--allow` does not apply to the connections to this node's
    /// own server.
    pub async fn ask_server(
        &self,
        connections: &Connections,
        endpoint: &Endpoint,
    ) -> Result<NamedServer, String> {
        let sections = ["replication", "keyspace", "memory", "persistence", "stats", "server"];
        let commands = sections.map(|section| command!("INFO", section)).into_iter();
        let commands: Vec<_> = commands.chain([clients::subscribers()]).collect();
        let replies = send(connections, endpoint, &commands).await?;
        let [replication, keyspace, memory, persistence, stats, server, subscribers] = replies.as_slice()
        else {
            unreachable!("one reply for each command")
        };
        let replication = info(connections, replication)?;
        let data = Data::parse(&info(connections, keyspace)?, &info(connections, memory)?);
        let (persistence, stats) = (info(connections, persistence)?, info(connections, stats)?);
        let uptime = info(connections, server)?
            .number("uptime_in_seconds")
            .map_or(REPORTED_WITHIN, Duration::from_secs);
        let holder = holder(subscribers);
        let Some(replication) = Replication::parse(&replication) else {
            return Err("is not a Redis server".into());
        };
        let is_master = replication.role == Role::Master;
        // A held server has been linked to no master, in every version.
        let is_from_disk = replication.role == Role::Held || !is_master && is_from_disk(&replication, &stats);
        let is_yet_to_report = is_from_disk && holder.is_none() && uptime < REPORTED_WITHIN;
        let (living, reported) =
            (Position::living(&replication, &persistence), holder.and_then(position_in_name));
        Ok(NamedServer {
            is_master,
            is_held: replication.role == Role::Held,
            holds_data: !data.is_empty() || persistence.get("loading") == Some("1"),
            position: match (living, reported) {
                // When a server loads an append-only file, it begins a new history.
                (_, Some(reported)) if is_from_disk => Some(reported),
                (Some(living), Some(reported)) => Some(living.with_ancestors(&reported)),
                (living, _) => living,
            },
            is_yet_to_report,
            is_from_disk,
        })
    }

    /// The addresses among these that are this node's.
    async fn own(&self, endpoints: &BTreeSet<Endpoint>) -> BTreeSet<Endpoint> {
        let own = join_all(endpoints.iter().map(|endpoint| self.is_own(endpoint))).await;
        endpoints.iter().zip(own).filter(|(_, own)| *own).map(|(endpoint, _)| endpoint.clone()).collect()
    }

    async fn is_own(&self, endpoint: &Endpoint) -> bool {
        self.own_addresses.contains(endpoint).await
    }

    /// Every address of a Sentinel's name. With TLS, a name that has only one address is kept, because a
    /// certificate contains the name.
    async fn resolve(&self, name: &Endpoint) -> Result<Vec<Endpoint>, String> {
        let addresses = match tokio::time::timeout(self.command_timeout, lookup(name)).await {
            Ok(addresses) => addresses?,
            Err(_) => return Err("the lookup of its name timed out".into()),
        };
        if addresses.len() == 1 && self.servers.sentinels.use_tls() {
            return Ok(vec![name.clone()]);
        }
        Ok(addresses.into_iter().map(|ip| Endpoint::new(ip.to_string(), name.port)).collect())
    }
}

/// A node whose name has addresses of both families may listen on one family only. If all addresses of one
/// family have answered, silent addresses of the other family are left out.
fn forget_other_family(answers: &mut Vec<AskedSentinel>) {
    let is_v4 = |asked: &AskedSentinel| asked.endpoint.host.parse::<Ipv4Addr>().is_ok();
    for family in [true, false] {
        let mut members = answers.iter().filter(|asked| is_v4(asked) == family).peekable();
        if members.peek().is_some() && members.all(|asked| asked.answer.is_ok()) {
            answers.retain(|asked| asked.answer.is_ok() || is_v4(asked) == family);
        }
    }
    // If no address answers, this is one silent node and not one of each family.
    if answers.iter().all(|asked| asked.answer.is_err()) {
        let v4 = answers.iter().filter(|asked| is_v4(asked)).count();
        let family = 2 * v4 >= answers.len();
        answers.retain(|asked| is_v4(asked) == family);
    }
}

/// Whether all that this replica holds was on its disk when it started. `false` if nothing shows this.
fn is_from_disk(replication: &Replication, stats: &Info) -> bool {
    let is_up = matches!(replication.role, Role::Replica { link_up: true, .. });
    // A server that was a master has never lost a link either. So these numbers show whether this server has
    // received or sent any replication data (both exist since Redis 7.0). Data of a synchronisation that has
    // not ended is ignored, because the server does not hold that data.
    let sent_nothing = stats.number("total_net_repl_output_bytes") == Some(0_u64);
    let got_nothing = stats.number("total_net_repl_input_bytes") == Some(0_u64);
    replication.link_never_lost && !is_up && sent_nothing && (got_nothing || replication.never_synchronised())
}

/// How far a server's data goes, as its `join` reports it.
pub async fn reported_position(connections: &Connections, endpoint: &Endpoint) -> Option<Position> {
    let replies = connections.send(endpoint, &[clients::subscribers()]).await.ok()?;
    holder(replies.first()?).and_then(position_in_name)
}

/// `None` without the right to ask.
fn holder(subscribers: &Reply) -> Option<Holder> {
    clients::held_by(subscribers.as_ref().ok()?)
}

fn position_in_name(holder: Holder) -> Option<Position> {
    holder.position?.parse().ok()
}

fn verified(roster: &Roster) -> Option<String> {
    if let Some(last) = &roster.last_verified {
        return Some(last.master.to_string());
    }
    // For a broker that keeps no `last_verified`: the outcome of a run that failed, or is in progress, names
    // the master of the last run that did not fail.
    if let Some(outcome) =
        roster.outcome.as_ref().filter(|outcome| outcome.verified || outcome.master.is_some())
    {
        return Some(outcome.master.as_ref().map_or_else(|| "(unknown)".into(), ToString::to_string));
    }
    // For a broker that has lost its store: the members' registrations name the master, and the master has to
    // be registered itself.
    let is_member = |master: &&Addr| roster.redis.iter().any(|node| !node.stale && node.addr == **master);
    let members = roster.redis.iter().chain(&roster.sentinels).filter(|member| !member.stale);
    members.filter_map(|member| member.master.as_ref()).find(is_member).map(ToString::to_string)
}

async fn send(
    connections: &Connections,
    endpoint: &Endpoint,
    commands: &[Command],
) -> Result<Vec<Reply>, String> {
    let replies = connections.send(endpoint, commands).await;
    replies.map_err(|error| Unusable::from_connection(connections.kind(), error).to_string())
}

fn info(connections: &Connections, reply: &Reply) -> Result<Info, String> {
    match reply {
        Ok(value) => Ok(Info::parse(&text(value))),
        Err(error) => Err(Unusable::from_reply(connections.kind(), error.clone()).to_string()),
    }
}

/// The addresses that a host stands for.
async fn lookup(endpoint: &Endpoint) -> Result<Vec<IpAddr>, String> {
    if let Ok(ip) = endpoint.host.parse::<IpAddr>() {
        return Ok(vec![ip.to_canonical()]);
    }
    match tokio::net::lookup_host((endpoint.host.as_str(), endpoint.port)).await {
        Ok(addresses) => {
            let addresses: BTreeSet<IpAddr> = addresses.map(|address| address.ip().to_canonical()).collect();
            Ok(addresses.into_iter().collect())
        }
        Err(_) => Err("its name has no address".into()),
    }
}

/// Whether an address is a loopback address. A Sentinel on another machine that names one means its own
/// machine, and not this node: for example, Debian's own file monitors a `mymaster` at 127.0.0.1.
fn is_loopback(endpoint: &Endpoint) -> bool {
    endpoint.host == "localhost"
        || endpoint.host.parse::<IpAddr>().is_ok_and(|ip| ip.to_canonical().is_loopback())
}

/// Whether a node is on this machine.
async fn is_here(endpoint: &Endpoint) -> bool {
    lookup(endpoint).await.unwrap_or_default().into_iter().any(is_local)
}

/// Whether an address is this machine's: the operating system would send to the address from the same
/// address. Nothing is sent.
fn is_local(ip: IpAddr) -> bool {
    let any =
        if ip.is_ipv4() { IpAddr::V4(Ipv4Addr::UNSPECIFIED) } else { IpAddr::V6(Ipv6Addr::UNSPECIFIED) };
    let source = UdpSocket::bind((any, 0)).and_then(|socket| {
        socket.connect((ip, 9))?;
        socket.local_addr()
    });
    ip.is_loopback() || source.is_ok_and(|source| source.ip() == ip)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(host: &str, answers: bool) -> AskedSentinel {
        let state = SentinelState::fresh(Endpoint::new(host, 26379), host, "");
        let answer = if answers { Ok(state) } else { Err("unreachable".to_owned()) };
        AskedSentinel { endpoint: Endpoint::new(host, 26379), answer }
    }

    #[test]
    fn a_name_with_addresses_of_both_families_is_heard_by_one() {
        let mut localhost = vec![asked("127.0.0.1", true), asked("::1", false)];
        forget_other_family(&mut localhost);
        assert_eq!(localhost.len(), 1);
        let mut service = vec![asked("10.0.0.7", true), asked("10.0.0.8", false), asked("fd00::7", false)];
        forget_other_family(&mut service);
        assert_eq!(service.len(), 3, "one of the family that is in use is missing");
        let mut silent = vec![asked("127.0.0.1", false), asked("::1", false)];
        forget_other_family(&mut silent);
        assert_eq!(silent.len(), 1);
    }

    #[test]
    fn an_address_of_this_machine_is_known_as_one() {
        assert!(is_local("127.0.0.1".parse().unwrap()) && is_local("127.0.0.9".parse().unwrap()));
        // Reserved for documentation (RFC 5737).
        assert!(!is_local("192.0.2.1".parse().unwrap()));
    }

    #[test]
    fn a_replica_that_was_ever_linked_is_not_from_its_disk() {
        let from_disk = |since: &str, input: &str| {
            let replication = Info::parse(&format!("role:slave\r\n{since}\r\n"));
            let replication = Replication::parse(&replication).unwrap();
            let stats = Info::parse(&format!("{input}\r\ntotal_net_repl_output_bytes:0\r\n"));
            is_from_disk(&replication, &stats)
        };
        let (never, no_input) = ("master_link_down_since_seconds:-1", "total_net_repl_input_bytes:0");
        let (input, place) = ("total_net_repl_input_bytes:7", "slave_repl_offset:90");
        assert!(from_disk(never, no_input));
        assert!(!from_disk(&format!("{never}\r\n{place}"), input), "it was a replica of another");
        assert!(
            from_disk(&format!("{never}\r\nslave_repl_offset:1"), input),
            "its first synchronisation has not ended"
        );
        assert!(!from_disk("master_link_down_since_seconds:3", no_input));
        assert!(!from_disk("master_link_status:up", no_input));
        assert!(!from_disk(never, "before_redis_7:1"), "unknown");
    }
}
