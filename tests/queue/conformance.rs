//! The rules of `trait Queue`.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use prover_worker::model::{JobId, Priority};
use prover_worker::queue::{Delivery, Offer, Precedence, Queue};

use crate::wait::HANG;

/// Creates empty queues.
pub trait Factory: Sync {
    type Queue: Queue;
    fn fresh(&self) -> impl Future<Output = Self::Queue> + Send;
    /// Removes what the queues left behind.
    fn clean(&self) -> impl Future<Output = ()> + Send {
        async {}
    }
}

macro_rules! suite {
    ($name:ident, $factory:expr) => {
        mod $name {
            $crate::conformance::suite!(@ $factory,
                an_empty_queue_gives_nothing,
                what_is_pushed_is_popped_once,
                a_higher_band_comes_first_then_the_older,
                many_are_popped_at_once_but_no_more_than_asked_for,
                an_id_that_waits_is_not_added_twice,
                an_id_in_a_workers_hands_may_be_pushed_again,
                an_acknowledged_id_may_be_pushed_again,
                what_is_put_back_is_popped_again_in_its_band,
                what_comes_again_comes_before_what_is_new_in_its_band,
                what_comes_again_and_waits_already_moves_up_once,
                an_id_set_aside_is_forgotten,
                a_delayed_id_comes_when_it_is_due,
                delayed_ids_come_in_the_order_of_their_times,
                a_later_delay_replaces_the_earlier,
                an_earlier_delay_wakes_who_waits_for_a_later_one,
                depth_counts_what_waits,
                a_push_wakes_a_waiting_pop,
                each_of_many_waiting_poppers_gets_one,
                a_dropped_pop_loses_no_id,
                no_wake_up_is_lost_among_many_producers_and_poppers,
                thousands_of_ids_in_one_push_all_arrive_in_order,
                care_and_closing_lose_nothing,
                it_is_used_as_a_trait_object,
            );
        }
    };
    (@ $factory:expr, $($rule:ident,)*) => {$(
        #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
        async fn $rule() {
            let factory = $factory;
            $crate::conformance::$rule(&factory).await;
            $crate::conformance::Factory::clean(&factory).await;
        }
    )*};
}
pub(crate) use suite;

/// Returns the id that is offered.
pub fn id_of(delivery: &Delivery) -> JobId {
    match &delivery.offer {
        Offer::Job(id) => *id,
        Offer::Message(m) => panic!("expected an id, got the message {}", m.source),
    }
}

pub async fn push(queue: &impl Queue, id: JobId, priority: i16) {
    queue.push(&[(id, Priority(priority))], Precedence::New).await.unwrap();
}

/// Takes one delivery, if there is one now.
pub async fn take(queue: &impl Queue) -> Option<Delivery> {
    let mut all = queue.pop(1, Duration::ZERO).await.unwrap();
    assert!(all.len() < 2);
    all.pop()
}

/// Takes one delivery as soon as there is one.
pub async fn take_soon(queue: &impl Queue) -> Delivery {
    queue.pop(1, HANG).await.unwrap().pop().expect("a delivery before the time-out")
}

async fn pop_now(queue: &impl Queue) -> Option<JobId> {
    let delivery = take(queue).await?;
    let id = id_of(&delivery);
    queue.ack(&[delivery]).await.unwrap();
    Some(id)
}

pub async fn pop_soon(queue: &impl Queue) -> JobId {
    let delivery = take_soon(queue).await;
    let id = id_of(&delivery);
    queue.ack(&[delivery]).await.unwrap();
    id
}

/// Takes everything that waits, in order.
pub async fn drain(queue: &impl Queue) -> Vec<JobId> {
    let mut ids = Vec::new();
    while let Some(id) = pop_now(queue).await {
        ids.push(id);
    }
    ids
}

pub fn ids(n: usize) -> Vec<JobId> {
    (0..n).map(|_| JobId::new()).collect()
}

