//! Local files and folders.

use std::fs::{DirEntry, File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::{Duration, SystemTime};

use rustix::fs::OFlags;
use sha2::{Digest, Sha256};

use super::ArtifactError;
use crate::model::ContentHash;

/// How long a half-written object is left alone. No import takes that long, so it belongs to a process that died.
pub(super) const STALE: Duration = Duration::from_secs(24 * 3600);

/// Creates a folder, and its parents, that only the owner may access.
pub fn private_dir(dir: &Path) -> Result<(), ArtifactError> {
    use std::os::unix::fs::DirBuilderExt;
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(|why| io_error(dir, why))
}

/// Whether a file is an object that is not complete yet: until then, a `#` follows its name.
pub(super) fn is_unfinished(entry: &DirEntry) -> bool {
    entry.file_name().to_string_lossy().contains('#')
}

/// Removes old half-written objects. Failures are ignored: such files do no harm.
pub(super) fn sweep(folder: &Path) {
    let Ok(entries) = std::fs::read_dir(folder) else { return };
    for entry in entries.filter_map(Result::ok) {
        let written = entry.metadata().and_then(|m| m.modified());
        let age = written.ok().and_then(|at| SystemTime::now().duration_since(at).ok());
        if is_unfinished(&entry) && age.is_some_and(|age| age > STALE) {
            let _ = std::fs::remove_file(entry.path());
        }
    }
}

pub(super) fn set_mode(path: &Path, mode: u32) -> Result<(), ArtifactError> {
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).map_err(|why| io_error(path, why))
}

/// Opens a file for reading without blocking: an ordinary open of a pipe without a writer would wait forever.
pub(super) fn open_without_waiting(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).custom_flags(OFlags::NONBLOCK.bits().cast_signed()).open(path)
}

/// Returns the hash and the size in bytes of a regular file.
pub(super) fn hash_file(path: &Path) -> Result<(ContentHash, u64), ArtifactError> {
    let failed = |why| io_error(path, why);
    let mut file = open_without_waiting(path).map_err(failed)?;
    if !file.metadata().map_err(failed)?.is_file() {
        return Err(failed(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file")));
    }
    let mut hash = Sha256::new();
    let size = hash_into(&mut hash, &mut file).map_err(failed)?;
    Ok((ContentHash(hash.finalize().into()), size))
}

/// Feeds the rest of a file to a hash and returns the number of bytes.
pub(super) fn hash_into(hash: &mut Sha256, file: &mut File) -> io::Result<u64> {
    let mut piece = vec![0; 1 << 20];
    let mut size = 0;
    loop {
        match file.read(&mut piece) {
            Ok(0) => return Ok(size),
            Ok(n) => {
                hash.update(&piece[..n]);
                size += n as u64;
            }
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
}

pub(super) fn io_error(path: &Path, why: io::Error) -> ArtifactError {
    ArtifactError::Io { what: path.display().to_string(), why }
}

/// Whether the disk, or the user's quota, is full.
pub(super) fn is_full(e: &io::Error) -> bool {
    matches!(e.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

/// Runs file operations on a blocking thread.
pub(super) async fn blocking<T: Send + 'static>(
    f: impl FnOnce() -> Result<T, ArtifactError> + Send + 'static,
) -> Result<T, ArtifactError> {
    match tokio::task::spawn_blocking(f).await {
        Ok(result) => result,
        Err(e) => Err(ArtifactError::Interrupted(e)),
    }
}
