//! End-to-end tests, on real processes.

mod access;
mod adoption;
mod bootstrap;
mod chaos;
mod contract;
mod deploy;
mod failover;
mod faults;
mod harness;
mod held;
mod host;
mod hosts;
mod join;
mod leave;
mod machines;
mod newest;
mod nothing_lost;
mod output;
mod page;
mod races;
mod roll;
mod spin;
mod status;
mod store;
mod support;
mod verified;
