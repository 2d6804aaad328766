//! Verifying: whether the system is what the plan says, asked of every server until all agree.
//!
//! A reply of `OK` proves little: `SENTINEL CKQUORUM` is content with a lone Sentinel of quorum 1. What is asked for is
//! that every Sentinel knows the same master, all replicas and all other Sentinels, and that the data flows.

use std::collections::BTreeMap;
use std::time::Duration;

use futures::future::join_all;
use redis::Value;
use tokio::time::Instant;

use super::members::System;
use super::servers::Servers;
use crate::node::command::{Command, command};
use crate::node::endpoint::Endpoint;
use crate::node::info::Info;
use crate::node::replication::{Replication, Role};
use crate::node::reply::{Reply, text};
use crate::node::sentinel::{NamedMaster, Peer, peers};
use crate::words::count;

/// The shortest time between two questions to one node.
const POLL: Duration = Duration::from_millis(3);

/// What keeps a system from being verified.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unmet {
    pub node: Endpoint,
    pub what: String,
}

/// What a node of the system has to be.
#[derive(Debug, Clone, Copy)]
enum Part {
    Master,
    Replica,
    Sentinel,
}

/// How much is asked at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Asks {
    /// What changes last, again and again.
    WhatTakesTime,
    /// All that has to hold.
    Everything,
}

/// Asks until every condition holds on every node, and once more of all at once; at `until` it gives up.
///
/// # Errors
///
/// What does not hold, node by node.
pub async fn verify(
    servers: &Servers,
    system: &System,
    options: &BTreeMap<String, String>,
    until: Instant,
) -> Result<(), Vec<Unmet>> {
    let parts: Vec<(&Endpoint, Part)> = [(&system.master.endpoint, Part::Master)]
        .into_iter()
        .chain(system.replicas.iter().map(|replica| (&replica.endpoint, Part::Replica)))
        .chain(system.sentinels.iter().map(|sentinel| (&sentinel.endpoint, Part::Sentinel)))
        .collect();
    // Many nodes on few processors would spend them on answering.
    let poll = POLL.max(Duration::from_micros(400) * u32::try_from(parts.len()).unwrap_or(u32::MAX));
    let check = |node, part, asks| async move {
        let connections = match part {
            Part::Master | Part::Replica => &servers.redis,
            Part::Sentinel => &servers.sentinels,
        };
        match connections.send(node, &questions(part, system, asks)).await {
            Ok(replies) => judge(part, system, options, &replies),
            Err(error) => Err(error.to_string()),
        }
    };
    loop {
        join_all(parts.iter().map(|&(node, part)| async move {
            while check(node, part, Asks::WhatTakesTime).await.is_err() && Instant::now() < until {
                tokio::time::sleep(poll).await;
            }
        }))
        .await;
        let all = parts
            .iter()
            .map(|&(node, part)| async move { (node, check(node, part, Asks::Everything).await) });
        let results = join_all(all).await;
        let unmet: Vec<_> = results
            .into_iter()
            .filter_map(|(node, result)| Some(Unmet { node: node.clone(), what: result.err()? }))
            .collect();
        if unmet.is_empty() {
            return Ok(());
        }
        if Instant::now() >= until {
            return Err(unmet);
        }
    }
}

fn questions(part: Part, system: &System, asks: Asks) -> Vec<Command> {
    let group = &system.group;
    match (part, asks) {
        (Part::Master | Part::Replica, _) => vec![command!("INFO", "replication")],
        (Part::Sentinel, Asks::WhatTakesTime) => vec![command!("SENTINEL", "MASTER", group)],
        (Part::Sentinel, Asks::Everything) => {
            vec![
                command!("SENTINEL", "MASTER", group),
                command!("SENTINEL", "CKQUORUM", group),
                command!("SENTINEL", "SENTINELS", group),
                command!("SENTINEL", "REPLICAS", group),
            ]
        }
    }
}

fn judge(
    part: Part,
    system: &System,
    options: &BTreeMap<String, String>,
    replies: &[Reply],
) -> Result<(), String> {
    let reply =
        |index: usize| -> Result<&Value, String> { replies[index].as_ref().map_err(ToString::to_string) };
    match part {
        Part::Master => judge_master(system, replication(reply(0)?).as_ref()),
        Part::Replica => judge_replica(system, replication(reply(0)?).as_ref()),
        Part::Sentinel => {
            let more = match replies.len() {
                1 => None,
                _ => Some(More {
                    ckquorum: text(reply(1)?),
                    sentinels: peers(reply(2)?),
                    replicas: peers(reply(3)?),
                }),
            };
            judge_sentinel(system, options, &NamedMaster::parse(reply(0)?), more.as_ref())
        }
    }
}

