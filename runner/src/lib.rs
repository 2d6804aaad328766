//! Turns registered Redis servers and Sentinels into one verified high-availability system.
//!
//! The rooms, from the top down. Each room imports only itself and the rooms below it. `tests/rooms.rs`
//! checks this:
//!
//! | room | is |
//! | --- | --- |
//! | [`commands`] | what a person can type: `bootstrap`, `status`, `failover`, `roll`, `join`, and more |
//! | `config` | the command line, checked and resolved |
//! | [`cli`] | what can be typed |
//! | [`report`] | reports what happens, to people and to machines |
//! | `error` | how a run can fail |
//! | [`system`] | what many servers are together: observe → decide → apply → verify |
//! | `broker` | the roster over HTTP |
//! | [`node`] | what one server is and answers: the wire, and the typed answers |
//! | `outcome` | the exit codes, and a word for each result |
//! | `words` | how numbers are written |
#![expect(
    unreachable_pub,
    reason = "`pub` is what other modules use; outside of the crate there are `run`, `usage` and `cli`"
)]

mod broker;
pub mod cli;
mod commands;
mod config;
mod error;
#[cfg(test)]
mod golden;
mod node;
mod outcome;
mod report;
mod system;
mod words;

use std::io::{self, Write as _};

use crate::cli::{Cli, CliCommand, Wrong};
use crate::commands::join::JoinConfig;
use crate::commands::{bootstrap, failover, join, leave, probe, register, roll, rotate, status, verify};
use crate::config::BootstrapConfig;
use crate::error::Failure;
use crate::outcome::exit_code;
use crate::report::document::{CommandName, Document, Ending};
use crate::report::{ClosedReport, Output, Report, ReportSettings};

/// Runs the program; the returned number is its exit code.
#[must_use]
pub fn run(cli: Cli) -> u8 {
    let Cli { command, show, old_variables } = cli;
    let lasts = match &command {
        CliCommand::Bootstrap(_) => true,
        CliCommand::Status(typed) => typed.watch,
        CliCommand::Verify(typed) => typed.failover,
        CliCommand::Failover(_) | CliCommand::Leave(_) => true,
        // No live view: the commands that `roll` runs print to the same terminal, and `rotate` asks its
        // question there.
        CliCommand::Roll(_) | CliCommand::Rotate(_) => false,
        CliCommand::Register(_) | CliCommand::Deregister(_) | CliCommand::Join(_) | CliCommand::Probe(_) => {
            false
        }
    };
    let report = Report::new(ReportSettings { lasts, ..show.settings() });
    for warning in old_variables {
        report.warning(format_args!("{warning}"));
    }
    let name = command.name();
    let ended = start(command, &report);
    end(&report, name, ended)
}

/// Prints what is wrong with the command line, or the help that was asked for. Returns the exit code.
#[must_use]
pub fn usage(wrong: &Wrong) -> u8 {
    // A failed write is ignored: if the reader is gone, there is no place for an error.
    let _ = wrong.error.print();
    if !wrong.error.use_stderr() {
        return exit_code::OK;
    }
    if wrong.json {
        let text = wrong.error.render().to_string();
        let what = text.trim().trim_start_matches("error: ").split("\n\n").next().unwrap_or_default();
        print(&Document::usage(wrong.command, what.to_owned()).text());
    }
    exit_code::USAGE
}

fn start(command: CliCommand, report: &Report) -> Result<Ending, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::Other(error.into()))?;
    match command {
        CliCommand::Bootstrap(typed) => {
            let config = BootstrapConfig::resolve(typed)?;
            runtime.block_on(bootstrap::bootstrap(&config, report))
        }
        CliCommand::Status(typed) => runtime.block_on(status::status(typed, report)),
        CliCommand::Verify(typed) => runtime.block_on(verify::verify(typed, report)),
        CliCommand::Failover(typed) => runtime.block_on(failover::failover(typed, report)),
        CliCommand::Roll(typed) => runtime.block_on(roll::roll(typed, report)),
        CliCommand::Rotate(typed) => runtime.block_on(rotate::rotate(typed, report)),
        CliCommand::Leave(typed) => runtime.block_on(leave::leave(typed, report)),
        CliCommand::Register(typed) => runtime.block_on(register::register(typed, report)),
        CliCommand::Deregister(typed) => runtime.block_on(register::deregister(typed, report)),
        CliCommand::Probe(typed) => runtime.block_on(probe::probe(typed, report)),
        CliCommand::Join(node) => {
            let config = JoinConfig::resolve(node)?;
            runtime.block_on(join::join(&config, report))
        }
    }
}

/// Prints the result: on standard error for people, and on standard output in the requested format. Returns
/// the exit code.
fn end(report: &Report, command: CommandName, ended: Result<Ending, Failure>) -> u8 {
    let ClosedReport { record, results, total } = report.close();
    // `join` leaves standard output to its server.
    if let Ok(Ending::Ended(code)) = ended {
        return code;
    }
    let is_text = match report.output() {
        Output::Text => !report.is_quiet(),
        Output::Json => false,
        // The operator asked for this output, so `--quiet` does not suppress it.
        Output::Prometheus | Output::Env | Output::Uri => true,
    };
    if report.output() == Output::Json {
        print(&Document::new(command, &record, total, &ended).text());
    } else if is_text {
        print(&results.iter().map(|text| format!("{text}\n")).collect::<String>());
    }
    match ended {
        Ok(ending) => ending.exit_code(),
        Err(failure) => {
            report.fail(total, &failure, is_text && !results.is_empty());
            failure.exit_code()
        }
    }
}

/// Prints to standard output. A failed write is ignored, as on standard error.
fn print(text: &str) {
    let _ = io::stdout().write_all(text.as_bytes()).and_then(|()| io::stdout().flush());
}
