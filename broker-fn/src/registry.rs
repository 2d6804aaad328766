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
//! | `rev:{shard}` | the revision of all groups of the shard: a random nonce, and about how many registrations each has |
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
//! The same holds wherever the snapshot was kept since. A [`Registry`] keeps the one that it has used last, and does not get
//! it again for as long as it counts.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures::future::{join, join_all};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::api::{Addr, Expected, Group, Kind, LastVerified, Outcome, Registration, RunId, Timestamp, Ttl};

#[cfg(test)]
mod interleavings;
#[cfg(test)]
pub(crate) mod memory;
#[cfg(test)]
mod tests;

/// How long a snapshot counts. It matters on a store that is eventually consistent, where a reader can see a new
/// revision before the new key, and after a writer that failed between its two writes.
const SNAPSHOT_LIFE: Duration = Duration::from_secs(30);

/// How long after it has become stale a registration is forgotten.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(24 * 60 * 60);

/// By how much a count is raised at least where several register at once: few enough that as a rule the nodes of one system
/// come up at the same moment without a listing.
const CROWD: usize = 8;

/// How many shards there are. Groups that share one invalidate each other's snapshot, which costs a listing and nothing else.
const SHARDS: u16 = 1024;

/// The key that [`Registry::check`] asks for. Nothing is ever stored there.
const CHECK_KEY: &str = "healthcheck";

/// The key of the [`GroupCount`].
const GROUPS_KEY: &str = "groups";

/// How long it is not counted again that there are too many groups.
const REFUSED_FOR: Duration = Duration::from_secs(2);

/// How many groups are read at once where all are.
const READ_AT_ONCE: usize = 64;

/// A key-value store, as Spin has it: nothing in it is atomic but a single operation.
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
}

/// The store could not do what was asked, or holds what it should not. For the log, not for clients.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the key-value store failed: {0}")]
pub struct StoreError(pub String);

/// What a group holds.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Members {
    /// The Redis servers, first registered first.
    pub redis: Vec<Registration>,
    /// The Sentinels, first registered first.
    pub sentinels: Vec<Registration>,
    /// What the runner last said.
    pub outcome: Option<Outcome>,
    /// The system as it was last verified.
    #[serde(default)]
    pub last_verified: Option<LastVerified>,
}

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

/// How much is taken.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    /// Registrations of one kind in a group.
    pub registrations: usize,
    /// Groups; `None` for one that always has room.
    pub groups: Option<usize>,
}

/// How many registrations of each kind there are.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    /// Redis servers.
    pub redis: usize,
    /// Sentinels.
    pub sentinels: usize,
}

/// How many registrations a group holds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct GroupCounts {
    /// All of them.
    pub registered: Counts,
    /// Those of them that are stale.
    pub stale: Counts,
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

/// The groups of one shard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Shard(u16);

/// The state of a shard has this name. A change gives it a new one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Revision {
    nonce: String,
    /// Kept here so that registering need not list anything. Writers at the same moment leave it off: it is good for a bound
    /// against abuse, and for nothing else.
    groups: BTreeMap<Group, Counts>,
}

/// About how many groups there are: as good, and good for the same.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
struct GroupCount {
    nonce: String,
    groups: usize,
    /// When they were last counted, and were too many.
    refused_at: Option<Timestamp>,
}

/// What a group holds, as JSON: [`Members`] that have been encoded once, when they were listed, and that most answers
/// need in no other form.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EncodedMembers {
    /// How many there are that are not stale.
    pub fresh: Counts,
    /// `{"redis": […], "sentinels": […], "outcome": …, "last_verified": …}`.
    pub json: Bytes,
}

/// What the groups of a shard held at one revision. It is stored as its head, a line break, and the members of each as they are sent.
#[derive(Debug)]
struct Snapshot {
    shard: Shard,
    head: SnapshotHead,
    members: BTreeMap<Group, EncodedMembers>,
}

/// The first line of a snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct SnapshotHead {
    /// The revision that it was built at.
    revision: String,
    built_at: Timestamp,
    /// When a registration in it becomes stale, or is forgotten, if none registers again: no revision tells that.
    until: Option<Timestamp>,
    groups: Vec<SnapshotPart>,
}

/// Whose members come next, and how many bytes they are.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct SnapshotPart {
    group: Group,
    #[serde(flatten)]
    fresh: Counts,
    bytes: usize,
}

/// What is known of a group without a listing.
enum Look {
    /// Nothing of its shard holds anything, or ever has.
    Empty,
    /// A snapshot counts, and this is in it.
    Members(EncodedMembers),
    /// No snapshot counts. The purpose names what a listing would be for.
    Unlisted { revision: Revision, purpose: String },
}

