//! A running worker as those see it that look from outside: its devices, and what each has in hand.

use std::sync::{Arc, OnceLock, Weak};

use serde::Serialize;

use super::fleet::Fleet;
use crate::model::WorkerId;

/// A worker at one moment.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct WorkerView {
    /// Its id, by which jobs name who has them.
    pub id: WorkerId,
    /// The queue it takes jobs from.
    pub queue: String,
    /// Jobs it can have in hand at once, as things are.
    pub slots: usize,
    /// Jobs it has in hand.
    pub in_hand: usize,
    /// Its devices, best first.
    pub devices: Vec<DeviceView>,
    /// Why it does without others that it found: their canary failed at the start.
    pub lost: Vec<String>,
}

/// A device at one moment.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct DeviceView {
    /// Its label, as in results and metrics.
    pub device: String,
    /// What it calls itself.
    pub name: String,
    /// Its memory, bytes; 0 where unknown.
    pub memory: u64,
    /// Jobs it takes in hand at once, as things are. The processor takes some only where it must, while there is another device.
    pub slots: usize,
    /// Jobs it has in hand.
    pub in_hand: usize,
    /// Verified proofs it has made since the worker started.
    pub proofs: u64,
    /// Time it has spent on proofs, failed ones included, seconds.
    pub busy_seconds: f64,
    /// Why it gets no jobs; none where it gets some.
    pub unfit: Option<String>,
}

/// A place to look at a worker from, shared with it. There is nothing to be seen before it has started and after its end.
#[derive(Clone, Default)]
pub struct View(Arc<OnceLock<Shown>>);

struct Shown {
    id: WorkerId,
    queue: String,
    lost: Vec<String>,
    /// Devices are the worker's: whoever looks does not keep them.
    fleet: Weak<Fleet>,
}

impl View {
    /// The worker, if there is one.
    pub fn look(&self) -> Option<WorkerView> {
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

    /// Shows a worker from now on.
    pub(super) fn show(&self, id: WorkerId, queue: String, lost: Vec<String>, fleet: &Arc<Fleet>) {
        // There is one worker to a process.
        let _ = self.0.set(Shown { id, queue, lost, fleet: Arc::downgrade(fleet) });
    }
}
