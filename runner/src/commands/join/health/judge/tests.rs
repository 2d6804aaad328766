use std::collections::{BTreeMap, BTreeSet};

use broker_fn::api::Kind;
use proptest::prelude::*;
use redis::Value;

use super::*;
use crate::commands::join::health::seen::{Phase, Voice};

pub const DOWN_AFTER: Duration = Duration::from_secs(5);

pub fn this() -> Endpoint {
    Endpoint::new("10.0.0.7", 6379)
}

fn other() -> Endpoint {
    Endpoint::new("10.0.0.8", 6379)
}

/// A server that says this of its replication.
pub fn said(replication: &str) -> Said {
    let reply = |text: &str| Ok(Value::BulkString(text.as_bytes().to_vec()));
    Said::Server(Box::new(ServerNow::parse(&[reply(replication), reply("loading:0\r\n")]).unwrap()))
}

/// A master with a replica at [`other`] that has confirmed the stream so many seconds ago.
pub fn master(silent_s: u64) -> Said {
    said(&format!(
        "role:master\r\nconnected_slaves:1\r\nslave0:ip=10.0.0.8,port=6379,state=online,offset=9,lag={silent_s}\r\n"
    ))
}

pub fn replica() -> Said {
    said(
        "role:slave\r\nmaster_host:10.0.0.8\r\nmaster_port:6379\r\nmaster_link_status:up\r\nslave_repl_offset:9\r\n",
    )
}

/// What one of three Sentinels said so long ago.
pub fn voice(index: u16, names: &Endpoint, now: Instant, ago: Duration) -> (String, Voice) {
    let peers = (0..3).filter(|peer| *peer != index);
    let voice = Voice {
        at: now - ago,
        endpoint: Endpoint::new("10.0.0.9", 26379 + index),
        names: names.clone(),
        is_this: *names == this(),
        config_epoch: 1,
        quorum: 2,
        is_failing_over: false,
        is_down: false,
        down_after: DOWN_AFTER,
        peers: peers.map(|peer| (peer.to_string(), Endpoint::new("10.0.0.9", 26379 + peer))).collect(),
        candidates: BTreeSet::from([if *names == this() { other() } else { this() }]),
    };
    (index.to_string(), voice)
}

pub fn seen(said: Said, voices: impl IntoIterator<Item = (String, Voice)>, now: Instant) -> Seen {
    Seen {
        phase: Phase::Runs,
        said: Some((now, said)),
        voices: voices.into_iter().collect(),
        ..Seen::new(Kind::Redis, None)
    }
}

/// A moment that has a past.
pub fn now() -> Instant {
    Instant::now() + Duration::from_secs(3600)
}

const NOW: Duration = Duration::ZERO;
const LONG_AGO: Duration = Duration::from_secs(6);

#[test]
fn a_master_is_one_for_clients_until_most_sentinels_name_another() {
    let now = now();
    let primary = |names: [&Endpoint; 3], ago: [Duration; 3], silent_s| {
        let voices =
            (0..3).map(|index| voice(index, names[usize::from(index)], now, ago[usize::from(index)]));
        primary(&seen(master(silent_s), voices, now), now)
    };
    let (us, them) = (&this(), &other());
    assert_eq!(primary([us, us, us], [NOW; 3], 0).unwrap(), "a master; 3 of 3 Sentinels name it");
    assert!(primary([us, us, them], [NOW; 3], 0).is_ok(), "one of three is no majority");
    assert!(primary([us, them, them], [NOW; 3], 0).unwrap_err().contains("they name 10.0.0.8:6379"));
    // Their last word is that, also when they are gone.
    assert!(primary([us, them, them], [LONG_AGO; 3], 0).is_err());
    // Two of three are down: nobody can have been promoted who still follows.
    assert!(primary([us; 3], [NOW, LONG_AGO, LONG_AGO], 0).unwrap().contains("only 1 of 3"));
    assert!(primary([us; 3], [LONG_AGO; 3], 1).is_ok());
    // The network is cut: for the others it may have been replaced.
    assert!(primary([us; 3], [LONG_AGO; 3], 5).unwrap_err().contains("10.0.0.8:6379 does not follow"));
    assert!(primary([us; 3], [NOW, LONG_AGO, LONG_AGO], 5).is_err());
    // Not for long enough.
    assert!(primary([us; 3], [Duration::from_secs(4); 3], 4).is_ok());
}

#[test]
fn a_new_master_is_one_once_the_old_one_follows_it() {
    let now = now();
    let voices = || (0..3).map(|index| voice(index, &other(), now, NOW));
    let mut seen = seen(master(0), voices(), now);
    assert!(primary(&seen, now).is_err(), "that it has a replica says nothing");
    seen.followed_by = Some((now, other()));
    assert!(primary(&seen, now).unwrap().contains("10.0.0.8:6379, which follows it by now"));
    assert!(primary(&seen, now + FRESH_FOLLOWER).is_err(), "that was before");
    seen.followed_by = Some((now, Endpoint::new("10.0.0.9", 6379)));
    assert!(primary(&seen, now).is_err(), "another follows it");
}

