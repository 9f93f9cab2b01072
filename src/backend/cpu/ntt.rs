//! Number-theoretic transforms (NTT): from the values of polynomials on the domain to those on a coset of it.
//!
//! **Order.** With L lanes and n = L·m, lane k of the vector at position p holds the value at the point with index
//! i = L·s + k, where s is p with its log₂ m bits reversed. In this order every butterfly of a block has the same
//! twiddle factor, so few factors are needed, and the shift of the coset is part of the factors and costs nothing.
//!
//! **Steps.** Lane k holds the values of f mod (x^m − ωₙ^(m·k)), since (ωₙ^i)^m depends only on i mod L. So the lanes
//! are interpolated in parallel, by Gentleman–Sande butterflies (1966), from blocks of one vector to one block of m:
//! the residue mod x^2s − t² is combined from those mod x^s − t and x^s + t. Then squares of L vectors are transposed,
//! the same transform of L points runs through each, and they are transposed back. Cooley–Tukey butterflies (1965)
//! evaluate the lanes on the coset g·⟨ωₙ⟩, splitting x^2s − t² until x − g·ωₙ^i is left.
//!
//! **Memory.** The levels are divided into passes: one over the leaves, which are contiguous blocks, and those over
//! columns, whose rows lie a stride apart and are gathered in a tile that fits the second-level cache. The last levels
//! of the interpolation and the first of the evaluation share a pass, so that a polynomial of up to 2^20 points passes
//! through memory three times. The idea is from Bailey's "FFTs in external or hierarchical memory" (1990).
//!
//! **Twiddle factors.** The factor of block b of `blocks` at stride s is (g·ωₙ^k)^s·ζ(b), with
//! ζ(b) = exp(2πi·reverse(b)/2·blocks); for a block of a pass it is the product of a factor that depends only on the
//! group of the pass and one that depends only on the block's index within the group. Within a pass, the factors of a
//! level are the squares of those of the level below.

#![allow(unsafe_code)]

use ark_ff::Field as _;
use ark_poly::{EvaluationDomain, Radix2EvaluationDomain};
use rayon::prelude::*;
use zeroize::Zeroizing;

use super::lanes::{Field, Isa, Kernel, Lanes};
use super::scattered::Scattered;
use crate::model::Fr;

/// Bytes of a tile. With its factors, which take as many again, it fits a second-level cache of 512 KiB.
const TILE: usize = 160 << 10;
/// Contiguous bytes in a row of a tile: a few cache lines, for the sake of the prefetcher.
const ROW: usize = 256;

/// The direction of a transform.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Direction {
    Interpolate,
    Evaluate,
}

/// The twiddle factors of the transforms over one domain and one coset.
pub(super) struct Plan<I: Isa> {
    log_vectors: u32,
    /// Contiguous vectors in a row of a tile.
    width: usize,
    /// From the leaves, at stride 1, to the pass of the greatest stride. At least two passes.
    passes: Vec<Pass<I>>,
    /// 1/ζ(b), for interpolation, and ζ(b), for evaluation, for the blocks of a pass.
    local: [Vec<I::Fr>; 2],
    across_lanes: AcrossLanes<I>,
}

/// Consecutive levels of a transform.
struct Pass<I: Isa> {
    log_stride: u32,
    log_rows: u32,
    /// The factor of the first block at the pass's stride for each group of rows: of interpolation and of evaluation.
    first: [Vec<I::Fr>; 2],
}

/// The transforms across the lanes: interpolation in L points, then evaluation in L points of a coset.
struct AcrossLanes<I: Isa> {
    /// ω_L^(−j) and ω_L^j, j < L/2.
    roots: [Vec<I::Fr>; 2],
    /// g^(m·t) for t in bit-reversed order; then the same times n.
    shifts: [Vec<I::Fr>; 2],
}

/// Returns `x` with its lowest `bits` bits reversed.
fn reverse(x: usize, bits: u32) -> usize {
    if bits == 0 { 0 } else { x.reverse_bits() >> (usize::BITS - bits) }
}

impl<I: Isa> Plan<I> {
    /// Plans the transforms for `domain` and its coset `shift`·`domain`; `None` if the domain has fewer than L² points.
    pub(super) fn new(isa: I, domain: &Radix2EvaluationDomain<Fr>, shift: Fr) -> Option<Self> {
        Self::with_tile(isa, domain, shift, TILE)
    }

