//! A device's capacity: the jobs it takes, and the proofs it makes at the same time.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::batcher::Order;
use crate::backend::{Backend, DeviceInfo, DeviceKind};
use crate::model::{ProvingKey, locked};

/// Proofs, or batches of them, on a GPU at the same time. While it computes one, the witness of the other is uploaded
/// and its points are downloaded, assembled and verified.
const GPU_PROOFS: usize = 2;
/// Bytes of the units in which a device's memory is shared out to proofs.
const UNIT: u64 = 1 << 20;

/// How a device is put to work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Size {
    /// Jobs in progress.
    pub(super) slots: Slots,
    /// Proofs, or batches of them, at the same time. One on the CPU: the proofs that share its threads count as a
    /// batch.
    pub(super) proofs: usize,
    /// On the CPU, the threads that proofs share: its cores.
    pub(super) threads: usize,
}

/// How many jobs a device takes at the same time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Slots {
    /// This number of jobs.
    Fixed(usize),
    /// As many as keep the device busy, by its pace (see [`wanted`]): at most `beside` in addition to those it proves.
    ByPace { beside: usize },
}

/// An exponential moving average; `None` before the first value.
#[derive(Debug, Clone, Copy, Default)]
struct Mean(Option<f64>);

impl Mean {
    fn note(&mut self, value: f64) {
        self.0 = Some(self.0.map_or(value, |mean| mean + (value - mean) / 4.0));
    }
}

/// Recent times of a device and its jobs.
#[derive(Debug, Clone, Copy, Default)]
struct Pace {
    /// Seconds of a job that do not need the device: making its witness and writing its result.
    beside: Mean,
    /// Seconds of device time for a proof; of several at the same time, its share.
    proof: Mean,
    /// Seconds from the start of a proof to its end.
    took: Mean,
    /// Proofs of a job's circuit that the device makes at the same time.
    batch: Mean,
}

/// A batch's share of a device, until dropped.
pub(super) struct Share {
    /// The part of the elapsed time that counts as device time: less than one where other batches run at the same time,
    /// each on its own threads.
    pub(super) of_time: f64,
    _permits: OwnedSemaphorePermit,
}

/// What running proofs share.
enum Sharing {
    /// The threads of the CPU.
    Threads {
        threads: Permits,
        /// Limits jobs with their keys and witnesses, counted in threads of their proofs, to twice what running proofs
        /// have: whatever the pace that jobs of small circuits left behind, only two large ones are in progress. `None`
        /// where the number of jobs is configured.
        jobs: Option<Arc<Semaphore>>,
    },
    /// The memory of another device, in units.
    Memory(Permits),
    /// Nothing is known to be short: the device does not tell its memory.
    Unbounded,
}

impl Sharing {
    fn of(device: &DeviceInfo, size: Size) -> Self {
        match device.kind {
            DeviceKind::Cpu => Self::Threads {
                threads: Permits::new(u32::try_from(size.threads).unwrap_or(u32::MAX)),
                jobs: match size.slots {
                    Slots::Fixed(_) => None,
                    Slots::ByPace { .. } => Some(Arc::new(Semaphore::new(2 * size.threads))),
                },
            },
            DeviceKind::Cuda | DeviceKind::Icicle => {
                memory_of_proofs(device).map_or(Self::Unbounded, |units| Self::Memory(Permits::new(units)))
            }
        }
    }
}

/// Permits that running proofs share.
struct Permits {
    free: Arc<Semaphore>,
    total: u32,
}

impl Permits {
    fn new(total: u32) -> Self {
        Self { free: Arc::new(Semaphore::new(total as usize)), total }
    }

    fn all_free(&self) -> bool {
        self.free.available_permits() == self.total as usize
    }

    /// Waits for this many permits, or for all where there are fewer.
    async fn acquire(&self, wanted: u64) -> Option<OwnedSemaphorePermit> {
        let permits = wanted.min(u64::from(self.total)) as u32;
        self.free.clone().acquire_many_owned(permits).await.ok()
    }
}

