//! snarkjs's zkey: a Groth16 proving key.
//!
//! [`parse`] is cheap: it decodes and checks the header, and finds the other sections, which stay where they are.
//! [`check`] checks every byte of them. [`write()`] writes a file that snarkjs can read.
//!
//! | section | content |
//! |---|---|
//! | 1 | u32 protocol: 1 Groth16, 2 PLONK, 10 fflonk |
//! | 2 | primes, counts, α₁ β₁ β₂ γ₂ δ₁ δ₂ |
//! | 3 | IC, nPublic + 1 points of G1 |
//! | 4 | u32 count, then matrix entries of 44 bytes |
//! | 5, 6 | A and B, nVars points of G1 each |
//! | 7 | B, nVars points of G2 |
//! | 8 | C, nVars − nPublic − 1 points of G1 |
//! | 9 | H, domainSize points of G1 |
//! | 10 | contributions to the setup: not read |

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};

use ark_bn254::g2::Config as TwistConfig;
use ark_bn254::{Bn254, FrConfig};
use ark_ec::pairing::Pairing;
use ark_ec::short_weierstrass::Bucket;
use ark_ec::{AffineRepr, CurveGroup};
use ark_ff::{BigInteger256, Field, MontConfig, PrimeField, Zero};
use bytes::Bytes;
use num_bigint::BigUint;
use rayon::prelude::*;
use sha2::{Digest, Sha256};

use super::FormatError;
use super::container::{Cursor, Format, Sections, mismatch, section_name, write_preamble, write_section};
use crate::model::{
    CoefficientEntry, ENTRY_BYTES, FQ_MODULUS_DEC, FR_MODULUS_DEC, Fq, Fr, G1_BYTES, G1Affine, G2, G2_BYTES, G2Affine,
    KeyHeader, KeySections, MAX_DOMAIN, PointSection, ProvingKey, VerificationKey, entry, g1_raw, g2_raw, limb_bytes,
    limbs,
};

static ZKEY: Format = Format {
    magic: "zkey",
    version: 1,
    sections: &[(1, "protocol"), (2, "header"), IC, COEFFICIENTS, A, B1, B2, C, H],
};

const IC: (u32, &str) = (3, "IC");
const COEFFICIENTS: (u32, &str) = (4, "coefficients");
const A: (u32, &str) = (5, "A");
const B1: (u32, &str) = (6, "B1");
const B2: (u32, &str) = (7, "B2");
const C: (u32, &str) = (8, "C");
const H: (u32, &str) = (9, "H");

