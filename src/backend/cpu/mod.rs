//! Proving on the CPU.
//!
//! **Layers.** `lanes/` is vectorised field arithmetic behind the traits `Isa`, `Field` and `Lanes`, with three
//! implementations: `portable` (one element, 64-bit limbs), `avx2` (eight elements, 51-bit limbs held in doubles and
//! multiplied by fused multiply-adds) and `ifma` (sixteen elements, 52-bit limbs, reductions deferred and merged where
//! bounds allow). `lanes/inverse.rs` inverts a single element for all of them. Everything above is written once over
//! these traits and compiled for each instruction set by `Isa::enter`; [`Instructions`] chooses one at run time
//! (`PROVER_CPU`).
//!
//! **Multi-scalar multiplication.** `digits.rs` recodes the scalars into signed digits, once for all products over one
//! witness; up to 2^12 scalars are first split in half by the curves' endomorphism (GLV), and keys that small hold the
//! image of each point. `msm/` sums segments of points by batch-affine additions in three stages (buckets, rows and
//! columns of buckets, bits), and prefetches the points of its next group while it computes with those of the current
//! one. `sections.rs` holds the points of a loaded key. Where a circuit of up to 2^15 rows proves often, it precomputes
//! multiples of the points for all windows, a little after each proof and at no other time, and uses them once they
//! have been shown to give the same products as the points alone. Multiples have a memory budget of their own and are
//! not counted in a key's footprint: most keys never get any.
//!
//! **Quotient.** `sparse.rs`, `ntt.rs` and `quotient.rs` compute the scalars of H from the witness.
//!
//! **Threads.** `threads.rs` lends each proof threads in a pool of its own: all of them to a proof that runs alone, and
//! to concurrent proofs a share by the size of their circuit.
//!
//! **Compilation.** A value of an `Isa` proves that the CPU has the instructions, and vectors are made from such a
//! value only. Code that the compiler does not inline into `enter` (a closure passed to `map`, for example) is compiled
//! without the instructions: it is correct, but many times slower. In debug builds products and other heavy steps are
//! separate functions; inlined as in release builds, they would take the compiler minutes more.
//!
//! **Tests.** One suite (`lanes/suite.rs`) holds for every instruction set. The IFMA code is written over words that
//! also have an emulation, so that it is tested on CPUs without the instructions.

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
use sections::{Budget, Precomputation, Sections};
use threads::Threads;

/// The CPU as a device.
pub struct CpuBackend {
    info: DeviceInfo,
    threads: Arc<Threads>,
    engine: Box<dyn Engine>,
    /// Memory for multiples of keys' points.
    multiples: Arc<Budget>,
}

impl CpuBackend {
    /// Creates a backend that uses the fastest instructions available and up to `threads` threads (at least one) for
    /// each proof. Concurrent proofs have fewer, by the size of their circuit ([`Backend::threads`]), and together as
    /// many as there are cores.
    pub fn new(threads: usize) -> Result<Self, BackendError> {
        Self::with(threads, Instructions::Auto)
    }

    /// Creates a backend with a given instruction set. Fails if this CPU does not have it.
    pub fn with(threads: usize, instructions: Instructions) -> Result<Self, BackendError> {
        let threads = threads.max(1);
        let engine = engine(instructions)?;
        let most = if threads == 1 { "one thread".to_owned() } else { format!("up to {threads} threads") };
        let info = DeviceInfo {
            kind: DeviceKind::Cpu,
            name: format!("{}, {} ({most} per proof)", std::env::consts::ARCH, engine.name()),
            ordinal: 0,
            threads,
            memory: 0,
        };
        Ok(Self { info, threads: Arc::new(Threads::new(threads)?), engine, multiples: Budget::new(0) })
    }

    /// Enables multiples of the points of keys that prove often, with a budget of `bytes` for all keys together; those
    /// of one key take some twenty times as much as its points. They speed up proofs of circuits of up to 2^15 rows
    /// once a key has proved about a hundred times. They are not counted in [`Backend::footprint`].
    pub fn with_multiples(mut self, bytes: u64) -> Self {
        self.multiples = Budget::new(bytes);
        self
    }

    /// Runs `work` on the threads that compute proofs; parallel parts of it start no others.
    pub fn on<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        self.threads.all().install(work)
    }
}

type Loaded = Result<Arc<dyn LoadedKey>, BackendError>;

/// The code above [`lanes`], compiled for one instruction set.
trait Engine: Send + Sync {
    /// The name of the instruction set.
    fn name(&self) -> &'static str;
    /// Returns the memory that a key and its proofs take.
    fn footprint(&self, key: &ProvingKey) -> Footprint;
    /// Loads a key. Its proofs use multiples of its points later on if their budget has room for them.
    fn load(&self, key: Arc<ProvingKey>, threads: &Arc<Threads>, multiples: &Arc<Budget>) -> Loaded;
    /// Returns the individual kernels, for benches.
    fn lab(&self) -> &dyn lab::Bench;
}

