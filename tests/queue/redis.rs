//! Tests of the queue on Redis only: lost data, dead workers, producers' messages, access.

use std::collections::HashSet;
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use prover_worker::model::{JobId, JobState, Priority};
use prover_worker::queue::{
    Delivery, EndNotice, Message, Offer, Precedence, Queue, QueueError, RedisQueue, RedisSettings,
};
use sha2::{Digest, Sha256};

use crate::conformance::{Factory, drain, id_of, ids, pop_soon, push, take, take_soon};
use crate::server::{Private, Shared, raw, settings, shared_url, soon, try_raw};
use crate::wait::{HANG, until_async, until_async_ok};

/// The script as it is sent, for tests that would otherwise take minutes.
const UPKEEP: &str =
    concat!(include_str!("../../src/queue/redis/common.lua"), include_str!("../../src/queue/redis/upkeep.lua"));

fn message_of(delivery: &Delivery) -> &Message {
    match &delivery.offer {
        Offer::Message(m) => m,
        Offer::Job(id) => panic!("expected a message, got the id {id}"),
    }
}

async fn body_soon(queue: &RedisQueue) -> String {
    let delivery = take_soon(queue).await;
    let body = String::from_utf8(message_of(&delivery).body.to_vec()).unwrap();
    queue.ack(&[delivery]).await.unwrap();
    body
}

async fn push_all(queue: &RedisQueue, ids: &[JobId]) -> Result<(), QueueError> {
    let all: Vec<_> = ids.iter().map(|id| (*id, Priority(0))).collect();
    queue.push(&all, Precedence::New).await
}

/// Drops a call of `pop` as soon as its read has begun. Needs a runtime of one thread, on which the reader runs exactly
/// when this yields.
async fn ask_and_leave(queue: &RedisQueue) {
    tokio::select! {
        biased;
        got = queue.pop(1, HANG) => panic!("nothing can have been read yet, got {got:?}"),
        () = tokio::task::yield_now() => {}
    }
}

// Lost data.

#[tokio::test]
async fn a_wiped_server_is_filled_again_by_the_next_push() {
    let server = Private::start(&[]).await;
    let queue = Arc::new(server.open("prove").await);
    let ids = ids(10);
    push_all(&queue, &ids).await.unwrap();
    let held = queue.pop(3, HANG).await.unwrap();
    assert_eq!(held.len(), 3);

    server.run(&["FLUSHALL"]).await;
    assert_eq!(queue.depth().await.unwrap(), 0);
    assert!(take(&*queue).await.is_none());
    queue.ack(&held[..1]).await.unwrap();
    // The jobs that are still due in the store.
    push_all(&queue, &ids[1..]).await.unwrap();
    assert_eq!(queue.depth().await.unwrap(), 9);
    let got: HashSet<_> = drain(&*queue).await.into_iter().collect();
    assert_eq!(got, ids[1..].iter().copied().collect());

    // A call that waits while the server is wiped is woken nevertheless. Earlier calls wait no more.
    server.until_blocked(0).await;
    let waiting = tokio::spawn({
        let queue = queue.clone();
        async move { pop_soon(&*queue).await }
    });
    server.until_blocked(1).await;
    server.run(&["FLUSHALL"]).await;
    push(&*queue, ids[0], 0).await;
    assert_eq!(tokio::time::timeout(HANG, waiting).await.unwrap().unwrap(), ids[0]);
}

#[tokio::test]
async fn a_deleted_group_loses_nothing_that_is_in_a_stream() {
    let shared = Shared::new();
    let name = shared.name();
    let queue = RedisQueue::open(settings(&shared_url(), &name)).await.unwrap();
    let ids = ids(4);
    push_all(&queue, &ids).await.unwrap();
    let held = queue.pop(2, HANG).await.unwrap();
    queue.ack(&held[..1]).await.unwrap();
    let _destroyed: u64 = raw(&shared_url(), &["XGROUP", "DESTROY", &name, "workers"]).await;
    push_all(&queue, &ids[1..]).await.unwrap();
    assert_eq!(drain(&queue).await, ids[1..]);
    assert_eq!(queue.depth().await.unwrap(), 0);
    shared.clean().await;
}

#[tokio::test]
async fn a_deleted_stream_or_entry_is_noticed_at_the_next_push() {
    let shared = Shared::new();
    let name = shared.name();
    let queue = RedisQueue::open(settings(&shared_url(), &name)).await.unwrap();
    let ids = ids(3);
    push_all(&queue, &ids).await.unwrap();
    let _deleted: u64 = raw(&shared_url(), &["DEL", &name]).await;
    push_all(&queue, &ids).await.unwrap();
    assert_eq!(queue.depth().await.unwrap(), 3);
    let _trimmed: u64 = raw(&shared_url(), &["XTRIM", &name, "MAXLEN", "1"]).await;
    push_all(&queue, &ids).await.unwrap();
    assert_eq!(drain(&queue).await, [ids[2], ids[0], ids[1]]);

    // Ids whose entries are gone, and which are not pushed again, are forgotten eventually.
    push_all(&queue, &ids).await.unwrap();
    let _deleted: u64 = raw(&shared_url(), &["DEL", &name]).await;
    queue.upkeep().await.unwrap();
    assert_eq!(raw::<u64>(&shared_url(), &["HLEN", &format!("{name}:ids")]).await, 0);

    // And so are the bands of ids whose times are gone.
    queue.push_after(ids[0], Priority(1), HANG * 10).await.unwrap();
    let bands = format!("{name}:delayed:priority");
    queue.upkeep().await.unwrap();
    assert_eq!(raw::<u64>(&shared_url(), &["HLEN", &bands]).await, 1);
    let _deleted: u64 = raw(&shared_url(), &["DEL", &format!("{name}:delayed")]).await;
    queue.upkeep().await.unwrap();
    assert_eq!(raw::<u64>(&shared_url(), &["HLEN", &bands]).await, 0);
    shared.clean().await;
}

/// A stream that is recreated within the same millisecond may give an entry the name that the old one gave to another
/// id's.
#[tokio::test]
async fn another_ids_entry_is_not_taken_for_ones_own() {
    let shared = Shared::new();
    let name = shared.name();
    let queue = RedisQueue::open(settings(&shared_url(), &name)).await.unwrap();
    let ids = ids(2);
    push(&queue, ids[0], 0).await;
    let known = format!("{name}:ids");
    let entry: String = raw(&shared_url(), &["HGET", &known, &ids[0].to_string()]).await;
    let _set: u64 = raw(&shared_url(), &["HSET", &known, &ids[1].to_string(), &entry]).await;
    push(&queue, ids[1], 0).await;
    assert_eq!(drain(&queue).await, ids);
    shared.clean().await;
}

