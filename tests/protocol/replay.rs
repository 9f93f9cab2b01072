//! A store driven along random paths of the model: they agree row for row, answer for answer.
//!
//! Nothing here waits. A lease lapses because its holder renews it for no time; a retry is due at once, and the model's
//! clock follows; whether a job's start-by has passed is decided when it is submitted.

use std::time::Duration;

use prover_worker::model::{
    Attempt, Circuit, CircuitName, ContentHash, FailureClass, JobError, JobId, JobResult, JobState, NewJob, Priority,
    Stage, StageTimes, WorkerId,
};
use prover_worker::store::{Cancelled, Held, Input, Replacement, Requeued, Retry, Store, Submitted};

use super::model::{self, Action, Failing, Hand, Protocol, Row, State};

/// A lease that outlasts the test.
const LONG: Duration = Duration::from_secs(3600);
const INPUT: Input<'static> = Input { bytes: b"{\"a\": \"3\"}", key: "" };

/// A deterministic source of random-looking numbers.
struct Dice(u64);

impl Dice {
    fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % n as u64) as usize
    }
}

/// What happened on the walks.
#[derive(Default, Debug)]
pub struct Walked {
    pub steps: usize,
    pub done: usize,
    /// Claims without a job, and changes by attempts that did not hold.
    pub refused: usize,
    /// Lapsed jobs claimed again.
    pub reclaimed: usize,
    pub requeued: usize,
    /// Jobs that failed before they were begun.
    pub expired: usize,
}

/// Walks `paths` paths of the model, of at most `length` actions each, and compares after each action. `kept` says
/// whether this store keeps the inputs of failed jobs for longer than the walk, or not at all.
pub async fn walk(store: &dyn Store, model: &Protocol, kept: bool, paths: u64, length: usize) -> Walked {
    let circuit = Circuit {
        name: circuit(),
        zkey: ContentHash([7; 32]),
        wasm: None,
        n_vars: 10,
        n_public: 1,
        domain_size: 16,
        created_at: 0,
    };
    store.put_circuit(&circuit).await.unwrap();
    let mut walked = Walked::default();
    for path in 0..paths {
        let state = model.initial();
        let ids = std::array::from_fn(|_| JobId::new());
        let dice = Dice(0x9e37_79b9_7f4a_7c15 ^ (path + 1));
        let mut walk =
            Walk { store, kept, model: model.clone(), state, ids, dice, way: Vec::new(), walked: &mut walked };
        for _ in 0..length {
            let Some(action) = walk.choose() else { break };
            walk.step(action).await;
        }
        walk.end().await;
    }
    walked
}

fn circuit() -> CircuitName {
    "c".parse().unwrap()
}

struct Walk<'a> {
    store: &'a dyn Store,
    kept: bool,
    model: Protocol,
    state: State,
    ids: [JobId; model::JOBS],
    dice: Dice,
    way: Vec<Action>,
    walked: &'a mut Walked,
}

