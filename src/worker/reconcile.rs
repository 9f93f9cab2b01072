//! The reconciler: from the store, which knows, to the queue, which may forget. And regular care of both.

use std::sync::Arc;
use std::time::{Duration, Instant};

use metrics::{counter, gauge};

use super::{Context, retry};
use crate::model::{JobId, JobState};
use crate::queue::{Queue, QueueError};
use crate::store::{Due, Load, StoreError, Sweep};
use crate::telemetry;

/// How often overdue things are looked for, and how busy the queue is.
const TIDY_EVERY: Duration = Duration::from_secs(1);
/// How often all that is due is offered although as much waits.
const OFFER_EVERY: Duration = Duration::from_secs(10);
/// Least time between two looks for due jobs.
const LEAST: Duration = Duration::from_millis(20);
/// Jobs offered at a time. More than any worker starts before the next look.
const AT_A_TIME: u32 = 1000;
/// Jobs forgotten or failed at a time.
const SWEEP_LIMIT: u32 = 1000;
/// How often the queue is cared for.
const UPKEEP_EVERY: Duration = Duration::from_secs(5);

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
    if let Err(error) = offer(ctx.queue.as_ref(), &due).await {
        // The dispatcher says so, and goes to the store itself.
        counter!(telemetry::QUEUE_ERRORS).increment(1);
        tracing::debug!(%error, "due jobs could not be offered");
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
        let tidied = match sweep(&ctx).await {
            Ok(()) => ctx.store.load().await.map(|load| show(&load)),
            Err(error) => Err(error),
        };
        if let Err(error) = &tidied
            && well
        {
            tracing::error!(%error, "cannot look for overdue jobs; trying again every second");
        }
        well = tidied.is_ok();
    }
}

async fn sweep(ctx: &Context) -> Result<(), StoreError> {
    let done = ctx.store.sweep(Sweep { retention: ctx.options.retention, limit: SWEEP_LIMIT }).await?;
    for job in &done.expired {
        tracing::warn!(%job, "job failed: no worker began it in time");
    }
    counter!(telemetry::JOBS_EXPIRED).increment(done.expired.len() as u64);
    counter!(telemetry::JOBS_PURGED).increment(done.purged.len() as u64);
    for job in &done.purged {
        if let Err(error) = ctx.artifacts.remove_proof(*job).await {
            tracing::warn!(%job, %error, "the proof files of a forgotten job could not be removed");
        }
    }
    Ok(())
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
pub(super) async fn keep_queue(queue: Arc<dyn Queue>) {
    let mut tick = tokio::time::interval(UPKEEP_EVERY);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        if let Err(error) = queue.upkeep().await {
            tracing::debug!(%error, "the queue could not be cared for");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_to_drain_is_by_the_last_minutes_pace() {
        let load = |queued, ended_last_minute| Load { queued, ended_last_minute, ..Load::default() };
        assert_eq!(drain_seconds(&load(0, 0)), 0.0);
        assert_eq!(drain_seconds(&load(120, 60)), 120.0);
        assert_eq!(drain_seconds(&load(1, 0)), f64::INFINITY);
    }
}
