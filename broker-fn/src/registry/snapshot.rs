//! The rosters of a shard, as they were built at one revision.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::keys::Shard;
use super::members::{Counts, EncodedMembers, Members};
use super::{Revision, StoreError, encode};
use crate::api::{Group, Timestamp};

/// How long a snapshot is valid: for as long as the age that its revision had when it was built, within these
/// bounds.
///
/// This matters if regions lag. A reader may see a new revision before the new key, and build a snapshot
/// without the key. The roster then shows the key at the latest after the same time again.
pub(super) const SNAPSHOT_LIFE: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));

/// How old a revision must be before a snapshot of it is stored. A snapshot without a key must not reach the
/// region that has answered that key. So until then, the snapshot stays with the instance that has built it.
pub(super) const SETTLED_AFTER: Duration = Duration::from_secs(5);

/// In a store of this many keys and more, a snapshot is stored at once. While instances are busy, a host
/// makes more of them. If 64 instances list so many keys at once, that takes longer than a request may wait.
pub(super) const LARGE_STORE: usize = 4096;

/// The members of a shard's groups at one revision. It is stored as its head, a line break, and the encoded
/// members of each group.
#[derive(Debug)]
pub(super) struct Snapshot {
    pub(super) shard: Shard,
    pub(super) head: SnapshotHead,
    pub(super) members: BTreeMap<Group, EncodedMembers>,
}

/// The first line of a snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct SnapshotHead {
    /// The revision at which the snapshot was built.
    pub(super) revision: String,
    /// When the revision was set.
    pub(super) set_at: Timestamp,
    pub(super) built_at: Timestamp,
    /// Until when the snapshot is valid. It ends earlier if a registration in it becomes stale or is
    /// forgotten before that, because no revision shows that.
    pub(super) until: Timestamp,
    /// How many keys the whole store had.
    pub(super) keys: usize,
    pub(super) groups: Vec<SnapshotPart>,
}

/// The group whose members come next, and their length in bytes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct SnapshotPart {
    pub(super) group: Group,
    #[serde(flatten)]
    pub(super) fresh: Counts,
    pub(super) bytes: usize,
    pub(super) tag: String,
}

impl Snapshot {
    /// A stored snapshot, if it can be read.
    pub(super) fn open(shard: Shard, stored: Vec<u8>) -> Option<Self> {
        // JSON as it is written here contains no line break.
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

    /// The members of a group.
    pub(super) fn members(&self, group: &Group) -> Result<EncodedMembers, StoreError> {
        match self.members.get(group) {
            Some(members) => Ok(members.clone()),
            None => EncodedMembers::of(&Members::default()),
        }
    }

    /// The snapshot as it is stored.
    pub(super) fn encode(&self) -> Result<Vec<u8>, StoreError> {
        let mut stored = encode(&self.head)?;
        stored.push(b'\n');
        self.members.values().for_each(|members| stored.extend_from_slice(&members.json));
        Ok(stored)
    }

    pub(super) fn counts_at(&self, revision: &Revision, now: Timestamp) -> bool {
        // A host with another clock has built a snapshot from the future. Its age is unknown.
        self.head.revision == revision.nonce && self.head.built_at <= now && now < self.head.until
    }
}
