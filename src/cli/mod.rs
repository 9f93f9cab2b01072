//! The command line, with one file per subcommand.
//!
//! Results go to standard output (with `--json`, as one JSON document), everything else to standard error. The exit
//! code is 0 for success, 1 for failure, 2 for wrong usage. An error is one line on standard error that begins with
//! `error: `.

mod circuits;
mod demo;
mod devices;
mod doctor;
mod documents;
mod export;
mod files;
#[cfg(feature = "icicle")]
mod icicle;
mod inspect;
mod jobs;
mod migrate;
mod output;
mod prove;
mod queue;
mod serve;
mod session;
mod setup;
mod verify;
mod witness;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

pub use output::{CliError, Output};

/// Groth16 proofs of circom circuits on BN254: from files, or as a worker on a queue.
#[derive(Parser)]
#[command(
    name = "prover-worker",
    version,
    about,
    disable_help_subcommand = true,
    after_help = "Settings are environment variables: `prover-worker doctor` shows each with its value.\n\
                        Exit codes: 0 success, 1 failure, 2 wrong usage."
)]
struct Cli {
    /// Print results as JSON.
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Make a proof from files.
    Prove(prove::Args),
    /// Compute a witness.
    Witness(witness::Args),
    /// Verify a proof: OK, or INVALID and exit code 1.
    Verify(verify::Args),
    /// Generate a throw-away development key. Unsafe for production.
    Setup(setup::Args),
    /// Show the contents of a zkey, wtns, r1cs, wasm, proof or key file.
    Inspect(inspect::Args),
    /// Write a verification key, or a proof as Solidity calldata.
    #[command(subcommand)]
    Export(export::Args),
    /// Register and list circuits.
    #[command(subcommand)]
    Circuits(circuits::Args),
    /// Submit a job.
    Submit(jobs::SubmitArgs),
    /// Show a job.
    Status(jobs::StatusArgs),
    /// List jobs, requeue failed ones, delete old ones.
    Jobs(jobs::JobsArgs),
    /// Write a finished job's proof to files.
    Proof(jobs::ProofArgs),
    /// Cancel a job.
    Cancel(jobs::CancelArgs),
    /// Show, pause and resume the queue.
    #[command(subcommand)]
    Queue(queue::Args),
    /// Bring the database's schema up to date.
    Migrate(migrate::Args),
    /// Run the worker.
    Serve(serve::Args),
    /// Show the devices that were found and which of them are used.
    Devices(devices::Args),
    /// Check the installation and report what needs fixing.
    Doctor(doctor::Args),
    /// Register a bundled circuit and prove real inputs through the queue.
    Demo(demo::Args),
    /// Compile one witness program into the module cache (run by the program itself, as a child with limits).
    #[command(name = "compile-witness", hide = true)]
    CompileWitness(witness::CompileArgs),
    /// Drive one of ICICLE's devices (run by the program itself, as its child).
    #[cfg(feature = "icicle")]
    #[command(name = "icicle-device", hide = true)]
    IcicleDevice(icicle::Args),
}

/// Parses the arguments, runs the subcommand and reports its error.
pub fn main() -> ExitCode {
    files::survive_size_limit();
    let cli = Cli::parse();
    let out = Output::new(cli.json);
    let ran = match cli.command {
        Command::Prove(a) => prove::run(a, &out),
        Command::Witness(a) => witness::run(a, &out),
        Command::Verify(a) => verify::run(a, &out),
        Command::Setup(a) => setup::run(a, &out),
        Command::Inspect(a) => inspect::run(a, &out),
        Command::Export(a) => export::run(a, &out),
        Command::Circuits(a) => circuits::run(a, &out),
        Command::Submit(a) => jobs::submit(a, &out),
        Command::Status(a) => jobs::status(a, &out),
        Command::Jobs(a) => jobs::run(a, &out),
        Command::Proof(a) => jobs::proof(a, &out),
        Command::Cancel(a) => jobs::cancel(a, &out),
        Command::Queue(a) => queue::run(a, &out),
        Command::Migrate(a) => migrate::run(a, &out),
        Command::Serve(a) => serve::run(a, &out),
        Command::Devices(a) => devices::run(a, &out),
        Command::Doctor(a) => doctor::run(a, &out),
        Command::Demo(a) => demo::run(a, &out),
        Command::CompileWitness(a) => witness::compile(a),
        #[cfg(feature = "icicle")]
        Command::IcicleDevice(a) => icicle::run(a),
    };
    match ran.and_then(|()| out.end()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            out.error(&e);
            ExitCode::from(e.code())
        }
    }
}
