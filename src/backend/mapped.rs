//! Files as memory.
//!
//! Mapping is `unsafe` in Rust, since whoever shortens the file while it is mapped makes its reader fail with a bus
//! error; so it lives here, and the rest of the crate sees plain bytes.
#![allow(unsafe_code)]

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use bytes::Bytes;
use rustix::fs::OFlags;

/// Opens a file for reading. A pipe that nobody writes to would keep an ordinary open waiting for ever.
fn open_without_waiting(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).custom_flags(OFlags::NONBLOCK.bits().cast_signed()).open(path)
}

/// The bytes of a regular file, mapped read-only and private; pages are read when first touched.
pub fn map_file(path: &Path) -> io::Result<Bytes> {
    let file = open_without_waiting(path)?;
    let meta = file.metadata()?;
    if !meta.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
    }
    if meta.len() == 0 {
        return Ok(Bytes::new());
    }
    // SAFETY: the map is private and read-only, so nothing here writes to it. Another process that truncates the file
    // ends this one by SIGBUS, and one that overwrites it in place changes the bytes: a worker maps only its own
    // content-addressed copies, which are written once and renamed into place; the command line maps what its user
    // names, as every prover does.
    let map = unsafe { memmap2::Mmap::map(&file)? };
    Ok(Bytes::from_owner(map))
}
