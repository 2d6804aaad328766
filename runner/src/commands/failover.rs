//! `failover`: makes another server the master, and loses no acknowledged write. `verify --failover` does the
//! same, and measures it.

use std::collections::BTreeSet;
use std::pin::pin;
use std::time::Duration;

use broker_fn::api::{Addr, Outcome, Roster, Timestamp};
use tokio::time::{Instant, sleep};

use super::look::Watcher;
use super::stop::Stop;
use crate::broker::{Broker, REQUEST_TIMEOUT};
use crate::cli::FailoverArgs;
use crate::config::LookConfig;
use crate::error::Failure;
use crate::node::command::command;
use crate::node::endpoint::Endpoint;
use crate::node::redis::{PRIORITY, set};
use crate::node::rights::Lack;
use crate::node::sentinel::peers;
use crate::report::Report;
use crate::report::document::{Ending, FailoverJson, ms};
use crate::report::event::Event;
use crate::report::table::table;
use crate::system::decide::{Refusal, RefusalKind};
use crate::system::handover::{Abort, HandedOver, Handover, ServerAddresses};
use crate::system::judge::Unmet;
use crate::system::members::{Member, System};
use crate::system::temporary::{Cleanup, FIRST, SECOND, restorable, restorable_by_the_broker};
use crate::system::timings::Phase;
use crate::words::took;

/// The time between two looks at the system once the roles have changed.
const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// How long a Sentinel may take to learn a replica's priority: it reads `INFO` every ten seconds.
const PRIORITY_READ_WITHIN: Duration = Duration::from_secs(25);

/// How often a Sentinel is asked for the priority.
const PRIORITY_POLL: Duration = Duration::from_millis(100);

/// `failover`.
///
/// # Errors
///
/// If the system is not verified, with the reasons; if the failover is refused, or does not complete.
pub async fn failover(typed: FailoverArgs, report: &Report) -> Result<Ending, Failure> {
    let FailoverArgs { look, to, timeout } = typed;
    let config = LookConfig::resolve(look, &[("--timeout", timeout)])?;
    let watcher = Watcher::new(&config, report)?;
    let mut stop = Stop::new()?;
    let started = Instant::now();
    let looked = stop.or(watcher.settled()).await?;
    let system = looked.verdict?;
    let to = to.map(|to| Endpoint::from(&to));
    if let Some(to) = &to
        && system.master.is_at(to)
    {
        report.event(format_args!("{to} is the master already"));
        report.tell(&Event::Verified { system: &system, took: started.elapsed(), how: "verified" });
        report.result(table(&system, report.result_style()));
        return Ok(Ending::Verified);
    }
    report.tell(&Event::Deadline(timeout));
    let deadline = started + timeout;
    let change =
        MasterChange { config: &config, watcher: &watcher, report, before: &system, deadline, timeout };
    let ChangedMaster { system: after, handed_over, verified } =
        change.run(to.as_ref(), looked.roster, &mut stop).await?;
    report.tell(&Event::Verified { system: &after, took: verified, how: "verified again" });
    let (from, to) = (&system.master.endpoint, &after.master.endpoint);
    report.result(format_args!("failover from {from} to {to}"));
    report.result(format_args!("  clients could not write for   {}", took(handed_over.named)));
    report.result(format_args!("  verified again after          {}\n", took(verified)));
    report.result(table(&after, report.result_style()));
    Ok(Ending::FailedOver(document(&system, &after, &handed_over, verified)))
}

/// The result of a failover, without what only a drill measures.
pub fn document(
    before: &System,
    after: &System,
    handed_over: &HandedOver,
    verified: Duration,
) -> FailoverJson {
    FailoverJson {
        from: before.master.endpoint.to_string(),
        to: after.master.endpoint.to_string(),
        paused_ms: ms(handed_over.paused),
        named_ms: ms(handed_over.named),
        verified_ms: ms(verified),
        unwritable_ms: None,
        writes: None,
        lost: None,
    }
}

/// A change of master in a verified system.
#[derive(Debug)]
pub struct MasterChange<'a> {
    pub config: &'a LookConfig,
    pub watcher: &'a Watcher<'a>,
    pub report: &'a Report,
    pub before: &'a System,
    pub deadline: Instant,
    /// The timeout as it was typed.
    pub timeout: Duration,
}

/// The result of a change of master.
#[derive(Debug)]
pub struct ChangedMaster {
    pub system: System,
    pub handed_over: HandedOver,
    /// From the pause of writes to the verified system.
    pub verified: Duration,
}

