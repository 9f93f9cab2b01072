//! `verify`: is this proof right?

use std::path::PathBuf;

use serde::Serialize;

use super::files;
use super::{CliError, Output};
use crate::formats::snarkjs;
use crate::groth16::Verifier;

/// Arguments of `verify`.
#[derive(clap::Args)]
pub struct Args {
    /// Verification key as JSON.
    #[arg(long, value_name = "FILE", required_unless_present = "zkey", conflicts_with = "zkey")]
    vkey: Option<PathBuf>,
    /// Proving key, which holds the verification key too.
    #[arg(long, value_name = "FILE")]
    zkey: Option<PathBuf>,
    /// Public values as JSON.
    #[arg(long, value_name = "FILE")]
    public: PathBuf,
    /// Proof as JSON.
    #[arg(long, value_name = "FILE")]
    proof: PathBuf,
}

#[derive(Serialize)]
struct Report {
    valid: bool,
}

/// Prints OK, or INVALID with exit code 1. Files that cannot be read as what they should be are errors.
pub fn run(args: Args, out: &Output) -> Result<(), CliError> {
    let key = match (&args.vkey, &args.zkey) {
        (Some(path), _) => files::parsed(path, snarkjs::vkey_from_json(&files::text(path)?))?,
        (None, Some(path)) => files::proving_key(path)?.header.vk,
        (None, None) => return Err(CliError::Usage("verify needs --vkey or --zkey".into())),
    };
    let public = files::parsed(&args.public, snarkjs::public_from_json(&files::text(&args.public)?))?;
    let proof = files::parsed(&args.proof, snarkjs::proof_from_json(&files::text(&args.proof)?))?;
    if public.0.len() != key.n_public() {
        return Err(files::about(
            &args.public,
            format!("expected {} public values, got {}", key.n_public(), public.0.len()),
        ));
    }
    let valid = Verifier::new(&key).verify(&proof, &public);
    out.result(&Report { valid }, || if valid { "OK".into() } else { "INVALID".into() });
    if valid { Ok(()) } else { Err(CliError::Said) }
}
