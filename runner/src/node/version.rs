//! The product and version of a server, as the server reports them. Code decides by the version only if no
//! reply shows the difference.

use super::info::Info;

/// A product, and the three numbers of its version.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Version {
    Redis(u16, u16, u16),
    Valkey(u16, u16, u16),
}

impl Version {
    /// From `INFO server`. Valkey's `redis_version` is the Redis version that it is compatible with. Its own
    /// is `valkey_version`.
    pub fn of(server: &Info) -> Option<Self> {
        match server.get("valkey_version") {
            Some(version) => numbers(version).map(|[a, b, c]| Self::Valkey(a, b, c)),
            None => numbers(server.get("redis_version")?).map(|[a, b, c]| Self::Redis(a, b, c)),
        }
    }

    /// From the output of `redis-server --version`: `Redis server v=7.0.15 sha=…`.
    pub fn printed(text: &str) -> Option<Self> {
        let [a, b, c] = numbers(text.split_whitespace().find_map(|word| word.strip_prefix("v="))?)?;
        Some(if text.starts_with("Valkey") { Self::Valkey(a, b, c) } else { Self::Redis(a, b, c) })
    }

    /// Whether a Sentinel writes passwords into its file in quotes, so that it can read any of them again.
    /// Observed: Valkey 9.1.2 does; Redis 7.0.15 and 8.0.6, Valkey 9.0.0 and 9.1.0 don't (`SENTINEL SET …
    /// auth-pass` with a blank, then a look at the file).
    pub fn quotes_passwords(self) -> bool {
        self >= Self::Valkey(9, 1, 2)
    }

    /// Whether a Sentinel sends `FAILOVER ABORT` with every change of a role, and so needs the right to it:
    /// valkey-io/valkey issue 2779, fixed in 9.0.1.
    pub fn always_sends_failover(self) -> bool {
        self == Self::Valkey(9, 0, 0)
    }

    /// Whether a replica that writes its master's data to disk first receives it in a separate thread, and
    /// checks that thread only once a second. Observed: Valkey 9.0.0, 9.1.0 and 9.1.2 do; Redis 7.0.15 and
    /// 8.0.6, and Valkey 8.1.1 don't.
    pub fn downloads_in_the_background(self) -> bool {
        self >= Self::Valkey(9, 0, 0)
    }
}

fn numbers(version: &str) -> Option<[u16; 3]> {
    let mut numbers = version.split(['.', '-']).map(|number| number.parse().ok());
    Some([numbers.next()??, numbers.next()??, numbers.next().flatten().unwrap_or_default()])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_products_say_their_versions() {
        let of = |text: &str| Version::of(&Info::parse(text));
        assert_eq!(of("redis_version:7.0.15\r\n"), Some(Version::Redis(7, 0, 15)));
        let valkey = "redis_version:7.2.4\r\nserver_name:valkey\r\nvalkey_version:9.1.2\r\n";
        assert_eq!(of(valkey), Some(Version::Valkey(9, 1, 2)));
        assert_eq!(of("redis_version:8.0-rc1\r\n"), Some(Version::Redis(8, 0, 0)));
        assert_eq!(of("redis_mode:sentinel\r\n"), None);
        assert_eq!(Version::printed("Redis server v=7.0.15 sha=0 bits=64"), Some(Version::Redis(7, 0, 15)));
        assert_eq!(Version::printed("Valkey server v=9.1.2 sha=0"), Some(Version::Valkey(9, 1, 2)));
        assert!(Version::Valkey(9, 1, 2).quotes_passwords() && !Version::Valkey(9, 1, 0).quotes_passwords());
        assert!(!Version::Redis(12, 0, 0).quotes_passwords());
    }
}
