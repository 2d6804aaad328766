//! The component's side: the state of an instance, the calls that it may make, and its lifetime.

use std::collections::{BTreeSet, HashMap};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, RwLock};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use http::Request;
use tokio::sync::mpsc;
use wasmtime::component::{
    Accessor, Destination, FutureReader, HasSelf, Linker, Resource, ResourceTable, StreamProducer,
    StreamReader, StreamResult, VecBuffer,
};
use wasmtime::{Engine, StoreContextMut};
use wasmtime_wasi::{WasiCtx, WasiCtxView, WasiView};
use wasmtime_wasi_http::handler::{
    HandlerState, Instance, ProxyPre, ShouldAccept, WorkerExpiration, WorkerState, WorkerStatus,
};
use wasmtime_wasi_http::{
    Error as HttpError, RequestOptions, WasiBody, WasiHttpCtx, WasiHttpCtxView, WasiHttpHooks, WasiHttpView,
};

use self::bindings::spin::key_value::key_value;
use self::bindings::spin::variables::variables;
use super::Wasi;
use super::key_value::{KeyValue, Keys, Store};
use super::manifest::validate_name;

mod wasi_0_2;

mod bindings {
    wasmtime::component::bindgen!({
        path: ["harness/host/wit/key-value.wit", "harness/host/wit/variables.wit"],
        inline: "
            package e2e:local-host;
            world guest {
                import spin:key-value/key-value@3.0.0;
                import spin:variables/variables@3.0.0;
            }
        ",
        imports: { default: async | store | trappable },
        require_store_data_send: true,
        with: { "spin:key-value/key-value.store": crate::host::key_value::Store },
    });
}

/// How many stores an instance may hold open at once, as in Spin.
const MAX_OPEN_STORES: usize = 256;

// How Spin 4.1 reuses an instance of a component for WASI 0.3. A component for WASI 0.2 gets one request per
// instance, in Spin 4.1 and before.
const MAX_CONCURRENT_REQUESTS: usize = 16;
const MAX_REQUESTS: usize = 128;
const IDLE_TIMEOUT: Duration = Duration::from_secs(1);

/// What all instances share.
pub(super) struct App {
    /// The labels of the stores that the component may open.
    pub(super) labels: BTreeSet<String>,
    pub(super) key_value: KeyValue,
    pub(super) variables: RwLock<HashMap<String, String>>,
    /// How often a component has called its store or read a variable.
    pub(super) calls: AtomicUsize,
    /// The failures that a correct component never has: traps, and requests without an answer.
    pub(super) failures: Mutex<Vec<String>>,
    /// Set once nothing is served any more. An instance that is ended with the runtime after that is no
    /// failure.
    pub(super) stopped: AtomicBool,
}

impl App {
    fn variable(&self, name: &str) -> Option<String> {
        self.variables.read().expect("nothing panics while it holds this lock").get(name).cloned()
    }

    /// Records a failure, and prints it.
    pub(super) fn failed(&self, what: String) {
        if self.stopped.load(Ordering::Relaxed) {
            return;
        }
        eprintln!("local-host: {what}");
        self.failures.lock().expect("nothing panics while it holds this lock").push(what);
    }
}

/// What one instance holds.
pub(super) struct State {
    app: Arc<App>,
    wasi: WasiCtx,
    http: WasiHttpCtx,
    hooks: NoOutboundHttp,
    table: ResourceTable,
    /// Separate from `table`, so that its capacity limits only stores.
    stores: ResourceTable,
    calls: Arc<Calls>,
}

/// The calls to key-value stores that one instance has under way.
#[derive(Default)]
struct Calls {
    listings: AtomicUsize,
    others: AtomicUsize,
}

/// A call under way. It ends when this is dropped.
struct Call {
    calls: Arc<Calls>,
    of: fn(&Calls) -> &AtomicUsize,
}

