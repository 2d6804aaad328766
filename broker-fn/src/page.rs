//! What a browser is shown: the status page of a group, and problems.
//!
//! The pages hold no script, load nothing, and are complete in themselves: a Content-Security-Policy allows their one
//! style sheet, by its digest, and nothing else. `maud` escapes every value that is put into them.

use axum::body::Body;
use axum::http::header::{ACCEPT, CONTENT_LENGTH, CONTENT_SECURITY_POLICY, CONTENT_TYPE, REFERRER_POLICY};
use axum::http::{HeaderMap, HeaderValue, Method};
use axum::response::{IntoResponse, Response};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use maud::{DOCTYPE, Markup, PreEscaped, html};
use sha2::{Digest, Sha256};

use crate::access;
use crate::api::{Addr, Kind, Outcome, Registration, Roster, Timestamp};
use crate::problem::Error;

#[cfg(test)]
mod tests;
mod topology;

/// How often a page that has yet to change loads itself again, in seconds.
const REFRESH_SECONDS: u32 = 2;

const STYLE: &str = include_str!("page/style.css");

/// Whether a request is one that a page answers: it reads, and would rather have `text/html` than `application/json`.
#[must_use]
pub fn is_asked_for(method: &Method, headers: &HeaderMap) -> bool {
    access::reads(method)
        && headers.contains_key(ACCEPT)
        && quality(headers, "text", "html") > quality(headers, "application", "json")
}

/// How much `Accept` wants a media type, from 0 to 1: the most specific range that it matches counts (RFC 9110,
/// 12.5.1). Ranges that can't be read are passed over.
fn quality(headers: &HeaderMap, kind: &str, subtype: &str) -> f32 {
    let lines = headers.get_all(ACCEPT).iter().filter_map(|line| line.to_str().ok());
    let matching = lines.flat_map(|line| line.split(',')).filter_map(|range| {
        let mut parts = range.split(';').map(str::trim);
        let (range_kind, range_subtype) = parts.next()?.split_once('/')?;
        let specificity = match (range_kind, range_subtype) {
            ("*", "*") => 0,
            (range_kind, "*") if range_kind.eq_ignore_ascii_case(kind) => 1,
            (range_kind, range_subtype)
                if range_kind.eq_ignore_ascii_case(kind) && range_subtype.eq_ignore_ascii_case(subtype) =>
            {
                2
            }
            _ => return None,
        };
        let weight =
            parts.filter_map(|part| part.split_once('=')).find(|(name, _)| name.eq_ignore_ascii_case("q"));
        let weight = weight.map_or(Some(1.0_f32), |(_, weight)| weight.parse::<f32>().ok());
        Some((specificity, weight.filter(|weight| (0.0..=1.0).contains(weight))?))
    });
    matching.max_by(|a, b| a.0.cmp(&b.0).then(a.1.total_cmp(&b.1))).map_or(0.0, |(_, weight)| weight)
}

/// A whole page.
#[derive(Debug, Clone)]
pub struct Page(String);

impl Page {
    fn new(title: &str, refresh: bool, body: &Markup) -> Self {
        let page = html! {
            (DOCTYPE)
            html lang="en" {
                head {
                    meta charset="utf-8";
                    meta name="viewport" content="width=device-width, initial-scale=1";
                    meta name="color-scheme" content="light dark";
                    @if refresh {
                        meta http-equiv="refresh" content=(REFRESH_SECONDS);
                    }
                    title { (title) }
                    style { (PreEscaped(STYLE)) }
                }
                body { (body) }
            }
        };
        Self(page.into_string())
    }

