//! Judges whether a system is as it should be, from the answers of all its nodes. No I/O.
//!
//! A reply of `OK` proves little: `SENTINEL CKQUORUM` accepts a lone Sentinel with quorum 1, and a link that
//! is up may carry nothing. So every Sentinel has to know, and to have reached, the same master, all replicas
//! and all other Sentinels; the data has to flow; a failover has to be possible; and a client has to be able
//! to write.

use std::collections::{BTreeMap, BTreeSet};

use super::members::{Member, SentinelMember, System};
use crate::node::clients::{self, SentinelClient};
use crate::node::endpoint::Endpoint;
use crate::node::redis::Writes;
use crate::node::replication::{Replica, Replication, Role};
use crate::node::rights::{self, Lack};
use crate::node::sentinel::{NamedMaster, Peer};
use crate::words::count;

/// What keeps a system from being verified.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unmet {
    pub node: Endpoint,
    /// What is wrong on that node.
    pub what: String,
    /// What to do about it, if `what` does not show that already.
    pub hint: Option<String>,
}

impl Unmet {
    pub fn new(node: &Endpoint, what: impl Into<String>) -> Self {
        Self { node: node.clone(), what: what.into(), hint: None }
    }

    pub fn hint(self, hint: impl Into<String>) -> Self {
        Self { hint: Some(hint.into()), ..self }
    }
}

/// A check that was impossible because a right is missing. The system can be verified without it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Unproved {
    /// The missing right, as in an ACL rule: `+client|list`. `None`: no right would make the check possible.
    pub right: Option<String>,
    /// What the check would prove.
    pub what: &'static str,
    /// The node on which the right is missing.
    pub node: Endpoint,
}

/// A point in the master's stream that has reached every replica.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Flow {
    /// The replication id of the history.
    pub id: String,
    /// The offset, in bytes.
    pub offset: i64,
}

impl Flow {
    /// All conditions are from one `INFO` reply. The offset alone is misleading: during its whole
    /// synchronisation, a replica with a longer history has a greater offset.
    pub fn has_reached(&self, replica: &Replication) -> bool {
        matches!(replica.role, Role::Replica { link_up: true, .. })
            && replica.history.id == self.id
            && replica.applied.is_some_and(|applied| applied >= self.offset)
    }
}

/// The answers of a Redis server.
#[derive(Debug, Clone)]
pub struct RedisAnswers {
    pub replication: Option<Replication>,
    pub writes: Writes,
    /// The Sentinels that have subscribed to the server. `None` if our user may not list them.
    pub watchers: Option<Vec<SentinelClient>>,
    /// The settings that were asked for.
    pub settings: BTreeMap<String, String>,
}

/// The answers of a Sentinel.
#[derive(Debug, Clone)]
pub struct SentinelAnswers {
    pub master: NamedMaster,
    pub ckquorum: String,
    pub sentinels: Vec<Peer>,
    pub replicas: Vec<Peer>,
    /// The Sentinels that are connected to this Sentinel. `None` if our user may not list them.
    pub clients: Option<Vec<SentinelClient>>,
    /// Whether the Sentinel lets our user ask for its vote.
    pub lets_us_ask: bool,
    /// Whether the Sentinel is in TILT: its clock has jumped, or it was frozen. It then acts on nothing for
    /// 30 s (`SENTINEL_TILT_PERIOD` in `sentinel.c`).
    pub is_in_tilt: bool,
}

/// All answers of a system at about one moment. For a node that did not answer, the reason is in place of its
/// answers.
#[derive(Debug)]
pub struct SystemAnswers<'a> {
    pub system: &'a System,
    /// The options that every Sentinel should have.
    pub options: &'a BTreeMap<String, String>,
    /// The settings that every Redis server should have.
    pub redis_settings: &'a BTreeMap<String, String>,
    /// The point in the stream that has reached every replica. `None`: the check was impossible.
    pub flow: Option<&'a Flow>,
    /// In the order of [`System::redis`].
    pub redis: Vec<Result<RedisAnswers, String>>,
    /// In the order of [`System::sentinels`].
    pub sentinels: Vec<Result<SentinelAnswers, String>>,
    /// Our user on the Redis servers, and on the Sentinels.
    pub redis_user: &'a str,
    pub sentinel_user: &'a str,
}

