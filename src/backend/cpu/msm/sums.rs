//! Sums of many segments of affine points, by additions in pairs that share inversions.
//!
//! Neighbours within a segment are added, then their sums, and so on, until one point a segment is left. The additions
//! of a round are independent of each other: whatever the scalars are, no two of them meet. They share one inversion
//! lane by lane (Montgomery's trick), so that an addition takes 5 products and a square. A group of some thousand
//! points goes through all its rounds before the next one starts: its sums stay in the cache.
//!
//! Lists of which points are added, which tell digits of the witness, are overwritten when dropped. The sums of points
//! are not, as arkworks' are not: they are many times as much memory.
#![allow(unsafe_code)] // prefetching

use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use ark_ec::short_weierstrass::Affine;
use rayon::prelude::*;
use zeroize::Zeroizing;

use super::super::digits::MINUS;
use super::super::lanes::{Field, Isa, Kernel, Pair};
use super::curve::{Curve, MOST_LANES, all_lanes};
use super::sort::Segments;
use crate::model::StopToken;

/// Packed points, by halves (see [`Curve`]).
#[derive(Default)]
pub(super) struct Points {
    pub(super) halves: [Vec<Pair>; 2],
}

impl Points {
    /// So many points at infinity; memory is touched by all threads of the pool.
    pub(super) fn infinities<I: Isa, C: Curve<I>>(count: usize) -> Self {
        let mut points = Self::default();
        for half in &mut points.halves[..C::HALVES] {
            rayon::iter::repeat_n(Pair::default(), count).collect_into_vec(half);
        }
        points
    }

    /// Number of points.
    pub(super) fn len(&self) -> usize {
        self.halves[0].len()
    }

    /// To read from.
    pub(super) fn view(&self) -> [&[Pair]; 2] {
        self.halves.each_ref().map(Vec::as_slice)
    }

    /// Adds a copy of a point at the end.
    fn push(&mut self, from: &Self, at: usize) {
        for (half, from) in self.halves.iter_mut().zip(&from.halves) {
            half.extend(from.get(at));
        }
    }

    fn is_infinity(&self, at: usize) -> bool {
        self.halves.iter().all(|half| half.get(at).is_none_or(|pair| *pair == Pair::default()))
    }

    /// Grows to at least so many points.
    fn reserve<I: Isa, C: Curve<I>>(&mut self, count: usize) {
        for half in &mut self.halves[..C::HALVES] {
            if half.len() < count {
                half.resize(count, Pair::default());
            }
        }
    }
}

/// What segments sum to. A segment may be in several parts, and is in none where its sum is the point at infinity.
#[derive(Default)]
pub(super) struct Sums {
    /// The segment of each point, in ascending order.
    pub(super) segments: Zeroizing<Vec<u32>>,
    /// Its sum, or a part of it; none at infinity.
    pub(super) points: Points,
}

impl Sums {
    /// Those of all parts, one after another; of full length at once, for a vector that grows leaves copies behind.
    pub(super) fn joined(parts: &[Self]) -> Self {
        let count = parts.iter().map(|part| part.segments.len()).sum();
        let mut sums = Self { segments: Zeroizing::new(Vec::with_capacity(count)), points: Points::default() };
        for part in parts {
            sums.segments.extend_from_slice(&part.segments);
        }
        for (h, half) in sums.points.halves.iter_mut().enumerate() {
            half.reserve_exact(parts.iter().map(|part| part.points.halves[h].len()).sum());
            parts.iter().for_each(|part| half.extend_from_slice(&part.points.halves[h]));
        }
        sums
    }

    /// The points as arkworks has them.
    pub(super) fn decode<I: Isa, C: Curve<I>>(&self, isa: I) -> Vec<Affine<C::Config>> {
        isa.enter(Decode::<C> { points: &self.points, curve: std::marker::PhantomData })
    }
}

struct Decode<'a, C> {
    points: &'a Points,
    curve: std::marker::PhantomData<C>,
}

impl<I: Isa, C: Curve<I>> Kernel<I> for Decode<'_, C> {
    type Out = Vec<Affine<C::Config>>;

    #[inline(always)]
    fn run(self, isa: I) -> Self::Out {
        let mut out = vec![Affine::identity(); self.points.len().next_multiple_of(I::LANES)];
        for (k, out) in out.chunks_exact_mut(I::LANES).enumerate() {
            // Past the end, the last point again.
            let at: [u32; MOST_LANES] = std::array::from_fn(|i| (k * I::LANES + i).min(self.points.len() - 1) as u32);
            C::decode(C::gather(isa, self.points.view(), &at[..I::LANES]), out);
        }
        out.truncate(self.points.len());
        out
    }
}

