//! An ACL user of a Redis server, and the settings beside it that hold a password.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use redis::Value;
use sha2::{Digest as _, Sha256};

use super::command::{Command, command};
use super::reply::{Reply, ServerError, config_value, text};
use super::secret::{Login, Secret};

/// The settings that are read.
const SETTINGS: [&str; 4] = ["requirepass", "masteruser", "masterauth", "aclfile"];

/// The commands that read them, for one pipeline.
pub fn observation(user: &str) -> Vec<Command> {
    let settings = SETTINGS.map(|name| command!("CONFIG", "GET", name));
    std::iter::once(command!("ACL", "GETUSER", user)).chain(settings).collect()
}

/// The passwords of one ACL user on one server, and where the server keeps them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Passwords {
    /// `None`: the server has no such user.
    pub user: Option<User>,
    /// The value of `requirepass`. It is the password of the user `default` only.
    pub requirepass: Option<Secret>,
    /// The login that the server uses on its master.
    pub master_login: Option<Login>,
    /// Whether the users are in a separate file, which `ACL SAVE` writes. If not, `CONFIG REWRITE` writes
    /// them.
    pub aclfile: bool,
}

/// An ACL user.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct User {
    /// Whether the user is on. If not, no client can log in as this user.
    pub on: bool,
    /// Whether clients log in as this user without a password, or with any password.
    pub nopass: bool,
    /// The SHA-256 of each password, in hexadecimal digits.
    pub hashes: BTreeSet<String>,
}

impl User {
    pub fn accepts(&self, password: &Secret) -> bool {
        self.hashes.contains(&hash(password))
    }
}

/// The hash by which a server keeps a password: `ACLHashPassword` in `acl.c`, the same since Redis 6.0.
pub fn hash(password: &Secret) -> String {
    Sha256::digest(password.reveal()).iter().fold(String::new(), |mut hex, byte| {
        let _ = write!(hex, "{byte:02x}");
        hex
    })
}

impl Passwords {
    /// Reads the replies to [`observation`].
    ///
    /// # Errors
    ///
    /// The right that is missing, and the server's own error.
    pub fn parse(replies: &[Reply]) -> Result<Self, (&'static str, ServerError)> {
        let (users, settings) = replies.split_at(1);
        let user = users[0].as_ref().map_err(|error| ("+acl|getuser", error.clone()))?;
        let setting = |name: &str| {
            let index = SETTINGS.iter().position(|setting| *setting == name).expect("it is asked for");
            let value = settings[index].as_ref().map_err(|error| ("+config|get", error.clone()))?;
            Ok(config_value(value).filter(|value| !value.is_empty()))
        };
        let username = setting("masteruser")?;
        Ok(Self {
            user: parse_user(user),
            requirepass: setting("requirepass")?.map(Secret::new),
            master_login: setting("masterauth")?
                .map(|password| Login { username, password: Secret::new(password) }),
            aclfile: setting("aclfile")?.is_some(),
        })
    }
}

/// `ACL GETUSER`: names and values in turn. `flags` is a list of words, `passwords` a list of hashes.
fn parse_user(reply: &Value) -> Option<User> {
    let Value::Array(items) = reply else { return None };
    let list = |name: &str| {
        let value = items.chunks_exact(2).find(|pair| text(&pair[0]) == name).map(|pair| &pair[1]);
        match value {
            Some(Value::Array(words)) => words.iter().map(text).collect(),
            _ => BTreeSet::new(),
        }
    };
    let flags = list("flags");
    Some(User { on: flags.contains("on"), nopass: flags.contains("nopass"), hashes: list("passwords") })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn word(text: &str) -> Value {
        Value::BulkString(text.as_bytes().to_vec())
    }

    fn words(all: &[&str]) -> Value {
        Value::Array(all.iter().map(|text| word(text)).collect())
    }

    fn setting(name: &str, value: &str) -> Reply {
        Ok(words(&[name, value]))
    }

    #[test]
    fn a_user_and_the_settings_beside_it_are_read() {
        let old = hash(&Secret::new("old"));
        let user = Value::Array(vec![
            word("flags"),
            words(&["on"]),
            word("passwords"),
            words(&[&old]),
            word("keys"),
        ]);
        let mut replies = vec![
            Ok(user),
            setting("requirepass", "old"),
            setting("masteruser", ""),
            setting("masterauth", "s3cret"),
            setting("aclfile", ""),
        ];
        let read = Passwords::parse(&replies).unwrap();
        let user = read.user.as_ref().unwrap();
        assert!(
            user.on
                && !user.nopass
                && user.accepts(&Secret::new("old"))
                && !user.accepts(&Secret::new("new"))
        );
        assert_eq!(read.requirepass, Some(Secret::new("old")));
        assert_eq!(read.master_login, Some(Login { username: None, password: Secret::new("s3cret") }));
        assert!(!read.aclfile);
        assert!(!format!("{read:?}").contains("s3cret"));

        replies[0] = Ok(Value::Nil);
        assert_eq!(Passwords::parse(&replies).unwrap().user, None);
        replies[3] = Err(ServerError::parse("NOPERM no"));
        assert_eq!(Passwords::parse(&replies).unwrap_err().0, "+config|get");
    }

    #[test]
    fn a_password_is_hashed_as_a_server_does() {
        let digits = "5e884898da28047151d0e56f8dc6292773603d0d6aabbdd62a11ef721d1542d8";
        assert_eq!(hash(&Secret::new("password")), digits);
    }
}
