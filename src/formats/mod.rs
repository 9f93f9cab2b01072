//! File formats: untrusted bytes in, model out. No panic, no allocation that the bytes do not pay for.
//!
//! All integers are little-endian. A length in a file is a claim: it is checked, without wrapping, against the bytes
//! that are there before anything is allocated.

pub mod calldata;
mod container;
mod kind;
pub mod r1cs;
pub mod snarkjs;
pub mod wtns;
pub mod zkey;

pub use kind::FileKind;

/// Why bytes are not what they are taken for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FormatError {
    /// Something has another value than it must have.
    #[error("{what}: expected {expected}, got {got}")]
    Mismatch {
        /// What was looked at, with its place.
        what: String,
        /// What it must be.
        expected: String,
        /// What it is.
        got: String,
    },
    /// The bytes end too early.
    #[error("{what}: {needed} bytes needed at offset {offset}, {available} there")]
    Truncated {
        /// What was to be read.
        what: String,
        /// Where.
        offset: u64,
        /// Bytes it takes.
        needed: u64,
        /// Bytes left.
        available: u64,
    },
    /// A section is not there.
    #[error("section {id} ({name}) is missing")]
    MissingSection {
        /// Its number.
        id: u32,
        /// What it holds.
        name: &'static str,
    },
    /// A section is there twice.
    #[error("section {id} ({name}) is there twice")]
    DuplicateSection {
        /// Its number.
        id: u32,
        /// What it holds.
        name: &'static str,
    },
    /// JSON that does not read as what it should be.
    #[error("{what}: {why}")]
    Json {
        /// Which document or field.
        what: String,
        /// Why not.
        why: String,
    },
}
