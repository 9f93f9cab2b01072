//! A proving key on a device that computes single operations, and a proof's five products composed of these.
//!
//! The rows of A and B times the witness are computed here, on the CPU. From then on the quotient stays on the device:
//! a, b and c = a∘b are interpolated there, evaluated on the odd coset, and combined to a·b − c, the scalars of H
//! (`cpu::quotient` has the mathematics).

use ark_ff::BigInteger256;
use rayon::prelude::*;
use zeroize::Zeroizing;

use super::super::cpu::sparse::Matrices;
use super::super::key::{check_domain, check_points, odd_coset_shift};
use super::super::{BackendError, Commitments};
use super::algebra::{Algebra, Group, Scalars};
use crate::model::{Fr, G1, G2, KeySections, ProvingKey, reduced};

/// The current step of the computation, for messages about a child that does not answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Step {
    /// Starting: the libraries, the device, its known answers.
    Start,
    /// Points and matrices.
    Load,
    /// The rows of A and B, and the quotient.
    Quotient,
    /// Σ hᵢ·Hᵢ
    H,
    /// Σ wᵢ·Bᵢ in G2
    B2,
    /// Σ wᵢ·Bᵢ in G1
    B1,
    /// Σ wᵢ·Aᵢ
    A,
    /// Σ wᵢ·Cᵢ
    C,
}

impl Step {
    /// All steps; a step's index is its number in messages.
    pub(super) const ALL: [Self; 8] =
        [Self::Start, Self::Load, Self::Quotient, Self::H, Self::B2, Self::B1, Self::A, Self::C];

    /// Completes a sentence that ends in "in".
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Start => "its start",
            Self::Load => "the loading of a key",
            Self::Quotient => "the quotient",
            Self::H => "the sum of H",
            Self::B2 => "the sum of B in G2",
            Self::B1 => "the sum of B in G1",
            Self::A => "the sum of A",
            Self::C => "the sum of C",
        }
    }

    /// Percentage of a proof that is done when the step begins.
    fn percent(self) -> u8 {
        match self {
            Self::Start | Self::Load | Self::Quotient => 0,
            Self::H => 20,
            Self::B2 => 40,
            Self::B1 => 65,
            Self::A => 75,
            Self::C => 88,
        }
    }
}

/// Receives the step that begins and the percentage of the proof that is done; an error ends the proof.
pub(super) type OnStep<'a> = &'a dyn Fn(Step, u8) -> Result<(), BackendError>;

/// The points of a section on a device, except those at infinity.
struct Section<A: Algebra, G: Group> {
    bases: Option<A::Bases<G>>,
    /// Index of each point's scalar.
    scalar_indices: Vec<u32>,
    /// Whether every scalar has a point, so that scalars and points have the same indices.
    whole: bool,
}

impl<A: Algebra, G: Group> Section<A, G> {
    /// `first` is the index of the first point's scalar.
    fn new(algebra: &A, bytes: &[u8], first: u32) -> Result<Self, BackendError> {
        let points = bytes.par_chunks_exact(G::BYTES).enumerate();
        let present = points.filter(|(_, bytes)| bytes.iter().any(|b| *b != 0));
        let (scalar_indices, points): (Vec<u32>, Vec<G::Affine>) =
            present.map(|(i, bytes)| (first + i as u32, G::of_key(bytes))).unzip();
        let whole = first == 0 && points.len() * G::BYTES == bytes.len();
        let bases = if points.is_empty() { None } else { Some(algebra.bases::<G>(&points)?) };
        Ok(Self { bases, scalar_indices, whole })
    }

    /// Computes Σ scalarsᵢ·pointsᵢ, in pieces that fit the device's free memory.
    fn sum(&self, algebra: &A, scalars: &[BigInteger256], step: Step, on_step: OnStep<'_>) -> Result<G, BackendError> {
        self.in_chunks(algebra, step, on_step, |bases, first, count| {
            let scalar_indices = &self.scalar_indices[first..first + count];
            let scalars: Vec<BigInteger256> = scalar_indices.par_iter().map(|index| scalars[*index as usize]).collect();
            algebra.sum(bases, first, count, Scalars::Host(&Zeroizing::new(scalars)))
        })
    }

    /// Like [`Self::sum`], with scalars on the device.
    fn sum_on(&self, algebra: &A, scalars: &A::Vector, step: Step, on_step: OnStep<'_>) -> Result<G, BackendError> {
        if !self.whole {
            return self.sum(algebra, &algebra.download(scalars)?, step, on_step);
        }
        self.in_chunks(algebra, step, on_step, |bases, first, count| {
            algebra.sum(bases, first, count, Scalars::Device(scalars, first))
        })
    }

    fn in_chunks(
        &self,
        algebra: &A,
        step: Step,
        on_step: OnStep<'_>,
        sum: impl Fn(&A::Bases<G>, usize, usize) -> Result<G, BackendError>,
    ) -> Result<G, BackendError> {
        let mut total = G::zero();
        let Some(bases) = &self.bases else { return Ok(total) };
        let (mut first, all) = (0, self.scalar_indices.len());
        while first < all {
            on_step(step, step.percent())?;
            let count = algebra.max_points().max(1).min(all - first);
            total += sum(bases, first, count)?;
            first += count;
        }
        Ok(total)
    }
}

