//! Tests of the queue in memory only.

use std::time::Duration;

use prover_worker::model::{JobId, Priority};
use prover_worker::queue::{MemoryQueue, Precedence, Queue};

use crate::conformance::{drain, id_of, ids, pop_soon};
use crate::wait::HANG;

#[tokio::test]
async fn ids_come_by_exact_priority_then_age() {
    let queue = MemoryQueue::new();
    let ids = ids(7);
    for (id, priority) in ids.iter().zip([0, -3, i16::MAX, 0, i16::MIN, i16::MAX, 7]) {
        queue.push(&[(*id, Priority(priority))], Precedence::New).await.unwrap();
    }
    assert_eq!(drain(&queue).await, [2, 5, 6, 0, 3, 1, 4].map(|i: usize| ids[i]));
}

#[tokio::test]
async fn what_is_put_back_keeps_its_exact_priority() {
    let queue = MemoryQueue::new();
    let ids = ids(3);
    for (id, priority) in ids.iter().zip([5, 4, 3]) {
        queue.push(&[(*id, Priority(priority))], Precedence::New).await.unwrap();
    }
    let mut held = queue.pop(2, HANG).await.unwrap();
    assert_eq!(held.iter().map(id_of).collect::<Vec<_>>(), ids[..2]);
    for delivery in held.drain(..).rev() {
        queue.put_back(delivery).await.unwrap();
    }
    assert_eq!(drain(&queue).await, ids);
}

#[tokio::test]
async fn past_its_capacity_it_keeps_the_best_and_oldest() {
    let queue = MemoryQueue::with_capacity(3);
    let ids = ids(6);
    for (id, priority) in ids.iter().zip([0, 5, 0, 0, 1, -1]) {
        queue.push(&[(*id, Priority(priority))], Precedence::New).await.unwrap();
    }
    assert_eq!(queue.depth().await.unwrap(), 3);
    assert_eq!(drain(&queue).await, [ids[1], ids[4], ids[0]]);

    // A forgotten id may return.
    queue.push(&[(ids[5], Priority(-1))], Precedence::New).await.unwrap();
    assert_eq!(drain(&queue).await, [ids[5]]);
}

#[tokio::test]
async fn past_its_capacity_it_keeps_those_due_first() {
    let queue = MemoryQueue::with_capacity(3);
    let ids = ids(5);
    for (id, ms) in ids.iter().zip([500, 100, 400, 200, 300]) {
        queue.push_after(*id, Priority(0), Duration::from_millis(ms)).await.unwrap();
    }
    for id in [ids[1], ids[3], ids[4]] {
        assert_eq!(pop_soon(&queue).await, id);
    }
    assert!(queue.pop(1, Duration::from_millis(400)).await.unwrap().is_empty());
}

#[tokio::test]
async fn it_takes_a_million_ids_and_stays_within_its_capacity() {
    let queue = MemoryQueue::new();
    let all: Vec<_> =
        (0..=MemoryQueue::CAPACITY).map(|n| (JobId(uuid::Uuid::from_u128(n as u128)), Priority(0))).collect();
    queue.push(&all, Precedence::New).await.unwrap();
    assert_eq!(queue.depth().await.unwrap(), MemoryQueue::CAPACITY as u64);
}
