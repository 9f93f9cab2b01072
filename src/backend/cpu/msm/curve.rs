//! Points of G1 and G2 in lanes.

use ark_ec::scalar_mul::glv::GLVConfig;
use ark_ec::short_weierstrass::{Affine, SWCurveConfig};
use ark_ff::{AdditiveGroup, Field as _};

use super::super::lanes::{Field, Isa, Lanes, Pair};
use crate::model::{Fq, Fq2, Fr, G1_BYTES, G1Affine, G2_BYTES, G2Affine, g1_raw, g2_raw};

/// Maximum number of lanes of any instruction set.
pub(super) const MAX_LANES: usize = 16;

/// A group of points, as an instruction set represents them.
///
/// In memory a point is a [`Pair`] in each *half*: G1 has one half, (x, y); G2 has two, its x = x₀ + x₁·i in the first
/// and its y in the second.
pub(in crate::backend::cpu) trait Curve<I: Isa>: Send + Sync + 'static {
    /// arkworks' configuration of the curve: y² = x³ + b.
    type Config: SWCurveConfig<ScalarField = Fr>;
    /// A coordinate of [`Isa::LANES`] points.
    type Coordinate: Field;
    /// Bytes of a point in a key's file.
    const BYTES: usize;
    /// Halves of a point, 1 or 2.
    const HALVES: usize;

    /// Reads a point from [`Self::BYTES`] bytes, unchecked.
    fn read(raw: &[u8]) -> Affine<Self::Config>;
    /// Returns λ times the point, by the endomorphism that maps (x, y) to (β·x, y); λ is that of
    /// [`super::super::digits`].
    fn image(point: &Affine<Self::Config>) -> Affine<Self::Config>;
    /// Returns one in every lane.
    fn one(isa: I) -> Self::Coordinate;
    /// Gathers x of the points at the indices `at`.
    fn gather_x(isa: I, from: [&[Pair]; 2], at: &[u32]) -> Self::Coordinate;
    /// Gathers x and y of the points at the indices `at`.
    fn gather(isa: I, from: [&[Pair]; 2], at: &[u32]) -> [Self::Coordinate; 2];
    /// Writes [`Isa::LANES`] points from index `at` on.
    fn store(point: [Self::Coordinate; 2], to: &mut [&mut [Pair]; 2], at: usize);
    /// Converts arkworks' points; the point at infinity becomes (0, 0).
    fn encode(isa: I, points: &[Affine<Self::Config>]) -> [Self::Coordinate; 2];
    /// Converts to arkworks' points, none of them at infinity.
    fn decode(point: [Self::Coordinate; 2], points: &mut [Affine<Self::Config>]);
}

/// Returns a mask with the bit of each lane set.
pub(super) const fn all_lanes<I: Isa>() -> u32 {
    ((1u64 << I::LANES) - 1) as u32
}

#[inline(always)]
fn encode_by<I: Isa, P>(isa: I, points: &[P], coordinate: impl Fn(&P) -> Fq) -> I::Fq {
    let mut elements = [Fq::ZERO; MAX_LANES];
    for (element, point) in elements.iter_mut().zip(points) {
        *element = coordinate(point);
    }
    I::Fq::encode(isa, &elements[..I::LANES])
}

#[inline(always)]
fn decoded<L: Lanes<Element = Fq>>(coordinate: L) -> [Fq; MAX_LANES] {
    let mut elements = [Fq::ZERO; MAX_LANES];
    coordinate.decode(&mut elements[..L::Isa::LANES]);
    elements
}

/// The curve over the prime field.
pub(in crate::backend::cpu) struct InG1;

impl<I: Isa> Curve<I> for InG1 {
    type Config = ark_bn254::g1::Config;
    type Coordinate = I::Fq;
    const BYTES: usize = G1_BYTES;
    const HALVES: usize = 1;

