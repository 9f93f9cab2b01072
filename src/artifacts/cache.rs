//! Remote objects cached on the local disk.
//!
//! ```text
//! <dir>/{zkeys,wasms}/<sha256>                  whole, read-only
//! <dir>/{zkeys,wasms}/<sha256>.part#<random>    being downloaded, locked by the process that writes it
//! ```
//!
//! An object is downloaded piece by piece, hashed on the way, and gets its name only if the hash is right. An unlocked
//! `.part` file was left by an interrupted download; the next download resumes it. Files can be removed at any time:
//! processes that have one open or mapped keep it until done. So any number of processes may share the folder.

use std::collections::HashMap;
use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use futures::StreamExt;
use object_store::path::Path as ObjectPath;
use object_store::{ObjectStore, ObjectStoreExt};
use sha2::{Digest, Sha256};
use tokio::sync::OwnedMutexGuard;

use super::files::{blocking, hash_into, io_error, is_full, private_dir};
use super::remote::describe;
use super::{ArtifactError, CHUNK, CONCURRENT_PIECES, Kind, name};
use crate::model::{ContentHash, locked};

/// How often a download is resumed after a failure before it gives up; the count starts again whenever a piece arrives.
const TRIES: u32 = 4;

/// The wait after the first failure; each further one is three times as long.
const BACK_OFF: Duration = Duration::from_millis(100);

type Turns = HashMap<(Kind, ContentHash), Weak<tokio::sync::Mutex<()>>>;

pub(super) struct Cache {
    store: Arc<dyn ObjectStore>,
    /// The store's name, for errors.
    what: Arc<str>,
    dir: PathBuf,
    budget: u64,
    /// Admits one download at a time for each object.
    turns: Mutex<Turns>,
}

impl Cache {
    pub(super) fn open(
        store: Arc<dyn ObjectStore>,
        what: Arc<str>,
        dir: &Path,
        budget: u64,
    ) -> Result<Self, ArtifactError> {
        private_dir(dir)?;
        for kind in Kind::ALL {
            private_dir(&dir.join(kind.folder()))?;
        }
        Ok(Self { store, what, dir: dir.to_path_buf(), budget, turns: Mutex::default() })
    }

    pub(super) fn path(&self, kind: Kind, hash: ContentHash) -> PathBuf {
        self.dir.join(kind.folder()).join(hash.to_string())
    }

    /// Returns an object's file, open, downloading it if needed. Its path may be gone the next moment, if others need
    /// the space.
    pub(super) async fn fetch(&self, kind: Kind, hash: ContentHash) -> Result<File, ArtifactError> {
        let path = self.path(kind, hash);
        if let Some(file) = touch(&path).await? {
            return Ok(file);
        }
        let turn = self.turn(kind, hash).lock_owned().await;
        // The previous holder of the turn may have downloaded it.
        if let Some(file) = touch(&path).await? {
            return Ok(file);
        }
        self.download(kind, hash, turn).await
    }

    /// Removes the local copy of an object, if there is one.
    pub(super) async fn forget(&self, kind: Kind, hash: ContentHash) -> Result<(), ArtifactError> {
        let path = self.path(kind, hash);
        blocking(move || remove_if_there(&path)).await
    }

    fn turn(&self, kind: Kind, hash: ContentHash) -> Arc<tokio::sync::Mutex<()>> {
        let mut turns = locked(&self.turns);
        turns.retain(|_, turn| turn.strong_count() > 0);
        if let Some(turn) = turns.get(&(kind, hash)).and_then(Weak::upgrade) {
            return turn;
        }
        let turn = Arc::default();
        turns.insert((kind, hash), Arc::downgrade(&turn));
        turn
    }

