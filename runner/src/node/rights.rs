//! The rights that a failover needs on a Redis server, and whether our user has them.
//!
//! A rehearsal finds these rights. Inside `MULTI`, a server looks a command up and checks the right to it at
//! once, but executes nothing. The rehearsal begins with a command that every server rejects, so its `EXEC`
//! always ends in `EXECABORT`. Each command of the rehearsal is harmless even if it is executed. So the
//! rehearsal stays safe if the right to `MULTI` is revoked between [`question`] and [`rehearsal`].

use std::collections::BTreeMap;

use super::command::{Command, command};
use super::hello::{HELLO_CHANNEL, NO_HELLO};
use super::reply::Reply;

/// A command, named as in an ACL rule: `config|rewrite`.
pub type Right = &'static str;

/// The commands that a Sentinel sends to a Redis server and can't do without (`sentinel.c`:
/// `sentinelReconnectInstance`, `sentinelSendPeriodicCommands`, `sentinelSendSlaveOf`; the same in Redis 6.2
/// to 8.0 and in Valkey).
pub const OF_SENTINEL: [Right; 10] = [
    "multi",
    "exec",
    "ping",
    "info",
    "publish",
    "subscribe",
    "client|setname",
    "slaveof",
    "config|rewrite",
    "client|kill",
];

/// Sent by a Sentinel to a server that is busy with a script, before the Sentinel marks the server as down.
pub const SCRIPT_KILL: Right = "script|kill";

/// Sent by Valkey 9.0.0 in addition to [`OF_SENTINEL`].
pub const FAILOVER: Right = "failover";

/// Sent by the runner to attach a replica.
pub const REPLICAOF: Right = "replicaof";

/// Sent by the runner to make a replica ready sooner.
pub const REPLCONF: Right = "replconf";

/// Makes a replica confirm its offset to its master at once. Otherwise it confirms once a second. There is no
/// reply: `replconfCommand` in `replication.c`, the same from Redis 6.2 to 8.0 and in Valkey.
pub fn confirm() -> Command {
    command!("REPLCONF", "GETACK", "*")
}

/// Why a server rejects a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lack {
    /// The user has no right to the command.
    Denied,
    /// The server does not know the command: `rename-command` removed it.
    Unknown,
}

/// The commands that a server rejects from our user.
pub type Lacks = BTreeMap<Right, Lack>;

/// A command that every server rejects, so that the transaction is aborted: it has too few arguments. Servers
/// check the number of arguments before the right.
fn refused() -> Command {
    command!("ECHO")
}

/// Asks whether a rehearsal is possible. Read the replies with [`may_rehearse`] before a [`rehearsal`].
pub fn question() -> [Command; 3] {
    [command!("MULTI"), refused(), command!("EXEC")]
}

/// What the replies to [`question`] mean.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RehearsalCheck {
    Ready,
    /// `MULTI` or `EXEC` is denied, or unknown to the server.
    Lacks(Right, Lack),
    /// The transaction was begun but can't be ended: the connection is unusable from now on.
    Stuck(Option<Lack>),
    /// The server does not begin a transaction at this moment.
    NotNow,
}

pub fn may_rehearse(replies: &[Reply]) -> RehearsalCheck {
    let [multi, _, exec] = replies else { unreachable!("one reply for each command of `question`") };
    match (multi, exec) {
        (Err(_), _) => {
            lack(multi).map_or(RehearsalCheck::NotNow, |lack| RehearsalCheck::Lacks("multi", lack))
        }
        // Since 6.2 `EXEC` fails with the reason (`execCommandAbort`): `EXECABORT Transaction discarded
        // because of: NOPERM …`.
        (Ok(_), Err(error)) if error.detail.contains("because of: NOPERM") => {
            RehearsalCheck::Lacks("exec", Lack::Denied)
        }
        (Ok(_), Err(error)) if error.code != "EXECABORT" => RehearsalCheck::Stuck(lack(exec)),
        (Ok(_), _) => RehearsalCheck::Ready,
    }
}

/// The commands that are rehearsed on every server.
pub fn of_failover() -> Vec<(Right, Command)> {
    vec![
        ("ping", command!("PING")),
        ("info", command!("INFO", "server")),
        ("publish", command!("PUBLISH", HELLO_CHANNEL, NO_HELLO)),
        ("subscribe", command!("SUBSCRIBE", HELLO_CHANNEL)),
        ("client|setname", command!("CLIENT", "SETNAME", "")),
        ("slaveof", command!("SLAVEOF", "127.0.0.1", "no-port")),
        (REPLICAOF, command!("REPLICAOF", "127.0.0.1", "no-port")),
        ("config|rewrite", command!("CONFIG", "REWRITE")),
        ("client|kill", command!("CLIENT", "KILL", "TYPE", "nobody")),
        (SCRIPT_KILL, command!("SCRIPT", "KILL")),
        (FAILOVER, command!("FAILOVER", "ABORT")),
        (REPLCONF, confirm()),
    ]
}

