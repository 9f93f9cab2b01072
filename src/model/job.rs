//! Jobs.
//!
//! ```text
//!            claim                finish
//!  queued ──────────► running ──────────────► done
//!    ▲  ▲   retry, hand-back │ fail
//!    │  └────────────────────┼──────────────► failed
//!    │     lease lapsed      │ cancel
//!    └───────────────────────┴──────────────► cancelled
//! ```

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize, Serializer};
use uuid::Uuid;

use super::{CircuitContent, CircuitName, ContentHash, IdempotencyKey, clip};

/// A job's id, chosen by the submitter (a time-ordered UUID by default), so that a repeated submission is recognised.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, Debug)]
#[serde(transparent)]
pub struct JobId(pub Uuid);

impl JobId {
    /// Creates a new, time-ordered id.
    pub fn new() -> Self {
        Self(Uuid::now_v7())
    }
}

impl Default for JobId {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Display for JobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.hyphenated().fmt(f)
    }
}

impl FromStr for JobId {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        Uuid::parse_str(s).map(Self).map_err(|_| format!("expected a job's id (a UUID), got {:?}", clip(s, 60)))
    }
}

/// The fencing token of a claim. Every change to a running job carries the attempt it belongs to, and a token that no
/// longer holds changes nothing. Serialized as its number.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Attempt {
    /// Number of claims of the job so far.
    pub number: u32,
    /// Identifies the submission of the job: if a job is forgotten and its id submitted again, the numbers start again,
    /// but a token of the former job does not hold the new one.
    pub submission: i64,
}

impl Attempt {
    /// Returns another attempt at the same submission.
    pub fn numbered(self, number: u32) -> Self {
        Self { number, ..self }
    }
}

impl Serialize for Attempt {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.number.serialize(serializer)
    }
}

/// Id of a worker process, unique for each start.
#[derive(Clone, PartialEq, Eq, Hash, Serialize, Deserialize, Debug)]
#[serde(transparent)]
pub struct WorkerId(pub String);

impl WorkerId {
    /// Creates a new id, which begins with the id of this process.
    pub fn of_this_process() -> Self {
        Self(format!("{}-{}", std::process::id(), Uuid::now_v7().simple()))
    }
}

/// State of a job.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, Debug)]
#[serde(rename_all = "lowercase")]
pub enum JobState {
    /// Waits for a worker, or for the time of its next attempt.
    Queued,
    /// A worker holds a lease on it.
    Running,
    /// Has a verified proof.
    Done,
    /// Has an error and will not be retried.
    Failed,
    /// Was cancelled by a client.
    Cancelled,
}

impl JobState {
    /// All states.
    pub const ALL: [Self; 5] = [Self::Queued, Self::Running, Self::Done, Self::Failed, Self::Cancelled];

    /// Returns the name, as stored and printed.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Running => "running",
            Self::Done => "done",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
        }
    }

    /// Whether the job will never change again.
    pub fn is_final(self) -> bool {
        matches!(self, Self::Done | Self::Failed | Self::Cancelled)
    }
}

impl FromStr for JobState {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        let found = Self::ALL.into_iter().find(|v| v.as_str() == s);
        found.ok_or_else(|| format!("expected queued, running, done, failed or cancelled, got {:?}", clip(s, 40)))
    }
}

impl fmt::Display for JobState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Stage of a running job.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, Debug)]
#[serde(rename_all = "lowercase")]
pub enum Stage {
    /// Opening the circuit and loading its key on a device.
    Load,
    /// Computing the witness.
    Witness,
    /// Proving.
    Prove,
    /// Verifying the proof.
    Verify,
    /// Storing the result.
    Store,
}

impl Stage {
    /// All stages, in order.
    pub const ALL: [Self; 5] = [Self::Load, Self::Witness, Self::Prove, Self::Verify, Self::Store];

    /// Returns the name, as stored and printed.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Load => "load",
            Self::Witness => "witness",
            Self::Prove => "prove",
            Self::Verify => "verify",
            Self::Store => "store",
        }
    }
}

impl FromStr for Stage {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        let found = Self::ALL.into_iter().find(|v| v.as_str() == s);
        found.ok_or_else(|| format!("expected load, witness, prove, verify or store, got {:?}", clip(s, 40)))
    }
}

/// Order among queued jobs: higher priorities first, 0 by default.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, Debug, Default)]
#[serde(transparent)]
pub struct Priority(pub i16);

/// Why an attempt failed; each class has its own retry budget.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, Debug)]
#[serde(rename_all = "snake_case")]
pub enum FailureClass {
    /// The input, the circuit or the witness is at fault: a retry cannot help.
    BadInput,
    /// A resource such as storage, the database or memory failed and may recover, or the worker reached a limit that
    /// another worker may not have.
    Transient,
    /// The worker died or lost its lease.
    LostWorker,
    /// A device failed.
    Device,
    /// A device returned a proof that does not verify.
    InvalidProof,
    /// A time limit was exceeded.
    Timeout,
    /// A class unknown to this version, written by a newer one.
    #[serde(other)]
    Unknown,
}

impl FailureClass {
    /// All classes that attempts fail with.
    pub const ALL: [Self; 6] =
        [Self::BadInput, Self::Transient, Self::LostWorker, Self::Device, Self::InvalidProof, Self::Timeout];