fn replication(reply: &Value) -> Option<Replication> {
    Replication::parse(&Info::parse(&text(reply)))
}

fn judge_master(system: &System, replication: Option<&Replication>) -> Result<(), String> {
    let Some(replication) = replication.filter(|replication| replication.role == Role::Master) else {
        return Err("is not a master".into());
    };
    let (online, expected) = (replication.online(), system.replicas.len());
    if online < expected {
        return Err(format!("has {online} of {} online", count(expected, "replica")));
    }
    Ok(())
}

fn judge_replica(system: &System, replication: Option<&Replication>) -> Result<(), String> {
    let Some(Replication { role: Role::Replica { of, link_up }, .. }) = replication else {
        return Err("is not a replica".into());
    };
    if !system.master.is_at(of) {
        return Err(format!("replicates {of}"));
    }
    if !link_up {
        return Err("its link to the master is not up".into());
    }
    Ok(())
}

fn judge_sentinel(
    system: &System,
    options: &BTreeMap<String, String>,
    named: &NamedMaster,
    more: Option<&More>,
) -> Result<(), String> {
    if !system.master.is_at(&named.endpoint) {
        return Err(format!("names {} as the master", named.endpoint));
    }
    if named.flags() != "master" {
        return Err(format!("sees the master as `{}`", named.flags()));
    }
    if let Some(more) = more {
        judge_known(system, more)?;
    }
    knows_as_many(system, named.other_sentinels(), named.replicas())?;
    for (name, value) in options {
        if named.field(name) != value {
            return Err(format!("has {name} {}, not {value}", named.field(name)));
        }
    }
    if let Some(More { ckquorum, .. }) = more
        && !ckquorum.starts_with("OK")
    {
        return Err(format!("CKQUORUM: {ckquorum}"));
    }
    Ok(())
}

/// As many as there are.
fn knows_as_many(system: &System, sentinels: u64, replicas: u64) -> Result<(), String> {
    let others = system.sentinels.len().saturating_sub(1);
    if usize::try_from(sentinels) != Ok(others) {
        return Err(format!("knows {sentinels} of {}", count(others, "other Sentinel")));
    }
    if usize::try_from(replicas) != Ok(system.replicas.len()) {
        return Err(format!("knows {replicas} of {}", count(system.replicas.len(), "replica")));
    }
    Ok(())
}

/// What a Sentinel says besides what it knows of the master: whether a quorum is there, and whom it lists.
#[derive(Debug)]
struct More {
    ckquorum: String,
    sentinels: Vec<(String, Peer)>,
    replicas: Vec<(String, Peer)>,
}

/// All that there are, and nobody else: a Sentinel forgets nobody by itself, and who is gone still counts as a vote and as a
/// candidate. The right number of them might still be the wrong ones.
fn judge_known(system: &System, known: &More) -> Result<(), String> {
    let is_sentinel = |id: &str| system.sentinels.iter().any(|sentinel| sentinel.id == id);
    if let Some((_, peer)) = known.sentinels.iter().find(|(id, _)| !is_sentinel(id)) {
        return Err(stranger("Sentinel", peer));
    }
    let is_replica = |peer: &Peer| system.replicas.iter().any(|replica| replica.is_at(&peer.endpoint));
    if let Some((_, peer)) = known.replicas.iter().find(|(_, peer)| !is_replica(peer)) {
        return Err(stranger("replica", peer));
    }
    knows_as_many(system, known.sentinels.len() as u64, known.replicas.len() as u64)
}

