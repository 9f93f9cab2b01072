//! AVX2 with FMA: eight elements at a time, on the units for floating-point numbers.
//!
//! **Form.** An element x is held as x·2^204 mod p in five limbs of 51 bits, each an integer in a double. A processor
//! without IFMA has no better multiplier: the halves of a product of 51 bits by 51 come from two fused
//! multiply-adds, where the first adds a constant so large that the sum is rounded to the high half, and the second
//! takes this half away (N. Emmart, F. Zheng, C. Weems, "Faster modular exponentiation using double precision floating
//! point arithmetic on the GPU", 2018). Adding a constant also puts the bits of both halves where 64-bit integer
//! additions sum them into columns.
//!
//! **Bounds.** Limbs are signed. A *reduced* value, `Self`, is between −0.69p and 0.69p; its four low limbs are between
//! −2^50 and 2^50, which makes them unique. A *loose* value is a sum or difference of two reduced ones: between −1.38p
//! and 1.38p, limbs between −2^51 and 2^51, so that a product of limbs is at most 2^102, which the constant of the first
//! multiply-add allows for.
//!
//! **Reduction.** From below by four digits: with k = −1/p mod 2^51 the digit of N = p·k is the limb itself, for
//! N = −1 mod 2^51, so that no product by the inverse delays the next digit; adding a digit times (N + 1)/2^51 one
//! column higher is all. This divides by 2^204 and, the digits being between −2^50 and 2^50, adds at most N/2 < 2^49·p.
//! Then from above by a multiple q·p, where q is the quotient by p of what the two highest columns hold, to the nearest
//! integer. With factors below 1.38p, |q| ≤ 1.38²·p/2^204 + 2^49.02 < 0.975·2^51. The quotient is computed with an
//! error of at most |q|·2^-55 < 0.061 from 2^255/p, which for both fields is a double with a quarter of the greatest
//! rounding error, 2^-3 from the rounding of the sum, and less than 2^-10 from the rest; hence the result is at most
//! (0.5 + 0.061 + 0.125 + 0.001)p, which is again below 0.69p. The highest column needs no exact sum: what it stands
//! for is known to vanish.

#![allow(unsafe_code)]

mod product;
mod simd;
mod table;

use std::arch::x86_64::{__m256d, __m256i};
use std::marker::PhantomData;
use std::mem::MaybeUninit;

use ark_ff::{BigInteger, BigInteger256, Fp, MontBackend, MontConfig};
use zeroize::Zeroize;

use super::{Field, Isa, Kernel, Lanes, Pair, invert_by_ark};
use table::{BITS, HIGH, LOW, MASK, TWO_52, Table};

/// The instructions, found on this processor.
#[derive(Clone, Copy, Debug)]
pub(in crate::backend::cpu) struct Avx2(());

impl Avx2 {
    /// Asks the processor.
    pub(in crate::backend::cpu) fn detect() -> Option<Self> {
        (is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma")).then_some(Self(()))
    }
}

impl Isa for Avx2 {
    const NAME: &'static str = "avx2";
    const LANES: usize = 8;
    type Fq = Eight<ark_bn254::FqConfig>;
    type Fr = Eight<ark_bn254::FrConfig>;

    #[inline]
    fn enter<K: Kernel<Self>>(self, kernel: K) -> K::Out {
        #[target_feature(enable = "avx2,fma")]
        fn with_features<K: Kernel<Avx2>>(isa: Avx2, kernel: K) -> K::Out {
            kernel.run(isa)
        }
        // SAFETY: this value exists only where the processor has the instructions.
        unsafe { with_features(self, kernel) }
    }
}

/// Limbs of eight elements: limb j of elements 0 to 3, then of elements 4 to 7.
#[derive(Clone, Copy)]
#[repr(C, align(32))]
struct Limbs([[__m256d; 5]; 2]);

impl Limbs {
    #[inline(always)]
    fn zip(&self, other: &Self, op: impl Fn(__m256d, __m256d) -> __m256d) -> Self {
        let half = |h: usize| std::array::from_fn(|j| op(self.0[h][j], other.0[h][j]));
        Self([half(0), half(1)])
    }
    /// The same limbs in every lane.
    #[inline(always)]
    fn splat(limbs: [f64; 5]) -> Self {
        Self([limbs.map(simd::splat); 2])
    }
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
    /// −p
    const MINUS_P: [f64; 5] = table::limbs(&C::MODULUS.0, true);

    /// A reduced value, which debug builds check to be one.
    #[inline(always)]
    fn reduced(limbs: Limbs) -> Self {
        let value = Self(limbs, PhantomData);
        #[cfg(debug_assertions)]
        value.check();
        value
    }

