//! Multi-scalar multiplication (MSM): Pippenger's buckets, summed by batch-affine additions in lanes.
//!
//! Everything is a sum of segments of points ([`sums`]), in three stages:
//!
//! 1. Bₖ, the sum of the points whose digit in a window is k, for each bucket k of each window;
//! 2. with k = k₁·2ˢ + k₀ for the buckets of a window, the row sums Σ Bₖ over k₀ and the column sums over k₁, so that
//!    Σ k·Bₖ = 2ˢ·Σ k₁·row(k₁) + Σ k₀·column(k₀);
//! 3. for each bit b of the scalars, of all windows, the sum of the rows or columns that have it in their weight.
//!
//! What remains are some 254 points (127 where scalars are halved) with weights 2ᵇ, which are added by Horner's rule.
//! Where there are multiples of the points for all windows ([`Multiples::Windows`]), all windows are one: buckets,
//! lines and bits are those of a single window, which may therefore be wider.
//!
//! Buckets are Pippenger's (N. Pippenger, *On the evaluation of powers and related problems*, 1976). Summing them by
//! batch-affine additions is from Bernstein et al., "Faster batch forgery identification" (2012), and, with one
//! inversion for many additions, from gnark-crypto and others; pairwise sums in rounds need no scheduling, because no
//! two additions of a round have a point in common.

mod curve;
mod multiples;
mod sort;
mod sums;
#[cfg(test)]
mod tests;

use ark_ec::short_weierstrass::{Affine, Projective};
use ark_ff::{AdditiveGroup, PrimeField, Zero};
use rayon::prelude::*;
use std::sync::Arc;

use super::super::{BackendError, Bound};
use super::digits::{INDEX_BITS, Multiples};
use super::lanes::{Isa, Kernel, Pair};
use crate::model::{Fq, StopToken, limbs};
pub(super) use curve::{Curve, InG1, InG2};
use sort::Segments;
pub(super) use sort::Sorted;
pub(super) use sums::Pool;
use sums::{Direct, GROUP, Points, Slots, Sums, sum};

/// Packed points of one section of a key, without those at infinity (up to two thirds of B in real keys).
///
/// Memory: 64 bytes for a point in G1 and 128 in G2, for each of its multiples; if there are points at infinity, 12
/// more for every 64 points of the section.
pub(super) struct Bases<I: Isa, C: Curve<I>> {
    isa: I,
    points: Points,
    places: Places,
    multiples: Multiples,
    curve: std::marker::PhantomData<C>,
}

/// The positions of the wires' points.
#[derive(Clone)]
struct Places {
    /// The wire of the section's first point.
    first: u32,
    /// Points in the section.
    count: u32,
    /// Points kept: those not at infinity.
    kept: u32,
    /// One for every 64 wires, from the first on. `None` if no point is at infinity.
    runs: Option<Arc<[Run]>>,
    /// Bits of an index that hold the wire's number; the others hold the number of the multiple.
    wire_bits: u32,
    /// Slots between consecutive multiples of a point.
    stride: u32,
    /// Whether every scalar has a point and none is at infinity, as in H.
    all: bool,
    /// Whether every index is a slot.
    direct: bool,
}

/// Which of 64 points are kept. Looked up for every entry, in random order; those of 2^18 wires fit a first-level
/// cache.
#[derive(Clone, Copy, Default)]
struct Run {
    /// The slot of the first point kept.
    slot: u32,
    /// The points kept, from the lowest bit on; in two halves, so that a run is 12 bytes long.
    kept: [u32; 2],
}

impl Slots for Places {
    fn direct(&self) -> bool {
        self.direct
    }

