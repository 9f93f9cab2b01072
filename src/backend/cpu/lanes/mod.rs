//! Vectors of field elements: what an instruction set provides to the code above it.
//!
//! The sums of points, the transforms and the sparse products are written once, over the traits here, and compiled for
//! each instruction set. An instruction set chooses its representation of an element (radix, Montgomery factor, lazy
//! reduction); conversions from and to arkworks' form are made at the boundaries only.
//!
//! **Soundness.** A value of an [`Isa`] proves that the CPU has the instructions: it is the result of a detection at
//! run time. Vectors are made from such a value or from other vectors, so that any code that holds a vector may compute
//! with it. Code is compiled for the instruction set by [`Isa::enter`]; called outside of it, the operations are
//! correct but slow.

#[cfg(target_arch = "x86_64")]
pub(in crate::backend::cpu) mod avx2;
#[cfg(any(test, target_arch = "x86_64"))]
pub(in crate::backend::cpu) mod ifma;
mod inverse;
#[cfg(test)]
pub(in crate::backend::cpu) mod outlined;
pub(in crate::backend::cpu) mod portable;
#[cfg(test)]
pub(in crate::backend::cpu) mod suite;
#[cfg(test)]
pub(in crate::backend::cpu) mod wide;

#[cfg(target_arch = "x86_64")]
use ark_ff::AdditiveGroup;
#[cfg(test)]
use ark_ff::Field as _;
use ark_ff::PrimeField;
use zeroize::{DefaultIsZeroes, Zeroize, Zeroizing};

use crate::model::{Fq, Fr};

/// An instruction set that this CPU has.
pub(in crate::backend::cpu) trait Isa: Copy + Send + Sync + 'static {
    /// The name, as in `PROVER_CPU`.
    const NAME: &'static str;
    /// Elements of a vector, at most 16.
    const LANES: usize;
    /// The field of points' coordinates.
    type Fq: Lanes<Isa = Self, Element = Fq>;
    /// The field of scalars.
    type Fr: Lanes<Isa = Self, Element = Fr>;

    /// Runs code compiled for this instruction set: [`Kernel::run`] and all it inlines.
    fn enter<K: Kernel<Self>>(self, kernel: K) -> K::Out;
}

/// Code to be compiled for an instruction set. `run` and what it calls on vectors must be `#[inline(always)]`.
pub(in crate::backend::cpu) trait Kernel<I: Isa> {
    /// The result.
    type Out;
    /// Computes the result.
    fn run(self, isa: I) -> Self::Out;
}

/// Two packed elements in a cache line: the coordinates of a point of G1, or the components of one coordinate in G2.
///
/// A packed element is x·2^[`Lanes::RADIX`] mod p as four limbs, least significant first, in any representative below
/// 2^256. The point at infinity is all zeros; no other point has y = 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C, align(64))]
pub(in crate::backend::cpu) struct Pair(pub [[u64; 4]; 2]);

impl DefaultIsZeroes for Pair {}

/// Arithmetic lane by lane, in a prime field or an extension.
pub(in crate::backend::cpu) trait Field: Copy + Send + Sync + 'static {
    /// A value that may only be used as a factor: a sum or difference that is not reduced.
    type Loose: Copy + From<Self>;
    /// An element with a sign for each lane, which may not have been applied yet.
    type Signed: Copy;

    /// self + other
    fn add(self, other: Self) -> Self;
    /// self − other
    fn sub(self, other: Self) -> Self;
    /// 2·self
    #[inline(always)]
    fn double(self) -> Self {
        self.add(self)
    }
    /// self + other, for use as a factor
    fn sum(self, other: Self) -> Self::Loose;
    /// self − other, for use as a factor
    fn diff(self, other: Self) -> Self::Loose;
    /// −self in the lanes whose bit is set in `minus`, self in the others
    fn signed(self, minus: u32) -> Self::Signed;
    /// a − b, for use as a factor
    fn diff_signed(a: Self::Signed, b: Self::Signed) -> Self::Loose;
    /// a·b
    fn mul(a: impl Into<Self::Loose>, b: Self) -> Self;
    /// a·b − c
    fn mul_sub(a: impl Into<Self::Loose>, b: Self, c: Self::Signed) -> Self;
    /// a² − b − c
    fn square_sub(a: Self, b: Self, c: Self) -> Self;
    /// self²
    fn square(self) -> Self;
    /// −self in the lanes whose bit is set in `mask`, self in the others
    fn negate_where(self, mask: u32) -> Self;
    /// `other` in the lanes whose bit is set in `mask`, self in the others
    fn select(self, other: Self, mask: u32) -> Self;
    /// The mask of the lanes that are zero in the field, lane 0 in the lowest bit
    fn zeros(self) -> u32;
    /// 1/self lane by lane; 0 for 0
    fn invert(self) -> Self;
}