/// The commands that a Sentinel sends, for `ACL DRYRUN` (7.0) with another user: it checks the right without
/// executing the command. `failover`: whether the Sentinel sends [`FAILOVER`] as well.
pub fn dry_run(failover: bool) -> Vec<(Right, Command)> {
    let is_sent = |right: &Right| OF_SENTINEL.contains(right) || (failover && *right == FAILOVER);
    let parts = of_failover().into_iter().filter(|(right, _)| is_sent(right));
    [("multi", command!("MULTI")), ("exec", command!("EXEC"))].into_iter().chain(parts).collect()
}

/// The commands that the runner sends to the master in a planned failover ([`handover`]).
///
/// [`handover`]: crate::system::handover
pub fn of_handover() -> Vec<(Right, Command)> {
    vec![
        ("client|pause", pause(0)),
        ("client|unpause", unpause()),
        (REPLICAOF, command!("REPLICAOF", "127.0.0.1", "no-port")),
    ]
}

/// Makes a server hold back all writes for that many milliseconds from now, or longer if an earlier pause
/// lasts longer (`WRITE` since 6.2).
pub fn pause(milliseconds: u128) -> Command {
    command!("CLIENT", "PAUSE", milliseconds, "WRITE")
}

pub fn unpause() -> Command {
    command!("CLIENT", "UNPAUSE")
}

/// The commands to send after the server was found [`RehearsalCheck::Ready`].
pub fn rehearsal(parts: &[(Right, Command)]) -> Vec<Command> {
    let parts = parts.iter().map(|(_, command)| command.clone());
    [command!("MULTI"), refused()].into_iter().chain(parts).chain([command!("EXEC")]).collect()
}

/// Reads the replies to [`rehearsal`].
pub fn lacking(parts: &[(Right, Command)], replies: &[Reply]) -> Lacks {
    let answers = replies.get(2..).unwrap_or_default().iter().zip(parts);
    answers.filter_map(|(reply, (right, _))| Some((*right, lack(reply)?))).collect()
}

/// Other errors are momentary. For example, a server that is out of memory (`OOM`) queues no command.
fn lack(reply: &Reply) -> Option<Lack> {
    match reply {
        Err(error) if error.code == "NOPERM" => Some(Lack::Denied),
        Err(error)
            if error.detail.contains("unknown command") || error.detail.contains("nknown subcommand") =>
        {
            Some(Lack::Unknown)
        }
        Ok(_) | Err(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use redis::Value;

    use super::*;
    use crate::node::reply::ServerError;

    #[test]
    fn the_rehearsal_changes_nothing_and_covers_what_sentinel_sends() {
        let rehearsed: Vec<Right> = of_failover().into_iter().map(|(right, _)| right).collect();
        for right in OF_SENTINEL.iter().filter(|right| !["multi", "exec"].contains(right)) {
            assert!(rehearsed.contains(right), "{right}");
        }
        let sent = rehearsal(&of_failover());
        assert_eq!((sent[0].name(), sent[sent.len() - 1].name()), ("MULTI", "EXEC"));
        assert_eq!(sent[1], refused());
    }

    #[test]
    fn replies_are_read_as_what_is_lacking() {
        let error = |line: &str| -> Reply { Err(ServerError::parse(line)) };
        let queued = || -> Reply { Ok(Value::SimpleString("QUEUED".into())) };
        let ok = || -> Reply { Ok(Value::Okay) };
        let wrong = || error("ERR wrong number of arguments for 'ping' command");
        let abort = || error("EXECABORT Transaction discarded because of previous errors.");
        assert_eq!(may_rehearse(&[ok(), wrong(), abort()]), RehearsalCheck::Ready);
        assert_eq!(
            may_rehearse(&[error("NOPERM no"), wrong(), error("ERR EXEC without MULTI")]),
            RehearsalCheck::Lacks("multi", Lack::Denied)
        );
        assert_eq!(
            may_rehearse(&[ok(), wrong(), error("NOPERM no")]),
            RehearsalCheck::Stuck(Some(Lack::Denied))
        );
        let given_up = error(
            "EXECABORT Transaction discarded because of: NOPERM this user has no permissions to run the 'exec'",
        );
        assert_eq!(may_rehearse(&[ok(), wrong(), given_up]), RehearsalCheck::Lacks("exec", Lack::Denied));
        let now = error("OOM command not allowed when used memory > 'maxmemory'.");
        assert_eq!(
            may_rehearse(&[now.clone(), wrong(), error("ERR EXEC without MULTI")]),
            RehearsalCheck::NotNow
        );
        let mut replies = vec![ok(), wrong()];
        replies.extend(of_failover().iter().map(|(right, _)| match *right {
            "config|rewrite" => error("ERR unknown command 'CONFIG', with args beginning with: 'REWRITE'"),
            "slaveof" => error("NOPERM User ops has no permissions to run the 'slaveof' command"),
            "ping" => now.clone(),
            _ => queued(),
        }));
        replies.push(abort());
        let expected = [("config|rewrite", Lack::Unknown), ("slaveof", Lack::Denied)].into();
        assert_eq!(lacking(&of_failover(), &replies), expected);
    }
}
