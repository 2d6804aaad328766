//! The registrations: keys, encoding, order, revision and snapshot, over any [`Store`].
//!
//! The store offers nothing atomic, so **the truth is one key per registration, written by one request**. A
//! list that two requests read, change and write back would lose a registration.
//!
//! | key | value |
//! | --- | --- |
//! | `reg:{group}:{kind}:{hash of host:port}` | a [`Registration`] |
//! | `out:{group}` | the last [`Outcome`] |
//! | `ver:{group}` | the system as it was [last verified](LastVerified) |
//! | `rev:{shard}` | the revision of the shard's groups: a nonce, when it was set, approximate counts |
//! | `snap:{shard}` | their rosters as they were built at one revision |
//! | `list:{shard}` | the revision for which a reader has last begun to list the store |
//! | `groups` | about how many groups there are |
//!
//! A group's name determines its shard, one of [`SHARDS`]. A revision must never be deleted: the revision of
//! a registration that arrives at that moment would be deleted with it. So each shard has a revision, and not
//! each group. A deleted group leaves no key behind.
//!
//! A listing costs what the whole store holds, so a reader avoids it: if the snapshot names the current
//! revision, the snapshot is the roster. An order of steps makes that safe, without a lock:
//!
//! - a writer changes its own key **first**, then sets a fresh revision, then answers;
//! - a reader takes the revision **before** it lists, and stores the snapshot under that revision.
//!
//! So a snapshot without a key was built at an older revision than the one that the key's writer set before
//! it answered. The snapshot no longer matches. A test runs every interleaving of two writers and a reader.
//!
//! The same holds for a snapshot that an instance keeps. A [`Registry`] keeps the snapshots that it has used
//! last, and does not read them from the store again as long as they are valid.
//!
//! **If regions lag** (each region has its own store, and each key reaches the other regions separately), a
//! key may arrive after its revision. So a snapshot is valid only for as long as the age that its revision
//! had when the snapshot was built. A late key is then visible after the same time again at the latest. A
//! snapshot is stored only once its revision is some seconds old. Otherwise it would reach other regions and
//! hide the changes that they have answered.

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use futures::future::{join, join_all};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

pub use self::bounds::Bounds;
use self::bounds::beyond_crowd;
use self::instance::Instance;
use self::keys::{
    Holds, Shard, hex, listing_key, outcome_key, parse_key, registration_key, registration_prefix,
    revision_key, snapshot_key, split_key, verified_key,
};
pub use self::members::{Counts, EncodedMembers, GroupCounts, Members};
use self::snapshot::{LARGE_STORE, SETTLED_AFTER, SNAPSHOT_LIFE, Snapshot, SnapshotHead, SnapshotPart};
use crate::api::{Addr, Group, Kind, LastVerified, Outcome, Registration, RunId, Timestamp, Ttl};

mod bounds;
mod instance;
mod keys;
mod members;
mod snapshot;
mod wait;

#[cfg(test)]
mod interleavings;
#[cfg(test)]
pub(crate) mod memory;
#[cfg(test)]
mod tests;

/// The key that [`Registry::check`] gets. Nothing is ever stored there.
const CHECK_KEY: &str = "healthcheck";

/// How often a request checks whether another request of the instance has listed: the first pause, and the
/// longest.
const BUILT_POLL: (Duration, Duration) = (Duration::from_millis(1), Duration::from_millis(16));

/// How many listings of other requests a request waits for, if each turns out to be of an older revision.
const SHARED_LISTINGS: u32 = 4;

/// How many groups are read at once when all are read.
const READ_AT_ONCE: usize = 64;

/// A key-value store like Spin's, in which only a single operation is atomic, and the host's clock.
pub trait Store: Send + Sync + 'static {
    /// The value of a key, if it has one.
    fn get(&self, key: &str) -> impl Future<Output = Result<Option<Vec<u8>>, StoreError>> + Send;
    /// Sets the value of a key.
    fn set(&self, key: &str, value: Vec<u8>) -> impl Future<Output = Result<(), StoreError>> + Send;
    /// Deletes a key. It is no error if there is no such key.
    fn delete(&self, key: &str) -> impl Future<Output = Result<(), StoreError>> + Send;
    /// Every key in the store, in no order.
    fn get_keys(&self) -> impl Future<Output = Result<Vec<String>, StoreError>> + Send;
    /// Whether another reader lists the store for the same purpose, according to its note under this key. If
    /// so, this waits for a moment, which grows with `tried`. If no reader does, this notes the purpose for
    /// the caller.
    ///
    /// This only saves work: many readers notice the same change at once, and each would list the whole
    /// store.
    fn wait_for_listing(&self, _key: &str, _purpose: &str, _tried: u32) -> impl Future<Output = bool> + Send {
        async { false }
    }
    /// Waits for this time. If a request on this host can't see the changes of other requests while it waits,
    /// returns `false` at once.
    fn pause(&self, _time: Duration) -> impl Future<Output = bool> + Send {
        async { false }
    }
    /// The present time.
    fn now(&self) -> Timestamp {
        Timestamp::now()
    }
}

