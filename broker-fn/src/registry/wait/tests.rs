//! The tests use a clock that stands still unless every task waits for it.

use futures::future::{join, join_all, pending};
use tokio::time::{Instant, sleep};

use super::super::instance::MAX_WAITING;
use super::super::memory::{Clock, MemoryStore};
use super::super::tests::neighbour_of;
use super::super::*;
use crate::turns::{InTurns, Pause};

const WAIT: Duration = Duration::from_secs(20);
const BOUNDS: Bounds = Bounds { registrations: 64, groups: None };

struct TokioPause;

impl Pause for TokioPause {
    const SEES_OTHERS: bool = true;

    async fn pause(time: Duration) {
        sleep(time).await;
    }
}

/// An instance of the component. Clones are the same instance.
#[derive(Clone)]
struct Host {
    store: MemoryStore,
    registry: Registry<InTurns<MemoryStore, TokioPause>>,
}

impl Host {
    fn new() -> Self {
        let store = MemoryStore::default();
        let began = Timestamp::from(SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000));
        store.state().clock = Some(Clock::Tokio(Instant::now(), began));
        Self::on(&store)
    }

    /// Another instance with the same store.
    fn on(store: &MemoryStore) -> Self {
        Self { store: store.clone(), registry: Registry::new(InTurns::new(store.clone())) }
    }

    async fn register(&self, addr: &str) {
        self.register_in(&group(), addr).await;
    }

    async fn register_in(&self, group: &Group, addr: &str) {
        let node = Node::new(addr.parse().unwrap());
        let now = self.store.now();
        let _ = self.registry.register(group, Kind::Redis, node, now, BOUNDS).await.unwrap();
    }

    async fn tag(&self) -> String {
        self.registry.encoded_members(&group(), self.store.now()).await.unwrap().tag
    }

    /// Waits for the next change: the number of nodes in the new roster, and how long it took.
    async fn wait(&self) -> (usize, Duration) {
        let known = self.tag().await;
        let started = Instant::now();
        let is_known = |members: &EncodedMembers| members.tag == known;
        let members = self.registry.changed_members(&group(), is_known, WAIT).await.unwrap();
        (members.decode().unwrap().redis.len(), started.elapsed())
    }

    /// How often the store was read since the last call.
    fn reads(&self) -> usize {
        let operations = self.store.take_operations();
        operations.iter().filter(|operation| operation.starts_with("get")).count()
    }
}

fn group() -> Group {
    "mymaster".parse().unwrap()
}

/// At most this many milliseconds. Tokio's pauses are a millisecond at least.
fn within(took: Duration, most: u64) {
    assert!(took <= Duration::from_millis(most), "{took:?}");
}

