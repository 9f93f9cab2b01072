//! The proving key, over the bytes of a zkey.

use ark_ff::BigInteger256;
use bytes::Bytes;

use super::{Fq, Fq2, G1Affine, G2Affine, VerificationKey, limbs};

/// Maximum size of the evaluation domain: r − 1 is divisible by 2^28 and no higher power of two, so Fr has no roots of
/// unity of a higher such order.
pub const MAX_DOMAIN: u32 = 1 << 28;

/// Numbers and fixed points of a proving key.
#[derive(Clone, Debug)]
pub struct KeyHeader {
    /// Number of wires, including the constant 1.
    pub n_vars: u32,
    /// Number of public outputs and inputs.
    pub n_public: u32,
    /// Size of the evaluation domain, a power of two of at most [`MAX_DOMAIN`].
    pub domain_size: u32,
    /// \[β\]₁
    pub beta_g1: G1Affine,
    /// \[δ\]₁
    pub delta_g1: G1Affine,
    /// α, β, γ, δ and IC.
    pub vk: VerificationKey,
}

/// Raw bytes of the sections that proving reads, each of exactly the length required by the header.
///
/// Points are affine: two (G1) or four (G2) coordinates of 32 bytes each, little-endian, Montgomery form with R =
/// 2^256. Infinity is all zeros.
#[derive(Clone)]
pub struct KeySections {
    /// Entries of the matrices A and B, 44 bytes each, without the leading count.
    pub coefficients: Bytes,
    /// A, points of G1, one per wire.
    pub a: Bytes,
    /// B, points of G1, one per wire.
    pub b1: Bytes,
    /// B, points of G2, one per wire.
    pub b2: Bytes,
    /// C, points of G1, one per private wire.
    pub c: Bytes,
    /// H, points of G1, one per point of the domain.
    pub h: Bytes,
}

/// One entry of the constraint matrices.
#[derive(Clone, Copy, Debug)]
pub struct CoefficientEntry {
    /// Raw matrix number, as in the file: 0 is A, 1 is B.
    pub matrix: u32,
    /// Constraint.
    pub row: u32,
    /// Wire.
    pub signal: u32,
    /// v·R² mod r: its Montgomery product with a plain value w is v·w in Montgomery form.
    pub value: BigInteger256,
}

/// A proving key: a parsed header, and sections that stay where they are (usually in a memory map).
///
/// The sections have the right lengths; their content is as trustworthy as its source. `formats::zkey::check` checks
/// every byte, and is run when a circuit is registered.
#[derive(Clone)]
pub struct ProvingKey {
    /// Numbers and fixed points, decoded and checked.
    pub header: KeyHeader,
    /// The other sections, as in the file.
    pub sections: KeySections,
}

/// Size of a G1 point, in bytes.
pub(crate) const G1_BYTES: usize = 64;
/// Size of a G2 point, in bytes.
pub(crate) const G2_BYTES: usize = 128;
/// Size of a matrix entry, in bytes.
pub(crate) const ENTRY_BYTES: usize = 44;

/// Size of a section of points, and the size that it must have.
pub(crate) struct PointSection {
    /// Number of points that the section must have.
    pub points: u32,
    /// Size of a point, in bytes.
    pub point_bytes: usize,
    /// Size of the section, in bytes.
    pub bytes: usize,
}

impl PointSection {
    /// Returns the size that the section must have, in bytes.
    pub fn expected(&self) -> u64 {
        u64::from(self.points) * self.point_bytes as u64
    }
}

impl KeySections {
    /// Returns the sections A, B in G1, B in G2, C and H, in this order, for a key with these counts.
    pub(crate) fn points(&self, n_vars: u32, n_public: u32, domain_size: u32) -> [PointSection; 5] {
        let section = |points, point_bytes, bytes: &Bytes| PointSection { points, point_bytes, bytes: bytes.len() };
        [
            section(n_vars, G1_BYTES, &self.a),
            section(n_vars, G1_BYTES, &self.b1),
            section(n_vars, G2_BYTES, &self.b2),
            section(n_vars.saturating_sub(n_public).saturating_sub(1), G1_BYTES, &self.c),
            section(domain_size, G1_BYTES, &self.h),
        ]
    }
}

impl ProvingKey {
    /// Returns the total size of the sections, in bytes.
    pub fn size(&self) -> usize {
        let s = &self.sections;
        [&s.coefficients, &s.a, &s.b1, &s.b2, &s.c, &s.h].iter().map(|b| b.len()).sum()
    }

    /// Returns the number of matrix entries.
    pub fn n_coefficients(&self) -> usize {
        self.sections.coefficients.len() / ENTRY_BYTES
    }

    /// Iterates over the matrix entries, unchecked.
    pub fn coefficients(&self) -> impl ExactSizeIterator<Item = CoefficientEntry> + '_ {
        self.sections.coefficients.chunks_exact(ENTRY_BYTES).map(entry)
    }
}

/// Decodes a matrix entry from its 44 bytes.
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

/// Decodes a base field element from 32 bytes in Montgomery form, which the caller must know to be below q.
pub(crate) fn fq_raw(b: &[u8]) -> Fq {
    Fq::new_unchecked(limbs(b))
}

/// Decodes a G1 point from its 64 bytes, without checking that it is canonical and on the curve.
pub fn g1_raw(b: &[u8]) -> G1Affine {
    G1Affine::new_unchecked(fq_raw(&b[..32]), fq_raw(&b[32..64]))
}

/// Decodes a G2 point from its 128 bytes, without checking that it is canonical, on the curve and in the group.
pub fn g2_raw(b: &[u8]) -> G2Affine {
    let fq2 = |b: &[u8]| Fq2::new(fq_raw(&b[..32]), fq_raw(&b[32..64]));
    G2Affine::new_unchecked(fq2(&b[..64]), fq2(&b[64..128]))
}
