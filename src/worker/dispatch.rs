//! From the queue to the slots: as many jobs as there is room for, and messages into the store.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use metrics::{counter, gauge, histogram};
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::attempt::End;
use super::fleet::Reservation;
use super::outage::say;
use super::{Context, attempt, ingest, retry};
use crate::model::Job;
use crate::queue::{Delivery, EndNotice, Offer, Queue, QueueError};
use crate::store::{Claim, Due};
use crate::telemetry;

/// How long the queue is listened to before looking up.
const POP_WAIT: Duration = Duration::from_secs(1);
/// How long a queue may take beyond that before it counts as failing.
const POP_PATIENCE: Duration = Duration::from_secs(4);
/// How often the store is asked in place of a queue that fails, where it had nothing.
const DETOUR: Duration = Duration::from_millis(250);
/// Longest time between two tries of a queue that fails.
const LONGEST_OUTAGE: Duration = Duration::from_secs(16);
/// Workers that a job may have taken down before it gets the next one to itself, so that it takes no others with it.
const SUSPECT: u32 = 2;
/// Jobs it is asked for beyond those there is room for.
const SPARE: usize = 64;
/// Messages recorded at once at most, beside jobs.
pub(super) const MESSAGES: usize = 16;

/// Takes jobs until the worker drains, then waits for those in hand.
pub(super) async fn run(ctx: Arc<Context>, mut draining: watch::Receiver<bool>) {
    let mut hands = JoinSet::new();
    let mut queue_outage: Option<QueueOutage> = None;
    let (mut rivals, mut in_vain) = (false, 0);
    while !*draining.borrow() {
        while let Some(done) = hands.try_join_next() {
            report(done);
        }
        ctx.fleet.look_after(&ctx.canary);
        let free = ctx.outage.room(ctx.surroundings.room(Instant::now(), ctx.fleet.free()));
        if free == 0 || !ctx.keeper.may_take() {
            // A device that is fit again makes room too, and nobody tells.
            let _ = tokio::time::timeout(POP_WAIT / 10, ctx.fleet.freed()).await;
            continue;
        }
        if let Some(out) = &mut queue_outage
            && !out.is_over()
        {
            let begun = detour(&ctx, free, &mut out.rivals, &mut hands).await;
            if begun == 0 {
                let _ = tokio::time::timeout(DETOUR, draining.changed()).await;
            }
            continue;
        }
        // A queue that takes nothing still gives what it has.
        let full = ctx.unoffered.load(Ordering::Relaxed);
        let wait = if full { wait_for_full(in_vain) } else { POP_WAIT };
        let popped = tokio::select! {
            biased;
            _ = draining.changed() => break,
            popped = tokio::time::timeout(POP_PATIENCE, ctx.queue.pop(free, wait)) => {
                let late = || QueueError::Unavailable(format!("no answer within {} s", POP_PATIENCE.as_secs()));
                popped.unwrap_or_else(|_| Err(late()))
            }
        };
        match popped {
            Ok(deliveries) => {
                gauge!(telemetry::QUEUE_UP).set(1.0);
                if queue_outage.take().is_some() {
                    tracing::info!("the queue answers again");
                }
                let popped = deliveries.len();
                deal_out(&ctx, deliveries, &mut hands).await;
                let vain = full && popped == 0 && detour(&ctx, free, &mut rivals, &mut hands).await == 0;
                in_vain = if vain { in_vain.saturating_add(1) } else { 0 };
            }
            Err(error) => {
                counter!(telemetry::QUEUE_ERRORS).increment(1);
                gauge!(telemetry::QUEUE_UP).set(0.0);
                if queue_outage.is_none() {
                    tracing::error!(%error, "the queue fails; jobs are looked for in the store meanwhile");
                }
                queue_outage =
                    Some(QueueOutage::of(ctx.queue.clone(), queue_outage.map_or(POP_WAIT, |last| last.pause * 2)));
            }
        }
    }
    while let Some(done) = hands.join_next().await {
        report(done);
    }
}

