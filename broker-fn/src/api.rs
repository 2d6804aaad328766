//! The wire contract: what travels between the nodes, the broker and the runner, as JSON over HTTP.
//!
//! The types check their values: a [`Host`] is always a usable host in its normal form, and a [`Group`] is
//! always a valid Sentinel master name. A value that parses is safe to store and to pass on.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr};
use std::num::NonZeroU16;
use std::str::FromStr;
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

/// The longest request body that is read, in bytes; more is answered with `413`.
pub const MAX_BODY_BYTES: usize = 4096;

/// The media type of [`Problem`] (RFC 9457).
pub const PROBLEM_JSON: &str = "application/problem+json";

/// Why a value is invalid: a text that names what is expected, to be put after the field's name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Invalid(String);

/// Serde by `Display` and `FromStr`, so that only values that parse are deserialized.
macro_rules! serde_as_str {
    ($type:ty) => {
        impl Serialize for $type {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                // A borrowed string can't be read if it contains escapes. These strings are short.
                String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}

/// What a node is: a Redis server (also Valkey), or a Sentinel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// A data server.
    Redis,
    /// A Sentinel.
    Sentinel,
}

impl Kind {
    /// Both kinds.
    pub const ALL: [Kind; 2] = [Kind::Redis, Kind::Sentinel];

    /// The port on which nodes of this kind listen by default.
    #[must_use]
    pub fn default_port(self) -> NonZeroU16 {
        match self {
            Kind::Redis => const { NonZeroU16::new(6379).unwrap() },
            Kind::Sentinel => const { NonZeroU16::new(26379).unwrap() },
        }
    }

    /// The path segment of this kind, which is also its name in storage keys.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Kind::Redis => "redis",
            Kind::Sentinel => "sentinel",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The name of one Redis system: the Sentinel *master name*. 1 to 64 of `A-Z a-z 0-9 . _ -`, case-sensitive.
/// Not `.` or `..`, because clients remove these from a path.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Group(String);

impl Group {
    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Group {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
        if [".", ".."].contains(&text) {
            Err(Invalid("a group name can't be `.` or `..`: clients remove these from the path".into()))
        } else if (1..=64).contains(&text.len()) && text.bytes().all(allowed) {
            Ok(Self(text.to_owned()))
        } else {
            Err(Invalid("a group name is 1 to 64 of the characters A-Z a-z 0-9 . _ -".into()))
        }
    }
}

impl fmt::Display for Group {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

serde_as_str!(Group);

/// A node's host: an IPv4 or IPv6 address, or a DNS name (RFC 1123). It is in normal form, so that equal
/// hosts compare equal: lower case, no brackets, no trailing dot, and an IPv4 address instead of an
/// IPv4-mapped IPv6 address.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Host(String);

impl Host {
    /// The host as text, without brackets.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The address, unless this is a DNS name.
    #[must_use]
    pub fn ip(&self) -> Option<IpAddr> {
        self.0.parse().ok()
    }
}

impl TryFrom<IpAddr> for Host {
    type Error = Invalid;

    fn try_from(address: IpAddr) -> Result<Self, Invalid> {
        let address = address.to_canonical();
        if address.is_unspecified() || address.is_multicast() || address == IpAddr::V4(Ipv4Addr::BROADCAST) {
            return Err(Invalid(format!(
                "`{address}` is not the address of one node; give the address that the other nodes connect to"
            )));
        }
        Ok(Self(address.to_string()))
    }
}

impl FromStr for Host {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        let bare = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
        if let Ok(address) = bare.unwrap_or(text).parse::<IpAddr>() {
            return Self::try_from(address);
        }
        let name = text.strip_suffix('.').unwrap_or(text);
        let labels_are_valid = name.split('.').all(|label| {
            (1..=63).contains(&label.len())
                && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
                && !label.starts_with('-')
                && !label.ends_with('-')
        });
        // RFC 1123, 2.1: a name whose last label is all digits would be an address, but this one is not
        // valid.
        let last_label_is_digits =
            name.rsplit('.').next().is_some_and(|label| label.bytes().all(|byte| byte.is_ascii_digit()));
        if name.len() <= 253 && labels_are_valid && !last_label_is_digits {
            Ok(Self(name.to_ascii_lowercase()))
        } else {
            Err(Invalid(
                "a host is an IPv4 or IPv6 address or a DNS name (letters, digits, `-` and `.`; 253 characters at most)"
                    .into(),
            ))
        }
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

serde_as_str!(Host);

/// A node's address. Shown and parsed as `host:port`, an IPv6 host in brackets: `[fd00::7]:6379`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Addr {
    /// The host.
    pub host: Host,
    /// The TCP port.
    pub port: NonZeroU16,
}

impl FromStr for Addr {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        let (host, port) = text
            .rsplit_once(':')
            .ok_or_else(|| Invalid("an address is `host:port`; the port is missing".into()))?;
        if host.contains(':') && !host.starts_with('[') {
            return Err(Invalid("an IPv6 address goes in brackets: `[fd00::7]:6379`".into()));
        }
        // Rust also parses `+6379`.
        let digits = Some(port).filter(|port| port.bytes().all(|byte| byte.is_ascii_digit()));
        let port = digits
            .and_then(|digits| digits.parse().ok())
            .ok_or_else(|| Invalid(format!("`{port}` is not a port; a port is a number from 1 to 65535")))?;
        Ok(Self { host: host.parse()?, port })
    }
}

impl fmt::Display for Addr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.as_str().contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

/// A node's own id: `run_id` of `INFO server`, or `SENTINEL MYID`. Redis uses 40 hexadecimal digits. Accepted
/// are 1 to 64 letters, digits, `.`, `_` and `-`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct RunId(String);

impl RunId {
    /// The id as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for RunId {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        // The same alphabet as a group's name: safe in a key, a log line and a page.
        match text.parse::<Group>() {
            Ok(Group(id)) => Ok(Self(id)),
            Err(_) => Err(Invalid("a run_id is 1 to 64 of the characters A-Z a-z 0-9 . _ -".into())),
        }
    }
}

impl fmt::Display for RunId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

serde_as_str!(RunId);

/// A moment, in nanoseconds, in the years 1970 to 9999. Written as RFC 3339 in UTC with nine decimals:
/// `2026-11-22T10:00:00.123456789Z`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp(SystemTime);

impl Timestamp {
    /// Now, by the host's clock.
    #[must_use]
    pub fn now() -> Self {
        SystemTime::now().into()
    }

    /// As the standard library's time.
    #[must_use]
    pub fn system_time(self) -> SystemTime {
        self.0
    }

    /// The time from `earlier` to this moment: zero if `earlier` is later.
    #[must_use]
    pub fn since(self, earlier: Self) -> Duration {
        self.0.duration_since(earlier.0).unwrap_or_default()
    }

    /// The moment that is this much later.
    #[must_use]
    pub fn after(self, time: Duration) -> Self {
        self.0.checked_add(time).map_or(self, Self::from)
    }
}

impl From<SystemTime> for Timestamp {
    /// A moment outside of 1970 to 9999 becomes the first or the last one: a wrong clock must not make a
    /// request fail.
    fn from(time: SystemTime) -> Self {
        // 9999-12-31T23:59:59.999999999Z
        let last = SystemTime::UNIX_EPOCH + Duration::new(253_402_300_799, 999_999_999);
        Self(time.clamp(SystemTime::UNIX_EPOCH, last))
    }
}

impl FromStr for Timestamp {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        humantime::parse_rfc3339(text)
            .map(Self::from)
            .map_err(|_| Invalid("a time is RFC 3339 in UTC, like `2026-11-22T10:00:00Z`".into()))
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        humantime::format_rfc3339_nanos(self.0).fmt(f)
    }
}

