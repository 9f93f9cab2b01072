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
//! **Failures.** Every call ends within about half a minute, whatever happens to the server. A deadlock or a failure to
//! connect changed nothing, and the call is retried a few times. If a connection broke after the statement was sent, it
//! is unknown whether it took effect. Calls that may be repeated are retried: reads, heartbeats, submits (the repeat of
//! one that succeeded answers `Existing`); and a finish, a failure, a release or a confirmed cancellation, each of
//! which recognises its own work in the row and answers as the first one would have. Other calls return the error. A
//! claim whose answer was lost leaves a job running without a worker until its lease lapses; a caller that repeats a
//! cancel may find it too late because the first one succeeded.
//!
//! **Sessions.** Plans are made once per session and use indexes (`pool.rs`). Pgbouncer works only in session mode,
//! because prepared statements and LISTEN belong to a session.
//!
//! **Secrets.** Inputs are in the database as they were submitted (sealed or not) until their job ends, those of failed
//! jobs a while longer. What the server keeps of deleted rows until a vacuum, and in its log, is up to the server.

mod coalesce;
mod listen;
mod pool;
mod statements;

use std::collections::HashSet;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures::future::BoxFuture;
use sqlx::postgres::{PgArguments, PgConnectOptions, PgConnection, PgRow};
use sqlx::query::Query;
use sqlx::{ConnectOptions, Connection, Postgres, Row};
use tokio::time::{sleep, timeout};
use zeroize::Zeroizing;

use self::coalesce::{Bounds, Call, Coalescer, Joint};
use self::listen::{Listener, channel};
use self::pool::{Pool, Taken, late};
use super::load::Known;
use super::rows::{self, Columns, Repeat, corrupt};
use super::words::{met_a_lock, plainly};
use super::{
    Cancelled, Claim, Counts, Due, FormerCircuit, Held, Input, JobFilter, Load, Purge, Replacement, Requeued, Retry,
    Scope, Store, StoreError, StoreSettings, Submitted, Swept,
};
use crate::model::{
    Attempt, Circuit, CircuitName, ContentHash, FailureClass, Job, JobError, JobId, JobResult, JobState, NewJob, Stage,
    WorkerId,
};

/// Migrations in order: the first takes the schema from version 0 to 1, and so on. Never edit one that was released.
const MIGRATIONS: [&str; 3] = [
    include_str!("../../../migrations/postgres/0001_jobs.sql"),
    include_str!("../../../migrations/postgres/0002_waiting.sql"),
    include_str!("../../../migrations/postgres/0003_former_circuits.sql"),
];
/// The advisory lock held during a migration ("PrvW").
const MIGRATION_LOCK: i64 = 0x5072_7657;
/// The oldest server version that supports the SQL used here.
const OLDEST_SERVER: i64 = 130_000;

/// Maximum number of connections, not counting the listener's.
const CONNECTIONS: usize = 10;
/// How long a statement or a transaction may take. The server gives up on a statement before that.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(15);
/// Number of ended jobs up to which they are counted one by one.
const COUNTED_ENDED: u32 = 100_000;
/// How many times a call is made that met a deadlock or a broken connection.
const TRIES: u32 = 4;
/// Limits of a joint statement.
const BOUNDS: Bounds = Bounds { calls: 256, bytes: 8 << 20 };
/// The limits over TLS: what fits one record. sqlx sends each record by itself and leaves Nagle's algorithm on, so that
/// the rest of a larger statement waits for the server's delayed acknowledgement, about 40 ms.
const TLS_BOUNDS: Bounds = Bounds { calls: 256, bytes: 15 << 10 };

type Statement = Query<'static, Postgres, PgArguments>;

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

/// What all statements share.
struct Session {
    pool: Pool,
    settings: StoreSettings,
    /// The channel that workers listen on, if they are to be notified.
    channel: Option<String>,
    load: Known,
}

/// The effect of a statement that failed.
#[derive(Clone, Copy, PartialEq, Eq)]
enum StatementFate {
    /// The server refused it; a retry will not help.
    Refused,
    /// It changed nothing, and a retry may succeed.
    Undone,
    /// It may have taken effect. The connection is unusable.
    Unknown,
}

/// When a statement is retried.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Again {
    /// Even if it may have taken effect.
    Always,
    /// Only if it has not taken effect.
    IfUndone,
}

/// How [`Session::retried`] treats errors of the database.
#[derive(Clone, Copy)]
struct RetryPolicy {
    again: Again,
    /// Number of calls that the work makes together.
    calls: usize,
    /// Whether the connection goes back to the pool after an error that left it usable.
    reuse_after_error: bool,
}

struct SubmitCall {
    new: NewJob,
    input: Zeroizing<Vec<u8>>,
    input_key: String,
}

struct ClaimCall {
    id: JobId,
    worker: WorkerId,
    lease: i64,
}

/// The outcome of a claim.
enum Found {
    Nothing,
    Job(Box<Claim>),
    /// A job, now running by this attempt, whose input is missing.
    NoInput(Attempt),
    /// A job, now running until its lease lapses, whose row this version cannot read.
    Unreadable(StoreError),
}

struct HeartbeatCall {
    id: JobId,
    attempt: Attempt,
    lease: i64,
    stage: Stage,
    progress: f64,
}

struct FinishCall {
    id: JobId,
    attempt: Attempt,
    result: String,
}