impl MasterChange<'_> {
    /// Makes `to` the master, or the replica that the Sentinels choose. Waits until the system is verified.
    pub async fn run(
        &self,
        to: Option<&Endpoint>,
        roster: Roster,
        stop: &mut Stop,
    ) -> Result<ChangedMaster, Failure> {
        self.check()?;
        let to = to.map(|to| self.replica(to)).transpose()?;
        let broker = Broker::new(&self.config.broker).map_err(Failure::Other)?;
        let master = self.before.master.endpoint.to_string().parse::<Addr>().ok();
        let (cleanup, noted) = (Cleanup::default(), BTreeSet::new());
        let mut notes = Notes { broker: &broker, roster, master, cleanup, noted };
        let changed = self.prefer_and_change(to, &mut notes, stop).await;
        self.watcher.servers().timings.enter(Phase::Finish);
        for (node, command) in notes.cleanup.run(&self.watcher.servers().redis).await {
            self.report.warning(format_args!(
                "{node} still has a temporary setting of this run; to restore the setting, send \
                 `{command}` and `CONFIG REWRITE` to the node"
            ));
        }
        let master = changed.as_ref().ok().map(|changed| &changed.system.master.endpoint);
        if let Err(error) = notes.put_back(master).await {
            self.report.warning(format_args!("the outcome could not be reported: {error}"));
        }
        changed
    }

    /// Checks that there is a replica to promote.
    pub fn check(&self) -> Result<(), Failure> {
        self.candidates().next().map(drop).ok_or_else(|| self.no_candidate())
    }

    /// The replicas that a Sentinel may promote.
    fn candidates(&self) -> impl Iterator<Item = &Member> {
        self.before.replicas.iter().filter(|one| one.settings.priority() != Some(0))
    }

    fn replica(&self, to: &Endpoint) -> Result<&Member, Failure> {
        let refused = |kind, reason, hint: String| Err(Failure::Refused(Refusal { kind, reason, hint }));
        let Some(replica) = self.before.replicas.iter().find(|replica| replica.is_at(to)) else {
            let replicas: Vec<String> =
                self.before.replicas.iter().map(|one| one.endpoint.to_string()).collect();
            let hint = format!("choose one of these replicas with --to: {}", replicas.join(", "));
            return refused(RefusalKind::Usage, format!("{to} is not a replica of this system"), hint);
        };
        if replica.settings.priority() == Some(0) {
            let reason = format!("{to} can't be promoted: its replica-priority is 0");
            return refused(RefusalKind::Unsafe, reason, format!("CONFIG SET replica-priority 100 on {to}"));
        }
        Ok(replica)
    }

    fn no_candidate(&self) -> Failure {
        let master = &self.before.master.endpoint;
        let (reason, hint) = if self.before.replicas.is_empty() {
            (
                format!("{master} has no replica to fail over to"),
                "register a second Redis server, then run `sentinel-runner bootstrap --redis 2`".into(),
            )
        } else {
            (
                format!("no replica of {master} can be promoted: every replica has replica-priority 0"),
                format!("CONFIG SET replica-priority 100 on {}", self.before.replicas[0].endpoint),
            )
        };
        Failure::Refused(Refusal { kind: RefusalKind::Unsafe, reason, hint })
    }

    async fn prefer_and_change(
        &self,
        to: Option<&Member>,
        notes: &mut Notes<'_>,
        stop: &mut Stop,
    ) -> Result<ChangedMaster, Failure> {
        if let Some(to) = to {
            stop.or(self.prefer(to, notes)).await?;
        }
        let handover = self.handover().fewest_clients_first().await;
        let mut ended = pin!(self.hand_over_and_verify(&handover));
        let changed = tokio::select! {
            ended = &mut ended => ended,
            stopped = stop.asked() => {
                // In the middle of a handover it is safer to go on to its end. A second signal ends the run
                // at once; the server ends the pause at its time limit.
                if handover.is_under_way() {
                    self.report.event("a failover is in progress: stopping when the failover has ended");
                    tokio::select! {
                        ended = &mut ended => ended,
                        stopped = stop.asked() => return Err(stopped),
                    }
                } else {
                    return Err(stopped);
                }
            }
        }?;
        match to {
            Some(to) if changed.system.master.endpoint != to.endpoint => {
                let promoted = &changed.system.master.endpoint;
                let what = format!("is not the master: the Sentinels promoted {promoted} instead");
                let unmet = Unmet::new(&to.endpoint, what).hint("run this again");
                Err(Failure::NotVerified { after: self.timeout, unmet: vec![unmet] })
            }
            _ => Ok(changed),
        }
    }

    fn handover(&self) -> Handover<'_> {
        let seat = |member: &Member| ServerAddresses {
            endpoint: member.endpoint.clone(),
            announced: member.announced.clone(),
            aliases: member.aliases.clone(),
        };
        let candidates = self.candidates().map(seat);
        let sentinels = self.before.sentinels.iter().map(|sentinel| sentinel.endpoint.clone());
        Handover::new(
            self.watcher.servers(),
            self.before.group.as_str(),
            seat(&self.before.master),
            candidates.collect(),
            sentinels.collect(),
        )
    }

    async fn hand_over_and_verify(&self, handover: &Handover<'_>) -> Result<ChangedMaster, Failure> {
        let Self { watcher, report, before, deadline, .. } = *self;
        watcher.servers().timings.enter(Phase::Attach);
        let handed_over = handover.run(deadline).await.map_err(|abort| failure(abort, self.timeout))?;
        report.event(format_args!(
            "{} is the new master for a majority of the Sentinels; writes were paused for {}",
            handed_over.to.endpoint,
            took(handed_over.paused)
        ));
        if handed_over.is_late {
            report.warning(
                "the pause of writes ended before the old master was attached: writes that the old \
                 master acknowledged after the pause are lost",
            );
        }
        let mut unmet = Vec::new();
        loop {
            match watcher.look().await?.verdict {
                Ok(system) if system.master.endpoint != before.master.endpoint => {
                    let verified = handed_over.since.elapsed();
                    return Ok(ChangedMaster { system, handed_over, verified });
                }
                Err(Failure::NotAsItShouldBe { unmet: found, .. }) => unmet = found,
                Err(failure @ Failure::Refused(_)) => return Err(failure),
                Ok(_) | Err(_) => {}
            }
            if Instant::now() >= deadline {
                if unmet.is_empty() {
                    unmet.push(Unmet::new(&before.master.endpoint, "is still the master".to_owned()));
                }
                return Err(Failure::NotVerified { after: self.timeout, unmet });
            }
            sleep(LOOK_AGAIN).await;
        }
    }

    /// Sets priorities so that a Sentinel promotes this replica.
    async fn prefer(&self, to: &Member, notes: &mut Notes<'_>) -> Result<(), Failure> {
        let priorities = priorities(&self.before.replicas, to)?;
        if priorities.is_empty() {
            return Ok(());
        }
        self.watcher.servers().timings.enter(Phase::Prepare);
        notes.note(&priorities).await?;
        for priority in &priorities {
            let command = set(PRIORITY, &priority.now.to_string());
            let node = &priority.node.endpoint;
            let replies = self.watcher.servers().redis.send(node, std::slice::from_ref(&command)).await;
            let refused = match replies {
                Ok(replies) => replies[0].as_ref().err().map(ToString::to_string),
                Err(error) => Some(error.to_string()),
            };
            if let Some(refused) = refused {
                return Err(Failure::Unusable {
                    node: node.clone(),
                    what: format!("`{}` was answered with `{refused}`", command.shown()),
                    hint: "check that server, then run this again; the master was not changed".into(),
                });
            }
        }
        self.report.event(format_args!(
            "promoting {}: waiting until every Sentinel has read its replica-priority, which the Sentinels \
             do every 10 s (25 s at most)",
            to.endpoint
        ));
        self.until_read(&priorities).await
    }

    /// Any Sentinel may lead the failover, so all of them have to have read the priorities.
    async fn until_read(&self, priorities: &[Priority<'_>]) -> Result<(), Failure> {
        let until = self.deadline.min(Instant::now() + PRIORITY_READ_WITHIN);
        let mut sentinels = self.before.sentinels.iter().peekable();
        while let Some(sentinel) = sentinels.peek() {
            if self.has_read(&sentinel.endpoint, priorities).await {
                sentinels.next();
            } else if Instant::now() >= until {
                return Err(Failure::Unusable {
                    node: sentinel.endpoint.clone(),
                    what: "has not read the new replica-priority of the replicas".into(),
                    hint: "check that Sentinel, then run this again; the master was not changed".into(),
                });
            } else {
                sleep(PRIORITY_POLL).await;
            }
        }
        Ok(())
    }

    async fn has_read(&self, sentinel: &Endpoint, priorities: &[Priority<'_>]) -> bool {
        let ask = [command!("SENTINEL", "REPLICAS", self.before.group)];
        let Ok(replies) = self.watcher.servers().sentinels.send(sentinel, &ask).await else { return false };
        let Ok(replicas) = &replies[0] else { return false };
        let replicas = peers(replicas);
        priorities.iter().all(|priority| {
            let known = replicas.iter().find(|peer| priority.node.is_at(&peer.endpoint));
            known.is_some_and(|peer| peer.priority == Some(priority.now))
        })
    }
}

/// A temporary `replica-priority` of a replica.
#[derive(Debug, PartialEq, Eq)]
struct Priority<'a> {
    node: &'a Member,
    before: u32,
    now: u32,
}

