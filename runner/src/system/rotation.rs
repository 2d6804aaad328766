//! Another password for an ACL user: which commands a Redis server needs, as far as it is not done already.
//!
//! There are three steps. Each is done on all servers before the next one begins:
//!
//! 1. every server accepts the new password beside the old one;
//! 2. replicas and Sentinels log in with the new password;
//! 3. every server drops the old password.
//!
//! Each step depends only on what the servers answer, so a run continues what a killed run has begun.

use crate::node::command::{Command, command};
use crate::node::endpoint::Endpoint;
use crate::node::redis::set;
use crate::node::rights::Right;
use crate::node::secret::{DEFAULT, Login, Secret};
use crate::node::users::{Passwords, User, hash};
use crate::system::decide::{Refusal, RefusalKind};

/// Whose password is changed, and to what.
#[derive(Debug, Clone)]
pub struct Rotation {
    /// The ACL user.
    pub user: String,
    pub old: Secret,
    pub new: Secret,
}

/// What a run does with the old password in the end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OldPassword {
    Kept,
    Dropped,
}

impl Rotation {
    /// Whether this login is the one whose password is changed.
    pub fn is_of(&self, login: &Login) -> bool {
        login.user() == self.user
    }

    /// Checks that the password of this user can be changed on this server.
    ///
    /// # Errors
    ///
    /// Why it can't, and what to do about it.
    pub fn check(&self, node: &Endpoint, passwords: &Passwords) -> Result<(), Refusal> {
        let user = &self.user;
        let refused = |reason: String, hint: String| {
            Err(Refusal { kind: RefusalKind::Usage, reason: format!("{node}: {reason}"), hint })
        };
        match &passwords.user {
            None => refused(
                format!("there is no ACL user `{user}`"),
                format!("create the user on {node}, or name another one with --user"),
            ),
            Some(found) if found.nopass => refused(
                format!(
                    "the ACL user `{user}` needs no password, and a password would lock out all clients \
                     that give none"
                ),
                "set the first password by hand; every client needs the password from that moment on".into(),
            ),
            Some(found) if !found.on => refused(
                format!("the ACL user `{user}` is off"),
                format!("ACL SETUSER {user} on, on {node}; or name another user with --user"),
            ),
            Some(found) if !found.accepts(&self.old) && !found.accepts(&self.new) => refused(
                format!("the ACL user `{user}` has neither the old nor the new password"),
                "check --old-password-file (without it: --redis-password-file or \
                 --replication-password-file) and --new-password-file"
                    .into(),
            ),
            Some(_) => Ok(()),
        }
    }

    /// The commands that make a server accept the new password.
    pub fn accept(&self, passwords: &Passwords) -> Vec<Command> {
        if passwords.user.as_ref().is_some_and(|user| user.accepts(&self.new)) {
            return Vec::new();
        }
        vec![command!("ACL", "SETUSER", self.user, format!("#{}", hash(&self.new)))]
    }

    /// The commands that make a server log in to its master with the new password.
    pub fn switch(&self, passwords: &Passwords) -> Vec<Command> {
        let uses_another = |login: &&Login| self.is_of(login) && login.password != self.new;
        let switched = passwords.master_login.as_ref().filter(uses_another);
        switched.map(|_| set("masterauth", self.new.reveal())).into_iter().collect()
    }

    /// The commands that make a server drop the old password.
    ///
    /// `requirepass` sets the only password of `default`, and removes all others
    /// (`ACLUpdateDefaultUserPassword` in `acl.c`). If the user has further passwords, the same transaction
    /// adds them again.
    pub fn drop_old(&self, passwords: &Passwords) -> Vec<Command> {
        let Some(user) = &passwords.user else { return Vec::new() };
        let has_old = user.accepts(&self.old);
        match &passwords.requirepass {
            Some(required) if self.user == DEFAULT => {
                if !has_old && *required != self.old {
                    return Vec::new();
                }
                let others: Vec<String> = self.others(user).map(|other| format!("#{other}")).collect();
                let mut commands = vec![command!("MULTI"), set("requirepass", self.new.reveal())];
                if !others.is_empty() {
                    let words = ["ACL", "SETUSER", DEFAULT].map(str::to_owned).into_iter().chain(others);
                    commands.push(Command::new(words));
                }
                commands.push(command!("EXEC"));
                commands
            }
            // As a hash, because a server that lacks the password repeats the argument in its error.
            _ if has_old => vec![command!("ACL", "SETUSER", self.user, format!("!{}", hash(&self.old)))],
            _ => Vec::new(),
        }
    }

