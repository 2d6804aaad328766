//! Runs the operator's command when roles change: one at a time, each for a minute at most.

use std::collections::VecDeque;
use std::os::unix::process::CommandExt as _;
use std::process::{Command, Stdio};
use std::time::{Duration, SystemTime};

use rustix::process::{Pid, Signal, kill_process_group};
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::watch::Receiver;
use tokio::time::{Instant, sleep, timeout};

use super::change::{Before, Change};
use super::seen::Seen;
use crate::commands::join::process::Ended;
use crate::node::endpoint::Endpoint;
use crate::report::Report;

/// How long it may take: as long as Sentinel lets a script of its own (`SENTINEL_SCRIPT_MAX_RUNTIME`).
const LIMIT: Duration = Duration::from_secs(60);

/// How many changes may wait for it. Of more, the oldest are dropped.
const WAITING: usize = 16;

/// How often time itself is looked at: that something is silent is no news.
const LOOK: Duration = Duration::from_millis(500);

/// What this process knows that the command need not.
const SECRETS: [&str; 4] = ["BROKER_TOKEN", "REDIS_PASSWORD", "SENTINEL_PASSWORD", "REPLICATION_PASSWORD"];

/// What is known of this node all the time.
#[derive(Debug, Clone)]
pub struct Facts {
    pub node: Endpoint,
    /// As the Sentinels call the system.
    pub group: Receiver<Option<String>>,
    /// Whether the server was started as a replica of somebody, or of nobody.
    pub starts_as_no_master: bool,
}

/// Runs it for every change, for as long as it is let.
pub async fn run(command: String, facts: Facts, mut seen: Receiver<Seen>, ended: Ended, report: Report) {
    let mut before = Before::started(facts.starts_as_no_master);
    let mut waiting = VecDeque::new();
    let mut runs: Option<std::pin::Pin<Box<dyn Future<Output = ()> + Send>>> = None;
    loop {
        waiting.extend(before.next(&seen.borrow_and_update(), Instant::now()));
        while waiting.len() > WAITING {
            let dropped: Option<Change> = waiting.pop_front();
            if let Some(dropped) = dropped {
                report.warning(format_args!(
                    "--on-event: not told of `{}`: what is told takes too long",
                    dropped.what.as_str()
                ));
            }
        }
        if runs.is_none()
            && let Some(change) = waiting.pop_front()
        {
            runs =
                Some(Box::pin(tell(command.clone(), facts.clone(), change, ended.clone(), report.clone())));
        }
        let running = async {
            match &mut runs {
                Some(run) => run.await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = running => runs = None,
            changed = seen.changed() => if changed.is_err() { return },
            () = sleep(LOOK) => {}
        }
    }
}

/// Runs it once. What comes of it is said where it failed.
async fn tell(command: String, facts: Facts, change: Change, ended: Ended, report: Report) {
    let what = change.what.as_str();
    let failed = |why: &dyn std::fmt::Display| {
        report.warning(format_args!("--on-event: the command for `{what}` {why}"));
    };
    let mut ends = ended.subscribe();
    let mut shell = Command::new("/bin/sh");
    shell.args(["-c", &command]).stdin(Stdio::null()).process_group(0);
    for secret in SECRETS {
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
                // More have ended at once than were kept. If this one was among them, its time will be over.
                Err(RecvError::Lagged(_)) => {}
                Err(RecvError::Closed) => return None,
            }
        }
    };
    match timeout(LIMIT, code).await {
        Ok(Some(0) | None) => {}
        Ok(Some(code)) => failed(&format_args!("has ended with exit code {code}")),
        Err(_) => {
            // It has a group of its own: what it has started ends with it.
            let _ = kill_process_group(pid, Signal::KILL);
            failed(&format_args!("took longer than {}, and was killed", humantime::format_duration(LIMIT)));
        }
    }
}
