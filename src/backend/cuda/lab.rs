//! Kernels by themselves, for benches, for the check of a GPU and for the trial in its self-test. No proof uses this.

#![allow(unsafe_code)]

use std::sync::{Arc, Mutex};

use ark_ec::short_weierstrass::Projective;
use ark_ff::BigInteger256;

use super::super::BackendError;
use super::driver::{Address, Argument, Driver, Event, Graph, GraphCounts, Launch, Properties, Stream};
use super::memory::Buffer;
use super::msm::{self, Bases, Index, Needs, Scratch, Sums};
pub use super::msm::{Group, InG1, InG2, Plan};
use super::ntt::{Domain, ELEMENT, Points, Radix};
use super::sort::Sorter;
use crate::model::{Fr, limbs, locked, reduced};

/// A device on which to try kernels.
pub struct Lab {
    driver: Arc<dyn Driver>,
    traced: Arc<Traced>,
    stream: Arc<OwnedStream>,
}

impl Lab {
    /// Creates a lab on this device.
    pub fn new(driver: Arc<dyn Driver>) -> Result<Self, BackendError> {
        let stream = Arc::new(OwnedStream { id: driver.create_stream()?, driver: driver.clone() });
        let traced = Arc::new(Traced { inner: driver, launches: Mutex::default() });
        Ok(Self { driver: traced.clone(), traced, stream })
    }

    /// Returns a lab on the same device with a stream of its own, so that the work of both may run at the same time.
    pub fn beside(&self) -> Result<Self, BackendError> {
        let stream = Arc::new(OwnedStream { id: self.driver.create_stream()?, driver: self.driver.clone() });
        Ok(Self { driver: self.driver.clone(), traced: self.traced.clone(), stream })
    }

    /// Captures, as one graph, what `work` puts into this stream and into those of `beside`. `parts` is everything that
    /// the work uses, made in any of these labs.
    pub fn capture<T>(
        &self,
        beside: &[Self],
        parts: T,
        work: fn(&T) -> Result<(), BackendError>,
    ) -> Result<CapturedGraph<T>, BackendError> {
        let first = self.stream.id;
        let graph = self.driver.graph(first, &mut || {
            beside.iter().try_for_each(|lab| self.driver.order(first, lab.stream.id))?;
            work(&parts)?;
            beside.iter().try_for_each(|lab| self.driver.order(lab.stream.id, first))
        })?;
        Ok(CapturedGraph { stream: self.stream.clone(), graph, parts })
    }

    /// Returns the milliseconds that the device takes for what `work` puts into the stream, one figure per round.
    pub fn time(
        &self,
        rounds: usize,
        mut work: impl FnMut() -> Result<(), BackendError>,
    ) -> Result<Vec<f64>, BackendError> {
        let mut times = Vec::with_capacity(rounds);
        for _ in 0..rounds {
            let from = OwnedEvent::record(&self.driver, self.stream.id)?;
            work()?;
            let to = OwnedEvent::record(&self.driver, self.stream.id)?;
            self.driver.synchronize(self.stream.id)?;
            times.push(Interval { from, to }.milliseconds()?);
        }
        Ok(times)
    }

    /// Returns the kernels that `work` puts into the stream, with the milliseconds of each, launch gaps included.
    pub fn trace(
        &self,
        work: impl FnOnce() -> Result<(), BackendError>,
    ) -> Result<Vec<(&'static str, f64)>, BackendError> {
        let launches = || locked(&self.traced.launches);
        *launches() = Some(Vec::new());
        let done = work();
        let traced = launches().take().unwrap_or_default();
        done?;
        self.driver.synchronize(self.stream.id)?;
        let mut times = Vec::with_capacity(traced.len());
        for (kernel, interval) in traced {
            times.push((kernel, interval.milliseconds()?));
        }
        Ok(times)
    }