serde_as_str!(Timestamp);

/// The optional body of `POST /redis` and `POST /sentinel`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Register {
    /// The node's host. Default: the address that the request came from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<Host>,
    /// The node's port. Default: 6379 for a Redis server, 26379 for a Sentinel.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<NonZeroU16>,
    /// The node's own id: `run_id` of `INFO server`, or `SENTINEL MYID`. It differs if another server has
    /// taken the node's address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run_id: Option<RunId>,
    /// How long the registration counts, in seconds. If the node does not register again within this time,
    /// the registration becomes `stale`. Without a `ttl`, it counts until it is deleted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttl: Option<Ttl>,
    /// The master that the Sentinels report, if the node is a member of a system. A broker that has lost its
    /// store learns from this that there is a system.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub master: Option<Addr>,
}

/// How long a registration counts: a second to 7 days.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct Ttl(u32);

impl Ttl {
    /// The shortest and the longest, in seconds.
    pub const SECONDS: (u32, u32) = (1, 604_800);

    /// As the standard library's time.
    #[must_use]
    pub fn duration(self) -> Duration {
        Duration::from_secs(self.0.into())
    }
}

impl TryFrom<u64> for Ttl {
    type Error = Invalid;

    fn try_from(seconds: u64) -> Result<Self, Invalid> {
        let (least, most) = Self::SECONDS;
        let ttl = u32::try_from(seconds).ok().filter(|seconds| (least..=most).contains(seconds));
        ttl.map(Self).ok_or_else(|| Invalid(format!("a ttl is {least} to {most} seconds")))
    }
}

