//! `inspect`: shows the contents of a file and, with --check, checks all of it.

use std::path::{Path, PathBuf};

use serde::Serialize;
use serde_json::{Value, json};

use super::documents::{self, Document};
use super::files::{self, about};
use super::{CliError, Output, session, witness};
use crate::formats::{r1cs, snarkjs, wtns, zkey};
use crate::model::ContentHash;

/// Arguments of `inspect`.
#[derive(clap::Args)]
pub struct Args {
    /// A zkey, wtns, r1cs or wasm file, or the JSON of a proof, of public values or of a verification key.
    file: PathBuf,
    /// Check every byte: points on their curves and in their groups, indices in range, numbers reduced.
    #[arg(long)]
    check: bool,
}

#[derive(Serialize)]
struct Report {
    #[serde(serialize_with = "super::output::shown")]
    file: PathBuf,
    kind: &'static str,
    bytes: usize,
    sha256: ContentHash,
    checked: bool,
    #[serde(flatten)]
    details: serde_json::Map<String, Value>,
}

/// What is said of a key for which anyone can make false proofs.
pub(super) const NOT_CONTRIBUTED: &str =
    "WARNING: the key has had no contribution (gamma and delta are equal): anyone can make false proofs for it";

/// Prints the contents of the file.
pub fn run(args: Args, out: &Output) -> Result<(), CliError> {
    let bytes = files::map(&args.file)?;
    let bar = out.bar("inspect");
    let (kind, details) = inspect(&args.file, &bytes, args.check, out)?;
    let sha256 = ContentHash::of(&bytes);
    bar.finish_and_clear();
    let Value::Object(details) = details else { return Err(CliError::failed("a report is an object")) };
    let report = Report { file: args.file.clone(), kind, bytes: bytes.len(), sha256, checked: args.check, details };
    out.result(&report, || {
        let mut lines = vec![format!("{}: {kind}, {} bytes", report.file.display(), report.bytes)];
        lines.push(format!("  sha256: {}", report.sha256));
        for (name, value) in &report.details {
            let value = match value {
                Value::String(text) => text.clone(),
                Value::Object(parts) => {
                    parts.iter().map(|(name, value)| format!("{value} {name}")).collect::<Vec<_>>().join(", ")
                }
                Value::Null if name == "rewritten" => "no, it runs unmodified".into(),
                value => value.to_string(),
            };
            lines.push(format!("  {}: {value}", name.replace('_', " ")));
        }
        if args.check {
            lines.push("  check: every value is valid".into());
        }
        if report.details.get("contributed") == Some(&Value::Bool(false)) {
            lines.push(format!("  {NOT_CONTRIBUTED}"));
        }
        lines.join("\n")
    });
    Ok(())
}

fn inspect(path: &Path, bytes: &bytes::Bytes, check: bool, out: &Output) -> Result<(&'static str, Value), CliError> {
    match bytes.get(..4) {
        Some(b"zkey") => {
            let key = files::parsed(path, zkey::parse(bytes.clone()))?;
            if check {
                files::parsed(path, zkey::check(&key))?;
            }
            let h = &key.header;
            Ok((
                "Groth16 proving key on BN254",
                json!({
                    "wires": h.n_vars,
                    "public_values": h.n_public,
                    "domain": h.domain_size,
                    "matrix_entries": key.n_coefficients(),
                    "contributed": h.vk.is_contributed(),
                }),
            ))
        }
        // Reading a witness checks every value in any case.
        Some(b"wtns") => {
            let w = files::parsed(path, wtns::parse(bytes))?;
            Ok(("witness on BN254", json!({ "values": w.len() })))
        }
        Some(b"r1cs") => {
            let c = files::parsed(path, r1cs::parse(bytes))?;
            Ok((
                "circuit (R1CS) on BN254",
                json!({
                    "constraints": c.constraints.len(),
                    "wires": c.n_wires,
                    "public_outputs": c.n_pub_out,
                    "public_inputs": c.n_pub_in,
                    "private_inputs": c.n_prv_in,
                    "labels": c.n_labels,
                }),
            ))
        }
        Some(b"\0asm") => {
            let config = session::config()?;
            let program = witness::load(bytes, &config, out).map_err(|e| about(path, witness::in_time(e, &config)))?;
            Ok(("circom witness program", serde_json::to_value(program.info()).map_err(CliError::failed)?))
        }
        _ => json_document(path, bytes),
    }
}

/// Recognises a proof, a verification key or public values by their shape.
fn json_document(path: &Path, bytes: &[u8]) -> Result<(&'static str, Value), CliError> {
    let unknown = || {
        about(
            path,
            "not a file of a known kind (zkey, wtns, r1cs, wasm, or the JSON of a proof, a key or public values)",
        )
    };
    let text = documents::text(path, bytes)?.ok_or_else(unknown)?;
    match Document::of(&text).map_err(|_| unknown())? {
        Some(Document::PublicValues) => {
            let values = files::parsed(path, snarkjs::public_from_json(&text))?;
            Ok(("public values", json!({ "values": values.0.len() })))
        }
        Some(Document::Proof) => {
            files::parsed(path, snarkjs::proof_from_json(&text))?;
            Ok(("Groth16 proof on BN254", json!({})))
        }
        Some(Document::VerificationKey) => {
            let key = files::parsed(path, snarkjs::vkey_from_json(&text))?;
            Ok((
                "Groth16 verification key on BN254",
                json!({ "public_values": key.n_public(), "contributed": key.is_contributed() }),
            ))
        }
        None => Err(about(path, "JSON, but not a proof, a verification key or public values")),
    }
}
