//! A plan in words: the summary for a person, and the dry run. No I/O.

use std::collections::BTreeMap;
use std::fmt;

use super::plan::{Attach, Plan};

impl Plan {
    /// What the plan is going to do, in words for a person.
    #[must_use]
    pub fn summary(&self) -> String {
        let list = |nodes: &mut dyn Iterator<Item = String>| nodes.collect::<Vec<_>>().join(", ");
        let master = &self.system.master.endpoint;
        let mut lines = vec![format!("master {master}: {}", self.because)];
        if !self.credentials.is_empty() {
            let nodes = list(&mut self.credentials.iter().map(ToString::to_string));
            lines.push(format!("set the replication login on: {nodes}"));
        }
        if self.promote {
            lines.push("stop the master's own replication".to_owned());
        }
        if !self.attach.is_empty() {
            let attach = self.attach.iter().map(|Attach { node, data }| {
                if data.is_empty() { node.to_string() } else { format!("{node} (deleting its {data})") }
            });
            lines.push(format!("new replicas: {}", list(&mut { attach })));
        }
        if !self.monitor.is_empty() {
            let sentinels = list(&mut self.monitor.iter().map(ToString::to_string));
            lines.push(format!("new Sentinels, with quorum {}: {sentinels}", self.quorum));
        }
        let mut by_options: BTreeMap<_, Vec<_>> = BTreeMap::new();
        for (sentinel, options) in &self.configure {
            by_options.entry(options).or_default().push(sentinel);
        }
        for (options, sentinels) in by_options {
            let options = list(&mut options.iter().map(|(name, value)| format!("{name} {value}")));
            lines.push(format!("set {options} on: {}", list(&mut sentinels.iter().map(ToString::to_string))));
        }
        for (node, settings) in &self.settings {
            let settings = list(&mut settings.iter().map(|(name, value)| format!("{name} {value}")));
            lines.push(format!("set {settings} on: {node}"));
        }
        if !self.authenticate.is_empty() {
            let sentinels = list(&mut self.authenticate.iter().map(ToString::to_string));
            lines.push(format!("set the login for the Redis servers on: {sentinels}"));
        }
        if !self.introduce.is_empty() {
            lines.push("tell the Sentinels each other's addresses".to_owned());
        }
        if !self.reset.is_empty() {
            let sentinels = list(&mut self.reset.iter().map(|introduction| introduction.to.to_string()));
            lines.push(format!("remove nodes that are gone, up to 10 s each, from: {sentinels}"));
        }
        lines.join("\n")
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "master {}: {}", self.system.master.endpoint, self.because)?;
        let commands = self.commands();
        if commands.is_empty() {
            return write!(f, "nothing to do");
        }
        let width = commands.iter().map(|(node, _)| node.to_string().len()).max().unwrap_or_default();
        let lines: Vec<_> = commands
            .iter()
            .map(|(node, command)| format!("{:width$}  {}", node.to_string(), command.shown()))
            .collect();
        write!(f, "{}", lines.join("\n"))
    }
}
