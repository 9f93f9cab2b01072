//! Errors of a store, and what a database's errors mean.

use std::sync::Arc;

use crate::model::{CircuitName, JobId, io_reason};

/// Errors of a store. None of them, and none of their sources, has the password of the database.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// No circuit with that name is registered.
    #[error("no circuit {0} is registered")]
    UnknownCircuit(CircuitName),
    /// The id or the idempotency key belongs to a job with another body, or the key to one that was rejected.
    #[error("{what} is taken by job {id}, which {holder}")]
    Conflict {
        /// "idempotency key …" or "id …".
        what: String,
        /// The job that has it.
        id: JobId,
        /// How that job differs: "asks for something else: …" or "was rejected: …".
        holder: String,
    },
    /// The circuit is needed by unfinished jobs.
    #[error("circuit {name} has {unfinished} unfinished jobs; cancel them first")]
    InUse {
        /// The circuit.
        name: CircuitName,
        /// Number of queued or running jobs.
        unfinished: u64,
    },
    /// Others changed the job between the statements of this call, at each of its tries.
    #[error("job {0} was changed by others at every try; repeat the call")]
    Contended(JobId),
    /// The schema was written by a newer version of this program.
    #[error("the database's schema is newer than this program; use the newer version of prover-worker")]
    NewerSchema,
    /// The server does not support the SQL used here.
    #[error("cannot open the store {what}: expected Postgres 13 or later, got version number {got}")]
    ServerTooOld {
        /// Its URL, without user name and password.
        what: String,
        /// Its version, as in `server_version_num`.
        got: i64,
    },
    /// The URL of the database cannot be parsed.
    #[error("cannot open the store of DATABASE_URL: expected postgres://USER:PASSWORD@HOST:PORT/NAME; {0}")]
    InvalidUrl(#[source] sqlx::Error),
    /// The store cannot be opened, or its file is no longer the one that was opened.
    #[error("cannot open the store {what}: {why}")]
    Open {
        /// Its path, or its URL without user name and password.
        what: String,
        /// The reason.
        #[source]
        why: Cause,
    },
    /// The database cannot be reached, perhaps only for now: it is starting, or has no connection to spare.
    #[error("the database {what} cannot be reached: {why}")]
    Unreachable {
        /// Its path, or its URL without user name and password.
        what: String,
        /// The reason.
        #[source]
        why: Cause,
    },
    /// The database answers, but accepts no writes.
    #[error("the database {what} takes no writes: {why}")]
    Unwritable {
        /// Its path, or its URL without user name and password.
        what: String,
        /// The reason.
        #[source]
        why: Cause,
    },
    /// The database failed.
    #[error("database: {}", describe(.0))]
    Database(#[from] sqlx::Error),
    /// A column holds a value that cannot be read.
    #[error("database: cannot read column {column}: {why}")]
    Corrupt {
        /// The column.
        column: &'static str,
        /// Why it cannot be read.
        why: String,
    },
    /// The error of one statement for several calls, each of which gets it.
    #[error(transparent)]
    Shared(Arc<Self>),
}

/// Why a database cannot be opened, reached or written to.
#[derive(Debug, thiserror::Error)]
pub enum Cause {
    /// An error of the database or of its client.
    #[error("{}", describe(.0))]
    Database(#[from] sqlx::Error),
    /// An error of the operating system about the database's file.
    #[error("{}", io_reason(.0))]
    File(#[from] std::io::Error),
    /// Something that this program found out.
    #[error("{0}")]
    Found(&'static str),
}

impl From<&'static str> for Cause {
    fn from(what: &'static str) -> Self {
        Self::Found(what)
    }
}

impl StoreError {
    /// Whether the database as a whole is failing, so that other calls would fail too: it does not answer, is full, or
    /// accepts no writes. Otherwise only this call failed, because of its content or of a lock held elsewhere.
    pub fn is_outage(&self) -> bool {
        match self {
            Self::Unreachable { .. }
            | Self::Open { .. }
            | Self::InvalidUrl(_)
            | Self::ServerTooOld { .. }
            | Self::Unwritable { .. } => true,
            Self::Database(e) => is_outage(e),
            Self::Shared(e) => e.is_outage(),
            Self::UnknownCircuit(_)
            | Self::Conflict { .. }
            | Self::InUse { .. }
            | Self::Contended(_)
            | Self::NewerSchema
            | Self::Corrupt { .. } => false,
        }
    }

    /// Whether the call waited in vain for a lock that another session holds.
    pub fn is_lock_timeout(&self) -> bool {
        match self {
            Self::Database(e) => is_lock_timeout(e),
            Self::Shared(e) => e.is_lock_timeout(),
            _ => false,
        }
    }
}

/// Returns an error in the database's own words, with its code and without sqlx's names for kinds of errors.
fn describe(e: &sqlx::Error) -> String {
    match e {
        sqlx::Error::Database(e) => match e.code() {
            Some(code) => format!("{} (code {code})", e.message()),
            None => e.message().to_owned(),
        },
        sqlx::Error::Io(e) => e.to_string(),
        sqlx::Error::PoolTimedOut => "timed out waiting for a free connection of this process".to_owned(),
        sqlx::Error::PoolClosed => "this process's connections are closed".to_owned(),
        e => e.to_string(),
    }
}

/// Whether a call waited in vain for a lock that another session holds: in Postgres a `lock_timeout` or a
/// `statement_timeout`, in SQLite `SQLITE_BUSY` or `SQLITE_LOCKED` with their extended codes.
pub(super) fn is_lock_timeout(e: &sqlx::Error) -> bool {
    let Some(code) = e.as_database_error().and_then(|e| e.code()) else { return false };
    // Postgres' codes have five characters, SQLite's are shorter.
    let is_busy = |code: i32| matches!(code & 0xff, 5 | 6);
    matches!(code.as_ref(), "55P03" | "57014") || (code.len() < 5 && code.parse().is_ok_and(is_busy))
}

/// Whether the database as a whole is failing, not only one call.
fn is_outage(e: &sqlx::Error) -> bool {
    use sqlx::Error::{Database, Io, PoolClosed, PoolTimedOut, Protocol, Tls, WorkerCrashed};
    match e {
        Io(_) | Tls(_) | Protocol(_) | PoolTimedOut | PoolClosed | WorkerCrashed => true,
        Database(e) => e.code().is_some_and(|code| is_code_of_outage(&code)),
        _ => false,
    }
}

/// Postgres' codes have five characters, SQLite's are numbers of four digits at most.
fn is_code_of_outage(code: &str) -> bool {
    if code.len() == 5 {
        // Connections; authentication; missing database; resources (disk, memory, connections); shutdown and crash;
        // system errors. And a server that accepts no writes.
        const CLASSES: [&str; 7] = ["08", "28", "3D", "53", "57P", "58", "25006"];
        return CLASSES.iter().any(|class| code.starts_with(class));
    }
    // The low byte is the primary code: read-only, I/O error, corrupt, full, cannot open, not a database.
    code.parse::<u32>().is_ok_and(|code| matches!(code & 0xff, 8 | 10 | 11 | 13 | 14 | 26))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::borrow::Cow;
    use std::error::Error;
    use std::fmt;

    use sqlx::error::{DatabaseError, ErrorKind};

    use super::*;

    /// An error as a server would return it.
    #[derive(Debug)]
    struct ServerError {
        message: &'static str,
        code: &'static str,
    }

    impl fmt::Display for ServerError {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str(self.message)
        }
    }

    impl Error for ServerError {}

    impl DatabaseError for ServerError {
        fn message(&self) -> &str {
            self.message
        }

        fn code(&self) -> Option<Cow<'_, str>> {
            Some(self.code.into())
        }

        fn as_error(&self) -> &(dyn Error + Send + Sync + 'static) {
            self
        }

        fn as_error_mut(&mut self) -> &mut (dyn Error + Send + Sync + 'static) {
            self
        }

        fn into_error(self: Box<Self>) -> Box<dyn Error + Send + Sync + 'static> {
            self
        }

        fn kind(&self) -> ErrorKind {
            ErrorKind::Other
        }
    }

    fn returned(message: &'static str, code: &'static str) -> StoreError {
        sqlx::Error::Database(Box::new(ServerError { message, code })).into()
    }

    fn shared(error: StoreError) -> StoreError {
        StoreError::Shared(Arc::new(error))
    }

    #[test]
    fn an_outage_is_told_from_a_call_that_failed_by_itself() {
        // Postgres: no connection, wrong password, read-only, disk full, too many clients, starting, I/O error. SQLite:
        // read-only folder, I/O error, full.
        for code in ["08006", "28P01", "25006", "53100", "53300", "57P03", "58030", "1544", "266", "13"] {
            assert!(returned("made up", code).is_outage(), "{code}");
            assert!(shared(returned("made up", code)).is_outage(), "shared {code}");
        }
        // Content, a constraint, a limit exceeded, deadlock, a lock held elsewhere, a statement that took too long;
        // busy.
        for code in ["22021", "23505", "54000", "40P01", "55P03", "57014", "5", "261", "19"] {
            assert!(!returned("made up", code).is_outage(), "{code}");
            assert!(!shared(returned("made up", code)).is_outage(), "shared {code}");
        }
        assert!(StoreError::Database(sqlx::Error::PoolTimedOut).is_outage());
        assert!(!StoreError::Database(sqlx::Error::RowNotFound).is_outage());
        assert!(!shared(StoreError::Corrupt { column: "state", why: "made up".to_owned() }).is_outage());
    }

    #[test]
    fn a_lock_timeout_is_told_from_other_errors() {
        for (code, expected) in
            [("55P03", true), ("57014", true), ("5", true), ("262", true), ("40P01", false), ("13", false)]
        {
            assert_eq!(returned("made up", code).is_lock_timeout(), expected, "{code}");
            assert_eq!(shared(returned("made up", code)).is_lock_timeout(), expected, "shared {code}");
        }
    }

    #[test]
    fn a_shared_error_reads_like_the_original_and_has_its_source() {
        let error = shared(returned("sorry, too many clients already", "53300"));
        assert_eq!(error.to_string(), "database: sorry, too many clients already (code 53300)");
        assert!(error.source().unwrap().is::<sqlx::Error>());
    }
}
