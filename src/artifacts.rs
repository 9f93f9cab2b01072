//! Keys, witness programs and proofs as objects.
//!
//! ```text
//! zkeys/<sha256>   wasms/<sha256>          by content: written once, never changed, verified by hash
//! proofs/<job>/{proof,public}.json          copies for people; the store has the authoritative ones
//! ```
//!
//! Objects are written to a temporary name and renamed, so a reader sees all of one or none of it. On a file system
//! the folders are the owner's alone (0700) and the content is read-only (0400).

use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use object_store::local::LocalFileSystem;
use object_store::memory::InMemory;
use object_store::path::Path as ObjectPath;
use object_store::{MultipartUpload, ObjectStore, ObjectStoreExt};
use rustix::fs::OFlags;
use sha2::{Digest, Sha256};

use crate::model::{ContentHash, JobId};

/// Bytes of a file in memory at a time while it is copied in.
const CHUNK: usize = 8 << 20;

/// How long a half-written object is left alone. Longer than any import takes, so it belongs to a process that died.
const STALE: Duration = Duration::from_secs(24 * 3600);

/// What an object by content is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// A proving key.
    Zkey,
    /// A witness program.
    Wasm,
}

impl Kind {
    fn folder(self) -> &'static str {
        match self {
            Self::Zkey => "zkeys",
            Self::Wasm => "wasms",
        }
    }

    fn at(self, hash: ContentHash) -> ObjectPath {
        ObjectPath::from_iter([self.folder(), &hash.to_string()])
    }
}

/// What can go wrong with an object.
#[derive(Debug, thiserror::Error)]
pub enum ArtifactError {
    /// It is not there.
    #[error("{what} is not among the artifacts")]
    Missing {
        /// Which object.
        what: String,
    },
    /// Its content is not what its name says.
    #[error("{what} is damaged: its SHA-256 is {got}")]
    Damaged {
        /// Which object.
        what: String,
        /// The hash it has.
        got: ContentHash,
    },
    /// The file changed while it was copied in.
    #[error("{0} changed while it was read")]
    Changed(String),
    /// A file could not be read or written.
    #[error("{what}: {why}")]
    Io {
        /// Which file.
        what: String,
        /// Why not.
        why: io::Error,
    },
    /// The object store failed.
    #[error("artifacts: {0}")]
    Store(#[from] object_store::Error),
}

/// An object in memory or on disk, as content.
#[derive(Debug, Clone)]
pub enum Content {
    /// A file that can be mapped.
    File(PathBuf),
    /// Its bytes.
    Bytes(Bytes),
}

/// The objects.
#[derive(Clone)]
pub struct Artifacts {
    store: Arc<dyn ObjectStore>,
    /// The folder, when objects are files.
    root: Option<PathBuf>,
}

impl Artifacts {
    /// Objects as files in `root`, which is made if need be. What processes that died left half-written is removed.
    pub fn local(root: &Path) -> Result<Self, ArtifactError> {
        for folder in ["", "zkeys", "wasms", "proofs"] {
            private_dir(&root.join(folder))?;
        }
        for kind in [Kind::Zkey, Kind::Wasm] {
            sweep(&root.join(kind.folder()));
        }
        let store = LocalFileSystem::new_with_prefix(root)?.with_fsync(true).with_automatic_cleanup(false);
        Ok(Self { store: Arc::new(store), root: Some(root.to_path_buf()) })
    }

    /// Objects in memory, for tests.
    pub fn memory() -> Self {
        Self { store: Arc::new(InMemory::new()), root: None }
    }

    /// Copies a file in, a piece at a time, and returns its hash and size. A sound object that is there already stays.
    pub async fn import(&self, kind: Kind, file: &Path) -> Result<(ContentHash, u64), ArtifactError> {
        let source = file.to_path_buf();
        let (hash, size) = blocking(move || hash_file(&source)).await?;
        if self.is_sound(kind, hash).await? {
            return Ok((hash, size));
        }
        let mut upload = self.store.put_multipart(&kind.at(hash)).await?;
        match copy_in(upload.as_mut(), file).await {
            Ok(copied) if copied == hash => {
                upload.complete().await?;
                self.make_read_only(kind, hash)?;
                Ok((hash, size))
            }
            Ok(_) => {
                upload.abort().await?;
                Err(ArtifactError::Changed(file.display().to_string()))
            }
            Err(e) => {
                upload.abort().await?;
                Err(e)
            }
        }
    }

    /// Stores bytes under their hash.
    pub async fn put(&self, kind: Kind, bytes: Bytes) -> Result<ContentHash, ArtifactError> {
        let hash = ContentHash::of(&bytes);
        if !self.is_sound(kind, hash).await? {
            self.store.put(&kind.at(hash), bytes.into()).await?;
            self.make_read_only(kind, hash)?;
        }
        Ok(hash)
    }

