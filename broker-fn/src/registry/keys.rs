//! The names of keys. They stay within 255 bytes and free of `/ \ ? #`, the narrowest limits of Spin's
//! stores.

use std::fmt;

use sha2::{Digest, Sha256};

use crate::api::{Addr, Group, Kind};

/// How many shards there are. A change in one group invalidates the snapshot of all groups of its shard,
/// which costs a listing and nothing else.
pub(super) const SHARDS: u16 = 1024;

/// The groups of one shard.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Shard(u16);

/// What the key of a group holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Holds {
    Registration(Kind),
    Outcome,
    LastVerified,
}

impl Shard {
    pub(super) fn of(group: &Group) -> Self {
        let hash = Sha256::digest(group.as_str());
        Self(u16::from_be_bytes([hash[0], hash[1]]) % SHARDS)
    }

    /// The shard's number, less than [`SHARDS`].
    pub(super) fn index(self) -> usize {
        self.0.into()
    }
}

impl fmt::Display for Shard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:03x}", self.0)
    }
}

pub(super) fn revision_key(shard: Shard) -> String {
    format!("rev:{shard}")
}

pub(super) fn snapshot_key(shard: Shard) -> String {
    format!("snap:{shard}")
}

pub(super) fn listing_key(shard: Shard) -> String {
    format!("list:{shard}")
}

pub(super) fn outcome_key(group: &Group) -> String {
    format!("out:{group}")
}

pub(super) fn verified_key(group: &Group) -> String {
    format!("ver:{group}")
}

pub(super) fn registration_prefix(group: &Group) -> String {
    format!("reg:{group}:")
}

/// The address is hashed: a host may have 253 characters, and some of Spin's stores accept keys of 255 bytes
/// at most.
pub(super) fn registration_key(group: &Group, kind: Kind, addr: &Addr) -> String {
    let hash = Sha256::digest(addr.to_string());
    format!("{}{kind}:{}", registration_prefix(group), hex(&hash[..16]))
}

/// The group of a key, and what the key holds; `None` if it is no key of a group. The store may hold keys of
/// others.
pub(super) fn parse_key(key: &str) -> Option<(Group, Holds)> {
    let (name, holds) = split_key(key)?;
    Some((name.parse().ok()?, holds))
}

/// Like [`parse_key`], without checking that the name is a valid group.
pub(super) fn split_key(key: &str) -> Option<(&str, Holds)> {
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

pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