impl SystemAnswers<'_> {
    /// What keeps the system from being verified, at most one item per node: first the master, then the
    /// replicas, then the Sentinels.
    pub fn unmet(&self) -> Vec<Unmet> {
        let system = self.system;
        let known: Vec<&Peer> =
            self.sentinels.iter().flatten().flat_map(|answers| &answers.replicas).collect();
        let moved = self.master().map(|answers| moved(system, answers, &known)).unwrap_or_default();
        let mut redis = system
            .redis()
            .zip(&self.redis)
            .map(|(member, answers)| match answers {
                Err(why) => Some(Unmet::new(&member.endpoint, why)),
                Ok(answers) if member.endpoint == system.master.endpoint => {
                    self.master_is_fine(answers).err()
                }
                Ok(answers) => match moved.get(&member.endpoint) {
                    Some(at) => Some(seen_elsewhere(member, at)),
                    None => self.replica_is_fine(member, answers).err(),
                },
            })
            .collect::<Vec<_>>();
        let mut sentinels = system
            .sentinels
            .iter()
            .zip(&self.sentinels)
            .map(|(sentinel, answers)| match answers {
                Err(why) => Some(Unmet::new(&sentinel.endpoint, why)),
                Ok(answers) => self.sentinel_is_fine(sentinel, answers, &moved).err(),
            })
            .collect::<Vec<_>>();
        // A Sentinel that can't reach a node reports that itself. The missing Sentinel on that node is only a
        // consequence.
        let fine: Vec<_> = system
            .sentinels
            .iter()
            .zip(&sentinels)
            .filter(|(_, unmet)| unmet.is_none())
            .map(|(sentinel, _)| sentinel)
            .collect();
        for ((member, answers), unmet) in system.redis().zip(&self.redis).zip(&mut redis) {
            if let (Ok(answers), None) = (answers, &unmet) {
                *unmet = self.is_watched(member, answers, &fine).err();
            }
        }
        for ((sentinel, answers), unmet) in system.sentinels.iter().zip(&self.sentinels).zip(&mut sentinels) {
            if let (Ok(answers), None) = (answers, &unmet) {
                *unmet = self.is_asked(sentinel, answers, &fine).err();
            }
        }
        redis.into_iter().chain(sentinels).flatten().collect()
    }

    /// The checks that were impossible.
    pub fn unproved(&self) -> Vec<Unproved> {
        let mut unproved = Vec::new();
        let mut add = |right: &str, node: &Endpoint, what| {
            unproved.push(Unproved { right: Some(format!("+{right}")), what, node: node.clone() });
        };
        for (member, answers) in self.system.redis().zip(&self.redis) {
            if member.lacks.get(rights::SCRIPT_KILL) == Some(&Lack::Denied) && self.uses_our_user(answers) {
                add(
                    rights::SCRIPT_KILL,
                    &member.endpoint,
                    "that the Sentinels can end a script that blocks the server, instead of failing over",
                );
            }
            if matches!(answers, Ok(RedisAnswers { watchers: None, .. })) {
                add(
                    clients::RIGHT,
                    &member.endpoint,
                    "that the registered Sentinels, and no others, have subscribed to the server",
                );
            }
        }
        for (sentinel, answers) in self.system.sentinels.iter().zip(&self.sentinels) {
            if matches!(answers, Ok(SentinelAnswers { clients: None, .. })) {
                add(
                    clients::RIGHT,
                    &sentinel.endpoint,
                    "that the other Sentinels are connected to this Sentinel, and can ask for its vote",
                );
            }
        }
        unproved
    }

    /// The users, other than ours, as which Sentinels are logged in to each Redis server. The server has to
    /// be asked for their rights.
    pub fn users_on_redis(&self) -> BTreeMap<Endpoint, BTreeSet<String>> {
        let nodes = self.system.redis().zip(&self.redis).filter_map(|(member, answers)| {
            let clients = answers.as_ref().ok()?.watchers.as_ref()?;
            Some((member.endpoint.clone(), self.users(clients, self.redis_user)))
        });
        nodes.filter(|(_, users)| !users.is_empty()).collect()
    }

    /// The users, other than ours, as which Sentinels are logged in to each Sentinel.
    pub fn users_on_sentinels(&self) -> BTreeMap<Endpoint, BTreeSet<String>> {
        let nodes = self.system.sentinels.iter().zip(&self.sentinels).filter_map(|(sentinel, answers)| {
            let clients = answers.as_ref().ok()?.clients.as_ref()?;
            Some((sentinel.endpoint.clone(), self.users(clients, self.sentinel_user)))
        });
        nodes.filter(|(_, users)| !users.is_empty()).collect()
    }

    /// Whether a Sentinel is logged in to that server as our user, as far as it can be seen.
    fn uses_our_user(&self, answers: &Result<RedisAnswers, String>) -> bool {
        let watchers = answers.as_ref().ok().and_then(|answers| answers.watchers.as_ref());
        watchers.is_none_or(|clients| clients.iter().any(|client| client.user == self.redis_user))
    }

    fn users(&self, clients: &[SentinelClient], ours: &str) -> BTreeSet<String> {
        let is_member = |client: &&SentinelClient| self.system.sentinels.iter().any(|one| client.is(&one.id));
        let users = clients.iter().filter(is_member).map(|client| client.user.clone());
        users.filter(|user| user != ours).collect()
    }

    fn master(&self) -> Option<&Replication> {
        self.redis.first()?.as_ref().ok()?.replication.as_ref()
    }

    fn master_is_fine(&self, answers: &RedisAnswers) -> Result<(), Unmet> {
        let master = &self.system.master;
        master_is_up(self.system, answers.replication.as_ref())?;
        self.has_its_settings(master, answers)?;
        takes_writes(master, answers)
    }

    fn replica_is_fine(&self, member: &Member, answers: &RedisAnswers) -> Result<(), Unmet> {
        replica_is_up(self.system, member, answers.replication.as_ref()).map_err(|unmet| {
            if unmet.hint.is_some() && answers.writes.save_failed {
                let what = format!(
                    "{}, and the replica could not write its last dump (rdb_last_bgsave_status)",
                    unmet.what
                );
                return Unmet { what, ..unmet };
            }
            unmet
        })?;
        if let (Some(flow), Some(replication)) = (self.flow, &answers.replication)
            && !flow.has_reached(replication)
        {
            return Err(Unmet::new(&member.endpoint, "does not follow the master's stream any more"));
        }
        self.has_its_settings(member, answers)
    }

    fn has_its_settings(&self, member: &Member, answers: &RedisAnswers) -> Result<(), Unmet> {
        for (name, value) in self.redis_settings {
            let has = answers.settings.get(name).map(String::as_str).unwrap_or_default();
            if has != value {
                return Err(Unmet::new(&member.endpoint, format!("has {name} {has}, not {value}")));
            }
        }
        Ok(())
    }

    /// All these Sentinels have to monitor the server. No Sentinel of another system may monitor it.
    fn is_watched(
        &self,
        member: &Member,
        answers: &RedisAnswers,
        by: &[&SentinelMember],
    ) -> Result<(), Unmet> {
        let Some(watchers) = &answers.watchers else { return Ok(()) };
        if let Some(sentinel) =
            by.iter().find(|sentinel| !watchers.iter().any(|client| client.is(&sentinel.id)))
        {
            let what = format!("the Sentinel {} has not subscribed to this server", sentinel.endpoint);
            return Err(Unmet::new(&member.endpoint, what).hint(format!(
                "grant the user of the Sentinels +subscribe and +client|setname on {}",
                member.endpoint
            )));
        }
        let knows = |id: &SentinelClient| {
            let peers = self.sentinels.iter().flatten().flat_map(|answers| &answers.sentinels);
            self.system.sentinels.iter().any(|sentinel| id.is(&sentinel.id))
                || peers.into_iter().any(|peer| id.is(&peer.id))
        };
        match watchers.iter().find(|client| !knows(client)) {
            Some(stranger) => {
                let what = format!(
                    "is monitored by a Sentinel at {}, which is not part of this system",
                    stranger.from.host
                );
                Err(Unmet::new(&member.endpoint, what).hint(format!(
                    "SENTINEL MASTERS on it shows under which name it monitors this server; if no other \
                     system uses the server: SENTINEL REMOVE NAME on that Sentinel, which then stops \
                     monitoring it; if its machine is dead: CLIENT KILL ID {} on {}",
                    stranger.connection, member.endpoint
                )))
            }
            None => Ok(()),
        }
    }

    fn sentinel_is_fine(
        &self,
        sentinel: &SentinelMember,
        answers: &SentinelAnswers,
        moved: &Moved,
    ) -> Result<(), Unmet> {
        let system = self.system;
        if answers.is_in_tilt {
            let what = "is in TILT: its clock has jumped or the process was frozen, and it starts no \
                 failover for 30 s"
                .to_owned();
            return Err(Unmet::new(&sentinel.endpoint, what).hint("check again after 30 s".to_owned()));
        }
        sentinel_agrees(system, sentinel, self.options, &answers.master, |named| {
            knows_these(system, sentinel, named, answers, moved)
        })?;
        // This check comes before `CKQUORUM`, because its message contains the missing nodes and not only
        // their number.
        reaches_all_nodes(system, sentinel, &answers.sentinels, &answers.replicas)?;
        if !answers.ckquorum.starts_with("OK") {
            return Err(Unmet::new(&sentinel.endpoint, format!("CKQUORUM: {}", answers.ckquorum)));
        }
        Ok(())
    }

    /// All these Sentinels have to be connected to this Sentinel, and must be allowed to ask for its vote.
    fn is_asked(
        &self,
        sentinel: &SentinelMember,
        answers: &SentinelAnswers,
        by: &[&SentinelMember],
    ) -> Result<(), Unmet> {
        let Some(clients) = &answers.clients else { return Ok(()) };
        let unmet = |what: String| Unmet::new(&sentinel.endpoint, what);
        let mut others = by.iter().filter(|other| other.id != sentinel.id);
        if let Some(other) = others.find(|other| !clients.iter().any(|client| client.is(&other.id))) {
            let hint = match &other.sentinel_user {
                Some(user) => {
                    format!("ACL SETUSER {user} +client|setname on {}; or check", sentinel.endpoint)
                }
                None => format!(
                    "if {} has ACL users, set the login on {}: SENTINEL CONFIG SET sentinel-user, and \
                     sentinel-pass; or check",
                    sentinel.endpoint, other.endpoint
                ),
            };
            return Err(unmet(format!("the Sentinel {} is not connected to this Sentinel", other.endpoint))
                .hint(format!(
                    "{hint} which server is at {}, the address that the other Sentinels use",
                    sentinel.announced
                )));
        }
        let asks_as_us = clients.iter().any(|client| client.user == self.sentinel_user);
        if asks_as_us && !answers.lets_us_ask {
            let user = self.sentinel_user;
            return Err(unmet(format!(
                "does not let the user `{user}` of the other Sentinels ask for its vote"
            ))
            .hint(format!("ACL SETUSER {user} +sentinel|is-master-down-by-addr on {}", sentinel.endpoint)));
        }
        Ok(())
    }
}

