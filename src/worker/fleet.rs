//! All devices of a worker: which one a job gets, and how many jobs there is capacity for.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use metrics::gauge;
use tokio::sync::Notify;

use super::batcher::Batching;
use super::canary::Canary;
use super::capacity::{Size, Slots, size};
use super::device::Device;
use super::{MAX_REMEMBERED, POLL_EVERY};
use crate::backend::{Backend, DeviceKind};
use crate::model::{ContentHash, FailureClass, Job, JobId, locked};
use crate::telemetry;

/// Most jobs retried on the CPU after other devices failed at them, in addition to those in slots.
const RETRIALS: usize = 4;

/// How work is divided among the devices.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sizing {
    /// Most jobs in progress over all devices; sized by the devices when unset.
    pub(super) jobs: Option<usize>,
    /// Whether the CPU takes jobs while every other device is full.
    pub(super) cpu_overflow: bool,
    /// How batches are formed.
    pub(super) batching: Batching,
}

/// All devices, in order of preference, and their slots.
pub(super) struct Fleet {
    devices: Vec<Arc<Device>>,
    /// Indices of the devices that have slots of their own. While there is another device, the CPU has none unless it
    /// is configured to take the overflow: it is the fallback, and busy with witnesses.
    workers: Vec<usize>,
    /// Configured number of jobs in progress over all devices; by the devices when unset.
    jobs: Option<usize>,
    busy: AtomicUsize,
    /// Jobs in progress that lent their slots to others.
    aside: AtomicUsize,
    /// Those of them that wait to get their slots back.
    returning: AtomicUsize,
    /// All jobs in progress.
    in_hand: AtomicUsize,
    /// Set while one job has the worker to itself.
    reserved: AtomicBool,
    freed: Notify,
    /// Jobs retried on the CPU without a slot: other devices failed at them, and keep working meanwhile.
    retrials: AtomicUsize,
    /// When the CPU has time for the next retrial.
    next_retrial: Mutex<Instant>,
    /// Index of the device on which a job last failed.
    failed_on: Mutex<HashMap<JobId, usize>>,
}

/// A job's slot on a device, until dropped.
pub(super) struct Placement {
    fleet: Arc<Fleet>,
    pub(super) device: Arc<Device>,
    /// Whether it is a retrial, which takes no slot.
    retrial: bool,
}

impl Drop for Placement {
    fn drop(&mut self) {
        self.fleet.in_hand.fetch_sub(1, Ordering::Relaxed);
        if self.retrial {
            self.fleet.retrials.fetch_sub(1, Ordering::Relaxed);
        } else {
            self.device.capacity.let_go();
            self.fleet.busy.fetch_sub(1, Ordering::Relaxed);
        }
        self.fleet.show();
        self.fleet.freed.notify_one();
    }
}

impl Placement {
    /// Lends the slot to another job. `None` for a retrial, or if as many jobs as there are slots have lent theirs.
    pub(super) fn lend(&self) -> Option<LentPlace<'_>> {
        let most = self.fleet.slots();
        let one_more = |aside| (aside < most).then_some(aside + 1);
        if self.retrial || self.fleet.aside.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_more).is_err() {
            return None;
        }
        self.device.capacity.let_go();
        self.fleet.busy.fetch_sub(1, Ordering::Relaxed);
        self.fleet.show();
        self.fleet.freed.notify_one();
        Some(LentPlace(self))
    }
}

/// A slot that its job does not need for now. Once dropped, one job too many may be in progress.
pub(super) struct LentPlace<'a>(&'a Placement);

impl LentPlace<'_> {
    /// Waits until a slot is free, ahead of jobs that have not started.
    pub(super) async fn back(self) {
        let fleet = &self.0.fleet;
        let _waits = Returning::new(fleet);
        // A job that is to run alone has its place already, and waits until this one has ended.
        while fleet.busy.load(Ordering::Relaxed) >= fleet.slots() && !fleet.reserved.load(Ordering::Acquire) {
            tokio::time::sleep(POLL_EVERY).await;
        }
        drop(self);
    }
}

/// A job that waits to get its slot back, until dropped.
struct Returning<'a>(&'a Fleet);

impl<'a> Returning<'a> {
    fn new(fleet: &'a Fleet) -> Self {
        fleet.returning.fetch_add(1, Ordering::Relaxed);
        Self(fleet)
    }
}

