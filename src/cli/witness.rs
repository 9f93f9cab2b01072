//! `witness`: computes a .wtns file from inputs; and the child process, with limits, that compiles a witness program.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::files::{self, about};
use super::{CliError, Output, session};
use crate::config::Config;
use crate::formats::wtns;
use crate::model::{StopToken, Witness};
use crate::registry::RegistryLimits;
use crate::witness::{Inputs, WasmWitness, WitnessError, compile_into_cache};
use crate::worker::module_cache;

/// Arguments of `witness`.
#[derive(clap::Args)]
pub struct Args {
    /// Witness program, as circom compiles it.
    #[arg(long, value_name = "FILE")]
    wasm: PathBuf,
    /// Inputs as JSON; - is standard input.
    #[arg(long, value_name = "FILE", value_parser = files::input_name())]
    input: PathBuf,
    /// Output file of the witness; - is standard output. The witness is secret: only the file's owner can read it.
    #[arg(long, value_name = "FILE", value_parser = files::output_name())]
    out: PathBuf,
}

#[derive(Serialize)]
struct Report<'a> {
    #[serde(serialize_with = "super::output::shown")]
    witness: &'a Path,
    values: usize,
}

/// Computes a witness and writes it, byte for byte as snarkjs would.
pub fn run(args: Args, out: &Output) -> Result<(), CliError> {
    files::distinct(&[&args.wasm, &args.input], &[&args.out])?;
    let bar = out.bar("witness");
    let witness = compute(&args.wasm, &args.input, &session::config()?, out)?;
    bar.finish_and_clear();
    files::write_secret(&args.out, |to| wtns::write(&witness, to))?;
    let report = Report { witness: &args.out, values: witness.len() };
    out.report(&[&args.out], &report, || format!("{} values: {}", report.values, report.witness.display()));
    Ok(())
}

/// Computes the witness for the inputs in the file `input` with the program in the file `wasm`.
pub fn compute(wasm: &Path, input: &Path, config: &Config, out: &Output) -> Result<Witness, CliError> {
    let inputs = {
        let json = files::input(input)?;
        Inputs::parse(&json).map_err(|e| about(input, e))?
    };
    let program = files::map(wasm)?;
    let loaded = load(&program, config, out).map_err(|e| about(wasm, in_time(e, config)))?;
    loaded.generate(&inputs, &StopToken::new()).map_err(|e| match e {
        WitnessError::Stopped(_) => about(wasm, in_time(e, config)),
        e => about(input, e),
    })
}

/// Formats an error. A program that was stopped ran out of time, because nothing else stops it here, so the error names
/// the time limit.
pub fn in_time(e: WitnessError, config: &Config) -> String {
    match e {
        WitnessError::Stopped(_) => format!(
            "the witness program took longer than {} s (PROVER_WITNESS_TIMEOUT_SECS)",
            config.witness_timeout.as_secs()
        ),
        e => e.to_string(),
    }
}

/// Loads a witness program within the configured limits. If the compiled program cannot be kept in the data folder, it
/// is kept in a temporary folder of this process, which only costs time.
pub fn load(program: &[u8], config: &Config, out: &Output) -> Result<WasmWitness, WitnessError> {
    let limits = RegistryLimits::for_witness(config.witness_timeout, config.witness_memory).witness;
    let mut cache = module_cache(config);
    let mut passing = None;
    if let Err(why) = cache.usable() {
        out.note(format_args!("compiled witness programs are not kept: {why} (PROVER_DATA_DIR sets another folder)"));
        // Only this user has access, whatever the umask: machine code is run from it.
        let alone = Permissions::from_mode(0o700);
        passing = tempfile::Builder::new().prefix("prover-worker-").permissions(alone).tempdir().ok();
        cache.dir = passing.as_ref().map(|folder| folder.path().to_owned());
    }
    let loaded = WasmWitness::load(program, limits, &cache);
    drop(passing);
    loaded
}

/// Arguments of the hidden `compile-witness`.
#[derive(clap::Args)]
pub struct CompileArgs {
    /// Witness program.
    #[arg(long)]
    wasm: PathBuf,
    /// Cache folder.
    #[arg(long)]
    cache: PathBuf,
    /// Memory limit of the compiler, in bytes.
    #[arg(long)]
    memory: u64,
    /// Compile the program unmodified.
    #[arg(long)]
    plain: bool,
}

/// Compiles into the cache under a memory limit; the parent limits the time.
pub fn compile(args: CompileArgs) -> Result<(), CliError> {
    compile_into_cache(&args.wasm, &args.cache, args.memory, !args.plain).map_err(CliError::failed)
}
