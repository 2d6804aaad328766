//! Real Redis servers and real Sentinels.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt::{self, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock};
use std::time::Duration;
use std::{env, fs};

use anyhow::{Context, Result, bail, ensure};
use broker_fn::api::Kind;
use redis::{
    AsyncConnectionConfig, ConnectionAddr, FromRedisValue, IntoConnectionInfo, RedisConnectionInfo, Value,
};
use rustix::process::Signal;
use tokio::net::TcpSocket;
use tokio::process::Command;

use crate::eventually;
use crate::latency::SlowLine;
use crate::network::{Machine, within};
use crate::process::Process;
use crate::proxy::{Ledger, Proxy};
use crate::runner;
use crate::tls::Tls;

/// How long a node may take to start, or to answer a command.
const LIMIT: Duration = Duration::from_secs(10);

/// How long a node may take to start under `join`, which may have to wait for a failover.
const JOIN_LIMIT: Duration = Duration::from_secs(60);

/// How many other ports are tried if another process has taken the free port.
const PORTS_TRIED: usize = 5;

/// The user and the password of [`NodeBuilder::ADMIN_USER`].
const ADMIN: [&str; 2] = ["admin", "adm1n-s3cret"];

/// Configures a node before it starts.
#[derive(Debug)]
#[must_use = "nothing runs until `start`"]
pub struct NodeBuilder {
    kind: Kind,
    name: String,
    dir: PathBuf,
    host: IpAddr,
    source: Option<IpAddr>,
    port: Option<u16>,
    password: Option<String>,
    /// Whether [`Node::command`] logs in as the user of [`NodeBuilder::ADMIN_USER`].
    has_admin: bool,
    tls: Option<Tls>,
    config: Vec<String>,
    cluster: bool,
    everywhere: bool,
    ledger: Option<Ledger>,
    reached_from: Option<IpAddr>,
    join: Option<Vec<String>>,
    env: Vec<(&'static str, OsString)>,
    slow: Option<Duration>,
    namespace: Option<String>,
}

impl NodeBuilder {
    pub(crate) fn new(kind: Kind, name: String, dir: PathBuf) -> Self {
        let host = IpAddr::V4(Ipv4Addr::LOCALHOST);
        Self {
            kind,
            name,
            dir,
            host,
            source: None,
            port: None,
            password: None,
            has_admin: false,
            tls: None,
            config: vec![],
            cluster: false,
            everywhere: false,
            ledger: None,
            reached_from: None,
            join: None,
            env: vec![],
            slow: None,
            namespace: None,
        }
    }

    /// Listens on this loopback address instead of 127.0.0.1. The node also connects from there, as it would
    /// on a separate machine.
    pub fn host(mut self, host: impl Into<IpAddr>) -> Self {
        self.host = host.into();
        self
    }

    /// Makes the node connect from this address, like a machine with a second interface.
    pub fn from(mut self, source: impl Into<IpAddr>) -> Self {
        self.source = Some(source.into());
        self
    }

    /// Runs on this machine, at the machine's address, on a port that the test chooses.
    pub fn on(mut self, machine: &Machine, port: u16) -> Self {
        self.namespace = Some(machine.namespace());
        self.host(machine.addr()).port(port)
    }

    /// Listens on this port instead of a free one.
    pub fn port(mut self, port: u16) -> Self {
        self.port = Some(port);
        self
    }

    /// Requires a password of its clients. [`Node::command`] sends it.
    pub fn password(mut self, password: impl Into<String>) -> Self {
        self.password = Some(password.into());
        self
    }

    /// The line that defines the user of [`admin`](Self::admin).
    pub const ADMIN_USER: &str = "user admin on >adm1n-s3cret ~* &* +@all";

    /// Adds an ACL user, as which [`Node::command`] logs in. The passwords of the other users are left to the
    /// test.
    pub fn admin(self) -> Self {
        self.admin_elsewhere().config(Self::ADMIN_USER)
    }

