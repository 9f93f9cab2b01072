//! Sums of many segments of affine points, by pairwise additions that share inversions.
//!
//! Neighbours within a segment are added, then their sums, and so on, until one point per segment is left. The
//! additions of a round are independent: whatever the scalars are, no two of them have a point in common. They share
//! one inversion lane by lane (P. L. Montgomery, *Speeding the Pollard and elliptic curve methods of factorization*,
//! 1987), so that an addition takes 5 products and a square. A group of some thousand points goes through all its
//! rounds before the next one starts: its sums stay in the cache.
//!
//! Lists of which points are added, which reveal digits of the witness, are overwritten when dropped. The sums of
//! points are not, as arkworks' are not: they take many times as much memory.
#![allow(unsafe_code)] // prefetching

use std::ops::Range;
use std::sync::Mutex;

use ark_ec::short_weierstrass::Affine;
use rayon::prelude::*;
use zeroize::Zeroizing;

use super::super::digits::MINUS;
use super::super::lanes::{Field, Isa, Kernel, Pair};
use super::curve::{Curve, MAX_LANES, all_lanes};
use super::sort::Segments;
use crate::backend::pages;
use crate::model::{StopToken, locked};

/// Packed points, by halves (see [`Curve`]).
#[derive(Default)]
pub(super) struct Points {
    pub(super) halves: [Vec<Pair>; 2],
}

impl Points {
    /// Creates `count` points at infinity; the memory is touched by all threads of the pool.
    pub(super) fn infinities<I: Isa, C: Curve<I>>(count: usize) -> Self {
        let mut points = Self::default();
        for half in &mut points.halves[..C::HALVES] {
            *half = pages::vector(count);
            rayon::iter::repeat_n(Pair::default(), count).collect_into_vec(half);
        }
        points
    }

    /// Returns the number of points.
    pub(super) fn len(&self) -> usize {
        self.halves[0].len()
    }

    /// Returns the points as slices.
    pub(super) fn view(&self) -> [&[Pair]; 2] {
        self.halves.each_ref().map(Vec::as_slice)
    }

    fn is_infinity(&self, at: usize) -> bool {
        self.halves
            .iter()
            .all(|half| half.get(at).is_none_or(|pair| pair.0.as_flattened().iter().all(|limb| *limb == 0)))
    }

    /// Grows to at least `count` points, with unspecified contents: previous ones may be lost.
    fn ensure_len<I: Isa, C: Curve<I>>(&mut self, count: usize) {
        for half in &mut self.halves[..C::HALVES] {
            if half.len() < count {
                // Frees the old memory before allocating the new.
                *half = Vec::new();
                half.reserve_exact(count);
                half.resize(count, Pair::default());
            }
        }
    }
}

/// The sums of segments. A segment may be in several parts, and is in none if its sum is the point at infinity.
#[derive(Default)]
pub(super) struct Sums {
    /// The segment of each point, in ascending order.
    pub(super) segments: Zeroizing<Vec<u32>>,
    /// The segment's sum, or a part of it; none at infinity.
    pub(super) points: Points,
}

impl Sums {
    /// Concatenates the sums of all parts, allocating the full length at once: a vector that grows leaves copies.
    pub(super) fn joined(parts: &[Self]) -> Self {
        let count = parts.iter().map(|part| part.segments.len()).sum();
        let mut sums = Self { segments: Zeroizing::new(Vec::with_capacity(count)), points: Points::default() };
        for part in parts {
            sums.segments.extend_from_slice(&part.segments);
        }
        for (h, half) in sums.points.halves.iter_mut().enumerate() {
            *half = pages::vector(parts.iter().map(|part| part.points.halves[h].len()).sum());
            parts.iter().for_each(|part| half.extend_from_slice(&part.points.halves[h]));
        }
        sums
    }

    /// Returns the points in arkworks' form.
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
            // Past the end, the last point is repeated.
            let at: [u32; MAX_LANES] = std::array::from_fn(|i| (k * I::LANES + i).min(self.points.len() - 1) as u32);
            C::decode(C::gather(isa, self.points.view(), &at[..I::LANES]), out);
        }
        out.truncate(self.points.len());
        out
    }
}