impl Drop for Returning<'_> {
    fn drop(&mut self) {
        self.0.returning.fetch_sub(1, Ordering::Relaxed);
        self.0.freed.notify_one();
    }
}

impl Drop for LentPlace<'_> {
    fn drop(&mut self) {
        let Placement { fleet, device, .. } = self.0;
        device.capacity.take();
        fleet.busy.fetch_add(1, Ordering::Relaxed);
        fleet.aside.fetch_sub(1, Ordering::Relaxed);
        fleet.show();
    }
}

/// A job in progress without a device, until dropped.
pub(super) struct Occupied(Arc<Fleet>);

impl Drop for Occupied {
    fn drop(&mut self) {
        self.0.busy.fetch_sub(1, Ordering::Relaxed);
        self.0.in_hand.fetch_sub(1, Ordering::Relaxed);
        self.0.freed.notify_one();
    }
}

/// Exclusive use of the worker for one job, until dropped.
pub(super) struct Reservation(Arc<Fleet>);

impl Drop for Reservation {
    fn drop(&mut self) {
        self.0.reserved.store(false, Ordering::Release);
        self.0.freed.notify_one();
    }
}

/// Divides `jobs` among `devices` as evenly as possible, the first ones getting the remainder.
fn share(devices: usize, jobs: usize) -> Vec<usize> {
    (0..devices).map(|i| (jobs + devices - 1 - i) / devices).collect()
}

impl Fleet {
    /// Creates the devices with their sizes.
    pub(super) fn new(backends: Vec<Arc<dyn Backend>>, sizing: Sizing) -> Self {
        let cores = std::thread::available_parallelism().map_or(1, |n| n.get());
        let is_cpu = |i: &usize| backends[*i].device().kind == DeviceKind::Cpu;
        let all = 0..backends.len();
        let others = all.clone().filter(|i| !is_cpu(i)).count();
        let sizes: Vec<_> = backends.iter().map(|b| size(b.device(), cores, others)).collect();
        let workers: Vec<_> = all.filter(|i| others == 0 || sizing.cpu_overflow || !is_cpu(i)).collect();
        let shares = sizing.jobs.map(|jobs| share(workers.len(), jobs));
        let size = |(i, own): (usize, Size)| match (&shares, workers.iter().position(|w| *w == i)) {
            // With fewer jobs than devices, the surplus devices stand in for unfit ones.
            (Some(shares), Some(at)) => Size { slots: Slots::Fixed(shares[at].max(1)), ..own },
            _ => own,
        };
        let sizes = sizes.into_iter().enumerate().map(size);
        let devices = backends.into_iter().zip(sizes).map(|(b, size)| Arc::new(Device::new(b, size, sizing.batching)));
        let devices = devices.collect();
        let [busy, aside, returning, in_hand, retrials] = [const { AtomicUsize::new(0) }; 5];
        let reserved = AtomicBool::new(false);
        let (freed, next_retrial) = (Notify::new(), Mutex::new(Instant::now()));
        let (jobs, failed_on) = (sizing.jobs, Mutex::default());
        Self {
            devices,
            workers,
            jobs,
            busy,
            aside,
            returning,
            in_hand,
            reserved,
            freed,
            retrials,
            next_retrial,
            failed_on,
        }
    }

    /// Returns the number of jobs that the worker currently takes at the same time.
    pub(super) fn slots(&self) -> usize {
        self.jobs.unwrap_or_else(|| self.workers.iter().map(|i| self.devices[*i].capacity.slots()).sum())
    }

    fn show(&self) {
        gauge!(telemetry::WORKER_SLOTS).set(self.slots() as f64);
        gauge!(telemetry::WORKER_SLOTS_BUSY).set(self.in_hand() as f64);
    }

    pub(super) fn devices(&self) -> &[Arc<Device>] {
        &self.devices
    }

    /// Returns the device that most jobs go to.
    pub(super) fn first(&self) -> Option<&Arc<Device>> {
        self.workers.first().map(|i| &self.devices[*i])
    }

    /// Starts the canaries of unfit devices that are due, and does not wait for them.
    pub(super) fn look_after(&self, canary: &Arc<Canary>) {
        for device in &self.devices {
            device.look_after(canary);
        }
    }

