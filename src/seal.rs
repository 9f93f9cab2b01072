//! Encryption of inputs at rest.
//!
//! ```text
//! sealed input = nonce (24 bytes, random) ‖ ciphertext ‖ tag (16 bytes)          XChaCha20-Poly1305
//! bound to     = "prover-worker input v1" ‖ the job's id (16 bytes) ‖ the key's name
//! ```
//!
//! Because a sealed input is bound to its job, it cannot be opened if it is moved to another job in the database. The
//! key's name is stored alongside the sealed bytes, so that keys can change while jobs wait: the first key of the ring
//! seals, all open.

use std::fmt;

use base64::Engine;
use base64::alphabet;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use chacha20poly1305::aead::AeadInOut;
use chacha20poly1305::{Key, KeyInit, Tag, XChaCha20Poly1305, XNonce};
use hmac::{Hmac, Mac};
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

use crate::model::{ContentHash, JobId};

const KEY: usize = 32;
const NONCE: usize = 24;
const TAG: usize = 16;
/// Block size of SHA-256, in bytes.
const BLOCK: usize = 64;

/// Longest name of a key, in characters.
const MAX_NAME: usize = 32;

/// Prefix of the data that a sealed input is bound to; followed by the job's id and the key's name.
const INPUT: &[u8] = b"prover-worker input v1";

/// Label from which the key that hashes request bodies is derived.
const BODY: &[u8] = b"prover-worker body v1";

const BASE64: GeneralPurposeConfig =
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent);
const STANDARD: GeneralPurpose = GeneralPurpose::new(&alphabet::STANDARD, BASE64);
const URL_SAFE: GeneralPurpose = GeneralPurpose::new(&alphabet::URL_SAFE, BASE64);

/// Why an input could not be sealed or opened. Of keys, only their names are revealed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SealError {
    /// The list of keys is malformed.
    #[error("PROVER_ENCRYPTION_KEYS: expected {expected}, got {got}")]
    Spec {
        /// The expected format.
        expected: &'static str,
        /// What was found instead. Quotes no part of the list, because parts may be in the wrong place.
        got: String,
    },
    /// The input is sealed with a key that is not in the ring.
    #[error("the input is sealed with the key {name:?}, which PROVER_ENCRYPTION_KEYS lacks (it has {known})")]
    UnknownKey {
        /// The key's name.
        name: String,
        /// The names in the ring, separated by commas.
        known: String,
    },
    /// The bytes are not what was sealed for this job with this key.
    #[error(
        "the sealed input cannot be opened: it was changed, or sealed for another job or with another key of that name"
    )]
    Damaged,
    /// The operating system provided no random bytes.
    #[error("no randomness to seal the input with: {0}")]
    Randomness(#[source] getrandom::Error),
}

/// An input as it is stored.
pub struct Sealed {
    /// Name of the key it is sealed with; empty if it is not sealed.
    pub key: String,
    /// Its bytes. Wiped when dropped, because they may be in the clear.
    pub bytes: Zeroizing<Vec<u8>>,
}

impl fmt::Debug for Sealed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sealed").field("key", &self.key).field("bytes", &self.bytes.len()).finish()
    }
}

#[derive(Clone)]
struct NamedKey {
    name: String,
    /// Seals inputs.
    key: Zeroizing<[u8; KEY]>,
    /// Hashes request bodies.
    body: Zeroizing<[u8; KEY]>,
}

/// Keys by name. The first seals, all open. Wiped when dropped.
#[derive(Clone, Default)]
pub struct Keyring {
    keys: Vec<NamedKey>,
}

impl fmt::Debug for Keyring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.keys.iter().map(|k| &k.name)).finish()
    }
}

impl Keyring {
    /// Creates a keyring without keys, which seals nothing.
    pub fn none() -> Self {
        Self::default()
    }

    /// Parses keys given as `NAME:KEY[,NAME:KEY…]`: names of 1 to 32 characters of A-Z a-z 0-9 . _ -, each once; keys
    /// of 32 bytes in base64, standard or URL-safe, padded or not. White space around an entry is ignored.
    pub fn parse(text: &str) -> Result<Self, SealError> {
        let mut keys: Vec<NamedKey> = Vec::new();
        for (n, entry) in text.split(',').enumerate() {
            let key = named_key(n + 1, entry.trim())?;
            if let Some(first) = keys.iter().position(|k| k.name == key.name) {
                let got = format!("the same name in entries {} and {}", first + 1, n + 1);
                return Err(SealError::Spec { expected: "another name for each key", got });
            }
            keys.push(key);
        }
        Ok(Self { keys })
    }

    /// Whether inputs are sealed.
    pub fn seals(&self) -> bool {
        !self.keys.is_empty()
    }

