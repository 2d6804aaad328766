//! Two stores, one for each region. A write to one store reaches the other later, each key separately, and
//! the last writer wins. Stores that span regions behave like this.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use futures::StreamExt;
use redis::Client;
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::eventually;
use crate::host::StoreAt;
use crate::lab::Lab;
use crate::node::Node;

/// How long all writes may take to arrive once there are no more.
const LIMIT: Duration = Duration::from_secs(60);

/// How long a write of a key takes to arrive in the other region.
type Lag = Box<dyn Fn(&str) -> Duration + Send + Sync>;

/// Sets or deletes a key, if it still has the expected value: a write by the region's own clients may not
/// have been seen yet. MONITOR shows the commands of a script as commands of `lua`.
const APPLY: &str = "
    local had = redis.call('GET', KEYS[1])
    if (had or '') ~= ARGV[1] then return 0 end
    if ARGV[2] == '' then redis.call('DEL', KEYS[1]) else redis.call('SET', KEYS[1], ARGV[2]) end
    return 1
";

/// Two regions.
#[derive(Debug)]
pub struct Regions {
    stores: [Node; 2],
    seen: Arc<Seen>,
    is_cut: watch::Sender<bool>,
    #[expect(dead_code, reason = "what is under way ends with it")]
    links: JoinSet<()>,
}

/// A write.
#[derive(Debug, Clone)]
pub struct Written {
    /// The region in which the write was made: 0 or 1.
    pub region: usize,
    /// The key that was set or deleted.
    pub key: String,
    /// When the write arrived in the other region, if it has. Also set if a later write had arrived there
    /// before.
    pub arrived: Option<Instant>,
}

#[derive(Debug, Default)]
struct Seen {
    /// The last value of each region's keys.
    values: Mutex<HashMap<(usize, String), Value>>,
    writes: Mutex<Vec<Written>>,
}

/// When the last write of a key was made, in microseconds, and the value. No value is empty.
type Value = (u64, Vec<u8>);

/// A write by a region's own clients, as MONITOR shows it.
#[derive(Debug, PartialEq, Eq)]
struct Shown {
    at: u64,
    key: String,
    /// Empty if the key is deleted.
    value: Vec<u8>,
}

impl Regions {
    /// Starts two empty stores.
    pub async fn start(lab: &Lab, lag: impl Fn(&str) -> Duration + Send + Sync + 'static) -> Result<Self> {
        let stores = [lab.redis().start().await?, lab.redis().start().await?];
        let seen = Arc::new(Seen::default());
        let (is_cut, cut) = watch::channel(false);
        let lag: Arc<Lag> = Arc::new(Box::new(lag));
        let mut links = JoinSet::new();
        for from in 0..2 {
            let client = |region: usize| Client::open(format!("redis://{}", stores[region].addr()));
            let monitor = client(from)?.get_async_monitor().await?;
            let other = client(1 - from)?.get_multiplexed_async_connection().await?;
            let (seen, cut, lag) = (Arc::clone(&seen), cut.clone(), Arc::clone(&lag));
            links.spawn(async move {
                let mut under_way = JoinSet::new();
                let mut shown = monitor.into_on_message::<String>();
                while let Some(line) = shown.next().await {
                    let Some(write) = Shown::parse(&line) else { continue };
                    let number = seen.write(from, &write);
                    let lag = lag(&write.key);
                    let (seen, mut other, mut cut) = (Arc::clone(&seen), other.clone(), cut.clone());
                    under_way.spawn(async move {
                        tokio::time::sleep(lag).await;
                        // The sender is dropped with the regions.
                        let _ = cut.wait_for(|is_cut| !is_cut).await;
                        while !seen.apply(1 - from, &write, &mut other).await {
                            tokio::time::sleep(Duration::from_millis(1)).await;
                        }
                        lock(&seen.writes)[number].arrived = Some(Instant::now());
                    });
                }
            });
        }
        Ok(Self { stores, seen, is_cut, links })
    }

    /// The store of a region's brokers.
    #[must_use]
    pub fn store(&self, region: usize) -> StoreAt {
        StoreAt::Redis(format!("redis://{}", self.stores[region].addr()))
    }

    /// Whether writes are held from now on. When the cut ends, all that were held arrive.
    pub fn cut(&self, is_cut: bool) {
        self.is_cut.send_replace(is_cut);
    }

    /// Every write so far.
    #[must_use]
    pub fn writes(&self) -> Vec<Written> {
        lock(&self.seen.writes).clone()
    }

