//! One row for each problem that keeps a system from being verified.

use redis::Value;

use super::*;
use crate::node::info::Info;
use crate::node::redis::RedisSettings;
use crate::node::replication::History;

fn at(host: u8) -> Endpoint {
    Endpoint::new(format!("10.0.0.{host}"), if host < 4 { 6379 } else { 26379 })
}

/// Each id starts with 8 characters that no other id has.
fn id(host: u8) -> String {
    format!("{host}aaaaaaa-the-rest")
}

/// Three Redis servers and three Sentinels, 10.0.0.1 to 10.0.0.6; the first is the master.
fn system() -> System {
    let redis: Vec<_> = (1..=3).map(at).collect();
    let sentinels: Vec<_> = (4..=6).map(|host| (at(host), id(host))).collect();
    System::of(&redis, &sentinels)
}

fn client(id: &str, user: &str) -> SentinelClient {
    let from = Endpoint::new("10.0.9.9", 40_000);
    SentinelClient { id: id[..8].to_owned(), from, connection: 7, user: user.into(), age: 1 }
}

fn clients(hosts: &[u8]) -> Option<Vec<SentinelClient>> {
    Some(hosts.iter().map(|host| client(&id(*host), "default")).collect())
}

fn run_id(host: u8) -> String {
    format!("run-{}", at(host))
}

fn history() -> History {
    History { id: "aa".into(), offset: 100, ..History::default() }
}

fn replication(role: Role) -> Replication {
    let info = Info::parse("role:master\r\n");
    Replication { role, history: history(), applied: Some(100), ..Replication::parse(&info).unwrap() }
}

fn follows() -> Role {
    Role::Replica { of: at(1), link_up: true }
}

/// A healthy system, which each test changes.
struct World {
    system: System,
    options: BTreeMap<String, String>,
    redis_settings: BTreeMap<String, String>,
    flow: Flow,
    redis: Vec<RedisAnswers>,
    sentinels: Vec<SentinelAnswers>,
}

impl World {
    fn new() -> Self {
        let redis = |host: u8| {
            let mut answers = RedisAnswers {
                replication: Some(replication(if host == 1 { Role::Master } else { follows() })),
                writes: Writes::default(),
                watchers: clients(&[4, 5, 6]),
                settings: BTreeMap::new(),
            };
            if host == 1 {
                let replica =
                    |host| Replica { endpoint: at(host), online: true, confirmed: 100, silent_s: Some(0) };
                answers.replication.as_mut().unwrap().replicas = vec![replica(2), replica(3)];
            }
            answers
        };
        let sentinel = |host: u8| {
            let others: Vec<u8> = (4..=6).filter(|other| *other != host).collect();
            SentinelAnswers {
                is_in_tilt: false,
                master: named(&[]),
                ckquorum: "OK 3 usable Sentinels.".into(),
                sentinels: others
                    .iter()
                    .map(|other| Peer::reached(at(*other), &id(*other), "sentinel"))
                    .collect(),
                replicas: [2, 3].map(|host| Peer::reached(at(host), &run_id(host), "slave")).into(),
                clients: clients(&others),
                lets_us_ask: true,
            }
        };
        Self {
            system: system(),
            options: [("parallel-syncs".to_owned(), "1".to_owned())].into(),
            redis_settings: BTreeMap::new(),
            flow: Flow { id: "aa".into(), offset: 90 },
            redis: (1..=3).map(redis).collect(),
            sentinels: (4..=6).map(sentinel).collect(),
        }
    }

    fn seen(&self) -> SystemAnswers<'_> {
        SystemAnswers {
            system: &self.system,
            options: &self.options,
            redis_settings: &self.redis_settings,
            flow: Some(&self.flow),
            redis: self.redis.iter().cloned().map(Ok).collect(),
            sentinels: self.sentinels.iter().cloned().map(Ok).collect(),
            redis_user: "default",
            sentinel_user: "default",
        }
    }
}

