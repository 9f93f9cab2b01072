//! Groth16 (Groth, "On the Size of Pairing-based Non-interactive Arguments", EUROCRYPT 2016) on BN254.
//!
//! [`prove()`] draws the blinding, assembles the proof from a device's commitments and verifies it; [`prove_batch`]
//! does the same for several proofs at once. [`Verifier`] verifies proofs, and [`setup`] generates development keys.

mod prove;
pub mod setup;
mod verify;

pub use prove::{BatchJob, NoRandomness, ProveError, Proved, prove, prove_batch};
pub use verify::Verifier;