    /// The commands that make a server write its files. They are sent even if nothing is left to change: a
    /// killed run may have changed the server and not its files.
    pub fn write(&self, passwords: &Passwords) -> Vec<Command> {
        let is_a_setting = passwords.master_login.as_ref().is_some_and(|login| self.is_of(login))
            || (self.user == DEFAULT && passwords.requirepass.is_some());
        let users = passwords.aclfile.then(|| command!("ACL", "SAVE"));
        let settings = (is_a_setting || !passwords.aclfile).then(|| command!("CONFIG", "REWRITE"));
        users.into_iter().chain(settings).collect()
    }

    /// How many passwords the user has beside the old and the new one.
    pub fn further(&self, passwords: &Passwords) -> usize {
        passwords.user.as_ref().map_or(0, |user| self.others(user).count())
    }

    /// The hashes of the user's passwords beside the old and the new one.
    fn others<'a>(&self, user: &'a User) -> impl Iterator<Item = &'a String> + use<'a> {
        let known = [hash(&self.old), hash(&self.new)];
        user.hashes.iter().filter(move |one| !known.contains(one))
    }

    /// All commands that a server still needs, up to the requested end.
    pub fn left(&self, passwords: &Passwords, end: OldPassword) -> Vec<Command> {
        let dropped = match end {
            OldPassword::Kept => Vec::new(),
            OldPassword::Dropped => self.drop_old(passwords),
        };
        self.accept(passwords).into_iter().chain(self.switch(passwords)).chain(dropped).collect()
    }

    /// The commands that a server has to accept, for a rehearsal. None of them would do harm.
    pub fn rights(&self, passwords: &Passwords) -> Vec<(Right, Command)> {
        let login = passwords.master_login.as_ref().and_then(|login| login.username.clone());
        let mut rights: Vec<(Right, Command)> = vec![
            ("acl|setuser", command!("ACL", "SETUSER", self.user)),
            ("config|set", set("masteruser", &login.unwrap_or_default())),
            ("config|rewrite", command!("CONFIG", "REWRITE")),
        ];
        if passwords.aclfile {
            rights.push(("acl|save", command!("ACL", "SAVE")));
        }
        rights
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rotation(user: &str) -> Rotation {
        Rotation { user: user.to_owned(), old: Secret::new("old"), new: Secret::new("new") }
    }

    /// A server whose user has these passwords. `login`: the user and the password that the server uses on
    /// its master.
    fn server(known: &[&str], required: Option<&str>, login: Option<(&str, &str)>) -> Passwords {
        let hashes = known.iter().map(|password| hash(&Secret::new(*password))).collect();
        Passwords {
            user: Some(User { on: true, nopass: false, hashes }),
            requirepass: required.map(Secret::new),
            master_login: login.map(|(username, password)| Login {
                username: Some(username.to_owned()).filter(|name| !name.is_empty()),
                password: Secret::new(password),
            }),
            aclfile: false,
        }
    }

    fn words(commands: &[Command]) -> Vec<String> {
        commands.iter().map(|command| command.words().join(" ")).collect()
    }

    #[test]
    fn each_step_sends_what_a_server_lacks_and_nothing_else() {
        let third = format!("#{}", hash(&Secret::new("third")));
        let put_back = format!("ACL SETUSER default {third}");
        let [old, new] = ["old", "new"].map(|password| hash(&Secret::new(password)));
        let [add_ops, add_default] = ["ops", "default"].map(|user| format!("ACL SETUSER {user} #{new}"));
        let [drop_ops, drop_default] = ["ops", "default"].map(|user| format!("ACL SETUSER {user} !{old}"));
        let [add_ops, add_default, drop_ops, drop_default] =
            [&add_ops, &add_default, &drop_ops, &drop_default].map(|command| [command.as_str()]);
        // The user, what the server has, and what each of the three steps sends.
        type Row<'a> = (&'a str, Passwords, &'a [&'a str], &'a [&'a str], &'a [&'a str]);
        let with_third = ["MULTI", "CONFIG SET requirepass new", put_back.as_str(), "EXEC"];
        let with_requirepass: &[&str] = &["MULTI", "CONFIG SET requirepass new", "EXEC"];
        let rows: Vec<Row<'_>> = vec![
            (
                "ops",
                server(&["old"], None, Some(("ops", "old"))),
                &add_ops,
                &["CONFIG SET masterauth new"],
                &drop_ops,
            ),
            // `requirepass` is the password of the user `default`.
            ("ops", server(&["old", "new"], Some("old"), Some(("replica", "old"))), &[], &[], &drop_ops),
            (
                "default",
                server(&["old"], Some("old"), Some(("", "old"))),
                &add_default,
                &["CONFIG SET masterauth new"],
                with_requirepass,
            ),
            ("default", server(&["old", "new"], None, None), &[], &[], &drop_default),
            (
                "default",
                server(&["old", "new", "third"], Some("old"), Some(("", "new"))),
                &[],
                &[],
                &with_third,
            ),
            // The old password was removed from the user, but not from the setting.
            ("default", server(&["new"], Some("old"), Some(("", "new"))), &[], &[], with_requirepass),
            ("default", server(&["new"], Some("new"), Some(("", "new"))), &[], &[], &[]),
        ];
        for (user, passwords, accept, switch, dropped) in rows {
            let rotation = rotation(user);
            assert_eq!(words(&rotation.accept(&passwords)), accept, "{user} {passwords:?}");
            assert_eq!(words(&rotation.switch(&passwords)), switch, "{user} {passwords:?}");
            assert_eq!(words(&rotation.drop_old(&passwords)), dropped, "{user} {passwords:?}");
        }
    }

    #[test]
    fn a_change_is_written_to_every_file_that_holds_it() {
        let written = |user: &str, aclfile: bool, required: Option<&str>, login: Option<(&str, &str)>| {
            let passwords = Passwords { aclfile, ..server(&["old"], required, login) };
            words(&rotation(user).write(&passwords))
        };
        assert_eq!(written("ops", false, None, None), ["CONFIG REWRITE"]);
        assert_eq!(written("ops", true, Some("old"), Some(("replica", "old"))), ["ACL SAVE"]);
        assert_eq!(written("ops", true, None, Some(("ops", "old"))), ["ACL SAVE", "CONFIG REWRITE"]);
        assert_eq!(written("default", true, Some("old"), None), ["ACL SAVE", "CONFIG REWRITE"]);
    }

    #[test]
    fn a_user_without_a_password_of_ours_is_refused() {
        let node = Endpoint::new("10.0.0.7", 6379);
        let refused = |user: Option<User>| {
            let passwords = Passwords { user, ..server(&[], None, None) };
            let refusal = rotation("ops").check(&node, &passwords).unwrap_err();
            assert!(refusal.reason.starts_with("10.0.0.7:6379: "), "{}", refusal.reason);
            refusal.reason
        };
        let user = server(&["old"], None, None).user.unwrap();
        assert!(refused(None).contains("no ACL user `ops`"));
        assert!(refused(Some(User { nopass: true, ..user.clone() })).contains("lock out"));
        assert!(refused(Some(User { on: false, ..user.clone() })).contains("is off"));
        assert!(refused(server(&["other"], None, None).user).contains("neither"));
        for known in ["old", "new"] {
            assert_eq!(rotation("ops").check(&node, &server(&[known], None, None)), Ok(()));
        }
    }
}
