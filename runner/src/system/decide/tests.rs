//! Tests decisions by table, with one row per rule and per hazard, and by properties over generated worlds.

use std::collections::BTreeMap;
use std::fmt;
use std::io::Write as _;

use proptest::prelude::*;
use proptest::test_runner::TestRunner;

use super::*;
use crate::node::clients::SentinelClient;
use crate::node::redis::{Data, RedisSettings};
use crate::node::replication::{History, Replica};
use crate::node::reply::ServerError;
use crate::node::rights::Lack;
use crate::node::secret::Secret;
use crate::node::sentinel::{MonitoredMaster, NamedMaster, Peer};
use crate::node::version::Version;

fn redis_at(number: usize) -> Endpoint {
    Endpoint::new(format!("10.0.0.{}", number + 1), 6379)
}

fn sentinel_at(number: usize) -> Endpoint {
    Endpoint::new(format!("10.0.1.{}", number + 1), 26379)
}

fn stranger() -> Endpoint {
    Endpoint::new("192.0.2.1", 6379)
}

fn redis(number: usize) -> RedisState {
    RedisState::fresh(redis_at(number), &number.to_string())
}

/// The ids sort in the reverse order of registration, so that a test fails if the two orders are confused.
fn sentinel(number: usize) -> SentinelState {
    SentinelState::fresh(
        sentinel_at(number),
        &format!("id-{}", 9 - number),
        &format!("sentinel-run-{number}"),
    )
}

fn monitoring(master: Endpoint, config_epoch: u64, flags: &str, replicas: usize) -> Monitored {
    let fields = [
        ("flags", flags.to_owned()),
        ("config-epoch", config_epoch.to_string()),
        ("num-slaves", replicas.to_string()),
        ("quorum", "2".to_owned()),
        ("parallel-syncs", "1".to_owned()),
    ];
    Monitored {
        master: NamedMaster {
            endpoint: master,
            fields: fields.map(|(name, value)| (name.to_owned(), value)).into(),
        },
        peers: BTreeMap::new(),
        replicas: vec![],
    }
}

/// A world of usable nodes, which each test changes.
struct World {
    redis: Vec<Result<RedisState, Unusable>>,
    sentinels: Vec<Result<SentinelState, Unusable>>,
    request: Request,
}

impl World {
    fn new(redis_servers: usize, sentinels: usize) -> Self {
        let (redis_expected, sentinels_expected) = (redis_servers as u16, sentinels as u16);
        Self {
            redis: (0..redis_servers).map(|number| Ok(redis(number))).collect(),
            sentinels: (0..sentinels).map(|number| Ok(sentinel(number))).collect(),
            request: Request {
                group: "mymaster".parse().unwrap(),
                expected: Expected {
                    redis: redis_expected,
                    sentinels: sentinels_expected,
                    quorum: sentinels_expected / 2 + 1,
                },
                quorum_given: false,
                options: BTreeMap::new(),
                redis_settings: BTreeMap::new(),
                leaving: Leaving::default(),
                sentinel_login: None,
                replication_login: None,
                redis_user: "default".to_owned(),
                renamed: BTreeMap::new(),
                master: None,
                discard_data: false,
            },
        }
    }

    fn redis(mut self, number: usize, change: impl FnOnce(&mut RedisState)) -> Self {
        change(self.redis[number].as_mut().unwrap());
        self
    }

    fn sentinel(mut self, number: usize, change: impl FnOnce(&mut SentinelState)) -> Self {
        change(self.sentinels[number].as_mut().unwrap());
        self
    }

    fn keys(self, number: usize, keys: u64) -> Self {
        self.redis(number, |state| state.data.keys = keys)
    }

    fn replica(self, number: usize, of: Endpoint) -> Self {
        self.redis(number, |state| state.role = Role::Replica { of, link_up: true })
    }

    fn monitored(self, number: usize, monitored: Monitored) -> Self {
        self.sentinel(number, |state| state.monitored = Some(monitored))
    }

    fn down(mut self, number: usize) -> Self {
        self.redis[number] = Err(Unusable::Unreachable("connection refused".into()));
        self
    }

    fn request(mut self, change: impl FnOnce(&mut Request)) -> Self {
        change(&mut self.request);
        self
    }

    fn observed(&self) -> Observed {
        fn nodes<T: Clone>(
            states: &[Result<T, Unusable>],
            at: fn(usize) -> Endpoint,
        ) -> Vec<ObservedNode<T>> {
            let states = states.iter().cloned().enumerate();
            states.map(|(number, state)| ObservedNode { endpoint: at(number), state }).collect()
        }
        Observed { redis: nodes(&self.redis, redis_at), sentinels: nodes(&self.sentinels, sentinel_at) }
    }

    fn decide(&self) -> Decision {
        decide(&self.observed(), &self.request)
    }

    #[track_caller]
    fn planned(&self) -> Plan {
        match self.decide() {
            Decision::Proceed(plan) => *plan,
            other => panic!("no plan: {other:?}"),
        }
    }

    #[track_caller]
    fn refused(&self) -> Refusal {
        match self.decide() {
            Decision::Refuse(refusal) => refusal,
            other => panic!("not refused: {other:?}"),
        }
    }

    #[track_caller]
    fn waits(&self) -> Wait {
        match self.decide() {
            Decision::Wait(wait) => wait,
            other => panic!("does not wait: {other:?}"),
        }
    }

