//! AVX2 with FMA: eight elements at a time, on the floating-point units.
//!
//! **Representation.** An element x is held as x·2^204 mod p in five limbs of 51 bits, each an integer in a double. A
//! CPU without IFMA has no better multiplier: the halves of a product of 51 bits by 51 come from two fused
//! multiply-adds, of which the first adds a constant so large that the sum is rounded to the high half, and the second
//! subtracts this half (N. Emmart, F. Zheng, C. Weems, "Faster modular exponentiation using double precision floating
//! point arithmetic on the GPU", 2018). Adding a constant also puts the bits of both halves where 64-bit integer
//! additions sum them into columns.
//!
//! **Bounds.** Limbs are signed. A *reduced* value, `Self`, is between −0.69p and 0.69p, and its four low limbs are
//! between −2^50 and 2^50: thus zero in the field is zero in every limb. A *loose* value is a sum or difference of two
//! reduced ones: between −1.38p and 1.38p, with limbs between −2^51 and 2^51, so that a product of limbs is at most
//! 2^102, the most that the constant of the first multiply-add allows for. Debug builds check both.
//!
//! **Reduction.** From below by four digits: with k = −1/p mod 2^51, between −2^50 and 2^50, the digit for N = p·k is
//! the limb itself, because N = −1 mod 2^51, so that no product by the inverse delays the next digit; all there is to
//! do is to add a digit times (N + 1)/2^51 one column higher. This divides by 2^204 and, the digits being between −2^50
//! and 2^50 too, adds at most p·k/2. Then from above by a multiple q·p, where q is the quotient by p of the two highest
//! columns, rounded to the nearest integer. With factors below 1.38p, |q| < 1.38²·p/2^204 + |k|/2 + 1 < 0.85·2^51 for
//! both fields. The errors of the quotient are at most |q|·2^-55 < 0.054 from 2^255/p, which for both fields is a
//! double with a quarter of the greatest rounding error; 2^-3 from rounding the sum; and less than 2^-10 from what is
//! omitted. Hence the result is at most (0.5 + 0.054 + 0.125 + 0.001)p, which is below 0.69p again. The column above
//! the five needs no exact sum, because its value is known to vanish.

#![allow(unsafe_code)]

mod ops;
mod product;
mod table;
#[cfg(test)]
mod tests;

use std::arch::x86_64::__m256d;
use std::marker::PhantomData;
use std::mem::MaybeUninit;

use ark_ff::{BigInteger, BigInteger256, Fp, MontBackend, MontConfig};
use zeroize::Zeroize;

use super::{Field, Isa, Kernel, Lanes, Pair, invert_decoded, separate_reductions};
use table::Table;

/// AVX2 with FMA. A value proves that the CPU has the instructions.
#[derive(Clone, Copy, Debug)]
pub(in crate::backend::cpu) struct Avx2(());

impl Avx2 {
    /// Returns the instruction set, if this CPU has it.
    pub(in crate::backend::cpu) fn detect() -> Option<Self> {
        let found =
            is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("popcnt");
        found.then_some(Self(()))
    }
}

impl Isa for Avx2 {
    const NAME: &'static str = "avx2";
    const LANES: usize = 8;
    type Fq = Eight<ark_bn254::FqConfig>;
    type Fr = Eight<ark_bn254::FrConfig>;

    #[inline]
    fn enter<K: Kernel<Self>>(self, kernel: K) -> K::Out {
        #[target_feature(enable = "avx2,fma,popcnt")]
        #[cfg_attr(debug_assertions, inline(never))]
        fn with_features<K: Kernel<Avx2>>(isa: Avx2, kernel: K) -> K::Out {
            kernel.run(isa)
        }
        // SAFETY: this value exists only if the CPU has the instructions.
        unsafe { with_features(self, kernel) }
    }
}

/// The limbs of eight elements: limb j of elements 0 to 3, then of elements 4 to 7.
#[derive(Clone, Copy)]
#[repr(C, align(32))]
struct Limbs([[__m256d; 5]; 2]);

/// Calls functions compiled for the instruction set.
macro_rules! with_features {
    ($call:expr) => {
        // SAFETY: a vector of this instruction set, or the `Avx2` to make one from, exists only if detection found that
        // the CPU has the instructions, which is all that these functions require.
        unsafe { $call }
    };
}

