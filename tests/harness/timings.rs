//! The output of `sentinel-runner bootstrap --timings`.

use std::collections::BTreeMap;

use anyhow::{Result, ensure};

use crate::runner::Ran;

/// The phases and the nodes of one run.
#[derive(Debug, Default)]
pub struct Timings {
    /// The sequential round trips of each phase. Round trips at the same time count as one.
    pub phases: BTreeMap<String, usize>,
    /// How many nodes were asked.
    pub nodes: usize,
    /// The round trips to all nodes.
    pub round_trips: usize,
    /// The commands in these round trips.
    pub commands: usize,
}

impl Timings {
    /// Reads both tables from the run's output.
    ///
    /// # Errors
    ///
    /// If the output has no tables.
    pub fn of(ran: &Ran) -> Result<Self> {
        let mut timings = Self::default();
        for line in ran.stderr.lines() {
            let words: Vec<&str> = line.split_whitespace().collect();
            match words[..] {
                [phase, _, "s", _, "ms", _, in_sequence, ..] => {
                    timings.phases.insert(phase.to_owned(), in_sequence.parse()?);
                }
                [node, round_trips, commands, _, "ms", _, "ms", "in", _] if node.contains(':') => {
                    timings.nodes += 1;
                    timings.round_trips += round_trips.parse::<usize>()?;
                    timings.commands += commands.parse::<usize>()?;
                }
                _ => {}
            }
        }
        ensure!(!timings.phases.is_empty() && timings.nodes > 0, "no timings in {ran}");
        Ok(timings)
    }

    /// The round trips in sequence from the first look at the nodes until everything was sent. After that,
    /// the run only waits for the Sentinels' own timers.
    #[must_use]
    pub fn in_sequence(&self) -> usize {
        let until_sent = ["observe", "prepare", "attach", "monitor", "introduce"];
        until_sent.iter().filter_map(|phase| self.phases.get(*phase)).sum()
    }
}