    /// Like [`admin`](Self::admin), for a test that writes the line [`ADMIN_USER`](Self::ADMIN_USER) to a
    /// separate file.
    pub fn admin_elsewhere(mut self) -> Self {
        self.has_admin = true;
        self
    }

    /// The folder of the node's files.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Uses only TLS, with its clients and with the other nodes, and requires a certificate of its clients.
    pub fn tls(mut self, tls: &Tls) -> Self {
        self.tls = Some(tls.clone());
        self
    }

    /// Adds a line to the configuration file.
    pub fn config(mut self, line: impl Into<String>) -> Self {
        self.config.push(line.into());
        self
    }

    /// Runs as a node of a Redis Cluster.
    pub fn cluster(mut self) -> Self {
        self.cluster = true;
        self
    }

    /// Listens on every address of this machine, like a server without `bind` in its configuration.
    pub fn everywhere(mut self) -> Self {
        self.everywhere = true;
        self
    }

    /// Puts a proxy in front of the node, which registers at the proxy's address. To the other nodes it
    /// announces its own.
    pub fn behind(mut self, ledger: &Ledger) -> Self {
        self.ledger = Some(ledger.clone());
        self
    }

    /// Puts a line in front of the node that delays its answers by this time. The node registers at the
    /// line's address. To the other nodes it announces its own.
    pub fn slow(mut self, delay: Duration) -> Self {
        self.slow = Some(delay);
        self
    }

    /// Makes the proxy connect from this address.
    pub fn reached_from(mut self, address: IpAddr) -> Self {
        self.reached_from = Some(address);
        self
    }

    /// Runs under `sentinel-runner join`, with these flags. While the node waits, no other process is given
    /// its port. `join` writes the file of a Sentinel for which nothing else is configured.
    pub fn joining<F: Into<String>>(mut self, flags: impl IntoIterator<Item = F>) -> Self {
        self.join = Some(flags.into_iter().map(Into::into).collect());
        self
    }

    /// Adds flags of `join`, for a node that [joins](Self::joining).
    pub fn join_flags<F: Into<String>>(mut self, flags: impl IntoIterator<Item = F>) -> Self {
        self.join.get_or_insert_default().extend(flags.into_iter().map(Into::into));
        self
    }

    /// Sets a variable of the environment.
    pub fn env(mut self, name: &'static str, value: impl Into<OsString>) -> Self {
        self.env.push((name, value.into()));
        self
    }

    /// Starts the node without waiting for anything, for a node that [joins](Self::joining).
    pub fn launch(self) -> Result<Node> {
        let port = self.port.map_or_else(|| steady_port(self.host), Ok)?;
        if self.has_file() {
            fs::write(self.config_file(), self.config_text(port)?)?;
        }
        let process = self.spawn(port)?;
        let addr = SocketAddr::new(self.host, port);
        Ok(Node {
            builder: self,
            addr,
            proxy: None,
            line: None,
            process: Mutex::new(process),
            reserved: Mutex::default(),
        })
    }

    /// Starts the node, and waits until it answers.
    pub async fn start(self) -> Result<Node> {
        let mut tries = if self.port.is_some() { 1 } else { PORTS_TRIED };
        loop {
            tries -= 1;
            let port = self.port.map_or_else(|| self.free_port(), Ok)?;
            fs::write(self.config_file(), self.config_text(port)?)?;
            let mut process = self.spawn(port)?;
            match self.ready(&mut process, port).await {
                Ok(()) => {
                    let addr = SocketAddr::new(self.host, port);
                    let proxy = match &self.ledger {
                        Some(ledger) => {
                            Some(Proxy::start(&self.name, addr, ledger, self.reached_from).await?)
                        }
                        None => None,
                    };
                    let line = match self.slow {
                        Some(delay) => Some(SlowLine::start(addr, delay).await?),
                        None => None,
                    };
                    return Ok(Node {
                        builder: self,
                        addr,
                        proxy,
                        line,
                        process: Mutex::new(process),
                        reserved: Mutex::default(),
                    });
                }
                // The port was free a moment ago, but another process has taken it.
                Err(_) if tries > 0 && process.output().contains("Address already in use") => {}
                Err(error) => return Err(error),
            }
        }
    }

