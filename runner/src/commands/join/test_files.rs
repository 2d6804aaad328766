//! What the tests of files and commands share.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use super::server_command::ServerCommand;

/// Writes a file, and makes its folders.
pub fn write(folder: impl AsRef<Path>, name: &str, bytes: impl AsRef<[u8]>) -> PathBuf {
    let path = folder.as_ref().join(name);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(&path, bytes).unwrap();
    path
}

pub fn command(words: &[&str]) -> ServerCommand {
    ServerCommand::new(words.iter().map(OsString::from).collect())
}
