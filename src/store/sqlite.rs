//! The store over one SQLite file, which any number of processes on this machine may use at once.
//!
//! **Writes.** Each process has one writing connection, so that its own writers queue in order and only processes
//! contend for the file's lock. Every change is one statement, or one transaction that takes the lock at its start
//! (`BEGIN IMMEDIATE`), so a lock that is held elsewhere is waited for and never met half-way. Single statements are
//! always read to their end: SQLite commits when a statement ends, not when it returns its row, and reading just one
//! row would miss an error of the commit.
//!
//! **Durability.** Write-ahead log, `synchronous=FULL`: an answered change has been synced and survives loss of power.
//! `NORMAL` would sync at checkpoints only and could forget a finished job whose caller has been told; it saves about
//! half of a change's time (0.2 of 0.4 ms on a fast disk), which is nothing beside a proof.
//!
//! **Secrets.** Inputs lie in the file as they were handed in (sealed or not) until their job ends, those of failed
//! jobs a while longer; the file is created with mode 0600.
//! `secure_delete` then overwrites them with zeros, but the log keeps older copies of the pages until it is
//! truncated. [`Store::changed`] and [`Store::due`], which a worker calls all the time, do that (at most every
//! ten seconds, and only when a job has ended); so does closing the last connection. What remains: up to
//! those ten seconds, longer while another process reads without pause, and whatever the file system or the disk
//! keeps of overwritten blocks. Encrypt the disk, or the inputs before they come here, where that matters.
//!
//! **Where.** The file must be on a local disk: the log's index is shared memory, which network file systems do not
//! have.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use sqlx::query::Query;
use sqlx::sqlite::{
    SqliteArguments, SqliteConnectOptions, SqliteConnection, SqliteJournalMode, SqlitePool, SqlitePoolOptions,
    SqliteRow, SqliteSynchronous,
};
use sqlx::{ConnectOptions, Connection, Row, Sqlite};
use tokio::sync::Mutex;
use zeroize::Zeroizing;

use super::load::Known;
use super::room;
use super::rows::{self, Columns, Repeat, corrupt};
use super::words::plainly;
use super::{
    Cancelled, Claim, Counts, Due, Held, Input, JobFilter, Load, Replacement, Requeued, Retry, Scope, Store,
    StoreError, StoreSettings, Submitted, Swept,
};
use crate::model::{
    Attempt, Circuit, CircuitName, ContentHash, FailureClass, Job, JobError, JobId, JobResult, JobState, NewJob, Stage,
    WorkerId, io_reason, locked,
};

/// Schema versions in order: the first makes version 1 of version 0, and so on. Never edit one that was released.
const MIGRATIONS: [&str; 3] = [
    include_str!("../../migrations/sqlite/0001_jobs.sql"),
    include_str!("../../migrations/sqlite/0002_fleet.sql"),
    include_str!("../../migrations/sqlite/0003_waiting.sql"),
];

/// Marks a file as ours ("PrvW"), so that another program's database is not taken for an empty one.
const APPLICATION_ID: i64 = 0x5072_7657;

/// How long SQLite waits for another process's lock.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);
/// How often a change that still met a lock is tried.
const BUSY_TRIES: u32 = 4;
/// How long a checkpoint waits for readers; short, since writers wait behind it.
const CHECKPOINT_TIMEOUT: Duration = Duration::from_millis(50);
/// How often at most the log is truncated.
const TIDY_EVERY: Duration = Duration::from_secs(10);
/// How often a wait for changes looks.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// Connections for reading.
const READERS: u32 = 4;

// The statements. `now!()` is the same throughout one statement.

macro_rules! now {
    () => {
        "CAST(round(unixepoch('subsec') * 1000) AS INTEGER)"
    };
}
/// What lists show of a job: all but what may be large.
macro_rules! small_job_columns {
    () => {
        "id, queue, circuit, zkey, wasm, idempotency_key, priority, state, stage, progress, attempt, tries_transient, \
         tries_device, tries_lost, worker, error_class, error_message, cancel_requested, created_at, run_at, start_by, \
         started_at, finished_at, lease_expires_at"
    };
}
macro_rules! job_columns {
    () => {
        concat!(small_job_columns!(), ", history, result")
    };
}
macro_rules! circuit_columns {
    () => {
        "name, zkey, wasm, n_vars, n_public, domain_size, created_at"
    };
}
/// The fence: the job is running, and by this attempt.
macro_rules! held {
    () => {
        "WHERE id = ?1 AND attempt = ?2 AND state = 'running'"
    };
}

/// The queued job's time to be begun is not over.
macro_rules! in_time {
    () => {
        concat!("(start_by IS NULL OR start_by > ", now!(), ")")
    };
}
/// The job's circuit is not held back.
macro_rules! circuit_goes {
    () => {
        "circuit NOT IN (SELECT name FROM pauses WHERE scope = 'circuit')"
    };
}
/// A worker had the job before. One that goes on failing waits in its turn, lest it is always first.
macro_rules! came_again {
    () => {
        "(attempt > 0 AND tries_transient < 2)"
    };
}
/// Some circuit is held back.
macro_rules! some_circuit_held {
    () => {
        "EXISTS (SELECT 1 FROM pauses WHERE scope = 'circuit')"
    };
}
/// The queue, the first parameter, is not held back.
macro_rules! queue_goes {
    () => {
        "NOT EXISTS (SELECT 1 FROM pauses WHERE scope = 'queue' AND name = ?1)"
    };
}
/// The history with the present attempt added, and why it failed.
macro_rules! history_with {
    ($class:expr, $message:expr) => {
        concat!(
            "json_insert(iif(json_array_length(history) >= 50, json_remove(history, '$[0]'), history), '$[#]', ",
            "json_object('attempt', attempt, 'worker', worker, 'at', ",
            now!(),
            ", 'error', json_object('class', ",
            $class,
            ", 'message', ",
            $message,
            ")))"
        )
    };
}

const PUT_CIRCUIT: &str = concat!(
    "INSERT INTO circuits (",
    circuit_columns!(),
    ") VALUES (?1, ?2, ?3, ?4, ?5, ?6, ",
    now!(),
    ") ON CONFLICT (name) DO UPDATE SET zkey = excluded.zkey, wasm = excluded.wasm, n_vars = excluded.n_vars, ",
    "n_public = excluded.n_public, domain_size = excluded.domain_size, created_at = ",
    "iif(zkey = excluded.zkey AND wasm IS excluded.wasm, created_at, excluded.created_at) RETURNING ",
    circuit_columns!()
);
const CIRCUIT: &str = concat!("SELECT ", circuit_columns!(), " FROM circuits WHERE name = ?1");
const CIRCUITS: &str = concat!("SELECT ", circuit_columns!(), " FROM circuits ORDER BY name");
const UNFINISHED: &str =
    "SELECT count(*) AS n FROM jobs INDEXED BY jobs_unfinished WHERE circuit = ?1 AND state IN ('queued', 'running')";
const REMOVE_CIRCUIT: &str = "DELETE FROM circuits WHERE name = ?1";

