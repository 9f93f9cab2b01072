//! A store in one SQLite file, which any number of processes on this machine may use at the same time.
//!
//! **Writes.** Each process has one writing connection, so that its own writers queue in order and only processes
//! contend for the file's lock. Every change is one statement, or one transaction that takes the lock at its start
//! (`BEGIN IMMEDIATE`), so that a lock held by another process is waited for at the start and never met midway. Single
//! statements are always read to their end: SQLite commits when a statement ends, not when it returns its row, and
//! reading just one row would miss an error of the commit.
//!
//! **Durability.** Write-ahead log, `synchronous=FULL`: a confirmed change has been synced and survives loss of power.
//! `NORMAL` would sync at checkpoints only and could lose a finished job whose caller has been notified; it saves about
//! half of a change's time (0.2 of 0.4 ms on a fast disk), which is nothing compared with a proof.
//!
//! **Secrets.** Inputs are in the file as they were submitted (sealed or not) until their job ends, those of failed
//! jobs a while longer; the file is created with mode 0600. `secure_delete` then overwrites them with zeros, but the
//! log keeps older copies of the pages until it is truncated. [`Store::changed`] and [`Store::due`], which a worker
//! calls all the time, truncate it (at most every ten seconds, and only when a job has ended); so does closing the last
//! connection. What remains: inputs for up to those ten seconds, longer while another process reads without pause, and
//! whatever the file system or the disk keeps of overwritten blocks. Encrypt the disk, or the inputs before submitting
//! them, where that matters.
//!
//! **Location.** The file must be on a local disk: the log's index is shared memory, which network file systems do not
//! provide.

mod file;
mod migrate;
mod statements;
mod transactions;
mod watch;

use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use async_trait::async_trait;
use sqlx::query::Query;
use sqlx::sqlite::{
    SqliteArguments, SqliteConnectOptions, SqliteJournalMode, SqlitePool, SqlitePoolOptions, SqliteRow,
    SqliteSynchronous,
};
use sqlx::{ConnectOptions, Connection, Row, Sqlite};
use tokio::sync::Mutex;
use zeroize::Zeroizing;

use self::migrate::migrate;
use self::watch::Watch;
use super::disk;
use super::error::Cause;
use super::load::LoadCache;
use super::rows::{self, Columns, corrupt};
use super::{
    Cancelled, Claim, Counts, Due, Held, Input, JobFilter, Load, Purge, Removable, Replacement, Requeued, Retry, Scope,
    Store, StoreError, StoreSettings, Submitted, Swept,
};
use crate::model::{
    Attempt, Circuit, CircuitContent, CircuitName, ContentHash, FailureClass, Job, JobError, JobId, JobResult,
    JobState, NewJob, Stage, WorkerId,
};

/// How long SQLite waits for another process's lock.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);
/// How many times a change is tried that still meets a lock, or that others come in between.
const TRIES: u32 = 4;
/// Number of connections for reading.
const READERS: u32 = 4;

type Statement = Query<'static, Sqlite, SqliteArguments>;

impl Columns for SqliteRow {
    fn int(&self, column: &'static str) -> Result<Option<i64>, StoreError> {
        self.try_get(column).map_err(|e| corrupt(column, e))
    }

    fn real(&self, column: &'static str) -> Result<Option<f64>, StoreError> {
        self.try_get(column).map_err(|e| corrupt(column, e))
    }

    fn text(&self, column: &'static str) -> Result<Option<String>, StoreError> {
        self.try_get(column).map_err(|e| corrupt(column, e))
    }

    fn bytes(&self, column: &'static str) -> Result<Option<Vec<u8>>, StoreError> {
        self.try_get(column).map_err(|e| corrupt(column, e))
    }

    fn flag(&self, column: &'static str) -> Result<Option<bool>, StoreError> {
        Ok(self.int(column)?.map(|n| n != 0))
    }
}

/// Circuits and jobs in one SQLite file.
pub struct SqliteStore {
    path: PathBuf,
    /// Identity of that file.
    file: (u64, u64),
    /// A single connection, for which this process's writers queue.
    writer: SqlitePool,
    reader: SqlitePool,
    watch: Mutex<Watch>,
    /// What a wait for changes saw when it last polled. Not behind the lock of the connection: a wait that begins must
    /// read it before the polls of other waits update it.
    seen: std::sync::Mutex<Option<(i64, i64)>>,
    settings: StoreSettings,
    /// Whether a job ended since the log was last truncated.
    job_ended: AtomicBool,
    load: LoadCache,
}