impl Call {
    /// Notes a call. Spin 4.1's SQLite provider hangs if an instance calls it while the instance lists keys:
    /// the listing holds the connection until the instance has taken all keys, and the other call keeps it
    /// from taking them.
    fn begin<T>(accessor: &Accessor<T, HasSelf<State>>, of: fn(&Calls) -> &AtomicUsize) -> Self {
        let (app, calls) = accessor.with(|mut access| {
            let state = access.get();
            (state.app.clone(), state.calls.clone())
        });
        app.calls.fetch_add(1, Ordering::Relaxed);
        let call = Self { calls, of };
        of(&call.calls).fetch_add(1, Ordering::Relaxed);
        let (listings, others) =
            (call.calls.listings.load(Ordering::Relaxed), call.calls.others.load(Ordering::Relaxed));
        if listings > 1 || (listings == 1 && others > 0) {
            app.failed("the component called its store while it listed keys: Spin would hang".into());
        }
        call
    }

    fn other<T>(accessor: &Accessor<T, HasSelf<State>>) -> Self {
        Self::begin(accessor, |calls| &calls.others)
    }

    fn listing<T>(accessor: &Accessor<T, HasSelf<State>>) -> Self {
        Self::begin(accessor, |calls| &calls.listings)
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        (self.of)(&self.calls).fetch_sub(1, Ordering::Relaxed);
    }
}

impl State {
    fn new(app: Arc<App>) -> Self {
        let mut stores = ResourceTable::new();
        stores.set_max_capacity(MAX_OPEN_STORES);
        Self {
            app,
            // Standard output belongs to the host, which prints its address there.
            wasi: WasiCtx::builder().stdout(std::io::stderr()).stderr(std::io::stderr()).build(),
            http: WasiHttpCtx::new(),
            hooks: NoOutboundHttp,
            table: ResourceTable::new(),
            stores,
            calls: Arc::default(),
        }
    }
}

impl WasiView for State {
    fn ctx(&mut self) -> WasiCtxView<'_> {
        WasiCtxView { ctx: &mut self.wasi, table: &mut self.table }
    }
}

impl WasiHttpView for State {
    fn http(&mut self) -> WasiHttpCtxView<'_> {
        WasiHttpCtxView { hooks: &mut self.hooks, table: &mut self.table, ctx: &mut self.http }
    }
}

/// The manifest allows no outbound hosts, so every request that the component sends is denied.
struct NoOutboundHttp;

type Io = Box<dyn Future<Output = Result<(), HttpError>> + Send>;

impl WasiHttpHooks for NoOutboundHttp {
    fn send_request(
        &mut self,
        _: Request<WasiBody>,
        _: Option<RequestOptions>,
        _: Io,
    ) -> Box<dyn Future<Output = Result<(http::Response<WasiBody>, Io), HttpError>> + Send> {
        Box::new(async { Err(HttpError::HttpRequestDenied) })
    }
}

/// Everything that a component for this version may import.
pub(super) fn linker(engine: &Engine, wasi: Wasi) -> wasmtime::Result<Linker<State>> {
    let mut linker = Linker::new(engine);
    // The Rust standard library imports WASI 0.2, even if the Spin SDK imports 0.3.
    wasmtime_wasi::p2::add_to_linker_async(&mut linker)?;
    if wasi == Wasi::V0_2 {
        wasi_0_2::add_to_linker(&mut linker)?;
        return Ok(linker);
    }
    wasmtime_wasi::p3::add_to_linker(&mut linker)?;
    wasmtime_wasi_http::p3::add_to_linker(&mut linker)?;
    key_value::add_to_linker::<_, HasSelf<State>>(&mut linker, |state| state)?;
    variables::add_to_linker::<_, HasSelf<State>>(&mut linker, |state| state)?;
    Ok(linker)
}

type StoreResult<T> = wasmtime::Result<Result<T, key_value::Error>>;

/// The open store behind a handle. With the clone, the instance can go on while the store works.
fn store<T>(accessor: &Accessor<T, HasSelf<State>>, handle: &Resource<Store>) -> wasmtime::Result<Store> {
    accessor.with(|mut access| Ok(access.get().stores.get(handle)?.clone()))
}