/// Content that unfinished jobs of any queue need.
const CONTENT_IN_USE: &str = "SELECT zkey AS content FROM jobs INDEXED BY jobs_unfinished \
                              WHERE state IN ('queued', 'running') \
                              UNION SELECT wasm FROM jobs INDEXED BY jobs_unfinished \
                              WHERE state IN ('queued', 'running') AND wasm IS NOT NULL \
                              UNION SELECT zkey FROM job_inputs CROSS JOIN jobs ON seq = job \
                              WHERE expires_at IS NOT NULL \
                              UNION SELECT wasm FROM job_inputs CROSS JOIN jobs ON seq = job \
                              WHERE expires_at IS NOT NULL AND wasm IS NOT NULL";

/// The job was refused before it could be queued.
macro_rules! rejected {
    () => {
        "(state = 'failed' AND attempt = 0 AND error_class = 'bad_input')"
    };
}
/// The job that has this id or else, in this queue, this key. One that was rejected makes way, so that it comes last.
const SAME_JOB: &str = concat!(
    "SELECT body, ",
    job_columns!(),
    " FROM jobs WHERE id = ?1 OR (queue = ?2 AND idempotency_key = ?3) ",
    "ORDER BY (id = ?1) * iif(",
    rejected!(),
    ", -1, 1) DESC LIMIT 1"
);
/// Makes room for another of its id.
const FORGET_REJECTED: &str = concat!("DELETE FROM jobs WHERE id = ?1 AND ", rejected!());
const INSERT_JOB: &str = concat!(
    "INSERT INTO jobs (id, queue, circuit, zkey, wasm, body, idempotency_key, priority, created_at, run_at, start_by) ",
    "SELECT ?1, ?2, name, zkey, wasm, ?4, ?5, ?6, ",
    now!(),
    ", ",
    now!(),
    ", ",
    now!(),
    " + ?7 FROM circuits WHERE name = ?3 RETURNING seq, ",
    job_columns!()
);
const INSERT_FAILED: &str = concat!(
    "INSERT INTO jobs (id, queue, circuit, zkey, wasm, body, idempotency_key, priority, state, error_class, ",
    "error_message, created_at, run_at, finished_at) VALUES (?1, ?2, ?3, ",
    "coalesce((SELECT zkey FROM circuits WHERE name = ?3), zeroblob(32)), ",
    "(SELECT wasm FROM circuits WHERE name = ?3), ?4, ?5, ?6, 'failed', ?7, ?8, ",
    now!(),
    ", ",
    now!(),
    ", ",
    now!(),
    ") RETURNING ",
    job_columns!()
);
const INSERT_INPUT: &str = "INSERT OR REPLACE INTO job_inputs (job, key, input) VALUES (?1, ?2, ?3)";
const KEEP_INPUT: &str = "UPDATE job_inputs SET expires_at = NULL WHERE job = ?1";

const JOB: &str = concat!("SELECT ", job_columns!(), " FROM jobs WHERE id = ?1");
const JOB_STATE: &str = "SELECT state FROM jobs WHERE id = ?1";
macro_rules! list {
    ($by:expr) => {
        concat!(
            "SELECT ",
            small_job_columns!(),
            ", '[]' AS history, NULL AS result FROM jobs ",
            $by,
            " AND seq < coalesce((SELECT seq FROM jobs WHERE id = ?5), 9223372036854775807) ORDER BY seq DESC LIMIT ?2"
        )
    };
}
const JOBS: &str = list!("INDEXED BY jobs_in_order WHERE queue = ?1");
const JOBS_IN: &str = list!("INDEXED BY jobs_by_state WHERE queue = ?1 AND state = ?3");
const JOBS_OF: &str = list!("INDEXED BY jobs_by_circuit WHERE queue = ?1 AND circuit = ?4");
const JOBS_OF_IN: &str = list!("INDEXED BY jobs_by_circuit WHERE queue = ?1 AND circuit = ?4 AND state = ?3");
const JOBS_BY_KEY: &str =
    list!("WHERE queue = ?1 AND idempotency_key = ?6 AND (?3 IS NULL OR state = ?3) AND (?4 IS NULL OR circuit = ?4)");

const CLAIM: &str = concat!(
    "UPDATE jobs SET tries_lost = tries_lost + (state = 'running'), history = iif(state = 'running', ",
    history_with!("'lost_worker'", "'worker ' || coalesce(worker, '?') || ' fell silent; its lease lapsed'"),
    ", history), state = 'running', attempt = attempt + 1, worker = ?2, stage = 'load', progress = 0, ",
    "start_by = NULL, started_at = coalesce(started_at, ",
    now!(),
    "), lease_expires_at = ",
    now!(),
    " + ?3 WHERE id = ?1 AND ((state = 'queued' AND run_at <= ",
    now!(),
    " AND ",
    in_time!(),
    ") OR (state = 'running' AND lease_expires_at <= ",
    now!(),
    " AND NOT cancel_requested)) AND ",
    circuit_goes!(),
    " AND queue NOT IN (SELECT name FROM pauses WHERE scope = 'queue') ",
    "RETURNING (SELECT input FROM job_inputs WHERE job = jobs.seq) AS input, ",
    "(SELECT key FROM job_inputs WHERE job = jobs.seq) AS input_key, ",
    job_columns!()
);
/// A lapsed job that somebody wanted cancelled: nobody is left to confirm it, and it must not run again.
const CANCEL_LAPSED: &str = concat!(
    "UPDATE jobs SET state = 'cancelled', finished_at = ",
    now!(),
    ", stage = NULL, lease_expires_at = NULL WHERE id = ?1 AND state = 'running' AND cancel_requested ",
    "AND lease_expires_at <= ",
    now!(),
    " RETURNING id"
);
const HEARTBEAT: &str = concat!(
    "UPDATE jobs SET lease_expires_at = ",
    now!(),
    " + ?3, stage = ?4, progress = ?5 ",
    held!(),
    " RETURNING cancel_requested"
);
const FINISH: &str = concat!(
    "UPDATE jobs SET state = 'done', result = ?3, error_class = NULL, error_message = NULL, stage = NULL, ",
    "progress = 1, lease_expires_at = NULL, finished_at = ",
    now!(),
    " ",
    held!(),
    " RETURNING cancel_requested"
);
/// Queued again after a failure, unless somebody wants it cancelled. ?8 is the delay.
const FAIL_RETRY: &str = concat!(
    "UPDATE jobs SET tries_transient = tries_transient + ?3, tries_device = tries_device + ?4, ",
    "tries_lost = tries_lost + ?5, error_class = ?6, error_message = ?7, history = ",
    history_with!("?6", "?7"),
    ", state = iif(cancel_requested, 'cancelled', 'queued'), finished_at = iif(cancel_requested, ",
    now!(),
    ", NULL), run_at = iif(cancel_requested, run_at, ",
    now!(),
    " + ?8), progress = iif(cancel_requested, progress, 0), stage = NULL, lease_expires_at = NULL ",
    held!(),
    " RETURNING cancel_requested"
);
/// ?8 is how long the input is kept.
const FAIL_FOR_GOOD: &str = concat!(
    "UPDATE jobs SET tries_transient = tries_transient + ?3, tries_device = tries_device + ?4, ",
    "tries_lost = tries_lost + ?5, error_class = ?6, error_message = ?7, history = ",
    history_with!("?6", "?7"),
    ", state = 'failed', finished_at = ",
    now!(),
    ", keep_input_until = ",
    now!(),
    " + ?8, stage = NULL, lease_expires_at = NULL ",
    held!(),
    " RETURNING cancel_requested"
);
const RELEASE: &str = concat!(
    "UPDATE jobs SET state = iif(cancel_requested, 'cancelled', 'queued'), finished_at = iif(cancel_requested, ",
    now!(),
    ", NULL), run_at = iif(cancel_requested, run_at, ",
    now!(),
    "), progress = iif(cancel_requested, progress, 0), stage = NULL, lease_expires_at = NULL ",
    held!(),
    " RETURNING cancel_requested"
);
const CONFIRM_CANCEL: &str = concat!(
    "UPDATE jobs SET state = 'cancelled', finished_at = ",
    now!(),
    ", stage = NULL, lease_expires_at = NULL ",
    held!(),
    " AND cancel_requested RETURNING cancel_requested"
);
const HOLDS: &str = concat!("SELECT cancel_requested FROM jobs ", held!());
const CANCEL: &str = concat!(
    "UPDATE jobs SET cancel_requested = (state = 'running'), finished_at = iif(state = 'queued', ",
    now!(),
    ", NULL), state = iif(state = 'queued', 'cancelled', state) ",
    "WHERE id = ?1 AND state IN ('queued', 'running') RETURNING state"
);