    /// Prepares an MSM, Σ scalarᵢ·pointᵢ, for the points of a section of a key, with the given window and rounds of
    /// bundles or those expected to be best, and with at most `multiples` multiples of each point in memory.
    pub fn msm<G: Group>(
        &self,
        section: &[u8],
        multiples: u64,
        window: Option<(u32, u32)>,
    ) -> Result<Msm<G>, BackendError> {
        let there = msm::present::<G>(section)?;
        let index = Index::new(&self.driver, self.stream.id, &there, 0)?;
        let n = there.len() as u64;
        let plan = match window {
            Some((window, rounds)) => Plan { rounds, ..Plan::of(window, n, multiples) },
            None => Plan::new::<G>(&*self.driver, n, multiples),
        };
        let scalars = Buffer::new(&self.driver, msm::SCALAR_BYTES * (section.len() / G::BYTES) as u64)?;
        let needs = Needs::of::<G>(&*self.driver, n, &plan);
        let sums = Arc::new(Buffer::new(&self.driver, Sums::<G>::bytes(&plan))?);
        Ok(Msm {
            bases: Bases::new(&self.driver, self.stream.id, section, &index, 0, plan)?,
            sorter: Sorter::new(&self.driver, needs.sorter())?,
            scratch: Scratch::new(&self.driver, needs)?,
            sums: Sums::new(&sums, 0, plan)?,
            index,
            scalars,
            stream: self.stream.clone(),
        })
    }

    /// Prepares NTTs of `vectors` vectors of 2^log elements, with 1, 2 or 3 stages between exchanges or as many as
    /// expected to be best.
    pub fn transforms(&self, log: u32, vectors: u32, stages: Option<u32>) -> Result<Transforms, BackendError> {
        let radix = match stages {
            Some(1) => Some(Radix::Two),
            Some(2) => Some(Radix::Four),
            Some(_) => Some(Radix::Eight),
            None => None,
        };
        let domain = match radix {
            Some(radix) => Domain::with(&self.driver, self.stream.id, log, radix)?,
            None => Domain::new(&self.driver, self.stream.id, log)?,
        };
        let data = Buffer::new(&self.driver, (u64::from(vectors) * ELEMENT) << log)?;
        self.driver.synchronize(self.stream.id)?;
        Ok(Transforms { domain, data, vectors, stream: self.stream.clone() })
    }

    /// Returns the results of the field's operations for each pair of operands, computed by the kernels of
    /// `kernels/check.cu`: elements in Montgomery form below twice the modulus, four words each or twice as many in
    /// Fq2; seven results per pair.
    pub fn operations(&self, field: Field, a: &[u64], b: &[u64]) -> Result<Vec<u64>, BackendError> {
        const RESULTS: u64 = 7;
        let (kernel, words) = match field {
            Field::Fq => ("check_fq_operations", 4),
            Field::Fr => ("check_fr_operations", 4),
            Field::Fq2 => ("check_fq2_operations", 8),
        };
        if a.len() != b.len() || !a.len().is_multiple_of(words) {
            let what = "words of operands";
            return Err(BackendError::Shape { what, expected: a.len() as u64, got: b.len() as u64 });
        }
        let bytes = |x: &[u64]| x.iter().flat_map(|word| word.to_le_bytes()).collect::<Vec<u8>>();
        let (n, block) = ((a.len() / words) as u32, 64);
        let [a, b] = [a, b].map(|x| Buffer::with(&self.driver, self.stream.id, &bytes(x)));
        let (a, b) = (a?, b?);
        let out = Buffer::new(&self.driver, RESULTS * 8 * words as u64 * u64::from(n))?;
        let arguments = [a.argument(), b.argument(), out.argument(), Argument::U32(n)];
        // At most two threads per element.
        let grid = ((2 * n).div_ceil(block).max(1), 1);
        let launch = Launch { kernel, grid, block, shared: 0, arguments: &arguments };
        // SAFETY: these are the arguments of each of the three kernels, for `n` elements of `words` words; `out` has
        // space for seven times as many.
        unsafe { self.driver.launch(self.stream.id, launch)? };
        let mut results = vec![0; out.bytes() as usize];
        out.download(self.stream.id, 0, &mut results)?;
        Ok(results.chunks_exact(8).map(|word| word.iter().rev().fold(0, |x, byte| x << 8 | u64::from(*byte))).collect())
    }

