//! How statements and transactions are run: on a connection of the pool, with retries where these are safe.

use std::time::Duration;

use futures::future::BoxFuture;
use sqlx::postgres::{PgArguments, PgConnection, PgRow};
use sqlx::query::Query;
use sqlx::{Connection, Postgres};
use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout};

use super::pool::{Pool, PooledConnection, timed_out};
use crate::store::error::is_lock_timeout;
use crate::store::load::LoadCache;
use crate::store::{StoreError, StoreSettings};

/// How long a statement or a transaction may take. The server gives up on a statement before that.
pub(super) const ANSWER_TIMEOUT: Duration = Duration::from_secs(15);
/// How many times a call is made that met a deadlock or a broken connection.
pub(super) const TRIES: u32 = 4;

pub(super) type Statement = Query<'static, Postgres, PgArguments>;

/// What all statements share.
pub(super) struct Session {
    pub(super) pool: Pool,
    pub(super) settings: StoreSettings,
    /// The channel that workers listen on, if they are to be notified.
    pub(super) channel: Option<String>,
    pub(super) load: LoadCache,
    /// Bounds the connections that read large inputs, so that these do not keep other calls waiting.
    pub(super) large_reads: Semaphore,
}

/// The effect of a statement that failed.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Effect {
    /// The server refused it; a retry will not help.
    Refused,
    /// It changed nothing, and a retry may succeed.
    Undone,
    /// It may have taken effect. The connection is unusable.
    Unknown,
}

/// When a statement is retried.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Retries {
    /// Even if it may have taken effect.
    Always,
    /// Only if it has not taken effect.
    IfUndone,
}

/// How [`Session::retried`] treats errors of the database.
#[derive(Clone, Copy)]
struct RetryPolicy {
    retries: Retries,
    /// Number of calls that the work makes together.
    calls: usize,
    /// Whether the connection goes back to the pool after an error that left it usable.
    reuse_after_error: bool,
}

impl Session {
    /// Runs a statement, retrying it where that is safe, and reads its answer to the end: Postgres commits after the
    /// last row.
    pub(super) async fn rows(
        &self,
        retries: Retries,
        make: impl Fn() -> Statement + Send + Sync,
    ) -> Result<Vec<PgRow>, StoreError> {
        self.joint_rows(1, retries, make).await
    }

    /// Runs one statement for `calls` calls as [`Session::rows`] does. Where several calls met a lock, the statement is
    /// not retried, because the caller then makes each call alone.
    pub(super) async fn joint_rows(
        &self,
        calls: usize,
        retries: Retries,
        make: impl Fn() -> Statement + Send + Sync,
    ) -> Result<Vec<PgRow>, StoreError> {
        let policy = RetryPolicy { retries, calls, reuse_after_error: true };
        self.retried(policy, |mut pooled| {
            let statement = make();
            async move {
                let rows = statement.fetch_all(&mut pooled.connection).await;
                (pooled, rows.map_err(StoreError::from))
            }
        })
        .await
    }

    /// Runs `work` on a connection, up to [`TRIES`] times where `policy` allows a retry, within [`ANSWER_TIMEOUT`]
    /// each.
    async fn retried<'s, T, F>(
        &'s self,
        policy: RetryPolicy,
        work: impl Fn(PooledConnection<'s>) -> F + Send + Sync,
    ) -> Result<T, StoreError>
    where
        F: Future<Output = (PooledConnection<'s>, Result<T, StoreError>)> + Send,
    {
        let mut tries = 1;
        loop {
            let (error, repeat) = match self.pool.acquire().await {
                Err(e) => {
                    let soon = is_temporary(&e);
                    (e, soon)
                }
                Ok(pooled) => match timeout(ANSWER_TIMEOUT, work(pooled)).await {
                    Err(_) => return Err(timed_out("no answer", ANSWER_TIMEOUT).into()),
                    Ok((pooled, Ok(value))) => {
                        pooled.put_back();
                        return Ok(value);
                    }
                    Ok((pooled, Err(StoreError::Database(e)))) => {
                        let effect = effect_of(&e);
                        let repeat = match effect {
                            Effect::Refused => false,
                            Effect::Undone => policy.calls == 1 || !is_lock_timeout(&e),
                            Effect::Unknown => policy.retries == Retries::Always,
                        };
                        if effect == Effect::Unknown {
                            self.pool.close_idle();
                        } else if policy.reuse_after_error {
                            pooled.put_back();
                        }
                        (e, repeat)
                    }
                    Ok((pooled, Err(e))) => {
                        pooled.put_back();
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

    pub(super) async fn row(
        &self,
        retries: Retries,
        make: impl Fn() -> Statement + Send + Sync,
    ) -> Result<Option<PgRow>, StoreError> {
        Ok(self.rows(retries, make).await?.into_iter().next())
    }

    /// Runs a transaction, retrying it if it changed nothing. An error of `work` rolls it back.
    pub(super) async fn transaction<T: Send>(
        &self,
        work: impl for<'c> Fn(&'c mut PgConnection) -> BoxFuture<'c, Result<T, StoreError>> + Send + Sync,
    ) -> Result<T, StoreError> {
        // A database error may be that of the rollback, so the connection is not reused after one.
        let policy = RetryPolicy { retries: Retries::IfUndone, calls: 1, reuse_after_error: false };
        let work = &work;
        self.retried(policy, |mut pooled| async move {
            let done = in_transaction(&mut pooled.connection, work).await;
            (pooled, done)
        })
        .await
    }

    pub(super) fn queue(&self) -> String {
        self.settings.queue.clone()
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

/// Returns what a statement that failed like this has done.
fn effect_of(e: &sqlx::Error) -> Effect {
    match e {
        sqlx::Error::Database(e) => match e.code().as_deref() {
            // Serialization failure, deadlock, lock not available.
            Some("40001" | "40P01" | "55P03") => Effect::Undone,
            // The server was shut down or crashed, before or during the statement; a connection failure; a server that
            // no longer accepts writes.
            Some("57P01" | "57P02" | "57P03" | "25006") | None => Effect::Unknown,
            Some(code) if code.starts_with("08") => Effect::Unknown,
            Some(_) => Effect::Refused,
        },
        sqlx::Error::Io(_) | sqlx::Error::Tls(_) | sqlx::Error::Protocol(_) | sqlx::Error::WorkerCrashed => {
            Effect::Unknown
        }
        _ => Effect::Refused,
    }
}

/// Whether a failure to connect may be over in a moment: the server is restarting, or has no connection to spare just
/// now.
fn is_temporary(e: &sqlx::Error) -> bool {
    match e {
        sqlx::Error::Io(e) => e.kind() != std::io::ErrorKind::TimedOut,
        sqlx::Error::Database(e) => matches!(e.code().as_deref(), Some("57P01" | "57P02" | "57P03" | "53300")),
        _ => false,
    }
}

/// Whether no server answers at present, as opposed to one that refuses the connection.
pub(super) fn is_unreachable(e: &sqlx::Error) -> bool {
    matches!(e, sqlx::Error::Io(_)) || is_temporary(e)
}
