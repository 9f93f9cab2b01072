//! An instruction set whose every operation is a separate function, compiled for it through [`Isa::enter`].
//!
//! The suite calls operations from ordinary code. Inlined there, each would be hundreds of calls of intrinsics: it
//! would take minutes to compile, and would not be the code that kernels run. So the suite runs on this.

use zeroize::Zeroize;

use super::{Field, Isa, Kernel, Lanes, Pair};

/// The instruction set `I`, by function calls.
#[derive(Clone, Copy)]
pub(in crate::backend::cpu) struct Outlined<I>(pub(in crate::backend::cpu) I);

/// A vector of the instruction set.
#[derive(Clone, Copy)]
pub(in crate::backend::cpu) struct OutlinedVector<L: Lanes>(L::Isa, L);

/// A factor.
#[derive(Clone, Copy)]
pub(in crate::backend::cpu) struct OutlinedLoose<L: Lanes>(L::Isa, L::Loose);

/// A signed vector.
#[derive(Clone, Copy)]
pub(in crate::backend::cpu) struct OutlinedSigned<L: Lanes>(L::Isa, L::Signed);

/// A component of a factor.
#[derive(Clone, Copy)]
pub(in crate::backend::cpu) struct OutlinedComponent<L: Lanes>(L::Isa, L::Component);

struct Call<F>(F);

impl<I: Isa, T, F: FnOnce() -> T> Kernel<I> for Call<F> {
    type Out = T;

    #[inline(always)]
    fn run(self, _: I) -> T {
        (self.0)()
    }
}

impl<I: Isa> Isa for Outlined<I> {
    const NAME: &'static str = I::NAME;
    const LANES: usize = I::LANES;
    type Fq = OutlinedVector<I::Fq>;
    type Fr = OutlinedVector<I::Fr>;

    fn enter<K: Kernel<Self>>(self, kernel: K) -> K::Out {
        kernel.run(self)
    }
}

impl<L: Lanes> From<OutlinedVector<L>> for OutlinedLoose<L> {
    fn from(x: OutlinedVector<L>) -> Self {
        Self(x.0, x.1.into())
    }
}

impl<L: Lanes> From<OutlinedVector<L>> for OutlinedComponent<L> {
    fn from(x: OutlinedVector<L>) -> Self {
        Self(x.0, x.1.into())
    }
}

impl<L: Lanes> Zeroize for OutlinedVector<L> {
    fn zeroize(&mut self) {
        self.1.zeroize();
    }
}

#[inline(never)]
fn mul<L: Lanes>(isa: L::Isa, a: L::Loose, b: L) -> OutlinedVector<L> {
    OutlinedVector(isa, isa.enter(Call(|| L::mul(a, b))))
}

#[inline(never)]
fn mul_sub<L: Lanes>(isa: L::Isa, a: L::Loose, b: L, c: L::Signed) -> OutlinedVector<L> {
    OutlinedVector(isa, isa.enter(Call(|| L::mul_sub(a, b, c))))
}

impl<L: Lanes> Field for OutlinedVector<L> {
    type Loose = OutlinedLoose<L>;
    type Signed = OutlinedSigned<L>;

    #[inline(never)]
    fn add(self, other: Self) -> Self {
        Self(self.0, self.0.enter(Call(|| self.1.add(other.1))))
    }
    #[inline(never)]
    fn sub(self, other: Self) -> Self {
        Self(self.0, self.0.enter(Call(|| self.1.sub(other.1))))
    }
    #[inline(never)]
    fn double(self) -> Self {
        Self(self.0, self.0.enter(Call(|| self.1.double())))
    }
    #[inline(never)]
    fn sum(self, other: Self) -> OutlinedLoose<L> {
        OutlinedLoose(self.0, self.0.enter(Call(|| self.1.sum(other.1))))
    }
    #[inline(never)]
    fn diff(self, other: Self) -> OutlinedLoose<L> {
        OutlinedLoose(self.0, self.0.enter(Call(|| self.1.diff(other.1))))
    }
    #[inline(never)]
    fn signed(self, minus: u32) -> OutlinedSigned<L> {
        OutlinedSigned(self.0, self.0.enter(Call(|| self.1.signed(minus))))
    }
    #[inline(never)]
    fn diff_signed(a: OutlinedSigned<L>, b: OutlinedSigned<L>) -> OutlinedLoose<L> {
        OutlinedLoose(a.0, a.0.enter(Call(|| L::diff_signed(a.1, b.1))))
    }
    fn mul(a: impl Into<OutlinedLoose<L>>, b: Self) -> Self {
        let OutlinedLoose(isa, a) = a.into();
        mul(isa, a, b.1)
    }
    fn mul_sub(a: impl Into<OutlinedLoose<L>>, b: Self, c: OutlinedSigned<L>) -> Self {
        let OutlinedLoose(isa, a) = a.into();
        mul_sub(isa, a, b.1, c.1)
    }
    #[inline(never)]
    fn square_sub(a: Self, b: Self, c: Self) -> Self {
        Self(a.0, a.0.enter(Call(|| L::square_sub(a.1, b.1, c.1))))
    }
    #[inline(never)]
    fn square(self) -> Self {
        Self(self.0, self.0.enter(Call(|| self.1.square())))
    }
    #[inline(never)]
    fn negate_where(self, mask: u32) -> Self {
        Self(self.0, self.0.enter(Call(|| self.1.negate_where(mask))))
    }
    #[inline(never)]
    fn select(self, other: Self, mask: u32) -> Self {
        Self(self.0, self.0.enter(Call(|| self.1.select(other.1, mask))))
    }
    #[inline(never)]
    fn zeros(self) -> u32 {
        self.0.enter(Call(|| self.1.zeros()))
    }
    #[inline(never)]
    fn invert(self) -> Self {
        Self(self.0, self.0.enter(Call(|| self.1.invert())))
    }
}