#[tokio::test]
async fn a_server_that_is_killed_and_comes_back_empty_is_used_again() {
    let mut server = Private::start(&[]).await;
    let queue = Arc::new(server.open("prove").await);
    let ids = ids(5);
    push_all(&queue, &ids).await.unwrap();
    let waiting = tokio::spawn({
        let queue = queue.clone();
        async move {
            let mut got = HashSet::new();
            while got.len() < 5 {
                let some = soon(|| queue.pop(1, HANG)).await;
                got.extend(some.iter().map(id_of));
            }
            got
        }
    });
    server.kill();
    let error = soon(|| async {
        match queue.ping().await {
            Ok(()) => Err(QueueError::Unavailable("it still answers".into())),
            Err(e) => Ok(e),
        }
    });
    assert!(matches!(error.await, QueueError::Unavailable(_)));
    assert!(push_all(&queue, &ids).await.is_err());
    assert!(queue.depth().await.is_err());
    server.restart().await;
    soon(|| push_all(&queue, &ids)).await;
    let got = tokio::time::timeout(HANG, waiting).await.unwrap().unwrap();
    assert_eq!(got, ids.into_iter().collect());
    soon(|| queue.ping()).await;

    // Nor does a call that does not wait report an old failure forever.
    server.kill();
    assert!(queue.pop(1, Duration::ZERO).await.is_err());
    server.restart().await;
    assert!(soon(|| queue.pop(1, Duration::ZERO)).await.is_empty());
}

#[tokio::test]
async fn a_connection_that_was_closed_in_idleness_is_replaced_at_once() {
    let server = Private::start(&[]).await;
    let queue = server.open("prove").await;
    for _ in 0..5 {
        let _killed: u64 = server.raw(&["CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"]).await;
        push(&queue, JobId::new(), 0).await;
    }
    assert_eq!(queue.depth().await.unwrap(), 5);
}

#[tokio::test]
async fn a_stopped_server_holds_up_no_call_for_ever() {
    let server = Private::start(&[]).await;
    let queue = server.open("prove").await;
    let one = ids(1);
    server.signal("STOP");
    let all = async {
        tokio::join!(
            queue.ping(),
            push_all(&queue, &one),
            queue.pop(1, Duration::ZERO),
            queue.depth(),
            queue.aside(1),
            queue.upkeep(),
        )
    };
    let (ping, push, pop, depth, aside, upkeep) = tokio::time::timeout(HANG, all).await.unwrap();
    assert!(ping.is_err() && push.is_err() && pop.is_err() && depth.is_err() && aside.is_err() && upkeep.is_err());
    server.signal("CONT");
    soon(|| queue.ping()).await;
    let id = JobId::new();
    soon(|| push_all(&queue, std::slice::from_ref(&id))).await;
    let held = soon(|| queue.pop(1, HANG)).await;
    assert_eq!(held.iter().map(id_of).collect::<Vec<_>>(), [id]);
}

#[tokio::test]
async fn a_full_server_still_gives_what_it_has() {
    let server = Private::start(&[]).await;
    let queue = server.open("prove").await;
    let ids = ids(3);
    push_all(&queue, &ids[..2]).await.unwrap();
    server.run(&["LPUSH", "prove:inbox", "{}"]).await;
    queue.push_after(ids[2], Priority(0), Duration::ZERO).await.unwrap();
    server.run(&["CONFIG", "SET", "maxmemory", "1"]).await;
    assert!(push_all(&queue, &[JobId::new()]).await.is_err());
    assert!(queue.push_after(ids[0], Priority(0), Duration::ZERO).await.is_err());
    // What is there moves: out of the delayed ones, out of the inbox, and back.
    assert_eq!(pop_soon(&queue).await, ids[2]);
    assert_eq!([pop_soon(&queue).await, pop_soon(&queue).await], ids[..2]);
    let held = take_soon(&queue).await;
    queue.put_back(held).await.unwrap();
    assert_eq!(body_soon(&queue).await, "{}");
    assert_eq!(queue.depth().await.unwrap(), 0);
}

/// Only workers can free the memory of a server that producers filled, also when none was there for a while.
#[tokio::test]
async fn a_full_inbox_is_emptied_by_workers_that_come_back() {
    let server = Private::start(&[]).await;
    let (former, queue) = (server.open("prove").await, server.open("prove").await);
    for queue in [&former, &queue] {
        queue.belong_to("one");
    }
    assert!(take(&former).await.is_none());
    assert_eq!(server.raw::<u64>(&["DEL", "prove:database"]).await, 1, "as when it expires");
    server.run(&["LPUSH", "prove:inbox", "first"]).await;
    server.run(&["LPUSH", "prove:inbox", "second"]).await;
    server.run(&["CONFIG", "SET", "maxmemory", "1"]).await;
    for body in ["first", "second"] {
        assert_eq!(body_soon(&queue).await, body);
    }
    assert_eq!(server.raw::<String>(&["GET", "prove:database"]).await, "one");
    // Nor is the queue nobody's where its workers are too busy to read.
    server.run(&["DEL", "prove:database"]).await;
    queue.upkeep().await.unwrap();
    assert_eq!(server.raw::<String>(&["GET", "prove:database"]).await, "one");
    former.close().await.unwrap();
    queue.close().await.unwrap();
    assert!(!server.raw::<bool>(&["EXISTS", "prove:database"]).await);
}

#[tokio::test]
async fn a_server_that_was_full_before_its_first_worker_is_read() {
    let server = Private::start(&[]).await;
    for (stream, body) in [("prove", "second"), ("prove:high", "first")] {
        server.run(&["XADD", stream, "*", "job", body]).await;
    }
    server.run(&["CONFIG", "SET", "maxmemory", "1"]).await;
    let queue = server.open("prove").await;
    for body in ["first", "second"] {
        assert_eq!(body_soon(&queue).await, body);
    }
    assert_eq!(server.raw::<u64>(&["XLEN", "prove"]).await, 0);
}

/// The task that reads ends with its runtime here, as it would by a fault of its own.
#[tokio::test]
async fn a_queue_that_nobody_reads_says_so() {
    let server = Private::start(&[]).await;
    let elsewhere = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let (url, handle) = (server.url(), elsewhere.handle().clone());
    let opened = handle.spawn(async move { RedisQueue::open(settings(&url, "prove")).await });
    let queue = Arc::new(opened.await.unwrap().unwrap());
    queue.ping().await.unwrap();
    let waiting = tokio::spawn({
        let queue = queue.clone();
        async move { queue.pop(1, HANG * 10).await }
    });
    tokio::time::sleep(Duration::from_millis(50)).await;
    elsewhere.shutdown_background();
    let waited = tokio::time::timeout(HANG, waiting).await.unwrap().unwrap().map(|_| ());
    for refused in [waited, queue.pop(1, HANG * 10).await.map(|_| ()), queue.ping().await] {
        let Err(QueueError::Unavailable(why)) = refused else { panic!("expected an error, got {refused:?}") };
        assert!(why.contains("the task that reads the queue has ended"), "{why}");
    }
    // The rest of the queue works.
    push(&*queue, JobId::new(), 0).await;
    assert_eq!(queue.depth().await.unwrap(), 1);
    queue.close().await.unwrap();
}

// Other workers.

