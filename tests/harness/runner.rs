//! The real `sentinel-runner`.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::Signal;
use tokio::process::Command;

use crate::eventually;
use crate::process::Process;

/// The program: the one that was built for these tests, or the one that `SENTINEL_RUNNER` names, such as a
/// release.
#[must_use]
pub fn runner_program() -> OsString {
    std::env::var_os("SENTINEL_RUNNER").unwrap_or_else(|| env!("SENTINEL_RUNNER").into())
}

/// The only variables that the runner gets from the caller's environment. Its flags are environment variables
/// too, and a test itself decides which are set.
const INHERITED: [&str; 3] = ["HOME", "PATH", "TMPDIR"];

/// The program, run in this folder.
pub(crate) fn command(dir: &Path) -> Command {
    let mut command = Command::new(runner_program());
    command.env_clear().current_dir(dir).envs(inherited());
    command
}

/// The variables of the caller's environment that a program needs.
pub(crate) fn inherited() -> impl Iterator<Item = (&'static str, OsString)> {
    INHERITED.iter().filter_map(|&name| Some((name, std::env::var_os(name)?)))
}

/// A run that has not started yet.
#[derive(Debug)]
#[must_use = "nothing runs until `run` or `start`"]
pub struct Runner {
    name: String,
    dir: PathBuf,
    command: Command,
}

impl Runner {
    pub(crate) fn new(name: String, dir: PathBuf) -> Self {
        let command = command(&dir);
        Self { name, dir, command }
    }

    /// Adds arguments.
    pub fn args(mut self, args: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Self {
        self.command.args(args);
        self
    }

    /// Sets an environment variable.
    pub fn env(mut self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.command.env(name, value);
        self
    }

    /// Runs the program to its end. If that takes longer than this, the run is killed, and its output is the
    /// error.
    pub async fn run(self, limit: Duration) -> Result<Ran> {
        self.start()?.wait(limit).await
    }

    /// Starts the program without waiting for it.
    pub fn start(self) -> Result<Running> {
        let started = Instant::now();
        let process = Process::spawn(self.name, self.command, &self.dir)?;
        Ok(Running { started, process })
    }
}

/// A run under way. Dropping this kills it.
#[derive(Debug)]
pub struct Running {
    started: Instant,
    process: Process,
}

impl Running {
    /// The process id.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.process.id()
    }

    /// Sends a signal to the run.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        self.process.signal(signal)
    }

    /// Kills the run and its children with SIGKILL, and waits until they are gone.
    pub fn kill(&mut self) {
        self.process.kill();
    }

    /// Waits until the run has ended. Its result can be read later.
    pub async fn ended(&mut self, limit: Duration) -> Result<()> {
        self.process.wait(limit).await.map(drop)
    }

    /// Whether the run has not ended yet.
    pub fn is_running(&mut self) -> Result<bool> {
        Ok(self.process.ended()?.is_none())
    }

    /// What the run has written to its standard output so far.
    #[must_use]
    pub fn stdout(&self) -> String {
        self.process.stdout()
    }

    /// What the run has written to its standard error so far.
    #[must_use]
    pub fn stderr(&self) -> String {
        self.process.stderr()
    }

    /// Waits until the run has written this text to its standard output.
    pub async fn until_stdout(&mut self, text: &str, limit: Duration) -> Result<()> {
        self.until_printed(Self::stdout, text, 1, limit).await
    }

    /// Waits until the run has written this text to its standard error so many times.
    pub async fn until_stderr(&mut self, text: &str, times: usize, limit: Duration) -> Result<()> {
        self.until_printed(Self::stderr, text, times, limit).await
    }

    async fn until_printed(
        &mut self,
        output: impl Fn(&Self) -> String,
        text: &str,
        times: usize,
        limit: Duration,
    ) -> Result<()> {
        let is_there = eventually(limit, async || {
            // Asked before the output is read, so that the last output of a run that ends is not missed.
            let runs = self.is_running()?;
            let printed = output(self).matches(text).count();
            ensure!(printed >= times || !runs, "`{text}` was printed {printed} of {times} times");
            Ok(printed >= times)
        });
        match is_there.await.with_context(|| format!("{}\n{}", self.stdout(), self.stderr())) {
            Ok(false) => bail!("ended without printing `{text}`:\n{}\n{}", self.stdout(), self.stderr()),
            waited => waited.map(drop),
        }
    }

    /// Waits for the end of the run. If that takes longer than this, the run is killed, and its output is the
    /// error.
    pub async fn wait(mut self, limit: Duration) -> Result<Ran> {
        let status = self.process.wait(limit).await?;
        Ok(Ran {
            code: status.code(),
            elapsed: self.started.elapsed(),
            stdout: self.process.stdout(),
            stderr: self.process.stderr(),
        })
    }
}

/// A run that has ended.
#[derive(Debug, Clone)]
pub struct Ran {
    /// The exit code; `None` if a signal killed the run.
    pub code: Option<i32>,
    /// The time from the start to the end.
    pub elapsed: Duration,
    /// Everything written to standard output.
    pub stdout: String,
    /// Everything written to standard error.
    pub stderr: String,
}

impl fmt::Display for Ran {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { code, elapsed, stdout, stderr } = self;
        write!(f, "exit code {code:?} after {elapsed:?}\nstdout:\n{stdout}\nstderr:\n{stderr}")
    }
}
