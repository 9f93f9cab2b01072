//! Digits of scalars sorted by bucket: the host side of `kernels/sort.cu`, which describes the method.
//!
//! **Cost**: scalars are read three times. Each entry (4 bytes) is written twice and read once; the low bits of its
//! bucket (2 bytes) are written once and read twice. Writes are runs of some 10 entries if all scalars are random. If
//! entries are summed in bundles, buckets have half a bundle more of them on average.

#![allow(unsafe_code)]

use std::sync::Arc;

use super::super::{BackendError, Bound};
use super::driver::{Argument, Driver, Launch, Stream};
use super::memory::{Arena, Buffer, padded_total};
use super::msm::{Index, Plan};

/// Threads of a block, as in `sort.cu`: `msm_bins`, `msm_starts`, `msm_offsets`; `msm_count` and `msm_place`.
const BIN_THREADS: u32 = 256;
const START_THREADS: u32 = 1024;
const OFFSET_THREADS: u32 = 256;
const CHUNK_THREADS: u32 = 512;
/// Entries of a chunk: eight per thread.
const CHUNK: u32 = 8 * CHUNK_THREADS;
/// Threads of a block of `msm_partition`: the most, the fewest, and the step between.
const MAX_PARTITION_THREADS: u32 = 384;
const MIN_PARTITION_THREADS: u32 = 64;
const WARP: u32 = 32;
/// Shared memory for which the blocks of `msm_partition` are sized, in bytes.
const SHARED: u32 = 48 << 10;
/// Shared memory for sums over a block, in bytes.
const SUMS: u32 = 4 * 32;
/// Blocks of `msm_bins` that run on a multiprocessor at a time.
const BIN_BLOCKS: u32 = 6;
/// Most buckets that are sorted in one step.
const MAX_ONE_STEP: u32 = 1 << 11;
/// Most low bits of a bucket's index.
const MAX_LOW_BITS: u32 = 12;

/// Returns whether entries get to this many buckets in two steps; only two steps can make whole bundles.
pub(super) fn in_two_steps(buckets: u32) -> bool {
    buckets > MAX_ONE_STEP
}

/// How buckets are combined into bins.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Bins {
    /// Number of low bits of a bucket's index in which the buckets of a bin differ.
    low_bits: u32,
    count: u32,
}

impl Bins {
    fn of(plan: &Plan) -> Self {
        let buckets = plan.buckets();
        if !in_two_steps(buckets) {
            return Self { low_bits: 0, count: buckets };
        }
        let bits = u32::BITS - (buckets - 1).leading_zeros();
        // A bin has buckets of one group only, so that all bins have the same number of them.
        let low_bits = (bits / 2).min(plan.window - 1).min(MAX_LOW_BITS);
        Self { low_bits, count: buckets >> low_bits }
    }

    /// Returns the threads of a block of `msm_partition`, and the bytes of its shared memory.
    fn partition(&self, plan: &Plan) -> (u32, u32) {
        let head = SUMS + 8 * self.count;
        let threads = SHARED.saturating_sub(head) / (6 * plan.windows) / WARP * WARP;
        let threads = threads.clamp(MIN_PARTITION_THREADS, MAX_PARTITION_THREADS);
        (threads, head + 6 * plan.windows * threads)
    }

    /// Returns the maximum number of chunks for this number of entries.
    fn chunks(&self, entries: u32) -> u32 {
        (entries / CHUNK + self.count).min(entries)
    }
}

/// Memory requirements of sorting.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Needs {
    entries: u64,
    /// Most entries in whole bundles, padding included.
    bundled: u64,
    buckets: u64,
    bins: u64,
}

impl Needs {
    /// Returns the requirements of `n` scalars under this plan.
    pub(super) fn of(n: u64, plan: &Plan) -> Self {
        let (entries, buckets, bins) =
            (n * u64::from(plan.windows), plan.buckets().into(), Bins::of(plan).count.into());
        // There are no more nonempty buckets than entries.
        let bundled = entries + ((1 << plan.rounds) - 1) * entries.min(buckets);
        Self { entries, bundled, buckets, bins }
    }

