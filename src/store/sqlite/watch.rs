//! Waiting for changes, and truncating the log.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection, SqliteRow};
use sqlx::{ConnectOptions, Connection};

use super::SqliteStore;
use crate::model::locked;
use crate::store::StoreError;
use crate::store::rows::{self, Columns};

/// How long a checkpoint waits for readers; short, since writers wait for the checkpoint.
const CHECKPOINT_TIMEOUT: Duration = Duration::from_millis(50);
/// Minimum time between two truncations of the log.
pub(super) const TRUNCATE_EVERY: Duration = Duration::from_secs(10);
/// Interval at which a wait for changes polls.
const POLL_EVERY: Duration = Duration::from_millis(100);

/// The connection that only polls, and truncates the log. All other writes, also those of this process, change the data
/// version that it sees.
pub(super) struct Watch {
    options: SqliteConnectOptions,
    connection: Option<SqliteConnection>,
    /// Incremented with every new connection, because data versions of different connections are not comparable.
    epoch: i64,
    /// When the log was last truncated, or that was tried.
    pub(super) truncated: Instant,
}

impl Watch {
    /// Connects on first use.
    pub(super) fn new(options: SqliteConnectOptions) -> Self {
        let options = options.busy_timeout(CHECKPOINT_TIMEOUT);
        Self { options, connection: None, epoch: 0, truncated: Instant::now() }
    }

    /// Closes the connection; it is opened again when it is needed.
    pub(super) async fn close(&mut self) {
        if let Some(connection) = self.connection.take() {
            let _ = connection.close().await;
        }
    }

    /// Returns the single row of a statement; after a failure, the next call opens a new connection.
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

impl SqliteStore {
    /// Moves the log into the file and truncates it, so that it holds no input of an ended job. Returns whether that
    /// succeeded; it does not while another process reads.
    ///
    /// # Errors
    /// [`StoreError::Database`].
    pub async fn truncate_log(&self) -> Result<bool, StoreError> {
        let mut watch = self.watch.lock().await;
        self.truncate(&mut watch).await
    }

    /// Truncates the log if a job has ended and it was not tried lately.
    pub(super) async fn truncate_log_if_due(&self, watch: &mut Watch) -> Result<(), StoreError> {
        if self.job_ended.load(Ordering::Acquire) && watch.truncated.elapsed() >= TRUNCATE_EVERY {
            self.truncate(watch).await?;
        }
        Ok(())
    }

    async fn truncate(&self, watch: &mut Watch) -> Result<bool, StoreError> {
        watch.truncated = Instant::now();
        self.job_ended.store(false, Ordering::Release);
        let row = watch.row("PRAGMA wal_checkpoint(TRUNCATE)").await;
        let through = row.and_then(|r| Ok(r.int("busy")? == Some(0)));
        if !matches!(through, Ok(true)) {
            self.note_end();
        }
        match through {
            Err(e) if e.is_lock_timeout() => Ok(false),
            other => other,
        }
    }

    /// Notes that a job has ended, or that an input was replaced: the log still holds the input until it is truncated.
    pub(super) fn note_end(&self) {
        self.job_ended.store(true, Ordering::Release);
    }

    /// Returns after a change by anybody but the connection that polls, or after `at_most`.
    pub(super) async fn wait_for_change(&self, at_most: Duration) -> Result<(), StoreError> {
        let began = Instant::now();
        // Concurrent callers wait from the same poll on, and each of them is notified of what came after it.
        let before = *locked(&self.seen);
        loop {
            let now = {
                let mut watch = self.watch.lock().await;
                self.truncate_log_if_due(&mut watch).await?;
                let version = rows::number(&watch.row("PRAGMA data_version").await?, "data_version")?;
                let now = Some((watch.epoch, version));
                *locked(&self.seen) = now;
                now
            };
            let left = at_most.saturating_sub(began.elapsed());
            if now != before || left.is_zero() {
                return Ok(());
            }
            tokio::time::sleep(left.min(POLL_EVERY)).await;
        }
    }
}
