//! Jobs as their submitters see them: submit, look, cancel, fetch the proof. The command line and the HTTP API both
//! speak to this.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use zeroize::Zeroizing;

use super::briefly;
use super::outage::{Outage, say};
use super::waiting::Waiting;
use crate::artifacts::{ArtifactError, Artifacts};
use crate::formats::wtns;
use crate::model::{Circuit, CircuitName, ContentHash, Job, JobError, JobId, JobResult, JobState, NewJob, Priority};
use crate::queue::{EndNotice, Queue, SetAside};
use crate::seal::{Keyring, SealError};
use crate::store::{
    Cancelled, Counts, Input, JobFilter, Load, Replacement, Requeued, Scope, Store, StoreError, Submitted,
};
use crate::witness::Inputs;

/// Jobs forgotten at a time.
const PURGE_AT_A_TIME: u32 = 1000;
/// How long an answer waits for the files of a proof, which are copies.
const HEAL: Duration = Duration::from_secs(2);
/// Longest idempotency key, characters.
pub(super) const MAX_KEY: usize = 256;

/// A job to submit.
pub struct SubmitRequest {
    /// Its identity, if the submitter chooses it: the same id with the same body gives the same job.
    pub id: Option<JobId>,
    /// Its circuit.
    pub circuit: CircuitName,
    /// Input JSON, or a .wtns file where the circuit has no witness program. A secret.
    pub input: Zeroizing<Vec<u8>>,
    /// The submitter's own name for it.
    pub idempotency_key: Option<String>,
    /// Order among queued jobs.
    pub priority: Priority,
}