fn stranger(what: &str, Peer { endpoint, gone }: &Peer) -> String {
    if *gone {
        format!(
            "still counts on the {what} {endpoint}, which is gone: if it is for good, forget its registration"
        )
    } else {
        format!("knows the {what} {endpoint}, which is none of these: let it register, or stop it")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::system::members::{Member, SentinelMember};

    fn system() -> System {
        let member = |number| {
            let endpoint = Endpoint::new(format!("10.0.0.{number}"), 6379);
            Member { announced: endpoint.clone(), aliases: vec![endpoint.clone()], endpoint }
        };
        let sentinel = |(number, id): (u8, &str)| SentinelMember {
            endpoint: Endpoint::new(format!("10.0.0.{number}"), 26379),
            id: id.to_owned(),
        };
        System {
            group: "mymaster".parse().unwrap(),
            master: member(1),
            replicas: vec![member(2)],
            sentinels: [(3, "a"), (4, "b"), (5, "c")].map(sentinel).into(),
        }
    }

    fn good() -> BTreeMap<String, String> {
        [
            ("ip", "10.0.0.1"),
            ("port", "6379"),
            ("flags", "master"),
            ("num-other-sentinels", "2"),
            ("num-slaves", "1"),
            ("parallel-syncs", "1"),
        ]
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .into()
    }

    fn named(fields: &BTreeMap<String, String>) -> NamedMaster {
        let words = fields.iter().flat_map(|(name, value)| [name, value]);
        NamedMaster::parse(&Value::Array(words.map(|word| Value::SimpleString(word.clone())).collect()))
    }

    #[test]
    fn a_sentinel_is_content_only_when_every_condition_holds() {
        let options = BTreeMap::from([("parallel-syncs".to_owned(), "1".to_owned())]);
        assert_eq!(judge_sentinel(&system(), &options, &named(&good()), Some(&known())), Ok(()));
        assert_eq!(judge_sentinel(&system(), &options, &named(&good()), None), Ok(()));
        for (name, value) in [
            ("ip", "10.0.0.2"),
            ("port", "6380"),
            ("flags", "s_down,master"),
            ("flags", "master,disconnected"),
            ("num-other-sentinels", "1"),
            ("num-slaves", "0"),
            ("num-slaves", "2"),
            ("num-other-sentinels", "3"),
            ("parallel-syncs", "2"),
        ] {
            let mut fields = good();
            fields.insert(name.into(), value.into());
            for more in [None, Some(&known())] {
                assert!(
                    judge_sentinel(&system(), &options, &named(&fields), more).is_err(),
                    "{name} {value}"
                );
            }
        }
        let no_quorum = More { ckquorum: "NOQUORUM 1 usable Sentinels.".into(), ..known() };
        assert!(judge_sentinel(&system(), &options, &named(&good()), Some(&no_quorum)).is_err());
    }

    fn peer(host: u8, gone: bool) -> Peer {
        Peer { endpoint: Endpoint::new(format!("10.0.0.{host}"), 6379), gone }
    }

    fn known() -> More {
        More {
            ckquorum: "OK 3 usable Sentinels.".into(),
            sentinels: vec![("a".into(), peer(3, false)), ("b".into(), peer(4, false))],
            replicas: vec![(String::new(), peer(2, false))],
        }
    }

    #[test]
    fn a_sentinel_knows_all_that_there_are_and_nobody_else() {
        let with = |change: fn(&mut More)| {
            let mut known = known();
            change(&mut known);
            judge_known(&system(), &known)
        };
        assert_eq!(with(|_| {}), Ok(()));
        assert!(with(|known| known.sentinels.push(("old".into(), peer(9, true)))).is_err());
        assert!(with(|known| known.replicas.push((String::new(), peer(9, true)))).is_err());
        assert!(with(|known| known.sentinels.push(("stranger".into(), peer(9, false)))).is_err());
        assert!(
            with(|known| known.sentinels[0] = ("old".into(), peer(9, true))).is_err(),
            "as many, but the wrong ones"
        );
        assert!(with(|known| known.replicas[0] = (String::new(), peer(9, false))).is_err());
        assert!(with(|known| drop(known.sentinels.pop())).is_err());
        assert!(with(|known| drop(known.replicas.pop())).is_err());
    }

    fn parse(info: &str) -> Option<Replication> {
        Replication::parse(&Info::parse(info))
    }

    #[test]
    fn a_master_needs_every_replica_online() {
        let info = |state: &str| {
            parse(&format!("role:master\r\nslave0:ip=10.0.0.2,port=6379,state={state},offset=0,lag=0"))
        };
        assert_eq!(judge_master(&system(), info("online").as_ref()), Ok(()));
        assert!(judge_master(&system(), info("wait_bgsave").as_ref()).is_err());
        assert!(judge_master(&system(), parse("role:master").as_ref()).is_err());
        assert!(
            judge_master(&system(), parse("role:slave\nslave0:ip=a,port=1,state=online").as_ref()).is_err()
        );
    }

    #[test]
    fn a_replica_needs_the_right_master_and_a_link() {
        let info = |host: &str, link: &str| {
            parse(&format!(
                "role:slave\r\nmaster_host:{host}\r\nmaster_port:6379\r\nmaster_link_status:{link}"
            ))
        };
        assert_eq!(judge_replica(&system(), info("10.0.0.1", "up").as_ref()), Ok(()));
        assert!(judge_replica(&system(), info("10.0.0.1", "down").as_ref()).is_err());
        assert!(judge_replica(&system(), info("10.0.0.9", "up").as_ref()).is_err());
        assert!(judge_replica(&system(), parse("role:master").as_ref()).is_err());
    }
}