    fn with_tile(isa: I, domain: &Radix2EvaluationDomain<Fr>, shift: Fr, tile: usize) -> Option<Self> {
        let (n, lanes) = (domain.size(), I::LANES);
        if n < lanes * lanes {
            return None;
        }
        let log_vectors = (n / lanes).ilog2();
        let size = size_of::<I::Fr>();
        let log_width = (ROW / size).max(1).ilog2();
        let max_log_leaf = (tile / size).max(2).ilog2();
        let max_log_rows = (tile / (size << log_width)).max(2).ilog2();

        // The levels of the leaves, then those of the passes over columns, as even as possible.
        let log_leaf = log_vectors.div_ceil(2).max(log_vectors.saturating_sub(max_log_rows)).min(max_log_leaf);
        let above = log_vectors - log_leaf;
        let columns = above.div_ceil(max_log_rows).max(1);
        let mut rows = vec![log_leaf];
        rows.extend((0..columns).map(|i| above * (i + 1) / columns - above * i / columns));
        let highest_log_rows = rows.iter().copied().max().unwrap_or(0);
        let mut log_stride = 0;
        let passes: Vec<Pass<I>> = rows
            .iter()
            .map(|&log_rows| {
                let pass = Pass::new(isa, domain, shift, log_stride, log_rows);
                log_stride += log_rows;
                pass
            })
            .collect();

        // Squares of L vectors are taken from a tile.
        let top = 1usize << rows[rows.len() - 1];
        let width = (1 << log_width).max(lanes / top.min(lanes)).min((1 << log_vectors) / top);
        let generators = [domain.group_gen_inv(), domain.group_gen()];
        let local = generators.map(|root| {
            let mut zeta = vec![Fr::ONE];
            while 2 * zeta.len() < 1 << highest_log_rows {
                let step = root.pow([(n / (4 * zeta.len())) as u64]);
                zeta.extend_from_within(..);
                let half = zeta.len() / 2;
                zeta[half..].iter_mut().for_each(|z| *z *= step);
            }
            zeta.into_iter().map(|z| I::Fr::splat(isa, z)).collect()
        });
        let across_lanes = AcrossLanes {
            roots: generators.map(|root| {
                let root = root.pow([(n / lanes) as u64]);
                (0..lanes / 2).map(|j| I::Fr::splat(isa, root.pow([j as u64]))).collect()
            }),
            shifts: [Fr::ONE, Fr::from(n as u64)].map(|times| {
                let shift = |t| shift.pow([((n / lanes) * reverse(t, lanes.ilog2())) as u64]);
                (0..lanes).map(|t| I::Fr::splat(isa, times * shift(t))).collect()
            }),
        };
        Some(Self { log_vectors, width, passes, local, across_lanes })
    }

    /// Returns m, the number of vectors of a polynomial.
    pub(super) fn vectors(&self) -> usize {
        1 << self.log_vectors
    }

    /// Returns the vectors of a leaf, the block that [`Plan::interpolate_leaf`] and [`Plan::evaluate_leaf`] take.
    pub(super) fn leaf(&self) -> usize {
        1 << self.passes[0].log_rows
    }

    /// Returns the position of the vector of the points L·s to L·s + L − 1; also s of the vector at a position.
    #[inline(always)]
    pub(super) fn position(&self, s: usize) -> usize {
        reverse(s, self.log_vectors)
    }

    /// Computes the first levels of the interpolation: those within leaf number `leaf` of each polynomial.
    ///
    /// `factors` is scratch memory for the factors; its contents are ignored.
    #[inline(always)]
    pub(super) fn interpolate_leaf(&self, leaf: usize, polynomials: [&mut [I::Fr]; 3], factors: &mut Vec<I::Fr>) {
        self.factors(0, leaf, Direction::Interpolate, factors);
        for x in polynomials {
            interpolate(x, 1, factors);
        }
    }

    /// Computes the last levels of the evaluation; see [`Plan::interpolate_leaf`].
    #[inline(always)]
    pub(super) fn evaluate_leaf(&self, leaf: usize, polynomials: [&mut [I::Fr]; 3], factors: &mut Vec<I::Fr>) {
        self.factors(0, leaf, Direction::Evaluate, factors);
        for x in polynomials {
            evaluate(x, 1, factors);
        }
    }

