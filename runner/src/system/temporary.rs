//! Settings of Redis servers that a run changes temporarily and restores. They are reported to the broker
//! first, so that another run can restore them if this run is killed.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard};

use broker_fn::api::{Roster, may_be_restored};
use futures::future::join_all;

use crate::node::command::{Command, command};
use crate::node::connection::Connections;
use crate::node::endpoint::Endpoint;
use crate::node::redis::{DISKLESS_DELAY, DISKLESS_LOAD, ON_EMPTY_DB, PRIORITY, set};

/// The `replica-priority` of the replica that is to be promoted. No priority takes precedence over it,
/// because a replica with priority 0 is never promoted.
pub const FIRST: u32 = 1;

/// The `replica-priority` of a replica that would otherwise be promoted just as well as the one with
/// [`FIRST`].
pub const SECOND: u32 = 2;

/// A setting that is changed temporarily.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TemporarySetting {
    pub node: Endpoint,
    pub name: &'static str,
    /// The temporary value.
    pub value: &'static str,
    /// The previous value, which is restored.
    pub before: String,
}

impl TemporarySetting {
    pub fn set(&self) -> Command {
        set(self.name, self.value)
    }

    pub fn put_back(&self) -> Command {
        set(self.name, &self.before)
    }
}

/// Whether a run has left this setting changed: its value is `now`, and `before` was noted as its earlier
/// value.
pub fn is_temporary(setting: &str, now: &str, before: &str) -> bool {
    let is_of_a_run = match setting {
        DISKLESS_DELAY => now == "0",
        PRIORITY => [FIRST, SECOND].iter().any(|temporary| temporary.to_string() == now),
        DISKLESS_LOAD => now == ON_EMPTY_DB,
        _ => false,
    };
    is_of_a_run && may_be_restored(setting, before)
}

/// Settings that were changed temporarily, and have to be restored at every end of the run: by node, each
/// with its earlier value.
#[derive(Debug, Default)]
pub struct Cleanup(Mutex<ChangedSettings>);

/// Settings by node.
pub type ChangedSettings = BTreeMap<Endpoint, BTreeMap<String, String>>;

impl Cleanup {
    /// Notes the value that a setting of a server should have in the end. Only the first note is kept: a
    /// value that is read later may be the one that this run has set.
    pub fn note(&self, node: &Endpoint, name: &str, before: &str) {
        let mut changed = self.changed();
        changed.entry(node.clone()).or_default().entry(name.to_owned()).or_insert_with(|| before.to_owned());
    }

    /// The settings that are still to be restored.
    pub fn pending(&self) -> ChangedSettings {
        self.changed().clone()
    }

    /// Restores all settings, on all nodes at once. Returns the settings that could not be restored: the
    /// node, and the command for a person to type.
    pub async fn run(&self, redis: &Connections) -> Vec<(Endpoint, String)> {
        let nodes = self.pending().into_iter().map(async |(node, settings)| {
            let (names, commands): (Vec<_>, Vec<_>) =
                settings.into_iter().map(|(name, before)| (name.clone(), set(&name, &before))).unzip();
            let replies = redis.send(&node, &commands).await.unwrap_or_default();
            let mut left = Vec::new();
            for (index, (name, command)) in names.iter().zip(&commands).enumerate() {
                if matches!(replies.get(index), Some(Ok(_))) {
                    self.forget(&node, name);
                } else {
                    left.push((node.clone(), command.shown()));
                }
            }
            // A Sentinel may have made the server write its file while the setting was changed. A server
            // without a file answers with an error.
            if names.iter().any(|name| name == PRIORITY) {
                let _ = redis.send(&node, &[command!("CONFIG", "REWRITE")]).await;
            }
            left
        });
        join_all(nodes).await.into_iter().flatten().collect()
    }

    /// The setting was not changed after all, or is restored.
    pub fn forget(&self, node: &Endpoint, name: &str) {
        let mut changed = self.changed();
        if let Some(settings) = changed.get_mut(node) {
            settings.remove(name);
            if settings.is_empty() {
                changed.remove(node);
            }
        }
    }

    fn changed(&self) -> MutexGuard<'_, ChangedSettings> {
        self.0.lock().expect("no holder panics")
    }
}

/// Keeps the notes that the broker accepts again: a server may have left, and older brokers accepted more
/// settings.
pub fn restorable_by_the_broker(restore: &mut BTreeMap<String, BTreeMap<String, String>>, roster: &Roster) {
    restore.retain(|node, settings| {
        settings.retain(|name, before| may_be_restored(name, before));
        !settings.is_empty() && roster.redis.iter().any(|registered| registered.addr.to_string() == *node)
    });
}

/// In the form in which the broker keeps it.
pub fn restorable(changed: ChangedSettings) -> BTreeMap<String, BTreeMap<String, String>> {
    changed.into_iter().map(|(node, settings)| (node.to_string(), settings)).collect()
}
