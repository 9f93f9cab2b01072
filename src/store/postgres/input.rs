//! Reading of large inputs.
//!
//! In parts, each by a statement of its own and within the limits of any other: one statement for an input of 1 GiB
//! would need limits of many minutes, hold a connection for as long, and begin again from the start where a connection
//! breaks. An input does not change while an attempt holds its job, which each statement checks.

use sqlx::Row;
use zeroize::Zeroizing;

use super::calls::fenced;
use super::session::{Retries, Session};
use super::statements;
use crate::model::{Attempt, JobId};
use crate::store::StoreError;
use crate::store::rows::{self, corrupt};

/// Bytes read by one statement. The server gives up on it after 10 s, so that a network that carries 105 kB/s is enough
/// for as many reads as there may be at the same time.
const PART: i32 = 256 << 10;

impl Session {
    /// Reads the input of a job; `None` if the attempt does not hold it.
    pub(super) async fn input(&self, job: JobId, attempt: Attempt) -> Result<Option<Zeroizing<Vec<u8>>>, StoreError> {
        let _place = self.large_reads.acquire().await.map_err(|_| sqlx::Error::PoolClosed)?;
        let mut input = Zeroizing::new(Vec::new());
        loop {
            let next = i32::try_from(input.len() + 1).map_err(|e| corrupt("input", e))?;
            let row = self.row(Retries::Always, || {
                fenced(statements::INPUT, job, attempt).bind(attempt.submission).bind(next).bind(PART)
            });
            let Some(row) = row.await? else { return Ok(None) };
            let length: usize = rows::number(&row, "length")?;
            if input.is_empty() {
                // Once, so that growing leaves no copies behind.
                input.reserve_exact(length);
            }
            let part: &[u8] = row.try_get("part").map_err(|e| corrupt("input", e))?;
            input.extend_from_slice(part);
            if input.len() >= length {
                return Ok(Some(input));
            }
            if part.is_empty() {
                return Err(corrupt("input", format!("expected {length} bytes, got {}", input.len())));
            }
        }
    }
}
