use std::collections::BTreeMap;

use broker_fn::api::Kind;
use proptest::prelude::*;
use redis::Value;

use super::*;
use crate::commands::join::health::seen::{Candidate, SentinelView, ServerPhase};

pub const DOWN_AFTER: Duration = Duration::from_secs(5);

pub fn this() -> Endpoint {
    Endpoint::new("10.0.0.7", 6379)
}

fn other() -> Endpoint {
    Endpoint::new("10.0.0.8", 6379)
}

/// A server that answers this about its replication.
pub fn said(replication: &str) -> NodeAnswer {
    let reply = |text: &str| Ok(Value::BulkString(text.as_bytes().to_vec()));
    let replies = [reply(replication), reply("loading:0\r\n"), reply("run_id:of-this\r\n")];
    NodeAnswer::Server(Box::new(ServerNow::parse(&replies).unwrap()))
}

/// A master with a replica at [`other`] that has confirmed the stream this many seconds ago.
pub fn master(silent_s: u64) -> NodeAnswer {
    said(&format!(
        "role:master\r\nconnected_slaves:1\r\nslave0:ip=10.0.0.8,port=6379,state=online,offset=9,lag={silent_s}\r\n"
    ))
}

pub fn replica() -> NodeAnswer {
    said(
        "role:slave\r\nmaster_host:10.0.0.8\r\nmaster_port:6379\r\nmaster_link_status:up\r\nslave_repl_offset:9\r\n",
    )
}

fn candidate(at: &Endpoint, run_id: &str) -> Candidate {
    Candidate { endpoint: at.clone(), run_id: run_id.into() }
}

/// The answer of one of three Sentinels, given this long `ago`.
pub fn view(index: u16, names: &Endpoint, now: Instant, ago: Duration) -> (String, SentinelView) {
    let peers = (0..3).filter(|peer| *peer != index);
    let view = SentinelView {
        at: now - ago,
        endpoint: Endpoint::new("10.0.0.9", 26379 + index),
        names: names.clone(),
        is_this: Some(*names == this()),
        knows_this: true,
        config_epoch: 1,
        quorum: 2,
        is_failing_over: false,
        is_down: false,
        down_after: DOWN_AFTER,
        peers: peers.map(|peer| (peer.to_string(), Endpoint::new("10.0.0.9", 26379 + peer))).collect(),
        candidates: if *names == this() { vec![candidate(&other(), "")] } else { Vec::new() },
    };
    (index.to_string(), view)
}

pub fn seen(
    said: NodeAnswer,
    views: impl IntoIterator<Item = (String, SentinelView)>,
    now: Instant,
) -> SeenNodes {
    let mut seen = SeenNodes::new(Kind::Redis, None);
    (seen.phase, seen.last_answer) = (ServerPhase::Runs, Some((now, said)));
    let mut views: Vec<_> = views.into_iter().collect();
    views.sort_by_key(|(_, view)| view.at);
    for (id, view) in views {
        let at = view.at;
        seen.take(id, Some(view), at);
    }
    seen
}

/// A moment from which earlier moments can be computed.
pub fn now() -> Instant {
    Instant::now() + Duration::from_secs(3600)
}

const NOW: Duration = Duration::ZERO;
const LONG_AGO: Duration = Duration::from_secs(6);

#[test]
fn a_master_is_one_for_clients_until_most_sentinels_name_another() {
    let now = now();
    let primary = |names: [&Endpoint; 3], ago: [Duration; 3], silent_s| {
        let views = (0..3).map(|index| view(index, names[usize::from(index)], now, ago[usize::from(index)]));
        primary(&seen(master(silent_s), views, now), now)
    };
    let (us, them) = (&this(), &other());
    assert_eq!(primary([us, us, us], [NOW; 3], 0).unwrap(), "a master; 3 of 3 Sentinels report it");
    assert!(primary([us, us, them], [NOW; 3], 0).is_ok(), "one of three is no majority");
    assert!(
        primary([us, them, them], [NOW; 3], 0).unwrap_err().contains("2 of 3 Sentinels report 10.0.0.8:6379")
    );
    // The last answers stay valid when the Sentinels are gone.
    assert!(primary([us, them, them], [LONG_AGO; 3], 0).is_err());
    // Two of three Sentinels are down: no replica that still follows can have been promoted.
    assert!(primary([us; 3], [NOW, LONG_AGO, LONG_AGO], 0).unwrap().contains("only 1 of 3"));
    assert!(primary([us; 3], [LONG_AGO; 3], 2).is_ok());
    // The network is partitioned: on the other side, the Sentinels may have promoted a replica.
    assert!(primary([us; 3], [LONG_AGO; 3], 5).unwrap_err().contains("10.0.0.8:6379 does not follow"));
    assert!(primary([us; 3], [NOW, LONG_AGO, LONG_AGO], 5).is_err());
    // The Sentinels have been silent for less than `down-after-milliseconds`.
    assert!(primary([us; 3], [Duration::from_secs(4); 3], 4).is_ok());
}

