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

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::{CircuitName, ContentHash, clip};

/// A job's identity; made by the submitter (a time-ordered UUID by default), so that a repeated submit is recognised.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, Debug)]
#[serde(transparent)]
pub struct JobId(pub Uuid);

impl JobId {
    /// A new, time-ordered identity.
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

/// The fencing token: grows by one with each claim. Whoever writes to a running job says which attempt is its own,
/// and a token that no longer holds changes nothing.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, Debug)]
#[serde(transparent)]
pub struct Attempt(pub u32);

/// A worker process: unique for each start of it.
#[derive(Clone, PartialEq, Eq, Hash, Serialize, Deserialize, Debug)]
#[serde(transparent)]
pub struct WorkerId(pub String);

/// Where a job stands.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, Debug)]
#[serde(rename_all = "lowercase")]
pub enum JobState {
    /// Waits for a worker, or for its time.
    Queued,
    /// A worker holds a lease on it.
    Running,
    /// Has a verified proof.
    Done,
    /// Has an error and will not be tried again.
    Failed,
    /// Somebody cancelled it.
    Cancelled,
}

impl JobState {
    /// All states.
    pub const ALL: [Self; 5] = [Self::Queued, Self::Running, Self::Done, Self::Failed, Self::Cancelled];

    /// As stored and printed.
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

/// What a running job is at.
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
    /// Writing the result down.
    Store,
}

impl Stage {
    /// All stages, in order.
    pub const ALL: [Self; 5] = [Self::Load, Self::Witness, Self::Prove, Self::Verify, Self::Store];

    /// As stored and printed.
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

/// Order among queued jobs: higher first, 0 by default.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, Debug, Default)]
#[serde(transparent)]
pub struct Priority(pub i16);

/// Why an attempt failed; each class has its own retry budget.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, Debug)]
#[serde(rename_all = "snake_case")]
pub enum FailureClass {
    /// The input, the circuit or the witness is at fault: trying again cannot help.
    BadInput,
    /// Something outside failed and may recover, or a worker's limit was met that another may not have: storage, the database,
    /// memory.
    Transient,
    /// The worker died or lost its lease.
    LostWorker,
    /// A device failed.
    Device,
    /// A device returned a proof that does not verify.
    InvalidProof,
    /// The time allowed was over.
    Timeout,
    /// A class that this version does not know: a newer one wrote it.
    #[serde(other)]
    Unknown,
}

impl FailureClass {
    /// All classes that attempts fail with.
    pub const ALL: [Self; 6] =
        [Self::BadInput, Self::Transient, Self::LostWorker, Self::Device, Self::InvalidProof, Self::Timeout];

    /// As stored and printed.
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

/// Why a job failed.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Debug)]
pub struct JobError {
    /// Its class.
    pub class: FailureClass,
    /// One sentence for a person. Names signals and sizes, never values of inputs.
    pub message: String,
}

/// Failed attempts of a job so far, by retry budget.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Debug, Default)]
pub struct Tries {
    /// Charged to transient faults and time-outs.
    pub transient: u32,
    /// Charged to devices and invalid proofs.
    pub device: u32,
    /// Leases that lapsed: workers that died with the job in hand.
    pub lost: u32,
}

/// How long the stages took, milliseconds.
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

/// An attempt that came to nothing, for a job's history.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Debug)]
pub struct FailedAttempt {
    /// Which one.
    pub attempt: Attempt,
    /// Who made it.
    pub worker: Option<WorkerId>,
    /// When it was written down, by the store's clock.
    pub at: i64,
    /// Why it failed.
    pub error: JobError,
}

/// What a finished job has to show.
#[derive(Clone, PartialEq, Serialize, Deserialize, Debug)]
pub struct JobResult {
    /// proof.json as snarkjs writes it.
    pub proof_json: String,
    /// public.json as snarkjs writes it.
    pub public_json: String,
    /// Device that made the proof.
    pub device: String,
    /// Where the time went.
    pub times: StageTimes,
}

/// A job to submit. Its input travels beside it, since it is a secret.
#[derive(Clone, Debug)]
pub struct NewJob {
    /// Identity, chosen by the submitter.
    pub id: JobId,
    /// Circuit by name; its content at submit time is what is proved.
    pub circuit: CircuitName,
    /// The submitter's own name for this job: the same key with the same body gives the same job.
    pub idempotency_key: Option<String>,
    /// Hash of what was asked (circuit and input), which tells a repeat from a conflict.
    pub body: ContentHash,
    /// The same by keys that were used before: a job written down then is recognised too.
    pub former_bodies: Vec<ContentHash>,
    /// Order among queued jobs.
    pub priority: Priority,
    /// Fails the job if no worker has begun it within this time of its submission.
    pub start_within: Option<Duration>,
}

impl NewJob {
    /// The body of a job that no request can repeat, since it has neither an id nor a key of its submitter's. The hash
    /// outlives the input, and so this one says nothing about it.
    pub fn unrepeatable(id: JobId) -> ContentHash {
        ContentHash::of(id.0.as_bytes())
    }
}

/// A job as the store has it.
#[derive(Clone, PartialEq, Serialize, Deserialize, Debug)]
pub struct Job {
    /// Identity.
    pub id: JobId,
    /// The queue it was submitted to.
    pub queue: String,
    /// Circuit by name.
    pub circuit: CircuitName,
    /// Content of the circuit's key when the job was submitted; zeros for one that was refused before it had a circuit.
    pub zkey: ContentHash,
    /// Content of the circuit's witness program then.
    pub wasm: Option<ContentHash>,
    /// Where it stands.
    pub state: JobState,
    /// What a running job is at.
    pub stage: Option<Stage>,
    /// How far it is, 0 to 1.
    pub progress: f32,
    /// Claims so far: the fencing token of the present or last holder.
    pub attempt: Attempt,
    /// Failed attempts so far.
    pub tries: Tries,
    /// Order among queued jobs.
    pub priority: Priority,
    /// The submitter's own name for it.
    pub idempotency_key: Option<String>,
    /// Holder of the lease, or the last one.
    pub worker: Option<WorkerId>,
    /// Last error; a queued job that has one is being retried.
    pub error: Option<JobError>,
    /// Attempts that failed and workers that died with it, oldest first; at most the last 50.
    pub history: Vec<FailedAttempt>,
    /// Result of a job that is done.
    pub result: Option<JobResult>,
    /// Somebody asked to cancel it while it runs.
    pub cancel_requested: bool,
    /// Submitted, milliseconds since 1970 by the store's clock, as all times here.
    pub created_at: i64,
    /// Not before this time.
    pub run_at: i64,
    /// Fails if it was not begun before this time; none once a worker has begun it.
    pub start_by: Option<i64>,
    /// First claimed.
    pub started_at: Option<i64>,
    /// Reached a final state.
    pub finished_at: Option<i64>,
    /// When the present lease lapses.
    pub lease_expires_at: Option<i64>,
}