/// Scratch memory that tasks lend each other: as many as run at a time.
///
/// One holds a packed point for each entry of a group, and half as many products: about 1 MB.
pub(super) struct Pool<I: Isa, C: Curve<I>>(Mutex<Vec<Scratch<I, C>>>);

impl<I: Isa, C: Curve<I>> Pool<I, C> {
    pub(super) fn new() -> Self {
        Self(Mutex::new(Vec::new()))
    }

    fn with<T>(&self, task: impl FnOnce(&mut Scratch<I, C>) -> T) -> T {
        let lent = self.0.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let mut scratch = lent.unwrap_or_else(Scratch::new);
        let out = task(&mut scratch);
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(scratch);
        out
    }
}

/// Entries of a group in G1; in G2, whose points are twice as large, half as many. Each round of a group takes an
/// inversion; much larger groups would leave the cache.
pub(super) const GROUP: usize = 1 << 13;

/// Where the points of entries lie.
pub(super) trait Slots: Sync {
    /// The index of the point, if there is one.
    fn slot(&self, index: u32) -> Option<u32>;
}

/// Entries are indices of points.
pub(super) struct Direct;

impl Slots for Direct {
    #[inline]
    fn slot(&self, index: u32) -> Option<u32> {
        Some(index)
    }
}

/// Sums of the segments in a range; entries that have no slot count for nothing. `group` is the number of entries that
/// a task takes. A stopped token ends it early, with sums missing.
pub(super) fn sum<I: Isa, C: Curve<I>>(
    isa: I,
    (points, slots): (&Points, &impl Slots),
    (segments, which): (&Segments, Range<usize>),
    group: usize,
    pool: &Pool<I, C>,
    stop: &StopToken,
) -> Sums {
    let range = segments.range(which.clone());
    // Groups of equal size.
    let groups = range.len().div_ceil(group);
    let size = range.len().div_ceil(groups.max(1));
    let task = |k: usize| {
        let mut sums = Sums::default();
        let from = range.start + k * size;
        if stop.stopped().is_some() {
            return sums;
        }
        pool.with(|scratch| {
            let range = from..(from + size).min(range.end);
            scratch.clear(range.len());
            sums.segments.reserve_exact(range.len().min(which.len()));
            segments.walk(range, |segment, entries| {
                let before = scratch.entries.len();
                let kept = entries.iter().filter_map(|e| Some(slots.slot(e & !MINUS)? | e & MINUS));
                scratch.entries.extend(kept);
                let kept = scratch.entries.len() - before;
                if kept > 0 {
                    scratch.lengths.push(kept as u32);
                    sums.segments.push(segment as u32);
                }
            });
            isa.enter(Rounds { from: points.view(), scratch });
            // Infinities are dropped, so that no sum has any among its terms.
            let mut at = 0;
            sums.segments.retain(|_| {
                at += 1;
                !scratch.arena.is_infinity(scratch.entries[at - 1] as usize)
            });
            for half in &mut sums.points.halves[..C::HALVES] {
                half.reserve_exact(sums.segments.len());
            }
            for at in scratch.entries.iter().map(|at| *at as usize) {
                if !scratch.arena.is_infinity(at) {
                    sums.points.push(&scratch.arena, at);
                }
            }
        });
        sums
    };
    let parts: Vec<Sums> = (0..groups).into_par_iter().map(task).collect();
    Sums::joined(&parts)
}

/// What a group needs in its rounds.
struct Scratch<I: Isa, C: Curve<I>> {
    /// The terms that are left, by segment: before the first round entries of the caller, then places in the arena.
    entries: Zeroizing<Vec<u32>>,
    /// How many terms each segment has; none has 0.
    lengths: Zeroizing<Vec<u32>>,
    /// The summands of a round's pairs, filled up to whole vectors.
    left: Zeroizing<Vec<u32>>,
    right: Zeroizing<Vec<u32>>,
    /// Entries of segments of odd length in the first round, filled up likewise.
    singles: Zeroizing<Vec<u32>>,
    /// The sums of all rounds, one after another.
    arena: Points,
    /// Products of the denominators before each vector of pairs.
    prefixes: Vec<C::Coordinate>,
}

