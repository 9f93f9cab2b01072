//! The store: the authoritative record of circuits and jobs.
//!
//! Every change to a running job carries its [`Attempt`]. If the attempt no longer holds the job, nothing changes and
//! the answer is [`Held::Lost`]. All times come from the database's clock. The queue is disposable: [`Store::due`]
//! finds whatever the queue loses.
//!
//! A caller that got no answer repeats the call. The four changes that end an attempt ([`Store::finish`],
//! [`Store::fail`], [`Store::release`], [`Store::confirm_cancel`]) recognise their own work: a repeat with the same
//! arguments changes nothing and is answered as the first call was, however much later it comes. A finish is known by
//! its result and a failure by its error in the history (the last 50 failures). The other two leave nothing of their
//! own, and are known by the state of the job, until it is claimed again: it waits or is cancelled, and the attempt did
//! not fail. So both are also answered with `cancel` where another worker's claim has cancelled the job.
//!
//! Cancelling a running job leaves a request. The job's holder learns of it from the answer to any guarded change and
//! confirms it. A job with such a request never runs again: a retry, a release, or a claim after its lease lapsed
//! cancels it instead. A proof that is finished nevertheless is kept, since the work is done.

mod disk;
mod error;
mod load;
mod postgres;
mod rows;
mod sqlite;

use std::time::Duration;

use async_trait::async_trait;
use zeroize::Zeroizing;

pub use error::{Cause, StoreError};
pub use postgres::PostgresStore;
pub use sqlite::SqliteStore;

use crate::model::{
    Attempt, Circuit, CircuitContent, CircuitName, ContentHash, IdempotencyKey, Job, JobError, JobId, JobResult,
    JobState, NewJob, Priority, Stage, WorkerId,
};

/// Content to be removed from the artifacts, unless a circuit or a job needs it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Removable {
    /// The number of this record; no other ever has it.
    pub number: i64,
    /// The circuit that had the content, or for which it was imported.
    pub name: CircuitName,
    /// The content.
    pub content: CircuitContent,
}

/// The outcome of a submit.
#[derive(Debug, Clone, PartialEq)]
pub enum Submitted {
    /// A new job, which may have replaced a rejected job with the same id.
    Created(Job),
    /// The job had already been submitted (same id or idempotency key, same body).
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

/// Settings of a store, apart from its address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoreSettings {
    /// The queue whose jobs the store submits, offers, counts and sweeps. Lookups by id find the jobs of every queue.
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

/// An input as it is stored.
#[derive(Clone, Copy)]
pub struct Input<'a> {
    /// The bytes, sealed or not.
    pub bytes: &'a [u8],
    /// Name of the key the input is sealed with; empty if it is not sealed.
    pub key: &'a str,
}

/// A new input for a job.
#[derive(Clone, Copy)]
pub struct Replacement<'a> {
    /// The input as it is stored.
    pub input: Input<'a>,
    /// The hash of a request for this input, as in [`NewJob::body`]: from now on, a request with this hash repeats the
    /// job.
    pub body: ContentHash,
}

/// A claimed job: a lease on it, and its input unless that is large.
pub struct Claim {
    /// The job as claimed; `job.attempt` is the holder's fencing token.
    pub job: Job,
    /// Input JSON, or a .wtns file where the circuit has no witness program, as it was submitted: sealed or not. `None`
    /// if it is too large to be sent with the claim: [`Store::input`] reads it.
    pub input: Option<Zeroizing<Vec<u8>>>,
    /// Name of the key the input is sealed with; empty if it is not sealed.
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
    /// The attempt holds the job, or held it when an earlier call did the same.
    Yes {
        /// Whether cancellation of the job was requested.
        cancel: bool,
    },
    /// The attempt no longer holds the job; nothing changed.
    Lost,
}

/// What happens to a job whose attempt failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Retry {
    /// The job is queued again, and due after this delay.
    After(Duration),
    /// The job fails for good.
    Never,
}

/// The outcome of a cancel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cancelled {
    /// It was queued and is cancelled now.
    Now,
    /// It is running; its worker will stop it.
    Requested,
    /// It had already reached this final state.
    TooLate(JobState),
}

