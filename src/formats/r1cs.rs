//! circom's constraint system, r1cs version 1.
//!
//! Section 1: u32 bytes per value (32), the prime r, u32 nWires, nPubOut, nPubIn, nPrvIn, u64 nLabels, u32
//! nConstraints. Section 2: for each constraint A, B and C, each of them u32 n and n terms of {u32 wire, 32-byte plain
//! value}. A witness w satisfies the constraint if (A·w)·(B·w) = C·w. The order of wires is 1, outputs, public inputs,
//! private inputs, internal.
//!
//! Section 3 (u64 label of each wire) is not read, but its length confirms nWires. Sections 4 and 5 are custom gates,
//! which Groth16 does not support.

use ark_ff::{BigInteger256, PrimeField};
use num_bigint::BigUint;
use rayon::prelude::*;
use zeroize::Zeroizing;

use super::FormatError;
use super::container::{Cursor, Format, Sections, mismatch};
use crate::model::{FR_MODULUS_DEC, Fr, Witness, limbs};

static R1CS: Format = Format {
    magic: "r1cs",
    version: 1,
    sections: &[(1, "header"), (2, "constraints"), (3, "labels"), (4, "custom gates"), (5, "uses of custom gates")],
};

/// Size of a term, in bytes.
const TERM_BYTES: usize = 36;
/// Size of a wire's label, in bytes.
const LABEL_BYTES: u64 = 8;
/// Size of a constraint without terms, in bytes.
const CONSTRAINT_BYTES: usize = 12;

/// A constraint system.
#[derive(Debug, Clone)]
pub struct R1cs {
    /// Number of wires, including the constant 1.
    pub n_wires: u32,
    /// Number of public outputs: wires 1 to nPubOut.
    pub n_pub_out: u32,
    /// Number of public inputs: the wires after the outputs.
    pub n_pub_in: u32,
    /// Number of private inputs: the wires after the public inputs. circom also counts inputs that the circuit does not
    /// use, which have no wire.
    pub n_prv_in: u32,
    /// Number of signals in the source before the compiler's simplification; not checked.
    pub n_labels: u64,
    /// The constraints.
    pub constraints: Constraints,
}

impl R1cs {
    /// Returns the number of public values, outputs and inputs, which is less than `n_wires` in a parsed file.
    pub fn n_public(&self) -> u32 {
        self.n_pub_out + self.n_pub_in
    }
}

/// Constraints as compressed rows, three per constraint (A, B, C).
#[derive(Debug, Clone, Default)]
pub struct Constraints {
    /// Terms `offsets[3*i + m] .. offsets[3*i + m + 1]` belong to matrix m of constraint i. The length is 3n + 1, or 0
    /// if there are no constraints.
    pub offsets: Vec<u64>,
    /// Terms: a wire below `n_wires`, and a coefficient, plain (not Montgomery) and below r. If a wire occurs twice in
    /// a row, its coefficients add up.
    pub terms: Vec<(u32, BigInteger256)>,
}

impl Constraints {
    /// Returns the number of constraints.
    pub fn len(&self) -> usize {
        self.offsets.len().saturating_sub(1) / 3
    }

    /// Whether there are no constraints.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns the terms of one row; m is 0 for A, 1 for B, 2 for C.
    ///
    /// # Panics
    ///
    /// If there is no such constraint.
    pub fn row(&self, constraint: usize, m: usize) -> &[(u32, BigInteger256)] {
        let i = 3 * constraint + m;
        &self.terms[self.offsets[i] as usize..self.offsets[i + 1] as usize]
    }
}

/// Parses a constraint system. Takes about twice the memory of the file.
///
/// # Errors
///
/// Another prime, custom gates, inconsistent counts, a wire not below nWires, a coefficient not below r.
pub fn parse(file: &[u8]) -> Result<R1cs, FormatError> {
    let sections = Sections::read(file, &R1CS)?;
    for id in [4, 5] {
        // A count of 0 means that there are no gates.
        if let Some(mut gates) = sections.optional(id)
            && (gates.u32("count")? != 0 || gates.remaining() != 0)
        {
            return Err(mismatch(gates.place("count"), "no custom gates, which Groth16 cannot prove", "some"));
        }
    }
    let mut h = sections.section(1)?;
    h.prime("prime", FR_MODULUS_DEC)?;
    let n_wires = h.u32("nWires")?;
    let n_pub_out = h.u32("nPubOut")?;
    let n_pub_in = h.u32("nPubIn")?;
    let n_prv_in = h.u32("nPrvIn")?;
    let n_labels = h.u64("nLabels")?;
    let n_constraints = h.u32("nConstraints")?;
    h.finish()?;
    // There may be more private inputs than wires: circom also counts unused inputs, which have no wire.
    let named = 1 + u64::from(n_pub_out) + u64::from(n_pub_in);
    if named > u64::from(n_wires) {
        let expected = format!("at least {named}: the constant 1, public outputs and public inputs");
        return Err(mismatch(h.place("nWires"), expected, n_wires));
    }
    // nWires determines the size of a key, so a file must contain a corresponding number of bytes.
    let labels = LABEL_BYTES * u64::from(n_wires);
    if let Some(at) = sections.optional(3) {
        if at.remaining() as u64 != labels {
            let expected = format!("{labels} bytes for {n_wires} wires");
            return Err(mismatch(at.place("length"), expected, format!("{} bytes", at.remaining())));
        }
    } else if labels > file.len() as u64 {
        let most = file.len() as u64 / LABEL_BYTES;
        return Err(mismatch(h.place("nWires"), format!("at most {most} in a file of this size"), n_wires));
    }
    let constraints = read_constraints(sections.section(2)?, n_constraints, n_wires)?;
    Ok(R1cs { n_wires, n_pub_out, n_pub_in, n_prv_in, n_labels, constraints })
}

