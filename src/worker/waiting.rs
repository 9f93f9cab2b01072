//! Waiting for jobs to end. However many wait in a process, one look at the store at a time serves them all.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use crate::model::{JobId, locked};
use crate::store::Store;

/// Time between looks while somebody waits: of the order of the smallest proofs.
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// The store is at work for one part in so many on behalf of those who wait, as long as it is quick.
const SHARE: u32 = 10;
/// Time between looks while the store fails.
const AFTER_FAILURE: Duration = Duration::from_secs(1);

/// Who waits for what.
#[derive(Clone)]
pub(super) struct Waiting {
    store: Arc<dyn Store>,
    waiters: Arc<Mutex<Waiters>>,
}

#[derive(Default)]
struct Waiters {
    /// Dropped when the job has ended, which tells the other side.
    by_job: HashMap<JobId, Vec<oneshot::Sender<()>>>,
    /// There is a task that looks.
    looking: bool,
}

impl Waiting {
    pub(super) fn new(store: Arc<dyn Store>) -> Self {
        Self { store, waiters: Arc::default() }
    }

    /// Returns when the job is neither queued nor running any more, or after `at_most`.
    pub(super) async fn ended(&self, job: JobId, at_most: Duration) {
        // Either way of ending says that there is no more to wait for.
        let _ = tokio::time::timeout(at_most, self.enter(job)).await;
    }

    /// Sees to it that somebody looks for the job's end, and tells by this.
    fn enter(&self, job: JobId) -> oneshot::Receiver<()> {
        let (waiter, told) = oneshot::channel();
        let mut waiters = self.waiters();
        waiters.by_job.entry(job).or_default().push(waiter);
        if !std::mem::replace(&mut waiters.looking, true) {
            tokio::spawn(self.clone().look());
        }
        told
    }

    /// Tells those who wait for this job that it has ended; what others end, the next look finds.
    pub(super) fn tell(&self, job: JobId) {
        self.waiters().by_job.remove(&job);
    }

    fn waiters(&self) -> MutexGuard<'_, Waiters> {
        locked(&self.waiters)
    }

    /// Looks at the store until nobody waits any more.
    async fn look(self) {
        let mut pause = LOOK_EVERY;
        loop {
            tokio::time::sleep(pause).await;
            let Some(jobs) = self.waited_for() else { return };
            let began = Instant::now();
            pause = match self.store.unfinished(&jobs).await {
                Ok(unfinished) => {
                    let unfinished: HashSet<_> = unfinished.into_iter().collect();
                    let mut waiters = self.waiters();
                    // Those that somebody began to wait for meanwhile were not looked at.
                    for ended in jobs.iter().filter(|job| !unfinished.contains(job)) {
                        waiters.by_job.remove(ended);
                    }
                    (began.elapsed() * SHARE).clamp(LOOK_EVERY, AFTER_FAILURE)
                }
                Err(error) => {
                    tracing::debug!(%error, "cannot look for jobs that somebody waits for");
                    AFTER_FAILURE
                }
            };
        }
    }

    /// The jobs that somebody still waits for; where there are none, the task that looks ends with that.
    fn waited_for(&self) -> Option<Vec<JobId>> {
        let mut waiters = self.waiters();
        waiters.by_job.retain(|_, waiting| {
            waiting.retain(|waiter| !waiter.is_closed());
            !waiting.is_empty()
        });
        waiters.looking = !waiters.by_job.is_empty();
        waiters.looking.then(|| waiters.by_job.keys().copied().collect())
    }
}
