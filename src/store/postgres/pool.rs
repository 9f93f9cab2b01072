//! The connection pool.
//!
//! Not sqlx's pool: that one pings a connection when it is returned, and a connection whose peer went silent occupies a
//! slot for as long as the ping hangs. Here a connection is returned only after an answer was read to its end; on an
//! error, a timeout or a cancellation it is closed.

use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

use crate::model::locked;
use sqlx::postgres::{PgConnectOptions, PgConnection};
use sqlx::{ConnectOptions, Connection};
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::timeout;

/// How long a new connection may take, including TLS and authentication.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long to wait for one of the connections that may be open.
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(5);
/// How long an idle connection may take to answer a ping.
const PING_TIMEOUT: Duration = Duration::from_secs(2);
/// A connection that was used more recently than this is not pinged.
const PING_AFTER: Duration = Duration::from_secs(1);
/// Connections are replaced after this time, which lets the server move and free memory.
const MAX_AGE: Duration = Duration::from_secs(1800);

/// Session settings. The limits ensure that a client that vanished does not hold a lock for long, and that a statement
/// that waits for a lock gives up well before the leases of others that wait behind it lapse. The rest keeps plans
/// steady: they are made once, for tables of any size, and by index, in the order of the arrays. No statement is worth
/// starting parallel processes, which the query for the load, with its generic plan, would request every second.
const SESSION: &str = "SET statement_timeout = '10s'; SET lock_timeout = '1s'; \
                       SET idle_in_transaction_session_timeout = '10s'; SET max_parallel_workers_per_gather = 0; \
                       SET tcp_keepalives_idle = 30; SET tcp_keepalives_interval = 10; SET tcp_keepalives_count = 3; \
                       SET default_transaction_isolation = 'read committed'; SET plan_cache_mode = force_generic_plan; \
                       SET enable_seqscan = off; SET enable_bitmapscan = off; SET enable_hashjoin = off; \
                       SET enable_mergejoin = off; SET jit = off; \
                       SET client_min_messages = warning";

pub(super) struct Pool {
    options: PgConnectOptions,
    idle: Mutex<Vec<Idle>>,
    permits: Semaphore,
}

struct Idle {
    connection: PgConnection,
    opened: Instant,
    since: Instant,
}

/// A connection in use. Dropping it closes it.
pub(super) struct PooledConnection<'a> {
    pub(super) connection: PgConnection,
    opened: Instant,
    pool: &'a Pool,
    _permit: SemaphorePermit<'a>,
}

impl Pool {
    pub(super) fn new(options: PgConnectOptions, size: usize) -> Self {
        Self { options, idle: Mutex::new(Vec::new()), permits: Semaphore::new(size) }
    }

    fn idle(&self) -> MutexGuard<'_, Vec<Idle>> {
        locked(&self.idle)
    }

    /// Returns a connection that is ready for use, within about twelve seconds.
    pub(super) async fn acquire(&self) -> Result<PooledConnection<'_>, sqlx::Error> {
        let permit = match timeout(ACQUIRE_TIMEOUT, self.permits.acquire()).await {
            Ok(permit) => permit.map_err(|_| sqlx::Error::PoolClosed)?,
            Err(_) => return Err(sqlx::Error::PoolTimedOut),
        };
        let now = Instant::now();
        let idle = self.idle().pop();
        if let Some(Idle { mut connection, opened, since }) = idle
            && now.duration_since(opened) < MAX_AGE
        {
            let fresh = now.duration_since(since) < PING_AFTER;
            if fresh || matches!(timeout(PING_TIMEOUT, connection.ping()).await, Ok(Ok(()))) {
                return Ok(PooledConnection { connection, opened, pool: self, _permit: permit });
            }
            // The other connections have been idle for longer.
            self.close_idle();
        }
        let connection = connect(&self.options).await?;
        Ok(PooledConnection { connection, opened: now, pool: self, _permit: permit })
    }

    /// Closes idle connections, because they probably broke together with another one.
    pub(super) fn close_idle(&self) {
        self.idle().clear();
    }

    /// Closes the pool. Connections in use are closed by their users.
    pub(super) async fn close(&self) {
        self.permits.close();
        let idle = std::mem::take(&mut *self.idle());
        for i in idle {
            let _ = timeout(PING_TIMEOUT, i.connection.close()).await;
        }
    }
}

impl PooledConnection<'_> {
    /// Returns the connection to the pool, after its answer was read to its end.
    pub(super) fn put_back(self) {
        if !self.pool.permits.is_closed() {
            self.pool.idle().push(Idle { connection: self.connection, opened: self.opened, since: Instant::now() });
        }
    }
}

/// Opens a new connection.
pub(super) async fn connect(options: &PgConnectOptions) -> Result<PgConnection, sqlx::Error> {
    let made = timeout(CONNECT_TIMEOUT, async {
        let mut connection = options.connect().await?;
        sqlx::raw_sql(SESSION).execute(&mut connection).await?;
        Ok(connection)
    });
    made.await.unwrap_or_else(|_| Err(timed_out("no connection", CONNECT_TIMEOUT)))
}

/// The error for something that did not arrive within `limit`.
pub(super) fn timed_out(what: &str, limit: Duration) -> sqlx::Error {
    let what = format!("{what} within {} s", limit.as_secs());
    sqlx::Error::Io(std::io::Error::new(std::io::ErrorKind::TimedOut, what))
}
