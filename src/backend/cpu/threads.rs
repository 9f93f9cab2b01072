//! The CPU's threads, lent to proofs.
//!
//! A proof has stages that keep only a few threads busy, and the more threads it has, the more of them idle then. So
//! concurrent proofs have few threads each, in pools of their own: in one pool for all, a thread that waits for a part
//! of its proof would start on another proof, and finish that first.

use std::sync::{Mutex, MutexGuard};
use std::thread::available_parallelism;

use rayon::{ThreadPool, ThreadPoolBuilder};

use super::super::{BackendError, DeviceKind};
use crate::model::locked;

/// Rows of a circuit per thread: some 30 ms of work with AVX-512 IFMA.
const ROWS_PER_THREAD: usize = 1 << 12;

/// Threads for proofs.
pub(super) struct Threads {
    /// The pool for a proof that runs alone, with as many threads as a proof may have.
    all: ThreadPool,
    /// Maximum number of threads of all proofs together.
    total: usize,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Running proofs and keys being loaded.
    proofs: usize,
    /// Their threads; a proof that runs alone counts with the share it would have alongside others.
    lent: usize,
    /// Unused pools, the one returned last at the end.
    idle: Vec<ThreadPool>,
}

impl Threads {
    /// Creates threads of which a proof may have `max_per_proof`, at least one, and all proofs together as many as
    /// there are cores, or `max_per_proof` if that is more.
    pub(super) fn new(max_per_proof: usize) -> Result<Self, BackendError> {
        Self::among(max_per_proof, available_parallelism().map_or(1, |n| n.get()))
    }

    fn among(max_per_proof: usize, cores: usize) -> Result<Self, BackendError> {
        let max_per_proof = max_per_proof.max(1);
        Ok(Self { all: pool(max_per_proof)?, total: max_per_proof.max(cores), state: Mutex::default() })
    }

    /// Returns the pool for work that runs alone.
    pub(super) fn all(&self) -> &ThreadPool {
        &self.all
    }

    /// Returns the number of threads that a proof of a circuit of `rows` rows has alongside others.
    pub(super) fn share(&self, rows: usize) -> usize {
        (rows / ROWS_PER_THREAD).clamp(1, self.all.current_num_threads())
    }

    fn state(&self) -> MutexGuard<'_, State> {
        locked(&self.state)
    }

    /// Marks the shared pool as busy with loading a key until the returned value is dropped. A proof that starts in the
    /// meantime has threads of its own, so that it does not wait behind the key.
    pub(super) fn loading(&self) -> Lent<'_> {
        self.state().proofs += 1;
        Lent { threads: self, share: 0, own: None }
    }

    /// Lends threads to a proof until the returned value is dropped: all that a proof may have if it is alone,
    /// otherwise `share`. If too few are left, or the system cannot create more, the proof uses the pool for work that
    /// runs alone.
    pub(super) fn lend(&self, share: usize) -> Lent<'_> {
        let (alone, full, ready) = {
            let mut state = self.state();
            let (alone, full) = (state.proofs == 0, state.lent + share > self.total);
            state.proofs += 1;
            state.lent += share;
            let fits = state.idle.iter().rposition(|pool| pool.current_num_threads() == share);
            (alone, full, fits.filter(|_| !alone && !full).map(|at| state.idle.remove(at)))
        };
        let own = if alone || full { None } else { ready.or_else(|| pool(share).ok()) };
        Lent { threads: self, share, own }
    }
}

/// Threads lent to a proof.
pub(super) struct Lent<'a> {
    threads: &'a Threads,
    share: usize,
    /// `None` where it uses the pool for work that runs alone.
    own: Option<ThreadPool>,
}

impl Lent<'_> {
    /// Returns the pool to compute on.
    pub(super) fn pool(&self) -> &ThreadPool {
        self.own.as_ref().unwrap_or(&self.threads.all)
    }
}

impl Drop for Lent<'_> {
    fn drop(&mut self) {
        let mut state = self.threads.state();
        state.proofs -= 1;
        state.lent -= self.share;
        state.idle.extend(self.own.take());
        // Circuits of other sizes may have left pools that are not needed any more.
        let threads = |idle: &[ThreadPool]| idle.iter().map(ThreadPool::current_num_threads).sum::<usize>();
        let keep = (0..state.idle.len()).find(|from| threads(&state.idle[*from..]) <= self.threads.total);
        let keep = keep.unwrap_or(state.idle.len());
        let old: Vec<_> = state.idle.drain(..keep).collect();
        drop(state);
        drop(old);
    }
}

/// Creates a pool of threads for proofs.
pub(super) fn pool(threads: usize) -> Result<ThreadPool, BackendError> {
    let pool = ThreadPoolBuilder::new().num_threads(threads).thread_name(|i| format!("prove-{i}")).build();
    pool.map_err(|e| BackendError::Unavailable { device: DeviceKind::Cpu.label(0), why: e.to_string() })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn of(lent: &Lent<'_>) -> usize {
        lent.pool().current_num_threads()
    }

    #[test]
    fn what_runs_alone_has_all_threads_and_what_runs_beside_it_its_share() {
        let threads = Threads::among(8, 16).unwrap();
        let alone = threads.lend(2);
        let beside = threads.lend(4);
        assert_eq!((of(&alone), of(&beside)), (8, 4));
        drop(alone);
        assert_eq!(of(&threads.lend(1)), 1, "another is at work still");
        drop(beside);
        assert_eq!(of(&threads.lend(1)), 8);
    }

    #[test]
    fn proofs_of_one_thread_each_have_all_cores() {
        let threads = Threads::among(1, 4).unwrap();
        let lent: Vec<_> = (0..4).map(|_| threads.lend(1)).collect();
        let mut pools: Vec<_> = lent.iter().map(|lent| std::ptr::from_ref(lent.pool())).collect();
        pools.sort();
        pools.dedup();
        assert_eq!(pools.len(), 4, "each has a thread of its own");
        assert_eq!(std::ptr::from_ref(threads.lend(1).pool()), threads.all(), "there are no more");
    }

    #[test]
    fn pools_are_used_again_and_no_more_are_kept_than_there_are_threads() {
        let threads = Threads::among(4, 4).unwrap();
        let alone = threads.lend(1);
        drop((threads.lend(1), threads.lend(1)));
        let kept = |threads: &Threads| -> Vec<_> {
            threads.state().idle.iter().map(ThreadPool::current_num_threads).collect()
        };
        assert_eq!(kept(&threads), [1, 1]);
        drop(threads.lend(1));
        assert_eq!(kept(&threads), [1, 1], "none was made anew");
        drop(threads.lend(3));
        assert_eq!(kept(&threads), [1, 3], "the one that was idle longest went");
        drop(alone);
        let state = threads.state();
        assert_eq!((state.proofs, state.lent), (0, 0));
    }

    #[test]
    fn a_proof_does_not_wait_behind_a_key() {
        let threads = Threads::among(4, 4).unwrap();
        let loading = threads.loading();
        assert_eq!(of(&threads.lend(4)), 4);
        assert_ne!(std::ptr::from_ref(threads.lend(4).pool()), threads.all());
        drop(loading);
        assert_eq!(std::ptr::from_ref(threads.lend(4).pool()), threads.all());
    }

    #[test]
    fn shares_follow_the_size_of_the_circuit() {
        let threads = Threads::among(6, 64).unwrap();
        let shares = [1, 10, 12, 13, 14, 15, 28].map(|log| threads.share(1 << log));
        assert_eq!(shares, [1, 1, 1, 2, 4, 6, 6]);
    }
}
