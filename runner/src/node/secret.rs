//! Texts that must not be shown.

use std::path::{Path, PathBuf};
use std::{fmt, fs, io};

/// The settings of servers and Sentinels whose value must not be shown, as they are named in a command or a
/// configuration file. All code that prints a setting asks [`is_secret_setting`].
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

/// Whether the value after this word must not be shown.
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

    /// From a file. A line break at its end is dropped, because editors add one. `None`: the file is empty.
    ///
    /// # Errors
    ///
    /// If the file can't be read, or is not text.
    pub fn from_file(path: &Path) -> io::Result<Option<Self>> {
        let text = fs::read_to_string(path)?;
        let text = text.trim_end_matches(['\r', '\n']);
        Ok((!text.is_empty()).then(|| Self::new(text)))
    }

    /// The text itself. Only the code that sends it may call this.
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

/// A user and its password.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Login {
    /// The ACL user. `None` is the user `default`.
    pub username: Option<String>,
    pub password: Secret,
}

/// A second password, tried if a server does not accept the first one.
#[derive(Debug, Clone)]
pub enum OtherPassword {
    /// The new password that replaces the first one.
    New(Secret),
    /// The file from which the first password was read. It may contain a new password by now.
    File(PathBuf),
}

impl OtherPassword {
    /// The password. `None`: the file is empty or can't be read at this moment.
    pub fn password(&self) -> Option<Secret> {
        match self {
            Self::New(password) => Some(password.clone()),
            Self::File(path) => Secret::from_file(path).ok().flatten(),
        }
    }
}

/// The ACL user of a client that names none.
pub const DEFAULT: &str = "default";

impl Login {
    /// The ACL user, also if none is named.
    pub fn user(&self) -> &str {
        self.username.as_deref().unwrap_or(DEFAULT)
    }

    /// The first character that a Sentinel can't keep in its file, in words: a control character, or a blank
    /// or a quote unless the Sentinel writes passwords in quotes.
    pub fn oddity(&self, in_quotes: bool) -> Option<String> {
        let chars = self.username.iter().flat_map(|name| name.chars()).chain(self.password.reveal().chars());
        let mut chars = chars.filter_map(|char| match char {
            char if char.is_control() => Some(format!("a control character (U+{:04X})", u32::from(char))),
            _ if in_quotes => None,
            '\'' | '"' => Some(format!("a quote ({char})")),
            char if char.is_whitespace() => Some("a blank".to_owned()),
            _ => None,
        });
        chars.next()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_sentinel_cannot_keep_is_named() {
        let oddity = |password: &str, in_quotes| {
            Login { username: None, password: Secret::new(password) }.oddity(in_quotes)
        };
        for fine in ["s3cret", "a\\b", "#1", "pässwort", "%$!;"] {
            assert_eq!(oddity(fine, false), None, "{fine}");
        }
        assert_eq!(oddity("a b", false).unwrap(), "a blank");
        assert_eq!(oddity("it's", false).unwrap(), "a quote (')");
        assert_eq!(oddity("a\"b", false).unwrap(), "a quote (\")");
        assert_eq!(oddity("a\nb", true).unwrap(), "a control character (U+000A)");
        assert_eq!(oddity("a b'\"", true), None);
        let user = Login { username: Some("two words".into()), password: Secret::new("x") };
        assert_eq!(user.oddity(false).unwrap(), "a blank");
    }
}
