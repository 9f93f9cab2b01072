//! Conversion of rows to the model. Independent of the database: a store's row type says how a column is read, and the
//! rest is shared.

use std::str::FromStr;

use uuid::Uuid;

use super::{Counts, Due, Load, Removable, Scope, StoreError, StoreSettings};
use crate::model::{
    Attempt, Circuit, CircuitContent, CircuitName, ContentHash, FailedAttempt, FailureClass, Job, JobError, JobId,
    JobResult, JobState, NewJob, Priority, Stage, Tries, WorkerId,
};

/// A row whose columns can be read by name as one of five kinds, each possibly null.
pub(super) trait Columns {
    /// An integer (SQLite `INTEGER`, Postgres `bigint`).
    fn int(&self, column: &'static str) -> Result<Option<i64>, StoreError>;
    /// A floating-point number.
    fn real(&self, column: &'static str) -> Result<Option<f64>, StoreError>;
    /// Text.
    fn text(&self, column: &'static str) -> Result<Option<String>, StoreError>;
    /// Bytes.
    fn bytes(&self, column: &'static str) -> Result<Option<Vec<u8>>, StoreError>;
    /// A boolean.
    fn flag(&self, column: &'static str) -> Result<Option<bool>, StoreError>;
}

/// The error for a column whose value cannot be read.
pub(super) fn corrupt(column: &'static str, why: impl ToString) -> StoreError {
    StoreError::Corrupt { column, why: why.to_string() }
}

fn required<T>(column: &'static str, value: Option<T>) -> Result<T, StoreError> {
    value.ok_or_else(|| corrupt(column, "expected a value, got null"))
}

/// Reads an integer that fits `T`.
pub(super) fn number<T: TryFrom<i64>>(row: &impl Columns, column: &'static str) -> Result<T, StoreError> {
    let n = required(column, row.int(column)?)?;
    T::try_from(n).map_err(|_| corrupt(column, format!("{n} is out of range")))
}

fn parsed<T: FromStr>(column: &'static str, text: &str) -> Result<T, StoreError>
where
    T::Err: ToString,
{
    text.parse().map_err(|e: T::Err| corrupt(column, e))
}

fn hash(column: &'static str, bytes: Vec<u8>) -> Result<ContentHash, StoreError> {
    let got = bytes.len();
    let array = bytes.try_into().map_err(|_| corrupt(column, format!("expected 32 bytes of a SHA-256, got {got}")))?;
    Ok(ContentHash(array))
}

/// Reads a content hash.
pub(super) fn content_hash(row: &impl Columns, column: &'static str) -> Result<ContentHash, StoreError> {
    hash(column, required(column, row.bytes(column)?)?)
}

fn optional_content_hash(row: &impl Columns, column: &'static str) -> Result<Option<ContentHash>, StoreError> {
    row.bytes(column)?.map(|b| hash(column, b)).transpose()
}

/// Reads a job's id, from `id`.
pub(super) fn job_id(row: &impl Columns) -> Result<JobId, StoreError> {
    let bytes = required("id", row.bytes("id")?)?;
    Ok(JobId(Uuid::from_slice(&bytes).map_err(|e| corrupt("id", e))?))
}

/// Reads a job's priority, from `priority`.
pub(super) fn priority(row: &impl Columns) -> Result<Priority, StoreError> {
    number(row, "priority").map(Priority)
}

/// Reads a job that a queue should know of.
pub(super) fn due(row: &impl Columns) -> Result<Due, StoreError> {
    Ok(Due { id: job_id(row)?, priority: priority(row)?, again: required("again", row.flag("again")?)? })
}

/// Reads a job's state, from `state`.
pub(super) fn state(row: &impl Columns) -> Result<JobState, StoreError> {
    parsed("state", &required("state", row.text("state")?)?)
}

/// Reads the name of a job's circuit, from `circuit`.
pub(super) fn circuit_name(row: &impl Columns) -> Result<CircuitName, StoreError> {
    parsed("circuit", &required("circuit", row.text("circuit")?)?)
}

/// Reads a circuit.
pub(super) fn circuit(row: &impl Columns) -> Result<Circuit, StoreError> {
    Ok(Circuit {
        name: parsed("name", &required("name", row.text("name")?)?)?,
        zkey: content_hash(row, "zkey")?,
        wasm: optional_content_hash(row, "wasm")?,
        n_vars: number(row, "n_vars")?,
        n_public: number(row, "n_public")?,
        domain_size: number(row, "domain_size")?,
        created_at: number(row, "created_at")?,
    })
}

/// Reads a record of removable content.
pub(super) fn removable(row: &impl Columns) -> Result<Removable, StoreError> {
    Ok(Removable {
        number: number(row, "id")?,
        name: parsed("name", &required("name", row.text("name")?)?)?,
        content: CircuitContent { zkey: content_hash(row, "zkey")?, wasm: optional_content_hash(row, "wasm")? },
    })
}

/// Reads a job.
pub(super) fn job(row: &impl Columns) -> Result<Job, StoreError> {
    let error = match (row.text("error_class")?, row.text("error_message")?) {
        (Some(class), Some(message)) => {
            // In a fleet with two versions, the newer may have classes and stages that this one does not know.
            Some(JobError { class: class.parse().unwrap_or(FailureClass::Unknown), message })
        }
        _ => None,
    };
    let history: Vec<FailedAttempt> = serde_json::from_str(&required("history", row.text("history")?)?)
        .map_err(|e| corrupt("history", format!("expected the JSON of failed attempts: {e}")))?;
    let result: Option<JobResult> = row
        .text("result")?
        .map(|json| serde_json::from_str(&json))
        .transpose()
        .map_err(|e| corrupt("result", format!("expected the JSON of a result: {e}")))?;
    Ok(Job {
        id: job_id(row)?,
        queue: required("queue", row.text("queue")?)?,
        circuit: circuit_name(row)?,
        zkey: content_hash(row, "zkey")?,
        wasm: optional_content_hash(row, "wasm")?,
        state: state(row)?,
        stage: row.text("stage")?.and_then(|s| s.parse::<Stage>().ok()),
        progress: required("progress", row.real("progress")?)? as f32,
        attempt: Attempt { number: number(row, "attempt")?, submission: number(row, "seq")? },
        tries: Tries {
            transient: number(row, "tries_transient")?,
            device: number(row, "tries_device")?,
            lost: number(row, "tries_lost")?,
        },
        priority: priority(row)?,
        idempotency_key: row.text("idempotency_key")?,
        worker: row.text("worker")?.map(WorkerId),
        error,
        history,
        result,
        cancel_requested: required("cancel_requested", row.flag("cancel_requested")?)?,
        created_at: number(row, "created_at")?,
        run_at: number(row, "run_at")?,
        start_by: row.int("start_by")?,
        started_at: row.int("started_at")?,
        finished_at: row.int("finished_at")?,
        lease_expires_at: row.int("lease_expires_at")?,
    })
}

/// Returns the hash that identifies repeats of a job once it is queued again: `other`, or the `body` of its row.
pub(super) fn body_of_requeued(
    row: &impl Columns,
    id: JobId,
    other: Option<ContentHash>,
) -> Result<ContentHash, StoreError> {
    let body = content_hash(row, "body")?;
    // The hash of a job that nothing can repeat must reveal nothing about its input.
    Ok(other.filter(|_| body != NewJob::unrepeatable(id)).unwrap_or(body))
}

/// An existing job with the id or the idempotency key of a new one.
pub(super) enum Repeat {
    /// It is the same job.
    Same(Job),
    /// It has the id of the new job and was rejected, for this reason or another: the new job replaces it.
    Rejected { job: Job, same_body: bool },
}

/// Reads the job that has the id or the idempotency key of a new one, from its columns and `body`, if it is the same
/// job or was rejected.
///
/// # Errors
/// [`StoreError::Conflict`] otherwise.
pub(super) fn repeat(row: &impl Columns, new: &NewJob) -> Result<Repeat, StoreError> {
    let job = job(row)?;
    let body = content_hash(row, "body")?;
    let same_body = body == new.body || new.former_bodies.contains(&body);
    let rejected = was_rejected(&job);
    if job.id == new.id && rejected.is_some() {
        return Ok(Repeat::Rejected { job, same_body });
    }
    if same_body {
        return Ok(Repeat::Same(job));
    }
    let what = match &new.idempotency_key {
        Some(key) if job.id != new.id => format!("idempotency key {key:?}"),
        _ => format!("id {}", new.id),
    };
    let holder = match rejected {
        Some(why) => format!("was rejected: {why}"),
        None => "asks for something else: another circuit or idempotency key, or an input that is not the same byte \
                 for byte"
            .to_owned(),
    };
    Err(StoreError::Conflict { what, id: job.id, holder })
}

/// Returns why a job was rejected, if it was: no other job fails because of its input without having been started. The
/// statements have the same condition.
fn was_rejected(job: &Job) -> Option<&str> {
    let error = job.error.as_ref().filter(|e| e.class == FailureClass::BadInput)?;
    (job.state == JobState::Failed && job.attempt.number == 0).then_some(error.message.as_str())
}

/// Reads what is paused and since when, from `scope`, `name` and `since`.
pub(super) fn pause(row: &impl Columns) -> Result<(Scope, i64), StoreError> {
    let scope = match required("scope", row.text("scope")?)?.as_str() {
        "queue" => Scope::Queue,
        "circuit" => Scope::Circuit(parsed("name", &required("name", row.text("name")?)?)?),
        other => return Err(corrupt("scope", format!("expected queue or circuit, got {other:?}"))),
    };
    Ok((scope, number(row, "since")?))
}

/// Reads the load, from columns with the names of its fields.
pub(super) fn load(row: &impl Columns) -> Result<Load, StoreError> {
    Ok(Load {
        queued: number(row, "queued")?,
        running: number(row, "running")?,
        oldest_ms: number(row, "oldest_ms")?,
        ended_last_minute: number(row, "ended_last_minute")?,
    })
}

/// Reads how many inputs are sealed with a key, from `key` and `n`.
pub(super) fn inputs_of_key(row: &impl Columns) -> Result<(String, u64), StoreError> {
    Ok((required("key", row.text("key")?)?, number(row, "n")?))
}

/// Reads the counts, from rows of `state` and `n`.
pub(super) fn counts<R: Columns>(rows: &[R]) -> Result<Counts, StoreError> {
    let mut counts = Counts::default();
    for row in rows {
        let n = number(row, "n")?;
        match state(row)? {
            JobState::Queued => counts.queued = n,
            JobState::Running => counts.running = n,
            JobState::Done => counts.done = n,
            JobState::Failed => counts.failed = n,
            JobState::Cancelled => counts.cancelled = n,
        }
    }
    Ok(counts)
}

/// Returns what a failure adds to each retry budget.
pub(super) fn charges(class: FailureClass) -> Tries {
    match class {
        FailureClass::BadInput | FailureClass::Unknown => Tries::default(),
        FailureClass::Transient | FailureClass::Timeout => Tries { transient: 1, ..Tries::default() },
        FailureClass::Device | FailureClass::InvalidProof => Tries { device: 1, ..Tries::default() },
        FailureClass::LostWorker => Tries { lost: 1, ..Tries::default() },
    }
}

/// How long to keep the input of a job that failed with `class`, in milliseconds; `None` if it is deleted at once.
pub(super) fn keep_input(settings: &StoreSettings, class: FailureClass) -> Option<i64> {
    let keep = millis(settings.keep_failed_inputs);
    (keep > 0 && class != FailureClass::BadInput).then_some(keep)
}

/// Converts a duration to milliseconds, limited to about a hundred years so that sums with the time of day stay in
/// range.
pub(super) fn millis(d: std::time::Duration) -> i64 {
    const CENTURY: u128 = 100 * 366 * 86_400_000;
    d.as_millis().min(CENTURY) as i64
}

/// Clamps a progress to the range from 0 to 1; NaN counts as 0.
pub(super) fn fraction(progress: f32) -> f64 {
    if progress.is_nan() { 0.0 } else { f64::from(progress.clamp(0.0, 1.0)) }
}
