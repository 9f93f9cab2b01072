//! Scalars recoded into signed digits, once for all products over one witness.
//!
//! A scalar above r/2 is replaced by r minus itself, with its sign noted, so that small negative values stay short.
//! With windows of c bits the digits lie in −2^(c−1) .. 2^(c−1), which halves the number of buckets (Joye–Yen recoding
//! as used for multi-scalar multiplication since Bernstein et al., "Faster batch forgery identification", 2012).
//!
//! Where there are few scalars, they are halved first: k = k₁ + λ·k₂ with k₁ and k₂ of half the length, where the
//! endomorphism of both curves multiplies by λ (R. P. Gallant, R. J. Lambert and S. A. Vanstone, *Faster point
//! multiplication on elliptic curves with efficient endomorphisms*, CRYPTO 2001). There are as many digits as before,
//! of twice as many points, in half as many windows; so there are half as many buckets to sum, or wider windows for the
//! same number of buckets.

use ark_ff::{BigInteger, BigInteger256, PrimeField};
use rayon::prelude::*;
use zeroize::Zeroizing;

use crate::model::Fr;

/// Bits of a scalar of at most r/2.
const BITS: usize = 253;
/// Bits of its halves.
const HALF_BITS: usize = 126;
/// The widest window whose digits fit in 16 bits.
pub(super) const MAX_WINDOW: usize = 16;

/// Set in an entry whose point is subtracted rather than added. The rest of an entry is an index.
pub(super) const MINUS: u32 = 1 << 31;
/// Bits of an index.
pub(super) const INDEX_BITS: u32 = 30;

/// Maximum number of scalars that are halved. By the cost model below this saves an eighth to a tenth of the field
/// products, at the price of memory for as many points again.
const MAX_HALVED: usize = 1 << 12;

/// The multiples that are stored of each point, which determine how its scalar is recoded.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Multiples {
    /// The point only.
    None,
    /// The point and λ times the point: scalars are halved.
    Image,
    /// 2^(c·w) times the point for every window w of c bits, so that all windows share their buckets. In an index, the
    /// number of the window is above the `wire` bits of the wire's number.
    Windows {
        /// c, at most [`MAX_WINDOW`].
        bits: usize,
        /// Bits of a wire's number.
        wire: u32,
    },
}

impl Multiples {
    /// Returns the multiples that a key is loaded with, for products with `scalars` scalars.
    pub(super) fn at_load(scalars: usize) -> Self {
        if scalars <= MAX_HALVED { Self::Image } else { Self::None }
    }

    /// Returns the multiples for windows of `bits` bits and `scalars` scalars, if they fit an index.
    pub(super) fn windows(bits: usize, scalars: usize) -> Option<Self> {
        let wire = scalars.max(1).next_power_of_two().ilog2();
        let multiples = Self::Windows { bits, wire };
        let last = (multiples.per_point() - 1).checked_ilog2().map_or(0, |last| last + 1);
        (bits <= MAX_WINDOW && wire + last <= INDEX_BITS).then_some(multiples)
    }

    /// Returns the number of multiples of each point, itself included.
    pub(super) fn per_point(self) -> usize {
        match self {
            Self::None => 1,
            Self::Image => 2,
            Self::Windows { bits, .. } => windows(BITS, bits),
        }
    }

    /// Returns the bits of an index that hold the wire's number; those above hold the number of the multiple.
    pub(super) fn wire_bits(self) -> u32 {
        match self {
            Self::None => INDEX_BITS,
            // One bit for the image.
            Self::Image => INDEX_BITS - 1,
            Self::Windows { wire, .. } => wire,
        }
    }
}

/// Returns the number of windows of `window` bits in a scalar of `bits` bits. Together they have at least two bits more
/// than the scalar, because no width of 3 to 16 bits divides 254 or 127: so the last digit never carries.
fn windows(bits: usize, window: usize) -> usize {
    (bits + 1).div_ceil(window)
}

