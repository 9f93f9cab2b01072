//! The constants of a prime for the product, each in four lanes, computed at compile time.

use std::arch::x86_64::{__m256d, _mm256_load_pd};

/// Bits of a limb.
pub(super) const BITS: u32 = 51;
/// A limb with all bits set.
pub(super) const MASK: u64 = (1 << BITS) - 1;
/// 2^50: half a limb, which the bias of a column adds so that truncating at a limb rounds to the nearest.
const HALF: u64 = 1 << (BITS - 1);
/// 2^52
pub(super) const TWO_52: f64 = (1u64 << 52) as f64;
/// 1.5·2^52: integers of up to 51 bits added to it are in the low bits of the sum.
pub(super) const LOW: f64 = 1.5 * TWO_52;
/// 1.5·2^103: values added to it are rounded to a multiple of 2^51, which is in the low bits of the sum.
pub(super) const HIGH: f64 = LOW * (1u64 << BITS) as f64;
/// Added to columns, whose values are within 2^55, so that they are never negative.
const BIAS: u64 = 1 << 56;
/// [`BIAS`] as carried into the next column.
const CARRIED: u64 = BIAS >> BITS;

/// The constants of a prime, each in four lanes. Their offsets are hard-coded in the product's assembly.
#[repr(C, align(32))]
pub(super) struct Table([[u64; 4]; 29]);

impl Table {
    /// Limbs of (p·k + 1)/2^51, where k = −1/p mod 2^51.
    const STEP: usize = 0;
    /// Limbs of −p.
    pub(super) const MINUS_P: usize = 5;
    /// Start values of the ten columns.
    const COLUMNS: usize = 10;
    /// 2^204/p
    pub(super) const QUOTIENT: usize = 24;

    /// Computes the constants of a prime given by its 64-bit limbs.
    pub(super) const fn new(p: &[u64; 4]) -> Self {
        let mut rows = [[0; 4]; 29];
        let (step, minus_p, columns, quotient) = (step(p), limbs(p, true), columns(), reciprocal(p));
        let mut j = 0;
        while j < 5 {
            rows[Self::STEP + j] = [step[j].to_bits(); 4];
            rows[Self::MINUS_P + j] = [minus_p[j].to_bits(); 4];
            // Packing adds p to limbs and subtracts up to 2^12, within 51 bits and a sign.
            assert!(minus_p[j].abs() <= (HALF - (1 << 12)) as f64);
            j += 1;
        }
        let mut j = 0;
        while j < 10 {
            rows[Self::COLUMNS + j] = [columns[j]; 4];
            j += 1;
        }
        rows[20] = [MASK; 4];
        rows[21] = [TWO_52.to_bits(); 4];
        rows[22] = [(TWO_52 + HALF as f64).to_bits(); 4];
        rows[23] = [(TWO_52 + HALF as f64 + CARRIED as f64).to_bits(); 4];
        rows[Self::QUOTIENT] = [quotient.to_bits(); 4];
        rows[25] = [(quotient * (1u64 << BITS) as f64).to_bits(); 4];
        rows[26] = [LOW.to_bits(); 4];
        rows[27] = [HIGH.to_bits(); 4];
        rows[28] = [(HIGH + LOW).to_bits(); 4];
        Self(rows)
    }

    /// Returns a constant in four lanes.
    #[target_feature(enable = "avx2,fma")]
    #[inline]
    pub(super) fn lanes(&self, row: usize) -> __m256d {
        // SAFETY: the row is 32 bytes, and aligned to 32.
        unsafe { _mm256_load_pd(self.0[row].as_ptr().cast()) }
    }

    /// Returns a constant.
    pub(super) const fn at(&self, row: usize) -> f64 {
        f64::from_bits(self.0[row][0])
    }
}

/// Returns the five limbs of x < 2^254 or of −x: all but the last between −2^50 and 2^50.
pub(super) const fn limbs(x: &[u64; 4], negative: bool) -> [f64; 5] {
    let raw = [
        x[0] & MASK,
        (x[0] >> 51 | x[1] << 13) & MASK,
        (x[1] >> 38 | x[2] << 26) & MASK,
        (x[2] >> 25 | x[3] << 39) & MASK,
        x[3] >> 12,
    ];
    let (mut out, mut carry, mut j) = ([0.0; 5], 0, 0);
    while j < 5 {
        let mut limb = (raw[j] + carry) as i64;
        carry = (j < 4 && limb >= HALF as i64) as u64;
        limb -= (carry << BITS) as i64;
        out[j] = if negative { -limb as f64 } else { limb as f64 };
        j += 1;
    }
    out
}

