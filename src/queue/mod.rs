//! The queue: wakes workers and hands out job ids. It is disposable; the store is authoritative.
//!
//! In addition to ids it may deliver messages: jobs that a producer wrote directly into the queue. A message stays in
//! the queue until the store has the job (or the message is set aside), so a crash in between loses nothing.

mod memory;
mod redis;

use std::time::Duration;

use async_trait::async_trait;
use zeroize::Zeroizing;

pub use self::redis::{RedisQueue, RedisSettings};
pub use memory::MemoryQueue;

use crate::model::{Job, JobId, JobState, Priority};

/// What a delivery offers.
pub enum Offer {
    /// A job the store knows.
    Job(JobId),
    /// A job the store does not know yet, as its producer wrote it.
    Message(Message),
}

/// A producer's message. Its body may hold a secret.
pub struct Message {
    /// The bytes of the message, or the first part of them if it exceeds the size limit of the queue.
    pub body: Zeroizing<Vec<u8>>,
    /// Size of the whole message in bytes.
    pub size: u64,
    /// Identifies this message within the queue; the same at each delivery.
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

/// Record of a message that could not be used.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct SetAside {
    /// When it was set aside: milliseconds since 1970 by the queue's clock.
    pub at: i64,
    /// The source of the message, as in [`Message::source`].
    pub source: String,
    /// Why it was set aside.
    pub why: String,
    /// Size of the message in bytes.
    pub size: u64,
    /// SHA-256 of its bytes (of the part that was read) in hexadecimal, to identify it at the producer. The message
    /// itself is not kept, since it may hold a secret.
    pub sha256: String,
}

/// Notice that a job has ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EndNotice {
    /// The job's id.
    pub id: JobId,
    /// The queue it was submitted to.
    pub queue: String,
    /// The idempotency key its submitter gave it.
    pub key: Option<String>,
    /// Its final state.
    pub state: JobState,
}

impl EndNotice {
    /// Creates the notice for `job`, which ended in `state`.
    pub fn of(job: &Job, state: JobState) -> Self {
        Self { id: job.id, queue: job.queue.clone(), key: job.idempotency_key.clone(), state }
    }
}

/// Errors of a queue.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum QueueError {
    /// The queue does not answer, or refuses the call.
    #[error("queue: {0}")]
    Unavailable(String),
    /// The server does not permit the call to this program's user (Redis' error `NOPERM`).
    #[error("queue: {0}")]
    NotPermitted(String),
    /// The server is too old, rejects this program's credentials, or cannot serve as a queue.
    #[error("the queue's server cannot be used: {0}")]
    Unfit(String),
}

/// Which ids come first among those of about the same priority.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Precedence {
    /// Ids that a worker had before: returned, or lost with it. They come before all new ones.
    Returning,
    /// Ids that no worker had.
    New,
}

/// Job ids on their way to workers. The conformance suite in `tests/queue` runs against every implementation.
#[async_trait]
pub trait Queue: Send + Sync + 'static {
    /// Offers ids. An id that is already waiting is not added twice and keeps its place, unless it waits as new and is
    /// now returning: then it moves forward. One that is held by a worker may be added again.
    async fn push(&self, ids: &[(JobId, Priority)], precedence: Precedence) -> Result<(), QueueError>;
    /// Offers a returning id after `delay`. A later call for the same id replaces the delay.
    async fn push_after(&self, id: JobId, priority: Priority, delay: Duration) -> Result<(), QueueError>;
    /// Returns up to `max` deliveries, best first; waits up to `wait` for the first. Dropping the future loses nothing:
    /// what it had taken is offered again.
    async fn pop(&self, max: usize, wait: Duration) -> Result<Vec<Delivery>, QueueError>;
    /// Acknowledges deliveries that have been processed (or that the store will offer again).
    async fn ack(&self, deliveries: &[Delivery]) -> Result<(), QueueError>;
    /// Offers a delivery again at once, to any worker, as returning.
    async fn put_back(&self, delivery: Delivery) -> Result<(), QueueError>;
    /// Removes an unusable message from the queue and records why; at most the last 1,000 are remembered.
    async fn set_aside(&self, delivery: Delivery, why: &str) -> Result<(), QueueError>;
    /// Returns messages that were set aside, newest first.
    async fn aside(&self, limit: usize) -> Result<Vec<SetAside>, QueueError>;
    /// Notifies listeners of these jobs' queues, on the same server, that the jobs have ended. Only a hint, since
    /// notices may be lost; the store is authoritative.
    async fn announce_ended(&self, _: &[EndNotice]) -> Result<(), QueueError> {
        Ok(())
    }
    /// Sets the database that the jobs belong to, by [`Store::identity`](crate::store::Store::identity). A shared queue
    /// answers [`QueueError::Unavailable`] while it is in use by workers of another database.
    fn belong_to(&self, _database: &str) {}
    /// Returns the number of waiting ids and messages, without those whose delay has not passed.
    async fn depth(&self) -> Result<u64, QueueError>;
    /// Checks that the queue answers and is not in use by workers of another database, and that calls of `pop` are
    /// still served.
    async fn ping(&self) -> Result<(), QueueError>;
    /// Performs regular maintenance: offers what dead workers held to others, and forgets those workers. Cheap; call it
    /// every few seconds.
    async fn upkeep(&self) -> Result<(), QueueError>;
    /// Ends this worker's use of the queue; it must not pop afterwards.
    async fn close(&self) -> Result<(), QueueError>;
}
