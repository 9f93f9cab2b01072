//! Why an attempt made no proof.

use std::time::Duration;

use crate::artifacts::ArtifactError;
use crate::backend::BackendError;
use crate::groth16::ProveError;
use crate::model::{FailureClass, JobError, StopReason, StopToken};
use crate::registry::RegistryError;
use crate::seal::SealError;
use crate::store::StoreError;
use crate::witness::{self, WitnessError};

/// Why an attempt made no proof.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum AttemptError {
    /// It failed.
    Failed(JobError),
    /// It failed because of this worker's environment, which says nothing about the job: it may succeed on another
    /// worker.
    Environment(JobError, Blame),
    /// It was stopped.
    Stopped(StopReason),
    /// The job does not fit beside the others on this worker for now.
    NoCapacity,
}

/// What may be at fault when something is missing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Blame {
    /// The worker and what it depends on.
    Worker,
    /// The job or its circuit as well.
    Either,
}

impl AttemptError {
    pub(super) fn failed(class: FailureClass, why: impl ToString) -> Self {
        Self::Failed(JobError { class, message: why.to_string() })
    }

    /// Something in this worker's environment failed, and may recover.
    fn environment(why: impl ToString, blame: Blame) -> Self {
        Self::Environment(JobError { class: FailureClass::Transient, message: why.to_string() }, blame)
    }

    /// Turns a timeout into a failure of the stage, unless the time of the whole job is over.
    pub(super) fn within(self, job: &StopToken, what: &str, allowed: Duration) -> Self {
        match self {
            Self::Stopped(StopReason::TimedOut) if job.stopped().is_none() => {
                Self::failed(FailureClass::Timeout, format!("{what} took longer than {} s", allowed.as_secs()))
            }
            other => other,
        }
    }
}

impl From<WitnessError> for AttemptError {
    fn from(e: WitnessError) -> Self {
        match e {
            WitnessError::Stopped(why) => Self::Stopped(why),
            // No worker may give a program more memory than this.
            WitnessError::Memory { limit } if limit >= witness::Limits::MAX_MEMORY => {
                Self::failed(FailureClass::BadInput, e)
            }
            // Compilation is bounded in time and memory, and another moment or machine may have more of both. The
            // memory limit of a run is a setting of this worker and no fault of the input: another worker may have a
            // higher one, or this one after a restart. The job can then be queued again, because its input is kept.
            WitnessError::Compile(_) | WitnessError::Memory { .. } | WitnessError::Silent { .. } => {
                Self::failed(FailureClass::Transient, e)
            }
            WitnessError::Host(_) => Self::environment(e, Blame::Worker),
            WitnessError::Input(_) | WitnessError::Module(_) | WitnessError::Assert(_) | WitnessError::Trap(_) => {
                Self::failed(FailureClass::BadInput, e)
            }
        }
    }
}

impl From<StoreError> for AttemptError {
    fn from(e: StoreError) -> Self {
        if e.is_outage() { Self::environment(e, Blame::Worker) } else { Self::failed(FailureClass::Transient, e) }
    }
}

impl From<SealError> for AttemptError {
    fn from(e: SealError) -> Self {
        // Another worker may have the key, or the right key by that name, and this one may after a restart. As bad
        // input it would be deleted, for what may be a mistake in one worker's settings.
        Self::environment(e, Blame::Either)
    }
}

impl From<BackendError> for AttemptError {
    fn from(e: BackendError) -> Self {
        match e {
            BackendError::Stopped(why) => Self::Stopped(why),
            BackendError::Shape { .. } | BackendError::OutOfRange { .. } => Self::failed(FailureClass::BadInput, e),
            BackendError::Unavailable { .. }
            | BackendError::OutOfMemory { .. }
            | BackendError::Device { .. }
            | BackendError::TooSmall { .. }
            | BackendError::BatchResults { .. } => Self::failed(FailureClass::Device, e),
        }
    }
}

