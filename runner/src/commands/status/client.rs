//! How a client finds the master: by the Sentinels and the group's name. Without passwords, which are not ours to print.

use broker_fn::api::{Registration, Roster};

/// As environment variables, a line each, which a shell and an environment file take as they are.
pub fn variables(roster: &Roster) -> String {
    format!("REDIS_SENTINELS={}\nREDIS_SENTINEL_GROUP={}", sentinels(roster), roster.group)
}

/// As a URI: `redis-sentinel://HOST:PORT,HOST:PORT#GROUP`, as Lettuce has it.
pub fn uri(roster: &Roster, tls: bool) -> String {
    let scheme = if tls { "rediss-sentinel" } else { "redis-sentinel" };
    format!("{scheme}://{}#{}", sentinels(roster), roster.group)
}

/// Those that have been heard of lately; all, where none has.
fn sentinels(roster: &Roster) -> String {
    let all = || roster.sentinels.iter();
    let is_used = |node: &&Registration| !node.stale || all().all(|node| node.stale);
    all().filter(is_used).map(|node| node.addr.to_string()).collect::<Vec<_>>().join(",")
}
