//! Random operations by two workers against a model of the rules that fits on a page; after each, answers and all that
//! can be seen of the store are compared. Leases are over at once or outlast the test, and so are delays, so that no
//! clock plays a part.

use std::collections::BTreeMap;

use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use prover_worker::model::{
    Attempt, Circuit, ContentHash, FailureClass, Job, JobError, JobId, JobState, NewJob, Priority, Stage, Tries,
};
use prover_worker::store::{Cancelled, Counts, Held, JobFilter, Retry, Store, StoreError, Submitted};

use crate::conformance::Place;
use crate::fixtures::*;

const SLOTS: usize = 4;
const CIRCUITS: [&str; 2] = ["a", "b"];

#[derive(Clone, Debug)]
enum Op {
    PutCircuit { circuit: usize, content: u8 },
    RemoveCircuit { circuit: usize },
    Submit { slot: usize, circuit: usize, key: Option<u8>, body: u8, priority: i16 },
    Claim { slot: usize, worker: usize, lapses: bool },
    Held { slot: usize, worker: usize, change: Change },
    Cancel { slot: usize },
}

/// What a worker does with the token it got last for a slot, which may be long out of date.
#[derive(Clone, Debug)]
enum Change {
    Heartbeat { lapses: bool, stage: Stage, progress: f32 },
    Finish,
    Fail { class: FailureClass, retry: Option<bool> },
    Release,
    ConfirmCancel,
}

fn op() -> impl Strategy<Value = Op> {
    let (slot, circuit, worker) = (0..SLOTS, 0..CIRCUITS.len(), 0..2_usize);
    let change = prop_oneof![
        3 => (any::<bool>(), prop::sample::select(&Stage::ALL[..]), 0..=8_u8)
            .prop_map(|(lapses, stage, n)| Change::Heartbeat { lapses, stage, progress: f32::from(n) / 8.0 }),
        2 => Just(Change::Finish),
        4 => (prop::sample::select(&FailureClass::ALL[..]), prop::option::weighted(0.8, prop::bool::weighted(0.2)))
            .prop_map(|(class, retry)| Change::Fail { class, retry }),
        2 => Just(Change::Release),
        2 => Just(Change::ConfirmCancel),
    ];
    prop_oneof![
        2 => (circuit.clone(), 0..4_u8).prop_map(|(circuit, content)| Op::PutCircuit { circuit, content }),
        1 => circuit.clone().prop_map(|circuit| Op::RemoveCircuit { circuit }),
        6 => (slot.clone(), circuit, prop::option::weighted(0.3, 0..2_u8), prop::bool::weighted(0.2), -1..=1_i16)
            .prop_map(|(slot, circuit, key, other, priority)| {
                Op::Submit { slot, circuit, key, body: u8::from(other), priority }
            }),
        8 => (slot.clone(), worker.clone(), any::<bool>())
            .prop_map(|(slot, worker, lapses)| Op::Claim { slot, worker, lapses }),
        10 => (slot.clone(), worker, change).prop_map(|(slot, worker, change)| Op::Held { slot, worker, change }),
        2 => slot.prop_map(|slot| Op::Cancel { slot }),
    ]
}

/// A job of the model: what the store shows of it, times reduced to whether they are there, and what it does not.
#[derive(Clone, Debug, PartialEq)]
struct Seen {
    id: JobId,
    circuit: String,
    zkey: ContentHash,
    wasm: Option<ContentHash>,
    state: JobState,
    stage: Option<Stage>,
    progress: f32,
    attempt: u32,
    tries: Tries,
    priority: Priority,
    key: Option<String>,
    worker: Option<usize>,
    error: Option<JobError>,
    done: bool,
    cancel_requested: bool,
    started: bool,
    finished: bool,
    leased: bool,
}

fn seen(job: &Job) -> Seen {
    let worker = job.worker.as_ref().map(|w| (0..2).find(|n| *w == worker(*n)).unwrap());
    assert!(job.result.is_none() || job.result == Some(result()));
    Seen {
        id: job.id,
        circuit: job.circuit.to_string(),
        zkey: job.zkey,
        wasm: job.wasm,
        state: job.state,
        stage: job.stage,
        progress: job.progress,
        attempt: job.attempt.0,
        tries: job.tries,
        priority: job.priority,
        key: job.idempotency_key.clone(),
        worker,
        error: job.error.clone(),
        done: job.result.is_some(),
        cancel_requested: job.cancel_requested,
        started: job.started_at.is_some(),
        finished: job.finished_at.is_some(),
        leased: job.lease_expires_at.is_some(),
    }
}

