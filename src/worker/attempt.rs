//! One attempt at a job, from claim to its end in the store.
//!
//! ```text
//! claim ─► load ─► witness ─► prove and verify ─► commit ─► copy of the proof
//!            │        │            │                │
//!            └────────┴────────────┴── fail, release, confirm the cancel, or nothing where the lease was lost
//! ```
//!
//! The copies of a proof for people are written after the commit, by whoever committed: the fencing token lets one
//! attempt alone get there, so a stale worker cannot write over another's proof. The job's place is free by then, for a
//! store of artifacts may be slow. What a crash between the two leaves out, the next start or the first who asks for
//! the proof puts back.

use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, Instant};

use metrics::{counter, histogram};
use zeroize::Zeroizing;

use super::device::Device;
use super::failure::{Blame, Ended};
use super::faults::Point;
use super::fleet::Placement;
use super::lease::Hold;
use super::loading;
use super::outage::say;
use super::retry::{self, LOST_WORKERS};
use super::{Context, briefly};
use crate::backend::LoadedKey;
use crate::formats::{snarkjs, wtns};
use crate::groth16::Proved;
use crate::model::{
    FailedAttempt, FailureClass, Job, JobError, JobId, JobResult, JobState, Stage, StageTimes, StopReason, StopToken,
    Witness,
};
use crate::registry::{CircuitContent, ReadyCircuit};
use crate::store::{Claim, Held, Retry, StoreError};
use crate::telemetry;
use crate::witness::{Inputs, WitnessGenerator};

/// Inputs of so many bytes are unsealed on a thread of their own.
const LARGE: usize = 256 << 10;
/// How often waiting looks at the stop token.
const LOOK: Duration = Duration::from_millis(20);
/// How long a job waits for its circuit in its own place.
const NEAR: Duration = Duration::from_secs(1);
/// How long it waits for room beside those that are at work already. Then it is for other workers, or for later.
const HANDS: Duration = Duration::from_secs(10);
/// A write that takes longer says how the database is, and nothing of jobs.
const LONG_WRITE: Duration = Duration::from_secs(5);
/// How long a store that is away is tried with a proof, which others would have to make again.
const PROOF_KEPT: Duration = Duration::from_secs(3600);
/// Longest wait for the copies of a proof, which whoever asks for it puts back if need be.
const COPY: Duration = Duration::from_secs(10);

/// How an attempt ended its job.
pub(super) enum End {
    /// With a proof, of which there are to be [copies](copy).
    Done(JobResult),
    Failed,
    Cancelled,
}

impl End {
    pub(super) fn state(&self) -> JobState {
        match self {
            Self::Done(_) => JobState::Done,
            Self::Failed => JobState::Failed,
            Self::Cancelled => JobState::Cancelled,
        }
    }
}

/// Works on a claimed job and writes down how it ended. Returns the job with its end, where it has come to that.
///
/// `alone` says that nothing else is to be in hand meanwhile.
pub(super) async fn run(ctx: &Context, place: &Placement, claim: Claim, alone: bool) -> Option<(Job, End)> {
    let (Claim { job, input, input_key }, device) = (claim, &place.device);
    let held = StopToken::new();
    let lease = ctx.keeper.hold(job.id, job.attempt, held.clone());
    if alone {
        others_ended(ctx, &held).await;
    }
    let started = Instant::now();
    let stop = held.with_deadline(started + ctx.options.job_timeout);
    if reclaimed(&job) {
        counter!(telemetry::JOBS_RECLAIMED).increment(1);
    }
    tracing::info!(job = %job.id, circuit = %job.circuit, attempt = job.attempt.0, "job claimed");
    let outcome = match poisoned(&job) {
        Some(error) => Err(Ended::Failed(error)),
        None => match unseal(ctx, &job, input_key, input).await {
            Ok(input) => work(ctx, place, &job, input, &lease, &stop).await,
            Err(ended) => Err(ended),
        },
    };
    let by_device = matches!(&outcome, Err(Ended::Failed(e)) if e.class == FailureClass::Device);
    ctx.fleet.remember(job.id, by_device.then_some(device));
    let witness = outcome.as_ref().map(|result| Duration::from_secs_f64(result.times.witness_ms / 1e3));
    let (witness, begun) = (witness.ok(), Instant::now());
    let end = conclude(ctx, &job, lease, outcome, &stop, started).await;
    let wrote = begun.elapsed();
    if let Some(witness) = witness.filter(|_| wrote < LONG_WRITE) {
        device.took_beside(witness + wrote);
    }
    end.map(|end| (job, end))
}

