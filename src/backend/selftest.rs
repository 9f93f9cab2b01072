//! The known-answer test of a device.
//!
//! A small key, a witness for it and the five products over them are stored as bytes, because computing them would take
//! longer than the device takes for its part. The tests compute them without any multi-scalar multiplication or
//! transform: from points that are known multiples of the generators, Σ wᵢ·\[kᵢ\]G = \[Σ wᵢ·kᵢ\]G, and with the
//! quotient's values interpolated over the field, term by term. They cover infinity, zero, one, −1 and full-width
//! scalars, and rows out of order.

#[cfg(test)]
mod case;

use std::sync::Arc;

use ark_ec::AffineRepr;
use ark_ff::{BigInteger, PrimeField};
use bytes::Bytes;

use super::{Backend, BackendError, Commitments, DeviceKind, Quiet};
use crate::model::{
    ENTRY_BYTES, Fr, G1_BYTES, G1Affine, G2_BYTES, G2Affine, KeyHeader, KeySections, ProvingKey, StopToken,
    VerificationKey, Witness, entry, g1_raw, g2_raw, limb_bytes, limbs,
};

/// Sizes of the key: wires, public wires, points of the domain, and matrix entries.
const WIRES: usize = 23;
const PUBLIC: usize = 2;
const DOMAIN: usize = 16;
const ENTRIES: usize = 80;

/// In order: the witness, the sections of the key except its header, and A, B in G1, B in G2, C and H. The witness is
/// canonical, everything else is in the format of a .zkey file.
static KNOWN: &[u8; LENGTH] = include_bytes!("selftest/known_answers.bin");
const LENGTH: usize = WIRES * (32 + 2 * G1_BYTES + G2_BYTES)
    + ENTRIES * ENTRY_BYTES
    + (WIRES - PUBLIC - 1 + DOMAIN) * G1_BYTES
    + 4 * G1_BYTES
    + G2_BYTES;

/// A key, a witness for it, and the expected products.
struct Known {
    key: ProvingKey,
    witness: Witness,
    answers: Commitments,
}

impl Known {
    fn new() -> Self {
        let mut rest = KNOWN.as_slice();
        let mut take = |bytes| rest.split_off(..bytes).unwrap_or_default();
        let witness = take(32 * WIRES).chunks_exact(32).map(limbs).collect();
        let coefficients = take(ENTRIES * ENTRY_BYTES);
        let (a, b1, b2) = (take(WIRES * G1_BYTES), take(WIRES * G1_BYTES), take(WIRES * G2_BYTES));
        let (c, h) = (take((WIRES - PUBLIC - 1) * G1_BYTES), take(DOMAIN * G1_BYTES));
        let [sum_a, sum_b1] = [0; 2].map(|_| g1_raw(take(G1_BYTES)).into());
        let sum_b2 = g2_raw(take(G2_BYTES)).into();
        let [sum_c, sum_h] = [0; 2].map(|_| g1_raw(take(G1_BYTES)).into());
        let [a, b1, b2, c, h, coefficients] = [a, b1, b2, c, h, coefficients].map(Bytes::from_static);
        Self {
            key: key(WIRES, PUBLIC, DOMAIN, KeySections { coefficients, a, b1, b2, c, h }),
            witness: Witness::from_canonical(witness),
            answers: Commitments { a: sum_a, b1: sum_b1, b2: sum_b2, c: sum_c, h: sum_h },
        }
    }
}

/// A key in which only the sections are meaningful.
fn key(wires: usize, public: usize, domain: usize, sections: KeySections) -> ProvingKey {
    let (g1, g2) = (G1Affine::generator(), G2Affine::generator());
    let vk = VerificationKey { alpha_g1: g1, beta_g2: g2, gamma_g2: g2, delta_g2: g2, ic: vec![g1; public + 1] };
    let header = KeyHeader {
        n_vars: wires as u32,
        n_public: public as u32,
        domain_size: domain as u32,
        beta_g1: g1,
        delta_g1: g1,
        vk,
    };
    ProvingKey { header, sections }
}

/// Returns the number of proofs that show whether a device can prove: one on the CPU, and three on other devices, which
/// reuse the memory of one proof for the next and may then take another code path.
pub fn proofs_per_test(kind: DeviceKind) -> usize {
    match kind {
        DeviceKind::Cpu => 1,
        DeviceKind::Cuda | DeviceKind::Icicle => 3,
    }
}

/// Loads the small key on the device and compares each product of [`proofs_per_test`] proofs. Devices other than the
/// CPU also get a long row, and run [`Backend::trial`] for what no small key exercises.
pub fn run(backend: &dyn Backend) -> Result<(), BackendError> {
    let Known { mut key, witness, answers } = Known::new();
    if backend.device().kind != DeviceKind::Cpu {
        key.sections.coefficients = with_long_row(&key.sections.coefficients);
    }
    compare(backend, key, &witness, &answers)?;
    backend.trial()
}

