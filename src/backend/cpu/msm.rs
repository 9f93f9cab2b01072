//! Multi-scalar multiplication: Pippenger's buckets, filled by batched affine additions.
//!
//! An affine addition takes one inversion; done for hundreds of buckets at once, all inversions cost three products
//! each and one real inversion (Montgomery's trick), so that an addition takes 6 products in all, against 10 for a
//! mixed addition in extended Jacobian (XYZZ) coordinates. Where a bucket is met twice in one batch the point goes to
//! an XYZZ twin of the bucket instead, so that repeated scalars cost 10 products, never an inversion each.

use ark_ec::VariableBaseMSM;
use ark_ec::short_weierstrass::{Affine, Projective, SWCurveConfig};
use ark_ff::{AdditiveGroup, Field, PrimeField, Zero};
use rayon::prelude::*;

use super::super::BackendError;
use super::digits::Digits;
use crate::model::{Fq, G1_BYTES, G1Affine, G2_BYTES, G2Affine, StopToken, g1_raw, g2_raw, limbs};

/// XYZZ accumulator of arkworks.
type Xyzz<P> = <Projective<P> as VariableBaseMSM>::Bucket;

/// Points of one section of the key, infinity left out (up to 40 % of B in real keys), and the wire of each.
pub(super) struct Query<P: SWCurveConfig> {
    pieces: Vec<Piece<P>>,
}

/// Points of at most [`CHUNK`] neighbours in the file.
struct Piece<P: SWCurveConfig> {
    points: Vec<Affine<P>>,
    wires: Vec<u32>,
}

/// How a section's points are read.
pub(super) trait RawPoint: SWCurveConfig {
    /// Bytes of a point in the file.
    const BYTES: usize;
    /// The point in so many bytes, unchecked.
    fn decode(raw: &[u8]) -> Affine<Self>;
}

impl RawPoint for ark_bn254::g1::Config {
    const BYTES: usize = G1_BYTES;
    fn decode(raw: &[u8]) -> G1Affine {
        g1_raw(raw)
    }
}

impl RawPoint for ark_bn254::g2::Config {
    const BYTES: usize = G2_BYTES;
    fn decode(raw: &[u8]) -> G2Affine {
        g2_raw(raw)
    }
}

/// Points a task decodes or adds up: large enough to be worth one, small enough to balance.
const CHUNK: usize = 1 << 13;
/// Additions that share an inversion.
const BATCH: usize = 512;
/// Fewest buckets for which batches pay: with fewer, most points of a batch would meet a bucket twice.
const FEWEST_BUCKETS: usize = 1 << 10;
/// Fewest pieces of a window that are worth a task of their own.
const FEWEST_PIECES: usize = 2;

impl<P: RawPoint> Query<P> {
    /// Decodes a section, whose first point belongs to wire `first`.
    ///
    /// Fails on coordinates that are not below q: field arithmetic relies on it. Whether the points are on their
    /// curve is not looked at; sums of points off it are wrong, and the proof does not verify.
    pub(super) fn new(section: &[u8], first: usize) -> Result<Self, BackendError> {
        let read = |(k, bytes): (usize, &[u8])| {
            let wrong = bytes.chunks_exact(32).filter(|coordinate| limbs(coordinate) >= Fq::MODULUS).count();
            if wrong > 0 {
                let what = "coordinates of the key that are not below q";
                return Err(BackendError::Shape { what, expected: 0, got: wrong as u64 });
            }
            let n = bytes.len() / P::BYTES;
            let (mut points, mut wires) = (Vec::with_capacity(n), Vec::with_capacity(n));
            for (i, raw) in bytes.chunks_exact(P::BYTES).enumerate() {
                let p = P::decode(raw);
                if !is_infinity(&p) {
                    points.push(p);
                    wires.push((first + k * CHUNK + i) as u32);
                }
            }
            Ok(Piece { points, wires })
        };
        let pieces = section.par_chunks(CHUNK * P::BYTES).enumerate().map(read).collect::<Result<_, _>>()?;
        Ok(Self { pieces })
    }

