//! The devices of a worker together: which one a job gets, and how many jobs there is room for.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use metrics::gauge;
use tokio::sync::Notify;

use super::canary::Canary;
use super::desk::Batching;
use super::device::{Device, Size, Slots, size};
use crate::backend::{Backend, DeviceKind};
use crate::model::{ContentHash, FailureClass, Job, JobId, locked};
use crate::telemetry;

/// Jobs on the processor, since other devices failed at them, beside those that the places are for.
const RETRIALS: usize = 4;
/// Jobs whose failing device is remembered.
const MOST_REMEMBERED: usize = 10_000;

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
    /// Jobs in hand that lent their places to others.
    aside: AtomicUsize,
    /// Those of them that want their places back.
    returning: AtomicUsize,
    /// All jobs in hand.
    in_hand: AtomicUsize,
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
        self.fleet.in_hand.fetch_sub(1, Ordering::Relaxed);
        if self.retrial {
            self.fleet.retrials.fetch_sub(1, Ordering::Relaxed);
        } else {
            self.device.let_go();
            self.fleet.busy.fetch_sub(1, Ordering::Relaxed);
        }
        self.fleet.show();
        self.fleet.freed.notify_one();
    }
}

impl Placement {
    /// Lets another job have the place, until it is wanted back. Not where as many jobs as there are places have done so.
    pub(super) fn lend(&self) -> Option<LentPlace<'_>> {
        let most = self.fleet.slots();
        let one_more = |aside| (aside < most).then_some(aside + 1);
        if self.retrial || self.fleet.aside.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_more).is_err() {
            return None;
        }
        self.device.let_go();
        self.fleet.busy.fetch_sub(1, Ordering::Relaxed);
        self.fleet.show();
        self.fleet.freed.notify_one();
        Some(LentPlace(self))
    }
}

/// A place that its job does not need for now. Once dropped, there may be one job too many in hand.
pub(super) struct LentPlace<'a>(&'a Placement);

impl LentPlace<'_> {
    /// Waits until there is a place again, before jobs that are not in hand yet.
    pub(super) async fn back(self) {
        let fleet = &self.0.fleet;
        let _waits = Returning::new(fleet);
        while fleet.busy.load(Ordering::Relaxed) >= fleet.slots() {
            tokio::time::sleep(LOOK).await;
        }
        drop(self);
    }
}

/// How often a job looks whether there is a place again.
const LOOK: Duration = Duration::from_millis(20);

/// A job that wants its place back, until dropped.
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
        device.take();
        fleet.busy.fetch_add(1, Ordering::Relaxed);
        fleet.aside.fetch_sub(1, Ordering::Relaxed);
        fleet.show();
    }
}

/// Counts as a job in hand, on no device, until dropped.
pub(super) struct Occupied(Arc<Fleet>);

