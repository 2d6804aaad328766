//! One store for all requests that an instance serves at once. They take turns at the store, and share
//! listings.

use std::collections::BTreeMap;
use std::marker::PhantomData;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::api::Timestamp;
use crate::registry::{Store, StoreError};

/// How a host waits.
pub trait Pause: Send + Sync + 'static {
    /// Whether a request that waits can see what other requests change. It can if its instance serves other
    /// requests at the same time.
    const SEES_OTHERS: bool;

    /// Waits for this time.
    fn pause(time: Duration) -> impl Future<Output = ()> + Send;
}

/// A store whose users take [turns](Turn) and share [listings](Listings). Clones are the same store.
pub struct InTurns<S, P> {
    shared: Arc<Shared<S>>,
    pause: PhantomData<P>,
}

struct Shared<S> {
    store: S,
    turns: Mutex<Turns>,
    listings: Mutex<Listings>,
}

impl<S, P> Clone for InTurns<S, P> {
    fn clone(&self) -> Self {
        Self { shared: Arc::clone(&self.shared), pause: PhantomData }
    }
}

impl<S, P> InTurns<S, P> {
    /// A store that no request uses yet.
    pub fn new(store: S) -> Self {
        let shared = Shared { store, turns: Mutex::default(), listings: Mutex::default() };
        Self { shared: Arc::new(shared), pause: PhantomData }
    }
}

impl<S: Store, P: Pause> Store for InTurns<S, P> {
    async fn get(&self, key: &str) -> Result<Option<Vec<u8>>, StoreError> {
        let _turn = self.shared_turn().await;
        self.shared.store.get(key).await
    }

    async fn set(&self, key: &str, value: Vec<u8>) -> Result<(), StoreError> {
        let _turn = self.shared_turn().await;
        self.shared.store.set(key, value).await
    }

    async fn delete(&self, key: &str) -> Result<(), StoreError> {
        let _turn = self.shared_turn().await;
        self.shared.store.delete(key).await
    }

    async fn get_keys(&self) -> Result<Vec<String>, StoreError> {
        let asked = ListingRequest::now(&self.shared.listings);
        let Some(_turn) = self.exclusive_turn(|| asked.is_answered()).await else {
            return Ok(asked.answer());
        };
        let listing = asked.begin();
        let keys = self.shared.store.get_keys().await?;
        asked.end(listing, &keys);
        Ok(keys)
    }

    async fn wait_for_listing(&self, key: &str, purpose: &str, tried: u32) -> bool {
        if tried >= LISTING_TRIES {
            // The reader that noted the listing may be gone.
            return false;
        }
        if self.get(key).await.is_ok_and(|noted| noted.as_deref() == Some(purpose.as_bytes())) {
            P::pause((LISTING_POLL.0 * 2_u32.pow(tried.min(8))).min(LISTING_POLL.1)).await;
            return true;
        }
        // If the note can't be written, other readers list the store as well.
        let _ = self.set(key, purpose.into()).await;
        false
    }

    async fn pause(&self, time: Duration) -> bool {
        if P::SEES_OTHERS {
            P::pause(time).await;
        }
        P::SEES_OTHERS
    }

    fn now(&self) -> Timestamp {
        self.shared.store.now()
    }
}

impl<S: Store, P: Pause> InTurns<S, P> {
    /// A turn for everything but a listing.
    async fn shared_turn(&self) -> Turn<'_> {
        let mut turn = Turn::ask(&self.shared.turns, false);
        self.until(|| turn.begin()).await;
        turn
    }

    /// A turn for a listing. `None` as soon as the listing is not needed any more.
    async fn exclusive_turn(&self, is_answered: impl Fn() -> bool + Send + Sync) -> Option<Turn<'_>> {
        let mut turn = Turn::ask(&self.shared.turns, true);
        self.until(|| is_answered() || turn.begin()).await;
        turn.has_begun.then_some(turn)
    }

    /// Waits until the condition is true.
    async fn until(&self, mut is_so: impl FnMut() -> bool + Send) {
        let (mut pause, longest) = TURN_POLL;
        while !is_so() {
            P::pause(pause).await;
            pause = (2 * pause).min(longest);
        }
    }
}

/// How long a reader waits for another reader's listing before it looks again: at first, and at most.
const LISTING_POLL: (Duration, Duration) = (Duration::from_millis(1), Duration::from_millis(64));

/// How many times a reader reads the note before it lists the store itself. The pauses add up to 0.7 s.
const LISTING_TRIES: u32 = 16;