/// Why a request is refused.
#[derive(Debug, thiserror::Error)]
pub enum ServiceError {
    /// There is no such job.
    #[error("there is no job {0}")]
    UnknownJob(JobId),
    /// There is no such circuit.
    #[error("no circuit {0} is registered")]
    UnknownCircuit(CircuitName),
    /// The idempotency key is taken by another request.
    #[error("{0}")]
    Conflict(String),
    /// The input is too large.
    #[error("the input has {got} bytes, at most {limit} are allowed (PROVER_MAX_INPUT_BYTES)")]
    TooLarge {
        /// Its bytes.
        got: usize,
        /// Bytes allowed.
        limit: usize,
    },
    /// The input or another part of the request cannot be right.
    #[error("{0}")]
    Invalid(String),
    /// The job cannot be queued again.
    #[error("job {id} is {state}; only failed and cancelled jobs can be queued again")]
    NotRequeued {
        /// Which job.
        id: JobId,
        /// Where it stands.
        state: JobState,
    },
    /// The job's input is gone.
    #[error("the input of job {0} is no longer held; bring it again")]
    InputGone(JobId),
    /// What the job is to be proved with is gone.
    #[error(
        "job {id} cannot be queued again: the key or the witness program that it was submitted for is no longer \
         registered, since circuit {circuit} was removed or replaced; submit its input as a new job"
    )]
    CircuitGone {
        /// Which job.
        id: JobId,
        /// Its circuit.
        circuit: CircuitName,
    },
    /// The input cannot be sealed.
    #[error(transparent)]
    Seal(#[from] SealError),
    /// The job has no proof.
    #[error("job {id} has no proof: it is {state}")]
    NoProof {
        /// Which job.
        id: JobId,
        /// Where it stands.
        state: JobState,
    },
    /// The store failed.
    #[error(transparent)]
    Store(StoreError),
    /// The queue failed.
    #[error("{0}")]
    Queue(String),
    /// An artifact could not be written.
    #[error(transparent)]
    Artifact(#[from] ArtifactError),
}

/// What a request asks for, as it is hashed.
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

/// How a service treats what is submitted.
#[derive(Debug, Clone)]
pub struct ServiceOptions {
    /// Largest input, bytes.
    pub max_input: usize,
    /// Longest wait for a worker; unbounded when unset.
    pub start_within: Option<Duration>,
    /// Seals inputs.
    pub keyring: Arc<Keyring>,
}

/// Jobs over a store; wakes workers by their queue.
#[derive(Clone)]
pub struct JobService {
    store: Arc<dyn Store>,
    queue: Option<Arc<dyn Queue>>,
    artifacts: Artifacts,
    options: ServiceOptions,
    waiting: Waiting,
    outage: Outage,
    /// Whether the queue did not take the last job.
    passed_over: Arc<AtomicBool>,
}

impl JobService {
    /// A service over these rooms. Without a queue, a worker finds new jobs by looking at the store.
    pub fn new(
        store: Arc<dyn Store>,
        queue: Option<Arc<dyn Queue>>,
        artifacts: Artifacts,
        options: ServiceOptions,
    ) -> Self {
        let (waiting, outage) = (Waiting::new(store.clone()), Outage::of(store.address()));
        Self { store, queue, artifacts, options, waiting, outage, passed_over: Arc::default() }
    }

    /// What is known of an outage of its store. Clones of a service share it.
    pub(super) fn outage(&self) -> &Outage {
        &self.outage
    }

    /// Largest input, bytes.
    pub fn max_input(&self) -> usize {
        self.options.max_input
    }

    /// Submits a job. What can be seen to be wrong at once is refused at once.
    pub async fn submit(&self, request: SubmitRequest) -> Result<Submitted, ServiceError> {
        let submitted = self.record(request).await?;
        if let Submitted::Created(job) = &submitted {
            self.offer(job).await;
        }
        Ok(submitted)
    }

    /// Writes a job down, and leaves it to the caller to offer it to workers.
    pub(super) async fn record(&self, request: SubmitRequest) -> Result<Submitted, ServiceError> {
        let SubmitRequest { id: own_id, circuit: name, input, idempotency_key, priority } = request;
        refuse_no_key(idempotency_key.as_deref())?;
        let input = match self.store.circuit(&name).await? {
            Some(circuit) => self.checked(Takes::of(&circuit), input).await?,
            // It may repeat a job whose circuit has gone since: the store knows, and refuses others.
            None if own_id.is_some() || idempotency_key.is_some() => self.bounded(input)?,
            None => return Err(ServiceError::UnknownCircuit(name)),
        };
        let id = own_id.unwrap_or_default();
        let keyring = &self.options.keyring;
        let (body, former_bodies) = match (own_id, idempotency_key.as_deref()) {
            // No request can be a repeat.
            (None, None) => (NewJob::unrepeatable(id), Vec::new()),
            (_, key) => keyring.body_hashes(&asked(key, &name, &input)),
        };
        let start_within = self.options.start_within;
        let new = NewJob { id, circuit: name, idempotency_key, body, former_bodies, priority, start_within };
        let sealed = keyring.seal(id, &input)?;
        Ok(self.store.submit(&new, Input { bytes: &sealed.bytes, key: &sealed.key }).await?)
    }

    /// Wakes a worker. Should that fail, the reconciler finds the job; so do those of another queue's workers, whose job it
    /// may be where it was queued before.
    async fn offer(&self, job: &Job) {
        let Some(queue) = self.queue.clone().filter(|_| job.queue == self.store.queue_name()) else { return };
        let offered = [(job.id, job.priority)];
        let pushed = briefly(async move { queue.push(&offered).await }).await;
        // Of an outage the log has the beginning and the end, however many jobs come meanwhile.
        let before = self.passed_over.swap(!matches!(pushed, Some(Ok(()))), Ordering::Relaxed);
        match pushed {
            Some(Ok(())) if before => tracing::info!("the queue takes submitted jobs again"),
            Some(Ok(())) => {}
            Some(Err(error)) => {
                let job = job.id;
                say!(before, warn, %job, %error, "the queue takes no submitted jobs; they are found in the store instead");
            }
            None => {
                let job = job.id;
                say!(before, warn, %job, "the queue is slow to take submitted jobs; they may be found in the store first");
            }
        }
    }

    /// Queues a failed or cancelled job again, with fresh retry budgets. Its input may be held still; if not, or if
    /// another is given, that one is used, and it is what a repeat of the job has to bring. It waits no longer for a worker
    /// than a new one may.
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

    /// Forgets jobs in these final states that ended longer ago than `older_than`, and their proofs; the number of
    /// jobs.
    pub async fn purge(&self, states: &[JobState], older_than: Duration) -> Result<u64, ServiceError> {
        let mut n = 0;
        loop {
            let purged = self.store.purge(states, older_than, PURGE_AT_A_TIME).await?;
            if purged.is_empty() {
                return Ok(n);
            }
            n += purged.len() as u64;
            for id in purged {
                // The jobs are forgotten: nobody would come back for the others' files.
                if let Err(error) = self.artifacts.remove_proof(id).await {
                    tracing::warn!(job = %id, %error, "the proof files of a forgotten job could not be removed");
                }
            }
        }
    }

    /// Holds back the queue or a circuit, or lets it go again. Answers whether that changed anything.
    pub async fn set_paused(&self, scope: &Scope, paused: bool) -> Result<bool, ServiceError> {
        if let Scope::Circuit(name) = scope
            && paused
            && self.store.circuit(name).await?.is_none()
        {
            return Err(ServiceError::UnknownCircuit(name.clone()));
        }
        let changed = self.store.set_paused(scope, paused).await?;
        if changed {
            match scope {
                Scope::Queue => tracing::info!(paused, "the queue was held back or let go"),
                Scope::Circuit(circuit) => tracing::info!(%circuit, paused, "a circuit was held back or let go"),
            }
        }
        Ok(changed)
    }

    /// What is held back, with the time since when.
    pub async fn paused(&self) -> Result<Vec<(Scope, i64)>, ServiceError> {
        Ok(self.store.paused().await?)
    }

    /// How busy the queue is.
    pub async fn load(&self) -> Result<Load, ServiceError> {
        Ok(self.store.load().await?)
    }

    /// Messages of producers that nobody could use, newest first.
    pub async fn aside(&self, limit: usize) -> Result<Vec<SetAside>, ServiceError> {
        match &self.queue {
            Some(queue) => queue.aside(limit).await.map_err(|e| ServiceError::Queue(e.to_string())),
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

    /// What input a job takes that was submitted before: that of its own content, whatever is registered under its
    /// circuit's name now.
    async fn takes(&self, job: &Job) -> Result<Takes, ServiceError> {
        if job.zkey == NO_KEY {
            let circuit = self.store.circuit(&job.circuit).await?;
            return circuit.map(|c| Takes::of(&c)).ok_or_else(|| ServiceError::UnknownCircuit(job.circuit.clone()));
        }
        let circuits = self.store.circuits().await?;
        let n_vars = circuits.iter().find(|c| c.zkey == job.zkey).map(|c| c.n_vars);
        Ok(Takes { circuit: job.circuit.clone(), program: job.wasm.is_some(), n_vars })
    }

    /// A job.
    pub async fn job(&self, id: JobId) -> Result<Job, ServiceError> {
        self.store.job(id).await?.ok_or(ServiceError::UnknownJob(id))
    }

    /// A job as soon as it has ended, or as it is after `at_most`.
    pub async fn wait(&self, id: JobId, at_most: Duration) -> Result<Job, ServiceError> {
        let job = self.job(id).await?;
        if job.state.is_final() || at_most.is_zero() {
            return Ok(job);
        }
        self.waiting.ended(id, at_most).await;
        self.job(id).await
    }

    /// Notes that a job has ended, for those who wait for it in this process.
    pub(super) fn has_ended(&self, id: JobId) {
        self.waiting.tell(id);
    }

    /// Tells whoever listens at the queue of jobs that have ended.
    pub(super) async fn tell_ended(&self, ended: Vec<EndNotice>) {
        let Some(queue) = self.queue.clone() else { return };
        if let Some(Err(error)) = briefly(async move { queue.tell_ended(&ended).await }).await {
            tracing::debug!(%error, "the queue did not hear that jobs have ended");
        }
    }

    /// The same of jobs that are known by their ids alone.
    pub(super) async fn tell_ended_so(&self, ids: &[JobId], state: JobState) {
        let mut ended = Vec::new();
        for &id in ids {
            match self.store.job(id).await.ok().flatten() {
                Some(job) => ended.push(EndNotice::of(&job, state)),
                // It has ended all the same where it cannot be looked at any more.
                None => ended.push(EndNotice { id, queue: self.store.queue_name().to_owned(), key: None, state }),
            }
        }
        self.tell_ended(ended).await;
    }

    /// Jobs, newest first, without their results and histories.
    pub async fn jobs(&self, filter: JobFilter) -> Result<Vec<Job>, ServiceError> {
        refuse_no_key(filter.idempotency_key.as_deref())?;
        if let Some(before) = filter.before {
            // It may be forgotten by now, and what came before it is then not known.
            self.job(before).await?;
        }
        Ok(self.store.jobs(filter).await?)
    }

    /// Jobs by state.
    pub async fn counts(&self) -> Result<Counts, ServiceError> {
        Ok(self.store.counts().await?)
    }

    /// Cancels a job: at once when it is queued, within about a second when it runs.
    pub async fn cancel(&self, id: JobId) -> Result<Cancelled, ServiceError> {
        match self.store.cancel(id).await? {
            Cancelled::Unknown => Err(ServiceError::UnknownJob(id)),
            Cancelled::Now => {
                tracing::info!(job = %id, "job cancelled before a worker began it");
                self.tell_ended_so(&[id], JobState::Cancelled).await;
                Ok(Cancelled::Now)
            }
            cancelled => Ok(cancelled),
        }
    }

    /// A finished job's result. Puts its files back should they be missing; a store of artifacts that fails or is slow
    /// keeps nobody from what the database has.
    pub async fn result(&self, id: JobId) -> Result<JobResult, ServiceError> {
        let job = self.job(id).await?;
        let result = job.result.ok_or(ServiceError::NoProof { id, state: job.state })?;
        let heal = async {
            match self.artifacts.has_proof(id).await {
                Ok(false) => self.artifacts.put_proof(id, &result.proof_json, &result.public_json).await,
                Ok(true) => Ok(()),
                Err(error) => Err(error),
            }
        };
        match tokio::time::timeout(HEAL, heal).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(job = %id, %error, "its proof files could not be looked after"),
            Err(_) => {
                tracing::warn!(job = %id, "its proof files could not be looked after within {} s", HEAL.as_secs())
            }
        }
        Ok(result)
    }

    /// The folder of a finished job's proof files, where artifacts are files.
    pub fn proof_dir(&self, id: JobId) -> Option<PathBuf> {
        self.artifacts.proof_dir(id)
    }

    /// Registered circuits, by name.
    pub async fn circuits(&self) -> Result<Vec<Circuit>, ServiceError> {
        Ok(self.store.circuits().await?)
    }

    /// Whether the store answers and takes writes, and the last calls of the worker that shares this service went through.
    pub async fn ping(&self) -> Result<(), ServiceError> {
        self.store.ping().await?;
        if self.outage.lasts() {
            let why = "calls failed a moment ago".to_owned();
            return Err(ServiceError::Store(StoreError::Away { what: self.store.address(), why }));
        }
        Ok(())
    }
}

/// Whether a text can be an idempotency key. Postgres keeps no character 0.
pub(super) fn is_key(text: &str) -> bool {
    !text.is_empty() && text.chars().count() <= MAX_KEY && !text.contains('\0')
}

/// Refuses a text that is given as an idempotency key and can be none.
fn refuse_no_key(text: Option<&str>) -> Result<(), ServiceError> {
    match text {
        Some(text) if !is_key(text) => {
            let got = text.chars().count();
            let expected = format!("an idempotency key is 1 to {MAX_KEY} characters, none of them character 0");
            Err(ServiceError::Invalid(format!("{expected}; got {got}")))
        }
        _ => Ok(()),
    }
}

/// In the place of a key where a job was refused before it had a circuit.
const NO_KEY: ContentHash = ContentHash([0; 32]);

/// What a job takes as its input.
struct Takes {
    circuit: CircuitName,
    /// Inputs of a witness program; a witness otherwise.
    program: bool,
    /// Values of a witness; unknown where its key is registered under no name any more.
    n_vars: Option<u32>,
}

impl Takes {
    fn of(circuit: &Circuit) -> Self {
        Self { circuit: circuit.name.clone(), program: circuit.wasm.is_some(), n_vars: Some(circuit.n_vars) }
    }
}

/// Refuses what no worker could use. On a thread of its own: the input may be large.
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
    checked.await.unwrap_or_else(|_| Err(ServiceError::Invalid("the input could not be read".to_owned())))
}

/// A job that is refused before it could be queued, for [`Store::reject`]: the same refusal is the same job.
pub(super) fn refuse(id: JobId, circuit: CircuitName, key: Option<String>, error: &JobError) -> NewJob {
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
        let full = StoreError::Unwritable { what: "jobs.db".to_owned(), why: "no space left".to_owned() };
        assert!(service.outage().covers(&full));
        assert!(matches!(asked.ping().await, Err(ServiceError::Store(_))));
        service.outage().answered();
        asked.ping().await.unwrap();
    }
}
