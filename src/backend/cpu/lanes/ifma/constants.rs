//! The constants of the field's prime, computed at compile time.

use std::marker::PhantomData;

use ark_ff::MontConfig;

/// Bits of a limb.
pub(super) const BITS: u32 = 52;
/// A limb with all bits set.
pub(super) const MASK: u64 = (1 << BITS) - 1;

/// Five limbs of 52 bits, least significant first; the highest may be longer.
pub(super) type Limbs = [u64; 5];
/// Multiples of the prime, one for each value of three bits. Limb i of multiple k is at `[i][k]`; the limbs of negative
/// multiples are negative, in two's complement.
pub(super) type Table = [[u64; 8]; 5];

/// Multiples of the prime, one for each value of four bits.
pub(super) type LongTable = [[[u64; 8]; 2]; 5];

/// The constants of arkworks' prime `C`, one of 254 bits.
pub(super) struct Constants<C>(PhantomData<C>);

impl<C: MontConfig<4>> Constants<C> {
    /// The prime p.
    pub(super) const P: Limbs = {
        let p = split(C::MODULUS.0);
        // The bounds of the field depend on 5p < 2^256 < 6p.
        assert!(at_most(&times(&p, 5), &[0, 0, 0, 0, 1 << 48]) && at_most(&[0, 0, 0, 0, 1 << 48], &times(&p, 6)));
        p
    };
    /// 6p, more than any representative.
    pub(super) const P6: Limbs = times(&Self::P, 6);
    /// 12p, more than any factor.
    pub(super) const P12: Limbs = times(&Self::P, 12);
    /// −1/p mod 2^52
    pub(super) const DIGIT: u64 = C::INV & MASK;
    /// 2^−52 mod p and 2^−104 mod p.
    pub(super) const SHIFTS: [Limbs; 2] = {
        let one = shifted(&Self::P, -(BITS as i32));
        let two = shifted(&Self::P, -2 * BITS as i32);
        [one, two]
    };
    /// 2^264 mod p: multiplying by it converts arkworks' form x·2^256 to x·2^260.
    pub(super) const FROM_ARK: Limbs = shifted(&Self::P, 264);
    /// 2^780 mod p: multiplying by it converts the inverse of the integer x·2^260 to the form of 1/x.
    pub(super) const OF_INVERSE: Limbs = shifted(&Self::P, 780);
    /// 2^256 mod p: multiplying by it converts x·2^260 to arkworks' form.
    pub(super) const TO_ARK: Limbs = shifted(&Self::P, 256);

    /// For sums x < 2^257, by bits 254 to 256, which may be one unit of the top limb too low: ⌊x/p⌋ or one less, so
    /// that subtracting this multiple leaves less than 2.4p.
    pub(super) const OF_SUM: &Table = &{
        let mut quotients = [0; 8];
        let mut k = 0;
        while k < 8 {
            quotients[k] = quotient(&Self::P, k as u64, 46);
            k += 1;
        }
        table(&Self::P, quotients)
    };
    /// For differences −2^256 < x < 2^256, by bits 254 to 256, which may be one unit of the top limb too high: a
    /// multiple of p whose subtraction leaves 0 to 2.4p.
    pub(super) const OF_DIFFERENCE: &Table = &table(&Self::P, two_sided(&Self::P));
    /// For −2^257 ≤ x < 2^257, by bits 254 to 257, which may be two units of the top limb too high or 40 too low, while
    /// the top limb itself is between −2^49 and 2^49: a multiple of p whose subtraction leaves 0 to 2.4p.
    pub(super) const OF_PRODUCT: &LongTable = &{
        let [q0, q1, q2, q3, q4, q5, q6, q7, q8, q9, q10, q11, q12, q13, q14, q15] = two_sided(&Self::P);
        let low = table(&Self::P, [q0, q1, q2, q3, q4, q5, q6, q7]);
        let high = table(&Self::P, [q8, q9, q10, q11, q12, q13, q14, q15]);
        let mut out = [[[0; 8]; 2]; 5];
        let mut i = 0;
        while i < 5 {
            out[i] = [low[i], high[i]];
            i += 1;
        }
        out
    };
    /// For x < 2^256, by bits 253 to 255: a multiple of p whose subtraction leaves less than 1.7p.
    pub(super) const OF_ELEMENT: &Table = &{
        let mut quotients = [0; 8];
        let mut k = 0;
        while k < 8 {
            quotients[k] = quotient(&Self::P, k as u64, 45);
            k += 1;
        }
        table(&Self::P, quotients)
    };
    /// For x < 2^256, by bits 253 to 255: a multiple of p that is more than x, by p + 2^253 at most.
    pub(super) const ABOVE: &Table = &{
        let mut quotients = [0; 8];
        let mut k = 0;
        while k < 8 {
            quotients[k] = quotient(&Self::P, k as u64 + 1, 45) + 1;
            k += 1;
        }
        table(&Self::P, quotients)
    };
    /// By bits 253 to 255: the multiple of p that has these bits, or 0. No two multiples below 2^256 have them in
    /// common, since p > 2^253.
    pub(super) const ZEROS: &Table = &{
        let mut quotients = [0; 8];
        let mut q = 1;
        while q < 6 {
            quotients[(times(&Self::P, q as u64)[4] >> 45) as usize] = q;
            q += 1;
        }
        table(&Self::P, quotients)
    };
}

