//! The `sentinel-runner` program; everything is in the library.

use std::process::ExitCode;

use clap::CommandFactory;
use runner::cli::Cli;

fn main() -> ExitCode {
    ignore_empty_variables();
    ExitCode::from(match Cli::read(std::env::args_os()) {
        Ok(cli) => runner::run(cli),
        Err(wrong) => runner::usage(&wrong),
    })
}

/// A variable that is set to nothing counts as not set: that is what `${NAME:-}` leaves in Compose files and templates.
fn ignore_empty_variables() {
    let cli = Cli::command();
    let arguments = cli.get_arguments().chain(cli.get_subcommands().flat_map(clap::Command::get_arguments));
    for name in arguments.filter_map(clap::Arg::get_env) {
        if std::env::var_os(name).is_some_and(|value| value.is_empty()) {
            #[expect(unsafe_code, reason = "there is no other thread yet that could read the environment")]
            // SAFETY: as the reason says.
            unsafe {
                std::env::remove_var(name);
            }
        }
    }
}