impl key_value::Host for State {}

impl key_value::HostStore for State {}

impl<T: Send> key_value::HostStoreWithStore<T> for HasSelf<State> {
    async fn open(accessor: &Accessor<T, Self>, label: String) -> StoreResult<Resource<Store>> {
        let app = accessor.with(|mut access| access.get().app.clone());
        app.calls.fetch_add(1, Ordering::Relaxed);
        if !app.labels.contains(&label) {
            return Ok(Err(key_value::Error::AccessDenied));
        }
        let store = match app.key_value.store(&label).await {
            Ok(store) => store,
            Err(error) => return Ok(Err(key_value::Error::Other(error))),
        };
        accessor.with(|mut access| {
            Ok(access.get().stores.push(store).map_err(|_| key_value::Error::StoreTableFull))
        })
    }

    async fn get(
        accessor: &Accessor<T, Self>,
        handle: Resource<Store>,
        key: String,
    ) -> StoreResult<Option<Vec<u8>>> {
        let _call = Call::other(accessor);
        Ok(store(accessor, &handle)?.get(&key).await.map_err(key_value::Error::Other))
    }

    async fn set(
        accessor: &Accessor<T, Self>,
        handle: Resource<Store>,
        key: String,
        value: Vec<u8>,
    ) -> StoreResult<()> {
        let _call = Call::other(accessor);
        Ok(store(accessor, &handle)?.set(&key, &value).await.map_err(key_value::Error::Other))
    }

    async fn delete(accessor: &Accessor<T, Self>, handle: Resource<Store>, key: String) -> StoreResult<()> {
        let _call = Call::other(accessor);
        Ok(store(accessor, &handle)?.delete(&key).await.map_err(key_value::Error::Other))
    }

    async fn exists(accessor: &Accessor<T, Self>, handle: Resource<Store>, key: String) -> StoreResult<bool> {
        let _call = Call::other(accessor);
        let value = store(accessor, &handle)?.get(&key).await;
        Ok(value.map(|value| value.is_some()).map_err(key_value::Error::Other))
    }

    async fn get_keys(
        accessor: &Accessor<T, Self>,
        handle: Resource<Store>,
    ) -> wasmtime::Result<(StreamReader<String>, FutureReader<Result<(), key_value::Error>>)> {
        let call = Call::listing(accessor);
        let Keys { keys, outcome } = store(accessor, &handle)?.keys();
        accessor.with(|mut access| {
            // The component reads the outcome last, after all keys.
            let outcome = async move {
                let outcome = outcome.await.unwrap_or_else(|_| Err("the listing broke off".into()));
                drop(call);
                wasmtime::error::Ok(outcome.map_err(key_value::Error::Other))
            };
            Ok((StreamReader::new(&mut access, Listed(keys))?, FutureReader::new(&mut access, outcome)?))
        })
    }

    async fn drop(accessor: &Accessor<T, Self>, handle: Resource<Store>) -> wasmtime::Result<()> {
        accessor.with(|mut access| access.get().stores.delete(handle))?;
        Ok(())
    }
}

/// The keys of a listing, in small batches, as in Spin (`crates/wasi-async/src/stream.rs`).
struct Listed(mpsc::Receiver<Vec<String>>);

impl<D> StreamProducer<D> for Listed {
    type Item = String;
    type Buffer = VecBuffer<String>;

    fn poll_produce<'a>(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        store: StoreContextMut<'a, D>,
        mut to: Destination<'a, String, VecBuffer<String>>,
        finish: bool,
    ) -> Poll<wasmtime::Result<StreamResult>> {
        // The guest only asks whether there are keys.
        if to.remaining(store) == Some(0) {
            return Poll::Ready(Ok(StreamResult::Completed));
        }
        match self.0.poll_recv(context) {
            Poll::Ready(Some(handful)) => {
                to.set_buffer(handful.into());
                Poll::Ready(Ok(StreamResult::Completed))
            }
            Poll::Ready(None) => Poll::Ready(Ok(StreamResult::Dropped)),
            Poll::Pending if finish => Poll::Ready(Ok(StreamResult::Cancelled)),
            Poll::Pending => Poll::Pending,
        }
    }
}