/// A key on a device.
pub(super) struct Key<A: Algebra> {
    wires: usize,
    matrices: Matrices,
    domain: usize,
    shift: Fr,
    a: Section<A, G1>,
    b1: Section<A, G1>,
    b2: Section<A, G2>,
    c: Section<A, G1>,
    h: Section<A, G1>,
}

impl<A: Algebra> Key<A> {
    /// Copies a key to the device, section by section; each section is dropped once its points are there.
    ///
    /// # Errors
    /// `Shape` or `OutOfRange` if the key's sizes are inconsistent.
    pub(super) fn new(algebra: &A, key: ProvingKey) -> Result<Self, BackendError> {
        check_domain(&key)?;
        check_points(&key)?;
        let matrices = Matrices::new(&key)?;
        let (wires, domain) = (key.header.n_vars as usize, key.header.domain_size as usize);
        let private = key.header.n_public + 1;
        let KeySections { coefficients, a, b1, b2, c, h } = key.sections;
        drop(coefficients);
        algebra.prepare(domain)?;
        let b2 = Section::new(algebra, &{ b2 }, 0)?;
        let b1 = Section::new(algebra, &{ b1 }, 0)?;
        let a = Section::new(algebra, &{ a }, 0)?;
        let c = Section::new(algebra, &{ c }, private)?;
        let h = Section::new(algebra, &{ h }, 0)?;
        let shift = odd_coset_shift(key.header.domain_size);
        Ok(Self { wires, matrices, domain, shift, a, b1, b2, c, h })
    }

    /// Number of values of a witness.
    pub(super) fn wires(&self) -> usize {
        self.wires
    }

    /// Computes the five products for a witness, which must have a value for each wire of the key.
    pub(super) fn commit(
        &self,
        algebra: &A,
        w: &[BigInteger256],
        on_step: OnStep<'_>,
    ) -> Result<Commitments, BackendError> {
        if w.len() != self.wires {
            let (expected, got) = (self.wires as u64, w.len() as u64);
            return Err(BackendError::Shape { what: "witness values", expected, got });
        }
        on_step(Step::Quotient, Step::Quotient.percent())?;
        let scalars = self.quotient(algebra, w)?;
        let h = self.h.sum_on(algebra, &scalars, Step::H, on_step)?;
        drop(scalars);
        Ok(Commitments {
            h,
            b2: self.b2.sum(algebra, w, Step::B2, on_step)?,
            b1: self.b1.sum(algebra, w, Step::B1, on_step)?,
            a: self.a.sum(algebra, w, Step::A, on_step)?,
            c: self.c.sum(algebra, w, Step::C, on_step)?,
        })
    }

    /// Computes the scalars of H.
    fn quotient(&self, algebra: &A, w: &[BigInteger256]) -> Result<A::Vector, BackendError> {
        let (a, b) = rows(&self.matrices, self.domain, w);
        let (mut a, mut b) = (algebra.upload(&a)?, algebra.upload(&b)?);
        let mut c = algebra.multiply(&a, &b)?;
        // On a domain of one point each polynomial is constant.
        if self.domain > 1 {
            // Another key may have needed another domain since.
            algebra.prepare(self.domain)?;
            for vector in [&mut a, &mut b, &mut c] {
                algebra.interpolate(vector)?;
                algebra.evaluate(vector, self.shift)?;
            }
        }
        let mut h = algebra.multiply(&a, &b)?;
        algebra.subtract(&mut h, &c)?;
        Ok(h)
    }
}

/// Computes A·w and B·w, below r and not in Montgomery form.
fn rows(matrices: &Matrices, domain: usize, w: &[BigInteger256]) -> (Secret, Secret) {
    let rows_per_block = matrices.rows_per_block();
    let mut a = Zeroizing::new(vec![BigInteger256::zero(); domain]);
    let mut b = a.clone();
    let blocks = a.par_chunks_mut(rows_per_block).zip(b.par_chunks_mut(rows_per_block)).enumerate();
    blocks.for_each(|(block, (a, b))| {
        for (row, (a, b)) in a.iter_mut().zip(b).enumerate() {
            [*a, *b] = matrices.row(block, row, w).map(|sum| reduced::<Fr>(BigInteger256::new(sum)));
        }
    });
    (a, b)
}

