//! Devices that fail: with an error, with wrong results, by hanging, by panicking. The worker runs in this process, on
//! the CPU and a fake GPU.

use std::fs;
use std::io::{Seek, SeekFrom, Write};
use std::os::unix::fs::PermissionsExt;
use std::sync::atomic::{AtomicU8, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use ark_ff::BigInteger256;
use prover_worker::artifacts::{Artifacts, Kind};
use prover_worker::backend::cpu::CpuBackend;
use prover_worker::backend::{
    Backend, BackendError, Commitments, DeviceInfo, DeviceKind, Footprint, LoadedKey, Progress, Quiet,
};
use prover_worker::config::{Config, ExitOnDead};
use prover_worker::formats::{snarkjs, wtns};
use prover_worker::groth16::Verifier;
use prover_worker::model::{
    ContentHash, FailureClass, G1, Job, JobId, JobState, Priority, ProvingKey, Stage, StopToken, Tries, Witness,
};
use prover_worker::queue::{MemoryQueue, Queue};
use prover_worker::registry::{Registry, RegistryLimits};
use prover_worker::seal::Keyring;
use prover_worker::store::{SqliteStore, Store, StoreSettings};
use prover_worker::witness::ModuleCache;
use prover_worker::worker::{
    JobService, Readiness, ServiceOptions, Status, SubmitRequest, Worker, WorkerOptions, WorkerParts,
};
use zeroize::Zeroizing;

use crate::circuits::{circuit_file, circuits};
use crate::harness::multiplier_key;
use crate::queues::{self, Odd};
use crate::wait::{HANG, until_async, until_async_ok};

/// What the fake GPU does with a proof.
#[derive(Clone, Copy, PartialEq, Debug)]
#[repr(u8)]
enum Behaviour {
    Sound,
    WrongProof,
    Error,
    OutOfMemory,
    Panic,
    Hang,
    /// Like `Hang`, but ignores stop requests, like a kernel that does not end.
    Stuck,
    /// Loading a key hangs, and ignores stop requests.
    StuckLoading,
    /// The next key that is loaded is damaged in memory; later ones are sound.
    DamagesNextKey,
}

#[derive(Clone)]
struct FakeDevice {
    cpu: Arc<CpuBackend>,
    info: DeviceInfo,
    behaviour: Arc<AtomicU8>,
    /// Number of witnesses in each call with several.
    batches: Arc<Mutex<Vec<usize>>>,
    /// Memory that it asks for per proof, in bytes.
    per_proof: Arc<AtomicU64>,
    /// Threads that it asks for per proof.
    threads: Arc<AtomicUsize>,
    /// Proofs in progress.
    at_work: Arc<AtomicUsize>,
    child: Arc<Mutex<()>>,
}

struct FakeKey {
    key: Arc<dyn LoadedKey>,
    gpu: FakeDevice,
    damaged: bool,
}

impl FakeDevice {
    fn new(kind: DeviceKind) -> Self {
        let memory = if kind == DeviceKind::Cpu { 0 } else { 1 << 30 };
        let info = DeviceInfo { kind, name: "fake".into(), ordinal: 0, threads: 1, memory };
        Self {
            cpu: Arc::new(CpuBackend::new(1).unwrap()),
            info,
            behaviour: Arc::new(AtomicU8::new(0)),
            batches: Arc::default(),
            per_proof: Arc::default(),
            threads: Arc::new(AtomicUsize::new(1)),
            at_work: Arc::default(),
            child: Arc::default(),
        }
    }

    /// ICICLE's child process does one thing at a time.
    fn child(&self) -> Option<MutexGuard<'_, ()>> {
        (self.info.kind == DeviceKind::Icicle).then(|| self.child.lock().unwrap())
    }

    fn behave(&self, behaviour: Behaviour) {
        self.behaviour.store(behaviour as u8, Ordering::SeqCst);
    }

    async fn until_at_work(&self, proofs: usize) {
        until_async_ok(format_args!("{proofs} proofs on the GPU"), || async {
            let at_work = self.at_work.load(Ordering::SeqCst);
            if at_work == proofs { Ok(()) } else { Err(at_work) }
        })
        .await;
    }
}

impl Backend for FakeDevice {
    fn device(&self) -> &DeviceInfo {
        &self.info
    }

    fn footprint(&self, key: &ProvingKey) -> Footprint {
        Footprint { per_proof: self.per_proof.load(Ordering::SeqCst), ..self.cpu.footprint(key) }
    }

    fn threads(&self, _: &ProvingKey) -> usize {
        self.threads.load(Ordering::SeqCst)
    }

    fn load(&self, key: Arc<ProvingKey>) -> Result<Arc<dyn LoadedKey>, BackendError> {
        let _child = self.child();
        while self.behaviour.load(Ordering::SeqCst) == Behaviour::StuckLoading as u8 {
            std::thread::sleep(Duration::from_millis(5));
        }
        let [from, to] = [Behaviour::DamagesNextKey, Behaviour::Sound].map(|b| b as u8);
        let damaged = self.behaviour.compare_exchange(from, to, Ordering::SeqCst, Ordering::SeqCst).is_ok();
        Ok(Arc::new(FakeKey { key: self.cpu.load(key)?, gpu: self.clone(), damaged }))
    }
}

