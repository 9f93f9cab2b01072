//! Multi-scalar multiplication (MSM) on a device: the host side of `kernels/msm.cu`, which describes the method.
//!
//! Bases are prepared once, when a key is loaded: points at infinity are dropped, and multiples are computed as far as
//! the memory granted for them allows. An MSM has two steps, so that bases with the same index (B in G1 and in G2)
//! share the first: [`Sorter::sort`](super::sort::Sorter::sort) sorts the digits of the scalars by bucket, and
//! [`Scratch::sum`] adds up the points. Neither waits for the device; [`Sums::read`] does.
//!
//! **Cost.** The entries are cut into as many parts as the device has threads for, or into as many as are worth a
//! thread. Each thread adds the entries of its part one after another, so the time is that of one part, of the
//! partial sums of a bucket, and of the rows and columns of buckets ([`Plan::cost`], in microseconds on an H200; only
//! the ratios matter).

#![allow(unsafe_code)]

use std::marker::PhantomData;
use std::sync::Arc;

use ark_bn254::{g1, g2};
use ark_ec::short_weierstrass::{Projective, SWCurveConfig};
use ark_ff::{AdditiveGroup, Field, PrimeField};
use rayon::prelude::*;
use zeroize::Zeroizing;

use super::super::BackendError;
use super::driver::{Argument, Driver, Launch, Stream};
use super::memory::{Arena, Buffer, padded_total};
use super::sort::{self, Sorted};
use crate::model::{Fq, Fq2, G1_BYTES, G2_BYTES, limbs, reduced};

/// Bits of all digits of a scalar together: those of (r − 1)/2, and one for the last carry.
const SCALAR_BITS: u32 = 254;
/// Bytes of a scalar in plain form.
pub(super) const SCALAR_BYTES: u64 = 32;
/// Fewest entries of a part: the partial sums that parts leave are work, too.
const MIN_PART: u32 = 8;
/// Threads of a block of `msm_accumulate` and `msm_join`, and of the kernels that sum over a block.
const PART_THREADS: u32 = 128;
const SUM_THREADS: u32 = 128;
/// Threads of a block that sums bundles.
const BUNDLE_THREADS: u32 = 256;
/// Number of such blocks that fit on a multiprocessor.
const BUNDLE_BLOCKS: u32 = 2;
/// Most and fewest additions of a worker in the first round of bundles: they share one inversion, and each takes memory
/// for a point and a half, for which a share of the device's memory (given as a divisor) is granted.
const MAX_ADDITIONS: u32 = 128;
const MIN_ADDITIONS: u32 = 1 << (MAX_ROUNDS - 1);
const ADDITIONS_SHARE: u64 = 64;
/// Share of a device's memory, as a divisor, that bundles and everything they need may take in one proof.
const BUNDLES_SHARE: u64 = 32;
/// Most rounds of bundles that are considered.
const MAX_ROUNDS: u32 = 4;
/// Most partial sums of a bucket that one thread adds up; more form a *span*. `FEW` in the kernels.
const MAX_PARTIALS: u32 = 16;
/// Constants that the kernels define as well, by their names there.
#[cfg(all(test, feature = "kernels-on-host"))]
pub(super) const CONSTANTS: [(&str, u32); 3] =
    [("FEW", MAX_PARTIALS), ("SUM_THREADS", SUM_THREADS), ("BUNDLE_THREADS", BUNDLE_THREADS)];
/// Bytes of a `Span` of the kernels, and of the counter of spans.
const SPAN_BYTES: u64 = 12;
const SPAN_COUNT_BYTES: u64 = 4;
/// Entries have 31 bits for the index of a multiple in the table.
const MAX_MULTIPLES: u64 = 1 << 31;

