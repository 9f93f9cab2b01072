//! Number-theoretic transforms (NTTs) on a device: the host side of `kernels/ntt.cu`, which describes the method.
//!
//! **Cost** of an NTT of 2^20 elements: 10·2^20 products, less 7/8·2^20 of the inverse transform's by roots that are 1,
//! and two passes over memory, each of which reads and writes every element and reads a twiddle factor for it.

#![allow(unsafe_code)]

use std::sync::Arc;

use ark_ff::{FftField, Field};

use super::super::{BackendError, Bound};
use super::driver::{Argument, Driver, Launch, Stream};
use super::memory::Buffer;
use crate::model::{Fr, limb_bytes};

/// Bytes of an element.
pub(super) const ELEMENT: u64 = 32;
/// Bytes of a twiddle factor: its ratio to the modulus, and the factor itself.
const ROOT: u64 = 64;
/// Log2 of the largest size: the roots of the double domain must exist, and 2^28 is the largest order of a root.
pub(super) const MAX_LOG: u32 = 27;
/// Threads of a block of `ntt_roots`.
const ROOTS_THREADS: u32 = 256;

/// Number of elements that a thread holds.
///
/// With more elements there are fewer exchanges through shared memory; with fewer there are more threads, and the chain
/// of products of each is shorter, which is what counts if the device is not full.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Radix {
    Two,
    Four,
    Eight,
}

impl Radix {
    /// Returns the fastest radix for NTTs of 2^log elements, as measured on an H200.
    fn of(log: u32) -> Self {
        match log {
            0..=16 => Self::Two,
            20 | 21 => Self::Eight,
            _ => Self::Four,
        }
    }

    /// Returns the number of stages between two exchanges.
    fn stages(self) -> u32 {
        match self {
            Self::Two => 1,
            Self::Four => 2,
            Self::Eight => 3,
        }
    }

    /// Returns log2 of the elements of a block of 256 threads, the block size for which `ntt.cu` bounds the registers.
    fn max_tile(self) -> u32 {
        8 + self.stages()
    }
}

/// The points at which a polynomial is evaluated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Points {
    /// ⟨ωₙ⟩
    Domain,
    /// ω₂ₙ·⟨ωₙ⟩
    OddCoset,
}

/// What a kernel computes in the stages of a pass.
#[derive(Clone, Copy)]
enum Step {
    Inverse,
    Forward(Points),
    /// The stages of the inverse NTT, then those of the forward NTT on the odd coset; for the lowest bits only.
    Turn,
}

impl Step {
    fn kernel(self, radix: Radix) -> &'static str {
        let kernels = match self {
            Self::Inverse => ["ntt_inverse_1", "ntt_inverse_2", "ntt_inverse_3"],
            Self::Forward(_) => ["ntt_forward_1", "ntt_forward_2", "ntt_forward_3"],
            Self::Turn => ["ntt_turn_1", "ntt_turn_2", "ntt_turn_3"],
        };
        kernels[radix as usize]
    }
}

/// A pass: the stages of adjacent index bits that one kernel computes.
struct Pass {
    /// Lowest bit.
    low: u32,
    /// Number of bits.
    stages: u32,
    /// Twiddle factors ω^i for 0 ≤ i ≤ 2^(low + stages), where ω^(2^(low + stages)) = −1.
    roots: Buffer,
}

/// What all NTTs of one size share.
pub(super) struct Domain {
    driver: Arc<dyn Driver>,
    log: u32,
    radix: Radix,
    /// Log2 of the elements of the largest tile.
    max_tile: u32,
    /// Number of blocks that fill the device: tiles grow while at least this many blocks remain.
    pub(super) enough: u64,
    /// Passes, from the lowest bits up.
    passes: Vec<Pass>,
}

impl Domain {
    /// Computes the twiddle factors for NTTs of 2^log elements.
    ///
    /// # Errors
    /// `OutOfRange` if `log` is above 27.
    pub(super) fn new(driver: &Arc<dyn Driver>, stream: Stream, log: u32) -> Result<Self, BackendError> {
        Self::with(driver, stream, log, Radix::of(log))
    }

