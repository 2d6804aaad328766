//! Texts that must not be seen.

use std::fmt;

/// The settings of servers, and of Sentinels, whose value must not be seen, as they stand in a command or a configuration
/// file. Whatever prints one asks here.
const SECRET_SETTINGS: [&str; 9] = [
    "auth-pass",
    "masterauth",
    "primaryauth",
    "requirepass",
    "sentinel-pass",
    "tls-client-key-file-pass",
    "tls-key-file-pass",
    "user",
    "rename-command",
];

/// Whether what comes after this word must not be seen.
pub fn is_secret_setting(word: &str) -> bool {
    SECRET_SETTINGS.iter().any(|secret| word.eq_ignore_ascii_case(secret))
}

/// A password or a token. It prints as `***`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Secret(String);

impl Secret {
    /// From what was typed or read.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The text itself, for the one place that sends it.
    #[must_use]
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

/// Who a client says it is, with the password that shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Login {
    /// The ACL user; none is the user `default`.
    pub username: Option<String>,
    pub password: Secret,
}
