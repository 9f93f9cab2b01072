//! The reconciler: from the store, which knows, to the queue, which may forget.

use std::sync::Arc;
use std::time::{Duration, Instant};

use metrics::gauge;

use crate::queue::Queue;
use crate::store::{Store, StoreError};
use crate::telemetry;

/// How often jobs are counted at most.
const COUNT_EVERY: Duration = Duration::from_secs(1);
/// Jobs offered at a time. More than any worker starts before the next look.
const AT_A_TIME: u32 = 1000;

/// Offers due and lapsed jobs to the queue for ever: soon after another process changed the store, and at least every
/// second or quarter of a lease, whichever is shorter.
pub(super) async fn run(store: Arc<dyn Store>, queue: Arc<dyn Queue>, lease: Duration) {
    let at_least = (lease / 4).min(Duration::from_secs(1));
    let mut counted = None::<Instant>;
    let mut well = true;
    loop {
        let _ = store.changed(at_least).await;
        let offered = offer(store.as_ref(), queue.as_ref()).await;
        if let Err(error) = &offered
            && well
        {
            tracing::error!(%error, "cannot look for due jobs; trying again every second");
        }
        well = offered.is_ok();
        if well && counted.is_none_or(|at| at.elapsed() >= COUNT_EVERY) {
            counted = Some(Instant::now());
            count(store.as_ref()).await;
        }
    }
}

async fn offer(store: &dyn Store, queue: &dyn Queue) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    Ok(queue.push(&store.due(AT_A_TIME).await?).await?)
}

async fn count(store: &dyn Store) {
    let counts: Result<_, StoreError> = store.counts().await;
    if let Ok(counts) = counts {
        gauge!(telemetry::QUEUE_DEPTH).set(counts.queued as f64);
        gauge!(telemetry::JOBS_RUNNING).set(counts.running as f64);
    }
}