fn read_constraints(mut at: Cursor<'_>, n: u32, n_wires: u32) -> Result<Constraints, FormatError> {
    let needed = u64::from(n) * CONSTRAINT_BYTES as u64;
    if needed > at.remaining() as u64 {
        let got = format!("{} bytes", at.remaining());
        return Err(mismatch(at.place("length"), format!("at least {needed} bytes for {n} constraints"), got));
    }
    // Exact unless the counts are wrong, which is detected below; never larger than the file.
    let mut terms = Vec::with_capacity((at.remaining() - needed as usize) / TERM_BYTES);
    let mut offsets = Vec::with_capacity(3 * n as usize + 1);
    offsets.push(0);
    for row in 0..3 * n as usize {
        let place = |what: &str| format!("constraint {}, {}, {what}", row / 3, ["A", "B", "C"][row % 3]);
        let mut word = [0; 4];
        word.copy_from_slice(at.take(4, "number of terms").map_err(|e| at_row(e, &place("number of terms")))?);
        let count = u32::from_le_bytes(word) as usize;
        let bytes = at.take(count * TERM_BYTES, "terms").map_err(|e| at_row(e, &place("terms")))?;
        for (i, term) in bytes.chunks_exact(TERM_BYTES).enumerate() {
            let (wire, value) = term.split_at(4);
            word.copy_from_slice(wire);
            let (wire, value) = (u32::from_le_bytes(word), limbs(value));
            if wire >= n_wires {
                let what = at.place(&place(&format!("term {i}, wire")));
                return Err(mismatch(what, format!("less than nWires, {n_wires}"), wire));
            }
            if value >= Fr::MODULUS {
                let what = at.place(&place(&format!("term {i}, value")));
                return Err(mismatch(what, format!("below r, {FR_MODULUS_DEC}"), BigUint::from(value)));
            }
            terms.push((wire, value));
        }
        offsets.push(terms.len() as u64);
    }
    at.finish()?;
    Ok(Constraints { offsets, terms })
}

/// Adds the row to an error.
fn at_row(e: FormatError, place: &str) -> FormatError {
    match e {
        FormatError::Truncated { offset, needed, available, .. } => {
            FormatError::Truncated { what: format!("section 2 (constraints), {place}"), offset, needed, available }
        }
        other => other,
    }
}

/// Why a witness does not satisfy a constraint system.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Unsatisfied {
    /// The number of values differs from the number of wires.
    #[error("the circuit has {expected} wires, the witness has {got} values: they do not belong together")]
    Length {
        /// Number of wires of the circuit.
        expected: usize,
        /// Number of values of the witness.
        got: usize,
    },
    /// The first constraint that does not hold.
    #[error("the witness does not satisfy constraint {0}")]
    Constraint(usize),
}

/// Checks that a witness satisfies every constraint, in parallel.
///
/// # Errors
///
/// The first constraint that does not hold, or a witness of the wrong length.
pub fn check_witness(r1cs: &R1cs, witness: &Witness) -> Result<(), Unsatisfied> {
    let (expected, got) = (r1cs.n_wires as usize, witness.len());
    if expected != got {
        return Err(Unsatisfied::Length { expected, got });
    }
    let mut w = Zeroizing::new(Vec::with_capacity(got));
    w.extend(witness.values().iter().map(|v| Fr::new(*v)));
    // A Montgomery product divides by R. A coefficient is plain and a wire's value carries a factor R, so a row's sum
    // is plain. The product A·B is then divided by R, so C·w is multiplied by a plain 1, which also divides it by R.
    let plain = |v: BigInteger256| Fr::new_unchecked(v);
    let sum = |i: usize, m: usize| -> Fr {
        r1cs.constraints.row(i, m).iter().map(|(wire, value)| plain(*value) * w[*wire as usize]).sum()
    };
    let one = plain(BigInteger256::from(1u8));
    let fails = |i: &usize| sum(*i, 0) * sum(*i, 1) != sum(*i, 2) * one;
    match (0..r1cs.constraints.len()).into_par_iter().with_min_len(1 << 10).find_first(fails) {
        None => Ok(()),
        Some(i) => Err(Unsatisfied::Constraint(i)),
    }
}
