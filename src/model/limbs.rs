//! Numbers of 256 bits as four 64-bit limbs, and as 32 little-endian bytes.

use ark_ff::{BigInt, BigInteger as _, BigInteger256, PrimeField};

/// Decodes four limbs from 32 little-endian bytes, without reduction.
pub(crate) fn limbs(b: &[u8]) -> BigInteger256 {
    let mut out = [0u64; 4];
    for (limb, bytes) in out.iter_mut().zip(b.chunks_exact(8)) {
        let mut w = [0; 8];
        w.copy_from_slice(bytes);
        *limb = u64::from_le_bytes(w);
    }
    BigInt(out)
}

/// Encodes four limbs as 32 little-endian bytes; the inverse of [`limbs`].
#[inline]
pub(crate) fn limb_bytes(v: &BigInteger256) -> [u8; 32] {
    let mut out = [0; 32];
    for (bytes, limb) in out.chunks_exact_mut(8).zip(v.0) {
        bytes.copy_from_slice(&limb.to_le_bytes());
    }
    out
}

/// Reduces a number modulo the order of the field `F`, by at most five subtractions: 2^256 is less than six times q or
/// r.
///
/// Always inlined, because the CPU's kernels call it in code that is compiled for an instruction set.
#[inline(always)]
pub(crate) fn reduced<F: PrimeField<BigInt = BigInteger256>>(mut v: BigInteger256) -> BigInteger256 {
    while v >= F::MODULUS {
        v.sub_with_borrow(&F::MODULUS);
    }
    v
}

#[cfg(test)]
mod tests {
    use ark_ff::UniformRand as _;
    use ark_std::test_rng;

    use super::super::{Fq, Fr};
    use super::*;

    #[test]
    fn bytes_of_limbs_are_little_endian() {
        let v: BigInteger256 = BigInt([0x0807_0605_0403_0201, 0, 0, 0x2000_0000_0000_0000]);
        let bytes = limb_bytes(&v);
        assert_eq!((&bytes[..8], bytes[31]), ([1, 2, 3, 4, 5, 6, 7, 8].as_slice(), 0x20));
        assert_eq!(limbs(&bytes), v);
    }

    fn is_reduced<F: PrimeField<BigInt = BigInteger256>>() {
        let mut rng = test_rng();
        let minus_one = (-F::one()).into_bigint();
        let random = std::iter::repeat_with(|| BigInteger256::rand(&mut rng)).take(100);
        for v in [BigInt([0; 4]), BigInt([u64::MAX; 4]), F::MODULUS, minus_one].into_iter().chain(random) {
            assert_eq!(reduced::<F>(v), F::from_le_bytes_mod_order(&limb_bytes(&v)).into_bigint());
        }
    }

    #[test]
    fn numbers_are_reduced_in_either_field() {
        is_reduced::<Fq>();
        is_reduced::<Fr>();
    }
}
