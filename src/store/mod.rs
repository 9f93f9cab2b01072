//! The store: authority on circuits and jobs.
//!
//! Every change of a running job carries its [`Attempt`]; one that no longer holds changes nothing and answers
//! [`Held::Lost`]. All times are the database's own clock. The queue is disposable: whatever it loses,
//! [`Store::due`] finds again.
//!
//! Somebody who wants a running job cancelled leaves a request. Its holder learns of it from the answer to any guarded
//! change and confirms. A job so marked never runs again: a retry, a hand-back or a claim after its lease lapsed turn
//! it into a cancelled one. A proof that is finished all the same is kept, since the work is done.

mod load;
mod postgres;
mod room;
mod rows;
mod sqlite;
mod words;

use std::time::Duration;

use async_trait::async_trait;

pub use postgres::PostgresStore;
pub use sqlite::SqliteStore;

use crate::model::{
    Attempt, Circuit, CircuitName, ContentHash, Job, JobError, JobId, JobResult, JobState, NewJob, Priority, Stage,
    WorkerId,
};

/// What a submit came to.
#[derive(Debug, Clone, PartialEq)]
pub enum Submitted {
    /// A new job, which may have taken the place of a rejected one of its id.
    Created(Job),
    /// The same job had been submitted before (by id or by idempotency key, with the same body).
    Existing(Job),
}

impl Submitted {
    /// The job, new or not.
    pub fn job(&self) -> &Job {
        match self {
            Self::Created(j) | Self::Existing(j) => j,
        }
    }
}

/// What a store is opened with beside its address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoreSettings {
    /// The queue whose jobs it submits, offers, counts and sweeps. Jobs of every queue are found by their id.
    pub queue: String,
    /// How long a failed job keeps its input, so that it can be queued again. Bad input is never kept.
    pub keep_failed_inputs: Duration,
    /// Whether changes wake workers through the database (Postgres: NOTIFY); not needed where a queue does so.
    pub notify: bool,
}

impl Default for StoreSettings {
    fn default() -> Self {
        Self { queue: "prove".to_owned(), keep_failed_inputs: Duration::from_secs(86_400), notify: true }
    }
}

/// An input as it is kept.
#[derive(Clone, Copy)]
pub struct Input<'a> {
    /// Its bytes, sealed or not.
    pub bytes: &'a [u8],
    /// Name of the key it is sealed with; empty if it is not.
    pub key: &'a str,
}

/// An input in the place of the one that a job had.
#[derive(Clone, Copy)]
pub struct Replacement<'a> {
    /// As it is kept.
    pub input: Input<'a>,
    /// What a request for it would hash to, as [`NewJob::body`]: from now on that is what repeats the job.
    pub body: ContentHash,
}

/// A job in hand: a lease on it and its input.
pub struct Claim {
    /// The job as claimed; `job.attempt` is the holder's fencing token.
    pub job: Job,
    /// Input JSON, or a .wtns file where the circuit has no witness program, as it was submitted: sealed or not.
    pub input: zeroize::Zeroizing<Vec<u8>>,
    /// Name of the key the input is sealed with; empty if it is not.
    pub input_key: String,
}

impl std::fmt::Debug for Claim {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Claim").field("job", &self.job.id).field("input", &"secret").finish()
    }
}

/// Whether a guarded change took effect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Held {
    /// The attempt holds. `cancel` says whether somebody asked to cancel the job.
    Yes {
        /// Somebody asked to cancel the job.
        cancel: bool,
    },
    /// The attempt no longer holds; nothing changed.
    Lost,
}

/// What is to become of a job whose attempt failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Retry {
    /// Queued again, not before this much time has passed.
    After(Duration),
    /// Failed for good.
    Never,
}

/// What a cancel came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cancelled {
    /// It was queued and is cancelled now.
    Now,
    /// It is running; its worker will stop it.
    Requested,
    /// It had reached this final state before.
    TooLate(JobState),
    /// There is no such job.
    Unknown,
}

/// Which jobs to list, newest first.
#[derive(Debug, Clone, Default)]
pub struct JobFilter {
    /// Only those in this state.
    pub state: Option<JobState>,
    /// Only those of this circuit.
    pub circuit: Option<CircuitName>,
    /// Only the one of this idempotency key.
    pub idempotency_key: Option<String>,
    /// Only those submitted before this job; all, where it is not there.
    pub before: Option<JobId>,
    /// At most so many.
    pub limit: u32,
}