impl std::fmt::Debug for SqliteStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SqliteStore").field("path", &self.path).finish_non_exhaustive()
    }
}

impl SqliteStore {
    /// Opens the store in the file at `path` and brings its schema up to date. A missing file is created with mode
    /// 0600, and missing parent folders with mode 0700. Several processes may do this at the same time.
    ///
    /// # Errors
    /// [`StoreError::Open`] if the file cannot be created or is another program's database,
    /// [`StoreError::NewerSchema`], [`StoreError::Database`].
    pub async fn open(path: &Path, settings: StoreSettings) -> Result<Self, StoreError> {
        file::create_private(path).map_err(|e| cannot_open(path, e))?;
        Self::connect(path, settings).await
    }

    async fn connect(path: &Path, settings: StoreSettings) -> Result<Self, StoreError> {
        let base = SqliteConnectOptions::new()
            .filename(path)
            .foreign_keys(true)
            .synchronous(SqliteSynchronous::Full)
            // Needed where a sync alone leaves data in the disk's cache (macOS); no effect elsewhere.
            .pragma("fullfsync", "ON")
            .pragma("secure_delete", "ON")
            .pragma("temp_store", "MEMORY")
            .busy_timeout(BUSY_TIMEOUT)
            .disable_statement_logging();

        // Turning the log on needs exclusive access to the file and does not wait for a lock; it is permanent once
        // done.
        let first = base.clone().journal_mode(SqliteJournalMode::Wal);
        let connection = retry_busy(|| async { Ok(first.connect().await?) }).await.map_err(|e| match e {
            StoreError::Database(e) => cannot_open(path, e),
            e => e,
        })?;
        migrate(connection, path, &settings.queue).await?;

        let pool = || {
            SqlitePoolOptions::new().test_before_acquire(false).idle_timeout(None).max_lifetime(None).after_release(
                // A connection whose transaction could not be rolled back would refuse all further transactions.
                |connection, _| Box::pin(async move { Ok(!connection.is_in_transaction()) }),
            )
        };
        Ok(Self {
            path: path.to_owned(),
            file: file::identity(path).map_err(|e| cannot_open(path, e))?,
            writer: pool().max_connections(1).connect_lazy_with(base.clone()),
            reader: pool().max_connections(READERS).connect_lazy_with(base.clone().pragma("query_only", "ON")),
            watch: Mutex::new(Watch::new(base)),
            seen: std::sync::Mutex::default(),
            settings,
            // Another process may have died before truncating the log.
            job_ended: AtomicBool::new(true),
            load: LoadCache::default(),
        })
    }

    /// Returns the path of the file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Closes the connections. The last process to do so leaves no log behind.
    pub async fn close(&self) {
        self.reader.close().await;
        self.watch.lock().await.close().await;
        self.writer.close().await;
    }

    /// Runs a statement that changes and returns at most one row, to its end.
    async fn change(&self, make: impl Fn() -> Statement + Send + Sync) -> Result<Option<SqliteRow>, StoreError> {
        retry_busy(|| async { Ok(make().fetch_all(&self.writer).await?.into_iter().next()) }).await
    }

    /// Runs a change guarded by the attempt.
    async fn guarded(&self, make: impl Fn() -> Statement + Send + Sync) -> Result<Held, StoreError> {
        held(self.change(make).await?)
    }

    /// Runs a guarded change that may end the job and, if it found nothing to change, the statement that recognises an
    /// earlier one like it, whose answer was lost.
    async fn ending(
        &self,
        change: impl Fn() -> Statement + Send + Sync,
        recognise: Statement,
    ) -> Result<Held, StoreError> {
        if let Some(row) = self.change(change).await? {
            self.note_end();
            return held(Some(row));
        }
        held(recognise.fetch_optional(&self.writer).await?)
    }

    async fn rows(&self, statement: Statement) -> Result<Vec<SqliteRow>, StoreError> {
        Ok(statement.fetch_all(&self.reader).await?)
    }

