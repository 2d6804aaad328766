//! What a failover needs of a Redis server, and whether it takes that from us.
//!
//! It is rehearsed: inside `MULTI` a server looks a command up and checks the right to it at once, and executes nothing. The
//! rehearsal begins with a command that no server takes, so that its `EXEC` is always `EXECABORT`. All the same, each command
//! of it is one that does no harm where it is executed: to be safe also where the right to `MULTI` is taken away between the
//! two looks.

use std::collections::BTreeMap;

use super::command::{Command, command};
use super::hello::{HELLO_CHANNEL, NO_HELLO};
use super::reply::Reply;

/// A command, by the right to it as an ACL has it: `config|rewrite`.
pub type Right = &'static str;

/// What a Sentinel sends to a Redis server and can't do without (`sentinel.c`: `sentinelReconnectInstance`,
/// `sentinelSendPeriodicCommands`, `sentinelSendSlaveOf`; the same in Redis 6.2 to 8.0 and in Valkey).
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

/// What it sends to a server that a script keeps busy, before it takes it for down.
pub const SCRIPT_KILL: Right = "script|kill";

/// What Valkey 9.0.0 sends beside that.
pub const FAILOVER: Right = "failover";

/// What the runner itself sends to attach a replica.
pub const REPLICAOF: Right = "replicaof";

/// What the runner sends to have a replica come up sooner.
pub const REPLCONF: Right = "replconf";

/// Has a replica tell its master at once how far it is, as it does once a second. There is no answer to it: `replconfCommand` in
/// `replication.c`, the same from Redis 6.2 to 8.0 and in Valkey.
pub fn confirm() -> Command {
    command!("REPLCONF", "GETACK", "*")
}

/// Why a command is not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lack {
    /// The user has no right to it.
    Denied,
    /// The server knows no such command: `rename-command` took it away.
    Unknown,
}

/// The commands that a server does not take from us.
pub type Lacks = BTreeMap<Right, Lack>;

/// A command that no server takes, and that spoils a transaction: it lacks a word. How many words a command has is looked at
/// before the right to it.
fn refused() -> Command {
    command!("ECHO")
}

/// Whether the rehearsal may be held: it has to be [`may_rehearse`]d before.
pub fn question() -> [Command; 3] {
    [command!("MULTI"), refused(), command!("EXEC")]
}

/// What the replies to [`question`] say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    Ready,
    /// The user may not, or the server does not know, the one or the other.
    Lacks(Right, Lack),
    /// The transaction could be begun and not ended: the connection is of no use any more.
    Stuck(Option<Lack>),
    /// It does not begin one at this moment.
    NotNow,
}

pub fn may_rehearse(replies: &[Reply]) -> Stage {
    let [multi, _, exec] = replies else { unreachable!("one reply for each command of `question`") };
    match (multi, exec) {
        (Err(_), _) => lack(multi).map_or(Stage::NotNow, |lack| Stage::Lacks("multi", lack)),
        // It is given up with the reason, since 6.2 (`execCommandAbort`): `EXECABORT Transaction discarded because of: NOPERM …`.
        (Ok(_), Err(error)) if error.detail.contains("because of: NOPERM") => {
            Stage::Lacks("exec", Lack::Denied)
        }
        (Ok(_), Err(error)) if error.code != "EXECABORT" => Stage::Stuck(lack(exec)),
        (Ok(_), _) => Stage::Ready,
    }
}

/// What is gone through with every server.
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

/// What a Sentinel sends, to be asked about for another user: `ACL DRYRUN` (7.0) tells without executing it. `failover`: whether
/// it sends [`FAILOVER`] as well.
pub fn dry_run(failover: bool) -> Vec<(Right, Command)> {
    let is_sent = |right: &Right| OF_SENTINEL.contains(right) || (failover && *right == FAILOVER);
    let parts = of_failover().into_iter().filter(|(right, _)| is_sent(right));
    [("multi", command!("MULTI")), ("exec", command!("EXEC"))].into_iter().chain(parts).collect()
}

/// What the runner sends to the master in a change of master ([`handover`]).
///
/// [`handover`]: crate::system::handover
pub fn of_handover() -> Vec<(Right, Command)> {
    vec![
        ("client|pause", pause(0)),
        ("client|unpause", unpause()),
        (REPLICAOF, command!("REPLICAOF", "127.0.0.1", "no-port")),
    ]
}

/// Has a server keep all writes waiting for so many milliseconds from now, or longer if it was told so before (`WRITE` since 6.2).
pub fn pause(milliseconds: u128) -> Command {
    command!("CLIENT", "PAUSE", milliseconds, "WRITE")
}

pub fn unpause() -> Command {
    command!("CLIENT", "UNPAUSE")
}

/// What is sent once a server has been found [`Stage::Ready`].
pub fn rehearsal(parts: &[(Right, Command)]) -> Vec<Command> {
    let parts = parts.iter().map(|(_, command)| command.clone());
    [command!("MULTI"), refused()].into_iter().chain(parts).chain([command!("EXEC")]).collect()
}

/// What the replies to [`rehearsal`] say.
pub fn lacking(parts: &[(Right, Command)], replies: &[Reply]) -> Lacks {
    let answers = replies.get(2..).unwrap_or_default().iter().zip(parts);
    answers.filter_map(|(reply, (right, _))| Some((*right, lack(reply)?))).collect()
}

/// Other errors come of the moment: a server that is out of memory (`OOM`) queues no command at all.
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
        assert_eq!(may_rehearse(&[ok(), wrong(), abort()]), Stage::Ready);
        assert_eq!(
            may_rehearse(&[error("NOPERM no"), wrong(), error("ERR EXEC without MULTI")]),
            Stage::Lacks("multi", Lack::Denied)
        );
        assert_eq!(may_rehearse(&[ok(), wrong(), error("NOPERM no")]), Stage::Stuck(Some(Lack::Denied)));
        let given_up = error(
            "EXECABORT Transaction discarded because of: NOPERM this user has no permissions to run the 'exec'",
        );
        assert_eq!(may_rehearse(&[ok(), wrong(), given_up]), Stage::Lacks("exec", Lack::Denied));
        let now = error("OOM command not allowed when used memory > 'maxmemory'.");
        assert_eq!(may_rehearse(&[now.clone(), wrong(), error("ERR EXEC without MULTI")]), Stage::NotNow);
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