    /// Prepares arithmetic alone, `count` times in each of `blocks` blocks of 128 threads, on arbitrary data.
    pub fn bench(&self, what: Arithmetic, blocks: u32, count: u32) -> Result<Bench, BackendError> {
        let memory = Buffer::new(&self.driver, u64::from(blocks * BENCH_THREADS) * what.bytes_per_thread())?;
        let filler: Vec<u8> = (0..memory.bytes() as usize).map(|i| (i * 7 + i / 251) as u8 & 0x1f).collect();
        memory.upload(self.stream.id, 0, &filler)?;
        Ok(Bench { driver: self.driver.clone(), stream: self.stream.clone(), memory, what, blocks, count })
    }
}

/// Threads of a block of a [`Bench`].
const BENCH_THREADS: u32 = 128;

/// Fields whose operations can be checked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Field {
    /// The field of the coordinates of G1.
    Fq,
    /// The field of the scalars.
    Fr,
    /// The field of the coordinates of G2.
    Fq2,
}

/// What a [`Bench`] computes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Arithmetic {
    /// Products in Fq, one per thread.
    Products,
    /// Squares in Fq, one per thread.
    Squares,
    /// Products in Fq2, one per two threads.
    ProductsInFq2,
    /// Additions of an affine point in G1, one per thread.
    AdditionsInG1,
    /// The same in G2, one per two threads.
    AdditionsInG2,
}

impl Arithmetic {
    /// Returns the number of threads that compute one operation together.
    pub fn lanes(self) -> u32 {
        if matches!(self, Self::ProductsInFq2 | Self::AdditionsInG2) { 2 } else { 1 }
    }

    /// Returns the bytes that its kernel reads and writes per thread.
    fn bytes_per_thread(self) -> u64 {
        if matches!(self, Self::AdditionsInG1 | Self::AdditionsInG2) { 128 } else { 32 }
    }

    fn kernel(self) -> &'static str {
        match self {
            Self::Products => "bench_fq_products",
            Self::Squares => "bench_fq_squares",
            Self::ProductsInFq2 => "bench_fq2_products",
            Self::AdditionsInG1 => "bench_g1_additions",
            Self::AdditionsInG2 => "bench_g2_additions",
        }
    }
}

/// A stream that lives as long as anything has work for it.
struct OwnedStream {
    driver: Arc<dyn Driver>,
    id: Stream,
}

impl Drop for OwnedStream {
    fn drop(&mut self) {
        self.driver.destroy_stream(self.id);
    }
}

/// An MSM.
pub struct Msm<G: Group> {
    bases: Bases<G>,
    sorter: Sorter,
    scratch: Scratch,
    sums: Sums<G>,
    index: Index,
    scalars: Buffer,
    stream: Arc<OwnedStream>,
}

impl<G: Group> Msm<G> {
    /// Returns the plan.
    pub fn plan(&self) -> String {
        format!("{:?}", self.bases.plan)
    }

    /// Uploads scalars: plain, below r, one for each point of the section.
    pub fn scalars(&self, scalars: &[BigInteger256]) -> Result<(), BackendError> {
        let bytes: Vec<u8> = scalars.iter().flat_map(|s| s.0).flat_map(u64::to_le_bytes).collect();
        self.scalars.upload(self.stream.id, 0, &bytes)
    }

    /// Puts the MSM into the stream.
    pub fn run(&self) -> Result<(), BackendError> {
        self.sort()?;
        self.sum()
    }

    /// Puts the first step, which sorts the digits, into the stream.
    pub fn sort(&self) -> Result<(), BackendError> {
        self.sorter.sort(self.stream.id, &self.scalars, &self.index, &self.bases.plan).map(drop)
    }

    /// Puts the second step, which sums the points, into the stream.
    pub fn sum(&self) -> Result<(), BackendError> {
        let digits = self.sorter.sorted(&self.index, &self.bases.plan);
        self.scratch.sum(self.stream.id, &self.bases, digits, &self.sums)
    }

    /// Waits for all work in the stream.
    pub fn wait(&self) -> Result<(), BackendError> {
        self.stream.driver.synchronize(self.stream.id)
    }

    /// Waits for the result and returns it.
    pub fn read(&self) -> Result<Projective<G::Config>, BackendError> {
        self.sums.read(self.stream.id)
    }
}

