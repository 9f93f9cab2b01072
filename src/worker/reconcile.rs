//! The reconciler: offers what the store knows to be due to the queue, which may have lost it. Also the regular
//! maintenance of both.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use metrics::{counter, gauge};

use super::{Context, pauses, proof_files};
use crate::model::{FailureClass, JobState, jitter};
use crate::queue::{Precedence, Queue, QueueError};
use crate::store::{Due, Load, Purge, StoreError};
use crate::telemetry;

/// How often overdue jobs and jobs past their retention are looked for, and the load of the queue is measured.
const EXPIRE_EVERY: Duration = Duration::from_secs(1);
/// How long measuring the load may take before the store counts as down. Millions of jobs are counted in less.
const UNANSWERED: Duration = Duration::from_secs(10);
/// How often all due jobs are offered even though the queue holds as many.
const OFFER_EVERY: Duration = Duration::from_secs(10);
/// Shortest interval between two queries for due jobs.
const MIN_PAUSE: Duration = Duration::from_millis(20);
/// Most jobs offered at a time: more than any worker starts before the next query.
const MAX_OFFERED: u32 = 1000;
/// How long jobs whose proof files could not be removed are left alone, and content that jobs still need.
const REMOVE_AGAIN: Duration = Duration::from_secs(600);
/// Most jobs expired at a time.
const SWEEP_LIMIT: u32 = 1000;
/// Interval of the queue's maintenance.
const UPKEEP_EVERY: Duration = Duration::from_secs(5);
/// Number of such intervals after which the queue is given the identity of its database again, which changes where
/// another database replaces it.
const IDENTIFY_EVERY: u32 = 12;

/// The failures of a task that retries every second: only the first of several in a row is logged.
struct Failures {
    what: &'static str,
    failing: bool,
}

impl Failures {
    fn of(what: &'static str) -> Self {
        Self { what, failing: false }
    }

    /// Notes a result. `covered` says whether the log has the failure already, as part of an outage; it is only asked
    /// about the first failure in a row.
    fn note<T>(&mut self, result: &Result<T, StoreError>, covered: impl FnOnce(&StoreError) -> bool) {
        if let Err(error) = result
            && !self.failing
            && !covered(error)
        {
            tracing::error!(%error, "{}; trying again every second", self.what);
        }
        self.failing = result.is_err();
    }
}

/// Offers due and lapsed jobs to the queue forever: soon after another process changed the store, and at least every
/// second or quarter of a lease, whichever is shorter.
pub(super) async fn run(ctx: Arc<Context>) {
    let at_least = (ctx.options.lease / 4).min(Duration::from_secs(1));
    let mut failures = Failures::of("cannot look for due jobs");
    let mut offered = None;
    loop {
        let result = offer_due(&ctx, &mut offered).await;
        failures.note(&result, |error| ctx.outage.note_failure(error));
        // One change wakes every worker of a fleet without Redis: combine many changes into one query.
        tokio::time::sleep(MIN_PAUSE.mul_f64(1.0 + jitter())).await;
        if ctx.store.changed(at_least).await.is_err() {
            tokio::time::sleep(at_least).await;
        }
    }
}

/// `offered` is the last time that all due jobs were offered, whether or not they were in the queue already.
async fn offer_due(ctx: &Context, offered: &mut Option<Instant>) -> Result<(), StoreError> {
    let due = ctx.store.due(MAX_OFFERED).await?;
    if due.is_empty() {
        return Ok(());
    }
    // The queue holds as many jobs as are due: most likely the same ones. To offer them all again each second would be
    // much of the work of a Redis server that many workers share.
    let lately = offered.is_some_and(|at| at.elapsed() < OFFER_EVERY);
    if lately && matches!(ctx.queue.depth().await, Ok(waiting) if waiting >= due.len() as u64) {
        return Ok(());
    }
    *offered = Some(Instant::now());
    let offered = offer(ctx.queue.as_ref(), &due).await;
    // Makes the dispatcher ask the store itself. It cannot tell from what the queue delivers, which may be nothing.
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

/// Offers jobs, those that a worker had before first: otherwise they would wait behind all newer ones.
async fn offer(queue: &dyn Queue, due: &[Due]) -> Result<(), QueueError> {
    let those = |again| due.iter().filter(move |d| d.again == again).map(|d| (d.id, d.priority)).collect::<Vec<_>>();
    queue.push(&those(true), Precedence::Returning).await?;
    queue.push(&those(false), Precedence::New).await
}

/// Fails overdue jobs and publishes the load of the queue, forever.
pub(super) async fn expire_and_measure(ctx: Arc<Context>) {
    let mut tick = tokio::time::interval(EXPIRE_EVERY);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut failures = Failures::of("cannot look for overdue jobs");
    loop {
        tick.tick().await;
        let work = async {
            ctx.store.ping().await?;
            sweep(&ctx).await?;
            Ok::<_, StoreError>((ctx.store.load().await?, ctx.store.paused().await?))
        };
        let done = show_answers(work, UNANSWERED, |up| gauge!(telemetry::STORE_UP).set(f64::from(up))).await;
        if let Ok((load, paused)) = &done {
            show(load);
            pauses::show(paused);
        }
        // A query that fails by itself, for what it counts or because of a lock, does not keep the worker from its
        // jobs.
        if !done.as_ref().is_err_and(StoreError::is_outage) {
            ctx.outage.answered();
        }
        // Noted each time, so that an outage that lasts is logged again.
        let covered = done.as_ref().is_err_and(|error| ctx.outage.note_failure(error));
        failures.note(&done, |_| covered);
    }
}

/// Reports whether a call is answered; one that takes longer than `patience` counts as unanswered until it is.
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
        tracing::warn!(%job, "job failed: no worker claimed it in time");
    }
    let expired = done.expired.len() as u64;
    counter!(telemetry::JOBS_EXPIRED).increment(expired);
    counter!(telemetry::JOB_FAILURES, "class" => FailureClass::Timeout.as_str()).increment(expired);
    if !done.expired.is_empty() {
        // In a task of its own: there may be many, and each is looked up.
        let service = ctx.service.clone();
        tokio::spawn(async move { service.announce_ended_by_id(&done.expired, JobState::Failed).await });
    }
    Ok(())
}

