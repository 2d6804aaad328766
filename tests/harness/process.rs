//! A guard around a child process.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process, kill_process_group};
use tokio::process::{Child, Command};

use crate::watchdog;

/// A child process that writes its output to files, and is killed and waited for when this is dropped.
///
/// It is killed, too, when this process itself is, by whatever signal.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    pid: u32,
    /// Whether it leads a group of its own, which ends with it.
    group: bool,
    stdout: PathBuf,
    stderr: PathBuf,
}

impl Process {
    /// Starts a command whose output goes, appended, to the files `stdout` and `stderr` in this folder.
    pub fn spawn(name: impl Into<String>, command: Command, dir: &Path) -> Result<Self> {
        Self::start(name.into(), command, dir, false)
    }

    /// The same, together with whatever processes it starts itself: all of them are killed.
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

    /// Its process id.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.pid
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        let pid = self.child.id().with_context(|| format!("{} has ended", self.name))?;
        let pid = Pid::from_raw(pid.try_into()?).context("a process id is not 0")?;
        kill_process(pid, signal).with_context(|| format!("sending {signal:?} to {}", self.name))
    }

    /// Sends a signal to it, and to the processes that it has started.
    pub fn signal_all(&self, signal: Signal) -> Result<()> {
        self.signal(signal)?;
        for pid in self.children().iter().filter_map(|&pid| Pid::from_raw(pid.try_into().ok()?)) {
            // One that has just ended.
            let _ = kill_process(pid, signal);
        }
        Ok(())
    }

    /// How it ended, where it has.
    pub fn ended(&mut self) -> Result<Option<ExitStatus>> {
        Ok(self.child.try_wait()?)
    }

    /// Waits until it ends; an error with its output if that takes longer than this.
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

    /// The processes that it has started and that still run, where the system lists them.
    #[must_use]
    pub fn children(&self) -> Vec<u32> {
        children(self.pid)
    }

    /// Kills it, unless it has ended, and all that it has started with it, as a container's end does, or the group that it leads,
    /// and waits until all are gone.
    pub fn kill(&mut self) {
        // None has a moment to notice that another is gone. What fails here has ended.
        let _ = self.signal(Signal::STOP);
        let children = if self.child.id().is_some() { self.children() } else { vec![] };
        // A server that saves has a child of its own, and that one holds the server's connections open.
        let grandchildren: Vec<u32> = children.iter().flat_map(|&pid| self::children(pid)).collect();
        let children = [grandchildren, children].concat();
        for pid in children.iter().filter_map(|&pid| Pid::from_raw(pid.try_into().ok()?)) {
            let _ = kill_process(pid, Signal::KILL);
        }
        if self.group
            && let Some(pid) = Pid::from_raw(self.pid.cast_signed())
        {
            // An error where the whole group has ended.
            let _ = kill_process_group(pid, Signal::KILL);
        }
        // Stays an error when it has ended, and then there is nothing to do.
        let _ = self.child.start_kill();
        // SIGKILL can't be held up but by the disk; there is no waiting without a runtime other than to ask.
        while let Ok(None) = self.child.try_wait() {
            std::thread::sleep(Duration::from_millis(1));
        }
        while children.iter().any(|&pid| is_running(pid)) {
            std::thread::sleep(Duration::from_millis(1));
        }
        // Without the shell there is nobody to tell, and the process is gone already.
        let _ = watchdog::release(self.watched());
    }

    /// What it has written to its standard output so far.
    #[must_use]
    pub fn stdout(&self) -> String {
        read(&self.stdout)
    }

    /// What it has written to its standard error so far.
    #[must_use]
    pub fn stderr(&self) -> String {
        read(&self.stderr)
    }

    /// All that it has written so far.
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

/// Whether there is such a process; one that has ended and was not waited for by its parent is none.
#[must_use]
pub fn is_running(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // The name before the state is in brackets, and may itself hold some.
    stat.rsplit_once(')')
        .is_some_and(|(_, rest)| !matches!(rest.trim_start().chars().next(), Some('Z' | 'X')))
}

fn read(path: &Path) -> String {
    fs::read(path).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
}
