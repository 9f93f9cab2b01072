//! The points of a key, and precomputed multiples of them for keys that prove often.
//!
//! Products are faster with multiples of the points for all windows (`msm/multiples.rs`), but making these takes as
//! long as a dozen proofs, and some twenty times the memory of the points. So they are made only for keys that have
//! proved many times, and incrementally: after each proof those of one section for one window, which takes about an
//! eighth of the proof's own time. No proof waits long for them, and no work goes on while the device seems idle.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use super::super::BackendError;
use super::super::mapped::release;
use super::digits::{MAX_WINDOW, Multiples, best_shared_window};
use super::lanes::Isa;
use super::msm::{Bases, InG1, InG2};
use crate::model::{ProvingKey, locked};

/// Proofs before the first multiples are made: about as many as take as long as making all multiples, so that a key
/// that is not used again has cost at most twice as much as necessary.
const PROOFS_BEFORE_MULTIPLES: u32 = 16;

/// Maximum number of rows of a circuit whose key gets multiples. The multiples of larger keys lie so far outside the
/// caches that reading them costs as much as they save (docs/benchmarks.md).
const MAX_ROWS: u32 = 1 << 15;

/// Multiples may take [`MAX_PER_POINT`] times the bytes of the points and [`SPARE`] bytes more. Windows of 11 bits make
/// 24 multiples of each point; keys so small that narrower windows are better have some more.
const MAX_PER_POINT: u64 = 24;
const SPARE: u64 = 1 << 20;

/// The memory budget for the multiples of all keys of a device.
pub(super) struct Budget {
    /// Bytes not in use.
    free: Mutex<u64>,
}

/// A part of the budget, returned when dropped.
struct Share {
    budget: Arc<Budget>,
    bytes: u64,
}

impl Budget {
    pub(super) fn new(bytes: u64) -> Arc<Self> {
        Arc::new(Self { free: Mutex::new(bytes) })
    }

    fn free(&self) -> MutexGuard<'_, u64> {
        locked(&self.free)
    }

    fn take(self: &Arc<Self>, bytes: u64) -> Option<Share> {
        let mut free = self.free();
        *free = free.checked_sub(bytes)?;
        Some(Share { budget: self.clone(), bytes })
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        *self.budget.free() += self.bytes;
    }
}

/// Packed points by section, without those at infinity.
pub(super) struct Sections<I: Isa> {
    pub(super) a: Bases<I, InG1>,
    pub(super) b1: Bases<I, InG1>,
    pub(super) b2: Bases<I, InG2>,
    pub(super) c: Bases<I, InG1>,
    pub(super) h: Bases<I, InG1>,
    /// The multiples of the points of A, B and C.
    pub(super) wires: Multiples,
    /// The multiples of the points of H.
    pub(super) domain: Multiples,
    /// The memory counted for the multiples; dropped last.
    _share: Option<Share>,
}

impl<I: Isa> Sections<I> {
    /// Converts the sections one after another, each in parallel, and releases its pages of the mapped file: the file
    /// and the converted key are never both fully in memory.
    pub(super) fn convert(isa: I, key: &ProvingKey) -> Result<Self, BackendError> {
        let s = &key.sections;
        let private = key.header.n_public as usize + 1;
        let (wires, domain) = (key.header.n_vars as usize, key.header.domain_size as usize);
        let g1 = |section: &[u8], first, scalars| {
            let bases = Bases::new(isa, section, first, scalars)?;
            release(section);
            Ok::<_, BackendError>(bases)
        };
        let b2 = Bases::new(isa, &s.b2, 0, wires)?;
        release(&s.b2);
        let (a, b1, c, h) =
            (g1(&s.a, 0, wires)?, g1(&s.b1, 0, wires)?, g1(&s.c, private, wires)?, g1(&s.h, 0, domain)?);
        let (wires, domain) = (Multiples::at_load(wires), Multiples::at_load(domain));
        Ok(Self { a, b1, b2, c, h, wires, domain, _share: None })
    }

    /// Returns the same points with memory for other multiples, if the budget and the system have enough.
    fn with_capacity_for(&self, wires: Multiples, domain: Multiples, budget: &Arc<Budget>) -> Option<Self> {
        let in_g1 = [&self.a, &self.b1, &self.c].map(|bases| bases.bytes(wires));
        let bytes = in_g1.iter().sum::<usize>() + self.b2.bytes(wires) + self.h.bytes(domain);
        let share = budget.take(bytes as u64)?;
        // Multiples are optional, so failing to allocate them must not end the program: the allocation is tried first.
        Vec::<u8>::new().try_reserve_exact(bytes).ok()?;
        Some(Self {
            a: self.a.with_capacity_for(wires),
            b1: self.b1.with_capacity_for(wires),
            b2: self.b2.with_capacity_for(wires),
            c: self.c.with_capacity_for(wires),
            h: self.h.with_capacity_for(domain),
            wires,
            domain,
            _share: Some(share),
        })
    }

