//! A slow line to a node, such as a line to another region.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use anyhow::Result;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{Instant, sleep_until};

/// Listens in front of a node, and passes on the node's answers after a delay. Everything that is under way
/// at once is delayed at once: only a client that waits for an answer before it sends the next command takes
/// longer. The line is open until this is dropped.
#[derive(Debug)]
pub struct SlowLine {
    addr: SocketAddr,
    task: AbortHandle,
}

impl SlowLine {
    /// Listens on a free port of 127.0.0.1. Connecting takes no longer than without the line.
    pub async fn start(node: SocketAddr, delay: Duration) -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let addr = listener.local_addr()?;
        let task = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                tokio::select! {
                    // An error of `accept` means only that this one connection is gone.
                    accepted = listener.accept() => if let Ok((client, _)) = accepted {
                        connections.spawn(relay(client, node, delay));
                    },
                    Some(_) = connections.join_next() => {}
                }
            }
        });
        Ok(Self { addr, task: task.abort_handle() })
    }

    /// The address on which it listens.
    #[must_use]
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }
}

impl Drop for SlowLine {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn relay(client: TcpStream, node: SocketAddr, delay: Duration) -> Result<()> {
    let node = TcpStream::connect(node).await?;
    client.set_nodelay(true)?;
    node.set_nodelay(true)?;
    let ((from_client, to_client), (from_node, to_node)) = (client.into_split(), node.into_split());
    tokio::select! {
        ended = hand_on(from_client, to_node, Duration::ZERO) => ended,
        ended = hand_on(from_node, to_client, delay) => ended,
    }
}

/// Passes on bytes until one side is gone.
async fn hand_on(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, delay: Duration) -> Result<()> {
    let (later, mut due) = mpsc::unbounded_channel::<(Instant, Vec<u8>)>();
    let read = async {
        loop {
            let mut bytes = Vec::with_capacity(16 * 1024);
            if from.read_buf(&mut bytes).await? == 0 {
                return anyhow::Ok(());
            }
            later.send((Instant::now() + delay, bytes))?;
        }
    };
    let write = async {
        while let Some((at, bytes)) = due.recv().await {
            sleep_until(at).await;
            to.write_all(&bytes).await?;
        }
        anyhow::Ok(())
    };
    tokio::select! {
        ended = read => ended,
        ended = write => ended,
    }
}