    /// Returns the maximum number of entries in whole bundles, padding included.
    pub(super) fn bundled(&self) -> u64 {
        self.bundled
    }

    /// Returns requirements that cover both.
    pub(super) fn or(self, other: Self) -> Self {
        Self {
            entries: self.entries.max(other.entries),
            bundled: self.bundled.max(other.bundled),
            buckets: self.buckets.max(other.buckets),
            bins: self.bins.max(other.bins),
        }
    }

    /// Returns the bytes of a [`Sorter`] for these requirements.
    pub(super) fn bytes(&self) -> u64 {
        padded_total(&self.sizes())
    }

    /// Returns the sizes of its buffers, in the order of the fields; all 0 if there is nothing to sort.
    fn sizes(&self) -> [u64; 8] {
        let Self { entries, bundled, buckets, bins } = *self;
        if buckets == 0 {
            return [0; 8];
        }
        [
            4 * (bins + buckets),
            4 * (bins + 1),
            4 * (bins + 1),
            4 * bins,
            4 * entries,
            2 * entries,
            4 * bundled,
            4 * (buckets + 1),
        ]
    }
}

/// Memory for sorting the digits of one vector of scalars at a time.
pub(super) struct Sorter {
    driver: Arc<dyn Driver>,
    /// For each bin, then each bucket: the number of its entries, later the position of its next one.
    counts: Buffer,
    starts: Buffer,
    chunks: Buffer,
    totals: Buffer,
    binned: Buffer,
    lows: Buffer,
    entries: Buffer,
    offsets: Buffer,
    needs: Needs,
}

/// The digits that were sorted last.
#[derive(Clone, Copy)]
pub(super) struct Sorted<'a> {
    sorter: &'a Sorter,
    plan: Plan,
    scalars: u32,
}

impl Sorted<'_> {
    /// Returns the plan by which the scalars were split, and the number of scalars.
    pub(super) fn of(&self) -> (&Plan, u32) {
        (&self.plan, self.scalars)
    }

    /// Returns the digits as indices of multiples; the highest bit says that the multiple is subtracted. All bits are 1
    /// in the last places of a bundle that its bucket has no entries for.
    pub(super) fn entries(&self) -> &Buffer {
        &self.sorter.entries
    }

    /// Returns where the entries of each bucket begin, followed by the total number of entries.
    pub(super) fn offsets(&self) -> &Buffer {
        &self.sorter.offsets
    }
}

impl Sorter {
    /// Allocates memory for sorting that needs no more than `needs`.
    pub(super) fn new(driver: &Arc<dyn Driver>, needs: Needs) -> Result<Self, BackendError> {
        Self::within(driver, &mut Arena::new(driver, needs.bytes())?, needs)
    }

    /// Like [`Sorter::new`], but suballocated from an arena. The content reveals information about the scalars.
    pub(super) fn within(driver: &Arc<dyn Driver>, arena: &mut Arena, needs: Needs) -> Result<Self, BackendError> {
        let [counts, starts, chunks, totals, binned, lows, entries, offsets] = arena.allocate(needs.sizes())?;
        let driver = driver.clone();
        Ok(Self { driver, counts, starts, chunks, totals, binned, lows, entries, offsets, needs })
    }

