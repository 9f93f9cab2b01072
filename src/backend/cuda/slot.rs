//! One proof at a time on a device: its memory, its streams, and its launch as one CUDA graph.
//!
//! **Streams.** The first and last kernels of an MSM leave most of a device idle, so the MSMs of a small circuit run
//! side by side, each with a stream and memory of its own (*apart*). Where that would take much memory, four of them
//! follow each other in one stream, and only the quotient with its MSM has a stream to itself.
//!
//! **CUDA graphs.** Those five streams have some hundred kernels and memsets, each of which takes the host microseconds
//! to launch; for small circuits, that takes longer than the device needs to run them. The first proof of a slot
//! launches them one by one, which loads any kernel that has not run yet. The second captures them as a graph, which it
//! and all later proofs launch as a whole. If a graph cannot be made, kernels are still launched one by one, and the
//! driver's counts say why.
//!
//! **Memory.** All of a slot is one allocation, and as secret as the witness: clearing it is one call.

#![allow(unsafe_code)]

use std::sync::Arc;

use zeroize::Zeroizing;

use super::super::{BackendError, Commitments};
use super::driver::{Driver, Graph, Stream};
use super::key::Resident;
use super::memory::{Arena, Buffer, padded_total};
use super::msm::{self, Bases, Group, InG1, InG2, Needs, Plan, Sums};
use super::quotient;
use super::sort::{Sorted, Sorter};

/// Most bases of an MSM for which the MSMs of a proof run apart. On an H200, four proofs at a time took 0.6 of the time
/// of four single ones with 2^16 bases, and 0.8 with 2^20.
const MAX_APART: u64 = 1 << 18;
/// Share of a device's memory, as a divisor, that one proof may take for its MSMs to run apart.
const APART_SHARE: u64 = 64;

/// The MSMs of a proof, in the order in which those in one stream follow each other, except for H.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Msm {
    B2,
    H,
    B1,
    A,
    C,
}

/// A value for each stream of a proof: the memory requirements of the MSMs in it, or the stream with that memory.
enum Lanes<T> {
    /// Each MSM has a stream, in the order of [`Msm`].
    Apart([T; 5]),
    /// The MSMs with the values of the wires, B2, B1, A and C, share a stream.
    Together { wires: T, h: T },
}

impl<T> Lanes<T> {
    /// Returns the value for the stream in which an MSM runs.
    fn of(&self, msm: Msm) -> &T {
        match (self, msm) {
            (Self::Apart(lanes), msm) => &lanes[msm as usize],
            (Self::Together { h, .. }, Msm::H) => h,
            (Self::Together { wires, .. }, _) => wires,
        }
    }

    /// Returns the value for the first stream, that of B2.
    fn first(&self) -> &T {
        self.of(Msm::B2)
    }

    /// Returns the values for all streams but the first.
    fn others(&self) -> &[T] {
        match self {
            Self::Apart([_, others @ ..]) => others,
            Self::Together { h, .. } => std::slice::from_ref(h),
        }
    }

    /// Returns the values for all streams, the first one's first.
    fn iter(&self) -> impl Iterator<Item = &T> {
        std::iter::once(self.first()).chain(self.others())
    }

    /// Makes other values of these, in the order of [`Lanes::iter`], until one fails.
    fn try_map<U, E>(&self, mut make: impl FnMut(&T) -> Result<U, E>) -> Result<Lanes<U>, E> {
        Ok(match self {
            Self::Apart([b2, h, b1, a, c]) => Lanes::Apart([make(b2)?, make(h)?, make(b1)?, make(a)?, make(c)?]),
            Self::Together { wires, h } => Lanes::Together { wires: make(wires)?, h: make(h)? },
        })
    }
}

/// Memory requirements of a proof.
pub(super) struct Layout {
    /// Those of the MSMs in each stream.
    lanes: Lanes<Needs>,
    /// Bytes of the sums.
    sums: u64,
    /// Bytes of the witness.
    witness: u64,
}