    /// Like [`Domain::new`], with the given radix.
    pub(super) fn with(driver: &Arc<dyn Driver>, stream: Stream, log: u32, radix: Radix) -> Result<Self, BackendError> {
        if log > MAX_LOG {
            let (what, bound) = ("log of the elements of a transform", Bound::AtMost(MAX_LOG.into()));
            return Err(BackendError::OutOfRange { what, bound, got: log.into() });
        }
        let shared = driver.properties().shared_per_block;
        let max_tile = radix.max_tile().min((shared / ELEMENT as u32).max(1).ilog2());
        let mut low = 0;
        let passes = plan(log, radix.stages(), max_tile).into_iter().map(|stages| {
            let pass = Pass { low, stages, roots: roots(driver, stream, low + stages)? };
            low += stages;
            Ok(pass)
        });
        let passes = passes.collect::<Result<_, BackendError>>()?;
        let enough = 2 * u64::from(driver.properties().multiprocessors);
        Ok(Self { driver: driver.clone(), log, radix, max_tile, enough, passes })
    }

    /// Returns the bytes on the device of a domain made by [`Domain::new`].
    pub(super) fn footprint(log: u32) -> u64 {
        let radix = Radix::of(log);
        let mut end = 0;
        let tables = plan(log, radix.stages(), radix.max_tile()).into_iter().map(|stages| {
            end += stages;
            ROOT * ((1 << end) + 1)
        });
        tables.sum()
    }

    /// Returns the bytes of this domain on the device.
    pub(super) fn bytes(&self) -> u64 {
        self.passes.iter().map(|pass| pass.roots.bytes()).sum()
    }

    /// Returns the number of elements of a vector.
    pub(super) fn size(&self) -> u64 {
        1 << self.log
    }

    /// Transforms the values of polynomials on the domain, in natural order, into n times their coefficients, in
    /// bit-reversed order, for each of the first `vectors` vectors of `data`, which lie one after another.
    pub(super) fn inverse(&self, stream: Stream, data: &Buffer, vectors: u32) -> Result<(), BackendError> {
        self.check(data, vectors)?;
        self.passes.iter().rev().try_for_each(|pass| self.pass(stream, Step::Inverse, data, vectors, pass))
    }

    /// Transforms coefficients in bit-reversed order into values in natural order.
    pub(super) fn forward(
        &self,
        stream: Stream,
        data: &Buffer,
        vectors: u32,
        points: Points,
    ) -> Result<(), BackendError> {
        self.check(data, vectors)?;
        self.passes.iter().try_for_each(|pass| self.pass(stream, Step::Forward(points), data, vectors, pass))
    }

    /// Transforms values on the domain into n times the values on the odd coset: the inverse and the forward NTT, with
    /// one pass over memory less.
    pub(super) fn to_odd_coset(&self, stream: Stream, data: &Buffer, vectors: u32) -> Result<(), BackendError> {
        self.check(data, vectors)?;
        let Some((lowest, upper)) = self.passes.split_first() else { return Ok(()) };
        let pass = |step, pass| self.pass(stream, step, data, vectors, pass);
        upper.iter().rev().try_for_each(|upper| pass(Step::Inverse, upper))?;
        pass(Step::Turn, lowest)?;
        upper.iter().try_for_each(|upper| pass(Step::Forward(Points::OddCoset), upper))
    }

    fn check(&self, data: &Buffer, vectors: u32) -> Result<(), BackendError> {
        let (needed, available) = ((u64::from(vectors) * ELEMENT) << self.log, data.bytes());
        let small = BackendError::TooSmall { what: "bytes of vectors", needed, available };
        if available < needed { Err(small) } else { Ok(()) }
    }

    /// Returns log2 of the elements of a tile and of its columns. A tile is as large as it can be while enough
    /// blocks for the whole device remain, but has at least a warp of threads, and two elements side by side, if
    /// there are that many.
    fn tile(&self, pass: &Pass, vectors: u32) -> (u32, u32) {
        let radix = self.radix.stages();
        let least = pass.stages.max(radix);
        let (wanted, most) = if pass.low == 0 {
            (0, self.max_tile.min(self.log).max(least))
        } else {
            (1, self.max_tile.min(least + pass.low))
        };
        let blocks = |tile: u32| u64::from(vectors) << (self.log - tile.min(self.log));
        let mut tile = (least + wanted).max(radix + 5).min(most);
        while tile < most && blocks(tile + 1) >= self.enough {
            tile += 1;
        }
        (tile, if pass.low == 0 { 0 } else { tile - pass.stages })
    }

