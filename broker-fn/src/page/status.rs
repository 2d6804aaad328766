//! The status page of a group.

use std::net::IpAddr;
use std::time::Duration;

use maud::{Markup, html};

use super::changes::{Change, changes, new_master, reported_master};
use super::{
    CommandTarget, Page, REFRESH_SECONDS, SETTLED_REFRESH_SECONDS, ago, counted, footer, shortened, topology,
};
use crate::api::{Addr, Kind, RUN_UNDER_WAY, Registration, Roster, Timestamp};

/// How long after its last registration a node with a `ttl` is marked. `join` registers every minute.
const LATE: Duration = Duration::from_secs(180);

/// How long a run may be under way. By default a run gives up after 5 minutes, so a run that takes longer was
/// probably killed.
const RUN: Duration = Duration::from_secs(15 * 60);

/// The minimum length of a suffix that names share. Such a suffix is shown once and not in every line.
const LONG_SUFFIX: usize = 16;

/// The page.
#[must_use]
pub fn status(roster: &Roster, target: &CommandTarget, now: Timestamp) -> Page {
    let view = View::new(roster, target, now);
    let is_settled = view.state == State::Verified;
    let note = html! {
        "The broker does not monitor the servers. Nodes behind " code { "join" }
        " report a new master within a minute."
    };
    let body = html! {
        (view.header())
        main {
            (view.facts())
            div.columns {
                div.lists {
                    (view.list(Kind::Redis, &roster.redis))
                    (view.list(Kind::Sentinel, &roster.sentinels))
                }
                (topology::figure(&view))
            }
        }
        (footer(now, &note))
    };
    let refresh = if is_settled { SETTLED_REFRESH_SECONDS } else { REFRESH_SECONDS };
    Page::new(&format!("{} · {}", roster.group, view.state.title()), Some(refresh), &body)
}

/// The state of a group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Nodes are missing, and no runner has sent an outcome.
    Waiting,
    /// All nodes are registered; no runner has sent an outcome.
    Ready,
    /// A run has begun and not ended.
    Running,
    /// The last run did not verify the system.
    NotVerified,
    /// The system was verified, and has changed since then.
    Changed,
    /// The system was verified, and has not changed since then.
    Verified,
}

impl State {
    fn of(roster: &Roster, changes: &[Change], now: Timestamp) -> Self {
        match &roster.outcome {
            Some(outcome) if !outcome.verified => match outcome.reason.as_deref() {
                Some(RUN_UNDER_WAY) if now.since(outcome.at) < RUN => Self::Running,
                _ => Self::NotVerified,
            },
            Some(_) if changes.is_empty() => Self::Verified,
            Some(_) => Self::Changed,
            None if roster.ready => Self::Ready,
            None => Self::Waiting,
        }
    }

    fn title(self) -> &'static str {
        match self {
            Self::Waiting => "Waiting for nodes",
            Self::Ready => "Ready",
            Self::Running => "A run is under way",
            Self::NotVerified => "Not verified",
            Self::Changed => "Changed",
            Self::Verified => "Verified",
        }
    }

    fn class(self) -> &'static str {
        match self {
            Self::Waiting | Self::Changed => "warn",
            Self::Ready | Self::Running => "ready",
            Self::NotVerified => "bad",
            Self::Verified => "good",
        }
    }
}

/// A roster, and the facts that the page derives from it.
pub(super) struct View<'a> {
    pub(super) roster: &'a Roster,
    state: State,
    changes: Vec<Change>,
    target: &'a CommandTarget,
    now: Timestamp,
}

impl<'a> View<'a> {
    fn new(roster: &'a Roster, target: &'a CommandTarget, now: Timestamp) -> Self {
        let changes = changes(roster);
        Self { roster, state: State::of(roster, &changes, now), changes, target, now }
    }

    /// When the system was last verified, if it ever was.
    pub(super) fn verified_at(&self) -> Option<Timestamp> {
        let outcome = self.roster.outcome.as_ref().filter(|outcome| outcome.verified);
        let last = self.roster.last_verified.as_ref().map(|last| last.at);
        last.or(outcome.map(|outcome| outcome.at))
    }