/// `gone`: what it is to be proved with is registered under no name any more.
const REQUEUEABLE: &str = "SELECT seq, state, circuit, body, \
                           EXISTS (SELECT 1 FROM job_inputs WHERE job = jobs.seq) AS held, \
                           zkey = zeroblob(32) AND circuit NOT IN (SELECT name FROM circuits) AS adrift, \
                           zkey <> zeroblob(32) AND (zkey NOT IN (SELECT c.zkey FROM circuits c) \
                           OR (wasm IS NOT NULL AND wasm NOT IN \
                           (SELECT c.wasm FROM circuits c WHERE c.wasm IS NOT NULL))) AS gone \
                           FROM jobs WHERE id = ?1";
/// A job that was refused before it had a circuit takes what is registered under the name now. ?2 is how long it may wait, ?3
/// what repeats it.
const REQUEUE: &str = concat!(
    "UPDATE jobs SET state = 'queued', run_at = ",
    now!(),
    ", start_by = ",
    now!(),
    " + ?2, body = ?3, finished_at = NULL, keep_input_until = NULL, tries_transient = 0, tries_device = 0, ",
    "tries_lost = 0, error_class = NULL, error_message = NULL, cancel_requested = 0, progress = 0, ",
    "wasm = iif(zkey = zeroblob(32), (SELECT c.wasm FROM circuits c WHERE c.name = jobs.circuit), wasm), ",
    "zkey = iif(zkey = zeroblob(32), (SELECT c.zkey FROM circuits c WHERE c.name = jobs.circuit), zkey) ",
    "WHERE seq = ?1 RETURNING ",
    job_columns!()
);

const PAUSE: &str = concat!(
    "INSERT INTO pauses (scope, name, since) VALUES (?1, ?2, ",
    now!(),
    ") ON CONFLICT DO NOTHING RETURNING since"
);
const RESUME: &str = "DELETE FROM pauses WHERE scope = ?1 AND name = ?2 RETURNING since";
const PAUSED: &str = "SELECT scope, name, since FROM pauses WHERE scope = 'circuit' OR name = ?1 \
                      ORDER BY scope DESC, name";

/// In three parts: queued jobs while no circuit is held back; while one is, those of each other circuit, lest what is held
/// back be read through; and those whose lease has lapsed. SQLite would look at a condition that is the same for all
/// rows at each of them, so the first part has a limit of 0 instead.
const DUE: &str = concat!(
    "WITH RECURSIVE waiting (circuit) AS (SELECT iif(",
    some_circuit_held!(),
    ", (SELECT min(circuit) FROM jobs INDEXED BY jobs_waiting WHERE queue = ?1 AND state = 'queued'), NULL) ",
    "UNION ALL SELECT (SELECT min(j.circuit) FROM jobs j INDEXED BY jobs_waiting WHERE j.queue = ?1 ",
    "AND j.state = 'queued' AND j.circuit > w.circuit) FROM waiting w WHERE w.circuit IS NOT NULL) ",
    "SELECT id, priority, again FROM (SELECT * FROM (SELECT id, priority, seq, ",
    came_again!(),
    " AS again FROM jobs INDEXED BY jobs_queued WHERE queue = ?1 AND state = 'queued' AND run_at <= ",
    now!(),
    " AND ",
    in_time!(),
    " ORDER BY priority DESC, seq LIMIT iif(",
    queue_goes!(),
    " AND NOT ",
    some_circuit_held!(),
    ", ?2, 0)) UNION ALL SELECT j.id, j.priority, j.seq, ",
    came_again!(),
    " FROM waiting w CROSS JOIN jobs j ON j.seq IN (SELECT seq FROM jobs INDEXED BY jobs_waiting WHERE queue = ?1 AND circuit = w.circuit ",
    "AND state = 'queued' AND run_at <= ",
    now!(),
    " AND ",
    in_time!(),
    " ORDER BY priority DESC, seq LIMIT ?2) WHERE w.",
    circuit_goes!(),
    " AND ",
    queue_goes!(),
    " UNION ALL SELECT id, priority, seq, ",
    came_again!(),
    " FROM jobs INDEXED BY jobs_running WHERE queue = ?1 AND state = 'running' AND lease_expires_at <= ",
    now!(),
    " AND ",
    circuit_goes!(),
    " AND ",
    queue_goes!(),
    ") ORDER BY priority DESC, seq LIMIT ?2"
);
/// ?2 is how many queued jobs are looked at, -1 for all.
const LOAD: &str = concat!(
    "SELECT (SELECT count(*) FROM (SELECT 1 FROM jobs INDEXED BY jobs_queued WHERE queue = ?1 AND state = 'queued' ",
    "LIMIT ?2)) AS queued, ",
    "(SELECT count(*) FROM jobs INDEXED BY jobs_running WHERE queue = ?1 AND state = 'running') AS running, ",
    "max(0, coalesce(",
    now!(),
    " - (SELECT min(run_at) FROM (SELECT run_at, start_by, circuit FROM jobs INDEXED BY jobs_queued ",
    "WHERE queue = ?1 AND state = 'queued' LIMIT ?2) WHERE ",
    in_time!(),
    " AND ",
    circuit_goes!(),
    " AND ",
    queue_goes!(),
    "), 0), coalesce(",
    now!(),
    " - (SELECT min(lease_expires_at) FROM jobs INDEXED BY jobs_running WHERE queue = ?1 AND state = 'running' AND ",
    circuit_goes!(),
    " AND ",
    queue_goes!(),
    "), 0)) AS oldest_ms, ",
    "(SELECT count(*) FROM jobs INDEXED BY jobs_ended WHERE queue = ?1 AND finished_at > ",
    now!(),
    " - 60000 AND state IN ('done', 'failed')) AS ended_last_minute"
);
/// ?3 is how long the input is kept. Whatever has a time to be begun by waits since `run_at`: since it was submitted, or
/// queued again.
const EXPIRE: &str = concat!(
    "UPDATE jobs SET state = 'failed', error_class = 'timeout', error_message = 'no worker began it within ' || ",
    "rtrim(rtrim(printf('%.3f', (start_by - run_at) / 1000.0), '0'), '.') || ' s', finished_at = ",
    now!(),
    ", keep_input_until = ",
    now!(),
    " + ?3 WHERE seq IN (SELECT seq FROM jobs INDEXED BY jobs_expiring WHERE queue = ?1 AND state = 'queued' ",
    "AND start_by <= ",
    now!(),
    " ORDER BY start_by LIMIT ?2) RETURNING id"
);
/// Those of every queue: how long they are kept was settled when their jobs failed.
const END_INPUTS: &str = concat!(
    "DELETE FROM job_inputs WHERE job IN (SELECT job FROM job_inputs INDEXED BY job_inputs_expiring ",
    "WHERE expires_at <= ",
    now!(),
    " ORDER BY expires_at LIMIT ?1) RETURNING job"
);
/// ?4 is a JSON array of states.
const PURGE: &str = concat!(
    "DELETE FROM jobs WHERE seq IN (SELECT seq FROM jobs INDEXED BY jobs_ended WHERE queue = ?1 AND finished_at <= ",
    now!(),
    " - ?3 AND state IN (SELECT value FROM json_each(?4)) ORDER BY finished_at LIMIT ?2) RETURNING id"
);
/// ?1 is a JSON array of ids in hexadecimal.
const STILL_UNFINISHED: &str =
    "SELECT id FROM jobs WHERE id IN (SELECT unhex(value) FROM json_each(?1)) AND finished_at IS NULL";
