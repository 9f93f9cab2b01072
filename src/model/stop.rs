//! Requests to running work to stop.

use std::fmt;
use std::sync::{Arc, OnceLock};
use std::time::Instant;

/// Why work is asked to stop.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum StopReason {
    /// A client cancelled the job.
    Cancelled,
    /// The time limit was exceeded.
    TimedOut,
    /// The worker is shutting down.
    Draining,
    /// The lease went to another worker.
    LeaseLost,
}

impl fmt::Display for StopReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Cancelled => "it was cancelled",
            Self::TimedOut => "the time allowed for it is over",
            Self::Draining => "the worker is shutting down",
            Self::LeaseLost => "its lease went to another worker",
        })
    }
}

/// A shared request to stop, which long-running work checks between its steps. Clones share the request; the first
/// reason given is kept.
#[derive(Clone, Debug, Default)]
pub struct StopToken {
    reason: Arc<OnceLock<StopReason>>,
    deadline: Option<Instant>,
}

impl StopToken {
    /// Creates a token that is not stopped.
    pub fn new() -> Self {
        Self::default()
    }

    /// Returns a token with the same request and a deadline, after which it is stopped with [`StopReason::TimedOut`].
    /// If it has a deadline already, the earlier one applies.
    pub fn with_deadline(&self, at: Instant) -> Self {
        let deadline = Some(self.deadline.map_or(at, |d| d.min(at)));
        Self { reason: self.reason.clone(), deadline }
    }

    /// Returns a token with the same request and no deadline.
    pub fn without_deadline(&self) -> Self {
        Self { reason: self.reason.clone(), deadline: None }
    }

    /// Returns the deadline, if there is one.
    pub fn deadline(&self) -> Option<Instant> {
        self.deadline
    }

    /// Asks the work to stop.
    pub fn stop(&self, why: StopReason) {
        let _ = self.reason.set(why);
    }

    /// Returns why the work must stop, or `None` if it may continue.
    pub fn stopped(&self) -> Option<StopReason> {
        match self.reason.get() {
            Some(why) => Some(*why),
            None if self.deadline.is_some_and(|d| Instant::now() >= d) => Some(StopReason::TimedOut),
            None => None,
        }
    }
}
