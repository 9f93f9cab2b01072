//! The inverse of one element, several times as fast as arkworks' binary Euclidean algorithm.
//!
//! By division steps ("safegcd"; D. J. Bernstein and B.-Y. Yang, *Fast constant-time gcd computation and modular
//! inversion*, 2019). Here in variable time, like arkworks' algorithm: a run of even g is one shift, and an odd g is
//! made divisible by up to 2⁶ at once. Batches of steps are computed from the low words alone, as in section 10 there.

#[cfg(any(test, target_arch = "x86_64"))]
use ark_ff::{BigInteger256, PrimeField};

/// Bits of a limb, and division steps of a batch.
const BITS: u32 = 62;
const MASK: i64 = (1 << BITS) - 1;

/// Five limbs of 62 bits, least significant first; the highest one holds the sign.
type Limbs = [i64; 5];

/// The matrix of 62 division steps: 2⁶² times the new (f, g) is ((u, v), (q, r)) times the old.
struct Steps {
    u: i64,
    v: i64,
    q: i64,
    r: i64,
}

/// 1/x, and 0 for 0
#[cfg(any(test, target_arch = "x86_64"))]
pub(super) fn inverse<F: PrimeField<BigInt = BigInteger256>>(x: F) -> F {
    let inverse = inverse_of_integer(x.into_bigint().0, F::MODULUS.0);
    F::from_bigint(BigInteger256::new(inverse)).unwrap_or_default()
}

/// 1/x modulo an odd prime p < 2²⁵⁶, below p; 0 for multiples of p. x is any integer below 2²⁵⁶.
pub(super) fn inverse_of_integer(x: [u64; 4], p: [u64; 4]) -> [u64; 4] {
    // 1/p mod 2⁶⁴ by Newton's iteration: p is right to three bits, and each round doubles them.
    let p_low = p[0];
    let mut p_inverse = p_low;
    for _ in 0..5 {
        p_inverse = p_inverse.wrapping_mul(2u64.wrapping_sub(p_low.wrapping_mul(p_inverse)));
    }

    // At the top of the loop f ≡ d·x and g ≡ e·x mod p: `reduce` divides by 2⁶² mod p, `apply` in the integers.
    let p = split(p);
    let (mut f, mut g) = (p, split(x));
    let (mut d, mut e): (Limbs, Limbs) = ([0; 5], [1, 0, 0, 0, 0]);
    // −δ
    let mut eta = -1;
    while g != [0; 5] {
        let steps = divide(&mut eta, f[0] as u64, g[0] as u64);
        (d, e) = reduce(&steps, (&d, &e), &p, p_inverse);
        (f, g) = apply(&steps, (&f, &g));
    }

    // Now f is 1 or −1, unless p divides x; and −2p < d < p.
    if f != [1, 0, 0, 0, 0] && f != [MASK, MASK, MASK, MASK, -1] {
        return [0; 4];
    }
    let d = if d[4] < 0 { plus(&d, &p) } else { d };
    let d = if f[4] < 0 { minus(&d) } else { d };
    let d = if d[4] < 0 { plus(&d, &p) } else { d };
    join(&d)
}

/// Computes a batch of division steps from the low words of f and g. f is odd.
#[inline]
fn divide(eta: &mut i64, mut f: u64, mut g: u64) -> Steps {
    let (mut u, mut v, mut q, mut r) = (1i64, 0i64, 0i64, 1i64);
    let mut left = BITS;
    loop {
        // As many steps as g has trailing zeros halve it: instead of halving q and r, u and v are doubled.
        let zeros = (g | u64::MAX << left).trailing_zeros();
        g >>= zeros;
        (u, v) = (u << zeros, v << zeros);
        *eta -= i64::from(zeros);
        left -= zeros;
        if left == 0 {
            return Steps { u, v, q, r };
        }
        if *eta < 0 {
            *eta = -*eta;
            (f, g) = (g, f.wrapping_neg());
            (u, v, q, r) = (q, r, -u, -v);
        }
        // Until δ is positive again, or the batch ends, each step adds f to g if g is odd: in total a multiple of f
        // that clears as many bits. −1/f ≡ f·(f² − 2) mod 2⁶.
        let bits = (*eta + 1).min(i64::from(left)).min(6);
        let multiple = f.wrapping_mul(g).wrapping_mul(f.wrapping_mul(f).wrapping_sub(2)) & ((1 << bits) - 1);
        g = g.wrapping_add(f.wrapping_mul(multiple));
        q += u * multiple as i64;
        r += v * multiple as i64;
    }
}

/// Returns (f, g) after a batch.
#[inline]
fn apply(s: &Steps, (f, g): (&Limbs, &Limbs)) -> (Limbs, Limbs) {
    let row = |a, b| divided(|i| dot((a, f[i]), (b, g[i])));
    (row(s.u, s.v), row(s.q, s.r))
}

