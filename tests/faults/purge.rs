//! Purges that meet others.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use prover_worker::artifacts::Artifacts;
use prover_worker::model::{JobState, Priority};
use prover_worker::seal::Keyring;
use prover_worker::store::{SqliteStore, Store, StoreSettings};
use prover_worker::worker::{JobService, Purged, ServiceOptions, SubmitRequest};
use sqlx::{Connection, SqliteConnection};
use zeroize::Zeroizing;

use crate::circuits::circuit_file;
use crate::devices::registry;
use crate::harness::multiplier_key;
use crate::wait::HANG;

async fn execute(database: &Path, sql: &'static str) {
    let mut connection = SqliteConnection::connect(&format!("sqlite://{}", database.display())).await.unwrap();
    sqlx::raw_sql(sql).execute(&mut connection).await.unwrap();
    connection.close().await.unwrap();
}

/// More than are deleted at once, so that a purge that began again with the same ones would never end.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_purge_leaves_the_jobs_whose_rows_others_have_locked() {
    const JOBS: u64 = 40;
    const LEFT: u64 = 33;
    let dir = tempfile::tempdir().unwrap();
    let database = dir.path().join("jobs.db");
    let store: Arc<dyn Store> = Arc::new(SqliteStore::open(&database, StoreSettings::default()).await.unwrap());
    let artifacts = Artifacts::local(dir.path()).unwrap();
    let (file, _) = multiplier_key(dir.path());
    let registry = registry(&store, &artifacts);
    registry.add("multiplier".parse().unwrap(), &file, None, Arc::new(|_, _| {})).await.unwrap();
    let treatment = ServiceOptions { max_input: 1 << 20, start_within: None, keyring: Arc::new(Keyring::none()) };
    let service = JobService::new(store.clone(), None, artifacts, treatment);
    for _ in 0..JOBS {
        let (circuit, input) = ("multiplier".parse().unwrap(), Zeroizing::new(circuit_file("multiplier.wtns")));
        let request = SubmitRequest { id: None, circuit, input, idempotency_key: None, priority: Priority(0) };
        let id = service.submit(request).await.unwrap().job().id;
        store.cancel(id).await.unwrap();
    }
    // Long ago; and, like a row that is locked elsewhere on a server, one that a delete passes over.
    execute(
        &database,
        "UPDATE jobs SET finished_at = seq;
         CREATE TRIGGER locked BEFORE DELETE ON jobs WHEN old.seq <= 33 BEGIN SELECT RAISE(IGNORE); END",
    )
    .await;
    let purge = async || {
        let purged = service.purge(&JobState::ALL, Duration::from_secs(60));
        tokio::time::timeout(HANG, purged).await.expect("a purge ends").unwrap()
    };
    assert_eq!(purge().await, Purged { jobs: JOBS - LEFT, locked: LEFT, ..Purged::default() });
    execute(&database, "DROP TRIGGER locked").await;
    assert_eq!(purge().await, Purged { jobs: LEFT, ..Purged::default() });
}
