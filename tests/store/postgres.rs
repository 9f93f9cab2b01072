//! Tests of Postgres only: the schema, several processes, lost connections and answers, wakes, plans and figures.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use prover_worker::model::{FailureClass, JobId, JobState, Stage};
use prover_worker::store::{
    Cancelled, Held, JobFilter, PostgresStore, Requeued, Retry, Scope, Store, StoreError, StoreSettings, Submitted,
};
use sqlx::{Connection, PgConnection, Row};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::OnceCell;
use tokio::task::JoinSet;
use tokio::time::timeout;
use url::Url;

use crate::conformance::Place;
use crate::fixtures::*;
use crate::wait::{HANG, until_async};

fn server() -> Url {
    let url = std::env::var("TEST_POSTGRES_URL");
    url.as_deref().unwrap_or("postgres://postgres@127.0.0.1:5432/postgres").parse().unwrap()
}

/// A database of its own, dropped with the test.
pub struct PostgresDatabase {
    name: String,
    made: OnceCell<()>,
}

impl PostgresDatabase {
    pub fn new() -> Self {
        Self { name: format!("pw_test_{}", JobId::new().0.simple()), made: OnceCell::new() }
    }

    async fn url(&self) -> Url {
        let make = || async { on_server(&format!("CREATE DATABASE {} TEMPLATE template0", self.name)).await };
        self.made.get_or_init(make).await;
        let mut url = server();
        url.set_path(&self.name);
        url
    }

    async fn raw(&self) -> PgConnection {
        PgConnection::connect(self.url().await.as_str()).await.unwrap()
    }

    async fn execute(&self, sql: &str) {
        let mut c = self.raw().await;
        sqlx::raw_sql(sqlx::AssertSqlSafe(sql.to_owned())).execute(&mut c).await.unwrap();
        c.close().await.unwrap();
    }

    async fn number(&self, sql: &str) -> i64 {
        let mut c = self.raw().await;
        let row = sqlx::query(sqlx::AssertSqlSafe(sql.to_owned())).fetch_one(&mut c).await.unwrap();
        c.close().await.unwrap();
        row.get(0)
    }
}

async fn on_server(sql: &str) {
    let mut c = PgConnection::connect(server().as_str()).await.unwrap();
    sqlx::raw_sql(sqlx::AssertSqlSafe(sql.to_owned())).execute(&mut c).await.unwrap();
    c.close().await.unwrap();
}

impl Drop for PostgresDatabase {
    fn drop(&mut self) {
        if !self.made.initialized() {
            return;
        }
        // In a runtime of its own, because this may run on the test's.
        let sql = format!("DROP DATABASE IF EXISTS {} WITH (FORCE)", self.name);
        let dropped = std::thread::spawn(move || {
            tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(on_server(&sql));
        });
        let _ = dropped.join();
    }
}

impl Place for PostgresDatabase {
    type Store = PostgresStore;

    async fn open_with(&self, settings: StoreSettings) -> PostgresStore {
        PostgresStore::open(self.url().await.as_str(), settings).await.unwrap()
    }
}

async fn open(url: &Url) -> Result<PostgresStore, StoreError> {
    PostgresStore::open(url.as_str(), StoreSettings::default()).await
}