    /// The world after a plan was carried out.
    fn after(mut self, plan: &Plan) -> Self {
        let master_number =
            (0..self.redis.len()).find(|&number| redis_at(number) == plan.system.master.endpoint).unwrap();
        let master = self.redis[master_number].as_mut().unwrap();
        master.role = Role::Master;
        let (master_history, master_data) = (master.history.clone(), master.data);
        for (number, state) in self.redis.iter_mut().enumerate() {
            if let Ok(state) = state
                && plan.attach.iter().any(|attach| attach.node == redis_at(number))
            {
                state.role = Role::Replica { of: plan.system.master.announced.clone(), link_up: true };
                state.history = master_history.clone();
                state.data = master_data;
            }
        }
        let ids: BTreeMap<_, _> = self
            .sentinels
            .iter()
            .enumerate()
            .filter_map(|(number, state)| Some((state.as_ref().ok()?.my_id.clone(), sentinel_at(number))))
            .collect();
        for (number, state) in self.sentinels.iter_mut().enumerate() {
            let Ok(state) = state else { continue };
            let endpoint = sentinel_at(number);
            if plan.monitor.contains(&endpoint) {
                let replicas = plan.system.replicas.len();
                let mut monitored = monitoring(plan.system.master.announced.clone(), 0, "master", replicas);
                monitored.master.fields.insert("quorum".into(), plan.quorum.to_string());
                state.monitored = Some(monitored);
            }
            let Some(monitored) = &mut state.monitored else { continue };
            for (_, options) in plan.configure.iter().filter(|(to, _)| *to == endpoint) {
                monitored.master.fields.extend(options.clone());
            }
            for hello in plan.introduce.iter().filter(|one| one.to == endpoint).flat_map(|one| &one.hellos) {
                let id = hello.split(',').nth(2).unwrap();
                monitored.peers.insert(id.to_owned(), Peer::reached(ids[id].clone(), id, "sentinel"));
            }
        }
        self
    }
}

#[test]
fn held_servers_are_released_with_their_own_priority() {
    let mut world = World::new(3, 3);
    for number in [0, 1] {
        world.redis[number].as_mut().unwrap().role = Role::Held;
    }
    let plan = world.planned();
    assert_eq!((&plan.system.master.endpoint, plan.promote), (&redis_at(0), true));
    assert_eq!(plan.attach.len(), 2);
    let commands: Vec<_> =
        plan.commands().iter().map(|(node, command)| format!("{node} {}", command.shown())).collect();
    assert_eq!(
        commands[..2],
        ["10.0.0.1:6379 CONFIG SET replica-priority 100", "10.0.0.1:6379 REPLICAOF NO ONE"]
    );
    let released =
        commands.iter().position(|command| command == "10.0.0.2:6379 CONFIG SET replica-priority 100");
    assert_eq!(commands[released.unwrap() + 1], "10.0.0.2:6379 REPLICAOF 10.0.0.1 6379");
    assert!(!commands.iter().any(|command| command.contains("10.0.0.3:6379 CONFIG SET replica-priority")));
    // The data of a held server decides, as for any other server.
    world.redis[1].as_mut().unwrap().data = Data { keys: 5, functions: 0 };
    assert_eq!(world.planned().system.master.endpoint, redis_at(1));
}

#[test]
fn a_held_server_that_the_sentinels_name_is_left_to_its_join() {
    let mut world = World::new(2, 3);
    world.redis[0].as_mut().unwrap().role = Role::Held;
    for sentinel in &mut world.sentinels {
        sentinel.as_mut().unwrap().monitored = Some(monitoring(redis_at(0), 0, "master", 1));
    }
    assert!(matches!(world.waits(), Wait::MasterDown { problem, .. } if problem.contains("held")));
}

#[test]
fn fresh_nodes_make_the_first_to_register_the_master() {
    let mut world = World::new(3, 3);
    for number in [0, 2] {
        world.redis[number].as_mut().unwrap().version = Some(Version::Valkey(9, 1, 2));
    }
    let plan = world.planned();
    assert_eq!(plan.system.master.endpoint, redis_at(0));
    assert_eq!(plan.attach, [1, 2].map(|number| Attach { node: redis_at(number), data: Data::default() }));
    assert_eq!(plan.monitor.len(), 3);
    assert_eq!(plan.monitor[0], sentinel_at(2), "the lowest id decides");
    assert_eq!((plan.quorum, plan.promote), (2, false));
    let temporary: Vec<_> = plan
        .temporary
        .iter()
        .map(|setting| (&setting.node, setting.value, setting.before.as_str()))
        .collect();
    let slow = redis_at(2);
    assert_eq!(temporary, [(&redis_at(0), "0", "5"), (&slow, "on-empty-db", "disabled")]);
    assert!(plan.introduce.iter().all(|introduction| introduction.hellos.len() == 2));
    assert_eq!(
        plan.introduce[0].hellos[0], "10.0.1.2,26379,id-8,0,mymaster,10.0.0.1,6379,0",
        "ip, port, id, epoch, group, the master's ip and port, its epoch"
    );
}

#[test]
fn options_and_the_quorum_go_in_one_command() {
    let world = World::new(2, 3).request(|request| {
        request.options = BTreeMap::from([
            ("down-after-milliseconds".into(), "5000".into()),
            ("parallel-syncs".into(), "2".into()),
        ]);
    });
    let sets: Vec<_> =
        world.planned().commands().into_iter().filter(|(_, c)| c.shown().contains(" SET ")).collect();
    let to_sentinels: Vec<_> = sets.iter().filter(|(_, command)| command.name() == "SENTINEL").collect();
    assert_eq!(to_sentinels.len(), 3);
    assert_eq!(
        to_sentinels[0].1.shown(),
        "SENTINEL SET mymaster down-after-milliseconds 5000 parallel-syncs 2"
    );
}

#[test]
fn a_short_roster_waits() {
    assert!(matches!(World::new(2, 3).down(1).waits(), Wait::NotEnough { usable_redis: 1, .. }));
}

#[test]
fn a_server_that_loads_has_data_and_is_never_left_out() {
    let mut world = World::new(3, 3).request(|request| request.expected.redis = 2);
    world.redis[1] = Err(Unusable::Loading);
    assert_eq!(world.waits(), Wait::Loading(redis_at(1)));
}

#[test]
fn a_server_with_another_run_id_may_yet_register_again() {
    let mut world = World::new(3, 3).request(|request| request.expected.redis = 2);
    world.redis[1] = Err(Unusable::Replaced { registered: "a".into(), found: "b".into() });
    assert!(matches!(world.waits(), Wait::Replaced { node, .. } if node == redis_at(1)));
}

#[test]
fn more_nodes_than_expected_make_up_for_a_dead_one() {
    let plan = World::new(3, 3).down(0).request(|request| request.expected.redis = 2).planned();
    assert_eq!(plan.system.master.endpoint, redis_at(1));
    assert_eq!(plan.left_out.len(), 1);
    assert_eq!(plan.left_out[0].0, redis_at(0));
}