/// What a key of a group holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Holds {
    Registration(Kind),
    Outcome,
    LastVerified,
}

/// The registrations of every group. Clones share the one snapshot that they keep.
#[derive(Debug, Clone)]
pub struct Registry<S> {
    store: S,
    /// The snapshot that was used last.
    kept: Arc<Mutex<Option<Arc<Snapshot>>>>,
}

impl Node {
    /// One that says nothing but where it is.
    #[must_use]
    pub fn new(addr: Addr) -> Self {
        Self { addr, run_id: None, ttl: None, master: None }
    }
}

impl Registration {
    /// As it is at this moment; `None` where it is forgotten by then.
    fn at(self, now: Timestamp) -> Option<Self> {
        let Some(expires) = self.expires() else { return Some(self) };
        let is_forgotten = self.is_forgotten_after(expires).is_some_and(|end| end <= now);
        (!is_forgotten).then_some(Self { stale: now >= expires, ..self })
    }

    /// When that changes next, if it does not register again.
    fn changes_after(&self, now: Timestamp) -> Option<Timestamp> {
        let expires = self.expires()?;
        if now < expires { Some(expires) } else { self.is_forgotten_after(expires) }
    }

    /// A member of a system only leaves it: the Sentinels know it, and count on it. What has never been one, nobody misses.
    fn is_forgotten_after(&self, expires: Timestamp) -> Option<Timestamp> {
        self.master.is_none().then(|| expires.after(FORGOTTEN_AFTER))
    }
}

impl Members {
    /// How many there are.
    #[must_use]
    pub fn counts(&self) -> GroupCounts {
        let mut counts = GroupCounts::default();
        for kind in Kind::ALL {
            self.of(kind).iter().for_each(|registration| counts.add(kind, registration));
        }
        counts
    }

    /// Those of one kind.
    #[must_use]
    pub fn of(&self, kind: Kind) -> &[Registration] {
        match kind {
            Kind::Redis => &self.redis,
            Kind::Sentinel => &self.sentinels,
        }
    }

    fn of_mut(&mut self, kind: Kind) -> &mut Vec<Registration> {
        match kind {
            Kind::Redis => &mut self.redis,
            Kind::Sentinel => &mut self.sentinels,
        }
    }
}

impl GroupCounts {
    /// Those that are not stale.
    #[must_use]
    pub fn fresh(&self) -> Counts {
        let Self { registered, stale } = self;
        Counts { redis: registered.redis - stale.redis, sentinels: registered.sentinels - stale.sentinels }
    }

    /// Whether a group with so many is complete.
    #[must_use]
    pub fn is_ready(&self, expected: Expected) -> bool {
        let Counts { redis, sentinels } = self.fresh();
        expected.missing(redis, sentinels).is_nothing()
    }

    fn add(&mut self, kind: Kind, registration: &Registration) {
        *self.registered.of_mut(kind) += 1;
        *self.stale.of_mut(kind) += usize::from(registration.stale);
    }
}

impl Counts {
    /// The count of one kind.
    #[must_use]
    pub fn of(self, kind: Kind) -> usize {
        match kind {
            Kind::Redis => self.redis,
            Kind::Sentinel => self.sentinels,
        }
    }

    fn of_mut(&mut self, kind: Kind) -> &mut usize {
        match kind {
            Kind::Redis => &mut self.redis,
            Kind::Sentinel => &mut self.sentinels,
        }
    }
}

impl EncodedMembers {
    fn of(members: &Members) -> Result<Self, StoreError> {
        Ok(Self { fresh: members.counts().fresh(), json: encode(members)?.into() })
    }

    /// Them themselves.
    ///
    /// # Errors
    ///
    /// Where the snapshot that they come from is not what this version writes.
    pub fn decode(&self) -> Result<Members, StoreError> {
        serde_json::from_slice(&self.json)
            .map_err(|error| StoreError(format!("a snapshot holds what this version can't read: {error}")))
    }
}

