//! A running worker as seen from outside: its devices, and the jobs that each has.

use std::sync::{Arc, OnceLock, Weak};

use serde::Serialize;

use super::fleet::Fleet;
use crate::model::WorkerId;

/// A snapshot of a worker.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct WorkerView {
    /// The worker's id, which its jobs carry.
    pub id: WorkerId,
    /// The queue it takes jobs from.
    pub queue: String,
    /// Jobs it can currently have in progress.
    pub slots: usize,
    /// Jobs in progress.
    pub in_hand: usize,
    /// Its devices, in order of preference.
    pub devices: Vec<DeviceView>,
    /// Why other devices that are there are not used: they could not be opened, or failed their self-test or canary.
    pub lost: Vec<String>,
}

/// A snapshot of a device.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct DeviceView {
    /// Its label, as in results and metrics.
    pub device: String,
    /// Its model name.
    pub name: String,
    /// Its memory in bytes; 0 if unknown.
    pub memory: u64,
    /// Jobs it can currently have in progress. While there is another device, the CPU takes jobs only when it must.
    pub slots: usize,
    /// Jobs in progress.
    pub in_hand: usize,
    /// Verified proofs made since the worker started.
    pub proofs: u64,
    /// Time spent on proofs, failed ones included, in seconds.
    pub busy_seconds: f64,
    /// Why it gets no jobs; `None` while it gets some.
    pub unfit: Option<String>,
}

/// A handle for inspecting a worker, shared with it. Empty before the worker has started and after its end.
#[derive(Clone, Default)]
pub struct View(Arc<OnceLock<Shown>>);

struct Shown {
    id: WorkerId,
    queue: String,
    lost: Vec<String>,
    /// Weak, so that viewers do not keep the devices alive.
    fleet: Weak<Fleet>,
}

impl View {
    /// Returns a snapshot of the worker, if it is running.
    pub fn snapshot(&self) -> Option<WorkerView> {
        let Shown { id, queue, lost, fleet } = self.0.get()?;
        let fleet = fleet.upgrade()?;
        Some(WorkerView {
            id: id.clone(),
            queue: queue.clone(),
            slots: fleet.slots(),
            in_hand: fleet.in_hand(),
            devices: fleet.devices().iter().map(|device| device.view()).collect(),
            lost: lost.clone(),
        })
    }

    /// Makes a worker visible.
    pub(super) fn show(&self, id: WorkerId, queue: String, lost: Vec<String>, fleet: &Arc<Fleet>) {
        // There is one worker per process.
        let _ = self.0.set(Shown { id, queue, lost, fleet: Arc::downgrade(fleet) });
    }
}
