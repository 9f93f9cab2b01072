//! The field, on any implementation of eight words.
//!
//! **Representation.** An element x is a representative of x·2^260 mod p below 2^256 (p has 254 bits: up to 5.29p), in
//! five limbs of 52 bits, each its own vector, least significant first. So every value that may be in memory is valid
//! as it is: gathered values need no reduction. A value that is only used as a factor ([`Loose`]) is at most 12p, and
//! the bits above 52 of its lower four limbs are ignored: the multiplier does not read them.
//!
//! **Product.** Montgomery's, with five digits of 52 bits, least significant first (P. L. Montgomery, *Modular
//! multiplication without trial division*, 1985; on IFMA first by S. Gueron and V. Krasnov, *Accelerating big integer
//! arithmetic using Intel IFMA extensions*, 2016). The first four digits are eliminated in another way: a digit m at
//! 2^0 is worth m·(2^−104 mod p) at 2^104, and one at 2^52 is worth m·(2^−52 mod p). This eliminates two digits at
//! once, without computing either by a product, so the dependency chain is short. Such a step does not reduce the value
//! to the size of p but to 52 bits more; the fifth digit is Montgomery's own, and removes these:
//!
//! ```text
//! a, b ≤ 12p:  a·b/2^260 + (2^−52 mod p) + (2^−104 mod p) + p  <  1.71p + p + p + p  <  2^256
//! ```
//!
//! A product takes 100 multiply-adds, a square 80. No column overflows: it sums fewer than 32 terms below 2^52.
//!
//! **Sums.** The top three bits of a sum or a difference, before any carry, are the index of the multiple of p to
//! subtract, in a table that a permutation reads: there is no wait for carries and no comparison. The bits are off by
//! at most one unit of the top limb, p/2^45; the tables allow for that. Subtractions from a product are made before its
//! carries: there four bits are the index, and are at most 2 units too high or 13 too low.

// Loops over limbs index several arrays at once; iterator chains might not be unrolled.
#![allow(clippy::needless_range_loop)]

use std::marker::PhantomData;

use ark_ff::{BigInteger256, Field as _, Fp, MontBackend, MontConfig, PrimeField};
use zeroize::Zeroize;

use super::super::inverse::inverse_of_integer;
use super::super::{Field, Lanes, Pair};
#[cfg(debug_assertions)]
use super::super::{Isa as _, Kernel};
use super::constants::{BITS, Constants, Limbs, MASK, Table, split};
use super::words::Words;

/// Vectors of eight elements in one of sixteen. Two independent chains of products hide the latency of four cycles:
/// code that waits for its own product would otherwise leave a good part of the multipliers idle.
const HALVES: usize = 2;

/// Elements of a vector.
pub(super) const LANES: usize = 8 * HALVES;

/// [`LANES`] elements: representatives below 2^256, all limbs below 2^52.
pub(in crate::backend::cpu) struct Vector<W, C> {
    pub(super) halves: [[W; 5]; HALVES],
    prime: PhantomData<C>,
}

/// [`LANES`] factors of at most 12p. Bits from 52 up are to be ignored in limbs 0 to 3.
pub(in crate::backend::cpu) struct Loose<W, C> {
    pub(super) halves: [[W; 5]; HALVES],
    prime: PhantomData<C>,
}

/// Elements with a deferred negation in the lanes whose bit is set. A sum or product that reduces anyway applies it.
pub(in crate::backend::cpu) struct Signed<W, C> {
    value: Vector<W, C>,
    minus: u32,
}

impl<W: Copy, C> Clone for Signed<W, C> {
    #[inline(always)]
    fn clone(&self) -> Self {
        *self
    }
}

impl<W: Copy, C> Copy for Signed<W, C> {}

impl<W: Copy, C> Clone for Vector<W, C> {
    #[inline(always)]
    fn clone(&self) -> Self {
        *self
    }
}

impl<W: Copy, C> Copy for Vector<W, C> {}