    /// Returns what `sort` left for these scalars and this plan.
    pub(super) fn sorted(&self, index: &Index, plan: &Plan) -> Sorted<'_> {
        Sorted { sorter: self, plan: *plan, scalars: index.len }
    }

    fn launch(
        &self,
        stream: Stream,
        kernel: &'static str,
        blocks: u32,
        block: u32,
        shared: u32,
        arguments: &[Argument],
    ) -> Result<(), BackendError> {
        // SAFETY: `sort` passes the arguments that the kernels declare, and has checked that the
        // buffers are large enough.
        unsafe { self.driver.launch(stream, Launch { kernel, grid: (blocks, 1), block, shared, arguments }) }
    }

    /// Sorts the digits of the scalars of the wires in `index`. Scalars are plain values below r.
    ///
    /// # Errors
    /// `TooSmall` if this memory is, or if there are more digits than kernels can count; `OutOfRange` if the plan has
    /// bundles of too few buckets.
    pub(super) fn sort(
        &self,
        stream: Stream,
        scalars: &Buffer,
        index: &Index,
        plan: &Plan,
    ) -> Result<Sorted<'_>, BackendError> {
        let needs = Needs::of(index.len.into(), plan);
        if self.needs.or(needs) != self.needs {
            let what = "bytes to sort digits";
            return Err(BackendError::TooSmall { what, needed: needs.bytes(), available: self.needs.bytes() });
        }
        let (Ok(entries), Ok(_)) = (u32::try_from(needs.entries), u32::try_from(needs.bundled)) else {
            let what = "32-bit positions of digits";
            return Err(BackendError::TooSmall { what, needed: needs.bundled, available: u32::MAX.into() });
        };
        let bins = Bins::of(plan);
        let two_steps = bins.low_bits > 0;
        if plan.rounds > 0 && !two_steps {
            let (what, got) = ("buckets whose entries are bundled", plan.buckets().into());
            return Err(BackendError::OutOfRange { what, bound: Bound::AtLeast(u64::from(MAX_ONE_STEP) + 1), got });
        }
        let keys = 1 << bins.low_bits;
        let counted = if two_steps { plan.buckets() } else { 0 };
        self.counts.zero(stream, 0, 4 * u64::from(bins.count + counted))?;

        let [of_bins, chunks, lows] = [&self.counts, &self.chunks, &self.lows].map(Buffer::argument);
        let of_buckets = self.counts.argument_at(4 * u64::from(bins.count));
        let [binned, sorted] = [&self.binned, &self.entries].map(Buffer::argument);
        let offsets = self.offsets.argument();
        // With one step, each bucket is a bin of its own.
        let (starts, first) = if two_steps { (self.starts.argument(), binned) } else { (offsets, sorted) };
        let [count, low_bits] = [bins.count, bins.low_bits].map(Argument::U32);

        let [n, c, windows, groups] = [index.len, plan.window, plan.windows, plan.groups].map(Argument::U32);
        let head = [scalars.argument(), index.wires.argument(), n, c, windows, groups, low_bits, count];
        if index.len > 0 {
            let most = self.driver.properties().multiprocessors * BIN_BLOCKS;
            let blocks = index.len.div_ceil(BIN_THREADS).min(most);
            let arguments = [&head[..], &[of_bins]].concat();
            self.launch(stream, "msm_bins", blocks, BIN_THREADS, 4 * bins.count, &arguments)?;
        }
        let arguments = [of_bins, count, Argument::U32(CHUNK), starts, chunks];
        self.launch(stream, "msm_starts", 1, START_THREADS, SUMS, &arguments)?;
        if index.len > 0 {
            let (threads, shared) = bins.partition(plan);
            let arguments = [&head[..], &[of_bins, first, lows]].concat();
            self.launch(stream, "msm_partition", index.len.div_ceil(threads), threads, shared, &arguments)?;
        }
        if !two_steps {
            return Ok(self.sorted(index, plan));
        }
        let blocks = bins.chunks(entries);
        if blocks > 0 {
            let arguments = [lows, starts, chunks, count, low_bits, of_buckets];
            self.launch(stream, "msm_count", blocks, CHUNK_THREADS, SUMS + 4 * keys, &arguments)?;
        }
        let (rounds, totals) = (Argument::U32(plan.rounds), self.totals.argument());
        let arguments = [of_buckets, low_bits, rounds, totals];
        self.launch(stream, "msm_totals", bins.count, OFFSET_THREADS, SUMS, &arguments)?;
        let arguments = [totals, count, low_bits, rounds, of_buckets, offsets, sorted];
        self.launch(stream, "msm_offsets", bins.count, OFFSET_THREADS, SUMS, &arguments)?;
        if blocks > 0 {
            let arguments = [binned, lows, starts, chunks, count, low_bits, of_buckets, sorted];
            let shared = SUMS + 8 * keys + 6 * CHUNK;
            self.launch(stream, "msm_place", blocks, CHUNK_THREADS, shared, &arguments)?;
        }
        Ok(self.sorted(index, plan))
    }
}

