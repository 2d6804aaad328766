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
pub mod drill;
pub mod endpoint;
pub mod error;
#[cfg(test)]
mod golden;
pub mod join;
pub mod observe;
pub mod output;
pub mod plan;
pub mod redis;
pub mod register;
pub mod report;
pub mod secret;
pub mod sentinel;
pub mod status;
pub mod timings;
pub mod verify;

use std::io::Write as _;

use crate::cli::{Cli, Command};
use crate::config::Config;
use crate::error::Failure;
use crate::output::{Document, Ending};
use crate::report::{Report, Settings};

/// Runs the program; the returned number is its exit code.
#[must_use]
pub fn run(cli: Cli) -> u8 {
    let Cli { command, show } = cli;
    let lasts = match &command {
        Command::Bootstrap(_) => true,
        Command::Status(typed) => typed.watch,
        Command::Verify(typed) => typed.failover,
        Command::Register(_) | Command::Deregister(_) | Command::Join(_) => false,
    };
    let report = Report::new(Settings { lasts, ..show.settings() });
    let name = command.name();
    let ended = start(command, &report);
    report.end(name, ended)
}

/// Says what is wrong with what was typed, or shows the help that was asked for; the returned number is the exit code.
#[must_use]
pub fn usage(wrong: &cli::Wrong) -> u8 {
    // As always: who does not read it any more is not told.
    let _ = wrong.error.print();
    if !wrong.error.use_stderr() {
        return error::exit_code::OK;
    }
    if wrong.json {
        let text = wrong.error.render().to_string();
        let what = text.trim().trim_start_matches("error: ").split("\n\n").next().unwrap_or_default();
        let _ =
            std::io::stdout().write_all(Document::usage(&wrong.command, what.to_owned()).text().as_bytes());
    }
    error::exit_code::USAGE
}

fn start(command: Command, report: &Report) -> Result<Ending, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::Other(error.into()))?;
    match command {
        Command::Bootstrap(typed) => {
            let config = Config::resolve(typed)?;
            runtime.block_on(bootstrap::bootstrap(&config, report))
        }
        Command::Status(typed) => runtime.block_on(status::status(typed, report)),
        Command::Verify(typed) => runtime.block_on(drill::verify(typed, report)),
        Command::Register(typed) => runtime.block_on(register::register(typed, report)),
        Command::Deregister(typed) => runtime.block_on(register::deregister(typed, report)),
        Command::Join(node) => {
            let config = join::Config::resolve(node)?;
            runtime.block_on(join::join(&config, report))
        }
    }
}