impl<W: Copy, C> Clone for Loose<W, C> {
    #[inline(always)]
    fn clone(&self) -> Self {
        *self
    }
}

impl<W: Copy, C> Copy for Loose<W, C> {}

impl<W: Words, C> From<Vector<W, C>> for Loose<W, C> {
    #[inline(always)]
    fn from(x: Vector<W, C>) -> Self {
        Self { halves: x.halves, prime: PhantomData }
    }
}

impl<W: Words, C> Zeroize for Vector<W, C> {
    fn zeroize(&mut self) {
        for word in self.halves.as_flattened_mut() {
            word.clear();
        }
    }
}

impl<W: Words, C> Vector<W, C> {
    #[inline(always)]
    pub(super) fn new(halves: [[W; 5]; HALVES]) -> Self {
        for half in &halves {
            debug_assert!(normalised(half, 48), "limbs of a vector out of bounds");
        }
        Self { halves, prime: PhantomData }
    }
}

impl<W: Words, C: MontConfig<4>> Loose<W, C> {
    #[inline(always)]
    pub(super) fn new(halves: [[W; 5]; HALVES]) -> Self {
        for half in &halves {
            let below = half[4].to_array().iter().all(|&limb| limb <= Constants::<C>::P12[4]);
            debug_assert!(below, "a factor out of bounds");
        }
        Self { halves, prime: PhantomData }
    }
}

/// Returns whether the limbs are below 2^52 and the highest below 2^`top`.
fn normalised<W: Words>(x: &[W; 5], top: u32) -> bool {
    let below = |word: W, bits: u32| word.to_array().iter().all(|limb| limb >> bits == 0);
    x[..4].iter().all(|&word| below(word, BITS)) && below(x[4], top)
}

/// Returns the bits of one half's eight lanes of a mask.
#[inline(always)]
fn part(mask: u32, half: usize) -> u8 {
    (mask >> (8 * half)) as u8
}

