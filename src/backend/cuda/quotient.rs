//! From the witness to the scalars of H on a device: the host side of `kernels/qap.cu`. `cpu::quotient`
//! explains the mathematics.
//!
//! **Factors.** The inverse NTT omits its division by n, so that on the odd coset a and b are n times too large, and so
//! is c, which is computed on the domain: n²·a·b and n·c. The kernel that combines them multiplies by 1/n² and 1/n in
//! plain form, which at the same time converts out of Montgomery form.

#![allow(unsafe_code)]

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use ark_ff::{BigInteger256, Field, PrimeField};
use rayon::prelude::*;

use super::super::BackendError;
use super::super::key::{check_domain, check_entries};
use super::driver::{Argument, Driver, Launch, Stream};
use super::memory::{Arena, Buffer, padded_total};
use super::ntt::{Domain, ELEMENT, MAX_LOG};
use crate::model::{ENTRY_BYTES, Fr, ProvingKey, entry};

/// Most terms of a short row.
const MAX_SHORT: usize = 64;
/// Number of short rows in a slice.
const SLICE: usize = 32;
/// Most terms of a part of a long row.
const MAX_PART: usize = 2048;
/// Threads of a block that computes one sum.
const PART_THREADS: u32 = 128;
/// Threads of a block of all other kernels.
const THREADS: u32 = 256;
/// Number of matrix entries that one task processes.
const ENTRIES: usize = 1 << 18;
/// Bytes of a term.
const TERM: u64 = 8;

/// What a key says about the quotient: the rows of A and B, and the domain.
pub(super) struct Constraints {
    driver: Arc<dyn Driver>,
    domain: Domain,
    /// Number of values of a witness.
    wires: u64,
    /// Distinct factors of terms; the first is 0.
    factors: Buffer,
    short: ShortRows,
    long: Option<LongRows>,
    /// 1/n² and 1/n, in plain form.
    scale: Buffer,
}

/// Rows of at most [`MAX_SHORT`] terms, the longest first, in slices.
struct ShortRows {
    terms: Buffer,
    /// Starts of the slices, in columns of [`SLICE`] terms.
    starts: Buffer,
    rows: Buffer,
    count: u32,
}

/// Rows of more than [`MAX_SHORT`] terms, in parts.
struct LongRows {
    terms: Buffer,
    /// Starts of the parts among the terms.
    starts: Buffer,
    /// Starts of the rows among the parts.
    parts: Buffer,
    rows: Buffer,
    count: u32,
    part_count: u32,
}

/// Memory of one proof at a time. Its content is as secret as the witness.
pub(super) struct Scratch {
    /// a, b and c; at the end, the scalars of H are in the place of a.
    vectors: Buffer,
    /// Sums of the parts of long rows.
    sums: Buffer,
}

impl Scratch {
    /// Cuts memory for quotients of these constraints from a block.
    pub(super) fn within(arena: &mut Arena, constraints: &Constraints) -> Result<Self, BackendError> {
        let [vectors, sums] = arena.allocate(Self::sizes(constraints))?;
        Ok(Self { vectors, sums })
    }

    /// Returns the bytes of this memory.
    pub(super) fn bytes(constraints: &Constraints) -> u64 {
        padded_total(&Self::sizes(constraints))
    }

    fn sizes(constraints: &Constraints) -> [u64; 2] {
        let parts = constraints.long.as_ref().map_or(0, |long| u64::from(long.part_count));
        [3 * ELEMENT * constraints.domain.size(), parts * ELEMENT]
    }

    /// Returns the scalars of H: plain values below r, from byte 0 on, one for each point of the domain.
    pub(super) fn scalars(&self) -> &Buffer {
        &self.vectors
    }
}

