//! The quotient's values on the odd coset of the double domain.
//!
//! With a = A·w, b = B·w on the domain and c = a∘b, each of the three is interpolated and evaluated on the coset
//! ω₂ₙ·⟨ωₙ⟩. There a·b − c are the scalars of H. They need no division by the vanishing polynomial, because the key's H
//! points are the odd Lagrange polynomials of the double domain, [L^(2n)_(2i+1)(τ)/δ]₁ (snarkjs's convention).
//!
//! **Factors.** The rows are plain integers that are used as packed (Montgomery) elements unchanged, and the transforms
//! skip their division by n. One product at the end makes up for both: with radix R, a and b are n·R⁻¹ times too large
//! there and c, with one more factor n, n²·R⁻²; and the results are plain integers.

#![allow(unsafe_code)]

use std::mem::MaybeUninit;

use ark_ff::{BigInteger256, Field as _};
use ark_poly::{EvaluationDomain, Radix2EvaluationDomain};
use rayon::prelude::*;
use zeroize::{Zeroize, Zeroizing};

use super::super::BackendError;
use super::super::key::{bad_domain, check_domain, odd_coset_shift};
use super::lanes::portable::Portable;
use super::lanes::{Field, Isa, Kernel, Lanes, Pair};
use super::ntt::Plan;
use super::scattered::Scattered;
use super::sparse::Matrices;
use crate::backend::pages;
use crate::model::{Fr, ProvingKey, reduced};

/// What the quotient needs of a key: the rows of A and B, and the domain.
pub(super) struct Constraints<I: Isa> {
    matrices: Matrices,
    plan: Plans<I>,
}

enum Plans<I: Isa> {
    Wide(Plan<I>),
    /// For a domain that is too small for the instruction set.
    Narrow(Plan<Portable>),
}

/// The scalars of H, as secret as the witness they are computed from.
pub(super) struct HScalars(Secret<BigInteger256>);

impl HScalars {
    pub(super) fn scalars(&self) -> &[BigInteger256] {
        &self.0.0
    }
}

/// A long vector that is overwritten when dropped, by all threads of the current pool.
struct Secret<T: Zeroize + Send>(Vec<T>);

impl<T: Zeroize + Send> Drop for Secret<T> {
    fn drop(&mut self) {
        self.0.par_iter_mut().with_min_len(1 << 12).for_each(Zeroize::zeroize);
    }
}

impl<I: Isa> Constraints<I> {
    /// Checks and sorts the matrix entries, and plans the transforms.
    ///
    /// # Errors
    /// As for [`check_domain`] and [`Matrices::new`].
    pub(super) fn index(isa: I, key: &ProvingKey) -> Result<Self, BackendError> {
        check_domain(key)?;
        let n = key.header.domain_size;
        let domain = Radix2EvaluationDomain::<Fr>::new(n as usize).ok_or_else(|| bad_domain(n))?;
        let matrices = Matrices::new(key)?;
        let shift = odd_coset_shift(n);
        let plan = match Plan::new(isa, &domain, shift) {
            Some(plan) => Plans::Wide(plan),
            None => Plans::Narrow(Plan::new(Portable, &domain, shift).ok_or_else(|| bad_domain(n))?),
        };
        Ok(Self { matrices, plan })
    }

    /// Returns an estimate of the bytes taken as long as the key is loaded: distinct values repeat in a circuit, but
    /// how often is not known before all are read.
    pub(super) fn resident(key: &ProvingKey) -> u64 {
        16 * key.n_coefficients() as u64 + 8 * u64::from(key.header.domain_size)
    }

    /// Returns the bytes that [`Constraints::quotient`] takes: three vectors over the domain, and the scalars of H.
    pub(super) fn per_proof(key: &ProvingKey) -> u64 {
        (3 * size_of::<I::Fr>() / I::LANES + size_of::<BigInteger256>()) as u64 * u64::from(key.header.domain_size)
    }

    /// Computes the scalars of H, plain, from a witness of plain values below r, one per wire.
    ///
    /// Memory: see [`Constraints::per_proof`].
    pub(super) fn quotient(&self, isa: I, w: &[BigInteger256]) -> HScalars {
        match &self.plan {
            Plans::Wide(plan) => quotient(isa, plan, &self.matrices, w),
            Plans::Narrow(plan) => quotient(Portable, plan, &self.matrices, w),
        }
    }
}

