//! Whether a worker has what it needs in addition to its devices: artifacts, the keys of inputs, the database.
//!
//! A worker that lacks one of these fails each job within milliseconds, so it always has capacity for the next one
//! while the others are busy: one of fifty with wrong credentials would use up the retries of the whole backlog. So
//! after some such failures in a row, a worker takes one job at a time, with pauses between, until one gets further.

use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

use metrics::gauge;

use super::failure::Blame;
use crate::model::locked;
use crate::telemetry;

/// Failures in a row after which a worker slows down.
const SUSPICIOUS: u32 = 3;
/// Pauses between the jobs that probe the environment. They double each time, except where the jobs may be at fault:
/// that would delay all the jobs behind them.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const MAX_PAUSE: Duration = Duration::from_secs(60);

/// What recent jobs showed about a worker's environment.
#[derive(Debug, Default)]
pub(super) struct Environment(Mutex<Doubt>);

#[derive(Debug, Default)]
struct Doubt {
    in_a_row: u32,
    /// Set while the worker takes one job at a time.
    pause: Option<Pause>,
}

#[derive(Debug, Clone, Copy)]
struct Pause {
    until: Instant,
    length: Duration,
    /// Whether a job that probes the environment is in progress.
    trying: bool,
}

impl Environment {
    fn lock(&self) -> MutexGuard<'_, Doubt> {
        locked(&self.0)
    }

    /// Notes that a job failed because of this worker's environment.
    pub(super) fn failed(&self, now: Instant, why: &str, blame: Blame) {
        let mut doubt = self.lock();
        doubt.in_a_row = doubt.in_a_row.saturating_add(1);
        let length = match doubt.pause {
            None if doubt.in_a_row < SUSPICIOUS => return,
            None => FIRST_PAUSE,
            // A job that was already in progress when the pause started.
            Some(pause) if now < pause.until => return,
            Some(pause) if blame == Blame::Either => pause.length,
            Some(pause) => (pause.length * 2).min(MAX_PAUSE),
        };
        doubt.pause = Some(Pause { until: now + length, length, trying: false });
        gauge!(telemetry::WORKER_DOUBTED).set(1.0);
        let failures = doubt.in_a_row;
        tracing::error!(
            failures,
            why,
            pause_s = length.as_secs(),
            "job after job fails because of this worker's environment"
        );
    }

    /// Notes that a job got past the point where it needs the environment.
    pub(super) fn served(&self) {
        let mut doubt = self.lock();
        if doubt.pause.is_some() {
            gauge!(telemetry::WORKER_DOUBTED).set(0.0);
            tracing::info!("this worker has what it needs again");
        }
        *doubt = Doubt::default();
    }

    /// Returns how many of `free` jobs to take.
    pub(super) fn limit(&self, now: Instant, free: usize) -> usize {
        match self.lock().pause {
            None => free,
            Some(pause) if now < pause.until || pause.trying => 0,
            Some(_) => free.min(1),
        }
    }

    /// Notes that a job starts.
    pub(super) fn begun(&self) {
        if let Some(pause) = &mut self.lock().pause {
            pause.trying = true;
        }
    }

    /// Notes that a job has ended, in whatever way: one that was stopped shows nothing, and the next one is tried.
    pub(super) fn ended(&self) {
        if let Some(pause) = &mut self.lock().pause {
            pause.trying = false;
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn pauses(blame: Blame) -> Vec<u64> {
        let (environment, mut now) = (Environment::default(), Instant::now());
        for left in [9, 8] {
            environment.failed(now, "no such bucket", blame);
            assert_eq!(environment.limit(now, left), left, "two failures may be chance");
        }
        for _ in 0..5 {
            environment.failed(now, "no such bucket", blame);
        }
        let mut pauses = Vec::new();
        for _ in 0..8 {
            let second = Duration::from_secs(1);
            let pause = (1..100).find(|n| environment.limit(now + second * *n, 9) > 0).unwrap();
            pauses.push(u64::from(pause));
            now += second * pause;
            assert_eq!((environment.limit(now, 9), environment.limit(now, 0)), (1, 0));
            environment.begun();
            assert_eq!(environment.limit(now, 9), 0, "one at a time");
            environment.ended();
            assert_eq!(environment.limit(now, 9), 1, "one that was stopped has told nothing");
            environment.begun();
            environment.failed(now, "no such bucket", blame);
            environment.ended();
        }
        environment.served();
        assert_eq!(environment.limit(now, 9), 9);
        pauses
    }

    #[test]
    fn a_worker_that_fails_job_after_job_takes_one_at_a_time_with_pauses() {
        assert_eq!(pauses(Blame::Worker), [1, 2, 4, 8, 16, 32, 60, 60]);
        assert_eq!(pauses(Blame::Either), [1; 8]);
    }

    #[test]
    fn failures_with_a_success_between_are_the_jobs_own() {
        let (environment, now) = (Environment::default(), Instant::now());
        for _ in 0..20 {
            environment.failed(now, "not this one", Blame::Worker);
            environment.failed(now, "not this one", Blame::Worker);
            environment.served();
        }
        assert_eq!(environment.limit(now, 9), 9);
    }
}
