//! What holds wherever artifacts are stored.

use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use object_store::memory::InMemory;
use prover_worker::artifacts::{ArtifactError, Artifacts, Content, Kind};
use prover_worker::model::{ContentHash, JobId};

use crate::{file, noise};

/// Checks every rule in turn, on artifacts that are empty.
pub async fn check(artifacts: &Artifacts) {
    let dir = tempfile::tempdir().unwrap();
    an_import_can_be_had_back(artifacts, dir.path()).await;
    an_import_is_made_once(artifacts, dir.path()).await;
    bytes_lie_under_their_hash(artifacts).await;
    what_is_not_there_is_missing(artifacts).await;
    kinds_do_not_mix(artifacts).await;
    odd_files_are_refused(artifacts, dir.path()).await;
    proofs_come_and_go(artifacts).await;
    many_at_once(artifacts).await;
}

async fn read(artifacts: &Artifacts, kind: Kind, hash: ContentHash) -> Bytes {
    match artifacts.content(kind, hash).await.unwrap() {
        Content::Bytes(bytes) => bytes,
        Content::File(path) => {
            assert_eq!(Some(&path), artifacts.local_path(kind, hash).as_ref());
            std::fs::read(path).unwrap().into()
        }
    }
}

async fn an_import_can_be_had_back(artifacts: &Artifacts, dir: &Path) {
    // Nothing, less than a piece, whole pieces, and pieces with a remainder.
    for len in [0, 1, 1000, 8 << 20, (16 << 20) + 12_345] {
        let content = noise(len as u64, len);
        let (hash, size) = artifacts.import(Kind::Zkey, &file(dir, "f", &content)).await.unwrap();
        assert_eq!((hash, size), (ContentHash::of(&content), len as u64));
        assert!(artifacts.contains(Kind::Zkey, hash).await.unwrap());
        assert!(read(artifacts, Kind::Zkey, hash).await == content, "content of {len} bytes");
        assert!(artifacts.get(Kind::Zkey, hash).await.unwrap() == content, "bytes of {len} bytes");
    }
}

async fn an_import_is_made_once(artifacts: &Artifacts, dir: &Path) {
    let content = noise(7, 5000);
    let path = file(dir, "once", &content);
    let first = artifacts.import(Kind::Wasm, &path).await.unwrap();
    assert_eq!(artifacts.import(Kind::Wasm, &path).await.unwrap(), first);
    assert_eq!(artifacts.put(Kind::Wasm, content.clone().into()).await.unwrap(), first.0);
    assert_eq!(read(artifacts, Kind::Wasm, first.0).await, content);
}

async fn bytes_lie_under_their_hash(artifacts: &Artifacts) {
    let hash = artifacts.put(Kind::Wasm, Bytes::from_static(b"program")).await.unwrap();
    assert_eq!(hash, ContentHash::of(b"program"));
    assert_eq!(artifacts.get(Kind::Wasm, hash).await.unwrap(), &b"program"[..]);
}

async fn what_is_not_there_is_missing(artifacts: &Artifacts) {
    let hash = ContentHash::of(b"nowhere");
    let missing = |e: ArtifactError| match e {
        ArtifactError::Missing { what } => what.contains(&hash.to_string()),
        other => panic!("expected a missing object, got {other}"),
    };
    assert!(missing(artifacts.get(Kind::Zkey, hash).await.unwrap_err()));
    assert!(missing(artifacts.content(Kind::Zkey, hash).await.unwrap_err()));
    assert!(!artifacts.contains(Kind::Zkey, hash).await.unwrap());
    artifacts.remove(Kind::Zkey, hash).await.unwrap();
    let hash = artifacts.put(Kind::Zkey, Bytes::from_static(b"gone soon")).await.unwrap();
    read(artifacts, Kind::Zkey, hash).await;
    artifacts.remove(Kind::Zkey, hash).await.unwrap();
    artifacts.remove(Kind::Zkey, hash).await.unwrap();
    assert!(!artifacts.contains(Kind::Zkey, hash).await.unwrap());
    assert!(matches!(artifacts.content(Kind::Zkey, hash).await, Err(ArtifactError::Missing { .. })));
}

async fn kinds_do_not_mix(artifacts: &Artifacts) {
    let hash = artifacts.put(Kind::Wasm, Bytes::from_static(b"a program")).await.unwrap();
    assert!(!artifacts.contains(Kind::Zkey, hash).await.unwrap());
    assert!(artifacts.contains(Kind::Wasm, hash).await.unwrap());
}

async fn odd_files_are_refused(artifacts: &Artifacts, dir: &Path) {
    for odd in [dir.join("not there"), dir.to_path_buf(), "/dev/zero".into()] {
        let error = artifacts.import(Kind::Zkey, &odd).await.unwrap_err();
        assert!(matches!(error, ArtifactError::Io { .. }), "{}: {error}", odd.display());
    }
}

async fn proofs_come_and_go(artifacts: &Artifacts) {
    let job = JobId::new();
    assert!(!artifacts.has_proof(job).await.unwrap());
    artifacts.remove_proof(job).await.unwrap();
    for _ in 0..2 {
        artifacts.put_proof(job, "{}", "[]").await.unwrap();
        assert!(artifacts.has_proof(job).await.unwrap());
    }
    if let Some(folder) = artifacts.proof_dir(job) {
        assert_eq!(std::fs::read_to_string(folder.join("proof.json")).unwrap(), "{}");
        assert_eq!(std::fs::read_to_string(folder.join("public.json")).unwrap(), "[]");
    }
    let other = JobId::new();
    artifacts.put_proof(other, "{}", "[]").await.unwrap();
    artifacts.remove_proof(job).await.unwrap();
    artifacts.remove_proof(job).await.unwrap();
    assert!(!artifacts.has_proof(job).await.unwrap());
    assert!(artifacts.has_proof(other).await.unwrap());
    assert!(artifacts.proof_dir(job).is_none_or(|folder| !folder.exists()));
}

async fn many_at_once(artifacts: &Artifacts) {
    let tasks: Vec<_> = (0..12_u64)
        .map(|n| {
            let artifacts = artifacts.clone();
            tokio::spawn(async move {
                // Three objects, each stored by four tasks.
                let content = noise(1000 + n % 3, 100_000);
                let hash = artifacts.put(Kind::Zkey, content.clone().into()).await.unwrap();
                assert_eq!(artifacts.get(Kind::Zkey, hash).await.unwrap(), content);
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
}

#[tokio::test]
async fn in_a_folder() {
    let dir = tempfile::tempdir().unwrap();
    check(&Artifacts::local(&dir.path().join("data")).unwrap()).await;
}

#[tokio::test]
async fn in_memory() {
    check(&Artifacts::memory()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn elsewhere() {
    let dir = tempfile::tempdir().unwrap();
    let store = Arc::new(InMemory::new());
    check(&Artifacts::remote(store, "there".to_owned(), &dir.path().join("cache"), 1 << 30).unwrap()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn elsewhere_without_room_to_keep_anything() {
    let dir = tempfile::tempdir().unwrap();
    let store = Arc::new(InMemory::new());
    let artifacts = Artifacts::remote(store, "there".to_owned(), &dir.path().join("cache"), 0).unwrap();
    check(&artifacts).await;
}
