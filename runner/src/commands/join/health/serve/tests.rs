use serde_json::Value;

use super::*;
use crate::commands::join::health::judge::tests::{master, now, replica, seen};
use crate::commands::join::health::seen::{Lag, ServerPhase};
use crate::node::endpoint::Endpoint;

async fn ask(method: Method, path: &str, seen: &SeenNodes, now: Instant) -> (u16, String) {
    use http_body_util::BodyExt as _;

    let request = Request::builder().method(method).uri(path).body(()).unwrap();
    let answer = answer(&request, seen, now);
    let status = answer.status().as_u16();
    let body = answer.into_body().collect().await.unwrap().to_bytes();
    (status, String::from_utf8(body.to_vec()).unwrap())
}

#[tokio::test]
async fn each_path_says_yes_or_no_and_why() {
    let now = now();
    let (master, mut replica) = (seen(master(0), [], now), seen(replica(), [], now));
    replica.lag = Some((now, Lag { master: Endpoint::new("10.0.0.8", 6379), bytes: 7 }));
    let mut waits = seen_nothing();
    waits.phase = ServerPhase::Waits("for two Sentinels".into());
    let cases = [
        (&master, "/primary", 200),
        (&master, "/master", 200),
        (&master, "/replica", 503),
        (&master, "/ready", 200),
        (&master, "/live", 200),
        (&replica, "/primary", 503),
        (&replica, "/replica", 200),
        (&replica, "/replica?lag=7", 200),
        (&replica, "/replica?lag=6", 503),
        (&replica, "/replica?lag=near", 400),
        (&replica, "/ready", 200),
        (&replica, "/readable", 200),
        (&waits, "/readable", 503),
        (&waits, "/primary", 503),
        (&waits, "/ready", 503),
        (&waits, "/live", 200),
        (&waits, "/metrics", 200),
        (&master, "/", 404),
    ];
    for (seen, path, expected) in cases {
        let (status, body) = ask(Method::GET, path, seen, now).await;
        assert_eq!(status, expected, "{path}: {body}");
        if path != "/metrics" {
            let body: Value = serde_json::from_str(&body).unwrap();
            assert_eq!(body["ok"], expected == 200, "{path}: {body}");
            assert!(body["why"].as_str().is_some_and(|why| !why.is_empty()), "{path}: {body}");
        }
        assert_eq!(ask(Method::OPTIONS, path, seen, now).await, (expected, String::new()));
    }
    let (_, why) = ask(Method::GET, "/ready", &waits, now).await;
    assert!(why.contains("for two Sentinels"), "{why}");
    assert_eq!(ask(Method::POST, "/primary", &master, now).await.0, 405);
}

fn seen_nothing() -> SeenNodes {
    SeenNodes::new(broker_fn::api::Kind::Redis, None)
}