#[test]
fn a_new_master_is_one_once_the_old_one_follows_it() {
    let now = now();
    let views = || (0..3).map(|index| view(index, &other(), now, NOW));
    let mut seen = seen(master(0), views(), now);
    assert!(primary(&seen, now).is_err(), "that it has a replica says nothing");
    seen.followed_by = Some((now, other()));
    assert!(primary(&seen, now).unwrap().contains("10.0.0.8:6379, which already follows this server"));
    assert!(primary(&seen, now + FRESH_FOLLOWER).is_err(), "that was before");
    seen.followed_by = Some((now, Endpoint::new("10.0.0.9", 6379)));
    assert!(primary(&seen, now).is_err(), "another follows it");
}

/// Three Sentinels that name this node. `change` changes the answer of each, and is given its number.
fn changed(silent_s: u64, now: Instant, change: impl Fn(u16, &mut SentinelView)) -> Verdict {
    let views = (0..3).map(|index| {
        let (id, mut view) = view(index, &this(), now, NOW);
        change(index, &mut view);
        (id, view)
    });
    primary(&seen(master(silent_s), views, now), now)
}

#[test]
fn what_others_call_another_is_counted_whatever_they_call_it() {
    let now = now();
    // One Sentinel reports the other server by its address, and one by its name.
    let named = |index: u16, view: &mut SentinelView| {
        view.names = Endpoint::new(["10.0.0.8", "r2.example", "10.0.0.7"][usize::from(index)], 6379);
        view.is_this = Some(index == 2);
    };
    assert!(changed(0, now, named).unwrap_err().contains("no longer the master: 2 of 3 Sentinels"));
    // A reported master whose name can't be looked up does not count as another master. But then all replicas
    // have to follow this server.
    let unknown = |_: u16, view: &mut SentinelView| view.is_this = None;
    assert!(changed(0, now, unknown).is_ok());
    assert!(changed(60, now, unknown).is_err());
    // Sentinels of another system have no vote.
    let strangers = |index: u16, view: &mut SentinelView| {
        if index > 0 {
            (view.names, view.is_this, view.knows_this) = (other(), Some(false), false);
        }
    };
    assert!(changed(0, now, strangers).is_ok());
}

#[test]
fn one_sentinel_with_another_patience_fences_nobody() {
    let now = now();
    let hasty = |index: u16, view: &mut SentinelView| {
        if index == 0 {
            view.down_after = Duration::from_millis(5);
        }
        view.at = now - Duration::from_secs(1);
    };
    assert!(changed(0, now, hasty).unwrap().contains("3 of 3"));
}

#[test]
fn a_silent_sentinels_old_word_does_not_outvote_newer_ones() {
    let now = now();
    let views = || {
        (0..3).map(|index| {
            // Two Sentinels are silent, and knew nothing of the failover.
            let (id, mut view) = view(index, &if index == 0 { this() } else { other() }, now, NOW);
            if index > 0 {
                view.at = now - LONG_AGO;
            } else {
                view.config_epoch = 2;
            }
            (id, view)
        })
    };
    assert!(primary(&seen(master(0), views(), now), now).unwrap().contains("only 1 of 3"));
}

