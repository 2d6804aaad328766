//! One node: how it is reached, what it is asked, and what its answers mean. Nothing in here depends on a
//! system, a plan or a report. The other rooms see commands and replies through [`connection::Observer`].

pub mod clients;
pub mod command;
pub mod connection;
pub mod endpoint;
pub mod hello;
pub mod info;
pub mod ready;
pub mod redis;
pub mod replication;
pub mod reply;
pub mod rights;
pub mod secret;
pub mod sentinel;
pub mod unusable;
pub mod users;
pub mod version;
mod wire;
