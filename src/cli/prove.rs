//! `prove`: from files to a verified proof.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::Serialize;

use super::files::{self, about};
use super::{CliError, Output, session, witness};
use crate::backend::{Backend, Progress};
use crate::formats::snarkjs;
use crate::groth16::{self, ProveError, Proved, Verifier};
use crate::model::{ProvingKey, StopToken, Witness};

/// Arguments of `prove`.
#[derive(clap::Args)]
#[command(override_usage = "prover-worker prove <ZKEY> <WITNESS.wtns> <PROOF.json> <PUBLIC.json>\n       \
                      prover-worker prove --zkey Z (--wasm W --input I | --witness X.wtns) --proof P --public U")]
pub struct Args {
    /// Proving key, witness, output file of the proof, and of the public values, in rapidsnark's order.
    #[arg(value_names = ["ZKEY", "WITNESS", "PROOF", "PUBLIC"], num_args = 4,
          conflicts_with_all = ["zkey", "wasm", "input", "witness", "proof", "public"])]
    files: Vec<PathBuf>,
    /// Proving key.
    #[arg(long, value_name = "FILE", required_unless_present = "files")]
    zkey: Option<PathBuf>,
    /// Witness program, with --input.
    #[arg(long, value_name = "FILE", requires = "input")]
    wasm: Option<PathBuf>,
    /// Inputs as JSON, with --wasm; - is standard input.
    #[arg(long, value_name = "FILE", value_parser = files::input_name(), requires = "wasm")]
    input: Option<PathBuf>,
    /// Existing witness, as a .wtns file.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["wasm", "input"], required_unless_present_any = ["files", "wasm"])]
    witness: Option<PathBuf>,
    /// Output file of the proof; - is standard output.
    #[arg(long, value_name = "FILE", value_parser = files::output_name(), required_unless_present = "files")]
    proof: Option<PathBuf>,
    /// Output file of the public values; - is standard output.
    #[arg(long, value_name = "FILE", value_parser = files::output_name(), required_unless_present = "files")]
    public: Option<PathBuf>,
    /// Maximum number of threads for the proof; by default one per core.
    #[arg(long, value_name = "N", value_parser = clap::builder::RangedU64ValueParser::<usize>::new().range(1..=1024))]
    threads: Option<usize>,
}

/// The files of a proof, whichever way they were given.
struct Plan {
    zkey: PathBuf,
    witness: Source,
    proof: PathBuf,
    public: PathBuf,
}

enum Source {
    File(PathBuf),
    Program { wasm: PathBuf, input: PathBuf },
}

impl Args {
    fn plan(&self) -> Result<Plan, CliError> {
        if let [zkey, witness, proof, public] = self.files.as_slice() {
            let [zkey, witness, proof, public] = [zkey, witness, proof, public].map(PathBuf::from);
            let (proof, public) = (files::output(proof), files::output(public));
            return Ok(Plan { zkey, witness: Source::File(witness), proof, public });
        }
        let named = |p: &Option<PathBuf>, flag: &str| {
            p.clone().ok_or_else(|| CliError::Usage(format!("prove needs {flag} (or four files; see --help)")))
        };
        let witness = match (&self.witness, &self.wasm, &self.input) {
            (Some(w), None, None) => Source::File(w.clone()),
            (None, Some(wasm), Some(input)) => Source::Program { wasm: wasm.clone(), input: input.clone() },
            _ => return Err(CliError::Usage("prove needs --witness, or --wasm and --input".into())),
        };
        let (zkey, proof) = (named(&self.zkey, "--zkey")?, named(&self.proof, "--proof")?);
        Ok(Plan { zkey, witness, proof, public: named(&self.public, "--public")? })
    }
}

#[derive(Serialize)]
struct Report<'a> {
    #[serde(serialize_with = "super::output::shown")]
    proof: &'a Path,
    #[serde(serialize_with = "super::output::shown")]
    public: &'a Path,
    device: String,
    verified: bool,
    /// Milliseconds.
    key_ms: f64,
    witness_ms: f64,
    prove_ms: f64,
    verify_ms: f64,
}