    async fn download(&self, kind: Kind, hash: ContentHash, turn: OwnedMutexGuard<()>) -> Result<File, ArtifactError> {
        let size = self.size(kind, hash).await?;
        self.evict_to_budget(kind, hash, size).await?;
        let path = self.path(kind, hash);
        let mut part = blocking(move || Part::open(path, size, turn)).await?;
        let mut again = false;
        loop {
            part = self.fill(kind, hash, part, size).await?;
            let got = part.hash();
            if got == hash {
                let file = blocking(move || part.finish()).await?;
                // Others may have downloaded at the same time, each with only its own object in mind.
                self.evict_to_budget(kind, hash, size).await?;
                return Ok(file);
            }
            if part.resumed && !again {
                // The resumed part, or an object replaced meanwhile, may be at fault: once more, without interruption.
                again = true;
                part = blocking(move || part.restart()).await?;
                continue;
            }
            blocking(move || part.discard()).await?;
            self.report_damage(kind, hash).await;
            return Err(ArtifactError::Damaged { what: self.name(kind, hash), got });
        }
    }

    /// Downloads what a part lacks. On a final failure, what has arrived is kept for another time, unless the disk is
    /// at fault.
    async fn fill(&self, kind: Kind, hash: ContentHash, mut part: Part, size: u64) -> Result<Part, ArtifactError> {
        let mut failures = 0;
        while part.len < size {
            let starts = (part.len..size).step_by(CHUNK);
            let mut pieces = futures::stream::iter(starts)
                .map(|from| self.piece(kind.at(hash), from, size.min(from.saturating_add(CHUNK as u64))))
                .buffered(CONCURRENT_PIECES);
            while let Some(piece) = pieces.next().await {
                match piece {
                    Ok(bytes) => {
                        part = self.append(kind, hash, part, bytes).await?;
                        failures = 0;
                    }
                    Err(why) => {
                        part.resumed = true;
                        self.wait_or_fail(kind, hash, &mut failures, why).await?;
                        break;
                    }
                }
            }
        }
        Ok(part)
    }

    /// Downloads one piece, in a separate task, so that it arrives while another is written.
    async fn piece(&self, at: ObjectPath, from: u64, to: u64) -> Result<Bytes, object_store::Error> {
        let store = self.store.clone();
        let bytes = tokio::spawn(async move { store.get_range(&at, from..to).await }).await??;
        if bytes.len() as u64 == to - from {
            return Ok(bytes);
        }
        let short = format!("expected {} bytes from byte {from}, got {}", to - from, bytes.len());
        Err(object_store::Error::Generic { store: "remote", source: short.into() })
    }

    async fn append(&self, kind: Kind, hash: ContentHash, mut part: Part, bytes: Bytes) -> Result<Part, ArtifactError> {
        loop {
            let piece = bytes.clone();
            let (back, written) = blocking(move || {
                let written = part.append(&piece);
                Ok((part, written))
            })
            .await?;
            part = back;
            match written {
                Ok(()) => return Ok(part),
                // Make space: other files can be downloaded again.
                Err(why) if is_full(&why) && self.evict_one(kind, hash).await? => {}
                Err(why) => {
                    let path = part.path.clone();
                    blocking(move || part.discard()).await?;
                    return Err(io_error(&path, why));
                }
            }
        }
    }

    async fn size(&self, kind: Kind, hash: ContentHash) -> Result<u64, ArtifactError> {
        let mut failures = 0;
        loop {
            match self.store.head(&kind.at(hash)).await {
                Ok(meta) => return Ok(meta.size),
                Err(why) => self.wait_or_fail(kind, hash, &mut failures, why).await?,
            }
        }
    }

    async fn wait_or_fail(
        &self,
        kind: Kind,
        hash: ContentHash,
        failures: &mut u32,
        why: object_store::Error,
    ) -> Result<(), ArtifactError> {
        use object_store::Error as E;
        match why {
            E::NotFound { .. } => return Err(ArtifactError::Missing { what: self.name(kind, hash) }),
            // A retry would give the same result.
            E::PermissionDenied { .. } | E::Unauthenticated { .. } | E::NotImplemented { .. } => {}
            _ if *failures < TRIES => {
                tokio::time::sleep(BACK_OFF * 3_u32.pow(*failures)).await;
                *failures += 1;
                return Ok(());
            }
            _ => {}
        }
        Err(ArtifactError::Store { what: self.name(kind, hash), why: describe(&why) })
    }