/// Eight elements, reduced.
#[repr(transparent)]
pub(in crate::backend::cpu) struct Eight<C>(Limbs, PhantomData<C>);

/// Eight sums or differences of reduced elements.
#[repr(transparent)]
pub(in crate::backend::cpu) struct Loose<C>(Limbs, PhantomData<C>);

impl<C> Clone for Eight<C> {
    #[inline(always)]
    fn clone(&self) -> Self {
        *self
    }
}
impl<C> Copy for Eight<C> {}
impl<C> Clone for Loose<C> {
    #[inline(always)]
    fn clone(&self) -> Self {
        *self
    }
}
impl<C> Copy for Loose<C> {}

impl<C> From<Eight<C>> for Loose<C> {
    #[inline(always)]
    fn from(x: Eight<C>) -> Self {
        Self(x.0, PhantomData)
    }
}

impl<C> Zeroize for Eight<C> {
    fn zeroize(&mut self) {
        let words: *mut [u64; 40] = (&raw mut self.0).cast();
        // SAFETY: the type is forty doubles, aligned to more than they need, and zero bits are a value of it.
        unsafe { &mut *words }.zeroize();
    }
}

impl<C: MontConfig<4>> Eight<C> {
    const TABLE: &'static Table = &Table::new(&C::MODULUS.0);

    /// Makes a vector of reduced values.
    #[inline(always)]
    fn reduced(limbs: Limbs) -> Self {
        Self::check(&limbs, 1.0);
        Self(limbs, PhantomData)
    }

    /// In debug builds, checks the bounds of a sum of `terms` reduced values.
    #[cfg_attr(debug_assertions, inline(never))]
    #[cfg_attr(not(debug_assertions), inline(always))]
    fn check(limbs: &Limbs, terms: f64) {
        if cfg!(debug_assertions) {
            // One unit more, because lower limbs may be negative.
            let top = 0.69 / Self::TABLE.at(Table::QUOTIENT) + 1.0;
            // SAFETY: a vector of four doubles has their size, and any bits are valid doubles.
            let limbs: [[[f64; 4]; 5]; 2] = unsafe { std::mem::transmute(limbs.0) };
            for (j, lanes) in limbs.iter().flat_map(|half| half.iter().enumerate()) {
                let most = terms * if j < 4 { (1u64 << 50) as f64 } else { top };
                for x in lanes {
                    debug_assert!(x.abs() <= most && x.fract() == 0.0, "limb {j} is {x}, not within {most}");
                }
            }
        }
    }

    /// Multiplies values in the bounds of loose ones.
    #[inline(always)]
    fn multiplied(a: &Limbs, b: &Limbs) -> Self {
        let (a, b) = with_features!((ops::copy(a), ops::copy(b)));
        Self::product_in_place(&a, &b)
    }

    /// Squares a reduced value.
    #[inline(always)]
    fn squared(a: &Limbs) -> Self {
        let a = with_features!(ops::copy(a));
        Self::product_in_place(&a, &a)
    }

    // Debug builds check bounds here, which is too much code to inline wherever a product is.
    #[cfg_attr(debug_assertions, inline(never))]
    #[cfg_attr(not(debug_assertions), inline(always))]
    fn product_in_place(a: &Limbs, b: &Limbs) -> Self {
        Self::check(a, 2.0);
        Self::check(b, 2.0);
        let mut out = MaybeUninit::uninit();
        // SAFETY: the CPU has the instructions, as above. `out` is a local variable, and the product writes all of it.
        let out = unsafe {
            product::product(&mut out, a, b, Self::TABLE);
            out.assume_init_ref()
        };
        Self::reduced(with_features!(ops::copy(out)))
    }
}

impl<C: MontConfig<4>> Field for Eight<C> {
    type Loose = Loose<C>;
    separate_reductions!(Field);