#[test]
fn what_waiting_does_not_mend_is_refused_with_the_node_named() {
    let error = ServerError { code: "DENIED".into(), detail: "protected mode".into() };
    let denied = || Unusable::Denied { kind: broker_fn::api::Kind::Redis, error: error.clone() };
    let problems = [
        denied(),
        Unusable::ClusterMode,
        Unusable::WrongKind { registered: "redis", found: "a sentinel" },
        Unusable::NotRedis("does not speak the Redis protocol".into()),
    ];
    for problem in problems {
        let mut world = World::new(3, 3).request(|request| request.expected.redis = 2);
        world.redis[1] = Err(problem.clone());
        let refusal = world.refused();
        assert_eq!(refusal.kind, RefusalKind::Unusable, "{problem}");
        assert!(refusal.reason.contains(&redis_at(1).to_string()) && !refusal.hint.is_empty());
    }
}

#[test]
fn one_server_under_two_addresses_is_refused() {
    let refusal = World::new(3, 3).redis(2, |state| state.run_id = "run-0".into()).refused();
    assert_eq!(refusal.kind, RefusalKind::Unsafe);
    assert!(refusal.reason.contains("10.0.0.1:6379") && refusal.reason.contains("10.0.0.3:6379"));
}

#[test]
fn two_sentinels_with_one_id_are_refused() {
    let refusal = World::new(2, 3).sentinel(1, |state| state.my_id = "id-9".into()).refused();
    assert!(
        refusal.reason.contains("10.0.1.1:26379") && refusal.hint.contains("sentinel myid"),
        "{refusal:?}"
    );
}

#[test]
fn two_nodes_that_go_by_one_address_are_refused() {
    let shared = Endpoint::new("203.0.113.9", 6379);
    let announces = |state: &mut RedisState| {
        state.announced = shared.clone();
        state.aliases.push(shared.clone());
    };
    let refusal = World::new(2, 3).redis(0, announces).redis(1, announces).refused();
    for word in ["10.0.0.1:6379", "10.0.0.2:6379", "203.0.113.9:6379"] {
        assert!(refusal.reason.contains(word), "{refusal:?}");
    }
    assert!(refusal.hint.contains("replica-announce-ip"), "{refusal:?}");
    // A Sentinel announces the address that another Sentinel has registered.
    let refusal = World::new(2, 3).sentinel(2, |state| state.announced = sentinel_at(0)).refused();
    assert!(refusal.reason.contains("10.0.1.1:26379 and 10.0.1.3:26379"), "{refusal:?}");
    assert!(refusal.hint.contains("announce-ip"), "{refusal:?}");
}

// The rights and settings that a failover needs.

fn watcher(id: &str, age: u64, user: &str) -> SentinelClient {
    let from = Endpoint::new("198.51.100.7", 40_000);
    SentinelClient { id: id.into(), from, connection: 7, user: user.into(), age }
}

#[test]
fn servers_that_another_system_watches_are_refused_once_it_is_clear() {
    let watched = |age| {
        World::new(2, 3).redis(1, |state| state.watchers = Some(vec![watcher("deadbeef", age, "default")]))
    };
    assert!(matches!(watched(9).waits(), Wait::Watched { node, .. } if node == redis_at(1)));
    let refusal = watched(10).refused();
    assert_eq!(refusal.kind, RefusalKind::Unsafe);
    assert!(
        refusal.reason.contains("10.0.0.2:6379") && refusal.reason.contains("198.51.100.7"),
        "{refusal:?}"
    );

    let known = World::new(2, 3)
        .sentinel(0, |state| state.my_id = "deadbeef01".into())
        .redis(1, |state| state.watchers = Some(vec![watcher("deadbeef", 99, "default")]));
    assert_eq!(known.planned().attach.len(), 1, "a Sentinel of ours");
    let mut unclear = watched(10).request(|request| request.expected.sentinels = 2);
    unclear.sentinels[2] = Err(Unusable::Unreachable("connection refused".into()));
    assert_eq!(unclear.planned().attach.len(), 1, "it may be the one that does not answer");
}

#[test]
fn servers_that_a_sentinel_monitors_under_another_name_are_refused() {
    let monitored = |name: &str, endpoint: Endpoint| {
        let status = "ok".to_owned();
        let master = MonitoredMaster { name: name.into(), endpoint, status, replicas: 1, sentinels: 3 };
        World::new(2, 3).sentinel(1, |state| state.masters = vec![master])
    };
    let refusal = monitored("other", redis_at(1)).refused();
    assert_eq!(refusal.kind, RefusalKind::Unsafe);
    assert!(
        refusal.reason.contains("10.0.1.2:26379") && refusal.reason.contains("10.0.0.2:6379 as `other`"),
        "{refusal:?}"
    );
    assert!(refusal.hint.contains("--group other"), "{refusal:?}");
    // The same group, and other servers under another name.
    assert_eq!(monitored("mymaster", redis_at(1)).planned().attach.len(), 1);
    assert_eq!(monitored("other", stranger()).planned().attach.len(), 1);
}

#[test]
fn a_command_that_a_failover_needs_and_a_server_does_not_take_is_refused() {
    let lacks = |right, lack| World::new(2, 3).redis(1, |state| state.lacks = [(right, lack)].into());
    let refusal = lacks("config|rewrite", Lack::Denied).refused();
    assert_eq!(refusal.kind, RefusalKind::Unusable);
    assert!(
        refusal.reason.contains("10.0.0.2:6379") && refusal.reason.contains("CONFIG REWRITE"),
        "{refusal:?}"
    );
    assert_eq!(refusal.hint, "ACL SETUSER default +config|rewrite on 10.0.0.2:6379");
    let refusal = lacks("slaveof", Lack::Unknown).refused();
    assert!(refusal.reason.contains("does not know the command `SLAVEOF`"), "{refusal:?}");
    assert!(refusal.hint.contains("--rename-command SLAVEOF=NEW-NAME"), "{refusal:?}");
    assert!(lacks("replicaof", Lack::Denied).refused().reason.contains("REPLICAOF"));
    // A right to a command that is not sent is not needed.
    assert!(!lacks("failover", Lack::Denied).planned().is_empty());
    assert!(!lacks("script|kill", Lack::Unknown).planned().is_empty());
    let valkey = |state: &mut SentinelState| state.version = Some(Version::Valkey(9, 0, 0));
    let refusal = lacks("failover", Lack::Denied).sentinel(1, valkey).refused();
    assert!(refusal.hint.contains("+failover"), "{refusal:?}");
}

