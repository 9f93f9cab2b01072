//! Jobs from the submitters' side: submit, inspect, cancel, fetch the proof. Used by the command line and the HTTP API.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::task::JoinError;
use zeroize::Zeroizing;

use super::outage::{Outage, log_unless};
use super::waiting::Waiting;
use super::{Purged, briefly, proof_files};
use crate::artifacts::{ArtifactError, Artifacts};
use crate::formats::wtns;
use crate::model::{
    Circuit, CircuitName, ContentHash, IdempotencyKey, Job, JobError, JobId, JobResult, JobState, NewJob, Priority,
};
use crate::queue::{EndNotice, Precedence, Queue, QueueError, SetAside};
use crate::seal::{Keyring, SealError};
use crate::store::{
    Cancelled, Counts, Input, JobFilter, Load, Purge, Replacement, Requeued, Scope, Store, StoreError, Submitted,
};
use crate::witness::Inputs;

/// How long [`JobService::result`] waits for the files of a proof to be restored, which are only copies.
const RESTORE_TIMEOUT: Duration = Duration::from_secs(2);

/// A job to submit.
pub struct SubmitRequest {
    /// The job's id, if the submitter chooses it: the same id with the same body is the same job.
    pub id: Option<JobId>,
    /// The circuit's name.
    pub circuit: CircuitName,
    /// Input as JSON, or a .wtns file if the circuit has no witness program. Secret.
    pub input: Zeroizing<Vec<u8>>,
    /// The submitter's own key for the job.
    pub idempotency_key: Option<IdempotencyKey>,
    /// Priority among queued jobs.
    pub priority: Priority,
}