    fn read(raw: &[u8]) -> G1Affine {
        g1_raw(raw)
    }
    fn image(point: &G1Affine) -> G1Affine {
        Self::Config::endomorphism_affine(point)
    }
    #[inline(always)]
    fn one(isa: I) -> I::Fq {
        I::Fq::splat(isa, Fq::ONE)
    }
    #[inline(always)]
    fn gather_x(isa: I, from: [&[Pair]; 2], at: &[u32]) -> I::Fq {
        I::Fq::gather(isa, from[0], at)[0]
    }
    #[inline(always)]
    fn gather(isa: I, from: [&[Pair]; 2], at: &[u32]) -> [I::Fq; 2] {
        I::Fq::gather(isa, from[0], at)
    }
    #[inline(always)]
    fn store(point: [I::Fq; 2], to: &mut [&mut [Pair]; 2], at: usize) {
        I::Fq::store(point, &mut to[0][at..at + I::LANES]);
    }
    #[inline(always)]
    fn encode(isa: I, points: &[G1Affine]) -> [I::Fq; 2] {
        [encode_by(isa, points, |p| p.x), encode_by(isa, points, |p| p.y)]
    }
    #[inline(always)]
    fn decode([x, y]: [I::Fq; 2], points: &mut [G1Affine]) {
        for (p, (x, y)) in points.iter_mut().zip(decoded(x).into_iter().zip(decoded(y))) {
            *p = G1Affine::new_unchecked(x, y);
        }
    }
}

/// The curve over the quadratic extension.
pub(in crate::backend::cpu) struct InG2;

impl<I: Isa> Curve<I> for InG2 {
    type Config = ark_bn254::g2::Config;
    type Coordinate = Ext2<I::Fq>;
    const BYTES: usize = G2_BYTES;
    const HALVES: usize = 2;

    fn read(raw: &[u8]) -> G2Affine {
        g2_raw(raw)
    }
    fn image(point: &G2Affine) -> G2Affine {
        // With the same β as in G1, arkworks' endomorphism of G2 multiplies by λ², and λ⁴ is λ.
        Self::Config::endomorphism_affine(&Self::Config::endomorphism_affine(point))
    }
    #[inline(always)]
    fn one(isa: I) -> Ext2<I::Fq> {
        Ext2 { c0: I::Fq::splat(isa, Fq::ONE), c1: I::Fq::splat(isa, Fq::ZERO) }
    }
    #[inline(always)]
    fn gather_x(isa: I, from: [&[Pair]; 2], at: &[u32]) -> Ext2<I::Fq> {
        Ext2::from(I::Fq::gather(isa, from[0], at))
    }
    #[inline(always)]
    fn gather(isa: I, from: [&[Pair]; 2], at: &[u32]) -> [Ext2<I::Fq>; 2] {
        // Without `map`, whose closure may be compiled as a separate function, without the instructions.
        [Ext2::from(I::Fq::gather(isa, from[0], at)), Ext2::from(I::Fq::gather(isa, from[1], at))]
    }
    #[inline(always)]
    fn store([x, y]: [Ext2<I::Fq>; 2], to: &mut [&mut [Pair]; 2], at: usize) {
        I::Fq::store([x.c0, x.c1], &mut to[0][at..at + I::LANES]);
        I::Fq::store([y.c0, y.c1], &mut to[1][at..at + I::LANES]);
    }
    #[inline(always)]
    fn encode(isa: I, points: &[G2Affine]) -> [Ext2<I::Fq>; 2] {
        let x = Ext2 { c0: encode_by(isa, points, |p| p.x.c0), c1: encode_by(isa, points, |p| p.x.c1) };
        [x, Ext2 { c0: encode_by(isa, points, |p| p.y.c0), c1: encode_by(isa, points, |p| p.y.c1) }]
    }
    #[inline(always)]
    fn decode([x, y]: [Ext2<I::Fq>; 2], points: &mut [G2Affine]) {
        let (x0, x1, y0, y1) = (decoded(x.c0), decoded(x.c1), decoded(y.c0), decoded(y.c1));
        for (i, p) in points.iter_mut().enumerate() {
            *p = G2Affine::new_unchecked(Fq2::new(x0[i], x1[i]), Fq2::new(y0[i], y1[i]));
        }
    }
}