/// Returns (d, e) after a batch, divided by 2⁶² modulo p. Both stay above −2p and below p.
#[inline]
fn reduce(s: &Steps, (d, e): (&Limbs, &Limbs), p: &Limbs, p_inverse: u64) -> (Limbs, Limbs) {
    let row = |a: i64, b: i64| {
        // If d or e is negative, p is added to it, as a multiple of p in the sum; then the multiple below 2⁶² that
        // makes the sum divisible is subtracted.
        let start = (a & d[4] >> 63) + (b & e[4] >> 63);
        let low = dot((a, d[0]), (b, e[0])) as u64;
        let excess = p_inverse.wrapping_mul(low).wrapping_add(start as u64) as i64 & MASK;
        let multiple = start - excess;
        divided(|i| dot((a, d[i]), (b, e[i])) + i128::from(p[i]) * i128::from(multiple))
    };
    (row(s.u, s.v), row(s.q, s.r))
}

/// Σ column(i)·2^(62·i) / 2⁶², for a sum that is divisible by 2⁶²
#[inline(always)]
fn divided(column: impl Fn(usize) -> i128) -> Limbs {
    let mut sum = column(0) >> BITS;
    let mut out = [0; 5];
    for i in 1..5 {
        sum += column(i);
        out[i - 1] = sum as i64 & MASK;
        sum >>= BITS;
    }
    out[4] = sum as i64;
    out
}

#[inline]
fn dot((a, x): (i64, i64), (b, y): (i64, i64)) -> i128 {
    i128::from(a) * i128::from(x) + i128::from(b) * i128::from(y)
}

fn plus(a: &Limbs, b: &Limbs) -> Limbs {
    carried(std::array::from_fn(|i| a[i] + b[i]))
}

fn minus(a: &Limbs) -> Limbs {
    carried(a.map(|limb| -limb))
}

fn carried(mut a: Limbs) -> Limbs {
    for i in 0..4 {
        a[i + 1] += a[i] >> BITS;
        a[i] &= MASK;
    }
    a
}

fn split(x: [u64; 4]) -> Limbs {
    [
        x[0] as i64 & MASK,
        (x[0] >> 62 | x[1] << 2) as i64 & MASK,
        (x[1] >> 60 | x[2] << 4) as i64 & MASK,
        (x[2] >> 58 | x[3] << 6) as i64 & MASK,
        (x[3] >> 56) as i64,
    ]
}

/// For limbs that are not negative.
fn join(x: &Limbs) -> [u64; 4] {
    let x = x.map(|limb| limb as u64);
    [x[0] | x[1] << 62, x[1] >> 2 | x[2] << 60, x[2] >> 4 | x[3] << 58, x[3] >> 6 | x[4] << 56]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Fq, Fr};
    use ark_ff::BigInteger;
    use proptest::prelude::*;

    fn agrees<F: PrimeField<BigInt = BigInteger256>>(x: F) {
        assert_eq!(inverse(x), x.inverse().unwrap_or_default(), "of {x}");
    }

    fn awkward<F: PrimeField<BigInt = BigInteger256>>() {
        agrees(F::ZERO);
        for k in 0..300u64 {
            let power = F::from(2u64).pow([k]);
            for x in [F::from(k), power, power - F::ONE, power + F::ONE, power.pow([k])] {
                agrees(x);
                agrees(-x);
                agrees(inverse(x));
            }
        }
    }

    #[test]
    fn the_greatest_integers() {
        let p = Fr::MODULUS.0;
        let mut x = [u64::MAX; 4];
        for k in 0..1000u64 {
            x[0] = u64::MAX - k;
            let bytes: Vec<u8> = x.iter().flat_map(|limb| limb.to_le_bytes()).collect();
            let residue = Fr::from_le_bytes_mod_order(&bytes).into_bigint().0;
            assert_eq!(inverse_of_integer(x, p), inverse_of_integer(residue, p), "of 2^256 − 1 − {k}");
        }
    }

    /// Integers that are not least representatives.
    #[test]
    fn integers_above_the_prime() {
        let p = Fq::MODULUS;
        let mut x = p;
        for k in 1..5u64 {
            assert_eq!(inverse_of_integer(x.0, p.0), [0; 4], "of {k}p");
            let mut more = x;
            more.add_with_carry(&BigInteger256::from(k));
            assert_eq!(inverse_of_integer(more.0, p.0), inverse_of_integer([k, 0, 0, 0], p.0), "of {k}p + {k}");
            x.add_with_carry(&p);
        }
    }

    #[test]
    fn awkward_elements() {
        awkward::<Fq>();
        awkward::<Fr>();
    }

    proptest! {
        #[test]
        fn any_element(bytes: [u8; 32]) {
            agrees(Fq::from_le_bytes_mod_order(&bytes));
            agrees(Fr::from_le_bytes_mod_order(&bytes));
        }
    }
}