const COUNTS: &str = "SELECT state, count(*) AS n FROM jobs INDEXED BY jobs_by_state WHERE queue = ?1 GROUP BY state";
const INPUTS_HELD: &str = "SELECT key, count(*) AS n FROM job_inputs GROUP BY key ORDER BY key";

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
    /// Which file that is.
    file: (u64, u64),
    /// One connection: this process's writers queue here.
    writer: SqlitePool,
    reader: SqlitePool,
    watch: Mutex<Watch>,
    /// What the last look of a wait for changes saw. Not behind the lock of the connection: a wait that begins has to
    /// know it before the looks of others move it on.
    seen: std::sync::Mutex<Option<(i64, i64)>>,
    settings: StoreSettings,
    /// A job ended since the log was last truncated.
    ended: AtomicBool,
    load: Known,
}

/// The connection that only looks and tidies up. Writes of all others, this process's too, change what it sees.
struct Watch {
    options: SqliteConnectOptions,
    connection: Option<SqliteConnection>,
    /// Grows with every new connection, since their counts do not compare.
    epoch: i64,
    tidied: Instant,
}

impl std::fmt::Debug for SqliteStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SqliteStore").field("path", &self.path).finish_non_exhaustive()
    }
}

impl SqliteStore {
    /// Opens the store in the file at `path` and brings its schema up to date. A file that is not there is created
    /// with mode 0600, and so are folders above it with mode 0700. Several processes may do so at once.
    ///
    /// # Errors
    /// [`StoreError::Open`] where the file cannot be created or is another program's database,
    /// [`StoreError::NewerSchema`], [`StoreError::Database`].
    pub async fn open(path: &Path, settings: StoreSettings) -> Result<Self, StoreError> {
        create_private(path).map_err(|e| cannot_open(path, io_reason(&e)))?;
        Self::connect(path, settings).await
    }

