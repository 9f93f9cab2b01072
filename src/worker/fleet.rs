//! The devices of a worker: how many jobs each takes, which one a job gets, and which ones sit out.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use metrics::{counter, gauge};
use tokio::sync::Semaphore;

use super::canary::Canary;
use crate::backend::{Backend, DeviceInfo, DeviceKind};
use crate::model::{FailureClass, Job};
use crate::telemetry;

/// Failures in a row after which a device must sing before it gets another job.
const SUSPICIOUS: u32 = 3;
/// How long a device that failed its canary sits out, doubled each time.
const FIRST_PAUSE: Duration = Duration::from_secs(10);
const LONGEST_PAUSE: Duration = Duration::from_secs(300);

/// A device at work.
pub(super) struct Device {
    pub(super) backend: Arc<dyn Backend>,
    pub(super) label: String,
    /// Proofs at once.
    pub(super) gate: Semaphore,
    /// Jobs in hand at once.
    slots: usize,
    failures: AtomicU32,
    quarantined: AtomicBool,
    pause: Mutex<Option<(Instant, Duration)>>,
    busy_micros: AtomicU64,
}

impl Device {
    fn new(backend: Arc<dyn Backend>, slots: usize, proofs: usize) -> Self {
        let label = backend.device().label();
        telemetry::start_device(&label);
        Self {
            backend,
            label,
            gate: Semaphore::new(proofs),
            slots,
            failures: AtomicU32::new(0),
            quarantined: AtomicBool::new(false),
            pause: Mutex::new(None),
            busy_micros: AtomicU64::new(0),
        }
    }

    fn is_cpu(&self) -> bool {
        self.backend.device().kind == DeviceKind::Cpu
    }

    /// Notes a verified proof.
    pub(super) fn succeeded(&self, busy: Duration) {
        self.failures.store(0, Ordering::Relaxed);
        counter!(telemetry::DEVICE_PROOFS, "device" => self.label.clone()).increment(1);
        self.was_busy(busy);
    }

    /// Notes a failure. Only the device's own count against it.
    pub(super) fn failed(&self, class: FailureClass, busy: Duration) {
        if matches!(class, FailureClass::Device | FailureClass::InvalidProof) {
            self.failures.fetch_add(1, Ordering::Relaxed);
        }
        counter!(telemetry::DEVICE_FAILURES, "device" => self.label.clone(), "class" => class.as_str()).increment(1);
        self.was_busy(busy);
    }

    fn was_busy(&self, busy: Duration) {
        let micros = busy.as_micros() as u64;
        let total = self.busy_micros.fetch_add(micros, Ordering::Relaxed) + micros;
        counter!(telemetry::DEVICE_BUSY, "device" => self.label.clone()).absolute(total / 1_000_000);
    }

    /// Whether it gets jobs. After failures in a row it must sing first; one that cannot sits out for a while.
    pub(super) async fn is_fit(self: &Arc<Self>, canary: &Arc<Canary>) -> bool {
        let quarantined = self.quarantined.load(Ordering::Relaxed);
        if !quarantined && self.failures.load(Ordering::Relaxed) < SUSPICIOUS {
            return true;
        }
        let paused = |p: &mut Option<(Instant, Duration)>| {
            let still = p.is_some_and(|(until, _)| Instant::now() < until);
            if !still {
                // Whoever comes next waits for this look.
                let next = p.map_or(FIRST_PAUSE, |(_, last)| (last * 2).min(LONGEST_PAUSE));
                *p = Some((Instant::now() + next, next));
            }
            still
        };
        if paused(&mut self.pause.lock().unwrap_or_else(PoisonError::into_inner)) {
            return false;
        }
        let (me, canary) = (self.clone(), canary.clone());
        let sung = tokio::task::spawn_blocking(move || canary.sing(me.backend.as_ref())).await;
        let sung = sung.unwrap_or_else(|_| Err("the canary's proof panicked".to_owned()));
        if let Err(why) = &sung {
            tracing::error!(device = %self.label, why, "device sits out: its canary fails");
        } else {
            *self.pause.lock().unwrap_or_else(PoisonError::into_inner) = None;
            self.failures.store(0, Ordering::Relaxed);
            tracing::info!(device = %self.label, "device is fit: its canary passes");
        }
        self.quarantined.store(sung.is_err(), Ordering::Relaxed);
        gauge!(telemetry::DEVICE_QUARANTINED, "device" => self.label.clone()).set(if sung.is_err() {
            1.0
        } else {
            0.0
        });
        sung.is_ok()
    }
}

