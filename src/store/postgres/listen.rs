//! Wake-ups from the database: LISTEN and NOTIFY.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::model::locked;
use sqlx::postgres::{PgConnectOptions, PgListener, PgPoolOptions};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::timeout;

/// Maximum length of a channel name, in bytes.
const MAX_CHANNEL: usize = 63;
const PREFIX: &str = "prover_worker_";
/// How long a connection may be silent before it is checked.
const SILENCE: Duration = Duration::from_secs(30);
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);
/// Delay after failures: doubled each time, from the first value up to the second.
const BACK_OFF: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(10));

/// Returns the channel of a queue: with the queue's name, or a hash of it where the name would not fit.
pub(super) fn channel(queue: &str) -> String {
    if PREFIX.len() + queue.len() <= MAX_CHANNEL && !queue.contains('\0') {
        return format!("{PREFIX}{queue}");
    }
    let hash = crate::model::ContentHash::of(queue.as_bytes());
    format!("{PREFIX}{}", hex::encode(&hash.0[..16]))
}

/// A task that listens, started by the first wait.
pub(super) struct Listener {
    options: PgConnectOptions,
    channel: String,
    notices: Arc<watch::Sender<u64>>,
    /// The latest notice that a caller of `wait` has returned for.
    seen: AtomicU64,
    task: Mutex<Option<JoinHandle<()>>>,
}

impl Listener {
    pub(super) fn new(options: PgConnectOptions, channel: String) -> Self {
        let (notices, _) = watch::channel(0);
        Self { options, channel, notices: Arc::new(notices), seen: AtomicU64::new(0), task: Mutex::new(None) }
    }

    /// Returns after a notice that no call has returned for yet, or after `at_most`.
    pub(super) async fn wait(&self, at_most: Duration) {
        let seen = self.seen.load(Ordering::Acquire);
        let mut notices = self.notices.subscribe();
        self.start();
        if let Ok(Ok(n)) = timeout(at_most, notices.wait_for(|n| *n > seen)).await {
            self.seen.fetch_max(*n, Ordering::AcqRel);
        }
    }

    fn start(&self) {
        let mut task = locked(&self.task);
        // It only ends with the runtime it runs on.
        if task.as_ref().is_none_or(|t| t.is_finished()) {
            *task = Some(tokio::spawn(listen(self.options.clone(), self.channel.clone(), self.notices.clone())));
        }
    }

    /// Aborts the task.
    pub(super) fn close(&self) {
        if let Some(task) = locked(&self.task).take() {
            task.abort();
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.close();
    }
}

async fn listen(options: PgConnectOptions, channel: String, notices: Arc<watch::Sender<u64>>) {
    let mut wait = BACK_OFF.0;
    loop {
        let since = tokio::time::Instant::now();
        if let Err(e) = listen_once(&options, &channel, &notices).await {
            tracing::warn!(error = %e, "listening for changes in Postgres failed; retrying");
        }
        if since.elapsed() > BACK_OFF.1 {
            wait = BACK_OFF.0;
        }
        tokio::time::sleep(wait).await;
        wait = (wait * 2).min(BACK_OFF.1);
    }
}

/// Listens until the connection ends.
async fn listen_once(
    options: &PgConnectOptions,
    channel: &str,
    notices: &watch::Sender<u64>,
) -> Result<(), sqlx::Error> {
    let pool = PgPoolOptions::new()
        .max_connections(1)
        .max_lifetime(None)
        .idle_timeout(None)
        .acquire_timeout(ANSWER_TIMEOUT)
        .connect_lazy_with(options.clone());
    let mut listener = PgListener::connect_with(&pool).await?;
    listener.eager_reconnect(false);
    bounded(listener.listen(channel)).await?;
    // Notices sent before this were lost: wake the callers so that they look.
    notices.send_modify(|n| *n += 1);
    loop {
        match timeout(SILENCE, listener.try_recv()).await {
            Ok(Ok(Some(_))) => notices.send_modify(|n| *n += 1),
            Ok(Ok(None)) => return Ok(()),
            Ok(Err(e)) => return Err(e),
            Err(_) => {
                bounded(sqlx::query("SELECT 1").execute(&mut listener)).await?;
            }
        }
    }
}

async fn bounded<T>(answer: impl Future<Output = Result<T, sqlx::Error>>) -> Result<T, sqlx::Error> {
    timeout(ANSWER_TIMEOUT, answer).await.unwrap_or_else(|_| Err(super::pool::timed_out("no answer", ANSWER_TIMEOUT)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_channel_has_the_queues_name_if_that_fits() {
        assert_eq!(channel("prove"), "prover_worker_prove");
        let (a, b) = (channel(&"x".repeat(60)), channel(&"x".repeat(61)));
        assert!(a.len() <= MAX_CHANNEL && b.len() <= MAX_CHANNEL && a != b, "{a} {b}");
        assert_eq!(channel(&"x".repeat(49)).len(), MAX_CHANNEL);
    }
}