/// `SENTINEL MASTER` with these fields changed.
fn named(changes: &[(&str, &str)]) -> NamedMaster {
    let run_id = run_id(1);
    let mut fields: BTreeMap<&str, &str> = [
        ("ip", "10.0.0.1"),
        ("port", "6379"),
        ("runid", &run_id),
        ("flags", "master"),
        ("last-ping-sent", "0"),
        ("num-other-sentinels", "2"),
        ("num-slaves", "2"),
        ("parallel-syncs", "1"),
    ]
    .into();
    fields.extend(changes.iter().copied());
    let words = fields.into_iter().flat_map(|(name, value)| [name, value]);
    NamedMaster::parse(&Value::Array(words.map(|word| Value::SimpleString(word.to_owned())).collect()))
}

/// Changes a healthy system, and expects a problem on this node, with these words and this hint.
#[track_caller]
fn expect(host: u8, what: &[&str], hint: &str, change: impl FnOnce(&mut World)) {
    let mut world = World::new();
    change(&mut world);
    let unmet = world.seen().unmet();
    let found = unmet.iter().find(|unmet| unmet.node == at(host));
    let found = found.unwrap_or_else(|| panic!("nothing is wrong on {}: {unmet:?}", at(host)));
    for word in what {
        assert!(found.what.contains(word), "`{word}` is missing: {found:?}");
    }
    assert!(found.hint.as_deref().unwrap_or_default().contains(hint), "`{hint}` is missing: {found:?}");
}

#[test]
fn a_healthy_system_is_verified_and_proved() {
    let world = World::new();
    assert_eq!(world.seen().unmet(), []);
    assert_eq!(world.seen().unproved(), []);
    assert!(world.seen().users_on_redis().is_empty() && world.seen().users_on_sentinels().is_empty());
}

#[test]
fn a_node_that_does_not_answer_is_named() {
    let world = World::new();
    let mut seen = world.seen();
    seen.redis[1] = Err("Connection refused".into());
    seen.sentinels[2] = Err("Connection refused".into());
    let nodes: Vec<_> = seen.unmet().into_iter().map(|unmet| unmet.node).collect();
    assert_eq!(nodes, [at(2), at(6)]);
}

#[test]
fn a_sentinel_has_to_agree_with_the_plan() {
    for (name, value) in [
        ("ip", "10.0.0.2"),
        ("port", "6380"),
        ("flags", "s_down,master"),
        ("flags", "master,disconnected"),
        ("num-other-sentinels", "1"),
        ("num-slaves", "0"),
        ("num-slaves", "3"),
        ("num-other-sentinels", "3"),
        ("parallel-syncs", "2"),
        ("last-ping-sent", "7"),
    ] {
        expect(4, &[], "", |world| world.sentinels[0].master = named(&[(name, value)]));
        // The result is the same if only `SENTINEL MASTER` shows it.
        let system = system();
        let options = World::new().options;
        let named = named(&[(name, value)]);
        assert!(
            sentinel_agrees(&system, &system.sentinels[0], &options, &named, |_| Ok(())).is_err(),
            "{name}"
        );
    }
    // After a failover, a Sentinel reads the new master's `runid` only with its next `INFO`.
    let mut failed_over = World::new();
    failed_over.sentinels[0].master = named(&[("runid", "")]);
    assert_eq!(failed_over.seen().unmet(), []);
    expect(5, &["NOQUORUM"], "", |world| world.sentinels[1].ckquorum = "NOQUORUM 1 usable".into());
}

#[test]
fn a_sentinel_knows_all_that_there_are_and_nobody_else() {
    let stranger = |flags: &str| Peer::reached(Endpoint::new("10.0.7.7", 26379), "stranger", flags);
    expect(
        4,
        &["still counts the Sentinel", "10.0.7.7"],
        "sentinel-runner deregister sentinel 10.0.7.7:26379",
        |world| {
            world.sentinels[0].sentinels.push(stranger("sentinel,s_down"));
        },
    );
    expect(
        4,
        &["knows the Sentinel 10.0.7.7", "not part"],
        "sentinel-runner register sentinel 10.0.7.7",
        |world| {
            world.sentinels[0].sentinels[0] = stranger("sentinel");
        },
    );
    expect(4, &["knows the replica 10.0.7.7", "not part of this system"], "", |world| {
        world.sentinels[0].replicas[0] = stranger("slave");
    });
    expect(4, &["knows 1 of 2 other Sentinels"], "", |world| drop(world.sentinels[0].sentinels.pop()));
    expect(4, &["knows 1 of 2 replicas"], "", |world| drop(world.sentinels[0].replicas.pop()));
}

