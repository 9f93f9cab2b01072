//! Reading and writing the files that a command names.

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

/// Why a command on files did not do what was asked: one sentence, with the file's name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FileError {
    /// A file cannot be read or written, or is not what it should be.
    #[error("{0}")]
    Failed(String),
    /// The files named do not go together.
    #[error("{0}")]
    Usage(String),
}

/// An error about a file, with its name.
pub fn about(path: &Path, why: impl std::fmt::Display) -> FileError {
    FileError::Failed(format!("{}: {why}", path.display()))
}

/// Maps a file into memory.
pub fn map(path: &Path) -> Result<Bytes, FileError> {
    map_file(path).map_err(|e| about(path, io_reason(&e)))
}

/// Opens a proving key.
pub fn proving_key(path: &Path) -> Result<ProvingKey, FileError> {
    parsed(path, zkey::parse(map(path)?))
}

/// Reads a .wtns file.
pub fn witness(path: &Path) -> Result<Witness, FileError> {
    parsed(path, wtns::parse(&map(path)?))
}

/// Names the file in a format's error.
pub fn parsed<T>(path: &Path, result: Result<T, FormatError>) -> Result<T, FileError> {
    result.map_err(|e| about(path, e))
}

/// Has a write fail that would make a file larger than the process may (`ulimit -f`), as on a full disk. Otherwise its signal
/// ends the process, which then removes no temporary file and says nothing.
pub fn survive_size_limit() {
    // That the signal is handled is all; where that cannot be had, it ends the process as it did.
    let _ = signal_hook::flag::register(signal_hook::consts::SIGXFSZ, Arc::<AtomicBool>::default());
}

/// Whether one of these results goes to standard output by its name: then nothing else may be printed there.
pub fn on_stdout(outputs: &[&Path]) -> bool {
    outputs.contains(&Path::new(STDOUT))
}

/// Links followed one after the other at most, as many as Linux follows.
const MOST_LINKS: usize = 40;
/// Standard output by name.
pub const STDOUT: &str = "/dev/stdout";

/// Fails if a command would write over a file that it reads, or write two results to one file.
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
            return Err(FileError::Usage(format!("{}: two results would go to this one file", out.display())));
        }
    }
    Ok(())
}

/// Where a file is, or would be: links and dots resolved as far as there is something.
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

/// The file that a path leads to by its links, whether or not it is there.
fn resolved(path: &Path) -> io::Result<PathBuf> {
    if let Ok(there) = fs::canonicalize(path) {
        return Ok(there);
    }
    let mut at = path.to_path_buf();
    for _ in 0..MOST_LINKS {
        match fs::read_link(&at) {
            Ok(to) => at = at.parent().unwrap_or(Path::new("")).join(to),
            Err(_) => return Ok(at),
        }
    }
    Err(io::Error::other("its links lead nowhere"))
}

/// Writes a file so that it is there whole or not at all: a temporary neighbour, renamed into place. An existing file
/// that is no regular one (a pipe, a terminal) is written to directly, and so is standard output by its name, whatever
/// it is: that name is a link of the whole machine's, not to be renamed over. Another link stays, its file is
/// replaced, or made.
pub fn write(path: &Path, fill: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> Result<(), FileError> {
    write_as(path, 0o666, fill)
}

/// The same for a secret: only its owner may read the file.
pub fn write_secret(path: &Path, fill: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> Result<(), FileError> {
    write_as(path, 0o600, fill)
}

/// Writes text that is no secret to a file, as [`write()`] does.
pub fn write_text(path: &Path, text: &str) -> Result<(), FileError> {
    write(path, |out| out.write_all(text.as_bytes()))
}

/// Writes the text of several files, none of them secret, as [`write()`] does: those that stay are all ready before the
/// first takes its place, so that one that cannot be written leaves no other behind.
pub fn write_texts(files: &[(&Path, &str)]) -> Result<(), FileError> {
    let ready = files.iter().map(|(path, text)| Ready::new(path, |out| out.write_all(text.as_bytes())));
    place_all(ready.collect::<Result<Vec<_>, _>>()?)
}

/// Puts files into their places that are all ready.
pub fn place_all(files: Vec<Ready>) -> Result<(), FileError> {
    files.into_iter().try_for_each(Ready::place)
}

fn write_as(path: &Path, mode: u32, fill: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> Result<(), FileError> {
    Ready::with_mode(path, mode, fill)?.place()
}

/// A file that is written and not yet in its place. Dropped before, it is gone.
pub struct Ready {
    path: PathBuf,
    /// None where it was written in place.
    temporary: Option<tempfile::NamedTempFile>,
}

impl Ready {
    /// Writes a file that is no secret, as [`write()`] does.
    pub fn new(path: &Path, fill: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> Result<Self, FileError> {
        Self::with_mode(path, 0o666, fill)
    }

    /// `mode` is that of a new file, less what the process's umask takes away, as with any other program.
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