/// A pool of scratch memory, one for each task that runs at the same time.
///
/// Each holds a packed point for each entry of a group, half as many products, and lists: about a megabyte, and more
/// where most of a section's points are at infinity, because groups then have more entries.
pub(in crate::backend::cpu) struct Pool<I: Isa, C: Curve<I>>(Mutex<Vec<Scratch<I, C>>>);

impl<I: Isa, C: Curve<I>> Pool<I, C> {
    pub(in crate::backend::cpu) fn new() -> Self {
        Self(Mutex::new(Vec::new()))
    }

    fn with<T>(&self, task: impl FnOnce(&mut Scratch<I, C>) -> T) -> T {
        let lent = locked(&self.0).pop();
        let mut scratch = lent.unwrap_or_else(Scratch::new);
        let out = task(&mut scratch);
        locked(&self.0).push(scratch);
        out
    }
}

/// Entries of a group in G1. In G2, whose points are twice as large, it is half as many, and half of that where scalars
/// are halved. Each round of a group takes an inversion; a group's points and sums with the next group's points, 0.9
/// MB, should fit a second-level cache of 1 MB.
pub(super) const GROUP: usize = 1 << 12;

/// The positions of the points of entries.
pub(super) trait Slots: Sync {
    /// Returns where the point of an entry lies, and whether there is one: if not, the position is meaningless. The
    /// entry is passed without [`MINUS`]. Implementations must be `#[inline(always)]`.
    fn slot(&self, entry: u32) -> (u32, bool);
    /// Returns whether every entry is the position of its point.
    fn direct(&self) -> bool;
}

/// Entries that are indices of points.
pub(super) struct Direct;

impl Slots for Direct {
    #[inline(always)]
    fn slot(&self, entry: u32) -> (u32, bool) {
        (entry, true)
    }
    fn direct(&self) -> bool {
        true
    }
}

/// Computes the sums of the segments in a range; entries that have no slot are skipped. `group` is the number of
/// entries of a group. A stopped token ends it early, with sums missing.
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
    // A task takes consecutive groups, if there are many, and prefetches the points of the next one in each.
    let run = (groups / (4 * rayon::current_num_threads())).clamp(1, MAX_GROUPS_PER_TASK);
    let task = |first: usize| {
        let last = (first + run).min(groups);
        let terms = |k: usize, to: &mut Terms| {
            let from = range.start + k * size;
            to.list(isa, segments, from..(from + size).min(range.end), slots);
        };
        pool.with(|scratch| {
            let mut sums = Vec::with_capacity(last - first);
            terms(first, &mut scratch.next);
            for k in first..last {
                if stop.stopped().is_some() {
                    break;
                }
                std::mem::swap(&mut scratch.terms, &mut scratch.next);
                if k + 1 < last {
                    terms(k + 1, &mut scratch.next);
                } else {
                    scratch.next.entries.clear();
                }
                isa.enter(Rounds { from: points.view(), scratch });
                sums.push(scratch.sums());
            }
            sums
        })
    };
    let parts: Vec<Vec<Sums>> = (0..groups).into_par_iter().step_by(run).map(task).collect();
    Sums::joined(&parts.into_iter().flatten().collect::<Vec<_>>())
}

/// Maximum number of groups of a task: enough to prefetch most of them, few enough that threads finish together.
const MAX_GROUPS_PER_TASK: usize = 8;

/// The terms of a group, segment by segment.
#[derive(Default)]
struct Terms {
    /// Indices of points, with [`MINUS`] set where they are subtracted.
    entries: Zeroizing<Vec<u32>>,
    /// The number of terms of each segment; none has 0.
    lengths: Zeroizing<Vec<u32>>,
    /// The numbers of these segments.
    segments: Zeroizing<Vec<u32>>,
}

impl Terms {
    /// Lists the terms of a range of entries.
    fn list<I: Isa>(&mut self, isa: I, segments: &Segments, range: Range<usize>, slots: &impl Slots) {
        for list in [&mut self.entries, &mut self.lengths, &mut self.segments] {
            clear_with_capacity(list, range.len() + SLACK);
        }
        if slots.direct() {
            self.entries.extend_from_slice(segments.entries(range.clone()));
            for (segment, entries) in segments.pieces(range) {
                self.lengths.push(entries.len() as u32);
                self.segments.push(segment as u32);
            }
        } else {
            isa.enter(Listing { terms: self, segments, range, slots });
        }
    }
}

