//! The HTTP API and the endpoints for machines, through real listeners.
//!
//! The live page and the API's description are tested with npm packages, which `scripts/test.sh` installs in
//! `target/snarkjs`, or `TEST_NODE_MODULES` names. If they are missing, those tests say so and pass; with
//! `TEST_NODE_MODULES` set, that is a failure.

#![allow(clippy::unwrap_used, missing_docs)]

#[path = "../support/circuits.rs"]
mod circuits;
mod client;
mod openapi;
mod page;
#[path = "../support/wait.rs"]
mod wait;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use circuits::{circuit_file, circuits};
use client::{Answer, request};
use prover_worker::artifacts::Artifacts;
use prover_worker::backend::Backend;
use prover_worker::backend::cpu::CpuBackend;
use prover_worker::config::Config;
use prover_worker::formats::{r1cs, snarkjs, zkey};
use prover_worker::groth16::{Verifier, setup};
use prover_worker::http::{self, Access, App};
use prover_worker::model::{Circuit, CircuitName, ContentHash, FailureClass, JobError, JobId, NewJob, Priority};
use prover_worker::queue::{MemoryQueue, Queue};
use prover_worker::registry::{Registry, RegistryLimits};
use prover_worker::seal::Keyring;
use prover_worker::store::{SqliteStore, Store, StoreSettings};
use prover_worker::telemetry::Metrics;
use prover_worker::witness::ModuleCache;
use prover_worker::worker::{JobService, Readiness, ServiceOptions, Status, View, Worker, WorkerOptions, WorkerParts};
use serde_json::{Value, json};
use tokio::sync::watch;
use wait::{HANG, until_async_ok};

const MAX_INPUT: usize = 4096;
/// Longer than anything here takes.
const START_WITHIN: Duration = Duration::from_secs(7200);

/// An API over a new store with the circuit `multiplier` (c = a·b), registered once with its witness program and once
/// without.
struct Site {
    _dir: tempfile::TempDir,
    parts: Option<WorkerParts>,
    readiness: Readiness,
    view: View,
    verifier: Verifier,
    api: SocketAddr,
    ops: SocketAddr,
    stop: watch::Sender<bool>,
}

impl Site {
    async fn open() -> Self {
        Self::open_to(Access::new(true, [])).await
    }

    async fn open_to(access: Access) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let database = dir.path().join("jobs.db");
        let store: Arc<dyn Store> = Arc::new(SqliteStore::open(&database, StoreSettings::default()).await.unwrap());
        let heartbeat: Arc<dyn Store> = Arc::new(SqliteStore::open(&database, StoreSettings::default()).await.unwrap());
        let artifacts = Artifacts::memory();
        let modules = ModuleCache { dir: None, compiler: None, rewrite: true };
        let limits = RegistryLimits::for_witness(Duration::from_secs(60), 1 << 30);
        let registry = Registry::new(store.clone(), artifacts.clone(), modules, limits);

        let circuit = r1cs::parse(&circuit_file("multiplier.r1cs")).unwrap();
        let key = setup::generate(&circuit, &|_| {}).unwrap();
        let (file, mut bytes) = (dir.path().join("key.zkey"), Vec::new());
        zkey::write(&key, &mut bytes).unwrap();
        std::fs::write(&file, bytes).unwrap();
        let wasm = circuits().join("multiplier.wasm");
        for (name, wasm) in [("multiplier", Some(wasm.as_path())), ("bare", None)] {
            let name: CircuitName = name.parse().unwrap();
            registry.add(name, &file, wasm, Arc::new(|_, _| {})).await.unwrap();
        }