/// Plans for A, B, C and H, the number of bases of each, and whether the MSMs run apart.
#[derive(Clone, Copy, Debug)]
pub(super) struct Plans {
    pub(super) a: Plan,
    pub(super) b: Plan,
    pub(super) c: Plan,
    pub(super) h: Plan,
    pub(super) counts: [u64; 4],
    pub(super) apart: bool,
}

impl Plans {
    /// Returns the best plans for these numbers of bases of A, B, C and H.
    pub(super) fn new(driver: &dyn Driver, counts: [u64; 4], multiples: u64) -> Self {
        let [a, b, c, h] = counts;
        let plan = |n| Plan::new::<InG1>(driver, n, multiples);
        // B is summed in both groups, and G2 takes three times as long.
        let b = Plan::new::<InG2>(driver, b, multiples);
        let plans = Self { a: plan(a), b, c: plan(c), h: plan(h), counts, apart: false };
        let apart = counts.iter().all(|count| *count <= MAX_APART)
            && plans.needs(driver).iter().map(Needs::with_sorter).sum::<u64>()
                <= driver.properties().memory / APART_SHARE;
        Self { apart, ..plans }
    }

    /// Returns the best plans for the points that are present, which are fewer than these plans count, if they take no
    /// more memory: a plan for fewer points may take more than one for many, for example for bundles that would have
    /// been too large for all points. Otherwise returns these plans, which take less memory the fewer points there are.
    pub(super) fn of_present(&self, driver: &dyn Driver, counts: [u64; 4], multiples: u64, wires: u64) -> Self {
        let best = Self { apart: self.apart, ..Self::new(driver, counts, multiples) };
        let bytes = |plans: &Self| plans.layout(driver, wires).bytes();
        let fits = best.tables() <= self.tables() && bytes(&best) <= bytes(self);
        if fits { best } else { Self { counts, ..*self } }
    }

    /// Returns the bytes of the points and their multiples.
    pub(super) fn tables(&self) -> u64 {
        let [a, b, c, h] = self.counts;
        let of_b = Bases::<InG1>::bytes(b, &self.b) + Bases::<InG2>::bytes(b, &self.b);
        let in_g1 = [(a, &self.a), (c, &self.c), (h, &self.h)];
        of_b + in_g1.map(|(n, plan)| Bases::<InG1>::bytes(n, plan)).iter().sum::<u64>()
    }

    /// Returns the memory requirements of each MSM, in the order of [`Msm`].
    fn needs(&self, driver: &dyn Driver) -> [Needs; 5] {
        let [a, b, c, h] = self.counts;
        [
            Needs::of::<InG2>(driver, b, &self.b),
            Needs::of::<InG1>(driver, h, &self.h),
            // The digits of B are sorted only once.
            Needs::of::<InG1>(driver, b, &self.b).without_sorter(),
            Needs::of::<InG1>(driver, a, &self.a),
            Needs::of::<InG1>(driver, c, &self.c),
        ]
    }

    /// Returns where the MSMs of a proof run and in how much memory, for a witness of `wires` values.
    pub(super) fn layout(&self, driver: &dyn Driver, wires: u64) -> Layout {
        let (needs, witness) = (self.needs(driver), msm::SCALAR_BYTES * wires);
        let sums = [&self.a, &self.b, &self.c, &self.h].map(Sums::<InG1>::bytes).iter().sum::<u64>()
            + Sums::<InG2>::bytes(&self.b);
        if self.apart {
            return Layout { lanes: Lanes::Apart(needs), sums, witness };
        }
        let [b2, h, b1, a, c] = needs;
        let wires = [b2, b1, a, c].into_iter().fold(Needs::default(), Needs::or);
        Layout { lanes: Lanes::Together { wires, h }, sums, witness }
    }
}

impl Layout {
    /// Returns the bytes of a [`Slot`], not counting those for the quotient.
    pub(super) fn bytes(&self) -> u64 {
        self.lanes.iter().map(Needs::with_sorter).sum::<u64>() + padded_total(&[self.sums, self.witness])
    }
}

