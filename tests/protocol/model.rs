//! The job protocol between store, queue and workers, as a model: each action is one call of the traits `Store` and
//! `Queue`, one step of a worker, or a fault.
//!
//! The store's rows are exact in what the protocol depends on. The queue is what its trait promises and no more: ids
//! that wait, and ids that died with their worker. Times are events: a lease lapses, a retry's time comes, a start-by
//! passes. Workers are interchangeable and so are jobs: states that differ only in their order are one state.

use stateright::{Model, Property};

/// Maximum number of jobs in a model.
pub const JOBS: usize = 2;
/// Maximum number of workers in a model.
pub const WORKERS: usize = 3;
/// Workers that a job may kill. Fewer than in reality, where a path to the limit would be too long.
pub const POISON: u8 = 2;
/// Attempts at transient faults, also fewer than in reality.
pub const TRANSIENT_ATTEMPTS: u8 = 2;

/// A job's number.
pub type J = usize;
/// A worker's number: its index in the current state.
pub type W = usize;

/// States of a job's row.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Row {
    Absent,
    Queued,
    Running,
    Done,
    Failed,
    Cancelled,
}

impl Row {
    pub fn is_final(self) -> bool {
        matches!(self, Self::Done | Self::Failed | Self::Cancelled)
    }
}

/// A job in the store.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Job {
    pub row: Row,
    pub attempt: u8,
    /// Queued: its `run_at` has passed.
    pub due: bool,
    /// Queued and never begun: its `start_by` has passed.
    pub late: bool,
    /// Running: its lease has lapsed.
    pub lapsed: bool,
    pub lost: u8,
    pub transient: u8,
    pub cancel: bool,
    pub input: bool,
    /// The attempt whose result it has; 0 for none.
    pub result_of: u8,
    /// Its submitter has not pushed it to the queue yet.
    pub unpushed: bool,
}

const ABSENT: Job = Job {
    row: Row::Absent,
    attempt: 0,
    due: false,
    late: false,
    lapsed: false,
    lost: 0,
    transient: 0,
    cancel: false,
    input: false,
    result_of: 0,
    unpushed: false,
};

/// Answer of a guarded change.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Held {
    Yes { cancel: bool },
    Lost,
}

/// How an attempt fails.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Failing {
    /// Bad input.
    Never,
    /// A transient fault, tried again within its budget.
    Transient,
    /// A job that killed too many workers.
    Poison,
}

/// The store's methods.
impl Job {
    /// Returns whether this attempt holds the job.
    pub fn holds(&self, attempt: u8) -> bool {
        self.row == Row::Running && self.attempt == attempt
    }

    /// Returns whether `due` lists the job.
    pub fn is_due(&self) -> bool {
        match self.row {
            Row::Queued => self.due && !self.late,
            Row::Running => self.lapsed,
            _ => false,
        }
    }

    fn submit(&mut self) {
        *self = Self { row: Row::Queued, due: true, input: true, unpushed: true, ..ABSENT };
    }

    fn cancelled(&mut self) {
        (self.row, self.input, self.lapsed) = (Row::Cancelled, false, false);
    }

    fn queued(&mut self, due: bool) {
        (self.row, self.due, self.lapsed) = (Row::Queued, due, false);
    }

    fn claim(&mut self, broken: Option<Mutation>) -> Option<u8> {
        match self.row {
            Row::Queued if self.due && !self.late => {}
            Row::Running if self.lapsed => {
                if self.cancel && broken != Some(Mutation::ClaimIgnoresCancel) {
                    self.cancelled();
                    return None;
                }
                self.lost += 1;
            }
            _ => return None,
        }
        (self.row, self.due, self.lapsed) = (Row::Running, false, false);
        self.attempt += 1;
        Some(self.attempt)
    }

    /// A change that only the holder may make.
    fn guarded(&mut self, attempt: u8, change: impl FnOnce(&mut Self)) -> Held {
        if !self.holds(attempt) {
            return Held::Lost;
        }
        let cancel = self.cancel;
        change(self);
        Held::Yes { cancel }
    }

    fn heartbeat(&mut self, attempt: u8, broken: Option<Mutation>) -> Held {
        if broken == Some(Mutation::HeartbeatUnfenced) && self.row == Row::Running {
            self.lapsed = false;
            return Held::Yes { cancel: self.cancel };
        }
        self.guarded(attempt, |job| job.lapsed = false)
    }