    /// Runs one step of a pass on vectors that [`Domain::check`] has checked.
    fn pass(&self, stream: Stream, step: Step, data: &Buffer, vectors: u32, pass: &Pass) -> Result<(), BackendError> {
        if vectors == 0 {
            return Ok(());
        }
        let (tile, columns) = self.tile(pass, vectors);
        let [to, roots] = [data.argument(), pass.roots.argument()];
        let [n, low, stages, t, c] = [self.log, pass.low, pass.stages, tile, columns].map(Argument::U32);
        let arguments: &[Argument] = match step {
            Step::Inverse | Step::Turn => &[to, roots, n, low, stages, t, c],
            Step::Forward(points) => &[to, roots, Argument::U32(points as u32), n, low, stages, t, c],
        };
        let launch = Launch {
            kernel: step.kernel(self.radix),
            grid: (1 << (self.log - tile.min(self.log)), vectors),
            block: 1 << (tile - self.radix.stages()),
            shared: (ELEMENT as u32) << tile,
            arguments,
        };
        // SAFETY: these are the kernel's arguments, and `check` saw that the vectors lie in `data`. The pass's bits
        // and columns are bits of an index below 2^log, so no other element is touched; there are twiddle factors up
        // to 2^(low + stages).
        unsafe { self.driver.launch(stream, launch) }
    }
}

/// Computes the twiddle factors ω^i for 0 ≤ i ≤ 2^order, where ω^(2^order) = −1.
fn roots(driver: &Arc<dyn Driver>, stream: Stream, order: u32) -> Result<Buffer, BackendError> {
    let count = (1u32 << order) + 1;
    let root = Fr::get_root_of_unity(2 << order).ok_or(BackendError::OutOfRange {
        what: "log of a root's order",
        bound: Bound::AtMost(Fr::TWO_ADICITY.into()),
        got: u64::from(order) + 1,
    })?;
    let powers = std::iter::successors(Some(root), |root| Some(root.square()));
    let powers: Vec<u8> = powers.take(order as usize + 1).flat_map(|root| bytes_of(&root)).collect();
    let powers = Buffer::with(driver, stream, &powers)?;
    let roots = Buffer::new(driver, u64::from(count) * ROOT)?;
    let launch = Launch {
        kernel: "ntt_roots",
        grid: (count.div_ceil(ROOTS_THREADS), 1),
        block: ROOTS_THREADS,
        shared: 0,
        arguments: &[roots.argument(), powers.argument(), Argument::U32(count)],
    };
    // SAFETY: these are the kernel's arguments: space for `count` twiddle factors, and a power for each
    // bit of `count` − 1.
    unsafe { driver.launch(stream, launch)? };
    Ok(roots)
}

/// Returns an element as it lies in device memory: in Montgomery form, little-endian.
pub(super) fn bytes_of(x: &Fr) -> [u8; ELEMENT as usize] {
    limb_bytes(&x.0)
}

/// Returns the number of bits of each pass, from the lowest up: the fewest passes, then the fewest groups of `radix`
/// stages, then the smallest passes except for the lowest, because smaller ones have more columns. With one stage at a
/// time, which is for vectors that do not fill a device, the lowest is included: small tiles are exchanged within
/// warps, and there are many of them.
///
/// A pass has at most `most` bits and, except for the lowest, at least `radix`.
fn plan(log: u32, radix: u32, most: u32) -> Vec<u32> {
    if log == 0 {
        return Vec::new();
    }
    /// Collects all ways to split `rest` bits above those in `present` into `passes` passes.
    fn split(rest: u32, passes: u32, radix: u32, most: u32, present: &mut Vec<u32>, all: &mut Vec<Vec<u32>>) {
        if passes == 0 {
            if rest == 0 {
                all.push(present.clone());
            }
            return;
        }
        for bits in radix..=most.min(rest) {
            present.push(bits);
            split(rest - bits, passes - 1, radix, most, present, all);
            present.pop();
        }
    }
    let groups = |plan: &Vec<u32>| plan.iter().map(|bits| bits.div_ceil(radix)).sum::<u32>();
    let largest = |plan: &Vec<u32>| plan[usize::from(radix > 1)..].iter().copied().max();
    let best = (0..log).find_map(|upper| {
        let mut all = Vec::new();
        for lowest in 1..=most.min(log) {
            split(log - lowest, upper, radix, most, &mut vec![lowest], &mut all);
        }
        all.into_iter().min_by_key(|plan| (groups(plan), largest(plan)))
    });
    best.unwrap_or_default()
}

