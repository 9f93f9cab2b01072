//! The rules of `trait Queue`.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use prover_worker::model::{JobId, Priority};
use prover_worker::queue::Queue;

/// Makes empty queues.
pub trait Factory: Sync {
    type Queue: Queue;
    fn fresh(&self) -> impl Future<Output = Self::Queue> + Send;
}

/// Long enough for anything that is going to happen; reached by failing tests only.
pub const HANG: Duration = Duration::from_secs(60);

macro_rules! suite {
    ($name:ident, $factory:expr) => {
        mod $name {
            $crate::conformance::suite!(@ $factory,
                an_empty_queue_gives_nothing,
                what_is_pushed_is_popped_once,
                ids_come_by_priority_then_age,
                an_id_that_waits_is_not_added_twice,
                an_id_in_a_workers_hands_may_be_pushed_again,
                an_acknowledged_id_may_be_pushed_again,
                depth_counts_what_waits,
                a_push_wakes_a_waiting_pop,
                each_of_many_waiting_poppers_gets_one,
                a_dropped_pop_loses_no_id,
                no_wake_up_is_lost_among_many_producers_and_poppers,
            );
        }
    };
    (@ $factory:expr, $($rule:ident,)*) => {$(
        #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
        async fn $rule() {
            $crate::conformance::$rule(&$factory).await;
        }
    )*};
}
pub(crate) use suite;

async fn pop_now(queue: &impl Queue) -> Option<JobId> {
    let delivery = queue.pop(Duration::ZERO).await.unwrap()?;
    let id = delivery.id;
    queue.ack(delivery).await.unwrap();
    Some(id)
}

async fn pop_soon(queue: &impl Queue) -> JobId {
    let delivery = queue.pop(HANG).await.unwrap().expect("an id before the time-out");
    let id = delivery.id;
    queue.ack(delivery).await.unwrap();
    id
}

/// Everything that waits, in order.
pub async fn drain(queue: &impl Queue) -> Vec<JobId> {
    let mut ids = Vec::new();
    while let Some(id) = pop_now(queue).await {
        ids.push(id);
    }
    ids
}

pub async fn an_empty_queue_gives_nothing(f: &impl Factory) {
    let queue = f.fresh().await;
    assert!(queue.pop(Duration::ZERO).await.unwrap().is_none());
    assert!(queue.pop(Duration::from_millis(20)).await.unwrap().is_none());
    assert_eq!(queue.depth().await.unwrap(), 0);
}

pub async fn what_is_pushed_is_popped_once(f: &impl Factory) {
    let queue = f.fresh().await;
    let id = JobId::new();
    queue.push(id, Priority(0)).await.unwrap();
    assert_eq!(drain(&queue).await, [id]);
}

pub async fn ids_come_by_priority_then_age(f: &impl Factory) {
    let queue = f.fresh().await;
    let ids: Vec<JobId> = (0..6).map(|_| JobId::new()).collect();
    for (id, priority) in ids.iter().zip([0, -3, i16::MAX, 0, i16::MIN, i16::MAX]) {
        queue.push(*id, Priority(priority)).await.unwrap();
    }
    assert_eq!(drain(&queue).await, [2, 5, 0, 3, 1, 4].map(|i: usize| ids[i]));
}

pub async fn an_id_that_waits_is_not_added_twice(f: &impl Factory) {
    let queue = f.fresh().await;
    let (a, b) = (JobId::new(), JobId::new());
    for id in [a, b, a, b, a] {
        queue.push(id, Priority(1)).await.unwrap();
    }
    assert_eq!(queue.depth().await.unwrap(), 2);
    assert_eq!(drain(&queue).await, [a, b], "a repeat keeps its place");
}

pub async fn an_id_in_a_workers_hands_may_be_pushed_again(f: &impl Factory) {
    let queue = f.fresh().await;
    let id = JobId::new();
    queue.push(id, Priority(0)).await.unwrap();
    let held = queue.pop(Duration::ZERO).await.unwrap().unwrap();
    queue.push(id, Priority(0)).await.unwrap();
    queue.ack(held).await.unwrap();
    // The reconciler pushes it for the sake of a job that came back: the acknowledgement must not swallow that.
    assert_eq!(pop_soon(&queue).await, id);
}

pub async fn an_acknowledged_id_may_be_pushed_again(f: &impl Factory) {
    let queue = f.fresh().await;
    let id = JobId::new();
    for _ in 0..3 {
        queue.push(id, Priority(0)).await.unwrap();
        assert_eq!(drain(&queue).await, [id]);
    }
}

