//! The devices of a worker: how many jobs each takes, which one a job gets, and which ones sit out.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use metrics::{counter, gauge, histogram};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};

use super::canary::Canary;
use super::desk::{Batching, Desk, Order};
use crate::backend::{Backend, DeviceInfo, DeviceKind};
use crate::model::{FailureClass, Job, JobId};
use crate::telemetry;

/// Failures in a row after which a device must sing before it gets another job.
const SUSPICIOUS: u32 = 3;
/// How long a device that failed its canary sits out, doubled each time.
const FIRST_PAUSE: Duration = Duration::from_secs(10);
const LONGEST_PAUSE: Duration = Duration::from_secs(300);
/// Proofs on a GPU at once, or batches of them. While it computes one, the other's witness comes up, and its points go down to be
/// assembled and verified.
const GPU_PROOFS: usize = 2;
/// Memory of a device is shared out to proofs in units of so many bytes.
const UNIT: u64 = 1 << 20;
/// Jobs on the processor, since other devices failed at them, beside those that the places are for.
const RETRIALS: usize = 4;
/// Jobs whose failing device is remembered.
const MOST_REMEMBERED: usize = 10_000;

/// How many jobs a device takes in hand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Slots {
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
    /// Seconds of a proof; of a batch, its share.
    proof: Mean,
    /// Proofs of a job's circuit that go to the device at once.
    batch: Mean,
}

/// A device at work.
pub(super) struct Device {
    pub(super) backend: Arc<dyn Backend>,
    pub(super) label: String,
    /// Where witnesses wait for it.
    pub(super) desk: Desk,
    /// Proofs, or batches of them, at once.
    pub(super) proofs: usize,
    /// One call at a time, in order of arrival; none where the device takes several.
    turns: Option<Arc<Semaphore>>,
    /// Memory that proofs at work share, in units; unbounded where it is unknown, and on the processor.
    memory: Option<(Arc<Semaphore>, u32)>,
    /// Jobs in hand at once; of the processor beside other devices, while those cannot take any.
    slots: Slots,
    pace: Mutex<Pace>,
    in_hand: AtomicUsize,
    failures: AtomicU32,
    quarantined: AtomicBool,
    /// Why it was put out of use last.
    why: Mutex<String>,
    singing: AtomicBool,
    pause: Mutex<Option<(Instant, Duration)>>,
    busy_micros: AtomicU64,
}

