//! Checks outcomes before the broker stores them. A client with a node's token may be able to write an
//! outcome, and the next run reads it.

use std::time::Duration;

use crate::api::{Addr, Expected, LastVerified, Outcome, Registration, Timestamp, may_be_restored};
use crate::problem::Error;
use crate::registry::Members;

/// The longest `reason`, in characters.
pub(crate) const MAX_REASON_CHARS: usize = 2000;

/// How much the clocks of the runner and of the broker may differ.
const CLOCKS_DIFFER: Duration = Duration::from_secs(300);

/// Refuses an outcome that no run of this group can have seen.
///
/// # Errors
///
/// [`Error::NotFound`] if the group has no node, [`Error::Invalid`] with what is wrong.
pub fn check(outcome: &Outcome, group: &Members, now: Timestamp) -> Result<(), Error> {
    let invalid = |what: String| Err(Error::Invalid(what));
    let Outcome { verified, master, at, reason, restore, expected } = outcome;
    let reason = reason.as_deref().unwrap_or_default();
    if *verified && master.is_none() {
        return invalid("`master` is missing: it is required if `verified` is true".into());
    }
    if !*verified && reason.trim().is_empty() {
        return invalid("`reason` is missing: it is required if `verified` is false".into());
    }
    if reason.chars().count() > MAX_REASON_CHARS {
        return invalid(format!("`reason` is longer than {MAX_REASON_CHARS} characters"));
    }
    if expected.is_some_and(|Expected { redis, sentinels, quorum }| {
        [redis, sentinels, quorum].contains(&0) || quorum > sentinels
    }) {
        return invalid(
            "`expected` is not a system: it needs a Redis server, a Sentinel and a quorum of 1 to `sentinels`"
                .into(),
        );
    }
    if group.redis.is_empty() && group.sentinels.is_empty() {
        return Err(Error::NotFound(
            "no node has registered in this group: register its nodes before you send an outcome".into(),
        ));
    }
    let is_registered = |addr: &Addr| group.redis.iter().any(|node| node.addr == *addr);
    if let Some(master) = master {
        // A master that has left since then is still the master of the last outcome.
        let is_last =
            !*verified && group.outcome.as_ref().is_some_and(|last| last.master.as_ref() == Some(master));
        if !is_registered(master) && !is_last {
            return invalid(format!(
                "`master` is {master}, but no Redis server of this group is registered at this address"
            ));
        }
    }
    let (at, now) = (at.system_time(), now.system_time());
    if at.duration_since(now).or_else(|_| now.duration_since(at)).is_ok_and(|apart| apart > CLOCKS_DIFFER) {
        return invalid(
            "`at` differs from the broker's clock by more than 5 minutes: set the clocks of both machines"
                .into(),
        );
    }
    for (node, settings) in restore {
        if !node.parse().is_ok_and(|addr| is_registered(&addr)) {
            return invalid(format!(
                "`restore` contains {node:?}, but no Redis server of this group is registered at this address"
            ));
        }
        if let Some((name, value)) = settings.iter().find(|(name, value)| !may_be_restored(name, value)) {
            return invalid(format!(
                "`restore` contains the setting {name:?} with the value {value:?}, which no run restores"
            ));
        }
    }
    Ok(())
}

/// What the broker keeps of a run that has verified the system.
#[must_use]
pub fn verified(
    outcome: &Outcome,
    group: &Members,
    expects: Expected,
    now: Timestamp,
) -> Option<LastVerified> {
    let addrs = |nodes: &[Registration]| {
        nodes.iter().filter(|node| !node.stale).map(|node| node.addr.clone()).collect()
    };
    let master = outcome.master.clone().filter(|_| outcome.verified)?;
    let (redis, sentinels) = (addrs(&group.redis), addrs(&group.sentinels));
    Some(LastVerified {
        // The time is the broker's, because it is compared with `last_seen`, which is also by the broker's
        // clock.
        at: now,
        master,
        redis,
        sentinels,
        expected: outcome.expected.unwrap_or(expects),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn registered(addr: &str) -> Registration {
        Registration::new(addr.parse().unwrap(), Timestamp::now())
    }

    fn outcome(json: serde_json::Value) -> Outcome {
        serde_json::from_value(json).unwrap()
    }

    #[test]
    fn what_no_run_of_the_group_can_have_seen_is_refused() {
        let now = Timestamp::now();
        let last =
            outcome(serde_json::json!({"verified": true, "master": {"host": "10.0.0.9", "port": 6379}}));
        let group = Members {
            redis: vec![registered("10.0.0.1:6379"), registered("[fd00::7]:6379")],
            sentinels: vec![],
            outcome: Some(last),
            last_verified: None,
        };
        let taken = |json| check(&outcome(json), &group, now).is_ok();
        let master = |host: &str| serde_json::json!({"host": host, "port": 6379});
        assert!(taken(serde_json::json!({"verified": true, "master": master("10.0.0.1")})));
        assert!(!taken(serde_json::json!({"verified": true})));
        assert!(!taken(serde_json::json!({"verified": true, "master": master("10.0.0.2")})));
        assert!(!taken(serde_json::json!({"verified": true, "master": master("10.0.0.9")})), "it has left");
        assert!(taken(serde_json::json!({"verified": false, "reason": "why", "master": master("10.0.0.9")})));
        assert!(!taken(serde_json::json!({"verified": false, "reason": " ", "master": master("10.0.0.9")})));
        for (at, is_near) in
            [("1970-01-01T00:00:00Z", false), ("9999-12-31T23:59:59Z", false), (&*now.to_string(), true)]
        {
            let json = serde_json::json!({"verified": false, "reason": "why", "at": at});
            assert_eq!(taken(json), is_near, "{at}");
        }
        let restores = |node: &str, name: &str, value: &str| {
            taken(serde_json::json!({"verified": false, "reason": "why", "restore": {node: {name: value}}}))
        };
        for (name, value, is_good) in [
            ("repl-diskless-sync-delay", "5", true),
            ("repl-diskless-sync-delay", "60", true),
            ("repl-diskless-sync-delay", "0", false),
            ("repl-diskless-sync-delay", "2147483647", false),
            ("repl-diskless-load", "disabled", true),
            ("repl-diskless-load", "flush-before-load", false),
            ("replica-priority", "100", true),
            ("replica-priority", "0", false),
            ("replica-priority", "-1", false),
            ("dir", "/", false),
            ("requirepass", "", false),
        ] {
            assert_eq!(restores("10.0.0.1:6379", name, value), is_good, "{name} {value}");
            assert_eq!(restores("[fd00::7]:6379", name, value), is_good, "{name} {value}");
            assert!(!restores("10.0.0.2:6379", name, value), "it is not of the group");
        }
        let empty = Members::default();
        let verified = outcome(serde_json::json!({"verified": false, "reason": "why"}));
        assert!(matches!(check(&verified, &empty, now), Err(Error::NotFound(_))));
    }
}
