//! What a look has found, as metrics. No I/O.

use std::collections::BTreeSet;
use std::time::{SystemTime, UNIX_EPOCH};

use broker_fn::api::Kind;

use crate::commands::look::Look;
use crate::node::redis::RedisState;
use crate::node::replication::{Role, online};
use crate::node::sentinel::SentinelState;
use crate::report::metrics::{self, Metrics};
use crate::system::observe::ObservedNode;

/// The metrics of a look, at this moment.
pub fn of_look(look: &Look, now: SystemTime) -> String {
    let mut all = Metrics::new();
    let group = ("group", look.roster.group.as_str());
    all.set_bool(&metrics::VERIFIED, &[group], look.verdict.is_ok());
    let seconds = |at: SystemTime| at.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
    all.set(&metrics::LOOKED, &[group], seconds(now));
    if let Some(last) = &look.roster.last_verified {
        all.set(&metrics::LAST_VERIFIED, &[group], seconds(last.at.system_time()));
    }
    let expected = look.expected;
    let kinds = [
        (Kind::Redis, expected.redis, &look.roster.redis),
        (Kind::Sentinel, expected.sentinels, &look.roster.sentinels),
    ];
    for (kind, expected, registered) in kinds {
        let labels = [group, ("kind", kind.as_str())];
        all.count(&metrics::EXPECTED, &labels, expected);
        all.count(&metrics::REGISTERED, &labels, registered.len());
        all.count(&metrics::STALE, &labels, registered.iter().filter(|node| node.stale).count());
    }
    for node in &look.observed.redis {
        redis(&mut all, group, node, look);
    }
    for node in &look.observed.sentinels {
        sentinel(&mut all, group, node);
    }
    let states =
        look.observed.sentinels.iter().filter_map(|node| node.state.as_ref().ok()?.monitored.as_ref());
    let named: BTreeSet<_> = states.map(|known| &known.master.endpoint).collect();
    all.set_bool(&metrics::SENTINELS_AGREE, &[group], named.len() <= 1);
    all.text()
}

fn redis(all: &mut Metrics, group: (&str, &str), node: &ObservedNode<RedisState>, look: &Look) {
    let endpoint = node.endpoint.to_string();
    let node_label = ("node", endpoint.as_str());
    all.set_bool(&metrics::UP, &[group, ("kind", "redis"), node_label], node.state.is_ok());
    let Ok(state) = &node.state else { return };
    let labels = [group, node_label];
    for (role, is) in [
        ("master", state.role == Role::Master),
        ("replica", matches!(state.role, Role::Replica { .. })),
        ("held", state.role == Role::Held),
    ] {
        all.set_bool(&metrics::ROLE, &[group, node_label, ("role", role)], is);
    }
    match &state.role {
        Role::Master => all.count(&metrics::REPLICAS_ONLINE, &labels, online(&state.replicas)),
        Role::Replica { of, link_up } => {
            all.set_bool(&metrics::LINK_UP, &labels, *link_up);
            let states = look.observed.redis.iter().filter_map(|node| node.state.as_ref().ok());
            let master = states.filter(|master| master.is_at(of)).find(|master| master.role == Role::Master);
            // The master's record of how far the replica had confirmed the stream at that moment.
            if let Some(master) = master
                && let Some(replica) = master.replicas.iter().find(|replica| state.is_at(&replica.endpoint))
            {
                let behind = master.history.offset - replica.confirmed;
                all.set(&metrics::LAG_BYTES, &labels, behind.max(0) as f64);
                if let Some(seconds) = replica.silent_s {
                    all.count(&metrics::LAG_SECONDS, &labels, seconds);
                }
            }
        }
        Role::Held => {}
    }
}

fn sentinel(all: &mut Metrics, group: (&str, &str), node: &ObservedNode<SentinelState>) {
    let endpoint = node.endpoint.to_string();
    let node_label = ("node", endpoint.as_str());
    all.set_bool(&metrics::UP, &[group, ("kind", "sentinel"), node_label], node.state.is_ok());
    let Some(known) = node.state.as_ref().ok().and_then(|state| state.monitored.as_ref()) else { return };
    let labels = [group, node_label];
    let master = &known.master;
    all.set_bool(&metrics::MASTER_DOWN, &labels, master.has_flag("s_down"));
    all.set_bool(&metrics::FAILING_OVER, &labels, master.has_flag("failover_in_progress"));
    all.count(&metrics::QUORUM, &labels, master.quorum());
    all.count(&metrics::PEERS, &labels, master.other_sentinels());
    all.count(&metrics::MONITORED_REPLICAS, &labels, master.replicas());
    all.count(&metrics::CONFIG_EPOCH, &labels, master.config_epoch());
    all.set(&metrics::NAMES_MASTER, &[group, node_label, ("master", &master.endpoint.to_string())], 1.0);
}