impl Device {
    fn new(backend: Arc<dyn Backend>, slots: Slots, proofs: usize, batching: Batching) -> Self {
        let label = backend.device().label();
        telemetry::start_device(&label);
        let turns = (backend.device().kind == DeviceKind::Icicle).then(|| Arc::new(Semaphore::new(1)));
        let memory = memory_of_proofs(backend.device()).map(|units| (Arc::new(Semaphore::new(units as usize)), units));
        Self {
            backend,
            label,
            desk: Desk::new(batching),
            proofs,
            turns,
            memory,
            slots,
            pace: Mutex::default(),
            in_hand: AtomicUsize::new(0),
            failures: AtomicU32::new(0),
            quarantined: AtomicBool::new(false),
            why: Mutex::default(),
            singing: AtomicBool::new(false),
            pause: Mutex::new(None),
            busy_micros: AtomicU64::new(0),
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

    /// Memory for a batch, as soon as there is enough beside the proofs at work, and at once where there are none: what
    /// is larger than all of it is still tried.
    pub(super) async fn memory_for(&self, batch: &[Order]) -> Option<OwnedSemaphorePermit> {
        let (free, all) = self.memory.as_ref()?;
        let key = &batch.first()?.key;
        let each = self.backend.footprint(key.key()).per_proof;
        // No more of them are at work at a time than the device likes.
        let at_once = batch.len().min(key.batch().max(1)) as u64;
        let units = each.saturating_mul(at_once).div_ceil(UNIT).min(u64::from(*all));
        free.clone().acquire_many_owned(units as u32).await.ok()
    }

    /// Takes the device out of use, for a call to it does not come back: whoever waits for it is told, and it must sing
    /// before it gets jobs again.
    pub(super) fn hangs(&self, why: &str, busy: Duration) {
        tracing::error!(device = %self.label, why, "device sits out: it hangs");
        self.failed(FailureClass::Device, busy);
        self.quarantine(Some(why));
        self.desk.close(why);
    }

    fn quarantine(&self, why: Option<&str>) {
        why.unwrap_or_default().clone_into(&mut self.why.lock().unwrap_or_else(PoisonError::into_inner));
        self.quarantined.store(why.is_some(), Ordering::Relaxed);
        let shown = if why.is_some() { 1.0 } else { 0.0 };
        gauge!(telemetry::DEVICE_QUARANTINED, "device" => self.label.clone()).set(shown);
    }

    /// Notes a verified proof, the share of the device's time it took, and how many of its circuit the device likes at once.
    pub(super) fn succeeded(&self, busy: Duration, at_once: usize) {
        self.failures.store(0, Ordering::Relaxed);
        let mut pace = self.pace();
        pace.proof.note(busy.as_secs_f64());
        pace.batch.note(at_once as f64);
        drop(pace);
        counter!(telemetry::DEVICE_PROOFS, "device" => self.label.clone()).increment(1);
        histogram!(telemetry::DEVICE_PROOF_DURATION, "device" => self.label.clone()).record(busy.as_secs_f64());
        self.was_busy(busy);
    }

    /// Notes how long a job that it proved took beside that.
    pub(super) fn took_beside(&self, took: Duration) {
        self.pace().beside.note(took.as_secs_f64());
    }

    fn pace(&self) -> MutexGuard<'_, Pace> {
        self.pace.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes a failure. Only the device's own count against it.
    pub(super) fn failed(&self, class: FailureClass, busy: Duration) {
        if matches!(class, FailureClass::Device | FailureClass::InvalidProof) {
            self.failures.fetch_add(1, Ordering::Relaxed);
        }
        self.count_failure(class, busy);
    }

    /// Notes how long a proof took that showed a witness to be at fault: no less than any other.
    pub(super) fn judged(&self, busy: Duration) {
        self.pace().proof.note(busy.as_secs_f64());
    }

    /// Notes that its memory did not suffice. Another device may have more, but what is smaller will do here, so that it is
    /// not called unfit for it.
    pub(super) fn lacked_memory(&self, busy: Duration) {
        self.count_failure(FailureClass::Device, busy);
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
        let why = || self.why.lock().unwrap_or_else(PoisonError::into_inner).clone();
        (!self.is_fit()).then(why).map(|why| match why.as_str() {
            "" => format!("{} failed {SUSPICIOUS} times in a row", self.label),
            why => why.to_owned(),
        })
    }

    /// Whether it gets jobs. After failures in a row it must sing first.
    fn is_fit(&self) -> bool {
        let trusted = !self.quarantined.load(Ordering::Relaxed) && self.failures.load(Ordering::Relaxed) < SUSPICIOUS;
        trusted && !self.desk.is_closed()
    }

    /// Jobs that it takes in hand at once, as things are.
    fn slots(&self) -> usize {
        match self.slots {
            Slots::Fixed(jobs) => jobs,
            Slots::ByPace { beside } => wanted(self.proofs, &self.pace(), beside),
        }
    }

    fn free(&self) -> usize {
        self.slots().saturating_sub(self.in_hand.load(Ordering::Relaxed))
    }

    /// Whether an unfit device's time to sing has come; the next time is set with that.
    fn may_sing(&self) -> bool {
        let mut pause = self.pause.lock().unwrap_or_else(PoisonError::into_inner);
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
                *self.pause.lock().unwrap_or_else(PoisonError::into_inner) = None;
                self.failures.store(0, Ordering::Relaxed);
                tracing::info!(device = %self.label, "device is fit: its canary passes");
                self.quarantine(None);
            }
        }
    }
}

/// How a device's work is put together and shared out.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sizing {
    /// Jobs in hand over all devices; sized by the devices when unset.
    pub(super) jobs: Option<usize>,
    /// Whether the processor takes jobs while every other device is full.
    pub(super) cpu_overflow: bool,
    /// How batches are gathered.
    pub(super) batching: Batching,
}