#[tokio::test]
async fn what_a_dead_worker_held_goes_to_another() {
    let shared = Shared::new();
    let name = shared.name();
    let reclaim_after = Duration::from_millis(500);
    let dead = RedisQueue::open(RedisSettings { reclaim_after, ..settings(&shared_url(), &name) }).await.unwrap();
    let other = RedisQueue::open(RedisSettings { reclaim_after, ..settings(&shared_url(), &name) }).await.unwrap();
    let ids = ids(3);
    for (id, priority) in ids.iter().zip([1, 0, -1]) {
        push(&dead, *id, priority).await;
    }
    let _entry: String = raw(&shared_url(), &["XADD", &name, "*", "job", "{}"]).await;
    let start = Instant::now();
    let held = dead.pop(9, HANG).await.unwrap();
    assert_eq!(held.len(), 4);
    let source = held.iter().find_map(|d| match &d.offer {
        Offer::Message(m) => Some(m.source.clone()),
        Offer::Job(_) => None,
    });
    drop(dead);

    let mut got = Vec::new();
    while got.len() < 4 {
        let some = other.pop(9, HANG).await.unwrap();
        assert!(start.elapsed() >= reclaim_after);
        other.ack(&some).await.unwrap();
        got.extend(some);
    }
    let offers: HashSet<String> = got
        .iter()
        .map(|d| match &d.offer {
            Offer::Job(id) => id.to_string(),
            Offer::Message(m) => m.source.clone(),
        })
        .collect();
    assert_eq!(offers, ids.iter().map(JobId::to_string).chain(source).collect());
    // What the first would report now comes too late and changes nothing.
    assert!(drain(&other).await.is_empty());
    other.ack(&held).await.unwrap();
    assert_eq!(other.depth().await.unwrap(), 0);
    assert_eq!(raw::<u64>(&shared_url(), &["XLEN", &name]).await, 0);
    shared.clean().await;
}

#[tokio::test]
async fn an_id_pushed_every_second_for_a_dead_worker_does_not_pile_up() {
    let shared = Shared::new();
    let name = shared.name();
    let dead = RedisQueue::open(settings(&shared_url(), &name)).await.unwrap();
    let id = JobId::new();
    push(&dead, id, 0).await;
    let _lost = take(&dead).await.unwrap();
    for _ in 0..20 {
        push(&dead, id, 0).await;
    }
    assert_eq!(raw::<u64>(&shared_url(), &["XLEN", &name]).await, 2);
    // The old entry ends when it is reclaimed, because the new one serves for both.
    let reclaim_after = Duration::from_millis(1);
    let other = RedisQueue::open(RedisSettings { reclaim_after, ..settings(&shared_url(), &name) }).await.unwrap();
    tokio::time::sleep(Duration::from_millis(20)).await;
    let held = other.pop(9, HANG).await.unwrap();
    assert_eq!(held.iter().map(id_of).collect::<Vec<_>>(), [id]);
    assert_eq!(raw::<u64>(&shared_url(), &["XLEN", &name]).await, 1);
    other.ack(&held).await.unwrap();
    assert_eq!(raw::<u64>(&shared_url(), &["XLEN", &name]).await, 0);
    assert_eq!(raw::<u64>(&shared_url(), &["HLEN", &format!("{name}:ids")]).await, 0);
    shared.clean().await;
}

#[tokio::test]
async fn workers_share_and_an_acknowledgement_ends_its_own_delivery_only() {
    let shared = Shared::new();
    let name = shared.name();
    let a = RedisQueue::open(settings(&shared_url(), &name)).await.unwrap();
    let b = RedisQueue::open(settings(&shared_url(), &name)).await.unwrap();
    let id = JobId::new();
    push(&a, id, 0).await;
    let first = take(&a).await.unwrap();
    assert!(take(&b).await.is_none());
    push(&b, id, 0).await;
    let second = take(&b).await.unwrap();
    push(&b, id, 0).await;
    a.ack(&[first]).await.unwrap();
    assert_eq!(b.depth().await.unwrap(), 1);
    b.ack(&[second]).await.unwrap();
    assert_eq!(b.depth().await.unwrap(), 1);
    assert_eq!(pop_soon(&a).await, id);
    assert_eq!(b.depth().await.unwrap(), 0);
    shared.clean().await;
}

#[tokio::test]
async fn what_was_read_for_one_who_left_is_put_back_for_others() {
    let shared = Shared::new();
    let name = shared.name();
    let a = RedisQueue::open(settings(&shared_url(), &name)).await.unwrap();
    let b = RedisQueue::open(settings(&shared_url(), &name)).await.unwrap();
    let again = format!("{name}:again");
    let consumers =
        async || -> Vec<redis::Value> { raw(&shared_url(), &["XINFO", "CONSUMERS", &again, "workers"]).await };
    let first = async || {
        let range: redis::streams::StreamRangeReply = raw(&shared_url(), &["XRANGE", &name, "-", "+"]).await;
        range.ids.first().map(|e| e.id.clone())
    };
    let entry: String = raw(&shared_url(), &["XADD", &name, "*", "job", "{}"]).await;
    ask_and_leave(&a).await;
    until_async("the id to be in an entry of its own", async || first().await.as_ref() != Some(&entry)).await;
    let held = take_soon(&b).await;
    assert_eq!(message_of(&held).source, format!("{name}/{entry}"));
    b.ack(&[held]).await.unwrap();

    // A consumer that closes returns its deliveries at once, and is forgotten.
    let id = JobId::new();
    push(&a, id, 0).await;
    let entry = first().await;
    ask_and_leave(&a).await;
    a.close().await.unwrap();
    assert_ne!(first().await, entry);
    assert_eq!(b.depth().await.unwrap(), 1);
    let held = take(&b).await.unwrap();
    assert_eq!(id_of(&held), id);
    assert!(a.pop(1, Duration::from_millis(1)).await.unwrap().is_empty(), "closed is closed");
    assert_eq!(consumers().await.len(), 1);
    // A consumer that still holds something is not forgotten: what it holds would be lost with it.
    b.close().await.unwrap();
    assert_eq!(consumers().await.len(), 1);
    shared.clean().await;
}

#[tokio::test]
async fn dead_consumers_are_forgotten_and_live_ones_are_not() {
    let server = Private::start(&[]).await;
    let (dead, holder, live) = (server.open("prove").await, server.open("prove").await, server.open("prove").await);
    let id = JobId::new();
    push(&holder, id, 0).await;
    let _held = take(&holder).await.unwrap();
    for queue in [&dead, &live] {
        let other = JobId::new();
        push(queue, other, 0).await;
        assert_eq!(pop_soon(queue).await, other);
    }
    let consumers =
        async || -> usize { server.raw::<Vec<redis::Value>>(&["XINFO", "CONSUMERS", "prove", "workers"]).await.len() };
    assert_eq!(consumers().await, 3);
    live.upkeep().await.unwrap();
    assert_eq!(consumers().await, 3, "none was silent for minutes");

    drop(dead);
    tokio::time::sleep(Duration::from_millis(20)).await;
    // The live one's script itself, with silence measured in milliseconds.
    let bands = ["prove:high:again", "prove:high", "prove:again", "prove", "prove:low:again", "prove:low"];
    let keys = [bands, ["prove:ids", "p:d", "p:p", "p:i", "p:a", "p:w"]].concat();
    let keys = [&keys[..], &["p:database"]].concat();
    let name: Vec<redis::Value> = server.raw(&["XPENDING", "prove", "workers", "-", "+", "10"]).await;
    assert_eq!(name.len(), 1);
    let upkeep = async |me: &str| {
        let mut parts = vec!["EVAL", UPKEEP, "13"];
        parts.extend(&keys);
        parts.extend([me, "10", "0", "", "0"]);
        server.run(&parts).await;
    };
    upkeep("somebody else").await;
    assert_eq!(consumers().await, 1, "who holds something is kept, however silent");
    assert_eq!(server.raw::<Vec<redis::Value>>(&["XPENDING", "prove", "workers", "-", "+", "10"]).await.len(), 1);
    // A consumer forgotten too early returns with its next read.
    let other = JobId::new();
    push(&live, other, 0).await;
    assert_eq!(pop_soon(&live).await, other);
    assert_eq!(consumers().await, 2);
}

