//! Connections.
//!
//! Not sqlx's pool: that pings a connection when it is given back, and one whose other end went silent keeps its place
//! for as long as the ping hangs. Here a connection goes back only after an answer was read to its end; whoever fails,
//! runs out of time or is cancelled closes it.

use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

use crate::model::locked;
use sqlx::postgres::{PgConnectOptions, PgConnection};
use sqlx::{ConnectOptions, Connection};
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::timeout;

/// How long a new connection may take, with TLS and log-in.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long to wait for one of the connections.
const TAKE_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a connection that lay idle may take to show that it lives.
const PING_TIMEOUT: Duration = Duration::from_secs(2);
/// One that was used more recently is taken to live.
const PING_AFTER: Duration = Duration::from_secs(1);
/// Connections are made anew now and then, which lets the server move and shed memory.
const MAX_AGE: Duration = Duration::from_secs(1800);

/// Limits of a session, so that a client that vanished holds no lock for long, and that whoever waits for one gives up
/// well before the leases of others who wait behind it lapse; and what keeps plans steady: they are made once, for tables
/// of any size, and by index, in the order of the arrays. No statement is worth the start of parallel processes, which
/// the look at the load, generic as its plan is, would ask for each second.
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
    places: Semaphore,
}

struct Idle {
    connection: PgConnection,
    born: Instant,
    since: Instant,
}

/// A connection in hand. Dropping it closes it.
pub(super) struct Taken<'a> {
    pub(super) connection: PgConnection,
    born: Instant,
    pool: &'a Pool,
    _place: SemaphorePermit<'a>,
}

impl Pool {
    pub(super) fn new(options: PgConnectOptions, size: usize) -> Self {
        Self { options, idle: Mutex::new(Vec::new()), places: Semaphore::new(size) }
    }

    fn idle(&self) -> MutexGuard<'_, Vec<Idle>> {
        locked(&self.idle)
    }

    /// A connection that is ready, within about twelve seconds.
    pub(super) async fn take(&self) -> Result<Taken<'_>, sqlx::Error> {
        let place = match timeout(TAKE_TIMEOUT, self.places.acquire()).await {
            Ok(place) => place.map_err(|_| sqlx::Error::PoolClosed)?,
            Err(_) => return Err(sqlx::Error::PoolTimedOut),
        };
        let now = Instant::now();
        let found = self.idle().pop();
        if let Some(Idle { mut connection, born, since }) = found
            && now.duration_since(born) < MAX_AGE
        {
            let fresh = now.duration_since(since) < PING_AFTER;
            if fresh || matches!(timeout(PING_TIMEOUT, connection.ping()).await, Ok(Ok(()))) {
                return Ok(Taken { connection, born, pool: self, _place: place });
            }
            // The others lay idle for longer.
            self.forget_idle();
        }
        let connection = connect(&self.options).await?;
        Ok(Taken { connection, born: now, pool: self, _place: place })
    }

    /// Closes connections that are not in use, since they probably died with another.
    pub(super) fn forget_idle(&self) {
        self.idle().clear();
    }

    /// Gives out no more. Connections in use are closed by their users.
    pub(super) async fn close(&self) {
        self.places.close();
        let idle = std::mem::take(&mut *self.idle());
        for i in idle {
            let _ = timeout(PING_TIMEOUT, i.connection.close()).await;
        }
    }
}

impl Taken<'_> {
    /// For the next one, now that the answer was read to its end.
    pub(super) fn give_back(self) {
        if !self.pool.places.is_closed() {
            self.pool.idle().push(Idle { connection: self.connection, born: self.born, since: Instant::now() });
        }
    }
}

/// A new connection.
pub(super) async fn connect(options: &PgConnectOptions) -> Result<PgConnection, sqlx::Error> {
    let made = timeout(CONNECT_TIMEOUT, async {
        let mut connection = options.connect().await?;
        sqlx::raw_sql(SESSION).execute(&mut connection).await?;
        Ok(connection)
    });
    made.await.unwrap_or_else(|_| Err(late("no connection within 5 s")))
}

/// What did not come in time.
pub(super) fn late(what: &str) -> sqlx::Error {
    sqlx::Error::Io(std::io::Error::new(std::io::ErrorKind::TimedOut, what.to_owned()))
}