/// A group of points that the kernels support.
pub trait Group: Send + Sync + 'static {
    /// The curve's configuration in arkworks.
    type Config: SWCurveConfig<BaseField = Self::Coordinate>;
    /// A coordinate of a point.
    type Coordinate: Field;
    /// Bytes of an affine point.
    const BYTES: usize;
    /// Threads that compute one addition together.
    const LANES: u32;
    /// Blocks of 128 threads that fit on a multiprocessor, as limited by the registers of `accumulate`.
    const BLOCKS: u32;
    /// Whether bundles pay off: in G1, an addition in bundles was measured to be no faster than an addition to a sum.
    const BUNDLES: bool;
    /// Names of this group's kernels.
    const KERNELS: Kernels;

    /// Reads a coordinate from the bytes of its words in Montgomery form, each at most 2q.
    fn coordinate(bytes: &[u8]) -> Self::Coordinate;
}

/// Names of the kernels of a group.
pub struct Kernels {
    bundles: &'static str,
    accumulate: &'static str,
    accumulate_bundles: &'static str,
    join: &'static str,
    join_pieces: &'static str,
    join_spans: &'static str,
    lines: &'static str,
    bits: &'static str,
    table: &'static str,
}

/// The group G1.
pub struct InG1;
/// The group G2.
pub struct InG2;

fn coordinate(bytes: &[u8]) -> Fq {
    Fq::new_unchecked(reduced::<Fq>(limbs(bytes)))
}

impl Group for InG1 {
    type Config = g1::Config;
    type Coordinate = Fq;
    const BYTES: usize = G1_BYTES;
    const LANES: u32 = 1;
    const BLOCKS: u32 = 4;
    const BUNDLES: bool = false;
    const KERNELS: Kernels = Kernels {
        bundles: "msm_bundles_g1",
        accumulate: "msm_accumulate_g1",
        accumulate_bundles: "msm_accumulate_bundles_g1",
        join: "msm_join_g1",
        join_pieces: "msm_join_pieces_g1",
        join_spans: "msm_join_spans_g1",
        lines: "msm_lines_g1",
        bits: "msm_bits_g1",
        table: "msm_table_g1",
    };

    fn coordinate(bytes: &[u8]) -> Fq {
        coordinate(bytes)
    }
}

impl Group for InG2 {
    type Config = g2::Config;
    type Coordinate = Fq2;
    const BYTES: usize = G2_BYTES;
    const LANES: u32 = 2;
    const BLOCKS: u32 = 3;
    const BUNDLES: bool = true;
    const KERNELS: Kernels = Kernels {
        bundles: "msm_bundles_g2",
        accumulate: "msm_accumulate_g2",
        accumulate_bundles: "msm_accumulate_bundles_g2",
        join: "msm_join_g2",
        join_pieces: "msm_join_pieces_g2",
        join_spans: "msm_join_spans_g2",
        lines: "msm_lines_g2",
        bits: "msm_bits_g2",
        table: "msm_table_g2",
    };

    fn coordinate(bytes: &[u8]) -> Fq2 {
        let (c0, c1) = bytes.split_at(bytes.len() / 2);
        Fq2::new(coordinate(c0), coordinate(c1))
    }
}

/// Returns the bytes of a point in the coordinates in which kernels sum it.
const fn xyzz_bytes<G: Group>() -> u64 {
    2 * G::BYTES as u64
}

/// How scalars are split into signed digits, and which multiples of a base are in memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Plan {
    /// Bits of a digit.
    pub(super) window: u32,
    /// Digits of a scalar.
    pub(super) windows: u32,
    /// Windows that have buckets of their own: window j uses the buckets of group j mod `groups`.
    pub(super) groups: u32,
    /// Rounds of bundles: the entries of a bucket are first summed in bundles of 2^rounds.
    pub(super) rounds: u32,
}

