//! The program `groth16-prover`, which proves on the CPU, from files to files.
//!
//! It is a drop-in replacement for rapidsnark's `prover`: it takes the same four arguments and prints nothing unless it
//! fails. In addition, it tests itself, and verifies the proof before writing it. It is small, for users who start a
//! process per proof; for everything else, there is `prover-worker`.

pub mod files;

use std::ffi::OsString;
use std::io::{ErrorKind, Write};
use std::num::NonZero;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::thread::available_parallelism;

use crate::backend::cpu::CpuBackend;
use crate::backend::{Backend, Quiet, selftest};
use crate::config::Processor;
use crate::formats::snarkjs;
use crate::groth16::{self, ProveError, Proved, Verifier};
use crate::model::{StopToken, io_reason};
use files::{FileError, about};

const USAGE: &str = "\
Computes a Groth16 proof on BN254 from files, on the CPU, and verifies it before writing it.

Usage: groth16-prover <ZKEY> <WITNESS.wtns> <PROOF.json> <PUBLIC.json>

Environment:
  PROVER_THREADS  maximum number of threads: 1 to 1024 (default: one per core)
  PROVER_CPU      instruction set: auto, avx512ifma, avx2 or portable (default: auto, the fastest available)
";

/// Runs the program with the process's arguments. An error is one line on standard error that begins with `error: `.
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
            // A closed pipe is not an error: the reader has seen enough.
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

/// Proves and verifies, and only then writes the two files.
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
    let threads = processor.threads.unwrap_or_else(|| available_parallelism().map_or(1, NonZero::get));
    let device = CpuBackend::with(threads, processor.instructions).map_err(failed)?;
    let proved = device.on(|| prove(&device, zkey, witness))?;
    let (told, known) = (snarkjs::proof_to_json(&proved.proof), snarkjs::public_to_json(&proved.public));
    files::write_texts(&[(proof, &told), (public, &known)])
}

/// Returns a verified proof.
fn prove(device: &CpuBackend, zkey: &Path, witness: &Path) -> Result<Proved, FileError> {
    let key = files::proving_key(zkey)?;
    let values = files::witness(witness)?;
    // The verifier is prepared during the CPU's self-test, which takes as long as a small proof.
    let (fit, verifier) = rayon::join(|| selftest::run(device), || Verifier::new(&key.header.vk));
    fit.map_err(failed)?;
    let loaded = device.load(Arc::new(key)).map_err(|e| about(zkey, e))?;
    let proved = groth16::prove(loaded.as_ref(), &verifier, &values, &StopToken::new(), &Quiet);
    proved.map_err(|e| match e {
        ProveError::Backend(e) if e.is_callers_fault() => about(zkey, e),
        e => failed(e),
    })
}

fn failed(why: impl std::fmt::Display) -> FileError {
    FileError::Failed(why.to_string())
}

/// Formats an error as one line, even if it contains line breaks or other control characters.
pub fn one_line(text: &str) -> String {
    let line = text.lines().map(str::trim).filter(|l| !l.is_empty()).collect::<Vec<_>>().join(" | ");
    line.replace(char::is_control, "?")
}