    /// Runs a statement that changes and returns several rows, and that may end jobs.
    async fn change_many(&self, make: impl Fn() -> Statement + Send + Sync) -> Result<Vec<SqliteRow>, StoreError> {
        let rows = retry_busy(|| async { Ok(make().fetch_all(&self.writer).await?) }).await?;
        if !rows.is_empty() {
            self.note_end();
        }
        Ok(rows)
    }

    fn queue(&self) -> String {
        self.settings.queue.clone()
    }

    /// Fails if the file was removed or replaced. Open connections would continue to use the old file, and what is
    /// written to it would be lost with the process.
    fn check_file(&self) -> Result<(), StoreError> {
        match file::identity(&self.path) {
            Ok(now) if now == self.file => Ok(()),
            Ok(_) => Err(cannot_open(&self.path, "the file was replaced after it was opened")),
            Err(e) => Err(cannot_open(&self.path, e)),
        }
    }

    async fn query_load(&self, at_most: Option<u64>) -> Result<Load, StoreError> {
        let at_most = at_most.map_or(-1, |n| i64::try_from(n).unwrap_or(i64::MAX));
        rows::load(&sqlx::query(statements::LOAD).bind(self.queue()).bind(at_most).fetch_one(&self.reader).await?)
    }
}

#[async_trait]
impl Store for SqliteStore {
    fn address(&self) -> String {
        self.path.display().to_string()
    }

    fn queue_name(&self) -> &str {
        &self.settings.queue
    }

    async fn put_circuit(&self, circuit: &Circuit) -> Result<Circuit, StoreError> {
        let row = self
            .change(|| {
                sqlx::query(statements::PUT_CIRCUIT)
                    .bind(circuit.name.as_str().to_owned())
                    .bind(circuit.zkey.0.to_vec())
                    .bind(circuit.wasm.map(|h| h.0.to_vec()))
                    .bind(i64::from(circuit.n_vars))
                    .bind(i64::from(circuit.n_public))
                    .bind(i64::from(circuit.domain_size))
            })
            .await?;
        rows::circuit(&row.ok_or(sqlx::Error::RowNotFound)?)
    }

    async fn circuit(&self, name: &CircuitName) -> Result<Option<Circuit>, StoreError> {
        let row = sqlx::query(statements::CIRCUIT).bind(name.as_str()).fetch_optional(&self.reader).await?;
        row.as_ref().map(rows::circuit).transpose()
    }

    async fn circuits(&self) -> Result<Vec<Circuit>, StoreError> {
        self.rows(sqlx::query(statements::CIRCUITS)).await?.iter().map(rows::circuit).collect()
    }

    async fn remove_circuit(&self, name: &CircuitName) -> Result<bool, StoreError> {
        retry_busy(|| self.remove_circuit_once(name)).await
    }

    async fn note_imported(
        &self,
        name: &CircuitName,
        content: CircuitContent,
        keep: Duration,
    ) -> Result<(), StoreError> {
        let note = || {
            sqlx::query(statements::NOTE_IMPORTED)
                .bind(name.to_string())
                .bind(content.zkey.0.to_vec())
                .bind(content.wasm.map(|h| h.0.to_vec()))
                .bind(rows::millis(keep))
        };
        self.change(note).await.map(|_| ())
    }

    async fn removable_content(&self) -> Result<Vec<Removable>, StoreError> {
        self.rows(sqlx::query(statements::REMOVABLE_CONTENT)).await?.iter().map(rows::removable).collect()
    }

    async fn forget_removable(&self, record: &Removable) -> Result<(), StoreError> {
        self.change(|| sqlx::query(statements::FORGET_REMOVABLE).bind(record.number)).await.map(|_| ())
    }

    async fn submit(&self, new: &NewJob, input: Input<'_>) -> Result<Submitted, StoreError> {
        self.check_file()?;
        retry_busy(|| self.submit_once(new, input)).await
    }

    async fn reject(&self, new: &NewJob, error: &JobError) -> Result<Submitted, StoreError> {
        self.check_file()?;
        retry_busy(|| self.reject_once(new, error)).await
    }

