//! A plain HTTP client: one connection per request, from any loopback address.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result};
use bytes::Bytes;
use http::header::{CONTENT_TYPE, HOST};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::TcpSocket;

/// How long an answer may take.
const LIMIT: Duration = Duration::from_secs(30);

/// A request that has not been sent yet.
#[derive(Debug)]
#[must_use = "nothing is sent until `send`"]
pub struct Request {
    to: SocketAddr,
    from: Option<IpAddr>,
    method: Method,
    path: String,
    headers: HeaderMap,
    body: Bytes,
    is_http2: bool,
}

impl Request {
    /// A request without a body and with `Host` as its only header.
    pub fn new(to: SocketAddr, method: Method, path: impl Into<String>) -> Self {
        let headers = HeaderMap::new();
        let (path, body) = (path.into(), Bytes::new());
        Self { to, from: None, method, path, headers, body, is_http2: false }
    }

    /// Connects from this address, such as 127.0.0.2.
    pub fn from(mut self, address: impl Into<IpAddr>) -> Self {
        self.from = Some(address.into());
        self
    }

    /// Uses HTTP/2 without TLS and without an upgrade (RFC 9113, 3.3).
    pub fn http2(mut self) -> Self {
        self.is_http2 = true;
        self
    }

    /// Adds a header, beside any of the same name. The value may be any bytes.
    ///
    /// Panics if the name or the value is not valid in a header.
    pub fn header(mut self, name: &str, value: impl AsRef<[u8]>) -> Self {
        let name = HeaderName::from_bytes(name.as_bytes()).expect("a header's name");
        self.headers.append(name, HeaderValue::from_bytes(value.as_ref()).expect("a header's value"));
        self
    }

    /// Sends these bytes.
    pub fn body(mut self, body: impl Into<Bytes>) -> Self {
        self.body = body.into();
        self
    }

    /// Sends this as JSON.
    pub fn json(self, body: &impl Serialize) -> Self {
        let body = serde_json::to_vec(body).expect("what tests send is JSON");
        self.header(CONTENT_TYPE.as_str(), "application/json").body(body)
    }

    /// Sends the request, and reads the whole answer.
    pub async fn send(self) -> Result<Reply> {
        let what = format!("{} http://{}{}", self.method, self.to, self.path);
        match tokio::time::timeout(LIMIT, self.exchange()).await {
            Ok(reply) => reply.with_context(|| what),
            Err(_) => anyhow::bail!("{what}: no answer within {LIMIT:?}"),
        }
    }

    async fn exchange(self) -> Result<Reply> {
        let Self { to, from, method, path, mut headers, body, is_http2 } = self;
        let socket = if to.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
        if let Some(from) = from {
            socket.bind(SocketAddr::new(from, 0))?;
        }
        let stream = TokioIo::new(socket.connect(to).await?);
        if is_http2 {
            let (mut sender, connection) = http2::handshake(TokioExecutor::new(), stream).await?;
            let uri = format!("http://{to}{path}");
            let mut request = http::Request::builder().method(method).uri(uri).body(Full::new(body))?;
            request.headers_mut().extend(headers);
            let exchange = async {
                let (parts, body) = sender.send_request(request).await?.into_parts();
                let body = body.collect().await?.to_bytes();
                drop(sender);
                Ok(Reply { status: parts.status, headers: parts.headers, body })
            };
            let (reply, _) = tokio::join!(exchange, connection);
            return reply;
        }
        let (mut sender, connection) = http1::handshake(stream).await?;
        if !headers.contains_key(HOST) {
            headers.insert(HOST, HeaderValue::from_str(&to.to_string())?);
        }
        let mut request = http::Request::builder().method(method).uri(path).body(Full::new(body))?;
        request.headers_mut().extend(headers);
        let exchange = async {
            let (parts, body) = sender.send_request(request).await?.into_parts();
            // Without the sender, the connection ends once the answer is complete.
            drop(sender);
            let body = body.collect().await?.to_bytes();
            Ok(Reply { status: parts.status, headers: parts.headers, body })
        };
        let (reply, _) = tokio::join!(exchange, connection);
        reply
    }
}

/// An answer.
#[derive(Debug, Clone)]
pub struct Reply {
    /// The status.
    pub status: StatusCode,
    /// The headers.
    pub headers: HeaderMap,
    /// The whole body.
    pub body: Bytes,
}

impl Reply {
    /// The value of a header, if it is there and is text.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    /// The body as text.
    #[must_use]
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The body, from JSON.
    pub fn json<T: DeserializeOwned>(&self) -> Result<T> {
        serde_json::from_slice(&self.body).with_context(|| format!("not what was expected: {self}"))
    }
}

impl fmt::Display for Reply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.status, self.text())
    }
}
