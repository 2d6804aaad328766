//! The `sentinel-runner` program; everything is in the library.

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    ExitCode::from(runner::run(runner::cli::Cli::parse()))
}
