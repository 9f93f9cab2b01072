//! The operations on arrays, as the instructions are defined: for tests on CPUs without them.

use std::array::from_fn;

use ark_bn254::{FqConfig, FrConfig};
use zeroize::Zeroize;

use super::super::{Isa, Kernel, Pair};
use super::field::{self, Vector};
use super::words::Words;

/// AVX-512 with IFMA in software.
#[derive(Clone, Copy, Debug)]
pub(in crate::backend::cpu) struct EmulatedIfma;

impl Isa for EmulatedIfma {
    const NAME: &'static str = "emulated avx512ifma";
    const LANES: usize = field::LANES;
    type Fq = Vector<Emulated, FqConfig>;
    type Fr = Vector<Emulated, FrConfig>;

    #[inline(never)]
    fn enter<K: Kernel<Self>>(self, kernel: K) -> K::Out {
        kernel.run(self)
    }
}

/// Eight words in memory.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(in crate::backend::cpu) struct Emulated(pub(super) [u64; 8]);

/// Returns the product of the low 52 bits.
fn product(a: u64, b: u64) -> u128 {
    let low = |x: u64| u128::from(x & ((1 << 52) - 1));
    low(a) * low(b)
}

fn mask(bit: impl Fn(usize) -> bool) -> u8 {
    (0..8).fold(0, |m, k| m | u8::from(bit(k)) << k)
}

impl Words for Emulated {
    type Isa = EmulatedIfma;

    fn isa(self) -> EmulatedIfma {
        EmulatedIfma
    }
    fn splat(_: EmulatedIfma, word: u64) -> Self {
        Self([word; 8])
    }
    fn load(_: EmulatedIfma, words: &[u64; 8]) -> Self {
        Self(*words)
    }
    fn to_array(self) -> [u64; 8] {
        self.0
    }
    fn add(self, other: Self) -> Self {
        Self(from_fn(|k| self.0[k].wrapping_add(other.0[k])))
    }
    fn sub(self, other: Self) -> Self {
        Self(from_fn(|k| self.0[k].wrapping_sub(other.0[k])))
    }
    fn and(self, other: Self) -> Self {
        Self(from_fn(|k| self.0[k] & other.0[k]))
    }
    fn or(self, other: Self) -> Self {
        Self(from_fn(|k| self.0[k] | other.0[k]))
    }
    fn shr<const N: u32>(self) -> Self {
        Self(self.0.map(|x| x >> N))
    }
    fn sar<const N: u32>(self) -> Self {
        Self(self.0.map(|x| (x as i64 >> N) as u64))
    }
    fn shl<const N: u32>(self) -> Self {
        Self(self.0.map(|x| x << N))
    }
    fn madd_low(self, a: Self, b: Self) -> Self {
        Self(from_fn(|k| self.0[k].wrapping_add(product(a.0[k], b.0[k]) as u64 & ((1 << 52) - 1))))
    }
    fn madd_high(self, a: Self, b: Self) -> Self {
        Self(from_fn(|k| self.0[k].wrapping_add((product(a.0[k], b.0[k]) >> 52) as u64)))
    }
    fn look_up(self, table: Self) -> Self {
        Self(self.0.map(|x| table.0[(x & 7) as usize]))
    }
    fn look_up_16(self, tables: [Self; 2]) -> Self {
        Self(self.0.map(|x| tables[(x >> 3 & 1) as usize].0[(x & 7) as usize]))
    }
    fn blend(self, other: Self, mask: u8) -> Self {
        Self(from_fn(|k| if mask >> k & 1 == 1 { other.0[k] } else { self.0[k] }))
    }
    fn equal(self, other: Self, among: u8) -> u8 {
        among & mask(|k| self.0[k] == other.0[k])
    }
    fn negative(self) -> u8 {
        mask(|k| (self.0[k] as i64) < 0)
    }
    fn rotate<const N: i32>(self) -> Self {
        Self(from_fn(|k| self.0[(k + N as usize) % 8]))
    }
    fn transpose(square: [Self; 8]) -> [Self; 8] {
        from_fn(|q| Self(from_fn(|k| square[k].0[q])))
    }
    fn gather(_: EmulatedIfma, pairs: [&Pair; 8]) -> [[Self; 4]; 2] {
        from_fn(|e| from_fn(|i| Self(from_fn(|k| pairs[k].0[e][i]))))
    }
    fn scatter(limbs: [[Self; 4]; 2], pairs: &mut [Pair; 8]) {
        *pairs = from_fn(|k| Pair(from_fn(|e| from_fn(|i| limbs[e][i].0[k]))));
    }
    fn clear(&mut self) {
        self.0.zeroize();
    }
}