/// The digits of scalars. As secret as the scalars: overwritten when dropped.
///
/// Memory: 2 bytes for each window (at most 86 for two halves, 16 to 20 where there are many scalars) and 4 to 8 more,
/// for each scalar that is not 0, 1 or −1; 4 bytes for each that is 1 or −1.
pub(super) struct Digits {
    /// Bits of a window.
    pub(super) window: usize,
    /// By window, then in the order of `wires`: digits from −2^(window − 1) to 2^(window − 1) − 1.
    pub(super) rows: Vec<Zeroizing<Vec<i16>>>,
    /// The indices of scalars that have digits, those that are not 0, 1 or −1, in ascending order. If scalars are
    /// halved, each index is followed by that of the point's image, for the second half.
    pub(super) wires: Zeroizing<Vec<u32>>,
    /// The indices of scalars that are 1 or, with [`MINUS`] set, −1, in ascending order.
    pub(super) units: Zeroizing<Vec<u32>>,
}

/// Scalars per task.
const CHUNK: usize = 1 << 12;

impl Digits {
    /// Recodes plain scalars below r (at most as many as fit an index), with the window of their points' multiples or
    /// else the best one for the number of scalars that have digits.
    pub(super) fn new(scalars: &[BigInteger256], multiples: Multiples) -> Self {
        // Both are allocated at full length: a vector that grows leaves copies behind.
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
        let parts = if multiples == Multiples::Image { 2 } else { 1 };
        let image = 1 << multiples.wire_bits();
        let dense: usize = sifted.iter().map(|(wires, _)| wires.len()).sum();
        let mut wires = Zeroizing::new(Vec::with_capacity(parts * dense));
        let mut units = Zeroizing::new(Vec::with_capacity(sifted.iter().map(|(_, units)| units.len()).sum()));
        for (some_wires, some_units) in &sifted {
            wires.extend(some_wires.iter().flat_map(|wire| [*wire, wire | image].into_iter().take(parts)));
            units.extend_from_slice(some_units);
        }
        let bits = if parts == 2 { HALF_BITS } else { BITS };
        let window = match multiples {
            Multiples::Windows { bits: window, .. } => window,
            Multiples::None | Multiples::Image => best_window(wires.len(), bits),
        };
        let mut rows: Vec<_> = (0..windows(bits, window)).map(|_| Zeroizing::new(vec![0i16; wires.len()])).collect();

        // Each task owns a chunk of scalars, so a piece of each window's row. Halves stay together: CHUNK is even.
        let mut pieces: Vec<Vec<&mut [i16]>> = (0..wires.len().div_ceil(CHUNK)).map(|_| Vec::new()).collect();
        for row in &mut rows {
            for (piece, owner) in row.chunks_mut(CHUNK).zip(&mut pieces) {
                owner.push(piece);
            }
        }
        wires.par_chunks(CHUNK).zip(pieces.par_iter_mut()).for_each(|(wires, rows)| {
            for (i, wires) in wires.chunks(parts).enumerate() {
                let (negative, magnitude) = centred(&scalars[wires[0] as usize]);
                let halves = if parts == 2 { decompose(&magnitude.0) } else { [(false, magnitude.0); 2] };
                for (part, (minus, limbs)) in halves.iter().enumerate().take(parts) {
                    recode(limbs, *minus != negative, bits, window, |w, digit| rows[w][parts * i + part] = digit);
                }
            }
        });
        Self { window, rows, wires, units }
    }
}

/// Returns (true, r − s) for s above r/2, else (false, s).
fn centred(s: &BigInteger256) -> (bool, BigInteger256) {
    if *s > Fr::MODULUS_MINUS_ONE_DIV_TWO {
        let mut m = Fr::MODULUS;
        m.sub_with_borrow(s);
        (true, m)
    } else {
        (false, *s)
    }
}

/// A short basis of the lattice of pairs (a, b) with a + b·λ = 0 mod r: (A₁, −B₁) and (B₁, B₂), whose determinant is r.
const A1: u128 = 147_946_756_881_789_319_000_765_030_803_803_410_728;
const B1: u128 = 9_931_322_734_385_697_763;
const B2: u128 = 147_946_756_881_789_319_010_696_353_538_189_108_491;
/// 2^256·B₂/r and 2^256·B₁/r, rounded to the nearest integer.
const B2_BY_R: [u64; 3] = [0x5398_fd03_00ff_6565, 0x4cce_f014_a773_d2d2, 2];
const B1_BY_R: [u64; 3] = [0xd91d_232e_c7e0_b3d7, 2, 0];

