//! What backends check of a key before they load it, and the coset of its quotient.

use ark_ff::{FftField, PrimeField};
use rayon::prelude::*;

use super::{BackendError, Bound};
use crate::model::{ENTRY_BYTES, Fr, MAX_DOMAIN, ProvingKey, entry};

/// Matrix entries per task of [`check_entries`].
const ENTRIES_PER_TASK: usize = 1 << 14;

/// Checks that the domain's size is a power of two of at most [`MAX_DOMAIN`].
///
/// # Errors
/// `OutOfRange` if it is not.
pub(super) fn check_domain(key: &ProvingKey) -> Result<(), BackendError> {
    let n = key.header.domain_size;
    if n.is_power_of_two() && n <= MAX_DOMAIN { Ok(()) } else { Err(bad_domain(n)) }
}

/// The error of a domain that [`check_domain`] refuses.
pub(super) fn bad_domain(n: u32) -> BackendError {
    let bound = Bound::PowerOfTwo { max_log2: MAX_DOMAIN.ilog2() };
    BackendError::OutOfRange { what: "domain size", bound, got: n.into() }
}

/// Checks that the sections have the number of points that the header implies, for devices that take the points as
/// they are.
///
/// # Errors
/// `OutOfRange` if there are not more wires than public values; `Shape` for the first section with another size.
#[cfg(any(feature = "cuda", feature = "kernels-on-host", feature = "icicle"))]
pub(super) fn check_points(key: &ProvingKey) -> Result<(), BackendError> {
    let h = &key.header;
    if h.n_public >= h.n_vars {
        let bound = Bound::AtLeast(u64::from(h.n_public) + 1);
        return Err(BackendError::OutOfRange { what: "wires of a key", bound, got: h.n_vars.into() });
    }
    let names = [
        "bytes of A's points",
        "bytes of B's points in G1",
        "bytes of B's points in G2",
        "bytes of C's points",
        "bytes of H's points",
    ];
    for (what, section) in names.into_iter().zip(key.sections.points(h.n_vars, h.n_public, h.domain_size)) {
        let (expected, got) = (section.expected(), section.bytes as u64);
        if got != expected {
            return Err(BackendError::Shape { what, expected, got });
        }
    }
    Ok(())
}

/// Checks that the matrix, row, wire and value of every matrix entry are in range. Returns whether rows ascend.
///
/// # Errors
/// `OutOfRange` if a matrix number, row or wire is not below its bound; `Shape` if a value is not below r.
pub(super) fn check_entries(key: &ProvingKey) -> Result<bool, BackendError> {
    let (rows, wires) = (key.header.domain_size, key.header.n_vars);
    let bytes = &key.sections.coefficients;
    let check = |(task, entries): (usize, &[u8])| {
        let before = (task * ENTRIES_PER_TASK).checked_sub(1);
        let mut last = before.map_or(0, |before| entry(&bytes[before * ENTRY_BYTES..]).row);
        let mut ascending = true;
        for e in entries.chunks_exact(ENTRY_BYTES).map(entry) {
            below("matrix number of an entry", 2, e.matrix)?;
            below("row of a matrix entry", rows, e.row)?;
            below("wire of a matrix entry", wires, e.signal)?;
            if e.value >= Fr::MODULUS {
                let what = "values of matrix entries not below r";
                return Err(BackendError::Shape { what, expected: 0, got: 1 });
            }
            ascending &= e.row >= last;
            last = e.row;
        }
        Ok(ascending)
    };
    bytes.par_chunks(ENTRIES_PER_TASK * ENTRY_BYTES).enumerate().map(check).try_reduce(|| true, |a, b| Ok(a && b))
}

fn below(what: &'static str, limit: u32, got: u32) -> Result<(), BackendError> {
    if got < limit {
        return Ok(());
    }
    Err(BackendError::OutOfRange { what, bound: Bound::Below(limit.into()), got: got.into() })
}

/// Returns the factor that shifts a domain of `n` points to its odd coset: a root of unity of order 2·n, so that domain
/// and coset make up the domain of twice the size. The largest domain has no double in this field; snarkjs shifts by
/// 25, the square of its non-residue 5, in that case.
pub(super) fn odd_coset_shift(n: u32) -> Fr {
    Fr::get_root_of_unity(2 * u64::from(n)).unwrap_or_else(|| Fr::from(25u64))
}

#[cfg(test)]
mod tests {
    use super::super::selftest;
    use super::*;

    #[test]
    fn rows_that_descend_between_two_tasks_are_noticed() {
        let (mut key, ..) = selftest::example(2, 0, 2);
        let mut entry = [0; ENTRY_BYTES];
        entry[4] = 1;
        let mut entries = entry.repeat(2 * ENTRIES_PER_TASK + 1);
        key.sections.coefficients = entries.clone().into();
        assert_eq!(check_entries(&key), Ok(true));
        entries[ENTRIES_PER_TASK * ENTRY_BYTES + 4] = 0;
        key.sections.coefficients = entries.into();
        assert_eq!(check_entries(&key), Ok(false));
    }
}
