//! Wakes from the database: LISTEN and NOTIFY.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::model::locked;
use sqlx::postgres::{PgConnectOptions, PgListener, PgPoolOptions};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::timeout;

/// Longest name of a channel, bytes.
const LONGEST: usize = 63;
const PREFIX: &str = "prover_worker_";
/// How long a connection may be silent before it must show that it lives.
const SILENCE: Duration = Duration::from_secs(30);
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);
/// Waits after failures: twice as long each time, up to the second.
const BACK_OFF: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(10));

/// The channel of a queue: by its name, or by a hash of it where that would not fit.
pub(super) fn channel(queue: &str) -> String {
    if PREFIX.len() + queue.len() <= LONGEST && !queue.contains('\0') {
        return format!("{PREFIX}{queue}");
    }
    let hash = crate::model::ContentHash::of(queue.as_bytes());
    format!("{PREFIX}{}", hex::encode(&hash.0[..16]))
}

/// One task that listens, from the first wait on.
pub(super) struct Ear {
    options: PgConnectOptions,
    channel: String,
    heard: Arc<watch::Sender<u64>>,
    /// Up to where callers have been told.
    told: AtomicU64,
    task: Mutex<Option<JoinHandle<()>>>,
}

impl Ear {
    pub(super) fn new(options: PgConnectOptions, channel: String) -> Self {
        let (heard, _) = watch::channel(0);
        Self { options, channel, heard: Arc::new(heard), told: AtomicU64::new(0), task: Mutex::new(None) }
    }

    /// Returns after a notice that nobody was told of yet, or after `at_most`.
    pub(super) async fn wait(&self, at_most: Duration) {
        let told = self.told.load(Ordering::Acquire);
        let mut heard = self.heard.subscribe();
        self.start();
        if let Ok(Ok(n)) = timeout(at_most, heard.wait_for(|n| *n > told)).await {
            self.told.fetch_max(*n, Ordering::AcqRel);
        }
    }

    fn start(&self) {
        let mut task = locked(&self.task);
        // It ends with the runtime that it runs on only.
        if task.as_ref().is_none_or(|t| t.is_finished()) {
            *task = Some(tokio::spawn(listen(self.options.clone(), self.channel.clone(), self.heard.clone())));
        }
    }

    /// Ends the task.
    pub(super) fn close(&self) {
        if let Some(task) = locked(&self.task).take() {
            task.abort();
        }
    }
}

impl Drop for Ear {
    fn drop(&mut self) {
        self.close();
    }
}

async fn listen(options: PgConnectOptions, channel: String, heard: Arc<watch::Sender<u64>>) {
    let mut wait = BACK_OFF.0;
    loop {
        let since = tokio::time::Instant::now();
        if let Err(e) = hear(&options, &channel, &heard).await {
            tracing::warn!(error = %e, "not told of changes by Postgres for now");
        }
        if since.elapsed() > BACK_OFF.1 {
            wait = BACK_OFF.0;
        }
        tokio::time::sleep(wait).await;
        wait = (wait * 2).min(BACK_OFF.1);
    }
}

/// Listens until the connection ends.
async fn hear(options: &PgConnectOptions, channel: &str, heard: &watch::Sender<u64>) -> Result<(), sqlx::Error> {
    let pool = PgPoolOptions::new()
        .max_connections(1)
        .max_lifetime(None)
        .idle_timeout(None)
        .acquire_timeout(ANSWER_TIMEOUT)
        .connect_lazy_with(options.clone());
    let mut listener = PgListener::connect_with(&pool).await?;
    listener.eager_reconnect(false);
    bounded(listener.listen(channel)).await?;
    // Whatever was told before is lost: let them look.
    heard.send_modify(|n| *n += 1);
    loop {
        match timeout(SILENCE, listener.try_recv()).await {
            Ok(Ok(Some(_))) => heard.send_modify(|n| *n += 1),
            Ok(Ok(None)) => return Ok(()),
            Ok(Err(e)) => return Err(e),
            Err(_) => {
                bounded(sqlx::query("SELECT 1").execute(&mut listener)).await?;
            }
        }
    }
}

async fn bounded<T>(answer: impl Future<Output = Result<T, sqlx::Error>>) -> Result<T, sqlx::Error> {
    timeout(ANSWER_TIMEOUT, answer).await.unwrap_or_else(|_| Err(super::pool::late("no answer within 5 s")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_channel_has_the_queues_name_if_that_fits() {
        assert_eq!(channel("prove"), "prover_worker_prove");
        let (a, b) = (channel(&"x".repeat(60)), channel(&"x".repeat(61)));
        assert!(a.len() <= LONGEST && b.len() <= LONGEST && a != b, "{a} {b}");
        assert_eq!(channel(&"x".repeat(49)).len(), LONGEST);
    }
}
