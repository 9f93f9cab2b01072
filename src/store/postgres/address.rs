//! The URL of a database.

use std::str::FromStr;

use sqlx::postgres::PgConnectOptions;
use tracing::subscriber::{NoSubscriber, with_default};

use super::super::StoreError;

/// The parameters that sqlx reads, apart from `options[…]`.
const KNOWN: [&str; 18] = [
    "application_name",
    "dbname",
    "host",
    "hostaddr",
    "options",
    "password",
    "port",
    "ssl-ca",
    "ssl-cert",
    "ssl-key",
    "ssl-mode",
    "ssl-root-cert",
    "sslcert",
    "sslkey",
    "sslmode",
    "sslrootcert",
    "statement-cache-capacity",
    "user",
];

/// Parses `postgres://USER:PASSWORD@HOST:PORT/NAME?PARAMETER=VALUE`. Unknown parameters are ignored, with a warning
/// that names them. sqlx would log their values as well, which may be secret, such as that of `sslpassword`.
pub(super) fn options(url: &str) -> Result<PgConnectOptions, StoreError> {
    let options = with_default(NoSubscriber::new(), || PgConnectOptions::from_str(url));
    let options = options.map_err(StoreError::InvalidUrl)?;
    // sqlx has parsed it.
    for (parameter, _) in url::Url::parse(url).iter().flat_map(url::Url::query_pairs) {
        if !KNOWN.contains(&parameter.as_ref()) && !parameter.starts_with("options[") {
            tracing::warn!(%parameter, "DATABASE_URL has an unknown parameter, which is ignored");
        }
    }
    Ok(options)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::io::{self, Write};
    use std::sync::{Arc, Mutex};

    use super::*;
    use crate::model::locked;

    #[derive(Clone, Default)]
    struct Log(Arc<Mutex<Vec<u8>>>);

    impl Write for Log {
        fn write(&mut self, text: &[u8]) -> io::Result<usize> {
            locked(&self.0).write(text)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn unknown_parameters_are_named_without_their_values() {
        let log = Log::default();
        let writer = log.clone();
        let subscriber = tracing_subscriber::fmt().with_ansi(false).with_writer(move || writer.clone()).finish();
        let url = "postgres://u:secret@h:7/db?sslmode=disable&sslpassword=hunter2&options[a]=b";
        let options = with_default(subscriber, || options(url)).unwrap();
        assert_eq!((options.get_host(), options.get_port(), options.get_database()), ("h", 7, Some("db")));
        let log = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
        assert!(log.contains("parameter=sslpassword") && log.lines().count() == 1, "{log}");
        assert!(!log.contains("hunter2") && !log.contains("secret"), "{log}");
    }
}
