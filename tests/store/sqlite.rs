//! Tests of SQLite only: the file, its schema, several processes, SIGKILL, remains of secrets.

use std::collections::HashSet;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use prover_worker::model::{ContentHash, JobId, JobState, Tries};
use prover_worker::store::{Due, JobFilter, SqliteStore, Store, StoreError, StoreSettings};
use sqlx::{Connection, SqliteConnection};

use crate::conformance::Place;
use crate::fixtures::*;

/// A file of its own, removed with the test.
pub struct SqliteFile(tempfile::TempDir);

impl SqliteFile {
    pub fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self) -> PathBuf {
        self.0.path().join("jobs.db")
    }
}

impl Place for SqliteFile {
    type Store = SqliteStore;

    async fn open_with(&self, settings: StoreSettings) -> SqliteStore {
        SqliteStore::open(&self.path(), settings).await.unwrap()
    }
}

async fn open(path: &Path) -> Result<SqliteStore, StoreError> {
    SqliteStore::open(path, StoreSettings::default()).await
}

async fn raw(path: &Path) -> SqliteConnection {
    SqliteConnection::connect(&format!("sqlite://{}", path.display())).await.unwrap()
}

async fn execute(path: &Path, sql: &'static str) {
    let mut c = raw(path).await;
    sqlx::raw_sql(sql).execute(&mut c).await.unwrap();
    c.close().await.unwrap();
}

#[tokio::test]
async fn the_file_and_its_folders_are_made_for_the_owner_only() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a/b/jobs.db");
    let store = open(&path).await.unwrap();
    submitted(&store).await;
    let mode = |p: &Path| std::fs::metadata(p).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&path), 0o600);
    assert_eq!(mode(&path.with_extension("db-wal")), 0o600);
    assert_eq!(mode(path.parent().unwrap()), 0o700);
}

#[tokio::test]
async fn a_file_that_was_removed_or_replaced_takes_no_jobs() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("data/jobs.db");
    let store = open(&path).await.unwrap();
    submitted(&store).await;
    store.ping().await.unwrap();
    std::fs::remove_dir_all(folder.path().join("data")).unwrap();
    for _ in 0..2 {
        assert!(matches!(store.ping().await, Err(StoreError::Open { .. })));
        assert!(matches!(store.submit(&new_job("c"), plain(INPUT)).await, Err(StoreError::Open { .. })));
        // The second time another database is there.
        open(&path).await.unwrap();
    }
}

#[tokio::test]
async fn a_file_that_cannot_be_opened_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let blocked = folder.path().join("file/jobs.db");
    std::fs::write(folder.path().join("file"), "").unwrap();
    let text = folder.path().join("text.db");
    std::fs::write(&text, "this is not a database, and long enough to be told from an empty one".repeat(20)).unwrap();
    for path in [blocked, folder.path().to_owned(), text] {
        match open(&path).await {
            Err(StoreError::Open { what, .. }) => assert_eq!(what, path.display().to_string()),
            other => panic!("expected Open, got {other:?}"),
        }
    }
}

#[tokio::test]
async fn another_programs_database_is_refused_and_left_alone() {
    let place = SqliteFile::new();
    let mut c = SqliteConnection::connect(&format!("sqlite://{}?mode=rwc", place.path().display())).await.unwrap();
    sqlx::raw_sql("CREATE TABLE notes (t TEXT)").execute(&mut c).await.unwrap();
    c.close().await.unwrap();
    match open(&place.path()).await {
        Err(StoreError::Open { why, .. }) => assert!(why.to_string().contains("another program")),
        other => panic!("expected Open, got {other:?}"),
    }
    let mut c = raw(&place.path()).await;
    let tables: Vec<String> = sqlx::query_scalar("SELECT name FROM sqlite_schema").fetch_all(&mut c).await.unwrap();
    assert_eq!(tables, ["notes"]);
}

#[tokio::test]
async fn a_newer_schema_is_refused_and_left_alone() {
    let place = SqliteFile::new();
    let id = submitted(&place.open().await).await;
    execute(&place.path(), "PRAGMA user_version = 99").await;
    assert!(matches!(open(&place.path()).await, Err(StoreError::NewerSchema)));
    execute(&place.path(), "PRAGMA user_version = 4").await;
    assert!(place.open().await.job(id).await.unwrap().is_some());
}