impl Constraints {
    /// Checks the matrix entries, every index in particular, and uploads them.
    ///
    /// # Errors
    /// As for [`check_domain`] and [`check_entries`]; `Unavailable` if the domain is larger than 2^27.
    pub(super) fn index(driver: &Arc<dyn Driver>, stream: Stream, key: &ProvingKey) -> Result<Self, BackendError> {
        let n = key.header.domain_size;
        check_domain(key)?;
        if n > 1 << MAX_LOG {
            let why = format!("its NTTs have at most 2^{MAX_LOG} elements, and the key's domain has {n}");
            return Err(BackendError::Unavailable { device: driver.properties().label(), why });
        }
        check_entries(key)?;
        let rows = Rows::of(key);
        let factors = Factors::of(key);
        let (short_terms, long_terms) = rows.terms(key, &factors);
        let short = ShortRows {
            terms: upload_u64(driver, stream, &short_terms)?,
            starts: upload_u32(driver, stream, &rows.slices)?,
            rows: upload_u32(driver, stream, &rows.short)?,
            count: rows.short.len() as u32,
        };
        let long = (!rows.long.is_empty()).then(|| {
            let (starts, parts) = rows.parts();
            Ok::<_, BackendError>(LongRows {
                terms: upload_u64(driver, stream, &long_terms)?,
                starts: upload_u32(driver, stream, &starts)?,
                parts: upload_u32(driver, stream, &parts)?,
                rows: upload_u32(driver, stream, &rows.long)?,
                count: rows.long.len() as u32,
                part_count: starts.len() as u32 - 1,
            })
        });
        let inverse = Fr::from(n).inverse().unwrap_or_default();
        let scale = [inverse * inverse, inverse].map(|x| x.into_bigint().0);
        Ok(Self {
            driver: driver.clone(),
            domain: Domain::new(driver, stream, n.trailing_zeros())?,
            wires: u64::from(key.header.n_vars),
            factors: upload_u64(driver, stream, factors.distinct.as_flattened())?,
            short,
            long: long.transpose()?,
            scale: upload_u64(driver, stream, scale.as_flattened())?,
        })
    }

    /// Returns an estimate of the bytes on the device while the key is loaded: distinct factors repeat in a circuit,
    /// but how often is unknown before all of them are read.
    pub(super) fn resident(key: &ProvingKey) -> u64 {
        let n = key.header.domain_size;
        let domain = Domain::footprint(n.checked_ilog2().unwrap_or(0).min(MAX_LOG));
        // Terms, and as many bytes for factors; rows, and the starts of slices.
        2 * TERM * key.n_coefficients() as u64 + 9 * u64::from(n) + domain
    }

    /// Returns the exact bytes on the device while the key is loaded.
    pub(super) fn bytes(&self) -> u64 {
        let ShortRows { terms, starts, rows, .. } = &self.short;
        let short = [terms, starts, rows, &self.factors, &self.scale];
        let long = self.long.iter().flat_map(|long| [&long.terms, &long.starts, &long.parts, &long.rows]);
        self.domain.bytes() + short.into_iter().chain(long).map(Buffer::bytes).sum::<u64>()
    }

    /// Returns the bytes of a [`Scratch`], or a few more.
    pub(super) fn per_proof(key: &ProvingKey) -> u64 {
        // A part has more than MAX_SHORT terms, or is one of several of a row whose other parts have MAX_PART terms
        // each.
        padded_total(&[
            3 * ELEMENT * u64::from(key.header.domain_size),
            ELEMENT * (key.n_coefficients() / MAX_SHORT) as u64,
        ])
    }

    /// Computes the scalars of H into [`Scratch::scalars`] from a witness of plain values below r, 32 bytes per wire.
    ///
    /// # Errors
    /// `TooSmall` if the buffer of the witness or the scratch memory is.
    pub(super) fn quotient(&self, stream: Stream, witness: &Buffer, scratch: &Scratch) -> Result<(), BackendError> {
        let Scratch { vectors, sums } = scratch;
        let parts = self.long.as_ref().map_or(0, |long| u64::from(long.part_count));
        let bytes = ELEMENT * self.domain.size();
        for (what, needed, available) in [
            ("bytes of a witness", ELEMENT * self.wires, witness.bytes()),
            ("bytes of a quotient's vectors", 3 * bytes, vectors.bytes()),
            ("bytes of the sums of long rows' parts", ELEMENT * parts, sums.bytes()),
        ] {
            if available < needed {
                return Err(BackendError::TooSmall { what, needed, available });
            }
        }
        self.rows(stream, witness, scratch)?;
        let count = Argument::U32(self.domain.size() as u32);
        let [a, b, c] = [0, 1, 2].map(|i| vectors.argument_at(i * bytes));
        self.each(stream, "qap_products", self.domain.size(), &[c, a, b, count])?;
        self.domain.to_odd_coset(stream, vectors, 3)?;
        self.each(stream, "qap_scalars", self.domain.size(), &[a, b, c, self.scale.argument(), count])
    }