/// Whether the master is a master, and all replicas are online.
pub fn master_is_up(system: &System, replication: Option<&Replication>) -> Result<(), Unmet> {
    let unmet = |what: String| Unmet::new(&system.master.endpoint, what);
    let Some(replication) = replication.filter(|replication| replication.role == Role::Master) else {
        return Err(unmet("is not a master".into()));
    };
    let (online, expected) = (replication.online(), system.replicas.len());
    if online < expected {
        return Err(unmet(format!("has {online} of {} online", count(expected, "replica"))));
    }
    Ok(())
}

/// Whether a replica follows the master, and has done its first synchronisation.
pub fn replica_is_up(
    system: &System,
    member: &Member,
    replication: Option<&Replication>,
) -> Result<(), Unmet> {
    let unmet = |what: String| Unmet::new(&member.endpoint, what);
    let Some(Replication { role: Role::Replica { of, link_up }, .. }) = replication else {
        return Err(unmet("is not a replica".into()));
    };
    if !system.master.is_at(of) {
        return Err(unmet(format!("replicates {of}")));
    }
    if *link_up {
        return Ok(());
    }
    let log = member.settings.log().unwrap_or_else(|| "what it writes to its standard output".into());
    Err(unmet("its link to the master is not up".into()).hint(format!(
        "read the cause in its log ({log}); NOPERM there means that its login lacks a right on the master"
    )))
}

