//! End-to-end tests, on real processes.

mod access;
mod bootstrap;
mod contract;
mod deploy;
mod harness;
mod host;
mod nothing_lost;
mod store;
