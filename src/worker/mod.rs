//! The worker: jobs from the queue, through witness and proof, to the store.
//!
//! A [`Worker`] has slots, each with at most one job in hand and each belonging to a device; a heartbeat thread that
//! keeps the leases; and a reconciler that finds what the queue forgot. [`JobService`] is the other side: submit, look,
//! cancel. [`Workspace`] opens the rooms both stand on.

mod attempt;
mod canary;
mod failure;
mod faults;
mod fleet;
mod lease;
mod readiness;
mod reconcile;
pub mod retry;
mod service;
mod workspace;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use metrics::{gauge, histogram};
use tokio::sync::watch;
use tokio::task::JoinSet;
use uuid::Uuid;

pub use canary::Canary;
pub use faults::{Faults, Point};
pub use readiness::{Readiness, Status};
pub use service::{JobService, ServiceError, SubmitRequest};
pub use workspace::{OpenError, Workspace, module_cache};

use crate::artifacts::Artifacts;
use crate::backend::Backend;
use crate::config::Config;
use crate::model::{Job, JobState, StopReason, StopToken, WorkerId};
use crate::queue::{Delivery, Queue};
use crate::registry::Registry;
use crate::store::{JobFilter, Store};
use crate::telemetry;
use fleet::Fleet;
use lease::Keeper;

/// How long a slot waits in the queue before it looks up.
const POP_WAIT: Duration = Duration::from_secs(1);
/// How long stopped jobs have to notice. They look between steps of a proof.
const STOP_WAIT: Duration = Duration::from_secs(10);
/// Finished jobs whose proof files are looked for at start.
const HEAL_LAST: u32 = 200;

/// How a worker works.
#[derive(Debug, Clone)]
pub struct Options {
    /// Jobs in hand at once; sized by the devices when unset.
    pub concurrency: Option<usize>,
    /// Length of a lease.
    pub lease: Duration,
    /// Longest witness generation.
    pub witness_timeout: Duration,
    /// Longest proof.
    pub prove_timeout: Duration,
    /// Longest attempt.
    pub job_timeout: Duration,
    /// Time to finish when draining.
    pub grace: Duration,
    /// Armed fault, for tests.
    pub faults: Faults,
}

