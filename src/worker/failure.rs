//! How an attempt ends without a proof.

use std::time::Duration;

use crate::artifacts::ArtifactError;
use crate::backend::BackendError;
use crate::groth16::ProveError;
use crate::model::{FailureClass, JobError, StopReason, StopToken};
use crate::registry::RegistryError;
use crate::seal::SealError;
use crate::witness::{Limits, WitnessError};

/// How an attempt ends without a proof.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Ended {
    /// It failed.
    Failed(JobError),
    /// It failed for something around this worker that says nothing about the job: another worker may have it.
    Around(JobError, Blame),
    /// It was stopped.
    Stopped(StopReason),
    /// There is no room for it here for now.
    NoRoom,
}

/// Whom it may lie with that something is not there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Blame {
    /// The worker and what it depends on.
    Worker,
    /// The job or its circuit as well.
    Either,
}

impl Ended {
    pub(super) fn failed(class: FailureClass, why: impl ToString) -> Self {
        Self::Failed(JobError { class, message: why.to_string() })
    }

    /// Something around this worker failed, which may recover.
    fn around(why: impl ToString, blame: Blame) -> Self {
        Self::Around(JobError { class: FailureClass::Transient, message: why.to_string() }, blame)
    }

    /// A time-out is the stage's own, unless the job's as a whole is over.
    pub(super) fn within(self, job: &StopToken, what: &str, allowed: Duration) -> Self {
        match self {
            Self::Stopped(StopReason::TimedOut) if job.stopped().is_none() => {
                Self::failed(FailureClass::Timeout, format!("{what} took longer than {} s", allowed.as_secs()))
            }
            other => other,
        }
    }
}

impl From<WitnessError> for Ended {
    fn from(e: WitnessError) -> Self {
        match e {
            WitnessError::Stopped(why) => Self::Stopped(why),
            // More than any worker may give a program is never to be had.
            WitnessError::Memory { limit } if limit >= Limits::MOST_MEMORY => Self::failed(FailureClass::BadInput, e),
            // Compiling is bounded in time and memory, and another moment or machine may have more of both. The memory of a
            // run is this worker's limit, not the input's fault: another may have a higher one, or this one when it is started
            // again. Once that has come, the job can be queued again, for its input is kept.
            WitnessError::Compile(_) | WitnessError::Memory { .. } => Self::failed(FailureClass::Transient, e),
            WitnessError::Host(_) => Self::around(e, Blame::Worker),
            WitnessError::Input(_) | WitnessError::Module(_) | WitnessError::Assert(_) | WitnessError::Trap(_) => {
                Self::failed(FailureClass::BadInput, e)
            }
        }
    }
}

impl From<SealError> for Ended {
    fn from(e: SealError) -> Self {
        // Another worker may have the key, or the right one by that name, and this one when it is started again. As bad
        // input it would be deleted, for what may be a slip in one worker's settings.
        Self::around(e, Blame::Either)
    }
}

impl From<BackendError> for Ended {
    fn from(e: BackendError) -> Self {
        match e {
            BackendError::Stopped(why) => Self::Stopped(why),
            BackendError::Shape { .. } => Self::failed(FailureClass::BadInput, e),
            BackendError::Unavailable { .. } | BackendError::OutOfMemory { .. } | BackendError::Device { .. } => {
                Self::failed(FailureClass::Device, e)
            }
        }
    }
}

impl From<ProveError> for Ended {
    fn from(e: ProveError) -> Self {
        match e {
            ProveError::Backend(e) => e.into(),
            ProveError::WitnessLength { .. } | ProveError::WitnessOne => Self::failed(FailureClass::BadInput, e),
            ProveError::Invalid => Self::failed(FailureClass::InvalidProof, e),
            ProveError::Randomness(_) => Self::around(e, Blame::Worker),
        }
    }
}

impl From<RegistryError> for Ended {
    fn from(e: RegistryError) -> Self {
        match e {
            RegistryError::Backend(e) => e.into(),
            // Both were sound when the circuit was registered, so that it is this worker that cannot use them: an older
            // one, maybe. The input is not at fault, and kept.
            RegistryError::Witness(WitnessError::Module(_))
            | RegistryError::Key(_)
            | RegistryError::Mismatch { .. } => Self::failed(FailureClass::Transient, e),
            RegistryError::Witness(e) => e.into(),
            RegistryError::TooLarge { .. } => Self::failed(FailureClass::Device, e),
            // A file that is gone or damaged can be put back by registering the circuit again.
            RegistryError::Artifact(ArtifactError::Missing { .. } | ArtifactError::Damaged { .. }) => {
                Self::around(format!("{e}; register the circuit again"), Blame::Either)
            }
            RegistryError::Artifact(_) | RegistryError::Store(_) | RegistryError::Cut(_) => {
                Self::around(e, Blame::Worker)
            }
            // Noted once, where it happened.
            RegistryError::Elsewhere(_) => Self::failed(FailureClass::Transient, e),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_input_that_does_not_open_here_is_not_bad_input() {
        let ended = Ended::from(SealError::Damaged);
        assert!(matches!(ended, Ended::Around(JobError { class: FailureClass::Transient, .. }, _)), "{ended:?}");
    }

    #[test]
    fn what_the_circuit_or_the_host_is_at_fault_for_does_not_cost_the_input() {
        let module = || WitnessError::Module("no getWitness".to_owned());
        let ended = [
            Ended::from(RegistryError::Mismatch { wasm: 3, zkey: 4 }),
            Ended::from(RegistryError::Witness(module())),
            Ended::from(WitnessError::Host("mmap failed".to_owned())),
            Ended::from(WitnessError::Memory { limit: 1 << 30 }),
            Ended::from(RegistryError::Witness(WitnessError::Memory { limit: 1 << 30 })),
        ];
        for ended in ended {
            let (Ended::Failed(error) | Ended::Around(error, _)) = ended else { panic!("{ended:?}") };
            assert_eq!(error.class, FailureClass::Transient, "{}", error.message);
        }
    }

    /// All attempts would end so.
    #[test]
    fn a_program_that_asks_for_more_than_there_can_be_is_never_tried_again() {
        let ended = Ended::from(WitnessError::Memory { limit: Limits::MOST_MEMORY });
        assert!(matches!(ended, Ended::Failed(JobError { class: FailureClass::BadInput, .. })), "{ended:?}");
    }

    /// The worker has all it needs, and other circuits' jobs are not held back.
    #[test]
    fn a_limit_on_memory_is_named_and_casts_no_doubt_on_the_worker() {
        let Ended::Failed(error) = Ended::from(WitnessError::Memory { limit: 1 << 30 }) else {
            panic!("it is of this job alone");
        };
        for words in ["1073741824 bytes", "PROVER_WITNESS_MEMORY_BYTES", "more"] {
            assert!(error.message.contains(words), "{}", error.message);
        }
    }
}