/// How often a long row repeats an entry, and then its negation: enough for several blocks to share one sum.
const LONG_ROW_REPEATS: usize = 1100;

/// Makes the first entry's row long without changing its sum.
fn with_long_row(entries: &[u8]) -> Bytes {
    let first = &entries[..ENTRY_BYTES];
    let mut negated = Fr::MODULUS;
    negated.sub_with_borrow(&entry(first).value);
    let mut opposite = first[..ENTRY_BYTES - 32].to_vec();
    opposite.extend(limb_bytes(&negated));
    [entries, &first.repeat(LONG_ROW_REPEATS), &opposite.repeat(LONG_ROW_REPEATS)].concat().into()
}

/// The key of the self-test.
#[cfg(any(feature = "cuda", feature = "kernels-on-host", all(test, feature = "icicle")))]
pub(crate) fn small_key() -> ProvingKey {
    Known::new().key
}

/// A key, a witness and its commitments, with the given numbers of wires, public wires and domain points.
#[cfg(test)]
pub(crate) fn example(wires: usize, public: usize, domain: usize) -> (ProvingKey, Witness, Commitments) {
    let case = case::Case::new(wires, public, domain);
    (case.key(), case.witness(), case.expected())
}

fn compare(
    backend: &dyn Backend,
    key: ProvingKey,
    witness: &Witness,
    expected: &Commitments,
) -> Result<(), BackendError> {
    let loaded = backend.load(Arc::new(key))?;
    for i in 0..proofs_per_test(backend.device().kind) {
        let got = loaded.commit(witness, &StopToken::new(), &Quiet)?;
        let wrong = [
            ("A in G1", got.a != expected.a),
            ("B in G1", got.b1 != expected.b1),
            ("B in G2", got.b2 != expected.b2),
            ("C in G1", got.c != expected.c),
            ("the quotient and H", got.h != expected.h),
        ];
        let failed: Vec<_> = wrong.iter().filter(|(_, bad)| *bad).map(|(name, _)| *name).collect();
        if !failed.is_empty() {
            let in_proof = if i == 0 { String::new() } else { format!(" in proof {}", i + 1) };
            let why = format!("its self-test computed a wrong {}{in_proof}", failed.join(", "));
            return Err(BackendError::Unavailable { device: backend.device().label(), why });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use ark_ec::PrimeGroup;
    use ark_ff::{BigInteger256, Zero};

    use super::super::cpu::CpuBackend;
    use super::super::{DeviceInfo, Footprint, LoadedKey, Progress};
    use super::case::Case;
    use super::*;
    use crate::model::{G1, G2, StopReason};

    /// On a mismatch, writes the computed answers to a file, which can replace the known ones.
    #[test]
    fn the_known_answers_are_the_sums_of_known_multiples() {
        let computed = Case::new(WIRES, PUBLIC, DOMAIN).bytes();
        if computed != KNOWN {
            let (mut file, path) = tempfile::NamedTempFile::new().and_then(|f| Ok(f.keep()?)).expect("a file");
            std::io::Write::write_all(&mut file, &computed).expect("written");
            panic!("{} bytes were computed, {LENGTH} are known; the computed ones: {}", computed.len(), path.display());
        }
    }

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
            let case = Case::new(wires, public, domain);
            compare(&backend, case.key(), &case.witness(), &case.expected()).expect("right");
        }
    }

    #[test]
    fn a_witness_of_another_length_and_indices_out_of_range_are_the_callers_fault() {
        let backend = CpuBackend::new(1).expect("a pool");
        let case = Case::new(9, 1, 8);
        let loaded = backend.load(Arc::new(case.key())).expect("loads");
        let short = Witness::from_canonical(vec![BigInteger256::from(1u64); 8]);
        let error = loaded.commit(&short, &StopToken::new(), &Quiet).expect_err("too short");
        assert_eq!(error, BackendError::Shape { what: "witness values", expected: 9, got: 8 });
        for (at, value) in [(0, 2u32), (4, 8), (8, 9), (0, u32::MAX), (4, u32::MAX), (8, u32::MAX)] {
            let mut key = case.key();
            let mut entries = key.sections.coefficients.to_vec();
            entries[at..at + 4].copy_from_slice(&value.to_le_bytes());
            key.sections.coefficients = entries.into();
            assert!(matches!(backend.load(Arc::new(key)), Err(BackendError::OutOfRange { .. })));
        }
    }

    #[test]
    fn a_stopped_token_ends_the_work() {
        let backend = CpuBackend::new(1).expect("a pool");
        let case = Case::new(9, 1, 8);
        let loaded = backend.load(Arc::new(case.key())).expect("loads");
        let witness = case.witness();
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
