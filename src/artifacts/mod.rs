//! Keys, witness programs and proofs as objects.
//!
//! ```text
//! zkeys/<sha256>   wasms/<sha256>          by content: written once, never changed, verified by hash
//! proofs/<job>/{proof,public}.json          copies for people; the database has the authoritative ones
//! damaged/{zkeys,wasms}/<sha256>            remote only: damage found by a download, repaired by the next import
//! ```
//!
//! Objects are in a folder ([`Artifacts::local`]), or in a store shared by many machines ([`Artifacts::bucket`]); keys
//! and programs are then cached on the local disk, within a budget. A reader sees all of an object or none of it. On a
//! file system the folders are accessible to the owner only (0700) and the content is read-only (0400).

mod cache;
mod files;
mod remote;

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use object_store::local::LocalFileSystem;
use object_store::memory::InMemory;
use object_store::path::Path as ObjectPath;
use object_store::{MultipartUpload, ObjectStore, ObjectStoreExt};
use sha2::{Digest, Sha256};

use crate::model::{ContentHash, JobId, io_reason};
use cache::Cache;
use files::{blocking, hash_file, io_error, open_without_waiting, set_mode, sweep};
use remote::describe;

pub use files::private_dir;
pub use remote::BucketSpec;

/// Size of the pieces in which objects are copied, in bytes.
const CHUNK: usize = 8 << 20;

/// Most pieces in transfer at a time to or from a remote store; bounds the memory.
const CONCURRENT_PIECES: usize = 4;

/// Most pieces of an object, below the limit of S3 and Google (10,000); larger objects have larger pieces.
const MAX_PIECES: u64 = 9_000;

/// The kind of an object that is stored by content.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// A proving key.
    Zkey,
    /// A witness program.
    Wasm,
}

impl Kind {
    const ALL: [Self; 2] = [Self::Zkey, Self::Wasm];

    fn folder(self) -> &'static str {
        match self {
            Self::Zkey => "zkeys",
            Self::Wasm => "wasms",
        }
    }

    fn at(self, hash: ContentHash) -> ObjectPath {
        ObjectPath::from_iter([self.folder(), &hash.to_string()])
    }

    /// The path of the mark that the object is damaged.
    fn damage_at(self, hash: ContentHash) -> ObjectPath {
        ObjectPath::from_iter(["damaged", self.folder(), &hash.to_string()])
    }
}

/// Why an operation on an object failed.
#[derive(Debug, thiserror::Error)]
pub enum ArtifactError {
    /// The object does not exist.
    #[error("{what} is not among the artifacts")]
    Missing {
        /// The object.
        what: String,
    },
    /// The object's content does not match its hash.
    #[error("{what} is damaged: its SHA-256 is {got}")]
    Damaged {
        /// The object.
        what: String,
        /// The hash of its content.
        got: ContentHash,
    },
    /// The file changed while it was imported.
    #[error("{0} changed while it was read")]
    Changed(String),
    /// A file could not be read or written.
    #[error("{what}: {}", io_reason(why))]
    Io {
        /// The file.
        what: String,
        /// The reason.
        why: io::Error,
    },
    /// The object store failed.
    #[error("{what}: {why}")]
    Store {
        /// The object, or the store.
        what: String,
        /// The store's message, without secrets.
        why: String,
    },
    /// A file operation ended without a result, because it panicked or the process is shutting down.
    #[error("a file operation was interrupted: {0}")]
    Interrupted(#[source] tokio::task::JoinError),
}

/// The content of an object, in memory or on disk.
#[derive(Debug, Clone)]
pub enum Content {
    /// A file that can be memory-mapped.
    File(PathBuf),
    /// Its bytes.
    Bytes(Bytes),
}

/// Where objects are stored.
#[derive(Clone)]
enum Place {
    Folder(PathBuf),
    Memory,
    Remote(Arc<Cache>),
}

/// A store of objects.
#[derive(Clone)]
pub struct Artifacts {
    store: Arc<dyn ObjectStore>,
    /// The store for proofs. On a file system they are not synced: the database has them, and files damaged by a loss
    /// of power are written again.
    proofs: Arc<dyn ObjectStore>,
    /// Whether copies of proofs are written.
    keeps_proofs: bool,
    /// The store's name, for errors.
    what: Arc<str>,
    place: Place,
}

impl Artifacts {
    /// Stores objects as files in `root`, which is created if needed. Half-written files of dead processes are removed.
    pub fn local(root: &Path) -> Result<Self, ArtifactError> {
        for folder in ["", "zkeys", "wasms", "proofs"] {
            private_dir(&root.join(folder))?;
        }
        for kind in Kind::ALL {
            sweep(&root.join(kind.folder()));
        }
        let what: Arc<str> = root.display().to_string().into();
        let open = || -> Result<LocalFileSystem, ArtifactError> {
            let store = LocalFileSystem::new_with_prefix(root)
                .map_err(|e| ArtifactError::Store { what: what.to_string(), why: describe(&e) })?;
            Ok(store.with_automatic_cleanup(false))
        };
        let (store, proofs) = (Arc::new(open()?.with_fsync(true)), Arc::new(open()?));
        Ok(Self { store, proofs, keeps_proofs: true, what, place: Place::Folder(root.to_path_buf()) })
    }