fn quotient<I: Isa>(isa: I, plan: &Plan<I>, matrices: &Matrices, w: &[BigInteger256]) -> HScalars {
    let (vectors, leaf, lanes) = (plan.vectors(), plan.leaf(), I::LANES);
    let [mut a, mut b, mut c] = [(); 3].map(|()| Secret(pages::vector::<I::Fr>(vectors)));

    let places = [&mut a, &mut b].map(|x| Scattered::new(&mut x.0.spare_capacity_mut()[..vectors]));
    (0..matrices.blocks()).into_par_iter().for_each(|block| {
        isa.enter(Products { plan, matrices, w, block, to: &places });
    });
    // SAFETY: the blocks together have all rows, and `Plan::position` maps vectors of rows one to one on 0..vectors; so
    // each of the first `vectors` elements was written.
    unsafe {
        a.0.set_len(vectors);
        b.0.set_len(vectors);
    }

    let leaves = (a.0.par_chunks_mut(leaf), b.0.par_chunks_mut(leaf));
    let leaves = leaves.into_par_iter().zip(c.0.spare_capacity_mut()[..vectors].par_chunks_mut(leaf)).enumerate();
    leaves.for_each_init(Vec::new, |factors, (leaf, ((a, b), c))| {
        isa.enter(Interpolate { plan, leaf, a, b, c, factors });
    });
    // SAFETY: every leaf of c was written.
    unsafe { c.0.set_len(vectors) };

    plan.columns(isa, [&mut a, &mut b, &mut c].map(|x| &mut x.0[..]));

    let mut h = Secret(pages::vector(vectors * lanes));
    let scalars = Scattered::new(&mut h.0.spare_capacity_mut()[..vectors * lanes]);
    // 2^RADIX/n²
    let n = Fr::from((vectors * lanes) as u64);
    let to_plain = Fr::from(2u64).pow([u64::from(I::Fr::RADIX)]) * n.square().inverse().unwrap_or_default();
    let to_plain = I::Fr::splat(isa, to_plain);
    let leaves = (a.0.par_chunks_mut(leaf), b.0.par_chunks_mut(leaf), c.0.par_chunks_mut(leaf));
    leaves.into_par_iter().enumerate().for_each_init(Vec::new, |factors, (leaf, (a, b, c))| {
        isa.enter(Evaluate { plan, leaf, a, b, c, factors, to_plain, to: &scalars });
    });
    // SAFETY: the leaves together have all positions, and `Plan::position` maps them one to one on the vectors of `h`.
    unsafe { h.0.set_len(vectors * lanes) };
    // Their contents were overwritten already, while in the cache.
    a.0.clear();
    b.0.clear();
    c.0.clear();
    HScalars(h)
}

/// Multiplies the rows of A and B by the witness, into the positions that the transforms expect.
struct Products<'a, I: Isa> {
    plan: &'a Plan<I>,
    matrices: &'a Matrices,
    w: &'a [BigInteger256],
    block: usize,
    to: &'a [Scattered<'a, MaybeUninit<I::Fr>>; 2],
}

impl<I: Isa> Kernel<I> for Products<'_, I> {
    type Out = ();

    #[inline(always)]
    fn run(self, isa: I) {
        let rows = self.matrices.rows_per_block();
        let mut pairs = Zeroizing::new([Pair::default(); 16]);
        let pairs = &mut pairs[..I::LANES];
        let at: [u32; 16] = std::array::from_fn(|k| k as u32);
        for first in (0..rows).step_by(I::LANES) {
            for (k, pair) in pairs.iter_mut().enumerate() {
                *pair = Pair(self.matrices.row(self.block, first + k, self.w));
            }
            let ab = I::Fr::gather(isa, pairs, &at[..I::LANES]);
            let position = self.plan.position((self.block * rows + first) / I::LANES);
            for (x, to) in ab.into_iter().zip(self.to) {
                // SAFETY: no other row vector has this position.
                unsafe { to.write(position, MaybeUninit::new(x)) };
            }
        }
    }
}

/// Computes a leaf of c, and the first levels of the interpolation of all three polynomials.
struct Interpolate<'a, I: Isa> {
    plan: &'a Plan<I>,
    leaf: usize,
    a: &'a mut [I::Fr],
    b: &'a mut [I::Fr],
    c: &'a mut [MaybeUninit<I::Fr>],
    factors: &'a mut Vec<I::Fr>,
}

impl<I: Isa> Kernel<I> for Interpolate<'_, I> {
    type Out = ();

    #[inline(always)]
    fn run(self, _: I) {
        let c = self.c.write_copy_of_slice(self.a);
        for (c, b) in c.iter_mut().zip(&*self.b) {
            *c = I::Fr::mul(*c, *b);
        }
        self.plan.interpolate_leaf(self.leaf, [self.a, self.b, c], self.factors);
    }
}

/// Computes the last levels of the evaluation and the scalars of a leaf, and overwrites the leaf with zeros.
struct Evaluate<'a, I: Isa> {
    plan: &'a Plan<I>,
    leaf: usize,
    a: &'a mut [I::Fr],
    b: &'a mut [I::Fr],
    c: &'a mut [I::Fr],
    factors: &'a mut Vec<I::Fr>,
    to_plain: I::Fr,
    to: &'a Scattered<'a, MaybeUninit<BigInteger256>>,
}