    #[inline(always)]
    fn add(self, other: Self) -> Self {
        Self::reduced(with_features!(ops::reduce(ops::sum(&self.0, &other.0), Self::TABLE)))
    }
    #[inline(always)]
    fn sub(self, other: Self) -> Self {
        Self::reduced(with_features!(ops::reduce(ops::difference(&self.0, &other.0), Self::TABLE)))
    }
    #[inline(always)]
    fn sum(self, other: Self) -> Loose<C> {
        Loose(with_features!(ops::sum(&self.0, &other.0)), PhantomData)
    }
    #[inline(always)]
    fn diff(self, other: Self) -> Loose<C> {
        Loose(with_features!(ops::difference(&self.0, &other.0)), PhantomData)
    }
    #[inline(always)]
    fn mul(a: impl Into<Loose<C>>, b: Self) -> Self {
        Self::multiplied(&a.into().0, &b.0)
    }
    #[inline(always)]
    fn square(self) -> Self {
        Self::squared(&self.0)
    }
    #[inline(always)]
    fn negate_where(self, mask: u32) -> Self {
        Self(with_features!(ops::negate_where(self.0, mask)), PhantomData)
    }
    #[inline(always)]
    fn select(self, other: Self, mask: u32) -> Self {
        Self(with_features!(ops::select(&self.0, &other.0, mask)), PhantomData)
    }
    #[inline(always)]
    fn zeros(self) -> u32 {
        // Of the multiples of p only 0 is within the bounds, and of its limbs the lowest is a multiple of 2^51 and
        // within 2^50, hence zero; so are the others in turn.
        with_features!(ops::zeros(&self.0))
    }
    fn invert(self) -> Self {
        invert_decoded(Avx2(()), self)
    }
}

impl<C: MontConfig<4>> Lanes for Eight<C> {
    type Isa = Avx2;
    type Element = Fp<MontBackend<C, 4>, 4>;
    const RADIX: u32 = 204;
    separate_reductions!(Lanes);

    #[inline(always)]
    fn product(a: Loose<C>, b: Loose<C>) -> Self {
        Self::multiplied(&a.0, &b.0)
    }

    #[inline(always)]
    fn splat(isa: Avx2, x: Self::Element) -> Self {
        Self::encode(isa, &[x; Avx2::LANES])
    }
    fn encode(_: Avx2, elements: &[Self::Element]) -> Self {
        assert_eq!(elements.len(), Avx2::LANES);
        let packed = std::array::from_fn(|k| &elements[k].0.0);
        let limbs = with_features!(ops::unpack(packed, Self::TABLE));
        // x·2^256 · 2^152 / 2^204
        Self::multiplied(&limbs, &with_features!(ops::splat([0.0, 0.0, (1u64 << 50) as f64, 0.0, 0.0])))
    }
    fn decode(self, elements: &mut [Self::Element]) {
        assert_eq!(elements.len(), Avx2::LANES);
        // x·2^204 · 2^256 / 2^204
        let factor = with_features!(ops::splat(const { table::limbs(&C::R.0, false) }));
        let mut packed = [[0; 4]; Avx2::LANES];
        with_features!(ops::pack(&Self::multiplied(&self.0, &factor).0, Self::TABLE, &mut packed));
        for (packed, element) in packed.into_iter().zip(elements) {
            let mut x = BigInteger256::new(packed);
            if x >= C::MODULUS {
                x.sub_with_borrow(&C::MODULUS);
            }
            *element = Fp::new_unchecked(x);
        }
    }
    #[inline(always)]
    fn gather(_: Avx2, from: &[Pair], at: &[u32]) -> [Self; 2] {
        assert_eq!(at.len(), Avx2::LANES);
        let mut pairs = [&from[at[0] as usize]; Avx2::LANES];
        for (pair, at) in pairs.iter_mut().zip(at) {
            *pair = &from[*at as usize];
        }
        let [x, y] = with_features!(ops::unpack_pairs(pairs, Self::TABLE));
        [Self::reduced(x), Self::reduced(y)]
    }
    #[inline(always)]
    fn store(values: [Self; 2], to: &mut [Pair]) {
        let Ok(to) = <&mut [Pair; Avx2::LANES]>::try_from(to) else { panic!("a pair a lane") };
        with_features!(ops::pack_pairs([&values[0].0, &values[1].0], Self::TABLE, to));
    }
    #[inline(always)]
    fn transpose(_: Avx2, square: &mut [Self]) {
        let Ok(square) = <&mut [Self; Avx2::LANES]>::try_from(square) else { panic!("a vector a lane") };
        with_features!(ops::transpose_square(square.each_mut().map(|x| &mut x.0)));
    }
}
