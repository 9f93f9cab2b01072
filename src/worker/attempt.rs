//! One attempt at a job, from its claim to its end in the store.
//!
//! ```text
//! claim ─► load ─► witness ─► prove and verify ─► commit ─► proof files
//!            │        │            │                │
//!            └────────┴────────────┴── fail, release, confirm the cancellation, or nothing if the lease was lost
//! ```
//!
//! The files of a proof, copies for people, are written after the commit, by the attempt that committed: the fencing
//! token admits only one, so a stale worker cannot overwrite another's proof. The job's slot is free by then, because
//! an artifact store may be slow. What a crash between the two leaves out is restored at the next start, or when
//! someone asks for the proof.

use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, Instant};

use metrics::{counter, histogram};
use zeroize::Zeroizing;

use super::failure::{AttemptError, Blame};
use super::faults::Point;
use super::fleet::Placement;
use super::lease::Hold;
use super::loading;
use super::outage::log_unless;
use super::retry::{self, LOST_WORKERS};
use super::{Context, POLL_EVERY, briefly};
use crate::backend::LoadedKey;
use crate::formats::{snarkjs, wtns};
use crate::groth16::Proved;
use crate::model::{
    FailedAttempt, FailureClass, Job, JobError, JobResult, JobState, Stage, StageTimes, StopReason, StopToken, Witness,
    jitter,
};
use crate::queue::Precedence;
use crate::registry::ReadyCircuit;
use crate::store::{Held, Retry, StoreError};
use crate::telemetry;
use crate::witness::Inputs;

/// Inputs of at least this many bytes are unsealed on a blocking thread.
const LARGE: usize = 256 << 10;
/// How long a job that waits for its circuit or its input keeps its slot to itself.
const LEND_AFTER: Duration = Duration::from_secs(1);
/// Pause before an input is read again in an outage of the database.
const READ_AGAIN: Duration = Duration::from_secs(1);
/// How long a job waits until it fits beside the running ones. After that it is left to other workers, or for later.
const ADMISSION_WAIT: Duration = Duration::from_secs(10);
/// A write that takes longer reflects the state of the database and says nothing about the pace of jobs.
const LONG_WRITE: Duration = Duration::from_secs(5);
/// How long writing a proof is retried while the store is unavailable: without it, another worker would have to make
/// the proof again.
const PROOF_KEPT: Duration = Duration::from_secs(3600);

/// How a job ended.
pub(super) enum End {
    /// With a proof, whose [files](super::proof_files::copy) are to be written.
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

/// An attempt in progress at a claimed job. Its lease is renewed until this is dropped.
pub(super) struct JobRun<'a> {
    ctx: &'a Context,
    place: &'a Placement,
    job: &'a Job,
    lease: Hold,
    /// Asks the job to stop, at the latest when its time is over.
    stop: StopToken,
    started: Instant,
}

impl<'a> JobRun<'a> {
    pub(super) fn new(ctx: &'a Context, place: &'a Placement, job: &'a Job) -> Self {
        let (stop, started) = (StopToken::new(), Instant::now());
        let lease = ctx.keeper.hold(job.id, job.attempt, stop.clone());
        let stop = stop.with_deadline(started + ctx.options.job_timeout);
        Self { ctx, place, job, lease, stop, started }
    }

    /// Waits until no other job is in progress, or until this one is told to stop. The job's time starts after that.
    pub(super) async fn others_ended(&mut self) {
        let stop = self.stop.without_deadline();
        while self.ctx.fleet.in_hand() > 1 && stop.stopped().is_none() {
            tokio::time::sleep(POLL_EVERY).await;
        }
        self.started = Instant::now();
        self.stop = stop.with_deadline(self.started + self.ctx.options.job_timeout);
    }

    /// Processes the job, whose input is sealed with `input_key`, and records how it ended. An input that did not come
    /// with the claim is read from the store. Returns the job's end, unless it gets another attempt or the lease was
    /// lost.
    pub(super) async fn complete(self, input: Option<Zeroizing<Vec<u8>>>, input_key: String) -> Option<End> {
        let (ctx, job, device) = (self.ctx, self.job, &self.place.device);
        if reclaimed(job) {
            counter!(telemetry::JOBS_RECLAIMED).increment(1);
        }
        tracing::info!(job = %job.id, circuit = %job.circuit, attempt = job.attempt.number, "job claimed");
        let result = match poisoned(job) {
            Some(error) => Err(AttemptError::Failed(error)),
            None => match self.open_input(input, input_key).await {
                Ok(input) => self.make_result(input).await,
                Err(error) => Err(error),
            },
        };
        let by_device = matches!(&result, Err(AttemptError::Failed(e)) if e.class == FailureClass::Device);
        ctx.fleet.remember(job.id, by_device.then_some(device));
        let witness = result.as_ref().map(|result| Duration::from_secs_f64(result.times.witness_ms / 1e3));
        let (witness, since) = (witness.ok(), Instant::now());
        let end = self.conclude(result).await;
        let wrote = since.elapsed();
        if let Some(witness) = witness.filter(|_| wrote < LONG_WRITE) {
            device.capacity.note_beside(witness + wrote);
        }
        end
    }

