//! The verified system as a table. No I/O.

use super::style::{Style, Tone};
use crate::system::members::System;
use crate::words::count;

pub fn table(system: &System, style: Style) -> String {
    let replicas = system.replicas.len();
    let online = format!("{replicas} of {} online", count(replicas, "replica"));
    let mut rows = vec![("master", system.master.endpoint.to_string(), online)];
    let replica = |endpoint: String| ("replica", endpoint, "link up".to_owned());
    rows.extend(system.replicas.iter().map(|member| replica(member.endpoint.to_string())));
    let others = count(system.sentinels.len() - 1, "other Sentinel");
    let knows = format!("quorum ok, {}, {others}", count(replicas, "replica"));
    rows.extend(system.sentinels.iter().map(|node| ("sentinel", node.endpoint.to_string(), knows.clone())));
    let width = rows.iter().map(|(_, address, _)| address.len()).max().unwrap_or_default();
    let rows = rows.iter().map(|(role, address, state)| {
        let tone = if *role == "master" { Tone::Strong } else { Tone::Plain };
        let (role, address) = (style.paint(tone, &format!("{role:8}")), format!("{address:width$}"));
        format!("  {role}  {address}  {}", style.paint(Tone::Good, state))
    });
    format!("{}\n{}", style.paint(Tone::Strong, system.group.as_str()), rows.collect::<Vec<_>>().join("\n"))
}
