//! Queues that misbehave, over one in this process.

use std::collections::HashSet;
use std::sync::Mutex;
use std::time::Duration;

use async_trait::async_trait;
use prover_worker::model::{JobId, Priority};
use prover_worker::queue::{Delivery, MemoryQueue, Precedence, Queue, QueueError, SetAside};
use tokio::sync::Notify;

/// What a queue does with offers.
#[derive(Clone, Copy, PartialEq)]
pub enum Behaviour {
    /// It accepts none, like a Redis without free memory.
    Full,
    /// It accepts each job once, and again only by `push_after`, which returns only after the job has been dealt with.
    SlowToAnswer,
}

pub struct Odd {
    inner: MemoryQueue,
    behaviour: Behaviour,
    offered: Mutex<HashSet<JobId>>,
    waits: Mutex<Vec<Duration>>,
    dealt_with: Notify,
}

impl Odd {
    pub fn new(behaviour: Behaviour) -> Self {
        let inner = MemoryQueue::new();
        Self { inner, behaviour, offered: Mutex::default(), waits: Mutex::default(), dealt_with: Notify::new() }
    }

    /// Returns how long each `pop` so far was to wait.
    pub fn waits(&self) -> Vec<Duration> {
        self.waits.lock().unwrap().clone()
    }

    fn is_full(&self) -> Result<(), QueueError> {
        match self.behaviour {
            Behaviour::Full => Err(QueueError::Unavailable("no memory is left".into())),
            Behaviour::SlowToAnswer => Ok(()),
        }
    }
}

#[async_trait]
impl Queue for Odd {
    async fn push(&self, ids: &[(JobId, Priority)], precedence: Precedence) -> Result<(), QueueError> {
        self.is_full()?;
        if precedence == Precedence::Returning {
            return Ok(());
        }
        let new = ids.iter().filter(|(id, _)| self.offered.lock().unwrap().insert(*id)).copied();
        self.inner.push(&new.collect::<Vec<_>>(), Precedence::New).await
    }

    async fn push_after(&self, id: JobId, priority: Priority, delay: Duration) -> Result<(), QueueError> {
        self.is_full()?;
        tokio::time::sleep(delay).await;
        let dealt_with = self.dealt_with.notified();
        self.inner.push(&[(id, priority)], Precedence::Returning).await?;
        dealt_with.await;
        Ok(())
    }

    async fn pop(&self, max: usize, wait: Duration) -> Result<Vec<Delivery>, QueueError> {
        self.waits.lock().unwrap().push(wait);
        self.inner.pop(max, wait).await
    }

    async fn ack(&self, deliveries: &[Delivery]) -> Result<(), QueueError> {
        self.dealt_with.notify_waiters();
        self.inner.ack(deliveries).await
    }

    async fn put_back(&self, delivery: Delivery) -> Result<(), QueueError> {
        self.inner.put_back(delivery).await
    }

    async fn set_aside(&self, delivery: Delivery, why: &str) -> Result<(), QueueError> {
        self.inner.set_aside(delivery, why).await
    }

    async fn aside(&self, limit: usize) -> Result<Vec<SetAside>, QueueError> {
        self.inner.aside(limit).await
    }

    async fn depth(&self) -> Result<u64, QueueError> {
        self.inner.depth().await
    }

    async fn ping(&self) -> Result<(), QueueError> {
        self.inner.ping().await
    }

    async fn upkeep(&self) -> Result<(), QueueError> {
        self.inner.upkeep().await
    }

    async fn close(&self) -> Result<(), QueueError> {
        self.inner.close().await
    }
}
