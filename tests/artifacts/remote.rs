//! Objects in a store and their local copies, with all that goes wrong in between.

use std::fs::File;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use prover_worker::artifacts::{ArtifactError, Artifacts, Content, Kind};
use prover_worker::model::ContentHash;

use crate::faulty::Faulty;
use crate::wait::until_async;
use crate::{file, names, noise};

const PIECE: u64 = 8 << 20;
const BIG: usize = 40 << 20;

struct Fixture {
    dir: tempfile::TempDir,
    store: Faulty,
    artifacts: Artifacts,
}

impl Fixture {
    fn new() -> Self {
        Self::with_budget(1 << 30)
    }

    fn with_budget(bytes: u64) -> Self {
        let (dir, store) = (tempfile::tempdir().unwrap(), Faulty::default());
        let artifacts = open(&store, dir.path(), bytes);
        Self { dir, store, artifacts }
    }

    /// Opens the same artifacts as another process would, or the same one after a restart.
    fn again(&self) -> Artifacts {
        open(&self.store, self.dir.path(), 1 << 30)
    }

    fn cached(&self) -> PathBuf {
        self.dir.path().join("cache/zkeys")
    }

    fn part(&self, hash: ContentHash, random: &str) -> PathBuf {
        self.cached().join(format!("{hash}.part#{random}"))
    }

    /// Puts an object of 40 MB into the store.
    async fn big(&self) -> (ContentHash, Vec<u8>) {
        let content = noise(40, BIG);
        let path = file(self.dir.path(), "big", &content);
        let (hash, size) = self.artifacts.import(Kind::Zkey, &path).await.unwrap();
        assert_eq!(size, BIG as u64);
        (hash, content)
    }

    async fn small(&self, seed: u64, len: usize) -> ContentHash {
        self.artifacts.put(Kind::Zkey, noise(seed, len).into()).await.unwrap()
    }
}

fn open(store: &Faulty, dir: &Path, bytes: u64) -> Artifacts {
    Artifacts::remote(Arc::new(store.clone()), "there".to_owned(), &dir.join("cache"), bytes).unwrap()
}

async fn fetch(artifacts: &Artifacts, hash: ContentHash) -> Result<PathBuf, ArtifactError> {
    match artifacts.content(Kind::Zkey, hash).await? {
        Content::File(path) => Ok(path),
        Content::Bytes(_) => panic!("expected a file to map"),
    }
}

/// Ranges downloaded since the last call, as first byte and end.
fn downloads(fixture: &Fixture) -> Vec<(u64, u64)> {
    fixture.store.seen().gets.iter().map(|r| (r.start, r.end)).collect()
}

fn mode(path: &Path) -> u32 {
    std::fs::metadata(path).unwrap().permissions().mode() & 0o777
}

