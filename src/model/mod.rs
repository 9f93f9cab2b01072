//! Plain data types: jobs, circuits, keys, witnesses and proofs. No I/O.

mod choice;
mod circuit;
mod cloud;
mod curve;
mod hash;
mod idempotency;
#[cfg(feature = "worker")]
mod jitter;
mod job;
mod key;
mod limbs;
mod proof;
mod reason;
mod stop;
mod sync;
mod text;
mod witness;

pub use choice::{BackendChoice, Instructions};
pub use circuit::{Circuit, CircuitContent, CircuitName, InvalidName};
pub use cloud::Cloud;
pub(crate) use curve::named_prime;
pub use curve::{FQ_MODULUS_DEC, FR_MODULUS_DEC, Fq, Fq2, Fr, G1, G1Affine, G2, G2Affine};
pub use hash::ContentHash;
pub use idempotency::{IdempotencyKey, InvalidKey};
#[cfg(feature = "worker")]
pub(crate) use jitter::jitter;
pub use job::{
    Attempt, FailedAttempt, FailureClass, Job, JobError, JobId, JobResult, JobState, NewJob, Priority, Stage,
    StageTimes, Tries, WorkerId,
};
pub use key::{CoefficientEntry, KeyHeader, KeySections, MAX_DOMAIN, ProvingKey, g1_raw, g2_raw};
pub(crate) use key::{ENTRY_BYTES, G1_BYTES, G2_BYTES, PointSection, entry};
pub(crate) use limbs::{limb_bytes, limbs, reduced};
pub use proof::{Proof, PublicInputs, VerificationKey};
pub use reason::io_reason;
pub use stop::{StopReason, StopToken};
pub(crate) use sync::locked;
pub(crate) use text::clip;
pub use witness::Witness;