    /// Returns the names of the keys, starting with the one that seals.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.keys.iter().map(|k| k.name.as_str())
    }

    /// Seals the input of a job with the first key; without keys the input stays in the clear.
    pub fn seal(&self, job: JobId, plain: &[u8]) -> Result<Sealed, SealError> {
        let Some(key) = self.keys.first() else {
            return Ok(Sealed { key: String::new(), bytes: Zeroizing::new(plain.to_vec()) });
        };
        let mut nonce = [0; NONCE];
        getrandom::fill(&mut nonce).map_err(SealError::Randomness)?;
        let bytes = seal_with(key, &nonce, job, plain)?;
        Ok(Sealed { key: key.name.clone(), bytes })
    }

    /// Returns the input of a job as it was submitted, given the stored bytes and the name of their key. If the name is
    /// empty, the input was stored in the clear: jobs from before keys were configured still run.
    pub fn open(&self, job: JobId, key: &str, mut bytes: Zeroizing<Vec<u8>>) -> Result<Zeroizing<Vec<u8>>, SealError> {
        if key.is_empty() {
            return Ok(bytes);
        }
        let Some(found) = self.keys.iter().find(|k| k.name == key) else {
            let known: Vec<&str> = self.names().collect();
            let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
            return Err(SealError::UnknownKey { name: key.chars().take(MAX_NAME).collect(), known });
        };
        let end = bytes.len().checked_sub(TAG).filter(|end| *end >= NONCE).ok_or(SealError::Damaged)?;
        let nonce = XNonce::try_from(&bytes[..NONCE]).map_err(|_| SealError::Damaged)?;
        let tag = Tag::try_from(&bytes[end..]).map_err(|_| SealError::Damaged)?;
        let bound = bound_to(job, &found.name);
        cipher(found)
            .decrypt_inout_detached(&nonce, &bound, (&mut bytes[NONCE..end]).into(), &tag)
            .map_err(|_| SealError::Damaged)?;
        // In place, so that no second copy of the secret is made.
        bytes.copy_within(NONCE..end, 0);
        bytes.truncate(end - NONCE);
        Ok(bytes)
    }

    /// Returns the hash by which a repeated request is distinguished from a conflicting one, and the hashes that a
    /// request from before the present key may have been stored with (any of them is a match).
    ///
    /// With keys it is HMAC-SHA256 under a key derived from the first, so that anyone with the database but no key
    /// cannot test guesses of a short input; without keys it is SHA-256.
    pub fn body_hashes(&self, parts: &[&[u8]]) -> (ContentHash, Vec<ContentHash>) {
        let mut hashes: Vec<ContentHash> = self.keys.iter().map(|k| keyed_hash(&k.body, parts)).collect();
        hashes.push(plain_hash(parts));
        let current = hashes.remove(0);
        (current, hashes)
    }
}

fn named_key(n: usize, entry: &str) -> Result<NamedKey, SealError> {
    let wrong = |got: String| SealError::Spec {
        expected: "NAME:KEY, several separated by commas, KEY 32 bytes in base64",
        got: format!("{got} in entry {n}"),
    };
    if entry.is_empty() {
        return Err(wrong("nothing".to_owned()));
    }
    let (name, text) = entry.split_once(':').ok_or_else(|| wrong("no colon".to_owned()))?;
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    if name.is_empty() || name.len() > MAX_NAME || !name.chars().all(allowed) {
        return Err(wrong(format!("a name that is not 1 to {MAX_NAME} characters of A-Z a-z 0-9 . _ -")));
    }
    // With capacity for the whole text, so that the buffer is not reallocated while it is written.
    let mut decoded = Zeroizing::new(Vec::with_capacity(text.len()));
    if STANDARD.decode_vec(text, &mut decoded).is_err() {
        decoded.clear();
        URL_SAFE.decode_vec(text, &mut decoded).map_err(|_| wrong("a key that is not base64".to_owned()))?;
    }
    if decoded.len() != KEY {
        return Err(wrong(format!("a key of {} bytes", decoded.len())));
    }
    let mut key = Zeroizing::new([0; KEY]);
    key.copy_from_slice(&decoded);
    let body = Zeroizing::new(hmac(&key, &[BODY]));
    Ok(NamedKey { name: name.to_owned(), key, body })
}

fn cipher(key: &NamedKey) -> XChaCha20Poly1305 {
    let mut copy = Key::from(*key.key);
    let cipher = XChaCha20Poly1305::new(&copy);
    zeroize::Zeroize::zeroize(copy.as_mut_slice());
    cipher
}

/// Unambiguous, because all parts but the last have a fixed length.
fn bound_to(job: JobId, name: &str) -> Vec<u8> {
    [INPUT, job.0.as_bytes(), name.as_bytes()].concat()
}

fn seal_with(key: &NamedKey, nonce: &[u8; NONCE], job: JobId, plain: &[u8]) -> Result<Zeroizing<Vec<u8>>, SealError> {
    let mut bytes = Zeroizing::new(Vec::with_capacity(NONCE + plain.len() + TAG));
    bytes.extend_from_slice(nonce);
    bytes.extend_from_slice(plain);
    let tag = cipher(key)
        .encrypt_inout_detached(&XNonce::from(*nonce), &bound_to(job, &key.name), (&mut bytes[NONCE..]).into())
        // Only fails for messages of more than 256 GiB.
        .map_err(|_| SealError::Damaged)?;
    bytes.extend_from_slice(&tag);
    Ok(bytes)
}

fn hmac(key: &[u8; KEY], parts: &[&[u8]]) -> [u8; 32] {
    // HMAC pads a short key with zeros to the hash's block size; padding it here rules out an invalid length.
    let mut block = Zeroizing::new([0; BLOCK]);
    block[..KEY].copy_from_slice(key);
    let mut mac = <Hmac<Sha256> as hmac::KeyInit>::new((&*block).into());
    for part in parts {
        mac.update(part);
    }
    mac.finalize().into_bytes().into()
}

/// Returns the hash of the parts, each preceded by its length, so that different lists of parts have different hashes.
fn keyed_hash(key: &[u8; KEY], parts: &[&[u8]]) -> ContentHash {
    let lengths: Vec<[u8; 8]> = parts.iter().map(|p| (p.len() as u64).to_le_bytes()).collect();
    let pieces: Vec<&[u8]> = lengths.iter().zip(parts).flat_map(|(l, p)| [&l[..], *p]).collect();
    ContentHash(hmac(key, &pieces))
}

fn plain_hash(parts: &[&[u8]]) -> ContentHash {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part);
    }
    ContentHash(hash.finalize().into())
}

#[cfg(test)]
mod tests;
