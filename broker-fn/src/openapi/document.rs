//! Generates the document: schemas and examples from the types of the wire contract, problems from the
//! errors.

use std::borrow::Cow;
use std::num::NonZeroU16;

use expect_test::expect_file;
use schemars::generate::{SchemaGenerator, SchemaSettings};
use schemars::{JsonSchema, Schema, json_schema};
use serde::Serialize;
use serde_json::{Map, Value, json};

use crate::api::{
    Addr, Config, Expected, Group, GroupSummary, Groups, Health, Host, Kind, MAX_BODY_BYTES, Missing,
    Outcome, PROBLEM_JSON, Problem, RedisList, Register, Registration, Roster, RunId, SentinelList,
    Timestamp, Ttl,
};
use crate::metrics;
use crate::outcome::MAX_REASON_CHARS;
use crate::problem::Error;
use crate::registry::StoreError;

const JSON: &str = "application/json";
const HTML: &str = "text/html";
const NAME: &str = "^[A-Za-z0-9._-]{1,64}$";

#[test]
fn the_document_is_the_one_that_the_types_give() {
    // The descriptions' links to types mean nothing in this document.
    let text = serde_json::to_string_pretty(&document()).unwrap().replace("[`", "`").replace("`]", "`");
    let current = format!("{text}\n");
    // `UPDATE_EXPECT=1 cargo test -p broker-fn openapi` rewrites the file.
    expect_file![concat!(env!("CARGO_MANIFEST_DIR"), "/openapi.json")].assert_eq(&current);
}

/// A type that is encoded as text. The broker accepts more forms than it sends.
macro_rules! text_schema {
    ($type:ident, read: $read:tt, written: $written:tt) => {
        impl JsonSchema for $type {
            fn schema_name() -> Cow<'static, str> {
                stringify!($type).into()
            }

            fn json_schema(generator: &mut SchemaGenerator) -> Schema {
                if generator.contract().is_deserialize() {
                    json_schema!($read)
                } else {
                    json_schema!($written)
                }
            }
        }
    };
}

text_schema! {
    Group,
    read: {"type": "string", "pattern": NAME},
    written: {"type": "string", "pattern": NAME, "description": "The Sentinel master name.", "examples": ["mymaster"]}
}

text_schema! {
    RunId,
    read: {"type": "string", "pattern": NAME},
    written: {"type": "string", "pattern": NAME, "description": "`run_id` of `INFO server`, or `SENTINEL MYID`."}
}

// No pattern can describe exactly the addresses and DNS names that the broker accepts. These patterns match
// more.
text_schema! {
    Host,
    read: {
        "type": "string", "minLength": 1, "maxLength": 254, "pattern": "^[0-9A-Za-z.:\\[\\]-]+$",
        "description": "An IPv4 or IPv6 address or a DNS name (RFC 1123) of one node: not unspecified, multicast or broadcast."
    },
    written: {
        "type": "string", "minLength": 1, "maxLength": 253, "pattern": "^[0-9a-z.:-]+$",
        "description": "An IPv4 or IPv6 address or a DNS name, in normal form: lower case, no brackets, no trailing dot.",
        "examples": ["10.0.0.7", "fd00::7", "redis-0.redis.example"]
    }
}

text_schema! {
    Timestamp,
    read: {
        "type": "string",
        "pattern": "^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}(\\.[0-9]*)?(Z|\\+00:00)$",
        "description": "RFC 3339 in UTC, from the year 1970 on."
    },
    written: {
        "type": "string", "format": "date-time",
        "pattern": "^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}\\.[0-9]{9}Z$",
        "description": "RFC 3339 in UTC, with nine decimals.",
        "examples": ["2026-11-22T10:00:00.123456789Z"]
    }
}

impl JsonSchema for Ttl {
    fn schema_name() -> Cow<'static, str> {
        "Ttl".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        let (least, most) = Ttl::SECONDS;
        json_schema!({"type": "integer", "minimum": least, "maximum": most, "description": "Seconds.", "examples": [180]})
    }
}

