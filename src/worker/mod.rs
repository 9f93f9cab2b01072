//! The worker: takes jobs from the queue through witness and proof to the store.
//!
//! A [`Worker`] consists of a dispatcher that takes as many jobs from the queue as it has capacity for; devices, each
//! with slots and a batcher in which witnesses wait for it; a heartbeat thread that renews the leases; and a reconciler
//! that offers jobs the queue has lost. [`JobService`] is the submitters' side: submit, inspect, cancel. [`Workspace`]
//! opens the store, queue and artifacts that both use.

mod attempt;
mod batcher;
mod canary;
mod capacity;
mod device;
mod dispatch;
mod environment;
mod failure;
mod faults;
mod fleet;
mod health;
mod ingest;
mod lease;
mod loading;
mod outage;
mod pauses;
mod proof_files;
mod queue_health;
mod readiness;
mod reconcile;
pub mod request;
pub mod retry;
mod service;
mod view;
mod waiting;
mod workspace;

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use futures::StreamExt;
use futures::future::join_all;
use metrics::gauge;
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;

pub use canary::Canary;
pub use faults::{Faults, Point};
pub use proof_files::Purged;
pub use readiness::{Readiness, Status};
pub use service::{JobService, ServiceError, ServiceOptions, SubmitRequest};
pub use view::{DeviceView, View, WorkerView};
pub use workspace::{OpenError, Workspace, module_cache, open_queue, running_program};

use self::failure::AttemptError;
use crate::artifacts::Artifacts;
use crate::backend::{Backend, DeviceKind, LostDevice};
use crate::config::{Config, ExitOnDead};
use crate::model::{Circuit, Job, JobError, JobResult, JobState, StopToken, WorkerId};
use crate::queue::Queue;
use crate::registry::Registry;
use crate::seal::Keyring;
use crate::store::{Held, Store};
use crate::telemetry;
use batcher::Batching;
use device::Device;
use environment::Environment;
use fleet::{Fleet, Sizing};
use lease::{Drained, Keeper};
use outage::Outage;
use queue_health::QueueHealth;

/// Pause before a task that panicked is started again.
const RESTART_PAUSE: Duration = Duration::from_secs(1);
/// How long stopped jobs have to notice. They check between the steps of a proof.
const STOP_WAIT: Duration = Duration::from_secs(4);
/// The same after the grace period was ended early.
const HURRIED_STOP_WAIT: Duration = Duration::from_secs(1);
/// How often jobs are asked to stop.
const STOP_AGAIN: Duration = Duration::from_millis(100);
/// How long the store has to take back the jobs that did not stop.
const HAND_BACK: Duration = Duration::from_secs(2);
/// How long a caller waits for a call to the queue that only makes something happen sooner: the store has it already.
const BRIEFLY: Duration = Duration::from_millis(500);
/// How long a device may take to load the smallest key.
const LOAD_PATIENCE: Duration = Duration::from_secs(300);
/// How long a device may be unfit before it counts as dead: enough time for at least three canaries.
const DEAD_AFTER: Duration = Duration::from_secs(600);
/// Interval at which circuits registered by other processes are looked for.
const WARM_EVERY: Duration = Duration::from_secs(15);

/// Interval at which a stop token or a count of jobs is polled, neither of which notifies.
const POLL_EVERY: Duration = Duration::from_millis(20);
/// Most entries of a table of past failures, kept only to avoid attempts that would fail again.
const MAX_REMEMBERED: usize = 10_000;
/// Circuits opened concurrently ahead of their jobs. The registry compiles fewer of their witness programs at a time.
const OPENED_AT_ONCE: usize = 4;

