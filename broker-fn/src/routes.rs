//! HTTP → registry → HTTP: an axum router over any [`Store`].

use std::convert::Infallible;
use std::error::Error as StdError;
use std::iter::successors;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, HttpBody};
use axum::extract::{Extension, FromRequestParts, RawPathParams, Request};
use axum::http::header::{
    CACHE_CONTROL, CONTENT_LENGTH, CONTENT_TYPE, ETAG, IF_NONE_MATCH, LOCATION, VARY, X_CONTENT_TYPE_OPTIONS,
};
use axum::http::request::Parts;
use axum::http::uri::Authority;
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodRouter, get, put};
use bytes::Bytes;
use http_body::{Frame, SizeHint};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tower_service::Service;

use crate::access::{self, HEALTHCHECK};
use crate::api::{
    Addr, Expected, Group, GroupSummary, Groups, Health, Host, Kind, MAX_BODY_BYTES, Missing, Outcome,
    RedisList, Register, Roster, SentinelList, Timestamp, Ttl,
};
use crate::page::{self, CommandTarget};
use crate::problem::Error;
use crate::registry::{self, Bounds, EncodedMembers, Members, Node, Registered, Registry, Store, StoreError};
use crate::settings::{Audience, BadSettings, Settings};
use crate::{metrics, openapi, outcome};

#[cfg(test)]
mod tests;

/// Spin adds this header to every request, after any header of the same name that the client sent.
const CLIENT_ADDR: &str = "spin-client-addr";
const FORWARDED_FOR: &str = "x-forwarded-for";

/// The registry and settings for one request. They are an extension of the request, so that one router serves
/// all requests.
struct Broker<S> {
    settings: Arc<Settings>,
    registry: Registry<S>,
}

type Shared<S> = Extension<Arc<Broker<S>>>;
type Answer = Result<Response, Error>;

/// Answers one request with `router`, which [`router`] made for the same kind of store. The request is `None`
/// if the host received one that can't be read. If the settings are unusable, the answer is a `503`.
pub async fn respond<S: Store>(
    router: &Router,
    settings: Result<Arc<Settings>, BadSettings>,
    registry: Registry<S>,
    request: Option<Request>,
) -> Response {
    let method = request.as_ref().map_or(Method::default(), |request| request.method().clone());
    let as_page =
        request.as_ref().is_some_and(|request| page::is_asked_for(request.method(), request.headers()));
    let mut response = match admit(settings, registry, request) {
        Ok(request) => router.clone().call(request).await.unwrap_or_else(|never: Infallible| match never {}),
        Err(error) => error.into_response(),
    };
    if let Some(error) = response.extensions_mut().remove::<Error>()
        && as_page
    {
        page::problem(&error).write_to(&mut response);
    }
    complete(&method, &mut response);
    response
}

/// Admits a request to its route, and attaches the broker that answers it.
fn admit<S: Store>(
    settings: Result<Arc<Settings>, BadSettings>,
    registry: Registry<S>,
    request: Option<Request>,
) -> Result<Request, Error> {
    let settings = match settings {
        Ok(settings) => settings,
        Err(bad) => {
            let may_see = match &bad.audience {
                Audience::Everybody => true,
                Audience::WithToken(tokens) => {
                    request.is_some_and(|request| access::is_known(tokens, &request))
                }
                Audience::Nobody => false,
            };
            return Err(if may_see {
                Error::Misconfigured(bad)
            } else {
                Error::MisconfiguredWithoutDetails(bad)
            });
        }
    };
    let mut request =
        request.ok_or_else(|| Error::Malformed("the request line or a header is not valid HTTP".into()))?;
    access::check_site(&request)?;
    // The token is checked before routing, so that without it all paths look alike.
    if let Some(tokens) = &settings.tokens {
        access::check(tokens, &request)?;
    }
    request.extensions_mut().insert(Arc::new(Broker { settings, registry }));
    Ok(request)
}

