//! The rosters of a shard, as they were built at one revision.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::keys::Shard;
use super::members::{Counts, EncodedMembers, Members};
use super::{Revision, StoreError, encode};
use crate::api::{Group, Timestamp};

/// How long a snapshot counts: as long as its revision had stood when it was built, but within these.
///
/// It matters where regions lag behind each other. A reader there may see a new revision before the new key, and what it builds
/// then lacks the key. If the key comes so much later, it shows after as much time again.
pub(super) const SNAPSHOT_LIFE: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));

/// How long a revision must have stood before a snapshot of it is stored. One that lacks a key must not get to the region that has
/// answered it: until then, a snapshot stays with the instance that has built it.
pub(super) const SETTLED_AFTER: Duration = Duration::from_secs(5);

/// Of how many keys on the store is so large that a snapshot is stored at once all the same. While instances are busy a host makes more
/// of them, and 64 that all list at once take longer over more keys than anybody waits.
pub(super) const LARGE_STORE: usize = 4096;

/// What the groups of a shard held at one revision. It is stored as its head, a line break, and the members of each as they are sent.
#[derive(Debug)]
pub(super) struct Snapshot {
    pub(super) shard: Shard,
    pub(super) head: SnapshotHead,
    pub(super) members: BTreeMap<Group, EncodedMembers>,
}

/// The first line of a snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct SnapshotHead {
    /// The revision that it was built at.
    pub(super) revision: String,
    /// When that was set.
    pub(super) set_at: Timestamp,
    pub(super) built_at: Timestamp,
    /// Until when it counts. That is when a registration in it becomes stale, or is forgotten, where that comes first: no revision
    /// tells it.
    pub(super) until: Timestamp,
    /// How many keys the store had, of all shards.
    pub(super) keys: usize,
    pub(super) groups: Vec<SnapshotPart>,
}

/// Whose members come next, and how many bytes they are.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct SnapshotPart {
    pub(super) group: Group,
    #[serde(flatten)]
    pub(super) fresh: Counts,
    pub(super) bytes: usize,
    pub(super) tag: String,
}

impl Snapshot {
    /// What is stored, if it is one.
    pub(super) fn open(shard: Shard, stored: Vec<u8>) -> Option<Self> {
        // JSON as it is written here holds no line break.
        let end = stored.iter().position(|byte| *byte == b'\n')?;
        let head: SnapshotHead = serde_json::from_slice(&stored[..end]).ok()?;
        let mut rest = Bytes::from(stored).split_off(end + 1);
        let mut members = BTreeMap::new();
        for SnapshotPart { group, fresh, bytes, tag } in &head.groups {
            let json = (*bytes <= rest.len()).then(|| rest.split_to(*bytes))?;
            members.insert(group.clone(), EncodedMembers { fresh: *fresh, json, tag: tag.clone() });
        }
        Some(Self { shard, head, members })
    }

    /// What it holds of a group.
    pub(super) fn members(&self, group: &Group) -> Result<EncodedMembers, StoreError> {
        match self.members.get(group) {
            Some(members) => Ok(members.clone()),
            None => EncodedMembers::of(&Members::default()),
        }
    }

    /// As it is stored.
    pub(super) fn encode(&self) -> Result<Vec<u8>, StoreError> {
        let mut stored = encode(&self.head)?;
        stored.push(b'\n');
        self.members.values().for_each(|members| stored.extend_from_slice(&members.json));
        Ok(stored)
    }

    pub(super) fn counts_at(&self, revision: &Revision, now: Timestamp) -> bool {
        // A snapshot from the future was built by a host with another clock; its age can't be told.
        self.head.revision == revision.nonce && self.head.built_at <= now && now < self.head.until
    }
}
