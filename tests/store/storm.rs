//! Everything at once: three handles of one store, and many tasks that apply random operations to a few jobs, in queues
//! and circuits that are paused and removed meanwhile. No call may fail except as the contract says, every token is
//! given once and ends a job once, and the result is consistent.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use prover_worker::model::{Attempt, ContentHash, FailureClass, JobError, JobId, JobResult, JobState, NewJob, Stage};
use prover_worker::store::{Held, JobFilter, Replacement, Requeued, Retry, Scope, Store, StoreError, StoreSettings};
use tokio::task::JoinSet;

use crate::conformance::Place;
use crate::fixtures::*;

const JOBS: usize = 30;
const TASKS: u64 = 32;
const CIRCUITS: [&str; 3] = ["a", "b", "c"];
/// Enough for each pair of statements to meet many times.
const STEPS: u64 = 150;

#[derive(Clone, Copy)]
enum Op {
    Submit,
    Claim,
    Change,
    Cancel,
    Requeue,
    Pause,
    Sweep,
    Purge,
    ReplaceCircuit,
    Due,
    Load,
    Reject,
}

/// How often each operation comes, in percent.
const WEIGHTS: [(u64, Op); 12] = [
    (20, Op::Submit),
    (30, Op::Claim),
    (25, Op::Change),
    (7, Op::Cancel),
    (6, Op::Requeue),
    (2, Op::Pause),
    (4, Op::Sweep),
    (2, Op::Purge),
    (1, Op::ReplaceCircuit),
    (1, Op::Due),
    (1, Op::Load),
    (1, Op::Reject),
];

impl Op {
    fn draw(dice: &mut Dice) -> Self {
        let mut roll = dice.of(WEIGHTS.iter().map(|(weight, _)| weight).sum());
        for (weight, op) in WEIGHTS {
            if roll < weight {
                return op;
            }
            roll -= weight;
        }
        unreachable!("the roll is less than the sum of the weights")
    }
}

/// A deterministic source of random-looking numbers.
struct Dice(u64);

impl Dice {
    fn of(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 32) % n
    }
}

#[derive(Default)]
struct Seen {
    /// Tokens that claims gave, by input and attempt.
    given: HashSet<(u64, u32)>,
    /// Tokens that ended an attempt.
    ended: HashMap<(u64, u32), &'static str>,
    held: Vec<(JobId, Attempt, u64)>,
    requeued: HashSet<JobId>,
    ops: HashMap<&'static str, u64>,
}

struct Storm<S> {
    stores: Vec<S>,
    ids: Vec<Mutex<JobId>>,
    next: AtomicU64,
    seen: Mutex<Seen>,
    /// A purged job must not return under its id, because its tokens would.
    forgetting: tokio::sync::RwLock<()>,
}

fn input_of(id: JobId, n: u64) -> Vec<u8> {
    format!("{id} {n}").into_bytes()
}

fn expected(e: &StoreError) -> bool {
    matches!(e, StoreError::UnknownCircuit(_) | StoreError::Conflict { .. } | StoreError::InUse { .. })
}

impl<S: Store> Storm<S> {
    fn note(&self, what: &'static str) {
        *self.seen.lock().unwrap().ops.entry(what).or_default() += 1;
    }

    fn end(&self, token: (u64, u32), how: &'static str, held: Held) {
        if let Held::Yes { .. } = held {
            let before = self.seen.lock().unwrap().ended.insert(token, how);
            // These two leave nothing of their own, and are recognised by the state of the job.
            let alike = |how| matches!(how, "release" | "confirm");
            let repeated = before.is_some_and(alike) && alike(how);
            assert!(before.is_none() || repeated, "token {token:?} ended an attempt by {before:?}, now by {how}");
            self.note(how);
        }
    }

    async fn step(&self, dice: &mut Dice) -> Result<(), StoreError> {
        let store = &self.stores[dice.of(self.stores.len() as u64) as usize];
        let slot = dice.of(JOBS as u64) as usize;
        let circuit = CIRCUITS[slot % CIRCUITS.len()];
        match Op::draw(dice) {
            Op::Submit => self.submit(store, slot, dice).await,
            Op::Claim => self.claim(store, slot, dice).await,
            Op::Change => self.change(store, dice).await,
            Op::Cancel => store.cancel(self.id(slot)).await.map(drop),
            Op::Requeue => self.requeue(store, slot, dice).await,
            Op::Pause => self.pause(store, circuit, dice).await,
            Op::Sweep => self.sweep(store).await,
            Op::Purge => self.purge(store).await,
            Op::ReplaceCircuit => self.replace_circuit(store, circuit, dice).await,
            Op::Due => store.due(100).await.map(drop),
            Op::Load => store.load().await.map(drop),
            Op::Reject => self.reject(store, slot).await,
        }
    }