/// Whether a master would accept a write.
fn takes_writes(master: &Member, answers: &RedisAnswers) -> Result<(), Unmet> {
    let unmet = |what: String| Unmet::new(&master.endpoint, format!("no client can write to it: {what}"));
    let settings = &master.settings;
    let at = &master.endpoint;
    let log = settings.log().unwrap_or_else(|| "its log".into());
    let Writes { save_failed, append_failed, out_of_memory } = &answers.writes;
    let stops = settings.get("stop-writes-on-bgsave-error") != Some("no") && settings.get("save") != Some("");
    if *append_failed {
        return Err(unmet("it can't write its append-only file (MISCONF)".into())
            .hint(format!("read the cause in {log}")));
    }
    if *save_failed && stops {
        return Err(unmet("it could not save its last dump (MISCONF)".into()).hint(format!(
            "read the cause in {log}; CONFIG SET stop-writes-on-bgsave-error no on {at} accepts writes \
             without a dump, and a restart can lose them"
        )));
    }
    if let Some((used, allowed)) = out_of_memory {
        return Err(unmet(format!("it uses {used} bytes of memory, and `maxmemory` is {allowed} (OOM)"))
            .hint(format!(
                "raise `maxmemory` on {at}, or let the server delete keys by itself with `maxmemory-policy`"
            )));
    }
    let needed: u64 = settings.number("min-replicas-to-write").unwrap_or_default();
    if let Some(good) = answers.replication.as_ref().and_then(|replication| replication.good_replicas)
        && good < needed
    {
        return Err(unmet(format!(
            "`min-replicas-to-write` is {needed}, but only {good} follow closely (NOREPLICAS)"
        ))
        .hint(format!(
            "start the other replicas, or add some; CONFIG SET min-replicas-to-write {good} on {at} accepts \
             writes without them, which are lost if the Sentinels then fail over from this master"
        )));
    }
    Ok(())
}