    /// Multiplies the rows of A and B by the witness, into the first two vectors. `quotient` has checked all sizes.
    fn rows(&self, stream: Stream, witness: &Buffer, scratch: &Scratch) -> Result<(), BackendError> {
        let (factors, witness, out) = (self.factors.argument(), witness.argument(), scratch.vectors.argument());
        if let Some(long) = &self.long {
            let sums = scratch.sums.argument();
            let parts = [sums, long.terms.argument(), long.starts.argument(), factors, witness];
            self.sums(stream, "qap_long_parts", long.part_count, &parts)?;
            let rows = [out, sums, long.parts.argument(), long.rows.argument()];
            self.sums(stream, "qap_long_rows", long.count, &rows)?;
        }
        let ShortRows { terms, starts, rows, count } = &self.short;
        let [terms, starts, rows] = [terms, starts, rows].map(Buffer::argument);
        let arguments = [out, terms, starts, rows, factors, witness, Argument::U32(*count)];
        self.each(stream, "qap_short_rows", u64::from(*count), &arguments)
    }

    /// Launches a kernel with a thread for each of `count` elements, on buffers whose sizes `quotient` has checked.
    fn each(
        &self,
        stream: Stream,
        kernel: &'static str,
        count: u64,
        arguments: &[Argument],
    ) -> Result<(), BackendError> {
        if count == 0 {
            return Ok(());
        }
        let grid = (count.div_ceil(u64::from(THREADS)) as u32, 1);
        // SAFETY: the callers pass the arguments that the kernel declares, `count` among them. `index` has checked the
        // indices in the buffers that it made, and `quotient` has checked the sizes of the others.
        unsafe { self.driver.launch(stream, Launch { kernel, grid, block: THREADS, shared: 0, arguments }) }
    }

    /// Launches a kernel with a block for each of `count` sums, on buffers whose sizes `quotient` has checked.
    fn sums(
        &self,
        stream: Stream,
        kernel: &'static str,
        count: u32,
        arguments: &[Argument],
    ) -> Result<(), BackendError> {
        let (block, shared) = (PART_THREADS, PART_THREADS * ELEMENT as u32);
        // SAFETY: as in `each`; there is a start for each of the `count` sums, and one more.
        unsafe { self.driver.launch(stream, Launch { kernel, grid: (count, 1), block, shared, arguments }) }
    }
}

/// Returns the number of an entry's row, counting all rows of A and then those of B.
fn row_of(key: &ProvingKey, matrix: u32, row: u32) -> usize {
    matrix as usize * key.header.domain_size as usize + row as usize
}

/// The layout of the rows.
struct Rows {
    /// Number of terms of each row.
    lengths: Vec<u32>,
    /// Short rows, the longest first.
    short: Vec<u32>,
    /// Start of each slice of short rows, in columns; then the end.
    slices: Vec<u32>,
    /// Long rows.
    long: Vec<u32>,
    /// Start of the terms of each long row; then the end.
    starts: Vec<u32>,
}

