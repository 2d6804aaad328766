//! Stops a run when a person or a supervisor asks for it.

use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::error::Failure;
use crate::outcome::exit_code;

/// SIGINT and SIGTERM. From now on, they no longer end this process.
#[derive(Debug)]
pub struct Stop {
    interrupt: Signal,
    terminate: Signal,
}

impl Stop {
    /// # Errors
    ///
    /// If the operating system refuses.
    pub fn new() -> Result<Self, Failure> {
        let listen = |kind| signal(kind).map_err(|error| Failure::Other(error.into()));
        Ok(Self { interrupt: listen(SignalKind::interrupt())?, terminate: listen(SignalKind::terminate())? })
    }

    /// Waits for the next signal.
    pub async fn asked(&mut self) -> Failure {
        Failure::Stopped(tokio::select! {
            _ = self.interrupt.recv() => exit_code::INTERRUPTED,
            _ = self.terminate.recv() => exit_code::TERMINATED,
        })
    }

    /// Does this work, and gives it up if a signal comes first.
    pub async fn or<T>(&mut self, work: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
        tokio::select! {
            ended = work => ended,
            stopped = self.asked() => Err(stopped),
        }
    }
}
