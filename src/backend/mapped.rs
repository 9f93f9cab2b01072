//! Memory-mapped files, and release of their pages.
//!
//! Mapping is `unsafe` in Rust because a process that truncates the file while it is mapped makes its reader fail with
//! a bus error. So it is confined to this module, and the rest of the crate sees plain bytes.
#![allow(unsafe_code)]

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::{Mutex, MutexGuard};

use crate::model::locked;
use bytes::Bytes;
use rustix::fs::OFlags;
use rustix::mm::{Advice, madvise};

/// Linux's own advice drops the pages at once; POSIX's only says that they are not needed for now.
#[cfg(target_os = "linux")]
const DROP: Advice = Advice::LinuxDontNeed;
#[cfg(not(target_os = "linux"))]
const DROP: Advice = Advice::DontNeed;

/// The current mappings: first address and length.
static MAPPED: Mutex<BTreeMap<usize, usize>> = Mutex::new(BTreeMap::new());

fn mapped() -> MutexGuard<'static, BTreeMap<usize, usize>> {
    locked(&MAPPED)
}

/// A mapped file, listed in [`MAPPED`] for as long as it lives.
struct Mapped(memmap2::Mmap);

impl Mapped {
    fn new(map: memmap2::Mmap) -> Self {
        mapped().insert(map.as_ptr() as usize, map.len());
        Self(map)
    }
}

impl AsRef<[u8]> for Mapped {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl Drop for Mapped {
    fn drop(&mut self) {
        mapped().remove(&(self.0.as_ptr() as usize));
    }
}

/// Opens a file for reading without blocking: an ordinary open of a pipe that nobody writes to would wait forever.
fn open_without_waiting(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).custom_flags(OFlags::NONBLOCK.bits().cast_signed()).open(path)
}

/// Returns the bytes of a regular file, mapped read-only and private; pages are read when first touched.
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
    // kills this one with SIGBUS, and one that overwrites it in place changes the bytes: a worker maps only its own
    // content-addressed copies, which are written once and renamed into place; the command line maps what its user
    // names, as every prover does.
    let map = unsafe { memmap2::MmapOptions::new().map_copy_read_only(&file)? };
    Ok(Bytes::from_owner(Mapped::new(map)))
}

/// Returns the whole pages within an address range: start and length.
fn pages(start: usize, len: usize) -> Option<(usize, usize)> {
    let page = rustix::param::page_size();
    let (first, end) = (start.next_multiple_of(page), (start + len) / page * page);
    (first < end).then(|| (first, end - first))
}

/// Releases the memory that pages of a mapped file take in this process. Their bytes stay readable: they are read from
/// the page cache or the file again when next touched. Does nothing for bytes that are not in a mapped file.
pub(super) fn release(bytes: &[u8]) {
    let Some((start, len)) = pages(bytes.as_ptr() as usize, bytes.len()) else { return };
    let known = mapped();
    let inside = known.range(..=start).next_back().is_some_and(|(at, all)| start + len <= at + all);
    if inside {
        // SAFETY: the pages belong to a mapping of this process, which is private, read-only and never written to, and
        // which cannot be unmapped while its list is locked. Dropping such pages changes no byte that anyone can read.
        // On failure they stay where they are.
        let _ = unsafe { madvise(start as *mut _, len, DROP) };
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn released_pages_read_the_same_and_other_memory_is_left_alone() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let content: Vec<u8> = (0..100_000u32).map(|i| (i * 7) as u8).collect();
        std::fs::write(file.path(), &content).unwrap();
        let map = map_file(file.path()).unwrap();
        release(&map);
        release(&map[5000..90_000]);
        release(&[]);
        assert!(map == content);
        // Ordinary memory would read as zeros afterwards.
        release(&content);
        assert!(content.iter().any(|b| *b != 0) && map == content);
        let at = map.as_ptr() as usize;
        assert!(mapped().contains_key(&at));
        drop(map);
        assert!(!mapped().contains_key(&at));
    }
}