pub async fn depth_counts_what_waits(f: &impl Factory) {
    let queue = f.fresh().await;
    for n in 1..=5 {
        queue.push(JobId::new(), Priority(n)).await.unwrap();
        assert_eq!(queue.depth().await.unwrap(), n as u64);
    }
    let held = queue.pop(Duration::ZERO).await.unwrap().unwrap();
    assert_eq!(queue.depth().await.unwrap(), 4, "one in a worker's hands does not wait");
    queue.ack(held).await.unwrap();
    assert_eq!(queue.depth().await.unwrap(), 4);
}

pub async fn a_push_wakes_a_waiting_pop(f: &impl Factory) {
    let queue = Arc::new(f.fresh().await);
    let waiting = tokio::spawn({
        let queue = queue.clone();
        async move { pop_soon(&*queue).await }
    });
    tokio::task::yield_now().await;
    let id = JobId::new();
    queue.push(id, Priority(0)).await.unwrap();
    assert_eq!(tokio::time::timeout(HANG, waiting).await.unwrap().unwrap(), id);
}

pub async fn each_of_many_waiting_poppers_gets_one(f: &impl Factory) {
    const N: usize = 32;
    let queue = Arc::new(f.fresh().await);
    let mut poppers = tokio::task::JoinSet::new();
    for _ in 0..N {
        let queue = queue.clone();
        poppers.spawn(async move { pop_soon(&*queue).await });
    }
    tokio::task::yield_now().await;
    let ids: HashSet<JobId> = (0..N).map(|_| JobId::new()).collect();
    for id in &ids {
        queue.push(*id, Priority(0)).await.unwrap();
    }
    let got = tokio::time::timeout(HANG, poppers.join_all()).await.unwrap();
    assert_eq!(got.len(), N);
    assert_eq!(got.into_iter().collect::<HashSet<_>>(), ids);
}

pub async fn a_dropped_pop_loses_no_id(f: &impl Factory) {
    let queue = Arc::new(f.fresh().await);
    for round in 0..200 {
        // One popper is dropped at about the time of the push; the id must reach it or stay.
        let quitter = tokio::spawn({
            let queue = queue.clone();
            async move { pop_soon(&*queue).await }
        });
        if round % 2 == 0 {
            tokio::task::yield_now().await;
        }
        let id = JobId::new();
        queue.push(id, Priority(0)).await.unwrap();
        quitter.abort();
        match quitter.await {
            Ok(got) => assert_eq!(got, id),
            Err(_) => assert_eq!(pop_soon(&*queue).await, id),
        }
        assert_eq!(queue.depth().await.unwrap(), 0);
    }
}

pub async fn no_wake_up_is_lost_among_many_producers_and_poppers(f: &impl Factory) {
    const PRODUCERS: usize = 8;
    const EACH: usize = 250;
    let queue = Arc::new(f.fresh().await);
    let mut poppers = tokio::task::JoinSet::new();
    for _ in 0..16 {
        let queue = queue.clone();
        poppers.spawn(async move {
            let mut got = Vec::new();
            // Ends at the first stop mark, of which there is one for each.
            loop {
                // Some waits are given up at once, as a worker's `select!` would.
                let delivery = match queue.pop(Duration::from_micros(50)).await.unwrap() {
                    Some(d) => d,
                    None => queue.pop(HANG).await.unwrap().expect("an id before the time-out"),
                };
                let id = delivery.id;
                queue.ack(delivery).await.unwrap();
                if id.0.get_version_num() == 4 {
                    return got;
                }
                got.push(id);
            }
        });
    }
    let mut producers = tokio::task::JoinSet::new();
    for _ in 0..PRODUCERS {
        let queue = queue.clone();
        producers.spawn(async move {
            let mut made = Vec::new();
            for n in 0..EACH {
                let id = JobId::new();
                queue.push(id, Priority((n % 3) as i16)).await.unwrap();
                made.push(id);
                if n % 10 == 0 {
                    tokio::task::yield_now().await;
                }
            }
            made
        });
    }
    let made: HashSet<JobId> = producers.join_all().await.into_iter().flatten().collect();
    for _ in 0..16 {
        queue.push(JobId(uuid::Uuid::new_v4()), Priority(-1)).await.unwrap();
    }
    let got = tokio::time::timeout(HANG, poppers.join_all()).await.unwrap();
    let got: Vec<JobId> = got.into_iter().flatten().collect();
    assert_eq!(got.len(), PRODUCERS * EACH);
    assert_eq!(got.into_iter().collect::<HashSet<_>>(), made);
}