    fn config_file(&self) -> PathBuf {
        self.dir.join(format!("{}.conf", self.kind))
    }

    /// Whether the node has a configuration file before it starts. Otherwise `join` makes one.
    fn has_file(&self) -> bool {
        let Self { kind, join, tls, password, config, .. } = self;
        *kind == Kind::Redis || join.is_none() || tls.is_some() || password.is_some() || !config.is_empty()
    }

    fn config_text(&self, port: u16) -> Result<String> {
        let Self { kind, dir, host, password, tls, config, .. } = self;
        let mut text = format!("dir {}\ndaemonize no\n", dir.display());
        if !self.everywhere {
            writeln!(text, "bind {host}")?;
        }
        text += &tls.as_ref().map_or_else(|| format!("port {port}\n"), |tls| tls.config(port));
        if *kind == Kind::Redis {
            text.push_str("save \"\"\n");
        }
        if *host != IpAddr::V4(Ipv4Addr::LOCALHOST) {
            // Otherwise the kernel picks 127.0.0.1, and masters and Sentinels would use 127.0.0.1 as the
            // node's address. Before 7.0, there is no such setting: connections come from the address of
            // `bind`.
            if redis_version()? >= (7, 0) {
                writeln!(text, "bind-source-addr {}", self.source.unwrap_or(*host))?;
            }
            // For a protected Redis server, only 127.0.0.1 is local. Sentinels are not protected.
            if *kind == Kind::Redis {
                text.push_str("protected-mode no\n");
            }
        }
        if let Some(password) = password {
            // A configuration file escapes quoted text like Rust's `{:?}`.
            writeln!(text, "requirepass {password:?}")?;
        }
        if self.cluster {
            text.push_str("cluster-enabled yes\n");
        }
        if self.ledger.is_some() || self.slow.is_some() {
            let announce = match kind {
                Kind::Redis => "replica-announce",
                Kind::Sentinel => "sentinel announce",
            };
            writeln!(text, "{announce}-ip {host}\n{announce}-port {port}")?;
        }
        for line in config {
            text.push_str(line);
            text.push('\n');
        }
        Ok(text)
    }

    fn free_port(&self) -> Result<u16> {
        loop {
            let port = free_port(self.host)?;
            // In a cluster, the port for the other nodes is the node's port plus 10000. It can be set only
            // since 7.0.
            if !self.cluster || port <= u16::MAX - 10_000 {
                return Ok(port);
            }
        }
    }

    fn spawn(&self, port: u16) -> Result<Process> {
        let program = match self.kind {
            Kind::Redis => redis_server(),
            Kind::Sentinel => match (env::var_os("REDIS_SENTINEL"), env::var_os("REDIS_SERVER")) {
                (Some(sentinel), _) => sentinel,
                (None, None) => "redis-sentinel".into(),
                // The same program under another name.
                (None, Some(server)) => server,
            },
        };
        let mut command = match &self.join {
            None => Command::new(program),
            Some(flags) => {
                let mut command = runner::command(&self.dir);
                command.args(["join", self.kind.as_str()]).args(flags).arg("--").arg(program);
                command
            }
        };
        command.envs(self.env.iter().cloned()).arg(self.config_file());
        if self.kind == Kind::Sentinel {
            command.arg("--sentinel");
        }
        if !self.has_file() {
            command.args(["--port", &port.to_string(), "--bind", &self.host.to_string()]);
            command.arg("--dir").arg(&self.dir);
        }
        if let Some(namespace) = &self.namespace {
            command = within(namespace, &command);
        }
        Process::spawn(&self.name, command, &self.dir)
    }

    /// Waits until this process answers.
    async fn ready(&self, process: &mut Process, port: u16) -> Result<()> {
        let limit = if self.join.is_some() { JOIN_LIMIT } else { LIMIT };
        let ended = eventually(limit, async || match self.answers(process, port).await {
            Ok(()) => Ok(None),
            Err(error) => match process.ended()? {
                Some(status) => Ok(Some(status)),
                None => bail!("{} is not ready: {error:#}\n{}", self.name, process.output()),
            },
        })
        .await?;
        // This is an error and no panic, because the caller may try another port.
        if let Some(status) = ended {
            bail!("{} ended at once, with {status}:\n{}", self.name, process.output());
        }
        Ok(())
    }

