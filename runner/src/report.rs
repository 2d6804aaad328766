//! All output of a command. The rooms below send events to the [`Report`]. It prints them on standard error,
//! as lines or as a live view, and keeps a [`Record`]. The document of `--output json` is made from that
//! record.
//!
//! | module | is |
//! | --- | --- |
//! | [`event`] | what happens |
//! | [`record`] | what the events have shown so far |
//! | [`lines`] | an event in words, for people and as JSON |
//! | [`live`] | the view that a terminal shows during a run |
//! | [`metrics`] | metrics in Prometheus' text format |
//! | [`table`] | the verified system as a table |
//! | [`document`] | the document of `--output json` |
//! | [`style`] | colours and widths |
//! | `screen` | the thread that writes; the only one that does I/O |

pub mod document;
pub mod event;
pub mod lines;
pub mod live;
pub mod metrics;
pub mod record;
mod screen;
pub mod style;
pub mod table;

use std::fmt::Display;
use std::io::{self, IsTerminal as _, Write as _};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use broker_fn::api::Kind;

use self::event::Event;
use self::lines::{EventWords, Level};
use self::record::Record;
use self::screen::Screen;
use self::style::Style;
use crate::error::Failure;
use crate::node::command::Command;
use crate::node::connection::{Begun, ConnectionError, Observer, PipelineAnswer};
use crate::node::endpoint::Endpoint;
use crate::node::reply::{Reply, brief};
use crate::system::judge::Unproved;
use crate::system::members::System;
use crate::system::timings::Timings;

/// What to print, and how.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ReportSettings {
    /// What to write to standard output.
    pub output: Output,
    /// What to write to standard error.
    pub log: LogFormat,
    /// Whether to print only warnings, errors and the requested document.
    pub quiet: bool,
    /// Whether to print every command and its reply.
    pub verbose: bool,
    /// When to use colours.
    pub colour: style::ColourChoice,
    /// Whether the command may take a while, so that a terminal shows a live view.
    pub lasts: bool,
}

/// What to write to standard output.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Output {
    /// The result, for people.
    #[default]
    Text,
    /// One JSON document, also if the command fails.
    Json,
    /// Metrics in Prometheus' text format; `status` only.
    Prometheus,
    /// How a client finds the master, as environment variables; `status` only.
    Env,
    /// How a client finds the master, as a URI of Lettuce; `status` only.
    Uri,
}

impl Output {
    /// Whether only `status` has this output.
    pub fn is_of_status(self) -> bool {
        matches!(self, Self::Prometheus | Self::Env | Self::Uri)
    }
}

/// What to write to standard error.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum LogFormat {
    /// What happens, for people.
    #[default]
    Text,
    /// One JSON object per line.
    Json,
}

/// Prints what happens, and records it. All clones have one record.
#[derive(Debug, Clone)]
pub struct Report(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    started: Instant,
    settings: ReportSettings,
    style: Style,
    /// Whether a terminal shows the live view.
    live: bool,
    screen: Screen,
    timings: Arc<Timings>,
    so_far: Arc<Mutex<SoFar>>,
}

/// What the report has recorded so far.
#[derive(Debug, Default)]
struct SoFar {
    record: Record,
    /// The last message about a wait, so that it is printed only once.
    last_message: String,
    /// The text for standard output at the end.
    results: Vec<String>,
    /// What a terminal shows instead of the live view.
    view: Option<String>,
}

impl Report {
    /// Starts the report. All times are measured from now.
    #[must_use]
    pub fn new(settings: ReportSettings) -> Self {
        let started = Instant::now();
        let timings = Arc::new(Timings::new());
        let so_far = Arc::new(Mutex::new(SoFar::default()));
        let terminal = terminal(io::stderr().is_terminal());
        let style = colours(settings, terminal.map(|(columns, _)| columns));
        let live = terminal
            .filter(|_| {
                settings.lasts && !settings.quiet && !settings.verbose && settings.log == LogFormat::Text
            })
            .map(|_| {
                let (so_far, timings) = (Arc::clone(&so_far), Arc::clone(&timings));
                let frame = move || {
                    // A terminal may change its size while it is looked at.
                    let (columns, rows) = terminal_size();
                    let (mut record, view) = {
                        let so_far = lock(&so_far);
                        (so_far.record.clone(), so_far.view.clone())
                    };
                    record.phase = Some(timings.phase());
                    let style = Style { columns: Some(columns.saturating_sub(2)), ..style };
                    view.unwrap_or_else(|| live::frame(&record, started.elapsed(), style, rows).join("\n"))
                };
                Box::new(frame) as screen::Frame
            });
        let (live, screen) = (live.is_some(), Screen::open(live));
        Self(Arc::new(Inner { started, settings, style, live, screen, timings, so_far }))
    }

