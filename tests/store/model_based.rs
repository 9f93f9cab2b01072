//! Random operations by two workers, compared with a model of the rules that fits on a page: after each, the answers
//! and everything visible of the store must agree. Leases and delays are over at once or outlast the test, so that no
//! clock plays a part.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use prover_worker::model::{
    Attempt, Circuit, ContentHash, FailureClass, Job, JobError, JobId, JobState, NewJob, Priority, Stage, Tries,
    WorkerId,
};
use prover_worker::store::{
    Cancelled, Counts, Due, Held, JobFilter, Replacement, Requeued, Retry, Scope, Store, StoreError, Submitted, Swept,
};

use crate::conformance::Place;
use crate::fixtures::*;

const SLOTS: usize = 4;
const CIRCUITS: [&str; 2] = ["a", "b"];

#[derive(Clone, Debug)]
enum Op {
    PutCircuit {
        circuit: usize,
        content: u8,
    },
    RemoveCircuit {
        circuit: usize,
    },
    /// `hurry`: must be begun at once, or within a time that outlasts the test.
    Submit {
        slot: usize,
        circuit: usize,
        key: Option<u8>,
        body: u8,
        priority: i16,
        hurry: Option<bool>,
    },
    Reject {
        slot: usize,
        circuit: usize,
        key: Option<u8>,
        body: u8,
    },
    Claim {
        slot: usize,
        worker: usize,
        lapses: bool,
    },
    Held {
        slot: usize,
        worker: usize,
        change: Change,
    },
    Cancel {
        slot: usize,
    },
    Requeue {
        slot: usize,
        body: Option<u8>,
        hurry: Option<bool>,
    },
    /// A circuit, or the queue.
    Pause {
        circuit: Option<usize>,
        paused: bool,
    },
    Sweep,
    Purge {
        states: Vec<JobState>,
    },
}

/// What a worker does with the last token that it got for a slot, which may be long out of date.
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
        6 => (
            (slot.clone(), circuit.clone(), prop::option::weighted(0.3, 0..2_u8), prop::bool::weighted(0.2)),
            (-1..=1_i16, prop::option::weighted(0.3, any::<bool>())),
        )
            .prop_map(|((slot, circuit, key, other), (priority, hurry))| {
                Op::Submit { slot, circuit, key, body: u8::from(other), priority, hurry }
            }),
        1 => (slot.clone(), circuit.clone(), prop::option::weighted(0.3, 0..2_u8), prop::bool::weighted(0.2))
            .prop_map(|(slot, circuit, key, other)| Op::Reject { slot, circuit, key, body: u8::from(other) }),
        8 => (slot.clone(), worker.clone(), any::<bool>())
            .prop_map(|(slot, worker, lapses)| Op::Claim { slot, worker, lapses }),
        10 => (slot.clone(), worker, change).prop_map(|(slot, worker, change)| Op::Held { slot, worker, change }),
        2 => slot.clone().prop_map(|slot| Op::Cancel { slot }),
        4 => (slot, prop::option::weighted(0.4, 0..2_u8), prop::option::weighted(0.3, any::<bool>()))
            .prop_map(|(slot, body, hurry)| Op::Requeue { slot, body, hurry }),
        3 => (prop::option::weighted(0.7, circuit), prop::bool::weighted(0.4))
            .prop_map(|(circuit, paused)| Op::Pause { circuit, paused }),
        2 => Just(Op::Sweep),
        1 => prop::sample::subsequence(&JobState::ALL[..], 0..=3).prop_map(|states| Op::Purge { states }),
    ]
}

/// A job of the model: what the store shows of it, with times reduced to whether they are set.
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
    history: Vec<(u32, usize, FailureClass)>,
    hurried: bool,
    done: bool,
    cancel_requested: bool,
    started: bool,
    finished: bool,
    leased: bool,
}

