//! `demo`: proves real inputs of a bundled circuit, all the way through the queue.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::Serialize;
use zeroize::Zeroizing;

use super::session;
use super::{CliError, Output};
use crate::formats::{r1cs, snarkjs, zkey};
use crate::groth16::{Verifier, setup};
use crate::model::{CircuitName, ContentHash, Job, JobId, JobState, Priority};
use crate::telemetry;
use crate::worker::{JobService, SubmitRequest, Worker, WorkerOptions, Workspace};

/// The circuit proves that each of twelve secret amounts is below 2^32, and that their sum is at most a ceiling.
const CIRCUIT: &str = "range_check";
const R1CS: &[u8] = include_bytes!("../../circuits/range_check.r1cs");
const WASM: &[u8] = include_bytes!("../../circuits/range_check.wasm");
/// Maximum time that the demo waits for its jobs.
const MAX_WAIT: Duration = Duration::from_secs(600);

/// Inputs as a user would send them: numbers, decimal strings and hexadecimal ones.
const INPUTS: [&str; 5] = [
    r#"{"ceiling": 100, "amount": [[1, 2, 3, 4], [5, 6, 7, 8], [9, 10, 11, 12]]}"#,
    r#"{"ceiling": "50000000000", "amount": [[0, 1, 2, 4294967295], [5, 6, 7, 8], ["4000000000", "0xffff", 1000, 99]]}"#,
    r#"{"ceiling": 0, "amount": [[0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]]}"#,
    r#"{"ceiling": "0xffffffff", "amount": [[1, 10, 100, 1000], [10000, 100000, 1000000, 10000000], [0, 0, 0, 1]]}"#,
    r#"{"ceiling": 78, "amount": [[12, 11, 10, 9], [8, 7, 6, 5], [4, 3, 2, 1]]}"#,
];

/// Arguments of `demo`.
#[derive(clap::Args)]
pub struct Args {
    /// Folder for the demo's data; by default, `demo` in the data folder.
    #[arg(long, value_name = "DIR", value_parser = super::files::folder_name())]
    dir: Option<PathBuf>,
}

#[derive(Serialize)]
struct Proved {
    id: JobId,
    device: String,
    verified: bool,
    public: Vec<String>,
    #[serde(serialize_with = "super::output::maybe_shown")]
    files: Option<PathBuf>,
    witness_ms: f64,
    prove_ms: f64,
}

#[derive(Serialize)]
struct Report {
    circuit: &'static str,
    #[serde(serialize_with = "super::output::shown")]
    dir: PathBuf,
    proofs: Vec<Proved>,
}

/// Registers the circuit, runs a worker in this process, proves the inputs and verifies each proof once more.
pub fn run(args: Args, out: &Output) -> Result<(), CliError> {
    let config = session::config()?;
    // Detailed logs are for `serve`; the demo logs errors only.
    let level = if config.sets("LOG_LEVEL") { config.log_level.as_str() } else { "error" };
    telemetry::init_logs(level, config.log_json);
    let dir = args.dir.unwrap_or_else(|| config.data_dir.join("demo"));
    let config = config.in_dir(&dir);
    session::runtime()?.block_on(async {
        let workspace = Workspace::open(config).await.map_err(CliError::failed)?;
        let name: CircuitName = CIRCUIT.parse().map_err(CliError::failed)?;
        register(&workspace, &name, out).await?;
        let found = session::devices(workspace.config())?;
        out.note(&found.summary);
        let parts = workspace.worker_parts().await.map_err(CliError::failed)?;
        let options = WorkerOptions::from(workspace.config());
        let worker = Worker::start(parts, found.devices, options).await.map_err(CliError::failed)?;
        let proved = prove_all(&workspace, &name, out).await;
        worker.drain().await;
        let report = Report { circuit: CIRCUIT, dir, proofs: proved? };
        out.result(&report, || describe(&report));
        Ok(())
    })
}

