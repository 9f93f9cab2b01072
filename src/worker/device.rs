//! One device at work: its slots, its pace, its failures, and the canary that it sings after them.

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use metrics::{counter, gauge, histogram};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::canary::Canary;
use super::desk::{Batching, Desk, Order};
use super::view::DeviceView;
use crate::backend::{Backend, DeviceInfo, DeviceKind};
use crate::model::{ContentHash, FailureClass, ProvingKey, locked};
use crate::telemetry;

/// Failures in a row after which a device must sing before it gets another job.
const SUSPICIOUS: u32 = 3;
/// How long a device that failed its canary sits out, doubled each time.
const FIRST_PAUSE: Duration = Duration::from_secs(10);
const LONGEST_PAUSE: Duration = Duration::from_secs(300);
/// Proofs on a GPU at once, or batches of them. While it computes one, the other's witness comes up, and its points go down to be
/// assembled and verified.
const GPU_PROOFS: usize = 2;
/// Keys that are remembered to be too large for a device.
const MOST_REMEMBERED: usize = 10_000;
/// Memory of a device is shared out to proofs in units of so many bytes.
const UNIT: u64 = 1 << 20;

/// How a device is put to work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Size {
    /// Jobs in hand.
    pub(super) slots: Slots,
    /// Proofs at once, or batches of them. On the processor one: those that its threads take at once count as a batch.
    pub(super) proofs: usize,
    /// Threads that proofs share, on the processor: its cores.
    pub(super) threads: usize,
}

/// How many jobs a device takes in hand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Slots {
    /// So many.
    Fixed(usize),
    /// What keeps it at work, by its pace: see [`wanted`]. At most so many beside those that it proves.
    ByPace { beside: usize },
}

/// A mean in which the latest values weigh most; none before the first.
#[derive(Debug, Clone, Copy, Default)]
struct Mean(Option<f64>);

impl Mean {
    fn note(&mut self, value: f64) {
        self.0 = Some(self.0.map_or(value, |mean| mean + (value - mean) / 4.0));
    }
}

/// How a device and its jobs have got on lately.
#[derive(Debug, Clone, Copy, Default)]
struct Pace {
    /// Seconds of a job that are not the device's: its witness, and the writing of its result.
    beside: Mean,
    /// Seconds of a proof; of several at once, its share.
    proof: Mean,
    /// Seconds from the begin of a proof to its end.
    took: Mean,
    /// Proofs of a job's circuit that the device makes at once.
    batch: Mean,
}

/// What a batch at work has of the device, until dropped.
pub(super) struct Room {
    /// The part of the device's time that its time is: less than one where others are at work beside it, each with its
    /// threads.
    pub(super) share: f64,
    _taken: OwnedSemaphorePermit,
}

/// A device at work.
pub(super) struct Device {
    pub(super) backend: Arc<dyn Backend>,
    pub(super) label: String,
    /// Where witnesses wait for it.
    pub(super) desk: Desk,
    size: Size,
    /// One call at a time, in order of arrival; none where the device takes several.
    turns: Option<Arc<Semaphore>>,
    /// What proofs at work share: threads of the processor, or memory of another device, in units. Unbounded where that is
    /// unknown.
    common: Option<(Arc<Semaphore>, u32)>,
    /// On the processor, room for jobs with their keys and witnesses, in threads of their proofs: twice as much as proofs at
    /// work have. Whatever the pace was that jobs of small circuits left, large ones are two in hand at a time.
    hands: Arc<Semaphore>,
    pace: Mutex<Pace>,
    in_hand: AtomicUsize,
    failures: AtomicU32,
    quarantined: AtomicBool,
    /// Why it was put out of use last.
    why: Mutex<String>,
    singing: AtomicBool,
    pause: Mutex<Option<(Instant, Duration)>>,
    busy_micros: AtomicU64,
    proofs: AtomicU64,
    /// Keys that it has not the memory for, whatever else is there.
    too_large: Mutex<HashSet<ContentHash>>,
}