#[derive(Clone, Debug)]
struct Entry {
    job: Seen,
    body: u8,
    /// Its lease has lapsed, or its time has not come.
    lapsed: bool,
    later: bool,
    /// Its input is held.
    input: bool,
}

impl Entry {
    fn is_due(&self) -> bool {
        match self.job.state {
            JobState::Queued => !self.later,
            JobState::Running => self.lapsed,
            _ => false,
        }
    }

    fn leave(&mut self, state: JobState) {
        let job = &mut self.job;
        job.state = state;
        job.stage = None;
        job.leased = false;
        job.finished = state.is_final();
        self.input = match state {
            JobState::Failed => job.error.as_ref().is_some_and(|e| e.class != FailureClass::BadInput),
            state => !state.is_final(),
        };
        if state == JobState::Queued {
            job.progress = 0.0;
        }
    }
}

#[derive(Default)]
struct Model {
    circuits: BTreeMap<&'static str, Circuit>,
    /// In the order of submission.
    jobs: Vec<Entry>,
}

/// An answer, of either side, in words that compare.
type Answer = String;

impl Model {
    fn entry(&mut self, id: JobId) -> Option<&mut Entry> {
        self.jobs.iter_mut().find(|e| e.job.id == id)
    }

    fn submit(&mut self, new: &NewJob, body: u8) -> Answer {
        let by_id = self.jobs.iter().find(|e| e.job.id == new.id);
        let by_key = self.jobs.iter().find(|e| e.job.key.is_some() && e.job.key == new.idempotency_key);
        if let Some(same) = by_id.or(by_key) {
            return if same.body == body {
                format!("existing {}", same.job.id)
            } else {
                format!("conflict {}", same.job.id)
            };
        }
        let Some(c) = self.circuits.get(new.circuit.as_str()) else { return "unknown circuit".into() };
        self.jobs.push(Entry {
            job: Seen {
                id: new.id,
                circuit: new.circuit.to_string(),
                zkey: c.zkey,
                wasm: c.wasm,
                state: JobState::Queued,
                stage: None,
                progress: 0.0,
                attempt: 0,
                tries: Tries::default(),
                priority: new.priority,
                key: new.idempotency_key.clone(),
                worker: None,
                error: None,
                done: false,
                cancel_requested: false,
                started: false,
                finished: false,
                leased: false,
            },
            body,
            lapsed: false,
            later: false,
            input: true,
        });
        format!("created {}", new.id)
    }

    fn claim(&mut self, id: JobId, worker: usize, lapses: bool) -> Option<u32> {
        let entry = self.entry(id).filter(|e| e.is_due())?;
        if entry.job.cancel_requested {
            entry.leave(JobState::Cancelled);
            return None;
        }
        let job = &mut entry.job;
        job.tries.lost += u32::from(job.state == JobState::Running);
        job.state = JobState::Running;
        job.attempt += 1;
        job.worker = Some(worker);
        job.stage = Some(Stage::Load);
        job.progress = 0.0;
        job.started = true;
        job.leased = true;
        entry.lapsed = lapses;
        Some(job.attempt)
    }