/// A vector over a prime field.
pub(in crate::backend::cpu) trait Lanes: Field + Zeroize {
    /// The instruction set.
    type Isa: Isa;
    /// One element, in arkworks' form.
    type Element: PrimeField<BigInt = ark_ff::BigInteger256>;
    /// A component of a factor in the quadratic extension by i² = −1.
    type Component: Copy + From<Self>;
    /// The Montgomery factor of packed elements is 2^RADIX.
    const RADIX: u32;

    /// a·b
    fn product(a: Self::Loose, b: Self::Loose) -> Self;
    /// a + b, for use as a component of a factor
    fn component_sum(a: Self, b: Self) -> Self::Component;
    /// a − b, for use as a component of a factor
    fn component_diff(a: Self::Signed, b: Self::Signed) -> Self::Component;
    /// (a₀ + a₁·i)·(b₀ + b₁·i)
    fn complex_mul(a: [Self::Component; 2], b: [Self; 2]) -> [Self; 2];
    /// (a₀ + a₁·i)·(b₀ + b₁·i) − (c₀ + c₁·i)
    fn complex_mul_sub(a: [Self::Component; 2], b: [Self; 2], c: [Self::Signed; 2]) -> [Self; 2];
    /// (a₀ + a₁·i)² − (b₀ + b₁·i) − (c₀ + c₁·i)
    fn complex_square_sub(a: [Self; 2], b: [Self; 2], c: [Self; 2]) -> [Self; 2];

    /// Returns a vector with the same element in every lane.
    fn splat(isa: Self::Isa, x: Self::Element) -> Self;
    /// Makes a vector from one element per lane.
    ///
    /// # Panics
    /// If there are not [`Isa::LANES`] elements; this applies to the slices of all functions here.
    fn encode(isa: Self::Isa, elements: &[Self::Element]) -> Self;
    /// Writes the elements of a vector to `elements`.
    fn decode(self, elements: &mut [Self::Element]);
    /// Gathers two vectors: lane k from `from[at[k]]`.
    ///
    /// # Panics
    /// If an index is past the end.
    fn gather(isa: Self::Isa, from: &[Pair], at: &[u32]) -> [Self; 2];
    /// Writes lane k of two vectors to `to[k]`.
    fn store(values: [Self; 2], to: &mut [Pair]);
    /// Transposes [`Isa::LANES`] vectors in place: lane k of vector q becomes lane q of vector k.
    #[inline(always)]
    fn transpose(isa: Self::Isa, square: &mut [Self]) {
        transpose_packed(isa, square);
    }
}

/// The parts of [`Field`] and [`Lanes`] that have signs and differences, in terms of the other operations: for
/// instruction sets that gain nothing from merging reductions.
macro_rules! separate_reductions {
    (Field) => {
        type Signed = Self;
        #[inline(always)]
        fn signed(self, minus: u32) -> Self {
            self.negate_where(minus)
        }
        #[inline(always)]
        fn diff_signed(a: Self, b: Self) -> Self::Loose {
            a.diff(b)
        }
        #[inline(always)]
        fn mul_sub(a: impl Into<Self::Loose>, b: Self, c: Self) -> Self {
            Self::mul(a, b).sub(c)
        }
        #[inline(always)]
        fn square_sub(a: Self, b: Self, c: Self) -> Self {
            a.square().sub(b).sub(c)
        }
    };
    (Lanes) => {
        separate_reductions!(Lanes except products);

        /// Three products: a₀b₀ − a₁b₁ and (a₀ + a₁)(b₀ + b₁) − a₀b₀ − a₁b₁.
        #[inline(always)]
        fn complex_mul(a: [Self; 2], b: [Self; 2]) -> [Self; 2] {
            let cross = Self::product(a[0].sum(a[1]), b[0].sum(b[1]));
            let (low, high) = (Self::mul(a[0], b[0]), Self::mul(a[1], b[1]));
            [low.sub(high), cross.sub(low).sub(high)]
        }
    };
    (Lanes except products) => {
        // Karatsuba's product adds the components of a factor, so they must be reduced.
        type Component = Self;
        #[inline(always)]
        fn component_sum(a: Self, b: Self) -> Self {
            a.add(b)
        }
        #[inline(always)]
        fn component_diff(a: Self, b: Self) -> Self {
            a.sub(b)
        }
        #[inline(always)]
        fn complex_mul_sub(a: [Self; 2], b: [Self; 2], c: [Self; 2]) -> [Self; 2] {
            let product = Self::complex_mul(a, b);
            [product[0].sub(c[0]), product[1].sub(c[1])]
        }
        /// Two products: (a₀ + a₁)(a₀ − a₁) and 2·a₀a₁.
        #[inline(always)]
        fn complex_square_sub(a: [Self; 2], b: [Self; 2], c: [Self; 2]) -> [Self; 2] {
            let square = [Self::product(a[0].sum(a[1]), a[0].diff(a[1])), Self::mul(a[0], a[1]).double()];
            [square[0].sub(b[0]).sub(c[0]), square[1].sub(b[1]).sub(c[1])]
        }
    };
}
pub(in crate::backend::cpu) use separate_reductions;

