//! End-to-end tests, on real processes.

mod access;
mod adoption;
mod bootstrap;
mod contract;
mod faults;
mod harness;
mod host;
mod races;
mod support;
