//! The reconciler: from the store, which knows, to the queue, which may forget. And regular care of both.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use futures::StreamExt;
use metrics::{counter, gauge};

use super::{Context, pauses, retry};
use crate::model::{FailureClass, JobId, JobState};
use crate::queue::{Queue, QueueError};
use crate::store::{Due, Load, Store, StoreError};
use crate::telemetry;

/// How often overdue things are looked for, and how busy the queue is.
const TIDY_EVERY: Duration = Duration::from_secs(1);
/// How long a look at how busy it is may take before the store counts as gone. Millions of jobs are counted in less.
const UNANSWERED: Duration = Duration::from_secs(10);
/// How often all that is due is offered although as much waits.
const OFFER_EVERY: Duration = Duration::from_secs(10);
/// Least time between two looks for due jobs.
const LEAST: Duration = Duration::from_millis(20);
/// Jobs offered at a time. More than any worker starts before the next look.
const AT_A_TIME: u32 = 1000;
/// Jobs failed, or forgotten, at a time.
const SWEEP_LIMIT: u32 = 1000;
/// Jobs whose proofs are removed at a time.
const REMOVALS: usize = 32;
/// How often the queue is cared for.
const UPKEEP_EVERY: Duration = Duration::from_secs(5);
/// How often it is told whose it is, which changes where another database takes the place of the one before.
const TELL_EVERY: u32 = 12;

/// Offers due and lapsed jobs to the queue for ever: soon after another process changed the store, and at least every
/// second or quarter of a lease, whichever is shorter.
pub(super) async fn run(ctx: Arc<Context>) {
    let at_least = (ctx.options.lease / 4).min(Duration::from_secs(1));
    let mut well = true;
    let mut offered = None;
    loop {
        let looked = look(&ctx, &mut offered).await;
        if let Err(error) = &looked
            && well
            && !ctx.outage.covers(error)
        {
            tracing::error!(%error, "cannot look for due jobs; trying again every second");
        }
        well = looked.is_ok();
        // One change wakes every worker of a fleet without Redis: let many changes be one look.
        tokio::time::sleep(LEAST.mul_f64(1.0 + retry::jitter())).await;
        if ctx.store.changed(at_least).await.is_err() {
            tokio::time::sleep(at_least).await;
        }
    }
}

/// `offered` is when all that was due was last offered, whether or not it waited already.
async fn look(ctx: &Context, offered: &mut Option<Instant>) -> Result<(), StoreError> {
    let due = ctx.store.due(AT_A_TIME).await?;
    if due.is_empty() {
        return Ok(());
    }
    // As many wait as are due: most likely those. To offer them all again each second would be much of the work of a
    // Redis server that many workers share.
    let lately = offered.is_some_and(|at| at.elapsed() < OFFER_EVERY);
    if lately && matches!(ctx.queue.depth().await, Ok(waiting) if waiting >= due.len() as u64) {
        return Ok(());
    }
    *offered = Some(Instant::now());
    let offered = offer(ctx.queue.as_ref(), &due).await;
    // The dispatcher goes to the store itself then; it cannot tell by what it is given, which may be nothing.
    let before = ctx.unoffered.swap(offered.is_err(), Ordering::Relaxed);
    match offered {
        Ok(()) if before => tracing::info!("the queue takes jobs again"),
        Ok(()) => {}
        Err(error) => {
            counter!(telemetry::QUEUE_ERRORS).increment(1);
            if !before {
                tracing::error!(%error, "the queue takes no jobs; they are taken from the store meanwhile");
            }
        }
    }
    Ok(())
}

/// Those that a worker had before come first: otherwise they would wait behind all that is newer.
async fn offer(queue: &dyn Queue, due: &[Due]) -> Result<(), QueueError> {
    let those = |again| due.iter().filter(move |d| d.again == again).map(|d| (d.id, d.priority)).collect::<Vec<_>>();
    queue.push_again(&those(true)).await?;
    queue.push(&those(false)).await
}

