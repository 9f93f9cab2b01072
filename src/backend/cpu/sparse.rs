//! The constraint matrices A and B, and their products with a witness.
//!
//! **Representation.** Most of circom's entries are small numbers, of either sign, and the others repeat. A term is
//! eight bytes: the wire, and either a small factor or the index of a full one among the distinct values of its block.
//!
//! **Sums.** Small multiples of witness values are summed in five limbs, full products in nine. Each row takes one
//! Montgomery reduction, if it has full products at all, and one Barrett reduction if the sum is too large.

use std::collections::HashMap;
use std::ops::Range;

use ark_ff::{BigInteger256, MontConfig, PrimeField};
use rayon::prelude::*;

use super::super::BackendError;
use super::super::key::check_entries;
use crate::model::{CoefficientEntry, ENTRY_BYTES, Fr, ProvingKey, entry};

/// r
const MODULUS: [u64; 4] = Fr::MODULUS.0;
/// −1/r mod 2^64
const INV: u64 = <ark_bn254::FrConfig as MontConfig<4>>::INV;
/// The minimum number of rows of a block, if the matrices have as many, and the maximum.
const BLOCK_ROWS: Range<usize> = 1 << 6..1 << 12;

/// Marks a full factor; the other bits are its index in [`Block::values`].
const FULL: u32 = 1 << 31;
/// Marks a negative small factor; the other bits are its magnitude.
const NEGATIVE: u32 = 1 << 30;

/// A matrix entry within its row.
#[derive(Clone, Copy, Default)]
struct Term {
    wire: u32,
    factor: u32,
}

/// Consecutive rows of both matrices.
struct Block {
    /// Start of the terms of row i of A at 2·i, of B at 2·i + 1; then the end of all terms.
    starts: Vec<u32>,
    terms: Vec<Term>,
    /// Distinct full factors v, stored as v·2^256 mod r.
    values: Vec<[u64; 4]>,
}

/// The matrices of a key, checked and sorted by row.
pub(in crate::backend) struct Matrices {
    blocks: Vec<Block>,
    rows_per_block: usize,
}

impl Matrices {
    /// Checks that the matrix entries are in range, and sorts them by row.
    ///
    /// # Errors
    /// As for [`check_entries`].
    pub(in crate::backend) fn new(key: &ProvingKey) -> Result<Self, BackendError> {
        let bytes = &key.sections.coefficients;
        let sorted = check_entries(key)?;
        let at = |i: usize| entry(&bytes[i * ENTRY_BYTES..]);
        let total = key.n_coefficients();
        // Sorts the entries by row, unless the file has them in that order already, as snarkjs writes it.
        let order = (!sorted).then(|| {
            let mut order: Vec<u32> = (0..total as u32).collect();
            order.par_sort_by_key(|&i| at(i as usize).row);
            order
        });
        let nth = |i: usize| at(order.as_ref().map_or(i, |o| o[i] as usize));

        let n = key.header.domain_size as usize;
        let rows_per_block = (n / 64).clamp(BLOCK_ROWS.start, BLOCK_ROWS.end).min(n);
        let borders: Vec<usize> = (0..=n)
            .step_by(rows_per_block)
            .map(|row| {
                // Binary search for the first entry of this row or a later one.
                let (mut lo, mut hi) = (0, total);
                while lo < hi {
                    let mid = lo + (hi - lo) / 2;
                    if (nth(mid).row as usize) < row { lo = mid + 1 } else { hi = mid }
                }
                lo
            })
            .collect();
        let blocks = (0..n / rows_per_block)
            .into_par_iter()
            .map(|i| Block::new(i * rows_per_block, rows_per_block, || (borders[i]..borders[i + 1]).map(nth)))
            .collect();
        Ok(Self { blocks, rows_per_block })
    }

    /// Returns the number of rows of a block: a power of two that divides the number of rows.
    pub(in crate::backend) fn rows_per_block(&self) -> usize {
        self.rows_per_block
    }

    /// Returns the number of blocks.
    pub(super) fn blocks(&self) -> usize {
        self.blocks.len()
    }

    /// Multiplies row `row` of block `block` of A and of B by `w`. The results are integers below 2^256,
    /// representatives of their residues mod r.
    ///
    /// `w` holds plain values below r.
    #[inline(always)]
    pub(in crate::backend) fn row(&self, block: usize, row: usize, w: &[BigInteger256]) -> [[u64; 4]; 2] {
        let block = &self.blocks[block];
        let [a, b, end] = [0, 1, 2].map(|i| block.starts[2 * row + i] as usize);
        [&block.terms[a..b], &block.terms[b..end]].map(|terms| dot(terms, &block.values, w))
    }
}