    /// Returns the name, as stored and printed.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::BadInput => "bad_input",
            Self::Transient => "transient",
            Self::LostWorker => "lost_worker",
            Self::Device => "device",
            Self::InvalidProof => "invalid_proof",
            Self::Timeout => "timeout",
            Self::Unknown => "unknown",
        }
    }
}

impl FromStr for FailureClass {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        Self::ALL
            .into_iter()
            .find(|v| v.as_str() == s)
            .ok_or_else(|| format!("unknown failure class {:?}", clip(s, 40)))
    }
}

/// Error of a job or an attempt.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Debug)]
pub struct JobError {
    /// Class of the error.
    pub class: FailureClass,
    /// One human-readable sentence. It names signals and sizes, never values of inputs.
    pub message: String,
}

/// Failed attempts of a job so far, by retry budget.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Debug, Default)]
pub struct Tries {
    /// Transient errors and exceeded time limits.
    pub transient: u32,
    /// Device errors and invalid proofs.
    pub device: u32,
    /// Lapsed leases: workers that died while they ran the job.
    pub lost: u32,
}

/// Time that each stage took, in milliseconds.
#[derive(Clone, Copy, PartialEq, Serialize, Deserialize, Debug, Default)]
pub struct StageTimes {
    /// Opening the circuit.
    pub load_ms: f64,
    /// Witness generation.
    pub witness_ms: f64,
    /// Proving.
    pub prove_ms: f64,
    /// Verification.
    pub verify_ms: f64,
}

/// A failed attempt in a job's history.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Debug)]
pub struct FailedAttempt {
    /// Number of the attempt.
    pub attempt: u32,
    /// The worker that made it.
    pub worker: Option<WorkerId>,
    /// When the failure was recorded, by the store's clock.
    pub at: i64,
    /// Why the attempt failed.
    pub error: JobError,
}

/// The result of a job that is done.
#[derive(Clone, PartialEq, Serialize, Deserialize, Debug)]
pub struct JobResult {
    /// proof.json as snarkjs writes it.
    pub proof_json: String,
    /// public.json as snarkjs writes it.
    pub public_json: String,
    /// Label of the device that computed the proof.
    pub device: String,
    /// Time that each stage took.
    pub times: StageTimes,
}

/// A job to submit. Its input is passed separately, because it is a secret.
#[derive(Clone, Debug)]
pub struct NewJob {
    /// Id, chosen by the submitter.
    pub id: JobId,
    /// Name of the circuit; what is proved is its content at the time of submission.
    pub circuit: CircuitName,
    /// The submitter's own name for the job: the same key with the same body returns the same job.
    pub idempotency_key: Option<IdempotencyKey>,
    /// Hash of the request (circuit and input), which distinguishes a repetition from a conflict.
    pub body: ContentHash,
    /// The same hash by keys in use earlier, so that a job stored at that time is recognised too.
    pub former_bodies: Vec<ContentHash>,
    /// Order among queued jobs.
    pub priority: Priority,
    /// The job fails if no worker has started it within this time after its submission.
    pub start_within: Option<Duration>,
}

impl NewJob {
    /// Returns the body hash of a job that no request can repeat, because it has neither an id nor a key from its
    /// submitter. The hash outlives the input, so this one does not depend on the input.
    pub fn unrepeatable(id: JobId) -> ContentHash {
        ContentHash::of(id.0.as_bytes())
    }
}

/// A job in the store.
#[derive(Clone, PartialEq, Serialize, Debug)]
pub struct Job {
    /// Id.
    pub id: JobId,
    /// The queue it was submitted to.
    pub queue: String,
    /// Name of the circuit.
    pub circuit: CircuitName,
    /// Content of the circuit's key when the job was submitted; zeros for a job that was rejected before its circuit
    /// was known.
    pub zkey: ContentHash,
    /// Content of the circuit's witness program when the job was submitted.
    pub wasm: Option<ContentHash>,
    /// State.
    pub state: JobState,
    /// Current stage of a running job.
    pub stage: Option<Stage>,
    /// Progress of the current stage, 0 to 1.
    pub progress: f32,
    /// Number of claims so far: the fencing token of the current or last holder.
    pub attempt: Attempt,
    /// Failed attempts so far.
    pub tries: Tries,
    /// Order among queued jobs.
    pub priority: Priority,
    /// The submitter's own name for the job.
    pub idempotency_key: Option<String>,
    /// Current or last holder of the lease.
    pub worker: Option<WorkerId>,
    /// Last error; a queued job with an error is being retried.
    pub error: Option<JobError>,
    /// Failed attempts, including those whose worker died, oldest first; at most the last 50.
    pub history: Vec<FailedAttempt>,
    /// Result of a job that is done.
    pub result: Option<JobResult>,
    /// Whether a client has asked to cancel the job while it runs.
    pub cancel_requested: bool,
    /// Time of submission, in milliseconds since 1970 by the store's clock, as are all times here.
    pub created_at: i64,
    /// The job does not start before this time.
    pub run_at: i64,
    /// The job fails if it has not started by this time; `None` once a worker has started it.
    pub start_by: Option<i64>,
    /// Time of the first claim.
    pub started_at: Option<i64>,
    /// Time when the job reached a final state.
    pub finished_at: Option<i64>,
    /// Time when the current lease lapses.
    pub lease_expires_at: Option<i64>,
}

impl Job {
    /// The content of its circuit when it was submitted.
    pub fn content(&self) -> CircuitContent {
        CircuitContent { zkey: self.zkey, wasm: self.wasm }
    }
}