    /// Σ scalar(wireᵢ)·pointᵢ. A stopped token ends it early with a meaningless sum: the caller looks at the token.
    pub(super) fn msm(&self, digits: &Digits, stop: &StopToken) -> Projective<P> {
        if self.pieces.is_empty() {
            return Projective::zero();
        }
        // A window is one task, unless there are more threads than windows to keep busy.
        let tasks_a_window = (2 * rayon::current_num_threads()).div_ceil(digits.windows);
        let share = self.pieces.len().div_ceil(tasks_a_window).max(FEWEST_PIECES);
        let shares = self.pieces.len().div_ceil(share);
        let (units, sums) = rayon::join(
            || self.units(digits, stop),
            || -> Vec<Projective<P>> {
                let tasks = (0..digits.windows * shares).into_par_iter();
                let sums = tasks.map(|task| {
                    if stop.stopped().is_some() {
                        return Projective::zero();
                    }
                    let row = digits.row(task / shares);
                    let mut buckets = Buckets::new(digits.window);
                    for piece in self.pieces.iter().skip(task % shares * share).take(share) {
                        for (point, wire) in piece.points.iter().zip(&piece.wires) {
                            let digit = row[*wire as usize];
                            if digit != 0 {
                                buckets.add(point, digit);
                            }
                        }
                    }
                    buckets.sum()
                });
                sums.collect()
            },
        );
        let high_to_low = sums.chunks(shares).rev();
        let windows = high_to_low.fold(Projective::zero(), |mut acc: Projective<P>, window| {
            for _ in 0..digits.window {
                acc.double_in_place();
            }
            window.iter().fold(acc, |acc, s| acc + s)
        });
        windows + units
    }

    /// Sum of the points whose scalar is 1 less those whose scalar is −1.
    fn units(&self, digits: &Digits, stop: &StopToken) -> Projective<P> {
        let units = digits.units();
        let sums = self.pieces.par_iter().map(|Piece { points, wires }| {
            if stop.stopped().is_some() {
                return Projective::zero();
            }
            let signed = points.iter().zip(wires).filter_map(|(p, wire)| match units[*wire as usize] {
                0 => None,
                1 => Some(*p),
                _ => Some(-*p),
            });
            sum_by_pairs(signed.collect())
        });
        sums.reduce(Projective::zero, |a, b| a + b)
    }
}

/// Whether a point is at infinity, which is (0, 0) in this layout.
fn is_infinity<P: SWCurveConfig>(p: &Affine<P>) -> bool {
    p.x.is_zero() && p.y.is_zero()
}

fn infinity<P: SWCurveConfig>() -> Affine<P> {
    Affine::new_unchecked(P::BaseField::ZERO, P::BaseField::ZERO)
}

/// What an affine addition comes to, once its denominator is inverted.
#[derive(Clone, Copy)]
enum Kind {
    Add,
    Double,
    /// Opposite points, or one at infinity: no denominator, the sum is known.
    Known,
}

/// Affine additions that share one inversion.
struct Additions<P: SWCurveConfig> {
    left: Vec<Affine<P>>,
    right: Vec<Affine<P>>,
    kinds: Vec<Kind>,
    denominators: Vec<P::BaseField>,
    prefixes: Vec<P::BaseField>,
}

impl<P: SWCurveConfig> Additions<P> {
    fn with_capacity(n: usize) -> Self {
        Self {
            left: Vec::with_capacity(n),
            right: Vec::with_capacity(n),
            kinds: Vec::with_capacity(n),
            denominators: Vec::with_capacity(n),
            prefixes: Vec::with_capacity(n),
        }
    }

    fn push(&mut self, left: Affine<P>, right: Affine<P>) {
        self.left.push(left);
        self.right.push(right);
    }

    /// Puts each sum in the place of the left summand and forgets the right ones.
    fn run(&mut self) {
        let mut product = P::BaseField::ONE;
        self.kinds.clear();
        self.denominators.clear();
        self.prefixes.clear();
        for (l, r) in self.left.iter_mut().zip(&self.right) {
            let (kind, denominator) = if is_infinity(l) {
                *l = *r;
                (Kind::Known, P::BaseField::ONE)
            } else if is_infinity(r) {
                (Kind::Known, P::BaseField::ONE)
            } else if l.x != r.x {
                (Kind::Add, r.x - l.x)
            } else if l.y == r.y && !l.y.is_zero() {
                (Kind::Double, l.y.double())
            } else {
                *l = infinity();
                (Kind::Known, P::BaseField::ONE)
            };
            self.kinds.push(kind);
            self.prefixes.push(product);
            self.denominators.push(denominator);
            product *= denominator;
        }
        // No denominator is zero, so neither is their product.
        let mut inverse = product.inverse().unwrap_or(P::BaseField::ONE);
        for i in (0..self.left.len()).rev() {
            let (l, r) = (self.left[i], &self.right[i]);
            let slope = match self.kinds[i] {
                Kind::Known => continue,
                Kind::Add => r.y - l.y,
                // The curves have a = 0.
                Kind::Double => {
                    let square = l.x.square();
                    square.double() + square
                }
            } * (inverse * self.prefixes[i]);
            inverse *= self.denominators[i];
            let x = slope.square() - l.x - r.x;
            self.left[i] = Affine::new_unchecked(x, slope * (l.x - x) - l.y);
        }
        self.right.clear();
    }
}

