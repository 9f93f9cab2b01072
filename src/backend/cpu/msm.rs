//! Multi-scalar multiplication over a key's points, by arkworks' signed-window Pippenger.

use ark_ec::short_weierstrass::{Affine, Projective, SWCurveConfig};
use ark_ec::{AffineRepr, VariableBaseMSM};
use ark_ff::{BigInteger256, PrimeField};
use rayon::prelude::*;
use zeroize::Zeroizing;

use crate::model::{G1_BYTES, G1Affine, G2_BYTES, G2Affine, g1_raw, g2_raw};

/// Points of one section of the key, infinity left out (up to 40 % of B in real keys), and the wire of each.
pub(super) struct Query<P: SWCurveConfig> {
    points: Vec<Affine<P>>,
    wires: Vec<u32>,
}

/// Decodes a G1 point and says how many bytes one takes.
pub(super) fn decode_g1(bytes: &[u8]) -> G1Affine {
    g1_raw(bytes)
}

/// The same in G2.
pub(super) fn decode_g2(bytes: &[u8]) -> G2Affine {
    g2_raw(bytes)
}

/// Points a task decodes: large enough to be worth one, small enough to balance.
const CHUNK: usize = 1 << 14;

impl<P: SWCurveConfig> Query<P> {
    /// Decodes a section, whose first point belongs to wire `first`.
    pub(super) fn new(section: &[u8], first: usize, decode: fn(&[u8]) -> Affine<P>) -> Self {
        let size = if size_of::<Affine<P>>() > 100 { G2_BYTES } else { G1_BYTES };
        let parts: Vec<(Vec<Affine<P>>, Vec<u32>)> = section
            .par_chunks(CHUNK * size)
            .enumerate()
            .map(|(k, bytes)| {
                let n = bytes.len() / size;
                let (mut points, mut wires) = (Vec::with_capacity(n), Vec::with_capacity(n));
                for (i, raw) in bytes.chunks_exact(size).enumerate() {
                    let p = decode(raw);
                    if !p.is_zero() {
                        points.push(p);
                        wires.push((first + k * CHUNK + i) as u32);
                    }
                }
                (points, wires)
            })
            .collect();
        let total = parts.iter().map(|p| p.0.len()).sum();
        let (mut points, mut wires) = (Vec::with_capacity(total), Vec::with_capacity(total));
        for (p, w) in parts {
            points.extend_from_slice(&p);
            wires.extend_from_slice(&w);
        }
        Self { points, wires }
    }

    /// Σ scalars\[wireᵢ\]·pointᵢ; scalars are plain and below r.
    pub(super) fn msm(&self, scalars: &[BigInteger256]) -> Projective<P>
    where
        P::ScalarField: PrimeField<BigInt = BigInteger256>,
    {
        let wires = self.wires.par_iter();
        let gathered = Zeroizing::new(wires.map(|&i| scalars[i as usize]).collect::<Vec<_>>());
        Projective::<P>::msm_bigint(&self.points, &gathered)
    }
}
