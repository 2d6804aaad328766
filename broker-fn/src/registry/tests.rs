use std::time::UNIX_EPOCH;

use futures::FutureExt;

use super::memory::MemoryStore;
use super::*;

fn group() -> Group {
    "mymaster".parse().unwrap()
}

fn at(seconds: u64) -> Timestamp {
    Timestamp::from(UNIX_EPOCH + Duration::from_secs(1_800_000_000 + seconds))
}

/// The store in memory never waits.
fn now<T>(future: impl Future<Output = T>) -> T {
    future.now_or_never().expect("an operation in memory waited")
}

struct Fixture {
    store: MemoryStore,
    registry: Registry<MemoryStore>,
}

impl Fixture {
    fn new() -> Self {
        let store = MemoryStore::default();
        Self { registry: Registry::new(store.clone()), store }
    }

    /// Another instance of the component, with the same store.
    fn other_instance(&self) -> Self {
        Self { registry: Registry::new(self.store.clone()), store: self.store.clone() }
    }

    fn register(&self, addr: &str, seconds: u64) -> Registered {
        self.register_as(addr, None, seconds)
    }

    fn register_as(&self, addr: &str, run_id: Option<&str>, seconds: u64) -> Registered {
        let node = (addr.parse().unwrap(), run_id.map(|id| id.parse().unwrap()));
        now(self.registry.register(&group(), Kind::Redis, node, at(seconds), 3)).unwrap()
    }

    fn forget(&self, addr: &str) {
        now(self.registry.forget(&group(), Kind::Redis, &addr.parse().unwrap())).unwrap();
    }

    fn members(&self, seconds: u64) -> Members {
        now(self.registry.members(&group(), at(seconds))).unwrap()
    }

    fn redis(&self, seconds: u64) -> Vec<String> {
        self.members(seconds).redis.iter().map(|registration| registration.addr.to_string()).collect()
    }

    fn listings(&self) -> usize {
        self.store.take_operations().iter().filter(|operation| *operation == "get_keys").count()
    }
}

#[test]
fn the_order_is_the_order_of_registering_and_then_of_address() {
    let broker = Fixture::new();
    for (addr, seconds) in [("10.0.0.3:1", 1), ("10.0.0.2:1", 2), ("10.0.0.1:1", 2)] {
        assert!(matches!(broker.register(addr, seconds), Registered::First(_)));
    }
    assert_eq!(broker.redis(3), ["10.0.0.3:1", "10.0.0.1:1", "10.0.0.2:1"]);
}

#[test]
fn registering_again_keeps_the_place_and_refreshes_the_rest() {
    let broker = Fixture::new();
    let _ = broker.register_as("10.0.0.1:1", Some("old"), 1);
    let _ = broker.register("10.0.0.2:1", 2);
    let Registered::Again(again) = broker.register("10.0.0.1:1", 3) else { panic!("it was there") };
    assert_eq!((again.registered_at, again.last_seen), (at(1), at(3)));
    assert_eq!(again.run_id.unwrap().as_str(), "old", "a request that names no run_id does not take it away");
    let Registered::Again(again) = broker.register_as("10.0.0.1:1", Some("new"), 4) else {
        panic!("it was there")
    };
    assert_eq!(again.run_id.unwrap().as_str(), "new");
    assert_eq!(broker.redis(5), ["10.0.0.1:1", "10.0.0.2:1"]);
}

#[test]
fn registering_lists_nothing_and_a_repeated_read_is_two_gets() {
    let broker = Fixture::new();
    let _ = broker.register("10.0.0.1:1", 1);
    let _ = broker.register("10.0.0.1:1", 2);
    assert_eq!(broker.listings(), 0);
    broker.members(3);
    assert_eq!(broker.listings(), 1);
    let gets = ["get rev:mymaster", "get snap:mymaster"];
    broker.members(4);
    assert_eq!(broker.store.take_operations(), gets);
    // What an instance has used, it need not get again for as long as it is of the revision.
    broker.members(5);
    assert_eq!(broker.store.take_operations(), gets[..1]);
    broker.other_instance().members(5);
    assert_eq!(broker.store.take_operations(), gets);
}

