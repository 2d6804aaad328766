//! `bootstrap`: waits until the roster is complete, then repeats *observe → decide → apply → verify* until
//! the system is verified.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use broker_fn::api::{Addr, Expected, Kind, Outcome, RUN_UNDER_WAY, Register, Roster, Timestamp};
use tokio::time::{Instant, sleep};

use super::stop::Stop;
use crate::broker::watch::RosterWatch;
use crate::broker::{Broker, BrokerError, REQUEST_TIMEOUT};
use crate::config::BootstrapConfig;
use crate::error::{Failure, WaitingFor};
use crate::node::endpoint::Endpoint;
use crate::node::unusable::Unusable;
use crate::report::Report;
use crate::report::document::Ending;
use crate::report::event::Event;
use crate::report::table::table;
use crate::system::apply::{Setback, apply, persist};
use crate::system::decide::{Decision, Refusal, Request, SECOND_LOOK, decide};
use crate::system::judge::Unmet;
use crate::system::observe::{Observed, observe};
use crate::system::plan::Plan;
use crate::system::servers::Servers;
use crate::system::temporary::{
    Cleanup, TemporarySetting, is_temporary, restorable, restorable_by_the_broker,
};
use crate::system::timings::Phase;
use crate::system::verify::Verifier;

/// How long one verification may take before the system is observed again, because it may have changed.
const VERIFY_ROUND: Duration = Duration::from_secs(1);

/// How long a registered node that does not answer may take to come up before a new system is made without
/// it. That node may hold the data.
const GRACE: Duration = Duration::from_secs(5);

/// How long the broker may take to answer once the time is up.
const LAST_LOOK: Duration = Duration::from_secs(2);

/// How long after a failed report the next one is sent: the first time, and at most.
const REPORT_AGAIN: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(2));

/// How long the broker may take to accept the report of a run that was stopped.
const STOPPED_REPORT: Duration = Duration::from_secs(1);

/// The longest reason that is reported to the broker, in bytes of JSON. The broker accepts 4 KiB in all, and
/// 2000 characters of the reason.
const REASON_BYTES: usize = 1900;

/// Runs a bootstrap. SIGINT and SIGTERM end it. It restores its temporary settings before it ends. The broker
/// has a record of these settings, so the next run restores the rest.
pub async fn bootstrap(config: &BootstrapConfig, report: &Report) -> Result<Ending, Failure> {
    let mut stop = Stop::new()?;
    let broker = Arc::new(Broker::new(&config.broker).map_err(Failure::Other)?);
    let mut run = BootstrapRun {
        config,
        report,
        watch: RosterWatch::new(Arc::clone(&broker), config.poll_interval / 20..=2 * config.poll_interval),
        broker,
        servers: Arc::new(config.nodes.connections(report)),
        cleanup: Cleanup::default(),
        deadline: Instant::now() + config.timeout,
        complete_at: None,
        changed: false,
        refused: None,
        unmet: Vec::new(),
        left_out: BTreeSet::new(),
        settled: BTreeSet::new(),
        announced: BTreeSet::new(),
        last_master: None,
        expected: None,
    };
    report.tell(&Event::Deadline(config.timeout));
    let ended = stop.or(run.until_verified()).await;
    // A second signal ends the run at once. The broker has a record of what the next run has to restore.
    tokio::select! {
        () = run.finish(&ended) => {}
        _ = stop.asked() => {}
    }
    if config.timings {
        report.event(format_args!("time by phase and node\n{}", run.servers.timings));
    }
    ended.map(|done| match done {
        Done::Verified(_) => Ending::Bootstrapped,
        Done::Planned(plan) => Ending::Planned(plan),
    })
}

/// The result of a run that did not fail.
enum Done {
    /// The system is verified. This is its master.
    Verified(Endpoint),
    /// The plan of a dry run.
    Planned(Box<Plan>),
}

