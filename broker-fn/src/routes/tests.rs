use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::Poll;

use axum::http::header::{ALLOW, RETRY_AFTER, WWW_AUTHENTICATE};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::api::{PROBLEM_JSON, Problem, Registration};
use crate::registry::memory::MemoryStore;
use crate::settings::Unreadable;

const JSON: (&str, &str) = ("content-type", "application/json");
const FROM: (&str, &str) = ("spin-client-addr", "10.0.0.7:40000");

/// A broker with a store in memory.
struct Fixture {
    store: MemoryStore,
    /// One registry for all requests, as in an instance of the component.
    registry: Registry<MemoryStore>,
    variables: Vec<(&'static str, &'static str)>,
}

/// A whole answer.
#[derive(Debug)]
struct Reply {
    status: StatusCode,
    headers: HeaderMap,
    body: Bytes,
}

impl Fixture {
    fn new() -> Self {
        Self::with(&[])
    }

    fn with(variables: &[(&'static str, &'static str)]) -> Self {
        let store = MemoryStore::default();
        Self { registry: Registry::new(store.clone()), store, variables: variables.to_vec() }
    }

    fn settings(&self) -> Result<Settings, BadSettings> {
        Settings::from_variables(|name| {
            Ok(self.variables.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned()))
        })
    }

    fn send(&self, request: Request) -> Reply {
        let registry = self.registry.clone();
        let (method, path) = (request.method().clone(), request.uri().path().to_owned());
        let reply = block_on(async {
            let (parts, body) =
                respond(&router::<MemoryStore>(), self.settings().map(Arc::new), registry, Some(request))
                    .await
                    .into_parts();
            let body = body.collect().await.expect("an answer's body does not fail").to_bytes();
            Reply { status: parts.status, headers: parts.headers, body }
        });
        openapi::assert_allowed(&method, &path, reply.status, &reply.headers, &reply.body);
        reply
    }

    fn request(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &str) -> Reply {
        let mut request = Request::builder().method(method).uri(path);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        self.send(request.body(Body::from(body.to_owned())).unwrap())
    }

    fn get(&self, path: &str) -> Value {
        let reply = self.request("GET", path, &[], "");
        assert_eq!(reply.status, StatusCode::OK, "GET {path}: {reply:?}");
        reply.json()
    }

    /// A request with a JSON body from 10.0.0.7.
    fn send_json(&self, method: &str, path: &str, body: &Value) -> Reply {
        self.request(method, path, &[JSON, FROM], &body.to_string())
    }

    fn is_empty(&self) -> bool {
        self.store.state().entries.is_empty()
    }

    /// Makes all registrations with this prefix older by this many seconds, and invalidates rosters that were
    /// read before.
    fn age(&self, prefix: &str, seconds: u64) {
        let earlier = |value: &Value| -> Value {
            let at: Timestamp = serde_json::from_value(value.clone()).unwrap();
            json!(Timestamp::from(at.system_time() - Duration::from_secs(seconds)))
        };
        let mut state = self.store.state();
        state.entries.retain(|key, _| !key.starts_with("snap:"));
        for (_, value) in state.entries.iter_mut().filter(|(key, _)| key.starts_with(prefix)) {
            let mut registration: Value = serde_json::from_slice(value).unwrap();
            registration["last_seen"] = earlier(&registration["last_seen"]);
            *value = serde_json::to_vec(&registration).unwrap();
        }
        self.registry.drop_kept();
    }
}

impl Reply {
    fn json(&self) -> Value {
        assert_eq!(self.headers[CONTENT_TYPE], "application/json", "{self:?}");
        serde_json::from_slice(&self.body).unwrap()
    }

    fn is_page(&self) -> bool {
        // An answer to HEAD has only the headers.
        self.headers[CONTENT_TYPE] == "text/html; charset=utf-8"
            && (self.body.is_empty() || self.body.starts_with(b"<!DOCTYPE html>"))
    }

    fn parse<T: DeserializeOwned>(&self) -> T {
        serde_json::from_value(self.json()).unwrap()
    }

    /// Checks what every problem has in common, and returns the detail.
    fn problem(&self, status: u16) -> String {
        assert_eq!(self.status.as_u16(), status, "{self:?}");
        assert_eq!(self.headers[CONTENT_TYPE], PROBLEM_JSON);
        assert_eq!(self.headers[CACHE_CONTROL], "no-store");
        assert_eq!(self.headers[CONTENT_LENGTH], self.body.len().to_string());
        let problem: Problem = serde_json::from_slice(&self.body).unwrap();
        assert_eq!((problem.kind.as_str(), problem.status), ("about:blank", status));
        assert_eq!(problem.title, self.status.canonical_reason().unwrap());
        assert!(!problem.detail.is_empty());
        problem.detail
    }
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(future)
}

/// The headers of an answer to HEAD, which has no length: hosts compare the length with the body.
fn without_length(headers: &HeaderMap) -> HeaderMap {
    let mut headers = headers.clone();
    headers.remove(CONTENT_LENGTH);
    headers
}

fn addrs(list: &Value) -> Vec<String> {
    let addr = |node: &Value| format!("{}:{}", node["host"].as_str().unwrap(), node["port"]);
    list.as_array().unwrap().iter().map(addr).collect()
}

#[test]
fn a_bare_post_registers_the_caller_at_the_usual_port() {
    for (path, addr) in [
        ("/redis", "10.0.0.7:6379"),
        ("/sentinel", "10.0.0.7:26379"),
        ("/groups/g/redis", "10.0.0.7:6379"),
        ("/groups/g/sentinel", "10.0.0.7:26379"),
    ] {
        // The client of 2018 sent a form's content type and no body.
        for headers in [&[FROM][..], &[FROM, ("content-type", "application/x-www-form-urlencoded")]] {
            let broker = Fixture::new();
            let reply = broker.request("POST", path, headers, "");
            assert_eq!(reply.status, StatusCode::CREATED, "{reply:?}");
            assert_eq!(reply.headers[LOCATION], format!("{path}/{addr}"));
            assert_eq!(reply.headers[CACHE_CONTROL], "no-store");
            let registration: Registration = reply.parse();
            assert_eq!((registration.addr.to_string().as_str(), registration.run_id), (addr, None));
            assert_eq!(registration.registered_at, registration.last_seen);
        }
    }
}

#[test]
fn registering_again_is_200_and_the_same_registration() {
    let broker = Fixture::new();
    let body = json!({"host": "Redis-0.Example.COM.", "port": 6380, "run_id": "abc"});
    let first: Registration = broker.send_json("POST", "/redis", &body).parse();
    assert_eq!(first.addr.to_string(), "redis-0.example.com:6380");
    let reply = broker.send_json(
        "POST",
        "/redis?query=is&ignored",
        &json!({"host": "redis-0.example.com", "port": 6380}),
    );
    assert_eq!(reply.status, StatusCode::OK);
    assert!(!reply.headers.contains_key(LOCATION));
    let again: Registration = reply.parse();
    assert_eq!(
        (again.addr, again.run_id, again.registered_at),
        (first.addr, first.run_id, first.registered_at)
    );
    assert!(again.last_seen > first.last_seen);
    assert_eq!(broker.get("/redis")["redis"].as_array().unwrap().len(), 1);
}

#[test]
fn a_location_leads_to_the_registration_and_can_be_deleted() {
    let broker = Fixture::new();
    for prefix in ["", "/groups/other"] {
        for host in ["10.0.0.7", "fd00::7", "redis.example"] {
            let reply = broker.send_json("POST", &format!("{prefix}/redis"), &json!({"host": host}));
            let location = reply.headers[LOCATION].to_str().unwrap();
            assert!(!location.contains(['[', ']']), "{location} is no URI reference");
            assert!(location.starts_with(&format!("{prefix}/redis/")), "{location}");
            assert_eq!(broker.get(location)["host"], host);
            let deleted = broker.request("DELETE", location, &[], "");
            assert_eq!((deleted.status, deleted.body.len()), (StatusCode::NO_CONTENT, 0));
            let gone = broker.request("GET", location, &[], "").problem(404);
            assert!(gone.contains(host), "{gone}");
            assert_eq!(broker.request("DELETE", location, &[], "").status, StatusCode::NO_CONTENT);
        }
    }
    // Addresses in the forms that people write.
    broker.send_json("POST", "/sentinel", &json!({"host": "fd00::7"}));
    let deleted = broker.request("DELETE", "/sentinel/%5BFD00:0::7]:26379", &[], "");
    assert_eq!(deleted.status, StatusCode::NO_CONTENT);
    assert_eq!(broker.get("/sentinel"), json!({"sentinels": []}));
}