#[cfg(all(test, feature = "kernels-on-host"))]
mod tests {
    #![allow(clippy::unwrap_used)]

    use ark_ff::{BigInteger, BigInteger256, PrimeField, UniformRand};
    use ark_poly::{EvaluationDomain, Radix2EvaluationDomain};
    use ark_std::rand::{SeedableRng, rngs::StdRng};

    use super::super::driver::host::{HostDriver, Order};
    use super::*;

    const RADICES: [Radix; 3] = [Radix::Two, Radix::Four, Radix::Eight];

    fn device(driver: HostDriver) -> (Arc<dyn Driver>, Stream) {
        let driver: Arc<dyn Driver> = Arc::new(driver);
        let stream = driver.create_stream().unwrap();
        (driver, stream)
    }

    fn upload(driver: &Arc<dyn Driver>, stream: Stream, elements: &[Fr]) -> Buffer {
        Buffer::with(driver, stream, &elements.iter().flat_map(bytes_of).collect::<Vec<_>>()).unwrap()
    }

    /// Downloads elements from their words, which are below 2r.
    fn download(stream: Stream, data: &Buffer) -> Vec<Fr> {
        let mut bytes = vec![0; data.bytes() as usize];
        data.download(stream, 0, &mut bytes).unwrap();
        let elements = bytes.chunks_exact(32).map(|bytes| {
            let mut words = crate::model::limbs(bytes);
            if words >= Fr::MODULUS {
                words.sub_with_borrow(&Fr::MODULUS);
            }
            assert!(words < Fr::MODULUS, "an element is not below 2r");
            Fr::new_unchecked(words)
        });
        elements.collect()
    }

    fn bit_reversed(values: &[Fr]) -> Vec<Fr> {
        let log = values.len().ilog2();
        (0..values.len()).map(|i| values[if log == 0 { 0 } else { i.reverse_bits() >> (usize::BITS - log) }]).collect()
    }

    /// Compares the inverse and forward NTTs of `vectors` vectors with arkworks.
    fn check(driver: &Arc<dyn Driver>, stream: Stream, log: u32, radix: Radix, vectors: u32) {
        let what = format!("2^{log} by {radix:?}, {vectors} vectors");
        let n = 1usize << log;
        let mut rng = StdRng::seed_from_u64(u64::from(log) << 8 | u64::from(vectors));
        let values: Vec<Fr> = (0..n * vectors as usize).map(|_| Fr::rand(&mut rng)).collect();
        let domain = Domain::with(driver, stream, log, radix).unwrap();
        let on_host = Radix2EvaluationDomain::<Fr>::new(n).unwrap();
        let coset = on_host.get_coset(Fr::get_root_of_unity(2 * n as u64).unwrap()).unwrap();
        let size = Fr::from(n as u64);

        let data = upload(driver, stream, &values);
        domain.inverse(stream, &data, vectors).unwrap();
        let mut inverse = Vec::new();
        let mut odd = Vec::new();
        for values in values.chunks_exact(n) {
            let mut coefficients = on_host.ifft(values);
            coefficients.iter_mut().for_each(|x| *x *= size);
            inverse.extend(bit_reversed(&coefficients));
            odd.extend(coset.fft(&coefficients));
        }
        assert!(download(stream, &data) == inverse, "inverse of {what}");
        domain.forward(stream, &data, vectors, Points::Domain).unwrap();
        let scaled: Vec<Fr> = values.iter().map(|x| *x * size).collect();
        assert!(download(stream, &data) == scaled, "forward of {what}");

        let data = upload(driver, stream, &inverse);
        domain.forward(stream, &data, vectors, Points::OddCoset).unwrap();
        assert!(download(stream, &data) == odd, "forward of {what}, on the coset");

        let data = upload(driver, stream, &values);
        domain.to_odd_coset(stream, &data, vectors).unwrap();
        assert!(download(stream, &data) == odd, "{what}, both at once");
    }

    #[test]
    fn transforms_of_all_sizes() {
        let (driver, stream) = device(HostDriver::new(Order::Ascending));
        for log in 0..=13 {
            for radix in RADICES {
                check(&driver, stream, log, radix, if log < 11 { 3 } else { 1 });
            }
        }
    }