/// Settings of a [`Worker`].
#[derive(Debug, Clone)]
pub struct WorkerOptions {
    /// Name of the queue.
    pub queue: String,
    /// Most jobs in progress at the same time; sized by the devices when unset.
    pub concurrency: Option<usize>,
    /// Whether the CPU takes jobs while every other device is full.
    pub cpu_overflow: bool,
    /// Most proofs of one circuit given to a device at a time; the number the device prefers when unset.
    pub batch_max: Option<usize>,
    /// How long a batch that is not full waits for more jobs.
    pub batch_linger: Duration,
    /// How long ended jobs are kept; forever when unset.
    pub retention: Option<Duration>,
    /// Length of a lease.
    pub lease: Duration,
    /// Timeout of witness generation.
    pub witness_timeout: Duration,
    /// Timeout of a proof.
    pub prove_timeout: Duration,
    /// How long a device other than the CPU may take to load a key, in addition to the time allowed for its size,
    /// before it counts as hanging. Not configurable.
    pub load_patience: Duration,
    /// Timeout of an attempt.
    pub job_timeout: Duration,
    /// Whether the worker exits when devices do not recover.
    pub exit_on_dead: ExitOnDead,
    /// How long a device may be unfit without interruption before it counts as dead. Not configurable.
    pub dead_after: Duration,
    /// Time that proofs already started have to finish when draining.
    pub grace: Duration,
    /// Devices that are there, but could not be used from the start.
    pub lost: Vec<LostDevice>,
    /// Injected fault, for tests.
    pub faults: Faults,
}

impl From<&Config> for WorkerOptions {
    fn from(c: &Config) -> Self {
        Self {
            queue: c.queue_name.clone(),
            concurrency: c.concurrency,
            cpu_overflow: c.cpu_overflow,
            batch_max: c.batch_max,
            batch_linger: c.batch_linger,
            retention: c.retention,
            lease: c.lease,
            witness_timeout: c.witness_timeout,
            prove_timeout: c.prove_timeout,
            load_patience: LOAD_PATIENCE,
            job_timeout: c.job_timeout,
            exit_on_dead: c.exit_on_dead,
            dead_after: DEAD_AFTER,
            grace: c.grace,
            lost: Vec::new(),
            faults: Faults::default(),
        }
    }
}

