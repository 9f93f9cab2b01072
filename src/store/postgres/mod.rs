//! A store in one Postgres database (13 to 18), which any number of machines may use at the same time.
//!
//! **Writes.** Every change is one statement or one transaction, under READ COMMITTED, guarded by what it expects of
//! the row. Calls of submit, claim, heartbeat and finish that arrive while one of their kind is in progress are made
//! together as one statement over arrays (`coalesce.rs`): one commit for many. If one of them is refused, or waits more
//! than a second for a lock held elsewhere, each is made alone, so that it fails alone.
//!
//! **Durability.** That of the server: with `synchronous_commit` on, which is the default, a confirmed change survives
//! a crash.
//!
//! **Failures.** Every call ends within about half a minute, whatever happens to the server; the read of a large input,
//! each part of it. A deadlock or a failure to connect changed nothing, and the call is retried a few times. If a
//! connection broke after the statement was sent, it is unknown whether it took effect. Calls that may be repeated are
//! retried: reads, heartbeats, submits (the repeat of one that succeeded answers `Existing`); and a finish, a failure,
//! a release or a confirmed cancellation, each of which recognises its own work in the row. Other calls return the
//! error. A claim whose answer was lost leaves a job running without a worker until its lease lapses; a caller that
//! repeats a cancel may find it too late because the first one succeeded.
//!
//! **Inputs.** A claim returns inputs of up to 16 KiB, so that what it returns is always sent soon. Larger ones are
//! read in parts, each by a statement of its own (`input.rs`).
//!
//! **Sessions.** Plans are made once per session and use indexes (`pool.rs`). Pgbouncer works only in session mode,
//! because prepared statements and LISTEN belong to a session.
//!
//! **Secrets.** Inputs are in the database as they were submitted (sealed or not) until their job ends, those of failed
//! jobs a while longer. What the server keeps of deleted rows until a vacuum, and in its log, is up to the server.

mod address;
mod calls;
mod coalesce;
mod counts;
mod input;
mod listen;
mod migrate;
mod pool;
mod session;
mod statements;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use sqlx::postgres::PgRow;
use sqlx::{ConnectOptions, Connection, Row};
use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout};
use zeroize::Zeroizing;

use self::calls::{ClaimCall, FinishCall, Found, HeartbeatCall, SubmitCall, fenced, held, unless_taken};
use self::coalesce::{Bounds, Coalescer};
use self::listen::{Listener, channel};
use self::pool::Pool;
use self::session::{ANSWER_TIMEOUT, Retries, Session, TRIES, is_unreachable};
use super::load::LoadCache;
use super::rows::{self, Columns, Repeat, corrupt};
use super::{
    Cancelled, Claim, Counts, Due, Held, Input, JobFilter, Load, Purge, Removable, Replacement, Requeued, Retry, Scope,
    Store, StoreError, StoreSettings, Submitted, Swept,
};
use crate::model::{
    Attempt, Circuit, CircuitContent, CircuitName, ContentHash, FailureClass, Job, JobError, JobId, JobResult,
    JobState, NewJob, Stage, WorkerId,
};

/// Maximum number of connections, not counting the listener's.
const CONNECTIONS: usize = 10;
/// Most of these that read large inputs at the same time.
const LARGE_READS: usize = 4;
/// Limits of a joint statement.
const BOUNDS: Bounds = Bounds { calls: 256, bytes: 8 << 20 };
/// The limits over TLS: what fits one record. sqlx sends each record by itself and leaves Nagle's algorithm on, so that
/// the rest of a larger statement waits for the server's delayed acknowledgement, about 40 ms.
const TLS_BOUNDS: Bounds = Bounds { calls: 256, bytes: 15 << 10 };

impl Columns for PgRow {
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
        self.try_get(column).map_err(|e| corrupt(column, e))
    }
}

/// Circuits and jobs in a Postgres database.
pub struct PostgresStore {
    /// Host, port and database.
    what: String,
    session: Arc<Session>,
    listener: Option<Listener>,
    submits: Coalescer<SubmitCall, Session>,
    claims: Coalescer<ClaimCall, Session>,
    heartbeats: Coalescer<HeartbeatCall, Session>,
    finishes: Coalescer<FinishCall, Session>,
}

