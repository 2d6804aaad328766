//! How long a run took, by phase and by node: the output of `--timings`.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

use serde::Serialize;

use crate::node::connection::Begun;
use crate::node::endpoint::Endpoint;

/// A part of a run. A run that repeats itself enters its parts again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
#[cfg_attr(test, derive(schemars::JsonSchema, serde::Deserialize))]
pub enum Phase {
    /// Waiting for registrations or for something else, and connecting to each node that has registered.
    Wait,
    /// Reading the state of every node.
    Observe,
    /// Deciding.
    Plan,
    /// Reporting temporary settings to the broker, a last look at what is to be changed, logins and settings.
    Prepare,
    /// `REPLICAOF`, until the master knows its replicas.
    Attach,
    /// `SENTINEL MONITOR` and `SENTINEL SET`.
    Monitor,
    /// Introducing the Sentinels to each other, and making them forget nodes that are gone.
    Introduce,
    /// Asking all nodes until the system is verified.
    Verify,
    /// Restoring settings, writing configuration files, reporting to the broker.
    Finish,
}

impl Phase {
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Phase::Wait => "wait",
            Phase::Observe => "observe",
            Phase::Plan => "plan",
            Phase::Prepare => "prepare",
            Phase::Attach => "attach",
            Phase::Monitor => "monitor",
            Phase::Introduce => "introduce",
            Phase::Verify => "verify",
            Phase::Finish => "finish",
        }
    }
}

/// What was exchanged with one node.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Exchanges {
    /// The pipelines that were sent and answered completely. A login, if there is one, adds one for each new
    /// connection.
    pub round_trips: u32,
    pub commands: u32,
    /// The sum of the times from sending to the last reply.
    pub took: Duration,
    pub slowest: Duration,
}

impl Exchanges {
    fn add(&mut self, other: &Self) {
        self.round_trips += other.round_trips;
        self.commands += other.commands;
        self.took += other.took;
        self.slowest = self.slowest.max(other.slowest);
    }
}

/// One phase, with the sum of all its turns.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PhaseTimes {
    pub phase: Phase,
    /// From the start of the run to the phase's first start.
    pub at: Duration,
    pub took: Duration,
    /// How often the run was in this phase.
    pub turns: u32,
    /// The round trips that followed each other. Round trips to several nodes at the same time count as one.
    pub in_sequence: u32,
    /// What was exchanged with each node in this phase.
    pub nodes: BTreeMap<Endpoint, Exchanges>,
}

#[derive(Debug)]
pub struct Timings {
    started: Instant,
    state: Mutex<Times>,
}

#[derive(Debug)]
struct Times {
    phase: Phase,
    since: Instant,
    phases: BTreeMap<Phase, PhaseTimes>,
}

impl Timings {
    /// Starts with [`Phase::Wait`].
    #[must_use]
    pub fn new() -> Self {
        let started = Instant::now();
        let state = Times { phase: Phase::Wait, since: started, phases: BTreeMap::new() };
        let timings = Self { started, state: Mutex::new(state) };
        timings.state().current(started).turns = 1;
        timings
    }

    /// Ends the current phase and starts this one. Does nothing if this is the current phase.
    pub fn enter(&self, phase: Phase) {
        let state = &mut *self.state();
        if state.phase == phase {
            return;
        }
        let now = Instant::now();
        state.close(self.started, now);
        state.phase = phase;
        state.current(self.started).turns += 1;
    }

    /// The current phase.
    #[must_use]
    pub fn phase(&self) -> Phase {
        self.state().phase
    }

    /// An exchange with a node begins.
    pub fn begin(&self) -> Begun {
        let place = self.state().current(self.started).in_sequence + 1;
        Begun { at: Instant::now(), place }
    }

    pub fn note(&self, node: &Endpoint, commands: usize, begun: &Begun) {
        self.add(node, commands, begun.at.elapsed(), begun.place);
    }

    fn add(&self, node: &Endpoint, commands: usize, took: Duration, place: u32) {
        let commands = u32::try_from(commands).unwrap_or(u32::MAX);
        let exchange = Exchanges { round_trips: 1, commands, took, slowest: took };
        let state = &mut *self.state();
        let times = state.current(self.started);
        times.in_sequence = times.in_sequence.max(place);
        times.nodes.entry(node.clone()).or_default().add(&exchange);
    }