    /// An object's bytes, verified by hash.
    pub async fn get(&self, kind: Kind, hash: ContentHash) -> Result<Bytes, ArtifactError> {
        let bytes = match self.store.get(&kind.at(hash)).await {
            Ok(found) => found.bytes().await?,
            Err(e) => return Err(missing(kind, hash, e)),
        };
        verify(kind, hash, &bytes)?;
        Ok(bytes)
    }

    /// Where an object is: its file, to be mapped and then verified by [`verify`], or its bytes, verified.
    pub async fn content(&self, kind: Kind, hash: ContentHash) -> Result<Content, ArtifactError> {
        match self.local_path(kind, hash) {
            None => self.get(kind, hash).await.map(Content::Bytes),
            Some(path) => {
                self.store.head(&kind.at(hash)).await.map_err(|e| missing(kind, hash, e))?;
                Ok(Content::File(path))
            }
        }
    }

    /// The file of an object, when objects are files. It may not be there.
    pub fn local_path(&self, kind: Kind, hash: ContentHash) -> Option<PathBuf> {
        self.root.as_ref().map(|r| r.join(kind.folder()).join(hash.to_string()))
    }

    /// Whether there is such an object; says nothing on its content.
    pub async fn contains(&self, kind: Kind, hash: ContentHash) -> Result<bool, ArtifactError> {
        match self.store.head(&kind.at(hash)).await {
            Ok(_) => Ok(true),
            Err(object_store::Error::NotFound { .. }) => Ok(false),
            Err(e) => Err(e.into()),
        }
    }

    /// Removes an object; none is fine. Whoever has it mapped keeps it until done.
    pub async fn remove(&self, kind: Kind, hash: ContentHash) -> Result<(), ArtifactError> {
        match self.store.delete(&kind.at(hash)).await {
            Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
            Err(e) => Err(e.into()),
        }
    }

    /// Writes a job's proof.json and public.json. The second is written last: where it is, both are.
    pub async fn put_proof(&self, job: JobId, proof: &str, public: &str) -> Result<(), ArtifactError> {
        if let Some(root) = &self.root {
            private_dir(&root.join("proofs").join(job.to_string()))?;
        }
        self.store.put(&proof_at(job, "proof.json"), proof.to_owned().into()).await?;
        self.store.put(&proof_at(job, "public.json"), public.to_owned().into()).await?;
        Ok(())
    }

    /// Whether a job's proof files are there.
    pub async fn has_proof(&self, job: JobId) -> Result<bool, ArtifactError> {
        match self.store.head(&proof_at(job, "public.json")).await {
            Ok(_) => Ok(true),
            Err(object_store::Error::NotFound { .. }) => Ok(false),
            Err(e) => Err(e.into()),
        }
    }

    /// The folder of a job's proof files, when objects are files.
    pub fn proof_dir(&self, job: JobId) -> Option<PathBuf> {
        self.root.as_ref().map(|r| r.join("proofs").join(job.to_string()))
    }

    async fn is_sound(&self, kind: Kind, hash: ContentHash) -> Result<bool, ArtifactError> {
        if !self.contains(kind, hash).await? {
            return Ok(false);
        }
        match self.local_path(kind, hash) {
            // A damaged object is replaced, not trusted for its name.
            Some(path) => Ok(blocking(move || hash_file(&path)).await?.0 == hash),
            None => Ok(self.get(kind, hash).await.is_ok()),
        }
    }

    fn make_read_only(&self, kind: Kind, hash: ContentHash) -> Result<(), ArtifactError> {
        self.local_path(kind, hash).map_or(Ok(()), |path| set_mode(&path, 0o400))
    }
}

/// Fails unless `bytes` hash to the object's name.
pub fn verify(kind: Kind, hash: ContentHash, bytes: &[u8]) -> Result<(), ArtifactError> {
    let got = ContentHash::of(bytes);
    if got == hash { Ok(()) } else { Err(ArtifactError::Damaged { what: name(kind, hash), got }) }
}

/// Makes a folder that only its owner may look into.
pub fn private_dir(dir: &Path) -> Result<(), ArtifactError> {
    use std::os::unix::fs::DirBuilderExt;
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .map_err(|why| ArtifactError::Io { what: dir.display().to_string(), why })
}

/// Removes old half-written objects, which have a `#` after their name until they are whole. One that cannot be removed
/// does no harm.
fn sweep(folder: &Path) {
    let Ok(entries) = std::fs::read_dir(folder) else { return };
    for entry in entries.filter_map(Result::ok) {
        let written = entry.metadata().and_then(|m| m.modified());
        let age = written.ok().and_then(|at| SystemTime::now().duration_since(at).ok());
        if entry.file_name().to_string_lossy().contains('#') && age.is_some_and(|age| age > STALE) {
            let _ = std::fs::remove_file(entry.path());
        }
    }
}

fn set_mode(path: &Path, mode: u32) -> Result<(), ArtifactError> {
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))
        .map_err(|why| ArtifactError::Io { what: path.display().to_string(), why })
}

