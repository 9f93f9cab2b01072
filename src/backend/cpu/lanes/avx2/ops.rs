//! Operations other than products: sums, selections, and conversions from and to packed elements.
//!
//! Each is a function compiled for the instruction set, wherever it is called from. Loops are written out rather than
//! passed to iterators as closures, which the compiler would compile for any CPU.

use std::arch::x86_64::*;

use super::table::{BITS, HIGH, LOW, MASK, TWO_52, Table};
use super::{Limbs, Pair};

/// Four lanes of a value.
type Half = [__m256d; 5];

/// Copies a value limb by limb: otherwise the compiler calls the C library to copy that many bytes.
#[target_feature(enable = "avx2,fma")]
#[inline]
pub(super) fn copy(a: &Limbs) -> Limbs {
    let Limbs([[a, b, c, d, e], [f, g, h, i, j]]) = *a;
    Limbs([[a, b, c, d, e], [f, g, h, i, j]])
}

/// a + b, limb by limb
#[target_feature(enable = "avx2,fma")]
#[inline]
pub(super) fn sum(a: &Limbs, b: &Limbs) -> Limbs {
    let mut out = *a;
    for (out, b) in out.0.as_flattened_mut().iter_mut().zip(b.0.as_flattened()) {
        *out = _mm256_add_pd(*out, *b);
    }
    out
}

/// a − b, limb by limb
#[target_feature(enable = "avx2,fma")]
#[inline]
pub(super) fn difference(a: &Limbs, b: &Limbs) -> Limbs {
    let mut out = *a;
    for (out, b) in out.0.as_flattened_mut().iter_mut().zip(b.0.as_flattened()) {
        *out = _mm256_sub_pd(*out, *b);
    }
    out
}

/// Reduces a value whose limbs are integers of at most 2^52 in magnitude.
#[target_feature(enable = "avx2,fma")]
#[cfg_attr(debug_assertions, inline(never))]
#[cfg_attr(not(debug_assertions), inline)]
pub(super) fn reduce(x: Limbs, table: &Table) -> Limbs {
    let Limbs([low, high]) = x;
    Limbs([reduce_half(low, table), reduce_half(high, table)])
}

#[target_feature(enable = "avx2,fma")]
#[inline]
fn reduce_half(mut x: Half, table: &Table) -> Half {
    let quotient = _mm256_mul_pd(x[4], table.lanes(Table::QUOTIENT));
    let quotient = _mm256_round_pd::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(quotient);
    for (j, x) in x.iter_mut().enumerate() {
        *x = _mm256_fmadd_pd(quotient, table.lanes(Table::MINUS_P + j), *x);
    }
    let (high, down) = (_mm256_set1_pd(HIGH), _mm256_set1_pd(1.0 / (MASK + 1) as f64));
    for j in 0..4 {
        let carry = _mm256_sub_pd(_mm256_add_pd(x[j], high), high);
        x[j] = _mm256_sub_pd(x[j], carry);
        x[j + 1] = _mm256_fmadd_pd(carry, down, x[j + 1]);
    }
    x
}

/// Returns the sign bits of four lanes, from the low four bits.
#[target_feature(enable = "avx2,fma")]
#[inline]
fn signs(bits: u32) -> __m256d {
    let bits = _mm256_sllv_epi64(_mm256_set1_epi64x(i64::from(bits)), _mm256_set_epi64x(60, 61, 62, 63));
    _mm256_and_pd(_mm256_castsi256_pd(bits), _mm256_set1_pd(-0.0))
}

/// −a in the lanes set in `mask`, a in the others
#[target_feature(enable = "avx2,fma")]
#[inline]
pub(super) fn negate_where(mut a: Limbs, mask: u32) -> Limbs {
    for (h, half) in a.0.iter_mut().enumerate() {
        let signs = signs(mask >> (4 * h));
        for limb in half {
            *limb = _mm256_xor_pd(*limb, signs);
        }
    }
    a
}

/// b in the lanes set in `mask`, a in the others
#[target_feature(enable = "avx2,fma")]
#[inline]
pub(super) fn select(a: &Limbs, b: &Limbs, mask: u32) -> Limbs {
    let mut out = *a;
    for h in 0..2 {
        let signs = signs(mask >> (4 * h));
        for j in 0..5 {
            out.0[h][j] = _mm256_blendv_pd(a.0[h][j], b.0[h][j], signs);
        }
    }
    out
}