/// Returns the limbs of (p·k + 1)/2^51, where k = −1/p mod 2^51, between −2^50 and 2^50.
const fn step(p: &[u64; 4]) -> [f64; 5] {
    let (mut inverse, mut round) = (1u64, 0);
    while round < 6 {
        inverse = inverse.wrapping_mul(2u64.wrapping_sub(p[0].wrapping_mul(inverse)));
        round += 1;
    }
    let k = inverse.wrapping_neg() & MASK;
    let negative = k >= HALF;
    let size = if negative { MASK + 1 - k } else { k };
    // p·|k| ends in 51 ones for a positive k, and in zeros and a one for a negative k.
    let (mut product, mut carry, mut j) = ([0u64; 5], 0u128, 0);
    while j < 4 {
        carry += p[j] as u128 * size as u128;
        product[j] = carry as u64;
        carry >>= 64;
        j += 1;
    }
    product[4] = carry as u64;
    let (mut shifted, mut j) = ([0; 4], 0);
    let mut up = !negative as u64;
    while j < 4 {
        let limb = product[j] >> 51 | product[j + 1] << 13;
        shifted[j] = limb.wrapping_add(up);
        up = (up == 1 && limb == u64::MAX) as u64;
        j += 1;
    }
    limbs(&shifted, negative)
}

/// Returns start values that cancel what the bits of [`LOW`] and [`HIGH`] add to the columns and the biases carried in
/// from below, and set the column's own bias.
const fn columns() -> [u64; 10] {
    let (mut low, mut high) = ([0u64; 10], [0u64; 10]);
    let mut j = 0;
    while j < 5 {
        let mut i = 0;
        while i < 5 {
            low[i + j] += 1;
            high[i + j + 1] += 1;
            if i < 4 {
                low[i + j + 1] += 1;
                high[i + j + 2] += 1;
            }
            i += 1;
        }
        // Columns 8 and 9 are read before the multiple of p is added.
        if j < 4 {
            low[4 + j] += 1;
        }
        if j < 3 {
            high[5 + j] += 1;
        }
        j += 1;
    }
    let (mut start, mut c) = ([0u64; 10], 0);
    while c < 10 {
        let cancel = low[c].wrapping_mul(LOW.to_bits()).wrapping_add(high[c].wrapping_mul(HIGH.to_bits()));
        let own = if c < 9 { BIAS + HALF } else { LOW.to_bits() };
        let carried = if c == 0 || c == 4 + 4 { 0 } else { CARRIED };
        start[c] = own.wrapping_sub(cancel).wrapping_sub(carried);
        c += 1;
    }
    start
}

/// 2^204/p, rounded to the nearest double, for 2^253 < p < 2^254
const fn reciprocal(p: &[u64; 4]) -> f64 {
    // Long division of 2^(253 + 54) by p, bit by bit.
    let (mut rest, mut quotient, mut bit) = ([0, 0, 0, 1u64 << 61], 0u64, 0);
    while bit < 54 {
        let (mut less, mut borrow, mut j) = ([0; 4], false, 0);
        let mut carry = 0;
        while j < 4 {
            let twice = rest[j] << 1 | carry;
            carry = rest[j] >> 63;
            rest[j] = twice;
            let (d, b) = twice.overflowing_sub(p[j]);
            let (d, c) = d.overflowing_sub(borrow as u64);
            (less[j], borrow) = (d, b || c);
            j += 1;
        }
        if !borrow {
            rest = less;
        }
        quotient = quotient << 1 | !borrow as u64;
        bit += 1;
    }
    // quotient = 2^307/p, of 54 bits.
    let (mut value, mut halved) = (((quotient + 1) >> 1) as f64, 0);
    while halved < 102 {
        value *= 0.5;
        halved += 1;
    }
    value
}
