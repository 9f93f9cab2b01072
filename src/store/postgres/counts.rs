//! How many jobs there are, by state.

use super::session::{Retries, Session};
use super::statements;
use crate::model::JobState;
use crate::store::rows::{self, Columns, corrupt};
use crate::store::{Counts, Load, StoreError};

/// Number of ended jobs up to which they are counted one by one.
const COUNTED_ENDED: u32 = 100_000;

impl Session {
    /// Counts ended jobs, or estimates their number if there are too many.
    pub(super) async fn count_ended(&self) -> Result<Counts, StoreError> {
        let bounded = |sql: &'static str| {
            self.rows(Retries::Always, move || {
                sqlx::query(sql).bind(self.settings.queue.clone()).bind(i64::from(COUNTED_ENDED) + 1)
            })
        };
        let bound = u64::from(COUNTED_ENDED);
        let near = rows::counts(&bounded(statements::ENDED).await?)?;
        if near.done + near.failed + near.cancelled <= bound {
            return Ok(near);
        }
        let mut counts = rows::counts(&bounded(statements::FAILED_AND_CANCELLED).await?)?;
        counts.estimated = true;
        counts.done = near.done.max(self.estimate(JobState::Done).await?);
        for (n, state) in [(&mut counts.failed, JobState::Failed), (&mut counts.cancelled, JobState::Cancelled)] {
            if *n > bound {
                *n = self.estimate(state).await?.max(*n);
            }
        }
        Ok(counts)
    }

    /// Returns the number of jobs of this queue in this state by the server's statistics, which its vacuum maintains.
    async fn estimate(&self, state: JobState) -> Result<u64, StoreError> {
        let quoted = self.row(Retries::Always, || sqlx::query("SELECT quote_literal($1) AS queue").bind(self.queue()));
        let queue = quoted.await?.map(|r| r.text("queue")).transpose()?.flatten().unwrap_or_default();
        let sql = statements::estimate(&queue, state.as_str());
        // Consists of constants and of what the server quoted.
        let explain = || sqlx::query(sqlx::AssertSqlSafe(sql.clone())).persistent(false);
        let plan = self.row(Retries::Always, explain).await?;
        let plan = plan.map(|r| r.text("QUERY PLAN")).transpose()?.flatten().unwrap_or_default();
        let rows = plan.split_once("rows=").and_then(|(_, rest)| rest.split_whitespace().next()?.parse().ok());
        rows.ok_or_else(|| corrupt("QUERY PLAN", format!("expected rows=NUMBER, got {plan:?}")))
    }

    /// Reads the load, counting at most this many queued jobs; `None` counts all.
    pub(super) async fn query_load(&self, at_most: Option<u64>) -> Result<Load, StoreError> {
        let at_most = at_most.map(|n| i64::try_from(n).unwrap_or(i64::MAX));
        let row =
            self.row(Retries::Always, || sqlx::query(statements::LOAD).bind(self.settings.queue.clone()).bind(at_most));
        rows::load(&row.await?.ok_or(sqlx::Error::RowNotFound)?)
    }
}
