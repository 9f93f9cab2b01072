//! `icicle-device`: the child that drives one of ICICLE's devices.

use std::path::PathBuf;

use super::CliError;
use crate::backend::icicle::{Task, serve};

/// Arguments of the hidden `icicle-device`.
#[derive(clap::Args)]
pub struct Args {
    /// Folder of ICICLE's libraries.
    #[arg(long)]
    libraries: PathBuf,
    /// Folder of ICICLE's backends.
    #[arg(long)]
    backends: PathBuf,
    /// Type of the device; any type if omitted.
    #[arg(long)]
    kind: Option<String>,
    /// Number of the device.
    #[arg(long)]
    ordinal: u32,
}

/// Drives the device for the parent, whose socket is standard input.
pub fn run(args: Args) -> Result<(), CliError> {
    let Args { libraries, backends, kind, ordinal } = args;
    serve(&Task { libraries, backends, kind, ordinal }).map_err(CliError::failed)
}