    fn held(&mut self, id: JobId, attempt: u32, change: &Change) -> Held {
        let holds = |e: &&mut Entry| e.job.state == JobState::Running && e.job.attempt == attempt;
        let Some(entry) = self.entry(id).filter(holds) else { return Held::Lost };
        let cancel = entry.job.cancel_requested;
        let again = if cancel { JobState::Cancelled } else { JobState::Queued };
        match change {
            Change::Heartbeat { lapses, stage, progress } => {
                entry.lapsed = *lapses;
                entry.job.stage = Some(*stage);
                entry.job.progress = *progress;
            }
            Change::Finish => {
                entry.leave(JobState::Done);
                entry.job.progress = 1.0;
                entry.job.error = None;
                entry.job.done = true;
            }
            Change::Fail { class, retry } => {
                entry.job.error = Some(error(*class));
                match class {
                    FailureClass::BadInput => {}
                    FailureClass::Transient | FailureClass::Timeout => entry.job.tries.transient += 1,
                    FailureClass::Device | FailureClass::InvalidProof => entry.job.tries.device += 1,
                    FailureClass::LostWorker => entry.job.tries.lost += 1,
                }
                entry.leave(if retry.is_some() { again } else { JobState::Failed });
                entry.later = *retry == Some(true);
            }
            Change::Release => {
                entry.leave(again);
                entry.later = false;
            }
            Change::ConfirmCancel if cancel => entry.leave(JobState::Cancelled),
            Change::ConfirmCancel => {}
        }
        Held::Yes { cancel }
    }

    fn cancel(&mut self, id: JobId) -> Cancelled {
        let Some(entry) = self.entry(id) else { return Cancelled::Unknown };
        match entry.job.state {
            JobState::Queued => {
                entry.leave(JobState::Cancelled);
                Cancelled::Now
            }
            JobState::Running => {
                entry.job.cancel_requested = true;
                Cancelled::Requested
            }
            state => Cancelled::TooLate(state),
        }
    }

    fn remove_circuit(&mut self, name: &str) -> Answer {
        let unfinished = self.jobs.iter().filter(|e| e.job.circuit == name && !e.job.state.is_final()).count();
        match self.circuits.contains_key(name) {
            false => "false".into(),
            true if unfinished > 0 => format!("in use by {unfinished}"),
            true => {
                self.circuits.remove(name);
                "true".into()
            }
        }
    }

    fn due(&self) -> Vec<(JobId, Priority)> {
        let mut due: Vec<_> = self.jobs.iter().filter(|e| e.is_due()).map(|e| (e.job.id, e.job.priority)).collect();
        due.sort_by_key(|(_, p)| std::cmp::Reverse(*p));
        due
    }

    fn counts(&self) -> Counts {
        let of = |s| self.jobs.iter().filter(|e| e.job.state == s).count() as u64;
        Counts {
            queued: of(JobState::Queued),
            running: of(JobState::Running),
            done: of(JobState::Done),
            failed: of(JobState::Failed),
            cancelled: of(JobState::Cancelled),
        }
    }
}

fn input(body: u8) -> Vec<u8> {
    vec![body + 1; 10]
}

async fn submit_answer(store: &impl Store, new: &NewJob, body: u8) -> Answer {
    match store.submit(new, plain(&input(body))).await {
        Ok(Submitted::Created(job)) => format!("created {}", job.id),
        Ok(Submitted::Existing(job)) => format!("existing {}", job.id),
        Err(StoreError::Conflict { id, .. }) => format!("conflict {id}"),
        Err(StoreError::UnknownCircuit(_)) => "unknown circuit".into(),
        Err(e) => panic!("{e}"),
    }
}

