//! `GET /metrics`: the registrations of every group, in Prometheus' format.
//!
//! A scrape lists the store once and reads each registration, because only the registration shows whether it
//! is stale.

use std::fmt::{Display, Write};

use crate::api::{Config, Group, Kind};
use crate::registry::{Counts, GroupCounts};

/// The media type of the text exposition format.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// The metrics of these groups, as text.
#[must_use]
pub fn render(groups: &[(Group, GroupCounts)], config: &Config) -> String {
    let expected = config.expected;
    let mut metrics = Exposition(String::new());

    metrics.gauge("sentinel_broker_groups", "Groups that have a registration or an outcome.");
    metrics.sample("sentinel_broker_groups", &[], groups.len());

    metrics.gauge("sentinel_broker_expected", "How many nodes of a kind make a group complete.");
    for (kind, count) in [(Kind::Redis, expected.redis), (Kind::Sentinel, expected.sentinels)] {
        metrics.sample("sentinel_broker_expected", &[("kind", kind.as_str())], count);
    }

    metrics.gauge(
        "sentinel_broker_max_registrations",
        "The most registrations of one kind that a group may hold.",
    );
    metrics.sample("sentinel_broker_max_registrations", &[], config.max_registrations);

    metrics.gauge("sentinel_broker_max_groups", "The most groups that the broker may hold.");
    metrics.sample("sentinel_broker_max_groups", &[], config.max_groups);

    let mut by_kind = |name: &str, help: &str, of: fn(&GroupCounts) -> Counts| {
        metrics.gauge(name, help);
        for (group, counts) in groups {
            for kind in Kind::ALL {
                let labels = [("group", group.as_str()), ("kind", kind.as_str())];
                metrics.sample(name, &labels, of(counts).of(kind));
            }
        }
    };
    by_kind("sentinel_broker_registrations", "Nodes of a kind that have registered in a group.", |counts| {
        counts.registered
    });
    by_kind(
        "sentinel_broker_stale_registrations",
        "Nodes of a kind that have not registered again within their ttl.",
        |counts| counts.stale,
    );

    metrics.gauge(
        "sentinel_broker_ready",
        "Whether every expected node of a group is registered and not stale: 1 or 0.",
    );
    for (group, counts) in groups {
        let ready = u8::from(counts.is_ready(expected));
        metrics.sample("sentinel_broker_ready", &[("group", group.as_str())], ready);
    }
    metrics.0
}

/// Text in the exposition format. Results are ignored, because writing to a `String` can't fail.
struct Exposition(String);

impl Exposition {
    fn gauge(&mut self, name: &str, help: &str) {
        let _ = writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} gauge");
    }

    fn sample(&mut self, name: &str, labels: &[(&str, &str)], value: impl Display) {
        self.0.push_str(name);
        for (place, (label, text)) in labels.iter().enumerate() {
            let opening = if place == 0 { '{' } else { ',' };
            let _ = write!(self.0, "{opening}{label}=\"");
            for character in text.chars() {
                match character {
                    '\\' => self.0.push_str("\\\\"),
                    '"' => self.0.push_str("\\\""),
                    '\n' => self.0.push_str("\\n"),
                    other => self.0.push(other),
                }
            }
            self.0.push('"');
        }
        let closing = if labels.is_empty() { "" } else { "}" };
        let _ = writeln!(self.0, "{closing} {value}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::Expected;

    #[test]
    fn metrics_count_each_group_and_say_what_is_expected() {
        let config = Config {
            default_group: "mymaster".parse().unwrap(),
            expected: Expected { redis: 2, sentinels: 3, quorum: 2 },
            trusted_proxy_hops: 0,
            max_registrations: 64,
            max_groups: 1000,
        };
        let counts = |redis, sentinels| Counts { redis, sentinels };
        let groups = [
            ("cache", GroupCounts { registered: counts(1, 0), stale: counts(0, 0) }),
            ("mymaster", GroupCounts { registered: counts(2, 3), stale: counts(0, 0) }),
            ("orders", GroupCounts { registered: counts(3, 3), stale: counts(0, 1) }),
        ];
        let groups = groups.map(|(group, counts)| (group.parse().unwrap(), counts));
        let expected = "\
# HELP sentinel_broker_groups Groups that have a registration or an outcome.
# TYPE sentinel_broker_groups gauge
sentinel_broker_groups 3
# HELP sentinel_broker_expected How many nodes of a kind make a group complete.
# TYPE sentinel_broker_expected gauge
sentinel_broker_expected{kind=\"redis\"} 2
sentinel_broker_expected{kind=\"sentinel\"} 3
# HELP sentinel_broker_max_registrations The most registrations of one kind that a group may hold.
# TYPE sentinel_broker_max_registrations gauge
sentinel_broker_max_registrations 64
# HELP sentinel_broker_max_groups The most groups that the broker may hold.
# TYPE sentinel_broker_max_groups gauge
sentinel_broker_max_groups 1000
# HELP sentinel_broker_registrations Nodes of a kind that have registered in a group.
# TYPE sentinel_broker_registrations gauge
sentinel_broker_registrations{group=\"cache\",kind=\"redis\"} 1
sentinel_broker_registrations{group=\"cache\",kind=\"sentinel\"} 0
sentinel_broker_registrations{group=\"mymaster\",kind=\"redis\"} 2
sentinel_broker_registrations{group=\"mymaster\",kind=\"sentinel\"} 3
sentinel_broker_registrations{group=\"orders\",kind=\"redis\"} 3
sentinel_broker_registrations{group=\"orders\",kind=\"sentinel\"} 3
# HELP sentinel_broker_stale_registrations Nodes of a kind that have not registered again within their ttl.
# TYPE sentinel_broker_stale_registrations gauge
sentinel_broker_stale_registrations{group=\"cache\",kind=\"redis\"} 0
sentinel_broker_stale_registrations{group=\"cache\",kind=\"sentinel\"} 0
sentinel_broker_stale_registrations{group=\"mymaster\",kind=\"redis\"} 0
sentinel_broker_stale_registrations{group=\"mymaster\",kind=\"sentinel\"} 0
sentinel_broker_stale_registrations{group=\"orders\",kind=\"redis\"} 0
sentinel_broker_stale_registrations{group=\"orders\",kind=\"sentinel\"} 1
# HELP sentinel_broker_ready Whether every expected node of a group is registered and not stale: 1 or 0.
# TYPE sentinel_broker_ready gauge
sentinel_broker_ready{group=\"cache\"} 0
sentinel_broker_ready{group=\"mymaster\"} 1
sentinel_broker_ready{group=\"orders\"} 0
";
        assert_eq!(render(&groups, &config), expected);
    }

    #[test]
    fn a_label_can_not_end_its_own_quotes_or_line() {
        let mut metrics = Exposition(String::new());
        metrics.sample("m", &[("label", "a\"b\\c\nd é")], 1);
        assert_eq!(metrics.0, "m{label=\"a\\\"b\\\\c\\nd é\"} 1\n");
    }
}