/// [`Terms::list`] where some entries have no slot or a different position: compiled for the instruction set, because
/// it counts bits.
struct Listing<'a, S> {
    terms: &'a mut Terms,
    segments: &'a Segments,
    range: Range<usize>,
    slots: &'a S,
}

impl<I: Isa, S: Slots> Kernel<I> for Listing<'_, S> {
    type Out = ();

    #[inline(always)]
    fn run(self, _: I) {
        let Self { terms, segments, range, slots } = self;
        // Branch-free, because which entries have a slot cannot be predicted: those without one are overwritten.
        terms.entries.resize(range.len(), 0);
        let to = terms.entries.as_mut_slice();
        let mut count = 0;
        for (segment, entries) in segments.pieces(range) {
            let before = count;
            for entry in entries {
                let (slot, there) = slots.slot(entry & !MINUS);
                to[count] = slot | entry & MINUS;
                count += usize::from(there);
            }
            if count > before {
                terms.lengths.push((count - before) as u32);
                terms.segments.push(segment as u32);
            }
        }
        terms.entries.truncate(count);
    }
}

/// Scratch memory for the rounds of a group.
struct Scratch<I: Isa, C: Curve<I>> {
    /// The remaining terms: before the first round those listed, then positions in the arena.
    terms: Terms,
    /// The terms of the next group, if it is known.
    next: Terms,
    /// The terms remaining after a round.
    after: Zeroizing<Vec<u32>>,
    /// The left summands of a round's pairs, filled up to whole vectors.
    left: Zeroizing<Vec<u32>>,
    /// The right summands, likewise.
    right: Zeroizing<Vec<u32>>,
    /// The unpaired entries of segments of odd length in the first round, filled up likewise.
    singles: Zeroizing<Vec<u32>>,
    /// The sums of all rounds, one after another.
    arena: Points,
    /// The product of the denominators before each vector of pairs.
    prefixes: Vec<C::Coordinate>,
}

/// Pairs of a segment that are listed at a time.
const STEP: usize = 4;
/// Spare capacity at the end of a list, for excess pairs that are written and then ignored.
const SLACK: usize = 2 * STEP;

/// Clears a list and ensures a capacity of at least `capacity`: a list that grew would leave a copy behind. Not for as
/// many as any group may have, because the whole capacity is overwritten in the end, and small proofs need little.
fn clear_with_capacity(list: &mut Zeroizing<Vec<u32>>, capacity: usize) {
    list.clear();
    if list.capacity() < capacity {
        *list = Zeroizing::new(Vec::with_capacity(capacity.next_multiple_of(1 << 10)));
    }
}

/// Sets a list's length, with unspecified contents.
fn resize_unspecified(list: &mut Zeroizing<Vec<u32>>, len: usize) {
    if list.capacity() < len {
        clear_with_capacity(list, len);
    }
    list.resize(len, 0);
}

impl<I: Isa, C: Curve<I>> Scratch<I, C> {
    fn new() -> Self {
        Self {
            terms: Terms::default(),
            next: Terms::default(),
            after: Zeroizing::default(),
            left: Zeroizing::default(),
            right: Zeroizing::default(),
            singles: Zeroizing::default(),
            arena: Points::default(),
            prefixes: Vec::new(),
        }
    }

    /// Returns the sums left after the last round.
    fn sums(&self) -> Sums {
        // Drops points at infinity, so that no later sum has any among its terms.
        let (arena, places) = (&self.arena, &self.terms.entries);
        let kept = || places.iter().zip(self.terms.segments.iter()).filter(|(at, _)| !arena.is_infinity(**at as usize));
        let count = kept().count();
        let mut sums = Sums { segments: Zeroizing::new(Vec::with_capacity(count)), points: Points::default() };
        sums.segments.extend(kept().map(|(_, segment)| *segment));
        for (half, from) in sums.points.halves.iter_mut().zip(&arena.halves[..C::HALVES]) {
            half.reserve_exact(count);
            half.extend(kept().map(|(at, _)| from[*at as usize]));
        }
        sums
    }