/// What is held back.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Scope {
    /// Every job of the store's queue.
    Queue,
    /// Jobs of one circuit, in every queue.
    Circuit(CircuitName),
}

/// What became of a failed or cancelled job that was to be queued again.
#[derive(Debug, Clone, PartialEq)]
pub enum Requeued {
    /// It is queued, with fresh retry budgets; its history stays.
    Yes(Box<Job>),
    /// It is in this state, from which there is no way back to the queue.
    Not(JobState),
    /// Its input is no longer held and none was given.
    InputGone,
    /// Its key or its witness program is registered under no circuit any more, and no input that is held keeps it.
    CircuitGone(CircuitName),
    /// There is no such job.
    Unknown,
}

/// A job that a queue should know of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Due {
    /// Which.
    pub id: JobId,
    /// Its priority.
    pub priority: Priority,
    /// A worker had it before, and it has not failed twice for what may pass: what goes on failing waits in its turn, lest
    /// it is always first.
    pub again: bool,
}

/// What a sweep did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Swept {
    /// Jobs that waited longer than they were allowed to, failed now.
    pub expired: Vec<JobId>,
    /// Inputs of failed jobs deleted.
    pub inputs: u64,
}

/// How busy the store's queue is. Cheap, however many jobs have ended or wait: where more than 10,000 wait, how many and
/// for how long are counted so seldom that it takes a hundredth of the time, and may be as old as that makes it (a
/// minute or so for a million).
#[derive(Debug, Clone, Copy, Default, PartialEq, serde::Serialize)]
pub struct Load {
    /// Waiting, those that wait for a retry included.
    pub queued: u64,
    /// Held by a worker.
    pub running: u64,
    /// Milliseconds the oldest job that could run has waited since it was due; 0 if there is none.
    pub oldest_ms: u64,
    /// Jobs brought to an end (done or failed) within the last minute.
    pub ended_last_minute: u64,
}

/// Jobs by state.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
pub struct Counts {
    /// More have ended than are counted one by one: `done` is an estimate, and so are `failed` and `cancelled` where they
    /// are above 100,000.
    pub estimated: bool,
    /// Waiting.
    pub queued: u64,
    /// Held by a worker.
    pub running: u64,
    /// With a proof.
    pub done: u64,
    /// Failed for good.
    pub failed: u64,
    /// Cancelled.
    pub cancelled: u64,
}

/// What can go wrong in a store.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// No circuit by that name.
    #[error("no circuit {0} is registered")]
    UnknownCircuit(CircuitName),
    /// The id or the idempotency key belongs to a job with another body, or the key to one that was rejected.
    #[error("{what} is taken by job {id}, which {holder}")]
    Conflict {
        /// "idempotency key …" or "id …".
        what: String,
        /// The job that has it.
        id: JobId,
        /// What is otherwise about that job: "asks for something else: …" or "was rejected: …".
        holder: String,
    },
    /// A circuit that unfinished jobs need.
    #[error("circuit {name} has {unfinished} unfinished jobs; cancel them first")]
    InUse {
        /// Which circuit.
        name: CircuitName,
        /// Jobs queued or running.
        unfinished: u64,
    },
    /// The schema was written by a newer program.
    #[error("the database's schema is newer than this program; use the newer version of prover-worker")]
    NewerSchema,
    /// The store cannot be opened.
    #[error("cannot open the store {what}: {why}")]
    Open {
        /// Its path or URL.
        what: String,
        /// Why not.
        why: String,
    },
    /// The database does not answer, or not now: it starts, or is full.
    #[error("the database {what} cannot be reached: {why}")]
    Away {
        /// Its URL, without who connects and by what password.
        what: String,
        /// Why not.
        why: String,
    },
    /// The database answers, but takes no writes.
    #[error("the database {what} takes no writes: {why}")]
    Unwritable {
        /// Its path or its URL, without who connects and by what password.
        what: String,
        /// Why not.
        why: String,
    },
    /// The database failed.
    #[error("database: {}", words::plainly(.0))]
    Database(#[from] sqlx::Error),
    /// A row does not read as what it should be.
    #[error("database: column {column} holds what this program cannot read: {why}")]
    Corrupt {
        /// The column.
        column: &'static str,
        /// Why it cannot be read.
        why: String,
    },
}

