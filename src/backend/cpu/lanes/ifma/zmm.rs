//! The CPU's 512-bit registers.
#![allow(unsafe_code)]

use core::arch::x86_64::*;

use ark_bn254::{FqConfig, FrConfig};
use zeroize::Zeroize;

use super::super::{Isa, Kernel, Pair};
use super::field::{self, Vector};
use super::words::Words;

/// AVX-512 with IFMA. A value proves that the CPU has the instructions: only [`Avx512Ifma::detect`] makes one, and only
/// [`Zmm`] is made from it.
#[derive(Clone, Copy, Debug)]
pub(in crate::backend::cpu) struct Avx512Ifma(());

impl Avx512Ifma {
    /// Returns the instruction set, if this CPU and the operating system support it.
    pub(in crate::backend::cpu) fn detect() -> Option<Self> {
        let found = is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512vl")
            && is_x86_feature_detected!("avx512ifma")
            && is_x86_feature_detected!("avx2")
            && is_x86_feature_detected!("bmi2")
            && is_x86_feature_detected!("popcnt");
        found.then_some(Self(()))
    }
}

impl Isa for Avx512Ifma {
    const NAME: &'static str = "avx512ifma";
    const LANES: usize = field::LANES;
    type Fq = Vector<Zmm, FqConfig>;
    type Fr = Vector<Zmm, FrConfig>;

    #[inline]
    fn enter<K: Kernel<Self>>(self, kernel: K) -> K::Out {
        #[target_feature(enable = "avx512f,avx512dq,avx512vl,avx512ifma,avx2,bmi2,popcnt")]
        #[cfg_attr(debug_assertions, inline(never))]
        fn compiled<K: Kernel<Avx512Ifma>>(isa: Avx512Ifma, kernel: K) -> K::Out {
            kernel.run(isa)
        }
        // SAFETY: `self` comes from `detect`, so the CPU has these features.
        unsafe { compiled(self, kernel) }
    }
}

/// A register.
///
/// The intrinsics below are safe to execute because their callers have a `Zmm` or an [`Avx512Ifma`], and neither exists
/// unless [`Avx512Ifma::detect`] found the features. The reason given with each block is this one.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub(in crate::backend::cpu) struct Zmm(__m512i);

/// Words 0, 1, 4 and 5 of the first operand of `vpermi2q`, each pair followed by that of the second.
const EVEN_PAIRS: [u64; 8] = [0, 1, 8, 9, 4, 5, 12, 13];
/// Words 2, 3, 6 and 7, likewise.
const ODD_PAIRS: [u64; 8] = [2, 3, 10, 11, 6, 7, 14, 15];

/// Returns the even words of two vectors, alternately; then the odd ones.
#[inline(always)]
fn interleave(a: Zmm, b: Zmm) -> [Zmm; 2] {
    // SAFETY: the CPU has AVX-512F, as the vectors prove.
    unsafe { [Zmm(_mm512_unpacklo_epi64(a.0, b.0)), Zmm(_mm512_unpackhi_epi64(a.0, b.0))] }
}

/// Returns the even 128-bit lanes of two vectors, one vector's after the other's; then the odd ones.
#[inline(always)]
fn quarters(a: Zmm, b: Zmm) -> [Zmm; 2] {
    // SAFETY: the CPU has AVX-512F, as the vectors prove.
    unsafe { [Zmm(_mm512_shuffle_i64x2::<0x88>(a.0, b.0)), Zmm(_mm512_shuffle_i64x2::<0xdd>(a.0, b.0))] }
}

impl Words for Zmm {
    type Isa = Avx512Ifma;

