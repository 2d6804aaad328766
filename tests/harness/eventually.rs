//! Waits for a condition.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};

/// How long after a failed check the next one follows. A test must not wait long once the check would
/// succeed, and must not keep a server busy.
const POLL: Duration = Duration::from_millis(5);

/// The value, inside of a check for [`eventually`]: an error ends the wait.
///
/// # Panics
///
/// If there is an error.
#[track_caller]
pub fn at_once<T>(result: Result<T>) -> T {
    result.unwrap_or_else(|error| panic!("{error:#}"))
}

/// Asks again and again until `check` succeeds, and returns its value. Also asks once more after the limit.
/// If the condition can't become true any more, or must not be checked again, `check` should panic, as
/// [`at_once`] does. That ends the wait.
///
/// # Errors
///
/// The last error of `check`, if there is still one after `limit`.
pub async fn eventually<T>(limit: Duration, mut check: impl AsyncFnMut() -> Result<T>) -> Result<T> {
    let started = Instant::now();
    loop {
        let over = started.elapsed() >= limit;
        match check().await {
            Ok(value) => return Ok(value),
            Err(error) if over => return Err(error).with_context(|| format!("still so after {limit:?}")),
            Err(_) => tokio::time::sleep(POLL).await,
        }
    }
}