/// Registers the bundled circuit with a development key, unless an earlier demo has done so.
async fn register(workspace: &Workspace, name: &CircuitName, out: &Output) -> Result<(), CliError> {
    let wasm = ContentHash::of(WASM);
    let there = workspace.store().circuit(name).await.map_err(CliError::failed)?;
    if there.is_some_and(|c| c.wasm == Some(wasm)) {
        out.note(format!("circuit {name} is already registered by an earlier demo"));
        return Ok(());
    }
    out.note(format!(
        "generating a development key for {name} (not for production: its sole generator could forge proofs)"
    ));
    let folder = tempfile::tempdir().map_err(CliError::failed)?;
    let (zkey_file, wasm_file) = (folder.path().join("key.zkey"), folder.path().join("circuit.wasm"));
    let circuit = r1cs::parse(R1CS).map_err(CliError::failed)?;
    let key = setup::generate(&circuit, &|_| {}).map_err(CliError::failed)?;
    let mut bytes = Vec::new();
    zkey::write(&key, &mut bytes).map_err(CliError::failed)?;
    std::fs::write(&zkey_file, bytes).map_err(CliError::failed)?;
    std::fs::write(&wasm_file, WASM).map_err(CliError::failed)?;
    let quiet = Arc::new(|_: &'static str, _: f32| {});
    let added = workspace.registry().add(name.clone(), &zkey_file, Some(&wasm_file), quiet).await;
    let added = added.map_err(CliError::failed)?;
    out.note(format!("registered {name}: {} wires, {} public values", added.n_vars, added.n_public));
    Ok(())
}

async fn prove_all(workspace: &Workspace, name: &CircuitName, out: &Output) -> Result<Vec<Proved>, CliError> {
    let service = workspace.service();
    let mut ids = Vec::new();
    for input in INPUTS {
        let input = Zeroizing::new(input.as_bytes().to_vec());
        let request = SubmitRequest {
            id: None,
            circuit: name.clone(),
            input,
            idempotency_key: None,
            priority: Priority::default(),
        };
        ids.push(service.submit(request).await.map_err(CliError::failed)?.job().id);
    }
    out.note(format!("submitted {} jobs", ids.len()));
    let bar = out.bar("prove");
    let begun = Instant::now();
    let mut proved = Vec::new();
    for (done, id) in ids.iter().enumerate() {
        let job = loop {
            let job = service.job(*id).await.map_err(CliError::failed)?;
            if job.state.is_final() {
                break job;
            }
            if begun.elapsed() > MAX_WAIT {
                return Err(CliError::failed(format!(
                    "job {id} is still {} after {} s",
                    job.state,
                    MAX_WAIT.as_secs()
                )));
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        };
        bar.set_position(1000 * (done as u64 + 1) / ids.len() as u64);
        proved.push(check(workspace, &service, job).await?);
    }
    bar.finish_and_clear();
    Ok(proved)
}

/// Verifies a finished job's proof as published by the store, as its recipient would.
async fn check(workspace: &Workspace, service: &JobService, job: Job) -> Result<Proved, CliError> {
    if job.state != JobState::Done {
        let why = job.error.map(|e| format!(": {}", e.message)).unwrap_or_default();
        return Err(CliError::failed(format!("job {} is {}{why}", job.id, job.state)));
    }
    let result = service.result(job.id).await.map_err(CliError::failed)?;
    let proof = snarkjs::proof_from_json(&result.proof_json).map_err(CliError::failed)?;
    let public = snarkjs::public_from_json(&result.public_json).map_err(CliError::failed)?;
    let circuit = workspace.registry().open(job.content()).await.map_err(CliError::failed)?;
    if !Verifier::new(&circuit.key.header.vk).verify(&proof, &public) {
        return Err(CliError::failed(format!("the proof of job {} does not verify", job.id)));
    }
    Ok(Proved {
        id: job.id,
        device: result.device,
        verified: true,
        public: public.0.iter().map(ToString::to_string).collect(),
        files: service.proof_dir(job.id),
        witness_ms: result.times.witness_ms,
        prove_ms: result.times.prove_ms,
    })
}

fn describe(report: &Report) -> String {
    let mut lines = Vec::new();
    for p in &report.proofs {
        let files = p.files.as_ref().map(|f| f.display().to_string()).unwrap_or_default();
        lines.push(format!(
            "verified  total {:>12}  {}: witness {:.0} ms, proof {:.0} ms  {files}",
            p.public.first().map_or("", String::as_str),
            p.device,
            p.witness_ms,
            p.prove_ms,
        ));
    }
    lines.push(format!(
        "\n{} proofs, each verified: twelve secret amounts are below 2^32 and add up to a total of at most the \
         ceiling.\n\
         The data is in {}.\n\n\
         Next, a circuit of your own:\n  \
         prover-worker circuits add NAME --zkey circuit.zkey --wasm circuit.wasm\n  \
         prover-worker serve\n  \
         prover-worker submit NAME --input input.json --wait",
        report.proofs.len(),
        report.dir.display()
    ));
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn every_input_reads() {
        for input in INPUTS {
            crate::witness::Inputs::parse(input.as_bytes()).unwrap();
        }
    }
}