impl PostgresStore {
    /// Opens the store in the database at `url` (`postgres://USER:PASSWORD@HOST:PORT/NAME`, with sqlx's parameters such
    /// as `sslmode`) and brings its schema up to date. Several processes may do this at the same time.
    ///
    /// # Errors
    /// [`StoreError::Away`] if the server cannot be reached; [`StoreError::Open`] if it refuses the connection, is too
    /// old, or the database does not accept the schema; [`StoreError::NewerSchema`].
    pub async fn open(url: &str, settings: StoreSettings) -> Result<Self, StoreError> {
        let options = PgConnectOptions::from_str(url).map_err(|e| StoreError::Open {
            what: "of DATABASE_URL".to_owned(),
            why: format!("expected postgres://USER:PASSWORD@HOST:PORT/NAME; {e}"),
        })?;
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
        let cannot = |e: sqlx::Error| {
            let (what, why) = (what.clone(), plainly(&e));
            if is_away(&e) { StoreError::Away { what, why } } else { StoreError::Open { what, why } }
        };
        // A separate connection: those in the pool must belong to the runtime that uses them.
        let mut connection = pool::connect(&options).await.map_err(cannot)?;
        migrate(&mut connection).await.map_err(|e| match e {
            StoreError::Database(e) => cannot(e),
            StoreError::Open { why, .. } => StoreError::Open { what: what.clone(), why },
            e => e,
        })?;
        let tls = sqlx::query("SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()");
        let tls = tls.fetch_optional(&mut connection).await.map_err(cannot)?;
        let tls = tls.map(|r| r.flag("ssl")).transpose()?.flatten().unwrap_or_default();
        let bounds = if tls { TLS_BOUNDS } else { BOUNDS };
        let _ = timeout(ANSWER_TIMEOUT, connection.close()).await;

        let channel = settings.notify.then(|| channel(&settings.queue));
        let listener = channel.clone().map(|c| Listener::new(options.clone(), c));
        let session =
            Arc::new(Session { pool: Pool::new(options, CONNECTIONS), settings, channel, load: Known::default() });
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
        let mut taken = self.session.pool.take().await?;
        let mut plans = Vec::new();
        for (name, sql) in statements::watched() {
            let parameters = (1..).take_while(|n| sql.contains(&format!("${n}"))).count();
            let prepare = format!("PREPARE watched AS {sql}");
            sqlx::raw_sql(sqlx::AssertSqlSafe(prepare)).execute(&mut taken.connection).await?;
            let values = match parameters {
                0 => String::new(),
                n => format!(" ({})", vec!["NULL"; n].join(", ")),
            };
            let explain = format!("EXPLAIN (COSTS OFF) EXECUTE watched{values}");
            let lines = sqlx::raw_sql(sqlx::AssertSqlSafe(explain)).fetch_all(&mut taken.connection).await?;
            let lines: Vec<String> =
                lines.iter().filter_map(|r| r.text("QUERY PLAN").transpose()).collect::<Result<_, _>>()?;
            plans.push((name, lines.join("\n")));
            sqlx::raw_sql("DEALLOCATE watched").execute(&mut taken.connection).await?;
        }
        taken.give_back();
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

impl Session {
    /// Runs a statement, retrying it where that is safe, and reads its answer to the end: Postgres commits after the
    /// last row. The argument of `make` says whether an earlier try may have taken effect.
    async fn rows(
        &self,
        again: Again,
        make: impl Fn(bool) -> Statement + Send + Sync,
    ) -> Result<Vec<PgRow>, StoreError> {
        self.joint_rows(1, again, make).await
    }

    /// Runs one statement for `calls` calls as [`Session::rows`] does. Where several calls met a lock, the statement is
    /// not retried, because the caller then makes each call alone.
    async fn joint_rows(
        &self,
        calls: usize,
        again: Again,
        make: impl Fn(bool) -> Statement + Send + Sync,
    ) -> Result<Vec<PgRow>, StoreError> {
        let policy = RetryPolicy { again, calls, reuse_after_error: true };
        self.retried(policy, |mut taken, lost| {
            let statement = make(lost);
            async move {
                let rows = statement.fetch_all(&mut taken.connection).await;
                (taken, rows.map_err(StoreError::from))
            }
        })
        .await
    }

    /// Runs `work` on a connection, up to [`TRIES`] times where `policy` allows a retry, within [`ANSWER_TIMEOUT`]
    /// each. `work` gets the connection, and whether an earlier try may have taken effect.
    async fn retried<'s, T, F>(
        &'s self,
        policy: RetryPolicy,
        work: impl Fn(Taken<'s>, bool) -> F + Send + Sync,
    ) -> Result<T, StoreError>
    where
        F: Future<Output = (Taken<'s>, Result<T, StoreError>)> + Send,
    {
        let (mut tries, mut lost) = (1, false);
        loop {
            let (error, repeat) = match self.pool.take().await {
                Err(e) => {
                    let soon = may_come_soon(&e);
                    (e, soon)
                }
                Ok(taken) => match timeout(ANSWER_TIMEOUT, work(taken, lost)).await {
                    Err(_) => return Err(late("no answer", ANSWER_TIMEOUT).into()),
                    Ok((taken, Ok(value))) => {
                        taken.give_back();
                        return Ok(value);
                    }
                    Ok((taken, Err(StoreError::Database(e)))) => {
                        let fate = fate(&e);
                        let repeat = match fate {
                            StatementFate::Refused => false,
                            StatementFate::Undone => policy.calls == 1 || !met_a_lock(&e),
                            StatementFate::Unknown => policy.again == Again::Always,
                        };
                        if fate == StatementFate::Unknown {
                            self.pool.forget_idle();
                            lost = true;
                        } else if policy.reuse_after_error {
                            taken.give_back();
                        }
                        (e, repeat)
                    }
                    Ok((taken, Err(e))) => {
                        taken.give_back();
                        return Err(e);
                    }
                },
            };
            if !repeat || tries == TRIES {
                return Err(error.into());
            }
            sleep(Duration::from_millis(25) * (1 << tries)).await;
            tries += 1;
        }
    }

    async fn row(
        &self,
        again: Again,
        make: impl Fn(bool) -> Statement + Send + Sync,
    ) -> Result<Option<PgRow>, StoreError> {
        Ok(self.rows(again, make).await?.into_iter().next())
    }

    /// Runs a transaction, retrying it if it changed nothing. An error of `work` rolls it back.
    async fn transaction<T: Send>(
        &self,
        work: impl for<'c> Fn(&'c mut PgConnection) -> BoxFuture<'c, Result<T, StoreError>> + Send + Sync,
    ) -> Result<T, StoreError> {
        // A database error may be that of the rollback, so the connection is not reused after one.
        let policy = RetryPolicy { again: Again::IfUndone, calls: 1, reuse_after_error: false };
        let work = &work;
        self.retried(policy, |mut taken, _| async move {
            let done = in_transaction(&mut taken.connection, work).await;
            (taken, done)
        })
        .await
    }

    fn queue(&self) -> String {
        self.settings.queue.clone()
    }

    /// Stores those of these jobs that are new; returns each with the index of its call.
    async fn insert(&self, calls: &[&SubmitCall]) -> Result<Vec<(usize, Job)>, StoreError> {
        let rows = self.joint_rows(calls.len(), Again::Always, |_| {
            let column = |of: fn(&SubmitCall) -> String| calls.iter().map(|c| of(c)).collect::<Vec<_>>();
            sqlx::query(statements::SUBMIT)
                .bind(self.queue())
                .bind(self.channel.clone())
                .bind(column(|c| c.new.id.to_string()))
                .bind(column(|c| c.new.circuit.as_str().to_owned()))
                .bind(calls.iter().map(|c| c.new.body.0.to_vec()).collect::<Vec<_>>())
                .bind(calls.iter().map(|c| c.new.idempotency_key.clone()).collect::<Vec<_>>())
                .bind(calls.iter().map(|c| i64::from(c.new.priority.0)).collect::<Vec<_>>())
                .bind(calls.iter().map(|c| c.new.start_within.map(rows::millis)).collect::<Vec<_>>())
                .bind(calls.iter().map(|c| c.input.as_slice()).collect::<Vec<_>>())
                .bind(column(|c| c.input_key.clone()))
        });
        rows.await?.iter().map(|r| Ok((place(r)?, rows::job(r)?))).collect()
    }

    /// Returns those of these jobs that were stored before, each with its index.
    async fn same(&self, new: &[&NewJob]) -> Result<Vec<(usize, Result<Repeat, StoreError>)>, StoreError> {
        let rows = self.rows(Again::Always, |_| {
            sqlx::query(statements::SAME_JOBS)
                .bind(self.queue())
                .bind(new.iter().map(|n| n.id.to_string()).collect::<Vec<_>>())
                .bind(new.iter().map(|n| n.idempotency_key.clone()).collect::<Vec<_>>())
        });
        let rows = rows.await?;
        let same = rows.iter().map(|r| {
            let at = place(r)?;
            let new = new.get(at).ok_or_else(|| corrupt("ord", at))?;
            Ok((at, rows::repeat(r, new)))
        });
        same.collect()
    }

    /// Replaces a rejected job by a submit with the same id; returns `None` if it is no longer there as a rejected job,
    /// or the circuit has been removed.
    async fn take_place(&self, call: &SubmitCall) -> Result<Option<Job>, StoreError> {
        let new = &call.new;
        let row = self.row(Again::Always, |_| {
            sqlx::query(statements::TAKE_PLACE)
                .bind(self.queue())
                .bind(self.channel.clone())
                .bind(new.id.to_string())
                .bind(new.circuit.as_str().to_owned())
                .bind(new.body.0.to_vec())
                .bind(new.idempotency_key.clone())
                .bind(i64::from(new.priority.0))
                .bind(new.start_within.map(rows::millis))
                .bind(call.input.as_slice())
                .bind(call.input_key.clone())
        });
        unless_taken(row.await)?.as_ref().map(rows::job).transpose()
    }

    async fn known_circuits<'a>(
        &self,
        names: impl Iterator<Item = &'a CircuitName>,
    ) -> Result<HashSet<String>, StoreError> {
        let names: Vec<String> = names.map(|n| n.as_str().to_owned()).collect();
        let rows = self.rows(Again::Always, |_| sqlx::query(statements::KNOWN_CIRCUITS).bind(names.clone())).await?;
        rows.iter().map(|r| Ok(r.text("name")?.unwrap_or_default())).collect()
    }

    /// Counts ended jobs, or estimates their number if there are too many.
    async fn ended(&self) -> Result<Counts, StoreError> {
        let bounded = |sql: &'static str| {
            self.rows(Again::Always, move |_| {
                sqlx::query(sql).bind(self.settings.queue.clone()).bind(i64::from(COUNTED_ENDED) + 1)
            })
        };
        let bound = u64::from(COUNTED_ENDED);
        let near = rows::counts(&bounded(statements::ENDED).await?)?;
        if near.done + near.failed + near.cancelled <= bound {
            return Ok(near);
        }
        let mut counts = rows::counts(&bounded(statements::PUT_ASIDE).await?)?;
        counts.estimated = true;
        counts.done = near.done.max(self.expected(JobState::Done).await?);
        for (n, state) in [(&mut counts.failed, JobState::Failed), (&mut counts.cancelled, JobState::Cancelled)] {
            if *n > bound {
                *n = self.expected(state).await?.max(*n);
            }
        }
        Ok(counts)
    }