impl Drop for Occupied {
    fn drop(&mut self) {
        self.0.busy.fetch_sub(1, Ordering::Relaxed);
        self.0.in_hand.fetch_sub(1, Ordering::Relaxed);
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
        let size = |(i, own): (usize, Size)| match (&shares, workers.iter().position(|w| *w == i)) {
            // Where jobs are fewer than devices, the others stand in for one that is unfit.
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

    /// Jobs in hand at once, as things are.
    pub(super) fn slots(&self) -> usize {
        self.jobs.unwrap_or_else(|| self.workers.iter().map(|i| self.devices[*i].slots()).sum())
    }

    fn show(&self) {
        gauge!(telemetry::WORKER_SLOTS).set(self.slots() as f64);
        gauge!(telemetry::WORKER_SLOTS_BUSY).set(self.in_hand() as f64);
    }

    pub(super) fn devices(&self) -> &[Arc<Device>] {
        &self.devices
    }

    /// The device that most jobs go to.
    pub(super) fn first(&self) -> Option<&Arc<Device>> {
        self.workers.first().map(|i| &self.devices[*i])
    }

    /// Lets unfit devices sing whose time has come, and does not wait for them.
    pub(super) fn look_after(&self, canary: &Arc<Canary>) {
        for device in &self.devices {
            device.look_after(canary);
        }
    }

    fn fit_workers(&self) -> impl Iterator<Item = usize> + '_ {
        self.workers.iter().copied().filter(|i| self.devices[*i].is_fit())
    }

    /// The processor, where it may stand in for the other devices.
    fn stand_in(&self) -> Option<usize> {
        (0..self.devices.len()).find(|i| self.devices[*i].is_cpu() && self.devices[*i].is_fit())
    }

    /// Jobs in hand, with a place or without.
    pub(super) fn in_hand(&self) -> usize {
        self.in_hand.load(Ordering::Relaxed)
    }

    /// A job in hand that needs no device.
    pub(super) fn occupy(self: &Arc<Self>) -> Occupied {
        self.busy.fetch_add(1, Ordering::Relaxed);
        self.in_hand.fetch_add(1, Ordering::Relaxed);
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
        let taken = self.busy.load(Ordering::Relaxed) + self.returning.load(Ordering::Relaxed);
        let left = self.slots().saturating_sub(taken);
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
    /// with room, then the one with most room, then the best. One that is known to be too small for the key goes last.
    pub(super) fn place(self: &Arc<Self>, job: &Job, resident: impl Fn(&Device) -> bool) -> Placement {
        let own = self.choose(resident, |device| device.may_take(job.zkey));
        let at = self.after_failures(own, job);
        // Only the dispatcher places jobs, so that nothing is counted between the look and the count.
        let room = self.retrials.load(Ordering::Relaxed) < RETRIALS;
        self.placed(at, at != own && self.devices[at].is_cpu() && room)
    }

    fn placed(self: &Arc<Self>, at: usize, retrial: bool) -> Placement {
        let device = self.devices[at].clone();
        self.in_hand.fetch_add(1, Ordering::Relaxed);
        if retrial {
            self.retrials.fetch_add(1, Ordering::Relaxed);
        } else {
            device.take();
            self.busy.fetch_add(1, Ordering::Relaxed);
        }
        self.show();
        Placement { fleet: self.clone(), device, retrial }
    }

    fn choose(&self, resident: impl Fn(&Device) -> bool, may_take: impl Fn(&Device) -> bool) -> usize {
        let room = |i: usize| self.devices[i].free();
        // The processor takes what is too much for the others, and no more.
        let better = self.fit_workers().filter(|i| room(*i) > 0).max_by_key(|i| {
            let device = &self.devices[*i];
            let cpu_last = self.workers.len() == 1 || !device.is_cpu();
            (may_take(device), cpu_last, resident(device), room(*i), std::cmp::Reverse(*i))
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
            1 if !doubtful && self.failed_on().get(&job.id) == Some(&own) => {
                self.other_than(own, job.zkey).unwrap_or(cpu)
            }
            1 if !doubtful => own,
            _ => cpu,
        }
    }

    /// Whether a job that failed so goes to the processor next, noted by [`Fleet::remember`] already.
    pub(super) fn falls_to_processor(&self, job: &Job, class: FailureClass) -> bool {
        let other = |own: &usize| self.other_than(*own, job.zkey).is_none_or(|other| self.devices[other].is_cpu());
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
        let each = Duration::from_secs_f64(cpu.seconds_a_proof(RETRIALS));
        let mut next = locked(&self.next_retrial);
        let wait = next.saturating_duration_since(now);
        *next = now + wait + each;
        wait
    }

    /// The next device that does not sit out and is not known to be too small for this key.
    fn other_than(&self, own: usize, zkey: ContentHash) -> Option<usize> {
        let n = self.devices.len();
        let serves = |device: &Device| !device.is_quarantined() && device.may_take(zkey);
        (1..n).map(|i| (own + i) % n).find(|i| serves(&self.devices[*i]))
    }

    fn failed_on(&self) -> MutexGuard<'_, HashMap<JobId, usize>> {
        locked(&self.failed_on)
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

    #[test]
    fn doubtful_jobs_come_to_the_processor_as_fast_as_it_judges() {
        let cpu = CpuBackend::new(1).unwrap();
        let batching = Batching { most: None, linger: Duration::ZERO };
        let fleet = Fleet::new(vec![Arc::new(cpu)], Sizing { jobs: None, cpu_overflow: false, batching });
        let now = Instant::now() + Duration::from_secs(1);
        assert_eq!([0, 1].map(|_| fleet.book_retrial(now)), [Duration::ZERO; 2], "none is known to take long");
        let each = Duration::from_secs(2);
        let small = Fleet::new(
            vec![Arc::new(CpuBackend::new(1).unwrap())],
            Sizing { jobs: None, cpu_overflow: false, batching },
        );
        small.devices[0].judged(each, each / 64);
        let four = each / RETRIALS as u32;
        assert_eq!(
            [0, 1].map(|_| small.book_retrial(now)),
            [Duration::ZERO, four],
            "no more are in hand, whatever it could do"
        );
        fleet.devices[0].judged(each, each);
        assert_eq!([0, 1, 2].map(|_| fleet.book_retrial(now)), [Duration::ZERO, each, each * 2]);
        assert_eq!(fleet.book_retrial(now + each), each * 2, "time passes");
    }

    #[test]
    fn a_job_goes_to_the_second_device_while_the_first_is_unfit() {
        let devices = (0..2).map(|_| Arc::new(CpuBackend::new(1).unwrap()) as Arc<dyn Backend>).collect();
        let batching = Batching { most: None, linger: Duration::ZERO };
        let fleet = Fleet::new(devices, Sizing { jobs: Some(1), cpu_overflow: false, batching });
        assert_eq!((fleet.slots(), fleet.free()), (1, 1));
        fleet.devices[0].quarantine(Some("made up"));
        assert_eq!(fleet.free(), 1);
    }

    #[test]
    fn a_job_goes_to_a_device_that_is_not_known_to_be_too_small_for_its_key() {
        let devices = (0..2).map(|_| Arc::new(CpuBackend::new(1).unwrap()) as Arc<dyn Backend>).collect();
        let batching = Batching { most: None, linger: Duration::ZERO };
        let fleet = Fleet::new(devices, Sizing { jobs: Some(4), cpu_overflow: false, batching });
        let (large, small) = (ContentHash::of(b"large"), ContentHash::of(b"small"));
        let choose = |zkey| fleet.choose(|_| false, |device| device.may_take(zkey));
        assert_eq!((choose(large), choose(small)), (0, 0));
        fleet.devices[0].is_too_small(large);
        assert_eq!((choose(large), choose(small)), (1, 0));
        // Where all are too small, one of them says so.
        fleet.devices[1].is_too_small(large);
        assert_eq!((choose(large), choose(small)), (0, 0));
    }

    #[test]
    fn a_job_that_failed_goes_to_another_device_that_may_take_its_key() {
        let devices = (0..3).map(|_| Arc::new(CpuBackend::new(1).unwrap()) as Arc<dyn Backend>).collect();
        let batching = Batching { most: None, linger: Duration::ZERO };
        let fleet = Fleet::new(devices, Sizing { jobs: Some(4), cpu_overflow: false, batching });
        let (large, small) = (ContentHash::of(b"large"), ContentHash::of(b"small"));
        fleet.devices[1].is_too_small(large);
        assert_eq!([large, small].map(|key| fleet.other_than(0, key)), [Some(2), Some(1)]);
        fleet.devices[2].is_too_small(large);
        assert_eq!(fleet.other_than(0, large), None, "the processor's turn");
    }

    #[tokio::test]
    async fn a_job_that_waits_for_its_key_lends_its_place_to_another() {
        let batching = Batching { most: None, linger: Duration::ZERO };
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

    #[test]
    fn slots_are_shared_out_evenly() {
        assert_eq!(share(2, 5), [3, 2]);
        assert_eq!(share(3, 1), [1, 0, 0]);
        assert_eq!(share(1, 1024), [1024]);
    }
}