    async fn connect(path: &Path, settings: StoreSettings) -> Result<Self, StoreError> {
        let base = SqliteConnectOptions::new()
            .filename(path)
            .foreign_keys(true)
            .synchronous(SqliteSynchronous::Full)
            // Where a sync alone leaves data in the disk's cache (macOS); nothing elsewhere.
            .pragma("fullfsync", "ON")
            .pragma("secure_delete", "ON")
            .pragma("temp_store", "MEMORY")
            .busy_timeout(BUSY_TIMEOUT)
            .disable_statement_logging();

        // Turning the log on needs the file for itself and does not wait for a lock; it is permanent once done.
        let first = base.clone().journal_mode(SqliteJournalMode::Wal);
        let connection = retry_busy(|| async { Ok(first.connect().await?) }).await.map_err(|e| match e {
            StoreError::Database(e) => cannot_open(path, plainly(&e)),
            e => e,
        })?;
        migrate(connection, path, &settings.queue).await?;

        let pool = || {
            SqlitePoolOptions::new().test_before_acquire(false).idle_timeout(None).max_lifetime(None).after_release(
                // A connection whose transaction could not be rolled back would refuse every further one.
                |connection, _| Box::pin(async move { Ok(!connection.is_in_transaction()) }),
            )
        };
        let watch = Watch {
            options: base.clone().busy_timeout(CHECKPOINT_TIMEOUT),
            connection: None,
            epoch: 0,
            tidied: Instant::now(),
        };
        Ok(Self {
            path: path.to_owned(),
            file: identity(path).map_err(|e| cannot_open(path, io_reason(&e)))?,
            writer: pool().max_connections(1).connect_lazy_with(base.clone()),
            reader: pool().max_connections(READERS).connect_lazy_with(base.pragma("query_only", "ON")),
            watch: Mutex::new(watch),
            seen: std::sync::Mutex::default(),
            settings,
            // Somebody may have died before truncating the log.
            ended: AtomicBool::new(true),
            load: Known::default(),
        })
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Closes the connections. The last process to do so leaves no log behind.
    pub async fn close(&self) {
        self.reader.close().await;
        let watching = self.watch.lock().await.connection.take();
        if let Some(c) = watching {
            let _ = c.close().await;
        }
        self.writer.close().await;
    }

    /// Moves the log into the file and truncates it, so that no input of an ended job remains in it. Answers whether
    /// that went through; it does not while another process reads.
    ///
    /// # Errors
    /// [`StoreError::Database`].
    pub async fn tidy(&self) -> Result<bool, StoreError> {
        let mut watch = self.watch.lock().await;
        self.truncate_log(&mut watch).await
    }

    async fn tidy_now_and_then(&self, watch: &mut Watch) -> Result<(), StoreError> {
        if self.ended.load(Ordering::Acquire) && watch.tidied.elapsed() >= TIDY_EVERY {
            self.truncate_log(watch).await?;
        }
        Ok(())
    }

    async fn truncate_log(&self, watch: &mut Watch) -> Result<bool, StoreError> {
        watch.tidied = Instant::now();
        self.ended.store(false, Ordering::Release);
        let row = watch.row("PRAGMA wal_checkpoint(TRUNCATE)").await;
        let through = row.and_then(|r| Ok(r.int("busy")? == Some(0)));
        if !matches!(through, Ok(true)) {
            self.ended.store(true, Ordering::Release);
        }
        match through {
            Err(StoreError::Database(e)) if is_busy(&e) => Ok(false),
            other => other,
        }
    }

    /// Runs a statement that changes at most one row and returns it, to its end.
    async fn change(&self, make: impl Fn() -> Statement + Send + Sync) -> Result<Option<SqliteRow>, StoreError> {
        retry_busy(|| async { Ok(make().fetch_all(&self.writer).await?.into_iter().next()) }).await
    }

    /// A change guarded by the attempt.
    async fn guarded(&self, make: impl Fn() -> Statement + Send + Sync) -> Result<Held, StoreError> {
        held(self.change(make).await?)
    }

    /// A guarded change that may end the job.
    async fn ending(&self, make: impl Fn() -> Statement + Send + Sync) -> Result<Held, StoreError> {
        let held = self.guarded(make).await?;
        if held != Held::Lost {
            self.ended.store(true, Ordering::Release);
        }
        Ok(held)
    }

    async fn rows(&self, statement: Statement) -> Result<Vec<SqliteRow>, StoreError> {
        Ok(statement.fetch_all(&self.reader).await?)
    }

    /// Changes several rows and returns them; some of the jobs end by it.
    async fn end_many(&self, make: impl Fn() -> Statement + Send + Sync) -> Result<Vec<SqliteRow>, StoreError> {
        let rows = retry_busy(|| async { Ok(make().fetch_all(&self.writer).await?) }).await?;
        if !rows.is_empty() {
            self.ended.store(true, Ordering::Release);
        }
        Ok(rows)
    }

    fn queue(&self) -> String {
        self.settings.queue.clone()
    }

    async fn look_at_load(&self, at_most: Option<u64>) -> Result<Load, StoreError> {
        let at_most = at_most.map_or(-1, |n| i64::try_from(n).unwrap_or(i64::MAX));
        rows::load(&sqlx::query(LOAD).bind(self.queue()).bind(at_most).fetch_one(&self.reader).await?)
    }

    /// Milliseconds that the input of a job that failed so is kept; none: not at all.
    fn keep_input(&self, class: FailureClass) -> Option<i64> {
        let keep = rows::millis(self.settings.keep_failed_inputs);
        (keep > 0 && class != FailureClass::BadInput).then_some(keep)
    }

    /// Fails if the file was removed or replaced. Connections that are open would go on with the old one, and what
    /// they are told would be lost with the process.
    fn still_there(&self) -> Result<(), StoreError> {
        match identity(&self.path) {
            Ok(now) if now == self.file => Ok(()),
            Ok(_) => Err(cannot_open(&self.path, "it is another file than when it was opened")),
            Err(e) => Err(cannot_open(&self.path, io_reason(&e))),
        }
    }

    /// The job that was written down before under this id or key, if any.
    async fn same(&self, connection: &mut SqliteConnection, new: &NewJob) -> Result<Option<Repeat>, StoreError> {
        let same = sqlx::query(SAME_JOB)
            .bind(id(new.id))
            .bind(self.queue())
            .bind(new.idempotency_key.clone())
            .fetch_optional(connection)
            .await?;
        same.map(|row| rows::repeat(&row, new)).transpose()
    }

    async fn submit_once(&self, new: &NewJob, input: Input<'_>) -> Result<Submitted, StoreError> {
        let mut tx = self.writer.begin_with("BEGIN IMMEDIATE").await?;
        match self.same(&mut tx, new).await? {
            None => {}
            Some(Repeat::Same(job)) => return Ok(Submitted::Existing(job)),
            Some(Repeat::Rejected { .. }) => forget_rejected(&mut tx, new.id).await?,
        }
        let inserted = sqlx::query(INSERT_JOB)
            .bind(id(new.id))
            .bind(self.queue())
            .bind(new.circuit.as_str())
            .bind(new.body.0.to_vec())
            .bind(new.idempotency_key.clone())
            .bind(i64::from(new.priority.0))
            .bind(new.start_within.map(rows::millis))
            .fetch_optional(&mut *tx)
            .await?;
        let Some(row) = inserted else {
            return Err(StoreError::UnknownCircuit(new.circuit.clone()));
        };
        let job = rows::job(&row)?;
        insert_input(&mut tx, rows::number(&row, "seq")?, input).await?;
        tx.commit().await?;
        Ok(Submitted::Created(job))
    }

    async fn reject_once(&self, new: &NewJob, error: &JobError) -> Result<Submitted, StoreError> {
        let mut tx = self.writer.begin_with("BEGIN IMMEDIATE").await?;
        match self.same(&mut tx, new).await? {
            None => {}
            Some(Repeat::Same(job) | Repeat::Rejected { job, same_body: true }) => {
                return Ok(Submitted::Existing(job));
            }
            Some(Repeat::Rejected { same_body: false, .. }) => forget_rejected(&mut tx, new.id).await?,
        }
        let row = sqlx::query(INSERT_FAILED)
            .bind(id(new.id))
            .bind(self.queue())
            .bind(new.circuit.as_str())
            .bind(new.body.0.to_vec())
            .bind(new.idempotency_key.clone())
            .bind(i64::from(new.priority.0))
            .bind(error.class.as_str())
            .bind(error.message.clone())
            .fetch_one(&mut *tx)
            .await?;
        let job = rows::job(&row)?;
        tx.commit().await?;
        Ok(Submitted::Created(job))
    }

    async fn requeue_once(
        &self,
        job: JobId,
        input: Option<Replacement<'_>>,
        start_within: Option<Duration>,
    ) -> Result<Requeued, StoreError> {
        let mut tx = self.writer.begin_with("BEGIN IMMEDIATE").await?;
        let Some(row) = sqlx::query(REQUEUEABLE).bind(id(job)).fetch_optional(&mut *tx).await? else {
            return Ok(Requeued::Unknown);
        };
        let state = rows::state(&row)?;
        if !matches!(state, JobState::Failed | JobState::Cancelled) {
            return Ok(Requeued::Not(state));
        }
        let held = row.flag("held")?.unwrap_or_default();
        if input.is_none() && !held {
            return Ok(Requeued::InputGone);
        }
        if row.flag("adrift")?.unwrap_or_default() {
            return Err(StoreError::UnknownCircuit(rows::circuit_name(&row)?));
        }
        // An input that is held keeps the content, too.
        if !held && row.flag("gone")?.unwrap_or_default() {
            return Ok(Requeued::CircuitGone(rows::circuit_name(&row)?));
        }
        let seq: i64 = rows::number(&row, "seq")?;
        let body = rows::body_of_requeued(&row, job, input.map(|i| i.body))?;
        let requeue = sqlx::query(REQUEUE).bind(seq).bind(start_within.map(rows::millis)).bind(body.0.to_vec());
        let queued = rows::job(&requeue.fetch_one(&mut *tx).await?)?;
        match input {
            Some(other) => insert_input(&mut tx, seq, other.input).await?,
            None => {
                sqlx::query(KEEP_INPUT).bind(seq).execute(&mut *tx).await?;
            }
        }
        tx.commit().await?;
        if input.is_some() && held {
            // The log still has the input that was replaced.
            self.ended.store(true, Ordering::Release);
        }
        Ok(Requeued::Yes(Box::new(queued)))
    }

    async fn remove_circuit_once(&self, name: &CircuitName) -> Result<bool, StoreError> {
        let mut tx = self.writer.begin_with("BEGIN IMMEDIATE").await?;
        let row = sqlx::query(UNFINISHED).bind(name.as_str()).fetch_one(&mut *tx).await?;
        let unfinished: u64 = rows::number(&row, "n")?;
        let removed = sqlx::query(REMOVE_CIRCUIT).bind(name.as_str()).execute(&mut *tx).await?.rows_affected() > 0;
        if removed && unfinished > 0 {
            tx.rollback().await?;
            return Err(StoreError::InUse { name: name.clone(), unfinished });
        }
        tx.commit().await?;
        Ok(removed)
    }
}

impl Watch {
    /// The one row of a statement; a connection that failed is opened anew next time.
    async fn row(&mut self, sql: &'static str) -> Result<SqliteRow, StoreError> {
        let mut connection = match self.connection.take() {
            Some(c) => c,
            None => {
                self.epoch += 1;
                self.options.connect().await?
            }
        };
        let row = sqlx::query(sql).fetch_one(&mut connection).await?;
        self.connection = Some(connection);
        Ok(row)
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
                sqlx::query(PUT_CIRCUIT)
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
        let row = sqlx::query(CIRCUIT).bind(name.as_str()).fetch_optional(&self.reader).await?;
        row.as_ref().map(rows::circuit).transpose()
    }