#[test]
fn what_an_instance_has_used_before_a_change_does_not_count_after_it() {
    let (here, group) = (Fixture::new(), group());
    let there = here.other_instance();
    let read = |seconds| {
        // The first may list, the second gets the snapshot, and the third gets the revision alone.
        let [first, second, third] = [0, 1, 2].map(|_| here.redis(seconds));
        assert!(first == second && second == third, "{first:?} {second:?} {third:?}");
        first
    };
    let _ = there.register("10.0.0.1:1", 1);
    assert_eq!(read(2), ["10.0.0.1:1"]);
    let _ = there.register("10.0.0.2:1", 3);
    assert_eq!(read(4), ["10.0.0.1:1", "10.0.0.2:1"]);
    there.forget("10.0.0.1:1");
    assert_eq!(read(5), ["10.0.0.2:1"]);
    now(there.registry.forget_group(&group)).unwrap();
    assert!(read(6).is_empty());
    // It is no fresher for having been used.
    let _ = there.register("10.0.0.1:1", 100);
    assert_eq!(read(110), ["10.0.0.1:1"]);
    let unseen = there.store.state().entries.keys().find(|key| key.starts_with("reg:")).cloned().unwrap();
    there.store.state().entries.remove(&unseen);
    assert_eq!(read(139), ["10.0.0.1:1"]);
    assert!(read(140).is_empty());
    // Nor does it count where the clock is behind the one that it was built by.
    let _ = there.register("10.0.0.1:1", 200);
    assert_eq!(read(210), ["10.0.0.1:1"]);
    here.store.take_operations();
    read(209);
    assert!(here.listings() > 0);
}

#[test]
fn what_an_instance_has_used_is_of_one_group() {
    let broker = Fixture::new();
    let _ = broker.register("10.0.0.1:1", 1);
    assert_eq!([2, 2].map(|seconds| broker.redis(seconds)), [["10.0.0.1:1"], ["10.0.0.1:1"]]);
    // No two groups ever have the same revision. If they had, it would do no harm.
    let entry = |key: &str| broker.store.state().entries[key].clone();
    let revision = entry("rev:mymaster");
    broker.store.state().entries.insert("rev:other".into(), revision);
    let other = "other".parse().unwrap();
    assert_eq!(now(broker.registry.members(&other, at(3))).unwrap(), Members::default());
}

#[test]
fn reading_an_unknown_group_lists_nothing() {
    let broker = Fixture::new();
    assert_eq!(broker.members(1), Members::default());
    assert_eq!(broker.listings(), 0);
}

#[test]
fn registering_again_later_leaves_the_snapshot_alone_unless_the_run_id_changes() {
    let broker = Fixture::new();
    let _ = broker.register_as("10.0.0.1:1", Some("old"), 0);
    broker.members(100);
    broker.store.take_operations();
    let _ = broker.register_as("10.0.0.1:1", Some("old"), 101);
    broker.members(101);
    assert_eq!(broker.listings(), 0);
    let _ = broker.register_as("10.0.0.1:1", Some("new"), 102);
    assert_eq!(broker.members(102).redis[0].run_id.as_ref().unwrap().as_str(), "new");
}

#[test]
fn registering_again_after_a_failure_between_the_two_writes_shows_at_once() {
    let broker = Fixture::new();
    let _ = broker.register("10.0.0.1:1", 0);
    broker.members(1);
    // The third get, the set of the key, and then the set of the revision, which fails.
    broker.store.take_operations();
    broker.store.state().fails = Some(|place, _| place == 3);
    let node = ("10.0.0.2:1".parse().unwrap(), None);
    now(broker.registry.register(&group(), Kind::Redis, node, at(2), 3)).unwrap_err();
    broker.store.state().fails = None;
    assert!(matches!(broker.register("10.0.0.2:1", 3), Registered::Again(_)));
    assert_eq!(broker.redis(3), ["10.0.0.1:1", "10.0.0.2:1"]);
}

#[test]
fn forgetting_again_after_a_failure_between_the_two_writes_shows_at_once() {
    let broker = Fixture::new();
    let _ = broker.register("10.0.0.1:1", 0);
    broker.members(1);
    broker.store.take_operations();
    broker.store.state().fails = Some(|place, _| place == 3);
    now(broker.registry.forget(&group(), Kind::Redis, &"10.0.0.1:1".parse().unwrap())).unwrap_err();
    broker.store.state().fails = None;
    broker.forget("10.0.0.1:1");
    assert!(broker.redis(2).is_empty());
}

