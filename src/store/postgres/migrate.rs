//! Migrations of the schema.

use sqlx::Connection;
use sqlx::postgres::PgConnection;

use crate::store::StoreError;
use crate::store::rows::{self, Columns};

/// Migrations in order: the first takes the schema from version 0 to 1, and so on. Never edit one that was released.
const MIGRATIONS: [&str; 3] = [
    include_str!("../../../migrations/postgres/0001_jobs.sql"),
    include_str!("../../../migrations/postgres/0002_waiting.sql"),
    include_str!("../../../migrations/postgres/0003_removable_content.sql"),
];
/// The advisory lock held during a migration ("PrvW").
const MIGRATION_LOCK: i64 = 0x5072_7657;
/// The oldest server version that supports the SQL used here, as in `server_version_num`. [`StoreError::ServerTooOld`]
/// names it.
const MIN_SERVER: i64 = 130_000;

/// Brings the schema of the database `what` up to date, one transaction for each version, with the lock held, whichever
/// process comes first.
pub(super) async fn migrate(connection: &mut PgConnection, what: &str) -> Result<(), StoreError> {
    let row = sqlx::query("SELECT current_setting('server_version_num')::bigint AS version")
        .fetch_one(&mut *connection)
        .await?;
    let server: i64 = rows::number(&row, "version")?;
    if server < MIN_SERVER {
        return Err(StoreError::ServerTooOld { what: what.to_owned(), got: server });
    }
    loop {
        let mut tx = connection.begin().await?;
        // A migration of a large table by another process may take long.
        sqlx::raw_sql("SET LOCAL statement_timeout = '30min'; SET LOCAL lock_timeout = 0").execute(&mut *tx).await?;
        sqlx::query("SELECT pg_advisory_xact_lock($1)::text").bind(MIGRATION_LOCK).fetch_all(&mut *tx).await?;
        let row =
            sqlx::query("SELECT to_regclass('prover_worker_schema') IS NOT NULL AS made").fetch_one(&mut *tx).await?;
        if row.flag("made")? != Some(true) {
            const TABLE: &str = "CREATE TABLE prover_worker_schema (version bigint NOT NULL PRIMARY KEY, \
                                 since timestamptz NOT NULL DEFAULT now())";
            sqlx::raw_sql(TABLE).execute(&mut *tx).await?;
        }
        let row = sqlx::query("SELECT coalesce(max(version), 0) AS version FROM prover_worker_schema")
            .fetch_one(&mut *tx)
            .await?;
        let version: usize = rows::number(&row, "version")?;
        if version > MIGRATIONS.len() {
            return Err(StoreError::NewerSchema);
        }
        let Some(migration) = MIGRATIONS.get(version) else {
            tx.rollback().await?;
            return Ok(());
        };
        sqlx::raw_sql(*migration).execute(&mut *tx).await?;
        sqlx::query("INSERT INTO prover_worker_schema (version) VALUES ($1)")
            .bind(version as i64 + 1)
            .execute(&mut *tx)
            .await?;
        tx.commit().await?;
    }
}
