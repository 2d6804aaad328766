//! What an instance of the component keeps for all its requests. It belongs to the instance's own region, and
//! none of it reaches another region.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::keys::{SHARDS, Shard};
use super::snapshot::Snapshot;

/// How many snapshots are kept.
const MAX_KEPT: usize = 8;

/// How many requests may wait at once for a roster to change. Spin gives an instance up to 16 requests at
/// once. Some places must stay free for requests that do not wait.
pub(super) const MAX_WAITING: usize = 8;

/// What an instance keeps.
pub(super) struct Instance {
    kept: Mutex<BTreeMap<Shard, Arc<Snapshot>>>,
    /// How often requests of this instance have set each shard's revision.
    changes: [AtomicU32; SHARDS as usize],
    waiting: AtomicUsize,
    /// The shards that a request is listing.
    building: Mutex<BTreeSet<Shard>>,
}

/// Marks a shard as being listed, until it is dropped.
pub(super) struct Building<'a>(&'a Instance, Shard);

/// A place among the requests that wait, until it is dropped.
pub(super) struct WaitingPlace<'a>(&'a Instance);

impl Default for Instance {
    fn default() -> Self {
        Self {
            kept: Mutex::default(),
            changes: [const { AtomicU32::new(0) }; SHARDS as usize],
            waiting: AtomicUsize::new(0),
            building: Mutex::default(),
        }
    }
}

impl fmt::Debug for Instance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.lock_kept().fmt(f)
    }
}

impl Instance {
    /// The shard's snapshot that was used last.
    pub(super) fn kept(&self, shard: Shard) -> Option<Arc<Snapshot>> {
        self.lock_kept().get(&shard).cloned()
    }

    /// Keeps a snapshot in place of the shard's previous one. If there are too many, it replaces the one that
    /// expires first.
    pub(super) fn keep(&self, snapshot: Snapshot) {
        let mut kept = self.lock_kept();
        if kept.len() >= MAX_KEPT
            && !kept.contains_key(&snapshot.shard)
            && let Some(first) = kept.values().min_by_key(|kept| kept.head.until).map(|first| first.shard)
        {
            kept.remove(&first);
        }
        kept.insert(snapshot.shard, Arc::new(snapshot));
    }

    /// All snapshots that are kept.
    pub(super) fn lock_kept(&self) -> MutexGuard<'_, BTreeMap<Shard, Arc<Snapshot>>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes that a shard's revision has been set.
    pub(super) fn changed(&self, shard: Shard) {
        self.changes[shard.index()].fetch_add(1, Ordering::Release);
    }

    /// How often the shard's revision has been set.
    pub(super) fn changes(&self, shard: Shard) -> u32 {
        self.changes[shard.index()].load(Ordering::Acquire)
    }

    /// Marks the shard as being listed, unless another request is listing it.
    pub(super) fn build(&self, shard: Shard) -> Option<Building<'_>> {
        self.lock_building().insert(shard).then(|| Building(self, shard))
    }

    pub(super) fn is_building(&self, shard: Shard) -> bool {
        self.lock_building().contains(&shard)
    }

    fn lock_building(&self) -> MutexGuard<'_, BTreeSet<Shard>> {
        self.building.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A place among the requests that wait, if one is free.
    pub(super) fn place(&self) -> Option<WaitingPlace<'_>> {
        let taken = self.waiting.fetch_update(Ordering::AcqRel, Ordering::Acquire, |waiting| {
            (waiting < MAX_WAITING).then_some(waiting + 1)
        });
        // `then_some` would create the place even if none is free, and its drop would change the count.
        taken.is_ok().then(|| WaitingPlace(self))
    }
}

impl Drop for Building<'_> {
    fn drop(&mut self) {
        self.0.lock_building().remove(&self.1);
    }
}

impl Drop for WaitingPlace<'_> {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Ordering::AcqRel);
    }
}
