//! What every queue must do, run over each implementation.
#![allow(clippy::unwrap_used)]

mod conformance;

use prover_worker::model::{JobId, Priority};
use prover_worker::queue::{MemoryQueue, Queue};

struct Memory;

impl conformance::Factory for Memory {
    type Queue = MemoryQueue;

    async fn fresh(&self) -> MemoryQueue {
        MemoryQueue::new()
    }
}

conformance::suite!(memory, crate::Memory);

#[tokio::test]
async fn memory_past_its_capacity_keeps_the_best_and_oldest() {
    let queue = MemoryQueue::with_capacity(3);
    let ids: Vec<JobId> = (0..6).map(|_| JobId::new()).collect();
    for (id, priority) in ids.iter().zip([0, 5, 0, 0, 1, -1]) {
        queue.push(*id, Priority(priority)).await.unwrap();
    }
    assert_eq!(queue.depth().await.unwrap(), 3);
    assert_eq!(conformance::drain(&queue).await, [ids[1], ids[4], ids[0]]);

    // What was forgotten may come back.
    queue.push(ids[5], Priority(-1)).await.unwrap();
    assert_eq!(conformance::drain(&queue).await, [ids[5]]);
}

#[tokio::test]
async fn memory_takes_a_million_ids_and_stays_within_its_capacity() {
    let queue = MemoryQueue::new();
    for n in 0..=MemoryQueue::CAPACITY {
        queue.push(JobId(uuid::Uuid::from_u128(n as u128)), Priority(0)).await.unwrap();
    }
    assert_eq!(queue.depth().await.unwrap(), MemoryQueue::CAPACITY as u64);
}