    async fn open_input(
        &self,
        input: Option<Zeroizing<Vec<u8>>>,
        key: String,
    ) -> Result<Zeroizing<Vec<u8>>, AttemptError> {
        let input = match input {
            Some(input) => input,
            None => self.read_input().await?,
        };
        self.unseal(input, key).await
    }

    /// Reads the input from the store. Soon lends the slot to another job, because this may take long. Outlasts outages
    /// of the database, as a job does that has its input.
    async fn read_input(&self) -> Result<Zeroizing<Vec<u8>>, AttemptError> {
        let (ctx, job) = (self.ctx, self.job);
        let read = async {
            loop {
                match ctx.store.input(job.id, job.attempt).await {
                    Err(error) if error.is_outage() => {
                        let outage = ctx.outage.note_failure(&error);
                        log_unless!(outage, warn, job = %job.id, %error, "the input cannot be read yet");
                        tokio::time::sleep(READ_AGAIN).await;
                    }
                    read => return read,
                }
            }
        };
        match unless_stopped(&self.stop, lend_until(self.place, read)).await? {
            Ok(input) => input.ok_or(AttemptError::Stopped(StopReason::LeaseLost)),
            Err(error) => {
                tracing::warn!(job = %job.id, %error, "the input could not be read");
                Err(error.into())
            }
        }
    }

    async fn unseal(&self, input: Zeroizing<Vec<u8>>, key: String) -> Result<Zeroizing<Vec<u8>>, AttemptError> {
        let (keyring, id) = (&self.ctx.keyring, self.job.id);
        if input.len() < LARGE {
            return Ok(keyring.open(id, &key, input)?);
        }
        let keyring = keyring.clone();
        offload(move || Ok(keyring.open(id, &key, input)?)).await
    }

