//! Whether a folder's disk accepts writes.

use std::io::{self, Write};
use std::path::Path;

/// Bytes written to find out.
const PROBE_BYTES: usize = 64 << 10;

/// Fails if the folder's disk is full, over a quota, or read-only. Other errors say nothing about the files that
/// already exist: those may be writable where no new file can be created.
pub(super) fn check_writable(folder: &Path) -> io::Result<()> {
    let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
    let written = tempfile::tempfile_in(folder).and_then(|mut file| file.write_all(&[0; PROBE_BYTES]));
    written.or_else(|e| if is_disk_error(&e) { Err(e) } else { Ok(()) })
}

fn is_disk_error(e: &io::Error) -> bool {
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
        check_writable(folder.path()).unwrap();
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0, "it leaves nothing");
        check_writable(&folder.path().join("nowhere")).unwrap();
        check_writable(Path::new("")).unwrap();
        let of = |kind: io::ErrorKind| is_disk_error(&kind.into());
        assert!(of(io::ErrorKind::StorageFull) && of(io::ErrorKind::ReadOnlyFilesystem));
        assert!(!of(io::ErrorKind::PermissionDenied));
    }
}