    #[inline(always)]
    fn slot(&self, entry: u32) -> (u32, bool) {
        let (wire, multiple) = (entry & ((1 << self.wire_bits) - 1), (entry >> self.wire_bits) * self.stride);
        let at = wire.wrapping_sub(self.first);
        let Some(runs) = &self.runs else { return (at.wrapping_add(multiple), at < self.count) };
        // Past the end nothing is kept.
        let run = runs.get(at as usize / 64).copied().unwrap_or_default();
        let kept = u64::from(run.kept[0]) | u64::from(run.kept[1]) << 32;
        // Branch-free, because which points are kept cannot be predicted.
        let before = (kept & ((1 << (at % 64)) - 1)).count_ones();
        (multiple + run.slot + before, kept >> (at % 64) & 1 == 1)
    }
}

/// Points per conversion task: whole runs.
const CHUNK: usize = 1 << 12;

impl<I: Isa, C: Curve<I>> Bases<I, C> {
    /// Converts a section of a key, whose first point belongs to wire `first`, for products with `scalars` scalars: if
    /// these will be halved, λ times each point is computed too.
    ///
    /// Fails on more than 2^30 wires, and on coordinates that are not below q, which field arithmetic relies on. Does
    /// not check that the points are on their curve and in the group of order r; sums of other points are wrong, and
    /// the proof does not verify.
    pub(super) fn new(isa: I, section: &[u8], first: usize, scalars: usize) -> Result<Self, BackendError> {
        let count = section.len() / C::BYTES;
        let section = &section[..count * C::BYTES];
        let wires = scalars.max(first + count);
        if wires > 1 << INDEX_BITS {
            let bound = Bound::AtMost(1 << INDEX_BITS);
            return Err(BackendError::OutOfRange { what: "wires of a key", bound, got: wires as u64 });
        }
        let look = |bytes: &[u8]| {
            let wrong = bytes.chunks_exact(32).filter(|coordinate| limbs(coordinate) >= Fq::MODULUS).count();
            if wrong > 0 {
                let what = "coordinates of the key that are not below q";
                return Err(BackendError::Shape { what, expected: 0, got: wrong as u64 });
            }
            Ok(bytes.chunks_exact(C::BYTES).filter(|raw| !at_infinity(raw)).count())
        };
        let kept: Vec<usize> = section.par_chunks(CHUNK * C::BYTES).map(look).collect::<Result<_, _>>()?;
        let total: usize = kept.iter().sum();
        let multiples = Multiples::at_load(scalars);
        let mut points = Points::infinities::<I, C>(multiples.per_point() * total);
        let mut runs = (total < count).then(|| vec![Run::default(); count.div_ceil(64)]);

        // Each task owns a piece of the points and of the runs.
        let [mut x, mut y] = points.halves.each_mut().map(Vec::as_mut_slice);
        let mut runs_left = runs.as_deref_mut().unwrap_or_default();
        let mut tasks = Vec::with_capacity(2 * kept.len());
        for image in [false, true].into_iter().take(multiples.per_point()) {
            let mut from = 0;
            for (raw, kept) in section.chunks(CHUNK * C::BYTES).zip(&kept) {
                let to = [&mut x, &mut y].map(|half| half.split_off_mut(..*kept.min(&half.len())).unwrap_or_default());
                // None are left for the images: the tasks of the points themselves have them all.
                let runs = runs_left.split_off_mut(..(CHUNK / 64).min(runs_left.len())).unwrap_or_default();
                tasks.push(Convert::<C> { raw, to, runs, from, image, curve: std::marker::PhantomData });
                from += kept;
            }
        }
        tasks.into_par_iter().for_each(|task| isa.enter(task));
        let places = Places {
            first: first as u32,
            count: count as u32,
            kept: total as u32,
            runs: runs.map(Arc::from),
            wire_bits: multiples.wire_bits(),
            stride: total as u32,
            all: first == 0 && total >= scalars,
            direct: first == 0 && total >= scalars && multiples == Multiples::None,
        };
        Ok(Self { isa, points, places, multiples, curve: std::marker::PhantomData })
    }