impl From<ProveError> for AttemptError {
    fn from(e: ProveError) -> Self {
        match e {
            ProveError::Backend(e) => e.into(),
            ProveError::WitnessLength { .. } | ProveError::WitnessOne => Self::failed(FailureClass::BadInput, e),
            ProveError::Invalid => Self::failed(FailureClass::InvalidProof, e),
            ProveError::Randomness(_) => Self::environment(e, Blame::Worker),
        }
    }
}

impl From<RegistryError> for AttemptError {
    fn from(e: RegistryError) -> Self {
        match e {
            RegistryError::Backend(e) => e.into(),
            // Both were sound when the circuit was registered, so it is this worker that cannot use them; it may be an
            // older version. The input is not at fault, and is kept.
            RegistryError::Witness(WitnessError::Module(_))
            | RegistryError::Key(_)
            | RegistryError::NotContributed
            | RegistryError::Mismatch { .. } => Self::failed(FailureClass::Transient, e),
            RegistryError::Witness(e) => e.into(),
            RegistryError::TooLarge { .. } => Self::failed(FailureClass::Device, e),
            // A missing or damaged file can be restored by registering the circuit again.
            RegistryError::Artifact(ArtifactError::Missing { .. } | ArtifactError::Damaged { .. }) => {
                Self::environment(format!("{e}; register the circuit again"), Blame::Either)
            }
            RegistryError::Artifact(_) | RegistryError::Store(_) | RegistryError::Cut(_) => {
                Self::environment(e, Blame::Worker)
            }
            // Noted once, by the load that failed.
            RegistryError::ConcurrentLoad(_) => Self::failed(FailureClass::Transient, e),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_input_that_does_not_open_here_is_not_bad_input() {
        let ended = AttemptError::from(SealError::Damaged);
        assert!(
            matches!(ended, AttemptError::Environment(JobError { class: FailureClass::Transient, .. }, _)),
            "{ended:?}"
        );
    }

    #[test]
    fn what_the_circuit_or_the_host_is_at_fault_for_does_not_cost_the_input() {
        let module = || WitnessError::Module("no getWitness".to_owned());
        let ended = [
            AttemptError::from(RegistryError::Mismatch { wasm: 3, zkey: 4 }),
            AttemptError::from(RegistryError::Witness(module())),
            AttemptError::from(WitnessError::Host("mmap failed".to_owned())),
            AttemptError::from(WitnessError::Memory { limit: 1 << 30 }),
            AttemptError::from(RegistryError::Witness(WitnessError::Memory { limit: 1 << 30 })),
        ];
        for ended in ended {
            let (AttemptError::Failed(error) | AttemptError::Environment(error, _)) = ended else {
                panic!("{ended:?}")
            };
            assert_eq!(error.class, FailureClass::Transient, "{}", error.message);
        }
    }

    #[test]
    fn memory_that_a_device_backend_made_too_small_does_not_cost_the_input() {
        let small = BackendError::TooSmall { what: "bytes to sort digits", needed: 2, available: 1 };
        let ended = AttemptError::from(ProveError::Backend(small));
        assert!(matches!(ended, AttemptError::Failed(JobError { class: FailureClass::Device, .. })), "{ended:?}");
    }

    /// Every attempt would end like this.
    #[test]
    fn a_program_that_asks_for_more_than_there_can_be_is_never_tried_again() {
        let ended = AttemptError::from(WitnessError::Memory { limit: witness::Limits::MAX_MEMORY });
        assert!(matches!(ended, AttemptError::Failed(JobError { class: FailureClass::BadInput, .. })), "{ended:?}");
    }

    /// The worker has all it needs, and the jobs of other circuits are not delayed.
    #[test]
    fn a_limit_on_memory_is_named_and_casts_no_doubt_on_the_worker() {
        let AttemptError::Failed(error) = AttemptError::from(WitnessError::Memory { limit: 1 << 30 }) else {
            panic!("it is of this job alone");
        };
        for words in ["1073741824 bytes", "PROVER_WITNESS_MEMORY_BYTES", "more"] {
            assert!(error.message.contains(words), "{}", error.message);
        }
    }
}
