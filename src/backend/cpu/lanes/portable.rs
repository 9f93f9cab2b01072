//! For any CPU: one element at a time, in limbs of 64 bits.
//!
//! In arkworks' Montgomery form, but not fully reduced: a value is any representative below 2p, so that a product needs
//! no final subtraction (C. D. Walter, *Montgomery exponentiation needs no final subtractions*, 1999). Corrections
//! after sums are branch-free, because whether they are needed cannot be predicted.
//!
//! Arrays are destructured rather than mapped: now and then the compiler makes a separate function of the closure, or
//! of `map`, which made whole proofs a quarter slower.

use ark_ff::{BigInteger256, Fp, MontBackend, MontConfig, PrimeField};
use zeroize::Zeroize;

use super::inverse::inverse_of_integer;
use super::{Field, Isa, Kernel, Lanes, Pair, separate_reductions};
use crate::model::{Fq, Fr};

/// No instructions but those that every CPU has.
#[derive(Clone, Copy, Debug)]
pub(in crate::backend::cpu) struct Portable;

impl Isa for Portable {
    const NAME: &'static str = "portable";
    const LANES: usize = 1;
    type Fq = One<ark_bn254::FqConfig>;
    type Fr = One<ark_bn254::FrConfig>;

    #[inline]
    fn enter<K: Kernel<Self>>(self, kernel: K) -> K::Out {
        kernel.run(self)
    }
}

/// Limbs, least significant first.
type Limbs = [u64; 4];

/// One element: x·2^256 mod p, as either of its two representatives below 2p.
pub(in crate::backend::cpu) struct One<C: MontConfig<4>>(Limbs, std::marker::PhantomData<C>);

impl<C: MontConfig<4>> Clone for One<C> {
    #[inline(always)]
    fn clone(&self) -> Self {
        *self
    }
}

impl<C: MontConfig<4>> Copy for One<C> {}

impl<C: MontConfig<4>> Zeroize for One<C> {
    fn zeroize(&mut self) {
        self.0.zeroize();
    }
}

impl<C: MontConfig<4>> One<C> {
    const P: Limbs = C::MODULUS.0;
    const TWICE_P: Limbs = {
        // Sums of two values fit, and so do the intermediate values of a product, which are less than 3p. Two
        // subtractions of 2p are enough for any 256 bits.
        let highest = C::MODULUS.0[3];
        assert!(highest >> 62 == 0 && highest > u64::MAX / 6, "4p < 2^256 < 6p");
        let p = C::MODULUS.0;
        [p[0] << 1, p[1] << 1 | p[0] >> 63, p[2] << 1 | p[1] >> 63, p[3] << 1 | p[2] >> 63]
    };

    #[inline(always)]
    fn new(limbs: Limbs) -> Self {
        Self(limbs, std::marker::PhantomData)
    }

    /// Makes an element of any representative below 2^256.
    #[inline(always)]
    fn reduced(mut limbs: Limbs) -> Self {
        // Elements packed by this module are below 2p, so the branch is hardly ever taken.
        if limbs[3] >= Self::TWICE_P[3] {
            limbs = less_once(less_once(limbs, &Self::TWICE_P), &Self::TWICE_P);
        }
        Self::new(limbs)
    }

    /// Returns the representative below p.
    #[inline(always)]
    fn canonical(self) -> Limbs {
        less_once(self.0, &Self::P)
    }
}

/// a·b + c + d, as its low and high limb
#[inline(always)]
fn multiply_add(a: u64, b: u64, c: u64, d: u64) -> (u64, u64) {
    let sum = u128::from(a) * u128::from(b) + u128::from(c) + u128::from(d);
    (sum as u64, (sum >> 64) as u64)
}

/// a − b mod 2^256, and all ones if it is negative
#[inline(always)]
fn subtract(a: Limbs, b: &Limbs) -> (Limbs, u64) {
    let (mut out, mut borrow) = ([0; 4], false);
    for (out, (a, b)) in out.iter_mut().zip(a.iter().zip(b)) {
        (*out, borrow) = a.borrowing_sub(*b, borrow);
    }
    (out, u64::from(borrow).wrapping_neg())
}

