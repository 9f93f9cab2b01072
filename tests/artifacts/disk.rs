//! Full disks: a small file system for each test, in its own mount namespace.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;

use object_store::memory::InMemory;
use prover_worker::artifacts::{ArtifactError, Artifacts, Content, Kind};

use crate::{file, names, noise};

/// Tells the inner tests where the small disk is.
const DISK: &str = "TEST_SMALL_DISK";

const MIB: usize = 1 << 20;

/// Runs a command with a disk of 4 MiB at `dir`.
fn with_small_disk(dir: &Path, command: &[&str]) -> std::io::Result<Output> {
    let script = r#"mount -t tmpfs -o size=4m,mode=700 tmpfs "$0" && exec "$@""#;
    Command::new("unshare")
        .args(["--map-root-user", "--mount", "sh", "-c", script])
        .arg(dir)
        .args(command)
        .env(DISK, dir)
        .output()
}

/// Runs an inner test of this file on a small disk, and skips it where users may not mount.
fn on_small_disk(test: &str) {
    let dir = tempfile::tempdir().unwrap();
    // Not every machine lets its users mount, not even in a namespace of their own.
    match with_small_disk(dir.path(), &["true"]) {
        Ok(out) if out.status.success() => {}
        _ => {
            eprintln!("SKIPPED {test}: no small disk can be mounted here");
            return;
        }
    }
    let me = std::env::current_exe().unwrap();
    let name = format!("disk::{test}");
    let out =
        with_small_disk(dir.path(), &[me.to_str().unwrap(), "--exact", &name, "--ignored", "--nocapture"]).unwrap();
    let said = String::from_utf8_lossy(&out.stdout).into_owned() + &String::from_utf8_lossy(&out.stderr);
    assert!(out.status.success() && said.contains("1 passed"), "{said}");
}

fn disk() -> PathBuf {
    std::env::var_os(DISK).expect("run by the test of the same name without inner_").into()
}

fn is_full(result: Result<impl Sized, ArtifactError>) -> bool {
    match result {
        Ok(_) => false,
        Err(ArtifactError::Io { why, .. }) => why.kind() == ErrorKind::StorageFull,
        Err(other) => panic!("expected a full disk, got {other}"),
    }
}

#[test]
fn a_full_disk_takes_no_artifact_and_keeps_no_part_of_one() {
    on_small_disk("inner_folder");
}

#[test]
fn a_full_disk_takes_no_copy_until_others_make_way() {
    on_small_disk("inner_cache");
}

#[tokio::test]
#[ignore = "run on a small disk by a test above"]
async fn inner_folder() {
    let (root, outside) = (disk().join("data"), tempfile::tempdir().unwrap());
    let artifacts = Artifacts::local(&root).unwrap();
    let large = file(outside.path(), "large", &noise(1, 6 * MIB));
    let small = file(outside.path(), "small", &noise(2, 3 * MIB));
    assert!(is_full(artifacts.import(Kind::Zkey, &large).await));
    assert!(is_full(artifacts.put(Kind::Zkey, noise(1, 6 * MIB).into()).await));
    assert!(names(&root.join("zkeys")).is_empty());
    let (hash, _) = artifacts.import(Kind::Zkey, &small).await.unwrap();
    assert_eq!(names(&root.join("zkeys")), [hash.to_string()]);
    // Another does not fit, and does not hurt the first.
    assert!(is_full(artifacts.put(Kind::Zkey, noise(3, 3 * MIB).into()).await));
    assert!(artifacts.get(Kind::Zkey, hash).await.unwrap() == noise(2, 3 * MIB));
    artifacts.remove(Kind::Zkey, hash).await.unwrap();
    artifacts.put(Kind::Zkey, noise(3, 3 * MIB).into()).await.unwrap();
}

#[tokio::test]
#[ignore = "run on a small disk by a test above"]
async fn inner_cache() {
    let cache = disk().join("cache");
    // The budget is larger than the disk.
    let artifacts = Artifacts::remote(Arc::new(InMemory::new()), "there".to_owned(), &cache, 1 << 30).unwrap();
    let large = artifacts.put(Kind::Zkey, noise(1, 6 * MIB).into()).await.unwrap();
    let small = artifacts.put(Kind::Zkey, noise(2, 3 * MIB).into()).await.unwrap();
    let other = artifacts.put(Kind::Wasm, noise(3, 3 * MIB).into()).await.unwrap();
    assert!(is_full(artifacts.content(Kind::Zkey, large).await));
    assert!(names(&cache.join("zkeys")).is_empty());
    let Content::File(path) = artifacts.content(Kind::Zkey, small).await.unwrap() else { panic!("a file") };
    assert!(std::fs::read(&path).unwrap() == noise(2, 3 * MIB));
    // The first is evicted for the second.
    let Content::File(second) = artifacts.content(Kind::Wasm, other).await.unwrap() else { panic!("a file") };
    assert!(second.exists() && !path.exists());
    // Space that other files take cannot be freed.
    std::fs::remove_file(second).unwrap();
    let foreign = file(&disk(), "foreign", &noise(4, 3 * MIB));
    assert!(is_full(artifacts.content(Kind::Wasm, other).await));
    assert!(names(&cache.join("wasms")).is_empty());
    std::fs::remove_file(foreign).unwrap();
    assert!(artifacts.get(Kind::Wasm, other).await.unwrap() == noise(3, 3 * MIB));
}
