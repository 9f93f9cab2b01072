//! The queue: wakes workers and hands out job ids. Disposable; the store is the authority.

mod memory;

use std::time::Duration;

use async_trait::async_trait;

pub use memory::MemoryQueue;

use crate::model::{JobId, Priority};

/// An id handed to this worker, until it is acknowledged or put back.
#[derive(Debug)]
pub struct Delivery {
    /// The job.
    pub id: JobId,
    /// What the implementation needs to acknowledge it.
    pub receipt: String,
}

/// What can go wrong in a queue.
#[derive(Debug, thiserror::Error)]
pub enum QueueError {
    /// The queue cannot be reached.
    #[error("queue: {0}")]
    Unavailable(String),
}

/// Ids on their way to workers. The conformance suite in `tests/queue` runs over every implementation.
#[async_trait]
pub trait Queue: Send + Sync + 'static {
    /// Offers an id. One that waits already is not added twice; one that is in a worker's hands may be.
    async fn push(&self, id: JobId, priority: Priority) -> Result<(), QueueError>;
    /// The next id by priority, then age; waits up to `wait` for one. Dropping the future loses no id.
    async fn pop(&self, wait: Duration) -> Result<Option<Delivery>, QueueError>;
    /// The job has been dealt with (or is the store's to offer again).
    async fn ack(&self, delivery: Delivery) -> Result<(), QueueError>;
    /// Ids waiting.
    async fn depth(&self) -> Result<u64, QueueError>;
}
