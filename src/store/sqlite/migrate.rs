//! Migrations of the schema.

use std::path::Path;

use sqlx::Connection;
use sqlx::sqlite::SqliteConnection;

use super::cannot_open;
use crate::store::StoreError;
use crate::store::rows::{self, Columns};

/// Migrations in order: the first takes the schema from version 0 to 1, and so on. Never edit one that was released.
const MIGRATIONS: [&str; 4] = [
    include_str!("../../../migrations/sqlite/0001_jobs.sql"),
    include_str!("../../../migrations/sqlite/0002_fleet.sql"),
    include_str!("../../../migrations/sqlite/0003_waiting.sql"),
    include_str!("../../../migrations/sqlite/0004_removable_content.sql"),
];

/// Marks a file as ours ("PrvW"), so that another program's database is not mistaken for an empty one.
const APPLICATION_ID: i64 = 0x5072_7657;

/// Brings the schema up to date in one transaction, whichever process comes first. Jobs from before there were several
/// queues continue in this queue.
pub(super) async fn migrate(mut connection: SqliteConnection, path: &Path, queue: &str) -> Result<(), StoreError> {
    let latest = MIGRATIONS.len();
    if schema_version(&mut connection, path).await? < latest {
        let mut tx = connection.begin_with("BEGIN IMMEDIATE").await?;
        let version = schema_version(&mut tx, path).await?;
        for migration in MIGRATIONS.iter().skip(version) {
            sqlx::raw_sql(*migration).execute(&mut *tx).await?;
        }
        if version == 1 {
            sqlx::query("UPDATE jobs SET queue = ?1").bind(queue).execute(&mut *tx).await?;
        }
        let mark = format!("PRAGMA user_version = {latest}; PRAGMA application_id = {APPLICATION_ID};");
        sqlx::raw_sql(sqlx::AssertSqlSafe(mark)).execute(&mut *tx).await?;
        tx.commit().await?;
    }
    connection.close().await?;
    Ok(())
}

/// Returns the version of the schema in the file: 0 for an empty one.
async fn schema_version(connection: &mut SqliteConnection, path: &Path) -> Result<usize, StoreError> {
    const WHOSE: &str = "SELECT (SELECT user_version FROM pragma_user_version) AS version, \
                         (SELECT application_id FROM pragma_application_id) AS owner, \
                         (SELECT count(*) FROM sqlite_schema) AS tables";
    let row = sqlx::query(WHOSE).fetch_one(connection).await?;
    let owner = row.int("owner")?;
    let empty = row.int("tables")? == Some(0);
    if !(owner == Some(APPLICATION_ID) || (empty && owner == Some(0))) {
        return Err(cannot_open(path, "it is another program's database"));
    }
    let version: i64 = rows::number(&row, "version")?;
    match usize::try_from(version) {
        Ok(v) if v <= MIGRATIONS.len() => Ok(v),
        _ => Err(StoreError::NewerSchema),
    }
}