#[cfg(all(test, feature = "kernels-on-host"))]
#[allow(clippy::unwrap_used)]
mod tests {
    use ark_ff::{PrimeField, UniformRand};
    use ark_std::rand::{Rng, SeedableRng, rngs::StdRng};
    use num_bigint::BigInt;

    use super::super::driver::host::{HostDriver, Order};
    use super::*;
    use crate::model::Fr;

    const ORDERS: [Order; 3] = [Order::Ascending, Order::Descending, Order::Random(5)];
    const KINDS: usize = 9;

    fn scalars(kind: usize, n: usize, window: u32, rng: &mut StdRng) -> Vec<Fr> {
        let fixed = Fr::rand(rng);
        let half = Fr::from(Fr::MODULUS_MINUS_ONE_DIV_TWO);
        // All digits have the same magnitude, except for the highest.
        let step = Fr::from(1u64 << window);
        let repeated = (0..250 / window).fold(Fr::from(0u64), |sum, _| sum * step + Fr::from(3u64));
        (0..n)
            .map(|i| match kind {
                0 => Fr::rand(rng),
                1 => Fr::from(0u64),
                2 => Fr::from(1u64),
                3 => -Fr::from(1u64),
                4 => Fr::from(rng.gen_range(0..2u64)),
                5 => fixed,
                6 => [half, half + Fr::from(1u64), -Fr::from(1u64), half - Fr::from(1u64)][i % 4],
                7 => [repeated, -repeated][i % 2],
                _ if i % 5 < 3 => Fr::from((i % 2) as u64),
                _ => Fr::rand(rng),
            })
            .collect()
    }

    /// Returns the entries of each bucket, in ascending order: s or s − r, whichever is closer to 0, in digits each of
    /// which is the remainder modulo 2^c of magnitude 2^(c − 1) at most.
    fn expected(scalars: &[Fr], wires: &[u32], plan: &Plan) -> Vec<Vec<u32>> {
        let whole = |value: ark_ff::BigInteger256| BigInt::from(num_bigint::BigUint::from(value));
        let r = whole(Fr::MODULUS);
        let base = BigInt::from(1u64 << plan.window);
        let mut buckets = vec![Vec::new(); plan.buckets() as usize];
        for (i, wire) in wires.iter().enumerate() {
            let mut rest = whole(scalars[*wire as usize].into_bigint());
            let negative = &rest * 2 > r;
            if negative {
                rest = &r - rest;
            }
            for j in 0..plan.windows {
                let mut digit: i64 = (&rest % &base).try_into().unwrap();
                if digit > 1 << (plan.window - 1) {
                    digit -= 1 << plan.window;
                }
                rest = (rest - digit) >> plan.window;
                if digit == 0 {
                    continue;
                }
                let bucket = ((j % plan.groups) << (plan.window - 1)) + digit.unsigned_abs() as u32 - 1;
                let place = j / plan.groups * wires.len() as u32 + i as u32;
                let subtracted = (digit < 0) != negative;
                buckets[bucket as usize].push(place | (u32::from(subtracted) << 31));
            }
            assert_eq!(rest, BigInt::from(0));
        }
        buckets.iter_mut().for_each(|entries| entries.sort_unstable());
        buckets
    }