pub async fn an_empty_queue_gives_nothing(f: &impl Factory) {
    let queue = f.fresh().await;
    assert!(queue.pop(1, Duration::ZERO).await.unwrap().is_empty());
    assert!(queue.pop(9, Duration::from_millis(20)).await.unwrap().is_empty());
    assert!(queue.pop(0, HANG).await.unwrap().is_empty());
    assert_eq!(queue.depth().await.unwrap(), 0);
    assert_eq!(queue.aside(10).await.unwrap(), []);
    queue.push(&[], Precedence::New).await.unwrap();
    queue.ack(&[]).await.unwrap();
    queue.ping().await.unwrap();
}

pub async fn what_is_pushed_is_popped_once(f: &impl Factory) {
    let queue = f.fresh().await;
    let id = JobId::new();
    push(&queue, id, 0).await;
    assert_eq!(drain(&queue).await, [id]);
}

pub async fn a_higher_band_comes_first_then_the_older(f: &impl Factory) {
    let queue = f.fresh().await;
    let ids = ids(7);
    let priorities = [0, -3, i16::MAX, 0, -3, i16::MAX, 0];
    let all: Vec<_> = ids.iter().zip(priorities).map(|(id, p)| (*id, Priority(p))).collect();
    queue.push(&all[..3], Precedence::New).await.unwrap();
    queue.push(&all[3..], Precedence::New).await.unwrap();
    assert_eq!(drain(&queue).await, [2, 5, 0, 3, 6, 1, 4].map(|i: usize| ids[i]));
}

pub async fn many_are_popped_at_once_but_no_more_than_asked_for(f: &impl Factory) {
    let queue = f.fresh().await;
    let ids = ids(10);
    for (n, id) in ids.iter().enumerate() {
        push(&queue, *id, i16::from(n < 3)).await;
    }
    let held = queue.pop(4, HANG).await.unwrap();
    assert_eq!(held.iter().map(id_of).collect::<Vec<_>>(), ids[..4]);
    assert_eq!(queue.depth().await.unwrap(), 6);
    let rest = queue.pop(100, HANG).await.unwrap();
    assert_eq!(rest.iter().map(id_of).collect::<Vec<_>>(), ids[4..]);
    queue.ack(&held).await.unwrap();
    queue.ack(&rest).await.unwrap();
    assert_eq!(drain(&queue).await, []);
}

pub async fn an_id_that_waits_is_not_added_twice(f: &impl Factory) {
    let queue = f.fresh().await;
    let (a, b) = (JobId::new(), JobId::new());
    for id in [a, b, a, b, a] {
        push(&queue, id, 1).await;
    }
    queue.push(&[(a, Priority(1)), (a, Priority(1))], Precedence::New).await.unwrap();
    assert_eq!(queue.depth().await.unwrap(), 2);
    assert_eq!(drain(&queue).await, [a, b], "a repeat keeps its place");
}

pub async fn an_id_in_a_workers_hands_may_be_pushed_again(f: &impl Factory) {
    let queue = f.fresh().await;
    let id = JobId::new();
    push(&queue, id, 0).await;
    let held = take(&queue).await.unwrap();
    for _ in 0..5 {
        push(&queue, id, 0).await;
    }
    assert_eq!(queue.depth().await.unwrap(), 1);
    queue.ack(&[held]).await.unwrap();
    // The reconciler pushes it because the job came back: the acknowledgement must not swallow that.
    assert_eq!(pop_soon(&queue).await, id);
    assert_eq!(drain(&queue).await, []);
}

pub async fn an_acknowledged_id_may_be_pushed_again(f: &impl Factory) {
    let queue = f.fresh().await;
    let id = JobId::new();
    for _ in 0..3 {
        push(&queue, id, 0).await;
        assert_eq!(drain(&queue).await, [id]);
    }
}

pub async fn what_is_put_back_is_popped_again_in_its_band(f: &impl Factory) {
    let queue = f.fresh().await;
    let (low, normal, high) = (JobId::new(), JobId::new(), JobId::new());
    for (id, priority) in [(low, -1), (normal, 0), (high, 1)] {
        push(&queue, id, priority).await;
    }
    let held = queue.pop(3, HANG).await.unwrap();
    assert_eq!(held.len(), 3);
    for delivery in held {
        queue.put_back(delivery).await.unwrap();
    }
    assert_eq!(queue.depth().await.unwrap(), 3);
    assert_eq!(drain(&queue).await, [high, normal, low]);

    // What was pushed meanwhile is the same offer.
    push(&queue, low, 0).await;
    let held = take(&queue).await.unwrap();
    push(&queue, low, 0).await;
    queue.put_back(held).await.unwrap();
    assert_eq!(drain(&queue).await, [low]);
}