    /// The master that the members report, or else the verified master, or else the master in the runner's
    /// outcome. Otherwise the server that registered first, which usually becomes the master.
    pub(super) fn master(&self) -> Option<&'a Addr> {
        let Roster { redis, outcome, last_verified, .. } = self.roster;
        let verified = last_verified.as_ref().map(|last| &last.master);
        let reported = outcome.as_ref().and_then(|outcome| outcome.master.as_ref());
        let first = redis.iter().find(|node| !node.stale).or(redis.first()).map(|first| &first.addr);
        new_master(self.roster).or(verified).or(reported_master(self.roster)).or(reported).or(first)
    }

    /// Whether the system is drawn as existing and not as planned.
    pub(super) fn exists(&self) -> bool {
        self.verified_at().is_some() || self.exists_by_report()
    }

    /// Whether the members report a system, and the broker has no outcome of a run. The broker may have lost
    /// its store.
    pub(super) fn exists_by_report(&self) -> bool {
        self.verified_at().is_none() && reported_master(self.roster).is_some()
    }

    pub(super) fn is_new(&self, kind: Kind, addr: &Addr) -> bool {
        self.changes.contains(&Change::Joined(kind, addr.clone()))
    }

    fn header(&self) -> Markup {
        html! {
            header.status.(self.state.class()) {
                p.eyebrow { "Sentinel Broker" }
                h1 { (self.roster.group) }
                p.state {
                    strong.badge { (self.state.title()) }
                    @let since = match self.state {
                        State::NotVerified | State::Running => self.roster.outcome.as_ref().map(|outcome| outcome.at),
                        _ => self.verified_at(),
                    };
                    @let what = if self.state == State::Changed { "verified " } else { "" };
                    @if let Some(since) = since { span { (what) (ago(since, self.now)) } }
                    @if let Some(master) = self.master().filter(|_| self.exists()) {
                        span { "master " code { (master) } }
                    }
                }
                (self.state_in_words())
                (self.what_to_do())
            }
        }
    }

    /// The state in words.
    fn state_in_words(&self) -> Markup {
        let missing = self.missing();
        let by_word = self.exists_by_report().then_some(
            "The nodes report a master, but the broker has no record of a verified system. Was the broker's \
             store lost?",
        );
        match self.state {
            State::Waiting => html! {
                p { (missing.unwrap_or_default()) }
                @if let Some(by_word) = by_word { p { (by_word) } }
            },
            State::Ready => html! {
                p { "Every expected node has registered. The runner has not reported yet." }
                @if let Some(by_word) = by_word { p { (by_word) } }
            },
            State::Running => html! {
                p {
                    "The run reports when it has verified the system or has failed. "
                    "A run that was killed never reports; the next run continues its work."
                }
                (self.since_verified())
            },
            State::Verified => {
                html! { p { "The registrations have not changed since the runner verified the system." } }
            }
            State::Changed => html! {
                p { "The system was verified. Since then:" }
                ul.lines { @for change in &self.changes { li { (self.describe_change(change)) } } }
            },
            State::NotVerified => {
                let reason = self.roster.outcome.as_ref().and_then(|outcome| outcome.reason.as_deref());
                let reason = match reason {
                    Some(RUN_UNDER_WAY) => Some(
                        "the last run has not reported an outcome: it was killed, or can't reach this broker",
                    ),
                    reason => reason,
                };
                let mut lines = reason.unwrap_or_default().lines();
                let (first, others) = (lines.next().unwrap_or_default(), lines.collect::<Vec<_>>());
                html! {
                    div.reason {
                        p { (in_backticks(first)) }
                        @if !others.is_empty() { ul.lines { @for line in others { li { (in_backticks(line)) } } } }
                    }
                    @if let Some(missing) = missing.filter(|_| !self.changes.contains(&Change::Fewer)) { p { (missing) } }
                    (self.since_verified())
                }
            }
        }
    }

    /// When and how the system was last verified, if it was, and what has changed.
    fn since_verified(&self) -> Markup {
        let Some(last) = &self.roster.last_verified else { return html! {} };
        html! {
            p {
                "Last verified " (ago(last.at, self.now)) ", with master " code { (last.master) } ", "
                (counted(last.redis.len(), Kind::Redis)) " and "
                (counted(last.sentinels.len(), Kind::Sentinel)) "."
                @if !self.changes.is_empty() { " Since then:" }
            }
            @if !self.changes.is_empty() { ul.lines { @for change in &self.changes { li { (self.describe_change(change)) } } } }
        }
    }

    fn describe_change(&self, change: &Change) -> Markup {
        let node = |kind: &Kind, addr: &Addr| html! { (kind_name(*kind)) " " code { (addr) } };
        match change {
            Change::Master(master) => {
                html! { "the nodes report " code { (master) } " as the new master" }
            }
            Change::Joined(kind, addr) => html! { (node(kind, addr)) " has registered" },
            Change::Stale(kind, addr) => {
                html! { (node(kind, addr)) " has not registered again: it may be down" }
            }
            Change::Left(kind, addr) => html! { (node(kind, addr)) " is no longer registered" },
            Change::Unknown => html! { "the broker has no record of the nodes that were verified" },
            Change::Fewer => html! { (self.missing().unwrap_or_default()) },
        }
    }

    /// How many nodes are missing, if any.
    fn missing(&self) -> Option<String> {
        let missing = self.roster.missing;
        let lacking = [(missing.redis, Kind::Redis), (missing.sentinels, Kind::Sentinel)].into_iter();
        let lacking: Vec<_> = lacking
            .filter(|(count, _)| *count > 0)
            .map(|(count, kind)| counted(count.into(), kind))
            .collect();
        let is_stale = |node: &Registration| node.stale;
        let any_stale = self.roster.redis.iter().any(is_stale) || self.roster.sentinels.iter().any(is_stale);
        let again = if any_stale { ", or to register again" } else { "" };
        (!lacking.is_empty()).then(|| format!("{} still to register{again}.", lacking.join(" and ")))
    }

    /// The commands for the next step.
    fn what_to_do(&self) -> Markup {
        let flags = self.target.flags();
        let bootstrap = format!("sentinel-runner bootstrap {flags}");
        let is_empty = self.roster.redis.is_empty() && self.roster.sentinels.is_empty();
        let commands: Vec<(&str, String)> = match self.state {
            State::Waiting if is_empty => {
                let token = if self.target.asks_token { " -H \"Authorization: Bearer $TOKEN\"" } else { "" };
                let (url, prefix) = (self.target.url(), self.target.prefix());
                vec![
                    (
                        "On the machine of each Redis server:",
                        format!("sentinel-runner join redis {flags} -- redis-server /etc/redis/redis.conf"),
                    ),
                    (
                        "On the machine of each Sentinel:",
                        format!(
                            "sentinel-runner join sentinel {flags} -- redis-sentinel /var/lib/redis/sentinel.conf"
                        ),
                    ),
                    (
                        "Without join, on the machine of an empty server or of the master (for a Sentinel: …/sentinel):",
                        format!("curl -X POST{token} {url}{prefix}/redis"),
                    ),
                    ("Then once, on a machine that reaches all nodes:", bootstrap),
                ]
            }
            State::Waiting => {
                vec![("To make the nodes one system when all have registered:", bootstrap)]
            }
            State::Ready => vec![("To make the nodes one system:", bootstrap)],
            State::Running => vec![],
            State::NotVerified => vec![("When the cause is fixed, or to see the current state:", bootstrap)],
            State::Changed => {
                let gone = self.changes.iter().find_map(|change| match change {
                    Change::Stale(kind, addr) => Some((
                        "If a node is gone permanently:",
                        format!("sentinel-runner deregister {kind} {addr} {flags}"),
                    )),
                    _ => None,
                });
                gone.into_iter()
                    .chain([("To verify the system as it is now, and add new nodes:", bootstrap)])
                    .collect()
            }
            State::Verified => {
                vec![("To see the current state of the servers:", format!("sentinel-runner status {flags}"))]
            }
        };
        html! {
            @if !commands.is_empty() {
                dl.commands { @for (what, command) in commands { div { dt { (what) } dd { code { (command) } } } } }
            }
        }
    }

    fn facts(&self) -> Markup {
        let Roster { expected, redis, sentinels, .. } = self.roster;
        let fact = |name: &str, nodes: &[Registration], expected: u16| {
            let stale = nodes.iter().filter(|node| node.stale).count();
            let there = nodes.len() - stale;
            let lacks = there < usize::from(expected);
            html! {
                div { dt { (name) } dd {
                    span.lacking[lacks] { (there) } " of " (expected)
                    @if stale > 0 { ", " (stale) " stale" }
                } }
            }
        };
        html! {
            dl.facts {
                (fact("Redis servers", redis, expected.redis))
                (fact("Sentinels", sentinels, expected.sentinels))
                div { dt { "Quorum" } dd { (expected.quorum) } }
            }
        }
    }

    /// The role of a node, and its style: a planned role is only an outline.
    fn role(&self, kind: Kind, node: &Registration) -> Option<(&'static str, &'static str)> {
        let is_master = kind == Kind::Redis && Some(&node.addr) == self.master();
        match (self.exists(), kind) {
            _ if node.stale => Some(("stale", "warn")),
            (true, _) if is_master => Some(("master", "master")),
            _ if self.is_new(kind, &node.addr) => Some(("new", "warn")),
            (true, Kind::Redis) => Some(("replica", "")),
            (false, Kind::Redis) if is_master => Some(("planned master", "planned")),
            (false, Kind::Redis) => Some(("planned replica", "planned")),
            (_, Kind::Sentinel) => None,
        }
    }

    fn list(&self, kind: Kind, nodes: &[Registration]) -> Markup {
        let suffix = common_suffix(nodes);
        let mut nodes: Vec<_> = (1..).zip(nodes).collect();
        let is_master = |node: &Registration| kind == Kind::Redis && Some(&node.addr) == self.master();
        // The master comes first, then its replicas.
        nodes.sort_by_key(|(_, node)| !is_master(node));
        let missing = match kind {
            Kind::Redis => self.roster.missing.redis,
            Kind::Sentinel => self.roster.missing.sentinels,
        };
        html! {
            section {
                h2 {
                    @match kind { Kind::Redis => "Redis servers", Kind::Sentinel => "Sentinels" }
                    @if let Some(suffix) = &suffix { " " small { code { "*" (suffix) } } }
                }
                table.(kind.to_string()) {
                    thead { tr {
                        th.place scope="col" { "#" }
                        th.wide scope="col" { "Address" }
                        th scope="col" { "Run id" }
                        th scope="col" { "Registered" }
                        th scope="col" { "Last seen" }
                    } }
                    tbody {
                        @for (place, node) in nodes { (self.row(kind, place, node, suffix.as_deref(), is_master(node))) }
                        @if missing > 0 {
                            tr.to-come {
                                td.place {}
                                td.addr-to-come colspan="4" { (counted(missing.into(), kind)) " missing" }
                            }
                        }
                    }
                }
            }
        }
    }

    fn row(
        &self,
        kind: Kind,
        place: usize,
        node: &Registration,
        suffix: Option<&str>,
        is_master: bool,
    ) -> Markup {
        let addr = node.addr.to_string();
        let shown = suffix.and_then(|suffix| addr.strip_suffix(suffix)).unwrap_or(&addr);
        // A node without a `ttl` does not register again, so it is never late.
        let is_late = node.ttl.is_some() && (node.stale || self.now.since(node.last_seen) > LATE);
        html! {
            tr.is-master[is_master] data-key=(addr) {
                td.place { (place) }
                td.addr {
                    code title=(addr) { (shown) }
                    @if let Some((role, class)) = self.role(kind, node) { " " span.pill.(class) { (role) } }
                }
                td.meta data-label="run id" {
                    @if let Some(id) = &node.run_id { code title=(id) { (shortened(id.as_str(), 9)) } }
                }
                td.meta data-label="registered" { (ago(node.registered_at, self.now)) }
                td.meta data-label="seen" { span.lacking[is_late] { (ago(node.last_seen, self.now)) } }
            }
        }
    }
}

