//! Numbers in the memory of circom's programs, of either version.
//!
//! A number takes 40 bytes: a 32-bit short value, 32 bits of kind, then a 32-byte long value. Bit 31 of the kind says
//! that the long value is the valid one, bit 30 that it is in Montgomery form.

use ark_ff::{BigInteger, BigInteger256, PrimeField};
use zeroize::Zeroize;

use super::WitnessError;
use super::run::Run;
use crate::model::{Fr, limb_bytes, limbs};

/// Size of a number, bytes.
pub(super) const BYTES: u32 = 40;
/// Bit of the kind: the long value is the valid one.
pub(super) const LONG: u32 = 1 << 31;
/// Bit of the kind: the long value is in Montgomery form.
pub(super) const MONTGOMERY: u32 = 1 << 30;

/// Writes a number in the form that the program itself would give it: short if it fits.
pub(super) fn write(run: &mut Run, at: u32, value: &BigInteger256) -> Result<(), WitnessError> {
    let mut bytes = [0; BYTES as usize];
    let negative = -Fr::new(*value);
    match (short(value), short(&negative.into_bigint())) {
        (Some(v), _) if v < 1 << 31 => bytes[..4].copy_from_slice(&v.to_le_bytes()),
        (_, Some(v)) if v <= 1 << 31 => bytes[..4].copy_from_slice(&v.wrapping_neg().to_le_bytes()),
        _ => {
            bytes[4..8].copy_from_slice(&LONG.to_le_bytes());
            bytes[8..].copy_from_slice(&limb_bytes(value));
        }
    }
    let done = run.write(at, &bytes);
    bytes.zeroize();
    done
}

fn short(value: &BigInteger256) -> Option<u32> {
    match value.0 {
        [v, 0, 0, 0] => u32::try_from(v).ok(),
        _ => None,
    }
}

/// Reads a number in any of its forms.
pub(super) fn read(run: &Run, at: u32) -> Result<BigInteger256, WitnessError> {
    let bytes: [u8; BYTES as usize] = run.bytes(at)?;
    let (words, _) = bytes.as_chunks::<4>();
    let kind = u32::from_le_bytes(words[1]);
    if kind & LONG == 0 {
        let short = i32::from_le_bytes(words[0]);
        let size = BigInteger256::from(short.unsigned_abs());
        let mut value = if short < 0 { Fr::MODULUS } else { size };
        if short < 0 {
            value.sub_with_borrow(&size);
        }
        return Ok(value);
    }
    let value = limbs(&bytes[8..]);
    if kind & MONTGOMERY == 0 {
        return Ok(value);
    }
    if value >= Fr::MODULUS {
        return Err(WitnessError::Trap("a number in Montgomery form is not below r".into()));
    }
    Ok(Fr::new_unchecked(value).into_bigint())
}