    #[inline(always)]
    fn isa(self) -> Avx512Ifma {
        Avx512Ifma(())
    }
    #[inline(always)]
    fn splat(_: Avx512Ifma, word: u64) -> Self {
        // SAFETY: the CPU has AVX-512F, as the `Avx512Ifma` proves.
        Self(unsafe { _mm512_set1_epi64(word as i64) })
    }
    #[inline(always)]
    fn load(_: Avx512Ifma, words: &[u64; 8]) -> Self {
        // SAFETY: the CPU has AVX-512F, as the `Avx512Ifma` proves; 64 bytes are readable at `words`, and the load
        // needs no alignment.
        Self(unsafe { _mm512_loadu_si512(words.as_ptr().cast()) })
    }
    #[inline(always)]
    fn to_array(self) -> [u64; 8] {
        let mut words = [0; 8];
        // SAFETY: the CPU has AVX-512F, as `self` proves; `words` has 64 bytes, and the store needs no alignment.
        unsafe { _mm512_storeu_si512(words.as_mut_ptr().cast(), self.0) };
        words
    }
    #[inline(always)]
    fn add(self, other: Self) -> Self {
        // SAFETY: the CPU has AVX-512F, as `self` proves.
        Self(unsafe { _mm512_add_epi64(self.0, other.0) })
    }
    #[inline(always)]
    fn sub(self, other: Self) -> Self {
        // SAFETY: the CPU has AVX-512F, as `self` proves.
        Self(unsafe { _mm512_sub_epi64(self.0, other.0) })
    }
    #[inline(always)]
    fn and(self, other: Self) -> Self {
        // SAFETY: the CPU has AVX-512F, as `self` proves.
        Self(unsafe { _mm512_and_si512(self.0, other.0) })
    }
    #[inline(always)]
    fn or(self, other: Self) -> Self {
        // SAFETY: the CPU has AVX-512F, as `self` proves.
        Self(unsafe { _mm512_or_si512(self.0, other.0) })
    }
    #[inline(always)]
    fn shr<const N: u32>(self) -> Self {
        // SAFETY: the CPU has AVX-512F, as `self` proves.
        Self(unsafe { _mm512_srli_epi64::<N>(self.0) })
    }
    #[inline(always)]
    fn sar<const N: u32>(self) -> Self {
        // SAFETY: the CPU has AVX-512F, as `self` proves.
        Self(unsafe { _mm512_srai_epi64::<N>(self.0) })
    }
    #[inline(always)]
    fn shl<const N: u32>(self) -> Self {
        // SAFETY: the CPU has AVX-512F, as `self` proves.
        Self(unsafe { _mm512_slli_epi64::<N>(self.0) })
    }
    #[inline(always)]
    fn madd_low(self, a: Self, b: Self) -> Self {
        // SAFETY: the CPU has AVX-512 IFMA, as `self` proves.
        Self(unsafe { _mm512_madd52lo_epu64(self.0, a.0, b.0) })
    }
    #[inline(always)]
    fn madd_high(self, a: Self, b: Self) -> Self {
        // SAFETY: the CPU has AVX-512 IFMA, as `self` proves.
        Self(unsafe { _mm512_madd52hi_epu64(self.0, a.0, b.0) })
    }
    #[inline(always)]
    fn look_up(self, table: Self) -> Self {
        // SAFETY: the CPU has AVX-512F, as `self` proves.
        Self(unsafe { _mm512_permutexvar_epi64(self.0, table.0) })
    }
    #[inline(always)]
    fn look_up_16(self, [low, high]: [Self; 2]) -> Self {
        // SAFETY: the CPU has AVX-512F, as `self` proves.
        Self(unsafe { _mm512_permutex2var_epi64(low.0, self.0, high.0) })
    }
    #[inline(always)]
    fn blend(self, other: Self, mask: u8) -> Self {
        // SAFETY: the CPU has AVX-512F, as `self` proves.
        Self(unsafe { _mm512_mask_blend_epi64(mask, self.0, other.0) })
    }
    #[inline(always)]
    fn equal(self, other: Self, mask: u8) -> u8 {
        // SAFETY: the CPU has AVX-512F, as `self` proves.
        unsafe { _mm512_mask_cmpeq_epi64_mask(mask, self.0, other.0) }
    }
    #[inline(always)]
    fn negative(self) -> u8 {
        // SAFETY: the CPU has AVX-512DQ, as `self` proves.
        unsafe { _mm512_movepi64_mask(self.0) }
    }