/// Proves and verifies, and only then writes the two files.
pub fn run(args: Args, out: &Output) -> Result<(), CliError> {
    let plan = args.plan()?;
    let mut inputs = vec![plan.zkey.as_path()];
    match &plan.witness {
        Source::File(witness) => inputs.push(witness),
        Source::Program { wasm, input } => inputs.extend([wasm.as_path(), input.as_path()]),
    }
    files::distinct(&inputs, &[&plan.proof, &plan.public])?;
    let mut config = session::config()?;
    config.processor.threads = args.threads.or(config.processor.threads);
    let bar = out.bar("witness");
    let start = Instant::now();
    let key = files::proving_key(&plan.zkey)?;
    let parse_time = start.elapsed();

    let start = Instant::now();
    let witness = match &plan.witness {
        Source::File(path) => files::witness(path)?,
        Source::Program { wasm, input } => witness::compute(wasm, input, &config, out)?,
    };
    let witness_ms = ms(start.elapsed());

    bar.set_message("load");
    // The verifier is prepared while the devices run their self-tests, which take as long as a small proof.
    let (found, verifier) = rayon::join(|| session::devices(&config), || Verifier::new(&key.header.vk));
    let found = found?;
    let key = Arc::new(key);
    let (device, load_time, proved) = prove_on(&found.devices, &key, &verifier, &witness, &plan.zkey, &bar, out)?;
    let key_ms = ms(parse_time + load_time);
    bar.finish_and_clear();

    let (proof, public) = (snarkjs::proof_to_json(&proved.proof), snarkjs::public_to_json(&proved.public));
    files::write_texts(&[(&plan.proof, &proof), (&plan.public, &public)])?;
    let report = Report {
        proof: &plan.proof,
        public: &plan.public,
        device: device.device().label(),
        verified: true,
        key_ms,
        witness_ms,
        prove_ms: ms(proved.commit_time),
        verify_ms: ms(proved.verify_time),
    };
    out.report(&[&plan.proof, &plan.public], &report, || {
        format!(
            "proof verified on {}: {} and {} (key {:.0} ms, witness {:.0} ms, proof {:.0} ms, verification {:.0} ms)",
            report.device,
            report.proof.display(),
            report.public.display(),
            report.key_ms,
            report.witness_ms,
            report.prove_ms,
            report.verify_ms
        )
    });
    Ok(())
}

/// Proves on the first device that succeeds. Returns that device and the time it took to load the key.
fn prove_on<'a>(
    devices: &'a [Arc<dyn Backend>],
    key: &Arc<ProvingKey>,
    verifier: &Verifier,
    witness: &Witness,
    zkey: &Path,
    bar: &indicatif::ProgressBar,
    out: &Output,
) -> Result<(&'a dyn Backend, Duration, Proved), CliError> {
    let mut devices = devices.iter().peekable();
    loop {
        let device = devices.next().ok_or_else(|| CliError::failed("no device passed its self-test"))?;
        let start = Instant::now();
        let loaded = device.load(key.clone()).map_err(ProveError::from);
        let load_time = start.elapsed();
        bar.set_message("prove");
        let proved =
            loaded.and_then(|loaded| groth16::prove(loaded.as_ref(), verifier, witness, &StopToken::new(), &Bar(bar)));
        match proved {
            Ok(proved) => return Ok((device.as_ref(), load_time, proved)),
            Err(ProveError::Backend(e)) if e.is_callers_fault() => return Err(about(zkey, e)),
            // An error that may be the device's fault is retried on the next device; the CPU is the last.
            Err(e @ (ProveError::Backend(_) | ProveError::Invalid)) if devices.peek().is_some() => {
                out.note(format!("{}: {e}; trying the next device", device.device().label()));
            }
            Err(e) => return Err(CliError::failed(e)),
        }
    }
}

struct Bar<'a>(&'a indicatif::ProgressBar);

impl Progress for Bar<'_> {
    fn report(&self, fraction: f32) {
        self.0.set_position((fraction * 1000.0) as u64);
    }
}

fn ms(d: Duration) -> f64 {
    d.as_secs_f64() * 1e3
}
