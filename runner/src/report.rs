//! What a person sees: one line an event on stderr while it runs, the verified topology on stdout at the end.

use std::fmt::{self, Display};
use std::io::{self, Write};
use std::time::{Duration, Instant};

use crate::error::Failure;
use crate::plan::System;

/// Tells what happens as it happens.
#[derive(Debug)]
pub struct Report {
    started: Instant,
}

impl Report {
    /// Times count from here.
    #[must_use]
    pub fn new() -> Self {
        Self { started: Instant::now() }
    }

    /// Something happened. The lines after the first are set in.
    pub fn event(&self, what: impl Display) {
        let mut lines = what.to_string().lines().map(str::to_owned).collect::<Vec<_>>().into_iter();
        if let Some(first) = lines.next() {
            say(format_args!("{:>8.3}s  {first}", self.started.elapsed().as_secs_f64()));
        }
        for line in lines {
            say(format_args!("{:>9}    {line}", ""));
        }
    }

    /// Something is not as it should be, but the run goes on.
    pub fn warning(&self, what: impl Display) {
        self.event(format_args!("warning: {what}"));
    }

    /// Text for stdout: what the run was for.
    pub fn result(&self, text: impl Display) {
        let _ = writeln!(io::stdout(), "{text}");
    }

    /// The end of a run that failed.
    pub fn failure(&self, failure: &Failure) {
        say(format_args!("error: {failure}"));
        for line in failure.details() {
            say(format_args!("  {line}"));
        }
        if let Some(hint) = failure.hint() {
            say(format_args!("hint: {hint}"));
        }
    }
}

/// A reader that has gone away, as in `… | head -1`, must not end a run half-way.
fn say(line: fmt::Arguments<'_>) {
    let _ = writeln!(io::stderr(), "{line}");
}

impl Default for Report {
    fn default() -> Self {
        Self::new()
    }
}

/// The verified system as a table.
#[must_use]
pub fn topology(system: &System) -> String {
    let (replicas, sentinels) = (system.replicas.len(), system.sentinels.len());
    let mut rows =
        vec![("master", system.master.to_string(), format!("{replicas} of {replicas} replicas online"))];
    rows.extend(system.replicas.iter().map(|node| ("replica", node.to_string(), "link up".to_owned())));
    let knows =
        format!("quorum ok, knows the master, {replicas} replicas, {} other Sentinels", sentinels - 1);
    rows.extend(system.sentinels.iter().map(|node| ("sentinel", node.to_string(), knows.clone())));
    let width = rows.iter().map(|(_, address, _)| address.len()).max().unwrap_or_default();
    let rows = rows.iter().map(|(role, address, state)| format!("  {role:8}  {address:width$}  {state}"));
    format!("{}\n{}", system.group, rows.collect::<Vec<_>>().join("\n"))
}

/// A duration as people say it: milliseconds, or seconds from ten of them.
#[must_use]
pub fn took(duration: Duration) -> String {
    if duration < Duration::from_secs(10) {
        format!("{} ms", duration.as_millis())
    } else {
        format!("{:.1} s", duration.as_secs_f64())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::endpoint::Endpoint;

    #[test]
    fn the_topology_lines_up() {
        let system = System {
            group: "mymaster".parse().unwrap(),
            master: Endpoint::new("10.0.0.7", 6379),
            master_announced: Endpoint::new("10.0.0.7", 6379),
            master_aliases: vec![],
            replicas: vec![Endpoint::new("10.0.0.100", 6379)],
            replica_aliases: vec![],
            sentinel_ids: std::collections::BTreeSet::new(),
            sentinels: vec![Endpoint::new("fd00::1", 26379)],
        };
        assert_eq!(
            topology(&system),
            "mymaster\n\
             \x20 master    10.0.0.7:6379    1 of 1 replicas online\n\
             \x20 replica   10.0.0.100:6379  link up\n\
             \x20 sentinel  [fd00::1]:26379  quorum ok, knows the master, 1 replicas, 0 other Sentinels"
        );
    }
}
