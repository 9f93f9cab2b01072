//! Heartbeats, sent from a separate thread with its own runtime and store connection: however busy the rest of the
//! process is, a living worker is never taken for dead.
//!
//! A lease is lost when the store says so, not when it cannot be renewed: a worker that cannot reach the store does
//! best to continue, and the store refuses the result if another worker has the job by then. But while heartbeats fail,
//! no job is taken, because its lease could not be kept; nor in the first moments after, when all living workers renew
//! the leases that lapsed meanwhile.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use futures::future::join_all;

use crate::backend::Progress;
use crate::model::{Attempt, JobId, Stage, StopReason, StopToken, locked};
use crate::store::{Held, Store};
use crate::telemetry;

/// A job in progress, as the heartbeat sees it.
pub(super) struct Lease {
    job: JobId,
    attempt: Attempt,
    stop: StopToken,
    stage: AtomicU8,
    /// Whether its proof has started on a device.
    proof_begun: AtomicBool,
    /// Progress of the stage, as the bits of an `f32`.
    progress: AtomicU32,
}

impl Lease {
    /// Notes the job's stage.
    pub(super) fn enter(&self, stage: Stage) {
        let at = Stage::ALL.iter().position(|s| *s == stage).unwrap_or(0);
        self.stage.store(at as u8, Ordering::Relaxed);
        self.progress.store(0, Ordering::Relaxed);
    }

    /// Notes that the job's proof starts on a device.
    pub(super) fn begin_proof(&self) {
        self.proof_begun.store(true, Ordering::Relaxed);
    }

    fn stage(&self) -> Stage {
        Stage::ALL.get(usize::from(self.stage.load(Ordering::Relaxed))).copied().unwrap_or(Stage::Load)
    }
}

impl Progress for Lease {
    /// Several threads report on one proof, and the one with less progress may come last, hence the maximum. The bits
    /// of nonnegative floats are ordered like the floats.
    fn report(&self, fraction: f32) {
        self.progress.fetch_max(fraction.max(0.0).to_bits(), Ordering::Relaxed);
    }
}

/// Holds all leases. Dropping it ends the thread.
pub(super) struct Keeper {
    shared: Arc<Shared>,
}

struct Shared {
    leases: Mutex<HashMap<u64, Arc<Lease>>>,
    next: AtomicU64,
    closing: AtomicBool,
    lease: Duration,
    /// Held while heartbeats are sent.
    beating: tokio::sync::Mutex<()>,
    heartbeats: Mutex<HeartbeatState>,
}

/// Whether heartbeats go through.
enum HeartbeatState {
    /// None has been sent so far.
    Unknown,
    /// They do, and jobs are taken from this time on, unless the last one is too long ago.
    Well { takes_from: Instant, last: Instant },
    /// They fail.
    Failing,
}

/// The jobs that are asked to stop when the worker drains.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Drained {
    /// Those whose proof has not started.
    Unproved,
    All,
}

/// Keeps a lease alive until dropped.
pub(super) struct Hold {
    shared: Arc<Shared>,
    number: u64,
    lease: Arc<Lease>,
}

impl std::ops::Deref for Hold {
    type Target = Arc<Lease>;

    fn deref(&self) -> &Arc<Lease> {
        &self.lease
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.shared.lock().remove(&self.number);
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, HashMap<u64, Arc<Lease>>> {
        locked(&self.leases)
    }

    fn all(&self) -> Vec<Arc<Lease>> {
        self.lock().values().cloned().collect()
    }

    fn heartbeats(&self) -> MutexGuard<'_, HeartbeatState> {
        locked(&self.heartbeats)
    }