    /// Pairs up neighbours: their sums will be in the arena from `free` on. Returns where those end.
    ///
    /// A term without a partner stays as it is; but in the `first` round it is listed in `singles`, to be copied to the
    /// arena after the sums.
    fn pair_up(&mut self, free: usize, first: bool) -> usize {
        let entries = &mut self.terms.entries;
        let lengths = &mut self.terms.lengths;
        let pairs: usize = lengths.iter().map(|length| *length as usize / 2).sum();
        let end = free + pairs.next_multiple_of(I::LANES);
        let terms = entries.len();
        entries.resize(terms + SLACK, 0);
        // It is swapped with `entries`: with the same capacity, it will do for the next group.
        resize_unspecified(&mut self.after, terms + SLACK);
        resize_unspecified(&mut self.left, pairs.next_multiple_of(I::LANES) + SLACK);
        resize_unspecified(&mut self.right, pairs.next_multiple_of(I::LANES) + SLACK);
        resize_unspecified(
            &mut self.singles,
            if first { (terms - 2 * pairs).next_multiple_of(I::LANES) + SLACK } else { 0 },
        );
        // Segments are short and of any length, so a loop over the pairs of a segment would often be mispredicted.
        // Therefore a fixed number of pairs is listed at once, and any excess is overwritten by the pairs that follow.
        let (mut read, mut write, mut pair, mut single) = (0, 0, 0, 0);
        for length in lengths.iter_mut() {
            let mut pairs = *length as usize / 2;
            loop {
                let from: &[u32] = &entries[read..read + 2 * STEP];
                let (left, right) = (&mut self.left[pair..pair + STEP], &mut self.right[pair..pair + STEP]);
                let after = &mut self.after[write..write + STEP];
                for k in 0..STEP {
                    left[k] = from[2 * k];
                    right[k] = from[2 * k + 1];
                    after[k] = (free + pair + k) as u32;
                }
                let listed = pairs.min(STEP);
                (read, write, pair, pairs) = (read + 2 * listed, write + listed, pair + listed, pairs - listed);
                if pairs == 0 {
                    break;
                }
            }
            let odd = *length as usize % 2;
            let last = entries[read];
            if first {
                self.singles[single] = last;
                self.after[write] = (end + single) as u32;
                single += odd;
            } else {
                self.after[write] = last;
            }
            (read, write) = (read + odd, write + odd);
            *length = length.div_ceil(2);
        }
        self.after.truncate(write);
        std::mem::swap(entries, &mut self.after);
        fill_up::<I>(&mut self.left, pair);
        fill_up::<I>(&mut self.right, pair);
        fill_up::<I>(&mut self.singles, single);
        end
    }
}

/// Truncates a list to `len` entries and repeats the last one up to a whole vector.
fn fill_up<I: Isa>(list: &mut Vec<u32>, len: usize) {
    list.truncate(len);
    if let Some(last) = list.last().copied() {
        list.resize(len.next_multiple_of(I::LANES), last);
    }
}

/// Computes all rounds of a group. Afterwards there is one entry per segment: the position of its sum in the arena.
struct Rounds<'a, I: Isa, C: Curve<I>> {
    from: [&'a [Pair]; 2],
    scratch: &'a mut Scratch<I, C>,
}

impl<I: Isa, C: Curve<I>> Kernel<I> for Rounds<'_, I, C> {
    type Out = ();

    #[inline(always)]
    fn run(self, isa: I) {
        let s = self.scratch;
        // At most a term for each entry, and less than a vector more in each round and for the singles.
        let terms = s.terms.entries.len();
        s.arena.ensure_len::<I, C>(terms + (terms.max(1).ilog2() as usize + 4) * I::LANES);
        let vectors = (terms / 2).div_ceil(I::LANES);
        if s.prefixes.len() < vectors {
            s.prefixes = Vec::new();
            s.prefixes.reserve_exact(vectors);
            s.prefixes.resize(vectors, C::one(isa));
        }
        let mut exact = false;
        let mut free = s.pair_up(0, true);
        let mut to = s.arena.halves.each_mut().map(Vec::as_mut_slice);
        let pairs = Pairs { from: self.from, left: &s.left, right: &s.right, next: Some(&s.next.entries) };
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
            let pairs = Pairs { from, left: &s.left, right: &s.right, next: None };
            round::<I, C>(isa, pairs, &mut s.prefixes, &mut to, 0, &mut exact);
            free = end;
        }
    }
}

