//! `roll`: runs an operator's command for each Redis server, one after the other. The master hands over
//! before its turn.

use std::ffi::OsString;
use std::os::fd::AsFd as _;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use broker_fn::api::Roster;
use tokio::process::{Child, Command};
use tokio::time::{Instant, sleep};

use super::failover::{MasterChange, document};
use super::look::Watcher;
use super::stop::Stop;
use crate::cli::RollArgs;
use crate::config::LookConfig;
use crate::error::Failure;
use crate::node::endpoint::Endpoint;
use crate::report::Report;
use crate::report::document::{Ending, FailoverJson, RollJson, RolledJson, ms};
use crate::report::event::Event;
use crate::report::table::table;
use crate::system::judge::Unmet;
use crate::system::members::{Member, System};
use crate::words::took;

/// The placeholders for the server's host and port in the command.
const HOST: &str = "{host}";
const PORT: &str = "{port}";

/// How long the system has to stay verified before the next server's turn. A command may end before its
/// effect begins.
const SETTLED: Duration = Duration::from_secs(1);

/// The time between two looks at the system during that wait.
const LOOK_AGAIN: Duration = Duration::from_millis(200);

/// `roll`.
///
/// # Errors
///
/// If the system is not verified, and at the first server that fails. The hint contains the command that
/// continues the roll.
pub async fn roll(typed: RollArgs, report: &Report) -> Result<Ending, Failure> {
    let RollArgs { look, done, timeout, command } = typed;
    let config = LookConfig::resolve(look, &[("--timeout", timeout)])?;
    check_command(&command)?;
    let watcher = Watcher::new(&config, report)?;
    let mut stop = Stop::new()?;
    let started = Instant::now();
    let looked = stop.or(watcher.settled()).await?;
    let system = looked.verdict?;
    let done =
        done.iter().map(|done| registered(&system, &Endpoint::from(done))).collect::<Result<_, _>>()?;
    let mut roll = Roll {
        config: &config,
        watcher: &watcher,
        report,
        timeout,
        command,
        done,
        rolled: Vec::new(),
        failover: None,
    };
    // Checks before the first command that a replica can be promoted: without one, the roll could not be
    // completed.
    roll.change(&system, timeout).check()?;
    let system = roll.go_on(system, looked.roster, &mut stop).await?;
    report.tell(&Event::Verified { system: &system, took: started.elapsed(), how: "verified" });
    for RolledJson { address, restarted, verified_ms, .. } in &roll.rolled {
        let back = took(Duration::from_secs_f64(verified_ms / 1000.0));
        let how = if *restarted { "restarted" } else { "not restarted" };
        report.result(format_args!("{address}: {how}, verified again after {back}"));
    }
    report.result(format_args!("\n{}", table(&system, report.result_style())));
    Ok(Ending::Rolled(RollJson { servers: roll.rolled, failover: roll.failover }))
}

/// A command that names no server would do the same for all of them.
fn check_command(command: &[OsString]) -> Result<(), Failure> {
    let names = |what: &str| command.iter().any(|word| word.to_string_lossy().contains(what));
    if names(HOST) || names(PORT) {
        return Ok(());
    }
    Err(Failure::Usage(vec![format!(
        "the command must contain {HOST} or {PORT}, which stand for the server, like `-- ssh root@{HOST} \
         systemctl restart sentinel-broker-redis@{PORT}`"
    )]))
}

/// The server of the system with this address.
fn registered(system: &System, done: &Endpoint) -> Result<Endpoint, Failure> {
    let member = system.redis().find(|member| member.is_at(done));
    member
        .map(|member| member.endpoint.clone())
        .ok_or_else(|| Failure::Usage(vec![format!("--done {done}: not a Redis server of this system")]))
}

/// The next step.
#[derive(Debug, Clone, PartialEq, Eq)]
enum NextStep {
    /// Run the command for this server.
    Run(Endpoint),
    /// The master hands over, because only the master is left.
    HandOver,
    Done,
}

