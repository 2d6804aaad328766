//! The component's entry point, with Spin's key-value store and Spin's variables behind the rest of the crate.

use std::collections::BTreeMap;
use std::pin::pin;
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Body;
use futures::future::{Either, join_all, select};
use spin_sdk::http::{FromRequest, IntoResponse, Request};
use spin_sdk::time::sleep;
use spin_sdk::wasip3::exports::http::handler::Guest;
use spin_sdk::wasip3::http::{service, types};
use spin_sdk::{key_value, variables};

use crate::registry::{Registry, Store, StoreError};
use crate::routes;
use crate::settings::{BadSettings, Settings, Unreadable, VARIABLES};

/// How long the store and the variables may take over one operation. Past that the client is told, instead of left to
/// wait for as long as the host lets it.
const PATIENCE: Duration = Duration::from_secs(10);

/// Kept as long as the host keeps the instance. It holds routes, and nothing of any request.
static ROUTER: LazyLock<Router> = LazyLock::new(routes::router::<InTime<SpinStore>>);

/// Kept as long, and with it the snapshot that was used last: a roster that many read then costs one value of the store each
/// time instead of two. The one is the revision, which says whether the snapshot still counts.
static REGISTRY: LazyLock<Registry<InTime<SpinStore>>> = LazyLock::new(|| Registry::new(InTime(SpinStore)));

/// What `#[spin_sdk::http_service]` would generate, but for one thing: that answers a request that it can't convert
/// (with a `Content-Length` beyond an `i64`, for one) with an error, which clients see as a `500`.
struct Component;

service::export!(Component);

impl Guest for Component {
    async fn handle(request: types::Request) -> Result<types::Response, types::ErrorCode> {
        let settings = settings().await;
        let request = Request::from_request(request).ok().map(|request| request.map(Body::new));
        routes::respond(&ROUTER, settings, REGISTRY.clone(), request).await.into_response()
    }
}

/// How long an instance goes by the variables that it has read. A provider may change them while the component runs; but
/// reading all of them is eight calls of the host, which for most requests is as many as all else takes.
const SETTINGS_LIFE: Duration = Duration::from_secs(1);

/// The settings that this instance read last, and when it began to. Settings that are unusable are never kept.
static SETTINGS: Mutex<Option<(Instant, Arc<Settings>)>> = Mutex::new(None);

async fn settings() -> Result<Arc<Settings>, BadSettings> {
    let now = Instant::now();
    if let Ok(kept) = SETTINGS.lock()
        && let Some((read_at, settings)) = &*kept
        && now.duration_since(*read_at) < SETTINGS_LIFE
    {
        return Ok(settings.clone());
    }
    let variables = read_variables().await;
    let settings = Settings::from_variables(|name| variables.get(name).cloned().unwrap_or(Ok(None)));
    let settings = Arc::new(settings?);
    if let Ok(mut kept) = SETTINGS.lock() {
        *kept = Some((now, settings.clone()));
    }
    Ok(settings)
}

/// The variables as they are now.
async fn read_variables() -> BTreeMap<&'static str, Result<Option<String>, Unreadable>> {
    let read = VARIABLES.map(async |name| {
        let value = match in_time(variables::get(name)).await {
            Some(Ok(value)) => Ok(Some(value)),
            Some(Err(variables::Error::Undefined(_))) => Ok(None),
            Some(Err(error)) => {
                eprintln!("sentinel-broker: variable `{name}`: {error}");
                Err(Unreadable)
            }
            None => {
                eprintln!("sentinel-broker: variable `{name}`: no answer within {PATIENCE:?}");
                Err(Unreadable)
            }
        };
        (name, value)
    });
    join_all(read).await.into_iter().collect()
}

/// Spin's default store. A request that does not need it is answered also where it can't be opened.
#[derive(Clone)]
struct SpinStore;

/// The store that this instance has opened, for all its requests: opening it is a call of the host like any other, and on
/// Redis a round trip.
static OPENED: OnceLock<key_value::Store> = OnceLock::new();

impl SpinStore {
    async fn opened(&self) -> Result<&'static key_value::Store, StoreError> {
        if let Some(store) = OPENED.get() {
            return Ok(store);
        }
        let store = key_value::Store::open_default().await.map_err(failed)?;
        // Two requests may have opened it at once; one of the two is closed again.
        Ok(OPENED.get_or_init(|| store))
    }
}

