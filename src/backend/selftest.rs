//! The known-answer self-test of a device.
//!
//! A small key whose points are known multiples of the generators, so that every product is known without any
//! multi-scalar multiplication or transform: Σ wᵢ·\[kᵢ\]G = \[Σ wᵢ·kᵢ\]G, and the quotient's values by interpolation
//! over the field, term by term. Covers infinity, zero, one, −1 and full-width scalars, and rows out of order.

use std::sync::Arc;

use ark_ec::{AffineRepr, CurveGroup, PrimeGroup};
use ark_ff::{BigInteger256, FftField, Field, One, PrimeField, Zero, serial_batch_inversion_and_mul};
use bytes::Bytes;

use super::{Backend, BackendError, Commitments, Quiet};
use crate::model::{
    Fq, Fr, G1, G1Affine, G2, G2Affine, KeyHeader, KeySections, ProvingKey, StopToken, VerificationKey, Witness,
};

/// Loads the small key on the device and compares each product.
pub fn run(backend: &dyn Backend) -> Result<(), BackendError> {
    compare(backend, &Case::new(23, 2, 16))
}

/// The key of the test.
#[cfg(all(test, any(feature = "kernels-on-host", feature = "icicle")))]
pub(crate) fn small_key() -> ProvingKey {
    Case::new(23, 2, 16).key()
}

fn compare(backend: &dyn Backend, case: &Case) -> Result<(), BackendError> {
    let expected = case.expected();
    let loaded = backend.load(Arc::new(case.key()))?;
    let witness = Witness::from_canonical(case.witness.iter().map(|w| w.into_bigint()).collect());
    let got = loaded.commit(&witness, &StopToken::new(), &Quiet)?;
    let wrong = [
        ("A in G1", got.a != expected.a),
        ("B in G1", got.b1 != expected.b1),
        ("B in G2", got.b2 != expected.b2),
        ("C in G1", got.c != expected.c),
        ("the quotient and H", got.h != expected.h),
    ];
    let failed: Vec<_> = wrong.iter().filter(|(_, bad)| *bad).map(|(name, _)| *name).collect();
    if failed.is_empty() {
        return Ok(());
    }
    Err(BackendError::Unavailable {
        device: backend.device().label(),
        why: format!("its self-test computed a wrong {}", failed.join(", ")),
    })
}

/// A matrix entry: matrix (0 A, 1 B), row, wire, value.
type Entry = (u32, u32, u32, Fr);

