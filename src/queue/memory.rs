//! The queue within one process.

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashSet};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::Notify;

use super::{Delivery, Offer, Queue, QueueError, SetAside};
use crate::model::{JobId, Priority};

/// Ids in memory, by priority, then age.
///
/// What is lost with it (at a restart, or because a [`Delivery`] was dropped without [`Queue::ack`]) stays lost here:
/// the reconciler offers such jobs again from the store. So acknowledging does nothing, and nothing is delivered
/// twice unless it is pushed twice.
///
/// Memory is bounded, at about 100 bytes an id. Past its capacity the queue keeps the best ids and forgets the rest,
/// the youngest of the lowest priority first; the store has them all, and they come back once there is room.
#[derive(Debug)]
pub struct MemoryQueue {
    waiting: Mutex<Waiting>,
    /// One permit for each push, at most one of them kept while nobody waits.
    pushed: Notify,
    capacity: usize,
}

#[derive(Debug, Default)]
struct Waiting {
    /// By priority, highest first, then by the order of pushes.
    order: BTreeMap<(Reverse<Priority>, u64), JobId>,
    ids: HashSet<JobId>,
    pushes: u64,
}

impl MemoryQueue {
    /// Ids that wait at most, by default.
    pub const CAPACITY: usize = 1_000_000;

    /// An empty queue of the default capacity.
    pub fn new() -> Self {
        Self::with_capacity(Self::CAPACITY)
    }

    /// An empty queue that keeps at most `capacity` ids.
    pub fn with_capacity(capacity: usize) -> Self {
        Self { waiting: Mutex::default(), pushed: Notify::new(), capacity }
    }

    /// No code that holds the lock can panic half-way, so a poisoned one is as good as any.
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The next id, if there is one. Wakes another popper when more are left: a wake-up may have reached one that
    /// had found an id by itself.
    fn take(&self) -> Option<Delivery> {
        let mut waiting = self.lock();
        let (_, id) = waiting.order.pop_first()?;
        waiting.ids.remove(&id);
        if !waiting.order.is_empty() {
            self.pushed.notify_one();
        }
        Some(Delivery { offer: Offer::Job(id), receipt: String::new() })
    }

    async fn next(&self) -> Delivery {
        loop {
            let mut pushed = std::pin::pin!(self.pushed.notified());
            // Listening begins before the look, so that a push between the two is heard.
            pushed.as_mut().enable();
            if let Some(delivery) = self.take() {
                return delivery;
            }
            pushed.await;
        }
    }
}

impl Default for MemoryQueue {
    fn default() -> Self {
        Self::new()
    }
}

impl MemoryQueue {
    fn push_one(&self, id: JobId, priority: Priority) {
        {
            let mut waiting = self.lock();
            if !waiting.ids.insert(id) {
                return;
            }
            waiting.pushes += 1;
            let age = waiting.pushes;
            waiting.order.insert((Reverse(priority), age), id);
            if waiting.order.len() > self.capacity
                && let Some((_, least)) = waiting.order.pop_last()
            {
                waiting.ids.remove(&least);
            }
        }
        self.pushed.notify_one();
    }
}

#[async_trait]
impl Queue for MemoryQueue {
    async fn push(&self, ids: &[(JobId, Priority)]) -> Result<(), QueueError> {
        for (id, priority) in ids {
            self.push_one(*id, *priority);
        }
        Ok(())
    }

    async fn push_after(&self, _: JobId, _: Priority, _: Duration) -> Result<(), QueueError> {
        Ok(())
    }

    async fn pop(&self, max: usize, wait: Duration) -> Result<Vec<Delivery>, QueueError> {
        // An id is taken in the very poll that returns it, so a dropped future has taken none.
        let Ok(first) = tokio::time::timeout(wait, self.next()).await else { return Ok(Vec::new()) };
        let mut all = vec![first];
        while all.len() < max
            && let Some(more) = self.take()
        {
            all.push(more);
        }
        Ok(all)
    }

    async fn ack(&self, _: &[Delivery]) -> Result<(), QueueError> {
        Ok(())
    }

    async fn put_back(&self, delivery: Delivery) -> Result<(), QueueError> {
        if let Offer::Job(id) = delivery.offer {
            self.push_one(id, Priority(0));
        }
        Ok(())
    }

    async fn set_aside(&self, _: Delivery, _: &str) -> Result<(), QueueError> {
        Ok(())
    }

    async fn aside(&self, _: usize) -> Result<Vec<SetAside>, QueueError> {
        Ok(Vec::new())
    }

    async fn depth(&self) -> Result<u64, QueueError> {
        Ok(self.lock().ids.len() as u64)
    }

    async fn ping(&self) -> Result<(), QueueError> {
        Ok(())
    }

    async fn upkeep(&self) -> Result<(), QueueError> {
        Ok(())
    }

    async fn close(&self) -> Result<(), QueueError> {
        Ok(())
    }
}