/// Returns k₁ and k₂ with k₁ + λ·k₂ = k mod r, each as whether it is negative and its magnitude, for k of at most r/2.
///
/// They are (k, 0) less a nearby combination of the basis (Babai's rounding). The quotients c₁ = k·B₂/r and c₂ = k·B₁/r
/// are off by 1/2 for rounding to integers and by less than 2^253/2^257 = 1/16 for the constants, so that the remainder
/// is below (A₁ + B₁)·9/16 and (B₁ + B₂)·9/16, both below 2^126; 128 bits of it are computed.
fn decompose(k: &[u64; 4]) -> [(bool, [u64; 4]); 2] {
    let (c1, c2) = (rounded_high(k, &B2_BY_R), rounded_high(k, &B1_BY_R));
    let low = u128::from(k[0]) | u128::from(k[1]) << 64;
    let k1 = low.wrapping_sub(c1.wrapping_mul(A1)).wrapping_sub(c2.wrapping_mul(B1));
    let k2 = c1.wrapping_mul(B1).wrapping_sub(c2.wrapping_mul(B2));
    [k1, k2].map(|half| {
        let half = half.cast_signed();
        let magnitude = half.unsigned_abs();
        (half < 0, [magnitude as u64, (magnitude >> 64) as u64, 0, 0])
    })
}

/// Returns a·b/2^256 rounded to the nearest integer, which must be below 2^128.
fn rounded_high(a: &[u64; 4], b: &[u64; 3]) -> u128 {
    let mut product = [0u64; 7];
    // One half, to round.
    product[3] = 1 << 63;
    for (i, a) in a.iter().enumerate() {
        let mut carry = 0;
        for (to, b) in product[i..].iter_mut().zip(b.iter().chain(&[0; 3])) {
            let sum = u128::from(*a) * u128::from(*b) + u128::from(*to) + carry;
            (*to, carry) = (sum as u64, sum >> 64);
        }
    }
    debug_assert_eq!(product[6], 0);
    u128::from(product[4]) | u128::from(product[5]) << 64
}

/// Calls `put(window, digit)` for each nonzero digit of a magnitude of `bits_in_all` bits, or of its negative.
fn recode(limbs: &[u64; 4], negative: bool, bits_in_all: usize, window: usize, mut put: impl FnMut(usize, i16)) {
    let mask = (1u64 << window) - 1;
    let half = 1i32 << (window - 1);
    // Of half a window's range and its negative, only the latter fits in 16 bits.
    let max_digit = if negative { half } else { half - 1 };
    let mut carry = 0i32;
    for (w, bit) in (0..=bits_in_all).step_by(window).enumerate() {
        let (limb, shift) = (bit / 64, bit % 64);
        let mut bits = limbs[limb] >> shift;
        if shift + window > 64 && limb < 3 {
            bits |= limbs[limb + 1] << (64 - shift);
        }
        let mut digit = (bits & mask) as i32 + carry;
        carry = i32::from(digit > max_digit);
        digit -= carry << window;
        if digit != 0 {
            let digit = if negative { -digit } else { digit };
            put(w, digit as i16);
        }
    }
    debug_assert_eq!(carry, 0, "the last digit carries nothing");
}

/// Returns the window with the fewest field products for `n` scalars of `bits` bits: an addition takes 6
/// (batch-affine), and each of the 2^(c−1) buckets of a window takes part in two additions, at twice the price, as
/// measured: more of their rounds are small, and they are sorted and copied.
fn best_window(n: usize, bits: usize) -> usize {
    let cost = |c: usize| windows(bits, c) * (6 * n + 24 * (1 << (c - 1)));
    (3..=MAX_WINDOW).min_by_key(|c| cost(*c)).unwrap_or(MAX_WINDOW)
}

