//! The proving key, over the bytes of a zkey.

use ark_ff::{BigInt, BigInteger256};
use bytes::Bytes;

use super::{Fq, Fq2, G1Affine, G2Affine, VerificationKey};

/// Numbers and fixed points of a proving key.
#[derive(Clone, Debug)]
pub struct KeyHeader {
    /// Wires, the constant 1 included.
    pub n_vars: u32,
    /// Public outputs and inputs.
    pub n_public: u32,
    /// Size of the evaluation domain, a power of two of at most 2^28.
    pub domain_size: u32,
    /// \[β\]₁
    pub beta_g1: G1Affine,
    /// \[δ\]₁
    pub delta_g1: G1Affine,
    /// α, β, γ, δ and IC.
    pub vk: VerificationKey,
}

/// Raw bytes of the sections that proving reads, each of exactly the length the header calls for.
///
/// Points are affine, two (G1) or four (G2) coordinates of 32 bytes each, little-endian, Montgomery with R = 2^256;
/// infinity is all zeros.
#[derive(Clone)]
pub struct KeySections {
    /// Entries of the matrices A and B, 44 bytes each, without the leading count.
    pub coefficients: Bytes,
    /// A, G1, one a wire.
    pub a: Bytes,
    /// B in G1, one a wire.
    pub b1: Bytes,
    /// B in G2, one a wire.
    pub b2: Bytes,
    /// C, G1, one a private wire.
    pub c: Bytes,
    /// H, G1, one a point of the domain.
    pub h: Bytes,
}

/// One entry of the constraint matrices.
#[derive(Clone, Copy, Debug)]
pub struct CoefficientEntry {
    /// Raw matrix number as the file has it: 0 is A, 1 is B.
    pub matrix: u32,
    /// Constraint.
    pub row: u32,
    /// Wire.
    pub signal: u32,
    /// v·R² mod r: its Montgomery product with a plain value w is v·w in Montgomery form.
    pub value: BigInteger256,
}

/// A proving key: a parsed header over sections that stay where they are (a memory map, as a rule).
///
/// The sections have the right lengths; their content is as trustworthy as its source. `formats::zkey::check` looks
/// at every byte, and whoever registers a circuit runs it.
#[derive(Clone)]
pub struct ProvingKey {
    /// Numbers and fixed points; decoded and checked.
    pub header: KeyHeader,
    /// The rest, as it is in the file.
    pub sections: KeySections,
}

/// Bytes of a G1 point.
pub(crate) const G1_BYTES: usize = 64;
/// Bytes of a G2 point.
pub(crate) const G2_BYTES: usize = 128;
/// Bytes of a matrix entry.
pub(crate) const ENTRY_BYTES: usize = 44;

impl ProvingKey {
    /// Bytes of the sections proving reads.
    pub fn size(&self) -> usize {
        let s = &self.sections;
        [&s.coefficients, &s.a, &s.b1, &s.b2, &s.c, &s.h].iter().map(|b| b.len()).sum()
    }

    /// Number of matrix entries.
    pub fn n_coefficients(&self) -> usize {
        self.sections.coefficients.len() / ENTRY_BYTES
    }

    /// The matrix entries, unchecked.
    pub fn coefficients(&self) -> impl ExactSizeIterator<Item = CoefficientEntry> + '_ {
        self.sections.coefficients.chunks_exact(ENTRY_BYTES).map(entry)
    }
}

/// One matrix entry from its 44 bytes.
pub(crate) fn entry(e: &[u8]) -> CoefficientEntry {
    CoefficientEntry {
        matrix: word32(&e[0..4]),
        row: word32(&e[4..8]),
        signal: word32(&e[8..12]),
        value: limbs(&e[12..44]),
    }
}

fn word32(b: &[u8]) -> u32 {
    let mut w = [0; 4];
    w.copy_from_slice(&b[..4]);
    u32::from_le_bytes(w)
}

/// Four limbs from 32 little-endian bytes; not reduced.
pub(crate) fn limbs(b: &[u8]) -> BigInteger256 {
    let mut out = [0u64; 4];
    for (limb, bytes) in out.iter_mut().zip(b.chunks_exact(8)) {
        let mut w = [0; 8];
        w.copy_from_slice(bytes);
        *limb = u64::from_le_bytes(w);
    }
    BigInt(out)
}

/// A base field element from its 32 Montgomery bytes, taken as they are: the caller vouches that it is below q.
pub(crate) fn fq_raw(b: &[u8]) -> Fq {
    Fq::new_unchecked(limbs(b))
}

/// A G1 point from its 64 bytes, taken as they are: not checked to be canonical or on the curve.
pub fn g1_raw(b: &[u8]) -> G1Affine {
    G1Affine::new_unchecked(fq_raw(&b[..32]), fq_raw(&b[32..64]))
}

/// A G2 point from its 128 bytes, taken as they are: not checked to be canonical, on the curve or in the group.
pub fn g2_raw(b: &[u8]) -> G2Affine {
    let fq2 = |b: &[u8]| Fq2::new(fq_raw(&b[..32]), fq_raw(&b[32..64]));
    G2Affine::new_unchecked(fq2(&b[..64]), fq2(&b[64..128]))
}
