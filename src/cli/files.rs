//! Reading and writing the files that subcommands name.

use std::fs;
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use bytes::Bytes;

use super::CliError;
use crate::backend::mapped::map_file;
use crate::formats::snarkjs::MAX_VKEY_JSON;
use crate::formats::{FormatError, zkey};
use crate::model::ProvingKey;

/// An error about a file, with its name.
pub fn about(path: &Path, why: impl std::fmt::Display) -> CliError {
    CliError::Failed(format!("{}: {why}", path.display()))
}

/// Maps a file into memory.
pub fn map(path: &Path) -> Result<Bytes, CliError> {
    map_file(path).map_err(|e| about(path, io_reason(&e)))
}

/// Reads the JSON text of a proof, a key or public values; a key is the largest of them.
pub fn text(path: &Path) -> Result<String, CliError> {
    let bytes = map(path)?;
    if bytes.len() > MAX_VKEY_JSON {
        return Err(about(path, format!("expected at most {MAX_VKEY_JSON} bytes, got {}", bytes.len())));
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
    write_as(path, 0o666, fill)
}

/// The same for a secret: only its owner may read the file.
pub fn write_secret(path: &Path, fill: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> Result<(), CliError> {
    write_as(path, 0o600, fill)
}

/// Writes text that is no secret to a file, as [`write()`] does.
pub fn write_text(path: &Path, text: &str) -> Result<(), CliError> {
    write(path, |out| out.write_all(text.as_bytes()))
}

/// `mode` is that of a new file, less what the process's umask takes away, as with any other program.
fn write_as(path: &Path, mode: u32, fill: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> Result<(), CliError> {
    let fail = |e: io::Error| about(path, io_reason(&e));
    if fs::metadata(path).is_ok_and(|m| !m.is_file()) {
        let mut out = BufWriter::new(fs::OpenOptions::new().write(true).open(path).map_err(fail)?);
        return fill(&mut out).and_then(|()| out.flush()).map_err(fail);
    }
    let folder = match path.parent() {
        Some(p) if !p.as_os_str().is_empty() => p,
        _ => Path::new("."),
    };
    let mut temporary = tempfile::Builder::new();
    temporary.prefix(".prover-worker-").permissions(fs::Permissions::from_mode(mode));
    let file = temporary.tempfile_in(folder).map_err(fail)?;
    let mut out = BufWriter::with_capacity(1 << 20, file);
    fill(&mut out).map_err(fail)?;
    let file = out.into_inner().map_err(|e| fail(e.into_error()))?;
    file.persist(path).map_err(|e| fail(e.error))?;
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
