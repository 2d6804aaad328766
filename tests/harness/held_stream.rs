//! A line to a master that lets a replica synchronise, and then holds back the stream of commands.

use std::net::{Ipv4Addr, SocketAddr};

use anyhow::{Context, Result};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::{AbortHandle, JoinSet};

/// Listens in front of a master that announces this address. Every connection is passed on unchanged, except
/// one on which a replica synchronises: after the data set, nothing passes until it is
/// [released](Self::release).
#[derive(Debug)]
pub struct HeldStream {
    addr: SocketAddr,
    master: watch::Sender<Option<SocketAddr>>,
    held: watch::Sender<bool>,
    task: AbortHandle,
}

impl HeldStream {
    /// Listens on a free port of 127.0.0.1. Connections wait until the master is known.
    pub async fn start() -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let addr = listener.local_addr()?;
        let (master, held) = (watch::Sender::new(None), watch::Sender::new(true));
        let (to, is_held) = (master.subscribe(), held.subscribe());
        let task = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                tokio::select! {
                    accepted = listener.accept() => if let Ok((client, _)) = accepted {
                        connections.spawn(relay(client, to.clone(), is_held.clone()));
                    },
                    Some(_) = connections.join_next() => {}
                }
            }
        });
        Ok(Self { addr, master, held, task: task.abort_handle() })
    }

    /// The address that the master has to announce.
    #[must_use]
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// From now on, connections are passed on to this master.
    pub fn lead_to(&self, master: SocketAddr) {
        self.master.send_replace(Some(master));
    }

    /// Passes on the held bytes, and all later bytes.
    pub fn release(&self) {
        self.held.send_replace(false);
    }
}

impl Drop for HeldStream {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn relay(
    client: TcpStream,
    mut master: watch::Receiver<Option<SocketAddr>>,
    held: watch::Receiver<bool>,
) -> Result<()> {
    let to = master.wait_for(Option::is_some).await?.context("it is some")?;
    let master = TcpStream::connect(to).await?;
    let ((from_client, to_client), (from_master, to_master)) = (client.into_split(), master.into_split());
    tokio::select! {
        ended = pass_on(from_client, to_master) => ended,
        ended = hold_back(from_master, to_client, held) => ended,
    }
}

async fn pass_on(mut from: OwnedReadHalf, mut to: OwnedWriteHalf) -> Result<()> {
    tokio::io::copy(&mut from, &mut to).await?;
    Ok(())
}

async fn hold_back(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    mut held: watch::Receiver<bool>,
) -> Result<()> {
    let mut seen = Vec::new();
    let mut sent = 0;
    loop {
        let read = from.read_buf(&mut seen).await?;
        if read == 0 {
            return Ok(());
        }
        let until = end_of_data(&seen).filter(|_| *held.borrow()).unwrap_or(seen.len());
        to.write_all(&seen[sent..until]).await?;
        sent = until;
        if sent < seen.len() {
            held.wait_for(|held| !held).await?;
            to.write_all(&seen[sent..]).await?;
            sent = seen.len();
        }
    }
}

/// The end of the data set that a master sends. After `+FULLRESYNC …`, the data set comes with its length,
/// `$175`, or between two marks, `$EOF:` and 40 characters. After `+CONTINUE …` there is no data set. After
/// `+RDBCHANNELSYNC …` Redis 8 sends it over a separate connection. `None` if the data set is still under
/// way, or if this is no synchronisation.
fn end_of_data(seen: &[u8]) -> Option<usize> {
    const MARK: usize = 40;
    let find = |text: &[u8], from: usize| {
        let at = seen.get(from..)?.windows(text.len()).position(|window| window == text)?;
        Some(from + at + text.len())
    };
    if let Some(line) = find(b"+CONTINUE", 0).or_else(|| find(b"+RDBCHANNELSYNC", 0)) {
        return find(b"\r\n", line);
    }
    let line = find(b"\r\n", find(b"+FULLRESYNC", 0)?)?;
    let size = find(b"$", line)?;
    let data = find(b"\r\n", size)?;
    let length = seen.get(size..data - 2)?;
    match length.strip_prefix(b"EOF:") {
        Some(mark) if mark.len() == MARK => find(mark, data),
        Some(_) => None,
        None => {
            let length: usize = std::str::from_utf8(length).ok()?.parse().ok()?;
            Some(data + length).filter(|end| *end <= seen.len())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::end_of_data;

    #[test]
    fn the_end_of_a_data_set_is_found() {
        let mark = "0123456789012345678901234567890123456789";
        let diskless = format!("+OK\r\n+FULLRESYNC aa 14\r\n\n\n$EOF:{mark}\r\nREDIS0010…{mark}*1\r\n");
        assert_eq!(end_of_data(diskless.as_bytes()), Some(diskless.len() - 4));
        assert_eq!(end_of_data(&diskless.as_bytes()[..diskless.len() - 5]), None);
        assert_eq!(end_of_data(b"+FULLRESYNC aa 14\r\n$5\r\nREDIS*1\r\n"), Some(28));
        assert_eq!(end_of_data(b"+FULLRESYNC aa 14\r\n$5\r\nREDI"), None);
        assert_eq!(end_of_data(b"+PONG\r\n+CONTINUE aa\r\n*1\r\n"), Some(21));
        assert_eq!(end_of_data(b"+PONG\r\n+RDBCHANNELSYNC 7\r\n*1\r\n"), Some(26));
        assert_eq!(end_of_data(b"+PONG\r\n"), None);
    }
}
