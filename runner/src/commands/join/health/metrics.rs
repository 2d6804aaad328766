//! What was seen of this node, as metrics.

use std::collections::BTreeSet;

use broker_fn::api::Kind;
use tokio::time::Instant;

use super::judge;
use super::seen::{Said, Seen};
use crate::node::endpoint::Endpoint;
use crate::node::replication::Role;
use crate::report::metrics::{self, Metrics};

/// The metrics of what is known now. What is not known is absent.
pub fn metrics(seen: &Seen, now: Instant) -> String {
    let mut metrics = Metrics::new();
    let kind = [("kind", seen.kind.as_str())];
    metrics.say(&metrics::UP, &kind, seen.answers(now).is_ok());
    metrics.say(&metrics::READY, &kind, judge::ready(seen, now).is_ok());
    if seen.kind == Kind::Redis {
        metrics.say(&metrics::PRIMARY, &[], judge::primary(seen, now).is_ok());
    }
    match seen.answers(now) {
        Ok(Said::Server(server)) => {
            let replication = &server.replication;
            for role in ["master", "replica", "held"] {
                metrics.say(&metrics::ROLE, &[("role", role)], judge::role(server) == role);
            }
            metrics.count(&metrics::REPLICAS_ONLINE, &[], replication.online());
            if let Role::Replica { link_up, .. } = &replication.role {
                metrics.say(&metrics::LINK_UP, &[], *link_up);
                if let Some(seconds) = replication.heard_s {
                    metrics.count(&metrics::LAG_SECONDS, &[], seconds);
                }
                if let Some(lag) = judge::lag(seen, now) {
                    metrics.set(&metrics::LAG_BYTES, &[], lag.bytes as f64);
                }
            }
            sentinels(&mut metrics, seen, now);
        }
        Ok(Said::Sentinel(sentinel)) => {
            for master in &sentinel.masters {
                let group = [("group", master.name.as_str())];
                metrics.say(&metrics::MASTER_DOWN, &group, master.status != "ok");
                metrics.count(&metrics::PEERS, &group, master.sentinels.saturating_sub(1));
                metrics.count(&metrics::MONITORED_REPLICAS, &group, master.replicas);
                let names = [("group", master.name.as_str()), ("master", &*master.endpoint.to_string())];
                metrics.set(&metrics::NAMES_MASTER, &names, 1.0);
            }
        }
        Err(_) => {}
    }
    metrics.text()
}

/// What the Sentinels that watch this server report.
fn sentinels(metrics: &mut Metrics, seen: &Seen, now: Instant) {
    let fresh: Vec<_> = seen.fresh(now).collect();
    metrics.count(&metrics::SENTINELS_KNOWN, &[], seen.all_sentinels());
    metrics.count(&metrics::SENTINELS_ANSWERING, &[], fresh.len());
    let named: BTreeSet<&Endpoint> = fresh.iter().map(|voice| &voice.names).collect();
    metrics.say(&metrics::SENTINELS_AGREE, &[], named.len() <= 1);
    for voice in fresh {
        let endpoint = voice.endpoint.to_string();
        let sentinel = [("sentinel", endpoint.as_str())];
        metrics.say(&metrics::MASTER_DOWN, &sentinel, voice.is_down);
        metrics.say(&metrics::FAILING_OVER, &sentinel, voice.is_failing_over);
        metrics.count(&metrics::QUORUM, &sentinel, voice.quorum);
        metrics.count(&metrics::PEERS, &sentinel, voice.peers.len());
        metrics.count(&metrics::CONFIG_EPOCH, &sentinel, voice.config_epoch);
        let names = [sentinel[0], ("master", &*voice.names.to_string())];
        metrics.set(&metrics::NAMES_MASTER, &names, 1.0);
    }
}
