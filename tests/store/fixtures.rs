//! Circuits, jobs and shorthands.

use std::time::Duration;

use prover_worker::model::{
    Attempt, Circuit, CircuitName, ContentHash, FailureClass, IdempotencyKey, Job, JobError, JobId, JobResult,
    JobState, NewJob, Priority, StageTimes, WorkerId,
};
use prover_worker::store::{Claim, Held, Input, Purge, Store, StoreError};

/// A lease that outlasts every test.
pub const LONG: Duration = Duration::from_secs(3600);
/// A lease that lapses as soon as it is given, and a delay that is over at once.
pub const NONE: Duration = Duration::ZERO;
/// The input of [`submitted`] jobs.
pub const INPUT: &[u8] = br#"{"a": "3", "b": "11"}"#;

pub const HELD: Held = Held::Yes { cancel: false };
pub const HELD_AND_CANCELLED: Held = Held::Yes { cancel: true };

/// Deletes jobs, as a worker does after it has removed their files.
pub async fn purge(
    store: &(impl Store + ?Sized),
    states: &[JobState],
    older_than: Duration,
    limit: u32,
) -> Result<Vec<JobId>, StoreError> {
    let which = Purge { states, older_than };
    store.purge(&which, &store.purgeable(&which, limit, 0).await?).await
}

pub fn name(s: &str) -> CircuitName {
    s.parse().unwrap()
}

pub fn key(s: &str) -> IdempotencyKey {
    s.parse().unwrap()
}

pub fn worker(n: usize) -> WorkerId {
    WorkerId(format!("worker-{n}"))
}

/// A circuit with content derived from `content`.
pub fn circuit(s: &str, content: u8) -> Circuit {
    Circuit {
        name: name(s),
        zkey: ContentHash([content; 32]),
        wasm: (content % 2 == 1).then_some(ContentHash([content.wrapping_add(100); 32])),
        n_vars: 1000 + u32::from(content),
        n_public: 3,
        domain_size: u32::MAX,
        created_at: 0,
    }
}

pub fn new_job(circuit: &str) -> NewJob {
    NewJob {
        id: JobId::new(),
        circuit: name(circuit),
        idempotency_key: None,
        body: ContentHash::of(INPUT),
        former_bodies: Vec::new(),
        priority: Priority(0),
        start_within: None,
    }
}

pub fn result() -> JobResult {
    JobResult {
        proof_json: "{\"pi_a\":[\"1\",\"2\",\"1\"]}".into(),
        public_json: "[\"33\"]".into(),
        device: "cpu \"0\" – ünïcode".into(),
        times: StageTimes { load_ms: 0.125, witness_ms: 1.0, prove_ms: 12345.678, verify_ms: 1e-3 },
    }
}

pub fn error(class: FailureClass) -> JobError {
    JobError { class, message: format!("made up: {}", class.as_str()) }
}

/// An input that is not sealed.
pub fn plain(bytes: &[u8]) -> Input<'_> {
    Input { bytes, key: "" }
}

/// Returns the number of inputs held.
pub async fn inputs(store: &impl Store) -> u64 {
    store.inputs_held().await.unwrap().iter().map(|(_, n)| n).sum()
}

/// Registers circuit `c` and submits a job of it.
pub async fn submitted(store: &impl Store) -> JobId {
    store.put_circuit(&circuit("c", 1)).await.unwrap();
    let new = new_job("c");
    store.submit(&new, plain(INPUT)).await.unwrap();
    new.id
}

/// Submits a job and claims it for `lease`.
pub async fn claimed(store: &impl Store, lease: Duration) -> (JobId, Attempt) {
    let id = submitted(store).await;
    let claim = claim(store, id, lease).await.expect("a queued job can be claimed");
    (id, claim.job.attempt)
}

/// Claims a job for worker 1.
pub async fn claim(store: &impl Store, id: JobId, lease: Duration) -> Option<Claim> {
    store.claim(id, &worker(1), lease).await.unwrap()
}

/// Returns the input that came with a claim.
pub fn sent(claim: &Claim) -> &[u8] {
    claim.input.as_ref().expect("a small input comes with the claim")
}

pub async fn job(store: &impl Store, id: JobId) -> Job {
    store.job(id).await.unwrap().expect("the job is there")
}

pub async fn due_ids(store: &impl Store) -> Vec<JobId> {
    store.due(1000).await.unwrap().into_iter().map(|d| d.id).collect()
}
