//! The result of a command: an exit code for scripts, and a word for programs.

use serde::Serialize;

/// The exit codes. [`MEANINGS`](exit_code::MEANINGS) documents them. `--help` and docs/exit-codes.md are
/// generated from it.
#[allow(missing_docs, reason = "each is in `MEANINGS`")]
pub mod exit_code {
    pub const OK: u8 = 0;
    pub const OTHER: u8 = 1;
    pub const USAGE: u8 = 2;
    pub const OUT_OF_TIME: u8 = 3;
    pub const REFUSED: u8 = 4;
    pub const UNUSABLE: u8 = 5;
    pub const NOT_VERIFIED: u8 = 6;
    pub const BROKER: u8 = 7;
    pub const INTERRUPTED: u8 = 130;
    pub const TERMINATED: u8 = 143;

    /// What each exit code means.
    pub const MEANINGS: [(u8, &str); 10] = [
        (
            OK,
            "success: the system is verified; a node was registered, deregistered or probed; the help was printed",
        ),
        (OTHER, "any other failure; `probe`: the check of the node failed"),
        (USAGE, "a flag or an environment variable is wrong"),
        (
            OUT_OF_TIME,
            "too few usable nodes have registered, or the system is not ready yet, for example during a \
             failover; `bootstrap` waits until --timeout, `status` and `verify` do not wait; `join`: the \
             server was not started, because its role was not known within --patience",
        ),
        (
            REFUSED,
            "refused: it would lose data or contradict the Sentinels; the refused change was not made; \
             before a refused failover, writes may have been paused for up to 2 s",
        ),
        (
            UNUSABLE,
            "a node can't be used as it is (password, right, protected mode, unwritable Sentinel file, \
             wrong kind); earlier changes of the run are not undone",
        ),
        (NOT_VERIFIED, "not verified: at least one check failed; changes of the run are not undone"),
        (BROKER, "the broker can't be reached, or does not accept the token"),
        (INTERRUPTED, "stopped by SIGINT"),
        (TERMINATED, "stopped by SIGTERM"),
    ];

    /// What `join` ends with after it has started its server.
    pub const OF_JOIN: &str = "after `join` has started the server, it ends with the server's exit code, \
         or with 128 plus the number of the signal that ended the server";
}

/// The result of a command, in one word.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
#[cfg_attr(test, derive(schemars::JsonSchema, serde::Deserialize))]
#[cfg_attr(test, schemars(rename = "Outcome"))]
pub enum OutcomeWord {
    /// The system is verified, and the run has changed something.
    Configured,
    /// The system is verified, and nothing had to be changed.
    AlreadyConfigured,
    /// A dry run: this is what would be done.
    Planned,
    /// The system was checked, and is verified.
    Verified,
    /// The node answers, and has the requested role and state.
    Probed,
    /// The node is registered.
    Registered,
    /// The node is no longer registered.
    Deregistered,
    /// The server that `join` has started has ended.
    Ended,
    /// Any other failure.
    Failed,
    /// A flag, or an environment variable, is wrong.
    Usage,
    /// Too few usable nodes have registered, or something else has to happen first.
    Incomplete,
    /// It would lose data, or contradict the Sentinels.
    Refused,
    /// A node can't be used as it is.
    Unusable,
    /// At least one check failed.
    NotVerified,
    /// The broker can't be reached, or does not accept the token.
    Broker,
    /// Stopped by SIGINT or SIGTERM.
    Stopped,
}