impl Plan {
    /// Returns the cheapest plan for `n` bases in `G` with at most `multiples` multiples of each in memory.
    pub(super) fn new<G: Group>(driver: &dyn Driver, n: u64, multiples: u64) -> Self {
        let parts = parts::<G>(driver);
        let windows = (4..=22).map(|window| Self::of(window, n, multiples));
        let plans = windows.flat_map(|plan| {
            let most = if G::BUNDLES && sort::in_two_steps(plan.buckets()) { MAX_ROUNDS } else { 0 };
            (0..=most).map(move |rounds| Self { rounds, ..plan })
        });
        let costs = plans.filter_map(|plan| {
            let needs = Needs::of::<G>(driver, n, &plan);
            let fits = needs.bundles() <= driver.properties().memory / BUNDLES_SHARE;
            fits.then(|| (plan, plan.cost(n, parts, needs.additions)))
        });
        let least = costs.min_by(|a, b| a.1.total_cmp(&b.1)).map(|(plan, _)| plan);
        least.unwrap_or(Self { window: 8, windows: 32, groups: 32, rounds: 0 })
    }

    /// Returns the plan with this window size, without bundles.
    pub(super) fn of(window: u32, n: u64, multiples: u64) -> Self {
        let windows = SCALAR_BITS.div_ceil(window);
        let multiples = multiples.min((MAX_MULTIPLES - 1) / n.max(1)).clamp(1, u64::from(windows)) as u32;
        Self { window, windows, groups: windows.div_ceil(multiples), rounds: 0 }
    }

    /// Returns the estimated microseconds, from rounded measurements: an addition to a bucket takes 5.5 if few threads
    /// run and twice that on a full device, and one of partial sums 7; a full device sums the rows and columns of as
    /// many buckets as it has threads in 60. In some plans the highest digit has few bits, so that each of its buckets
    /// has the sums of many parts.
    ///
    /// Additions in bundles take 0.68 of the time, and each round of each pass 25 more, in which a block
    /// waits for an inversion.
    fn cost(&self, n: u64, parts: u32, additions: u32) -> f64 {
        let (buckets, parts) = (f64::from(self.buckets()), f64::from(parts));
        let bundle = f64::from(1 << self.rounds);
        let entries = (n * u64::from(self.windows)) as f64 + (bundle - 1.0) / 2.0 * buckets;
        let each = (entries / bundle / parts).max(f64::from(MIN_PART));
        let busy = (entries / bundle / each / parts).min(1.0);
        // In G2, the only group with bundles, there are 4/3 as many workers for them as parts.
        let passes = (entries / 2.0 / (parts * 1.33) / f64::from(additions)).ceil();
        let bundles = entries * (1.0 - 1.0 / bundle) / parts * 11.0 * 0.68 + 25.0 * f64::from(self.rounds) * passes;
        let highest = SCALAR_BITS - (self.windows - 1) * self.window;
        let crowd = n as f64 / 2f64.powi(highest as i32 - 1) / bundle / each;
        let spans = if crowd > f64::from(MAX_PARTIALS) { 80.0 } else { 0.0 };
        let lines = 60.0 * buckets / parts;
        bundles + each * 5.5 * (1.0 + busy) + 7.0 * (entries / bundle / buckets / each) + lines + spans
    }

    /// Returns the number of multiples of a base in memory.
    pub(super) fn multiples(&self) -> u32 {
        self.windows.div_ceil(self.groups)
    }

    /// Returns the number of buckets of all groups.
    pub(super) fn buckets(&self) -> u32 {
        self.groups << (self.window - 1)
    }

    /// Returns the bits of the index of a row and of the index of a column in the matrix of buckets.
    fn line_bits(&self) -> (u32, u32) {
        let columns = (self.window - 1) / 2;
        (self.window - 1 - columns, columns)
    }

    /// Returns the number of sums of a group that are left for the host.
    fn sums(&self) -> u32 {
        self.window
    }
}

/// The wires whose base is not infinity.
pub(super) struct Index {
    /// Numbers of these wires, one `u32` each.
    pub(super) wires: Buffer,
    /// Number of wires.
    pub(super) len: u32,
}