    /// Notes whether the store answered the heartbeats.
    fn note(&self, answered: bool) {
        let mut state = self.heartbeats();
        let now = Instant::now();
        match (&mut *state, answered) {
            (HeartbeatState::Unknown, true) => *state = HeartbeatState::Well { takes_from: now, last: now },
            (HeartbeatState::Failing, true) => {
                tracing::info!("heartbeats go through again");
                // Gives other living workers time to renew theirs.
                *state = HeartbeatState::Well { takes_from: now + period(self.lease) * 2, last: now };
            }
            (HeartbeatState::Unknown | HeartbeatState::Well { .. }, false) => {
                tracing::error!(
                    "no heartbeat goes through; running jobs continue, and no new ones are taken until one does"
                );
                *state = HeartbeatState::Failing;
            }
            (HeartbeatState::Well { last, .. }, true) => *last = now,
            (HeartbeatState::Failing, false) => {}
        }
    }
}

impl Keeper {
    /// Starts the thread. Nothing else should use `store`.
    pub(super) fn start(store: Arc<dyn Store>, lease: Duration) -> std::io::Result<Self> {
        let shared = Arc::new(Shared {
            leases: Mutex::default(),
            next: AtomicU64::new(0),
            closing: AtomicBool::new(false),
            lease,
            beating: tokio::sync::Mutex::default(),
            heartbeats: Mutex::new(HeartbeatState::Unknown),
        });
        let keeper = Self { shared: shared.clone() };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        std::thread::Builder::new().name("heartbeat".to_owned()).spawn(move || {
            let beat = move || beat_until_closed(shared.clone(), store.clone());
            runtime.block_on(super::supervised("heartbeat", beat));
        })?;
        Ok(keeper)
    }

    /// Starts renewing the lease of a job that was just claimed.
    pub(super) fn hold(&self, job: JobId, attempt: Attempt, stop: StopToken) -> Hold {
        let lease = Arc::new(Lease {
            job,
            attempt,
            stop,
            stage: AtomicU8::new(0),
            proof_begun: AtomicBool::new(false),
            progress: AtomicU32::new(0),
        });
        let number = self.shared.next.fetch_add(1, Ordering::Relaxed);
        self.shared.lock().insert(number, lease.clone());
        Hold { shared: self.shared.clone(), number, lease }
    }

    /// Asks jobs to stop, because the worker drains. Returns how many had not been asked before.
    pub(super) fn drain(&self, which: Drained) -> usize {
        let leases = self.shared.all();
        let chosen = leases.iter().filter(|lease| match which {
            Drained::All => true,
            Drained::Unproved => !lease.proof_begun.load(Ordering::Relaxed),
        });
        let running = chosen.filter(|lease| lease.stop.stopped().is_none());
        running.inspect(|lease| lease.stop.stop(StopReason::Draining)).count()
    }

    /// Suspends heartbeats while the guard lives, for an injected fault.
    pub(super) async fn silence(&self) -> tokio::sync::MutexGuard<'_, ()> {
        self.shared.beating.lock().await
    }

    /// Whether the lease of a job that is claimed now would be kept: not if the thread is stuck, either.
    pub(super) fn may_take(&self) -> bool {
        let now = Instant::now();
        let recent = |last| now.saturating_duration_since(last) <= self.shared.lease * 3 / 4;
        matches!(*self.shared.heartbeats(), HeartbeatState::Well { takes_from, last } if now >= takes_from && recent(last))
    }

    /// Takes no jobs for a moment, after a claim that met a lock: heartbeats of other workers may have met it, too, and
    /// their leases have lapsed although they live. They are renewed when the lock is gone.
    pub(super) fn met_a_lock(&self) {
        if let HeartbeatState::Well { takes_from, .. } = &mut *self.shared.heartbeats() {
            *takes_from = Instant::now() + period(self.shared.lease) * 2;
        }
    }

    /// Whether this worker holds the job.
    pub(super) fn holds(&self, job: JobId) -> bool {
        self.shared.lock().values().any(|lease| lease.job == job)
    }

    /// Returns the jobs held.
    pub(super) fn held(&self) -> Vec<(JobId, Attempt)> {
        self.shared.all().iter().map(|l| (l.job, l.attempt)).collect()
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        self.shared.closing.store(true, Ordering::Relaxed);
    }
}

/// Returns the interval between heartbeats: three may fail within a lease, and a cancellation is noticed within about a
/// second.
fn period(lease: Duration) -> Duration {
    (lease / 4).min(Duration::from_secs(1))
}