impl Device {
    pub(super) fn new(backend: Arc<dyn Backend>, size: Size, batching: Batching) -> Self {
        let label = backend.device().label();
        telemetry::start_device(&label);
        let turns = (backend.device().kind == DeviceKind::Icicle).then(|| Arc::new(Semaphore::new(1)));
        let (units, most) = match backend.device().kind {
            // Those of a batch would be made one by one, with the threads of one.
            DeviceKind::Cpu => (u32::try_from(size.threads).ok(), Some(1)),
            DeviceKind::Cuda | DeviceKind::Icicle => (memory_of_proofs(backend.device()), batching.most),
        };
        let common = units.map(|units| (Arc::new(Semaphore::new(units as usize)), units));
        Self {
            backend,
            label,
            desk: Desk::new(Batching { most, ..batching }),
            size,
            turns,
            common,
            hands: Arc::new(Semaphore::new(2 * size.threads)),
            pace: Mutex::default(),
            in_hand: AtomicUsize::new(0),
            failures: AtomicU32::new(0),
            quarantined: AtomicBool::new(false),
            why: Mutex::default(),
            singing: AtomicBool::new(false),
            pause: Mutex::new(None),
            busy_micros: AtomicU64::new(0),
            proofs: AtomicU64::new(0),
            too_large: Mutex::default(),
        }
    }

    pub(super) fn is_cpu(&self) -> bool {
        self.backend.device().kind == DeviceKind::Cpu
    }

    /// The sole right to call the device, where it takes one call at a time. No clock runs before it is there: what goes
    /// before may rightly take long.
    pub(super) async fn turn(&self) -> Option<OwnedSemaphorePermit> {
        self.turns.clone()?.acquire_owned().await.ok()
    }

    /// Calls to it at once, if all are as small as can be.
    pub(super) fn calls(&self) -> usize {
        self.size.proofs.max(self.size.threads)
    }

    /// Room for a batch, as soon as there is enough beside the proofs at work, and at once where there are none: what
    /// takes more than all of it is still tried.
    pub(super) async fn room_for(&self, batch: &[Order]) -> Option<Room> {
        let (free, all) = self.common.as_ref()?;
        let key = &batch.first()?.key;
        let units = if self.is_cpu() {
            self.threads(key.key()) as u64
        } else {
            let each = self.backend.footprint(key.key()).per_proof;
            // No more of them are at work at a time than the device likes.
            let at_once = batch.len().min(key.preferred_batch().max(1)) as u64;
            each.saturating_mul(at_once).div_ceil(UNIT)
        };
        let units = units.min(u64::from(*all)) as u32;
        let alone = free.available_permits() == *all as usize;
        let taken = free.clone().acquire_many_owned(units).await.ok()?;
        let has = if alone { self.backend.device().threads.max(units as usize) as f64 } else { f64::from(units) };
        let share = if self.is_cpu() { (has / f64::from(*all)).min(1.0) } else { 1.0 };
        Some(Room { share, _taken: taken })
    }

    /// Threads that a proof of this key has beside others, on the processor.
    fn threads(&self, key: &ProvingKey) -> usize {
        self.backend.threads(key).clamp(1, self.size.threads.max(1))
    }

    /// Room for a job of this circuit, with its key and its witness, as soon as there is some. On a GPU there is, and where
    /// the number of jobs in hand was chosen.
    pub(super) async fn hands(&self, key: &ProvingKey) -> Option<OwnedSemaphorePermit> {
        if !self.is_cpu() || matches!(self.size.slots, Slots::Fixed(_)) {
            return None;
        }
        // Now, rather than when its proof is made: large jobs that follow small ones should be taken no further.
        self.pace().batch.note(self.side_by_side(key) as f64);
        self.hands.clone().acquire_many_owned(self.threads(key) as u32).await.ok()
    }

