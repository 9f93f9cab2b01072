//! `export`: a verification key from a proving key, and Solidity calldata from a proof.

use std::path::PathBuf;

use serde_json::json;

use super::files;
use super::{CliError, Output, documents};
use crate::formats::{calldata, snarkjs};

/// Arguments of `export`.
#[derive(clap::Subcommand)]
pub enum Args {
    /// Write the verification key that a proving key contains.
    Vkey {
        /// Proving key.
        zkey: PathBuf,
        /// Output file of the verification key; standard output if omitted or -.
        #[arg(value_parser = files::output_name())]
        out: Option<PathBuf>,
    },
    /// Print a proof as arguments for a Solidity verifier's verifyProof.
    Calldata {
        /// Proof as JSON; - is standard input.
        #[arg(long, value_name = "FILE", value_parser = files::input_name())]
        proof: PathBuf,
        /// Public values as JSON; - is standard input.
        #[arg(long, value_name = "FILE", value_parser = files::input_name())]
        public: PathBuf,
    },
}

/// Runs `export`.
pub fn run(args: Args, out: &Output) -> Result<(), CliError> {
    match args {
        Args::Vkey { zkey, out: None } => {
            out.document(&snarkjs::vkey_to_json(&files::proving_key(&zkey)?.header.vk));
        }
        Args::Vkey { zkey, out: Some(path) } => {
            files::distinct(&[&zkey], &[&path])?;
            files::write_text(&path, &snarkjs::vkey_to_json(&files::proving_key(&zkey)?.header.vk))?;
            out.report(&[&path], &json!({ "vkey": path.display().to_string() }), || {
                format!("verification key: {}", path.display())
            });
        }
        Args::Calldata { proof, public } => {
            files::one_of_stdin(&[&proof, &public])?;
            let data = calldata::solidity(&documents::proof(&proof)?, &documents::public_values(&public)?);
            out.result(&json!({ "calldata": data }), || data.clone());
        }
    }
    Ok(())
}