impl Snapshot {
    /// What is stored, if it is one.
    fn open(shard: Shard, stored: Vec<u8>) -> Option<Self> {
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
    fn members(&self, group: &Group) -> Result<EncodedMembers, StoreError> {
        match self.members.get(group) {
            Some(members) => Ok(members.clone()),
            None => EncodedMembers::of(&Members::default()),
        }
    }

    /// As it is stored.
    fn encode(&self) -> Result<Vec<u8>, StoreError> {
        let mut stored = encode(&self.head)?;
        stored.push(b'\n');
        self.members.values().for_each(|members| stored.extend_from_slice(&members.json));
        Ok(stored)
    }

    fn counts_at(&self, revision: &Revision, now: Timestamp) -> bool {
        // A snapshot from the future was built by a host with another clock; its age can't be told.
        let age = now.system_time().duration_since(self.head.built_at.system_time());
        self.head.revision == revision.nonce
            && age.is_ok_and(|age| age < SNAPSHOT_LIFE)
            && self.head.until.is_none_or(|until| now < until)
    }
}

impl<S: Store> Registry<S> {
    /// The registry that is kept in `store`.
    pub fn new(store: S) -> Self {
        Self { store, kept: Arc::default() }
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
        let listing_key = listing_key(Shard::of(group));
        let mut tried = 0;
        let revision = loop {
            let (revision, purpose) = match self.look(group, now).await? {
                Look::Empty => return EncodedMembers::of(&Members::default()),
                Look::Members(members) => return Ok(members),
                Look::Unlisted { revision, purpose } => (revision, purpose),
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

    /// What `group` holds, as far as that can be told without a listing.
    async fn look(&self, group: &Group, now: Timestamp) -> Result<Look, StoreError> {
        let shard = Shard::of(group);
        let key = snapshot_key(shard);
        let kept = self.kept().clone().filter(|snapshot| snapshot.shard == shard);
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
        if let Some(kept) = kept.filter(|kept| kept.counts_at(&revision, now)) {
            return kept.members(group).map(Look::Members);
        }
        let stored = match stored {
            Some(stored) => stored,
            None => self.store.get(&key).await,
        };
        let mut purpose = revision.nonce.clone();
        if let Some(snapshot) = stored.ok().flatten().and_then(|stored| Snapshot::open(shard, stored)) {
            if snapshot.counts_at(&revision, now) {
                let members = snapshot.members(group);
                *self.kept() = Some(Arc::new(snapshot));
                return members.map(Look::Members);
            }
            let SnapshotHead { revision, built_at, .. } = snapshot.head;
            purpose = format!("{purpose} instead of {revision} of {built_at}");
        }
        Ok(Look::Unlisted { revision, purpose })
    }

    #[cfg(test)]
    pub(crate) fn forget_kept(&self) {
        *self.kept() = None;
    }

    fn kept(&self) -> MutexGuard<'_, Option<Arc<Snapshot>>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lists what `group` holds, and the others of its shard, at this revision. Whether the snapshot is stored, too.
    async fn build_snapshot(
        &self,
        group: &Group,
        revision: Revision,
        now: Timestamp,
    ) -> Result<(EncodedMembers, bool), StoreError> {
        let shard = Shard::of(group);
        let Listed { groups, until, forgotten } = self.list(shard, now).await?;
        let members = match groups.get(group) {
            Some(members) => EncodedMembers::of(members.as_ref().map_err(Clone::clone)?)?,
            None => EncodedMembers::of(&Members::default())?,
        };
        if !forgotten.is_empty() {
            self.take_away(&forgotten, now).await;
            // What is counted goes with them. Who listed before does not keep what they had.
            let counts = groups.iter().filter_map(|(group, members)| {
                let counts = members.as_ref().ok()?.counts().registered;
                Some((group.clone(), counts)).filter(|(_, counts)| *counts != Counts::default())
            });
            self.renew(shard, counts.collect()).await?;
            return Ok((members, false));
        }
        let encoded = |(group, members): (Group, Result<Members, StoreError>)| {
            Ok((group, EncodedMembers::of(&members?)?))
        };
        let is_kept = match groups.into_iter().map(encoded).collect() {
            Ok(groups) => self.keep_snapshot(shard, revision, groups, until, now).await?,
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
        let may_be_stale = known.expires().is_some_and(|expires| expires < now.after(2 * SNAPSHOT_LIFE));
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
        let age = now.system_time().duration_since(registration.registered_at.system_time());
        let surely_told = age.is_ok_and(|age| age >= 2 * SNAPSHOT_LIFE);
        if has_changed || revision_moved || !surely_told || after.is_none() {
            self.renew(shard, after.or(before).map(|revision| revision.groups).unwrap_or_default()).await?;
        }
        Ok(Registered::Again(registration))
    }

    /// Makes sure that there is room for one more node of this kind. `groups` is what the revision says of those of the shard. Answers
    /// how many the group has, or why there is no room.
    async fn room(
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
            let (all, _) = self.groups(None, None, now).await?;
            if all.iter().any(|(known, _)| known == group) {
                return Ok(true);
            }
            groups = all.len();
            let shard = Shard::of(group);
            let others = all.iter().filter(|(other, _)| Shard::of(other) == shard).count();
            if groups >= max || others >= most_in_a_shard(max) {
                self.count_groups(groups, Some(now)).await?;
                return Ok(false);
            }
        }
        let ours = self.count_groups(groups + 1, None).await?;
        let theirs: Option<GroupCount> = self.load(GROUPS_KEY).await?;
        if let Some(theirs) = theirs.filter(|theirs| theirs.nonce != ours) {
            self.count_groups(beyond_crowd(theirs.groups, groups + 1), None).await?;
        }
        Ok(true)
    }

    async fn count_groups(&self, groups: usize, refused_at: Option<Timestamp>) -> Result<String, StoreError> {
        let count = GroupCount { nonce: new_nonce()?, groups, refused_at };
        self.store.set(GROUPS_KEY, encode(&count)?).await?;
        Ok(count.nonce)
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
        let revision = Revision { nonce: new_nonce()?, groups };
        self.store.set(&revision_key(shard), encode(&revision)?).await?;
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
        let mut listed = Listed::default();
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

    /// Stores what the groups of a shard held at `revision`, which must have been read before they were listed. Whether it is stored.
    async fn keep_snapshot(
        &self,
        shard: Shard,
        revision: Revision,
        groups: BTreeMap<Group, EncodedMembers>,
        until: Option<Timestamp>,
        now: Timestamp,
    ) -> Result<bool, StoreError> {
        let parts = groups.iter().map(|(group, EncodedMembers { fresh, json })| SnapshotPart {
            group: group.clone(),
            fresh: *fresh,
            bytes: json.len(),
        });
        let head = SnapshotHead { revision: revision.nonce, built_at: now, until, groups: parts.collect() };
        let snapshot = Snapshot { shard, head, members: groups };
        // The roster is right with or without it; without it, the next reader lists as well.
        let stored = self.store.set(&snapshot_key(shard), snapshot.encode()?).await;
        if let Err(error) = &stored {
            eprintln!("sentinel-broker: a snapshot is not kept: {error}");
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
        .map_err(|error| StoreError(format!("`{key}` holds what this version can't read: {error}")))
}

fn nonce(revision: &Option<Revision>) -> Option<&str> {
    revision.as_ref().map(|revision| revision.nonce.as_str())
}

fn new_nonce() -> Result<String, StoreError> {
    let mut nonce = [0; 16];
    getrandom::fill(&mut nonce).map_err(|error| StoreError(format!("no random numbers: {error}")))?;
    Ok(hex(&nonce))
}

/// How many groups of one shard there may be, where there may be so many in all: names can be chosen so that they share one, and all of
/// a shard are listed together.
fn most_in_a_shard(groups: usize) -> usize {
    16 + 4 * groups / usize::from(SHARDS)
}

/// What is counted where others have counted at the same moment.
fn beyond_crowd(theirs: usize, ours: usize) -> usize {
    theirs.max(ours).saturating_mul(2).saturating_add(CROWD)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

impl Shard {
    fn of(group: &Group) -> Self {
        let hash = Sha256::digest(group.as_str());
        Self(u16::from_be_bytes([hash[0], hash[1]]) % SHARDS)
    }
}

impl fmt::Display for Shard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:03x}", self.0)
    }
}

fn revision_key(shard: Shard) -> String {
    format!("rev:{shard}")
}

fn snapshot_key(shard: Shard) -> String {
    format!("snap:{shard}")
}

fn listing_key(shard: Shard) -> String {
    format!("list:{shard}")
}

fn outcome_key(group: &Group) -> String {
    format!("out:{group}")
}

fn verified_key(group: &Group) -> String {
    format!("ver:{group}")
}

fn registration_prefix(group: &Group) -> String {
    format!("reg:{group}:")
}

fn registration_kind_prefix(group: &Group, kind: Kind) -> String {
    format!("reg:{group}:{kind}:")
}

/// The address is hashed: a host can be 253 characters long, and some of Spin's stores take keys of 255 bytes at most.
fn registration_key(group: &Group, kind: Kind, addr: &Addr) -> String {
    let hash = Sha256::digest(addr.to_string());
    format!("{}{}", registration_kind_prefix(group, kind), hex(&hash[..16]))
}

/// The group that a key belongs to, and what it holds; `None` where it belongs to none. The store may hold keys of others.
fn parse_key(key: &str) -> Option<(Group, Holds)> {
    let (name, holds) = split_key(key)?;
    Some((name.parse().ok()?, holds))
}

/// The same, of a group that may be none.
fn split_key(key: &str) -> Option<(&str, Holds)> {
    let (prefix, rest) = key.split_once(':')?;
    match prefix {
        "reg" => {
            let (group, rest) = rest.split_once(':')?;
            let (kind, _hash) = rest.split_once(':')?;
            let kind = Kind::ALL.into_iter().find(|known| known.as_str() == kind)?;
            Some((group, Holds::Registration(kind)))
        }
        "out" => Some((rest, Holds::Outcome)),
        "ver" => Some((rest, Holds::LastVerified)),
        _ => None,
    }
}