/// Purges jobs older than the retention forever, if one is set. A separate task, because removing many proofs from a
/// remote store takes long, and neither expiry nor the metrics may wait for it.
pub(super) async fn purge_old_jobs(ctx: Arc<Context>) {
    let Some(retention) = ctx.options.retention else { return std::future::pending().await };
    let mut failures = Failures::of("cannot purge jobs past their retention");
    loop {
        let which = Purge { states: &JobState::ALL, older_than: retention };
        let purged = proof_files::purge(&*ctx.store, &ctx.artifacts, &which).await;
        failures.note(&purged, |error| ctx.outage.note_failure(error));
        let purged = purged.unwrap_or_default();
        counter!(telemetry::JOBS_PURGED).increment(purged.jobs);
        tokio::time::sleep(if purged.kept == 0 { EXPIRE_EVERY } else { REMOVE_AGAIN }).await;
    }
}

/// Removes content that neither a circuit nor a job needs, forever.
pub(super) async fn remove_unneeded_content(ctx: Arc<Context>) {
    loop {
        match ctx.registry.remove_unneeded().await {
            Err(error) if !ctx.outage.note_failure(&error) => {
                tracing::warn!(%error, "content that no circuit needs is not removed yet");
            }
            _ => {}
        }
        tokio::time::sleep(REMOVE_AGAIN.mul_f64(1.0 + jitter())).await;
    }
}

fn show(load: &Load) {
    gauge!(telemetry::QUEUE_DEPTH).set(load.queued as f64);
    gauge!(telemetry::JOBS_RUNNING).set(load.running as f64);
    gauge!(telemetry::QUEUE_OLDEST).set(load.oldest_ms as f64 / 1e3);
    gauge!(telemetry::QUEUE_DRAIN).set(drain_seconds(load));
}

/// Returns the seconds until the queued jobs are done, if jobs keep ending at the rate of the last minute.
fn drain_seconds(load: &Load) -> f64 {
    if load.queued == 0 { 0.0 } else { load.queued as f64 * 60.0 / load.ended_last_minute as f64 }
}

/// Maintains the queue, forever.
pub(super) async fn keep_queue(ctx: Arc<Context>) {
    let mut tick = tokio::time::interval(UPKEEP_EVERY);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut given_at: Option<u32> = None;
    for n in 0_u32.. {
        tick.tick().await;
        // Does not delay the maintenance for longer than the queue keeps its database's name without it.
        if given_at.is_none_or(|at| n.wrapping_sub(at) >= IDENTIFY_EVERY) {
            match tokio::time::timeout(UPKEEP_EVERY, ctx.store.identity()).await {
                Ok(Ok(identity)) => {
                    given_at = Some(n);
                    // A store without an answer now is the same as before, as far as can be known.
                    if let Some(identity) = identity {
                        ctx.queue.belong_to(&identity);
                    }
                }
                Ok(Err(error)) => tracing::debug!(%error, "the store's identity could not be read"),
                Err(_) => tracing::debug!("the store's identity could not be read in time"),
            }
        }
        let done = ctx.queue.upkeep().await;
        ctx.queue_health.note_upkeep(done.is_ok());
        if let Err(error) = done {
            tracing::debug!(%error, "the queue's maintenance failed");
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::model::{JobId, Priority};
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

    #[tokio::test]
    async fn a_store_that_fails_or_hangs_is_shown_to() {
        let shown = std::sync::Mutex::new(Vec::new());
        let show = |up| shown.lock().unwrap().push(up);
        let long = Duration::from_secs(600);
        assert_eq!(show_answers(async { Ok::<_, ()>(1) }, long, show).await, Ok(1));
        assert_eq!(show_answers(async { Err::<(), _>(2) }, long, show).await, Err(2));
        // Answers only after it was given up.
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