/// Returns the best window where all windows share their buckets, of at least `min_window` bits: the widest of those
/// whose cost is within a fiftieth of the lowest, since wide windows take fewer multiples.
pub(super) fn best_shared_window(n: usize, min_window: usize) -> usize {
    let cost = |c: usize| windows(BITS, c) * 6 * n + 24 * (1 << (c - 1));
    let candidates = min_window.clamp(3, MAX_WINDOW)..=MAX_WINDOW;
    let best = candidates.clone().map(cost).min().unwrap_or(0);
    candidates.rev().find(|c| cost(*c) <= best + best / 50).unwrap_or(MAX_WINDOW)
}

#[cfg(test)]
mod tests {
    use super::*;
    use ark_ff::{AdditiveGroup, Field, One, Zero};
    use proptest::prelude::*;

    /// A cube root of one: the endomorphism of G1 multiplies by it.
    fn lambda() -> Fr {
        <ark_bn254::g1::Config as ark_ec::scalar_mul::glv::GLVConfig>::LAMBDA
    }

    fn check(values: &[Fr]) {
        check_with(values, Multiples::at_load(values.len()));
        check_with(values, Multiples::None);
        for bits in [3, 4, 10, 15, MAX_WINDOW] {
            check_with(values, Multiples::windows(bits, values.len()).expect("few"));
        }
    }

    fn check_with(values: &[Fr], multiples: Multiples) {
        let scalars: Vec<_> = values.iter().map(|v| v.into_bigint()).collect();
        let d = Digits::new(&scalars, multiples);
        let base = Fr::from(2u64).pow([d.window as u64]);
        let digit = |v: i16| if v < 0 { -Fr::from(v.unsigned_abs()) } else { Fr::from(v as u16) };
        let parts = if multiples == Multiples::Image { 2 } else { 1 };
        let image = 1 << multiples.wire_bits();
        let mut got = vec![Fr::ZERO; values.len()];
        for unit in d.units.iter() {
            got[(unit & !MINUS) as usize] += if unit & MINUS == 0 { Fr::ONE } else { -Fr::ONE };
        }
        for (i, wire) in d.wires.iter().enumerate() {
            let value = d.rows.iter().rev().fold(Fr::ZERO, |acc, row| acc * base + digit(row[i]));
            let is_image = parts == 2 && wire & image != 0;
            got[if is_image { wire & !image } else { *wire } as usize] +=
                if is_image { lambda() * value } else { value };
        }
        assert_eq!(got, values, "with windows of {}", d.window);
        if let Multiples::Windows { bits, .. } = multiples {
            assert_eq!((d.window, d.rows.len()), (bits, multiples.per_point()));
        }
        let plain = values.iter().filter(|v| v.is_zero() || v.is_one() || (-**v).is_one()).count();
        assert_eq!(d.wires.len(), parts * (values.len() - plain), "only scalars that need digits have any");
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
        for n in [100, MAX_HALVED, MAX_HALVED + 1, 70_000] {
            let many: Vec<_> = values.iter().copied().cycle().take(n).collect();
            check(&many);
        }
    }

    #[test]
    fn no_window_ends_where_a_scalar_may() {
        for (bits, window) in [BITS, HALF_BITS].into_iter().flat_map(|bits| (3..=MAX_WINDOW).map(move |c| (bits, c))) {
            assert!(windows(bits, window) * window >= bits + 2, "{bits} bits in windows of {window}");
        }
    }