/// A stream, and memory for one MSM at a time in it.
struct Lane {
    stream: Stream,
    sorter: Sorter,
    scratch: msm::Scratch,
}

impl Lane {
    fn sum<G: Group>(&self, bases: &Bases<G>, digits: Sorted<'_>, sums: &Sums<G>) -> Result<(), BackendError> {
        self.scratch.sum(self.stream, bases, digits, sums)
    }
}

/// How the work of a proof is launched.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Launching {
    /// Kernel by kernel, for good.
    Singly,
    /// Kernel by kernel for now; the next proof makes a graph.
    SinglyAtFirst,
    /// As one CUDA graph.
    AsGraph(Graph),
}

/// The memory and streams of one proof at a time.
pub(super) struct Slot {
    driver: Arc<dyn Driver>,
    /// The memory of everything below.
    memory: Arena,
    lanes: Lanes<Lane>,
    witness: Buffer,
    quotient: quotient::Scratch,
    /// What is left for the host, in one place, so that a single download fetches it.
    left: Arc<Buffer>,
    a: Sums<InG1>,
    b1: Sums<InG1>,
    b2: Sums<InG2>,
    c: Sums<InG1>,
    h: Sums<InG1>,
    launching: Launching,
    /// Whether the log has a warning about this slot's graphs already.
    warned: bool,
    /// Whether a proof has run here, and whether data of one may still be here.
    used: bool,
    secret: bool,
}

impl Drop for Slot {
    fn drop(&mut self) {
        if self.secret {
            // The data is that of a proof that was never ended, or whose clearing failed: a failure here cannot be
            // handled any better.
            let _ = self.join().and_then(|()| self.memory.zero(self.stream()));
        }
        // Graphs run in the first stream only.
        let _ = self.driver.synchronize(self.stream());
        if let Launching::AsGraph(work) = self.launching {
            self.driver.destroy_graph(work);
        }
        self.lanes.iter().for_each(|lane| self.driver.destroy_stream(lane.stream));
    }
}

/// Streams that are destroyed unless a slot takes them over.
struct Streams<'a> {
    driver: &'a Arc<dyn Driver>,
    made: Vec<Stream>,
}

impl Drop for Streams<'_> {
    fn drop(&mut self) {
        self.made.iter().for_each(|stream| self.driver.destroy_stream(*stream));
    }
}

impl Slot {
    /// Allocates memory and streams for proofs with this key; `graphs` says whether they may be
    /// launched as one CUDA graph.
    pub(super) fn new(driver: &Arc<dyn Driver>, key: &Resident, graphs: bool) -> Result<Self, BackendError> {
        let plans = &key.plans;
        let layout = plans.layout(&**driver, key.wires);
        let bytes = layout.bytes() + quotient::Scratch::bytes(&key.constraints);
        let mut memory = Arena::new(driver, bytes)?;
        let mut streams = Streams { driver, made: Vec::new() };
        let lanes = layout.lanes.try_map(|needs| {
            let stream = driver.create_stream()?;
            streams.made.push(stream);
            let sorter = Sorter::within(driver, &mut memory, needs.sorter())?;
            Ok::<_, BackendError>(Lane { stream, sorter, scratch: msm::Scratch::within(driver, &mut memory, *needs)? })
        })?;
        let [left, witness] = memory.allocate([layout.sums, layout.witness])?;
        let left = Arc::new(left);
        let mut end = 0;
        let mut next = |bytes| {
            end += bytes;
            end - bytes
        };
        let mut in_g1 = |plan: &Plan| Sums::<InG1>::new(&left, next(Sums::<InG1>::bytes(plan)), *plan);
        let (a, b1, c, h) = (in_g1(&plans.a)?, in_g1(&plans.b)?, in_g1(&plans.c)?, in_g1(&plans.h)?);
        let b2 = Sums::<InG2>::new(&left, next(Sums::<InG2>::bytes(&plans.b)), plans.b)?;
        let quotient = quotient::Scratch::within(&mut memory, &key.constraints)?;
        // From here on, the slot destroys them.
        streams.made.clear();
        let launching = if graphs && plans.apart { Launching::SinglyAtFirst } else { Launching::Singly };
        let driver = driver.clone();
        let (warned, used, secret) = (false, false, false);
        Ok(Self { driver, memory, lanes, witness, quotient, left, a, b1, b2, c, h, launching, warned, used, secret })
    }

