//! Runs the operator's command when roles change: one at a time, each for a minute at most.

use std::collections::VecDeque;
use std::future::pending;
use std::os::unix::process::CommandExt as _;
use std::pin::Pin;
use std::process::{Command, Stdio};
use std::time::{Duration, SystemTime};

use rustix::process::{Pid, Signal, kill_process_group};
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::watch::Receiver;
use tokio::time::{Instant, sleep, timeout};

use super::change::{Before, RoleChange};
use super::seen::SeenNodes;
use crate::cli::secret_variables;
use crate::commands::join::process::Ended;
use crate::node::endpoint::Endpoint;
use crate::report::Report;

/// How long the command may take: the same as a script of Sentinel (`SENTINEL_SCRIPT_MAX_RUNTIME`).
const LIMIT: Duration = Duration::from_secs(60);

/// How many changes may wait for the command. If there are more, the oldest ones are dropped.
const WAITING: usize = 16;

/// How often to look for changes even if no answer arrives: a server that falls silent sends nothing.
const LOOK: Duration = Duration::from_millis(500);

/// What the command gets with every change.
#[derive(Debug, Clone)]
pub struct Facts {
    pub node: Endpoint,
    /// The group, as the Sentinels report it.
    pub group: Receiver<Option<String>>,
    /// Whether the server was started as a replica, or held.
    pub starts_as_no_master: bool,
}

/// Runs the command for every change, for as long as this task runs.
pub async fn run(command: String, facts: Facts, mut seen: Receiver<SeenNodes>, ended: Ended, report: Report) {
    let mut before = Before::started(facts.starts_as_no_master);
    let mut waiting = VecDeque::<RoleChange>::new();
    let mut runs: Option<Pin<Box<dyn Future<Output = ()> + Send>>> = None;
    loop {
        waiting.extend(before.next(&seen.borrow_and_update(), Instant::now()));
        let excess = waiting.len().saturating_sub(WAITING);
        for dropped in waiting.drain(..excess) {
            report.warning(format_args!(
                "--on-event: skipped `{}`: the command for an earlier event takes too long",
                dropped.what.as_str()
            ));
        }
        if runs.is_none()
            && let Some(change) = waiting.pop_front()
        {
            runs = Some(Box::pin(run_once(
                command.clone(),
                facts.clone(),
                change,
                ended.clone(),
                report.clone(),
            )));
        }
        let running = async {
            match &mut runs {
                Some(run) => run.await,
                None => pending().await,
            }
        };
        tokio::select! {
            () = running => runs = None,
            changed = seen.changed() => if changed.is_err() { return },
            () = sleep(LOOK) => {}
        }
    }
}

/// Runs the command once, and reports a failure.
async fn run_once(command: String, facts: Facts, change: RoleChange, ended: Ended, report: Report) {
    let what = change.what.as_str();
    let failed = |why: &dyn std::fmt::Display| {
        report.warning(format_args!("--on-event: the command for `{what}` {why}"));
    };
    let mut ends = ended.subscribe();
    let mut shell = Command::new("/bin/sh");
    shell.args(["-c", &command]).stdin(Stdio::null()).process_group(0);
    for secret in secret_variables() {
        shell.env_remove(secret);
    }
    let name = |endpoint: &Option<_>| endpoint.as_ref().map(ToString::to_string).unwrap_or_default();
    shell
        .env("EVENT", what)
        .env("EVENT_NODE", facts.node.to_string())
        .env("EVENT_GROUP", facts.group.borrow().as_deref().unwrap_or_default())
        .env("EVENT_AT", humantime::format_rfc3339_millis(SystemTime::now()).to_string())
        .env("EVENT_MASTER", name(&change.master))
        .env("EVENT_PREVIOUS_MASTER", name(&change.previous))
        .env("EVENT_WHY", &change.why);
    let child = match shell.spawn() {
        Ok(child) => child,
        Err(error) => return failed(&format_args!("can't be started: {error}")),
    };
    let Some(pid) = i32::try_from(child.id()).ok().and_then(Pid::from_raw) else { return };
    let code = async {
        loop {
            match ends.recv().await {
                Ok((other, code)) if other == pid => return Some(code),
                Ok(_) => {}
                // More processes have ended at once than the channel keeps. If the command was one of them,
                // the time limit ends the wait.
                Err(RecvError::Lagged(_)) => {}
                Err(RecvError::Closed) => return None,
            }
        }
    };
    match timeout(LIMIT, code).await {
        Ok(Some(0) | None) => {}
        Ok(Some(code)) => failed(&format_args!("ended with exit code {code}")),
        Err(_) => {
            // The command has a separate process group, so that its child processes are killed with it.
            let _ = kill_process_group(pid, Signal::KILL);
            failed(&format_args!("took longer than {}, and was killed", humantime::format_duration(LIMIT)));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use rustix::process::{WaitOptions, test_kill_process, waitpid};
    use tokio::sync::{broadcast, watch};

    use super::*;
    use crate::commands::join::health::change::What;
    use crate::report::ReportSettings;

    fn written(file: &Path) -> String {
        loop {
            match fs::read_to_string(file) {
                Ok(text) if text.ends_with('\n') => return text,
                _ => std::thread::sleep(Duration::from_millis(2)),
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_command_that_hangs_is_killed_with_what_it_has_started() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("pids");
        let command = format!("sleep 1000 & echo $$ $! $EVENT >{}; wait", file.display());
        let change = RoleChange { what: What::Promoted, master: None, previous: None, why: String::new() };
        let facts = Facts {
            node: Endpoint::new("10.0.0.7", 6379),
            group: watch::Sender::new(None).subscribe(),
            starts_as_no_master: true,
        };
        let (started, report) = (Instant::now(), Report::new(ReportSettings::default()));
        // The paused clock stands still for as long as this waits.
        let wait = tokio::task::spawn_blocking(move || written(&file));
        let told = run_once(command, facts, change, broadcast::Sender::new(1), report);
        let ((), written) = tokio::join!(told, wait);
        let written = written.unwrap();
        let [shell, child, event] = written.split_whitespace().collect::<Vec<_>>()[..] else {
            panic!("{written}")
        };
        assert_eq!((event, started.elapsed()), ("promoted", LIMIT));
        let pid = |text: &str| Pid::from_raw(text.parse().unwrap()).unwrap();
        // The shell ends by this signal, and this test has to wait for it. The other process is not a child
        // of this test.
        let (_, status) = waitpid(Some(pid(shell)), WaitOptions::empty()).unwrap().unwrap();
        assert_eq!(status.terminating_signal(), Some(Signal::KILL.as_raw()));
        while test_kill_process(pid(child)).is_ok() && !is_zombie(child) {
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// Whether a process is a zombie. An orphan stays a zombie if no process reaps it.
    fn is_zombie(pid: &str) -> bool {
        fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| stat.contains(") Z "))
    }
}