    /// Takes the job from its input to a verified proof.
    async fn make_result(&self, input: Zeroizing<Vec<u8>>) -> Result<JobResult, AttemptError> {
        let (ctx, place, job, stop) = (self.ctx, self.place, self.job, &self.stop);
        let device = &place.device;
        ctx.pass(Point::AfterClaim, stop).await;
        if let Some(substitute) = &ctx.substitute {
            return unless_stopped(stop, substitute.make(job, &input)).await;
        }
        let mut times = StageTimes::default();

        let load = async {
            let circuit = unless_stopped(stop, lend_until(place, ctx.registry.open(job.content()))).await??;
            let admission = tokio::time::timeout(ADMISSION_WAIT, device.capacity.admit_job(&circuit.key));
            let admission = unless_stopped(stop, admission).await?.map_err(|_| {
                device.capacity.note_crowded(&circuit.key);
                AttemptError::NoCapacity
            })?;
            let loaded = loading::load(&ctx.registry, device, &circuit, ctx.options.load_patience);
            let loaded = unless_stopped(stop, lend_until(place, loaded)).await??;
            Ok((circuit, loaded, admission))
        };
        let (circuit, loaded, _admission) = self.timed(Stage::Load, &mut times.load_ms, load).await?;

        let allowed = ctx.options.witness_timeout;
        let witness = generate(circuit.clone(), input, stop.with_deadline(Instant::now() + allowed));
        let witness = self.timed(Stage::Witness, &mut times.witness_ms, witness).await;
        if matches!(witness, Ok(_) | Err(AttemptError::Failed(_))) {
            ctx.environment.served();
        }
        let witness = witness.map_err(|e| e.within(stop, "the witness", allowed))?;
        ctx.pass(Point::AfterWitness, stop).await;

        let mut stage_ms = 0.0;
        let proving = self.prove_or_judge(&circuit, &loaded, Arc::new(witness));
        let proved = self.timed(Stage::Prove, &mut stage_ms, proving).await?;
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

    /// Enters a stage and records its duration.
    async fn timed<T>(
        &self,
        stage: Stage,
        ms: &mut f64,
        work: impl Future<Output = Result<T, AttemptError>>,
    ) -> Result<T, AttemptError> {
        self.lease.enter(stage);
        let since = Instant::now();
        let done = work.await;
        let took = since.elapsed().as_secs_f64();
        *ms = took * 1e3;
        histogram!(telemetry::JOB_STAGE_DURATION, "stage" => stage.as_str()).record(took);
        done
    }

    /// Proves. If the CPU's proof does not verify, finds out whether the input or the key in memory is at fault.
    async fn prove_or_judge(
        &self,
        circuit: &Arc<ReadyCircuit>,
        loaded: &Arc<dyn LoadedKey>,
        witness: Arc<Witness>,
    ) -> Result<Proved, AttemptError> {
        match self.prove(circuit.clone(), loaded.clone(), witness.clone()).await {
            Err(AttemptError::Failed(error))
                if error.class == FailureClass::InvalidProof && self.place.device.is_cpu() =>
            {
                let blame = JobError { class: FailureClass::BadInput, ..error };
                self.prove_from_file(circuit, loaded, witness, blame).await
            }
            proved => proved,
        }
    }

    /// Proves once more on the CPU, with the key read again from its file and verified by its hash. Only if that proof
    /// does not verify either is the witness at fault, and with it the input, which is then not retried (`blame`); the
    /// key in memory may be damaged.
    async fn prove_from_file(
        &self,
        circuit: &Arc<ReadyCircuit>,
        loaded: &Arc<dyn LoadedKey>,
        witness: Arc<Witness>,
        blame: JobError,
    ) -> Result<Proved, AttemptError> {
        let (ctx, device, stop) = (self.ctx, &self.place.device, &self.stop);
        let again = ctx.registry.second_opinion(device.backend.as_ref(), circuit, loaded);
        let Some(circuit) = unless_stopped(stop, again).await?? else { return Err(AttemptError::Failed(blame)) };
        let zkey = circuit.content.zkey;
        let loaded = loading::load(&ctx.registry, device, &circuit, ctx.options.load_patience);
        let loaded = unless_stopped(stop, loaded).await??;
        match self.prove(circuit, loaded, witness).await {
            Err(AttemptError::Failed(error)) if error.class == FailureClass::InvalidProof => {
                Err(AttemptError::Failed(blame))
            }
            Ok(proved) => {
                tracing::error!(%zkey, "the key was damaged in memory; it has been read again from its file");
                Ok(proved)
            }
            failed => failed,
        }
    }

    /// Gives the witness to the device's batcher and waits for the proof.
    async fn prove(
        &self,
        circuit: Arc<ReadyCircuit>,
        loaded: Arc<dyn LoadedKey>,
        witness: Arc<Witness>,
    ) -> Result<Proved, AttemptError> {
        let device = &self.place.device;
        let answered = device.batcher.submit(loaded, circuit, witness, &self.stop, Arc::clone(&self.lease));
        // The batcher checks the token between the steps of a proof, but not while the order waits behind others, so it
        // is checked here. The deadline is left to the batcher, which knows when the wait is over.
        match unless_stopped(&self.stop.without_deadline(), answered).await? {
            Ok(done) => done,
            Err(_) => {
                device.failed(FailureClass::Device, Duration::ZERO);
                Err(panicked())
            }
        }
    }

    /// Records how the attempt ended. Returns the end of the job, if it was recorded.
    ///
    /// The lease on a job that gets another attempt is dropped before the job is offered: a worker ignores offers of
    /// jobs it holds, and the offer may arrive before the queue has replied.
    async fn conclude(self, result: Result<JobResult, AttemptError>) -> Option<End> {
        let (ctx, job) = (self.ctx, self.job);
        match result {
            Ok(result) => self.commit(result).await,
            Err(AttemptError::Stopped(StopReason::LeaseLost)) => {
                lease_lost(job);
                None
            }
            Err(AttemptError::Stopped(StopReason::Cancelled)) => {
                let held = persist(ctx, &self.stop, || ctx.store.confirm_cancel(job.id, job.attempt)).await;
                if note_held(job, held)? {
                    return Some(cancelled(job));
                }
                // The request is gone, for example with commits that a failover of the database lost.
                give_back(ctx, job, Some(self.lease), &self.stop).await
            }
            Err(AttemptError::Stopped(StopReason::Draining) | AttemptError::NoCapacity) => {
                give_back(ctx, job, Some(self.lease), &self.stop).await
            }
            Err(AttemptError::Stopped(StopReason::TimedOut)) => {
                let allowed = ctx.options.job_timeout.as_secs();
                let message = format!("the attempt took longer than {allowed} s");
                self.fail(JobError { class: FailureClass::Timeout, message }).await
            }
            Err(AttemptError::Failed(error)) => self.fail(error).await,
            Err(AttemptError::Environment(error, blame)) => {
                // A job that failed transiently before tells nothing new, and may be the only one affected.
                if blame == Blame::Worker || job.tries.transient == 0 {
                    ctx.environment.failed(Instant::now(), &error.message, blame);
                }
                self.fail(error).await
            }
        }
    }

    /// Writes the result to the store.
    async fn commit(self, result: JobResult) -> Option<End> {
        let (ctx, job, since) = (self.ctx, self.job, Instant::now());
        ctx.pass(Point::BeforeCommit, &self.stop).await;
        let write = || ctx.store.finish(job.id, job.attempt, &result);
        let held = persist_for(ctx, PROOF_KEPT, &self.stop, write).await;
        note_held(job, held)?;
        ctx.pass(Point::AfterCommit, &self.stop).await;
        histogram!(telemetry::JOB_STAGE_DURATION, "stage" => Stage::Store.as_str())
            .record(since.elapsed().as_secs_f64());
        processed(self.started);
        tracing::info!(job = %job.id, device = %result.device, ms = ms(self.started), "job done");
        Some(End::Done(result))
    }

    /// Writes the failure to the store, with the time of the retry if the job gets one.
    async fn fail(self, error: JobError) -> Option<End> {
        let (ctx, job) = (self.ctx, self.job);
        let retry = match retry::decide(error.class, job.tries, jitter()) {
            Retry::After(wait) if ctx.fleet.falls_to_processor(job, error.class) => {
                Retry::After(wait.max(ctx.fleet.book_retrial(Instant::now())))
            }
            other => other,
        };
        let held = persist(ctx, &self.stop, || ctx.store.fail(job.id, job.attempt, &error, retry)).await;
        let cancel = note_held(job, held)?;
        drop(self.lease);
        let class = error.class.as_str();
        match retry {
            Retry::After(_) if cancel => Some(cancelled(job)),
            Retry::After(wait) => {
                let passing = matches!(error.class, FailureClass::Transient | FailureClass::Timeout);
                // If this fails, or this was not the first transient failure, the reconciler finds the job when it is
                // due. A job that keeps failing then waits its turn.
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
                processed(self.started);
                tracing::warn!(job = %job.id, class, error = %error.message, "job failed");
                Some(End::Failed)
            }
        }
    }
}

/// Whether the previous attempt ended because its lease lapsed.
fn reclaimed(job: &Job) -> bool {
    let lost = |e: &FailedAttempt| e.error.class == FailureClass::LostWorker && e.attempt + 1 == job.attempt.number;
    job.tries.lost > 0 && job.history.last().is_some_and(lost)
}

/// Returns the error of a job that took down too many workers and gets no further attempt.
fn poisoned(job: &Job) -> Option<JobError> {
    (job.tries.lost >= LOST_WORKERS).then(|| {
        let last = job.error.as_ref().map(|e| format!("; its last error was: {}", e.message)).unwrap_or_default();
        let message = format!(
            "{} workers died or fell silent while running this job, so it is given up after {} attempts{last}",
            job.tries.lost,
            job.attempt.number.saturating_sub(1)
        );
        JobError { class: FailureClass::LostWorker, message }
    })
}

/// Waits for a circuit, whose files may have to be downloaded, or for a large input. Soon lends the slot to another
/// job, which may have all that it needs.
async fn lend_until<T>(place: &Placement, ready: impl Future<Output = T>) -> T {
    let (mut ready, mut lent) = (std::pin::pin!(ready), None);
    let ready = loop {
        match tokio::time::timeout(LEND_AFTER, &mut ready).await {
            Ok(ready) => break ready,
            // Lending may have failed because too many jobs had lent their slots; some may have them back by now.
            Err(_) => lent = lent.or_else(|| place.lend()),
        }
    };
    if let Some(lent) = lent {
        lent.back().await;
    }
    ready
}

/// Returns the witness: made by the circuit's program, or supplied with the job.
async fn generate(
    circuit: Arc<ReadyCircuit>,
    input: Zeroizing<Vec<u8>>,
    stop: StopToken,
) -> Result<Witness, AttemptError> {
    offload(move || match &circuit.witness {
        None => wtns::parse(&input).map_err(|e| AttemptError::failed(FailureClass::BadInput, e)),
        Some(program) => {
            let inputs = Inputs::parse(&input).map_err(|e| AttemptError::failed(FailureClass::BadInput, e))?;
            drop(input);
            Ok(program.generate(&inputs, &stop)?)
        }
    })
    .await
}

/// The error of a panic. It is a bug of this program, but is charged to the budget of devices: another device or the
/// CPU may avoid it.
fn panicked() -> AttemptError {
    AttemptError::failed(FailureClass::Device, "the worker panicked; see its log")
}

/// Runs CPU-bound work on a blocking thread, so that the runtime stays responsive.
async fn offload<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, AttemptError> + Send + 'static,
) -> Result<T, AttemptError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(e) if e.is_panic() => Err(panicked()),
        Err(_) => Err(AttemptError::Stopped(StopReason::Draining)),
    }
}

