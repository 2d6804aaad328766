//! The local host: runs the compiled component where there is no `spin`, as strictly as Spin does.
//!
//! It is a stand-in for `spin up` for tests and the demo, never a product. [`Program`] is the compiled component,
//! [`Host`] an application made of it: a store, and values for the variables that `spin.toml` declares.

mod guest;
mod key_value;
mod manifest;
mod server;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::{fmt, io};

use anyhow::{Context, Result};
use tokio::net::TcpListener;
use wasmtime::component::Component;
use wasmtime::{Config, Engine};
use wasmtime_wasi_http::handler::ProxyHandler;
use wasmtime_wasi_http::p3::bindings::ServicePre;

pub use self::key_value::StoreAt;

use self::guest::{App, Instances, State};
use self::key_value::KeyValue;
use self::manifest::Manifest;
use self::server::Server;

/// The component that ships, as the build script built it.
pub const COMPONENT: &str = env!("BROKER_FN_WASM");

/// The workspace's manifest.
pub const MANIFEST: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../spin.toml");

/// A compiled component. Compiling is what takes time: do it once and make hosts of it.
#[derive(Clone)]
pub struct Program(ServicePre<State>);

impl Program {
    /// Compiles a component, and checks that it imports only what Spin has.
    pub fn load(path: &Path) -> Result<Self> {
        let load = || {
            let mut config = Config::new();
            config.wasm_component_model_async(true);
            let engine = Engine::new(&config)?;
            let component = Component::from_file(&engine, path)?;
            ServicePre::new(guest::linker(&engine)?.instantiate_pre(&component)?)
        };
        load().map(Self).map_err(anyhow::Error::from).with_context(|| format!("loading `{}`", path.display()))
    }
}

/// An application, ready to be served.
pub struct Host {
    program: Program,
    app: Arc<App>,
}

impl Host {
    /// An application of this manifest, with these values for its variables instead of their defaults.
    ///
    /// A variable that the manifest does not declare is an error.
    pub fn new(
        program: &Program,
        manifest: &Path,
        store: &StoreAt,
        variables: &BTreeMap<String, String>,
    ) -> Result<Self> {
        let manifest = Manifest::read(manifest)?;
        let app = App {
            labels: manifest.stores(),
            key_value: KeyValue::open(store).with_context(|| format!("opening the store {store:?}"))?,
            variables: manifest.resolve(variables)?,
            failures: Mutex::default(),
            stopped: AtomicBool::new(false),
        };
        Ok(Self { program: program.clone(), app: Arc::new(app) })
    }

    /// Where to read later what went wrong while this host served.
    #[must_use]
    pub fn failures(&self) -> Failures {
        Failures(self.app.clone())
    }

    /// Serves on this listener until `shutdown` is done, and then finishes the requests that are under way.
    pub async fn serve(self, listener: TcpListener, shutdown: impl Future<Output = ()>) -> io::Result<()> {
        let handler = ProxyHandler::new(Instances { pre: self.program.0, app: self.app.clone() });
        let served = server::serve(listener, Server { handler, app: self.app.clone() }, shutdown).await;
        self.app.stopped.store(true, Ordering::Relaxed);
        served
    }
}

/// What a correct component never lets happen: traps, and requests that it left without an answer.
#[derive(Clone)]
pub struct Failures(Arc<App>);

impl fmt::Debug for Failures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.all()).finish()
    }
}

impl Failures {
    /// Every failure so far, oldest first.
    #[must_use]
    pub fn all(&self) -> Vec<String> {
        self.0.failures.lock().expect("nothing panics while it holds this lock").clone()
    }
}
