//! What one job or one worker does to the others, and what the queue or the proof files do to all.

use std::fs;
use std::os::unix::fs::symlink;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use prover_worker::artifacts::Artifacts;
use prover_worker::backend::Backend;
use prover_worker::backend::cpu::CpuBackend;
use prover_worker::config::Config;
use prover_worker::model::{FailureClass, JobError, JobId, JobState, Priority, WorkerId};
use prover_worker::queue::{Delivery, MemoryQueue, Precedence, Queue, QueueError, SetAside};
use prover_worker::seal::Keyring;
use prover_worker::store::{Retry, SqliteStore, Store, StoreSettings};
use prover_worker::worker::{JobService, ServiceOptions, SubmitRequest, Worker, WorkerOptions, WorkerParts};
use zeroize::Zeroizing;

use crate::circuits::circuit_file;
use crate::devices::registry;
use crate::harness::{Site, multiplier_key};
use crate::no_work::{self, NoWork};
use crate::queues::{Behaviour, Odd};
use crate::wait::{until_async, until_async_ok};

/// A job that kills worker after worker is one of four claimed jobs, and it is unknown which. From the third worker on
/// each of them has the worker to itself, so that further deaths are charged to one.
#[test]
fn a_job_that_kills_its_workers_does_not_take_its_neighbours_along() {
    let site = Site::new();
    let ids: Vec<_> = (1..=4).map(|i| site.submit(i, 3)).collect();
    let env = [("PROVER_LEASE_SECS", "1"), ("WORKER_CONCURRENCY", "4")];
    let caught = ["--fault-at", "after_claim:sleep"];
    for _ in 0..2 {
        let dies = site.serve(&caught, &env);
        dies.wait_log("fault point reached", 4);
    }
    let third = site.serve(&caught, &env);
    third.wait_log("fault point reached", 1);
    drop(third);

    let _last = site.serve(&[], &env);
    let mut lost = Vec::new();
    for (id, product) in ids.iter().zip([3, 6, 9, 12]) {
        lost.push(site.wait_for(id, "done")["tries"]["lost"].as_u64().unwrap());
        site.assert_done_once(id, product);
    }
    lost.sort_unstable();
    assert_eq!(lost, [2, 2, 2, 3]);
}

/// A worker without the key of the inputs fails each job within milliseconds, so it always has a free slot.
#[test]
fn a_worker_that_lacks_a_key_does_not_use_up_the_retries_of_all_jobs() {
    const JOBS: u32 = 40;
    let site = Site::new();
    let key = ("PROVER_ENCRYPTION_KEYS", "k1:AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=");
    let ids: Vec<_> = (1..=JOBS).map(|i| site.submit_with(i, 3, &[key])).collect();
    let lacking = site.serve(&[], &[("WORKER_CONCURRENCY", "2")]);
    lacking.wait_log("job after job fails", 1);
    let _sound = site.serve(&[], &[key]);
    for (id, i) in ids.iter().zip(1..) {
        site.wait_for(id, "done");
        site.assert_done_once(id, i * 3);
    }
    // Three to notice, one more in progress, and then one at a time with pauses in between.
    let failed = lacking.count("attempt failed");
    assert!(failed < JOBS as usize / 2, "{failed} attempts; log:\n{}", lacking.log());
}

/// Inputs that cannot be opened come from one producer; their retries do not delay the jobs behind them.
#[test]
fn inputs_that_nobody_can_open_do_not_keep_others_waiting() {
    let site = Site::new();
    let own = ("PROVER_ENCRYPTION_KEYS", "k1:AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=");
    let lost = ("PROVER_ENCRYPTION_KEYS", "k2:AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=");
    for i in 1..=8 {
        site.submit_with(i, 3, &[lost]);
    }
    let ids: Vec<_> = (1..=8).map(|i| site.submit_with(i, 4, &[own])).collect();
    let _worker = site.serve(&[], &[own]);
    for (id, i) in ids.iter().zip(1..) {
        site.wait_for(id, "done");
        site.assert_done_once(id, i * 4);
    }
}

/// Fails a queued job for good, as a worker does.
fn fail(site: &Site, id: &str, class: FailureClass) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let store = SqliteStore::open(&site.data().join("prover-worker.db"), StoreSettings::default()).await.unwrap();
        let worker = WorkerId("by hand".to_owned());
        let claim = store.claim(id.parse().unwrap(), &worker, Duration::from_secs(60)).await.unwrap().unwrap();
        let error = JobError { class, message: "on purpose".to_owned() };
        store.fail(claim.job.id, claim.job.attempt, &error, Retry::Never).await.unwrap();
    });
}