/// Returns the indices of the points of a section that are not infinity.
///
/// # Errors
/// `Shape` if a coordinate is not below q.
pub(super) fn present<G: Group>(section: &[u8]) -> Result<Vec<u32>, BackendError> {
    const CHUNK: usize = 1 << 12;
    let look = |(k, bytes): (usize, &[u8])| {
        let wrong = bytes.chunks_exact(32).filter(|coordinate| limbs(coordinate) >= Fq::MODULUS).count();
        if wrong > 0 {
            let what = "coordinates of the key that are not below q";
            return Err(BackendError::Shape { what, expected: 0, got: wrong as u64 });
        }
        let points = bytes.chunks_exact(G::BYTES).enumerate();
        let there = points.filter(|(_, raw)| raw.iter().any(|byte| *byte != 0));
        Ok(there.map(|(i, _)| (k * CHUNK + i) as u32).collect::<Vec<_>>())
    };
    let chunks: Vec<Vec<u32>> =
        section.par_chunks(CHUNK * G::BYTES).enumerate().map(look).collect::<Result<_, BackendError>>()?;
    Ok(chunks.concat())
}

impl Index {
    /// Creates the index of the wires `first` + i for each i in `points`.
    pub(super) fn new(
        driver: &Arc<dyn Driver>,
        stream: Stream,
        points: &[u32],
        first: u32,
    ) -> Result<Self, BackendError> {
        let bytes: Vec<u8> = points.iter().flat_map(|i| (i + first).to_le_bytes()).collect();
        Ok(Self { wires: Buffer::with(driver, stream, &bytes)?, len: points.len() as u32 })
    }
}

/// The bases of an MSM and their multiples, on a device.
pub(super) struct Bases<G> {
    table: Buffer,
    len: u32,
    /// The plan by which the bases are used.
    pub(super) plan: Plan,
    group: PhantomData<G>,
}

impl<G: Group> Bases<G> {
    /// Returns the bytes of `n` bases under this plan.
    pub(super) fn bytes(n: u64, plan: &Plan) -> u64 {
        n * u64::from(plan.multiples()) * G::BYTES as u64
    }

    /// Returns the bytes of these bases.
    pub(super) fn size(&self) -> u64 {
        self.table.bytes()
    }

    /// Uploads the points of `section` that `index` names, and computes their multiples. The first point of the section
    /// is that of wire `first`.
    pub(super) fn new(
        driver: &Arc<dyn Driver>,
        stream: Stream,
        section: &[u8],
        index: &Index,
        first: u32,
        plan: Plan,
    ) -> Result<Self, BackendError> {
        let table = Buffer::new(driver, Self::bytes(u64::from(index.len), &plan))?;
        if index.len > 0 {
            let points = Buffer::with(driver, stream, section)?;
            let arguments = [
                points.argument(),
                index.wires.argument(),
                Argument::U32(first),
                Argument::U32(index.len),
                Argument::U32(plan.window * plan.groups),
                Argument::U32(plan.multiples()),
                table.argument(),
            ];
            let grid = (index.len.div_ceil(PART_THREADS / G::LANES), 1);
            let launch =
                Launch { kernel: G::KERNELS.table, grid, block: PART_THREADS, shared: 0, arguments: &arguments };
            // SAFETY: the index has `len` wires, each with a point in the section, and the table has space for
            // `multiples` times that many points.
            unsafe { driver.launch(stream, launch)? };
            driver.synchronize(stream)?;
        }
        Ok(Self { table, len: index.len, plan, group: PhantomData })
    }
}

/// Memory for summing the points of one MSM at a time.
pub(super) struct Scratch {
    driver: Arc<dyn Driver>,
    buckets: Buffer,
    partials: Buffer,
    bundles: Buffer,
    bundled_points: Buffer,
    bundled_products: Buffer,
    span_count: Buffer,
    spans: Buffer,
    lines: Buffer,
    needs: Needs,
}

