//! The overhead of a fleet over proving, with Redis and Postgres: jobs per second when proving costs nothing, the time
//! from submit to start on an idle worker, and the throughput compared with proving back to back.
//!
//! Servers: TEST_POSTGRES_URL and TEST_REDIS_URL, or those on the standard ports of this machine. The bench creates a
//! database and a queue of its own, and drops them.
//!
//! Proves `$PROVER_BENCH_DIR/merkle10` and `tx14` (each `circuit.zkey`, `circuit.wasm`, `input.json`) if that is set;
//! otherwise a chain of as many squares as tx14 has constraints, whose jobs carry their whole witness.
#![allow(clippy::unwrap_used, missing_docs)]

#[path = "../tests/support/no_work.rs"]
mod no_work;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use ark_ff::{Field, PrimeField};
use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, Criterion, Throughput, criterion_group, criterion_main};
use prover_worker::artifacts::Artifacts;
use prover_worker::backend::cpu::CpuBackend;
use prover_worker::backend::mapped::map_file;
use prover_worker::backend::{Backend, Quiet};
use prover_worker::config::Config;
use prover_worker::formats::r1cs::{self, Constraints, R1cs};
use prover_worker::formats::{wtns, zkey};
use prover_worker::groth16::{self, Verifier, setup};
use prover_worker::model::{Fr, JobId, JobState, Priority, StopToken, Witness};
use prover_worker::queue::{Queue, RedisQueue, RedisSettings};
use prover_worker::registry::{Registry, RegistryLimits};
use prover_worker::seal::Keyring;
use prover_worker::store::{JobFilter, PostgresStore, Store, StoreSettings};
use prover_worker::witness::{Inputs, ModuleCache, WasmWitness};
use prover_worker::worker::{JobService, ServiceOptions, SubmitRequest, Work, Worker, WorkerOptions, WorkerParts};
use sqlx::{AssertSqlSafe, Connection, PgConnection, Row};
use tokio::runtime::Runtime;
use tokio::task::JoinSet;
use zeroize::Zeroizing;

use no_work::NoWork;

/// Multiplications of the proved circuit: as many as a transfer with two Merkle paths has (tx14).
const CONSTRAINTS: u32 = 14_906;

fn server(variable: &str, usual: &str) -> String {
    std::env::var(variable).unwrap_or_else(|_| usual.to_owned())
}

/// A circuit to prove, as files, with an input and its witness.
struct Subject {
    name: &'static str,
    zkey: PathBuf,
    wasm: Option<PathBuf>,
    input: Arc<Vec<u8>>,
    witness: Witness,
}

impl Subject {
    fn all(dir: &Path) -> Vec<Self> {
        let Some(given) = std::env::var_os("PROVER_BENCH_DIR") else { return vec![Self::chain(dir)] };
        let given = |name: &'static str| (name, Path::new(&given).join(name));
        let there = ["merkle10", "tx14"].map(given).into_iter().filter(|(_, dir)| dir.is_dir());
        there.map(|(name, dir)| Self::given(name, &dir)).collect()
    }

    fn chain(dir: &Path) -> Self {
        let (r1cs, witness) = chain();
        let (zkey, mut key, mut input) = (dir.join("chain.zkey"), Vec::new(), Vec::new());
        zkey::write(&setup::generate(&r1cs, &|_| {}).unwrap(), &mut key).unwrap();
        std::fs::write(&zkey, key).unwrap();
        wtns::write(&witness, &mut input).unwrap();
        Self { name: "chain14", zkey, wasm: None, input: Arc::new(input), witness }
    }

    fn given(name: &'static str, dir: &Path) -> Self {
        let (zkey, wasm) = (dir.join("circuit.zkey"), dir.join("circuit.wasm"));
        let input = std::fs::read(dir.join("input.json")).unwrap();
        let witness = program(&wasm).generate(&Inputs::parse(&input).unwrap(), &StopToken::new()).unwrap();
        Self { name, zkey, wasm: Some(wasm), input: Arc::new(input), witness }
    }
}