#[test]
fn rights_are_those_of_the_user_that_the_sentinels_come_as() {
    let lacking = |user: &str| {
        let world = World::new(2, 3).sentinel(0, |state| state.my_id = "deadbeef01".into());
        let plan = world.planned();
        world.after(&plan).redis(0, |state| {
            state.lacks = [("slaveof", Lack::Denied)].into();
            state.watchers = Some(vec![watcher("deadbeef", 5, user)]);
        })
    };
    assert!(lacking("ops").planned().is_empty(), "we are another user");
    assert!(lacking("default").refused().reason.contains("SLAVEOF"));
}

#[test]
fn a_system_in_which_nobody_can_be_promoted_is_refused() {
    let priority = |world: World, number, priority| {
        world.redis(number, |state| state.settings = RedisSettings::of(&[("replica-priority", priority)]))
    };
    let none = priority(priority(World::new(3, 3), 1, "0"), 2, "0");
    let refusal = none.refused();
    assert!(refusal.reason.contains("10.0.0.2:6379, 10.0.0.3:6379"), "{refusal:?}");
    assert!(!priority(priority(World::new(3, 3), 1, "0"), 2, "100").planned().is_empty());
    assert!(!priority(World::new(3, 3), 0, "0").planned().is_empty(), "the master's does not count");
}

#[test]
fn a_login_that_a_sentinel_can_not_keep_is_refused_as_typed_wrong() {
    let login = |password: &str| {
        let login = Login { username: None, password: Secret::new(password) };
        World::new(2, 3).request(|request| request.sentinel_login = Some(login))
    };
    let refusal = login("two words").refused();
    assert_eq!(refusal.kind, RefusalKind::Usage);
    assert!(refusal.reason.contains("a blank") && refusal.reason.contains("10.0.1.1:26379"), "{refusal:?}");
    let valkey = |world: World| {
        (0..3).fold(world, |world, number| {
            world.sentinel(number, |state| state.version = Some(Version::Valkey(9, 1, 2)))
        })
    };
    assert!(!valkey(login("two words")).planned().is_empty());
    assert!(valkey(login("two\nlines")).refused().reason.contains("control character"));
}

#[test]
fn a_master_that_no_client_could_write_to_is_refused() {
    let needs = |replicas| {
        World::new(2, 3)
            .redis(0, |state| state.settings = RedisSettings::of(&[("min-replicas-to-write", replicas)]))
    };
    let refusal = needs("2").refused();
    assert!(refusal.reason.contains("`min-replicas-to-write` is 2, and it has 1 replica"), "{refusal:?}");
    assert!(!needs("1").planned().is_empty());
}

#[test]
fn a_setting_that_was_asked_for_is_given_to_whoever_lacks_it() {
    let asks = |replicas: usize, value: &str| {
        let mut world = World::new(replicas + 1, 3);
        let plan = world.planned();
        world = world.after(&plan);
        world.request.redis_settings = [("min-replicas-to-write".to_owned(), value.to_owned())].into();
        world.redis(1, |state| state.settings = RedisSettings::of(&[("min-replicas-to-write", "1")]))
    };
    let plan = asks(2, "1").planned();
    let given: Vec<_> = plan.settings.iter().map(|(node, _)| node.clone()).collect();
    assert_eq!(given, [redis_at(0), redis_at(2)]);
    let commands: Vec<String> = plan.commands().iter().map(|(_, command)| command.shown()).collect();
    assert_eq!(&commands[..2], ["CONFIG SET min-replicas-to-write 1"; 2]);
    assert!(commands[2..].iter().all(|command| command == "CONFIG REWRITE"), "{commands:?}");
    let refusal = asks(1, "1").refused();
    assert!(refusal.reason.contains("as soon as one replica is gone"), "{refusal:?}");
    assert_eq!((refusal.kind, asks(3, "3").refused().kind), (RefusalKind::Unsafe, RefusalKind::Unsafe));
    assert!(asks(1, "0").planned().settings.iter().any(|(node, _)| *node == redis_at(1)));
}

#[test]
fn who_leaves_is_forgotten_though_it_is_there() {
    let mut world = World::new(3, 3);
    let plan = world.planned();
    world = world.after(&plan);
    // The server's registration is gone, and the Sentinels still list the server.
    world.redis.pop();
    world.request.expected.redis = 2;
    for sentinel in world.sentinels.iter_mut().flatten() {
        let known = [1, 2].map(|number| Peer::reached(redis_at(number), "", "slave"));
        sentinel.monitored.as_mut().unwrap().replicas = known.to_vec();
    }
    assert_eq!(world.planned().reset.len(), 0);
    world.request.leaving = Leaving { ids: vec![], endpoints: vec![redis_at(2)] };
    assert_eq!(world.planned().reset.len(), 3);
}

#[test]
fn a_replica_that_the_master_sees_at_another_address_is_not_gone() {
    let seen_at = Endpoint::new("192.0.2.44", 6379);
    let plan = World::new(2, 3).planned();
    let seen = Replica { endpoint: seen_at.clone(), online: true, confirmed: 1, silent_s: Some(0) };
    let mut world = World::new(2, 3).after(&plan).redis(0, |state| state.replicas = vec![seen]);
    for sentinel in world.sentinels.iter_mut().flatten() {
        let monitored = sentinel.monitored.as_mut().unwrap();
        monitored.replicas = vec![Peer::reached(seen_at.clone(), "", "slave,s_down")];
    }
    assert!(world.planned().reset.is_empty());
    let world = world.redis(0, |state| state.replicas.clear());
    assert_eq!(world.planned().reset.len(), 3, "now it is gone");
}

// The rule of the Sentinels.

#[test]
fn what_a_sentinel_monitors_stands_whatever_registered_first() {
    let plan = World::new(2, 3)
        .replica(0, redis_at(1))
        .monitored(0, monitoring(redis_at(1), 7, "master", 1))
        .planned();
    assert_eq!(plan.system.master.endpoint, redis_at(1));
    assert!(plan.attach.is_empty());
    assert_eq!(plan.monitor.len(), 2, "only what is missing is completed");
    assert!(plan.introduce[1].hellos[0].ends_with(",mymaster,10.0.0.2,6379,7"));
}