/// Sets what all answers have in common.
fn complete(method: &Method, response: &mut Response) {
    let length = response.body().size_hint().exact();
    // axum adds a length to an answer without a body. RFC 9110 (8.6) forbids it in a `204`, and in a `304` it
    // allows only the length of the body that is not sent.
    let has_no_content = [StatusCode::NO_CONTENT, StatusCode::NOT_MODIFIED].contains(&response.status());
    let headers = response.headers_mut();
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    if access::reads(method) {
        // Any read may end in an error, which a browser gets as a page.
        headers.insert(VARY, HeaderValue::from_static("Accept"));
    }
    if has_no_content {
        headers.remove(CONTENT_LENGTH);
    } else if let Some(length) = length {
        // An answer from a route has a length already. For HEAD there is no body to derive it from.
        headers.entry(CONTENT_LENGTH).or_insert(length.into());
    }
    if method == Method::HEAD {
        // A host compares the length with the body: over HTTP/2, Spin 4.1 resets a stream that promised more
        // than it sends. A server may leave the length out (RFC 9110, 8.6).
        response.headers_mut().remove(CONTENT_LENGTH);
        *response.body_mut() = Body::empty();
    }
}

/// The router for every request. It is kept, because building it takes longer than answering from it.
pub fn router<S: Store>() -> Router {
    routes::<S>()
        .into_iter()
        .fold(Router::new(), |router, (path, methods)| router.route(&path, methods))
        .fallback(async || Error::NotFound("nothing is at this path".into()))
        .method_not_allowed_fallback(async || Error::MethodNotAllowed)
}

/// Every path and its methods.
fn routes<S: Store>() -> Vec<(String, MethodRouter)> {
    let mut routes = vec![
        ("/groups".to_owned(), get(groups::<S>)),
        ("/groups/{group}".to_owned(), get(roster::<S>).delete(delete_group::<S>)),
        ("/config".to_owned(), get(config::<S>)),
        ("/metrics".to_owned(), get(metrics::<S>)),
        ("/openapi.json".to_owned(), get(openapi)),
        (HEALTHCHECK.to_owned(), get(healthcheck::<S>)),
    ];
    for prefix in ["", "/groups/{group}"] {
        for kind in Kind::ALL {
            let list = move |broker: Shared<S>, scope: Scope| list(kind, broker, scope);
            let register = move |broker: Shared<S>, scope: Scope, request: Request| {
                register(kind, broker, scope, request)
            };
            let show = move |broker: Shared<S>, scope: Scope, addr: Addr| show(kind, broker, scope, addr);
            let deregister =
                move |broker: Shared<S>, scope: Scope, addr: Addr| deregister(kind, broker, scope, addr);
            routes.push((format!("{prefix}/{kind}"), get(list).post(register)));
            routes.push((format!("{prefix}/{kind}/{{addr}}"), get(show).delete(deregister)));
        }
        routes.push((format!("{prefix}/"), get(roster::<S>).delete(delete_group::<S>)));
        routes.push((format!("{prefix}/outcome"), put(put_outcome::<S>)));
    }
    routes
}

/// The most groups on a page of `/groups`.
const GROUPS_ON_A_PAGE: usize = 100;

async fn groups<S: Store>(Extension(broker): Shared<S>, request: Request) -> Answer {
    let after = query_parameter(&request, "after")
        .map(|name| {
            name.parse().map_err(|error| {
                Error::Invalid(format!("`after` is {name:?}, which is not a group name: {error}"))
            })
        })
        .transpose()?;
    let page = Some(GROUPS_ON_A_PAGE);
    let (groups, has_more) = broker.registry.groups(after.as_ref(), page, Timestamp::now()).await?;
    let expected = broker.settings.config.expected;
    let groups: Vec<_> = groups
        .into_iter()
        .map(|(group, counts)| GroupSummary {
            group,
            redis: counts.registered.redis,
            sentinels: counts.registered.sentinels,
            stale: counts.stale.redis + counts.stale.sentinels,
            ready: counts.is_ready(expected),
        })
        .collect();
    let next = groups.last().filter(|_| has_more).map(|last| format!("/groups?after={}", last.group));
    let groups = Groups { groups, next };
    if page::is_asked_for(request.method(), request.headers()) {
        return Ok(page::groups(&groups, Timestamp::now()).into_response());
    }
    json(StatusCode::OK, &groups)
}

async fn config<S: Store>(Extension(broker): Shared<S>) -> Answer {
    json(StatusCode::OK, &broker.settings.config)
}

async fn healthcheck<S: Store>(Extension(broker): Shared<S>) -> Answer {
    broker.registry.check().await?;
    json(StatusCode::OK, &Health { status: "ok".into() })
}

