//! A store in memory that can fail on demand. It is as strict about keys as the strictest of Spin's stores.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};

use tokio::time::Instant;

use super::{Store, StoreError};
use crate::api::Timestamp;

/// Clones share their contents.
#[derive(Debug, Clone, Default)]
pub(crate) struct MemoryStore(Arc<Mutex<State>>);

#[derive(Debug, Default)]
pub(crate) struct State {
    pub(crate) entries: BTreeMap<String, Vec<u8>>,
    /// Every operation so far, like `get rev:mymaster`.
    pub(crate) operations: Vec<String>,
    /// Which of the next operations fail, by their index in `operations`.
    pub(crate) fails: Option<fn(usize, usize) -> bool>,
    /// The second argument of `fails`.
    pub(crate) fails_at: usize,
    /// The prefix of keys that can't be set.
    pub(crate) refuses: Option<&'static str>,
    /// The time, if it is not the real time.
    pub(crate) clock: Option<Clock>,
}

/// The store's time.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Clock {
    At(Timestamp),
    /// Tokio's clock, which a test can stop. At this instant it was this time.
    Tokio(Instant, Timestamp),
}

impl MemoryStore {
    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap()
    }

    /// The operations since the last call.
    pub(crate) fn take_operations(&self) -> Vec<String> {
        std::mem::take(&mut self.state().operations)
    }

    fn operation(&self, name: &str, key: &str) -> Result<MutexGuard<'_, State>, StoreError> {
        assert!(
            key.len() <= 255 && !key.contains(['/', '\\', '?', '#']),
            "Spin's stores refuse the key {key:?}"
        );
        let mut state = self.state();
        let place = state.operations.len();
        state.operations.push(format!("{name} {key}").trim_end().to_owned());
        match state.fails {
            Some(fails) if fails(place, state.fails_at) => {
                Err(StoreError(format!("{name} was told to fail")))
            }
            _ if state.refuses.is_some_and(|refused| name == "set" && key.starts_with(refused)) => {
                Err(StoreError(format!("`{key}` is refused")))
            }
            _ => Ok(state),
        }
    }
}

impl Store for MemoryStore {
    async fn get(&self, key: &str) -> Result<Option<Vec<u8>>, StoreError> {
        Ok(self.operation("get", key)?.entries.get(key).cloned())
    }

    async fn set(&self, key: &str, value: Vec<u8>) -> Result<(), StoreError> {
        self.operation("set", key)?.entries.insert(key.to_owned(), value);
        Ok(())
    }

    async fn delete(&self, key: &str) -> Result<(), StoreError> {
        self.operation("delete", key)?.entries.remove(key);
        Ok(())
    }

    async fn get_keys(&self) -> Result<Vec<String>, StoreError> {
        // Every key twice, as Redis may list it: no reader may depend on how often a key is listed.
        let state = self.operation("get_keys", "")?;
        Ok(state.entries.keys().chain(state.entries.keys()).cloned().collect())
    }

    fn now(&self) -> Timestamp {
        match self.state().clock {
            None => Timestamp::now(),
            Some(Clock::At(now)) => now,
            Some(Clock::Tokio(moment, at)) => at.after(moment.elapsed()),
        }
    }
}
