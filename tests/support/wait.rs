//! Waiting for what other threads, tasks and processes do. Each test program includes this file by `#[path]`.
//!
//! Conditions are polled, and a test fails only when one does not hold within [`HANG`]. The few tests that depend on
//! timing nevertheless say so.

// No test program uses all of it.
#![allow(dead_code)]

use std::fmt::{Debug, Display};
use std::time::{Duration, Instant};

/// Longer than anything takes on a machine that is not stuck.
pub const HANG: Duration = Duration::from_secs(120);

/// Time between two looks.
const PAUSE: Duration = Duration::from_millis(20);

/// Blocks this thread until `look` finds something, and returns that. Panics with `what` after [`HANG`].
pub fn until<T>(what: impl Display, mut look: impl FnMut() -> Option<T>) -> T {
    let begun = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(begun.elapsed() < HANG, "timed out waiting for {what}");
        std::thread::sleep(PAUSE);
    }
}

/// Waits until `holds` returns `true`. Panics with `what` after [`HANG`].
pub async fn until_async<F: Future<Output = bool>>(what: impl Display, mut holds: impl FnMut() -> F) {
    let begun = Instant::now();
    while !holds().await {
        assert!(begun.elapsed() < HANG, "timed out waiting for {what}");
        tokio::time::sleep(PAUSE).await;
    }
}

/// Waits until `look` succeeds, and returns its value. Panics with `what` and the last error after [`HANG`].
pub async fn until_async_ok<T, E: Debug, F: Future<Output = Result<T, E>>>(
    what: impl Display,
    mut look: impl FnMut() -> F,
) -> T {
    let begun = Instant::now();
    loop {
        match look().await {
            Ok(found) => return found,
            Err(e) => assert!(begun.elapsed() < HANG, "timed out waiting for {what}: {e:?}"),
        }
        tokio::time::sleep(PAUSE).await;
    }
}
