//! What every queue must do, run over each implementation, and what each does beside.
#![allow(clippy::unwrap_used)]

mod conformance;
mod memory;
mod redis;
mod server;

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
