//! The wire contract, with each of the compiled components and on each of Spin's kinds of store, in the local
//! host and, if there is one, in Spin.

use std::iter;
use std::sync::LazyLock;
use std::time::{Duration, Instant};

use broker_fn::api::{Groups, Problem, Registration, Roster};
use e2e::host::Wasi;
use e2e::spin::{Search, Spin};
use e2e::{Broker, BrokerBuilder, Lab, Reply, eventually, scenario};
use futures::future::try_join_all;
use http::Method;

use crate::support::{LIMIT, tried, whole_sweep};

/// Runs a test on brokers of both builds, with SQLite and with Redis for their store: in the local host, and
/// in Spin if there is one.
#[expect(clippy::needless_pass_by_value, reason = "a closure that is written where it is given")]
fn on_each_store(test: impl AsyncFn(&Lab, BrokerBuilder) -> anyhow::Result<()>) {
    Wasi::ALL.into_iter().for_each(|wasi| on_each_store_with(wasi, &test));
}

/// Like [`on_each_store`], for a test that loads the machine. Without the whole sweep it leaves out one case:
/// Redis with the build that has an instance for each request.
fn on_each_store_under_load(test: impl AsyncFn(&Lab, BrokerBuilder) -> anyhow::Result<()>) {
    if whole_sweep() || spin().is_some() {
        return on_each_store(test);
    }
    on_each_store_with(Wasi::V0_3, &test);
    scenario(async |lab| test(lab, Broker::builder().built_for(Wasi::V0_2)).await);
}

#[expect(clippy::needless_pass_by_value, reason = "as above")]
fn on_each_store_with(wasi: Wasi, test: impl AsyncFn(&Lab, BrokerBuilder) -> anyhow::Result<()>) {
    let spin = spin();
    for on in iter::once(None).chain(spin.as_ref().filter(|spin| spin.has(wasi)).map(Some)) {
        let broker = || match on {
            Some(spin) => Broker::builder().built_for(wasi).on_spin(spin),
            None => Broker::builder().built_for(wasi),
        };
        scenario(async |lab| test(lab, broker()).await);
        scenario(async |lab| {
            let redis = lab.redis().start().await?;
            test(lab, broker().store(format!("redis://{}", redis.addr()).as_str())).await
        });
    }
}

/// The Spin to test with, if there is one. Prints once on which hosts the contract is tested.
pub(crate) fn spin() -> Option<Spin> {
    static SEARCH: LazyLock<Result<Search, String>> = LazyLock::new(|| {
        let search = Spin::search().map_err(|error| format!("{error:#}"));
        tried(match &search {
            Ok(Search::Found(spin)) => {
                format!(
                    "hosts tried: the local host and `spin up` (Spin {}), each with SQLite and with Redis, of either build where it has WASI 0.3",
                    spin.version()
                )
            }
            Ok(Search::None(why)) => {
                format!(
                    "hosts tried: the local host, with WASI 0.3 and 0.2, each with SQLite and with Redis; not `spin up`: {why}"
                )
            }
            Err(error) => format!("hosts tried: none: {error}"),
        });
        search
    });
    match &*SEARCH {
        Ok(Search::Found(spin)) => Some(spin.clone()),
        Ok(Search::None(_)) => None,
        Err(error) => panic!("{error}"),
    }
}

#[track_caller]
fn expect_problem(reply: &Reply, status: u16) {
    assert_eq!(reply.status, status, "{reply}");
    assert_eq!(reply.header("content-type"), Some("application/problem+json"), "{reply}");
    let problem: Problem = reply.json().expect("a problem document");
    assert_eq!(problem.status, status);
    assert!(!problem.detail.is_empty() && !problem.title.is_empty(), "{reply}");
}

#[test]
fn a_roster_that_is_known_is_not_sent_again() {
    on_each_store(async |lab, broker| {
        let broker = lab.broker(broker)?;
        broker.post("/redis").from([127, 0, 0, 7]).send().await?;
        let first = broker.get("/").send().await?;
        let known = first.header("etag").expect("a roster has a tag");
        let again = broker.get("/").header("if-none-match", known).send().await?;
        assert_eq!((again.status.as_u16(), again.body.len()), (304, 0), "{again}");
        assert_eq!((again.header("etag"), again.header("content-length")), (Some(known), None));
        for bad in ["0s", "31s", "1m", ""] {
            expect_problem(&broker.get(format!("/?wait={bad}")).send().await?, 422);
        }
        Ok(())
    });
}

