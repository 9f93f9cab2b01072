//! Reading and writing the files that subcommands name.

use std::fs;
use std::io::{self, BufWriter, Write};
use std::path::Path;

use bytes::Bytes;

use super::CliError;
use crate::backend::mapped::map_file;
use crate::formats::{FormatError, zkey};
use crate::model::ProvingKey;

/// Largest JSON document of a proof, a key or public values, bytes: no real one comes near it.
const MAX_DOCUMENT: u64 = 256 << 20;

/// An error about a file, with its name.
pub fn about(path: &Path, why: impl std::fmt::Display) -> CliError {
    CliError::Failed(format!("{}: {why}", path.display()))
}

/// Maps a file into memory.
pub fn map(path: &Path) -> Result<Bytes, CliError> {
    map_file(path).map_err(|e| about(path, io_reason(&e)))
}

/// Reads a small text file.
pub fn text(path: &Path) -> Result<String, CliError> {
    let bytes = map(path)?;
    if bytes.len() as u64 > MAX_DOCUMENT {
        return Err(about(path, format!("expected at most {MAX_DOCUMENT} bytes, got {}", bytes.len())));
    }
    String::from_utf8(bytes.to_vec()).map_err(|_| about(path, "not UTF-8 text"))
}

/// Opens a proving key.
pub fn proving_key(path: &Path) -> Result<ProvingKey, CliError> {
    parsed(path, zkey::parse(map(path)?))
}

/// Names the file in a format's error.
pub fn parsed<T>(path: &Path, result: Result<T, FormatError>) -> Result<T, CliError> {
    result.map_err(|e| about(path, e))
}

/// Writes a file so that it is there whole or not at all: a temporary neighbour, renamed into place. An existing file
/// that is no regular one (a pipe, /dev/stdout) is written to directly.
pub fn write(path: &Path, fill: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> Result<(), CliError> {
    let fail = |e: io::Error| about(path, io_reason(&e));
    if fs::metadata(path).is_ok_and(|m| !m.is_file()) {
        let mut out = BufWriter::new(fs::OpenOptions::new().write(true).open(path).map_err(fail)?);
        return fill(&mut out).and_then(|()| out.flush()).map_err(fail);
    }
    let folder = match path.parent() {
        Some(p) if !p.as_os_str().is_empty() => p,
        _ => Path::new("."),
    };
    let file = tempfile::Builder::new().prefix(".prover-worker-").tempfile_in(folder).map_err(fail)?;
    let mut out = BufWriter::with_capacity(1 << 20, file);
    fill(&mut out).map_err(fail)?;
    let file = out.into_inner().map_err(|e| fail(e.into_error()))?;
    file.persist(path).map_err(|e| fail(e.error))?;
    Ok(())
}

/// Writes text to a file, the witness and other secrets excepted.
pub fn write_text(path: &Path, text: &str) -> Result<(), CliError> {
    write(path, |out| out.write_all(text.as_bytes()))?;
    readable(path)
}

/// Gives a file that is no secret the mode that other programs give theirs: temporary files begin as private.
pub fn readable(path: &Path) -> Result<(), CliError> {
    use std::os::unix::fs::PermissionsExt;
    if fs::metadata(path).is_ok_and(|m| m.is_file()) {
        fs::set_permissions(path, fs::Permissions::from_mode(0o644)).map_err(|e| about(path, io_reason(&e)))?;
    }
    Ok(())
}

/// The operating system's words without Rust's code suffix.
pub fn io_reason(e: &io::Error) -> String {
    match e.kind() {
        io::ErrorKind::NotFound => "no such file".into(),
        io::ErrorKind::PermissionDenied => "permission denied".into(),
        _ => e.to_string(),
    }
}