/// The changes after which a Sentinel promotes this replica: it needs the lowest priority that is not 0. As
/// little as possible is changed.
fn priorities<'a>(replicas: &'a [Member], to: &'a Member) -> Result<Vec<Priority<'a>>, Failure> {
    let known = |node: &'a Member| {
        node.settings.priority().ok_or_else(|| Failure::Unusable {
            node: node.endpoint.clone(),
            what: "its replica-priority can't be read, which --to needs".into(),
            hint: format!("grant the runner's user +config|get on {}", node.endpoint),
        })
    };
    let own = known(to)?;
    let mut others = Vec::new();
    for node in replicas.iter().filter(|node| node.endpoint != to.endpoint) {
        others.push((node, known(node)?));
    }
    // A replica with priority 0 is never promoted.
    let rivals = || others.iter().filter(|(_, priority)| *priority != 0);
    if rivals().all(|(_, priority)| *priority > own) {
        return Ok(Vec::new());
    }
    let mut changes = Vec::new();
    if own != FIRST {
        changes.push(Priority { node: to, before: own, now: FIRST });
    }
    for &(node, before) in rivals().filter(|(_, priority)| *priority <= FIRST) {
        changes.push(Priority { node, before, now: SECOND });
    }
    Ok(changes)
}

/// The reports to the broker: temporary settings before they are changed, so that another run can restore
/// them, and the master.
struct Notes<'a> {
    broker: &'a Broker,
    roster: Roster,
    /// The master before anything is changed.
    master: Option<Addr>,
    cleanup: Cleanup,
    /// The servers whose settings this run has noted.
    noted: BTreeSet<String>,
}

