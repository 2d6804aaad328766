//! One row for each rule, and properties that hold in every world.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::*;
use crate::node::sentinel::{NamedMaster, Peer};

fn redis(number: u16) -> Endpoint {
    Endpoint::new(format!("10.0.0.{number}"), 6379)
}

/// What a world consists of. The servers are numbered from 1, and this node is one of them.
#[derive(Debug, Clone)]
struct World {
    me: u16,
    this: This,
    /// For each Sentinel: `None` if it is silent, or the master that it names, 0 for none.
    sentinels: Vec<Option<u16>>,
    /// How many other Sentinels each Sentinel has met.
    peers: u16,
    /// Whether these other Sentinels are down for it.
    peers_down: bool,
    failing_over: bool,
    /// The servers that the Sentinels know besides the master that each names.
    known: Vec<u16>,
    /// The servers that no Sentinel has lost.
    seen: Vec<u16>,
    servers: BTreeMap<u16, NamedServer>,
    broker: Option<BrokerSays>,
    expected: ExpectedSentinels,
}

const MASTER: NamedServer = NamedServer {
    is_master: true,
    is_held: false,
    holds_data: true,
    is_from_disk: false,
    is_yet_to_report: false,
    position: None,
};
const REPLICA: NamedServer = NamedServer {
    is_master: false,
    is_held: false,
    holds_data: true,
    is_from_disk: false,
    is_yet_to_report: false,
    position: None,
};
const FROM_DISK: NamedServer = NamedServer { is_from_disk: true, ..REPLICA };
const HELD: NamedServer = NamedServer { is_held: true, ..FROM_DISK };

/// A Redis server with this data on its disk and default values otherwise.
const fn found(disk: Disk) -> ThisRedis {
    ThisRedis {
        disk,
        position: None,
        noted: None,
        is_rolled_back: false,
        discard_data: false,
        is_cache: false,
        is_held: false,
    }
}

fn says() -> BrokerSays {
    BrokerSays { expected_sentinels: 3, verified: None }
}

const WITH_DATA: This = This::Redis(found(Disk::Data));
const EMPTY: This = This::Redis(found(Disk::Empty));
const UNREAD: This = This::Redis(found(Disk::Unread));
const SENTINEL: This = This::Sentinel { monitors: false };

impl World {
    /// This node is a Redis server, number 2 of three, with data. The Sentinels report number 1, which
    /// answers.
    fn new() -> Self {
        Self {
            me: 2,
            this: WITH_DATA,
            sentinels: vec![Some(1); 3],
            peers: 2,
            peers_down: false,
            failing_over: false,
            known: vec![1, 2, 3],
            seen: vec![],
            servers: BTreeMap::from([(1, MASTER), (3, REPLICA)]),
            broker: Some(says()),
            expected: ExpectedSentinels::default(),
        }
    }

    fn heard(&self) -> Heard {
        let monitored = |master: u16| Monitored {
            master: NamedMaster {
                endpoint: redis(master),
                fields: [
                    ("flags", if self.failing_over { "master,failover_in_progress" } else { "master" }),
                    ("quorum", "2"),
                    ("down-after-milliseconds", "5000"),
                    ("config-epoch", "0"),
                ]
                .map(|(name, value)| (name.to_owned(), value.to_owned()))
                .into(),
            },
            peers: (0..self.peers)
                .map(|number| {
                    let endpoint = Endpoint::new(format!("10.0.2.{number}"), 26379);
                    (
                        format!("peer-{number}"),
                        Peer::reached(
                            endpoint,
                            "",
                            if self.peers_down { "sentinel,s_down" } else { "sentinel" },
                        ),
                    )
                })
                .collect(),
            replicas: (self.known.iter().filter(|&&number| number != master))
                .map(|&number| {
                    let flags = if self.seen.contains(&number) { "slave" } else { "slave,s_down" };
                    Peer::reached(redis(number), "", flags)
                })
                .collect(),
        };
        let sentinels = self.sentinels.iter().zip(0_u16..).map(|(answer, number)| {
            let endpoint = Endpoint::new(format!("10.0.1.{number}"), 26379);
            let state = |master: u16| SentinelState {
                monitored: (master > 0).then(|| monitored(master)),
                ..SentinelState::fresh(endpoint.clone(), &number.to_string(), "")
            };
            let answer = answer.map(state).ok_or_else(|| "unreachable".to_owned());
            AskedSentinel { endpoint, answer }
        });
        let servers = (1..=3).map(|number| {
            let answer = self.servers.get(&number).cloned();
            (redis(number), answer.ok_or_else(|| "unreachable".to_owned()))
        });
        Heard {
            broker: self.broker.clone().ok_or_else(|| "unreachable".to_owned()),
            sentinels: sentinels.collect(),
            servers: servers.collect(),
            own: BTreeSet::from([redis(self.me)]),
        }
    }