fn seen(job: &Job) -> Seen {
    let number = |w: &WorkerId| (0..2).find(|n| *w == worker(*n)).unwrap();
    let past = job.history.iter().map(|a| (a.attempt, number(a.worker.as_ref().unwrap()), a.error.class));
    assert!(job.result.is_none() || job.result == Some(result()));
    Seen {
        id: job.id,
        circuit: job.circuit.to_string(),
        zkey: job.zkey,
        wasm: job.wasm,
        state: job.state,
        stage: job.stage,
        progress: job.progress,
        attempt: job.attempt.number,
        tries: job.tries,
        priority: job.priority,
        key: job.idempotency_key.clone(),
        worker: job.worker.as_ref().map(number),
        error: job.error.clone(),
        history: past.collect(),
        hurried: job.start_by.is_some(),
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
    /// Number of its submission: a job that was purged may be submitted again, with the same id.
    submission: usize,
    /// Its lease has lapsed.
    lapsed: bool,
    later: bool,
    /// Its start-by has passed.
    overdue: bool,
    /// The body from which its input is made, if that is held.
    input: Option<u8>,
    /// The failures that holders recorded.
    failures: BTreeSet<(u32, &'static str)>,
}

impl Entry {
    fn was_rejected(&self) -> bool {
        let bad = self.job.error.as_ref().is_some_and(|e| e.class == FailureClass::BadInput);
        self.job.state == JobState::Failed && self.job.attempt == 0 && bad
    }

    fn is_due(&self) -> bool {
        match self.job.state {
            JobState::Queued => !self.later && !self.overdue,
            JobState::Running => self.lapsed,
            _ => false,
        }
    }

    /// Returns the answer to an attempt that does not hold the job: that of an earlier change of the same kind.
    fn recognises(&self, attempt: u32, change: &Change) -> Held {
        let (job, last) = (&self.job, self.job.attempt == attempt);
        let did_not_fail = last && job.history.iter().all(|(failed, ..)| *failed != attempt);
        let cancel = last && job.cancel_requested;
        let yes = match change {
            Change::Heartbeat { .. } => false,
            Change::Finish => last && job.state == JobState::Done,
            Change::Fail { class, .. } => self.failures.contains(&(attempt, class.as_str())),
            Change::Release => did_not_fail && matches!(job.state, JobState::Queued | JobState::Cancelled),
            Change::ConfirmCancel => did_not_fail && job.state == JobState::Cancelled && cancel,
        };
        if yes { Held::Yes { cancel } } else { Held::Lost }
    }

    fn leave(&mut self, state: JobState) {
        let job = &mut self.job;
        job.state = state;
        job.stage = None;
        job.leased = false;
        job.finished = state.is_final();
        let kept = job.error.as_ref().is_some_and(|e| e.class != FailureClass::BadInput);
        if matches!(state, JobState::Done | JobState::Cancelled) || state == JobState::Failed && !kept {
            self.input = None;
        }
        if state == JobState::Queued {
            job.progress = 0.0;
        }
    }
}

#[derive(Default)]
struct Model {
    circuits: BTreeMap<&'static str, Circuit>,
    /// Entries in the order of submission.
    jobs: Vec<Entry>,
    /// Submissions so far.
    submissions: usize,
    paused: BTreeSet<Scope>,
}

/// An answer of either side, as text to compare.
type Answer = String;

impl Model {
    fn entry(&mut self, id: JobId) -> Option<&mut Entry> {
        self.jobs.iter_mut().find(|e| e.job.id == id)
    }

    fn is_paused(&self, entry: &Entry) -> bool {
        self.paused.contains(&Scope::Queue) || self.paused.contains(&Scope::Circuit(name(&entry.job.circuit)))
    }

    fn repeat(&self, new: &NewJob, body: u8) -> Option<Answer> {
        // A rejected job is replaced by another with its id.
        let by_id = self.jobs.iter().find(|e| e.job.id == new.id && !e.was_rejected());
        let keyed = |e: &&Entry| e.job.id != new.id && e.job.key.is_some() && e.job.key == key_text(new);
        let by_key = self.jobs.iter().find(keyed);
        let same = by_id.or(by_key)?;
        let what = if same.body == body { "existing" } else { "conflict" };
        Some(format!("{what} {}", same.job.id))
    }

    /// Adds a new job, replacing a rejected one with its id.
    fn add(&mut self, new: &NewJob, body: u8) -> &mut Entry {
        self.jobs.retain(|e| e.job.id != new.id);
        self.submissions += 1;
        let circuit = self.circuits.get(new.circuit.as_str());
        let entry = Entry {
            job: Seen {
                id: new.id,
                circuit: new.circuit.to_string(),
                zkey: circuit.map_or(NO_KEY, |c| c.zkey),
                wasm: circuit.and_then(|c| c.wasm),
                state: JobState::Queued,
                stage: None,
                progress: 0.0,
                attempt: 0,
                tries: Tries::default(),
                priority: new.priority,
                key: key_text(new),
                worker: None,
                error: None,
                history: Vec::new(),
                hurried: new.start_within.is_some(),
                done: false,
                cancel_requested: false,
                started: false,
                finished: false,
                leased: false,
            },
            body,
            submission: self.submissions,
            lapsed: false,
            later: false,
            overdue: new.start_within == Some(NONE),
            input: Some(body),
            failures: BTreeSet::new(),
        };
        self.jobs.push(entry);
        self.jobs.last_mut().unwrap()
    }

    fn submit(&mut self, new: &NewJob, body: u8) -> Answer {
        if let Some(repeat) = self.repeat(new, body) {
            return repeat;
        }
        if !self.circuits.contains_key(new.circuit.as_str()) {
            return "unknown circuit".into();
        }
        self.add(new, body);
        format!("created {}", new.id)
    }

    fn reject(&mut self, new: &NewJob, body: u8) -> Answer {
        if let Some(repeat) = self.repeat(new, body) {
            return repeat;
        }
        if self.jobs.iter().any(|e| e.job.id == new.id && e.body == body) {
            return format!("existing {}", new.id);
        }
        let entry = self.add(new, body);
        entry.input = None;
        entry.job.error = Some(error(FailureClass::BadInput));
        entry.leave(JobState::Failed);
        format!("created {}", new.id)
    }

    fn requeue(&mut self, id: JobId, body: Option<u8>, hurry: Option<bool>) -> Answer {
        let circuits = self.circuits.clone();
        let Some(entry) = self.entry(id) else { return "unknown".into() };
        if !matches!(entry.job.state, JobState::Failed | JobState::Cancelled) {
            return format!("not {}", entry.job.state);
        }
        let Some(input) = body.or(entry.input) else { return "input gone".into() };
        let now = body.unwrap_or(entry.body);
        if entry.job.zkey == NO_KEY {
            let Some(circuit) = circuits.get(entry.job.circuit.as_str()) else { return "unknown circuit".into() };
            (entry.job.zkey, entry.job.wasm) = (circuit.zkey, circuit.wasm);
        } else if entry.input.is_none() {
            let zkey = circuits.values().any(|c| c.zkey == entry.job.zkey);
            let wasm = entry.job.wasm.is_none() || circuits.values().any(|c| c.wasm == entry.job.wasm);
            if !(zkey && wasm) {
                return format!("{} gone", entry.job.circuit);
            }
        }
        entry.leave(JobState::Queued);
        entry.input = Some(input);
        entry.body = now;
        (entry.later, entry.overdue) = (false, hurry == Some(true));
        let job = &mut entry.job;
        (job.tries, job.error, job.cancel_requested) = (Tries::default(), None, false);
        job.hurried = hurry.is_some();
        "queued".into()
    }

    fn sweep(&mut self) -> Swept {
        let mut expired = Vec::new();
        for entry in self.jobs.iter_mut().filter(|e| e.job.state == JobState::Queued && e.overdue) {
            let message = "no worker began it within 0 s".to_owned();
            entry.job.error = Some(JobError { class: FailureClass::Timeout, message });
            entry.leave(JobState::Failed);
            expired.push(entry.job.id);
        }
        Swept { expired, inputs: 0 }
    }

    fn purge(&mut self, states: &[JobState]) -> Vec<JobId> {
        let goes = |e: &Entry| e.job.state.is_final() && states.contains(&e.job.state);
        let ids = self.jobs.iter().filter(|e| goes(e)).map(|e| e.job.id).collect();
        self.jobs.retain(|e| !goes(e));
        ids
    }

    fn claim(&mut self, id: JobId, worker: usize, lapses: bool) -> Option<u32> {
        let paused = self.jobs.iter().find(|e| e.job.id == id).is_some_and(|e| self.is_paused(e));
        let entry = self.entry(id).filter(|e| e.is_due())?;
        if entry.job.cancel_requested {
            entry.leave(JobState::Cancelled);
            return None;
        }
        if paused {
            return None;
        }
        let job = &mut entry.job;
        if job.state == JobState::Running {
            job.tries.lost += 1;
            job.history.push((job.attempt, job.worker.unwrap(), FailureClass::LostWorker));
        }
        job.hurried = false;
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

    fn held(&mut self, id: JobId, (submission, attempt): (usize, u32), change: &Change) -> Held {
        let Some(entry) = self.entry(id).filter(|e| e.submission == submission) else { return Held::Lost };
        if entry.job.state != JobState::Running || entry.job.attempt != attempt {
            return entry.recognises(attempt, change);
        }
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
                entry.job.history.push((attempt, entry.job.worker.unwrap(), *class));
                entry.failures.insert((attempt, class.as_str()));
                match class {
                    FailureClass::BadInput | FailureClass::Unknown => {}
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

    fn cancel(&mut self, id: JobId) -> Option<Cancelled> {
        let entry = self.entry(id)?;
        Some(match entry.job.state {
            JobState::Queued => {
                entry.leave(JobState::Cancelled);
                Cancelled::Now
            }
            JobState::Running => {
                entry.job.cancel_requested = true;
                Cancelled::Requested
            }
            state => Cancelled::TooLate(state),
        })
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

    fn due(&self) -> Vec<Due> {
        // Under a pause, too, a job that is to be cancelled and whose worker is dead is due: its claim cancels it.
        let goes = |e: &&Entry| !self.is_paused(e) || e.job.cancel_requested;
        let entries = self.jobs.iter().filter(|e| e.is_due()).filter(goes);
        let due = |j: &Seen| Due { id: j.id, priority: j.priority, again: j.attempt > 0 && j.tries.transient < 2 };
        let mut due: Vec<_> = entries.map(|e| due(&e.job)).collect();
        due.sort_by_key(|d| std::cmp::Reverse(d.priority));
        due
    }

    fn content_in_use(&self) -> BTreeSet<[u8; 32]> {
        let may_run = self.jobs.iter().filter(|e| !e.job.state.is_final() || e.input.is_some());
        may_run.flat_map(|e| [Some(e.job.zkey), e.job.wasm]).flatten().map(|h| h.0).collect()
    }

    fn counts(&self) -> Counts {
        let of = |s| self.jobs.iter().filter(|e| e.job.state == s).count() as u64;
        Counts {
            queued: of(JobState::Queued),
            running: of(JobState::Running),
            done: of(JobState::Done),
            failed: of(JobState::Failed),
            cancelled: of(JobState::Cancelled),
            estimated: false,
        }
    }
}

/// Stands for the content of a circuit that did not exist.
const NO_KEY: ContentHash = ContentHash([0; 32]);

fn input(body: u8) -> Vec<u8> {
    vec![body + 1; 10]
}

fn answer(submitted: Result<Submitted, StoreError>) -> Answer {
    match submitted {
        Ok(Submitted::Created(job)) => format!("created {}", job.id),
        Ok(Submitted::Existing(job)) => format!("existing {}", job.id),
        Err(StoreError::Conflict { id, .. }) => format!("conflict {id}"),
        Err(StoreError::UnknownCircuit(_)) => "unknown circuit".into(),
        Err(e) => panic!("{e}"),
    }
}

/// A lease or delay that is over at once, or one that outlasts the test.
fn span(over: bool) -> Duration {
    if over { NONE } else { LONG }
}

/// What a worker holds of a job that it has claimed.
#[derive(Clone, Copy)]
struct Token {
    attempt: Attempt,
    /// As the model counts them.
    submission: usize,
}

/// A store as two worker processes have it open, and the model of it.
struct Run<S> {
    stores: [S; 2],
    ids: [JobId; SLOTS],
    /// The token that each worker got last for each slot.
    tokens: [[Option<Token>; SLOTS]; 2],
    model: Model,
}

impl<S: Store> Run<S> {
    /// Applies `op` to the store, through the handle of worker `by`, and to the model, and compares the answers.
    async fn apply(&mut self, by: usize, op: &Op, at: &str) {
        let (store, model) = (&self.stores[by], &mut self.model);
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
                assert_eq!(answer, model.remove_circuit(CIRCUITS[*c]), "{at}");
            }
            Op::Submit { slot, circuit, key, body, priority, hurry } => {
                let mut new = request(self.ids[*slot], *circuit, *key, *body);
                new.priority = Priority(*priority);
                new.start_within = hurry.map(span);
                let submitted = store.submit(&new, plain(&input(*body))).await;
                assert_eq!(answer(submitted), model.submit(&new, *body), "{at}");
            }
            Op::Reject { slot, circuit, key, body } => {
                let new = request(self.ids[*slot], *circuit, *key, *body);
                let rejected = store.reject(&new, &error(FailureClass::BadInput)).await;
                assert_eq!(answer(rejected), model.reject(&new, *body), "{at}");
            }
            Op::Claim { slot, worker, lapses } => self.claim(*slot, *worker, *lapses, at).await,
            Op::Held { slot, worker, change } => self.change(*slot, *worker, change, at).await,
            Op::Cancel { slot } => {
                let id = self.ids[*slot];
                assert_eq!(store.cancel(id).await.unwrap(), model.cancel(id), "{at}");
            }
            Op::Requeue { slot, body, hurry } => {
                let id = self.ids[*slot];
                let answer = requeued(store, id, *body, *hurry).await;
                assert_eq!(answer, model.requeue(id, *body, *hurry), "{at}");
            }
            Op::Pause { circuit, paused } => {
                let scope = circuit.map_or(Scope::Queue, |c| Scope::Circuit(name(CIRCUITS[c])));
                let changed = store.set_paused(&scope, *paused).await.unwrap();
                let expected = if *paused { model.paused.insert(scope) } else { model.paused.remove(&scope) };
                assert_eq!(changed, expected, "{at}");
            }
            Op::Sweep => {
                let (mut swept, mut expected) = (store.sweep(100).await.unwrap(), model.sweep());
                swept.expired.sort();
                expected.expired.sort();
                assert_eq!(swept, expected, "{at}");
            }
            Op::Purge { states } => {
                let (mut purged, mut expected) = (purge(store, states, NONE, 100).await.unwrap(), model.purge(states));
                purged.sort();
                expected.sort();
                assert_eq!(purged, expected, "{at}");
            }
        }
    }

    async fn claim(&mut self, slot: usize, by: usize, lapses: bool, at: &str) {
        let (id, model) = (self.ids[slot], &mut self.model);
        let claim = self.stores[by].claim(id, &worker(by), span(lapses)).await.unwrap();
        let expected = model.claim(id, by, lapses);
        assert_eq!(claim.as_ref().map(|c| c.job.attempt.number), expected, "{at}");
        if let Some(c) = claim {
            let entry = model.entry(id).unwrap();
            self.tokens[by][slot] = Some(Token { attempt: c.job.attempt, submission: entry.submission });
            assert_eq!(sent(&c), input(entry.input.unwrap()));
            assert_eq!(seen(&c.job), entry.job);
        }
    }

    async fn change(&mut self, slot: usize, by: usize, change: &Change, at: &str) {
        let (store, id) = (&self.stores[by], self.ids[slot]);
        let none = Token { attempt: Attempt { number: 0, submission: 0 }, submission: 0 };
        let Token { attempt, submission } = self.tokens[by][slot].unwrap_or(none);
        let held = match change {
            Change::Heartbeat { lapses, stage, progress } => {
                store.heartbeat(id, attempt, span(*lapses), *stage, *progress).await
            }
            Change::Finish => store.finish(id, attempt, &result()).await,
            Change::Fail { class, retry } => {
                let retry = retry.map_or(Retry::Never, |later| Retry::After(span(!later)));
                store.fail(id, attempt, &error(*class), retry).await
            }
            Change::Release => store.release(id, attempt).await,
            Change::ConfirmCancel => store.confirm_cancel(id, attempt).await,
        };
        assert_eq!(held.unwrap(), self.model.held(id, (submission, attempt.number), change), "{at}");
        let read = store.input(id, attempt).await.unwrap().map(|read| read.to_vec());
        let holds = |e: &&Entry| {
            let of = (e.job.id, e.submission, e.job.attempt, e.job.state);
            of == (id, submission, attempt.number, JobState::Running)
        };
        let held = self.model.jobs.iter().find(holds).map(|e| input(e.input.unwrap()));
        assert_eq!(read, held, "{at}");
    }
}

/// Compares all that can be seen of the store with the model.
async fn compare(store: &impl Store, model: &Model, at: &str) {
    let mut jobs = store.jobs(JobFilter { limit: 100, ..JobFilter::default() }).await.unwrap();
    jobs.reverse();
    for listed in &mut jobs {
        let job = store.job(listed.id).await.unwrap().unwrap();
        assert_eq!(*listed, Job { result: None, history: Vec::new(), ..job.clone() }, "{at}");
        *listed = job;
    }
    let jobs: Vec<Seen> = jobs.iter().map(seen).collect();
    let expected: Vec<Seen> = model.jobs.iter().map(|e| e.job.clone()).collect();
    assert_eq!(jobs, expected, "{at}");
    assert_eq!(store.due(100).await.unwrap(), model.due(), "{at}");
    let counts = model.counts();
    assert_eq!(store.counts().await.unwrap(), counts, "{at}");
    let load = store.load().await.unwrap();
    let expected = (counts.queued, counts.running, counts.done + counts.failed);
    assert_eq!((load.queued, load.running, load.ended_last_minute), expected, "{at}");
    let paused: BTreeSet<Scope> = store.paused().await.unwrap().into_iter().map(|(scope, _)| scope).collect();
    assert_eq!(paused, model.paused, "{at}");
    let needed: BTreeSet<[u8; 32]> = store.content_in_use().await.unwrap().into_iter().map(|h| h.0).collect();
    assert_eq!(needed, model.content_in_use(), "{at}");
    let held = model.jobs.iter().filter(|e| e.input.is_some()).count() as u64;
    assert_eq!(inputs(store).await, held, "{at}");
    let mut circuits = store.circuits().await.unwrap();
    circuits.iter_mut().for_each(|c| c.created_at = 0);
    assert!(circuits.iter().eq(model.circuits.values()), "{at}");
}

fn key_text(new: &NewJob) -> Option<String> {
    new.idempotency_key.clone().map(String::from)
}

/// What a submit or reject asks for.
fn request(id: JobId, circuit: usize, key: Option<u8>, body: u8) -> NewJob {
    NewJob {
        id,
        idempotency_key: key.map(|k| crate::fixtures::key(&format!("key {k}"))),
        body: ContentHash::of(&[body]),
        ..new_job(CIRCUITS[circuit])
    }
}

async fn requeued(store: &impl Store, id: JobId, body: Option<u8>, hurry: Option<bool>) -> Answer {
    let other = body.map(|b| (input(b), ContentHash::of(&[b])));
    let other = other.as_ref().map(|(bytes, body)| Replacement { input: plain(bytes), body: *body });
    match store.requeue(id, other, hurry.map(span)).await {
        Ok(Requeued::Yes(_)) => "queued".into(),
        Ok(Requeued::Not(state)) => format!("not {state}"),
        Ok(Requeued::InputGone) => "input gone".into(),
        Ok(Requeued::CircuitGone(circuit)) => format!("{circuit} gone"),
        Ok(Requeued::Unknown) => "unknown".into(),
        Err(StoreError::UnknownCircuit(_)) => "unknown circuit".into(),
        Err(e) => panic!("{e}"),
    }
}

async fn run(place: &impl Place, ops: &[Op]) {
    let mut run = Run {
        stores: [place.open().await, place.open().await],
        ids: std::array::from_fn(|_| JobId::new()),
        tokens: [[None; SLOTS]; 2],
        model: Model::default(),
    };
    for (step, op) in ops.iter().enumerate() {
        let at = format!("{step}: {op:?}");
        run.apply(step % 2, op, &at).await;
        // Through the handle of the other worker.
        compare(&run.stores[(step + 1) % 2], &run.model, &at).await;
    }
}

fn follows_the_model<P: Place>(fresh: impl Fn() -> P) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    // Half of the cases start with something to work on.
    let start = (any::<bool>(), prop::collection::vec(op(), 1..80)).prop_map(|(warm, mut ops)| {
        if warm {
            ops.insert(0, Op::PutCircuit { circuit: 0, content: 1 });
            for slot in 0..SLOTS {
                ops.insert(1, Op::Submit { slot, circuit: 0, key: None, body: 0, priority: 0, hurry: None });
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

#[test]
fn postgres_follows_the_model() {
    follows_the_model(crate::postgres::PostgresDatabase::new);
}