    /// Returns the number of jobs of this queue in this state by the server's statistics, which its vacuum maintains.
    async fn expected(&self, state: JobState) -> Result<u64, StoreError> {
        let quoted = self.row(Again::Always, |_| sqlx::query("SELECT quote_literal($1) AS queue").bind(self.queue()));
        let queue = quoted.await?.map(|r| r.text("queue")).transpose()?.flatten().unwrap_or_default();
        let sql = statements::expected(&queue, state.as_str());
        // Consists of constants and of what the server quoted.
        let explain = |_| sqlx::query(sqlx::AssertSqlSafe(sql.clone())).persistent(false);
        let plan = self.row(Again::Always, explain).await?;
        let plan = plan.map(|r| r.text("QUERY PLAN")).transpose()?.flatten().unwrap_or_default();
        let rows = plan.split_once("rows=").and_then(|(_, rest)| rest.split_whitespace().next()?.parse().ok());
        rows.ok_or_else(|| corrupt("QUERY PLAN", format!("expected rows=NUMBER, got {plan:?}")))
    }

    async fn look_at_load(&self, at_most: Option<u64>) -> Result<Load, StoreError> {
        let at_most = at_most.map(|n| i64::try_from(n).unwrap_or(i64::MAX));
        let row =
            self.row(Again::Always, |_| sqlx::query(statements::LOAD).bind(self.settings.queue.clone()).bind(at_most));
        rows::load(&row.await?.ok_or(sqlx::Error::RowNotFound)?)
    }

