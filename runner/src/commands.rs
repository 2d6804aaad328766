//! What a person can type, one module for each command.

pub mod bootstrap;
pub mod failover;
pub mod join;
pub mod leave;
mod look;
pub mod probe;
pub mod register;
pub mod roll;
pub mod rotate;
pub mod status;
mod stop;
pub mod verify;

#[cfg(test)]
pub use self::look::Look;