impl<W, C> Field for Vector<W, C>
where
    W: Words,
    C: MontConfig<4>,
    Fp<MontBackend<C, 4>, 4>: PrimeField<BigInt = BigInteger256>,
{
    type Loose = Loose<W, C>;
    type Signed = Signed<W, C>;

    #[inline(always)]
    fn add(self, other: Self) -> Self {
        let mut out = self.halves;
        for h in 0..HALVES {
            let sum = plus(out[h], other.halves[h]);
            out[h] = normal(minus_multiple::<W, 46>(sum, Constants::<C>::OF_SUM));
        }
        Self::new(out)
    }
    #[inline(always)]
    fn sub(self, other: Self) -> Self {
        let mut out = self.halves;
        for h in 0..HALVES {
            let difference = minus(out[h], other.halves[h]);
            out[h] = normal(minus_multiple::<W, 46>(difference, Constants::<C>::OF_DIFFERENCE));
        }
        Self::new(out)
    }
    #[inline(always)]
    fn sum(self, other: Self) -> Loose<W, C> {
        let mut out = self.halves;
        for h in 0..HALVES {
            out[h] = carried(plus(out[h], other.halves[h]));
        }
        Loose::new(out)
    }
    #[inline(always)]
    fn diff(self, other: Self) -> Loose<W, C> {
        let mut out = self.halves;
        for h in 0..HALVES {
            let more = plus(out[h], splat(out[h][0], &Constants::<C>::P6));
            out[h] = carried(minus(more, other.halves[h]));
        }
        Loose::new(out)
    }
    #[inline(always)]
    fn signed(self, minus: u32) -> Signed<W, C> {
        Signed { value: self, minus }
    }
    #[inline(always)]
    fn diff_signed(a: Signed<W, C>, b: Signed<W, C>) -> Loose<W, C> {
        let mut out = a.value.halves;
        for h in 0..HALVES {
            let a = below_6p::<W, C>(out[h], part(a.minus, h));
            let b = below_6p::<W, C>(b.value.halves[h], part(!b.minus, h));
            out[h] = carried(plus(a, b));
        }
        Loose::new(out)
    }
    #[inline(always)]
    fn mul(a: impl Into<Loose<W, C>>, b: Self) -> Self {
        Self::product(a.into(), b.into())
    }
    #[inline(always)]
    fn mul_sub(a: impl Into<Loose<W, C>>, b: Self, c: Signed<W, C>) -> Self {
        let mut out = a.into().halves;
        for h in 0..HALVES {
            let product = product::<W, C>(out[h], b.halves[h]);
            out[h] = reduced::<W, C>(less_signed(product, c, h));
        }
        Self::new(out)
    }
    #[inline(always)]
    fn square_sub(a: Self, b: Self, c: Self) -> Self {
        let mut out = a.halves;
        for h in 0..HALVES {
            let square = square::<W, C>(out[h]);
            out[h] = reduced::<W, C>(minus(minus(square, b.halves[h]), c.halves[h]));
        }
        Self::new(out)
    }
    #[inline(always)]
    fn square(self) -> Self {
        let mut out = self.halves;
        for h in 0..HALVES {
            out[h] = normal(square::<W, C>(out[h]));
        }
        Self::new(out)
    }
    #[inline(always)]
    fn negate_where(self, mask: u32) -> Self {
        let mut out = self.halves;
        for h in 0..HALVES {
            let above = multiple::<W, 45>(out[h][4], Constants::<C>::ABOVE);
            let mask = part(mask, h);
            for i in 0..5 {
                // The other lanes keep their limbs, which carry nothing.
                let negated = above[i].sub(out[h][i]);
                out[h][i] = out[h][i].blend(negated, mask);
            }
            out[h] = normal(out[h]);
        }
        Self::new(out)
    }
    #[inline(always)]
    fn select(self, other: Self, mask: u32) -> Self {
        let mut out = self.halves;
        for h in 0..HALVES {
            for i in 0..5 {
                out[h][i] = out[h][i].blend(other.halves[h][i], part(mask, h));
            }
        }
        Self::new(out)
    }
    #[inline(always)]
    fn zeros(self) -> u32 {
        let mut zeros = 0;
        for h in 0..HALVES {
            let zero = multiple::<W, 45>(self.halves[h][4], Constants::<C>::ZEROS);
            let mut mask = 0xff;
            for i in 0..5 {
                mask = self.halves[h][i].equal(zero[i], mask);
            }
            zeros |= u32::from(mask) << (8 * h);
        }
        zeros
    }
    #[inline(always)]
    fn invert(self) -> Self {
        invert::<W, C>(self)
    }
}

