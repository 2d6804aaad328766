//! The local host as a separate process.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use http::Method;
use rustix::process::Signal;
use tokio::process::Command;

use crate::eventually;
use crate::http::Request;
use crate::lab::Lab;
use crate::process::Process;

/// How long the local host may take to start, or to end.
const LIMIT: Duration = Duration::from_secs(30);

/// A local host that has printed its address. It runs until this is dropped.
#[derive(Debug)]
pub struct LocalHost {
    process: Process,
    addr: SocketAddr,
}

impl LocalHost {
    /// Starts the local host with this command.
    pub async fn start(lab: &Lab, command: Command) -> Result<Self> {
        let mut process = lab.spawn("local-host", command)?;
        let printed = eventually(LIMIT, async || {
            assert!(process.ended()?.is_none(), "the local host has ended: {}", process.output());
            let printed = process.stdout();
            ensure!(printed.ends_with('\n'), "the local host does not print where it listens: {printed}");
            Ok(printed)
        })
        .await?;
        let addr = printed.trim_end().strip_prefix("listening on http://");
        let addr = addr.with_context(|| format!("the local host prints {printed}"))?;
        let addr: SocketAddr = addr.parse()?;
        Ok(Self { process, addr })
    }

    /// The address on which it listens.
    #[must_use]
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// The process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.process.id()
    }

    /// A request of any method.
    pub fn request(&self, method: Method, path: impl Into<String>) -> Request {
        Request::new(self.addr, method, path)
    }

    /// Ends the local host with this signal, and checks that it exits successfully.
    pub async fn end(mut self, signal: Signal) -> Result<()> {
        self.process.signal(signal)?;
        let status = self.process.wait(LIMIT).await?;
        ensure!(status.success(), "{signal:?} ended it with {status}: {}", self.process.output());
        Ok(())
    }

    /// Kills the local host with SIGKILL, and waits until it is gone.
    pub fn kill(mut self) {
        self.process.kill();
    }
}