/// a + b mod 2^256
#[inline(always)]
fn sum(a: Limbs, b: Limbs) -> Limbs {
    let (mut out, mut carry) = ([0; 4], false);
    for (out, (a, b)) in out.iter_mut().zip(a.iter().zip(b)) {
        (*out, carry) = a.carrying_add(b, carry);
    }
    out
}

/// b where the mask has ones, else a
#[inline(always)]
fn choose(mut a: Limbs, b: Limbs, mask: u64) -> Limbs {
    for (a, b) in a.iter_mut().zip(b) {
        *a ^= (*a ^ b) & mask;
    }
    a
}

/// a where the mask has ones, else zero
#[inline(always)]
fn masked(a: Limbs, mask: u64) -> Limbs {
    choose([0; 4], a, mask)
}

/// a − m, or a if that is negative
#[inline(always)]
fn less_once(a: Limbs, m: &Limbs) -> Limbs {
    let (less, negative) = subtract(a, m);
    choose(less, a, negative)
}

/// a·b / 2^256 mod p, less than a·b/2^256 + p: below 2p for factors below 2p. Row by row, reduced as it grows (CIOS in
/// Ç. K. Koç, T. Acar and B. S. Kaliski, *Analyzing and comparing Montgomery multiplication algorithms*, 1996).
///
/// In debug builds a separate function, to save compile time.
#[cfg_attr(debug_assertions, inline(never))]
#[cfg_attr(not(debug_assertions), inline(always))]
fn product<C: MontConfig<4>>(a: Limbs, b: Limbs) -> Limbs {
    let mut t: Limbs = [0; 4];
    for b in b {
        let mut carry = 0;
        for (t, a) in t.iter_mut().zip(a) {
            (*t, carry) = multiply_add(a, b, *t, carry);
        }
        let m = t[0].wrapping_mul(C::INV);
        let (_, mut high) = multiply_add(m, C::MODULUS.0[0], t[0], 0);
        for i in 1..4 {
            (t[i - 1], high) = multiply_add(m, C::MODULUS.0[i], t[i], high);
        }
        // t < a + p after each row, so there is no carry out.
        t[3] = carry + high;
    }
    t
}

/// a·b
#[inline(always)]
fn wide(a: Limbs, b: Limbs) -> [u64; 8] {
    let mut t = [0; 8];
    for (i, b) in b.into_iter().enumerate() {
        let mut carry = 0;
        for (t, a) in t[i..].iter_mut().zip(a) {
            (*t, carry) = multiply_add(a, b, *t, carry);
        }
        t[i + 4] = carry;
    }
    t
}

/// t / 2^256 mod p, less than t/2^256 + p: below 2p for t below p·2^256
#[inline(always)]
fn reduce<C: MontConfig<4>>(mut t: [u64; 8]) -> Limbs {
    // The carry of the previous rows out of the limb that the next row ends at.
    let mut over = 0;
    for i in 0..4 {
        let m = t[i].wrapping_mul(C::INV);
        let mut carry = 0;
        for (t, p) in t[i..].iter_mut().zip(C::MODULUS.0) {
            (*t, carry) = multiply_add(m, p, *t, carry);
        }
        let (sum, carried) = t[i + 4].carrying_add(carry, over != 0);
        (t[i + 4], over) = (sum, u64::from(carried));
    }
    debug_assert_eq!(over, 0);
    [t[4], t[5], t[6], t[7]]
}

/// a − b mod 2^512, and all ones if it is negative
#[inline(always)]
fn subtract_wide(a: [u64; 8], b: &[u64; 8]) -> ([u64; 8], u64) {
    let (mut out, mut borrow) = ([0; 8], false);
    for (out, (a, b)) in out.iter_mut().zip(a.iter().zip(b)) {
        (*out, borrow) = a.borrowing_sub(*b, borrow);
    }
    (out, u64::from(borrow).wrapping_neg())
}