impl<W, C> Lanes for Vector<W, C>
where
    W: Words,
    C: MontConfig<4>,
    Fp<MontBackend<C, 4>, 4>: PrimeField<BigInt = BigInteger256>,
{
    type Isa = W::Isa;
    type Element = Fp<MontBackend<C, 4>, 4>;
    type Component = Loose<W, C>;
    const RADIX: u32 = 260;

    #[inline(always)]
    fn product(a: Loose<W, C>, b: Loose<W, C>) -> Self {
        let mut out = a.halves;
        for h in 0..HALVES {
            out[h] = normal(product::<W, C>(out[h], b.halves[h]));
        }
        Self::new(out)
    }
    #[inline(always)]
    fn component_sum(a: Self, b: Self) -> Loose<W, C> {
        a.sum(b)
    }
    #[inline(always)]
    fn component_diff(a: Signed<W, C>, b: Signed<W, C>) -> Loose<W, C> {
        Self::diff_signed(a, b)
    }
    #[inline(always)]
    fn complex_mul(a: [Loose<W, C>; 2], b: [Self; 2]) -> [Self; 2] {
        let mut out = b;
        for h in 0..HALVES {
            let [x, y] = complex_product::<W, C>([a[0].halves[h], a[1].halves[h]], [b[0].halves[h], b[1].halves[h]]);
            out[0].halves[h] = normal(x);
            out[1].halves[h] = normal(y);
        }
        [Self::new(out[0].halves), Self::new(out[1].halves)]
    }
    #[inline(always)]
    fn complex_mul_sub(a: [Loose<W, C>; 2], b: [Self; 2], c: [Signed<W, C>; 2]) -> [Self; 2] {
        let mut out = b;
        for h in 0..HALVES {
            let [x, y] = complex_product::<W, C>([a[0].halves[h], a[1].halves[h]], [b[0].halves[h], b[1].halves[h]]);
            out[0].halves[h] = reduced::<W, C>(less_signed(x, c[0], h));
            out[1].halves[h] = reduced::<W, C>(less_signed(y, c[1], h));
        }
        [Self::new(out[0].halves), Self::new(out[1].halves)]
    }
    /// By (a₀ + a₁)(a₀ − a₁) and 2a₀·a₁.
    #[inline(always)]
    fn complex_square_sub(a: [Self; 2], b: [Self; 2], c: [Self; 2]) -> [Self; 2] {
        let (sum, diff, twice) = (a[0].sum(a[1]), a[0].diff(a[1]), a[0].sum(a[0]));
        let mut out = a;
        for h in 0..HALVES {
            let x = product::<W, C>(sum.halves[h], diff.halves[h]);
            let y = product::<W, C>(twice.halves[h], a[1].halves[h]);
            out[0].halves[h] = reduced::<W, C>(minus(minus(x, b[0].halves[h]), c[0].halves[h]));
            out[1].halves[h] = reduced::<W, C>(minus(minus(y, b[1].halves[h]), c[1].halves[h]));
        }
        [Self::new(out[0].halves), Self::new(out[1].halves)]
    }

    #[inline(always)]
    fn splat(isa: W::Isa, x: Self::Element) -> Self {
        // arkworks' form is x·2^256.
        let times_16 = x + x;
        let times_16 = times_16 + times_16;
        let times_16 = times_16 + times_16;
        let times_16 = times_16 + times_16;
        let limbs = split(times_16.0.0);
        Self::new([splat(W::splat(isa, 0), &limbs); HALVES])
    }
    #[inline(always)]
    fn encode(isa: W::Isa, elements: &[Self::Element]) -> Self {
        assert_eq!(elements.len(), LANES, "elements for a vector");
        let factor = splat(W::splat(isa, 0), &Constants::<C>::FROM_ARK);
        let mut out = [factor; HALVES];
        for h in 0..HALVES {
            let mut pairs = [Pair::default(); 8];
            for (pair, element) in pairs.iter_mut().zip(&elements[8 * h..]) {
                pair.0[0] = element.0.0;
            }
            let [limbs, _] = W::gather(isa, pairs.each_ref());
            out[h] = normal(product::<W, C>(narrow(limbs), factor));
        }
        Self::new(out)
    }
    #[inline(always)]
    fn decode(self, elements: &mut [Self::Element]) {
        assert_eq!(elements.len(), LANES, "elements for a vector");
        for h in 0..HALVES {
            let x = self.halves[h];
            let x = normal(product::<W, C>(x, splat(x[0], &Constants::<C>::TO_ARK)));
            let x = canonical::<W, C>(x);
            let mut pairs = [Pair::default(); 8];
            W::scatter([widen(x), widen(x)], &mut pairs);
            for (element, pair) in elements[8 * h..].iter_mut().zip(&pairs) {
                *element = Fp::new_unchecked(BigInteger256::new(pair.0[0]));
            }
        }
    }
    #[inline(always)]
    fn gather(isa: W::Isa, from: &[Pair], at: &[u32]) -> [Self; 2] {
        assert_eq!(at.len(), LANES, "indices for a vector");
        let mut out = [[[W::splat(isa, 0); 5]; HALVES]; 2];
        for h in 0..HALVES {
            let pair = |k: usize| &from[at[8 * h + k] as usize];
            let pairs = [pair(0), pair(1), pair(2), pair(3), pair(4), pair(5), pair(6), pair(7)];
            let [x, y] = W::gather(isa, pairs);
            out[0][h] = narrow(x);
            out[1][h] = narrow(y);
        }
        let [x, y] = out;
        [Self::new(x), Self::new(y)]
    }
    #[inline(always)]
    fn store(values: [Self; 2], to: &mut [Pair]) {
        assert_eq!(to.len(), LANES, "places for a vector");
        let [x, y] = values;
        let (to, _) = to.as_chunks_mut::<8>();
        for h in 0..HALVES {
            W::scatter([widen(x.halves[h]), widen(y.halves[h])], &mut to[h]);
        }
    }
    /// Limb by limb, in blocks of eight by eight words.
    #[inline(always)]
    fn transpose(_: W::Isa, square: &mut [Self]) {
        assert_eq!(square.len(), LANES, "vectors of a square");
        for a in 0..HALVES {
            for b in 0..=a {
                for i in 0..5 {
                    let (mut lower, mut upper) = ([square[0].halves[0][0]; 8], [square[0].halves[0][0]; 8]);
                    for r in 0..8 {
                        lower[r] = square[8 * a + r].halves[b][i];
                        upper[r] = square[8 * b + r].halves[a][i];
                    }
                    (lower, upper) = (W::transpose(lower), W::transpose(upper));
                    for r in 0..8 {
                        square[8 * b + r].halves[a][i] = lower[r];
                        square[8 * a + r].halves[b][i] = upper[r];
                    }
                }
            }
        }
    }
}

