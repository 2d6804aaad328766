//! How much is taken: registrations of a kind in a group, and groups. What is counted is about right, and listed where that says no.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::keys::{SHARDS, Shard, parse_key, registration_key};
use super::members::{Counts, Members};
use super::{Look, Registered, Registry, Store, StoreError, encode, new_nonce};
use crate::api::{Group, Kind, Registration, Timestamp};

/// By how much a count is raised at least where several register at once: few enough that as a rule the nodes of one system
/// come up at the same moment without a listing.
const CROWD: usize = 8;

/// The key of the [`GroupCount`].
const GROUPS_KEY: &str = "groups";

/// By how much the number of groups is raised where several are made at once. Doubled, as that of a group's nodes, it would reach the bound
/// with each few, and be counted anew.
const MADE_AT_ONCE: usize = 64;

/// How long it is not counted again that there are too many groups.
const REFUSED_FOR: Duration = Duration::from_secs(2);

/// How much is taken.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    /// Registrations of one kind in a group.
    pub registrations: usize,
    /// Groups; `None` for one that always has room.
    pub groups: Option<usize>,
}

/// About how many groups there are: as good, and good for the same.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
struct GroupCount {
    nonce: String,
    groups: usize,
    /// When they were last counted, and were too many.
    refused_at: Option<Timestamp>,
}

impl<S: Store> Registry<S> {
    /// Makes sure that there is room for one more node of this kind. `groups` is what the revision says of those of the shard. Answers
    /// how many the group has, or why there is no room.
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
        // Room is made by those that have been stale for the longest.
        let mut stale: Vec<_> = members.of(kind).iter().filter(|registration| registration.stale).collect();
        stale.sort_by_key(|registration| registration.expires());
        let too_many = (counts.of(kind) + 1).saturating_sub(bounds.registrations);
        for Registration { addr, .. } in stale.into_iter().take(too_many) {
            // It may have registered again since. Where it does so in this very moment, its next heartbeat finds that it is gone.
            if self.registration(group, kind, addr, now).await?.is_none_or(|registration| registration.stale)
            {
                self.store.delete(&registration_key(group, kind, addr)).await?;
                *counts.of_mut(kind) -= 1;
            }
        }
        Ok(Ok(counts))
    }

    /// Whether there is room for this group among so many; `others` of them share its shard.
    async fn has_room_for(
        &self,
        group: &Group,
        others: usize,
        max: usize,
        now: Timestamp,
    ) -> Result<bool, StoreError> {
        let noted = self.store.get(GROUPS_KEY).await?;
        // What can't be read is counted anew.
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
                // It may be there already: what the revision says of it was written at the same moment as another one's.
                return Ok(
                    matches!(self.look(group, now).await?, Look::Members(known) if known.decode()? != Members::default()),
                );
            }
            let shard = Shard::of(group);
            let has_room = |names: &BTreeSet<Group>| {
                let others = names.iter().filter(|other| Shard::of(other) == shard).count();
                names.contains(group) || names.len() < max && others < most_in_a_shard(max)
            };
            // Their names are in the keys. Whether all that one holds is forgotten is looked at only where there are too many.
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
            // Others are made at this moment, and of all of them one has counted.
            self.count_groups(theirs.groups.max(groups + 1) + MADE_AT_ONCE, None).await?;
        }
        Ok(true)
    }

    async fn count_groups(&self, groups: usize, refused_at: Option<Timestamp>) -> Result<String, StoreError> {
        let count = GroupCount { nonce: new_nonce()?, groups, refused_at };
        self.store.set(GROUPS_KEY, encode(&count)?).await?;
        Ok(count.nonce)
    }
}

/// How many groups of one shard there may be, where there may be so many in all: names can be chosen so that they share one, and all of
/// a shard are listed together.
pub(super) fn most_in_a_shard(groups: usize) -> usize {
    16 + 4 * groups / usize::from(SHARDS)
}

/// What is counted where others have counted at the same moment.
pub(super) fn beyond_crowd(theirs: usize, ours: usize) -> usize {
    theirs.max(ours).saturating_mul(2).saturating_add(CROWD)
}
