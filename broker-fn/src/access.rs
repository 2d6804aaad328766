//! Which token may do what: the token that a request presents, and the tokens that the broker requires.
//!
//! | presented | reads | writes |
//! | --- | --- | --- |
//! | `Authorization: Bearer` with the `runner_token` | yes | yes |
//! | `Authorization: Bearer` with the `api_token` | yes | yes; if `runner_token` is set, registrations only |
//! | `Authorization: Bearer` with the `read_token` | yes | `403` |
//! | `Authorization: Basic`, either token as the password | yes | `403` |
//! | nothing, or anything else | `401` | `401` |
//!
//! Basic is for browsers: each has a dialog for it, and can then show the status page. Basic never writes. So
//! another site that makes a browser send the stored password gains nothing.
//!
//! A known token that does not suffice gets `403` and not `401`. RFC 9110 (15.5.4) defines that for
//! credentials that are understood and insufficient, and a browser that gets a `401` would ask for the same
//! token again.

use axum::extract::Request;
use axum::http::Method;
use axum::http::header::AUTHORIZATION;
use axum::http::uri::Authority;
use base64::Engine;
use base64::prelude::BASE64_STANDARD;

use crate::api::Kind;
use crate::problem::Error;
use crate::settings::{Secret, Tokens};

/// The only path that requires no token: probes have none.
pub const HEALTHCHECK: &str = "/healthcheck";

/// Whether a method only reads. Every route takes both GET and HEAD, or neither.
#[must_use]
pub fn reads(method: &Method) -> bool {
    matches!(*method, Method::GET | Method::HEAD)
}

/// Accepts a request with a token that allows it.
///
/// # Errors
///
/// [`Error::Unauthorized`] without a known token, [`Error::Forbidden`] with a token that does not suffice.
pub fn check<B>(tokens: &Tokens, request: &Request<B>) -> Result<(), Error> {
    if request.uri().path() == HEALTHCHECK {
        return Ok(());
    }
    let reads = reads(request.method());
    let credentials = request.headers().get(AUTHORIZATION).and_then(|value| parse(value.as_bytes()));
    let (token, scheme) = credentials.ok_or(Error::Unauthorized { reads })?;
    let is = |secret: &Option<Secret>| secret.as_ref().is_some_and(|secret| secret.matches(&token));
    let is_api = tokens.api.matches(&token);
    let (is_read, is_runner) = (is(&tokens.read), is(&tokens.runner));
    if !(is_api | is_read | is_runner) {
        return Err(Error::Unauthorized { reads });
    }
    let runner = tokens.runner.is_some() && !is_of_one_node(request.method(), request.uri().path());
    let may_write = is_runner || is_api && !runner;
    if reads || may_write && scheme == Scheme::Bearer { Ok(()) } else { Err(Error::Forbidden { runner }) }
}

/// Whether a request carries any of the tokens.
#[must_use]
pub fn is_known<B>(tokens: &Tokens, request: &Request<B>) -> bool {
    let is_healthcheck = request.uri().path() == HEALTHCHECK;
    !is_healthcheck && !matches!(check(tokens, request), Err(Error::Unauthorized { .. }))
}

/// Whether a request changes only one registration, as nodes do, and not the group: a POST, or a DELETE of
/// `…/{kind}/{host}:{port}`.
fn is_of_one_node(method: &Method, path: &str) -> bool {
    let mut segments = path.split('/').skip(1).collect::<Vec<_>>();
    if segments.first() == Some(&"groups") {
        segments.drain(..segments.len().min(2));
    }
    let is_of_a_node = |kind: &str| Kind::ALL.iter().any(|known| known.as_str() == kind);
    *method == Method::POST
        || *method == Method::DELETE && matches!(segments[..], [kind, _] if is_of_a_node(kind))
}

/// Refuses a request that a browser sends for a page of another site. Other programs send neither of these
/// headers. Browsers send `Origin` with every write, and `Sec-Fetch-Site` to https and to localhost (Fetch
/// standard; W3C Fetch Metadata). No page can change these headers.
///
/// # Errors
///
/// [`Error::CrossSite`].
pub fn check_site<B>(request: &Request<B>) -> Result<(), Error> {
    let header = |name: &str| request.headers().get(name).map(|value| value.to_str().unwrap_or_default());
    let is_own = match (header("sec-fetch-site"), header("origin")) {
        (Some(site), _) => ["same-origin", "none"].contains(&site),
        (None, Some(origin)) => {
            let host = origin.split_once("://").map(|(_, host)| host);
            let asked = request.uri().authority().map(Authority::as_str).or(header("host"));
            host.is_some() && host == asked
        }
        (None, None) => true,
    };
    if reads(request.method()) || is_own { Ok(()) } else { Err(Error::CrossSite) }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Scheme {
    Bearer,
    Basic,
}

/// The token of credentials, and their scheme.
fn parse(credentials: &[u8]) -> Option<(Vec<u8>, Scheme)> {
    let blank = credentials.iter().position(|byte| *byte == b' ')?;
    let (scheme, rest) = credentials.split_at(blank);
    let rest = rest.trim_ascii();
    if scheme.eq_ignore_ascii_case(b"bearer") {
        Some((rest.to_vec(), Scheme::Bearer))
    } else if scheme.eq_ignore_ascii_case(b"basic") {
        // RFC 7617: the user name ends at the first colon. It has no meaning here.
        let pair = BASE64_STANDARD.decode(rest).ok()?;
        let colon = pair.iter().position(|byte| *byte == b':')?;
        Some((pair[colon + 1..].to_vec(), Scheme::Basic))
    } else {
        None
    }
}