/// Montgomery's trick (1987) as a tree: products of two lanes, then of four, up to that of all, whose inverse is
/// propagated back the same way.
#[inline(always)]
fn invert<W: Words, C: MontConfig<4>>(x: Vector<W, C>) -> Vector<W, C>
where
    Fp<MontBackend<C, 4>, 4>: PrimeField<BigInt = BigInteger256>,
{
    let zeros = x.zeros();
    let [first, second] = x.select(Vector::splat(x.halves[0][0].isa(), Fp::ONE), zeros).halves;
    let two = times::<W, C>(first, second);
    let four = times::<W, C>(two, rotated::<W, 4>(two));
    let eight = times::<W, C>(four, rotated::<W, 2>(four));
    let all = times::<W, C>(eight, rotated::<W, 1>(eight));

    // The product is the same in every lane.
    let [a, b, c, d] = widen(all);
    let all = [a.to_array()[0], b.to_array()[0], c.to_array()[0], d.to_array()[0]];
    let inverse = splat(two[0], &split(inverse_of_integer(all, C::MODULUS.0)));
    let inverse = times::<W, C>(inverse, splat(two[0], &Constants::<C>::OF_INVERSE));

    let inverse = times::<W, C>(inverse, rotated::<W, 1>(eight));
    let inverse = times::<W, C>(inverse, rotated::<W, 2>(four));
    let inverse = times::<W, C>(inverse, rotated::<W, 4>(two));
    let inverses = Vector::new([times::<W, C>(inverse, second), times::<W, C>(inverse, first)]);
    inverses.select(x, zeros)
}

/// a·b / 2^260
#[inline(always)]
fn times<W: Words, C: MontConfig<4>>(a: [W; 5], b: [W; 5]) -> [W; 5] {
    normal(product::<W, C>(a, b))
}

/// Moves lane k + N to lane k.
#[inline(always)]
fn rotated<W: Words, const N: i32>(mut x: [W; 5]) -> [W; 5] {
    for i in 0..5 {
        x[i] = x[i].rotate::<N>();
    }
    x
}

/// Returns the same limbs in every lane. `like` proves the instruction set.
#[inline(always)]
fn splat<W: Words>(like: W, limbs: &Limbs) -> [W; 5] {
    let mut out = [like; 5];
    for i in 0..5 {
        out[i] = W::splat(like.isa(), limbs[i]);
    }
    out
}