fn limits() -> RegistryLimits {
    RegistryLimits::for_witness(Duration::from_secs(60), 1 << 30)
}

fn program(wasm: &Path) -> WasmWitness {
    let modules = ModuleCache { dir: None, compiler: None, rewrite: true };
    WasmWitness::load(&std::fs::read(wasm).unwrap(), limits().witness, &modules).unwrap()
}

/// A chain of squares and its witness.
fn chain() -> (R1cs, Witness) {
    let one = Fr::ONE.into_bigint();
    let mut constraints = Constraints { offsets: vec![0], terms: Vec::new() };
    let mut values = vec![Fr::ONE, Fr::ONE, Fr::from(7_u64)];
    for wire in 2..CONSTRAINTS + 1 {
        for side in [vec![(wire, one)], vec![(wire, one)], vec![(wire + 1, one)]] {
            constraints.terms.extend(side);
            constraints.offsets.push(constraints.terms.len() as u64);
        }
        values.push(values[wire as usize].square());
    }
    // The output is a copy of the last square.
    for side in [vec![(CONSTRAINTS + 1, one)], vec![(0, one)], vec![(1, one)]] {
        constraints.terms.extend(side);
        constraints.offsets.push(constraints.terms.len() as u64);
    }
    values[1] = values[CONSTRAINTS as usize + 1];
    let n_wires = CONSTRAINTS + 2;
    let circuit = R1cs { n_wires, n_pub_out: 1, n_pub_in: 0, n_prv_in: 1, n_labels: u64::from(n_wires), constraints };
    (circuit, Witness::from_canonical(values.iter().map(|v| v.into_bigint()).collect()))
}

/// A database, a queue, a registered circuit.
struct Site {
    name: String,
    url: String,
    store: Arc<PostgresStore>,
    queue: Arc<RedisQueue>,
    service: JobService,
    registry: Registry,
    artifacts: Artifacts,
    _dir: tempfile::TempDir,
}

impl Site {
    async fn open(dir: tempfile::TempDir, subjects: &[Subject]) -> Self {
        let name = format!("pw_bench_{}", JobId::new().0.simple());
        let admin = server("TEST_POSTGRES_URL", "postgres://postgres@127.0.0.1:5432/postgres");
        let mut connection = PgConnection::connect(&admin).await.unwrap();
        sqlx::raw_sql(AssertSqlSafe(format!("CREATE DATABASE {name}"))).execute(&mut connection).await.unwrap();
        let url = format!("{}/{name}", admin.rsplit_once('/').unwrap().0);
        let store = Arc::new(PostgresStore::open(&url, settings(&name)).await.unwrap());
        let queue = queue(&name).await;
        let artifacts = Artifacts::local(&dir.path().join("data")).unwrap();
        let modules = ModuleCache { dir: None, compiler: None, rewrite: true };
        let registry = Registry::new(store.clone(), artifacts.clone(), modules, limits());
        let circuits = Path::new(env!("CARGO_MANIFEST_DIR")).join("circuits");
        let tiny = r1cs::parse(&std::fs::read(circuits.join("multiplier.r1cs")).unwrap()).unwrap();
        let (zkey, mut key) = (dir.path().join("tiny.zkey"), Vec::new());
        zkey::write(&setup::generate(&tiny, &|_| {}).unwrap(), &mut key).unwrap();
        std::fs::write(&zkey, key).unwrap();
        let program = circuits.join("multiplier.wasm");
        let proved = subjects.iter().map(|s| (s.name, &s.zkey, s.wasm.as_deref()));
        for (name, zkey, program) in proved.chain([("tiny", &zkey, Some(program.as_path()))]) {
            registry.add(name.parse().unwrap(), zkey, program, Arc::new(|_, _| {})).await.unwrap();
        }
        let options = ServiceOptions { max_input: 64 << 20, start_within: None, keyring: Arc::new(Keyring::none()) };
        let service = JobService::new(store.clone(), Some(queue.clone()), artifacts.clone(), options);
        Self { name, url, store, queue, service, registry, artifacts, _dir: dir }
    }