    #[cfg(debug_assertions)]
    #[inline(never)]
    fn check(&self) {
        let p = 1.0 / Self::TABLE.at(Table::QUOTIENT);
        for half in self.0.0 {
            for (j, limb) in half.into_iter().enumerate() {
                let mut lanes = [0; 4];
                simd::write(simd::bits(limb), &mut lanes);
                for x in lanes.map(f64::from_bits) {
                    let most = if j < 4 { 0.5 * MASK as f64 + 0.5 } else { 0.69 * p + 1.0 };
                    assert!(x.abs() <= most && x.fract() == 0.0, "limb {j} is {x}, not within {most}");
                }
            }
        }
    }

    /// The reduced value of limbs that are integers below 2^52 in size.
    #[inline(always)]
    fn reduce(mut x: [__m256d; 5]) -> [__m256d; 5] {
        let quotient = simd::round(simd::mul(x[4], simd::splat(Self::TABLE.at(Table::QUOTIENT))));
        for (x, minus_p) in x.iter_mut().zip(Self::MINUS_P) {
            *x = simd::mul_add(quotient, simd::splat(minus_p), *x);
        }
        let (high, down) = (simd::splat(HIGH), simd::splat(1.0 / (MASK + 1) as f64));
        for j in 0..4 {
            let carry = simd::sub(simd::add(x[j], high), high);
            x[j] = simd::sub(x[j], carry);
            x[j + 1] = simd::mul_add(carry, down, x[j + 1]);
        }
        x
    }

    /// The product of values in the bounds of loose ones.
    #[inline(always)]
    fn product(a: &Limbs, b: &Limbs) -> Self {
        let mut out = MaybeUninit::uninit();
        // SAFETY: whoever has a vector found that the processor has the instructions. The product writes all of `out`.
        let out = unsafe {
            product::product(a, b, Self::TABLE, &mut out);
            out.assume_init()
        };
        Self::reduced(out)
    }

    /// Four packed elements in each half, transposed: part i has limb i of 64 bits.
    #[inline(always)]
    fn unpack(halves: [[__m256i; 4]; 2]) -> Self {
        let mask = simd::int_splat(MASK);
        let low = |x| simd::int_and(x, mask);
        let exponent = simd::splat(TWO_52);
        Self::reduced(Limbs(halves.map(|x| {
            let limbs = [
                low(x[0]),
                low(simd::int_or(simd::right::<51>(x[0]), simd::left::<13>(x[1]))),
                low(simd::int_or(simd::right::<38>(x[1]), simd::left::<26>(x[2]))),
                low(simd::int_or(simd::right::<25>(x[2]), simd::left::<39>(x[3]))),
                simd::right::<12>(x[3]),
            ];
            Self::reduce(limbs.map(|x| simd::sub(simd::or(simd::double(x), exponent), exponent)))
        })))
    }

    /// The reverse, with representatives between 0 and 2p.
    #[inline(always)]
    fn pack(self) -> [[__m256i; 4]; 2] {
        // What a sum with LOW has above 51 bits, and so carries into the next limb.
        let carried = (LOW.to_bits() >> BITS) as f64;
        let mask = simd::int_splat(MASK);
        self.0.0.map(|limbs| {
            let mut x: [__m256i; 5] = std::array::from_fn(|j| {
                let start = match j {
                    0 => LOW,
                    4 => TWO_52 - carried,
                    _ => LOW - carried,
                };
                simd::bits(simd::add(limbs[j], simd::splat(start - Self::MINUS_P[j])))
            });
            for j in 0..4 {
                x[j + 1] = simd::int_add(x[j + 1], simd::right::<51>(x[j]));
                x[j] = simd::int_and(x[j], mask);
            }
            [
                simd::int_or(x[0], simd::left::<51>(x[1])),
                simd::int_or(simd::right::<13>(x[1]), simd::left::<38>(x[2])),
                simd::int_or(simd::right::<26>(x[2]), simd::left::<25>(x[3])),
                // Shifting drops the exponent.
                simd::int_or(simd::right::<39>(x[3]), simd::left::<12>(x[4])),
            ]
        })
    }
}

impl<C: MontConfig<4>> Field for Eight<C> {
    type Loose = Loose<C>;