/// All devices, best first, and the slots over them.
pub(super) struct Fleet {
    devices: Vec<Arc<Device>>,
    /// Device by number, one entry a slot.
    slots: Vec<usize>,
}

/// How many jobs and how many proofs at once a device is good for on a machine with so many cores.
///
/// A proof on the CPU uses `threads` cores, so cores ÷ threads run side by side. Beyond that, one job more is worth
/// having: its witness, which takes one core, is made while the others' proofs run, and a proof's last, narrow stages
/// leave a core idle. So there are never fewer than two jobs. On a GPU one proof at a time keeps it busy, and witnesses
/// are the bottleneck: one a core.
fn size(device: &DeviceInfo, cores: usize) -> (usize, usize) {
    match device.kind {
        DeviceKind::Cpu => {
            let proofs = (cores / device.threads.max(1)).max(1);
            (proofs.max(2), proofs)
        }
        DeviceKind::Cuda | DeviceKind::Icicle => (1 + cores, 1),
    }
}

impl Fleet {
    /// Sizes the devices; `jobs`, if given, is the number of slots over all of them. While there is another device,
    /// the processor has none: it is the fallback, and busy with witnesses.
    pub(super) fn new(backends: Vec<Arc<dyn Backend>>, jobs: Option<usize>) -> Self {
        let cores = std::thread::available_parallelism().map_or(1, |n| n.get());
        let sized = |b: Arc<dyn Backend>| {
            let (slots, proofs) = size(b.device(), cores);
            Arc::new(Device::new(b, slots, proofs))
        };
        let devices: Vec<_> = backends.into_iter().map(sized).collect();
        let others = devices.iter().any(|d| !d.is_cpu());
        let workers: Vec<_> = (0..devices.len()).filter(|i| !others || !devices[*i].is_cpu()).collect();
        let total = jobs.unwrap_or_else(|| workers.iter().map(|i| devices[*i].slots).sum());
        let slots =
            if workers.is_empty() { Vec::new() } else { (0..total).map(|s| workers[s % workers.len()]).collect() };
        Self { devices, slots }
    }

    /// Device by number, one entry a slot.
    pub(super) fn slots(&self) -> &[usize] {
        &self.slots
    }

    pub(super) fn devices(&self) -> &[Arc<Device>] {
        &self.devices
    }

    /// The device for a job claimed by a slot of device `own`: that one at first, after a failure there another, and
    /// then, or after a proof that did not verify, the processor, whose arithmetic settles whether witness or device
    /// is at fault.
    pub(super) fn choose(&self, own: usize, job: &Job) -> &Arc<Device> {
        let cpu = self.devices.iter().position(|d| d.is_cpu()).unwrap_or(own);
        let doubtful = job.error.as_ref().is_some_and(|e| e.class == FailureClass::InvalidProof);
        let at = match job.tries.device {
            0 => own,
            1 if !doubtful => (own + 1) % self.devices.len(),
            _ => cpu,
        };
        &self.devices[at]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn device(kind: DeviceKind, threads: usize) -> DeviceInfo {
        DeviceInfo { kind, name: String::new(), ordinal: 0, threads, memory: 0 }
    }

    #[test]
    fn a_small_processor_takes_two_jobs_and_proves_one_at_a_time() {
        assert_eq!(size(&device(DeviceKind::Cpu, 2), 2), (2, 1));
        assert_eq!(size(&device(DeviceKind::Cpu, 1), 1), (2, 1));
        assert_eq!(size(&device(DeviceKind::Cpu, 1), 2), (2, 2));
        assert_eq!(size(&device(DeviceKind::Cpu, 8), 64), (8, 8));
        assert_eq!(size(&device(DeviceKind::Cpu, 64), 64), (2, 1));
        assert_eq!(size(&device(DeviceKind::Cuda, 0), 16), (17, 1));
    }
}