/// A store whose every operation lets all others that wait go first: those that begin together stay in step.
struct InStep(MemoryStore);

impl Store for InStep {
    async fn get(&self, key: &str) -> Result<Option<Vec<u8>>, StoreError> {
        tokio::task::yield_now().await;
        self.0.get(key).await
    }

    async fn set(&self, key: &str, value: Vec<u8>) -> Result<(), StoreError> {
        tokio::task::yield_now().await;
        self.0.set(key, value).await
    }

    async fn delete(&self, key: &str) -> Result<(), StoreError> {
        tokio::task::yield_now().await;
        self.0.delete(key).await
    }

    async fn get_keys(&self) -> Result<Vec<String>, StoreError> {
        tokio::task::yield_now().await;
        self.0.get_keys().await
    }
}

/// Registers so many nodes at once, all in step, and says how many of them were taken.
fn register_in_step(store: &MemoryStore, first: u8, nodes: u8, max: usize) -> usize {
    let registry = Registry::new(InStep(store.clone()));
    let (group, kind) = (group(), Kind::Redis);
    let all = (first..first + nodes).map(|host| {
        let node = (format!("10.0.0.{host}:1").parse().unwrap(), None);
        registry.register(&group, kind, node, at(1), max)
    });
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let registered = runtime.block_on(join_all(all));
    registered.into_iter().filter(|registered| matches!(registered, Ok(Registered::First(_)))).count()
}

#[test]
fn those_that_register_at_once_pass_the_bound_once_and_not_time_and_again() {
    let broker = Fixture::new();
    assert_eq!(register_in_step(&broker.store, 0, 64, 8), 64, "none of them can know of another");
    assert_eq!(register_in_step(&broker.store, 64, 64, 8), 0);
    assert_eq!(broker.redis(2).len(), 64);
}

#[test]
fn the_nodes_of_one_system_come_up_at_once_without_a_listing() {
    for nodes in 1..=12 {
        let broker = Fixture::new();
        assert_eq!(register_in_step(&broker.store, 0, nodes, 64), usize::from(nodes));
        assert_eq!(register_in_step(&broker.store, 100, 1, 64), 1);
        assert_eq!(broker.listings(), 0, "{nodes}");
    }
}

#[test]
fn a_snapshot_expires_and_one_from_the_future_does_not_count() {
    let broker = Fixture::new();
    let _ = broker.register("10.0.0.1:1", 0);
    broker.members(10);
    broker.store.take_operations();
    for (seconds, listings) in [(10, 0), (39, 0), (40, 1), (39, 1)] {
        broker.other_instance().members(seconds);
        assert_eq!(broker.listings(), listings, "at {seconds}");
    }
}

#[test]
fn an_unreadable_snapshot_is_built_anew_and_other_unreadable_values_are_an_error_that_names_the_key() {
    let broker = Fixture::new();
    let _ = broker.register("10.0.0.1:1", 0);
    broker.members(1);
    let put = |key: &str, value: &[u8]| broker.store.state().entries.insert(key.to_owned(), value.to_vec());
    put("snap:mymaster", b"\xff{");
    assert_eq!(broker.redis(2), ["10.0.0.1:1"]);

    let key = registration_key(&group(), Kind::Redis, &"10.0.0.1:1".parse().unwrap());
    for broken in [key.as_str(), "out:mymaster", "rev:mymaster"] {
        let good = put(broken, b"junk");
        broker.store.state().entries.remove("snap:mymaster");
        let error = now(broker.registry.members(&group(), at(3))).unwrap_err();
        assert!(error.to_string().contains(&format!("`{broken}`")), "{error}");
        match good {
            Some(good) => put(broken, &good),
            None => broker.store.state().entries.remove(broken),
        };
    }
    put(&key, b"junk");
    put("rev:mymaster", b"junk");
    now(broker.registry.forget_group(&group())).unwrap();
    assert!(broker.redis(4).is_empty(), "what can't be read can still be forgotten");
}

