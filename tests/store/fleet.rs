//! The rules of `trait Store` that a fleet needs: queues, pauses, deadlines, histories, requeueing, cleaning up.

use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

use prover_worker::model::{
    Circuit, ContentHash, FailureClass, JobError, JobId, JobState, NewJob, Priority, Stage, Tries, WorkerId,
};
use prover_worker::store::{
    Cancelled, Counts, Due, Held, Input, JobFilter, Purge, Replacement, Requeued, Retry, Scope, Store, StoreError,
    StoreSettings, Submitted, Swept,
};
use tokio::task::JoinSet;

use crate::conformance::Place;
use crate::fixtures::*;
use crate::wait::HANG;

/// The limit of a sweep that ends everything it finds.
const SWEEP: u32 = 1000;

fn queue(name: &str) -> StoreSettings {
    StoreSettings { queue: name.to_owned(), ..StoreSettings::default() }
}

fn keeping(keep_failed_inputs: Duration) -> StoreSettings {
    StoreSettings { keep_failed_inputs, ..StoreSettings::default() }
}

fn of(circuit: &str) -> Scope {
    Scope::Circuit(name(circuit))
}

/// Submits another job.
pub async fn submit(store: &impl Store, new: &NewJob) -> JobId {
    store.submit(new, plain(INPUT)).await.unwrap().job().id
}

/// Submits a job of circuit `c` that no worker may begin later than `within` from now.
async fn hurried(store: &impl Store, within: Duration) -> JobId {
    store.put_circuit(&circuit("c", 1)).await.unwrap();
    let mut new = new_job("c");
    new.start_within = Some(within);
    submit(store, &new).await
}

/// Submits a job that fails for good.
async fn failed(store: &impl Store, class: FailureClass) -> JobId {
    let (id, attempt) = claimed(store, LONG).await;
    assert_eq!(store.fail(id, attempt, &error(class), Retry::Never).await.unwrap(), HELD);
    id
}