/// Waits until no other job is in hand, or this one is told to stop.
async fn others_ended(ctx: &Context, stop: &StopToken) {
    while ctx.fleet.in_hand() > 1 && stop.stopped().is_none() {
        tokio::time::sleep(LOOK).await;
    }
}

/// Writes the copies of a proof that is in the store, if there is a place for that soon.
pub(super) async fn copy(ctx: &Context, job: JobId, result: &JobResult) {
    let write = async {
        let _place = ctx.copies.acquire().await;
        ctx.artifacts.put_proof(job, &result.proof_json, &result.public_json).await
    };
    let why = match tokio::time::timeout(COPY, write).await {
        Ok(Ok(())) => return,
        Ok(Err(error)) => error.to_string(),
        Err(_) => format!("not within {} s", COPY.as_secs()),
    };
    counter!(telemetry::PROOF_FILES_FAILED).increment(1);
    tracing::warn!(%job, error = why, "the proof is in the store, but its files could not be written");
}

async fn unseal(ctx: &Context, job: &Job, key: String, input: Zeroizing<Vec<u8>>) -> Result<Zeroizing<Vec<u8>>, Ended> {
    if input.len() < LARGE {
        return Ok(ctx.keyring.open(job.id, &key, input)?);
    }
    let (keyring, id) = (ctx.keyring.clone(), job.id);
    offload(move || Ok(keyring.open(id, &key, input)?)).await
}

/// Whether the attempt before this one ended with its lease.
fn reclaimed(job: &Job) -> bool {
    let lost = |e: &FailedAttempt| e.error.class == FailureClass::LostWorker && e.attempt.0 + 1 == job.attempt.0;
    job.tries.lost > 0 && job.history.last().is_some_and(lost)
}

/// A job that took down too many workers gets no further one.
fn poisoned(job: &Job) -> Option<JobError> {
    (job.tries.lost >= LOST_WORKERS).then(|| {
        let last = job.error.as_ref().map(|e| format!("; its last error was: {}", e.message)).unwrap_or_default();
        let message = format!(
            "{} workers died or fell silent with this job in hand, so it is put aside after {} attempts{last}",
            job.tries.lost,
            job.attempt.0.saturating_sub(1)
        );
        JobError { class: FailureClass::LostWorker, message }
    })
}