async fn metrics<S: Store>(Extension(broker): Shared<S>) -> Answer {
    let (groups, _) = broker.registry.groups(None, None, Timestamp::now()).await?;
    let metrics = metrics::render(&groups, &broker.settings.config);
    Ok(([(CONTENT_TYPE, metrics::CONTENT_TYPE)], metrics).into_response())
}

async fn openapi() -> Response {
    ([(CONTENT_TYPE, "application/json")], openapi::DOCUMENT).into_response()
}

async fn roster<S: Store>(Extension(broker): Shared<S>, scope: Scope, request: Request) -> Answer {
    let group = scope.group(&broker.settings);
    let expected = broker.settings.config.expected;
    let registry = &broker.registry;
    let known = EntityTags::of(request.headers());
    let members = match wait(&request)? {
        None => registry.encoded_members(&group, Timestamp::now()).await?,
        Some(wait) => {
            let mut first = None;
            let is_known = |members: &EncodedMembers| match &known {
                Some(known) => known.have(&entity_tag(members, expected)),
                None => *first.get_or_insert_with(|| members.tag.clone()) == members.tag,
            };
            registry.changed_members(&group, is_known, wait).await?
        }
    };
    let missing = expected.missing(members.fresh.redis, members.fresh.sentinels);
    let head = RosterHead { group, ready: missing.is_nothing(), expected, missing };
    if page::is_asked_for(request.method(), request.headers()) {
        let Members { redis, sentinels, outcome, last_verified } = members.decode()?;
        let RosterHead { group, ready, expected, missing } = head;
        let roster = Roster { group, ready, expected, missing, redis, sentinels, outcome, last_verified };
        let target = CommandTarget {
            url: own_url(&request),
            group: scope.0.filter(|group| *group != broker.settings.config.default_group),
            asks_token: broker.settings.tokens.is_some(),
        };
        return Ok(page::status(&roster, &target, Timestamp::now()).into_response());
    }
    let tag = entity_tag(&members, expected);
    let mut response = match known.filter(|known| known.have(&tag)) {
        Some(_) => StatusCode::NOT_MODIFIED.into_response(),
        None => encoded(StatusCode::OK, head.with(&members)?),
    };
    response
        .headers_mut()
        .insert(ETAG, HeaderValue::try_from(tag).map_err(|error| StoreError(error.to_string()))?);
    Ok(response)
}

/// The tag of a roster. It is weak: two rosters with the same tag may differ in when nodes were last seen.
fn entity_tag(members: &EncodedMembers, expected: Expected) -> String {
    let Expected { redis, sentinels, quorum } = expected;
    format!("W/\"{}-{redis}-{sentinels}-{quorum}\"", members.tag)
}

/// The entity tags of `If-None-Match` (RFC 9110, 13.1.2).
enum EntityTags {
    Any,
    Some(Vec<String>),
}

impl EntityTags {
    /// `None` if the client sends none.
    fn of(headers: &HeaderMap) -> Option<Self> {
        let lines = headers.get_all(IF_NONE_MATCH).iter().filter_map(|line| line.to_str().ok());
        // The broker's tags contain no comma, and `*` is never part of a list.
        let lines: Vec<_> = lines.map(str::trim).collect();
        let tags = lines.iter().flat_map(|line| line.split(',')).map(|tag| tag.trim().to_owned());
        match *lines {
            [] => None,
            ["*"] => Some(Self::Any),
            _ => Some(Self::Some(tags.collect())),
        }
    }

    /// Whether a tag is one of these, by weak comparison.
    fn have(&self, tag: &str) -> bool {
        match self {
            Self::Any => true,
            Self::Some(tags) => {
                tags.iter().any(|known| known.trim_start_matches("W/") == tag.trim_start_matches("W/"))
            }
        }
    }
}

/// The longest that a request may wait for the roster to change. Many proxies give up after 30 or 60 seconds.
const MAX_WAIT: Duration = Duration::from_secs(30);