    pub fn tell(&self, event: &Event<'_>) {
        let at = self.0.started.elapsed();
        let words = EventWords::of(event);
        let mut so_far = lock(&self.0.so_far);
        so_far.record.note(at, event);
        if let Some(words) = words
            && !so_far.is_repeated(event, &words)
        {
            self.say(at, &words);
        }
        if self.0.settings.verbose
            && let Event::Answered(answer) = event
        {
            for words in commands(answer) {
                self.say(at, &words);
            }
        }
    }

    #[must_use]
    pub fn timings(&self) -> &Arc<Timings> {
        &self.0.timings
    }

    /// Prints what happened. All lines except the first are indented.
    pub fn event(&self, what: impl Display) {
        self.tell(&Event::Note(&what.to_string()));
    }

    /// Prints a problem that does not end the run.
    pub fn warning(&self, what: impl Display) {
        self.tell(&Event::Warning(&what.to_string()));
    }

    /// Warns of what could not be seen because a right is missing.
    fn unproved(&self, unproved: &[Unproved]) {
        self.tell(&Event::Unproved(unproved));
        for group in unproved.chunk_by(|one, next| (&one.right, one.what) == (&next.right, next.what)) {
            let nodes: Vec<_> = group.iter().map(|one| one.node.to_string()).collect();
            let Unproved { right, what, .. } = &group[0];
            let nodes = nodes.join(", ");
            match right {
                Some(right) => self.warning(format_args!(
                    "not proved, because the right `{right}` is missing on {nodes}: {what}"
                )),
                None => self.warning(format_args!("not proved on {nodes}: {what}")),
            }
        }
    }

    /// Prints the warnings about a verified system: what could not be seen, and what works only in part.
    pub fn reservations(&self, system: &System, unproved: &[Unproved]) {
        self.unproved(unproved);
        if system.replicas.is_empty() {
            self.warning(format_args!(
                "{} has no replica: no server can take over if it fails",
                system.master.endpoint
            ));
        }
        for sentinel in &system.sentinels {
            if let Some(known) = &sentinel.knows_by_address {
                let (at, group) = (&sentinel.endpoint, &system.group);
                self.warning(format_args!(
                    "the Sentinel {at} keeps the address {known} of a server that is registered by name: \
                     if the address changes, the Sentinel loses the server\nhint: on each server that \
                     does not announce its name: CONFIG SET replica-announce-ip, CONFIG REWRITE and \
                     CLIENT KILL TYPE master; then on every Sentinel: SENTINEL CONFIG SET \
                     resolve-hostnames yes, SENTINEL CONFIG SET announce-hostnames yes, SENTINEL REMOVE \
                     {group}; then at once `sentinel-runner bootstrap`: until then there is no failover"
                ));
            }
        }
        let silent = system.replicas.iter().filter(|replica| !replica.settings.is_announced());
        for replica in silent {
            self.warning(format_args!(
                "{} has `replica-announced no`: the Sentinels can promote this replica, but do not show \
                 it to clients before that",
                replica.endpoint
            ));
        }
    }

    /// Text for standard output at the end: the result.
    pub fn result(&self, text: impl Display) {
        lock(&self.0.so_far).results.push(text.to_string());
    }

    /// Shows this on a terminal from now on, instead of the live view. Returns whether there is a terminal.
    pub fn show(&self, style: impl FnOnce(Style) -> String) -> bool {
        if self.0.live {
            let columns = Some(terminal_size().0.saturating_sub(3));
            lock(&self.0.so_far).view = Some(style(Style { columns, ..self.0.style }));
        }
        self.0.live
    }

    /// Text for standard output, now.
    pub fn print(&self, text: impl Display) {
        if self.0.settings.output == Output::Json {
            self.event(text);
        } else if !self.0.settings.quiet {
            let _ = writeln!(io::stdout(), "{text}");
        }
    }

    /// Records the verified system for the document, and prints nothing.
    pub fn record_system(&self, system: &System) {
        lock(&self.0.so_far).record.system = Some(system.clone());
    }

    /// The style of text for standard output.
    #[must_use]
    pub fn result_style(&self) -> Style {
        colours(self.0.settings, terminal(io::stdout().is_terminal()).map(|(columns, _)| columns))
    }