/// Jobs that failed because of an outage are queued again by one command; bad inputs stay failed, because they are not
/// kept.
#[test]
fn all_that_failed_is_queued_again_together() {
    let site = Site::new();
    let ids: Vec<_> = (1..=4).map(|i| site.submit(i, 3)).collect();
    let classes = [FailureClass::Transient, FailureClass::Timeout, FailureClass::Transient, FailureClass::BadInput];
    for (id, class) in ids.iter().zip(classes) {
        fail(&site, id, class);
    }
    let requeue = |more: &[&str]| -> Vec<String> {
        let queued = site.json(&[&["jobs", "requeue", "--failed"], more].concat());
        queued.as_array().unwrap().iter().map(|job| job["id"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(requeue(&["--class", "transient", "--circuit", "another"]), [""; 0]);
    assert_eq!(requeue(&["--class", "transient"]), [ids[0].clone(), ids[2].clone()], "the oldest first");
    assert_eq!(requeue(&[]), [ids[1].clone()]);
    let _worker = site.serve(&[], &[]);
    for (id, product) in ids[..3].iter().zip([3, 6, 9]) {
        site.wait_for(id, "done");
        site.assert_done_once(id, product);
    }
    assert_eq!(site.job(&ids[3])["state"], "failed");
}

/// A queue that never answers, like Redis behind a network that drops packets.
struct Deaf {
    pops: AtomicUsize,
}

#[async_trait]
impl Queue for Deaf {
    async fn push(&self, _: &[(JobId, Priority)], _: Precedence) -> Result<(), QueueError> {
        std::future::pending().await
    }

    async fn push_after(&self, _: JobId, _: Priority, _: Duration) -> Result<(), QueueError> {
        std::future::pending().await
    }

    async fn pop(&self, _: usize, _: Duration) -> Result<Vec<Delivery>, QueueError> {
        self.pops.fetch_add(1, Ordering::SeqCst);
        std::future::pending().await
    }

    async fn ack(&self, _: &[Delivery]) -> Result<(), QueueError> {
        std::future::pending().await
    }

    async fn put_back(&self, _: Delivery) -> Result<(), QueueError> {
        std::future::pending().await
    }

    async fn set_aside(&self, _: Delivery, _: &str) -> Result<(), QueueError> {
        std::future::pending().await
    }

    async fn aside(&self, _: usize) -> Result<Vec<SetAside>, QueueError> {
        std::future::pending().await
    }

    async fn depth(&self) -> Result<u64, QueueError> {
        std::future::pending().await
    }

    async fn ping(&self) -> Result<(), QueueError> {
        std::future::pending().await
    }

    async fn upkeep(&self) -> Result<(), QueueError> {
        std::future::pending().await
    }

    async fn close(&self) -> Result<(), QueueError> {
        Ok(())
    }
}

/// A worker in this process that does no work for its jobs.
struct Idle {
    dir: tempfile::TempDir,
    service: JobService,
    worker: Worker,
}

impl Idle {
    async fn open(queue: Arc<dyn Queue>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let database = dir.path().join("jobs.db");
        let open = async |path| Arc::new(SqliteStore::open(path, StoreSettings::default()).await.unwrap());
        let store: Arc<dyn Store> = open(&database).await;
        // Through its own link, which a test may cut.
        let beats = dir.path().join("beats.db");
        symlink(&database, &beats).unwrap();
        let heartbeat: Arc<dyn Store> = open(&beats).await;
        let artifacts = Artifacts::local(dir.path()).unwrap();
        let registry = registry(&store, &artifacts);
        let (file, _) = multiplier_key(dir.path());
        registry.add("multiplier".parse().unwrap(), &file, None, Arc::new(|_, _| {})).await.unwrap();
        let keyring = Arc::new(Keyring::none());
        let treatment = ServiceOptions { max_input: 1 << 20, start_within: None, keyring: keyring.clone() };
        let service = JobService::new(store.clone(), Some(queue.clone()), artifacts.clone(), treatment);
        let config = Config::from_lookup(|n| (n == "PROVER_DATA_DIR").then(|| "unused".to_owned())).unwrap();
        let options = WorkerOptions { concurrency: Some(2), ..WorkerOptions::from(&config) };
        let parts = WorkerParts { store, heartbeat, queue, artifacts, registry, service: service.clone(), keyring };
        let devices: Vec<Arc<dyn Backend>> = vec![Arc::new(CpuBackend::new(1).unwrap())];
        let worker = Worker::start_with(parts, devices, Some(Arc::new(NoWork)), options).await.unwrap();
        Self { dir, service, worker }
    }

    async fn submit(&self) -> JobId {
        let (circuit, input) = ("multiplier".parse().unwrap(), Zeroizing::new(circuit_file("multiplier.wtns")));
        let request = SubmitRequest { id: None, circuit, input, idempotency_key: None, priority: Priority(0) };
        self.service.submit(request).await.unwrap().job().id
    }

    async fn until_done(&self, id: JobId) {
        let job = until_async_ok("the job to end", || async {
            let job = self.service.job(id).await.unwrap();
            if job.state.is_final() { Ok(job) } else { Err(job) }
        });
        let job = job.await;
        assert_eq!(job.state, JobState::Done, "{job:?}");
    }
}

/// The queue is waited for once, not once per handful of jobs, and a submit does not wait for it long either.
#[tokio::test(flavor = "multi_thread")]
async fn a_queue_that_does_not_answer_is_not_waited_for_at_each_job() {
    let queue = Arc::new(Deaf { pops: AtomicUsize::new(0) });
    let site = Idle::open(queue.clone()).await;
    let mut ids = Vec::new();
    for _ in 0..12 {
        ids.push(site.submit().await);
    }
    for id in ids {
        site.until_done(id).await;
    }
    assert_eq!(queue.pops.load(Ordering::SeqCst), 1);
    site.worker.drain().await;
}

/// Only the next job's offer shows that a queue accepts offers again, and it may be a long time until then.
#[tokio::test(flavor = "multi_thread")]
async fn a_queue_that_took_no_offers_is_listened_to_as_a_sound_one_once_there_is_nothing_to_do() {
    let queue = Arc::new(Odd::new(Behaviour::Full));
    let site = Idle::open(queue.clone()).await;
    let id = site.submit().await;
    site.until_done(id).await;
    until_async("a pop that waits, after those that do not", || async {
        let waits = queue.waits();
        let since = waits.iter().skip_while(|wait| !wait.is_zero());
        since.max().is_some_and(|longest| *longest >= Duration::from_secs(1))
    })
    .await;
    let next = site.submit().await;
    site.until_done(next).await;
    site.worker.drain().await;
}

/// Otherwise its leases would lapse, and good jobs be charged with the loss of a worker.
#[tokio::test(flavor = "multi_thread")]
async fn a_worker_whose_heartbeats_fail_takes_no_jobs() {
    let site = Idle::open(Arc::new(MemoryQueue::new())).await;
    let first = site.submit().await;
    site.until_done(first).await;
    let beats = site.dir.path().join("beats.db");
    fs::remove_file(&beats).unwrap();
    let left = until_async_ok("the worker to take no more jobs", || async {
        let id = site.submit().await;
        tokio::time::sleep(Duration::from_millis(500)).await;
        let job = site.service.job(id).await.unwrap();
        if job.state == JobState::Queued { Ok(id) } else { Err(job) }
    });
    let left = left.await;
    symlink(site.dir.path().join("jobs.db"), &beats).unwrap();
    site.until_done(left).await;
    site.worker.drain().await;
}

/// The database has the proof; the files are copies.
#[tokio::test(flavor = "multi_thread")]
async fn a_proof_can_be_had_while_its_files_cannot_be_written() {
    let site = Idle::open(Arc::new(MemoryQueue::new())).await;
    let proofs = site.dir.path().join("proofs");
    let _ = fs::remove_dir_all(&proofs);
    fs::write(&proofs, "in the way").unwrap();
    let id = site.submit().await;
    site.until_done(id).await;
    assert_eq!(site.service.result(id).await.unwrap().proof_json, no_work::result().proof_json);

    fs::remove_file(&proofs).unwrap();
    assert_eq!(site.service.result(id).await.unwrap().proof_json, no_work::result().proof_json);
    let copy = proofs.join(id.to_string()).join("proof.json");
    assert_eq!(fs::read_to_string(copy).unwrap(), no_work::result().proof_json, "put back once there is a place");
    site.worker.drain().await;
}
