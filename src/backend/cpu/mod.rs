//! The processor.
//!
//! The code above `lanes` is written once and compiled for each instruction set; which one computes is chosen when the
//! backend is made ([`Instructions`]); `threads.rs` lends each proof the threads it runs on.

mod digits;
mod instructions;
#[doc(hidden)]
pub mod lab;
mod lanes;
mod msm;
mod ntt;
mod quotient;
mod scattered;
mod sections;
pub(super) mod sparse;
mod threads;

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use super::mapped::release;
use super::{Backend, BackendError, Commitments, DeviceInfo, DeviceKind, Footprint, LoadedKey, Progress, Quiet};
use crate::model::{Fr, G1, G2, ProvingKey, StopToken, Witness};
use ark_ff::{BigInteger256, Field, PrimeField};
use digits::Multiples;
pub use instructions::Instructions;
use lanes::Isa;
use lanes::portable::Portable;
#[cfg(target_arch = "x86_64")]
use lanes::{avx2::Avx2, ifma::Avx512Ifma};
use msm::{Bases, InG1, Pool, Sorted};
use quotient::Constraints;
use sections::{Budget, Growing, Sections};
use threads::Threads;

/// The processor as a device.
pub struct CpuBackend {
    info: DeviceInfo,
    threads: Arc<Threads>,
    engine: Box<dyn Engine>,
    /// For multiples of keys' points.
    multiples: Arc<Budget>,
}

impl CpuBackend {
    /// A backend whose proofs use up to `threads` threads each (at least one), and the fastest instructions there are. Proofs
    /// that run at the same time have fewer, by the size of their circuit ([`Backend::threads`]), and as many as there are
    /// cores together.
    pub fn new(threads: usize) -> Result<Self, BackendError> {
        Self::with(threads, Instructions::Auto)
    }

    /// The same with instructions of choice. Fails if this processor does not have them.
    pub fn with(threads: usize, instructions: Instructions) -> Result<Self, BackendError> {
        let threads = threads.max(1);
        let engine = engine(instructions)?;
        let most = if threads == 1 { "one thread".to_owned() } else { format!("up to {threads} threads") };
        let info = DeviceInfo {
            kind: DeviceKind::Cpu,
            name: format!("{}, {} ({most} a proof)", std::env::consts::ARCH, engine.name()),
            ordinal: 0,
            threads,
            memory: 0,
        };
        Ok(Self { info, threads: Arc::new(Threads::new(threads)?), engine, multiples: Budget::new(0) })
    }

    /// The same, with multiples of the points of keys that prove often, which take up to so many bytes for all keys together: of
    /// a key some twenty times what its points take. For circuits of up to 2^15 rows, whose proofs are faster by them once a
    /// key has proved some hundred times. They are not in [`Backend::footprint`].
    pub fn with_multiples(mut self, bytes: u64) -> Self {
        self.multiples = Budget::new(bytes);
        self
    }

    /// Does work on the threads that proofs are computed on: what is parallel in it starts no others.
    pub fn on<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        self.threads.all().install(work)
    }
}

type Loaded = Result<Arc<dyn LoadedKey>, BackendError>;

/// The code above [`lanes`] as compiled for one instruction set.
trait Engine: Send + Sync {
    /// The name of the instruction set.
    fn name(&self) -> &'static str;
    /// Memory for a key.
    fn footprint(&self, key: &ProvingKey) -> Footprint;
    /// Makes a key ready, for proofs with multiples of its points later on if there is room for them.
    fn load(&self, key: Arc<ProvingKey>, threads: &Arc<Threads>, multiples: &Arc<Budget>) -> Loaded;
    /// Kernels by themselves, for benches.
    fn lab(&self) -> &dyn lab::Bench;
}