    /// Makes this the body of a response, whatever its status.
    pub fn write_to(self, response: &mut Response) {
        let digest = BASE64_STANDARD.encode(Sha256::digest(STYLE));
        let policy = format!(
            "default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'; \
             frame-ancestors 'none'"
        );
        *response.body_mut() = Body::from(self.0);
        let headers = response.headers_mut();
        headers.remove(CONTENT_LENGTH);
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/html; charset=utf-8"));
        headers.insert(REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
        // A digest in base64 is valid in a header. Were it not, the strictest policy would have to do.
        let policy = HeaderValue::try_from(policy);
        headers.insert(
            CONTENT_SECURITY_POLICY,
            policy.unwrap_or(HeaderValue::from_static("default-src 'none'")),
        );
    }
}

impl IntoResponse for Page {
    fn into_response(self) -> Response {
        let mut response = Response::default();
        self.write_to(&mut response);
        response
    }
}

/// The page that tells a problem. What may pass by itself is asked for again.
#[must_use]
pub fn problem(error: &Error) -> Page {
    let status = error.status();
    let title = status.canonical_reason().unwrap_or("Problem");
    let body = html! {
        main.problem {
            p.eyebrow { "Sentinel Broker · " (status.as_u16()) }
            h1 { (title) }
            @match error {
                Error::Unauthorized { .. } => {
                    p { "This broker asks for a token." }
                    p {
                        "Reload the page to sign in: any user name, and as the password the value of its "
                        code { "read_token" } " or " code { "api_token" } " variable. Programs send "
                        code { "Authorization: Bearer …" } "."
                    }
                }
                error => p { (error) }
            }
        }
    };
    Page::new(&format!("{title} · Sentinel Broker"), status.is_server_error(), &body)
}

/// The status page of a group. Its own paths begin with `prefix`.
#[must_use]
pub fn status(roster: &Roster, prefix: &str, now: Timestamp) -> Page {
    let view = View { roster, state: State::of(roster), now };
    let today = now.to_string().chars().take_while(|character| *character != 'T').collect::<String>();
    let body = html! {
        header {
            p.eyebrow { "Sentinel Broker" }
            h1 { (roster.group) " " span class={ "badge " (view.state.class()) } { (view.state.title()) } }
            p.lead { (view.lead()) }
        }
        main {
            (view.facts())
            @if let Some(outcome) = &roster.outcome { (view.outcome(outcome)) }
            div.columns {
                div {
                    (view.table(Kind::Redis, &roster.redis, prefix))
                    (view.table(Kind::Sentinel, &roster.sentinels, prefix))
                }
                (topology::figure(&view))
            }
        }
        footer {
            p {
                "As of " (today) " " (view.moment(now)) " UTC. "
                @if view.is_settled() { "The broker does not watch the servers: after a failover, ask the Sentinels." }
                @else { "This page refreshes itself every " (REFRESH_SECONDS) " seconds." }
            }
            nav {
                @for path in ["/groups", "/config", "/metrics", "/openapi.json"] { a href=(path) { (path) } " " }
            }
        }
    };
    Page::new(&format!("{} · {}", roster.group, view.state.title()), !view.is_settled(), &body)
}

/// How far a group has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Nodes are missing.
    Waiting,
    /// All nodes are there; no runner has reported.
    Ready,
    /// The runner could not verify the system.
    NotVerified,
    /// The runner verified the system.
    Verified,
}

impl State {
    fn of(roster: &Roster) -> Self {
        match &roster.outcome {
            _ if !roster.ready => Self::Waiting,
            None => Self::Ready,
            Some(outcome) if outcome.verified => Self::Verified,
            Some(_) => Self::NotVerified,
        }
    }

    fn title(self) -> &'static str {
        match self {
            Self::Waiting => "Waiting for nodes",
            Self::Ready => "Ready",
            Self::NotVerified => "Not verified",
            Self::Verified => "Verified",
        }
    }

    fn class(self) -> &'static str {
        match self {
            Self::Waiting => "waiting",
            Self::Ready => "ready",
            Self::NotVerified => "failed",
            Self::Verified => "verified",
        }
    }
}

/// A roster, and what the page has to say about it.
struct View<'a> {
    roster: &'a Roster,
    state: State,
    now: Timestamp,
}