/// Decides the next step: the replicas come first, in the order of registration. No I/O.
fn next(system: &System, done: &[Endpoint]) -> NextStep {
    let is_left = |member: &&Member| !done.contains(&member.endpoint);
    if let Some(replica) = system.replicas.iter().find(is_left) {
        NextStep::Run(replica.endpoint.clone())
    } else if is_left(&&system.master) {
        NextStep::HandOver
    } else {
        NextStep::Done
    }
}

struct Roll<'a> {
    config: &'a LookConfig,
    watcher: &'a Watcher<'a>,
    report: &'a Report,
    /// The time for each server.
    timeout: Duration,
    command: Vec<OsString>,
    done: Vec<Endpoint>,
    rolled: Vec<RolledJson>,
    failover: Option<FailoverJson>,
}

impl Roll<'_> {
    fn change<'b>(&'b self, before: &'b System, timeout: Duration) -> MasterChange<'b> {
        let Self { config, watcher, report, .. } = *self;
        MasterChange { config, watcher, report, before, deadline: Instant::now() + timeout, timeout }
    }

    async fn go_on(
        &mut self,
        mut system: System,
        mut roster: Roster,
        stop: &mut Stop,
    ) -> Result<System, Failure> {
        loop {
            let step = next(&system, &self.done);
            let (at, ended) = match &step {
                NextStep::Done => return Ok(system),
                NextStep::Run(server) => (server.clone(), self.run(&system, server, stop).await),
                NextStep::HandOver => {
                    (system.master.endpoint.clone(), self.hand_over(&system, roster, stop).await)
                }
            };
            (system, roster) = ended.map_err(|cause| self.halted(at, cause))?;
        }
    }

    fn halted(&self, at: Endpoint, cause: Failure) -> Failure {
        Failure::Halted { at, done: self.done.clone(), cause: Box::new(cause) }
    }

    async fn hand_over(
        &mut self,
        system: &System,
        roster: Roster,
        stop: &mut Stop,
    ) -> Result<(System, Roster), Failure> {
        self.report.event(format_args!("{}: the master hands over first", system.master.endpoint));
        let changed = self.change(system, self.timeout).run(None, roster, stop).await?;
        self.failover = Some(document(system, &changed.system, &changed.handed_over, changed.verified));
        // The new roster contains the settings that are still to be restored.
        let looked = stop.or(self.watcher.look()).await?;
        Ok((looked.verdict?, looked.roster))
    }

    /// Runs the command for one server, and waits until the system is verified with this server.
    async fn run(
        &mut self,
        system: &System,
        server: &Endpoint,
        stop: &mut Stop,
    ) -> Result<(System, Roster), Failure> {
        let words: Vec<OsString> = self.command.iter().map(|word| filled_in(word, server)).collect();
        let shown = shown(&words);
        self.report.event(format_args!("{server}: running `{shown}`"));
        let begun = Instant::now();
        let status = self.end_of(words, &shown, stop).await?;
        if !status.success() {
            return Err(Failure::Other(anyhow::anyhow!("`{shown}` ended with {status}")));
        }
        let ended = Instant::now();
        let run_id = |system: &System| {
            system.redis().find(|member| member.endpoint == *server).map(|member| member.run_id.clone())
        };
        let (after, roster) = stop.or(self.verified_with(server)).await?;
        let restarted = run_id(system) != run_id(&after);
        let verified = ended.elapsed().saturating_sub(SETTLED);
        let how = if restarted { "" } else { "; it was not restarted" };
        self.report.event(format_args!("{server}: verified after {}{how}", took(verified)));
        self.done.push(server.clone());
        self.rolled.push(RolledJson {
            address: server.to_string(),
            restarted,
            command_ms: ms(ended - begun),
            verified_ms: ms(verified),
        });
        Ok((after, roster))
    }

    /// Runs the command. If only this process gets a signal, the command runs to its end first.
    async fn end_of(
        &self,
        words: Vec<OsString>,
        shown: &str,
        stop: &mut Stop,
    ) -> Result<ExitStatus, Failure> {
        let failed =
            |error: std::io::Error| Failure::Other(anyhow::anyhow!("`{shown}` can't be run: {error}"));
        let mut child = start(&words).map_err(failed)?;
        let stopped = tokio::select! {
            status = child.wait() => return status.map_err(failed),
            stopped = stop.asked() => stopped,
        };
        self.report.event("stopping as soon as this command has ended");
        stop.or(async { child.wait().await.map_err(failed) }).await?;
        Err(stopped)
    }

    /// Waits until the system has been verified with this server for as long as [`SETTLED`].
    async fn verified_with(&self, server: &Endpoint) -> Result<(System, Roster), Failure> {
        let deadline = Instant::now() + self.timeout;
        let mut since = None::<Instant>;
        loop {
            let found = match self.watcher.look().await {
                Ok(looked) => match looked.verdict {
                    Ok(system) if system.redis().any(|member| member.endpoint == *server) => {
                        if since.get_or_insert_with(Instant::now).elapsed() >= SETTLED {
                            return Ok((system, looked.roster));
                        }
                        None
                    }
                    Ok(_) => Some(vec![Unmet::new(server, "is not back")]),
                    Err(failure) => Some(unmet(server, &failure)),
                },
                Err(failure) => Some(unmet(server, &failure)),
            };
            if let Some(unmet) = found {
                since = None;
                if Instant::now() >= deadline {
                    return Err(Failure::NotVerified { after: self.timeout, unmet });
                }
            }
            sleep(LOOK_AGAIN).await;
        }
    }
}

