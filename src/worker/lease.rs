//! Heartbeats, from a thread of their own with a runtime of its own and a store connection of its own: however busy
//! the rest of the process is, a living worker is never taken for a dead one.
//!
//! A lease is lost when the store says so, not when it cannot be renewed: whoever cannot reach the store can do nothing
//! better than to go on with what it has, and the store refuses the result if another has the job by then. But while no
//! heart beats no job is taken, since its lease could not be kept; nor in the first moments after, in which all who live
//! renew the leases that lapsed meanwhile.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use futures::future::join_all;

use crate::backend::Progress;
use crate::model::{Attempt, JobId, Stage, StopReason, StopToken, locked};
use crate::store::{Held, Store};
use crate::telemetry;

/// A job in hand, as the heartbeat sees it.
pub(super) struct Lease {
    job: JobId,
    attempt: Attempt,
    stop: StopToken,
    stage: AtomicU8,
    /// Whether its proof has begun on a device.
    begun: AtomicBool,
    /// Bits of an f32.
    progress: AtomicU32,
}

impl Lease {
    /// Notes what the job is at.
    pub(super) fn enter(&self, stage: Stage) {
        let at = Stage::ALL.iter().position(|s| *s == stage).unwrap_or(0);
        self.stage.store(at as u8, Ordering::Relaxed);
        self.progress.store(0, Ordering::Relaxed);
    }

    /// Notes that its proof begins on a device.
    pub(super) fn begin(&self) {
        self.begun.store(true, Ordering::Relaxed);
    }

    fn stage(&self) -> Stage {
        Stage::ALL.get(usize::from(self.stage.load(Ordering::Relaxed))).copied().unwrap_or(Stage::Load)
    }
}

impl Progress for Lease {
    /// Several threads report on one proof, and the one that did less may come last. The bits of numbers from 0 up are in the
    /// order of the numbers.
    fn report(&self, fraction: f32) {
        self.progress.fetch_max(fraction.max(0.0).to_bits(), Ordering::Relaxed);
    }
}

/// Leases in hand. Dropping it ends the thread.
pub(super) struct Keeper {
    shared: Arc<Shared>,
}

struct Shared {
    leases: Mutex<HashMap<u64, Arc<Lease>>>,
    next: AtomicU64,
    closing: AtomicBool,
    lease: Duration,
    /// Held while hearts beat.
    beating: tokio::sync::Mutex<()>,
    health: Mutex<Health>,
}

/// Whether hearts beat.
enum Health {
    /// None did so far.
    Unknown,
    /// They do, and jobs are taken from then on.
    Well { takes_from: Instant },
    /// They do not.
    Failing,
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

    fn health(&self) -> MutexGuard<'_, Health> {
        locked(&self.health)
    }

    /// Notes whether the store answered.
    fn note(&self, answered: bool) {
        let mut health = self.health();
        match (&*health, answered) {
            (Health::Unknown, true) => *health = Health::Well { takes_from: Instant::now() },
            (Health::Failing, true) => {
                tracing::info!("heartbeats go through again");
                // Time for others that live to renew theirs.
                *health = Health::Well { takes_from: Instant::now() + period(self.lease) * 2 };
            }
            (Health::Unknown | Health::Well { .. }, false) => {
                tracing::error!("no heartbeat goes through; jobs in hand go on, and none are taken until one does");
                *health = Health::Failing;
            }
            (Health::Well { .. }, true) | (Health::Failing, false) => {}
        }
    }
}

impl Keeper {
    /// Starts the thread. `store` is best one that nothing else uses.
    pub(super) fn start(store: Arc<dyn Store>, lease: Duration) -> std::io::Result<Self> {
        let shared = Arc::new(Shared {
            leases: Mutex::default(),
            next: AtomicU64::new(0),
            closing: AtomicBool::new(false),
            lease,
            beating: tokio::sync::Mutex::default(),
            health: Mutex::new(Health::Unknown),
        });
        let keeper = Self { shared: shared.clone() };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        std::thread::Builder::new()
            .name("heartbeat".to_owned())
            .spawn(move || runtime.block_on(beat_for_ever(&shared, store.as_ref())))?;
        Ok(keeper)
    }