    /// Checks that this process answers. Any other process on the port has another process id.
    async fn answers(&self, process: &Process, port: u16) -> Result<()> {
        let pid = self.server_pid(process).unwrap_or_default();
        let info = String::from_redis_value(self.command(port, &["INFO", "server"]).await?)?;
        let is_this = parse_info(&info).get("process_id") == Some(&pid.to_string());
        ensure!(is_this, "another process has this port");
        // A server that is loading its data answers `INFO` and nothing else.
        self.command(port, &["PING"]).await.map(drop)
    }

    /// The server's process: the started process, or with `join` its child.
    fn server_pid(&self, process: &Process) -> Option<u32> {
        match self.join {
            None => Some(process.id()),
            Some(_) => process.children().first().copied(),
        }
    }

    async fn command(&self, port: u16, words: &[&str]) -> Result<Value> {
        let mut settings = RedisConnectionInfo::default().set_skip_set_lib_name();
        if let Some(password) = &self.password {
            settings = settings.set_password(password);
        }
        if self.has_admin {
            let [name, password] = ADMIN;
            settings = settings.set_username(name).set_password(password);
        }
        let host = self.host.to_string();
        let client = match &self.tls {
            None => {
                let addr = ConnectionAddr::Tcp(host, port).into_connection_info()?;
                redis::Client::open(addr.set_redis_settings(settings))?
            }
            Some(tls) => {
                let addr = ConnectionAddr::TcpTls { host, port, insecure: false, tls_params: None };
                let info = addr.into_connection_info()?.set_redis_settings(settings);
                redis::Client::build_with_tls(info, tls.client()?)?
            }
        };
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(LIMIT))
            .set_response_timeout(Some(LIMIT));
        let mut connection = client.get_multiplexed_async_connection_with_config(&config).await?;
        let mut command = redis::Cmd::new();
        command.arg(words);
        Ok(command.query_async(&mut connection).await?)
    }
}

/// The program of the Redis servers: `redis-server`, or the one that `REDIS_SERVER` names.
fn redis_server() -> OsString {
    env::var_os("REDIS_SERVER").unwrap_or_else(|| "redis-server".into())
}

/// The major and minor version of the Redis servers that the tests start, for what differs between versions.
/// Valkey continues from 7.2, the last version that it shares with Redis.
///
/// # Errors
///
/// If the program can't be started, or prints no version.
pub fn redis_version() -> Result<(u16, u16)> {
    static VERSION: OnceLock<(u16, u16)> = OnceLock::new();
    if let Some(version) = VERSION.get() {
        return Ok(*version);
    }
    let program = redis_server();
    let ran = std::process::Command::new(&program).arg("--version").output();
    let ran = ran.with_context(|| format!("starting `{}`", program.to_string_lossy()))?;
    // `Redis server v=7.0.15 sha=00000000:0 …`
    let text = String::from_utf8_lossy(&ran.stdout);
    let version = text.split_whitespace().find_map(|word| {
        let mut numbers = word.strip_prefix("v=")?.split('.').map(str::parse);
        Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
    });
    let version = version.with_context(|| format!("no version in `{text}`"))?;
    Ok(*VERSION.get_or_init(|| version))
}

/// A Redis server or a Sentinel that runs until this is dropped.
#[derive(Debug)]
pub struct Node {
    builder: NodeBuilder,
    addr: SocketAddr,
    proxy: Option<Proxy>,
    line: Option<SlowLine>,
    process: Mutex<Process>,
    /// Holds the port of a node that was killed.
    reserved: Mutex<Option<TcpSocket>>,
}

impl Node {
    /// Whether it is a Redis server or a Sentinel.
    #[must_use]
    pub fn kind(&self) -> Kind {
        self.builder.kind
    }

