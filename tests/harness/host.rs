//! The local host: runs the compiled component without Spin, and is as strict as Spin.
//!
//! It is a stand-in for `spin up` for tests and the demo, never a product. [`Program`] is the compiled
//! component. [`Host`] is an application made of it, with a store and values for the variables that
//! `spin.toml` declares.

mod compiled;
mod guest;
mod key_value;
mod manifest;
mod server;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use std::{fmt, io};

use anyhow::{Context, Result};
use tokio::net::TcpListener;
use wasmtime::{Config, Engine, InstanceAllocationStrategy, PoolingAllocationConfig};
use wasmtime_wasi_http::handler::{ProxyHandler, ProxyPre};
use wasmtime_wasi_http::{p2, p3};

pub use self::key_value::StoreAt;

use self::compiled::compiled;
use self::guest::{App, Instances, State};
use self::key_value::KeyValue;
use self::manifest::Manifest;
use self::server::Server;
use crate::spin::failures_in;

/// The component that ships for hosts with WASI 0.3, as the build script built it.
pub const COMPONENT: &str = env!("BROKER_FN_WASM");

/// The workspace's manifest.
pub const MANIFEST: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../spin.toml");

/// The version of WASI that a component requires. A component is built for each, from the same sources.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wasi {
    /// Spin 4.1 and later.
    V0_3,
    /// Spin 2.7 and later.
    V0_2,
}

impl Wasi {
    /// Both versions.
    pub const ALL: [Self; 2] = [Self::V0_3, Self::V0_2];

    /// The component that ships for this version.
    #[must_use]
    pub fn component(self) -> &'static Path {
        Path::new(match self {
            Self::V0_3 => COMPONENT,
            Self::V0_2 => env!("BROKER_FN_WASI_0_2_WASM"),
        })
    }

    /// The manifest that ships for this version.
    #[must_use]
    pub fn manifest(self) -> &'static Path {
        Path::new(match self {
            Self::V0_3 => MANIFEST,
            Self::V0_2 => concat!(env!("CARGO_MANIFEST_DIR"), "/../spin-wasi-0.2.toml"),
        })
    }
}

impl fmt::Display for Wasi {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::V0_3 => "WASI 0.3",
            Self::V0_2 => "WASI 0.2",
        })
    }
}

/// How often the counter of compiled code is raised, as in Spin.
const EPOCH_TICK: Duration = Duration::from_millis(10);

/// A compiled component. Compiling is slow: do it once, and make hosts from it.
#[derive(Clone)]
pub struct Program {
    engine: Engine,
    pre: Arc<ProxyPre<State>>,
}

impl Program {
    /// Compiles a component, and checks that it imports only what Spin has. Its exports show whether it is
    /// for WASI 0.3 or 0.2.
    pub fn load(path: &Path) -> Result<Self> {
        let load = || {
            let engine = engine()?;
            let component = compiled(&engine, path)?;
            let pre = |wasi| guest::linker(&engine, wasi)?.instantiate_pre(&component);
            // The exports show for which version of WASI the component is built.
            let pre = match pre(Wasi::V0_2).and_then(p2::bindings::ProxyPre::new) {
                Ok(pre) => ProxyPre::P2(pre),
                Err(_) => ProxyPre::P3(p3::bindings::ServicePre::new(pre(Wasi::V0_3)?)?),
            };
            wasmtime::error::Ok(Self { engine, pre: Arc::new(pre) })
        };
        load().map_err(anyhow::Error::from).with_context(|| format!("loading `{}`", path.display()))
    }
}

/// An engine with the settings that determine how fast a component starts and runs in Spin:
/// `crates/core/src/lib.rs` of spinframework/spin at 94a8fc8 (4.1.0-pre0, August 2026).
fn engine() -> wasmtime::Result<Engine> {
    let mut config = Config::new();
    config.wasm_component_model_async(true);
    // Compiled code regularly checks a counter, which a thread raises.
    config.epoch_interruption(true);
    // Instances are made in preallocated slots. These take terabytes of address space. If a machine has less,
    // Spin does without them too.
    let mut pooled = config.clone();
    pooled.allocation_strategy(InstanceAllocationStrategy::Pooling(pool()));
    let engine = Engine::new(&pooled).or_else(|_| Engine::new(&config))?;
    let ticking = engine.weak();
    std::thread::spawn(move || {
        loop {
            std::thread::sleep(EPOCH_TICK);
            let Some(engine) = ticking.upgrade() else { break };
            engine.increment_epoch();
        }
    });
    Ok(engine)
}

