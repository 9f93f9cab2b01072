//! Whether and when a failed job is retried.

use std::time::Duration;

use crate::model::{FailureClass, Tries};
use crate::store::Retry;

/// Attempts a job has in case of transient faults. The waits between them add up to about an hour and a half, in which
/// someone may repair what is broken. A worker on which nothing works takes jobs seldom (`environment.rs`).
pub const TRANSIENT_ATTEMPTS: u32 = 20;
/// Attempts a job has in case of timeouts. Few, because what was too slow once tends to be too slow again.
pub const TIMEOUT_ATTEMPTS: u32 = 2;
/// Attempts a job has in case of failing devices: on the device, on another one, on the CPU.
pub const DEVICE_ATTEMPTS: u32 = 3;
/// Workers a job may take down. At the next claim it is failed as poison.
pub const LOST_WORKERS: u32 = 5;

/// Longest wait before a retry, without its jitter.
const MAX_WAIT: Duration = Duration::from_secs(600);

/// Decides whether a job is retried whose attempt failed with `class`, after `tries`, which do not count this failure.
///
/// `jitter` from 0 to 1 spreads the retries of jobs that failed together: the wait is between half and one and a half
/// times an exponential back-off. Timeouts share the count of transient faults.
pub fn decide(class: FailureClass, tries: Tries, jitter: f64) -> Retry {
    let (failed, allowed, first) = match class {
        FailureClass::BadInput | FailureClass::LostWorker | FailureClass::Unknown => return Retry::Never,
        FailureClass::Transient => (tries.transient, TRANSIENT_ATTEMPTS, Duration::from_millis(500)),
        FailureClass::Timeout => (tries.transient, TIMEOUT_ATTEMPTS, Duration::from_secs(1)),
        FailureClass::Device | FailureClass::InvalidProof => {
            (tries.device, DEVICE_ATTEMPTS, Duration::from_millis(100))
        }
    };
    if failed + 1 >= allowed { Retry::Never } else { Retry::After(back_off(first, failed, jitter)) }
}

/// Returns `first`, doubled with each failure and varied by up to a half.
fn back_off(first: Duration, failed: u32, jitter: f64) -> Duration {
    let doubled = first.saturating_mul(1 << failed.min(16)).min(MAX_WAIT);
    doubled.mul_f64(0.5 + jitter.clamp(0.0, 1.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Counts the attempts until a job that always fails with this class is given up.
    fn attempts(class: FailureClass) -> u32 {
        let mut tries = Tries::default();
        for attempt in 1..100 {
            if decide(class, tries, 0.5) == Retry::Never {
                return attempt;
            }
            match class {
                FailureClass::Transient | FailureClass::Timeout => tries.transient += 1,
                _ => tries.device += 1,
            }
        }
        panic!("retried forever");
    }

    #[test]
    fn every_class_ends() {
        assert_eq!(attempts(FailureClass::BadInput), 1);
        assert_eq!(attempts(FailureClass::LostWorker), 1);
        assert_eq!(attempts(FailureClass::Transient), 20);
        assert_eq!(attempts(FailureClass::Timeout), 2);
        assert_eq!(attempts(FailureClass::Device), 3);
        assert_eq!(attempts(FailureClass::InvalidProof), 3);
    }

    #[test]
    fn budgets_are_separate() {
        let tries = Tries { transient: 4, device: 0, lost: 2 };
        assert!(matches!(decide(FailureClass::Device, tries, 0.5), Retry::After(_)));
        let tries = Tries { transient: 0, device: 2, lost: 2 };
        assert!(matches!(decide(FailureClass::Transient, tries, 0.5), Retry::After(_)));
    }

    #[test]
    fn waits_double_are_spread_and_bounded() {
        let wait = |transient, jitter| match decide(
            FailureClass::Transient,
            Tries { transient, ..Tries::default() },
            jitter,
        ) {
            Retry::After(d) => d.as_millis(),
            Retry::Never => panic!("given up"),
        };
        assert_eq!([wait(0, 0.5), wait(1, 0.5), wait(2, 0.5), wait(3, 0.5)], [500, 1000, 2000, 4000]);
        assert_eq!((wait(1, 0.0), wait(1, 1.0)), (500, 1500));
        assert!(back_off(Duration::from_secs(1), 4_000_000, 1.0) <= MAX_WAIT * 3 / 2);
    }
}