/// Converts four limbs of 64 bits to five of 52.
pub(super) const fn split(x: [u64; 4]) -> Limbs {
    [
        x[0] & MASK,
        (x[0] >> 52 | x[1] << 12) & MASK,
        (x[1] >> 40 | x[2] << 24) & MASK,
        (x[2] >> 28 | x[3] << 36) & MASK,
        x[3] >> 16,
    ]
}

/// k·x for a small k
const fn times(x: &Limbs, k: u64) -> Limbs {
    let mut out = [0; 5];
    let mut carry = 0;
    let mut i = 0;
    while i < 5 {
        let limb = x[i] as u128 * k as u128 + carry;
        out[i] = if i < 4 { limb as u64 & MASK } else { limb as u64 };
        carry = limb >> BITS;
        i += 1;
    }
    out
}

/// a ≤ b
const fn at_most(a: &Limbs, b: &Limbs) -> bool {
    let mut i = 5;
    while i > 0 {
        i -= 1;
        if a[i] != b[i] {
            return a[i] < b[i];
        }
    }
    true
}

/// a − b for a ≥ b
const fn minus(a: &Limbs, b: &Limbs) -> Limbs {
    let mut out = [0; 5];
    let mut borrow = 0;
    let mut i = 0;
    while i < 5 {
        let limb = a[i].wrapping_sub(b[i]).wrapping_sub(borrow);
        borrow = limb >> 63;
        out[i] = if i < 4 { limb & MASK } else { limb };
        i += 1;
    }
    out
}

/// 2^exponent mod p
const fn shifted(p: &Limbs, exponent: i32) -> Limbs {
    let mut x = [1, 0, 0, 0, 0];
    let mut i = 0;
    while i < exponent {
        x = times(&x, 2);
        if at_most(p, &x) {
            x = minus(&x, p);
        }
        i += 1;
    }
    while i > exponent {
        // The even one of x and x + p, halved.
        let mut carry = 0;
        let odd = x[0] & 1;
        let mut k = 0;
        while k < 5 {
            carry += x[k] + odd * p[k];
            x[k] = if k < 4 { carry & MASK } else { carry };
            carry >>= BITS;
            k += 1;
        }
        k = 0;
        while k < 5 {
            x[k] = if k < 4 { x[k] >> 1 | (x[k + 1] & 1) << (BITS - 1) } else { x[k] >> 1 };
            k += 1;
        }
        i -= 1;
    }
    x
}

/// ⌊k·2^(208 + bit) / p⌋
const fn quotient(p: &Limbs, k: u64, bit: u32) -> i64 {
    let x = [0, 0, 0, 0, k << bit];
    let mut q = 0;
    while at_most(&times(p, q as u64 + 1), &x) {
        q += 1;
    }
    q
}

/// For k·2^254, with k one of N values in two's complement: ⌊k·2^254 / p⌋, and −1 for k = 0, because a value counted as
/// below 2^254 may be slightly below zero. Elsewhere rounding down leaves a margin: no multiple of 2^254 is one of p.
const fn two_sided<const N: usize>(p: &Limbs) -> [i64; N] {
    let mut quotients = [-1; N];
    let mut k = 1;
    while k <= N / 2 {
        let quotient = quotient(p, k as u64, 46);
        quotients[N - k] = -quotient - 1;
        if k < N / 2 {
            quotients[k] = quotient;
        }
        k += 1;
    }
    quotients
}

const fn table(p: &Limbs, quotients: [i64; 8]) -> Table {
    let mut out = [[0; 8]; 5];
    let mut k = 0;
    while k < 8 {
        let multiple = times(p, quotients[k].unsigned_abs());
        let mut i = 0;
        while i < 5 {
            out[i][k] = if quotients[k] < 0 { multiple[i].wrapping_neg() } else { multiple[i] };
            i += 1;
        }
        k += 1;
    }
    out
}