/// Work captured as one graph, and what it uses.
pub struct CapturedGraph<T> {
    stream: Arc<OwnedStream>,
    graph: Graph,
    parts: T,
}

impl<T> CapturedGraph<T> {
    /// Launches the graph in the stream.
    pub fn run(&self) -> Result<(), BackendError> {
        // SAFETY: the work was a function without an environment, so that all memory it used belongs to `parts`.
        unsafe { self.stream.driver.run(self.stream.id, self.graph) }
    }

    /// Waits for all work in the stream.
    pub fn wait(&self) -> Result<(), BackendError> {
        self.stream.driver.synchronize(self.stream.id)
    }

    /// Returns what the work uses.
    pub fn parts(&self) -> &T {
        &self.parts
    }
}

impl<T> Drop for CapturedGraph<T> {
    fn drop(&mut self) {
        // The graph may still be running; a stream that failed runs nothing.
        let _ = self.wait();
        self.stream.driver.destroy_graph(self.graph);
    }
}

/// NTTs in place.
pub struct Transforms {
    domain: Domain,
    data: Buffer,
    vectors: u32,
    stream: Arc<OwnedStream>,
}

impl Transforms {
    /// Uses tiles as large as those for vectors that fill the device.
    pub fn in_largest_tiles(mut self) -> Self {
        self.domain.enough = 0;
        self
    }

    /// Uploads elements.
    pub fn upload(&self, elements: &[Fr]) -> Result<(), BackendError> {
        let bytes: Vec<u8> = elements.iter().flat_map(|x| x.0.0).flat_map(u64::to_le_bytes).collect();
        self.data.upload(self.stream.id, 0, &bytes)
    }

    /// Transforms values into n times the coefficients, in bit-reversed order.
    pub fn inverse(&self) -> Result<(), BackendError> {
        self.domain.inverse(self.stream.id, &self.data, self.vectors)
    }

    /// Transforms coefficients in bit-reversed order into values on the domain, or on its odd coset.
    pub fn forward(&self, coset: bool) -> Result<(), BackendError> {
        let points = if coset { Points::OddCoset } else { Points::Domain };
        self.domain.forward(self.stream.id, &self.data, self.vectors, points)
    }

    /// Transforms values on the domain into n times those on its odd coset.
    pub fn to_odd_coset(&self) -> Result<(), BackendError> {
        self.domain.to_odd_coset(self.stream.id, &self.data, self.vectors)
    }

    /// Downloads the elements.
    pub fn download(&self) -> Result<Vec<Fr>, BackendError> {
        let mut bytes = vec![0; self.data.bytes() as usize];
        self.data.download(self.stream.id, 0, &mut bytes)?;
        let element = |bytes: &[u8]| Fr::new_unchecked(reduced::<Fr>(limbs(bytes)));
        Ok(bytes.chunks_exact(ELEMENT as usize).map(element).collect())
    }
}

/// A kernel of `kernels/bench.cu`, with its arguments.
pub struct Bench {
    driver: Arc<dyn Driver>,
    stream: Arc<OwnedStream>,
    memory: Buffer,
    what: Arithmetic,
    blocks: u32,
    count: u32,
}

impl Bench {
    /// Puts the kernel into the stream.
    pub fn run(&self) -> Result<(), BackendError> {
        let (kernel, block) = (self.what.kernel(), BENCH_THREADS);
        let arguments = [self.memory.argument(), Argument::U32(self.count)];
        let launch = Launch { kernel, grid: (self.blocks, 1), block, shared: 0, arguments: &arguments };
        // SAFETY: these are the arguments of all these kernels, and `Lab::bench` has allocated the memory that each of
        // their threads uses.
        unsafe { self.driver.launch(self.stream.id, launch) }
    }
}

/// An event that is destroyed when it is dropped.
struct OwnedEvent {
    driver: Arc<dyn Driver>,
    id: Event,
}

impl OwnedEvent {
    /// Records an event at the current end of the stream's work.
    fn record(driver: &Arc<dyn Driver>, stream: Stream) -> Result<Self, BackendError> {
        Ok(Self { id: driver.record(stream)?, driver: driver.clone() })
    }
}

impl Drop for OwnedEvent {
    fn drop(&mut self) {
        self.driver.destroy_event(self.id);
    }
}

