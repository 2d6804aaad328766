//! The messages that `join` sends to systemd through the socket in `NOTIFY_SOCKET` (sd_notify(3)). `hosts`
//! tests the same under a real systemd.

use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use broker_fn::api::Kind;
use e2e::{Broker, Lab, Node, scenario};
use tokio::net::UnixDatagram;
use tokio::time::timeout;

use crate::join::joining;
use crate::support::{LIMIT, expect_code, run};

/// systemd's end of the socket, for one unit.
struct Systemd {
    socket: UnixDatagram,
    path: PathBuf,
    heard: Vec<String>,
}

impl Systemd {
    fn new(lab: &Lab, unit: &str) -> Result<Self> {
        let path = lab.dir().join(unit);
        Ok(Self { socket: UnixDatagram::bind(&path)?, path, heard: Vec::new() })
    }

    /// Waits until a line that begins with `line` was received. Returns all lines received so far.
    async fn until(&mut self, line: &str, node: &Node) -> Result<Vec<String>> {
        while !self.heard.iter().any(|heard| heard.starts_with(line)) {
            let mut message = [0; 4096];
            let received = timeout(LIMIT, self.socket.recv(&mut message)).await;
            let length =
                received.with_context(|| format!("no `{line}`, but {:?}:\n{}", self.heard, node.log()))??;
            self.heard.extend(std::str::from_utf8(&message[..length])?.lines().map(str::to_owned));
        }
        Ok(self.heard.clone())
    }
}

#[test]
fn systemd_hears_what_a_node_waits_for_and_when_it_serves() {
    scenario(async |lab| {
        let broker = Broker::builder().variable("expected_redis", 2).variable("expected_sentinels", 1);
        let broker = lab.broker(broker)?;
        let node = |kind, unit: &Systemd, supervised: &str| {
            joining(lab, kind, &broker)
                .config(format!("supervised {supervised}"))
                .env("NOTIFY_SOCKET", &unit.path)
                .launch()
        };
        let mut units =
            [Systemd::new(lab, "one")?, Systemd::new(lab, "other")?, Systemd::new(lab, "sentinel")?];
        // With `upstart`, the server would stop itself at once, until another process continues it.
        let nodes = [
            node(Kind::Redis, &units[0], "systemd")?,
            node(Kind::Redis, &units[1], "upstart")?,
            node(Kind::Sentinel, &units[2], "auto")?,
        ];
        for (unit, node) in units.iter_mut().zip(&nodes).take(2) {
            let heard = unit.until("STATUS=starting held", node).await?;
            assert!(!heard.contains(&"READY=1".to_owned()), "it serves in no role: {heard:?}");
        }
        let heard = units[2].until("READY=1", &nodes[2]).await?;
        assert!(heard.iter().any(|line| line.starts_with("STATUS=monitors nothing yet")), "{heard:?}");

        expect_code(&run(lab, &broker, &[]).await?, 0);
        units[2].until("STATUS=monitors 1 master", &nodes[2]).await?;
        for (unit, node) in units.iter_mut().zip(&nodes).take(2) {
            let role = &node.info("replication").await?["role"];
            let said = if role == "master" {
                "STATUS=the master, with 1 replica"
            } else {
                "STATUS=a replica of 127.0.0.1:"
            };
            unit.until(said, node).await?;
            unit.until("READY=1", node).await?;
            // systemd would not accept a message from the server itself: it listens only to the process that
            // it has started.
            assert!(!node.log().contains("systemd"), "{}", node.log());
        }
        for (unit, node) in units.iter_mut().zip(&nodes) {
            node.terminate(LIMIT).await?;
            let heard = unit.until("STOPPING=1", node).await?;
            let times = heard.iter().filter(|line| *line == "READY=1").count();
            ensure!(times == 1, "{heard:?}");
        }
        Ok(())
    });
}
