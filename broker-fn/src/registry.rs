//! Who has registered: keys, encoding, order, revision and snapshot, over any [`Store`].
//!
//! The store offers nothing atomic, so **the truth is one key per registration, written by one request**. A list that
//! two requests read, change and write back would lose a registration.
//!
//! | key | value |
//! | --- | --- |
//! | `reg:{group}:{kind}:{hash of host:port}` | a [`Registration`] |
//! | `out:{group}` | the last [`Outcome`] |
//! | `ver:{group}` | the system as it was [last verified](LastVerified) |
//! | `rev:{shard}` | the revision of all groups of the shard: a random nonce, when it was set, and about how many registrations each has |
//! | `snap:{shard}` | their rosters as they were built at one revision |
//! | `list:{shard}` | what a reader has last begun to list the store for |
//! | `groups` | about how many groups there are |
//!
//! A group's name gives its shard, one of [`SHARDS`]. A revision must never be deleted: the one of a registration that arrives at that
//! moment would go with it. So there is one for each shard and not for each group, and groups that are gone leave nothing behind.
//!
//! Listing costs what the whole store holds, so a reader avoids it: where the snapshot names the current revision, the
//! snapshot is the roster. What makes that safe is an order of steps, and no lock:
//!
//! - a writer changes its own key **first**, then sets a fresh revision, then answers;
//! - a reader takes the revision **before** it lists, and stores the snapshot under that one.
//!
//! A snapshot that was built without a key was therefore built at an older revision than the one that the key's writer
//! set before it answered, and no longer counts. A test runs every interleaving of two writers and a reader.
//!
//! The same holds wherever the snapshot was kept since. A [`Registry`] keeps those that it has used last, and does not get
//! them again for as long as they count.
//!
//! **Where regions lag** (the store is one for each region, and each key arrives in the others by itself), the key may arrive after
//! its revision. So a snapshot counts for as long as its revision had stood when it was built, and no longer: what comes late shows
//! after as much time again. And it is stored only where the revision has stood for some seconds, since it would get to other regions
//! too, and hide there what they have answered.

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

/// The key that [`Registry::check`] asks for. Nothing is ever stored there.
const CHECK_KEY: &str = "healthcheck";

/// How often a request looks whether another one of its instance has listed: at first, and at most.
const BUILT_POLL: (Duration, Duration) = (Duration::from_millis(1), Duration::from_millis(16));

/// How many listings of others a request waits for, where each is of a revision that is none any more.
const SHARED_LISTINGS: u32 = 4;

/// How many groups are read at once where all are.
const READ_AT_ONCE: usize = 64;

/// A key-value store, as Spin has it: nothing in it is atomic but a single operation. And what else a host has: its clock.
pub trait Store: Send + Sync + 'static {
    /// The value of a key, if it has one.
    fn get(&self, key: &str) -> impl Future<Output = Result<Option<Vec<u8>>, StoreError>> + Send;
    /// Gives a key a value.
    fn set(&self, key: &str, value: Vec<u8>) -> impl Future<Output = Result<(), StoreError>> + Send;
    /// Takes a key away; it is no error if there was none.
    fn delete(&self, key: &str) -> impl Future<Output = Result<(), StoreError>> + Send;
    /// Every key there is, in no order.
    fn get_keys(&self) -> impl Future<Output = Result<Vec<String>, StoreError>> + Send;
    /// Whether another reader lists the store for the same purpose, by what it has noted under this key: a moment is waited for it
    /// then, the longer the oftener that was `tried`. Where nobody does, this one notes that it will.
    ///
    /// It is for the sake of the load alone: many readers notice the same change at once, and each would list the whole store.
    fn wait_for_listing(&self, _key: &str, _purpose: &str, _tried: u32) -> impl Future<Output = bool> + Send {
        async { false }
    }
    /// Waits for so long. Where nothing that others do would be seen in that time, that is `false`, at once.
    fn pause(&self, _time: Duration) -> impl Future<Output = bool> + Send {
        async { false }
    }
    /// What time it is.
    fn now(&self) -> Timestamp {
        Timestamp::now()
    }
}

/// The store could not do what was asked, or holds what it should not. For the log, not for clients.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the key-value store failed: {0}")]
pub struct StoreError(pub String);

/// What a node says when it registers.
#[derive(Debug, Clone)]
pub struct Node {
    /// Where it is.
    pub addr: Addr,
    /// What it calls itself.
    pub run_id: Option<RunId>,
    /// How long that counts.
    pub ttl: Option<Ttl>,
    /// The master of the system that it is a member of.
    pub master: Option<Addr>,
}

