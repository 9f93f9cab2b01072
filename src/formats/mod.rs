//! File formats: untrusted bytes in, model out. No panics, and no allocations larger than the bytes justify.
//!
//! All integers are little-endian. A length in a file is only a claim: it is checked, without wrapping, against the
//! bytes that are there, before anything is allocated.

pub mod calldata;
mod container;
mod kind;
pub mod r1cs;
pub mod snarkjs;
pub mod wtns;
pub mod zkey;

pub use kind::FileKind;

/// Error of malformed or unsupported data.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FormatError {
    /// A value is not what it must be.
    #[error("{what}: expected {expected}, got {got}")]
    Mismatch {
        /// The value and its place.
        what: String,
        /// The values it may have.
        expected: String,
        /// The value it has.
        got: String,
    },
    /// The data ends too early.
    #[error("{what}: {needed} bytes needed at offset {offset}, {available} available")]
    Truncated {
        /// What was being read.
        what: String,
        /// Its offset in the file.
        offset: u64,
        /// Number of bytes that it needs.
        needed: u64,
        /// Number of bytes that are left.
        available: u64,
    },
    /// A section is missing.
    #[error("section {id} ({name}) is missing")]
    MissingSection {
        /// Number of the section.
        id: u32,
        /// Name of its content.
        name: &'static str,
    },
    /// A section occurs twice.
    #[error("section {id} ({name}) occurs twice")]
    DuplicateSection {
        /// Number of the section.
        id: u32,
        /// Name of its content.
        name: &'static str,
    },
    /// Invalid JSON, or JSON of another shape.
    #[error("{what}: {why}")]
    Json {
        /// The document or field.
        what: String,
        /// What is wrong with it.
        why: String,
    },
}