impl Rows {
    /// Lays out the rows of checked entries.
    fn of(key: &ProvingKey) -> Self {
        let lengths: Vec<AtomicU32> = (0..2 * key.header.domain_size).map(|_| AtomicU32::new(0)).collect();
        key.sections.coefficients.par_chunks(ENTRY_BYTES * ENTRIES).for_each(|entries| {
            for e in entries.chunks_exact(ENTRY_BYTES).map(entry) {
                lengths[row_of(key, e.matrix, e.row)].fetch_add(1, Ordering::Relaxed);
            }
        });
        let lengths: Vec<u32> = lengths.into_iter().map(AtomicU32::into_inner).collect();

        // A counting sort: rows are counted by length, then put in their places.
        let mut next = [0u32; MAX_SHORT + 1];
        let (mut long, mut starts) = (Vec::new(), vec![0]);
        for (row, &length) in lengths.iter().enumerate() {
            match next.get_mut(length as usize) {
                Some(count) => *count += 1,
                None => {
                    starts.push(starts[long.len()] + length);
                    long.push(row as u32);
                }
            }
        }
        let mut sum = 0;
        for count in next.iter_mut().rev() {
            sum += std::mem::replace(count, sum);
        }
        let mut short = vec![0; sum as usize];
        for (row, &length) in lengths.iter().enumerate() {
            if let Some(next) = next.get_mut(length as usize) {
                short[*next as usize] = row as u32;
                *next += 1;
            }
        }
        let mut slices = vec![0];
        for rows in short.chunks(SLICE) {
            // The first row is the longest.
            slices.push(slices[slices.len() - 1] + lengths[rows[0] as usize]);
        }
        Self { lengths, short, slices, long, starts }
    }

    /// Returns the starts of the parts of long rows among their terms, and of the rows among the
    /// parts, each with the end.
    fn parts(&self) -> (Vec<u32>, Vec<u32>) {
        let (mut starts, mut parts) = (Vec::new(), vec![0]);
        for row in self.starts.windows(2) {
            starts.extend((row[0]..row[1]).step_by(MAX_PART));
            parts.push(starts.len() as u32);
        }
        starts.extend(self.starts.last());
        (starts, parts)
    }

    /// Returns the terms of short rows, slice by slice, and those of long rows. A term has the wire in its low half and
    /// the index of the factor in its high half. The order within a row is arbitrary, because sums do not depend on it.
    fn terms(&self, key: &ProvingKey, factors: &Factors) -> (Vec<u64>, Vec<u64>) {
        let zeros = |count: usize| -> Vec<AtomicU64> { (0..count).map(|_| AtomicU64::new(0)).collect() };
        let short = zeros(self.slices.last().map_or(0, |end| *end as usize * SLICE));
        let long = zeros(self.starts.last().map_or(0, |end| *end as usize));
        // Index of each row's first term; the number of terms that are still missing is counted down.
        let mut first = vec![0u64; self.lengths.len()];
        for (i, row) in self.short.iter().enumerate() {
            first[*row as usize] = u64::from(self.slices[i / SLICE]) * SLICE as u64 + (i % SLICE) as u64;
        }
        for (row, start) in self.long.iter().zip(&self.starts) {
            first[*row as usize] = u64::from(*start);
        }
        let rest: Vec<AtomicU32> = self.lengths.iter().map(|length| AtomicU32::new(*length)).collect();
        let entries = key.sections.coefficients.par_chunks(ENTRY_BYTES * ENTRIES);
        entries.zip(&factors.places).for_each(|(entries, places)| {
            for (e, place) in entries.chunks_exact(ENTRY_BYTES).map(entry).zip(&places.of_entries) {
                let row = row_of(key, e.matrix, e.row);
                let nth = rest[row].fetch_sub(1, Ordering::Relaxed) as usize - 1;
                let factor = places.of_values[*place as usize];
                let first = first[row] as usize;
                let term = if self.lengths[row] as usize <= MAX_SHORT {
                    &short[first + nth * SLICE]
                } else {
                    &long[first + nth]
                };
                term.store(u64::from(factor) << 32 | u64::from(e.signal), Ordering::Relaxed);
            }
        });
        let plain = |terms: Vec<AtomicU64>| terms.into_iter().map(AtomicU64::into_inner).collect();
        (plain(short), plain(long))
    }
}

/// The distinct factors of a key's entries.
struct Factors {
    /// 0, then the values v·R².
    distinct: Vec<[u64; 4]>,
    /// Indices of the factors, for each [`ENTRIES`] entries.
    places: Vec<Places>,
}

/// Indices of the factors of some entries.
struct Places {
    /// Index of each entry's factor among the distinct factors of these entries.
    of_entries: Vec<u32>,
    /// Index of each of these factors among all distinct ones.
    of_values: Vec<u32>,
}