/// The engine for these instructions.
fn engine(instructions: Instructions) -> Result<Box<dyn Engine>, BackendError> {
    let set = instructions.resolve()?;
    #[cfg(target_arch = "x86_64")]
    match set {
        Instructions::Avx512Ifma => {
            if let Some(isa) = Avx512Ifma::detect() {
                return Ok(Box::new(On(isa)));
            }
        }
        Instructions::Avx2 => {
            if let Some(isa) = Avx2::detect() {
                return Ok(Box::new(On(isa)));
            }
        }
        Instructions::Auto | Instructions::Portable => {}
    }
    debug_assert_eq!(set, Instructions::Portable, "the only set that every processor has");
    Ok(Box::new(On(Portable)))
}

/// An engine on an instruction set that is there.
struct On<I>(I);

impl<I: Isa> Engine for On<I> {
    fn name(&self) -> &'static str {
        I::NAME
    }

    fn footprint(&self, key: &ProvingKey) -> Footprint {
        // Points are copied out of the file, with their images where scalars are halved; matrices are written anew. A
        // proof holds the quotient's vectors and, beside them, what the witness is sorted into: 6 bytes for each window (at
        // most 86 of halves, 32 to 20 below 2^17 scalars, 20 to 16 above) while it is sorted, 4 afterwards; H's scalars are
        // sorted when the vectors are gone.
        let (wires, domain) = (u64::from(key.header.n_vars), u64::from(key.header.domain_size));
        let few = |scalars: u64| Multiples::few(scalars as usize);
        let points = |bytes: usize, scalars: u64| bytes as u64 * few(scalars).of_each() as u64;
        let h = key.sections.h.len();
        let others = key.size() - key.sections.coefficients.len() - h;
        let sorted = |scalars: u64| match scalars {
            _ if few(scalars) == Multiples::Image => 524 * scalars,
            ..0x2_0000 => 200 * scalars,
            _ => 128 * scalars,
        };
        let sorted = sorted(wires).max(sorted(domain));
        Footprint {
            resident: points(h, domain) + points(others, wires) + 4 * wires + Constraints::<I>::resident(key),
            per_proof: Constraints::<I>::per_proof(key) + 2 * sorted,
            kept: 0,
        }
    }

    fn load(&self, key: Arc<ProvingKey>, threads: &Arc<Threads>, multiples: &Arc<Budget>) -> Loaded {
        Ok(Arc::new(threads.all().install(|| CpuKey::new(self.0, key, threads.clone(), multiples.clone()))?))
    }

    fn lab(&self) -> &dyn lab::Bench {
        self
    }
}

impl Backend for CpuBackend {
    fn device(&self) -> &DeviceInfo {
        &self.info
    }

    fn footprint(&self, key: &ProvingKey) -> Footprint {
        self.engine.footprint(key)
    }

    fn threads(&self, key: &ProvingKey) -> usize {
        self.threads.share(key.header.domain_size as usize)
    }

    fn load(&self, key: Arc<ProvingKey>) -> Result<Arc<dyn LoadedKey>, BackendError> {
        let _at_work = self.threads.loading();
        self.engine.load(key, &self.threads, &self.multiples)
    }
}

/// A key in memory: points packed, those at infinity dropped; matrices compact.
struct CpuKey<I: Isa> {
    isa: I,
    key: Arc<ProvingKey>,
    threads: Arc<Threads>,
    constraints: Constraints<I>,
    sections: Growing<I>,
}

impl<I: Isa> CpuKey<I> {
    fn new(isa: I, key: Arc<ProvingKey>, threads: Arc<Threads>, multiples: Arc<Budget>) -> Result<Self, BackendError> {
        let constraints = Constraints::index(isa, &key)?;
        release(&key.sections.coefficients);
        let sections = Growing::new(Sections::convert(isa, &key)?, &key, multiples);
        Ok(Self { isa, key, threads, constraints, sections })
    }

