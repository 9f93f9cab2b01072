//! The changes that take more than one statement. Each is one transaction, which an error rolls back, and which the
//! caller repeats if it met a lock.

use std::time::Duration;

use sqlx::sqlite::SqliteConnection;

use super::{SqliteStore, id, statements};
use crate::model::{CircuitName, JobError, JobId, JobState, NewJob};
use crate::store::rows::{self, Columns, Repeat};
use crate::store::{Input, Replacement, Requeued, StoreError, Submitted};

impl SqliteStore {
    /// Returns the job that was stored before under this id or key, if any.
    async fn same(&self, connection: &mut SqliteConnection, new: &NewJob) -> Result<Option<Repeat>, StoreError> {
        let same = sqlx::query(statements::SAME_JOB)
            .bind(id(new.id))
            .bind(self.queue())
            .bind(new.idempotency_key.clone().map(String::from))
            .fetch_optional(connection)
            .await?;
        same.map(|row| rows::repeat(&row, new)).transpose()
    }

    /// Tries [`Store::submit`](crate::store::Store::submit) once.
    pub(super) async fn submit_once(&self, new: &NewJob, input: Input<'_>) -> Result<Submitted, StoreError> {
        let mut tx = self.writer.begin_with("BEGIN IMMEDIATE").await?;
        match self.same(&mut tx, new).await? {
            None => {}
            Some(Repeat::Same(job)) => return Ok(Submitted::Existing(job)),
            Some(Repeat::Rejected { .. }) => forget_rejected(&mut tx, new.id).await?,
        }
        let inserted = sqlx::query(statements::INSERT_JOB)
            .bind(id(new.id))
            .bind(self.queue())
            .bind(new.circuit.as_str())
            .bind(new.body.0.to_vec())
            .bind(new.idempotency_key.clone().map(String::from))
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

    /// Tries [`Store::reject`](crate::store::Store::reject) once.
    pub(super) async fn reject_once(&self, new: &NewJob, error: &JobError) -> Result<Submitted, StoreError> {
        let mut tx = self.writer.begin_with("BEGIN IMMEDIATE").await?;
        match self.same(&mut tx, new).await? {
            None => {}
            Some(Repeat::Same(job) | Repeat::Rejected { job, same_body: true }) => {
                return Ok(Submitted::Existing(job));
            }
            Some(Repeat::Rejected { same_body: false, .. }) => forget_rejected(&mut tx, new.id).await?,
        }
        let row = sqlx::query(statements::INSERT_FAILED)
            .bind(id(new.id))
            .bind(self.queue())
            .bind(new.circuit.as_str())
            .bind(new.body.0.to_vec())
            .bind(new.idempotency_key.clone().map(String::from))
            .bind(i64::from(new.priority.0))
            .bind(error.class.as_str())
            .bind(error.message.clone())
            .fetch_one(&mut *tx)
            .await?;
        let job = rows::job(&row)?;
        tx.commit().await?;
        Ok(Submitted::Created(job))
    }

    /// Tries [`Store::requeue`](crate::store::Store::requeue) once.
    pub(super) async fn requeue_once(
        &self,
        job: JobId,
        input: Option<Replacement<'_>>,
        start_within: Option<Duration>,
    ) -> Result<Requeued, StoreError> {
        let mut tx = self.writer.begin_with("BEGIN IMMEDIATE").await?;
        let Some(row) = sqlx::query(statements::REQUEUEABLE).bind(id(job)).fetch_optional(&mut *tx).await? else {
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
        if row.flag("unregistered")?.unwrap_or_default() {
            return Err(StoreError::UnknownCircuit(rows::circuit_name(&row)?));
        }
        // A stored input keeps the content, too.
        if !held && row.flag("gone")?.unwrap_or_default() {
            return Ok(Requeued::CircuitGone(rows::circuit_name(&row)?));
        }
        let seq: i64 = rows::number(&row, "seq")?;
        let body = rows::body_of_requeued(&row, job, input.map(|i| i.body))?;
        let requeue =
            sqlx::query(statements::REQUEUE).bind(seq).bind(start_within.map(rows::millis)).bind(body.0.to_vec());
        let queued = rows::job(&requeue.fetch_one(&mut *tx).await?)?;
        match input {
            Some(other) => insert_input(&mut tx, seq, other.input).await?,
            None => {
                sqlx::query(statements::KEEP_INPUT).bind(seq).execute(&mut *tx).await?;
            }
        }
        tx.commit().await?;
        if input.is_some() && held {
            // The log still holds the input that was replaced.
            self.note_end();
        }
        Ok(Requeued::Yes(Box::new(queued)))
    }

    /// Tries [`Store::remove_circuit`](crate::store::Store::remove_circuit) once.
    pub(super) async fn remove_circuit_once(&self, name: &CircuitName) -> Result<bool, StoreError> {
        let mut tx = self.writer.begin_with("BEGIN IMMEDIATE").await?;
        let row = sqlx::query(statements::UNFINISHED).bind(name.as_str()).fetch_one(&mut *tx).await?;
        let unfinished: u64 = rows::number(&row, "n")?;
        let removed =
            sqlx::query(statements::REMOVE_CIRCUIT).bind(name.as_str()).execute(&mut *tx).await?.rows_affected() > 0;
        if removed && unfinished > 0 {
            tx.rollback().await?;
            return Err(StoreError::InUse { name: name.clone(), unfinished });
        }
        tx.commit().await?;
        Ok(removed)
    }
}

/// Stores an input, replacing one that may exist.
async fn insert_input(connection: &mut SqliteConnection, seq: i64, input: Input<'_>) -> Result<(), StoreError> {
    // Not persistent: a prepared statement keeps the values that were bound last.
    sqlx::query(statements::INSERT_INPUT)
        .bind(seq)
        .bind(input.key)
        .bind(input.bytes)
        .persistent(false)
        .execute(connection)
        .await?;
    Ok(())
}

/// Deletes a rejected job to make way for another with its id, in the transaction that stores the new one.
async fn forget_rejected(connection: &mut SqliteConnection, job: JobId) -> Result<(), StoreError> {
    sqlx::query(statements::FORGET_REJECTED).bind(id(job)).execute(connection).await?;
    Ok(())
}
