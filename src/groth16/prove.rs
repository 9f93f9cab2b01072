//! Blinding and assembly.

use std::time::{Duration, Instant};

use ark_ec::CurveGroup;
use ark_ff::{BigInteger256, PrimeField};
use zeroize::Zeroizing;

use super::Verifier;
use crate::backend::{BackendError, Commitments, LoadedKey, Progress};
use crate::model::{Fr, KeyHeader, Proof, PublicInputs, StopToken, Witness};

/// Why there is no proof.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProveError {
    /// The witness has the wrong number of values.
    #[error("the witness has {got} values, the key is for {expected}: they belong to different circuits")]
    WitnessLength {
        /// Wires of the key.
        expected: usize,
        /// Values in the witness.
        got: usize,
    },
    /// The witness does not begin with the constant 1.
    #[error("value 0 of the witness must be 1")]
    WitnessOne,
    /// The proof does not verify: a bad witness, a damaged key, or a device that computed wrong.
    #[error(
        "the proof does not verify: the witness does not satisfy the circuit, or belongs to another one, or the key \
         is damaged"
    )]
    Invalid,
    /// The device failed.
    #[error(transparent)]
    Backend(#[from] BackendError),
    /// The operating system gave no random bytes.
    #[error("the operating system gave no random bytes: {0}")]
    Randomness(String),
}

/// A verified proof and what it proves.
#[derive(Clone, Debug)]
pub struct Proved {
    /// The proof.
    pub proof: Proof,
    /// The public values it is for.
    pub public: PublicInputs,
    /// Time the device took for the commitments.
    pub commit_time: Duration,
    /// Time verification took.
    pub verify_time: Duration,
}

/// Proves: commitments on the device, blinding from the operating system, assembly, and verification. A proof that
/// does not verify is an error, never a result.
///
/// Blocks for as long as the device works; looks at `stop` between its steps.
pub fn prove(
    key: &dyn LoadedKey,
    verifier: &Verifier,
    witness: &Witness,
    stop: &StopToken,
    on: &dyn Progress,
) -> Result<Proved, ProveError> {
    let header = &key.key().header;
    let public = public_inputs(header, witness)?;
    let start = Instant::now();
    let commitments = key.commit(witness, stop, on)?;
    let commit_time = start.elapsed();
    let blinding = Zeroizing::new([random_scalar()?, random_scalar()?]);
    let proof = assemble(header, &commitments, blinding[0], blinding[1]);
    let start = Instant::now();
    if !verifier.verify(&proof, &public) {
        return Err(ProveError::Invalid);
    }
    Ok(Proved { proof, public, commit_time, verify_time: start.elapsed() })
}

/// The public values of a witness that fits the key.
fn public_inputs(header: &KeyHeader, witness: &Witness) -> Result<PublicInputs, ProveError> {
    let w = witness.values();
    if w.len() != header.n_vars as usize {
        return Err(ProveError::WitnessLength { expected: header.n_vars as usize, got: w.len() });
    }
    if w.first() != Some(&BigInteger256::one()) {
        return Err(ProveError::WitnessOne);
    }
    let public = w.iter().skip(1).take(header.n_public as usize);
    Ok(PublicInputs(public.map(|v| Fr::from_le_bytes_mod_order(&bytes(v))).collect()))
}

fn bytes(v: &BigInteger256) -> [u8; 32] {
    let mut out = [0; 32];
    for (to, limb) in out.chunks_exact_mut(8).zip(v.0) {
        to.copy_from_slice(&limb.to_le_bytes());
    }
    out
}

/// π_A = α + a + r·δ, π_B = β + b + s·δ, π_C = c + h + s·π_A + r·π_B¹ − r·s·δ, where π_B¹ is π_B in G1.
fn assemble(header: &KeyHeader, sums: &Commitments, r: Fr, s: Fr) -> Proof {
    let vk = &header.vk;
    let a = sums.a + vk.alpha_g1 + header.delta_g1 * r;
    let b1 = sums.b1 + header.beta_g1 + header.delta_g1 * s;
    let b2 = sums.b2 + vk.beta_g2 + vk.delta_g2 * s;
    let c = sums.c + sums.h + a * s + b1 * r - header.delta_g1 * (r * s);
    Proof { a: a.into_affine(), b: b2.into_affine(), c: c.into_affine() }
}

/// A uniform scalar from the operating system's generator: 512 bits reduced, so that the bias is below 2^-256.
pub(super) fn random_scalar() -> Result<Fr, ProveError> {
    let mut wide = Zeroizing::new([0u8; 64]);
    getrandom::fill(&mut *wide).map_err(|e| ProveError::Randomness(e.to_string()))?;
    Ok(Fr::from_le_bytes_mod_order(&*wide))
}
