//! The `sentinel-runner` program; everything is in the library.

use std::ffi::OsString;
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

/// Treats a variable that is set to nothing as not set: `${NAME:-}` in Compose files and templates leaves
/// such variables.
fn ignore_empty_variables() {
    for name in variables(&Cli::command()) {
        if std::env::var_os(&name).is_some_and(|value| value.is_empty()) {
            #[expect(unsafe_code, reason = "there is no other thread yet that could read the environment")]
            // SAFETY: see the reason above.
            unsafe {
                std::env::remove_var(name);
            }
        }
    }
}

/// The variables of a command and of its subcommands.
fn variables(command: &clap::Command) -> Vec<OsString> {
    let own = command.get_arguments().filter_map(|argument| argument.get_env().map(ToOwned::to_owned));
    own.chain(command.get_subcommands().flat_map(variables)).collect()
}
