//! Registered circuits.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::{ContentHash, clip};

/// A circuit's name: 1 to 128 characters of `A–Z a–z 0–9 . _ -`, the first a letter or a digit.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct CircuitName(String);

/// Error of an invalid circuit name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a circuit's name is 1 to 128 characters of A-Z a-z 0-9 . _ - and begins with a letter or digit, got {0:?}")]
pub struct InvalidName(String);

impl CircuitName {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for CircuitName {
    type Err = InvalidName;

    fn from_str(s: &str) -> Result<Self, InvalidName> {
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
        let first = s.chars().next().is_some_and(|c| c.is_ascii_alphanumeric());
        if first && s.len() <= 128 && s.chars().all(plain) {
            Ok(Self(s.to_owned()))
        } else {
            Err(InvalidName(clip(s, 140)))
        }
    }
}

impl TryFrom<String> for CircuitName {
    type Error = InvalidName;

    fn try_from(s: String) -> Result<Self, InvalidName> {
        s.parse()
    }
}

impl From<CircuitName> for String {
    fn from(n: CircuitName) -> Self {
        n.0
    }
}

impl fmt::Display for CircuitName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for CircuitName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

/// A registered circuit: a name for a proving key and, if it has one, a witness program, each identified by content.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Circuit {
    /// Name, unique in a store. Registering other content under the same name replaces it for jobs submitted later.
    pub name: CircuitName,
    /// Content of the zkey.
    pub zkey: ContentHash,
    /// Content of the witness program; without one, jobs supply a witness instead of inputs.
    pub wasm: Option<ContentHash>,
    /// Number of wires, including the constant 1.
    pub n_vars: u32,
    /// Number of public inputs and outputs.
    pub n_public: u32,
    /// Size of the evaluation domain, a power of two.
    pub domain_size: u32,
    /// Time of registration, in milliseconds since 1970 by the store's clock; 0 before it is stored.
    pub created_at: i64,
}

impl Circuit {
    /// Its content.
    pub fn content(&self) -> CircuitContent {
        CircuitContent { zkey: self.zkey, wasm: self.wasm }
    }
}

/// The content of a circuit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct CircuitContent {
    /// Hash of its key.
    pub zkey: ContentHash,
    /// Hash of its witness program, if it has one.
    pub wasm: Option<ContentHash>,
}

impl CircuitContent {
    /// The hashes of its files.
    pub fn files(self) -> impl Iterator<Item = ContentHash> {
        [Some(self.zkey), self.wasm].into_iter().flatten()
    }
}
