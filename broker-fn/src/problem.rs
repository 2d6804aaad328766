//! What can go wrong with a request, and its RFC 9457 problem document.

use std::time::Duration;

use axum::body::Body;
use axum::http::header::{CONTENT_TYPE, RETRY_AFTER, WWW_AUTHENTICATE};
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};

use crate::api::{Group, Kind, MAX_BODY_BYTES, PROBLEM_JSON, Problem};
use crate::registry::StoreError;
use crate::settings::BadSettings;

/// After this many seconds a retry is always worthwhile.
const MINUTE: u64 = 60;

const BEARER: &str = "Bearer realm=\"sentinel-broker\"";
const BASIC: &str =
    "Basic realm=\"sentinel-broker: any user name, the token as the password\", charset=\"UTF-8\"";

/// Why a request fails. The text is the `detail` that the client reads.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    /// The request can't be read.
    #[error("{0}")]
    Malformed(String),
    /// The token is missing or wrong.
    #[error(
        "this broker requires a token: send `Authorization: Bearer …` with the value of its variable \
         `api_token`{}",
        if *.reads { " or `read_token`" } else { "" }
    )]
    Unauthorized {
        /// Whether the request only reads, for which more kinds of credentials are accepted.
        reads: bool,
    },
    /// The token does not suffice.
    #[error(
        "these credentials do not allow this request: send `Authorization: Bearer …` with the value of the \
         broker's variable `{}`", if *.runner { "runner_token" } else { "api_token" }
    )]
    Forbidden {
        /// Whether the request requires the `runner_token`.
        runner: bool,
    },
    /// A page of another site made a browser send the request.
    #[error(
        "a page of another site sent this request, and such a page may only read: send the request with a \
         program like `curl`"
    )]
    CrossSite,
    /// There is nothing at this path.
    #[error("{0}")]
    NotFound(String),
    /// The path does not take this method.
    #[error("this path does not take this method; the `Allow` header lists the methods that it takes")]
    MethodNotAllowed,
    /// The body did not arrive in time.
    #[error("the request body did not arrive in time; send the request again")]
    TooSlow,
    /// The body is too long.
    #[error("the request body is longer than {MAX_BODY_BYTES} bytes")]
    TooLarge,
    /// The body is not declared as JSON.
    #[error("the request body must be JSON: send it with `Content-Type: application/json`, or send no body")]
    NotJson,
    /// A value is out of its range.
    #[error("{0}")]
    Invalid(String),
    /// No more registrations of this kind fit in the group.
    #[error(
        "group `{group}` already has {max} registrations of kind `{kind}`, the most that `max_registrations` \
         allows: deregister nodes that are gone permanently (`sentinel-runner deregister {kind} HOST:PORT --group \
         {group}`), or raise `max_registrations`"
    )]
    Full {
        /// The group that is full.
        group: Group,
        /// The kind that has no room.
        kind: Kind,
        /// The bound.
        max: u16,
        /// How long it takes until a registration becomes stale, if its node does not register again.
        frees: Option<Duration>,
    },
    /// There is no room for another group.
    #[error(
        "there is no room for group `{group}`: the broker has as many groups as `max_groups` allows ({max}), \
         or too many in the part of the store that this name belongs to. List the groups with `GET /groups`; \
         delete unused groups with `DELETE /groups/{{group}}`, or raise `max_groups`"
    )]
    TooManyGroups {
        /// The group for which there is no room.
        group: Group,
        /// The bound.
        max: u16,
    },
    /// The component's variables are unusable.
    #[error(transparent)]
    Misconfigured(#[from] BadSettings),
    /// The variables are unusable, and the client may not see the reasons.
    #[error(
        "the broker is misconfigured: the reasons are in its log, and in this answer if you send the token"
    )]
    MisconfiguredWithoutDetails(BadSettings),
    /// The store failed. Its own message is only logged: it may reveal more about the host than a client
    /// should know.
    #[error(
        "the key-value store failed, and the request may or may not have taken effect; it is safe to retry"
    )]
    Store(#[from] StoreError),
}

impl Error {
    /// The status of the problem.
    #[must_use]
    pub fn status(&self) -> StatusCode {
        match self {
            Self::Malformed(_) => StatusCode::BAD_REQUEST,
            Self::Unauthorized { .. } => StatusCode::UNAUTHORIZED,
            Self::Forbidden { .. } | Self::CrossSite => StatusCode::FORBIDDEN,
            Self::NotFound(_) => StatusCode::NOT_FOUND,
            Self::MethodNotAllowed => StatusCode::METHOD_NOT_ALLOWED,
            Self::TooSlow => StatusCode::REQUEST_TIMEOUT,
            Self::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Self::NotJson => StatusCode::UNSUPPORTED_MEDIA_TYPE,
            Self::Invalid(_) => StatusCode::UNPROCESSABLE_ENTITY,
            Self::Full { .. } | Self::TooManyGroups { .. } => StatusCode::CONFLICT,
            Self::Misconfigured(_) | Self::MisconfiguredWithoutDetails(_) | Self::Store(_) => {
                StatusCode::SERVICE_UNAVAILABLE
            }
        }
    }

    /// The problem document.
    #[must_use]
    pub fn problem(&self) -> Problem {
        let status = self.status();
        Problem {
            kind: "about:blank".into(),
            title: status.canonical_reason().unwrap_or_default().into(),
            status: status.as_u16(),
            detail: self.to_string(),
        }
    }

    /// Adds the HTTP headers of this problem, such as `Retry-After`.
    fn add_remedy(&self, headers: &mut HeaderMap) {
        match self {
            Self::Unauthorized { reads } => {
                headers.append(WWW_AUTHENTICATE, HeaderValue::from_static(BEARER));
                if *reads {
                    headers.append(WWW_AUTHENTICATE, HeaderValue::from_static(BASIC));
                }
            }
            Self::Misconfigured(_) | Self::MisconfiguredWithoutDetails(_) | Self::Store(_) => {
                headers.insert(RETRY_AFTER, HeaderValue::from_static("1"));
            }
            // The time is an estimate: that node may register again, and another node may be deleted earlier.
            Self::Full { frees: Some(frees), .. } => {
                headers.insert(RETRY_AFTER, (frees.as_secs() + 1).min(MINUTE).into());
            }
            _ => {}
        }
    }
}

/// The response carries the error as an extension, for a caller that shows it in another form.
impl IntoResponse for Error {
    fn into_response(self) -> Response {
        match &self {
            Self::Store(error) => eprintln!("sentinel-broker: {error}"),
            Self::Misconfigured(bad) | Self::MisconfiguredWithoutDetails(bad) => {
                eprintln!("sentinel-broker: {bad}");
            }
            _ => {}
        }
        // Encoding strings and a number can't fail. The fallback is the status without a body.
        let body = serde_json::to_vec(&self.problem()).map_or_else(|_| Body::empty(), Body::from);
        let mut response = (self.status(), [(CONTENT_TYPE, PROBLEM_JSON)], body).into_response();
        self.add_remedy(response.headers_mut());
        response.extensions_mut().insert(self);
        response
    }
}