    /// Returns a text that no other call has, because one that is repeated is recognised.
    fn once(&self) -> String {
        self.next.fetch_add(1, Ordering::SeqCst).to_string()
    }

    fn id(&self, slot: usize) -> JobId {
        *self.ids[slot].lock().unwrap()
    }

    async fn submit(&self, store: &S, slot: usize, dice: &mut Dice) -> Result<(), StoreError> {
        let _kept = self.forgetting.read().await;
        let id = self.id(slot);
        let n = self.next.fetch_add(1, Ordering::SeqCst);
        let key = (dice.of(3) == 0).then(|| key(&format!("key {}", slot / 2)));
        let within = (dice.of(6) == 0).then(|| Duration::from_millis(dice.of(20)));
        let body = ContentHash::of(&[(slot / 2) as u8]);
        let circuit = CIRCUITS[slot % CIRCUITS.len()];
        let new = NewJob { id, idempotency_key: key, body, start_within: within, ..new_job(circuit) };
        store.submit(&new, plain(&input_of(id, n))).await?;
        self.note("submit");
        Ok(())
    }

    async fn reject(&self, store: &S, slot: usize) -> Result<(), StoreError> {
        let _kept = self.forgetting.read().await;
        let new = NewJob { id: self.id(slot), ..new_job(CIRCUITS[slot % CIRCUITS.len()]) };
        store.reject(&new, &error(FailureClass::BadInput)).await.map(drop)
    }

    async fn claim(&self, store: &S, slot: usize, dice: &mut Dice) -> Result<(), StoreError> {
        let id = self.id(slot);
        let lease = if dice.of(3) == 0 { Duration::from_millis(dice.of(10)) } else { LONG };
        let worker = worker(dice.of(9) as usize);
        let Some(claim) = store.claim(id, &worker, lease).await? else { return Ok(()) };
        let text = String::from_utf8(sent(&claim).to_vec()).unwrap();
        let (of, n) = text.split_once(' ').unwrap();
        assert_eq!(of, id.to_string(), "the input is another job's");
        let token = (n.parse().unwrap(), claim.job.attempt.number);
        let mut seen = self.seen.lock().unwrap();
        assert!(seen.given.insert(token), "token {token:?} of {id} was given twice");
        seen.held.push((id, claim.job.attempt, token.0));
        drop(seen);
        self.note("claim");
        Ok(())
    }

    /// Uses one of the last 20 tokens, which may be out of date.
    async fn change(&self, store: &S, dice: &mut Dice) -> Result<(), StoreError> {
        let some = {
            let seen = self.seen.lock().unwrap();
            let n = seen.held.len() as u64;
            (n > 0).then(|| seen.held[(n - 1 - dice.of(n.min(20))) as usize])
        };
        let Some((id, attempt, n)) = some else { return Ok(()) };
        let token = (n, attempt.number);
        match dice.of(6) {
            0 => {
                store.heartbeat(id, attempt, LONG, Stage::Prove, 0.5).await?;
            }
            1 => {
                let result = JobResult { device: self.once(), ..result() };
                self.end(token, "finish", store.finish(id, attempt, &result).await?);
            }
            2 => {
                let retry = match dice.of(3) {
                    0 => Retry::Never,
                    _ => Retry::After(Duration::ZERO),
                };
                let error = JobError { class: FailureClass::ALL[dice.of(6) as usize], message: self.once() };
                self.end(token, "fail", store.fail(id, attempt, &error, retry).await?);
            }
            3 => self.end(token, "release", store.release(id, attempt).await?),
            _ => {
                let held = store.confirm_cancel(id, attempt).await?;
                if held == HELD_AND_CANCELLED {
                    self.end(token, "confirm", held);
                }
            }
        }
        Ok(())
    }

    async fn requeue(&self, store: &S, slot: usize, dice: &mut Dice) -> Result<(), StoreError> {
        let id = self.id(slot);
        let n = self.next.fetch_add(1, Ordering::SeqCst);
        let bytes = input_of(id, n);
        let other = Replacement { input: plain(&bytes), body: ContentHash::of(&bytes) };
        let input = (dice.of(2) == 0).then_some(other);
        self.seen.lock().unwrap().requeued.insert(id);
        if let Requeued::Yes(_) = store.requeue(id, input, None).await? {
            self.note("requeue");
        }
        Ok(())
    }