    fn finish(&mut self, attempt: u8, broken: Option<Mutation>) -> Held {
        let change = |job: &mut Self| {
            (job.row, job.lapsed, job.result_of) = (Row::Done, false, attempt);
            job.input = broken == Some(Mutation::FinishKeepsInput);
        };
        if broken == Some(Mutation::FinishUnfenced) {
            change(self);
            return Held::Yes { cancel: self.cancel };
        }
        self.guarded(attempt, change)
    }

    fn fail(&mut self, attempt: u8, how: Failing) -> Held {
        self.guarded(attempt, |job| {
            let again = how == Failing::Transient && job.transient + 1 < TRANSIENT_ATTEMPTS;
            job.transient += u8::from(how == Failing::Transient);
            job.lost += u8::from(how == Failing::Poison);
            match (again, job.cancel) {
                (true, true) => job.cancelled(),
                (true, false) => job.queued(false),
                (false, _) => {
                    (job.row, job.lapsed) = (Row::Failed, false);
                    job.input &= how != Failing::Never;
                }
            }
        })
    }

    fn release(&mut self, attempt: u8) -> Held {
        self.guarded(attempt, |job| if job.cancel { job.cancelled() } else { job.queued(true) })
    }

    fn confirm_cancel(&mut self, attempt: u8) -> Held {
        self.guarded(attempt, |job| {
            if job.cancel {
                job.cancelled();
            }
        })
    }

    fn cancel(&mut self) {
        match self.row {
            Row::Queued => self.cancelled(),
            Row::Running => self.cancel = true,
            _ => {}
        }
    }

    fn requeue(&mut self, broken: Option<Mutation>) {
        let attempt = if broken == Some(Mutation::RequeueResetsAttempt) { 0 } else { self.attempt };
        *self = Self { row: Row::Queued, attempt, due: true, input: true, ..ABSENT };
    }

    fn sweep(&mut self) {
        match self.row {
            Row::Queued if self.late => (self.row, self.late, self.due) = (Row::Failed, false, false),
            Row::Failed => self.input = false,
            _ => {}
        }
    }
}

/// How far a worker is with an attempt.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Step {
    Claimed,
    Witnessed,
    Proved,
    /// The attempt has ended, in whatever way; the worker has yet to acknowledge the delivery.
    Ended,
}

/// What a worker holds.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Hand {
    Idle,
    /// A delivery, not claimed yet.
    Popped(J),
    Holding {
        job: J,
        attempt: u8,
        step: Step,
        /// It knows that the job is to be cancelled.
        told: bool,
        /// The claim reported that the job has killed too many workers.
        poison: bool,
    },
    Dead,
}

/// A worker with one slot.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Worker {
    pub hand: Hand,
    /// Stopped by SIGSTOP.
    pub frozen: bool,
}

impl Worker {
    fn job(&self) -> Option<J> {
        match self.hand {
            Hand::Popped(job) | Hand::Holding { job, .. } => Some(job),
            Hand::Idle | Hand::Dead => None,
        }
    }

    /// Returns whether the worker runs and works on this attempt.
    fn works_on(&self, j: J, now: u8) -> bool {
        let Hand::Holding { job, attempt, step, .. } = self.hand else { return false };
        !self.frozen && job == j && attempt == now && step != Step::Ended
    }
}

/// What must never happen between one state and the next.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Breach {
    /// A finish was accepted for a job that had a result, or from an attempt that did not hold.
    DoubleFinish = 1,
    /// A final state was left (other than by requeueing a failed or cancelled job).
    FinalLeft = 2,
    /// The fencing token decreased.
    AttemptShrank = 4,
    /// A job was handed out although its cancellation was requested.
    CancelledRan = 8,
    /// An attempt that did not hold changed something, or was not told so.
    StaleHeard = 16,
}

/// The state of the whole model.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct State {
    pub jobs: [Job; JOBS],
    /// How often each id waits in the queue.
    pub waiting: [u8; JOBS],
    /// How often each id was handed to a worker that died.
    pub orphaned: [u8; JOBS],
    pub workers: [Worker; WORKERS],
    /// Faults left.
    pub faults: u8,
    /// Cancels and requeues left.
    pub wishes: u8,
    /// Bits of [`Breach`].
    pub breaches: u8,
}

impl State {
    pub fn has(&self, breach: Breach) -> bool {
        self.breaches & breach as u8 != 0
    }
}