    /// Notes that a job of this circuit found no room: no more are taken than if all were like it.
    pub(super) fn is_crowded(&self, key: &ProvingKey) {
        self.pace().batch = Mean(Some(self.side_by_side(key) as f64));
    }

    /// Proofs of this key that the processor's threads are for.
    fn side_by_side(&self, key: &ProvingKey) -> usize {
        self.size.threads / self.threads(key)
    }

    /// Proofs of an order's circuit that it makes at once, where there are so many.
    pub(super) fn at_once(&self, order: &Order) -> usize {
        if self.is_cpu() { self.side_by_side(order.key.key()) } else { self.desk.at_once(order) }
    }

    /// Takes the device out of use, for a call to it does not come back: whoever waits for it is told, and it must sing
    /// before it gets jobs again.
    pub(super) fn hangs(&self, why: &str, busy: Duration) {
        tracing::error!(device = %self.label, why, "device sits out: it hangs");
        self.failed(FailureClass::Device, busy);
        self.quarantine(Some(why));
        self.desk.close(why);
    }

    pub(super) fn quarantine(&self, why: Option<&str>) {
        why.unwrap_or_default().clone_into(&mut locked(&self.why));
        self.quarantined.store(why.is_some(), Ordering::Relaxed);
        let shown = if why.is_some() { 1.0 } else { 0.0 };
        gauge!(telemetry::DEVICE_QUARANTINED, "device" => self.label.clone()).set(shown);
    }

    /// Notes a verified proof, how long it took, the share of the device's time that this was, and how many of its circuit
    /// the device makes at once.
    pub(super) fn succeeded(&self, took: Duration, busy: Duration, at_once: usize) {
        self.failures.store(0, Ordering::Relaxed);
        let mut pace = self.pace();
        pace.proof.note(busy.as_secs_f64());
        pace.took.note(took.as_secs_f64());
        pace.batch.note(at_once as f64);
        drop(pace);
        self.proofs.fetch_add(1, Ordering::Relaxed);
        counter!(telemetry::DEVICE_PROOFS, "device" => self.label.clone()).increment(1);
        histogram!(telemetry::DEVICE_PROOF_DURATION, "device" => self.label.clone()).record(took.as_secs_f64());
        self.was_busy(busy);
    }

    /// Notes how long a job that it proved took beside that.
    pub(super) fn took_beside(&self, took: Duration) {
        self.pace().beside.note(took.as_secs_f64());
    }