    fn decide(&self) -> Start {
        how_to_start(&self.heard(), self.this.clone(), self.expected)
    }
}

fn follows(master: u16, is_up: bool) -> Start {
    Start::Follow { master: redis(master), is_up, ahead: vec![] }
}

/// Checks one row: a change to the usual world, and the decision in that world.
#[track_caller]
fn expect(change: impl FnOnce(&mut World), expected: impl FnOnce(&Start) -> bool) {
    let mut world = World::new();
    change(&mut world);
    let decision = world.decide();
    assert!(expected(&decision), "{decision:?} in {world:#?}");
}

macro_rules! waits {
    ($pattern:pat) => {
        |decision: &Start| matches!(decision, Start::Wait($pattern))
    };
}

#[test]
fn a_node_follows_the_master_that_a_majority_names() {
    expect(|_| {}, |decision| *decision == follows(1, true));
    expect(|world| world.this = EMPTY, |decision| *decision == follows(1, true));
    expect(|world| world.sentinels = vec![Some(1), Some(1), None], |decision| *decision == follows(1, true));
    expect(
        |world| world.sentinels = vec![Some(1), Some(1), Some(3)],
        |decision| *decision == follows(1, true),
    );
    expect(|world| world.broker = None, |decision| *decision == follows(1, true));
}

#[test]
fn less_than_a_majority_of_those_expected_is_waited_for() {
    for sentinels in [
        vec![Some(1), None, None],
        vec![Some(1), Some(0), Some(0)],
        vec![Some(1), Some(3), None],
        vec![Some(1), Some(3), Some(2)],
        vec![Some(1)],
    ] {
        expect(|world| world.sentinels = sentinels, waits!(Waiting::NoMajority { .. }));
    }
    // More Sentinels than were expected: a majority of those that were heard is required.
    expect(
        |world| world.sentinels = vec![Some(1), Some(1), Some(3), Some(3)],
        waits!(Waiting::NoMajority { .. }),
    );
    let named = ExpectedSentinels { number: None, named: 3 };
    expect(
        |world| (world.broker, world.expected, world.sentinels) = (None, named, vec![Some(1), None, None]),
        waits!(Waiting::NoMajority { .. }),
    );
    // One name, with the addresses of three Sentinels.
    let name = ExpectedSentinels { number: None, named: 1 };
    expect(
        |world| (world.broker, world.expected, world.sentinels) = (None, name, vec![Some(1), None, None]),
        waits!(Waiting::NoMajority { expected: 3, .. }),
    );
    // The Sentinels have met more Sentinels than the broker expects.
    expect(
        |world| (world.peers, world.sentinels) = (4, vec![Some(1), Some(1), None]),
        waits!(Waiting::NoMajority { expected: 5, .. }),
    );
    expect(
        |world| (world.peers, world.sentinels) = (4, vec![Some(1); 3]),
        |decision| *decision == follows(1, true),
    );
}

#[test]
fn the_operators_number_of_sentinels_counts_before_the_brokers() {
    let one_left = ExpectedSentinels { number: Some(1), named: 0 };
    expect(
        |world| (world.expected, world.sentinels) = (one_left, vec![Some(1), None, None]),
        |decision| *decision == follows(1, true),
    );
    expect(
        |world| world.expected = ExpectedSentinels { number: Some(7), named: 0 },
        waits!(Waiting::NoMajority { expected: 7, .. }),
    );
}

#[test]
fn one_sentinel_at_two_addresses_has_one_vote() {
    let world = World { sentinels: vec![Some(1), None, None], ..World::new() };
    let mut heard = world.heard();
    heard.sentinels[1].answer = heard.sentinels[0].answer.clone();
    let decision = how_to_start(&heard, world.this, world.expected);
    assert!(matches!(decision, Start::Wait(Waiting::NoMajority { .. })), "{decision:?}");
}

#[test]
fn a_failover_is_waited_for() {
    expect(|world| world.failing_over = true, waits!(Waiting::Failover(_)));
    expect(|world| world.servers = BTreeMap::from([(1, REPLICA)]), waits!(Waiting::NotMaster(_)));
    expect(
        |world| (world.me, world.servers) = (1, BTreeMap::from([(3, MASTER)])),
        waits!(Waiting::Failover(_)),
    );
}