    async fn job(&self, job: JobId) -> Result<Option<Job>, StoreError> {
        let row = sqlx::query(statements::JOB).bind(id(job)).fetch_optional(&self.reader).await?;
        row.as_ref().map(rows::job).transpose()
    }

    async fn unfinished(&self, ids: &[JobId]) -> Result<Vec<JobId>, StoreError> {
        let ids: Vec<_> = ids.iter().map(|job| job.0.simple().to_string()).collect();
        let ids = serde_json::to_string(&ids).map_err(|e| corrupt("id", e))?;
        self.rows(sqlx::query(statements::STILL_UNFINISHED).bind(ids)).await?.iter().map(rows::job_id).collect()
    }

    async fn jobs(&self, filter: JobFilter) -> Result<Vec<Job>, StoreError> {
        let sql = match (filter.state, &filter.circuit, &filter.idempotency_key) {
            (_, _, Some(_)) => statements::JOBS_BY_KEY,
            (None, None, None) => statements::JOBS,
            (Some(_), None, None) => statements::JOBS_IN,
            (None, Some(_), None) => statements::JOBS_OF,
            (Some(_), Some(_), None) => statements::JOBS_OF_IN,
        };
        let statement = sqlx::query(sql)
            .bind(self.queue())
            .bind(i64::from(filter.limit))
            .bind(filter.state.map(JobState::as_str))
            .bind(filter.circuit.map(|c| c.as_str().to_owned()))
            .bind(filter.before.map(id))
            .bind(filter.idempotency_key.map(String::from));
        self.rows(statement).await?.iter().map(rows::job).collect()
    }

    async fn claim(&self, job: JobId, worker: &WorkerId, lease: Duration) -> Result<Option<Claim>, StoreError> {
        let row = self
            .change(|| sqlx::query(statements::CLAIM).bind(id(job)).bind(worker.0.clone()).bind(rows::millis(lease)))
            .await?;
        let Some(row) = row else {
            if self.change(|| sqlx::query(statements::CANCEL_LAPSED).bind(id(job))).await?.is_some() {
                self.note_end();
            }
            return Ok(None);
        };
        let (claimed, input) = (rows::job(&row)?, row.bytes("input")?.map(Zeroizing::new));
        let (Some(input), Some(input_key)) = (input, row.text("input_key")?) else {
            // Damaged from outside: no transaction of this store leaves an unfinished job without its input. The job
            // fails here, because no worker could process it and its lease would lapse again and again.
            let message = "its input is missing from the database".to_owned();
            let error = JobError { class: FailureClass::BadInput, message };
            self.fail(job, claimed.attempt, &error, Retry::Never).await?;
            return Ok(None);
        };
        Ok(Some(Claim { job: claimed, input: Some(input), input_key }))
    }

    async fn input(&self, job: JobId, attempt: Attempt) -> Result<Option<Zeroizing<Vec<u8>>>, StoreError> {
        let row = fenced(statements::INPUT, job, attempt).fetch_optional(&self.reader).await?;
        Ok(row.map(|r| r.bytes("input")).transpose()?.flatten().map(Zeroizing::new))
    }

    async fn heartbeat(
        &self,
        job: JobId,
        attempt: Attempt,
        lease: Duration,
        stage: Stage,
        progress: f32,
    ) -> Result<Held, StoreError> {
        self.guarded(|| {
            fenced(statements::HEARTBEAT, job, attempt)
                .bind(rows::millis(lease))
                .bind(stage.as_str())
                .bind(rows::fraction(progress))
        })
        .await
    }

    async fn finish(&self, job: JobId, attempt: Attempt, result: &JobResult) -> Result<Held, StoreError> {
        let json = serde_json::to_string(result).map_err(|e| corrupt("result", e))?;
        let statement = |sql| fenced(sql, job, attempt).bind(json.clone());
        self.ending(|| statement(statements::FINISH), statement(statements::FINISHED)).await
    }

