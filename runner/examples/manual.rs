//! Writes the man pages and the shell completions of `sentinel-runner` into a folder, from the definitions of
//! its flags:
//!
//! ```text
//! cargo run --locked -p runner --example manual -- FOLDER
//! ```
//!
//! This is an example, so that the released program contains none of it.

use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode;
use std::{fs, io};

use clap::CommandFactory;
use clap_complete::Shell;
use runner::cli::Cli;

/// The shells that completions are written for.
const SHELLS: [Shell; 3] = [Shell::Bash, Shell::Zsh, Shell::Fish];

fn main() -> ExitCode {
    let folder: Vec<OsString> = std::env::args_os().skip(1).collect();
    let [folder] = folder.as_slice() else {
        eprintln!("error: give the folder to write to");
        return ExitCode::from(2);
    };
    match write(Path::new(folder)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: writing to `{}`: {error}", folder.display());
            ExitCode::FAILURE
        }
    }
}

/// Writes `man/*.1`, one page for the program and one for each subcommand, and `completions/*`, one file for
/// each shell.
fn write(folder: &Path) -> io::Result<()> {
    let (man, completions) = (folder.join("man"), folder.join("completions"));
    fs::create_dir_all(&man)?;
    fs::create_dir_all(&completions)?;
    clap_mangen::generate_to(Cli::command(), &man)?;
    for shell in SHELLS {
        clap_complete::generate_to(shell, &mut Cli::command(), "sentinel-runner", &completions)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Command;

    fn check(command: &Command, name: &str, man: &Path, completions: &[String]) {
        let page =
            fs::read_to_string(man.join(format!("{name}.1"))).unwrap_or_else(|e| panic!("{name}.1: {e}"));
        // In a man page a hyphen is `\-`.
        let page = page.replace("\\-", "-");
        assert!(page.contains(".SH NAME") && page.contains(".SH SYNOPSIS"), "{name}.1:\n{page}");
        for argument in command.get_arguments().filter(|argument| !argument.is_hide_set()) {
            let Some(long) = argument.get_long() else { continue };
            assert!(page.contains(&format!("--{long}")), "{name}.1 lacks --{long}:\n{page}");
            for script in completions {
                assert!(script.contains(long), "a completion lacks --{long} of {name}:\n{script}");
            }
        }
        for subcommand in command.get_subcommands().filter(|subcommand| !subcommand.is_hide_set()) {
            for script in completions {
                assert!(script.contains(subcommand.get_name()), "a completion lacks {subcommand}:\n{script}");
            }
            check(subcommand, &format!("{name}-{}", subcommand.get_name()), man, completions);
        }
    }

    #[test]
    fn every_command_and_flag_has_its_man_page_and_its_completions() {
        let folder = std::env::temp_dir().join(format!("sentinel-runner-manual-{}", std::process::id()));
        write(&folder).unwrap();
        let files = fs::read_dir(folder.join("completions")).unwrap();
        let completions: Vec<String> =
            files.map(|file| fs::read_to_string(file.unwrap().path()).unwrap()).collect();
        assert_eq!(completions.len(), SHELLS.len());
        check(&Cli::command(), "sentinel-runner", &folder.join("man"), &completions);
        fs::remove_dir_all(folder).unwrap();
    }
}