impl From<&Config> for Options {
    fn from(c: &Config) -> Self {
        Self {
            concurrency: c.concurrency,
            lease: c.lease,
            witness_timeout: c.witness_timeout,
            prove_timeout: c.prove_timeout,
            job_timeout: c.job_timeout,
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
    fleet: Fleet,
    keeper: Keeper,
    canary: Arc<Canary>,
    options: Options,
    id: WorkerId,
    busy: AtomicUsize,
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
    /// Wakes the slots.
    pub queue: Arc<dyn Queue>,
    /// Keys, programs and proofs.
    pub artifacts: Artifacts,
    /// Open circuits.
    pub registry: Registry,
}

/// A running worker.
pub struct Worker {
    ctx: Arc<Context>,
    slots: JoinSet<()>,
    others: JoinSet<()>,
    draining: watch::Sender<bool>,
}

impl Worker {
    /// Starts the worker: each device sings first, and one that cannot gets no jobs. Jobs are taken at once.
    ///
    /// `devices` are best first; the processor should be among them, as the fallback.
    pub async fn start(rooms: Rooms, devices: Vec<Arc<dyn Backend>>, options: Options) -> Result<Self, StartError> {
        let canary = tokio::task::spawn_blocking(Canary::new).await??;
        let canary = Arc::new(canary);
        let devices = fit(devices, &canary).await?;
        let fleet = Fleet::new(devices, options.concurrency);
        let Rooms { store, heartbeat, queue, artifacts, registry } = rooms;
        let keeper = Keeper::start(heartbeat, options.lease)?;
        let id = WorkerId(format!("{}-{}", std::process::id(), Uuid::now_v7().simple()));
        let lease = options.lease;
        let busy = AtomicUsize::new(0);
        let ctx = Arc::new(Context { store, queue, artifacts, registry, fleet, keeper, canary, options, id, busy });
        gauge!(telemetry::WORKER_SLOTS).set(ctx.fleet.slots().len() as f64);

        let (draining, _) = watch::channel(false);
        let mut others = JoinSet::new();
        let (store, queue) = (ctx.store.clone(), ctx.queue.clone());
        others.spawn(unbroken("reconciler", move || reconcile::run(store.clone(), queue.clone(), lease)));
        others.spawn(heal(ctx.clone()));
        others.spawn(warm(ctx.clone()));
        let mut slots = JoinSet::new();
        for device in ctx.fleet.slots().to_vec() {
            let (ctx, draining) = (ctx.clone(), draining.clone());
            slots.spawn(unbroken("slot", move || slot(ctx.clone(), device, draining.subscribe())));
        }
        tracing::info!(worker = %ctx.id.0, slots = ctx.fleet.slots().len(), "worker started");
        Ok(Self { ctx, slots, others, draining })
    }

    /// Jobs it can have in hand at once.
    pub fn slots(&self) -> usize {
        self.ctx.fleet.slots().len()
    }

    /// Stops claiming, gives jobs in hand the grace period to finish, and hands back what is left. Returns the number
    /// handed back or given up.
    pub async fn drain(mut self) -> usize {
        self.draining.send_replace(true);
        let grace = self.ctx.options.grace;
        tracing::info!(in_hand = self.ctx.keeper.held().len(), grace_s = grace.as_secs(), "draining");
        let all = async { while self.slots.join_next().await.is_some() {} };
        let mut left = 0;
        if tokio::time::timeout(grace, all).await.is_err() {
            left = self.ctx.keeper.held().len();
            self.ctx.keeper.stop_all(StopReason::Draining);
            let all = async { while self.slots.join_next().await.is_some() {} };
            if tokio::time::timeout(STOP_WAIT, all).await.is_err() {
                self.hand_back().await;
            }
        }
        self.others.shutdown().await;
        tracing::info!(handed_back = left, "worker stopped");
        left
    }

    /// Gives up the leases of jobs that did not stop in time, so that others need not wait for them to lapse.
    async fn hand_back(&self) {
        for (job, attempt) in self.ctx.keeper.held() {
            match tokio::time::timeout(Duration::from_secs(2), self.ctx.store.release(job, attempt)).await {
                Ok(Ok(_)) => tracing::warn!(%job, "job handed back while still at work"),
                _ => tracing::error!(%job, "job could not be handed back; its lease will lapse"),
            }
        }
    }
}

/// Devices whose canary sings.
async fn fit(devices: Vec<Arc<dyn Backend>>, canary: &Arc<Canary>) -> Result<Vec<Arc<dyn Backend>>, StartError> {
    let canary = canary.clone();
    tokio::task::spawn_blocking(move || {
        let mut why = Vec::new();
        let mut fit = Vec::new();
        for device in devices {
            let label = device.device().label();
            match canary.sing(device.as_ref()) {
                Ok(()) => fit.push(device),
                Err(e) => {
                    tracing::error!(device = %label, error = %e, "device is not used: its canary fails");
                    why.push(format!("{label}: {e}"));
                }
            }
        }
        if fit.is_empty() { Err(StartError::NoDevice(why.join("; "))) } else { Ok(fit) }
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
        tokio::time::sleep(POP_WAIT).await;
    }
}

/// A slot: one job at a time, and no claim before there is room for it.
async fn slot(ctx: Arc<Context>, device: usize, mut draining: watch::Receiver<bool>) {
    loop {
        if *draining.borrow() {
            return;
        }
        let Some(device) = ctx.fleet.fit(device, &ctx.canary).await else {
            wait(&mut draining, POP_WAIT).await;
            continue;
        };
        let popped = tokio::select! {
            biased;
            _ = draining.changed() => return,
            popped = ctx.queue.pop(1, POP_WAIT) => popped,
        };
        match popped {
            Ok(deliveries) => {
                for delivery in deliveries {
                    deliver(&ctx, device, delivery).await;
                }
            }
            Err(error) => {
                tracing::error!(%error, "the queue failed");
                wait(&mut draining, POP_WAIT).await;
            }
        }
    }
}

async fn wait(draining: &mut watch::Receiver<bool>, time: Duration) {
    let _ = tokio::time::timeout(time, draining.changed()).await;
}

/// Claims a job that the queue offers, and works on it if it is there to be had.
async fn deliver(ctx: &Context, device: usize, delivery: Delivery) {
    let crate::queue::Offer::Job(id) = delivery.offer else { return };
    match ctx.store.claim(id, &ctx.id, ctx.options.lease).await {
        Ok(Some(claim)) => {
            histogram!(telemetry::JOB_WAIT).record(waited(&claim.job, ctx.options.lease));
            let _busy = Busy::new(ctx);
            attempt::run(ctx, device, claim).await;
        }
        // Somebody else has it, or it ended.
        Ok(None) => {}
        Err(error) => {
            tracing::error!(job = %id, %error, "could not claim");
            tokio::time::sleep(POP_WAIT).await;
        }
    }
    if let Err(error) = ctx.queue.ack(&[delivery]).await {
        tracing::warn!(job = %id, %error, "the queue did not hear that the job is dealt with");
    }
}

/// Seconds from when the job was due to its claim, by the store's clock.
fn waited(job: &Job, lease: Duration) -> f64 {
    let claimed = job.lease_expires_at.unwrap_or(job.run_at) - i64::try_from(lease.as_millis()).unwrap_or(0);
    (claimed - job.run_at).max(0) as f64 / 1e3
}

/// Counts a slot as busy while it lives.
struct Busy<'a>(&'a Context);

impl<'a> Busy<'a> {
    fn new(ctx: &'a Context) -> Self {
        let busy = ctx.busy.fetch_add(1, Ordering::Relaxed) + 1;
        gauge!(telemetry::WORKER_SLOTS_BUSY).set(busy as f64);
        Self(ctx)
    }
}

impl Drop for Busy<'_> {
    fn drop(&mut self) {
        let busy = self.0.busy.fetch_sub(1, Ordering::Relaxed) - 1;
        gauge!(telemetry::WORKER_SLOTS_BUSY).set(busy as f64);
    }
}

/// Puts back proof files that a crash after the commit left out.
async fn heal(ctx: Arc<Context>) {
    let done = JobFilter { state: Some(JobState::Done), limit: HEAL_LAST, ..JobFilter::default() };
    let Ok(jobs) = ctx.store.jobs(done).await else { return };
    for job in jobs {
        if let Some(result) = &job.result
            && matches!(ctx.artifacts.has_proof(job.id).await, Ok(false))
            && ctx.artifacts.put_proof(job.id, &result.proof_json, &result.public_json).await.is_ok()
        {
            tracing::info!(job = %job.id, "proof files put back");
        }
    }
}

/// Opens the circuits there are, so that the first job of each does not wait for it.
async fn warm(ctx: Arc<Context>) {
    let Ok(circuits) = ctx.store.circuits().await else { return };
    // One device of each slot is enough: the rest load what they need.
    let Some(device) = ctx.fleet.slots().first().map(|d| ctx.fleet.devices()[*d].clone()) else { return };
    for circuit in circuits {
        let content = crate::registry::CircuitContent { zkey: circuit.zkey, wasm: circuit.wasm };
        match ctx.registry.open(content).await {
            Ok(open) => {
                if let Err(error) = ctx.registry.load(&device.backend, &open).await {
                    tracing::warn!(circuit = %circuit.name, %error, "could not load a key ahead of its first job");
                }
            }
            Err(error) => tracing::warn!(circuit = %circuit.name, %error, "a registered circuit cannot be opened"),
        }
    }
}