impl Factors {
    fn of(key: &ProvingKey) -> Self {
        let (parts, values): (Vec<Vec<u32>>, Vec<Vec<[u64; 4]>>) =
            key.sections.coefficients.par_chunks(ENTRY_BYTES * ENTRIES).map(distinct).unzip();
        let mut all = vec![[0; 4]];
        let mut known = HashMap::from([([0; 4], 0)]);
        let places = parts.into_iter().zip(values).map(|(of_entries, values)| {
            let of_values = values.into_iter().map(|value| place_of(value, &mut known, &mut all)).collect();
            Places { of_entries, of_values }
        });
        let places = places.collect();
        Self { distinct: all, places }
    }
}

/// Returns the index of each entry's factor among the distinct ones, and the distinct factors.
fn distinct(entries: &[u8]) -> (Vec<u32>, Vec<[u64; 4]>) {
    let (mut values, mut known) = (Vec::new(), HashMap::new());
    // A few values make up most entries, and a hash that withstands chosen values takes longer than everything else.
    let mut recent = [None; 64];
    let places = entries.chunks_exact(ENTRY_BYTES).map(|e| {
        let BigInteger256 { 0: limbs, .. } = entry(e).value;
        let recent = &mut recent[(limbs[0] >> 58) as usize];
        match recent {
            Some((value, place)) if *value == limbs => *place,
            _ => {
                let place = place_of(limbs, &mut known, &mut values);
                *recent = Some((limbs, place));
                place
            }
        }
    });
    (places.collect(), values)
}

fn place_of(value: [u64; 4], known: &mut HashMap<[u64; 4], u32>, values: &mut Vec<[u64; 4]>) -> u32 {
    *known.entry(value).or_insert_with(|| {
        values.push(value);
        values.len() as u32 - 1
    })
}

fn upload_u32(driver: &Arc<dyn Driver>, stream: Stream, words: &[u32]) -> Result<Buffer, BackendError> {
    let bytes: Vec<u8> = words.par_iter().flat_map_iter(|word| word.to_le_bytes()).collect();
    Buffer::with(driver, stream, &bytes)
}

fn upload_u64(driver: &Arc<dyn Driver>, stream: Stream, words: &[u64]) -> Result<Buffer, BackendError> {
    let bytes: Vec<u8> = words.par_iter().flat_map_iter(|word| word.to_le_bytes()).collect();
    Buffer::with(driver, stream, &bytes)
}

#[cfg(all(test, feature = "kernels-on-host"))]
mod tests {
    #![allow(clippy::unwrap_used)]

    use ark_ec::AffineRepr;
    use ark_ff::{FftField, UniformRand, Zero};
    use ark_poly::{EvaluationDomain, Radix2EvaluationDomain};
    use ark_std::rand::{Rng, SeedableRng, rngs::StdRng};
    use bytes::Bytes;

    use super::super::super::Bound;
    use super::super::driver::host::{HostDriver, Order};
    use super::*;
    use crate::model::{G1Affine, G2Affine, KeyHeader, KeySections, VerificationKey, limbs};

    /// A matrix entry: matrix, row, wire, value.
    type Entry = (u32, u32, u32, Fr);

    struct Case {
        domain: u32,
        witness: Vec<Fr>,
        entries: Vec<Entry>,
    }

    impl Case {
        /// Creates a case whose rows, of A and of B alternately, have `lengths` terms; all others are empty.
        fn new(seed: u64, domain: u32, wires: u32, lengths: &[usize]) -> Self {
            let mut rng = StdRng::seed_from_u64(seed);
            let mut witness: Vec<Fr> = (0..wires).map(|_| Fr::rand(&mut rng)).collect();
            witness[0] = Fr::from(1u64);
            for (i, special) in [Fr::zero(), -Fr::from(1u64), Fr::from(1u64)].into_iter().enumerate() {
                if let Some(w) = witness.get_mut(2 * i + 1) {
                    *w = special;
                }
            }
            let few = [Fr::from(1u64), -Fr::from(1u64), Fr::from(2u64), Fr::zero()];
            let mut entries = Vec::new();
            for (i, length) in lengths.iter().enumerate() {
                for _ in 0..*length {
                    let value = if rng.r#gen() { few[rng.gen_range(0..4)] } else { Fr::rand(&mut rng) };
                    let row = (i as u32 / 2).wrapping_mul(5) % domain;
                    entries.push((i as u32 % 2, row, rng.gen_range(0..wires), value));
                }
            }
            // Out of order, as a file may have them.
            for i in (1..entries.len()).rev() {
                entries.swap(i, rng.gen_range(0..=i));
            }
            Self { domain, witness, entries }
        }