impl std::fmt::Debug for PostgresStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PostgresStore").field("what", &self.what).finish_non_exhaustive()
    }
}

impl PostgresStore {
    /// Opens the store in the database at `url` (`postgres://USER:PASSWORD@HOST:PORT/NAME`, with sqlx's parameters such
    /// as `sslmode`) and brings its schema up to date. Several processes may do this at the same time.
    ///
    /// # Errors
    /// [`StoreError::InvalidUrl`]; [`StoreError::Unreachable`] if the server cannot be reached; [`StoreError::Open`] if
    /// it refuses the connection or does not accept the schema; [`StoreError::ServerTooOld`];
    /// [`StoreError::NewerSchema`].
    pub async fn open(url: &str, settings: StoreSettings) -> Result<Self, StoreError> {
        let options = address::options(url)?;
        // Useless in the binary protocol, and unknown to pgbouncer.
        let mut options = options.extra_float_digits(None).disable_statement_logging();
        if options.get_application_name().is_none() {
            options = options.application_name("prover-worker");
        }
        let what = match options.get_socket() {
            Some(socket) => format!("postgres at {}", socket.display()),
            None => format!("postgres://{}:{}", options.get_host(), options.get_port()),
        };
        let what = format!("{what}/{}", options.get_database().unwrap_or_default());
        let cannot_open = |e: sqlx::Error| {
            let (what, unreachable, why) = (what.clone(), is_unreachable(&e), e.into());
            if unreachable { StoreError::Unreachable { what, why } } else { StoreError::Open { what, why } }
        };
        // A separate connection: those in the pool must belong to the runtime that uses them.
        let mut connection = pool::connect(&options).await.map_err(cannot_open)?;
        migrate::migrate(&mut connection, &what).await.map_err(|e| match e {
            StoreError::Database(e) => cannot_open(e),
            e => e,
        })?;
        let tls = sqlx::query("SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()");
        let tls = tls.fetch_optional(&mut connection).await.map_err(cannot_open)?;
        let tls = tls.map(|r| r.flag("ssl")).transpose()?.flatten().unwrap_or_default();
        let bounds = if tls { TLS_BOUNDS } else { BOUNDS };
        let _ = timeout(ANSWER_TIMEOUT, connection.close()).await;

        let channel = settings.notify.then(|| channel(&settings.queue));
        let listener = channel.clone().map(|c| Listener::new(options.clone(), c));
        let session = Arc::new(Session {
            pool: Pool::new(options, CONNECTIONS),
            settings,
            channel,
            load: LoadCache::default(),
            large_reads: Semaphore::new(LARGE_READS),
        });
        Ok(Self {
            what,
            listener,
            submits: Coalescer::new(session.clone(), bounds),
            claims: Coalescer::new(session.clone(), BOUNDS),
            heartbeats: Coalescer::new(session.clone(), bounds),
            finishes: Coalescer::new(session.clone(), bounds),
            session,
        })
    }

    /// Returns the query plans, by name, of the statements that must stay fast however many jobs have ended: the plans
    /// that a session makes once and keeps. For tests and for support.
    ///
    /// # Errors
    /// [`StoreError::Database`].
    pub async fn plans(&self) -> Result<Vec<(&'static str, String)>, StoreError> {
        let mut pooled = self.session.pool.acquire().await?;
        let mut plans = Vec::new();
        for (name, sql) in statements::watched() {
            let parameters = (1..).take_while(|n| sql.contains(&format!("${n}"))).count();
            let prepare = format!("PREPARE watched AS {sql}");
            sqlx::raw_sql(sqlx::AssertSqlSafe(prepare)).execute(&mut pooled.connection).await?;
            let values = match parameters {
                0 => String::new(),
                n => format!(" ({})", vec!["NULL"; n].join(", ")),
            };
            let explain = format!("EXPLAIN (COSTS OFF) EXECUTE watched{values}");
            let lines = sqlx::raw_sql(sqlx::AssertSqlSafe(explain)).fetch_all(&mut pooled.connection).await?;
            let lines: Vec<String> =
                lines.iter().filter_map(|r| r.text("QUERY PLAN").transpose()).collect::<Result<_, _>>()?;
            plans.push((name, lines.join("\n")));
            sqlx::raw_sql("DEALLOCATE watched").execute(&mut pooled.connection).await?;
        }
        pooled.put_back();
        Ok(plans)
    }