fn kind_name(kind: Kind) -> &'static str {
    match kind {
        Kind::Redis => "Redis server",
        Kind::Sentinel => "Sentinel",
    }
}

/// A text in which parts between backticks are code.
fn in_backticks(text: &str) -> Markup {
    let mut parts: Vec<&str> = text.split('`').collect();
    // A backtick without a second one is a plain character.
    let rest = if parts.len().is_multiple_of(2) { parts.pop() } else { None };
    html! {
        @for (index, part) in parts.iter().enumerate() {
            @if !index.is_multiple_of(2) { code { (part) } } @else { (part) }
        }
        @if let Some(rest) = rest { "`" (rest) }
    }
}

/// The suffix that all of these names share, from a dot on, if it is long.
pub(super) fn common_suffix(nodes: &[Registration]) -> Option<String> {
    let [first, others @ ..] = nodes else { return None };
    if others.is_empty() || nodes.iter().any(|node| node.addr.host.as_str().parse::<IpAddr>().is_ok()) {
        return None;
    }
    let first = first.addr.to_string();
    let others: Vec<String> = others.iter().map(|node| node.addr.to_string()).collect();
    let from_dots = first.match_indices('.').map(|(at, _)| &first[at..]);
    let mut long = from_dots.take_while(|suffix| suffix.len() >= LONG_SUFFIX);
    long.find(|suffix| others.iter().all(|other| other.ends_with(*suffix))).map(str::to_owned)
}