/// A file of the first version, with a job in each state and inputs of the unfinished ones.
const VERSION_1: &str = concat!(
    include_str!("../../migrations/sqlite/0001_jobs.sql"),
    "PRAGMA user_version = 1; PRAGMA application_id = 0x50727657;
     INSERT INTO circuits VALUES ('c', CAST(zeroblob(31) || x'01' AS BLOB),
                                  CAST(zeroblob(31) || x'02' AS BLOB), 9, 1, 16, 1000);
     INSERT INTO jobs (seq, id, circuit, zkey, wasm, body, idempotency_key, priority, state, stage, progress, attempt,
                       tries_transient, tries_device, tries_lost, worker, error_class, error_message, result,
                       cancel_requested, created_at, run_at, started_at, finished_at, lease_expires_at)
     SELECT n, CAST(zeroblob(15) || char(n) AS BLOB), 'c',
            CAST(zeroblob(31) || x'01' AS BLOB), CAST(zeroblob(31) || x'02' AS BLOB),
            CAST(zeroblob(31) || char(n) AS BLOB),
            iif(n = 4, NULL, 'key ' || n), 10 - n, state, stage, 0.5, n,
            1, 2, 3, 'worker-1', class, iif(class IS NULL, NULL, 'it''s \"odd\"'), result,
            state = 'running', 2000 + n, 3000, 4000, finished, lease
     FROM (SELECT 2 AS n, 'queued' AS state, NULL AS stage, 'device' AS class, NULL AS result, NULL AS finished,
                  NULL AS lease
           UNION ALL SELECT 3, 'running', 'prove', NULL, NULL, NULL, 5000
           UNION ALL SELECT 4, 'done', NULL, NULL, '{\"proof_json\":\"p\",\"public_json\":\"q\",\"device\":\"d\",' ||
                '\"times\":{\"load_ms\":1,\"witness_ms\":2,\"prove_ms\":3,\"verify_ms\":4}}', 6000, NULL
           UNION ALL SELECT 5, 'failed', NULL, 'bad_input', NULL, 6000, NULL
           UNION ALL SELECT 7, 'cancelled', NULL, NULL, NULL, 6000, NULL);
     INSERT INTO job_inputs VALUES (2, CAST('the input of 2' AS BLOB)), (3, CAST('the input of 3' AS BLOB));"
);

#[tokio::test]
async fn a_file_of_the_first_version_is_brought_up_to_date() {
    let place = SqliteFile::new();
    std::fs::write(place.path(), "").unwrap();
    execute(&place.path(), "PRAGMA journal_mode = WAL").await;
    execute(&place.path(), VERSION_1).await;
    let (store, other) = tokio::join!(place.open(), place.open());
    let id = |n: u8| JobId(uuid::Uuid::from_u128(n.into()));
    let hash = |n: u8| ContentHash(std::array::from_fn(|i| if i == 31 { n } else { 0 }));

    let listed = store.jobs(JobFilter { limit: 10, ..JobFilter::default() }).await.unwrap();
    assert_eq!(listed.iter().map(|j| j.id).collect::<Vec<_>>(), [7, 5, 4, 3, 2].map(id));
    let mut jobs = Vec::new();
    for job in listed {
        jobs.push(store.job(job.id).await.unwrap().unwrap());
    }
    for (job, (n, state)) in jobs.iter().rev().zip([2_u8, 3, 4, 5, 7].into_iter().zip(JobState::ALL)) {
        assert_eq!((job.state, job.queue.as_str(), &job.history, job.start_by), (state, "prove", &vec![], None));
        assert_eq!((job.zkey, job.wasm, job.priority.0), (hash(1), Some(hash(2)), 10 - i16::from(n)));
        assert_eq!(job.idempotency_key, (n != 4).then(|| format!("key {n}")));
        assert_eq!((job.attempt.number, job.progress), (n.into(), 0.5));
        assert_eq!(job.tries, Tries { transient: 1, device: 2, lost: 3 });
        assert_eq!((job.created_at, job.run_at, job.started_at), (2000 + i64::from(n), 3000, Some(4000)));
        assert_eq!(job.finished_at, state.is_final().then_some(6000));
        assert_eq!((job.worker.as_ref().unwrap(), job.cancel_requested), (&worker(1), n == 3));
        assert_eq!(job.error.as_ref().map(|e| e.message.as_str()), [2, 5].contains(&n).then_some("it's \"odd\""));
        assert_eq!(job.result.as_ref().map(|r| r.times.verify_ms), (n == 4).then_some(4.0));
    }
    assert_eq!(other.inputs_held().await.unwrap(), [(String::new(), 2)]);
    assert_eq!(due_ids(&other).await, [2, 3].map(id));

    // The upgraded tables still work.
    let claim = claim(&store, id(2), LONG).await.unwrap();
    assert_eq!((sent(&claim), claim.input_key.as_str()), (&b"the input of 2"[..], ""));
    assert_eq!(store.finish(id(2), claim.job.attempt, &result()).await.unwrap(), HELD);
    assert!(store.claim(id(3), &worker(2), LONG).await.unwrap().is_none());
    assert_eq!(job(&store, id(3)).await.state, JobState::Cancelled);
    assert_eq!(inputs(&store).await, 0);
    let mut new = new_job("c");
    new.idempotency_key = Some(key("key 5"));
    assert!(matches!(store.submit(&new, plain(INPUT)).await, Err(StoreError::Conflict { id: i, .. }) if i == id(5)));
    new.body = hash(5);
    assert_eq!(store.submit(&new, plain(INPUT)).await.unwrap().job().id, id(5));
    let elsewhere = StoreSettings { queue: "other".into(), ..StoreSettings::default() };
    assert_eq!(place.open_with(elsewhere).await.submit(&new, plain(INPUT)).await.unwrap().job().id, new.id);
    let mut c = raw(&place.path()).await;
    let seq: i64 = sqlx::query_scalar("SELECT max(seq) FROM jobs").fetch_one(&mut c).await.unwrap();
    assert_eq!(seq, 8);
    assert!(sqlx::query("INSERT INTO job_inputs (job, input) VALUES (77, x'00')").execute(&mut c).await.is_err());
    let astray = sqlx::query("PRAGMA foreign_key_check").fetch_all(&mut c).await.unwrap();
    assert!(astray.is_empty());
    let verdict: String = sqlx::query_scalar("PRAGMA integrity_check").fetch_one(&mut c).await.unwrap();
    assert_eq!(verdict, "ok");
    c.close().await.unwrap();
    assert!(store.truncate_log().await.unwrap());
    for input in [b"the input of 2", b"the input of 3"] {
        assert!(!on_disk(&place, input), "neither the old tables nor the log keep a copy");
    }
}