    /// Stores objects in memory, for tests.
    pub fn memory() -> Self {
        let store: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
        Self { proofs: store.clone(), store, keeps_proofs: true, what: "memory".into(), place: Place::Memory }
    }

    /// Stores objects in a remote store, called `what` in errors. Keys and programs that are used are cached in
    /// `cache_dir`, which must be a folder for that alone (any number of processes may share it), in at most
    /// `cache_bytes` bytes; the one in use is kept even if it is larger.
    pub fn remote(
        store: Arc<dyn ObjectStore>,
        what: String,
        cache_dir: &Path,
        cache_bytes: u64,
    ) -> Result<Self, ArtifactError> {
        let what: Arc<str> = what.into();
        let cache = Cache::open(store.clone(), what.clone(), cache_dir, cache_bytes)?;
        Ok(Self { proofs: store.clone(), store, keeps_proofs: true, what, place: Place::Remote(Arc::new(cache)) })
    }

    /// Stops writing copies of proofs. Existing ones stay until their jobs are purged.
    pub fn without_proofs(mut self) -> Self {
        self.keeps_proofs = false;
        self
    }

    /// Stores objects in a bucket, as by [`Artifacts::remote`]. Makes no request to the server yet.
    pub fn bucket(spec: &BucketSpec, cache_dir: &Path, cache_bytes: u64) -> Result<Self, ArtifactError> {
        Self::remote(spec.open()?, spec.url(), cache_dir, cache_bytes)
    }

    /// Imports a file, a piece at a time, and returns its hash and size in bytes. An existing intact object stays. Of a
    /// remote object, only the size is checked, and whether a download has shown it to be damaged.
    pub async fn import(&self, kind: Kind, file: &Path) -> Result<(ContentHash, u64), ArtifactError> {
        let source = file.to_path_buf();
        let (hash, size) = blocking(move || hash_file(&source)).await?;
        if self.is_sound(kind, hash, size).await? {
            return Ok((hash, size));
        }
        if let Place::Remote(_) = self.place
            && size <= CHUNK as u64
        {
            let source = file.to_path_buf();
            let bytes = blocking(move || read_up_to(&source, CHUNK)).await?;
            if ContentHash::of(&bytes) != hash {
                return Err(ArtifactError::Changed(file.display().to_string()));
            }
            self.put_whole(kind, hash, bytes.into()).await?;
            return Ok((hash, size));
        }
        let failed = |e| self.failed(&name(kind, hash), e);
        let mut upload = self.store.put_multipart(&kind.at(hash)).await.map_err(failed)?;
        let copied = match self.copy_in(upload.as_mut(), kind, hash, file, size).await {
            Ok(copied) if copied == hash => upload.complete().await.map(|_| ()).map_err(failed),
            Ok(_) => Err(ArtifactError::Changed(file.display().to_string())),
            Err(e) => Err(e),
        };
        if copied.is_err() {
            // The first error is the one to report.
            let _ = upload.abort().await;
        }
        copied?;
        self.written(kind, hash).await?;
        Ok((hash, size))
    }