#[expect(clippy::needless_pass_by_value, reason = "it is what `map_err` hands on")]
fn failed(error: key_value::Error) -> StoreError {
    StoreError(error.to_string())
}

impl Store for SpinStore {
    async fn get(&self, key: &str) -> Result<Option<Vec<u8>>, StoreError> {
        let _turn = Turn::among_others().await;
        self.opened().await?.get(key).await.map_err(failed)
    }

    async fn set(&self, key: &str, value: Vec<u8>) -> Result<(), StoreError> {
        let _turn = Turn::among_others().await;
        self.opened().await?.set(key, value).await.map_err(failed)
    }

    async fn delete(&self, key: &str) -> Result<(), StoreError> {
        let _turn = Turn::among_others().await;
        self.opened().await?.delete(key).await.map_err(failed)
    }

    async fn get_keys(&self) -> Result<Vec<String>, StoreError> {
        let asked = Asked::now();
        let Some(_turn) = Turn::alone(|| asked.is_answered()).await else { return Ok(asked.answer()) };
        let listing = asked.begin();
        let keys = self.opened().await?.get_keys().await.collect().await.map_err(failed)?;
        asked.end(listing, &keys);
        Ok(keys)
    }

    async fn wait_for_listing(&self, key: &str, purpose: &str, tried: u32) -> bool {
        if tried >= LISTING_TRIES {
            // Whoever it was may be gone.
            return false;
        }
        if self.get(key).await.is_ok_and(|noted| noted.as_deref() == Some(purpose.as_bytes())) {
            sleep((LISTING_POLL.0 * 2_u32.pow(tried.min(8))).min(LISTING_POLL.1)).await;
            return true;
        }
        // Where this can't be noted, others list as well.
        let _ = self.set(key, purpose.into()).await;
        false
    }
}

/// How long a reader waits for another one's listing before it looks again: at first, and at most.
const LISTING_POLL: (Duration, Duration) = (Duration::from_millis(1), Duration::from_millis(64));

/// How often it does, before it lists by itself: 0.7 seconds in all, and what the looks take.
const LISTING_TRIES: u32 = 16;

/// A listing costs what the whole store holds, and requests that notice the same change all want one at once. Those of one
/// instance share it: a request takes any listing that has begun after it asked, which sees all that its own would have to.
static LISTINGS: Mutex<Listings> = Mutex::new(Listings { begun: 0, asking: 0, last: None });

/// The listings of an instance, in the order in which they begin.
struct Listings {
    begun: u64,
    /// How many requests want one.
    asking: usize,
    /// The number of the last one that has ended, and its keys: for as long as there are requests that may take it.
    last: Option<(u64, Vec<String>)>,
}

/// A request for a listing, and how many had begun by then.
struct Asked {
    begun: u64,
}

impl Asked {
    fn now() -> Self {
        let mut listings = listings();
        listings.asking += 1;
        Self { begun: listings.begun }
    }

    fn begin(&self) -> u64 {
        let mut listings = listings();
        listings.begun += 1;
        listings.begun
    }

    fn end(&self, number: u64, keys: &[String]) {
        let mut listings = listings();
        if listings.asking > 1 {
            listings.last = Some((number, keys.to_vec()));
        }
    }

    fn is_answered(&self) -> bool {
        listings().last.as_ref().is_some_and(|(number, _)| *number > self.begun)
    }

    fn answer(&self) -> Vec<String> {
        listings().last.as_ref().map(|(_, keys)| keys.clone()).unwrap_or_default()
    }
}

impl Drop for Asked {
    fn drop(&mut self) {
        let mut listings = listings();
        listings.asking -= 1;
        if listings.asking == 0 {
            listings.last = None;
        }
    }
}

fn listings() -> MutexGuard<'static, Listings> {
    LISTINGS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A turn at the store. Of the requests that one instance serves at once, none may touch the store while another lists
/// its keys: Spin's SQLite provider (`key-value-spin` in 4.1) keeps its connection locked until all keys have been taken
/// from it, and whatever waits for that lock keeps the instance from taking them. All would hang.
///
/// Turns are given out in the order in which they were asked for: listings, which take long, would leave no room for
/// anything else, or never get any.
struct Turn {
    number: u64,
    alone: bool,
    has_begun: bool,
}

