//! Whether a folder accepts writes.

use std::io::{self, Write};
use std::path::Path;

/// Bytes written to find out.
const PIECE: usize = 64 << 10;

/// Fails if the folder's disk is full, over a quota, or read-only. Other errors say nothing about the files that
/// already exist: those may be writable where no new file can be created.
pub(super) fn takes_writes(folder: &Path) -> io::Result<()> {
    let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
    let written = tempfile::tempfile_in(folder).and_then(|mut file| file.write_all(&[0; PIECE]));
    written.or_else(|e| if is_of_disk(&e) { Err(e) } else { Ok(()) })
}

fn is_of_disk(e: &io::Error) -> bool {
    use io::ErrorKind::{QuotaExceeded, ReadOnlyFilesystem, StorageFull};
    matches!(e.kind(), StorageFull | QuotaExceeded | ReadOnlyFilesystem)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn only_the_disk_is_to_blame() {
        let folder = tempfile::tempdir().unwrap();
        takes_writes(folder.path()).unwrap();
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0, "it leaves nothing");
        takes_writes(&folder.path().join("nowhere")).unwrap();
        takes_writes(Path::new("")).unwrap();
        let of = |kind: io::ErrorKind| is_of_disk(&kind.into());
        assert!(of(io::ErrorKind::StorageFull) && of(io::ErrorKind::ReadOnlyFilesystem));
        assert!(!of(io::ErrorKind::PermissionDenied));
    }
}
