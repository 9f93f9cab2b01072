//! From the queue to the slots: as many jobs as there is room for, and messages into the store.

use std::sync::Arc;
use std::time::Duration;

use metrics::{counter, histogram};
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::{Context, attempt, ingest};
use crate::model::Job;
use crate::queue::{Delivery, Offer, QueueError};
use crate::store::Claim;
use crate::telemetry;

/// How long the queue is listened to before looking up.
const POP_WAIT: Duration = Duration::from_secs(1);
/// How long a queue may take beyond that before it counts as failing.
const POP_PATIENCE: Duration = Duration::from_secs(4);
/// How often the store is asked in place of a queue that fails.
const DETOUR: Duration = Duration::from_millis(250);
/// Jobs it is asked for beyond those there is room for.
const SPARE: usize = 64;
/// Messages recorded at once at most, beside jobs.
pub(super) const MESSAGES: usize = 16;

/// Takes jobs until the worker drains, then waits for those in hand.
pub(super) async fn run(ctx: Arc<Context>, mut draining: watch::Receiver<bool>) {
    let mut hands = JoinSet::new();
    let mut well = true;
    while !*draining.borrow() {
        while let Some(done) = hands.try_join_next() {
            report(done);
        }
        ctx.fleet.look_after(&ctx.canary);
        let free = ctx.fleet.free();
        if free == 0 {
            // A device that is fit again makes room too, and nobody tells.
            let _ = tokio::time::timeout(POP_WAIT / 10, ctx.fleet.freed()).await;
            continue;
        }
        let popped = tokio::select! {
            biased;
            _ = draining.changed() => break,
            popped = tokio::time::timeout(POP_PATIENCE, ctx.queue.pop(free, POP_WAIT)) => {
                let late = || QueueError::Unavailable(format!("no answer within {} s", POP_PATIENCE.as_secs()));
                popped.unwrap_or_else(|_| Err(late()))
            }
        };
        match popped {
            Ok(deliveries) => {
                well = true;
                deal_out(&ctx, deliveries, &mut hands).await;
            }
            Err(error) => {
                counter!(telemetry::QUEUE_ERRORS).increment(1);
                if std::mem::take(&mut well) {
                    tracing::error!(%error, "the queue fails; jobs are looked for in the store meanwhile");
                }
                detour(&ctx, free, &mut hands).await;
                let _ = tokio::time::timeout(DETOUR, draining.changed()).await;
            }
        }
    }
    while let Some(done) = hands.join_next().await {
        report(done);
    }
}

fn report(done: Result<(), tokio::task::JoinError>) {
    if let Err(e) = done
        && e.is_panic()
    {
        tracing::error!("a job's task panicked; its lease will lapse");
    }
}

async fn deal_out(ctx: &Arc<Context>, deliveries: Vec<Delivery>, hands: &mut JoinSet<()>) {
    // Places are counted when a job is claimed; the queue gave no more than there is room for.
    let mut claims = JoinSet::new();
    let mut messages = Vec::new();
    for delivery in deliveries {
        match &delivery.offer {
            Offer::Job(id) => {
                let (ctx, id) = (ctx.clone(), *id);
                claims.spawn(async move { (ctx.store.claim(id, &ctx.id, ctx.options.lease).await, delivery) });
            }
            Offer::Message(_) => messages.push(delivery),
        }
    }
    let mut over = Vec::new();
    let mut failed = false;
    while let Some(claimed) = claims.join_next().await {
        match claimed {
            Ok((Ok(Some(claim)), delivery)) => begin(ctx, claim, Some(delivery), hands),
            // Somebody else has it, it ended, or its time has not come.
            Ok((Ok(None), delivery)) => over.push(delivery),
            Ok((Err(error), delivery)) => {
                tracing::error!(offer = ?delivery.offer, %error, "could not claim");
                // The reconciler offers it again, once the store answers.
                over.push(delivery);
                failed = true;
            }
            Err(_) => tracing::error!("a claim's task panicked; the job will be offered again"),
        }
    }
    // Only now, when no claimed job waits for its heartbeat: either may take long.
    acknowledge(ctx, &over).await;
    for delivery in messages {
        let Ok(place) = ctx.messages.clone().acquire_owned().await else { return };
        let ctx = ctx.clone();
        hands.spawn(async move {
            ingest::take(&ctx, delivery).await;
            drop(place);
        });
    }
    if failed {
        tokio::time::sleep(POP_WAIT).await;
    }
}

/// Jobs straight from the store, while the queue fails. Every worker is given the same ones, so there are some to spare.
async fn detour(ctx: &Arc<Context>, free: usize, hands: &mut JoinSet<()>) {
    let limit = u32::try_from(free.saturating_add(SPARE)).unwrap_or(u32::MAX);
    let Ok(due) = ctx.store.due(limit).await else { return };
    let mut left = free;
    for (id, _) in due {
        if left == 0 {
            return;
        }
        match ctx.store.claim(id, &ctx.id, ctx.options.lease).await {
            Ok(Some(claim)) => {
                left -= 1;
                begin(ctx, claim, None, hands);
            }
            Ok(None) => {}
            Err(error) => return tracing::error!(job = %id, %error, "could not claim"),
        }
    }
}

fn begin(ctx: &Arc<Context>, claim: Claim, delivery: Option<Delivery>, hands: &mut JoinSet<()>) {
    histogram!(telemetry::JOB_WAIT).record(waited(&claim.job, ctx.options.lease));
    let content = claim.job.zkey;
    let place = ctx.fleet.place(&claim.job, |device| ctx.registry.has_loaded(device.backend.as_ref(), content));
    let ctx = ctx.clone();
    hands.spawn(async move {
        attempt::run(&ctx, &place.device, claim).await;
        drop(place);
        if let Some(delivery) = delivery {
            acknowledge(&ctx, &[delivery]).await;
        }
    });
}

pub(super) async fn acknowledge(ctx: &Context, deliveries: &[Delivery]) {
    if deliveries.is_empty() {
        return;
    }
    if let Err(error) = ctx.queue.ack(deliveries).await {
        counter!(telemetry::QUEUE_ERRORS).increment(1);
        tracing::debug!(?deliveries, %error, "the queue did not hear that deliveries are dealt with");
    }
}

/// Seconds from when the job was due to its claim, by the store's clock.
fn waited(job: &Job, lease: Duration) -> f64 {
    let claimed = job.lease_expires_at.unwrap_or(job.run_at) - i64::try_from(lease.as_millis()).unwrap_or(0);
    (claimed - job.run_at).max(0) as f64 / 1e3
}