pub(super) struct Capacity {
    backend: Arc<dyn Backend>,
    size: Size,
    /// Admits one call at a time, in order of arrival; `None` where the device takes several.
    turns: Option<Arc<Semaphore>>,
    sharing: Sharing,
    pace: Mutex<Pace>,
    in_hand: AtomicUsize,
}

impl Capacity {
    pub(super) fn new(backend: Arc<dyn Backend>, size: Size) -> Self {
        let kind = backend.device().kind;
        let turns = (kind == DeviceKind::Icicle).then(|| Arc::new(Semaphore::new(1)));
        let sharing = Sharing::of(backend.device(), size);
        Self { backend, size, turns, sharing, pace: Mutex::default(), in_hand: AtomicUsize::new(0) }
    }

    /// The exclusive right to call the device, where it takes one call at a time. Timeouts start only once it is
    /// granted: the calls before may rightly take long.
    pub(super) async fn turn(&self) -> Option<OwnedSemaphorePermit> {
        self.turns.clone()?.acquire_owned().await.ok()
    }

    /// Most calls to the device at the same time, reached if all are as small as possible.
    pub(super) fn calls(&self) -> usize {
        self.size.proofs.max(self.size.threads)
    }

    /// Waits for a batch's share of what the running proofs leave. A batch that needs more than the device has gets all
    /// of it once nothing else runs, and is still tried. `None` where nothing is shared.
    pub(super) async fn share_for(&self, batch: &[Order]) -> Option<Share> {
        let key = &batch.first()?.key;
        match &self.sharing {
            Sharing::Threads { threads, .. } => {
                let wanted = self.threads(key.key());
                // A proof that starts while no other runs gets all threads.
                let has = if threads.all_free() { self.backend.device().threads.max(wanted) } else { wanted };
                let permits = threads.acquire(wanted as u64).await?;
                let of_time = (has as f64 / f64::from(threads.total)).min(1.0);
                Some(Share { of_time, _permits: permits })
            }
            Sharing::Memory(memory) => {
                let each = self.backend.footprint(key.key()).per_proof;
                // The device works on no more of them at the same time than it prefers.
                let at_once = batch.len().min(key.preferred_batch().max(1)) as u64;
                let permits = memory.acquire(each.saturating_mul(at_once).div_ceil(UNIT)).await?;
                Some(Share { of_time: 1.0, _permits: permits })
            }
            Sharing::Unbounded => None,
        }
    }

    /// Threads that a proof of this key gets on the CPU while others run.
    fn threads(&self, key: &ProvingKey) -> usize {
        self.backend.threads(key).clamp(1, self.size.threads.max(1))
    }

    /// What limits the jobs in progress by their size; `None` where nothing does: on a GPU, and where the number of
    /// jobs is configured.
    fn job_permits(&self) -> Option<&Arc<Semaphore>> {
        match &self.sharing {
            Sharing::Threads { jobs, .. } => jobs.as_ref(),
            Sharing::Memory(_) | Sharing::Unbounded => None,
        }
    }

    /// Waits until a job of this circuit, with its key and its witness, fits beside the others. `None` where there is
    /// no such limit.
    pub(super) async fn admit_job(&self, key: &ProvingKey) -> Option<OwnedSemaphorePermit> {
        let permits = self.job_permits()?;
        // Noted now and not when the proof is made, so that large jobs that follow small ones are taken no further.
        self.pace().batch.note(self.side_by_side(key) as f64);
        permits.clone().acquire_many_owned(self.threads(key) as u32).await.ok()
    }

    /// Notes that a job of this circuit was not admitted in time: from now on only as many are taken as if all were
    /// like it.
    pub(super) fn note_crowded(&self, key: &ProvingKey) {
        self.pace().batch = Mean(Some(self.side_by_side(key) as f64));
    }

    /// Proofs of this key that the threads of the CPU suffice for at the same time.
    pub(super) fn side_by_side(&self, key: &ProvingKey) -> usize {
        self.size.threads / self.threads(key)
    }