    /// Closes the connections. Later calls fail.
    pub async fn close(&self) {
        if let Some(listener) = &self.listener {
            listener.close();
        }
        self.session.pool.close().await;
    }
}

#[async_trait]
impl Store for PostgresStore {
    fn address(&self) -> String {
        self.what.clone()
    }

    fn queue_name(&self) -> &str {
        &self.session.settings.queue
    }

    async fn identity(&self) -> Result<Option<String>, StoreError> {
        match self.session.row(Retries::Always, || sqlx::query(statements::IDENTITY)).await {
            Ok(row) => row.map(|r| r.text("identity")).transpose().map(Option::flatten),
            // The role lacks the permission, or the server only speaks the protocol of Postgres.
            Err(StoreError::Database(sqlx::Error::Database(e)))
                if matches!(e.code().as_deref(), Some("42501" | "42883" | "0A000")) =>
            {
                Ok(None)
            }
            Err(e) => Err(e),
        }
    }

    async fn put_circuit(&self, circuit: &Circuit) -> Result<Circuit, StoreError> {
        let row = self.session.row(Retries::Always, || {
            sqlx::query(statements::PUT_CIRCUIT)
                .bind(circuit.name.as_str().to_owned())
                .bind(circuit.zkey.0.to_vec())
                .bind(circuit.wasm.map(|h| h.0.to_vec()))
                .bind(i64::from(circuit.n_vars))
                .bind(i64::from(circuit.n_public))
                .bind(i64::from(circuit.domain_size))
        });
        rows::circuit(&row.await?.ok_or(sqlx::Error::RowNotFound)?)
    }

    async fn circuit(&self, name: &CircuitName) -> Result<Option<Circuit>, StoreError> {
        let row = self.session.row(Retries::Always, || sqlx::query(statements::CIRCUIT).bind(name.as_str().to_owned()));
        row.await?.as_ref().map(rows::circuit).transpose()
    }

    async fn circuits(&self) -> Result<Vec<Circuit>, StoreError> {
        let rows = self.session.rows(Retries::Always, || sqlx::query(statements::CIRCUITS)).await?;
        rows.iter().map(rows::circuit).collect()
    }

    async fn remove_circuit(&self, name: &CircuitName) -> Result<bool, StoreError> {
        let name = name.clone();
        self.session
            .transaction(move |c| {
                let name = name.clone();
                Box::pin(async move {
                    let removed = sqlx::query(statements::REMOVE_CIRCUIT).bind(name.as_str().to_owned());
                    if removed.fetch_all(&mut *c).await?.is_empty() {
                        return Ok(false);
                    }
                    // Counted with the lock held, so that jobs submitted until then are seen.
                    let row = sqlx::query(statements::UNFINISHED).bind(name.as_str().to_owned()).fetch_one(c).await?;
                    match rows::number(&row, "n")? {
                        0 => Ok(true),
                        unfinished => Err(StoreError::InUse { name, unfinished }),
                    }
                })
            })
            .await
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
        self.session.row(Retries::Always, note).await.map(|_| ())
    }

    async fn removable_content(&self) -> Result<Vec<Removable>, StoreError> {
        let rows = self.session.rows(Retries::Always, || sqlx::query(statements::REMOVABLE_CONTENT)).await?;
        rows.iter().map(rows::removable).collect()
    }

    async fn forget_removable(&self, record: &Removable) -> Result<(), StoreError> {
        let forget = || sqlx::query(statements::FORGET_REMOVABLE).bind(record.number);
        self.session.row(Retries::Always, forget).await.map(|_| ())
    }