#[test]
fn where_the_master_is_silent_a_member_with_data_offers_it() {
    let silent = |world: &mut World| world.servers.clear();
    expect(silent, |decision| *decision == follows(1, false));
    expect(|world| (silent(world), world.this = EMPTY).0, waits!(Waiting::MasterSilent { .. }));
    expect(|world| (silent(world), world.this = SENTINEL).0, waits!(Waiting::MasterSilent { .. }));
}

#[test]
fn a_server_that_others_may_wait_for_is_held_while_it_waits() {
    let held = |change: &dyn Fn(&mut World)| {
        let mut world = World::new();
        change(&mut world);
        let This::Redis(this) = &world.this else { unreachable!() };
        match world.decide() {
            Start::Wait(waiting) => can_be_held_meanwhile(&waiting, &world.heard(), this),
            start => unreachable!("{start:?}"),
        }
    };
    let silent = |world: &mut World| (world.servers.clear(), world.this = EMPTY).0;
    assert!(held(&silent), "its disk was wiped");
    assert!(held(&|world| (world.servers, world.this) = ([(1, HELD)].into(), EMPTY)));
    assert!(!held(&|world| (silent(world), world.known = vec![1, 3]).0), "nobody waits for a stranger");
    assert!(!held(&|world| (silent(world), world.this = UNREAD).0), "it would overwrite its data");
    let named = |world: &mut World| (world.me, world.seen, world.servers) = (1, vec![2], BTreeMap::new());
    assert!(!held(&named), "the Sentinels see it");
    assert!(!held(&|world| (named(world), world.servers = [(3, REPLICA)].into()).0), "somebody has more");
    let World { this, expected, .. } = World::new();
    let This::Redis(redis) = &this else { unreachable!() };
    let mut heard = {
        let mut world = World::new();
        named(&mut world);
        world.heard()
    };
    for asked in &mut heard.sentinels {
        let monitored = asked.answer.as_mut().unwrap().monitored.as_mut().unwrap();
        monitored.replicas.iter_mut().for_each(|replica| replica.flags = "slave,disconnected".into());
    }
    let Start::Wait(waiting) = how_to_start(&heard, this.clone(), expected) else { unreachable!() };
    assert!(matches!(waiting, Waiting::Unasked(_)), "{waiting:?}");
    assert!(
        can_be_held_meanwhile(&waiting, &heard, redis),
        "it has only just ended, and may wait for this one, too"
    );
    for disk in [Disk::Empty, Disk::Blank, Disk::Outdated] {
        let this = found(disk);
        assert!(!can_be_held_meanwhile(&waiting, &heard, &this), "the Sentinels have to choose another");
    }
}

#[test]
fn data_of_a_stranger_is_not_thrown_away() {
    let stranger = |world: &mut World| world.known = vec![1, 3];
    expect(stranger, waits!(Waiting::Stranger { .. }));
    expect(|world| (stranger(world), world.servers.clear()).0, waits!(Waiting::Stranger { .. }));
    expect(|world| (stranger(world), world.this = EMPTY).0, |decision| *decision == follows(1, true));
    let discards = This::Redis(ThisRedis { discard_data: true, ..found(Disk::Data) });
    expect(|world| (stranger(world), world.this = discards).0, |decision| *decision == follows(1, true));
}

#[test]
fn a_replica_that_no_sentinel_knows_follows_the_next_master() {
    let current_master = |change: &dyn Fn(&mut World)| {
        let mut world = World { known: vec![1, 3], ..World::new() };
        change(&mut world);
        current_master(&world.heard(), &redis(3), world.expected)
    };
    assert_eq!(current_master(&|_| {}), Some(redis(1)));
    assert_eq!(current_master(&|world| world.sentinels = vec![Some(3); 3]), None, "the same as before");
    assert_eq!(current_master(&|world| world.known = vec![1, 2, 3]), None, "the Sentinels see to it");
    assert_eq!(current_master(&|world| world.failing_over = true), None);
    assert_eq!(current_master(&|world| world.servers = BTreeMap::from([(1, REPLICA)])), None);
    assert_eq!(current_master(&|world| world.sentinels = vec![Some(1), None, None]), None, "no majority");
    assert_eq!(current_master(&|world| world.sentinels = vec![Some(2); 3]), None, "itself");
}