/// The result of one round.
enum RoundResult {
    Done(Done),
    /// Look again at once.
    Look,
    /// Something has to happen first.
    Wait(WaitingFor),
}

struct BootstrapRun<'a> {
    config: &'a BootstrapConfig,
    report: &'a Report,
    broker: Arc<Broker>,
    watch: RosterWatch,
    servers: Arc<Servers>,
    cleanup: Cleanup,
    deadline: Instant,
    /// When the roster was complete for the first time.
    complete_at: Option<Instant>,
    /// Whether there was anything to change.
    changed: bool,
    /// The refusal of the last round.
    refused: Option<Refusal>,
    /// What the last verification found.
    unmet: Vec<Unmet>,
    /// The nodes that were reported as left out.
    left_out: BTreeSet<Endpoint>,
    /// The temporary settings that this run restores: those that it has set, and those of an earlier run.
    settled: BTreeSet<String>,
    /// The nodes that were reported because they announce another address: by the registered address and by
    /// the announced address.
    announced: BTreeSet<Endpoint>,
    /// The master of the last verified system. A run that fails reports it again: a server that starts
    /// ([`join`](super::join)) learns from the report that a verified system exists or existed.
    last_master: Option<Addr>,
    /// How many nodes there must be, if these are not the broker's numbers.
    expected: Option<Expected>,
}

