//! The files that subcommands name.

use std::path::Path;

use super::CliError;
pub use crate::prover::files::*;

/// An error about a file, with its name.
pub fn about(path: &Path, why: impl std::fmt::Display) -> CliError {
    crate::prover::files::about(path, why).into()
}