    /// Marks the object as damaged for the next import, because its size alone does not show the damage.
    async fn report_damage(&self, kind: Kind, hash: ContentHash) {
        if let Err(e) = self.store.put(&kind.damage_at(hash), Bytes::new().into()).await {
            let what = self.name(kind, hash);
            tracing::warn!(what, error = describe(&e), "could not mark a damaged object: remove it by hand");
        }
    }

    fn name(&self, kind: Kind, hash: ContentHash) -> String {
        format!("{}/{}", self.what, name(kind, hash))
    }

    /// Removes files, least recently used first, until `size` bytes of this object and the remaining files fit into the
    /// budget.
    async fn evict_to_budget(&self, kind: Kind, hash: ContentHash, size: u64) -> Result<(), ArtifactError> {
        let (dir, keep, budget) = (self.dir.clone(), self.path(kind, hash), self.budget);
        blocking(move || {
            let mut entries = entries(&dir, &keep);
            // The size comes from a server and may be wrong.
            let mut total = size.saturating_add(entries.iter().map(|e| e.bytes).sum::<u64>());
            entries.sort_by_key(|e| e.used);
            for entry in entries {
                if total <= budget {
                    break;
                }
                if entry.remove()? {
                    total -= entry.bytes;
                }
            }
            Ok(())
        })
        .await
    }

    /// Removes the least recently used file that is not of this object. Returns whether there was one.
    async fn evict_one(&self, kind: Kind, hash: ContentHash) -> Result<bool, ArtifactError> {
        let (dir, keep) = (self.dir.clone(), self.path(kind, hash));
        blocking(move || {
            let mut entries = entries(&dir, &keep);
            entries.sort_by_key(|e| e.used);
            for entry in entries {
                if entry.remove()? {
                    return Ok(true);
                }
            }
            Ok(false)
        })
        .await
    }
}

/// A file of the cache.
struct Entry {
    path: PathBuf,
    bytes: u64,
    used: SystemTime,
}

impl Entry {
    /// Removes the file, unless it is a part that is being written. Returns whether it was removed.
    fn remove(&self) -> Result<bool, ArtifactError> {
        let _lock = if self.path.file_name().is_some_and(|name| name.to_string_lossy().contains('#')) {
            match lock(&self.path).map_err(|why| io_error(&self.path, why))? {
                Some(lock) => Some(lock),
                None => return Ok(false),
            }
        } else {
            None
        };
        remove_if_there(&self.path)?;
        Ok(true)
    }
}

/// Lists the cache's files, except the one at `keep` and its parts.
fn entries(dir: &Path, keep: &Path) -> Vec<Entry> {
    let mut found = Vec::new();
    for kind in Kind::ALL {
        let Ok(files) = std::fs::read_dir(dir.join(kind.folder())) else { continue };
        for file in files.filter_map(Result::ok) {
            let path = file.path();
            // A file that was just removed takes no space.
            if let Ok(meta) = file.metadata()
                && meta.is_file()
                && path.with_extension("") != keep
            {
                found.push(Entry { path, bytes: meta.len(), used: meta.modified().unwrap_or(SystemTime::UNIX_EPOCH) });
            }
        }
    }
    found
}

/// Opens a file, if it exists, and marks it as used now.
async fn touch(path: &Path) -> Result<Option<File>, ArtifactError> {
    let path = path.to_path_buf();
    blocking(move || match File::open(&path) {
        Ok(file) => {
            // Without the mark it is only removed earlier than it should be.
            let _ = file.set_modified(SystemTime::now());
            Ok(Some(file))
        }
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(why) => Err(io_error(&path, why)),
    })
    .await
}

fn remove_if_there(path: &Path) -> Result<(), ArtifactError> {
    match std::fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(io_error(path, e)),
        _ => Ok(()),
    }
}

