//! Waiting for jobs to end. One query at a time serves all waiters of a process.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use crate::model::{JobId, locked};
use crate::store::Store;

/// Interval between queries while anything waits: of the order of the smallest proofs.
const POLL_EVERY: Duration = Duration::from_millis(20);
/// The store spends one part in this many of its time on queries for waiters, as long as it is quick.
const SHARE: u32 = 10;
/// Interval between queries while the store fails.
const AFTER_FAILURE: Duration = Duration::from_secs(1);

/// The waiters of a process, by job.
#[derive(Clone)]
pub(super) struct Waiting {
    store: Arc<dyn Store>,
    waiters: Arc<Mutex<Waiters>>,
}

#[derive(Default)]
struct Waiters {
    /// Dropped when the job has ended, which notifies the receivers.
    by_job: HashMap<JobId, Vec<oneshot::Sender<()>>>,
    /// Whether a task is polling.
    polling: bool,
}

impl Waiting {
    pub(super) fn new(store: Arc<dyn Store>) -> Self {
        Self { store, waiters: Arc::default() }
    }

    /// Returns once the job is neither queued nor running, or after `at_most`.
    pub(super) async fn ended(&self, job: JobId, at_most: Duration) {
        // Either result means that there is nothing left to wait for.
        let _ = tokio::time::timeout(at_most, self.enter(job)).await;
    }

    /// Adds a waiter and makes sure that a task polls. The returned receiver completes when the job has ended.
    fn enter(&self, job: JobId) -> oneshot::Receiver<()> {
        let (waiter, notified) = oneshot::channel();
        let mut waiters = self.waiters();
        waiters.by_job.entry(job).or_default().push(waiter);
        if !std::mem::replace(&mut waiters.polling, true) {
            tokio::spawn(self.clone().poll());
        }
        notified
    }

    /// Notifies those that wait for this job that it has ended. Jobs that others end are found by the next query.
    pub(super) fn notify(&self, job: JobId) {
        self.waiters().by_job.remove(&job);
    }

    fn waiters(&self) -> MutexGuard<'_, Waiters> {
        locked(&self.waiters)
    }

    /// Polls the store until nothing waits any more.
    async fn poll(self) {
        let mut pause = POLL_EVERY;
        loop {
            tokio::time::sleep(pause).await;
            let Some(jobs) = self.waited_for() else { return };
            let began = Instant::now();
            pause = match self.store.unfinished(&jobs).await {
                Ok(unfinished) => {
                    let unfinished: HashSet<_> = unfinished.into_iter().collect();
                    let mut waiters = self.waiters();
                    // Jobs with new waiters since the query were not part of it.
                    for ended in jobs.iter().filter(|job| !unfinished.contains(job)) {
                        waiters.by_job.remove(ended);
                    }
                    (began.elapsed() * SHARE).clamp(POLL_EVERY, AFTER_FAILURE)
                }
                Err(error) => {
                    tracing::debug!(%error, "cannot poll the jobs that are waited for");
                    AFTER_FAILURE
                }
            };
        }
    }

    /// Returns the jobs that are still waited for. If there are none, marks the polling task as ended.
    fn waited_for(&self) -> Option<Vec<JobId>> {
        let mut waiters = self.waiters();
        waiters.by_job.retain(|_, waiting| {
            waiting.retain(|waiter| !waiter.is_closed());
            !waiting.is_empty()
        });
        waiters.polling = !waiters.by_job.is_empty();
        waiters.polling.then(|| waiters.by_job.keys().copied().collect())
    }
}
