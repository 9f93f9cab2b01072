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

/// Set in an entry whose point is taken away rather than added; the rest of an entry is an index.
pub(super) const MINUS: u32 = 1 << 31;

/// The digits of some scalars. As secret as they are: overwritten when dropped.
///
/// Memory: 2 bytes for each window (at most 85 of them, 17 to 20 where there are many scalars) and 4 more, for each
/// scalar that is not 0, 1 or −1; 4 bytes for each that is 1 or −1.
pub(super) struct Digits {
    /// Bits of a window.
    pub(super) window: usize,
    /// By window, then as in `wires`: digits from −2^(window − 1) to 2^(window − 1).
    pub(super) rows: Vec<Zeroizing<Vec<i16>>>,
    /// Which scalars have digits: those that are not 0, 1 or −1, in ascending order.
    pub(super) wires: Zeroizing<Vec<u32>>,
    /// Which scalars are 1, and with [`MINUS`] which are −1, in ascending order.
    pub(super) units: Zeroizing<Vec<u32>>,
}

/// Scalars a task cuts.
const CHUNK: usize = 1 << 12;

impl Digits {
    /// Cuts plain scalars below r (fewer than 2^31), with the window that suits the number of those that need cutting.
    pub(super) fn new(scalars: &[BigInteger256]) -> Self {
        // Both of full length at once: a vector that grows leaves copies behind.
        let sift = |(k, chunk): (usize, &[BigInteger256])| {
            let mut wires = Zeroizing::new(Vec::with_capacity(CHUNK));
            let mut units = Zeroizing::new(Vec::with_capacity(CHUNK));
            for (i, scalar) in chunk.iter().enumerate() {
                let wire = (k * CHUNK + i) as u32;
                let (negative, magnitude) = centred(scalar);
                if magnitude == BigInteger256::one() {
                    units.push(if negative { wire | MINUS } else { wire });
                } else if !magnitude.is_zero() {
                    wires.push(wire);
                }
            }
            (wires, units)
        };
        let sifted: Vec<_> = scalars.par_chunks(CHUNK).enumerate().map(sift).collect();
        let mut wires = Zeroizing::new(Vec::with_capacity(sifted.iter().map(|(wires, _)| wires.len()).sum()));
        let mut units = Zeroizing::new(Vec::with_capacity(sifted.iter().map(|(_, units)| units.len()).sum()));
        for (some_wires, some_units) in &sifted {
            wires.extend_from_slice(some_wires);
            units.extend_from_slice(some_units);
        }
        let window = best_window(wires.len());
        // One bit more than the scalar has, so that the last digit never carries.
        let windows = (BITS + 1).div_ceil(window);
        let mut rows: Vec<_> = (0..windows).map(|_| Zeroizing::new(vec![0i16; wires.len()])).collect();

        // A task owns one chunk of scalars, and so one piece of each window's row.
        let mut pieces: Vec<Vec<&mut [i16]>> = (0..wires.len().div_ceil(CHUNK)).map(|_| Vec::new()).collect();
        for row in &mut rows {
            for (piece, owner) in row.chunks_mut(CHUNK).zip(&mut pieces) {
                owner.push(piece);
            }
        }
        wires.par_chunks(CHUNK).zip(pieces.par_iter_mut()).for_each(|(wires, rows)| {
            for (i, wire) in wires.iter().enumerate() {
                let (negative, magnitude) = centred(&scalars[*wire as usize]);
                let sign = if negative { -1 } else { 1 };
                cut(&magnitude.0, window, |w, digit| rows[w][i] = sign * digit);
            }
        });
        Self { window, rows, wires, units }
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

/// The window with the fewest field products: an addition takes 6 (batched affine), and the 2^(c−1) buckets of a
/// window take two each, at twice the price, as measured: more of their rounds are small, and they are sorted and
/// copied.
fn best_window(n: usize) -> usize {
    let cost = |c: usize| (BITS + 1).div_ceil(c) * (6 * n + 24 * (1 << (c - 1)));
    (3..=MAX_WINDOW).min_by_key(|c| cost(*c)).unwrap_or(MAX_WINDOW)
}

#[cfg(test)]
mod tests {
    use super::*;
    use ark_ff::{AdditiveGroup, Field, One, Zero};
    use proptest::prelude::*;

    fn check(values: &[Fr]) {
        let scalars: Vec<_> = values.iter().map(|v| v.into_bigint()).collect();
        let d = Digits::new(&scalars);
        let base = Fr::from(2u64).pow([d.window as u64]);
        let digit = |v: i16| if v < 0 { -Fr::from(v.unsigned_abs()) } else { Fr::from(v as u16) };
        let mut got = vec![Fr::ZERO; values.len()];
        for unit in d.units.iter() {
            got[(unit & !MINUS) as usize] += if unit & MINUS == 0 { Fr::ONE } else { -Fr::ONE };
        }
        for (i, wire) in d.wires.iter().enumerate() {
            got[*wire as usize] += d.rows.iter().rev().fold(Fr::ZERO, |acc, row| acc * base + digit(row[i]));
        }
        assert_eq!(got, values, "with windows of {}", d.window);
        let plain = values.iter().filter(|v| v.is_zero() || v.is_one() || (-**v).is_one()).count();
        assert_eq!(d.wires.len(), values.len() - plain, "only scalars that need digits have any");
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
