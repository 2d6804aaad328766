//! Verifying: whether the system is what the plan says, asked of every server until all agree.
//!
//! A reply of `OK` proves little: `SENTINEL CKQUORUM` is content with a lone Sentinel of quorum 1. What is asked for is
//! that every Sentinel knows the same master, all replicas and all other Sentinels, and that the data flows.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use futures::future::join_all;
use redis::Value;
use tokio::time::Instant;

use crate::connection::{Command, Reply, Servers, command};
use crate::endpoint::Endpoint;
use crate::plan::System;
use crate::redis::{Info, replicas, text};
use crate::sentinel::{Peer, fields, peers};

/// The shortest time between two questions to one node.
const POLL: Duration = Duration::from_millis(3);

/// What keeps a system from being verified.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unmet {
    /// The node.
    pub node: Endpoint,
    /// What is not as it should be on it.
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
    let parts: Vec<(&Endpoint, Part)> = [(&system.master, Part::Master)]
        .into_iter()
        .chain(system.replicas.iter().map(|node| (node, Part::Replica)))
        .chain(system.sentinels.iter().map(|node| (node, Part::Sentinel)))
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
        Part::Master => judge_master(system, &Info::parse(&text(reply(0)?))),
        Part::Replica => judge_replica(system, &Info::parse(&text(reply(0)?))),
        Part::Sentinel => {
            let more = match replies.len() {
                1 => None,
                _ => Some(More {
                    ckquorum: text(reply(1)?),
                    sentinels: peers(reply(2)?),
                    replicas: peers(reply(3)?),
                }),
            };
            judge_sentinel(system, options, &fields(reply(0)?), more.as_ref())
        }
    }
}

fn judge_master(system: &System, info: &Info) -> Result<(), String> {
    if info.get("role") != Some("master") {
        return Err("is not a master".into());
    }
    let expected = system.replicas.len();
    let online = replicas(info).iter().filter(|replica| replica.online).count();
    if online < expected {
        return Err(format!("has {online} of {expected} replicas online"));
    }
    Ok(())
}

fn judge_replica(system: &System, info: &Info) -> Result<(), String> {
    if info.get("role") != Some("slave") {
        return Err("is not a replica".into());
    }
    let master = Endpoint::new(
        info.get("master_host").unwrap_or_default(),
        info.number("master_port").unwrap_or_default(),
    );
    if master != system.master_announced && !system.master_aliases.contains(&master) {
        return Err(format!("replicates {master}"));
    }
    if info.get("master_link_status") != Some("up") {
        return Err("its link to the master is not up".into());
    }
    Ok(())
}

fn judge_sentinel(
    system: &System,
    options: &BTreeMap<String, String>,
    master: &HashMap<String, String>,
    more: Option<&More>,
) -> Result<(), String> {
    let field = |name: &str| master.get(name).map(String::as_str).unwrap_or_default();
    let count = |name: &str| field(name).parse::<usize>().unwrap_or_default();
    let named = Endpoint::new(field("ip"), field("port").parse().unwrap_or_default());
    if named != system.master_announced && !system.master_aliases.contains(&named) {
        return Err(format!("names {named} as the master"));
    }
    if field("flags") != "master" {
        return Err(format!("sees the master as `{}`", field("flags")));
    }
    if let Some(more) = more {
        judge_known(system, more)?;
    }
    let others = system.sentinels.len().saturating_sub(1);
    if count("num-other-sentinels") != others {
        return Err(format!("knows {} of {others} other Sentinels", count("num-other-sentinels")));
    }
    if count("num-slaves") != system.replicas.len() {
        return Err(format!("knows {} of {} replicas", count("num-slaves"), system.replicas.len()));
    }
    for (name, value) in options {
        if field(name) != value {
            return Err(format!("has {name} {}, not {value}", field(name)));
        }
    }
    if let Some(More { ckquorum, .. }) = more
        && !ckquorum.starts_with("OK")
    {
        return Err(format!("CKQUORUM: {ckquorum}"));
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
    let is_ours = |(id, _): &&(String, Peer)| system.sentinel_ids.contains(id);
    if let Some((_, peer)) = known.sentinels.iter().find(|entry| !is_ours(entry)) {
        return Err(stranger("Sentinel", peer));
    }
    let is_ours = |peer: &Peer| system.replica_aliases.iter().flatten().any(|alias| *alias == peer.endpoint);
    if let Some((_, peer)) = known.replicas.iter().find(|(_, peer)| !is_ours(peer)) {
        return Err(stranger("replica", peer));
    }
    let others = system.sentinels.len().saturating_sub(1);
    if known.sentinels.len() != others {
        return Err(format!("knows {} of {others} other Sentinels", known.sentinels.len()));
    }
    if known.replicas.len() != system.replicas.len() {
        return Err(format!("knows {} of {} replicas", known.replicas.len(), system.replicas.len()));
    }
    Ok(())
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

    fn system() -> System {
        let master = Endpoint::new("10.0.0.1", 6379);
        System {
            group: "mymaster".parse().unwrap(),
            master: master.clone(),
            master_announced: master.clone(),
            master_aliases: vec![master],
            replicas: vec![Endpoint::new("10.0.0.2", 6379)],
            replica_aliases: vec![vec![Endpoint::new("10.0.0.2", 6379)]],
            sentinel_ids: ["a", "b", "c"].map(str::to_owned).into(),
            sentinels: (3..6).map(|host| Endpoint::new(format!("10.0.0.{host}"), 26379)).collect(),
        }
    }

    fn good() -> HashMap<String, String> {
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

    #[test]
    fn a_sentinel_is_content_only_when_every_condition_holds() {
        let options = BTreeMap::from([("parallel-syncs".to_owned(), "1".to_owned())]);
        assert_eq!(judge_sentinel(&system(), &options, &good(), Some(&known())), Ok(()));
        assert_eq!(judge_sentinel(&system(), &options, &good(), None), Ok(()));
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
                assert!(judge_sentinel(&system(), &options, &fields, more).is_err(), "{name} {value}");
            }
        }
        let no_quorum = More { ckquorum: "NOQUORUM 1 usable Sentinels.".into(), ..known() };
        assert!(judge_sentinel(&system(), &options, &good(), Some(&no_quorum)).is_err());
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

    #[test]
    fn a_master_needs_every_replica_online() {
        let info = |state: &str| {
            Info::parse(&format!("role:master\r\nslave0:ip=10.0.0.2,port=6379,state={state},offset=0,lag=0"))
        };
        assert_eq!(judge_master(&system(), &info("online")), Ok(()));
        assert!(judge_master(&system(), &info("wait_bgsave")).is_err());
        assert!(judge_master(&system(), &Info::parse("role:master")).is_err());
        assert!(
            judge_master(&system(), &Info::parse("role:slave\nslave0:ip=a,port=1,state=online")).is_err()
        );
    }

    #[test]
    fn a_replica_needs_the_right_master_and_a_link() {
        let info = |host: &str, link: &str| {
            Info::parse(&format!(
                "role:slave\r\nmaster_host:{host}\r\nmaster_port:6379\r\nmaster_link_status:{link}"
            ))
        };
        assert_eq!(judge_replica(&system(), &info("10.0.0.1", "up")), Ok(()));
        assert!(judge_replica(&system(), &info("10.0.0.1", "down")).is_err());
        assert!(judge_replica(&system(), &info("10.0.0.9", "up")).is_err());
        assert!(judge_replica(&system(), &Info::parse("role:master")).is_err());
    }
}