    /// Returns the stream that the others wait for at the beginning, and that waits for them at the end.
    fn stream(&self) -> Stream {
        self.lanes.first().stream
    }

    #[cfg(all(test, feature = "kernels-on-host"))]
    pub(super) fn launching(&self) -> Launching {
        self.launching
    }

    /// Uploads a witness and puts the work of its proof into the streams. Between MSMs, `go_on` is asked whether to
    /// continue, unless all work is launched as one graph.
    pub(super) fn begin(
        &mut self,
        key: &Resident,
        witness: &[u8],
        go_on: &dyn Fn() -> Result<(), BackendError>,
    ) -> Result<(), BackendError> {
        self.secret = true;
        self.witness.upload(self.stream(), 0, witness)?;
        let used = std::mem::replace(&mut self.used, true);
        if used && self.launching == Launching::SinglyAtFirst {
            match self.driver.graph(self.stream(), &mut || self.launch(key, &|| Ok(()))) {
                Ok(work) => self.launching = Launching::AsGraph(work),
                Err(why) => self.give_up_graph(&why),
            }
        }
        if let Launching::AsGraph(work) = self.launching {
            // SAFETY: the graph's work points to the memory of this slot and to that of the key that the graph was made
            // with, which is `key`; both still exist.
            match unsafe { self.driver.run(self.stream(), work) } {
                Ok(()) => return Ok(()),
                Err(why) => {
                    self.give_up_graph(&why);
                    // If that fails as well, the first error says more.
                    return self.launch(key, go_on).map_err(|later| match later {
                        BackendError::Stopped(_) => later,
                        _ => why,
                    });
                }
            }
        }
        self.launch(key, go_on)
    }

    /// Launches kernels one by one from now on, because a graph that fails once fails again. After a lack of memory,
    /// which other keys and proofs may free, that holds only for this proof and the next.
    fn give_up_graph(&mut self, why: &BackendError) {
        const WHAT: &str = "could not launch the kernels of a proof as one CUDA graph; launching them one by one";
        // While memory is short, this happens with every second proof.
        if std::mem::replace(&mut self.warned, true) {
            tracing::debug!(%why, "{WHAT}");
        } else {
            tracing::warn!(%why, "{WHAT}");
        }
        // The graph may still be running if the error was reported late; on a device that is lost, nothing runs.
        let _ = self.driver.synchronize(self.stream());
        let next = match why {
            BackendError::OutOfMemory { .. } => Launching::SinglyAtFirst,
            _ => Launching::Singly,
        };
        self.used = false;
        if let Launching::AsGraph(work) = std::mem::replace(&mut self.launching, next) {
            self.driver.destroy_graph(work);
        }
    }

    /// Waits for the commitments.
    pub(super) fn end(&self) -> Result<Commitments, BackendError> {
        let mut left = Zeroizing::new(vec![0; self.left.bytes() as usize]);
        self.left.download(self.stream(), 0, &mut left).inspect_err(|why| self.suspect_graph(why))?;
        let [a, b1, c, h] = [&self.a, &self.b1, &self.c, &self.h].map(|sums| sums.point(&left));
        Ok(Commitments { a, b1, b2: self.b2.point(&left), c, h })
    }

    /// Names the setting that may help if a graph ended in a kernel fault or ran into the time limit of a GPU that
    /// drives a display (CUDA's codes 700, 702 and 719): some drivers have trouble with graphs on such GPUs.
    fn suspect_graph(&self, why: &BackendError) {
        if let (Launching::AsGraph(_), BackendError::Device { code: 700 | 702 | 719, .. }) = (self.launching, why) {
            tracing::warn!(%why, "a CUDA graph failed on the GPU; if this happens again, try PROVER_CUDA_GRAPHS=off");
        }
    }

