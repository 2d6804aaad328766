//! What a terminal shows during a run: the state of every expected node, and what the run waits for. No I/O.

use std::time::Duration;

use broker_fn::api::Kind;

use super::record::{NodeStatus, Record};
use super::style::{Style, Tone};
use crate::system::timings::Phase;

/// Shown one after the other, ten per second.
const SPINNER: [&str; 10] = ["⠋", "⠙", "⠹", "⠸", "⠼", "⠴", "⠦", "⠧", "⠇", "⠏"];

/// One row per node: its role, its address and its state.
struct Row {
    kind: Kind,
    address: String,
    state: String,
    tone: Tone,
}

/// The view at that time, cut to the width of the terminal, with at most `rows` lines.
#[must_use]
pub fn frame(record: &Record, at: Duration, style: Style, rows: usize) -> Vec<String> {
    let columns = style.columns.unwrap_or(80).max(20);
    let spinner = SPINNER[usize::try_from(at.as_millis() / 100).unwrap_or_default() % SPINNER.len()];
    let group = record.group.as_deref().unwrap_or("sentinel-runner");
    let doing = match (&record.waiting, record.phase) {
        (Some(waiting), _) => format!("waiting: {waiting}"),
        (None, Some(Phase::Prepare | Phase::Attach | Phase::Monitor | Phase::Introduce)) => {
            "carrying out the plan".to_owned()
        }
        (None, Some(Phase::Verify)) => "verifying".to_owned(),
        (None, Some(Phase::Finish)) => "finishing".to_owned(),
        (None, Some(Phase::Observe | Phase::Plan)) => "looking at the nodes".to_owned(),
        (None, Some(Phase::Wait) | None) => "asking the broker".to_owned(),
    };
    let clock = match record.deadline {
        Some(deadline) => format!("{}, {} left", clock(at), clock(deadline.saturating_sub(at))),
        None => clock(at),
    };
    let head = columns.saturating_sub(clock.len() + group.chars().count() + 7);
    let doing = cut(&doing, head);
    let pad = head.saturating_sub(doing.chars().count());
    let mut lines = vec![if head < 10 {
        cut(&format!("{spinner} {clock}"), columns - 1)
    } else {
        format!(
            "{} {}  {doing}{:pad$}  {}",
            style.paint(Tone::Hint, spinner),
            style.paint(Tone::Strong, group),
            "",
            style.paint(Tone::Faint, &clock)
        )
    }];

    let mut nodes = self::rows(record);
    let room = rows.saturating_sub(2).max(1);
    let hidden = nodes.len().saturating_sub(room);
    if hidden > 0 {
        // The nodes with a problem are the interesting ones, so they are shown first.
        nodes.sort_by_key(|row| matches!(row.tone, Tone::Good | Tone::Plain));
        nodes.truncate(room);
    }
    let width = nodes.iter().map(|row| row.address.chars().count()).max().unwrap_or_default();
    for Row { kind, address, state, tone } in nodes {
        let prefix = format!("  {:8}  {address:width$}  ", kind.as_str());
        let state = cut(&state, columns.saturating_sub(prefix.chars().count() + 1));
        lines.push(cut(&prefix, columns - 1) + &style.paint(tone, &state));
    }
    if hidden > 0 {
        lines.push(style.paint(Tone::Faint, &cut(&format!("  … and {hidden} more"), columns - 1)));
    }
    lines
}

fn rows(record: &Record) -> Vec<Row> {
    let mut rows = Vec::new();
    for kind in Kind::ALL {
        for node in record.nodes.iter().filter(|node| node.kind == kind) {
            let (mut state, mut tone) = (node.state.text(), tone(&node.state));
            if let (Some(unmet), Tone::Good | Tone::Plain) = (record.unmet_on(&node.endpoint), tone) {
                (state, tone) = (unmet.to_owned(), Tone::Warn);
            }
            rows.push(Row { kind, address: node.endpoint.to_string(), state, tone });
        }
        for _ in 0..record.missing(kind) {
            let state = "not registered".to_owned();
            rows.push(Row { kind, address: "-".to_owned(), state, tone: Tone::Faint });
        }
    }
    rows
}

fn tone(state: &NodeStatus) -> Tone {
    match state {
        NodeStatus::Registered | NodeStatus::Ready => Tone::Plain,
        NodeStatus::Master { .. } | NodeStatus::Replica { .. } | NodeStatus::Monitoring { .. } => Tone::Good,
        NodeStatus::Syncing(_) => Tone::Warn,
        NodeStatus::Unusable(problem) if problem.may_pass() => Tone::Warn,
        NodeStatus::Unusable(_) => Tone::Bad,
    }
}

fn clock(time: Duration) -> String {
    let seconds = time.as_secs();
    match seconds / 3600 {
        0 => format!("{}:{:02}", seconds / 60, seconds % 60),
        hours => format!("{hours}:{:02}:{:02}", seconds / 60 % 60, seconds % 60),
    }
}

/// The start of a text. `…` shows that there is more.
fn cut(text: &str, columns: usize) -> String {
    if text.chars().count() <= columns {
        return text.to_owned();
    }
    text.chars().take(columns.saturating_sub(1)).chain(['…']).take(columns).collect()
}