impl StoreError {
    /// Whether the database as a whole fails, so that other calls would, too: it does not answer, is full, or takes no
    /// writes. Otherwise it is one call that failed, for its content or for what somebody else holds.
    pub fn is_outage(&self) -> bool {
        match self {
            Self::Away { .. } | Self::Open { .. } | Self::Unwritable { .. } => true,
            Self::Database(e) => words::is_outage(e),
            _ => false,
        }
    }
}

/// Circuits and jobs, durable. The conformance suite in `tests/store` runs over every implementation.
#[async_trait]
pub trait Store: Send + Sync + 'static {
    /// Which database it is, for people: its path, or its URL without who connects and by what password.
    fn address(&self) -> String;
    /// The queue whose jobs this is about, of those in the database.
    fn queue_name(&self) -> &str;
    /// What tells this database from others, one that its dump was restored to among them (but none that its server's files
    /// were copied to): the same for all that use it, while it stays where it is. None where the database does not say, and where no other could be taken for it: a queue that workers
    /// elsewhere share has a database that they share.
    async fn identity(&self) -> Result<Option<String>, StoreError> {
        Ok(None)
    }

    /// Registers a circuit, or puts new content under its name; `created_at` is set by the store. The same content
    /// again changes nothing.
    async fn put_circuit(&self, circuit: &Circuit) -> Result<Circuit, StoreError>;
    /// A circuit by name.
    async fn circuit(&self, name: &CircuitName) -> Result<Option<Circuit>, StoreError>;
    /// All circuits, by name.
    async fn circuits(&self) -> Result<Vec<Circuit>, StoreError>;
    /// Forgets a circuit; false if there was none. Refused with [`StoreError::InUse`] while unfinished jobs need it.
    async fn remove_circuit(&self, name: &CircuitName) -> Result<bool, StoreError>;

    /// Writes a job and its input down in one transaction. Idempotent by id, then by idempotency key: a repeat with
    /// the same body gives the job as it is now, even when its circuit has gone since. A job of this id that was
    /// rejected was never one: the new job takes its place, whatever its body.
    ///
    /// # Errors
    /// [`StoreError::Conflict`] for a repeat with another body, [`StoreError::UnknownCircuit`].
    async fn submit(&self, new: &NewJob, input: Input<'_>) -> Result<Submitted, StoreError>;
    /// Writes down a job that failed before it could be queued, so that whoever sent it finds the reason under its id.
    /// Idempotent as `submit`, but a job that exists with another body is left alone ([`StoreError::Conflict`]), unless
    /// it was rejected too: then the new reason takes the place of the old.
    async fn reject(&self, new: &NewJob, error: &JobError) -> Result<Submitted, StoreError>;
    /// A job.
    async fn job(&self, id: JobId) -> Result<Option<Job>, StoreError>;
    /// Those of these jobs, of whatever queue, that are queued or running.
    async fn unfinished(&self, ids: &[JobId]) -> Result<Vec<JobId>, StoreError>;
    /// Jobs, newest first, without their results and histories, which may be large.
    async fn jobs(&self, filter: JobFilter) -> Result<Vec<Job>, StoreError>;
    /// Takes a job: one that is queued, due, not paused and not past its `start_by`, or running with a lapsed lease
    /// (which counts in `tries.lost` and goes into its history), or the answer is `None`. The attempt grows by one, the lease lasts `lease` from now. A lapsed job whose cancellation
    /// was requested is cancelled instead, with the answer `None`.
    async fn claim(&self, id: JobId, worker: &WorkerId, lease: Duration) -> Result<Option<Claim>, StoreError>;
    /// Renews the lease and notes how far the job is (`progress` from 0 to 1; anything else is brought into that
    /// range). A lease that lapsed but that nobody took is renewed.
    async fn heartbeat(
        &self,
        id: JobId,
        attempt: Attempt,
        lease: Duration,
        stage: Stage,
        progress: f32,
    ) -> Result<Held, StoreError>;
    /// Result, state and the end of the input, in one transaction. Wins over a request to cancel; clears the error of
    /// earlier attempts.
    async fn finish(&self, id: JobId, attempt: Attempt, result: &JobResult) -> Result<Held, StoreError>;
    /// An attempt failed: notes it in the job's history, counts it in its class's budget and queues the job again or fails it for good (its
    /// input is kept for `keep_failed_inputs`, that of bad input not at all). A retry of a job whose cancellation was requested cancels it instead.
    async fn fail(&self, id: JobId, attempt: Attempt, error: &JobError, retry: Retry) -> Result<Held, StoreError>;
    /// Hands a job back unharmed, due at once: not a failed attempt. The next claim has a new token all the same. A job
    /// whose cancellation was requested is cancelled instead.
    async fn release(&self, id: JobId, attempt: Attempt) -> Result<Held, StoreError>;
    /// The holder ends a job whose cancellation was requested; ends its input too. Where nobody asked, nothing changes
    /// and the answer is `Yes { cancel: false }`.
    async fn confirm_cancel(&self, id: JobId, attempt: Attempt) -> Result<Held, StoreError>;
    /// Cancels a job: at once when it is queued, by request when it runs. Ends the input of one cancelled at once.
    async fn cancel(&self, id: JobId) -> Result<Cancelled, StoreError>;
    /// Queues a failed or cancelled job again, due at once, with fresh budgets and, if given, another input. As in a
    /// submit it fails if no worker has begun it within `start_within`.
    /// With another input the job is what that input asks for: the request that made it repeats it no more, and one for
    /// the new input does.
    /// A job that was rejected before it had a circuit takes what is registered under the name now. Any other is proved
    /// with the content that it was submitted for, which is there as long as a circuit or an input that is held needs it.
    ///
    /// # Errors
    /// [`StoreError::UnknownCircuit`] where nothing is registered for such a job.
    async fn requeue(
        &self,
        id: JobId,
        input: Option<Replacement<'_>>,
        start_within: Option<Duration>,
    ) -> Result<Requeued, StoreError>;
    /// Holds jobs back, or lets them go again. Running ones are not touched. Answers whether that changed anything.
    async fn set_paused(&self, scope: &Scope, paused: bool) -> Result<bool, StoreError>;
    /// What is held back in this queue, with the time since when.
    async fn paused(&self) -> Result<Vec<(Scope, i64)>, StoreError>;
    /// Jobs a queue should know of, none of them paused: queued and due, or running with a lapsed lease (those to be cancelled too, for the
    /// next claim to do it); best first (priority, then age). A reconciler calls this regularly; a store may use the
    /// occasion to tidy up.
    async fn due(&self, limit: u32) -> Result<Vec<Due>, StoreError>;
    /// Returns when the store may have something new for this queue, or after `at_most`. Where the database tells
    /// (NOTIFY, SQLite's data version), that is within about 100 ms of the change; where it does not, `at_most`.
    async fn changed(&self, at_most: Duration) -> Result<(), StoreError>;
    /// Fails queued jobs of this queue that are past their `start_by`, and deletes the inputs that failed jobs no longer
    /// keep; at most `limit` of each.
    async fn sweep(&self, limit: u32) -> Result<Swept, StoreError>;
    /// Forgets jobs of this queue in these final states that ended longer ago than `older_than`, at most `limit`; their
    /// proof files can go too.
    async fn purge(&self, states: &[JobState], older_than: Duration, limit: u32) -> Result<Vec<JobId>, StoreError>;
    /// How busy the queue is.
    async fn load(&self) -> Result<Load, StoreError>;
    /// Content (zkeys and wasms) that jobs of any queue need, without repeats: unfinished ones, and failed ones that keep
    /// their input, since they may be queued again.
    async fn content_in_use(&self) -> Result<Vec<crate::model::ContentHash>, StoreError>;
    /// Jobs of this queue by state. Counts ended jobs one by one, up to a bound: for people, not for every second.
    async fn counts(&self) -> Result<Counts, StoreError>;
    /// Inputs still held, by the key they are sealed with (empty: none), for tests and `doctor`. None belongs to a job
    /// that is done or cancelled.
    async fn inputs_held(&self) -> Result<Vec<(String, u64)>, StoreError>;
    /// Whether the store answers and takes writes.
    async fn ping(&self) -> Result<(), StoreError>;
}