    async fn release(&self, job: JobId, attempt: Attempt) -> Result<Held, StoreError> {
        let row = self.row(Again::Always, |lost| {
            fenced(statements::RELEASE, job, attempt).bind(self.channel.clone()).bind(lost).bind(attempt.submission)
        });
        held(row.await?.as_ref())
    }
}

/// Calls made together, and their answers so far.
struct Batch<'a, C: Call> {
    calls: &'a [Arc<C>],
    /// One for each call, in the order of `calls`.
    answers: Vec<Option<C::Answer>>,
    /// Indices into `calls` of those without an answer, in the order in which statements visit (and so lock) their
    /// rows.
    open: Vec<usize>,
}

impl<'a, C: Call> Batch<'a, C> {
    /// Orders the calls by what each of them locks.
    fn new<L: Ord>(calls: &'a [Arc<C>], locks: impl Fn(&C) -> L) -> Self {
        let mut open: Vec<usize> = (0..calls.len()).collect();
        open.sort_by_cached_key(|n| calls.get(*n).map(|c| locks(c)));
        Self { calls, answers: calls.iter().map(|_| None).collect(), open }
    }

    /// Returns the calls that had no answer when [`Batch::all_answered`] was last called; at first, all calls.
    fn open(&self) -> Vec<&'a C> {
        self.open.iter().filter_map(|n| self.calls.get(*n)).map(Arc::as_ref).collect()
    }

    /// Answers the call at position `n` of [`Batch::open`].
    fn answer(&mut self, n: usize, answer: C::Answer) {
        if let Some(slot) = self.open.get(n).and_then(|n| self.answers.get_mut(*n)) {
            *slot = Some(answer);
        }
    }

    /// Removes the answered calls from [`Batch::open`]; returns whether none is left.
    fn all_answered(&mut self) -> bool {
        self.open.retain(|n| self.answers.get(*n).is_some_and(Option::is_none));
        self.open.is_empty()
    }

    /// Returns the answers in the order of the calls, with `default` for those that have none.
    fn finish(self, default: impl Fn(&C) -> C::Answer) -> Vec<C::Answer> {
        self.answers.into_iter().zip(self.calls).map(|(a, c)| a.unwrap_or_else(|| default(c))).collect()
    }
}

impl Call for SubmitCall {
    type Answer = Result<Submitted, StoreError>;

    fn keys(&self) -> Vec<Vec<u8>> {
        let id = self.new.id.0.as_bytes().to_vec();
        // Distinguished from an id by its first byte and its length.
        let key = self.new.idempotency_key.as_ref().map(|k| [b"idempotency key ", k.as_bytes()].concat());
        std::iter::once(id).chain(key).collect()
    }

    fn bytes(&self) -> usize {
        let key = self.new.idempotency_key.as_ref().map_or(0, String::len);
        self.input.len() + self.input_key.len() + self.new.circuit.as_str().len() + key + 150
    }
}

