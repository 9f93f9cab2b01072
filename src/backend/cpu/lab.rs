//! Individual kernels, for benches: no part of the worker uses this.

use std::sync::Arc;

use ark_ec::short_weierstrass::Projective;
use ark_ff::BigInteger256;
use rayon::ThreadPool;

use super::super::Bound;
use super::digits::{MAX_WINDOW, Multiples};
use super::lanes::{Field, Isa, Kernel, Lanes};
use super::msm::{Bases, Curve, InG1, InG2, Pool, Sorted};
use super::quotient::Constraints;
use super::threads::pool;
use super::{BackendError, Engine, EngineFor, Instructions, engine};
use crate::model::{Fq, G1, G2, ProvingKey, StopToken};

/// A kernel that is ready to run, any number of times.
pub type Run = Box<dyn FnMut()>;
/// A product of points with scalars, plain and below r.
pub type Product<G> = Box<dyn Fn(&[BigInteger256]) -> G>;

/// The kernels of one instruction set.
pub struct Lab {
    engine: Box<dyn Engine>,
    pool: Arc<ThreadPool>,
}

impl Lab {
    /// Returns the kernels of all instruction sets of this CPU, the slowest first, on `threads` threads.
    pub fn all(threads: usize) -> Result<Vec<Self>, BackendError> {
        let sets = Instructions::available().into_iter().rev();
        sets.map(|set| Ok(Self { engine: engine(set)?, pool: Arc::new(pool(threads)?) })).collect()
    }

    /// Returns the name of the instruction set.
    pub fn name(&self) -> &'static str {
        self.engine.name()
    }

    /// Returns a kernel that multiplies two slices in Fq element by element, on one thread. Their lengths must be
    /// equal, and a multiple of 16.
    pub fn products(&self, a: &[Fq], b: &[Fq]) -> Run {
        self.engine.lab().products(a, b)
    }

    /// Returns the product Σ scalarᵢ·pointᵢ in G1, for the points of a section of a key and as many scalars; with
    /// multiples of the points for windows of `window` bits, if given.
    pub fn g1(&self, section: &[u8], window: Option<usize>) -> Result<Product<G1>, BackendError> {
        self.engine.lab().g1(section, window, self.pool.clone())
    }

    /// Returns the product Σ scalarᵢ·pointᵢ in G2; see [`Lab::g1`].
    pub fn g2(&self, section: &[u8], window: Option<usize>) -> Result<Product<G2>, BackendError> {
        self.engine.lab().g2(section, window, self.pool.clone())
    }

    /// Returns a kernel that computes the quotient's values for a key and a witness of plain values below r.
    pub fn quotient(&self, key: &ProvingKey, witness: Vec<BigInteger256>) -> Result<Run, BackendError> {
        self.engine.lab().quotient(key, witness, self.pool.clone())
    }
}

/// The kernels of [`Lab`] for one instruction set.
pub(super) trait Bench {
    fn products(&self, a: &[Fq], b: &[Fq]) -> Run;
    fn g1(&self, section: &[u8], window: Option<usize>, pool: Arc<ThreadPool>) -> Result<Product<G1>, BackendError>;
    fn g2(&self, section: &[u8], window: Option<usize>, pool: Arc<ThreadPool>) -> Result<Product<G2>, BackendError>;
    fn quotient(&self, key: &ProvingKey, w: Vec<BigInteger256>, pool: Arc<ThreadPool>) -> Result<Run, BackendError>;
}

impl<I: Isa> Bench for EngineFor<I> {
    fn products(&self, a: &[Fq], b: &[Fq]) -> Run {
        let isa = self.0;
        let vectors = |x: &[Fq]| x.chunks_exact(I::LANES).map(|x| I::Fq::encode(isa, x)).collect::<Vec<_>>();
        let (a, b) = (vectors(a), vectors(b));
        let mut out = a.clone();
        Box::new(move || isa.enter(Products { a: &a, b: &b, out: std::hint::black_box(&mut out) }))
    }

    fn g1(&self, section: &[u8], window: Option<usize>, pool: Arc<ThreadPool>) -> Result<Product<G1>, BackendError> {
        product::<I, InG1>(self.0, section, window, pool)
    }

    fn g2(&self, section: &[u8], window: Option<usize>, pool: Arc<ThreadPool>) -> Result<Product<G2>, BackendError> {
        product::<I, InG2>(self.0, section, window, pool)
    }

    fn quotient(&self, key: &ProvingKey, w: Vec<BigInteger256>, pool: Arc<ThreadPool>) -> Result<Run, BackendError> {
        let isa = self.0;
        let constraints = pool.install(|| Constraints::index(isa, key))?;
        Ok(Box::new(move || {
            pool.install(|| std::hint::black_box(constraints.quotient(isa, &w)));
        }))
    }
}

fn product<I: Isa, C: Curve<I>>(
    isa: I,
    section: &[u8],
    window: Option<usize>,
    pool: Arc<ThreadPool>,
) -> Result<Product<Projective<C::Config>>, BackendError> {
    let count = section.len() / C::BYTES;
    let mut multiples = Multiples::at_load(count);
    let mut bases = pool.install(|| Bases::<I, C>::new(isa, section, 0, count))?;
    if let Some(bits) = window {
        let (what, bound) = ("bits of a window for which there can be multiples", Bound::AtMost(MAX_WINDOW as u64));
        let wrong = BackendError::OutOfRange { what, bound, got: bits as u64 };
        multiples = Multiples::windows(bits, count).ok_or(wrong)?;
        bases = bases.with_capacity_for(multiples);
        let made = pool.install(|| (1..multiples.per_point()).all(|window| bases.fill(window)));
        if !made {
            return Err(BackendError::Shape { what: "multiples at infinity", expected: 0, got: 1 });
        }
    }
    let stop = StopToken::new();
    Ok(Box::new(move |scalars| pool.install(|| bases.msm(&Sorted::new(scalars, multiples), &Pool::new(), &stop))))
}

struct Products<'a, L> {
    a: &'a [L],
    b: &'a [L],
    out: &'a mut [L],
}

impl<I: Isa> Kernel<I> for Products<'_, I::Fq> {
    type Out = ();

    #[inline(always)]
    fn run(self, _: I) {
        for ((out, a), b) in self.out.iter_mut().zip(self.a).zip(self.b) {
            *out = I::Fq::mul(*a, *b);
        }
    }
}