/// Fails what is overdue and shows how busy the queue is, for ever.
pub(super) async fn tidy(ctx: Arc<Context>) {
    let mut tick = tokio::time::interval(TIDY_EVERY);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut well = true;
    loop {
        tick.tick().await;
        let looked = async {
            ctx.store.ping().await?;
            sweep(&ctx).await?;
            Ok::<_, StoreError>((ctx.store.load().await?, ctx.store.paused().await?))
        };
        let tidied = show_answers(looked, UNANSWERED, |up| gauge!(telemetry::STORE_UP).set(f64::from(up))).await;
        if let Ok((load, paused)) = &tidied {
            show(load);
            pauses::show(paused);
        }
        // A look that fails by itself, for what it counts or who holds it, keeps nobody from work.
        if !tidied.as_ref().is_err_and(StoreError::is_outage) {
            ctx.outage.answered();
        }
        if let Err(error) = &tidied
            && !ctx.outage.covers(error)
            && well
        {
            tracing::error!(%error, "cannot look for overdue jobs; trying again every second");
        }
        well = tidied.is_ok();
    }
}

/// Shows whether a call is answered: not while it takes longer than `patience` either.
async fn show_answers<T, E>(
    call: impl Future<Output = Result<T, E>>,
    patience: Duration,
    show: impl Fn(bool),
) -> Result<T, E> {
    tokio::pin!(call);
    let answer = match tokio::time::timeout(patience, &mut call).await {
        Ok(answer) => answer,
        Err(_) => {
            show(false);
            call.await
        }
    };
    show(answer.is_ok());
    answer
}

async fn sweep(ctx: &Context) -> Result<(), StoreError> {
    let done = ctx.store.sweep(SWEEP_LIMIT).await?;
    for job in &done.expired {
        tracing::warn!(%job, "job failed: no worker began it in time");
    }
    let expired = done.expired.len() as u64;
    counter!(telemetry::JOBS_EXPIRED).increment(expired);
    counter!(telemetry::JOB_FAILURES, "class" => FailureClass::Timeout.as_str()).increment(expired);
    if !done.expired.is_empty() {
        // Beside this: there may be many, and each is looked up.
        let service = ctx.service.clone();
        tokio::spawn(async move { service.tell_ended_so(&done.expired, JobState::Failed).await });
    }
    Ok(())
}

/// Forgets jobs beyond the retention, for ever, if there is one. A task of its own: removing many proofs from a remote
/// store takes long, and neither expiry nor the metrics may wait for it. Those that are forgotten are no more at a time
/// than whose proofs are removed before the next.
pub(super) async fn forget(ctx: Arc<Context>) {
    let Some(retention) = ctx.options.retention else { return std::future::pending().await };
    let mut well = true;
    loop {
        let purged = ctx.store.purge(&JobState::ALL, retention, SWEEP_LIMIT).await;
        if let Err(error) = &purged
            && well
            && !ctx.outage.covers(error)
        {
            tracing::error!(%error, "cannot forget jobs beyond the retention; trying again every second");
        }
        well = purged.is_ok();
        let purged = purged.unwrap_or_default();
        counter!(telemetry::JOBS_PURGED).increment(purged.len() as u64);
        many_at_once(&purged, |job| ctx.artifacts.remove_proof(job)).await;
        if purged.len() < SWEEP_LIMIT as usize {
            tokio::time::sleep(TIDY_EVERY).await;
        }
    }
}

async fn many_at_once<E: std::fmt::Display, F>(jobs: &[JobId], remove: impl Fn(JobId) -> F)
where
    F: Future<Output = Result<(), E>>,
{
    let each = futures::stream::iter(jobs);
    each.for_each_concurrent(REMOVALS, |job| {
        let removed = remove(*job);
        async move {
            if let Err(error) = removed.await {
                tracing::warn!(%job, %error, "the proof files of a forgotten job could not be removed");
            }
        }
    })
    .await;
}

fn show(load: &Load) {
    gauge!(telemetry::QUEUE_DEPTH).set(load.queued as f64);
    gauge!(telemetry::JOBS_RUNNING).set(load.running as f64);
    gauge!(telemetry::QUEUE_OLDEST).set(load.oldest_ms as f64 / 1e3);
    gauge!(telemetry::QUEUE_DRAIN).set(drain_seconds(load));
}

/// Seconds until what waits is done, if jobs go on ending as within the last minute.
fn drain_seconds(load: &Load) -> f64 {
    if load.queued == 0 { 0.0 } else { load.queued as f64 * 60.0 / load.ended_last_minute as f64 }
}

