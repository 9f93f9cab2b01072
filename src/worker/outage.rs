//! An outage of the database, as a worker sees it: one state for all its calls, of which its log says the beginning, that
//! it lasts, and the end.
//!
//! Whatever call fails first begins it. The look that a worker takes each second ends it. In between the worker takes
//! nothing from the queue: it could neither claim jobs nor record messages, which wait there for a worker that can.

use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use crate::model::locked;
use crate::store::StoreError;

/// How often the log says that it lasts.
const REMIND_EVERY: Duration = Duration::from_secs(60);

/// A line of the log on a failed call of the store. For debugging alone where `$covered`, since what the log says of the
/// outage says it for all calls.
macro_rules! say {
    ($covered:expr, $level:ident, $($line:tt)*) => {
        if $covered { tracing::debug!($($line)*) } else { tracing::$level!($($line)*) }
    };
}
pub(super) use say;

/// Shared by all that use a worker's store.
#[derive(Debug, Clone)]
pub(super) struct Outage(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    database: String,
    now: Mutex<Option<Spell>>,
}

/// One that lasts.
#[derive(Debug, Clone, Copy)]
struct Spell {
    since: Instant,
    said: Instant,
    failed: u64,
}

/// What a failed call has the log say.
#[derive(Debug, PartialEq)]
enum News {
    Begins,
    Lasts { since: Instant, failed: u64 },
    Nothing,
}

impl Outage {
    /// None yet, of the database of this name.
    pub(super) fn of(database: String) -> Self {
        Self(Arc::new(Shared { database, now: Mutex::default() }))
    }

    fn lock(&self) -> MutexGuard<'_, Option<Spell>> {
        locked(&self.0.now)
    }

    /// Whether it lasts.
    pub(super) fn lasts(&self) -> bool {
        self.lock().is_some()
    }

    /// How many of those there would be room for are to be taken from the queue.
    pub(super) fn room(&self, free: usize) -> usize {
        if self.lasts() { 0 } else { free }
    }

    /// Notes a failed call. Whether it failed because the database did, of which the log tells here.
    pub(super) fn covers(&self, error: &StoreError) -> bool {
        if !error.is_outage() {
            return false;
        }
        let now = Instant::now();
        let database = self.0.database.as_str();
        match self.failed(now) {
            News::Begins => tracing::error!(
                database,
                %error,
                "the database fails: jobs and messages wait, and nothing is lost; see to the database"
            ),
            News::Lasts { since, failed } => {
                let for_s = now.duration_since(since).as_secs();
                tracing::warn!(database, for_s, calls_failed = failed, %error, "the database still fails");
            }
            News::Nothing => {}
        }
        true
    }

    fn failed(&self, now: Instant) -> News {
        let mut spell = self.lock();
        let Some(spell) = &mut *spell else {
            *spell = Some(Spell { since: now, said: now, failed: 1 });
            return News::Begins;
        };
        spell.failed = spell.failed.saturating_add(1);
        if now.duration_since(spell.said) < REMIND_EVERY {
            return News::Nothing;
        }
        spell.said = now;
        News::Lasts { since: spell.since, failed: spell.failed }
    }

    /// Notes that the database answers as it should.
    pub(super) fn answered(&self) {
        if let Some(Spell { since, failed, .. }) = self.lock().take() {
            let (database, for_s) = (self.0.database.as_str(), since.elapsed().as_secs_f64());
            tracing::info!(database, for_s, calls_failed = failed, "the database answers again");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn away() -> StoreError {
        StoreError::Away { what: "postgres://db:5432/jobs".to_owned(), why: "connection refused".to_owned() }
    }

    #[test]
    fn the_log_says_that_it_begins_once_and_then_each_minute_that_it_lasts() {
        let (outage, begun) = (Outage::of("db".to_owned()), Instant::now());
        let after = |s| begun + Duration::from_secs(s);
        assert_eq!(outage.failed(begun), News::Begins);
        for s in 1..60 {
            assert_eq!(outage.failed(after(s)), News::Nothing);
        }
        assert_eq!(outage.failed(after(60)), News::Lasts { since: begun, failed: 61 });
        assert_eq!(outage.failed(after(61)), News::Nothing);
        assert_eq!(outage.failed(after(120)), News::Lasts { since: begun, failed: 63 });
        outage.answered();
        assert_eq!(outage.failed(after(121)), News::Begins, "of the next one");
    }

    #[test]
    fn nothing_is_taken_while_it_lasts() {
        let outage = Outage::of("db".to_owned());
        assert_eq!(outage.room(7), 7);
        assert!(outage.covers(&away()), "the log has its own line for it");
        assert_eq!((outage.lasts(), outage.room(7)), (true, 0));
        // Another's handle on the same state.
        outage.clone().answered();
        assert_eq!((outage.lasts(), outage.room(7)), (false, 7));
    }

    #[test]
    fn a_call_that_fails_by_itself_is_none() {
        let outage = Outage::of("db".to_owned());
        let own = StoreError::Corrupt { column: "state", why: "made up".to_owned() };
        assert!(!outage.covers(&own) && !outage.lasts());
        outage.covers(&away());
        assert!(!outage.covers(&own), "its line is not hidden meanwhile");
    }
}