impl variables::Host for State {}

impl<T: Send> variables::HostWithStore<T> for HasSelf<State> {
    async fn get(
        accessor: &Accessor<T, Self>,
        name: String,
    ) -> wasmtime::Result<Result<String, variables::Error>> {
        let app = accessor.with(|mut access| access.get().app.clone());
        app.calls.fetch_add(1, Ordering::Relaxed);
        if let Err(why) = validate_name(&name) {
            return Ok(Err(variables::Error::InvalidName(why)));
        }
        let value = app.variable(&name);
        Ok(value.ok_or_else(|| variables::Error::Undefined(format!("no variable {name:?}"))))
    }
}

/// Makes instances for [`ProxyHandler`](wasmtime_wasi_http::handler::ProxyHandler).
pub(super) struct Instances {
    pub(super) engine: Engine,
    pub(super) pre: Arc<ProxyPre<State>>,
    pub(super) app: Arc<App>,
}

impl HandlerState for Instances {
    type StoreData = State;
    type WorkerExpiration = Expiration;
    type WorkerState = Reuse;

    async fn instantiate(&self) -> wasmtime::Result<Instance<State, Expiration, Reuse>> {
        let mut store = wasmtime::Store::new(&self.engine, State::new(self.app.clone()));
        // Practically never: this is a very large number of ticks.
        store.set_epoch_deadline(u64::MAX / 2);
        let proxy = self.pre.instantiate_async(&mut store).await?;
        let max_requests = match *self.pre {
            ProxyPre::P2(_) => 1,
            ProxyPre::P3(_) => MAX_REQUESTS,
        };
        Ok(Instance {
            store,
            proxy,
            view: State::http,
            expiration: Expiration(Box::pin(tokio::time::sleep(IDLE_TIMEOUT))),
            state: Reuse { app: self.app.clone(), max_requests },
        })
    }
}

/// Ends an instance that has been idle for [`IDLE_TIMEOUT`]. Requests have no deadline, as in Spin.
pub(super) struct Expiration(Pin<Box<tokio::time::Sleep>>);

impl WorkerExpiration for Expiration {
    fn poll(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        status: WorkerStatus,
        since: Instant,
    ) -> Poll<()> {
        if status != WorkerStatus::Idle {
            return Poll::Pending;
        }
        let deadline = (since + IDLE_TIMEOUT).into();
        if self.0.deadline() != deadline {
            self.0.as_mut().reset(deadline);
        }
        self.0.as_mut().poll(context)
    }
}

/// How many requests an instance gets.
pub(super) struct Reuse {
    app: Arc<App>,
    max_requests: usize,
}

impl WorkerState for Reuse {
    type StoreData = State;
    type RequestData = ();

    fn should_accept_request(&self, concurrent: usize, total: usize) -> ShouldAccept {
        if total >= self.max_requests {
            ShouldAccept::Never
        } else if concurrent >= MAX_CONCURRENT_REQUESTS {
            ShouldAccept::No
        } else {
            ShouldAccept::Yes
        }
    }

    fn on_request_start(
        &self,
        _: StoreContextMut<'_, State>,
        (): (),
        _: wasmtime::component::GuestTaskId,
    ) -> Pin<Box<dyn Future<Output = ()> + Send + Sync>> {
        // Spin has a timer for each request. Without a configured limit, that timer never ends either.
        Box::pin(tokio::time::sleep(Duration::MAX))
    }

    fn drop(&self, store: wasmtime::Store<State>, result: wasmtime::Result<()>) {
        drop(store);
        if let Err(error) = result {
            self.app.failed(format!("an instance failed: {error:?}"));
        }
    }
}
