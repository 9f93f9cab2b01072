//! Whether the queue answers, as the metric `queue_up` says.

use std::sync::atomic::{AtomicBool, Ordering};

use metrics::gauge;

use crate::telemetry;

/// What the last calls of each kind came to. A worker whose devices are all busy asks the queue for no jobs, perhaps
/// for hours, hence the regular maintenance counts, too.
#[derive(Default)]
pub(super) struct QueueHealth {
    pop_failed: AtomicBool,
    upkeep_failed: AtomicBool,
}

impl QueueHealth {
    /// Notes whether the queue answered when it was asked for jobs.
    pub(super) fn note_pop(&self, answered: bool) {
        self.pop_failed.store(!answered, Ordering::Relaxed);
        self.show();
    }

    /// Notes whether its maintenance succeeded. If it did not before, an earlier pop that failed counts no more.
    pub(super) fn note_upkeep(&self, answered: bool) {
        let recovered = self.upkeep_failed.swap(!answered, Ordering::Relaxed) && answered;
        if recovered {
            self.pop_failed.store(false, Ordering::Relaxed);
        }
        self.show();
    }

    fn is_up(&self) -> bool {
        !self.pop_failed.load(Ordering::Relaxed) && !self.upkeep_failed.load(Ordering::Relaxed)
    }

    fn show(&self) {
        gauge!(telemetry::QUEUE_UP).set(f64::from(self.is_up()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_queue_is_up_while_both_kinds_of_calls_are_answered() {
        let health = QueueHealth::default();
        assert!(health.is_up());
        // The worker is busy and does not pop.
        health.note_upkeep(false);
        assert!(!health.is_up());
        health.note_upkeep(true);
        assert!(health.is_up());
        // Only pops fail.
        health.note_pop(false);
        health.note_upkeep(true);
        assert!(!health.is_up());
        health.note_pop(true);
        assert!(health.is_up());
        // An outage that begins with a pop, and ends while the worker is busy.
        health.note_pop(false);
        health.note_upkeep(false);
        health.note_upkeep(true);
        assert!(health.is_up());
    }
}