/// Returns the mask of the lanes whose limbs are all zero, of either sign.
#[target_feature(enable = "avx2,fma")]
#[inline]
pub(super) fn zeros(a: &Limbs) -> u32 {
    let mut lanes = 0;
    for (h, x) in a.0.iter().enumerate() {
        // The bitwise OR of the limbs has exponent bits, possibly those of a NaN, unless every limb is zero.
        let any = _mm256_or_pd(_mm256_or_pd(_mm256_or_pd(x[0], x[1]), _mm256_or_pd(x[2], x[3])), x[4]);
        let zero = _mm256_cmp_pd::<_CMP_EQ_OQ>(any, _mm256_setzero_pd());
        lanes |= (_mm256_movemask_pd(zero) as u32) << (4 * h);
    }
    lanes
}

/// Unpacks values below 2^256 to reduced ones.
#[target_feature(enable = "avx2,fma")]
#[inline]
pub(super) fn unpack(x: [&[u64; 4]; 8], table: &Table) -> Limbs {
    let low = transpose([load(x[0]), load(x[1]), load(x[2]), load(x[3])]);
    let high = transpose([load(x[4]), load(x[5]), load(x[6]), load(x[7])]);
    reduce(Limbs([split(low), split(high)]), table)
}

/// Unpacks pairs of values to reduced ones.
#[target_feature(enable = "avx2,fma")]
#[inline]
pub(super) fn unpack_pairs(x: [&Pair; 8], table: &Table) -> [Limbs; 2] {
    let [mut first, mut second] = [[&x[0].0[0]; 8]; 2];
    for k in 0..8 {
        [first[k], second[k]] = x[k].0.each_ref();
    }
    [unpack(first, table), unpack(second, table)]
}

/// Packs reduced values; the packed ones are between 0 and 2p.
#[target_feature(enable = "avx2,fma")]
#[inline]
pub(super) fn pack(x: &Limbs, table: &Table, to: &mut [[u64; 4]; 8]) {
    for h in 0..2 {
        let lanes = transpose(join(&x.0[h], table));
        for k in 0..4 {
            write(lanes[k], &mut to[4 * h + k]);
        }
    }
}

/// Packs pairs of reduced values.
#[target_feature(enable = "avx2,fma")]
#[inline]
pub(super) fn pack_pairs(x: [&Limbs; 2], table: &Table, to: &mut [Pair; 8]) {
    for h in 0..2 {
        for (c, x) in x.iter().enumerate() {
            let lanes = transpose(join(&x.0[h], table));
            for k in 0..4 {
                write(lanes[k], &mut to[4 * h + k].0[c]);
            }
        }
    }
}

/// Transposes eight vectors: lane k of vector q becomes lane q of vector k.
#[target_feature(enable = "avx2,fma")]
#[inline]
pub(super) fn transpose_square(square: [&mut Limbs; 8]) {
    for limb in 0..5 {
        // Squares of four lanes; the two off the diagonal are also swapped.
        for (rows, half) in [(0, 0), (4, 1)] {
            let x = transpose(four(&square, rows, half, limb));
            for i in 0..4 {
                square[rows + i].0[half][limb] = _mm256_castsi256_pd(x[i]);
            }
        }
        let right = transpose(four(&square, 0, 1, limb));
        let left = transpose(four(&square, 4, 0, limb));
        for i in 0..4 {
            square[i].0[1][limb] = _mm256_castsi256_pd(left[i]);
            square[4 + i].0[0][limb] = _mm256_castsi256_pd(right[i]);
        }
    }
}

/// Returns a limb of one half of four vectors.
#[target_feature(enable = "avx2,fma")]
#[inline]
fn four(square: &[&mut Limbs; 8], first: usize, half: usize, limb: usize) -> [__m256i; 4] {
    [
        _mm256_castpd_si256(square[first].0[half][limb]),
        _mm256_castpd_si256(square[first + 1].0[half][limb]),
        _mm256_castpd_si256(square[first + 2].0[half][limb]),
        _mm256_castpd_si256(square[first + 3].0[half][limb]),
    ]
}

