//! Reading and writing files named on the command line.

use std::fs;
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use bytes::Bytes;

use crate::backend::mapped::map_file;
use crate::formats::{FormatError, wtns, zkey};
use crate::model::{ProvingKey, Witness, io_reason};

/// Error of a command on files: one sentence, with the file's name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FileError {
    /// A file cannot be read or written, or its content is invalid.
    #[error("{0}")]
    Failed(String),
    /// The arguments are wrong.
    #[error("{0}")]
    Usage(String),
}

/// Returns an error that names the file.
pub fn about(path: &Path, why: impl std::fmt::Display) -> FileError {
    FileError::Failed(format!("{}: {why}", path.display()))
}

/// Maps a file into memory.
pub fn map(path: &Path) -> Result<Bytes, FileError> {
    map_file(path).map_err(|e| about(path, io_reason(&e)))
}

/// Opens a proving key: maps and parses it.
pub fn proving_key(path: &Path) -> Result<ProvingKey, FileError> {
    parsed(path, zkey::parse(map(path)?))
}

/// Reads a .wtns file.
pub fn witness(path: &Path) -> Result<Witness, FileError> {
    parsed(path, wtns::parse(&map(path)?))
}

/// Adds the file's name to a format error.
pub fn parsed<T>(path: &Path, result: Result<T, FormatError>) -> Result<T, FileError> {
    result.map_err(|e| about(path, e))
}

/// Makes a write that exceeds the file size limit (`ulimit -f`) fail, as on a full disk. Otherwise, a signal ends the
/// process without an error message and leaves temporary files behind.
pub fn survive_size_limit() {
    // The signal only has to be handled. If that fails, it ends the process as before.
    let _ = signal_hook::flag::register(signal_hook::consts::SIGXFSZ, Arc::<AtomicBool>::default());
}

/// Whether one of these outputs is standard output. If so, nothing else may be printed there.
pub fn on_stdout(outputs: &[&Path]) -> bool {
    outputs.contains(&Path::new(STDOUT))
}

/// Maximum number of symbolic links to follow in a row, as on Linux.
const MAX_LINKS: usize = 40;
/// The path of standard output.
pub const STDOUT: &str = "/dev/stdout";

/// Fails if a command would overwrite a file that it reads, or write two results to the same file.
pub fn distinct(inputs: &[&Path], outputs: &[&Path]) -> Result<(), FileError> {
    for (i, out) in outputs.iter().enumerate() {
        if *out == Path::new(STDOUT) && outputs[..i].contains(out) {
            return Err(FileError::Usage("two results would go to standard output".into()));
        }
        if *out == Path::new(STDOUT) || fs::metadata(out).is_ok_and(|m| !m.is_file()) {
            continue;
        }
        let place = place(out);
        if inputs.iter().any(|p| self::place(p) == place) {
            return Err(FileError::Usage(format!("{}: is read, and would be written over", out.display())));
        }
        if outputs[..i].iter().any(|p| self::place(p) == place) {
            return Err(FileError::Usage(format!("{}: two results would go to this file", out.display())));
        }
    }
    Ok(())
}

/// Returns where a file is or would be, with links and dots resolved as far as the path exists.
fn place(path: &Path) -> PathBuf {
    fs::canonicalize(path).unwrap_or_else(|_| {
        let path = &resolved(path).unwrap_or_else(|_| path.to_path_buf());
        let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        match (fs::canonicalize(folder), path.file_name()) {
            (Ok(folder), Some(name)) => folder.join(name),
            _ => path.to_path_buf(),
        }
    })
}

/// Follows the links of a path to a file, which need not exist.
fn resolved(path: &Path) -> io::Result<PathBuf> {
    if let Ok(there) = fs::canonicalize(path) {
        return Ok(there);
    }
    let mut at = path.to_path_buf();
    for _ in 0..MAX_LINKS {
        match fs::read_link(&at) {
            Ok(to) => at = at.parent().unwrap_or(Path::new("")).join(to),
            Err(_) => return Ok(at),
        }
    }
    Err(io::Error::other("its links lead nowhere"))
}