/// All devices, best first, and the slots over them.
pub(super) struct Fleet {
    devices: Vec<Arc<Device>>,
    /// Devices by number that have slots of their own. While there is another device, the processor has none unless
    /// it is told to take what is too much: it is the fallback, and busy with witnesses.
    workers: Vec<usize>,
    /// Jobs in hand at once over all devices; by the devices when unset.
    jobs: Option<usize>,
    busy: AtomicUsize,
    /// Set while a job is to have the worker to itself.
    reserved: AtomicBool,
    freed: Notify,
    /// Jobs on the processor that take no place, for other devices failed at them and work on meanwhile.
    retrials: AtomicUsize,
    /// When the processor has time for another one.
    next_retrial: Mutex<Instant>,
    /// Device by number on which a job failed last.
    failed_on: Mutex<HashMap<JobId, usize>>,
}

/// A place for one job on a device, until dropped.
pub(super) struct Placement {
    fleet: Arc<Fleet>,
    pub(super) device: Arc<Device>,
    /// Counted beside the places.
    retrial: bool,
}

impl Drop for Placement {
    fn drop(&mut self) {
        if self.retrial {
            self.fleet.retrials.fetch_sub(1, Ordering::Relaxed);
        } else {
            self.device.in_hand.fetch_sub(1, Ordering::Relaxed);
            self.fleet.busy.fetch_sub(1, Ordering::Relaxed);
        }
        self.fleet.show();
        self.fleet.freed.notify_one();
    }
}

/// Counts as a job in hand, on no device, until dropped.
pub(super) struct Occupied(Arc<Fleet>);

impl Drop for Occupied {
    fn drop(&mut self) {
        self.0.busy.fetch_sub(1, Ordering::Relaxed);
        self.0.freed.notify_one();
    }
}

/// The worker for one job alone, until dropped.
pub(super) struct Reservation(Arc<Fleet>);

impl Drop for Reservation {
    fn drop(&mut self) {
        self.0.reserved.store(false, Ordering::Release);
        self.0.freed.notify_one();
    }
}

/// Units of memory that proofs on a device may have together: the half that the registry does not fill with keys.
fn memory_of_proofs(device: &DeviceInfo) -> Option<u32> {
    let units = u32::try_from(device.memory / 2 / UNIT).unwrap_or(u32::MAX >> 3);
    (device.kind != DeviceKind::Cpu && units > 0).then_some(units)
}