impl View<'_> {
    /// Whether there is nothing left to wait for.
    fn is_settled(&self) -> bool {
        self.state == State::Verified
    }

    /// What the runner reported, if it verified the system.
    fn verified(&self) -> Option<&Outcome> {
        self.roster.outcome.as_ref().filter(|outcome| outcome.verified)
    }

    /// The master: as the runner reported it, or else the first to have registered, which becomes it as a rule.
    fn master(&self) -> Option<&Addr> {
        let reported = self.roster.outcome.as_ref().and_then(|outcome| outcome.master.as_ref());
        reported.or(self.roster.redis.first().map(|first| &first.addr))
    }

    fn role(&self, kind: Kind, node: &Registration) -> &'static str {
        let is_master = kind == Kind::Redis && Some(&node.addr) == self.master();
        match (self.verified(), kind) {
            (Some(_), _) if is_master => "master",
            (Some(outcome), _) if node.registered_at > outcome.at => "new since",
            (Some(_), Kind::Redis) => "replica",
            (None, _) if is_master => "to be master",
            (None, Kind::Redis) => "to be replica",
            (_, Kind::Sentinel) => "",
        }
    }

    fn lead(&self) -> String {
        let missing = self.roster.missing;
        match self.state {
            State::Waiting => {
                let lacking = [(missing.redis, Kind::Redis), (missing.sentinels, Kind::Sentinel)];
                let lacking: Vec<_> = lacking
                    .into_iter()
                    .filter(|(count, _)| *count > 0)
                    .map(|(count, kind)| counted(count.into(), kind))
                    .collect();
                let is_stale = |node: &&Registration| node.stale;
                let stale = self.roster.redis.iter().chain(&self.roster.sentinels).filter(is_stale).count();
                let again = if stale > 0 { ", or to register again" } else { "" };
                format!("{} still to register{again}.", lacking.join(" and "))
            }
            State::Ready => "Every expected node has registered. The runner has not reported yet.".into(),
            State::NotVerified => {
                "Every expected node has registered, but the runner could not verify the system.".into()
            }
            State::Verified => "The runner set the system up, and verified it on every node.".into(),
        }
    }

    /// A moment to the second, without its date if that is today's; and to the nanosecond for who looks closer.
    fn moment(&self, moment: Timestamp) -> Markup {
        let (exact, now) = (moment.to_string(), self.now.to_string());
        let second = exact.split('.').next().unwrap_or_default().replace('T', " ");
        let shown = match second.split_once(' ') {
            Some((date, time)) if now.starts_with(date) => time,
            _ => &second,
        };
        html! { time datetime=(exact) title=(exact) { (shown) } }
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
                div { dt { "Master" } dd {
                    @match self.master() {
                        Some(master) => {
                            code { (master) }
                            @match &self.roster.outcome {
                                Some(outcome) if outcome.verified => {}
                                Some(Outcome { master: Some(_), .. }) => { " " small { "not verified" } }
                                _ => { " " small { "if none stands already" } }
                            }
                        }
                        None => "the first Redis server to register"
                    }
                } }
            }
        }
    }

    fn outcome(&self, outcome: &Outcome) -> Markup {
        let (class, title) = if outcome.verified {
            ("outcome verified", "Verified")
        } else {
            ("outcome failed", "Not verified")
        };
        html! {
            section class=(class) {
                p {
                    strong { (title) } ", as of " (self.moment(outcome.at)) " UTC"
                    @if let Some(master) = &outcome.master {
                        @if outcome.verified { ", with master " } @else { "; the last master was " }
                        code { (master) }
                    }
                }
                @if let Some(reason) = &outcome.reason { p.reason { (reason) } }
                @if let Some(last) = self.roster.last_verified.as_ref().filter(|_| !outcome.verified) {
                    p {
                        "Last verified as of " (self.moment(last.at)) " UTC, with master " code { (last.master) }
                        " and " (last.redis.len()) " + " (last.sentinels.len()) " nodes"
                    }
                }
            }
        }
    }

    fn table(&self, kind: Kind, nodes: &[Registration], prefix: &str) -> Markup {
        let name = match kind {
            Kind::Redis => "Redis servers",
            Kind::Sentinel => "Sentinels",
        };
        let has_roles = nodes.iter().any(|node| !self.role(kind, node).is_empty());
        html! {
            section {
                h2 { (name) }
                @if nodes.is_empty() {
                    p.empty { "None yet. Each registers with " code { "POST " (prefix) "/" (kind) } "." }
                } @else {
                    table {
                        thead { tr {
                            th.place scope="col" { "#" }
                            th scope="col" { "Address" }
                            @if has_roles { th scope="col" { "Role" } }
                            th scope="col" { "Run id" }
                            th scope="col" { "Registered" }
                            th scope="col" { "Last seen" }
                        } }
                        tbody {
                            @for (place, node) in (1..).zip(nodes) {
                                tr {
                                    td.place { (place) }
                                    td.addr { code { (node.addr) } }
                                    @if has_roles { td.role { (self.role(kind, node)) } }
                                    td.meta data-label="run id" {
                                        @if let Some(id) = &node.run_id {
                                            code title=(id) { (shortened(id.as_str(), 9)) }
                                        }
                                    }
                                    td.meta data-label="registered" { (self.moment(node.registered_at)) }
                                    td.meta data-label="seen" {
                                        (self.moment(node.last_seen))
                                        @if node.stale { " " span.lacking { "stale" } }
                                    }
                                }
                            }
                        }
                    }
                }
            }
        }
    }
}

/// `1 Redis server`, `2 Sentinels`.
fn counted(count: usize, kind: Kind) -> String {
    let noun = match kind {
        Kind::Redis => "Redis server",
        Kind::Sentinel => "Sentinel",
    };
    format!("{count} {noun}{}", if count == 1 { "" } else { "s" })
}

/// At most `most` characters of a text, with its middle left out where there are more.
fn shortened(text: &str, most: usize) -> String {
    let characters: Vec<char> = text.chars().collect();
    if characters.len() <= most {
        return text.to_owned();
    }
    let tail = (most - 1) / 2;
    let head = most - 1 - tail;
    characters[..head].iter().chain(&['…']).chain(&characters[characters.len() - tail..]).collect()
}
