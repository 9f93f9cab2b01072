//! A device's health: its failures in a row, its quarantine, and the canary that ends it.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use metrics::gauge;

use crate::model::locked;
use crate::telemetry;

/// Failures in a row after which a device must pass its canary before it gets another job.
const SUSPICIOUS: u32 = 3;
/// How long a device that failed its canary waits for the next one; doubled each time.
const FIRST_PAUSE: Duration = Duration::from_secs(10);
const MAX_PAUSE: Duration = Duration::from_secs(300);

pub(super) struct Health {
    /// The device's label.
    label: String,
    /// Failures since the last proof or canary that succeeded.
    failures: AtomicU32,
    quarantined: AtomicBool,
    /// Reason for the quarantine; empty when there is none.
    why: Mutex<String>,
    canary_running: AtomicBool,
    /// Earliest time of the next canary, and the length of the pause before it.
    pause: Mutex<Option<(Instant, Duration)>>,
}

impl Health {
    pub(super) fn new(label: String) -> Self {
        Self {
            label,
            failures: AtomicU32::new(0),
            quarantined: AtomicBool::new(false),
            why: Mutex::default(),
            canary_running: AtomicBool::new(false),
            pause: Mutex::new(None),
        }
    }

    /// Whether nothing speaks against giving the device jobs: neither a quarantine nor failures in a row.
    pub(super) fn is_trusted(&self) -> bool {
        !self.is_quarantined() && self.failures.load(Ordering::Relaxed) < SUSPICIOUS
    }

    /// Whether the device is in quarantine, because it hangs or because its canary failed.
    pub(super) fn is_quarantined(&self) -> bool {
        self.quarantined.load(Ordering::Relaxed)
    }

    /// Why the device gets no jobs, provided that it gets none.
    pub(super) fn reason(&self) -> String {
        match locked(&self.why).as_str() {
            "" => format!("{} failed {SUSPICIOUS} times in a row", self.label),
            why => why.to_owned(),
        }
    }

    /// Notes a verified proof.
    pub(super) fn note_success(&self) {
        self.failures.store(0, Ordering::Relaxed);
    }

    /// Notes a failure of the device's own.
    pub(super) fn note_failure(&self) {
        self.failures.fetch_add(1, Ordering::Relaxed);
    }

    /// Keeps jobs from the device until it is readmitted.
    pub(super) fn quarantine(&self, why: &str) {
        why.clone_into(&mut locked(&self.why));
        self.set_quarantined(true);
    }

    /// Notes a canary that passed: the device gets jobs again.
    pub(super) fn readmit(&self) {
        *locked(&self.pause) = None;
        self.failures.store(0, Ordering::Relaxed);
        locked(&self.why).clear();
        self.set_quarantined(false);
    }

    fn set_quarantined(&self, quarantined: bool) {
        self.quarantined.store(quarantined, Ordering::Relaxed);
        let shown = if quarantined { 1.0 } else { 0.0 };
        gauge!(telemetry::DEVICE_QUARANTINED, "device" => self.label.clone()).set(shown);
    }

    /// Takes the turn to run a canary. Returns whether the caller has it; it must then call [`Health::end_canary`].
    pub(super) fn begin_canary(&self) -> bool {
        !self.canary_running.swap(true, Ordering::AcqRel)
    }

    pub(super) fn end_canary(&self) {
        self.canary_running.store(false, Ordering::Release);
    }

    /// Whether the pause since the last canary is over.
    pub(super) fn canary_due(&self) -> bool {
        locked(&self.pause).is_none_or(|(until, _)| Instant::now() >= until)
    }

    /// Starts a pause before the next canary, twice as long as the last one.
    pub(super) fn postpone_canary(&self) {
        let mut pause = locked(&self.pause);
        let next = pause.map_or(FIRST_PAUSE, |(_, last)| (last * 2).min(MAX_PAUSE));
        *pause = Some((Instant::now() + next, next));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_that_fails_or_hangs_gets_no_jobs_until_it_is_readmitted() {
        let health = Health::new("gpu:0".to_owned());
        for _ in 1..SUSPICIOUS {
            health.note_failure();
        }
        assert!(health.is_trusted());
        health.note_failure();
        assert!(!health.is_trusted() && !health.is_quarantined());
        assert_eq!(health.reason(), "gpu:0 failed 3 times in a row");
        health.quarantine("made up");
        assert_eq!((health.is_quarantined(), health.reason().as_str()), (true, "made up"));
        health.readmit();
        assert!(health.is_trusted());
    }

    #[test]
    fn canaries_run_one_at_a_time_with_pauses_that_double() {
        let health = Health::new("gpu:0".to_owned());
        assert!(health.begin_canary() && !health.begin_canary());
        health.end_canary();
        assert!(health.begin_canary() && health.canary_due());
        for pause in [10, 20, 40, 80, 160, 300, 300] {
            health.postpone_canary();
            assert!(!health.canary_due());
            assert_eq!(locked(&health.pause).map(|(_, length)| length.as_secs()), Some(pause));
        }
        health.readmit();
        assert!(health.canary_due());
    }
}
