//! The broker: the real component in the local host, or in Spin.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::{LazyLock, mpsc};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use broker_fn::api::{Register, Registration};
use http::Method;
use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use tokio::sync::oneshot;

use crate::host::{Failures, Host, Inside, Program, StoreAt, Wasi};
use crate::http::{Reply, Request};
use crate::node::Node;
use crate::spin::{Spin, SpinUp};

/// All brokers of this process share a separate runtime, so that they answer even if a test blocks its
/// runtime.
static RUNTIME: LazyLock<Runtime> = LazyLock::new(|| Runtime::new().expect("threads can be started"));

/// Each component is compiled once, for all brokers of this process.
static PROGRAMS: [LazyLock<Result<Program, String>>; 2] =
    [LazyLock::new(|| load(Wasi::V0_3)), LazyLock::new(|| load(Wasi::V0_2))];

fn load(wasi: Wasi) -> Result<Program, String> {
    Program::load(wasi.component()).map_err(|error| format!("{error:#}"))
}

/// How long a broker may take to stop: more than the host's own grace period.
const STOP_LIMIT: Duration = Duration::from_secs(10);

/// Configures a broker before it starts.
#[derive(Debug)]
#[must_use = "nothing runs until `start`"]
pub struct BrokerBuilder {
    listen: SocketAddr,
    wasi: Wasi,
    manifest: Option<PathBuf>,
    store: StoreAt,
    variables: BTreeMap<String, String>,
    spin: Option<Spin>,
}

impl BrokerBuilder {
    /// Listens on this address instead of a free port of 127.0.0.1.
    pub fn listen(mut self, listen: SocketAddr) -> Self {
        self.listen = listen;
        self
    }

    /// Uses the component that is built for this version of WASI.
    pub fn built_for(mut self, wasi: Wasi) -> Self {
        self.wasi = wasi;
        self
    }

    /// Uses the application of this manifest instead of the one that ships.
    pub fn manifest(mut self, path: impl Into<PathBuf>) -> Self {
        self.manifest = Some(path.into());
        self
    }

    /// Keeps the store there instead of in memory.
    pub fn store(mut self, store: impl Into<StoreAt>) -> Self {
        self.store = store.into();
        self
    }

    /// Sets a variable of `spin.toml`.
    #[expect(clippy::needless_pass_by_value, reason = "numbers are given by value")]
    pub fn variable(mut self, name: &str, value: impl ToString) -> Self {
        self.variables.insert(name.to_owned(), value.to_string());
        self
    }

    /// Runs in this Spin instead of the local host, on a free port.
    pub fn on_spin(mut self, spin: &Spin) -> Self {
        self.spin = Some(spin.clone());
        self
    }

    /// Starts the broker. It answers as soon as this returns. `dir` makes a folder for the files of a
    /// separate process.
    pub(crate) fn start(self, dir: impl FnOnce() -> PathBuf) -> Result<Broker> {
        let manifest = self.manifest.as_deref().unwrap_or(self.wasi.manifest());
        match &self.spin {
            Some(spin) => {
                let dir = dir();
                let up = spin.up(manifest, self.wasi.component(), &self.store, &self.variables, &dir)?;
                let failures = Failures::of_spin(dir.join("stderr"));
                Ok(Broker { addr: up.addr(), failures, runs: Runs::Spin(Box::new(up)) })
            }
            None => self.start_here(manifest),
        }
    }

    fn start_here(&self, manifest: &Path) -> Result<Broker> {
        let program = match self.wasi {
            Wasi::V0_3 => &PROGRAMS[0],
            Wasi::V0_2 => &PROGRAMS[1],
        };
        let program = program.as_ref().map_err(|error| anyhow::anyhow!("{error}"))?;
        let host = Host::new(program, manifest, &self.store, &self.variables)?;
        let (failures, inside) = (host.failures(), host.inside());
        let listener = std::net::TcpListener::bind(self.listen)
            .with_context(|| format!("listening on {}", self.listen))?;
        let addr = listener.local_addr()?;
        listener.set_nonblocking(true)?;
        let listener = {
            let _context = RUNTIME.enter();
            TcpListener::from_std(listener)?
        };
        let (stop, stopped) = oneshot::channel::<()>();
        let (done, ended) = mpsc::channel();
        RUNTIME.spawn(async move {
            let shutdown = async {
                // Dropping the sender is the signal.
                let _ = stopped.await;
            };
            let served = host.serve(listener, shutdown).await;
            // The receiver may be gone.
            let _ = done.send(served);
        });
        Ok(Broker { addr, failures, runs: Runs::Here { stop: Some(stop), ended, inside } })
    }
}

/// A broker that runs until this is dropped.
#[derive(Debug)]
pub struct Broker {
    addr: SocketAddr,
    failures: Failures,
    runs: Runs,
}

/// What ends the broker.
#[derive(Debug)]
enum Runs {
    Here {
        stop: Option<oneshot::Sender<()>>,
        ended: mpsc::Receiver<std::io::Result<()>>,
        inside: Inside,
    },
    #[expect(dead_code, reason = "Spin is killed when this is dropped")]
    Spin(Box<SpinUp>),
}

impl Broker {
    /// A broker with its store in memory and the variables' defaults, unless configured otherwise.
    pub fn builder() -> BrokerBuilder {
        BrokerBuilder {
            listen: SocketAddr::new(Ipv4Addr::LOCALHOST.into(), 0),
            wasi: Wasi::V0_3,
            manifest: None,
            store: StoreAt::Memory,
            variables: BTreeMap::new(),
            spin: None,
        }
    }

    /// The address on which it listens.
    #[must_use]
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// The URL, without a slash at the end.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://{}", self.addr)
    }

    /// The failures so far, such as traps. A correct component has none.
    #[must_use]
    pub fn failures(&self) -> &Failures {
        &self.failures
    }

    /// Access to the inside of the host.
    ///
    /// Panics if the broker runs in Spin, which gives no access.
    #[must_use]
    pub fn inside(&self) -> &Inside {
        match &self.runs {
            Runs::Here { inside, .. } => inside,
            Runs::Spin(_) => panic!("this broker runs in Spin"),
        }
    }

    /// A request of any method.
    pub fn request(&self, method: Method, path: impl Into<String>) -> Request {
        Request::new(self.addr, method, path)
    }

    /// A `GET` request.
    pub fn get(&self, path: impl Into<String>) -> Request {
        self.request(Method::GET, path)
    }

    /// A `POST` request.
    pub fn post(&self, path: impl Into<String>) -> Request {
        self.request(Method::POST, path)
    }

    /// A `PUT` request.
    pub fn put(&self, path: impl Into<String>) -> Request {
        self.request(Method::PUT, path)
    }

    /// A `DELETE` request.
    pub fn delete(&self, path: impl Into<String>) -> Request {
        self.request(Method::DELETE, path)
    }

    /// Registers a node in the default group at the address on which it listens, or at its proxy's address.
    pub async fn register(&self, node: &Node) -> Result<Registration> {
        let addr = node.registered_at();
        let body = Register {
            host: Some(addr.ip().try_into()?),
            port: Some(addr.port().try_into()?),
            ..Register::default()
        };
        let reply: Reply = self.post(format!("/{}", node.kind())).json(&body).send().await?;
        ensure!(reply.status.is_success(), "registering {node}: {reply}");
        reply.json()
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        if let Runs::Here { stop, ended, .. } = &mut self.runs {
            stop.take();
            // If this is late or fails, there is nothing left to serve.
            let _ = ended.recv_timeout(STOP_LIMIT);
        }
    }
}