impl Walk<'_> {
    /// Returns the next action: any, except those that only time brings about.
    fn choose(&mut self) -> Option<Action> {
        let mut actions = Vec::new();
        self.model.enabled(&self.state, &mut actions);
        let jobs = &self.state.jobs;
        actions.retain(|a| match a {
            Action::StartBy(_) => false,
            // No time passes in which a kept input might expire.
            Action::Sweep(j) => jobs[*j].late,
            _ => true,
        });
        if actions.is_empty() {
            return None;
        }
        let n = self.dice.below(actions.len());
        Some(actions[n])
    }

    fn apply(&mut self, action: Action) {
        self.way.push(action);
        self.state = self.model.step(&self.state, action).unwrap_or_else(|| self.state.clone());
    }

    /// Applies the action to the model and to the store.
    async fn step(&mut self, action: Action) {
        let before = self.state.clone();
        let mut late = false;
        if let Action::Submit(_) = action {
            late = self.state.faults > 0 && self.dice.below(6) == 0;
        }
        self.apply(action);
        if let (Action::Submit(j), true) = (action, late) {
            self.apply(Action::StartBy(j));
        }
        self.walked.steps += 1;
        let store = self.store;
        match action {
            Action::Submit(j) => {
                let new = NewJob {
                    id: self.ids[j],
                    circuit: circuit(),
                    idempotency_key: None,
                    body: ContentHash::of(self.ids[j].0.as_bytes()),
                    former_bodies: Vec::new(),
                    priority: Priority(0),
                    start_within: late.then_some(Duration::ZERO),
                };
                let first = store.submit(&new, INPUT).await.unwrap();
                assert!(matches!(first, Submitted::Created(_)));
                // Repeating it has no effect.
                let again = store.submit(&new, INPUT).await.unwrap();
                assert!(matches!(again, Submitted::Existing(_)), "{:?}", self.way);
            }
            Action::Cancel(j) => {
                let now = before.jobs[j].row == Row::Queued;
                let expected = if now { Cancelled::Now } else { Cancelled::Requested };
                assert_eq!(store.cancel(self.ids[j]).await.unwrap(), Some(expected), "{:?}", self.way);
            }
            Action::Requeue(j) => {
                let job = before.jobs[j];
                if !job.input {
                    let gone = store.requeue(self.ids[j], None, None).await.unwrap();
                    assert_eq!(gone, Requeued::InputGone, "{:?}", self.way);
                }
                let given = Replacement { input: INPUT, body: ContentHash::of(INPUT.bytes) };
                let given = (!job.input).then_some(given);
                let queued = store.requeue(self.ids[j], given, None).await.unwrap();
                assert!(matches!(queued, Requeued::Yes(_)), "{queued:?} after {:?}", self.way);
                self.walked.requeued += 1;
            }
            Action::Sweep(_) => {
                let swept = store.sweep(100).await.unwrap();
                self.walked.expired += swept.expired.len();
                // Sweeps all jobs.
                for j in 0..self.model.jobs {
                    if self.state.jobs[j].late {
                        self.apply(Action::Sweep(j));
                    }
                }
            }
            Action::Lapse(j) => {
                let attempt = self.token(j, before.jobs[j].attempt).await;
                let answer = store.heartbeat(self.ids[j], attempt, Duration::ZERO, Stage::Prove, 0.5).await.unwrap();
                assert_ne!(answer, Held::Lost, "{:?}", self.way);
            }
            Action::Claim(w) => self.claim(&before, w).await,
            Action::Heartbeat(w)
            | Action::Finish(w)
            | Action::Fail(w, _)
            | Action::Release(w)
            | Action::ConfirmCancel(w) => self.guarded(&before, w, action).await,
            // The store is not involved in these.
            _ => return,
        }
        if let Some(j) = self.state.jobs.iter().position(|job| job.row == Row::Queued && !job.due) {
            self.apply(Action::RunAt(j));
        }
        if !self.kept {
            for j in 0..self.model.jobs {
                if self.state.jobs[j].row == Row::Failed && self.state.jobs[j].input {
                    self.apply(Action::Sweep(j));
                }
            }
        }
        self.compare().await;
    }

    async fn claim(&mut self, before: &State, w: model::W) {
        let Hand::Popped(j) = before.workers[w].hand else { unreachable!("claims follow pops") };
        let worker = WorkerId(format!("worker-{w}"));
        let claim = self.store.claim(self.ids[j], &worker, LONG).await.unwrap();
        match (self.state.workers[w].hand, claim) {
            (Hand::Idle, None) => self.walked.refused += 1,
            (Hand::Holding { attempt, .. }, Some(claim)) => {
                assert_eq!(claim.job.attempt.number, u32::from(attempt), "{:?}", self.way);
                let input = claim.input.as_ref().map(|input| input.as_slice());
                assert_eq!(input, Some(INPUT.bytes), "{:?}", self.way);
                assert_eq!(claim.job.worker, Some(worker), "{:?}", self.way);
                self.walked.reclaimed += usize::from(before.jobs[j].row == Row::Running);
            }
            (hand, claim) => panic!("the model has {hand:?}, the store gave {claim:?} after {:?}", self.way),
        }
    }

    /// The token of the attempt with this number at job `j`.
    async fn token(&self, j: usize, number: u8) -> Attempt {
        self.store.job(self.ids[j]).await.unwrap().unwrap().attempt.numbered(number.into())
    }

    async fn guarded(&mut self, before: &State, w: model::W, action: Action) {
        let Hand::Holding { job: j, attempt, .. } = before.workers[w].hand else { unreachable!("a holder's") };
        let (id, token) = (self.ids[j], self.token(j, attempt).await);
        let store = self.store;
        let answer = match action {
            Action::Heartbeat(_) => store.heartbeat(id, token, LONG, Stage::Prove, 0.5).await,
            Action::Finish(_) => store.finish(id, token, &result(attempt)).await,
            Action::Release(_) => store.release(id, token).await,
            Action::ConfirmCancel(_) => store.confirm_cancel(id, token).await,
            Action::Fail(_, how) => {
                let class = match how {
                    Failing::Never => FailureClass::BadInput,
                    Failing::Transient => FailureClass::Transient,
                    Failing::Poison => FailureClass::LostWorker,
                };
                let again = how == Failing::Transient && before.jobs[j].transient + 1 < model::TRANSIENT_ATTEMPTS;
                let retry = if again { Retry::After(Duration::ZERO) } else { Retry::Never };
                store.fail(id, token, &JobError { class, message: "made up".to_owned() }, retry).await
            }
            _ => unreachable!("no guarded change"),
        };
        let old = &before.jobs[j];
        // The attempt may have ended as it would end it now: a claim cancelled the job, which may wait again since.
        let alike = old.attempt == attempt
            && match action {
                Action::Release(_) => matches!(old.row, Row::Queued | Row::Cancelled),
                Action::ConfirmCancel(_) => old.row == Row::Cancelled && old.cancel,
                _ => false,
            };
        let expected = if old.holds(attempt) || alike { Held::Yes { cancel: old.cancel } } else { Held::Lost };
        assert_eq!(answer.unwrap(), expected, "{:?}", self.way);
        self.walked.refused += usize::from(expected == Held::Lost);
        self.walked.done += usize::from(matches!(action, Action::Finish(_)) && expected != Held::Lost);
    }

    /// Asserts that model and store agree on every job, on what is due and on the inputs held.
    async fn compare(&mut self) {
        let due: Vec<JobId> = self.store.due(100).await.unwrap().into_iter().map(|d| d.id).collect();
        for (j, row) in self.state.jobs.iter().enumerate().take(self.model.jobs) {
            let Some(job) = self.store.job(self.ids[j]).await.unwrap() else {
                assert_eq!(row.row, Row::Absent, "{:?}", self.way);
                continue;
            };
            let state = match row.row {
                Row::Absent => panic!("a job that was never submitted: {:?}", self.way),
                Row::Queued => JobState::Queued,
                Row::Running => JobState::Running,
                Row::Done => JobState::Done,
                Row::Failed => JobState::Failed,
                Row::Cancelled => JobState::Cancelled,
            };
            let store = (job.state, job.attempt.number, job.cancel_requested, job.tries.lost, job.tries.transient);
            let model = (state, row.attempt.into(), row.cancel, row.lost.into(), row.transient.into());
            assert_eq!(store, model, "job {j}, the store first, after {:?}", self.way);
            let made = (row.result_of > 0).then(|| result(row.result_of));
            assert_eq!(job.result, made, "job {j} after {:?}", self.way);
            assert_eq!(due.contains(&self.ids[j]), row.is_due(), "job {j} is due, after {:?}", self.way);
        }
        let held: u64 = self.store.inputs_held().await.unwrap().iter().map(|(_, n)| n).sum();
        let expected = self.state.jobs.iter().filter(|job| job.input).count() as u64;
        assert_eq!(held, expected, "inputs held after {:?}", self.way);
    }

    /// Ends what is left, so that the next path finds no inputs.
    async fn end(self) {
        for (j, job) in self.state.jobs.iter().enumerate() {
            if job.row == Row::Running {
                let token = self.token(j, job.attempt).await;
                let held = self.store.finish(self.ids[j], token, &result(job.attempt)).await;
                assert_ne!(held.unwrap(), Held::Lost, "{:?}", self.way);
                continue;
            }
            if job.row == Row::Failed && job.input {
                self.store.requeue(self.ids[j], None, None).await.unwrap();
            }
            if matches!(job.row, Row::Queued | Row::Failed) {
                self.store.cancel(self.ids[j]).await.unwrap();
            }
        }
        let held: u64 = self.store.inputs_held().await.unwrap().iter().map(|(_, n)| n).sum();
        assert_eq!(held, 0, "inputs held at the end of {:?}", self.way);
    }
}

/// A result that shows whose it is.
fn result(attempt: u8) -> JobResult {
    JobResult {
        proof_json: format!("proof of attempt {attempt}"),
        public_json: "[]".to_owned(),
        device: "cpu:0".to_owned(),
        times: StageTimes::default(),
    }
}