/// a + b limb by limb
#[inline(always)]
fn plus<W: Words>(mut a: [W; 5], b: [W; 5]) -> [W; 5] {
    for i in 0..5 {
        a[i] = a[i].add(b[i]);
    }
    a
}

/// a − b limb by limb
#[inline(always)]
fn minus<W: Words>(mut a: [W; 5], b: [W; 5]) -> [W; 5] {
    for i in 0..5 {
        a[i] = a[i].sub(b[i]);
    }
    a
}

/// Looks up the multiple of p whose index is in three bits of the top limb, from bit `BIT` up.
#[inline(always)]
fn multiple<W: Words, const BIT: u32>(top: W, table: &'static Table) -> [W; 5] {
    let number = top.shr::<BIT>();
    let mut out = [top; 5];
    for i in 0..5 {
        out[i] = number.look_up(W::load(top.isa(), &table[i]));
    }
    out
}

/// x minus such a multiple, limb by limb
#[inline(always)]
fn minus_multiple<W: Words, const BIT: u32>(x: [W; 5], table: &'static Table) -> [W; 5] {
    minus(x, multiple::<W, BIT>(x[4], table))
}

/// 6p − x in the lanes whose bit is set, x in the others, for elements x; at most 6p. Limbs may be negative.
#[inline(always)]
fn below_6p<W: Words, C: MontConfig<4>>(mut x: [W; 5], mask: u8) -> [W; 5] {
    let p6 = splat(x[0], &Constants::<C>::P6);
    for i in 0..5 {
        x[i] = x[i].blend(p6[i].sub(x[i]), mask);
    }
    x
}

/// A product minus one half of signed elements, limb by limb
#[inline(always)]
fn less_signed<W: Words, C>(mut x: [W; 5], c: Signed<W, C>, half: usize) -> [W; 5] {
    let (c, minus) = (c.value.halves[half], part(c.minus, half));
    for i in 0..5 {
        x[i] = x[i].sub(c[i]).blend(x[i].add(c[i]), minus);
    }
    x
}

/// Reduces a product from which at most two elements were subtracted, or to which one was added, limb by limb.
#[inline(always)]
fn reduced_inlined<W: Words, C: MontConfig<4>>(mut x: [W; 5]) -> [W; 5] {
    let number = x[4].shr::<46>();
    for i in 0..5 {
        let [low, high] = &Constants::<C>::OF_PRODUCT[i];
        let tables = [W::load(number.isa(), low), W::load(number.isa(), high)];
        x[i] = x[i].sub(number.look_up_16(tables));
    }
    normal(x)
}

/// Adds what the limbs have above 52 bits, or below zero, to the next limbs: the low 52 bits are correct then, and so
/// is the top limb. The value must not be negative.
#[inline(always)]
fn carried<W: Words>(mut x: [W; 5]) -> [W; 5] {
    for i in 0..4 {
        x[i + 1] = x[i + 1].add(x[i].sar::<BITS>());
    }
    x
}

/// Carries as [`carried`] does, and keeps only the low 52 bits of the lower limbs.
#[inline(always)]
fn normal<W: Words>(x: [W; 5]) -> [W; 5] {
    let mut x = carried(x);
    let mask = W::splat(x[0].isa(), MASK);
    for limb in &mut x[..4] {
        *limb = limb.and(mask);
    }
    x
}

/// Returns the least representative, with limbs below 2^52, of one below 2^256.
#[inline(always)]
fn canonical<W: Words, C: MontConfig<4>>(x: [W; 5]) -> [W; 5] {
    let x = normal(minus_multiple::<W, 45>(x, Constants::<C>::OF_ELEMENT));
    let mut less = normal(minus(x, splat(x[0], &Constants::<C>::P)));
    let negative = less[4].negative();
    for i in 0..5 {
        less[i] = less[i].blend(x[i], negative);
    }
    less
}