/// Workers of another database are refused while a queue has workers.
#[tokio::test]
async fn a_queue_has_the_workers_of_one_database() {
    let shared = Shared::new();
    let name = shared.name();
    let of = async |database: &str| {
        let queue = RedisQueue::open(settings(&shared_url(), &name)).await.unwrap();
        queue.belong_to(database);
        queue
    };
    let (first, second, foreign) = (of("one").await, of("one").await, of("another").await);
    // A submitter that comes before any worker does not claim the queue.
    let early = JobId::new();
    push(&foreign, early, 0).await;
    foreign.ping().await.unwrap();
    assert_eq!(pop_soon(&first).await, early);

    // It is refused, and nothing that it does has an effect.
    let (id, later) = (JobId::new(), JobId::new());
    let refused = [
        foreign.ping().await,
        foreign.upkeep().await,
        foreign.push(&[(id, Priority(0))], Precedence::New).await,
        foreign.push(&[(id, Priority(0))], Precedence::Returning).await,
        foreign.push_after(id, Priority(0), Duration::ZERO).await,
        foreign.pop(1, Duration::ZERO).await.map(|_| ()),
    ];
    for refused in refused {
        let Err(QueueError::Unavailable(why)) = refused else { panic!("expected a refusal, got {refused:?}") };
        assert!(why.contains("theirs: one; this one: another") && why.contains("QUEUE_NAME"), "{why}");
    }
    assert_eq!(first.depth().await.unwrap(), 0);
    let _entry: String = raw(&shared_url(), &["XADD", &name, "*", "job", "{}"]).await;
    assert!(foreign.pop(1, Duration::ZERO).await.is_err());
    assert_eq!(body_soon(&second).await, "{}");
    // A worker that does not name its database is let in, as before this check existed.
    let silent = RedisQueue::open(settings(&shared_url(), &name)).await.unwrap();
    push(&silent, later, 0).await;
    assert_eq!(pop_soon(&silent).await, later);

    // One of the two leaves, then the other.
    first.close().await.unwrap();
    assert!(foreign.ping().await.is_err());
    silent.close().await.unwrap();
    second.close().await.unwrap();
    foreign.ping().await.unwrap();
    push(&foreign, id, 0).await;
    assert_eq!(pop_soon(&foreign).await, id);
    shared.clean().await;
}

#[tokio::test]
async fn a_queue_whose_workers_fell_silent_is_free_for_another_database() {
    let shared = Shared::new();
    let name = shared.name();
    let (dead, next) = (
        RedisQueue::open(settings(&shared_url(), &name)).await.unwrap(),
        RedisQueue::open(settings(&shared_url(), &name)).await.unwrap(),
    );
    dead.belong_to("one");
    next.belong_to("another");
    let id = JobId::new();
    push(&dead, id, 0).await;
    let held = dead.pop(1, HANG).await.unwrap();
    let key = format!("{name}:database");
    let left = async || -> i64 { raw(&shared_url(), &["PTTL", &key]).await };
    assert!((1..=30_000).contains(&left().await));
    // A busy worker does not read, but its upkeep renews the key.
    let _set: i64 = raw(&shared_url(), &["PEXPIRE", &key, "5000"]).await;
    dead.upkeep().await.unwrap();
    assert!((5001..=30_000).contains(&left().await));
    assert!(next.ping().await.is_err());

    let _set: i64 = raw(&shared_url(), &["PEXPIRE", &key, "1"]).await;
    soon(|| next.ping()).await;
    let other = JobId::new();
    push(&next, other, 0).await;
    assert_eq!(pop_soon(&next).await, other);
    // The first may still end what it holds.
    assert!(dead.ping().await.is_err());
    dead.ack(&held).await.unwrap();
    assert_eq!(raw::<Vec<redis::Value>>(&shared_url(), &["XPENDING", &name, "workers", "-", "+", "9"]).await.len(), 0);
    shared.clean().await;
}

#[tokio::test]
async fn queues_of_two_names_do_not_mix() {
    let shared = Shared::new();
    let (a, b) = (shared.fresh().await, shared.fresh().await);
    let (x, y) = (JobId::new(), JobId::new());
    push(&a, x, 0).await;
    b.push_after(y, Priority(0), Duration::ZERO).await.unwrap();
    assert_eq!(drain(&a).await, [x]);
    assert_eq!(drain(&b).await, [y]);
    shared.clean().await;
}

// Producers.