/// The store failed, or contains a value that can't be read. For the log, not for clients.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the key-value store failed: {0}")]
pub struct StoreError(pub String);

/// What a node sends when it registers.
#[derive(Debug, Clone)]
pub struct Node {
    /// The node's address.
    pub addr: Addr,
    /// The node's run id.
    pub run_id: Option<RunId>,
    /// How long the registration is fresh.
    pub ttl: Option<Ttl>,
    /// The master of the system of which the node is a member.
    pub master: Option<Addr>,
}

/// The result of a registration.
#[derive(Debug, Clone, PartialEq, Eq)]
#[must_use]
pub enum Registered {
    /// The registration is new.
    First(Registration),
    /// The node was registered before, and keeps its place.
    Again(Registration),
    /// The group is full; nothing was stored.
    Full {
        /// How long it takes until a registration becomes stale, if its node does not register again.
        frees: Option<Duration>,
    },
    /// There are already as many groups as allowed; nothing was stored.
    TooManyGroups,
}

/// The name of a shard's state. A change sets a new one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Revision {
    nonce: String,
    /// An older version does not write this field.
    #[serde(default = "Revision::long_ago")]
    set_at: Timestamp,
    /// Kept here so that a registration needs no listing. Writers at the same moment make it inexact: it
    /// serves only as a bound against abuse.
    groups: BTreeMap<Group, Counts>,
}

/// The members of a group, as far as they are known without a listing.
enum KnownMembers {
    /// The group's shard is empty, and always was.
    Empty,
    /// A valid snapshot contains these members.
    Members(EncodedMembers),
    /// No snapshot is valid. If the snapshot of a listing will be stored, the purpose names what that listing
    /// is for.
    Unlisted { revision: Revision, purpose: Option<String> },
}

/// The registrations of every group. Clones belong to the same instance.
#[derive(Debug, Clone)]
pub struct Registry<S> {
    store: S,
    instance: Arc<Instance>,
}

impl Node {
    /// A node with an address and nothing else.
    #[must_use]
    pub fn new(addr: Addr) -> Self {
        Self { addr, run_id: None, ttl: None, master: None }
    }
}

impl<S: Store> Registry<S> {
    /// The registry that is kept in `store`.
    pub fn new(store: S) -> Self {
        Self { store, instance: Arc::default() }
    }

    /// The members of `group`.
    ///
    /// # Errors
    ///
    /// If the store fails, or holds a value that can't be read. A snapshot that can't be read or stored is no
    /// error: it is built again.
    pub async fn members(&self, group: &Group, now: Timestamp) -> Result<Members, StoreError> {
        self.encoded_members(group, now).await?.decode()
    }

    /// The members of `group`, encoded as they are sent.
    ///
    /// # Errors
    ///
    /// Like [`Self::members`].
    pub async fn encoded_members(&self, group: &Group, now: Timestamp) -> Result<EncodedMembers, StoreError> {
        let shard = Shard::of(group);
        let listing_key = listing_key(shard);
        let mut tried = 0;
        let mut now = now;
        let revision = loop {
            if tried > 0 {
                // Another request may have built a snapshot during this wait. Compared with an older `now`,
                // that snapshot would be from the future.
                now = now.max(self.store.now());
            }
            let (revision, purpose) = match self.known_members(group, now).await? {
                KnownMembers::Empty => return EncodedMembers::of(&Members::default()),
                KnownMembers::Members(members) => return Ok(members),
                KnownMembers::Unlisted { revision, purpose } => (revision, purpose),
            };
            let Some(purpose) = purpose else {
                // This instance keeps the snapshot, so that its other requests need not list.
                let building = self.instance.build(shard);
                if building.is_some() || tried >= SHARED_LISTINGS || !self.until_built(shard).await {
                    let built = self.build_snapshot(group, revision, now).await;
                    return built.map(|(members, _)| members);
                }
                tried += 1;
                continue;
            };
            if !self.store.wait_for_listing(&listing_key, &purpose, tried).await {
                break revision;
            }
            tried += 1;
        };
        let built = self.build_snapshot(group, revision, now).await;
        if !matches!(built, Ok((_, true))) {
            // Other readers must not wait for a snapshot that will not be stored. If the delete fails, they
            // wait for a moment longer.
            let _ = self.store.delete(&listing_key).await;
        }
        built.map(|(members, _)| members)
    }