/// Everything that can happen.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Action {
    // A submitter.
    Submit(J),
    Push(J),
    Cancel(J),
    Requeue(J),
    // A worker.
    Pop(W, J),
    Claim(W),
    Witness(W),
    Prove(W),
    Heartbeat(W),
    Finish(W),
    Fail(W, Failing),
    Release(W),
    ConfirmCancel(W),
    Ack(W),
    Start(W),
    // Housekeeping.
    Due(J),
    Sweep(J),
    Upkeep(J),
    // Time.
    RunAt(J),
    StartBy(J),
    Lapse(J),
    // Faults.
    SubmitterDies(J),
    Crash(W),
    Freeze(W),
    Thaw(W),
    /// The store is out of reach until the worker gives up recording the end of its attempt.
    Outage(W),
    Flush,
    Duplicate(J),
}

/// A way in which a protocol can be wrong.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mutation {
    /// `finish` checks only the id.
    FinishUnfenced,
    /// `finish` leaves the input.
    FinishKeepsInput,
    /// `heartbeat` renews any lease.
    HeartbeatUnfenced,
    /// `claim` takes a lapsed job although its cancellation was requested.
    ClaimIgnoresCancel,
    /// `requeue` counts attempts from zero.
    RequeueResetsAttempt,
}

/// A model within bounds.
#[derive(Clone, Debug)]
pub struct Protocol {
    pub jobs: usize,
    pub workers: usize,
    /// Total number of faults: crashes, freezes, leases that lapse under a living worker, failed attempts, drains, lost
    /// and repeated deliveries, outages.
    pub faults: u8,
    /// Total number of cancels and requeues.
    pub wishes: u8,
    /// Whether there is a reconciler.
    pub reconcile: bool,
    /// Whether a delivery is acknowledged as soon as it is taken.
    pub ack_first: bool,
    /// The only faults that happen; all if `None`.
    pub only: Option<fn(Action) -> bool>,
    pub broken: Option<Mutation>,
}

impl Protocol {
    pub fn new(jobs: usize, workers: usize, faults: u8, wishes: u8) -> Self {
        assert!(jobs <= JOBS && workers <= WORKERS);
        Self { jobs, workers, faults, wishes, reconcile: true, ack_first: false, only: None, broken: None }
    }

    pub fn initial(&self) -> State {
        let worker = |w| Worker { hand: if w < self.workers { Hand::Idle } else { Hand::Dead }, frozen: false };
        let mut state = State {
            jobs: [ABSENT; JOBS],
            waiting: [0; JOBS],
            orphaned: [0; JOBS],
            workers: std::array::from_fn(worker),
            faults: self.faults,
            wishes: self.wishes,
            breaches: 0,
        };
        state.workers.sort_unstable();
        state
    }

    /// Replaces the state by the representative of all that differ only in the order of jobs and workers.
    fn canonical(&self, s: &mut State) {
        let key = |j: J| (s.jobs[j], s.waiting[j], s.orphaned[j]);
        if self.jobs == 2 && key(0) > key(1) {
            s.jobs.swap(0, 1);
            s.waiting.swap(0, 1);
            s.orphaned.swap(0, 1);
            for worker in &mut s.workers {
                if let Hand::Popped(j) | Hand::Holding { job: j, .. } = &mut worker.hand {
                    *j = 1 - *j;
                }
            }
        }
        s.workers.sort_unstable();
    }

    /// Returns whether every job has ended.
    pub fn is_over(&self, state: &State) -> bool {
        state.jobs[..self.jobs].iter().all(|job| job.row.is_final())
    }

    /// Returns whether this happens by itself, without a fault, a cancel or requeue, or the return of a stopped worker.
    pub fn goes_by_itself(&self, before: &State, action: Action, after: &State) -> bool {
        before.faults == after.faults && before.wishes == after.wishes && !matches!(action, Action::Thaw(_))
    }

    pub fn enabled(&self, s: &State, out: &mut Vec<Action>) {
        self.every(s, out);
        if let Some(only) = self.only {
            out.retain(|action| !self.is_fault(s, *action) || only(*action));
        }
    }

