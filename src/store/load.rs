//! How busy a queue is, at a cost that does not grow with the number of waiting jobs.
//!
//! Each look counts waiting jobs up to [`COUNTED`], which takes milliseconds. Where more wait, all of them are counted
//! too, but so rarely that it takes a hundredth of the time; in between, the last count is used.

use std::future::Future;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use super::{Load, StoreError};
use crate::model::locked;

/// Queued jobs that every look counts.
pub(super) const COUNTED: u64 = 10_000;
/// A full count is valid for this many times the time it took.
const VALID_FOR: u32 = 100;
/// How long the previous count stays valid after a count that failed.
const VALID_AFTER_FAILURE: Duration = Duration::from_secs(30);

/// The last full count.
#[derive(Debug, Clone, Copy)]
struct Count {
    load: Load,
    at: Instant,
    valid_for: Duration,
}

/// The last known load of one queue.
#[derive(Debug, Default)]
pub(super) struct LoadCache(Mutex<Option<Count>>);

impl LoadCache {
    /// Returns the load. `look` gets the maximum number of queued jobs to count; `None` counts all.
    pub(super) async fn load<F>(&self, look: impl Fn(Option<u64>) -> F + Send) -> Result<Load, StoreError>
    where
        F: Future<Output = Result<Load, StoreError>> + Send,
    {
        let near = look(Some(COUNTED + 1)).await?;
        if near.queued <= COUNTED {
            return Ok(near);
        }
        let mut count = *locked(&self.0);
        if count.is_none_or(|c| c.at.elapsed() >= c.valid_for) {
            let began = Instant::now();
            let counted = look(None).await;
            let took = began.elapsed();
            count = Some(match counted {
                Ok(load) => Count { load, at: Instant::now(), valid_for: took.saturating_mul(VALID_FOR) },
                // The previous count is better than the bounded look, which saw only some of the jobs.
                Err(error) => {
                    tracing::warn!(%error, "could not count all waiting jobs; there may be more than shown");
                    Count { load: count.map_or(near, |c| c.load), at: Instant::now(), valid_for: VALID_AFTER_FAILURE }
                }
            });
            *locked(&self.0) = count;
        }
        let all = count.map_or(near, |c| c.load);
        Ok(Load { queued: all.queued.max(near.queued), oldest_ms: all.oldest_ms.max(near.oldest_ms), ..near })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;

    /// A number of waiting jobs, and how often all of them were counted.
    struct Queue {
        waits: AtomicU64,
        counts: AtomicU64,
        /// How long a full count takes; `None`: it fails.
        takes: Option<Duration>,
    }

    impl Queue {
        fn new(waits: u64, takes: Option<Duration>) -> Self {
            Self { waits: AtomicU64::new(waits), counts: AtomicU64::new(0), takes }
        }

        async fn look(&self, at_most: Option<u64>) -> Result<Load, StoreError> {
            let waits = self.waits.load(Ordering::SeqCst);
            let queued = match at_most {
                Some(n) => waits.min(n),
                None => {
                    self.counts.fetch_add(1, Ordering::SeqCst);
                    tokio::time::sleep(self.takes.ok_or(sqlx::Error::PoolTimedOut)?).await;
                    waits
                }
            };
            Ok(Load { queued, ..Load::default() })
        }

        async fn queued(&self, cache: &LoadCache) -> u64 {
            cache.load(|n| self.look(n)).await.unwrap().queued
        }

        fn counts(&self) -> u64 {
            self.counts.load(Ordering::SeqCst)
        }
    }

    #[tokio::test]
    async fn few_are_counted_at_every_look() {
        let (cache, queue) = (LoadCache::default(), Queue::new(COUNTED, Some(Duration::ZERO)));
        assert_eq!(queue.queued(&cache).await, COUNTED);
        queue.waits.store(3, Ordering::SeqCst);
        assert_eq!(queue.queued(&cache).await, 3);
        assert_eq!(queue.counts(), 0);
    }

    #[tokio::test]
    async fn many_are_counted_seldom() {
        // A count that takes this long stays valid for longer than this test runs.
        let (cache, queue) = (LoadCache::default(), Queue::new(1_000_000, Some(Duration::from_secs(1))));
        assert_eq!(queue.queued(&cache).await, 1_000_000);
        queue.waits.store(999_000, Ordering::SeqCst);
        for _ in 0..5 {
            assert_eq!(queue.queued(&cache).await, 1_000_000);
        }
        assert_eq!(queue.counts(), 1);
        queue.waits.store(7, Ordering::SeqCst);
        assert_eq!(queue.queued(&cache).await, 7, "few are counted at once");

        // A count that takes no time is not valid afterwards.
        let (cache, queue) = (LoadCache::default(), Queue::new(1_000_000, Some(Duration::ZERO)));
        queue.queued(&cache).await;
        cache.0.lock().unwrap().as_mut().unwrap().valid_for = Duration::ZERO;
        queue.waits.store(2_000_000, Ordering::SeqCst);
        assert_eq!(queue.queued(&cache).await, 2_000_000);
        assert_eq!(queue.counts(), 2);
    }

    #[tokio::test]
    async fn what_cannot_be_counted_is_at_least_what_was_looked_at_or_what_was_counted_before() {
        let (cache, queue) = (LoadCache::default(), Queue::new(1_000_000, None));
        assert_eq!(queue.queued(&cache).await, COUNTED + 1);

        let (cache, mut queue) = (LoadCache::default(), Queue::new(1_000_000, Some(Duration::ZERO)));
        queue.queued(&cache).await;
        cache.0.lock().unwrap().as_mut().unwrap().valid_for = Duration::ZERO;
        queue.takes = None;
        assert_eq!(queue.queued(&cache).await, 1_000_000);
    }
}