/// Jobs that have waited longest are not sent to the back of the line.
pub async fn what_comes_again_comes_before_what_is_new_in_its_band(f: &impl Factory) {
    // Handed back while its delivery is still pending, as by a draining worker.
    let queue = f.fresh().await;
    let ids = ids(6);
    push(&queue, ids[0], 0).await;
    let held = take(&queue).await.unwrap();
    push(&queue, ids[1], 0).await;
    push(&queue, ids[2], 0).await;
    queue.push(&[(ids[0], Priority(0))], Precedence::Returning).await.unwrap();
    queue.ack(&[held]).await.unwrap();
    assert_eq!(queue.depth().await.unwrap(), 3);
    assert_eq!(drain(&queue).await, ids[..3]);

    // Lost with its worker, put back, and due again; each in its band and in the order in which they returned.
    for (id, priority) in ids.iter().zip([0, 0, 0, 0, 1, -1]) {
        push(&queue, *id, priority).await;
    }
    let mut held = queue.pop(3, HANG).await.unwrap();
    assert_eq!(held.iter().map(id_of).collect::<Vec<_>>(), [ids[4], ids[0], ids[1]]);
    queue.push(&[(ids[4], Priority(1))], Precedence::Returning).await.unwrap();
    queue.ack(&held[..1]).await.unwrap();
    queue.push_after(ids[1], Priority(0), Duration::ZERO).await.unwrap();
    queue.ack(&held[2..]).await.unwrap();
    queue.put_back(held.swap_remove(1)).await.unwrap();
    let last = JobId::new();
    queue.push(&[(last, Priority(-1))], Precedence::Returning).await.unwrap();
    let mut got = drain(&queue).await;
    // The queue decides when a delayed one is due, so the order of these two may vary.
    assert_eq!(got.remove(0), ids[4]);
    assert_eq!(got[..2].iter().collect::<HashSet<_>>(), HashSet::from([&ids[0], &ids[1]]));
    assert_eq!(got[2..], [ids[2], ids[3], last, ids[5]]);
}

pub async fn what_comes_again_and_waits_already_moves_up_once(f: &impl Factory) {
    let queue = f.fresh().await;
    let ids = ids(4);
    for id in &ids {
        push(&queue, *id, 0).await;
    }
    queue.push(&[(ids[3], Priority(0)), (ids[1], Priority(0))], Precedence::Returning).await.unwrap();
    for _ in 0..3 {
        queue.push(&[(ids[1], Priority(0))], Precedence::Returning).await.unwrap();
        push(&queue, ids[3], 0).await;
        push(&queue, ids[1], 0).await;
    }
    assert_eq!(queue.depth().await.unwrap(), 4, "none is there twice");
    assert_eq!(drain(&queue).await, [3, 1, 0, 2].map(|i: usize| ids[i]));

    // Also if it waits again because it was pushed while a worker held it.
    push(&queue, ids[0], 0).await;
    let held = take(&queue).await.unwrap();
    push(&queue, ids[1], 0).await;
    push(&queue, ids[0], 0).await;
    queue.put_back(held).await.unwrap();
    assert_eq!(queue.depth().await.unwrap(), 2);
    assert_eq!(drain(&queue).await, ids[..2]);
}

pub async fn an_id_set_aside_is_forgotten(f: &impl Factory) {
    let queue = f.fresh().await;
    let id = JobId::new();
    push(&queue, id, 0).await;
    let held = take(&queue).await.unwrap();
    queue.set_aside(held, "no such job").await.unwrap();
    assert_eq!(drain(&queue).await, []);
    assert_eq!(queue.aside(10).await.unwrap(), [], "only messages are noted");
    push(&queue, id, 0).await;
    assert_eq!(drain(&queue).await, [id]);
}

