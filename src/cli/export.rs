//! x
use super::{CliError, Output};
/// x
#[derive(clap::Subcommand)]
pub enum Args {
    /// x
    X,
}
/// x
pub fn run(_a: Args, _out: &Output) -> Result<(), CliError> {
    todo!()
}