    async fn work(&self, work: Option<Arc<dyn Work>>, concurrency: Option<usize>, files: bool) -> Worker {
        let config = Config::from_lookup(|n| (n == "PROVER_DATA_DIR").then(|| "unused".to_owned())).unwrap();
        let options = WorkerOptions { concurrency, ..WorkerOptions::from(&config) };
        let parts = WorkerParts {
            store: self.store.clone(),
            heartbeat: Arc::new(PostgresStore::open(&self.url, settings(&self.name)).await.unwrap()),
            // Its own queue, because it is closed when the worker drains.
            queue: queue(&self.name).await,
            artifacts: if files { self.artifacts.clone() } else { self.artifacts.clone().without_proofs() },
            registry: self.registry.clone(),
            service: self.service.clone(),
            keyring: Arc::new(Keyring::none()),
        };
        let threads = std::thread::available_parallelism().unwrap().get();
        let devices: Vec<Arc<dyn Backend>> = vec![Arc::new(CpuBackend::new(threads).unwrap().with_multiples(u64::MAX))];
        Worker::start_with(parts, devices, work, options).await.unwrap()
    }

    async fn submit(&self, circuit: &str, input: &[u8]) -> JobId {
        let request = SubmitRequest {
            id: None,
            circuit: circuit.parse().unwrap(),
            input: Zeroizing::new(input.to_vec()),
            idempotency_key: None,
            priority: Priority(0),
        };
        self.service.submit(request).await.unwrap().job().id
    }