/// Writes a file atomically: to a temporary file in the same folder, renamed into place. An existing file that is not a
/// regular file (a pipe, a terminal) is written to directly. So is standard output of any kind, because its path is a
/// link of the whole machine, which must not be replaced. Any other link stays, and the file it points to is replaced
/// or created.
pub fn write(path: &Path, fill: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> Result<(), FileError> {
    write_as(path, 0o666, fill)
}

/// Writes a secret as [`write()`] does, to a file that only its owner can read.
pub fn write_secret(path: &Path, fill: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> Result<(), FileError> {
    write_as(path, 0o600, fill)
}

/// Writes text that is not secret to a file, as [`write()`] does.
pub fn write_text(path: &Path, text: &str) -> Result<(), FileError> {
    write(path, |out| out.write_all(text.as_bytes()))
}

/// Writes the texts of several files, none of them secret, as [`write()`] does. All regular files are complete before
/// the first is renamed into place, so that if one cannot be written, none of the others appears.
pub fn write_texts(files: &[(&Path, &str)]) -> Result<(), FileError> {
    let ready = files.iter().map(|(path, text)| Ready::new(path, |out| out.write_all(text.as_bytes())));
    place_all(ready.collect::<Result<Vec<_>, _>>()?)
}

/// Renames complete files into place.
pub fn place_all(files: Vec<Ready>) -> Result<(), FileError> {
    files.into_iter().try_for_each(Ready::place)
}

fn write_as(path: &Path, mode: u32, fill: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> Result<(), FileError> {
    Ready::with_mode(path, mode, fill)?.place()
}

/// A file that is complete and not yet renamed into place. It is removed when dropped before that.
pub struct Ready {
    path: PathBuf,
    /// `None` if the file was written in place.
    temporary: Option<tempfile::NamedTempFile>,
}

impl Ready {
    /// Writes a file that is not secret, as [`write()`] does.
    pub fn new(path: &Path, fill: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> Result<Self, FileError> {
        Self::with_mode(path, 0o666, fill)
    }

    /// Writes a file. `mode` is the mode of a new file, before the process's umask is applied.
    fn with_mode(
        path: &Path,
        mode: u32,
        fill: impl FnOnce(&mut dyn Write) -> io::Result<()>,
    ) -> Result<Self, FileError> {
        let fail = |e: io::Error| about(path, io_reason(&e));
        let in_place = Self { path: path.to_path_buf(), temporary: None };
        if path == Path::new(STDOUT) {
            let mut out = io::stdout().lock();
            fill(&mut out).and_then(|()| out.flush()).map_err(fail)?;
            return Ok(in_place);
        }
        if fs::metadata(path).is_ok_and(|m| !m.is_file()) {
            let mut out = BufWriter::new(fs::OpenOptions::new().write(true).open(path).map_err(fail)?);
            fill(&mut out).and_then(|()| out.flush()).map_err(fail)?;
            return Ok(in_place);
        }
        let target = resolved(path).map_err(fail)?;
        let folder = match target.parent() {
            Some(p) if !p.as_os_str().is_empty() => p,
            _ => Path::new("."),
        };
        let mut temporary = tempfile::Builder::new();
        temporary.prefix(".prover-worker-").permissions(fs::Permissions::from_mode(mode));
        let file = temporary.tempfile_in(folder).map_err(fail)?;
        let mut out = BufWriter::with_capacity(1 << 20, file);
        fill(&mut out).map_err(fail)?;
        let file = out.into_inner().map_err(|e| fail(e.into_error()))?;
        Ok(Self { path: target, temporary: Some(file) })
    }

    fn place(self) -> Result<(), FileError> {
        let Some(file) = self.temporary else { return Ok(()) };
        file.persist(&self.path).map(drop).map_err(|e| about(&self.path, io_reason(&e.error)))
    }
}
