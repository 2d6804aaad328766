//! Spin's key-value providers: SQLite, which is the default, and Redis, which several hosts can share.

mod redis;
mod sqlite;

use std::path::PathBuf;

use anyhow::Result;
use tokio::sync::{mpsc, oneshot};

use self::redis::{Redis, RedisStore};
use self::sqlite::{Sqlite, SqliteStore};

/// The longest key that every provider of Spin takes, in bytes.
const MAX_KEY_BYTES: usize = 255;

/// How many batches of keys a listing may be ahead of the guest, as in Spin.
const KEYS_AHEAD: usize = 4;

/// How many keys are sent at once. Spin sends one, which takes 12 µs. In an unoptimised build, that would
/// take a hundred times as long, with the connection locked all the while. So such a build sends more keys at
/// once than any test has.
const HANDFUL: usize = if cfg!(debug_assertions) { 4096 } else { 1 };

/// Where the key-value store is kept.
#[derive(Debug, Clone)]
pub enum StoreAt {
    /// In memory, gone with the host.
    Memory,
    /// In a SQLite file, as Spin keeps it.
    Path(PathBuf),
    /// In the Redis server at this URL, as Spin keeps it.
    Redis(String),
}

impl From<&str> for StoreAt {
    fn from(text: &str) -> Self {
        if text == ":memory:" {
            Self::Memory
        } else if text.starts_with("redis://") {
            Self::Redis(text.to_owned())
        } else {
            Self::Path(text.into())
        }
    }
}

impl From<&PathBuf> for StoreAt {
    fn from(path: &PathBuf) -> Self {
        Self::Path(path.clone())
    }
}

/// The stores of all labels.
#[derive(Clone)]
pub(super) enum KeyValue {
    Sqlite(Sqlite),
    Redis(Redis),
}

impl KeyValue {
    /// A Redis server is connected to on first use, as in Spin: it may start later than the host.
    pub(super) fn open(at: &StoreAt) -> Result<Self> {
        Ok(match at {
            StoreAt::Memory => Self::Sqlite(Sqlite::in_memory()?),
            StoreAt::Path(path) => Self::Sqlite(Sqlite::at(path)?),
            StoreAt::Redis(url) => Self::Redis(Redis::at(url)?),
        })
    }

    pub(super) async fn store(&self, label: &str) -> Result<Store, String> {
        Ok(Store(match self {
            Self::Sqlite(sqlite) => Opened::Sqlite(sqlite.store(label)),
            Self::Redis(redis) => Opened::Redis(redis.store().await?),
        }))
    }
}

/// One open store. Errors are texts for the component.
#[derive(Clone)]
#[expect(unreachable_pub, reason = "`bindgen!` re-exports it as the resource's type")]
pub struct Store(Opened);

#[derive(Clone)]
enum Opened {
    Sqlite(SqliteStore),
    Redis(RedisStore),
}

impl Store {
    pub(super) async fn get(&self, key: &str) -> Result<Option<Vec<u8>>, String> {
        check(key)?;
        match &self.0 {
            Opened::Sqlite(store) => store.get(key),
            Opened::Redis(store) => store.get(key).await,
        }
    }

    pub(super) async fn set(&self, key: &str, value: &[u8]) -> Result<(), String> {
        check(key)?;
        match &self.0 {
            Opened::Sqlite(store) => store.set(key, value),
            Opened::Redis(store) => store.set(key, value).await,
        }
    }

    pub(super) async fn delete(&self, key: &str) -> Result<(), String> {
        check(key)?;
        match &self.0 {
            Opened::Sqlite(store) => store.delete(key),
            Opened::Redis(store) => store.delete(key).await,
        }
    }

    /// Lists the keys as fast as the guest takes them.
    pub(super) fn keys(&self) -> Keys {
        match &self.0 {
            Opened::Sqlite(store) => store.keys(),
            Opened::Redis(store) => store.keys(),
        }
    }
}

/// A listing under way.
pub(super) struct Keys {
    pub(super) keys: mpsc::Receiver<Vec<String>>,
    /// The result of the listing, once it has ended.
    pub(super) outcome: oneshot::Receiver<Result<(), String>>,
}

fn check(key: &str) -> Result<(), String> {
    if key.len() <= MAX_KEY_BYTES {
        Ok(())
    } else {
        Err(format!("the key has {} bytes; {MAX_KEY_BYTES} are allowed", key.len()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn keys(store: &Store) -> Vec<String> {
        let Keys { mut keys, outcome } = store.keys();
        let mut taken = vec![];
        while let Some(handful) = keys.recv().await {
            taken.extend(handful);
        }
        assert_eq!(outcome.await, Ok(Ok(())));
        taken
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_key_of_255_bytes_is_taken_and_a_longer_one_refused() {
        let store = KeyValue::open(&StoreAt::Memory).unwrap().store("default").await.unwrap();
        let longest = "k".repeat(MAX_KEY_BYTES);
        store.set(&longest, b"v").await.unwrap();
        assert_eq!(store.get(&longest).await, Ok(Some(b"v".to_vec())));
        let longer = format!("{longest}k");
        for refused in
            [store.set(&longer, b"").await, store.delete(&longer).await, store.get(&longer).await.map(drop)]
        {
            assert!(refused.unwrap_err().contains("256 bytes"));
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn stores_of_two_labels_are_apart() {
        let all = KeyValue::open(&StoreAt::Memory).unwrap();
        let (one, two) = (all.store("one").await.unwrap(), all.store("two").await.unwrap());
        one.set("key", &[1]).await.unwrap();
        assert_eq!(two.get("key").await, Ok(None));
        assert!(keys(&two).await.is_empty());
        assert_eq!(keys(&one).await, ["key"]);
        one.delete("key").await.unwrap();
        assert!(keys(&one).await.is_empty());
    }
}