impl Block {
    /// Creates the block of `rows` rows from `first` on; `entries` are all their entries.
    fn new<E: Iterator<Item = CoefficientEntry>>(first: usize, rows: usize, entries: impl Fn() -> E) -> Self {
        let slot = |e: &CoefficientEntry| 2 * (e.row as usize - first) + e.matrix as usize;
        // A counting sort.
        let mut starts = vec![0u32; 2 * rows + 2];
        entries().for_each(|e| starts[slot(&e) + 2] += 1);
        for i in 2..starts.len() {
            starts[i] += starts[i - 1];
        }
        let mut terms = vec![Term::default(); starts[2 * rows + 1] as usize];
        let mut values = Vec::new();
        let mut known = HashMap::new();
        // A few values make up most entries, and a hash that resists chosen values takes longer than all else here.
        let mut recent = [([0; 4], 0); 64]; // the factor of 0 is 0
        for e in entries() {
            let limbs = e.value.0;
            let recent = &mut recent[(limbs[0] >> 58) as usize];
            if recent.0 != limbs {
                *recent = (limbs, *known.entry(limbs).or_insert_with(|| factor(e.value, &mut values)));
            }
            let factor = recent.1;
            let next = &mut starts[slot(&e) + 1];
            terms[*next as usize] = Term { wire: e.signal, factor };
            *next += 1;
        }
        starts.pop();
        values.shrink_to_fit();
        Self { starts, terms, values }
    }
}

/// Returns the factor of a term, from v·R² mod r; a full one is appended to `values`.
fn factor(value: BigInteger256, values: &mut Vec<[u64; 4]>) -> u32 {
    let montgomery = Fr::new_unchecked(value).into_bigint();
    let v = Fr::new_unchecked(montgomery);
    let small = |v: BigInteger256| match v.0 {
        [low, 0, 0, 0] if low < u64::from(NEGATIVE) => Some(low as u32),
        _ => None,
    };
    match (small(v.into_bigint()), small((-v).into_bigint())) {
        (Some(v), _) => v,
        (_, Some(v)) => NEGATIVE | v,
        _ => {
            values.push(montgomery.0);
            FULL | (values.len() - 1) as u32
        }
    }
}

/// Returns the low limb of a + b·c + carry; the high one is the next carry.
#[inline(always)]
fn multiply_add(a: u64, b: u64, c: u64, carry: &mut u64) -> u64 {
    let wide = u128::from(a) + u128::from(b) * u128::from(c) + u128::from(*carry);
    *carry = (wide >> 64) as u64;
    wide as u64
}

/// Returns the low limb of a + b + carry; the high one is the next carry.
#[inline(always)]
fn add(a: u64, b: u64, carry: &mut u64) -> u64 {
    let wide = u128::from(a) + u128::from(b) + u128::from(*carry);
    *carry = (wide >> 64) as u64;
    wide as u64
}

/// Returns Σ v·w over the terms of a row, below 2^256.
///
/// A row has fewer than 2^32 terms, so small multiples sum to less than 2^316 and full products to less than 2^540.
#[inline(always)]
fn dot(terms: &[Term], values: &[[u64; 4]], w: &[BigInteger256]) -> [u64; 4] {
    let mut sum = [0u64; 5];
    let mut wide = [0u64; 9];
    let mut full = false;
    for term in terms {
        let w = &w[term.wire as usize].0;
        if term.factor & FULL == 0 {
            // Multiplying by −v is multiplying r − w by v.
            let mask = if term.factor & NEGATIVE == 0 { 0 } else { u64::MAX };
            let mut carry = mask & 1;
            let w: [u64; 4] = std::array::from_fn(|i| add(w[i] ^ mask, MODULUS[i] & mask, &mut carry));
            let v = u64::from(term.factor & (NEGATIVE - 1));
            let mut carry = 0;
            for (sum, w) in sum.iter_mut().zip(w) {
                *sum = multiply_add(*sum, w, v, &mut carry);
            }
            sum[4] += carry;
        } else {
            full = true;
            let v = &values[(term.factor & !FULL) as usize];
            let mut over = 0;
            for (i, w) in w.iter().enumerate() {
                let mut carry = 0;
                for (j, v) in v.iter().enumerate() {
                    wide[i + j] = multiply_add(wide[i + j], *w, *v, &mut carry);
                }
                wide[i + 4] = add(wide[i + 4], carry, &mut over);
            }
            wide[8] += over;
        }
    }
    if full {
        // Montgomery reduction: v·2^256·w becomes v·w.
        let mut over = 0;
        for i in 0..4 {
            let m = wide[i].wrapping_mul(INV);
            let mut carry = 0;
            for (j, r) in MODULUS.iter().enumerate() {
                wide[i + j] = multiply_add(wide[i + j], m, *r, &mut carry);
            }
            wide[i + 4] = add(wide[i + 4], carry, &mut over);
        }
        wide[8] += over;
        let mut carry = 0;
        for (sum, wide) in sum.iter_mut().zip(&wide[4..]) {
            *sum = add(*sum, *wide, &mut carry);
        }
    }
    if sum[4] != 0 { reduce(sum) } else { [sum[0], sum[1], sum[2], sum[3]] }
}

