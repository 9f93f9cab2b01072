//! x
use super::{CliError, Output};
/// x
#[derive(clap::Args)]
pub struct SubmitArgs {}
/// x
pub fn submit(_a: SubmitArgs, _out: &Output) -> Result<(), CliError> {
    todo!()
}
/// x
#[derive(clap::Args)]
pub struct StatusArgs {}
/// x
pub fn status(_a: StatusArgs, _out: &Output) -> Result<(), CliError> {
    todo!()
}
/// x
#[derive(clap::Args)]
pub struct ListArgs {}
/// x
pub fn list(_a: ListArgs, _out: &Output) -> Result<(), CliError> {
    todo!()
}
/// x
#[derive(clap::Args)]
pub struct ProofArgs {}
/// x
pub fn proof(_a: ProofArgs, _out: &Output) -> Result<(), CliError> {
    todo!()
}
/// x
#[derive(clap::Args)]
pub struct CancelArgs {}
/// x
pub fn cancel(_a: CancelArgs, _out: &Output) -> Result<(), CliError> {
    todo!()
}