    #[test]
    fn transforms_of_larger_sizes() {
        for order in [Order::Ascending, Order::Descending, Order::Random(16)] {
            let (driver, stream) = device(HostDriver::new(order));
            for log in 14..=16 {
                check(&driver, stream, log, Radix::of(log), 1);
            }
            check(&driver, stream, 16, Radix::Eight, 1);
        }
    }

    #[test]
    fn the_order_of_threads_does_not_matter() {
        for order in [Order::Ascending, Order::Descending, Order::Random(1), Order::Random(2)] {
            let (driver, stream) = device(HostDriver::new(order));
            for log in [1, 5, 8, 10, 12] {
                for radix in RADICES {
                    check(&driver, stream, log, radix, 2);
                }
            }
        }
    }

    #[test]
    fn many_passes_and_any_tiles() {
        for (log_shared, multiprocessors) in [(4, 1), (5, 1), (6, 64), (7, 4), (9, 1000)] {
            let driver = HostDriver::new(Order::Descending).with_shared_per_block(32 << log_shared);
            let (driver, stream) = device(driver.with_multiprocessors(multiprocessors));
            for log in [3, 4, 7, 10, 12] {
                for radix in RADICES {
                    check(&driver, stream, log, radix, 1);
                }
            }
        }
    }

    #[test]
    fn the_largest_and_smallest_elements() {
        let (driver, stream) = device(HostDriver::new(Order::Ascending));
        let log = 9;
        let n = 1usize << log;
        let on_host = Radix2EvaluationDomain::<Fr>::new(n).unwrap();
        // Words up to 2r − 1 are elements as well.
        let words = |i: usize| {
            let mut words = [Fr::MODULUS, BigInteger256::from(0u64), Fr::MODULUS, Fr::MODULUS][i % 4];
            if i % 4 > 1 {
                words.sub_with_borrow(&BigInteger256::from(1u64));
            }
            if i % 4 == 3 {
                words.add_with_carry(&Fr::MODULUS);
            }
            words
        };
        let bytes: Vec<u8> = (0..n).flat_map(|i| words(i).0).flat_map(u64::to_le_bytes).collect();
        let data = Buffer::with(&driver, stream, &bytes).unwrap();
        let values = download(stream, &data);
        let domain = Domain::with(&driver, stream, log, Radix::Eight).unwrap();
        domain.inverse(stream, &data, 1).unwrap();
        let mut coefficients = on_host.ifft(&values);
        coefficients.iter_mut().for_each(|x| *x *= Fr::from(n as u64));
        assert_eq!(download(stream, &data), bit_reversed(&coefficients));
        let data = Buffer::with(&driver, stream, &bytes).unwrap();
        domain.forward(stream, &data, 1, Points::Domain).unwrap();
        assert_eq!(download(stream, &data), on_host.fft(&bit_reversed(&values)));
    }

    #[test]
    fn plans_have_few_passes() {
        let passes = |log, radix: Radix| plan(log, radix.stages(), radix.max_tile());
        for radix in RADICES {
            for log in 0..=MAX_LOG {
                let plan = passes(log, radix);
                assert_eq!(plan.iter().sum::<u32>(), log);
                assert!(plan.iter().all(|bits| (1..=radix.max_tile()).contains(bits)));
                assert!(plan.iter().skip(1).all(|bits| *bits >= radix.stages()));
            }
        }
        assert_eq!(passes(12, Radix::Two), [6, 6]);
        assert_eq!(passes(11, Radix::Eight), [11]);
        assert_eq!(passes(20, Radix::Eight), [11, 9]);
        assert_eq!(passes(22, Radix::Eight).len(), 2);
        assert_eq!(passes(27, Radix::Eight), [9, 9, 9]);
    }

    #[test]
    fn sizes_that_do_not_fit() {
        let (driver, stream) = device(HostDriver::new(Order::Ascending));
        let error = Domain::new(&driver, stream, 28).err();
        let (what, bound) = ("log of the elements of a transform", Bound::AtMost(27));
        assert_eq!(error, Some(BackendError::OutOfRange { what, bound, got: 28 }));
        let domain = Domain::new(&driver, stream, 4).unwrap();
        let data = Buffer::new(&driver, 32 * 16 * 2).unwrap();
        let error = domain.inverse(stream, &data, 3).err();
        assert_eq!(error, Some(BackendError::TooSmall { what: "bytes of vectors", needed: 1536, available: 1024 }));
        assert_eq!(domain.forward(stream, &data, 3, Points::Domain).err(), error);
    }
}