    /// Computes Σ scalar(wireᵢ)·pointᵢ on the threads of the caller's pool. A stopped token ends it early with a
    /// meaningless sum: the caller must check the token.
    ///
    /// Memory: the buckets of the windows that are summed at a time (64 or 128 bytes for each of the 2^(window − 1)
    /// buckets), and the scratch memory of the pool, about a megabyte per thread.
    pub(super) fn msm(&self, scalars: &Sorted, pool: &Pool<I, C>, stop: &StopToken) -> Projective<C::Config> {
        if self.points.len() == 0 {
            return Projective::zero();
        }
        assert_eq!(scalars.multiples, self.multiples, "scalars are cut for what there is of the points");
        // As many entries as contain a full group of points, unless hardly any entry has a point. Where scalars are
        // halved there is little else in memory, and groups of half the size are hardly slower.
        let full = GROUP / C::HALVES / if scalars.multiples == Multiples::Image { 2 } else { 1 };
        let group = (full * self.places.count as usize).div_ceil(self.places.kept as usize).min(16 * full);
        let from = (&self.points, &self.places);
        let entries = scalars.buckets.range(0..scalars.buckets.len()).len();
        // Windows with few entries are summed together.
        let together = (2 * group * scalars.windows).div_ceil(entries.max(1)).clamp(1, scalars.windows);
        let (units, lines) = rayon::join(
            || sum(self.isa, from, (&scalars.units, 0..1), group, pool, stop),
            || {
                let tasks = (0..scalars.windows.div_ceil(together)).into_par_iter();
                let lines = tasks.map(|k| {
                    let windows = k * together..((k + 1) * together).min(scalars.windows);
                    self.lines(scalars, windows, (group, full), pool, stop)
                });
                lines.collect::<Vec<_>>()
            },
        );
        let grid = Grid::new(scalars.window);
        // The units come first; their weight is one.
        let ones = units.segments.len();
        let parts: Vec<Sums> = std::iter::once(units).chain(lines).collect();
        let all = Sums::joined(&parts);
        let bits = Segments::sort(scalars.windows * scalars.window, |each| {
            for (at, segment) in all.segments.iter().enumerate() {
                if at < ones {
                    each(0, at as u32);
                } else {
                    grid.bits(*segment as usize, |bit| each(bit, at as u32));
                }
            }
        });
        let sums = sum(self.isa, (&all.points, &Direct), (&bits, 0..bits.len()), full, pool, stop);
        horner(&sums.segments, &sums.decode::<I, C>(self.isa))
    }

    /// Computes the row and column sums of some windows, by `group` entries or `full` points at a time.
    fn lines(
        &self,
        scalars: &Sorted,
        windows: std::ops::Range<usize>,
        (group, full): (usize, usize),
        pool: &Pool<I, C>,
        stop: &StopToken,
    ) -> Sums {
        let half = 1 << (scalars.window - 1);
        let which = windows.start * half..windows.end * half;
        let buckets = sum(self.isa, (&self.points, &self.places), (&scalars.buckets, which), group, pool, stop);
        let grid = Grid::new(scalars.window);
        let first = windows.start * grid.lines();
        let mut lines = {
            let sorted = Segments::sort(windows.len() * grid.lines(), |each| {
                for (at, bucket) in buckets.segments.iter().enumerate() {
                    let (window, k) = (*bucket as usize / half, *bucket as usize % half + 1);
                    grid.lines_of(k, |line| each(window * grid.lines() + line - first, at as u32));
                }
            });
            let from = (&buckets.points, &Direct);
            sum(self.isa, from, (&sorted, 0..sorted.len()), full, pool, stop)
        };
        lines.segments.iter_mut().for_each(|line| *line += first as u32);
        lines
    }
}

/// The buckets of a window, 1 to 2^(window − 1), as rows and columns.
#[derive(Clone, Copy)]
struct Grid {
    window: usize,
    /// Bits of a column's number; those above are the row's.
    low: usize,
}

