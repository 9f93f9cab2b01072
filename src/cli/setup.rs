//! `setup`: generates a throw-away development key.

use std::path::{Path, PathBuf};

use serde::Serialize;

use super::files;
use super::{CliError, Output};
use crate::formats::{r1cs, snarkjs, zkey};
use crate::groth16::setup;

/// Arguments of `setup`.
#[derive(clap::Args)]
pub struct Args {
    /// Circuit, as circom compiles it.
    r1cs: PathBuf,
    /// Output file of the proving key; - is standard output.
    #[arg(value_parser = files::output_name())]
    zkey: PathBuf,
    /// Output file of the verification key; - is standard output.
    #[arg(long, value_name = "FILE", value_parser = files::output_name())]
    vkey: Option<PathBuf>,
    /// Confirm that you know that this key is unsafe for production: whoever generates it can forge proofs.
    #[arg(long)]
    insecure_dev_only: bool,
}

#[derive(Serialize)]
struct Report<'a> {
    #[serde(serialize_with = "super::output::shown")]
    zkey: &'a Path,
    #[serde(serialize_with = "super::output::maybe_shown")]
    vkey: Option<&'a Path>,
    constraints: usize,
    wires: u32,
    public: u32,
    domain: u32,
    insecure: bool,
}

/// Generates the keys, with a prominent warning.
pub fn run(args: Args, out: &Output) -> Result<(), CliError> {
    if !args.insecure_dev_only {
        return Err(CliError::Usage(
            "setup generates keys with which their generator can forge proofs; if you want that, pass \
             --insecure-dev-only"
                .into(),
        ));
    }
    let outputs: Vec<&Path> =
        [Some(&args.zkey), args.vkey.as_ref()].into_iter().flatten().map(|p| p.as_path()).collect();
    files::distinct(&[&args.r1cs], &outputs)?;
    let circuit = files::parsed(&args.r1cs, r1cs::parse(&files::map(&args.r1cs)?))?;
    let bar = out.bar("setup");
    let key = setup::generate(&circuit, &|share| bar.set_position((share * 950.0) as u64));
    let key = key.map_err(|e| files::about(&args.r1cs, e))?;
    bar.set_message("write");
    let vkey = args.vkey.as_deref().map(|path| (path, snarkjs::vkey_to_json(&key.header.vk)));
    // Both or neither: proofs by one key do not verify with the verification key of another.
    let mut ready = vec![files::Ready::new(&args.zkey, |to| zkey::write(&key, to))?];
    if let Some((path, text)) = &vkey {
        ready.push(files::Ready::new(path, |to| to.write_all(text.as_bytes()))?);
    }
    files::place_all(ready)?;
    bar.finish_and_clear();
    out.note(
        "WARNING: this key is for development only. Its toxic waste was drawn by one process on this machine; \
         anyone who kept it could forge proofs. Use a multi-party ceremony for production.",
    );
    let report = Report {
        zkey: &args.zkey,
        vkey: args.vkey.as_deref(),
        constraints: circuit.constraints.len(),
        wires: key.header.n_vars,
        public: key.header.n_public,
        domain: key.header.domain_size,
        insecure: true,
    };
    out.report(&outputs, &report, || {
        format!(
            "{} constraints, {} wires, {} public, domain {}: {} (INSECURE development key)",
            report.constraints,
            report.wires,
            report.public,
            report.domain,
            report.zkey.display()
        )
    });
    Ok(())
}