#[test]
fn whom_the_sentinels_could_promote_is_what_they_said_last() {
    let now = now();
    let gone = candidate(&Endpoint::new("10.0.0.66", 6379), "of-another");
    let follower = |run_id: &str| candidate(&other(), run_id);
    // All three Sentinels are silent. The first has been silent for long. After that a replica went away, as
    // the other two have reported.
    let old_word = |index: u16, view: &mut SentinelView| {
        view.at = now - if index == 0 { 10 * LONG_AGO } else { LONG_AGO };
        view.candidates = if index == 0 { vec![follower("a"), gone.clone()] } else { vec![follower("a")] };
    };
    assert!(changed(0, now, old_word).is_ok());
    let silent = |candidates: Vec<Candidate>| {
        changed(0, now, |_, view| {
            view.at = now - LONG_AGO;
            view.candidates.clone_from(&candidates);
        })
    };
    // A replica that is known at two addresses follows by one of them. A candidate that is this server itself
    // does not count as a replica.
    let second_address = candidate(&Endpoint::new("127.0.0.2", 6379), "a");
    let itself = candidate(&Endpoint::new("127.0.0.3", 6379), "of-this");
    assert!(silent(vec![follower("a"), second_address, itself]).is_ok());
    assert!(silent(vec![follower("a"), gone.clone()]).unwrap_err().contains("10.0.0.66:6379 does not"));
}

/// All three Sentinels reported this node as the master, long ago. One of them, on this side of the cut, goes
/// on answering.
fn cut_off_with_one(said: NodeAnswer, now: Instant, change: impl Fn(&mut SentinelView)) -> Verdict {
    let before = (0..3).map(|index| view(index, &this(), now, LONG_AGO));
    let mut seen = seen(said, before, now);
    let (id, mut view) = view(0, &this(), now, NOW);
    change(&mut view);
    seen.take(id, Some(view), now);
    primary(&seen, now)
}

#[test]
fn a_sentinel_on_this_side_of_a_cut_does_not_end_the_fence() {
    let now = now();
    let gone = |said| cut_off_with_one(said, now, |view| view.candidates.clear());
    assert!(gone(master(60)).unwrap_err().contains("10.0.0.8:6379 does not follow"));
    assert!(gone(master(0)).is_ok(), "they are down, and it follows");
    // A Sentinel that has forgotten all others is not a majority alone.
    let reset = cut_off_with_one(master(60), now, |view| {
        view.peers.clear();
        view.candidates.clear();
    });
    assert!(reset.unwrap_err().contains("1 of 3"));
    // A Sentinel that names another master has seen a failover.
    let names = |said| {
        cut_off_with_one(said, now, |view| {
            (view.names, view.is_this, view.config_epoch) =
                (Endpoint::new("10.0.0.66", 6379), Some(false), 2);
        })
    };
    assert!(names(master(0)).unwrap_err().contains("10.0.0.66:6379 does not follow"));
}

#[test]
fn sentinels_that_have_forgotten_the_old_master_have_their_say() {
    let now = now();
    let mut seen = seen(master(60), (0..3).map(|index| view(index, &this(), now, LONG_AGO)), now);
    for index in 0..3 {
        let (id, mut view) = view(index, &other(), now, NOW);
        view.knows_this = false;
        seen.take(id, Some(view), now);
    }
    assert!(primary(&seen, now).unwrap_err().contains("no longer the master: 3 of 3 Sentinels"));
}

#[test]
fn what_was_asked_before_does_not_come_after() {
    let now = now();
    let mut seen = seen(master(0), (0..3).map(|index| view(index, &other(), now, NOW)), now);
    for index in 0..3 {
        let (id, view) = view(index, &this(), now, Duration::from_secs(1));
        seen.take(id, Some(view), now);
    }
    assert!(primary(&seen, now).is_err());
}

#[test]
fn what_is_no_master_gets_no_writes() {
    let now = now();
    let no = |said| primary(&seen(said, [], now), now).unwrap_err();
    assert_eq!(no(replica()), "a replica of 10.0.0.8:6379");
    assert!(no(said("role:slave\r\nmaster_host:127.26.37.9\r\nmaster_port:0\r\n")).contains("held"));
    // Without any Sentinel, the server's own role decides.
    assert!(primary(&seen(master(0), [], now), now).is_ok());
}

