//! The witness, which is secret.

use std::fmt;

use ark_ff::BigInteger256;
use zeroize::Zeroizing;

/// Values of all wires: w\[0\] = 1, then outputs, public inputs, private inputs and internal wires.
///
/// Each is four 64-bit limbs, little-endian, plain (not Montgomery) and below r, which its constructor's caller has
/// checked. Overwritten with zeros when dropped; `Debug` shows only the length.
pub struct Witness(Zeroizing<Vec<BigInteger256>>);

impl Witness {
    /// Wraps values that the caller has checked to be below r.
    pub fn from_canonical(values: Vec<BigInteger256>) -> Self {
        Self(Zeroizing::new(values))
    }

    /// Returns the values, one per wire.
    pub fn values(&self) -> &[BigInteger256] {
        &self.0
    }

    /// Returns the number of wires.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are no wires.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl fmt::Debug for Witness {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Witness({} wires, secret)", self.0.len())
    }
}