    #[inline(always)]
    fn rotate<const N: i32>(self) -> Self {
        // SAFETY: the CPU has AVX-512F, as `self` proves.
        Self(unsafe { _mm512_alignr_epi64::<N>(self.0, self.0) })
    }
    #[inline(always)]
    fn transpose(square: [Self; 8]) -> [Self; 8] {
        let [a, b, c, d, e, f, g, h] = square;
        let [[ab, ba], [cd, dc]] = [interleave(a, b), interleave(c, d)];
        let [[ef, fe], [gh, hg]] = [interleave(e, f), interleave(g, h)];
        // 128-bit lane m of `ab` and the like is column 2m, that of `ba` and the like column 2m + 1.
        let ([low, low_2], [high, high_2]) = (quarters(ab, cd), quarters(ef, gh));
        let ([c0, c4], [c2, c6]) = (quarters(low, high), quarters(low_2, high_2));
        let ([low, low_2], [high, high_2]) = (quarters(ba, dc), quarters(fe, hg));
        let ([c1, c5], [c3, c7]) = (quarters(low, high), quarters(low_2, high_2));
        [c0, c1, c2, c3, c4, c5, c6, c7]
    }
    #[inline(always)]
    fn gather(isa: Avx512Ifma, pairs: [&Pair; 8]) -> [[Self; 4]; 2] {
        let (even, odd) = (Self::load(isa, &EVEN_PAIRS).0, Self::load(isa, &ODD_PAIRS).0);
        let mut limbs = [[Self::splat(isa, 0); 4]; 2];
        for (e, limbs) in limbs.iter_mut().enumerate() {
            let half = |k: usize| -> *const __m256i { pairs[k].0[e].as_ptr().cast() };
            // SAFETY: the CPU has AVX-512F and AVX2, as `isa` proves; each pointer is to four words in `pairs`, and
            // these loads need no alignment.
            *limbs = unsafe {
                // Row k has the four limbs of lane k, then those of lane k + 4. Joining halves from memory spares the
                // only shuffle port that Intel's CPUs have at this width.
                let row = |k| {
                    let low = _mm512_castsi256_si512(_mm256_loadu_si256(half(k)));
                    _mm512_inserti64x4::<1>(low, _mm256_loadu_si256(half(k + 4)))
                };
                let rows = [row(0), row(1), row(2), row(3)];
                let (l0, h0) = (_mm512_unpacklo_epi64(rows[0], rows[1]), _mm512_unpackhi_epi64(rows[0], rows[1]));
                let (l1, h1) = (_mm512_unpacklo_epi64(rows[2], rows[3]), _mm512_unpackhi_epi64(rows[2], rows[3]));
                [
                    Self(_mm512_permutex2var_epi64(l0, even, l1)),
                    Self(_mm512_permutex2var_epi64(h0, even, h1)),
                    Self(_mm512_permutex2var_epi64(l0, odd, l1)),
                    Self(_mm512_permutex2var_epi64(h0, odd, h1)),
                ]
            };
        }
        limbs
    }
    #[inline(always)]
    fn scatter(limbs: [[Self; 4]; 2], pairs: &mut [Pair; 8]) {
        let isa = limbs[0][0].isa();
        let (even, odd) = (Self::load(isa, &EVEN_PAIRS).0, Self::load(isa, &ODD_PAIRS).0);
        for (e, [w0, w1, w2, w3]) in limbs.into_iter().enumerate() {
            // SAFETY: the CPU has AVX-512F and AVX2, as the limbs prove; each pointer is to four words in `pairs`, and
            // these stores need no alignment.
            unsafe {
                let l0 = _mm512_permutex2var_epi64(w0.0, even, w2.0);
                let h0 = _mm512_permutex2var_epi64(w1.0, even, w3.0);
                let l1 = _mm512_permutex2var_epi64(w0.0, odd, w2.0);
                let h1 = _mm512_permutex2var_epi64(w1.0, odd, w3.0);
                // Row k has lane k again, then lane k + 4.
                let rows = [
                    _mm512_unpacklo_epi64(l0, h0),
                    _mm512_unpackhi_epi64(l0, h0),
                    _mm512_unpacklo_epi64(l1, h1),
                    _mm512_unpackhi_epi64(l1, h1),
                ];
                for (k, row) in rows.into_iter().enumerate() {
                    let (low, high) = (_mm512_castsi512_si256(row), _mm512_extracti64x4_epi64::<1>(row));
                    _mm256_storeu_si256(pairs[k].0[e].as_mut_ptr().cast(), low);
                    _mm256_storeu_si256(pairs[k + 4].0[e].as_mut_ptr().cast(), high);
                }
            }
        }
    }
    fn clear(&mut self) {
        // SAFETY: a register is 64 bytes, aligned to more than a word, and any words are a valid register; the pointer
        // is to `self`, which is mutably borrowed for as long.
        unsafe { &mut *std::ptr::from_mut(self).cast::<[u64; 8]>() }.zeroize();
    }
}
