//! Who may do what: the tokens that a request presents, against those that the broker asks for.
//!
//! | presented | reads | writes |
//! | --- | --- | --- |
//! | `Authorization: Bearer` with the `runner_token` | yes | yes |
//! | `Authorization: Bearer` with the `api_token` | yes | yes; but an outcome or a whole group only where there is no `runner_token` |
//! | `Authorization: Bearer` with the `read_token` | yes | `403` |
//! | `Authorization: Basic`, either token as the password | yes | `403` |
//! | nothing, or anything else | `401` | `401` |
//!
//! Basic is for browsers: each of them has a dialog for it, and can then show the status page. It never writes, so
//! another site that makes a browser send what it remembers gains nothing.
//!
//! A token that is known but does not suffice is `403` and not `401`: RFC 9110 (15.5.4) has it for credentials that are
//! understood and insufficient, and a browser that gets a `401` would ask for the same token again.

use axum::extract::Request;
use axum::http::Method;
use axum::http::header::AUTHORIZATION;
use axum::http::uri::Authority;
use base64::Engine;
use base64::prelude::BASE64_STANDARD;

use crate::api::Kind;
use crate::problem::Error;
use crate::settings::{Secret, Tokens};

/// The one path that asks for no token: those who probe it have none.
pub const HEALTHCHECK: &str = "/healthcheck";

/// Whether a method only reads. Every route takes both, or neither.
#[must_use]
pub fn reads(method: &Method) -> bool {
    matches!(*method, Method::GET | Method::HEAD)
}

/// Lets a request pass that carries a token which allows it.
///
/// # Errors
///
/// [`Error::Unauthorized`] without a known token, [`Error::Forbidden`] with one that does not suffice.
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
    let runner = tokens.runner.is_some() && !is_a_nodes(request.method(), request.uri().path());
    let may_write = is_runner || is_api && !runner;
    if reads || may_write && scheme == Scheme::Bearer { Ok(()) } else { Err(Error::Forbidden { runner }) }
}

/// Whether a request carries any of the tokens.
#[must_use]
pub fn is_known<B>(tokens: &Tokens, request: &Request<B>) -> bool {
    let is_healthcheck = request.uri().path() == HEALTHCHECK;
    !is_healthcheck && !matches!(check(tokens, request), Err(Error::Unauthorized { .. }))
}

/// Whether this changes one registration, as nodes do, and nothing of the group: a POST, or a DELETE of
/// `…/{kind}/{host}:{port}`.
fn is_a_nodes(method: &Method, path: &str) -> bool {
    let mut segments = path.split('/').skip(1).collect::<Vec<_>>();
    if segments.first() == Some(&"groups") {
        segments.drain(..segments.len().min(2));
    }
    let is_of_a_node = |kind: &str| Kind::ALL.iter().any(|known| known.as_str() == kind);
    *method == Method::POST
        || *method == Method::DELETE && matches!(segments[..], [kind, _] if is_of_a_node(kind))
}

/// Lets a request pass that no page of another site has had a browser send. Programs send neither header; browsers send `Origin` with every
/// write, and the other one to https and to localhost (Fetch standard; W3C Fetch Metadata), and no page can change them.
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

/// The token that credentials carry, and how.
fn parse(credentials: &[u8]) -> Option<(Vec<u8>, Scheme)> {
    let blank = credentials.iter().position(|byte| *byte == b' ')?;
    let (scheme, rest) = credentials.split_at(blank);
    let rest = rest.trim_ascii();
    if scheme.eq_ignore_ascii_case(b"bearer") {
        Some((rest.to_vec(), Scheme::Bearer))
    } else if scheme.eq_ignore_ascii_case(b"basic") {
        // RFC 7617: the user name, which says nothing here, ends at the first colon.
        let pair = BASE64_STANDARD.decode(rest).ok()?;
        let colon = pair.iter().position(|byte| *byte == b':')?;
        Some((pair[colon + 1..].to_vec(), Scheme::Basic))
    } else {
        None
    }
}