    fn pace(&self) -> MutexGuard<'_, Pace> {
        locked(&self.pace)
    }

    /// Notes a failure. Only the device's own count against it.
    pub(super) fn failed(&self, class: FailureClass, busy: Duration) {
        if matches!(class, FailureClass::Device | FailureClass::InvalidProof) {
            self.failures.fetch_add(1, Ordering::Relaxed);
        }
        self.count_failure(class, busy);
    }

    /// Notes how long a proof took that showed a witness to be at fault: no less than any other.
    pub(super) fn judged(&self, took: Duration, busy: Duration) {
        let mut pace = self.pace();
        pace.proof.note(busy.as_secs_f64());
        pace.took.note(took.as_secs_f64());
    }

    /// Notes that its memory did not suffice. Another device may have more, but what is smaller will do here, so that it is
    /// not called unfit for it.
    pub(super) fn lacked_memory(&self, busy: Duration) {
        self.count_failure(FailureClass::Device, busy);
    }

    /// Notes that this key is too large for it, as it will be at each try.
    pub(super) fn is_too_small(&self, zkey: ContentHash) {
        let mut too_large = self.too_large();
        if too_large.len() >= MOST_REMEMBERED {
            too_large.clear();
        }
        too_large.insert(zkey);
    }

    /// Whether this key is not known to be too large for it.
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

    /// Why it gets no jobs, in words; none where it gets some.
    pub(super) fn unfit(&self) -> Option<String> {
        let why = || locked(&self.why).clone();
        (!self.is_fit()).then(why).map(|why| match why.as_str() {
            "" => format!("{} failed {SUSPICIOUS} times in a row", self.label),
            why => why.to_owned(),
        })
    }

    /// How it gets on, for people.
    pub(super) fn view(&self) -> DeviceView {
        let DeviceInfo { name, memory, .. } = self.backend.device();
        DeviceView {
            device: self.label.clone(),
            name: name.clone(),
            memory: *memory,
            slots: self.slots(),
            in_hand: self.in_hand.load(Ordering::Relaxed),
            proofs: self.proofs.load(Ordering::Relaxed),
            busy_seconds: Duration::from_micros(self.busy_micros.load(Ordering::Relaxed)).as_secs_f64(),
            unfit: self.unfit(),
        }
    }

    /// Whether it gets jobs. After failures in a row it must sing first.
    pub(super) fn is_fit(&self) -> bool {
        let trusted = !self.is_quarantined() && self.failures.load(Ordering::Relaxed) < SUSPICIOUS;
        trusted && !self.desk.is_closed()
    }

    /// Jobs that it takes in hand at once, as things are.
    pub(super) fn slots(&self) -> usize {
        match self.size.slots {
            Slots::Fixed(jobs) => jobs,
            Slots::ByPace { beside } => wanted(self.size.proofs, &self.pace(), beside),
        }
    }

    /// Jobs that it could take in hand now: none while those that it has leave no room for another, whatever its pace. A job
    /// that found none would be handed back, only to be taken again.
    pub(super) fn free(&self) -> usize {
        let by_pace = self.is_cpu() && matches!(self.size.slots, Slots::ByPace { .. });
        if by_pace && self.hands.available_permits() == 0 {
            return 0;
        }
        self.slots().saturating_sub(self.in_hand.load(Ordering::Relaxed))
    }

    /// One job more in hand.
    pub(super) fn take(&self) {
        self.in_hand.fetch_add(1, Ordering::Relaxed);
    }

    /// One job less in hand.
    pub(super) fn let_go(&self) {
        self.in_hand.fetch_sub(1, Ordering::Relaxed);
    }

    /// Seconds that a job's proof holds up the next one, by the latest, where so many jobs are in hand at most; 0 before the
    /// first.
    pub(super) fn seconds_a_proof(&self, in_hand: usize) -> f64 {
        let pace = self.pace();
        let (share, took) = (pace.proof.0.unwrap_or(0.0), pace.took.0.unwrap_or(0.0));
        (share / self.size.proofs as f64).max(took / in_hand.max(1) as f64)
    }

    /// Whether it sits out, be it that it hangs or that its canary failed.
    pub(super) fn is_quarantined(&self) -> bool {
        self.quarantined.load(Ordering::Relaxed)
    }

    /// Lets it sing, where it must and the time for that has come. Does not wait for it: a device may take long to fail.
    pub(super) fn look_after(self: &Arc<Self>, canary: &Arc<Canary>) {
        // One that hangs would only keep the canary, too.
        if self.is_fit() || self.desk.is_closed() || self.singing.swap(true, Ordering::AcqRel) {
            return;
        }
        let (device, canary) = (self.clone(), canary.clone());
        tokio::spawn(async move {
            if device.may_sing() {
                device.clone().sing(canary).await;
            }
            device.singing.store(false, Ordering::Release);
        });
    }

    /// Whether an unfit device's time to sing has come; the next time is set with that.
    fn may_sing(&self) -> bool {
        let mut pause = locked(&self.pause);
        if pause.is_some_and(|(until, _)| Instant::now() < until) {
            return false;
        }
        let next = pause.map_or(FIRST_PAUSE, |(_, last)| (last * 2).min(LONGEST_PAUSE));
        *pause = Some((Instant::now() + next, next));
        true
    }

    /// Sings; a device that cannot sits out for a while.
    async fn sing(self: Arc<Self>, canary: Arc<Canary>) {
        let me = self.clone();
        let sung = tokio::task::spawn_blocking(move || canary.sing(me.backend.as_ref())).await;
        let sung = sung.unwrap_or_else(|_| Err("the canary's proof panicked".to_owned()));
        match &sung {
            Err(why) => {
                tracing::error!(device = %self.label, why, "device sits out: its canary fails");
                self.quarantine(Some(&format!("the canary of {} fails: {why}", self.label)));
            }
            Ok(()) => {
                *locked(&self.pause) = None;
                self.failures.store(0, Ordering::Relaxed);
                tracing::info!(device = %self.label, "device is fit: its canary passes");
                self.quarantine(None);
            }
        }
    }
}