impl Joint<SubmitCall> for Session {
    async fn run(&self, calls: Vec<Arc<SubmitCall>>) -> Result<Vec<Result<Submitted, StoreError>>, StoreError> {
        // By key first: the same keys may be in progress elsewhere with other ids, and each is waited for.
        let mut batch = Batch::new(&calls, |c| (c.new.idempotency_key.clone(), c.new.id));
        // A job that conflicts may be purged before it is read: then the new one can be inserted.
        for _ in 0..TRIES {
            for (n, job) in self.insert(&batch.open()).await? {
                batch.answer(n, Ok(Submitted::Created(job)));
            }
            if batch.all_answered() {
                break;
            }
            let new: Vec<&NewJob> = batch.open().into_iter().map(|c| &c.new).collect();
            for (n, same) in self.same(&new).await? {
                match same {
                    Ok(Repeat::Same(job)) => batch.answer(n, Ok(Submitted::Existing(job))),
                    Ok(Repeat::Rejected { .. }) => {
                        if let Some(call) = batch.open().get(n)
                            && let Some(job) = self.take_place(call).await?
                        {
                            batch.answer(n, Ok(Submitted::Created(job)));
                        }
                    }
                    Err(e) => batch.answer(n, Err(e)),
                }
            }
            if batch.all_answered() {
                break;
            }
            let open = batch.open();
            let known = self.known_circuits(open.iter().map(|c| &c.new.circuit)).await?;
            for (n, call) in open.iter().enumerate() {
                if !known.contains(call.new.circuit.as_str()) {
                    batch.answer(n, Err(StoreError::UnknownCircuit(call.new.circuit.clone())));
                }
            }
            if batch.all_answered() {
                break;
            }
        }
        Ok(batch.finish(|c| Err(StoreError::UnknownCircuit(c.new.circuit.clone()))))
    }
}

impl Call for ClaimCall {
    type Answer = Found;

    fn keys(&self) -> Vec<Vec<u8>> {
        vec![self.id.0.as_bytes().to_vec()]
    }

    fn bytes(&self) -> usize {
        // The size that matters is that of the answer, which includes the input.
        64 << 10
    }
}

impl Joint<ClaimCall> for Session {
    async fn run(&self, calls: Vec<Arc<ClaimCall>>) -> Result<Vec<Found>, StoreError> {
        let mut batch = Batch::new(&calls, |c| c.id);
        let these = batch.open();
        let rows = self.joint_rows(calls.len(), Again::IfUndone, |_| {
            sqlx::query(statements::CLAIM)
                .bind(these.iter().map(|c| c.id.to_string()).collect::<Vec<_>>())
                .bind(these.iter().map(|c| c.worker.0.clone()).collect::<Vec<_>>())
                .bind(these.iter().map(|c| c.lease).collect::<Vec<_>>())
        });
        for row in rows.await? {
            // All are committed: one that cannot be read must not fail the others.
            let found = found(&row).unwrap_or_else(Found::Unreadable);
            batch.answer(place(&row)?, found);
        }
        Ok(batch.finish(|_| Found::Nothing))
    }

    async fn undelivered(&self, found: Found) {
        if let Found::Job(claim) = found
            && let Err(e) = self.release(claim.job.id, claim.job.attempt).await
        {
            tracing::warn!(
                job = %claim.job.id,
                error = %e,
                "could not release a job whose claimer is gone; it stays running until its lease lapses"
            );
        }
    }
}

impl Call for HeartbeatCall {
    type Answer = Held;

    fn keys(&self) -> Vec<Vec<u8>> {
        vec![self.id.0.as_bytes().to_vec()]
    }

    fn bytes(&self) -> usize {
        100
    }
}

impl Joint<HeartbeatCall> for Session {
    async fn run(&self, calls: Vec<Arc<HeartbeatCall>>) -> Result<Vec<Held>, StoreError> {
        let batch = Batch::new(&calls, |c| c.id);
        let these = batch.open();
        let rows = self.joint_rows(calls.len(), Again::Always, |_| {
            sqlx::query(statements::HEARTBEAT)
                .bind(these.iter().map(|c| c.id.to_string()).collect::<Vec<_>>())
                .bind(these.iter().map(|c| i64::from(c.attempt.number)).collect::<Vec<_>>())
                .bind(these.iter().map(|c| c.lease).collect::<Vec<_>>())
                .bind(these.iter().map(|c| c.stage.as_str().to_owned()).collect::<Vec<_>>())
                .bind(these.iter().map(|c| c.progress).collect::<Vec<_>>())
                .bind(these.iter().map(|c| c.attempt.submission).collect::<Vec<_>>())
        });
        all_held(&rows.await?, batch)
    }
}

impl Call for FinishCall {
    type Answer = Held;

    fn keys(&self) -> Vec<Vec<u8>> {
        vec![self.id.0.as_bytes().to_vec()]
    }

    fn bytes(&self) -> usize {
        self.result.len() + 64
    }
}

