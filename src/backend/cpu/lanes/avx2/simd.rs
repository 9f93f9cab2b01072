//! The instructions used, as functions that are compiled for AVX2 where they are inlined.

use std::arch::x86_64::*;

macro_rules! instructions {
    ($($name:ident($($x:ident: $t:ty),*) -> $out:ty = $instruction:expr;)*) => {
        $(
            #[inline(always)]
            pub(super) fn $name($($x: $t),*) -> $out {
                // SAFETY: whoever has a vector of this instruction set, or the set's value to make one from, found by
                // detection that the processor has these instructions.
                unsafe { $instruction }
            }
        )*
    };
}

instructions! {
    splat(x: f64) -> __m256d = _mm256_set1_pd(x);
    add(a: __m256d, b: __m256d) -> __m256d = _mm256_add_pd(a, b);
    sub(a: __m256d, b: __m256d) -> __m256d = _mm256_sub_pd(a, b);
    mul(a: __m256d, b: __m256d) -> __m256d = _mm256_mul_pd(a, b);
    mul_add(a: __m256d, b: __m256d, c: __m256d) -> __m256d = _mm256_fmadd_pd(a, b, c);
    round(a: __m256d) -> __m256d = _mm256_round_pd::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(a);
    or(a: __m256d, b: __m256d) -> __m256d = _mm256_or_pd(a, b);
    xor(a: __m256d, b: __m256d) -> __m256d = _mm256_xor_pd(a, b);
    and(a: __m256d, b: __m256d) -> __m256d = _mm256_and_pd(a, b);
    // b where the sign of `by` is set.
    blend(a: __m256d, b: __m256d, by: __m256d) -> __m256d = _mm256_blendv_pd(a, b, by);
    is_zero(a: __m256d) -> u32 = _mm256_movemask_pd(_mm256_cmp_pd::<_CMP_EQ_OQ>(a, _mm256_setzero_pd())) as u32;
    // Signs by the low four bits.
    signs(bits: u32) -> __m256d = {
        let up = _mm256_set_epi64x(60, 61, 62, 63);
        _mm256_and_pd(_mm256_castsi256_pd(_mm256_sllv_epi64(_mm256_set1_epi64x(i64::from(bits)), up)), splat(-0.0))
    };
    bits(a: __m256d) -> __m256i = _mm256_castpd_si256(a);
    double(a: __m256i) -> __m256d = _mm256_castsi256_pd(a);
    int_splat(x: u64) -> __m256i = _mm256_set1_epi64x(x as i64);
    int_add(a: __m256i, b: __m256i) -> __m256i = _mm256_add_epi64(a, b);
    int_and(a: __m256i, b: __m256i) -> __m256i = _mm256_and_si256(a, b);
    int_or(a: __m256i, b: __m256i) -> __m256i = _mm256_or_si256(a, b);
    // Lane i of part k of the result is lane k of part i.
    transpose(x: [__m256i; 4]) -> [__m256i; 4] = {
        let low = [_mm256_unpacklo_epi64(x[0], x[1]), _mm256_unpacklo_epi64(x[2], x[3])];
        let high = [_mm256_unpackhi_epi64(x[0], x[1]), _mm256_unpackhi_epi64(x[2], x[3])];
        [
            _mm256_permute2x128_si256::<0x20>(low[0], low[1]),
            _mm256_permute2x128_si256::<0x20>(high[0], high[1]),
            _mm256_permute2x128_si256::<0x31>(low[0], low[1]),
            _mm256_permute2x128_si256::<0x31>(high[0], high[1]),
        ]
    };
    load(x: &[u64; 4]) -> __m256i = _mm256_loadu_si256(x.as_ptr().cast());
    write(x: __m256i, to: &mut [u64; 4]) -> () = _mm256_storeu_si256(to.as_mut_ptr().cast(), x);
}

/// x·2^N
#[inline(always)]
pub(super) fn left<const N: i32>(x: __m256i) -> __m256i {
    // SAFETY: as above.
    unsafe { _mm256_slli_epi64::<N>(x) }
}

/// x/2^N, rounded down, of integers that are not negative
#[inline(always)]
pub(super) fn right<const N: i32>(x: __m256i) -> __m256i {
    // SAFETY: as above.
    unsafe { _mm256_srli_epi64::<N>(x) }
}