    /// Waits until another request of this instance has listed a shard. `false` if this host can't wait.
    async fn until_built(&self, shard: Shard) -> bool {
        let (mut pause, longest) = BUILT_POLL;
        while self.instance.is_building(shard) {
            if !self.store.pause(pause).await {
                return false;
            }
            pause = (2 * pause).min(longest);
        }
        true
    }

    /// The members of `group`, if they are known without a listing.
    async fn known_members(&self, group: &Group, now: Timestamp) -> Result<KnownMembers, StoreError> {
        let shard = Shard::of(group);
        let key = snapshot_key(shard);
        let kept = self.instance.kept(shard);
        let (revision, stored) = match kept {
            // Usually the revision is enough.
            Some(_) => (self.revision(shard).await?, None),
            None => {
                let (revision, stored) = join(self.revision(shard), self.store.get(&key)).await;
                (revision?, Some(stored))
            }
        };
        // Every answered change has set a revision. So a shard without a revision is empty, and needs no
        // listing.
        let Some(revision) = revision else { return Ok(KnownMembers::Empty) };
        if let Some(kept) = kept.as_ref().filter(|kept| kept.counts_at(&revision, now)) {
            return kept.members(group).map(KnownMembers::Members);
        }
        let is_large = |head: &SnapshotHead| head.keys >= LARGE_STORE;
        let is_settled = revision.is_settled(now);
        if !is_settled && kept.as_ref().is_some_and(|kept| !is_large(&kept.head)) {
            return Ok(KnownMembers::Unlisted { revision, purpose: None });
        }
        let stored = match stored {
            Some(stored) => stored,
            None => self.store.get(&key).await,
        };
        let stored = stored.ok().flatten().and_then(|stored| Snapshot::open(shard, stored));
        if !is_settled && !stored.as_ref().is_some_and(|stored| is_large(&stored.head)) {
            return Ok(KnownMembers::Unlisted { revision, purpose: None });
        }
        let mut purpose = revision.nonce.clone();
        if let Some(snapshot) = stored {
            if snapshot.counts_at(&revision, now) {
                let members = snapshot.members(group);
                self.instance.keep(snapshot);
                return members.map(KnownMembers::Members);
            }
            let SnapshotHead { revision, built_at, .. } = snapshot.head;
            purpose = format!("{purpose} instead of {revision} of {built_at}");
        }
        Ok(KnownMembers::Unlisted { revision, purpose: Some(purpose) })
    }

    #[cfg(test)]
    pub(crate) fn drop_kept(&self) {
        self.instance.lock_kept().clear();
    }

    /// Lists the members of `group` and of its shard's other groups at this revision. Also returns whether
    /// the snapshot is stored.
    async fn build_snapshot(
        &self,
        group: &Group,
        revision: Revision,
        now: Timestamp,
    ) -> Result<(EncodedMembers, bool), StoreError> {
        let shard = Shard::of(group);
        let Listed { keys, groups, until, forgotten } = self.list(shard, now).await?;
        let members = match groups.get(group) {
            Some(members) => EncodedMembers::of(members.as_ref().map_err(Clone::clone)?)?,
            None => EncodedMembers::of(&Members::default())?,
        };
        if !forgotten.is_empty() {
            self.delete_forgotten(&forgotten, now).await;
            // The fresh revision has the counts without the forgotten registrations, and invalidates the
            // snapshots that others have built with them. If it can't be set, the next reader that lists
            // tries again.
            let counts = groups.iter().filter_map(|(group, members)| {
                let counts = members.as_ref().ok()?.counts().registered;
                Some((group.clone(), counts)).filter(|(_, counts)| *counts != Counts::default())
            });
            let _ = self.renew(shard, counts.collect()).await;
            return Ok((members, false));
        }
        let encoded = |(group, members): (Group, Result<Members, StoreError>)| {
            Ok((group, EncodedMembers::of(&members?)?))
        };
        let is_kept = match groups.into_iter().map(encoded).collect() {
            Ok(groups) => self.keep_snapshot(shard, revision, keys, groups, until, now).await?,
            // A value that can't be read is an error only for requests for its group.
            Err(StoreError(_)) => false,
        };
        Ok((members, is_kept))
    }

