//! The roster over HTTP.

use std::fmt;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use anyhow::Context as _;
use broker_fn::api::{Addr, Expected, Group, Kind, Outcome, Problem, Register, Registration, Roster};
use reqwest::header::{ACCEPT, CONTENT_TYPE, ETAG, IF_NONE_MATCH, RETRY_AFTER};
use reqwest::{Client, RequestBuilder, StatusCode, Url, redirect};
use tokio::time::Instant;

use crate::node::secret::Secret;
use crate::words::bytes;

pub mod watch;

/// How long one request may take.
pub const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);

/// The longest body, in bytes. A roster of 64 nodes of each kind with long names has 50 kB.
const LONGEST_BODY: usize = 1 << 20;

/// The address of a broker, and the group.
#[derive(Debug, Clone)]
pub struct BrokerAt {
    pub url: Url,
    pub token: Option<Secret>,
    /// The group, if it is not the broker's default.
    pub group: Option<Group>,
}

/// The longest pause between requests that a broker, or a proxy in front of it, can ask for.
const LONGEST_REST: Duration = Duration::from_secs(60);

/// How long an idle connection is kept. Some proxies close a connection after five idle seconds. Requests
/// that wait follow each other without a pause, so they reuse a connection even with a short limit.
const KEPT: Duration = Duration::from_secs(4);

/// How long a connection may be silent before TCP keepalive probes the broker. A broker whose machine has
/// failed does not close the connection.
const KEEPALIVE: Duration = Duration::from_secs(5);

/// A broker, and the group.
#[derive(Debug)]
pub struct Broker {
    client: Client,
    base: Url,
    health_check: Url,
    token: Option<Secret>,
    /// If the broker has asked for a pause: when the pause ends, and the answer that asked for it.
    rests: Mutex<Option<(Instant, BrokerError)>>,
}

/// A roster and its entity tag. An older broker sends no tag.
#[derive(Debug, Clone)]
pub struct TaggedRoster {
    pub roster: Roster,
    tag: Option<String>,
}

/// What was requested, for an error.
#[derive(Debug, Clone)]
pub struct RequestUrl {
    pub url: String,
    /// The URL of the broker's health check.
    pub health_check: String,
}

impl fmt::Display for RequestUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.url)
    }
}

/// The body of a successful answer, and its entity tag.
struct HttpAnswer {
    tag: Option<String>,
    body: Vec<u8>,
}

/// Why the broker gave no usable answer.
#[derive(Debug, Clone, thiserror::Error)]
pub enum BrokerError {
    #[error("the broker at {url} can't be reached: {cause}")]
    Unreachable { url: RequestUrl, cause: String },
    /// The broker answered with a status other than success.
    #[error("the broker at {url} answered {status}: {detail}")]
    Status {
        url: RequestUrl,
        status: StatusCode,
        /// The detail of the problem document, or the start of the body.
        detail: String,
        /// How long the broker asks to wait before the next try.
        retry_after: Option<Duration>,
    },
    /// The server at that address is not a broker.
    #[error("the answer from {url} is not a roster: {cause}")]
    NotARoster { url: RequestUrl, cause: String },
}

impl BrokerError {
    /// Whether a retry may succeed.
    #[must_use]
    pub fn may_pass(&self) -> bool {
        match self {
            BrokerError::Unreachable { .. } => true,
            BrokerError::Status { status, .. } => {
                // A full group has room again after a node has left.
                status.is_server_error()
                    || [StatusCode::CONFLICT, StatusCode::TOO_MANY_REQUESTS].contains(status)
            }
            BrokerError::NotARoster { .. } => false,
        }
    }

    /// The shortest wait before a retry.
    #[must_use]
    pub fn retry_after(&self) -> Duration {
        match self {
            BrokerError::Status { retry_after, .. } => retry_after.unwrap_or_default().min(LONGEST_REST),
            BrokerError::Unreachable { .. } | BrokerError::NotARoster { .. } => Duration::ZERO,
        }
    }

    /// Whether the answer is that the known roster is still current.
    fn is_not_modified(&self) -> bool {
        matches!(self, BrokerError::Status { status: StatusCode::NOT_MODIFIED, .. })
    }

    /// Whether the broker asks for a pause of all requests, not of one only.
    fn is_of_all_requests(&self) -> bool {
        let all = [StatusCode::SERVICE_UNAVAILABLE, StatusCode::TOO_MANY_REQUESTS];
        matches!(self, BrokerError::Status { status, .. } if all.contains(status))
    }