async fn work(
    ctx: &Context,
    place: &Placement,
    job: &Job,
    input: Zeroizing<Vec<u8>>,
    lease: &Hold,
    stop: &StopToken,
) -> Result<JobResult, Ended> {
    let device = &place.device;
    ctx.pass(Point::AfterClaim, stop).await;
    if let Some(work) = &ctx.work {
        return unless_stopped(stop, work.make(job, &input)).await;
    }
    let mut times = StageTimes::default();

    let load = async {
        let content = CircuitContent { zkey: job.zkey, wasm: job.wasm };
        let circuit = unless_stopped(stop, aside(place, ctx.registry.open(content))).await??;
        let hands = tokio::time::timeout(HANDS, device.hands(&circuit.key));
        let hands = unless_stopped(stop, hands).await?.map_err(|_| {
            device.is_crowded(&circuit.key);
            Ended::NoRoom
        })?;
        let loaded = loading::load(&ctx.registry, device, &circuit, ctx.options.load_patience);
        let loaded = unless_stopped(stop, aside(place, loaded)).await??;
        Ok((circuit, loaded, hands))
    };
    let (circuit, loaded, _hands) = timed(lease, Stage::Load, &mut times.load_ms, load).await?;

    let allowed = ctx.options.witness_timeout;
    let witness = generate(circuit.clone(), input, stop.with_deadline(Instant::now() + allowed));
    let witness = timed(lease, Stage::Witness, &mut times.witness_ms, witness).await;
    if matches!(witness, Ok(_) | Err(Ended::Failed(_))) {
        ctx.surroundings.served();
    }
    let witness = witness.map_err(|e| e.within(stop, "the witness", allowed))?;
    ctx.pass(Point::AfterWitness, stop).await;

    let prove = prove(device, circuit, loaded, witness, lease, stop);
    let mut stage_ms = 0.0;
    let proved = timed(lease, Stage::Prove, &mut stage_ms, prove).await?;
    times.prove_ms = proved.commit_time.as_secs_f64() * 1e3;
    times.verify_ms = proved.verify_time.as_secs_f64() * 1e3;
    histogram!(telemetry::JOB_STAGE_DURATION, "stage" => Stage::Verify.as_str())
        .record(proved.verify_time.as_secs_f64());
    ctx.pass(Point::AfterProve, stop).await;
    Ok(JobResult {
        proof_json: snarkjs::proof_to_json(&proved.proof),
        public_json: snarkjs::public_to_json(&proved.public),
        device: device.label.clone(),
        times,
    })
}

/// Waits for a circuit, whose files may come from far away: not for long in the place of another job, for whose circuit
/// everything may be ready.
async fn aside<T>(place: &Placement, ready: impl Future<Output = T>) -> T {
    let (mut ready, mut lent) = (std::pin::pin!(ready), None);
    let ready = loop {
        match tokio::time::timeout(NEAR, &mut ready).await {
            Ok(ready) => break ready,
            // Others may have done so and have their places back.
            Err(_) => lent = lent.or_else(|| place.lend()),
        }
    };
    if let Some(lent) = lent {
        lent.back().await;
    }
    ready
}

/// The witness: by the circuit's program, or the one the job brought.
async fn generate(circuit: Arc<ReadyCircuit>, input: Zeroizing<Vec<u8>>, stop: StopToken) -> Result<Witness, Ended> {
    offload(move || match &circuit.witness {
        None => wtns::parse(&input).map_err(|e| Ended::failed(FailureClass::BadInput, e)),
        Some(program) => {
            let inputs = Inputs::parse(&input).map_err(|e| Ended::failed(FailureClass::BadInput, e))?;
            drop(input);
            Ok(program.generate(&inputs, &stop)?)
        }
    })
    .await
}

/// Leaves the witness on the device's desk and waits for its proof.
async fn prove(
    device: &Arc<Device>,
    circuit: Arc<ReadyCircuit>,
    loaded: Arc<dyn LoadedKey>,
    witness: Witness,
    lease: &Hold,
    stop: &StopToken,
) -> Result<Proved, Ended> {
    let answered = device.desk.leave(loaded, circuit, witness, stop, Arc::clone(lease));
    // The desk itself looks at the token between steps of a proof; one that waits behind others' does not. The job's time
    // is the desk's affair, which knows when the wait is over.
    match unless_stopped(&stop.without_deadline(), answered).await? {
        Ok(done) => done,
        Err(_) => {
            device.failed(FailureClass::Device, Duration::ZERO);
            Err(panicked())
        }
    }
}

/// A panic is this program's bug, and is charged to the budget of devices: another device or the processor may do
/// without it.
fn panicked() -> Ended {
    Ended::failed(FailureClass::Device, "the worker's code panicked; see its log")
}

/// Enters a stage and notes how long it takes.
async fn timed<T>(
    lease: &Hold,
    stage: Stage,
    ms: &mut f64,
    work: impl Future<Output = Result<T, Ended>>,
) -> Result<T, Ended> {
    lease.enter(stage);
    let begun = Instant::now();
    let done = work.await;
    let took = begun.elapsed().as_secs_f64();
    *ms = took * 1e3;
    histogram!(telemetry::JOB_STAGE_DURATION, "stage" => stage.as_str()).record(took);
    done
}

