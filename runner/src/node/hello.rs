//! The channel that Sentinels introduce themselves on.

/// Its name. A Sentinel takes such a message from a client as well (`sentinelPublishCommand` in Redis's `sentinel.c`).
pub const HELLO_CHANNEL: &str = "__sentinel__:hello";

/// A text for it which is no hello: Sentinels pass over it, and log nothing. It shows whether the master's stream of commands
/// flows, since a `PUBLISH` is replicated.
pub const NO_HELLO: &str = "sentinel-runner: does the stream flow?";