fn document() -> Value {
    let settings = SchemaSettings::draft2020_12().for_serialize().with(|settings| {
        settings.definitions_path = "/components/schemas".into();
        settings.meta_schema = None;
    });
    let mut document =
        Document { schemas: settings.into_generator(), paths: Map::new(), problems: Map::new() };
    document.add_group_routes(false);
    document.add_group_routes(true);
    document.add_broker_routes();
    let Document { mut schemas, paths, problems } = document;

    let mut schemas = Value::Object(schemas.take_definitions(true));
    schemas["OutcomeRequest"] = read_schema::<Outcome>();
    schemas["RegisterRequest"] = read_schema::<Register>();
    for outcome in ["Outcome", "OutcomeRequest"] {
        require_master_or_reason(&mut schemas[outcome]);
    }
    schemas["Problem"]["properties"]["type"]["const"] = json!("about:blank");
    schemas["Health"]["properties"]["status"]["const"] = json!("ok");
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "Sentinel Broker",
            "version": env!("CARGO_PKG_VERSION"),
            "license": {"name": "MIT", "identifier": "MIT"},
            "description":
                "Registers the Redis servers and Sentinels that form one system.\n\n\
                 Root paths act on the default group. The same paths below `/groups/{group}` act on that \
                 group. Every path that takes `GET` takes `HEAD`. Errors are RFC 9457 problem details; if a \
                 client that reads prefers `text/html`, they are pages. The broker ignores query parameters \
                 that are not documented, and bodies of requests that take none. If the broker's variable \
                 `api_token` is not set, no request needs a token.",
        },
        "servers": [{"url": "/"}],
        "security": [{"token": []}, {}],
        "tags": [
            {"name": "group", "description": "One group: its registrations, its roster and its outcome."},
            {"name": "broker", "description": "The broker itself."},
        ],
        "paths": paths,
        "components": {
            "schemas": schemas,
            "responses": problems,
            "parameters": {
                "group": {
                    "name": "group", "in": "path", "required": true,
                    "description": "The group's name. A slash after it, at the end of the path, changes nothing.",
                    "schema": {"type": "string", "pattern": NAME}, "example": "mymaster",
                },
                "after": {
                    "name": "after", "in": "query", "required": false,
                    "description": "The last group of the previous page. `next` of that page contains it.",
                    "schema": {"type": "string", "pattern": NAME}, "example": "mymaster",
                },
                "wait": {
                    "name": "wait", "in": "query", "required": false,
                    "description": "How long to wait for a change, in seconds from 1 to 30. The broker \
                                    answers as soon as the roster differs from the one in `If-None-Match` \
                                    (without this header: from the current one), and at the latest after \
                                    this time. If the broker is busy, or if its host can't wait, it answers \
                                    at once.",
                    "schema": {"type": "string", "pattern": "^([1-9]|[12][0-9]|30)s?$"}, "example": "20s",
                },
                "known": {
                    "name": "If-None-Match", "in": "header", "required": false,
                    "description": "The `ETag` of the roster that the client has.",
                    "schema": {"type": "string"},
                },
                "addr": {
                    "name": "addr", "in": "path", "required": true,
                    "description": "`host:port`, an IPv6 host in brackets, percent-encoded.",
                    "schema": {"type": "string", "pattern": "^(\\[[0-9A-Fa-f:.]+\\]|[0-9A-Za-z.-]+):[0-9]+$"},
                    "example": "10.0.0.7:6379",
                },
            },
            "securitySchemes": {
                "token": {
                    "type": "http", "scheme": "bearer",
                    "description": "The broker's `api_token`. To read, its `read_token` is enough.",
                },
                "browser": {
                    "type": "http", "scheme": "basic",
                    "description": "Only for reading. Any user name, and a token as the password.",
                },
            },
        },
    })
}

/// A rule that the types of an outcome do not express: a verified outcome contains the master, and every
/// other outcome contains the reason.
fn require_master_or_reason(outcome: &mut Value) {
    outcome["properties"]["reason"]["maxLength"] = json!(MAX_REASON_CHARS);
    outcome["properties"]["at"].as_object_mut().unwrap().remove("default");
    outcome["anyOf"] = json!([
        {
            "properties": {"verified": {"const": true}, "master": {"type": "object"}},
            "required": ["verified", "master"],
        },
        {
            "properties": {"verified": {"const": false}, "reason": {"type": "string", "minLength": 1}},
            "required": ["verified", "reason"],
        },
    ]);
}

/// The schema of a type in a request, with all its definitions inside.
fn read_schema<T: JsonSchema>() -> Value {
    let settings = SchemaSettings::draft2020_12().for_deserialize().with(|settings| {
        settings.inline_subschemas = true;
        settings.meta_schema = None;
    });
    let mut schema = settings.into_generator().into_root_schema_for::<T>();
    schema.remove("title");
    schema.to_value()
}

