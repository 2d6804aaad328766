//! The pages for browsers: the status page of a group, the list of all groups, and problems.
//!
//! A page loads nothing but itself: a Content-Security-Policy allows only its one style sheet and its one
//! script, by their digests. The script refreshes the page without disturbing what a user has selected or is
//! about to click. Without the script, the page reloads. `maud` escapes every value in the pages.

use axum::body::Body;
use axum::http::header::{ACCEPT, CONTENT_LENGTH, CONTENT_SECURITY_POLICY, CONTENT_TYPE, REFERRER_POLICY};
use axum::http::{HeaderMap, HeaderValue, Method};
use axum::response::{IntoResponse, Response};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use maud::{DOCTYPE, Markup, PreEscaped, html};
use sha2::{Digest, Sha256};

pub use self::groups::groups;
pub use self::status::status;
use crate::access;
use crate::api::{Group, Kind, Timestamp};
use crate::problem::Error;

mod changes;
mod groups;
mod status;
#[cfg(test)]
mod tests;
mod topology;

/// How often a page reloads if its script does not run, in seconds.
const REFRESH_SECONDS: u32 = 10;

/// How often a page reloads without its script once it waits for nothing, in seconds.
const SETTLED_REFRESH_SECONDS: u32 = 60;

const STYLE: &str = include_str!("page/style.css");

/// Refreshes a page every 2 s, and less often once nothing has changed for a minute, and for ten minutes.
const SCRIPT: &str = include_str!("page/refresh.js");

/// Whether a request is answered with a page: it reads, and prefers `text/html` to `application/json`.
#[must_use]
pub fn is_asked_for(method: &Method, headers: &HeaderMap) -> bool {
    access::reads(method)
        && headers.contains_key(ACCEPT)
        && quality(headers, "text", "html") > quality(headers, "application", "json")
}

/// The quality of a media type in `Accept`, from 0 to 1. The most specific range that matches is used (RFC
/// 9110, 12.5.1). Ranges that can't be read are ignored.
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

/// A complete HTML page.
#[derive(Debug, Clone)]
pub struct Page(String);

impl Page {
    /// `refresh` is how often the page reloads if its script does not run, in seconds.
    fn new(title: &str, refresh: Option<u32>, body: &Markup) -> Self {
        let page = html! {
            (DOCTYPE)
            html lang="en" {
                head {
                    meta charset="utf-8";
                    meta name="viewport" content="width=device-width, initial-scale=1";
                    meta name="color-scheme" content="light dark";
                    title { (title) }
                    style { (PreEscaped(STYLE)) }
                    @if let Some(seconds) = refresh {
                        noscript { meta http-equiv="refresh" content=(seconds); }
                        script { (PreEscaped(SCRIPT)) }
                    }
                }
                body { (body) }
            }
        };
        Self(page.into_string())
    }

    /// Makes this page the body of a response. The status stays.
    pub fn write_to(self, response: &mut Response) {
        let [style, script] = [STYLE, SCRIPT].map(|text| BASE64_STANDARD.encode(Sha256::digest(text)));
        let policy = format!(
            "default-src 'none'; style-src 'sha256-{style}'; script-src 'sha256-{script}'; connect-src 'self'; \
             base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
        );
        *response.body_mut() = Body::from(self.0);
        let headers = response.headers_mut();
        headers.remove(CONTENT_LENGTH);
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/html; charset=utf-8"));
        headers.insert(REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
        // A digest in base64 is always valid in a header. The fallback is the strictest policy.
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

/// The page for a problem. If the problem may pass without a change by the user, the page reloads.
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
                    p { "This broker requires a token." }
                    p {
                        "Reload the page to sign in. Enter any user name. The password is the value of the variable "
                        code { "read_token" } " or " code { "api_token" } ". Programs send "
                        code { "Authorization: Bearer …" } "."
                    }
                }
                error => p { (error) }
            }
        }
    };
    let refresh = status.is_server_error().then_some(REFRESH_SECONDS);
    Page::new(&format!("{title} · Sentinel Broker"), refresh, &body)
}

/// How a command reaches the group of a page.
#[derive(Debug, Clone, Default)]
pub struct CommandTarget {
    /// The URL at which the browser has found this broker, without a slash at the end; `None` if it can't be
    /// typed.
    pub url: Option<String>,
    /// The group, unless it is the default group.
    pub group: Option<Group>,
    /// Whether this broker requires a token.
    pub asks_token: bool,
}

impl CommandTarget {
    fn url(&self) -> &str {
        self.url.as_deref().unwrap_or("http://BROKER:3000")
    }

    /// The prefix of every path in the group.
    fn prefix(&self) -> String {
        self.group.as_ref().map(|group| format!("/groups/{group}")).unwrap_or_default()
    }

    /// The flags of `sentinel-runner`.
    fn flags(&self) -> String {
        let group = self.group.as_ref().map(|group| format!(" --group {group}")).unwrap_or_default();
        let token = if self.asks_token { " --token-file TOKEN-FILE" } else { "" };
        format!("--broker {}{group}{token}", self.url())
    }
}

/// The foot of every page.
fn footer(now: Timestamp, note: &Markup) -> Markup {
    let exact = now.to_string();
    let second = exact.split('.').next().unwrap_or_default().replace('T', " ");
    html! {
        footer {
            p { span.as-of { "As of " time datetime=(exact) { (second.trim_end_matches('Z')) } " UTC" } ". " (note) }
            nav { @for path in ["/groups", "/config", "/metrics", "/openapi.json"] { a href=(path) { (path) } " " } }
        }
    }
}

/// How long ago something was, with the exact time as the tooltip.
fn ago(then: Timestamp, now: Timestamp) -> Markup {
    let exact = then.to_string();
    html! { time datetime=(exact) title=(exact) { (words(now.since(then).as_secs())) } }
}

fn words(seconds: u64) -> String {
    match seconds {
        0 => "just now".into(),
        1..=119 => format!("{seconds} s ago"),
        120..=7199 => format!("{} min ago", seconds / 60),
        7200..=172_799 => format!("{} h ago", seconds / 3600),
        _ => format!("{} days ago", seconds / 86_400),
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

/// At most `most` characters of a text. If it is longer, its middle is left out.
fn shortened(text: &str, most: usize) -> String {
    let characters: Vec<char> = text.chars().collect();
    if characters.len() <= most {
        return text.to_owned();
    }
    let tail = (most - 1) / 2;
    let head = most - 1 - tail;
    characters[..head].iter().chain(&['…']).chain(&characters[characters.len() - tail..]).collect()
}