/// What became of a registration.
#[derive(Debug, Clone, PartialEq, Eq)]
#[must_use]
pub enum Registered {
    /// It is new.
    First(Registration),
    /// It was there before, and keeps its place.
    Again(Registration),
    /// The group holds as many as it may; nothing was stored.
    Full {
        /// How long it takes until one of them becomes stale, if it does not register again.
        frees: Option<Duration>,
    },
    /// There are as many groups as there may be; nothing was stored.
    TooManyGroups,
}

/// The state of a shard has this name. A change gives it a new one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Revision {
    nonce: String,
    /// An older version does not say it.
    #[serde(default = "Revision::long_ago")]
    set_at: Timestamp,
    /// Kept here so that registering need not list anything. Writers at the same moment leave it off: it is good for a bound
    /// against abuse, and for nothing else.
    groups: BTreeMap<Group, Counts>,
}

/// What is known of a group without a listing.
enum Look {
    /// Nothing of its shard holds anything, or ever has.
    Empty,
    /// A snapshot counts, and this is in it.
    Members(EncodedMembers),
    /// No snapshot counts. The purpose names what a listing would be for, where its snapshot will be stored.
    Unlisted { revision: Revision, purpose: Option<String> },
}

/// The registrations of every group. Clones are of one instance.
#[derive(Debug, Clone)]
pub struct Registry<S> {
    store: S,
    instance: Arc<Instance>,
}

impl Node {
    /// One that says nothing but where it is.
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

    /// What `group` holds.
    ///
    /// # Errors
    ///
    /// Where the store fails, or holds a value that can't be read. A snapshot that can't be read or stored is none: it
    /// is built anew.
    pub async fn members(&self, group: &Group, now: Timestamp) -> Result<Members, StoreError> {
        self.encoded_members(group, now).await?.decode()
    }