/// How long the request wants to wait for the roster to change.
fn wait(request: &Request) -> Result<Option<Duration>, Error> {
    let Some(wait) = query_parameter(request, "wait") else { return Ok(None) };
    let digits = wait.strip_suffix('s').unwrap_or(&wait);
    let seconds =
        digits.parse().ok().filter(|_| digits.starts_with(|first: char| ('1'..='9').contains(&first)));
    let time =
        seconds.map(Duration::from_secs).filter(|time| (Duration::from_secs(1)..=MAX_WAIT).contains(time));
    time.map(Some).ok_or_else(|| {
        let most = MAX_WAIT.as_secs();
        Error::Invalid(format!(
            "`wait` is {wait:?}: it must be a whole number of seconds from 1 to {most}, like `20s`"
        ))
    })
}

/// The URL at which the client has found this broker, if a command can contain it unquoted.
fn own_url(request: &Request) -> Option<String> {
    let header = |name: &str| request.headers().get(name).and_then(|value| value.to_str().ok());
    let authority = request.uri().authority().map(Authority::as_str).or(header("host"))?;
    let is_plain = |c: char| c.is_ascii_alphanumeric() || ".-:[]".contains(c);
    // The last header is Spin's own. `X-Forwarded-Proto` is from a proxy that ends TLS. If a client forges
    // the header, only its own answer is wrong.
    let spins =
        request.headers().get_all("spin-full-url").iter().next_back().and_then(|url| url.to_str().ok());
    let is_https =
        spins.is_some_and(|url| url.starts_with("https://")) || header("x-forwarded-proto") == Some("https");
    let scheme = if is_https { "https" } else { "http" };
    authority.chars().all(is_plain).then(|| format!("{scheme}://{authority}"))
}

/// The beginning of a [`Roster`]: everything except what the store holds, which is encoded already.
#[derive(Serialize)]
struct RosterHead {
    group: Group,
    ready: bool,
    expected: Expected,
    missing: Missing,
}

impl RosterHead {
    /// The whole roster as JSON: one object made of two.
    fn with(&self, members: &EncodedMembers) -> Result<Vec<u8>, StoreError> {
        let mut roster = registry::encode(self)?;
        roster.pop();
        roster.push(b',');
        roster.extend_from_slice(members.json.get(1..).unwrap_or_default());
        Ok(roster)
    }
}

async fn delete_group<S: Store>(Extension(broker): Shared<S>, scope: Scope) -> Answer {
    broker.registry.delete_group(&scope.group(&broker.settings)).await?;
    Ok(StatusCode::NO_CONTENT.into_response())
}

async fn put_outcome<S: Store>(Extension(broker): Shared<S>, scope: Scope, request: Request) -> Answer {
    let (parts, body) = request.into_parts();
    let outcome: Outcome = parse_body(&parts.headers, body).await?.ok_or_else(|| {
        Error::Invalid(
            "the body is missing: send the outcome, like `{\"verified\": true, \"master\": …}`".into(),
        )
    })?;
    let (group, now) = (scope.group(&broker.settings), Timestamp::now());
    let members = broker.registry.members(&group, now).await?;
    outcome::check(&outcome, &members, now)?;
    let verified = outcome::verified(&outcome, &members, broker.settings.config.expected, now);
    broker.registry.put_outcome(&group, &outcome, verified.as_ref()).await?;
    Ok(StatusCode::NO_CONTENT.into_response())
}

async fn list<S: Store>(kind: Kind, Extension(broker): Shared<S>, scope: Scope) -> Answer {
    let group = scope.group(&broker.settings);
    let Members { redis, sentinels, .. } = broker.registry.members(&group, Timestamp::now()).await?;
    match kind {
        Kind::Redis => json(StatusCode::OK, &RedisList { redis }),
        Kind::Sentinel => json(StatusCode::OK, &SentinelList { sentinels }),
    }
}