    async fn circuits(&self) -> Result<Vec<Circuit>, StoreError> {
        self.rows(sqlx::query(CIRCUITS)).await?.iter().map(rows::circuit).collect()
    }

    async fn remove_circuit(&self, name: &CircuitName) -> Result<bool, StoreError> {
        retry_busy(|| self.remove_circuit_once(name)).await
    }

    async fn submit(&self, new: &NewJob, input: Input<'_>) -> Result<Submitted, StoreError> {
        self.still_there()?;
        retry_busy(|| self.submit_once(new, input)).await
    }

    async fn reject(&self, new: &NewJob, error: &JobError) -> Result<Submitted, StoreError> {
        self.still_there()?;
        retry_busy(|| self.reject_once(new, error)).await
    }

    async fn job(&self, job: JobId) -> Result<Option<Job>, StoreError> {
        let row = sqlx::query(JOB).bind(id(job)).fetch_optional(&self.reader).await?;
        row.as_ref().map(rows::job).transpose()
    }

    async fn unfinished(&self, ids: &[JobId]) -> Result<Vec<JobId>, StoreError> {
        let ids: Vec<_> = ids.iter().map(|job| job.0.simple().to_string()).collect();
        let ids = serde_json::to_string(&ids).map_err(|e| corrupt("id", e))?;
        self.rows(sqlx::query(STILL_UNFINISHED).bind(ids)).await?.iter().map(rows::job_id).collect()
    }

    async fn jobs(&self, filter: JobFilter) -> Result<Vec<Job>, StoreError> {
        let sql = match (filter.state, &filter.circuit, &filter.idempotency_key) {
            (_, _, Some(_)) => JOBS_BY_KEY,
            (None, None, None) => JOBS,
            (Some(_), None, None) => JOBS_IN,
            (None, Some(_), None) => JOBS_OF,
            (Some(_), Some(_), None) => JOBS_OF_IN,
        };
        let statement = sqlx::query(sql)
            .bind(self.queue())
            .bind(i64::from(filter.limit))
            .bind(filter.state.map(JobState::as_str))
            .bind(filter.circuit.map(|c| c.as_str().to_owned()))
            .bind(filter.before.map(id))
            .bind(filter.idempotency_key);
        self.rows(statement).await?.iter().map(rows::job).collect()
    }