impl<I: Isa, C: Curve<I>> Scratch<I, C> {
    fn new() -> Self {
        let list = || Zeroizing::new(Vec::with_capacity(2 * GROUP));
        Self {
            entries: list(),
            lengths: list(),
            left: list(),
            right: list(),
            singles: list(),
            arena: Points::default(),
            prefixes: Vec::new(),
        }
    }

    /// Empty, with room for so many entries: a list that grew would leave a copy behind.
    fn clear(&mut self, entries: usize) {
        self.entries.clear();
        if self.entries.capacity() < entries {
            self.entries = Zeroizing::new(Vec::with_capacity(entries));
        }
        self.lengths.clear();
        if self.lengths.capacity() < entries {
            self.lengths = Zeroizing::new(Vec::with_capacity(entries));
        }
        self.singles.clear();
    }

    /// Pairs neighbours up: their sums will be in the arena from `free` on. Returns where those end.
    ///
    /// A term without a partner stays as it is; but in the `first` round it is listed in `singles`, to be copied to the
    /// arena after the sums.
    fn pair_up(&mut self, free: usize, first: bool) -> usize {
        let pairs: usize = self.lengths.iter().map(|length| *length as usize / 2).sum();
        let end = free + pairs.next_multiple_of(I::LANES);
        let (mut read, mut write, mut place) = (0, 0, free as u32);
        self.left.clear();
        self.right.clear();
        for length in self.lengths.iter_mut() {
            let pairs = *length / 2;
            for _ in 0..pairs {
                self.left.push(self.entries[read]);
                self.right.push(self.entries[read + 1]);
                self.entries[write] = place;
                (read, write, place) = (read + 2, write + 1, place + 1);
            }
            if *length % 2 == 1 {
                let single = self.entries[read];
                self.entries[write] = if first { (end + self.singles.len()) as u32 } else { single };
                if first {
                    self.singles.push(single);
                }
                (read, write) = (read + 1, write + 1);
            }
            *length -= pairs;
        }
        self.entries.truncate(write);
        fill_up::<I>(&mut self.left);
        fill_up::<I>(&mut self.right);
        fill_up::<I>(&mut self.singles);
        end
    }
}

/// Repeats the last entry up to a whole vector.
fn fill_up<I: Isa>(list: &mut Vec<u32>) {
    if let Some(last) = list.last().copied() {
        list.resize(list.len().next_multiple_of(I::LANES), last);
    }
}

/// All rounds of a group. Afterwards there is one entry a segment: the place of its sum in the arena.
struct Rounds<'a, I: Isa, C: Curve<I>> {
    from: [&'a [Pair]; 2],
    scratch: &'a mut Scratch<I, C>,
}

impl<I: Isa, C: Curve<I>> Kernel<I> for Rounds<'_, I, C> {
    type Out = ();

    #[inline(always)]
    fn run(self, isa: I) {
        let s = self.scratch;
        // A term for each entry at most, and less than a vector more in each round and for the singles.
        let terms = s.entries.len();
        s.arena.reserve::<I, C>(terms + (terms.max(1).ilog2() as usize + 4) * I::LANES);
        let vectors = (terms / 2).div_ceil(I::LANES);
        if s.prefixes.len() < vectors {
            s.prefixes.resize(vectors, C::one(isa));
        }
        let mut exact = false;
        let mut free = s.pair_up(0, true);
        let mut to = s.arena.halves.each_mut().map(Vec::as_mut_slice);
        let pairs = Pairs { from: self.from, left: &s.left, right: &s.right, far: true };
        round::<I, C>(isa, pairs, &mut s.prefixes, &mut to, 0, &mut exact);
        for at in s.singles.chunks_exact(I::LANES) {
            let (at, minus) = places(at);
            let [x, y] = C::gather(isa, self.from, &at[..I::LANES]);
            C::store([x, y.negate_where(minus)], &mut to, free);
            free += I::LANES;
        }
        loop {
            let end = s.pair_up(free, false);
            if s.left.is_empty() {
                return;
            }
            let [(x, to_x), (y, to_y)] = s.arena.halves.each_mut().map(|half| {
                let middle = free.min(half.len());
                half.split_at_mut(middle)
            });
            let (from, mut to) = ([&*x, &*y], [to_x, to_y]);
            let pairs = Pairs { from, left: &s.left, right: &s.right, far: false };
            round::<I, C>(isa, pairs, &mut s.prefixes, &mut to, 0, &mut exact);
            free = end;
        }
    }
}

