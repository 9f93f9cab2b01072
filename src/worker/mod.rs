//! The worker: jobs from the queue, through witness and proof, to the store.
//!
//! A [`Worker`] has a dispatcher that takes as many jobs from the queue as there is room for; devices, each with slots
//! and a desk where witnesses wait for it; a heartbeat thread that keeps the leases; and a reconciler that finds what
//! the queue forgot. [`JobService`] is the other side: submit, look,
//! cancel. [`Workspace`] opens the rooms both stand on.

mod attempt;
mod canary;
mod desk;
mod device;
mod dispatch;
mod failure;
mod faults;
mod fleet;
mod ingest;
mod lease;
mod loading;
mod outage;
mod pauses;
mod readiness;
mod reconcile;
pub mod request;
pub mod retry;
mod service;
mod surroundings;
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
use uuid::Uuid;

pub use canary::Canary;
pub use faults::{Faults, Point};
pub use readiness::{Readiness, Status};
pub use service::{JobService, ServiceError, ServiceOptions, SubmitRequest};
pub use view::{DeviceView, View, WorkerView};
pub use workspace::{OpenError, Workspace, module_cache, open_queue, running_program};

use self::failure::Ended;
use crate::artifacts::Artifacts;
use crate::backend::{Backend, DeviceKind};
use crate::config::{Config, ExitOnDead};
use crate::model::{Circuit, Job, JobError, JobResult, JobState, StopReason, StopToken, WorkerId};
use crate::queue::Queue;
use crate::registry::{CircuitContent, Registry};
use crate::seal::Keyring;
use crate::store::{Held, JobFilter, Store};
use crate::telemetry;
use desk::Batching;
use device::Device;
use fleet::{Fleet, Sizing};
use lease::Keeper;
use outage::Outage;
use surroundings::Surroundings;

/// How long a task that panicked waits before it is started again.
const PAUSE: Duration = Duration::from_secs(1);
/// How long stopped jobs have to notice. They look between steps of a proof.
const STOP_WAIT: Duration = Duration::from_secs(10);
/// The same where whoever asked is in a hurry.
const HURRY: Duration = Duration::from_secs(1);
/// How often they are told.
const STOP_AGAIN: Duration = Duration::from_millis(100);
/// How long the store has to take back the jobs that did not.
const HAND_BACK: Duration = Duration::from_secs(2);
/// How long anybody waits for the queue to be told what the store has already.
const BRIEFLY: Duration = Duration::from_millis(500);
/// Proofs whose files are written at once at most.
const COPIES: usize = 32;
/// Finished jobs whose proof files are looked for at start.
const HEAL_LAST: u32 = 200;
/// How long a device may take for the smallest key.
const LOAD_PATIENCE: Duration = Duration::from_secs(300);
/// How long a device may be unfit before it counts as dead: time for three canaries at least.
const DEAD_AFTER: Duration = Duration::from_secs(600);
/// Time between looks for circuits that other processes registered.
const WARM_EVERY: Duration = Duration::from_secs(15);

/// Circuits opened side by side ahead of their jobs. Of their witness programs, the registry has fewer compiled at a time.
const OPENED_AT_ONCE: usize = 4;

/// How a worker works.
#[derive(Debug, Clone)]
pub struct Options {
    /// Name of the queue.
    pub queue: String,
    /// Jobs in hand at once; sized by the devices when unset.
    pub concurrency: Option<usize>,
    /// Whether the processor takes jobs while every other device is full.
    pub cpu_overflow: bool,
    /// Most proofs of one circuit given to a device at once; what the device is best at when unset.
    pub batch_max: Option<usize>,
    /// How long a batch that is not full waits for more jobs.
    pub batch_linger: Duration,
    /// How long ended jobs are kept; for ever when unset.
    pub retention: Option<Duration>,
    /// Length of a lease.
    pub lease: Duration,
    /// Longest witness generation.
    pub witness_timeout: Duration,
    /// Longest proof.
    pub prove_timeout: Duration,
    /// How long a device other than the processor may take for a key, beside the time that its bytes take. No setting:
    /// what takes longer hangs.
    pub load_patience: Duration,
    /// Longest attempt.
    pub job_timeout: Duration,
    /// Whether the worker is to end when devices do not come back.
    pub exit_on_dead: ExitOnDead,
    /// How long a device may be unfit without a break before it counts as dead. No setting.
    pub dead_after: Duration,
    /// Time that proofs begun have when draining.
    pub grace: Duration,
    /// Armed fault, for tests.
    pub faults: Faults,
}