    /// Notes the time of a proof, the part of it that was device time, and, where known, how many of its circuit the
    /// device makes at the same time.
    pub(super) fn note_proof(&self, took: Duration, busy: Duration, at_once: Option<usize>) {
        let mut pace = self.pace();
        pace.proof.note(busy.as_secs_f64());
        pace.took.note(took.as_secs_f64());
        if let Some(at_once) = at_once {
            pace.batch.note(at_once as f64);
        }
    }

    /// Notes how much time a job took that did not need the device.
    pub(super) fn note_beside(&self, took: Duration) {
        self.pace().beside.note(took.as_secs_f64());
    }

    fn pace(&self) -> MutexGuard<'_, Pace> {
        locked(&self.pace)
    }

    /// Number of jobs that the device currently takes at the same time.
    pub(super) fn slots(&self) -> usize {
        match self.size.slots {
            Slots::Fixed(jobs) => jobs,
            Slots::ByPace { beside } => wanted(self.size.proofs, &self.pace(), beside),
        }
    }

    /// Number of jobs that the device could take now: 0 while those it has are too large for another beside them,
    /// whatever its pace. A job that was not admitted would be handed back, only to be taken again.
    pub(super) fn free(&self) -> usize {
        if self.job_permits().is_some_and(|jobs| jobs.available_permits() == 0) {
            return 0;
        }
        self.slots().saturating_sub(self.in_hand())
    }

    /// Number of jobs on the device.
    pub(super) fn in_hand(&self) -> usize {
        self.in_hand.load(Ordering::Relaxed)
    }

    /// Counts a job in.
    pub(super) fn take(&self) {
        self.in_hand.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts a job out.
    pub(super) fn let_go(&self) {
        self.in_hand.fetch_sub(1, Ordering::Relaxed);
    }

    /// Seconds by which a job's proof delays the next one, by recent proofs, where at most `in_hand` jobs are in
    /// progress; 0 before the first.
    pub(super) fn seconds_a_proof(&self, in_hand: usize) -> f64 {
        let pace = self.pace();
        let (share, took) = (pace.proof.0.unwrap_or(0.0), pace.took.0.unwrap_or(0.0));
        (share / self.size.proofs as f64).max(took / in_hand.max(1) as f64)
    }
}

/// Units of memory that all proofs on a GPU may take: the half that the registry does not fill with keys. `None` if its
/// memory is unknown.
fn memory_of_proofs(device: &DeviceInfo) -> Option<u32> {
    let units = u32::try_from(device.memory / 2 / UNIT).unwrap_or(u32::MAX >> 3);
    (units > 0).then_some(units)
}

/// The jobs and simultaneous proofs that suit a device on a machine with `cores` cores and `gpus` GPUs.
///
/// Proofs on the CPU share its cores, each with the number of threads that its circuit is worth ([`Backend::threads`]):
/// all of them where it is large. Two proofs at the same time keep a GPU busy, where its memory holds both
/// ([`Capacity::share_for`]). How many jobs a device takes in addition depends on the jobs: at most one per core over
/// all GPUs, and always at least one, whose witness is made meanwhile.
pub(super) fn size(device: &DeviceInfo, cores: usize, gpus: usize) -> Size {
    let slots = Slots::ByPace { beside: cores.div_ceil(gpus.max(1)) };
    match device.kind {
        DeviceKind::Cpu => Size { slots: Slots::ByPace { beside: cores }, proofs: 1, threads: cores.max(1) },
        DeviceKind::Cuda => Size { slots, proofs: GPU_PROOFS, threads: 0 },
        // Its process does one thing at a time.
        DeviceKind::Icicle => Size { slots, proofs: 1, threads: 0 },
    }
}