async fn run(place: &impl Place, ops: &[Op]) {
    // Each worker is a process of its own.
    let stores = [place.open().await, place.open().await];
    let ids: [JobId; SLOTS] = std::array::from_fn(|_| JobId::new());
    let mut tokens = [[0_u32; SLOTS]; 2];
    let mut model = Model::default();
    for (step, op) in ops.iter().enumerate() {
        let store = &stores[step % 2];
        match op {
            Op::PutCircuit { circuit: c, content } => {
                let mut put = store.put_circuit(&circuit(CIRCUITS[*c], *content)).await.unwrap();
                put.created_at = 0;
                model.circuits.insert(CIRCUITS[*c], put);
            }
            Op::RemoveCircuit { circuit: c } => {
                let answer = match store.remove_circuit(&name(CIRCUITS[*c])).await {
                    Ok(removed) => removed.to_string(),
                    Err(StoreError::InUse { unfinished, .. }) => format!("in use by {unfinished}"),
                    Err(e) => panic!("{e}"),
                };
                assert_eq!(answer, model.remove_circuit(CIRCUITS[*c]), "{step}: {op:?}");
            }
            Op::Submit { slot, circuit, key, body, priority } => {
                let mut new = new_job(CIRCUITS[*circuit]);
                new.id = ids[*slot];
                new.idempotency_key = key.map(|k| format!("key {k}"));
                new.body = ContentHash::of(&[*body]);
                new.priority = Priority(*priority);
                assert_eq!(submit_answer(store, &new, *body).await, model.submit(&new, *body), "{step}: {op:?}");
            }
            Op::Claim { slot, worker: w, lapses } => {
                let lease = if *lapses { NONE } else { LONG };
                let claim = stores[*w].claim(ids[*slot], &worker(*w), lease).await.unwrap();
                let expected = model.claim(ids[*slot], *w, *lapses);
                assert_eq!(claim.as_ref().map(|c| c.job.attempt.0), expected, "{step}: {op:?}");
                if let Some(c) = claim {
                    tokens[*w][*slot] = c.job.attempt.0;
                    let entry = model.entry(ids[*slot]).unwrap();
                    assert_eq!(*c.input, input(entry.body));
                    assert_eq!(seen(&c.job), entry.job);
                }
            }
            Op::Held { slot, worker: w, change } => {
                let (store, id, token) = (&stores[*w], ids[*slot], tokens[*w][*slot]);
                let attempt = Attempt(token);
                let held = match change {
                    Change::Heartbeat { lapses, stage, progress } => {
                        let lease = if *lapses { NONE } else { LONG };
                        store.heartbeat(id, attempt, lease, *stage, *progress).await
                    }
                    Change::Finish => store.finish(id, attempt, &result()).await,
                    Change::Fail { class, retry } => {
                        let retry = retry.map_or(Retry::Never, |later| Retry::After(if later { LONG } else { NONE }));
                        store.fail(id, attempt, &error(*class), retry).await
                    }
                    Change::Release => store.release(id, attempt).await,
                    Change::ConfirmCancel => store.confirm_cancel(id, attempt).await,
                };
                assert_eq!(held.unwrap(), model.held(id, token, change), "{step}: {op:?}");
            }
            Op::Cancel { slot } => {
                let id = ids[*slot];
                assert_eq!(store.cancel(id).await.unwrap(), model.cancel(id), "{step}: {op:?}");
            }
        }

        // Looked at by the other one.
        let store = &stores[(step + 1) % 2];
        let mut jobs = store.jobs(JobFilter { limit: 100, ..JobFilter::default() }).await.unwrap();
        jobs.reverse();
        let jobs: Vec<Seen> = jobs.iter().map(seen).collect();
        let expected: Vec<Seen> = model.jobs.iter().map(|e| e.job.clone()).collect();
        assert_eq!(jobs, expected, "{step}: {op:?}");
        assert_eq!(store.due(100).await.unwrap(), model.due(), "{step}: {op:?}");
        let counts = model.counts();
        assert_eq!(store.counts().await.unwrap(), counts, "{step}: {op:?}");
        let held = model.jobs.iter().filter(|e| e.input).count() as u64;
        assert_eq!(inputs(store).await, held, "{step}: {op:?}");
        let mut circuits = store.circuits().await.unwrap();
        circuits.iter_mut().for_each(|c| c.created_at = 0);
        assert!(circuits.iter().eq(model.circuits.values()), "{step}: {op:?}");
    }
}

fn follows_the_model<P: Place>(fresh: impl Fn() -> P) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    // Half of the cases start with something to work on.
    let start = (any::<bool>(), prop::collection::vec(op(), 1..60)).prop_map(|(warm, mut ops)| {
        if warm {
            ops.insert(0, Op::PutCircuit { circuit: 0, content: 1 });
            for slot in 0..SLOTS {
                ops.insert(1, Op::Submit { slot, circuit: 0, key: None, body: 0, priority: 0 });
            }
        }
        ops
    });
    let config = Config { cases: 60, failure_persistence: None, ..Config::default() };
    TestRunner::new(config)
        .run(&start, |ops| {
            runtime.block_on(run(&fresh(), &ops));
            Ok(())
        })
        .unwrap();
}

#[test]
fn sqlite_follows_the_model() {
    follows_the_model(crate::sqlite::SqliteFile::new);
}