/// Converts four limbs of 64 bits to five of 52.
#[inline(always)]
fn narrow<W: Words>(x: [W; 4]) -> [W; 5] {
    let mask = W::splat(x[0].isa(), MASK);
    [
        x[0].and(mask),
        x[0].shr::<52>().or(x[1].shl::<12>()).and(mask),
        x[1].shr::<40>().or(x[2].shl::<24>()).and(mask),
        x[2].shr::<28>().or(x[3].shl::<36>()).and(mask),
        x[3].shr::<16>(),
    ]
}

/// Converts five limbs of 52 bits, the highest of 48, to four of 64.
#[inline(always)]
fn widen<W: Words>(x: [W; 5]) -> [W; 4] {
    [
        x[0].or(x[1].shl::<52>()),
        x[1].shr::<12>().or(x[2].shl::<40>()),
        x[2].shr::<24>().or(x[3].shl::<28>()),
        x[3].shr::<36>().or(x[4].shl::<16>()),
    ]
}

/// A step that debug builds compile as a separate function for the instruction set, as kernels are. Inlined wherever it
/// is used, as in release builds, it would take the compiler minutes.
macro_rules! step {
    ($name:ident is $inlined:ident($($argument:ident: $type:ty),+), by $word:expr) => {
        #[cfg(not(debug_assertions))]
        use self::$inlined as $name;

        #[cfg(debug_assertions)]
        #[inline(always)]
        fn $name<W: Words, C: MontConfig<4>>($($argument: $type),+) -> [W; 5] {
            struct Step<W, C>($($type,)+ PhantomData<C>);

            impl<W: Words, C: MontConfig<4>> Kernel<W::Isa> for Step<W, C> {
                type Out = [W; 5];

                #[inline(always)]
                fn run(self, _: W::Isa) -> [W; 5] {
                    let Self($($argument,)+ _) = self;
                    $inlined::<W, C>($($argument),+)
                }
            }
            $word.isa().enter(Step::<W, C>($($argument,)+ PhantomData))
        }
    };
}

step!(product is product_inlined(a: [W; 5], b: [W; 5]), by a[0]);
step!(square is square_inlined(a: [W; 5]), by a[0]);
step!(sum_of_products is sum_of_products_inlined(a: [[W; 5]; 2], b: [[W; 5]; 2]), by a[0][0]);
step!(reduced is reduced_inlined(x: [W; 5]), by x[0]);

/// Adds m·c at limb `at` of ten columns.
#[inline(always)]
fn add_row<W: Words>(columns: &mut [W; 10], at: usize, m: W, c: &[W; 5]) {
    for j in 0..5 {
        columns[at + j] = columns[at + j].madd_low(m, c[j]);
        columns[at + j + 1] = columns[at + j + 1].madd_high(m, c[j]);
    }
}

/// Eliminates two digits, limbs `at` and `at` + 1 of ten columns, by adding what they are worth at limb `at` + 2. The
/// columns must be below 2^63; their bits above 52 are carried.
#[inline(always)]
fn eliminate_two_digits<W: Words, C: MontConfig<4>>(columns: &mut [W; 10], at: usize) {
    let [one, two] = &Constants::<C>::SHIFTS;
    let first = columns[at];
    let second = columns[at + 1].add(first.shr::<BITS>());
    columns[at + 2] = columns[at + 2].add(second.shr::<BITS>());
    add_row(columns, at + 2, first, &splat(first, two));
    add_row(columns, at + 2, second, &splat(first, one));
}

/// Eliminates the fifth digit and returns the five limbs above it.
#[inline(always)]
fn eliminate_last_digit<W: Words, C: MontConfig<4>>(columns: &mut [W; 10]) -> [W; 5] {
    let last = columns[4];
    let isa = last.isa();
    let digit = W::splat(isa, 0).madd_low(last, W::splat(isa, Constants::<C>::DIGIT));
    let p = splat(last, &Constants::<C>::P);
    // The low product with p's lowest limb would make the low 52 bits zero: it carries one unless they were zero.
    let carry = last.add(W::splat(isa, MASK)).shr::<BITS>();
    columns[5] = columns[5].add(carry).madd_high(digit, p[0]);
    for j in 1..5 {
        columns[4 + j] = columns[4 + j].madd_low(digit, p[j]);
        columns[5 + j] = columns[5 + j].madd_high(digit, p[j]);
    }
    let [.., a, b, c, d, e] = *columns;
    [a, b, c, d, e]
}