static TURNS: Mutex<Turns> =
    Mutex::new(Turns { asked: 0, waiting: BTreeMap::new(), others: 0, alone: false });

struct Turns {
    asked: u64,
    /// Those that were asked for and have yet to begin, by their numbers; of each, whether it is one alone.
    waiting: BTreeMap<u64, bool>,
    /// How many are under way among others.
    others: usize,
    /// Whether one is under way alone.
    alone: bool,
}

/// How often a turn is looked for: at first, and at most, since every look is a call of the host, and many that wait for a long
/// listing would keep it from getting on. A lock that wakes whoever waits for it would be nicer: but a task of a component can
/// only be woken by its host (wit-bindgen 0.57 without `inter-task-wakeup`, which traps on wasmtime 48).
const TURN_POLL: (Duration, Duration) = (Duration::from_micros(500), Duration::from_millis(4));

/// Waits until this is so.
async fn until(mut is_so: impl FnMut() -> bool) {
    let (mut pause, longest) = TURN_POLL;
    while !is_so() {
        sleep(pause).await;
        pause = (2 * pause).min(longest);
    }
}

impl Turn {
    /// For everything but a listing.
    async fn among_others() -> Self {
        let mut turn = Self::ask(false);
        until(|| turn.begin()).await;
        turn
    }

    /// For a listing. `None` as soon as it is not needed any more.
    async fn alone(is_answered: impl Fn() -> bool) -> Option<Self> {
        let mut turn = Self::ask(true);
        until(|| is_answered() || turn.begin()).await;
        turn.has_begun.then_some(turn)
    }

    fn ask(alone: bool) -> Self {
        let mut turns = turns();
        turns.asked += 1;
        let number = turns.asked;
        turns.waiting.insert(number, alone);
        Self { number, alone, has_begun: false }
    }

    /// Begins it, if it is its time.
    fn begin(&mut self) -> bool {
        let mut turns = turns();
        let mut before = turns.waiting.range(..self.number);
        let is_next = if self.alone {
            before.next().is_none() && turns.others == 0
        } else {
            !before.any(|(_, alone)| *alone)
        };
        if turns.alone || !is_next {
            return false;
        }
        turns.waiting.remove(&self.number);
        if self.alone {
            turns.alone = true;
        } else {
            turns.others += 1;
        }
        self.has_begun = true;
        true
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let mut turns = turns();
        match (self.has_begun, self.alone) {
            (true, true) => turns.alone = false,
            (true, false) => turns.others -= 1,
            (false, _) => drop(turns.waiting.remove(&self.number)),
        }
    }
}

fn turns() -> MutexGuard<'static, Turns> {
    TURNS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A store that fails where it would be slow.
#[derive(Clone)]
struct InTime<S>(S);

impl<S: Store> Store for InTime<S> {
    async fn get(&self, key: &str) -> Result<Option<Vec<u8>>, StoreError> {
        in_time(self.0.get(key)).await.unwrap_or_else(|| Err(too_slow()))
    }

    async fn set(&self, key: &str, value: Vec<u8>) -> Result<(), StoreError> {
        in_time(self.0.set(key, value)).await.unwrap_or_else(|| Err(too_slow()))
    }

    async fn delete(&self, key: &str) -> Result<(), StoreError> {
        in_time(self.0.delete(key)).await.unwrap_or_else(|| Err(too_slow()))
    }

    async fn get_keys(&self) -> Result<Vec<String>, StoreError> {
        in_time(self.0.get_keys()).await.unwrap_or_else(|| Err(too_slow()))
    }

    async fn wait_for_listing(&self, key: &str, purpose: &str, tried: u32) -> bool {
        in_time(self.0.wait_for_listing(key, purpose, tried)).await.unwrap_or(false)
    }
}

fn too_slow() -> StoreError {
    StoreError(format!("no answer within {PATIENCE:?}"))
}

/// What comes of an operation, or `None` where it takes too long. What is done at once never starts the clock.
async fn in_time<T>(operation: impl Future<Output = T>) -> Option<T> {
    match select(pin!(operation), pin!(sleep(PATIENCE))).await {
        Either::Left((value, _)) => Some(value),
        Either::Right(_) => None,
    }
}
