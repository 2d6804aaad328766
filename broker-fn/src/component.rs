//! The component's entry point, with Spin's key-value store and Spin's variables behind the rest of the crate.

use std::collections::BTreeMap;

use axum::body::Body;
use futures::future::{join, join_all};
use spin_sdk::http::{FromRequest, IntoResponse, Request};
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
