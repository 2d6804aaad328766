//! The component's entry point, with Spin's key-value store and Spin's variables behind the rest of the crate.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use axum::body::Body;
use futures::future::{join, join_all};
use spin_sdk::http::{FromRequest, IntoResponse, Request};
use spin_sdk::time::sleep;
use spin_sdk::wasip3::exports::http::handler::Guest;
use spin_sdk::wasip3::http::{service, types};
use spin_sdk::{key_value, variables};

use crate::registry::{Store, StoreError};
use crate::routes;
use crate::settings::{Settings, Unreadable, VARIABLES};

/// What `#[spin_sdk::http_service]` would generate, but for one thing: that answers a request that it can't convert
/// (with a `Content-Length` beyond an `i64`, for one) with an error, which clients see as a `500`.
struct Component;

service::export!(Component);

impl Guest for Component {
    async fn handle(request: types::Request) -> Result<types::Response, types::ErrorCode> {
        let (variables, store) = join(read_variables(), SpinStore::open()).await;
        let settings = Settings::from_variables(|name| variables.get(name).cloned().unwrap_or(Ok(None)));
        let request = Request::from_request(request).ok().map(|request| request.map(Body::new));
        routes::respond(settings, store, request).await.into_response()
    }
}

/// The variables as they are now: a provider may change them while the component runs.
async fn read_variables() -> BTreeMap<&'static str, Result<Option<String>, Unreadable>> {
    let read = VARIABLES.map(async |name| {
        let value = match variables::get(name).await {
            Ok(value) => Ok(Some(value)),
            Err(variables::Error::Undefined(_)) => Ok(None),
            Err(error) => {
                eprintln!("sentinel-broker: variable `{name}`: {error}");
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
