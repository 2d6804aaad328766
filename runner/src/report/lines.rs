//! An event in words: lines for people, or a JSON object. No I/O.

use std::fmt::Write as _;
use std::time::Duration;

use serde::Serialize;

use super::event::Event;
use super::style::{Style, Tone};
use crate::error::Failure;
use crate::words::took;

/// How much an event matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub enum Level {
    /// A command to a node, and the node's reply (`--verbose`).
    Debug,
    /// What happens.
    Info,
    /// A problem that does not end the run.
    Warning,
    /// The problem that ends the run.
    Error,
}

/// An event in words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EventWords {
    /// How much the event matters.
    pub level: Level,
    /// The name of the event, one word.
    pub event: &'static str,
    /// What happened.
    pub message: String,
    /// More about what happened, one line each.
    pub details: Vec<String>,
    /// What to do about it.
    pub hint: Option<String>,
}

/// `--log-format json`: one such object per line on standard error.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct LogLine<'a> {
    /// Milliseconds since the start.
    pub ms: u64,
    /// How much the event matters.
    pub level: Level,
    /// The name of the event: `registered`, `announced`, `waiting`, `plan`, `unmet`, `verified`, `command`
    /// (with `--verbose`), `note`, `warning` or `error`.
    pub event: &'a str,
    /// What happened.
    pub message: &'a str,
    /// More about what happened, one line each.
    #[serde(skip_serializing_if = "<[String]>::is_empty")]
    pub details: &'a [String],
    /// What to do about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hint: Option<&'a str>,
}

impl EventWords {
    fn new(level: Level, event: &'static str, text: &str) -> Self {
        let mut lines = text.lines().map(str::to_owned);
        let message = lines.next().unwrap_or_default();
        Self { level, event, message, details: lines.collect(), hint: None }
    }

    /// `None`: the event is for the live view and the JSON document only.
    #[must_use]
    pub fn of(event: &Event<'_>) -> Option<Self> {
        let info = |name, text: &str| Some(Self::new(Level::Info, name, text));
        match event {
            Event::Registered { kind, node } => info("registered", &format!("registered: {kind} {node}")),
            Event::Announced { node, announced } => info(
                "announced",
                &format!("{node} announces itself as {announced}: the other nodes use that address"),
            ),
            Event::WaitingFor { what, nodes } => {
                let nodes = nodes.iter().map(|(node, problem)| format!("\n{node}: {problem}"));
                info("waiting", &format!("waiting: {what}{}", nodes.collect::<String>()))
            }
            Event::NoBroker(error) => info("waiting", &format!("waiting: {error}")),
            Event::Unmet(unmet) => {
                let unmet = unmet.iter().map(|unmet| format!("\n{}: {}", unmet.node, unmet.what));
                info("unmet", &format!("not verified yet{}", unmet.collect::<String>()))
            }
            Event::Plan(plan) if plan.is_empty() => None,
            Event::Plan(plan) => info("plan", &plan.summary()),
            Event::Verified { took: duration, how, .. } => {
                info("verified", &format!("{how} in {}", took(*duration)))
            }
            Event::Note(text) => info("note", text),
            Event::Warning(text) => {
                Some(Self { level: Level::Warning, ..Self::new(Level::Warning, "warning", text) })
            }
            Event::Deadline(_)
            | Event::Roster { .. }
            | Event::Observed(_)
            | Event::Found(_)
            | Event::Unproved(_)
            | Event::Answered(_)
            | Event::Lost { .. } => None,
        }
    }

    /// What ended the run. `is_shown`: the details are already shown at each node, and are left out.
    #[must_use]
    pub fn of_failure(failure: &Failure, is_shown: bool) -> Self {
        let text = failure.to_string();
        let mut words = Self::new(Level::Error, "error", &text);
        if !is_shown {
            words.details.extend(failure.details());
        }
        words.hint = failure.hint();
        words
    }

    /// A command and its reply.
    #[must_use]
    pub fn of_command(node: &str, command: &str, reply: &str) -> Self {
        Self::new(Level::Debug, "command", &format!("{node}  {command} -> {reply}"))
    }

    /// The lines for a person, each with its line break.
    #[must_use]
    pub fn lines(&self, at: Duration, style: Style) -> String {
        let mut text = String::new();
        if self.level == Level::Error {
            self.failure_lines(style, &mut text);
            return text;
        }
        let stamp = format!("{:>8.3}s  ", at.as_secs_f64());
        let (label, tone) = match self.level {
            Level::Warning => ("warning: ", Tone::Warn),
            Level::Debug => ("", Tone::Faint),
            _ if self.event == "verified" => ("", Tone::Good),
            _ => ("", Tone::Plain),
        };
        let message = format!("{label}{}", self.message);
        for (index, line) in style.wrap(&message, stamp.len(), 15).iter().enumerate() {
            let stamp = if index == 0 { style.paint(Tone::Faint, &stamp) } else { String::new() };
            let _ = writeln!(text, "{stamp}{}", style.paint(tone, line));
        }
        for detail in &self.details {
            for (index, line) in style.wrap(detail, 13, 15).iter().enumerate() {
                let indent = if index == 0 { 13 } else { 0 };
                let _ = writeln!(text, "{:indent$}{line}", "");
            }
        }
        text
    }

    fn failure_lines(&self, style: Style, text: &mut String) {
        let mut say = |label: &str, tone: Tone, what: &str| {
            for (index, line) in style.wrap(what, label.len(), 2).iter().enumerate() {
                let label = if index == 0 { style.paint(tone, label) } else { String::new() };
                let _ = writeln!(text, "{label}{line}");
            }
        };
        say("error: ", Tone::Bad, &self.message);
        for detail in &self.details {
            say("  ", Tone::Plain, detail);
        }
        if let Some(hint) = &self.hint {
            say("hint: ", Tone::Hint, hint);
        }
    }

    /// One JSON object with its line break.
    #[must_use]
    pub fn json(&self, at: Duration) -> String {
        let line = LogLine {
            ms: u64::try_from(at.as_millis()).unwrap_or(u64::MAX),
            level: self.level,
            event: self.event,
            message: &self.message,
            details: &self.details,
            hint: self.hint.as_deref(),
        };
        serde_json::to_string(&line).unwrap_or_default() + "\n"
    }
}