#[test]
fn what_is_no_master_gets_no_writes() {
    let now = now();
    let no = |said| primary(&seen(said, [], now), now).unwrap_err();
    assert_eq!(no(replica()), "a replica of 10.0.0.8:6379");
    assert!(no(said("role:slave\r\nmaster_host:127.26.37.9\r\nmaster_port:0\r\n")).contains("held"));
    // Without any Sentinel it is what a person has made it.
    assert!(primary(&seen(master(0), [], now), now).is_ok());
}

#[test]
fn a_server_that_says_nothing_is_nothing() {
    let now = now();
    let mut seen = seen(master(0), (0..3).map(|index| voice(index, &this(), now, NOW)), now);
    seen.said = Some((now - Duration::from_secs(4), master(0)));
    seen.silent = Some("10.0.0.7:6379: no answer within 1s".into());
    assert!(primary(&seen, now).is_ok(), "a slow command is no reason to end all connections");
    seen.said = Some((now - Duration::from_secs(5), master(0)));
    let why = primary(&seen, now).unwrap_err();
    assert_eq!(why, "the server has not answered for 5s: 10.0.0.7:6379: no answer within 1s");
    seen.phase = Phase::Waits("for two Sentinels".into());
    for verdict in [primary(&seen, now), replica_verdict(&seen, None, now), ready(&seen, now)] {
        assert_eq!(verdict.unwrap_err(), "the server has not been started: for two Sentinels");
    }
}

fn replica_verdict(seen: &Seen, most: Option<u64>, now: Instant) -> Verdict {
    super::replica(seen, most, now)
}

#[test]
fn a_replica_is_as_near_as_was_asked() {
    let now = now();
    let mut seen = seen(replica(), [], now);
    assert!(replica_verdict(&seen, None, now).is_ok());
    assert!(replica_verdict(&seen, Some(100), now).unwrap_err().contains("can't be told"));
    seen.lag = Some((now, Lag { master: other(), bytes: 100 }));
    assert!(replica_verdict(&seen, Some(100), now).is_ok());
    assert!(replica_verdict(&seen, Some(99), now).unwrap_err().contains("100 bytes behind 10.0.0.8:6379"));
    seen.lag = Some((now - LONG_AGO, Lag { master: other(), bytes: 0 }));
    assert!(replica_verdict(&seen, Some(99), now).is_err(), "that was long ago");
    seen.said = Some((now, master(0)));
    assert_eq!(replica_verdict(&seen, None, now).unwrap_err(), "a master");
}

#[test]
fn a_sentinel_that_was_taken_out_is_counted_no_more() {
    let now = now();
    let mut voices: BTreeMap<_, _> = (0..3).map(|index| voice(index, &this(), now, NOW)).collect();
    let (id, mut gone) = voice(3, &this(), now, LONG_AGO);
    gone.peers = (0..3).map(|peer| (peer.to_string(), Endpoint::new("10.0.0.9", 1))).collect();
    voices.insert(id.clone(), gone.clone());
    let mut seen = seen(master(0), voices, now);
    let (first, again) = voice(0, &this(), now, NOW);
    seen.take(first.clone(), Some(again.clone()), now);
    assert_eq!((seen.voices.len(), seen.all_sentinels(now)), (3, 3));
    // One that the others know is waited for.
    let knows = Voice { peers: BTreeMap::from([(id.clone(), gone.endpoint.clone())]), ..again };
    seen.voices.insert(id, gone);
    seen.take(first.clone(), Some(knows), now);
    assert_eq!(seen.voices.len(), 4);
    // One that monitors nothing of that name any more says nothing, and nobody else knows that one.
    seen.take(first, None, now);
    assert_eq!(seen.voices.len(), 2);
}

proptest! {
    /// Whatever the Sentinels say: of two servers that both say that they are masters, most Sentinels have to be behind one that gets
    /// writes while they answer.
    #[test]
    fn two_masters_are_not_both_for_clients(names in prop::collection::vec(any::<bool>(), 3), heard in prop::collection::vec(any::<bool>(), 3)) {
        let now = now();
        let verdict = |is_first: bool| {
            let voices = (0..3u16).filter(|index| heard[usize::from(*index)]).map(|index| {
                let is_ours = names[usize::from(index)] == is_first;
                let names = if is_ours { this() } else { other() };
                voice(index, &names, now, NOW)
            });
            // Neither follows the other.
            primary(&seen(said("role:master\r\nconnected_slaves:0\r\n"), voices, now), now)
        };
        let is_heard = heard.iter().filter(|heard| **heard).count() > 1;
        let most = names.iter().zip(&heard).filter(|(first, heard)| **first && **heard).count();
        if is_heard && (most > 1 || most == 0) {
            prop_assert!(!(verdict(true).is_ok() && verdict(false).is_ok()));
        }
    }
}
