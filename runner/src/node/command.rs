//! A command, as it is sent and as it is shown to a person.

use std::fmt;

use super::hello::NO_HELLO;
use super::secret::is_secret_setting;

/// The words of one command, as they are sent. `Debug` leaves the secrets out.
#[derive(Clone, PartialEq, Eq)]
pub struct Command(Vec<String>);

impl fmt::Debug for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.shown())
    }
}

impl Command {
    pub fn new<W: Into<String>>(words: impl IntoIterator<Item = W>) -> Self {
        Self(words.into_iter().map(Into::into).collect())
    }

    #[must_use]
    pub fn name(&self) -> &str {
        self.0.first().map(String::as_str).unwrap_or_default()
    }

    /// All words, including the secrets.
    pub(crate) fn words(&self) -> &[String] {
        &self.0
    }

    /// Whether the command changes anything that outlasts the connection.
    #[must_use]
    pub fn changes(&self) -> bool {
        let second = self.0.get(1).map(String::as_str).unwrap_or_default();
        match self.name() {
            "REPLICAOF" => true,
            "PUBLISH" => self.0.get(2).is_some_and(|text| text != NO_HELLO),
            "CONFIG" => matches!(second, "SET" | "REWRITE"),
            "CLIENT" => matches!(second, "PAUSE" | "UNPAUSE"),
            "ACL" => matches!(second, "SETUSER" | "SAVE"),
            "SENTINEL" => {
                matches!(second, "MONITOR" | "SET" | "RESET" | "REMOVE" | "FAILOVER" | "FLUSHCONFIG")
            }
            _ => false,
        }
    }

    /// The words as a person would type them, with secrets left out.
    #[must_use]
    pub fn shown(&self) -> String {
        let mut shown = Vec::with_capacity(self.0.len());
        let mut hidden = 0_usize;
        for word in &self.0 {
            if hidden > 0 {
                hidden -= 1;
                shown.push("***".to_owned());
                continue;
            }
            if self.name() == "ACL" && word.starts_with(['>', '<', '#', '!']) {
                shown.push(format!("{}***", &word[..1]));
            } else if word.is_empty() || word.contains(char::is_whitespace) {
                shown.push(format!("\"{word}\""));
            } else {
                shown.push(word.clone());
            }
            // `rename-command` is followed by two names.
            hidden = match word.as_str() {
                "rename-command" => 2,
                word => usize::from(is_secret_setting(word)),
            };
        }
        shown.join(" ")
    }
}

/// Builds a [`Command`] from words of any type that can be displayed.
macro_rules! command {
    ($($word:expr),+ $(,)?) => {
        $crate::node::command::Command::new([$($word.to_string()),+])
    };
}
pub(crate) use command;

#[cfg(test)]
mod tests {
    #[test]
    fn a_shown_command_hides_the_password() {
        let shown = command!("SENTINEL", "SET", "mymaster", "auth-pass", "s3cret", "quorum", 2).shown();
        assert_eq!(shown, "SENTINEL SET mymaster auth-pass *** quorum 2");
        let shown = command!("ACL", "SETUSER", "ops", ">s3 cret", "<old", "on").shown();
        assert_eq!(shown, "ACL SETUSER ops >*** <*** on");
    }
}
