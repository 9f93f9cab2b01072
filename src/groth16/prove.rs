//! Blinding and assembly.

use ark_ec::{AffineRepr, CurveGroup};
use ark_ff::{PrimeField, Zero};

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
    /// The witness does not satisfy the constraints, or the device computed wrong: the proof does not verify.
    #[error(
        "the proof made on {device} does not verify: the witness does not satisfy the circuit's constraints, belongs \
         to another circuit, or the key is damaged"
    )]
    Invalid {
        /// Where it was made.
        device: &'static str,
    },
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
    /// Time in the device, the rest excluded.
    pub commit_time: std::time::Duration,
    /// Time for verification.
    pub verify_time: std::time::Duration,
}

/// Proves: commitments on the device, blinding from the operating system, assembly, and verification: a proof that
/// does not verify is an error, never a result.
pub fn prove(
    key: &dyn LoadedKey,
    verifier: &Verifier,
    witness: &Witness,
    stop: &StopToken,
    on: &dyn Progress,
) -> Result<Proved, ProveError> {
    todo!()
}
