//! `witness`: from inputs to a .wtns file; and the bounded child that compiles a witness program.

use std::path::{Path, PathBuf};

use serde::Serialize;

use super::files::{self, about};
use super::{CliError, Output};
use crate::formats::wtns;
use crate::model::{StopToken, Witness};
use crate::witness::{Inputs, Limits, ModuleCache, WasmWitness, WitnessError, WitnessGenerator, compile_into_cache};

/// Arguments of `witness`.
#[derive(clap::Args)]
pub struct Args {
    /// Witness program, as circom compiles it.
    #[arg(long, value_name = "FILE")]
    wasm: PathBuf,
    /// Inputs as JSON.
    #[arg(long, value_name = "FILE")]
    input: PathBuf,
    /// Where the witness goes. It is a secret: the file is readable by its owner only.
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
}

#[derive(Serialize)]
struct Report<'a> {
    witness: &'a Path,
    values: usize,
}

/// Computes a witness and writes it, byte for byte as snarkjs would.
pub fn run(args: Args, out: &Output) -> Result<(), CliError> {
    let bar = out.bar("witness");
    let witness = compute(&args.wasm, &args.input)?;
    bar.finish_and_clear();
    files::write(&args.out, |to| wtns::write(&witness, to))?;
    let report = Report { witness: &args.out, values: witness.len() };
    out.result(&report, || format!("{} values: {}", report.values, report.witness.display()));
    Ok(())
}

/// Computes the witness of the inputs in a file by the program in another.
pub fn compute(wasm: &Path, input: &Path) -> Result<Witness, CliError> {
    let inputs = {
        let json = files::map(input)?;
        Inputs::parse(&json).map_err(|e| about(input, e))?
    };
    let program = files::map(wasm)?;
    let loaded = load(&program).map_err(|e| about(wasm, e))?;
    loaded.generate(&inputs, &StopToken::new()).map_err(|e| about(input, e))
}

/// Loads a witness program within the configured bounds.
pub fn load(program: &[u8]) -> Result<WasmWitness, WitnessError> {
    let limits = Limits {
        time: std::time::Duration::from_secs(600),
        memory: 4 << 30,
        compile_time: std::time::Duration::from_secs(300),
        compile_memory: 4 << 30,
    };
    WasmWitness::load(program, limits, &ModuleCache { dir: None, compiler: None })
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
    /// Most memory the compiler may take, bytes.
    #[arg(long)]
    memory: u64,
}

/// Compiles into the cache, under a memory limit of its own; the parent bounds the time.
pub fn compile(args: CompileArgs) -> Result<(), CliError> {
    compile_into_cache(&args.wasm, &args.cache, args.memory).map_err(CliError::failed)
}