    #[test]
    fn half_a_window_is_minus_that_and_a_carry() {
        let half = [1 << 15, 0, 0, 0];
        for (negative, expected) in [(false, vec![(0, i16::MIN), (1, 1)]), (true, vec![(0, i16::MIN)])] {
            let mut digits = vec![];
            recode(&half, negative, BITS, 16, |window, digit| digits.push((window, digit)));
            assert_eq!(digits, expected, "negative: {negative}");
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
    fn the_basis_is_one_of_relations_with_lambda() {
        let [a1, b1, b2] = [A1, B1, B2].map(Fr::from);
        assert_eq!(a1 - b1 * lambda(), Fr::ZERO);
        assert_eq!(b1 + b2 * lambda(), Fr::ZERO);
        let integer = |limbs: &[u64]| -> num_bigint::BigUint {
            limbs.iter().rev().fold(0u8.into(), |acc: num_bigint::BigUint, limb| (acc << 64) + *limb)
        };
        let [a1, b1, b2] = [A1, B1, B2].map(num_bigint::BigUint::from);
        let r = integer(&Fr::MODULUS.0);
        assert_eq!(a1 * &b2 + &b1 * &b1, r, "the determinant");
        // Rounded to the nearest integer: (2^257·b + r) / 2r.
        for (quotient, b) in [(B2_BY_R, b2), (B1_BY_R, b1)] {
            assert_eq!(integer(&quotient), ((b << 257u32) + &r) / (&r << 1u32));
        }
    }

    fn check_halves(k: &BigInteger256) {
        let value = |(minus, limbs): (bool, [u64; 4])| {
            assert!(limbs[1] >> (HALF_BITS - 64) == 0 && limbs[2..] == [0; 2], "the halves of {k}: {limbs:x?}");
            let magnitude = Fr::from_bigint(BigInteger256::new(limbs)).expect("short");
            if minus { -magnitude } else { magnitude }
        };
        let [k1, k2] = decompose(&k.0).map(value);
        assert_eq!(k1 + lambda() * k2, Fr::from_bigint(*k).expect("below r"), "the halves of {k}");
    }

    #[test]
    fn what_is_short_already_is_its_own_half() {
        for k in 0..125 {
            let short = BigInteger256::from(1u64) << k;
            assert_eq!(decompose(&short.0), [(false, short.0), (false, [0; 4])]);
            check_halves(&short);
        }
        check_halves(&BigInteger256::zero());
        check_halves(&Fr::MODULUS_MINUS_ONE_DIV_TWO);
    }

    proptest! {
        /// Also where the quotients lie halfway between two integers: (i + 1/2)·r/B₂ and the like.
        #[test]
        fn halves_are_short_and_make_up_the_scalar(limbs: [u64; 4], i in 0..B2 / 2, j in 0..B1 / 2, off in -2i32..3) {
            let any = Fr::from_le_bytes_mod_order(&limbs.iter().flat_map(|l| l.to_le_bytes()).collect::<Vec<_>>());
            check_halves(&centred(&any.into_bigint()).1);
            let r: num_bigint::BigUint = Fr::MODULUS.into();
            for (whole, b) in [(i, B2), (j, B1)] {
                let between = (num_bigint::BigUint::from(whole) * 2u8 + 1u8) * &r / (num_bigint::BigUint::from(b) * 2u8);
                let near = Fr::from(between) + Fr::from(off);
                check_halves(&centred(&near.into_bigint()).1);
            }
        }
    }

    #[test]
    fn windows_grow_with_the_number_of_scalars() {
        assert!(best_window(10, BITS) < best_window(10_000, BITS));
        assert!(best_window(10_000, BITS) < best_window(1 << 24, BITS));
        assert_eq!(best_window(1 << 24, BITS), MAX_WINDOW);
        assert!(best_window(10, HALF_BITS) < best_window(2 * MAX_HALVED, HALF_BITS));
        assert!(best_shared_window(10, 3) < best_shared_window(10_000, 3));
        assert!(best_shared_window(10_000, 3) > best_window(10_000, BITS), "buckets are summed once");
        assert_eq!(
            [best_shared_window(10, 11), best_shared_window(0, 99), best_shared_window(1 << 24, 0)],
            [11, 16, 16]
        );
    }

    #[test]
    fn multiples_fit_an_index() {
        let fits = |bits, wires| Multiples::windows(bits, wires).is_some();
        assert!(fits(15, 1 << 25) && !fits(15, (1 << 25) + 1), "17 windows take five bits");
        assert!(fits(16, 1 << 26) && !fits(16, (1 << 26) + 1), "16 take four");
        assert!(fits(3, 1 << 23) && !fits(3, (1 << 23) + 1), "85 take seven");
        assert!(fits(8, 0) && fits(8, 1) && !fits(17, 1));
        assert_eq!(Multiples::windows(15, 1000), Some(Multiples::Windows { bits: 15, wire: 10 }));
        assert_eq!(Multiples::windows(15, 1025), Some(Multiples::Windows { bits: 15, wire: 11 }));
    }
}