/// Whether a Sentinel reports the master, knows the right number of nodes, and has its options.
pub fn sentinel_agrees(
    system: &System,
    sentinel: &SentinelMember,
    options: &BTreeMap<String, String>,
    named: &NamedMaster,
    knows: impl FnOnce(&NamedMaster) -> Result<(), Unmet>,
) -> Result<(), Unmet> {
    let unmet = |what: String| Unmet::new(&sentinel.endpoint, what);
    if !system.master.is_at(&named.endpoint) {
        return Err(unmet(format!("reports {} as the master", named.endpoint)));
    }
    if named.flags() != "master" {
        return Err(unmet(format!("sees the master as `{}`", named.flags())));
    }
    if !named.was_reached() {
        return Err(unmet(format!("has had no answer from the master at {}", named.endpoint)).hint(format!(
            "check that {} reaches that address, and check its password for the master",
            sentinel.endpoint
        )));
    }
    knows(named)?;
    knows_as_many(system, sentinel, named.other_sentinels(), named.replicas())?;
    for (name, value) in options {
        if named.field(name) != value {
            return Err(unmet(format!("has {name} {}, not {value}", named.field(name))));
        }
    }
    Ok(())
}

/// The Sentinel has to know as many nodes as the system has.
fn knows_as_many(
    system: &System,
    sentinel: &SentinelMember,
    sentinels: u64,
    replicas: u64,
) -> Result<(), Unmet> {
    let unmet = |what: String| Unmet::new(&sentinel.endpoint, what);
    let others = system.sentinels.len().saturating_sub(1);
    if usize::try_from(sentinels) != Ok(others) {
        return Err(unmet(format!("knows {sentinels} of {}", count(others, "other Sentinel"))));
    }
    if usize::try_from(replicas) != Ok(system.replicas.len()) {
        return Err(unmet(format!("knows {replicas} of {}", count(system.replicas.len(), "replica"))));
    }
    Ok(())
}