/// Returns the engine for an instruction set.
fn engine(instructions: Instructions) -> Result<Box<dyn Engine>, BackendError> {
    let set = instructions.resolve()?;
    #[cfg(target_arch = "x86_64")]
    match set {
        Instructions::Avx512Ifma => {
            if let Some(isa) = Avx512Ifma::detect() {
                return Ok(Box::new(EngineFor(isa)));
            }
        }
        Instructions::Avx2 => {
            if let Some(isa) = Avx2::detect() {
                return Ok(Box::new(EngineFor(isa)));
            }
        }
        Instructions::Auto | Instructions::Portable => {}
    }
    debug_assert_eq!(set, Instructions::Portable, "the only set that every processor has");
    Ok(Box::new(EngineFor(Portable)))
}

/// The engine for an instruction set that this CPU has.
struct EngineFor<I>(I);

impl<I: Isa> Engine for EngineFor<I> {
    fn name(&self) -> &'static str {
        I::NAME
    }

    fn footprint(&self, key: &ProvingKey) -> Footprint {
        // Points are copied out of the file, with their images where scalars are halved; matrices are converted. A
        // proof holds the quotient's vectors and, at the same time, the sorted witness: 6 bytes for each window of a
        // scalar (at most 86 windows of halves, 32 to 20 below 2^17 scalars, 20 to 16 above) while it is being sorted,
        // 4 afterwards. H's scalars are sorted when the vectors are gone.
        let (wires, domain) = (u64::from(key.header.n_vars), u64::from(key.header.domain_size));
        let at_load = |scalars: u64| Multiples::at_load(scalars as usize);
        let points = |bytes: usize, scalars: u64| bytes as u64 * at_load(scalars).per_point() as u64;
        let h = key.sections.h.len();
        let others = key.size() - key.sections.coefficients.len() - h;
        let sorted = |scalars: u64| match scalars {
            _ if at_load(scalars) == Multiples::Image => 524 * scalars,
            ..0x2_0000 => 200 * scalars,
            _ => 128 * scalars,
        };
        let sorted = sorted(wires).max(sorted(domain));
        Footprint {
            resident: points(h, domain) + points(others, wires) + 4 * wires + Constraints::<I>::resident(key),
            per_proof: Constraints::<I>::per_proof(key) + 2 * sorted,
            proof_buffers_kept: 0,
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

/// A loaded key: points packed, those at infinity dropped; matrices compact.
struct CpuKey<I: Isa> {
    isa: I,
    key: Arc<ProvingKey>,
    threads: Arc<Threads>,
    constraints: Constraints<I>,
    sections: Precomputation<I>,
}

impl<I: Isa> CpuKey<I> {
    fn new(isa: I, key: Arc<ProvingKey>, threads: Arc<Threads>, multiples: Arc<Budget>) -> Result<Self, BackendError> {
        let constraints = Constraints::index(isa, &key)?;
        release(&key.sections.coefficients);
        let sections = Precomputation::new(Sections::convert(isa, &key)?, &key, multiples);
        Ok(Self { isa, key, threads, constraints, sections })
    }

    /// Computes the five products with these sections; also returns how many scalars of wires and H are not 0, 1 or −1.
    fn products(
        &self,
        sections: &Sections<I>,
        w: &[BigInteger256],
        steps: &Steps<'_>,
    ) -> Result<(Commitments, [usize; 2]), BackendError> {
        let (lent, stop) = (Pool::new(), steps.stop);
        steps.advance(0)?;
        // All run concurrently: each has phases that keep only some threads busy, and a last one that keeps only one.
        let h = || -> Result<(G1, usize), BackendError> {
            let h = self.constraints.quotient(self.isa, w);
            steps.advance(10)?;
            let sorted = Sorted::new(h.scalars(), sections.domain);
            drop(h);
            let h = sections.h.msm(&sorted, &lent, stop);
            steps.advance(20)?;
            Ok((h, sorted.dense))
        };
        let sums = || -> Result<(G1, G1, G2, G1, usize), BackendError> {
            let sorted = Sorted::new(w, sections.wires);
            let in_g1 = |bases: &Bases<I, InG1>, percent| -> Result<G1, BackendError> {
                let sum = bases.msm(&sorted, &lent, stop);
                steps.advance(percent)?;
                Ok(sum)
            };
            let b2 = || -> Result<G2, BackendError> {
                let b2 = sections.b2.msm(&sorted, &Pool::new(), stop);
                steps.advance(25)?;
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

    /// Makes some multiples of the points after a proof and, once all are there, adopts them if they give the same
    /// products as the points alone. Both are computed for scalars with nearly all digits nonzero (half of those in the
    /// topmost window): the scalars of a witness may be 0 and 1, which use no multiples.
    fn precompute(&self, dense: [usize; 2]) {
        let Some(precomputed) = self.sections.proved(dense, &self.key) else { return };
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
        if by(&precomputed.sections) == by(&self.sections.sections()) {
            precomputed.adopt();
        } else {
            tracing::error!("multiples of a key's points do not come to what they should; proofs do without them");
        }
    }
}

/// Progress of a proof, in percent of the time that a dense circuit takes.
struct Steps<'a> {
    done: AtomicU32,
    stop: &'a StopToken,
    on: &'a dyn Progress,
}

impl Steps<'_> {
    /// Reports that `percent` percent more is done. Fails if the work was asked to stop, in which case the results
    /// computed since are meaningless.
    fn advance(&self, percent: u32) -> Result<(), BackendError> {
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
            self.precompute(dense);
            Ok(proved)
        })
    }
}