    async fn claim(&self, job: JobId, worker: &WorkerId, lease: Duration) -> Result<Option<Claim>, StoreError> {
        let row =
            self.change(|| sqlx::query(CLAIM).bind(id(job)).bind(worker.0.clone()).bind(rows::millis(lease))).await?;
        let Some(row) = row else {
            if self.change(|| sqlx::query(CANCEL_LAPSED).bind(id(job))).await?.is_some() {
                self.ended.store(true, Ordering::Release);
            }
            return Ok(None);
        };
        let (claimed, input) = (rows::job(&row)?, row.bytes("input")?);
        let (Some(input), Some(input_key)) = (input, row.text("input_key")?) else {
            // Damage from outside: no transaction of this store leaves an unfinished job without its input. Ended here,
            // since nobody could work on it and its lease would lapse for ever.
            let message = "its input is missing from the database".to_owned();
            let error = JobError { class: FailureClass::BadInput, message };
            self.fail(job, claimed.attempt, &error, Retry::Never).await?;
            return Ok(None);
        };
        Ok(Some(Claim { job: claimed, input: Zeroizing::new(input), input_key }))
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
            fenced(HEARTBEAT, job, attempt)
                .bind(rows::millis(lease))
                .bind(stage.as_str())
                .bind(rows::fraction(progress))
        })
        .await
    }

    async fn finish(&self, job: JobId, attempt: Attempt, result: &JobResult) -> Result<Held, StoreError> {
        let json = serde_json::to_string(result).map_err(|e| corrupt("result", e))?;
        self.ending(|| fenced(FINISH, job, attempt).bind(json.clone())).await
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
        match retry {
            Retry::Never => self.ending(|| statement(FAIL_FOR_GOOD).bind(self.keep_input(error.class))).await,
            Retry::After(delay) => self.ending(|| statement(FAIL_RETRY).bind(rows::millis(delay))).await,
        }
    }

    async fn release(&self, job: JobId, attempt: Attempt) -> Result<Held, StoreError> {
        self.ending(|| fenced(RELEASE, job, attempt)).await
    }

    async fn confirm_cancel(&self, job: JobId, attempt: Attempt) -> Result<Held, StoreError> {
        let confirm = || self.ending(|| fenced(CONFIRM_CANCEL, job, attempt));
        if let yes @ Held::Yes { .. } = confirm().await? {
            return Ok(yes);
        }
        match held(fenced(HOLDS, job, attempt).fetch_optional(&self.writer).await?)? {
            // Somebody asked between the two. A request stays until the attempt ends.
            Held::Yes { cancel: true } => confirm().await,
            other => Ok(other),
        }
    }

    async fn cancel(&self, job: JobId) -> Result<Cancelled, StoreError> {
        self.still_there()?;
        if let Some(row) = self.change(|| sqlx::query(CANCEL).bind(id(job))).await? {
            return Ok(if rows::state(&row)? == JobState::Running {
                Cancelled::Requested
            } else {
                self.ended.store(true, Ordering::Release);
                Cancelled::Now
            });
        }
        // It had ended, or was not there: one that is there now and has not ended was submitted only since.
        let row = sqlx::query(JOB_STATE).bind(id(job)).fetch_optional(&self.writer).await?;
        Ok(match row.as_ref().map(rows::state).transpose()? {
            Some(state) if state.is_final() => Cancelled::TooLate(state),
            _ => Cancelled::Unknown,
        })
    }

    async fn requeue(
        &self,
        job: JobId,
        input: Option<Replacement<'_>>,
        start_within: Option<Duration>,
    ) -> Result<Requeued, StoreError> {
        self.still_there()?;
        retry_busy(|| self.requeue_once(job, input, start_within)).await
    }

    async fn set_paused(&self, scope: &Scope, paused: bool) -> Result<bool, StoreError> {
        self.still_there()?;
        let sql = if paused { PAUSE } else { RESUME };
        let (what, name) = match scope {
            Scope::Queue => ("queue", self.queue()),
            Scope::Circuit(name) => ("circuit", name.as_str().to_owned()),
        };
        Ok(self.change(|| sqlx::query(sql).bind(what).bind(name.clone())).await?.is_some())
    }

    async fn paused(&self) -> Result<Vec<(Scope, i64)>, StoreError> {
        self.rows(sqlx::query(PAUSED).bind(self.queue())).await?.iter().map(rows::pause).collect()
    }

    async fn due(&self, limit: u32) -> Result<Vec<Due>, StoreError> {
        self.tidy_now_and_then(&mut *self.watch.lock().await).await?;
        let rows = self.rows(sqlx::query(DUE).bind(self.queue()).bind(i64::from(limit))).await?;
        rows.iter().map(rows::due).collect()
    }

    async fn changed(&self, at_most: Duration) -> Result<(), StoreError> {
        let began = Instant::now();
        // Callers at the same time wait from the same look on, and each learns of what came after it.
        let before = *locked(&self.seen);
        loop {
            let now = {
                let mut watch = self.watch.lock().await;
                self.tidy_now_and_then(&mut watch).await?;
                let version = rows::number(&watch.row("PRAGMA data_version").await?, "data_version")?;
                let now = Some((watch.epoch, version));
                *locked(&self.seen) = now;
                now
            };
            let left = at_most.saturating_sub(began.elapsed());
            if now != before || left.is_zero() {
                return Ok(());
            }
            tokio::time::sleep(left.min(LOOK_EVERY)).await;
        }
    }

    async fn sweep(&self, limit: u32) -> Result<Swept, StoreError> {
        let limit = i64::from(limit);
        let keep = self.keep_input(FailureClass::Timeout);
        let expired = self.end_many(|| sqlx::query(EXPIRE).bind(self.queue()).bind(limit).bind(keep)).await?;
        let inputs = self.end_many(|| sqlx::query(END_INPUTS).bind(limit)).await?.len() as u64;
        Ok(Swept { expired: expired.iter().map(rows::job_id).collect::<Result<_, _>>()?, inputs })
    }

    async fn purge(&self, states: &[JobState], older_than: Duration, limit: u32) -> Result<Vec<JobId>, StoreError> {
        // Jobs that have not ended have no time of ending, so their states do no harm here.
        let states = serde_json::to_string(states).map_err(|e| corrupt("state", e))?;
        let rows = self
            .end_many(|| {
                sqlx::query(PURGE)
                    .bind(self.queue())
                    .bind(i64::from(limit))
                    .bind(rows::millis(older_than))
                    .bind(states.clone())
            })
            .await?;
        rows.iter().map(rows::job_id).collect()
    }

    async fn load(&self) -> Result<Load, StoreError> {
        self.load.load(|at_most| self.look_at_load(at_most)).await
    }

    async fn content_in_use(&self) -> Result<Vec<ContentHash>, StoreError> {
        self.rows(sqlx::query(CONTENT_IN_USE)).await?.iter().map(|r| rows::content_hash(r, "content")).collect()
    }

    async fn counts(&self) -> Result<Counts, StoreError> {
        rows::counts(&self.rows(sqlx::query(COUNTS).bind(self.queue())).await?)
    }

    async fn inputs_held(&self) -> Result<Vec<(String, u64)>, StoreError> {
        self.rows(sqlx::query(INPUTS_HELD)).await?.iter().map(rows::inputs_of_key).collect()
    }

    async fn ping(&self) -> Result<(), StoreError> {
        self.still_there()?;
        sqlx::query("PRAGMA schema_version").fetch_one(&self.reader).await?;
        let folder = self.path.parent().unwrap_or(Path::new("")).to_owned();
        // A task that could not be run tells nothing.
        let tried = tokio::task::spawn_blocking(move || room::takes_writes(&folder)).await;
        match tried {
            Ok(Err(e)) => Err(StoreError::Unwritable { what: self.address(), why: io_reason(&e) }),
            _ => Ok(()),
        }
    }
}

/// Writes an input down, in the place of one that may be there.
async fn insert_input(connection: &mut SqliteConnection, seq: i64, input: Input<'_>) -> Result<(), StoreError> {
    // Not kept prepared: a prepared statement holds on to the values bound last.
    sqlx::query(INSERT_INPUT).bind(seq).bind(input.key).bind(input.bytes).persistent(false).execute(connection).await?;
    Ok(())
}

/// Takes a rejected job out of the way of another of its id, within the transaction that writes that down.
async fn forget_rejected(connection: &mut SqliteConnection, job: JobId) -> Result<(), StoreError> {
    sqlx::query(FORGET_REJECTED).bind(id(job)).execute(connection).await?;
    Ok(())
}

fn id(job: JobId) -> Vec<u8> {
    job.0.as_bytes().to_vec()
}

/// A statement whose first two parameters are the job and the attempt.
fn fenced(sql: &'static str, job: JobId, attempt: Attempt) -> Statement {
    sqlx::query(sql).bind(id(job)).bind(i64::from(attempt.0))
}

fn held(row: Option<SqliteRow>) -> Result<Held, StoreError> {
    match row {
        None => Ok(Held::Lost),
        Some(r) => Ok(Held::Yes { cancel: r.flag("cancel_requested")?.unwrap_or_default() }),
    }
}

/// Whether SQLite refused because another connection has the lock (`SQLITE_BUSY`, `SQLITE_LOCKED`, of any kind).
fn is_busy(e: &sqlx::Error) -> bool {
    let code = e.as_database_error().and_then(|e| e.code()).and_then(|c| c.parse::<i32>().ok());
    code.is_some_and(|c| matches!(c & 0xff, 5 | 6))
}

/// Tries again, a bounded number of times, what met a lock; nothing has changed then.
async fn retry_busy<T, F, R>(attempt: F) -> Result<T, StoreError>
where
    F: Fn() -> R,
    R: Future<Output = Result<T, StoreError>>,
{
    let mut tries = 1;
    loop {
        match attempt().await {
            Err(StoreError::Database(e)) if is_busy(&e) && tries < BUSY_TRIES => {
                tokio::time::sleep(Duration::from_millis(20) * tries).await;
                tries += 1;
            }
            done => return done,
        }
    }
}

fn cannot_open(path: &Path, why: impl ToString) -> StoreError {
    StoreError::Open { what: path.display().to_string(), why: why.to_string() }
}

/// Device and number of a file: the same as long as it is the same file.
#[cfg(unix)]
fn identity(path: &Path) -> std::io::Result<(u64, u64)> {
    use std::os::unix::fs::MetadataExt;
    std::fs::metadata(path).map(|m| (m.dev(), m.ino()))
}

#[cfg(not(unix))]
fn identity(path: &Path) -> std::io::Result<(u64, u64)> {
    std::fs::metadata(path).map(|_| (0, 0))
}