impl BootstrapRun<'_> {
    /// Repeats the rounds until the system is verified.
    async fn until_verified(&mut self) -> Result<Done, Failure> {
        loop {
            let roster = self.complete_roster().await?;
            let expected = self.config.expected(&roster)?;
            let observed = self.observe(&roster).await;
            let request = self.config.request(&roster, expected);
            let next = match decide(&observed, &request) {
                Decision::Refuse(refusal) => self.refuse(refusal).await?,
                Decision::Wait(wait) => RoundResult::Wait(WaitingFor::Nodes(wait)),
                Decision::Proceed(plan) => self.proceed(plan, &request).await?,
            };
            match next {
                RoundResult::Done(done) => return Ok(done),
                RoundResult::Look => {}
                RoundResult::Wait(waiting_for) => self.wait(waiting_for, &observed).await?,
            }
        }
    }

    async fn observe(&mut self, roster: &Roster) -> Observed {
        self.servers.timings.enter(Phase::Observe);
        let observed = observe(&self.servers, roster).await;
        self.servers.timings.enter(Phase::Plan);
        self.report.tell(&Event::Observed(&observed));
        self.remember(roster, &observed);
        self.report_announced(&observed);
        observed
    }

    /// Refuses only if two observations in a row give the same reason.
    async fn refuse(&mut self, refusal: Refusal) -> Result<RoundResult, Failure> {
        if self.refused.as_ref() == Some(&refusal) {
            return Err(Failure::Refused(refusal));
        }
        self.refused = Some(refusal);
        sleep(SECOND_LOOK).await;
        Ok(RoundResult::Look)
    }

    /// Carries out the plan, and verifies the result.
    async fn proceed(&mut self, mut plan: Box<Plan>, request: &Request) -> Result<RoundResult, Failure> {
        if self.config.dry_run {
            self.report.result(&plan);
            return Ok(RoundResult::Done(Done::Planned(plan)));
        }
        if self.has_grace(&plan) {
            return Ok(RoundResult::Wait(WaitingFor::Grace));
        }
        if !plan.is_empty() && Instant::now() >= self.deadline {
            return Ok(RoundResult::Wait(WaitingFor::Time));
        }
        match self.apply(&mut plan).await {
            Ok(()) => {}
            Err(Setback::Unusable { node, what, hint }) => {
                return Err(Failure::Unusable { node, what, hint });
            }
            Err(setback @ Setback::Changed { .. }) => {
                return Ok(RoundResult::Wait(WaitingFor::Setback(setback)));
            }
        }
        match self.verify(&plan, request).await {
            Ok(()) => Ok(RoundResult::Done(Done::Verified(plan.system.master.endpoint))),
            Err(unmet) => {
                self.report.tell(&Event::Unmet(&unmet));
                self.unmet = unmet;
                Ok(RoundResult::Look)
            }
        }
    }

    async fn apply(&mut self, plan: &mut Plan) -> Result<(), Setback> {
        self.report.tell(&Event::Plan(plan));
        self.changed |= !plan.is_empty();
        for (node, problem) in &plan.left_out {
            if self.left_out.insert(node.clone()) {
                self.report.warning(format_args!("{node} is left out: {problem}"));
            }
        }
        self.servers.timings.enter(Phase::Prepare);
        self.note_changes(plan).await;
        apply(&self.servers, plan, &self.cleanup).await
    }

    async fn verify(&self, plan: &Plan, request: &Request) -> Result<(), Vec<Unmet>> {
        let Self { servers, report, .. } = self;
        servers.timings.enter(Phase::Verify);
        let round = self.deadline.min(Instant::now() + VERIFY_ROUND);
        let (system, wanted) = (&plan.system, request.wanted());
        let verifier = Verifier {
            servers,
            system,
            options: &wanted,
            redis_settings: &request.redis_settings,
            helps: true,
        };
        let verified = verifier.verify(round).await;
        let verified_at = Instant::now();
        servers.timings.enter(Phase::Finish);
        self.put_back().await;
        for (node, problem) in persist(&servers.redis, plan).await {
            report.warning(format_args!(
                "{node} can't write its configuration file ({problem}): run `sentinel-runner bootstrap` \
                 again after a restart of this node"
            ));
        }
        report.reservations(system, &verified?);
        let took = self.complete_at.map(|at| verified_at - at).unwrap_or_default();
        let how = if self.changed { "verified" } else { "already configured; verified" };
        report.tell(&Event::Verified { system: &plan.system, took, how });
        report.result(table(&plan.system, report.result_style()));
        Ok(())
    }

    /// Waits a moment, if there is time left.
    async fn wait(&mut self, waiting_for: WaitingFor, observed: &Observed) -> Result<(), Failure> {
        self.servers.timings.enter(Phase::Wait);
        self.unmet.clear();
        let nodes = observed.problems();
        self.report.tell(&Event::WaitingFor { what: &waiting_for, nodes: &nodes });
        if Instant::now() >= self.deadline {
            let waiting_for = Box::new(waiting_for);
            return Err(Failure::OutOfTime { after: self.config.timeout, waiting_for, nodes });
        }
        self.watch.changed(self.deadline.min(Instant::now() + self.config.poll_interval)).await;
        Ok(())
    }

    /// Reads the roster until it is complete.
    async fn complete_roster(&mut self) -> Result<Roster, Failure> {
        self.servers.timings.enter(Phase::Wait);
        loop {
            let out_of_time = Instant::now() >= self.deadline;
            if out_of_time && !self.unmet.is_empty() {
                let unmet = std::mem::take(&mut self.unmet);
                return Err(Failure::NotVerified { after: self.config.timeout, unmet });
            }
            let roster = if out_of_time {
                self.broker.roster(LAST_LOOK).await
            } else {
                self.watch.current(self.deadline.saturating_duration_since(Instant::now())).await
            };
            match roster {
                Ok(roster) => {
                    self.last_master = roster.outcome.as_ref().and_then(|outcome| outcome.master.clone());
                    let expected = self.config.expected(&roster)?;
                    // Only numbers that differ from the broker's are reported.
                    self.expected = Some(expected).filter(|expected| *expected != roster.expected);
                    self.report.tell(&Event::Roster { roster: &roster, expected });
                    self.announce(&roster);
                    let missing = expected.missing(roster.redis.len(), roster.sentinels.len());
                    if missing.is_nothing() {
                        self.complete_at.get_or_insert_with(Instant::now);
                        return Ok(self.config.with_master(roster));
                    }
                    let waiting_for =
                        WaitingFor::Registrations { redis: missing.redis, sentinels: missing.sentinels };
                    if out_of_time {
                        return Err(self.never_complete(&roster, waiting_for).await);
                    }
                    self.report.tell(&Event::WaitingFor { what: &waiting_for, nodes: &[] });
                }
                Err(error) if !error.may_pass() || out_of_time => return Err(Failure::Broker(error)),
                Err(error) => self.report.tell(&Event::NoBroker(&error)),
            }
            self.watch.changed(self.deadline).await;
        }
    }

    /// The failure of a run in which too few nodes registered. It contains the problems of the nodes that
    /// registered.
    async fn never_complete(&self, roster: &Roster, waiting_for: WaitingFor) -> Failure {
        let observed = observe(&self.servers, roster).await;
        self.report.tell(&Event::Observed(&observed));
        Failure::OutOfTime {
            after: self.config.timeout,
            waiting_for: Box::new(waiting_for),
            nodes: observed.problems(),
        }
    }

    /// Reports new nodes of the roster, and connects to them. When the last node registers, the connections
    /// to the others are ready.
    fn announce(&mut self, roster: &Roster) {
        let redis = roster.redis.iter().map(|registration| (Kind::Redis, registration));
        let sentinels = roster.sentinels.iter().map(|registration| (Kind::Sentinel, registration));
        for (kind, registration) in redis.chain(sentinels) {
            let endpoint = Endpoint::from(&registration.addr);
            if self.announced.insert(endpoint.clone()) {
                self.report.tell(&Event::Registered { kind, node: &endpoint });
                let servers = Arc::clone(&self.servers);
                tokio::spawn(async move {
                    match kind {
                        Kind::Redis => servers.redis.open(&endpoint).await,
                        Kind::Sentinel => servers.sentinels.open(&endpoint).await,
                    }
                });
            }
        }
    }

    /// Takes over the settings that a killed run has not restored. That run reported them to the broker
    /// before it changed them.
    fn remember(&mut self, roster: &Roster, observed: &Observed) {
        let Some(outcome) = &roster.outcome else { return };
        for node in &observed.redis {
            let (name, Ok(state)) = (node.endpoint.to_string(), &node.state) else { continue };
            let Some(settings) = outcome.restore.get(&name) else { continue };
            for (setting, before) in settings {
                // Another process has set any other value.
                if state.settings.get(setting).is_some_and(|now| is_temporary(setting, now, before)) {
                    self.cleanup.note(&node.endpoint, setting, before);
                }
            }
            self.settled.insert(name);
        }
    }

    /// Reports to the broker what the plan changes temporarily, before the change: a run that is killed can't
    /// restore it. If the broker does not accept the report, these settings are not changed, and the replicas
    /// come up later.
    async fn note_changes(&mut self, plan: &mut Plan) {
        if plan.temporary.is_empty() {
            return;
        }
        let mut restore = self.cleanup.pending();
        for TemporarySetting { node, name, before, .. } in &plan.temporary {
            let settings = restore.entry(node.clone()).or_default();
            settings.entry((*name).to_owned()).or_insert_with(|| before.clone());
        }
        let reason = Some(RUN_UNDER_WAY.to_owned());
        let (master, restore) = (self.last_master.clone(), restorable(restore));
        let outcome = Outcome {
            verified: false,
            master,
            at: Timestamp::now(),
            reason,
            restore,
            expected: self.expected,
        };
        match self.broker.report(&outcome).await {
            Ok(()) => {
                for TemporarySetting { node, name, before, .. } in &plan.temporary {
                    self.cleanup.note(node, name, before);
                    self.settled.insert(node.to_string());
                }
            }
            Err(error) => {
                self.report.warning(format_args!(
                    "the replicas take some seconds longer, because the broker could not record \
                     temporary settings: {error}"
                ));
                plan.temporary.clear();
            }
        }
    }

    async fn put_back(&self) {
        for (node, command) in self.cleanup.run(&self.servers.redis).await {
            self.report.warning(format_args!(
                "{node} still has a temporary setting of this run; to restore the setting, send \
                 `{command}` to the node"
            ));
        }
    }

    /// Restores temporary settings, and reports the outcome to the broker.
    async fn finish(&self, ended: &Result<Done, Failure>) {
        self.servers.timings.enter(Phase::Finish);
        if self.config.dry_run {
            return;
        }
        self.put_back().await;
        let left = self.deadline.saturating_duration_since(Instant::now());
        let patience = match ended {
            Err(Failure::Stopped(_)) => STOPPED_REPORT,
            _ => left.max(2 * REQUEST_TIMEOUT),
        };
        // A broker that does not answer keeps the outcome that it has.
        if tokio::time::timeout(patience, self.tell_broker(ended)).await.is_err() {
            self.report.warning("the outcome could not be reported: the broker does not answer");
        }
    }

    /// Whether a new system is about to be made without registered nodes that may still come up.
    fn has_grace(&self, plan: &Plan) -> bool {
        let is_new = plan.monitor.len() == plan.system.sentinels.len();
        let may_come_up =
            plan.left_out.iter().any(|(_, problem)| !matches!(problem, Unusable::NotAllowed(_)));
        let since = self.complete_at.map(|at| at.elapsed()).unwrap_or_default();
        is_new && may_come_up && since < GRACE.min(self.config.timeout / 4)
    }

    /// Reports each node that announces another address than it registered: all other nodes will use the
    /// announced address.
    fn report_announced(&mut self, observed: &Observed) {
        let redis = observed
            .redis
            .iter()
            .map(|node| (&node.endpoint, node.state.as_ref().ok().map(|s| &s.announced)));
        let sentinels = observed
            .sentinels
            .iter()
            .map(|node| (&node.endpoint, node.state.as_ref().ok().map(|s| &s.announced)));
        for (endpoint, announced) in redis.chain(sentinels) {
            // A name and the address that it stands for are no difference.
            if let Some(announced) = announced
                && announced != endpoint
                && !endpoint.is_name()
                && self.announced.insert(announced.clone())
            {
                self.report.tell(&Event::Announced { node: endpoint, announced });
            }
        }
    }

    /// Reports the outcome to the broker. If the report fails, nothing is undone.
    async fn tell_broker(&self, ended: &Result<Done, Failure>) {
        let (master, reason) = match ended {
            // A registered node has an `Addr`. An address from a Sentinel may not be a valid `Addr`.
            Ok(Done::Verified(master)) => (master.to_string().parse::<Addr>().ok(), None),
            Ok(Done::Planned(_)) | Err(Failure::Usage(_) | Failure::Broker(_)) => return,
            Err(failure) => {
                // For the status page: what happened, a line for each node, and what to do.
                let hint = failure.hint().map(|hint| format!("hint: {hint}"));
                let lines = std::iter::once(failure.to_string()).chain(failure.details());
                (None, Some(reason(lines.collect(), hint)))
            }
        };
        let (mut pause, mut is_said) = (REPORT_AGAIN.0, false);
        // The system does not depend on the broker. But the next `join` uses the outcome, so the report is
        // retried.
        while let Err(error) = self.send_outcome(master.as_ref(), reason.as_deref()).await {
            if !error.may_pass() || Instant::now() + pause.max(error.retry_after()) >= self.deadline {
                self.report.warning(format_args!("the outcome could not be reported: {error}"));
                return;
            }
            if !is_said {
                self.report.event(format_args!("the outcome is not reported yet: {error}"));
                is_said = true;
            }
            sleep(pause.max(error.retry_after())).await;
            pause = (2 * pause).min(REPORT_AGAIN.1);
        }
    }

    /// Reports the outcome once: the master of a verified system, or the reason why no system is verified.
    async fn send_outcome(&self, verified: Option<&Addr>, reason: Option<&str>) -> Result<(), BrokerError> {
        let roster = self.broker.roster(REQUEST_TIMEOUT).await?;
        // The broker accepts no outcome of an empty group.
        if roster.redis.is_empty() && roster.sentinels.is_empty() {
            return Ok(());
        }
        let mut restore = restorable(self.cleanup.pending());
        // Settings that another run has noted since then stay, because that run restores them.
        if let Some(outcome) = &roster.outcome {
            let noted = outcome.restore.iter().filter(|(name, _)| !self.settled.contains(*name));
            restore.extend(noted.map(|(name, settings)| (name.clone(), settings.clone())));
        }
        restorable_by_the_broker(&mut restore, &roster);
        // A master that the operator named may not have registered. It is a node of the group from now on.
        if let Some(master) = verified.filter(|master| roster.redis.iter().all(|node| node.addr != **master))
        {
            let node =
                Register { host: Some(master.host.clone()), port: Some(master.port), ..Register::default() };
            self.broker.register(Kind::Redis, &node).await?;
        }
        let last = roster.outcome.and_then(|outcome| outcome.master);
        let outcome = Outcome {
            verified: reason.is_none(),
            master: verified.cloned().or(last),
            at: Timestamp::now(),
            reason: reason.map(str::to_owned),
            restore,
            expected: self.expected,
        };
        self.broker.report(&outcome).await
    }
}

