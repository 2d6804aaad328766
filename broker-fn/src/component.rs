//! The component's entry point, with Spin's key-value store and Spin's variables behind the rest of the crate.

use std::collections::BTreeMap;
use std::pin::pin;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use futures::future::{Either, join, join_all, select};
use spin_sdk::http::{FromRequest, IntoResponse, Request};
use spin_sdk::time::sleep;
use spin_sdk::wasip3::exports::http::handler::Guest;
use spin_sdk::wasip3::http::{service, types};
use spin_sdk::{key_value, variables};

use crate::registry::{Store, StoreError};
use crate::routes;
use crate::settings::{Settings, Unreadable, VARIABLES};

/// How long the store and the variables may take over one operation. Past that the client is told, instead of left to
/// wait for as long as the host lets it.
const PATIENCE: Duration = Duration::from_secs(10);

/// Kept as long as the host keeps the instance. It holds routes, and nothing of any request.
static ROUTER: LazyLock<Router> = LazyLock::new(routes::router::<InTime<SpinStore>>);

/// What `#[spin_sdk::http_service]` would generate, but for one thing: that answers a request that it can't convert
/// (with a `Content-Length` beyond an `i64`, for one) with an error, which clients see as a `500`.
struct Component;

service::export!(Component);

impl Guest for Component {
    async fn handle(request: types::Request) -> Result<types::Response, types::ErrorCode> {
        let (variables, store) = join(read_variables(), InTime::open()).await;
        let settings = Settings::from_variables(|name| variables.get(name).cloned().unwrap_or(Ok(None)));
        let request = Request::from_request(request).ok().map(|request| request.map(Body::new));
        routes::respond(&ROUTER, settings, store, request).await.into_response()
    }
}

/// The variables as they are now: a provider may change them while the component runs.
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

/// Spin's default store, or why it could not be opened: a request that does not need it is answered all the same.
struct SpinStore(Result<key_value::Store, StoreError>);

impl SpinStore {
    async fn open() -> Self {
        Self(key_value::Store::open_default().await.map_err(failed))
    }

    fn opened(&self) -> Result<&key_value::Store, StoreError> {
        self.0.as_ref().map_err(Clone::clone)
    }
}

#[expect(clippy::needless_pass_by_value, reason = "it is what `map_err` hands on")]
fn failed(error: key_value::Error) -> StoreError {
    StoreError(error.to_string())
}

impl Store for SpinStore {
    async fn get(&self, key: &str) -> Result<Option<Vec<u8>>, StoreError> {
        let _turn = Turn::among_others().await;
        self.opened()?.get(key).await.map_err(failed)
    }

    async fn set(&self, key: &str, value: Vec<u8>) -> Result<(), StoreError> {
        let _turn = Turn::among_others().await;
        self.opened()?.set(key, value).await.map_err(failed)
    }

    async fn delete(&self, key: &str) -> Result<(), StoreError> {
        let _turn = Turn::among_others().await;
        self.opened()?.delete(key).await.map_err(failed)
    }

    async fn get_keys(&self) -> Result<Vec<String>, StoreError> {
        let _turn = Turn::alone().await;
        self.opened()?.get_keys().await.collect().await.map_err(failed)
    }
}

/// A turn at the store. Of the requests that one instance serves at once, none may touch the store while another lists
/// its keys: Spin's SQLite provider (`key-value-spin` in 4.1) keeps its connection locked until all keys have been taken
/// from it, and whatever waits for that lock keeps the instance from taking them. All would hang.
struct Turn {
    alone: bool,
}

static ALONE: AtomicBool = AtomicBool::new(false);
static AMONG_OTHERS: AtomicUsize = AtomicUsize::new(0);

/// How often a turn is looked for. A lock that wakes whoever waits for it would be nicer: but a task of a component can
/// only be woken by its host (wit-bindgen 0.57 without `inter-task-wakeup`, which traps on wasmtime 48).
const TURN_POLL: Duration = Duration::from_micros(500);

impl Turn {
    /// For everything but a listing.
    async fn among_others() -> Self {
        while ALONE.load(Ordering::Relaxed) {
            sleep(TURN_POLL).await;
        }
        AMONG_OTHERS.fetch_add(1, Ordering::Relaxed);
        Self { alone: false }
    }

    /// For a listing: no turn is given out until it ends, and those that were are waited for.
    async fn alone() -> Self {
        while ALONE.swap(true, Ordering::Relaxed) {
            sleep(TURN_POLL).await;
        }
        let turn = Self { alone: true };
        while AMONG_OTHERS.load(Ordering::Relaxed) > 0 {
            sleep(TURN_POLL).await;
        }
        turn
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        if self.alone {
            ALONE.store(false, Ordering::Relaxed);
        } else {
            AMONG_OTHERS.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

/// A store that fails where it would be slow.
struct InTime<S>(S);

impl InTime<SpinStore> {
    async fn open() -> Self {
        Self(in_time(SpinStore::open()).await.unwrap_or_else(|| SpinStore(Err(too_slow()))))
    }
}

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