fn proof_at(job: JobId, file: &str) -> ObjectPath {
    ObjectPath::from_iter(["proofs", &job.to_string(), file])
}

fn name(kind: Kind, hash: ContentHash) -> String {
    format!("{}/{hash}", kind.folder())
}

fn missing(kind: Kind, hash: ContentHash, e: object_store::Error) -> ArtifactError {
    match e {
        object_store::Error::NotFound { .. } => ArtifactError::Missing { what: name(kind, hash) },
        e => e.into(),
    }
}

/// Opens a file for reading. A pipe that nobody writes to would keep an ordinary open waiting for ever.
fn open_without_waiting(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).custom_flags(OFlags::NONBLOCK.bits().cast_signed()).open(path)
}

fn hash_file(path: &Path) -> Result<(ContentHash, u64), ArtifactError> {
    let failed = |why| ArtifactError::Io { what: path.display().to_string(), why };
    let mut file = open_without_waiting(path).map_err(failed)?;
    if !file.metadata().map_err(failed)?.is_file() {
        return Err(failed(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file")));
    }
    let mut hash = Sha256::new();
    let mut piece = vec![0; 1 << 20];
    let mut size = 0;
    loop {
        match file.read(&mut piece) {
            Ok(0) => return Ok((ContentHash(hash.finalize().into()), size)),
            Ok(n) => {
                hash.update(&piece[..n]);
                size += n as u64;
            }
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(failed(e)),
        }
    }
}

/// Uploads a file piece by piece and returns the hash of what was uploaded.
async fn copy_in(upload: &mut dyn MultipartUpload, file: &Path) -> Result<ContentHash, ArtifactError> {
    let what = file.display().to_string();
    let failed = |why| ArtifactError::Io { what: what.clone(), why };
    let mut source = open_without_waiting(file).map_err(failed)?;
    let mut hash = Sha256::new();
    loop {
        let (back, piece) = blocking(move || {
            let mut piece = Vec::with_capacity(CHUNK);
            let read = (&mut source).take(CHUNK as u64).read_to_end(&mut piece);
            Ok((source, read.map(|_| piece)))
        })
        .await?;
        source = back;
        let piece = piece.map_err(failed)?;
        if piece.is_empty() {
            return Ok(ContentHash(hash.finalize().into()));
        }
        hash.update(&piece);
        // One piece at a time, which bounds the memory.
        upload.put_part(piece.into()).await?;
    }
}

async fn blocking<T: Send + 'static>(
    f: impl FnOnce() -> Result<T, ArtifactError> + Send + 'static,
) -> Result<T, ArtifactError> {
    match tokio::task::spawn_blocking(f).await {
        Ok(result) => result,
        Err(e) => Err(ArtifactError::Io { what: "reading".to_owned(), why: io::Error::other(e) }),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn mode(p: &Path) -> u32 {
        std::fs::metadata(p).unwrap().permissions().mode() & 0o777
    }

    #[tokio::test]
    async fn a_file_is_imported_by_content_private_and_once() {
        let dir = tempfile::tempdir().unwrap();
        let artifacts = Artifacts::local(&dir.path().join("data")).unwrap();
        let file = dir.path().join("big");
        // More than two pieces, the last one not full.
        let content: Vec<u8> = (0..2 * CHUNK + 12_345).map(|i| (i * 31 % 251) as u8).collect();
        std::fs::write(&file, &content).unwrap();
        let (hash, size) = artifacts.import(Kind::Zkey, &file).await.unwrap();
        assert_eq!(hash, ContentHash::of(&content));
        assert_eq!(size, content.len() as u64);
        let path = artifacts.local_path(Kind::Zkey, hash).unwrap();
        assert_eq!(mode(&path), 0o400);
        assert_eq!(mode(path.parent().unwrap()), 0o700);
        assert_eq!(artifacts.get(Kind::Zkey, hash).await.unwrap(), content);
        let before = std::fs::metadata(&path).unwrap().modified().unwrap();
        artifacts.import(Kind::Zkey, &file).await.unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().modified().unwrap(), before);
        assert_eq!(std::fs::read_dir(path.parent().unwrap()).unwrap().count(), 1, "no temporary file is left");
    }

    #[test]
    fn what_a_killed_copy_left_is_swept_when_it_is_old() {
        let dir = tempfile::tempdir().unwrap();
        let keys = dir.path().join("zkeys");
        Artifacts::local(dir.path()).unwrap();
        for name in ["aa", "aa#1", "bb#1"] {
            std::fs::write(keys.join(name), b"x").unwrap();
        }
        for name in ["aa", "aa#1"] {
            let file = File::options().write(true).open(keys.join(name)).unwrap();
            file.set_modified(std::time::SystemTime::now() - 2 * STALE).unwrap();
        }
        Artifacts::local(dir.path()).unwrap();
        let there = |name: &str| keys.join(name).exists();
        assert_eq!((there("aa"), there("aa#1"), there("bb#1")), (true, false, true));
    }

    #[tokio::test]
    async fn damage_is_noticed_and_mended_by_the_next_import() {
        let dir = tempfile::tempdir().unwrap();
        let artifacts = Artifacts::local(&dir.path().join("data")).unwrap();
        let file = dir.path().join("f");
        std::fs::write(&file, b"some key").unwrap();
        let (hash, _) = artifacts.import(Kind::Wasm, &file).await.unwrap();
        let path = artifacts.local_path(Kind::Wasm, hash).unwrap();
        std::fs::remove_file(&path).unwrap();
        std::fs::write(&path, b"some kex").unwrap();
        assert!(matches!(artifacts.get(Kind::Wasm, hash).await, Err(ArtifactError::Damaged { .. })));
        artifacts.import(Kind::Wasm, &file).await.unwrap();
        assert_eq!(artifacts.get(Kind::Wasm, hash).await.unwrap(), &b"some key"[..]);
    }

    #[tokio::test]
    async fn what_a_dead_process_left_half_written_is_removed_after_a_day() {
        let dir = tempfile::tempdir().unwrap();
        let artifacts = Artifacts::local(dir.path()).unwrap();
        let whole = artifacts.put(Kind::Zkey, Bytes::from_static(b"x")).await.unwrap();
        // What an import leaves that is cut short.
        let cut = ContentHash::of(b"y");
        let upload = artifacts.store.put_multipart(&Kind::Zkey.at(cut)).await.unwrap();
        std::mem::forget(upload);
        let folder = dir.path().join("zkeys");
        let files = || std::fs::read_dir(&folder).unwrap().map(|e| e.unwrap().path()).collect::<Vec<_>>();
        Artifacts::local(dir.path()).unwrap();
        assert_eq!(files().len(), 2, "an import may be at work on it");
        for file in files() {
            let long_ago = SystemTime::now() - 2 * STALE;
            set_mode(&file, 0o600).unwrap();
            File::options().write(true).open(file).unwrap().set_modified(long_ago).unwrap();
        }
        Artifacts::local(dir.path()).unwrap();
        assert_eq!(files(), [artifacts.local_path(Kind::Zkey, whole).unwrap()]);
    }

    #[tokio::test]
    async fn what_is_not_there_is_missing_and_removal_is_idempotent() {
        for artifacts in [Artifacts::memory(), Artifacts::local(tempfile::tempdir().unwrap().path()).unwrap()] {
            let hash = ContentHash::of(b"nothing");
            assert!(matches!(artifacts.get(Kind::Zkey, hash).await, Err(ArtifactError::Missing { .. })));
            assert!(matches!(artifacts.content(Kind::Zkey, hash).await, Err(ArtifactError::Missing { .. })));
            artifacts.remove(Kind::Zkey, hash).await.unwrap();
            let hash = artifacts.put(Kind::Zkey, Bytes::from_static(b"x")).await.unwrap();
            assert!(artifacts.contains(Kind::Zkey, hash).await.unwrap());
            artifacts.remove(Kind::Zkey, hash).await.unwrap();
            assert!(!artifacts.contains(Kind::Zkey, hash).await.unwrap());
        }
    }

    #[tokio::test]
    async fn proofs_are_files_by_job() {
        let dir = tempfile::tempdir().unwrap();
        let artifacts = Artifacts::local(dir.path()).unwrap();
        let job = JobId::new();
        assert!(!artifacts.has_proof(job).await.unwrap());
        artifacts.put_proof(job, "{}", "[]").await.unwrap();
        assert!(artifacts.has_proof(job).await.unwrap());
        let folder = artifacts.proof_dir(job).unwrap();
        assert_eq!(std::fs::read_to_string(folder.join("proof.json")).unwrap(), "{}");
        assert_eq!(std::fs::read_to_string(folder.join("public.json")).unwrap(), "[]");
        assert_eq!(mode(&folder), 0o700);
    }
}
