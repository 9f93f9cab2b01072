//! Coalescing of calls: calls of one kind that arrive while one is in progress are made together as one.
//!
//! A single call is made at once. Joint calls run in a task of their own, so that a caller that goes away does not
//! affect the others; the call of one that went away before it was sent is dropped.

use std::collections::{HashSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard};

use futures::StreamExt;
use tokio::sync::oneshot;

use crate::model::locked;
use crate::store::StoreError;

/// A call of one caller.
pub(super) trait Call: Send + Sync + 'static {
    /// The answer to the caller.
    type Answer: Send + 'static;
    /// What the call changes. Calls that share a key are never made together, but one after the other.
    fn keys(&self) -> Vec<Vec<u8>>;
    /// Approximate number of bytes that the call sends.
    fn bytes(&self) -> usize;
}

/// Executes calls together.
pub(super) trait Executor<C: Call>: Send + Sync + 'static {
    /// Executes the calls, and returns one answer for each, in their order.
    fn run(&self, calls: Vec<Arc<C>>) -> impl Future<Output = Result<Vec<C::Answer>, StoreError>> + Send;
    /// Undoes a call whose caller had gone away when the answer came.
    fn undelivered(&self, _answer: C::Answer) -> impl Future<Output = ()> + Send {
        std::future::ready(())
    }
}

/// Number of calls made concurrently after a joint call failed.
const MAX_ALONE: usize = 4;

/// Limits of a joint call. A single call may be larger.
#[derive(Clone, Copy)]
pub(super) struct Bounds {
    /// Maximum number of calls.
    pub(super) calls: usize,
    /// Maximum total of [`Call::bytes`].
    pub(super) bytes: usize,
}

/// The queue of one kind of call.
pub(super) struct Coalescer<C: Call, E>(Arc<Shared<C, E>>);

struct Shared<C: Call, E> {
    executor: Arc<E>,
    bounds: Bounds,
    waitlist: Mutex<Waitlist<C>>,
}

struct Waitlist<C: Call> {
    waiting: VecDeque<Waiting<C>>,
    in_progress: bool,
}

struct Waiting<C: Call> {
    call: Arc<C>,
    answer: oneshot::Sender<Result<C::Answer, StoreError>>,
}

impl<C: Call, E: Executor<C>> Coalescer<C, E> {
    pub(super) fn new(executor: Arc<E>, bounds: Bounds) -> Self {
        let waitlist = Mutex::new(Waitlist { waiting: VecDeque::new(), in_progress: false });
        Self(Arc::new(Shared { executor, bounds, waitlist }))
    }

    /// Makes a call, alone or together with others.
    ///
    /// # Errors
    /// Those of the joint call. A call that the database refused because of its content, or whose row another session
    /// has locked, fails alone.
    pub(super) async fn call(&self, call: C) -> Result<C::Answer, StoreError> {
        let (answer, answered) = oneshot::channel();
        let first = {
            let mut waitlist = self.0.waitlist();
            waitlist.waiting.push_back(Waiting { call: Arc::new(call), answer });
            !std::mem::replace(&mut waitlist.in_progress, true)
        };
        if first {
            tokio::spawn(work_off(self.0.clone()));
        }
        // There is no answer if the runtime of the joint call has shut down.
        answered.await.unwrap_or_else(|_| Err(sqlx::Error::WorkerCrashed.into()))
    }
}

