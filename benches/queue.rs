//! The cost of queue and store per job. The store's numbers are mostly those of the disk: each change is one sync.
#![allow(clippy::unwrap_used, missing_docs)]

use std::path::Path;
use std::time::{Duration, Instant};

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use prover_worker::model::{Circuit, ContentHash, JobId, JobResult, NewJob, Priority, Stage, StageTimes, WorkerId};
use prover_worker::queue::{MemoryQueue, Precedence, Queue};
use prover_worker::store::{Input, SqliteStore, Store, StoreSettings};
use tokio::runtime::Runtime;

const LEASE: Duration = Duration::from_secs(3600);
const INPUT: [u8; 1000] = [b'7'; 1000];

async fn open(folder: &Path) -> SqliteStore {
    let store = SqliteStore::open(&folder.join("jobs.db"), StoreSettings::default()).await.unwrap();
    let circuit = Circuit {
        name: "c".parse().unwrap(),
        zkey: ContentHash([1; 32]),
        wasm: Some(ContentHash([2; 32])),
        n_vars: 1000,
        n_public: 1,
        domain_size: 1024,
        created_at: 0,
    };
    store.put_circuit(&circuit).await.unwrap();
    store
}

fn new_job() -> NewJob {
    NewJob {
        id: JobId::new(),
        circuit: "c".parse().unwrap(),
        idempotency_key: None,
        body: ContentHash([3; 32]),
        former_bodies: Vec::new(),
        priority: Priority(0),
        start_within: None,
    }
}

async fn submit(store: &SqliteStore) -> JobId {
    store.submit(&new_job(), Input { bytes: &INPUT, key: "" }).await.unwrap().job().id
}

fn result() -> JobResult {
    let field = "\"1234567890123456789012345678901234567890123456789012345678901234567890123456\",";
    JobResult {
        proof_json: field.repeat(9),
        public_json: field.into(),
        device: "cpu".into(),
        times: StageTimes::default(),
    }
}

fn store(c: &mut Criterion) {
    let runtime = Runtime::new().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let store = runtime.block_on(open(folder.path()));
    let worker = WorkerId("w".into());
    let mut group = c.benchmark_group("sqlite");
    group.throughput(Throughput::Elements(1)).sample_size(20);

    group.bench_function("submit", |b| b.iter(|| runtime.block_on(submit(&store))));
    group.bench_function("claim", |b| {
        b.iter_custom(|n| {
            runtime.block_on(async {
                let mut ids = Vec::new();
                for _ in 0..n {
                    ids.push(submit(&store).await);
                }
                let start = Instant::now();
                for id in ids {
                    store.claim(id, &worker, LEASE).await.unwrap().unwrap();
                }
                start.elapsed()
            })
        });
    });
    group.bench_function("heartbeat", |b| {
        let (id, attempt) = runtime.block_on(async {
            let id = submit(&store).await;
            (id, store.claim(id, &worker, LEASE).await.unwrap().unwrap().job.attempt)
        });
        b.iter(|| runtime.block_on(store.heartbeat(id, attempt, LEASE, Stage::Prove, 0.5)).unwrap());
    });
    group.bench_function("finish", |b| {
        let result = result();
        b.iter_custom(|n| {
            runtime.block_on(async {
                let mut claims = Vec::new();
                for _ in 0..n {
                    let id = submit(&store).await;
                    claims.push((id, store.claim(id, &worker, LEASE).await.unwrap().unwrap().job.attempt));
                }
                let start = Instant::now();
                for (id, attempt) in claims {
                    store.finish(id, attempt, &result).await.unwrap();
                }
                start.elapsed()
            })
        });
    });
    group.bench_function("job", |b| {
        let id = runtime.block_on(submit(&store));
        b.iter(|| runtime.block_on(store.job(id)).unwrap());
    });
    // There are thousands of jobs by now.
    group.bench_function("due", |b| b.iter(|| runtime.block_on(store.due(100)).unwrap()));
    group.bench_function("load", |b| b.iter(|| runtime.block_on(store.load()).unwrap()));
    group.bench_function("look for changes", |b| b.iter(|| runtime.block_on(store.changed(Duration::ZERO)).unwrap()));
    group.finish();
}

fn memory(c: &mut Criterion) {
    let runtime = Runtime::new().unwrap();
    let mut group = c.benchmark_group("memory");
    group.throughput(Throughput::Elements(1));
    for depth in [0_u64, 100_000] {
        let queue = MemoryQueue::new();
        runtime.block_on(async {
            for _ in 0..depth {
                queue.push(&[(JobId::new(), Priority(0))], Precedence::New).await.unwrap();
            }
        });
        group.bench_function(format!("push and pop at depth {depth}"), |b| {
            b.iter(|| {
                runtime.block_on(async {
                    queue.push(&[(JobId::new(), Priority(0))], Precedence::New).await.unwrap();
                    queue.pop(1, Duration::ZERO).await.unwrap().remove(0)
                })
            });
        });
    }
    group.finish();
}

criterion_group!(benches, store, memory);
criterion_main!(benches);