async fn register<S: Store>(
    kind: Kind,
    Extension(broker): Shared<S>,
    scope: Scope,
    request: Request,
) -> Answer {
    // The time is taken before the body is read, so that the order of registrations is the order of arrival.
    let now = Timestamp::now();
    let group = scope.group(&broker.settings);
    let settings = &broker.settings.config;
    let (parts, body) = request.into_parts();
    let Register { host, port, run_id, ttl, master } =
        parse_body(&parts.headers, body).await?.unwrap_or_default();
    let host = match host {
        Some(host) => host,
        None => caller(&parts.headers, settings.trusted_proxy_hops)?,
    };
    let addr = Addr { host, port: port.unwrap_or(kind.default_port()) };
    let (max, max_groups) = (settings.max_registrations, settings.max_groups);
    let bounds = Bounds {
        registrations: max.into(),
        // The default group always has room, even if others fill the store.
        groups: (group != settings.default_group).then_some(max_groups.into()),
    };
    let node = Node { addr, run_id, ttl, master };
    match broker.registry.register(&group, kind, node, now, bounds).await? {
        Registered::First(registration) => {
            // RFC 3986 allows no brackets in a path.
            let addr = registration.addr.to_string().replace('[', "%5B").replace(']', "%5D");
            let location = format!("{}/{kind}/{addr}", scope.prefix());
            Ok(([(LOCATION, location)], json(StatusCode::CREATED, &registration)?).into_response())
        }
        Registered::Again(registration) => json(StatusCode::OK, &registration),
        Registered::Full { frees } => Err(Error::Full { group, kind, max, frees }),
        Registered::TooManyGroups => Err(Error::TooManyGroups { group, max: max_groups }),
    }
}

async fn show<S: Store>(kind: Kind, Extension(broker): Shared<S>, scope: Scope, addr: Addr) -> Answer {
    let group = scope.group(&broker.settings);
    match broker.registry.registration(&group, kind, &addr, Timestamp::now()).await? {
        Some(registration) => json(StatusCode::OK, &registration),
        None => Err(Error::NotFound(format!(
            "no node of kind `{kind}` is registered at `{addr}` in group `{group}`"
        ))),
    }
}

async fn deregister<S: Store>(kind: Kind, Extension(broker): Shared<S>, scope: Scope, addr: Addr) -> Answer {
    broker.registry.deregister(&scope.group(&broker.settings), kind, &addr).await?;
    Ok(StatusCode::NO_CONTENT.into_response())
}

/// The group in a path, if there is one.
struct Scope(Option<Group>);

impl Scope {
    /// The group that the path acts on.
    fn group(&self, settings: &Settings) -> Group {
        self.0.as_ref().unwrap_or(&settings.config.default_group).clone()
    }

    /// The part of the path before the part that is the same for all groups.
    fn prefix(&self) -> String {
        self.0.as_ref().map(|group| format!("/groups/{group}")).unwrap_or_default()
    }
}

impl<S: Sync> FromRequestParts<S> for Scope {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Error> {
        let Some(name) = path_parameter(parts, "group").await? else { return Ok(Self(None)) };
        match name.parse() {
            Ok(group) => Ok(Self(Some(group))),
            Err(error) => Err(Error::Invalid(format!("`{name}` is not a group name: {error}"))),
        }
    }
}

impl<S: Sync> FromRequestParts<S> for Addr {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Error> {
        let text = path_parameter(parts, "addr").await?.unwrap_or_default();
        text.parse().map_err(|error| Error::Invalid(format!("`{text}` is not an address: {error}")))
    }
}

/// A named part of the path, percent-decoded.
async fn path_parameter(parts: &mut Parts, name: &str) -> Result<Option<String>, Error> {
    let parameters = RawPathParams::from_request_parts(parts, &())
        .await
        .map_err(|_| Error::Malformed("the percent-decoded path is not UTF-8".into()))?;
    Ok(parameters.iter().find(|(key, _)| *key == name).map(|(_, value)| value.to_owned()))
}

/// The address of the caller, as far as it can be trusted.
fn caller(headers: &HeaderMap, trusted_proxy_hops: u16) -> Result<Host, Error> {
    let unknown = |why: &str| Error::Invalid(format!("{why}: send `host` in the body"));
    let text = |value: &'_ HeaderValue| value.to_str().map(str::to_owned).unwrap_or_default();
    let value = match usize::from(trusted_proxy_hops).checked_sub(1) {
        // Only the last header is Spin's. The client may have sent the headers before the last one.
        None => headers.get_all(CLIENT_ADDR).iter().next_back().map(text),
        // Each proxy appends the address that it saw: with n trusted proxies, the caller is the n-th from the
        // right.
        Some(skip) => {
            let lines = headers.get_all(FORWARDED_FOR).iter().map(text).collect::<Vec<_>>().join(",");
            lines.rsplit(',').nth(skip).map(str::to_owned)
        }
    };
    let value = value.ok_or_else(|| unknown("the broker does not know the address of the caller"))?;
    let ip =
        parse_ip(value.trim()).ok_or_else(|| unknown("the address of the caller is not an IP address"))?;
    Host::try_from(ip).map_err(|error| unknown(&format!("the request came from {ip}, but {error}")))
}