#[test]
fn a_server_that_says_nothing_is_nothing() {
    let now = now();
    let mut seen = seen(master(0), (0..3).map(|index| view(index, &this(), now, NOW)), now);
    seen.last_answer = Some((now - Duration::from_secs(4), master(0)));
    seen.silent = Some("10.0.0.7:6379: no answer within 1s".into());
    assert!(primary(&seen, now).is_ok(), "a slow command is no reason to end all connections");
    seen.last_answer = Some((now - Duration::from_secs(5), master(0)));
    let why = primary(&seen, now).unwrap_err();
    assert_eq!(why, "the server has not answered for 5s: 10.0.0.7:6379: no answer within 1s");
    seen.phase = ServerPhase::Waits("for two Sentinels".into());
    for verdict in [primary(&seen, now), replica_verdict(&seen, None, now), ready(&seen, now)] {
        assert_eq!(verdict.unwrap_err(), "the server has not been started: for two Sentinels");
    }
}

fn replica_verdict(seen: &SeenNodes, most: Option<u64>, now: Instant) -> Verdict {
    super::replica(seen, most, now)
}

#[test]
fn a_replica_is_as_near_as_was_asked() {
    let now = now();
    let mut seen = seen(replica(), [], now);
    assert!(replica_verdict(&seen, None, now).is_ok());
    assert!(replica_verdict(&seen, Some(100), now).unwrap_err().contains("an unknown lag"));
    seen.lag = Some((now, Lag { master: other(), bytes: 100 }));
    assert!(replica_verdict(&seen, Some(100), now).is_ok());
    assert!(replica_verdict(&seen, Some(99), now).unwrap_err().contains("100 bytes behind 10.0.0.8:6379"));
    seen.lag = Some((now - LONG_AGO, Lag { master: other(), bytes: 0 }));
    assert!(replica_verdict(&seen, Some(99), now).is_err(), "that was long ago");
    seen.last_answer = Some((now, master(0)));
    assert_eq!(replica_verdict(&seen, None, now).unwrap_err(), "a master");
}

#[test]
fn a_sentinel_that_was_taken_out_is_counted_no_more() {
    let now = now();
    let mut views: BTreeMap<_, _> = (0..3).map(|index| view(index, &this(), now, NOW)).collect();
    let (id, mut gone) = view(3, &this(), now, LONG_AGO);
    gone.peers = (0..3).map(|peer| (peer.to_string(), Endpoint::new("10.0.0.9", 1))).collect();
    views.insert(id.clone(), gone.clone());
    let mut seen = seen(master(0), views, now);
    let (first, again) = view(0, &this(), now, NOW);
    seen.take(first.clone(), Some(again.clone()), now);
    assert_eq!((seen.views.len(), seen.all_sentinels()), (3, 3));
    // A Sentinel that the others know is waited for.
    let knows = SentinelView { peers: BTreeMap::from([(id.clone(), gone.endpoint.clone())]), ..again };
    seen.views.insert(id, gone);
    seen.take(first.clone(), Some(knows), now);
    assert_eq!(seen.views.len(), 4);
    // The first Sentinel no longer monitors a master of this name, so it has no answer. No other Sentinel
    // knows the Sentinel that is gone.
    seen.take(first, None, now);
    assert_eq!(seen.views.len(), 2);
}

proptest! {
    /// If two servers report that they are masters, and most Sentinels answer, only the server that most
    /// Sentinels report may get writes.
    #[test]
    fn two_masters_are_not_both_for_clients(names in prop::collection::vec(any::<bool>(), 3), heard in prop::collection::vec(any::<bool>(), 3)) {
        let now = now();
        let verdict = |is_first: bool| {
            let views = (0..3u16).filter(|index| heard[usize::from(*index)]).map(|index| {
                let is_ours = names[usize::from(index)] == is_first;
                let names = if is_ours { this() } else { other() };
                view(index, &names, now, NOW)
            });
            // Neither server follows the other.
            primary(&seen(said("role:master\r\nconnected_slaves:0\r\n"), views, now), now)
        };
        let is_heard = heard.iter().filter(|heard| **heard).count() > 1;
        let most = names.iter().zip(&heard).filter(|(first, heard)| **first && **heard).count();
        if is_heard && (most > 1 || most == 0) {
            prop_assert!(!(verdict(true).is_ok() && verdict(false).is_ok()));
        }
    }
}