        fn key(&self) -> ProvingKey {
            let (g1, g2) = (G1Affine::generator(), G2Affine::generator());
            // The Montgomery form of v·R is v·R².
            let r = Fr::from(2u64).pow([256]);
            let mut coefficients = Vec::new();
            for (matrix, row, wire, value) in &self.entries {
                coefficients.extend([matrix, row, wire].into_iter().flat_map(|word| word.to_le_bytes()));
                coefficients.extend((*value * r).0.0.into_iter().flat_map(u64::to_le_bytes));
            }
            let none = Bytes::new;
            ProvingKey {
                header: KeyHeader {
                    n_vars: self.witness.len() as u32,
                    n_public: 0,
                    domain_size: self.domain,
                    beta_g1: g1,
                    delta_g1: g1,
                    vk: VerificationKey { alpha_g1: g1, beta_g2: g2, gamma_g2: g2, delta_g2: g2, ic: vec![g1] },
                },
                sections: KeySections {
                    coefficients: coefficients.into(),
                    a: none(),
                    b1: none(),
                    b2: none(),
                    c: none(),
                    h: none(),
                },
            }
        }

        /// Returns the rows of A, then those of B, times the witness.
        fn rows(&self) -> Vec<Fr> {
            let mut rows = vec![Fr::zero(); 2 * self.domain as usize];
            for (matrix, row, wire, value) in &self.entries {
                rows[(matrix * self.domain + row) as usize] += *value * self.witness[*wire as usize];
            }
            rows
        }

        /// Returns a·b − c on the odd coset.
        fn scalars(&self) -> Vec<Fr> {
            let n = self.domain as usize;
            let domain = Radix2EvaluationDomain::<Fr>::new(n).unwrap();
            let coset = domain.get_coset(Fr::get_root_of_unity(2 * n as u64).unwrap()).unwrap();
            let rows = self.rows();
            let c: Vec<Fr> = rows[..n].iter().zip(&rows[n..]).map(|(a, b)| *a * b).collect();
            let [a, b, c] = [&rows[..n], &rows[n..], &c].map(|values| coset.fft(&domain.ifft(values)));
            a.iter().zip(b).zip(c).map(|((a, b), c)| *a * b - c).collect()
        }

        fn check(&self, driver: HostDriver) {
            let driver: Arc<dyn Driver> = Arc::new(driver);
            let stream = driver.create_stream().unwrap();
            let key = self.key();
            let constraints = Constraints::index(&driver, stream, &key).unwrap();
            let mut arena = Arena::new(&driver, Scratch::bytes(&constraints)).unwrap();
            let scratch = Scratch::within(&mut arena, &constraints).unwrap();
            let plain: Vec<u64> = self.witness.iter().flat_map(|w| w.into_bigint().0).collect();
            let witness = upload_u64(&driver, stream, &plain).unwrap();
            let n = self.domain as usize;

            constraints.rows(stream, &witness, &scratch).unwrap();
            let mut bytes = vec![0; 2 * 32 * n];
            scratch.vectors.download(stream, 0, &mut bytes).unwrap();
            let rows = bytes.chunks_exact(32).map(|bytes| {
                let mut words = limbs(bytes);
                if words >= Fr::MODULUS {
                    ark_ff::BigInteger::sub_with_borrow(&mut words, &Fr::MODULUS);
                }
                Fr::new_unchecked(words)
            });
            assert!(rows.eq(self.rows()), "rows of A and B");

            // Again in the same memory: nothing may be left from before.
            for _ in 0..2 {
                constraints.quotient(stream, &witness, &scratch).unwrap();
                let mut bytes = vec![0; 32 * n];
                scratch.scalars().download(stream, 0, &mut bytes).unwrap();
                let scalars: Vec<_> = bytes.chunks_exact(32).map(limbs).collect();
                let expected: Vec<_> = self.scalars().iter().map(|x| x.into_bigint()).collect();
                assert!(scalars == expected, "scalars of H");
            }
            assert!(Scratch::bytes(&constraints) <= Constraints::per_proof(&key));
        }
    }

