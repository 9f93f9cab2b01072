//! The small keys for the self-test's tests, and their products computed independently.

use ark_ec::{AffineRepr, CurveGroup, PrimeGroup};
use ark_ff::{BigInteger256, FftField, Field, One, PrimeField, Zero, serial_batch_inversion_and_mul};
use bytes::Bytes;

use super::Commitments;
use crate::model::{Fq, Fr, G1, G1Affine, G2, G2Affine, KeySections, ProvingKey, Witness, limb_bytes};

/// A matrix entry: matrix (0 A, 1 B), row, wire, value.
type Entry = (u32, u32, u32, Fr);

/// A key, given by the discrete logarithms of its points, and a witness.
pub(super) struct Case {
    public: usize,
    domain: usize,
    witness: Vec<Fr>,
    a: Vec<Fr>,
    b: Vec<Fr>,
    c: Vec<Fr>,
    h: Vec<Fr>,
    entries: Vec<Entry>,
}

impl Case {
    /// A key for `wires` wires (at least `public` + 1 of them) over a domain of `domain` points.
    pub(super) fn new(wires: usize, public: usize, domain: usize) -> Self {
        // Any fixed sequence will do: powers of a constant.
        let mut state = Fr::from(0x70726f766572u64);
        let mut next = || {
            state = state.square() + Fr::from(7u64);
            state
        };
        let mut witness: Vec<Fr> = (0..wires).map(|_| next()).collect();
        witness[0] = Fr::one();
        let special = [Fr::zero(), Fr::one(), -Fr::one(), Fr::from(1u64 << 40), -Fr::from(200u64)];
        for (slot, value) in witness.iter_mut().skip(3).step_by(2).zip(special) {
            *slot = value;
        }
        let mut dlogs = |n: usize, holes: usize| -> Vec<Fr> {
            (0..n).map(|i| if holes > 0 && i % holes == 1 { Fr::zero() } else { next() }).collect()
        };
        let (a, b, c, h) = (dlogs(wires, 7), dlogs(wires, 3), dlogs(wires - public - 1, 0), dlogs(domain, 0));
        let mut entries = Vec::new();
        for row in (0..domain as u32).rev() {
            for k in 0..=row % 4 {
                entries.push((0, row, (5 * row + 3 * k) % wires as u32, next()));
                entries.push((1, row, (3 * row + 7 * k) % wires as u32, next()));
            }
        }
        Self { public, domain, witness, a, b, c, h, entries }
    }

    /// The products, computed from the logarithms.
    pub(super) fn expected(&self) -> Commitments {
        let dot = |k: &[Fr], w: &[Fr]| k.iter().zip(w).map(|(k, w)| *k * w).sum::<Fr>();
        let (a, b) = (dot(&self.a, &self.witness), dot(&self.b, &self.witness));
        Commitments {
            a: G1::generator() * a,
            b1: G1::generator() * b,
            b2: G2::generator() * b,
            c: G1::generator() * dot(&self.c, &self.witness[self.public + 1..]),
            h: G1::generator() * dot(&self.h, &self.quotient()),
        }
    }

    /// a·b − c at the odd points of the double domain, by Lagrange's formula.
    fn quotient(&self) -> Vec<Fr> {
        let n = self.domain as u64;
        let omega2 = Fr::get_root_of_unity(2 * n).unwrap_or_default();
        let row = |matrix: u32, row: usize| -> Fr {
            let mine = self.entries.iter().filter(|e| e.0 == matrix && e.1 as usize == row);
            mine.map(|e| e.3 * self.witness[e.2 as usize]).sum()
        };
        let a: Vec<Fr> = (0..self.domain).map(|i| row(0, i)).collect();
        let b: Vec<Fr> = (0..self.domain).map(|i| row(1, i)).collect();
        let c: Vec<Fr> = a.iter().zip(&b).map(|(a, b)| *a * b).collect();
        // L_j(x) = (xⁿ − 1)·ωʲ / (n·(x − ωʲ)); on odd points xⁿ = −1.
        let scale = -Fr::from(2u64) / Fr::from(n);
        let points: Vec<Fr> = (0..n).map(|j| omega2.pow([2 * j])).collect();
        let quotient = |i: u64| {
            let x = omega2.pow([2 * i + 1]);
            let mut lagrange: Vec<Fr> = points.iter().map(|point| x - point).collect();
            serial_batch_inversion_and_mul(&mut lagrange, &scale);
            let at =
                |values: &[Fr]| values.iter().zip(&points).zip(&lagrange).map(|((v, p), l)| *v * p * l).sum::<Fr>();
            at(&a) * at(&b) - at(&c)
        };
        (0..n).map(quotient).collect()
    }