    fn fit_workers(&self) -> impl Iterator<Item = usize> + '_ {
        self.workers.iter().copied().filter(|i| self.devices[*i].is_fit())
    }

    /// Returns the CPU, if it is fit to stand in for the other devices.
    fn stand_in(&self) -> Option<usize> {
        (0..self.devices.len()).find(|i| self.devices[*i].is_cpu() && self.devices[*i].is_fit())
    }

    /// Returns the number of jobs in progress, with or without a slot.
    pub(super) fn in_hand(&self) -> usize {
        self.in_hand.load(Ordering::Relaxed)
    }

    /// Counts a job that needs no device.
    pub(super) fn occupy(self: &Arc<Self>) -> Occupied {
        self.busy.fetch_add(1, Ordering::Relaxed);
        self.in_hand.fetch_add(1, Ordering::Relaxed);
        Occupied(self.clone())
    }

    /// Reserves the worker for one job, unless it is reserved already: no other job is started until the reservation is
    /// dropped.
    pub(super) fn reserve(self: &Arc<Self>) -> Option<Reservation> {
        let first = !self.reserved.swap(true, Ordering::AcqRel);
        first.then(|| Reservation(self.clone()))
    }

    /// Returns the number of jobs that could be started now.
    pub(super) fn free(&self) -> usize {
        if self.reserved.load(Ordering::Acquire) {
            return 0;
        }
        let taken = self.busy.load(Ordering::Relaxed) + self.returning.load(Ordering::Relaxed);
        let left = self.slots().saturating_sub(taken);
        let mut fit = self.fit_workers().peekable();
        let free = match fit.peek() {
            Some(_) => fit.map(|i| self.devices[i].capacity.free()).sum(),
            None => self.stand_in().map_or(0, |cpu| self.devices[cpu].capacity.free()),
        };
        free.min(left)
    }

    /// Returns once a slot was freed, possibly before the call.
    pub(super) async fn freed(&self) {
        self.freed.notified().await;
    }

    /// Assigns a job to a device. `resident` says whether a device has the job's key loaded: among devices with free
    /// slots such a device comes first, then the one with the most free slots, then the first in order of preference. A
    /// device known to be too small for the key comes last.
    pub(super) fn place(self: &Arc<Self>, job: &Job, resident: impl Fn(&Device) -> bool) -> Placement {
        let own = self.choose(resident, |device| device.may_take(job.zkey));
        let at = self.after_failures(own, job);
        // Only the dispatcher places jobs, so the count does not change between this check and the increment.
        let one_more = self.retrials.load(Ordering::Relaxed) < RETRIALS;
        self.placed(at, at != own && self.devices[at].is_cpu() && one_more)
    }

    fn placed(self: &Arc<Self>, at: usize, retrial: bool) -> Placement {
        let device = self.devices[at].clone();
        self.in_hand.fetch_add(1, Ordering::Relaxed);
        if retrial {
            self.retrials.fetch_add(1, Ordering::Relaxed);
        } else {
            device.capacity.take();
            self.busy.fetch_add(1, Ordering::Relaxed);
        }
        self.show();
        Placement { fleet: self.clone(), device, retrial }
    }

    fn choose(&self, resident: impl Fn(&Device) -> bool, may_take: impl Fn(&Device) -> bool) -> usize {
        let free = |i: usize| self.devices[i].capacity.free();
        // The CPU takes only the overflow of the others.
        let better = self.fit_workers().filter(|i| free(*i) > 0).max_by_key(|i| {
            let device = &self.devices[*i];
            let cpu_last = self.workers.len() == 1 || !device.is_cpu();
            (may_take(device), cpu_last, resident(device), free(*i), std::cmp::Reverse(*i))
        });
        better.or_else(|| self.stand_in()).or(self.workers.first().copied()).unwrap_or(0)
    }

    /// Returns the device for a job that would go to `own`: that one, unless the job failed there, in which case
    /// another. In the end, or after a proof that did not verify, the CPU: its arithmetic settles whether the witness
    /// or the device is at fault.
    fn after_failures(&self, own: usize, job: &Job) -> usize {
        let cpu = self.devices.iter().position(|d| d.is_cpu()).unwrap_or(own);
        let doubtful = job.error.as_ref().is_some_and(|e| e.class == FailureClass::InvalidProof);
        match job.tries.device {
            0 => own,
            1 if !doubtful && self.failed_on().get(&job.id) == Some(&own) => {
                self.other_than(own, job.zkey).unwrap_or(cpu)
            }
            1 if !doubtful => own,
            _ => cpu,
        }
    }

    /// Whether a job that failed with this class, already noted by [`Fleet::remember`], goes to the CPU next.
    pub(super) fn falls_to_processor(&self, job: &Job, class: FailureClass) -> bool {
        let other = |own: &usize| self.other_than(*own, job.zkey).is_none_or(|other| self.devices[other].is_cpu());
        match class {
            FailureClass::InvalidProof => true,
            FailureClass::Device => job.tries.device > 0 || self.failed_on().get(&job.id).is_some_and(other),
            _ => false,
        }
    }

    /// Returns how long to delay a job that goes to the CPU next, to settle whose fault it is or for lack of another
    /// device: such jobs return no faster than the CPU can process them, by its recent proofs, so that they do not pile
    /// up here.
    pub(super) fn book_retrial(&self, now: Instant) -> Duration {
        let Some(cpu) = self.devices.iter().find(|d| d.is_cpu()) else { return Duration::ZERO };
        let each = Duration::from_secs_f64(cpu.capacity.seconds_a_proof(RETRIALS));
        let mut next = locked(&self.next_retrial);
        let wait = next.saturating_duration_since(now);
        *next = now + wait + each;
        wait
    }

    /// Returns the next device that is not in quarantine and not known to be too small for this key.
    fn other_than(&self, own: usize, zkey: ContentHash) -> Option<usize> {
        let n = self.devices.len();
        let serves = |device: &Device| !device.health.is_quarantined() && device.may_take(zkey);
        (1..n).map(|i| (own + i) % n).find(|i| serves(&self.devices[*i]))
    }

    fn failed_on(&self) -> MutexGuard<'_, HashMap<JobId, usize>> {
        locked(&self.failed_on)
    }

    /// Records on which device a job failed, or forgets it. Only this process needs to know: to any other, its own
    /// devices are different ones anyway.
    pub(super) fn remember(&self, job: JobId, failed_on: Option<&Arc<Device>>) {
        let mut known = self.failed_on();
        let at = failed_on.and_then(|d| self.devices.iter().position(|o| Arc::ptr_eq(o, d)));
        match at {
            None => drop(known.remove(&job)),
            // Jobs that end on other workers are never removed one by one.
            Some(_) if known.len() > MAX_REMEMBERED => known.clear(),
            Some(at) => drop(known.insert(job, at)),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::backend::cpu::CpuBackend;

    #[test]
    fn doubtful_jobs_come_to_the_processor_as_fast_as_it_judges() {
        let cpu = CpuBackend::new(1).unwrap();
        let batching = Batching { max: None, linger: Duration::ZERO };
        let fleet = Fleet::new(vec![Arc::new(cpu)], Sizing { jobs: None, cpu_overflow: false, batching });
        let now = Instant::now() + Duration::from_secs(1);
        assert_eq!([0, 1].map(|_| fleet.book_retrial(now)), [Duration::ZERO; 2], "none is known to take long");
        let each = Duration::from_secs(2);
        let small = Fleet::new(
            vec![Arc::new(CpuBackend::new(1).unwrap())],
            Sizing { jobs: None, cpu_overflow: false, batching },
        );
        small.devices[0].capacity.note_proof(each, each / 64, None);
        let four = each / RETRIALS as u32;
        assert_eq!(
            [0, 1].map(|_| small.book_retrial(now)),
            [Duration::ZERO, four],
            "no more are in progress, whatever its capacity"
        );
        fleet.devices[0].capacity.note_proof(each, each, None);
        assert_eq!([0, 1, 2].map(|_| fleet.book_retrial(now)), [Duration::ZERO, each, each * 2]);
        assert_eq!(fleet.book_retrial(now + each), each * 2, "time passes");
    }

    #[test]
    fn a_job_goes_to_the_second_device_while_the_first_is_unfit() {
        let devices = (0..2).map(|_| Arc::new(CpuBackend::new(1).unwrap()) as Arc<dyn Backend>).collect();
        let batching = Batching { max: None, linger: Duration::ZERO };
        let fleet = Fleet::new(devices, Sizing { jobs: Some(1), cpu_overflow: false, batching });
        assert_eq!((fleet.slots(), fleet.free()), (1, 1));
        fleet.devices[0].health.quarantine("made up");
        assert_eq!(fleet.free(), 1);
    }

    #[test]
    fn a_job_goes_to_a_device_that_is_not_known_to_be_too_small_for_its_key() {
        let devices = (0..2).map(|_| Arc::new(CpuBackend::new(1).unwrap()) as Arc<dyn Backend>).collect();
        let batching = Batching { max: None, linger: Duration::ZERO };
        let fleet = Fleet::new(devices, Sizing { jobs: Some(4), cpu_overflow: false, batching });
        let (large, small) = (ContentHash::of(b"large"), ContentHash::of(b"small"));
        let choose = |zkey| fleet.choose(|_| false, |device| device.may_take(zkey));
        assert_eq!((choose(large), choose(small)), (0, 0));
        fleet.devices[0].note_too_large(large);
        assert_eq!((choose(large), choose(small)), (1, 0));
        // If all are too small, one of them reports it.
        fleet.devices[1].note_too_large(large);
        assert_eq!((choose(large), choose(small)), (0, 0));
    }

    #[test]
    fn a_job_that_failed_goes_to_another_device_that_may_take_its_key() {
        let devices = (0..3).map(|_| Arc::new(CpuBackend::new(1).unwrap()) as Arc<dyn Backend>).collect();
        let batching = Batching { max: None, linger: Duration::ZERO };
        let fleet = Fleet::new(devices, Sizing { jobs: Some(4), cpu_overflow: false, batching });
        let (large, small) = (ContentHash::of(b"large"), ContentHash::of(b"small"));
        fleet.devices[1].note_too_large(large);
        assert_eq!([large, small].map(|key| fleet.other_than(0, key)), [Some(2), Some(1)]);
        fleet.devices[2].note_too_large(large);
        assert_eq!(fleet.other_than(0, large), None, "left to the CPU");
    }

    #[tokio::test]
    async fn a_job_that_waits_for_its_key_lends_its_place_to_another() {
        let batching = Batching { max: None, linger: Duration::ZERO };
        let device = Arc::new(CpuBackend::new(1).unwrap());
        let fleet = Arc::new(Fleet::new(vec![device], Sizing { jobs: Some(1), cpu_overflow: false, batching }));
        let place = || fleet.placed(0, false);
        let first = place();
        let lent = first.lend().unwrap();
        assert_eq!((fleet.free(), fleet.in_hand()), (1, 1));
        let second = place();
        assert!(second.lend().is_none(), "one waits already");
        let ended = async {
            tokio::task::yield_now().await;
            drop(second);
            assert_eq!((fleet.free(), fleet.in_hand()), (0, 1), "the first has its place back before any other");
        };
        tokio::join!(lent.back(), ended);
        assert_eq!((fleet.free(), fleet.in_hand()), (0, 1));
        drop(first.lend());
        drop(first);
        assert_eq!((fleet.free(), fleet.in_hand()), (1, 0));
    }

    /// That one waits for this one to end.
    #[tokio::test]
    async fn a_lent_place_comes_back_although_a_job_that_is_to_run_alone_has_taken_it() {
        let batching = Batching { max: None, linger: Duration::ZERO };
        let device = Arc::new(CpuBackend::new(1).unwrap());
        let fleet = Arc::new(Fleet::new(vec![device], Sizing { jobs: Some(1), cpu_overflow: false, batching }));
        let first = fleet.placed(0, false);
        let lent = first.lend().unwrap();
        let reservation = fleet.reserve().unwrap();
        let alone = fleet.placed(0, false);
        // Without the reservation this would not end.
        lent.back().await;
        drop(first);
        assert_eq!((fleet.free(), fleet.in_hand()), (0, 1));
        drop((alone, reservation));
        assert_eq!((fleet.free(), fleet.in_hand()), (1, 0));
    }

    #[test]
    fn slots_are_shared_out_evenly() {
        assert_eq!(share(2, 5), [3, 2]);
        assert_eq!(share(3, 1), [1, 0, 0]);
        assert_eq!(share(1, 1024), [1024]);
    }
}
