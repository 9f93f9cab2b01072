//! Multi-scalar multiplication: Pippenger's buckets, summed by batched affine additions in lanes.
//!
//! Everything is a sum of segments of points ([`sums`]), three times over:
//!
//! 1. Bₖ, the sum of the points whose digit in a window is k, for each bucket k of each window;
//! 2. of a window's buckets, with k = k₁·2ˢ + k₀, the row sums Σ Bₖ over k₀ and the column sums over k₁, so that
//!    Σ k·Bₖ = 2ˢ·Σ k₁·row(k₁) + Σ k₀·column(k₀);
//! 3. for each bit b of the scalars, of all windows, the sum of the rows or columns that have it in their weight.
//!
//! What is left are some 254 points (127 where scalars are halved) with weights 2ᵇ, for Horner's rule. Where there are
//! multiples of the points for all windows ([`Multiples::Windows`]), all windows are one: buckets, lines and bits are those of
//! a single window, which may be wider for that. Buckets by batched
//! affine additions are those of Bernstein et al., "Faster batch forgery identification" (2012), and, with one inversion
//! for many additions, of gnark-crypto and others; sums of pairs in rounds need no scheduling, since no two additions of a
//! round can meet.

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

use super::super::BackendError;
use super::digits::{INDEX_BITS, Multiples};
use super::lanes::{Isa, Kernel, Pair};
use crate::model::{Fq, StopToken, limbs};
pub(super) use curve::{Curve, InG1, InG2};
use sort::Segments;
pub(super) use sort::Sorted;
pub(super) use sums::Pool;
use sums::{Direct, GROUP, Points, Slots, Sums, sum};

/// Points of one section of a key, packed; infinity is left out (up to two thirds of B in real keys).
///
/// Memory: 64 bytes a point in G1, 128 in G2, for each of the multiples there are of a point; where there are points at
/// infinity, 12 more for 64 of the section.
pub(super) struct Bases<I: Isa, C: Curve<I>> {
    isa: I,
    points: Points,
    places: Places,
    multiples: Multiples,
    curve: std::marker::PhantomData<C>,
}

/// Where the point of a wire lies.
#[derive(Clone)]
struct Places {
    /// The wire of the section's first point.
    first: u32,
    /// Points in the section.
    count: u32,
    /// Points that are kept: those not at infinity.
    kept: u32,
    /// By 64 wires, from the first on. `None` if no point is at infinity.
    runs: Option<Arc<[Run]>>,
    /// Bits of an index that are the wire's; the others are the number of the multiple.
    wire_bits: u32,
    /// Slots from a multiple to the next one of the same point.
    apart: u32,
    /// Whether every scalar has a point, none of them at infinity: so for H.
    all: bool,
    /// Whether every index is a slot.
    direct: bool,
}

/// Which of 64 points are kept. Looked up for every entry, in no order: those of 2^18 wires fit a first-level cache.
#[derive(Clone, Copy, Default)]
struct Run {
    /// The slot of the first that is kept.
    slot: u32,
    /// Those kept, from the lowest bit on, in halves: so that a run is 12 bytes long.
    kept: [u32; 2],
}

impl Slots for Places {
    fn direct(&self) -> bool {
        self.direct
    }

    #[inline(always)]
    fn slot(&self, entry: u32) -> (u32, bool) {
        let (wire, multiple) = (entry & ((1 << self.wire_bits) - 1), (entry >> self.wire_bits) * self.apart);
        let at = wire.wrapping_sub(self.first);
        let Some(runs) = &self.runs else { return (at.wrapping_add(multiple), at < self.count) };
        // Past the end nothing is kept.
        let run = runs.get(at as usize / 64).copied().unwrap_or_default();
        let kept = u64::from(run.kept[0]) | u64::from(run.kept[1]) << 32;
        // Without a branch: which points are kept cannot be predicted.
        let before = (kept & ((1 << (at % 64)) - 1)).count_ones();
        (multiple + run.slot + before, kept >> (at % 64) & 1 == 1)
    }
}

/// Points a task converts: whole runs.
const CHUNK: usize = 1 << 12;