        let queue: Arc<dyn Queue> = Arc::new(MemoryQueue::new());
        let keyring = Arc::new(Keyring::none());
        let options =
            ServiceOptions { max_input: MAX_INPUT, start_within: Some(START_WITHIN), keyring: keyring.clone() };
        let jobs = JobService::new(store.clone(), Some(queue.clone()), artifacts.clone(), options);
        let readiness = Readiness::starting("testing devices");
        let service = jobs.clone();
        let (metrics, view) = (Metrics::install("prove"), View::default());
        let app = App { jobs, metrics, readiness: readiness.clone(), worker: view.clone() };
        let (stop, stopped) = watch::channel(false);
        let mut addresses = Vec::new();
        for router in [http::api_router(app.clone(), access), http::ops_router(app)] {
            let listener = http::listen("127.0.0.1:0".parse().unwrap(), "TEST").await.unwrap();
            addresses.push(listener.local_addr().unwrap());
            tokio::spawn(http::serve(listener, router, stopped.clone()));
        }
        let parts = Some(WorkerParts { store, heartbeat, queue, artifacts, registry, service, keyring });
        let verifier = Verifier::new(&key.header.vk);
        Self { _dir: dir, parts, readiness, view, verifier, api: addresses[0], ops: addresses[1], stop }
    }

    async fn work(&mut self) -> Worker {
        let config = Config::from_lookup(|n| (n == "PROVER_DATA_DIR").then(|| "unused".to_owned())).unwrap();
        let devices: Vec<Arc<dyn Backend>> = vec![Arc::new(CpuBackend::new(2).unwrap())];
        let worker = Worker::start(self.parts.take().unwrap(), devices, WorkerOptions::from(&config)).await.unwrap();
        worker.show(&self.view);
        worker
    }

    async fn api(&self, method: &str, path: &str, body: &Value) -> Answer {
        let json = body.to_string();
        let headers: &[(&str, &str)] = if body.is_null() { &[] } else { &[("content-type", "application/json")] };
        request(self.api, method, path, headers, if body.is_null() { b"" } else { json.as_bytes() }).await
    }

    async fn get(&self, path: &str) -> Answer {
        self.api("GET", path, &Value::Null).await
    }

    async fn submit(&self, a: u64, b: u64) -> String {
        let answer = self.api("POST", "/v1/jobs", &json!({"circuit": "multiplier", "input": {"a": a, "b": b}})).await;
        assert_eq!(answer.status, 201, "{answer:?}");
        answer.json()["id"].as_str().unwrap().to_owned()
    }

    async fn wait_done(&self, id: &str) -> Value {
        until_async_ok("the job to be done", || async {
            let job = self.get(&format!("/v1/jobs/{id}")).await.json();
            if job["state"] == "done" { Ok(job) } else { Err(job) }
        })
        .await
    }

    async fn assert_proof(&self, id: &str, product: u64) {
        let answer = self.get(&format!("/v1/jobs/{id}/proof")).await;
        assert_eq!(answer.status, 200, "{answer:?}");
        let body = answer.json();
        let proof = snarkjs::proof_from_json(&body["proof"].to_string()).unwrap();
        let public = snarkjs::public_from_json(&body["public"].to_string()).unwrap();
        assert_eq!(public.0, [product.into()]);
        assert!(self.verifier.verify(&proof, &public));
    }
}

/// Returns the folder with the npm packages that the tests need, unless they are missing.
fn node_modules() -> Option<PathBuf> {
    let named = std::env::var_os("TEST_NODE_MODULES").map(PathBuf::from);
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let modules = named.clone().unwrap_or_else(|| root.join("target/snarkjs/node_modules"));
    let found = modules.join("jsdom").exists() && modules.join("@seriousme/openapi-schema-validator").exists();
    assert!(named.is_none() || found, "TEST_NODE_MODULES names {}, where not all is there", modules.display());
    if !found {
        eprintln!("SKIPPED: jsdom and @seriousme/openapi-schema-validator are not at {}", modules.display());
    }
    found.then_some(modules)
}

