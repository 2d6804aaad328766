//! End-to-end tests, on real processes.

mod access;
mod adoption;
mod bootstrap;
mod contract;
mod deploy;
mod faults;
mod harness;
mod host;
mod nothing_lost;
mod page;
mod races;
mod spin;
mod store;
mod support;