impl LoadedKey for FakeKey {
    fn key(&self) -> &Arc<ProvingKey> {
        self.key.key()
    }

    fn preferred_batch(&self) -> usize {
        if self.gpu.info.kind == DeviceKind::Cuda { 4 } else { 1 }
    }

    fn commit_batch(&self, ws: &[&Witness], stops: &[&StopToken]) -> Vec<Result<Commitments, BackendError>> {
        self.gpu.batches.lock().unwrap().push(ws.len());
        ws.iter().zip(stops).map(|(w, stop)| self.commit(w, stop, &Quiet)).collect()
    }

    fn commit(&self, w: &Witness, stop: &StopToken, on: &dyn Progress) -> Result<Commitments, BackendError> {
        self.gpu.at_work.fetch_add(1, Ordering::SeqCst);
        let child = self.gpu.child();
        let done = self.commit_as_told(w, stop, on);
        drop(child);
        self.gpu.at_work.fetch_sub(1, Ordering::SeqCst);
        done
    }
}

impl FakeKey {
    fn commit_as_told(&self, w: &Witness, stop: &StopToken, on: &dyn Progress) -> Result<Commitments, BackendError> {
        let is = |m: Behaviour| self.gpu.behaviour.load(Ordering::SeqCst) == m as u8;
        if is(Behaviour::Error) {
            return Err(BackendError::Device { op: "launch", code: 719 });
        }
        if is(Behaviour::OutOfMemory) {
            return Err(BackendError::OutOfMemory { needed: 2, free: 1 });
        }
        assert!(!is(Behaviour::Panic), "a bug of the fake device");
        while is(Behaviour::Hang) {
            if let Some(why) = stop.stopped() {
                return Err(BackendError::Stopped(why));
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        while is(Behaviour::Stuck) {
            std::thread::sleep(Duration::from_millis(5));
        }
        let mut c = self.key.commit(w, stop, on)?;
        if is(Behaviour::WrongProof) || self.damaged {
            c.h += c.a + G1::default();
        }
        Ok(c)
    }
}

struct Site {
    dir: tempfile::TempDir,
    registry: Registry,
    artifacts: Artifacts,
    service: JobService,
    worker: Worker,
    gpu: FakeDevice,
    cpu: FakeDevice,
    verifier: Verifier,
    store: Arc<dyn Store>,
}

/// Opens a registry over a store, as each process has its own.
pub fn registry(store: &Arc<dyn Store>, artifacts: &Artifacts) -> Registry {
    let limits = RegistryLimits::for_witness(Duration::from_secs(60), 1 << 30);
    let modules = ModuleCache { dir: None, compiler: None, rewrite: true };
    Registry::new(store.clone(), artifacts.clone(), modules, limits)
}

impl Site {
    /// Starts a worker with a fake GPU that works at first, so that its canary passes.
    async fn open(options: impl FnOnce(&mut WorkerOptions)) -> Self {
        Self::with(DeviceKind::Cuda, options).await
    }

    async fn with(kind: DeviceKind, options: impl FnOnce(&mut WorkerOptions)) -> Self {
        Self::on(FakeDevice::new(kind), options).await
    }

    async fn on(gpu: FakeDevice, options: impl FnOnce(&mut WorkerOptions)) -> Self {
        Self::on_queue(gpu, Arc::new(MemoryQueue::new()), options).await
    }

    async fn on_queue(gpu: FakeDevice, queue: Arc<dyn Queue>, options: impl FnOnce(&mut WorkerOptions)) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let database = dir.path().join("jobs.db");
        let open = async || Arc::new(SqliteStore::open(&database, StoreSettings::default()).await.unwrap());
        let (store, heartbeat): (Arc<dyn Store>, Arc<dyn Store>) = (open().await, open().await);
        let artifacts = Artifacts::local(dir.path()).unwrap();
        let registry = registry(&store, &artifacts);
        let (file, key) = multiplier_key(dir.path());
        registry.add("multiplier".parse().unwrap(), &file, None, Arc::new(|_, _| {})).await.unwrap();

        let keyring = Arc::new(Keyring::none());
        let treatment = ServiceOptions { max_input: 1 << 20, start_within: None, keyring: keyring.clone() };
        let service = JobService::new(store.clone(), Some(queue.clone()), artifacts.clone(), treatment);
        let config = Config::from_lookup(|n| (n == "PROVER_DATA_DIR").then(|| "unused".to_owned())).unwrap();
        let mut chosen = WorkerOptions::from(&config);
        options(&mut chosen);
        let cpu = FakeDevice::new(DeviceKind::Cpu);
        let devices: Vec<Arc<dyn Backend>> = vec![Arc::new(gpu.clone()), Arc::new(cpu.clone())];
        let (store_of_worker, service_of_worker) = (store.clone(), service.clone());
        let parts = WorkerParts {
            store: store_of_worker,
            heartbeat,
            queue,
            artifacts: artifacts.clone(),
            registry: registry.clone(),
            service: service_of_worker,
            keyring,
        };
        let worker = Worker::start(parts, devices, chosen).await.unwrap();
        let verifier = Verifier::new(&key.header.vk);
        Self { dir, registry, artifacts, service, worker, gpu, cpu, verifier, store }
    }

    async fn submit(&self, input: Vec<u8>) -> JobId {
        self.submit_to("multiplier", input).await
    }

    /// Registers another circuit, whose key no device has loaded, and returns the hash of its key.
    async fn add(&self, circuit: &str) -> ContentHash {
        let (key, _) = multiplier_key(self.dir.path());
        self.registry.add(circuit.parse().unwrap(), &key, None, Arc::new(|_, _| {})).await.unwrap().zkey
    }

    async fn submit_to(&self, circuit: &str, input: Vec<u8>) -> JobId {
        let circuit = circuit.parse().unwrap();
        let input = Zeroizing::new(input);
        let request = SubmitRequest { id: None, circuit, input, idempotency_key: None, priority: Priority(0) };
        self.service.submit(request).await.unwrap().job().id
    }

    async fn end(&self, id: JobId) -> Job {
        self.first_end(&[id]).await
    }

    /// Waits for the first of these jobs to end, and returns it.
    async fn first_end(&self, jobs: &[JobId]) -> Job {
        until_async_ok("a job to end", || async {
            let mut open = Vec::new();
            for id in jobs {
                let job = self.service.job(*id).await.unwrap();
                if job.state.is_final() {
                    return Ok(job);
                }
                open.push(job);
            }
            Err(open)
        })
        .await
    }

    /// Waits until a job has its witness and waits for the device or is on it.
    async fn until_proving(&self, id: JobId) {
        until_job(&self.service, id, "to wait for its proof", |job| job.stage == Some(Stage::Prove)).await;
    }

    /// Waits until a job waits for its key to be loaded.
    async fn until_loading(&self, id: JobId) {
        until_job(&self.service, id, "to wait for its key", |job| job.stage == Some(Stage::Load)).await;
    }

    /// Waits until the GPU gets jobs again.
    async fn until_back(&self) {
        until_async_ok("the GPU to get jobs again", || async {
            let job = self.end(self.submit(good()).await).await;
            if job.result.as_ref().unwrap().device == "cuda:0" {
                return Ok(());
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
            Err(job)
        })
        .await;
    }

    fn assert_done_on(&self, job: &Job, device: &str) {
        assert_eq!(job.state, JobState::Done, "{job:?}");
        let result = job.result.as_ref().unwrap();
        assert_eq!(result.device, device);
        let proof = snarkjs::proof_from_json(&result.proof_json).unwrap();
        assert!(self.verifier.verify(&proof, &snarkjs::public_from_json(&result.public_json).unwrap()));
    }
}

/// Waits until `holds` returns `true` for the job.
async fn until_job(service: &JobService, id: JobId, what: &str, holds: impl Fn(&Job) -> bool) {
    until_async_ok(format_args!("job {id} {what}"), || async {
        let job = service.job(id).await.unwrap();
        if holds(&job) { Ok(()) } else { Err(job) }
    })
    .await;
}

fn good() -> Vec<u8> {
    circuit_file("multiplier.wtns")
}

/// A witness of the right shape for which c ≠ a·b.
fn unsatisfying() -> Vec<u8> {
    let sound = wtns::parse(&good()).unwrap();
    let mut values: Vec<BigInteger256> = sound.values().to_vec();
    values[1] = BigInteger256::from(34u64);
    let mut out = Vec::new();
    wtns::write(&Witness::from_canonical(values), &mut out).unwrap();
    out
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sound_gpu_has_the_jobs() {
    let site = Site::open(|_| {}).await;
    let job = site.end(site.submit(good()).await).await;
    site.assert_done_on(&job, "cuda:0");
    assert_eq!(job.attempt.number, 1);
    site.worker.drain().await;
}

/// A circuit that another process registers is opened before any job asks for it.
#[tokio::test(flavor = "multi_thread")]
async fn a_new_circuit_is_opened_ahead_of_its_first_job() {
    let site = Site::open(|_| {}).await;
    let program = circuits().join("multiplier.wasm");
    let (key, _) = multiplier_key(site.dir.path());
    let elsewhere = registry(&site.store, &site.artifacts);
    let circuit = elsewhere.add("new".parse().unwrap(), &key, Some(&program), Arc::new(|_, _| {})).await.unwrap();
    until_async("the circuit to be open", || async { site.registry.is_open(circuit.content()) }).await;
    site.worker.drain().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_a_gpu_does_wrong_the_processor_does_right() {
    for behaviour in [Behaviour::WrongProof, Behaviour::Error, Behaviour::OutOfMemory, Behaviour::Panic] {
        let site = Site::open(|_| {}).await;
        site.gpu.behave(behaviour);
        let job = site.end(site.submit(good()).await).await;
        site.assert_done_on(&job, "cpu:0");
        assert_eq!((job.attempt.number, job.tries.device, job.tries.transient), (2, 1, 0), "{behaviour:?}: {job:?}");
        site.worker.drain().await;
    }
}

/// The CPU decides whether an input is at fault, and only with a key that is what was registered.
#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_was_damaged_in_memory_costs_no_job() {
    let site = Site::open(|_| {}).await;
    site.gpu.behave(Behaviour::Error);
    site.cpu.behave(Behaviour::DamagesNextKey);
    let job = site.end(site.submit(good()).await).await;
    site.assert_done_on(&job, "cpu:0");
    assert_eq!((job.attempt.number, job.tries.device), (2, 1), "read again within the attempt: {job:?}");
    // With a sound key the witness is to blame, at once.
    let job = site.end(site.submit(unsatisfying()).await).await;
    assert_eq!(job.error.as_ref().unwrap().class, FailureClass::BadInput, "{job:?}");
    site.worker.drain().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_was_damaged_in_its_file_costs_no_input() {
    let site = Site::open(|_| {}).await;
    // Opens the circuit, and checks its key.
    site.assert_done_on(&site.end(site.submit(good()).await).await, "cuda:0");
    let circuit = site.store.circuit(&"multiplier".parse().unwrap()).await.unwrap().unwrap();
    let file = site.artifacts.local_path(Kind::Zkey, circuit.zkey).unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
    let last = fs::read(&file).unwrap().pop().unwrap();
    // In place, because the file is mapped.
    let mut open = fs::OpenOptions::new().write(true).open(&file).unwrap();
    open.seek(SeekFrom::End(-1)).unwrap();
    open.write_all(&[last ^ 1]).unwrap();
    site.gpu.behave(Behaviour::Error);
    site.cpu.behave(Behaviour::DamagesNextKey);
    let id = site.submit(good()).await;
    until_job(&site.service, id, "to fail for its key", |job| {
        let class = job.error.as_ref().map(|e| e.class);
        assert_ne!(class, Some(FailureClass::BadInput), "{job:?}");
        class == Some(FailureClass::Transient)
    })
    .await;
    let job = site.service.job(id).await.unwrap();
    assert!(job.error.unwrap().message.contains("register the circuit again"));
    assert_eq!((job.state, site.store.inputs_held().await.unwrap()), (JobState::Queued, vec![(String::new(), 1)]));
    site.worker.drain().await;
}

/// The retry comes soon, and a busy process may hear of the queue's answer only later; it must not count the job as its
/// own any more.
#[tokio::test(flavor = "multi_thread")]
async fn a_retry_that_is_offered_before_the_queue_has_answered_is_taken() {
    let queue = Arc::new(Odd::new(queues::Behaviour::SlowToAnswer));
    let site = Site::on_queue(FakeDevice::new(DeviceKind::Cuda), queue, |_| {}).await;
    site.gpu.behave(Behaviour::Error);
    let job = site.end(site.submit(good()).await).await;
    site.assert_done_on(&job, "cpu:0");
    assert_eq!((job.attempt.number, job.tries.device), (2, 1), "{job:?}");
    site.worker.drain().await;
}

/// Jobs that wait while the device is busy go to it together, up to its batch size, and a witness that does not satisfy
/// the circuit does not harm the others of its batch.
#[tokio::test(flavor = "multi_thread")]
async fn jobs_of_a_circuit_go_to_the_device_together() {
    let site = Site::open(|o| o.concurrency = Some(8)).await;
    site.gpu.behave(Behaviour::Hang);
    let mut ids = Vec::new();
    for input in [good(), good(), unsatisfying(), good(), good(), good()] {
        ids.push(site.submit(input).await);
        // The first two are on the device before the others arrive, which wait in this order.
        site.until_proving(ids[ids.len() - 1]).await;
        site.gpu.until_at_work(ids.len().min(2)).await;
    }
    site.gpu.behave(Behaviour::Sound);
    for (i, id) in ids.iter().enumerate() {
        let job = site.end(*id).await;
        if i == 2 {
            assert_eq!(job.error.as_ref().unwrap().class, FailureClass::BadInput, "{job:?}");
        } else {
            site.assert_done_on(&job, "cuda:0");
            assert_eq!(job.attempt.number, 1);
        }
    }
    assert_eq!(*site.gpu.batches.lock().unwrap(), [4], "two alone, and four together");
    site.worker.drain().await;
}

/// Two proofs are on a GPU at once if half of its memory takes both.
#[tokio::test(flavor = "multi_thread")]
async fn proofs_that_do_not_fit_together_go_to_the_device_one_by_one() {
    for (per_proof, at_once) in [(300 << 20, 1), (200 << 20, 2), (800 << 20, 1)] {
        let site = Site::open(|o| {
            o.concurrency = Some(8);
            o.batch_max = Some(1);
        })
        .await;
        site.gpu.per_proof.store(per_proof, Ordering::SeqCst);
        site.gpu.behave(Behaviour::Hang);
        let mut ids = Vec::new();
        for _ in 0..3 {
            ids.push(site.submit(good()).await);
        }
        for id in &ids {
            site.until_proving(*id).await;
        }
        until_async("proofs on the GPU", || async { site.gpu.at_work.load(Ordering::SeqCst) >= at_once }).await;
        tokio::time::sleep(Duration::from_millis(100)).await;
        assert_eq!(site.gpu.at_work.load(Ordering::SeqCst), at_once, "{per_proof} bytes each");
        site.gpu.behave(Behaviour::Sound);
        for id in ids {
            site.assert_done_on(&site.end(id).await, "cuda:0");
        }
        site.worker.drain().await;
    }
}

/// A worker takes as many jobs as its GPU can start, so that others get the rest, and fills batches if its jobs are
/// small.
#[tokio::test(flavor = "multi_thread")]
async fn a_worker_takes_more_jobs_only_as_its_gpu_keeps_up() {
    let site = Site::open(|_| {}).await;
    assert_eq!(site.worker.slots(), 3, "two proofs, and a witness meanwhile");
    site.assert_done_on(&site.end(site.submit(good()).await).await, "cuda:0");
    assert!(site.worker.slots() > 2 * 4, "two batches of four, and witnesses meanwhile: {}", site.worker.slots());
    site.worker.drain().await;
}

/// A job's time limit does not run while it waits for other proofs.
#[tokio::test(flavor = "multi_thread")]
async fn the_wait_for_a_device_is_not_the_jobs_time() {
    let allowed = Duration::from_secs(4);
    let site = Site::open(|o| {
        o.concurrency = Some(8);
        o.job_timeout = allowed;
    })
    .await;
    site.gpu.behave(Behaviour::Stuck);
    for at_work in 1..=2 {
        site.submit(good()).await;
        site.gpu.until_at_work(at_work).await;
    }
    let waits = site.submit(good()).await;
    site.until_proving(waits).await;
    tokio::time::sleep(allowed + Duration::from_millis(100)).await;
    site.gpu.behave(Behaviour::Sound);
    let job = site.end(waits).await;
    site.assert_done_on(&job, "cuda:0");
    assert_eq!((job.attempt.number, job.tries.transient), (1, 0), "{job:?}");
    site.worker.drain().await;
}

/// A bad witness looks like a bad device until the CPU has tried it; then the input is to blame.
#[tokio::test(flavor = "multi_thread")]
async fn a_witness_that_does_not_satisfy_is_bad_input_once_the_processor_says_so() {
    let site = Site::open(|_| {}).await;
    let job = site.end(site.submit(unsatisfying()).await).await;
    assert_eq!(job.state, JobState::Failed);
    assert_eq!(job.error.as_ref().unwrap().class, FailureClass::BadInput, "{job:?}");
    assert_eq!((job.attempt.number, job.result.is_none()), (2, true));
    assert_eq!(site.store.inputs_held().await.unwrap(), []);
    site.worker.drain().await;
}

/// A GPU that fails permanently is taken out of service after a few jobs, and the CPU takes its place: no job waits for
/// it.
#[tokio::test(flavor = "multi_thread")]
async fn a_gpu_that_goes_bad_sits_out() {
    let site = Site::open(|o| o.concurrency = Some(1)).await;
    site.gpu.behave(Behaviour::Error);
    let mut first_tries = 0;
    for _ in 0..8 {
        let job = site.end(site.submit(good()).await).await;
        site.assert_done_on(&job, "cpu:0");
        first_tries += job.tries.device;
    }
    assert_eq!(first_tries, 3, "after three failures it is asked no more");
    site.worker.drain().await;
}

/// A proof that hangs is stopped at its time-out, retried once, and then fails; the slot is free again.
#[tokio::test(flavor = "multi_thread")]
async fn a_hanging_proof_times_out() {
    let site = Site::open(|o| {
        o.prove_timeout = Duration::from_secs(1);
        o.concurrency = Some(1);
    })
    .await;
    site.gpu.behave(Behaviour::Hang);
    let job = site.end(site.submit(good()).await).await;
    assert_eq!(job.state, JobState::Failed);
    assert_eq!(job.error.as_ref().unwrap().class, FailureClass::Timeout, "{job:?}");
    assert_eq!((job.attempt.number, job.tries.transient), (2, 2));
    site.gpu.behave(Behaviour::Sound);
    let job = site.end(site.submit(good()).await).await;
    site.assert_done_on(&job, "cuda:0");
    site.worker.drain().await;
}

/// A GPU that does not return is blamed for it: jobs that wait for it go to the CPU at once, and so do new ones, until
/// the GPU has returned and proved its canary.
#[tokio::test(flavor = "multi_thread")]
async fn a_gpu_that_does_not_come_back_sits_out() {
    let site = Site::open(|o| {
        o.prove_timeout = Duration::from_secs(1);
        o.concurrency = Some(8);
    })
    .await;
    site.gpu.behave(Behaviour::Stuck);
    let mut ids = Vec::new();
    for _ in 0..6 {
        ids.push(site.submit(good()).await);
    }
    for id in ids {
        let job = site.end(id).await;
        site.assert_done_on(&job, "cpu:0");
        assert_eq!((job.attempt.number, job.tries.device, job.tries.transient), (2, 1, 0), "{job:?}");
        assert!(job.history[0].error.message.contains("cuda:0 hangs"), "{job:?}");
    }
    let job = site.end(site.submit(good()).await).await;
    site.assert_done_on(&job, "cpu:0");
    assert_eq!(job.attempt.number, 1, "{job:?}");

    site.gpu.behave(Behaviour::Sound);
    site.until_back().await;
    site.worker.drain().await;
}

/// So is one on which a key is never loaded.
#[tokio::test(flavor = "multi_thread")]
async fn a_gpu_on_which_a_key_does_not_arrive_sits_out() {
    let site = Site::open(|o| {
        o.load_patience = Duration::from_secs(1);
        o.concurrency = Some(4);
    })
    .await;
    site.gpu.behave(Behaviour::StuckLoading);
    // A circuit whose key no device has loaded.
    let (key, _) = multiplier_key(site.dir.path());
    site.registry.add("multiplier".parse().unwrap(), &key, None, Arc::new(|_, _| {})).await.unwrap();
    let mut ids = Vec::new();
    for _ in 0..3 {
        ids.push(site.submit(good()).await);
    }
    for id in ids {
        let job = site.end(id).await;
        assert_eq!((job.state, job.result.as_ref().unwrap().device.as_str()), (JobState::Done, "cpu:0"), "{job:?}");
        assert_eq!((job.attempt.number, job.tries.device, job.tries.transient), (2, 1, 0), "{job:?}");
        assert!(job.history[0].error.message.contains("a key was not loaded"), "{job:?}");
    }
    let job = site.end(site.submit(good()).await).await;
    assert_eq!((job.attempt.number, job.result.as_ref().unwrap().device.as_str()), (1, "cpu:0"), "{job:?}");
    site.gpu.behave(Behaviour::Sound);
    site.until_back().await;
    site.worker.drain().await;
}

/// A device with too little memory for some proofs remains in service for others.
#[tokio::test(flavor = "multi_thread")]
async fn a_lack_of_memory_is_not_held_against_a_gpu() {
    let site = Site::open(|o| o.concurrency = Some(1)).await;
    site.gpu.behave(Behaviour::OutOfMemory);
    for _ in 0..5 {
        let job = site.end(site.submit(good()).await).await;
        site.assert_done_on(&job, "cpu:0");
        assert_eq!((job.attempt.number, job.tries.device), (2, 1), "{job:?}");
    }
    site.gpu.behave(Behaviour::Sound);
    let job = site.end(site.submit(good()).await).await;
    site.assert_done_on(&job, "cuda:0");
    site.worker.drain().await;
}

/// A running proof that is cancelled stops, and the slot is free again.
#[tokio::test(flavor = "multi_thread")]
async fn a_cancel_stops_a_running_proof() {
    let site = Site::open(|o| o.concurrency = Some(1)).await;
    site.gpu.behave(Behaviour::Hang);
    let id = site.submit(good()).await;
    until_job(&site.service, id, "to run", |job| job.state == JobState::Running).await;
    site.service.cancel(id).await.unwrap();
    assert_eq!(site.end(id).await.state, JobState::Cancelled);
    site.gpu.behave(Behaviour::Sound);
    let job = site.end(site.submit(good()).await).await;
    site.assert_done_on(&job, "cuda:0");
    site.worker.drain().await;
}

/// Jobs whose proofs did not verify wait for the CPU's verdict outside the slots, which remain for the GPU's jobs.
#[tokio::test(flavor = "multi_thread")]
async fn jobs_that_wait_for_a_verdict_keep_no_gpu_idle() {
    let site = Site::open(|o| o.concurrency = Some(1)).await;
    site.cpu.behave(Behaviour::Hang);
    let mut doubtful = Vec::new();
    for _ in 0..2 {
        let id = site.submit(unsatisfying()).await;
        let second = |job: &Job| job.attempt.number == 2 && job.stage == Some(Stage::Prove);
        until_job(&site.service, id, "to wait for its second proof", second).await;
        doubtful.push(id);
        let job = site.end(site.submit(good()).await).await;
        site.assert_done_on(&job, "cuda:0");
        assert_eq!(job.attempt.number, 1);
    }
    site.cpu.behave(Behaviour::Sound);
    for id in doubtful {
        let job = site.end(id).await;
        assert_eq!(job.error.as_ref().unwrap().class, FailureClass::BadInput, "{job:?}");
    }
    site.worker.drain().await;
}

/// A worker that has only its CPU left reports it, until its GPU is back.
#[tokio::test(flavor = "multi_thread")]
async fn a_worker_whose_gpu_is_unfit_is_not_ready() {
    let site = Site::open(|o| {
        o.dead_after = Duration::ZERO;
        o.exit_on_dead = ExitOnDead::Off;
    })
    .await;
    let readiness = Readiness::starting("a test");
    let off = async {
        until_async("the worker to be ready", || async { readiness.get() == Status::Ready }).await;
        site.gpu.behave(Behaviour::Error);
        until_async("the GPU to be unfit", || async {
            site.end(site.submit(good()).await).await;
            matches!(readiness.get(), Status::StandIn(why) if why.contains("canary of cuda:0 fails"))
        })
        .await;
        site.gpu.behave(Behaviour::Sound);
        until_async("the worker to be ready", || async { readiness.get() == Status::Ready }).await;
    };
    tokio::select! {
        why = site.worker.watch(&readiness) => panic!("it may not end: {why}"),
        () = off => {}
    }
    site.worker.drain().await;
}

/// A GPU that stays unfit is dead to this process, which then says that it must end.
#[tokio::test(flavor = "multi_thread")]
async fn a_worker_ends_when_its_gpu_does_not_come_back() {
    for exit in [ExitOnDead::All, ExitOnDead::Any] {
        let site = Site::open(|o| {
            o.dead_after = Duration::ZERO;
            o.exit_on_dead = exit;
        })
        .await;
        let readiness = Readiness::starting("a test");
        site.gpu.behave(Behaviour::Error);
        for _ in 0..4 {
            site.end(site.submit(good()).await).await;
        }
        let why = tokio::time::timeout(HANG, site.worker.watch(&readiness)).await.unwrap();
        assert!(why.contains("1 of 1 devices did not come back") && why.contains("cuda:0"), "{why}");
        site.worker.drain().await;
    }
}

/// A GPU that is unfit from the start, as after a worker ended because of it, counts as one that does not come back.
#[tokio::test(flavor = "multi_thread")]
async fn a_worker_whose_gpu_is_dead_at_its_start_is_not_ready() {
    let gpu = FakeDevice::new(DeviceKind::Cuda);
    gpu.behave(Behaviour::Error);
    let site = Site::on(gpu, |o| o.dead_after = Duration::ZERO).await;
    let readiness = Readiness::starting("a test");
    let why = tokio::time::timeout(HANG, site.worker.watch(&readiness)).await.unwrap();
    assert!(why.contains("1 of 1 devices did not come back") && why.contains("cuda:0: its canary failed"), "{why}");
    assert!(matches!(readiness.get(), Status::StandIn(why) if why.contains("cuda:0: its canary failed")));
    let job = site.end(site.submit(good()).await).await;
    site.assert_done_on(&job, "cpu:0");
    site.worker.drain().await;
}

/// ICICLE's devices do one thing at a time. A key that waits for a long proof is not late, and the device does not
/// hang.
#[tokio::test(flavor = "multi_thread")]
async fn a_key_waits_for_its_turn_on_an_icicle_device() {
    let patience = Duration::from_secs(1);
    let site = Site::with(DeviceKind::Icicle, |o| {
        o.load_patience = patience;
        o.concurrency = Some(8);
    })
    .await;
    site.gpu.behave(Behaviour::Hang);
    let mut ids = vec![site.submit(good()).await, site.submit(good()).await];
    for id in &ids {
        site.until_proving(*id).await;
    }
    site.gpu.until_at_work(1).await;
    site.add("other").await;
    ids.push(site.submit_to("other", good()).await);
    site.until_loading(ids[2]).await;
    tokio::time::sleep(patience * 2).await;
    assert_eq!(site.gpu.at_work.load(Ordering::SeqCst), 1, "one proof at a time");
    site.gpu.behave(Behaviour::Sound);
    for id in ids {
        let job = site.end(id).await;
        assert_eq!((job.state, job.attempt.number), (JobState::Done, 1), "{job:?}");
        assert_eq!(job.result.as_ref().unwrap().device, "icicle:0");
    }
    site.worker.drain().await;
}

/// A draining worker finishes the proofs in progress on its devices, and hands back everything else at once.
#[tokio::test(flavor = "multi_thread")]
async fn a_draining_worker_finishes_the_proofs_that_are_begun() {
    let site = Site::open(|o| {
        o.concurrency = Some(8);
        o.grace = HANG * 10;
    })
    .await;
    site.gpu.behave(Behaviour::Hang);
    let mut ids = Vec::new();
    for at_work in [1, 2, 2, 2] {
        ids.push(site.submit(good()).await);
        site.until_proving(ids[ids.len() - 1]).await;
        site.gpu.until_at_work(at_work).await;
    }
    let Site { worker, service, gpu, .. } = site;
    let drained = tokio::spawn(worker.drain());
    for id in &ids[2..] {
        until_job(&service, *id, "to be queued", |job| job.state == JobState::Queued).await;
    }
    assert_eq!(gpu.at_work.load(Ordering::SeqCst), 2);
    gpu.behave(Behaviour::Sound);
    assert_eq!(drained.await.unwrap(), 2);
    for (i, id) in ids.iter().enumerate() {
        let job = service.job(*id).await.unwrap();
        assert_eq!(job.state, if i < 2 { JobState::Done } else { JobState::Queued }, "{job:?}");
        assert_eq!((job.attempt.number, job.tries), (1, Tries::default()), "{job:?}");
    }
}

/// A proof that does not end within the grace period is stopped, and its job handed back.
#[tokio::test(flavor = "multi_thread")]
async fn a_proof_that_outlasts_the_grace_is_handed_back() {
    let site = Site::open(|o| o.grace = Duration::from_secs(1)).await;
    site.gpu.behave(Behaviour::Hang);
    let id = site.submit(good()).await;
    site.gpu.until_at_work(1).await;
    let Site { worker, service, .. } = site;
    assert_eq!(worker.drain().await, 1);
    let job = service.job(id).await.unwrap();
    assert_eq!((job.state, job.attempt.number, job.tries), (JobState::Queued, 1, Tries::default()), "{job:?}");
}

/// A key too large for the GPU goes to another device, and the keys that are loaded stay.
#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_cannot_fit_evicts_nothing() {
    let site = Site::open(|_| {}).await;
    let job = site.end(site.submit(good()).await).await;
    site.assert_done_on(&job, "cuda:0");
    let other = site.add("other").await;
    site.gpu.per_proof.store(2 << 30, Ordering::SeqCst);
    let large = site.end(site.submit_to("other", good()).await).await;
    assert_eq!((large.state, large.attempt.number), (JobState::Done, 2), "{large:?}");
    assert_eq!(large.result.as_ref().unwrap().device, "cpu:0");
    let why = &large.history[0].error.message;
    assert!(why.contains(&format!("{} for a proof are needed, {} are available", 2u64 << 30, 896u64 << 20)), "{why}");
    assert!(site.registry.has_loaded(&site.gpu, job.zkey) && !site.registry.has_loaded(&site.gpu, other));
    site.worker.drain().await;
}

/// ICICLE's devices take one call at a time; a key that cannot fit does not wait for its turn.
#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_cannot_fit_is_refused_while_the_device_is_busy() {
    let site = Site::with(DeviceKind::Icicle, |o| o.concurrency = Some(2)).await;
    site.end(site.submit(good()).await).await;
    site.add("other").await;
    site.gpu.behave(Behaviour::Hang);
    let busy = site.submit(good()).await;
    site.gpu.until_at_work(1).await;
    site.gpu.per_proof.store(2 << 30, Ordering::SeqCst);
    let large = site.end(site.submit_to("other", good()).await).await;
    assert_eq!((large.state, large.result.as_ref().unwrap().device.as_str()), (JobState::Done, "cpu:0"), "{large:?}");
    assert_eq!(site.service.job(busy).await.unwrap().state, JobState::Running);
    site.gpu.behave(Behaviour::Sound);
    assert_eq!(site.end(busy).await.state, JobState::Done);
    site.worker.drain().await;
}

/// The circuit's files may come from far away, or its key be large.
#[tokio::test(flavor = "multi_thread")]
async fn jobs_of_a_circuit_that_is_not_there_yet_do_not_hold_up_those_of_others() {
    let site = Site::open(|o| o.concurrency = Some(1)).await;
    site.end(site.submit(good()).await).await;
    site.add("other").await;
    site.gpu.behave(Behaviour::StuckLoading);
    let waits = site.submit_to("other", good()).await;
    site.until_loading(waits).await;
    let mine = site.end(site.submit(good()).await).await;
    site.assert_done_on(&mine, "cuda:0");
    assert_eq!(site.service.job(waits).await.unwrap().state, JobState::Running);
    site.gpu.behave(Behaviour::Sound);
    assert_eq!(site.end(waits).await.state, JobState::Done);
    site.worker.drain().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn proofs_on_a_processor_share_its_threads() {
    let site = Site::with(DeviceKind::Cpu, |_| {}).await;
    // From now on this CPU, of the two, has the key.
    site.end(site.submit(good()).await).await;
    let two = async || {
        site.gpu.behave(Behaviour::Hang);
        let jobs = [site.submit(good()).await, site.submit(good()).await];
        for job in jobs {
            site.until_proving(job).await;
        }
        jobs
    };
    let ended = async |jobs: [JobId; 2]| {
        site.gpu.behave(Behaviour::Sound);
        for job in jobs {
            site.assert_done_on(&site.end(job).await, "cpu:0");
        }
    };
    site.gpu.threads.store(usize::MAX, Ordering::SeqCst);
    let large = two().await;
    site.gpu.until_at_work(1).await;
    ended(large).await;

    site.gpu.threads.store(1, Ordering::SeqCst);
    let small = two().await;
    let cores = std::thread::available_parallelism().unwrap().get();
    site.gpu.until_at_work(cores.min(2)).await;
    ended(small).await;
    site.worker.drain().await;
}

/// Each holds its key and its witness in memory, and small circuits may have raised the number of jobs taken at once.
#[tokio::test(flavor = "multi_thread")]
async fn large_circuits_after_small_ones_are_two_in_hand() {
    // Under another name than the other CPU, so that it alone has the key.
    let mut cpu = FakeDevice::new(DeviceKind::Cpu);
    cpu.info.ordinal = 1;
    let site = Site::on(cpu, |_| {}).await;
    for _ in 0..8 {
        site.end(site.submit(good()).await).await;
    }
    site.gpu.threads.store(usize::MAX, Ordering::SeqCst);
    site.gpu.behave(Behaviour::Hang);
    let mut jobs = Vec::new();
    for _ in 0..3 {
        jobs.push(site.submit(good()).await);
    }
    // The job taken last goes to the other device. It is mostly the third; if it was taken before the others used all
    // the capacity, it is handed back once first.
    let elsewhere = site.first_end(&jobs).await;
    site.assert_done_on(&elsewhere, "cpu:0");
    assert!((1..=2).contains(&elsewhere.attempt.number), "{elsewhere:?}");
    // That job may have overtaken them.
    for job in jobs.iter().filter(|job| **job != elsewhere.id) {
        site.until_proving(*job).await;
    }
    site.gpu.behave(Behaviour::Sound);
    for job in jobs.into_iter().filter(|job| *job != elsewhere.id) {
        site.assert_done_on(&site.end(job).await, "cpu:1");
    }
    site.worker.drain().await;
}