    pub(super) fn witness(&self) -> Witness {
        Witness::from_canonical(self.witness.iter().map(|w| w.into_bigint()).collect())
    }

    pub(super) fn key(&self) -> ProvingKey {
        let sections = KeySections {
            coefficients: entries_bytes(&self.entries),
            a: g1_bytes(&multiples::<G1>(&self.a)),
            b1: g1_bytes(&multiples::<G1>(&self.b)),
            b2: g2_bytes(&multiples::<G2>(&self.b)),
            c: g1_bytes(&multiples::<G1>(&self.c)),
            h: g1_bytes(&multiples::<G1>(&self.h)),
        };
        super::key(self.witness.len(), self.public, self.domain, sections)
    }

    /// The content of the self-test's file.
    pub(super) fn bytes(&self) -> Vec<u8> {
        let mut witness = Vec::new();
        self.witness.iter().for_each(|w| put(&mut witness, &w.into_bigint()));
        let KeySections { coefficients, a, b1, b2, c, h } = self.key().sections;
        let sums = self.expected();
        let g1 = |sum: G1| g1_bytes(&[sum.into_affine()]);
        let (sum_a, sum_b1, sum_c, sum_h) = (g1(sums.a), g1(sums.b1), g1(sums.c), g1(sums.h));
        let sum_b2 = g2_bytes(&[sums.b2.into_affine()]);
        [witness.into(), coefficients, a, b1, b2, c, h, sum_a, sum_b1, sum_b2, sum_c, sum_h].concat()
    }
}

fn put(out: &mut Vec<u8>, v: &BigInteger256) {
    out.extend(limb_bytes(v));
}

fn put_fq(out: &mut Vec<u8>, v: &Fq) {
    put(out, &v.0);
}

fn entries_bytes(entries: &[Entry]) -> Bytes {
    let mut out = Vec::new();
    // The Montgomery form of v·R is v·R².
    let r = Fr::from_le_bytes_mod_order(&[[0u8; 32].as_slice(), &[1]].concat());
    for (matrix, row, signal, v) in entries {
        for word in [matrix, row, signal] {
            out.extend(word.to_le_bytes());
        }
        put(&mut out, &(*v * r).0);
    }
    out.into()
}

/// Multiples of the generator, as affine points.
fn multiples<G: CurveGroup>(dlogs: &[Fr]) -> Vec<G::Affine> {
    let points: Vec<G> = dlogs.iter().map(|k| G::generator().mul_bigint(k.into_bigint())).collect();
    G::normalize_batch(&points)
}

fn g1_bytes(points: &[G1Affine]) -> Bytes {
    let mut out = Vec::new();
    for point in points {
        // Zeros for the point at infinity.
        let (x, y) = point.xy().unwrap_or_default();
        put_fq(&mut out, &x);
        put_fq(&mut out, &y);
    }
    out.into()
}

fn g2_bytes(points: &[G2Affine]) -> Bytes {
    let mut out = Vec::new();
    for point in points {
        let (x, y) = point.xy().unwrap_or_default();
        for c in [x.c0, x.c1, y.c0, y.c1] {
            put_fq(&mut out, &c);
        }
    }
    out.into()
}
