//! The component's entry point, with Spin's key-value store and Spin's variables behind the rest of the crate.

use std::collections::BTreeMap;
use std::pin::pin;
use std::sync::LazyLock;
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
        self.opened()?.get(key).await.map_err(failed)
    }

    async fn set(&self, key: &str, value: Vec<u8>) -> Result<(), StoreError> {
        self.opened()?.set(key, value).await.map_err(failed)
    }

    async fn delete(&self, key: &str) -> Result<(), StoreError> {
        self.opened()?.delete(key).await.map_err(failed)
    }

    async fn get_keys(&self) -> Result<Vec<String>, StoreError> {
        self.opened()?.get_keys().await.collect().await.map_err(failed)
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
