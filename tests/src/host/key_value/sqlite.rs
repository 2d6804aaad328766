//! Spin's default provider: one SQLite table, in a file or in memory.

use std::path::Path;
use std::sync::{Arc, Mutex};

use rusqlite::{Connection, OptionalExtension, params};
use tokio::task::block_in_place;

/// The one connection, which all stores take turns at, as in Spin. How SQLite keeps its journal and when it waits for
/// the disk is what SQLite does unless told otherwise: Spin tells it nothing either.
#[derive(Clone)]
pub(in crate::host) struct Sqlite(Arc<Mutex<Connection>>);

impl Sqlite {
    pub(super) fn in_memory() -> rusqlite::Result<Self> {
        Self::new(Connection::open_in_memory()?)
    }

    pub(super) fn at(path: &Path) -> rusqlite::Result<Self> {
        Self::new(Connection::open(path)?)
    }

    fn new(connection: Connection) -> rusqlite::Result<Self> {
        connection.execute(
            "CREATE TABLE IF NOT EXISTS spin_key_value (
                store TEXT NOT NULL, key TEXT NOT NULL, value BLOB NOT NULL, PRIMARY KEY (store, key))",
            [],
        )?;
        Ok(Self(Arc::new(Mutex::new(connection))))
    }

    pub(super) fn store(&self, label: &str) -> SqliteStore {
        SqliteStore { label: label.into(), sqlite: self.clone() }
    }
}

/// The rows of one label.
#[derive(Clone)]
pub(super) struct SqliteStore {
    label: Arc<str>,
    sqlite: Sqlite,
}

impl SqliteStore {
    pub(super) fn get(&self, key: &str) -> Result<Option<Vec<u8>>, String> {
        self.query(|connection, label| {
            connection
                .prepare_cached("SELECT value FROM spin_key_value WHERE store = ?1 AND key = ?2")?
                .query_row([label, key], |row| row.get(0))
                .optional()
        })
    }

    pub(super) fn set(&self, key: &str, value: &[u8]) -> Result<(), String> {
        self.query(|connection, label| {
            connection
                .prepare_cached(
                    "INSERT INTO spin_key_value (store, key, value) VALUES (?1, ?2, ?3)
                     ON CONFLICT (store, key) DO UPDATE SET value = ?3",
                )?
                .execute(params![label, key, value])
                .map(drop)
        })
    }

    pub(super) fn delete(&self, key: &str) -> Result<(), String> {
        self.query(|connection, label| {
            connection
                .prepare_cached("DELETE FROM spin_key_value WHERE store = ?1 AND key = ?2")?
                .execute([label, key])
                .map(drop)
        })
    }

    pub(super) fn keys(&self) -> Result<Vec<String>, String> {
        self.query(|connection, label| {
            connection
                .prepare_cached("SELECT key FROM spin_key_value WHERE store = ?1")?
                .query_map([label], |row| row.get(0))?
                .collect()
        })
    }

    /// Runs a query right here, as Spin does: the runtime's other threads take over this one's tasks, but the requests
    /// of the same instance wait.
    fn query<T>(&self, run: impl FnOnce(&Connection, &str) -> rusqlite::Result<T>) -> Result<T, String> {
        block_in_place(|| run(&self.sqlite.0.lock().expect("no query panics"), &self.label))
            .map_err(|error| error.to_string())
    }
}