pub async fn a_delayed_id_comes_when_it_is_due(f: &impl Factory) {
    let queue = f.fresh().await;
    let id = JobId::new();
    let delay = Duration::from_millis(300);
    let start = Instant::now();
    queue.push_after(id, Priority(0), delay).await.unwrap();
    let early = take(&queue).await;
    // On a machine that was paused for this long, it may be due already.
    if start.elapsed() < delay {
        assert!(early.is_none());
        assert_eq!(pop_soon(&queue).await, id);
    }
    // The clocks of the server and this process may differ by the rounding of both.
    assert!(start.elapsed() + Duration::from_millis(5) >= delay, "{:?}", start.elapsed());

    // Offered now and with a delay: two offers, neither of which is lost. And a delay that never ends.
    let (now, never) = (JobId::new(), JobId::new());
    queue.push_after(never, Priority(0), Duration::MAX).await.unwrap();
    queue.push_after(now, Priority(0), Duration::ZERO).await.unwrap();
    assert_eq!(pop_soon(&queue).await, now);
    assert_eq!(queue.depth().await.unwrap(), 0, "what waits for its time is not counted");
    assert_eq!(drain(&queue).await, []);
}

pub async fn delayed_ids_come_in_the_order_of_their_times(f: &impl Factory) {
    let queue = f.fresh().await;
    let ids = ids(4);
    for (id, ms) in ids.iter().zip([400, 100, 300, 200]) {
        queue.push_after(*id, Priority(0), Duration::from_millis(ms)).await.unwrap();
    }
    let mut got = Vec::new();
    for _ in 0..4 {
        got.push(pop_soon(&queue).await);
    }
    assert_eq!(got, [1, 3, 2, 0].map(|i: usize| ids[i]));

    // All due at once: the band decides.
    queue.push_after(ids[0], Priority(-1), Duration::from_millis(1)).await.unwrap();
    queue.push_after(ids[1], Priority(1), Duration::from_millis(2)).await.unwrap();
    tokio::time::sleep(Duration::from_millis(10)).await;
    assert_eq!(drain(&queue).await, [ids[1], ids[0]]);
}

pub async fn a_later_delay_replaces_the_earlier(f: &impl Factory) {
    let earlier = Duration::from_millis(50);
    let (queue, moved) = loop {
        let (queue, moved, began) = (f.fresh().await, JobId::new(), Instant::now());
        queue.push_after(moved, Priority(0), earlier).await.unwrap();
        queue.push_after(moved, Priority(0), Duration::from_secs(3600)).await.unwrap();
        // On a machine that was paused for this long, it may have been due before it was delayed.
        if began.elapsed() < earlier {
            break (queue, moved);
        }
    };
    tokio::time::sleep(earlier).await;
    let other = JobId::new();
    queue.push_after(other, Priority(0), Duration::from_millis(1)).await.unwrap();
    assert_eq!(pop_soon(&queue).await, other);
    assert_eq!(drain(&queue).await, []);
    queue.push_after(moved, Priority(0), Duration::from_millis(1)).await.unwrap();
    assert_eq!(pop_soon(&queue).await, moved);
    assert_eq!(drain(&queue).await, []);
}

pub async fn an_earlier_delay_wakes_who_waits_for_a_later_one(f: &impl Factory) {
    let queue = Arc::new(f.fresh().await);
    queue.push_after(JobId::new(), Priority(0), Duration::from_secs(3600)).await.unwrap();
    let mut waiting = tokio::task::JoinSet::new();
    for _ in 0..3 {
        let queue = queue.clone();
        waiting.spawn(async move { pop_soon(&*queue).await });
    }
    tokio::time::sleep(Duration::from_millis(50)).await;
    let ids: HashSet<_> = ids(3).into_iter().collect();
    for id in &ids {
        queue.push_after(*id, Priority(0), Duration::from_millis(50)).await.unwrap();
    }
    let got = tokio::time::timeout(HANG, waiting.join_all()).await.unwrap();
    assert_eq!(got.into_iter().collect::<HashSet<_>>(), ids);
}