/// Otherwise nobody would run them.
#[tokio::test]
async fn jobs_of_the_first_version_go_on_in_the_queue_of_whoever_opens_the_file() {
    let place = SqliteFile::new();
    std::fs::write(place.path(), "").unwrap();
    execute(&place.path(), VERSION_1).await;
    let store = place.open_with(StoreSettings { queue: "mine".into(), ..StoreSettings::default() }).await;
    assert_eq!(due_ids(&store).await.len(), 2);
    assert_eq!(store.counts().await.unwrap().done, 1);
    assert!(due_ids(&place.open().await).await.is_empty(), "they stay there");
}

#[tokio::test]
async fn a_migration_that_was_cut_short_is_done_again() {
    // What a crash before the commit leaves: an empty file, in write-ahead mode or not.
    let place = SqliteFile::new();
    std::fs::write(place.path(), "").unwrap();
    submitted(&place.open().await).await;

    let place = SqliteFile::new();
    std::fs::write(place.path(), "").unwrap();
    execute(&place.path(), "PRAGMA journal_mode = WAL").await;
    submitted(&place.open().await).await;
}

#[tokio::test]
async fn a_job_that_lost_its_input_fails_and_does_not_lapse_for_ever() {
    let place = SqliteFile::new();
    let store = place.open().await;
    let id = submitted(&store).await;
    execute(&place.path(), "DELETE FROM job_inputs").await;
    assert!(store.claim(id, &worker(1), LONG).await.unwrap().is_none());
    let job = store.job(id).await.unwrap().unwrap();
    assert_eq!(job.state, JobState::Failed);
    assert!(job.error.unwrap().message.contains("input is missing"));
    assert!(store.due(10).await.unwrap().is_empty());
}

#[tokio::test]
async fn a_row_that_does_not_read_is_reported_by_its_column() {
    let place = SqliteFile::new();
    let store = place.open().await;
    let id = submitted(&store).await;
    for (sql, column) in [
        ("UPDATE jobs SET priority = 40000", "priority"),
        ("UPDATE jobs SET priority = 0, attempt = -1", "attempt"),
        ("UPDATE jobs SET attempt = 0, circuit = 'no name'", "circuit"),
        ("UPDATE jobs SET circuit = 'c', state = 'done', finished_at = 1, result = '{'", "result"),
        ("UPDATE jobs SET result = '{}', history = '[{}]'", "history"),
    ] {
        execute(&place.path(), sql).await;
        match store.job(id).await {
            Err(StoreError::Corrupt { column: c, .. }) => assert_eq!(c, column),
            other => panic!("expected Corrupt for {column}, got {other:?}"),
        }
    }
}