/// An input that replaces a job's own.
fn instead(input: Input<'_>) -> Replacement<'_> {
    Replacement { input, body: ContentHash::of(input.bytes) }
}

async fn requeued(store: &impl Store, id: JobId, input: Option<Replacement<'_>>) -> prover_worker::model::Job {
    match store.requeue(id, input, None).await.unwrap() {
        Requeued::Yes(job) => *job,
        other => panic!("expected a queued job, got {other:?}"),
    }
}

async fn paused(store: &impl Store) -> Vec<Scope> {
    store.paused().await.unwrap().into_iter().map(|(scope, _)| scope).collect()
}

// Queues.

pub async fn queues_see_their_own_jobs_and_find_all_by_id(p: impl Place) {
    let (a, b) = (p.open_with(queue("a")).await, p.open_with(queue("b")).await);
    let (in_a, in_b) = (submitted(&a).await, submitted(&b).await);
    for (store, own, name) in [(&a, in_a, "a"), (&b, in_b, "b")] {
        assert_eq!(job(store, own).await.queue, name);
        assert_eq!(due_ids(store).await, [own]);
        assert_eq!(store.counts().await.unwrap(), Counts { queued: 1, ..Counts::default() });
        assert_eq!(store.load().await.unwrap().queued, 1);
        for circuit in [None, Some(self::name("c"))] {
            for state in [None, Some(JobState::Queued)] {
                let filter = JobFilter { state, circuit: circuit.clone(), limit: 9, ..JobFilter::default() };
                let jobs = store.jobs(filter).await.unwrap();
                assert_eq!(jobs.iter().map(|j| j.id).collect::<Vec<_>>(), [own]);
            }
        }
    }
    // By id, a job is visible to every queue.
    assert_eq!(job(&a, in_b).await.queue, "b");
    let attempt = claim(&a, in_b, NONE).await.unwrap().job.attempt;
    assert_eq!(due_ids(&b).await, [in_b], "lapsed");
    assert_eq!(due_ids(&a).await, [in_a]);
    assert_eq!((a.load().await.unwrap().running, b.load().await.unwrap().running), (0, 1));
    assert_eq!(a.finish(in_b, attempt, &result()).await.unwrap(), HELD);
    assert_eq!(a.load().await.unwrap().ended_last_minute, 0);
    assert_eq!(b.load().await.unwrap().ended_last_minute, 1);
    assert_eq!(purge(&a, &JobState::ALL, NONE, 10).await.unwrap(), []);
    assert_eq!(purge(&b, &JobState::ALL, NONE, 10).await.unwrap(), [in_b]);
    assert_eq!(b.cancel(in_a).await.unwrap(), Some(Cancelled::Now));
    assert_eq!(requeued(&b, in_a, Some(instead(plain(INPUT)))).await.queue, "a", "it goes back to its own queue");
    assert_eq!((due_ids(&a).await, due_ids(&b).await), (vec![in_a], vec![]));
}

pub async fn idempotency_keys_belong_to_a_queue_and_ids_to_all(p: impl Place) {
    let (a, b) = (p.open_with(queue("a")).await, p.open_with(queue("b")).await);
    a.put_circuit(&circuit("c", 1)).await.unwrap();
    let mut new = new_job("c");
    new.idempotency_key = Some(key("k"));
    assert!(matches!(a.submit(&new, plain(INPUT)).await.unwrap(), Submitted::Created(_)));
    let other = NewJob { id: JobId::new(), body: ContentHash::of(b"other"), ..new.clone() };
    assert!(matches!(b.submit(&other, plain(b"other")).await.unwrap(), Submitted::Created(_)));
    assert!(matches!(a.submit(&other, plain(b"other")).await.unwrap(), Submitted::Existing(_)), "by its id");
    match b.submit(&new, plain(INPUT)).await.unwrap() {
        Submitted::Existing(job) => assert_eq!((job.id, job.queue.as_str()), (new.id, "a"), "its id comes first"),
        Submitted::Created(_) => panic!("the id is taken by this very job"),
    }
}

pub async fn jobs_are_listed_by_circuit(p: impl Place) {
    let store = p.open().await;
    let mut ids = Vec::new();
    for c in ["a", "b", "a", "b", "a"] {
        store.put_circuit(&circuit(c, 1)).await.unwrap();
        ids.push(submit(&store, &new_job(c)).await);
    }
    store.cancel(ids[2]).await.unwrap();
    let list_before = async |before, state, c: &str, limit| -> Vec<JobId> {
        let filter = JobFilter { state, circuit: Some(name(c)), before, limit, ..JobFilter::default() };
        store.jobs(filter).await.unwrap().iter().map(|j| j.id).collect()
    };
    let list = async |state, c: &str, limit| list_before(None, state, c, limit).await;
    assert_eq!(list(None, "a", 10).await, [ids[4], ids[2], ids[0]]);
    assert_eq!(list(None, "a", 2).await, [ids[4], ids[2]]);
    assert_eq!(list(Some(JobState::Queued), "a", 10).await, [ids[4], ids[0]]);
    assert_eq!(list(Some(JobState::Cancelled), "b", 10).await, []);
    assert_eq!(list(None, "c", 10).await, []);
    // A page continues after the given job, whatever its circuit and state.
    assert_eq!(list_before(Some(ids[4]), None, "a", 1).await, [ids[2]]);
    assert_eq!(list_before(Some(ids[4]), Some(JobState::Queued), "a", 9).await, [ids[0]]);
    assert_eq!(list_before(Some(ids[2]), None, "b", 9).await, [ids[1]]);
    assert_eq!(list_before(Some(ids[0]), None, "a", 9).await, []);
    assert_eq!(list_before(Some(JobId::new()), None, "a", 1).await, [ids[4]], "one that is not there");
    for state in [None, Some(JobState::Queued)] {
        let filter = JobFilter { state, before: Some(ids[1]), limit: 9, ..JobFilter::default() };
        let jobs: Vec<_> = store.jobs(filter).await.unwrap().iter().map(|j| j.id).collect();
        assert_eq!(jobs, [ids[0]]);
    }
}

// Submitting.

pub async fn a_repeat_is_known_by_the_hash_of_a_former_key(p: impl Place) {
    let store = p.open().await;
    store.put_circuit(&circuit("c", 1)).await.unwrap();
    let (old, new) = (ContentHash::of(b"by the old key"), ContentHash::of(b"by the new key"));
    let mut first = new_job("c");
    first.idempotency_key = Some(key("k"));
    first.body = old;
    submit(&store, &first).await;
    let mut again = first.clone();
    again.body = new;
    assert!(matches!(store.submit(&again, plain(INPUT)).await, Err(StoreError::Conflict { .. })));
    again.former_bodies = vec![ContentHash::of(b"by an older one"), old];
    assert!(matches!(store.submit(&again, plain(INPUT)).await.unwrap(), Submitted::Existing(_)));
    again.id = JobId::new();
    assert_eq!(submit(&store, &again).await, first.id, "by its idempotency key too");
    assert!(matches!(store.reject(&again, &error(FailureClass::BadInput)).await.unwrap(), Submitted::Existing(_)));
}

pub async fn an_input_keeps_the_name_of_its_key(p: impl Place) {
    let store = p.open().await;
    store.put_circuit(&circuit("c", 1)).await.unwrap();
    let keys = ["", "k1", "key 'two' \"2\""];
    for (n, key) in keys.into_iter().enumerate() {
        for _ in 0..=n {
            let new = new_job("c");
            store.submit(&new, Input { bytes: INPUT, key }).await.unwrap();
            let claim = claim(&store, new.id, LONG).await.unwrap();
            assert_eq!((sent(&claim), claim.input_key.as_str()), (INPUT, key));
        }
    }
    let mut held = store.inputs_held().await.unwrap();
    held.sort();
    let mut expected: Vec<_> = keys.into_iter().map(str::to_owned).zip(1..).collect();
    expected.sort();
    assert_eq!(held, expected);
}

pub async fn a_rejected_job_has_failed_and_never_ran(p: impl Place) {
    let store = p.open().await;
    let registered = store.put_circuit(&circuit("c", 1)).await.unwrap();
    for (c, zkey, wasm) in [("c", registered.zkey, registered.wasm), ("nowhere", ContentHash([0; 32]), None)] {
        let mut new = new_job(c);
        new.idempotency_key = Some(key(c));
        new.priority = Priority(3);
        new.start_within = Some(LONG);
        let why = JobError { class: FailureClass::BadInput, message: "it's \"odd\"".into() };
        let Submitted::Created(rejected) = store.reject(&new, &why).await.unwrap() else { panic!("it is new") };
        assert_eq!(rejected, job(&store, new.id).await);
        assert_eq!((rejected.id, rejected.state), (new.id, JobState::Failed));
        assert_eq!((rejected.circuit, rejected.zkey, rejected.wasm), (new.circuit.clone(), zkey, wasm));
        assert_eq!(
            (rejected.idempotency_key, rejected.priority),
            (new.idempotency_key.clone().map(String::from), new.priority)
        );
        assert_eq!((rejected.error, rejected.history), (Some(why.clone()), vec![]));
        assert_eq!((rejected.attempt.number, rejected.tries, rejected.started_at), (0, Tries::default(), None));
        assert_eq!(rejected.start_by, None);
        assert_eq!(rejected.finished_at, Some(rejected.created_at));
        assert!(claim(&store, new.id, LONG).await.is_none());
        assert_eq!(due_ids(&store).await, []);
        assert_eq!(inputs(&store).await, 0);
    }
    assert_eq!(store.counts().await.unwrap(), Counts { failed: 2, ..Counts::default() });
}

pub async fn a_reject_is_idempotent_and_leaves_other_jobs_alone(p: impl Place) {
    let store = p.open().await;
    let why = error(FailureClass::BadInput);
    let mut new = new_job("c");
    new.idempotency_key = Some(key("k"));
    let first = store.reject(&new, &why).await.unwrap();
    let again = store.reject(&new, &error(FailureClass::Transient)).await.unwrap();
    assert_eq!(again, Submitted::Existing(first.job().clone()), "the first reason stays");
    let by_key = NewJob { id: JobId::new(), ..new.clone() };
    assert_eq!(store.reject(&by_key, &why).await.unwrap().job().id, new.id);
    store.put_circuit(&circuit("c", 1)).await.unwrap();
    let by_key = NewJob { id: JobId::new(), ..new.clone() };
    assert_eq!(store.submit(&by_key, plain(INPUT)).await.unwrap(), again, "it stays failed");

    let running = claimed(&store, LONG).await.0;
    let before = job(&store, running).await;
    let mut same = new_job("c");
    same.id = running;
    assert_eq!(store.reject(&same, &why).await.unwrap(), Submitted::Existing(before.clone()));
    same.body = ContentHash::of(b"something else");
    assert!(matches!(store.reject(&same, &why).await, Err(StoreError::Conflict { id, .. }) if id == running));
    assert_eq!(job(&store, running).await, before);
    assert_eq!(store.counts().await.unwrap(), Counts { running: 1, failed: 1, ..Counts::default() });
}

pub async fn a_submit_takes_the_place_of_a_rejected_job(p: impl Place) {
    let class = FailureClass::BadInput;
    for registered in [false, true] {
        let (a, b) = (p.open_with(queue("a")).await, p.open_with(queue("b")).await);
        a.put_circuit(&circuit("d", 4)).await.unwrap();
        if registered {
            a.put_circuit(&circuit("c", 3)).await.unwrap();
        }
        // Like a message that cannot be read: without its key, and possibly from another queue.
        let mut bad = new_job("c");
        bad.body = ContentHash::of(b"the reason");
        let rejected = b.reject(&bad, &error(class)).await.unwrap().job().clone();
        let earlier = submit(&a, &new_job("d")).await;

        let mut new = new_job("c");
        new.id = bad.id;
        new.idempotency_key = Some(key("k"));
        new.priority = Priority(2);
        new.start_within = Some(LONG);
        if !registered {
            assert!(matches!(a.submit(&new, plain(INPUT)).await, Err(StoreError::UnknownCircuit(c)) if c == name("c")));
            assert_eq!(job(&a, new.id).await, rejected, "it stays as it was");
        }
        let c = a.put_circuit(&circuit("c", 1)).await.unwrap();
        let Submitted::Created(made) = a.submit(&new, plain(INPUT)).await.unwrap() else { panic!("there was no job") };
        assert_eq!(made, job(&a, new.id).await);
        assert_eq!((made.state, made.queue.as_str(), made.error.as_ref()), (JobState::Queued, "a", None));
        assert_eq!((made.zkey, made.wasm, made.priority), (c.zkey, c.wasm, Priority(2)));
        assert_eq!((made.idempotency_key.as_deref(), made.finished_at), (Some("k"), None));
        assert_eq!((made.history, made.attempt.number, made.tries), (vec![], 0, Tries::default()));
        assert_eq!(made.start_by, Some(made.created_at + LONG.as_millis() as i64));
        assert!(made.created_at >= rejected.created_at);
        // Younger than the jobs submitted in between, as if it had never been there before.
        let listed = a.jobs(JobFilter { limit: 9, ..JobFilter::default() }).await.unwrap();
        assert_eq!(listed.iter().map(|j| j.id).collect::<Vec<_>>(), [new.id, earlier]);
        assert_eq!(b.counts().await.unwrap(), Counts::default());

        assert!(matches!(a.submit(&new, plain(INPUT)).await.unwrap(), Submitted::Existing(_)), "a repeat");
        let other = NewJob { body: ContentHash::of(b"other"), ..new.clone() };
        assert!(matches!(a.submit(&other, plain(b"other")).await, Err(StoreError::Conflict { .. })));
        assert!(matches!(a.reject(&bad, &error(class)).await, Err(StoreError::Conflict { .. })));
        let claim = claim(&a, new.id, LONG).await.unwrap();
        assert_eq!(sent(&claim), INPUT);
        // A job that was begun and failed does not count as rejected, whatever the reason.
        a.fail(new.id, claim.job.attempt, &error(class), Retry::Never).await.unwrap();
        assert!(matches!(a.submit(&new, plain(INPUT)).await.unwrap(), Submitted::Existing(_)));
        assert!(matches!(a.submit(&other, plain(b"other")).await, Err(StoreError::Conflict { .. })));
        assert_eq!(job(&a, new.id).await.state, JobState::Failed);
        purge(&a, &JobState::ALL, NONE, 10).await.unwrap();
        a.cancel(earlier).await.unwrap();
        purge(&a, &JobState::ALL, NONE, 10).await.unwrap();
        assert_eq!(inputs(&a).await, 0);
    }
}

pub async fn a_reject_takes_the_place_of_one_for_another_reason(p: impl Place) {
    let store = p.open().await;
    let why = |message: &str| JobError { class: FailureClass::BadInput, message: message.to_owned() };
    let mut new = new_job("nowhere");
    new.body = ContentHash::of(b"first");
    let first = store.reject(&new, &why("first")).await.unwrap();
    assert_eq!(store.reject(&new, &why("first")).await.unwrap(), Submitted::Existing(first.job().clone()));
    let c = store.put_circuit(&circuit("c", 1)).await.unwrap();
    new.circuit = name("c");
    new.body = ContentHash::of(b"second");
    new.idempotency_key = Some(key("k"));
    let Submitted::Created(second) = store.reject(&new, &why("second")).await.unwrap() else { panic!("it is new") };
    assert_eq!(second, job(&store, new.id).await);
    assert_eq!((second.state, second.error), (JobState::Failed, Some(why("second"))));
    assert_eq!((second.circuit, second.zkey, second.wasm), (name("c"), c.zkey, c.wasm));
    assert_eq!((second.idempotency_key.as_deref(), second.finished_at), (Some("k"), Some(second.created_at)));
    assert_eq!(store.counts().await.unwrap(), Counts { failed: 1, ..Counts::default() });
    assert_eq!(inputs(&store).await, 0);
}

pub async fn a_rejected_jobs_key_is_not_taken_by_another_id(p: impl Place) {
    let store = p.open().await;
    store.put_circuit(&circuit("c", 1)).await.unwrap();
    let mut bad = new_job("c");
    bad.idempotency_key = Some(key("k"));
    bad.body = ContentHash::of(b"the reason");
    let why = JobError { class: FailureClass::BadInput, message: "it is odd".to_owned() };
    let rejected = store.reject(&bad, &why).await.unwrap().job().clone();
    let by_key = NewJob { id: JobId::new(), body: ContentHash::of(INPUT), ..bad.clone() };
    let refused = store.submit(&by_key, plain(INPUT)).await.unwrap_err();
    assert!(refused.to_string().ends_with("was rejected: it is odd"), "{refused}");
    assert_eq!((job(&store, bad.id).await, store.job(by_key.id).await.unwrap()), (rejected, None));

    // If the key that it now comes with is another job's, that job is the answer.
    let mut holder = new_job("c");
    holder.idempotency_key = Some(key("other"));
    submit(&store, &holder).await;
    let same = NewJob { id: bad.id, ..holder.clone() };
    assert_eq!(submit(&store, &same).await, holder.id);
    let differs = NewJob { body: ContentHash::of(b"something else"), ..same };
    assert!(
        matches!(store.submit(&differs, plain(INPUT)).await, Err(StoreError::Conflict { id, .. }) if id == holder.id)
    );
    assert!(matches!(store.reject(&differs, &why).await, Err(StoreError::Conflict { id, .. }) if id == holder.id));
    assert_eq!(job(&store, bad.id).await.state, JobState::Failed);
    assert_eq!(inputs(&store).await, 1);
}

pub async fn racing_submits_take_a_rejected_jobs_place_once(p: impl Place) {
    let handles = [Arc::new(p.open().await), Arc::new(p.open().await)];
    handles[0].put_circuit(&circuit("c", 1)).await.unwrap();
    for round in 1..=10_u64 {
        let bad = NewJob { body: ContentHash::of(b"the reason"), ..new_job("c") };
        handles[0].reject(&bad, &error(FailureClass::BadInput)).await.unwrap();
        let mut tasks = JoinSet::new();
        for n in 0..8_u8 {
            let store = handles[usize::from(n % 2)].clone();
            // Two submits of different content, several times each, and rejects for a reason of their own.
            let body = ContentHash::of(&[n % 4]);
            let new = NewJob { body, ..bad.clone() };
            tasks.spawn(async move {
                match n % 4 {
                    3 => (n, store.reject(&new, &error(FailureClass::BadInput)).await),
                    _ => (n, store.submit(&new, plain(&[n % 4; 9])).await),
                }
            });
        }
        let all = tasks.join_all().await;
        let queued = |n: &u8, s: &Result<Submitted, StoreError>| *n % 4 != 3 && matches!(s, Ok(Submitted::Created(_)));
        let won: Vec<u8> = all.iter().filter(|(n, s)| queued(n, s)).map(|(n, _)| n % 4).collect();
        assert_eq!(won.len(), 1, "{all:?}");
        for (n, answer) in &all {
            match answer {
                Ok(Submitted::Existing(job)) if n % 4 != 3 => assert_eq!((n % 4, job.id), (won[0], bad.id)),
                Ok(_) => {}
                Err(StoreError::Conflict { id, .. }) => assert!(*id == bad.id && n % 4 != won[0]),
                Err(e) => panic!("{e}"),
            }
        }
        assert_eq!(handles[0].counts().await.unwrap(), Counts { running: round - 1, queued: 1, ..Counts::default() });
        assert_eq!(inputs(&*handles[1]).await, round);
        assert_eq!(sent(&claim(&*handles[1], bad.id, LONG).await.unwrap()), [won[0]; 9]);
    }
}

pub async fn racing_rejects_and_submits_make_one_job(p: impl Place) {
    let handles = [Arc::new(p.open().await), Arc::new(p.open().await)];
    handles[0].put_circuit(&circuit("c", 1)).await.unwrap();
    for round in 0..10_u64 {
        let mut new = new_job("c");
        new.idempotency_key = Some(key(&format!("key {round}")));
        let mut tasks = JoinSet::new();
        for n in 0..8 {
            let (store, mut new) = (handles[n % 2].clone(), new.clone());
            tasks.spawn(async move {
                if n % 4 > 1 {
                    new.id = JobId::new();
                }
                match n < 4 {
                    true => (true, store.reject(&new, &error(FailureClass::BadInput)).await.unwrap()),
                    false => (false, store.submit(&new, plain(INPUT)).await.unwrap()),
                }
            });
        }
        let all = tasks.join_all().await;
        let made = |rejects| all.iter().filter(|(r, s)| *r == rejects && matches!(s, Submitted::Created(_))).count();
        // A submit may have replaced an earlier reject.
        assert!(made(true) <= 1 && made(false) <= 1 && made(true) + made(false) >= 1, "{all:?}");
        assert!(all.iter().all(|(_, s)| s.job().id == all[0].1.job().id));
        let counts = handles[0].counts().await.unwrap();
        assert_eq!(counts.queued + counts.failed, round + 1);
        assert_eq!(inputs(&*handles[1]).await, counts.queued);
    }
}

// Pauses.

pub async fn a_paused_queue_gives_nothing_until_it_is_resumed(p: impl Place) {
    let (a, b) = (p.open_with(queue("a")).await, p.open_with(queue("b")).await);
    let (in_a, in_b) = (submitted(&a).await, submitted(&b).await);
    assert!(a.set_paused(&Scope::Queue, true).await.unwrap());
    assert_eq!((paused(&a).await, paused(&b).await), (vec![Scope::Queue], vec![]));
    for store in [&a, &b] {
        assert!(claim(store, in_a, LONG).await.is_none(), "whoever asks");
    }
    assert_eq!((due_ids(&a).await, due_ids(&b).await), (vec![], vec![in_b]));
    assert_eq!(job(&a, in_a).await.state, JobState::Queued);
    assert_eq!(a.load().await.unwrap().queued, 1, "it still waits");
    let late = submitted(&a).await;
    assert!(a.set_paused(&Scope::Queue, false).await.unwrap());
    assert_eq!(paused(&a).await, []);
    assert_eq!(due_ids(&a).await, [in_a, late]);
    assert!(claim(&a, in_a, LONG).await.is_some());
}

pub async fn a_paused_circuit_is_held_back_in_every_queue(p: impl Place) {
    let stores = [p.open_with(queue("a")).await, p.open_with(queue("b")).await];
    let mut ids = Vec::new();
    for store in &stores {
        for c in ["c", "other"] {
            store.put_circuit(&circuit(c, 1)).await.unwrap();
            ids.push(submit(store, &new_job(c)).await);
        }
    }
    assert!(stores[0].set_paused(&of("c"), true).await.unwrap());
    for (n, store) in stores.iter().enumerate() {
        assert_eq!(paused(store).await, [of("c")]);
        assert_eq!(due_ids(store).await, [ids[2 * n + 1]]);
        assert!(claim(store, ids[2 * n], LONG).await.is_none());
    }
    assert!(stores[1].set_paused(&of("c"), false).await.unwrap());
    assert!(claim(&stores[0], ids[0], LONG).await.is_some());
    assert_eq!(due_ids(&stores[1]).await, ids[2..]);
}

/// Nobody else would: its input would stay, and its circuit could not be removed.
pub async fn a_cancelled_job_of_a_dead_worker_is_cancelled_under_a_pause_too(p: impl Place) {
    for scope in [Scope::Queue, Scope::Circuit(name("c"))] {
        let store = p.open().await;
        let (id, _) = claimed(&store, NONE).await;
        let (other, _) = claimed(&store, NONE).await;
        assert!(store.set_paused(&scope, true).await.unwrap());
        assert_eq!(store.cancel(id).await.unwrap(), Some(Cancelled::Requested));
        assert_eq!(due_ids(&store).await, [id], "{scope:?}: {other} waits for the end of the pause");
        assert!(claim(&store, id, LONG).await.is_none());
        assert_eq!(job(&store, id).await.state, JobState::Cancelled);
        assert!(store.set_paused(&scope, false).await.unwrap());
        let claim = claim(&store, other, LONG).await.unwrap();
        store.finish(other, claim.job.attempt, &result()).await.unwrap();
        assert_eq!(inputs(&store).await, 0);
    }
}

pub async fn pausing_what_is_paused_changes_nothing(p: impl Place) {
    let store = p.open().await;
    for scope in [Scope::Queue, of("c"), of("queue")] {
        assert!(!store.set_paused(&scope, false).await.unwrap());
        assert!(store.set_paused(&scope, true).await.unwrap());
        let before = store.paused().await.unwrap();
        assert!(!store.set_paused(&scope, true).await.unwrap());
        assert_eq!(store.paused().await.unwrap(), before, "paused since the first time");
        assert!(before.iter().all(|(_, since)| *since > 0));
    }
    let mut all = paused(&store).await;
    all.sort();
    assert_eq!(all, [Scope::Queue, of("c"), of("queue")]);
    assert!(store.set_paused(&of("c"), false).await.unwrap());
    assert_eq!(paused(&p.open().await).await.len(), 2, "and so another handle sees it");
}

pub async fn a_pause_leaves_running_jobs_alone(p: impl Place) {
    let store = p.open().await;
    let mut jobs = Vec::new();
    for _ in 0..3 {
        jobs.push(claimed(&store, LONG).await);
    }
    for scope in [Scope::Queue, of("c")] {
        store.set_paused(&scope, true).await.unwrap();
    }
    for (id, attempt) in &jobs {
        assert_eq!(store.heartbeat(*id, *attempt, LONG, Stage::Prove, 0.5).await.unwrap(), HELD);
    }
    let [(done, a), (retried, b), (released, c)] = jobs[..] else { unreachable!() };
    assert_eq!(store.finish(done, a, &result()).await.unwrap(), HELD);
    assert_eq!(store.fail(retried, b, &error(FailureClass::Device), Retry::After(NONE)).await.unwrap(), HELD);
    assert_eq!(store.release(released, c).await.unwrap(), HELD);
    assert_eq!(due_ids(&store).await, []);
    assert!(claim(&store, retried, LONG).await.is_none());
    assert!(claim(&store, released, LONG).await.is_none());
    let queued = submitted(&store).await;
    assert_eq!(store.cancel(queued).await.unwrap(), Some(Cancelled::Now), "what is held back can be cancelled");
}

pub async fn a_lapsed_job_waits_while_it_is_paused(p: impl Place) {
    let store = p.open().await;
    let (id, attempt) = claimed(&store, NONE).await;
    for scope in [Scope::Queue, of("c")] {
        store.set_paused(&scope, true).await.unwrap();
        let before = job(&store, id).await;
        assert_eq!(due_ids(&store).await, []);
        assert!(store.claim(id, &worker(2), LONG).await.unwrap().is_none());
        assert_eq!(job(&store, id).await, before);
        assert_eq!(store.heartbeat(id, attempt, NONE, Stage::Prove, 0.5).await.unwrap(), HELD);
        store.set_paused(&scope, false).await.unwrap();
        assert_eq!(due_ids(&store).await, [id]);
    }
    let claim = store.claim(id, &worker(2), LONG).await.unwrap().unwrap();
    assert_eq!(claim.job.tries.lost, 1);
}

pub async fn a_lapsed_job_to_be_cancelled_is_cancelled_even_while_paused(p: impl Place) {
    let store = p.open().await;
    let (id, _) = claimed(&store, NONE).await;
    store.cancel(id).await.unwrap();
    store.set_paused(&Scope::Queue, true).await.unwrap();
    assert!(claim(&store, id, LONG).await.is_none());
    assert_eq!(job(&store, id).await.state, JobState::Cancelled);
}

pub async fn paused_and_overdue_jobs_take_nobodys_place_among_the_due(p: impl Place) {
    let store = p.open().await;
    for c in ["held", "free"] {
        store.put_circuit(&circuit(c, 1)).await.unwrap();
    }
    for _ in 0..5 {
        let mut new = new_job("held");
        new.priority = Priority(9);
        claim(&store, submit(&store, &new).await, NONE).await.unwrap();
        new.id = JobId::new();
        submit(&store, &new).await;
        new = new_job("free");
        new.priority = Priority(9);
        new.start_within = Some(NONE);
        submit(&store, &new).await;
    }
    let free = submit(&store, &new_job("free")).await;
    store.set_paused(&of("held"), true).await.unwrap();
    let free = Due { id: free, priority: Priority(0), again: false };
    assert_eq!(store.due(1).await.unwrap(), [free]);
    assert_eq!(store.due(100).await.unwrap(), [free]);
    store.set_paused(&of("held"), false).await.unwrap();
    assert_eq!(store.due(100).await.unwrap().len(), 11);
}

// Deadlines.

pub async fn a_job_that_nobody_began_in_time_fails(p: impl Place) {
    let store = p.open().await;
    let id = hurried(&store, NONE).await;
    let waiting = job(&store, id).await;
    assert_eq!(waiting.start_by, Some(waiting.created_at));
    assert_eq!(due_ids(&store).await, []);
    assert!(claim(&store, id, LONG).await.is_none());
    assert_eq!(job(&store, id).await, waiting, "that is left to the sweep");
    assert_eq!(store.sweep(SWEEP).await.unwrap(), Swept { expired: vec![id], ..Swept::default() });
    let expired = job(&store, id).await;
    assert_eq!(expired.state, JobState::Failed);
    assert!(expired.finished_at.is_some());
    let why = "no worker began it within 0 s".to_owned();
    assert_eq!(expired.error, Some(JobError { class: FailureClass::Timeout, message: why }));
    assert_eq!((expired.tries, expired.history, expired.attempt.number), (Tries::default(), vec![], 0));
    assert_eq!(store.sweep(SWEEP).await.unwrap(), Swept::default());
    assert_eq!(inputs(&store).await, 1, "it may be queued again");
    let again = requeued(&store, id, None).await;
    assert_eq!((again.state, again.start_by), (JobState::Queued, None), "none was asked for");
    assert_eq!(store.sweep(SWEEP).await.unwrap(), Swept::default());
    assert!(claim(&store, id, LONG).await.is_some());
}

pub async fn the_message_says_how_long_a_job_was_to_wait(p: impl Place) {
    let store = p.open().await;
    for (ms, said) in [(1, "0.001"), (20, "0.02"), (100, "0.1")] {
        let id = hurried(&store, Duration::from_millis(ms)).await;
        while store.sweep(SWEEP).await.unwrap().expired.is_empty() {
            assert_eq!(job(&store, id).await.state, JobState::Queued);
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let expired = job(&store, id).await;
        assert!(expired.finished_at >= expired.start_by);
        assert_eq!(expired.error.unwrap().message, format!("no worker began it within {said} s"));
    }
    let patient = hurried(&store, Duration::MAX).await;
    let job = job(&store, patient).await;
    assert!(job.start_by.unwrap() > job.created_at);
    assert_eq!(store.sweep(SWEEP).await.unwrap(), Swept::default());
}

pub async fn a_job_begun_in_time_has_no_deadline_any_more(p: impl Place) {
    let store = p.open().await;
    // On a slow machine the time may be over before the claim.
    let (id, start_by, attempt) = loop {
        let id = hurried(&store, Duration::from_millis(300)).await;
        let start_by = job(&store, id).await.start_by.unwrap();
        if let Some(claim) = claim(&store, id, LONG).await {
            assert_eq!(claim.job.start_by, None);
            break (id, start_by, claim.job.attempt);
        }
    };
    store.release(id, attempt).await.unwrap();
    // Until the store's clock has passed that time.
    while job(&store, submitted(&store).await).await.created_at <= start_by {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(!store.sweep(SWEEP).await.unwrap().expired.contains(&id));
    assert!(due_ids(&store).await.contains(&id), "handed back, it waits for as long as it takes");
    assert!(claim(&store, id, LONG).await.is_some());
}

pub async fn a_sweep_is_bounded_and_minds_its_own_queue(p: impl Place) {
    let (a, b) = (p.open_with(queue("a")).await, p.open_with(queue("b")).await);
    for _ in 0..5 {
        hurried(&a, NONE).await;
    }
    hurried(&a, LONG).await;
    submitted(&a).await;
    a.set_paused(&Scope::Queue, true).await.unwrap(); // which stops no clock
    assert_eq!(b.sweep(SWEEP).await.unwrap(), Swept::default());
    assert_eq!(purge(&b, &JobState::ALL, NONE, 2).await.unwrap(), []);
    for expected in [2, 2, 1, 0] {
        assert_eq!(a.sweep(2).await.unwrap().expired.len(), expected);
        assert_eq!(purge(&a, &JobState::ALL, NONE, 2).await.unwrap().len(), expected);
    }
    assert_eq!(a.counts().await.unwrap(), Counts { queued: 2, ..Counts::default() });
}

// Histories.

pub async fn failures_and_lost_workers_go_into_the_history(p: impl Place) {
    let store = p.open().await;
    let id = submitted(&store).await;
    let odd = WorkerId("w\"1\" \\ 'x' – ü".into());
    let message = "it's \"odd\": \\ {\"a\": 1}\n\t–ünï $[#] %s".to_owned();
    let why = JobError { class: FailureClass::Device, message };
    let first = store.claim(id, &odd, LONG).await.unwrap().unwrap().job;
    assert_eq!(first.history, []);
    store.fail(id, first.attempt, &why, Retry::After(NONE)).await.unwrap();
    let second = store.claim(id, &odd, NONE).await.unwrap().unwrap().job;
    assert_eq!(second.history.len(), 1);
    assert_eq!(second.history[0].error, why);
    let third = claim(&store, id, LONG).await.unwrap().job;
    store.release(id, third.attempt).await.unwrap();
    let fourth = claim(&store, id, LONG).await.unwrap().job;
    assert_eq!(store.fail(id, second.attempt, &why, Retry::Never).await.unwrap(), Held::Lost);
    store.fail(id, fourth.attempt, &error(FailureClass::Transient), Retry::Never).await.unwrap();

    let failed = job(&store, id).await;
    let [a, b, c] = &failed.history[..] else { panic!("three came to nothing: {:?}", failed.history) };
    assert_eq!((a.attempt, &a.worker, &a.error), (1, &Some(odd.clone()), &why));
    assert_eq!((b.attempt, &b.worker), (2, &Some(odd.clone())), "a hand-back is none");
    assert_eq!(b.error.class, FailureClass::LostWorker);
    assert_eq!(b.error.message, format!("worker {} fell silent; its lease lapsed", odd.0));
    assert_eq!((c.attempt, &c.worker), (4, &Some(worker(1))));
    assert_eq!(c.error, error(FailureClass::Transient));
    let times = [failed.started_at.unwrap(), a.at, b.at, c.at, failed.finished_at.unwrap()];
    assert!(times.is_sorted(), "{times:?}");
    assert_eq!(failed.tries, Tries { transient: 1, device: 1, lost: 1 });

    let again = requeued(&store, id, None).await;
    assert_eq!(again.history, failed.history, "it stays");
    let attempt = claim(&store, id, LONG).await.unwrap().job.attempt;
    store.finish(id, attempt, &result()).await.unwrap();
    assert_eq!(job(&store, id).await.history, failed.history);
}

pub async fn a_retry_that_cancels_is_in_the_history_too(p: impl Place) {
    let store = p.open().await;
    let (id, attempt) = claimed(&store, LONG).await;
    store.cancel(id).await.unwrap();
    store.fail(id, attempt, &error(FailureClass::Device), Retry::After(NONE)).await.unwrap();
    let job = job(&store, id).await;
    assert_eq!((job.state, job.history.len()), (JobState::Cancelled, 1));
}

pub async fn a_history_keeps_the_last_fifty(p: impl Place) {
    let store = p.open().await;
    let id = submitted(&store).await;
    for n in 1..=60 {
        let attempt = store.claim(id, &worker(n), NONE).await.unwrap().unwrap().job.attempt;
        if n % 2 == 0 {
            store.fail(id, attempt, &error(FailureClass::Transient), Retry::After(NONE)).await.unwrap();
        }
    }
    let history = job(&store, id).await.history;
    let attempts: Vec<u32> = history.iter().map(|a| a.attempt).collect();
    assert_eq!(attempts, (11..=60).collect::<Vec<_>>());
    assert!(history.iter().all(|a| a.worker == Some(worker(a.attempt as usize))));
}

// Inputs of failed jobs.

pub async fn a_failed_job_keeps_its_input_but_for_bad_input(p: impl Place) {
    for (settings, kept) in [(StoreSettings::default(), true), (keeping(NONE), false)] {
        let store = p.open_with(settings).await;
        let before = inputs(&store).await;
        for class in FailureClass::ALL {
            let held = inputs(&store).await;
            failed(&store, class).await;
            let kept = u64::from(kept && class != FailureClass::BadInput);
            assert_eq!(inputs(&store).await - held, kept, "{class:?}");
        }
        hurried(&store, NONE).await;
        store.sweep(SWEEP).await.unwrap();
        assert_eq!(inputs(&store).await - before, if kept { 6 } else { 0 });
    }
}

pub async fn an_input_is_deleted_once_its_time_is_over(p: impl Place) {
    let store = p.open_with(keeping(Duration::from_millis(200))).await;
    let (kept, requeued_job) = (failed(&store, FailureClass::Device).await, failed(&store, FailureClass::Device).await);
    let waiting = submitted(&store).await;
    requeued(&store, requeued_job, None).await;
    let mut deleted = 0;
    while deleted == 0 {
        deleted = store.sweep(SWEEP).await.unwrap().inputs;
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!((deleted, inputs(&store).await), (1, 2));
    assert_eq!(store.requeue(kept, None, None).await.unwrap(), Requeued::InputGone);
    assert_eq!(job(&store, kept).await.state, JobState::Failed);
    for id in [waiting, requeued_job] {
        assert_eq!(sent(&claim(&store, id, LONG).await.unwrap()), INPUT);
    }
}

pub async fn inputs_are_deleted_a_bounded_number_at_a_time(p: impl Place) {
    let store = p.open_with(keeping(Duration::from_millis(1))).await;
    for _ in 0..5 {
        failed(&store, FailureClass::Device).await;
    }
    let mut deleted = 0;
    while deleted < 5 {
        let swept = store.sweep(2).await.unwrap();
        assert!(swept.inputs <= 2);
        deleted += swept.inputs;
    }
    assert_eq!((deleted, inputs(&store).await), (5, 0));
    assert_eq!(store.counts().await.unwrap().failed, 5, "the jobs stay");
}

// Requeueing.

pub async fn a_failed_job_can_be_queued_again(p: impl Place) {
    let store = p.open().await;
    let id = submitted(&store).await;
    for class in [FailureClass::Transient, FailureClass::Device] {
        let attempt = claim(&store, id, LONG).await.unwrap().job.attempt;
        store.fail(id, attempt, &error(class), Retry::After(NONE)).await.unwrap();
    }
    claim(&store, id, NONE).await.unwrap();
    let last = claim(&store, id, LONG).await.unwrap().job.attempt;
    store.heartbeat(id, last, LONG, Stage::Prove, 0.5).await.unwrap();
    store.cancel(id).await.unwrap();
    store.fail(id, last, &error(FailureClass::InvalidProof), Retry::Never).await.unwrap();
    let before = job(&store, id).await;
    assert!(before.cancel_requested && before.history.len() == 4);

    let again = requeued(&store, id, None).await;
    assert_eq!(again, job(&store, id).await);
    assert_eq!((again.state, again.tries, &again.error), (JobState::Queued, Tries::default(), &None));
    assert_eq!((again.stage, again.progress, again.cancel_requested), (None, 0.0, false));
    assert_eq!((again.finished_at, again.lease_expires_at, again.start_by), (None, None, None));
    assert_eq!((again.attempt, again.created_at, again.started_at), (last, before.created_at, before.started_at));
    assert_eq!((again.zkey, again.wasm, again.priority), (before.zkey, before.wasm, before.priority));
    assert_eq!(again.history, before.history);
    assert!(again.run_at >= before.finished_at.unwrap());
    assert_eq!(due_ids(&store).await, [id]);
    assert_eq!(store.finish(id, last, &result()).await.unwrap(), Held::Lost, "the old token is void");
    let claim = claim(&store, id, LONG).await.unwrap();
    assert_eq!((claim.job.attempt, sent(&claim)), (last.numbered(last.number + 1), INPUT));
    assert_eq!(store.finish(id, claim.job.attempt, &result()).await.unwrap(), HELD);
    assert_eq!(inputs(&store).await, 0);
}

pub async fn only_failed_and_cancelled_jobs_are_queued_again(p: impl Place) {
    let store = p.open().await;
    let queued = submitted(&store).await;
    let (running, _) = claimed(&store, LONG).await;
    let (done, attempt) = claimed(&store, LONG).await;
    store.finish(done, attempt, &result()).await.unwrap();
    for input in [None, Some(instead(plain(b"other")))] {
        for (id, state) in [(queued, JobState::Queued), (running, JobState::Running), (done, JobState::Done)] {
            let before = job(&store, id).await;
            assert_eq!(store.requeue(id, input, None).await.unwrap(), Requeued::Not(state));
            assert_eq!(job(&store, id).await, before);
        }
        assert_eq!(store.requeue(JobId::new(), input, None).await.unwrap(), Requeued::Unknown);
    }
    assert_eq!(inputs(&store).await, 2);
    assert_eq!(sent(&claim(&store, queued, LONG).await.unwrap()), INPUT);
}

pub async fn a_job_whose_input_is_gone_needs_another(p: impl Place) {
    let store = p.open().await;
    let cancelled = submitted(&store).await;
    store.cancel(cancelled).await.unwrap();
    let bad = failed(&store, FailureClass::BadInput).await;
    for id in [cancelled, bad] {
        let before = job(&store, id).await;
        assert_eq!(store.requeue(id, None, None).await.unwrap(), Requeued::InputGone);
        assert_eq!(job(&store, id).await, before);
        let again = requeued(&store, id, Some(instead(Input { bytes: b"another", key: "k2" }))).await;
        assert_eq!((again.state, again.cancel_requested), (JobState::Queued, false));
        let claim = claim(&store, id, LONG).await.unwrap();
        assert_eq!((sent(&claim), claim.input_key.as_str()), (&b"another"[..], "k2"));
    }
}

pub async fn a_given_input_replaces_the_one_that_is_held(p: impl Place) {
    let store = p.open_with(keeping(Duration::from_millis(1))).await;
    let id = failed(&store, FailureClass::Device).await;
    requeued(&store, id, Some(instead(Input { bytes: b"another", key: "k2" }))).await;
    assert_eq!(store.inputs_held().await.unwrap(), [("k2".to_owned(), 1)]);
    tokio::time::sleep(Duration::from_millis(5)).await;
    assert_eq!(store.sweep(SWEEP).await.unwrap(), Swept::default(), "it lasts until the job ends");
    assert_eq!(sent(&claim(&store, id, LONG).await.unwrap()), b"another");
}

pub async fn a_job_is_what_its_given_input_asks_for(p: impl Place) {
    let store = p.open().await;
    store.put_circuit(&circuit("c", 1)).await.unwrap();
    let mut first = NewJob { idempotency_key: Some(key("key")), body: ContentHash::of(INPUT), ..new_job("c") };
    let id = submit(&store, &first).await;
    store.cancel(id).await.unwrap();
    requeued(&store, id, Some(instead(plain(b"another")))).await;
    first.id = JobId::new();
    let repeat = |new: NewJob, input: &'static [u8]| {
        let store = &store;
        async move { store.submit(&new, plain(input)).await }
    };
    match repeat(first.clone(), INPUT).await {
        Err(StoreError::Conflict { id: there, .. }) => assert_eq!(there, id, "it would get a proof of something else"),
        other => panic!("expected a conflict, got {other:?}"),
    }
    match repeat(NewJob { body: ContentHash::of(b"another"), ..first }, b"another").await {
        Ok(Submitted::Existing(job)) => assert_eq!(job.id, id),
        other => panic!("expected the job, got {other:?}"),
    }
}

pub async fn a_job_that_nothing_repeats_says_nothing_of_its_new_input(p: impl Place) {
    let store = p.open().await;
    store.put_circuit(&circuit("c", 1)).await.unwrap();
    let new = new_job("c");
    let new = NewJob { body: NewJob::unrepeatable(new.id), ..new };
    let id = submit(&store, &new).await;
    store.cancel(id).await.unwrap();
    requeued(&store, id, Some(instead(plain(b"another")))).await;
    // If the hash of a guessed input matched, the guess would be confirmed.
    let guess = store.submit(&NewJob { body: ContentHash::of(b"another"), ..new.clone() }, plain(b"another")).await;
    assert!(matches!(guess, Err(StoreError::Conflict { .. })), "{guess:?}");
    let same = store.submit(&new, plain(INPUT)).await;
    assert!(matches!(same, Ok(Submitted::Existing(_))), "{same:?}");
}

pub async fn a_rejected_job_queued_again_takes_the_circuit_of_now(p: impl Place) {
    let store = p.open().await;
    let new = new_job("c");
    store.reject(&new, &error(FailureClass::BadInput)).await.unwrap();
    assert_eq!(store.requeue(new.id, None, None).await.unwrap(), Requeued::InputGone);
    match store.requeue(new.id, Some(instead(plain(INPUT))), None).await {
        Err(StoreError::UnknownCircuit(c)) => assert_eq!(c, name("c")),
        other => panic!("expected UnknownCircuit, got {other:?}"),
    }
    assert_eq!((job(&store, new.id).await.state, inputs(&store).await), (JobState::Failed, 0));
    let circuit = store.put_circuit(&circuit("c", 1)).await.unwrap();
    let again = requeued(&store, new.id, Some(instead(plain(INPUT)))).await;
    assert_eq!((again.zkey, again.wasm), (circuit.zkey, circuit.wasm));
    assert_eq!(sent(&claim(&store, new.id, LONG).await.unwrap()), INPUT);
}

pub async fn a_job_queued_again_may_wait_as_long_as_a_new_one(p: impl Place) {
    let store = p.open().await;
    let id = failed(&store, FailureClass::Device).await;
    tokio::time::sleep(Duration::from_millis(5)).await;
    for input in [None, Some(instead(plain(b"another")))] {
        let Requeued::Yes(again) = store.requeue(id, input, Some(LONG)).await.unwrap() else { panic!("it failed") };
        assert_eq!(*again, job(&store, id).await);
        assert!(again.run_at >= again.created_at);
        assert_eq!(again.start_by, Some(again.run_at + LONG.as_millis() as i64), "from now on");
        assert_eq!(store.sweep(SWEEP).await.unwrap(), Swept::default());
        let attempt = claim(&store, id, LONG).await.unwrap().job.attempt;
        store.fail(id, attempt, &error(FailureClass::Device), Retry::Never).await.unwrap();
    }
    let Requeued::Yes(_) = store.requeue(id, None, Some(NONE)).await.unwrap() else { panic!("it failed") };
    assert!(claim(&store, id, LONG).await.is_none());
    assert_eq!(store.sweep(SWEEP).await.unwrap().expired, [id]);
    let why = job(&store, id).await.error.unwrap();
    assert_eq!(why.message, "no worker began it within 0 s", "since it was queued again");
}

pub async fn a_job_whose_content_is_gone_is_not_queued_again(p: impl Place) {
    let store = p.open().await;
    // Replaced by another key; by another program; and removed. The first content has a program.
    let other_program = prover_worker::model::Circuit { wasm: Some(ContentHash([9; 32])), ..circuit("c", 1) };
    for replaced in [Some(circuit("c", 3)), Some(other_program), None] {
        let kept = failed(&store, FailureClass::Device).await;
        let gone = failed(&store, FailureClass::BadInput).await;
        match &replaced {
            Some(by) => drop(store.put_circuit(by).await.unwrap()),
            None => assert!(store.remove_circuit(&name("c")).await.unwrap()),
        }
        let before = job(&store, gone).await;
        assert_eq!(store.requeue(gone, None, None).await.unwrap(), Requeued::InputGone);
        assert_eq!(
            store.requeue(gone, Some(instead(plain(INPUT))), None).await.unwrap(),
            Requeued::CircuitGone(name("c"))
        );
        assert_eq!(job(&store, gone).await, before);
        // The content that a job with an input needs is kept, and the job is proved with it.
        let again = requeued(&store, kept, None).await;
        assert_eq!((again.zkey, again.wasm), (circuit("c", 1).zkey, circuit("c", 1).wasm));
        store.cancel(kept).await.unwrap();
        // Content registered under another name is just as good.
        store.put_circuit(&circuit("d", 1)).await.unwrap();
        let again = requeued(&store, gone, Some(instead(plain(INPUT)))).await;
        assert_eq!((again.zkey, again.wasm), (before.zkey, before.wasm));
        store.cancel(gone).await.unwrap();
        assert!(store.remove_circuit(&name("d")).await.unwrap());
        purge(&store, &JobState::ALL, NONE, 10).await.unwrap();
        assert_eq!(inputs(&store).await, 0);
    }
}

pub async fn racing_requeues_one_wins(p: impl Place) {
    let handles = [Arc::new(p.open().await), Arc::new(p.open().await)];
    for _ in 0..20 {
        let id = failed(&*handles[0], FailureClass::Device).await;
        let mut tasks = JoinSet::new();
        for n in 0..6_u8 {
            let store = handles[usize::from(n % 2)].clone();
            tasks.spawn(async move { (n, store.requeue(id, Some(instead(plain(&[n; 9]))), None).await.unwrap()) });
        }
        let all = tasks.join_all().await;
        let won: Vec<u8> = all.iter().filter(|(_, r)| matches!(r, Requeued::Yes(_))).map(|(n, _)| *n).collect();
        assert_eq!(won.len(), 1);
        assert!(all.iter().all(|(n, r)| won[0] == *n || *r == Requeued::Not(JobState::Queued)));
        assert_eq!(sent(&claim(&*handles[1], id, LONG).await.unwrap()), [won[0]; 9]);
    }
}

// Purging.

pub async fn ended_jobs_are_forgotten_by_state(p: impl Place) {
    let store = p.open().await;
    let failed = failed(&store, FailureClass::Device).await;
    let cancelled = submitted(&store).await;
    store.cancel(cancelled).await.unwrap();
    let (done, attempt) = claimed(&store, LONG).await;
    store.finish(done, attempt, &result()).await.unwrap();
    let (queued, running) = (submitted(&store).await, claimed(&store, NONE).await.0);
    assert_eq!(inputs(&store).await, 3);
    assert_eq!(purge(&store, &JobState::ALL, LONG, 10).await.unwrap(), [], "they ended just now");
    assert_eq!(purge(&store, &[], NONE, 10).await.unwrap(), []);
    assert_eq!(purge(&store, &[JobState::Queued, JobState::Running], NONE, 10).await.unwrap(), [], "never these");
    assert_eq!(purge(&store, &[JobState::Failed], NONE, 0).await.unwrap(), []);
    let which = Purge { states: &[JobState::Failed], older_than: NONE };
    assert_eq!(store.purgeable(&which, 10, 0).await.unwrap(), [failed]);
    assert_eq!(store.purgeable(&which, 10, 1).await.unwrap(), [], "past the oldest");
    assert_eq!(store.purge(&which, &[done, cancelled]).await.unwrap(), [], "nor others that are given to it");
    assert_eq!(purge(&store, &[JobState::Failed, JobState::Queued], NONE, 10).await.unwrap(), [failed]);
    assert_eq!(inputs(&store).await, 2, "its input goes with it");
    let mut rest = purge(&store, &[JobState::Done, JobState::Cancelled], NONE, 10).await.unwrap();
    rest.sort();
    assert_eq!(rest, [cancelled, done]);
    for id in [failed, cancelled, done] {
        assert_eq!(store.job(id).await.unwrap(), None);
        assert_eq!(store.requeue(id, Some(instead(plain(INPUT))), None).await.unwrap(), Requeued::Unknown);
    }
    let left: Vec<JobId> =
        store.jobs(JobFilter { limit: 10, ..JobFilter::default() }).await.unwrap().iter().map(|j| j.id).collect();
    assert_eq!(left, [running, queued]);
    assert_eq!(sent(&claim(&store, queued, LONG).await.unwrap()), INPUT);
}

pub async fn the_oldest_are_forgotten_first_and_a_bounded_number(p: impl Place) {
    let store = p.open().await;
    let mut ids = Vec::new();
    for _ in 0..5 {
        ids.push(failed(&store, FailureClass::BadInput).await);
        // The clock counts in milliseconds.
        tokio::time::sleep(Duration::from_millis(3)).await;
    }
    for expected in [&ids[..2], &ids[2..4], &ids[4..], &[]] {
        let mut purged = purge(&store, &JobState::ALL, NONE, 2).await.unwrap();
        purged.sort();
        assert_eq!(purged, expected);
    }
}

pub async fn what_is_beyond_the_retention_is_forgotten(p: impl Place) {
    let store = p.open().await;
    let id = failed(&store, FailureClass::Device).await;
    for retention in [LONG, Duration::MAX] {
        assert_eq!(purge(&store, &JobState::ALL, retention, 10).await.unwrap(), []);
    }
    assert_eq!(store.sweep(10).await.unwrap(), Swept::default());
    assert_eq!(purge(&store, &JobState::ALL, NONE, 10).await.unwrap(), [id]);
    assert_eq!((store.job(id).await.unwrap(), inputs(&store).await), (None, 0));
}

pub async fn a_forgotten_jobs_id_and_key_are_free_again(p: impl Place) {
    let store = p.open().await;
    store.put_circuit(&circuit("c", 1)).await.unwrap();
    let mut new = new_job("c");
    new.idempotency_key = Some(key("k"));
    submit(&store, &new).await;
    store.cancel(new.id).await.unwrap();
    purge(&store, &JobState::ALL, NONE, 10).await.unwrap();
    new.body = ContentHash::of(b"something else");
    assert!(matches!(store.submit(&new, plain(b"else")).await.unwrap(), Submitted::Created(_)));
    assert_eq!(sent(&claim(&store, new.id, LONG).await.unwrap()), b"else");
}

// Load.

pub async fn the_load_counts_what_waits_runs_and_has_ended(p: impl Place) {
    let store = p.open().await;
    assert_eq!(store.load().await.unwrap(), Default::default());
    for state in [JobState::Done, JobState::Done, JobState::Failed, JobState::Cancelled] {
        let (id, attempt) = claimed(&store, LONG).await;
        match state {
            JobState::Done => assert_eq!(store.finish(id, attempt, &result()).await.unwrap(), HELD),
            JobState::Failed => {
                store.fail(id, attempt, &error(FailureClass::Device), Retry::Never).await.unwrap();
            }
            _ => {
                store.cancel(id).await.unwrap();
                store.confirm_cancel(id, attempt).await.unwrap();
            }
        }
    }
    let (later, attempt) = claimed(&store, LONG).await;
    store.fail(later, attempt, &error(FailureClass::Transient), Retry::After(LONG)).await.unwrap();
    claimed(&store, LONG).await;
    let load = store.load().await.unwrap();
    assert_eq!((load.queued, load.running, load.ended_last_minute), (1, 1, 3));
    assert_eq!(load.oldest_ms, 0, "nothing that waits could run");
}

pub async fn the_load_tells_how_long_the_oldest_has_waited(p: impl Place) {
    let wait = Duration::from_millis(30);
    for lapsed in [false, true] {
        let store = p.open().await;
        let id = if lapsed { claimed(&store, NONE).await.0 } else { submitted(&store).await };
        let before = Instant::now();
        tokio::time::sleep(wait).await;
        submitted(&store).await;
        let oldest = store.load().await.unwrap().oldest_ms;
        // Measured from its time, not from its submission or the present.
        assert!(oldest >= 25, "{oldest} ms");
        assert!(oldest < before.elapsed().as_millis() as u64 + 60_000, "{oldest} ms");
        for scope in [Scope::Queue, of("c")] {
            store.set_paused(&scope, true).await.unwrap();
            assert_eq!(store.load().await.unwrap().oldest_ms, 0, "what is held back could not run");
            store.set_paused(&scope, false).await.unwrap();
        }
        assert!(store.load().await.unwrap().oldest_ms >= oldest);
        store.cancel(id).await.unwrap();
        while let Some(Due { id, .. }) = store.due(1).await.unwrap().pop() {
            claim(&store, id, LONG).await;
        }
        assert_eq!(store.load().await.unwrap().oldest_ms, 0);
        hurried(&store, NONE).await;
        tokio::time::sleep(Duration::from_millis(2)).await;
        assert_eq!(store.load().await.unwrap().oldest_ms, 0, "one that is overdue could not run");
    }
}

pub async fn content_in_use_is_that_of_jobs_that_may_run_yet(p: impl Place) {
    let (a, b) = (p.open_with(queue("a")).await, p.open_with(queue("b")).await);
    assert_eq!(a.content_in_use().await.unwrap(), []);
    let (one, two) = (circuit("one", 1), circuit("two", 2));
    for c in [&one, &two] {
        a.put_circuit(c).await.unwrap();
    }
    let running = submit(&a, &new_job("one")).await;
    let attempt = claim(&a, running, LONG).await.unwrap().job.attempt;
    let queued = submit(&b, &new_job("one")).await;
    submit(&b, &new_job("two")).await;
    let sorted = |mut content: Vec<ContentHash>| {
        content.sort_by_key(|h| h.0);
        content
    };
    let all = sorted(vec![one.zkey, one.wasm.unwrap(), two.zkey]);
    a.reject(&new_job("nowhere"), &error(FailureClass::BadInput)).await.unwrap();
    assert_eq!(sorted(a.content_in_use().await.unwrap()), all);
    a.finish(running, attempt, &result()).await.unwrap();
    assert_eq!(sorted(a.content_in_use().await.unwrap()), all);
    let attempt = claim(&b, queued, LONG).await.unwrap().job.attempt;
    b.fail(queued, attempt, &error(FailureClass::Transient), Retry::Never).await.unwrap();
    assert_eq!(sorted(a.content_in_use().await.unwrap()), all, "it may be queued again");
    assert!(matches!(b.requeue(queued, None, None).await.unwrap(), Requeued::Yes(_)));
    b.cancel(queued).await.unwrap();
    assert_eq!(a.content_in_use().await.unwrap(), [two.zkey]);
}

pub async fn removable_content_is_known_until_it_is_forgotten(p: impl Place) {
    let store = p.open().await;
    let removable = async || store.removable_content().await.unwrap();
    let first = circuit("one", 1);
    store.put_circuit(&first).await.unwrap();
    store.put_circuit(&Circuit { n_public: 7, ..first.clone() }).await.unwrap();
    assert_eq!(removable().await, [], "the same content replaces nothing");
    let without_program = Circuit { wasm: None, ..first.clone() };
    store.put_circuit(&without_program).await.unwrap();
    store.put_circuit(&first).await.unwrap();
    store.remove_circuit(&first.name).await.unwrap();
    store.remove_circuit(&first.name).await.unwrap();
    let all = removable().await;
    let contents: Vec<_> = all.iter().map(|f| (f.name.clone(), f.content)).collect();
    let expected = [&first, &without_program, &first].map(|c| (c.name.clone(), c.content()));
    assert_eq!(contents, expected);
    store.forget_removable(&all[1]).await.unwrap();
    store.forget_removable(&all[1]).await.unwrap();
    assert_eq!(removable().await, [all[0].clone(), all[2].clone()]);
    // Nor is that of a circuit that could not be removed.
    store.put_circuit(&first).await.unwrap();
    submit(&store, &new_job("one")).await;
    assert!(matches!(store.remove_circuit(&first.name).await, Err(StoreError::InUse { .. })));
    assert_eq!(removable().await.len(), 2);

    // What was imported is left alone for a while.
    store.note_imported(&first.name, without_program.content(), LONG).await.unwrap();
    assert_eq!(removable().await.len(), 2);
    store.note_imported(&first.name, without_program.content(), NONE).await.unwrap();
    assert_eq!(removable().await[2].content, without_program.content());
}

// Waiting for changes.

/// Asserts that waits of `store` end because of `change`, well before their time. Only for stores that are notified.
async fn wakes<S: Store, T>(store: &Arc<S>, what: &str, change: impl Future<Output = T>) -> T {
    // So that earlier changes are known.
    store.changed(NONE).await.unwrap();
    let mut waits = std::pin::pin!(futures::future::join_all((0..3).map(|_| store.changed(LONG))));
    // All waits begin before the change: one that begins after another was notified of it waits for the next.
    let begun = std::future::poll_fn(|context| Poll::Ready(waits.as_mut().poll(context))).await;
    let wakened = async {
        match begun {
            Poll::Ready(wakened) => wakened,
            Poll::Pending => tokio::time::timeout(HANG, waits).await.unwrap_or_else(|_| panic!("{what} wakes nobody")),
        }
    };
    let (done, wakened) = tokio::join!(change, wakened);
    wakened.into_iter().for_each(|wait| wait.unwrap());
    done
}

pub async fn a_change_by_any_handle_ends_every_wait(p: impl Place) {
    let (a, b) = (Arc::new(p.open().await), Arc::new(p.open().await));
    a.put_circuit(&circuit("c", 1)).await.unwrap();
    for writer in [&a, &b] {
        let id = wakes(&a, "a submit", submitted(&**writer)).await;
        let attempt = claim(&**writer, id, LONG).await.unwrap().job.attempt;
        wakes(&a, "a hand-back", writer.release(id, attempt)).await.unwrap();
        let attempt = claim(&**writer, id, LONG).await.unwrap().job.attempt;
        let why = error(FailureClass::Device);
        wakes(&a, "a retry", writer.fail(id, attempt, &why, Retry::After(NONE))).await.unwrap();
        let attempt = claim(&**writer, id, LONG).await.unwrap().job.attempt;
        writer.fail(id, attempt, &why, Retry::Never).await.unwrap();
        wakes(&a, "a requeue", writer.requeue(id, None, None)).await.unwrap();
        for scope in [Scope::Queue, of("c")] {
            writer.set_paused(&scope, true).await.unwrap();
            wakes(&a, "a resume", writer.set_paused(&scope, false)).await.unwrap();
        }
    }
}

pub async fn a_wait_ends_after_its_time(p: impl Place) {
    let store = p.open().await;
    submitted(&store).await;
    // Earlier changes may end some waits at once, but not forever.
    let mut rounds = 0;
    loop {
        let start = Instant::now();
        tokio::time::timeout(HANG, store.changed(Duration::from_millis(50))).await.unwrap().unwrap();
        if start.elapsed() >= Duration::from_millis(50) {
            break;
        }
        rounds += 1;
        assert!(rounds < 10, "nothing happens and yet every wait ends at once");
        store.due(10).await.unwrap();
    }
}

pub async fn a_change_before_a_wait_is_not_missed(p: impl Place) {
    let (a, b) = (p.open().await, p.open().await);
    a.changed(NONE).await.unwrap();
    submitted(&b).await;
    tokio::time::sleep(Duration::from_millis(150)).await;
    tokio::time::timeout(HANG, a.changed(LONG)).await.expect("it was told while nobody waited").unwrap();
}