/// Which jobs to list, newest first.
#[derive(Debug, Clone, Default)]
pub struct JobFilter {
    /// Only those in this state.
    pub state: Option<JobState>,
    /// Only those of this circuit.
    pub circuit: Option<CircuitName>,
    /// Only the job with this idempotency key.
    pub idempotency_key: Option<IdempotencyKey>,
    /// Only those submitted before this job; all jobs if this one does not exist.
    pub before: Option<JobId>,
    /// The maximum number of jobs.
    pub limit: u32,
}

/// What is paused.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Scope {
    /// Every job of the store's queue.
    Queue,
    /// Jobs of one circuit, in every queue.
    Circuit(CircuitName),
}

/// The outcome of a requeue.
#[derive(Debug, Clone, PartialEq)]
pub enum Requeued {
    /// It is queued, with fresh retry budgets; its history stays.
    Yes(Box<Job>),
    /// It is in this state, from which it cannot be queued again.
    Not(JobState),
    /// Its input is no longer stored and no other was given.
    InputGone,
    /// Its proving key or witness program no longer belongs to any registered circuit, and no stored input keeps it.
    CircuitGone(CircuitName),
    /// There is no such job.
    Unknown,
}

/// A job that a queue should know of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Due {
    /// The job's id.
    pub id: JobId,
    /// Its priority.
    pub priority: Priority,
    /// A worker had it before, and it has had fewer than two transient failures. A job that keeps failing waits its
    /// turn, so that it is not always first.
    pub again: bool,
}

/// The outcome of a sweep.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Swept {
    /// Jobs that no worker started in time and that have now failed.
    pub expired: Vec<JobId>,
    /// Number of inputs of failed jobs that were deleted.
    pub inputs: u64,
}

/// How busy the store's queue is. Cheap to obtain, however many jobs wait or have ended: where more than 10,000 wait,
/// their number and age are counted so rarely that counting takes a hundredth of the time, and may be as stale as that
/// makes them (a minute or so for a million).
#[derive(Debug, Clone, Copy, Default, PartialEq, serde::Serialize)]
pub struct Load {
    /// Waiting jobs, including those that wait for a retry.
    pub queued: u64,
    /// Jobs held by a worker.
    pub running: u64,
    /// Milliseconds since the oldest runnable job became due; 0 if there is none.
    pub oldest_ms: u64,
    /// Jobs done or failed within the last minute.
    pub ended_last_minute: u64,
}

/// Jobs by state.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
pub struct Counts {
    /// Too many jobs have ended to count each: `done` is an estimate, and so are `failed` and `cancelled` where they
    /// are above 100,000.
    pub estimated: bool,
    /// Waiting jobs.
    pub queued: u64,
    /// Jobs held by a worker.
    pub running: u64,
    /// Jobs with a proof.
    pub done: u64,
    /// Jobs that failed for good.
    pub failed: u64,
    /// Cancelled jobs.
    pub cancelled: u64,
}

/// The jobs that a purge is for: of the store's queue, in these final states, and ended longer ago than this.
#[derive(Debug, Clone, Copy)]
pub struct Purge<'a> {
    /// Their states.
    pub states: &'a [JobState],
    /// How long ago they ended at least.
    pub older_than: Duration,
}

