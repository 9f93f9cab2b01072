//! What every store must do, run over each implementation, and what only one of them can do.
#![allow(clippy::unwrap_used)]

mod conformance;
mod fixtures;
mod fleet;
mod model_based;
mod postgres;
mod sqlite;
mod storm;
#[path = "../support/wait.rs"]
mod wait;

conformance::suite!(sqlite_conforms, crate::sqlite::SqliteFile::new());
conformance::suite!(postgres_conforms, crate::postgres::PostgresDatabase::new());