#[test]
fn a_healthy_system_plans_nothing() {
    let fresh = World::new(3, 3);
    let plan = fresh.planned();
    let again = fresh.after(&plan).planned();
    assert!(again.is_empty(), "{again:?}");
    assert_eq!(again.to_string(), "master 10.0.0.1:6379: the Sentinels monitor it already\nnothing to do");
}

#[test]
fn options_are_changed_only_where_they_were_asked_for() {
    let healthy = || {
        let fresh = World::new(2, 3);
        let plan = fresh.planned();
        fresh.after(&plan).sentinel(1, |state| {
            state.monitored.as_mut().unwrap().master.fields.insert("quorum".into(), "3".into());
        })
    };
    assert!(healthy().planned().is_empty(), "a quorum that somebody has chosen is left alone");
    let plan = healthy().request(|request| request.quorum_given = true).planned();
    assert_eq!(plan.configure, [(sentinel_at(1), BTreeMap::from([("quorum".into(), "2".into())]))]);
}

#[test]
fn sentinels_that_disagree_are_refused() {
    let world = World::new(2, 3)
        .monitored(0, monitoring(redis_at(0), 0, "master", 0))
        .monitored(1, monitoring(redis_at(1), 0, "master", 0));
    assert!(world.refused().reason.contains("different masters"));
}

#[test]
fn sentinels_that_have_yet_to_hear_of_a_failover_are_waited_for() {
    let world = World::new(2, 3)
        .monitored(0, monitoring(redis_at(0), 3, "master", 1))
        .monitored(1, monitoring(redis_at(1), 4, "master", 1));
    assert!(matches!(world.waits(), Wait::Converging(_)));
}

#[test]
fn a_failover_is_waited_for() {
    let world = World::new(2, 3).monitored(1, monitoring(redis_at(0), 0, "master,failover_in_progress", 1));
    assert_eq!(world.waits(), Wait::Failover(sentinel_at(1)));
    assert!(matches!(
        World::new(2, 3).redis(1, |state| state.failing_over = true).waits(),
        Wait::Failover(_)
    ));
}

#[test]
fn a_dead_master_with_replicas_is_the_sentinels_affair() {
    let world = |replicas| {
        let world = World::new(3, 3).down(0).request(|request| request.expected.redis = 2);
        world.monitored(0, monitoring(redis_at(0), 0, "master,s_down", replicas))
    };
    assert!(matches!(world(2).waits(), Wait::MasterDown { .. }));
    assert!(world(0).refused().reason.contains("no replica"));
    let down_for_them = |replicas| {
        World::new(2, 3).monitored(0, monitoring(redis_at(0), 0, "master,s_down,o_down", replicas))
    };
    assert!(matches!(down_for_them(1).waits(), Wait::MasterDown { .. }));
    assert!(down_for_them(0).refused().hint.contains("reachable"));
}

#[test]
fn a_master_that_never_registered_is_refused() {
    let refusal = World::new(2, 3).monitored(0, monitoring(stranger(), 0, "master", 1)).refused();
    assert!(refusal.reason.contains("192.0.2.1:6379"));
}

#[test]
fn another_master_than_the_sentinels_can_not_be_asked_for() {
    let world = World::new(2, 3)
        .monitored(0, monitoring(redis_at(0), 0, "master", 1))
        .request(|request| request.master = Some(redis_at(1)));
    assert!(world.refused().hint.contains("sentinel-runner failover --to"));
}

#[test]
fn a_master_that_a_racing_runner_attached_is_promoted_again() {
    let world =
        World::new(2, 3).replica(0, redis_at(1)).monitored(0, monitoring(redis_at(0), 0, "master", 0));
    let plan = world.planned();
    assert!(plan.promote);
    assert_eq!((plan.system.master.endpoint.clone(), plan.attach.len()), (redis_at(0), 1));
    // After a failover, the Sentinels correct the roles.
    let world =
        World::new(2, 3).replica(0, redis_at(1)).monitored(0, monitoring(redis_at(0), 1, "master", 0));
    assert!(matches!(world.waits(), Wait::MasterDown { problem: "is a replica", .. }));
}

// The rule of replication.

#[test]
fn a_master_with_replicas_stays_master_though_it_registered_last() {
    let plan = World::new(3, 3).replica(0, redis_at(2)).planned();
    assert_eq!(
        (plan.system.master.endpoint.clone(), plan.because),
        (redis_at(2), "the others replicate it already")
    );
    assert_eq!(plan.attach, [Attach { node: redis_at(1), data: Data::default() }]);
}

#[test]
fn a_replica_of_a_replica_is_attached_to_the_master_with_its_data() {
    let chained =
        World::new(3, 3).replica(1, redis_at(0)).replica(2, redis_at(1)).keys(0, 9).keys(1, 9).keys(2, 9);
    let plan = chained.planned();
    assert_eq!((plan.system.master.endpoint.clone(), plan.attach.len()), (redis_at(0), 1));
    assert!(plan.replaces_data(), "the deciding Sentinel is asked before a server with keys is attached");
    let commands: Vec<_> = plan.commands().into_iter().map(|(_, command)| command.shown()).collect();
    let position = |start: &str| commands.iter().position(|command| command.starts_with(start)).unwrap();
    assert!(position("SENTINEL MONITOR") < position("REPLICAOF"));
}

#[test]
fn a_replica_of_a_stranger_is_refused() {
    let refusal = World::new(2, 3).replica(1, stranger()).refused();
    assert!(refusal.reason.contains("10.0.0.2:6379 replicates 192.0.2.1:6379"));
}

#[test]
fn a_registered_master_that_is_down_is_waited_for() {
    let world =
        World::new(3, 3).request(|request| request.expected.redis = 2).replica(1, redis_at(0)).down(0);
    assert!(matches!(world.waits(), Wait::MasterDown { .. }));
}

#[test]
fn two_masters_with_replicas_are_refused() {
    let world = World::new(4, 3).replica(1, redis_at(0)).replica(3, redis_at(2));
    assert!(world.refused().reason.contains("both have replicas"));
}

#[test]
fn two_servers_that_replicate_each_other_are_refused_unless_empty() {
    let circle = || World::new(2, 3).replica(0, redis_at(1)).replica(1, redis_at(0));
    assert!(circle().keys(0, 1).refused().reason.contains("each other"));
    let plan = circle().planned();
    assert!(plan.promote && plan.system.master.endpoint == redis_at(0));
}