/// Summands of a round: whole vectors of entries.
#[derive(Clone, Copy)]
struct Pairs<'a> {
    from: [&'a [Pair]; 2],
    left: &'a [u32],
    right: &'a [u32],
    /// Whether the points are all over memory.
    far: bool,
}

impl<'a> Pairs<'a> {
    fn vectors<I: Isa>(self) -> impl DoubleEndedIterator<Item = (&'a [u32], &'a [u32])> + ExactSizeIterator {
        self.left.chunks_exact(I::LANES).zip(self.right.chunks_exact(I::LANES))
    }
}

/// The indices of a vector of entries, and the lanes to be negated.
#[inline(always)]
fn places(entries: &[u32]) -> ([u32; MOST_LANES], u32) {
    let (mut at, mut minus) = ([0; MOST_LANES], 0);
    for (lane, entry) in entries.iter().enumerate() {
        at[lane] = entry & !MINUS;
        minus |= (entry >> 31) << lane;
    }
    (at, minus)
}

/// Entries by which asking for points is ahead of computing with them.
const AHEAD: usize = 32;

/// Asks for the points of the vector of pairs that starts at `at`, if there is one: in the first round only, for later
/// ones find theirs in the cache.
#[inline(always)]
fn prefetch<I: Isa, C: Curve<I>>(pairs: Pairs<'_>, at: usize) {
    if !pairs.far {
        return;
    }
    #[cfg(target_arch = "x86_64")]
    for list in [pairs.left, pairs.right] {
        for entry in list.get(at..at + I::LANES).unwrap_or_default() {
            for half in &pairs.from[..C::HALVES] {
                use core::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
                let pair = half.as_ptr().wrapping_add((entry & !MINUS) as usize);
                // SAFETY: prefetching is an instruction of every x86-64 processor; it is a hint, which may name any
                // address.
                unsafe { _mm_prefetch::<_MM_HINT_T0>(pair.cast()) };
            }
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = at;
}

/// Adds the pairs of a round and writes the sums from `to[at]` on. Sets `exact` once a sum is the point at infinity:
/// from then on the sums of the group must be looked at one by one.
#[inline(always)]
fn round<I: Isa, C: Curve<I>>(
    isa: I,
    pairs: Pairs<'_>,
    prefixes: &mut [C::Coordinate],
    to: &mut [&mut [Pair]; 2],
    at: usize,
    exact: &mut bool,
) {
    if !*exact {
        let product = denominators::<I, C, false>(isa, pairs, prefixes);
        if product.zeros() & all_lanes::<I>() == 0 {
            add::<I, C, false>(isa, pairs, prefixes, product, to, at);
            return;
        }
    }
    // Somewhere equal or opposite points meet, or one is at infinity.
    let product = denominators::<I, C, true>(isa, pairs, prefixes);
    *exact |= add::<I, C, true>(isa, pairs, prefixes, product, to, at);
}

/// The product of all denominators, lane by lane, and the products before each vector.
#[inline(always)]
fn denominators<I: Isa, C: Curve<I>, const EXACT: bool>(
    isa: I,
    pairs: Pairs<'_>,
    prefixes: &mut [C::Coordinate],
) -> C::Coordinate {
    let mut product = C::one(isa);
    for (k, ((left, right), prefix)) in pairs.vectors::<I>().zip(prefixes).enumerate() {
        prefetch::<I, C>(pairs, k * I::LANES + AHEAD);
        *prefix = product;
        let ((l, l_minus), (r, r_minus)) = (places(left), places(right));
        if EXACT {
            let [x1, y1] = C::gather(isa, pairs.from, &l[..I::LANES]);
            let [x2, y2] = C::gather(isa, pairs.from, &r[..I::LANES]);
            let (y1, y2) = (y1.negate_where(l_minus), y2.negate_where(r_minus));
            product = C::Coordinate::mul(product, Exact::of::<I, C>(isa, [x1, y1], [x2, y2]).denominator);
        } else {
            let x1 = C::gather_x(isa, pairs.from, &l[..I::LANES]);
            let x2 = C::gather_x(isa, pairs.from, &r[..I::LANES]);
            product = C::Coordinate::mul(product, x2.diff(x1));
        }
    }
    product
}

/// Adds the pairs, from the last vector to the first, given the product of their denominators. Tells whether a sum is
/// the point at infinity.
#[inline(always)]
fn add<I: Isa, C: Curve<I>, const EXACT: bool>(
    isa: I,
    pairs: Pairs<'_>,
    prefixes: &[C::Coordinate],
    product: C::Coordinate,
    to: &mut [&mut [Pair]; 2],
    at: usize,
) -> bool {
    let mut infinities = false;
    let mut inverse = product.invert();
    for (k, (left, right)) in pairs.vectors::<I>().enumerate().rev() {
        if let Some(ahead) = (k * I::LANES).checked_sub(AHEAD) {
            prefetch::<I, C>(pairs, ahead);
        }
        let ((l, l_minus), (r, r_minus)) = (places(left), places(right));
        let [x1, y1] = C::gather(isa, pairs.from, &l[..I::LANES]);
        let [x2, y2] = C::gather(isa, pairs.from, &r[..I::LANES]);
        let (y1, y2) = (y1.negate_where(l_minus), y2.negate_where(r_minus));
        let reciprocal = C::Coordinate::mul(inverse, prefixes[k]);
        let at = at + k * I::LANES;
        if EXACT {
            let case = Exact::of::<I, C>(isa, [x1, y1], [x2, y2]);
            inverse = C::Coordinate::mul(inverse, case.denominator);
            let slope = C::Coordinate::mul(case.numerator, reciprocal);
            let [x3, y3] = third(slope, x1, y1, x2);
            let x3 = x3.select(x2, case.left_infinite).select(x1, case.right_infinite);
            let y3 = y3.select(y2, case.left_infinite).select(y1, case.right_infinite);
            C::store([x3, y3], to, at);
            let infinite = case.opposite | case.left_infinite & case.right_infinite;
            infinities |= infinite != 0;
            for lane in (0..I::LANES).filter(|lane| infinite >> lane & 1 == 1) {
                for half in &mut to[..C::HALVES] {
                    half[at + lane] = Pair::default();
                }
            }
        } else {
            inverse = C::Coordinate::mul(inverse, x2.diff(x1));
            let slope = C::Coordinate::mul(y2.diff(y1), reciprocal);
            C::store(third(slope, x1, y1, x2), to, at);
        }
    }
    infinities
}

/// The third point on a line, mirrored: the sum of the two that it was drawn through.
#[inline(always)]
fn third<F: Field>(slope: F, x1: F, y1: F, x2: F) -> [F; 2] {
    let x3 = F::square(slope).sub(x1).sub(x2);
    [x3, F::mul(slope, x1.diff(x3)).sub(y1)]
}

/// A vector of additions in which any points may meet.
struct Exact<F> {
    /// The slope is numerator / denominator, and no denominator is zero: it is one where there is no slope.
    numerator: F,
    denominator: F,
    /// Lanes where a summand is the point at infinity.
    left_infinite: u32,
    right_infinite: u32,
    /// Lanes where the summands are opposite, and not both at infinity.
    opposite: u32,
}

impl<F: Field> Exact<F> {
    #[inline(always)]
    fn of<I: Isa, C: Curve<I, Coordinate = F>>(isa: I, [x1, y1]: [F; 2], [x2, y2]: [F; 2]) -> Self {
        let (run, rise) = (x2.sub(x1), y2.sub(y1));
        let left_infinite = x1.zeros() & y1.zeros() & all_lanes::<I>();
        let right_infinite = x2.zeros() & y2.zeros() & all_lanes::<I>();
        let infinite = left_infinite | right_infinite;
        let upright = run.zeros() & !infinite & all_lanes::<I>();
        // No point of the curve has y = 0; where a key that is not on it has one, its double is at infinity.
        let equal = upright & rise.zeros() & !y1.zeros();
        let opposite = upright & !equal;
        let square = F::square(x1);
        // The curves have a = 0.
        let numerator = rise.select(square.double().add(square), equal);
        let denominator = run.select(y1.double(), equal).select(C::one(isa), infinite | opposite);
        Self { numerator, denominator, left_infinite, right_infinite, opposite }
    }
}
