//! Kills the child processes if this process is killed.
//!
//! `Drop` does not run on SIGKILL, nor on the default action of SIGINT and SIGTERM. `PR_SET_PDEATHSIG` would
//! need unsafe code, and takes effect when the *thread* ends that started the child. So one small shell is
//! started with the first child. It gets the children's ids, and when its input ends, which is when this
//! process ends, it kills the children that are still there.

use std::io::Write;
use std::os::unix::process::CommandExt;
use std::process::{ChildStdin, Command, Stdio};
use std::sync::{LazyLock, Mutex};

use anyhow::{Context, Result};

const SCRIPT: &str = r#"
pids=' '
while read -r change pid; do
    case "$change$pids" in
        +*) pids="$pids$pid " ;;
        -*" $pid "*) pids="${pids%% $pid *} ${pids#* $pid }" ;;
    esac
done
kill -9 $pids 2>/dev/null
"#;

static INPUT: LazyLock<std::io::Result<Mutex<ChildStdin>>> = LazyLock::new(|| {
    let mut shell = Command::new("sh")
        .args(["-c", SCRIPT])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        // The shell must not get Ctrl-C, which goes to the whole group.
        .process_group(0)
        .spawn()?;
    Ok(Mutex::new(shell.stdin.take().expect("its input is piped")))
});

/// Adds a child that is to be killed when this process ends. A negative id is a process group.
pub(crate) fn watch(pid: i64) -> Result<()> {
    tell('+', pid)
}

/// Removes a child that is gone. Another process may soon get its id.
pub(crate) fn release(pid: i64) -> Result<()> {
    tell('-', pid)
}

fn tell(change: char, pid: i64) -> Result<()> {
    let input =
        INPUT.as_ref().map_err(|error| anyhow::anyhow!("starting a shell that cleans up: {error}"))?;
    let mut input = input.lock().expect("nothing panics while it holds this lock");
    writeln!(input, "{change} {pid}").context("telling the shell that cleans up")
}