    /// Pauses the queue or a circuit for 2 ms.
    async fn pause(&self, store: &S, circuit: &str, dice: &mut Dice) -> Result<(), StoreError> {
        let scope = if dice.of(4) == 0 { Scope::Queue } else { Scope::Circuit(name(circuit)) };
        store.set_paused(&scope, true).await?;
        tokio::time::sleep(Duration::from_millis(2)).await;
        store.set_paused(&scope, false).await?;
        Ok(())
    }

    async fn sweep(&self, store: &S) -> Result<(), StoreError> {
        if !store.sweep(7).await?.expired.is_empty() {
            self.note("expire");
        }
        Ok(())
    }

    async fn purge(&self, store: &S) -> Result<(), StoreError> {
        let _alone = self.forgetting.write().await;
        for gone in purge(store, &JobState::ALL, Duration::from_millis(50), 3).await? {
            self.note("purge");
            for slot in &self.ids {
                let mut id = slot.lock().unwrap();
                if *id == gone {
                    *id = JobId::new();
                }
            }
        }
        Ok(())
    }

    /// Removes a circuit and puts it back with other content.
    async fn replace_circuit(&self, store: &S, of: &str, dice: &mut Dice) -> Result<(), StoreError> {
        match store.remove_circuit(&name(of)).await {
            Ok(true) => self.note("remove"),
            Ok(false) => {}
            Err(StoreError::InUse { .. }) => self.note("in use"),
            Err(e) => return Err(e),
        }
        store.put_circuit(&circuit(of, dice.of(5) as u8)).await.map(drop)
    }
}

pub async fn a_storm_leaves_everything_in_order(p: impl Place) {
    let settings = StoreSettings { keep_failed_inputs: Duration::from_millis(30), ..StoreSettings::default() };
    let mut stores = Vec::new();
    for _ in 0..3 {
        stores.push(p.open_with(settings.clone()).await);
    }
    for c in CIRCUITS {
        stores[0].put_circuit(&circuit(c, 1)).await.unwrap();
    }
    let ids = (0..JOBS).map(|_| Mutex::new(JobId::new())).collect();
    let storm = Arc::new(Storm {
        stores,
        ids,
        next: AtomicU64::new(0),
        seen: Mutex::default(),
        forgetting: Default::default(),
    });
    let long: Option<u64> = std::env::var("STORM_S").ok().and_then(|s| s.parse().ok());
    let began = Instant::now();
    let mut tasks = JoinSet::new();
    for n in 0..TASKS {
        let storm = storm.clone();
        tasks.spawn(async move {
            let mut dice = Dice(0x9e37_79b9_7f4a_7c15 ^ (n + 1).wrapping_mul(0x1234_5678_9abc_def1));
            let mut step = 0;
            while long.map_or(step < STEPS, |s| began.elapsed() < Duration::from_secs(s)) {
                step += 1;
                if let Err(e) = storm.step(&mut dice).await {
                    assert!(expected(&e), "{e}");
                }
            }
            step
        });
    }
    let mut steps = 0;
    while let Some(done) = tasks.join_next().await {
        steps += done.unwrap();
    }
    eprintln!("{steps} steps in {:?}: {:?}", began.elapsed(), storm.seen.lock().unwrap().ops);

    let store = &storm.stores[0];
    let jobs = store.jobs(JobFilter { limit: 1000, ..JobFilter::default() }).await.unwrap();
    let requeued = storm.seen.lock().unwrap().requeued.clone();
    let kept = |j: &&prover_worker::model::Job| !j.state.is_final() || j.state == JobState::Failed;
    let might = jobs.iter().filter(kept).count() as u64;
    let must = jobs.iter().filter(|j| !j.state.is_final()).count() as u64;
    for j in &jobs {
        let j = job(store, j.id).await;
        assert!(j.history.len() <= 50);
        assert!(j.history.windows(2).all(|w| w[0].attempt < w[1].attempt), "{:?}", j.history);
    }
    let held = inputs(store).await;
    assert!((must..=might).contains(&held), "{must} jobs need an input, {might} may have one, {held} are held");
    for j in jobs.iter().filter(|j| !j.state.is_final() && !requeued.contains(&j.id)) {
        assert!(store.circuit(&j.circuit).await.unwrap().is_some(), "{} needs circuit {}", j.id, j.circuit);
    }
    // Every remaining job can still be done.
    for j in jobs.iter().filter(|j| j.state == JobState::Queued) {
        assert!(claim(store, j.id, LONG).await.is_some() || j.start_by.is_some(), "{j:?}");
    }
}