#[test]
fn a_master_that_comes_back_early_does_not_overrule_its_replicas() {
    let me = |servers: &[(u16, NamedServer)]| {
        let servers = servers.iter().cloned().collect();
        move |world: &mut World| (world.me, world.servers) = (1, servers)
    };
    expect(me(&[(3, REPLICA)]), waits!(Waiting::Outlived(_)));
    expect(
        |world| (me(&[])(world), world.seen = vec![2]).0,
        // A Sentinel reaches the replica, even if this node does not.
        waits!(Waiting::Unasked(_)),
    );
    expect(|world| (me(&[(3, REPLICA)])(world), world.seen = vec![2]).0, waits!(Waiting::Outlived(_)));
    let empty = |world: &mut World| (me(&[])(world), world.this = EMPTY, world.seen = vec![2]).0;
    expect(empty, waits!(Waiting::Unasked(_)));
    expect(me(&[]), |decision| *decision == Start::Lead);
    expect(me(&[(2, FROM_DISK), (3, FROM_DISK)]), |decision| *decision == Start::Lead);
    let old = This::Redis(ThisRedis { is_rolled_back: true, ..found(Disk::Data) });
    expect(|world| (me(&[(2, FROM_DISK)])(world), world.this = old).0, waits!(Waiting::Outlived(_)));
    expect(me(&[(2, FROM_DISK), (3, REPLICA)]), waits!(Waiting::Outlived(_)));
    expect(me(&[(2, NamedServer { is_yet_to_report: true, ..FROM_DISK })]), waits!(Waiting::Outlived(_)));
    expect(me(&[(1, MASTER)]), waits!(Waiting::AlreadyRunning(_)));
    let held = This::Redis(ThisRedis { is_held: true, ..found(Disk::Data) });
    // The server that answers at this node's own address is its own.
    expect(|world| (me(&[(1, HELD)])(world), world.this = held).0, |decision| *decision == Start::Lead);
}

#[test]
fn the_master_leads_unless_somebody_of_its_history_goes_further() {
    let at = |offset| Position::new(&"a".repeat(40), offset);
    let me = |theirs: Option<Position>| {
        move |world: &mut World| {
            let position = at(100).map(|position| position.advanced(20, 30));
            (world.me, world.this) = (1, This::Redis(ThisRedis { position, ..found(Disk::Data) }));
            world.servers = [(3, NamedServer { position: theirs, ..REPLICA })].into();
        }
    };
    // A replica that stayed up longer than this node, and lags.
    expect(me(at(90)), |decision| *decision == Start::Lead);
    expect(me(at(150)), |decision| *decision == Start::Lead);
    expect(me(at(151)), waits!(Waiting::Outlived(_)));
    // A replica of another history, or without a position.
    expect(me(Position::new(&"b".repeat(40), 1)), waits!(Waiting::Outlived(_)));
    expect(me(None), waits!(Waiting::Outlived(_)));
    // Data that this node had, and no longer finds on its disk.
    let id = |letter: &str| Position::new(&letter.repeat(40), 5).unwrap();
    let noted = Some(id("b").after(&id("a")));
    let mine = This::Redis(ThisRedis { position: at(100), noted, ..found(Disk::Data) });
    let theirs = NamedServer { position: Some(id("b")), ..FROM_DISK };
    let world = |this: This| World { me: 1, this, servers: [(2, theirs.clone())].into(), ..World::new() };
    assert!(matches!(world(mine).decide(), Start::Wait(Waiting::Outlived(_))));
    let forgetful = This::Redis(ThisRedis { position: at(100), ..found(Disk::Data) });
    assert_eq!(world(forgetful).decide(), Start::Lead);
    // Nothing shows that the replica has more data, and no failover is possible.
    expect(|world| (me(None)(world), world.peers_down = true).0, |decision| *decision == Start::Lead);
    expect(|world| (me(at(151))(world), world.peers_down = true).0, waits!(Waiting::Outlived(_)));
}