    /// The same, as it is sent.
    ///
    /// # Errors
    ///
    /// As of [`Self::members`].
    pub async fn encoded_members(&self, group: &Group, now: Timestamp) -> Result<EncodedMembers, StoreError> {
        let shard = Shard::of(group);
        let listing_key = listing_key(shard);
        let mut tried = 0;
        let mut now = now;
        let revision = loop {
            if tried > 0 {
                // What others have built meanwhile is not from the future.
                now = now.max(self.store.now());
            }
            let (revision, purpose) = match self.look(group, now).await? {
                Look::Empty => return EncodedMembers::of(&Members::default()),
                Look::Members(members) => return Ok(members),
                Look::Unlisted { revision, purpose } => (revision, purpose),
            };
            let Some(purpose) = purpose else {
                // It stays with this instance, whose other requests need not list as well.
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
            // Nobody has to wait for what does not come. Where this fails too, they wait for a moment.
            let _ = self.store.delete(&listing_key).await;
        }
        built.map(|(members, _)| members)
    }

    /// Waits until another request of this instance has listed for a shard. `false` where this host can't wait.
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

    /// What `group` holds, as far as that can be told without a listing.
    async fn look(&self, group: &Group, now: Timestamp) -> Result<Look, StoreError> {
        let shard = Shard::of(group);
        let key = snapshot_key(shard);
        let kept = self.instance.kept(shard);
        let (revision, stored) = match kept {
            // As a rule that is all it takes.
            Some(_) => (self.revision(shard).await?, None),
            None => {
                let (revision, stored) = join(self.revision(shard), self.store.get(&key)).await;
                (revision?, Some(stored))
            }
        };
        // Every answered change has set a revision, so that asking for groups of a shard that nobody is in never costs a listing.
        let Some(revision) = revision else { return Ok(Look::Empty) };
        if let Some(kept) = kept.as_ref().filter(|kept| kept.counts_at(&revision, now)) {
            return kept.members(group).map(Look::Members);
        }
        let is_large = |head: &SnapshotHead| head.keys >= LARGE_STORE;
        let is_settled = revision.is_settled(now);
        if !is_settled && kept.as_ref().is_some_and(|kept| !is_large(&kept.head)) {
            return Ok(Look::Unlisted { revision, purpose: None });
        }
        let stored = match stored {
            Some(stored) => stored,
            None => self.store.get(&key).await,
        };
        let stored = stored.ok().flatten().and_then(|stored| Snapshot::open(shard, stored));
        if !is_settled && !stored.as_ref().is_some_and(|stored| is_large(&stored.head)) {
            return Ok(Look::Unlisted { revision, purpose: None });
        }
        let mut purpose = revision.nonce.clone();
        if let Some(snapshot) = stored {
            if snapshot.counts_at(&revision, now) {
                let members = snapshot.members(group);
                self.instance.keep(snapshot);
                return members.map(Look::Members);
            }
            let SnapshotHead { revision, built_at, .. } = snapshot.head;
            purpose = format!("{purpose} instead of {revision} of {built_at}");
        }
        Ok(Look::Unlisted { revision, purpose: Some(purpose) })
    }

    #[cfg(test)]
    pub(crate) fn forget_kept(&self) {
        self.instance.lock_kept().clear();
    }

    /// Lists what `group` holds, and the others of its shard, at this revision. Whether the snapshot is stored, too.
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
            self.take_away(&forgotten, now).await;
            // What is counted goes with them. Who listed before does not keep what they had. Where it fails, the next one to list tries again.
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
            // What can't be read is an error for those who ask for that group, and for nobody else.
            Err(StoreError(_)) => false,
        };
        Ok((members, is_kept))
    }

    /// Registers a node, or notes that it is still there.
    ///
    /// # Errors
    ///
    /// Where the store fails. The node may be registered all the same, or not; registering again settles it.
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
        // The revision comes before the registration, so that a change between the two is noticed below.
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
                // Others register at this moment, and of all that started from the same count, one has counted. Too high a
                // count costs the next one a listing; too low a one would let the group grow far past its bound.
                let count = crowded.groups.entry(group.clone()).or_default().of_mut(kind);
                *count = beyond_crowd(*count, counts.of(kind));
                self.renew(shard, crowded.groups).await?;
            }
            return Ok(Registered::First(registration));
        };

        let run_id = run_id.or_else(|| known.run_id.clone());
        // One that is about to become stale may be read as that before it is written here.
        let may_be_stale = known.expires().is_some_and(|expires| expires < now.after(2 * SNAPSHOT_LIFE.1));
        let has_changed =
            may_be_stale || run_id != known.run_id || master != known.master || ttl != known.ttl;
        let registration = Registration { run_id, ttl, master, last_seen: now, stale: false, ..known };
        self.store.set(&key, encode(&registration)?).await?;
        let after = self.revision(shard).await?;
        // As a rule nothing has changed that a snapshot would have to tell. But:
        // - a concurrent DELETE may have taken the key away and told so, all between our reading and our writing it;
        // - the request that wrote the key first may not have set its revision yet, or have failed before it did. No
        //   snapshot that lacks the key outlives that by more than its life; twice as long leaves room for slowness.
        let revision_moved = nonce(&before) != nonce(&after);
        let surely_told = now.since(registration.registered_at) >= 2 * SNAPSHOT_LIFE.1;
        if has_changed || revision_moved || !surely_told || after.is_none() {
            self.renew(shard, after.or(before).map(|revision| revision.groups).unwrap_or_default()).await?;
        }
        Ok(Registered::Again(registration))
    }

    /// One registration, if there is one.
    ///
    /// # Errors
    ///
    /// Where the store fails, or holds a value that can't be read.
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

    /// Forgets one registration, also one that can't be read.
    ///
    /// # Errors
    ///
    /// Where the store fails. It may be forgotten all the same, or not; asking again settles it.
    pub async fn forget(&self, group: &Group, kind: Kind, addr: &Addr) -> Result<(), StoreError> {
        let shard = Shard::of(group);
        let revision = self.revision(shard).await?;
        let key = registration_key(group, kind, addr);
        let is_there = self.store.get(&key).await?.is_some();
        if is_there {
            self.store.delete(&key).await?;
        }
        // Also where nothing is there: another request may be between these two steps, or have failed there. But asking
        // for unknown groups must not create any.
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

    /// Forgets all that `group` holds, also what can't be read.
    ///
    /// # Errors
    ///
    /// Where the store fails. Asking again completes it.
    pub async fn forget_group(&self, group: &Group) -> Result<(), StoreError> {
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
        // They count no longer, and would be read by nobody.
        for key in [snapshot_key(shard), listing_key(shard)].iter().filter(|key| keys.contains(*key)) {
            self.store.delete(key).await?;
        }
        Ok(())
    }

    /// Stores what came of a run, and the system where that has verified it.
    ///
    /// # Errors
    ///
    /// Where the store fails. It may be stored all the same, or not; asking again settles it.
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

    /// The groups that hold anything, by name: those behind `after`, and as many of them as fit on a page. Whether there are more, too.
    ///
    /// # Errors
    ///
    /// Where the store fails.
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
                self.take_away(&forgotten, now).await;
                if forgotten.len() < held.len() {
                    counted.push((group.clone(), counts));
                }
            }
        }
        Ok((counted, has_more))
    }

    /// How many registrations there are among these keys of a group, and which of them are forgotten.
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
            // A key may vanish between the listing and here.
            let Some(value) = value? else { continue };
            match decode::<Registration>(key, &value).map(|registration| registration.at(now)) {
                Ok(Some(registration)) => counts.add(kind, &registration),
                Ok(None) => forgotten.push(key.clone()),
                // Who asks for the group is told.
                Err(StoreError(_)) => *counts.registered.of_mut(kind) += 1,
            }
        }
        Ok((counts, forgotten))
    }

    /// Whether the store answers.
    ///
    /// # Errors
    ///
    /// Where it does not.
    pub async fn check(&self) -> Result<(), StoreError> {
        self.store.get(CHECK_KEY).await.map(drop)
    }

    /// Every key, once: Spin's Redis provider lists by `SCAN`, which may name a key more than once.
    async fn keys(&self) -> Result<BTreeSet<String>, StoreError> {
        Ok(self.store.get_keys().await?.into_iter().collect())
    }

    async fn revision(&self, shard: Shard) -> Result<Option<Revision>, StoreError> {
        self.load(&revision_key(shard)).await
    }

    /// Gives the shard's state a new name: no snapshot that was built before, or is being built now, counts any more.
    /// Answers that name.
    async fn renew(&self, shard: Shard, groups: BTreeMap<Group, Counts>) -> Result<String, StoreError> {
        let revision = Revision { nonce: new_nonce()?, set_at: self.store.now(), groups };
        self.store.set(&revision_key(shard), encode(&revision)?).await?;
        self.instance.changed(shard);
        Ok(revision.nonce)
    }

    /// Builds the rosters of a shard from the keys themselves.
    async fn list(&self, shard: Shard, now: Timestamp) -> Result<Listed, StoreError> {
        let keys = self.keys().await?;
        // The keys of a group stand together as a rule: its shard is reckoned once, and not for each of them.
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
            // A key may vanish between the listing and here.
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

    /// Takes registrations away that are forgotten. No roster hangs on it: every reader passes over them.
    async fn take_away(&self, forgotten: &[String], now: Timestamp) {
        for key in forgotten {
            // It may have registered again since: after a day, in this very moment, by somebody who does not do so every minute.
            let found = self.load::<Registration>(key).await;
            if found.is_ok_and(|found| found.is_some_and(|registration| registration.at(now).is_none())) {
                // Where it fails, the next one to list tries again.
                let _ = self.store.delete(key).await;
            }
        }
    }

    /// Keeps what the groups of a shard held at `revision`, which must have been read before they were listed: in this instance, and where
    /// that revision has settled or the store is large, for all. Whether it is stored.
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
        let life = revision.has_stood(now).clamp(SNAPSHOT_LIFE.0, SNAPSHOT_LIFE.1);
        // The time that it took to list is no part of its life, or in a large store it would have none.
        let until = until.into_iter().chain([now.max(self.store.now()).after(life)]).min().unwrap_or(now);
        let Revision { nonce, set_at, .. } = revision;
        let head = SnapshotHead { revision: nonce, set_at, built_at: now, until, keys, groups: parts };
        let snapshot = Snapshot { shard, head, members: groups };
        let shared = (is_settled || keys >= LARGE_STORE).then(|| snapshot.encode()).transpose()?;
        self.instance.keep(snapshot);
        let Some(shared) = shared else { return Ok(false) };
        // The roster is right with or without it; without it, the next instance lists as well.
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

/// What a listing has found of a shard.
#[derive(Debug, Default)]
struct Listed {
    /// How many keys the store has, of all shards.
    keys: usize,
    /// An error where a value of the group can't be read.
    groups: BTreeMap<Group, Result<Members, StoreError>>,
    /// When that changes next by itself.
    until: Option<Timestamp>,
    /// The keys of registrations that are forgotten.
    forgotten: Vec<String>,
}

/// As it is stored, and as it is sent.
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

    /// How long ago it was set. One that is far in the future is from a clock that is wrong, and says nothing.
    fn has_stood(&self, now: Timestamp) -> Duration {
        if self.set_at.since(now) > SETTLED_AFTER { Duration::MAX } else { now.since(self.set_at) }
    }

    /// Whether what came before it has surely arrived with it, if it was set in another region.
    fn is_settled(&self, now: Timestamp) -> bool {
        self.has_stood(now) >= SETTLED_AFTER
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
