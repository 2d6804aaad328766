//! Answers HTTP from the last answers of the nodes. No request waits for a server. If clients hold
//! connections open, the oldest connection makes room for the next one.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use serde_json::json;
use tokio::net::TcpListener;
use tokio::sync::watch::Receiver;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{Instant, sleep, timeout};

use super::judge::{self, Verdict, role};
use super::metrics::metrics;
use super::seen::SeenNodes;
use crate::report::Report;

/// How many connections there are at most. The next one ends the oldest: clients that hold connections open
/// must not keep out health checks.
const CONNECTIONS: usize = 64;

/// How long the head of a request may take, and how long a kept connection may stay idle.
const HEAD: Duration = Duration::from_secs(5);

/// How long a connection lasts at most.
const LASTS: Duration = Duration::from_secs(60);

/// How long after a failed attempt to listen the next one follows.
const LISTEN_AGAIN: Duration = Duration::from_secs(1);

type Answer = Response<Full<Bytes>>;

/// Answers for as long as this task runs. A failure to listen is reported once, and does not stop the server.
pub async fn serve(addr: SocketAddr, seen: Receiver<SeenNodes>, report: Report) {
    let mut reported = false;
    let listener = loop {
        match TcpListener::bind(addr).await {
            Ok(listener) => break listener,
            Err(error) => {
                if !reported {
                    reported = true;
                    report.warning(format_args!(
                        "--health: can't listen on {addr}: {error}; retrying every second\nhint: set \
                         another address with --health, or stop the program that listens there"
                    ));
                }
                sleep(LISTEN_AGAIN).await;
            }
        }
    };
    if let Ok(addr) = listener.local_addr() {
        report.event(format_args!("health: http://{addr}/"));
    }
    let mut connections = JoinSet::new();
    let mut oldest_first = VecDeque::<AbortHandle>::new();
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            // For example, there are too many open files.
            sleep(LISTEN_AGAIN).await;
            continue;
        };
        while connections.try_join_next().is_some() {}
        oldest_first.retain(|connection| !connection.is_finished());
        if oldest_first.len() >= CONNECTIONS
            && let Some(oldest) = oldest_first.pop_front()
        {
            oldest.abort();
        }
        let seen = seen.clone();
        oldest_first.push_back(connections.spawn(async move {
            let answer = service_fn(move |request: Request<hyper::body::Incoming>| {
                let answered = answer(&request, &seen.borrow(), Instant::now());
                async move { Ok::<_, Infallible>(answered) }
            });
            let serve = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEAD)
                .serve_connection(TokioIo::new(stream), answer);
            // A client that goes away in the middle is no error.
            let _ = timeout(LASTS, serve).await;
        }));
    }
}

fn answer<B>(request: &Request<B>, seen: &SeenNodes, now: Instant) -> Answer {
    let method = request.method();
    if ![Method::GET, Method::HEAD, Method::OPTIONS].contains(method) {
        let mut answer = refusal(StatusCode::METHOD_NOT_ALLOWED, "use GET, HEAD or OPTIONS");
        answer.headers_mut().insert(ALLOW, "GET, HEAD, OPTIONS".parse().expect("it is a header"));
        return answer;
    }
    let mut answer = match request.uri().path() {
        "/primary" | "/master" => verdict(&judge::primary(seen, now), seen),
        "/replica" => match most_lag(request.uri().query().unwrap_or_default()) {
            Ok(most) => verdict(&judge::replica(seen, most, now), seen),
            Err(why) => refusal(StatusCode::BAD_REQUEST, why),
        },
        "/readable" => verdict(&judge::readable(seen, now), seen),
        "/ready" => verdict(&judge::ready(seen, now), seen),
        "/live" => verdict(&Ok("join is running".into()), seen),
        "/metrics" => respond(StatusCode::OK, "text/plain; version=0.0.4", metrics(seen, now)),
        _ => refusal(StatusCode::NOT_FOUND, "use /primary, /replica, /readable, /ready, /live or /metrics"),
    };
    if method == Method::OPTIONS {
        *answer.body_mut() = Full::default();
    }
    answer
}

/// The `lag` of a query, in bytes.
fn most_lag(query: &str) -> Result<Option<u64>, &'static str> {
    let lag = query.split('&').find_map(|pair| pair.strip_prefix("lag="));
    lag.map(|lag| lag.parse().map_err(|_| "lag must be a number of bytes")).transpose()
}

fn verdict(verdict: &Verdict, seen: &SeenNodes) -> Answer {
    let (status, why) = match verdict {
        Ok(why) => (StatusCode::OK, why),
        Err(why) => (StatusCode::SERVICE_UNAVAILABLE, why),
    };
    let body = json!({ "ok": verdict.is_ok(), "role": seen.server().map(role), "why": why });
    respond(status, "application/json", format!("{body}\n"))
}

fn refusal(status: StatusCode, why: &str) -> Answer {
    respond(status, "application/json", format!("{}\n", json!({ "ok": false, "why": why })))
}

fn respond(status: StatusCode, content_type: &'static str, body: String) -> Answer {
    let response = Response::builder()
        .status(status)
        .header(CONTENT_TYPE, content_type)
        .header(CACHE_CONTROL, "no-store")
        .body(Full::from(body));
    response.expect("these are headers")
}

#[cfg(test)]
mod tests;
