//! Spin's default key-value provider: one SQLite table, in a file or in memory.

use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use rusqlite::{Connection, OptionalExtension, params};

/// The longest key that every provider of Spin takes, in bytes.
const MAX_KEY_BYTES: usize = 255;

/// Where the key-value store is kept.
#[derive(Debug, Clone)]
pub enum StoreAt {
    /// In memory, gone with the host.
    Memory,
    /// In a SQLite file, as Spin keeps it.
    Path(PathBuf),
}

impl From<&str> for StoreAt {
    fn from(text: &str) -> Self {
        if text == ":memory:" { Self::Memory } else { Self::Path(text.into()) }
    }
}

/// The stores of all labels.
#[derive(Clone)]
pub(super) struct KeyValue(Arc<Mutex<Connection>>);

impl KeyValue {
    pub(super) fn open(at: &StoreAt) -> rusqlite::Result<Self> {
        let connection = match at {
            StoreAt::Memory => Connection::open_in_memory()?,
            StoreAt::Path(path) => Connection::open(path)?,
        };
        connection.execute(
            "CREATE TABLE IF NOT EXISTS spin_key_value (
                store TEXT NOT NULL, key TEXT NOT NULL, value BLOB NOT NULL, PRIMARY KEY (store, key))",
            [],
        )?;
        Ok(Self(Arc::new(Mutex::new(connection))))
    }

    pub(super) fn store(&self, label: String) -> Store {
        Store { label: label.into(), stores: self.clone() }
    }
}

/// One open store. Errors are texts for the component.
#[derive(Clone)]
#[expect(unreachable_pub, reason = "`bindgen!` re-exports it as the resource's type")]
pub struct Store {
    label: Arc<str>,
    stores: KeyValue,
}

impl Store {
    pub(super) async fn get(&self, key: String) -> Result<Option<Vec<u8>>, String> {
        check(&key)?;
        self.query(move |connection, label| {
            connection
                .prepare_cached("SELECT value FROM spin_key_value WHERE store = ?1 AND key = ?2")?
                .query_row([label, &key], |row| row.get(0))
                .optional()
        })
        .await
    }

    pub(super) async fn set(&self, key: String, value: Vec<u8>) -> Result<(), String> {
        check(&key)?;
        self.query(move |connection, label| {
            connection
                .prepare_cached(
                    "INSERT INTO spin_key_value (store, key, value) VALUES (?1, ?2, ?3)
                     ON CONFLICT (store, key) DO UPDATE SET value = ?3",
                )?
                .execute(params![label, key, value])
        })
        .await?;
        Ok(())
    }

    pub(super) async fn delete(&self, key: String) -> Result<(), String> {
        check(&key)?;
        self.query(move |connection, label| {
            connection
                .prepare_cached("DELETE FROM spin_key_value WHERE store = ?1 AND key = ?2")?
                .execute([label, &key])
        })
        .await?;
        Ok(())
    }

    pub(super) async fn keys(&self) -> Result<Vec<String>, String> {
        self.query(|connection, label| {
            connection
                .prepare_cached("SELECT key FROM spin_key_value WHERE store = ?1")?
                .query_map([label], |row| row.get(0))?
                .collect()
        })
        .await
    }

    /// Runs a query on a thread of its own: a write waits for the disk, and meanwhile the other requests of the same
    /// instance go on, as they do with Spin's providers across a network.
    async fn query<T: Send + 'static>(
        &self,
        run: impl FnOnce(&Connection, &str) -> rusqlite::Result<T> + Send + 'static,
    ) -> Result<T, String> {
        let Self { label, stores: KeyValue(connection) } = self.clone();
        tokio::task::spawn_blocking(move || run(&connection.lock().expect("no query panics"), &label))
            .await
            .expect("no query panics")
            .map_err(|error| error.to_string())
    }
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

    #[tokio::test]
    async fn a_key_of_255_bytes_is_taken_and_a_longer_one_refused() {
        let store = KeyValue::open(&StoreAt::Memory).unwrap().store("default".into());
        let longest = "k".repeat(MAX_KEY_BYTES);
        store.set(longest.clone(), b"v".to_vec()).await.unwrap();
        assert_eq!(store.get(longest.clone()).await, Ok(Some(b"v".to_vec())));
        for refused in [
            store.set(format!("{longest}k"), vec![]).await,
            store.delete(format!("{longest}k")).await,
            store.get(format!("{longest}k")).await.map(drop),
        ] {
            assert!(refused.unwrap_err().contains("256 bytes"));
        }
    }

    #[tokio::test]
    async fn stores_of_two_labels_are_apart() {
        let all = KeyValue::open(&StoreAt::Memory).unwrap();
        let (one, two) = (all.store("one".into()), all.store("two".into()));
        one.set("key".into(), vec![1]).await.unwrap();
        assert_eq!(two.get("key".into()).await, Ok(None));
        assert_eq!(two.keys().await, Ok(vec![]));
        assert_eq!(one.keys().await, Ok(vec!["key".to_owned()]));
        one.delete("key".into()).await.unwrap();
        assert_eq!(one.keys().await, Ok(vec![]));
    }
}
