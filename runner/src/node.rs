//! What one server is and says: how it is reached, what it is asked, and what its answers mean. Nothing in here knows of
//! a system, a plan or a report; [`connection::Observer`] is how those above see what goes over the wire.

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
