//! HTTP as in Spin's trigger: `crates/trigger-http/src` of spinframework/spin at 94a8fc8 (4.1.0-pre0, August
//! 2026). What Spin logs, and sends to a collector of traces if configured, is left out.

use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use bytes::Bytes;
use http::header::{CONNECTION, CONTENT_TYPE, HOST};
use http::uri::{Authority, Scheme};
use http::{HeaderName, HeaderValue, Request, Response, StatusCode, Uri};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use hyper_util::server::graceful::GracefulShutdown;
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use wasmtime_wasi_http::WasiBody;
use wasmtime_wasi_http::handler::ProxyHandler;

use super::guest::{App, Instances};

/// How long requests that are under way at shutdown may take.
const GRACE: Duration = Duration::from_secs(5);

/// Serves until `shutdown` is done, and then finishes the requests that are under way.
pub(super) async fn serve(
    listener: TcpListener,
    server: Server,
    shutdown: impl Future<Output = ()>,
) -> io::Result<()> {
    let server = Arc::new(server);
    let graceful = GracefulShutdown::new();
    let mut connections = JoinSet::new();
    let mut shutdown = pin!(shutdown);
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                // TCP_NODELAY stays unset, as in Spin: clients meet Spin's delays here too.
                let (stream, client) = accepted?;
                let server = server.clone();
                let service = service_fn(move |request| {
                    let server = server.clone();
                    async move { server.respond(request, client).await }
                });
                // HTTP/2 without TLS is accepted too, if the client begins with it.
                let builder = auto::Builder::new(TokioExecutor::new());
                let connection = builder.serve_connection(TokioIo::new(stream), service);
                let connection = graceful.watch(connection.into_owned());
                connections.spawn(async move {
                    // A client that goes away or doesn't speak HTTP is not the host's fault.
                    let _ = connection.await;
                });
            }
            Some(_) = connections.join_next() => {}
            () = &mut shutdown => break,
        }
    }
    drop(listener);
    // After the grace period, dropping `connections` ends the rest.
    let _ = tokio::time::timeout(GRACE, graceful.shutdown()).await;
    Ok(())
}

/// Answers requests.
pub(super) struct Server {
    pub(super) handler: ProxyHandler<Instances>,
    pub(super) app: Arc<App>,
}

impl Server {
    /// An error closes the connection without an answer, as Spin does for a request without a usable `Host`.
    async fn respond(
        &self,
        mut request: Request<Incoming>,
        client: SocketAddr,
    ) -> Result<Response<WasiBody>> {
        request.headers_mut().remove(CONNECTION);
        match request.uri().path() {
            "/.well-known/spin/health" => return Ok(plain(StatusCode::OK, "OK")),
            path if path.starts_with("/.well-known/spin/") => return Ok(plain(StatusCode::NOT_FOUND, "")),
            _ => {}
        }
        let what = format!("{} {}", request.method(), request.uri());
        *request.uri_mut() = absolute_uri(&request)?;
        if let Err(error) = add_spin_headers(&mut request, client) {
            // This is the client's fault, so it is not recorded as a failure. Spin also answers with this
            // status.
            eprintln!("local-host: {what}: {error:#}");
            return Ok(plain(StatusCode::INTERNAL_SERVER_ERROR, "the request can't be passed on"));
        }
        let request = request.map(|body| body.map_err(wasmtime_wasi_http::Error::from).boxed_unsync());
        Ok(self.handler.handle((), request).await.unwrap_or_else(|error| {
            self.app.failed(format!("{what}: the component gave no answer: {error:?}"));
            plain(StatusCode::INTERNAL_SERVER_ERROR, "the component failed; the local host's log says how")
        }))
    }
}

fn plain(status: StatusCode, text: &'static str) -> Response<WasiBody> {
    let body = Full::new(Bytes::from_static(text.as_bytes())).map_err(|never| match never {}).boxed_unsync();
    let mut response = Response::new(body);
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain"));
    response
}

