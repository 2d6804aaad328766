//! The adapter for WASI 0.3: Spin 4.1 and later. An instance serves many requests, some of them at once.

use std::collections::BTreeMap;
use std::pin::pin;
use std::sync::{Arc, LazyLock, Mutex, OnceLock};
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Body;
use futures::future::{Either, join_all, select};
use spin_sdk::http::{FromRequest, IntoResponse, Request};
use spin_sdk::time::sleep;
use spin_sdk::wasip3::exports::http::handler::Guest;
use spin_sdk::wasip3::http::{service, types};
use spin_sdk::{key_value, variables};

use super::{BODY_WITHIN, unreadable};
use crate::api::Timestamp;
use crate::registry::{Registry, Store, StoreError};
use crate::routes::{self, in_time as body_in_time};
use crate::settings::{BadSettings, Settings, Unreadable, VARIABLES};
use crate::turns::{InTurns, Pause};

/// How long the store and the variables may take for one operation. After that, the client gets an error
/// instead of waiting for as long as the host lets it.
const PATIENCE: Duration = Duration::from_secs(10);

/// The router lives as long as the instance. It holds routes, and no data of a request.
static ROUTER: LazyLock<Router> = LazyLock::new(routes::router::<InstanceStore>);

/// The registry lives as long as the instance, and keeps the snapshots that were used last. A roster that is
/// read often then costs one read of the store instead of two: the revision, which shows whether the snapshot
/// is still valid.
static REGISTRY: LazyLock<Registry<InstanceStore>> =
    LazyLock::new(|| Registry::new(InTime(InTurns::new(SpinStore))));

/// Spin's default store, shared by all requests of an instance.
type InstanceStore = InTime<InTurns<SpinStore, SpinPause>>;

/// What `#[spin_sdk::http_service]` would generate, with one difference. The macro answers a request that it
/// can't convert (for example with a `Content-Length` beyond an `i64`) with an error, which clients see as a
/// `500`.
struct Component;

service::export!(Component);

impl Guest for Component {
    async fn handle(request: types::Request) -> Result<types::Response, types::ErrorCode> {
        let settings = settings().await;
        let in_time = |body| body_in_time(Body::new(body), sleep(BODY_WITHIN));
        let request = Request::from_request(request).ok().map(|request| request.map(in_time));
        routes::respond(&ROUTER, settings, REGISTRY.clone(), request).await.into_response()
    }
}

/// How long an instance uses the variables that it has read. A provider may change them while the component
/// runs. But reading them takes one call of the host for each variable. That is as many calls as the rest of
/// most requests.
const SETTINGS_LIFE: Duration = Duration::from_secs(1);

/// The settings that this instance read last, and when it began to read them. Unusable settings are not kept.
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
            Some(Err(error)) => Err(unreadable(name, error)),
            None => Err(unreadable(name, format_args!("no answer within {PATIENCE:?}"))),
        };
        (name, value)
    });
    join_all(read).await.into_iter().collect()
}

/// Spin's default store. A request that needs no store is answered even if the store can't be opened.
#[derive(Clone)]
struct SpinStore;

/// The store that this instance has opened, for all its requests. Opening is a call of the host, and on Redis
/// a round trip.
static OPENED: OnceLock<key_value::Store> = OnceLock::new();

impl SpinStore {
    async fn opened(&self) -> Result<&'static key_value::Store, StoreError> {
        if let Some(store) = OPENED.get() {
            return Ok(store);
        }
        let store = key_value::Store::open_default().await.map_err(failed)?;
        // Two requests may have opened the store at once. The second handle is closed.
        Ok(OPENED.get_or_init(|| store))
    }
}

#[expect(clippy::needless_pass_by_value, reason = "it is what `map_err` hands on")]
fn failed(error: key_value::Error) -> StoreError {
    StoreError(error.to_string())
}

impl Store for SpinStore {
    async fn get(&self, key: &str) -> Result<Option<Vec<u8>>, StoreError> {
        self.opened().await?.get(key).await.map_err(failed)
    }

    async fn set(&self, key: &str, value: Vec<u8>) -> Result<(), StoreError> {
        self.opened().await?.set(key, value).await.map_err(failed)
    }

    async fn delete(&self, key: &str) -> Result<(), StoreError> {
        self.opened().await?.delete(key).await.map_err(failed)
    }

    async fn get_keys(&self) -> Result<Vec<String>, StoreError> {
        self.opened().await?.get_keys().await.collect().await.map_err(failed)
    }
}

/// How a component waits.
struct SpinPause;

impl Pause for SpinPause {
    const SEES_OTHERS: bool = true;

    async fn pause(time: Duration) {
        sleep(time).await;
    }
}

/// A store that fails if it is slow.
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

    async fn pause(&self, time: Duration) -> bool {
        self.0.pause(time).await
    }

    fn now(&self) -> Timestamp {
        self.0.now()
    }
}

fn too_slow() -> StoreError {
    StoreError(format!("no answer within {PATIENCE:?}"))
}

/// The result of an operation, or `None` if it takes too long. An operation that is ready at once starts no
/// clock.
async fn in_time<T>(operation: impl Future<Output = T>) -> Option<T> {
    match select(pin!(operation), pin!(sleep(PATIENCE))).await {
        Either::Left((value, _)) => Some(value),
        Either::Right(_) => None,
    }
}
