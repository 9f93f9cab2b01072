//! The calls that are made together: one statement over arrays for many of them.

use std::collections::HashSet;
use std::sync::Arc;

use sqlx::postgres::PgRow;
use zeroize::Zeroizing;

use super::coalesce::{Call, Executor};
use super::session::{Retries, Session, Statement, TRIES};
use super::statements;
use crate::model::{Attempt, CircuitName, Job, JobId, NewJob, Stage, WorkerId};
use crate::store::rows::{self, Columns, Repeat, corrupt};
use crate::store::{Claim, Held, StoreError, Submitted};

/// A call of [`Store::submit`](crate::store::Store::submit).
pub(super) struct SubmitCall {
    pub(super) new: NewJob,
    pub(super) input: Zeroizing<Vec<u8>>,
    pub(super) input_key: String,
}

/// A call of [`Store::claim`](crate::store::Store::claim); times in milliseconds.
pub(super) struct ClaimCall {
    pub(super) id: JobId,
    pub(super) worker: WorkerId,
    pub(super) lease: i64,
}

/// The outcome of a claim.
pub(super) enum Found {
    Nothing,
    Job(Box<Claim>),
    /// A job, now running by this attempt, whose input is missing.
    NoInput(Attempt),
    /// A job, now running until its lease lapses, whose row this version cannot read.
    Unreadable(StoreError),
}

/// A call of [`Store::heartbeat`](crate::store::Store::heartbeat); times in milliseconds.
pub(super) struct HeartbeatCall {
    pub(super) id: JobId,
    pub(super) attempt: Attempt,
    pub(super) lease: i64,
    pub(super) stage: Stage,
    pub(super) progress: f64,
}

/// A call of [`Store::finish`](crate::store::Store::finish).
pub(super) struct FinishCall {
    pub(super) id: JobId,
    pub(super) attempt: Attempt,
    pub(super) result: String,
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

impl<C: Call<Answer = Held>> Batch<'_, C> {
    /// Answers the calls that the rows of a guarded change are about.
    fn answer_held(&mut self, rows: &[PgRow]) -> Result<(), StoreError> {
        for row in rows {
            self.answer(place(row)?, held(Some(row))?);
        }
        Ok(())
    }
}

impl Call for SubmitCall {
    type Answer = Result<Submitted, StoreError>;

    fn keys(&self) -> Vec<Vec<u8>> {
        let id = self.new.id.0.as_bytes().to_vec();
        // Distinguished from an id by its first byte and its length.
        let key = self.new.idempotency_key.as_ref().map(|k| [b"idempotency key ", k.as_str().as_bytes()].concat());
        std::iter::once(id).chain(key).collect()
    }

    fn bytes(&self) -> usize {
        let key = self.new.idempotency_key.as_ref().map_or(0, |k| k.as_str().len());
        self.input.len() + self.input_key.len() + self.new.circuit.as_str().len() + key + 150
    }
}

impl Executor<SubmitCall> for Session {
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
                            && let Some(job) = self.replace_rejected(call).await?
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
        Ok(batch.finish(|c| Err(StoreError::Contended(c.new.id))))
    }
}

impl Call for ClaimCall {
    type Answer = Found;

    fn keys(&self) -> Vec<Vec<u8>> {
        vec![self.id.0.as_bytes().to_vec()]
    }

    fn bytes(&self) -> usize {
        // The size that matters is that of the answer: the input, if it is returned, and what a job has besides.
        statements::SENT_WITH_CLAIM + (4 << 10)
    }
}