    /// Makes the multiples of step `step`, those of one section for one window. Returns false if they cannot be made,
    /// and `None` if there is no such step.
    fn fill(&mut self, step: usize) -> Option<bool> {
        // The first multiples, the points themselves, are already there.
        let (wires, domain) = (self.wires.per_point() - 1, self.domain.per_point() - 1);
        let window = step % wires + 1;
        Some(match step / wires {
            0 => self.a.fill(window),
            1 => self.b1.fill(window),
            2 => self.b2.fill(window),
            3 => self.c.fill(window),
            _ => {
                let window = step - 4 * wires + 1;
                if window > domain {
                    return None;
                }
                self.h.fill(window)
            }
        })
    }
}

/// Returns the bytes of a key's points in its file.
fn bytes(key: &ProvingKey) -> u64 {
    let s = &key.sections;
    [&s.a, &s.b1, &s.b2, &s.c, &s.h].map(|section| section.len() as u64).iter().sum()
}

/// The sections of a key, and how far the precomputation of their multiples is.
pub(super) struct Precomputation<I: Isa> {
    current: RwLock<Arc<Sections<I>>>,
    state: Mutex<State<I>>,
    budget: Arc<Budget>,
    /// Minimum bits of a window, by the memory that multiples may take.
    min_window: usize,
}

enum State<I: Isa> {
    /// The number of proofs so far.
    Waiting(u32),
    /// The sections being filled, and the number of steps done.
    Computing(Box<Sections<I>>, usize),
    /// The multiples are complete, or there will be none.
    Done,
}

/// Completed multiples, which the caller verifies before it adopts them.
pub(super) struct Precomputed<'a, I: Isa> {
    precomputation: &'a Precomputation<I>,
    state: MutexGuard<'a, State<I>>,
    /// The sections with their multiples.
    pub(super) sections: Sections<I>,
}

impl<I: Isa> Precomputation<I> {
    /// Creates sections that get multiples once the key has proved often, if it is small and the budget has room then.
    pub(super) fn new(sections: Sections<I>, key: &ProvingKey, budget: Arc<Budget>) -> Self {
        let small = key.header.domain_size <= MAX_ROWS;
        let state = if small { State::Waiting(0) } else { State::Done };
        let per_point = MAX_PER_POINT + SPARE / bytes(key).max(1);
        let fits = |bits: &usize| Multiples::Windows { bits: *bits, wire: 0 }.per_point() as u64 <= per_point;
        let min_window = (1..MAX_WINDOW).find(fits).unwrap_or(MAX_WINDOW);
        Self { current: RwLock::new(Arc::new(sections)), state: Mutex::new(state), budget, min_window }
    }

    /// Returns the current sections.
    pub(super) fn sections(&self) -> Arc<Sections<I>> {
        self.current.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Called after a proof with the numbers of scalars of the wires and of H that are not 0, 1 or −1. Makes some
    /// multiples on the threads of the caller's pool, if it is time and no other thread is doing so. Returns the result
    /// of the last step.
    pub(super) fn proved(&self, [wires, domain]: [usize; 2], key: &ProvingKey) -> Option<Precomputed<'_, I>> {
        let mut state = self.state.try_lock().ok()?;
        match &mut *state {
            State::Done => return None,
            State::Waiting(proofs) if *proofs < PROOFS_BEFORE_MULTIPLES => *proofs += 1,
            State::Waiting(_) => {
                let multiples = |dense, scalars: u32| {
                    Multiples::windows(best_shared_window(dense, self.min_window), scalars as usize)
                };
                let header = &key.header;
                let (Some(wires), Some(domain)) =
                    (multiples(wires, header.n_vars), multiples(domain, header.domain_size))
                else {
                    *state = State::Done;
                    return None;
                };
                // If there is no room now, there may be some once other keys are gone.
                if let Some(sections) = self.sections().with_capacity_for(wires, domain, &self.budget) {
                    *state = State::Computing(Box::new(sections), 0);
                }
            }
            State::Computing(sections, step) => match sections.fill(*step) {
                Some(true) => *step += 1,
                Some(false) => *state = State::Done,
                None => {
                    if let State::Computing(sections, _) = std::mem::replace(&mut *state, State::Done) {
                        return Some(Precomputed { precomputation: self, state, sections: *sections });
                    }
                }
            },
        }
        None
    }
}

