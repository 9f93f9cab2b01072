#![allow(clippy::unwrap_used)]

use std::os::unix::fs::PermissionsExt;
use std::time::SystemTime;

use super::files::STALE;
use super::*;

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

/// An error number of the operating system helps nobody; the path does.
#[tokio::test]
async fn an_error_of_the_file_system_is_a_path_with_a_reason_and_keeps_its_kind() {
    let dir = tempfile::tempdir().unwrap();
    let artifacts = Artifacts::local(&dir.path().join("data")).unwrap();
    let nowhere = dir.path().join("nowhere.zkey");
    let error = artifacts.import(Kind::Zkey, &nowhere).await.unwrap_err();
    assert_eq!(error.to_string(), format!("{}: no such file", nowhere.display()));
    assert!(matches!(&error, ArtifactError::Io { why, .. } if why.kind() == io::ErrorKind::NotFound), "{error:?}");

    // From within the object store.
    let keys = dir.path().join("data").join("zkeys");
    std::fs::remove_dir(&keys).unwrap();
    std::fs::write(&keys, b"in the way").unwrap();
    let error = artifacts.put(Kind::Zkey, Bytes::from_static(b"x")).await.unwrap_err();
    let at = keys.join(ContentHash::of(b"x").to_string());
    assert_eq!(error.to_string(), format!("{}: a part of its path is not a folder", at.display()));
    assert!(matches!(&error, ArtifactError::Io { why, .. } if why.raw_os_error().is_some()), "{error:?}");
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
    // What an interrupted import leaves.
    let cut = ContentHash::of(b"y");
    let upload = artifacts.store.put_multipart(&Kind::Zkey.at(cut)).await.unwrap();
    std::mem::forget(upload);
    let folder = dir.path().join("zkeys");
    let files = || std::fs::read_dir(&folder).unwrap().map(|e| e.unwrap().path()).collect::<Vec<_>>();
    Artifacts::local(dir.path()).unwrap();
    assert_eq!(files().len(), 2, "an import may be writing it");
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

    // From now on no copies are written; the existing ones are removed with their jobs.
    let (artifacts, later) = (artifacts.without_proofs(), JobId::new());
    artifacts.put_proof(later, "{}", "[]").await.unwrap();
    assert_eq!((artifacts.proof_dir(later), artifacts.has_proof(later).await.unwrap()), (None, true));
    assert_eq!(std::fs::read_dir(folder.parent().unwrap()).unwrap().count(), 1);
    // A process was killed while it wrote.
    std::fs::write(folder.join("proof.json#1"), "{").unwrap();
    artifacts.remove_proof(job).await.unwrap();
    assert!(!folder.exists());
}
