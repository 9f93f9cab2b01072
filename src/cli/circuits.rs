//! `circuits`: register, list, show, pause, resume and remove circuits.

use std::path::PathBuf;
use std::sync::Arc;

use super::session::{circuit_name, table, time, with_workspace};
use super::{CliError, Output};
use crate::model::{Circuit, CircuitName};
use crate::registry::Registry;
use crate::store::Scope;
use crate::worker::Workspace;

/// Subcommands of `circuits`.
#[derive(clap::Subcommand)]
pub enum Args {
    /// Register a circuit. Its key is checked byte by byte and copied to the artifacts.
    Add {
        /// Name of the circuit.
        #[arg(value_parser = circuit_name)]
        name: CircuitName,
        /// Proving key.
        #[arg(long, value_name = "FILE")]
        zkey: PathBuf,
        /// Witness program; without one, jobs supply a .wtns file.
        #[arg(long, value_name = "FILE")]
        wasm: Option<PathBuf>,
        /// Accept a key without a contribution (`snarkjs groth16 setup` without `zkey contribute`), for which anyone
        /// can make false proofs.
        #[arg(long)]
        insecure_dev_only: bool,
    },
    /// List the registered circuits.
    List,
    /// Show a circuit.
    Show {
        /// Name of the circuit.
        #[arg(value_parser = circuit_name)]
        name: CircuitName,
    },
    /// Pause the queued jobs of a circuit; running jobs continue.
    Pause {
        /// Name of the circuit.
        #[arg(value_parser = circuit_name)]
        name: CircuitName,
    },
    /// Resume the queued jobs of a circuit.
    Resume {
        /// Name of the circuit.
        #[arg(value_parser = circuit_name)]
        name: CircuitName,
    },
    /// Remove a circuit, unless unfinished jobs need it.
    Rm {
        /// Name of the circuit.
        #[arg(value_parser = circuit_name)]
        name: CircuitName,
    },
}

/// Runs a subcommand of `circuits`.
pub fn run(args: Args, out: &Output) -> Result<(), CliError> {
    with_workspace(|w| async move {
        match args {
            Args::Add { name, zkey, wasm, insecure_dev_only } => {
                let registry = w.registry().clone();
                let registry = if insecure_dev_only { registry.for_development() } else { registry };
                add(&w, &registry, name, zkey, wasm, out).await
            }
            Args::List => list(&w, out).await,
            Args::Show { name } => {
                let circuit =
                    w.store().circuit(&name).await.map_err(CliError::failed)?.ok_or_else(|| unknown(&name))?;
                out.result(&circuit, || describe(&circuit));
                Ok(())
            }
            Args::Pause { name } => pause(&w, name, true, out).await,
            Args::Resume { name } => pause(&w, name, false, out).await,
            Args::Rm { name } => {
                if !w.registry().remove(&name).await.map_err(CliError::failed)? {
                    return Err(unknown(&name));
                }
                out.result(&serde_json::json!({ "removed": name }), || format!("circuit {name} is removed"));
                Ok(())
            }
        }
    })
}

async fn pause(w: &Workspace, name: CircuitName, paused: bool, out: &Output) -> Result<(), CliError> {
    let what = format!("circuit {name}");
    super::queue::set_paused(&w.service(), &Scope::Circuit(name), &what, paused, out).await
}

fn unknown(name: &CircuitName) -> CliError {
    CliError::failed(format!("no circuit {name} is registered"))
}

async fn add(
    w: &Workspace,
    registry: &Registry,
    name: CircuitName,
    zkey: PathBuf,
    wasm: Option<PathBuf>,
    out: &Output,
) -> Result<(), CliError> {
    let before = w.store().circuit(&name).await.map_err(CliError::failed)?;
    let bar = out.bar("copy");
    let shown = bar.clone();
    let listener = Arc::new(move |what: &'static str, done: f32| {
        shown.set_message(what);
        shown.set_position((done * 1000.0) as u64);
    });
    let added = registry.add(name, &zkey, wasm.as_deref(), listener).await;
    bar.finish_and_clear();
    let circuit = added.map_err(CliError::failed)?;
    let how = match before {
        None => "registered".to_owned(),
        Some(old) if (old.zkey, old.wasm) == (circuit.zkey, circuit.wasm) => "registered as before".to_owned(),
        Some(old) => {
            let wasm = old.wasm.map_or_else(|| "none".to_owned(), |wasm| wasm.to_string());
            format!("registered in place of zkey {}, wasm {wasm}", old.zkey)
        }
    };
    out.result(&circuit, || format!("{how}\n{}", describe(&circuit)));
    Ok(())
}

async fn list(w: &Workspace, out: &Output) -> Result<(), CliError> {
    let circuits = w.store().circuits().await.map_err(CliError::failed)?;
    out.result(&circuits, || {
        if circuits.is_empty() {
            return "no circuits are registered; see `prover-worker circuits add --help`".to_owned();
        }
        let row = |c: &Circuit| {
            let input = if c.wasm.is_some() { "inputs" } else { "witness" };
            let numbers = [c.n_vars, c.n_public, c.domain_size].map(|n| n.to_string());
            [c.name.to_string()].into_iter().chain(numbers).chain([input.to_owned(), time(c.created_at)]).collect()
        };
        let rows: Vec<Vec<String>> = circuits.iter().map(row).collect();
        table(&["name", "wires", "public", "domain", "job input", "registered"], &rows)
    });
    Ok(())
}

fn describe(c: &Circuit) -> String {
    let wasm = c.wasm.map_or_else(|| "none: jobs supply a .wtns file".to_owned(), |h| h.to_string());
    format!(
        "name        {}\nwires       {}\npublic      {}\ndomain      {}\nzkey        {}\nwasm        {wasm}\n\
         registered  {}",
        c.name,
        c.n_vars,
        c.n_public,
        c.domain_size,
        c.zkey,
        time(c.created_at)
    )
}