    #[test]
    fn rows_of_any_length() {
        let long =
            [0, 1, 5000, MAX_SHORT, MAX_SHORT + 1, 127, 129, MAX_PART, MAX_PART + 1, 2 * MAX_PART, 2, 3, 64, 0, 31];
        for order in [Order::Ascending, Order::Descending, Order::Random(3)] {
            Case::new(1, 64, 40, &long).check(HostDriver::new(order));
        }
        let short: Vec<usize> = (0..500).map(|i| i * 7 % 5).collect();
        Case::new(2, 256, 300, &short).check(HostDriver::new(Order::Random(4)));
        Case::new(3, 1024, 7, &[3; 1500]).check(HostDriver::new(Order::Descending));
    }

    #[test]
    fn the_smallest_domains() {
        for domain in [1, 2, 4, 8, 16] {
            Case::new(u64::from(domain), domain, 3, &[2, 1, 3, 0, 1]).check(HostDriver::new(Order::Ascending));
            Case::new(u64::from(domain), domain, 1, &[]).check(HostDriver::new(Order::Ascending));
            Case::new(u64::from(domain), domain, 2, &[100, 100]).check(HostDriver::new(Order::Ascending));
        }
    }

    #[test]
    fn more_entries_than_a_task_takes() {
        let lengths: Vec<usize> = (0..2048).map(|i| if i % 2 == 0 { 200 } else { 63 }).collect();
        let case = Case::new(9, 1024, 900, &lengths);
        assert!(case.entries.len() > ENTRIES);
        case.check(HostDriver::new(Order::Ascending));
    }

    #[test]
    fn equal_factors_are_kept_once() {
        let case = Case::new(5, 8, 4, &[0]);
        let entries = (0..100).map(|i| (i % 2, i % 8, i % 4, Fr::from(u64::from(i % 5)))).collect();
        let factors = Factors::of(&Case { entries, ..case }.key());
        assert_eq!(factors.distinct.len(), 5, "0 to 4");
    }

    #[test]
    fn what_does_not_fit_together() {
        let driver: Arc<dyn Driver> = Arc::new(HostDriver::new(Order::Ascending));
        let stream = driver.create_stream().unwrap();
        let case = Case::new(6, 8, 9, &[1, 1]);
        for (at, value) in [(0, 2u32), (4, 8), (8, 9), (0, u32::MAX), (4, u32::MAX), (8, u32::MAX), (40, u32::MAX)] {
            let mut key = case.key();
            let mut entries = key.sections.coefficients.to_vec();
            entries[at..at + 4].copy_from_slice(&value.to_le_bytes());
            key.sections.coefficients = entries.into();
            assert!(Constraints::index(&driver, stream, &key).is_err_and(|e| e.is_callers_fault()));
        }
        let with = |domain| {
            let mut key = case.key();
            key.header.domain_size = domain;
            Constraints::index(&driver, stream, &key).err()
        };
        for domain in [0, 3, 1 << 29] {
            let (what, bound) = ("domain size", Bound::PowerOfTwo { max_log2: 28 });
            assert_eq!(with(domain), Some(BackendError::OutOfRange { what, bound, got: domain.into() }));
        }
        // Not the caller's fault, because other devices may support it.
        let unavailable = with(1 << 28);
        assert!(matches!(&unavailable, Some(BackendError::Unavailable { device, .. }) if device == "cuda:0"));
        let constraints = Constraints::index(&driver, stream, &case.key()).unwrap();
        let mut arena = Arena::new(&driver, Scratch::bytes(&constraints)).unwrap();
        let scratch = Scratch::within(&mut arena, &constraints).unwrap();
        let short = Buffer::new(&driver, 8 * 32).unwrap();
        let error = constraints.quotient(stream, &short, &scratch).err();
        assert_eq!(error, Some(BackendError::TooSmall { what: "bytes of a witness", needed: 288, available: 256 }));
    }
}