#[test]
fn a_replica_of_itself_is_freed() {
    let plan = World::new(2, 3).replica(0, redis_at(0)).planned();
    assert!(plan.promote && plan.system.master.endpoint == redis_at(0));
    assert_eq!(plan.commands()[0].1.shown(), "REPLICAOF NO ONE");
}

// The rule of data.

#[test]
fn the_only_server_with_data_is_the_master() {
    let plan = World::new(3, 3).keys(2, 100).planned();
    assert_eq!((plan.system.master.endpoint.clone(), plan.because), (redis_at(2), "it holds the data"));
    assert_eq!(plan.attach.len(), 2);
}

#[test]
fn refuses_when_two_servers_hold_data() {
    let refusal = World::new(3, 3).keys(0, 1).keys(2, 100).refused();
    assert!(refusal.reason.contains("10.0.0.1:6379 (1 key), 10.0.0.3:6379 (100 keys)"), "{refusal}");
    assert!(refusal.hint.contains("--discard-data"));
}

#[test]
fn servers_that_share_a_history_are_one_data_set() {
    let same = |offset| {
        move |state: &mut RedisState| {
            state.data.keys = 100;
            state.history = History { id: "shared".into(), offset, ..History::default() };
        }
    };
    let plan = World::new(2, 3).redis(0, same(10)).redis(1, same(20)).planned();
    assert_eq!(plan.system.master.endpoint, redis_at(1), "the one that is ahead");
    assert_eq!(plan.attach, [Attach { node: redis_at(0), data: Data { keys: 100, functions: 0 } }]);
}

#[test]
fn a_replica_that_was_promoted_has_the_data_of_its_old_master_up_to_then() {
    let world = |old_master_offset| {
        World::new(2, 3)
            .redis(0, |state| {
                state.data.keys = 100;
                state.history = History { id: "old".into(), offset: old_master_offset, ..History::default() };
            })
            .redis(1, |state| {
                state.data.keys = 100;
                state.history =
                    History { id: "new".into(), offset: 60, previous_id: "old".into(), previous_until: 51 };
            })
    };
    assert_eq!(world(50).planned().system.master.endpoint, redis_at(1));
    assert!(world(51).refused().reason.contains("more than one server holds data"));
}

#[test]
fn the_operator_may_lose_data_only_in_so_many_words() {
    let named = |discard_data| {
        World::new(2, 3).keys(0, 1).keys(1, 2).request(|request| {
            request.master = Some(redis_at(1));
            request.discard_data = discard_data;
        })
    };
    assert!(named(false).refused().reason.contains("would delete them"));
    let plan = named(true).planned();
    assert_eq!((plan.system.master.endpoint.clone(), plan.attach.len()), (redis_at(1), 1));
    // Without `--master`, `--discard-data` alone is not enough.
    let unnamed = World::new(2, 3).keys(0, 1).keys(1, 2).request(|request| request.discard_data = true);
    assert!(unnamed.refused().reason.contains("more than one"));
}

#[test]
fn the_operator_may_choose_among_empty_servers_but_not_a_stranger() {
    assert_eq!(
        World::new(3, 3).request(|r| r.master = Some(redis_at(2))).planned().system.master.endpoint,
        redis_at(2)
    );
    assert!(
        World::new(3, 3).request(|r| r.master = Some(stranger())).refused().reason.contains("192.0.2.1:6379")
    );
}

#[test]
fn a_sentinels_word_does_not_empty_a_server_either() {
    let world = World::new(2, 3).keys(1, 5).monitored(0, monitoring(redis_at(0), 0, "master", 0));
    assert!(world.refused().reason.contains("10.0.0.2:6379 holds 5 keys"));
}

#[test]
fn an_old_master_that_comes_back_is_left_to_the_sentinels() {
    let world = World::new(2, 3)
        .keys(0, 5)
        .keys(1, 6)
        .monitored(0, monitoring(redis_at(1), 1, "master", 1))
        .sentinel(0, |state| {
            state.monitored.as_mut().unwrap().replicas = vec![Peer::reached(redis_at(0), "", "slave,s_down")];
        });
    assert_eq!(world.waits(), Wait::Returning { node: redis_at(0), named_by: sentinel_at(0) });
}

#[test]
fn who_is_gone_for_good_is_forgotten_and_who_may_come_back_is_not() {
    let gone = |world: World| {
        world.sentinel(1, |state| {
            let gone = Peer::reached(Endpoint::new("10.0.1.99", 26379), "", "sentinel,s_down");
            state.monitored.as_mut().unwrap().peers.insert("gone".into(), gone);
        })
    };
    let healthy = || {
        let fresh = World::new(2, 3);
        let plan = fresh.planned();
        fresh.after(&plan)
    };
    let plan = gone(healthy()).planned();
    assert_eq!(plan.reset.len(), 1);
    assert_eq!(
        (&plan.reset[0].to, plan.reset[0].hellos.len()),
        (&sentinel_at(1), 2),
        "and is told of all others again"
    );
    let commands: Vec<_> = plan.commands().into_iter().map(|(_, command)| command.shown()).collect();
    assert_eq!(commands[0], "SENTINEL RESET mymaster");
    let mut may_come_back = gone(healthy());
    may_come_back.redis.push(Err(Unusable::Unreachable("connection refused".into())));
    assert!(may_come_back.planned().is_empty());
}

// Addresses.

#[test]
fn what_a_server_announces_is_what_the_others_are_told() {
    let world = World::new(2, 3).redis(0, |state| {
        state.announced = Endpoint::new("203.0.113.9", 7000);
        state.aliases.push(state.announced.clone());
    });
    let plan = world.planned();
    assert_eq!(plan.replicaof_command().shown(), "REPLICAOF 203.0.113.9 7000");
    assert_eq!(plan.monitor_command().shown(), "SENTINEL MONITOR mymaster 203.0.113.9 7000 2");
    assert!(world.after(&plan).planned().is_empty());
}

