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
//! | `rev:{group}` | the revision: a random nonce, and about how many registrations there are |
//! | `snap:{group}` | the roster as it was built at one revision |
//! | `list:{group}` | what a reader has last begun to list the store for |
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
use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures::future::{join, join_all, join4};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::api::{Addr, Group, Kind, LastVerified, Outcome, Registration, RunId, Timestamp};

#[cfg(test)]
mod interleavings;
#[cfg(test)]
pub(crate) mod memory;
#[cfg(test)]
mod tests;

/// How long a snapshot counts. It matters on a store that is eventually consistent, where a reader can see a new
/// revision before the new key, and after a writer that failed between its two writes.
const SNAPSHOT_LIFE: Duration = Duration::from_secs(30);

/// By how much a count is raised at least where several register at once: few enough that as a rule the nodes of one system
/// come up at the same moment without a listing.
const CROWD: usize = 8;

/// The key that [`Registry::check`] asks for. Nothing is ever stored there.
const CHECK_KEY: &str = "healthcheck";

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

/// How many registrations a group holds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    /// Redis servers.
    pub redis: usize,
    /// Sentinels.
    pub sentinels: usize,
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
    Full,
}

/// A group's state has this name. A change gives it a new one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Revision {
    nonce: String,
    /// Kept here so that registering need not list anything. Writers at the same moment leave it off: it is good for a bound
    /// against abuse, and for nothing else.
    #[serde(flatten)]
    counts: Counts,
}

/// What a group holds, as JSON: [`Members`] that have been encoded once, when they were listed, and that most answers
/// need in no other form.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EncodedMembers {
    /// How many there are.
    pub counts: Counts,
    /// `{"redis": […], "sentinels": […], "outcome": …, "last_verified": …}`.
    pub json: Bytes,
}

/// What a group held at one revision. It is stored as its head, a line break, and the members as they are sent.
#[derive(Debug, Clone)]
struct Snapshot {
    head: SnapshotHead,
    members: EncodedMembers,
}

/// The first line of a snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct SnapshotHead {
    /// The revision that it was built at.
    revision: String,
    built_at: Timestamp,
    #[serde(flatten)]
    counts: Counts,
}

/// What is known of a group without a listing.
enum Look {
    /// It holds nothing, and never has.
    Empty,
    /// A snapshot counts, and this is in it.
    Members(EncodedMembers),
    /// No snapshot counts. The purpose names what a listing would be for.
    Unlisted { revision: Revision, purpose: String },
}

/// The registrations of every group. Clones share the one snapshot that they keep.
#[derive(Debug, Clone)]
pub struct Registry<S> {
    store: S,
    /// The snapshot that was used last, and the group whose it is.
    kept: Arc<Mutex<Option<(Group, Snapshot)>>>,
}