#[test]
fn a_roster_tells_who_is_there_who_is_missing_and_what_came_of_it() {
    let broker = Fixture::new();
    let empty = json!({
        "group": "mymaster", "ready": false,
        "expected": {"redis": 2, "sentinels": 3, "quorum": 2}, "missing": {"redis": 2, "sentinels": 3},
        "redis": [], "sentinels": [], "outcome": null, "last_verified": null
    });
    assert_eq!(broker.get("/"), empty);
    for (path, host) in [("redis", "b"), ("redis", "a"), ("sentinel", "s1"), ("sentinel", "s2")] {
        broker.send_json("POST", &format!("/{path}"), &json!({"host": host}));
    }
    let roster = broker.get("/");
    assert_eq!(addrs(&roster["redis"]), ["b:6379", "a:6379"], "the order is that of registering");
    assert_eq!(roster["missing"], json!({"redis": 0, "sentinels": 1}));
    assert_eq!(roster["ready"], false);
    broker.send_json("POST", "/sentinel", &json!({"host": "s3"}));
    assert_eq!(broker.get("/")["ready"], true);
    assert_eq!(broker.get("/groups/mymaster"), broker.get("/"), "the default group is a group like others");
    assert_eq!(broker.get("/groups/mymaster/"), broker.get("/"));
    assert_eq!(broker.get("/groups/mymaster/redis")["redis"], roster["redis"]);
    assert_eq!(broker.get("/groups/other")["redis"], json!([]));
    assert_eq!(
        broker.get("/groups"),
        json!({"groups": [{"group": "mymaster", "redis": 2, "sentinels": 3, "ready": true}]})
    );

    let at = Timestamp::now();
    let outcome = json!({"verified": true, "master": {"host": "B", "port": 6379}, "at": at});
    let reply = broker.send_json("PUT", "/outcome", &outcome);
    assert_eq!((reply.status, reply.body.len()), (StatusCode::NO_CONTENT, 0));
    assert!(!reply.headers.contains_key(CONTENT_LENGTH) && !reply.headers.contains_key(CONTENT_TYPE));
    let stored = json!({
        "verified": true, "master": {"host": "b", "port": 6379}, "at": at, "reason": null
    });
    assert_eq!(broker.get("/")["outcome"], stored);

    assert_eq!(broker.request("DELETE", "/", &[], "").status, StatusCode::NO_CONTENT);
    assert_eq!(broker.get("/"), empty);
    assert_eq!(broker.get("/groups"), json!({"groups": []}));
}

#[test]
fn an_outcome_that_is_not_verified_says_why_and_is_dated_by_the_broker() {
    let broker = Fixture::new();
    broker.send_json("POST", "/groups/g/redis", &json!({"host": "a"}));
    let reply =
        broker.send_json("PUT", "/groups/g/outcome", &json!({"verified": false, "reason": "no quorum"}));
    assert_eq!(reply.status, StatusCode::NO_CONTENT);
    let outcome: Outcome = serde_json::from_value(broker.get("/groups/g")["outcome"].clone()).unwrap();
    assert_eq!(outcome.reason.as_deref(), Some("no quorum"));
    assert!(outcome.at <= Timestamp::now());
}

#[test]
fn what_no_run_can_have_seen_is_refused_and_makes_no_group() {
    let broker = Fixture::new();
    let failed = json!({"verified": false, "reason": "x"});
    broker.send_json("PUT", "/groups/g/outcome", &failed).problem(404);
    assert!(broker.is_empty(), "20,000 of them would be 20,000 groups that nobody sees");
    broker.send_json("POST", "/redis", &json!({"host": "a"}));
    let put = |outcome: Value| broker.send_json("PUT", "/outcome", &outcome);
    for (outcome, says) in [
        (json!({"verified": true, "master": {"host": "b", "port": 6379}}), "`master`"),
        (json!({"verified": false, "reason": "x", "at": "2030-01-01T00:00:00Z"}), "`at`"),
        (
            json!({"verified": false, "reason": "x", "restore": {"a:6379": {"repl-diskless-sync-delay": "2147483647"}}}),
            "2147483647",
        ),
        (
            json!({"verified": false, "reason": "x", "restore": {"b:6379": {"replica-priority": "100"}}}),
            "b:6379",
        ),
    ] {
        let detail = put(outcome).problem(422);
        assert!(detail.contains(says), "{detail}");
    }
    assert_eq!(broker.get("/")["outcome"], json!(null));
    let noted = json!({"verified": false, "reason": "x", "restore": {"a:6379": {"replica-priority": "100"}}});
    assert_eq!(put(noted).status, StatusCode::NO_CONTENT);
}

#[test]
fn what_was_verified_stays_so_whatever_a_later_run_asks_for() {
    let broker = Fixture::new();
    for (kind, host) in [("redis", "a"), ("redis", "b"), ("sentinel", "s")] {
        broker.send_json("POST", &format!("/{kind}"), &json!({"host": host}));
    }
    assert_eq!(broker.get("/")["last_verified"], json!(null));
    let at = Timestamp::now();
    let a = json!({"host": "a", "port": 6379});
    let verified = json!({"verified": true, "master": a, "at": at, "expected": {"redis": 2, "sentinels": 1, "quorum": 1}});
    broker.send_json("PUT", "/outcome", &verified);
    let kept_at = broker.get("/")["last_verified"]["at"].clone();
    let kept: Timestamp = serde_json::from_value(kept_at.clone()).unwrap();
    assert!(kept > at && kept < Timestamp::now(), "it is by the broker's clock: {kept}");
    let last = json!({
        "at": kept_at, "master": a, "redis": [a, {"host": "b", "port": 6379}], "sentinels": [{"host": "s", "port": 26379}],
        "expected": {"redis": 2, "sentinels": 1, "quorum": 1}
    });
    assert_eq!(broker.get("/")["last_verified"], last);
    let failed = json!({"verified": false, "reason": "3 more Redis servers", "expected": {"redis": 5, "sentinels": 1, "quorum": 1}});
    assert!(broker.send_json("PUT", "/outcome", &failed).status.is_success());
    broker.request("DELETE", "/redis/b:6379", &[], "");
    let roster = broker.get("/");
    assert_eq!((&roster["last_verified"], &roster["outcome"]["verified"]), (&last, &json!(false)));
    let page = broker.request("GET", "/", &[("accept", "text/html")], "").body;
    assert!(String::from_utf8_lossy(&page).contains("Last verified"), "a person is told too");
    // If the outcome has no `expected`, the broker's own number is used.
    broker.send_json("PUT", "/outcome", &json!({"verified": true, "master": a}));
    let expected = json!({"redis": 2, "sentinels": 3, "quorum": 2});
    assert_eq!(broker.get("/")["last_verified"]["expected"], expected);
    broker.request("DELETE", "/", &[], "");
    assert_eq!(broker.get("/")["last_verified"], json!(null));
    for no_system in
        [json!({"redis": 0, "sentinels": 1, "quorum": 1}), json!({"redis": 1, "sentinels": 1, "quorum": 2})]
    {
        let outcome = json!({"verified": false, "reason": "x", "expected": no_system});
        assert!(broker.send_json("PUT", "/outcome", &outcome).problem(422).contains("`expected`"));
    }
}