#[test]
fn no_request_waits_if_each_has_an_instance_of_its_own() {
    on_each_store_with(Wasi::V0_2, async |lab, broker| {
        let broker = lab.broker(broker)?;
        let first = broker.get("/").send().await?;
        let known = first.header("etag").expect("a roster has a tag");
        let started = Instant::now();
        let reply = broker.get("/?wait=30s").header("if-none-match", known).send().await?;
        assert_eq!(reply.status, 304);
        assert!(started.elapsed() < Duration::from_secs(20), "{:?}", started.elapsed());
        Ok(())
    });
}

#[test]
fn timed_a_request_with_wait_is_answered_when_the_roster_changes() {
    on_each_store_with(Wasi::V0_3, async |lab, broker| {
        let broker = lab.broker(broker)?;
        broker.post("/redis").from([127, 0, 0, 7]).send().await?;
        let first = broker.get("/").send().await?;
        let known = first.header("etag").expect("a roster has a tag").to_owned();
        let ask = |path: &str| broker.get(path).header("if-none-match", &known).send();

        let started = Instant::now();
        assert_eq!(ask("/?wait=1s").await?.status, 304);
        let took = started.elapsed();
        assert!((Duration::from_secs(1)..Duration::from_secs(3)).contains(&took), "{took:?}");
        let head =
            broker.request(Method::HEAD, "/?wait=1s").header("if-none-match", &known).http2().send().await?;
        assert_eq!(head.status, 304);

        let started = Instant::now();
        let change = async {
            tokio::time::sleep(Duration::from_millis(500)).await;
            broker.post("/sentinel").from([127, 0, 0, 8]).send().await
        };
        // Without a tag, the broker waits until the roster differs from the one at the beginning of the
        // request.
        let without_tag = broker.get("/?wait=30s").send();
        let (changed, without_tag, change) = futures::join!(ask("/?wait=30s"), without_tag, change);
        assert_eq!(change?.status, 201);
        for reply in [changed?, without_tag?] {
            let roster: Roster = reply.json()?;
            assert_eq!((roster.redis.len(), roster.sentinels.len()), (1, 1), "{reply}");
            assert_ne!(reply.header("etag"), Some(known.as_str()));
        }
        assert!(started.elapsed() < Duration::from_secs(3), "{:?}", started.elapsed());
        Ok(())
    });
}

#[test]
fn a_roster_contains_its_nodes_and_the_numbers_that_are_missing() {
    on_each_store(async |lab, broker| {
        let broker = lab.broker(broker)?;
        let first = broker.post("/redis").from([127, 0, 0, 7]).send().await?;
        assert_eq!((first.status.as_u16(), first.header("location")), (201, Some("/redis/127.0.0.7:6379")));
        let again = broker.post("/redis").from([127, 0, 0, 7]).send().await?;
        assert_eq!(again.status, 200);
        let (first, again): (Registration, Registration) = (first.json()?, again.json()?);
        assert_eq!((&first.addr, first.registered_at), (&again.addr, again.registered_at));
        assert!(again.last_seen > first.last_seen);

        let roster: serde_json::Value = broker.get("/").send().await?.json()?;
        assert_eq!(roster["group"], "mymaster");
        assert_eq!(roster["ready"], false);
        assert_eq!(roster["expected"], serde_json::json!({"redis": 2, "sentinels": 3, "quorum": 2}));
        assert_eq!(roster["missing"], serde_json::json!({"redis": 1, "sentinels": 3}));
        assert_eq!(roster["redis"][0]["host"], "127.0.0.7");
        assert_eq!(
            roster["redis"][0]["registered_at"].as_str().map(str::len),
            Some("2026-11-22T10:00:00.123456789Z".len())
        );
        assert_eq!(
            (&roster["sentinels"], &roster["outcome"]),
            (&serde_json::json!([]), &serde_json::Value::Null)
        );

        assert_eq!(broker.delete("/redis/127.0.0.7:6379").send().await?.status, 204);
        assert_eq!(broker.delete("/redis/127.0.0.7:6379").send().await?.status, 204);
        let roster: Roster = broker.get("/").send().await?.json()?;
        assert_eq!(roster.redis, []);
        Ok(())
    });
}