    /// Computes all levels between those of the leaves: from interpolated leaves to those of the coset.
    ///
    /// The result is n times too large (no step divides), that of the last polynomial n² times. Splits the work among
    /// the threads of the current pool.
    pub(super) fn columns(&self, isa: I, polynomials: [&mut [I::Fr]; 3]) {
        let polynomials = polynomials.map(|x| {
            assert_eq!(x.len(), self.vectors());
            Scattered::new(x)
        });
        let top = self.passes.len() - 1;
        for pass in 1..top {
            self.pass(isa, pass, &[Direction::Interpolate], &polynomials);
        }
        self.pass(isa, top, &[Direction::Interpolate, Direction::Evaluate], &polynomials);
        for pass in (1..top).rev() {
            self.pass(isa, pass, &[Direction::Evaluate], &polynomials);
        }
    }

    /// Computes one pass over the columns; at the top in both directions, with the transforms across lanes in between.
    fn pass(&self, isa: I, pass: usize, directions: &[Direction], polynomials: &[Scattered<'_, I::Fr>; 3]) {
        let Pass { log_stride, log_rows, .. } = self.passes[pass];
        let groups = 1usize << (self.log_vectors - log_stride - log_rows);
        let width = self.width.min(1 << log_stride);
        let zero = I::Fr::splat(isa, Fr::from(0u64));
        (0..groups).into_par_iter().for_each(|group| {
            let factors = [Direction::Interpolate, Direction::Evaluate].map(|direction| {
                let mut factors = Vec::new();
                if directions.contains(&direction) {
                    isa.enter(Factors { plan: self, pass, group, direction, to: &mut factors });
                }
                factors
            });
            let tile = || Zeroizing::new(vec![zero; width << log_rows]);
            (0..1usize << log_stride).into_par_iter().step_by(width).for_each_init(tile, |tile, column| {
                let origin = (group << (log_stride + log_rows)) + column;
                isa.enter(Columns {
                    plan: self,
                    pass,
                    directions,
                    factors: &factors,
                    polynomials,
                    origin,
                    width,
                    tile,
                });
            });
        });
    }

    /// Computes the factors of a group of rows of a pass. That of local block b of `blocks` is at `blocks + b`.
    #[inline(always)]
    fn factors(&self, pass: usize, group: usize, direction: Direction, to: &mut Vec<I::Fr>) {
        let pass = &self.passes[pass];
        let (mut first, local) = (pass.first[direction as usize][group], &self.local[direction as usize]);
        let rows = 1usize << pass.log_rows;
        to.resize(rows, first);
        let mut blocks = rows / 2;
        while blocks > 0 {
            let level = &mut to[blocks..2 * blocks];
            level[0] = first;
            for (factor, zeta) in level.iter_mut().zip(local).skip(1) {
                *factor = I::Fr::mul(first, *zeta);
            }
            first = first.square();
            blocks /= 2;
        }
    }

    /// Computes the transforms across the lanes, for all squares of vectors of a tile.
    #[inline(always)]
    fn across_lanes(&self, isa: I, tile: &mut [I::Fr], by_n: bool) {
        let lanes = I::LANES;
        if lanes == 1 && !by_n {
            return;
        }
        let AcrossLanes { roots: [inverse, roots], shifts } = &self.across_lanes;
        for square in tile.chunks_exact_mut(lanes) {
            I::Fr::transpose(isa, square);
            // By decimation in frequency: the coefficients are in bit-reversed order.
            let mut half = lanes / 2;
            while half > 0 {
                for block in square.chunks_exact_mut(2 * half) {
                    let (low, high) = block.split_at_mut(half);
                    for (j, (a, b)) in low.iter_mut().zip(high).enumerate() {
                        let (x, y) = (*a, *b);
                        *a = x.add(y);
                        let root = inverse[j * (lanes / 2 / half)];
                        *b = if j == 0 { x.sub(y) } else { I::Fr::mul(x.diff(y), root) };
                    }
                }
                half /= 2;
            }
            for (x, shift) in square.iter_mut().zip(&shifts[usize::from(by_n)]).skip(usize::from(!by_n)) {
                *x = I::Fr::mul(*x, *shift);
            }
            // By decimation in time, back to the order of the lanes.
            let mut half = 1;
            while half < lanes {
                for block in square.chunks_exact_mut(2 * half) {
                    let (low, high) = block.split_at_mut(half);
                    for (j, (a, b)) in low.iter_mut().zip(high).enumerate() {
                        let root = roots[j * (lanes / 2 / half)];
                        let (x, y) = (*a, if j == 0 { *b } else { I::Fr::mul(*b, root) });
                        (*a, *b) = (x.add(y), x.sub(y));
                    }
                }
                half *= 2;
            }
            I::Fr::transpose(isa, square);
        }
    }
}

impl<I: Isa> Pass<I> {
    fn new(isa: I, domain: &Radix2EvaluationDomain<Fr>, shift: Fr, log_stride: u32, log_rows: u32) -> Self {
        let (lanes, stride) = (I::LANES, 1u64 << log_stride);
        let log_groups = (domain.size() / lanes).ilog2() - log_stride - log_rows;
        // At this stride, (g·ω^(L·reverse(group) + k))^stride in lane k.
        let first = |shift: Fr, root: Fr| -> Vec<I::Fr> {
            let (start, root) = (shift.pow([stride]), root.pow([stride]));
            let lane: Vec<Fr> = (0..lanes).map(|k| start * root.pow([k as u64])).collect();
            let group = |group: usize| {
                let of_group = root.pow([(lanes * reverse(group, log_groups)) as u64]);
                let factors: Vec<Fr> = lane.iter().map(|lane| *lane * of_group).collect();
                isa.enter(Encode(&factors))
            };
            (0..1usize << log_groups).into_par_iter().with_min_len(16).map(group).collect()
        };
        let first = [first(Fr::ONE, domain.group_gen_inv()), first(shift, domain.group_gen())];
        Self { log_stride, log_rows, first }
    }
}

/// [`Lanes::encode`].
struct Encode<'a>(&'a [Fr]);

