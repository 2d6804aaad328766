//! The tests use a clock that stands still unless every task waits for it. So the same operations overlap in
//! every run.

use std::sync::atomic::{AtomicUsize, Ordering};

use futures::future::{join, join_all};
use tokio::time::{Instant, sleep, timeout};

use super::*;
use crate::registry::memory::MemoryStore;

/// How long an operation takes, and a listing.
const OPERATION: Duration = Duration::from_millis(1);
const LISTING: Duration = Duration::from_millis(50);

struct TokioPause;

impl Pause for TokioPause {
    const SEES_OTHERS: bool = true;

    async fn pause(time: Duration) {
        sleep(time).await;
    }
}

/// A slow store that panics if it is touched while its keys are listed.
#[derive(Clone, Default)]
struct SlowStore {
    store: MemoryStore,
    others: Arc<AtomicUsize>,
    listing: Arc<AtomicUsize>,
    listings: Arc<AtomicUsize>,
}

/// Adds one to a count until it is dropped.
struct Counted(Arc<AtomicUsize>);

impl Counted {
    fn new(count: &Arc<AtomicUsize>) -> Self {
        count.fetch_add(1, Ordering::SeqCst);
        Self(Arc::clone(count))
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

impl SlowStore {
    async fn operation(&self) -> Counted {
        let counted = Counted::new(&self.others);
        for _ in 0..2 {
            assert_eq!(self.listing.load(Ordering::SeqCst), 0, "touched while its keys are listed");
            sleep(OPERATION / 2).await;
        }
        counted
    }
}

impl Store for SlowStore {
    async fn get(&self, key: &str) -> Result<Option<Vec<u8>>, StoreError> {
        let _counted = self.operation().await;
        self.store.get(key).await
    }

    async fn set(&self, key: &str, value: Vec<u8>) -> Result<(), StoreError> {
        let _counted = self.operation().await;
        self.store.set(key, value).await
    }

    async fn delete(&self, key: &str) -> Result<(), StoreError> {
        let _counted = self.operation().await;
        self.store.delete(key).await
    }

    async fn get_keys(&self) -> Result<Vec<String>, StoreError> {
        let _counted = Counted::new(&self.listing);
        self.listings.fetch_add(1, Ordering::SeqCst);
        // A listing shows the store at one moment of the operation. Here it is the earliest possible moment.
        let keys = self.store.get_keys().await?;
        for _ in 0..2 {
            assert_eq!(self.others.load(Ordering::SeqCst), 0, "its keys are listed while it is touched");
            assert_eq!(self.listing.load(Ordering::SeqCst), 1, "two listings at once");
            sleep(LISTING / 2).await;
        }
        Ok(keys)
    }
}

fn slow() -> (SlowStore, InTurns<SlowStore, TokioPause>) {
    let store = SlowStore::default();
    (store.clone(), InTurns::new(store))
}

#[tokio::test(start_paused = true)]
async fn nothing_touches_the_store_while_its_keys_are_listed() {
    let (store, shared) = slow();
    let requests = (0..200_u32).map(|number| {
        let shared = shared.clone();
        async move {
            sleep(Duration::from_micros(u64::from(number * 7919 % 90_000))).await;
            let key = format!("key:{}", number % 20);
            match number % 5 {
                0 => drop(shared.get_keys().await?),
                1 => shared.set(&key, vec![1]).await?,
                2 => shared.delete(&key).await?,
                _ => drop(shared.get(&key).await?),
            }
            Ok::<_, StoreError>(())
        }
    });
    assert!(join_all(requests).await.iter().all(Result::is_ok));
    assert!(store.listings.load(Ordering::SeqCst) > 1);
    assert!(lock(&shared.shared.turns).waiting.is_empty());
    assert!(lock(&shared.shared.listings).last.is_none(), "kept for nobody");
}

#[tokio::test(start_paused = true)]
async fn requests_that_ask_at_once_share_a_listing() {
    let (store, shared) = slow();
    shared.set("a", vec![]).await.unwrap();
    let started = Instant::now();
    let listed = join_all((0..50).map(|_| shared.get_keys())).await;
    assert!(listed.into_iter().all(|keys| keys.unwrap().contains(&"a".to_owned())));
    // One listing had begun at once, before the other requests asked.
    assert_eq!(store.listings.load(Ordering::SeqCst), 2);
    assert!(started.elapsed() < LISTING * 3, "{:?}", started.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_listing_that_began_before_it_was_asked_for_is_not_taken() {
    let (store, shared) = slow();
    let early = shared.get_keys();
    let late = async {
        sleep(LISTING / 10).await;
        // This waits for the listing, which has begun without this key.
        shared.set("late", vec![]).await.unwrap();
        shared.get_keys().await.unwrap()
    };
    let (early, late) = join(early, late).await;
    assert!(early.unwrap().is_empty());
    assert!(late.contains(&"late".to_owned()), "{late:?}");

    // The same holds for a key that another instance sets while a request waits for a listing that is under
    // way.
    let first = shared.get_keys();
    let second = async {
        sleep(LISTING / 10).await;
        store.store.set("elsewhere", vec![]).await.unwrap();
        shared.get_keys().await.unwrap()
    };
    let (first, second) = join(first, second).await;
    assert!(!first.unwrap().contains(&"elsewhere".to_owned()));
    assert!(second.contains(&"elsewhere".to_owned()), "{second:?}");
}

#[tokio::test(start_paused = true)]
async fn a_listing_is_not_put_off_by_what_is_asked_for_after_it() {
    let (_, shared) = slow();
    let busy = async {
        // Some request is always under way.
        join_all((0..8).map(|_| async {
            loop {
                shared.get("key").await.unwrap();
            }
        }))
        .await
    };
    let listing = async {
        sleep(OPERATION * 5).await;
        shared.get_keys().await.unwrap();
    };
    let started = Instant::now();
    tokio::select! {
        _ = busy => unreachable!("it never ends"),
        () = listing => {}
    }
    assert!(started.elapsed() < LISTING + OPERATION * 15, "{:?}", started.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_request_that_is_given_up_gives_its_turn_back() {
    let (_, shared) = slow();
    // A listing that is under way, and a request that waits behind it.
    let given_up = join(timeout(LISTING / 2, shared.get_keys()), timeout(LISTING / 4, shared.get("a")));
    let (listing, get) = given_up.await;
    assert!(listing.is_err() && get.is_err());
    timeout(OPERATION * 2, shared.get("a")).await.expect("its turn comes at once").unwrap();
    timeout(LISTING * 2, shared.get_keys()).await.expect("so does a listing's").unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_reader_waits_for_anothers_listing_and_not_for_ever() {
    let (store, shared) = slow();
    assert!(
        !shared.wait_for_listing("list:g", "1", 0).await,
        "nobody lists yet: this one notes that it will"
    );
    assert_eq!(store.store.state().entries["list:g"], b"1");
    assert!(!shared.wait_for_listing("list:g", "2", 0).await, "another change");
    let started = Instant::now();
    let mut tried = 0;
    while shared.wait_for_listing("list:g", "2", tried).await {
        tried += 1;
    }
    assert_eq!(tried, LISTING_TRIES);
    let waited = started.elapsed();
    assert!(waited > Duration::from_millis(600) && waited < Duration::from_secs(1), "{waited:?}");
}