/// As when a client's requests are repeated through another server: joint statements of both meet.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn the_same_keys_submitted_by_two_processes_meet_no_deadlock() {
    let database = PostgresDatabase::new();
    let url = database.url().await;
    let stores = [Arc::new(open(&url).await.unwrap()), Arc::new(open(&url).await.unwrap())];
    stores[0].put_circuit(&circuit("c", 1)).await.unwrap();
    for round in 0..10 {
        let mut submits = JoinSet::new();
        for n in 0..200 {
            for store in &stores {
                let (store, key) = (store.clone(), key(&format!("{round} {n}")));
                let new = prover_worker::model::NewJob { idempotency_key: Some(key), ..new_job("c") };
                submits.spawn(async move { store.submit(&new, plain(INPUT)).await.unwrap() });
            }
        }
        let submitted = submits.join_all().await;
        assert_eq!(submitted.iter().filter(|s| matches!(s, Submitted::Created(_))).count(), 200);
    }
    for store in stores {
        store.close().await;
    }
    // A session's statistics are visible once it has ended.
    let sessions =
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()";
    until_async("the sessions to end", async || database.number(sessions).await == 0).await;
    let deadlocks = "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()";
    assert_eq!(database.number(deadlocks).await, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn many_open_an_empty_database_at_once() {
    let database = PostgresDatabase::new();
    let url = database.url().await;
    let mut opening = JoinSet::new();
    for _ in 0..12 {
        let url = url.clone();
        opening.spawn(async move { open(&url).await });
    }
    while let Some(opened) = opening.join_next().await {
        opened.unwrap().unwrap().ping().await.unwrap();
    }
    let twice = "SELECT count(*) - max(version) FROM prover_worker_schema";
    assert_eq!(database.number(twice).await, 0, "each migration ran once");
}

#[tokio::test]
async fn a_newer_schema_is_refused_and_left_alone() {
    let database = PostgresDatabase::new();
    database.open().await;
    database.execute("INSERT INTO prover_worker_schema (version) VALUES (99)").await;
    let refused = open(&database.url().await).await;
    assert!(matches!(refused, Err(StoreError::NewerSchema)), "{refused:?}");
}

#[tokio::test]
async fn a_table_of_another_program_is_not_touched() {
    let database = PostgresDatabase::new();
    database.execute("CREATE TABLE jobs (mine int)").await;
    let refused = open(&database.url().await).await;
    assert!(matches!(&refused, Err(StoreError::Open { why, .. }) if why.to_string().contains("jobs")), "{refused:?}");
    let left = "SELECT count(*) FROM pg_tables WHERE schemaname = 'public'";
    assert_eq!(database.number(left).await, 1, "nothing of ours remains");
}

#[tokio::test]
async fn an_address_that_does_not_work_is_named_without_its_password() {
    for (url, expected) in [
        ("postgres://me:hunter2@127.0.0.1:1/jobs", "postgres://127.0.0.1:1/jobs"),
        ("postgres://me:hunter2@127.0.0.1:port/jobs", "expected postgres://"),
        ("postgres://me:hunter2@127.0.0.1:5432/jobs?sslmode=maybe", "maybe"),
    ] {
        let error = PostgresStore::open(url, StoreSettings::default()).await.unwrap_err();
        let named = match error {
            StoreError::Unreachable { .. } => url.contains(":1/"),
            StoreError::InvalidUrl(_) => !url.contains(":1/"),
            _ => false,
        };
        assert!(named, "{error:?}");
        let source = std::error::Error::source(&error).expect("its source");
        let all = format!("{error} {error:?} {source}");
        assert!(all.contains(expected) && !all.contains("hunter2"), "{all}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn many_claimers_get_each_job_once() {
    const JOBS: usize = 500;
    let database = PostgresDatabase::new();
    let mut stores = Vec::new();
    for _ in 0..4 {
        stores.push(Arc::new(database.open().await));
    }
    stores[0].put_circuit(&circuit("c", 1)).await.unwrap();
    let mut submits = JoinSet::new();
    for n in 0..JOBS {
        let store = stores[n % 4].clone();
        submits.spawn(async move {
            let submitted = store.submit(&new_job("c"), plain(INPUT)).await.unwrap();
            assert!(matches!(submitted, Submitted::Created(_)));
            submitted.job().id
        });
    }
    let ids: Arc<Vec<JobId>> = Arc::new(submits.join_all().await);

    // Each wants every job, beginning at a different one.
    let mut claimers = JoinSet::new();
    for n in 0..64 {
        let (store, ids) = (stores[n % 4].clone(), ids.clone());
        claimers.spawn(async move {
            let mut got = Vec::new();
            for k in 0..JOBS {
                let id = ids[(k + n * 8) % JOBS];
                if let Some(claim) = store.claim(id, &worker(n), LONG).await.unwrap() {
                    assert_eq!((claim.job.id, claim.job.attempt.number), (id, 1));
                    assert_eq!(sent(&claim), INPUT);
                    assert_eq!(claim.job.worker, Some(worker(n)));
                    got.push(id);
                }
            }
            got
        });
    }
    let got: Vec<JobId> = claimers.join_all().await.concat();
    assert_eq!(got.len(), JOBS);
    assert_eq!(got.into_iter().collect::<HashSet<_>>().len(), JOBS);
}

/// Large inputs would delay the claims that are made together with theirs, for longer than a statement may take.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn large_inputs_do_not_come_with_their_claims_and_are_read_many_at_once() {
    const JOBS: usize = 20;
    let database = PostgresDatabase::new();
    let store = Arc::new(database.open().await);
    store.put_circuit(&circuit("c", 1)).await.unwrap();
    let mut reads = JoinSet::new();
    for n in 0..JOBS {
        let (new, input) = (new_job("c"), vec![n as u8; 16_385 + n * 50_000]);
        store.submit(&new, plain(&input)).await.unwrap();
        let store = store.clone();
        reads.spawn(async move {
            let claim = claim(&*store, new.id, LONG).await.unwrap();
            assert!(claim.input.is_none());
            let read = store.input(new.id, claim.job.attempt).await.unwrap().unwrap();
            assert!(*read == input);
        });
    }
    assert_eq!(reads.join_all().await.len(), JOBS);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn joint_changes_respect_each_fence() {
    let database = PostgresDatabase::new();
    let store = Arc::new(database.open().await);
    let mut calls = JoinSet::new();
    for n in 0..200u32 {
        let (id, attempt) = claimed(&*store, LONG).await;
        // Every third uses an older token, every fifth is to be cancelled.
        let stale = n % 3 == 0;
        let cancel = n % 5 == 0;
        if cancel {
            assert_eq!(store.cancel(id).await.unwrap(), Some(Cancelled::Requested));
        }
        let attempt = if stale { attempt.numbered(attempt.number - 1) } else { attempt };
        let expected = if stale { Held::Lost } else { Held::Yes { cancel } };
        let store = store.clone();
        calls.spawn(async move {
            let beat = store.heartbeat(id, attempt, LONG, Stage::Prove, 0.5).await.unwrap();
            let mut own = result();
            own.device = n.to_string();
            let finished = store.finish(id, attempt, &own).await.unwrap();
            let after = job(&*store, id).await;
            assert_eq!((beat, finished), (expected, expected), "{n}");
            match stale {
                true => assert_eq!((after.state, after.result), (JobState::Running, None)),
                false => assert_eq!((after.state, after.result), (JobState::Done, Some(own))),
            }
        });
    }
    assert_eq!(calls.join_all().await.len(), 200);
}

/// A job whose input is replaced while a claim waits for its row is not claimed with the old one.
#[tokio::test]
async fn a_claim_never_takes_an_input_that_was_replaced_meanwhile() {
    let database = PostgresDatabase::new();
    let store = Arc::new(database.open().await);
    let id = submitted(&*store).await;
    let mut other = database.raw().await;
    let mut tx = other.begin().await.unwrap();
    let change = format!("UPDATE jobs SET run_at = run_at WHERE id = '{id}'; UPDATE job_inputs SET input = 'new'");
    sqlx::raw_sql(sqlx::AssertSqlSafe(change)).execute(&mut *tx).await.unwrap();
    let waiting = tokio::spawn({
        let store = store.clone();
        async move { claim(&*store, id, LONG).await }
    });
    let waits = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'";
    until_async("a session to wait", || async { database.number(waits).await == 1 }).await;
    tx.commit().await.unwrap();
    assert!(waiting.await.unwrap().is_none());
    assert_eq!(sent(&claim(&*store, id, LONG).await.unwrap()), b"new");
}

/// A newer version in the same fleet may write classes and stages that this one does not know.
#[tokio::test]
async fn classes_and_stages_of_a_newer_version_are_no_hindrance() {
    let database = PostgresDatabase::new();
    let store = database.open().await;
    let id = submitted(&store).await;
    let history = r#"[{"attempt": 1, "worker": "w", "at": 1, "error": {"class": "meteor", "message": "it fell"}}]"#;
    database
        .execute(&format!("UPDATE jobs SET error_class = 'meteor', error_message = 'it fell', history = '{history}'"))
        .await;
    let claimed = claim(&store, id, LONG).await.unwrap().job;
    let error = claimed.error.unwrap();
    assert_eq!((error.class, error.message.as_str()), (FailureClass::Unknown, "it fell"));
    assert_eq!(claimed.history[0].error, error);
    database.execute("UPDATE jobs SET stage = 'polish'").await;
    assert_eq!(job(&store, id).await.stage, None);
    assert_eq!(store.jobs(JobFilter { limit: 9, ..JobFilter::default() }).await.unwrap().len(), 1);
}

/// Waits until `n` sessions wait for a lock.
async fn until_waiting(database: &PostgresDatabase, n: i64) {
    let waits = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'";
    until_async(format_args!("{n} sessions to wait"), || async { database.number(waits).await == n }).await;
}

/// Otherwise content that the submit refers to would be removed before the job that needs it is visible.
#[tokio::test]
async fn a_circuit_is_settled_once_submits_that_have_read_it_are_over() {
    let database = PostgresDatabase::new();
    let store = database.open().await;
    store.put_circuit(&circuit("c", 1)).await.unwrap();
    let mut other = database.raw().await;
    let mut submit = other.begin().await.unwrap();
    sqlx::query("SELECT name FROM circuits WHERE name = 'c' FOR KEY SHARE").execute(&mut *submit).await.unwrap();
    let content = circuit("c", 2);
    assert_eq!(store.put_circuit(&content).await.unwrap().zkey, content.zkey, "which waits for nobody");
    let seen = async {
        until_waiting(&database, 1).await;
        submit.commit().await.unwrap();
    };
    let (settled, ()) = tokio::join!(store.settle_circuit(&content.name), seen);
    settled.unwrap();
}

/// Changes the job in a transaction of another session, which is left open.
async fn hold<'a>(other: &'a mut PgConnection, id: JobId) -> sqlx::Transaction<'a, sqlx::Postgres> {
    let mut tx = other.begin().await.unwrap();
    let change = format!("UPDATE jobs SET run_at = run_at WHERE id = '{id}'");
    sqlx::raw_sql(sqlx::AssertSqlSafe(change)).execute(&mut *tx).await.unwrap();
    tx
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_row_that_cannot_be_read_takes_no_other_claim_along() {
    let database = PostgresDatabase::new();
    let store = Arc::new(database.open().await);
    let mut ids = Vec::new();
    for _ in 0..6 {
        ids.push(submitted(&*store).await);
    }
    database.execute(&format!(r#"UPDATE jobs SET history = '["?"]' WHERE id = '{}'"#, ids[3])).await;
    let spawn = |id: JobId| {
        let store = store.clone();
        tokio::spawn(async move { store.claim(id, &worker(1), LONG).await })
    };
    // While the first waits, the others queue up to go together.
    let mut other = database.raw().await;
    let tx = hold(&mut other, ids[0]).await;
    let first = spawn(ids[0]);
    until_waiting(&database, 1).await;
    let others: Vec<_> = ids[1..].iter().map(|id| spawn(*id)).collect();
    tokio::time::sleep(Duration::from_millis(50)).await;
    tx.rollback().await.unwrap();
    assert!(first.await.unwrap().is_ok());
    for (id, claimed) in ids[1..].iter().zip(others) {
        match claimed.await.unwrap() {
            Err(e) => assert!(*id == ids[3] && matches!(e, StoreError::Corrupt { column: "history", .. }), "{e}"),
            Ok(claimed) => assert_eq!(claimed.map(|c| c.job.id), Some(*id)),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_row_that_somebody_holds_takes_no_other_heartbeat_along() {
    let database = PostgresDatabase::new();
    let store = Arc::new(database.open().await);
    let mut jobs = Vec::new();
    for _ in 0..4 {
        jobs.push(claimed(&*store, LONG).await);
    }
    let spawn = |n: usize| {
        let (store, (id, attempt)) = (store.clone(), jobs[n]);
        tokio::spawn(async move { store.heartbeat(id, attempt, LONG, Stage::Prove, 0.5).await })
    };
    let mut other = database.raw().await;
    let tx = hold(&mut other, jobs[0].0).await;
    let first = spawn(0);
    until_waiting(&database, 1).await;
    let again: Vec<_> = (0..4).map(spawn).collect();
    assert!(first.await.unwrap().is_err());
    for (n, beat) in again.into_iter().enumerate() {
        match beat.await.unwrap() {
            Ok(held) => assert!(n > 0 && held == HELD),
            Err(e) => assert!(n == 0 && e.to_string().contains("lock timeout"), "{n}: {e}"),
        }
    }
    tx.rollback().await.unwrap();
    assert_eq!(spawn(0).await.unwrap().unwrap(), HELD);
}

/// Circuits cannot be removed while a submit is in progress, and no job can be submitted while one is being removed.
#[tokio::test]
async fn a_circuit_that_a_submit_holds_is_not_removed() {
    let database = PostgresDatabase::new();
    let store = Arc::new(database.open().await);
    let id = submitted(&*store).await;
    store.cancel(id).await.unwrap();
    let mut other = database.raw().await;
    let mut tx = other.begin().await.unwrap();
    sqlx::raw_sql("SELECT FROM circuits FOR KEY SHARE").execute(&mut *tx).await.unwrap();
    let removing = tokio::spawn({
        let store = store.clone();
        async move { store.remove_circuit(&name("c")).await }
    });
    let waits = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'";
    until_async("a session to wait", || async { database.number(waits).await == 1 }).await;
    // Another submit succeeds meanwhile, and is seen by the removal.
    store.submit(&new_job("c"), plain(INPUT)).await.unwrap();
    tx.commit().await.unwrap();
    let refused = removing.await.unwrap();
    assert!(matches!(refused, Err(StoreError::InUse { unfinished: 1, .. })), "{refused:?}");
}

#[tokio::test]
async fn a_notice_wakes_another_store_at_once() {
    let database = PostgresDatabase::new();
    let (teller, listener) = (database.open().await, Arc::new(database.open().await));
    let silent = database.open_with(StoreSettings { notify: false, ..StoreSettings::default() }).await;
    let elsewhere =
        database.open_with(StoreSettings { queue: "elsewhere".to_owned(), ..StoreSettings::default() }).await;
    let listens = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND query LIKE 'LISTEN%'";
    let wait = || {
        let listener = listener.clone();
        tokio::spawn(async move { timeout(HANG, listener.changed(2 * HANG)).await.expect("woken").unwrap() })
    };
    // The first look is due once the connection is established.
    wait().await.unwrap();
    until_async("the store to listen", || async { database.number(listens).await == 1 }).await;

    let waiting = wait();
    let id = submitted(&teller).await;
    waiting.await.unwrap();

    let waiting = wait();
    let token = claim(&teller, id, LONG).await.unwrap().job.attempt;
    teller.release(id, token).await.unwrap();
    waiting.await.unwrap();

    let waiting = wait();
    let token = claim(&teller, id, LONG).await.unwrap().job.attempt;
    teller.fail(id, token, &error(FailureClass::Device), Retry::After(NONE)).await.unwrap();
    waiting.await.unwrap();

    let waiting = wait();
    let token = claim(&teller, id, LONG).await.unwrap().job.attempt;
    teller.fail(id, token, &error(FailureClass::Device), Retry::Never).await.unwrap();
    assert!(matches!(teller.requeue(id, None, None).await.unwrap(), Requeued::Yes(_)));
    waiting.await.unwrap();

    for scope in [Scope::Queue, Scope::Circuit(name("c"))] {
        let waiting = wait();
        assert!(teller.set_paused(&scope, true).await.unwrap());
        assert!(teller.set_paused(&scope, false).await.unwrap());
        waiting.await.unwrap();
    }

    // Irrelevant changes wake nothing here: each notice would have come before the last one, which does.
    let mut raw = sqlx::postgres::PgListener::connect(database.url().await.as_str()).await.unwrap();
    raw.listen_all(["prover_worker_prove", "prover_worker_elsewhere"]).await.unwrap();
    submitted(&silent).await;
    let token = claim(&teller, id, LONG).await.unwrap().job.attempt;
    teller.fail(id, token, &error(FailureClass::Device), Retry::After(LONG)).await.unwrap();
    submitted(&elsewhere).await;
    let first = timeout(HANG, raw.recv()).await.unwrap().unwrap();
    assert_eq!(first.channel(), "prover_worker_elsewhere");
    // A wait without a notice ends by its time-out.
    timeout(HANG, silent.changed(Duration::from_millis(1))).await.unwrap().unwrap();
}

/// Forwards bytes, and when armed loses the server's next answer together with the connection.
struct Cutter {
    port: u16,
    armed: Arc<AtomicBool>,
}

impl Cutter {
    async fn new(to: &Url) -> Self {
        let to = format!("{}:{}", to.host_str().unwrap(), to.port().unwrap_or(5432));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let armed = Arc::new(AtomicBool::new(false));
        let flag = armed.clone();
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let server = tokio::net::TcpStream::connect(&to).await.unwrap();
                tokio::spawn(pass(client, server, flag.clone()));
            }
        });
        Self { port, armed }
    }

    /// Loses the answer to the next call.
    fn arm(&self) {
        self.armed.store(true, Ordering::SeqCst);
    }

    fn has_cut(&self) -> bool {
        !self.armed.load(Ordering::SeqCst)
    }
}

async fn pass(client: tokio::net::TcpStream, server: tokio::net::TcpStream, armed: Arc<AtomicBool>) {
    let (mut from_client, mut to_client) = client.into_split();
    let (mut from_server, mut to_server) = server.into_split();
    let up = tokio::spawn(async move { drop(tokio::io::copy(&mut from_client, &mut to_server).await) });
    let mut buffer = vec![0; 1 << 16];
    while let Ok(n @ 1..) = from_server.read(&mut buffer).await {
        if armed.load(Ordering::SeqCst) {
            // Only once it is complete: an answer that has ended has been committed.
            let mut seen = buffer[..n].to_vec();
            while !seen.ends_with(b"Z\0\0\0\x05I") {
                let n = from_server.read(&mut buffer).await.unwrap();
                assert_ne!(n, 0, "the server ends its answer");
                seen.extend_from_slice(&buffer[..n]);
            }
            armed.store(false, Ordering::SeqCst);
            break;
        }
        if to_client.write_all(&buffer[..n]).await.is_err() {
            break;
        }
    }
    up.abort();
}

/// Each change is made twice: once so that the statement is prepared on the connection, and once so that its answer,
/// and not that of its preparation, is lost.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn changes_whose_answer_was_lost_are_recognised() {
    let database = PostgresDatabase::new();
    let direct = database.open().await;
    let cutter = Cutter::new(&database.url().await).await;
    let mut url = database.url().await;
    url.set_host(Some("127.0.0.1")).unwrap();
    url.set_port(Some(cutter.port)).unwrap();
    // Unencrypted, so that the end of an answer can be seen.
    url.query_pairs_mut().append_pair("sslmode", "disable");
    let store = open(&url).await.unwrap();

    let (a, b) = (claimed(&direct, LONG).await, claimed(&direct, LONG).await);
    assert_eq!(store.finish(a.0, a.1, &result()).await.unwrap(), HELD);
    cutter.arm();
    assert_eq!(store.finish(b.0, b.1, &result()).await.unwrap(), HELD);
    assert!(cutter.has_cut());
    assert_eq!(store.finish(b.0, b.1, &result()).await.unwrap(), HELD, "in a later call, too");

    for retry in [Retry::Never, Retry::After(NONE), Retry::After(LONG)] {
        let (a, b) = (claimed(&direct, LONG).await, claimed(&direct, LONG).await);
        let why = error(FailureClass::Device);
        assert_eq!(store.fail(a.0, a.1, &why, retry).await.unwrap(), HELD);
        cutter.arm();
        assert_eq!(store.fail(b.0, b.1, &why, retry).await.unwrap(), HELD);
        assert!(cutter.has_cut());
        let (a, b) = (job(&direct, a.0).await, job(&direct, b.0).await);
        assert_eq!((a.state, a.tries, a.history.len()), (b.state, b.tries, b.history.len()));
    }

    for cancel in [false, true] {
        let (a, b) = (claimed(&direct, LONG).await, claimed(&direct, LONG).await);
        if cancel {
            direct.cancel(a.0).await.unwrap();
            direct.cancel(b.0).await.unwrap();
        }
        assert_eq!(store.release(a.0, a.1).await.unwrap(), Held::Yes { cancel });
        cutter.arm();
        assert_eq!(store.release(b.0, b.1).await.unwrap(), Held::Yes { cancel });
        assert!(cutter.has_cut());
    }

    let (a, b) = (claimed(&direct, LONG).await, claimed(&direct, LONG).await);
    for id in [a.0, b.0] {
        direct.cancel(id).await.unwrap();
    }
    assert_eq!(store.confirm_cancel(a.0, a.1).await.unwrap(), HELD_AND_CANCELLED);
    cutter.arm();
    assert_eq!(store.confirm_cancel(b.0, b.1).await.unwrap(), HELD_AND_CANCELLED);
    assert!(cutter.has_cut());

    store.submit(&new_job("c"), plain(INPUT)).await.unwrap();
    cutter.arm();
    let new = new_job("c");
    let again = store.submit(&new, plain(INPUT)).await.unwrap();
    assert!(cutter.has_cut() && matches!(again, Submitted::Existing(_)), "{again:?}");

    // Of a large input, only the part that was lost is read again.
    let (large, input) = (new_job("c"), vec![7; 1_000_000]);
    direct.submit(&large, plain(&input)).await.unwrap();
    let attempt = claim(&direct, large.id, LONG).await.unwrap().job.attempt;
    store.input(large.id, attempt).await.unwrap().unwrap();
    cutter.arm();
    assert!(*store.input(large.id, attempt).await.unwrap().unwrap() == input);
    assert!(cutter.has_cut());

    // A claim whose answer is lost is an error, and the job returns when its lease has lapsed.
    let id = submitted(&direct).await;
    assert!(claim(&store, id, LONG).await.is_some());
    cutter.arm();
    let lost = store.claim(new.id, &worker(1), NONE).await;
    assert!(matches!(lost, Err(StoreError::Database(_))), "{lost:?}");
    assert!(due_ids(&direct).await.contains(&new.id));
    assert_eq!(claim(&store, new.id, LONG).await.unwrap().job.tries.lost, 1);
}

/// The test's own server, on a Unix socket.
struct Cluster {
    folder: tempfile::TempDir,
    bin: PathBuf,
    user: Option<u32>,
}

impl Cluster {
    fn start() -> Self {
        use std::os::unix::fs::{PermissionsExt, chown};
        let folder = tempfile::tempdir().unwrap();
        std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
        let id = |args: &[&str]| {
            let out = Command::new("id").args(args).output().unwrap();
            String::from_utf8(out.stdout).unwrap().trim().parse::<u32>().unwrap()
        };
        // Postgres does not run as root.
        let user = (id(&["-u"]) == 0).then(|| id(&["-u", "postgres"]));
        if let Some(user) = user {
            chown(folder.path(), Some(user), None).unwrap();
        }
        let cluster = Self { folder, bin: binaries(), user };
        let data = cluster.data();
        cluster
            .run("initdb", &["-D", &data, "-A", "trust", "-U", "postgres", "--no-sync", "--no-locale", "-E", "UTF8"]);
        cluster.up();
        cluster
    }

    fn data(&self) -> String {
        self.folder.path().join("data").display().to_string()
    }

    fn run(&self, program: &str, args: &[&str]) {
        use std::os::unix::process::CommandExt;
        let mut command = Command::new(self.bin.join(program));
        // To a file, because the server keeps open what it inherits.
        let log = std::fs::File::create(self.folder.path().join("out")).unwrap();
        command.args(args).current_dir(self.folder.path()).stdout(log.try_clone().unwrap()).stderr(log);
        if let Some(user) = self.user {
            command.uid(user);
        }
        let status = command.status().unwrap();
        let said = std::fs::read_to_string(self.folder.path().join("out")).unwrap();
        assert!(status.success(), "{program} {args:?}: {said}");
    }

    fn up(&self) {
        let socket = self.folder.path().display();
        let options = format!("-c listen_addresses='' -c unix_socket_directories='{socket}' -c fsync=off");
        let log = self.folder.path().join("log").display().to_string();
        self.run("pg_ctl", &["-D", &self.data(), "-w", "-t", "60", "-l", &log, "-o", &options, "start"]);
    }

    fn down(&self) {
        self.run("pg_ctl", &["-D", &self.data(), "-w", "-t", "60", "-m", "immediate", "stop"]);
    }

    fn url(&self) -> Url {
        format!("postgres://postgres@localhost/postgres?host={}", self.folder.path().display()).parse().unwrap()
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if Path::new(&self.data()).join("postmaster.pid").exists() {
            self.down();
        }
    }
}

/// Returns the folder of the server's programs.
fn binaries() -> PathBuf {
    let versions = std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten();
    let mut found: Vec<PathBuf> = versions.map(|v| v.unwrap().path().join("bin")).collect();
    if let Ok(out) = Command::new("pg_config").arg("--bindir").output() {
        found.push(PathBuf::from(String::from_utf8(out.stdout).unwrap().trim()));
    }
    found.retain(|f| f.join("pg_ctl").exists());
    found.sort();
    found.pop().expect("the programs of a Postgres server (initdb, pg_ctl) are installed")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_restarts_is_survived() {
    let cluster = Cluster::start();
    let store = Arc::new(open(&cluster.url()).await.unwrap());
    let (id, attempt) = claimed(&*store, LONG).await;
    store.changed(Duration::from_secs(5)).await.unwrap();

    // Calls continue all the time. None hangs, and a claim that was answered is there afterwards.
    let going = Arc::new(AtomicBool::new(true));
    let mut callers = JoinSet::new();
    for n in 0..8 {
        let (store, going) = (store.clone(), going.clone());
        callers.spawn(async move {
            let mut claims = Vec::new();
            while going.load(Ordering::SeqCst) {
                let new = new_job("c");
                let called = timeout(HANG, async {
                    store.submit(&new, plain(INPUT)).await?;
                    store.claim(new.id, &worker(n), LONG).await
                });
                if let Ok(Some(claim)) = called.await.expect("a call ends") {
                    claims.push((claim.job.id, claim.job.attempt));
                }
            }
            claims
        });
    }
    for _ in 0..2 {
        cluster.down();
        let down = timeout(HANG, store.job(id)).await.expect("a call ends");
        assert!(matches!(down, Err(StoreError::Database(_))), "{down:?}");
        cluster.up();
        store.job(id).await.unwrap();
    }
    going.store(false, Ordering::SeqCst);
    let claims = callers.join_all().await.concat();
    assert!(!claims.is_empty());
    for (id, attempt) in claims {
        assert_eq!(store.finish(id, attempt, &result()).await.unwrap(), HELD);
    }
    assert_eq!(store.finish(id, attempt, &result()).await.unwrap(), HELD);

    // It listens again: the wait ends by a notice, because it would not end by itself.
    let listens = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'LISTEN%'";
    until_async("the store to listen", || async {
        let mut c = PgConnection::connect(cluster.url().as_str()).await.unwrap();
        let row = sqlx::query(listens).fetch_one(&mut c).await.unwrap();
        row.get::<i64, _>(0) == 1
    })
    .await;
    let waiting = tokio::spawn({
        let store = store.clone();
        async move { timeout(HANG, store.changed(2 * HANG)).await.expect("woken").unwrap() }
    });
    store.submit(&new_job("c"), plain(INPUT)).await.unwrap();
    waiting.await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_that_fall_silent_are_replaced() {
    const CALLERS: usize = 30;
    let cluster = Cluster::start();
    let store = Arc::new(open(&cluster.url()).await.unwrap());
    let id = submitted(&*store).await;
    let calls = || async {
        let mut calls = JoinSet::new();
        for _ in 0..CALLERS {
            let store = store.clone();
            calls.spawn(async move { timeout(HANG, store.job(id)).await.expect("a call ends") });
        }
        calls.join_all().await
    };
    assert!(calls().await.iter().all(Result::is_ok));

    let mut c = PgConnection::connect(cluster.url().as_str()).await.unwrap();
    let ours = "SELECT pid FROM pg_stat_activity WHERE application_name = 'prover-worker'";
    let pids: Vec<i32> = sqlx::query(ours).fetch_all(&mut c).await.unwrap().iter().map(|r| r.get(0)).collect();
    let signal = |name: &str| {
        let mut kill = Command::new("kill");
        assert!(kill.arg(name).args(pids.iter().map(i32::to_string)).status().unwrap().success());
    };
    assert!(pids.len() > 1, "{pids:?}");
    signal("-STOP");
    // They fail or find living connections, within a bound; no connection slot is lost, so that the next ones are
    // served.
    calls().await;
    for answer in calls().await {
        answer.unwrap().expect("the job is there");
    }
    signal("-KILL");
}

/// A database with `n` ended jobs, with proofs of a usual size, 200 queued ones, and a few in each other state.
async fn filled(n: u32) -> PostgresDatabase {
    let database = PostgresDatabase::new();
    let store = database.open().await;
    store.put_circuit(&circuit("c", 1)).await.unwrap();
    database
        .execute(&format!(
            "SET synchronous_commit = off;
             INSERT INTO jobs (id, queue, circuit, zkey, body, priority, state, progress, attempt, worker, result,
                               error_class, error_message, created_at, run_at, started_at, finished_at)
             SELECT gen_random_uuid(), 'prove', 'c', decode(repeat('01', 32), 'hex'),
                    decode(repeat('02', 32), 'hex'), 0, s, 1, 1, 'worker-1',
                    CASE WHEN s = 'done' THEN '{{\"proof_json\":\"' || repeat('7', 900) || '\",\"public_json\":\"[]\",' ||
                    '\"device\":\"cpu\",\"times\":{{\"load_ms\":1,\"witness_ms\":1,\"prove_ms\":1,\"verify_ms\":1}}}}' END,
                    CASE WHEN s = 'failed' THEN 'device' END, CASE WHEN s = 'failed' THEN 'made up' END,
                    n, n, n, n
             FROM (SELECT n, CASE WHEN n % 1000 = 0 THEN 'failed' ELSE 'done' END AS s
                   FROM generate_series(1, {n}) AS n) AS n;
             ANALYZE jobs"
        ))
        .await;
    for _ in 0..200 {
        store.submit(&new_job("c"), plain(INPUT)).await.unwrap();
    }
    database
}

#[tokio::test]
async fn looks_go_by_their_indexes() {
    let database = filled(50_000).await;
    assert_eq!(off_their_indexes(&database.open().await).await, [""; 0]);
}

/// A worker's sessions keep their plans until the server next analyses the table, a minute or so later: plans made
/// while there were no jobs, or few, must suit those that come.
#[tokio::test]
async fn looks_go_by_their_indexes_from_the_first_job_on() {
    let database = PostgresDatabase::new();
    let store = database.open().await;
    store.put_circuit(&circuit("c", 1)).await.unwrap();
    let mut off = Vec::new();
    for jobs in [0, 1, 10, 100, 1000] {
        for _ in store.counts().await.unwrap().queued..jobs {
            store.submit(&new_job("c"), plain(INPUT)).await.unwrap();
        }
        for analysed in [false, true] {
            if analysed {
                database.execute("ANALYZE").await;
            }
            let mut found = off_their_indexes(&database.open().await).await;
            // For so few jobs, scanning whole indexes is just as good, for the minute in which there are so few. These
            // statements are rare, except the look at the load, which is made the less often the longer it takes.
            let aside = ["list by key ", "same jobs ", "load "];
            found.retain(|plan| jobs >= 100 || !aside.iter().any(|name| plan.starts_with(name)));
            off.extend(found.into_iter().map(|plan| format!("{jobs} jobs, analysed: {analysed}: {plan}")));
        }
    }
    assert!(off.is_empty(), "{}", off.join("\n\n"));
}

/// Returns the plans that use other indexes than they should, or scan all jobs.
async fn off_their_indexes(store: &PostgresStore) -> Vec<String> {
    let plans = store.plans().await.unwrap();
    let plan = |name: &str| &plans.iter().find(|(n, _)| *n == name).unwrap().1;
    let mut off = Vec::new();
    for (name, plan) in &plans {
        for table in ["jobs", "job_inputs"] {
            // A bitmap scan locks rows in the table's order, not in that of the calls.
            if ["Seq Scan", "Bitmap Heap Scan"].iter().any(|scan| plan.contains(&format!("{scan} on {table}"))) {
                off.push(format!("{name} has a scan of {table}: {plan}"));
            }
        }
        // A scan of a whole index, in its order, whatever is asked for.
        let lines: Vec<&str> = plan.lines().map(str::trim).collect();
        for (i, line) in lines.iter().enumerate() {
            let whole = ["jobs_pkey", "jobs_in_order", "jobs_by_key", "jobs_by_circuit", "job_inputs_pkey"];
            let index = line.split("using ").nth(1).and_then(|rest| rest.split(' ').next());
            let looked_up = lines.get(i + 1).is_some_and(|l| l.starts_with("Index Cond"));
            if !looked_up && index.is_some_and(|index| whole.contains(&index)) {
                off.push(format!("{name} goes through all there is, {line}: {plan}"));
            }
        }
    }
    for (name, index) in [
        ("claim", "jobs_pkey"),
        ("claim", "job_inputs_pkey"),
        ("input", "jobs_pkey"),
        ("input", "job_inputs_pkey"),
        ("heartbeat", "jobs_pkey"),
        ("finish", "jobs_pkey"),
        ("finished", "jobs_pkey"),
        ("fail", "jobs_pkey"),
        ("failed", "jobs_pkey"),
        ("release", "jobs_pkey"),
        ("released", "jobs_pkey"),
        ("held or cancelled", "jobs_pkey"),
        ("status", "jobs_pkey"),
        ("same jobs", "jobs_pkey"),
        ("same jobs", "jobs_by_key"),
        ("due", "jobs_queued"),
        ("due", "jobs_waiting"),
        ("due", "jobs_running"),
        ("load", "jobs_queued"),
        ("load", "jobs_ended"),
        ("expire", "jobs_expiring"),
        ("end inputs", "job_inputs_expiring"),
        ("purgeable", "jobs_ended"),
        ("purge", "jobs_pkey"),
        ("ended", "jobs_ended"),
        ("put aside", "jobs_put_aside"),
        ("unfinished", "jobs_unfinished"),
        ("still unfinished", "jobs_pkey"),
        ("content in use", "jobs_unfinished"),
        ("list", "jobs_in_order"),
        ("list failed", "jobs_put_aside"),
        ("list of circuit", "jobs_by_circuit"),
        ("list by key", "jobs_by_key"),
    ] {
        if !plan(name).contains(index) {
            off.push(format!("{name} should go by {index}: {}", plan(name)));
        }
    }
    off
}

/// More have ended than are counted exactly.
#[tokio::test]
async fn counts_beyond_a_bound_are_estimates() {
    let database = filled(110_000).await;
    let odd = StoreSettings { queue: r"o'dd\q".to_owned(), ..StoreSettings::default() };
    let (store, odd) = (database.open().await, database.open_with(odd).await);
    odd.submit(&new_job("c"), plain(INPUT)).await.unwrap();
    let counts = store.counts().await.unwrap();
    assert!(counts.estimated && (counts.queued, counts.failed, counts.cancelled) == (200, 110, 0), "{counts:?}");
    assert!((100_000..120_000).contains(&counts.done), "{counts:?}");
    let counts = odd.counts().await.unwrap();
    assert!(!counts.estimated && (counts.queued, counts.done) == (1, 0), "{counts:?}");
    database.execute(r"UPDATE jobs SET queue = 'o''dd\q' WHERE queue = 'prove'; ANALYZE jobs").await;
    let counts = odd.counts().await.unwrap();
    assert!(counts.estimated && (100_000..120_000).contains(&counts.done), "{counts:?}");
    assert_eq!(store.counts().await.unwrap(), prover_worker::store::Counts::default());
}

/// Returns the median and the longest duration of `n` calls.
async fn measured<F: Future>(n: usize, mut call: impl FnMut(usize) -> F) -> (Duration, Duration) {
    let mut times = Vec::new();
    for k in 0..n {
        let began = Instant::now();
        call(k).await;
        times.push(began.elapsed());
    }
    times.sort();
    (times[n / 2], times[n - 1])
}

/// Figures for docs/postgres.md.
#[tokio::test]
#[ignore = "takes a minute or two; prints figures"]
async fn a_million_ended_jobs_slow_nothing_down() {
    let began = Instant::now();
    let database = filled(1_000_000).await;
    println!("1,000,000 ended jobs written in {:.0?}", began.elapsed());
    let store = database.open().await;
    let due = due_ids(&store).await;
    assert_eq!(due.len(), 200);
    let all = store.jobs(JobFilter { limit: 10_000, ..JobFilter::default() }).await.unwrap();

    let claims = measured(200, |n| claim(&store, due[n], LONG)).await;
    let statuses = measured(1000, |n| job(&store, all[n * 7 % all.len()].id)).await;
    for _ in 0..200 {
        store.submit(&new_job("c"), plain(INPUT)).await.unwrap();
    }
    let dues = measured(200, |_| store.due(100)).await;
    let loads = measured(200, |_| store.load()).await;
    let counts = measured(3, |_| store.counts()).await;
    let lists = measured(200, |_| store.jobs(JobFilter { limit: 100, ..JobFilter::default() })).await;
    for (name, (median, longest)) in [
        ("claim", claims),
        ("status", statuses),
        ("due", dues),
        ("load", loads),
        ("counts", counts),
        ("list of 100", lists),
    ] {
        println!("{name}: median {median:.2?}, longest {longest:.2?}");
    }
    for (name, plan) in store.plans().await.unwrap() {
        println!("\n{name}\n{plan}");
    }
    assert!(claims.0 < Duration::from_millis(5) && statuses.0 < Duration::from_millis(5));
    assert!(dues.0 < Duration::from_millis(20) && loads.0 < Duration::from_millis(20));
}

/// Figures for docs/postgres.md: most of the waiting jobs are paused, and in front.
#[tokio::test]
#[ignore = "takes a minute or two; prints figures"]
async fn a_million_queued_jobs_slow_nothing_down() {
    const HELD_BACK: u64 = 900_000;
    const FREE: u64 = 100_000;
    let database = PostgresDatabase::new();
    let store = database.open().await;
    for name in ["held", "a", "b", "c"] {
        store.put_circuit(&circuit(name, 1)).await.unwrap();
    }
    store.set_paused(&Scope::Circuit(name("held")), true).await.unwrap();
    let began = Instant::now();
    database
        .execute(&format!(
            "SET synchronous_commit = off;
             INSERT INTO jobs (id, queue, circuit, zkey, body, priority, created_at, run_at)
             SELECT gen_random_uuid(), 'prove', CASE WHEN n <= {HELD_BACK} THEN 'held' ELSE substr('abc', n % 3 + 1, 1) END,
                    decode(repeat('01', 32), 'hex'), decode(repeat('02', 32), 'hex'), 0, n, n
             FROM generate_series(1, {}) AS n",
            HELD_BACK + FREE
        ))
        .await;
    println!("{} queued jobs written in {:.0?}", HELD_BACK + FREE, began.elapsed());
    let now = database.number("SELECT floor(extract(epoch FROM clock_timestamp()) * 1000)::bigint").await as u64;
    let free = store.due(1000).await.unwrap();
    assert_eq!(free.len(), 1000);
    for due in free.iter().step_by(100) {
        assert_ne!(job(&store, due.id).await.circuit, name("held"));
    }
    let began = Instant::now();
    let load = store.load().await.unwrap();
    println!("load, all counted: {:.2?}", began.elapsed());
    assert_eq!(load.queued, HELD_BACK + FREE);
    assert!(load.oldest_ms > now - HELD_BACK - 10, "{load:?}");

    let dues = measured(50, |_| store.due(1000)).await;
    let loads = measured(50, |_| store.load()).await;
    store.set_paused(&Scope::Circuit(name("held")), false).await.unwrap();
    let unpaused = measured(50, |_| store.due(1000)).await;
    for (name, (median, longest)) in
        [("due, past what is held back", dues), ("due, nothing held back", unpaused), ("load", loads)]
    {
        println!("{name}: median {median:.2?}, longest {longest:.2?}");
    }
    assert!(dues.0 < Duration::from_millis(100) && loads.0 < Duration::from_millis(100));
}

/// Jobs per second through submit, claim and finish, by 64 concurrent callers.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "prints figures"]
async fn two_thousand_jobs_a_second_go_through() {
    const CALLERS: usize = 64;
    const EACH: usize = 200;
    let database = PostgresDatabase::new();
    let store = Arc::new(database.open().await);
    store.put_circuit(&circuit("c", 1)).await.unwrap();
    let began = Instant::now();
    let mut callers = JoinSet::new();
    for n in 0..CALLERS {
        let store = store.clone();
        callers.spawn(async move {
            let mut proof = result();
            proof.proof_json = "7".repeat(900);
            for _ in 0..EACH {
                let new = new_job("c");
                store.submit(&new, plain(INPUT)).await.unwrap();
                let claim = store.claim(new.id, &worker(n), LONG).await.unwrap().unwrap();
                assert_eq!(store.finish(new.id, claim.job.attempt, &proof).await.unwrap(), HELD);
            }
        });
    }
    callers.join_all().await;
    let rate = (CALLERS * EACH) as f64 / began.elapsed().as_secs_f64();
    println!("{rate:.0} jobs a second");
    assert_eq!(store.counts().await.unwrap().done, (CALLERS * EACH) as u64);
}

/// Like a former primary, or one that was closed for a migration.
#[tokio::test]
async fn a_database_that_takes_no_writes_says_so_until_it_does() {
    let database = PostgresDatabase::new();
    let url = database.url().await;
    let before = open(&url).await.unwrap();
    before.ping().await.unwrap();
    on_server(&format!("ALTER DATABASE {} SET default_transaction_read_only = on", database.name)).await;
    // A worker may start, and waits until the database accepts writes again.
    let store = open(&url).await.unwrap();
    for _ in 0..2 {
        let error = store.ping().await.unwrap_err();
        let StoreError::Unwritable { what, why } = &error else { panic!("{error:?}") };
        assert!(
            error.is_outage() && what.ends_with(&database.name) && why.to_string().contains("read-only"),
            "{error}"
        );
        assert!(store.sweep(10).await.unwrap_err().is_outage());
    }
    on_server(&format!("ALTER DATABASE {} RESET default_transaction_read_only", database.name)).await;
    store.ping().await.unwrap();
    store.sweep(10).await.unwrap();
}

/// Like a database that was restored without its grants.
#[tokio::test]
async fn a_role_that_may_not_write_is_told_from_one_that_may() {
    let database = PostgresDatabase::new();
    let url = database.url().await;
    open(&url).await.unwrap().ping().await.unwrap();
    let (role, mut as_reader) = (format!("{}_reader", database.name), url.clone());
    as_reader.set_username(&role).unwrap();
    on_server(&format!("CREATE ROLE {role} LOGIN")).await;
    let mut owner = PgConnection::connect(url.as_str()).await.unwrap();
    let mut grant = async |what: &str| {
        let sql = format!("GRANT {what} ON ALL TABLES IN SCHEMA public TO {role}");
        sqlx::raw_sql(sqlx::AssertSqlSafe(sql)).execute(&mut owner).await.unwrap();
    };
    grant("SELECT").await;
    let store = open(&as_reader).await.unwrap();
    let error = store.ping().await.unwrap_err();
    let StoreError::Unwritable { why, .. } = &error else { panic!("{error:?}") };
    assert!(error.is_outage() && why.to_string().contains("may not write"), "{error}");
    grant("INSERT, UPDATE, DELETE").await;
    store.ping().await.unwrap();
    drop((store, owner, database));
    on_server(&format!("DROP ROLE {role}")).await;
}

/// A copy made for another purpose is not the database that it was copied from.
#[tokio::test]
async fn a_copy_is_another_database_and_one_that_does_not_say_is_none() {
    let (database, copy) = (PostgresDatabase::new(), PostgresDatabase::new());
    let url = database.url().await;
    let store = open(&url).await.unwrap();
    let identity = store.identity().await.unwrap().unwrap();
    assert!(identity.starts_with(&format!("postgres {}.public ", database.name)), "{identity}");
    store.close().await;
    on_server(&format!("CREATE DATABASE {} TEMPLATE {}", copy.name, database.name)).await;
    copy.made.set(()).unwrap();
    let copied = open(&copy.url().await).await.unwrap();
    let tail = |identity: &str| identity.rsplit(' ').next().unwrap().to_owned();
    assert_ne!(tail(&copied.identity().await.unwrap().unwrap()), tail(&identity), "whatever it is called");

    let (role, mut as_other) = (format!("{}_other", database.name), url.clone());
    as_other.set_username(&role).unwrap();
    on_server(&format!("CREATE ROLE {role} LOGIN")).await;
    database.execute("REVOKE EXECUTE ON FUNCTION pg_control_system() FROM PUBLIC").await;
    database.execute(&format!("GRANT SELECT ON ALL TABLES IN SCHEMA public TO {role}")).await;
    let store = open(&as_other).await.unwrap();
    assert_eq!(store.identity().await.unwrap(), None);
    drop((store, copied, copy, database));
    on_server(&format!("DROP ROLE {role}")).await;
}