/// Transposes by way of packed elements, for instruction sets that have no better way.
///
/// # Panics
/// If the number of lanes is odd, or is not the number of vectors.
#[inline(always)]
pub(in crate::backend::cpu) fn transpose_packed<L: Lanes>(isa: L::Isa, square: &mut [L]) {
    const MAX_LANES: usize = 16;
    let lanes = L::Isa::LANES;
    assert!(square.len() == lanes && lanes.is_multiple_of(2));
    // Columns 2·i and 2·i + 1 of the square, each of length `lanes`, in the halves of the pairs from i·lanes on.
    let mut pairs = Zeroizing::new([Pair::default(); MAX_LANES / 2 * MAX_LANES]);
    let mut rows = Zeroizing::new([Pair::default(); MAX_LANES]);
    for q in (0..lanes).step_by(2) {
        L::store([square[q], square[q + 1]], &mut rows[..lanes]);
        for (k, row) in rows[..lanes].iter().enumerate() {
            let column = &mut pairs[k / 2 * lanes..];
            (column[q].0[k % 2], column[q + 1].0[k % 2]) = (row.0[0], row.0[1]);
        }
    }
    let mut at = [0; MAX_LANES];
    for (k, at) in at.iter_mut().enumerate() {
        *at = k as u32;
    }
    for k in (0..lanes).step_by(2) {
        let columns = L::gather(isa, &pairs[k / 2 * lanes..], &at[..lanes]);
        square[k..k + 2].copy_from_slice(&columns);
    }
}

/// Converts a packed element to arkworks' form.
#[cfg(test)]
pub(in crate::backend::cpu) fn unpack<L: Lanes>(packed: &[u64; 4]) -> L::Element {
    let bytes: Vec<u8> = packed.iter().flat_map(|limb| limb.to_le_bytes()).collect();
    let factor = L::Element::from(2u64).pow([u64::from(L::RADIX)]).inverse().unwrap_or_default();
    L::Element::from_le_bytes_mod_order(&bytes) * factor
}

/// Returns 1/x lane by lane, by one inversion of decoded elements, for instruction sets that have no better way.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
pub(in crate::backend::cpu) fn invert_decoded<L: Lanes>(isa: L::Isa, x: L) -> L {
    let mut elements = [L::Element::ZERO; 16];
    let elements = &mut elements[..L::Isa::LANES];
    x.decode(elements);
    invert_all(elements);
    L::encode(isa, elements)
}

/// Replaces all elements by their inverses, except zeros, by one inversion (P. L. Montgomery, *Speeding the Pollard and
/// elliptic curve methods of factorization*, 1987).
#[cfg(target_arch = "x86_64")]
#[inline(never)]
fn invert_all<F: PrimeField<BigInt = ark_ff::BigInteger256>>(elements: &mut [F]) {
    let mut before = [F::ONE; 16];
    let mut product = F::ONE;
    for (before, x) in before.iter_mut().zip(&*elements) {
        *before = product;
        if !x.is_zero() {
            product *= x;
        }
    }
    let mut inverse = inverse::inverse(product);
    for (x, before) in elements.iter_mut().zip(before).rev() {
        if !x.is_zero() {
            (inverse, *x) = (inverse * *x, inverse * before);
        }
    }
}