/// (a₀ + a₁·i)·(b₀ + b₁·i) by Karatsuba's three products, reducing two sums of them rather than each product (lazy
/// reduction; D. F. Aranha et al., *Faster explicit formulas for computing pairings over ordinary curves*, 2011).
///
/// In debug builds a separate function, like [`product`].
#[cfg_attr(debug_assertions, inline(never))]
#[cfg_attr(not(debug_assertions), inline(always))]
fn complex_product<C: MontConfig<4>>(a: [Limbs; 2], b: [Limbs; 2]) -> [Limbs; 2] {
    let p = C::MODULUS.0;
    let (low, high) = (wide(a[0], b[0]), wide(a[1], b[1]));
    // The factors are below 4p < 2^256.
    let cross = wide(sum(a[0], a[1]), sum(b[0], b[1]));
    // Between −4p² and 4p², and 4p² < p·2^256.
    let (mut real, negative) = subtract_wide(low, &high);
    let top = sum([real[4], real[5], real[6], real[7]], masked(p, negative));
    real[4..].copy_from_slice(&top);
    // a₀b₁ + a₁b₀ < 8p² < 2p·2^256.
    let mut imaginary = subtract_wide(subtract_wide(cross, &low).0, &high).0;
    let top = less_once([imaginary[4], imaginary[5], imaginary[6], imaginary[7]], &p);
    imaginary[4..].copy_from_slice(&top);
    [reduce::<C>(real), reduce::<C>(imaginary)]
}

impl<C: MontConfig<4>> Field for One<C>
where
    Fp<MontBackend<C, 4>, 4>: PrimeField<BigInt = BigInteger256>,
{
    type Loose = Self;
    separate_reductions!(Field);

    #[inline(always)]
    fn add(self, other: Self) -> Self {
        Self::new(less_once(sum(self.0, other.0), &Self::TWICE_P))
    }
    #[inline(always)]
    fn sub(self, other: Self) -> Self {
        let (difference, negative) = subtract(self.0, &other.0);
        Self::new(sum(difference, masked(Self::TWICE_P, negative)))
    }
    #[inline(always)]
    fn sum(self, other: Self) -> Self {
        self.add(other)
    }
    #[inline(always)]
    fn diff(self, other: Self) -> Self {
        self.sub(other)
    }
    #[inline(always)]
    fn mul(a: impl Into<Self>, b: Self) -> Self {
        Self::new(product::<C>(a.into().0, b.0))
    }
    #[inline(always)]
    fn square(self) -> Self {
        Self::new(product::<C>(self.0, self.0))
    }
    #[inline(always)]
    fn negate_where(self, mask: u32) -> Self {
        let minus = Self::new([0; 4]).sub(self);
        self.select(minus, mask)
    }
    #[inline(always)]
    fn select(self, other: Self, mask: u32) -> Self {
        Self::new(choose(self.0, other.0, u64::from(mask & 1).wrapping_neg()))
    }
    #[inline(always)]
    fn zeros(self) -> u32 {
        u32::from(self.0 == [0; 4] || self.0 == Self::P)
    }
    fn invert(self) -> Self {
        // 1/(x·2^256); each of the two products adds a factor of 2^256.
        let r2 = Self::new(C::R2.0);
        Self::mul(Self::mul(Self::new(inverse_of_integer(self.0, Self::P)), r2), r2)
    }
}

macro_rules! lanes {
    ($config:ty, $element:ty) => {
        impl Lanes for One<$config> {
            type Isa = Portable;
            type Element = $element;
            const RADIX: u32 = 256;
            separate_reductions!(Lanes except products);

            #[inline(always)]
            fn product(a: Self, b: Self) -> Self {
                Self::mul(a, b)
            }
            #[inline(always)]
            fn complex_mul(a: [Self; 2], b: [Self; 2]) -> [Self; 2] {
                let [real, imaginary] = complex_product::<$config>([a[0].0, a[1].0], [b[0].0, b[1].0]);
                [Self::new(real), Self::new(imaginary)]
            }
            #[inline(always)]
            fn splat(_: Portable, x: $element) -> Self {
                Self::new(x.0.0)
            }
            #[inline(always)]
            fn encode(_: Portable, elements: &[$element]) -> Self {
                assert_eq!(elements.len(), 1);
                Self::new(elements[0].0.0)
            }
            #[inline(always)]
            fn decode(self, elements: &mut [$element]) {
                assert_eq!(elements.len(), 1);
                elements[0] = Fp::new_unchecked(BigInteger256::new(self.canonical()));
            }
            #[inline(always)]
            fn gather(_: Portable, from: &[Pair], at: &[u32]) -> [Self; 2] {
                assert_eq!(at.len(), 1);
                let [x, y] = from[at[0] as usize].0;
                [Self::reduced(x), Self::reduced(y)]
            }
            #[inline(always)]
            fn store(values: [Self; 2], to: &mut [Pair]) {
                assert_eq!(to.len(), 1);
                let [x, y] = values;
                to[0] = Pair([x.0, y.0]);
            }
            #[inline(always)]
            fn transpose(_: Portable, square: &mut [Self]) {
                assert_eq!(square.len(), 1);
            }
        }
    };
}

