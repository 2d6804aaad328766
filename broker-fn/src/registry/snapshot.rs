//! The rosters of a shard, as they were built at one revision.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::keys::Shard;
use super::members::{Counts, EncodedMembers, Members};
use super::{Revision, StoreError, encode};
use crate::api::{Group, Timestamp};

/// How long a snapshot counts. It matters on a store that is eventually consistent, where a reader can see a new
/// revision before the new key, and after a writer that failed between its two writes.
pub(super) const SNAPSHOT_LIFE: Duration = Duration::from_secs(30);

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
    pub(super) built_at: Timestamp,
    /// When a registration in it becomes stale, or is forgotten, if none registers again: no revision tells that.
    pub(super) until: Option<Timestamp>,
    pub(super) groups: Vec<SnapshotPart>,
}

/// Whose members come next, and how many bytes they are.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct SnapshotPart {
    pub(super) group: Group,
    #[serde(flatten)]
    pub(super) fresh: Counts,
    pub(super) bytes: usize,
}

impl Snapshot {
    /// What is stored, if it is one.
    pub(super) fn open(shard: Shard, stored: Vec<u8>) -> Option<Self> {
        // JSON as it is written here holds no line break.
        let end = stored.iter().position(|byte| *byte == b'\n')?;
        let head: SnapshotHead = serde_json::from_slice(&stored[..end]).ok()?;
        let mut rest = Bytes::from(stored).split_off(end + 1);
        let mut members = BTreeMap::new();
        for SnapshotPart { group, fresh, bytes } in &head.groups {
            let json = (*bytes <= rest.len()).then(|| rest.split_to(*bytes))?;
            members.insert(group.clone(), EncodedMembers { fresh: *fresh, json });
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
        let age = now.system_time().duration_since(self.head.built_at.system_time());
        self.head.revision == revision.nonce
            && age.is_ok_and(|age| age < SNAPSHOT_LIFE)
            && self.head.until.is_none_or(|until| now < until)
    }
}
