//! `verify`: verifies a proof.

use std::path::{Path, PathBuf};

use serde::Serialize;

use super::files::{self, about};
use super::inspect::NOT_CONTRIBUTED;
use super::{CliError, Output, documents};
use crate::formats::{FileKind, zkey};
use crate::groth16::Verifier;
use crate::model::ProvingKey;

/// Arguments of `verify`.
#[derive(clap::Args)]
#[command(group(clap::ArgGroup::new("key").required(true).args(["vkey", "zkey"])))]
pub struct Args {
    /// Verification key as JSON; - is standard input.
    #[arg(long, value_name = "FILE", value_parser = files::input_name())]
    vkey: Option<PathBuf>,
    /// Proving key, which contains the verification key.
    #[arg(long, value_name = "FILE")]
    zkey: Option<PathBuf>,
    /// Public values as JSON; - is standard input.
    #[arg(long, value_name = "FILE", value_parser = files::input_name())]
    public: PathBuf,
    /// Proof as JSON; - is standard input.
    #[arg(long, value_name = "FILE", value_parser = files::input_name())]
    proof: PathBuf,
}

#[derive(Serialize)]
struct Report {
    valid: bool,
}

/// Prints OK, or INVALID with exit code 1. Files that cannot be parsed are errors.
pub fn run(args: Args, out: &Output) -> Result<(), CliError> {
    let documents = [Some(&args.public), Some(&args.proof), args.vkey.as_ref()];
    files::one_of_stdin(&documents.into_iter().flatten().map(PathBuf::as_path).collect::<Vec<_>>())?;
    let key = match (&args.vkey, &args.zkey) {
        (Some(path), _) => documents::verification_key(path)?,
        (None, Some(path)) => proving_key(path)?.header.vk,
        (None, None) => return Err(CliError::Usage("verify needs --vkey or --zkey".into())),
    };
    let public = documents::public_values(&args.public)?;
    let proof = documents::proof(&args.proof)?;
    if public.0.len() != key.n_public() {
        let (expected, got) = (key.n_public(), public.0.len());
        return Err(about(&args.public, format!("expected {expected} public values, got {got}")));
    }
    if !key.is_contributed() {
        out.note(NOT_CONTRIBUTED);
    }
    let valid = Verifier::new(&key).verify(&proof, &public);
    out.result(&Report { valid }, || if valid { "OK".into() } else { "INVALID".into() });
    if valid { Ok(()) } else { Err(CliError::Reported) }
}

/// Opens a proving key. If it is a verification key instead, the error points to `--vkey`.
fn proving_key(path: &Path) -> Result<ProvingKey, CliError> {
    let bytes = files::map(path)?;
    if FileKind::of(&bytes) == Some(FileKind::Json) {
        return Err(about(path, "expected a proving key (zkey), got JSON; --vkey takes a verification key"));
    }
    Ok(files::parsed(path, zkey::parse(bytes))?)
}
