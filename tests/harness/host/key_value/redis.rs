//! Spin's Redis provider: a key of the store is a key of the server, and its value a string.
//!
//! The label has no effect. So the stores of all labels are one store, and hosts with the same server share
//! it.

use std::sync::Arc;

use redis::aio::{ConnectionManager, ConnectionManagerConfig};
use redis::{AsyncCommands, Client, RedisError};
use tokio::sync::{OnceCell, mpsc, oneshot};

use super::{HANDFUL, KEYS_AHEAD, Keys};

/// A server. The first use connects to it.
#[derive(Clone)]
pub(in crate::host) struct Redis(Arc<Server>);

struct Server {
    client: Client,
    connection: OnceCell<ConnectionManager>,
}

impl Redis {
    pub(super) fn at(url: &str) -> Result<Self, RedisError> {
        Ok(Self(Arc::new(Server { client: Client::open(url)?, connection: OnceCell::new() })))
    }

    pub(super) async fn store(&self) -> Result<RedisStore, String> {
        // As in Spin, there is no time limit for an answer. The component has to set one.
        let patient = ConnectionManagerConfig::new().set_response_timeout(None);
        let Server { client, connection } = &*self.0;
        let connect = || client.get_connection_manager_with_config(patient);
        let mut connection = connection.get_or_try_init(connect).await.map_err(text)?.clone();
        // Spin sends a `PING` each time a store is opened, so that a broken connection is replaced. It
        // ignores the result too (`after_open` in `crates/key-value-redis`).
        let _ = connection.ping::<()>().await;
        Ok(RedisStore(connection))
    }
}

/// All strings of the server's database.
#[derive(Clone)]
pub(super) struct RedisStore(ConnectionManager);

impl RedisStore {
    pub(super) async fn get(&self, key: &str) -> Result<Option<Vec<u8>>, String> {
        self.0.clone().get(key).await.map_err(text)
    }

    pub(super) async fn set(&self, key: &str, value: &[u8]) -> Result<(), String> {
        self.0.clone().set(key, value).await.map_err(text)
    }

    pub(super) async fn delete(&self, key: &str) -> Result<(), String> {
        self.0.clone().del(key).await.map_err(text)
    }

    /// Uses `SCAN` and not `KEYS`, as Spin does. `SCAN` may return a key twice.
    pub(super) fn keys(&self) -> Keys {
        let (to_guest, keys) = mpsc::channel(KEYS_AHEAD);
        let (done, outcome) = oneshot::channel();
        let connection = self.0.clone();
        tokio::spawn(async move {
            // A guest that does not take the rest does not get the result either.
            let _ = done.send(list(connection, to_guest).await);
        });
        Keys { keys, outcome }
    }
}

async fn list(mut connection: ConnectionManager, to_guest: mpsc::Sender<Vec<String>>) -> Result<(), String> {
    let mut scan = connection.scan::<String>().await.map_err(text)?;
    loop {
        let mut handful = Vec::with_capacity(HANDFUL);
        while handful.len() < HANDFUL
            && let Some(key) = scan.next_item().await
        {
            handful.push(key.map_err(text)?);
        }
        if handful.is_empty() {
            return Ok(());
        }
        to_guest.send(handful).await.map_err(|_| "nobody takes the keys any more")?;
    }
}

#[expect(clippy::needless_pass_by_value, reason = "it is what `map_err` hands on")]
fn text(error: RedisError) -> String {
    error.to_string()
}
