//! Recognises files by their first bytes, for errors about a file of the wrong kind.

use std::fmt;

/// Number of bytes that are examined: JSON may begin with some white space.
const BEGINNING: usize = 64;

/// A kind of file that circom and snarkjs work with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileKind {
    /// A proving key.
    Zkey,
    /// A witness.
    Wtns,
    /// A circuit.
    R1cs,
    /// A WebAssembly module, as witness programs are.
    Wasm,
    /// JSON, or data that begins like JSON.
    Json,
}

impl FileKind {
    /// Recognises a file by its first bytes; `None` if it is of another kind. `bytes` may be the whole file.
    pub fn of(bytes: &[u8]) -> Option<Self> {
        let bytes = &bytes[..bytes.len().min(BEGINNING)];
        let binary = match bytes.get(..4) {
            Some(b"zkey") => Some(Self::Zkey),
            Some(b"wtns") => Some(Self::Wtns),
            Some(b"r1cs") => Some(Self::R1cs),
            Some(b"\0asm") => Some(Self::Wasm),
            _ => None,
        };
        let is_json = || matches!(bytes.trim_ascii_start().first(), Some(b'{' | b'['));
        binary.or_else(|| is_json().then_some(Self::Json))
    }
}

impl fmt::Display for FileKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Zkey => "a proving key (zkey)",
            Self::Wtns => "a witness (wtns)",
            Self::R1cs => "a circuit (r1cs)",
            Self::Wasm => "a WebAssembly module (wasm)",
            Self::Json => "JSON",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_known_by_their_first_bytes() {
        for (bytes, kind) in [
            (&b"zkey\x01\0\0\0"[..], Some(FileKind::Zkey)),
            (b"wtns", Some(FileKind::Wtns)),
            (b"r1cs", Some(FileKind::R1cs)),
            (b"\0asm\x01\0\0\0", Some(FileKind::Wasm)),
            (b"{", Some(FileKind::Json)),
            (b"\r\n\t [\"1\"]", Some(FileKind::Json)),
            (b"zke", None),
            (b"", None),
            (b"    ", None),
            (b"\x7fELF", None),
            (b"12", None),
        ] {
            assert_eq!(FileKind::of(bytes), kind, "{}", bytes.escape_ascii());
        }
    }
}