/// Waits for `work`, or until the token says to stop.
async fn unless_stopped<T>(stop: &StopToken, work: impl Future<Output = T>) -> Result<T, AttemptError> {
    let stopped = async {
        loop {
            if let Some(why) = stop.stopped() {
                return why;
            }
            tokio::time::sleep(POLL_EVERY).await;
        }
    };
    tokio::select! {
        biased;
        why = stopped => Err(AttemptError::Stopped(why)),
        done = work => Ok(done),
    }
}

/// Releases a claimed job without working on it. Returns its end if its cancellation was requested.
pub(super) async fn hand_back(ctx: &Context, job: &Job) -> Option<End> {
    give_back(ctx, job, None, &StopToken::new()).await
}

async fn give_back(ctx: &Context, job: &Job, lease: Option<Hold>, stop: &StopToken) -> Option<End> {
    let cancel = note_held(job, persist(ctx, stop, || ctx.store.release(job.id, job.attempt)).await)?;
    drop(lease);
    if cancel {
        return Some(cancelled(job));
    }
    counter!(telemetry::JOBS_RELEASED).increment(1);
    // So that other workers need not wait for their reconcilers.
    let (queue, offer) = (ctx.queue.clone(), [(job.id, job.priority)]);
    let _ = briefly(async move { queue.push(&offer, Precedence::Returning).await }).await;
    tracing::info!(job = %job.id, "job handed back");
    None
}