    /// Stores bytes under their hash, which it returns.
    pub async fn put(&self, kind: Kind, bytes: Bytes) -> Result<ContentHash, ArtifactError> {
        let hash = ContentHash::of(&bytes);
        if !self.is_sound(kind, hash, bytes.len() as u64).await? {
            self.put_whole(kind, hash, bytes).await?;
        }
        Ok(hash)
    }

    /// Returns an object's bytes, verified by hash.
    pub async fn get(&self, kind: Kind, hash: ContentHash) -> Result<Bytes, ArtifactError> {
        if let Place::Remote(cache) = &self.place {
            return self.get_copy(cache, kind, hash).await;
        }
        let failed = |e| self.missing(kind, hash, e);
        let bytes = self.store.get(&kind.at(hash)).await.map_err(failed)?.bytes().await.map_err(failed)?;
        verify(kind, hash, &bytes)?;
        Ok(bytes)
    }

    /// Returns an object's file, to be mapped and then verified by [`verify`], or its verified bytes. A remote object
    /// is downloaded first. If using the file fails, [`Artifacts::try_again`] says whether to ask once more.
    pub async fn content(&self, kind: Kind, hash: ContentHash) -> Result<Content, ArtifactError> {
        match &self.place {
            Place::Memory => self.get(kind, hash).await.map(Content::Bytes),
            Place::Folder(root) => {
                self.store.head(&kind.at(hash)).await.map_err(|e| self.missing(kind, hash, e))?;
                Ok(Content::File(in_folder(root, kind, hash)))
            }
            Place::Remote(cache) => cache.fetch(kind, hash).await.map(|_| Content::File(cache.path(kind, hash))),
        }
    }

    /// Whether [`Artifacts::content`] may return a better file after the previous one was unusable for this reason:
    /// cached files are removed when others need the space, and a damaged one (which is removed now) can be downloaded
    /// again.
    pub async fn try_again(&self, kind: Kind, hash: ContentHash, why: &ArtifactError) -> Result<bool, ArtifactError> {
        let Place::Remote(cache) = &self.place else { return Ok(false) };
        match why {
            ArtifactError::Io { why, .. } if why.kind() == io::ErrorKind::NotFound => Ok(true),
            ArtifactError::Damaged { .. } => cache.forget(kind, hash).await.map(|()| true),
            _ => Ok(false),
        }
    }

    /// Returns the path of an object on this machine: its file, or its cached copy. The file may not exist. `None` for
    /// objects in memory.
    pub fn local_path(&self, kind: Kind, hash: ContentHash) -> Option<PathBuf> {
        match &self.place {
            Place::Folder(root) => Some(in_folder(root, kind, hash)),
            Place::Memory => None,
            Place::Remote(cache) => Some(cache.path(kind, hash)),
        }
    }

    /// Whether the object exists. Its content is not checked.
    pub async fn contains(&self, kind: Kind, hash: ContentHash) -> Result<bool, ArtifactError> {
        Ok(self.size_of(&kind.at(hash)).await?.is_some())
    }

    /// Removes an object and its cached copy, if they exist. Processes that have it mapped keep it until done.
    pub async fn remove(&self, kind: Kind, hash: ContentHash) -> Result<(), ArtifactError> {
        self.delete(&kind.at(hash)).await?;
        if let Place::Remote(cache) = &self.place {
            self.delete(&kind.damage_at(hash)).await?;
            cache.forget(kind, hash).await?;
        }
        Ok(())
    }

    /// Writes a job's proof.json and public.json, unless copies of proofs are disabled. public.json is written last: if
    /// it exists, both do.
    pub async fn put_proof(&self, job: JobId, proof: &str, public: &str) -> Result<(), ArtifactError> {
        if !self.keeps_proofs {
            return Ok(());
        }
        if let Some(dir) = self.proof_dir(job) {
            blocking(move || private_dir(&dir)).await?;
        }
        for (file, text) in [("proof.json", proof), ("public.json", public)] {
            let at = proof_at(job, file);
            self.proofs.put(&at, text.to_owned().into()).await.map_err(|e| self.failed(at.as_ref(), e))?;
        }
        Ok(())
    }

