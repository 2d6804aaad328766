//! Notifies systemd of a node whose unit contains `Type=notify` (sd_notify(3)): what the node waits for, and
//! when its server serves in its role. `systemctl status` shows it. Without systemd, nothing is sent.

use std::env;
use std::time::Duration;

use broker_fn::api::Kind;
use sd_notify::NotifyState;
use tokio::time::sleep;

use super::process::SOCKET;
use super::registration::Registrar;
use crate::node::command::command;
use crate::node::endpoint::Endpoint;
use crate::node::info::Info;
use crate::node::replication::{Replication, Role};
use crate::node::reply::text;
use crate::words::count;

/// How often the server is looked at: until it serves, and after that.
const POLL: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(1));

/// Reports what the node does now. systemd shows one line, so only the first line is sent.
pub fn send_status(status: &str) {
    send(&[NotifyState::Status(status.lines().next().unwrap_or_default())]);
}

/// Reports that the server is about to be stopped.
pub fn send_stopping() {
    send(&[NotifyState::Stopping]);
}

fn send(states: &[NotifyState<'_>]) {
    // Nothing depends on systemd, so a failure is ignored.
    let _ = sd_notify::notify(states);
}

/// What a server is for systemd.
#[derive(Debug, PartialEq, Eq)]
struct Serving {
    /// Whether the server serves in its role. Once it has served, systemd lists it as started until it ends.
    is_ready: bool,
    status: String,
}

impl Serving {
    /// `None` for a held server. It serves in no role, and `hold` reports the reason for the wait.
    fn of(replication: &Replication) -> Option<Self> {
        match &replication.role {
            Role::Master => {
                let replicas = count(replication.replicas.len(), "replica");
                Some(Self { is_ready: true, status: format!("the master, with {replicas}") })
            }
            Role::Replica { of, link_up: true, .. } => {
                Some(Self { is_ready: true, status: format!("a replica of {of}") })
            }
            Role::Replica { of, link_up: false, .. } => {
                Some(Self { is_ready: false, status: format!("a replica of {of}, without a link to it") })
            }
            Role::Held => None,
        }
    }

    /// A Sentinel serves as soon as it accepts `SENTINEL MONITOR`.
    fn of_sentinel(monitored: usize) -> Self {
        let status = match monitored {
            0 => "monitors nothing yet: waiting for `sentinel-runner bootstrap`".into(),
            groups => format!("monitors {}", count(groups, "master")),
        };
        Self { is_ready: true, status }
    }
}

impl Registrar<'_> {
    /// Notifies systemd of every change of the server's state.
    pub(super) async fn tell_systemd(&self, endpoint: &Endpoint) {
        if env::var_os(SOCKET).is_none() {
            return;
        }
        let mut was_ready = false;
        let mut sent = String::new();
        loop {
            if let Some(serving) = self.serving(endpoint).await {
                if serving.status != sent {
                    send_status(&serving.status);
                    sent = serving.status;
                }
                if serving.is_ready && !was_ready {
                    send(&[NotifyState::Ready]);
                    was_ready = true;
                }
            } else {
                // When the hold ends, the status from before the hold has to be sent again.
                sent.clear();
            }
            sleep(if was_ready { POLL.1 } else { POLL.0 }).await;
        }
    }

    /// `None`: the server is held, or does not answer.
    async fn serving(&self, endpoint: &Endpoint) -> Option<Serving> {
        match self.connections.kind() {
            Kind::Redis => Serving::of(&self.replication(endpoint).await.ok()??),
            Kind::Sentinel => {
                let info = self.send(endpoint, command!("INFO", "sentinel")).await.ok()?;
                Info::parse(&text(&info)).number("sentinel_masters").map(Serving::of_sentinel)
            }
        }
    }
}
