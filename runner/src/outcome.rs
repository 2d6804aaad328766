//! What comes of a command: the exit code that says so to a script, and the word that says so to a machine.

use serde::Serialize;

/// The exit codes, each documented in `--help`.
pub mod exit_code {
    /// Configured and verified, or already so.
    pub const OK: u8 = 0;
    /// Anything else.
    pub const OTHER: u8 = 1;
    /// A flag or an environment variable is wrong.
    pub const USAGE: u8 = 2;
    /// Out of time: not enough usable nodes registered, or something that has to pass first did not.
    pub const OUT_OF_TIME: u8 = 3;
    /// It would lose data or contradict the Sentinels.
    pub const REFUSED: u8 = 4;
    /// A node can't be used as it is.
    pub const UNUSABLE: u8 = 5;
    /// Configured, but not verified in time.
    pub const NOT_VERIFIED: u8 = 6;
    /// The broker can't be reached or refuses the token.
    pub const BROKER: u8 = 7;
    /// Stopped by SIGINT.
    pub const INTERRUPTED: u8 = 130;
    /// Stopped by SIGTERM.
    pub const TERMINATED: u8 = 143;

    /// All of them.
    #[cfg(test)]
    pub const ALL: [u8; 10] =
        [OK, OTHER, USAGE, OUT_OF_TIME, REFUSED, UNUSABLE, NOT_VERIFIED, BROKER, INTERRUPTED, TERMINATED];
}

/// What came of a command, in one word.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
#[cfg_attr(test, derive(schemars::JsonSchema, serde::Deserialize))]
#[cfg_attr(test, schemars(rename = "Outcome"))]
pub enum OutcomeWord {
    /// The system is verified, and something had to be changed for it (exit code 0).
    Configured,
    /// The system is verified, and nothing had to be changed (0).
    AlreadyConfigured,
    /// A dry run: this is what would be done (0).
    Planned,
    /// The system was looked at, and is verified (0).
    Verified,
    /// The node answers, and is what was asked (0).
    Probed,
    /// The node is registered (0).
    Registered,
    /// The node is not registered any more (0).
    Deregistered,
    /// The server that `join` has started has ended (its own exit code).
    Ended,
    /// Anything that has no word of its own (1).
    Failed,
    /// A flag, or an environment variable, is wrong (2).
    Usage,
    /// Not enough usable nodes have registered, or something that has to pass first did not (3).
    Incomplete,
    /// It would lose data, or contradict the Sentinels (4).
    Refused,
    /// A node can't be used as it is (5).
    Unusable,
    /// The system is not, or not yet, what it should be (6).
    NotVerified,
    /// The broker can't be reached, or refuses the token (7).
    Broker,
    /// Stopped by SIGINT or SIGTERM (130, 143).
    Stopped,
}
