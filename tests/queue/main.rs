//! What every queue must do, run over each implementation, and what only one of them does.
#![allow(clippy::unwrap_used)]

mod conformance;
mod memory;
mod redis;
mod server;
#[path = "../support/wait.rs"]
mod wait;

/// Queues in memory.
struct Memory;

impl conformance::Factory for Memory {
    type Queue = prover_worker::queue::MemoryQueue;

    async fn fresh(&self) -> Self::Queue {
        Self::Queue::new()
    }
}

conformance::suite!(memory_conforms, crate::Memory);
conformance::suite!(redis_conforms, crate::server::Shared::new());
