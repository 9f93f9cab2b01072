//! The quotient's values on the odd coset of the double domain.
//!
//! With a = A·w, b = B·w on the domain and c = a∘b, each of the three is interpolated and evaluated on the coset
//! ω₂ₙ·⟨ωₙ⟩. There a·b − c are the scalars of H: no division by the vanishing polynomial, since the key's H points
//! are the odd Lagrange polynomials of the double domain, [L^(2n)_(2i+1)(τ)/δ]₁ (snarkjs's convention).

use ark_ff::{BigInteger256, FftField, PrimeField};
use ark_poly::{EvaluationDomain, Radix2EvaluationDomain};
use rayon::prelude::*;
use zeroize::Zeroizing;

use super::super::BackendError;
use crate::model::{CoefficientEntry, ENTRY_BYTES, Fr, ProvingKey, entry};

/// Where the rows of A and B lie among the key's matrix entries.
pub(super) struct Constraints {
    domain: Radix2EvaluationDomain<Fr>,
    coset: Radix2EvaluationDomain<Fr>,
    /// Entries by ascending row, or `None` where the file has them so already, as snarkjs writes it.
    order: Option<Vec<u32>>,
    /// Tasks: entries `from..to` are all those of rows `rows`.
    blocks: Vec<Block>,
}

struct Block {
    entries: std::ops::Range<usize>,
    first_row: usize,
    rows: usize,
}

/// Rows a task multiplies.
const ROWS_A_BLOCK: usize = 1 << 12;

/// The scalars of H: as secret as the witness they come from.
pub(super) struct HScalars(Zeroizing<Vec<BigInteger256>>);

impl HScalars {
    pub(super) fn scalars(&self) -> &[BigInteger256] {
        &self.0
    }
}

fn too_large(what: &'static str, below: u32, got: u32) -> BackendError {
    BackendError::Shape { what, expected: u64::from(below), got: u64::from(got) }
}

impl Constraints {
    /// Looks over the matrix entries once: every index in range, rows found.
    pub(super) fn index(key: &ProvingKey) -> Result<Self, BackendError> {
        let n = key.header.domain_size;
        let bad_domain = || too_large("domain size (a power of two of at most 2^28)", 1 << 28, n);
        let domain = Radix2EvaluationDomain::<Fr>::new(n as usize).ok_or_else(bad_domain)?;
        if domain.size() != n as usize {
            return Err(bad_domain());
        }
        // A domain of 2^28 has no double in this field; snarkjs shifts by the square of its non-residue 5 there.
        let shift = Fr::get_root_of_unity(2 * u64::from(n)).unwrap_or_else(|| Fr::from(25u64));
        let coset = domain.get_coset(shift).ok_or_else(bad_domain)?;

        let bytes = &key.sections.coefficients;
        let sorted = bytes
            .par_chunks(ENTRY_BYTES << 14)
            .map(|chunk| {
                let (mut sorted, mut last) = (true, 0);
                for e in chunk.chunks_exact(ENTRY_BYTES).map(entry) {
                    if e.matrix > 1 {
                        return Err(too_large("matrix number of an entry (0 or 1; at least 2 here)", 1, e.matrix));
                    }
                    if e.row >= n {
                        return Err(too_large("row of a matrix entry (below the domain size)", n, e.row));
                    }
                    if e.signal >= key.header.n_vars {
                        return Err(too_large("wire of a matrix entry (below nVars)", key.header.n_vars, e.signal));
                    }
                    if e.value >= Fr::MODULUS {
                        return Err(BackendError::Shape {
                            what: "values of matrix entries not below r",
                            expected: 0,
                            got: 1,
                        });
                    }
                    sorted &= e.row >= last;
                    last = e.row;
                }
                Ok(sorted)
            })
            .try_reduce(|| true, |a, b| Ok(a && b))?;
        let at = |i: usize| entry(&bytes[i * ENTRY_BYTES..]).row as usize;
        let total = key.n_coefficients();
        let borders_sorted = (1..total.div_ceil(1 << 14)).all(|k| at(k << 14) >= at((k << 14) - 1));
        let order = (!sorted || !borders_sorted).then(|| {
            let mut order: Vec<u32> = (0..total as u32).collect();
            order.par_sort_by_key(|&i| at(i as usize));
            order
        });
        let row = |i: usize| order.as_ref().map_or_else(|| at(i), |o| at(o[i] as usize));
        let mut blocks = Vec::new();
        let mut from = 0;
        for first_row in (0..n as usize).step_by(ROWS_A_BLOCK) {
            let rows = ROWS_A_BLOCK.min(n as usize - first_row);
            // Binary search for the first entry past this block's rows.
            let (mut lo, mut hi) = (from, total);
            while lo < hi {
                let mid = lo + (hi - lo) / 2;
                if row(mid) < first_row + rows { lo = mid + 1 } else { hi = mid }
            }
            blocks.push(Block { entries: from..lo, first_row, rows });
            from = lo;
        }
        Ok(Self { domain, coset, order, blocks })
    }

    /// A·w and B·w on the domain, in Montgomery form.
    fn products(&self, key: &ProvingKey, w: &[BigInteger256]) -> (Zeroizing<Vec<Fr>>, Zeroizing<Vec<Fr>>) {
        let n = self.domain.size();
        let zero = Fr::new_unchecked(BigInteger256::zero());
        let (mut a, mut b) = (Zeroizing::new(vec![zero; n]), Zeroizing::new(vec![zero; n]));
        let bytes = &key.sections.coefficients;
        let slots = a.par_chunks_mut(ROWS_A_BLOCK).zip(b.par_chunks_mut(ROWS_A_BLOCK));
        slots.zip(self.blocks.par_iter()).for_each(|((a, b), block)| {
            debug_assert_eq!(a.len(), block.rows);
            let mut term = |e: CoefficientEntry| {
                // v·R² times a plain w, by one Montgomery product: v·w in Montgomery form.
                let value = Fr::new_unchecked(e.value) * Fr::new_unchecked(w[e.signal as usize]);
                let row = e.row as usize - block.first_row;
                if e.matrix == 0 { a[row] += value } else { b[row] += value }
            };
            match &self.order {
                None => {
                    let range = block.entries.start * ENTRY_BYTES..block.entries.end * ENTRY_BYTES;
                    bytes[range].chunks_exact(ENTRY_BYTES).map(entry).for_each(&mut term);
                }
                Some(order) => {
                    let mine = order[block.entries.clone()].iter();
                    mine.map(|&i| entry(&bytes[i as usize * ENTRY_BYTES..])).for_each(&mut term);
                }
            }
        });
        (a, b)
    }

    /// The scalars of H, plain.
    pub(super) fn quotient(&self, key: &ProvingKey, w: &[BigInteger256]) -> HScalars {
        let (mut a, mut b) = self.products(key, w);
        let c: Vec<Fr> = a.par_iter().zip(b.par_iter()).map(|(a, b)| *a * b).collect();
        let mut c = Zeroizing::new(c);
        for v in [&mut *a, &mut *b, &mut *c] {
            self.domain.ifft_in_place(v);
            self.coset.fft_in_place(v);
        }
        let h = a.par_iter().zip(b.par_iter()).zip(c.par_iter()).map(|((a, b), c)| (*a * b - c).into_bigint());
        HScalars(Zeroizing::new(h.collect()))
    }
}