/// An address with or without a port, an IPv6 address with or without brackets.
fn parse_ip(text: &str) -> Option<IpAddr> {
    let bare = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(text);
    text.parse::<SocketAddr>().map(|addr| addr.ip()).or_else(|_| bare.parse()).ok()
}

/// A parameter of the query, percent-decoded. If there are several, the first.
fn query_parameter(request: &Request, name: &str) -> Option<String> {
    let query = request.uri().query()?;
    form_urlencoded::parse(query.as_bytes()).find(|(key, _)| key == name).map(|(_, value)| value.into_owned())
}

/// The body as a `T`, or `None` if there is no body.
async fn parse_body<T: DeserializeOwned>(headers: &HeaderMap, body: Body) -> Result<Option<T>, Error> {
    let bytes = read_body(headers, body).await?;
    if bytes.is_empty() {
        return Ok(None);
    }
    if !headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).is_some_and(is_json) {
        return Err(Error::NotJson);
    }
    let value: serde_json::Value = serde_json::from_slice(&bytes)
        .map_err(|error| Error::Malformed(format!("the body is not JSON: {error}")))?;
    // Serde would accept a list for a struct, field by field. The contract has no such form.
    match value.as_object() {
        None => return Err(Error::Invalid("the body must be a JSON object".into())),
        Some(fields) => {
            if let Some((name, _)) = fields.iter().find(|(_, value)| value.is_array()) {
                return Err(Error::Invalid(format!("`{name}` must not be a list")));
            }
        }
    }
    serde_path_to_error::deserialize(value).map(Some).map_err(|error| {
        let (path, error) = (error.path().to_string(), error.inner());
        Error::Invalid(match path.rsplit('.').next() {
            // Serde's own message would be "expected a nonzero u16".
            Some("port") => format!("`{path}` must be a whole number from 1 to 65535"),
            Some("ttl") => {
                let (least, most) = Ttl::SECONDS;
                format!("`{path}` must be a whole number of seconds from {least} to {most}")
            }
            Some("") | None => format!("the body is not valid: {error}"),
            Some(_) => format!("`{path}`: {error}"),
        })
    })
}

/// Reads a body up to the allowed length.
async fn read_body(headers: &HeaderMap, body: Body) -> Result<Bytes, Error> {
    let announced = headers.get(CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
    if announced.is_some_and(|length| length > MAX_BODY_BYTES as u64) {
        return Err(Error::TooLarge);
    }
    let body = Limited::new(body, MAX_BODY_BYTES).collect().await.map_err(|error| {
        if error.is::<LengthLimitError>() {
            Error::TooLarge
        } else if successors(error.source(), |&why| why.source()).any(<dyn StdError>::is::<TooSlow>) {
            Error::TooSlow
        } else {
            Error::Malformed("the request body is incomplete".into())
        }
    })?;
    Ok(body.to_bytes())
}

/// The body did not arrive in time.
#[derive(Debug, thiserror::Error)]
#[error("the body did not come in time")]
struct TooSlow;

/// A body that fails once `deadline` is done.
pub fn in_time(body: Body, deadline: impl Future<Output = ()> + Send + 'static) -> Body {
    Body::new(InTime { body, deadline: Box::pin(deadline) })
}

struct InTime<D> {
    body: Body,
    deadline: Pin<Box<D>>,
}

impl<D: Future<Output = ()>> HttpBody for InTime<D> {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        if let Poll::Ready(frame) = Pin::new(&mut self.body).poll_frame(context) {
            return Poll::Ready(frame);
        }
        self.deadline.as_mut().poll(context).map(|()| Some(Err(axum::Error::new(TooSlow))))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// Whether a media type is JSON, ignoring parameters.
fn is_json(media_type: &str) -> bool {
    let essence = media_type.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    let subtype = essence.strip_prefix("application/").unwrap_or_default();
    subtype == "json" || subtype.ends_with("+json")
}

fn json(status: StatusCode, value: &impl Serialize) -> Answer {
    Ok(encoded(status, registry::encode(value)?))
}

fn encoded(status: StatusCode, json: Vec<u8>) -> Response {
    (status, [(CONTENT_TYPE, "application/json")], json).into_response()
}
