//! A guard around a child process.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process, kill_process_group};
use tokio::process::{Child, Command};

use crate::watchdog;

/// A child process that writes its output to files. Dropping this kills it and waits for it.
///
/// If this process is killed, by any signal, the child is killed too.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    pid: u32,
    /// Whether the process leads its own group, which is killed with the process.
    group: bool,
    stdout: PathBuf,
    stderr: PathBuf,
}

impl Process {
    /// Starts a command. Its output is appended to the files `stdout` and `stderr` in this folder.
    pub fn spawn(name: impl Into<String>, command: Command, dir: &Path) -> Result<Self> {
        Self::start(name.into(), command, dir, false)
    }

    /// Like [`spawn`](Self::spawn). When the process is killed, all processes that it has started are killed
    /// too.
    pub fn spawn_group(name: impl Into<String>, mut command: Command, dir: &Path) -> Result<Self> {
        command.process_group(0);
        Self::start(name.into(), command, dir, true)
    }

    fn start(name: String, mut command: Command, dir: &Path, group: bool) -> Result<Self> {
        let (stdout, stderr) = (dir.join("stdout"), dir.join("stderr"));
        let open = |path: &Path| File::options().create(true).append(true).open(path);
        command.stdin(Stdio::null()).stdout(open(&stdout)?).stderr(open(&stderr)?);
        let child = command.spawn().with_context(|| {
            format!("starting {name}: `{}`", command.as_std().get_program().to_string_lossy())
        })?;
        let pid = child.id().expect("it has not been waited for");
        let process = Self { name, child, pid, group, stdout, stderr };
        watchdog::watch(process.watched())?;
        Ok(process)
    }

    /// The process id.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.pid
    }

    /// Sends a signal to the process.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        let pid = self.child.id().with_context(|| format!("{} has ended", self.name))?;
        let pid = Pid::from_raw(pid.try_into()?).context("a process id is not 0")?;
        kill_process(pid, signal).with_context(|| format!("sending {signal:?} to {}", self.name))
    }

    /// Sends a signal to the process and to the processes that it has started.
    pub fn signal_all(&self, signal: Signal) -> Result<()> {
        self.signal(signal)?;
        for pid in self.children().iter().filter_map(|&pid| Pid::from_raw(pid.try_into().ok()?)) {
            // The child may have just ended.
            let _ = kill_process(pid, signal);
        }
        Ok(())
    }

    /// The exit status, if the process has ended.
    pub fn ended(&mut self) -> Result<Option<ExitStatus>> {
        Ok(self.child.try_wait()?)
    }

    /// Waits until the process ends. If that takes longer than this, returns an error with its output.
    pub async fn wait(&mut self, limit: Duration) -> Result<ExitStatus> {
        match tokio::time::timeout(limit, self.child.wait()).await {
            Ok(status) => Ok(status?),
            Err(_) => bail!("{} did not end within {limit:?}:\n{}", self.name, self.output()),
        }
    }

    /// What the watchdog kills: the process, or the group that it leads.
    fn watched(&self) -> i64 {
        let pid = i64::from(self.pid);
        if self.group { -pid } else { pid }
    }

    /// The running processes that this process has started, if the system lists them.
    #[must_use]
    pub fn children(&self) -> Vec<u32> {
        children(self.pid)
    }

    /// Kills the process, unless it has ended, together with its children or its group, as the end of a
    /// container does. Waits until all are gone.
    pub fn kill(&mut self) {
        // The process is stopped first, so that it does not notice that a child is gone. If this fails, the
        // process has ended.
        let _ = self.signal(Signal::STOP);
        let children = if self.child.id().is_some() { self.children() } else { vec![] };
        // A server that saves has a child, which keeps the server's connections open.
        let grandchildren: Vec<u32> = children.iter().flat_map(|&pid| self::children(pid)).collect();
        let children = [grandchildren, children].concat();
        for pid in children.iter().filter_map(|&pid| Pid::from_raw(pid.try_into().ok()?)) {
            let _ = kill_process(pid, Signal::KILL);
        }
        if self.group
            && let Some(pid) = Pid::from_raw(self.pid.cast_signed())
        {
            // An error if the whole group has ended.
            let _ = kill_process_group(pid, Signal::KILL);
        }
        // An error if the process has ended. Then there is nothing to do.
        let _ = self.child.start_kill();
        // Only the disk can delay SIGKILL. Without a runtime, polling is the only way to wait.
        while let Ok(None) = self.child.try_wait() {
            std::thread::sleep(Duration::from_millis(1));
        }
        while children.iter().any(|&pid| is_running(pid)) {
            std::thread::sleep(Duration::from_millis(1));
        }
        // An error is ignored: the shell may be gone.
        let _ = watchdog::release(self.watched());
    }

    /// What the process has written to its standard output so far.
    #[must_use]
    pub fn stdout(&self) -> String {
        read(&self.stdout)
    }

    /// What the process has written to its standard error so far.
    #[must_use]
    pub fn stderr(&self) -> String {
        read(&self.stderr)
    }

    /// All output of the process so far.
    #[must_use]
    pub fn output(&self) -> String {
        self.stdout() + &self.stderr()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

fn children(pid: u32) -> Vec<u32> {
    let list = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    list.split_whitespace().filter_map(|pid| pid.parse().ok()).collect()
}

/// Whether a process runs. A zombie does not.
#[must_use]
pub fn is_running(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // The name before the state is in brackets, and may itself contain brackets.
    stat.rsplit_once(')')
        .is_some_and(|(_, rest)| !matches!(rest.trim_start().chars().next(), Some('Z' | 'X')))
}

fn read(path: &Path) -> String {
    fs::read(path).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
}
