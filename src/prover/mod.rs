//! From a key's and a witness's file to a proof's, on the processor: the program `groth16-prover`.
//!
//! It takes the place of rapidsnark's `prover`: the same four arguments, and nothing printed unless something is wrong.
//! Beyond that it tests itself, and verifies the proof before it writes it. It is small, for those who start a process a
//! proof; for anything else there is `prover-worker`.

pub mod files;

use std::ffi::OsString;
use std::io::{ErrorKind, Write};
use std::num::NonZero;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::thread::available_parallelism;

use crate::backend::cpu::{CpuBackend, Instructions};
use crate::backend::{Backend, BackendError, Quiet, selftest};
use crate::config::Processor;
use crate::formats::snarkjs;
use crate::groth16::{self, ProveError, Proved, Verifier};
use crate::model::{StopToken, io_reason};
use files::{FileError, about};

const USAGE: &str = "\
A Groth16 proof on BN254 from files, on the processor, verified before it is written.

Usage: groth16-prover <ZKEY> <WITNESS.wtns> <PROOF.json> <PUBLIC.json>

Environment:
  PROVER_THREADS  threads it may use: 1 to 1024 (default: one per core)
  PROVER_CPU      instructions: auto, avx512ifma, avx2 or portable (default: auto, the fastest there are)
";

/// Runs the program on its arguments. An error is one sentence on standard error, beginning with `error: `.
pub fn main() -> ExitCode {
    files::survive_size_limit();
    let arguments: Vec<OsString> = std::env::args_os().skip(1).collect();
    let told = match arguments.as_slice() {
        [one] if one == "-h" || one == "--help" => Some(USAGE.to_owned()),
        [one] if one == "-V" || one == "--version" => Some(format!("groth16-prover {}\n", env!("CARGO_PKG_VERSION"))),
        _ => None,
    };
    let ran = match told {
        Some(text) => match std::io::stdout().write_all(text.as_bytes()) {
            // A closed pipe is no error: whoever reads has seen enough.
            Err(e) if e.kind() != ErrorKind::BrokenPipe => {
                Err(failed(format!("standard output cannot be written: {}", io_reason(&e))))
            }
            _ => Ok(()),
        },
        None => run(&arguments),
    };
    let Err(why) = ran else { return ExitCode::SUCCESS };
    let _ = writeln!(std::io::stderr(), "error: {}", one_line(&why.to_string()));
    ExitCode::from(if matches!(why, FileError::Usage(_)) { 2 } else { 1 })
}

/// Proves, verifies, and only then writes the two files.
fn run(arguments: &[OsString]) -> Result<(), FileError> {
    let [zkey, witness, proof, public] = arguments else {
        let got = arguments.len();
        return Err(FileError::Usage(format!(
            "expected <ZKEY> <WITNESS> <PROOF> <PUBLIC>, got {got} arguments; see --help"
        )));
    };
    let [zkey, witness, proof, public] = [zkey, witness, proof, public].map(Path::new);
    files::distinct(&[zkey, witness], &[proof, public])?;
    let processor = Processor::from_env().map_err(|e| FileError::Usage(e.to_string()))?;
    let instructions: Instructions = processor.instructions.parse().map_err(FileError::Usage)?;
    let threads = processor.threads.unwrap_or_else(|| available_parallelism().map_or(1, NonZero::get));
    let device = CpuBackend::with(threads, instructions).map_err(failed)?;
    let proved = device.on(|| prove(&device, zkey, witness))?;
    let (told, known) = (snarkjs::proof_to_json(&proved.proof), snarkjs::public_to_json(&proved.public));
    files::write_texts(&[(proof, &told), (public, &known)])
}

/// A proof that verifies.
fn prove(device: &CpuBackend, zkey: &Path, witness: &Path) -> Result<Proved, FileError> {
    let key = files::proving_key(zkey)?;
    let values = files::witness(witness)?;
    // Prepared while the processor tests itself, which takes as long as a small proof.
    let (fit, verifier) = rayon::join(|| selftest::run(device), || Verifier::new(&key.header.vk));
    fit.map_err(failed)?;
    let loaded = device.load(Arc::new(key)).map_err(|e| about(zkey, e))?;
    let proved = groth16::prove(loaded.as_ref(), &verifier, &values, &StopToken::new(), &Quiet);
    proved.map_err(|e| match e {
        ProveError::Backend(e @ BackendError::Shape { .. }) => about(zkey, e),
        e => failed(e),
    })
}

fn failed(why: impl std::fmt::Display) -> FileError {
    FileError::Failed(why.to_string())
}

/// An error as one line, whatever line breaks and other control characters its sources carry.
pub fn one_line(text: &str) -> String {
    let line = text.lines().map(str::trim).filter(|l| !l.is_empty()).collect::<Vec<_>>().join(" | ");
    line.replace(char::is_control, "?")
}
