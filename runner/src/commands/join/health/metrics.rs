//! The last answers about this node, as metrics.

use std::collections::BTreeSet;

use broker_fn::api::Kind;
use tokio::time::Instant;

use super::judge;
use super::seen::{NodeAnswer, SeenNodes};
use crate::node::endpoint::Endpoint;
use crate::node::replication::Role;
use crate::report::metrics::{self, Metrics};

/// The metrics of this moment. A metric without a known value is absent.
pub fn metrics(seen: &SeenNodes, now: Instant) -> String {
    let mut metrics = Metrics::new();
    let kind = [("kind", seen.kind.as_str())];
    metrics.set_bool(&metrics::UP, &kind, seen.answers(now).is_ok());
    metrics.set_bool(&metrics::READY, &kind, judge::ready(seen, now).is_ok());
    if seen.kind == Kind::Redis {
        metrics.set_bool(&metrics::PRIMARY, &[], judge::primary(seen, now).is_ok());
    }
    match seen.answers(now) {
        Ok(NodeAnswer::Server(server)) => {
            let replication = &server.replication;
            for role in ["master", "replica", "held"] {
                metrics.set_bool(&metrics::ROLE, &[("role", role)], judge::role(server) == role);
            }
            metrics.count(&metrics::REPLICAS_ONLINE, &[], replication.online());
            if let Role::Replica { link_up, .. } = &replication.role {
                metrics.set_bool(&metrics::LINK_UP, &[], *link_up);
                if let Some(seconds) = replication.heard_s {
                    metrics.count(&metrics::LAG_SECONDS, &[], seconds);
                }
                if let Some(lag) = judge::lag(seen, now) {
                    metrics.set(&metrics::LAG_BYTES, &[], lag.bytes as f64);
                }
            }
            sentinels(&mut metrics, seen, now);
        }
        Ok(NodeAnswer::Sentinel(sentinel)) => {
            for master in &sentinel.masters {
                let group = [("group", master.name.as_str())];
                metrics.set_bool(&metrics::MASTER_DOWN, &group, master.status != "ok");
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
fn sentinels(metrics: &mut Metrics, seen: &SeenNodes, now: Instant) {
    let fresh: Vec<_> = seen.fresh(now).collect();
    metrics.count(&metrics::SENTINELS_KNOWN, &[], seen.all_sentinels());
    metrics.count(&metrics::SENTINELS_ANSWERING, &[], fresh.len());
    let named: BTreeSet<&Endpoint> = fresh.iter().map(|view| &view.names).collect();
    metrics.set_bool(&metrics::SENTINELS_AGREE, &[], named.len() <= 1);
    for view in fresh {
        let endpoint = view.endpoint.to_string();
        let sentinel = [("sentinel", endpoint.as_str())];
        metrics.set_bool(&metrics::MASTER_DOWN, &sentinel, view.is_down);
        metrics.set_bool(&metrics::FAILING_OVER, &sentinel, view.is_failing_over);
        metrics.count(&metrics::QUORUM, &sentinel, view.quorum);
        metrics.count(&metrics::PEERS, &sentinel, view.peers.len());
        metrics.count(&metrics::CONFIG_EPOCH, &sentinel, view.config_epoch);
        let names = [sentinel[0], ("master", &*view.names.to_string())];
        metrics.set(&metrics::NAMES_MASTER, &names, 1.0);
    }
}