impl Grid {
    fn new(window: usize) -> Self {
        Self { window, low: window / 2 }
    }

    /// Returns the number of rows and columns of a window, including those without weight.
    fn lines(self) -> usize {
        (1 << self.low) + (1 << (self.window - 1 - self.low)) + 1
    }

    /// Calls `each` with the line numbers of the column and the row of bucket k, but not with those of zero weight.
    fn lines_of(self, k: usize, mut each: impl FnMut(usize)) {
        let (column, row) = (k & ((1 << self.low) - 1), k >> self.low);
        if column > 0 {
            each(column);
        }
        if row > 0 {
            each((1 << self.low) + row);
        }
    }

    /// Calls `each` with the bits of the weight of a line, counted from the lowest of the scalar; lines are numbered
    /// through all windows.
    fn bits(self, line: usize, mut each: impl FnMut(usize)) {
        let (window, line) = (line / self.lines(), line % self.lines());
        let (weight, shift) = if line < 1 << self.low { (line, 0) } else { (line - (1 << self.low), self.low) };
        for bit in (0..self.window).filter(|bit| weight >> bit & 1 == 1) {
            each(window * self.window + shift + bit);
        }
    }
}

/// Computes Σ 2^bit·point, for bits in ascending order.
fn horner<P: ark_ec::short_weierstrass::SWCurveConfig>(bits: &[u32], points: &[Affine<P>]) -> Projective<P> {
    let mut sum = Projective::zero();
    let mut at = bits.last().copied().unwrap_or(0);
    for (bit, point) in bits.iter().zip(points).rev() {
        while at > *bit {
            sum.double_in_place();
            at -= 1;
        }
        sum += point;
    }
    for _ in 0..at {
        sum.double_in_place();
    }
    sum
}

/// Returns whether the bytes encode the point at infinity: all zeros.
fn at_infinity(raw: &[u8]) -> bool {
    raw.iter().all(|byte| *byte == 0)
}

/// Converts some points of a section.
struct Convert<'a, C> {
    raw: &'a [u8],
    /// Where those not at infinity go.
    to: [&'a mut [Pair]; 2],
    /// The runs to fill in, or empty if none are recorded.
    runs: &'a mut [Run],
    /// The slot of the first point.
    from: usize,
    /// Whether to multiply them by λ.
    image: bool,
    curve: std::marker::PhantomData<C>,
}

impl<I: Isa, C: Curve<I>> Kernel<I> for Convert<'_, C> {
    type Out = ();

    #[inline(always)]
    fn run(mut self, isa: I) {
        let mut points = [Affine::identity(); curve::MAX_LANES];
        let (mut waiting, mut stored) = (0, 0);
        for (i, raw) in self.raw.chunks_exact(C::BYTES).enumerate() {
            if at_infinity(raw) {
                continue;
            }
            if let Some(run) = self.runs.get_mut(i / 64) {
                if run.kept == [0; 2] {
                    run.slot = (self.from + stored + waiting) as u32;
                }
                run.kept[i / 32 % 2] |= 1 << (i % 32);
            }
            let point = C::read(raw);
            points[waiting] = if self.image { C::image(&point) } else { point };
            waiting += 1;
            if waiting == I::LANES {
                C::store(C::encode(isa, &points[..I::LANES]), &mut self.to, stored);
                (waiting, stored) = (0, stored + I::LANES);
            }
        }
        if waiting > 0 {
            let mut last = [const { Vec::new() }; 2];
            for half in &mut last[..C::HALVES] {
                *half = vec![Pair::default(); I::LANES];
            }
            let point = C::encode(isa, &points[..I::LANES]);
            C::store(point, &mut last.each_mut().map(Vec::as_mut_slice), 0);
            for (to, last) in self.to.iter_mut().zip(&last) {
                for (to, pair) in to.iter_mut().skip(stored).zip(last) {
                    *to = *pair;
                }
            }
        }
    }
}
