//! JSON documents that subcommands read: proofs, public values, verification keys.

use std::fmt;
use std::path::Path;

use serde::Deserialize;
use serde::de::IgnoredAny;

use super::CliError;
use super::files::{self, about};
use crate::formats::snarkjs::{self, MAX_VKEY_JSON};
use crate::formats::{FileKind, FormatError};
use crate::model::{Proof, PublicInputs, VerificationKey};

/// A kind of document.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Document {
    Proof,
    PublicValues,
    VerificationKey,
}

impl fmt::Display for Document {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Proof => "a proof",
            Self::PublicValues => "public values",
            Self::VerificationKey => "a verification key",
        })
    }
}

/// The members that distinguish a proof from a verification key. Nothing else is kept: as a tree of values, a document
/// of small numbers would take a hundred times its size.
#[derive(Deserialize)]
struct Shape {
    pi_a: Option<IgnoredAny>,
    vk_alpha_1: Option<IgnoredAny>,
}

impl Document {
    /// Recognises a document by its shape; `None` if the JSON is something else.
    pub fn of(text: &str) -> Result<Option<Self>, serde_json::Error> {
        if text.trim_start().starts_with('[') {
            return Ok(Some(Self::PublicValues));
        }
        let shape: Shape = serde_json::from_str(text)?;
        Ok(match (shape.pi_a, shape.vk_alpha_1) {
            (Some(_), _) => Some(Self::Proof),
            (None, Some(_)) => Some(Self::VerificationKey),
            (None, None) => None,
        })
    }
}

/// Reads a proof.
pub fn proof(path: &Path) -> Result<Proof, CliError> {
    read(path, Document::Proof, snarkjs::proof_from_json)
}

/// Reads public values.
pub fn public_values(path: &Path) -> Result<PublicInputs, CliError> {
    read(path, Document::PublicValues, snarkjs::public_from_json)
}

/// Reads a verification key.
pub fn verification_key(path: &Path) -> Result<VerificationKey, CliError> {
    read(path, Document::VerificationKey, snarkjs::vkey_from_json)
}

/// Reads a document. If it is of another kind than expected, the error says so, which is more helpful than what the
/// parser misses.
fn read<T>(path: &Path, expected: Document, parse: impl Fn(&str) -> Result<T, FormatError>) -> Result<T, CliError> {
    let bytes = files::mapped_or_copied(path, MAX_VKEY_JSON, "document")?;
    match FileKind::of(&bytes) {
        Some(FileKind::Json) | None => {}
        Some(got) => {
            let hint = match (expected, got) {
                (Document::VerificationKey, FileKind::Zkey) => {
                    let export = format!("prover-worker export vkey {} vkey.json", path.display());
                    format!("; `{export}` writes the one that it holds")
                }
                _ => String::new(),
            };
            return Err(about(path, format!("expected the JSON of {expected}, got {got}{hint}")));
        }
    }
    let text = text(path, &bytes)?.ok_or_else(|| {
        about(path, format!("expected the JSON of {expected}, got data that is neither UTF-8 text nor of a known kind"))
    })?;
    parse(&text).map_err(|e| match Document::of(&text) {
        Ok(Some(got)) if got != expected => about(path, format!("expected the JSON of {expected}, got that of {got}")),
        _ => about(path, e),
    })
}

/// Returns the text of a document, or `None` if it is not UTF-8. The largest documents are verification keys.
pub fn text(path: &Path, bytes: &[u8]) -> Result<Option<String>, CliError> {
    if bytes.len() > MAX_VKEY_JSON {
        return Err(about(path, format!("expected at most {MAX_VKEY_JSON} bytes, got {}", bytes.len())));
    }
    Ok(str::from_utf8(bytes).ok().map(str::to_owned))
}