    fn every(&self, s: &State, out: &mut Vec<Action>) {
        if s.breaches != 0 {
            return;
        }
        let (fault, wish) = (s.faults > 0, s.wishes > 0);
        for j in 0..self.jobs {
            let job = &s.jobs[j];
            let mut may = |yes: bool, action: Action| {
                if yes {
                    out.push(action);
                }
            };
            may(job.row == Row::Absent, Action::Submit(j));
            may(job.unpushed, Action::Push(j));
            may(job.unpushed && fault, Action::SubmitterDies(j));
            let open = job.row == Row::Queued || (job.row == Row::Running && !job.cancel);
            may(wish && open, Action::Cancel(j));
            may(wish && matches!(job.row, Row::Failed | Row::Cancelled), Action::Requeue(j));
            may(self.reconcile && job.is_due() && s.waiting[j] == 0, Action::Due(j));
            let stale = (job.row == Row::Queued && job.late) || (job.row == Row::Failed && job.input);
            may(stale, Action::Sweep(j));
            may(s.orphaned[j] > 0, Action::Upkeep(j));
            may(job.row == Row::Queued && !job.due, Action::RunAt(j));
            let unbegun = job.row == Row::Queued && job.attempt == 0 && !job.late;
            may(unbegun && fault, Action::StartBy(j));
            let worked_on = s.workers.iter().any(|w| w.works_on(j, job.attempt));
            may(job.row == Row::Running && !job.lapsed && (!worked_on || fault), Action::Lapse(j));
            may(fault && job.row != Row::Absent && s.waiting[j] < 2, Action::Duplicate(j));
        }
        if fault && s.waiting.iter().chain(&s.orphaned).any(|n| *n > 0) {
            out.push(Action::Flush);
        }
        let awake = s.workers.iter().filter(|w| !w.frozen && w.hand != Hand::Dead).count();
        // Those beyond the model's number are permanently dead, and first or last among equals.
        let dead = s.workers.iter().filter(|w| w.hand == Hand::Dead).count();
        for w in 0..WORKERS {
            let worker = s.workers[w];
            // Equal to the previous one in every way: it would lead to the same states.
            if w > 0 && s.workers[w - 1] == worker {
                continue;
            }
            if worker.frozen {
                out.push(Action::Thaw(w));
                if fault {
                    out.push(Action::Crash(w));
                }
                continue;
            }
            match worker.hand {
                Hand::Dead if dead > WORKERS - self.workers => out.push(Action::Start(w)),
                Hand::Dead => {}
                Hand::Idle => out.extend((0..self.jobs).filter(|j| s.waiting[*j] > 0).map(|j| Action::Pop(w, j))),
                Hand::Popped(_) => out.push(Action::Claim(w)),
                Hand::Holding { step: Step::Ended, .. } => out.push(Action::Ack(w)),
                Hand::Holding { step, told, poison, .. } => {
                    out.push(Action::Heartbeat(w));
                    if poison {
                        out.push(Action::Fail(w, Failing::Poison));
                    } else {
                        out.push(match step {
                            Step::Claimed => Action::Witness(w),
                            Step::Witnessed => Action::Prove(w),
                            _ => Action::Finish(w),
                        });
                    }
                    if told {
                        out.push(Action::ConfirmCancel(w));
                    }
                    if fault && !poison && step != Step::Proved {
                        out.extend([Failing::Never, Failing::Transient].map(|how| Action::Fail(w, how)));
                        out.push(Action::Release(w));
                    }
                    if fault {
                        out.push(Action::Outage(w));
                    }
                }
            }
            if fault && worker.job().is_some() {
                out.push(Action::Crash(w));
                if awake > 1 {
                    out.push(Action::Freeze(w));
                }
            }
        }
    }

    /// Returns the representative of the state after an action that [`Self::enabled`] named; `None` if nothing changes.
    pub fn after(&self, before: &State, action: Action) -> Option<State> {
        let mut s = self.step(before, action)?;
        self.canonical(&mut s);
        (s != *before).then_some(s)
    }