/// What happened, a line for each node as far as there is room, and what to do.
fn reason(lines: Vec<String>, hint: Option<String>) -> String {
    let cost = |line: &str| serde_json::to_string(line).map_or(0, |json| json.len());
    // Each line may take a quarter of the room.
    let shortened = |line: String| {
        let mut left = REASON_BYTES / 4;
        let fits = |text: &char| {
            // Minus the two quotes.
            left = left.saturating_sub(cost(text.encode_utf8(&mut [0; 4])) - 2);
            left > 0
        };
        let kept: String = line.chars().take_while(fits).collect();
        if kept.len() == line.len() { line } else { format!("{kept}…") }
    };
    let hint = hint.map(shortened);
    let mut left = REASON_BYTES.saturating_sub(hint.as_deref().map_or(0, cost));
    let count = lines.len();
    let mut kept = vec![];
    for line in lines.into_iter().map(shortened) {
        match left.checked_sub(cost(&line)) {
            Some(rest) => left = rest,
            None => break,
        }
        kept.push(line);
    }
    let left_out = count - kept.len();
    kept.extend((left_out > 0).then(|| format!("… and {left_out} more")));
    kept.extend(hint);
    kept.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reason_has_whole_lines_and_says_how_many_are_left_out() {
        let line = |number: usize| {
            format!("10.0.0.{number}:6379: its link to the master is down, since it has another password")
        };
        let few = reason(vec!["not verified".into(), line(1)], Some("hint: mend it".into()));
        assert_eq!(few, format!("not verified\n{}\nhint: mend it", line(1)));
        let lines = std::iter::once("not verified".to_owned()).chain((0..40).map(line));
        let many = reason(lines.collect(), Some("hint: mend it".into()));
        let kept: Vec<&str> = many.lines().collect();
        assert!(many.len() <= REASON_BYTES && kept.len() > 15, "{many}");
        assert_eq!(kept[kept.len() - 2], format!("… and {} more", 41 - (kept.len() - 2)));
        assert_eq!((kept[1], kept[kept.len() - 1]), (&*line(0), "hint: mend it"));
        let wide = reason(vec!["ü\u{1}".repeat(3000)], Some("é".repeat(5000)));
        assert!(wide.starts_with('ü') && wide.ends_with("éé…"), "{wide}");
        assert!(wide.chars().count() <= 2000 && serde_json::to_string(&wide).unwrap().len() < 4000, "{wide}");
    }
}