/// Durable storage of circuits and jobs. The conformance suite in `tests/store` runs against every implementation.
#[async_trait]
pub trait Store: Send + Sync + 'static {
    /// Returns the database for display: its path, or its URL without user name and password.
    fn address(&self) -> String;
    /// Returns the queue of the database whose jobs this store handles.
    fn queue_name(&self) -> &str;
    /// Returns an identifier that distinguishes this database from others, including one that its dump was restored to
    /// (but not from a copy of its server's files). It is the same for all users of the database, as long as the
    /// database is not moved. `None` if the database provides none, or if no other could be mistaken for it: workers
    /// elsewhere that share a queue share its database, too.
    async fn identity(&self) -> Result<Option<String>, StoreError> {
        Ok(None)
    }

    /// Registers a circuit, or replaces the content registered under its name; `created_at` is set by the store.
    /// Registering the same content again changes nothing.
    async fn put_circuit(&self, circuit: &Circuit) -> Result<Circuit, StoreError>;
    /// Returns a circuit by name.
    async fn circuit(&self, name: &CircuitName) -> Result<Option<Circuit>, StoreError>;
    /// Returns all circuits, ordered by name.
    async fn circuits(&self) -> Result<Vec<Circuit>, StoreError>;
    /// Removes a circuit; returns false if there was none. Fails with [`StoreError::InUse`] while unfinished jobs need
    /// it.
    async fn remove_circuit(&self, name: &CircuitName) -> Result<bool, StoreError>;
    /// Notes content that is imported for a circuit which is not registered yet: to be removed after `keep`, unless a
    /// circuit or a job needs it then.
    async fn note_imported(
        &self,
        name: &CircuitName,
        content: CircuitContent,
        keep: Duration,
    ) -> Result<(), StoreError>;
    /// Returns the content that may be removed now unless something needs it, oldest record first: what circuits had
    /// before they were replaced or removed, and what was imported long ago.
    async fn removable_content(&self) -> Result<Vec<Removable>, StoreError>;
    /// Deletes a record of content whose files were removed, or that a circuit has.
    async fn forget_removable(&self, record: &Removable) -> Result<(), StoreError>;

    /// Stores a job and its input in one transaction. Idempotent by id, then by idempotency key: a repeat with the same
    /// body returns the job as it is now, even if its circuit has been removed since. A rejected job with this id does
    /// not count: the new job replaces it, whatever its body.
    ///
    /// # Errors
    /// [`StoreError::Conflict`] for a repeat with another body, [`StoreError::UnknownCircuit`],
    /// [`StoreError::Contended`].
    async fn submit(&self, new: &NewJob, input: Input<'_>) -> Result<Submitted, StoreError>;
    /// Stores a job that failed before it could be queued, so that its sender finds the reason under its id. Idempotent
    /// like `submit`, but an existing job with another body is left as it is ([`StoreError::Conflict`]), unless it was
    /// rejected too: then the new reason replaces the old one.
    async fn reject(&self, new: &NewJob, error: &JobError) -> Result<Submitted, StoreError>;
    /// Returns a job by id.
    async fn job(&self, id: JobId) -> Result<Option<Job>, StoreError>;
    /// Returns those of these jobs, in any queue, that are queued or running.
    async fn unfinished(&self, ids: &[JobId]) -> Result<Vec<JobId>, StoreError>;
    /// Returns jobs, newest first, without their results and histories, which may be large.
    async fn jobs(&self, filter: JobFilter) -> Result<Vec<Job>, StoreError>;
    /// Claims a job that is queued, due, not paused and not past its `start_by`, or running with a lapsed lease (which
    /// counts in `tries.lost` and is added to its history); returns `None` for any other. The attempt is incremented,
    /// and the lease lasts `lease` from now. A job with a lapsed lease whose cancellation was requested is cancelled
    /// instead, and `None` returned.
    async fn claim(&self, id: JobId, worker: &WorkerId, lease: Duration) -> Result<Option<Claim>, StoreError>;
    /// Returns the whole input of a claimed job, of any size; `None` if the attempt no longer holds the job. This may
    /// take as long as the connection needs for the input: the caller keeps the lease and sets the limit.
    async fn input(&self, id: JobId, attempt: Attempt) -> Result<Option<Zeroizing<Vec<u8>>>, StoreError>;
    /// Renews the lease and records how far the job is (`progress` is clamped to the range from 0 to 1). A lapsed lease
    /// is renewed if nobody has claimed the job since.
    async fn heartbeat(
        &self,
        id: JobId,
        attempt: Attempt,
        lease: Duration,
        stage: Stage,
        progress: f32,
    ) -> Result<Held, StoreError>;
    /// Stores the result, marks the job as done and deletes its input, in one transaction. Takes precedence over a
    /// request to cancel, and clears the error of earlier attempts.
    async fn finish(&self, id: JobId, attempt: Attempt, result: &JobResult) -> Result<Held, StoreError>;
    /// Records a failed attempt in the job's history, charges the retry budget of its error class, and queues the job
    /// again or fails it for good (its input is kept for `keep_failed_inputs`, bad input not at all). A retry of a job
    /// whose cancellation was requested cancels it instead.
    async fn fail(&self, id: JobId, attempt: Attempt, error: &JobError, retry: Retry) -> Result<Held, StoreError>;
    /// Returns a job to the queue, due at once, without counting a failed attempt. The next claim gets a new token all
    /// the same. A job whose cancellation was requested is cancelled instead.
    async fn release(&self, id: JobId, attempt: Attempt) -> Result<Held, StoreError>;
    /// Cancels a job whose cancellation was requested, on behalf of its holder, and deletes its input. If nobody
    /// requested it, nothing changes and the answer is `Yes { cancel: false }`.
    async fn confirm_cancel(&self, id: JobId, attempt: Attempt) -> Result<Held, StoreError>;
    /// Cancels a job: at once if it is queued (which deletes its input), by request if it is running. Returns `None` if
    /// there is no such job.
    ///
    /// # Errors
    /// [`StoreError::Contended`] if the job kept changing from one state to another.
    async fn cancel(&self, id: JobId) -> Result<Option<Cancelled>, StoreError>;
    /// Queues a failed or cancelled job again, due at once, with fresh retry budgets and, if given, another input. As
    /// after a submit, the job fails if no worker has started it within `start_within`.
    ///
    /// With another input, the job becomes the one that a request for that input describes: such a request repeats it,
    /// and the original request no longer does.
    ///
    /// A job that was rejected before it had a circuit uses the circuit that is registered under its name now. Any
    /// other job is proved with the content it was submitted for, which is kept as long as a circuit or a stored input
    /// needs it.
    ///
    /// # Errors
    /// [`StoreError::UnknownCircuit`] if no circuit is registered for such a job.
    async fn requeue(
        &self,
        id: JobId,
        input: Option<Replacement<'_>>,
        start_within: Option<Duration>,
    ) -> Result<Requeued, StoreError>;
    /// Pauses or resumes jobs. Running jobs are not affected. Returns whether anything changed.
    async fn set_paused(&self, scope: &Scope, paused: bool) -> Result<bool, StoreError>;
    /// Returns what is paused in this queue, and since when (milliseconds since 1970).
    async fn paused(&self) -> Result<Vec<(Scope, i64)>, StoreError>;
    /// Returns up to `limit` jobs that a queue should know of, none of them paused: those queued and due, and those
    /// running with a lapsed lease (also if they are to be cancelled, which the next claim does); best first (priority,
    /// then age). A reconciler calls this regularly; a store may use the occasion to tidy up.
    async fn due(&self, limit: u32) -> Result<Vec<Due>, StoreError>;
    /// Returns when the store may have something new for this queue, or after `at_most`. Where the database signals
    /// changes (NOTIFY, SQLite's data version), that is within about 100 ms of the change; elsewhere, always after
    /// `at_most`.
    async fn changed(&self, at_most: Duration) -> Result<(), StoreError>;
    /// Fails queued jobs of this queue that are past their `start_by`, and deletes the inputs that failed jobs no
    /// longer keep; at most `limit` of each.
    async fn sweep(&self, limit: u32) -> Result<Swept, StoreError>;
    /// Returns up to `limit` of the jobs that a purge is for, oldest first, without the `skip` oldest: to remove their
    /// proof files, and then the jobs ([`Store::purge`]). In this order, because nothing would come back for the files
    /// of jobs that are gone.
    async fn purgeable(&self, which: &Purge<'_>, limit: u32, skip: u32) -> Result<Vec<JobId>, StoreError>;
    /// Deletes those of these jobs that the purge is (still) for, and returns their ids.
    async fn purge(&self, which: &Purge<'_>, jobs: &[JobId]) -> Result<Vec<JobId>, StoreError>;
    /// Returns once jobs whose submission read the circuit before this call are visible: before content that it had is
    /// removed, because none of them is known to need it.
    async fn settle_circuit(&self, name: &CircuitName) -> Result<(), StoreError>;
    /// Returns how busy the queue is.
    async fn load(&self) -> Result<Load, StoreError>;
    /// Returns the content (zkeys and wasms) that jobs of any queue need, without duplicates: unfinished jobs, and
    /// failed ones that still have their input, since they may be queued again.
    async fn content_in_use(&self) -> Result<Vec<crate::model::ContentHash>, StoreError>;
    /// Returns the number of jobs of this queue by state. Counts ended jobs one by one, up to a bound: meant for
    /// people, not for a call every second.
    async fn counts(&self) -> Result<Counts, StoreError>;
    /// Returns the number of stored inputs by the key they are sealed with (empty: not sealed), for tests and `doctor`.
    /// None of them belongs to a job that is done or cancelled.
    async fn inputs_held(&self) -> Result<Vec<(String, u64)>, StoreError>;
    /// Checks that the store answers and accepts writes.
    async fn ping(&self) -> Result<(), StoreError>;
}