#[tokio::test]
async fn messages_come_by_xadd_and_lpush_first_in_first_out() {
    let server = Private::start(&[]).await;
    let queue = Arc::new(server.open("prove").await);
    let port = server.port.to_string();
    let cli = |parts: &[&str]| {
        let out = Command::new("redis-cli").args(["-p", &port]).args(parts).output().expect("redis-cli is needed");
        assert!(out.status.success());
        String::from_utf8(out.stdout).unwrap().trim().to_owned()
    };
    let entry = cli(&["XADD", "prove", "*", "job", r#"{"circuit":"c","input":{}}"#, "note", "of no interest"]);
    for n in 0..3 {
        cli(&["LPUSH", "prove:inbox", &n.to_string()]);
    }
    assert_eq!(queue.depth().await.unwrap(), 4);
    let held = queue.pop(1, HANG).await.unwrap();
    let message = message_of(&held[0]);
    assert_eq!(message.body.as_slice(), br#"{"circuit":"c","input":{}}"#);
    assert_eq!(message.size, 26);
    assert_eq!(message.source, format!("prove/{entry}"));
    queue.ack(&held).await.unwrap();
    for n in 0..3 {
        assert_eq!(body_soon(&queue).await, n.to_string());
    }
    assert_eq!(queue.depth().await.unwrap(), 0);
    assert_eq!(server.raw::<u64>(&["XLEN", "prove"]).await, 0);

    // Other bands, bytes that are not text, nothing at all.
    server.run(&["XADD", "prove:low", "*", "job", ""]).await;
    let binary: &[u8] = b"\xff\x00\r\n";
    let mut connection = redis::Client::open(server.url()).unwrap().get_multiplexed_async_connection().await.unwrap();
    let _entry: String = redis::cmd("XADD")
        .arg("prove:high")
        .arg("*")
        .arg("job")
        .arg(binary)
        .query_async(&mut connection)
        .await
        .unwrap();
    let held = queue.pop(2, HANG).await.unwrap();
    assert_eq!(message_of(&held[0]).body.as_slice(), binary);
    assert_eq!(message_of(&held[1]).size, 0);
    queue.ack(&held).await.unwrap();

    // A waiting call sees them, too.
    for command in [["XADD", "prove", "*", "job", "late"].as_slice(), &["LPUSH", "prove:inbox", "late"]] {
        server.until_blocked(0).await;
        let waiting = tokio::spawn({
            let queue = queue.clone();
            async move { body_soon(&queue).await }
        });
        server.until_blocked(1).await;
        server.run(command).await;
        assert_eq!(tokio::time::timeout(HANG, waiting).await.unwrap().unwrap(), "late");
    }
}

#[tokio::test]
async fn a_message_that_is_put_back_keeps_its_source() {
    let server = Private::start(&[]).await;
    let queue = server.open("prove").await;
    server.run(&["XADD", "prove", "*", "job", "one"]).await;
    let held = take_soon(&queue).await;
    let source = message_of(&held).source.clone();
    for _ in 0..3 {
        let held = take_soon_again(&queue, &server, &source).await;
        assert_eq!(message_of(&held).body.as_slice(), b"one");
        queue.put_back(held).await.unwrap();
    }
    queue.put_back(held).await.unwrap();

    // If its entry is gone, it is written again from the copy here.
    let held = queue.pop(9, HANG).await.unwrap();
    server.run(&["FLUSHALL"]).await;
    for delivery in held {
        queue.put_back(delivery).await.unwrap();
    }
    let held = take_soon(&queue).await;
    assert_eq!(message_of(&held).source, source);
    assert_eq!(message_of(&held).body.as_slice(), b"one");
}

#[tokio::test]
async fn a_message_that_is_put_back_keeps_its_place() {
    let server = Private::start(&[]).await;
    let queue = server.open("prove").await;
    for body in ["one", "two"] {
        server.run(&["XADD", "prove", "*", "job", body]).await;
    }
    let held = take_soon(&queue).await;
    queue.put_back(held).await.unwrap();
    assert_eq!(queue.depth().await.unwrap(), 2);
    for body in ["one", "two"] {
        assert_eq!(body_soon(&queue).await, body);
    }
}

/// What an older worker does to an id that waits among those pushed again: it forgets it, or gives it another entry.
#[tokio::test]
async fn an_older_worker_beside_newer_ones_swallows_nothing() {
    let shared = Shared::new();
    let name = shared.name();
    let queue = RedisQueue::open(settings(&shared_url(), &name)).await.unwrap();
    let (ids, known) = (ids(2), format!("{name}:ids"));
    let again: Vec<_> = ids.iter().map(|id| (*id, Priority(0))).collect();
    queue.push(&again, Precedence::Returning).await.unwrap();
    let entry: String = raw(&shared_url(), &["XADD", &name, "*", "id", &ids[0].to_string()]).await;
    let _set: u64 = raw(&shared_url(), &["HSET", &known, &ids[0].to_string(), &format!("n {entry}")]).await;
    let _forgotten: u64 = raw(&shared_url(), &["HDEL", &known, &ids[1].to_string()]).await;
    // Each is there; the worker that takes the second entry of an id is refused by the store.
    assert_eq!(drain(&queue).await, [ids[0], ids[1], ids[0]]);
    assert_eq!(queue.depth().await.unwrap(), 0);
    assert_eq!(raw::<u64>(&shared_url(), &["HLEN", &known]).await, 0);
    shared.clean().await;
}

/// Two messages with one name would be one job.
#[tokio::test]
async fn a_field_of_a_producers_own_names_no_message() {
    let server = Private::start(&[]).await;
    let queue = server.open("prove").await;
    let mut sources = HashSet::new();
    for own in ["billing", "billing", "other/1-1", "prove/1", "prove/x-1", ""] {
        let entry: String = server.raw(&["XADD", "prove", "*", "job", "{}", "source", own]).await;
        let held = take_soon(&queue).await;
        assert_eq!(message_of(&held).source, format!("prove/{entry}"), "{own:?}");
        sources.insert(message_of(&held).source.clone());
    }
    assert_eq!(sources.len(), 6);
}

/// Takes what is pending once more, like the successor of a dead worker.
async fn take_soon_again(queue: &RedisQueue, server: &Private, source: &str) -> Delivery {
    let waits = queue.depth().await.unwrap();
    if waits == 0 {
        server.run(&["XGROUP", "SETID", "prove", "workers", "0"]).await;
    }
    let held = take_soon(queue).await;
    assert_eq!(message_of(&held).source, source);
    held
}

#[tokio::test]
async fn a_message_that_cannot_be_used_is_taken_out_and_noted() {
    let shared = Shared::new();
    let name = shared.name();
    let queue = RedisQueue::open(settings(&shared_url(), &name)).await.unwrap();
    let before: Vec<i64> = raw(&shared_url(), &["TIME"]).await;
    let entry: String = raw(&shared_url(), &["XADD", &name, "*", "job", "not json"]).await;
    let held = take_soon(&queue).await;
    queue.set_aside(held, "expected a JSON object, got no JSON").await.unwrap();
    let aside = queue.aside(10).await.unwrap();
    let [noted] = aside.as_slice() else { panic!("expected one, got {aside:?}") };
    assert_eq!(noted.source, format!("{name}/{entry}"));
    assert_eq!(noted.why, "expected a JSON object, got no JSON");
    assert_eq!(noted.size, 8);
    assert_eq!(noted.sha256, hex::encode(Sha256::digest(b"not json")));
    assert!(noted.at >= before[0] * 1000);
    assert!(take(&queue).await.is_none());
    assert_eq!(raw::<u64>(&shared_url(), &["XLEN", &name]).await, 0);
    shared.clean().await;
}

#[tokio::test]
async fn ends_of_jobs_are_told_to_whoever_listens() {
    let shared = Shared::new();
    let name = shared.name();
    let queue = RedisQueue::open(settings(&shared_url(), &name)).await.unwrap();
    let [done, failed, foreign] = [JobId::new(), JobId::new(), JobId::new()];
    let (queue_name, elsewhere) = (name.clone(), shared.name());
    let told = [
        EndNotice { id: done, queue: queue_name.clone(), key: Some("order 7".into()), state: JobState::Done },
        EndNotice { id: failed, queue: queue_name, key: None, state: JobState::Failed },
        // The end of a job of another queue is announced where that queue's listeners are.
        EndNotice { id: foreign, queue: elsewhere.clone(), key: None, state: JobState::Done },
    ];
    queue.announce_ended(&told).await.unwrap();
    let other: Vec<(String, Vec<String>)> =
        raw(&shared_url(), &["XRANGE", &format!("{elsewhere}:ended"), "-", "+"]).await;
    assert_eq!(other[0].1, ["id", &foreign.to_string(), "state", "done"]);
    let got: Vec<(String, Vec<String>)> = raw(&shared_url(), &["XRANGE", &format!("{name}:ended"), "-", "+"]).await;
    let got: Vec<_> = got.into_iter().map(|(_, fields)| fields).collect();
    let (done, failed) = (done.to_string(), failed.to_string());
    assert_eq!(got[0], ["id", &done, "state", "done", "key", "order 7"]);
    assert_eq!(got[1], ["id", &failed, "state", "failed"]);
    assert_eq!(got.len(), 2);
    // They are not offers, and are not kept forever.
    assert!(take(&queue).await.is_none());
    for _ in 0..30 {
        queue.announce_ended(&vec![told[1].clone(); 400]).await.unwrap();
    }
    let kept = raw::<u64>(&shared_url(), &["XLEN", &format!("{name}:ended")]).await;
    assert!((10_000..10_500).contains(&kept), "{kept}");
    shared.clean().await;
}

#[tokio::test]
async fn a_full_server_is_freed_of_messages_that_cannot_be_used() {
    let server = Private::start(&[]).await;
    let queue = server.open("prove").await;
    server.run(&["XADD", "prove", "*", "job", "not json"]).await;
    server.run(&["XADD", "prove", "*", "payload", "of another shape"]).await;
    server.run(&["CONFIG", "SET", "maxmemory", "1"]).await;
    let held = take_soon(&queue).await;
    // Delivered twice, it is noted once.
    let Message { body, size, source } = message_of(&held);
    let offer = Offer::Message(Message { body: body.clone(), size: *size, source: source.clone() });
    let again = Delivery { offer, receipt: held.receipt.clone() };
    queue.set_aside(held, "expected JSON").await.unwrap();
    queue.set_aside(again, "expected JSON").await.unwrap();
    assert!(take(&queue).await.is_none());
    until_async("two messages to be noted", async || queue.aside(10).await.unwrap().len() == 2).await;
    assert_eq!(queue.aside(10).await.unwrap().iter().filter(|noted| noted.why == "expected JSON").count(), 1);
    assert_eq!(server.raw::<u64>(&["XLEN", "prove"]).await, 0);
}

#[tokio::test]
async fn a_message_that_cannot_be_noted_stays() {
    let server = Private::start(&[]).await;
    let queue = server.open("prove").await;
    server.run(&["SET", "prove:aside", "somebody else's"]).await;
    server.run(&["XADD", "prove", "*", "job", "not json"]).await;
    let held = take_soon(&queue).await;
    assert!(queue.set_aside(held, "expected JSON").await.is_err());
    assert_eq!(server.raw::<u64>(&["XLEN", "prove"]).await, 1);
}

#[tokio::test]
async fn the_last_thousand_set_aside_are_remembered() {
    let server = Private::start(&[]).await;
    let queue = server.open("prove").await;
    let many = "for n = 1, 1050 do redis.call('LPUSH', KEYS[1], 'message ' .. n) end";
    server.run(&["EVAL", many, "1", "prove:inbox"]).await;
    let mut n = 0;
    while n < 1050 {
        for held in queue.pop(100, HANG).await.unwrap() {
            n += 1;
            let why = format!("reason {n}");
            assert_eq!(message_of(&held).body.as_slice(), format!("message {n}").as_bytes());
            queue.set_aside(held, &why).await.unwrap();
        }
    }
    let aside = queue.aside(usize::MAX).await.unwrap();
    assert_eq!(aside.len(), 1000);
    assert_eq!(aside[0].why, "reason 1050");
    assert_eq!(aside[999].why, "reason 51");
    assert_eq!(queue.aside(3).await.unwrap(), aside[..3]);
    assert_eq!(queue.aside(0).await.unwrap(), []);
}

#[tokio::test]
async fn entries_of_other_shapes_are_set_aside_and_hold_up_nothing() {
    let server = Private::start(&[]).await;
    let queue = server.open("prove").await;
    server.run(&["XADD", "prove", "*", "payload", "secret", "other", "thing"]).await;
    server.run(&["XADD", "prove", "*", "id", "not-a-uuid"]).await;
    server.run(&["XADD", "prove", "*", "id", "-----------------------------------f"]).await;
    server.run(&["XADD", "prove", "*", "id", "a-b-c-d-0123456789abcdef0123456789ab"]).await;
    server.run(&["XADD", "prove:high", "*", "", ""]).await;
    let known = JobId::new();
    server.run(&["XADD", "prove", "*", "id", &known.to_string()]).await;
    assert_eq!(pop_soon(&queue).await, known, "an id is an offer, whoever wrote it");
    until_async("five messages to be set aside", async || queue.aside(10).await.unwrap().len() == 5).await;
    for noted in queue.aside(10).await.unwrap() {
        assert!(noted.why.contains("`job`") && noted.why.contains("`id`"), "{}", noted.why);
        assert!(!noted.why.contains("secret") && !noted.why.contains("payload"));
        assert!(!noted.source.is_empty() && noted.sha256.len() == 64);
    }
    assert_eq!(queue.depth().await.unwrap(), 0);
    for stream in ["prove", "prove:high"] {
        assert_eq!(server.raw::<u64>(&["XLEN", stream]).await, 0, "{stream}");
    }
}

fn peak_memory() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|l| l.starts_with("VmHWM")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() << 10
}

#[tokio::test]
async fn a_message_of_100_mb_is_cut_and_never_sent_whole() {
    const SIZE: u64 = 100_000_000;
    let server = Private::start(&[]).await;
    let queue = server.open("prove").await;
    let big = "redis.call('SETRANGE', 'big', 99999999, 'x') local s = redis.call('GET', 'big') \
               if ARGV[1] == 'l' then redis.call('LPUSH', KEYS[2], s) \
               else redis.call('XADD', KEYS[1], '*', 'job', s) end";
    let odd = "redis.call('XADD', KEYS[1], '*', 'blob', redis.call('GET', 'big'))";
    let before = peak_memory();
    for how in ["x", "l"] {
        // With a call that waits already: a blocking read would return the whole message.
        let (held, ()) = tokio::join!(take_from_busy(&queue), async {
            tokio::time::sleep(Duration::from_millis(50)).await;
            server.run(&["EVAL", big, "2", "prove", "prove:inbox", how]).await;
        });
        assert_eq!(message_of(&held).size, SIZE);
        assert_eq!(message_of(&held).body.as_slice(), [0; 64 << 10]);
        // Put back, it is as large as it was.
        queue.put_back(held).await.unwrap();
        let held = take_from_busy(&queue).await;
        assert_eq!(message_of(&held).size, SIZE);
        queue.set_aside(held, "expected 1 MiB at most").await.unwrap();
        assert_eq!(queue.aside(1).await.unwrap()[0].size, SIZE);
    }
    server.run(&["EVAL", odd, "1", "prove"]).await;
    assert!(take(&queue).await.is_none());
    until_async("the message to be set aside", async || queue.aside(9).await.unwrap().len() == 3).await;
    assert_eq!(queue.aside(1).await.unwrap()[0].size, SIZE + 5);
    let grown = peak_memory() - before;
    assert!(grown < SIZE / 2, "expected less than half of the message, got {grown} bytes");
    assert_eq!(server.raw::<u64>(&["XLEN", "prove"]).await, 0);
}

/// Takes one delivery as soon as there is one, from a server that a hundred megabytes may keep busy for longer than a
/// call waits.
async fn take_from_busy(queue: &RedisQueue) -> Delivery {
    let begun = Instant::now();
    loop {
        match queue.pop(1, HANG).await {
            Ok(mut all) => return all.pop().expect("a delivery before the time-out"),
            Err(QueueError::Unavailable(_)) if begun.elapsed() < HANG => {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            Err(e) => panic!("{e}"),
        }
    }
}

#[tokio::test]
async fn many_large_messages_come_a_few_at_a_time() {
    let server = Private::start(&[]).await;
    let url = server.url();
    let queue = RedisQueue::open(RedisSettings { max_message: 4 << 20, ..settings(&url, "prove") }).await.unwrap();
    let many = "redis.call('SETRANGE', 'big', 4194303, 'x') local s = redis.call('GET', 'big') \
                for n = 1, 20 do redis.call('XADD', KEYS[1], '*', 'job', s) end";
    server.run(&["EVAL", many, "1", "prove"]).await;
    let mut n = 0;
    while n < 20 {
        let held = queue.pop(100, HANG).await.unwrap();
        assert!(!held.is_empty() && held.len() <= 2, "{}", held.len());
        assert!(held.iter().all(|d| message_of(d).body.len() == 4 << 20));
        n += held.len();
        queue.ack(&held).await.unwrap();
    }
    assert!(take(&queue).await.is_none());
}

// Access.

#[tokio::test]
async fn an_acl_user_needs_no_more_than_the_queues_own_keys() {
    let server = Private::start(&[]).await;
    let password = "p@ss:/?#[w]%ö+ &=";
    let encoded: String =
        url::form_urlencoded::byte_serialize(password.as_bytes()).collect::<String>().replace('+', "%20");
    let rule = format!(">{password}");
    let url = format!("redis://worker:{encoded}@127.0.0.1:{}/0", server.port);
    // As in docs/producers.md, and without permission to ask for the version and the settings.
    for more in [["+time", "+info", "+config|get"].as_slice(), &["+time"]] {
        let mut acl = vec!["ACL", "SETUSER", "worker", "reset", "on", &rule, "~prove", "~prove:*"];
        acl.extend(["+@read", "+@write", "+@stream", "+@scripting", "+@connection", "-@dangerous"]);
        acl.extend(more);
        server.run(&acl).await;
        let queue = RedisQueue::open(settings(&url, "prove")).await.unwrap();
        let id = JobId::new();
        push(&queue, id, 0).await;
        queue.push_after(id, Priority(0), Duration::ZERO).await.unwrap();
        assert_eq!(pop_soon(&queue).await, id);
        queue.upkeep().await.unwrap();
        queue.depth().await.unwrap();
        queue.close().await.unwrap();
    }

    // They have no access to another queue; the error says so, and shows no password.
    let other = RedisQueue::open(settings(&url, "other")).await.unwrap();
    let error = push_all(&other, &ids(1)).await.unwrap_err().to_string();
    assert!(error.to_lowercase().contains("perm") || error.contains("can't access"), "{error}");
    for text in [error, format!("{:?}", settings(&url, "prove")), format!("{other:?}")] {
        assert!(!text.contains(password) && !text.contains(&encoded) && !text.contains("p@ss"), "{text}");
        assert!(text.contains("127.0.0.1"), "{text}");
    }
}

/// Collects the log of one test.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl std::io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Log {
    fn take(&self) -> String {
        String::from_utf8(std::mem::take(&mut *self.0.lock().unwrap())).unwrap()
    }
}

#[tokio::test]
async fn a_server_that_drops_keys_when_full_is_warned_of() {
    let log = Log::default();
    let writer = log.clone();
    let subscriber = tracing_subscriber::fmt().with_ansi(false).with_writer(move || writer.clone()).finish();
    let _guard = tracing::subscriber::set_default(subscriber);
    let server = Private::start(&["--maxmemory", "100mb", "--maxmemory-policy", "allkeys-lru"]).await;
    let queue = server.open("prove").await;
    push(&queue, JobId::new(), 0).await;
    let said = log.take();
    assert!(said.contains("WARN") && said.contains("allkeys-lru"), "{said}");

    // If the settings may not be read, INFO has them.
    server.run(&["ACL", "SETUSER", "default", "-config"]).await;
    server.open("prove").await;
    let said = log.take();
    assert!(said.contains("allkeys-lru"), "{said}");

    let server = Private::start(&["--maxmemory", "0", "--maxmemory-policy", "allkeys-lru"]).await;
    server.open("prove").await;
    assert_eq!(log.take(), "");
}

#[tokio::test]
async fn a_wrong_password_is_told_and_not_shown() {
    let server = Private::start(&["--requirepass", "right"]).await;
    for (url, name) in [
        (format!("redis://:wr%40ng-secret@127.0.0.1:{}", server.port), "wrong"),
        (format!("redis://someone:wr%40ng-secret@127.0.0.1:{}", server.port), "user"),
        (format!("redis://127.0.0.1:{}", server.port), "none"),
        ("redis://:wr%40ng-secret@:port".into(), "no address"),
        ("http://:wr%40ng-secret@127.0.0.1".into(), "no redis"),
        ("redis://:wr@ng-secret@127.0.0.1:x".into(), "not encoded"),
    ] {
        let error = RedisQueue::open(settings(&url, "prove")).await.unwrap_err();
        for text in [error.to_string(), format!("{error:?}"), format!("{:?}", settings(&url, "prove"))] {
            assert!(!text.contains("ng-secret"), "{name}: {text}");
        }
        assert!(matches!(error, QueueError::Unfit(_)), "{name}: {error}");
    }
    let queue =
        RedisQueue::open(settings(&format!("redis://:right@127.0.0.1:{}", server.port), "prove")).await.unwrap();
    queue.ping().await.unwrap();
}

/// The store has the jobs, so a worker may start before its queue does.
#[tokio::test]
async fn a_server_that_is_not_there_yet_is_used_once_it_is() {
    let mut server = Private::start(&["--requirepass", "s3cret"]).await;
    server.kill();
    let url = format!("redis://:s3cret@127.0.0.1:{}", server.port);
    let queue = RedisQueue::open(settings(&url, "prove")).await.unwrap();
    let error = queue.ping().await.unwrap_err();
    assert!(matches!(error, QueueError::Unavailable(_)) && !error.to_string().contains("s3cret"), "{error}");
    server.restart().await;
    let id = JobId::new();
    soon(|| push_all(&queue, std::slice::from_ref(&id))).await;
    assert_eq!(pop_soon(&queue).await, id);
}

#[tokio::test]
async fn a_unix_socket_will_do() {
    let server = Private::start(&["--unixsocket", "{dir}/redis.sock"]).await;
    let path = server.path("redis.sock");
    for scheme in ["unix", "redis+unix"] {
        let url = format!("{scheme}://{}", path.display());
        let queue = RedisQueue::open(settings(&url, "prove")).await.unwrap();
        let id = JobId::new();
        push(&queue, id, 0).await;
        assert_eq!(pop_soon(&queue).await, id);
    }
}

#[tokio::test]
async fn a_key_of_another_kind_is_an_error_and_no_more() {
    let server = Private::start(&[]).await;
    server.run(&["SET", "prove", "somebody else's"]).await;
    let queue = server.open("prove").await;
    let error = push_all(&queue, &ids(1)).await.unwrap_err().to_string();
    assert!(error.contains("WRONGTYPE") || error.contains("wrong kind"), "{error}");
    assert!(queue.pop(1, Duration::ZERO).await.is_err());
    server.run(&["DEL", "prove"]).await;
    let id = JobId::new();
    soon(|| push_all(&queue, std::slice::from_ref(&id))).await;
    let held = soon(|| queue.pop(1, HANG)).await;
    assert_eq!(held.iter().map(id_of).collect::<Vec<_>>(), [id]);
}

fn openssl(dir: &std::path::Path, args: &str) {
    let out = Command::new("openssl").current_dir(dir).args(args.split(' ')).output().expect("openssl is needed");
    assert!(out.status.success(), "{args}: {}", String::from_utf8_lossy(&out.stderr));
}

/// The environment names the trusted authorities, so the client is a child process: this very test, which finds the
/// server's address here.
const TLS_URL: &str = "PW_TEST_TLS_URL";

#[tokio::test]
async fn tls_is_spoken_and_certificates_are_checked() {
    if let Ok(url) = std::env::var(TLS_URL) {
        let id = JobId::new();
        let queue = RedisQueue::open(settings(&url, "prove")).await.unwrap();
        push(&queue, id, 0).await;
        assert_eq!(pop_soon(&queue).await, id);
        return;
    }
    // Without a certificate it ends at once, and prints what is missing.
    let out = Command::new("redis-server").args(["--port", "0", "--tls-port", "1"]).output().unwrap();
    let said = String::from_utf8_lossy(&out.stdout).into_owned() + &String::from_utf8_lossy(&out.stderr);
    if !said.contains("tls-cert-file") {
        eprintln!("SKIPPED: this redis-server was built without TLS: {said}");
        return;
    }
    let certificates = tempfile::tempdir().unwrap();
    let dir = certificates.path();
    std::fs::write(dir.join("names"), "subjectAltName=DNS:localhost,IP:127.0.0.1").unwrap();
    openssl(dir, "req -x509 -newkey rsa:2048 -nodes -keyout ca.key -out ca.crt -days 2 -subj /CN=test-ca");
    openssl(dir, "req -newkey rsa:2048 -nodes -keyout server.key -out server.csr -subj /CN=localhost");
    openssl(
        dir,
        "x509 -req -in server.csr -CA ca.crt -CAkey ca.key -CAcreateserial -out server.crt -days 2 -extfile names",
    );
    let file = |name: &str| dir.join(name).to_string_lossy().into_owned();
    let (crt, key, ca) = (file("server.crt"), file("server.key"), file("ca.crt"));
    let tls = ["--port", "0", "--tls-port", "{port}", "--tls-auth-clients", "no"];
    let files = ["--tls-cert-file", &crt, "--tls-key-file", &key, "--tls-ca-cert-file", &ca];
    let server = Private::start(&[tls.as_slice(), &files].concat()).await;
    let url = format!("rediss://localhost:{}", server.port);

    let child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "redis::tls_is_spoken_and_certificates_are_checked", "--nocapture"])
        .envs([(TLS_URL, url.as_str()), ("SSL_CERT_FILE", &ca)])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&child.stdout).into_owned() + &String::from_utf8_lossy(&child.stderr);
    assert!(child.status.success() && said.contains("1 passed"), "{said}");

    // This process does not trust the authority.
    let error = RedisQueue::open(settings(&url, "prove")).await.unwrap().ping().await.unwrap_err();
    assert!(matches!(error, QueueError::Unavailable(_)), "{error}");
    // And does not fall back to plain text.
    assert!(try_raw::<String>(&server.url(), &["PING"]).await.is_err());
}

