//! The text of an `INFO` reply.

use std::collections::HashMap;

/// The fields of an `INFO` reply.
#[derive(Debug, Default)]
pub struct Info(pub(super) HashMap<String, String>);

impl Info {
    /// Reads `name:value` lines and ignores all other text.
    #[must_use]
    pub fn parse(text: &str) -> Self {
        let fields = text.lines().filter_map(|line| line.split_once(':'));
        Self(fields.map(|(name, value)| (name.to_owned(), value.trim_end().to_owned())).collect())
    }

    #[must_use]
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }

    #[must_use]
    pub fn number<N: std::str::FromStr>(&self, name: &str) -> Option<N> {
        self.get(name)?.parse().ok()
    }

    /// The mode of the server, from the `server` section: `standalone`, `sentinel` or `cluster`. Valkey 8 has
    /// another name for the field.
    #[must_use]
    pub fn mode(&self) -> Option<&str> {
        self.get("redis_mode").or_else(|| self.get("server_mode"))
    }
}

#[cfg(test)]
mod tests {
    use super::Info;

    #[test]
    fn what_a_server_runs_as_is_read_from_redis_and_from_valkey() {
        assert_eq!(Info::parse("redis_version:7.0.15\r\nredis_mode:sentinel\r\n").mode(), Some("sentinel"));
        assert_eq!(Info::parse("valkey_version:8.0.1\r\nserver_mode:cluster\r\n").mode(), Some("cluster"));
        assert_eq!(Info::parse("").mode(), None);
    }
}
