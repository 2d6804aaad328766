//! The real `sentinel-runner` on a pseudo-terminal, and the screens that a user would see.

use std::ffi::OsStr;
use std::num::NonZeroU16;
use std::path::Path;
use std::process::ExitStatus;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::process::Child;

use crate::runner::runner_program;
use crate::watchdog;

/// A run on a terminal. Dropping this kills it.
pub struct Terminal {
    pty: pty_process::Pty,
    child: Child,
    pid: u32,
    parser: vt100::Parser,
    written: Vec<u8>,
    frames: Vec<Frame>,
    started: Instant,
}

/// A state of the screen, and its time.
pub struct Frame {
    /// The time since the start.
    pub at: Duration,
    /// The screen.
    pub screen: vt100::Screen,
}

impl Terminal {
    /// Starts the runner with these arguments on a terminal of that size. The terminal already shows `shown`.
    pub(crate) fn start(
        dir: &Path,
        args: impl IntoIterator<Item = impl AsRef<OsStr>>,
        envs: &[(&str, &str)],
        (rows, columns): (u16, u16),
        shown: &str,
    ) -> Result<Self> {
        let (pty, pts) = pty_process::open()?;
        pty.resize(pty_process::Size::new(rows, columns))?;
        let mut command = pty_process::Command::new(runner_program()).args(args).env_clear();
        command = command.env("TERM", "xterm-256color").envs(envs.iter().copied());
        let child = command.current_dir(dir).kill_on_drop(true).spawn(pts)?;
        let pid = child.id().context("it has not been waited for")?;
        watchdog::watch(pid.into())?;
        let size = |size| NonZeroU16::new(size).context("a terminal has a size");
        let mut parser = vt100::Parser::new(size(rows)?, size(columns)?, 1000);
        parser.process(shown.as_bytes());
        Ok(Self { pty, child, pid, parser, written: vec![], frames: vec![], started: Instant::now() })
    }

    /// Waits until the screen shows this text.
    pub async fn until(&mut self, text: &str, limit: Duration) -> Result<()> {
        let until = Instant::now() + limit;
        while !self.text().contains(text) {
            if !self.read(until).await? {
                bail!("it has ended or takes too long, and does not show `{text}`:\n{}", self.text());
            }
        }
        Ok(())
    }

    /// Waits for the end of the run.
    pub async fn ended(&mut self, limit: Duration) -> Result<ExitStatus> {
        let until = Instant::now() + limit;
        while self.read(until).await? {}
        let status = tokio::time::timeout(limit, self.child.wait()).await;
        let status = status.with_context(|| format!("it does not end:\n{}", self.text()))??;
        watchdog::release(self.pid.into())?;
        Ok(status)
    }

    /// Types these keys; `\x03` is Ctrl-C.
    pub async fn keys(&mut self, keys: &str) -> Result<()> {
        Ok(self.pty.write_all(keys.as_bytes()).await?)
    }

    /// What is on the screen now, as text.
    #[must_use]
    pub fn text(&self) -> String {
        self.screen().contents()
    }

    /// What is on the screen now.
    #[must_use]
    pub fn screen(&self) -> &vt100::Screen {
        self.parser.screen()
    }

    /// Every byte that was written to the terminal.
    #[must_use]
    pub fn written(&self) -> &[u8] {
        &self.written
    }

    /// Every screen so far.
    #[must_use]
    pub fn frames(&self) -> &[Frame] {
        &self.frames
    }

    /// Reads what is available. `false` if nothing more comes.
    async fn read(&mut self, until: Instant) -> Result<bool> {
        let mut buffer = [0; 16 * 1024];
        let left = until.saturating_duration_since(Instant::now());
        match tokio::time::timeout(left, self.pty.read(&mut buffer)).await {
            // Linux answers with EIO once no process has the other side open.
            Err(_) | Ok(Ok(0) | Err(_)) => Ok(false),
            Ok(Ok(length)) => {
                self.parser.process(&buffer[..length]);
                self.written.extend_from_slice(&buffer[..length]);
                let frame = Frame { at: self.started.elapsed(), screen: self.parser.screen().clone() };
                self.frames.push(frame);
                Ok(true)
            }
        }
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        // An error if the run has ended. Then there is nothing to do.
        let _ = self.child.start_kill();
        let _ = watchdog::release(self.pid.into());
    }
}
