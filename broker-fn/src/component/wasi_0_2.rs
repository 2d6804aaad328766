//! The adapter for WASI 0.2: Spin 2.7 to 4.0. Such a host makes an instance for each request. So nothing is
//! kept from one request to the next, and no request sees what another one changes.

use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::Body;
use axum::http::{Request, Response};
use futures::TryStreamExt;
use http_body_util::BodyExt;
use spin_executor::{CancelOnDropToken, push_waker_and_get_token};
use spin_sdk::http::{Headers, IncomingRequest, OutgoingResponse, ResponseOutparam};
use spin_sdk::{key_value, variables};
use wasi::clocks::monotonic_clock;

use super::{BODY_WITHIN, unreadable};
use crate::registry::{Registry, Store, StoreError};
use crate::routes::{self, in_time};
use crate::settings::{Settings, Unreadable};
use crate::turns::{InTurns, Pause};

type OwnStore = InTurns<SpinStore, Blocking>;

#[spin_sdk::http_component]
async fn answer(request: IncomingRequest, answer: ResponseOutparam) {
    let settings = Settings::from_variables(variable).map(Arc::new);
    let registry = Registry::new(OwnStore::new(SpinStore::default()));
    let router = routes::router::<OwnStore>();
    let response = routes::respond(&router, settings, registry, readable(request)).await;
    send(response, answer).await;
}

/// A request as the routes read it. `None` if it is not valid.
fn readable(request: IncomingRequest) -> Option<Request<Body>> {
    let mut builder = Request::builder().method(request.method().to_string().as_str()).uri(request.uri());
    for (name, value) in request.headers().entries() {
        builder = builder.header(name, value);
    }
    let body = request.into_body_stream().map_err(|error| std::io::Error::other(error.to_debug_string()));
    builder.body(in_time(Body::from_stream(body), Sleep::new(BODY_WITHIN))).ok()
}

async fn send(response: Response<Body>, answer: ResponseOutparam) {
    let (head, body) = response.into_parts();
    let headers: Vec<_> =
        head.headers.iter().map(|(name, value)| (name.to_string(), value.as_bytes().to_vec())).collect();
    // Every answer is already in memory, and sets no header that is reserved for the host.
    let (Ok(body), Ok(headers)) = (body.collect().await, Headers::from_list(&headers)) else { return };
    let sent = OutgoingResponse::new(headers);
    let _ = sent.set_status_code(head.status.as_u16());
    // An error is ignored: the client may have disconnected.
    let _ = answer.set_with_body(sent, body.to_bytes().into()).await;
}

fn variable(name: &'static str) -> Result<Option<String>, Unreadable> {
    match variables::get(name) {
        Ok(value) => Ok(Some(value)),
        Err(variables::Error::Undefined(_)) => Ok(None),
        Err(error) => Err(unreadable(name, error)),
    }
}

/// Spin's default store. The host's calls block, so only the host can limit how long an operation takes.
#[derive(Default)]
struct SpinStore(OnceLock<key_value::Store>);

impl SpinStore {
    /// Opened on first use, so that a request that needs no store is answered even if the store can't be
    /// opened.
    fn opened(&self) -> Result<&key_value::Store, StoreError> {
        if let Some(store) = self.0.get() {
            return Ok(store);
        }
        let store = key_value::Store::open_default().map_err(failed)?;
        Ok(self.0.get_or_init(|| store))
    }
}

#[expect(clippy::needless_pass_by_value, reason = "it is what `map_err` hands on")]
fn failed(error: key_value::Error) -> StoreError {
    StoreError(error.to_string())
}

impl Store for SpinStore {
    async fn get(&self, key: &str) -> Result<Option<Vec<u8>>, StoreError> {
        self.opened()?.get(key).map_err(failed)
    }

    async fn set(&self, key: &str, value: Vec<u8>) -> Result<(), StoreError> {
        self.opened()?.set(key, &value).map_err(failed)
    }

    async fn delete(&self, key: &str) -> Result<(), StoreError> {
        self.opened()?.delete(key).map_err(failed)
    }

    async fn get_keys(&self) -> Result<Vec<String>, StoreError> {
        self.opened()?.get_keys().map_err(failed)
    }
}

/// How an instance with one request waits.
struct Blocking;

impl Pause for Blocking {
    /// A request does not wait here: it would see a change only in the store, and would occupy an instance.
    const SEES_OTHERS: bool = false;

    async fn pause(time: Duration) {
        std::thread::sleep(time);
    }
}

/// Waits without blocking other tasks.
struct Sleep {
    until: monotonic_clock::Instant,
    waking: Option<CancelOnDropToken>,
}

impl Sleep {
    fn new(time: Duration) -> Self {
        let nanoseconds = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        Self { until: monotonic_clock::now().saturating_add(nanoseconds), waking: None }
    }
}

impl Future for Sleep {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        if monotonic_clock::now() >= self.until {
            return Poll::Ready(());
        }
        let until = monotonic_clock::subscribe_instant(self.until);
        self.waking = Some(push_waker_and_get_token(until, context.waker().clone()).into());
        Poll::Pending
    }
}