/// Counts and logs a job that the store has cancelled, since its cancellation was requested.
fn cancelled(job: &Job) -> End {
    counter!(telemetry::JOBS_CANCELLED).increment(1);
    tracing::info!(job = %job.id, "job cancelled");
    End::Cancelled
}

fn processed(started: Instant) {
    counter!(telemetry::JOBS_PROCESSED).increment(1);
    histogram!(telemetry::JOB_DURATION).record(started.elapsed().as_secs_f64());
}

/// Counts and logs a lost lease.
fn lease_lost(job: &Job) {
    counter!(telemetry::LEASES_LOST).increment(1);
    tracing::warn!(job = %job.id, attempt = job.attempt.number, "lease lost: another worker has the job, or it ended");
}

/// Returns whether cancellation was requested, if the attempt still held its lease when its end was written; counts and
/// logs it if not.
fn note_held(job: &Job, held: Option<Held>) -> Option<bool> {
    match held {
        Some(Held::Yes { cancel }) => return Some(cancel),
        Some(Held::Lost) => lease_lost(job),
        None => tracing::error!(job = %job.id, "the end of the attempt could not be written; its lease will lapse"),
    }
    None
}

/// Writes to the store, retrying while the lease may still be valid.
async fn persist<F>(ctx: &Context, stop: &StopToken, write: impl Fn() -> F) -> Option<Held>
where
    F: Future<Output = Result<Held, StoreError>>,
{
    persist_for(ctx, Duration::ZERO, stop, write).await
}

/// Like [`persist`], but retries for `in_outage` during an outage, unless the lease is known to be lost.
async fn persist_for<F>(ctx: &Context, in_outage: Duration, stop: &StopToken, write: impl Fn() -> F) -> Option<Held>
where
    F: Future<Output = Result<Held, StoreError>>,
{
    let since = Instant::now();
    let mut pause = Duration::from_millis(50);
    loop {
        let error = match write().await {
            Ok(held) => return Some(held),
            Err(error) => error,
        };
        let outage = ctx.outage.note_failure(&error);
        log_unless!(outage, warn, %error, "the store failed; trying again");
        // What the store rejects for its content it rejects every time.
        let patience = if outage { in_outage } else { Duration::ZERO };
        if stop.stopped() == Some(StopReason::LeaseLost) || since.elapsed() > patience.max(ctx.options.lease * 2) {
            return None;
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(Duration::from_secs(1));
    }
}

fn ms(since: Instant) -> u64 {
    since.elapsed().as_millis() as u64
}