/// Opens and locks a part. `None` if another process has it locked, or it is gone.
fn lock(path: &Path) -> io::Result<Option<File>> {
    let file = match OpenOptions::new().read(true).write(true).open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(e),
    };
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => return Ok(None),
        Err(TryLockError::Error(e)) => return Err(e),
    }
    // The previous holder of the lock may have removed or renamed the file before releasing it.
    match std::fs::metadata(path) {
        Ok(there) if there.ino() == file.metadata()?.ino() => Ok(Some(file)),
        Ok(_) => Ok(None),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e),
    }
}

/// An object being downloaded. Until dropped, its file is locked, and no other download of it runs in this process.
struct Part {
    file: File,
    path: PathBuf,
    /// The final path of the object.
    target: PathBuf,
    /// Bytes downloaded, and their hash.
    len: u64,
    hash: Sha256,
    /// Whether the download was interrupted.
    resumed: bool,
    _turn: OwnedMutexGuard<()>,
}

impl Part {
    /// Opens the longest part that an interrupted download of `target` left, or a new one. The others are removed.
    fn open(target: PathBuf, size: u64, turn: OwnedMutexGuard<()>) -> Result<Self, ArtifactError> {
        let failed = |path: &Path| {
            let path = path.to_path_buf();
            move |why| io_error(&path, why)
        };
        let folder = target.parent().unwrap_or(Path::new("."));
        let mut best: Option<(PathBuf, File, u64)> = None;
        for entry in std::fs::read_dir(folder).map_err(failed(folder))? {
            let path = entry.map_err(failed(folder))?.path();
            if path == target || path.with_extension("") != target {
                continue;
            }
            let Some(file) = lock(&path).map_err(failed(&path))? else { continue };
            let len = file.metadata().map_err(failed(&path))?.len();
            if len > size || best.as_ref().is_some_and(|(_, _, most)| *most >= len) {
                remove_if_there(&path)?;
            } else if let Some((worse, ..)) = best.replace((path, file, len)) {
                remove_if_there(&worse)?;
            }
        }
        let mut hash = Sha256::new();
        if let Some((path, mut file, _)) = best {
            let len = hash_into(&mut hash, &mut file).map_err(failed(&path))?;
            return Ok(Self { file, path, target, len, hash, resumed: len > 0, _turn: turn });
        }
        loop {
            let path = target.with_extension(format!("part#{}", uuid::Uuid::new_v4().simple()));
            let mut options = OpenOptions::new();
            options.read(true).write(true).create_new(true).mode(0o600);
            let file = options.open(&path).map_err(failed(&path))?;
            match file.try_lock() {
                Ok(()) if path.exists() => {
                    return Ok(Self { file, path, target, len: 0, hash, resumed: false, _turn: turn });
                }
                // Another process took it for an abandoned one.
                Ok(()) | Err(TryLockError::WouldBlock) => {}
                Err(TryLockError::Error(why)) => return Err(io_error(&path, why)),
            }
        }
    }

    /// Appends bytes. After a failure the part is as before.
    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all_at(bytes, self.len)?;
        self.hash.update(bytes);
        self.len += bytes.len() as u64;
        Ok(())
    }

    fn hash(&self) -> ContentHash {
        ContentHash(self.hash.clone().finalize().into())
    }

    /// Discards the downloaded bytes.
    fn restart(mut self) -> Result<Self, ArtifactError> {
        self.file.set_len(0).map_err(|why| io_error(&self.path, why))?;
        (self.len, self.hash, self.resumed) = (0, Sha256::new(), false);
        Ok(self)
    }

    /// Gives the file its final name. It is not synced: after a loss of power, the hash, which every user checks,
    /// reveals damage.
    fn finish(self) -> Result<File, ArtifactError> {
        let done = self
            .file
            .set_permissions(std::fs::Permissions::from_mode(0o400))
            .and_then(|()| std::fs::rename(&self.path, &self.target));
        done.map_err(|why| io_error(&self.path, why))?;
        Ok(self.file)
    }

    fn discard(self) -> Result<(), ArtifactError> {
        remove_if_there(&self.path)
    }
}