    /// Returns the state after an action, without reordering jobs and workers.
    pub fn step(&self, before: &State, action: Action) -> Option<State> {
        let mut s = before.clone();
        match action {
            Action::Submit(j) => s.jobs[j].submit(),
            Action::Push(j) => {
                s.jobs[j].unpushed = false;
                s.waiting[j] = s.waiting[j].max(1);
            }
            Action::SubmitterDies(j) => s.jobs[j].unpushed = false,
            Action::Cancel(j) => s.jobs[j].cancel(),
            Action::Requeue(j) => s.jobs[j].requeue(self.broken),
            Action::Due(j) => s.waiting[j] = s.waiting[j].max(1),
            Action::Sweep(j) => s.jobs[j].sweep(),
            Action::Upkeep(j) => {
                s.orphaned[j] -= 1;
                s.waiting[j] = (s.waiting[j] + 1).min(2);
            }
            Action::RunAt(j) => s.jobs[j].due = true,
            Action::StartBy(j) => s.jobs[j].late = true,
            Action::Lapse(j) => s.jobs[j].lapsed = true,
            Action::Flush => (s.waiting, s.orphaned) = ([0; JOBS], [0; JOBS]),
            Action::Duplicate(j) => s.waiting[j] += 1,
            Action::Pop(w, j) => {
                s.waiting[j] -= 1;
                s.workers[w].hand = Hand::Popped(j);
            }
            Action::Start(w) => s.workers[w].hand = Hand::Idle,
            Action::Freeze(w) => s.workers[w].frozen = true,
            Action::Thaw(w) => s.workers[w].frozen = false,
            Action::Crash(w) => {
                if let Some(j) = s.workers[w].job()
                    && !self.ack_first
                {
                    s.orphaned[j] = (s.orphaned[j] + 1).min(2);
                }
                s.workers[w] = Worker { hand: Hand::Dead, frozen: false };
            }
            Action::Ack(w) => s.workers[w].hand = Hand::Idle,
            Action::Claim(w) => {
                let Hand::Popped(job) = s.workers[w].hand else { return None };
                s.workers[w].hand = match s.jobs[job].claim(self.broken) {
                    Some(attempt) => {
                        let poison = s.jobs[job].lost >= POISON;
                        Hand::Holding { job, attempt, step: Step::Claimed, told: false, poison }
                    }
                    // Acknowledged at once.
                    None => Hand::Idle,
                };
                if before.jobs[job].cancel && s.jobs[job].row == Row::Running && s.jobs[job] != before.jobs[job] {
                    s.breaches |= Breach::CancelledRan as u8;
                }
            }
            Action::Witness(w)
            | Action::Prove(w)
            | Action::Heartbeat(w)
            | Action::Finish(w)
            | Action::Fail(w, _)
            | Action::Release(w)
            | Action::ConfirmCancel(w)
            | Action::Outage(w) => self.attempt(&mut s, w, action)?,
        }
        s.faults -= u8::from(self.is_fault(before, action));
        s.wishes -= u8::from(matches!(action, Action::Cancel(_) | Action::Requeue(_)));
        for (old, new) in before.jobs.iter().zip(&s.jobs) {
            let again = matches!(action, Action::Requeue(_)) && old.row != Row::Done;
            if old.row.is_final() && new.row != old.row && !again {
                s.breaches |= Breach::FinalLeft as u8;
            }
            if new.attempt < old.attempt {
                s.breaches |= Breach::AttemptShrank as u8;
            }
        }
        (s != *before).then_some(s)
    }

    /// A step of a worker that holds a job.
    fn attempt(&self, s: &mut State, w: W, action: Action) -> Option<()> {
        let Hand::Holding { job: j, attempt, step, told, poison } = s.workers[w].hand else { return None };
        let old = s.jobs[j];
        let job = &mut s.jobs[j];
        // Without an answer, the store was not asked.
        let (step, told, answer) = match action {
            Action::Witness(_) => (Step::Witnessed, told, None),
            Action::Prove(_) => (Step::Proved, told, None),
            Action::Outage(_) => (Step::Ended, told, None),
            Action::Heartbeat(_) => match job.heartbeat(attempt, self.broken) {
                Held::Yes { cancel } => (step, told || cancel, Some(Held::Yes { cancel })),
                Held::Lost => (Step::Ended, told, Some(Held::Lost)),
            },
            Action::Finish(_) => (Step::Ended, told, Some(job.finish(attempt, self.broken))),
            Action::Fail(_, how) => (Step::Ended, told, Some(job.fail(attempt, how))),
            Action::Release(_) => (Step::Ended, told, Some(job.release(attempt))),
            Action::ConfirmCancel(_) => (Step::Ended, told, Some(job.confirm_cancel(attempt))),
            _ => return None,
        };
        let held = old.holds(attempt);
        if answer.is_some_and(|answer| !held && (answer != Held::Lost || old != *job)) {
            s.breaches |= Breach::StaleHeard as u8;
        }
        let taken = matches!(action, Action::Finish(_)) && answer != Some(Held::Lost);
        if taken && (old.result_of != 0 || !held) {
            s.breaches |= Breach::DoubleFinish as u8;
        }
        // An ended attempt has no more use for these; dropping them means fewer states.
        let (told, poison) = if step == Step::Ended { (false, false) } else { (told, poison) };
        let attempt = if step == Step::Ended { 0 } else { attempt };
        s.workers[w].hand = Hand::Holding { job: j, attempt, step, told, poison };
        if step == Step::Ended && self.ack_first {
            s.workers[w].hand = Hand::Idle;
        }
        Some(())
    }