impl<C: Call, E> Shared<C, E> {
    fn waitlist(&self) -> MutexGuard<'_, Waitlist<C>> {
        locked(&self.waitlist)
    }

    /// Returns the calls to make next; none if no call waits.
    fn next(&self) -> Vec<Waiting<C>> {
        let mut waitlist = self.waitlist();
        let (mut batch, mut bytes) = (Vec::new(), 0);
        let (mut keys, mut later) = (HashSet::new(), VecDeque::new());
        while batch.len() < self.bounds.calls {
            let Some(w) = waitlist.waiting.pop_front() else { break };
            if w.answer.is_closed() {
                continue;
            }
            let more = w.call.bytes();
            if !batch.is_empty() && bytes + more > self.bounds.bytes {
                waitlist.waiting.push_front(w);
                break;
            }
            let own = w.call.keys();
            let free = own.iter().all(|k| !keys.contains(k));
            // Also those of a call that must wait, so that no later call overtakes it.
            keys.extend(own);
            if free {
                bytes += more;
                batch.push(w);
            } else {
                later.push_back(w);
            }
        }
        later.append(&mut waitlist.waiting);
        waitlist.waiting = later;
        waitlist.in_progress = !batch.is_empty();
        batch
    }
}

/// Empties the queue if the work is aborted: callers get an error, and the next call starts new work.
struct Unfinished<C: Call, E>(Option<Arc<Shared<C, E>>>);

impl<C: Call, E> Drop for Unfinished<C, E> {
    fn drop(&mut self) {
        if let Some(shared) = &self.0 {
            let mut waitlist = shared.waitlist();
            waitlist.in_progress = false;
            waitlist.waiting.clear();
        }
    }
}

async fn work_off<C: Call, E: Executor<C>>(shared: Arc<Shared<C, E>>) {
    let mut unfinished = Unfinished(Some(shared.clone()));
    loop {
        let batch = shared.next();
        if batch.is_empty() {
            // A call that arrived since then has started work of its own.
            unfinished.0 = None;
            return;
        }
        let calls: Vec<Arc<C>> = batch.iter().map(|w| w.call.clone()).collect();
        let several = calls.len() > 1;
        match shared.executor.run(calls).await {
            Ok(answers) => {
                for (w, answer) in batch.into_iter().zip(answers) {
                    reply(&shared, w, Ok(answer)).await;
                }
            }
            Err(e) if several && may_be_of_one(&e) => {
                let each = futures::stream::iter(batch);
                // Concurrently, so that a call that waits for a lock does not delay the others.
                each.filter(|w| std::future::ready(!w.answer.is_closed()))
                    .for_each_concurrent(MAX_ALONE, |w| async {
                        let alone = shared.executor.run(vec![w.call.clone()]).await;
                        reply(&shared, w, alone.and_then(only)).await;
                    })
                    .await;
            }
            Err(e) if several => {
                let e = Arc::new(e);
                for w in batch {
                    reply(&shared, w, Err(StoreError::Shared(e.clone()))).await;
                }
            }
            Err(e) => {
                if let Some(w) = batch.into_iter().next() {
                    reply(&shared, w, Err(e)).await;
                }
            }
        }
    }
}

async fn reply<C: Call, E: Executor<C>>(shared: &Shared<C, E>, w: Waiting<C>, answer: Result<C::Answer, StoreError>) {
    if let Err(Ok(undelivered)) = w.answer.send(answer) {
        shared.executor.undelivered(undelivered).await;
    }
}

fn only<A>(answers: Vec<A>) -> Result<A, StoreError> {
    answers.into_iter().next().ok_or_else(|| sqlx::Error::RowNotFound.into())
}