impl<'de> Deserialize<'de> for Ttl {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        u64::deserialize(deserializer)?.try_into().map_err(serde::de::Error::custom)
    }
}

/// One registered node. Group, kind, host and port identify it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Registration {
    /// The node's host and port.
    #[serde(flatten)]
    pub addr: Addr,
    /// The node's own id when it last registered.
    pub run_id: Option<RunId>,
    /// When the node first registered. This sets the order of the nodes, and so which server becomes the
    /// master.
    pub registered_at: Timestamp,
    /// When the node last registered. The value may be up to 30 s old.
    pub last_seen: Timestamp,
    /// How long the registration counts after `last_seen`, in seconds; null: until it is deleted.
    #[serde(default)]
    pub ttl: Option<Ttl>,
    /// The master that the Sentinels reported when the node last registered, if it was a member of a system.
    #[serde(default)]
    pub master: Option<Addr>,
    /// Whether the node has not registered again within its `ttl`. A stale registration does not count as an
    /// expected node, and makes room in a full group. A day later it is removed, unless the node was a member
    /// of a system (`master` is set).
    #[serde(default)]
    pub stale: bool,
}

impl Registration {
    /// A node that has just registered with only its address.
    #[must_use]
    pub fn new(addr: Addr, now: Timestamp) -> Self {
        Self { addr, run_id: None, registered_at: now, last_seen: now, ttl: None, master: None, stale: false }
    }

    /// When the registration becomes stale, if it has a `ttl`.
    #[must_use]
    pub fn expires(&self) -> Option<Timestamp> {
        self.ttl.map(|ttl| self.last_seen.after(ttl.duration()))
    }

    /// The sort key of a roster: first registered first, then by address. No two nodes have the same key.
    #[must_use]
    pub fn order(&self) -> (Timestamp, &Addr) {
        (self.registered_at, &self.addr)
    }
}

/// How many nodes make a group complete, and how many Sentinels must agree that its master is down.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Expected {
    /// Redis servers, the master included.
    pub redis: u16,
    /// Sentinels.
    pub sentinels: u16,
    /// The `quorum` of `SENTINEL MONITOR`.
    pub quorum: u16,
}

impl Expected {
    /// How many nodes are missing if there are this many of each kind.
    #[must_use]
    pub fn missing(&self, redis: usize, sentinels: usize) -> Missing {
        // A number above `u16::MAX` is always enough.
        let lack =
            |expected: u16, there: usize| expected.saturating_sub(there.try_into().unwrap_or(u16::MAX));
        Missing { redis: lack(self.redis, redis), sentinels: lack(self.sentinels, sentinels) }
    }
}