impl Executor<ClaimCall> for Session {
    async fn run(&self, calls: Vec<Arc<ClaimCall>>) -> Result<Vec<Found>, StoreError> {
        let mut batch = Batch::new(&calls, |c| c.id);
        let these = batch.open();
        let rows = self.joint_rows(calls.len(), Retries::IfUndone, || {
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

impl Executor<HeartbeatCall> for Session {
    async fn run(&self, calls: Vec<Arc<HeartbeatCall>>) -> Result<Vec<Held>, StoreError> {
        let mut batch = Batch::new(&calls, |c| c.id);
        let these = batch.open();
        let rows = self.joint_rows(calls.len(), Retries::Always, || {
            sqlx::query(statements::HEARTBEAT)
                .bind(these.iter().map(|c| c.id.to_string()).collect::<Vec<_>>())
                .bind(these.iter().map(|c| i64::from(c.attempt.number)).collect::<Vec<_>>())
                .bind(these.iter().map(|c| c.lease).collect::<Vec<_>>())
                .bind(these.iter().map(|c| c.stage.as_str().to_owned()).collect::<Vec<_>>())
                .bind(these.iter().map(|c| c.progress).collect::<Vec<_>>())
                .bind(these.iter().map(|c| c.attempt.submission).collect::<Vec<_>>())
        });
        batch.answer_held(&rows.await?)?;
        Ok(batch.finish(|_| Held::Lost))
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

impl Executor<FinishCall> for Session {
    async fn run(&self, calls: Vec<Arc<FinishCall>>) -> Result<Vec<Held>, StoreError> {
        let mut batch = Batch::new(&calls, |c| c.id);
        for sql in [statements::FINISH, statements::FINISHED] {
            let these = batch.open();
            let rows = self.joint_rows(these.len(), Retries::Always, || {
                sqlx::query(sql)
                    .bind(these.iter().map(|c| c.id.to_string()).collect::<Vec<_>>())
                    .bind(these.iter().map(|c| i64::from(c.attempt.number)).collect::<Vec<_>>())
                    .bind(these.iter().map(|c| c.result.clone()).collect::<Vec<_>>())
                    .bind(these.iter().map(|c| c.attempt.submission).collect::<Vec<_>>())
            });
            batch.answer_held(&rows.await?)?;
            if batch.all_answered() {
                break;
            }
        }
        Ok(batch.finish(|_| Held::Lost))
    }
}

impl Session {
    /// Stores those of these jobs that are new; returns each with the index of its call.
    async fn insert(&self, calls: &[&SubmitCall]) -> Result<Vec<(usize, Job)>, StoreError> {
        let rows = self.joint_rows(calls.len(), Retries::Always, || {
            let column = |of: fn(&SubmitCall) -> String| calls.iter().map(|c| of(c)).collect::<Vec<_>>();
            sqlx::query(statements::SUBMIT)
                .bind(self.queue())
                .bind(self.channel.clone())
                .bind(column(|c| c.new.id.to_string()))
                .bind(column(|c| c.new.circuit.as_str().to_owned()))
                .bind(calls.iter().map(|c| c.new.body.0.to_vec()).collect::<Vec<_>>())
                .bind(calls.iter().map(|c| c.new.idempotency_key.clone().map(String::from)).collect::<Vec<_>>())
                .bind(calls.iter().map(|c| i64::from(c.new.priority.0)).collect::<Vec<_>>())
                .bind(calls.iter().map(|c| c.new.start_within.map(rows::millis)).collect::<Vec<_>>())
                .bind(calls.iter().map(|c| c.input.as_slice()).collect::<Vec<_>>())
                .bind(column(|c| c.input_key.clone()))
        });
        rows.await?.iter().map(|r| Ok((place(r)?, rows::job(r)?))).collect()
    }

    /// Returns those of these jobs that were stored before, each with its index.
    pub(super) async fn same(&self, new: &[&NewJob]) -> Result<Vec<(usize, Result<Repeat, StoreError>)>, StoreError> {
        let rows = self.rows(Retries::Always, || {
            sqlx::query(statements::SAME_JOBS)
                .bind(self.queue())
                .bind(new.iter().map(|n| n.id.to_string()).collect::<Vec<_>>())
                .bind(new.iter().map(|n| n.idempotency_key.clone().map(String::from)).collect::<Vec<_>>())
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
    async fn replace_rejected(&self, call: &SubmitCall) -> Result<Option<Job>, StoreError> {
        let new = &call.new;
        let row = self.row(Retries::Always, || {
            sqlx::query(statements::REPLACE_REJECTED)
                .bind(self.queue())
                .bind(self.channel.clone())
                .bind(new.id.to_string())
                .bind(new.circuit.as_str().to_owned())
                .bind(new.body.0.to_vec())
                .bind(new.idempotency_key.clone().map(String::from))
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
        let rows = self.rows(Retries::Always, || sqlx::query(statements::KNOWN_CIRCUITS).bind(names.clone())).await?;
        rows.iter().map(|r| Ok(r.text("name")?.unwrap_or_default())).collect()
    }

    pub(super) async fn release(&self, job: JobId, attempt: Attempt) -> Result<Held, StoreError> {
        let release = || fenced(statements::RELEASE, job, attempt).bind(self.channel.clone()).bind(attempt.submission);
        let released = || fenced(statements::RELEASED, job, attempt).bind(attempt.submission);
        self.changed_or_recognised(release, released).await
    }

    /// Runs a guarded change and, if it found nothing to change, the statement that recognises an earlier one like it,
    /// whose answer was lost.
    pub(super) async fn changed_or_recognised(
        &self,
        change: impl Fn() -> Statement + Send + Sync,
        recognise: impl Fn() -> Statement + Send + Sync,
    ) -> Result<Held, StoreError> {
        if let Some(row) = self.row(Retries::Always, change).await? {
            return held(Some(&row));
        }
        held(self.row(Retries::Always, recognise).await?.as_ref())
    }
}

/// A statement whose first two parameters are the job and the number of the attempt. A later one is its submission.
pub(super) fn fenced(sql: &'static str, job: JobId, attempt: Attempt) -> Statement {
    sqlx::query(sql).bind(job.to_string()).bind(i64::from(attempt.number))
}

fn found(row: &PgRow) -> Result<Found, StoreError> {
    let job = rows::job(row)?;
    let input = row.bytes("input")?.map(Zeroizing::new);
    Ok(match row.text("input_key")? {
        Some(input_key) => Found::Job(Box::new(Claim { job, input, input_key })),
        None => Found::NoInput(job.attempt),
    })
}

pub(super) fn held(row: Option<&PgRow>) -> Result<Held, StoreError> {
    match row {
        None => Ok(Held::Lost),
        Some(r) => Ok(Held::Yes { cancel: r.flag("cancel_requested")?.unwrap_or_default() }),
    }
}

/// Returns the index of the call that a row of a statement over arrays answers.
fn place(row: &PgRow) -> Result<usize, StoreError> {
    let n: usize = rows::number(row, "ord")?;
    n.checked_sub(1).ok_or_else(|| corrupt("ord", "expected 1 or more, got 0"))
}

/// Returns the job that replaced a rejected one; `None` if the idempotency key it was to have was taken by another job
/// in between.
pub(super) fn unless_taken(row: Result<Option<PgRow>, StoreError>) -> Result<Option<PgRow>, StoreError> {
    match row {
        Err(StoreError::Database(sqlx::Error::Database(e))) if e.is_unique_violation() => Ok(None),
        row => row,
    }
}