/// Why a request was refused.
#[derive(Debug, thiserror::Error)]
pub enum ServiceError {
    /// No job has this id.
    #[error("there is no job {0}")]
    UnknownJob(JobId),
    /// No circuit of this name is registered.
    #[error("no circuit {0} is registered")]
    UnknownCircuit(CircuitName),
    /// The id or idempotency key was used by a different request.
    #[error("{0}")]
    Conflict(String),
    /// The input is too large.
    #[error("the input has {got} bytes, at most {limit} are allowed (PROVER_MAX_INPUT_BYTES)")]
    TooLarge {
        /// Size of the input, in bytes.
        got: usize,
        /// Maximum size, in bytes.
        limit: usize,
    },
    /// The input or another part of the request is invalid.
    #[error("{0}")]
    Invalid(String),
    /// The job is not in a state in which it can be queued again.
    #[error("job {id} is {state}; only failed and cancelled jobs can be queued again")]
    NotRequeued {
        /// The job.
        id: JobId,
        /// Its state.
        state: JobState,
    },
    /// The job's input was deleted.
    #[error("the input of job {0} is no longer held; provide it again")]
    InputGone(JobId),
    /// The job's key or witness program is no longer registered.
    #[error(
        "job {id} cannot be queued again: the key or the witness program that it was submitted for is no longer \
         registered, because circuit {circuit} was removed or replaced; submit its input as a new job"
    )]
    CircuitGone {
        /// The job.
        id: JobId,
        /// The job's circuit.
        circuit: CircuitName,
    },
    /// The input could not be sealed.
    #[error(transparent)]
    Seal(#[from] SealError),
    /// The job has no proof.
    #[error("job {id} has no proof: it is {state}")]
    NoProof {
        /// The job.
        id: JobId,
        /// Its state.
        state: JobState,
    },
    /// The store failed.
    #[error(transparent)]
    Store(StoreError),
    /// The queue failed.
    #[error(transparent)]
    Queue(#[from] QueueError),
    /// An artifact could not be written.
    #[error(transparent)]
    Artifact(#[from] ArtifactError),
    /// The check of the input panicked or was cancelled. The text leaves out the panic's message, which may quote the
    /// input.
    #[error("the check of the input was interrupted")]
    Interrupted(#[from] JoinError),
}

/// The parts of a request that identify it, for hashing.
fn asked<'a>(key: Option<&'a str>, circuit: &'a CircuitName, input: &'a [u8]) -> [&'a [u8]; 3] {
    [key.unwrap_or_default().as_bytes(), circuit.as_str().as_bytes(), input]
}

impl From<StoreError> for ServiceError {
    fn from(e: StoreError) -> Self {
        match e {
            StoreError::UnknownCircuit(name) => Self::UnknownCircuit(name),
            StoreError::Conflict { .. } => Self::Conflict(e.to_string()),
            e => Self::Store(e),
        }
    }
}

/// Settings of a [`JobService`].
#[derive(Debug, Clone)]
pub struct ServiceOptions {
    /// Largest input, in bytes.
    pub max_input: usize,
    /// How long a job may wait for a worker; unlimited when unset.
    pub start_within: Option<Duration>,
    /// Seals inputs.
    pub keyring: Arc<Keyring>,
}

/// Jobs in a store; wakes workers through the queue.
#[derive(Clone)]
pub struct JobService {
    store: Arc<dyn Store>,
    queue: Option<Arc<dyn Queue>>,
    artifacts: Artifacts,
    options: ServiceOptions,
    waiting: Waiting,
    outage: Outage,
    /// Whether the queue failed to take the last job.
    queue_failed: Arc<AtomicBool>,
}

impl JobService {
    /// Creates a service. Without a queue, workers find new jobs by polling the store.
    pub fn new(
        store: Arc<dyn Store>,
        queue: Option<Arc<dyn Queue>>,
        artifacts: Artifacts,
        options: ServiceOptions,
    ) -> Self {
        let (waiting, outage) = (Waiting::new(store.clone()), Outage::of(store.address()));
        Self { store, queue, artifacts, options, waiting, outage, queue_failed: Arc::default() }
    }

    /// Returns the state of an outage of the store, shared by all clones of the service.
    pub(super) fn outage(&self) -> &Outage {
        &self.outage
    }

    /// Returns the size of the largest input, in bytes.
    pub fn max_input(&self) -> usize {
        self.options.max_input
    }

    /// Submits a job. Requests that can be recognised as invalid are refused at once.
    pub async fn submit(&self, request: SubmitRequest) -> Result<Submitted, ServiceError> {
        let submitted = self.record(request).await?;
        if let Submitted::Created(job) = &submitted {
            self.offer(job).await;
        }
        Ok(submitted)
    }

    /// Records a job without offering it to workers.
    pub(super) async fn record(&self, request: SubmitRequest) -> Result<Submitted, ServiceError> {
        let SubmitRequest { id: own_id, circuit: name, input, idempotency_key, priority } = request;
        let input = match self.store.circuit(&name).await? {
            Some(circuit) => self.checked(Takes::of(&circuit), input).await?,
            // The request may repeat a job whose circuit was removed since: the store knows, and refuses others.
            None if own_id.is_some() || idempotency_key.is_some() => self.bounded(input)?,
            None => return Err(ServiceError::UnknownCircuit(name)),
        };
        let id = own_id.unwrap_or_default();
        let keyring = &self.options.keyring;
        let (body, former_bodies) = match (own_id, idempotency_key.as_ref().map(IdempotencyKey::as_str)) {
            // No request can repeat this job.
            (None, None) => (NewJob::unrepeatable(id), Vec::new()),
            (_, key) => keyring.body_hashes(&asked(key, &name, &input)),
        };
        let start_within = self.options.start_within;
        let new = NewJob { id, circuit: name, idempotency_key, body, former_bodies, priority, start_within };
        let sealed = keyring.seal(id, &input)?;
        Ok(self.store.submit(&new, Input { bytes: &sealed.bytes, key: &sealed.key }).await?)
    }

    /// Wakes a worker. If that fails, the reconciler finds the job. A job that belongs to another queue, where it was
    /// first submitted, is left to that queue's reconcilers.
    pub(super) async fn offer(&self, job: &Job) {
        let own = job.state == JobState::Queued && job.queue == self.store.queue_name();
        let Some(queue) = self.queue.clone().filter(|_| own) else { return };
        let offered = [(job.id, job.priority)];
        let pushed = briefly(async move { queue.push(&offered, Precedence::New).await }).await;
        // The start and end of an outage are logged, not each job in between.
        let before = self.queue_failed.swap(!matches!(pushed, Some(Ok(()))), Ordering::Relaxed);
        match pushed {
            Some(Ok(())) if before => tracing::info!("the queue takes submitted jobs again"),
            Some(Ok(())) => {}
            Some(Err(error)) => {
                let job = job.id;
                log_unless!(before, warn, %job, %error, "the queue takes no submitted jobs; workers find them in the store instead");
            }
            None => {
                let job = job.id;
                log_unless!(before, warn, %job, "the queue is slow to take submitted jobs; workers may find them in the store first");
            }
        }
    }

    /// Queues a failed or cancelled job again, with fresh retry budgets. Its stored input is used, unless another is
    /// given, which is required if the stored one was deleted; a repeat of the job must then bring the new input. The
    /// job waits no longer for a worker than a new one may.
    pub async fn requeue(&self, id: JobId, input: Option<Zeroizing<Vec<u8>>>) -> Result<Job, ServiceError> {
        let keyring = &self.options.keyring;
        let sealed = match input {
            None => None,
            Some(input) => {
                let job = self.job(id).await?;
                let takes = self.takes(&job).await?;
                let input = self.checked(takes, input).await?;
                let (body, _) = keyring.body_hashes(&asked(job.idempotency_key.as_deref(), &job.circuit, &input));
                Some((keyring.seal(id, &input)?, body))
            }
        };
        let input = sealed.as_ref().map(|(sealed, body)| {
            let input = Input { bytes: &sealed.bytes, key: &sealed.key };
            Replacement { input, body: *body }
        });
        match self.store.requeue(id, input, self.options.start_within).await? {
            Requeued::Yes(job) => {
                tracing::info!(job = %id, other_input = input.is_some(), "job queued again");
                self.offer(&job).await;
                Ok(*job)
            }
            Requeued::Not(state) => Err(ServiceError::NotRequeued { id, state }),
            Requeued::InputGone => Err(ServiceError::InputGone(id)),
            Requeued::CircuitGone(circuit) => Err(ServiceError::CircuitGone { id, circuit }),
            Requeued::Unknown => Err(ServiceError::UnknownJob(id)),
        }
    }

    /// Deletes jobs in these final states that ended longer ago than `older_than`, and their proofs; those whose proof
    /// files cannot be removed are kept, and so are those whose rows others have locked. Jobs that ended within the
    /// last seconds are left: their files may still be being written, and would stay.
    pub async fn purge(&self, states: &[JobState], older_than: Duration) -> Result<Purged, ServiceError> {
        let older_than = older_than.max(proof_files::WRITTEN_WITHIN);
        Ok(proof_files::purge(&*self.store, &self.artifacts, &Purge { states, older_than }).await?)
    }

    /// Pauses the queue or a circuit: no job of it is claimed. Returns whether that changed anything.
    pub async fn pause(&self, scope: &Scope) -> Result<bool, ServiceError> {
        if let Scope::Circuit(name) = scope
            && self.store.circuit(name).await?.is_none()
        {
            return Err(ServiceError::UnknownCircuit(name.clone()));
        }
        let changed = self.store.set_paused(scope, true).await?;
        match scope {
            Scope::Queue if changed => tracing::info!("queue paused"),
            Scope::Circuit(circuit) if changed => tracing::info!(%circuit, "circuit paused"),
            _ => {}
        }
        Ok(changed)
    }

    /// Ends a pause of the queue or a circuit, which need not be registered any more. Returns whether that changed
    /// anything.
    pub async fn resume(&self, scope: &Scope) -> Result<bool, ServiceError> {
        let changed = self.store.set_paused(scope, false).await?;
        match scope {
            Scope::Queue if changed => tracing::info!("queue resumed"),
            Scope::Circuit(circuit) if changed => tracing::info!(%circuit, "circuit resumed"),
            _ => {}
        }
        Ok(changed)
    }

    /// Returns what is paused, with the time since when.
    pub async fn paused(&self) -> Result<Vec<(Scope, i64)>, ServiceError> {
        Ok(self.store.paused().await?)
    }

    /// Returns the load of the queue.
    pub async fn load(&self) -> Result<Load, ServiceError> {
        Ok(self.store.load().await?)
    }

    /// Returns unusable messages of producers, newest first.
    pub async fn aside(&self, limit: usize) -> Result<Vec<SetAside>, ServiceError> {
        match &self.queue {
            Some(queue) => Ok(queue.aside(limit).await?),
            None => Ok(Vec::new()),
        }
    }

    async fn checked(&self, takes: Takes, input: Zeroizing<Vec<u8>>) -> Result<Zeroizing<Vec<u8>>, ServiceError> {
        check_input(takes, self.bounded(input)?).await
    }

    fn bounded(&self, input: Zeroizing<Vec<u8>>) -> Result<Zeroizing<Vec<u8>>, ServiceError> {
        let (got, limit) = (input.len(), self.options.max_input);
        if got > limit { Err(ServiceError::TooLarge { got, limit }) } else { Ok(input) }
    }

    /// Returns what input an earlier job takes: that of its own content, whatever is registered under its circuit's
    /// name now.
    async fn takes(&self, job: &Job) -> Result<Takes, ServiceError> {
        if job.zkey == NO_KEY {
            let circuit = self.store.circuit(&job.circuit).await?;
            return circuit.map(|c| Takes::of(&c)).ok_or_else(|| ServiceError::UnknownCircuit(job.circuit.clone()));
        }
        let circuits = self.store.circuits().await?;
        let n_vars = circuits.iter().find(|c| c.zkey == job.zkey).map(|c| c.n_vars);
        Ok(Takes { circuit: job.circuit.clone(), program: job.wasm.is_some(), n_vars })
    }

    /// Returns a job.
    pub async fn job(&self, id: JobId) -> Result<Job, ServiceError> {
        self.store.job(id).await?.ok_or(ServiceError::UnknownJob(id))
    }

    /// Returns a job once it has ended, or in its present state after `at_most`.
    pub async fn wait(&self, id: JobId, at_most: Duration) -> Result<Job, ServiceError> {
        let job = self.job(id).await?;
        if job.state.is_final() || at_most.is_zero() {
            return Ok(job);
        }
        self.waiting.ended(id, at_most).await;
        self.job(id).await
    }

    /// Notifies waiters in this process that a job has ended.
    pub(super) fn notify_waiters(&self, id: JobId) {
        self.waiting.notify(id);
    }

    /// Announces through the queue that jobs have ended.
    pub(super) async fn announce_ended(&self, ended: Vec<EndNotice>) {
        let Some(queue) = self.queue.clone() else { return };
        if let Some(Err(error)) = briefly(async move { queue.announce_ended(&ended).await }).await {
            tracing::debug!(%error, "the end of jobs could not be announced through the queue");
        }
    }

    /// Like [`JobService::announce_ended`], for jobs of which only the ids are known.
    pub(super) async fn announce_ended_by_id(&self, ids: &[JobId], state: JobState) {
        let mut ended = Vec::new();
        for &id in ids {
            match self.store.job(id).await.ok().flatten() {
                Some(job) => ended.push(EndNotice::of(&job, state)),
                // The job has ended even if it cannot be read any more.
                None => ended.push(EndNotice { id, queue: self.store.queue_name().to_owned(), key: None, state }),
            }
        }
        self.announce_ended(ended).await;
    }

    /// Returns jobs, newest first, without their results and histories.
    pub async fn jobs(&self, filter: JobFilter) -> Result<Vec<Job>, ServiceError> {
        if let Some(before) = filter.before {
            // The job may have been deleted, in which case the ones before it are unknown.
            self.job(before).await?;
        }
        Ok(self.store.jobs(filter).await?)
    }

    /// Returns the number of jobs in each state.
    pub async fn counts(&self) -> Result<Counts, ServiceError> {
        Ok(self.store.counts().await?)
    }

    /// Cancels a job: at once if it is queued, within about a second if it is running.
    pub async fn cancel(&self, id: JobId) -> Result<Cancelled, ServiceError> {
        match self.store.cancel(id).await? {
            None => Err(ServiceError::UnknownJob(id)),
            Some(Cancelled::Now) => {
                tracing::info!(job = %id, "job cancelled before a worker claimed it");
                self.announce_ended_by_id(&[id], JobState::Cancelled).await;
                Ok(Cancelled::Now)
            }
            Some(cancelled) => Ok(cancelled),
        }
    }

    /// Returns a finished job's result, and restores its files if they are missing. An artifact store that fails or is
    /// slow does not keep callers from the result, which is in the database.
    pub async fn result(&self, id: JobId) -> Result<JobResult, ServiceError> {
        let job = self.job(id).await?;
        let result = job.result.ok_or(ServiceError::NoProof { id, state: job.state })?;
        match tokio::time::timeout(RESTORE_TIMEOUT, proof_files::restore(&*self.store, &self.artifacts, id, &result))
            .await
        {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(job = %id, %error, "the proof files could not be checked or restored"),
            Err(_) => {
                tracing::warn!(job = %id, "the proof files could not be checked or restored within {} s", RESTORE_TIMEOUT.as_secs())
            }
        }
        Ok(result)
    }

    /// Returns the folder of a finished job's proof files, where artifacts are local files.
    pub fn proof_dir(&self, id: JobId) -> Option<PathBuf> {
        self.artifacts.proof_dir(id)
    }

    /// Returns the registered circuits, by name.
    pub async fn circuits(&self) -> Result<Vec<Circuit>, ServiceError> {
        Ok(self.store.circuits().await?)
    }

    /// Checks that the store answers and accepts writes, and that the latest calls of the worker that shares this
    /// service succeeded.
    pub async fn ping(&self) -> Result<(), ServiceError> {
        self.store.ping().await?;
        if self.outage.lasts() {
            let why = "calls failed a moment ago".into();
            return Err(ServiceError::Store(StoreError::Unreachable { what: self.store.address(), why }));
        }
        Ok(())
    }
}

/// Stands for the key of a job that was refused before it had a circuit.
const NO_KEY: ContentHash = ContentHash([0; 32]);

/// The kind of input a job takes.
struct Takes {
    circuit: CircuitName,
    /// Whether the input is for a witness program; otherwise it is a witness.
    program: bool,
    /// Number of values in a witness; unknown if its key is no longer registered under any name.
    n_vars: Option<u32>,
}

impl Takes {
    fn of(circuit: &Circuit) -> Self {
        Self { circuit: circuit.name.clone(), program: circuit.wasm.is_some(), n_vars: Some(circuit.n_vars) }
    }
}

/// Refuses input that no worker could use. Runs on a blocking thread, because the input may be large.
async fn check_input(takes: Takes, input: Zeroizing<Vec<u8>>) -> Result<Zeroizing<Vec<u8>>, ServiceError> {
    let checked = tokio::task::spawn_blocking(move || {
        if takes.program {
            Inputs::parse(&input).map_err(|e| ServiceError::Invalid(e.to_string()))?;
            return Ok(input);
        }
        let name = &takes.circuit;
        let witness = wtns::parse(&input).map_err(|e| {
            ServiceError::Invalid(format!("circuit {name} has no wasm, so its jobs bring a .wtns file: {e}"))
        })?;
        let got = witness.len();
        if let Some(expected) = takes.n_vars
            && got != expected as usize
        {
            return Err(ServiceError::Invalid(format!("the witness has {got} values, circuit {name} has {expected}")));
        }
        Ok(input)
    });
    checked.await?
}

/// Creates a job that is refused before it was queued, for [`Store::reject`]: the same refusal gives the same job.
pub(super) fn refuse(id: JobId, circuit: CircuitName, key: Option<IdempotencyKey>, error: &JobError) -> NewJob {
    let body = ContentHash::of(format!("refused\n{id}\n{}", error.message).as_bytes());
    NewJob {
        id,
        circuit,
        idempotency_key: key,
        body,
        former_bodies: Vec::new(),
        priority: Priority(0),
        start_within: None,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::store::{SqliteStore, StoreSettings};

    #[tokio::test]
    async fn a_store_that_answers_is_not_enough_while_calls_fail() {
        let folder = tempfile::tempdir().unwrap();
        let store = SqliteStore::open(&folder.path().join("jobs.db"), StoreSettings::default()).await.unwrap();
        let options = ServiceOptions { max_input: 1, start_within: None, keyring: Arc::new(Keyring::none()) };
        let service = JobService::new(Arc::new(store), None, Artifacts::memory(), options);
        let asked = service.clone();
        asked.ping().await.unwrap();
        let full = StoreError::Unwritable { what: "jobs.db".to_owned(), why: "no space left".into() };
        assert!(service.outage().note_failure(&full));
        assert!(matches!(asked.ping().await, Err(ServiceError::Store(_))));
        service.outage().answered();
        asked.ping().await.unwrap();
    }
}