pub async fn depth_counts_what_waits(f: &impl Factory) {
    let queue = f.fresh().await;
    for n in 1..=5 {
        push(&queue, JobId::new(), n - 3).await;
        assert_eq!(queue.depth().await.unwrap(), n as u64);
    }
    let held = take(&queue).await.unwrap();
    assert_eq!(queue.depth().await.unwrap(), 4, "one in a worker's hands does not wait");
    queue.ack(&[held]).await.unwrap();
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
    push(&*queue, id, 0).await;
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
    let ids: HashSet<JobId> = ids(N).into_iter().collect();
    for id in &ids {
        push(&*queue, *id, 0).await;
    }
    let got = tokio::time::timeout(HANG, poppers.join_all()).await.unwrap();
    assert_eq!(got.len(), N);
    assert_eq!(got.into_iter().collect::<HashSet<_>>(), ids);
}

pub async fn a_dropped_pop_loses_no_id(f: &impl Factory) {
    let queue = Arc::new(f.fresh().await);
    for round in 0..200 {
        // One popper is dropped at about the time of the push; the id must reach it or stay in the queue.
        let quitter = tokio::spawn({
            let queue = queue.clone();
            async move { take_soon(&*queue).await }
        });
        if round % 2 == 0 {
            tokio::task::yield_now().await;
        }
        let id = JobId::new();
        push(&*queue, id, 0).await;
        if round % 8 == 1 {
            tokio::time::sleep(Duration::from_micros(round * 10)).await;
        }
        quitter.abort();
        let delivery = match quitter.await {
            Ok(delivery) => delivery,
            Err(_) => take_soon(&*queue).await,
        };
        assert_eq!(id_of(&delivery), id);
        queue.ack(&[delivery]).await.unwrap();
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
            // Ends at the first stop mark, of which there is one per popper.
            loop {
                // Some waits are abandoned at once, as by a worker's `select!`.
                let delivery = match queue.pop(1, Duration::from_micros(50)).await.unwrap().pop() {
                    Some(d) => d,
                    None => take_soon(&*queue).await,
                };
                let id = id_of(&delivery);
                queue.ack(&[delivery]).await.unwrap();
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
                push(&*queue, id, (n % 3) as i16).await;
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
        push(&*queue, JobId(uuid::Uuid::new_v4()), -1).await;
    }
    let got = tokio::time::timeout(HANG, poppers.join_all()).await.unwrap();
    let got: Vec<JobId> = got.into_iter().flatten().collect();
    assert_eq!(got.len(), PRODUCERS * EACH);
    assert_eq!(got.into_iter().collect::<HashSet<_>>(), made);
}

pub async fn thousands_of_ids_in_one_push_all_arrive_in_order(f: &impl Factory) {
    let queue = f.fresh().await;
    let ids = ids(2_345);
    let all: Vec<_> = ids.iter().map(|id| (*id, Priority(0))).collect();
    for _ in 0..2 {
        queue.push(&all, Precedence::New).await.unwrap();
        assert_eq!(queue.depth().await.unwrap(), 2_345);
    }
    let mut got = Vec::new();
    while got.len() < ids.len() {
        let some = queue.pop(usize::MAX, HANG).await.unwrap();
        assert!(!some.is_empty());
        got.extend(some.iter().map(id_of));
        queue.ack(&some).await.unwrap();
    }
    assert!(got == ids);
    assert_eq!(queue.depth().await.unwrap(), 0);
}

pub async fn care_and_closing_lose_nothing(f: &impl Factory) {
    let queue = f.fresh().await;
    let ids = ids(3);
    for id in &ids {
        push(&queue, *id, 0).await;
        queue.upkeep().await.unwrap();
    }
    assert_eq!(pop_soon(&queue).await, ids[0]);
    queue.upkeep().await.unwrap();
    queue.close().await.unwrap();
    assert_eq!(queue.depth().await.unwrap(), 2);
}

pub async fn it_is_used_as_a_trait_object(f: &impl Factory) {
    let queue: Arc<dyn Queue> = Arc::new(f.fresh().await);
    let id = JobId::new();
    queue.push(&[(id, Priority(0))], Precedence::New).await.unwrap();
    let held = queue.pop(1, HANG).await.unwrap();
    assert_eq!(held.iter().map(id_of).collect::<Vec<_>>(), [id]);
    queue.ack(&held).await.unwrap();
    assert_eq!(queue.depth().await.unwrap(), 0);
}