async fn beat_until_closed(shared: Arc<Shared>, store: Arc<dyn Store>) {
    let mut tick = tokio::time::interval(period(shared.lease));
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    // Without jobs, the store is still called now and then, so that the connection exists before it is needed.
    let (mut ping_at, mut renewed_at) = (Instant::now(), Instant::now());
    while !shared.closing.load(Ordering::Relaxed) {
        tick.tick().await;
        let _beating = shared.beating.lock().await;
        let leases = shared.all();
        let answered = if leases.is_empty() {
            if Instant::now() < ping_at {
                continue;
            }
            matches!(tokio::time::timeout(shared.lease / 2, store.ping()).await, Ok(Ok(())))
        } else {
            let beats = join_all(leases.iter().map(|lease| beat(lease, &*store, shared.lease))).await;
            if beats.contains(&Beat::Answered) {
                renewed_at = Instant::now();
            }
            // One locked row says nothing about the others; all of them, for long, that no lease can be kept.
            let locked = beats.contains(&Beat::Refused) && renewed_at.elapsed() < shared.lease / 2;
            locked || beats.contains(&Beat::Answered)
        };
        if leases.is_empty() {
            renewed_at = Instant::now();
        }
        // A failed call is repeated at each tick.
        ping_at = Instant::now() + if answered { shared.lease / 4 } else { Duration::ZERO };
        shared.note(answered);
    }
}

/// What came of a heartbeat.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Beat {
    /// The store renewed the lease, or said that it is lost.
    Answered,
    /// It refused this call alone, for example because of a lock.
    Refused,
    /// It did not answer.
    Failed,
}

async fn beat(lease: &Lease, store: &dyn Store, length: Duration) -> Beat {
    let progress = f32::from_bits(lease.progress.load(Ordering::Relaxed));
    let answer = store.heartbeat(lease.job, lease.attempt, length, lease.stage(), progress);
    match tokio::time::timeout(length / 2, answer).await {
        Ok(Ok(Held::Yes { cancel })) => {
            if cancel {
                lease.stop.stop(StopReason::Cancelled);
            }
            Beat::Answered
        }
        Ok(Ok(Held::Lost)) => {
            lease.stop.stop(StopReason::LeaseLost);
            Beat::Answered
        }
        failed => {
            metrics::counter!(telemetry::HEARTBEAT_ERRORS).increment(1);
            let Ok(Err(error)) = failed else { return Beat::Failed };
            super::outage::log_unless!(error.is_outage(), warn, job = %lease.job, %error, "heartbeat failed");
            if error.is_outage() { Beat::Failed } else { Beat::Refused }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A keeper without a thread, in this state.
    fn keeper(lease: Duration, state: HeartbeatState) -> Keeper {
        let shared = Shared {
            leases: Mutex::default(),
            next: AtomicU64::new(0),
            closing: AtomicBool::new(false),
            lease,
            beating: tokio::sync::Mutex::default(),
            heartbeats: Mutex::new(state),
        };
        Keeper { shared: Arc::new(shared) }
    }

    #[test]
    fn no_job_is_taken_once_the_last_heartbeat_is_long_ago() {
        let now = Instant::now();
        let well = || HeartbeatState::Well { takes_from: now, last: now };
        let silent = keeper(Duration::ZERO, well());
        std::thread::sleep(Duration::from_millis(1));
        assert!(!silent.may_take(), "as if its thread were stuck");
        assert!(keeper(Duration::from_secs(3600), well()).may_take());
    }

    #[test]
    fn no_job_is_taken_for_a_moment_after_a_lock_was_met() {
        let now = Instant::now();
        let keeper = keeper(Duration::from_secs(3600), HeartbeatState::Well { takes_from: now, last: now });
        keeper.met_a_lock();
        assert!(!keeper.may_take());
        let failing = self::keeper(Duration::from_secs(3600), HeartbeatState::Failing);
        failing.met_a_lock();
        failing.shared.note(true);
        assert!(!failing.may_take(), "other workers renew their leases first");
    }
}