/// Memory requirements of an MSM.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Needs {
    sort: sort::Needs,
    bucket_bytes: u64,
    /// Blocks that sum parts, and the bytes of two partial sums for each part.
    blocks: u32,
    partial_bytes: u64,
    /// Additions of a worker in one pass over the bundles.
    additions: u32,
    /// Bytes of the sums of bundles, and of one point for each addition of each worker; an addition
    /// needs half a point more.
    bundle_bytes: u64,
    addition_bytes: u64,
    line_bytes: u64,
}

/// Returns the number of parts into which many entries are cut on this device.
pub(super) fn parts<G: Group>(driver: &dyn Driver) -> u32 {
    driver.properties().multiprocessors * G::BLOCKS * PART_THREADS / G::LANES
}

impl Needs {
    /// Returns the requirements of `n` scalars with bases of this plan.
    pub(super) fn of<G: Group>(driver: &dyn Driver, n: u64, plan: &Plan) -> Self {
        let (rows, columns) = plan.line_bits();
        let sort = sort::Needs::of(n, plan);
        let workers = driver.properties().multiprocessors * BUNDLE_BLOCKS * BUNDLE_THREADS / G::LANES;
        let bundled = |bytes: u64| if plan.rounds > 0 { bytes * G::BYTES as u64 } else { 0 };
        let granted = driver.properties().memory / ADDITIONS_SHARE / (u64::from(workers) * G::BYTES as u64 * 3 / 2);
        let wanted = (sort.bundled() / 2).div_ceil(workers.into()).min(granted);
        let additions = wanted.clamp(MIN_ADDITIONS.into(), MAX_ADDITIONS.into()) as u32;
        // Any more parts would have no entries.
        let parts_per_block = u64::from(PART_THREADS / G::LANES);
        let filled = (sort.bundled() >> plan.rounds).div_ceil(MIN_PART.into()).div_ceil(parts_per_block);
        let blocks = filled.clamp(1, u64::from(parts::<G>(driver)) / parts_per_block);
        Self {
            sort,
            blocks: blocks as u32,
            bundle_bytes: bundled(sort.bundled() >> plan.rounds),
            additions,
            addition_bytes: bundled(u64::from(workers) * u64::from(additions)),
            bucket_bytes: u64::from(plan.buckets()) * xyzz_bytes::<G>(),
            partial_bytes: 2 * blocks * parts_per_block * xyzz_bytes::<G>(),
            line_bytes: u64::from(plan.groups) * ((1 << rows) + (1 << columns)) * xyzz_bytes::<G>(),
        }
    }

    /// Returns requirements that cover both.
    pub(super) fn or(self, other: Self) -> Self {
        Self {
            sort: self.sort.or(other.sort),
            bucket_bytes: self.bucket_bytes.max(other.bucket_bytes),
            blocks: self.blocks.max(other.blocks),
            partial_bytes: self.partial_bytes.max(other.partial_bytes),
            additions: self.additions.max(other.additions),
            bundle_bytes: self.bundle_bytes.max(other.bundle_bytes),
            addition_bytes: self.addition_bytes.max(other.addition_bytes),
            line_bytes: self.line_bytes.max(other.line_bytes),
        }
    }

    /// Returns the maximum number of spans: each has [`MAX_PARTIALS`] parts to itself but for the first and the last.
    fn spans(&self) -> u64 {
        self.partial_bytes / (4 * 64 * u64::from(MAX_PARTIALS)) + 1
    }

    /// Returns the requirements of sorting.
    pub(super) fn sorter(&self) -> sort::Needs {
        self.sort
    }

    /// Returns the same requirements without those of sorting.
    pub(super) fn without_sorter(self) -> Self {
        Self { sort: sort::Needs::default(), ..self }
    }

    /// Returns the bytes of a [`Scratch`] for these requirements.
    pub(super) fn bytes(&self) -> u64 {
        padded_total(&self.sizes())
    }