/// Cares for the queue, for ever.
pub(super) async fn keep_queue(queue: Arc<dyn Queue>, store: Arc<dyn Store>) {
    let mut tick = tokio::time::interval(UPKEEP_EVERY);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut told: Option<u32> = None;
    for n in 0_u32.. {
        tick.tick().await;
        // Never in the way of the care for longer than the queue would be its database's without.
        if told.is_none_or(|at| n.wrapping_sub(at) >= TELL_EVERY) {
            match tokio::time::timeout(UPKEEP_EVERY, store.identity()).await {
                Ok(Ok(identity)) => {
                    told = Some(n);
                    // One that does not say just now is the one before, as far as anybody can tell.
                    if let Some(identity) = identity {
                        queue.belong_to(&identity);
                    }
                }
                Ok(Err(error)) => tracing::debug!(%error, "the store did not say which it is"),
                Err(_) => tracing::debug!("the store did not say in time which it is"),
            }
        }
        if let Err(error) = queue.upkeep().await {
            tracing::debug!(%error, "the queue could not be cared for");
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;
    use crate::model::Priority;
    use crate::queue::{MemoryQueue, Offer};

    #[tokio::test]
    async fn what_a_worker_had_before_is_offered_ahead_of_what_waits() {
        let queue = MemoryQueue::new();
        let ids: Vec<JobId> = (0..4).map(|_| JobId::new()).collect();
        let due = |n: usize, again| Due { id: ids[n], priority: Priority(0), again };
        offer(&queue, &[due(1, false), due(2, false)]).await.unwrap();
        offer(&queue, &[due(0, true), due(1, false), due(2, false), due(3, false)]).await.unwrap();
        let got = queue.pop(9, Duration::ZERO).await.unwrap();
        let got: Vec<String> = got.iter().map(|d| format!("{:?}", d.offer)).collect();
        assert_eq!(got, ids.iter().map(|id| format!("{:?}", Offer::Job(*id))).collect::<Vec<_>>());
    }

    /// One after the other, a remote store would forget a few jobs a second.
    #[tokio::test]
    async fn proofs_are_removed_many_at_once_and_one_failure_ends_nothing() {
        let jobs: Vec<JobId> = (0..100).map(|_| JobId::new()).collect();
        let (begun, full) = (AtomicUsize::new(0), tokio::sync::Barrier::new(REMOVALS));
        many_at_once(&jobs, async |_| {
            let n = begun.fetch_add(1, Ordering::SeqCst) + 1;
            if n <= REMOVALS {
                // The first go on once as many as may be are under way.
                full.wait().await;
            }
            if n % 2 == 0 { Err("made up") } else { Ok(()) }
        })
        .await;
        assert_eq!(begun.into_inner(), 100);
    }

    #[tokio::test]
    async fn a_store_that_fails_or_hangs_is_shown_to() {
        let shown = std::sync::Mutex::new(Vec::new());
        let show = |up| shown.lock().unwrap().push(up);
        let long = Duration::from_secs(600);
        assert_eq!(show_answers(async { Ok::<_, ()>(1) }, long, show).await, Ok(1));
        assert_eq!(show_answers(async { Err::<(), _>(2) }, long, show).await, Err(2));
        // One that answers only once it was given up.
        let answers = std::future::poll_fn(|cx| {
            if shown.lock().unwrap().len() > 2 {
                return std::task::Poll::Ready(Ok::<_, ()>(3));
            }
            cx.waker().wake_by_ref();
            std::task::Poll::Pending
        });
        assert_eq!(show_answers(answers, Duration::from_millis(1), show).await, Ok(3));
        assert_eq!(shown.into_inner().unwrap(), [true, false, false, true]);
    }

    #[test]
    fn the_time_to_drain_is_by_the_last_minutes_pace() {
        let load = |queued, ended_last_minute| Load { queued, ended_last_minute, ..Load::default() };
        assert_eq!(drain_seconds(&load(0, 0)), 0.0);
        assert_eq!(drain_seconds(&load(120, 60)), 120.0);
        assert_eq!(drain_seconds(&load(1, 0)), f64::INFINITY);
    }
}