#[test]
fn a_replica_that_hides_from_clients_is_counted_as_what_it_is() {
    let mut world = World::new();
    world.system.replicas[1].settings = RedisSettings::of(&[("replica-announced", "no")]);
    for sentinel in &mut world.sentinels {
        sentinel.replicas.pop();
    }
    assert_eq!(world.seen().unmet(), []);
    world.sentinels[0].replicas.pop();
    assert_eq!(world.seen().unmet().len(), 1);
}

#[test]
fn a_sentinel_has_to_have_reached_everybody() {
    let unanswered = |peer: &mut Peer| peer.ping_unanswered_ms = 12;
    expect(4, &["no answer from the Sentinel 10.0.0.5:26379"], "sentinel-user", |world| {
        unanswered(&mut world.sentinels[0].sentinels[0]);
    });
    expect(4, &["no answer from the Sentinel 10.0.0.5:26379"], "reaches that address", |world| {
        world.sentinels[0].sentinels[0].flags = "sentinel,disconnected".into();
    });
    expect(
        4,
        &["10.0.0.5:26379 at 10.9.9.9:1, the address that it announces"],
        "announce-ip 10.0.0.5",
        |world| {
            let peer = &mut world.sentinels[0].sentinels[0];
            (peer.endpoint, peer.flags) = (Endpoint::new("10.9.9.9", 1), "sentinel,disconnected".into());
        },
    );
    expect(6, &["no answer from the replica 10.0.0.2:6379"], "its password", |world| {
        unanswered(&mut world.sentinels[2].replicas[0]);
    });
    expect(6, &["no answer from the replica"], "", |world| world.sentinels[2].replicas[0].id.clear());
    expect(6, &["10.0.0.2:6379 at 10.9.9.9:6379"], "replica-announce-ip 10.0.0.2", |world| {
        let announced = Endpoint::new("10.9.9.9", 6379);
        world.system.replicas[0].announced = announced.clone();
        let replica = world.redis[0].replication.as_mut().unwrap();
        replica.replicas[0].endpoint = announced.clone();
        let peer = &mut world.sentinels[2].replicas[0];
        (peer.endpoint, peer.flags) = (announced, "slave,disconnected".into());
        peer.id.clear();
    });
    expect(5, &["reaches 10.0.0.3:6379 at the address of the replica 10.0.0.2:6379"], "", |world| {
        world.sentinels[1].replicas[0].id = run_id(3);
    });
    // The id is from before a restart: a Sentinel reads it only every 10 s.
    let mut world = World::new();
    world.sentinels[1].replicas[0].id = "of-before".into();
    assert_eq!(world.seen().unmet(), []);
}

#[test]
fn a_sentinel_has_to_have_arrived_everywhere() {
    expect(5, &["the Sentinel 10.0.0.4:26379 is not connected"], "10.0.0.5:26379", |world| {
        world.sentinels[1].clients = clients(&[6]);
    });
    expect(2, &["the Sentinel 10.0.0.6:26379 has not subscribed"], "+client|setname on 10.0.0.2", |world| {
        world.redis[1].watchers = clients(&[4, 5]);
    });
    expect(1, &["monitored by a Sentinel at 10.0.9.9, which is not part"], "", |world| {
        world.redis[0].watchers.as_mut().unwrap().push(client("deadbeef", "default"));
    });
    expect(
        6,
        &["the user `default` of the other Sentinels ask for its vote"],
        "+sentinel|is-master-down-by-addr",
        |world| {
            world.sentinels[2].lets_us_ask = false;
        },
    );
}

#[test]
fn what_can_not_be_asked_is_unproved_and_still_verified() {
    let mut world = World::new();
    world.redis[1].watchers = None;
    world.sentinels[2].clients = None;
    assert_eq!(world.seen().unmet(), []);
    let unproved = world.seen().unproved();
    assert_eq!(unproved.iter().map(|one| &one.node).collect::<Vec<_>>(), [&at(2), &at(6)]);
    assert!(unproved.iter().all(|one| one.right.as_deref() == Some("+client|list")));
    let mut world = World::new();
    world.system.master.lacks = [("script|kill", Lack::Denied)].into();
    assert_eq!(world.seen().unproved().len(), 1);
    world.redis[0].watchers = Some([4, 5, 6].map(|host| client(&id(host), "ops")).into());
    assert_eq!(world.seen().unproved(), [], "it is another user who needs it");
}

