//! End-to-end tests, on real processes.

mod bootstrap;
mod contract;
mod harness;
mod host;