impl<I: Isa> Kernel<I> for Encode<'_> {
    type Out = I::Fr;

    #[inline(always)]
    fn run(self, isa: I) -> I::Fr {
        I::Fr::encode(isa, self.0)
    }
}

/// [`Plan::factors`].
struct Factors<'a, I: Isa> {
    plan: &'a Plan<I>,
    pass: usize,
    group: usize,
    direction: Direction,
    to: &'a mut Vec<I::Fr>,
}

impl<I: Isa> Kernel<I> for Factors<'_, I> {
    type Out = ();

    #[inline(always)]
    fn run(self, _: I) {
        self.plan.factors(self.pass, self.group, self.direction, self.to);
    }
}

/// A pass over `width` columns from `origin` on.
struct Columns<'a, I: Isa> {
    plan: &'a Plan<I>,
    pass: usize,
    directions: &'a [Direction],
    factors: &'a [Vec<I::Fr>; 2],
    polynomials: &'a [Scattered<'a, I::Fr>; 3],
    origin: usize,
    width: usize,
    tile: &'a mut [I::Fr],
}

impl<I: Isa> Kernel<I> for Columns<'_, I> {
    type Out = ();

    #[inline(always)]
    fn run(self, isa: I) {
        let Self { plan, pass, directions, factors, polynomials, origin, width, tile } = self;
        let log_stride = plan.passes[pass].log_stride;
        for (number, x) in polynomials.iter().enumerate() {
            for (row, to) in tile.chunks_exact_mut(width).enumerate() {
                for (i, to) in to.iter_mut().enumerate() {
                    // SAFETY: no other task has this column: tasks of a pass differ in the group or the column.
                    *to = unsafe { x.read(origin + (row << log_stride) + i) };
                }
            }
            if directions.contains(&Direction::Interpolate) {
                interpolate(tile, width, &factors[Direction::Interpolate as usize]);
            }
            if directions.len() == 2 {
                plan.across_lanes(isa, tile, number == 2);
            }
            if directions.contains(&Direction::Evaluate) {
                evaluate(tile, width, &factors[Direction::Evaluate as usize]);
            }
            for (row, from) in tile.chunks_exact(width).enumerate() {
                for (i, from) in from.iter().enumerate() {
                    // SAFETY: as above.
                    unsafe { x.write(origin + (row << log_stride) + i, *from) };
                }
            }
        }
    }
}

/// Splits a block into quarters and iterates over them together.
#[inline(always)]
fn quarters<T>(block: &mut [T]) -> impl Iterator<Item = (&mut T, &mut T, &mut T, &mut T)> {
    let (low, high) = block.split_at_mut(block.len() / 2);
    let (a, b) = low.split_at_mut(low.len() / 2);
    let (c, d) = high.split_at_mut(high.len() / 2);
    a.iter_mut().zip(b).zip(c).zip(d).map(|(((a, b), c), d)| (a, b, c, d))
}