/// Why a worker did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// No device passed its canary.
    #[error("no device can be used: {0}")]
    NoDevice(String),
    /// The canary could not be created.
    #[error("the canary's key could not be generated: {0}")]
    Canary(#[from] crate::groth16::setup::SetupError),
    /// The heartbeat's thread could not be started.
    #[error("the heartbeat's thread could not be started: {0}")]
    Heartbeat(#[from] std::io::Error),
    /// A startup task panicked or was cancelled.
    #[error("startup was interrupted: {0}")]
    Interrupted(#[from] tokio::task::JoinError),
}

/// State shared by all tasks of a worker.
struct Context {
    store: Arc<dyn Store>,
    queue: Arc<dyn Queue>,
    artifacts: Artifacts,
    registry: Registry,
    service: JobService,
    keyring: Arc<Keyring>,
    substitute: Option<Arc<dyn Work>>,
    fleet: Arc<Fleet>,
    keeper: Keeper,
    canary: Arc<Canary>,
    options: WorkerOptions,
    id: WorkerId,
    /// Limits the messages being recorded at the same time.
    messages: Arc<Semaphore>,
    /// Limits the proofs whose files are written at the same time.
    copies: Semaphore,
    environment: Environment,
    queue_health: Arc<QueueHealth>,
    /// Set while the queue takes no offers: due jobs are then taken from the store.
    unoffered: AtomicBool,
    outage: Outage,
}

/// Makes results instead of the worker's own devices, to measure everything else.
#[doc(hidden)]
#[async_trait::async_trait]
pub trait Work: Send + Sync {
    /// Returns a result for this job.
    async fn make(&self, job: &Job, input: &[u8]) -> JobResult;
}

impl Context {
    /// Passes a point at which a test may have injected a fault.
    async fn pass(&self, at: Point, stop: &StopToken) {
        self.options.faults.pass(at, stop, &self.keeper).await;
    }
}

/// What a worker uses.
pub struct WorkerParts {
    /// Holds jobs and circuits.
    pub store: Arc<dyn Store>,
    /// The same store over a separate connection, for the heartbeat.
    pub heartbeat: Arc<dyn Store>,
    /// Delivers jobs.
    pub queue: Arc<dyn Queue>,
    /// Holds keys, witness programs and proof files.
    pub artifacts: Artifacts,
    /// Opens circuits and loads their keys.
    pub registry: Registry,
    /// Records what producers write into the queue.
    pub service: JobService,
    /// Opens sealed inputs.
    pub keyring: Arc<Keyring>,
}

/// A running worker.
pub struct Worker {
    ctx: Arc<Context>,
    dispatch: JoinSet<()>,
    others: JoinSet<()>,
    draining: watch::Sender<bool>,
    /// Why devices other than the CPU were unusable from the start.
    lost: Vec<LostDevice>,
}

impl Worker {
    /// Starts the worker. Each device runs its canary first; one that fails it gets no jobs. The worker takes jobs at
    /// once.
    ///
    /// `devices` are in order of preference; the CPU should be among them, as the fallback.
    pub async fn start(
        parts: WorkerParts,
        devices: Vec<Arc<dyn Backend>>,
        options: WorkerOptions,
    ) -> Result<Self, StartError> {
        Self::start_with(parts, devices, None, options).await
    }

    /// Like [`Worker::start`], with `work` instead of the devices.
    #[doc(hidden)]
    pub async fn start_with(
        parts: WorkerParts,
        devices: Vec<Arc<dyn Backend>>,
        work: Option<Arc<dyn Work>>,
        options: WorkerOptions,
    ) -> Result<Self, StartError> {
        let canary = tokio::task::spawn_blocking(Canary::new).await??;
        let canary = Arc::new(canary);
        let (devices, unfit) = fit(devices, &canary).await?;
        let lost = [options.lost.as_slice(), &unfit].concat();
        for device in &lost {
            gauge!(telemetry::DEVICE_QUARANTINED, "device" => device.label.clone()).set(1.0);
        }
        let batching = Batching { max: options.batch_max, linger: options.batch_linger };
        let sizing = Sizing { jobs: options.concurrency, cpu_overflow: options.cpu_overflow, batching };
        let fleet = Arc::new(Fleet::new(devices, sizing));
        let WorkerParts { store, heartbeat, queue, artifacts, registry, service, keyring } = parts;
        let keeper = Keeper::start(heartbeat, options.lease)?;
        let id = WorkerId::of_this_process();
        let messages = Arc::new(Semaphore::new(dispatch::MESSAGES));
        let outage = service.outage().clone();
        let ctx = Context {
            store,
            queue,
            artifacts,
            registry,
            service,
            keyring,
            substitute: work,
            fleet,
            keeper,
            canary,
            options,
            id,
            messages,
            copies: Semaphore::new(proof_files::WRITTEN_AT_ONCE),
            environment: Environment::default(),
            queue_health: Arc::default(),
            unoffered: AtomicBool::new(false),
            outage,
        };
        let ctx = Arc::new(ctx);
        gauge!(telemetry::WORKER_SLOTS).set(ctx.fleet.slots() as f64);

        let mut others = JoinSet::new();
        let reconciler = ctx.clone();
        others.spawn(supervised("reconciler", move || reconcile::run(reconciler.clone())));
        let expirer = ctx.clone();
        others.spawn(supervised("expiry and metrics", move || reconcile::expire_and_measure(expirer.clone())));
        let purger = ctx.clone();
        others.spawn(supervised("retention", move || reconcile::purge_old_jobs(purger.clone())));
        let remover = ctx.clone();
        let remove = move || reconcile::remove_unneeded_content(remover.clone());
        others.spawn(supervised("removal of unneeded content", remove));
        let keeping = ctx.clone();
        let upkeep = move || reconcile::keep_queue(keeping.clone());
        others.spawn(supervised("queue upkeep", upkeep));
        others.spawn(proof_files::restore_latest(ctx.clone()));
        others.spawn(warm(ctx.clone()));
        for device in ctx.fleet.devices() {
            for _ in 0..device.capacity.calls() {
                let (device, allowed) = (device.clone(), ctx.options.prove_timeout);
                others.spawn(supervised("batcher", move || batcher::serve(device.clone(), allowed)));
            }
        }
        let (draining, _) = watch::channel(false);
        let mut dispatch = JoinSet::new();
        let (dispatcher, drains) = (ctx.clone(), draining.clone());
        dispatch.spawn(supervised("dispatcher", move || dispatch::run(dispatcher.clone(), drains.subscribe())));
        tracing::info!(worker = %ctx.id.0, slots = ctx.fleet.slots(), "worker started");
        Ok(Self { ctx, dispatch, others, draining, lost })
    }

    /// Returns the number of jobs the worker can have in progress.
    pub fn slots(&self) -> usize {
        self.ctx.fleet.slots()
    }

    /// Publishes the worker's state in `view`.
    pub fn show(&self, view: &View) {
        let Context { id, fleet, options, .. } = &*self.ctx;
        view.show(id.clone(), options.queue.clone(), self.reasons_of_lost(), fleet);
    }

    /// Updates `readiness` while the worker is of use. Returns the reason once it no longer is: devices that only a new
    /// process may get back.
    pub async fn watch(&self, readiness: &Readiness) -> String {
        let WorkerOptions { exit_on_dead, dead_after, .. } = &self.ctx.options;
        readiness::watch(&self.ctx.fleet, &self.reasons_of_lost(), readiness, *exit_on_dead, *dead_after).await
    }

    fn reasons_of_lost(&self) -> Vec<String> {
        self.lost.iter().map(|device| format!("{}: {}", device.label, device.why)).collect()
    }

    /// Stops claiming jobs, hands back those whose proof has not started, gives the others the grace period to finish,
    /// and hands back what is left. Returns the number of jobs handed back or given up.
    pub async fn drain(self) -> usize {
        self.drain_until(std::future::pending()).await
    }

    /// Like [`Worker::drain`], but ends the grace period when `hurry` completes: jobs that do not stop within a second
    /// are then handed back as they are.
    pub async fn drain_until(mut self, hurry: impl Future<Output = ()>) -> usize {
        self.draining.send_replace(true);
        let grace = self.ctx.options.grace;
        tracing::info!(in_hand = self.ctx.keeper.held().len(), grace_s = grace.as_secs(), "draining");
        let begun = Instant::now();
        let mut left = 0;
        // Repeatedly: the dispatcher may have been about to start some.
        let mut again = tokio::time::interval(STOP_AGAIN);
        let late = tokio::time::sleep(grace + STOP_WAIT);
        tokio::pin!(late, hurry);
        let mut hurried = false;
        loop {
            tokio::select! {
                _ = again.tick() => {
                    let in_grace = !hurried && begun.elapsed() < grace;
                    left += self.ctx.keeper.drain(if in_grace { Drained::Unproved } else { Drained::All });
                }
                ended = self.dispatch.join_next() => if ended.is_none() { break },
                () = &mut hurry, if !hurried => {
                    hurried = true;
                    let soon = tokio::time::Instant::now() + HURRIED_STOP_WAIT;
                    let deadline = late.deadline().min(soon);
                    late.as_mut().reset(deadline);
                }
                () = &mut late => {
                    self.hand_back().await;
                    break;
                }
            }
        }
        self.others.shutdown().await;
        let patience = if hurried { HURRIED_STOP_WAIT } else { STOP_WAIT };
        let closed = tokio::time::timeout(patience, self.ctx.queue.close()).await;
        if !matches!(closed, Ok(Ok(()))) {
            tracing::warn!("the queue could not be told that this worker exits; other workers will notice");
        }
        tracing::info!(handed_back = left, "worker stopped");
        left
    }

    /// Releases the leases of jobs that did not stop in time, so that other workers need not wait for them to lapse.
    async fn hand_back(&self) {
        let held = self.ctx.keeper.held();
        let each = held.into_iter().map(|(job, attempt)| async move {
            match tokio::time::timeout(HAND_BACK, self.ctx.store.release(job, attempt)).await {
                Ok(Ok(Held::Yes { cancel: false })) => tracing::warn!(%job, "job handed back while still running"),
                Ok(Ok(Held::Yes { cancel: true })) => {
                    tracing::info!(%job, "job cancelled while still running");
                    self.ctx.service.notify_waiters(job);
                    let ended = [job];
                    let announced = self.ctx.service.announce_ended_by_id(&ended, JobState::Cancelled);
                    // Whoever waits looks at the store now and then, too.
                    let _ = tokio::time::timeout(HAND_BACK, announced).await;
                }
                // Its result or failure was written, and only the reply is missing.
                Ok(Ok(Held::Lost)) => tracing::info!(%job, "job had ended, or another worker has it"),
                _ => tracing::error!(%job, "job could not be handed back; its lease will lapse"),
            }
        });
        join_all(each).await;
    }
}

/// Waits briefly for a call that makes something happen sooner. The call continues in the background after that.
async fn briefly<T: Send + 'static>(call: impl Future<Output = T> + Send + 'static) -> Option<T> {
    tokio::time::timeout(BRIEFLY, tokio::spawn(call)).await.ok()?.ok()
}

/// Returns the devices that pass their canary, and the reasons why others except the CPU do not.
async fn fit(
    devices: Vec<Arc<dyn Backend>>,
    canary: &Arc<Canary>,
) -> Result<(Vec<Arc<dyn Backend>>, Vec<LostDevice>), StartError> {
    let canary = canary.clone();
    tokio::task::spawn_blocking(move || {
        let (mut fit, mut why, mut lost) = (Vec::new(), Vec::new(), Vec::new());
        for device in devices {
            let label = device.device().label();
            match canary.run(device.as_ref()) {
                Ok(()) => fit.push(device),
                Err(e) => {
                    tracing::error!(device = %label, error = %e, "device not used: its canary fails");
                    if device.device().kind != DeviceKind::Cpu {
                        let why = format!("its canary failed at the start: {e}");
                        lost.push(LostDevice { label: label.clone(), why });
                    }
                    why.push(format!("{label}: {e}"));
                }
            }
        }
        if fit.is_empty() { Err(StartError::NoDevice(why.join("; "))) } else { Ok((fit, lost)) }
    })
    .await?
}

/// Runs a task to its end, restarting it if it panics: a single bug must not leave a worker that looks alive and does
/// nothing.
async fn supervised<F>(what: &'static str, start: impl Fn() -> F)
where
    F: Future<Output = ()> + Send + 'static,
{
    loop {
        // In a set of its own, so that the task is aborted together with this one.
        let mut task = JoinSet::new();
        task.spawn(start());
        match task.join_next().await {
            Some(Err(e)) if e.is_panic() => tracing::error!(what, "a task panicked; starting it again"),
            _ => return,
        }
        tokio::time::sleep(RESTART_PAUSE).await;
    }
}

/// Opens all registered circuits, and those that other processes register later, so that the first job of each waits
/// neither for a download nor for the compilation of a witness program.
async fn warm(ctx: Arc<Context>) {
    let mut known = HashSet::new();
    let mut started = false;
    loop {
        // If the store does not answer, the next round asks again.
        if let Ok(circuits) = ctx.store.circuits().await {
            known.retain(|opened| circuits.iter().any(|circuit| circuit.content() == *opened));
            // One device is enough; the others load keys as needed. Only in the first round: later there may be work,
            // and a key that no job asked for might evict one that is in use.
            let device = if started { None } else { ctx.fleet.first() };
            let new: Vec<_> = circuits.iter().filter(|circuit| known.insert(circuit.content())).collect();
            some_at_once(new, |circuit| open_ahead(&ctx, device, circuit)).await;
            started = true;
        }
        tokio::time::sleep(WARM_EVERY).await;
    }
}

/// Opens circuits, a few concurrently, so that the download of a large one delays few others.
async fn some_at_once<T, F: Future<Output = ()>>(circuits: Vec<T>, open: impl Fn(T) -> F) {
    futures::stream::iter(circuits).for_each_concurrent(OPENED_AT_ONCE, open).await;
}

async fn open_ahead(ctx: &Context, device: Option<&Arc<Device>>, circuit: &Circuit) {
    let open = match ctx.registry.open(circuit.content()).await {
        Ok(open) => open,
        Err(error) => return tracing::warn!(circuit = %circuit.name, %error, "a registered circuit cannot be opened"),
    };
    if let Some(device) = device
        && let Err(
            AttemptError::Failed(JobError { message, .. }) | AttemptError::Environment(JobError { message, .. }, _),
        ) = loading::load(&ctx.registry, device, &open, ctx.options.load_patience).await
    {
        tracing::warn!(circuit = %circuit.name, error = message, "could not load a key ahead of its first job");
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use tokio::sync::Barrier;

    use super::*;

    #[tokio::test]
    async fn circuits_are_opened_some_at_once_and_no_more() {
        let circuits: Vec<usize> = (0..3 * OPENED_AT_ONCE).collect();
        // Each continues only once the full number is in progress: sequentially, none would.
        let (full, under_way, opened) = (Barrier::new(OPENED_AT_ONCE), AtomicUsize::new(0), AtomicUsize::new(0));
        some_at_once(circuits, async |_| {
            assert!(under_way.fetch_add(1, Ordering::SeqCst) < OPENED_AT_ONCE);
            full.wait().await;
            under_way.fetch_sub(1, Ordering::SeqCst);
            opened.fetch_add(1, Ordering::SeqCst);
        })
        .await;
        assert_eq!(opened.into_inner(), 3 * OPENED_AT_ONCE);
    }
}