    /// The address on which it listens.
    #[must_use]
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// The address at which it registers: its own address, or the address of the proxy or line in front of
    /// the node.
    #[must_use]
    pub fn registered_at(&self) -> SocketAddr {
        let in_front = self.proxy.as_ref().map(Proxy::addr).or(self.line.as_ref().map(SlowLine::addr));
        in_front.unwrap_or(self.addr)
    }

    /// The proxy in front of the node.
    ///
    /// Panics if there is none.
    #[must_use]
    pub fn proxy(&self) -> &Proxy {
        self.proxy.as_ref().expect("the node was put behind a proxy")
    }

    /// The name of the node's log in a failed scenario's output, such as `redis-1`.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.builder.name
    }

    /// The node's configuration file, which Redis and Sentinel rewrite.
    #[must_use]
    pub fn config_file(&self) -> PathBuf {
        self.builder.config_file()
    }

    /// The process id; with `join`, the process id of `join`.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.process().id()
    }

    /// The server's process id, once `join` has started it.
    #[must_use]
    pub fn server_pid(&self) -> Option<u32> {
        self.builder.server_pid(&self.process())
    }

    /// The folder with the node's data.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.builder.dir
    }

    /// What the node has logged so far.
    #[must_use]
    pub fn log(&self) -> String {
        self.process().output()
    }

    /// Sends a command over a new connection. An error reply is an error.
    pub async fn command(&self, words: &[&str]) -> Result<Value> {
        let answer = self.builder.command(self.addr.port(), words).await;
        answer.with_context(|| format!("`{}` to {self}", words.join(" ")))
    }

    /// Like [`command`](Self::command), with the answer as this type.
    pub async fn query<T: FromRedisValue>(&self, words: &[&str]) -> Result<T> {
        let answer = self.command(words).await?;
        T::from_redis_value(answer).with_context(|| format!("`{}` to {self}", words.join(" ")))
    }

    /// The fields of one section of `INFO`.
    pub async fn info(&self, section: &str) -> Result<BTreeMap<String, String>> {
        Ok(parse_info(&self.query::<String>(&["INFO", section]).await?))
    }

    /// How many reads there were so far, if the node is the store of a broker.
    pub async fn reads(&self) -> Result<usize> {
        let stats = self.info("commandstats").await?;
        let calls = |command: &&str| {
            let calls =
                stats.get(&format!("cmdstat_{command}"))?.split(',').next()?.strip_prefix("calls=")?;
            calls.parse::<usize>().ok()
        };
        Ok(["get", "exists", "keys", "scan"].iter().filter_map(calls).sum())
    }

    /// Kills the node with SIGKILL, and waits until it is gone.
    pub fn kill(&self) {
        self.process().kill();
        // The node stays registered. If another test's node got its port, it would answer in its place.
        let mut reserved = self.reserved.lock().expect("nothing panics while it holds this lock");
        if reserved.is_none() {
            *reserved = reserve(self.addr).ok();
        }
    }

    /// Ends the node with SIGTERM, and waits until it has ended.
    pub async fn terminate(&self, limit: Duration) -> Result<()> {
        self.signal(Signal::TERM)?;
        self.until_ended(limit).await
    }

    /// Sends a signal to the node.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        self.process().signal(signal)
    }

    /// Waits until the node has ended without a signal from here.
    pub async fn until_ended(&self, limit: Duration) -> Result<()> {
        eventually(limit, async || {
            let ended = self.process().ended()?;
            ensure!(ended.is_some(), "{self} does not end:\n{}", self.log());
            Ok(())
        })
        .await?;
        // Its port stays reserved, as after a kill.
        self.kill();
        Ok(())
    }

    /// Stops the node and its children with SIGSTOP: connections are accepted, and nothing is answered.
    pub fn stop(&self) -> Result<()> {
        self.process().signal_all(Signal::STOP)
    }

    /// Continues the node after [`stop`](Self::stop).
    pub fn cont(&self) -> Result<()> {
        self.process().signal_all(Signal::CONT)
    }

    /// Starts the node again, on the same port with the same files, and waits until it answers. It is killed
    /// first if it runs.
    pub async fn restart(&self) -> Result<()> {
        self.kill();
        self.release()?;
        let mut process = self.builder.spawn(self.addr.port())?;
        self.builder.ready(&mut process, self.addr.port()).await?;
        *self.process() = process;
        Ok(())
    }

    /// Starts the node again after a kill, on the same port with the same files, without waiting for
    /// anything.
    pub fn relaunch(&self) -> Result<()> {
        self.kill();
        self.release()?;
        let process = self.builder.spawn(self.addr.port())?;
        *self.process() = process;
        Ok(())
    }

    /// Releases the port of a node that was killed.
    fn release(&self) -> Result<()> {
        let reserved = self.reserved.lock().expect("nothing panics while it holds this lock").take();
        if let Some(socket) = reserved {
            // A process that another thread is starting at this moment has a copy of the socket until it runs
            // its program.
            socket.set_reuseaddr(true)?;
        }
        Ok(())
    }

    /// Waits until the server answers.
    pub async fn until_ready(&self) -> Result<()> {
        let ended = eventually(JOIN_LIMIT, async || {
            let ended = self.process().ended()?;
            if ended.is_some() {
                return Ok(ended);
            }
            let why = || format!("{self} is not ready:\n{}", self.log());
            let pid = self.server_pid().map(|pid| pid.to_string());
            let info = self.info("server").await.with_context(why)?;
            ensure!(info.get("process_id") == pid.as_ref(), "another process answers; {}", why());
            self.command(&["PING"]).await.with_context(why)?;
            Ok(None)
        });
        match ended.await? {
            Some(status) => bail!("{self} ended with {status}:\n{}", self.log()),
            None => Ok(()),
        }
    }

    /// Waits until the node has printed this.
    pub async fn until_logged(&self, text: &str) -> Result<()> {
        eventually(JOIN_LIMIT, async || {
            let printed = self.process().stderr();
            ensure!(printed.contains(text), "{self} does not print `{text}`:\n{printed}");
            Ok(())
        })
        .await
    }

    fn process(&self) -> MutexGuard<'_, Process> {
        self.process.lock().expect("nothing panics while it holds this lock")
    }
}