/// Computes all levels of interpolation over the rows of a tile, `width` vectors each; `factors` as in
/// [`Plan::factors`].
#[inline(always)]
fn interpolate<V: Field>(tile: &mut [V], width: usize, factors: &[V]) {
    let rows = tile.len() / width;
    let mut reach = 1;
    if rows.ilog2() % 2 == 1 {
        for (block, factor) in tile.chunks_exact_mut(2 * width).zip(&factors[rows / 2..]) {
            let (low, high) = block.split_at_mut(width);
            for (a, b) in low.iter_mut().zip(high) {
                let (x, y) = (*a, *b);
                *a = x.add(y);
                *b = V::mul(x.diff(y), *factor);
            }
        }
        reach = 2;
    }
    // Two levels at a time.
    while reach < rows {
        let blocks = rows / (4 * reach);
        for (i, block) in tile.chunks_exact_mut(4 * reach * width).enumerate() {
            let (upper, low, high) = (factors[blocks + i], factors[2 * (blocks + i)], factors[2 * (blocks + i) + 1]);
            for (a, b, c, d) in quarters(block) {
                let (ab, ba) = (a.add(*b), V::mul(a.diff(*b), low));
                let (cd, dc) = (c.add(*d), V::mul(c.diff(*d), high));
                *a = ab.add(cd);
                *b = ba.add(dc);
                *c = V::mul(ab.diff(cd), upper);
                *d = V::mul(ba.diff(dc), upper);
            }
        }
        reach *= 4;
    }
}