/// A request with each kind of mistake: the method, the path, the media type, the body, and the status of the
/// answer. The unit tests of the routes contain every rule.
const MISTAKES: [(Method, &str, &str, &str, u16); 18] = [
    (Method::POST, "/redis", JSON, "{", 400),
    (Method::POST, "/groups/other/sentinel", JSON, "\u{0}", 400),
    (Method::GET, "/groups/%ff", "", "", 400),
    (Method::GET, "/nonsense", "", "", 404),
    (Method::GET, "/redis/10.9.9.9:6379", "", "", 404),
    (Method::GET, "/groups/other/nonsense", "", "", 404),
    (Method::PUT, "/redis", "", "", 405),
    (Method::PATCH, "/groups/other/redis", "", "", 405),
    (Method::DELETE, "/sentinel", "", "", 405),
    (Method::POST, "/redis", "", "host=10.0.0.8", 415),
    (Method::POST, "/sentinel", "application/x-www-form-urlencoded", "host=10.0.0.8", 415),
    (Method::POST, "/redis", JSON, r#"{"host": "0.0.0.0"}"#, 422),
    (Method::POST, "/groups/other/redis", JSON, r#"{"port": 65536}"#, 422),
    (Method::POST, "/sentinel", JSON, r#"{"hots": "10.0.0.8"}"#, 422),
    (Method::DELETE, "/redis/nonsense", "", "", 422),
    (Method::GET, "/groups/no%20group", "", "", 422),
    (Method::DELETE, "/groups/no%20group", "", "", 422),
    (Method::PUT, "/outcome", JSON, r#"{"verified": true}"#, 422),
];

const JSON: &str = "application/json";

#[test]
fn bad_input_gets_a_problem_and_changes_nothing() {
    on_each_store(async |lab, broker| {
        let broker = lab.broker(broker)?;
        broker.post("/redis").json(&serde_json::json!({"host": "10.0.0.7"})).send().await?;
        let before = broker.get("/").send().await?.text();
        let long = format!(r#"{{"host": "{}"}}"#, "a".repeat(5000));
        let too_long = (Method::POST, "/redis", JSON, &*long, 413);
        for (method, path, media_type, body, status) in MISTAKES.into_iter().chain([too_long]) {
            let mut request = broker.request(method, path).body(body.to_owned());
            if !media_type.is_empty() {
                request = request.header("content-type", media_type);
            }
            let reply = request.send().await?;
            expect_problem(&reply, status);
            let allows_post = reply.header("allow").is_some_and(|allow| allow.contains("POST"));
            assert_eq!(allows_post, status == 405, "{reply}");
        }
        assert_eq!(broker.get("/").send().await?.text(), before);
        let groups: serde_json::Value = broker.get("/groups").send().await?.json()?;
        assert_eq!(groups["groups"].as_array().map(Vec::len), Some(1), "{groups}");
        Ok(())
    });
}

#[test]
fn a_client_can_not_say_where_it_comes_from() {
    on_each_store(async |lab, broker| {
        let broker = lab.broker(broker)?;
        let reply = broker
            .post("/redis")
            .from([127, 0, 0, 9])
            .header("spin-client-addr", "10.0.0.1:1")
            .header("x-forwarded-for", "10.0.0.2")
            .header("x-real-ip", "10.0.0.3")
            .header("forwarded", "for=10.0.0.4")
            .send()
            .await?;
        assert_eq!(reply.json::<Registration>()?.addr.to_string(), "127.0.0.9:6379");
        Ok(())
    });
}

#[test]
fn behind_trusted_proxies_the_caller_is_counted_from_the_right() {
    on_each_store(async |lab, broker| {
        let broker = lab.broker(broker.variable("trusted_proxy_hops", 1))?;
        let reply = broker
            .post("/redis")
            .header("x-forwarded-for", "10.0.0.1, 10.0.0.2")
            .header("x-forwarded-for", "10.0.0.3")
            .header("spin-client-addr", "10.0.0.4:1")
            .header("x-real-ip", "10.0.0.5")
            .header("forwarded", "for=10.0.0.6")
            .send()
            .await?;
        assert_eq!(reply.json::<Registration>()?.addr.to_string(), "10.0.0.3:6379");
        // If a request has not passed the proxy, none of its headers can be trusted.
        expect_problem(&broker.post("/redis").header("x-real-ip", "10.0.0.5").send().await?, 422);
        Ok(())
    });
}

#[test]
fn long_a_bound_is_exceeded_only_by_those_that_register_at_once() {
    on_each_store_under_load(async |lab, broker| {
        const MAX: usize = 8;
        const AT_ONCE: usize = 64;
        let broker = &lab.broker(broker.variable("max_registrations", MAX))?;
        let register = async |kind: &str, number: usize| {
            let host = format!("10.0.{}.{}", number / 200, number % 200 + 1);
            broker.post(format!("/{kind}")).json(&serde_json::json!({"host": host})).send().await
        };
        for kind in ["redis", "sentinel"] {
            for batch in (0..10 * AT_ONCE).collect::<Vec<_>>().chunks(AT_ONCE) {
                for reply in try_join_all(batch.iter().map(|number| register(kind, *number))).await? {
                    assert!([201, 409].contains(&reply.status.as_u16()), "{reply}");
                }
            }
            expect_problem(&register(kind, 10_000).await?, 409);
        }
        // The requests of one batch run at the same time. As many other requests may come in between.
        let roster: Roster = broker.get("/").send().await?.json()?;
        for held in [roster.redis.len(), roster.sentinels.len()] {
            println!("{held} registered, of {MAX} allowed, by {AT_ONCE} at once");
            assert!((MAX..=3 * AT_ONCE).contains(&held), "{held}");
        }
        assert_eq!(broker.post("/groups/other/redis").send().await?.status, 201);
        Ok(())
    });
}

#[test]
fn metrics_the_document_and_head_are_answered() {
    on_each_store(async |lab, broker| {
        let broker = lab.broker(broker.variable("expected_redis", 1).variable("expected_sentinels", 1))?;
        for path in ["/redis", "/sentinel", "/groups/other/redis"] {
            assert_eq!(broker.post(path).send().await?.status, 201);
        }
        let metrics = broker.get("/metrics").send().await?;
        assert_eq!(metrics.header("content-type"), Some("text/plain; version=0.0.4; charset=utf-8"));
        for line in [
            r#"sentinel_broker_registrations{group="mymaster",kind="redis"} 1"#,
            r#"sentinel_broker_registrations{group="other",kind="sentinel"} 0"#,
            r#"sentinel_broker_ready{group="mymaster"} 1"#,
            r#"sentinel_broker_ready{group="other"} 0"#,
            "sentinel_broker_groups 2",
        ] {
            assert!(metrics.text().lines().any(|given| given == line), "{line}: {metrics}");
        }
        let document: serde_json::Value = broker.get("/openapi.json").send().await?.json()?;
        assert!(
            document["openapi"].as_str().is_some_and(|version| version.starts_with("3.1.")),
            "{document}"
        );
        for path in ["/", "/redis", "/groups", "/config", "/metrics", "/openapi.json", "/healthcheck"] {
            let (get, head) =
                (broker.get(path).send().await?, broker.request(Method::HEAD, path).send().await?);
            assert_eq!((get.status.as_u16(), head.status.as_u16()), (200, 200), "{path}");
            assert_eq!(get.header("content-type"), head.header("content-type"), "{path}");
            assert!(!get.body.is_empty(), "{path}");
        }
        Ok(())
    });
}

#[test]
fn what_happens_to_a_group_changes_no_other() {
    on_each_store(async |lab, broker| {
        let broker = lab.broker(broker)?;
        for path in ["/redis", "/groups/one/redis", "/groups/two/sentinel"] {
            assert_eq!(broker.post(path).send().await?.status, 201);
        }
        let groups: serde_json::Value = broker.get("/groups").send().await?.json()?;
        let summary = |group: &str, redis: usize, sentinels: usize| serde_json::json!({"group": group, "redis": redis, "sentinels": sentinels, "ready": false});
        assert_eq!(
            groups["groups"],
            serde_json::json!([summary("mymaster", 1, 0), summary("one", 1, 0), summary("two", 0, 1)])
        );
        assert_eq!(broker.delete("/groups/one").send().await?.status, 204);
        let one: Roster = broker.get("/groups/one").send().await?.json()?;
        let default: Roster = broker.get("/").send().await?.json()?;
        assert_eq!((one.redis.len(), default.redis.len()), (0, 1));
        Ok(())
    });
}

#[test]
fn a_token_closes_every_path_but_the_healthcheck() {
    on_each_store(async |lab, broker| {
        let broker = lab.broker(broker.variable("api_token", "s3cret"))?;
        for path in ["/", "/redis", "/groups", "/config", "/groups/other", "/nonsense"] {
            let reply = broker.get(path).send().await?;
            expect_problem(&reply, 401);
            assert!(reply.header("www-authenticate").is_some_and(|value| value.starts_with("Bearer")));
            expect_problem(&broker.get(path).header("authorization", "Bearer wrong").send().await?, 401);
            let known = broker.get(path).header("authorization", "Bearer s3cret").send().await?;
            assert_ne!(known.status, 401);
            assert!(!known.text().contains("s3cret"));
        }
        assert_eq!(broker.get("/healthcheck").send().await?.status, 200);
        Ok(())
    });
}

#[test]
fn a_read_token_only_reads() {
    on_each_store(async |lab, broker| {
        let broker = lab.broker(broker.variable("api_token", "s3cret").variable("read_token", "r3ad"))?;
        let with = |method: Method, path: &str, token: &str| {
            broker.request(method, path).header("authorization", format!("Bearer {token}"))
        };
        assert_eq!(with(Method::POST, "/redis", "s3cret").send().await?.status, 201);
        let before = with(Method::GET, "/", "r3ad").send().await?;
        assert_eq!(before.status, 200, "{before}");
        for (method, path) in [
            (Method::POST, "/redis"),
            (Method::POST, "/groups/other/sentinel"),
            (Method::PUT, "/outcome"),
            (Method::DELETE, "/redis/127.0.0.1:6379"),
            (Method::DELETE, "/"),
        ] {
            expect_problem(&with(method.clone(), path, "r3ad").send().await?, 403);
            expect_problem(&broker.request(method, path).send().await?, 401);
        }
        assert_eq!(with(Method::GET, "/", "r3ad").send().await?.text(), before.text());
        Ok(())
    });
}

#[test]
fn long_registrations_from_many_connections_at_once_are_all_kept() {
    // The scenario also fails if the component touches its store while it lists keys. In Spin, that hangs.
    on_each_store_under_load(async |lab, broker| {
        let broker = &lab.broker(broker.variable("max_registrations", "1000"))?;
        let register = |number: u16| async move {
            let body = serde_json::json!({"host": format!("10.0.{}.{}", number / 200, number % 200 + 1)});
            let reply = broker.post("/redis").json(&body).send().await?;
            assert_eq!(reply.status, 201, "{reply}");
            let seen: Roster = broker.get("/").send().await?.json()?;
            let registered: Registration = reply.json()?;
            assert!(seen.redis.contains(&registered), "answered, and not in the roster");
            Ok::<_, anyhow::Error>(())
        };
        for batch in (0..400).collect::<Vec<u16>>().chunks(40) {
            try_join_all(batch.iter().copied().map(register)).await?;
        }
        let roster: Roster = broker.get("/").send().await?.json()?;
        assert_eq!(roster.redis.len(), 400);
        assert!(roster.redis.is_sorted_by_key(|registration| registration.registered_at));
        Ok(())
    });
}

#[test]
fn http2_is_answered_as_http1_is() {
    on_each_store(async |lab, broker| {
        let broker = lab.broker(broker)?;
        let registered =
            broker.post("/redis").json(&serde_json::json!({"host": "10.0.0.7"})).http2().send().await?;
        assert_eq!(registered.status, 201, "{registered}");
        for path in ["/", "/redis", "/config", "/healthcheck", "/openapi.json", "/nothing"] {
            let get = broker.get(path).send().await?;
            let other = broker.get(path).http2().send().await?;
            assert_eq!((get.status, get.text()), (other.status, other.text()), "{path}");
            let head = broker.request(Method::HEAD, path).http2().send().await?;
            assert_eq!((head.status, head.body.len()), (get.status, 0), "{path}");
            // Spin compares the length of the body that it sends with this header.
            assert_eq!(head.header("content-length"), None, "{path}");
        }
        Ok(())
    });
}

#[test]
fn an_outcome_is_kept_for_a_group_that_exists() {
    on_each_store(async |lab, broker| {
        let broker = lab.broker(broker)?;
        let outcome = serde_json::json!({"verified": true, "master": {"host": "10.0.0.7", "port": 6379}});
        expect_problem(&broker.put("/outcome").json(&outcome).send().await?, 404);
        assert_eq!(
            broker.post("/redis").json(&serde_json::json!({"host": "10.0.0.7"})).send().await?.status,
            201
        );
        assert_eq!(broker.put("/outcome").json(&outcome).send().await?.status, 204);
        let roster: serde_json::Value = broker.get("/").send().await?.json()?;
        assert_eq!(roster["outcome"]["verified"], true);
        assert_eq!(roster["outcome"]["master"]["port"], 6379);
        assert!(roster["outcome"]["at"].as_str().is_some_and(|at| at.ends_with('Z')));
        Ok(())
    });
}

/// Registers a node with this body.
async fn register(broker: &Broker, path: &str, body: serde_json::Value) -> anyhow::Result<Reply> {
    broker.post(path).json(&body).send().await
}

#[test]
fn an_outcome_that_no_run_can_have_seen_is_refused() {
    on_each_store(async |lab, broker| {
        let broker = lab.broker(broker)?;
        assert_eq!(register(&broker, "/redis", serde_json::json!({"host": "10.0.0.7"})).await?.status, 201);
        let before = broker.get("/").send().await?.text();
        let master = serde_json::json!({"host": "10.0.0.7", "port": 6379});
        let failed = |more: serde_json::Value| {
            let mut outcome = serde_json::json!({"verified": false, "reason": "why"});
            outcome.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
            outcome
        };
        let restore = |node: &str, name: &str, value: &str| {
            failed(serde_json::json!({"restore": {node: {name: value}}}))
        };
        for outcome in [
            serde_json::json!({"verified": true, "master": {"host": "10.0.0.8", "port": 6379}}),
            serde_json::json!({"verified": true, "master": master, "at": "2020-01-01T00:00:00Z"}),
            serde_json::json!({"verified": true, "master": master, "at": "9999-01-01T00:00:00Z"}),
            restore("10.0.0.7:6379", "repl-diskless-sync-delay", "2147483647"),
            restore("10.0.0.7:6379", "requirepass", ""),
            restore("10.0.0.8:6379", "repl-diskless-sync-delay", "5"),
        ] {
            expect_problem(&broker.put("/outcome").json(&outcome).send().await?, 422);
        }
        assert_eq!(broker.get("/").send().await?.text(), before);
        for outcome in [
            restore("10.0.0.7:6379", "repl-diskless-sync-delay", "5"),
            serde_json::json!({"verified": true, "master": master}),
        ] {
            assert_eq!(broker.put("/outcome").json(&outcome).send().await?.status, 204, "{outcome}");
        }
        // The last verified system stays, even if a later run expects other numbers.
        let asks_for_more =
            failed(serde_json::json!({"expected": {"redis": 9, "sentinels": 3, "quorum": 2}}));
        assert_eq!(broker.put("/outcome").json(&asks_for_more).send().await?.status, 204);
        let roster: Roster = broker.get("/").send().await?.json()?;
        let last = roster.last_verified.expect("it was verified");
        assert_eq!((last.master.to_string().as_str(), last.expected.redis), ("10.0.0.7:6379", 2));
        assert!(!roster.outcome.expect("a run has ended").verified);
        Ok(())
    });
}

#[test]
fn a_path_of_dots_is_no_group() {
    on_each_store(async |lab, broker| {
        let broker = lab.broker(broker)?;
        assert_eq!(register(&broker, "/redis", serde_json::json!({"host": "10.0.0.7"})).await?.status, 201);
        for group in [".", "..", "%2e", "%2e%2e", "%2E%2e"] {
            for path in
                [format!("/groups/{group}"), format!("/groups/{group}/"), format!("/groups/{group}/redis")]
            {
                let method = if path.ends_with("redis") { Method::POST } else { Method::DELETE };
                let reply = broker.request(method, &path).send().await?;
                assert!([404, 405, 422].contains(&reply.status.as_u16()), "{path}: {reply}");
            }
        }
        let roster: Roster = broker.get("/").send().await?.json()?;
        assert_eq!(roster.redis.len(), 1);
        Ok(())
    });
}

#[test]
fn with_a_runner_token_nodes_write_no_outcome_and_delete_no_group() {
    on_each_store(async |lab, broker| {
        let broker = lab.broker(broker.variable("api_token", "n0de").variable("runner_token", "runn3r"))?;
        let with = |method: Method, path: &str, token: &str| {
            broker.request(method, path).header("authorization", format!("Bearer {token}"))
        };
        let body = serde_json::json!({"host": "10.0.0.7"});
        assert_eq!(with(Method::POST, "/redis", "n0de").json(&body).send().await?.status, 201);
        let outcome = serde_json::json!({"verified": true, "master": {"host": "10.0.0.7", "port": 6379}});
        for path in ["/outcome", "/groups/mymaster/outcome"] {
            expect_problem(&with(Method::PUT, path, "n0de").json(&outcome).send().await?, 403);
        }
        for path in ["/", "/groups/mymaster", "/groups/mymaster/"] {
            expect_problem(&with(Method::DELETE, path, "n0de").send().await?, 403);
        }
        let roster: Roster = with(Method::GET, "/", "n0de").send().await?.json()?;
        assert_eq!((roster.redis.len(), roster.outcome), (1, None));
        assert_eq!(with(Method::PUT, "/outcome", "runn3r").json(&outcome).send().await?.status, 204);
        assert_eq!(with(Method::DELETE, "/redis/10.0.0.7:6379", "n0de").send().await?.status, 204);
        assert_eq!(with(Method::DELETE, "/", "runn3r").send().await?.status, 204);
        Ok(())
    });
}

#[test]
fn a_page_of_another_site_changes_nothing() {
    on_each_store(async |lab, broker| {
        let broker = lab.broker(broker)?;
        for (name, value) in [
            ("origin", "https://elsewhere.example"),
            ("origin", "null"),
            ("sec-fetch-site", "cross-site"),
            ("sec-fetch-site", "same-site"),
        ] {
            expect_problem(&broker.post("/redis").header(name, value).send().await?, 403);
            expect_problem(&broker.delete("/").header(name, value).send().await?, 403);
            assert_eq!(broker.get("/").header(name, value).send().await?.status, 200, "{name}: {value}");
        }
        let own = format!("http://{}", broker.addr());
        assert_eq!(broker.post("/redis").header("origin", own).send().await?.status, 201);
        Ok(())
    });
}

#[test]
fn a_wrong_variable_is_shown_only_with_the_token() {
    on_each_store(async |lab, broker| {
        let broker = lab.broker(broker.variable("api_token", "s3cret").variable("quorum", "many"))?;
        let anybody = broker.get("/").send().await?;
        expect_problem(&anybody, 503);
        assert!(!anybody.text().contains("many"), "{anybody}");
        let known = broker.get("/").header("authorization", "Bearer s3cret").send().await?;
        expect_problem(&known, 503);
        assert!(known.text().contains("`quorum` is \\\"many\\\""), "{known}");
        Ok(())
    });
}

#[test]
fn long_a_node_that_does_not_register_again_is_stale_and_makes_room() {
    on_each_store(async |lab, broker| {
        let two = broker.variable("max_registrations", 2).variable("expected_sentinels", 1);
        let broker = lab.broker(two)?;
        let redis = |host: &str, ttl: Option<u32>| serde_json::json!({"host": host, "ttl": ttl});
        assert_eq!(broker.post("/sentinel").send().await?.status, 201);
        for host in ["10.0.0.7", "10.0.0.8"] {
            assert_eq!(register(&broker, "/groups/full/redis", redis(host, Some(3600))).await?.status, 201);
        }
        let full = register(&broker, "/groups/full/redis", redis("10.0.0.9", None)).await?;
        expect_problem(&full, 409);
        assert_eq!(full.header("retry-after"), Some("60"), "{full}");
        for (host, ttl) in [("10.0.0.7", None), ("10.0.0.8", Some(1))] {
            assert_eq!(register(&broker, "/redis", redis(host, ttl)).await?.status, 201);
        }
        let roster = until_stale(&broker, "10.0.0.8").await?;
        assert_eq!((roster.ready, roster.missing.redis), (false, 1), "{roster:?}");
        let groups: serde_json::Value = broker.get("/groups").send().await?.json()?;
        let summary =
            serde_json::json!({"group": "mymaster", "redis": 2, "sentinels": 1, "stale": 1, "ready": false});
        assert_eq!(groups["groups"][1], summary);
        // A node that registers again is not stale any more, at once.
        assert_eq!(register(&broker, "/redis", redis("10.0.0.8", Some(3600))).await?.status, 200);
        let roster: Roster = broker.get("/").send().await?.json()?;
        assert!(roster.ready && roster.redis.iter().all(|node| !node.stale), "{roster:?}");
        assert_eq!(register(&broker, "/redis", redis("10.0.0.8", Some(1))).await?.status, 200);
        until_stale(&broker, "10.0.0.8").await?;
        assert_eq!(register(&broker, "/redis", redis("10.0.0.9", None)).await?.status, 201);
        let roster: Roster = broker.get("/").send().await?.json()?;
        let hosts: Vec<_> = roster.redis.iter().map(|node| node.addr.host.as_str()).collect();
        assert_eq!((hosts, roster.ready), (vec!["10.0.0.7", "10.0.0.9"], true));
        Ok(())
    });
}

/// Waits until this node is stale, and returns the roster.
async fn until_stale(broker: &Broker, host: &str) -> anyhow::Result<Roster> {
    eventually(LIMIT, async || {
        let roster: Roster = broker.get("/").send().await?.json()?;
        let is_stale = roster.redis.iter().any(|node| node.stale && node.addr.host.as_str() == host);
        anyhow::ensure!(is_stale, "{host} is not stale: {roster:?}");
        Ok(roster)
    })
    .await
}

#[test]
fn the_master_of_a_registration_is_kept() {
    on_each_store(async |lab, broker| {
        let broker = lab.broker(broker)?;
        let master = serde_json::json!({"host": "10.0.0.7", "port": 6379});
        register(&broker, "/sentinel", serde_json::json!({"host": "10.0.0.9", "master": master})).await?;
        let roster: serde_json::Value = broker.get("/").send().await?.json()?;
        assert_eq!(roster["sentinels"][0]["master"], master);
        Ok(())
    });
}

#[test]
fn long_groups_are_bounded_and_paged_and_deleted_ones_make_room() {
    on_each_store_under_load(async |lab, broker| {
        let broker = &lab.broker(broker.variable("max_groups", 150))?;
        let post = async |number: usize| broker.post(format!("/groups/g{number:03}/redis")).send().await;
        for number in 0..150 {
            let reply = post(number).await?;
            assert_eq!(reply.status, 201, "{reply}");
        }
        for number in [150, 151] {
            expect_problem(&post(number).await?, 409);
        }
        assert_eq!(broker.post("/redis").send().await?.status, 201, "the default group has room");
        assert_eq!(post(7).await?.status, 200);
        let (mut path, mut names) = ("/groups".to_owned(), Vec::new());
        loop {
            let page: Groups = broker.get(&path).send().await?.json()?;
            names.extend(page.groups.into_iter().map(|summary| summary.group.to_string()));
            let Some(next) = page.next else { break };
            path = next;
        }
        let all = (0..150).map(|number| format!("g{number:03}")).chain(["mymaster".to_owned()]);
        assert_eq!(names, all.collect::<Vec<_>>());
        for number in 0..150 {
            assert_eq!(broker.delete(format!("/groups/g{number:03}")).send().await?.status, 204);
        }
        let left: Groups = broker.get("/groups").send().await?.json()?;
        assert_eq!(left.groups.len(), 1, "{left:?}");
        // While there are too many groups, they are counted again at most every two seconds.
        eventually(LIMIT, async || {
            let reply = post(150).await?;
            anyhow::ensure!(reply.status == 201, "there is no room: {reply}");
            Ok(())
        })
        .await
    });
}