/// Creates the file, for its owner only, and the folders above it, unless they are there.
fn create_private(path: &Path) -> std::io::Result<()> {
    let mut folder = std::fs::DirBuilder::new();
    folder.recursive(true);
    let mut file = std::fs::OpenOptions::new();
    file.write(true).create(true).truncate(false);
    #[cfg(unix)]
    {
        use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
        folder.mode(0o700);
        file.mode(0o600);
    }
    if let Some(parent) = path.parent().filter(|p| !p.as_os_str().is_empty()) {
        folder.create(parent)?;
    }
    file.open(path)?;
    Ok(())
}

/// Brings the schema up to date: all or nothing, under the lock, whoever comes first. Jobs of a time when there was
/// one queue only go on in this one.
async fn migrate(mut connection: SqliteConnection, path: &Path, queue: &str) -> Result<(), StoreError> {
    let latest = MIGRATIONS.len();
    if schema_version(&mut connection, path).await? < latest {
        let mut tx = connection.begin_with("BEGIN IMMEDIATE").await?;
        let version = schema_version(&mut tx, path).await?;
        for migration in MIGRATIONS.iter().skip(version) {
            sqlx::raw_sql(*migration).execute(&mut *tx).await?;
        }
        if version == 1 {
            sqlx::query("UPDATE jobs SET queue = ?1").bind(queue).execute(&mut *tx).await?;
        }
        let mark = format!("PRAGMA user_version = {latest}; PRAGMA application_id = {APPLICATION_ID};");
        sqlx::raw_sql(sqlx::AssertSqlSafe(mark)).execute(&mut *tx).await?;
        tx.commit().await?;
    }
    connection.close().await?;
    Ok(())
}

/// The version of the schema in the file: 0 for an empty one.
async fn schema_version(connection: &mut SqliteConnection, path: &Path) -> Result<usize, StoreError> {
    const WHOSE: &str = "SELECT (SELECT user_version FROM pragma_user_version) AS version, \
                         (SELECT application_id FROM pragma_application_id) AS owner, \
                         (SELECT count(*) FROM sqlite_schema) AS tables";
    let row = sqlx::query(WHOSE).fetch_one(connection).await?;
    let owner = row.int("owner")?;
    let empty = row.int("tables")? == Some(0);
    if !(owner == Some(APPLICATION_ID) || (empty && owner == Some(0))) {
        return Err(cannot_open(path, "it is a database of another program"));
    }
    let version: i64 = rows::number(&row, "version")?;
    match usize::try_from(version) {
        Ok(v) if v <= MIGRATIONS.len() => Ok(v),
        _ => Err(StoreError::NewerSchema),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::model::Priority;

    /// Left to itself SQLite takes the index on the state for most of these, and sorts.
    #[tokio::test]
    async fn looks_go_by_their_indexes() {
        let folder = tempfile::tempdir().unwrap();
        let store = SqliteStore::open(&folder.path().join("jobs.db"), StoreSettings::default()).await.unwrap();
        let mut wrong = Vec::new();
        for (sql, expected) in [
            (
                DUE,
                &[
                    "SEARCH jobs USING INDEX jobs_queued (queue=?)",
                    "SEARCH jobs USING COVERING INDEX jobs_waiting (queue=? AND circuit=?)",
                    "SEARCH j USING COVERING INDEX jobs_waiting (queue=? AND circuit>?)",
                    "SEARCH jobs USING INDEX jobs_running (queue=? AND lease_expires_at<?)",
                ][..],
            ),
            (
                LOAD,
                &[
                    "SEARCH jobs USING COVERING INDEX jobs_queued (queue=?)",
                    "SEARCH jobs USING COVERING INDEX jobs_running (queue=?)",
                    "SEARCH jobs USING COVERING INDEX jobs_ended (queue=? AND finished_at>?)",
                ],
            ),
            (EXPIRE, &["SEARCH jobs USING COVERING INDEX jobs_expiring (queue=? AND start_by<?)"]),
            (END_INPUTS, &["SEARCH job_inputs USING COVERING INDEX job_inputs_expiring (expires_at<?)"]),
            (PURGE, &["SEARCH jobs USING COVERING INDEX jobs_ended (queue=? AND finished_at<?)"]),
            (UNFINISHED, &["SEARCH jobs USING COVERING INDEX jobs_unfinished (circuit=? AND state=?)"]),
            (CONTENT_IN_USE, &["SCAN jobs USING COVERING INDEX jobs_unfinished"]),
            (JOBS, &["SEARCH jobs USING INDEX jobs_in_order (queue=? AND seq<?)"]),
            (JOBS_IN, &["SEARCH jobs USING INDEX jobs_by_state (queue=? AND state=? AND seq<?)"]),
            (JOBS_OF, &["SEARCH jobs USING INDEX jobs_by_circuit (queue=? AND circuit=? AND seq<?)"]),
            (JOBS_OF_IN, &["SEARCH jobs USING INDEX jobs_by_circuit (queue=? AND circuit=? AND seq<?)"]),
            (JOBS_BY_KEY, &["SEARCH jobs USING INDEX sqlite_autoindex_jobs_2 (queue=? AND idempotency_key=?)"]),
            (COUNTS, &["SEARCH jobs USING COVERING INDEX jobs_by_state (queue=?)"]),
            (SAME_JOB, &["_jobs_1 (id=?)", "_jobs_2 (queue=? AND idempotency_key=?)"]),
            (CLAIM, &["SEARCH jobs USING INDEX sqlite_autoindex_jobs_1 (id=?)"]),
            (FINISH, &["SEARCH jobs USING INDEX sqlite_autoindex_jobs_1 (id=?)"]),
            (REQUEUEABLE, &["SEARCH jobs USING INDEX sqlite_autoindex_jobs_1 (id=?)"]),
        ] {
            let explain = sqlx::AssertSqlSafe(format!("EXPLAIN QUERY PLAN {sql}"));
            let rows = sqlx::query(explain).fetch_all(&store.reader).await.unwrap();
            let plan: Vec<String> = rows.iter().map(|r| r.text("detail").unwrap().unwrap()).collect();
            // Sorted: what is due of both kinds, and two jobs that one may be the same as.
            let sorts = plan.iter().filter(|p| p.contains("TEMP B-TREE FOR ORDER BY")).count();
            let sorted = usize::from([DUE, SAME_JOB].contains(&sql));
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
        let long_ago = Instant::now().checked_sub(TIDY_EVERY).unwrap();

        let mut reading = store.reader.begin().await.unwrap();
        sqlx::query(COUNTS).bind("prove").fetch_all(&mut *reading).await.unwrap();
        store.cancel(new.id).await.unwrap();
        assert!(!store.tidy().await.unwrap());
        reading.rollback().await.unwrap();
        assert!(size() > 0);

        store.changed(Duration::ZERO).await.unwrap();
        assert!(size() > 0, "the last try was just now");
        store.watch.lock().await.tidied = long_ago;
        store.changed(Duration::ZERO).await.unwrap();
        assert_eq!(size(), 0);

        store.submit(&NewJob { id: JobId::new(), ..new }, input(b"input")).await.unwrap();
        store.watch.lock().await.tidied = long_ago;
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
            // On a connection that was replaced there is room again.
            sqlx::query(full).fetch_all(&store.writer).await.unwrap();
        }
        store.submit(&new, input(b"a small one")).await.unwrap();
        assert_eq!(store.inputs_held().await.unwrap(), [(String::new(), 1)]);
    }
}
