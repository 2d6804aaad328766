//! The lab in which a test starts processes, and which ends all of them.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::panic::{AssertUnwindSafe, resume_unwind};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Duration;
use std::{fs, io};

use anyhow::{Context, Result};
use broker_fn::api::Kind;
use futures::FutureExt;
use futures::future::try_join_all;
use tempfile::TempDir;
use tokio::process::Command;

use crate::broker::{Broker, BrokerBuilder};
use crate::host::Failures;
use crate::node::{Node, NodeBuilder};
use crate::process::Process;
use crate::runner::Runner;
use crate::terminal::Terminal;
use crate::verify;

/// How long a scenario may take.
pub const SCENARIO_LIMIT: Duration = Duration::from_secs(120);

/// Runs one end-to-end test, on a separate runtime.
///
/// If the test fails by an error, by a panic or by taking too long, every log of what it started is shown. A
/// failure of the component, such as a trap, also fails the test, even if the test accepted the answer. When
/// this returns, everything that was started is gone.
///
/// Panics if the test fails, because a test function reports a failure that way.
pub fn scenario(run: impl AsyncFnOnce(&Lab) -> Result<()>) {
    scenario_within(SCENARIO_LIMIT, run);
}

/// Like [`scenario`], with this time limit.
pub fn scenario_within(limit: Duration, run: impl AsyncFnOnce(&Lab) -> Result<()>) {
    let runtime = tokio::runtime::Runtime::new().expect("threads can be started");
    let lab = Lab::new().expect("a temporary folder can be made");
    let ended = runtime.block_on(async {
        let run = tokio::time::timeout(limit, run(&lab));
        // Nothing that the test borrows is used again, except the logs.
        AssertUnwindSafe(run).catch_unwind().await
    });
    let error = match ended {
        Ok(Ok(Ok(()))) if lab.component_failures().is_empty() => return,
        Ok(Ok(Ok(()))) => "the component failed".to_owned(),
        Ok(Ok(Err(error))) => format!("{error:#}"),
        Ok(Err(_)) => format!("not done after {limit:?}"),
        Err(panic) => {
            eprintln!("{}", lab.logs());
            drop(lab);
            resume_unwind(panic);
        }
    };
    eprintln!("{}", lab.logs());
    drop(lab);
    panic!("{error}");
}

/// A temporary folder with the files of every process that was started here.
///
/// The processes belong to the code that started them, and end when they are dropped. Their logs stay until
/// the lab is dropped.
#[derive(Debug)]
pub struct Lab {
    dir: TempDir,
    counts: Mutex<BTreeMap<&'static str, usize>>,
    brokers: Mutex<Vec<Failures>>,
}

impl Lab {
    /// An empty lab.
    pub fn new() -> Result<Self> {
        let dir = tempfile::Builder::new().prefix("sentinel-broker-").tempdir()?;
        Ok(Self { dir, counts: Mutex::default(), brokers: Mutex::default() })
    }

    /// The folder, for a test's own files.
    #[must_use]
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// A Redis server, not started yet.
    pub fn redis(&self) -> NodeBuilder {
        let (name, dir) = self.place("redis");
        NodeBuilder::new(Kind::Redis, name, dir)
    }

    /// A Sentinel, not started yet.
    pub fn sentinel(&self) -> NodeBuilder {
        let (name, dir) = self.place("sentinel");
        NodeBuilder::new(Kind::Sentinel, name, dir)
    }

    /// Starts a broker.
    pub fn broker(&self, builder: BrokerBuilder) -> Result<Broker> {
        let broker = builder.start(|| self.place("spin").1)?;
        self.brokers.lock().expect("nothing panics while it holds this lock").push(broker.failures().clone());
        Ok(broker)
    }