#[tokio::test(start_paused = true)]
async fn requests_of_one_instance_that_notice_a_change_share_its_listing() {
    let host = Host::new();
    let there = Host::on(&host.store);
    for round in 1..=5 {
        there.register(&format!("10.0.0.{round}:6379")).await;
        host.store.take_operations();
        let (group, now) = (group(), host.store.now());
        let read = join_all((0..16).map(|_| host.registry.members(&group, now))).await;
        assert!(read.into_iter().all(|members| members.unwrap().redis.len() == round));
        let operations = host.store.take_operations();
        let listings = operations.iter().filter(|operation| *operation == "get_keys").count();
        let values = operations.iter().filter(|operation| operation.starts_with("get reg:")).count();
        assert_eq!((listings, values), (1, round), "{operations:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn without_a_change_a_wait_ends_in_time_and_reads_seldom() {
    let host = Host::new();
    for nodes in [0, 1] {
        if nodes > 0 {
            host.register("10.0.0.1:6379").await;
        }
        host.reads();
        let (found, took) = host.wait().await;
        assert_eq!((found, took >= WAIT), (nodes, true), "{took:?}");
        within(took, 20_100);
        let reads = host.reads();
        assert!((10..=60).contains(&reads), "{reads} reads with {nodes} nodes");
        // After a change, the store is looked at more often.
        let (_, took) = host.wait().await;
        assert!(took >= WAIT, "{took:?}");
        let reads = host.reads();
        assert!((10..=40).contains(&reads), "{reads} reads later with {nodes} nodes");
    }
}

/// A runner waits for a minute while nodes register 300 ms apart. Returns the number of requests and the
/// number of reads, including those of the registrations.
async fn a_minute_with(nodes: u64, answered_by: Answered) -> (usize, usize) {
    let here = Host::new();
    let there = match answered_by {
        Answered::Here => here.clone(),
        Answered::ByAnotherInstance => Host::on(&here.store),
    };
    let registers = async {
        for node in 1..=nodes {
            sleep(Duration::from_millis(300)).await;
            there.register(&format!("10.0.0.{node}:6379")).await;
        }
        // Until the minute is over.
        pending::<()>().await;
    };
    let mut requests = 0;
    let waits = async {
        let mut known = here.tag().await;
        loop {
            requests += 1;
            let is_known = |members: &EncodedMembers| members.tag == known;
            let members = here.registry.changed_members(&group(), is_known, WAIT).await.unwrap();
            known = members.tag;
        }
    };
    let minute = tokio::time::timeout(Duration::from_secs(60), join(registers, waits));
    let ended: Result<((), ()), _> = minute.await;
    assert!(ended.is_err());
    let reads = here.reads();
    let members = here.registry.members(&group(), here.store.now()).await.unwrap();
    assert_eq!(members.redis.len() as u64, nodes);
    (requests, reads)
}

/// Which instance answers registrations: the instance of the waiting request, or another instance.
#[derive(Debug, Clone, Copy)]
enum Answered {
    Here,
    ByAnotherInstance,
}

#[tokio::test(start_paused = true)]
async fn a_minute_of_waiting_takes_eight_requests_and_180_reads_at_most() {
    for nodes in [0, 4] {
        for answered_by in [Answered::Here, Answered::ByAnotherInstance] {
            let (requests, reads) = a_minute_with(nodes, answered_by).await;
            println!("{nodes} nodes, {answered_by:?}: {requests} requests, {reads} reads");
            assert!(requests <= 8 && (50..=180).contains(&reads), "{requests} requests, {reads} reads");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn what_the_same_instance_changes_is_answered_at_once() {
    let host = Host::new();
    host.register("10.0.0.1:6379").await;
    for after in [1, 100, 19_000] {
        let change = async {
            sleep(Duration::from_millis(after)).await;
            host.register(&format!("10.0.1.1:{after}")).await;
        };
        let before = host.registry.members(&group(), host.store.now()).await.unwrap().redis.len();
        let ((found, took), ()) = join(host.wait(), change).await;
        assert_eq!(found, before + 1);
        within(took, after + 25);
    }
}

#[tokio::test(start_paused = true)]
async fn what_another_instance_changes_is_answered_at_the_next_look() {
    let here = Host::new();
    let there = Host::on(&here.store);
    here.register("10.0.0.1:6379").await;
    // The second change comes this long after the first. It is seen after half as much time again at most, or
    // 1.2 s; a pause is 1 to 20 ms longer than that.
    for (after, most) in [(5, 10), (10, 18), (20, 32), (100, 155), (1000, 1520), (15_000, 16_230)] {
        let change = async {
            sleep(Duration::from_millis(after)).await;
            there.register(&format!("10.0.1.1:{after}")).await;
        };
        let ((_, took), ()) = join(here.wait(), change).await;
        assert!(took >= Duration::from_millis(after), "{took:?}");
        within(took, most);
    }
}

#[tokio::test(start_paused = true)]
async fn a_late_key_is_answered_within_as_much_time_again() {
    for lag in [100, 700, 1000, 5000] {
        let host = Host::new();
        host.register("10.0.0.1:6379").await;
        host.register("10.0.0.2:6379").await;
        let key = registration_key(&group(), Kind::Redis, &"10.0.0.2:6379".parse().unwrap());
        let value = host.store.state().entries.remove(&key).unwrap();
        let arrive = async {
            sleep(Duration::from_millis(lag)).await;
            host.store.state().entries.insert(key, value);
        };
        let ((found, took), ()) = join(host.wait(), arrive).await;
        assert_eq!(found, 2);
        within(took, lag + lag.max(1000) + 25);
    }
}

#[tokio::test(start_paused = true)]
async fn waiters_without_a_place_are_answered_at_once() {
    let host = Host::new();
    host.register("10.0.0.1:6379").await;
    for _ in 0..2 {
        let waited = join_all((0..MAX_WAITING + 3).map(|_| host.wait())).await;
        let at_once = waited.iter().filter(|(_, took)| took.is_zero()).count();
        let all_the_time = waited.iter().filter(|(_, took)| *took >= WAIT).count();
        assert_eq!((at_once, all_the_time), (3, MAX_WAITING));
    }
    // A cancelled request frees its place.
    for _ in 0..2 * MAX_WAITING {
        assert!(tokio::time::timeout(WAIT / 2, host.wait()).await.is_err());
    }
    assert!(host.wait().await.1 >= WAIT);
}

#[tokio::test(start_paused = true)]
async fn whatever_others_change_the_store_is_looked_at_so_often_at_most() {
    let host = Host::new();
    let neighbour = neighbour_of(&group());
    host.register("10.0.0.1:6379").await;
    let others = async {
        for port in 1..=2000 {
            host.register_in(&neighbour, &format!("10.0.0.1:{}", port % 3 + 1)).await;
            sleep(Duration::from_millis(5)).await;
        }
    };
    let ((found, took), ()) = join(host.wait(), others).await;
    assert_eq!(found, 1);
    within(took, 3000);
    assert!(took >= Duration::from_millis(250), "{took:?}");
}

#[tokio::test(start_paused = true)]
async fn a_snapshot_that_cannot_be_kept_is_not_built_time_and_again() {
    let host = Host::new();
    host.register("10.0.0.1:6379").await;
    // The revision has settled, and this instance keeps the snapshot too.
    sleep(SETTLED_AFTER).await;
    for _ in 0..2 {
        host.tag().await;
    }
    assert!(host.registry.instance.kept(Shard::of(&group())).is_some());
    // From now on no snapshot can be stored.
    host.store.state().refuses = Some("snap:");
    host.store.take_operations();
    host.wait().await;
    let operations = host.store.take_operations();
    let listings = operations.iter().filter(|operation| *operation == "get_keys").count();
    assert!((1..=20).contains(&listings), "{listings}");
}

#[tokio::test(start_paused = true)]
async fn a_store_that_fails_meanwhile_is_an_error() {
    let host = Host::new();
    host.register("10.0.0.1:6379").await;
    let known = host.tag().await;
    let fail = async {
        sleep(Duration::from_secs(3)).await;
        host.store.state().fails = Some(|_, _| true);
    };
    let is_known = |members: &EncodedMembers| members.tag == known;
    let group = group();
    let (answer, ()) = join(host.registry.changed_members(&group, is_known, WAIT), fail).await;
    assert!(answer.is_err());
}

#[tokio::test(start_paused = true)]
async fn a_host_that_cannot_wait_answers_at_once() {
    let registry = Registry::new(MemoryStore::default());
    let started = Instant::now();
    let _ = registry.changed_members(&group(), |_| true, WAIT).await.unwrap();
    assert_eq!(started.elapsed(), Duration::ZERO);
}