    /// Writes what is left, and removes the live view.
    pub fn close(&self) -> ClosedReport {
        let total = self.0.started.elapsed();
        self.0.screen.close();
        let mut so_far = lock(&self.0.so_far);
        so_far.record.phases =
            self.0.timings.phases().iter().map(|times| (times.phase, times.took)).collect();
        ClosedReport { record: so_far.record.clone(), results: std::mem::take(&mut so_far.results), total }
    }

    /// What to write to standard output.
    pub fn output(&self) -> Output {
        self.0.settings.output
    }

    /// Whether results are not printed.
    pub fn is_quiet(&self) -> bool {
        self.0.settings.quiet
    }

    /// Prints what ended the run, after everything else.
    pub fn fail(&self, at: Duration, failure: &Failure, is_shown: bool) {
        let words = EventWords::of_failure(failure, is_shown);
        let screen = Screen::open(None);
        screen.say(self.set(at, &words));
        screen.close();
    }

    fn say(&self, at: Duration, words: &EventWords) {
        let quiet = self.0.settings.quiet;
        let is_in_view = self.0.live && matches!(words.event, "registered" | "waiting" | "unmet");
        if is_in_view || (quiet && words.level < Level::Warning) {
            return;
        }
        self.0.screen.say(self.set(at, words));
    }

    fn set(&self, at: Duration, words: &EventWords) -> String {
        match self.0.settings.log {
            LogFormat::Text => words.lines(at, self.0.style),
            LogFormat::Json => words.json(at),
        }
    }
}

/// What a report has recorded, at the end.
#[derive(Debug)]
pub struct ClosedReport {
    pub record: Record,
    /// The text for standard output.
    pub results: Vec<String>,
    pub total: Duration,
}

impl Observer for Report {
    fn begins(&self) -> Begun {
        self.timings().begin()
    }

    fn answered(&self, answer: &PipelineAnswer<'_>, begun: &Begun) {
        self.timings().note(answer.node, answer.commands.len(), begun);
        self.tell(&Event::Answered(answer));
    }

    fn lost(&self, kind: Kind, node: &Endpoint, error: &ConnectionError) {
        self.tell(&Event::Lost { kind, node, error });
    }
}

impl SoFar {
    /// Whether this was the last message. A wait is reported again and again, and printed once.
    fn is_repeated(&mut self, event: &Event<'_>, words: &EventWords) -> bool {
        if !matches!(event, Event::WaitingFor { .. } | Event::NoBroker(_) | Event::Unmet(_)) {
            return false;
        }
        let text = format!("{}\n{}", words.message, words.details.join("\n"));
        let same = self.last_message == text;
        self.last_message = text;
        same
    }
}

/// Each command with its reply. For a rehearsal: the number of its commands, and those that the server does
/// not accept.
fn commands(answer: &PipelineAnswer<'_>) -> Vec<EventWords> {
    let node = answer.node.to_string();
    let words = |(command, reply): (&Command, &Reply)| {
        let reply = reply.as_ref().map_or_else(ToString::to_string, brief);
        EventWords::of_command(&node, &command.shown(), &reply)
    };
    let all = answer.commands.iter().zip(answer.replies);
    if !answer.is_rehearsal {
        return all.map(words).collect();
    }
    let not_taken =
        all.filter(|(command, reply)| reply.is_err() && !["ECHO", "EXEC"].contains(&command.name()));
    let rehearsed = format!("({} commands of a rehearsal, none of them executed)", answer.commands.len());
    let summary = EventWords::of_command(&node, &rehearsed, "checked");
    std::iter::once(summary).chain(not_taken.map(words)).collect()
}

fn lock(so_far: &Mutex<SoFar>) -> MutexGuard<'_, SoFar> {
    so_far.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// The columns and rows, if standard error is a terminal that can be redrawn.
fn terminal(is_terminal: bool) -> Option<(usize, usize)> {
    let dumb = std::env::var_os("TERM").is_none_or(|term| term == "dumb");
    (is_terminal && !dumb).then(terminal_size)
}

fn terminal_size() -> (usize, usize) {
    let size = terminal_size::terminal_size_of(io::stderr())
        .or_else(|| terminal_size::terminal_size_of(io::stdout()));
    size.map_or((80, 24), |(columns, rows)| (columns.0.into(), rows.0.into()))
}

fn colours(settings: ReportSettings, columns: Option<usize>) -> Style {
    let no_color = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    Style::new(settings.colour, no_color, columns)
}