/// The listings of an instance, in the order in which they begin.
///
/// A listing costs what the whole store holds, and all requests that notice the same change want one at once.
/// The requests of one instance share it: a request takes any listing that began after it asked. Such a
/// listing contains every key that was set before the request asked.
#[derive(Default)]
struct Listings {
    begun: u64,
    /// How many requests want a listing.
    asking: usize,
    /// The number and the keys of the last listing that has ended. They are kept while a request may take
    /// them.
    last: Option<(u64, Vec<String>)>,
}

/// A request for a listing, with the number of listings that had begun by then.
struct ListingRequest<'a> {
    listings: &'a Mutex<Listings>,
    begun: u64,
}

impl<'a> ListingRequest<'a> {
    fn now(listings: &'a Mutex<Listings>) -> Self {
        let begun = {
            let mut listings = lock(listings);
            listings.asking += 1;
            listings.begun
        };
        Self { listings, begun }
    }

    fn begin(&self) -> u64 {
        let mut listings = lock(self.listings);
        listings.begun += 1;
        listings.begun
    }

    fn end(&self, number: u64, keys: &[String]) {
        let mut listings = lock(self.listings);
        if listings.asking > 1 {
            listings.last = Some((number, keys.to_vec()));
        }
    }

    fn is_answered(&self) -> bool {
        lock(self.listings).last.as_ref().is_some_and(|(number, _)| *number > self.begun)
    }

    fn answer(&self) -> Vec<String> {
        lock(self.listings).last.as_ref().map(|(_, keys)| keys.clone()).unwrap_or_default()
    }
}

impl Drop for ListingRequest<'_> {
    fn drop(&mut self) {
        let mut listings = lock(self.listings);
        listings.asking -= 1;
        if listings.asking == 0 {
            listings.last = None;
        }
    }
}

/// A turn at the store. Of the requests that one instance serves at once, none may touch the store while
/// another one lists its keys. Spin's SQLite provider (`key-value-spin` in 4.1) keeps its connection locked
/// until all keys have been taken from it. A call that waits for that lock keeps the instance from taking the
/// keys, and all requests would hang.
///
/// Turns are given in the order in which they were asked for. Otherwise long listings would leave no room for
/// other operations, or would never get a turn.
struct Turn<'a> {
    turns: &'a Mutex<Turns>,
    number: u64,
    is_exclusive: bool,
    has_begun: bool,
}

#[derive(Default)]
struct Turns {
    asked: u64,
    /// The turns that were asked for and have not begun, by number. The value is whether the turn is
    /// exclusive.
    waiting: BTreeMap<u64, bool>,
    /// How many turns that are not exclusive are under way.
    shared: usize,
    /// Whether an exclusive turn is under way.
    is_exclusive: bool,
}

/// The pause between two looks for a turn: at first, and at most. Every look is a call of the host, so many
/// requests that wait for a long listing would slow it down. A lock that wakes its waiters would be better,
/// but only the host can wake a task of a component (wit-bindgen 0.57 without `inter-task-wakeup`, which
/// traps on wasmtime 48).
const TURN_POLL: (Duration, Duration) = (Duration::from_micros(500), Duration::from_millis(4));

impl<'a> Turn<'a> {
    fn ask(turns: &'a Mutex<Turns>, is_exclusive: bool) -> Self {
        let number = {
            let mut turns = lock(turns);
            turns.asked += 1;
            let number = turns.asked;
            turns.waiting.insert(number, is_exclusive);
            number
        };
        Self { turns, number, is_exclusive, has_begun: false }
    }

    /// Begins the turn if it is next.
    fn begin(&mut self) -> bool {
        let mut turns = lock(self.turns);
        let mut before = turns.waiting.range(..self.number);
        let is_next = if self.is_exclusive {
            before.next().is_none() && turns.shared == 0
        } else {
            !before.any(|(_, is_exclusive)| *is_exclusive)
        };
        if turns.is_exclusive || !is_next {
            return false;
        }
        turns.waiting.remove(&self.number);
        if self.is_exclusive {
            turns.is_exclusive = true;
        } else {
            turns.shared += 1;
        }
        self.has_begun = true;
        true
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let mut turns = lock(self.turns);
        match (self.has_begun, self.is_exclusive) {
            (true, true) => turns.is_exclusive = false,
            (true, false) => turns.shared -= 1,
            (false, _) => drop(turns.waiting.remove(&self.number)),
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
