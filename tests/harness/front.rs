//! A proxy between a client and the broker: it ends TLS, counts traffic, and may have a time limit.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context, Result};
use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

use crate::tls::Tls;

/// Configures a proxy before it starts.
#[derive(Debug, Clone, Default)]
pub struct FrontBuilder {
    tls: Option<Tls>,
    patience: Option<Duration>,
    /// Whether the proxy hides from the broker how long a request may wait, and which roster the client has.
    asks_anew: bool,
}

impl FrontBuilder {
    /// Uses TLS with clients, and shows this certificate.
    #[must_use]
    pub fn tls(mut self, tls: &Tls) -> Self {
        self.tls = Some(tls.clone());
        self
    }

    /// Closes a connection on which the broker sends nothing for this time.
    #[must_use]
    pub fn patience(mut self, patience: Duration) -> Self {
        self.patience = Some(patience);
        self
    }

    /// Makes the broker answer every request at once and in full.
    #[must_use]
    pub fn asks_anew(mut self) -> Self {
        self.asks_anew = true;
        self
    }

    /// Starts the proxy in front of the broker at this address.
    pub async fn start(self, broker: SocketAddr) -> Result<Front> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let addr = listener.local_addr()?;
        let acceptor = self.tls.as_ref().map(acceptor).transpose()?;
        let scheme = if acceptor.is_some() { "https" } else { "http" };
        let traffic = Arc::new(Traffic::default());
        let counts = Arc::clone(&traffic);
        let mut serving = JoinSet::new();
        serving.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                counts.connections.fetch_add(1, Ordering::Relaxed);
                let (acceptor, counts, front) = (acceptor.clone(), Arc::clone(&counts), self.clone());
                connections.spawn(async move {
                    // Broken connections are normal for a proxy.
                    let _ = match acceptor {
                        Some(acceptor) => front.pass(acceptor.accept(stream).await?, broker, &counts).await,
                        None => front.pass(stream, broker, &counts).await,
                    };
                    anyhow::Ok(())
                });
            }
        });
        Ok(Front { url: format!("{scheme}://{addr}"), traffic, serving })
    }

    /// Passes on the bytes of both sides until one side ends.
    async fn pass(
        &self,
        client: impl AsyncRead + AsyncWrite,
        broker: SocketAddr,
        counts: &Traffic,
    ) -> Result<()> {
        let (mut from_client, mut to_client) = tokio::io::split(client);
        let (mut from_broker, mut to_broker) = TcpStream::connect(broker).await?.into_split();
        let requests = async {
            let mut buffer = vec![0; 1 << 16];
            loop {
                let read = from_client.read(&mut buffer).await?;
                if read == 0 {
                    return anyhow::Ok(());
                }
                let bytes = &mut buffer[..read];
                counts.requests.fetch_add(places(bytes, b" HTTP/1.1\r\n").len(), Ordering::Relaxed);
                counts.sent.fetch_add(read, Ordering::Relaxed);
                if self.asks_anew {
                    // The replacement has the same length.
                    for (what, instead) in
                        [(&b"?wait="[..], &b"?none="[..]), (b"if-none-match:", b"if-none-knows:")]
                    {
                        for place in places(bytes, what) {
                            bytes[place..place + what.len()].copy_from_slice(instead);
                        }
                    }
                }
                to_broker.write_all(bytes).await?;
            }
        };
        let answers = async {
            let mut buffer = vec![0; 1 << 16];
            loop {
                let read = from_broker.read(&mut buffer);
                let read = match self.patience {
                    Some(patience) => tokio::time::timeout(patience, read).await??,
                    None => read.await?,
                };
                if read == 0 {
                    return anyhow::Ok(());
                }
                counts.received.fetch_add(read, Ordering::Relaxed);
                to_client.write_all(&buffer[..read]).await?;
                to_client.flush().await?;
            }
        };
        tokio::select! {
            ended = requests => ended,
            ended = answers => ended,
        }
    }
}

fn acceptor(tls: &Tls) -> Result<TlsAcceptor> {
    // The first provider that is installed is used, and there is only this one.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let certificates = CertificateDer::pem_file_iter(&tls.cert)?.collect::<Result<Vec<_>, _>>()?;
    let key = PrivateKeyDer::from_pem_file(&tls.key).context("reading the key")?;
    let config = ServerConfig::builder().with_no_client_auth().with_single_cert(certificates, key)?;
    Ok(TlsAcceptor::from(Arc::new(config)))
}

/// The positions of this text in the bytes.
fn places(bytes: &[u8], what: &[u8]) -> Vec<usize> {
    bytes
        .windows(what.len())
        .enumerate()
        .filter(|(_, window)| *window == what)
        .map(|(place, _)| place)
        .collect()
}

/// A proxy that runs until this is dropped.
#[derive(Debug)]
pub struct Front {
    url: String,
    traffic: Arc<Traffic>,
    #[expect(dead_code, reason = "it ends with it")]
    serving: JoinSet<()>,
}

/// How much the proxy has passed on.
#[derive(Debug, Default)]
struct Traffic {
    connections: AtomicUsize,
    requests: AtomicUsize,
    sent: AtomicUsize,
    received: AtomicUsize,
}

impl Front {
    /// The URL, without a slash at the end.
    #[must_use]
    pub fn url(&self) -> &str {
        &self.url
    }

    /// What the proxy has passed on so far: the connections that clients have opened, their requests, and the
    /// bytes that they have sent and received, without those of TLS.
    #[must_use]
    pub fn traffic(&self) -> [usize; 4] {
        let Traffic { connections, requests, sent, received } = &*self.traffic;
        [connections, requests, sent, received].map(|count| count.load(Ordering::Relaxed))
    }
}
