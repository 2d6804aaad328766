//! What `join` does before it stops its server: a master hands over to a replica.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use tokio::time::{Instant, sleep, timeout_at};

use super::decide::Heard;
use super::registration::Registrar;
use super::systemd;
use crate::node::command::command;
use crate::node::endpoint::Endpoint;
use crate::node::info::Info;
use crate::node::redis::{PRIORITY, set};
use crate::node::replication::Role;
use crate::node::reply::text;
use crate::node::sentinel::Monitored;
use crate::system::handover::{Handover, ServerAddresses};
use crate::words::took;

/// How often a server is asked whether it may end, and how soon a handover is tried again.
const POLL: Duration = Duration::from_millis(50);

/// The least time that must be left for another attempt after a handover was given up.
const AGAIN: Duration = Duration::from_secs(2);

/// A system whose master is this node, as the Sentinels describe it.
#[derive(Debug, PartialEq, Eq)]
struct LedSystem {
    /// The master's address as the Sentinels report it.
    master: Endpoint,
    /// The replicas that the Sentinels may promote.
    candidates: Vec<Endpoint>,
    /// The Sentinels that name this node as the master.
    sentinels: Vec<Endpoint>,
}

impl Registrar<'_> {
    /// If the server is the master, hands over within this time. The server is stopped after that, whether
    /// the handover has succeeded or not.
    pub(super) async fn hand_over_before_stop(&self, within: Duration) {
        if self.is_first {
            systemd::send_stopping();
        }
        // A server that is not ready has no role to hand over.
        let (Some(endpoint), Some(redis)) = (self.ready_at.get(), &self.redis) else { return };
        if within.is_zero() {
            return;
        }
        let until = Instant::now() + within;
        // The handover needs some time to end before the deadline.
        let handed_over = timeout_at(until, self.hand_over(endpoint, until - within / 10)).await;
        let is_replica = matches!(handed_over, Ok(Ok(None)));
        match handed_over {
            Ok(Ok(None)) => {}
            Ok(Ok(Some(done))) => self.report.event(done),
            Ok(Err(why)) => {
                self.report.event(format_args!("stopping the server without handing over: {why}"));
            }
            Err(_) => self
                .report
                .event(format_args!("stopping the server: handing over took longer than {}", took(within))),
        }
        let may_end = timeout_at(until, self.until_it_may_end(endpoint)).await;
        if is_replica && may_end.is_ok() {
            // If the server wrote its file with priority 0, the 0 would stay there.
            let _ = self.send(endpoint, set(PRIORITY, &redis.priority.to_string())).await;
        }
    }

    /// Waits until the server may end. After a synchronisation, a server rewrites its append-only file. Until
    /// the rewrite is done, it logs `Writing initial AOF, can't exit` on SIGTERM and keeps running
    /// (`prepareForShutdown` in Redis 7.0's `server.c`).
    async fn until_it_may_end(&self, endpoint: &Endpoint) {
        loop {
            let Ok(reply) = self.send(endpoint, command!("INFO", "persistence")).await else { return };
            let info = Info::parse(&text(&reply));
            let is = |field: &str| info.get(field) == Some("1");
            if !is("aof_rewrite_in_progress") && !is("aof_rewrite_scheduled") {
                return;
            }
            sleep(POLL).await;
        }
    }

    /// Returns a description of the handover, or `None` if no handover was needed. The error contains the
    /// reason for a failure.
    async fn hand_over(&self, endpoint: &Endpoint, until: Instant) -> Result<Option<String>, String> {
        let role = self.replication(endpoint).await?.map(|replication| replication.role);
        if role != Some(Role::Master) {
            // With this, another node that stops does not hand over to this node.
            let _ = self.send(endpoint, set(PRIORITY, "0")).await;
            return Ok(None);
        }
        // The broker may be late or gone. The Sentinels that monitor this server say so on the server itself.
        let (heard, group) = self.asker.ask_afresh(&self.lately_heard()).await;
        let led_system = led_system(&heard)?;
        let group = group.ok_or("the group is not known")?;
        let seat = |endpoint: Endpoint| ServerAddresses {
            announced: endpoint.clone(),
            endpoint,
            aliases: Vec::new(),
        };
        let master = ServerAddresses {
            endpoint: endpoint.clone(),
            announced: led_system.master,
            aliases: heard.own.iter().cloned().collect(),
        };
        let candidates = led_system.candidates.into_iter().map(seat).collect();
        let handover =
            Handover::new(&self.asker.servers, group.as_str(), master, candidates, led_system.sentinels)
                .of_own(self.connections);
        let handover = handover.fewest_clients_first().await;
        let handed_over = loop {
            match handover.run(until).await {
                Err(abort) if abort.may_pass() && Instant::now() + AGAIN < until => sleep(POLL).await,
                ended => break ended.map_err(|abort| abort.to_string())?,
            }
        };
        Ok(Some(format!(
            "handed over to {}: clients could not write for {}; stopping the server",
            handed_over.to.endpoint,
            took(handed_over.named)
        )))
    }
}

/// Which replicas can take over, and which Sentinels can be asked; or why there can be no handover.
fn led_system(heard: &Heard) -> Result<LedSystem, String> {
    let all = heard.sentinels.iter().filter_map(|asked| {
        let state = asked.answer.as_ref().ok()?;
        Some((&asked.endpoint, &state.my_id, state.monitored.as_ref()?))
    });
    // A Sentinel that was reached at two addresses has one vote.
    let all: BTreeMap<&String, (&Endpoint, &Monitored)> =
        all.map(|(endpoint, id, known)| (id, (endpoint, known))).collect();
    let expected = all.values().map(|(_, known)| known.peers.len() + 1).max().unwrap_or_default();
    let naming: Vec<_> =
        all.values().filter(|(_, known)| heard.own.contains(&known.master.endpoint)).collect();
    if naming.len() <= expected / 2 {
        return Err(format!(
            "no majority of the Sentinels reports this node as the master: {} of {expected}",
            naming.len()
        ));
    }
    let replicas = naming.iter().flat_map(|(_, known)| &known.replicas);
    let candidates: BTreeSet<&Endpoint> = replicas
        .filter(|peer| !peer.is_gone() && peer.priority != Some(0) && !heard.own.contains(&peer.endpoint))
        .map(|peer| &peer.endpoint)
        .collect();
    if candidates.is_empty() {
        return Err("there is no replica to hand over to".into());
    }
    Ok(LedSystem {
        master: naming[0].1.master.endpoint.clone(),
        candidates: candidates.into_iter().cloned().collect(),
        sentinels: naming.iter().map(|(endpoint, _)| (*endpoint).clone()).collect(),
    })
}
