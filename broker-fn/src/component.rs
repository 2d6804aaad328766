//! The component's entry point, with Spin's key-value store and variables. There is one adapter for each
//! version of WASI, and the features select the adapter that is built.

#[cfg(feature = "wasi-0-2")]
#[expect(unsafe_code, reason = "the macro that makes the entry point writes it")]
mod wasi_0_2;
#[cfg(feature = "wasi-0-3")]
mod wasi_0_3;

#[cfg(all(feature = "wasi-0-2", feature = "wasi-0-3"))]
compile_error!(
    "a component is built for one kind of host: with `wasi-0-2`, disable `wasi-0-3` (`--no-default-features`)"
);

use std::fmt::Display;
use std::time::Duration;

use crate::settings::Unreadable;

/// How long a body may take to arrive. A request that waits for its body occupies a place of an instance, or
/// a whole instance.
const BODY_WITHIN: Duration = Duration::from_secs(10);

/// Logs why a variable can't be read.
fn unreadable(name: &str, why: impl Display) -> Unreadable {
    eprintln!("sentinel-broker: the variable `{name}` can't be read: {why}");
    Unreadable
}
