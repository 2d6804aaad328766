//! Spin's default provider: one SQLite table, in a file or in memory. It calls SQLite when and where Spin
//! does, because the benchmarks measure how fast a store answers and what has to wait for it:
//! `crates/key-value-spin/src/store.rs` and `crates/factor-key-value/src` of spinframework/spin at 94a8fc8
//! (4.1.0-pre0, August 2026). Spin caches nothing: each store that is opened, each value that is read and
//! each value that is written is one `block_in_place`.

use std::path::Path;
use std::sync::{Arc, Mutex};

use rusqlite::{Connection, OptionalExtension, params};
use tokio::sync::{mpsc, oneshot};
use tokio::task::{block_in_place, spawn_blocking};

use super::{HANDFUL, KEYS_AHEAD, Keys};

/// The one connection, which all stores use in turn, as in Spin. The journal and the waits for the disk are
/// SQLite's defaults, which Spin does not change either.
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

    /// Spin gets its connection in `block_in_place` too, because the first store that is opened makes the
    /// connection there.
    pub(super) fn store(&self, label: &str) -> SqliteStore {
        let sqlite = block_in_place(|| self.clone());
        SqliteStore { label: label.into(), sqlite }
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

    /// The listing keeps the connection locked until all keys have been taken.
    pub(super) fn keys(&self) -> Keys {
        let (to_guest, keys) = mpsc::channel(KEYS_AHEAD);
        let (done, outcome) = oneshot::channel();
        let store = self.clone();
        spawn_blocking(move || {
            // A guest that does not take the rest does not get the result either.
            let _ = done.send(store.list(&to_guest));
        });
        Keys { keys, outcome }
    }

    fn list(&self, to_guest: &mpsc::Sender<Vec<String>>) -> Result<(), String> {
        let connection = self.sqlite.0.lock().expect("no query panics");
        let mut statement =
            connection.prepare_cached("SELECT key FROM spin_key_value WHERE store = ?1").map_err(text)?;
        let mut rows = statement.query([&*self.label]).map_err(text)?;
        loop {
            let mut handful = Vec::with_capacity(HANDFUL);
            while handful.len() < HANDFUL
                && let Some(row) = rows.next().map_err(text)?
            {
                handful.push(row.get(0).map_err(text)?);
            }
            if handful.is_empty() {
                return Ok(());
            }
            to_guest.blocking_send(handful).map_err(|_| "nobody takes the keys any more")?;
        }
    }

    /// Runs a query on this thread, as Spin does. The runtime's other threads take over this thread's tasks,
    /// but the requests of the same instance wait.
    fn query<T>(&self, run: impl FnOnce(&Connection, &str) -> rusqlite::Result<T>) -> Result<T, String> {
        block_in_place(|| run(&self.sqlite.0.lock().expect("no query panics"), &self.label)).map_err(text)
    }
}

#[expect(clippy::needless_pass_by_value, reason = "it is what `map_err` hands on")]
fn text(error: rusqlite::Error) -> String {
    error.to_string()
}