/// Parses a key: decodes and checks the header, finds the sections, and checks that their lengths match the header. The
/// content of sections 4 to 9 is not checked: see [`check`].
///
/// The key keeps `file` (usually a memory map) alive; sections 4 to 9 are not copied.
///
/// # Errors
///
/// Anything but a well-formed Groth16 key on BN254; the error names other protocols and curves.
pub fn parse(file: Bytes) -> Result<ProvingKey, FormatError> {
    let sections = Sections::read(&file, &ZKEY)?;

    let mut protocol = sections.section(1)?;
    let id = protocol.u32("protocol")?;
    if id != 1 {
        let got = match id {
            2 => "2 (PLONK)".to_owned(),
            10 => "10 (fflonk)".to_owned(),
            n => n.to_string(),
        };
        return Err(mismatch(protocol.place("protocol"), "1 (Groth16)", got));
    }
    protocol.finish()?;

    let mut h = sections.section(2)?;
    h.prime("prime q", FQ_MODULUS_DEC)?;
    h.prime("prime r", FR_MODULUS_DEC)?;
    let n_vars = h.u32("nVars")?;
    let n_public = h.u32("nPublic")?;
    let domain_size = h.u32("domainSize")?;
    check_counts(n_vars, n_public, domain_size)?;
    let alpha_g1 = header_point(&mut h, "alpha1", decode_g1)?;
    let beta_g1 = header_point(&mut h, "beta1", decode_g1)?;
    let beta_g2 = header_point(&mut h, "beta2", decode_g2)?;
    let gamma_g2 = header_point(&mut h, "gamma2", decode_g2)?;
    let delta_g1 = header_point(&mut h, "delta1", decode_g1)?;
    let delta_g2 = header_point(&mut h, "delta2", decode_g2)?;
    h.finish()?;

    let mut coefficients = sections.section(COEFFICIENTS.0)?;
    let claimed = coefficients.u32("number of entries")?;
    if u64::from(claimed) * ENTRY_BYTES as u64 != coefficients.remaining() as u64 {
        return Err(wrong_length(COEFFICIENTS, claimed, ENTRY_BYTES, coefficients.remaining()));
    }

    let slice = |s: (u32, &'static str)| Ok(file.slice(sections.section(s.0)?.rest()));
    let key_sections = KeySections {
        coefficients: file.slice(coefficients.rest()),
        a: slice(A)?,
        b1: slice(B1)?,
        b2: slice(B2)?,
        c: slice(C)?,
        h: slice(H)?,
    };
    let ic = slice(IC)?;
    let counts = Counts { n_vars, n_public, domain_size };
    check_lengths(counts, ic.len(), &key_sections)?;
    let ic = ic
        .chunks_exact(G1_BYTES)
        .enumerate()
        .map(|(i, p)| decode_g1(p).map_err(|fault| fault.at(IC, i)))
        .collect::<Result<_, _>>()?;

    Ok(ProvingKey {
        header: KeyHeader {
            n_vars,
            n_public,
            domain_size,
            beta_g1,
            delta_g1,
            vk: VerificationKey { alpha_g1, beta_g2, gamma_g2, delta_g2, ic },
        },
        sections: key_sections,
    })
}

/// Checks every byte of a key, in parallel:
///
/// - all coordinates are below q, all points are on their curve, and those of G2 are in the group of order r;
/// - matrix numbers are 0 or 1, rows below domainSize, signals below nVars, values below r;
/// - the last nPublic + 1 rows are those added by the setup, A\[row\]\[s\] = 1 for s = 0 … nPublic, which keep the
///   polynomials of public wires linearly independent;
/// - β and δ are the same number in G1 and in G2.
///
/// It cannot check that the points belong to the matrices; that would take the transcript of the setup. Proofs by a
/// wrong key do not verify.
///
/// # Errors
///
/// The first fault, by section number and then by position in the section.
pub fn check(key: &ProvingKey) -> Result<(), FormatError> {
    check_reporting(key, &|_| {})
}

/// [`check`], which from time to time reports its progress, 0 to 1, to `on`.
pub fn check_reporting(key: &ProvingKey, on: &(dyn Fn(f32) + Sync)) -> Result<(), FormatError> {
    let (header, s) = (&key.header, &key.sections);
    check_counts(header.n_vars, header.n_public, header.domain_size)?;
    check_lengths(Counts::of(header), header.vk.ic.len() * G1_BYTES, s)?;
    check_header_points(header)?;

    // Weights in bytes: a point of G2 takes about eight times as long as one of G1, an entry almost no time.
    let total = (s.coefficients.len() + s.a.len() + s.b1.len() + 4 * s.b2.len() + s.c.len() + s.h.len()) as u64;
    let done = AtomicU64::new(0);
    let progress = |bytes: usize| {
        let now = done.fetch_add(bytes as u64, Ordering::Relaxed) + bytes as u64;
        on(now as f32 / total.max(1) as f32);
    };
    check_entries(header, &s.coefficients, &progress)?;
    check_points_g1(A, &s.a, &progress)?;
    check_points_g1(B1, &s.b1, &progress)?;
    check_points_g2(B2, &s.b2, &progress)?;
    check_points_g1(C, &s.c, &progress)?;
    check_points_g1(H, &s.h, &progress)?;
    on(1.0);
    Ok(())
}

/// Writes a key as snarkjs does, with sections 1 to 10 in order.
///
/// Section 10 says that the circuit's hash is unknown (64 zeros) and that there are no contributions. snarkjs can prove
/// with such a key, export its verification key and contribute to it, but `snarkjs zkey verify` rejects it.
pub fn write(key: &ProvingKey, out: &mut dyn io::Write) -> io::Result<()> {
    let (h, s) = (&key.header, &key.sections);
    write_preamble(&ZKEY, 10, out)?;
    write_section(1, &[&1u32.to_le_bytes()], out)?;

    let mut header = Vec::with_capacity(660);
    header.extend(32u32.to_le_bytes());
    push_limbs(&mut header, Fq::MODULUS);
    header.extend(32u32.to_le_bytes());
    push_limbs(&mut header, Fr::MODULUS);
    for n in [h.n_vars, h.n_public, h.domain_size] {
        header.extend(n.to_le_bytes());
    }
    push_g1(&mut header, &h.vk.alpha_g1);
    push_g1(&mut header, &h.beta_g1);
    push_g2(&mut header, &h.vk.beta_g2);
    push_g2(&mut header, &h.vk.gamma_g2);
    push_g1(&mut header, &h.delta_g1);
    push_g2(&mut header, &h.vk.delta_g2);
    write_section(2, &[&header], out)?;

    write_section(IC.0, &[&encode_g1(&h.vk.ic)], out)?;
    let n = u32::try_from(key.n_coefficients())
        .map_err(|_| io::Error::new(io::ErrorKind::InvalidInput, "a zkey holds fewer than 2^32 matrix entries"))?;
    write_section(COEFFICIENTS.0, &[&n.to_le_bytes(), &s.coefficients], out)?;
    for (section, bytes) in [(A, &s.a), (B1, &s.b1), (B2, &s.b2), (C, &s.c), (H, &s.h)] {
        write_section(section.0, &[bytes], out)?;
    }
    write_section(10, &[&[0; 64], &0u32.to_le_bytes()], out)
}

/// Encodes points of G1 as in a zkey: 64 bytes each.
pub fn encode_g1(points: &[G1Affine]) -> Vec<u8> {
    encode(points, G1_BYTES, push_g1)
}

/// Encodes points of G2 as in a zkey: 128 bytes each.
pub fn encode_g2(points: &[G2Affine]) -> Vec<u8> {
    encode(points, G2_BYTES, push_g2)
}

/// Encodes matrix entries (matrix: 0 = A, 1 = B; row; signal; value) as in a zkey, without the leading count: 44 bytes
/// each, the value v as v·R² mod r.
pub fn encode_coefficients(entries: impl IntoIterator<Item = (u32, u32, u32, Fr)>) -> Vec<u8> {
    // The field element R, whose Montgomery form is R².
    let r = Fr::new_unchecked(FrConfig::R2);
    let entries = entries.into_iter();
    let mut out = Vec::with_capacity(entries.size_hint().0.saturating_mul(ENTRY_BYTES));
    for (matrix, row, signal, value) in entries {
        out.extend(matrix.to_le_bytes());
        out.extend(row.to_le_bytes());
        out.extend(signal.to_le_bytes());
        push_limbs(&mut out, (value * r).0);
    }
    out
}

/// Decodes the value of a matrix entry, the inverse of [`encode_coefficients`]; `None` if it is not canonical.
pub fn decode_coefficient(entry: &CoefficientEntry) -> Option<Fr> {
    // Read as a Montgomery form, v·R² represents v·R, which is the Montgomery form of v.
    (entry.value < Fr::MODULUS).then(|| Fr::new_unchecked(Fr::new_unchecked(entry.value).into_bigint()))
}

// ---------------------------------------------------------------------------------------------------------------
// Counts and lengths

#[derive(Clone, Copy)]
struct Counts {
    n_vars: u32,
    n_public: u32,
    domain_size: u32,
}

impl Counts {
    fn of(h: &KeyHeader) -> Self {
        Self { n_vars: h.n_vars, n_public: h.n_public, domain_size: h.domain_size }
    }
}

fn header_place(field: &str) -> String {
    format!("section 2 (header), {field}")
}

fn check_counts(n_vars: u32, n_public: u32, domain_size: u32) -> Result<(), FormatError> {
    if n_public >= n_vars {
        return Err(mismatch(header_place("nPublic"), format!("less than nVars, {n_vars}"), n_public));
    }
    if !domain_size.is_power_of_two() || domain_size > MAX_DOMAIN {
        return Err(mismatch(header_place("domainSize"), "a power of two of at most 2^28", domain_size));
    }
    if n_public >= domain_size {
        return Err(mismatch(
            header_place("domainSize"),
            format!("more than {n_public}: a row for the constant and for each public wire"),
            domain_size,
        ));
    }
    Ok(())
}

/// Checks the lengths of all sections, which follow from the counts.
fn check_lengths(n: Counts, ic_bytes: usize, s: &KeySections) -> Result<(), FormatError> {
    let ic = PointSection { points: n.n_public + 1, point_bytes: G1_BYTES, bytes: ic_bytes };
    let others = [A, B1, B2, C, H].into_iter().zip(s.points(n.n_vars, n.n_public, n.domain_size));
    for (section, p) in [(IC, ic)].into_iter().chain(others) {
        if p.expected() != p.bytes as u64 {
            return Err(wrong_length(section, p.points, p.point_bytes, p.bytes));
        }
    }
    if !s.coefficients.len().is_multiple_of(ENTRY_BYTES) {
        return Err(mismatch(
            section_name(COEFFICIENTS),
            format!("entries of {ENTRY_BYTES} bytes"),
            format!("{} bytes", s.coefficients.len()),
        ));
    }
    Ok(())
}

fn wrong_length(section: (u32, &str), items: u32, size: usize, got: usize) -> FormatError {
    let expected = format!("{} bytes ({items} items of {size})", u64::from(items) * size as u64);
    mismatch(format!("{}, length", section_name(section)), expected, format!("{got} bytes"))
}

// ---------------------------------------------------------------------------------------------------------------
// Points

/// A fault of a point.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Fault {
    /// A coordinate is not below q: its name and value.
    Coordinate(&'static str, BigInteger256),
    /// The point is not on the curve, with this equation.
    Curve(&'static str),
    /// The point is on the curve, but outside the group of order r.
    Subgroup,
    /// The point is infinity where that is invalid.
    Infinity,
}

impl Fault {
    fn at(self, section: (u32, &str), index: usize) -> FormatError {
        self.in_place(format!("{}, point {index}", section_name(section)))
    }

    fn in_place(self, what: String) -> FormatError {
        match self {
            Self::Coordinate(name, got) => {
                mismatch(format!("{what}, {name}"), format!("below q, {FQ_MODULUS_DEC}"), BigUint::from(got))
            }
            Self::Curve(equation) => mismatch(what, format!("a point on {equation}"), "one that is not on it"),
            Self::Subgroup => mismatch(what, "a point in the group of order r", "one on the curve outside the group"),
            Self::Infinity => mismatch(what, "a point other than infinity", "infinity"),
        }
    }
}

fn canonical(bytes: &[u8], names: &[&'static str]) -> Result<(), Fault> {
    for (coordinate, name) in bytes.chunks_exact(32).zip(names) {
        let v = limbs(coordinate);
        if v >= Fq::MODULUS {
            return Err(Fault::Coordinate(name, v));
        }
    }
    Ok(())
}

/// Decodes and checks a point of G1 from 64 bytes. The whole curve has order r.
fn decode_g1(bytes: &[u8]) -> Result<G1Affine, Fault> {
    canonical(bytes, &["x", "y"])?;
    let p = g1_raw(bytes);
    if p.is_on_curve() { Ok(p) } else { Err(Fault::Curve("y^2 = x^3 + 3")) }
}

/// Decodes a point of the curve that G2 is a subgroup of, from 128 bytes.
fn decode_twist(bytes: &[u8]) -> Result<G2Affine, Fault> {
    canonical(bytes, &["x.c0", "x.c1", "y.c0", "y.c1"])?;
    let p = g2_raw(bytes);
    if p.is_on_curve() { Ok(p) } else { Err(Fault::Curve("y^2 = x^3 + 3/(9+u)")) }
}

/// Decodes and checks a point of G2 from 128 bytes.
fn decode_g2(bytes: &[u8]) -> Result<G2Affine, Fault> {
    let p = decode_twist(bytes)?;
    if p.is_in_correct_subgroup_assuming_on_curve() { Ok(p) } else { Err(Fault::Subgroup) }
}

/// Reads the next point of the header. Infinity would mean that α, β, γ or δ is zero: with γ or δ zero there is no key
/// at all, with α or β zero anyone could forge proofs.
fn header_point<P: AffineRepr>(
    at: &mut Cursor<'_>,
    name: &str,
    decode: fn(&[u8]) -> Result<P, Fault>,
) -> Result<P, FormatError> {
    let bytes = at.take(2 * 32 * P::BaseField::extension_degree() as usize, name)?;
    decode(bytes)
        .and_then(|p| if p.is_zero() { Err(Fault::Infinity) } else { Ok(p) })
        .map_err(|fault| fault.in_place(at.place(name)))
}

/// Checks header and IC, for a key that does not come from [`parse`], and that β and δ are the same in both groups.
fn check_header_points(h: &KeyHeader) -> Result<(), FormatError> {
    let g1 = |name: &str, p: &G1Affine| {
        let fault = decode_g1(&encode_g1(&[*p])).err().or(p.is_zero().then_some(Fault::Infinity));
        fault.map_or(Ok(()), |f| Err(f.in_place(header_place(name))))
    };
    let g2 = |name: &str, p: &G2Affine| {
        let fault = decode_g2(&encode_g2(&[*p])).err().or(p.is_zero().then_some(Fault::Infinity));
        fault.map_or(Ok(()), |f| Err(f.in_place(header_place(name))))
    };
    g1("alpha1", &h.vk.alpha_g1)?;
    g1("beta1", &h.beta_g1)?;
    g2("beta2", &h.vk.beta_g2)?;
    g2("gamma2", &h.vk.gamma_g2)?;
    g1("delta1", &h.delta_g1)?;
    g2("delta2", &h.vk.delta_g2)?;
    check_points_g1(IC, &encode_g1(&h.vk.ic), &|_| {})?;

    for (name, in_g1, in_g2) in [("beta", h.beta_g1, h.vk.beta_g2), ("delta", h.delta_g1, h.vk.delta_g2)] {
        // e(x·G₁, G₂) · e(−G₁, y·G₂) is 1 only if x = y.
        let g1 = [in_g1, -G1Affine::generator()];
        if !Bn254::multi_pairing(g1, [G2Affine::generator(), in_g2]).is_zero() {
            return Err(mismatch(header_place(name), "the same number in G1 and in G2", "different numbers"));
        }
    }
    Ok(())
}

/// Number of points that one task checks.
const POINTS_PER_TASK: usize = 1 << 13;

/// Number of points of G2 in a batch: enough for the buckets of [`all_in_g2`] to pay off, and 32 MiB.
const POINTS_PER_BATCH: usize = 1 << 18;

fn check_points_g1(section: (u32, &str), bytes: &[u8], done: &(dyn Fn(usize) + Sync)) -> Result<(), FormatError> {
    let fault = bytes.par_chunks(G1_BYTES * POINTS_PER_TASK).enumerate().find_map_first(|(task, part)| {
        let mut points = part.chunks_exact(G1_BYTES).enumerate();
        let fault = points.find_map(|(i, p)| decode_g1(p).err().map(|fault| (i, fault)));
        done(part.len());
        fault.map(|(i, fault)| fault.at(section, task * POINTS_PER_TASK + i))
    });
    fault.map_or(Ok(()), Err)
}

/// Checks points of G2 batch by batch, each batch in parallel.
fn check_points_g2(section: (u32, &str), bytes: &[u8], done: &(dyn Fn(usize) + Sync)) -> Result<(), FormatError> {
    for (batch, part) in bytes.chunks(G2_BYTES * POINTS_PER_BATCH).enumerate() {
        let off_curve = part.par_chunks_exact(G2_BYTES).position_first(|p| decode_twist(p).is_err());
        let on_curve = &part[..off_curve.map_or(part.len(), |i| i * G2_BYTES)];
        let points: Vec<_> = on_curve.par_chunks_exact(G2_BYTES).map(g2_raw).collect();
        let outside = first_outside_g2(&points, on_curve);
        if let Some(i) = outside.or(off_curve) {
            let fault = decode_g2(&part[i * G2_BYTES..(i + 1) * G2_BYTES]).map(drop);
            return fault.map_err(|fault| fault.at(section, batch * POINTS_PER_BATCH + i));
        }
        done(4 * part.len());
    }
    Ok(())
}

/// Number of rounds of [`all_in_g2`].
const ROUNDS: usize = 8;
/// Number of bits of a coefficient in each round: the cofactor of G2 has no divisor between 1 and 2^13.
const ROUND_BITS: usize = 13;
/// Fewer points than this are tested one by one.
const BATCH_FROM: usize = 1 << 12;

/// Returns the index of the first of `points`, all on the twist, that is not in G2. `bytes` are their encodings.
fn first_outside_g2(points: &[G2Affine], bytes: &[u8]) -> Option<usize> {
    if points.len() < BATCH_FROM {
        return points.par_iter().position_first(|p| !p.is_in_correct_subgroup_assuming_on_curve());
    }
    if all_in_g2(points, bytes) {
        return None;
    }
    let half = points.len() / 2;
    let (points, bytes) = (points.split_at(half), bytes.split_at(half * G2_BYTES));
    first_outside_g2(points.0, bytes.0).or_else(|| first_outside_g2(points.1, bytes.1).map(|i| half + i))
}

/// Whether all `points`, which are on the twist, are in G2.
///
/// One random combination would not suffice: the index of G2 in the twist's group is divisible by 10069, so a point
/// outside G2 passes with probability 1/10069, however long the coefficients are. But with coefficients below 2^13,
/// which is less than the smallest prime factor of the index, a point outside G2 spoils the sum for all values of its
/// coefficient except at most one, whatever the other coefficients are. So it passes a round with probability at most
/// 2^−13, and eight rounds with 2^−104. The coefficients are derived from a hash of the points (`bytes`, their
/// encodings), so the result is deterministic, and an attacker who searches for points that match their coefficients
/// must hash about 2^104 sections: more work than breaking the curve, which takes about 2^100.
///
/// With buckets, a round costs one addition per point; testing a single point costs about 190.
fn all_in_g2(points: &[G2Affine], bytes: &[u8]) -> bool {
    let seed = Sha256::digest(bytes);
    let coefficients: Vec<[u16; ROUNDS]> = (0..points.len() as u64)
        .into_par_iter()
        .map(|i| {
            let digest = Sha256::new_with_prefix(seed).chain_update(i.to_le_bytes()).finalize();
            std::array::from_fn(|k| u16::from_le_bytes([digest[2 * k], digest[2 * k + 1]]) & ((1 << ROUND_BITS) - 1))
        })
        .collect();
    (0..ROUNDS).into_par_iter().all(|round| {
        let mut buckets = vec![Bucket::<TwistConfig>::ZERO; 1 << ROUND_BITS];
        for (p, k) in points.iter().zip(&coefficients) {
            buckets[usize::from(k[round])] += p;
        }
        // Σ k·bucket[k] as a sum of running sums, without bucket 0.
        let (mut running, mut sum) = (Bucket::ZERO, Bucket::ZERO);
        for bucket in buckets.iter().skip(1).rev() {
            running += bucket;
            sum += &running;
        }
        // Converted through Jacobian coordinates: in ark-ec 0.6, the direct conversion to affine coordinates gives
        // another point.
        G2::from(sum).into_affine().is_in_correct_subgroup_assuming_on_curve()
    })
}

// ---------------------------------------------------------------------------------------------------------------
// Matrix entries

fn entry_place(i: usize, field: &str) -> String {
    format!("{}, entry {i}, {field}", section_name(COEFFICIENTS))
}

fn check_entries(h: &KeyHeader, bytes: &[u8], done: &(dyn Fn(usize) + Sync)) -> Result<(), FormatError> {
    let fault = bytes.par_chunks(ENTRY_BYTES * POINTS_PER_TASK).enumerate().find_map_first(|(task, part)| {
        let fault = part.chunks_exact(ENTRY_BYTES).enumerate().find_map(|(i, e)| {
            let (i, e) = (task * POINTS_PER_TASK + i, entry(e));
            if e.matrix > 1 {
                Some(mismatch(entry_place(i, "matrix"), "0 (A) or 1 (B)", e.matrix))
            } else if e.row >= h.domain_size {
                Some(mismatch(entry_place(i, "row"), format!("less than domainSize, {}", h.domain_size), e.row))
            } else if e.signal >= h.n_vars {
                Some(mismatch(entry_place(i, "signal"), format!("less than nVars, {}", h.n_vars), e.signal))
            } else if e.value >= Fr::MODULUS {
                let expected = format!("below r, {FR_MODULUS_DEC}");
                Some(mismatch(entry_place(i, "value"), expected, BigUint::from(e.value)))
            } else {
                None
            }
        });
        done(part.len());
        fault
    });
    fault.map_or_else(|| check_public_rows(h, bytes), Err)
}

/// Checks the last nPublic + 1 rows: A\[row\]\[s\] = 1 and nothing else.
fn check_public_rows(h: &KeyHeader, bytes: &[u8]) -> Result<(), FormatError> {
    let rows = h.n_public + 1;
    let last = bytes.par_chunks_exact(ENTRY_BYTES).map(|e| entry(e).row).max();
    let used = last.map_or(0, |row| u64::from(row) + 1);
    if used < u64::from(rows) {
        let what = format!("{}, rows", section_name(COEFFICIENTS));
        return Err(mismatch(what, format!("at least {rows}, one for each public wire and the constant"), used));
    }
    let first = (used - u64::from(rows)) as u32;
    let mut seen = vec![false; rows as usize];
    let own: Vec<_> = bytes
        .par_chunks_exact(ENTRY_BYTES)
        .enumerate()
        .map(|(i, e)| (i, entry(e)))
        .filter(|(_, e)| e.row >= first)
        .collect();
    for (i, e) in own {
        let signal = e.row - first;
        let expected = format!("one entry in row {}: matrix 0 (A), signal {signal}, value 1", e.row);
        if e.matrix != 0 || e.signal != signal || decode_coefficient(&e) != Some(Fr::ONE) {
            let value = decode_coefficient(&e).map(|v| v.into_bigint()).unwrap_or_default();
            let got = format!("matrix {}, signal {}, value {}", e.matrix, e.signal, BigUint::from(value));
            return Err(mismatch(entry_place(i, "a row of a public wire"), expected, got));
        }
        if std::mem::replace(&mut seen[signal as usize], true) {
            return Err(mismatch(entry_place(i, "a row of a public wire"), expected, "a second entry"));
        }
    }
    match seen.iter().position(|s| !s) {
        None => Ok(()),
        Some(signal) => Err(mismatch(
            format!("{}, row {}", section_name(COEFFICIENTS), first as usize + signal),
            format!("one entry: matrix 0 (A), signal {signal}, value 1"),
            "none",
        )),
    }
}

// ---------------------------------------------------------------------------------------------------------------
// Encoding

fn encode<P: Sync>(points: &[P], size: usize, push: fn(&mut Vec<u8>, &P)) -> Vec<u8> {
    let parts: Vec<Vec<u8>> = points
        .par_chunks(POINTS_PER_TASK)
        .map(|part| {
            let mut out = Vec::with_capacity(part.len() * size);
            part.iter().for_each(|p| push(&mut out, p));
            out
        })
        .collect();
    parts.concat()
}

fn push_limbs(out: &mut Vec<u8>, v: BigInteger256) {
    out.extend_from_slice(&limb_bytes(&v));
}

fn push_g1(out: &mut Vec<u8>, p: &G1Affine) {
    // Infinity is (0, 0) in memory as in the file.
    [p.x, p.y].iter().for_each(|c| push_limbs(out, c.0));
}

fn push_g2(out: &mut Vec<u8>, p: &G2Affine) {
    [p.x.c0, p.x.c1, p.y.c0, p.y.c1].iter().for_each(|c| push_limbs(out, c.0));
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use ark_ec::CurveConfig;

    use super::*;

    /// The assumption of [`all_in_g2`]: no number from 2 to 2^13 divides the cofactor.
    #[test]
    fn the_cofactor_has_no_small_divisor() {
        let cofactor = <TwistConfig as CurveConfig>::COFACTOR.iter().rev().fold(BigUint::ZERO, |n, l| (n << 64) + l);
        assert!((2u32..=1 << ROUND_BITS).all(|d| &cofactor % d != BigUint::ZERO));
        assert_eq!(&cofactor % 10069u32, BigUint::ZERO);
    }

    /// A point of order 10069 passes one combination in 10069; the batch test must find it at any position.
    #[test]
    fn a_point_of_small_order_does_not_hide_in_a_batch() {
        let cofactor = <TwistConfig as CurveConfig>::COFACTOR.iter().rev().fold(BigUint::ZERO, |n, l| (n << 64) + l);
        let cleared = (BigUint::from(Fr::MODULUS) * cofactor) / 10069u32;
        let small = (1u64..)
            .filter_map(|x| G2Affine::get_point_from_x_unchecked(ark_bn254::Fq2::from(x), false))
            .map(|p| p.mul_bigint(cleared.to_u64_digits()).into_affine())
            .find(|p| !p.is_zero())
            .unwrap();
        assert!(small.mul_bigint([10069]).into_affine().is_zero());
        assert!(!small.is_in_correct_subgroup_assuming_on_curve());

        let g = G2Affine::generator();
        let mut points: Vec<G2Affine> = vec![g; BATCH_FROM + 3];
        points[7] = G2Affine::zero();
        assert!(all_in_g2(&points, &encode_g2(&points)));
        for at in [0, 7, 2000, BATCH_FROM + 2] {
            let mut spoiled = points.clone();
            spoiled[at] = (spoiled[at] + small).into_affine();
            let bytes = encode_g2(&spoiled);
            assert!(!all_in_g2(&spoiled, &bytes), "{at}");
            let found = check_points_g2(B2, &bytes, &|_| {});
            assert_eq!(found, Err(Fault::Subgroup.at(B2, at)));
        }
    }
}
