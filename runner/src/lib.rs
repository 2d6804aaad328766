//! Turns registered Redis servers and Sentinels into one verified high-availability system.
//!
//! A run waits until the broker's roster is complete, then goes around *observe → plan → apply → verify* until the
//! system is verified, or the run is refused or out of time:
//!
//! | module | does | I/O |
//! | --- | --- | --- |
//! | [`observe`] | reads what every registered server is and knows | yes |
//! | [`plan`] | decides who is master and what is to be changed | no |
//! | [`apply`] | changes it, everything at once that can be | yes |
//! | [`verify`] | asks every server until the system is what was planned | yes |

pub mod apply;
pub mod bootstrap;
pub mod broker;
pub mod cli;
pub mod config;
pub mod connection;
pub mod endpoint;
pub mod error;
pub mod observe;
pub mod plan;
pub mod redis;
pub mod report;
pub mod secret;
pub mod sentinel;
pub mod timings;
pub mod verify;

use std::io::IsTerminal;

use crate::cli::{Cli, Command};
use crate::config::Config;
use crate::error::{Failure, exit_code};
use crate::report::Report;

/// Runs the program; the returned number is its exit code.
#[must_use]
pub fn run(cli: Cli) -> u8 {
    let Command::Bootstrap(typed) = cli.command;
    if typed.verbose {
        let subscriber =
            tracing_subscriber::fmt().with_max_level(tracing::Level::DEBUG).with_writer(std::io::stderr);
        subscriber.with_target(false).with_ansi(std::io::stderr().is_terminal()).init();
    }
    let report = Report::new();
    let ended = Config::resolve(typed).and_then(|config| {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|error| Failure::Other(error.into()))?;
        runtime.block_on(bootstrap::bootstrap(&config, &report))
    });
    match ended {
        Ok(()) => exit_code::OK,
        Err(failure) => {
            report.failure(&failure);
            failure.exit_code()
        }
    }
}
