//! Memory of finished proofs, which stays with its key for the next ones until another key lacks memory.

use std::sync::{Arc, Mutex, Weak};

use super::super::BackendError;
use super::slot::Slot;
use crate::model::locked;

/// The slots of a key in which no proof is running.
pub(super) type IdleSlots = Mutex<Vec<Slot>>;

/// The idle slots of all keys of a device.
#[derive(Default)]
pub(super) struct IdlePool {
    keys: Mutex<Vec<Weak<IdleSlots>>>,
}

impl IdlePool {
    /// Adds a place for the idle slots of one more key.
    pub(super) fn register(&self) -> Arc<IdleSlots> {
        let place = Arc::default();
        let mut keys = locked(&self.keys);
        keys.retain(|key| key.strong_count() > 0);
        keys.push(Arc::downgrade(&place));
        place
    }

    /// Runs `work`, which allocates memory; if memory runs out, frees the idle slots and runs `work` once more.
    pub(super) fn with_memory<T>(&self, mut work: impl FnMut() -> Result<T, BackendError>) -> Result<T, BackendError> {
        match work() {
            Err(BackendError::OutOfMemory { .. }) if self.clear() => work(),
            done => done,
        }
    }

    /// Frees the memory of all idle slots; returns whether there were any.
    fn clear(&self) -> bool {
        let keys: Vec<_> = locked(&self.keys).iter().filter_map(Weak::upgrade).collect();
        let slots: Vec<Slot> = keys.iter().flat_map(|idle| std::mem::take(&mut *locked(idle))).collect();
        !slots.is_empty()
    }
}