    async fn fail(&self, job: JobId, attempt: Attempt, error: &JobError, retry: Retry) -> Result<Held, StoreError> {
        let charge = rows::charges(error.class);
        let statement = |sql| {
            fenced(sql, job, attempt)
                .bind(i64::from(charge.transient))
                .bind(i64::from(charge.device))
                .bind(i64::from(charge.lost))
                .bind(error.class.as_str())
                .bind(error.message.clone())
        };
        let failed = fenced(statements::FAILED, job, attempt).bind(error.class.as_str()).bind(error.message.clone());
        match retry {
            Retry::Never => {
                let keep = rows::keep_input(&self.settings, error.class);
                self.ending(|| statement(statements::FAIL_FOR_GOOD).bind(keep), failed).await
            }
            Retry::After(delay) => {
                self.ending(|| statement(statements::FAIL_RETRY).bind(rows::millis(delay)), failed).await
            }
        }
    }

    async fn release(&self, job: JobId, attempt: Attempt) -> Result<Held, StoreError> {
        let statement = |sql| fenced(sql, job, attempt);
        self.ending(|| statement(statements::RELEASE), statement(statements::RELEASED)).await
    }

    async fn confirm_cancel(&self, job: JobId, attempt: Attempt) -> Result<Held, StoreError> {
        for _ in 0..TRIES {
            if let Some(row) = self.change(|| fenced(statements::CONFIRM_CANCEL, job, attempt)).await? {
                self.note_end();
                return held(Some(row));
            }
            let look = fenced(statements::HELD_OR_CANCELLED, job, attempt);
            let Some(row) = look.fetch_optional(&self.writer).await? else { return Ok(Held::Lost) };
            let state = rows::state(&row)?;
            match held(Some(row))? {
                // Cancellation was requested between the two. A request stays until the attempt ends.
                Held::Yes { cancel: true } if state == JobState::Running => {}
                held => return Ok(held),
            }
        }
        Err(StoreError::Contended(job))
    }

    async fn cancel(&self, job: JobId) -> Result<Option<Cancelled>, StoreError> {
        self.check_file()?;
        for _ in 0..TRIES {
            if let Some(row) = self.change(|| sqlx::query(statements::CANCEL).bind(id(job))).await? {
                return Ok(Some(if rows::state(&row)? == JobState::Running {
                    Cancelled::Requested
                } else {
                    self.note_end();
                    Cancelled::Now
                }));
            }
            let row = sqlx::query(statements::JOB_STATE).bind(id(job)).fetch_optional(&self.writer).await?;
            match row.as_ref().map(rows::state).transpose()? {
                None => return Ok(None),
                Some(state) if state.is_final() => return Ok(Some(Cancelled::TooLate(state))),
                // The job was queued again, or submitted, in between.
                Some(_) => {}
            }
        }
        Err(StoreError::Contended(job))
    }

    async fn requeue(
        &self,
        job: JobId,
        input: Option<Replacement<'_>>,
        start_within: Option<Duration>,
    ) -> Result<Requeued, StoreError> {
        self.check_file()?;
        retry_busy(|| self.requeue_once(job, input, start_within)).await
    }

    async fn set_paused(&self, scope: &Scope, paused: bool) -> Result<bool, StoreError> {
        self.check_file()?;
        let sql = if paused { statements::PAUSE } else { statements::RESUME };
        let (what, name) = match scope {
            Scope::Queue => ("queue", self.queue()),
            Scope::Circuit(name) => ("circuit", name.as_str().to_owned()),
        };
        Ok(self.change(|| sqlx::query(sql).bind(what).bind(name.clone())).await?.is_some())
    }

    async fn paused(&self) -> Result<Vec<(Scope, i64)>, StoreError> {
        self.rows(sqlx::query(statements::PAUSED).bind(self.queue())).await?.iter().map(rows::pause).collect()
    }

    async fn due(&self, limit: u32) -> Result<Vec<Due>, StoreError> {
        self.truncate_log_if_due(&mut *self.watch.lock().await).await?;
        let rows = self.rows(sqlx::query(statements::DUE).bind(self.queue()).bind(i64::from(limit))).await?;
        rows.iter().map(rows::due).collect()
    }

    async fn changed(&self, at_most: Duration) -> Result<(), StoreError> {
        self.wait_for_change(at_most).await
    }

    async fn sweep(&self, limit: u32) -> Result<Swept, StoreError> {
        let limit = i64::from(limit);
        let keep = rows::keep_input(&self.settings, FailureClass::Timeout);
        let expired =
            self.change_many(|| sqlx::query(statements::EXPIRE).bind(self.queue()).bind(limit).bind(keep)).await?;
        let inputs = self.change_many(|| sqlx::query(statements::END_INPUTS).bind(limit)).await?.len() as u64;
        Ok(Swept { expired: expired.iter().map(rows::job_id).collect::<Result<_, _>>()?, inputs })
    }