    /// The five products by these sections, and how many scalars of wires and of H were not 0, 1 or −1.
    fn products(
        &self,
        sections: &Sections<I>,
        w: &[BigInteger256],
        steps: &Steps<'_>,
    ) -> Result<(Commitments, [usize; 2]), BackendError> {
        let (lent, stop) = (Pool::new(), steps.stop);
        steps.done(0)?;
        // All side by side: each has parts that keep only some of many threads busy, and an end that keeps one.
        let h = || -> Result<(G1, usize), BackendError> {
            let h = self.constraints.quotient(self.isa, w);
            steps.done(10)?;
            let sorted = Sorted::new(h.scalars(), sections.domain);
            drop(h);
            let h = sections.h.msm(&sorted, &lent, stop);
            steps.done(20)?;
            Ok((h, sorted.dense))
        };
        let sums = || -> Result<(G1, G1, G2, G1, usize), BackendError> {
            let sorted = Sorted::new(w, sections.wires);
            let in_g1 = |bases: &Bases<I, InG1>, percent| -> Result<G1, BackendError> {
                let sum = bases.msm(&sorted, &lent, stop);
                steps.done(percent)?;
                Ok(sum)
            };
            let b2 = || -> Result<G2, BackendError> {
                let b2 = sections.b2.msm(&sorted, &Pool::new(), stop);
                steps.done(25)?;
                Ok(b2)
            };
            let ac = || rayon::join(|| in_g1(&sections.a, 18), || in_g1(&sections.c, 18));
            let ((b2, b1), (a, c)) = rayon::join(|| rayon::join(b2, || in_g1(&sections.b1, 9)), ac);
            Ok((a?, b1?, b2?, c?, sorted.dense))
        };
        let (h, sums) = rayon::join(h, sums);
        let ((h, domain), (a, b1, b2, c, wires)) = (h?, sums?);
        Ok((Commitments { a, b1, b2, c, h }, [wires, domain]))
    }

    /// After a proof: has multiples of the points made, and once they are there, uses them if they come to what the points come
    /// to. By scalars that have nearly every digit (of the topmost window half): those of a witness may be 0 and 1, which
    /// ask for no multiple.
    fn grow(&self, dense: [usize; 2]) {
        let Some(grown) = self.sections.proved(dense, &self.key) else { return };
        let mut state = Fr::from(0x6d75_6c74_6970u64);
        let next = || {
            state = state.square() + Fr::from(7u64);
            state.into_bigint()
        };
        let any: Vec<_> = std::iter::repeat_with(next).take(self.key.header.n_vars as usize).collect();
        let by = |sections| {
            let steps = Steps { done: AtomicU32::new(0), stop: &StopToken::new(), on: &Quiet };
            self.products(sections, &any, &steps).map(|(products, _)| products)
        };
        if by(&grown.sections) == by(&self.sections.sections()) {
            grown.adopt();
        } else {
            tracing::error!("multiples of a key's points do not come to what they should; proofs do without them");
        }
    }
}

/// Counts what is done of a proof, in shares of the time that a dense circuit takes.
struct Steps<'a> {
    done: AtomicU32,
    stop: &'a StopToken,
    on: &'a dyn Progress,
}

impl Steps<'_> {
    /// `percent` more is done. Fails if the work was asked to stop: what was computed since is meaningless then.
    fn done(&self, percent: u32) -> Result<(), BackendError> {
        if let Some(why) = self.stop.stopped() {
            return Err(BackendError::Stopped(why));
        }
        let before = self.done.fetch_add(percent, Ordering::Relaxed);
        self.on.report((before + percent) as f32 / 100.0);
        Ok(())
    }
}

impl<I: Isa> LoadedKey for CpuKey<I> {
    fn key(&self) -> &Arc<ProvingKey> {
        &self.key
    }

    fn commit(&self, witness: &Witness, stop: &StopToken, on: &dyn Progress) -> Result<Commitments, BackendError> {
        let expected = self.key.header.n_vars as usize;
        if witness.len() != expected {
            return Err(BackendError::Shape {
                what: "witness values",
                expected: expected as u64,
                got: witness.len() as u64,
            });
        }
        let steps = Steps { done: AtomicU32::new(0), stop, on };
        let w = witness.values();
        let threads = self.threads.lend(self.threads.share(self.key.header.domain_size as usize));
        threads.pool().install(|| {
            let (proved, dense) = self.products(&self.sections.sections(), w, &steps)?;
            self.grow(dense);
            Ok(proved)
        })
    }
}
