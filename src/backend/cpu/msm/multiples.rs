//! Multiples of points for all windows of a scalar: 2^(c·w) times each, by doublings in lanes that share inversions.
//!
//! With them, the digits of all windows go to the buckets of one (E. F. Brickell, D. M. Gordon, K. S. McCurley and D.
//! B. Wilson, *Fast exponentiation with precomputation*, EUROCRYPT 1992): there are no buckets of other windows to sum,
//! and windows may be wider.

use rayon::prelude::*;

use super::super::digits::Multiples;
use super::super::lanes::{Field, Isa, Kernel, Pair};
use super::curve::{Curve, MAX_LANES, all_lanes};
use super::sums::{Points, third};
use super::{Bases, Places};

/// Points that share an inversion: together with the prefix products they fit a second-level cache.
const BATCH: usize = 1 << 11;

impl<I: Isa, C: Curve<I>> Bases<I, C> {
    /// Returns the same points with memory for `multiples`, of which the first, the points themselves, are filled in.
    /// No product may be computed before [`Self::fill`] has made the others.
    pub(in crate::backend::cpu) fn with_capacity_for(&self, multiples: Multiples) -> Self {
        let kept = self.places.kept as usize;
        let stride = kept.next_multiple_of(I::LANES);
        let mut points = Points::infinities::<I, C>(multiples.per_point() * stride);
        if let Some(last) = kept.checked_sub(1) {
            for (to, from) in points.halves.iter_mut().zip(&self.points.halves[..C::HALVES]) {
                to[..kept].copy_from_slice(&from[..kept]);
                // Whole vectors are doubled, and no lane of one may be at infinity.
                to[kept..stride].fill(from[last]);
            }
        }
        let wire_bits = multiples.wire_bits();
        let direct = self.places.all && stride == 1 << wire_bits;
        let places = Places { wire_bits, stride: stride as u32, direct, ..self.places.clone() };
        Self { isa: self.isa, points, places, multiples, curve: std::marker::PhantomData }
    }

    /// Returns the bytes that the points would take with these multiples.
    pub(in crate::backend::cpu) fn bytes(&self, multiples: Multiples) -> usize {
        multiples.per_point() * (self.places.kept as usize).next_multiple_of(I::LANES) * C::HALVES * size_of::<Pair>()
    }

    /// Returns the bytes that the points take.
    #[cfg(test)]
    pub(in crate::backend::cpu) fn taken(&self) -> usize {
        self.points.len() * C::HALVES * size_of::<Pair>()
    }

    /// Swaps two points of a window.
    #[cfg(test)]
    pub(in crate::backend::cpu) fn corrupt(&mut self, window: usize) {
        let at = window * self.places.stride as usize;
        self.points.halves[..C::HALVES].iter_mut().for_each(|half| half.swap(at, at + 1));
    }

    /// Makes the multiples for a window, at least 1, from those for the window before. Returns false if one is the
    /// point at infinity, which no point of the curves' groups has among these multiples; the window is useless then.
    pub(in crate::backend::cpu) fn fill(&mut self, window: usize) -> bool {
        let Multiples::Windows { bits, .. } = self.multiples else { return false };
        let stride = self.places.stride as usize;
        let mut tasks = Vec::with_capacity(stride.div_ceil(BATCH));
        let [mut x, mut y] = self.points.halves.each_mut().map(|half| {
            // In G1 the second half is empty.
            let made = (window * stride).min(half.len());
            let (made, rest) = half.split_at_mut(made);
            let next = stride.min(rest.len());
            (&made[made.len().saturating_sub(stride)..], &mut rest[..next])
        });
        for batch in (0..stride).step_by(BATCH) {
            let size = BATCH.min(stride - batch);
            let [from_x, from_y] = [&mut x, &mut y].map(|(from, to)| {
                let to = to.split_off_mut(..size.min(to.len())).unwrap_or_default();
                (from.get(batch..batch + size).unwrap_or_default(), to)
            });
            tasks.push(Doublings::<C> {
                from: [from_x.0, from_y.0],
                to: [from_x.1, from_y.1],
                times: bits,
                curve: std::marker::PhantomData,
            });
        }
        let isa = self.isa;
        tasks.into_par_iter().all(|task| isa.enter(task))
    }
}

/// Doubles whole vectors of points `times` times.
struct Doublings<'a, C> {
    from: [&'a [Pair]; 2],
    to: [&'a mut [Pair]; 2],
    times: usize,
    curve: std::marker::PhantomData<C>,
}

impl<I: Isa, C: Curve<I>> Kernel<I> for Doublings<'_, C> {
    /// Whether no result is the point at infinity.
    type Out = bool;

    #[inline(always)]
    fn run(mut self, isa: I) -> bool {
        let vectors = self.from[0].len() / I::LANES;
        let at = |k: usize| -> [u32; MAX_LANES] { std::array::from_fn(|i| (k * I::LANES + i) as u32) };
        let mut points = Vec::with_capacity(vectors);
        for k in 0..vectors {
            points.push(C::gather(isa, self.from, &at(k)[..I::LANES]));
        }
        let mut prefixes = vec![C::one(isa); vectors];
        for _ in 0..self.times {
            let mut product = C::one(isa);
            for ([_, y], prefix) in points.iter().zip(&mut prefixes) {
                *prefix = product;
                product = C::Coordinate::mul(product, y.double());
            }
            if product.zeros() & all_lanes::<I>() != 0 {
                return false;
            }
            let mut inverse = product.invert();
            for (point, prefix) in points.iter_mut().zip(&prefixes).rev() {
                let [x, y] = *point;
                let reciprocal = C::Coordinate::mul(inverse, *prefix);
                inverse = C::Coordinate::mul(inverse, y.double());
                // The curves have a = 0.
                let square = x.square();
                let slope = C::Coordinate::mul(square.double().add(square), reciprocal);
                *point = third(slope, x, y.signed(0), x);
            }
        }
        for (k, point) in points.into_iter().enumerate() {
            C::store(point, &mut self.to, k * I::LANES);
        }
        true
    }
}