    /// Overwrites everything that is as secret as the witness, before the next proof uses the slot. `whole` says that
    /// all work of the last proof was put into the streams without an error, and that its results have been downloaded.
    pub(super) fn clear(&mut self, whole: bool) -> Result<(), BackendError> {
        if !whole {
            // Any stream may have work that no other stream waits for.
            self.join()?;
        }
        // Including the sums: the commitments follow from them, before they are blinded.
        self.memory.zero(self.stream())?;
        if !whole {
            // No download has waited: this makes sure that the witness also leaves the pinned memory
            // that it came through.
            self.driver.synchronize(self.stream())?;
        }
        self.secret = false;
        Ok(())
    }

    fn launch(&self, key: &Resident, go_on: &dyn Fn() -> Result<(), BackendError>) -> Result<(), BackendError> {
        self.fork()?;
        let plans = &key.plans;
        let lane = self.lanes.of(Msm::H);
        key.constraints.quotient(lane.stream, &self.witness, &self.quotient)?;
        let digits = lane.sorter.sort(lane.stream, self.quotient.scalars(), &key.in_h, &plans.h)?;
        lane.sum(&key.h, digits, &self.h)?;
        go_on()?;
        let lane = self.lanes.of(Msm::B2);
        let digits = lane.sorter.sort(lane.stream, &self.witness, &key.in_b, &plans.b)?;
        let of_b1 = self.lanes.of(Msm::B1);
        self.driver.order(lane.stream, of_b1.stream)?;
        lane.sum(&key.b2, digits, &self.b2)?;
        of_b1.sum(&key.b1, digits, &self.b1)?;
        for (msm, index, bases, plan, sums) in
            [(Msm::A, &key.in_a, &key.a, &plans.a, &self.a), (Msm::C, &key.in_c, &key.c, &plans.c, &self.c)]
        {
            go_on()?;
            let lane = self.lanes.of(msm);
            let digits = lane.sorter.sort(lane.stream, &self.witness, index, plan)?;
            lane.sum(bases, digits, sums)?;
        }
        self.join()
    }

    /// Makes the later work of all other streams wait for that of the first stream so far.
    fn fork(&self) -> Result<(), BackendError> {
        self.lanes.others().iter().try_for_each(|lane| self.driver.order(self.stream(), lane.stream))
    }

    /// Makes the later work of the first stream wait for that of all other streams so far.
    fn join(&self) -> Result<(), BackendError> {
        self.lanes.others().iter().try_for_each(|lane| self.driver.order(lane.stream, self.stream()))
    }
}

#[cfg(all(test, feature = "kernels-on-host"))]
mod tests {
    use super::super::driver::host::{HostDriver, Order};
    use super::*;

    /// Including cases where fewer points of B would have bundles, but all of them would not.
    #[test]
    fn points_that_there_are_take_no_more_than_all_would() {
        let mut kept = 0;
        for (multiprocessors, gigabytes, log) in [(40, 8, 20), (40, 16, 21), (58, 24, 21), (132, 24, 21), (132, 80, 22)]
        {
            let driver = HostDriver::new(Order::Ascending).with_multiprocessors(multiprocessors);
            let driver = driver.with_memory(gigabytes << 30);
            let n = 1u64 << log;
            let multiples = (gigabytes << 30) / 6 / (n * 384);
            let all = Plans::new(&driver, [n; 4], multiples);
            for tenths in 0..=10 {
                let counts = [n, n * tenths / 10, n, n];
                let plans = all.of_present(&driver, counts, multiples, n);
                let bytes = |plans: &Plans| (plans.tables(), plans.layout(&driver, n).bytes());
                let (took, most) = (bytes(&plans), bytes(&all));
                assert!(took.0 <= most.0 && took.1 <= most.1, "expected {most:?} at most, got {took:?}: {plans:?}");
                assert_eq!(plans.counts, counts);
                let best = Plans::new(&driver, counts, multiples);
                kept += usize::from(plans.b != best.b);
            }
        }
        assert!(kept > 0, "no plan for fewer points takes more");
    }
}