/// Computes all levels of evaluation over the rows of a tile; see [`interpolate`].
#[inline(always)]
fn evaluate<V: Field>(tile: &mut [V], width: usize, factors: &[V]) {
    let rows = tile.len() / width;
    let mut reach = rows;
    while reach >= 4 {
        let blocks = rows / reach;
        for (i, block) in tile.chunks_exact_mut(reach * width).enumerate() {
            let (upper, low, high) = (factors[blocks + i], factors[2 * (blocks + i)], factors[2 * (blocks + i) + 1]);
            for (a, b, c, d) in quarters(block) {
                let (x, y) = (V::mul(*c, upper), V::mul(*d, upper));
                let (ac, ca) = (a.add(x), a.sub(x));
                let (bd, db) = (V::mul(b.sum(y), low), V::mul(b.diff(y), high));
                (*a, *b) = (ac.add(bd), ac.sub(bd));
                (*c, *d) = (ca.add(db), ca.sub(db));
            }
        }
        reach /= 4;
    }
    if reach == 2 {
        for (block, factor) in tile.chunks_exact_mut(2 * width).zip(&factors[rows / 2..]) {
            let (low, high) = block.split_at_mut(width);
            for (a, b) in low.iter_mut().zip(high) {
                let (x, y) = (*a, V::mul(*b, *factor));
                (*a, *b) = (x.add(y), x.sub(y));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    #[cfg(target_arch = "x86_64")]
    use super::super::lanes::{avx2::Avx2, ifma::Avx512Ifma};
    use super::super::lanes::{ifma, portable::Portable, wide::Wide};
    use super::*;
    use ark_ff::{FftField, UniformRand};
    use ark_std::rand::{SeedableRng, rngs::StdRng};

    /// The levels of one leaf, entered as the quotient does.
    struct Leaf<'a, I: Isa> {
        plan: &'a Plan<I>,
        leaf: usize,
        direction: Direction,
        x: [&'a mut [I::Fr]; 3],
    }

    impl<I: Isa> Kernel<I> for Leaf<'_, I> {
        type Out = ();

        #[inline(always)]
        fn run(self, _: I) {
            let mut factors = Vec::new();
            match self.direction {
                Direction::Interpolate => self.plan.interpolate_leaf(self.leaf, self.x, &mut factors),
                Direction::Evaluate => self.plan.evaluate_leaf(self.leaf, self.x, &mut factors),
            }
        }
    }

    /// From values on the domain to n times (n² times for the last polynomial) those on the coset, in point order.
    fn extend<I: Isa>(isa: I, plan: &Plan<I>, values: [&[Fr]; 3]) -> [Vec<Fr>; 3] {
        let lanes = I::LANES;
        let vector = |x: &[Fr], p: usize| I::Fr::encode(isa, &x[lanes * plan.position(p)..][..lanes]);
        let mut x = values.map(|x| (0..plan.vectors()).map(|p| vector(x, p)).collect::<Vec<_>>());
        let leaves = |x: &mut [Vec<I::Fr>; 3], direction| {
            let [a, b, c] = x.each_mut().map(|x| x.chunks_exact_mut(plan.leaf()));
            for (leaf, ((a, b), c)) in a.zip(b).zip(c).enumerate() {
                isa.enter(Leaf { plan, leaf, direction, x: [a, b, c] });
            }
        };
        leaves(&mut x, Direction::Interpolate);
        plan.columns(isa, x.each_mut().map(|x| &mut x[..]));
        leaves(&mut x, Direction::Evaluate);
        x.map(|x| {
            let mut values = vec![Fr::ONE; plan.vectors() * lanes];
            for (s, values) in values.chunks_exact_mut(lanes).enumerate() {
                x[plan.position(s)].decode(values);
            }
            values
        })
    }

    /// All sizes that are fast enough, with tiles of all shapes, against arkworks.
    fn agrees<I: Isa>(isa: I) {
        up_to(isa, 14);
    }

    fn up_to<I: Isa>(isa: I, most: u32) {
        let mut rng = StdRng::seed_from_u64(3);
        for log_n in 0..=most {
            let domain = Radix2EvaluationDomain::<Fr>::new(1 << log_n).unwrap();
            let n = domain.size();
            let usual = Fr::get_root_of_unity(2 * n as u64).unwrap();
            for (shift, tile) in [(usual, TILE), (Fr::rand(&mut rng), 16 * size_of::<I::Fr>()), (usual, 1)] {
                let Some(plan) = Plan::with_tile(isa, &domain, shift, tile) else {
                    assert!(n < I::LANES * I::LANES);
                    continue;
                };
                assert!(tile > 1 || log_n < 10 || plan.passes.len() > 3);
                let x: [Vec<Fr>; 3] = std::array::from_fn(|_| (0..n).map(|_| Fr::rand(&mut rng)).collect());
                let got = extend(isa, &plan, x.each_ref().map(|x| &x[..]));
                let coset = domain.get_coset(shift).unwrap();
                for (i, (x, got)) in x.iter().zip(&got).enumerate() {
                    let times = Fr::from(n as u64) * if i == 2 { Fr::from(n as u64) } else { Fr::ONE };
                    let expected: Vec<Fr> = coset.fft(&domain.ifft(x)).iter().map(|x| *x * times).collect();
                    assert!(*got == expected, "2^{log_n} on {} with tiles of {tile}, polynomial {i}", I::NAME);
                }
            }
        }
    }

    #[test]
    fn portable_agrees_with_arkworks() {
        agrees(Portable);
    }

    #[test]
    fn any_number_of_lanes_agrees_with_arkworks() {
        agrees(Wide::<2>);
        agrees(Wide::<8>);
        agrees(Wide::<16>);
    }

    #[test]
    fn emulated_ifma_agrees_with_arkworks() {
        up_to(ifma::emulation(), 9);
    }

    #[cfg(target_arch = "x86_64")]
    #[test]
    fn this_processor_agrees_with_arkworks() {
        Avx2::detect().into_iter().for_each(agrees);
        Avx512Ifma::detect().into_iter().for_each(agrees);
    }

    /// Σ fⱼ·xʲ at every point of the coset, without any of arkworks' transforms.
    #[test]
    fn small_ones_agree_with_direct_evaluation() {
        let mut rng = StdRng::seed_from_u64(4);
        for n in [1usize, 2, 4, 16] {
            let domain = Radix2EvaluationDomain::<Fr>::new(n).unwrap();
            let (shift, root) = (Fr::rand(&mut rng), domain.group_gen());
            let f: Vec<Fr> = (0..n).map(|_| Fr::rand(&mut rng)).collect();
            let at = |x: Fr| f.iter().rev().fold(Fr::from(0u64), |sum, f| sum * x + f);
            let values: Vec<Fr> = (0..n as u64).map(|i| at(root.pow([i]))).collect();
            let expected: Vec<Fr> = (0..n as u64).map(|i| at(shift * root.pow([i])) * Fr::from(n as u64)).collect();
            let plan = Plan::new(Portable, &domain, shift).unwrap();
            assert_eq!(extend(Portable, &plan, [&values; 3])[0], expected);
            if let Some(plan) = Plan::new(Wide::<2>, &domain, shift) {
                assert_eq!(extend(Wide::<2>, &plan, [&values; 3])[1], expected);
            }
        }
    }
}