impl fmt::Display for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} at {}", self.name(), self.addr)
    }
}

/// Reserves a port without listening on it: connections are refused, and no other process can take it.
fn reserve(addr: SocketAddr) -> std::io::Result<TcpSocket> {
    let socket = if addr.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    // Needed if connections of the last owner linger. Left on, it would let other processes have the port
    // too.
    socket.set_reuseaddr(true)?;
    socket.bind(addr)?;
    socket.set_reuseaddr(false)?;
    Ok(socket)
}

/// A port outside of the range from which the kernel chooses. So the port is still free for a node that waits
/// before it starts.
pub fn steady_port(host: IpAddr) -> Result<u16> {
    // Below Linux's range of ports for connections (`ip_local_port_range`). Processes that run at once start
    // at different ports.
    const RANGE: std::ops::Range<u16> = 20_000..32_000;
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let start = std::process::id().wrapping_mul(251);
    for _ in 0..RANGE.len() {
        let step = u32::from(NEXT.fetch_add(1, Ordering::Relaxed));
        let offset = u16::try_from(start.wrapping_add(step) % u32::try_from(RANGE.len())?)?;
        if TcpListener::bind((host, RANGE.start + offset)).is_ok() {
            return Ok(RANGE.start + offset);
        }
    }
    bail!("no port of {host} is free")
}

/// A port on which no process listens at this moment.
fn free_port(host: IpAddr) -> Result<u16> {
    let listener =
        TcpListener::bind((host, 0)).with_context(|| format!("looking for a free port of {host}"))?;
    Ok(listener.local_addr()?.port())
}

fn parse_info(text: &str) -> BTreeMap<String, String> {
    let fields = text.lines().filter_map(|line| line.split_once(':'));
    fields.map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
}