    /// Registers a node, or updates its registration.
    ///
    /// # Errors
    ///
    /// If the store fails. The node may be registered nevertheless; a second request settles that.
    pub async fn register(
        &self,
        group: &Group,
        kind: Kind,
        node: Node,
        now: Timestamp,
        bounds: Bounds,
    ) -> Result<Registered, StoreError> {
        let Node { addr, run_id, ttl, master } = node;
        let shard = Shard::of(group);
        // The revision is read before the registration, so that a change between the two is noticed below.
        let before = self.revision(shard).await?;
        let known = self.registration(group, kind, &addr, now).await?;
        let key = registration_key(group, kind, &addr);
        let Some(known) = known else {
            let mut groups = before.map(|revision| revision.groups).unwrap_or_default();
            let mut counts = match self.room(group, kind, &groups, now, bounds).await? {
                Ok(counts) => counts,
                Err(refused) => return Ok(refused),
            };
            let registration = Registration { run_id, ttl, master, ..Registration::new(addr, now) };
            self.store.set(&key, encode(&registration)?).await?;
            *counts.of_mut(kind) += 1;
            groups.insert(group.clone(), counts);
            let ours = self.renew(shard, groups).await?;
            if let Some(mut crowded) = self.revision(shard).await?.filter(|theirs| theirs.nonce != ours) {
                // Other nodes register at this moment. Of all requests that started from the same count, only
                // one is counted. So the count is raised by more than one: a count that is too high costs a
                // listing, and a count that is too low would let the group grow far past its bound.
                let count = crowded.groups.entry(group.clone()).or_default().of_mut(kind);
                *count = beyond_crowd(*count, counts.of(kind));
                self.renew(shard, crowded.groups).await?;
            }
            return Ok(Registered::First(registration));
        };

        let run_id = run_id.or_else(|| known.run_id.clone());
        // A registration that is about to become stale may be read as stale before it is written here.
        let may_be_stale = known.expires().is_some_and(|expires| expires < now.after(2 * SNAPSHOT_LIFE.1));
        let has_changed =
            may_be_stale || run_id != known.run_id || master != known.master || ttl != known.ttl;
        let registration = Registration { run_id, ttl, master, last_seen: now, stale: false, ..known };
        self.store.set(&key, encode(&registration)?).await?;
        let after = self.revision(shard).await?;
        // Usually the snapshot is still right. There are two exceptions:
        // - a concurrent DELETE may have removed the key and set its revision, all between the read and the
        //   write here;
        // - the request that wrote the key first may not have set its revision yet, or may have failed before
        //   it did. No snapshot without the key outlives that by more than its life; twice its life leaves
        //   room for slow requests.
        let revision_moved = nonce(&before) != nonce(&after);
        let surely_told = now.since(registration.registered_at) >= 2 * SNAPSHOT_LIFE.1;
        if has_changed || revision_moved || !surely_told || after.is_none() {
            self.renew(shard, after.or(before).map(|revision| revision.groups).unwrap_or_default()).await?;
        }
        Ok(Registered::Again(registration))
    }

    /// One registration, if it exists.
    ///
    /// # Errors
    ///
    /// If the store fails, or holds a value that can't be read.
    pub async fn registration(
        &self,
        group: &Group,
        kind: Kind,
        addr: &Addr,
        now: Timestamp,
    ) -> Result<Option<Registration>, StoreError> {
        let registration: Option<Registration> = self.load(&registration_key(group, kind, addr)).await?;
        Ok(registration.and_then(|registration| registration.at(now)))
    }

