//! An outage of the database as seen by a worker: one state for all its calls. The log records its start, reminders
//! while it lasts, and its end.
//!
//! The first call that fails starts it; the check that a worker makes every second ends it. In between, the worker
//! takes nothing from the queue, because it could neither claim jobs nor record messages: they wait there for a worker
//! that can.

use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use crate::model::locked;
use crate::store::StoreError;

/// Interval of the reminders in the log.
const REMIND_EVERY: Duration = Duration::from_secs(60);

/// Logs a failed call of the store: at debug level if `$covered`, because the lines about the outage stand for all
/// calls, and otherwise at `$level`.
macro_rules! log_unless {
    ($covered:expr, $level:ident, $($line:tt)*) => {
        if $covered { tracing::debug!($($line)*) } else { tracing::$level!($($line)*) }
    };
}
pub(super) use log_unless;

/// The state shared by all users of a worker's store.
#[derive(Debug, Clone)]
pub(super) struct Outage(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    database: String,
    now: Mutex<Option<Ongoing>>,
}

/// The present outage.
#[derive(Debug, Clone, Copy)]
struct Ongoing {
    since: Instant,
    logged: Instant,
    failed_calls: u64,
}

/// What to log about a failed call.
#[derive(Debug, PartialEq)]
enum Notice {
    Start,
    Reminder { since: Instant, failed_calls: u64 },
    Nothing,
}

impl Outage {
    /// No outage, of the database at this address.
    pub(super) fn of(database: String) -> Self {
        Self(Arc::new(Shared { database, now: Mutex::default() }))
    }

    fn lock(&self) -> MutexGuard<'_, Option<Ongoing>> {
        locked(&self.0.now)
    }

    /// Whether there is an outage.
    pub(super) fn lasts(&self) -> bool {
        self.lock().is_some()
    }

    /// Returns how many of `free` jobs to take from the queue.
    pub(super) fn limit(&self, free: usize) -> usize {
        if self.lasts() { 0 } else { free }
    }

    /// Notes a failed call. Returns whether it failed because of an outage, which is logged here.
    pub(super) fn note_failure(&self, error: &StoreError) -> bool {
        if !error.is_outage() {
            return false;
        }
        let now = Instant::now();
        let database = self.0.database.as_str();
        match self.failed(now) {
            Notice::Start => tracing::error!(
                database,
                %error,
                "the database fails: jobs and messages wait, and nothing is lost; check the database"
            ),
            Notice::Reminder { since, failed_calls } => {
                let for_s = now.duration_since(since).as_secs();
                tracing::warn!(database, for_s, calls_failed = failed_calls, %error, "the database still fails");
            }
            Notice::Nothing => {}
        }
        true
    }

    fn failed(&self, now: Instant) -> Notice {
        let mut ongoing = self.lock();
        let Some(ongoing) = &mut *ongoing else {
            *ongoing = Some(Ongoing { since: now, logged: now, failed_calls: 1 });
            return Notice::Start;
        };
        ongoing.failed_calls = ongoing.failed_calls.saturating_add(1);
        if now.duration_since(ongoing.logged) < REMIND_EVERY {
            return Notice::Nothing;
        }
        ongoing.logged = now;
        Notice::Reminder { since: ongoing.since, failed_calls: ongoing.failed_calls }
    }

    /// Notes that the database answers, which ends the outage.
    pub(super) fn answered(&self) {
        if let Some(Ongoing { since, failed_calls, .. }) = self.lock().take() {
            let (database, for_s) = (self.0.database.as_str(), since.elapsed().as_secs_f64());
            tracing::info!(database, for_s, calls_failed = failed_calls, "the database answers again");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unreachable() -> StoreError {
        StoreError::Unreachable { what: "postgres://db:5432/jobs".to_owned(), why: "connection refused".into() }
    }

    #[test]
    fn the_log_says_that_it_begins_once_and_then_each_minute_that_it_lasts() {
        let (outage, begun) = (Outage::of("db".to_owned()), Instant::now());
        let after = |s| begun + Duration::from_secs(s);
        assert_eq!(outage.failed(begun), Notice::Start);
        for s in 1..60 {
            assert_eq!(outage.failed(after(s)), Notice::Nothing);
        }
        assert_eq!(outage.failed(after(60)), Notice::Reminder { since: begun, failed_calls: 61 });
        assert_eq!(outage.failed(after(61)), Notice::Nothing);
        assert_eq!(outage.failed(after(120)), Notice::Reminder { since: begun, failed_calls: 63 });
        outage.answered();
        assert_eq!(outage.failed(after(121)), Notice::Start, "of the next one");
    }

    #[test]
    fn nothing_is_taken_while_it_lasts() {
        let outage = Outage::of("db".to_owned());
        assert_eq!(outage.limit(7), 7);
        assert!(outage.note_failure(&unreachable()), "the log has its own line for it");
        assert_eq!((outage.lasts(), outage.limit(7)), (true, 0));
        // Through another handle to the same state.
        outage.clone().answered();
        assert_eq!((outage.lasts(), outage.limit(7)), (false, 7));
    }

    #[test]
    fn a_call_that_fails_by_itself_is_none() {
        let outage = Outage::of("db".to_owned());
        let own = StoreError::Corrupt { column: "state", why: "made up".to_owned() };
        assert!(!outage.note_failure(&own) && !outage.lasts());
        outage.note_failure(&unreachable());
        assert!(!outage.note_failure(&own), "its line is not hidden meanwhile");
    }
}