/// The Sentinel has to know all nodes of the system and no other node. A Sentinel forgets no node without a
/// reset, and a node that is gone still counts as a vote or as a candidate. If only the number were checked,
/// the nodes might be the wrong ones.
fn knows_these(
    system: &System,
    sentinel: &SentinelMember,
    named: &NamedMaster,
    answers: &SentinelAnswers,
    moved: &Moved,
) -> Result<(), Unmet> {
    let at = &sentinel.endpoint;
    let is_sentinel = |id: &str| system.sentinels.iter().any(|sentinel| sentinel.id == id);
    if let Some(peer) = answers.sentinels.iter().find(|peer| !is_sentinel(&peer.id)) {
        return Err(stranger(at, "Sentinel", peer));
    }
    for peer in &answers.replicas {
        if system.replicas.iter().any(|replica| replica.is_at(&peer.endpoint)) {
            continue;
        }
        let is_here =
            |member: &&Member| moved.get(&member.endpoint).is_some_and(|at| at.contains(&peer.endpoint));
        let known = system.redis().find(|member| member.run_id == peer.id);
        let known: Vec<&Member> =
            known.map_or_else(|| system.redis().filter(is_here).collect(), |one| vec![one]);
        let names: Vec<_> = known.iter().map(|member| member.endpoint.to_string()).collect();
        return Err(match known.first() {
            Some(member) => {
                let what = format!("knows {} as {}", names.join(" or "), peer.endpoint);
                let seen_at = std::slice::from_ref(&peer.endpoint);
                Unmet { node: at.clone(), what, ..seen_elsewhere(member, seen_at) }
            }
            None => stranger(at, "replica", peer),
        });
    }
    let listed = system.replicas.iter().filter(|replica| replica.settings.is_announced()).count();
    if answers.replicas.len() != listed {
        return Err(Unmet::new(
            at,
            format!("knows {} of {}", answers.replicas.len(), count(listed, "replica")),
        ));
    }
    knows_as_many(system, sentinel, answers.sentinels.len() as u64, named.replicas())
}

fn stranger(at: &Endpoint, what: &str, peer: &Peer) -> Unmet {
    let endpoint = &peer.endpoint;
    let kind = if what == "Sentinel" { "sentinel" } else { "redis" };
    if peer.is_gone() {
        return Unmet::new(at, format!("still counts the {what} {endpoint}, which is gone")).hint(format!(
            "if {endpoint} is gone permanently: `sentinel-runner deregister {kind} {endpoint}`, then \
             `sentinel-runner bootstrap`"
        ));
    }
    Unmet::new(at, format!("knows the {what} {endpoint}, which is not part of this system")).hint(format!(
        "register {endpoint} (`sentinel-runner register {kind} {endpoint}`); or stop it, then run \
         `sentinel-runner bootstrap`, which makes the Sentinels forget it"
    ))
}

/// Whether a Sentinel has reached all other Sentinels, and all replicas that it lists to clients, at the
/// addresses that it knows.
pub fn reaches_all_nodes(
    system: &System,
    sentinel: &SentinelMember,
    sentinels: &[Peer],
    replicas: &[Peer],
) -> Result<(), Unmet> {
    let unmet = |what: String| Unmet::new(&sentinel.endpoint, what);
    for other in system.others(sentinel) {
        let Some(peer) = sentinels.iter().find(|peer| peer.id == other.id) else {
            return Err(unmet(format!("does not know the Sentinel {}", other.endpoint)));
        };
        if peer.flags != "sentinel" || !peer.was_reached() {
            let at = address(&other.endpoint, &peer.endpoint);
            return Err(unmet(format!("has had no answer from the Sentinel {at}"))
                .hint(why_no_sentinel(sentinel, other, peer)));
        }
    }
    for replica in system.replicas.iter().filter(|replica| replica.settings.is_announced()) {
        let Some(peer) = replicas.iter().find(|peer| replica.is_at(&peer.endpoint)) else {
            return Err(unmet(format!("does not know the replica {}", replica.endpoint)));
        };
        let other = system.redis().find(|other| other.run_id == peer.id && other.run_id != replica.run_id);
        if let Some(other) = other {
            return Err(unmet(format!(
                "reaches {} at the address of the replica {}",
                other.endpoint, replica.endpoint
            )));
        }
        // The id is empty until the Sentinel has read the replica's `INFO`.
        if peer.flags != "slave" || !peer.was_reached() || peer.id.is_empty() {
            let at = address(&replica.endpoint, &peer.endpoint);
            let host = &replica.endpoint.host;
            let hint = if peer.endpoint == replica.endpoint {
                format!(
                    "check that {} reaches that address, and check its password for the replica",
                    sentinel.endpoint
                )
            } else {
                format!(
                    "CONFIG SET replica-announce-ip {host} on {}, if the Sentinels reach the replica there",
                    replica.endpoint
                )
            };
            return Err(unmet(format!("has had no answer from the replica {at}")).hint(hint));
        }
    }
    Ok(())
}