#[tokio::test]
async fn the_schema_itself_forbids_states_that_make_no_sense() {
    let place = SqliteFile::new();
    let store = place.open().await;
    submitted(&store).await;
    let mut c = raw(&place.path()).await;
    for sql in [
        "UPDATE jobs SET state = 'running'",
        "UPDATE jobs SET state = 'done', finished_at = 1",
        "UPDATE jobs SET state = 'failed'",
        "UPDATE jobs SET state = 'paused'",
        "UPDATE jobs SET lease_expires_at = 1",
        "INSERT INTO job_inputs (job, input) VALUES (77, x'00')",
    ] {
        assert!(sqlx::raw_sql(sql).execute(&mut c).await.is_err(), "{sql}");
    }
}

/// Returns whether any of the store's files contains `needle`.
fn on_disk(place: &SqliteFile, needle: &[u8]) -> bool {
    let files = std::fs::read_dir(place.0.path()).unwrap();
    files.map(|f| std::fs::read(f.unwrap().path()).unwrap()).any(|b| b.windows(needle.len()).any(|w| w == needle))
}

#[tokio::test]
async fn an_input_leaves_the_disk_with_its_job() {
    const SECRET: &[u8] = b"a secret that nobody may find";
    // One input within a page, one across many.
    for repeat in [1, 2000] {
        let place = SqliteFile::new();
        let store = place.open().await;
        store.put_circuit(&circuit("c", 1)).await.unwrap();
        let new = new_job("c");
        store.submit(&new, plain(&SECRET.repeat(repeat))).await.unwrap();
        let attempt = claim(&store, new.id, LONG).await.unwrap().job.attempt;
        assert!(store.truncate_log().await.unwrap());
        assert!(on_disk(&place, SECRET), "it is there as long as the job needs it");
        store.finish(new.id, attempt, &result()).await.unwrap();
        assert!(store.truncate_log().await.unwrap());
        assert!(!on_disk(&place, SECRET));
    }
}

#[tokio::test]
async fn closing_leaves_no_log_behind() {
    let place = SqliteFile::new();
    let (a, b) = (place.open().await, place.open().await);
    submitted(&a).await;
    a.changed(Duration::ZERO).await.unwrap();
    b.changed(Duration::ZERO).await.unwrap();
    b.counts().await.unwrap();
    a.close().await;
    assert!(place.path().with_extension("db-wal").exists(), "the other still uses it");
    b.close().await;
    assert!(!place.path().with_extension("db-wal").exists());
    assert_eq!(place.open().await.counts().await.unwrap().queued, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn dropped_calls_leave_the_store_whole() {
    let place = SqliteFile::new();
    let store = std::sync::Arc::new(place.open().await);
    store.put_circuit(&circuit("c", 1)).await.unwrap();
    for n in 0..200_u64 {
        let submitting = tokio::spawn({
            let store = store.clone();
            async move { store.submit(&new_job("c"), plain(INPUT)).await }
        });
        tokio::time::sleep(Duration::from_micros(n * 7 % 600)).await;
        submitting.abort();
        let _ = submitting.await;
    }
    // One more submit on the same connection: whatever the last dropped one had begun is over then.
    let id = submitted(&*store).await;
    assert!(store.job(id).await.unwrap().is_some());
    let queued = store.counts().await.unwrap().queued;
    assert_eq!(inputs(&*store).await, queued, "each job has its input");
}

// Other processes: this test binary, controlled by the environment.

const FILE: &str = "STORE_TEST_FILE";

/// Not a test by itself. In a process started by [`spawn`] it submits, claims and finishes jobs and prints a line after
/// each answer, until it is killed or has done `STORE_TEST_JOBS`.
#[tokio::test]
async fn child() {
    let Some(path) = std::env::var_os(FILE) else { return };
    let jobs: usize = std::env::var("STORE_TEST_JOBS").unwrap().parse().unwrap();
    let store = open(Path::new(&path)).await.unwrap();
    store.put_circuit(&circuit("c", 1)).await.unwrap();
    for n in 0..jobs {
        let new = new_job("c");
        store.submit(&new, plain(&INPUT.repeat(1 + n % 7 * 100))).await.unwrap();
        println!("submitted {}", new.id);
        for Due { id, .. } in store.due(3).await.unwrap() {
            // Another process may have been first.
            if let Some(claim) = claim(&store, id, LONG).await {
                println!("claimed {id}");
                assert_eq!(store.finish(id, claim.job.attempt, &result()).await.unwrap(), HELD);
                println!("finished {id}");
            }
        }
    }
    println!("end");
}

fn spawn(place: &SqliteFile, jobs: usize) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "sqlite::child", "--nocapture", "--test-threads=1"])
        .env(FILE, place.path())
        .env("STORE_TEST_JOBS", jobs.to_string())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