    /// Returns the sizes of its buffers, in the order of the fields.
    fn sizes(&self) -> [u64; 8] {
        [
            self.bucket_bytes,
            self.partial_bytes,
            self.bundle_bytes,
            self.addition_bytes,
            self.addition_bytes / 2,
            SPAN_COUNT_BYTES,
            SPAN_BYTES * self.spans(),
            self.line_bytes,
        ]
    }

    /// Returns the bytes of a [`Scratch`] and of a sorter for these requirements.
    pub(super) fn with_sorter(&self) -> u64 {
        self.bytes() + self.sort.bytes()
    }

    /// Returns the bytes that are for bundles.
    fn bundles(&self) -> u64 {
        self.bundle_bytes + self.addition_bytes * 3 / 2
    }

    /// Returns whether a [`Scratch`] for these requirements is large enough for `other`, too.
    fn covers(&self, other: &Self) -> bool {
        let sort = self.sort;
        self.or(Self { sort, ..*other }) == *self
    }
}

impl Scratch {
    /// Allocates memory for MSMs that need no more than `needs`.
    pub(super) fn new(driver: &Arc<dyn Driver>, needs: Needs) -> Result<Self, BackendError> {
        Self::within(driver, &mut Arena::new(driver, needs.bytes())?, needs)
    }

    /// Like [`Scratch::new`], but suballocated from an arena. The content reveals information about the scalars.
    pub(super) fn within(driver: &Arc<dyn Driver>, arena: &mut Arena, needs: Needs) -> Result<Self, BackendError> {
        let [buckets, partials, bundles, bundled_points, bundled_products, span_count, spans, lines] =
            arena.allocate(needs.sizes())?;
        Ok(Self {
            driver: driver.clone(),
            buckets,
            partials,
            bundles,
            bundled_points,
            bundled_products,
            span_count,
            spans,
            lines,
            needs,
        })
    }

    fn launch(
        &self,
        stream: Stream,
        kernel: &'static str,
        grid: (u32, u32),
        block: u32,
        shared: u64,
        arguments: &[Argument],
    ) -> Result<(), BackendError> {
        // SAFETY: the callers below pass the arguments that the kernels declare, and `sum` checks against `needs` that
        // the buffers are large enough.
        unsafe { self.driver.launch(stream, Launch { kernel, grid, block, shared: shared as u32, arguments }) }
    }

    fn check(&self, needs: &Needs) -> Result<(), BackendError> {
        if self.needs.covers(needs) {
            return Ok(());
        }
        let what = "bytes of memory for an MSM";
        Err(BackendError::TooSmall { what, needed: needs.bytes(), available: self.needs.bytes() })
    }