    /// Deletes one registration, even one that can't be read.
    ///
    /// # Errors
    ///
    /// If the store fails. The registration may be deleted nevertheless; a second request settles that.
    pub async fn deregister(&self, group: &Group, kind: Kind, addr: &Addr) -> Result<(), StoreError> {
        let shard = Shard::of(group);
        let revision = self.revision(shard).await?;
        let key = registration_key(group, kind, addr);
        let is_there = self.store.get(&key).await?.is_some();
        if is_there {
            self.store.delete(&key).await?;
        }
        // The revision is set even if there is no registration: another request may be between these two
        // steps, or may have failed there. But a request for an unknown group must not create the group.
        if is_there || revision.is_some() {
            let mut groups = revision.map(|revision| revision.groups).unwrap_or_default();
            if is_there && let Some(counts) = groups.get_mut(group) {
                *counts.of_mut(kind) = counts.of(kind).saturating_sub(1);
            }
            groups.retain(|_, counts| *counts != Counts::default());
            self.renew(shard, groups).await?;
        }
        Ok(())
    }

    /// Deletes everything that `group` holds, even what can't be read.
    ///
    /// # Errors
    ///
    /// If the store fails. Asking again completes the deletion.
    pub async fn delete_group(&self, group: &Group) -> Result<(), StoreError> {
        let shard = Shard::of(group);
        let keys = self.keys().await?;
        let registrations = registration_prefix(group);
        let others = [outcome_key(group), verified_key(group)];
        let is_held = |key: &&String| key.starts_with(&registrations) || others.contains(key);
        let held = keys.iter().filter(is_held).collect::<Vec<_>>();
        if held.is_empty() && !keys.contains(&revision_key(shard)) {
            return Ok(());
        }
        let revision = self.store.get(&revision_key(shard)).await?;
        let revision = revision.and_then(|value| serde_json::from_slice::<Revision>(&value).ok());
        let mut groups = revision.map(|revision| revision.groups).unwrap_or_default();
        for deleted in join_all(held.iter().map(|key| self.store.delete(key))).await {
            deleted?;
        }
        groups.remove(group);
        self.renew(shard, groups).await?;
        // These keys are no longer valid, and no reader would use them.
        for key in [snapshot_key(shard), listing_key(shard)].iter().filter(|key| keys.contains(*key)) {
            self.store.delete(key).await?;
        }
        Ok(())
    }

    /// Stores the outcome of a run, and the system if the run has verified it.
    ///
    /// # Errors
    ///
    /// If the store fails. The outcome may be stored nevertheless; a second request settles that.
    pub async fn put_outcome(
        &self,
        group: &Group,
        outcome: &Outcome,
        verified: Option<&LastVerified>,
    ) -> Result<(), StoreError> {
        let shard = Shard::of(group);
        let revision = self.revision(shard).await?;
        if let Some(verified) = verified {
            self.store.set(&verified_key(group), encode(verified)?).await?;
        }
        self.store.set(&outcome_key(group), encode(outcome)?).await?;
        self.renew(shard, revision.map(|revision| revision.groups).unwrap_or_default()).await?;
        Ok(())
    }

    /// The groups that hold anything, by name: the page of groups after `after`, and whether there are more.
    ///
    /// # Errors
    ///
    /// If the store fails.
    pub async fn groups(
        &self,
        after: Option<&Group>,
        page: Option<usize>,
        now: Timestamp,
    ) -> Result<(Vec<(Group, GroupCounts)>, bool), StoreError> {
        let keys = self.keys().await?;
        let mut all = BTreeMap::<Group, Vec<(Holds, String)>>::new();
        for key in keys {
            let Some((group, holds)) = parse_key(&key) else { continue };
            if after.is_none_or(|after| group > *after) {
                all.entry(group).or_default().push((holds, key));
            }
        }
        let page = page.unwrap_or(usize::MAX);
        let has_more = all.len() > page;
        let all: Vec<_> = all.into_iter().take(page).collect();
        let mut counted = Vec::with_capacity(all.len());
        for groups in all.chunks(READ_AT_ONCE) {
            let counts = join_all(groups.iter().map(|(_, held)| self.count(held, now))).await;
            for ((group, held), counts) in groups.iter().zip(counts) {
                let (counts, forgotten) = counts?;
                self.delete_forgotten(&forgotten, now).await;
                if forgotten.len() < held.len() {
                    counted.push((group.clone(), counts));
                }
            }
        }
        Ok((counted, has_more))
    }