/// Values that are overwritten when dropped.
type Secret = Zeroizing<Vec<BigInteger256>>;

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::cell::RefCell;
    use std::sync::Arc;

    use ark_ec::AffineRepr;
    use ark_ff::PrimeField as _;
    use ark_poly::{EvaluationDomain, Radix2EvaluationDomain};

    use super::super::super::cpu::CpuBackend;
    use super::super::super::{Backend, Quiet, selftest};
    use super::super::answers;
    use super::*;
    use crate::model::{StopReason, StopToken, Witness};

    /// A device that computes by definition, with the given maximum of points per sum.
    struct Naive(usize);

    impl Algebra for Naive {
        type Vector = Vec<Fr>;
        type Bases<G: Group> = Vec<G::Affine>;

        fn max_points(&self) -> usize {
            self.0
        }

        fn bases<G: Group>(&self, points: &[G::Affine]) -> Result<Vec<G::Affine>, BackendError> {
            assert!(points.iter().all(|point| !point.is_zero()), "points at infinity are left out");
            Ok(points.to_vec())
        }

        fn sum<G: Group>(
            &self,
            bases: &Vec<G::Affine>,
            first: usize,
            count: usize,
            scalars: Scalars<'_, Vec<Fr>>,
        ) -> Result<G, BackendError> {
            assert!(0 < count && count <= self.0);
            let scalars: Vec<Fr> = match scalars {
                Scalars::Host(values) => values.iter().map(|value| Fr::from(*value)).collect(),
                Scalars::Device(vector, at) => vector[at..at + count].to_vec(),
            };
            assert_eq!(scalars.len(), count);
            Ok(bases[first..first + count].iter().zip(scalars).map(|(point, k)| *point * k).sum())
        }

        fn upload(&self, values: &[BigInteger256]) -> Result<Vec<Fr>, BackendError> {
            Ok(values.iter().map(|value| Fr::from_bigint(*value).unwrap()).collect())
        }

        fn download(&self, vector: &Vec<Fr>) -> Result<Secret, BackendError> {
            Ok(Zeroizing::new(vector.iter().map(|x| x.into_bigint()).collect()))
        }

        fn prepare(&self, _: usize) -> Result<(), BackendError> {
            Ok(())
        }

        fn interpolate(&self, vector: &mut Vec<Fr>) -> Result<(), BackendError> {
            *vector = Radix2EvaluationDomain::<Fr>::new(vector.len()).unwrap().ifft(vector);
            Ok(())
        }

        fn evaluate(&self, vector: &mut Vec<Fr>, shift: Fr) -> Result<(), BackendError> {
            *vector = Radix2EvaluationDomain::<Fr>::new(vector.len()).unwrap().get_coset(shift).unwrap().fft(vector);
            Ok(())
        }

        fn multiply(&self, a: &Vec<Fr>, b: &Vec<Fr>) -> Result<Vec<Fr>, BackendError> {
            Ok(a.iter().zip(b).map(|(a, b)| *a * b).collect())
        }

        fn subtract(&self, a: &mut Vec<Fr>, b: &Vec<Fr>) -> Result<(), BackendError> {
            a.iter_mut().zip(b).for_each(|(a, b)| *a -= b);
            Ok(())
        }
    }

    #[test]
    fn a_device_by_definition_knows_its_answers() {
        assert_eq!(answers::check(&Naive(usize::MAX)), Ok(()));
    }

    fn witness(key: &ProvingKey) -> Vec<BigInteger256> {
        (0..u64::from(key.header.n_vars)).map(|i| Fr::from(i * i + 1).into_bigint()).collect()
    }

    /// A key with points at infinity in every section, H among them, in pieces of any size.
    #[test]
    fn products_are_the_processors_in_pieces_of_any_size_and_with_points_left_out() {
        let mut key = selftest::small_key();
        let w = witness(&key);
        for holes in 0..3 {
            let expected = CpuBackend::new(1).unwrap().load(Arc::new(key.clone())).unwrap();
            let whole = Witness::from_canonical(w.clone());
            let expected = expected.commit(&whole, &StopToken::new(), &Quiet).unwrap();
            for pieces in [1, 2, 5, 16, usize::MAX] {
                let device = Naive(pieces);
                let on_device = Key::new(&device, key.clone()).unwrap();
                assert!(on_device.commit(&device, &w, &|_, _| Ok(())).unwrap() == expected, "{holes} holes, {pieces}");
            }
            let mut h = key.sections.h.to_vec();
            h[64 * (3 + 5 * holes)..][..64].fill(0);
            key.sections.h = h.into();
        }
    }

    #[test]
    fn a_proof_ends_at_the_first_step_that_is_told_to_end_it() {
        let key = selftest::small_key();
        let (device, w) = (Naive(usize::MAX), witness(&key));
        let on_device = Key::new(&device, key).unwrap();
        let steps = RefCell::new(Vec::new());
        let on_step = |step: Step, percent: u8| {
            steps.borrow_mut().push((step, percent));
            if step == Step::B1 { Err(BackendError::Stopped(StopReason::Cancelled)) } else { Ok(()) }
        };
        let ended = on_device.commit(&device, &w, &on_step);
        assert_eq!(ended, Err(BackendError::Stopped(StopReason::Cancelled)));
        let expected = [(Step::Quotient, 0), (Step::H, 20), (Step::B2, 40), (Step::B1, 65)];
        assert_eq!(steps.into_inner(), expected);
        let short = on_device.commit(&device, &w[1..], &|_, _| Ok(()));
        assert!(matches!(short, Err(BackendError::Shape { what: "witness values", .. })));
    }
}
