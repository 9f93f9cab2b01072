//! x
use super::{CliError, Output};
/// x
#[derive(clap::Args)]
pub struct Args {}
/// x
pub fn run(_a: Args, _out: &Output) -> Result<(), CliError> {
    todo!()
}
/// x
#[derive(clap::Args)]
pub struct CompileArgs {}
/// x
pub fn compile(_a: CompileArgs) -> Result<(), CliError> {
    todo!()
}