    fn is_fault(&self, before: &State, action: Action) -> bool {
        match action {
            Action::Lapse(j) => before.workers.iter().any(|w| w.works_on(j, before.jobs[j].attempt)),
            Action::Fail(_, how) => how != Failing::Poison,
            Action::SubmitterDies(_)
            | Action::StartBy(_)
            | Action::Release(_)
            | Action::Crash(_)
            | Action::Freeze(_)
            | Action::Outage(_)
            | Action::Flush
            | Action::Duplicate(_) => true,
            _ => false,
        }
    }
}

pub const NO_DOUBLE_FINISH: &str = "no double finish";
pub const NO_INPUT_LEFT: &str = "no input is left behind by a job that is done or cancelled";
pub const INPUT_KEPT: &str = "no unfinished job is without its input";
pub const FINAL_IS_FINAL: &str = "no final state is left";
pub const ATTEMPT_GROWS: &str = "the attempt only grows";
pub const CANCELLED_RESTS: &str = "a job whose cancellation was requested never runs again";
pub const HOLDER_ALONE: &str = "an attempt that does not hold changes nothing and is told so";
pub const ONE_HOLDER: &str = "one worker at most holds a job's present attempt";
pub const RESULT_IN_PLACE: &str = "a job has a result exactly when it is done, of its last attempt";

impl Model for Protocol {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        vec![self.initial()]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        self.enabled(state, actions);
    }

    fn next_state(&self, last: &State, action: Action) -> Option<State> {
        self.after(last, action)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always(NO_DOUBLE_FINISH, |_, s: &State| !s.has(Breach::DoubleFinish)),
            Property::always(FINAL_IS_FINAL, |_, s: &State| !s.has(Breach::FinalLeft)),
            Property::always(ATTEMPT_GROWS, |_, s: &State| !s.has(Breach::AttemptShrank)),
            Property::always(CANCELLED_RESTS, |_, s: &State| !s.has(Breach::CancelledRan)),
            Property::always(HOLDER_ALONE, |_, s: &State| !s.has(Breach::StaleHeard)),
            Property::always(NO_INPUT_LEFT, |_, s: &State| {
                s.jobs.iter().all(|job| !(job.input && matches!(job.row, Row::Done | Row::Cancelled)))
            }),
            Property::always(INPUT_KEPT, |_, s: &State| {
                s.jobs.iter().all(|job| job.input || !matches!(job.row, Row::Queued | Row::Running))
            }),
            Property::always(RESULT_IN_PLACE, |_, s: &State| {
                let right = |job: &Job| job.result_of == if job.row == Row::Done { job.attempt } else { 0 };
                s.jobs.iter().all(right)
            }),
            Property::always(ONE_HOLDER, |_, s: &State| {
                let holders = |j: J| {
                    let now = s.jobs[j].attempt;
                    let holds = |w: &&Worker| {
                        matches!(w.hand, Hand::Holding { job, attempt, step, .. }
                            if job == j && attempt == now && step != Step::Ended)
                    };
                    s.workers.iter().filter(holds).count()
                };
                (0..JOBS).all(|j| holders(j) <= 1)
            }),
            // The model gets where it should.
            Property::sometimes("all is done", |model, s: &State| {
                s.jobs[..model.jobs].iter().all(|job| job.row == Row::Done)
            }),
            Property::sometimes("a third attempt succeeds", |_, s: &State| {
                s.jobs.iter().any(|job| job.row == Row::Done && job.attempt == 3)
            }),
            Property::sometimes("a proof wins over a request to cancel", |_, s: &State| {
                s.jobs.iter().any(|job| job.row == Row::Done && job.cancel)
            }),
            Property::sometimes("a job that was begun is cancelled", |_, s: &State| {
                s.jobs.iter().any(|job| job.row == Row::Cancelled && job.attempt > 0)
            }),
            Property::sometimes("poison is put aside", |_, s: &State| {
                s.jobs.iter().any(|job| job.row == Row::Failed && job.lost > POISON)
            }),
            Property::sometimes("a job expires", |_, s: &State| {
                s.jobs.iter().any(|job| job.row == Row::Failed && job.attempt == 0)
            }),
            Property::sometimes("a stale attempt is at work", |_, s: &State| {
                s.workers.iter().any(|w| {
                    matches!(w.hand, Hand::Holding { job, attempt, step, .. }
                        if step != Step::Ended && attempt < s.jobs[job].attempt)
                })
            }),
        ]
    }
}