/// a·b / 2^260, for factors of at most 12p. The limbs, below 2^57, are not yet [`normal`], here and in all products.
#[inline(always)]
fn product_inlined<W: Words, C: MontConfig<4>>(a: [W; 5], b: [W; 5]) -> [W; 5] {
    let mut columns = [W::splat(a[0].isa(), 0); 10];
    // Digits are eliminated as soon as they are complete, so that few columns are live at a time.
    add_row(&mut columns, 0, b[0], &a);
    add_row(&mut columns, 1, b[1], &a);
    eliminate_two_digits::<W, C>(&mut columns, 0);
    add_row(&mut columns, 2, b[2], &a);
    add_row(&mut columns, 3, b[3], &a);
    eliminate_two_digits::<W, C>(&mut columns, 2);
    add_row(&mut columns, 4, b[4], &a);
    eliminate_last_digit::<W, C>(&mut columns)
}

/// The components of (a₀ + a₁·i)·(b₀ + b₁·i) / 2^260, for factors a of at most 12p and b below 2^256
///
/// Four products, pairs of which share a reduction: as many multiply-adds as Karatsuba's three products and three
/// reductions, and no sums. The bound is
///
/// ```text
/// (12p·2^256 + 12p·6p)/2^260 + p + p + p  <  1.61p + 3p  <  2^256
/// ```
#[inline(always)]
fn complex_product<W: Words, C: MontConfig<4>>(a: [[W; 5]; 2], b: [[W; 5]; 2]) -> [[W; 5]; 2] {
    let negative = carried(below_6p::<W, C>(b[1], 0xff));
    [sum_of_products::<W, C>(a, [b[0], negative]), sum_of_products::<W, C>(a, [b[1], b[0]])]
}

/// (a₀·b₀ + a₁·b₁) / 2^260
#[inline(always)]
fn sum_of_products_inlined<W: Words, C: MontConfig<4>>(a: [[W; 5]; 2], b: [[W; 5]; 2]) -> [W; 5] {
    let mut columns = [W::splat(a[0][0].isa(), 0); 10];
    for j in 0..5 {
        add_row(&mut columns, j, b[0][j], &a[0]);
        add_row(&mut columns, j, b[1][j], &a[1]);
        if j % 2 == 1 {
            eliminate_two_digits::<W, C>(&mut columns, j - 1);
        }
    }
    eliminate_last_digit::<W, C>(&mut columns)
}

/// a² / 2^260, for a factor of at most 12p; the limbs are as for [`product_inlined`].
#[inline(always)]
fn square_inlined<W: Words, C: MontConfig<4>>(a: [W; 5]) -> [W; 5] {
    let mut columns = [W::splat(a[0].isa(), 0); 10];
    // The products of different limbs count twice.
    for i in 0..5 {
        for j in i + 1..5 {
            columns[i + j] = columns[i + j].madd_low(a[i], a[j]);
            columns[i + j + 1] = columns[i + j + 1].madd_high(a[i], a[j]);
        }
    }
    for column in &mut columns[1..9] {
        *column = column.add(*column);
    }
    for i in 0..5 {
        columns[2 * i] = columns[2 * i].madd_low(a[i], a[i]);
        columns[2 * i + 1] = columns[2 * i + 1].madd_high(a[i], a[i]);
    }
    eliminate_two_digits::<W, C>(&mut columns, 0);
    eliminate_two_digits::<W, C>(&mut columns, 2);
    eliminate_last_digit::<W, C>(&mut columns)
}
