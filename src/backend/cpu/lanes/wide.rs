//! An instruction set for tests: any number of lanes, one after another on the portable arithmetic.
//!
//! It runs the code above the traits with any number of lanes on any machine.

use ark_ff::{BigInteger256, Fp, MontBackend, MontConfig, PrimeField};
use zeroize::Zeroize;

use super::portable::{One, Portable};
use super::{Field, Isa, Kernel, Lanes, Pair, separate_reductions};

/// `N` lanes, a power of two of at most 16.
#[derive(Clone, Copy, Debug)]
pub(in crate::backend::cpu) struct Wide<const N: usize>;

impl<const N: usize> Isa for Wide<N> {
    const NAME: &'static str = "wide";
    const LANES: usize = N;
    type Fq = Row<ark_bn254::FqConfig, N>;
    type Fr = Row<ark_bn254::FrConfig, N>;

    fn enter<K: Kernel<Self>>(self, kernel: K) -> K::Out {
        kernel.run(self)
    }
}

/// A vector of elements.
pub(in crate::backend::cpu) struct Row<C: MontConfig<4>, const N: usize>([One<C>; N]);

impl<C: MontConfig<4>, const N: usize> Clone for Row<C, N> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<C: MontConfig<4>, const N: usize> Copy for Row<C, N> {}

impl<C: MontConfig<4>, const N: usize> Zeroize for Row<C, N> {
    fn zeroize(&mut self) {
        self.0.zeroize();
    }
}

fn each<C: MontConfig<4>, const N: usize>(f: impl Fn(usize) -> One<C>) -> Row<C, N> {
    Row(std::array::from_fn(f))
}

impl<C: MontConfig<4>, const N: usize> Field for Row<C, N>
where
    Fp<MontBackend<C, 4>, 4>: PrimeField<BigInt = BigInteger256>,
{
    type Loose = Self;
    separate_reductions!(Field);

    fn add(self, other: Self) -> Self {
        each(|k| self.0[k].add(other.0[k]))
    }
    fn sub(self, other: Self) -> Self {
        each(|k| self.0[k].sub(other.0[k]))
    }
    fn sum(self, other: Self) -> Self {
        self.add(other)
    }
    fn diff(self, other: Self) -> Self {
        self.sub(other)
    }
    fn mul(a: impl Into<Self>, b: Self) -> Self {
        let a = a.into();
        each(|k| One::mul(a.0[k], b.0[k]))
    }
    fn square(self) -> Self {
        each(|k| self.0[k].square())
    }
    fn negate_where(self, mask: u32) -> Self {
        each(|k| self.0[k].negate_where(mask >> k & 1))
    }
    fn select(self, other: Self, mask: u32) -> Self {
        each(|k| self.0[k].select(other.0[k], mask >> k & 1))
    }
    fn zeros(self) -> u32 {
        (0..N).fold(0, |mask, k| mask | self.0[k].zeros() << k)
    }
    fn invert(self) -> Self {
        each(|k| self.0[k].invert())
    }
}

impl<C: MontConfig<4>, const N: usize> Lanes for Row<C, N>
where
    One<C>: Lanes<Isa = Portable, Element = Fp<MontBackend<C, 4>, 4>>,
    Fp<MontBackend<C, 4>, 4>: PrimeField<BigInt = BigInteger256>,
{
    type Isa = Wide<N>;
    type Element = Fp<MontBackend<C, 4>, 4>;
    const RADIX: u32 = 256;
    separate_reductions!(Lanes);

    fn product(a: Self, b: Self) -> Self {
        Self::mul(a, b)
    }

    fn splat(_: Wide<N>, x: Self::Element) -> Self {
        each(|_| One::splat(Portable, x))
    }
    fn encode(_: Wide<N>, elements: &[Self::Element]) -> Self {
        assert_eq!(elements.len(), N);
        each(|k| One::splat(Portable, elements[k]))
    }
    fn decode(self, elements: &mut [Self::Element]) {
        assert_eq!(elements.len(), N);
        elements.chunks_exact_mut(1).zip(self.0).for_each(|(to, one)| one.decode(to));
    }
    fn gather(_: Wide<N>, from: &[Pair], at: &[u32]) -> [Self; 2] {
        assert_eq!(at.len(), N);
        let pairs: [[One<C>; 2]; N] = std::array::from_fn(|k| One::gather(Portable, from, &at[k..=k]));
        [0, 1].map(|half| each(|k| pairs[k][half]))
    }
    fn store(values: [Self; 2], to: &mut [Pair]) {
        assert_eq!(to.len(), N);
        (0..N).for_each(|k| One::store(values.map(|v| v.0[k]), &mut to[k..=k]));
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn several_lanes() {
        super::super::suite::conforms(super::Wide::<2>);
        super::super::suite::conforms(super::Wide::<8>);
    }
}