/// Vectors over the quadratic extension, c₀ + c₁·i with i² = −1.
#[derive(Clone, Copy)]
pub(in crate::backend::cpu) struct Ext2<L> {
    c0: L,
    c1: L,
}

impl<L> From<[L; 2]> for Ext2<L> {
    #[inline(always)]
    fn from([c0, c1]: [L; 2]) -> Self {
        Self { c0, c1 }
    }
}

impl<L> Ext2<L> {
    #[inline(always)]
    fn halves(self) -> [L; 2] {
        [self.c0, self.c1]
    }
}

/// A vector that may only be a factor.
#[derive(Clone, Copy)]
pub(in crate::backend::cpu) struct Ext2Loose<H>([H; 2]);

impl<L: Lanes> From<Ext2<L>> for Ext2Loose<L::Component> {
    #[inline(always)]
    fn from(x: Ext2<L>) -> Self {
        Self([x.c0.into(), x.c1.into()])
    }
}

impl<L: Lanes> Field for Ext2<L> {
    type Loose = Ext2Loose<L::Component>;
    type Signed = [L::Signed; 2];

    #[inline(always)]
    fn add(self, other: Self) -> Self {
        Self { c0: self.c0.add(other.c0), c1: self.c1.add(other.c1) }
    }
    #[inline(always)]
    fn sub(self, other: Self) -> Self {
        Self { c0: self.c0.sub(other.c0), c1: self.c1.sub(other.c1) }
    }
    #[inline(always)]
    fn double(self) -> Self {
        Self { c0: self.c0.double(), c1: self.c1.double() }
    }
    #[inline(always)]
    fn sum(self, other: Self) -> Self::Loose {
        Ext2Loose([L::component_sum(self.c0, other.c0), L::component_sum(self.c1, other.c1)])
    }
    #[inline(always)]
    fn diff(self, other: Self) -> Self::Loose {
        Self::diff_signed(self.signed(0), other.signed(0))
    }
    #[inline(always)]
    fn signed(self, minus: u32) -> Self::Signed {
        [self.c0.signed(minus), self.c1.signed(minus)]
    }
    #[inline(always)]
    fn diff_signed(a: Self::Signed, b: Self::Signed) -> Self::Loose {
        Ext2Loose([L::component_diff(a[0], b[0]), L::component_diff(a[1], b[1])])
    }
    #[inline(always)]
    fn mul(a: impl Into<Self::Loose>, b: Self) -> Self {
        L::complex_mul(a.into().0, b.halves()).into()
    }
    #[inline(always)]
    fn mul_sub(a: impl Into<Self::Loose>, b: Self, c: Self::Signed) -> Self {
        L::complex_mul_sub(a.into().0, b.halves(), c).into()
    }
    #[inline(always)]
    fn square_sub(a: Self, b: Self, c: Self) -> Self {
        L::complex_square_sub(a.halves(), b.halves(), c.halves()).into()
    }
    #[inline(always)]
    fn square(self) -> Self {
        Self { c0: L::product(self.c0.sum(self.c1), self.c0.diff(self.c1)), c1: L::mul(self.c0, self.c1).double() }
    }
    #[inline(always)]
    fn negate_where(self, mask: u32) -> Self {
        Self { c0: self.c0.negate_where(mask), c1: self.c1.negate_where(mask) }
    }
    #[inline(always)]
    fn select(self, other: Self, mask: u32) -> Self {
        Self { c0: self.c0.select(other.c0, mask), c1: self.c1.select(other.c1, mask) }
    }
    #[inline(always)]
    fn zeros(self) -> u32 {
        self.c0.zeros() & self.c1.zeros()
    }
    /// By the norm: (a₀ − a₁·i) / (a₀² + a₁²).
    #[inline(always)]
    fn invert(self) -> Self {
        let norm = self.c0.square().add(self.c1.square()).invert();
        let c1 = L::mul(self.c1, norm).negate_where(all_lanes::<L::Isa>());
        Self { c0: L::mul(self.c0, norm), c1 }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use ark_ff::UniformRand;
    use ark_std::rand::{Rng, SeedableRng, rngs::StdRng};

    /// Compares the extension with arkworks' own, lane by lane.
    pub(in super::super) fn extension<I: Isa>(isa: I, rounds: usize) {
        let mut rng = StdRng::seed_from_u64(11);
        let element = |rng: &mut StdRng| match rng.gen_range(0..6) {
            0 => Fq2::ZERO,
            1 => Fq2::new(Fq::ZERO, Fq::rand(rng)),
            2 => Fq2::new(-Fq::ONE, Fq::ZERO),
            _ => Fq2::rand(rng),
        };
        let vector = |x: &[Fq2]| {
            let points: Vec<_> = x.iter().map(|x| G2Affine::new_unchecked(*x, *x)).collect();
            InG2::encode(isa, &points)[0]
        };
        let check = |what: &str, got: Ext2<I::Fq>, expected: &dyn Fn(usize) -> Fq2| {
            let mut points = [G2Affine::identity(); MAX_LANES];
            <InG2 as Curve<I>>::decode([got, got], &mut points[..I::LANES]);
            for (lane, point) in points[..I::LANES].iter().enumerate() {
                assert_eq!(point.x, expected(lane), "{what} of lane {lane} on {}", I::NAME);
            }
        };
        for _ in 0..rounds {
            let [a, b]: [Vec<Fq2>; 2] = std::array::from_fn(|_| (0..I::LANES).map(|_| element(&mut rng)).collect());
            let (va, vb) = (vector(&a), vector(&b));
            check("add", va.add(vb), &|i| a[i] + b[i]);
            check("sub", va.sub(vb), &|i| a[i] - b[i]);
            check("double", va.double(), &|i| a[i].double());
            check("mul", Ext2::mul(va, vb), &|i| a[i] * b[i]);
            check("mul of a sum", Ext2::mul(va.sum(vb), va), &|i| (a[i] + b[i]) * a[i]);
            check("mul of a difference", Ext2::mul(va.diff(vb), vb), &|i| (a[i] - b[i]) * b[i]);
            check("square", va.square(), &|i| a[i].square());
            check("invert", va.invert(), &|i| a[i].inverse().unwrap_or_default());
            let mask = rng.r#gen::<u32>() & all_lanes::<I>();
            let bit = |i: usize| mask >> i & 1 == 1;
            check("negate_where", va.negate_where(mask), &|i| if bit(i) { -a[i] } else { a[i] });
            check("select", va.select(vb, mask), &|i| if bit(i) { b[i] } else { a[i] });
            let sign = |i: usize, x: Fq2| if bit(i) { -x } else { x };
            let (signed, minus) = (va.signed(mask), vb.signed(!mask & all_lanes::<I>()));
            check("diff_signed", Ext2::mul(Ext2::<I::Fq>::diff_signed(signed, minus), vb), &|i| {
                sign(i, a[i] + b[i]) * b[i]
            });
            check("mul_sub", Ext2::mul_sub(va.diff(vb), vb, signed), &|i| (a[i] - b[i]) * b[i] - sign(i, a[i]));
            check("square_sub", Ext2::square_sub(vb, va, vb), &|i| b[i].square() - a[i] - b[i]);
            for (i, a) in a.iter().enumerate() {
                assert_eq!(va.zeros() >> i & 1 == 1, *a == Fq2::ZERO, "zeros on {}", I::NAME);
            }
        }
    }
}