    /// Keeps this lease, just claimed, alive.
    pub(super) fn hold(&self, job: JobId, attempt: Attempt, stop: StopToken) -> Hold {
        let lease = Arc::new(Lease {
            job,
            attempt,
            stop,
            stage: AtomicU8::new(0),
            begun: AtomicBool::new(false),
            progress: AtomicU32::new(0),
        });
        let number = self.shared.next.fetch_add(1, Ordering::Relaxed);
        self.shared.lock().insert(number, lease.clone());
        Hold { shared: self.shared.clone(), number, lease }
    }

    /// Asks jobs in hand to stop: all, or those alone whose proof has not begun. Returns how many had not been asked before.
    pub(super) fn stop(&self, why: StopReason, all: bool) -> usize {
        let leases = self.shared.all();
        let chosen = leases.iter().filter(|l| all || !l.begun.load(Ordering::Relaxed));
        chosen.filter(|lease| lease.stop.stopped().is_none()).inspect(|lease| lease.stop.stop(why)).count()
    }

    /// No heart beats while the guard lives, for a fault that wants it so.
    pub(super) async fn silence(&self) -> tokio::sync::MutexGuard<'_, ()> {
        self.shared.beating.lock().await
    }

    /// Whether the lease of a job that is taken now would be kept.
    pub(super) fn may_take(&self) -> bool {
        matches!(*self.shared.health(), Health::Well { takes_from } if Instant::now() >= takes_from)
    }

    /// Whether this worker has the job in hand.
    pub(super) fn holds(&self, job: JobId) -> bool {
        self.shared.lock().values().any(|lease| lease.job == job)
    }

    /// Jobs in hand.
    pub(super) fn held(&self) -> Vec<(JobId, Attempt)> {
        self.shared.all().iter().map(|l| (l.job, l.attempt)).collect()
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        self.shared.closing.store(true, Ordering::Relaxed);
    }
}

/// Often enough that three beats may fail, and that a cancel is heard within about a second.
fn period(lease: Duration) -> Duration {
    (lease / 4).min(Duration::from_secs(1))
}

async fn beat_for_ever(shared: &Shared, store: &dyn Store) {
    let mut tick = tokio::time::interval(period(shared.lease));
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    // With nothing in hand the store is called now and then, too: the connection is to be there before a job is.
    let mut ping_at = Instant::now();
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
            join_all(leases.iter().map(|lease| beat(lease, store, shared.lease))).await.contains(&true)
        };
        // One that failed is tried at each tick.
        ping_at = Instant::now() + if answered { shared.lease / 4 } else { Duration::ZERO };
        shared.note(answered);
    }
}

/// Renews a lease. Returns whether the store answered.
async fn beat(lease: &Lease, store: &dyn Store, length: Duration) -> bool {
    let progress = f32::from_bits(lease.progress.load(Ordering::Relaxed));
    let answer = store.heartbeat(lease.job, lease.attempt, length, lease.stage(), progress);
    match tokio::time::timeout(length / 2, answer).await {
        Ok(Ok(Held::Yes { cancel })) => {
            if cancel {
                lease.stop.stop(StopReason::Cancelled);
            }
            true
        }
        Ok(Ok(Held::Lost)) => {
            lease.stop.stop(StopReason::LeaseLost);
            true
        }
        failed => {
            metrics::counter!(telemetry::HEARTBEAT_ERRORS).increment(1);
            let Ok(Err(error)) = failed else { return false };
            super::outage::say!(error.is_outage(), warn, job = %lease.job, %error, "heartbeat failed");
            // A row that somebody holds says nothing of the next job's.
            !error.is_outage()
        }
    }
}