    async fn purgeable(&self, which: &Purge<'_>, limit: u32, skip: u32) -> Result<Vec<JobId>, StoreError> {
        // Jobs that have not ended have no end time, so their states do no harm here.
        let states = serde_json::to_string(which.states).map_err(|e| corrupt("state", e))?;
        let query = sqlx::query(statements::PURGEABLE)
            .bind(self.queue())
            .bind(i64::from(limit))
            .bind(rows::millis(which.older_than))
            .bind(states)
            .bind(i64::from(skip));
        self.rows(query).await?.iter().map(rows::job_id).collect()
    }

    async fn purge(&self, which: &Purge<'_>, jobs: &[JobId]) -> Result<Vec<JobId>, StoreError> {
        let ids: Vec<_> = jobs.iter().map(|job| job.0.simple().to_string()).collect();
        let ids = serde_json::to_string(&ids).map_err(|e| corrupt("id", e))?;
        let states = serde_json::to_string(which.states).map_err(|e| corrupt("state", e))?;
        let older_than = rows::millis(which.older_than);
        let purge = || sqlx::query(statements::PURGE).bind(ids.clone()).bind(older_than).bind(states.clone());
        self.change_many(purge).await?.iter().map(rows::job_id).collect()
    }

    async fn settle_circuit(&self, _: &CircuitName) -> Result<(), StoreError> {
        // One writer at a time: whoever has read the circuit has written its job.
        Ok(())
    }

    async fn load(&self) -> Result<Load, StoreError> {
        self.load.load(|at_most| self.query_load(at_most)).await
    }

    async fn content_in_use(&self) -> Result<Vec<ContentHash>, StoreError> {
        self.rows(sqlx::query(statements::CONTENT_IN_USE))
            .await?
            .iter()
            .map(|r| rows::content_hash(r, "content"))
            .collect()
    }

    async fn counts(&self) -> Result<Counts, StoreError> {
        rows::counts(&self.rows(sqlx::query(statements::COUNTS).bind(self.queue())).await?)
    }

    async fn inputs_held(&self) -> Result<Vec<(String, u64)>, StoreError> {
        self.rows(sqlx::query(statements::INPUTS_HELD)).await?.iter().map(rows::inputs_of_key).collect()
    }

    async fn ping(&self) -> Result<(), StoreError> {
        self.check_file()?;
        sqlx::query("PRAGMA schema_version").fetch_one(&self.reader).await?;
        let folder = self.path.parent().unwrap_or(Path::new("")).to_owned();
        // A task that could not run says nothing about the disk.
        let tried = tokio::task::spawn_blocking(move || disk::check_writable(&folder)).await;
        match tried {
            Ok(Err(e)) => Err(StoreError::Unwritable { what: self.address(), why: e.into() }),
            _ => Ok(()),
        }
    }
}

/// The error for a file that cannot be used as a store.
fn cannot_open(path: &Path, why: impl Into<Cause>) -> StoreError {
    StoreError::Open { what: path.display().to_string(), why: why.into() }
}

fn id(job: JobId) -> Vec<u8> {
    job.0.as_bytes().to_vec()
}

/// A statement whose first three parameters are the submission and the number of the attempt, and the job.
fn fenced(sql: &'static str, job: JobId, attempt: Attempt) -> Statement {
    sqlx::query(sql).bind(attempt.submission).bind(i64::from(attempt.number)).bind(id(job))
}

fn held(row: Option<SqliteRow>) -> Result<Held, StoreError> {
    match row {
        None => Ok(Held::Lost),
        Some(r) => Ok(Held::Yes { cancel: r.flag("cancel_requested")?.unwrap_or_default() }),
    }
}

