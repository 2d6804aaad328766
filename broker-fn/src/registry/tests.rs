use std::time::UNIX_EPOCH;

use futures::FutureExt;

use super::bounds::most_in_a_shard;
use super::keys::SHARDS;
use super::memory::{Clock, MemoryStore};
use super::*;

fn group() -> Group {
    "mymaster".parse().unwrap()
}

fn at(seconds: u64) -> Timestamp {
    Timestamp::from(UNIX_EPOCH + Duration::from_secs(1_800_000_000 + seconds))
}

fn node(addr: &str) -> Node {
    Node::new(addr.parse().unwrap())
}

fn up_to(registrations: usize) -> Bounds {
    Bounds { registrations, groups: None }
}

fn not_verified() -> Outcome {
    Outcome {
        verified: false,
        master: None,
        at: at(1),
        reason: Some("because".into()),
        restore: Default::default(),
        expected: None,
    }
}

/// The key of a shard's revision or snapshot.
fn key(prefix: &str, group: &Group) -> String {
    format!("{prefix}:{}", Shard::of(group))
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

    /// Another instance of the component with the same store.
    fn other_instance(&self) -> Self {
        Self { registry: Registry::new(self.store.clone()), store: self.store.clone() }
    }

    /// Sets the clock to this second.
    fn at(&self, seconds: u64) -> Timestamp {
        self.store.state().clock = Some(Clock::At(at(seconds)));
        at(seconds)
    }

    fn register(&self, addr: &str, seconds: u64) -> Registered {
        self.register_as(addr, None, seconds)
    }

    fn register_as(&self, addr: &str, run_id: Option<&str>, seconds: u64) -> Registered {
        let node = Node { run_id: run_id.map(|id| id.parse().unwrap()), ..node(addr) };
        now(self.registry.register(&group(), Kind::Redis, node, self.at(seconds), up_to(3))).unwrap()
    }

    /// Registers with a `ttl` of this many seconds.
    fn register_for(&self, addr: &str, ttl: u64, seconds: u64) -> Registered {
        let node = Node { ttl: Some(ttl.try_into().unwrap()), ..node(addr) };
        now(self.registry.register(&group(), Kind::Redis, node, self.at(seconds), up_to(3))).unwrap()
    }

    /// The registration of one node.
    fn registration(&self, addr: &str, seconds: u64) -> Option<Registration> {
        now(self.registry.registration(&group(), Kind::Redis, &addr.parse().unwrap(), self.at(seconds)))
            .unwrap()
    }

    /// Registers a server in a group, with this bound for groups.
    fn register_in(&self, group: &str, seconds: u64, max_groups: usize) -> Registered {
        let bounds = Bounds { registrations: 3, groups: Some(max_groups) };
        let group = group.parse().unwrap();
        now(self.registry.register(&group, Kind::Redis, node("10.0.0.1:1"), self.at(seconds), bounds))
            .unwrap()
    }

    fn groups(
        &self,
        after: Option<&str>,
        page: Option<usize>,
        seconds: u64,
    ) -> (Vec<(String, GroupCounts)>, bool) {
        let after = after.map(|name| name.parse().unwrap());
        let (groups, has_more) = now(self.registry.groups(after.as_ref(), page, self.at(seconds))).unwrap();
        (groups.into_iter().map(|(group, counts)| (group.to_string(), counts)).collect(), has_more)
    }

    fn deregister(&self, addr: &str) {
        now(self.registry.deregister(&group(), Kind::Redis, &addr.parse().unwrap())).unwrap();
    }

    fn members(&self, seconds: u64) -> Members {
        now(self.registry.members(&group(), self.at(seconds))).unwrap()
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
fn registering_lists_nothing_and_a_repeated_read_is_one_get_or_two() {
    let broker = Fixture::new();
    let _ = broker.register("10.0.0.1:1", 1);
    let _ = broker.register("10.0.0.1:1", 2);
    assert_eq!(broker.listings(), 0);
    broker.members(13);
    assert_eq!(broker.listings(), 1);
    let gets = ["rev", "snap"].map(|prefix| format!("get {}", key(prefix, &group())));
    // As long as the revision is the same, an instance does not read a snapshot again that it has built or
    // used.
    let other = broker.other_instance();
    for (instance, expected) in [(&broker, &gets[..1]), (&other, &gets[..]), (&other, &gets[..1])] {
        instance.members(14);
        assert_eq!(broker.store.take_operations(), expected);
    }
}

#[test]
fn what_is_listed_counts_as_long_as_the_revision_has_stood_by_then() {
    // This instance lists at these seconds. Other instances see no snapshot before the revision has settled.
    let broker = Fixture::new();
    let _ = broker.register("10.0.0.1:1", 100);
    let mut listed = vec![];
    for seconds in 100..=200 {
        broker.members(seconds);
        if broker.listings() > 0 {
            listed.push(seconds);
        }
    }
    assert_eq!(listed, [100, 101, 102, 104, 108, 116, 132, 162, 192]);
    for (seconds, is_stored) in [(104, false), (105, true)] {
        let broker = Fixture::new();
        let _ = broker.register("10.0.0.1:1", 100);
        broker.members(seconds);
        broker.store.take_operations();
        broker.members(seconds);
        assert_eq!(broker.listings(), 0);
        broker.other_instance().members(seconds);
        assert_eq!(broker.listings() == 0, is_stored, "at {seconds}");
    }
}

#[test]
fn a_key_behind_its_revision_shows_within_as_much_time_again() {
    for lag in [1, 2, 3, 7, 20, 50] {
        let broker = Fixture::new();
        let _ = broker.register("10.0.0.1:1", 100);
        let _ = broker.register("10.0.0.2:1", 200);
        let key = registration_key(&group(), Kind::Redis, &"10.0.0.2:1".parse().unwrap());
        let value = broker.store.state().entries.remove(&key).unwrap();
        let shown = (200..300).find(|seconds| {
            if *seconds == 200 + lag {
                broker.store.state().entries.insert(key.clone(), value.clone());
            }
            let shows = broker.redis(*seconds).len() == 2;
            // No other instance reads the snapshot without the key, unless the key lags by more than the
            // settling time.
            if *seconds >= 200 + lag && lag < SETTLED_AFTER.as_secs() {
                assert_eq!(broker.other_instance().redis(*seconds).len(), 2, "at {seconds} of {lag}");
            }
            shows
        });
        assert!((lag..=lag + lag.min(30)).contains(&(shown.unwrap() - 200)), "{lag} {shown:?}");
    }
}

#[test]
fn in_a_large_store_instances_share_what_one_has_listed_at_once() {
    let broker = Fixture::new();
    let _ = broker.register("10.0.0.1:1", 0);
    // The store was small when this instance listed it.
    broker.members(0);
    let _ = broker.register_as("10.0.0.1:1", Some("run"), 0);
    assert_eq!(broker.listings(), 1);
    for number in 0..LARGE_STORE {
        broker.store.state().entries.insert(format!("other:{number}"), vec![]);
    }
    // No instance knows yet how large the store is.
    assert_eq!(broker.redis(1), ["10.0.0.1:1"]);
    assert_eq!(broker.listings(), 1);
    for seconds in [2, 3] {
        let _ = broker.register(&format!("10.0.0.{seconds}:1"), seconds);
        for _ in 0..3 {
            assert_eq!(broker.other_instance().redis(seconds).len(), usize::try_from(seconds).unwrap());
            assert_eq!(broker.redis(seconds).len(), usize::try_from(seconds).unwrap());
        }
        assert_eq!(broker.listings(), 1, "at {seconds}");
    }
}

#[test]
fn a_revision_from_a_clock_that_is_wrong_is_an_old_one() {
    for (ahead, is_stored) in [(3, false), (3600, true)] {
        let broker = Fixture::new();
        let _ = broker.register("10.0.0.1:1", 100 + ahead);
        assert_eq!(broker.redis(100), ["10.0.0.1:1"]);
        broker.store.take_operations();
        broker.other_instance().members(100);
        assert_eq!(broker.listings() == 0, is_stored);
    }
}

#[test]
fn a_revision_that_does_not_say_when_it_was_set_is_an_old_one() {
    let broker = Fixture::new();
    let _ = broker.register("10.0.0.1:1", 100);
    let key = key("rev", &group());
    let mut revision: serde_json::Value =
        serde_json::from_slice(&broker.store.state().entries[&key]).unwrap();
    revision.as_object_mut().unwrap().remove("set_at").unwrap();
    broker.store.state().entries.insert(key, serde_json::to_vec(&revision).unwrap());
    assert_eq!(broker.redis(100), ["10.0.0.1:1"]);
    broker.store.take_operations();
    broker.other_instance().members(129);
    assert_eq!(broker.listings(), 0);
}

#[test]
fn what_an_instance_has_used_before_a_change_does_not_count_after_it() {
    let (here, group) = (Fixture::new(), group());
    let there = here.other_instance();
    let read = |seconds| {
        // The first read may list, the second gets the snapshot, and the third gets only the revision.
        let [first, second, third] = [0, 1, 2].map(|_| here.redis(seconds));
        assert!(first == second && second == third, "{first:?} {second:?} {third:?}");
        first
    };
    let _ = there.register("10.0.0.1:1", 1);
    assert_eq!(read(2), ["10.0.0.1:1"]);
    let _ = there.register("10.0.0.2:1", 3);
    assert_eq!(read(4), ["10.0.0.1:1", "10.0.0.2:1"]);
    there.deregister("10.0.0.1:1");
    assert_eq!(read(5), ["10.0.0.2:1"]);
    now(there.registry.delete_group(&group)).unwrap();
    assert!(read(6).is_empty());
    // The use of a snapshot does not extend its life.
    let _ = there.register("10.0.0.1:1", 70);
    assert_eq!(read(110), ["10.0.0.1:1"]);
    let unseen = there.store.state().entries.keys().find(|key| key.starts_with("reg:")).cloned().unwrap();
    there.store.state().entries.remove(&unseen);
    assert_eq!(read(139), ["10.0.0.1:1"]);
    assert!(read(140).is_empty());
    // A snapshot is also invalid if this clock is behind the clock with which the snapshot was built.
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
    // Two shards never have the same revision, but even then the rosters are right.
    let other = "other".parse().unwrap();
    let revision = broker.store.state().entries[&key("rev", &group())].clone();
    broker.store.state().entries.insert(key("rev", &other), revision);
    assert_eq!(now(broker.registry.members(&other, at(3))).unwrap(), Members::default());
}

#[test]
fn reading_an_unknown_group_lists_nothing() {
    let broker = Fixture::new();
    assert_eq!(broker.members(1), Members::default());
    assert_eq!(broker.listings(), 0);
}

#[test]
fn registering_again_keeps_the_snapshot_unless_the_run_id_changes() {
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
fn registering_again_after_a_half_failed_write_shows_at_once() {
    let broker = Fixture::new();
    let _ = broker.register("10.0.0.1:1", 0);
    broker.members(1);
    // Two gets and the set of the key come first. Then the set of the revision fails.
    broker.store.take_operations();
    broker.store.state().fails = Some(|place, _| place == 3);
    now(broker.registry.register(&group(), Kind::Redis, node("10.0.0.2:1"), at(2), up_to(3))).unwrap_err();
    broker.store.state().fails = None;
    assert!(matches!(broker.register("10.0.0.2:1", 3), Registered::Again(_)));
    assert_eq!(broker.redis(3), ["10.0.0.1:1", "10.0.0.2:1"]);
}

#[test]
fn deregistering_again_after_a_failure_between_the_two_writes_shows_at_once() {
    let broker = Fixture::new();
    let _ = broker.register("10.0.0.1:1", 0);
    broker.members(1);
    broker.store.take_operations();
    broker.store.state().fails = Some(|place, _| place == 3);
    now(broker.registry.deregister(&group(), Kind::Redis, &"10.0.0.1:1".parse().unwrap())).unwrap_err();
    broker.store.state().fails = None;
    broker.deregister("10.0.0.1:1");
    assert!(broker.redis(2).is_empty());
}

/// A store in which every operation lets all other waiting operations go first. Requests that begin together
/// stay in step.
#[derive(Clone)]
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

/// Registers this many nodes at once, all in step, and returns how many were accepted.
fn register_in_step(store: &MemoryStore, first: u8, nodes: u8, max: usize) -> usize {
    let registry = Registry::new(InStep(store.clone()));
    let (group, kind) = (group(), Kind::Redis);
    let all = (first..first + nodes)
        .map(|host| registry.register(&group, kind, node(&format!("10.0.0.{host}:1")), at(1), up_to(max)));
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let registered = runtime.block_on(join_all(all));
    registered.into_iter().filter(|registered| matches!(registered, Ok(Registered::First(_)))).count()
}

#[test]
fn concurrent_registrations_pass_the_bound_at_most_once() {
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
    broker.members(40);
    broker.store.take_operations();
    for (seconds, listings) in [(40, 0), (69, 0), (70, 1), (69, 1)] {
        broker.other_instance().members(seconds);
        assert_eq!(broker.listings(), listings, "at {seconds}");
    }
}

#[test]
fn an_unreadable_snapshot_is_rebuilt_and_other_values_are_named() {
    let broker = Fixture::new();
    let _ = broker.register("10.0.0.1:1", 0);
    broker.members(11);
    let put = |key: &str, value: &[u8]| broker.store.state().entries.insert(key.to_owned(), value.to_vec());
    let (snapshot, revision) = (key("snap", &group()), key("rev", &group()));
    let cut_off = broker.store.state().entries[&snapshot][..200].to_vec();
    for junk in [&b"\xff{"[..], b"{}\n", b"", &cut_off] {
        put(&snapshot, junk);
        assert_eq!(broker.other_instance().redis(12), ["10.0.0.1:1"]);
    }

    let key = registration_key(&group(), Kind::Redis, &"10.0.0.1:1".parse().unwrap());
    for broken in [key.as_str(), "out:mymaster", &revision] {
        let good = put(broken, b"junk");
        broker.store.state().entries.remove(&snapshot);
        let error = now(broker.other_instance().registry.members(&group(), at(13))).unwrap_err();
        assert!(error.to_string().contains(&format!("`{broken}`")), "{error}");
        match good {
            Some(good) => put(broken, &good),
            None => broker.store.state().entries.remove(broken),
        };
    }
    put(&key, b"junk");
    put(&revision, b"junk");
    now(broker.registry.delete_group(&group())).unwrap();
    assert!(broker.redis(14).is_empty(), "what can't be read can still be forgotten");
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
    // The gets of revision and snapshot, the listing, and the get of the registration come first.
    broker.store.state().fails = Some(|place, _| place == 4);
    assert_eq!(broker.redis(11), ["10.0.0.1:1"]);
    let operations = broker.store.take_operations();
    assert!(
        operations.ends_with(&[
            format!("set {}", key("snap", &group())),
            format!("delete {}", key("list", &group()))
        ]),
        "{operations:?}"
    );
}

#[test]
fn the_bound_is_exact_when_requests_come_one_at_a_time() {
    let broker = Fixture::new();
    for addr in ["10.0.0.1:1", "10.0.0.2:1", "10.0.0.3:1"] {
        assert!(matches!(broker.register(addr, 1), Registered::First(_)));
    }
    assert_eq!(broker.register("10.0.0.4:1", 2), Registered::Full { frees: None });
    assert!(matches!(broker.register("10.0.0.3:1", 3), Registered::Again(_)), "who is in may register again");
    broker.deregister("10.0.0.1:1");
    assert!(matches!(broker.register("10.0.0.4:1", 4), Registered::First(_)));
    assert_eq!(broker.register("10.0.0.5:1", 5), Registered::Full { frees: None });
    let sentinel = node("10.0.0.5:1");
    let registered =
        now(broker.registry.register(&group(), Kind::Sentinel, sentinel, at(6), up_to(3))).unwrap();
    assert!(matches!(registered, Registered::First(_)), "each kind has a bound of its own");
}

#[test]
fn a_count_that_is_too_high_refuses_nobody() {
    let broker = Fixture::new();
    let (shard, counts) = (Shard::of(&group()), Counts { redis: 99, sentinels: 0 });
    now(broker.registry.renew(shard, BTreeMap::from([(group(), counts)]))).unwrap();
    assert!(matches!(broker.register("10.0.0.1:1", 1), Registered::First(_)));
    let revision = now(broker.registry.revision(shard)).unwrap().unwrap();
    assert_eq!(revision.groups[&group()].redis, 1, "counting goes on from what is there");
}

#[test]
fn deregistering_what_was_never_there_stores_nothing() {
    let broker = Fixture::new();
    broker.deregister("10.0.0.1:1");
    now(broker.registry.delete_group(&group())).unwrap();
    assert!(broker.store.state().entries.is_empty());
}

#[test]
fn deleting_a_group_leaves_other_groups_and_other_keys_alone() {
    let broker = Fixture::new();
    let _ = broker.register("10.0.0.1:1", 1);
    let outcome = not_verified();
    now(broker.registry.put_outcome(&group(), &outcome, None)).unwrap();
    assert_eq!(broker.members(2).outcome, Some(outcome));
    let longer = "mymaster2".parse().unwrap();
    let _ = now(broker.registry.register(&longer, Kind::Redis, node("10.0.0.1:1"), at(1), up_to(3))).unwrap();
    broker.store.state().entries.insert("of somebody else".into(), vec![]);

    now(broker.registry.delete_group(&group())).unwrap();
    assert_eq!(broker.members(3), Members::default());
    assert_eq!(now(broker.registry.members(&longer, at(3))).unwrap().redis.len(), 1);
    assert!(broker.store.state().entries.contains_key("of somebody else"));
}

#[test]
fn groups_are_shown_by_name_with_what_is_theirs() {
    let broker = Fixture::new();
    for (group, kind, addr) in [
        ("b", Kind::Redis, "10.0.0.1:1"),
        ("b", Kind::Redis, "10.0.0.2:1"),
        ("b", Kind::Sentinel, "10.0.0.1:2"),
        ("a", Kind::Sentinel, "10.0.0.1:2"),
    ] {
        let group = group.parse().unwrap();
        let _ = now(broker.registry.register(&group, kind, node(addr), at(1), up_to(3))).unwrap();
    }
    for foreign in
        ["reg:", "reg:x", "reg:x:other:00", "reg:no group:redis:00", "rev:empty", "out:no group", "x:c"]
    {
        broker.store.state().entries.insert(foreign.into(), b"junk".to_vec());
    }
    // Groups with only an outcome are listed too. Groups that can't be read are also listed.
    for key in ["out:c", "ver:d", "reg:e:redis:00"] {
        broker.store.state().entries.insert(key.into(), b"junk".to_vec());
    }
    let counts = |groups: Vec<(String, GroupCounts)>| -> Vec<(String, usize, usize)> {
        let registered = groups.into_iter().map(|(group, counts)| (group, counts.registered));
        registered.map(|(group, Counts { redis, sentinels })| (group, redis, sentinels)).collect()
    };
    let all = [("a", 0, 1), ("b", 2, 1), ("c", 0, 0), ("d", 0, 0), ("e", 1, 0)]
        .map(|(group, redis, sentinels)| (group.to_owned(), redis, sentinels));
    broker.store.take_operations();
    let (groups, has_more) = broker.groups(None, None, 2);
    assert_eq!((counts(groups).as_slice(), has_more), (&all[..], false));
    assert_eq!(broker.listings(), 1);
    for page in 1..=6 {
        let (mut read, mut after, mut has_more) = (Vec::new(), None, true);
        while has_more {
            let (groups, more) = broker.groups(after.as_deref(), Some(page), 2);
            assert!(groups.len() == page || !more, "{groups:?}");
            after = groups.last().map(|(group, _)| group.clone());
            read.extend(counts(groups));
            has_more = more;
        }
        assert_eq!(read, all, "by {page}");
    }
}

#[test]
fn a_registration_that_expires_is_stale_and_gone_a_day_later() {
    const DAY: u64 = 24 * 60 * 60;
    let broker = Fixture::new();
    let _ = broker.register("10.0.0.1:1", 0);
    let Registered::First(registration) = broker.register_for("10.0.0.2:1", 180, 0) else {
        panic!("it is new")
    };
    assert_eq!((registration.stale, registration.expires()), (false, Some(at(180))));
    let stale = |seconds| -> Vec<bool> {
        // The snapshot shows it to an instance that has used the snapshot before, and to a new instance.
        let read = |broker: &Fixture| -> Vec<bool> {
            broker.members(seconds).redis.iter().map(|registration| registration.stale).collect()
        };
        let (here, there) = (read(&broker), read(&broker.other_instance()));
        assert_eq!(here, there, "at {seconds}");
        here
    };
    assert_eq!(stale(170), [false, false]);
    broker.store.take_operations();
    assert_eq!(stale(179), [false, false]);
    assert_eq!(broker.listings(), 0);
    // A snapshot expires when a registration in it becomes stale, even if its life is longer.
    assert_eq!(stale(180), [false, true]);
    assert_eq!(broker.listings(), 1);
    assert!(broker.registration("10.0.0.2:1", 180).unwrap().stale);
    let counts = broker.members(181).counts();
    assert_eq!((counts.registered.redis, counts.stale.redis, counts.fresh().redis), (2, 1, 1));
    assert_eq!(broker.groups(None, None, 181).0, [("mymaster".into(), counts)]);

    // When the node registers again, the roster shows this at once.
    let Registered::Again(again) = broker.register_for("10.0.0.2:1", 180, 185) else {
        panic!("it was there")
    };
    assert_eq!((again.registered_at, again.stale), (at(0), false));
    assert_eq!(stale(185), [false, false]);
    // Heartbeats change no revision.
    let _ = broker.register_for("10.0.0.2:1", 180, 240);
    broker.members(240);
    broker.store.take_operations();
    let _ = broker.register_for("10.0.0.2:1", 180, 241);
    broker.members(241);
    assert_eq!(broker.listings(), 0);

    assert_eq!(stale(241 + 180 + DAY - 1), [false, true]);
    assert_eq!(stale(241 + 180 + DAY), [false]);
    assert!(broker.registration("10.0.0.2:1", 241 + 180 + DAY).is_none());
    let left = broker.store.state().entries.keys().filter(|key| key.starts_with("reg:")).count();
    assert_eq!(left, 1, "who has listed it has taken it away");
    // A node that comes back after that is new.
    let returns = broker.register_for("10.0.0.2:1", 180, 242 + 180 + DAY);
    assert!(
        matches!(returns, Registered::First(registration) if registration.registered_at == at(242 + 180 + DAY))
    );

    // A registration without a `ttl` is valid until it is deleted.
    let _ = broker.register("10.0.0.2:1", 243 + 180 + DAY);
    assert_eq!(stale(999 * DAY), [false, false]);
}

#[test]
fn a_member_of_a_system_is_stale_and_never_forgotten() {
    let broker = Fixture::new();
    let member = Node {
        ttl: Some(10.try_into().unwrap()),
        master: Some("10.0.0.9:1".parse().unwrap()),
        ..node("10.0.0.1:1")
    };
    let _ = now(broker.registry.register(&group(), Kind::Redis, member, at(0), up_to(3))).unwrap();
    let later = 365 * 24 * 60 * 60;
    assert_eq!(broker.members(later).redis.iter().map(|node| node.stale).collect::<Vec<_>>(), [true]);
    broker.store.take_operations();
    assert_eq!(broker.redis(later + 1).len(), 1);
    assert_eq!(broker.listings(), 0, "its snapshot counts as any other");
}

#[test]
fn groups_of_whom_all_is_forgotten_are_gone_and_count_no_more() {
    let broker = Fixture::new();
    let bounds = Bounds { registrations: 3, groups: Some(20) };
    let register = |number: u64, seconds| {
        let group: Group = format!("g{number}").parse().unwrap();
        let node = Node { ttl: Some(10.try_into().unwrap()), ..node("10.0.0.1:1") };
        now(broker.registry.register(&group, Kind::Redis, node, at(seconds), bounds)).unwrap()
    };
    for day in 0..5 {
        let seconds = 100_000 * day;
        for number in 20 * day..20 * day + 20 {
            assert!(matches!(register(number, seconds), Registered::First(_)), "{number}");
        }
        assert_eq!(register(999, seconds + 3), Registered::TooManyGroups);
        assert_eq!(broker.groups(None, None, seconds + 4).0.len(), 20);
    }
    let left = broker.store.state().entries.keys().filter(|key| key.starts_with("reg:")).count();
    assert_eq!(left, 20, "who has counted them has taken them away");
    assert!(broker.groups(None, None, 999_999).0.is_empty());
    // Once its shard is read, the counts of forgotten groups are removed from the revision.
    let group: Group = "g0".parse().unwrap();
    let _ = register(0, 1_000_000);
    now(broker.registry.members(&group, at(1_000_001))).unwrap();
    now(broker.registry.members(&group, at(1_100_001))).unwrap();
    let revision = now(broker.registry.revision(Shard::of(&group))).unwrap().unwrap();
    assert!(!revision.groups.contains_key(&group), "{revision:?}");
}

#[test]
fn names_that_share_a_shard_do_not_fill_it() {
    let broker = Fixture::new();
    let shard = Shard::of(&group());
    let names =
        (0..).map(|number| format!("n{number}")).filter(|name| Shard::of(&name.parse().unwrap()) == shard);
    let registered: Vec<_> = names.take(30).map(|name| broker.register_in(&name, 1, 1000)).collect();
    let first = registered.iter().filter(|registered| matches!(registered, Registered::First(_))).count();
    assert_eq!(first, most_in_a_shard(1000));
    assert!(matches!(broker.register_in("another", 1, 1000), Registered::First(_)));
    assert!(matches!(broker.register("10.0.0.1:1", 1), Registered::First(_)), "the default group has room");
}

#[test]
fn one_that_was_forgotten_and_not_yet_taken_away_is_new() {
    let broker = Fixture::new();
    let _ = broker.register_for("10.0.0.1:1", 10, 0);
    let later = 10 + 24 * 60 * 60;
    // A read succeeds even if the registration can't be deleted. The read takes only the revision, the
    // snapshot, the keys and the registration.
    broker.members(1);
    broker.store.take_operations();
    broker.store.state().fails = Some(|place, _| place >= 4);
    assert!(broker.other_instance().redis(later).is_empty());
    broker.store.state().fails = None;
    assert!(broker.groups(None, None, later).0.iter().all(|(_, counts)| counts.registered.redis == 0));
    assert!(matches!(broker.register("10.0.0.1:1", later), Registered::First(_)));
    assert_eq!(broker.redis(later), ["10.0.0.1:1"]);
}

#[test]
fn a_full_group_has_room_once_one_is_stale_and_never_holds_more() {
    let broker = Fixture::new();
    let _ = broker.register_for("10.0.0.1:1", 300, 0);
    let _ = broker.register_for("10.0.0.2:1", 100, 0);
    let _ = broker.register("10.0.0.3:1", 0);
    assert_eq!(broker.register("10.0.0.4:1", 40), Registered::Full { frees: Some(Duration::from_secs(60)) });
    assert!(matches!(broker.register("10.0.0.4:1", 100), Registered::First(_)));
    assert_eq!(broker.redis(100), ["10.0.0.1:1", "10.0.0.3:1", "10.0.0.4:1"]);
    assert_eq!(
        broker.register("10.0.0.5:1", 101),
        Registered::Full { frees: Some(Duration::from_secs(199)) }
    );
    // The group has room, even if many nodes register and become stale.
    for round in 1..50_u64 {
        let seconds = 1000 * round;
        for host in 0..3 {
            let addr = format!("10.0.{round}.{host}:1");
            let _ = broker.register_for(&addr, 10, seconds);
        }
        assert_eq!(broker.redis(seconds).len(), 3);
    }
    let left = broker.store.state().entries.keys().filter(|key| key.starts_with("reg:")).count();
    assert_eq!(left, 3);
}

#[test]
fn a_membership_shows_at_once_and_ends_if_not_repeated() {
    let broker = Fixture::new();
    let _ = broker.register("10.0.0.1:1", 0);
    broker.members(100);
    let master: Addr = "10.0.0.9:1".parse().unwrap();
    let member = Node { master: Some(master.clone()), ..node("10.0.0.1:1") };
    for (said, expected) in [(member, Some(master)), (node("10.0.0.1:1"), None)] {
        let _ = now(broker.registry.register(&group(), Kind::Redis, said, at(101), up_to(3))).unwrap();
        assert_eq!(broker.members(101).redis[0].master, expected);
    }
}

#[test]
fn there_are_no_more_groups_than_may_be() {
    let broker = Fixture::new();
    for group in ["a", "b", "c"] {
        assert!(matches!(broker.register_in(group, 0, 3), Registered::First(_)));
    }
    assert_eq!(broker.register_in("d", 1, 3), Registered::TooManyGroups);
    assert!(matches!(broker.register_in("c", 1, 3), Registered::Again(_)), "what is there has room");
    // Groups are not counted again for each registration that is refused.
    broker.store.take_operations();
    for number in 0..50 {
        assert_eq!(broker.register_in(&format!("d{number}"), 2, 3), Registered::TooManyGroups);
    }
    assert_eq!(broker.listings(), 0);
    now(broker.registry.delete_group(&"a".parse().unwrap())).unwrap();
    assert!(matches!(broker.register_in("d", 12, 3), Registered::First(_)));
    assert_eq!(broker.register_in("e", 13, 3), Registered::TooManyGroups);
    // A group that always has room, and a group that its revision does not list.
    assert!(matches!(broker.register("10.0.0.1:1", 14), Registered::First(_)));
    now(broker.registry.renew(Shard::of(&"d".parse().unwrap()), BTreeMap::new())).unwrap();
    let other = Node::new("10.0.0.2:1".parse().unwrap());
    let bounds = Bounds { registrations: 3, groups: Some(3) };
    let group = "d".parse().unwrap();
    let registered = broker.registry.register(&group, Kind::Redis, other, at(15), bounds);
    assert!(matches!(now(registered).unwrap(), Registered::First(_)));
}

#[test]
fn concurrent_new_groups_pass_the_bound_at_most_once() {
    let broker = Fixture::new();
    let make = |first: usize| {
        let registry = Registry::new(InStep(broker.store.clone()));
        let all = (first..first + 64).map(|number| {
            let (group, registry) = (format!("g{number}").parse().unwrap(), registry.clone());
            let bounds = Bounds { registrations: 3, groups: Some(8) };
            async move { registry.register(&group, Kind::Redis, node("10.0.0.1:1"), at(1), bounds).await }
        });
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let registered = runtime.block_on(join_all(all));
        registered.into_iter().filter(|registered| matches!(registered, Ok(Registered::First(_)))).count()
    };
    assert_eq!(make(0), 64, "none of them can know of another");
    assert_eq!(make(64), 0);
    assert_eq!(broker.groups(None, None, 2).0.len(), 64);
}

#[test]
fn groups_that_are_made_at_once_are_seldom_counted() {
    let broker = Fixture::new();
    let bounds = Bounds { registrations: 3, groups: Some(1000) };
    let registry = Registry::new(InStep(broker.store.clone()));
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    for round in 0..50 {
        let all = (0..16).map(|number| {
            let (group, registry) = (format!("g{round}-{number}").parse().unwrap(), registry.clone());
            async move { registry.register(&group, Kind::Redis, node("10.0.0.1:1"), at(1), bounds).await }
        });
        for registered in runtime.block_on(join_all(all)) {
            assert!(matches!(registered, Ok(Registered::First(_))));
        }
    }
    let listings = broker.listings();
    assert!(listings <= 100, "{listings} for 800 groups");
}

#[test]
fn a_group_that_is_gone_leaves_nothing_behind() {
    let broker = Fixture::new();
    let outcome = not_verified();
    let cycle = |number: usize| {
        let group: Group = format!("group-{number}").parse().unwrap();
        let bounds = Bounds { registrations: 3, groups: Some(10) };
        let registered = broker.registry.register(&group, Kind::Redis, node("10.0.0.1:1"), at(1), bounds);
        assert!(matches!(now(registered).unwrap(), Registered::First(_)));
        now(broker.registry.put_outcome(&group, &outcome, None)).unwrap();
        now(broker.registry.members(&group, at(2))).unwrap();
        now(broker.registry.delete_group(&group)).unwrap();
    };
    (0..5_000).for_each(cycle);
    let size = |broker: &Fixture| -> (usize, usize) {
        let entries = &broker.store.state().entries;
        (entries.len(), entries.values().map(Vec::len).sum())
    };
    let (keys, bytes) = size(&broker);
    // The revision of each shard, and the number of groups.
    assert!(keys <= 1 + usize::from(SHARDS), "{keys} keys");
    assert!(bytes <= keys * 100, "{bytes} bytes");
    (5_000..10_000).for_each(cycle);
    let (more, _) = size(&broker);
    assert!(more <= 1 + usize::from(SHARDS) && broker.groups(None, None, 4).0.is_empty(), "{more} keys");
}

#[test]
fn groups_of_one_shard_do_not_show_in_each_other() {
    let broker = Fixture::new();
    let neighbour = neighbour_of(&group());
    let neighbours =
        |seconds| -> usize { now(broker.registry.members(&neighbour, at(seconds))).unwrap().redis.len() };
    let register = |seconds| {
        now(broker.registry.register(&neighbour, Kind::Redis, node("10.0.0.9:1"), at(seconds), up_to(1)))
            .unwrap()
    };
    let _ = broker.register("10.0.0.1:1", 1);
    assert_eq!((broker.redis(2).len(), neighbours(2)), (1, 0));
    assert!(matches!(register(3), Registered::First(_)));
    assert_eq!((broker.redis(4), neighbours(4)), (vec!["10.0.0.1:1".into()], 1));
    // Both groups are in one snapshot.
    broker.store.take_operations();
    assert_eq!((broker.redis(5).len(), neighbours(5)), (1, 1));
    assert_eq!(broker.listings(), 0);
    for addr in ["10.0.0.2:1", "10.0.0.3:1"] {
        assert!(matches!(broker.register(addr, 6), Registered::First(_)), "each has a bound of its own");
    }
    assert_eq!(broker.register("10.0.0.4:1", 7), Registered::Full { frees: None });
    // A value that can't be read is an error only for requests for its group.
    let key = registration_key(&neighbour, Kind::Redis, &"10.0.0.9:1".parse().unwrap());
    let good = broker.store.state().entries.insert(key.clone(), b"junk".to_vec()).unwrap();
    let _ = broker.register("10.0.0.1:1", 8);
    assert_eq!(broker.redis(8).len(), 3);
    let error = now(broker.registry.members(&neighbour, at(8))).unwrap_err();
    assert!(error.to_string().contains(&key), "{error}");
    broker.store.state().entries.insert(key, good);
    now(broker.registry.delete_group(&group())).unwrap();
    assert_eq!((broker.redis(9).len(), neighbours(9)), (0, 1));
    now(broker.registry.delete_group(&neighbour)).unwrap();
    assert_eq!(neighbours(10), 0);
}

/// Another group of the same shard.
pub(super) fn neighbour_of(group: &Group) -> Group {
    let others = (0..).map(|number| format!("n{number}").parse::<Group>().unwrap());
    let mut others = others.filter(|other| other != group && Shard::of(other) == Shard::of(group));
    others.next().expect("there are endlessly many")
}

#[test]
fn thousands_of_groups_in_one_store_do_not_show_in_each_other() {
    const GROUPS: usize = 3_000;
    let broker = Fixture::new();
    let group = |number: usize| -> Group { format!("group-{number}").parse().unwrap() };
    let register = |number: usize, host: usize, seconds| {
        let node = node(&format!("10.{host}.{}.{}:1", number / 250, number % 250));
        let at = broker.at(seconds);
        now(broker.registry.register(&group(number), Kind::Redis, node, at, up_to(2))).unwrap()
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
    assert_eq!(broker.groups(None, None, 11).0.len(), GROUPS);
    for number in (0..GROUPS).step_by(100) {
        let later = 100 + number as u64;
        let own = [1, 2].map(|host| format!("10.{host}.{}.{}:1", number / 250, number % 250));
        assert_eq!(redis(number, later), own);
        assert_eq!(
            register(number, 3, later),
            Registered::Full { frees: None },
            "each group has a bound of its own"
        );
        // Changes in groups of other shards cause no listing for this group. This holds for a new
        // registration and for a deleted group.
        let next = (number + 1..).find(|next| Shard::of(&group(*next)) != Shard::of(&group(number))).unwrap();
        now(broker.registry.delete_group(&group(next))).unwrap();
        assert!(matches!(register(next, 4, later + 1), Registered::First(_)));
        broker.store.take_operations();
        assert_eq!(redis(number, later + 2), own);
        let gets = ["rev", "snap"].map(|prefix| format!("get {}", key(prefix, &group(number))));
        assert_eq!(broker.store.take_operations(), gets[..1]);
        assert_eq!(
            now(broker.other_instance().registry.members(&group(number), at(later + 2))).unwrap().redis.len(),
            2
        );
        assert_eq!(broker.store.take_operations(), gets);
    }
    assert_eq!(broker.groups(None, None, 4000).0.len(), GROUPS);
}

#[test]
fn the_longest_names_fit_every_store_of_spin() {
    let broker = Fixture::new();
    let group = "g".repeat(64).parse().unwrap();
    let host = [&"a".repeat(63); 4].map(String::as_str).join(".")[..253].to_owned();
    let node = node(&format!("{host}:65535"));
    let _ = now(broker.registry.register(&group, Kind::Sentinel, node, at(1), up_to(3))).unwrap();
    assert_eq!(now(broker.registry.members(&group, at(2))).unwrap().sentinels.len(), 1);
}
