//! Idempotency keys.

use std::fmt;
use std::str::FromStr;

/// The submitter's own name for a job: the same key with the same body returns the same job. It has 1 to 256
/// characters, none of them NUL, which Postgres cannot store.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct IdempotencyKey(String);

/// Error of an invalid idempotency key. It does not name the place where the key was given.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum InvalidKey {
    /// It is empty or too long.
    #[error("expected 1 to {} characters, none of them NUL, got {got}", IdempotencyKey::MAX_CHARS)]
    Length {
        /// Number of characters.
        got: usize,
    },
    /// It contains the character NUL.
    #[error("expected 1 to {} characters, none of them NUL, got a NUL", IdempotencyKey::MAX_CHARS)]
    Nul,
}

impl IdempotencyKey {
    /// Maximum number of characters.
    const MAX_CHARS: usize = 256;

    /// The key as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for IdempotencyKey {
    type Err = InvalidKey;

    fn from_str(s: &str) -> Result<Self, InvalidKey> {
        match s.chars().count() {
            1..=Self::MAX_CHARS if s.contains('\0') => Err(InvalidKey::Nul),
            1..=Self::MAX_CHARS => Ok(Self(s.to_owned())),
            got => Err(InvalidKey::Length { got }),
        }
    }
}

impl From<IdempotencyKey> for String {
    fn from(key: IdempotencyKey) -> Self {
        key.0
    }
}

impl fmt::Display for IdempotencyKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for IdempotencyKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_key_has_1_to_256_characters_and_no_nul() {
        for text in ["k", "order 'n° 17'; --", &"ü".repeat(256)] {
            assert_eq!(text.parse::<IdempotencyKey>().unwrap().as_str(), text);
        }
        for (text, got) in [("", "got 0"), (&*"x".repeat(257), "got 257"), ("ab\0cd", "got a NUL")] {
            let e = text.parse::<IdempotencyKey>().unwrap_err().to_string();
            assert!(e.starts_with("expected 1 to 256 characters") && e.ends_with(got), "{e}");
        }
    }
}
