//! The dispatcher: takes jobs from the queue while there is capacity, and records messages in the store.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use metrics::{counter, histogram};
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::attempt::{End, JobRun};
use super::fleet::Reservation;
use super::outage::log_unless;
use super::queue_health::QueueHealth;
use super::{Context, attempt, ingest, proof_files, retry};
use crate::model::{Job, JobId, jitter};
use crate::queue::{Delivery, EndNotice, Offer, Queue, QueueError};
use crate::store::{Claim, Due};
use crate::telemetry;

/// How long one call waits for the queue to deliver something.
const POP_WAIT: Duration = Duration::from_secs(1);
/// How long a queue may take to answer such a call before it counts as failing.
const POP_PATIENCE: Duration = Duration::from_secs(4);
/// How often the store is asked instead of a failing queue, where it had nothing last time.
const ASK_STORE_EVERY: Duration = Duration::from_millis(250);
/// Longest interval between two checks of a failing queue.
const MAX_CHECK_PAUSE: Duration = Duration::from_secs(16);
/// Number of workers a job has taken down after which the next worker runs it alone, so that it takes no other jobs
/// with it.
const SUSPECT: u32 = 2;
/// Jobs requested from the store beyond the free capacity.
const MORE_DUE: usize = 64;
/// Most messages recorded at the same time, in addition to jobs.
pub(super) const MESSAGES: usize = 16;

/// Takes jobs until the worker drains, then waits for those in progress.
pub(super) async fn run(ctx: Arc<Context>, mut draining: watch::Receiver<bool>) {
    let mut tasks = JoinSet::new();
    let mut queue_outage: Option<QueueOutage> = None;
    let (mut rivals, mut in_vain) = (false, 0);
    while !*draining.borrow() {
        while let Some(done) = tasks.try_join_next() {
            report(done);
        }
        ctx.fleet.look_after(&ctx.canary);
        let free = ctx.outage.limit(ctx.environment.limit(Instant::now(), ctx.fleet.free()));
        if free == 0 || !ctx.keeper.may_take() {
            // A device that has become fit again adds capacity without a notification.
            let _ = tokio::time::timeout(POP_WAIT / 10, ctx.fleet.freed()).await;
            continue;
        }
        if let Some(out) = &mut queue_outage
            && !out.is_over()
        {
            let begun = take_from_store(&ctx, free, &mut out.rivals, &mut tasks).await;
            if begun == 0 {
                let _ = tokio::time::timeout(ASK_STORE_EVERY, draining.changed()).await;
            }
            continue;
        }
        // A queue that takes no offers still delivers what it has.
        let unoffered = ctx.unoffered.load(Ordering::Relaxed);
        let wait = if unoffered { pop_wait(in_vain) } else { POP_WAIT };
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
                ctx.queue_health.note_pop(true);
                if queue_outage.take().is_some() {
                    tracing::info!("the queue answers again");
                }
                let popped = deliveries.len();
                process(&ctx, deliveries, &mut tasks).await;
                let vain = unoffered && popped == 0 && take_from_store(&ctx, free, &mut rivals, &mut tasks).await == 0;
                in_vain = if vain { in_vain.saturating_add(1) } else { 0 };
            }
            Err(error) => {
                counter!(telemetry::QUEUE_ERRORS).increment(1);
                ctx.queue_health.note_pop(false);
                if queue_outage.is_none() {
                    tracing::error!(%error, "the queue fails; jobs are taken from the store meanwhile");
                }
                let pause = queue_outage.map_or(POP_WAIT, |last| last.pause * 2);
                queue_outage = Some(QueueOutage::of(ctx.queue.clone(), ctx.queue_health.clone(), pause));
            }
        }
    }
    while let Some(done) = tasks.join_next().await {
        report(done);
    }
}

/// How long to wait for a queue that takes no offers before the store is asked, after `in_vain` rounds in a row in
/// which both had nothing. At first not at all, because the jobs are in the store then. But nothing shows that the
/// queue has recovered until the next job is offered, and until then the store is asked no more often than alongside a
/// healthy queue.
fn pop_wait(in_vain: u32) -> Duration {
    match in_vain.checked_sub(1) {
        None => Duration::ZERO,
        Some(doublings) => ASK_STORE_EVERY.saturating_mul(1 << doublings.min(16)).min(POP_WAIT),
    }
}