#[test]
fn who_has_less_stands_back() {
    let at = |offset| Position::new(&"a".repeat(40), offset);
    let stands_back = |position, servers: &[(u16, NamedServer)]| {
        let world = World { servers: servers.iter().cloned().collect(), ..World::new() };
        !servers_with_more_data(&world.heard(), &NamedServer { position, ..FROM_DISK }).is_empty()
    };
    let server = |position| NamedServer { position, ..FROM_DISK };
    assert!(stands_back(at(7), &[(3, server(at(8)))]));
    assert!(!stands_back(at(8), &[(3, server(at(8)))]));
    assert!(!stands_back(at(8), &[(2, server(at(9)))]), "itself");
    assert!(!stands_back(at(8), &[(1, server(at(9)))]), "the master");
    assert!(!stands_back(None, &[(3, server(at(8)))]), "nothing says it");
    let by_its_file = |grown| at(8).map(|at| at.advanced(grown, 2 * grown + 1024));
    assert!(stands_back(by_its_file(100), &[(3, server(at(800)))]), "most likely");
    assert!(!stands_back(by_its_file(100), &[(3, server(at(700)))]));
    let heard = World { servers: [(3, server(at(8)))].into(), ..World::new() }.heard();
    let linked = NamedServer { position: at(7), ..REPLICA };
    assert_eq!(servers_with_more_data(&heard, &linked), [], "what it has by now is its master's");
    // A server that has more is not forgotten at once.
    let is_awaited = |servers: &[(u16, NamedServer)], seen: &[u16]| {
        let world = World { servers: servers.iter().cloned().collect(), seen: seen.to_vec(), ..World::new() };
        is_awaited(&world.heard(), &redis(3))
    };
    assert!(is_awaited(&[], &[3]));
    assert!(!is_awaited(&[], &[]), "the Sentinels have it down");
    assert!(!is_awaited(&[(3, REPLICA)], &[3]), "it says itself what it has");
}

#[test]
fn a_failover_that_can_not_come_is_not_waited_for() {
    let leads = |change: fn(&mut Peer)| {
        let mut world = World { me: 1, servers: [(3, REPLICA)].into(), known: vec![3], ..World::new() };
        world.this = WITH_DATA;
        let mut heard = world.heard();
        for asked in &mut heard.sentinels {
            let monitored = asked.answer.as_mut().unwrap().monitored.as_mut().unwrap();
            monitored.replicas.iter_mut().for_each(change);
        }
        how_to_start(&heard, world.this, world.expected) == Start::Lead
    };
    assert!(!leads(|_| ()));
    assert!(leads(|replica| replica.priority = Some(0)));
    assert!(!leads(|replica| replica.link_down_ms = 50_000));
    assert!(leads(|replica| replica.link_down_ms = 50_001), "ten times `down-after-milliseconds`");
}

#[test]
fn an_empty_cache_leads_where_nobody_has_anything_left() {
    let cache = This::Redis(ThisRedis { is_cache: true, ..found(Disk::Empty) });
    let me = |servers: &[(u16, NamedServer)]| {
        let (servers, cache) = (servers.iter().cloned().collect(), cache.clone());
        move |world: &mut World| (world.me, world.servers, world.this) = (1, servers, cache)
    };
    expect(me(&[]), |decision| *decision == Start::Lead);
    expect(me(&[(3, FROM_DISK)]), waits!(Waiting::Outlived(_)));
    expect(me(&[(3, REPLICA)]), waits!(Waiting::Outlived(_)));
}

#[test]
fn a_member_stands_back_from_the_start_where_another_that_is_up_has_more() {
    let at = |offset| Position::new(&"a".repeat(40), offset);
    for (ours, theirs, stands_back) in [(50, 90, true), (90, 50, false), (90, 90, false)] {
        let change = |world: &mut World, master: Option<NamedServer>| {
            world.this = This::Redis(ThisRedis { position: at(ours), ..found(Disk::Data) });
            world.servers = BTreeMap::from([(3, NamedServer { position: at(theirs), ..FROM_DISK })]);
            world.servers.extend(master.map(|master| (1, master)));
        };
        let follows = |is_up, stands_back| {
            let ahead = if stands_back { vec![redis(3)] } else { vec![] };
            move |start: &Start| *start == Start::Follow { master: redis(1), is_up, ahead }
        };
        expect(|world| change(world, None), follows(false, stands_back));
        expect(|world| change(world, Some(HELD)), follows(false, stands_back));
        // This node reaches the master immediately.
        expect(|world| change(world, Some(MASTER)), follows(true, false));
    }
}

#[test]
fn a_member_with_data_offers_it_below_a_held_master() {
    expect(|world| world.servers = [(1, HELD)].into(), |decision| *decision == follows(1, false));
    expect(|world| (world.servers, world.this) = ([(1, HELD)].into(), EMPTY), waits!(Waiting::NotMaster(_)));
    expect(|world| world.servers = [(1, FROM_DISK)].into(), waits!(Waiting::NotMaster(_)));
    let stranger = |world: &mut World| (world.servers, world.known) = ([(1, HELD)].into(), vec![1, 3]);
    expect(stranger, waits!(Waiting::NotMaster(_)));
}

