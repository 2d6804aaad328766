//! The members of a group, their counts, and how they change with time.

use std::time::Duration;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::keys::hex;
use super::{StoreError, encode};
use crate::api::{Expected, Kind, LastVerified, Outcome, Registration, Timestamp};

/// How long after it has become stale a registration is forgotten.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(24 * 60 * 60);

/// What a group holds.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Members {
    /// The Redis servers, first registered first.
    pub redis: Vec<Registration>,
    /// The Sentinels, first registered first.
    pub sentinels: Vec<Registration>,
    /// The outcome that the runner sent last.
    pub outcome: Option<Outcome>,
    /// The system as it was last verified.
    #[serde(default)]
    pub last_verified: Option<LastVerified>,
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
    /// The stale ones among them.
    pub stale: Counts,
}

/// [`Members`] as JSON. They are encoded once, when they are listed, and most answers need no other form.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EncodedMembers {
    /// How many registrations are not stale.
    pub fresh: Counts,
    /// `{"redis": […], "sentinels": […], "outcome": …, "last_verified": …}`.
    pub json: Bytes,
    /// A digest of all of that except when nodes were last seen: 32 hexadecimal digits.
    pub tag: String,
}

impl Registration {
    /// The registration as it is at this moment; `None` if it is forgotten by then.
    pub(super) fn at(self, now: Timestamp) -> Option<Self> {
        let Some(expires) = self.expires() else { return Some(self) };
        let is_forgotten = self.is_forgotten_after(expires).is_some_and(|end| end <= now);
        (!is_forgotten).then_some(Self { stale: now >= expires, ..self })
    }

    /// When the registration next becomes stale or forgotten, if its node does not register again.
    pub(super) fn changes_after(&self, now: Timestamp) -> Option<Timestamp> {
        let expires = self.expires()?;
        if now < expires { Some(expires) } else { self.is_forgotten_after(expires) }
    }

    /// A member of a system is never forgotten, because the Sentinels count it until it leaves. No Sentinel
    /// counts other nodes.
    fn is_forgotten_after(&self, expires: Timestamp) -> Option<Timestamp> {
        self.master.is_none().then(|| expires.after(FORGOTTEN_AFTER))
    }
}

impl Members {
    /// The counts of the registrations.
    #[must_use]
    pub fn counts(&self) -> GroupCounts {
        let mut counts = GroupCounts::default();
        for kind in Kind::ALL {
            self.of(kind).iter().for_each(|registration| counts.add(kind, registration));
        }
        counts
    }

    /// The registrations of one kind.
    #[must_use]
    pub fn of(&self, kind: Kind) -> &[Registration] {
        match kind {
            Kind::Redis => &self.redis,
            Kind::Sentinel => &self.sentinels,
        }
    }

    pub(super) fn of_mut(&mut self, kind: Kind) -> &mut Vec<Registration> {
        match kind {
            Kind::Redis => &mut self.redis,
            Kind::Sentinel => &mut self.sentinels,
        }
    }
}

impl GroupCounts {
    /// The counts without stale registrations.
    #[must_use]
    pub fn fresh(&self) -> Counts {
        let Self { registered, stale } = self;
        Counts { redis: registered.redis - stale.redis, sentinels: registered.sentinels - stale.sentinels }
    }

    /// Whether a group with these counts is complete.
    #[must_use]
    pub fn is_ready(&self, expected: Expected) -> bool {
        let Counts { redis, sentinels } = self.fresh();
        expected.missing(redis, sentinels).is_nothing()
    }

    pub(super) fn add(&mut self, kind: Kind, registration: &Registration) {
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

    pub(super) fn of_mut(&mut self, kind: Kind) -> &mut usize {
        match kind {
            Kind::Redis => &mut self.redis,
            Kind::Sentinel => &mut self.sentinels,
        }
    }
}

impl EncodedMembers {
    pub(super) fn of(members: &Members) -> Result<Self, StoreError> {
        let mut but_last_seen = members.clone();
        for kind in Kind::ALL {
            let registrations = but_last_seen.of_mut(kind).iter_mut();
            registrations.for_each(|registration| registration.last_seen = registration.registered_at);
        }
        let tag = hex(&Sha256::digest(encode(&but_last_seen)?)[..16]);
        Ok(Self { fresh: members.counts().fresh(), json: encode(members)?.into(), tag })
    }

    /// The decoded members.
    ///
    /// # Errors
    ///
    /// If the snapshot that they come from is not in this version's format.
    pub fn decode(&self) -> Result<Members, StoreError> {
        serde_json::from_slice(&self.json)
            .map_err(|error| StoreError(format!("this version can't read a snapshot: {error}")))
    }
}