lanes!(ark_bn254::FqConfig, Fq);
lanes!(ark_bn254::FrConfig, Fr);

#[cfg(test)]
mod tests {
    use ark_ff::{AdditiveGroup, Field as _};

    use super::*;

    #[test]
    fn one_element_at_a_time() {
        super::super::suite::conforms(Portable);
    }

    /// Both representatives of values at the bounds, and the reductions of 256-bit values.
    fn borders<C: MontConfig<4>>()
    where
        Fp<MontBackend<C, 4>, 4>: PrimeField<BigInt = BigInteger256>,
        One<C>: Field,
    {
        let p = One::<C>::P;
        let least = [[0; 4], [1, 0, 0, 0], subtract(p, &[1, 0, 0, 0]).0, subtract(p, &[0, 0, 0, 1]).0, C::R.0];
        let all: Vec<One<C>> =
            least.iter().flat_map(|x| [*x, sum(*x, p)]).map(|limbs| One(limbs, std::marker::PhantomData)).collect();
        let value = |x: One<C>| Fp::<MontBackend<C, 4>, 4>::new_unchecked(BigInteger256::new(x.canonical()));
        let same = |got: One<C>, expected: Fp<MontBackend<C, 4>, 4>| {
            assert!(subtract(got.0, &One::<C>::TWICE_P).1 != 0, "{:x?} is not below 2p", got.0);
            assert_eq!(value(got), expected);
            assert_eq!(got.zeros(), u32::from(expected == Fp::ZERO));
        };
        for &a in &all {
            same(a.square(), value(a).square());
            same(a.double(), value(a).double());
            same(a.negate_where(1), -value(a));
            same(a.negate_where(0), value(a));
            same(a.invert(), value(a).inverse().unwrap_or_default());
            for &b in &all {
                same(One::mul(a, b), value(a) * value(b));
                same(a.add(b), value(a) + value(b));
                same(a.sub(b), value(a) - value(b));
                same(a.select(b, 1), value(b));
                same(a.select(b, 0), value(a));
            }
        }
        for &a0 in &all {
            for &a1 in &all {
                for &b0 in &all {
                    for &b1 in &all {
                        let [real, imaginary] = complex_product::<C>([a0.0, a1.0], [b0.0, b1.0]).map(One::<C>::new);
                        same(real, value(a0) * value(b0) - value(a1) * value(b1));
                        same(imaginary, value(a0) * value(b1) + value(a1) * value(b0));
                    }
                }
            }
        }
        let ones = [u64::MAX; 4];
        for limbs in [ones, sum(One::<C>::TWICE_P, One::<C>::TWICE_P), subtract(ones, &p).0, One::<C>::TWICE_P] {
            let bytes: Vec<u8> = limbs.iter().flat_map(|limb| limb.to_le_bytes()).collect();
            let plain = Fp::<MontBackend<C, 4>, 4>::from_le_bytes_mod_order(&bytes);
            // As if the limbs were 2^256 times the value.
            let two = Fp::<MontBackend<C, 4>, 4>::from(2u64);
            same(One::reduced(limbs), plain * two.pow([256]).inverse().unwrap_or_default());
        }
    }

    #[test]
    fn representatives_at_the_borders() {
        borders::<ark_bn254::FqConfig>();
        borders::<ark_bn254::FrConfig>();
    }
}