impl<L: Lanes> Lanes for OutlinedVector<L> {
    type Isa = Outlined<L::Isa>;
    type Element = L::Element;
    type Component = OutlinedComponent<L>;
    const RADIX: u32 = L::RADIX;

    #[inline(never)]
    fn product(a: OutlinedLoose<L>, b: OutlinedLoose<L>) -> Self {
        Self(a.0, a.0.enter(Call(|| L::product(a.1, b.1))))
    }
    #[inline(never)]
    fn component_sum(a: Self, b: Self) -> OutlinedComponent<L> {
        OutlinedComponent(a.0, a.0.enter(Call(|| L::component_sum(a.1, b.1))))
    }
    #[inline(never)]
    fn component_diff(a: OutlinedSigned<L>, b: OutlinedSigned<L>) -> OutlinedComponent<L> {
        OutlinedComponent(a.0, a.0.enter(Call(|| L::component_diff(a.1, b.1))))
    }
    #[inline(never)]
    fn complex_mul(a: [OutlinedComponent<L>; 2], b: [Self; 2]) -> [Self; 2] {
        let isa = a[0].0;
        isa.enter(Call(|| L::complex_mul(a.map(|x| x.1), b.map(|x| x.1)))).map(|x| Self(isa, x))
    }
    #[inline(never)]
    fn complex_mul_sub(a: [OutlinedComponent<L>; 2], b: [Self; 2], c: [OutlinedSigned<L>; 2]) -> [Self; 2] {
        let isa = a[0].0;
        let out = isa.enter(Call(|| L::complex_mul_sub(a.map(|x| x.1), b.map(|x| x.1), c.map(|x| x.1))));
        out.map(|x| Self(isa, x))
    }
    #[inline(never)]
    fn complex_square_sub(a: [Self; 2], b: [Self; 2], c: [Self; 2]) -> [Self; 2] {
        let isa = a[0].0;
        let out = isa.enter(Call(|| L::complex_square_sub(a.map(|x| x.1), b.map(|x| x.1), c.map(|x| x.1))));
        out.map(|x| Self(isa, x))
    }

    #[inline(never)]
    fn splat(Outlined(isa): Self::Isa, x: L::Element) -> Self {
        Self(isa, isa.enter(Call(|| L::splat(isa, x))))
    }
    #[inline(never)]
    fn encode(Outlined(isa): Self::Isa, elements: &[L::Element]) -> Self {
        Self(isa, isa.enter(Call(|| L::encode(isa, elements))))
    }
    #[inline(never)]
    fn decode(self, elements: &mut [L::Element]) {
        self.0.enter(Call(|| self.1.decode(elements)));
    }
    #[inline(never)]
    fn gather(Outlined(isa): Self::Isa, from: &[Pair], at: &[u32]) -> [Self; 2] {
        isa.enter(Call(|| L::gather(isa, from, at))).map(|x| Self(isa, x))
    }
    #[inline(never)]
    fn transpose(Outlined(isa): Self::Isa, square: &mut [Self]) {
        let mut inner: Vec<L> = square.iter().map(|x| x.1).collect();
        isa.enter(Call(|| L::transpose(isa, &mut inner)));
        for (to, x) in square.iter_mut().zip(inner) {
            to.1 = x;
        }
    }
    #[inline(never)]
    fn store(values: [Self; 2], to: &mut [Pair]) {
        let isa = values[0].0;
        isa.enter(Call(|| L::store(values.map(|x| x.1), to)));
    }
}