/// Runs CPU-bound work on a thread of its own, so that the runtime stays free.
async fn offload<T: Send + 'static>(work: impl FnOnce() -> Result<T, Ended> + Send + 'static) -> Result<T, Ended> {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(e) if e.is_panic() => Err(panicked()),
        Err(_) => Err(Ended::Stopped(StopReason::Draining)),
    }
}

/// Waits for `work`, or for the token to say stop.
async fn unless_stopped<T>(stop: &StopToken, work: impl Future<Output = T>) -> Result<T, Ended> {
    let stopped = async {
        loop {
            if let Some(why) = stop.stopped() {
                return why;
            }
            tokio::time::sleep(LOOK).await;
        }
    };
    tokio::select! {
        biased;
        why = stopped => Err(Ended::Stopped(why)),
        done = work => Ok(done),
    }
}

/// Writes down how the attempt ended. Returns the end of the job, where that was written down.
///
/// A job that is to have another attempt is held no longer when it is offered: a worker passes over what it holds, and the
/// offer may come before the queue has answered.
async fn conclude(
    ctx: &Context,
    job: &Job,
    lease: Hold,
    outcome: Result<JobResult, Ended>,
    stop: &StopToken,
    started: Instant,
) -> Option<End> {
    let (id, attempt) = (job.id, job.attempt);
    match outcome {
        Ok(result) => {
            let begun = Instant::now();
            ctx.pass(Point::BeforeCommit, stop).await;
            let held = persist_for(ctx, PROOF_KEPT, stop, || ctx.store.finish(id, attempt, &result)).await;
            if !was_held(job, held) {
                return None;
            }
            ctx.pass(Point::AfterCommit, stop).await;
            histogram!(telemetry::JOB_STAGE_DURATION, "stage" => Stage::Store.as_str())
                .record(begun.elapsed().as_secs_f64());
            processed(started);
            tracing::info!(job = %id, device = %result.device, ms = ms(started), "job done");
            return Some(End::Done(result));
        }
        Err(Ended::Stopped(StopReason::LeaseLost)) => drop(was_held(job, Some(Held::Lost))),
        Err(Ended::Stopped(StopReason::Cancelled)) => {
            if was_held(job, persist(ctx, stop, || ctx.store.confirm_cancel(id, attempt)).await) {
                counter!(telemetry::JOBS_CANCELLED).increment(1);
                tracing::info!(job = %id, "job cancelled");
                return Some(End::Cancelled);
            }
        }
        Err(Ended::Stopped(StopReason::Draining) | Ended::NoRoom) => {
            give_back(ctx, job, Some(lease), stop).await;
        }
        Err(Ended::Stopped(StopReason::TimedOut)) => {
            let allowed = ctx.options.job_timeout.as_secs();
            let message = format!("the attempt took longer than {allowed} s");
            let error = JobError { class: FailureClass::Timeout, message };
            return failed(ctx, job, lease, error, stop, started).await;
        }
        Err(Ended::Failed(error)) => return failed(ctx, job, lease, error, stop, started).await,
        Err(Ended::Around(error, blame)) => {
            // One that failed before for what may pass tells nothing new, and may be alone in that.
            if blame == Blame::Worker || job.tries.transient == 0 {
                ctx.surroundings.failed(Instant::now(), &error.message, blame);
            }
            return failed(ctx, job, lease, error, stop, started).await;
        }
    }
    None
}

/// Gives a claimed job back that is not to be worked on.
pub(super) async fn hand_back(ctx: &Context, job: &Job) {
    give_back(ctx, job, None, &StopToken::new()).await;
}