/// Converts limbs of 64 bits to limbs of 51.
#[target_feature(enable = "avx2,fma")]
#[inline]
fn split(x: [__m256i; 4]) -> Half {
    let mask = _mm256_set1_epi64x(MASK as i64);
    let limbs = [
        _mm256_and_si256(x[0], mask),
        _mm256_and_si256(_mm256_or_si256(_mm256_srli_epi64::<51>(x[0]), _mm256_slli_epi64::<13>(x[1])), mask),
        _mm256_and_si256(_mm256_or_si256(_mm256_srli_epi64::<38>(x[1]), _mm256_slli_epi64::<26>(x[2])), mask),
        _mm256_and_si256(_mm256_or_si256(_mm256_srli_epi64::<25>(x[2]), _mm256_slli_epi64::<39>(x[3])), mask),
        _mm256_srli_epi64::<12>(x[3]),
    ];
    let exponent = _mm256_set1_pd(TWO_52);
    let mut out = [exponent; 5];
    for j in 0..5 {
        out[j] = _mm256_sub_pd(_mm256_or_pd(_mm256_castsi256_pd(limbs[j]), exponent), exponent);
    }
    out
}

/// Converts reduced limbs of 51 bits to limbs of 64, adding p.
#[target_feature(enable = "avx2,fma")]
#[inline]
fn join(limbs: &Half, table: &Table) -> [__m256i; 4] {
    // The bits above 51 of a sum with LOW, which are carried into the next limb.
    let carried = (LOW.to_bits() >> BITS) as f64;
    let starts = [LOW, LOW - carried, LOW - carried, LOW - carried, TWO_52 - carried];
    let mut x = [_mm256_setzero_si256(); 5];
    for j in 0..5 {
        let start = _mm256_sub_pd(_mm256_set1_pd(starts[j]), table.lanes(Table::MINUS_P + j));
        x[j] = _mm256_castpd_si256(_mm256_add_pd(limbs[j], start));
    }
    for j in 0..4 {
        x[j + 1] = _mm256_add_epi64(x[j + 1], _mm256_srli_epi64::<51>(x[j]));
        x[j] = _mm256_and_si256(x[j], _mm256_set1_epi64x(MASK as i64));
    }
    [
        _mm256_or_si256(x[0], _mm256_slli_epi64::<51>(x[1])),
        _mm256_or_si256(_mm256_srli_epi64::<13>(x[1]), _mm256_slli_epi64::<38>(x[2])),
        _mm256_or_si256(_mm256_srli_epi64::<26>(x[2]), _mm256_slli_epi64::<25>(x[3])),
        // The shift drops the exponent.
        _mm256_or_si256(_mm256_srli_epi64::<39>(x[3]), _mm256_slli_epi64::<12>(x[4])),
    ]
}

/// Transposes four lanes: lane i of part k of the result is lane k of part i.
#[target_feature(enable = "avx2,fma")]
#[inline]
fn transpose(x: [__m256i; 4]) -> [__m256i; 4] {
    let low = [_mm256_unpacklo_epi64(x[0], x[1]), _mm256_unpacklo_epi64(x[2], x[3])];
    let high = [_mm256_unpackhi_epi64(x[0], x[1]), _mm256_unpackhi_epi64(x[2], x[3])];
    [
        _mm256_permute2x128_si256::<0x20>(low[0], low[1]),
        _mm256_permute2x128_si256::<0x20>(high[0], high[1]),
        _mm256_permute2x128_si256::<0x31>(low[0], low[1]),
        _mm256_permute2x128_si256::<0x31>(high[0], high[1]),
    ]
}

#[target_feature(enable = "avx2,fma")]
#[inline]
fn load(x: &[u64; 4]) -> __m256i {
    // SAFETY: the reference is to 32 bytes, and the load needs no alignment.
    unsafe { _mm256_loadu_si256(x.as_ptr().cast()) }
}

#[target_feature(enable = "avx2,fma")]
#[inline]
fn write(x: __m256i, to: &mut [u64; 4]) {
    // SAFETY: the reference is to 32 bytes, and the store needs no alignment.
    unsafe { _mm256_storeu_si256(to.as_mut_ptr().cast(), x) }
}

/// Returns the same limbs in every lane.
#[target_feature(enable = "avx2,fma")]
#[inline]
pub(super) fn splat(limbs: [f64; 5]) -> Limbs {
    let mut out = [_mm256_setzero_pd(); 5];
    for j in 0..5 {
        out[j] = _mm256_set1_pd(limbs[j]);
    }
    Limbs([out; 2])
}