impl<I: Isa> Kernel<I> for Evaluate<'_, I> {
    type Out = ();

    #[inline(always)]
    fn run(self, _: I) {
        let Self { plan, leaf, a, b, c, factors, to_plain, to } = self;
        plan.evaluate_leaf(leaf, [&mut *a, &mut *b, &mut *c], factors);
        let mut pairs = Zeroizing::new([Pair::default(); 16]);
        let pairs = &mut pairs[..I::LANES];
        for i in (0..a.len()).step_by(2) {
            // In a leaf of one vector, the vector stands in for its missing neighbour.
            let j = (i + 1).min(a.len() - 1);
            let x = I::Fr::mul(I::Fr::mul(a[i], b[i]).diff(c[i]), to_plain);
            let y = I::Fr::mul(I::Fr::mul(a[j], b[j]).diff(c[j]), to_plain);
            I::Fr::store([x, y], pairs);
            for x in [&mut *a, &mut *b, &mut *c] {
                x[i..=j].iter_mut().for_each(Zeroize::zeroize);
            }
            for (half, i) in [i, j].into_iter().enumerate() {
                let first = plan.position(leaf * plan.leaf() + i) * I::LANES;
                for (k, pair) in pairs.iter().enumerate() {
                    let scalar = reduced::<Fr>(BigInteger256::new(pair.0[half]));
                    // SAFETY: no other task has this position, nor its scalars.
                    unsafe { to.write(first + k, MaybeUninit::new(scalar)) };
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::super::lanes::wide::Wide;
    #[cfg(target_arch = "x86_64")]
    use super::super::lanes::{avx2::Avx2, ifma::Avx512Ifma};
    use super::*;
    use crate::model::{G1Affine, G2Affine, KeyHeader, KeySections, VerificationKey};
    use ark_ec::AffineRepr;
    use ark_ff::{FftField as _, PrimeField as _, UniformRand};
    use ark_std::rand::{Rng, SeedableRng, rngs::StdRng};

    /// A matrix entry: matrix (0 A, 1 B), row, wire, value.
    type Entry = (u32, u32, u32, Fr);

    /// A key with only what the quotient reads.
    fn key(n: u32, n_vars: u32, entries: &[Entry]) -> ProvingKey {
        let r = Fr::from(2u64).pow([256]);
        let mut coefficients = Vec::new();
        for (matrix, row, wire, v) in entries {
            coefficients.extend([matrix, row, wire].iter().flat_map(|word| word.to_le_bytes()));
            coefficients.extend((*v * r).0.0.iter().flat_map(|limb| limb.to_le_bytes()));
        }
        let (g1, g2) = (G1Affine::generator(), G2Affine::generator());
        let vk = VerificationKey { alpha_g1: g1, beta_g2: g2, gamma_g2: g2, delta_g2: g2, ic: vec![g1] };
        let none = bytes::Bytes::new;
        ProvingKey {
            header: KeyHeader { n_vars, n_public: 0, domain_size: n, beta_g1: g1, delta_g1: g1, vk },
            sections: KeySections {
                coefficients: coefficients.into(),
                a: none(),
                b1: none(),
                b2: none(),
                c: none(),
                h: none(),
            },
        }
    }

    /// Entries as circom writes them and worse: empty and long rows, repeated wires, all kinds of values.
    fn entries(rng: &mut StdRng, n: u32, n_vars: u32) -> Vec<Entry> {
        let common: Vec<Fr> = (0..5).map(|_| Fr::rand(rng)).collect();
        let mut entries = Vec::new();
        for row in 0..n {
            let terms = [0, 1, 1, 2, 3, 5, 30][rng.gen_range(0..7)];
            for matrix in (0..terms).map(|_| rng.gen_range(0..2)).collect::<Vec<_>>() {
                let v = match rng.gen_range(0..6) {
                    0 | 1 => Fr::from(1u64),
                    2 => -Fr::from(1u64),
                    3 => Fr::from(rng.r#gen::<u32>()),
                    4 => common[rng.gen_range(0..5)],
                    _ => Fr::rand(rng),
                };
                entries.push((matrix, row, rng.gen_range(0..n_vars), v));
            }
        }
        entries
    }

    fn witness(rng: &mut StdRng, n_vars: u32) -> Vec<BigInteger256> {
        let value = |rng: &mut StdRng| match rng.gen_range(0..4) {
            0 => Fr::from(0u64),
            1 => Fr::from(1u64),
            2 => -Fr::from(1u64),
            _ => Fr::rand(rng),
        };
        (0..n_vars).map(|_| value(rng).into_bigint()).collect()
    }

    /// The quotient, by arkworks' transforms.
    fn twin(n: usize, entries: &[Entry], w: &[BigInteger256]) -> Vec<BigInteger256> {
        let domain = Radix2EvaluationDomain::<Fr>::new(n).unwrap();
        let coset = domain.get_coset(Fr::get_root_of_unity(2 * n as u64).unwrap()).unwrap();
        let mut ab = [0, 1].map(|_| vec![Fr::from(0u64); n]);
        for (matrix, row, wire, v) in entries {
            ab[*matrix as usize][*row as usize] += *v * Fr::from(w[*wire as usize]);
        }
        let [a, b] = ab;
        let c: Vec<Fr> = a.iter().zip(&b).map(|(a, b)| *a * b).collect();
        let [a, b, c] = [a, b, c].map(|x| coset.fft(&domain.ifft(&x)));
        (0..n).map(|i| (a[i] * b[i] - c[i]).into_bigint()).collect()
    }

    fn agrees<I: Isa>(isa: I, key: &ProvingKey, w: &[BigInteger256], expected: &[BigInteger256]) {
        let constraints = Constraints::index(isa, key).unwrap();
        for threads in [1, 3] {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            let got = pool.install(|| constraints.quotient(isa, w));
            let n = expected.len();
            assert!(got.scalars() == expected, "{n} points on {} with {threads} threads", I::NAME);
        }
    }

    #[test]
    fn quotients_of_all_sizes() {
        let mut rng = StdRng::seed_from_u64(8);
        for log_n in 0..=14 {
            let (n, n_vars) = (1 << log_n, 1 + rng.gen_range(0..2u32 << log_n));
            let mut entries = entries(&mut rng, n, n_vars);
            let w = witness(&mut rng, n_vars);
            let expected = twin(n as usize, &entries, &w);
            let key_in_order = key(n, n_vars, &entries);
            agrees(Portable, &key_in_order, &w, &expected);
            agrees(Wide::<8>, &key_in_order, &w, &expected);
            #[cfg(target_arch = "x86_64")]
            {
                Avx2::detect().into_iter().for_each(|isa| agrees(isa, &key_in_order, &w, &expected));
                Avx512Ifma::detect().into_iter().for_each(|isa| agrees(isa, &key_in_order, &w, &expected));
            }
            if log_n % 3 == 0 {
                agrees(Wide::<16>, &key_in_order, &w, &expected);
                // In no order at all.
                for i in (1..entries.len()).rev() {
                    entries.swap(i, rng.gen_range(0..=i));
                }
                agrees(Wide::<8>, &key(n, n_vars, &entries), &w, &expected);
            }
        }
    }

    #[test]
    fn nothing_in_the_matrices() {
        agrees(Wide::<8>, &key(64, 1, &[]), &[1u64.into()], &[0u64.into(); 64]);
        agrees(Portable, &key(1, 1, &[]), &[1u64.into()], &[0u64.into()]);
    }

    #[test]
    fn the_index_looks_at_every_entry() {
        let refused = |n, n_vars, entries: &[Entry]| match Constraints::index(Portable, &key(n, n_vars, entries)) {
            Err(e @ BackendError::OutOfRange { .. }) => e.to_string(),
            _ => panic!("taken"),
        };
        let one = Fr::from(1u64);
        let with = |bad: Entry| {
            let mut all: Vec<Entry> = (0..40_000).map(|i| (i % 2, i % 64, i % 9, one)).collect();
            all[33_333] = bad;
            all
        };
        assert!(Constraints::index(Portable, &key(64, 9, &with((1, 63, 8, -one)))).is_ok());
        for (bad, says) in [
            ((2, 0, 0, one), "matrix number of an entry: expected less than 2, got 2"),
            ((0, 64, 0, one), "row of a matrix entry: expected less than 64, got 64"),
            ((0, 0, 9, one), "wire of a matrix entry: expected less than 9, got 9"),
        ] {
            assert_eq!(refused(64, 9, &with(bad)), says);
        }
        for n in [0, 3, 63, (1 << 28) + 1, 1 << 29] {
            let says = format!("domain size: expected a power of two of at most 2^28, got {n}");
            assert_eq!(refused(n, 1, &[]), says);
        }
        let good = key(64, 9, &with((0, 0, 0, one)));
        let mut bytes = good.sections.coefficients.to_vec();
        bytes[44 * 7 + 12..44 * 8].fill(0xff);
        let bad = ProvingKey { sections: KeySections { coefficients: bytes.into(), ..good.sections }, ..good };
        assert!(matches!(
            Constraints::index(Portable, &bad),
            Err(BackendError::Shape { what: "values of matrix entries not below r", .. })
        ));
    }
}