/// Adds points up in a tree of affine additions.
fn sum_by_pairs<P: SWCurveConfig>(mut points: Vec<Affine<P>>) -> Projective<P> {
    let mut additions = Additions::with_capacity(points.len() / 2);
    while points.len() > 16 {
        let odd = if points.len() % 2 == 1 { points.pop() } else { None };
        additions.left.clear();
        for pair in points.chunks_exact(2) {
            additions.push(pair[0], pair[1]);
        }
        additions.run();
        std::mem::swap(&mut points, &mut additions.left);
        points.extend(odd);
    }
    points.iter().fold(Projective::zero(), |acc, p| acc + p)
}

/// The buckets of one window over some of the points.
struct Buckets<P: SWCurveConfig> {
    affine: Vec<Affine<P>>,
    /// For points that met their bucket while it was in the batch; empty until there is one.
    twins: Vec<Xyzz<P>>,
    /// Batch in which each bucket was last met.
    met: Vec<u32>,
    batch: u32,
    members: Vec<u32>,
    additions: Additions<P>,
}

impl<P: SWCurveConfig> Buckets<P> {
    fn new(window: usize) -> Self {
        let n = 1 << (window - 1);
        Self {
            affine: vec![infinity(); n],
            twins: Vec::new(),
            met: vec![0; n],
            batch: 1,
            members: Vec::with_capacity(BATCH),
            additions: Additions::with_capacity(BATCH),
        }
    }

    /// Adds `point` to the bucket of a digit that is not zero, or takes it from it if the digit is negative.
    fn add(&mut self, point: &Affine<P>, digit: i16) {
        let bucket = usize::from(digit.unsigned_abs()) - 1;
        let signed = if digit < 0 { -*point } else { *point };
        let known = &mut self.affine[bucket];
        if self.met[bucket] == self.batch {
            if self.twins.is_empty() {
                self.twins = vec![<Projective<P> as VariableBaseMSM>::ZERO_BUCKET; self.affine.len()];
            }
            self.twins[bucket] += &signed;
        } else if is_infinity(known) {
            *known = signed;
            if self.affine.len() < FEWEST_BUCKETS {
                // Without batches every later point goes to the twin.
                self.met[bucket] = self.batch;
            }
        } else {
            self.met[bucket] = self.batch;
            self.members.push(bucket as u32);
            self.additions.push(*known, signed);
            if self.members.len() == BATCH {
                self.flush();
            }
        }
    }

    fn flush(&mut self) {
        self.additions.run();
        for (bucket, sum) in self.members.drain(..).zip(self.additions.left.drain(..)) {
            self.affine[bucket as usize] = sum;
        }
        self.batch += 1;
    }

