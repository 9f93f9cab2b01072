//! Scalars cut into signed digits, once for all the products over one witness.
//!
//! A scalar above r/2 is replaced by r minus itself, its sign kept, so that small negative values stay short. With
//! windows of c bits the digits lie in −2^(c−1) ..= 2^(c−1), which halves the buckets (Joye–Yen recoding as used for
//! multi-scalar multiplication since Bernstein et al., "Faster batch forgery identification", 2012).

use ark_ff::{BigInteger, BigInteger256, PrimeField};
use rayon::prelude::*;
use zeroize::Zeroizing;

use crate::model::Fr;

/// Bits of a scalar of at most r/2.
const BITS: usize = 253;
/// Widest window whose digits fit 16 bits.
const MAX_WINDOW: usize = 15;

/// The digits of some scalars. As secret as they are: overwritten when dropped.
pub(super) struct Digits {
    /// Bits of a window.
    pub(super) window: usize,
    /// Number of windows.
    pub(super) windows: usize,
    count: usize,
    /// By window, then by scalar. Scalars 1 and −1 have no digits: they are in `units`.
    digits: Zeroizing<Vec<i16>>,
    /// Which scalars are 1 or −1, as ±1; 0 for every other.
    units: Zeroizing<Vec<i8>>,
}

/// Scalars a task cuts.
const CHUNK: usize = 1 << 12;

impl Digits {
    /// Cuts plain scalars below r, with the window that suits their number.
    pub(super) fn new(scalars: &[BigInteger256]) -> Self {
        let window = best_window(scalars.len());
        // One bit more than the scalar has, so that the last digit never carries.
        let windows = (BITS + 1).div_ceil(window);
        let count = scalars.len();
        let mut digits = Zeroizing::new(vec![0i16; windows * count]);
        let mut units = Zeroizing::new(vec![0i8; count]);

        // A task owns one chunk of scalars, and so one piece of each window's row.
        let mut pieces: Vec<Vec<&mut [i16]>> = (0..count.div_ceil(CHUNK)).map(|_| Vec::new()).collect();
        if count > 0 {
            for row in digits.chunks_mut(count) {
                for (piece, owner) in row.chunks_mut(CHUNK).zip(&mut pieces) {
                    owner.push(piece);
                }
            }
        }
        let tasks = scalars.par_chunks(CHUNK).zip(units.par_chunks_mut(CHUNK)).zip(pieces.par_iter_mut());
        tasks.for_each(|((scalars, units), rows)| {
            for (i, scalar) in scalars.iter().enumerate() {
                let (negative, magnitude) = centred(scalar);
                let sign = if negative { -1 } else { 1 };
                if magnitude == BigInteger256::one() {
                    units[i] = sign as i8;
                } else if !magnitude.is_zero() {
                    cut(&magnitude.0, window, |w, digit| rows[w][i] = sign * digit);
                }
            }
        });
        Self { window, windows, count, digits, units }
    }

    /// The digits of one window, by scalar.
    pub(super) fn row(&self, window: usize) -> &[i16] {
        &self.digits[window * self.count..][..self.count]
    }

    /// By scalar: ±1 where it is 1 or −1, else 0.
    pub(super) fn units(&self) -> &[i8] {
        &self.units
    }
}

/// (true, r − s) for s above r/2, else (false, s).
fn centred(s: &BigInteger256) -> (bool, BigInteger256) {
    if *s > Fr::MODULUS_MINUS_ONE_DIV_TWO {
        let mut m = Fr::MODULUS;
        m.sub_with_borrow(s);
        (true, m)
    } else {
        (false, *s)
    }
}

/// Calls `put(window, digit)` for each digit that is not zero.
fn cut(limbs: &[u64; 4], window: usize, mut put: impl FnMut(usize, i16)) {
    let mask = (1u64 << window) - 1;
    let half = 1i32 << (window - 1);
    let mut carry = 0i32;
    for (w, bit) in (0..=BITS).step_by(window).enumerate() {
        let (limb, shift) = (bit / 64, bit % 64);
        let mut bits = limbs[limb] >> shift;
        if shift + window > 64 && limb < 3 {
            bits |= limbs[limb + 1] << (64 - shift);
        }
        let mut digit = (bits & mask) as i32 + carry;
        carry = i32::from(digit > half);
        digit -= carry << window;
        if digit != 0 {
            put(w, digit as i16);
        }
    }
    debug_assert_eq!(carry, 0, "the last digit carries nothing");
}

/// The window with the fewest field products: an addition into a bucket takes 6 (batched affine), the summation of a
/// window's 2^(c−1) buckets about 24 each.
fn best_window(n: usize) -> usize {
    let cost = |c: usize| (BITS + 1).div_ceil(c) * (6 * n + 24 * (1 << (c - 1)));
    (3..=MAX_WINDOW).min_by_key(|c| cost(*c)).unwrap_or(MAX_WINDOW)
}

#[cfg(test)]
mod tests {
    use super::*;
    use ark_ff::{AdditiveGroup, Field, Zero};
    use proptest::prelude::*;

    fn sum(d: &Digits, i: usize) -> Fr {
        let base = Fr::from(2u64).pow([d.window as u64]);
        let digit = |v: i64| if v < 0 { -Fr::from(v.unsigned_abs()) } else { Fr::from(v as u64) };
        let rows = (0..d.windows).rev().fold(Fr::ZERO, |acc, w| acc * base + digit(i64::from(d.row(w)[i])));
        rows + digit(i64::from(d.units()[i]))
    }

    fn check(values: &[Fr]) {
        let scalars: Vec<_> = values.iter().map(|v| v.into_bigint()).collect();
        let d = Digits::new(&scalars);
        for (i, v) in values.iter().enumerate() {
            assert_eq!(sum(&d, i), *v, "scalar {i} with windows of {}", d.window);
        }
    }

    #[test]
    fn awkward_scalars_are_the_sum_of_their_digits() {
        let half = Fr::from_bigint(Fr::MODULUS_MINUS_ONE_DIV_TWO).expect("below r");
        let one = Fr::ONE;
        let mut values = vec![Fr::zero(), one, -one, one + one, -(one + one), half, half + one, half - one];
        values.extend((0..253).flat_map(|k| {
            let p = one.double().pow([k]);
            [p, p - one, p + one, -p, one - p]
        }));
        check(&values);
        check(&[]);
        check(&values[..1]);
        for n in [100, 5_000, 70_000] {
            let many: Vec<_> = values.iter().copied().cycle().take(n).collect();
            check(&many);
        }
    }

    proptest! {
        #[test]
        fn scalars_are_the_sum_of_their_digits(limbs in proptest::collection::vec(any::<[u64; 4]>(), 1..50)) {
            let values: Vec<Fr> = limbs
                .iter()
                .map(|l| Fr::from_le_bytes_mod_order(&l.iter().flat_map(|w| w.to_le_bytes()).collect::<Vec<_>>()))
                .collect();
            check(&values);
        }
    }

    #[test]
    fn windows_grow_with_the_number_of_scalars() {
        assert!(best_window(10) < best_window(10_000));
        assert!(best_window(10_000) < best_window(1 << 24));
    }
}