/// An outage of the queue (outages of the database are in `outage.rs`). A background task finds out whether the queue
/// answers again, because a call to it may take long to fail.
struct QueueOutage {
    pause: Duration,
    over: JoinSet<()>,
    /// Whether other workers claimed jobs that this one tried to claim.
    rivals: bool,
}

impl QueueOutage {
    fn of(queue: Arc<dyn Queue>, health: Arc<QueueHealth>, pause: Duration) -> Self {
        let pause = pause.min(MAX_CHECK_PAUSE);
        let mut over = JoinSet::new();
        over.spawn(async move {
            loop {
                tokio::time::sleep(pause).await;
                if let Ok(Ok(())) = tokio::time::timeout(POP_PATIENCE, queue.ping()).await {
                    // Noted here, because it may be long until the worker has room for jobs and asks for some.
                    health.note_pop(true);
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

async fn process(ctx: &Arc<Context>, deliveries: Vec<Delivery>, tasks: &mut JoinSet<()>) {
    let (mut jobs, mut messages, mut over) = (Vec::new(), Vec::new(), Vec::new());
    for delivery in deliveries {
        match &delivery.offer {
            // Its lease lapsed while no heartbeat went through; the attempt continues here.
            Offer::Job(id) if ctx.keeper.holds(*id) => over.push(delivery),
            Offer::Job(id) => jobs.push((*id, Some(delivery))),
            Offer::Message(_) => messages.push(delivery),
        }
    }
    let claimed = claim(ctx, jobs, tasks).await;
    over.extend(claimed.not_begun);
    // Only now that no claimed job waits for its first heartbeat: both may take long.
    acknowledge(ctx, &over).await;
    for delivery in messages {
        let Ok(place) = ctx.messages.clone().acquire_owned().await else { return };
        let ctx = ctx.clone();
        tasks.spawn(async move {
            ingest::take(&ctx, delivery).await;
            drop(place);
        });
    }
    if claimed.failed {
        tokio::time::sleep(POP_WAIT).await;
    }
}

/// Takes jobs directly from the store while the queue fails, and returns how many. Every worker gets the same list, so
/// more is requested than needed, and workers that meet others there start at different positions.
async fn take_from_store(ctx: &Arc<Context>, free: usize, rivals: &mut bool, tasks: &mut JoinSet<()>) -> usize {
    let limit = u32::try_from(free.saturating_add(MORE_DUE)).unwrap_or(u32::MAX);
    let Ok(mut due) = ctx.store.due(limit).await else { return 0 };
    if std::mem::take(rivals) {
        let spare = due.len().saturating_sub(free);
        due.rotate_left((spare as f64 * jitter()) as usize);
    }
    // A job whose lease lapsed while no heartbeat went through may be in progress here.
    let mut due = due.into_iter().filter(|due| !ctx.keeper.holds(due.id));
    let mut begun = 0;
    while begun < free {
        let jobs: Vec<_> = due.by_ref().take(free - begun).map(|Due { id, .. }| (id, None)).collect();
        if jobs.is_empty() {
            break;
        }
        let claimed = claim(ctx, jobs, tasks).await;
        begun += claimed.jobs;
        *rivals |= claimed.rivals;
        if claimed.failed || claimed.suspects {
            break;
        }
    }
    begun
}

/// The result of claiming jobs.
#[derive(Default)]
struct Claimed {
    /// Jobs claimed.
    jobs: usize,
    /// Deliveries of the jobs that were not claimed.
    not_begun: Vec<Delivery>,
    /// Whether some jobs had been claimed by others, had ended, or were not due.
    rivals: bool,
    /// Whether some of the claimed jobs are suspects, at most one of which was started.
    suspects: bool,
    /// Whether the store failed.
    failed: bool,
}

/// Claims jobs concurrently, and starts those that this worker gets.
async fn claim(ctx: &Arc<Context>, jobs: Vec<(JobId, Option<Delivery>)>, tasks: &mut JoinSet<()>) -> Claimed {
    let mut claims = JoinSet::new();
    for (job, delivery) in jobs {
        let ctx = ctx.clone();
        claims.spawn(async move { (job, ctx.store.claim(job, &ctx.id, ctx.options.lease).await, delivery) });
    }
    let (mut claimed, mut suspects) = (Claimed::default(), Vec::new());
    while let Some(answer) = claims.join_next().await {
        let Ok((job, answer, delivery)) = answer else {
            tracing::error!("a claim's task panicked; the job will be offered again");
            continue;
        };
        match answer {
            Ok(Some(claim)) => {
                claimed.jobs += 1;
                if is_suspect(&claim) {
                    suspects.push((claim, delivery));
                } else {
                    begin(ctx, claim, delivery, None, tasks);
                }
            }
            Ok(None) => {
                claimed.rivals = true;
                claimed.not_begun.extend(delivery);
            }
            Err(error) => {
                let outage = ctx.outage.note_failure(&error);
                log_unless!(outage, error, %job, %error, "could not claim");
                if error.is_lock_timeout() {
                    ctx.keeper.met_a_lock();
                }
                // The reconciler offers the job again once the store answers.
                claimed.failed = true;
                claimed.not_begun.extend(delivery);
            }
        }
    }
    claimed.suspects = !suspects.is_empty();
    if claimed.suspects {
        begin_alone(ctx, suspects, tasks);
    }
    claimed
}

/// Whether a job may be the one that took workers down, rather than one that happened to run on them.
fn is_suspect(claim: &Claim) -> bool {
    (SUSPECT..retry::LOST_WORKERS).contains(&claim.job.tries.lost)
}

/// Starts one of these jobs alone, once the running ones have ended and the other suspects were handed back, which
/// would otherwise be charged with its death too. If such a job is already running, all of them are handed back.
fn begin_alone(ctx: &Arc<Context>, suspects: Vec<(Claim, Option<Delivery>)>, tasks: &mut JoinSet<()>) {
    let mut suspects = suspects.into_iter();
    let alone = ctx.fleet.reserve().and_then(|alone| Some((alone, suspects.next()?)));
    for (claim, delivery) in suspects {
        let (ctx, place) = (ctx.clone(), ctx.fleet.occupy());
        tasks.spawn(async move {
            let ended = attempt::hand_back(&ctx, &claim.job).await;
            drop(place);
            if let Some(end) = ended {
                ctx.service.notify_waiters(claim.job.id);
                ctx.service.announce_ended(vec![EndNotice::of(&claim.job, end.state())]).await;
            }
            acknowledge(&ctx, delivery.as_slice()).await;
        });
    }
    if let Some((reservation, (claim, delivery))) = alone {
        begin(ctx, claim, delivery, Some(reservation), tasks);
    }
}

/// Notes the end of an attempt when dropped, even if it panics.
struct Trial(Arc<Context>);

impl Drop for Trial {
    fn drop(&mut self) {
        self.0.environment.ended();
    }
}

fn begin(
    ctx: &Arc<Context>,
    claim: Claim,
    delivery: Option<Delivery>,
    alone: Option<Reservation>,
    tasks: &mut JoinSet<()>,
) {
    ctx.environment.begun();
    histogram!(telemetry::JOB_WAIT).record(waited(&claim.job, ctx.options.lease));
    let content = claim.job.zkey;
    let place = ctx.fleet.place(&claim.job, |device| ctx.registry.has_loaded(device.backend.as_ref(), content));
    let ctx = ctx.clone();
    tasks.spawn(async move {
        let trial = Trial(ctx.clone());
        let Claim { job, input, input_key } = claim;
        let mut run = JobRun::new(&ctx, &place, &job);
        if alone.is_some() {
            run.others_ended().await;
        }
        let ended = run.complete(input, input_key).await;
        drop(trial);
        drop(alone);
        drop(place);
        if let Some(end) = ended {
            ctx.service.notify_waiters(job.id);
            if let End::Done(result) = &end {
                proof_files::copy(&ctx, job.id, result).await;
            }
            ctx.service.announce_ended(vec![EndNotice::of(&job, end.state())]).await;
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
        tracing::debug!(?deliveries, %error, "deliveries could not be acknowledged to the queue");
    }
}

/// Returns the seconds between the time the job was due and its claim, by the store's clock.
fn waited(job: &Job, lease: Duration) -> f64 {
    let claimed = job.lease_expires_at.unwrap_or(job.run_at) - i64::try_from(lease.as_millis()).unwrap_or(0);
    (claimed - job.run_at).max(0) as f64 / 1e3
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_queue_that_took_no_offers_is_asked_no_more_often_than_a_sound_one_while_there_is_nothing() {
        let waits: Vec<u128> = (0..6).map(|in_vain| pop_wait(in_vain).as_millis()).collect();
        assert_eq!(waits, [0, 250, 500, 1000, 1000, 1000]);
        assert_eq!(pop_wait(u32::MAX), POP_WAIT);
    }
}