/// The summands of a round: whole vectors of entries.
#[derive(Clone, Copy)]
struct Pairs<'a> {
    from: [&'a [Pair]; 2],
    left: &'a [u32],
    right: &'a [u32],
    /// In the first round, where points are scattered in memory: the entries of the next group.
    next: Option<&'a [u32]>,
}

impl<'a> Pairs<'a> {
    fn vectors<I: Isa>(self) -> impl DoubleEndedIterator<Item = (&'a [u32], &'a [u32])> + ExactSizeIterator {
        self.left.chunks_exact(I::LANES).zip(self.right.chunks_exact(I::LANES))
    }
}

/// Returns the indices of a vector of entries, and the lanes to be negated.
#[inline(always)]
fn places(entries: &[u32]) -> ([u32; MAX_LANES], u32) {
    let (mut at, mut minus) = ([0; MAX_LANES], 0);
    for (lane, entry) in entries.iter().enumerate() {
        at[lane] = entry & !MINUS;
        minus |= (entry >> 31) << lane;
    }
    (at, minus)
}

/// Prefetch distance, in entries.
const PREFETCH_DISTANCE: usize = 32;

/// Prefetches the points of the vector of pairs that starts at `at`, if there is one. Only in the first round, since
/// later ones find theirs in the cache. Most should be in the second-level cache already, by [`prefetch_next`].
#[inline(always)]
fn prefetch<I: Isa, C: Curve<I>>(pairs: Pairs<'_>, at: usize) {
    if pairs.next.is_some() {
        for list in [pairs.left, pairs.right] {
            prefetch_points::<I, C, true>(pairs.from, list.get(at..at + I::LANES).unwrap_or_default());
        }
    }
}

/// Prefetches part `part` of [`PREFETCH_PARTS`] of as many points of the next group as there are in the vector of pairs
/// that starts at `at`, into the second-level cache. This is done in the second pass, which otherwise leaves memory
/// idle, and spread over an addition, because the CPU tracks few misses at a time. Exact rounds, which are rare,
/// prefetch only the first part.
#[inline(always)]
fn prefetch_next<I: Isa, C: Curve<I>>(pairs: Pairs<'_>, at: usize, part: usize) {
    if let Some(next) = pairs.next {
        let (at, size) = (2 * at, (2 * I::LANES).div_ceil(PREFETCH_PARTS));
        let part = at + part * size..(at + (part + 1) * size).min(at + 2 * I::LANES);
        prefetch_points::<I, C, false>(pairs.from, next.get(part).unwrap_or_default());
    }
}

/// Products of an addition in the second pass; some points are prefetched before each.
const PREFETCH_PARTS: usize = 4;

#[inline(always)]
fn prefetch_points<I: Isa, C: Curve<I>, const NEAR: bool>(from: [&[Pair]; 2], entries: &[u32]) {
    #[cfg(target_arch = "x86_64")]
    for entry in entries {
        for half in &from[..C::HALVES] {
            use core::arch::x86_64::{_MM_HINT_T0, _MM_HINT_T1, _mm_prefetch};
            let pair = half.as_ptr().wrapping_add((entry & !MINUS) as usize).cast();
            // SAFETY: every x86-64 CPU has the prefetch instructions; they are hints, which may name any address.
            unsafe {
                if NEAR {
                    _mm_prefetch::<_MM_HINT_T0>(pair);
                } else {
                    _mm_prefetch::<_MM_HINT_T1>(pair);
                }
            }
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = (from, entries);
}

#[cfg(not(debug_assertions))]
use self::round_inlined as round;

/// [`round_inlined`]; in debug builds a separate function, compiled for the instruction set, to save compile time.
#[cfg(debug_assertions)]
fn round<I: Isa, C: Curve<I>>(
    isa: I,
    pairs: Pairs<'_>,
    prefixes: &mut [C::Coordinate],
    to: &mut [&mut [Pair]; 2],
    at: usize,
    exact: &mut bool,
) {
    struct Round<'a, 'b, I: Isa, C: Curve<I>> {
        pairs: Pairs<'a>,
        prefixes: &'a mut [C::Coordinate],
        to: &'a mut [&'b mut [Pair]; 2],
        at: usize,
        exact: &'a mut bool,
    }

    impl<I: Isa, C: Curve<I>> Kernel<I> for Round<'_, '_, I, C> {
        type Out = ();

        #[inline(always)]
        fn run(self, isa: I) {
            round_inlined::<I, C>(isa, self.pairs, self.prefixes, self.to, self.at, self.exact);
        }
    }
    isa.enter(Round::<I, C> { pairs, prefixes, to, at, exact });
}

/// Adds the pairs of a round and writes the sums from `to[at]` on. Sets `exact` once a sum is the point at infinity:
/// from then on the sums of the group must be checked for special cases.
#[inline(always)]
fn round_inlined<I: Isa, C: Curve<I>>(
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
    // Somewhere equal or opposite points are added, or one is at infinity.
    let product = denominators::<I, C, true>(isa, pairs, prefixes);
    *exact |= add::<I, C, true>(isa, pairs, prefixes, product, to, at);
}

/// Returns the product of all denominators, lane by lane, and stores the products before each vector in `prefixes`.
#[inline(always)]
fn denominators<I: Isa, C: Curve<I>, const EXACT: bool>(
    isa: I,
    pairs: Pairs<'_>,
    prefixes: &mut [C::Coordinate],
) -> C::Coordinate {
    let mut product = C::one(isa);
    for (k, ((left, right), prefix)) in pairs.vectors::<I>().zip(prefixes).enumerate() {
        prefetch::<I, C>(pairs, k * I::LANES + PREFETCH_DISTANCE);
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
            product = C::Coordinate::mul(x2.diff(x1), product);
        }
    }
    product
}

