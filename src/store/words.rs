//! Texts and classes of database errors.

use std::borrow::Cow;
use std::error::Error as StdError;
use std::fmt;

use sqlx::error::{DatabaseError, ErrorKind};

use super::StoreError;

/// Returns an error in the database's own words, with its code and without sqlx's names for kinds of errors.
pub(super) fn plainly(e: &sqlx::Error) -> String {
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
pub(super) fn met_a_lock(e: &sqlx::Error) -> bool {
    let Some(code) = e.as_database_error().and_then(|e| e.code()) else { return false };
    // Postgres' codes have five characters, SQLite's are shorter.
    let is_busy = |code: i32| matches!(code & 0xff, 5 | 6);
    matches!(code.as_ref(), "55P03" | "57014") || (code.len() < 5 && code.parse().is_ok_and(is_busy))
}

/// Whether the database as a whole is failing, not only one call.
pub(super) fn is_outage(e: &sqlx::Error) -> bool {
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

/// Copies an error for another caller, with its text and its code.
pub(super) fn copy(e: &StoreError) -> StoreError {
    match e {
        StoreError::Corrupt { column, why } => StoreError::Corrupt { column, why: why.clone() },
        StoreError::Database(e) => copied(e).into(),
        e => sqlx::Error::Protocol(e.to_string()).into(),
    }
}

fn copied(e: &sqlx::Error) -> sqlx::Error {
    match e {
        sqlx::Error::Database(e) => {
            let (message, code) = (e.message().to_owned(), e.code().map(Cow::into_owned));
            sqlx::Error::Database(Box::new(Copied { message, code, kind: e.kind() }))
        }
        sqlx::Error::Io(e) => sqlx::Error::Io(std::io::Error::new(e.kind(), e.to_string())),
        sqlx::Error::Tls(e) => sqlx::Error::Tls(e.to_string().into()),
        sqlx::Error::Protocol(why) => sqlx::Error::Protocol(why.clone()),
        sqlx::Error::PoolTimedOut => sqlx::Error::PoolTimedOut,
        sqlx::Error::PoolClosed => sqlx::Error::PoolClosed,
        sqlx::Error::WorkerCrashed => sqlx::Error::WorkerCrashed,
        sqlx::Error::RowNotFound => sqlx::Error::RowNotFound,
        // Concerns one row or value: not an outage, as a protocol error would be.
        e => sqlx::Error::Decode(e.to_string().into()),
    }
}

/// A copy of a server's error, for one of several callers.
#[derive(Debug)]
struct Copied {
    message: String,
    code: Option<String>,
    kind: ErrorKind,
}

impl fmt::Display for Copied {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl StdError for Copied {}

impl DatabaseError for Copied {
    fn message(&self) -> &str {
        &self.message
    }

    fn code(&self) -> Option<Cow<'_, str>> {
        self.code.as_deref().map(Cow::Borrowed)
    }

    fn as_error(&self) -> &(dyn StdError + Send + Sync + 'static) {
        self
    }

    fn as_error_mut(&mut self) -> &mut (dyn StdError + Send + Sync + 'static) {
        self
    }

    fn into_error(self: Box<Self>) -> Box<dyn StdError + Send + Sync + 'static> {
        self
    }

    fn kind(&self) -> ErrorKind {
        match self.kind {
            ErrorKind::UniqueViolation => ErrorKind::UniqueViolation,
            ErrorKind::ForeignKeyViolation => ErrorKind::ForeignKeyViolation,
            ErrorKind::NotNullViolation => ErrorKind::NotNullViolation,
            ErrorKind::CheckViolation => ErrorKind::CheckViolation,
            ErrorKind::ExclusionViolation => ErrorKind::ExclusionViolation,
            _ => ErrorKind::Other,
        }
    }
}

/// An error as a server would return it, for tests.
#[cfg(test)]
pub(crate) fn answered(message: &str, code: &str) -> StoreError {
    let (message, code) = (message.to_owned(), Some(code.to_owned()));
    sqlx::Error::Database(Box::new(Copied { message, code, kind: ErrorKind::Other })).into()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn an_outage_is_told_from_a_call_that_failed_by_itself() {
        // Postgres: no connection, wrong password, read-only, disk full, too many clients, starting, I/O error. SQLite:
        // read-only folder, I/O error, full.
        for code in ["08006", "28P01", "25006", "53100", "53300", "57P03", "58030", "1544", "266", "13"] {
            assert!(answered("made up", code).is_outage(), "{code}");
            assert!(copy(&answered("made up", code)).is_outage(), "a copy of {code}");
        }
        // Content, a constraint, a limit exceeded, deadlock, a lock held elsewhere, a statement that took too long;
        // busy.
        for code in ["22021", "23505", "54000", "40P01", "55P03", "57014", "5", "261", "19"] {
            assert!(!answered("made up", code).is_outage(), "{code}");
        }
        assert!(StoreError::Database(sqlx::Error::PoolTimedOut).is_outage());
        assert!(!StoreError::Database(sqlx::Error::RowNotFound).is_outage());
    }

    #[test]
    fn a_copy_says_what_the_database_said_and_keeps_its_code() {
        let error = answered("sorry, too many clients already", "53300");
        for error in [copy(&error), copy(&copy(&error))] {
            assert_eq!(error.to_string(), "database: sorry, too many clients already (code 53300)");
            let StoreError::Database(e) = error else { panic!("{error}") };
            assert_eq!(e.as_database_error().unwrap().code().as_deref(), Some("53300"));
        }
        let refused = || std::io::Error::from(std::io::ErrorKind::ConnectionRefused);
        let error = copy(&StoreError::Database(refused().into()));
        assert_eq!(error.to_string(), format!("database: {}", refused()));
        assert!(matches!(error, StoreError::Database(sqlx::Error::Io(_))), "{error:?}");
    }
}
