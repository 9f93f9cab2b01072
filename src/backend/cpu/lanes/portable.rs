//! Any processor: one element at a time, on arkworks' arithmetic.

use ark_ff::{AdditiveGroup, BigInteger, BigInteger256, Field as _, Fp, MontBackend, MontConfig, PrimeField};
use zeroize::Zeroize;

use super::inverse::inverse;
use super::{Field, Isa, Kernel, Lanes, Pair, separate_reductions};
use crate::model::{Fq, Fr};

/// No instructions but those that every processor has.
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

/// One element of arkworks, in its Montgomery form.
pub(in crate::backend::cpu) struct One<C: MontConfig<4>>(Fp<MontBackend<C, 4>, 4>);

impl<C: MontConfig<4>> Clone for One<C> {
    #[inline(always)]
    fn clone(&self) -> Self {
        *self
    }
}

impl<C: MontConfig<4>> Copy for One<C> {}

/// a·b; in debug builds a function of its own, for the sake of the time that the compiler takes.
#[cfg_attr(debug_assertions, inline(never))]
#[cfg_attr(not(debug_assertions), inline(always))]
fn product<C: MontConfig<4>>(a: Fp<MontBackend<C, 4>, 4>, b: Fp<MontBackend<C, 4>, 4>) -> Fp<MontBackend<C, 4>, 4> {
    a * b
}

/// a²; as [`product`].
#[cfg_attr(debug_assertions, inline(never))]
#[cfg_attr(not(debug_assertions), inline(always))]
fn square<C: MontConfig<4>>(a: Fp<MontBackend<C, 4>, 4>) -> Fp<MontBackend<C, 4>, 4> {
    a.square()
}

impl<C: MontConfig<4>> Zeroize for One<C> {
    fn zeroize(&mut self) {
        self.0.zeroize();
    }
}

impl<C: MontConfig<4>> Field for One<C>
where
    Fp<MontBackend<C, 4>, 4>: PrimeField<BigInt = BigInteger256>,
{
    type Loose = Self;
    separate_reductions!(Field);

    #[inline(always)]
    fn add(self, other: Self) -> Self {
        Self(self.0 + other.0)
    }
    #[inline(always)]
    fn sub(self, other: Self) -> Self {
        Self(self.0 - other.0)
    }
    #[inline(always)]
    fn double(self) -> Self {
        Self(self.0.double())
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
        Self(product(a.into().0, b.0))
    }
    #[inline(always)]
    fn square(self) -> Self {
        Self(square(self.0))
    }
    #[inline(always)]
    fn negate_where(self, mask: u32) -> Self {
        if mask == 0 { self } else { Self(-self.0) }
    }
    #[inline(always)]
    fn select(self, other: Self, mask: u32) -> Self {
        if mask == 0 { self } else { other }
    }
    #[inline(always)]
    fn zeros(self) -> u32 {
        u32::from(self.0 == Fp::ZERO)
    }
    fn invert(self) -> Self {
        Self(inverse(self.0))
    }
}

macro_rules! lanes {
    ($config:ty, $element:ty) => {
        impl Lanes for One<$config> {
            type Isa = Portable;
            type Element = $element;
            const RADIX: u32 = 256;
            separate_reductions!(Lanes);

            #[inline(always)]
            fn product(a: Self, b: Self) -> Self {
                Self::mul(a, b)
            }
            #[inline(always)]
            fn splat(_: Portable, x: $element) -> Self {
                Self(x)
            }
            #[inline(always)]
            fn encode(_: Portable, elements: &[$element]) -> Self {
                assert_eq!(elements.len(), 1);
                Self(elements[0])
            }
            #[inline(always)]
            fn decode(self, elements: &mut [$element]) {
                assert_eq!(elements.len(), 1);
                elements[0] = self.0;
            }
            #[inline(always)]
            fn gather(_: Portable, from: &[Pair], at: &[u32]) -> [Self; 2] {
                assert_eq!(at.len(), 1);
                from[at[0] as usize].0.map(|limbs| Self(canonical(limbs)))
            }
            #[inline(always)]
            fn store(values: [Self; 2], to: &mut [Pair]) {
                assert_eq!(to.len(), 1);
                to[0] = Pair(values.map(|v| v.0.0.0));
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

/// arkworks computes with representatives below p only. What this module packs is below p already.
#[inline(always)]
fn canonical<C: MontConfig<4>>(limbs: [u64; 4]) -> Fp<MontBackend<C, 4>, 4>
where
    Fp<MontBackend<C, 4>, 4>: PrimeField<BigInt = BigInteger256>,
{
    let mut x = BigInteger256::new(limbs);
    while x >= C::MODULUS {
        x.sub_with_borrow(&C::MODULUS);
    }
    Fp::new_unchecked(x)
}

#[cfg(test)]
mod tests {
    #[test]
    fn one_element_at_a_time() {
        super::super::suite::conforms(super::Portable);
    }
}
