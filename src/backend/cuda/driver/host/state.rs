//! What a device holds: memory, streams, events, graphs, and work that has not run yet.
#![allow(unsafe_code)]

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Instant;

use super::super::graph::{Node, Work};
use super::super::{Address, BackendError, Event, Graph, Stream};
use super::memory::Allocation;
use super::{ILLEGAL_ADDRESS, INVALID_HANDLE, INVALID_VALUE};

/// A task in a stream.
pub(super) enum Task {
    Work(Work),
    Upload {
        to: Address,
        bytes: Vec<u8>,
    },
    /// Copies from and to memory of the caller, which is not accessed before the task runs.
    UploadLater {
        to: Address,
        from: HostPointer,
        bytes: u64,
    },
    DownloadLater {
        to: HostPointer,
        from: Address,
        bytes: u64,
    },
    /// Marks an event as having happened.
    Event(Event),
    Graph(Arc<[Node]>),
}

/// A place in the caller's memory.
pub(super) struct HostPointer(pub(super) *mut u8);

// SAFETY: the caller that passes such a place guarantees that it is valid until the work has run, on whatever thread.
unsafe impl Send for HostPointer {}

pub(super) struct Pending {
    pub(super) task: Task,
    /// Tasks that must end before this one; those that are no longer pending have ended.
    pub(super) after: Vec<u64>,
}

/// An event: the task that marks it as having happened, and the time when that ran.
#[derive(Clone, Copy)]
pub(super) struct EventState {
    pub(super) task: u64,
    pub(super) at: Option<Instant>,
}

#[derive(Default)]
pub(super) struct State {
    pub(super) allocations: BTreeMap<u64, Allocation>,
    pub(super) used: u64,
    /// Number of allocations so far.
    pub(super) allocated: u64,
    pub(super) pending: BTreeMap<u64, Pending>,
    /// The tasks that the next task of each stream comes after.
    pub(super) streams: HashMap<Stream, Vec<u64>>,
    pub(super) events: HashMap<Event, EventState>,
    pub(super) graphs: HashMap<Graph, Arc<[Node]>>,
    pub(super) handles: u64,
    pub(super) launches: u64,
    /// Kernels that ran, each with the most shared memory of a block.
    pub(super) launched: BTreeMap<&'static str, u32>,
    pub(super) choices: u64,
    pub(super) fault: Option<(BackendError, String)>,
}

impl State {
    pub(super) fn handle(&mut self) -> u64 {
        self.handles += 1;
        self.handles
    }

    /// Records a fault, which every later call reports.
    pub(super) fn fail(&mut self, error: BackendError, message: String) -> BackendError {
        tracing::error!(%error, "{message}");
        self.pending.clear();
        self.fault.get_or_insert((error.clone(), message));
        error
    }

    pub(super) fn stream(&self, op: &'static str, stream: Stream) -> Result<(), BackendError> {
        if self.streams.contains_key(&stream) { Ok(()) } else { Err(BackendError::Device { op, code: INVALID_HANDLE }) }
    }

    pub(super) fn event(&self, op: &'static str, event: Event) -> Result<EventState, BackendError> {
        self.events.get(&event).copied().ok_or(BackendError::Device { op, code: INVALID_HANDLE })
    }

    /// Returns the pending tasks that must run for these to end, including these.
    pub(super) fn needed(&self, tasks: &[u64]) -> BTreeSet<u64> {
        let (mut needed, mut open) = (BTreeSet::new(), tasks.to_vec());
        while let Some(task) = open.pop() {
            if let Some(pending) = self.pending.get(&task)
                && needed.insert(task)
            {
                open.extend(&pending.after);
            }
        }
        needed
    }

    /// Returns the bytes from an address to the end of the allocation in which, or at whose end, it lies.
    pub(super) fn remaining(&self, address: Address) -> Option<u64> {
        let (start, allocation) = self.allocations.range(..=address.0).next_back()?;
        (start + allocation.bytes as u64).checked_sub(address.0)
    }

    /// Checks that `bytes` bytes at an address lie in one allocation.
    pub(super) fn check(&self, op: &'static str, address: Address, bytes: u64) -> Result<(), BackendError> {
        match self.remaining(address) {
            None => Err(BackendError::Device { op, code: INVALID_VALUE }),
            Some(room) if room < bytes => Err(BackendError::TooSmall { what: op, needed: bytes, available: room }),
            Some(_) => Ok(()),
        }
    }

    /// Returns an error if something wrote outside of an allocation.
    pub(super) fn check_guards(&mut self, op: &'static str) -> Result<(), BackendError> {
        let broken = self.allocations.values().find_map(|allocation| Some((allocation.broken()?, allocation.bytes)));
        let Some((at, bytes)) = broken else { return Ok(()) };
        let message = format!("{op}: byte {at} of an allocation was written: expected 0 to {bytes}");
        Err(self.fail(BackendError::Device { op, code: ILLEGAL_ADDRESS }, message))
    }
}
