//! Who may do what: the tokens that a request presents, against those that the broker asks for.
//!
//! | presented | reads | writes |
//! | --- | --- | --- |
//! | `Authorization: Bearer` with the `api_token` | yes | yes |
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
use base64::Engine;
use base64::prelude::BASE64_STANDARD;

use crate::problem::Error;
use crate::settings::Tokens;

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
    let is_api = tokens.api.matches(&token);
    let is_read = tokens.read.as_ref().is_some_and(|read| read.matches(&token));
    if !(is_api | is_read) {
        Err(Error::Unauthorized { reads })
    } else if reads || (is_api && scheme == Scheme::Bearer) {
        Ok(())
    } else {
        Err(Error::Forbidden)
    }
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