/// Number of jobs that keep a device busy, and no more: any job beyond that would wait here, with its witness in
/// memory, while another worker may be idle. That is the proofs it makes at the same time, in the batches it prefers,
/// plus the jobs that are in their other stages meanwhile: at least one and at most `most`.
fn wanted(proofs: usize, pace: &Pace, most: usize) -> usize {
    let batch = pace.batch.0.map_or(1, |batch| batch.round() as usize).max(1);
    let beside = match (pace.beside.0, pace.proof.0) {
        (Some(beside), Some(proof)) => (proofs as f64 * beside / proof).ceil() as usize,
        _ => 1,
    };
    proofs * batch + beside.clamp(1, most.max(1))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::backend::cpu::CpuBackend;

    fn device(kind: DeviceKind, threads: usize) -> DeviceInfo {
        DeviceInfo { kind, name: String::new(), ordinal: 0, threads, memory: 0 }
    }

    #[test]
    fn a_processor_has_threads_for_as_many_proofs_as_cores() {
        for (threads, cores, gpus, all) in [(2, 2, 0, 2), (1, 1, 0, 1), (1, 2, 0, 2), (8, 64, 1, 64), (4, 2, 0, 2)] {
            let size = size(&device(DeviceKind::Cpu, threads), cores, gpus);
            assert_eq!(size, Size { slots: Slots::ByPace { beside: cores }, proofs: 1, threads: all });
        }
    }

    #[test]
    fn gpus_take_two_proofs_each_and_share_the_cores_for_witnesses() {
        let by = |beside, proofs| Size { slots: Slots::ByPace { beside }, proofs, threads: 0 };
        assert_eq!(size(&device(DeviceKind::Cuda, 1), 16, 1), by(16, 2));
        assert_eq!(size(&device(DeviceKind::Cuda, 1), 16, 8), by(2, 2));
        assert_eq!(size(&device(DeviceKind::Cuda, 1), 2, 8), by(1, 2));
        assert_eq!(size(&device(DeviceKind::Icicle, 1), 16, 1), by(16, 1));
    }

    #[test]
    fn a_gpu_takes_what_keeps_it_at_work_and_no_more() {
        // Seconds without the device, seconds on it, batch; at most 16 jobs in addition to two proofs.
        for (beside, proof, batch, expected) in [
            (2.0, 60.0, 1, 3),
            (60.0, 60.0, 1, 4),
            (3.0, 1.0, 1, 8),
            (100.0, 1.0, 1, 18),
            (0.0, 1.0, 1, 3),
            (0.0, 0.0, 1, 3),
            (1.0, 0.0, 1, 18),
            (0.002, 0.001, 8, 20),
            (0.02, 0.001, 8, 32),
            (0.001, 0.01, 8, 17),
        ] {
            let mut pace = Pace::default();
            pace.beside.note(beside);
            pace.proof.note(proof);
            pace.batch.note(f64::from(batch));
            assert_eq!(wanted(2, &pace, 16), expected, "{beside} s beside {proof} s, by {batch}");
        }
        assert_eq!(wanted(2, &Pace::default(), 16), 3, "before the first proof");
    }

    #[test]
    fn the_pace_follows_the_latest_jobs() {
        let mut mean = Mean::default();
        mean.note(8.0);
        mean.note(4.0);
        assert_eq!(mean.0, Some(7.0));
        for _ in 0..40 {
            mean.note(1.0);
        }
        assert_eq!(mean.0.map(f64::round), Some(1.0));
    }

    #[test]
    fn nothing_is_taken_while_what_is_in_hand_is_too_large_for_more() {
        let size = Size { slots: Slots::ByPace { beside: 2 }, proofs: 1, threads: 2 };
        let capacity = Capacity::new(Arc::new(CpuBackend::new(1).unwrap()), size);
        assert_eq!(capacity.free(), 2, "before the first proof");
        let jobs = capacity.job_permits().unwrap();
        let large = [0, 1].map(|_| jobs.clone().try_acquire_many_owned(2).unwrap());
        assert_eq!(capacity.free(), 0, "though its pace would have it take two");
        drop(large);
        assert_eq!(capacity.free(), 2);
    }

    #[test]
    fn proofs_share_what_a_gpu_has_beside_its_keys() {
        let with = |kind, memory| memory_of_proofs(&DeviceInfo { memory, ..device(kind, 1) });
        assert_eq!(with(DeviceKind::Cuda, 80 << 30), Some(40 << 10));
        assert_eq!(with(DeviceKind::Cuda, u64::MAX), Some(u32::MAX >> 3));
        assert_eq!(with(DeviceKind::Cuda, 0), None);
    }
}