struct Case {
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
    fn new(wires: usize, public: usize, domain: usize) -> Self {
        // Any fixed sequence serves: powers of a constant.
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
        // Short, for the points are computed from them bit by bit, at every start of the program.
        let mut short = || Fr::from((next().into_bigint().0[0] >> 52) | 1);
        let mut dlogs = |n: usize, holes: usize| -> Vec<Fr> {
            (0..n).map(|i| if holes > 0 && i % holes == 1 { Fr::zero() } else { short() }).collect()
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

    fn expected(&self) -> Commitments {
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

    fn key(&self) -> ProvingKey {
        let g1 = G1Affine::generator();
        let g2 = G2Affine::generator();
        let vk =
            VerificationKey { alpha_g1: g1, beta_g2: g2, gamma_g2: g2, delta_g2: g2, ic: vec![g1; self.public + 1] };
        ProvingKey {
            header: KeyHeader {
                n_vars: self.witness.len() as u32,
                n_public: self.public as u32,
                domain_size: self.domain as u32,
                beta_g1: g1,
                delta_g1: g1,
                vk,
            },
            sections: KeySections {
                coefficients: entries_bytes(&self.entries),
                a: g1_bytes(&self.a),
                b1: g1_bytes(&self.b),
                b2: g2_bytes(&self.b),
                c: g1_bytes(&self.c),
                h: g1_bytes(&self.h),
            },
        }
    }
}

fn put(out: &mut Vec<u8>, v: &BigInteger256) {
    out.extend(v.0.iter().flat_map(|l| l.to_le_bytes()));
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

/// The generator's multiples, as affine points.
fn multiples<G: CurveGroup>(dlogs: &[Fr]) -> Vec<G::Affine> {
    let points: Vec<G> = dlogs.iter().map(|k| G::generator().mul_bigint(k.into_bigint())).collect();
    G::normalize_batch(&points)
}

fn g1_bytes(dlogs: &[Fr]) -> Bytes {
    let mut out = Vec::new();
    for p in multiples::<G1>(dlogs) {
        put_fq(&mut out, &p.x);
        put_fq(&mut out, &p.y);
    }
    out.into()
}

fn g2_bytes(dlogs: &[Fr]) -> Bytes {
    let mut out = Vec::new();
    for p in multiples::<G2>(dlogs) {
        for c in [p.x.c0, p.x.c1, p.y.c0, p.y.c1] {
            put_fq(&mut out, &c);
        }
    }
    out.into()
}

#[cfg(test)]
mod tests {
    use super::super::cpu::CpuBackend;
    use super::super::{DeviceInfo, Footprint, LoadedKey, Progress};
    use super::*;
    use crate::model::StopReason;

    #[test]
    fn the_processor_passes_on_any_number_of_threads() {
        for threads in [1, 2, 3, 8] {
            run(&CpuBackend::new(threads).expect("a pool")).expect("the self-test passes");
        }
    }

    #[test]
    fn products_are_right_at_awkward_sizes() {
        let backend = CpuBackend::new(2).expect("a pool");
        for (wires, public, domain) in
            [(1, 0, 1), (2, 1, 1), (2, 0, 2), (3, 2, 4), (31, 1, 8), (33, 32, 32), (70, 5, 64)]
        {
            compare(&backend, &Case::new(wires, public, domain)).expect("right");
        }
    }

    #[test]
    fn a_witness_of_another_length_and_indices_out_of_range_are_shape_errors() {
        let backend = CpuBackend::new(1).expect("a pool");
        let case = Case::new(9, 1, 8);
        let loaded = backend.load(Arc::new(case.key())).expect("loads");
        let short = Witness::from_canonical(vec![BigInteger256::one(); 8]);
        let error = loaded.commit(&short, &StopToken::new(), &Quiet).expect_err("too short");
        assert_eq!(error, BackendError::Shape { what: "witness values", expected: 9, got: 8 });
        for (at, value) in [(0, 2u32), (4, 8), (8, 9), (0, u32::MAX), (4, u32::MAX), (8, u32::MAX)] {
            let mut key = case.key();
            let mut entries = key.sections.coefficients.to_vec();
            entries[at..at + 4].copy_from_slice(&value.to_le_bytes());
            key.sections.coefficients = entries.into();
            assert!(matches!(backend.load(Arc::new(key)), Err(BackendError::Shape { .. })));
        }
    }

    #[test]
    fn a_stopped_token_ends_the_work() {
        let backend = CpuBackend::new(1).expect("a pool");
        let case = Case::new(9, 1, 8);
        let loaded = backend.load(Arc::new(case.key())).expect("loads");
        let witness = Witness::from_canonical(case.witness.iter().map(|w| w.into_bigint()).collect());
        let stop = StopToken::new();
        stop.stop(StopReason::Cancelled);
        let ended = loaded.commit(&witness, &stop, &Quiet);
        assert_eq!(ended, Err(BackendError::Stopped(StopReason::Cancelled)));
        let late = StopToken::new().with_deadline(std::time::Instant::now());
        assert_eq!(loaded.commit(&witness, &late, &Quiet), Err(BackendError::Stopped(StopReason::TimedOut)));
    }

    /// A device that computes one product wrong.
    struct Broken(CpuBackend, usize);
    struct BrokenKey(Arc<dyn LoadedKey>, usize);

    impl Backend for Broken {
        fn device(&self) -> &DeviceInfo {
            self.0.device()
        }
        fn footprint(&self, key: &ProvingKey) -> Footprint {
            self.0.footprint(key)
        }
        fn load(&self, key: Arc<ProvingKey>) -> Result<Arc<dyn LoadedKey>, BackendError> {
            Ok(Arc::new(BrokenKey(self.0.load(key)?, self.1)))
        }
    }

    impl LoadedKey for BrokenKey {
        fn key(&self) -> &Arc<ProvingKey> {
            self.0.key()
        }
        fn commit(&self, w: &Witness, stop: &StopToken, on: &dyn Progress) -> Result<Commitments, BackendError> {
            let mut c = self.0.commit(w, stop, on)?;
            match self.1 {
                0 => c.a += G1::generator(),
                1 => c.b1 = -c.b1,
                2 => c.b2 += G2::generator(),
                3 => c.c = G1::zero(),
                _ => c.h += c.a,
            }
            Ok(c)
        }
    }

    #[test]
    fn a_device_that_computes_one_product_wrong_is_refused_by_name() {
        for (which, name) in ["A in G1", "B in G1", "B in G2", "C in G1", "the quotient and H"].iter().enumerate() {
            let broken = Broken(CpuBackend::new(1).expect("a pool"), which);
            let error = run(&broken).expect_err("must be refused").to_string();
            assert!(error.ends_with(&format!("wrong {name}")), "{error}");
        }
    }
}