    async fn submit(&self, new: &NewJob, input: Input<'_>) -> Result<Submitted, StoreError> {
        let input_key = input.key.to_owned();
        let call = SubmitCall { new: new.clone(), input: Zeroizing::new(input.bytes.to_vec()), input_key };
        self.submits.call(call).await?
    }

    async fn reject(&self, new: &NewJob, error: &JobError) -> Result<Submitted, StoreError> {
        let write = |sql: &'static str| {
            self.session.row(Retries::Always, move || {
                sqlx::query(sql)
                    .bind(self.session.queue())
                    .bind(new.id.to_string())
                    .bind(new.circuit.as_str().to_owned())
                    .bind(new.body.0.to_vec())
                    .bind(new.idempotency_key.clone().map(String::from))
                    .bind(i64::from(new.priority.0))
                    .bind(error.class.as_str())
                    .bind(clean(&error.message))
            })
        };
        for _ in 0..TRIES {
            if let Some(row) = write(statements::REJECT).await? {
                return Ok(Submitted::Created(rows::job(&row)?));
            }
            match self.session.same(&[new]).await?.pop().map(|(_, same)| same).transpose()? {
                // It was purged in between.
                None => {}
                Some(Repeat::Same(job) | Repeat::Rejected { job, same_body: true }) => {
                    return Ok(Submitted::Existing(job));
                }
                Some(Repeat::Rejected { same_body: false, .. }) => {
                    if let Some(row) = unless_taken(write(statements::REJECT_ANEW).await)? {
                        return Ok(Submitted::Created(rows::job(&row)?));
                    }
                }
            }
        }
        Err(StoreError::Contended(new.id))
    }

    async fn job(&self, job: JobId) -> Result<Option<Job>, StoreError> {
        let row = self.session.row(Retries::Always, || sqlx::query(statements::JOB).bind(job.to_string()));
        row.await?.as_ref().map(rows::job).transpose()
    }

    async fn unfinished(&self, ids: &[JobId]) -> Result<Vec<JobId>, StoreError> {
        let ids: Vec<String> = ids.iter().map(JobId::to_string).collect();
        let rows = self.session.rows(Retries::Always, || sqlx::query(statements::STILL_UNFINISHED).bind(ids.clone()));
        rows.await?.iter().map(rows::job_id).collect()
    }

    async fn jobs(&self, filter: JobFilter) -> Result<Vec<Job>, StoreError> {
        let rows = self.session.rows(Retries::Always, || {
            // Consists of constants only.
            let state = filter.state.map(JobState::as_str);
            let sql = statements::jobs(state, filter.circuit.is_some(), filter.idempotency_key.is_some());
            sqlx::query(sqlx::AssertSqlSafe(sql))
                .bind(self.session.queue())
                .bind(i64::from(filter.limit))
                .bind(filter.circuit.as_ref().map(|c| c.as_str().to_owned()))
                .bind(filter.before.map(|job| job.to_string()))
                .bind(filter.idempotency_key.clone().map(String::from))
        });
        rows.await?.iter().map(rows::job).collect()
    }

    async fn claim(&self, job: JobId, worker: &WorkerId, lease: Duration) -> Result<Option<Claim>, StoreError> {
        let call = ClaimCall { id: job, worker: worker.clone(), lease: rows::millis(lease) };
        match self.claims.call(call).await? {
            Found::Nothing => Ok(None),
            Found::Job(claim) => Ok(Some(*claim)),
            Found::Unreadable(error) => Err(error),
            Found::NoInput(attempt) => {
                // Damaged from outside: no transaction of this store leaves an unfinished job without its input. The
                // job fails here, because no worker could process it and its lease would lapse again and again.
                let message = "its input is missing from the database".to_owned();
                let error = JobError { class: FailureClass::BadInput, message };
                self.fail(job, attempt, &error, Retry::Never).await?;
                Ok(None)
            }
        }
    }

    async fn input(&self, job: JobId, attempt: Attempt) -> Result<Option<Zeroizing<Vec<u8>>>, StoreError> {
        self.session.input(job, attempt).await
    }

    async fn heartbeat(
        &self,
        id: JobId,
        attempt: Attempt,
        lease: Duration,
        stage: Stage,
        progress: f32,
    ) -> Result<Held, StoreError> {
        let (lease, progress) = (rows::millis(lease), rows::fraction(progress));
        self.heartbeats.call(HeartbeatCall { id, attempt, lease, stage, progress }).await
    }

    async fn finish(&self, id: JobId, attempt: Attempt, result: &JobResult) -> Result<Held, StoreError> {
        let result = serde_json::to_string(result).map_err(|e| corrupt("result", e))?;
        self.finishes.call(FinishCall { id, attempt, result }).await
    }

    async fn fail(&self, job: JobId, attempt: Attempt, error: &JobError, retry: Retry) -> Result<Held, StoreError> {
        let charge = rows::charges(error.class);
        let (delay, keep) = match retry {
            Retry::Never => (None, rows::keep_input(&self.session.settings, error.class)),
            Retry::After(delay) => (Some(rows::millis(delay)), None),
        };
        // A notice for a job that is not due yet would wake the workers for nothing.
        let notify = self.session.channel.clone().filter(|_| delay == Some(0));
        let fail = || {
            fenced(statements::FAIL, job, attempt)
                .bind(i64::from(charge.transient))
                .bind(i64::from(charge.device))
                .bind(i64::from(charge.lost))
                .bind(error.class.as_str())
                .bind(clean(&error.message))
                .bind(delay)
                .bind(keep)
                .bind(notify.clone())
                .bind(attempt.submission)
        };
        let failed = || {
            fenced(statements::FAILED, job, attempt)
                .bind(attempt.submission)
                .bind(error.class.as_str())
                .bind(clean(&error.message))
        };
        self.session.changed_or_recognised(fail, failed).await
    }

    async fn release(&self, job: JobId, attempt: Attempt) -> Result<Held, StoreError> {
        self.session.release(job, attempt).await
    }

    async fn confirm_cancel(&self, job: JobId, attempt: Attempt) -> Result<Held, StoreError> {
        let run = |sql: &'static str| {
            self.session.row(Retries::Always, move || fenced(sql, job, attempt).bind(attempt.submission))
        };
        for _ in 0..TRIES {
            if let Some(row) = run(statements::CONFIRM_CANCEL).await? {
                return held(Some(&row));
            }
            let Some(row) = run(statements::HELD_OR_CANCELLED).await? else { return Ok(Held::Lost) };
            match held(Some(&row))? {
                // Cancellation was requested between the two. A request stays until the attempt ends.
                Held::Yes { cancel: true } if rows::state(&row)? == JobState::Running => {}
                held => return Ok(held),
            }
        }
        Err(StoreError::Contended(job))
    }

    async fn cancel(&self, job: JobId) -> Result<Option<Cancelled>, StoreError> {
        for _ in 0..TRIES {
            let row = self.session.row(Retries::IfUndone, || sqlx::query(statements::CANCEL).bind(job.to_string()));
            if let Some(row) = row.await? {
                return Ok(Some(match rows::state(&row)? {
                    JobState::Running => Cancelled::Requested,
                    _ => Cancelled::Now,
                }));
            }
            let row = self.session.row(Retries::Always, || sqlx::query(statements::JOB_STATE).bind(job.to_string()));
            match row.await?.as_ref().map(rows::state).transpose()? {
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
        let id = job.to_string();
        let body = input.map(|i| i.body);
        let input = input.map(|i| Arc::new((Zeroizing::new(i.input.bytes.to_vec()), i.input.key.to_owned())));
        let channel = self.session.channel.clone();
        self.session
            .transaction(move |c| {
                let (id, input, channel) = (id.clone(), input.clone(), channel.clone());
                Box::pin(async move {
                    sqlx::query(statements::LOCK_CIRCUIT).bind(id.clone()).fetch_all(&mut *c).await?;
                    let row = sqlx::query(statements::REQUEUEABLE).bind(id.clone()).fetch_optional(&mut *c).await?;
                    let Some(row) = row else { return Ok(Requeued::Unknown) };
                    let state = rows::state(&row)?;
                    if !matches!(state, JobState::Failed | JobState::Cancelled) {
                        return Ok(Requeued::Not(state));
                    }
                    let held = sqlx::query(statements::LOCK_INPUT).bind(id.clone()).fetch_optional(&mut *c).await?;
                    if input.is_none() && held.is_none() {
                        return Ok(Requeued::InputGone);
                    }
                    if row.flag("unregistered")?.unwrap_or_default() {
                        return Err(StoreError::UnknownCircuit(rows::circuit_name(&row)?));
                    }
                    // A stored input keeps the content, too.
                    if held.is_none() && row.flag("gone")?.unwrap_or_default() {
                        return Ok(Requeued::CircuitGone(rows::circuit_name(&row)?));
                    }
                    let body = rows::body_of_requeued(&row, job, body)?;
                    let requeue = sqlx::query(statements::REQUEUE).bind(id.clone());
                    let requeue = requeue.bind(start_within.map(rows::millis)).bind(body.0.to_vec());
                    let row = requeue.fetch_one(&mut *c).await?;
                    let queued = rows::job(&row)?;
                    match input {
                        Some(input) => {
                            let replace = sqlx::query(statements::REPLACE_INPUT).bind(id);
                            replace.bind(input.0.as_slice()).bind(input.1.clone()).execute(&mut *c).await?
                        }
                        None => sqlx::query(statements::KEEP_INPUT).bind(id).execute(&mut *c).await?,
                    };
                    if channel.is_some() {
                        // The job may belong to another queue than this store's.
                        let channels = vec![listen::channel(&queued.queue)];
                        sqlx::query(statements::NOTIFY).bind(channels).fetch_all(c).await?;
                    }
                    Ok(Requeued::Yes(Box::new(queued)))
                })
            })
            .await
    }

    async fn set_paused(&self, scope: &Scope, paused: bool) -> Result<bool, StoreError> {
        let (what, name) = match scope {
            Scope::Queue => ("queue", self.session.queue()),
            Scope::Circuit(name) => ("circuit", name.as_str().to_owned()),
        };
        let notify = !paused && self.session.channel.is_some();
        self.session
            .transaction(move |c| {
                let name = name.clone();
                Box::pin(async move {
                    let sql = if paused { statements::PAUSE } else { statements::RESUME };
                    let changed = sqlx::query(sql).bind(what).bind(name.clone()).fetch_all(&mut *c).await?;
                    if changed.is_empty() || !notify {
                        return Ok(!changed.is_empty());
                    }
                    let queues = match what {
                        "queue" => vec![name],
                        _ => {
                            let rows = sqlx::query(statements::QUEUES_OF).bind(name).fetch_all(&mut *c).await?;
                            rows.iter().filter_map(|r| r.text("queue").transpose()).collect::<Result<_, _>>()?
                        }
                    };
                    let channels: Vec<String> = queues.iter().map(|q| listen::channel(q)).collect();
                    sqlx::query(statements::NOTIFY).bind(channels).fetch_all(c).await?;
                    Ok(true)
                })
            })
            .await
    }

    async fn paused(&self) -> Result<Vec<(Scope, i64)>, StoreError> {
        let rows =
            self.session.rows(Retries::Always, || sqlx::query(statements::PAUSED).bind(self.session.queue())).await?;
        rows.iter().map(rows::pause).collect()
    }

    async fn due(&self, limit: u32) -> Result<Vec<Due>, StoreError> {
        let rows = self
            .session
            .rows(Retries::Always, || sqlx::query(statements::DUE).bind(self.session.queue()).bind(i64::from(limit)));
        rows.await?.iter().map(rows::due).collect()
    }

    async fn changed(&self, at_most: Duration) -> Result<(), StoreError> {
        match &self.listener {
            Some(listener) => listener.wait(at_most).await,
            None => sleep(at_most).await,
        }
        Ok(())
    }

    async fn sweep(&self, limit: u32) -> Result<Swept, StoreError> {
        let limit = i64::from(limit);
        let keep = rows::keep_input(&self.session.settings, FailureClass::Timeout);
        let expired = self.session.rows(Retries::IfUndone, || {
            sqlx::query(statements::EXPIRE).bind(self.session.queue()).bind(limit).bind(keep)
        });
        let expired = expired.await?.iter().map(rows::job_id).collect::<Result<_, _>>()?;
        let inputs =
            self.session.rows(Retries::IfUndone, || sqlx::query(statements::END_INPUTS).bind(limit)).await?.len()
                as u64;
        Ok(Swept { expired, inputs })
    }

    async fn purgeable(&self, which: &Purge<'_>, limit: u32, skip: u32) -> Result<Vec<JobId>, StoreError> {
        let rows = self.session.rows(Retries::Always, || {
            sqlx::query(statements::PURGEABLE)
                .bind(self.session.queue())
                .bind(i64::from(limit))
                .bind(rows::millis(which.older_than))
                .bind(which.states.iter().map(|s| s.as_str().to_owned()).collect::<Vec<_>>())
                .bind(i64::from(skip))
        });
        rows.await?.iter().map(rows::job_id).collect()
    }

    async fn purge(&self, which: &Purge<'_>, jobs: &[JobId]) -> Result<Vec<JobId>, StoreError> {
        let rows = self.session.rows(Retries::IfUndone, || {
            sqlx::query(statements::PURGE)
                .bind(jobs.iter().map(JobId::to_string).collect::<Vec<_>>())
                .bind(rows::millis(which.older_than))
                .bind(which.states.iter().map(|s| s.as_str().to_owned()).collect::<Vec<_>>())
        });
        rows.await?.iter().map(rows::job_id).collect()
    }

    async fn settle_circuit(&self, name: &CircuitName) -> Result<(), StoreError> {
        let row = self.session.row(Retries::Always, || sqlx::query(statements::SETTLE_CIRCUIT).bind(name.to_string()));
        row.await.map(|_| ())
    }

    async fn load(&self) -> Result<Load, StoreError> {
        self.session.load.load(|at_most| self.session.query_load(at_most)).await
    }

    async fn content_in_use(&self) -> Result<Vec<ContentHash>, StoreError> {
        let rows = self.session.rows(Retries::Always, || sqlx::query(statements::CONTENT_IN_USE)).await?;
        rows.iter().map(|r| rows::content_hash(r, "content")).collect()
    }

    async fn counts(&self) -> Result<Counts, StoreError> {
        let load = self.load().await?;
        let counts = self.session.count_ended().await?;
        Ok(Counts { queued: load.queued, running: load.running, ..counts })
    }

    async fn inputs_held(&self) -> Result<Vec<(String, u64)>, StoreError> {
        let rows = self.session.rows(Retries::Always, || sqlx::query(statements::INPUTS_HELD)).await?;
        rows.iter().map(rows::inputs_of_key).collect()
    }

    async fn ping(&self) -> Result<(), StoreError> {
        let row = self.session.row(Retries::Always, || sqlx::query(statements::TAKES_WRITES)).await?;
        let row = row.ok_or(sqlx::Error::RowNotFound)?;
        let why = match (row.flag("standby")?, row.flag("read_only")?, row.flag("allowed")?) {
            (Some(true), ..) => "it is a standby, or became one",
            (_, Some(true), _) => "it is read-only (default_transaction_read_only)",
            (.., Some(false)) => "the role of DATABASE_URL may not write to the tables jobs and job_inputs",
            _ => return Ok(()),
        };
        // A new connection may lead to the current primary.
        self.session.pool.close_idle();
        Err(StoreError::Unwritable { what: self.what.clone(), why: why.into() })
    }
}

/// Replaces the character 0, which Postgres cannot store in text.
fn clean(text: &str) -> String {
    text.replace('\0', "\u{fffd}")
}