#[test]
fn a_master_that_lost_its_data_never_leads() {
    let me = |servers: &[(u16, NamedServer)]| {
        let servers = servers.iter().cloned().collect();
        move |world: &mut World| (world.me, world.servers, world.this) = (1, servers, EMPTY)
    };
    expect(me(&[]), waits!(Waiting::Wiped));
    // If there was never another node, no other node has data.
    expect(|world| (me(&[])(world), world.known.clear()).0, |decision| *decision == Start::Lead);
    expect(me(&[(3, FROM_DISK)]), waits!(Waiting::Outlived(_)));
    expect(me(&[(3, NamedServer { holds_data: false, ..FROM_DISK })]), waits!(Waiting::Wiped));
    let outdated = This::Redis(found(Disk::Outdated));
    expect(|world| (me(&[])(world), world.this = outdated.clone()).0, waits!(Waiting::Outdated));
    expect(
        |world| (me(&[(3, FROM_DISK)])(world), world.this = outdated.clone()).0,
        waits!(Waiting::Outlived(_)),
    );
    // If all replicas answered and none has data, this node's older data is the only data.
    let hollow = NamedServer { holds_data: false, ..FROM_DISK };
    expect(
        |world| (me(&[(2, hollow.clone()), (3, hollow.clone())])(world), world.this = outdated.clone()).0,
        |decision| *decision == Start::Lead,
    );
    // A node whose append-only file shows that it has no data: it never had any, or deleted all.
    let blank = |servers: &[(u16, NamedServer)]| {
        let me = me(servers);
        move |world: &mut World| {
            me(world);
            world.this = This::Redis(found(Disk::Blank));
        }
    };
    expect(blank(&[]), |decision| *decision == Start::Lead);
    expect(blank(&[(3, FROM_DISK)]), waits!(Waiting::Outlived(_)));
}

#[test]
fn data_that_the_server_would_not_read_is_not_overwritten() {
    let nothing =
        |world: &mut World| (world.sentinels, world.known, world.this) = (vec![Some(0); 3], vec![], UNREAD);
    expect(nothing, waits!(Waiting::Unread));
    let alone_named =
        |world: &mut World| (world.me, world.servers, world.this) = (1, BTreeMap::new(), UNREAD);
    expect(alone_named, waits!(Waiting::Unread));
    // The system also has a member's data. The data of a node that is no member may exist only on that node.
    expect(|world| world.this = UNREAD, |decision| *decision == follows(1, true));
    expect(|world| (world.known, world.this) = (vec![1, 3], UNREAD), waits!(Waiting::Stranger { .. }));
    expect(|world| (world.servers.clear(), world.this = UNREAD).0, waits!(Waiting::MasterSilent { .. }));
}

#[test]
fn a_node_is_held_only_where_nobody_can_know_of_a_system() {
    let nothing = |world: &mut World| (world.sentinels, world.known) = (vec![Some(0); 3], vec![]);
    for (this, start) in [(WITH_DATA, Start::Held), (EMPTY, Start::Held), (SENTINEL, Start::Alone)] {
        expect(|world| (nothing(world), world.this = this.clone()).0, |decision| *decision == start);
        expect(|world| (world.sentinels, world.this) = (vec![], this.clone()), |decision| *decision == start);
        expect(
            |world| (nothing(world), world.this = this.clone(), world.broker = None).0,
            waits!(Waiting::Broker(_)),
        );
        let verified = BrokerSays { verified: Some("10.0.0.1:6379".into()), ..says() };
        expect(
            |world| (nothing(world), world.this = this.clone(), world.broker = Some(verified)).0,
            waits!(Waiting::Lost { .. }),
        );
        if this != SENTINEL {
            expect(
                |world| (nothing(world), world.this = this.clone(), world.sentinels[1] = None).0,
                waits!(Waiting::Unheard(_)),
            );
        }
    }
}

#[test]
fn a_sentinel_does_not_wait_for_others_where_nobody_knows_of_a_system() {
    let none_up = |world: &mut World| world.sentinels = vec![None; 2];
    expect(|world| (none_up(world), world.this = SENTINEL).0, |decision| *decision == Start::Alone);
    expect(none_up, waits!(Waiting::Unheard(_)));
    let verified = BrokerSays { verified: Some("10.0.0.1:6379".into()), ..says() };
    expect(
        |world| (none_up(world), (world.this, world.broker) = (SENTINEL, Some(verified))).0,
        waits!(Waiting::Lost { .. }),
    );
}