/// Retries, a bounded number of times, an attempt that met a lock and so changed nothing.
async fn retry_busy<T, F, R>(attempt: F) -> Result<T, StoreError>
where
    F: Fn() -> R,
    R: Future<Output = Result<T, StoreError>>,
{
    let mut tries = 1;
    loop {
        match attempt().await {
            Err(e) if e.is_lock_timeout() && tries < TRIES => {
                tokio::time::sleep(Duration::from_millis(20) * tries).await;
                tries += 1;
            }
            done => return done,
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::time::Instant;

    use super::watch::TRUNCATE_EVERY;
    use super::*;
    use crate::model::Priority;

    /// Without hints, SQLite uses the index on the state for most of these, and sorts.
    #[tokio::test]
    async fn looks_go_by_their_indexes() {
        let folder = tempfile::tempdir().unwrap();
        let store = SqliteStore::open(&folder.path().join("jobs.db"), StoreSettings::default()).await.unwrap();
        let mut wrong = Vec::new();
        for (sql, expected) in [
            (
                statements::DUE,
                &[
                    "SEARCH jobs USING INDEX jobs_queued (queue=?)",
                    "SEARCH jobs USING COVERING INDEX jobs_waiting (queue=? AND circuit=?)",
                    "SEARCH j USING COVERING INDEX jobs_waiting (queue=? AND circuit>?)",
                    "SEARCH jobs USING INDEX jobs_running (queue=? AND lease_expires_at<?)",
                ][..],
            ),
            (
                statements::LOAD,
                &[
                    "SEARCH jobs USING COVERING INDEX jobs_queued (queue=?)",
                    "SEARCH jobs USING COVERING INDEX jobs_running (queue=?)",
                    "SEARCH jobs USING COVERING INDEX jobs_ended (queue=? AND finished_at>?)",
                ],
            ),
            (statements::EXPIRE, &["SEARCH jobs USING COVERING INDEX jobs_expiring (queue=? AND start_by<?)"]),
            (statements::END_INPUTS, &["SEARCH job_inputs USING COVERING INDEX job_inputs_expiring (expires_at<?)"]),
            (statements::PURGEABLE, &["SEARCH jobs USING INDEX jobs_ended (queue=? AND finished_at<?)"]),
            (statements::PURGE, &["SEARCH jobs USING INDEX sqlite_autoindex_jobs_1 (id=?)"]),
            (statements::UNFINISHED, &["SEARCH jobs USING COVERING INDEX jobs_unfinished (circuit=? AND state=?)"]),
            (statements::CONTENT_IN_USE, &["SCAN jobs USING COVERING INDEX jobs_unfinished"]),
            (statements::JOBS, &["SEARCH jobs USING INDEX jobs_in_order (queue=? AND seq<?)"]),
            (statements::JOBS_IN, &["SEARCH jobs USING INDEX jobs_by_state (queue=? AND state=? AND seq<?)"]),
            (statements::JOBS_OF, &["SEARCH jobs USING INDEX jobs_by_circuit (queue=? AND circuit=? AND seq<?)"]),
            (statements::JOBS_OF_IN, &["SEARCH jobs USING INDEX jobs_by_circuit (queue=? AND circuit=? AND seq<?)"]),
            (
                statements::JOBS_BY_KEY,
                &["SEARCH jobs USING INDEX sqlite_autoindex_jobs_2 (queue=? AND idempotency_key=?)"],
            ),
            (statements::COUNTS, &["SEARCH jobs USING COVERING INDEX jobs_by_state (queue=?)"]),
            (statements::SAME_JOB, &["_jobs_1 (id=?)", "_jobs_2 (queue=? AND idempotency_key=?)"]),
            (statements::CLAIM, &["SEARCH jobs USING INDEX sqlite_autoindex_jobs_1 (id=?)"]),
            (statements::INPUT, &["SEARCH job_inputs USING INTEGER PRIMARY KEY (rowid=?)"]),
            (statements::FINISH, &["SEARCH jobs USING INTEGER PRIMARY KEY (rowid=?)"]),
            (statements::FINISHED, &["SEARCH jobs USING INTEGER PRIMARY KEY (rowid=?)"]),
            (statements::FAILED, &["SEARCH jobs USING INTEGER PRIMARY KEY (rowid=?)"]),
            (statements::RELEASED, &["SEARCH jobs USING INTEGER PRIMARY KEY (rowid=?)"]),
            (statements::HELD_OR_CANCELLED, &["SEARCH jobs USING INTEGER PRIMARY KEY (rowid=?)"]),
            (statements::REQUEUEABLE, &["SEARCH jobs USING INDEX sqlite_autoindex_jobs_1 (id=?)"]),
        ] {
            let explain = sqlx::AssertSqlSafe(format!("EXPLAIN QUERY PLAN {sql}"));
            let rows = sqlx::query(explain).fetch_all(&store.reader).await.unwrap();
            let plan: Vec<String> = rows.iter().map(|r| r.text("detail").unwrap().unwrap()).collect();
            // Expected to sort: due jobs of both kinds, and two jobs that one may be the same as.
            let sorts = plan.iter().filter(|p| p.contains("TEMP B-TREE FOR ORDER BY")).count();
            let sorted = usize::from([statements::DUE, statements::SAME_JOB].contains(&sql));
            let missing: Vec<_> = expected.iter().filter(|e| !plan.iter().any(|p| p.contains(**e))).collect();
            if !missing.is_empty() || plan.iter().any(|p| p == "SCAN jobs") || sorts != sorted {
                wrong.push(format!("{sql}\n  goes by {plan:#?}\n  and lacks {missing:#?}"));
            }
        }
        assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    }

    fn input(bytes: &[u8]) -> Input<'_> {
        Input { bytes, key: "" }
    }

    async fn with_circuit(folder: &Path) -> (SqliteStore, NewJob) {
        let store = SqliteStore::open(&folder.join("jobs.db"), StoreSettings::default()).await.unwrap();
        let hash = crate::model::ContentHash([1; 32]);
        let name: CircuitName = "c".parse().unwrap();
        let circuit = Circuit {
            name: name.clone(),
            zkey: hash,
            wasm: None,
            n_vars: 1,
            n_public: 0,
            domain_size: 1,
            created_at: 0,
        };
        store.put_circuit(&circuit).await.unwrap();
        let id = JobId::new();
        let new = NewJob {
            id,
            circuit: name,
            idempotency_key: None,
            body: hash,
            former_bodies: Vec::new(),
            priority: Priority(0),
            start_within: None,
        };
        (store, new)
    }

    #[tokio::test]
    async fn the_log_is_truncated_in_passing_and_not_while_somebody_reads() {
        let folder = tempfile::tempdir().unwrap();
        let (store, new) = with_circuit(folder.path()).await;
        store.submit(&new, input(b"input")).await.unwrap();
        let log = folder.path().join("jobs.db-wal");
        let size = || std::fs::metadata(&log).unwrap().len();
        let long_ago = Instant::now().checked_sub(TRUNCATE_EVERY).unwrap();

        let mut reading = store.reader.begin().await.unwrap();
        sqlx::query(statements::COUNTS).bind("prove").fetch_all(&mut *reading).await.unwrap();
        store.cancel(new.id).await.unwrap();
        assert!(!store.truncate_log().await.unwrap());
        reading.rollback().await.unwrap();
        assert!(size() > 0);

        store.changed(Duration::ZERO).await.unwrap();
        assert!(size() > 0, "the last try was just now");
        store.watch.lock().await.truncated = long_ago;
        store.changed(Duration::ZERO).await.unwrap();
        assert_eq!(size(), 0);

        store.submit(&NewJob { id: JobId::new(), ..new }, input(b"input")).await.unwrap();
        store.watch.lock().await.truncated = long_ago;
        store.due(1).await.unwrap();
        assert!(size() > 0, "no job has ended since");
    }

    #[tokio::test]
    async fn a_full_disk_refuses_a_job_and_spoils_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let (store, new) = with_circuit(folder.path()).await;
        let full = "PRAGMA max_page_count = 40";
        sqlx::query(full).fetch_all(&store.writer).await.unwrap();
        for _ in 0..3 {
            let refused = store.submit(&new, input(&[7; 1_000_000])).await;
            assert!(matches!(refused, Err(StoreError::Database(_))), "{refused:?}");
            assert_eq!(store.job(new.id).await.unwrap(), None);
            // On a connection that was replaced there is space again.
            sqlx::query(full).fetch_all(&store.writer).await.unwrap();
        }
        store.submit(&new, input(b"a small one")).await.unwrap();
        assert_eq!(store.inputs_held().await.unwrap(), [(String::new(), 1)]);
    }
}