impl<I: Isa> Precomputed<'_, I> {
    /// Uses the multiples for all proofs from now on.
    pub(super) fn adopt(self) {
        let Self { precomputation, state, sections } = self;
        *precomputation.current.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(sections);
        drop(state);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use ark_ff::{BigInteger256, PrimeField, UniformRand};
    use ark_std::rand::{SeedableRng, rngs::StdRng};

    use super::super::CpuKey;
    use super::super::lanes::portable::Portable;
    use super::super::threads::Threads;
    use super::*;
    use crate::backend::{Commitments, LoadedKey, Quiet, selftest};
    use crate::model::{Fr, StopToken, Witness};

    const WIRES: usize = 70;

    fn load(key: &Arc<ProvingKey>, budget: u64) -> CpuKey<Portable> {
        CpuKey::new(Portable, key.clone(), Arc::new(Threads::new(2).unwrap()), Budget::new(budget)).unwrap()
    }

    fn commit(key: &CpuKey<Portable>, witness: &Witness) -> Commitments {
        key.commit(witness, &StopToken::new(), &Quiet).unwrap()
    }

    fn is_done(key: &CpuKey<Portable>) -> bool {
        matches!(*key.sections.state.lock().unwrap(), State::Done)
    }

    fn has_multiples(key: &CpuKey<Portable>) -> bool {
        matches!(key.sections.sections().wires, Multiples::Windows { .. })
    }

    /// Proves until no more multiples are being made; returns the number of proofs.
    fn prove_often(key: &CpuKey<Portable>, witness: &Witness, expected: &Commitments) -> u32 {
        (1..1000)
            .find(|_| {
                assert_eq!(commit(key, witness), *expected);
                is_done(key)
            })
            .expect("an end to it")
    }

    fn any_witness(seed: u64) -> Witness {
        let mut rng = StdRng::seed_from_u64(seed);
        let any: Vec<BigInteger256> = (0..WIRES).map(|_| Fr::rand(&mut rng).into_bigint()).collect();
        Witness::from_canonical(any)
    }

    #[test]
    fn a_key_that_proves_often_has_multiples_and_proves_the_same() {
        let (key, witness, expected) = selftest::example(WIRES, 5, 64);
        let key = Arc::new(key);
        let (plain, loaded) = (load(&key, 0), load(&key, 1 << 30));
        for _ in 0..=PROOFS_BEFORE_MULTIPLES {
            assert_eq!(commit(&loaded, &witness), expected);
            assert!(matches!(*loaded.sections.state.lock().unwrap(), State::Waiting(_) | State::Computing(_, 0)));
        }
        let proofs = prove_often(&loaded, &witness, &expected);
        assert!(has_multiples(&loaded));
        let sections = loaded.sections.sections();
        let steps = 4 * (sections.wires.per_point() - 1) + sections.domain.per_point() - 1;
        assert_eq!(proofs as usize, steps + 1, "a step beside each proof, and then the end");
        for seed in 0..20 {
            let any = any_witness(seed);
            assert_eq!(commit(&loaded, &any), commit(&plain, &any));
        }
        let free = *loaded.sections.budget.free();
        assert!(free < 1 << 30, "they are counted");
        let budget = loaded.sections.budget.clone();
        drop((sections, loaded));
        assert_eq!(*budget.free(), 1 << 30, "and no longer, once the key is gone");
    }

    #[test]
    fn a_key_without_room_waits_for_some() {
        let (key, witness, expected) = selftest::example(WIRES, 5, 64);
        let loaded = load(&Arc::new(key), 1000);
        for _ in 0..2 * PROOFS_BEFORE_MULTIPLES {
            assert_eq!(commit(&loaded, &witness), expected);
        }
        assert!(matches!(*loaded.sections.state.lock().unwrap(), State::Waiting(PROOFS_BEFORE_MULTIPLES)));
        assert_eq!(*loaded.sections.budget.free(), 1000);
        *loaded.sections.budget.free() = 1 << 30;
        commit(&loaded, &witness);
        assert!(matches!(*loaded.sections.state.lock().unwrap(), State::Computing(_, 0)));
    }

    /// All multiples of the key's points, made at once.
    fn made(key: &CpuKey<Portable>) -> (Sections<Portable>, usize) {
        let windows = |scalars: usize| Multiples::windows(9, scalars).unwrap();
        let room = key.sections.sections().with_capacity_for(windows(WIRES), windows(64), &key.sections.budget);
        let mut sections = room.unwrap();
        let steps = (0..).take_while(|step| sections.fill(*step).inspect(|made| assert!(made)).is_some()).count();
        (sections, steps)
    }

    #[test]
    fn wrong_multiples_are_never_used() {
        let (key, witness, expected) = selftest::example(WIRES, 5, 64);
        let key = Arc::new(key);
        for wrong in 0..6 {
            let loaded = load(&key, 1 << 30);
            let (mut sections, steps) = made(&loaded);
            // As if memory had failed: swaps two points of a window, in one section after another.
            match wrong {
                0 => sections.a.corrupt(3),
                1 => sections.b1.corrupt(27),
                2 => sections.b2.corrupt(1),
                3 => sections.c.corrupt(2),
                4 => sections.h.corrupt(20),
                _ => {}
            }
            *loaded.sections.state.lock().unwrap() = State::Computing(Box::new(sections), steps);
            assert_eq!(commit(&loaded, &witness), expected);
            assert!(is_done(&loaded));
            assert_eq!(has_multiples(&loaded), wrong == 5, "section {wrong}");
            assert_eq!(commit(&loaded, &witness), expected);
        }
    }

    #[test]
    fn a_key_with_a_multiple_at_infinity_does_without() {
        let (key, witness, _) = selftest::example(WIRES, 5, 64);
        // The last point of H: of order two, on whichever curve it is.
        let mut h = key.sections.h.to_vec();
        let y = h.len() - 32..;
        h[y].fill(0);
        let key = Arc::new(ProvingKey { sections: crate::model::KeySections { h: h.into(), ..key.sections }, ..key });
        let loaded = load(&key, 1 << 30);
        let expected = commit(&loaded, &witness);
        prove_often(&loaded, &witness, &expected);
        assert!(!has_multiples(&loaded));
        assert_eq!(*loaded.sections.budget.free(), 1 << 30);
    }

    fn keeps_to_its_bounds<I: Isa>(isa: I) {
        for (wires, public, domain) in [(WIRES, 1, 64), (7, 1, 2), (34, 0, 2), (2000, 1, 2048)] {
            let key = selftest::example(wires, public, domain).0;
            for dense in [0, 1, wires] {
                let budget = Budget::new(1 << 40);
                let precomputation = Precomputation::new(Sections::convert(isa, &key).unwrap(), &key, budget.clone());
                *precomputation.state.lock().unwrap() = State::Waiting(PROOFS_BEFORE_MULTIPLES);
                assert!(precomputation.proved([dense, domain], &key).is_none());
                let State::Computing(sections, 0) = &*precomputation.state.lock().unwrap() else { panic!("not begun") };
                let in_g1 = [&sections.a, &sections.b1, &sections.c, &sections.h].map(Bases::taken);
                let bytes = in_g1.iter().sum::<usize>() + sections.b2.taken();
                assert_eq!((1 << 40) - *budget.free(), bytes as u64, "what is counted is what is taken");
                // Sections are filled up to whole vectors.
                let most = MAX_PER_POINT * (super::bytes(&key) + 6 * 16 * 64) + 2 * SPARE;
                assert!(bytes as u64 <= most, "{bytes} for {wires} wires, {dense} of them dense, {}", I::NAME);
            }
        }
    }

    #[test]
    fn multiples_take_what_is_counted_for_them() {
        keeps_to_its_bounds(Portable);
        #[cfg(target_arch = "x86_64")]
        match super::super::lanes::ifma::Avx512Ifma::detect() {
            Some(isa) => keeps_to_its_bounds(isa),
            None => eprintln!("SKIPPED on avx512ifma, which this processor does not have"),
        }
    }

    #[test]
    fn large_keys_do_without() {
        let mut key = selftest::example(WIRES, 5, 64).0;
        let sections = || Sections::convert(Portable, &key).unwrap();
        let (small, large) = (sections(), sections());
        let is_done = |sections, key: &ProvingKey| {
            let precomputation = Precomputation::new(sections, key, Budget::new(1 << 40));
            matches!(*precomputation.state.lock().unwrap(), State::Done)
        };
        key.header.domain_size = MAX_ROWS;
        assert!(!is_done(small, &key));
        key.header.domain_size = 2 * MAX_ROWS;
        assert!(is_done(large, &key));
    }
}
