//! `migrate`: brings the database's schema up to date.

use super::session::with_workspace;
use super::{CliError, Output};

/// Arguments of `migrate`.
#[derive(clap::Args)]
pub struct Args {}

/// Opens the store, which migrates it. A worker does the same when it starts; this command does it beforehand.
pub fn run(_: Args, out: &Output) -> Result<(), CliError> {
    with_workspace(|w| async move {
        w.store().ping().await.map_err(CliError::failed)?;
        let database = w.config().database.to_string();
        out.result(&serde_json::json!({ "database": database }), || format!("{database} is up to date"));
        Ok(())
    })
}