#[test]
fn a_sentinel_monitors_what_the_others_do() {
    let options = vec![("down-after-milliseconds".to_owned(), "5000".to_owned())];
    let monitor = Start::Monitor { master: redis(1), quorum: 2, options, id: None };
    expect(|world| world.this = SENTINEL, |decision| *decision == monitor);
    // The other Sentinels know a Sentinel at this node's address. That Sentinel is this node, which has lost
    // its file.
    let mut heard = World { this: SENTINEL, peers: 2, ..World::new() }.heard();
    heard.own = BTreeSet::from([Endpoint::new("10.0.2.1", 26379)]);
    let decision = how_to_start(&heard, SENTINEL, ExpectedSentinels::default());
    assert!(matches!(&decision, Start::Monitor { id: Some(id), .. } if id == "peer-1"), "{decision:?}");
    let monitors = This::Sentinel { monitors: true };
    expect(
        |world| (world.this, world.sentinels, world.broker) = (monitors, vec![None; 3], None),
        |decision| *decision == Start::AsItIs,
    );
}

#[test]
fn every_wait_says_what_to_do() {
    let endpoint = redis(1);
    let silent = vec![(endpoint.clone(), "unreachable".to_owned())];
    let all = [
        Waiting::Broker("unreachable".into()),
        Waiting::Lost { master: endpoint.to_string(), silent: silent.clone() },
        Waiting::Unheard(silent.clone()),
        Waiting::NoMajority { votes: vec![(endpoint.clone(), 1)], expected: 3, silent },
        Waiting::Failover(endpoint.clone()),
        Waiting::NotMaster(endpoint.clone()),
        Waiting::MasterSilent { master: endpoint.clone(), why: "unreachable".into() },
        Waiting::Outlived(vec![endpoint.clone()]),
        Waiting::Unasked(vec![endpoint.clone()]),
        Waiting::Wiped,
        Waiting::Outdated,
        Waiting::Unread,
        Waiting::AlreadyRunning(endpoint.clone()),
        Waiting::Stranger { master: endpoint },
    ];
    for waiting in all {
        assert!(!waiting.hint().is_empty() && !waiting.to_string().contains("  "), "{waiting}");
    }
}