// Everything at once.

/// What the workers of a storm share.
struct Storm {
    /// Name of the queue.
    name: String,
    ids: Vec<JobId>,
    /// Ids that were pushed and not delivered since.
    wanted: Mutex<HashSet<JobId>>,
    begun: Instant,
    /// Duration in seconds, instead of a number of steps.
    seconds: Option<u64>,
}

/// A deterministic source of random-looking numbers.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % sides
    }
}

impl Storm {
    async fn open(&self, n: u64) -> RedisQueue {
        let mut settings = settings(&shared_url(), &self.name);
        settings.consumer = format!("{n} {}", settings.consumer);
        settings.reclaim_after = Duration::from_millis(150);
        RedisQueue::open(settings).await.unwrap()
    }

    /// Takes steps and returns their number. Every other worker closes its queue at the end.
    async fn work(&self, n: u64, queue: RedisQueue) -> u64 {
        let (mut dice, mut held, mut step) = (Dice(n + 1), Vec::new(), 0);
        while self.seconds.map_or(step < 300, |s| self.begun.elapsed() < Duration::from_secs(s)) {
            step += 1;
            self.step(&queue, &mut dice, &mut held).await;
        }
        if n.is_multiple_of(2) {
            queue.close().await.unwrap();
        }
        step
    }