    /// A run of `sentinel-runner` with these arguments, not started yet.
    pub fn runner(&self, args: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Runner {
        let (name, dir) = self.place("runner");
        Runner::new(name, dir).args(args)
    }

    /// A run of `sentinel-runner` with these arguments and variables on a terminal of this many rows and
    /// columns, which already shows this text.
    pub fn terminal(
        &self,
        args: impl IntoIterator<Item = impl AsRef<OsStr>>,
        envs: &[(&str, &str)],
        size: (u16, u16),
        shown: &str,
    ) -> Result<Terminal> {
        let (_, dir) = self.place("terminal");
        Terminal::start(&dir, args, envs, size, shown)
    }

    /// Starts any other command. Its log gets this name and a number.
    pub fn spawn(&self, sort: &'static str, command: Command) -> Result<Process> {
        let (name, dir) = self.place(sort);
        Process::spawn(name, command, &dir)
    }

    /// Like [`spawn`](Self::spawn), with all processes that the command starts.
    pub fn spawn_group(&self, sort: &'static str, command: Command) -> Result<Process> {
        let (name, dir) = self.place(sort);
        Process::spawn_group(name, command, &dir)
    }

    /// A broker that expects this many Redis servers and Sentinels, and these nodes, started and not
    /// registered.
    pub async fn system(&self, redis: usize, sentinels: usize) -> Result<System> {
        self.system_of(redis, sentinels, |node| node).await
    }

    /// Like [`system`](Self::system), with nodes that `make` has configured.
    pub async fn system_of(
        &self,
        redis: usize,
        sentinels: usize,
        make: impl Fn(NodeBuilder) -> NodeBuilder,
    ) -> Result<System> {
        let broker =
            Broker::builder().variable("expected_redis", redis).variable("expected_sentinels", sentinels);
        let (broker, redis, sentinels) = (
            self.broker(broker)?,
            try_join_all((0..redis).map(|_| make(self.redis()).start())).await?,
            try_join_all((0..sentinels).map(|_| make(self.sentinel()).start())).await?,
        );
        Ok(System { broker, redis, sentinels })
    }

    /// The failures of the component in any broker of this lab. A correct component has none.
    #[must_use]
    pub fn component_failures(&self) -> Vec<String> {
        let brokers = self.brokers.lock().expect("nothing panics while it holds this lock");
        brokers.iter().flat_map(Failures::all).collect()
    }

    /// Every log of what was started here, each with its name.
    #[must_use]
    pub fn logs(&self) -> String {
        let mut logs = String::new();
        for failure in self.component_failures() {
            logs += &format!("==== the component failed ====\n{failure}\n");
        }
        match self.files() {
            Ok(files) => {
                for path in files {
                    let name = path.strip_prefix(self.dir()).unwrap_or(&path).display();
                    let text = fs::read(&path).unwrap_or_default();
                    logs += &format!("==== {name} ====\n{}\n", String::from_utf8_lossy(&text));
                }
            }
            Err(error) => logs += &format!("the logs can't be read: {error}"),
        }
        logs
    }

    /// The outputs that are not empty, in order.
    fn files(&self) -> io::Result<Vec<PathBuf>> {
        let mut files = vec![];
        for entry in fs::read_dir(self.dir())? {
            for name in ["stdout", "stderr"] {
                let path = entry.as_ref().map_or_else(|_| PathBuf::new(), |entry| entry.path().join(name));
                if fs::metadata(&path).is_ok_and(|file| file.len() > 0) {
                    files.push(path);
                }
            }
        }
        files.sort();
        Ok(files)
    }

    /// The name and the folder of the next process of this sort.
    ///
    /// Panics if the temporary folder is gone.
    fn place(&self, sort: &'static str) -> (String, PathBuf) {
        let mut counts = self.counts.lock().expect("nothing panics while it holds this lock");
        let count = counts.entry(sort).or_default();
        *count += 1;
        let name = format!("{sort}-{count}");
        let dir = self.dir().join(&name);
        fs::create_dir(&dir).expect("the temporary folder takes another one");
        (name, dir)
    }
}

/// A broker, and the nodes that are to become one system.
#[derive(Debug)]
pub struct System {
    /// The broker.
    pub broker: Broker,
    /// The Sentinels, in the order in which [`register_all`](Self::register_all) registers them. They are
    /// dropped before the servers that they monitor: another process may get a server's port a moment later.
    pub sentinels: Vec<Node>,
    /// The Redis servers, in the same order.
    pub redis: Vec<Node>,
}

impl System {
    /// Registers every node in turn, Redis servers first.
    pub async fn register_all(&self) -> Result<()> {
        for node in self.nodes() {
            self.broker.register(node).await.with_context(|| format!("registering {node}"))?;
        }
        Ok(())
    }

    /// All nodes, Redis servers first.
    pub fn nodes(&self) -> impl Iterator<Item = &Node> {
        self.redis.iter().chain(&self.sentinels)
    }

    /// Everything that keeps this from being a verified system with the Redis server of this index as the
    /// master.
    pub async fn wrong(&self, group: &str, master: usize) -> Vec<String> {
        let sentinels: Vec<&Node> = self.sentinels.iter().collect();
        verify::wrong(group, &self.redis[master], &self.replicas(master), &sentinels).await
    }

    /// Writes to the master of this index, and waits until every other Redis server has the write.
    pub async fn replicates(&self, master: usize) -> Result<()> {
        verify::replicates(&self.redis[master], &self.replicas(master)).await
    }

    fn replicas(&self, master: usize) -> Vec<&Node> {
        self.redis.iter().enumerate().filter(|&(index, _)| index != master).map(|(_, node)| node).collect()
    }
}