/// Runs a script of this folder with Node.js; it fails at the first thing that is wrong.
async fn node(script: &str, args: &[&str]) {
    let mut node = Command::new("node");
    node.arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/http").join(script)).args(args);
    let output = tokio::task::spawn_blocking(move || node.output().unwrap()).await.unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// Asserts a problem with this status, whose sentence contains these words.
fn assert_problem(answer: &Answer, status: u16, words: &str) {
    assert_eq!(answer.status, status, "{answer:?}");
    assert_eq!(answer.header("content-type"), Some("application/problem+json"), "{answer:?}");
    let problem = answer.json();
    assert_eq!(problem["status"], status);
    assert!(problem["detail"].as_str().unwrap().contains(words), "{problem} lacks {words:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_goes_all_the_way() {
    let mut site = Site::open().await;
    let id = site.submit(6, 7).await;
    assert_problem(&site.get(&format!("/v1/jobs/{id}/proof")).await, 409, "queued");
    let worker = site.work().await;
    let job = site.wait_done(&id).await;
    assert_eq!(job["attempt"], 1);
    assert_eq!(job["result"]["device"], "cpu:0");
    site.assert_proof(&id, 42).await;
    assert_problem(&site.api("DELETE", &format!("/v1/jobs/{id}"), &Value::Null).await, 409, "already done");
    worker.drain().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_waits_for_the_end_of_a_job() {
    let mut site = Site::open().await;
    let body = |b: u64| json!({"circuit": "multiplier", "input": {"a": 3, "b": b}, "idempotency_key": b.to_string()});
    let id = site.submit(6, 7).await;
    let worker = site.work().await;
    let site = &site;
    let submit = |b: u64| async move { site.api("POST", "/v1/jobs?wait=300", &body(b)).await };
    let submits = futures::future::join_all((1..20).map(submit)).await;
    for (answer, b) in submits.iter().zip(1..) {
        let job = answer.json();
        assert_eq!((answer.status, &job["state"]), (201, &json!("done")), "{job}");
        assert_eq!(answer.header("location"), Some(format!("/v1/jobs/{}", job["id"].as_str().unwrap()).as_str()));
        site.assert_proof(job["id"].as_str().unwrap(), 3 * b).await;
    }
    assert_eq!(site.get(&format!("/v1/jobs/{id}?wait=300")).await.json()["state"], "done");
    assert_eq!(site.get(&format!("/v1/jobs/{id}/proof?wait=300")).await.status, 200);
    let again = submit(1).await;
    assert_eq!((again.status, &again.json()["state"]), (200, &json!("done")), "a repeat of one that is done");

    let bad = site.api("POST", "/v1/jobs?wait=300", &json!({"circuit": "multiplier", "input": {"a": 1}})).await;
    assert_eq!((bad.status, &bad.json()["state"]), (201, &json!("failed")), "{bad:?}");
    worker.drain().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wait_ends_with_its_time_or_with_the_server() {
    let site = Site::open().await;
    let id = site.submit(6, 7).await;
    let path = format!("/v1/jobs/{id}");
    assert_eq!(site.get(&format!("{path}?wait=1")).await.json()["state"], "queued");
    assert_problem(&site.get(&format!("{path}/proof?wait=1")).await, 409, "queued");
    let created =
        site.api("POST", "/v1/jobs?wait=1", &json!({"circuit": "multiplier", "input": {"a": 1, "b": 1}})).await;
    assert_eq!((created.status, &created.json()["state"]), (201, &json!("queued")));
    for wait in ["301", "-1", "x", ""] {
        assert_problem(&site.get(&format!("{path}?wait={wait}")).await, 422, "0 to 300");
    }
    let unknown = "/v1/jobs/0199b0c4-7e11-7a3c-9c8e-0f4f5a3f1f22?wait=300";
    assert_problem(&site.get(unknown).await, 404, "no job");

    let long = format!("{path}?wait=300");
    let waits = site.get(&long);
    let stops = async {
        // Whether it has begun or not when the server ends, it must not delay that.
        tokio::time::sleep(Duration::from_millis(300)).await;
        site.stop.send_replace(true);
    };
    let (answer, ()) = tokio::time::timeout(HANG, async { tokio::join!(waits, stops) }).await.unwrap();
    assert_eq!((answer.status, &answer.json()["state"]), (200, &json!("queued")));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_circuit_without_a_program_takes_a_witness() {
    let mut site = Site::open().await;
    let witness = circuit_file("multiplier.wtns");
    let bytes = [("content-type", "application/octet-stream"), ("idempotency-key", "w")];
    let path = "/v1/jobs?circuit=bare&priority=3";
    let answer = request(site.api, "POST", path, &bytes, &witness).await;
    assert_eq!(answer.status, 201, "{answer:?}");
    assert_eq!(answer.json()["priority"], 3);
    let again = request(site.api, "POST", path, &bytes, &witness).await;
    assert_eq!((again.status, &again.json()["id"]), (200, &answer.json()["id"]));
    let id = answer.json()["id"].as_str().unwrap().to_owned();
    let worker = site.work().await;
    site.wait_done(&id).await;
    site.assert_proof(&id, 33).await;
    worker.drain().await;

    let short = request(site.api, "POST", path, &bytes[..1], &witness[..witness.len() - 1]).await;
    assert_problem(&short, 422, ".wtns");
    let wrong = site.api("POST", "/v1/jobs", &json!({"circuit": "bare", "input": {"a": 1}})).await;
    assert_problem(&wrong, 422, "no wasm");
}

#[tokio::test(flavor = "multi_thread")]
async fn submits_are_idempotent_by_key() {
    let site = Site::open().await;
    let body = |b: u64| json!({"circuit": "multiplier", "input": {"a": 1, "b": b}, "idempotency_key": "k"});
    let first = site.api("POST", "/v1/jobs", &body(1)).await;
    assert_eq!(first.status, 201);
    let id = first.json()["id"].as_str().unwrap().to_owned();
    assert_eq!(first.header("location"), Some(format!("/v1/jobs/{id}").as_str()));
    let again = site.api("POST", "/v1/jobs", &body(1)).await;
    assert_eq!((again.status, &again.json()["id"]), (200, &first.json()["id"]));
    assert_problem(&site.api("POST", "/v1/jobs", &body(2)).await, 409, "idempotency key");
    let by_header = [("content-type", "application/json"), ("Idempotency-Key", "k")];
    let plain = json!({"circuit": "multiplier", "input": {"a": 1, "b": 2}}).to_string();
    assert_problem(&request(site.api, "POST", "/v1/jobs", &by_header, plain.as_bytes()).await, 409, "idempotency key");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_witness_has_its_key_in_the_header_or_the_query() {
    let site = Site::open().await;
    let witness = circuit_file("multiplier.wtns");
    let post = async |query: &str, key: Option<&str>| {
        let mut headers = vec![("content-type", "application/octet-stream")];
        headers.extend(key.map(|key| ("idempotency-key", key)));
        request(site.api, "POST", &format!("/v1/jobs?circuit=bare{query}"), &headers, &witness).await
    };
    let first = post("&idempotency_key=order%204711%2f%C3%BC", None).await;
    assert_eq!(first.status, 201, "{first:?}");
    assert_eq!(first.json()["idempotency_key"], "order 4711/ü");
    let again = post("&idempotency_key=order+4711/%C3%BC", None).await;
    assert_eq!((again.status, &again.json()["id"]), (200, &first.json()["id"]));
    assert_eq!(post("&idempotency_key=k", Some("k")).await.status, 201);
    assert_eq!(post("", Some("k")).await.status, 200);
    assert_problem(&post("&idempotency_key=k", Some("other")).await, 422, "differ");
    for wrong in ["%", "%4", "%zz", "%+1", "%FF"] {
        assert_problem(&post(&format!("&idempotency_key={wrong}"), None).await, 400, "idempotency_key");
    }
    assert_problem(&post("&idempotency_key=", None).await, 422, "1 to 256");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_parameter_that_is_none_is_refused() {
    let site = Site::open().await;
    let id = site.submit(6, 7).await;
    let path = format!("/v1/jobs/{id}");
    for (query, known) in
        [("states=queued", "state, circuit, idempotency_key, limit, before"), ("wait=1", "known here")]
    {
        assert_problem(&site.get(&format!("/v1/jobs?{query}")).await, 400, known);
    }
    for key in ["", "%00", &"k".repeat(257)] {
        assert_problem(&site.get(&format!("/v1/jobs?idempotency_key={key}")).await, 422, "1 to 256 characters");
    }
    for path in [format!("{path}?wait=0&wiat=1"), format!("{path}/proof?wiat=1")] {
        assert_problem(&site.get(&path).await, 400, "\"wiat\"");
        assert_problem(&site.get(&path).await, 400, "known here: wait");
    }
    assert_problem(&site.get("/v1/jobs?limit=1&limit=2").await, 400, "duplicate");
    // What a JSON body has members for is not accepted in the query.
    let body = json!({"circuit": "multiplier", "input": {"a": 1, "b": 2}});
    assert_problem(&site.api("POST", "/v1/jobs?priority=3", &body).await, 400, "\"priority\"");
    let bytes = [("content-type", "application/octet-stream")];
    let witness = circuit_file("multiplier.wtns");
    let misspelt = request(site.api, "POST", "/v1/jobs?circuit=bare&priorty=3", &bytes, &witness).await;
    assert_problem(&misspelt, 400, "circuit, priority, idempotency_key, wait");
    assert_eq!(site.get("/v1/jobs?&limit=9&").await.json().as_array().unwrap().len(), 1, "nothing was written");
    // Nor do requests without a body accept any, whether they change something or not.
    for (method, path) in [
        ("DELETE", path.as_str()),
        ("POST", &format!("{path}/requeue")),
        ("POST", "/v1/queue/pause"),
        ("POST", "/v1/circuits/multiplier/pause"),
        ("GET", "/v1/queue"),
        ("GET", "/v1/circuits"),
        ("GET", "/v1/worker"),
    ] {
        let answer = site.api(method, &format!("{path}?wait=5"), &Value::Null).await;
        assert_problem(&answer, 400, "unknown query parameter \"wait\"; known here: none");
    }
    assert_eq!(site.get(&path).await.json()["state"], "queued");
    assert_eq!(site.get("/v1/queue").await.json()["paused"], json!([]));
    // An id that is not valid UTF-8 names nothing, like one that is not a UUID.
    for (method, path) in [("GET", "/v1/jobs/%FF"), ("DELETE", "/v1/jobs/%FF"), ("POST", "/v1/circuits/%FF/pause")] {
        assert_problem(&site.api(method, path, &Value::Null).await, 404, "UTF-8");
    }
    assert_problem(&site.get(&format!("/v1/jobs?before={}", JobId::new())).await, 404, "job");
    let twice = [("content-type", "application/json"), ("idempotency-key", "k"), ("idempotency-key", "l")];
    let twice = request(site.api, "POST", "/v1/jobs", &twice, body.to_string().as_bytes()).await;
    assert_problem(&twice, 422, "duplicate header Idempotency-Key");
}

/// As from a client whose first answer was lost on the way.
#[tokio::test(flavor = "multi_thread")]
async fn a_submit_is_repeated_though_its_circuit_is_gone() {
    let site = Site::open().await;
    let body = |key: &str| json!({"circuit": "multiplier", "input": {"a": 6, "b": 7}, "idempotency_key": key});
    let first = site.api("POST", "/v1/jobs", &body("k")).await;
    let id = first.json()["id"].as_str().unwrap().to_owned();
    assert_eq!(site.api("DELETE", &format!("/v1/jobs/{id}"), &Value::Null).await.status, 200);
    let store = &site.parts.as_ref().unwrap().store;
    assert!(store.remove_circuit(&"multiplier".parse().unwrap()).await.unwrap());
    let again = site.api("POST", "/v1/jobs", &body("k")).await;
    assert_eq!((again.status, &again.json()["id"]), (200, &json!(id)), "{again:?}");
    let mut other = body("k");
    other["input"]["b"] = json!(8);
    assert_problem(&site.api("POST", "/v1/jobs", &other).await, 409, "idempotency key");
    for new in [body("l"), json!({"circuit": "multiplier", "input": {"a": 6, "b": 7}})] {
        assert_problem(&site.api("POST", "/v1/jobs", &new).await, 404, "no circuit multiplier is registered");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn media_types_mean_the_same_in_any_letters() {
    let site = Site::open().await;
    let body = json!({"circuit": "multiplier", "input": {"a": 1, "b": 2}}).to_string();
    for kind in ["Application/JSON", "application/Json; Charset=UTF-8"] {
        let answer = request(site.api, "POST", "/v1/jobs", &[("content-type", kind)], body.as_bytes()).await;
        assert_eq!(answer.status, 201, "{answer:?}");
    }
    let witness = circuit_file("multiplier.wtns");
    let bytes = [("content-type", "APPLICATION/octet-stream")];
    assert_eq!(request(site.api, "POST", "/v1/jobs?circuit=bare", &bytes, &witness).await.status, 201);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_queued_again_is_proved_with_its_own_content_or_not_at_all() {
    let site = Site::open().await;
    let store = site.parts.as_ref().unwrap().store.clone();
    let witness = circuit_file("multiplier.wtns");
    let bytes = [("content-type", "application/octet-stream")];
    let bare = request(site.api, "POST", "/v1/jobs?circuit=bare", &bytes, &witness).await.json();
    let bare = bare["id"].as_str().unwrap();
    let multiplier = site.submit(6, 7).await;
    for id in [bare, multiplier.as_str()] {
        assert_eq!(site.api("DELETE", &format!("/v1/jobs/{id}"), &Value::Null).await.status, 200);
    }
    // Others take both names; the key that both had stays registered under a third one, without the program.
    let old = store.circuit(&"bare".parse().unwrap()).await.unwrap().unwrap();
    store.put_circuit(&Circuit { name: "third".parse().unwrap(), ..old.clone() }).await.unwrap();
    for (name, wasm) in [("bare", None), ("multiplier", Some(ContentHash([8; 32])))] {
        let name: CircuitName = name.parse().unwrap();
        let n_vars = old.n_vars + 1;
        store.put_circuit(&Circuit { name, wasm, n_vars, zkey: ContentHash([7; 32]), ..old.clone() }).await.unwrap();
    }
    let path = |id: &str| format!("/v1/jobs/{id}/requeue");
    let again = site.api("POST", &path(&multiplier), &json!({"a": 6, "b": 7})).await;
    assert_problem(&again, 409, "no longer registered");
    assert_problem(&again, 409, "as a new job");
    let again = request(site.api, "POST", &path(bare), &bytes, &witness).await;
    assert_eq!(again.status, 200, "{again:?}");
    let again = again.json();
    assert_eq!((&again["state"], &again["zkey"]), (&json!("queued"), &json!(old.zkey)));
    let (run_at, start_by) = (again["run_at"].as_i64().unwrap(), again["start_by"].as_i64().unwrap());
    assert_eq!(start_by - run_at, START_WITHIN.as_millis() as i64, "as a new job may wait");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_submit_with_the_id_of_a_rejected_job_is_taken() {
    let site = Site::open().await;
    let store = site.parts.as_ref().unwrap().store.clone();
    let id = JobId::new();
    let rejected = NewJob {
        id,
        circuit: "multiplier".parse().unwrap(),
        idempotency_key: None,
        body: ContentHash::of(b"refused"),
        former_bodies: Vec::new(),
        priority: Priority(0),
        start_within: None,
    };
    let why = JobError { class: FailureClass::BadInput, message: "it was odd".to_owned() };
    store.reject(&rejected, &why).await.unwrap();
    let body = |b: u64| json!({"id": id, "circuit": "multiplier", "input": {"a": 1, "b": b}});
    let taken = site.api("POST", "/v1/jobs", &body(2)).await;
    assert_eq!((taken.status, &taken.json()["state"]), (201, &json!("queued")), "{taken:?}");
    assert_eq!(site.api("POST", "/v1/jobs", &body(2)).await.status, 200);
    assert_problem(&site.api("POST", "/v1/jobs", &body(3)).await, 409, "not the same byte for byte");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_right_is_refused_with_a_reason() {
    let site = Site::open().await;
    let site = &site;
    let post = |body: Value| async move { site.api("POST", "/v1/jobs", &body).await };
    let input = json!({"a": 1, "b": 2});
    assert_problem(&post(json!({"circuit": "none", "input": input})).await, 404, "no circuit none");
    assert_problem(&post(json!({"circuit": "../etc", "input": input})).await, 422, "circuit's name");
    assert_problem(&post(json!({"circuit": "multiplier"})).await, 422, "input");
    assert_problem(&post(json!({"circuit": "multiplier", "input": [1]})).await, 422, "");
    assert_problem(
        &post(json!({"circuit": "multiplier", "input": input, "colour": 1})).await,
        422,
        "must be an object",
    );
    let large = json!({"circuit": "multiplier", "input": {"a": "1".repeat(MAX_INPUT)}});
    assert_problem(&post(large).await, 413, "4096");
    let huge = vec![b' '; 1 << 20];
    let json_type = [("content-type", "application/json")];
    assert_problem(&request(site.api, "POST", "/v1/jobs", &json_type, &huge).await, 413, "4096");
    assert_problem(&request(site.api, "POST", "/v1/jobs", &json_type, b"{").await, 422, "not JSON");
    assert_problem(
        &request(site.api, "POST", "/v1/jobs", &[("content-type", "text/plain")], b"{}").await,
        415,
        "application/json",
    );
    let packed = [("content-type", "application/json"), ("content-encoding", "gzip")];
    assert_problem(&request(site.api, "POST", "/v1/jobs", &packed, b"{}").await, 415, "got \"gzip\"");
    assert_problem(&site.get("/v1/jobs/7").await, 404, "UUID");
    assert_problem(&site.get("/v1/jobs/0199b0c4-7e11-7a3c-9c8e-0f4f5a3f1f22").await, 404, "no job");
    assert_problem(&site.get("/v1/jobs?state=odd").await, 422, "queued");
    assert_problem(&site.get("/v1/jobs?limit=0").await, 422, "limit");
    assert_problem(&site.get("/nowhere").await, 404, "/v1/jobs");
    assert_problem(&site.api("PUT", "/v1/jobs", &Value::Null).await, 405, "method");
    assert_eq!(site.get("/v1/jobs").await.json(), json!([]), "nothing was written");
}

#[tokio::test(flavor = "multi_thread")]
async fn jobs_and_circuits_are_listed_and_queued_jobs_cancelled() {
    let site = Site::open().await;
    let (first, second) = (site.submit(1, 1).await, site.submit(1, 2).await);
    let names: Vec<_> =
        site.get("/v1/circuits").await.json().as_array().unwrap().iter().map(|c| c["name"].clone()).collect();
    assert_eq!(names, ["bare", "multiplier"]);
    let cancelled = site.api("DELETE", &format!("/v1/jobs/{first}"), &Value::Null).await;
    assert_eq!((cancelled.status, &cancelled.json()["state"]), (200, &json!("cancelled")));
    let ids = |v: Value| v.as_array().unwrap().iter().map(|j| j["id"].as_str().unwrap().to_owned()).collect::<Vec<_>>();
    assert_eq!(ids(site.get("/v1/jobs").await.json()), [second.clone(), first.clone()], "newest first");
    assert_eq!(ids(site.get("/v1/jobs?state=queued").await.json()), *std::slice::from_ref(&second));
    assert_eq!(ids(site.get("/v1/jobs?limit=1").await.json()), *std::slice::from_ref(&second));
    assert_eq!(ids(site.get(&format!("/v1/jobs?before={second}")).await.json()), *std::slice::from_ref(&first));
    assert_eq!(ids(site.get(&format!("/v1/jobs?before={first}")).await.json()), Vec::<String>::new());
    assert_problem(&site.get("/v1/jobs?before=0199b0c4-7e11-7a3c-9c8e-0f4f5a3f1f22").await, 404, "no job");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_foreign_host_is_refused_on_loopback() {
    let site = Site::open().await;
    let evil = request(site.api, "GET", "/v1/jobs", &[("host", "evil.example")], b"").await;
    assert_problem(&evil, 403, "this machine only");
    assert_eq!(request(site.api, "GET", "/v1/jobs", &[("host", "localhost:1")], b"").await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_of_another_site_cannot_pause_the_queue() {
    let site = Site::open().await;
    let host = ("host", "localhost:9180");
    for page in [("origin", "https://evil.example"), ("origin", "null"), ("sec-fetch-site", "cross-site")] {
        let evil = request(site.api, "POST", "/v1/queue/pause", &[host, page], b"").await;
        assert_problem(&evil, 403, "other sites");
    }
    assert_eq!(site.get("/v1/queue").await.json()["paused"], json!([]));
    assert_eq!(request(site.api, "POST", "/v1/queue/pause", &[host], b"").await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn where_there_are_tokens_only_health_is_had_without() {
    let site = Site::open_to(Access::new(false, ["0123456789abcdef", "fedcba9876543210"])).await;
    let get = async |path: &str, with: &[(&str, &str)]| request(site.api, "GET", path, with, b"").await;
    for path in ["/v1/jobs", "/v1/worker", "/v1/openapi.json", "/", "/page.js", "/page.css"] {
        let refused = get(path, &[]).await;
        assert_problem(&refused, 401, "Authorization");
        let challenge = refused.header("www-authenticate").unwrap();
        assert!(challenge.starts_with("Basic realm=") && !refused.text().contains("cdef"), "{refused:?}");
        assert_eq!(get(path, &[("authorization", "Bearer fedcba9876543210")]).await.status, 200, "{path}");
        // `me:0123456789abcdef`, as a browser sends it.
        assert_eq!(get(path, &[("authorization", "Basic bWU6MDEyMzQ1Njc4OWFiY2RlZg==")]).await.status, 200, "{path}");
    }
    assert_problem(&get("/v1/jobs", &[("authorization", "Bearer 0123456789abcdee")]).await, 401, "not one of");
    assert_eq!(get("/healthz", &[]).await.status, 200);
    assert_problem(&get("/readyz", &[]).await, 503, "testing devices");
    assert_eq!(request(site.ops, "GET", "/metrics", &[], b"").await.status, 200);

    let kind = ("content-type", "application/json");
    let job = br#"{"circuit": "multiplier", "input": {"a": 1, "b": 1}}"#;
    assert_problem(&request(site.api, "POST", "/v1/jobs", &[kind], job).await, 401, "Authorization");
    let known = ("authorization", "Bearer 0123456789abcdef");
    assert_eq!(get("/v1/jobs", &[known]).await.json(), json!([]), "nothing was submitted");
    assert_eq!(request(site.api, "POST", "/v1/jobs", &[kind, known], job).await.status, 201);
}

#[tokio::test(flavor = "multi_thread")]
async fn readiness_follows_the_worker_and_metrics_are_served() {
    let mut site = Site::open().await;
    let get = |path: &'static str| request(site.ops, "GET", path, &[], b"");
    assert_eq!(get("/healthz").await.status, 200);
    assert_problem(&get("/readyz").await, 503, "testing devices");
    site.readiness.set(Status::Ready);
    assert_eq!(get("/readyz").await.status, 200);
    let text = get("/metrics").await;
    assert!(text.header("content-type").unwrap().starts_with("text/plain"), "{text:?}");
    for name in ["jobs_processed_total", "job_duration_seconds", "job_failures_total", "queue_depth"] {
        assert!(text.text().contains(&format!("# TYPE {name} ")), "{name} is not there:\n{}", text.text());
    }
    site.readiness.set(Status::StandIn("the canary of cuda:0 fails".to_owned()));
    assert_problem(&get("/readyz").await, 503, "canary of cuda:0");
    assert_eq!(get("/healthz").await.status, 200);
    site.readiness.set(Status::Draining);
    assert_problem(&get("/readyz").await, 503, "draining");
    site.readiness.set(Status::Ready);
    assert_problem(&get("/readyz").await, 503, "draining");

    let before = counter(&get("/metrics").await.text(), "jobs_processed_total{queue=\"prove\"}");
    let worker = site.work().await;
    let id = site.submit(2, 2).await;
    site.wait_done(&id).await;
    worker.drain().await;
    let get = |path: &'static str| request(site.ops, "GET", path, &[], b"");
    let text = get("/metrics").await.text();
    assert!(counter(&text, "jobs_processed_total{queue=\"prove\"}") > before, "{text}");
    assert!(counter(&text, "device_proofs_total{queue=\"prove\",device=\"cpu:0\"}") >= 1, "{text}");
    assert!(!text.contains("job_stage_duration_seconds_count{queue=\"prove\",stage=\"prove\"} 0"), "{text}");
}

/// Returns a counter's value. Tests in one process share the recorder, so others may count too.
fn counter(text: &str, series: &str) -> u64 {
    let line = text.lines().find_map(|l| l.strip_prefix(series)?.strip_prefix(' '));
    line.unwrap_or_else(|| panic!("no {series} in\n{text}")).trim().parse().unwrap()
}