/// The events before and after some work.
struct Interval {
    from: OwnedEvent,
    to: OwnedEvent,
}

impl Interval {
    /// Returns the time between the events, which have both happened.
    fn milliseconds(&self) -> Result<f64, BackendError> {
        self.from.driver.elapsed(self.from.id, self.to.id).map(f64::from)
    }
}

/// A kernel with the events before and after its launch.
type Timed = (&'static str, Interval);

/// A driver that records events around launches on request.
struct Traced {
    inner: Arc<dyn Driver>,
    launches: Mutex<Option<Vec<Timed>>>,
}

impl Driver for Traced {
    fn properties(&self) -> &Properties {
        self.inner.properties()
    }
    fn free_memory(&self) -> Result<u64, BackendError> {
        self.inner.free_memory()
    }
    fn allocate(&self, bytes: u64) -> Result<Address, BackendError> {
        self.inner.allocate(bytes)
    }
    fn suballocates(&self) -> bool {
        self.inner.suballocates()
    }
    unsafe fn release(&self, address: Address) {
        // SAFETY: the caller's guarantee is passed on.
        unsafe { self.inner.release(address) }
    }
    fn create_stream(&self) -> Result<Stream, BackendError> {
        self.inner.create_stream()
    }
    fn destroy_stream(&self, stream: Stream) {
        self.inner.destroy_stream(stream)
    }
    unsafe fn upload(&self, stream: Stream, to: Address, from: &[u8]) -> Result<(), BackendError> {
        // SAFETY: the caller's guarantee is passed on.
        unsafe { self.inner.upload(stream, to, from) }
    }
    unsafe fn download(&self, stream: Stream, to: &mut [u8], from: Address) -> Result<(), BackendError> {
        // SAFETY: the caller's guarantee is passed on.
        unsafe { self.inner.download(stream, to, from) }
    }
    unsafe fn zero(&self, stream: Stream, at: Address, bytes: u64) -> Result<(), BackendError> {
        // SAFETY: the caller's guarantee is passed on.
        unsafe { self.inner.zero(stream, at, bytes) }
    }
    unsafe fn launch(&self, stream: Stream, launch: Launch<'_>) -> Result<(), BackendError> {
        let tracing = locked(&self.launches).is_some();
        if !tracing {
            // SAFETY: the caller's guarantee is passed on.
            return unsafe { self.inner.launch(stream, launch) };
        }
        let from = OwnedEvent::record(&self.inner, stream)?;
        // SAFETY: the caller's guarantee is passed on.
        unsafe { self.inner.launch(stream, launch)? };
        let to = OwnedEvent::record(&self.inner, stream)?;
        if let Some(launches) = &mut *locked(&self.launches) {
            launches.push((launch.kernel, Interval { from, to }));
        }
        Ok(())
    }
    fn synchronize(&self, stream: Stream) -> Result<(), BackendError> {
        self.inner.synchronize(stream)
    }
    fn record(&self, stream: Stream) -> Result<Event, BackendError> {
        self.inner.record(stream)
    }
    fn wait(&self, stream: Stream, event: Event) -> Result<(), BackendError> {
        self.inner.wait(stream, event)
    }
    fn order(&self, before: Stream, after: Stream) -> Result<(), BackendError> {
        self.inner.order(before, after)
    }
    fn elapsed(&self, from: Event, to: Event) -> Result<f32, BackendError> {
        self.inner.elapsed(from, to)
    }
    fn destroy_event(&self, event: Event) {
        self.inner.destroy_event(event)
    }
    fn graph(&self, stream: Stream, work: &mut dyn FnMut() -> Result<(), BackendError>) -> Result<Graph, BackendError> {
        self.inner.graph(stream, work)
    }
    unsafe fn run(&self, stream: Stream, graph: Graph) -> Result<(), BackendError> {
        // SAFETY: the caller's guarantee is passed on.
        unsafe { self.inner.run(stream, graph) }
    }
    fn destroy_graph(&self, graph: Graph) {
        self.inner.destroy_graph(graph)
    }
    fn graph_counts(&self) -> GraphCounts {
        self.inner.graph_counts()
    }
}
