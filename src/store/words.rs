//! What the database's errors say.

use std::borrow::Cow;
use std::error::Error as StdError;
use std::fmt;

use sqlx::error::{DatabaseError, ErrorKind};

use super::StoreError;

/// An error in the database's own words, with its code, and without the names that sqlx has for kinds of errors.
pub(super) fn plainly(e: &sqlx::Error) -> String {
    match e {
        sqlx::Error::Database(e) => match e.code() {
            Some(code) => format!("{} (code {code})", e.message()),
            None => e.message().to_owned(),
        },
        sqlx::Error::Io(e) => e.to_string(),
        sqlx::Error::PoolTimedOut => "none of this process's connections was free in time".to_owned(),
        sqlx::Error::PoolClosed => "this process's connections are closed".to_owned(),
        e => e.to_string(),
    }
}

/// The same error for another caller, with its words and its code.
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
        e => sqlx::Error::Protocol(e.to_string()),
    }
}

/// What a server answered to one of several callers.
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

/// An error as if a server had answered so, for tests.
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
