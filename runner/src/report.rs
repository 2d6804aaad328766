//! The one place that is told what happens. It tells people on standard error, as lines or as a live view, and keeps a
//! [`Record`] from which the document of `--output json` is made at the end.
//!
//! | module | is |
//! | --- | --- |
//! | [`record`] | what is known so far, by event |
//! | [`lines`] | an event in words, for people and as JSON |
//! | [`live`] | the view that a terminal shows meanwhile |
//! | [`style`] | colours and widths |
//! | `screen` | the thread that writes; the only one that does I/O |

pub mod lines;
pub mod live;
pub mod record;
mod screen;
pub mod style;

use std::fmt::Display;
use std::io::{self, IsTerminal as _, Write as _};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use broker_fn::api::{Expected, Kind, Roster};

use crate::broker::BrokerError;
use crate::connection::{Command, ConnectionError, Reply, brief};
use crate::endpoint::Endpoint;
use crate::error::{Failure, WaitingFor};
use crate::observe::{Observed, Unusable};
use crate::output::{Document, Ending};
use crate::plan::{Plan, System};
use crate::timings::Timings;
use crate::verify::Unmet;
use lines::{Level, Words};
use record::Record;
use screen::Screen;
use style::Style;

/// What happens.
#[derive(Debug)]
pub enum Event<'a> {
    /// The run may take as long as this from now.
    Deadline(Duration),
    /// The broker has shown its roster.
    Roster {
        /// Who has registered.
        roster: &'a Roster,
        /// How many there must be.
        expected: Expected,
    },
    /// A node is new in the roster.
    Registered {
        /// As what.
        kind: Kind,
        /// Where.
        node: &'a Endpoint,
    },
    /// A node goes by another address than it registered.
    Announced {
        /// Where it registered.
        node: &'a Endpoint,
        /// What it calls itself.
        announced: &'a Endpoint,
    },
    /// Every registered node was read.
    Observed(&'a Observed),
    /// Something has to pass first.
    WaitingFor {
        /// What.
        what: &'a WaitingFor,
        /// The nodes that can't be used.
        nodes: &'a [(Endpoint, Unusable)],
    },
    /// The broker does not answer as it should, and may yet.
    NoBroker(&'a BrokerError),
    /// What is to be done.
    Plan(&'a Plan),
    /// A node has answered.
    Answered {
        /// What the node is.
        kind: Kind,
        /// Which.
        node: &'a Endpoint,
        /// What it was sent.
        commands: &'a [Command],
        /// What it answered to each.
        replies: &'a [Reply],
    },
    /// A node has not.
    Lost {
        /// What the node is.
        kind: Kind,
        /// Which.
        node: &'a Endpoint,
        /// Why not.
        error: &'a ConnectionError,
    },
    /// The system is not what it should be, yet.
    Unmet(&'a [Unmet]),
    /// It is.
    Verified {
        /// The system.
        system: &'a System,
        /// Since the last registration.
        took: Duration,
        /// `verified`, or `already configured; verified`.
        how: &'static str,
    },
    /// A look at the system has found this, node by node.
    Found(&'a [Unmet]),
    /// Something is not as it should be, but the run goes on.
    Warning(&'a str),
    /// Anything else that a person may want to know.
    Note(&'a str),
}

/// What is to be told, and how.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Settings {
    /// What standard output is for.
    pub output: Output,
    /// What standard error is for.
    pub log: LogFormat,
    /// Nothing but warnings and errors, and the document that was asked for.
    pub quiet: bool,
    /// Every command and its reply.
    pub verbose: bool,
    /// When to colour.
    pub colour: style::Choice,
    /// Whether it may take a while, so that a terminal shows a live view meanwhile.
    pub lasts: bool,
}

/// What standard output is for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Output {
    /// What a person wants to read in the end.
    #[default]
    Text,
    /// One JSON document, however the command ends.
    Json,
}

/// What standard error is for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum LogFormat {
    /// What a person wants to read meanwhile.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

/// Tells what happens as it happens. Clones tell the same story.
#[derive(Debug, Clone)]
pub struct Report(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    started: Instant,
    settings: Settings,
    style: Style,
    /// Whether a view shows what is waited for.
    live: bool,
    screen: Screen,
    timings: Arc<Timings>,
    told: Arc<Mutex<Told>>,
}

/// What was told so far.
#[derive(Debug, Default)]
struct Told {
    record: Record,
    /// What was last said of a wait, so that it is said once.
    said: String,
    /// What is for standard output at the end.
    results: Vec<String>,
    /// What a terminal shows instead of the live view.
    view: Option<String>,
}

impl Report {
    /// Times count from here.
    #[must_use]
    pub fn new(settings: Settings) -> Self {
        let started = Instant::now();
        let timings = Arc::new(Timings::new());
        let told = Arc::new(Mutex::new(Told::default()));
        let terminal = terminal(io::stderr().is_terminal());
        let style = colours(settings, terminal.map(|(columns, _)| columns));
        let live = terminal
            .filter(|_| {
                settings.lasts && !settings.quiet && !settings.verbose && settings.log == LogFormat::Text
            })
            .map(|_| {
                let (told, timings) = (Arc::clone(&told), Arc::clone(&timings));
                let frame = move || {
                    // A terminal may change its size while it is looked at.
                    let (columns, rows) = terminal_size();
                    let (mut record, view) = {
                        let told = lock(&told);
                        (told.record.clone(), told.view.clone())
                    };
                    record.phase = Some(timings.phase());
                    let style = Style { columns: Some(columns.saturating_sub(2)), ..style };
                    view.unwrap_or_else(|| live::frame(&record, started.elapsed(), style, rows).join("\n"))
                };
                Box::new(frame) as screen::Frame
            });
        let (live, screen) = (live.is_some(), Screen::open(live));
        Self(Arc::new(Inner { started, settings, style, live, screen, timings, told }))
    }

    /// Something happens.
    pub fn tell(&self, event: &Event<'_>) {
        let at = self.0.started.elapsed();
        let words = Words::of(event);
        let mut told = lock(&self.0.told);
        told.record.note(at, event);
        if let Some(words) = words
            && !told.has_said(event, &words)
        {
            self.say(at, &words);
        }
        if self.0.settings.verbose
            && let Event::Answered { node, commands, replies, .. } = event
        {
            let node = node.to_string();
            for (command, reply) in commands.iter().zip(*replies) {
                let reply = reply.as_ref().map_or_else(ToString::to_string, brief);
                self.say(at, &Words::of_command(&node, &command.shown(), &reply));
            }
        }
    }

    /// What all of it takes.
    #[must_use]
    pub fn timings(&self) -> &Arc<Timings> {
        &self.0.timings
    }

    /// Something happened. The lines after the first are set in.
    pub fn event(&self, what: impl Display) {
        self.tell(&Event::Note(&what.to_string()));
    }

    /// Something is not as it should be, but the run goes on.
    pub fn warning(&self, what: impl Display) {
        self.tell(&Event::Warning(&what.to_string()));
    }

    /// Text for stdout at the end: what the run was for.
    pub fn result(&self, text: impl Display) {
        lock(&self.0.told).results.push(text.to_string());
    }

    /// Shows this on a terminal from now on, instead of the live view. `false`: there is no terminal to show it on.
    pub fn show(&self, style: impl FnOnce(Style) -> String) -> bool {
        if self.0.live {
            let columns = Some(terminal_size().0.saturating_sub(3));
            lock(&self.0.told).view = Some(style(Style { columns, ..self.0.style }));
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

    /// Notes the verified system for the document, where it is no news.
    pub fn stands(&self, system: &System) {
        lock(&self.0.told).record.system = Some(system.clone());
    }

    /// How text for standard output is set.
    #[must_use]
    pub fn result_style(&self) -> Style {
        colours(self.0.settings, terminal(io::stdout().is_terminal()).map(|(columns, _)| columns))
    }

    /// The end: what came of it is said, on standard error for people and on standard output as it was asked for. Returns
    /// the exit code.
    #[must_use]
    pub fn end(&self, command: &str, ended: Result<Ending, Failure>) -> u8 {
        let at = self.0.started.elapsed();
        self.0.screen.close();
        let (record, results) = {
            let mut told = lock(&self.0.told);
            told.record.phases =
                self.0.timings.phases().iter().map(|times| (times.phase, times.took)).collect();
            (told.record.clone(), std::mem::take(&mut told.results))
        };
        // Standard output was the server's.
        if let Ok(Ending::Ended(code)) = ended {
            return code;
        }
        let text = match self.0.settings.output {
            Output::Json => Document::new(command, &record, at, &ended).text(),
            Output::Text if self.0.settings.quiet => String::new(),
            Output::Text => results.iter().map(|text| format!("{text}\n")).collect(),
        };
        // As on standard error: who does not read it any more is not told.
        let _ = io::stdout().write_all(text.as_bytes()).and_then(|()| io::stdout().flush());
        let failure = match ended {
            Ok(ending) => return ending.exit_code(),
            Err(failure) => failure,
        };
        let is_shown =
            !results.is_empty() && self.0.settings.output == Output::Text && !self.0.settings.quiet;
        let words = Words::of_failure(&failure, is_shown);
        let screen = Screen::open(None);
        screen.say(self.set(at, &words));
        screen.close();
        failure.exit_code()
    }

    fn say(&self, at: Duration, words: &Words) {
        let quiet = self.0.settings.quiet;
        let is_in_view = self.0.live && matches!(words.event, "registered" | "waiting" | "unmet");
        if is_in_view || (quiet && words.level < Level::Warning) {
            return;
        }
        self.0.screen.say(self.set(at, words));
    }

    fn set(&self, at: Duration, words: &Words) -> String {
        match self.0.settings.log {
            LogFormat::Text => words.lines(at, self.0.style),
            LogFormat::Json => words.json(at),
        }
    }
}

impl Told {
    /// Waits are told again and again; each is said once.
    fn has_said(&mut self, event: &Event<'_>, words: &Words) -> bool {
        if !matches!(event, Event::WaitingFor { .. } | Event::NoBroker(_) | Event::Unmet(_)) {
            return false;
        }
        let text = format!("{}\n{}", words.message, words.details.join("\n"));
        let same = self.said == text;
        self.said = text;
        same
    }
}

fn lock(told: &Mutex<Told>) -> MutexGuard<'_, Told> {
    told.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// Columns and rows, of a terminal that can be drawn on.
fn terminal(is_terminal: bool) -> Option<(usize, usize)> {
    let dumb = std::env::var_os("TERM").is_none_or(|term| term == "dumb");
    (is_terminal && !dumb).then(terminal_size)
}

fn terminal_size() -> (usize, usize) {
    let size = terminal_size::terminal_size_of(io::stderr())
        .or_else(|| terminal_size::terminal_size_of(io::stdout()));
    size.map_or((80, 24), |(columns, rows)| (columns.0.into(), rows.0.into()))
}

fn colours(settings: Settings, columns: Option<usize>) -> Style {
    let no_color = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    Style::new(settings.colour, no_color, columns)
}

/// The verified system as a table.
#[must_use]
pub fn topology(system: &System, style: Style) -> String {
    let (replicas, sentinels) = (system.replicas.len(), system.sentinels.len());
    let mut rows =
        vec![("master", system.master.to_string(), format!("{replicas} of {replicas} replicas online"))];
    rows.extend(system.replicas.iter().map(|node| ("replica", node.to_string(), "link up".to_owned())));
    let knows = format!("quorum ok, {replicas} replicas, {} other Sentinels", sentinels - 1);
    rows.extend(system.sentinels.iter().map(|node| ("sentinel", node.to_string(), knows.clone())));
    let width = rows.iter().map(|(_, address, _)| address.len()).max().unwrap_or_default();
    let rows = rows.iter().map(|(role, address, state)| {
        let (role, address) = (format!("{role:8}"), format!("{address:width$}"));
        let role = style
            .paint(if role.starts_with("master") { style::Tone::Strong } else { style::Tone::Plain }, &role);
        format!("  {role}  {address}  {}", style.paint(style::Tone::Good, state))
    });
    format!(
        "{}\n{}",
        style.paint(style::Tone::Strong, system.group.as_str()),
        rows.collect::<Vec<_>>().join("\n")
    )
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
