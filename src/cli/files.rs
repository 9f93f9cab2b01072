//! Files named on the command line.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use clap::builder::{PathBufValueParser, TypedValueParser};
use zeroize::Zeroizing;

use super::CliError;
use crate::model::io_reason;
pub use crate::prover::files::*;
use crate::witness::Inputs;

/// The path of standard input.
const STDIN: &str = "/dev/stdin";
/// Initial buffer size for an input of unknown length, in bytes.
const INITIAL_CAPACITY: usize = 64 << 10;

/// Returns an error that names the file.
pub fn about(path: &Path, why: impl std::fmt::Display) -> CliError {
    crate::prover::files::about(path, why).into()
}

/// Parser of an input's name, where `-` is standard input.
pub fn input_name() -> impl TypedValueParser<Value = PathBuf> {
    PathBufValueParser::new().map(|path| unless_dash(path, STDIN))
}

/// Parser of an output's name, where `-` is standard output.
pub fn output_name() -> impl TypedValueParser<Value = PathBuf> {
    PathBufValueParser::new().map(output)
}

/// Parser of a folder's name. It rejects `-`, because several files cannot go to standard output.
pub fn folder_name() -> impl TypedValueParser<Value = PathBuf> {
    PathBufValueParser::new().try_map(|path| {
        if path == Path::new("-") {
            Err("expected a folder, got - (for a folder of this name, use ./-)")
        } else {
            Ok(path)
        }
    })
}

/// Returns the path of an output, where `-` is standard output.
pub fn output(path: PathBuf) -> PathBuf {
    unless_dash(path, STDOUT)
}

/// Returns `path`, or `stands_for` if it is `-`. A file of this name can be named as `./-`.
fn unless_dash(path: PathBuf, stands_for: &str) -> PathBuf {
    if path == Path::new("-") { stands_for.into() } else { path }
}

/// Reads the JSON of a witness program's inputs, which is a secret: see [`mapped_or_copied`].
pub fn input(path: &Path) -> Result<Bytes, CliError> {
    mapped_or_copied(path, Inputs::MAX_BYTES, "input")
}

/// Maps a file, so that it is not copied; reads standard input and pipes as [`input_copy`] does, up to `limit` bytes.
/// `what` names the content in errors.
pub fn mapped_or_copied(path: &Path, limit: usize, what: &str) -> Result<Bytes, CliError> {
    if path != Path::new(STDIN) && fs::metadata(path).is_ok_and(|m| m.is_file()) {
        return Ok(map(path)?);
    }
    Ok(Bytes::from_owner(copied(path, limit, what, "")?))
}

/// Fails if more than one of these inputs is standard input: the first would consume it.
pub fn one_of_stdin(inputs: &[&Path]) -> Result<(), CliError> {
    if inputs.iter().filter(|path| **path == Path::new(STDIN)).count() > 1 {
        return Err(CliError::Usage("expected at most one input from standard input, got more".into()));
    }
    Ok(())
}

/// Reads a copy of an input of any kind, which is overwritten when dropped. Blocks while a pipe has no data yet; fails
/// if there are more than `limit` bytes. `set_by` names the setting of that limit in the error.
pub fn input_copy(path: &Path, limit: usize, set_by: &str) -> Result<Zeroizing<Vec<u8>>, CliError> {
    copied(path, limit, "input", set_by)
}

fn copied(path: &Path, limit: usize, what: &str, set_by: &str) -> Result<Zeroizing<Vec<u8>>, CliError> {
    let read = open(path).and_then(|source| read_secret(source, limit));
    let read = read.map_err(|e| about(path, io_reason(&e)))?;
    read.ok_or_else(|| about(path, format!("the {what} is too long: expected at most {limit} bytes{set_by}, got more")))
}

/// Opens an input. The existing descriptor of standard input is used: by its path, a socket or another user's terminal
/// cannot be opened, and a file would be read from its beginning. It is not buffered, because a part of the input would
/// stay in the buffer.
fn open(path: &Path) -> io::Result<File> {
    if path == Path::new(STDIN) { Ok(io::stdin().as_fd().try_clone_to_owned()?.into()) } else { File::open(path) }
}

/// Reads to the end; returns `None` if there are more than `limit` bytes.
fn read_secret(mut source: impl Read, limit: usize) -> io::Result<Option<Zeroizing<Vec<u8>>>> {
    let mut bytes = Zeroizing::new(vec![0; INITIAL_CAPACITY]);
    let mut read = 0;
    loop {
        match source.read(&mut bytes[read..]) {
            Ok(0) => break,
            Ok(n) => read += n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            Err(e) => return Err(e),
        }
        if read > limit {
            return Ok(None);
        }
        if read == bytes.len() {
            // The vector's own reallocation would not wipe the old buffer.
            let mut larger = Zeroizing::new(vec![0; 2 * read]);
            larger[..read].copy_from_slice(&bytes);
            bytes = larger;
        }
    }
    bytes.truncate(read);
    Ok(Some(bytes))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    /// Returns a few bytes at a time, as a pipe may.
    struct Drops<'a>(&'a [u8]);

    impl Read for Drops<'_> {
        fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
            let n = to.len().min(self.0.len()).min(1013);
            let (now, later) = self.0.split_at(n);
            to[..n].copy_from_slice(now);
            self.0 = later;
            Ok(n)
        }
    }

    #[test]
    fn an_input_is_read_whole_up_to_its_bound_and_not_beyond() {
        let long: Vec<u8> = (0..300_000u32).map(|i| (i % 251) as u8).collect();
        for length in
            [0, 1, INITIAL_CAPACITY - 1, INITIAL_CAPACITY, INITIAL_CAPACITY + 1, 2 * INITIAL_CAPACITY, long.len()]
        {
            let content = &long[..length];
            for limit in [length, length + 1, usize::MAX] {
                let read = read_secret(Drops(content), limit).unwrap();
                assert!(read.is_some_and(|r| r.as_slice() == content), "{length} bytes, at most {limit}");
            }
            if let Some(less) = length.checked_sub(1) {
                assert!(read_secret(Drops(content), less).unwrap().is_none(), "{length} bytes, at most {less}");
            }
        }
        // An endless input is given up.
        assert!(read_secret(io::repeat(b' '), 1 << 20).unwrap().is_none());
    }
}
