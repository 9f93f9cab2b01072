//! One device of a worker: its batcher, capacity and health, and what it has done so far.

use std::collections::HashSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use metrics::{counter, histogram};

use super::MAX_REMEMBERED;
use super::batcher::{Batcher, Batching, Order};
use super::canary::Canary;
use super::capacity::{Capacity, Size};
use super::health::Health;
use super::view::DeviceView;
use crate::backend::{Backend, DeviceInfo, DeviceKind};
use crate::model::{ContentHash, FailureClass, locked};
use crate::telemetry;

pub(super) struct Device {
    pub(super) backend: Arc<dyn Backend>,
    pub(super) label: String,
    /// Where witnesses wait for the device.
    pub(super) batcher: Batcher,
    pub(super) capacity: Capacity,
    pub(super) health: Health,
    busy_micros: AtomicU64,
    proofs: AtomicU64,
    /// Keys that do not fit into the device's memory, whatever else is there.
    too_large: Mutex<HashSet<ContentHash>>,
}

impl Device {
    pub(super) fn new(backend: Arc<dyn Backend>, size: Size, batching: Batching) -> Self {
        let label = backend.device().label();
        telemetry::start_device(&label);
        let max = match backend.device().kind {
            // The proofs of a batch would be made one by one, with the threads of one.
            DeviceKind::Cpu => Some(1),
            DeviceKind::Cuda | DeviceKind::Icicle => batching.max,
        };
        Self {
            batcher: Batcher::new(Batching { max, ..batching }),
            capacity: Capacity::new(backend.clone(), size),
            health: Health::new(label.clone()),
            backend,
            label,
            busy_micros: AtomicU64::new(0),
            proofs: AtomicU64::new(0),
            too_large: Mutex::default(),
        }
    }

    pub(super) fn is_cpu(&self) -> bool {
        self.backend.device().kind == DeviceKind::Cpu
    }

    /// Proofs of an order's circuit that the device makes at the same time, provided there are enough of them.
    pub(super) fn at_once(&self, order: &Order) -> usize {
        if self.is_cpu() { self.capacity.side_by_side(order.key.key()) } else { self.batcher.at_once(order) }
    }

    /// Takes the device out of use because a call to it does not return: jobs that wait for it fail, and it must pass
    /// its canary before it gets new ones.
    pub(super) fn take_out_of_use(&self, why: &str, busy: Duration) {
        tracing::error!(device = %self.label, why, "device quarantined: it hangs");
        self.failed(FailureClass::Device, busy);
        self.health.quarantine(why);
        self.batcher.close(why);
    }

    /// Notes a verified proof: the time it took, the part of it that was device time, and how many of its circuit the
    /// device makes at the same time.
    pub(super) fn succeeded(&self, took: Duration, busy: Duration, at_once: usize) {
        self.health.note_success();
        self.capacity.note_proof(took, busy, Some(at_once));
        self.proofs.fetch_add(1, Ordering::Relaxed);
        counter!(telemetry::DEVICE_PROOFS, "device" => self.label.clone()).increment(1);
        histogram!(telemetry::DEVICE_PROOF_DURATION, "device" => self.label.clone()).record(took.as_secs_f64());
        self.was_busy(busy);
    }

    /// Notes a failure. Only those of the device itself count against its health.
    pub(super) fn failed(&self, class: FailureClass, busy: Duration) {
        if matches!(class, FailureClass::Device | FailureClass::InvalidProof) {
            self.health.note_failure();
        }
        self.count_failure(class, busy);
    }

    /// Notes that the device's memory did not suffice. That does not make it unfit: another device may have more
    /// memory, but smaller circuits still work here.
    pub(super) fn lacked_memory(&self, busy: Duration) {
        self.count_failure(FailureClass::Device, busy);
    }

    /// Notes that this key is too large for the device, as it will be at every further attempt.
    pub(super) fn note_too_large(&self, zkey: ContentHash) {
        let mut too_large = self.too_large();
        if too_large.len() >= MAX_REMEMBERED {
            too_large.clear();
        }
        too_large.insert(zkey);
    }

    /// Whether this key is not known to be too large for the device.
    pub(super) fn may_take(&self, zkey: ContentHash) -> bool {
        !self.too_large().contains(&zkey)
    }

    fn too_large(&self) -> MutexGuard<'_, HashSet<ContentHash>> {
        locked(&self.too_large)
    }

    fn count_failure(&self, class: FailureClass, busy: Duration) {
        counter!(telemetry::DEVICE_FAILURES, "device" => self.label.clone(), "class" => class.as_str()).increment(1);
        self.was_busy(busy);
    }

    fn was_busy(&self, busy: Duration) {
        let micros = busy.as_micros() as u64;
        let total = self.busy_micros.fetch_add(micros, Ordering::Relaxed) + micros;
        counter!(telemetry::DEVICE_BUSY, "device" => self.label.clone()).absolute(total / 1_000_000);
    }

    /// Why the device gets no jobs; `None` while it gets some.
    pub(super) fn unfit(&self) -> Option<String> {
        (!self.is_fit()).then(|| self.health.reason())
    }

    /// The device's present state, for display.
    pub(super) fn view(&self) -> DeviceView {
        let DeviceInfo { name, memory, .. } = self.backend.device();
        DeviceView {
            device: self.label.clone(),
            name: name.clone(),
            memory: *memory,
            slots: self.capacity.slots(),
            in_hand: self.capacity.in_hand(),
            proofs: self.proofs.load(Ordering::Relaxed),
            busy_seconds: Duration::from_micros(self.busy_micros.load(Ordering::Relaxed)).as_secs_f64(),
            unfit: self.unfit(),
        }
    }

    /// Whether the device gets jobs. After several failures in a row it must pass its canary first.
    pub(super) fn is_fit(&self) -> bool {
        self.health.is_trusted() && !self.batcher.is_closed()
    }

    /// Starts the canary of an unfit device once it is due. Does not wait for it: a device may take long to fail.
    pub(super) fn look_after(self: &Arc<Self>, canary: &Arc<Canary>) {
        // A device that hangs would only block the canary too.
        if self.is_fit() || self.batcher.is_closed() || !self.health.begin_canary() {
            return;
        }
        let (device, canary) = (self.clone(), canary.clone());
        tokio::spawn(async move {
            if device.health.canary_due() {
                device.health.postpone_canary();
                device.clone().run_canary(canary).await;
            }
            device.health.end_canary();
        });
    }

    /// Runs the canary: a device that fails it is quarantined, one that passes is readmitted.
    async fn run_canary(self: Arc<Self>, canary: Arc<Canary>) {
        let me = self.clone();
        let result = tokio::task::spawn_blocking(move || canary.run(me.backend.as_ref())).await;
        match result.unwrap_or_else(|_| Err("the canary's proof panicked".to_owned())) {
            Err(why) => {
                tracing::error!(device = %self.label, why, "device quarantined: its canary fails");
                self.health.quarantine(&format!("the canary of {} fails: {why}", self.label));
            }
            Ok(()) => {
                tracing::info!(device = %self.label, "device is fit: its canary passes");
                self.health.readmit();
            }
        }
    }
}