/// Returns x mod r for x < 2^316, plus up to three times r: below 2^256. A Barrett reduction.
fn reduce(x: [u64; 5]) -> [u64; 4] {
    /// ⌊2^316/r⌋
    const FACTOR: u64 = factor_of_the_estimate();
    // ⌊x/2^252⌋·FACTOR/2^64 is less than x/r, by less than 1 for each of three roundings.
    let top = x[4] << 4 | x[3] >> 60;
    let quotient = ((u128::from(top) * u128::from(FACTOR)) >> 64) as u64;
    let (mut carry, mut borrow) = (0, false);
    std::array::from_fn(|i| {
        let product = multiply_add(0, MODULUS[i], quotient, &mut carry);
        let (difference, first) = x[i].overflowing_sub(product);
        let (difference, second) = difference.overflowing_sub(u64::from(borrow));
        borrow = first | second;
        difference
    })
}

/// ⌊2^316/r⌋, by long division in base 2.
const fn factor_of_the_estimate() -> u64 {
    // 2^253 < r < 2^254.
    let mut rest = [0u64, 0, 0, 1 << 61];
    let mut quotient = 0u64;
    let mut bit = 253;
    while bit < 316 {
        // rest = 2·rest, less r if it is not below r.
        let mut i = 3;
        while i > 0 {
            rest[i] = rest[i] << 1 | rest[i - 1] >> 63;
            i -= 1;
        }
        rest[0] <<= 1;
        let mut less = [0u64; 4];
        let (mut i, mut borrow) = (0, false);
        while i < 4 {
            let (difference, first) = rest[i].overflowing_sub(MODULUS[i]);
            let (difference, second) = difference.overflowing_sub(borrow as u64);
            less[i] = difference;
            borrow = first | second;
            i += 1;
        }
        quotient = quotient << 1 | !borrow as u64;
        if !borrow {
            rest = less;
        }
        bit += 1;
    }
    quotient
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use ark_ff::{BigInteger, Field as _, UniformRand, Zero};
    use ark_std::rand::{Rng, SeedableRng, rngs::StdRng};

    fn residue(limbs: &[u64]) -> Fr {
        let bytes: Vec<u8> = limbs.iter().flat_map(|l| l.to_le_bytes()).collect();
        Fr::from_le_bytes_mod_order(&bytes)
    }

    /// Returns v·R² mod r, as in the file.
    fn raw(v: Fr) -> BigInteger256 {
        (v * Fr::from(2u64).pow([256])).0
    }

    #[test]
    fn rows_of_any_terms() {
        let mut rng = StdRng::seed_from_u64(5);
        let most = -Fr::from(1u64);
        for round in 0..2000 {
            let count = [0, 1, 2, 3, 17, 300][round % 6];
            let mut values = Vec::new();
            let w: Vec<Fr> = (0..8).map(|i| if i < 4 { Fr::rand(&mut rng) } else { most }).collect();
            let plain: Vec<BigInteger256> = w.iter().map(|w| w.into_bigint()).collect();
            let mut expected = Fr::zero();
            let terms: Vec<Term> = (0..count)
                .map(|_| {
                    let v = match rng.gen_range(0..if round % 4 < 2 { 8 } else { 4 }) {
                        0 => Fr::from(1u64),
                        1 => most,
                        2 => Fr::from(rng.gen_range(0..1u64 << 31)),
                        3 => -Fr::from((1u64 << 30) - 1),
                        4 => Fr::from(1u64 << 30),
                        5 => -Fr::from(1u64 << 30),
                        6 => Fr::new_unchecked(most.into_bigint()),
                        _ => Fr::rand(&mut rng),
                    };
                    let wire = rng.gen_range(0..8);
                    expected += v * w[wire as usize];
                    Term { wire, factor: factor(raw(v), &mut values) }
                })
                .collect();
            assert_eq!(residue(&dot(&terms, &values, &plain)), expected, "round {round}");
        }
    }

    #[test]
    fn small_factors_are_kept_small() {
        let mut values = Vec::new();
        assert_eq!(factor(raw(Fr::zero()), &mut values), 0);
        assert_eq!(factor(raw(Fr::from(1u64)), &mut values), 1);
        assert_eq!(factor(raw(-Fr::from(1u64)), &mut values), NEGATIVE | 1);
        assert_eq!(factor(raw(Fr::from((1u64 << 30) - 1)), &mut values), (1 << 30) - 1);
        assert_eq!(values.len(), 0);
        assert_eq!(factor(raw(Fr::from(1u64 << 30)), &mut values), FULL);
        assert_eq!(values.len(), 1);
    }

    #[test]
    fn sums_of_five_limbs_are_reduced() {
        let mut rng = StdRng::seed_from_u64(6);
        let four_times = num_bigint::BigUint::from(Fr::MODULUS) * 4u32;
        for round in 0..2000 {
            let mut x: [u64; 5] = std::array::from_fn(|_| match rng.gen_range(0..4) {
                0 => 0,
                1 => u64::MAX,
                _ => rng.r#gen(),
            });
            x[4] = if round % 2 == 0 { rng.gen_range(0..4) } else { x[4] >> 4 };
            let got = reduce(x);
            assert_eq!(residue(&got), residue(&x));
            let got = BigInteger256::new(got).to_bytes_le();
            assert!(num_bigint::BigUint::from_bytes_le(&got) < four_times);
        }
    }
}