impl<I: Isa, C: Curve<I>> Bases<I, C> {
    /// Converts a section of a key, whose first point belongs to wire `first`, for products with so many scalars: if they
    /// will be halved, λ times each point is made too.
    ///
    /// Fails on more than 2^30 wires, and on coordinates that are not below q: field arithmetic relies on it. Whether the
    /// points are on their curve, and in the group of order r, is not looked at; sums of others are wrong, and the proof
    /// does not verify.
    pub(super) fn new(isa: I, section: &[u8], first: usize, scalars: usize) -> Result<Self, BackendError> {
        let count = section.len() / C::BYTES;
        let section = &section[..count * C::BYTES];
        let wires = scalars.max(first + count);
        if wires > 1 << INDEX_BITS {
            let what = "wires that an index has room for, at most";
            return Err(BackendError::Shape { what, expected: 1 << INDEX_BITS, got: wires as u64 });
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
        let multiples = Multiples::few(scalars);
        let mut points = Points::infinities::<I, C>(multiples.of_each() * total);
        let mut runs = (total < count).then(|| vec![Run::default(); count.div_ceil(64)]);

        // Each task has its piece of the points and of the runs.
        let [mut x, mut y] = points.halves.each_mut().map(Vec::as_mut_slice);
        let mut runs_left = runs.as_deref_mut().unwrap_or_default();
        let mut tasks = Vec::with_capacity(2 * kept.len());
        for image in [false, true].into_iter().take(multiples.of_each()) {
            let mut from = 0;
            for (raw, kept) in section.chunks(CHUNK * C::BYTES).zip(&kept) {
                let to = [&mut x, &mut y].map(|half| half.split_off_mut(..*kept.min(&half.len())).unwrap_or_default());
                // By then none are left for images.
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
            apart: total as u32,
            all: first == 0 && total >= scalars,
            direct: first == 0 && total >= scalars && multiples == Multiples::None,
        };
        Ok(Self { isa, points, places, multiples, curve: std::marker::PhantomData })
    }

    /// Σ scalar(wireᵢ)·pointᵢ, on the threads of the caller's pool. A stopped token ends it early with a meaningless
    /// sum: the caller looks at the token.
    ///
    /// Memory: the buckets of as many windows as are summed at a time (64 or 128 bytes for each of 2^(window − 1)), and
    /// what the pool lends, about a megabyte a thread.
    pub(super) fn msm(&self, scalars: &Sorted, pool: &Pool<I, C>, stop: &StopToken) -> Projective<C::Config> {
        if self.points.len() == 0 {
            return Projective::zero();
        }
        assert_eq!(scalars.multiples, self.multiples, "scalars are cut for what there is of the points");
        // As many entries as leave a group's worth of points, unless hardly any leaves one. Where scalars are halved there
        // is little else in memory, and half as much is hardly slower.
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
        // First come the units, whose weight is one.
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

    /// The row and column sums of some windows, by so many entries and so many points at a time.
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

    /// Rows and columns of a window, with those that have no weight.
    fn lines(self) -> usize {
        (1 << self.low) + (1 << (self.window - 1 - self.low)) + 1
    }

    /// The column and the row of bucket k, as line numbers; none where the weight would be zero.
    fn lines_of(self, k: usize, mut each: impl FnMut(usize)) {
        let (column, row) = (k & ((1 << self.low) - 1), k >> self.low);
        if column > 0 {
            each(column);
        }
        if row > 0 {
            each((1 << self.low) + row);
        }
    }

    /// The bits of the weight of a line, counted from the lowest of the scalar, for a line numbered through all windows.
    fn bits(self, line: usize, mut each: impl FnMut(usize)) {
        let (window, line) = (line / self.lines(), line % self.lines());
        let (weight, shift) = if line < 1 << self.low { (line, 0) } else { (line - (1 << self.low), self.low) };
        for bit in (0..self.window).filter(|bit| weight >> bit & 1 == 1) {
            each(window * self.window + shift + bit);
        }
    }
}

/// Σ 2^bit·point, by bits in ascending order.
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

/// Whether the bytes of a point are those of the point at infinity: all zeros.
fn at_infinity(raw: &[u8]) -> bool {
    raw.iter().all(|byte| *byte == 0)
}

/// Converts some points of a section.
struct Convert<'a, C> {
    raw: &'a [u8],
    /// Room for those not at infinity.
    to: [&'a mut [Pair]; 2],
    /// Where they will lie, or empty if nobody asks.
    runs: &'a mut [Run],
    /// The slot of the first.
    from: usize,
    /// Whether to multiply them by λ.
    image: bool,
    curve: std::marker::PhantomData<C>,
}

impl<I: Isa, C: Curve<I>> Kernel<I> for Convert<'_, C> {
    type Out = ();

    #[inline(always)]
    fn run(mut self, isa: I) {
        let mut points = [Affine::identity(); curve::MOST_LANES];
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