impl Joint<FinishCall> for Session {
    async fn run(&self, calls: Vec<Arc<FinishCall>>) -> Result<Vec<Held>, StoreError> {
        let batch = Batch::new(&calls, |c| c.id);
        let these = batch.open();
        let rows = self.joint_rows(calls.len(), Again::Always, |lost| {
            sqlx::query(statements::FINISH)
                .bind(these.iter().map(|c| c.id.to_string()).collect::<Vec<_>>())
                .bind(these.iter().map(|c| i64::from(c.attempt.number)).collect::<Vec<_>>())
                .bind(these.iter().map(|c| c.result.clone()).collect::<Vec<_>>())
                .bind(lost)
                .bind(these.iter().map(|c| c.attempt.submission).collect::<Vec<_>>())
        });
        all_held(&rows.await?, batch)
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
        match self.session.row(Again::Always, |_| sqlx::query(statements::IDENTITY)).await {
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
        let row = self.session.row(Again::Always, |_| {
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
        let row = self.session.row(Again::Always, |_| sqlx::query(statements::CIRCUIT).bind(name.as_str().to_owned()));
        row.await?.as_ref().map(rows::circuit).transpose()
    }

    async fn circuits(&self) -> Result<Vec<Circuit>, StoreError> {
        let rows = self.session.rows(Again::Always, |_| sqlx::query(statements::CIRCUITS)).await?;
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

    async fn former_circuits(&self) -> Result<Vec<FormerCircuit>, StoreError> {
        let rows = self.session.rows(Again::Always, |_| sqlx::query(statements::FORMER_CIRCUITS)).await?;
        rows.iter().map(rows::former_circuit).collect()
    }

    async fn forget_former_circuit(&self, former: &FormerCircuit) -> Result<(), StoreError> {
        let forget = |_| sqlx::query(statements::FORGET_FORMER_CIRCUIT).bind(former.number);
        self.session.row(Again::Always, forget).await.map(|_| ())
    }

    async fn submit(&self, new: &NewJob, input: Input<'_>) -> Result<Submitted, StoreError> {
        let input_key = input.key.to_owned();
        let call = SubmitCall { new: new.clone(), input: Zeroizing::new(input.bytes.to_vec()), input_key };
        self.submits.call(call).await?
    }

    async fn reject(&self, new: &NewJob, error: &JobError) -> Result<Submitted, StoreError> {
        let write = |sql: &'static str| {
            self.session.row(Again::Always, move |_| {
                sqlx::query(sql)
                    .bind(self.session.queue())
                    .bind(new.id.to_string())
                    .bind(new.circuit.as_str().to_owned())
                    .bind(new.body.0.to_vec())
                    .bind(new.idempotency_key.clone())
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
        Err(sqlx::Error::RowNotFound.into())
    }

    async fn job(&self, job: JobId) -> Result<Option<Job>, StoreError> {
        let row = self.session.row(Again::Always, |_| sqlx::query(statements::JOB).bind(job.to_string()));
        row.await?.as_ref().map(rows::job).transpose()
    }

    async fn unfinished(&self, ids: &[JobId]) -> Result<Vec<JobId>, StoreError> {
        let ids: Vec<String> = ids.iter().map(JobId::to_string).collect();
        let rows = self.session.rows(Again::Always, |_| sqlx::query(statements::STILL_UNFINISHED).bind(ids.clone()));
        rows.await?.iter().map(rows::job_id).collect()
    }

    async fn jobs(&self, filter: JobFilter) -> Result<Vec<Job>, StoreError> {
        let rows = self.session.rows(Again::Always, |_| {
            // Consists of constants only.
            let state = filter.state.map(JobState::as_str);
            let sql = statements::jobs(state, filter.circuit.is_some(), filter.idempotency_key.is_some());
            sqlx::query(sqlx::AssertSqlSafe(sql))
                .bind(self.session.queue())
                .bind(i64::from(filter.limit))
                .bind(filter.circuit.as_ref().map(|c| c.as_str().to_owned()))
                .bind(filter.before.map(|job| job.to_string()))
                .bind(filter.idempotency_key.clone())
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
        let tell = self.session.channel.clone().filter(|_| delay == Some(0));
        let row = self.session.row(Again::Always, |lost| {
            fenced(statements::FAIL, job, attempt)
                .bind(i64::from(charge.transient))
                .bind(i64::from(charge.device))
                .bind(i64::from(charge.lost))
                .bind(error.class.as_str())
                .bind(clean(&error.message))
                .bind(delay)
                .bind(keep)
                .bind(tell.clone())
                .bind(lost)
                .bind(attempt.submission)
        });
        held(row.await?.as_ref())
    }

    async fn release(&self, job: JobId, attempt: Attempt) -> Result<Held, StoreError> {
        self.session.release(job, attempt).await
    }

    async fn confirm_cancel(&self, job: JobId, attempt: Attempt) -> Result<Held, StoreError> {
        let confirm = || {
            self.session.row(Again::Always, |lost| {
                fenced(statements::CONFIRM_CANCEL, job, attempt).bind(lost).bind(attempt.submission)
            })
        };
        if let yes @ Held::Yes { .. } = held(confirm().await?.as_ref())? {
            return Ok(yes);
        }
        let looked = self
            .session
            .row(Again::Always, |_| fenced(statements::HOLDS, job, attempt).bind(attempt.submission))
            .await?;
        match held(looked.as_ref())? {
            // Cancellation was requested between the two. A request stays until the attempt ends.
            Held::Yes { cancel: true } => held(confirm().await?.as_ref()),
            other => Ok(other),
        }
    }

    async fn cancel(&self, job: JobId) -> Result<Cancelled, StoreError> {
        for _ in 0..TRIES {
            let row = self.session.row(Again::IfUndone, |_| sqlx::query(statements::CANCEL).bind(job.to_string()));
            if let Some(row) = row.await? {
                return Ok(match rows::state(&row)? {
                    JobState::Running => Cancelled::Requested,
                    _ => Cancelled::Now,
                });
            }
            let row = self.session.row(Again::Always, |_| sqlx::query(statements::JOB_STATE).bind(job.to_string()));
            match row.await?.as_ref().map(rows::state).transpose()? {
                None => return Ok(Cancelled::Unknown),
                Some(state) if state.is_final() => return Ok(Cancelled::TooLate(state)),
                // The job was queued again, or submitted, in between.
                Some(_) => {}
            }
        }
        Ok(Cancelled::Unknown)
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
                    sqlx::query(statements::HOLD_CIRCUIT).bind(id.clone()).fetch_all(&mut *c).await?;
                    let row = sqlx::query(statements::REQUEUEABLE).bind(id.clone()).fetch_optional(&mut *c).await?;
                    let Some(row) = row else { return Ok(Requeued::Unknown) };
                    let state = rows::state(&row)?;
                    if !matches!(state, JobState::Failed | JobState::Cancelled) {
                        return Ok(Requeued::Not(state));
                    }
                    let held = sqlx::query(statements::HOLD_INPUT).bind(id.clone()).fetch_optional(&mut *c).await?;
                    if input.is_none() && held.is_none() {
                        return Ok(Requeued::InputGone);
                    }
                    if row.flag("adrift")?.unwrap_or_default() {
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
                        sqlx::query(statements::TELL).bind(channels).fetch_all(c).await?;
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
        let tell = !paused && self.session.channel.is_some();
        self.session
            .transaction(move |c| {
                let name = name.clone();
                Box::pin(async move {
                    let sql = if paused { statements::PAUSE } else { statements::RESUME };
                    let changed = sqlx::query(sql).bind(what).bind(name.clone()).fetch_all(&mut *c).await?;
                    if changed.is_empty() || !tell {
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
                    sqlx::query(statements::TELL).bind(channels).fetch_all(c).await?;
                    Ok(true)
                })
            })
            .await
    }

    async fn paused(&self) -> Result<Vec<(Scope, i64)>, StoreError> {
        let rows =
            self.session.rows(Again::Always, |_| sqlx::query(statements::PAUSED).bind(self.session.queue())).await?;
        rows.iter().map(rows::pause).collect()
    }

    async fn due(&self, limit: u32) -> Result<Vec<Due>, StoreError> {
        let rows = self
            .session
            .rows(Again::Always, |_| sqlx::query(statements::DUE).bind(self.session.queue()).bind(i64::from(limit)));
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
        let expired = self.session.rows(Again::IfUndone, |_| {
            sqlx::query(statements::EXPIRE).bind(self.session.queue()).bind(limit).bind(keep)
        });
        let expired = expired.await?.iter().map(rows::job_id).collect::<Result<_, _>>()?;
        let inputs =
            self.session.rows(Again::IfUndone, |_| sqlx::query(statements::END_INPUTS).bind(limit)).await?.len() as u64;
        Ok(Swept { expired, inputs })
    }

    async fn purgeable(&self, which: &Purge<'_>, limit: u32, skip: u32) -> Result<Vec<JobId>, StoreError> {
        let rows = self.session.rows(Again::Always, |_| {
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
        let rows = self.session.rows(Again::IfUndone, |_| {
            sqlx::query(statements::PURGE)
                .bind(jobs.iter().map(JobId::to_string).collect::<Vec<_>>())
                .bind(rows::millis(which.older_than))
                .bind(which.states.iter().map(|s| s.as_str().to_owned()).collect::<Vec<_>>())
        });
        rows.await?.iter().map(rows::job_id).collect()
    }

    async fn settle_circuit(&self, name: &CircuitName) -> Result<(), StoreError> {
        let row = self.session.row(Again::Always, |_| sqlx::query(statements::SETTLE_CIRCUIT).bind(name.to_string()));
        row.await.map(|_| ())
    }

    async fn load(&self) -> Result<Load, StoreError> {
        self.session.load.load(|at_most| self.session.look_at_load(at_most)).await
    }

    async fn content_in_use(&self) -> Result<Vec<ContentHash>, StoreError> {
        let rows = self.session.rows(Again::Always, |_| sqlx::query(statements::CONTENT_IN_USE)).await?;
        rows.iter().map(|r| rows::content_hash(r, "content")).collect()
    }

    async fn counts(&self) -> Result<Counts, StoreError> {
        let load = self.load().await?;
        let counts = self.session.ended().await?;
        Ok(Counts { queued: load.queued, running: load.running, ..counts })
    }

    async fn inputs_held(&self) -> Result<Vec<(String, u64)>, StoreError> {
        let rows = self.session.rows(Again::Always, |_| sqlx::query(statements::INPUTS_HELD)).await?;
        rows.iter().map(rows::inputs_of_key).collect()
    }

    async fn ping(&self) -> Result<(), StoreError> {
        let row = self.session.row(Again::Always, |_| sqlx::query(statements::TAKES_WRITES)).await?;
        let row = row.ok_or(sqlx::Error::RowNotFound)?;
        let why = match (row.flag("standby")?, row.flag("read_only")?, row.flag("allowed")?) {
            (Some(true), ..) => "it is a standby, or became one",
            (_, Some(true), _) => "it is read-only (default_transaction_read_only)",
            (.., Some(false)) => "the role of DATABASE_URL may not write to the tables jobs and job_inputs",
            _ => return Ok(()),
        };
        // A new connection may lead to the current primary.
        self.session.pool.forget_idle();
        Err(StoreError::Unwritable { what: self.what.clone(), why: why.to_owned() })
    }
}

/// Runs `work` in a transaction, which an error of it rolls back.
async fn in_transaction<T>(
    connection: &mut PgConnection,
    work: impl for<'c> Fn(&'c mut PgConnection) -> BoxFuture<'c, Result<T, StoreError>>,
) -> Result<T, StoreError> {
    let mut tx = connection.begin().await?;
    match work(&mut tx).await {
        Ok(value) => tx.commit().await.map(|()| value).map_err(StoreError::from),
        Err(e) => {
            tx.rollback().await?;
            Err(e)
        }
    }
}

/// A statement whose first two parameters are the job and the number of the attempt. The last one is its submission.
fn fenced(sql: &'static str, job: JobId, attempt: Attempt) -> Statement {
    sqlx::query(sql).bind(job.to_string()).bind(i64::from(attempt.number))
}

fn found(row: &PgRow) -> Result<Found, StoreError> {
    let job = rows::job(row)?;
    Ok(match (row.bytes("input")?, row.text("input_key")?) {
        (Some(input), Some(input_key)) => Found::Job(Box::new(Claim { job, input: Zeroizing::new(input), input_key })),
        _ => Found::NoInput(job.attempt),
    })
}

fn held(row: Option<&PgRow>) -> Result<Held, StoreError> {
    match row {
        None => Ok(Held::Lost),
        Some(r) => Ok(Held::Yes { cancel: r.flag("cancel_requested")?.unwrap_or_default() }),
    }
}

/// Answers the calls of `batch` with the rows of its statement.
fn all_held<C: Call<Answer = Held>>(rows: &[PgRow], mut batch: Batch<'_, C>) -> Result<Vec<Held>, StoreError> {
    for row in rows {
        batch.answer(place(row)?, held(Some(row))?);
    }
    Ok(batch.finish(|_| Held::Lost))
}

/// Returns the index of the call that a row of a statement over arrays answers.
fn place(row: &PgRow) -> Result<usize, StoreError> {
    let n: usize = rows::number(row, "ord")?;
    n.checked_sub(1).ok_or_else(|| corrupt("ord", "expected 1 or more, got 0"))
}

/// Returns the job that replaced a rejected one; `None` if the idempotency key it was to have was taken by another job
/// in between.
fn unless_taken(row: Result<Option<PgRow>, StoreError>) -> Result<Option<PgRow>, StoreError> {
    match row {
        Err(StoreError::Database(sqlx::Error::Database(e))) if e.is_unique_violation() => Ok(None),
        row => row,
    }
}

/// Replaces the character 0, which Postgres cannot store in text.
fn clean(text: &str) -> String {
    text.replace('\0', "\u{fffd}")
}

fn fate(e: &sqlx::Error) -> StatementFate {
    match e {
        sqlx::Error::Database(e) => match e.code().as_deref() {
            // Serialization failure, deadlock, lock not available.
            Some("40001" | "40P01" | "55P03") => StatementFate::Undone,
            // The server was shut down or crashed, before or during the statement; a connection failure; a server that
            // no longer accepts writes.
            Some("57P01" | "57P02" | "57P03" | "25006") | None => StatementFate::Unknown,
            Some(code) if code.starts_with("08") => StatementFate::Unknown,
            Some(_) => StatementFate::Refused,
        },
        sqlx::Error::Io(_) | sqlx::Error::Tls(_) | sqlx::Error::Protocol(_) | sqlx::Error::WorkerCrashed => {
            StatementFate::Unknown
        }
        _ => StatementFate::Refused,
    }
}

/// Whether a failure to connect may be over in a moment: the server is restarting, or has no connection to spare just
/// now.
fn may_come_soon(e: &sqlx::Error) -> bool {
    match e {
        sqlx::Error::Io(e) => e.kind() != std::io::ErrorKind::TimedOut,
        sqlx::Error::Database(e) => matches!(e.code().as_deref(), Some("57P01" | "57P02" | "57P03" | "53300")),
        _ => false,
    }
}

/// Whether no server answers at present, as opposed to one that refuses.
fn is_away(e: &sqlx::Error) -> bool {
    matches!(e, sqlx::Error::Io(_)) || may_come_soon(e)
}

/// Brings the schema up to date, one transaction for each version, with the lock held, whichever process comes first.
async fn migrate(connection: &mut PgConnection) -> Result<(), StoreError> {
    let row = sqlx::query("SELECT current_setting('server_version_num')::bigint AS version")
        .fetch_one(&mut *connection)
        .await?;
    let server: i64 = rows::number(&row, "version")?;
    if server < OLDEST_SERVER {
        let why = format!("expected Postgres 13 or later, got version number {server}");
        return Err(StoreError::Open { what: String::new(), why });
    }
    loop {
        let mut tx = connection.begin().await?;
        // A migration of a large table by another process may take long.
        sqlx::raw_sql("SET LOCAL statement_timeout = '30min'; SET LOCAL lock_timeout = 0").execute(&mut *tx).await?;
        sqlx::query("SELECT pg_advisory_xact_lock($1)::text").bind(MIGRATION_LOCK).fetch_all(&mut *tx).await?;
        let row =
            sqlx::query("SELECT to_regclass('prover_worker_schema') IS NOT NULL AS made").fetch_one(&mut *tx).await?;
        if row.flag("made")? != Some(true) {
            const TABLE: &str = "CREATE TABLE prover_worker_schema (version bigint NOT NULL PRIMARY KEY, \
                                 since timestamptz NOT NULL DEFAULT now())";
            sqlx::raw_sql(TABLE).execute(&mut *tx).await?;
        }
        let row = sqlx::query("SELECT coalesce(max(version), 0) AS version FROM prover_worker_schema")
            .fetch_one(&mut *tx)
            .await?;
        let version: usize = rows::number(&row, "version")?;
        if version > MIGRATIONS.len() {
            return Err(StoreError::NewerSchema);
        }
        let Some(migration) = MIGRATIONS.get(version) else {
            tx.rollback().await?;
            return Ok(());
        };
        sqlx::raw_sql(*migration).execute(&mut *tx).await?;
        sqlx::query("INSERT INTO prover_worker_schema (version) VALUES ($1)")
            .bind(version as i64 + 1)
            .execute(&mut *tx)
            .await?;
        tx.commit().await?;
    }
}
