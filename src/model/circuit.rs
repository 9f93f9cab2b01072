//! Registered circuits.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::ContentHash;

/// A circuit's name: 1 to 128 characters of `A–Z a–z 0–9 . _ -`, the first a letter or a digit.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct CircuitName(String);

/// A name that is not a circuit's.
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
            Err(InvalidName(s.chars().take(140).collect()))
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

/// A registered circuit: a name for a proving key and, where there is one, the witness program, each by content.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Circuit {
    /// Its name, unique in a store. Registering other content under a name replaces it for jobs submitted later.
    pub name: CircuitName,
    /// Content of the zkey.
    pub zkey: ContentHash,
    /// Content of the witness wasm; without one, jobs bring a witness in place of inputs.
    pub wasm: Option<ContentHash>,
    /// Wires of the circuit, the constant 1 included.
    pub n_vars: u32,
    /// Public inputs and outputs.
    pub n_public: u32,
    /// Size of the evaluation domain, a power of two.
    pub domain_size: u32,
    /// When it was registered, milliseconds since 1970 (the store's clock; 0 before it is stored).
    pub created_at: i64,
}