#[test]
fn a_key_that_vanishes_while_it_is_listed_is_skipped() {
    /// A store whose listing still shows a key that is gone.
    struct Stale(MemoryStore);
    impl Store for Stale {
        async fn get(&self, key: &str) -> Result<Option<Vec<u8>>, StoreError> {
            self.0.get(key).await
        }
        async fn set(&self, key: &str, value: Vec<u8>) -> Result<(), StoreError> {
            self.0.set(key, value).await
        }
        async fn delete(&self, key: &str) -> Result<(), StoreError> {
            self.0.delete(key).await
        }
        async fn get_keys(&self) -> Result<Vec<String>, StoreError> {
            let mut keys = self.0.get_keys().await?;
            keys.push("reg:mymaster:redis:00000000000000000000000000000000".into());
            Ok(keys)
        }
    }
    let broker = Fixture::new();
    let _ = broker.register("10.0.0.1:1", 0);
    let registry = Registry::new(Stale(broker.store.clone()));
    assert_eq!(now(registry.members(&group(), at(1))).unwrap().redis.len(), 1);
}

#[test]
fn a_read_survives_a_snapshot_that_cannot_be_stored() {
    let broker = Fixture::new();
    let _ = broker.register("10.0.0.1:1", 0);
    broker.store.take_operations();
    // rev, snap, get_keys and the registration come before.
    broker.store.state().fails = Some(|place, _| place == 4);
    assert_eq!(broker.redis(1), ["10.0.0.1:1"]);
    let operations = broker.store.take_operations();
    assert!(
        operations.ends_with(&["set snap:mymaster".into(), "delete list:mymaster".into()]),
        "{operations:?}"
    );
}

#[test]
fn the_bound_is_exact_when_requests_come_one_at_a_time() {
    let broker = Fixture::new();
    for addr in ["10.0.0.1:1", "10.0.0.2:1", "10.0.0.3:1"] {
        assert!(matches!(broker.register(addr, 1), Registered::First(_)));
    }
    assert_eq!(broker.register("10.0.0.4:1", 2), Registered::Full);
    assert!(matches!(broker.register("10.0.0.3:1", 3), Registered::Again(_)), "who is in may register again");
    broker.forget("10.0.0.1:1");
    assert!(matches!(broker.register("10.0.0.4:1", 4), Registered::First(_)));
    assert_eq!(broker.register("10.0.0.5:1", 5), Registered::Full);
    let sentinel = ("10.0.0.5:1".parse().unwrap(), None);
    let registered = now(broker.registry.register(&group(), Kind::Sentinel, sentinel, at(6), 3)).unwrap();
    assert!(matches!(registered, Registered::First(_)), "each kind has a bound of its own");
}

#[test]
fn a_count_that_is_too_high_refuses_nobody() {
    let broker = Fixture::new();
    now(broker.registry.renew(&group(), Counts { redis: 99, sentinels: 0 })).unwrap();
    assert!(matches!(broker.register("10.0.0.1:1", 1), Registered::First(_)));
    let revision = now(broker.registry.revision(&group())).unwrap().unwrap();
    assert_eq!(revision.counts.redis, 1, "counting goes on from what is there");
}

#[test]
fn forgetting_what_was_never_there_stores_nothing() {
    let broker = Fixture::new();
    broker.forget("10.0.0.1:1");
    now(broker.registry.forget_group(&group())).unwrap();
    assert!(broker.store.state().entries.is_empty());
}

#[test]
fn forgetting_a_group_leaves_other_groups_and_other_keys_alone() {
    let broker = Fixture::new();
    let _ = broker.register("10.0.0.1:1", 1);
    let outcome = Outcome {
        verified: false,
        master: None,
        at: at(1),
        reason: Some("because".into()),
        restore: Default::default(),
        expected: None,
    };
    now(broker.registry.put_outcome(&group(), &outcome, None)).unwrap();
    assert_eq!(broker.members(2).outcome, Some(outcome));
    let longer = "mymaster2".parse().unwrap();
    let node = ("10.0.0.1:1".parse().unwrap(), None);
    let _ = now(broker.registry.register(&longer, Kind::Redis, node, at(1), 3)).unwrap();
    broker.store.state().entries.insert("of somebody else".into(), vec![]);

    now(broker.registry.forget_group(&group())).unwrap();
    assert_eq!(broker.members(3), Members::default());
    assert_eq!(now(broker.registry.members(&longer, at(3))).unwrap().redis.len(), 1);
    assert!(broker.store.state().entries.contains_key("of somebody else"));
}

