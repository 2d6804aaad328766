//! What a client needs to find the master: the Sentinels and the group's name. Passwords are left out: this
//! program does not print them.

use broker_fn::api::{Registration, Roster};

/// As environment variables, one on each line. A shell and an environment file accept these lines.
pub fn variables(roster: &Roster) -> String {
    format!("REDIS_SENTINELS={}\nREDIS_SENTINEL_GROUP={}", sentinels(roster), roster.group)
}

/// As a URI: `redis-sentinel://HOST:PORT,HOST:PORT#GROUP`, as Lettuce reads it.
pub fn uri(roster: &Roster, tls: bool) -> String {
    let scheme = if tls { "rediss-sentinel" } else { "redis-sentinel" };
    format!("{scheme}://{}#{}", sentinels(roster), roster.group)
}

/// The Sentinels that are not stale. If all are stale, all of them.
fn sentinels(roster: &Roster) -> String {
    let all = || roster.sentinels.iter();
    let is_used = |node: &&Registration| !node.stale || all().all(|node| node.stale);
    all().filter(is_used).map(|node| node.addr.to_string()).collect::<Vec<_>>().join(",")
}