async fn give_back(ctx: &Context, job: &Job, lease: Option<Hold>, stop: &StopToken) {
    if was_held(job, persist(ctx, stop, || ctx.store.release(job.id, job.attempt)).await) {
        drop(lease);
        counter!(telemetry::JOBS_RELEASED).increment(1);
        // Others need not wait for their reconcilers.
        let (queue, offer) = (ctx.queue.clone(), [(job.id, job.priority)]);
        let _ = briefly(async move { queue.push_again(&offer).await }).await;
        tracing::info!(job = %job.id, "job handed back");
    }
}

async fn failed(
    ctx: &Context,
    job: &Job,
    lease: Hold,
    error: JobError,
    stop: &StopToken,
    started: Instant,
) -> Option<End> {
    let retry = match retry::decide(error.class, job.tries, retry::jitter()) {
        Retry::After(wait) if ctx.fleet.falls_to_processor(job, error.class) => {
            Retry::After(wait.max(ctx.fleet.book_retrial(Instant::now())))
        }
        other => other,
    };
    let held = persist(ctx, stop, || ctx.store.fail(job.id, job.attempt, &error, retry)).await;
    if !was_held(job, held) {
        return None;
    }
    drop(lease);
    let class = error.class.as_str();
    match retry {
        Retry::After(wait) => {
            let passing = matches!(error.class, FailureClass::Transient | FailureClass::Timeout);
            // Should it fail, or if this was not the first time, the reconciler finds the job when its time has come. One that
            // goes on failing then waits in its turn.
            if !passing || job.tries.transient == 0 {
                let (queue, id, priority) = (ctx.queue.clone(), job.id, job.priority);
                let _ = briefly(async move { queue.push_after(id, priority, wait).await }).await;
            }
            counter!(telemetry::JOB_RETRIES, "class" => class).increment(1);
            let ms = wait.as_millis() as u64;
            tracing::warn!(job = %job.id, class, error = %error.message, retry_in_ms = ms, "attempt failed");
            None
        }
        Retry::Never => {
            counter!(telemetry::JOB_FAILURES, "class" => class).increment(1);
            processed(started);
            tracing::warn!(job = %job.id, class, error = %error.message, "job failed");
            Some(End::Failed)
        }
    }
}

fn processed(started: Instant) {
    counter!(telemetry::JOBS_PROCESSED).increment(1);
    histogram!(telemetry::JOB_DURATION).record(started.elapsed().as_secs_f64());
}

fn was_held(job: &Job, held: Option<Held>) -> bool {
    match held {
        Some(Held::Yes { .. }) => return true,
        Some(Held::Lost) => {
            counter!(telemetry::LEASES_LOST).increment(1);
            tracing::warn!(job = %job.id, attempt = job.attempt.0, "lease lost: another worker has the job, or it ended");
        }
        None => tracing::error!(job = %job.id, "the end of the attempt could not be written; its lease will lapse"),
    }
    false
}

/// Writes to the store, again and again while the lease may still hold.
async fn persist<F>(ctx: &Context, stop: &StopToken, write: impl Fn() -> F) -> Option<Held>
where
    F: Future<Output = Result<Held, StoreError>>,
{
    persist_for(ctx, Duration::ZERO, stop, write).await
}

/// The same, and for so long in an outage, unless the lease is known to be lost.
async fn persist_for<F>(ctx: &Context, in_outage: Duration, stop: &StopToken, write: impl Fn() -> F) -> Option<Held>
where
    F: Future<Output = Result<Held, StoreError>>,
{
    let begun = Instant::now();
    let mut pause = Duration::from_millis(50);
    loop {
        let error = match write().await {
            Ok(held) => return Some(held),
            Err(error) => error,
        };
        let outage = ctx.outage.covers(&error);
        say!(outage, warn, %error, "the store failed; trying again");
        // What it refuses for its content it refuses for ever.
        let patience = if outage { in_outage } else { Duration::ZERO };
        if stop.stopped() == Some(StopReason::LeaseLost) || begun.elapsed() > patience.max(ctx.options.lease * 2) {
            return None;
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(Duration::from_secs(1));
    }
}

fn ms(since: Instant) -> u64 {
    since.elapsed().as_millis() as u64
}