impl From<&Config> for Options {
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
    /// No canary could be made.
    #[error("the canary's key could not be made: {0}")]
    Canary(#[from] crate::groth16::setup::SetupError),
    /// The heartbeat has no thread.
    #[error("the heartbeat's thread could not be started: {0}")]
    Heartbeat(#[from] std::io::Error),
    /// A task ended before its time.
    #[error("starting was cut short: {0}")]
    Cut(#[from] tokio::task::JoinError),
}

/// What the rooms of a worker share.
struct Context {
    store: Arc<dyn Store>,
    queue: Arc<dyn Queue>,
    artifacts: Artifacts,
    registry: Registry,
    service: JobService,
    keyring: Arc<Keyring>,
    work: Option<Arc<dyn Work>>,
    fleet: Arc<Fleet>,
    keeper: Keeper,
    canary: Arc<Canary>,
    options: Options,
    id: WorkerId,
    /// Places for messages being recorded.
    messages: Arc<Semaphore>,
    /// Places for proofs whose files are written.
    copies: Semaphore,
    surroundings: Surroundings,
    /// The queue takes no offers: what is due is taken from the store.
    unoffered: AtomicBool,
    outage: Outage,
}

/// Something that makes results in place of the worker's own devices, for measuring all the rest.
#[doc(hidden)]
#[async_trait::async_trait]
pub trait Work: Send + Sync {
    /// A result for this job.
    async fn make(&self, job: &Job, input: &[u8]) -> JobResult;
}

impl Context {
    /// Passes a point at which a test may have armed a fault.
    async fn pass(&self, at: Point, stop: &StopToken) {
        self.options.faults.pass(at, stop, &self.keeper).await;
    }
}

/// What a worker stands on.
pub struct Rooms {
    /// Jobs and circuits.
    pub store: Arc<dyn Store>,
    /// The same store by a connection of its own, for the heartbeat.
    pub heartbeat: Arc<dyn Store>,
    /// Brings jobs.
    pub queue: Arc<dyn Queue>,
    /// Keys, programs and proofs.
    pub artifacts: Artifacts,
    /// Open circuits.
    pub registry: Registry,
    /// Records what producers write into the queue.
    pub service: JobService,
    /// Opens inputs.
    pub keyring: Arc<Keyring>,
}

/// A running worker.
pub struct Worker {
    ctx: Arc<Context>,
    dispatch: JoinSet<()>,
    others: JoinSet<()>,
    draining: watch::Sender<bool>,
    /// Why devices other than the processor were no good from the start.
    lost: Vec<String>,
}

impl Worker {
    /// Starts the worker: each device sings first, and one that cannot gets no jobs. Jobs are taken at once.
    ///
    /// `devices` are best first; the processor should be among them, as the fallback.
    pub async fn start(rooms: Rooms, devices: Vec<Arc<dyn Backend>>, options: Options) -> Result<Self, StartError> {
        Self::start_with(rooms, devices, None, options).await
    }

    /// The same with other work in the devices' place.
    #[doc(hidden)]
    pub async fn start_with(
        rooms: Rooms,
        devices: Vec<Arc<dyn Backend>>,
        work: Option<Arc<dyn Work>>,
        options: Options,
    ) -> Result<Self, StartError> {
        let canary = tokio::task::spawn_blocking(Canary::new).await??;
        let canary = Arc::new(canary);
        let (devices, lost) = fit(devices, &canary).await?;
        let batching = Batching { most: options.batch_max, linger: options.batch_linger };
        let sizing = Sizing { jobs: options.concurrency, cpu_overflow: options.cpu_overflow, batching };
        let fleet = Arc::new(Fleet::new(devices, sizing));
        let Rooms { store, heartbeat, queue, artifacts, registry, service, keyring } = rooms;
        let keeper = Keeper::start(heartbeat, options.lease)?;
        let id = WorkerId(format!("{}-{}", std::process::id(), Uuid::now_v7().simple()));
        let messages = Arc::new(Semaphore::new(dispatch::MESSAGES));
        let outage = service.outage().clone();
        let ctx = Context {
            store,
            queue,
            artifacts,
            registry,
            service,
            keyring,
            work,
            fleet,
            keeper,
            canary,
            options,
            id,
            messages,
            copies: Semaphore::new(COPIES),
            surroundings: Surroundings::default(),
            unoffered: AtomicBool::new(false),
            outage,
        };
        let ctx = Arc::new(ctx);
        gauge!(telemetry::WORKER_SLOTS).set(ctx.fleet.slots() as f64);

        let mut others = JoinSet::new();
        let reconciler = ctx.clone();
        others.spawn(unbroken("reconciler", move || reconcile::run(reconciler.clone())));
        let tidier = ctx.clone();
        others.spawn(unbroken("tidying", move || reconcile::tidy(tidier.clone())));
        let forgetter = ctx.clone();
        others.spawn(unbroken("forgetting", move || reconcile::forget(forgetter.clone())));
        let keeping = ctx.clone();
        let keep = move || reconcile::keep_queue(keeping.queue.clone(), keeping.store.clone());
        others.spawn(unbroken("queue upkeep", keep));
        others.spawn(heal(ctx.clone()));
        others.spawn(warm(ctx.clone()));
        for device in ctx.fleet.devices() {
            for _ in 0..device.calls() {
                let (device, allowed) = (device.clone(), ctx.options.prove_timeout);
                others.spawn(unbroken("desk", move || desk::serve(device.clone(), allowed)));
            }
        }
        let (draining, _) = watch::channel(false);
        let mut dispatch = JoinSet::new();
        let (dispatcher, drains) = (ctx.clone(), draining.clone());
        dispatch.spawn(unbroken("dispatcher", move || dispatch::run(dispatcher.clone(), drains.subscribe())));
        tracing::info!(worker = %ctx.id.0, slots = ctx.fleet.slots(), "worker started");
        Ok(Self { ctx, dispatch, others, draining, lost })
    }

    /// Jobs it can have in hand at once.
    pub fn slots(&self) -> usize {
        self.ctx.fleet.slots()
    }

    /// Lets it be seen.
    pub fn show(&self, view: &View) {
        let Context { id, fleet, options, .. } = &*self.ctx;
        view.show(id.clone(), options.queue.clone(), self.lost.clone(), fleet);
    }

    /// Keeps `readiness` as long as the worker is of use. Returns why it is not any more: devices that only a new process may
    /// have back.
    pub async fn watch(&self, readiness: &Readiness) -> String {
        let Options { exit_on_dead, dead_after, .. } = &self.ctx.options;
        readiness::watch(&self.ctx.fleet, &self.lost, readiness, *exit_on_dead, *dead_after).await
    }

    /// Stops claiming, hands back jobs whose proof has not begun, gives the others the grace period to finish, and hands back
    /// what is left. Returns the number handed back or given up.
    pub async fn drain(self) -> usize {
        self.drain_until(std::future::pending()).await
    }

    /// The same, but from the time that `hurry` is done no job has any more time: what does not stop within a second is handed
    /// back as it is.
    pub async fn drain_until(mut self, hurry: impl Future<Output = ()>) -> usize {
        self.draining.send_replace(true);
        let grace = self.ctx.options.grace;
        tracing::info!(in_hand = self.ctx.keeper.held().len(), grace_s = grace.as_secs(), "draining");
        let begun = Instant::now();
        let mut left = 0;
        // Not once: the dispatcher may have been about to begin some.
        let mut again = tokio::time::interval(STOP_AGAIN);
        let late = tokio::time::sleep(grace + STOP_WAIT);
        tokio::pin!(late, hurry);
        let mut hurried = false;
        loop {
            tokio::select! {
                _ = again.tick() => {
                    left += self.ctx.keeper.stop(StopReason::Draining, hurried || begun.elapsed() >= grace);
                }
                ended = self.dispatch.join_next() => if ended.is_none() { break },
                () = &mut hurry, if !hurried => {
                    hurried = true;
                    let soon = tokio::time::Instant::now() + HURRY;
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
        let patience = if hurried { HURRY } else { STOP_WAIT };
        let closed = tokio::time::timeout(patience, self.ctx.queue.close()).await;
        if !matches!(closed, Ok(Ok(()))) {
            tracing::warn!("the queue did not hear that this worker ends; others will find out");
        }
        tracing::info!(handed_back = left, "worker stopped");
        left
    }

    /// Gives up the leases of jobs that did not stop in time, so that others need not wait for them to lapse.
    async fn hand_back(&self) {
        let held = self.ctx.keeper.held();
        let each = held.into_iter().map(|(job, attempt)| async move {
            match tokio::time::timeout(HAND_BACK, self.ctx.store.release(job, attempt)).await {
                Ok(Ok(Held::Yes { .. })) => tracing::warn!(%job, "job handed back while still at work"),
                // Its end was written, and only the answer to that has not come.
                Ok(Ok(Held::Lost)) => tracing::info!(%job, "job had ended, or is another worker's by now"),
                _ => tracing::error!(%job, "job could not be handed back; its lease will lapse"),
            }
        });
        join_all(each).await;
    }
}

/// Waits for a call that makes something happen sooner, but not for long: it goes on beside where nobody answers.
async fn briefly<T: Send + 'static>(call: impl Future<Output = T> + Send + 'static) -> Option<T> {
    tokio::time::timeout(BRIEFLY, tokio::spawn(call)).await.ok()?.ok()
}

/// Devices whose canary sings; and of those other than the processor that have none, why.
async fn fit(
    devices: Vec<Arc<dyn Backend>>,
    canary: &Arc<Canary>,
) -> Result<(Vec<Arc<dyn Backend>>, Vec<String>), StartError> {
    let canary = canary.clone();
    tokio::task::spawn_blocking(move || {
        let (mut fit, mut why, mut lost) = (Vec::new(), Vec::new(), Vec::new());
        for device in devices {
            let label = device.device().label();
            match canary.sing(device.as_ref()) {
                Ok(()) => fit.push(device),
                Err(e) => {
                    tracing::error!(device = %label, error = %e, "device is not used: its canary fails");
                    if device.device().kind != DeviceKind::Cpu {
                        lost.push(format!("the canary of {label} failed at the start: {e}"));
                    }
                    why.push(format!("{label}: {e}"));
                }
            }
        }
        if fit.is_empty() { Err(StartError::NoDevice(why.join("; "))) } else { Ok((fit, lost)) }
    })
    .await?
}

/// Runs a task to its end, and again should it panic: one bug must not leave a worker that looks alive and does nothing.
async fn unbroken<F>(what: &'static str, start: impl Fn() -> F)
where
    F: Future<Output = ()> + Send + 'static,
{
    loop {
        // In a set of its own, so that it ends with this task.
        let mut task = JoinSet::new();
        task.spawn(start());
        match task.join_next().await {
            Some(Err(e)) if e.is_panic() => tracing::error!(what, "a task panicked; starting it again"),
            _ => return,
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// Puts back proof files that a crash after the commit left out.
async fn heal(ctx: Arc<Context>) {
    let done = JobFilter { state: Some(JobState::Done), limit: HEAL_LAST, ..JobFilter::default() };
    let Ok(jobs) = ctx.store.jobs(done).await else { return };
    for job in jobs {
        if matches!(ctx.artifacts.has_proof(job.id).await, Ok(false))
            && let Ok(Some(job)) = ctx.store.job(job.id).await
            && let Some(result) = &job.result
            && ctx.artifacts.put_proof(job.id, &result.proof_json, &result.public_json).await.is_ok()
        {
            tracing::info!(job = %job.id, "proof files put back");
        }
    }
}

/// Opens the circuits there are, and those that other processes register later, so that the first job of each waits
/// neither for a download nor for the compile of a witness program.
async fn warm(ctx: Arc<Context>) {
    let content = |circuit: &Circuit| CircuitContent { zkey: circuit.zkey, wasm: circuit.wasm };
    let mut known = HashSet::new();
    let mut started = false;
    loop {
        // A store that does not answer is asked again.
        if let Ok(circuits) = ctx.store.circuits().await {
            known.retain(|opened| circuits.iter().any(|circuit| content(circuit) == *opened));
            // One device is enough, the rest load what they need; and nothing, once there may be work, of which a key that
            // nobody asked for might take the place.
            let device = if started { None } else { ctx.fleet.first() };
            let new: Vec<_> = circuits.iter().filter(|circuit| known.insert(content(circuit))).collect();
            some_at_once(new, |circuit| open_ahead(&ctx, device, circuit, content(circuit))).await;
            started = true;
        }
        tokio::time::sleep(WARM_EVERY).await;
    }
}

/// Opens circuits, some side by side: the download of one that is large keeps few others waiting.
async fn some_at_once<T, F: Future<Output = ()>>(circuits: Vec<T>, open: impl Fn(T) -> F) {
    futures::stream::iter(circuits).for_each_concurrent(OPENED_AT_ONCE, open).await;
}

async fn open_ahead(ctx: &Context, device: Option<&Arc<Device>>, circuit: &Circuit, content: CircuitContent) {
    let open = match ctx.registry.open(content).await {
        Ok(open) => open,
        Err(error) => return tracing::warn!(circuit = %circuit.name, %error, "a registered circuit cannot be opened"),
    };
    if let Some(device) = device
        && let Err(Ended::Failed(JobError { message, .. }) | Ended::Around(JobError { message, .. }, _)) =
            loading::load(&ctx.registry, device, &open, ctx.options.load_patience).await
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
        // Each goes on once as many as may be are under way: one after the other, none would.
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