/// The document under construction.
struct Document {
    schemas: SchemaGenerator,
    paths: Map<String, Value>,
    /// The responses that contain a problem, by name.
    problems: Map<String, Value>,
}

/// The answers that a request can get instead of the requested one.
#[derive(Clone, Copy, Default)]
struct Failures {
    path_has_parameters: bool,
    takes_body: bool,
    takes_query: bool,
    can_be_full: bool,
    asks_no_token: bool,
    writes: bool,
}

impl Document {
    fn add_group_routes(&mut self, named: bool) {
        let (prefix, id) = if named { ("/groups/{group}", "group_") } else { ("", "") };
        let parameters = if named { json!([parameter("group")]) } else { json!([]) };
        let reads = Failures { path_has_parameters: named, ..Failures::default() };
        let writes = Failures { writes: true, ..reads };

        let content = self.json_of::<Roster>(&roster());
        let mut shows_roster =
            success("The roster, or a page that shows it if the client prefers `text/html`.", &content);
        shows_roster["content"][HTML] = json!({"schema": {"type": "string"}});
        let mut tag = header("Changes when the roster does, except for `last_seen`.", "^W/\"[0-9a-f-]+\"$");
        let known =
            json!({"description": "The roster is the one in `If-None-Match`.", "headers": {"ETag": tag}});
        // A page has no schema.
        tag["required"] = json!(false);
        shows_roster["headers"] = json!({"ETag": tag});
        let mut get = self.operation(
            &format!("{id}roster"),
            "The whole roster of the group",
            json!({"200": shows_roster, "304": known}),
            Failures { takes_query: true, ..reads },
        );
        get["parameters"] = json!([parameter("wait"), parameter("known")]);
        let delete = self.operation(&format!("{id}delete_group"), "Deletes the group", done(), writes);
        let path = if named { prefix } else { "/" };
        self.add(path, &parameters, [("get", get), ("delete", delete)]);

        let mut put = self.operation(
            &format!("{id}put_outcome"),
            "Stores the outcome of a run",
            done(),
            Failures { takes_body: true, ..writes },
        );
        put["requestBody"] = json!({
            "required": true,
            "content": {JSON: {"schema": schema("OutcomeRequest"), "examples": {
                "verified": {"value": outcome()},
                "not verified": {"value": {"verified": false, "reason": "10.0.0.8:6379 can't be reached"}},
            }}},
        });
        self.add(&format!("{prefix}/outcome"), &parameters, [("put", put)]);

        for kind in Kind::ALL {
            let (what, list, example) = match kind {
                Kind::Redis => {
                    let list = RedisList { redis: roster().redis };
                    ("Redis server", self.json_of::<RedisList>(&list), registration(kind))
                }
                Kind::Sentinel => {
                    let list = SentinelList { sentinels: vec![registration(kind)] };
                    ("Sentinel", self.json_of::<SentinelList>(&list), registration(kind))
                }
            };
            let get = self.operation(
                &format!("{id}list_{kind}"),
                &format!("Every {what} of the group, first registered first"),
                json!({"200": success("The list.", &list)}),
                reads,
            );
            let one = self.json_of::<Registration>(&example);
            let mut created = success("The registration is new.", &one);
            created["headers"] = json!({"Location": header("The path of the registration.", "^/[^ ]+$")});
            let mut post = self.operation(
                &format!("{id}register_{kind}"),
                &format!("Registers the caller, or the node that the body names, as a {what}"),
                json!({"201": created, "200": success("The node was registered already.", &one)}),
                Failures { takes_body: true, can_be_full: true, ..writes },
            );
            post["requestBody"] = json!({
                "required": false,
                "description": format!(
                    "Each field is optional. Default `host`: the address of the caller; default `port`: {}.",
                    kind.default_port()
                ),
                "content": {JSON: {
                    "schema": schema("RegisterRequest"),
                    "examples": {
                        "address": {"value": {"host": "10.0.0.7", "port": kind.default_port()}},
                        "for three minutes": {"value": {"ttl": 180}},
                    },
                }},
            });
            self.add(&format!("{prefix}/{kind}"), &parameters, [("get", get), ("post", post)]);

            let mut parameters = parameters.clone();
            parameters.as_array_mut().unwrap().push(parameter("addr"));
            let get = self.operation(
                &format!("{id}show_{kind}"),
                "One registration",
                json!({"200": success("The registration.", &one)}),
                Failures { path_has_parameters: true, ..reads },
            );
            let delete = self.operation(
                &format!("{id}deregister_{kind}"),
                "Deregisters the node, if it is registered",
                done(),
                Failures { path_has_parameters: true, ..writes },
            );
            self.add(&format!("{prefix}/{kind}/{{addr}}"), &parameters, [("get", get), ("delete", delete)]);
        }
    }