    /// The counts of the registrations among these keys of a group, and the keys of forgotten ones.
    async fn count(
        &self,
        held: &[(Holds, String)],
        now: Timestamp,
    ) -> Result<(GroupCounts, Vec<String>), StoreError> {
        let (mut counts, mut forgotten) = (GroupCounts::default(), Vec::new());
        let registrations = held.iter().filter_map(|(holds, key)| match holds {
            Holds::Registration(kind) => Some((*kind, key)),
            Holds::Outcome | Holds::LastVerified => None,
        });
        let registrations: Vec<_> = registrations.collect();
        let values = join_all(registrations.iter().map(|(_, key)| self.store.get(key))).await;
        for ((kind, key), value) in registrations.into_iter().zip(values) {
            // A key may vanish after the listing.
            let Some(value) = value? else { continue };
            match decode::<Registration>(key, &value).map(|registration| registration.at(now)) {
                Ok(Some(registration)) => counts.add(kind, &registration),
                Ok(None) => forgotten.push(key.clone()),
                // A request for this group returns the error.
                Err(StoreError(_)) => *counts.registered.of_mut(kind) += 1,
            }
        }
        Ok((counts, forgotten))
    }

    /// Whether the store answers.
    ///
    /// # Errors
    ///
    /// If the store does not answer.
    pub async fn check(&self) -> Result<(), StoreError> {
        self.store.get(CHECK_KEY).await.map(drop)
    }

    /// Every key, once: Spin's Redis provider lists with `SCAN`, which may return a key more than once.
    async fn keys(&self) -> Result<BTreeSet<String>, StoreError> {
        Ok(self.store.get_keys().await?.into_iter().collect())
    }

    async fn revision(&self, shard: Shard) -> Result<Option<Revision>, StoreError> {
        self.load(&revision_key(shard)).await
    }

    /// Sets a fresh revision for the shard: no snapshot that was built before, or is being built now, is
    /// valid any more. Returns the revision's nonce.
    async fn renew(&self, shard: Shard, groups: BTreeMap<Group, Counts>) -> Result<String, StoreError> {
        let revision = Revision { nonce: new_nonce()?, set_at: self.store.now(), groups };
        self.store.set(&revision_key(shard), encode(&revision)?).await?;
        self.instance.changed(shard);
        Ok(revision.nonce)
    }

    /// Builds the rosters of a shard from the keys themselves.
    async fn list(&self, shard: Shard, now: Timestamp) -> Result<Listed, StoreError> {
        let keys = self.keys().await?;
        // The keys of a group are usually adjacent, so its shard is computed once and not for each key.
        let mut last = ("", None);
        let ours = keys.iter().filter_map(|key| {
            let (name, holds) = split_key(key)?;
            if last.0 != name {
                last = (name, name.parse().ok().filter(|group| Shard::of(group) == shard));
            }
            Some((key, (last.1.clone()?, holds)))
        });
        let ours: Vec<_> = ours.collect();
        let values = join_all(ours.iter().map(|(key, _)| self.store.get(key))).await;
        let mut listed = Listed { keys: keys.len(), ..Listed::default() };
        for ((key, (group, holds)), value) in ours.into_iter().zip(values) {
            // A key may vanish after the listing.
            let Some(value) = value? else { continue };
            let entry = listed.groups.entry(group).or_insert_with(|| Ok(Members::default()));
            let Ok(members) = entry else { continue };
            let read = match holds {
                Holds::Registration(kind) => decode::<Registration>(key, &value).map(|found| {
                    let Some(registration) = found.at(now) else { return listed.forgotten.push(key.clone()) };
                    listed.until = listed.until.into_iter().chain(registration.changes_after(now)).min();
                    members.of_mut(kind).push(registration);
                }),
                Holds::Outcome => decode(key, &value).map(|outcome| members.outcome = Some(outcome)),
                Holds::LastVerified => {
                    decode(key, &value).map(|verified| members.last_verified = Some(verified))
                }
            };
            if let Err(error) = read {
                *entry = Err(error);
            }
        }
        for members in listed.groups.values_mut().flatten() {
            for kind in Kind::ALL {
                members.of_mut(kind).sort_by(|a, b| a.order().cmp(&b.order()));
            }
        }
        Ok(listed)
    }

