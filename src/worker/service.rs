//! Jobs as their submitters see them: submit, look, cancel, fetch the proof. The command line and the HTTP API both
//! speak to this.

use std::path::PathBuf;
use std::sync::Arc;

use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

use crate::artifacts::{ArtifactError, Artifacts};
use crate::formats::wtns;
use crate::model::{Circuit, CircuitName, ContentHash, Job, JobId, JobResult, JobState, NewJob, Priority};
use crate::queue::Queue;
use crate::store::{Cancelled, Counts, JobFilter, Store, StoreError, Submitted};
use crate::witness::Inputs;

/// Longest idempotency key, characters.
const MAX_KEY: usize = 256;

/// A job to submit.
pub struct SubmitRequest {
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
    /// An artifact could not be written.
    #[error(transparent)]
    Artifact(#[from] ArtifactError),
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

/// Jobs over a store; wakes the worker where its queue is in this process.
#[derive(Clone)]
pub struct JobService {
    store: Arc<dyn Store>,
    queue: Option<Arc<dyn Queue>>,
    artifacts: Artifacts,
    max_input: usize,
}

impl JobService {
    /// A service over these rooms. Without a queue, a worker finds new jobs by looking at the store.
    pub fn new(store: Arc<dyn Store>, queue: Option<Arc<dyn Queue>>, artifacts: Artifacts, max_input: usize) -> Self {
        Self { store, queue, artifacts, max_input }
    }

    /// Largest input, bytes.
    pub fn max_input(&self) -> usize {
        self.max_input
    }

    /// Submits a job. What can be seen to be wrong at once is refused at once.
    pub async fn submit(&self, request: SubmitRequest) -> Result<Submitted, ServiceError> {
        let SubmitRequest { circuit: name, input, idempotency_key, priority } = request;
        if input.len() > self.max_input {
            return Err(ServiceError::TooLarge { got: input.len(), limit: self.max_input });
        }
        if let Some(key) = &idempotency_key
            && (key.is_empty() || key.chars().count() > MAX_KEY)
        {
            let got = key.chars().count();
            return Err(ServiceError::Invalid(format!("an idempotency key is 1 to {MAX_KEY} characters, got {got}")));
        }
        let circuit = self.store.circuit(&name).await?.ok_or_else(|| ServiceError::UnknownCircuit(name.clone()))?;
        let input = check_input(circuit, input).await?;
        let id = JobId::new();
        let body = body_hash(id, &name, idempotency_key.as_deref(), &input);
        let new = NewJob { id, circuit: name, idempotency_key, body, former_bodies: Vec::new(), priority, start_within: None };
        let submitted = self.store.submit(&new, crate::store::Input { bytes: &input, key: "" }).await?;
        if let (Submitted::Created(job), Some(queue)) = (&submitted, &self.queue)
            && let Err(error) = queue.push(&[(job.id, job.priority)]).await
        {
            // The reconciler will find it.
            tracing::warn!(job = %job.id, %error, "the queue did not take a new job");
        }
        Ok(submitted)
    }

    /// A job.
    pub async fn job(&self, id: JobId) -> Result<Job, ServiceError> {
        self.store.job(id).await?.ok_or(ServiceError::UnknownJob(id))
    }

    /// Jobs, newest first.
    pub async fn jobs(&self, filter: JobFilter) -> Result<Vec<Job>, ServiceError> {
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
            cancelled => Ok(cancelled),
        }
    }

    /// A finished job's result. Puts its files back should they be missing.
    pub async fn result(&self, id: JobId) -> Result<JobResult, ServiceError> {
        let job = self.job(id).await?;
        let result = job.result.ok_or(ServiceError::NoProof { id, state: job.state })?;
        if matches!(self.artifacts.has_proof(id).await, Ok(false)) {
            self.artifacts.put_proof(id, &result.proof_json, &result.public_json).await?;
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

    /// Whether the store answers.
    pub async fn ping(&self) -> Result<(), ServiceError> {
        Ok(self.store.ping().await?)
    }
}

/// Refuses what no worker could use. On a thread of its own: the input may be large.
async fn check_input(circuit: Circuit, input: Zeroizing<Vec<u8>>) -> Result<Zeroizing<Vec<u8>>, ServiceError> {
    let checked = tokio::task::spawn_blocking(move || {
        if circuit.wasm.is_some() {
            Inputs::parse(&input).map_err(|e| ServiceError::Invalid(e.to_string()))?;
            return Ok(input);
        }
        let name = &circuit.name;
        let witness = wtns::parse(&input).map_err(|e| {
            ServiceError::Invalid(format!("circuit {name} has no wasm, so its jobs bring a .wtns file: {e}"))
        })?;
        let (got, expected) = (witness.len(), circuit.n_vars);
        if got != expected as usize {
            return Err(ServiceError::Invalid(format!("the witness has {got} values, circuit {name} has {expected}")));
        }
        Ok(input)
    });
    checked.await.unwrap_or_else(|_| Err(ServiceError::Invalid("the input could not be read".to_owned())))
}

/// What tells a repeated request from a conflicting one.
///
/// It outlives the input, so it must not give away a secret that can be guessed: without an idempotency key no request
/// can be a repeat, and the hash is of the job's id alone. With one, it covers key, circuit and input; whoever has the
/// database and the key could then test guesses of a short input.
fn body_hash(id: JobId, circuit: &CircuitName, key: Option<&str>, input: &[u8]) -> ContentHash {
    let mut hash = Sha256::new();
    match key {
        None => hash.update(id.0.as_bytes()),
        Some(key) => {
            for part in [key.as_bytes(), circuit.as_str().as_bytes(), input] {
                hash.update((part.len() as u64).to_le_bytes());
                hash.update(part);
            }
        }
    }
    ContentHash(hash.finalize().into())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_body_without_a_key_says_nothing_of_the_input() {
        let (id, name) = (JobId::new(), "c".parse().unwrap());
        assert_eq!(body_hash(id, &name, None, b"1"), body_hash(id, &name, None, b"2"));
        assert_ne!(body_hash(id, &name, Some("k"), b"1"), body_hash(id, &name, Some("k"), b"2"));
        let other = "d".parse().unwrap();
        assert_ne!(body_hash(id, &name, Some("k"), b"1"), body_hash(id, &other, Some("k"), b"1"));
        assert_eq!(body_hash(id, &name, Some("k"), b"1"), body_hash(JobId::new(), &name, Some("k"), b"1"));
    }
}