/// Units of memory that proofs on a device may have together: the half that the registry does not fill with keys.
fn memory_of_proofs(device: &DeviceInfo) -> Option<u32> {
    let units = u32::try_from(device.memory / 2 / UNIT).unwrap_or(u32::MAX >> 3);
    (device.kind != DeviceKind::Cpu && units > 0).then_some(units)
}

/// How many jobs and how many proofs at once a device is good for, on a machine with so many cores and GPUs.
///
/// Proofs on the processor share its cores, each with the threads that its circuit is worth ([`Backend::threads`]), all of
/// them where it is large. On a GPU two proofs at a time keep it busy, where its memory takes both ([`Device::room_for`]).
/// What a device takes beside those at work depends on the jobs, and is at most one a core, over all GPUs; and never fewer
/// than one job, whose witness is made meanwhile.
pub(super) fn size(device: &DeviceInfo, cores: usize, gpus: usize) -> Size {
    let slots = Slots::ByPace { beside: cores.div_ceil(gpus.max(1)) };
    match device.kind {
        DeviceKind::Cpu => Size { slots: Slots::ByPace { beside: cores }, proofs: 1, threads: cores.max(1) },
        DeviceKind::Cuda => Size { slots, proofs: GPU_PROOFS, threads: 0 },
        // Its process does one thing at a time.
        DeviceKind::Icicle => Size { slots, proofs: 1, threads: 0 },
    }
}

/// Jobs in hand that keep a device at work, and no more: what is taken beyond that waits here while another worker may be
/// idle, with its witness in memory. Those are the proofs it makes at once, in batches as it likes them; and as many jobs as
/// come to be in their other stages while it makes them, one at least and `most` at the most.
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
        // Seconds beside the device, seconds on it, batch; of 16 at most beside two proofs.
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
    fn nothing_is_taken_while_what_is_in_hand_leaves_no_room() {
        let size = Size { slots: Slots::ByPace { beside: 2 }, proofs: 1, threads: 2 };
        let batching = Batching { most: None, linger: Duration::ZERO };
        let device = Device::new(Arc::new(CpuBackend::new(1).unwrap()), size, batching);
        assert_eq!(device.free(), 2, "before the first proof");
        let large = [0, 1].map(|_| device.hands.clone().try_acquire_many_owned(2).unwrap());
        assert_eq!(device.free(), 0, "though its pace would have it take two");
        drop(large);
        assert_eq!(device.free(), 2);
    }

    #[test]
    fn proofs_share_what_a_gpu_has_beside_its_keys() {
        let with = |kind, memory| memory_of_proofs(&DeviceInfo { memory, ..device(kind, 1) });
        assert_eq!(with(DeviceKind::Cuda, 80 << 30), Some(40 << 10));
        assert_eq!(with(DeviceKind::Cuda, u64::MAX), Some(u32::MAX >> 3));
        assert_eq!(with(DeviceKind::Cuda, 0), None);
        assert_eq!(with(DeviceKind::Cpu, 80 << 30), None);
    }
}