#[test]
fn a_server_with_a_name_needs_sentinels_that_take_names_and_keep_them() {
    let name = || Endpoint::new("redis-0.example", 6379);
    let named = || {
        World::new(2, 3).redis(0, |state| {
            state.announced = name();
            state.aliases.push(name());
        })
    };
    let refusal = named().refused();
    assert_eq!(refusal.kind, RefusalKind::Unusable);
    for setting in ["resolve-hostnames", "announce-hostnames"] {
        assert!(refusal.reason.contains(&format!("`{setting} no`")), "{refusal:?}");
        assert!(refusal.hint.contains(&format!("SENTINEL CONFIG SET {setting} yes")), "{refusal:?}");
    }
    let with = |world: World, resolves: bool, announces: bool| {
        (0..3).fold(world, |world, number| {
            world.sentinel(number, |s| (s.resolves_hostnames, s.announces_hostnames) = (resolves, announces))
        })
    };
    let refusal = with(named(), true, false).refused();
    assert!(!refusal.reason.contains("resolve-hostnames") && refusal.reason.contains("announce-hostnames"));
    let world = with(named(), true, true);
    let plan = world.planned();
    assert_eq!(plan.monitor_command().shown(), "SENTINEL MONITOR mymaster redis-0.example 6379 2");
    assert!(plan.system.sentinels.iter().all(|sentinel| sentinel.knows_by_address.is_none()));
    // A Sentinel that has monitored the server by an address since before the server had a name goes on, and
    // this is reported.
    let fresh = World::new(2, 3);
    let plan = fresh.planned();
    let before = fresh.after(&plan);
    let mut observed = before.observed();
    observed.redis[0].endpoint = name();
    let Decision::Proceed(plan) = decide(&observed, &before.request) else { panic!("it goes on") };
    assert!(plan.is_empty());
    let known = plan.system.sentinels.iter().map(|sentinel| sentinel.knows_by_address.clone());
    assert_eq!(known.collect::<Vec<_>>(), vec![Some(redis_at(0)); 3]);
}

#[test]
fn a_replica_that_the_master_has_under_another_address_is_no_stranger() {
    let world = World::new(2, 3).redis(0, |state| {
        state.replicas =
            vec![Replica { endpoint: stranger(), online: true, confirmed: 1, silent_s: Some(0) }];
    });
    assert_eq!(world.planned().system.master.endpoint, redis_at(0));
}

// Credentials.

fn login(username: Option<&str>) -> Login {
    Login { username: username.map(str::to_owned), password: Secret::new("s3cret") }
}

fn with_logins(world: World, username: Option<&str>) -> World {
    world.request(|request| {
        request.replication_login = Some(login(username));
        request.sentinel_login = Some(login(username));
    })
}

#[test]
fn every_redis_and_every_sentinel_gets_its_login_before_all_else() {
    let plan = with_logins(World::new(2, 3), Some("ops")).planned();
    let commands: Vec<_> =
        plan.commands().into_iter().map(|(node, command)| (node, command.shown())).collect();
    assert_eq!(commands[0], (redis_at(0), "CONFIG SET masteruser ops".into()), "the master too");
    assert_eq!(commands[1], (redis_at(0), "CONFIG SET masterauth ***".into()));
    assert_eq!(commands[2].0, redis_at(1));
    let sets =
        commands.iter().filter(|(_, command)| command == "SENTINEL SET mymaster auth-user ops auth-pass ***");
    assert_eq!(sets.count(), 3);
    assert!(!format!("{plan:?} {plan} {}", plan.summary()).contains("s3cret"));
}

#[test]
fn options_and_login_are_one_command() {
    let world = with_logins(World::new(2, 1), None)
        .request(|request| request.options = BTreeMap::from([("parallel-syncs".into(), "2".into())]));
    let set = world.planned().set_command(&sentinel_at(0)).unwrap();
    assert_eq!(set.shown(), "SENTINEL SET mymaster parallel-syncs 2 auth-pass ***");
}

#[test]
fn a_login_that_is_there_is_not_set_again() {
    let world = with_logins(World::new(2, 3), None);
    let plan = world.planned();
    let after = (0..2).fold(world.after(&plan), |world, number| {
        world.redis(number, |state| state.replication_login = Some(Some(login(None))))
    });
    assert!(after.planned().is_empty(), "the Sentinels know replicas, so they have read the master");

    let blind = after.sentinel(1, |state| {
        state.monitored.as_mut().unwrap().master.fields.insert("num-slaves".into(), "0".into());
    });
    assert_eq!(blind.planned().authenticate, [sentinel_at(1)], "its run was cut off between MONITOR and SET");
    let changed = blind.redis(1, |state| state.replication_login = Some(Some(login(Some("old")))));
    assert_eq!(changed.planned().credentials, [redis_at(1)]);
}

#[test]
fn a_login_that_can_not_be_read_is_set_once() {
    let world = with_logins(World::new(2, 3), None).redis(1, |state| state.replication_login = None);
    let plan = world.planned();
    assert_eq!(plan.credentials.len(), 2);
    let after = world.after(&plan).redis(0, |state| state.replication_login = Some(Some(login(None))));
    assert!(after.planned().is_empty());
}

// Properties over generated worlds.

const MOST: usize = 7;

fn some_redis(number: usize) -> impl Strategy<Value = Result<RedisState, Unusable>> {
    let role = prop_oneof![
        6 => Just(None),
        4 => (0..MOST).prop_map(|of| Some(redis_at(of))),
        1 => Just(Some(stranger())),
    ];
    let history = (0..3usize, 0..4i64, 0..3usize, -1..4i64);
    let run_id = prop_oneof![30 => Just(number), 1 => 0..MOST];
    let state = (role, 0..3u64, history, run_id, prop::bool::weighted(0.03)).prop_map(
        move |(of, keys, (id, offset, previous, previous_until), run_id, failing_over)| {
            let mut state = redis(number);
            state.role = of.map_or(Role::Master, |of| Role::Replica { of, link_up: true });
            state.data.keys = keys;
            state.history = History {
                id: format!("history-{id}"),
                offset,
                previous_id: format!("history-{previous}"),
                previous_until,
            };
            state.run_id = format!("run-{run_id}");
            state.failing_over = failing_over;
            Ok(state)
        },
    );
    prop_oneof![
        20 => state,
        1 => Just(Err(Unusable::Unreachable("refused".into()))),
        1 => Just(Err(Unusable::Loading)),
        1 => prop_oneof![Just(Unusable::ClusterMode), Just(Unusable::NotRedis("garbage".into()))].prop_map(Err),
    ]
}

