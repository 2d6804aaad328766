//! The bounds: registrations of a kind in a group, and groups. The counts are approximate; if they reach a
//! bound, the store is listed.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::keys::{SHARDS, Shard, parse_key, registration_key};
use super::members::{Counts, Members};
use super::{KnownMembers, Registered, Registry, Store, StoreError, encode, new_nonce};
use crate::api::{Group, Kind, Registration, Timestamp};

/// The minimum by which a count is raised if several nodes register at once. It is small enough that the
/// nodes of one system can usually start at the same moment without a listing.
const CROWD: usize = 8;

/// The key of the [`GroupCount`].
const GROUPS_KEY: &str = "groups";

/// By how much the number of groups is raised if several groups are created at once. The count of a group's
/// nodes is doubled instead. If the number of groups were doubled, it would soon reach the bound, and the
/// groups would be counted again each time.
const CREATED_AT_ONCE: usize = 64;

/// How long after a count that found too many groups the groups are counted again.
const REFUSED_FOR: Duration = Duration::from_secs(2);

/// The bounds that a registration has to keep.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    /// Registrations of one kind in a group.
    pub registrations: usize,
    /// Groups; `None` for a group that always has room.
    pub groups: Option<usize>,
}

/// About how many groups there are. Like [`Counts`] in a revision, it is inexact and serves only as a bound.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
struct GroupCount {
    nonce: String,
    groups: usize,
    /// When the groups were last counted and were too many.
    refused_at: Option<Timestamp>,
}

impl<S: Store> Registry<S> {
    /// Makes sure that there is room for one more node of this kind. `groups` are the counts in the shard's
    /// revision. Returns the group's counts, or why there is no room.
    pub(super) async fn room(
        &self,
        group: &Group,
        kind: Kind,
        groups: &BTreeMap<Group, Counts>,
        now: Timestamp,
        bounds: Bounds,
    ) -> Result<Result<Counts, Registered>, StoreError> {
        if groups.get(group).is_none()
            && let Some(max) = bounds.groups
            && !self.has_room_for(group, groups.len(), max, now).await?
        {
            return Ok(Err(Registered::TooManyGroups));
        }
        let counts = groups.get(group).copied().unwrap_or_default();
        if counts.of(kind) < bounds.registrations {
            return Ok(Ok(counts));
        }
        let members = self.members(group, now).await?;
        let mut counts = members.counts().registered;
        if members.counts().fresh().of(kind) >= bounds.registrations {
            let fresh = members.of(kind).iter().filter(|registration| !registration.stale);
            let expires = fresh.filter_map(Registration::expires).min();
            let frees = expires.and_then(|at| at.system_time().duration_since(now.system_time()).ok());
            return Ok(Err(Registered::Full { frees }));
        }
        // The registrations that have been stale for the longest make room.
        let mut stale: Vec<_> = members.of(kind).iter().filter(|registration| registration.stale).collect();
        stale.sort_by_key(|registration| registration.expires());
        let too_many = (counts.of(kind) + 1).saturating_sub(bounds.registrations);
        for Registration { addr, .. } in stale.into_iter().take(too_many) {
            // The node may have registered again since the listing. If it registers at this very moment, the
            // registration is lost, and its next heartbeat registers it again.
            if self.registration(group, kind, addr, now).await?.is_none_or(|registration| registration.stale)
            {
                self.store.delete(&registration_key(group, kind, addr)).await?;
                *counts.of_mut(kind) -= 1;
            }
        }
        Ok(Ok(counts))
    }

    /// Whether there is room for this group if `max` are allowed; `others` of them share its shard.
    async fn has_room_for(
        &self,
        group: &Group,
        others: usize,
        max: usize,
        now: Timestamp,
    ) -> Result<bool, StoreError> {
        let noted = self.store.get(GROUPS_KEY).await?;
        // If the count can't be read, the groups are counted.
        let noted = noted.map(|value| serde_json::from_slice::<GroupCount>(&value));
        let noted = match noted {
            None => GroupCount::default(),
            Some(Ok(noted)) => noted,
            Some(Err(_)) => GroupCount { groups: usize::MAX, ..GroupCount::default() },
        };
        let mut groups = noted.groups;
        if groups >= max || others >= most_in_a_shard(max) {
            let age = noted.refused_at.map(|at| now.system_time().duration_since(at.system_time()));
            if age.is_some_and(|age| age.is_ok_and(|age| age < REFUSED_FOR)) {
                // The group may exist already: another request may have overwritten the revision that
                // contained it.
                return Ok(
                    matches!(self.known_members(group, now).await?, KnownMembers::Members(known) if known.decode()? != Members::default()),
                );
            }
            let shard = Shard::of(group);
            let has_room = |names: &BTreeSet<Group>| {
                let others = names.iter().filter(|other| Shard::of(other) == shard).count();
                names.contains(group) || names.len() < max && others < most_in_a_shard(max)
            };
            // The names of the groups are in the keys. Whether all registrations of a group are forgotten is
            // looked at only if there are too many groups.
            let keys = self.keys().await?;
            let mut names = keys.iter().filter_map(|key| Some(parse_key(key)?.0)).collect();
            if !has_room(&names) {
                let (held, _) = self.groups(None, None, now).await?;
                names = held.into_iter().map(|(name, _)| name).collect();
            }
            groups = names.len();
            if !has_room(&names) {
                self.count_groups(groups, Some(now)).await?;
                return Ok(false);
            }
            if names.contains(group) {
                return Ok(true);
            }
        }
        let ours = self.count_groups(groups + 1, None).await?;
        let theirs: Option<GroupCount> = self.load(GROUPS_KEY).await?;
        if let Some(theirs) = theirs.filter(|theirs| theirs.nonce != ours) {
            // Other requests create groups at this moment, and only one of these groups is counted.
            self.count_groups(theirs.groups.max(groups + 1) + CREATED_AT_ONCE, None).await?;
        }
        Ok(true)
    }

    async fn count_groups(&self, groups: usize, refused_at: Option<Timestamp>) -> Result<String, StoreError> {
        let count = GroupCount { nonce: new_nonce()?, groups, refused_at };
        self.store.set(GROUPS_KEY, encode(&count)?).await?;
        Ok(count.nonce)
    }
}

/// How many groups one shard may have, if there may be this many in all. The bound is needed because a client
/// can choose names that share a shard, and all groups of a shard are listed together.
pub(super) fn most_in_a_shard(groups: usize) -> usize {
    16 + 4 * groups / usize::from(SHARDS)
}

/// The count to store if other requests have counted at the same moment.
pub(super) fn beyond_crowd(theirs: usize, ours: usize) -> usize {
    theirs.max(ours).saturating_mul(2).saturating_add(CROWD)
}