/// How long a queue that takes no offers is listened to before the store is asked, once both had nothing so many times in a
/// row. At first not at all, for jobs are in the store then; but when it has recovered, nothing tells before the next job is
/// offered, and until then it is asked no more often than a sound one.
fn wait_for_full(in_vain: u32) -> Duration {
    match in_vain.checked_sub(1) {
        None => Duration::ZERO,
        Some(doublings) => DETOUR.saturating_mul(1 << doublings.min(16)).min(POP_WAIT),
    }
}

/// An outage of the queue; that of the database is in `outage.rs`. Whether it answers again is found out beside the work,
/// for it may take long not to.
struct QueueOutage {
    pause: Duration,
    over: JoinSet<()>,
    /// Whether other workers took what this one was after.
    rivals: bool,
}

impl QueueOutage {
    fn of(queue: Arc<dyn Queue>, pause: Duration) -> Self {
        let pause = pause.min(LONGEST_OUTAGE);
        let mut over = JoinSet::new();
        over.spawn(async move {
            loop {
                tokio::time::sleep(pause).await;
                if let Ok(Ok(())) = tokio::time::timeout(POP_PATIENCE, queue.ping()).await {
                    return;
                }
            }
        });
        Self { pause, over, rivals: false }
    }

    fn is_over(&mut self) -> bool {
        self.over.is_empty() || self.over.try_join_next().is_some()
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
    let (mut messages, mut over) = (Vec::new(), Vec::new());
    for delivery in deliveries {
        match &delivery.offer {
            // Its lease lapsed while no heart beat; it goes on here.
            Offer::Job(id) if ctx.keeper.holds(*id) => over.push(delivery),
            Offer::Job(id) => {
                let (ctx, id) = (ctx.clone(), *id);
                claims.spawn(async move { (ctx.store.claim(id, &ctx.id, ctx.options.lease).await, delivery) });
            }
            Offer::Message(_) => messages.push(delivery),
        }
    }
    let mut suspects = Vec::new();
    let mut failed = false;
    while let Some(claimed) = claims.join_next().await {
        match claimed {
            Ok((Ok(Some(claim)), delivery)) if is_suspect(&claim) => suspects.push((claim, Some(delivery))),
            Ok((Ok(Some(claim)), delivery)) => begin(ctx, claim, Some(delivery), None, hands),
            // Somebody else has it, it ended, or its time has not come.
            Ok((Ok(None), delivery)) => over.push(delivery),
            Ok((Err(error), delivery)) => {
                say!(ctx.outage.covers(&error), error, offer = ?delivery.offer, %error, "could not claim");
                // The reconciler offers it again, once the store answers.
                over.push(delivery);
                failed = true;
            }
            Err(_) => tracing::error!("a claim's task panicked; the job will be offered again"),
        }
    }
    if !suspects.is_empty() {
        begin_alone(ctx, suspects, hands);
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

/// Jobs straight from the store, while the queue fails; how many. Every worker is given the same ones, so there are some
/// to spare, and workers that meet others there begin at different places.
async fn detour(ctx: &Arc<Context>, free: usize, rivals: &mut bool, hands: &mut JoinSet<()>) -> usize {
    let limit = u32::try_from(free.saturating_add(SPARE)).unwrap_or(u32::MAX);
    let Ok(mut due) = ctx.store.due(limit).await else { return 0 };
    if std::mem::take(rivals) {
        let spare = due.len().saturating_sub(free);
        due.rotate_left((spare as f64 * retry::jitter()) as usize);
    }
    let (mut begun, mut failed) = (0, false);
    // What lapsed while no heart beat may be in hand here.
    let mut due = due.into_iter().filter(|due| !ctx.keeper.holds(due.id));
    while begun < free && !failed {
        let mut claims = JoinSet::new();
        for Due { id, .. } in due.by_ref().take(free - begun) {
            let ctx = ctx.clone();
            claims.spawn(async move { (id, ctx.store.claim(id, &ctx.id, ctx.options.lease).await) });
        }
        if claims.is_empty() {
            break;
        }
        let mut suspects = Vec::new();
        while let Some(claimed) = claims.join_next().await {
            begun += usize::from(matches!(claimed, Ok((_, Ok(Some(_))))));
            match claimed {
                Ok((_, Ok(Some(claim)))) if is_suspect(&claim) => suspects.push((claim, None)),
                Ok((_, Ok(Some(claim)))) => begin(ctx, claim, None, None, hands),
                Ok((_, Ok(None))) => *rivals = true,
                Ok((job, Err(error))) => {
                    say!(ctx.outage.covers(&error), error, %job, %error, "could not claim");
                    failed = true;
                }
                Err(_) => tracing::error!("a claim's task panicked; the job will be offered again"),
            }
        }
        if !suspects.is_empty() {
            begin_alone(ctx, suspects, hands);
            break;
        }
    }
    begun
}

/// Whether a job may be what took workers down, rather than one of those that were in hand with it.
fn is_suspect(claim: &Claim) -> bool {
    (SUSPECT..retry::LOST_WORKERS).contains(&claim.job.tries.lost)
}

/// Begins one of these jobs alone: after those in hand, and after the others are given back, who would be charged with its
/// death, too. All are given back where such a job is in hand already.
fn begin_alone(ctx: &Arc<Context>, suspects: Vec<(Claim, Option<Delivery>)>, hands: &mut JoinSet<()>) {
    let mut suspects = suspects.into_iter();
    let alone = ctx.fleet.reserve().and_then(|alone| Some((alone, suspects.next()?)));
    for (claim, delivery) in suspects {
        let (ctx, place) = (ctx.clone(), ctx.fleet.occupy());
        hands.spawn(async move {
            attempt::hand_back(&ctx, &claim.job).await;
            drop(place);
            acknowledge(&ctx, delivery.as_slice()).await;
        });
    }
    if let Some((reservation, (claim, delivery))) = alone {
        begin(ctx, claim, delivery, Some(reservation), hands);
    }
}

/// Notes the end of an attempt, also of one that panics.
struct Trial(Arc<Context>);

impl Drop for Trial {
    fn drop(&mut self) {
        self.0.surroundings.ended();
    }
}

fn begin(
    ctx: &Arc<Context>,
    claim: Claim,
    delivery: Option<Delivery>,
    alone: Option<Reservation>,
    hands: &mut JoinSet<()>,
) {
    ctx.surroundings.begun();
    histogram!(telemetry::JOB_WAIT).record(waited(&claim.job, ctx.options.lease));
    let content = claim.job.zkey;
    let place = ctx.fleet.place(&claim.job, |device| ctx.registry.has_loaded(device.backend.as_ref(), content));
    let ctx = ctx.clone();
    hands.spawn(async move {
        let trial = Trial(ctx.clone());
        let ended = attempt::run(&ctx, &place, claim, alone.is_some()).await;
        drop(trial);
        drop(alone);
        drop(place);
        if let Some((job, end)) = ended {
            ctx.service.has_ended(job.id);
            if let End::Done(result) = &end {
                attempt::copy(&ctx, job.id, result).await;
            }
            ctx.service.tell_ended(vec![EndNotice::of(&job, end.state())]).await;
        }
        acknowledge(&ctx, delivery.as_slice()).await;
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_queue_that_took_no_offers_is_asked_no_more_often_than_a_sound_one_while_there_is_nothing() {
        let waits: Vec<u128> = (0..6).map(|in_vain| wait_for_full(in_vain).as_millis()).collect();
        assert_eq!(waits, [0, 250, 500, 1000, 1000, 1000]);
        assert_eq!(wait_for_full(u32::MAX), POP_WAIT);
    }
}