/// What a look has found. If it found nothing about a node, the failure itself is the finding.
fn unmet(server: &Endpoint, failure: &Failure) -> Vec<Unmet> {
    let found: Vec<Unmet> = failure
        .nodes()
        .into_iter()
        .map(|finding| Unmet { node: finding.node.clone(), what: finding.what, hint: finding.hint })
        .collect();
    if found.is_empty() { vec![Unmet::new(server, failure.to_string())] } else { found }
}

fn start(words: &[OsString]) -> std::io::Result<Child> {
    let (program, arguments) = words.split_first().expect("clap asks for one word");
    // Standard output is for the result of the run.
    let output = std::io::stderr().as_fd().try_clone_to_owned()?;
    Command::new(program).args(arguments).stdout(Stdio::from(output)).spawn()
}

fn filled_in(word: &OsString, server: &Endpoint) -> OsString {
    match word.to_str() {
        Some(word) => word.replace(HOST, &server.host).replace(PORT, &server.port.to_string()).into(),
        // A word that is not UTF-8 is passed on unchanged.
        None => word.clone(),
    }
}

fn shown(words: &[OsString]) -> String {
    words.iter().map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_replicas_come_first_and_the_master_only_once_it_is_none() {
        let at = |host: usize| Endpoint::new(format!("10.0.0.{host}"), 6379);
        let system = System::of(&[at(1), at(2), at(3)], &[]);
        assert_eq!(next(&system, &[]), NextStep::Run(at(2)));
        assert_eq!(next(&system, &[at(2)]), NextStep::Run(at(3)));
        assert_eq!(next(&system, &[at(3), at(2)]), NextStep::HandOver);
        let after = System::of(&[at(2), at(1), at(3)], &[]);
        assert_eq!(next(&after, &[at(3), at(2)]), NextStep::Run(at(1)));
        assert_eq!(next(&after, &[at(3), at(2), at(1)]), NextStep::Done);
        // The Sentinels have failed over in between.
        assert_eq!(next(&after, &[at(2)]), NextStep::Run(at(1)));
    }

    #[test]
    fn the_command_names_the_server() {
        let at = Endpoint::new("fd00::7", 6380);
        let words = ["ssh", "{host}", "restart redis@{port} {host}"].map(OsString::from);
        let filled: Vec<_> = words.iter().map(|word| filled_in(word, &at)).collect();
        assert_eq!(filled, ["ssh", "fd00::7", "restart redis@6380 fd00::7"]);
        assert!(check_command(&words).is_ok() && check_command(&words[..1]).is_err());
    }
}