fn worlds() -> impl Strategy<Value = World> {
    // Few values, so that some positions are of one history.
    let position = || {
        let position = ("[ab]", 0_i64..4).prop_map(|(id, offset)| Position::new(&id.repeat(40), offset));
        prop_oneof![Just(None), position]
    };
    let server =
        (any::<[bool; 3]>(), position()).prop_map(|([is_master, holds_data, is_from_disk], position)| {
            NamedServer {
                is_master,
                is_held: is_from_disk && !is_master,
                holds_data,
                is_from_disk,
                is_yet_to_report: false,
                position,
            }
        });
    let this = prop_oneof![
        (
            prop_oneof![
                Just(Disk::Empty),
                Just(Disk::Blank),
                Just(Disk::Outdated),
                Just(Disk::Data),
                Just(Disk::Unread)
            ],
            position(),
            any::<[bool; 3]>()
        )
            .prop_map(|(disk, position, [discard_data, is_cache, is_held])| {
                This::Redis(ThisRedis {
                    disk,
                    position,
                    noted: None,
                    is_rolled_back: false,
                    discard_data,
                    is_cache,
                    is_held,
                })
            }),
        any::<bool>().prop_map(|monitors| This::Sentinel { monitors }),
    ];
    let numbers = || prop::collection::vec(1_u16..=3, 0..4);
    let broker = (1_usize..=5, any::<bool>()).prop_map(|(expected_sentinels, verified)| BrokerSays {
        expected_sentinels,
        verified: verified.then(|| "10.0.0.1:6379".into()),
    });
    (
        (1_u16..=3, this, prop::collection::vec(prop::option::of(0_u16..=3), 0..6), 0_u16..6, any::<bool>()),
        (
            numbers(),
            numbers(),
            prop::collection::btree_map(1_u16..=3, server, 0..4),
            prop::option::of(broker),
        ),
        (prop::option::of(1_usize..6), 0_usize..6),
    )
        .prop_map(
            |(
                (me, this, sentinels, peers, failing_over),
                (known, seen, servers, broker),
                (number, named),
            )| {
                World {
                    me,
                    this,
                    sentinels,
                    peers,
                    peers_down: false,
                    failing_over,
                    known,
                    seen,
                    servers,
                    broker,
                    expected: ExpectedSentinels { number, named },
                }
            },
        )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4096))]

    #[test]
    fn no_server_starts_as_an_empty_master_while_a_sentinel_names_one(world in worlds()) {
        let named = world.sentinels.iter().flatten().any(|&master| master > 0);
        if let This::Redis(ThisRedis { disk, is_cache, .. }) = world.this && named {
            match world.decide() {
                Start::Alone | Start::Held | Start::AsItIs => prop_assert!(false, "a master of its own"),
                Start::Lead => {
                    let is_alone = world.known.iter().all(|&number| number == world.me);
                    prop_assert!(disk != Disk::Unread && (disk != Disk::Empty || is_cache || is_alone));
                }
                Start::Follow { .. } | Start::Monitor { .. } | Start::Wait(_) => {}
            }
        }
    }

    #[test]
    fn a_redis_server_never_starts_by_itself_as_a_master_that_nobody_named(world in worlds()) {
        if matches!(world.this, This::Redis(_)) {
            prop_assert_ne!(world.decide(), Start::Alone);
        }
    }

    #[test]
    fn a_sentinel_that_does_not_answer_never_leads_to_a_lonely_start(world in worlds()) {
        let silent = world.sentinels.iter().any(Option::is_none);
        if silent && matches!(world.this, This::Redis(_)) {
            prop_assert_ne!(world.decide(), Start::Held);
        }
    }

    #[test]
    fn nobody_starts_alone_unless_the_broker_says_that_there_is_no_system(world in worlds()) {
        if matches!(world.decide(), Start::Alone | Start::Held) {
            prop_assert!(world.broker.is_some_and(|says| says.verified.is_none()));
            let unread = matches!(world.this, This::Redis(ThisRedis { disk: Disk::Unread, .. }));
            prop_assert!(!unread);
        }
    }

    #[test]
    fn what_is_followed_or_monitored_has_a_majority(world in worlds()) {
        if let Start::Follow { master, .. } | Start::Monitor { master, .. } = world.decide() {
            let votes = world.sentinels.iter().flatten().filter(|&&named| named > 0 && redis(named) == master).count();
            let said = world.expected.number.or(world.broker.as_ref().map(|says| says.expected_sentinels));
            prop_assert!(votes > said.unwrap_or(world.expected.named) / 2);
            prop_assert!(votes > world.sentinels.iter().flatten().count() / 2);
            prop_assert!(world.expected.number.is_some() || votes > usize::from(world.peers + 1) / 2);
            let is_redis = matches!(world.this, This::Redis(_));
            prop_assert!(!is_redis || master != redis(world.me), "itself");
        }
    }

    #[test]
    fn a_replica_starts_if_its_master_answers_or_it_has_data(world in worlds()) {
        if let Start::Follow { master, is_up, .. } = world.decide() {
            let server = world.servers.iter().find(|(number, _)| redis(**number) == master).map(|(_, server)| server);
            match server {
                Some(server) if server.is_master => prop_assert!(is_up),
                // A held server empties no replica.
                other => {
                    let has_data = matches!(world.this, This::Redis(ThisRedis { disk: Disk::Data | Disk::Outdated, .. }));
                    prop_assert!(!is_up && has_data && other.is_none_or(|server| server.is_held));
                }
            }
        }
    }

    #[test]
    fn no_master_comes_back_over_a_replica_that_has_outlived_it(world in worlds()) {
        if world.decide() == Start::Lead {
            let me = world.me;
            // A Sentinel that knows a replica may name another master than this node. The decision still uses
            // this Sentinel's view of the replica.
            let followers = world.known.iter().filter(|&&number| number != me);
            for number in followers {
                match world.servers.get(number) {
                    Some(server) => {
                        let This::Redis(ThisRedis { disk, position, .. }) = &world.this else { continue };
                        let ours = position.as_ref().filter(|_| *disk == Disk::Data);
                        let both = ours.zip(server.position.as_ref());
                        let is_behind = both.and_then(|(ours, theirs)| ours.is_behind(theirs));
                        // One Sentinel can't reach a quorum of two.
                        let never = world.peers == 0 && *disk == Disk::Data;
                        let is_behind = is_behind.unwrap_or(!server.is_from_disk && !never);
                        prop_assert!(!server.is_master && !is_behind);
                    }
                    None => prop_assert!(!world.seen.contains(number)),
                }
            }
        }
    }
}
