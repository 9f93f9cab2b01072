//! Whether a worker has what it needs beside its devices: artifacts, keys of inputs, the database.
//!
//! A worker that lacks something of that fails each job within milliseconds, and so always has room for the next while
//! the others are busy: one of fifty with wrong credentials would use up the retries of the whole backlog. So after
//! some failures of this kind in a row it takes one job at a time, with pauses between, until one gets further.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use metrics::gauge;

use crate::telemetry;

/// Failures in a row after which a worker holds back.
const SUSPICIOUS: u32 = 3;
/// Pauses between the jobs by which it finds out, doubled each time.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// What the last jobs said of a worker's surroundings.
#[derive(Debug, Default)]
pub(super) struct Surroundings(Mutex<Doubt>);

#[derive(Debug, Default)]
struct Doubt {
    in_a_row: u32,
    /// Set while it holds back.
    pause: Option<(Instant, Duration)>,
}

impl Surroundings {
    fn lock(&self) -> MutexGuard<'_, Doubt> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes that a job failed for what is around this worker.
    pub(super) fn failed(&self, now: Instant, why: &str) {
        let mut doubt = self.lock();
        doubt.in_a_row = doubt.in_a_row.saturating_add(1);
        let next = match doubt.pause {
            None if doubt.in_a_row < SUSPICIOUS => return,
            None => FIRST_PAUSE,
            // Of those that were in hand already.
            Some((until, _)) if now < until => return,
            Some((_, last)) => (last * 2).min(LONGEST_PAUSE),
        };
        doubt.pause = Some((now + next, next));
        gauge!(telemetry::WORKER_DOUBTED).set(1.0);
        let failures = doubt.in_a_row;
        tracing::error!(failures, why, pause_s = next.as_secs(), "job after job fails for what is around this worker");
    }

    /// Notes that a job got past where it needs anything of that.
    pub(super) fn served(&self) {
        let mut doubt = self.lock();
        if doubt.pause.is_some() {
            gauge!(telemetry::WORKER_DOUBTED).set(0.0);
            tracing::info!("this worker has what it needs again");
        }
        *doubt = Doubt::default();
    }

    /// How many of the jobs there would be room for are to be taken, with so many in hand.
    pub(super) fn room(&self, now: Instant, free: usize, in_hand: usize) -> usize {
        match self.lock().pause {
            None => free,
            Some((until, _)) if now < until || in_hand > 0 => 0,
            Some(_) => free.min(1),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_worker_that_fails_job_after_job_takes_one_at_a_time_with_growing_pauses() {
        let (around, mut now) = (Surroundings::default(), Instant::now());
        for left in [9, 8] {
            around.failed(now, "no such bucket");
            assert_eq!(around.room(now, left, 1), left, "two failures may be chance");
        }
        for _ in 0..5 {
            around.failed(now, "no such bucket");
        }
        for pause in [1, 2, 4, 8, 16, 32, 60, 60] {
            let before = now + Duration::from_secs(pause) - Duration::from_millis(1);
            assert_eq!(around.room(before, 9, 0), 0, "{pause}");
            now += Duration::from_secs(pause);
            assert_eq!((around.room(now, 9, 0), around.room(now, 9, 1), around.room(now, 0, 0)), (1, 0, 0));
            around.failed(now, "no such bucket");
        }
        around.served();
        assert_eq!(around.room(now, 9, 4), 9);
    }

    #[test]
    fn failures_with_a_success_between_are_the_jobs_own() {
        let (around, now) = (Surroundings::default(), Instant::now());
        for _ in 0..20 {
            around.failed(now, "not this one");
            around.failed(now, "not this one");
            around.served();
        }
        assert_eq!(around.room(now, 9, 4), 9);
    }
}
