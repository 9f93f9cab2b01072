//! Whether the worker is ready for work.

use std::sync::{Arc, Mutex, PoisonError};

/// Where a worker stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Status {
    /// Not yet, and what it is at.
    Starting(&'static str),
    /// Takes jobs.
    Ready,
    /// Takes no more jobs.
    Draining,
}

/// Shared between a worker and whoever asks for its health.
#[derive(Debug, Clone)]
pub struct Readiness(Arc<Mutex<Status>>);

impl Readiness {
    /// Not ready yet.
    pub fn starting(at: &'static str) -> Self {
        Self(Arc::new(Mutex::new(Status::Starting(at))))
    }

    /// Where it stands.
    pub fn get(&self) -> Status {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// It stands elsewhere now. A worker that drains never becomes ready again.
    pub fn set(&self, status: Status) {
        let mut now = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if *now != Status::Draining {
            *now = status;
        }
    }
}