    /// Deletes forgotten registrations. No roster depends on it: every reader ignores them.
    async fn delete_forgotten(&self, forgotten: &[String], now: Timestamp) {
        for key in forgotten {
            // The node may have registered again since: a day later, at this very moment, if it does not
            // register every minute.
            let found = self.load::<Registration>(key).await;
            if found.is_ok_and(|found| found.is_some_and(|registration| registration.at(now).is_none())) {
                // If this fails, the next reader that lists tries again.
                let _ = self.store.delete(key).await;
            }
        }
    }

    /// Keeps the members of a shard's groups at `revision`, which must have been read before the listing.
    /// This instance always keeps them. The store keeps them if the revision has settled or the store is
    /// large. Returns whether the store keeps them.
    async fn keep_snapshot(
        &self,
        shard: Shard,
        revision: Revision,
        keys: usize,
        groups: BTreeMap<Group, EncodedMembers>,
        until: Option<Timestamp>,
        now: Timestamp,
    ) -> Result<bool, StoreError> {
        let parts = groups.iter().map(|(group, EncodedMembers { fresh, json, tag })| SnapshotPart {
            group: group.clone(),
            fresh: *fresh,
            bytes: json.len(),
            tag: tag.clone(),
        });
        let parts = parts.collect();
        let is_settled = revision.is_settled(now);
        let life = revision.age_at(now).clamp(SNAPSHOT_LIFE.0, SNAPSHOT_LIFE.1);
        // The life of the snapshot begins after the listing. Otherwise a snapshot of a large store would
        // expire at once.
        let until = until.into_iter().chain([now.max(self.store.now()).after(life)]).min().unwrap_or(now);
        let Revision { nonce, set_at, .. } = revision;
        let head = SnapshotHead { revision: nonce, set_at, built_at: now, until, keys, groups: parts };
        let snapshot = Snapshot { shard, head, members: groups };
        let shared = (is_settled || keys >= LARGE_STORE).then(|| snapshot.encode()).transpose()?;
        self.instance.keep(snapshot);
        let Some(shared) = shared else { return Ok(false) };
        // An error is ignored: the roster is right, and the next instance lists the store itself.
        let stored = self.store.set(&snapshot_key(shard), shared).await;
        if let Err(error) = &stored {
            eprintln!("sentinel-broker: a snapshot was not stored: {error}");
        }
        Ok(stored.is_ok())
    }

    async fn load<T: DeserializeOwned>(&self, key: &str) -> Result<Option<T>, StoreError> {
        self.store.get(key).await?.map(|value| decode(key, &value)).transpose()
    }
}

/// What a listing has found in a shard.
#[derive(Debug, Default)]
struct Listed {
    /// How many keys the whole store has.
    keys: usize,
    /// An error if a value of the group can't be read.
    groups: BTreeMap<Group, Result<Members, StoreError>>,
    /// When a registration next becomes stale or forgotten.
    until: Option<Timestamp>,
    /// The keys of forgotten registrations.
    forgotten: Vec<String>,
}

/// JSON, as it is stored and sent.
pub(crate) fn encode(value: &impl Serialize) -> Result<Vec<u8>, StoreError> {
    serde_json::to_vec(value).map_err(|error| StoreError(format!("a value can't be encoded: {error}")))
}

fn decode<T: DeserializeOwned>(key: &str, value: &[u8]) -> Result<T, StoreError> {
    serde_json::from_slice(value)
        .map_err(|error| StoreError(format!("this version can't read the value of `{key}`: {error}")))
}

impl Revision {
    fn long_ago() -> Timestamp {
        SystemTime::UNIX_EPOCH.into()
    }

    /// How long ago the revision was set. If it is far in the future, a clock is wrong, and the revision is
    /// treated as old.
    fn age_at(&self, now: Timestamp) -> Duration {
        if self.set_at.since(now) > SETTLED_AFTER { Duration::MAX } else { now.since(self.set_at) }
    }

    /// Whether the keys that were written before the revision have surely arrived, if it was set in another
    /// region.
    fn is_settled(&self, now: Timestamp) -> bool {
        self.age_at(now) >= SETTLED_AFTER
    }
}

fn nonce(revision: &Option<Revision>) -> Option<&str> {
    revision.as_ref().map(|revision| revision.nonce.as_str())
}

fn new_nonce() -> Result<String, StoreError> {
    let mut nonce = [0; 16];
    getrandom::fill(&mut nonce)
        .map_err(|error| StoreError(format!("no random numbers from the host: {error}")))?;
    Ok(hex(&nonce))
}