    fn add_broker_routes(&mut self) {
        let summary = GroupSummary { group: group(), redis: 1, sentinels: 0, stale: 0, ready: false };
        let groups = Groups { groups: vec![summary], next: Some("/groups?after=mymaster".into()) };
        let config = Config {
            default_group: group(),
            expected: roster().expected,
            trusted_proxy_hops: 0,
            max_registrations: 64,
            max_groups: 1000,
        };
        let mut shows_groups = self.json_of::<Groups>(&groups);
        shows_groups[HTML] = json!({"schema": {"type": "string"}});
        let metrics = json!({metrics::CONTENT_TYPE: {"schema": {"type": "string"}}});
        for (path, id, summary, content) in [
            (
                "/groups",
                "groups",
                "Every group that has a registration or an outcome, by name and page by page",
                shows_groups,
            ),
            ("/config", "config", "The settings in force, without secrets", self.json_of::<Config>(&config)),
            ("/metrics", "metrics", "Registrations by group and kind, for Prometheus", metrics),
            ("/openapi.json", "openapi", "This document", json!({JSON: {"schema": {"type": "object"}}})),
            (
                "/healthcheck",
                "healthcheck",
                "Whether the store answers; the only path that needs no token",
                self.json_of::<Health>(&Health { status: "ok".into() }),
            ),
        ] {
            let asks_no_token = path == "/healthcheck";
            let takes_query = path == "/groups";
            let failures = Failures { asks_no_token, takes_query, ..Failures::default() };
            let mut get =
                self.operation(id, summary, json!({"200": success("Success.", &content)}), failures);
            get["tags"] = json!(["broker"]);
            let parameters = if takes_query { json!([parameter("after")]) } else { json!([]) };
            self.add(path, &parameters, [("get", get)]);
        }
    }

    fn add<const N: usize>(&mut self, path: &str, parameters: &Value, operations: [(&str, Value); N]) {
        let mut item = json!({"parameters": parameters});
        for (method, operation) in operations {
            item[method] = operation;
        }
        assert!(self.paths.insert(path.to_owned(), item).is_none(), "{path} is there twice");
    }

    fn operation(&mut self, id: &str, summary: &str, successes: Value, failures: Failures) -> Value {
        let Value::Object(mut responses) = successes else { panic!("{successes}") };
        for (status, problem) in self.failures(failures) {
            responses.insert(status, json!({"$ref": format!("#/components/responses/{problem}")}));
        }
        let mut operation =
            json!({"operationId": id, "summary": summary, "tags": ["group"], "responses": responses});
        if failures.asks_no_token {
            operation["security"] = json!([]);
        } else if !failures.writes {
            operation["security"] = json!([{"token": []}, {"browser": []}, {}]);
        }
        operation
    }

    /// The problems that a request can be answered with, by status.
    fn failures(&mut self, failures: Failures) -> Vec<(String, String)> {
        let Failures { path_has_parameters, takes_body, takes_query, can_be_full, asks_no_token, writes } =
            failures;
        let full = Error::Full { group: group(), kind: Kind::Redis, max: 64, frees: None };
        let errors = [
            (
                true,
                "Malformed",
                Error::Malformed("the body is not JSON: expected value at line 1 column 1".into()),
            ),
            (!asks_no_token, "Unauthorized", Error::Unauthorized { reads: !writes }),
            (!asks_no_token && writes, "Forbidden", Error::Forbidden { runner: false }),
            (path_has_parameters, "NotFound", Error::NotFound("nothing is at this path".into())),
            (true, "MethodNotAllowed", Error::MethodNotAllowed),
            (takes_body, "TooSlow", Error::TooSlow),
            (takes_body, "TooLarge", Error::TooLarge),
            (takes_body, "NotJson", Error::NotJson),
            (
                path_has_parameters || takes_body || takes_query,
                "Invalid",
                Error::Invalid("`port` must be a whole number from 1 to 65535".into()),
            ),
            (can_be_full, "Full", full),
            (true, "Unavailable", Error::Store(StoreError(String::new()))),
        ];
        let mut found = Vec::new();
        for (_, name, error) in errors.iter().filter(|(applies, ..)| *applies) {
            // Only the answer to a request that reads can be a page.
            let name = format!("{name}{}", if writes { "" } else { "OrPage" });
            found.push((error.status().as_str().to_owned(), name.clone()));
            if !self.problems.contains_key(&name) {
                let response = self.problem(error, !writes);
                self.problems.insert(name, response);
            }
        }
        found
    }