/// How many nodes have yet to register.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Missing {
    /// Redis servers.
    pub redis: u16,
    /// Sentinels.
    pub sentinels: u16,
}

impl Missing {
    /// Whether the group is complete.
    #[must_use]
    pub fn is_nothing(&self) -> bool {
        *self == Self { redis: 0, sentinels: 0 }
    }
}

/// `GET /`: all that the broker has stored about one group.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Roster {
    /// The group.
    pub group: Group,
    /// Whether nothing is missing.
    pub ready: bool,
    /// How many nodes the broker expects, and the quorum.
    pub expected: Expected,
    /// How many nodes have yet to register.
    pub missing: Missing,
    /// The Redis servers, first registered first.
    pub redis: Vec<Registration>,
    /// The Sentinels, first registered first.
    pub sentinels: Vec<Registration>,
    /// The outcome of the last run, as the runner reported it.
    pub outcome: Option<Outcome>,
    /// The system as it was last verified, if it ever was.
    #[serde(default)]
    pub last_verified: Option<LastVerified>,
}

/// `GET /redis`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct RedisList {
    /// First registered first.
    pub redis: Vec<Registration>,
}

/// `GET /sentinel`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct SentinelList {
    /// First registered first.
    pub sentinels: Vec<Registration>,
}

/// The `reason` of a run that has yet to end.
pub const RUN_UNDER_WAY: &str = "a run is under way";

/// The outcome of a run. `PUT /outcome` stores it, and the roster contains it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Outcome {
    /// Whether every check of a verified system passed.
    pub verified: bool,
    /// The master. If the system is not verified: the master of the last verified system, if there was one.
    #[serde(default)]
    pub master: Option<Addr>,
    /// The time of the outcome. Default: when the broker received it.
    #[serde(default = "Timestamp::now")]
    pub at: Timestamp,
    /// Why the system is not verified.
    #[serde(default)]
    pub reason: Option<String>,
    /// Settings that a run has changed temporarily and not yet restored, by the server's `host:port`, each
    /// with its previous value. A run that was killed can't restore them; the next run finds them here. The
    /// broker takes only `repl-diskless-sync-delay`, `repl-diskless-load` and `replica-priority`, and only of
    /// registered servers.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub restore: BTreeMap<String, BTreeMap<String, String>>,
    /// How many nodes the run expected. Default: as many as the broker expects.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expected: Option<Expected>,
}

/// The system as it was last verified. Only a later run that verifies the system, or `DELETE` of the group,
/// changes this; a run that fails does not.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct LastVerified {
    /// When the system was verified, by the broker's clock.
    pub at: Timestamp,
    /// The master at that time.
    pub master: Addr,
    /// The Redis servers that were registered and not stale, first registered first.
    pub redis: Vec<Addr>,
    /// The Sentinels that were registered and not stale, first registered first.
    pub sentinels: Vec<Addr>,
    /// How many nodes made the system complete.
    pub expected: Expected,
}

/// Whether a run may restore this setting of a Redis server to this value. That holds only for the settings
/// that a run changes temporarily, and only for values that such a setting may have had before. The runner
/// sends no other setting from an outcome to a server: everybody with the broker's token can write an
/// outcome.
#[must_use]
pub fn may_be_restored(setting: &str, value: &str) -> bool {
    let is_within =
        |least: u32, most: u32| value.parse::<u32>().is_ok_and(|number| (least..=most).contains(&number));
    match setting {
        // Seconds, 5 by default; a run sets 0.
        "repl-diskless-sync-delay" => is_within(1, 60),
        "repl-diskless-load" => ["disabled", "swapdb"].contains(&value),
        // A run never changes a priority of 0: such a replica is never promoted.
        "replica-priority" => is_within(1, i32::MAX.unsigned_abs()),
        _ => false,
    }
}