    async fn step(&self, queue: &RedisQueue, dice: &mut Dice, held: &mut Vec<Delivery>) {
        let id = self.ids[dice.roll(self.ids.len() as u64) as usize];
        let priority = Priority(dice.roll(3) as i16 - 1);
        match dice.roll(10) {
            0..2 => {
                self.want(id);
                queue.push(&[(id, priority)], Precedence::New).await.unwrap();
            }
            2 => {
                self.want(id);
                queue.push(&[(id, priority)], Precedence::Returning).await.unwrap();
            }
            3 => {
                self.want(id);
                queue.push_after(id, priority, Duration::from_millis(dice.roll(20))).await.unwrap();
            }
            4..7 => {
                let wait = Duration::from_millis(dice.roll(5));
                let got = queue.pop(1 + dice.roll(4) as usize, wait).await.unwrap();
                self.delivered(&got);
                held.extend(got);
            }
            7 => {
                // The call may be dropped before it is answered.
                let pop = tokio::time::timeout(Duration::from_micros(dice.roll(3000)), queue.pop(2, HANG));
                let got = pop.await.map_or_else(|_| Vec::new(), |got| got.unwrap());
                self.delivered(&got);
                held.extend(got);
            }
            _ if held.is_empty() => queue.upkeep().await.unwrap(),
            8 => {
                let delivery = held.swap_remove(dice.roll(held.len() as u64) as usize);
                // It is delivered again, to any worker.
                self.want(id_of(&delivery));
                queue.put_back(delivery).await.unwrap();
            }
            _ => {
                let delivery = held.swap_remove(dice.roll(held.len() as u64) as usize);
                if dice.roll(4) > 0 {
                    queue.ack(&[delivery]).await.unwrap();
                }
            }
        }
    }