/// Returns the ids of lines "`what` id".
fn ids_after(lines: &[String], what: &str) -> Vec<JobId> {
    // The harness prints the test's name and our first line on one line.
    lines.iter().filter_map(|l| l.split_once(&format!("{what} "))?.1.trim().parse().ok()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn several_processes_share_one_file_from_its_first_moment() {
    const JOBS: usize = 25;
    let place = SqliteFile::new();
    let children: Vec<Child> = (0..3).map(|_| spawn(&place, JOBS)).collect();
    let mut finished = Vec::new();
    for child in children {
        let out = tokio::task::spawn_blocking(|| child.wait_with_output().unwrap()).await.unwrap();
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stdout));
        let lines: Vec<String> = String::from_utf8(out.stdout).unwrap().lines().map(str::to_owned).collect();
        assert!(lines.iter().any(|l| l.ends_with("end")));
        finished.extend(ids_after(&lines, "finished"));
    }
    let store = place.open().await;
    let counts = store.counts().await.unwrap();
    assert_eq!(counts.queued + counts.running + counts.done, 3 * JOBS as u64);
    assert_eq!(counts.running, 0);
    assert_eq!(finished.len() as u64, counts.done);
    assert_eq!(finished.into_iter().collect::<HashSet<_>>().len() as u64, counts.done, "each was done once");
    assert_eq!(inputs(&store).await, counts.queued);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_answered_survives_the_death_of_the_process() {
    let place = SqliteFile::new();
    let mut lines = Vec::new();
    for round in 0..8 {
        let mut child = spawn(&place, usize::MAX);
        // In the first rounds the process dies while the file is being created or its schema written.
        let read = tokio::task::spawn_blocking(move || {
            let out = BufReader::new(child.stdout.take().unwrap());
            let mut lines: Vec<String> = Vec::new();
            let mut rest = out.lines();
            while lines.len() < round * 11 {
                lines.push(rest.next().unwrap().unwrap());
            }
            child.kill().unwrap();
            child.wait().unwrap();
            lines.extend(rest.map_while(Result::ok));
            lines
        });
        lines.extend(read.await.unwrap());
        let store = place.open().await;
        for id in ids_after(&lines, "submitted") {
            assert!(store.job(id).await.unwrap().is_some(), "an answered submit is there");
        }
        for id in ids_after(&lines, "finished") {
            assert_eq!(job(&store, id).await.result, Some(result()), "an answered finish is there");
        }
        let counts = store.counts().await.unwrap();
        assert_eq!(inputs(&store).await, counts.queued + counts.running);
        // A dead worker's jobs are with no worker; their leases are long, so they are handed back here.
        for stuck in store.jobs(JobFilter { limit: 1000, ..Default::default() }).await.unwrap() {
            store.release(stuck.id, stuck.attempt).await.unwrap();
        }
    }
    assert!(ids_after(&lines, "finished").len() > 10, "the children got somewhere");
    let mut c = raw(&place.path()).await;
    let verdict: String = sqlx::query_scalar("PRAGMA integrity_check").fetch_one(&mut c).await.unwrap();
    assert_eq!(verdict, "ok");
}

/// A tmpfs, if this test may mount one.
struct TinyDisk(PathBuf);

impl TinyDisk {
    fn mount(folder: &Path) -> Option<Self> {
        let mut mount = Command::new("mount");
        let mounted = mount.args(["-t", "tmpfs", "-o", "size=2m,mode=0700", "tmpfs"]).arg(folder).output();
        mounted.is_ok_and(|m| m.status.success()).then(|| Self(folder.to_owned()))
    }
}

impl Drop for TinyDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

#[tokio::test]
async fn a_full_disk_is_no_store_that_can_be_worked_with() {
    let folder = tempfile::tempdir().unwrap();
    let Some(disk) = TinyDisk::mount(folder.path()) else {
        eprintln!("!! NO FULL DISK: this test may not mount one, and tests nothing");
        return;
    };
    let store = open(&disk.0.join("jobs.db")).await.unwrap();
    store.ping().await.unwrap();
    let junk = disk.0.join("junk");
    let mut file = std::fs::File::create(&junk).unwrap();
    while std::io::Write::write_all(&mut file, &[0; 4096]).is_ok() {}
    let error = store.ping().await.unwrap_err();
    assert!(matches!(error, StoreError::Unwritable { .. }) && error.is_outage(), "{error:?}");
    std::fs::remove_file(junk).unwrap();
    drop(file);
    store.ping().await.unwrap();
    store.close().await;
}
