//! End-to-end tests, on real processes.

mod bootstrap;
mod contract;
mod faults;
mod harness;
mod host;
mod support;