/// How many jobs and how many proofs at once a device is good for, on a machine with so many cores and GPUs.
///
/// A proof on the CPU uses `threads` cores, so cores ÷ threads run side by side. Beyond that, one job more is worth
/// having: its witness, which takes one core, is made while the others' proofs run, and a proof's last, narrow stages
/// leave a core idle. So there are never fewer than two jobs. On a GPU two proofs at a time keep it busy, where its memory
/// takes both ([`Device::memory_for`]); what it takes beside depends on the jobs, and is at most a witness a core, over all
/// GPUs.
fn size(device: &DeviceInfo, cores: usize, gpus: usize) -> (Slots, usize) {
    match device.kind {
        DeviceKind::Cpu => {
            let proofs = (cores / device.threads.max(1)).max(1);
            (Slots::Fixed(proofs.max(2)), proofs)
        }
        DeviceKind::Cuda => (Slots::ByPace { beside: cores.div_ceil(gpus.max(1)) }, GPU_PROOFS),
        // Its process does one thing at a time.
        DeviceKind::Icicle => (Slots::ByPace { beside: cores.div_ceil(gpus.max(1)) }, 1),
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

/// Jobs for each of `devices` of so many over all of them: as evenly as it goes, the first ones first.
fn share(devices: usize, jobs: usize) -> Vec<usize> {
    (0..devices).map(|i| (jobs + devices - 1 - i) / devices).collect()
}

impl Fleet {
    /// Sizes the devices.
    pub(super) fn new(backends: Vec<Arc<dyn Backend>>, sizing: Sizing) -> Self {
        let cores = std::thread::available_parallelism().map_or(1, |n| n.get());
        let is_cpu = |i: &usize| backends[*i].device().kind == DeviceKind::Cpu;
        let all = 0..backends.len();
        let others = all.clone().filter(|i| !is_cpu(i)).count();
        let sizes: Vec<_> = backends.iter().map(|b| size(b.device(), cores, others)).collect();
        let workers: Vec<_> = all.filter(|i| others == 0 || sizing.cpu_overflow || !is_cpu(i)).collect();
        let shares = sizing.jobs.map(|jobs| share(workers.len(), jobs));
        let slots = |i: usize| match (&shares, workers.iter().position(|w| *w == i), sizes[i].0) {
            // Where jobs are fewer than devices, the others stand in for one that is unfit.
            (Some(shares), Some(at), _) => Slots::Fixed(shares[at].max(1)),
            (Some(shares), None, Slots::Fixed(jobs)) => Slots::Fixed(jobs.min(shares.iter().sum())),
            (_, _, own) => own,
        };
        let slots: Vec<_> = (0..backends.len()).map(slots).collect();
        let made = backends.into_iter().zip(slots).zip(sizes);
        let devices = made.map(|((b, slots), (_, proofs))| Arc::new(Device::new(b, slots, proofs, sizing.batching)));
        let devices = devices.collect();
        let (busy, reserved, retrials) = (AtomicUsize::new(0), AtomicBool::new(false), AtomicUsize::new(0));
        let (freed, next_retrial) = (Notify::new(), Mutex::new(Instant::now()));
        let (jobs, failed_on) = (sizing.jobs, Mutex::default());
        Self { devices, workers, jobs, busy, reserved, freed, retrials, next_retrial, failed_on }
    }

    /// Jobs in hand at once, as things are.
    pub(super) fn slots(&self) -> usize {
        self.jobs.unwrap_or_else(|| self.workers.iter().map(|i| self.devices[*i].slots()).sum())
    }

    fn show(&self) {
        gauge!(telemetry::WORKER_SLOTS).set(self.slots() as f64);
        let in_hand = self.busy.load(Ordering::Relaxed) + self.retrials.load(Ordering::Relaxed);
        gauge!(telemetry::WORKER_SLOTS_BUSY).set(in_hand as f64);
    }

    pub(super) fn devices(&self) -> &[Arc<Device>] {
        &self.devices
    }

    /// The device that most jobs go to.
    pub(super) fn first(&self) -> Option<&Arc<Device>> {
        self.workers.first().map(|i| &self.devices[*i])
    }

    /// Lets unfit devices sing whose time has come. Does not wait for them: a device may take long to fail.
    pub(super) fn look_after(&self, canary: &Arc<Canary>) {
        // One that hangs would only keep the canary, too.
        for device in self.devices.iter().filter(|d| !d.is_fit() && !d.desk.is_closed()) {
            if !device.singing.swap(true, Ordering::AcqRel) {
                let (device, canary) = (device.clone(), canary.clone());
                tokio::spawn(async move {
                    if device.may_sing() {
                        device.clone().sing(canary).await;
                    }
                    device.singing.store(false, Ordering::Release);
                });
            }
        }
    }

    fn fit_workers(&self) -> impl Iterator<Item = usize> + '_ {
        self.workers.iter().copied().filter(|i| self.devices[*i].is_fit())
    }

    /// The processor, where it may stand in for the other devices.
    fn stand_in(&self) -> Option<usize> {
        (0..self.devices.len()).find(|i| self.devices[*i].is_cpu() && self.devices[*i].is_fit())
    }

    /// Jobs in hand.
    pub(super) fn in_hand(&self) -> usize {
        self.busy.load(Ordering::Relaxed) + self.retrials.load(Ordering::Relaxed)
    }

    /// A job in hand that needs no device.
    pub(super) fn occupy(self: &Arc<Self>) -> Occupied {
        self.busy.fetch_add(1, Ordering::Relaxed);
        Occupied(self.clone())
    }

    /// The worker for one job alone, if no other has it: no more are begun until the reservation is dropped.
    pub(super) fn reserve(self: &Arc<Self>) -> Option<Reservation> {
        let first = !self.reserved.swap(true, Ordering::AcqRel);
        first.then(|| Reservation(self.clone()))
    }

    /// Jobs that could be begun now.
    pub(super) fn free(&self) -> usize {
        if self.reserved.load(Ordering::Acquire) {
            return 0;
        }
        let left = self.slots().saturating_sub(self.busy.load(Ordering::Relaxed));
        let mut fit = self.fit_workers().peekable();
        let free = match fit.peek() {
            Some(_) => fit.map(|i| self.devices[i].free()).sum(),
            None => self.stand_in().map_or(0, |cpu| self.devices[cpu].free()),
        };
        free.min(left)
    }

    /// Returns when a slot was freed, maybe before the call.
    pub(super) async fn freed(&self) {
        self.freed.notified().await;
    }

    /// A place for a job. `resident` says whether a device has the job's key: such a device goes first among those
    /// with room, then the one with most room, then the best.
    pub(super) fn place(self: &Arc<Self>, job: &Job, resident: impl Fn(&Device) -> bool) -> Placement {
        let own = self.choose(resident);
        let at = self.after_failures(own, job);
        let device = self.devices[at].clone();
        // Only the dispatcher places jobs, so that nothing is counted between the look and the count.
        let retrial = at != own && device.is_cpu() && self.retrials.load(Ordering::Relaxed) < RETRIALS;
        if retrial {
            self.retrials.fetch_add(1, Ordering::Relaxed);
        } else {
            device.in_hand.fetch_add(1, Ordering::Relaxed);
            self.busy.fetch_add(1, Ordering::Relaxed);
        }
        self.show();
        Placement { fleet: self.clone(), device, retrial }
    }

    fn choose(&self, resident: impl Fn(&Device) -> bool) -> usize {
        let room = |i: usize| self.devices[i].free();
        // The processor takes what is too much for the others, and no more.
        let better = self.fit_workers().filter(|i| room(*i) > 0).max_by_key(|i| {
            let device = &self.devices[*i];
            let cpu_last = self.workers.len() == 1 || !device.is_cpu();
            (cpu_last, resident(device), room(*i), std::cmp::Reverse(*i))
        });
        better.or_else(|| self.stand_in()).or(self.workers.first().copied()).unwrap_or(0)
    }

    /// The device for a job that would go to `own`: that one, unless the job failed there. Then another, and in the
    /// end, or after a proof that did not verify, the processor: its arithmetic settles whether witness or device is at
    /// fault.
    fn after_failures(&self, own: usize, job: &Job) -> usize {
        let cpu = self.devices.iter().position(|d| d.is_cpu()).unwrap_or(own);
        let doubtful = job.error.as_ref().is_some_and(|e| e.class == FailureClass::InvalidProof);
        match job.tries.device {
            0 => own,
            1 if !doubtful && self.failed_on().get(&job.id) == Some(&own) => self.other_than(own).unwrap_or(cpu),
            1 if !doubtful => own,
            _ => cpu,
        }
    }

    /// Whether a job that failed so goes to the processor next, noted by [`Fleet::remember`] already.
    pub(super) fn falls_to_processor(&self, job: &Job, class: FailureClass) -> bool {
        let other = |own: &usize| self.other_than(*own).is_none_or(|other| self.devices[other].is_cpu());
        match class {
            FailureClass::InvalidProof => true,
            FailureClass::Device => job.tries.device > 0 || self.failed_on().get(&job.id).is_some_and(other),
            _ => false,
        }
    }

    /// How long a job waits that goes to the processor next, to judge or for want of another device: such jobs come back no
    /// faster than it deals with them, by its proofs so far, and not to be held here meanwhile.
    pub(super) fn book_retrial(&self, now: Instant) -> Duration {
        let Some(cpu) = self.devices.iter().find(|d| d.is_cpu()) else { return Duration::ZERO };
        let each = Duration::from_secs_f64(cpu.pace().proof.0.unwrap_or(0.0) / cpu.proofs as f64);
        let mut next = self.next_retrial.lock().unwrap_or_else(PoisonError::into_inner);
        let wait = next.saturating_duration_since(now);
        *next = now + wait + each;
        wait
    }

    /// The next device that does not sit out.
    fn other_than(&self, own: usize) -> Option<usize> {
        let n = self.devices.len();
        (1..n).map(|i| (own + i) % n).find(|i| !self.devices[*i].quarantined.load(Ordering::Relaxed))
    }

    fn failed_on(&self) -> MutexGuard<'_, HashMap<JobId, usize>> {
        self.failed_on.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Remembers where a job failed, or forgets it. Only this process needs to know: to any other, its own devices are
    /// others already.
    pub(super) fn remember(&self, job: JobId, failed_on: Option<&Arc<Device>>) {
        let mut known = self.failed_on();
        let at = failed_on.and_then(|d| self.devices.iter().position(|o| Arc::ptr_eq(o, d)));
        match at {
            None => drop(known.remove(&job)),
            // Jobs that other workers ended are never forgotten one by one.
            Some(_) if known.len() > MOST_REMEMBERED => known.clear(),
            Some(at) => drop(known.insert(job, at)),
        }
    }
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
    fn a_small_processor_takes_two_jobs_and_proves_one_at_a_time() {
        assert_eq!(size(&device(DeviceKind::Cpu, 2), 2, 0), (Slots::Fixed(2), 1));
        assert_eq!(size(&device(DeviceKind::Cpu, 1), 1, 0), (Slots::Fixed(2), 1));
        assert_eq!(size(&device(DeviceKind::Cpu, 1), 2, 0), (Slots::Fixed(2), 2));
        assert_eq!(size(&device(DeviceKind::Cpu, 8), 64, 1), (Slots::Fixed(8), 8));
        assert_eq!(size(&device(DeviceKind::Cpu, 64), 64, 0), (Slots::Fixed(2), 1));
    }

    #[test]
    fn gpus_take_two_proofs_each_and_share_the_cores_for_witnesses() {
        assert_eq!(size(&device(DeviceKind::Cuda, 1), 16, 1), (Slots::ByPace { beside: 16 }, 2));
        assert_eq!(size(&device(DeviceKind::Cuda, 1), 16, 8), (Slots::ByPace { beside: 2 }, 2));
        assert_eq!(size(&device(DeviceKind::Cuda, 1), 2, 8), (Slots::ByPace { beside: 1 }, 2));
        assert_eq!(size(&device(DeviceKind::Icicle, 1), 16, 1), (Slots::ByPace { beside: 16 }, 1));
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
    fn doubtful_jobs_come_to_the_processor_as_fast_as_it_judges() {
        let cpu = CpuBackend::new(1).unwrap();
        let batching = Batching { most: None, linger: Duration::ZERO };
        let fleet = Fleet::new(vec![Arc::new(cpu)], Sizing { jobs: None, cpu_overflow: false, batching });
        let now = Instant::now() + Duration::from_secs(1);
        assert_eq!([0, 1].map(|_| fleet.book_retrial(now)), [Duration::ZERO; 2], "none is known to take long");
        let each = Duration::from_secs(2);
        fleet.devices[0].judged(each * fleet.devices[0].proofs as u32);
        assert_eq!([0, 1, 2].map(|_| fleet.book_retrial(now)), [Duration::ZERO, each, each * 2]);
        assert_eq!(fleet.book_retrial(now + each), each * 2, "time passes");
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
    fn proofs_share_what_a_gpu_has_beside_its_keys() {
        let with = |kind, memory| memory_of_proofs(&DeviceInfo { memory, ..device(kind, 1) });
        assert_eq!(with(DeviceKind::Cuda, 80 << 30), Some(40 << 10));
        assert_eq!(with(DeviceKind::Cuda, u64::MAX), Some(u32::MAX >> 3));
        assert_eq!(with(DeviceKind::Cuda, 0), None);
        assert_eq!(with(DeviceKind::Cpu, 80 << 30), None);
    }

    #[test]
    fn a_job_goes_to_the_second_device_while_the_first_is_unfit() {
        let devices = (0..2).map(|_| Arc::new(CpuBackend::new(1).unwrap()) as Arc<dyn Backend>).collect();
        let batching = Batching { most: None, linger: Duration::ZERO };
        let fleet = Fleet::new(devices, Sizing { jobs: Some(1), cpu_overflow: false, batching });
        assert_eq!((fleet.slots(), fleet.free()), (1, 1));
        fleet.devices[0].quarantined.store(true, Ordering::Relaxed);
        assert_eq!(fleet.free(), 1);
    }

    #[test]
    fn slots_are_shared_out_evenly() {
        assert_eq!(share(2, 5), [3, 2]);
        assert_eq!(share(3, 1), [1, 0, 0]);
        assert_eq!(share(1, 1024), [1024]);
    }
}
