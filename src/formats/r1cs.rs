//! The constraint system of circom, r1cs version 1.
//!
//! Section 1: u32 bytes a value (32), the prime r, u32 nWires, nPubOut, nPubIn, nPrvIn, u64 nLabels,
//! u32 nConstraints. Section 2: for each constraint A, B and C, each u32 n and n terms of {u32 wire, 32-byte plain
//! value}. A witness w satisfies the constraint if (A·w)·(B·w) = C·w. Wires are in the order 1, outputs, public
//! inputs, private inputs, internal.
//!
//! Section 3 (u64 label of each wire) is not read, but its length vouches for nWires. Sections 4 and 5 hold custom gates, which Groth16 has none of.

use std::fmt;

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

/// Bytes of a term.
const TERM_BYTES: usize = 36;
/// Bytes of a wire's label.
const LABEL_BYTES: u64 = 8;
/// Bytes of a constraint without terms.
const CONSTRAINT_BYTES: usize = 12;

/// A constraint system.
#[derive(Debug, Clone)]
pub struct R1cs {
    /// Wires, the constant 1 included.
    pub n_wires: u32,
    /// Public outputs: wires 1 to nPubOut.
    pub n_pub_out: u32,
    /// Public inputs: the wires after the outputs.
    pub n_pub_in: u32,
    /// Private inputs: the wires after the public inputs. circom counts those, too, that the circuit does not use, which have
    /// no wire.
    pub n_prv_in: u32,
    /// Signals of the source before the compiler simplified; as the file says, unchecked.
    pub n_labels: u64,
    /// The constraints.
    pub constraints: Constraints,
}

impl R1cs {
    /// Public values of a proof: outputs and public inputs. Less than `n_wires` in a parsed file.
    pub fn n_public(&self) -> u32 {
        self.n_pub_out + self.n_pub_in
    }
}

/// Compressed rows, three a constraint (A, B, C).
#[derive(Debug, Clone, Default)]
pub struct Constraints {
    /// Terms `offsets[3*i + m] .. offsets[3*i + m + 1]` are those of matrix m of constraint i; 3n + 1 numbers (or
    /// none at all, which is no constraints).
    pub offsets: Vec<u64>,
    /// Terms: a wire below `n_wires` and a coefficient, plain (not Montgomery), below r. A wire may come twice in a
    /// row: its coefficients add up.
    pub terms: Vec<(u32, BigInteger256)>,
}

impl Constraints {
    /// Number of constraints.
    pub fn len(&self) -> usize {
        self.offsets.len().saturating_sub(1) / 3
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The terms of one row; m is 0 for A, 1 for B, 2 for C.
    ///
    /// # Panics
    /// If there is no such constraint.
    pub fn row(&self, constraint: usize, m: usize) -> &[(u32, BigInteger256)] {
        let i = 3 * constraint + m;
        &self.terms[self.offsets[i] as usize..self.offsets[i + 1] as usize]
    }
}

/// Reads a constraint system. Takes about twice the memory that the file does.
///
/// # Errors
/// Another prime, custom gates, counts that disagree, a wire not below nWires, a coefficient not below r.
pub fn parse(file: &[u8]) -> Result<R1cs, FormatError> {
    let sections = Sections::read(file, &R1CS)?;
    for id in [4, 5] {
        // No gate at all is a count of 0.
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
    // Private inputs may be more than there are wires: circom counts those too that it gives none, as nothing asks for them.
    let named = 1 + u64::from(n_pub_out) + u64::from(n_pub_in);
    if named > u64::from(n_wires) {
        let expected = format!("at least {named}: the constant 1, public outputs and public inputs");
        return Err(mismatch(h.place("nWires"), expected, n_wires));
    }
    // nWires decides how large a key gets: what claims it has to pay for it in bytes.
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
    // Exact unless the counts lie, which is found below; never more than the bytes there are.
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

/// Says which row an error is about.
fn at_row(e: FormatError, place: &str) -> FormatError {
    match e {
        FormatError::Truncated { offset, needed, available, .. } => {
            FormatError::Truncated { what: format!("section 2 (constraints), {place}"), offset, needed, available }
        }
        other => other,
    }
}

/// Why a witness does not satisfy a constraint system.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unsatisfied {
    /// The witness has another number of values than there are wires.
    Length {
        /// Wires of the circuit.
        expected: usize,
        /// Values of the witness.
        got: usize,
    },
    /// The first constraint that does not hold.
    Constraint(usize),
}

impl fmt::Display for Unsatisfied {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Length { expected, got } => {
                write!(f, "the circuit has {expected} wires, the witness {got} values: they do not belong together")
            }
            Self::Constraint(i) => write!(f, "the witness does not satisfy constraint {i}"),
        }
    }
}

impl std::error::Error for Unsatisfied {}

/// Checks that a witness satisfies every constraint, in parallel.
///
/// # Errors
/// The first constraint that does not hold, or a witness of the wrong length.
pub fn is_satisfied(r1cs: &R1cs, witness: &Witness) -> Result<(), Unsatisfied> {
    let (expected, got) = (r1cs.n_wires as usize, witness.len());
    if expected != got {
        return Err(Unsatisfied::Length { expected, got });
    }
    let mut w = Zeroizing::new(Vec::with_capacity(got));
    w.extend(witness.values().iter().map(|v| Fr::new(*v)));
    // A Montgomery product takes a factor R off. A coefficient is plain and a wire's value carries R, so a row's sum
    // is plain; A·B then lacks R, and so C·w is multiplied by a plain 1 to lack it too.
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