#[test]
fn users_other_than_ours_are_asked_about() {
    let mut world = World::new();
    world.redis[1].watchers =
        Some(vec![client(&id(4), "ops"), client(&id(5), "ops"), client(&id(6), "default")]);
    world.sentinels[0].clients = Some(vec![client(&id(5), "peers"), client(&id(6), "peers")]);
    let seen = world.seen();
    assert_eq!(seen.users_on_redis(), [(at(2), ["ops".to_owned()].into())].into());
    assert_eq!(seen.users_on_sentinels(), [(at(4), ["peers".to_owned()].into())].into());
}

#[test]
fn a_master_needs_every_replica_online() {
    expect(1, &["has 1 of 2 replicas online"], "", |world| {
        world.redis[0].replication.as_mut().unwrap().replicas[0].online = false;
    });
    expect(1, &["is not a master"], "", |world| world.redis[0].replication = Some(replication(follows())));
    expect(1, &["is not a master"], "", |world| world.redis[0].replication = None);
}

#[test]
fn a_replica_needs_the_right_master_a_link_and_the_stream() {
    let role = |of: u8, link_up| Role::Replica { of: at(of), link_up };
    let becomes = |role| move |world: &mut World| world.redis[1].replication = Some(replication(role));
    expect(2, &["replicates 10.0.0.3:6379"], "", becomes(role(3, true)));
    expect(2, &["is not a replica"], "", becomes(Role::Master));
    expect(2, &["link to the master is not up"], "standard output", becomes(role(1, false)));
    expect(2, &["link to the master is not up"], "/var/log/redis.log", |world| {
        world.system.replicas[0].settings = RedisSettings::of(&[("logfile", "/var/log/redis.log")]);
        becomes(role(1, false))(world);
    });
    expect(2, &["rdb_last_bgsave_status"], "log", |world| {
        world.redis[1].writes.save_failed = true;
        becomes(role(1, false))(world);
    });
    expect(3, &["does not follow the master's stream"], "", |world| {
        world.redis[2].replication.as_mut().unwrap().applied = Some(89);
    });
}

#[test]
fn a_replica_that_the_master_sees_elsewhere_is_named_with_both_addresses() {
    let elsewhere = Endpoint::new("192.0.2.44", 6379);
    let moves = |world: &mut World, index: usize| {
        world.redis[0].replication.as_mut().unwrap().replicas[index].endpoint = elsewhere.clone();
        for sentinel in &mut world.sentinels {
            sentinel.replicas[index].endpoint = elsewhere.clone();
        }
    };
    let hint = "CONFIG SET replica-announce-ip 10.0.0.2 on 10.0.0.2:6379";
    expect(2, &["192.0.2.44:6379", "not its registered address"], hint, |world| moves(world, 0));
    // If the Sentinel has read the replica's id, the id identifies the replica. Otherwise the master's list
    // of replicas does.
    expect(4, &["knows 10.0.0.2:6379 as 192.0.2.44:6379"], hint, |world| moves(world, 0));
    expect(4, &["knows 10.0.0.2:6379 as 192.0.2.44:6379"], hint, |world| {
        moves(world, 0);
        world.sentinels[0].replicas[0].id.clear();
    });
    // Two replicas at the same time, identified by their ports.
    expect(3, &["192.0.2.45:6380"], "replica-announce-ip 10.0.0.3", |world| {
        moves(world, 0);
        world.system.replicas[1].announced.port = 6380;
        let other = Endpoint::new("192.0.2.45", 6380);
        world.redis[0].replication.as_mut().unwrap().replicas[1].endpoint = other.clone();
        world.sentinels[0].replicas[1].endpoint = other;
    });
    // Two replicas with the same port are identified by their ids, or not at all.
    let both = |world: &mut World| {
        let at = [Endpoint::new("192.0.2.44", 6379), Endpoint::new("192.0.2.45", 6379)];
        for (index, at) in at.into_iter().enumerate() {
            world.redis[0].replication.as_mut().unwrap().replicas[1 - index].endpoint = at.clone();
            for sentinel in &mut world.sentinels {
                sentinel.replicas[1 - index].endpoint = at.clone();
            }
        }
    };
    expect(2, &["sees this replica at 192.0.2.45:6379,"], "replica-announce-ip 10.0.0.2", both);
    expect(3, &["sees this replica at 192.0.2.44:6379,"], "replica-announce-ip 10.0.0.3", both);
    let unread = |world: &mut World| {
        both(world);
        for peer in world.sentinels.iter_mut().flat_map(|sentinel| &mut sentinel.replicas) {
            peer.id.clear();
        }
    };
    expect(2, &["192.0.2.45:6379 or 192.0.2.44:6379"], "replica-announce-ip 10.0.0.2", unread);
    expect(4, &["knows 10.0.0.2:6379 or 10.0.0.3:6379 as 192.0.2.45:6379"], "replica-announce-ip", unread);
}