    fn words(buffer: &Buffer, stream: Stream, count: usize) -> Vec<u32> {
        let mut bytes = vec![0; 4 * count];
        buffer.download(stream, 0, &mut bytes).unwrap();
        bytes.chunks_exact(4).map(|word| u32::from_le_bytes(word.try_into().unwrap())).collect()
    }

    fn check(driver: &Arc<dyn Driver>, sorter: Option<&Sorter>, scalars: &[Fr], wires: &[u32], plan: &Plan) {
        let rounds = match plan.window {
            _ if !in_two_steps(plan.buckets()) => vec![0],
            window @ ..17 => vec![0, 1 + window % 3],
            // This many buckets take long to check.
            window => vec![window % 4],
        };
        for rounds in rounds {
            check_bundled(driver, sorter, scalars, wires, &Plan { rounds, ..*plan });
        }
    }

    fn check_bundled(driver: &Arc<dyn Driver>, sorter: Option<&Sorter>, scalars: &[Fr], wires: &[u32], plan: &Plan) {
        let stream = driver.create_stream().unwrap();
        let bytes: Vec<u8> = scalars.iter().flat_map(|s| s.into_bigint().0).flat_map(u64::to_le_bytes).collect();
        let buffer = Buffer::with(driver, stream, &bytes).unwrap();
        let index = Index::new(driver, stream, wires, 0).unwrap();
        let own = Sorter::new(driver, Needs::of(wires.len() as u64, plan)).unwrap();
        let sorter = sorter.unwrap_or(&own);
        let sorted = sorter.sort(stream, &buffer, &index, plan).unwrap();

        let expected = expected(scalars, wires, plan);
        let offsets = words(sorted.offsets(), stream, expected.len() + 1);
        let entries = words(sorted.entries(), stream, offsets[expected.len()] as usize);
        let mut begin = 0;
        for (bucket, expected) in expected.iter().enumerate() {
            assert_eq!(offsets[bucket], begin as u32, "bucket {bucket}, {} scalars, {plan:?}", wires.len());
            let (end, next) = (begin + expected.len(), begin + expected.len().next_multiple_of(1 << plan.rounds));
            let mut got = entries[begin..end].to_vec();
            got.sort_unstable();
            assert_eq!(got, *expected, "bucket {bucket}, {} scalars, {plan:?}", wires.len());
            assert!(entries[end..next].iter().all(|entry| *entry == u32::MAX), "bucket {bucket}, {plan:?}");
            begin = next;
        }
        assert_eq!(entries.len(), begin, "{} scalars, {plan:?}", wires.len());
        driver.destroy_stream(stream);
    }

    fn driver(order: Order) -> Arc<dyn Driver> {
        Arc::new(HostDriver::new(order))
    }

    fn all(n: usize) -> Vec<u32> {
        (0..n as u32).collect()
    }

    #[test]
    fn any_mix_of_scalars_at_awkward_sizes() {
        let mut rng = StdRng::seed_from_u64(1);
        for (i, n) in [0, 1, 31, 32, 33, 383, 384, 385, 1000].into_iter().enumerate() {
            let driver = driver(ORDERS[i % 3]);
            for kind in 0..KINDS {
                for (window, multiples) in [(8, 64), (13, 64), (13, 4)] {
                    let s = scalars(kind, n, window, &mut rng);
                    check(&driver, None, &s, &all(n), &Plan::of(window, n as u64, multiples));
                }
            }
        }
    }

    #[test]
    fn any_window_and_any_number_of_groups() {
        let mut rng = StdRng::seed_from_u64(2);
        for window in 4..=22 {
            let driver = driver(ORDERS[window as usize % 3]);
            // As many groups as windows only if that is not too many buckets for a test.
            let multiples: &[u64] = if window < 17 { &[1, 2, 7, 64] } else { &[7, 64] };
            for multiples in multiples {
                let s = scalars(8, 97, window, &mut rng);
                check(&driver, None, &s, &all(97), &Plan::of(window, 97, *multiples));
            }
        }
    }