#[test]
fn groups_are_counted_from_the_names_of_keys_and_sorted() {
    let broker = Fixture::new();
    for (group, kind, addr) in [
        ("b", Kind::Redis, "10.0.0.1:1"),
        ("b", Kind::Redis, "10.0.0.2:1"),
        ("b", Kind::Sentinel, "10.0.0.1:2"),
        ("a", Kind::Sentinel, "10.0.0.1:2"),
    ] {
        let node = (addr.parse().unwrap(), None);
        let _ = now(broker.registry.register(&group.parse().unwrap(), kind, node, at(1), 3)).unwrap();
    }
    for foreign in ["reg:", "reg:x", "reg:x:other:00", "reg:no group:redis:00", "rev:empty"] {
        broker.store.state().entries.insert(foreign.into(), b"junk".to_vec());
    }
    broker.store.take_operations();
    let groups = now(broker.registry.groups()).unwrap();
    let groups: Vec<_> =
        groups.iter().map(|(group, counts)| (group.as_str(), counts.redis, counts.sentinels)).collect();
    assert_eq!(groups, [("a", 0, 1), ("b", 2, 1)]);
    assert_eq!(broker.store.take_operations(), ["get_keys"]);
}

#[test]
fn thousands_of_groups_in_one_store_do_not_show_in_each_other() {
    const GROUPS: usize = 3_000;
    let broker = Fixture::new();
    let group = |number: usize| -> Group { format!("group-{number}").parse().unwrap() };
    let register = |number: usize, host: usize, seconds| {
        let node = (format!("10.{host}.{}.{}:1", number / 250, number % 250).parse().unwrap(), None);
        now(broker.registry.register(&group(number), Kind::Redis, node, at(seconds), 2)).unwrap()
    };
    let redis = |number: usize, seconds| -> Vec<String> {
        let members = now(broker.registry.members(&group(number), at(seconds))).unwrap();
        members.redis.iter().map(|registration| registration.addr.to_string()).collect()
    };
    for number in 0..GROUPS {
        for host in [1, 2] {
            assert!(matches!(register(number, host, 1), Registered::First(_)));
        }
    }
    assert_eq!(now(broker.registry.groups()).unwrap().len(), GROUPS);
    for number in (0..GROUPS).step_by(100) {
        let own = [1, 2].map(|host| format!("10.{host}.{}.{}:1", number / 250, number % 250));
        assert_eq!(redis(number, 2), own);
        assert_eq!(register(number, 3, 3), Registered::Full, "each group has a bound of its own");
        // What its neighbours do costs it nothing, be it a new registration or that all are forgotten.
        now(broker.registry.forget_group(&group(number + 1))).unwrap();
        assert!(matches!(register(number + 1, 4, 4), Registered::First(_)));
        broker.store.take_operations();
        assert_eq!(redis(number, 5), own);
        let gets = [format!("get rev:group-{number}"), format!("get snap:group-{number}")];
        assert_eq!(broker.store.take_operations(), gets[..1]);
        assert_eq!(
            now(broker.other_instance().registry.members(&group(number), at(5))).unwrap().redis.len(),
            2
        );
        assert_eq!(broker.store.take_operations(), gets);
    }
    assert_eq!(now(broker.registry.groups()).unwrap().len(), GROUPS);
}

#[test]
fn the_longest_names_fit_every_store_of_spin() {
    let broker = Fixture::new();
    let group = "g".repeat(64).parse().unwrap();
    let host = [&"a".repeat(63); 4].map(String::as_str).join(".")[..253].to_owned();
    let node = (format!("{host}:65535").parse().unwrap(), None);
    let _ = now(broker.registry.register(&group, Kind::Sentinel, node, at(1), 3)).unwrap();
    assert_eq!(now(broker.registry.members(&group, at(2))).unwrap().sentinels.len(), 1);
}
