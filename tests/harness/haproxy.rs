//! A real HAProxy, with `deploy/haproxy.cfg`.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpStream, UnixStream};
use tokio::process::Command;

use crate::{Lab, Process, eventually, steady_port};

/// How long HAProxy may take to listen.
const LIMIT: Duration = Duration::from_secs(30);

/// HAProxy in front of some Redis servers. Dropping this ends it.
#[derive(Debug)]
pub struct HaProxy {
    process: Process,
    socket: PathBuf,
    /// The address at which clients reach the master.
    pub writes: SocketAddr,
    /// The address at which clients reach the replicas.
    pub reads: SocketAddr,
}

impl HaProxy {
    /// Starts HAProxy in front of these servers, given as the address of each server and of its `join
    /// --health`. Everything else is as in the shipped file.
    pub async fn start(lab: &Lab, servers: &[(SocketAddr, SocketAddr)]) -> Result<Self> {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/haproxy.cfg");
        let at =
            || anyhow::Ok(SocketAddr::from((Ipv4Addr::LOCALHOST, steady_port(Ipv4Addr::LOCALHOST.into())?)));
        let (writes, reads) = (at()?, at()?);
        let socket = lab.dir().join("haproxy.sock");
        let mut config = String::new();
        for line in std::fs::read_to_string(&path)?.lines() {
            let words: Vec<&str> = line.split_whitespace().collect();
            match words[..] {
                ["server", "redis-1", _] => {
                    for (index, (server, health)) in servers.iter().enumerate() {
                        config += &format!(
                            "    server redis-{} {server} port {} addr {}\n",
                            index + 1,
                            health.port(),
                            health.ip()
                        );
                    }
                }
                ["server", _, _] => {}
                ["bind", ":6379"] => config += &format!("    bind {writes}\n"),
                ["bind", ":6380"] => config += &format!("    bind {reads}\n"),
                ["global"] => config += &format!("global\n    stats socket {}\n", socket.display()),
                _ => config += &format!("{line}\n"),
            }
        }
        let file = lab.dir().join("haproxy.cfg");
        std::fs::write(&file, config)?;
        let mut command = Command::new("haproxy");
        command.arg("-db").arg("-f").arg(&file);
        let process = lab
            .spawn("haproxy", command)
            .context("haproxy is not there; `make test` brings it (tests/scripts/setup.sh test)")?;
        let mut haproxy = Self { process, socket, writes, reads };
        eventually(LIMIT, async || {
            assert!(haproxy.process.ended()?.is_none(), "haproxy has ended:\n{}", haproxy.log());
            let why = || format!("haproxy does not listen:\n{}", haproxy.log());
            TcpStream::connect(writes).await.with_context(why)?;
            haproxy.masters().await.with_context(why)
        })
        .await?;
        Ok(haproxy)
    }

    /// What HAProxy has logged.
    #[must_use]
    pub fn log(&self) -> String {
        self.process.output()
    }

    /// The numbers of the servers that pass HAProxy's check for the master.
    pub async fn masters(&self) -> Result<Vec<usize>> {
        self.up("master").await
    }

    /// The numbers of the servers that pass HAProxy's check for replicas.
    pub async fn replicas(&self) -> Result<Vec<usize>> {
        self.up("replicas").await
    }

    async fn up(&self, backend: &str) -> Result<Vec<usize>> {
        let mut stream = UnixStream::connect(&self.socket).await?;
        stream.write_all(b"show stat\n").await?;
        let mut text = String::new();
        stream.read_to_string(&mut text).await?;
        let mut lines = text.lines();
        let header: Vec<&str> =
            lines.next().context("a header")?.trim_start_matches("# ").split(',').collect();
        let column = |name| header.iter().position(|column| *column == name).context("a column");
        let (proxy, server, status) = (column("pxname")?, column("svname")?, column("status")?);
        let rows = lines.map(|line| line.split(',').collect::<Vec<&str>>());
        let rows =
            rows.filter(|row| row.len() > status && row[proxy] == backend && row[status].starts_with("UP"));
        rows.filter_map(|row| row[server].strip_prefix("redis-"))
            .map(|number| Ok(number.parse::<usize>()? - 1))
            .collect()
    }

    /// Waits until only this server passes HAProxy's check for the master.
    pub async fn until_master(&self, server: usize) -> Result<()> {
        eventually(LIMIT, async || {
            let masters = self.masters().await?;
            ensure!(
                masters == [server],
                "for haproxy the master is {masters:?}, not {server}:\n{}",
                self.log()
            );
            Ok(())
        })
        .await
    }
}