    /// Adds up the points that the digits select, and leaves the results in `sums`.
    ///
    /// # Errors
    /// `TooSmall` if this memory is; `Shape` if digits, bases and sums differ in their plan or number of points.
    pub(super) fn sum<G: Group>(
        &self,
        stream: Stream,
        bases: &Bases<G>,
        digits: Sorted<'_>,
        sums: &Sums<G>,
    ) -> Result<(), BackendError> {
        let plan = &bases.plan;
        let driver = &*self.driver;
        let (cut_by, scalars) = digits.of();
        let apart = |what, expected, got| Err(BackendError::Shape { what, expected, got });
        if scalars != bases.len {
            return apart("scalars sorted for these bases", bases.len.into(), scalars.into());
        }
        if cut_by != plan {
            return apart("plan of these bases (bits of a digit)", plan.window.into(), cut_by.window.into());
        }
        let needs = Needs::of::<G>(driver, u64::from(bases.len), plan);
        self.check(&needs)?;
        if sums.plan != *plan {
            return apart("plan of the sums (bits of a digit)", plan.window.into(), sums.plan.window.into());
        }
        let count = Argument::U32(plan.buckets());
        let part_count = needs.blocks * (PART_THREADS / G::LANES);
        let blocks = (needs.blocks, 1);
        let least = Argument::U32(MIN_PART);
        let [offsets, buckets, partials] = [digits.offsets(), &self.buckets, &self.partials].map(Buffer::argument);
        let [span_count, spans, lines] = [&self.span_count, &self.spans, &self.lines].map(Buffer::argument);
        let shared = u64::from(SUM_THREADS / G::LANES) * xyzz_bytes::<G>();
        self.buckets.zero(stream, 0, u64::from(plan.buckets()) * xyzz_bytes::<G>())?;
        self.span_count.zero(stream, 0, SPAN_COUNT_BYTES)?;
        let k = &G::KERNELS;
        let (entries, table, rounds) =
            (digits.entries().argument(), bases.table.argument(), Argument::U32(plan.rounds));
        if plan.rounds > 0 {
            let [bundles, points, products] =
                [&self.bundles, &self.bundled_points, &self.bundled_products].map(Buffer::argument);
            let grid = (driver.properties().multiprocessors * BUNDLE_BLOCKS, 1);
            // Two coordinates per worker.
            let shared = u64::from(BUNDLE_THREADS / G::LANES) * G::BYTES as u64;
            let additions = Argument::U32(needs.additions);
            let arguments = [entries, offsets, count, table, rounds, additions, points, products, bundles];
            self.launch(stream, k.bundles, grid, BUNDLE_THREADS, shared, &arguments)?;
            let arguments = [bundles, offsets, rounds, count, least, buckets, partials];
            self.launch(stream, k.accumulate_bundles, blocks, PART_THREADS, 0, &arguments)?;
        } else {
            let arguments = [entries, offsets, count, table, least, buckets, partials];
            self.launch(stream, k.accumulate, blocks, PART_THREADS, 0, &arguments)?;
        }
        let parts = Argument::U32(part_count);
        let arguments = [offsets, rounds, count, parts, least, buckets, partials, span_count, spans];
        self.launch(stream, k.join, blocks, PART_THREADS, 0, &arguments)?;
        self.launch(stream, k.join_pieces, blocks, SUM_THREADS, shared, &[span_count, spans, partials])?;
        self.launch(stream, k.join_spans, blocks, SUM_THREADS, shared, &[span_count, spans, partials, buckets])?;
        let (row_bits, column_bits) = plan.line_bits();
        let grid = ((1 << row_bits) + (1 << column_bits), plan.groups);
        let bits = [Argument::U32(row_bits), Argument::U32(column_bits)];
        self.launch(stream, k.lines, grid, SUM_THREADS, shared, &[buckets, bits[0], bits[1], lines])?;
        let grid = (plan.sums(), plan.groups);
        self.launch(stream, k.bits, grid, SUM_THREADS, shared, &[lines, bits[0], bits[1], sums.argument()])
    }
}

/// What an MSM leaves for the host: a range of a buffer that several MSMs may share.
pub(super) struct Sums<G> {
    out: Arc<Buffer>,
    offset: u64,
    plan: Plan,
    group: PhantomData<G>,
}

impl<G: Group> Sums<G> {
    /// Returns the bytes of the sums for bases of this plan.
    pub(super) fn bytes(plan: &Plan) -> u64 {
        u64::from(plan.groups * plan.sums()) * xyzz_bytes::<G>()
    }

    /// Creates the sums at byte `offset` of `out`.
    ///
    /// # Errors
    /// `TooSmall` if `out` ends before the sums do.
    pub(super) fn new(out: &Arc<Buffer>, offset: u64, plan: Plan) -> Result<Self, BackendError> {
        let end = offset + Self::bytes(&plan);
        if end > out.bytes() {
            return Err(BackendError::TooSmall { what: "bytes for sums", needed: end, available: out.bytes() });
        }
        Ok(Self { out: out.clone(), offset, plan, group: PhantomData })
    }

    fn argument(&self) -> Argument {
        self.out.argument_at(self.offset)
    }

    /// Waits for the sums and combines them into the result.
    pub(super) fn read(&self, stream: Stream) -> Result<Projective<G::Config>, BackendError> {
        let mut bytes = Zeroizing::new(vec![0; self.out.bytes() as usize]);
        self.out.download(stream, 0, &mut bytes)?;
        Ok(self.point(&bytes))
    }

