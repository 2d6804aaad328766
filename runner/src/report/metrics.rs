//! Metrics in Prometheus' text format, and the names of all metrics. `docs/metrics.md` is generated from
//! here.

use std::collections::BTreeMap;

use prometheus::{GaugeVec, Opts, Registry, TextEncoder};

/// A metric: a gauge, in the unit that its name ends with.
#[derive(Debug)]
pub struct Metric {
    /// The name, without the prefix that all names have.
    pub name: &'static str,
    pub help: &'static str,
}

/// The prefix of all names.
const PREFIX: &str = "sentinel_broker_";

macro_rules! metrics {
    ($($name:ident = $text:literal: $help:literal;)*) => {
        $(pub const $name: Metric = Metric { name: $text, help: $help };)*
        #[cfg(test)]
        const ALL: &[Metric] = &[$($name),*];
    };
}

metrics! {
    VERIFIED = "verified": "Whether the system was verified at the last check";
    LAST_VERIFIED = "last_verified_timestamp_seconds": "When the system was last verified, as the broker has recorded it";
    LOOKED = "looked_timestamp_seconds": "When the system was last checked";
    EXPECTED = "expected_nodes": "How many nodes of this kind are expected";
    REGISTERED = "registered_nodes": "How many nodes of this kind have registered";
    STALE = "stale_nodes": "How many registered nodes of this kind have not renewed their registration in time";
    UP = "up": "Whether the node answers";
    READY = "ready": "Whether the node is ready: a master, a linked replica, or a Sentinel that monitors a master";
    ROLE = "role": "1 for the current role of the Redis server, 0 for the other roles: master, replica, held";
    PRIMARY = "primary": "Whether clients should write to the node, as /primary answers";
    REPLICAS_ONLINE = "replicas_online": "How many replicas follow the server";
    LINK_UP = "replica_link_up": "Whether the replica is linked to its master and has the master's data";
    LAG_BYTES = "replica_lag_bytes": "How many bytes of the master's stream the replica lacks";
    LAG_SECONDS = "replica_lag_seconds": "Seconds since the replica last heard from its master, or from `status`: since the master last heard from the replica; absent while the link is down";
    SENTINELS_KNOWN = "sentinels_known": "How many Sentinels the system has, by their own count";
    SENTINELS_ANSWERING = "sentinels_answering": "How many Sentinels answer this node";
    SENTINELS_AGREE = "sentinels_agree": "Whether all Sentinels that answer report the same master";
    NAMES_MASTER = "sentinel_names_master": "1 for the master that the Sentinel reports";
    MASTER_DOWN = "sentinel_master_down": "Whether the Sentinel considers its master down";
    FAILING_OVER = "sentinel_failing_over": "Whether the Sentinel is failing over";
    QUORUM = "sentinel_quorum": "How many Sentinels must agree that the master is down";
    PEERS = "sentinel_peers": "How many other Sentinels the Sentinel knows";
    MONITORED_REPLICAS = "sentinel_replicas": "How many replicas the Sentinel knows";
    CONFIG_EPOCH = "sentinel_config_epoch": "How often the master has changed, as far as the Sentinel knows";
}

/// Metrics at one moment.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    families: BTreeMap<&'static str, GaugeVec>,
}

impl Metrics {
    pub fn new() -> Self {
        Self { registry: Registry::new(), families: BTreeMap::new() }
    }

    /// Sets one value. A metric must have the same labels each time.
    pub fn set(&mut self, metric: &Metric, labels: &[(&str, &str)], value: f64) {
        let (names, values): (Vec<&str>, Vec<&str>) = labels.iter().copied().unzip();
        let family = self.families.entry(metric.name).or_insert_with(|| {
            let options = Opts::new(format!("{PREFIX}{}", metric.name), metric.help);
            let family = GaugeVec::new(options, &names).expect("the names are names");
            self.registry.register(Box::new(family.clone())).expect("each is there once");
            family
        });
        family.with_label_values(&values).set(value);
    }

    /// Sets 1 for yes, or 0 for no.
    pub fn set_bool(&mut self, metric: &Metric, labels: &[(&str, &str)], is: bool) {
        self.set(metric, labels, f64::from(u8::from(is)));
    }

    /// Sets a number.
    pub fn count(&mut self, metric: &Metric, labels: &[(&str, &str)], number: impl TryInto<u32>) {
        self.set(metric, labels, number.try_into().map_or(f64::INFINITY, f64::from));
    }

    /// All values, in the text format.
    pub fn text(&self) -> String {
        TextEncoder::new().encode_to_string(&self.registry.gather()).expect("a text takes all")
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use expect_test::expect_file;

    use super::*;

    #[test]
    fn every_name_is_valid_in_prometheus_and_used_once() {
        let names: BTreeSet<&str> = ALL.iter().map(|metric| metric.name).collect();
        assert_eq!(names.len(), ALL.len());
        for name in names {
            assert!(name.chars().all(|letter| letter.is_ascii_lowercase() || letter == '_'), "{name}");
        }
    }

    #[test]
    fn what_is_set_is_written() {
        let mut metrics = Metrics::new();
        metrics.set_bool(&ROLE, &[("node", "10.0.0.7:6379"), ("role", "master")], true);
        metrics.set_bool(&ROLE, &[("node", "10.0.0.7:6379"), ("role", "replica")], false);
        assert_eq!(
            metrics.text(),
            "# HELP sentinel_broker_role 1 for the current role of the Redis server, 0 for the other roles: master, replica, held\n\
             # TYPE sentinel_broker_role gauge\n\
             sentinel_broker_role{node=\"10.0.0.7:6379\",role=\"master\"} 1\n\
             sentinel_broker_role{node=\"10.0.0.7:6379\",role=\"replica\"} 0\n"
        );
    }

    #[test]
    fn the_page_of_metrics_lists_them_all() {
        let mut page = "# The metrics\n\n`sentinel-runner status --output prometheus` writes these metrics, \
            and `join --health` answers with them at `/metrics`. All are gauges. Generated from \
            `runner/src/report/metrics.rs`; `UPDATE_EXPECT=1 cargo test -p runner metrics` writes it \
            anew.\n\n| metric | meaning |\n| --- | --- |\n"
            .to_owned();
        for metric in ALL {
            page += &format!("| `{PREFIX}{}` | {} |\n", metric.name, metric.help);
        }
        expect_file![concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/metrics.md")].assert_eq(&page);
    }
}
