//! The queue: wakes workers and hands out job ids. Disposable; the store is the authority.
//!
//! Beside ids it may bring messages: jobs that a producer wrote straight into it. A message stays in the queue until
//! the store has the job (or it is set aside), so a crash in between loses nothing.

mod memory;
mod redis;

use std::time::Duration;

use async_trait::async_trait;
use zeroize::Zeroizing;

pub use self::redis::{RedisQueue, RedisSettings};
pub use memory::MemoryQueue;

use crate::model::{Job, JobId, JobState, Priority};

/// What is handed out.
pub enum Offer {
    /// A job the store knows.
    Job(JobId),
    /// A job it does not know yet, as its producer wrote it.
    Message(Message),
}

/// A producer's message. Its body may hold a secret.
pub struct Message {
    /// Its bytes, or the first part of them where it is larger than the queue was told to take.
    pub body: Zeroizing<Vec<u8>>,
    /// Bytes it has as a whole.
    pub size: u64,
    /// Names this message among all of the queue, at each delivery alike.
    pub source: String,
}

impl std::fmt::Debug for Offer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Job(id) => f.debug_tuple("Job").field(id).finish(),
            Self::Message(m) => f.debug_struct("Message").field("source", &m.source).field("size", &m.size).finish(),
        }
    }
}

/// An offer handed to this worker, until it is acknowledged, put back or set aside.
#[derive(Debug)]
pub struct Delivery {
    /// What is offered.
    pub offer: Offer,
    /// What the implementation needs to acknowledge it.
    pub receipt: String,
}

/// A message that nobody could use.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct SetAside {
    /// When, milliseconds since 1970 by the queue's clock.
    pub at: i64,
    /// Which message.
    pub source: String,
    /// Why.
    pub why: String,
    /// Bytes it had.
    pub size: u64,
    /// SHA-256 of its bytes (of the part that was read), hexadecimal: to find it at the producer's. The message itself
    /// is not kept, since it may hold a secret.
    pub sha256: String,
}

/// A job that has ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ended {
    /// Which.
    pub id: JobId,
    /// The queue it was submitted to.
    pub queue: String,
    /// Its submitter's own name for it.
    pub key: Option<String>,
    /// How.
    pub state: JobState,
}

impl Ended {
    /// Of a job that has ended so.
    pub fn of(job: &Job, state: JobState) -> Self {
        Self { id: job.id, queue: job.queue.clone(), key: job.idempotency_key.clone(), state }
    }
}

/// What can go wrong in a queue.
#[derive(Debug, thiserror::Error)]
pub enum QueueError {
    /// The queue cannot be reached.
    #[error("queue: {0}")]
    Unavailable(String),
    /// The server is too old, or set up so that it would lose what it is given.
    #[error("the queue's server cannot be used: {0}")]
    Unfit(String),
}

/// Ids on their way to workers. The conformance suite in `tests/queue` runs over every implementation.
#[async_trait]
pub trait Queue: Send + Sync + 'static {
    /// Offers ids. One that waits already is not added twice and keeps its place; one that is in a worker's hands may
    /// be.
    async fn push(&self, ids: &[(JobId, Priority)]) -> Result<(), QueueError>;
    /// Offers ids that a worker had before (handed back, or lost with it): they come before all of their band that no
    /// worker had, also where they wait among those already.
    async fn push_again(&self, ids: &[(JobId, Priority)]) -> Result<(), QueueError>;
    /// Offers an id again, as `push_again`, once this time has passed. A later call for the same id replaces the time.
    async fn push_after(&self, id: JobId, priority: Priority, delay: Duration) -> Result<(), QueueError>;
    /// Up to `max` of what comes next, best first; waits up to `wait` for the first. Dropping the future loses
    /// nothing: what it had taken is offered again.
    async fn pop(&self, max: usize, wait: Duration) -> Result<Vec<Delivery>, QueueError>;
    /// These have been dealt with (or are the store's to offer again).
    async fn ack(&self, deliveries: &[Delivery]) -> Result<(), QueueError>;
    /// Offers a delivery again, to anybody, at once, before what no worker had.
    async fn put_back(&self, delivery: Delivery) -> Result<(), QueueError>;
    /// Takes a message that nobody can use out of the queue and notes why; at most the last 1,000 are remembered.
    async fn set_aside(&self, delivery: Delivery, why: &str) -> Result<(), QueueError>;
    /// Messages set aside, newest first.
    async fn aside(&self, limit: usize) -> Result<Vec<SetAside>, QueueError>;
    /// Tells whoever listens at their queues, on the same server, that these jobs have ended. A hint, of which some may be
    /// lost; the store knows.
    async fn tell_ended(&self, _: &[Ended]) -> Result<(), QueueError> {
        Ok(())
    }
    /// Says whose jobs these are, by [`Store::identity`](crate::store::Store::identity): a queue that is shared answers
    /// [`QueueError::Unavailable`] while workers of another database have it.
    fn belong_to(&self, _database: &str) {}
    /// What waits now, messages included; what waits for its time is not.
    async fn depth(&self) -> Result<u64, QueueError>;
    /// Whether the queue answers, and has no workers of another database.
    async fn ping(&self) -> Result<(), QueueError>;
    /// Regular care: gives others what dead workers held, and forgets the dead. Cheap; to be called every few seconds.
    async fn upkeep(&self) -> Result<(), QueueError>;
    /// This worker pops no more.
    async fn close(&self) -> Result<(), QueueError>;
}