    fn problem(&mut self, error: &Error, or_page: bool) -> Value {
        let schema = self.schemas.subschema_for::<Problem>();
        let mut content = json!({PROBLEM_JSON: {"schema": schema, "example": error.problem()}});
        if or_page {
            content[HTML] = json!({"schema": {"type": "string"}});
        }
        let (description, headers) = match error {
            Error::Malformed(_) => {
                ("The request can't be read, or its body is not JSON.".to_owned(), json!({}))
            }
            Error::Unauthorized { .. } => (
                "The token is missing or wrong.".to_owned(),
                json!({"WWW-Authenticate": header("How to send a token.", "^Bearer ")}),
            ),
            Error::Forbidden { .. } | Error::CrossSite => (
                "The credentials do not allow this request, or a page of another site sent it.".to_owned(),
                json!({}),
            ),
            Error::NotFound(_) => ("Nothing is at this path.".to_owned(), json!({})),
            Error::MethodNotAllowed => (
                "The path does not take this method.".to_owned(),
                json!({"Allow": header("The methods that the path takes.", "^[A-Z]+(,[A-Z]+)*$")}),
            ),
            Error::TooSlow => ("The body did not arrive in time.".to_owned(), json!({})),
            Error::TooLarge => (format!("The body is longer than {MAX_BODY_BYTES} bytes."), json!({})),
            Error::NotJson => ("The body is not declared as JSON.".to_owned(), json!({})),
            Error::Invalid(_) => ("A value is not valid.".to_owned(), json!({})),
            Error::Full { .. } | Error::TooManyGroups { .. } => (
                "The group has as many registrations as `max_registrations` allows, or it is new and there \
                 are as many groups as `max_groups` allows. If a registration in the group can become stale, \
                 `Retry-After` contains how long that takes."
                    .to_owned(),
                {
                    let mut retry_after = header("Seconds.", "^[0-9]+$");
                    retry_after["required"] = json!(false);
                    json!({"Retry-After": retry_after})
                },
            ),
            Error::Misconfigured(_) | Error::MisconfiguredWithoutDetails(_) | Error::Store(_) => (
                "The store failed or was too slow, or the broker is misconfigured.".to_owned(),
                json!({"Retry-After": header("Seconds.", "^[0-9]+$")}),
            ),
        };
        json!({"description": description, "headers": headers, "content": content})
    }

    /// JSON of a type, with an example.
    fn json_of<T: JsonSchema + Serialize>(&mut self, example: &T) -> Value {
        json!({JSON: {"schema": self.schemas.subschema_for::<T>(), "example": example}})
    }
}

fn schema(name: &str) -> Value {
    json!({"$ref": format!("#/components/schemas/{name}")})
}

fn parameter(name: &str) -> Value {
    json!({"$ref": format!("#/components/parameters/{name}")})
}

fn header(description: &str, pattern: &str) -> Value {
    json!({"description": description, "required": true, "schema": {"type": "string", "pattern": pattern}})
}

fn success(description: &str, content: &Value) -> Value {
    json!({"description": description, "content": content})
}

fn done() -> Value {
    json!({"204": {"description": "Done."}})
}

fn group() -> Group {
    "mymaster".parse().unwrap()
}

fn registration(kind: Kind) -> Registration {
    let moment: Timestamp = "2026-11-22T10:00:00.123456789Z".parse().unwrap();
    Registration::new(Addr { host: "10.0.0.7".parse().unwrap(), port: kind.default_port() }, moment)
}

fn roster() -> Roster {
    let expected = Expected { redis: 2, sentinels: 3, quorum: 2 };
    let missing: Missing = expected.missing(1, 0);
    let redis = vec![registration(Kind::Redis)];
    Roster {
        group: group(),
        ready: false,
        expected,
        missing,
        redis,
        sentinels: vec![],
        outcome: None,
        last_verified: None,
    }
}

fn outcome() -> Outcome {
    Outcome {
        verified: true,
        master: Some(Addr {
            host: "10.0.0.7".parse().unwrap(),
            port: const { NonZeroU16::new(6379).unwrap() },
        }),
        at: "2026-11-22T10:00:02Z".parse().unwrap(),
        reason: None,
        restore: Default::default(),
        expected: None,
    }
}