    #[test]
    fn chunks_of_large_bins_in_every_order() {
        let mut rng = StdRng::seed_from_u64(3);
        let n = 3000;
        for order in ORDERS {
            let driver = driver(order);
            for (kind, window) in [(0, 9), (0, 13), (5, 13), (7, 13), (8, 13)] {
                check(&driver, None, &scalars(kind, n, window, &mut rng), &all(n), &Plan::of(window, n as u64, 64));
            }
        }
    }

    #[test]
    fn many_scalars() {
        let mut rng = StdRng::seed_from_u64(4);
        let n = 1 << 14;
        let driver = driver(Order::Random(9));
        for kind in [0, 7, 8] {
            check(&driver, None, &scalars(kind, n, 14, &mut rng), &all(n), &Plan::of(14, n as u64, 64));
        }
    }

    #[test]
    fn wires_that_are_left_out_and_memory_used_again() {
        let mut rng = StdRng::seed_from_u64(5);
        let driver = driver(Order::Random(2));
        let plans = [Plan::of(13, 500, 3), Plan::of(13, 500, 64), Plan::of(7, 500, 2), Plan::of(16, 500, 64)];
        let needs =
            plans.iter().fold(Needs::default(), |needs, plan| needs.or(Needs::of(500, &Plan { rounds: 3, ..*plan })));
        let sorter = Sorter::new(&driver, needs).unwrap();
        for n in [500, 77, 0, 320] {
            for plan in &plans {
                let wires: Vec<u32> = (0..n).map(|i| 2 * i + i % 2).collect();
                check(&driver, Some(&sorter), &scalars(8, 1000, plan.window, &mut rng), &wires, plan);
            }
        }
    }

    #[test]
    fn memory_that_is_too_small() {
        let driver = driver(Order::Ascending);
        let stream = driver.create_stream().unwrap();
        let scalars = Buffer::new(&driver, 32 * 11).unwrap();
        let index = Index::new(&driver, stream, &all(11), 0).unwrap();
        let plan = Plan::of(13, 11, 64);
        let sorter = Sorter::new(&driver, Needs::of(10, &plan)).unwrap();
        let bundled = Plan { window: 4, rounds: 1, ..plan };
        let error = sorter.sort(stream, &scalars, &Index::new(&driver, stream, &[], 0).unwrap(), &bundled).err();
        let (what, bound) = ("buckets whose entries are bundled", Bound::AtLeast(2049));
        assert_eq!(error, Some(BackendError::OutOfRange { what, bound, got: 8 }));
        let error = sorter.sort(stream, &scalars, &index, &plan).err();
        let [available, needed] = [10, 11].map(|n| Needs::of(n, &plan).bytes());
        assert_eq!(error, Some(BackendError::TooSmall { what: "bytes to sort digits", needed, available }));
    }

    #[test]
    fn needs_are_what_is_allocated_and_blocks_fit() {
        for window in 4..=22 {
            for multiples in 1..=64 {
                let plan = Plan::of(window, 1 << 20, multiples);
                let bins = Bins::of(&plan);
                assert_eq!(bins.count << bins.low_bits, plan.buckets(), "{plan:?}");
                let place = SUMS + (8 << bins.low_bits) + 6 * CHUNK;
                // The oldest GPUs allow a block 64 KiB.
                assert!(bins.partition(&plan).1.max(place) <= 64 << 10, "{plan:?}");
            }
        }
        let host = Arc::new(HostDriver::new(Order::Ascending).with_suballocation());
        let driver: Arc<dyn Driver> = host.clone();
        let needs = Needs::of(1000, &Plan::of(13, 1000, 64));
        let sorter = Sorter::new(&driver, needs).unwrap();
        assert_eq!(host.used(), needs.bytes());
        drop(sorter);
        assert_eq!(host.used(), 0);
    }
}