    /// Combines the sums into the result, given the content of the whole buffer.
    pub(super) fn point(&self, all: &[u8]) -> Projective<G::Config> {
        let (start, bytes) = (self.offset as usize, Self::bytes(&self.plan) as usize);
        let mine = all.get(start..start + bytes).unwrap_or_default();
        let points: Vec<_> = mine.chunks_exact(xyzz_bytes::<G>() as usize).map(point::<G>).collect();
        let mut sum = Projective::<G::Config>::ZERO;
        for group in points.chunks_exact(self.plan.sums() as usize).rev() {
            // The window's highest bit has no sum: a digit is at most 2^(window − 1), and the index of its
            // bucket is below that.
            let (total, bits) = match group.split_last() {
                Some((total, bits)) => (*total, bits),
                None => continue,
            };
            sum.double_in_place();
            let mut here = Projective::<G::Config>::ZERO;
            for bit in bits.iter().rev() {
                sum.double_in_place();
                here.double_in_place();
                here += bit;
            }
            sum += here + total;
        }
        sum
    }
}

/// Converts a point from the coordinates of the kernels, X, Y, ZZ, ZZZ for (X/ZZ, Y/ZZZ).
fn point<G: Group>(bytes: &[u8]) -> Projective<G::Config> {
    let mut coordinates = bytes.chunks_exact(bytes.len() / 4).map(G::coordinate);
    let mut next = || coordinates.next().unwrap_or(G::Coordinate::ZERO);
    let (x, y, zz, zzz) = (next(), next(), next(), next());
    // With Z = ZZ²: X·ZZZ²/Z² = X/ZZ and Y·ZZZ³/Z³ = Y/ZZZ, because ZZ³ = ZZZ².
    let square = zzz.square();
    Projective::new_unchecked(x * square, y * square * zzz, zz.square())
}

#[cfg(all(test, feature = "kernels-on-host"))]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::super::driver::host::{HostDriver, Order};
    use super::super::sort::Sorter;
    use super::*;

    #[test]
    fn needs_are_what_is_allocated() {
        let host = Arc::new(HostDriver::new(Order::Ascending).with_suballocation());
        let driver: Arc<dyn Driver> = host.clone();
        for rounds in [0, 1, 4] {
            let plan = Plan { rounds, ..Plan::of(13, 1000, 64) };
            let needs = Needs::of::<InG1>(&*driver, 1000, &plan).or(Needs::of::<InG2>(&*driver, 1000, &plan));
            let both = (Scratch::new(&driver, needs).unwrap(), Sorter::new(&driver, needs.sorter()).unwrap());
            assert_eq!(host.used(), needs.with_sorter(), "{plan:?}");
            drop(both);
        }
    }

    #[test]
    fn bundles_where_memory_is_plenty() {
        let rounds = |gigabytes: u64, log: u32| {
            let driver = HostDriver::new(Order::Ascending).with_multiprocessors(128).with_memory(gigabytes << 30);
            let plan = Plan::new::<InG2>(&driver, 1 << log, 64);
            let needs = Needs::of::<InG2>(&driver, 1 << log, &plan);
            assert!(needs.bundles() <= (gigabytes << 30) / BUNDLES_SHARE, "{gigabytes} GB, 2^{log}, {plan:?}");
            assert_eq!(Plan::new::<InG1>(&driver, 1 << log, 64).rounds, 0);
            plan.rounds
        };
        assert_eq!(rounds(140, 12), 0);
        assert!(rounds(140, 20) > 1 && rounds(140, 22) > 1 && rounds(24, 20) > 1);
        assert_eq!(rounds(4, 22), 0);
        for log in [16, 18, 20, 21, 22, 23] {
            for gigabytes in [4, 8, 12, 24, 80] {
                rounds(gigabytes, log);
            }
        }
    }
}