/// Adds the pairs, from the last vector to the first, given the product of their denominators. Returns whether a sum is
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
        let ((l, l_minus), (r, r_minus)) = (places(left), places(right));
        let [x1, y1] = C::gather(isa, pairs.from, &l[..I::LANES]);
        let [x2, y2] = C::gather(isa, pairs.from, &r[..I::LANES]);
        prefetch_next::<I, C>(pairs, k * I::LANES, 0);
        let reciprocal = C::Coordinate::mul(inverse, prefixes[k]);
        let at = at + k * I::LANES;
        if EXACT {
            let (y1, y2) = (y1.negate_where(l_minus), y2.negate_where(r_minus));
            let case = Exact::of::<I, C>(isa, [x1, y1], [x2, y2]);
            inverse = C::Coordinate::mul(inverse, case.denominator);
            let slope = C::Coordinate::mul(case.numerator, reciprocal);
            let [x3, y3] = third(slope, x1, y1.signed(0), x2);
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
            let (y1, y2) = (y1.signed(l_minus), y2.signed(r_minus));
            prefetch_next::<I, C>(pairs, k * I::LANES, 1);
            inverse = C::Coordinate::mul(x2.diff(x1), inverse);
            prefetch_next::<I, C>(pairs, k * I::LANES, 2);
            let slope = C::Coordinate::mul(C::Coordinate::diff_signed(y2, y1), reciprocal);
            prefetch_next::<I, C>(pairs, k * I::LANES, 3);
            C::store(third(slope, x1, y1, x2), to, at);
        }
    }
    infinities
}

/// Returns the third point on a line, reflected: the sum of the two that the line goes through.
#[inline(always)]
pub(super) fn third<F: Field>(slope: F, x1: F, y1: F::Signed, x2: F) -> [F; 2] {
    let x3 = F::square_sub(slope, x1, x2);
    [x3, F::mul_sub(x1.diff(x3), slope, y1)]
}

/// A vector of additions of any points, special cases included.
struct Exact<F> {
    /// The slope is numerator / denominator. No denominator is zero: it is one where there is no slope.
    numerator: F,
    denominator: F,
    /// Lanes where the left summand is the point at infinity.
    left_infinite: u32,
    /// Lanes where the right summand is the point at infinity.
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
        // No point of the curve has y = 0; if a key has such a point, off the curve, its double is at infinity.
        let equal = upright & rise.zeros() & !y1.zeros();
        let opposite = upright & !equal;
        let square = x1.square();
        // The curves have a = 0.
        let numerator = rise.select(square.double().add(square), equal);
        let denominator = run.select(y1.double(), equal).select(C::one(isa), infinite | opposite);
        Self { numerator, denominator, left_infinite, right_infinite, opposite }
    }
}