    #[inline(always)]
    fn add(self, other: Self) -> Self {
        Self::reduced(Limbs(self.0.zip(&other.0, simd::add).0.map(Self::reduce)))
    }
    #[inline(always)]
    fn sub(self, other: Self) -> Self {
        Self::reduced(Limbs(self.0.zip(&other.0, simd::sub).0.map(Self::reduce)))
    }
    #[inline(always)]
    fn sum(self, other: Self) -> Loose<C> {
        Loose(self.0.zip(&other.0, simd::add), PhantomData)
    }
    #[inline(always)]
    fn diff(self, other: Self) -> Loose<C> {
        Loose(self.0.zip(&other.0, simd::sub), PhantomData)
    }
    #[inline(always)]
    fn mul(a: impl Into<Loose<C>>, b: impl Into<Loose<C>>) -> Self {
        Self::product(&a.into().0, &b.into().0)
    }
    #[inline(always)]
    fn square(a: impl Into<Loose<C>>) -> Self {
        let a = a.into().0;
        Self::product(&a, &a)
    }
    #[inline(always)]
    fn negate_where(self, mask: u32) -> Self {
        let [low, high] = self.0.0;
        let flip = |half: [__m256d; 5], mask| {
            let signs = simd::signs(mask);
            half.map(|limb| simd::xor(limb, signs))
        };
        Self(Limbs([flip(low, mask), flip(high, mask >> 4)]), PhantomData)
    }
    #[inline(always)]
    fn select(self, other: Self, mask: u32) -> Self {
        let half = |h: usize| {
            let by = simd::signs(mask >> (4 * h));
            std::array::from_fn(|j| simd::blend(self.0.0[h][j], other.0.0[h][j], by))
        };
        Self(Limbs([half(0), half(1)]), PhantomData)
    }
    #[inline(always)]
    fn zeros(self) -> u32 {
        // Limbs of a reduced value are unique, and zero alone among the values of zero is in the bounds. The bits of
        // limbs together have an exponent, or be it that of no number, unless each is a zero of either sign.
        let [low, high] = self.0.0.map(|x| simd::is_zero(x.into_iter().reduce(simd::or).unwrap_or(x[0])));
        low | high << 4
    }
    fn invert(self) -> Self {
        invert_by_ark(Avx2(()), self)
    }
}

impl<C: MontConfig<4>> Lanes for Eight<C> {
    type Isa = Avx2;
    type Element = Fp<MontBackend<C, 4>, 4>;
    const RADIX: u32 = 204;

    #[inline(always)]
    fn splat(isa: Avx2, x: Self::Element) -> Self {
        Self::encode(isa, &[x; Avx2::LANES])
    }
    #[inline(always)]
    fn encode(_: Avx2, elements: &[Self::Element]) -> Self {
        assert_eq!(elements.len(), Avx2::LANES);
        let half = |h: usize| simd::transpose(std::array::from_fn(|i| simd::load(&elements[4 * h + i].0.0)));
        // x·2^256 · 2^152 / 2^204
        let factor = Limbs::splat([0.0, 0.0, (1u64 << 50) as f64, 0.0, 0.0]);
        Self::product(&Self::unpack([half(0), half(1)]).0, &factor)
    }
    #[inline(always)]
    fn decode(self, elements: &mut [Self::Element]) {
        assert_eq!(elements.len(), Avx2::LANES);
        // x·2^204 · 2^256 / 2^204
        let factor = const { table::limbs(&C::R.0, false) };
        let halves = Self::product(&self.0, &Limbs::splat(factor)).pack().map(simd::transpose);
        for (packed, element) in halves.iter().flatten().zip(elements) {
            let mut x = BigInteger256::new([0; 4]);
            simd::write(*packed, &mut x.0);
            if x >= C::MODULUS {
                x.sub_with_borrow(&C::MODULUS);
            }
            *element = Fp::new_unchecked(x);
        }
    }
    #[inline(always)]
    fn gather(_: Avx2, from: &[Pair], at: &[u32]) -> [Self; 2] {
        assert_eq!(at.len(), Avx2::LANES);
        let pairs: [&Pair; Avx2::LANES] = std::array::from_fn(|k| &from[at[k] as usize]);
        std::array::from_fn(|coordinate| {
            let half = |h: usize| {
                simd::transpose(std::array::from_fn(|i| simd::load(&pairs[4 * h + i].0[coordinate])))
            };
            Self::unpack([half(0), half(1)])
        })
    }
    #[inline(always)]
    fn store(values: [Self; 2], to: &mut [Pair]) {
        assert_eq!(to.len(), Avx2::LANES);
        for (coordinate, value) in values.into_iter().enumerate() {
            let halves = value.pack().map(simd::transpose);
            for (pair, packed) in to.iter_mut().zip(halves.iter().flatten()) {
                simd::write(*packed, &mut pair.0[coordinate]);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conforms() {
        let Some(isa) = Avx2::detect() else { return };
        super::super::suite::conforms(isa);
    }
}