/// `GET /groups`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Groups {
    /// The groups, by name.
    pub groups: Vec<GroupSummary>,
    /// The path and query of the next page; absent on the last page.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "as serde calls it")]
fn is_zero(number: &usize) -> bool {
    *number == 0
}

/// One group in [`Groups`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct GroupSummary {
    /// The group.
    pub group: Group,
    /// How many Redis servers have registered.
    pub redis: usize,
    /// How many Sentinels have registered.
    pub sentinels: usize,
    /// How many of these nodes are stale; absent if none is.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub stale: usize,
    /// Whether nothing is missing.
    pub ready: bool,
}

/// `GET /config`: the settings in force, without secrets.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Config {
    /// The group that the root paths act on.
    pub default_group: Group,
    /// How many nodes make a group complete, and the quorum.
    pub expected: Expected,
    /// How many proxies in front of the broker append to `X-Forwarded-For`.
    pub trusted_proxy_hops: u16,
    /// The most registrations of one kind in a group.
    pub max_registrations: u16,
    /// The most groups: the variable `max_groups`, or fewer if these could have more than a million
    /// registrations in all.
    pub max_groups: u16,
}

/// `GET /healthcheck`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Health {
    /// `ok`.
    pub status: String,
}

/// An error, as RFC 9457 problem details.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Problem {
    /// Always `about:blank`: `status` identifies the problem.
    #[serde(rename = "type")]
    pub kind: String,
    /// The status in words.
    pub title: String,
    /// The HTTP status.
    pub status: u16,
    /// What happened, and what to do.
    pub detail: String,
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn host(text: &str) -> Result<String, Invalid> {
        text.parse().map(|host: Host| host.to_string())
    }

    #[test]
    fn a_host_has_one_normal_form() {
        for (given, normal) in [
            ("10.0.0.7", "10.0.0.7"),
            ("127.0.0.1", "127.0.0.1"),
            ("::1", "::1"),
            ("FD00:0:0::7", "fd00::7"),
            ("[fd00::7]", "fd00::7"),
            ("::ffff:10.0.0.7", "10.0.0.7"),
            ("[::ffff:a00:7]", "10.0.0.7"),
            ("Redis-0.Example.COM", "redis-0.example.com"),
            ("redis.", "redis"),
            ("3com.com", "3com.com"),
        ] {
            assert_eq!(host(given).as_deref(), Ok(normal), "{given}");
        }
    }

    #[test]
    fn what_is_no_host_of_one_node_is_refused() {
        let too_long = format!("{}.example", "a.".repeat(127));
        let long_label = format!("{}.example", "a".repeat(64));
        for bad in [
            "",
            ".",
            "..",
            "a..b",
            ".a",
            "-a",
            "a-",
            "a_b",
            "a b",
            "a/b",
            "ä",
            "a\n",
            "1.2.3",
            "1.2.3.4.5",
            "256.1.1.1",
            "01.2.3.4",
            "127.0.0.1:6379",
            "[a]",
            "[::1",
            "::1]",
            "[[::1]]",
            "fe80::1%eth0",
            "0.0.0.0",
            "::",
            "[::]",
            "::ffff:0.0.0.0",
            "224.0.0.1",
            "239.255.255.255",
            "255.255.255.255",
            "ff02::1",
            too_long.as_str(),
            long_label.as_str(),
        ] {
            assert!(host(bad).is_err(), "{bad:?} was taken as {:?}", host(bad));
        }
    }

    #[test]
    fn an_address_is_host_and_port_with_brackets_around_ipv6() {
        for (given, normal) in [
            ("10.0.0.7:6379", "10.0.0.7:6379"),
            ("[FD00::7]:6379", "[fd00::7]:6379"),
            ("[::ffff:10.0.0.7]:1", "10.0.0.7:1"),
            ("Redis:65535", "redis:65535"),
        ] {
            assert_eq!(given.parse::<Addr>().unwrap().to_string(), normal);
        }
        for bad in [
            "",
            ":",
            "a",
            "a:",
            ":1",
            "a:0",
            "a:65536",
            "a:-1",
            "a:+1",
            "a:1.5",
            "fd00::7:6379",
            "::1",
            "[::1]",
            "a:1:1",
        ] {
            assert!(bad.parse::<Addr>().is_err(), "{bad:?}");
        }
        let advice = "fd00::7:6379".parse::<Addr>().unwrap_err().to_string();
        assert!(advice.contains("brackets"), "{advice}");
    }

    #[test]
    fn group_names_and_run_ids_are_1_to_64_safe_characters() {
        for good in ["a", "my.master_1-B", &"x".repeat(64)] {
            assert!(good.parse::<Group>().is_ok() && good.parse::<RunId>().is_ok(), "{good:?}");
        }
        for bad in ["", ".", "..", "a b", "a/b", "a:b", "ä", "a\0", "a\n", &"x".repeat(65)] {
            assert!(bad.parse::<Group>().is_err() && bad.parse::<RunId>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_time_that_cannot_be_written_does_not_come_about() {
        for time in [
            SystemTime::UNIX_EPOCH - Duration::from_secs(1),
            SystemTime::UNIX_EPOCH + Duration::from_secs(1 << 40),
        ] {
            let text = Timestamp::from(time).to_string();
            assert_eq!(text.parse::<Timestamp>().unwrap(), Timestamp::from(time), "{text}");
        }
        for bad in
            ["", "now", "2026-11-22", "2026-11-22T10:00:00", "1969-12-31T23:59:59Z", "10000-01-01T00:00:00Z"]
        {
            assert!(bad.parse::<Timestamp>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn what_a_group_lacks_is_never_negative() {
        let expected = Expected { redis: 2, sentinels: 3, quorum: 2 };
        assert_eq!(expected.missing(0, 1), Missing { redis: 2, sentinels: 2 });
        assert!(expected.missing(2, 3).is_nothing());
        assert!(expected.missing(usize::MAX, 70_000).is_nothing());
    }

    proptest! {
        #[test]
        fn junk_is_refused_and_what_is_taken_reads_back_as_itself(text in "\\PC{0,80}") {
            if let Ok(host) = text.parse::<Host>() {
                prop_assert_eq!(host.to_string().parse(), Ok(host));
            }
            if let Ok(addr) = text.parse::<Addr>() {
                prop_assert_eq!(addr.to_string().parse(), Ok(addr));
            }
            if let Ok(group) = text.parse::<Group>() {
                prop_assert_eq!(group.to_string(), text.clone());
            }
            let _ = text.parse::<RunId>();
            let _ = text.parse::<Timestamp>();
        }

        #[test]
        fn names_read_back_as_themselves(text in "[a-zA-Z0-9.:\\[\\]-]{1,40}") {
            if let Ok(host) = text.parse::<Host>() {
                prop_assert_eq!(host.to_string().parse(), Ok(host));
            }
            if let Ok(addr) = text.parse::<Addr>() {
                prop_assert_eq!(addr.to_string().parse(), Ok(addr));
            }
        }

        #[test]
        fn addresses_read_back_as_themselves(ip: IpAddr, port: NonZeroU16) {
            if let Ok(host) = Host::try_from(ip) {
                prop_assert_eq!(host.ip(), Some(ip.to_canonical()));
                let addr = Addr { host, port };
                prop_assert_eq!(addr.to_string().parse(), Ok(addr));
            }
        }

        #[test]
        fn times_read_back_as_themselves(text in "[0-9]{4}-[0-1][0-9]-[0-3][0-9]T[0-2][0-9]:[0-5][0-9]:[0-6][0-9](\\.[0-9]{1,9})?Z") {
            if let Ok(time) = text.parse::<Timestamp>() {
                prop_assert_eq!(time.to_string().parse(), Ok(time));
            }
        }
    }
}