fn some_sentinel(number: usize) -> impl Strategy<Value = Result<SentinelState, Unusable>> {
    let master = prop_oneof![10 => (0..2usize).prop_map(redis_at), 1 => Just(stranger())];
    let flags = prop_oneof![
        20 => Just("master"),
        1 => Just("master,failover_in_progress"),
        1 => Just("s_down,o_down,master")
    ];
    let monitored = (master, 0..2u64, flags, 0..3usize)
        .prop_map(|(master, epoch, flags, replicas)| monitoring(master, epoch, flags, replicas));
    let my_id = prop_oneof![40 => Just(number), 1 => 0..MOST];
    let state = (prop::option::weighted(0.3, monitored), my_id).prop_map(move |(monitored, my_id)| {
        let mut state = sentinel(number);
        state.my_id = format!("id-{}", 9 - my_id);
        state.monitored = monitored;
        Ok(state)
    });
    prop_oneof![30 => state, 1 => Just(Err(Unusable::Unreachable("refused".into())))]
}

prop_compose! {
    fn some_world()(
        redis_servers in 1..=MOST,
        sentinels in 1..=MOST,
    )(
        redis in (0..redis_servers).map(some_redis).collect::<Vec<_>>(),
        sentinels in (0..sentinels).map(some_sentinel).collect::<Vec<_>>(),
        expected_redis in 1..=redis_servers as u16,
        expected_sentinels in 1..=sentinels as u16,
        master in prop::option::weighted(0.2, (0..MOST).prop_map(redis_at)),
        discard_data in any::<bool>(),
        quorum_given in any::<bool>(),
    ) -> World {
        let mut world = World::new(0, 0);
        world.redis = redis;
        world.sentinels = sentinels;
        let quorum = expected_sentinels / 2 + 1;
        let expected = Expected { redis: expected_redis, sentinels: expected_sentinels, quorum };
        // The flags allow `--discard-data` only with `--master`.
        let discard_data = discard_data && master.is_some();
        world.request = Request { expected, master, discard_data, quorum_given, ..world.request };
        world
    }
}

impl fmt::Debug for World {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("World")
            .field("redis", &self.redis)
            .field("sentinels", &self.sentinels)
            .field("request", &self.request)
            .finish()
    }
}

/// How many worlds are generated.
fn worlds() -> u32 {
    if std::env::var_os("SWEEP").is_some_and(|value| value == "all") { 100_000 } else { 10_000 }
}

#[test]
fn no_plan_does_harm_in_any_world() {
    let worlds = worlds();
    let config = ProptestConfig { cases: worlds, failure_persistence: None, ..ProptestConfig::default() };
    let counts = std::cell::Cell::new((0, 0, 0));
    let ran = TestRunner::new(config).run(&some_world(), |world| {
        let (planned, waited, refused) = counts.get();
        match world.decide() {
            Decision::Proceed(_) => counts.set((planned + 1, waited, refused)),
            Decision::Wait(_) => counts.set((planned, waited + 1, refused)),
            Decision::Refuse(_) => counts.set((planned, waited, refused + 1)),
        }
        does_no_harm(world)
    });
    if let Err(error) = ran {
        panic!("{error}");
    }
    let (planned, waited, refused) = counts.get();
    // Directly to standard output, because the test runner captures what passing tests print.
    let line = format!("worlds tried: {worlds} ({planned} planned, {waited} waited, {refused} refused)");
    writeln!(std::io::stdout(), "{line}").unwrap();
    // Every decision has to occur often enough for this test to be meaningful.
    assert!(
        [planned, waited, refused].iter().all(|&count| count > worlds / 20),
        "{planned} {waited} {refused}"
    );
}

fn does_no_harm(world: World) -> Result<(), TestCaseError> {
    match world.decide() {
        Decision::Refuse(refusal) => {
            let named = (0..MOST).any(|number| {
                refusal.reason.contains(&redis_at(number).to_string())
                    || refusal.reason.contains(&sentinel_at(number).to_string())
            });
            prop_assert!(named, "names no node: {refusal:?}");
            prop_assert!(!refusal.hint.is_empty(), "shows no way out: {refusal:?}");
        }
        Decision::Wait(wait) => {
            prop_assert!(!wait.to_string().is_empty());
        }
        Decision::Proceed(plan) => {
            let state = |endpoint: &Endpoint| {
                let number = (0..world.redis.len()).find(|&number| redis_at(number) == *endpoint);
                world.redis[number.expect("registered")].as_ref().expect("usable")
            };
            let master = state(&plan.system.master.endpoint);
            for attach in &plan.attach {
                prop_assert!(attach.node != plan.system.master.endpoint, "a master of itself");
                let node = state(&attach.node);
                // The master has the server's data, or the server got its data from the master, or the
                // operator allowed the loss.
                let mut follows = node;
                let mut from_master = false;
                for _ in 0..MOST {
                    let Role::Replica { of, .. } = &follows.role else { break };
                    if *of == plan.system.master.endpoint {
                        from_master = true;
                        break;
                    }
                    match world.redis.iter().flatten().find(|state| state.is_at(of)) {
                        Some(next) => follows = next,
                        None => break,
                    }
                }
                let said_so = world.request.discard_data
                    && world.request.master.as_ref() == Some(&plan.system.master.endpoint);
                prop_assert!(
                    node.data.is_empty() || master.has_all_data_of(node) || from_master || said_so,
                    "{} loses data",
                    attach.node
                );
            }
            for state in world.sentinels.iter().flatten() {
                if let Some(monitored) = &state.monitored {
                    prop_assert_eq!(
                        &monitored.master.endpoint,
                        &plan.system.master.announced,
                        "contradicts a Sentinel"
                    );
                }
            }
            prop_assert!(plan.system.replicas.len() + 1 >= world.request.expected.redis.into());
            prop_assert!(plan.system.sentinels.len() >= world.request.expected.sentinels.into());
            let rest = world.after(&plan).decide();
            let Decision::Proceed(rest) = rest else { panic!("after the plan: {rest:?}") };
            prop_assert!(rest.is_empty(), "left to do after the plan: {rest:?}");
        }
    }
    Ok(())
}
