//! snarkjs's witness file, wtns version 2.
//!
//! Section 1: u32 bytes per value (32), the prime r, u32 count. Section 2: the values, 32 bytes each, little-endian,
//! plain. Value 0 is the constant 1.

use std::io;

use ark_ff::{BigInteger256, PrimeField};
use rayon::prelude::*;

use super::FormatError;
use super::container::{Format, Sections, mismatch, write_preamble, write_section};
use crate::model::{FR_MODULUS_DEC, Fr, Witness, limb_bytes, limbs};

static WTNS: Format = Format { magic: "wtns", version: 2, sections: &[(1, "header"), (2, "values")] };

/// Number of values that are checked or copied at a time.
const VALUES_PER_PART: usize = 1 << 12;

/// Parses a witness.
///
/// # Errors
///
/// Another prime, inconsistent lengths, a value not below r, value 0 other than 1. Messages contain a value's index,
/// never the value.
pub fn parse(file: &[u8]) -> Result<Witness, FormatError> {
    let sections = Sections::read(file, &WTNS)?;
    let mut header = sections.section(1)?;
    header.prime("prime", FR_MODULUS_DEC)?;
    let count = header.u32("number of values")?;
    header.finish()?;

    let mut values = sections.section(2)?;
    let place = values.place("length");
    let bytes = values.take(values.remaining(), "values")?;
    let expected = u64::from(count) * 32;
    if bytes.len() as u64 != expected {
        return Err(mismatch(
            place,
            format!("{expected} bytes ({count} values of 32)"),
            format!("{} bytes", bytes.len()),
        ));
    }

    // A witness from here on, so that an error wipes it.
    let witness = Witness::from_canonical(bytes.par_chunks_exact(32).with_min_len(1 << 14).map(limbs).collect());
    let values = witness.values();
    if values.first() != Some(&BigInteger256::one()) {
        let got = if values.is_empty() { "no values" } else { "another value" };
        return Err(mismatch("section 2 (values), value 0", "the constant 1", got));
    }
    let too_big = values.par_chunks(VALUES_PER_PART).enumerate().find_map_first(|(part, values)| {
        // For almost every value, the highest limb decides.
        let i = values.iter().position(|v| v.0[3] >= Fr::MODULUS.0[3] && *v >= Fr::MODULUS)?;
        Some(part * VALUES_PER_PART + i)
    });
    match too_big {
        None => Ok(witness),
        Some(i) => Err(mismatch(format!("section 2 (values), value {i}"), "a number below r", "one that is not")),
    }
}

/// Writes a witness, byte for byte as snarkjs does.
pub fn write(witness: &Witness, out: &mut dyn io::Write) -> io::Result<()> {
    let values = witness.values();
    let count = u32::try_from(values.len())
        .map_err(|_| io::Error::new(io::ErrorKind::InvalidInput, "a wtns file holds fewer than 2^32 values"))?;
    write_preamble(&WTNS, 2, out)?;
    write_section(1, &[&32u32.to_le_bytes(), &bytes_of(&[Fr::MODULUS]), &count.to_le_bytes()], out)?;
    out.write_all(&2u32.to_le_bytes())?;
    out.write_all(&(u64::from(count) * 32).to_le_bytes())?;
    values.chunks(VALUES_PER_PART).try_for_each(|part| out.write_all(&bytes_of(part)))
}

/// Returns the values as little-endian bytes, which are wiped when dropped because they may be a witness.
fn bytes_of(values: &[BigInteger256]) -> zeroize::Zeroizing<Vec<u8>> {
    let mut out = Vec::with_capacity(values.len() * 32);
    values.iter().for_each(|v| out.extend_from_slice(&limb_bytes(v)));
    zeroize::Zeroizing::new(out)
}