#[test]
fn a_sentinel_in_tilt_is_named() {
    expect(5, &["TILT", "30 s"], "after 30 s", |world| world.sentinels[1].is_in_tilt = true);
}

#[test]
fn a_master_has_to_take_writes() {
    expect(1, &["no client can write to it", "OOM"], "maxmemory", |world| {
        world.redis[0].writes.out_of_memory = Some((9, 8));
    });
    expect(1, &["append-only file (MISCONF)"], "log", |world| world.redis[0].writes.append_failed = true);
    expect(1, &["last dump (MISCONF)"], "stop-writes-on-bgsave-error no on 10.0.0.1:6379", |world| {
        world.redis[0].writes.save_failed = true;
    });
    for settings in [("stop-writes-on-bgsave-error", "no"), ("save", "")] {
        let mut world = World::new();
        world.redis[0].writes.save_failed = true;
        world.system.master.settings = RedisSettings::of(&[settings]);
        assert_eq!(world.seen().unmet(), []);
    }
    expect(
        1,
        &["`min-replicas-to-write` is 2, but only 1 follow closely"],
        "min-replicas-to-write 1",
        |world| {
            world.system.master.settings = RedisSettings::of(&[("min-replicas-to-write", "2")]);
            world.redis[0].replication.as_mut().unwrap().good_replicas = Some(1);
        },
    );
}

#[test]
fn a_server_without_a_setting_that_was_asked_for_is_named() {
    let mut world = World::new();
    world.redis_settings = [("min-replicas-to-write".to_owned(), "1".to_owned())].into();
    let given = world.redis_settings.clone();
    world.redis[0].settings = given.clone();
    world.redis[1].settings = [("min-replicas-to-write".to_owned(), "0".to_owned())].into();
    let unmet = world.seen().unmet();
    let what: Vec<_> = unmet.iter().map(|unmet| (&unmet.node, unmet.what.as_str())).collect();
    let (second, third) = (at(2), at(3));
    let expected =
        [(&second, "has min-replicas-to-write 0, not 1"), (&third, "has min-replicas-to-write , not 1")];
    assert_eq!(what, expected);
    for answers in &mut world.redis {
        answers.settings = given.clone();
    }
    assert_eq!(world.seen().unmet(), []);
}

#[test]
fn a_replica_has_what_it_applied_while_its_link_is_up() {
    let flow = Flow { id: "aa".into(), offset: 100 };
    let reached = |id: &str, link: &str, offset: &str| {
        let info = format!(
            "role:slave\r\nmaster_host:10.0.0.1\r\nmaster_port:6379\r\nmaster_link_status:{link}\r\n\
             master_replid:{id}\r\nmaster_repl_offset:{offset}\r\nslave_repl_offset:{offset}\r\n"
        );
        flow.has_reached(&Replication::parse(&Info::parse(&info)).unwrap())
    };
    assert!(reached("aa", "up", "100") && reached("aa", "up", "101"));
    assert!(!reached("aa", "up", "99"), "it lags");
    assert!(!reached("bb", "up", "5000"), "from a longer history");
    assert!(!reached("aa", "down", "100"));
    assert!(
        !flow.has_reached(&Replication::parse(&Info::parse("role:master\r\nmaster_replid:aa\r\n")).unwrap())
    );
}