    /// Waits until every write has arrived.
    ///
    /// Panics if that takes too long.
    pub async fn until_even(&self) {
        let even = eventually(LIMIT, async || {
            let writes = self.writes();
            let missing: Vec<_> = writes.iter().filter(|write| write.arrived.is_none()).collect();
            ensure!(missing.is_empty(), "these writes have not arrived: {missing:?}");
            Ok(())
        });
        even.await.unwrap_or_else(|error| panic!("{error:#}"));
    }
}

impl Seen {
    /// Notes a write by a region's clients, and returns its number.
    fn write(&self, region: usize, write: &Shown) -> usize {
        lock(&self.values).insert((region, write.key.clone()), (write.at, write.value.clone()));
        let mut writes = lock(&self.writes);
        writes.push(Written { region, key: write.key.clone(), arrived: None });
        writes.len() - 1
    }

    /// Applies the write in another region, unless a later write is there already. Returns whether that is
    /// done: a write that is not known yet may have come before it.
    async fn apply(&self, region: usize, write: &Shown, to: &mut redis::aio::MultiplexedConnection) -> bool {
        let place = (region, write.key.clone());
        let (at, had) = lock(&self.values).get(&place).cloned().unwrap_or_default();
        if at >= write.at {
            return true;
        }
        let mut apply = redis::cmd("EVAL");
        apply.arg(APPLY).arg(1).arg(&write.key).arg(had).arg(&write.value);
        let applied = apply.query_async::<bool>(to).await;
        let Ok(true) = applied else { return false };
        let mut values = lock(&self.values);
        let known = values.entry(place).or_default();
        if known.0 < write.at {
            *known = (write.at, write.value.clone());
        }
        true
    }
}

impl Shown {
    /// A line like `1339518083.107412 [0 127.0.0.1:60866] "set" "key" "value"`.
    fn parse(line: &str) -> Option<Self> {
        let (at, rest) = line.split_once(' ')?;
        let (by, rest) = rest.split_once("] ")?;
        let mut words = words(rest).into_iter();
        let command = words.next()?.to_ascii_lowercase();
        let is_set = command == b"set";
        if by.ends_with("lua") || !(is_set || command == b"del") {
            return None;
        }
        let (seconds, micros) = at.split_once('.')?;
        let at = seconds.parse::<u64>().ok()? * 1_000_000 + micros.parse::<u64>().ok()?;
        let key = String::from_utf8(words.next()?).ok()?;
        let value = if is_set { words.next()? } else { vec![] };
        Some(Self { at, key, value })
    }
}

/// The words of a line of MONITOR. Each is in quotes, with escapes as in C.
fn words(line: &str) -> Vec<Vec<u8>> {
    let mut words = vec![];
    let mut bytes = line.bytes();
    while bytes.by_ref().any(|byte| byte == b'"') {
        let mut word = vec![];
        while let Some(byte) = bytes.next().filter(|byte| *byte != b'"') {
            word.push(match (byte, byte == b'\\') {
                (_, false) => byte,
                (_, true) => match bytes.next() {
                    Some(b'n') => b'\n',
                    Some(b'r') => b'\r',
                    Some(b't') => b'\t',
                    Some(b'a') => 7,
                    Some(b'b') => 8,
                    Some(b'x') => {
                        let hex: String = bytes.by_ref().take(2).map(char::from).collect();
                        u8::from_str_radix(&hex, 16).unwrap_or_default()
                    }
                    Some(other) => other,
                    None => break,
                },
            });
        }
        words.push(word);
    }
    words
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().expect("nothing panics while it holds this lock")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writes_of_clients_are_parsed_from_monitor() {
        let line = r#"1339518083.107412 [0 127.0.0.1:60866] "SET" "rev:1" "{\"a\": \"\\\"\"}\n\xff""#;
        let value = b"{\"a\": \"\\\"\"}\n\xff".to_vec();
        let shown = Shown { at: 1_339_518_083_107_412, key: "rev:1".into(), value };
        assert_eq!(Shown::parse(line), Some(shown));
        for other in [r#"1.0 [0 lua] "SET" "a" "b""#, r#"1.0 [0 127.0.0.1:1] "get" "a""#, "OK"] {
            assert_eq!(Shown::parse(other), None);
        }
        let deleted = Shown::parse(r#"1.000002 [0 127.0.0.1:1] "DEL" "a""#);
        assert_eq!(deleted, Some(Shown { at: 1_000_002, key: "a".into(), value: vec![] }));
    }
}