impl Members {
    /// How many there are.
    #[must_use]
    pub fn counts(&self) -> Counts {
        Counts { redis: self.redis.len(), sentinels: self.sentinels.len() }
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
        Ok(Self { counts: members.counts(), json: encode(members)?.into() })
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
    fn open(stored: Vec<u8>) -> Option<Self> {
        // JSON as it is written here holds no line break.
        let end = stored.iter().position(|byte| *byte == b'\n')?;
        let head: SnapshotHead = serde_json::from_slice(&stored[..end]).ok()?;
        let members = EncodedMembers { counts: head.counts, json: Bytes::from(stored).slice(end + 1..) };
        Some(Self { head, members })
    }

    fn counts_at(&self, revision: &Revision, now: Timestamp) -> bool {
        // A snapshot from the future was built by a host with another clock; its age can't be told.
        let age = now.system_time().duration_since(self.head.built_at.system_time());
        self.head.revision == revision.nonce && age.is_ok_and(|age| age < SNAPSHOT_LIFE)
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
        let listing_key = listing_key(group);
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
        let key = snapshot_key(group);
        let kept = self.kept().as_ref().filter(|(of, _)| of == group).map(|(_, snapshot)| snapshot.clone());
        let (revision, stored) = match kept {
            // As a rule that is all it takes.
            Some(_) => (self.revision(group).await?, None),
            None => {
                let (revision, stored) = join(self.revision(group), self.store.get(&key)).await;
                (revision?, Some(stored))
            }
        };
        // Every answered change has set a revision, so that asking for unknown groups never costs a listing.
        let Some(revision) = revision else { return Ok(Look::Empty) };
        if let Some(kept) = kept.filter(|kept| kept.counts_at(&revision, now)) {
            return Ok(Look::Members(kept.members));
        }
        let stored = match stored {
            Some(stored) => stored,
            None => self.store.get(&key).await,
        };
        let mut purpose = revision.nonce.clone();
        if let Some(snapshot) = stored.ok().flatten().and_then(Snapshot::open) {
            if snapshot.counts_at(&revision, now) {
                let members = snapshot.members.clone();
                *self.kept() = Some((group.clone(), snapshot));
                return Ok(Look::Members(members));
            }
            let SnapshotHead { revision, built_at, .. } = snapshot.head;
            purpose = format!("{purpose} instead of {revision} of {built_at}");
        }
        Ok(Look::Unlisted { revision, purpose })
    }

    fn kept(&self) -> MutexGuard<'_, Option<(Group, Snapshot)>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lists what `group` holds, at this revision. Whether the snapshot is stored, too.
    async fn build_snapshot(
        &self,
        group: &Group,
        revision: Revision,
        now: Timestamp,
    ) -> Result<(EncodedMembers, bool), StoreError> {
        let members = EncodedMembers::of(&self.list(group).await?)?;
        let is_kept = self.keep_snapshot(group, revision, &members, now).await?;
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
        node: (Addr, Option<RunId>),
        now: Timestamp,
        max: usize,
    ) -> Result<Registered, StoreError> {
        let (addr, run_id) = node;
        // The revision comes before the registration, so that a change between the two is noticed below.
        let before = self.revision(group).await?;
        let known = self.registration(group, kind, &addr).await?;
        let key = registration_key(group, kind, &addr);
        let Some(known) = known else {
            let mut counts = before.map(|revision| revision.counts).unwrap_or_default();
            if counts.of(kind) >= max {
                counts = self.members(group, now).await?.counts();
                if counts.of(kind) >= max {
                    return Ok(Registered::Full);
                }
            }
            let registration = Registration { addr, run_id, registered_at: now, last_seen: now };
            self.store.set(&key, encode(&registration)?).await?;
            *counts.of_mut(kind) += 1;
            let ours = self.renew(group, counts).await?;
            if let Some(mut crowded) = self.revision(group).await?.filter(|theirs| theirs.nonce != ours) {
                // Others register at this moment, and of all that started from the same count, one has counted. Too high a
                // count costs the next one a listing; too low a one would let the group grow far past its bound.
                let count = crowded.counts.of_mut(kind);
                *count = (*count).max(counts.of(kind)).saturating_mul(2).saturating_add(CROWD);
                self.renew(group, crowded.counts).await?;
            }
            return Ok(Registered::First(registration));
        };

        let run_id_changes = run_id.is_some() && run_id != known.run_id;
        let registration = Registration { run_id: run_id.or(known.run_id), last_seen: now, ..known };
        self.store.set(&key, encode(&registration)?).await?;
        let after = self.revision(group).await?;
        // As a rule nothing has changed that a snapshot would have to tell. But:
        // - a concurrent DELETE may have taken the key away and told so, all between our reading and our writing it;
        // - the request that wrote the key first may not have set its revision yet, or have failed before it did. No
        //   snapshot that lacks the key outlives that by more than its life; twice as long leaves room for slowness.
        let revision_moved = nonce(&before) != nonce(&after);
        let age = now.system_time().duration_since(registration.registered_at.system_time());
        let surely_told = age.is_ok_and(|age| age >= 2 * SNAPSHOT_LIFE);
        if run_id_changes || revision_moved || !surely_told || after.is_none() {
            self.renew(group, after.or(before).map(|revision| revision.counts).unwrap_or_default()).await?;
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
    ) -> Result<Option<Registration>, StoreError> {
        self.load(&registration_key(group, kind, addr)).await
    }

    /// Forgets one registration, also one that can't be read.
    ///
    /// # Errors
    ///
    /// Where the store fails. It may be forgotten all the same, or not; asking again settles it.
    pub async fn forget(&self, group: &Group, kind: Kind, addr: &Addr) -> Result<(), StoreError> {
        let revision = self.revision(group).await?;
        let mut counts = revision.as_ref().map(|revision| revision.counts).unwrap_or_default();
        let key = registration_key(group, kind, addr);
        let is_there = self.store.get(&key).await?.is_some();
        if is_there {
            self.store.delete(&key).await?;
            *counts.of_mut(kind) = counts.of(kind).saturating_sub(1);
        }
        // Also where nothing is there: another request may be between these two steps, or have failed there. But asking
        // for unknown groups must not create any.
        if is_there || revision.is_some() {
            self.renew(group, counts).await?;
        }
        Ok(())
    }

    /// Forgets all that `group` holds, also what can't be read.
    ///
    /// # Errors
    ///
    /// Where the store fails. Asking again completes it.
    pub async fn forget_group(&self, group: &Group) -> Result<(), StoreError> {
        let registrations = registration_prefix(group);
        let (revision, outcome, verified) = (revision_key(group), outcome_key(group), verified_key(group));
        let (snapshot, listing) = (snapshot_key(group), listing_key(group));
        let keys = self.keys().await?;
        let held = keys
            .iter()
            .filter(|key| {
                key.starts_with(&registrations) || [&outcome, &verified, &snapshot, &listing].contains(key)
            })
            .collect::<Vec<_>>();
        if held.is_empty() && !keys.contains(&revision) {
            return Ok(());
        }
        for deleted in join_all(held.iter().map(|key| self.store.delete(key))).await {
            deleted?;
        }
        // Set, not deleted: the revision of a registration that arrives at this moment would go with it.
        self.renew(group, Counts::default()).await?;
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
        let revision = self.revision(group).await?;
        if let Some(verified) = verified {
            self.store.set(&verified_key(group), encode(verified)?).await?;
        }
        self.store.set(&outcome_key(group), encode(outcome)?).await?;
        self.renew(group, revision.map(|revision| revision.counts).unwrap_or_default()).await?;
        Ok(())
    }

    /// Every group that holds a registration, by name, counted from the names of the keys alone.
    ///
    /// # Errors
    ///
    /// Where the store fails.
    pub async fn groups(&self) -> Result<Vec<(Group, Counts)>, StoreError> {
        let mut groups = BTreeMap::<Group, Counts>::new();
        for (group, kind) in self.keys().await?.iter().filter_map(|key| parse_registration_key(key)) {
            *groups.entry(group).or_default().of_mut(kind) += 1;
        }
        Ok(groups.into_iter().collect())
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

    async fn revision(&self, group: &Group) -> Result<Option<Revision>, StoreError> {
        self.load(&revision_key(group)).await
    }

    /// Gives the group's state a new name: no snapshot that was built before, or is being built now, counts any more.
    /// Answers that name.
    async fn renew(&self, group: &Group, counts: Counts) -> Result<String, StoreError> {
        let mut nonce = [0; 16];
        getrandom::fill(&mut nonce).map_err(|error| StoreError(format!("no random numbers: {error}")))?;
        let revision = Revision { nonce: hex(&nonce), counts };
        self.store.set(&revision_key(group), encode(&revision)?).await?;
        Ok(revision.nonce)
    }

    /// Builds the roster from the keys themselves.
    async fn list(&self, group: &Group) -> Result<Members, StoreError> {
        let keys = self.keys().await?;
        let registrations = async |kind| {
            let prefix = registration_kind_prefix(group, kind);
            let keys = keys.iter().filter(|key| key.starts_with(&prefix));
            // A key may vanish between the listing and here.
            let found: Result<Vec<Option<Registration>>, _> =
                join_all(keys.map(|key| self.load(key))).await.into_iter().collect();
            let mut found: Vec<_> = found?.into_iter().flatten().collect();
            found.sort_by(|a, b| a.order().cmp(&b.order()));
            Ok(found)
        };
        let (redis, sentinels, outcome, last_verified) = join4(
            registrations(Kind::Redis),
            registrations(Kind::Sentinel),
            self.load_listed(&keys, outcome_key(group)),
            self.load_listed(&keys, verified_key(group)),
        )
        .await;
        Ok(Members { redis: redis?, sentinels: sentinels?, outcome: outcome?, last_verified: last_verified? })
    }

    /// Stores `members` as what the group held at `revision`, which must have been read before they were listed. Whether it is
    /// stored.
    async fn keep_snapshot(
        &self,
        group: &Group,
        revision: Revision,
        members: &EncodedMembers,
        now: Timestamp,
    ) -> Result<bool, StoreError> {
        let head = SnapshotHead { revision: revision.nonce, built_at: now, counts: members.counts };
        let snapshot = [&encode(&head)?, &b"\n"[..], &members.json].concat();
        // The roster is right with or without it; without it, the next reader lists as well.
        let stored = self.store.set(&snapshot_key(group), snapshot).await;
        if let Err(error) = &stored {
            eprintln!("sentinel-broker: the snapshot of `{group}` is not kept: {error}");
        }
        Ok(stored.is_ok())
    }

    /// The value of a key, where it was listed.
    async fn load_listed<T: DeserializeOwned>(
        &self,
        keys: &BTreeSet<String>,
        key: String,
    ) -> Result<Option<T>, StoreError> {
        if keys.contains(&key) { self.load(&key).await } else { Ok(None) }
    }

    async fn load<T: DeserializeOwned>(&self, key: &str) -> Result<Option<T>, StoreError> {
        let Some(bytes) = self.store.get(key).await? else { return Ok(None) };
        serde_json::from_slice(&bytes)
            .map(Some)
            .map_err(|error| StoreError(format!("`{key}` holds what this version can't read: {error}")))
    }
}

/// As it is stored, and as it is sent.
pub(crate) fn encode(value: &impl Serialize) -> Result<Vec<u8>, StoreError> {
    serde_json::to_vec(value).map_err(|error| StoreError(format!("a value can't be encoded: {error}")))
}

fn nonce(revision: &Option<Revision>) -> Option<&str> {
    revision.as_ref().map(|revision| revision.nonce.as_str())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn revision_key(group: &Group) -> String {
    format!("rev:{group}")
}

fn snapshot_key(group: &Group) -> String {
    format!("snap:{group}")
}

fn listing_key(group: &Group) -> String {
    format!("list:{group}")
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

/// The group and kind that a key belongs to, unless it is no registration's. The store may hold keys of others.
fn parse_registration_key(key: &str) -> Option<(Group, Kind)> {
    let (group, rest) = key.strip_prefix("reg:")?.split_once(':')?;
    let (kind, _hash) = rest.split_once(':')?;
    let kind = Kind::ALL.into_iter().find(|candidate| candidate.as_str() == kind)?;
    Some((group.parse().ok()?, kind))
}