impl Notes<'_> {
    async fn note(&mut self, priorities: &[Priority<'_>]) -> Result<(), Failure> {
        let mut outcome = self.outcome();
        for Priority { node, before, .. } in priorities {
            let settings = outcome.restore.entry(node.endpoint.to_string()).or_default();
            settings.entry(PRIORITY.to_owned()).or_insert_with(|| before.to_string());
        }
        self.broker
            .report(&Outcome { at: Timestamp::now(), ..outcome.clone() })
            .await
            .map_err(Failure::Broker)?;
        for Priority { node, .. } in priorities {
            // A value that a killed run has noted is the original value, so it stays.
            let name = node.endpoint.to_string();
            self.cleanup.note(&node.endpoint, PRIORITY, &outcome.restore[&name][PRIORITY]);
            self.noted.insert(name);
        }
        Ok(())
    }

    /// Reports the master, and what could not be restored.
    async fn put_back(self, master: Option<&Endpoint>) -> Result<(), crate::broker::BrokerError> {
        let before = self.outcome();
        let roster = self.broker.roster(REQUEST_TIMEOUT).await?;
        let mut outcome = roster.outcome.clone().unwrap_or_else(|| before.clone());
        let pending = restorable(self.cleanup.pending());
        for (node, settings) in &mut outcome.restore {
            // Settings that another run has noted stay, because that run restores them.
            if !self.noted.contains(node) {
                continue;
            }
            let keeps = pending.get(node);
            settings
                .retain(|name, _| name != PRIORITY || keeps.is_some_and(|keeps| keeps.contains_key(name)));
        }
        restorable_by_the_broker(&mut outcome.restore, &roster);
        if let Some(master) = master.and_then(|master| master.to_string().parse::<Addr>().ok()) {
            outcome = Outcome { verified: true, master: Some(master), reason: None, ..outcome };
        }
        if outcome == before {
            return Ok(());
        }
        self.broker.report(&Outcome { at: Timestamp::now(), ..outcome }).await
    }

    /// The broker's outcome, with the present master. The system is verified now, even if the last bootstrap
    /// reported a failure.
    fn outcome(&self) -> Outcome {
        let mut restore =
            self.roster.outcome.as_ref().map(|outcome| outcome.restore.clone()).unwrap_or_default();
        restorable_by_the_broker(&mut restore, &self.roster);
        let at = self.roster.outcome.as_ref().map_or_else(Timestamp::now, |outcome| outcome.at);
        let expected = self.roster.last_verified.as_ref().map(|last| last.expected);
        let expected = expected.filter(|expected| *expected != self.roster.expected);
        Outcome { verified: true, master: self.master.clone(), at, reason: None, restore, expected }
    }
}

