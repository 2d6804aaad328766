//! The component's entry point, with Spin's key-value store and Spin's variables behind the rest of the crate: one for each of the two
//! interfaces that hosts have. Which one is built the features say.

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

/// How long a body may take to come in. Each one that is waited for takes a place of an instance, or an instance.
const BODY_WITHIN: Duration = Duration::from_secs(10);

/// Notes why a variable can't be read, for whoever runs the host.
fn unreadable(name: &str, why: impl Display) -> Unreadable {
    eprintln!("sentinel-broker: the variable `{name}` can't be read: {why}");
    Unreadable
}