#[tokio::test(flavor = "multi_thread")]
async fn large_objects_go_up_and_come_down_in_pieces() {
    let fixture = Fixture::new();
    let (hash, content) = fixture.big().await;
    let up = fixture.store.seen();
    assert_eq!(up.largest, PIECE);
    assert!(up.most_under_way <= 4 * PIECE, "{} bytes under way", up.most_under_way);
    let path = fetch(&fixture.artifacts, hash).await.unwrap();
    assert!(std::fs::read(&path).unwrap() == content);
    let down = fixture.store.seen();
    assert_eq!((down.gets.len(), down.largest), (5, PIECE));
    assert!(down.most_under_way <= 4 * PIECE, "{} bytes under way", down.most_under_way);
    assert_eq!((mode(&path), mode(&fixture.cached())), (0o400, 0o700));
    assert_eq!(names(&fixture.cached()), [hash.to_string()], "nothing half-fetched is left");
    // The second time nothing is requested.
    fetch(&fixture.artifacts, hash).await.unwrap();
    fetch(&fixture.again(), hash).await.unwrap();
    assert_eq!(fixture.store.seen().requests, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_download_that_breaks_off_goes_on_where_it_was() {
    let fixture = Fixture::new();
    let (hash, content) = fixture.big().await;
    fixture.store.seen();
    fixture.store.plan().break_at = Some((20 << 20, 3));
    let path = fetch(&fixture.artifacts, hash).await.unwrap();
    assert!(std::fs::read(path).unwrap() == content);
    let gets = fixture.store.seen().gets;
    assert_eq!(gets.iter().filter(|r| r.start < 2 * PIECE).count(), 2, "what had arrived is not asked again: {gets:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_download_goes_on_after_a_restart() {
    let fixture = Fixture::new();
    let (hash, content) = fixture.big().await;
    fixture.store.plan().break_at = Some((20 << 20, u32::MAX));
    let error = fetch(&fixture.artifacts, hash).await.unwrap_err();
    let ArtifactError::Store { what, why } = &error else { panic!("{error}") };
    assert!(what.contains("there/zkeys/") && why.contains("the connection broke off"), "{error}");
    let left = names(&fixture.cached());
    assert!(left.len() == 1 && left[0].starts_with(&format!("{hash}.part#")), "{left:?}");
    let size = std::fs::metadata(fixture.cached().join(&left[0])).unwrap().len();
    assert_eq!(size, 2 * PIECE);
    fixture.store.plan().break_at = None;
    fixture.store.seen();
    let path = fetch(&fixture.again(), hash).await.unwrap();
    assert!(std::fs::read(path).unwrap() == content);
    assert_eq!(fixture.store.seen().gets.iter().map(|r| r.start).min(), Some(2 * PIECE));
    assert_eq!(names(&fixture.cached()), [hash.to_string()]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_download_given_up_half_way_is_taken_up_by_the_next() {
    let fixture = Fixture::new();
    let (hash, content) = fixture.big().await;
    let gate = fixture.store.hold().await;
    fixture.store.seen();
    let artifacts = fixture.artifacts.clone();
    let given_up = tokio::spawn(async move { fetch(&artifacts, hash).await });
    until_async("five requests", async || fixture.store.requests() >= 5).await;
    given_up.abort();
    assert!(given_up.await.unwrap_err().is_cancelled());
    drop(gate);
    assert!(std::fs::read(fetch(&fixture.artifacts, hash).await.unwrap()).unwrap() == content);
    assert_eq!(names(&fixture.cached()), [hash.to_string()]);
}

/// A process that is killed when the test ends.
struct Ended(std::process::Child);

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Tells the inner test where the cache is.
const FOLDER: &str = "TEST_CACHE_FOLDER";

#[tokio::test(flavor = "multi_thread")]
async fn what_a_killed_process_had_fetched_is_taken_up() {
    let fixture = Fixture::new();
    let (hash, content) = fixture.big().await;
    let mut process = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "remote::inner_stalled_download", "--ignored"])
        .env(FOLDER, fixture.dir.path())
        .stdout(std::process::Stdio::null())
        .spawn()
        .map(Ended)
        .unwrap();
    let size = |name: &String| std::fs::metadata(fixture.cached().join(name)).map_or(0, |m| m.len());
    until_async("two pieces in the cache", async || {
        names(&fixture.cached()).first().is_some_and(|name| size(name) == 2 * PIECE)
    })
    .await;
    // While that process lives, its partial file is its own; then any process may take it.
    fetch(&fixture.artifacts, hash).await.unwrap();
    assert_eq!(names(&fixture.cached()).len(), 2);
    std::fs::remove_file(fixture.cached().join(hash.to_string())).unwrap();
    process.0.kill().unwrap();
    process.0.wait().unwrap();
    fixture.store.seen();
    assert!(std::fs::read(fetch(&fixture.artifacts, hash).await.unwrap()).unwrap() == content);
    assert_eq!(fixture.store.seen().gets.iter().map(|r| r.start).min(), Some(2 * PIECE));
    assert_eq!(names(&fixture.cached()), [hash.to_string()]);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "run by a test above, which kills it"]
async fn inner_stalled_download() {
    let folder = PathBuf::from(std::env::var_os(FOLDER).expect("run by what_a_killed_process_had_fetched_is_taken_up"));
    let store = Faulty::default();
    let artifacts = open(&store, &folder, 1 << 30);
    let hash = artifacts.put(Kind::Zkey, noise(40, BIG).into()).await.unwrap();
    store.plan().stall_at = Some(2 * PIECE);
    fetch(&artifacts, hash).await.unwrap();
}

#[tokio::test]
async fn a_part_that_somebody_writes_is_left_alone() {
    let fixture = Fixture::new();
    let hash = fixture.small(1, 50_000).await;
    let other = file(&fixture.cached(), &format!("{hash}.part#other"), &noise(1, 20_000));
    let lock = File::options().write(true).open(&other).unwrap();
    lock.lock().unwrap();
    let path = fetch(&fixture.artifacts, hash).await.unwrap();
    assert_eq!(std::fs::read(path).unwrap(), noise(1, 50_000));
    assert_eq!(std::fs::metadata(&other).unwrap().len(), 20_000);
    assert_eq!(downloads(&fixture), [(0, 50_000)]);
}

#[tokio::test]
async fn the_longest_part_that_was_left_is_taken_up_and_the_others_go() {
    let fixture = Fixture::new();
    let hash = fixture.small(1, 50_000).await;
    for (random, len) in [("a", 10_000), ("b", 30_000), ("c", 0), ("d", 60_000)] {
        file(&fixture.cached(), &format!("{hash}.part#{random}"), &noise(1, len));
    }
    fetch(&fixture.artifacts, hash).await.unwrap();
    assert_eq!(downloads(&fixture), [(30_000, 50_000)]);
    assert_eq!(names(&fixture.cached()), [hash.to_string()]);
}

#[tokio::test]
async fn a_part_with_all_of_it_needs_no_download() {
    let fixture = Fixture::new();
    let hash = fixture.small(1, 50_000).await;
    std::fs::write(fixture.part(hash, "a"), noise(1, 50_000)).unwrap();
    fetch(&fixture.artifacts, hash).await.unwrap();
    assert!(fixture.store.seen().gets.is_empty());
}

#[tokio::test]
async fn a_rotten_part_costs_one_more_download_and_no_error() {
    let fixture = Fixture::new();
    let hash = fixture.small(1, 50_000).await;
    for len in [10_000, 50_000] {
        std::fs::write(fixture.part(hash, "a"), vec![0; len]).unwrap();
        let path = fetch(&fixture.artifacts, hash).await.unwrap();
        assert_eq!(std::fs::read(path).unwrap(), noise(1, 50_000));
        assert_eq!(fixture.store.seen().gets.last(), Some(&(0..50_000)));
        assert_eq!(names(&fixture.cached()), [hash.to_string()]);
        std::fs::remove_file(fixture.cached().join(hash.to_string())).unwrap();
    }
}

#[tokio::test]
async fn damage_is_told_and_mended_by_the_next_import() {
    let fixture = Fixture::new();
    let content = noise(3, 100_000);
    let path = file(fixture.dir.path(), "key", &content);
    let (hash, _) = fixture.artifacts.import(Kind::Zkey, &path).await.unwrap();
    let mut damaged = content.clone();
    damaged[500] ^= 1;
    fixture.store.overwrite(&format!("zkeys/{hash}"), damaged.clone()).await;
    for _ in 0..2 {
        match fetch(&fixture.artifacts, hash).await {
            Err(ArtifactError::Damaged { what, got }) => {
                assert_eq!((what, got), (format!("there/zkeys/{hash}"), ContentHash::of(&damaged)));
            }
            other => panic!("{other:?}"),
        }
        assert!(names(&fixture.cached()).is_empty(), "nothing of it is kept");
    }
    // Another process imports it again; size and name alone would not have shown the damage.
    fixture.again().import(Kind::Zkey, &path).await.unwrap();
    assert_eq!(std::fs::read(fetch(&fixture.artifacts, hash).await.unwrap()).unwrap(), content);
    assert_eq!(fixture.store.names().await, [format!("zkeys/{hash}")], "the mark of damage is gone");
    fixture.store.seen();
    fixture.artifacts.import(Kind::Zkey, &path).await.unwrap();
    assert_eq!(fixture.store.seen().puts, 0, "what is sound stays");
}

#[tokio::test]
async fn an_object_of_another_size_is_replaced() {
    let fixture = Fixture::new();
    let path = file(fixture.dir.path(), "key", &noise(3, 1000));
    let (hash, _) = fixture.artifacts.import(Kind::Zkey, &path).await.unwrap();
    fixture.store.overwrite(&format!("zkeys/{hash}"), noise(3, 999)).await;
    fixture.artifacts.import(Kind::Zkey, &path).await.unwrap();
    assert_eq!(fixture.artifacts.get(Kind::Zkey, hash).await.unwrap(), noise(3, 1000));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upload_that_fails_leaves_no_object() {
    let fixture = Fixture::new();
    let path = file(fixture.dir.path(), "big", &noise(40, BIG));
    fixture.store.plan().fail_parts = 1;
    let error = fixture.artifacts.import(Kind::Zkey, &path).await.unwrap_err();
    assert!(error.to_string().contains("a piece was lost"), "{error}");
    assert_eq!(fixture.store.seen().aborted, 1);
    assert!(fixture.store.names().await.is_empty());
    let (hash, _) = fixture.artifacts.import(Kind::Zkey, &path).await.unwrap();
    fetch(&fixture.artifacts, hash).await.unwrap();
}

#[tokio::test]
async fn a_copy_that_went_bad_is_fetched_anew() {
    let fixture = Fixture::new();
    let hash = fixture.small(1, 1000).await;
    let path = fetch(&fixture.artifacts, hash).await.unwrap();
    let spoil = || {
        std::fs::remove_file(&path).unwrap();
        std::fs::write(&path, vec![0; 1000]).unwrap();
    };
    spoil();
    assert_eq!(fixture.again().get(Kind::Zkey, hash).await.unwrap(), noise(1, 1000));
    assert_eq!(std::fs::read(&path).unwrap(), noise(1, 1000));
    spoil();
    let damaged = ArtifactError::Damaged { what: String::new(), got: hash };
    assert!(fixture.artifacts.try_again(Kind::Zkey, hash, &damaged).await.unwrap());
    assert_eq!(std::fs::read(fetch(&fixture.artifacts, hash).await.unwrap()).unwrap(), noise(1, 1000));
    // A local folder has no source to be repaired from.
    let local = Artifacts::local(&fixture.dir.path().join("local")).unwrap();
    assert!(!local.try_again(Kind::Zkey, hash, &damaged).await.unwrap());
}

#[tokio::test(flavor = "multi_thread")]
async fn one_object_is_fetched_once_however_many_ask() {
    let fixture = Fixture::new();
    let (hash, _) = fixture.big().await;
    let gate = fixture.store.hold().await;
    fixture.store.seen();
    let tasks: Vec<_> = (0..8)
        .map(|_| {
            let artifacts = fixture.artifacts.clone();
            tokio::spawn(async move { fetch(&artifacts, hash).await.unwrap() })
        })
        .collect();
    until_async("five requests", async || fixture.store.requests() >= 5).await;
    drop(gate);
    for task in tasks {
        task.await.unwrap();
    }
    let seen = fixture.store.seen();
    assert_eq!((seen.gets.len(), seen.requests), (5, 6), "a look at the size and five pieces");
}

#[tokio::test(flavor = "multi_thread")]
async fn processes_may_share_the_folder() {
    let fixture = Fixture::new();
    let (hash, content) = fixture.big().await;
    let tasks: Vec<_> = (0..3)
        .map(|_| {
            let artifacts = fixture.again();
            tokio::spawn(async move { std::fs::read(fetch(&artifacts, hash).await.unwrap()).unwrap() })
        })
        .collect();
    for task in tasks {
        assert!(task.await.unwrap() == content);
    }
    assert_eq!(names(&fixture.cached()), [hash.to_string()]);
}

#[tokio::test]
async fn the_least_recently_used_copies_make_room() {
    let fixture = Fixture::with_budget(3000);
    let mut hashes = Vec::new();
    for n in 0..4 {
        hashes.push(fixture.small(n, 1000).await);
    }
    let there = |n: usize| fixture.cached().join(hashes[n].to_string()).exists();
    for (n, hash) in hashes.iter().enumerate().take(3) {
        let path = fetch(&fixture.artifacts, *hash).await.unwrap();
        let used = SystemTime::now() - Duration::from_secs(100 - n as u64);
        File::open(path).unwrap().set_modified(used).unwrap();
    }
    // The oldest is used once more, so the second is evicted.
    fetch(&fixture.artifacts, hashes[0]).await.unwrap();
    fetch(&fixture.artifacts, hashes[3]).await.unwrap();
    assert_eq!([there(0), there(1), there(2), there(3)], [true, false, true, true]);
    // A file larger than the whole budget evicts the others and is kept.
    let large = fixture.small(9, 5000).await;
    let path = fetch(&fixture.artifacts, large).await.unwrap();
    assert_eq!(names(&fixture.cached()), [large.to_string()]);
    // A process that has it open keeps it.
    let mut open = File::open(path).unwrap();
    fetch(&fixture.artifacts, hashes[0]).await.unwrap();
    assert_eq!(names(&fixture.cached()), [hashes[0].to_string()]);
    let mut content = Vec::new();
    std::io::Read::read_to_end(&mut open, &mut content).unwrap();
    assert_eq!(content, noise(9, 5000));
}

#[tokio::test]
async fn parts_that_were_left_make_room_and_parts_at_work_do_not() {
    let fixture = Fixture::with_budget(3000);
    let hash = fixture.small(1, 1000).await;
    let left = file(&fixture.cached(), &format!("{}.part#a", ContentHash::of(b"x")), &noise(1, 2000));
    let busy = file(&fixture.cached(), &format!("{}.part#b", ContentHash::of(b"y")), &noise(1, 2000));
    let lock = File::options().write(true).open(&busy).unwrap();
    lock.lock().unwrap();
    fetch(&fixture.artifacts, hash).await.unwrap();
    assert!(!left.exists() && busy.exists());
}

#[tokio::test]
async fn passing_faults_are_outlived_and_lasting_ones_told() {
    let fixture = Fixture::new();
    let hash = fixture.small(1, 1000).await;
    fixture.store.plan().fail = 3;
    fetch(&fixture.artifacts, hash).await.unwrap();
    let hash = fixture.small(2, 1000).await;
    fixture.store.plan().fail = u32::MAX;
    fixture.store.seen();
    let error = fetch(&fixture.artifacts, hash).await.unwrap_err();
    assert!(matches!(&error, ArtifactError::Store { why, .. } if why.contains("out of order")), "{error}");
    assert_eq!(fixture.store.seen().requests, 5, "tries are bounded");
    assert!(matches!(fixture.artifacts.contains(Kind::Zkey, hash).await, Err(ArtifactError::Store { .. })));
}

#[tokio::test]
async fn a_refusal_is_told_at_once() {
    let fixture = Fixture::new();
    let hash = fixture.small(1, 1000).await;
    fixture.store.plan().refuse = true;
    fixture.store.seen();
    let error = fetch(&fixture.artifacts, hash).await.unwrap_err();
    assert!(matches!(&error, ArtifactError::Store { why, .. } if why.contains("not for you")), "{error}");
    assert_eq!(fixture.store.seen().requests, 1);
}

#[tokio::test]
async fn bytes_that_are_spoilt_on_the_way_are_never_kept() {
    let fixture = Fixture::new();
    let hash = fixture.small(1, 1000).await;
    fixture.store.plan().corrupt = true;
    assert!(matches!(fetch(&fixture.artifacts, hash).await, Err(ArtifactError::Damaged { .. })));
    assert!(matches!(fixture.artifacts.get(Kind::Zkey, hash).await, Err(ArtifactError::Damaged { .. })));
    assert!(names(&fixture.cached()).is_empty());
    fixture.store.plan().corrupt = false;
    fetch(&fixture.artifacts, hash).await.unwrap();
}

#[tokio::test]
async fn removal_takes_the_copy_along() {
    let fixture = Fixture::new();
    let hash = fixture.small(1, 1000).await;
    fetch(&fixture.artifacts, hash).await.unwrap();
    fixture.artifacts.remove(Kind::Zkey, hash).await.unwrap();
    assert!(fixture.store.names().await.is_empty());
    assert!(names(&fixture.cached()).is_empty());
}

#[tokio::test]
async fn proofs_go_there_and_have_no_folder_here() {
    let fixture = Fixture::new();
    let job = prover_worker::model::JobId::new();
    fixture.artifacts.put_proof(job, "{}", "[]").await.unwrap();
    assert_eq!(fixture.store.names().await, [format!("proofs/{job}/proof.json"), format!("proofs/{job}/public.json")]);
    assert_eq!(fixture.artifacts.proof_dir(job), None);
    fixture.artifacts.remove_proof(job).await.unwrap();
    assert!(fixture.store.names().await.is_empty());
}