    /// Whether a job's proof files exist, if they are to, and are not empty, as files may be after a loss of power.
    pub async fn has_proof(&self, job: JobId) -> Result<bool, ArtifactError> {
        if !self.keeps_proofs {
            return Ok(true);
        }
        let files: &[&str] = match self.place {
            Place::Folder(_) => &["public.json", "proof.json"],
            Place::Memory | Place::Remote(_) => &["public.json"],
        };
        for file in files {
            if self.size_of(&proof_at(job, file)).await?.is_none_or(|size| size == 0) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Removes a job's proof files, if they exist.
    pub async fn remove_proof(&self, job: JobId) -> Result<(), ArtifactError> {
        // In this order, because where public.json exists, both do.
        for file in ["public.json", "proof.json"] {
            self.delete(&proof_at(job, file)).await?;
        }
        let Some(dir) = self.folder_of(job) else { return Ok(()) };
        let remove = move || {
            // Of processes that were killed while they wrote.
            for unfinished in std::fs::read_dir(&dir).into_iter().flatten().flatten().filter(files::is_unfinished) {
                // A file that stays is in the way of its folder alone.
                let _ = std::fs::remove_file(unfinished.path());
            }
            match std::fs::remove_dir(&dir) {
                Err(e) if !matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::DirectoryNotEmpty) => {
                    Err(io_error(&dir, e))
                }
                _ => Ok(()),
            }
        };
        blocking(remove).await
    }

    /// Returns the folder of a job's proof files, if objects are local files and copies of proofs are written.
    pub fn proof_dir(&self, job: JobId) -> Option<PathBuf> {
        self.folder_of(job).filter(|_| self.keeps_proofs)
    }

    fn folder_of(&self, job: JobId) -> Option<PathBuf> {
        match &self.place {
            Place::Folder(root) => Some(root.join("proofs").join(job.to_string())),
            Place::Memory | Place::Remote(_) => None,
        }
    }

    /// Reads a remote object through the cache. A damaged copy is downloaded again, once.
    async fn get_copy(&self, cache: &Cache, kind: Kind, hash: ContentHash) -> Result<Bytes, ArtifactError> {
        let mut last = false;
        loop {
            let (mut file, path) = (cache.fetch(kind, hash).await?, cache.path(kind, hash));
            let read = blocking(move || {
                let mut bytes = Vec::new();
                let read = file.seek(SeekFrom::Start(0)).and_then(|_| file.read_to_end(&mut bytes));
                read.map_err(|why| io_error(&path, why))?;
                verify(kind, hash, &bytes).map(|()| bytes.into())
            });
            match read.await {
                Err(ArtifactError::Damaged { .. }) if !last => cache.forget(kind, hash).await?,
                done => return done,
            }
            last = true;
        }
    }

    async fn put_whole(&self, kind: Kind, hash: ContentHash, bytes: Bytes) -> Result<(), ArtifactError> {
        self.store.put(&kind.at(hash), bytes.into()).await.map_err(|e| self.failed(&name(kind, hash), e))?;
        self.written(kind, hash).await
    }

    /// Completes the writing of an object.
    async fn written(&self, kind: Kind, hash: ContentHash) -> Result<(), ArtifactError> {
        match &self.place {
            Place::Folder(root) => set_mode(&in_folder(root, kind, hash), 0o400),
            Place::Memory => Ok(()),
            Place::Remote(_) => self.delete(&kind.damage_at(hash)).await,
        }
    }

    async fn is_sound(&self, kind: Kind, hash: ContentHash, size: u64) -> Result<bool, ArtifactError> {
        let Some(found) = self.size_of(&kind.at(hash)).await? else { return Ok(false) };
        if found != size {
            return Ok(false);
        }
        match &self.place {
            // A damaged object is replaced, not trusted for its name.
            Place::Folder(root) => {
                let path = in_folder(root, kind, hash);
                Ok(blocking(move || hash_file(&path)).await?.0 == hash)
            }
            Place::Memory => Ok(self.get(kind, hash).await.is_ok()),
            Place::Remote(_) => Ok(self.size_of(&kind.damage_at(hash)).await?.is_none()),
        }
    }

    /// Uploads a file piece by piece and returns the hash of the uploaded bytes.
    async fn copy_in(
        &self,
        upload: &mut dyn MultipartUpload,
        kind: Kind,
        hash: ContentHash,
        file: &Path,
        size: u64,
    ) -> Result<ContentHash, ArtifactError> {
        let at_once = if let Place::Remote(_) = self.place { CONCURRENT_PIECES } else { 1 };
        let piece_bytes = size.div_ceil(MAX_PIECES).max(CHUNK as u64);
        let failed = |e| self.failed(&name(kind, hash), e);
        let mut source = open_without_waiting(file).map_err(|why| io_error(file, why))?;
        let mut hash = Sha256::new();
        let mut under_way = FuturesUnordered::new();
        loop {
            let (back, piece) = blocking(move || Ok(read_piece(source, piece_bytes))).await?;
            source = back;
            let piece = piece.map_err(|why| io_error(file, why))?;
            if piece.is_empty() {
                break;
            }
            hash.update(&piece);
            while under_way.len() >= at_once {
                under_way.next().await.transpose().map_err(failed)?;
            }
            under_way.push(upload.put_part(piece.into()));
        }
        while let Some(done) = under_way.next().await {
            done.map_err(failed)?;
        }
        Ok(ContentHash(hash.finalize().into()))
    }

    async fn size_of(&self, at: &ObjectPath) -> Result<Option<u64>, ArtifactError> {
        match self.store.head(at).await {
            Ok(meta) => Ok(Some(meta.size)),
            Err(object_store::Error::NotFound { .. }) => Ok(None),
            Err(e) => Err(self.failed(at.as_ref(), e)),
        }
    }

    async fn delete(&self, at: &ObjectPath) -> Result<(), ArtifactError> {
        match self.store.delete(at).await {
            Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
            Err(e) => Err(self.failed(at.as_ref(), e)),
        }
    }

    fn full_name(&self, kind: Kind, hash: ContentHash) -> String {
        format!("{}/{}", self.what, name(kind, hash))
    }

    fn missing(&self, kind: Kind, hash: ContentHash, e: object_store::Error) -> ArtifactError {
        match e {
            object_store::Error::NotFound { .. } => ArtifactError::Missing { what: self.full_name(kind, hash) },
            e => self.failed(&name(kind, hash), e),
        }
    }

    fn failed(&self, object: &str, e: object_store::Error) -> ArtifactError {
        let what = format!("{}/{object}", self.what);
        // In a folder, the cause is the file system.
        match io_cause(&e) {
            Some(cause) if matches!(self.place, Place::Folder(_)) => {
                let by_words = || io::Error::new(cause.kind(), cause.to_string());
                let why = cause.raw_os_error().map_or_else(by_words, io::Error::from_raw_os_error);
                ArtifactError::Io { what, why }
            }
            _ => ArtifactError::Store { what, why: describe(&e) },
        }
    }
}

/// Fails unless `bytes` hash to the object's name.
pub fn verify(kind: Kind, hash: ContentHash, bytes: &[u8]) -> Result<(), ArtifactError> {
    let got = ContentHash::of(bytes);
    if got == hash { Ok(()) } else { Err(ArtifactError::Damaged { what: name(kind, hash), got }) }
}

fn in_folder(root: &Path, kind: Kind, hash: ContentHash) -> PathBuf {
    root.join(kind.folder()).join(hash.to_string())
}

fn proof_at(job: JobId, file: &str) -> ObjectPath {
    ObjectPath::from_iter(["proofs", &job.to_string(), file])
}

fn name(kind: Kind, hash: ContentHash) -> String {
    format!("{}/{hash}", kind.folder())
}

/// Returns the innermost I/O error, if there is one.
fn io_cause(e: &object_store::Error) -> Option<&io::Error> {
    let mut inner = std::error::Error::source(e);
    let mut found = None;
    while let Some(cause) = inner {
        found = cause.downcast_ref::<io::Error>().or(found);
        inner = cause.source();
    }
    found
}

fn read_piece(mut source: File, most: u64) -> (File, io::Result<Vec<u8>>) {
    let mut piece = Vec::with_capacity(usize::try_from(most).unwrap_or(CHUNK));
    let read = (&mut source).take(most).read_to_end(&mut piece);
    (source, read.map(|_| piece))
}

/// Reads the first `most` bytes of a file.
fn read_up_to(path: &Path, most: usize) -> Result<Vec<u8>, ArtifactError> {
    let source = open_without_waiting(path).map_err(|why| io_error(path, why))?;
    read_piece(source, most as u64).1.map_err(|why| io_error(path, why))
}

#[cfg(test)]
mod tests;
