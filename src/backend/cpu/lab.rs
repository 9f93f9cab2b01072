//! Kernels by themselves, for benches: no part of the worker uses this.

use std::sync::Arc;

use ark_ff::BigInteger256;
use rayon::ThreadPool;

use super::lanes::{Field, Isa, Kernel, Lanes};
use super::msm::{Bases, InG1, InG2, Pool, Sorted};
use super::quotient::Constraints;
use super::threads::pool;
use super::{BackendError, Engine, Instructions, On, engine};
use crate::model::{Fq, G1, G1_BYTES, G2, G2_BYTES, ProvingKey, StopToken};

/// A kernel that is ready to run, over and over.
pub type Run = Box<dyn FnMut()>;
/// A product of points with scalars, plain and below r.
pub type Product<G> = Box<dyn Fn(&[BigInteger256]) -> G>;

/// The kernels of one instruction set.
pub struct Lab {
    engine: Box<dyn Engine>,
    pool: Arc<ThreadPool>,
}

impl Lab {
    /// Those of all instruction sets of this processor, the slowest first, on so many threads.
    pub fn all(threads: usize) -> Result<Vec<Self>, BackendError> {
        let sets = Instructions::available().into_iter().rev();
        sets.map(|set| Ok(Self { engine: engine(set)?, pool: Arc::new(pool(threads)?) })).collect()
    }

    /// The name of the instruction set.
    pub fn name(&self) -> &'static str {
        self.engine.name()
    }

    /// Products in Fq, element by element, of two slices of equal length, a multiple of 16; on one thread.
    pub fn products(&self, a: &[Fq], b: &[Fq]) -> Run {
        self.engine.lab().products(a, b)
    }

    /// Σ scalarᵢ·pointᵢ in G1, for the points of a section of a key and as many scalars.
    pub fn g1(&self, section: &[u8]) -> Result<Product<G1>, BackendError> {
        self.engine.lab().g1(section, self.pool.clone())
    }

    /// Σ scalarᵢ·pointᵢ in G2.
    pub fn g2(&self, section: &[u8]) -> Result<Product<G2>, BackendError> {
        self.engine.lab().g2(section, self.pool.clone())
    }

    /// The quotient's values for a key and a witness of plain values below r.
    pub fn quotient(&self, key: &ProvingKey, witness: Vec<BigInteger256>) -> Result<Run, BackendError> {
        self.engine.lab().quotient(key, witness, self.pool.clone())
    }
}

/// The same on an instruction set.
pub(super) trait Bench {
    fn products(&self, a: &[Fq], b: &[Fq]) -> Run;
    fn g1(&self, section: &[u8], pool: Arc<ThreadPool>) -> Result<Product<G1>, BackendError>;
    fn g2(&self, section: &[u8], pool: Arc<ThreadPool>) -> Result<Product<G2>, BackendError>;
    fn quotient(&self, key: &ProvingKey, w: Vec<BigInteger256>, pool: Arc<ThreadPool>) -> Result<Run, BackendError>;
}

impl<I: Isa> Bench for On<I> {
    fn products(&self, a: &[Fq], b: &[Fq]) -> Run {
        let isa = self.0;
        let vectors = |x: &[Fq]| x.chunks_exact(I::LANES).map(|x| I::Fq::encode(isa, x)).collect::<Vec<_>>();
        let (a, b) = (vectors(a), vectors(b));
        let mut out = a.clone();
        Box::new(move || isa.enter(Products { a: &a, b: &b, out: std::hint::black_box(&mut out) }))
    }

    fn g1(&self, section: &[u8], pool: Arc<ThreadPool>) -> Result<Product<G1>, BackendError> {
        let bases = pool.install(|| Bases::<I, InG1>::new(self.0, section, 0, section.len() / G1_BYTES))?;
        let stop = StopToken::new();
        Ok(Box::new(move |scalars| pool.install(|| bases.msm(&Sorted::new(scalars), &Pool::new(), &stop))))
    }

    fn g2(&self, section: &[u8], pool: Arc<ThreadPool>) -> Result<Product<G2>, BackendError> {
        let bases = pool.install(|| Bases::<I, InG2>::new(self.0, section, 0, section.len() / G2_BYTES))?;
        let stop = StopToken::new();
        Ok(Box::new(move |scalars| pool.install(|| bases.msm(&Sorted::new(scalars), &Pool::new(), &stop))))
    }

    fn quotient(&self, key: &ProvingKey, w: Vec<BigInteger256>, pool: Arc<ThreadPool>) -> Result<Run, BackendError> {
        let isa = self.0;
        let constraints = pool.install(|| Constraints::index(isa, key))?;
        Ok(Box::new(move || {
            pool.install(|| std::hint::black_box(constraints.quotient(isa, &w)));
        }))
    }
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