/// The request's URI with the scheme and the authority that the component sees.
fn absolute_uri<B>(request: &Request<B>) -> Result<Uri> {
    let mut parts = request.uri().clone().into_parts();
    let host = request.headers().get(HOST).map(|host| -> Result<Authority> { Ok(host.to_str()?.parse()?) });
    parts.authority = match (host.transpose()?, parts.authority) {
        (Some(host), Some(authority)) if host != authority => {
            anyhow::bail!("`Host` and the request's target differ")
        }
        (host, authority) => Some(host.or(authority).context("no `Host`")?),
    };
    parts.scheme = Some(Scheme::HTTP);
    Ok(Uri::from_parts(parts)?)
}

/// Adds the headers with which Spin describes the request to a component. Headers of the same names from the
/// client stay, before these. All headers are taken apart and put together again, as in Spin
/// (`prepare_request` in `crates/trigger-http/src/wasi.rs`), because that is a part of what a request costs.
fn add_spin_headers<B>(request: &mut Request<B>, client: SocketAddr) -> Result<()> {
    let mut headers: Vec<(String, String)> = vec![];
    for (name, value) in request.headers() {
        let value = str::from_utf8(value.as_bytes());
        let value = value.with_context(|| format!("the header `{name}` is not UTF-8"))?;
        headers.push((name.to_string(), value.to_owned()));
    }
    let uri = request.uri();
    let host = request.headers().get(HOST).map_or("localhost".as_bytes(), HeaderValue::as_bytes);
    let target = uri.path_and_query().context("no path")?;
    let full_url = format!("http://{}{target}", str::from_utf8(host)?);
    let added = [
        ("spin-path-info", uri.path().to_owned()),
        ("spin-full-url", full_url),
        ("spin-matched-route", "/...".to_owned()),
        ("spin-base-path", "/".to_owned()),
        ("spin-raw-component-route", "/...".to_owned()),
        ("spin-component-route", String::new()),
        ("spin-client-addr", client.to_string()),
    ];
    headers.extend(added.map(|(name, value)| (name.to_owned(), value)));
    request.headers_mut().clear();
    for (name, value) in headers {
        // Made from bytes, because a path may contain UTF-8.
        request.headers_mut().append(name.parse::<HeaderName>()?, HeaderValue::from_bytes(value.as_bytes())?);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLIENT: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 40000);

    #[test]
    fn spins_own_headers_come_after_the_clients() {
        let mut request = Request::get("/redis?x=1")
            .header("host", "broker:3000")
            .header("spin-client-addr", "10.0.0.1:1")
            .body(())
            .unwrap();
        *request.uri_mut() = absolute_uri(&request).unwrap();
        add_spin_headers(&mut request, CLIENT).unwrap();
        let values =
            |name| request.headers().get_all(name).iter().map(|v| v.to_str().unwrap()).collect::<Vec<_>>();
        assert_eq!(values("spin-client-addr"), ["10.0.0.1:1", "127.0.0.1:40000"]);
        assert_eq!(values("spin-full-url"), ["http://broker:3000/redis?x=1"]);
        assert_eq!(values("spin-path-info"), ["/redis"]);
        assert_eq!(values("spin-component-route"), [""]);
        assert_eq!(request.uri(), "http://broker:3000/redis?x=1");
    }

    #[test]
    fn a_header_that_is_not_utf8_is_refused() {
        let mut request = Request::get("http://broker/").body(()).unwrap();
        request.headers_mut().insert("x", HeaderValue::from_bytes(b"\xff").unwrap());
        assert!(add_spin_headers(&mut request, CLIENT).is_err());
    }

    #[test]
    fn a_request_without_a_host_is_refused() {
        assert!(absolute_uri(&Request::get("/").body(()).unwrap()).is_err());
        assert!(absolute_uri(&Request::get("http://a/").header("host", "b").body(()).unwrap()).is_err());
    }
}