/// Whether one of the calls may be the cause: the database refused the content of the statement (a value or a
/// constraint), or a row that one of them changes is locked. A statement that took too long as a whole does not count:
/// an overloaded server would get each call as a statement of its own.
fn may_be_of_one(e: &StoreError) -> bool {
    let StoreError::Database(e) = e else { return false };
    let code = e.as_database_error().and_then(|e| e.code());
    code.is_some_and(|c| c == "55P03" || ["22", "23", "54"].iter().any(|class| c.starts_with(class)))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::collections::HashMap;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use tokio::sync::Semaphore;

    use super::*;

    /// Adds to a counter of its own; the answer is the sum so far.
    struct Add {
        to: u8,
        n: u64,
        bytes: usize,
    }

    impl Call for Add {
        type Answer = u64;

        fn keys(&self) -> Vec<Vec<u8>> {
            vec![vec![self.to]]
        }

        fn bytes(&self) -> usize {
            self.bytes
        }
    }

    fn add(to: u8, n: u64) -> Add {
        Add { to, n, bytes: 1 }
    }

    /// Counters; each run waits for a permit.
    struct Sums {
        sums: Mutex<HashMap<u8, u64>>,
        runs: Mutex<Vec<Vec<u8>>>,
        undelivered: AtomicUsize,
        go: Semaphore,
    }

    impl Sums {
        fn new() -> Arc<Self> {
            let go = Semaphore::new(0);
            Arc::new(Self { sums: Mutex::default(), runs: Mutex::default(), undelivered: AtomicUsize::new(0), go })
        }
    }

    impl Executor<Add> for Sums {
        async fn run(&self, calls: Vec<Arc<Add>>) -> Result<Vec<u64>, StoreError> {
            self.runs.lock().unwrap().push(calls.iter().map(|c| c.to).collect());
            self.go.acquire().await.unwrap().forget();
            if calls.iter().any(|c| c.to == u8::MAX) {
                return Err(sqlx::Error::PoolTimedOut.into());
            }
            let mut sums = self.sums.lock().unwrap();
            Ok(calls
                .iter()
                .map(|c| {
                    let sum = sums.entry(c.to).or_default();
                    *sum += c.n;
                    *sum
                })
                .collect())
        }

        async fn undelivered(&self, _: u64) {
            self.undelivered.fetch_add(1, Ordering::SeqCst);
        }
    }

    const WIDE: Bounds = Bounds { calls: 100, bytes: 100 };

    type Answer = tokio::task::JoinHandle<Result<u64, StoreError>>;

    fn spawn(line: &Arc<Coalescer<Add, Sums>>, call: Add) -> Answer {
        let line = line.clone();
        tokio::spawn(async move { line.call(call).await })
    }

    async fn until(mut done: impl FnMut() -> bool) {
        while !done() {
            tokio::task::yield_now().await;
        }
    }

    /// The first call is in progress, then the others wait in this order.
    async fn lined_up(bounds: Bounds, calls: Vec<Add>) -> (Arc<Sums>, Arc<Coalescer<Add, Sums>>, Vec<Answer>) {
        let sums = Sums::new();
        let line = Arc::new(Coalescer::new(sums.clone(), bounds));
        let mut answers = Vec::new();
        for (n, call) in calls.into_iter().enumerate() {
            answers.push(spawn(&line, call));
            until(|| sums.runs.lock().unwrap().len() == 1 && line.0.waitlist().waiting.len() == n).await;
        }
        (sums, line, answers)
    }

    async fn all(answers: Vec<Answer>) -> Vec<u64> {
        let mut all = Vec::new();
        for t in answers {
            all.push(t.await.unwrap().unwrap());
        }
        all
    }

    #[tokio::test]
    async fn one_call_goes_at_once_and_those_that_come_meanwhile_go_together() {
        let (sums, _line, answers) = lined_up(WIDE, (0..5).map(|n| add(n, 1)).collect()).await;
        sums.go.add_permits(2);
        assert_eq!(all(answers).await, [1; 5]);
        assert_eq!(*sums.runs.lock().unwrap(), [vec![0], vec![1, 2, 3, 4]]);
    }

    #[tokio::test]
    async fn calls_that_share_a_key_go_one_after_the_other_in_their_order() {
        let calls = vec![add(0, 1), add(1, 1), add(1, 10), add(2, 1), add(1, 100)];
        let (sums, _line, answers) = lined_up(WIDE, calls).await;
        sums.go.add_permits(4);
        assert_eq!(all(answers).await, [1, 1, 11, 1, 111]);
        assert_eq!(*sums.runs.lock().unwrap(), [vec![0], vec![1, 2], vec![1], vec![1]]);
    }

    #[tokio::test]
    async fn a_joint_call_keeps_its_bounds_and_a_large_one_goes_alone() {
        let mut calls: Vec<Add> = (0..6).map(|n| add(n, 1)).collect();
        calls[4].bytes = 1000;
        let (sums, _line, answers) = lined_up(Bounds { calls: 2, bytes: 100 }, calls).await;
        sums.go.add_permits(5);
        assert_eq!(all(answers).await, [1; 6]);
        assert_eq!(*sums.runs.lock().unwrap(), [vec![0], vec![1, 2], vec![3], vec![4], vec![5]]);
    }

    #[tokio::test]
    async fn a_failure_reaches_all_its_callers_and_the_next_go_on() {
        let (sums, line, mut answers) = lined_up(WIDE, vec![add(0, 1), add(1, 1), add(u8::MAX, 1)]).await;
        sums.go.add_permits(2);
        answers.remove(0).await.unwrap().unwrap();
        for t in answers {
            let e = t.await.unwrap().unwrap_err();
            let StoreError::Shared(original) = &e else { panic!("{e:?}") };
            assert!(matches!(**original, StoreError::Database(sqlx::Error::PoolTimedOut)), "{e}");
            assert!(e.is_outage());
        }
        sums.go.add_permits(1);
        assert_eq!(line.call(add(1, 5)).await.unwrap(), 5);
    }

    #[tokio::test]
    async fn callers_who_go_away_do_no_harm() {
        let (sums, line, mut answers) = lined_up(WIDE, (0..4).map(|n| add(n, 1)).collect()).await;
        for gone in [2, 0] {
            let t = answers.remove(gone);
            t.abort();
            assert!(t.await.unwrap_err().is_cancelled());
        }
        sums.go.add_permits(2);
        assert_eq!(all(answers).await, [1, 1]);
        assert_eq!(*sums.runs.lock().unwrap(), [vec![0], vec![1, 3]], "2 was never sent");
        assert_eq!(sums.undelivered.load(Ordering::SeqCst), 1, "0 was sent");
        sums.go.add_permits(1);
        assert_eq!(line.call(add(0, 1)).await.unwrap(), 2);
    }

    #[test]
    fn a_runtime_that_ends_under_a_call_leaves_the_line_usable() {
        let runtime = || tokio::runtime::Builder::new_current_thread().build().unwrap();
        let sums = Sums::new();
        let line = Arc::new(Coalescer::new(sums.clone(), WIDE));
        let first = runtime();
        first.block_on(async {
            spawn(&line, add(0, 1));
            until(|| !sums.runs.lock().unwrap().is_empty()).await;
        });
        drop(first);
        sums.go.add_permits(1);
        assert_eq!(runtime().block_on(line.call(add(0, 5))).unwrap(), 5);
    }

    /// Compares with the naive implementation: one call at a time.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn many_callers_get_what_one_at_a_time_would() {
        let sums = Sums::new();
        sums.go.add_permits(10_000);
        let line = Arc::new(Coalescer::new(sums.clone(), Bounds { calls: 7, bytes: 100 }));
        let answers: Vec<(u8, Answer)> = (0..2000u64)
            .map(|n| {
                let to = (n * n % 13) as u8;
                (to, spawn(&line, add(to, 1)))
            })
            .collect();
        let (mut got, mut expected): (HashMap<u8, Vec<u64>>, HashMap<u8, Vec<u64>>) = Default::default();
        for (to, t) in answers {
            got.entry(to).or_default().push(t.await.unwrap().unwrap());
            let twin = expected.entry(to).or_default();
            twin.push(twin.len() as u64 + 1);
        }
        for answers in got.values_mut() {
            answers.sort_unstable();
        }
        assert_eq!(got, expected, "each answer once");
        assert!(sums.runs.lock().unwrap().iter().all(|r| r.len() <= 7));
    }
}