    fn want(&self, id: JobId) {
        self.wanted.lock().unwrap().insert(id);
    }

    fn delivered(&self, deliveries: &[Delivery]) {
        let mut wanted = self.wanted.lock().unwrap();
        for delivery in deliveries {
            wanted.remove(&id_of(delivery));
        }
    }

    async fn assert_all_is_delivered(&self, queue: &RedisQueue) {
        until_async_ok("every id to be delivered", async || {
            let wanted = self.wanted.lock().unwrap().clone();
            if wanted.is_empty() {
                return Ok(());
            }
            let got = queue.pop(100, Duration::from_millis(100)).await.unwrap();
            self.delivered(&got);
            queue.ack(&got).await.unwrap();
            Err(wanted)
        })
        .await;
    }

    /// What is left is pending with the consumers that left, until it is reclaimed.
    async fn assert_nothing_is_left(&self, queue: &RedisQueue) {
        until_async("nothing to be left", async || {
            let got = queue.pop(100, Duration::from_millis(100)).await.unwrap();
            queue.ack(&got).await.unwrap();
            let mut left = 0;
            for key in ["", ":high", ":low", ":again", ":high:again", ":low:again"] {
                left += raw::<u64>(&shared_url(), &["XLEN", &format!("{}{key}", self.name)]).await;
            }
            for key in ["ids", "delayed:priority"] {
                left += raw::<u64>(&shared_url(), &["HLEN", &format!("{}:{key}", self.name)]).await;
            }
            left == 0
        })
        .await;
        assert_eq!(queue.depth().await.unwrap(), 0);
    }
}

/// Workers push, pop, acknowledge, put back and abandon, while consumers come and go: every id is delivered after it
/// was last pushed, and nothing is left behind.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_storm_swallows_nothing() {
    let shared = Shared::new();
    let storm = Arc::new(Storm {
        name: shared.name(),
        ids: ids(20),
        wanted: Mutex::default(),
        begun: Instant::now(),
        seconds: std::env::var("STORM_S").ok().and_then(|s| s.parse().ok()),
    });
    let mut workers = tokio::task::JoinSet::new();
    for n in 0..6 {
        let (storm, queue) = (storm.clone(), storm.open(n).await);
        workers.spawn(async move { storm.work(n, queue).await });
    }
    let steps: u64 = workers.join_all().await.into_iter().sum();
    let heir = storm.open(99).await;
    storm.assert_all_is_delivered(&heir).await;
    eprintln!("{steps} steps in {:?}", storm.begun.elapsed());
    storm.assert_nothing_is_left(&heir).await;
    shared.clean().await;
}