    /// Every phase so far, in the order of a run.
    #[must_use]
    pub fn phases(&self) -> Vec<PhaseTimes> {
        let state = &mut *self.state();
        state.close(self.started, Instant::now());
        state.phases.values().cloned().collect()
    }

    fn state(&self) -> MutexGuard<'_, Times> {
        self.state.lock().expect("no holder panics")
    }
}

impl Times {
    fn current(&mut self, started: Instant) -> &mut PhaseTimes {
        let (phase, at) = (self.phase, self.since - started);
        self.phases.entry(phase).or_insert_with(|| PhaseTimes {
            phase,
            at,
            took: Duration::ZERO,
            turns: 0,
            in_sequence: 0,
            nodes: BTreeMap::new(),
        })
    }

    fn close(&mut self, started: Instant, now: Instant) {
        let took = now - self.since;
        self.current(started).took += took;
        self.since = now;
    }
}

impl Default for Timings {
    fn default() -> Self {
        Self::new()
    }
}

/// Two tables: the phases, and the nodes without [`Phase::Wait`].
impl fmt::Display for Timings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let phases = self.phases();
        let mut nodes: BTreeMap<&Endpoint, (Exchanges, Phase)> = BTreeMap::new();
        write!(f, "phase        at           took  turns  in sequence  slowest answer")?;
        for times in &phases {
            let slowest = times.nodes.iter().max_by_key(|(_, exchanges)| exchanges.slowest);
            let slowest = slowest.map(|(node, exchanges)| format!("{} from {node}", ms(exchanges.slowest)));
            write!(
                f,
                "\n{:9} {:>9.3} s {:>11}  {:>5}  {:>11}  {}",
                times.phase.name(),
                times.at.as_secs_f64(),
                ms(times.took),
                times.turns,
                times.in_sequence,
                slowest.unwrap_or_default()
            )?;
            if times.phase == Phase::Wait {
                continue;
            }
            for (node, exchanges) in &times.nodes {
                let (all, slowest_in) = nodes.entry(node).or_insert((Exchanges::default(), times.phase));
                if exchanges.slowest > all.slowest {
                    *slowest_in = times.phase;
                }
                all.add(exchanges);
            }
        }
        let width = nodes.keys().map(|node| node.to_string().len()).max().unwrap_or_default().max(4);
        write!(f, "\n\n{:width$}  round trips  commands    answers take  slowest", "node")?;
        for (node, (all, slowest_in)) in nodes {
            write!(
                f,
                "\n{:width$}  {:>11}  {:>8}  {:>14}  {} in {}",
                node.to_string(),
                all.round_trips,
                all.commands,
                ms(all.took),
                ms(all.slowest),
                slowest_in.name()
            )?;
        }
        Ok(())
    }
}

fn ms(duration: Duration) -> String {
    format!("{:.1} ms", duration.as_secs_f64() * 1e3)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn phases_follow_each_other_and_add_up() {
        let timings = Timings::new();
        let node = Endpoint::new("10.0.0.7", 6379);
        for _ in 0..2 {
            timings.enter(Phase::Observe);
            let (one, other) = (timings.begin(), timings.begin());
            timings.add(&node, 10, Duration::from_millis(2), one.place);
            timings.add(&Endpoint::new("10.0.0.8", 6379), 1, Duration::from_millis(1), other.place);
            timings.enter(Phase::Plan);
            timings.enter(Phase::Plan);
        }
        timings.note(&node, 1, &timings.begin());
        let phases = timings.phases();
        let turns: Vec<_> = phases.iter().map(|times| (times.phase.name(), times.turns)).collect();
        assert_eq!(turns, [("wait", 1), ("observe", 2), ("plan", 2)]);
        let exchanges = phases[1].nodes[&node];
        assert_eq!((exchanges.round_trips, exchanges.commands), (2, 20));
        assert_eq!((exchanges.took, exchanges.slowest), (Duration::from_millis(4), Duration::from_millis(2)));
        let in_sequence: Vec<_> = phases.iter().map(|times| times.in_sequence).collect();
        assert_eq!(in_sequence, [0, 2, 1], "the two nodes were asked at once");
        assert!(phases.windows(2).all(|pair| pair[0].at <= pair[1].at));
        let total: Duration = phases.iter().map(|times| times.took).sum();
        assert!(total <= timings.started.elapsed());
        let text = timings.to_string();
        assert!(text.contains("observe") && text.contains("10.0.0.7:6379            3        21"), "{text}");
    }
}