#[test]
fn with_a_runner_token_nodes_write_no_outcome_and_delete_no_group() {
    let tokens = [("api_token", "node"), ("runner_token", "runner"), ("read_token", "read")];
    let broker = Fixture::with(&tokens);
    let with = |token: &str, method: &str, path: &str, body: &str| {
        let authorization = format!("Bearer {token}");
        broker.request(method, path, &[("authorization", &authorization), JSON], body)
    };
    for token in ["node", "runner"] {
        assert!(with(token, "POST", "/redis", r#"{"host": "a"}"#).status.is_success());
        assert!(with(token, "POST", "/groups/g/sentinel", r#"{"host": "a"}"#).status.is_success());
        assert!(with(token, "DELETE", "/groups/g/sentinel/a:26379", "").status.is_success());
        assert!(with(token, "GET", "/", "").status.is_success());
    }
    let outcome = r#"{"verified": false, "reason": "x"}"#;
    for (method, path, body) in [
        ("PUT", "/outcome", outcome),
        ("PUT", "/groups/mymaster/outcome", outcome),
        ("DELETE", "/groups/g", ""),
        ("DELETE", "/groups/redis", ""),
        ("DELETE", "/groups/g/", ""),
        ("DELETE", "/", ""),
    ] {
        let detail = with("node", method, path, body).problem(403);
        assert!(detail.contains("`runner_token`"), "{method} {path}: {detail}");
        with("read", method, path, body).problem(403);
        with("other", method, path, body).problem(401);
        assert!(with("runner", method, path, body).status.is_success(), "{method} {path}");
    }
}

#[test]
fn a_page_of_another_site_changes_nothing() {
    let broker = Fixture::new();
    let sends = |method: &str, headers: &[(&str, &str)]| {
        broker.request(method, "/redis", headers, r#"{"host": "a"}"#)
    };
    let host = ("host", "broker.example:3000");
    for headers in [
        &[JSON, host, ("origin", "http://evil.example")][..],
        &[JSON, host, ("origin", "null")],
        &[JSON, host, ("origin", "http://broker.example")],
        &[JSON, host, ("origin", "http://broker.example:3000"), ("sec-fetch-site", "cross-site")],
        &[JSON, host, ("sec-fetch-site", "same-site")],
    ] {
        sends("POST", headers).problem(403);
        assert!(sends("GET", headers).status.is_success(), "it may be linked to");
    }
    for headers in [
        &[JSON, host][..],
        &[JSON, host, ("origin", "http://broker.example:3000")],
        &[JSON, host, ("origin", "http://broker.example:3000"), ("sec-fetch-site", "same-origin")],
        &[JSON, host, ("sec-fetch-site", "none")],
    ] {
        assert!(sends("POST", headers).status.is_success(), "{headers:?}");
    }
}

#[test]
fn the_settings_are_shown_without_the_token() {
    let broker =
        Fixture::with(&[("api_token", "s3cr3t"), ("expected_redis", "5"), ("default_group", "prod")]);
    let reply = broker.request("GET", "/config", &[("authorization", "Bearer s3cr3t")], "");
    let expected = json!({
        "default_group": "prod", "expected": {"redis": 5, "sentinels": 3, "quorum": 2},
        "trusted_proxy_hops": 0, "max_registrations": 64, "max_groups": 1000
    });
    assert_eq!(reply.json(), expected);
}

#[test]
fn head_answers_like_get_without_the_body() {
    let broker = Fixture::new();
    for path in [
        "/",
        "/redis",
        "/sentinel",
        "/groups",
        "/groups/g",
        "/config",
        "/healthcheck",
        "/metrics",
        "/openapi.json",
        "/nothing",
    ] {
        let (get, head) = (broker.request("GET", path, &[], ""), broker.request("HEAD", path, &[], ""));
        assert_eq!(head.status, get.status, "{path}");
        assert_eq!(head.headers, without_length(&get.headers), "{path}");
        assert_eq!(get.headers[CONTENT_LENGTH], get.body.len().to_string(), "{path}");
        assert!(head.body.is_empty(), "{path}");
    }
}

#[test]
fn an_unknown_path_is_404_and_a_wrong_method_405_with_those_allowed() {
    let broker = Fixture::new();
    for path in [
        "/nothing",
        "/redis/",
        "/redis/a:1/b",
        "/groups/",
        "/groups/g/healthcheck",
        "//",
        "/groups/g/metrics",
    ] {
        for method in ["GET", "POST", "DELETE", "OPTIONS", "BREW"] {
            broker.request(method, path, &[FROM], "").problem(404);
        }
    }
    for (path, allowed) in [
        ("/", "GET,HEAD,DELETE"),
        ("/groups/g", "GET,HEAD,DELETE"),
        ("/groups/g/", "GET,HEAD,DELETE"),
        ("/redis", "GET,HEAD,POST"),
        ("/groups/g/sentinel", "GET,HEAD,POST"),
        ("/sentinel/a:1", "GET,HEAD,DELETE"),
        ("/outcome", "PUT"),
        ("/groups", "GET,HEAD"),
        ("/config", "GET,HEAD"),
        ("/healthcheck", "GET,HEAD"),
        ("/metrics", "GET,HEAD"),
        ("/openapi.json", "GET,HEAD"),
    ] {
        for method in ["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT", "BREW"] {
            if allowed.split(',').all(|allowed| allowed != method) {
                let reply = broker.request(method, path, &[FROM], "");
                reply.problem(405);
                assert_eq!(reply.headers[ALLOW], allowed, "{method} {path}");
            }
        }
    }
    assert_eq!(broker.request("HEAD", "/outcome", &[], "").status, StatusCode::METHOD_NOT_ALLOWED);
    assert!(broker.is_empty());
}

/// A method, paths, a body, and the status and a text of the answer.
type BadInput<'a> = (&'a str, &'a [&'a str], &'a str, u16, &'a str);

/// Each is explained, and stores nothing.
fn expect_refused(cases: &[BadInput<'_>]) {
    for (method, paths, body, status, detail) in cases {
        for path in *paths {
            let broker = Fixture::new();
            let found = broker.request(method, path, &[JSON, FROM], body).problem(*status);
            assert!(found.contains(detail), "{method} {path} {body}: {found}");
            assert!(broker.is_empty(), "{method} {path} {body}");
        }
    }
}

#[test]
fn a_bad_registration_is_explained_and_stores_nothing() {
    let node = ["/redis", "/sentinel", "/groups/g/redis", "/groups/g/sentinel"];
    let deep = "[".repeat(4000);
    expect_refused(&[
        ("POST", &node, "{", 400, "not JSON"),
        ("POST", &node, "{} {}", 400, "not JSON"),
        ("POST", &node, "\u{0}", 400, "not JSON"),
        ("POST", &node, " ", 400, "not JSON"),
        ("POST", &node, "host=10.0.0.7", 400, "not JSON"),
        ("POST", &node, r#"{"port": 1e999}"#, 400, "not JSON"),
        ("POST", &node, r#"{"port": NaN}"#, 400, "not JSON"),
        ("POST", &node, &deep, 400, "not JSON"),
        ("POST", &node, "null", 422, "object"),
        ("POST", &node, r#""10.0.0.7""#, 422, "object"),
        ("POST", &node, r#"["10.0.0.7", 6379]"#, 422, "object"),
        ("POST", &node, r#"{"hosts": "a"}"#, 422, "hosts"),
        ("POST", &node, r#"{"host": 7}"#, 422, "host"),
        ("POST", &node, r#"{"host": ""}"#, 422, "host"),
        ("POST", &node, r#"{"host": "0.0.0.0"}"#, 422, "`host`: `0.0.0.0` is not the address of one node"),
        ("POST", &node, r#"{"host": "::"}"#, 422, "host"),
        ("POST", &node, r#"{"host": "224.0.0.1"}"#, 422, "host"),
        ("POST", &node, r#"{"host": "255.255.255.255"}"#, 422, "host"),
        ("POST", &node, r#"{"host": "1.2.3"}"#, 422, "host"),
        ("POST", &node, r#"{"host": "a b"}"#, 422, "host"),
        ("POST", &node, r#"{"host": "10.0.0.7:6379"}"#, 422, "host"),
        ("POST", &node, r#"{"host": "a\u0000"}"#, 422, "host"),
        ("POST", &node, r#"{"port": 0}"#, 422, "`port` must be a whole number from 1 to 65535"),
        ("POST", &node, r#"{"port": 65536}"#, 422, "1 to 65535"),
        ("POST", &node, r#"{"port": -1}"#, 422, "1 to 65535"),
        ("POST", &node, r#"{"port": 1.5}"#, 422, "1 to 65535"),
        ("POST", &node, r#"{"port": "6379"}"#, 422, "1 to 65535"),
        ("POST", &node, r#"{"port": 99999999999999999999}"#, 422, "1 to 65535"),
        ("POST", &node, r#"{"port": [6379]}"#, 422, "port"),
        ("POST", &node, r#"{"run_id": "a b"}"#, 422, "run_id"),
        ("POST", &node, r#"{"run_id": ""}"#, 422, "run_id"),
        ("POST", &node, r#"{"run_id": {}}"#, 422, "run_id"),
    ]);
}

#[test]
fn a_bad_outcome_is_explained_and_stores_nothing() {
    let outcome = ["/outcome", "/groups/g/outcome"];
    let long_reason = format!(r#"{{"verified": false, "reason": "{}"}}"#, "x".repeat(2001));
    expect_refused(&[
        ("PUT", &outcome, "", 422, "verified"),
        ("PUT", &outcome, "{", 400, "not JSON"),
        ("PUT", &outcome, "[true]", 422, "object"),
        ("PUT", &outcome, "{}", 422, "verified"),
        ("PUT", &outcome, r#"{"verified": "yes"}"#, 422, "verified"),
        ("PUT", &outcome, r#"{"verified": true}"#, 422, "master"),
        ("PUT", &outcome, r#"{"verified": true, "master": "a:1"}"#, 422, "master"),
        ("PUT", &outcome, r#"{"verified": true, "master": ["a", 1]}"#, 422, "master"),
        ("PUT", &outcome, r#"{"verified": true, "master": {"host": "a"}}"#, 422, "port"),
        (
            "PUT",
            &outcome,
            r#"{"verified": true, "master": {"host": "a", "port": 0}}"#,
            422,
            "`master.port` must be",
        ),
        ("PUT", &outcome, r#"{"verified": true, "master": {"host": "-", "port": 1}}"#, 422, "master.host"),
        ("PUT", &outcome, r#"{"verified": false}"#, 422, "reason"),
        ("PUT", &outcome, r#"{"verified": false, "reason": " "}"#, 422, "reason"),
        ("PUT", &outcome, r#"{"verified": false, "reason": "x", "at": "today"}"#, 422, "`at`"),
        ("PUT", &outcome, r#"{"verified": false, "reason": "x", "more": 1}"#, 422, "more"),
        ("PUT", &outcome, &long_reason, 422, "reason"),
    ]);
}

#[test]
fn a_bad_path_is_explained_and_stores_nothing() {
    expect_refused(&[
        ("GET", &["/redis/a", "/sentinel/:1", "/groups/g/redis/fd00::7:1", "/redis/a:0"], "", 422, "address"),
        (
            "DELETE",
            &["/redis/a", "/sentinel/a:65536", "/groups/g/redis/a%2Fb:1", "/redis/%00:1"],
            "",
            422,
            "address",
        ),
        (
            "GET",
            &["/groups/a%20b", "/groups/a%2Fb/", "/groups/%C3%A4/redis", "/groups/a:b"],
            "",
            422,
            "group",
        ),
        ("POST", &["/groups/a%20b/redis", "/groups/a%3Fb/sentinel"], "", 422, "group"),
        ("PUT", &["/groups/a%23b/outcome"], r#"{"verified": false, "reason": "x"}"#, 422, "group"),
        ("DELETE", &["/groups/%5C", "/groups/a%20b/redis/a:1"], "", 422, "group"),
        ("GET", &["/groups/%FF", "/redis/%FF:1", "/groups/g/redis/%C3"], "", 400, "UTF-8"),
        ("DELETE", &["/groups/%FF", "/redis/%FF:1"], "", 400, "UTF-8"),
    ]);
}

#[test]
fn a_group_name_of_65_characters_is_one_too_long() {
    let broker = Fixture::new();
    broker.get(&format!("/groups/{}", "g".repeat(64)));
    broker.request("GET", &format!("/groups/{}", "g".repeat(65)), &[], "").problem(422);
}

#[test]
fn a_body_must_be_declared_as_json() {
    let body = r#"{"host": "a"}"#;
    for good in [
        "application/json",
        "Application/JSON; charset=utf-8",
        "application/vnd.x+json",
        "application/json ;a",
    ] {
        let reply = Fixture::new().request("POST", "/redis", &[("content-type", good)], body);
        assert_eq!(reply.status, StatusCode::CREATED, "{good}");
    }
    for bad in
        ["text/plain", "application/x-www-form-urlencoded", "text/json", "application/jsonp", "json", "", "ä"]
    {
        let broker = Fixture::new();
        let detail = broker.request("POST", "/redis", &[("content-type", bad)], body).problem(415);
        assert!(detail.contains("application/json"), "{detail}");
        assert!(broker.is_empty());
    }
    Fixture::new().request("POST", "/redis", &[], body).problem(415);
    Fixture::new().request("PUT", "/outcome", &[], body).problem(415);
}

/// A `POST /redis` whose body arrives in these chunks. Also returns how many chunks were taken.
fn post_in_chunks(
    broker: &Fixture,
    chunks: impl Iterator<Item = Result<&'static [u8], &'static str>> + Send + 'static,
) -> (Reply, usize) {
    let taken = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&taken);
    let chunks = chunks.inspect(move |_| {
        counter.fetch_add(1, Ordering::Relaxed);
    });
    let body = Body::from_stream(futures::stream::iter(chunks.map(|chunk| chunk.map(Bytes::from_static))));
    let request =
        Request::builder().method("POST").uri("/redis").header(JSON.0, JSON.1).header(FROM.0, FROM.1);
    let reply = broker.send(request.body(body).unwrap());
    (reply, taken.load(Ordering::Relaxed))
}

#[test]
fn a_body_of_4096_bytes_is_read_and_one_byte_more_is_413() {
    let padded = |length: usize| format!("{}{}", r#"{"host": "a"}"#, " ".repeat(length - 13));
    let broker = Fixture::new();
    assert_eq!(broker.request("POST", "/redis", &[JSON], &padded(4096)).status, StatusCode::CREATED);
    let broker = Fixture::new();
    broker.request("POST", "/redis", &[JSON], &padded(4097)).problem(413);
    broker.request("PUT", "/outcome", &[JSON], &padded(4097)).problem(413);
    assert!(broker.is_empty());
}

#[test]
fn too_large_and_endless_bodies_are_refused() {
    let broker = Fixture::new();
    let endless = || std::iter::repeat(Ok(&[b' '; 1024][..]));
    let (reply, taken) = post_in_chunks(&broker, endless());
    reply.problem(413);
    assert_eq!(taken, 5, "it takes a fifth KiB to see that there is more than four");
    let request = Request::builder().method("POST").uri("/redis").header("content-length", "4097");
    let body = Body::from_stream(futures::stream::poll_fn(|_| -> Poll<Option<Result<Bytes, Infallible>>> {
        panic!("the body was read")
    }));
    broker.send(request.body(body).unwrap()).problem(413);
    assert!(broker.is_empty());
}

#[test]
fn a_body_in_pieces_is_one_body_and_one_that_breaks_off_is_400() {
    let broker = Fixture::new();
    let (reply, _) = post_in_chunks(&broker, [Ok(&b"{\"host\""[..]), Ok(b": \"a\"}")].into_iter());
    assert_eq!(reply.status, StatusCode::CREATED);
    let broker = Fixture::new();
    for complete in [&b"{\"host\""[..], b"{\"host\": \"a\"}", b""] {
        let (reply, _) = post_in_chunks(&broker, [Ok(complete), Err("connection reset")].into_iter());
        let detail = reply.problem(400);
        assert!(detail.contains("incomplete"), "{detail}");
    }
    assert!(broker.is_empty());
}

#[test]
fn the_caller_is_the_last_spin_client_addr_whatever_else_is_sent() {
    let caller = "spin-client-addr";
    for (headers, host) in [
        (vec![(caller, "10.0.0.7:1234")], "10.0.0.7"),
        (vec![(caller, "10.0.0.7")], "10.0.0.7"),
        (vec![(caller, "[fd00::7]:1234")], "fd00::7"),
        (vec![(caller, "fd00::7")], "fd00::7"),
        (vec![(caller, "[fd00::7]")], "fd00::7"),
        (vec![(caller, "[::ffff:10.0.0.7]:1234")], "10.0.0.7"),
        (vec![(caller, "6.6.6.6:1"), (caller, "10.0.0.7:1234")], "10.0.0.7"),
        (vec![(caller, "junk"), (caller, "6.6.6.6"), (caller, "10.0.0.7:1234")], "10.0.0.7"),
        (vec![("x-forwarded-for", "6.6.6.6"), (caller, "10.0.0.7:1234")], "10.0.0.7"),
        (vec![("forwarded", "for=6.6.6.6"), (caller, "127.0.0.2:1234")], "127.0.0.2"),
    ] {
        let registration: Registration = Fixture::new().request("POST", "/redis", &headers, "").parse();
        assert_eq!(registration.addr.host.as_str(), host, "{headers:?}");
    }
    for headers in [
        vec![],
        vec![(caller, "")],
        vec![(caller, "junk")],
        vec![(caller, "10.0.0.7:99999")],
        vec![(caller, "10.0.0.7:1234"), (caller, "junk")],
        vec![(caller, "0.0.0.0:1234")],
        vec![(caller, "10.0.0.7:1, 6.6.6.6:1")],
        vec![(caller, "ä")],
        vec![("x-forwarded-for", "6.6.6.6")],
    ] {
        let broker = Fixture::new();
        let detail = broker.request("POST", "/redis", &headers, "").problem(422);
        assert!(detail.contains("send `host` in the body"), "{detail}");
        assert!(broker.is_empty());
        let named = [headers, vec![JSON]].concat();
        assert_eq!(broker.request("POST", "/redis", &named, r#"{"host": "a"}"#).status, StatusCode::CREATED);
    }
}

#[test]
fn behind_trusted_proxies_the_caller_is_counted_from_the_right() {
    let forwarded = "x-forwarded-for";
    for (hops, headers, host) in [
        ("1", vec![(forwarded, "10.0.0.7")], Some("10.0.0.7")),
        ("1", vec![(forwarded, "6.6.6.6, 10.0.0.7")], Some("10.0.0.7")),
        ("1", vec![(forwarded, "6.6.6.6"), (forwarded, "10.0.0.7:443")], Some("10.0.0.7")),
        ("1", vec![(forwarded, "10.0.0.7"), ("spin-client-addr", "10.9.9.9:1")], Some("10.0.0.7")),
        ("1", vec![(forwarded, "junk,[fd00::7]:1")], Some("fd00::7")),
        ("1", vec![(forwarded, "10.0.0.7,")], None),
        ("1", vec![(forwarded, "unknown")], None),
        ("1", vec![("spin-client-addr", "10.9.9.9:1")], None),
        ("2", vec![(forwarded, "6.6.6.6, 10.0.0.7 , 10.9.9.9")], Some("10.0.0.7")),
        ("2", vec![(forwarded, "10.0.0.7"), (forwarded, "10.9.9.9")], Some("10.0.0.7")),
        ("2", vec![(forwarded, "10.9.9.9")], None),
        ("65535", vec![(forwarded, "10.9.9.9")], None),
    ] {
        let broker = Fixture::with(&[("trusted_proxy_hops", hops)]);
        let reply = broker.request("POST", "/redis", &headers, "");
        match host {
            Some(host) => {
                assert_eq!(reply.parse::<Registration>().addr.host.as_str(), host, "{hops} {headers:?}");
            }
            None => {
                assert!(reply.problem(422).contains("send `host`"), "{hops} {headers:?}");
            }
        }
    }
}

/// Requests that need the token.
const GUARDED: [(&str, &str); 12] = [
    ("GET", "/"),
    ("POST", "/redis"),
    ("DELETE", "/redis/a:1"),
    ("PUT", "/outcome"),
    ("GET", "/groups"),
    ("GET", "/config"),
    ("GET", "/groups/g/redis"),
    ("GET", "/nothing"),
    ("GET", "/groups/%FF"),
    ("BREW", "/config"),
    ("GET", "/healthcheck/"),
    ("GET", "/groups/g/healthcheck"),
];

const WRONG_CREDENTIALS: [Option<&str>; 11] = [
    None,
    Some(""),
    Some("s3cr3t"),
    Some("Bearer"),
    Some("Bearer "),
    Some("Bearer s3cr3"),
    Some("Bearer s3cr3tt"),
    Some("Bearer S3CR3T"),
    Some("Basic s3cr3t"),
    Some("Bearer s3cr3t s3cr3t"),
    Some("ä s3cr3t"),
];

#[test]
fn with_a_token_every_path_but_the_healthcheck_asks_for_it() {
    let broker = Fixture::with(&[("api_token", "s3cr3t")]);
    for (method, path) in GUARDED {
        for credentials in WRONG_CREDENTIALS {
            let headers: Vec<_> =
                credentials.map(|value| ("authorization", value)).into_iter().chain([FROM]).collect();
            let reply = broker.request(method, path, &headers, "");
            let detail = reply.problem(401);
            assert!(!detail.contains("s3cr3t"), "{detail}");
            // The first challenge that an API client sees, and the only one for a write, for which Basic does
            // not suffice.
            assert_eq!(reply.headers[WWW_AUTHENTICATE], "Bearer realm=\"sentinel-broker\"");
            let challenges = reply.headers.get_all(WWW_AUTHENTICATE).iter().count();
            assert_eq!(challenges, if method == "GET" { 2 } else { 1 });
        }
    }
    assert!(broker.is_empty());
    for credentials in ["Bearer s3cr3t", "bearer s3cr3t", "BEARER  s3cr3t"] {
        let headers = [("authorization", credentials), FROM];
        assert!(broker.request("POST", "/redis", &headers, "").status.is_success(), "{credentials}");
        broker.request("GET", "/nothing", &headers, "").problem(404);
    }
    // Without the token, a client also sees nothing that this instance has answered to others.
    for _ in 0..3 {
        let headers = [("authorization", "Bearer s3cr3t")];
        assert_eq!(addrs(&broker.request("GET", "/", &headers, "").json()["redis"]), ["10.0.0.7:6379"]);
    }
    let before = broker.store.state().entries.clone();
    for (method, path) in openapi::requests().filter(|(_, path)| path != "/healthcheck") {
        broker.request(&method, &path, &[FROM], "").problem(401);
        broker.request(&method, &path, &[FROM, ("authorization", "Bearer wrong")], "").problem(401);
    }
    assert_eq!(broker.store.state().entries, before);
    for method in ["GET", "HEAD"] {
        assert_eq!(broker.request(method, "/healthcheck", &[], "").status, StatusCode::OK);
    }
}

#[test]
fn a_read_token_reads_every_path_and_writes_nowhere() {
    let broker = Fixture::with(&[("api_token", "wr1te"), ("read_token", "r3ad")]);
    let with = |token: &str, method: &str, path: &str| {
        broker.request(method, path, &[("authorization", &format!("Bearer {token}")), FROM], "")
    };
    for path in ["/redis", "/groups/g/redis"] {
        assert_eq!(with("wr1te", "POST", path).status, StatusCode::CREATED);
        let sentinel = json!({"host": "10.0.0.7", "port": 6379}).to_string();
        let headers = [("authorization", "Bearer wr1te"), JSON];
        let path = path.replace("redis", "sentinel");
        assert_eq!(broker.request("POST", &path, &headers, &sentinel).status, StatusCode::CREATED);
    }
    let (reads, writes): (Vec<_>, Vec<_>) = openapi::requests().partition(|(method, _)| method == "GET");
    assert!(reads.len() > 10 && writes.len() > 10, "{reads:?} {writes:?}");
    for (_, path) in reads {
        for method in ["GET", "HEAD"] {
            for token in ["wr1te", "r3ad"] {
                assert_eq!(with(token, method, &path).status, StatusCode::OK, "{method} {path}");
            }
        }
        if path != "/healthcheck" {
            with("r3adx", "GET", &path).problem(401);
        }
    }
    with("r3ad", "GET", "/nothing").problem(404);
    let before = broker.store.state().entries.clone();
    let unknown =
        [("POST", "/nothing"), ("BREW", "/config")].map(|(method, path)| (method.into(), path.into()));
    for (method, path) in writes.into_iter().chain(unknown) {
        let reply = with("r3ad", &method, &path);
        let detail = reply.problem(403);
        assert!(detail.contains("do not allow this request") && detail.contains("`api_token`"), "{detail}");
        assert!(!reply.headers.contains_key(WWW_AUTHENTICATE));
    }
    assert_eq!(broker.store.state().entries, before);
}

#[test]
fn a_browser_signs_in_with_basic_which_only_reads() {
    let broker = Fixture::with(&[("api_token", "wr1te"), ("read_token", "r3ad")]);
    let with = |pair: &str, method: &str| {
        let credentials = format!("Basic {}", BASE64_STANDARD.encode(pair));
        broker.request(method, "/redis", &[("authorization", &credentials), FROM], "")
    };
    for pair in [":r3ad", "any name:r3ad", ":wr1te", "me:wr1te"] {
        assert_eq!(with(pair, "GET").status, StatusCode::OK, "{pair}");
        // Basic never writes, even with a token that may write: another site can make a browser send the
        // stored password.
        with(pair, "POST").problem(403);
    }
    for pair in ["r3ad", "r3ad:", "me:r3ad:", "me:R3AD", "me:x:r3ad", ""] {
        with(pair, "GET").problem(401);
        with(pair, "POST").problem(401);
    }
    for credentials in ["Basic", "Basic ", "Basic r3ad", "Basic :r3ad", "Basic OnIzYWQ", "Digest OnIzYWQ="] {
        broker.request("GET", "/", &[("authorization", credentials)], "").problem(401);
    }
    assert_eq!(broker.request("GET", "/", &[("authorization", "basic OnIzYWQ=")], "").status, StatusCode::OK);
    assert!(broker.is_empty());
}

#[test]
fn a_read_token_alone_is_503_and_opens_nothing() {
    let broker = Fixture::with(&[("read_token", "r3ad")]);
    for (method, headers) in
        [("GET", vec![]), ("POST", vec![FROM]), ("GET", vec![("authorization", "Bearer r3ad")])]
    {
        // Only the log contains the variable's name: without a usable token, no client may see the name.
        let detail = broker.request(method, "/redis", &headers, "").problem(503);
        assert!(detail.contains("its log") && !detail.contains("r3ad"), "{detail}");
    }
    assert!(broker.is_empty());
}

#[test]
fn metrics_cost_one_listing_however_many_groups_there_are() {
    let broker = Fixture::new();
    for group in 0..50 {
        broker.send_json("POST", &format!("/groups/g{group}/redis"), &json!({"host": "a"}));
    }
    broker.store.take_operations();
    let reply = broker.request("GET", "/metrics", &[], "");
    // Each registration is read as well, because only it shows whether it is stale.
    let listings = broker.store.take_operations().iter().filter(|operation| *operation == "get_keys").count();
    assert_eq!(listings, 1);
    assert_eq!(reply.headers[CONTENT_TYPE], "text/plain; version=0.0.4; charset=utf-8");
    let text = std::str::from_utf8(&reply.body).unwrap();
    for line in [
        "sentinel_broker_groups 50",
        "sentinel_broker_registrations{group=\"g49\",kind=\"redis\"} 1",
        "sentinel_broker_ready{group=\"g49\"} 0",
    ] {
        assert!(text.lines().any(|found| found == line), "{text}");
    }
}

#[test]
fn the_document_has_every_route_with_every_method() {
    let broker = Fixture::new();
    let document = broker.get("/openapi.json");
    let mut served: Vec<_> = routes::<MemoryStore>().into_iter().map(|(path, _)| path).collect();
    // This is `/groups/{group}` with a trailing slash.
    served.retain(|path| path != "/groups/{group}/");
    served.sort_unstable();
    let documented: Vec<_> = document["paths"].as_object().unwrap().keys().cloned().collect();
    assert_eq!(served, documented);
    for path in served {
        let filled = path.replace("{group}", "g").replace("{addr}", "a:1");
        let reply = broker.request("BREW", &filled, &[], "");
        reply.problem(405);
        let mut allowed: Vec<_> = reply.headers[ALLOW].to_str().unwrap().split(',').collect();
        allowed.retain(|method| *method != "HEAD");
        allowed.sort_unstable();
        let operations = document["paths"][&path].as_object().unwrap().keys();
        let documented: Vec<_> =
            operations.filter(|name| *name != "parameters").map(|name| name.to_ascii_uppercase()).collect();
        assert_eq!(allowed, documented, "{path}");
    }
}

/// The `Accept` header of browsers.
const BROWSER: (&str, &str) = ("accept", "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8");

#[test]
fn a_page_names_the_url_that_the_browser_has_found_it_at() {
    let broker = Fixture::new();
    let host = ("host", "broker.example:3000");
    let shows = |headers: &[(&str, &str)]| {
        let page = broker.request("GET", "/", &[&[BROWSER], headers].concat(), "").body;
        let page = String::from_utf8_lossy(&page).into_owned();
        let (_, url) = page.split_once("sentinel-runner bootstrap --broker ").expect("what to type");
        url.split(['<', ' ']).next().unwrap_or_default().to_owned()
    };
    assert_eq!(shows(&[host]), "http://broker.example:3000");
    assert_eq!(shows(&[host, ("x-forwarded-proto", "https")]), "https://broker.example:3000");
    // The last header is Spin's own; headers before it are the client's.
    let spins = |url| ("spin-full-url", url);
    assert_eq!(shows(&[host, spins("https://broker.example:3000/")]), "https://broker.example:3000");
    let forged = [host, spins("https://a/"), spins("http://broker.example:3000/")];
    assert_eq!(shows(&forged), "http://broker.example:3000");
    // A command contains nothing that a shell would interpret.
    assert_eq!(shows(&[("host", "a$(reboot)")]), "http://BROKER:3000");
    assert_eq!(shows(&[]), "http://BROKER:3000");
}

#[test]
fn a_roster_is_a_page_only_for_who_prefers_one() {
    let broker = Fixture::new();
    for (accept, is_page) in [
        (BROWSER.1, true),
        ("text/html", true),
        ("TEXT/HTML", true),
        ("text/*", true),
        ("text/html;charset=utf-8", true),
        ("text/html;q=0.1", true),
        ("text/html, application/json;q=0.9", true),
        ("application/json;q=0.2, */*;q=0.1, text/html;q=0.3", true),
        ("text/html, */*;q=0.1", true),
        ("*/*, application/json;q=0.5", true),
        ("junk, text/html, application/json;q=2", true),
        ("*/*", false),
        ("", false),
        ("application/json", false),
        ("text/html, application/json", false),
        ("text/html;q=0.5, application/json", false),
        ("text/html;q=0.5, */*", false),
        ("text/html;q=0", false),
        ("text/html;q=0, */*", false),
        ("text/html;q=high", false),
        ("text/html;q=NaN", false),
        ("text/html;q=-1", false),
        ("text/html;q=1.1", false),
        ("text/htmlx", false),
        ("html", false),
        ("image/png", false),
        ("application/*", false),
        ("ä", false),
        (";;;,,,===", false),
    ] {
        for path in ["/", "/groups/g", "/groups/g/"] {
            let reply = broker.request("GET", path, &[("accept", accept)], "");
            assert_eq!(reply.status, StatusCode::OK);
            let media_type = if is_page { "text/html; charset=utf-8" } else { "application/json" };
            assert_eq!(reply.headers[CONTENT_TYPE], media_type, "{accept:?}");
            assert_eq!(reply.headers[VARY], "Accept");
            let head = broker.request("HEAD", path, &[("accept", accept)], "");
            assert_eq!((head.status, head.body.len()), (reply.status, 0));
            assert_eq!(head.headers[CONTENT_TYPE], media_type);
        }
    }
    assert_eq!(broker.request("GET", "/", &[], "").headers[CONTENT_TYPE], "application/json");
    let lines = [("accept", "application/json;q=0.4"), ("accept", "text/html;q=0.5")];
    assert!(broker.request("GET", "/", &lines, "").is_page());
    // A list has no page.
    assert_eq!(broker.request("GET", "/redis", &[BROWSER], "").headers[CONTENT_TYPE], "application/json");
}

#[test]
fn a_page_is_kept_from_scripts_caches_and_other_sites() {
    let broker = Fixture::with(&[("api_token", "s3cr3t")]);
    for headers in [vec![BROWSER], vec![BROWSER, ("authorization", "Bearer s3cr3t")]] {
        let reply = broker.request("GET", "/", &headers, "");
        assert!(reply.is_page());
        let policy = reply.headers["content-security-policy"].to_str().unwrap();
        assert!(policy.starts_with("default-src 'none'; style-src 'sha256-"), "{policy}");
        for (name, value) in [
            ("x-content-type-options", "nosniff"),
            ("referrer-policy", "no-referrer"),
            ("cache-control", "no-store"),
            ("vary", "Accept"),
        ] {
            assert_eq!(reply.headers[name], value);
        }
        assert_eq!(reply.headers[CONTENT_LENGTH], reply.body.len().to_string());
    }
}

#[test]
fn a_browser_is_told_errors_as_pages_and_everybody_else_as_problems() {
    let broker = Fixture::with(&[("api_token", "s3cr3t")]);
    let signed_in = [BROWSER, ("authorization", "Bearer s3cr3t")];
    for (path, headers, status, said) in [
        ("/", &signed_in[..1], 401, "read_token"),
        ("/metrics", &signed_in[..1], 401, "Bearer"),
        ("/nothing", &signed_in[..], 404, "nothing is at this path"),
        ("/outcome", &signed_in[..], 405, "Allow"),
        ("/groups/%3Cscript%3Ealert(1)%3C%2Fscript%3E", &signed_in[..], 422, "&lt;script&gt;"),
        ("/groups/%FF", &signed_in[..], 400, "UTF-8"),
    ] {
        let reply = broker.request("GET", path, headers, "");
        assert_eq!(reply.status.as_u16(), status, "{path}");
        assert!(reply.is_page());
        let page = std::str::from_utf8(&reply.body).unwrap();
        assert!(page.contains(said) && !page.contains("<script"), "{page}");
        assert!(!page.contains("http-equiv"), "it will not pass by itself: {page}");
        assert_eq!(reply.headers[CONTENT_LENGTH], reply.body.len().to_string());
        let head = broker.request("HEAD", path, headers, "");
        assert_eq!(
            (head.status, head.headers, head.body.len()),
            (reply.status, without_length(&reply.headers), 0)
        );
        assert_eq!(reply.headers.contains_key(WWW_AUTHENTICATE), status == 401);
        assert_eq!(reply.headers.contains_key(ALLOW), status == 405);
    }
    broker.request("POST", "/redis", &[BROWSER, FROM], "").problem(401);
    broker.store.state().fails = Some(|_, _| true);
    let reply = broker.request("GET", "/", &signed_in, "");
    assert_eq!(reply.status, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(reply.headers[RETRY_AFTER], "1");
    let page = std::str::from_utf8(&reply.body).unwrap();
    assert!(page.contains("http-equiv=\"refresh\""), "a page that refreshed itself goes on doing so: {page}");
}

#[test]
fn a_full_group_is_409_until_a_node_is_forgotten() {
    let broker = Fixture::with(&[("max_registrations", "3")]);
    let post = |host: &str| broker.send_json("POST", "/redis", &json!({"host": host}));
    for host in ["a", "b", "c"] {
        assert_eq!(post(host).status, StatusCode::CREATED);
    }
    let detail = post("d").problem(409);
    for part in ["`mymaster`", "3", "`max_registrations`", "deregister redis HOST:PORT --group mymaster"] {
        assert!(detail.contains(part), "{detail}");
    }
    assert_eq!(post("c").status, StatusCode::OK);
    assert_eq!(broker.get("/redis")["redis"].as_array().unwrap().len(), 3);
    broker.request("DELETE", "/redis/a:6379", &[], "");
    assert_eq!(post("d").status, StatusCode::CREATED);
    post("e").problem(409);
    assert_eq!(
        broker.send_json("POST", "/groups/g/redis", &json!({"host": "e"})).status,
        StatusCode::CREATED
    );
}

#[test]
fn a_registration_that_is_not_made_again_in_time_is_stale_and_makes_room() {
    let broker =
        Fixture::with(&[("max_registrations", "2"), ("expected_redis", "2"), ("expected_sentinels", "1")]);
    let post = |kind: &str, body: Value| broker.send_json("POST", &format!("/{kind}"), &body);
    post("sentinel", json!({"host": "s"}));
    let first = post("redis", json!({"host": "a", "ttl": 300}));
    assert_eq!(
        (first.status, &first.json()["ttl"], &first.json()["stale"]),
        (StatusCode::CREATED, &json!(300), &json!(false))
    );
    post("redis", json!({"host": "b"}));
    let full = post("redis", json!({"host": "c"}));
    let detail = full.problem(409);
    assert!(detail.contains("deregister redis HOST:PORT --group mymaster"), "{detail}");
    assert_eq!(full.headers[RETRY_AFTER], "60");
    assert_eq!(broker.get("/")["ready"], true);

    // This has the same effect as waiting for five minutes.
    broker.age("reg:mymaster:redis:", 300);
    let roster = broker.get("/");
    assert_eq!((&roster["ready"], &roster["missing"]["redis"]), (&json!(false), &json!(1)));
    assert_eq!((&roster["redis"][0]["host"], &roster["redis"][0]["stale"]), (&json!("a"), &json!(true)));
    assert_eq!(broker.get("/redis/a:6379")["stale"], true);
    assert_eq!(
        broker.get("/groups")["groups"][0],
        json!({"group": "mymaster", "redis": 2, "sentinels": 1, "stale": 1, "ready": false})
    );
    let metrics = broker.request("GET", "/metrics", &[], "");
    let metrics = std::str::from_utf8(&metrics.body).unwrap();
    for line in [
        "sentinel_broker_stale_registrations{group=\"mymaster\",kind=\"redis\"} 1",
        "sentinel_broker_ready{group=\"mymaster\"} 0",
    ] {
        assert!(metrics.lines().any(|found| found == line), "{metrics}");
    }
    let page = broker.request("GET", "/", &[BROWSER], "");
    let page = std::str::from_utf8(&page.body).unwrap();
    assert!(page.contains("1 Redis server still to register, or to register again."), "{page}");

    assert_eq!(post("redis", json!({"host": "c"})).status, StatusCode::CREATED);
    assert_eq!(addrs(&broker.get("/redis")["redis"]), ["b:6379", "c:6379"]);
    assert_eq!(broker.get("/")["ready"], true);
    assert!(post("redis", json!({"host": "a"})).problem(409).contains("`max_registrations`"));
}

#[test]
fn a_ttl_that_nobody_can_mean_is_refused() {
    let broker = Fixture::new();
    for ttl in [json!(604_801), json!(0), json!(-1), json!("180"), json!(1.5), json!(1e99)] {
        let detail = broker.send_json("POST", "/redis", &json!({"ttl": ttl})).problem(422);
        assert!(detail.contains("`ttl` must be a whole number of seconds from 1 to 604800"), "{detail}");
    }
    assert!(broker.is_empty());
}

#[test]
fn what_a_node_is_a_member_of_is_in_the_roster() {
    let broker = Fixture::new();
    let master = json!({"host": "10.0.0.9", "port": 6379});
    broker.send_json("POST", "/sentinel", &json!({"master": master}));
    assert_eq!(broker.get("/")["sentinels"][0]["master"], master);
}

#[test]
fn there_are_max_groups_and_the_default_one_has_room_always() {
    let broker = Fixture::with(&[("max_groups", "2")]);
    let post =
        |group: &str| broker.send_json("POST", &format!("/groups/{group}/redis"), &json!({"host": "a"}));
    for group in ["a", "b"] {
        assert_eq!(post(group).status, StatusCode::CREATED);
    }
    let detail = post("c").problem(409);
    for part in ["`c`", "`max_groups`", "(2)", "`GET /groups`", "DELETE /groups/{group}"] {
        assert!(detail.contains(part), "{detail}");
    }
    assert_eq!(broker.send_json("POST", "/redis", &json!({"host": "a"})).status, StatusCode::CREATED);
    assert_eq!(post("a").status, StatusCode::OK);
}

#[test]
fn all_groups_are_shown_page_by_page() {
    let broker = Fixture::new();
    for number in 0..250 {
        broker.send_json("POST", &format!("/groups/g{number:03}/redis"), &json!({"host": "a"}));
    }
    let (mut path, mut names, mut pages) = ("/groups".to_owned(), Vec::new(), 0);
    loop {
        let page = broker.get(&path);
        names.extend(
            page["groups"]
                .as_array()
                .unwrap()
                .iter()
                .map(|group| group["group"].as_str().unwrap().to_owned()),
        );
        pages += 1;
        match page["next"].as_str() {
            Some(next) => path = next.to_owned(),
            None => break,
        }
    }
    assert_eq!((names.len(), pages), (250, 3));
    assert!(names.is_sorted());
    let bad = broker.request("GET", "/groups?after=a%20b", &[], "").problem(422);
    assert!(bad.contains("`after`"), "{bad}");
    assert_eq!(broker.get("/groups?after=%67249")["groups"], json!([]));
}

#[test]
fn a_kind_that_is_full_leaves_room_for_the_other() {
    let broker =
        Fixture::with(&[("max_registrations", "1"), ("expected_redis", "1"), ("expected_sentinels", "1")]);
    for (kind, other) in [("redis", "sentinel"), ("sentinel", "redis")] {
        let post =
            |kind: &str, host: &str| broker.send_json("POST", &format!("/{kind}"), &json!({"host": host}));
        assert_eq!(post(kind, "a").status, StatusCode::CREATED);
        assert!(post(kind, "b").problem(409).contains(kind));
        assert_eq!(post(other, "a").status, StatusCode::CREATED);
        broker.request("DELETE", "/", &[], "");
    }
}

/// Each answer is checked against the document when it is received.
#[test]
fn every_route_gives_every_error_that_it_can() {
    let large = " ".repeat(MAX_BODY_BYTES + 1);
    let bodies = [
        ("{", 400, "application/json"),
        (&large, 413, "application/json"),
        ("host=a", 415, "text/plain"),
        (r#"{"port": 0, "verified": 7}"#, 422, "application/json"),
    ];
    let mut given = 0;
    for (method, path) in openapi::requests() {
        let mut expect =
            |broker: &Fixture, method: &str, headers: &[(&str, &str)], body: &str, status: u16| {
                let reply = broker.request(method, &path, headers, body);
                reply.problem(status);
                given += 1;
                reply
            };
        let misconfigured = Fixture::with(&[("quorum", "many")]);
        expect(&misconfigured, &method, &[FROM], "", 503);
        let failing = Fixture::new();
        failing.store.state().fails = Some(|_, _| true);
        let body = if method == "PUT" { r#"{"verified": false, "reason": "x"}"# } else { "" };
        let headers = if method == "PUT" { vec![JSON] } else { vec![FROM] };
        if !["/config", "/openapi.json"].contains(&path.as_str()) {
            assert_eq!(expect(&failing, &method, &headers, body, 503).headers[RETRY_AFTER], "1");
        }
        let broker = Fixture::new();
        let allow = expect(&broker, "BREW", &[], "", 405).headers[ALLOW].to_str().unwrap().to_owned();
        assert!(allow.contains(&method), "{path}: {allow}");
        let takes_body = ["POST", "PUT"].contains(&method.as_str());
        for (body, status, media_type) in bodies.into_iter().filter(|_| takes_body) {
            expect(&broker, &method, &[("content-type", media_type), FROM], body, status);
        }
        assert!(broker.is_empty());
    }
    assert!(given > 100, "{given}");
}

#[test]
fn the_healthcheck_asks_the_store() {
    let broker = Fixture::new();
    assert_eq!(broker.get("/healthcheck"), json!({"status": "ok"}));
    assert_eq!(broker.store.take_operations(), ["get healthcheck"]);
    broker.store.state().fails = Some(|_, _| true);
    let reply = broker.request("GET", "/healthcheck", &[], "");
    reply.problem(503);
    assert_eq!(reply.headers[RETRY_AFTER], "1");
}

/// A broker with two nodes and an outcome. Its instance is new, or has read the roster.
fn filled(has_read: bool) -> Fixture {
    let broker = Fixture::new();
    for (kind, host) in [("redis", "a"), ("sentinel", "s")] {
        broker.send_json("POST", &format!("/{kind}"), &json!({"host": host}));
    }
    broker.send_json("PUT", "/outcome", &json!({"verified": false, "reason": "x"}));
    if has_read {
        // The first read stores the snapshot, and the second uses it.
        broker.get("/");
        broker.get("/");
    }
    broker.store.take_operations();
    broker
}

/// What a roster shows of the nodes and of the outcome.
fn shown(broker: &Fixture) -> impl PartialEq + std::fmt::Debug + use<> {
    let roster = broker.get("/");
    let [redis, sentinels] = ["redis", "sentinels"].map(|kind| addrs(&roster[kind]));
    (redis, sentinels, roster["outcome"]["reason"].clone())
}

#[test]
fn whichever_operation_of_the_store_fails_no_write_is_answered_as_done() {
    let outcome = json!({"verified": false, "reason": "y"});
    let requests = [
        ("POST", "/redis", json!({"host": "new"})),
        ("POST", "/redis", json!({"host": "a"})),
        ("DELETE", "/redis/a:6379", json!({})),
        ("DELETE", "/redis/absent:6379", json!({})),
        ("DELETE", "/", json!({})),
        ("PUT", "/outcome", outcome),
        ("GET", "/", json!({})),
        ("GET", "/redis", json!({})),
        ("GET", "/redis/a:6379", json!({})),
        ("GET", "/groups", json!({})),
    ];
    let both = requests.iter().flat_map(|request| [(request, true), (request, false)]);
    for ((method, path, body), has_read) in both {
        let broker = filled(has_read);
        assert!(broker.send_json(method, path, body).status.is_success());
        let operations = broker.store.take_operations();
        assert!(!operations.is_empty());
        for (place, operation) in operations.iter().enumerate() {
            let broker = filled(has_read);
            broker.store.state().fails_at = place;
            broker.store.state().fails = Some(|place, at| place == at);
            let reply = broker.send_json(method, path, body);
            if operation.contains(" snap:") && ["GET", "PUT"].contains(method) {
                assert!(reply.status.is_success(), "a snapshot can be done without");
                continue;
            }
            let detail = reply.problem(503);
            assert_eq!(reply.headers[RETRY_AFTER], "1");
            assert!(!detail.contains("told to fail"), "{detail}");
            // Once the store works, asking again completes the request.
            broker.store.state().fails = None;
            assert!(
                broker.send_json(method, path, body).status.is_success(),
                "{method} {path} after {operation}"
            );
            let unharmed = filled(has_read);
            unharmed.send_json(method, path, body);
            assert_eq!(shown(&broker), shown(&unharmed), "{method} {path} after {operation}");
        }
    }
}

#[test]
fn a_misconfigured_component_answers_everything_with_what_to_mend() {
    // Only a client with the token may see the values of variables, if a token is set. If the token is
    // unusable, only the log contains them.
    let wrong = [("expected_redis", "none"), ("quorum", "7")];
    let token = ("authorization", "Bearer s3cr3t");
    let other = ("authorization", "Bearer another");
    for (api_token, headers, may_see) in [
        ("", &[FROM][..], true),
        ("s3cr3t", &[FROM, token], true),
        ("s3cr3t", &[FROM, other], false),
        ("s3cr3t", &[FROM], false),
        ("two words", &[FROM, token], false),
    ] {
        let broker = Fixture::with(&[&wrong[..], &[("api_token", api_token)]].concat());
        for (method, path) in
            [("GET", "/"), ("POST", "/redis"), ("GET", "/healthcheck"), ("BREW", "/nothing")]
        {
            let reply = broker.request(method, path, headers, "");
            let detail = reply.problem(503);
            let may_see = may_see && (api_token.is_empty() || path != "/healthcheck");
            for told in ["`expected_redis`", "none", "`quorum`"] {
                assert_eq!(detail.contains(told), may_see, "{method} {path} {headers:?}: {detail}");
            }
            assert!(!detail.contains("two words"), "{detail}");
            assert_eq!(reply.headers[RETRY_AFTER], "1");
        }
        assert!(broker.is_empty());
    }
    let registry = Registry::new(MemoryStore::default());
    let settings = Settings::from_variables(|_| Err(Unreadable)).map(Arc::new);
    let response = block_on(respond(&router::<MemoryStore>(), settings, registry, Some(Request::default())));
    assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
}

#[test]
fn a_request_that_the_host_hands_over_unreadable_is_400() {
    let broker = Fixture::new();
    let response = block_on(respond(
        &router::<MemoryStore>(),
        broker.settings().map(Arc::new),
        Registry::new(broker.store.clone()),
        None,
    ));
    assert_eq!(response.status(), StatusCode::BAD_REQUEST);
    assert_eq!(response.headers()[CONTENT_TYPE], PROBLEM_JSON);
    assert_eq!(response.headers()[CACHE_CONTROL], "no-store");
}

/// Paths similar to the real ones, and other paths.
fn paths() -> impl Strategy<Value = String> {
    let part = prop_oneof![
        Just("redis".to_owned()),
        Just("sentinel".to_owned()),
        Just("groups".to_owned()),
        Just("outcome".to_owned()),
        "[a-z]{1,3}:[0-9]{1,6}",
        "[!-~&&[^?#\"<>\\\\^`{|}]]{0,12}",
        "(%[0-9A-F]{2}){1,6}",
    ];
    proptest::collection::vec(part, 0..5).prop_map(|parts| format!("/{}", parts.join("/")))
}

#[test]
fn an_empty_group_name_is_a_name_that_is_not_allowed() {
    let broker = Fixture::with(&[]);
    let status = |method: &str, path: &str| {
        broker.send(Request::builder().method(method).uri(path).body(Body::empty()).unwrap()).status
    };
    for path in ["/groups//redis", "/groups//"] {
        assert_eq!(status("GET", path), StatusCode::UNPROCESSABLE_ENTITY, "{path}");
    }
    assert_eq!(status("GET", "/groups//outcome"), StatusCode::METHOD_NOT_ALLOWED);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn junk_never_gets_a_5xx(
        method in prop_oneof![Just("GET"), Just("POST"), Just("PUT"), Just("DELETE"), Just("HEAD")],
        path in paths(),
        body in prop_oneof![
            proptest::collection::vec(any::<u8>(), 0..64),
            r#"\{("(host|port|run_id|verified|master|reason)":("[a-z]{0,3}"|[0-9]{1,6}|null|\{\}),?){0,3}\}"#
                .prop_map(String::into_bytes),
        ],
        headers in proptest::collection::vec(
            (
                prop_oneof![
                    Just("content-type"), Just("content-length"), Just("authorization"), Just("spin-client-addr"),
                    Just("x-forwarded-for"), Just("accept"),
                ],
                prop_oneof![
                    Just(b"application/json".to_vec()),
                    Just(b"10.0.0.1:1".to_vec()),
                    Just(b"text/html".to_vec()),
                    proptest::collection::vec((32..=255u8).prop_filter("DEL", |byte| *byte != 127), 0..24),
                ],
            ),
            0..5,
        ),
        hops in prop_oneof![Just("0"), Just("1"), Just("3")],
    ) {
        let broker = Fixture::with(&[("trusted_proxy_hops", hops)]);
        let mut request = Request::builder().method(method).uri(&path);
        for (name, value) in &headers {
            request = request.header(*name, value.as_slice());
        }
        // A request that can't be built is not sent.
        if let Ok(request) = request.body(Body::from(body)) {
            let reply = broker.send(request);
            prop_assert!(!reply.status.is_server_error(), "{reply:?}");
            if reply.status.is_client_error() {
                prop_assert!(broker.is_empty());
                prop_assert!(reply.headers[CONTENT_TYPE] == PROBLEM_JSON || reply.is_page());
            }
        }
    }
}

#[test]
fn a_roster_has_a_tag_that_changes_with_it_and_with_no_heartbeat() {
    let broker = Fixture::new();
    let get = |known: &[&str]| {
        let known: Vec<_> = known.iter().map(|tag| ("if-none-match", *tag)).collect();
        broker.request("GET", "/", &known, "")
    };
    let tag = || get(&[]).headers[ETAG].to_str().unwrap().to_owned();
    let empty = tag();
    broker.send_json("POST", "/redis", &json!({}));
    let one = tag();
    assert_ne!(one, empty);
    // A heartbeat, seen by an instance that lists again.
    let last_seen = broker.get("/")["redis"][0]["last_seen"].clone();
    broker.send_json("POST", "/redis", &json!({}));
    broker.registry.drop_kept();
    assert_ne!(broker.get("/")["redis"][0]["last_seen"], last_seen);
    assert_eq!(tag(), one);

    let strong = one.trim_start_matches("W/");
    for known in [&[one.as_str()][..], &[strong], &["\"x\", ", &one], &["*"], &[&format!("{empty}, {one}")]] {
        let reply = get(known);
        assert_eq!(reply.status, StatusCode::NOT_MODIFIED, "{known:?}");
        assert_eq!((reply.headers[ETAG].to_str().unwrap(), reply.body.len()), (one.as_str(), 0));
        assert!(reply.headers.get(CONTENT_LENGTH).is_none() && reply.headers.get(CONTENT_TYPE).is_none());
        assert_eq!(reply.headers[CACHE_CONTROL], "no-store");
        assert_eq!(reply.headers[VARY], "Accept");
    }
    let head = broker.request("HEAD", "/", &[("if-none-match", &one)], "");
    assert_eq!(head.status, StatusCode::NOT_MODIFIED);
    assert_eq!(head.headers[ETAG], one);
    // A page is always sent in full, because it shows how long ago something was.
    assert!(broker.request("GET", "/", &[("accept", "text/html"), ("if-none-match", &one)], "").is_page());

    for change in [
        ("POST", "/sentinel", json!({})),
        ("POST", "/redis", json!({"run_id": "r"})),
        ("POST", "/redis", json!({"ttl": 60})),
        ("PUT", "/outcome", json!({"verified": false, "reason": "r"})),
        ("DELETE", "/sentinel/10.0.0.7:26379", json!({})),
    ] {
        let before = tag();
        let (method, path, body) = change;
        assert!(broker.send_json(method, path, &body).status.is_success(), "{method} {path}");
        assert_eq!(get(&[&before]).status, StatusCode::OK, "{method} {path}");
    }
    // The expected numbers are a part of the roster.
    let before = tag();
    let other = Fixture {
        store: broker.store.clone(),
        registry: broker.registry.clone(),
        variables: vec![("expected_redis", "3")],
    };
    assert_ne!(other.request("GET", "/", &[], "").headers[ETAG], before);
}

#[test]
fn a_bad_wait_is_refused_and_some_hosts_answer_at_once() {
    let broker = Fixture::new();
    for bad in ["", "0", "31", "20m", "-1", "1.5", "x", "s", "99999999999999999999"] {
        let detail = broker.request("GET", &format!("/?wait={bad}"), &[], "").problem(422);
        assert!(detail.contains("`wait`") && detail.contains("1 to 30"), "{detail}");
    }
    let started = std::time::Instant::now();
    for path in ["/?wait=30", "/groups/g?wait=20s", "/groups/g/?wait=1s"] {
        let reply = broker.request("GET", path, &[], "");
        assert_eq!(reply.status, StatusCode::OK);
        let known = reply.headers[ETAG].to_str().unwrap();
        let again = broker.request("GET", path, &[("if-none-match", known)], "");
        assert_eq!(again.status, StatusCode::NOT_MODIFIED);
    }
    assert!(started.elapsed() < Duration::from_secs(1));
}
