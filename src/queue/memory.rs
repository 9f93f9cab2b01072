//! A queue within one process.

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap};
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::Notify;
use tokio::time::Instant;

use super::{Delivery, Offer, Precedence, Queue, QueueError, SetAside};
use crate::model::{JobId, Priority, locked};

/// Ids in memory, ordered by priority, then by [`Precedence`], then by age. It never delivers messages.
///
/// What is lost (at a restart, or because a [`Delivery`] was dropped without [`Queue::ack`]) stays lost here: the
/// reconciler offers such jobs again from the store. So acknowledging does nothing, and nothing is delivered twice
/// unless it is pushed twice.
///
/// Memory is bounded, at about 100 bytes per id. Beyond its capacity the queue keeps the best ids and forgets the rest:
/// the youngest of the lowest priority first, and of the delayed ids the last to be due. The store has them all, and
/// they come back once there is capacity.
#[derive(Debug)]
pub struct MemoryQueue {
    waiting: Mutex<Waiting>,
    /// One permit for each push; at most one is kept while no caller waits.
    pushed: Notify,
    capacity: usize,
}

/// By priority, highest first; then returning ids before new ones, then in the order of pushes.
type Rank = (Reverse<Priority>, Precedence, u64);

#[derive(Debug, Default)]
struct Waiting {
    /// Waiting ids, best first.
    order: BTreeMap<Rank, JobId>,
    /// The key of each id in `order`.
    ids: HashMap<JobId, Rank>,
    /// Delayed ids, by the time they are due, then in the order of pushes.
    delayed: BTreeMap<(Instant, u64), (JobId, Priority)>,
    /// The key of each id in `delayed`.
    due: HashMap<JobId, (Instant, u64)>,
    pushes: u64,
}

impl Waiting {
    fn add(&mut self, id: JobId, priority: Priority, precedence: Precedence, capacity: usize) {
        if let Some(rank) = self.ids.get(&id) {
            if precedence >= rank.1 {
                return;
            }
            self.order.remove(rank);
        }
        self.pushes += 1;
        let rank = (Reverse(priority), precedence, self.pushes);
        self.ids.insert(id, rank);
        self.order.insert(rank, id);
        if self.order.len() > capacity
            && let Some((_, least)) = self.order.pop_last()
        {
            self.ids.remove(&least);
        }
    }

    fn delay(&mut self, id: JobId, priority: Priority, until: Instant, capacity: usize) {
        self.pushes += 1;
        let key = (until, self.pushes);
        if let Some(old) = self.due.insert(id, key) {
            self.delayed.remove(&old);
        }
        self.delayed.insert(key, (id, priority));
        if self.delayed.len() > capacity
            && let Some((_, (last, _))) = self.delayed.pop_last()
        {
            self.due.remove(&last);
        }
    }

    /// Moves the delayed ids that are due to the waiting ones.
    fn move_due(&mut self, capacity: usize) {
        let now = Instant::now();
        while let Some(first) = self.delayed.first_entry()
            && first.key().0 <= now
        {
            let (id, priority) = first.remove();
            self.due.remove(&id);
            self.add(id, priority, Precedence::Returning, capacity);
        }
    }
}

impl MemoryQueue {
    /// Default maximum number of waiting ids.
    pub const CAPACITY: usize = 1_000_000;

    /// Creates an empty queue with the default capacity.
    pub fn new() -> Self {
        Self::with_capacity(Self::CAPACITY)
    }

    /// Creates an empty queue that keeps at most `capacity` waiting ids, and as many delayed ones.
    pub fn with_capacity(capacity: usize) -> Self {
        Self { waiting: Mutex::default(), pushed: Notify::new(), capacity }
    }

    /// Locks the waiting ids, after moving those that have become due there. No code that holds the lock can panic
    /// midway, so a poisoned lock is as good as any.
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        let mut waiting = locked(&self.waiting);
        waiting.move_due(self.capacity);
        waiting
    }

    /// Takes the next id, or returns when one will be due. Wakes another caller of `pop` when more ids are left: a
    /// wake-up may have reached one that had found an id by itself.
    fn take(&self) -> Result<Delivery, Option<Instant>> {
        let mut waiting = self.lock();
        let Some(((Reverse(priority), ..), id)) = waiting.order.pop_first() else {
            return Err(waiting.delayed.keys().next().map(|(at, _)| *at));
        };
        waiting.ids.remove(&id);
        if !waiting.order.is_empty() {
            self.pushed.notify_one();
        }
        Ok(Delivery { offer: Offer::Job(id), receipt: priority.0.to_string() })
    }

    async fn next(&self) -> Delivery {
        loop {
            let mut pushed = std::pin::pin!(self.pushed.notified());
            // Listening begins before the lookup, so that a push between the two is not missed.
            pushed.as_mut().enable();
            match self.take() {
                Ok(delivery) => return delivery,
                Err(Some(due)) => {
                    let _ = tokio::time::timeout_at(due, pushed).await;
                }
                Err(None) => pushed.await,
            }
        }
    }

    fn push_one(&self, id: JobId, priority: Priority, precedence: Precedence) {
        self.lock().add(id, priority, precedence, self.capacity);
        self.pushed.notify_one();
    }
}

impl Default for MemoryQueue {
    fn default() -> Self {
        Self::new()
    }
}

#[async_trait]
impl Queue for MemoryQueue {
    async fn push(&self, ids: &[(JobId, Priority)], precedence: Precedence) -> Result<(), QueueError> {
        for (id, priority) in ids {
            self.push_one(*id, *priority, precedence);
        }
        Ok(())
    }

    async fn push_after(&self, id: JobId, priority: Priority, delay: Duration) -> Result<(), QueueError> {
        // A time that the clock cannot represent does not come in this process's lifetime.
        if let Some(until) = Instant::now().checked_add(delay) {
            self.lock().delay(id, priority, until, self.capacity);
        }
        // Each waiting caller sleeps until the first id is due, which may be sooner now. Later callers look for
        // themselves.
        self.pushed.notify_waiters();
        Ok(())
    }

    async fn pop(&self, max: usize, wait: Duration) -> Result<Vec<Delivery>, QueueError> {
        if max == 0 {
            return Ok(Vec::new());
        }
        // An id is taken in the same poll that returns it, so a dropped future has taken none.
        let Ok(first) = tokio::time::timeout(wait, self.next()).await else { return Ok(Vec::new()) };
        let mut all = vec![first];
        while all.len() < max
            && let Ok(more) = self.take()
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
            self.push_one(id, Priority(delivery.receipt.parse().unwrap_or(0)), Precedence::Returning);
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