    /// Submits `n` jobs, `abreast` at a time, and waits until all are done; returns the time from the first to the
    /// last.
    async fn run(self: &Arc<Self>, circuit: &'static str, n: u64, abreast: usize, input: &Arc<Vec<u8>>) -> Duration {
        let before = self.done().await;
        let begun = Instant::now();
        let mut submitters = JoinSet::new();
        for i in 0..abreast as u64 {
            let (me, input) = (self.clone(), input.clone());
            let share = n / abreast as u64 + u64::from(i < n % abreast as u64);
            submitters.spawn(async move {
                let mut last = None;
                for _ in 0..share {
                    last = Some(me.submit(circuit, &input).await);
                }
                last
            });
        }
        let mut last = Vec::new();
        while let Some(done) = submitters.join_next().await {
            last.extend(done.unwrap());
        }
        // By id, and rarely: polling uses the cores that are measured.
        for id in last {
            while !self.store.job(id).await.unwrap().unwrap().state.is_final() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        }
        loop {
            let load = self.store.load().await.unwrap();
            if load.queued + load.running == 0 {
                break;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let took = begun.elapsed();
        assert_eq!(self.done().await - before, n as i64);
        took
    }

    /// Counts every job; the store would estimate a large number.
    async fn done(&self) -> i64 {
        let mut connection = PgConnection::connect(&self.url).await.unwrap();
        let count = sqlx::query("SELECT count(*) FROM jobs WHERE state = 'done'");
        count.fetch_one(&mut connection).await.unwrap().get(0)
    }

    async fn close(&self) {
        self.store.close().await;
        let admin = server("TEST_POSTGRES_URL", "postgres://postgres@127.0.0.1:5432/postgres");
        let mut connection = PgConnection::connect(&admin).await.unwrap();
        let drop = format!("DROP DATABASE IF EXISTS {} WITH (FORCE)", self.name);
        sqlx::raw_sql(AssertSqlSafe(drop)).execute(&mut connection).await.unwrap();
        assert_eq!(self.queue.depth().await.unwrap(), 0);
    }
}

async fn queue(name: &str) -> Arc<RedisQueue> {
    let settings = RedisSettings {
        url: server("TEST_REDIS_URL", "redis://127.0.0.1:6379"),
        queue: name.to_owned(),
        consumer: JobId::new().to_string(),
        reclaim_after: Duration::from_secs(30),
        max_message: 1 << 20,
    };
    Arc::new(RedisQueue::open(settings).await.unwrap())
}

fn settings(queue: &str) -> StoreSettings {
    StoreSettings { queue: queue.to_owned(), notify: false, ..StoreSettings::default() }
}

fn fleet(c: &mut Criterion) {
    let runtime = Runtime::new().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let subjects = Subject::all(dir.path());
    let site = Arc::new(runtime.block_on(Site::open(dir, &subjects)));
    let mut group = c.benchmark_group("fleet");
    group.sample_size(10).throughput(Throughput::Elements(1));

    let small = Arc::new(br#"{"a": "3", "b": "11"}"#.to_vec());
    // First without files, as if PROVER_PROOF_FILES were off: right after many files were removed, as at the end of
    // this bench, ext4 creates new ones slowly.
    for (files, name) in [(false, "proving nothing, without files"), (true, "proving nothing")] {
        let worker = runtime.block_on(site.work(Some(Arc::new(NoWork)), Some(128), files));
        group.bench_function(format!("a job from submit to done, 128 abreast, {name}"), |b| {
            b.iter_custom(|n| {
                // Long enough that the start and the end do not matter.
                let jobs = n.max(6400);
                runtime.block_on(site.run("tiny", jobs, 128, &small)) / (jobs / n) as u32
            });
        });
        runtime.block_on(worker.drain());
    }
    let worker = runtime.block_on(site.work(Some(Arc::new(NoWork)), Some(128), true));
    group.bench_function("submit to start on an idle worker", |b| {
        b.iter_custom(|n| {
            runtime.block_on(async {
                let mut total = Duration::ZERO;
                for _ in 0..n {
                    let id = site.submit("tiny", &small).await;
                    let job = loop {
                        let job = site.store.job(id).await.unwrap().unwrap();
                        if job.state == JobState::Done {
                            break job;
                        }
                        tokio::time::sleep(Duration::from_millis(1)).await;
                    };
                    let ms = job.started_at.unwrap() - job.created_at;
                    total += Duration::from_millis(u64::try_from(ms).unwrap());
                }
                total
            })
        });
    });
    runtime.block_on(worker.drain());

    for subject in &subjects {
        proving(&mut group, &runtime, &site, subject);
    }
    group.finish();
    let all = JobFilter { state: Some(JobState::Failed), limit: 1, ..JobFilter::default() };
    assert!(runtime.block_on(site.store.jobs(all)).unwrap().is_empty());
    runtime.block_on(site.close());
}

/// Measures a circuit's proofs alone, with their witnesses, and as jobs.
fn proving(group: &mut BenchmarkGroup<'_, WallTime>, runtime: &Runtime, site: &Arc<Site>, subject: &Subject) {
    let key = Arc::new(zkey::parse(map_file(&subject.zkey).unwrap()).unwrap());
    let verifier = Verifier::new(&key.header.vk);
    let cpu = CpuBackend::new(std::thread::available_parallelism().unwrap().get()).unwrap();
    let loaded = cpu.load(key).unwrap();
    let prove = |witness: &Witness| {
        groth16::prove(loaded.as_ref(), &verifier, witness, &StopToken::new(), &Quiet).unwrap();
    };
    let name = subject.name;
    group.bench_function(format!("{name}: proofs back to back"), |b| b.iter(|| prove(&subject.witness)));
    let witness_program = subject.wasm.as_deref().map(program);
    group.bench_function(format!("{name}: witnesses and proofs back to back"), |b| {
        b.iter(|| match &witness_program {
            Some(p) => prove(&p.generate(&Inputs::parse(&subject.input).unwrap(), &StopToken::new()).unwrap()),
            None => prove(&wtns::parse(&subject.input).unwrap()),
        });
    });
    let worker = runtime.block_on(site.work(None, None, true));
    // Long enough that the start and the end hardly matter: about four seconds.
    let (most, abreast) = if name == "merkle10" { (400, 16) } else { (60, 4) };
    group.bench_function(format!("{name}: proofs as jobs"), |b| {
        b.iter_custom(|n| {
            let jobs = n.max(most);
            runtime.block_on(site.run(name, jobs, abreast, &subject.input)).div_f64(jobs as f64 / n as f64)
        });
    });
    runtime.block_on(worker.drain());
}

criterion_group!(benches, fleet);
criterion_main!(benches);