    /// Σ k·bucketₖ, by running sums from the last bucket down.
    fn sum(mut self) -> Projective<P> {
        self.flush();
        let zero = <Projective<P> as VariableBaseMSM>::ZERO_BUCKET;
        let (mut running, mut total) = (zero, zero);
        for (bucket, point) in self.affine.iter().enumerate().rev() {
            running += point;
            if let Some(twin) = self.twins.get(bucket) {
                running += twin;
            }
            total += &running;
        }
        total.into()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::model::{Fr, G1, G2};
    use ark_ec::{CurveGroup, PrimeGroup};
    use ark_ff::{BigInteger256, One, PrimeField, UniformRand};
    use ark_std::rand::{Rng, SeedableRng, rngs::StdRng};

    /// Against arkworks' own product.
    fn check<P: RawPoint<ScalarField = Fr>>(points: Vec<Affine<P>>, scalars: &[Fr], threads: usize)
    where
        Projective<P>: VariableBaseMSM<ScalarField = Fr, MulBase = Affine<P>>,
    {
        let plain: Vec<BigInteger256> = scalars.iter().map(|s| s.into_bigint()).collect();
        let kept: Vec<u32> = (0..points.len() as u32).filter(|i| !is_infinity(&points[*i as usize])).collect();
        let piece = |w: &[u32]| Piece { points: w.iter().map(|i| points[*i as usize]).collect(), wires: w.to_vec() };
        let query = Query { pieces: kept.chunks(CHUNK).map(piece).collect() };
        let expected = Projective::<P>::msm_bigint(&points, &plain);
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("a pool");
        let got = pool.install(|| query.msm(&Digits::new(&plain), &StopToken::new()));
        assert!(got == expected, "{} points on {threads} threads", points.len());
    }

    fn points<G: CurveGroup>(n: usize, rng: &mut StdRng) -> Vec<G::Affine> {
        // Cheap and all different: a walk with a random step.
        let (mut at, step) = (G::rand(rng), G::rand(rng));
        let walk: Vec<G> = (0..n)
            .map(|_| {
                at += step;
                at
            })
            .collect();
        G::normalize_batch(&walk)
    }

    fn scalars(kind: usize, n: usize, rng: &mut StdRng) -> Vec<Fr> {
        let fixed = Fr::rand(rng);
        (0..n)
            .map(|i| match kind {
                0 => Fr::rand(rng),
                1 => Fr::zero(),
                2 => Fr::one(),
                3 => -Fr::one(),
                4 => Fr::from(rng.gen_range(0..2u64)),
                5 => fixed,
                6 => Fr::from(rng.gen_range(0..1u64 << 20)),
                7 => -Fr::from(rng.gen_range(0..300u64)),
                8 => [Fr::zero(), Fr::one(), -Fr::one(), Fr::rand(rng)][i % 4],
                _ => [fixed, -fixed][i % 2],
            })
            .collect()
    }

    #[test]
    fn any_mix_of_scalars_at_awkward_sizes() {
        let mut rng = StdRng::seed_from_u64(1);
        for kind in 0..10 {
            for n in [0, 1, 2, 3, 15, 16, 17, 33, 255, 1023, 4097] {
                let s = scalars(kind, n, &mut rng);
                check::<ark_bn254::g1::Config>(points::<G1>(n, &mut rng), &s, 1 + n % 3);
                check::<ark_bn254::g2::Config>(points::<G2>(n.min(300), &mut rng), &s[..n.min(300)], 2);
            }
        }
    }

    #[test]
    fn sizes_that_batch_and_split() {
        let mut rng = StdRng::seed_from_u64(2);
        for kind in [0, 4, 5, 8, 9] {
            for (n, threads) in [(20_000, 2), (40_001, 24)] {
                check::<ark_bn254::g1::Config>(points::<G1>(n, &mut rng), &scalars(kind, n, &mut rng), threads);
            }
            let n = 20_000;
            check::<ark_bn254::g2::Config>(points::<G2>(n, &mut rng), &scalars(kind, n, &mut rng), 2);
        }
    }

    #[test]
    fn equal_and_opposite_points_and_infinity() {
        let mut rng = StdRng::seed_from_u64(3);
        let n = 20_000;
        let g = G1::generator().into_affine();
        let patterns: [fn(usize, G1Affine) -> G1Affine; 4] = [
            |_, g| g,
            |i, g| if i % 2 == 0 { g } else { -g },
            |i, g| if i % 3 == 0 { G1Affine::identity() } else { g },
            |_, _| G1Affine::identity(),
        ];
        for pattern in patterns {
            let p: Vec<_> = (0..n).map(|i| pattern(i, g)).collect();
            for kind in [0, 2, 3, 5, 6, 8, 9] {
                check::<ark_bn254::g1::Config>(p.clone(), &scalars(kind, n, &mut rng), 2);
            }
        }
    }

    #[test]
    fn sections_lose_their_points_at_infinity() {
        let mut rng = StdRng::seed_from_u64(4);
        let mut p = points::<G1>(20_000, &mut rng);
        for (i, p) in p.iter_mut().enumerate() {
            if i % 5 < 2 {
                *p = G1Affine::identity();
            }
        }
        let bytes = crate::formats::zkey::encode_g1(&p);
        let query = Query::<ark_bn254::g1::Config>::new(&bytes, 7).expect("canonical");
        let read: Vec<_> = query.pieces.iter().flat_map(|q| q.wires.iter().zip(&q.points)).collect();
        assert_eq!(read.len(), 12_000);
        assert!(read.iter().all(|(wire, q)| p[**wire as usize - 7] == **q));
    }
}