    #[must_use]
    pub fn hint(&self) -> String {
        match self {
            BrokerError::Status { status: StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN, .. } => {
                "set --token-file to a token that the broker accepts for this command (docs/broker.md lists \
                 which)"
                    .into()
            }
            BrokerError::Status { status: StatusCode::CONFLICT, .. } => {
                "deregister nodes that are gone permanently (`sentinel-runner deregister`), or raise the \
                 limit in the broker's settings"
                    .into()
            }
            BrokerError::Status { status, .. } if status.is_redirection() => {
                "set --broker to the address that the broker redirects to".into()
            }
            BrokerError::Unreachable { url, .. }
            | BrokerError::Status { url, .. }
            | BrokerError::NotARoster { url, .. } => {
                format!("check --broker: `curl {}` must print {{\"status\":\"ok\"}}", url.health_check)
            }
        }
    }
}

impl Broker {
    /// The broker at that address, with the paths of the group, or the paths of the default group.
    ///
    /// # Errors
    ///
    /// If the system's certificates can't be read.
    pub fn new(at: &BrokerAt) -> anyhow::Result<Self> {
        let BrokerAt { url: base, token, group } = at;
        // Installing fails if a provider is already installed. No code installs another provider.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let builder = match base.scheme() {
            // Not every container has certificates, and reading them takes a while. Spin's HTTP server leaves
            // Nagle's algorithm on: on a kept connection about half the answers wait 44 ms for a delayed ACK
            // (measured on Spin 4.1). A new connection costs 0.3 ms.
            "http" => Client::builder().tls_certs_only([]).pool_max_idle_per_host(0),
            // A new connection costs two more round trips and a handshake. TLS ends at a proxy, which does
            // not have that delay.
            _ => Client::builder().pool_idle_timeout(KEPT).pool_max_idle_per_host(1),
        };
        let client = builder
            .user_agent(concat!("sentinel-runner/", env!("CARGO_PKG_VERSION")))
            .timeout(REQUEST_TIMEOUT)
            .connect_timeout(REQUEST_TIMEOUT)
            .tcp_keepalive(KEEPALIVE)
            .tcp_keepalive_interval(KEEPALIVE / 5)
            .tcp_keepalive_retries(3)
            .redirect(redirect::Policy::none())
            .build()
            .context(
                "https needs the broker's CA certificates; set SSL_CERT_FILE to a file that contains them",
            )?;
        let (mut base, mut health_check) = (base.clone(), base.clone());
        if let Ok(mut segments) = health_check.path_segments_mut() {
            segments.pop_if_empty().push("healthcheck");
        }
        if let Ok(mut segments) = base.path_segments_mut() {
            segments.pop_if_empty();
            if let Some(group) = group {
                segments.extend(["groups", group.as_str()]);
            }
        }
        Ok(Self { client, base, health_check, token: token.clone(), rests: Mutex::default() })
    }

    /// Reads the roster. This takes `patience` at most.
    ///
    /// # Errors
    ///
    /// If the broker can't be reached, refuses, or answers something else.
    pub async fn roster(&self, patience: Duration) -> Result<Roster, BrokerError> {
        Ok(self.ask(None, None, patience).await?.roster)
    }

    /// Reads the roster. This takes `patience` at most. If the roster is still the `known` one, the result is
    /// an error for which [`is_not_modified`](BrokerError::is_not_modified) holds. The broker may `wait` that
    /// many seconds for a change.
    async fn ask(
        &self,
        known: Option<&str>,
        wait: Option<u64>,
        patience: Duration,
    ) -> Result<TaggedRoster, BrokerError> {
        let mut url = self.base.clone();
        if let Some(wait) = wait {
            url.query_pairs_mut().append_pair("wait", &format!("{wait}s"));
        }
        let patience = patience.min(REQUEST_TIMEOUT) + Duration::from_secs(wait.unwrap_or_default());
        let mut request = self.client.get(url).timeout(patience).header(ACCEPT, "application/json");
        if let Some(known) = known {
            request = request.header(IF_NONE_MATCH, known);
        }
        let HttpAnswer { tag, body } = self.send(&self.base, request).await?;
        let roster: Roster =
            serde_json::from_slice(&body).map_err(|error| self.not_a_roster(error.to_string()))?;
        match roster.expected {
            Expected { redis: 0, .. } | Expected { sentinels: 0, .. } => {
                Err(self.not_a_roster("it expects no nodes".into()))
            }
            Expected { .. } => Ok(TaggedRoster { roster, tag }),
        }
    }

    fn not_a_roster(&self, cause: String) -> BrokerError {
        BrokerError::NotARoster { url: self.requested(&self.base), cause }
    }

    fn requested(&self, url: &Url) -> RequestUrl {
        RequestUrl { url: url.to_string(), health_check: self.health_check.to_string() }
    }

    /// Registers a node, or renews its registration.
    ///
    /// # Errors
    ///
    /// If the broker can't be reached, refuses, or answers something else.
    pub async fn register(&self, kind: Kind, node: &Register) -> Result<Registration, BrokerError> {
        let mut url = self.base.clone();
        if let Ok(mut segments) = url.path_segments_mut() {
            segments.pop_if_empty().push(kind.as_str());
        }
        let body = serde_json::to_vec(node).unwrap_or_default();
        let request = self.client.post(url.clone()).header(CONTENT_TYPE, "application/json").body(body);
        let answer = self.send(&url, request).await?;
        serde_json::from_slice(&answer.body)
            .map_err(|error| BrokerError::NotARoster { url: self.requested(&url), cause: error.to_string() })
    }

    /// Deregisters a node.
    ///
    /// # Errors
    ///
    /// If the broker can't be reached or refuses.
    pub async fn deregister(&self, kind: Kind, node: &Addr) -> Result<(), BrokerError> {
        let mut url = self.base.clone();
        if let Ok(mut segments) = url.path_segments_mut() {
            segments.pop_if_empty().push(kind.as_str()).push(&node.to_string());
        }
        self.send(&url, self.client.delete(url.clone())).await.map(drop)
    }

    /// Reports the outcome of the run to the broker.
    ///
    /// # Errors
    ///
    /// If the broker can't be reached or refuses.
    pub async fn report(&self, outcome: &Outcome) -> Result<(), BrokerError> {
        let mut url = self.base.clone();
        if let Ok(mut segments) = url.path_segments_mut() {
            segments.pop_if_empty().push("outcome");
        }
        let body = serde_json::to_vec(outcome).unwrap_or_default();
        let request = self.client.put(url.clone()).header(CONTENT_TYPE, "application/json").body(body);
        // This is the last request, and there may be no time to wait for the end of a pause. A caller that
        // repeats it waits between the attempts.
        self.send_now(&url, request).await.map(drop)
    }

    /// Sends a request. While the broker has asked for a pause, nothing is sent, and its last answer is
    /// returned again.
    async fn send(&self, url: &Url, request: RequestBuilder) -> Result<HttpAnswer, BrokerError> {
        if let Some((until, error)) = &*self.rests.lock().unwrap_or_else(PoisonError::into_inner)
            && Instant::now() < *until
        {
            return Err(error.clone());
        }
        let answer = self.send_now(url, request).await;
        if let Err(error) = &answer
            && error.is_of_all_requests()
        {
            let rests = (Instant::now() + error.retry_after(), error.clone());
            *self.rests.lock().unwrap_or_else(PoisonError::into_inner) = Some(rests);
        }
        answer
    }

    async fn send_now(&self, url: &Url, request: RequestBuilder) -> Result<HttpAnswer, BrokerError> {
        let request = match &self.token {
            Some(token) => request.bearer_auth(token.reveal()),
            None => request,
        };
        let unreachable = |error: reqwest::Error| BrokerError::Unreachable {
            url: self.requested(url),
            cause: innermost(&error),
        };
        let mut response = request.send().await.map_err(unreachable)?;
        let status = response.status();
        let retry_after =
            response.headers().get(RETRY_AFTER).and_then(|value| value.to_str().ok()?.parse().ok());
        let retry_after = retry_after.map(Duration::from_secs);
        let tag = response.headers().get(ETAG).and_then(|value| Some(value.to_str().ok()?.to_owned()));
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(unreachable)? {
            if body.len() + chunk.len() > LONGEST_BODY {
                let cause = format!("it is longer than {}", bytes(LONGEST_BODY as u64));
                return Err(BrokerError::NotARoster { url: self.requested(url), cause });
            }
            body.extend_from_slice(&chunk);
        }
        if status.is_success() {
            return Ok(HttpAnswer { tag, body });
        }
        let detail = match serde_json::from_slice::<Problem>(&body) {
            Ok(problem) => problem.detail,
            Err(_) => String::from_utf8_lossy(&body).chars().take(200).collect(),
        };
        Err(BrokerError::Status { url: self.requested(url), status, detail, retry_after })
    }
}

/// reqwest's own text repeats the URL. The innermost cause is what happened.
fn innermost(error: &reqwest::Error) -> String {
    if error.is_timeout() {
        return "it did not answer in time".to_owned();
    }
    let mut cause: &dyn std::error::Error = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_health_check_is_at_the_broker_and_not_in_a_group() {
        for (url, health_check) in [
            ("http://broker:3000", "http://broker:3000/healthcheck"),
            ("https://example.com/redis/", "https://example.com/redis/healthcheck"),
        ] {
            let group = Some("cache".parse().unwrap());
            let at = BrokerAt { url: url.parse().unwrap(), token: None, group };
            let error = Broker::new(&at).unwrap().not_a_roster(String::new());
            let hint = error.hint();
            assert!(hint.contains(&format!("`curl {health_check}`")), "{hint}");
        }
    }
}
