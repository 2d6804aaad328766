//! The file that a Sentinel keeps its state in.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, chown};
use std::path::Path;

use super::config_line::split;
use crate::error::Failure;

/// Adds these lines to a Sentinel's file. A line of three words replaces a line of three words that begins
/// with the same two: such a line is set once for the whole Sentinel. Makes the file and its folder if they
/// are missing.
///
/// Only the owner can read the file afterwards, because it may contain passwords. A new file belongs to the
/// owner of its folder, so that a Sentinel that gives up being root can still write it. If no line is a
/// `sentinel myid`, Sentinel makes an id and writes it there.
///
/// # Errors
///
/// If the file can't be written.
pub fn write_sentinel_file(path: &Path, lines: &[String]) -> Result<(), Failure> {
    let write = || -> io::Result<()> {
        let folder = match path.parent() {
            Some(folder) if folder != Path::new("") => folder,
            _ => Path::new("."),
        };
        fs::create_dir_all(folder)?;
        let before = match fs::read(path) {
            Ok(text) => Some(text),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(error),
        };
        let owner = fs::metadata(if before.is_some() { path } else { folder })?;
        let replaced = |old: &[u8]| {
            let old = split(old);
            lines.iter().map(|new| split(new.as_bytes())).any(|new| {
                new.len() == 3
                    && old.len() == 3
                    && new[..2].iter().zip(&old).all(|(a, b)| a.eq_ignore_ascii_case(b))
            })
        };
        // As bytes: a comment may be in any encoding.
        let before = before.as_deref().unwrap_or_default();
        let kept = before.split(|byte| *byte == b'\n').filter(|old| !old.is_empty() && !replaced(old));
        let mut text = Vec::new();
        for line in kept.chain(lines.iter().map(String::as_bytes)) {
            text.extend_from_slice(line);
            text.push(b'\n');
        }
        // The file is replaced in one step, so that a crash leaves the old file or the new one. The folder
        // has to accept new files anyway: Sentinel replaces its file in the same way.
        let mut name = path.file_name().unwrap_or_default().to_owned();
        name.push(format!(".join-{}", std::process::id()));
        let unfinished = folder.join(name);
        // A `join` that was killed here has left this file: in a container, the process id is always the
        // same.
        let _ = fs::remove_file(&unfinished);
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&unfinished)?;
        let written = file.write_all(&text).and_then(|()| file.sync_all()).and_then(|()| {
            let ours = file.metadata()?;
            if (ours.uid(), ours.gid()) != (owner.uid(), owner.gid()) {
                // Only root may give a file away. For any other user this fails, and the file keeps its
                // owner.
                let _ = chown(&unfinished, Some(owner.uid()), Some(owner.gid()));
            }
            fs::rename(&unfinished, path)
        });
        // The folder is synchronised so that the new name survives a loss of power. An error is ignored.
        let _ = File::open(folder).and_then(|folder| folder.sync_all());
        if written.is_err() {
            let _ = fs::remove_file(&unfinished);
        }
        written
    };
    write().map_err(|error| {
        let what = format!("can't write the Sentinel's file `{}`", path.display());
        // A mounted file can't be replaced, and Sentinel itself replaces its file.
        if error.kind() == io::ErrorKind::ResourceBusy {
            let (what, hint) =
                (format!("{what}: the file itself is mounted"), "mount the folder of the file".to_owned());
            return Failure::File { what, hint };
        }
        Failure::Other(anyhow::Error::new(error).context(what))
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;
    use crate::commands::join::config_line::line;
    use crate::commands::join::test_files::{command, write};

    #[test]
    fn a_sentinels_file_is_made_and_kept() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("new/sentinel.conf");
        write_sentinel_file(&path, &[line(&["sentinel", "announce-port", "1"])]).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        fs::write(
            &path,
            "port 5\nsentinel myid abc\nsentinel announce-port 1\nsentinel monitor other 10.0.0.9 1 2\n",
        )
        .unwrap();
        // A killed `join` has left this file: in a container, the process id is always the same.
        write(&folder, &format!("new/sentinel.conf.join-{}", std::process::id()), b"half of it");
        let lines = [
            line(&["sentinel", "announce-port", "2"]),
            line(&["sentinel", "monitor", "mymaster", "10.0.0.7", "1", "2"]),
        ];
        write_sentinel_file(&path, &lines).unwrap();
        assert_eq!(
            fs::read_to_string(&path).unwrap(),
            "port 5\nsentinel myid abc\nsentinel monitor other 10.0.0.9 1 2\nsentinel announce-port 2\n\
             sentinel monitor mymaster 10.0.0.7 1 2\n"
        );
        let settings = command(&["redis-sentinel", path.to_str().unwrap()]).settings().unwrap();
        assert!(settings.monitors("mymaster") && settings.monitors("other") && !settings.monitors("third"));
    }
}