fn pool() -> PoolingAllocationConfig {
    const INSTANCES: u32 = 1_000;
    const MB: usize = 1 << 20;
    let mut pool = PoolingAllocationConfig::default();
    pool.total_component_instances(INSTANCES)
        .total_memories(INSTANCES)
        .total_tables(2 * INSTANCES)
        .total_stacks(INSTANCES)
        .total_core_instances(4 * INSTANCES)
        .table_elements(100_000)
        .max_component_instance_size(10 * MB)
        .max_core_instance_size(10 * MB)
        .max_core_instances_per_component(200)
        .max_tables_per_component(64)
        .max_memories_per_component(32)
        .max_tables_per_module(2)
        .max_memories_per_module(2)
        .max_memory_size(4 << 30)
        .linear_memory_keep_resident(2 * MB)
        .table_keep_resident(MB / 2);
    pool
}

/// The path of the code of a manifest's component.
///
/// # Errors
///
/// If the manifest can't be read.
pub fn component_of(manifest: &Path) -> Result<PathBuf> {
    let folder = manifest.parent().unwrap_or(Path::new(""));
    Ok(folder.join(Manifest::read(manifest)?.source()))
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
            variables: manifest.resolve(variables)?.into(),
            calls: AtomicUsize::new(0),
            failures: Mutex::default(),
            stopped: AtomicBool::new(false),
        };
        Ok(Self { program: program.clone(), app: Arc::new(app) })
    }

    /// Access to the failures while this host serves.
    #[must_use]
    pub fn failures(&self) -> Failures {
        Failures(Source::App(self.app.clone()))
    }

    /// What a test may see and change of the running application.
    #[must_use]
    pub fn inside(&self) -> Inside {
        Inside(self.app.clone())
    }

    /// Serves on this listener until `shutdown` is done, and then finishes the requests that are under way.
    pub async fn serve(self, listener: TcpListener, shutdown: impl Future<Output = ()>) -> io::Result<()> {
        let handler = ProxyHandler::new(Instances {
            engine: self.program.engine,
            pre: self.program.pre,
            app: self.app.clone(),
        });
        let served = server::serve(listener, Server { handler, app: self.app.clone() }, shutdown).await;
        self.app.stopped.store(true, Ordering::Relaxed);
        served
    }
}

/// The inside of a running application.
#[derive(Clone)]
pub struct Inside(Arc<App>);

impl fmt::Debug for Inside {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The application holds the values of variables, which may be secrets.
        f.write_str("Inside")
    }
}

impl Inside {
    /// Sets a variable of the component, as a provider of variables may do at any time.
    pub fn set_variable(&self, name: &str, value: &str) {
        let mut variables = self.0.variables.write().expect("nothing panics while it holds this lock");
        variables.insert(name.to_owned(), value.to_owned());
    }

    /// How often the component has called its store or asked for a variable.
    #[must_use]
    pub fn calls(&self) -> usize {
        self.0.calls.load(Ordering::Relaxed)
    }
}

/// The failures that a correct component never has: traps, and requests without an answer.
#[derive(Clone)]
pub struct Failures(Source);

#[derive(Clone)]
enum Source {
    App(Arc<App>),
    /// The standard error of `spin up`.
    Spin(PathBuf),
}

impl fmt::Debug for Failures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.all()).finish()
    }
}

impl Failures {
    /// The failures that Spin prints to this file.
    pub(crate) fn of_spin(stderr: PathBuf) -> Self {
        Self(Source::Spin(stderr))
    }

    /// Every failure so far, oldest first.
    #[must_use]
    pub fn all(&self) -> Vec<String> {
        match &self.0 {
            Source::App(app) => app.failures.lock().expect("nothing panics while it holds this lock").clone(),
            Source::Spin(stderr) => failures_in(&std::fs::read_to_string(stderr).unwrap_or_default()),
        }
    }
}