/// Why the roles were not changed, with what to do about it.
fn failure(abort: Abort, timeout: Duration) -> Failure {
    let refused = |reason, hint: &str| {
        Failure::Refused(Refusal { kind: RefusalKind::Unsafe, reason, hint: hint.to_owned() })
    };
    let what = abort.to_string();
    let node_says = |node: Endpoint, hint: String| {
        let what = what.strip_prefix(&format!("{node}")).unwrap_or(&what);
        let what = what.trim_start_matches(':').trim().to_owned();
        Failure::Unusable { node, what, hint }
    };
    match abort {
        Abort::Lags { .. } => refused(
            what,
            "wait until the replica has caught up (`sentinel-runner status`), then run this again; the \
             master was not changed, and writes were paused for 2 s at most",
        ),
        Abort::Busy { .. } => refused(
            format!("{what}: another process is changing the roles"),
            "wait until the system is verified (`sentinel-runner status`), then run this again if the \
             change is still needed",
        ),
        Abort::TooSlow => refused(
            what,
            "run this again; the master was not changed, and writes were paused for 2 s at most",
        ),
        Abort::Lacks { node, user, right, lack: Lack::Denied } => {
            let hint = format!("ACL SETUSER {user} +{right} on {node}");
            node_says(node, hint)
        }
        Abort::Lacks { node, .. } => {
            let hint = format!(
                "set the command's new name with --rename-command, or remove `rename-command` from the \
                 configuration of {node} and restart it"
            );
            node_says(node, hint)
        }
        Abort::Node { node, .. } | Abort::Silent { node } => {
            node_says(node, "check that node, then run this again; the master was not changed".into())
        }
        Abort::NotPromoted { sentinel, .. } => node_says(
            sentinel,
            "the master was not changed, and accepts writes again; the Sentinel can still fail over until \
             `failover-timeout` has passed: read the cause in the Sentinel's log, and run `sentinel-runner \
             status`"
                .into(),
        ),
        Abort::NotNamed { promoted, after } => {
            let what = format!(
                "was promoted, but no majority of the Sentinels reports it as the master after {}",
                took(after)
            );
            let unmet = Unmet::new(&promoted, what)
                .hint("`sentinel-runner status` shows which master each Sentinel reports");
            Failure::NotVerified { after: timeout, unmet: vec![unmet] }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node::redis::RedisSettings;

    #[test]
    fn a_replica_is_preferred_by_changing_as_little_as_possible() {
        let at = |host: usize| Endpoint::new(format!("10.0.0.{host}"), 6379);
        let changes = |own: &str, others: &[&str]| {
            let endpoints: Vec<Endpoint> = (0..others.len() + 2).map(at).collect();
            let mut system = System::of(&endpoints, &[]);
            for (replica, priority) in system.replicas.iter_mut().zip([&[own], others].concat()) {
                replica.settings = RedisSettings::of(&[("replica-priority", priority)]);
            }
            let changes = priorities(&system.replicas, &system.replicas[0]).unwrap();
            let index = |node: &Member| system.replicas.iter().position(|one| one.endpoint == node.endpoint);
            changes.iter().map(|change| (index(change.node).unwrap(), change.now)).collect::<Vec<_>>()
        };
        assert_eq!(changes("100", &[]), []);
        assert_eq!(changes("100", &["100", "100"]), [(0, 1)]);
        assert_eq!(changes("50", &["100"]), []);
        assert_eq!(changes("100", &["0"]), [], "it is never promoted");
        assert_eq!(changes("100", &["1", "7"]), [(0, 1), (1, 2)]);
        assert_eq!(changes("1", &["1", "1"]), [(1, 2), (2, 2)]);
    }
}