fn why_no_sentinel(sentinel: &SentinelMember, other: &SentinelMember, peer: &Peer) -> String {
    if peer.endpoint != other.endpoint {
        let Endpoint { host, port } = &other.endpoint;
        return format!(
            "{} announces {}: SENTINEL CONFIG SET announce-ip {host}, and announce-port {port}, on that \
             Sentinel, if the others reach it there",
            other.endpoint, peer.endpoint
        );
    }
    // This Sentinel is connected and sends commands. So the other Sentinel may be refusing its login.
    if !peer.is_gone() {
        return match &sentinel.sentinel_user {
            Some(user) => format!(
                "check that {} lets the user `{user}` log in, with the rights in docs/access.md",
                other.endpoint
            ),
            None => format!(
                "if the Sentinels have ACL users, set the login of {}: SENTINEL CONFIG SET \
                 sentinel-user, and sentinel-pass, on that Sentinel",
                sentinel.endpoint
            ),
        };
    }
    format!("check that {} reaches that address", sentinel.endpoint)
}

/// Both addresses if they differ.
fn address(registered: &Endpoint, known: &Endpoint) -> String {
    if registered == known {
        known.to_string()
    } else {
        format!("{registered} at {known}, the address that it announces")
    }
}

/// The addresses at which the master sees replicas that it does not see at their own addresses. If there are
/// several, the replica is at one of them.
type Moved = BTreeMap<Endpoint, Vec<Endpoint>>;

/// The replicas that the master sees at an address that they have neither registered nor announced: behind
/// another interface, or behind address translation. They are identified by their ids if a Sentinel has read
/// these there, otherwise by their ports.
fn moved(system: &System, master: &Replication, known: &[&Peer]) -> Moved {
    let seen_at = |member: &Member| master.replicas.iter().any(|replica| member.is_at(&replica.endpoint));
    let missing: Vec<&Member> = system.replicas.iter().filter(|member| !seen_at(member)).collect();
    let is_known = |replica: &&Replica| system.redis().any(|member| member.is_at(&replica.endpoint));
    let unknown: Vec<&Endpoint> = master
        .replicas
        .iter()
        .filter(|replica| !is_known(replica))
        .map(|replica| &replica.endpoint)
        .collect();
    let found = missing.iter().map(|member| {
        let by_id =
            |at: &&&Endpoint| known.iter().any(|peer| peer.id == member.run_id && peer.endpoint == ***at);
        if let Some(at) = unknown.iter().find(by_id) {
            return (member, vec![(*at).clone()]);
        }
        if let ([_], [at]) = (missing.as_slice(), unknown.as_slice()) {
            return (member, vec![(*at).clone()]);
        }
        let on_its_port = unknown.iter().filter(|at| at.port == member.announced.port);
        (member, on_its_port.map(|at| (*at).clone()).collect())
    });
    let found = found.filter(|(_, at)| !at.is_empty());
    found.map(|(member, at)| (member.endpoint.clone(), at)).collect()
}

fn seen_elsewhere(member: &Member, at: &[Endpoint]) -> Unmet {
    let Endpoint { host, port } = &member.endpoint;
    let mut hint = format!("CONFIG SET replica-announce-ip {host} on {}", member.endpoint);
    if at.iter().all(|at| at.port != *port) {
        hint += &format!(", and replica-announce-port {port}");
    }
    let at = at.iter().map(ToString::to_string).collect::<Vec<_>>().join(" or ");
    let what = format!(
        "the master sees this replica at {at}, which is not its registered address: the Sentinels would \
         give that address to clients"
    );
    Unmet::new(&member.endpoint, what)
        .hint(format!("{hint}; then CLIENT KILL TYPE master on it, so that it reconnects"))
}

#[cfg(test)]
mod tests;
