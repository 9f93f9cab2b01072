//! A connection that is re-established when it breaks.

use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, Client, Cmd, ErrorKind, FromRedisValue, RedisError, RedisResult, ScriptInvocation};
use tokio::sync::Mutex;
use tokio::time::Instant;

use super::QueueError;
use crate::model::jitter;

/// Maximum wait for a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Maximum wait for an answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// The scripts' error code for a client of another database.
const FOREIGN: &str = "FOREIGN";
const BACKOFF: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(5));

/// A connection with its own time limits. The crate's response timeout is off, because it breaks blocking reads, and
/// its connection manager would keep using a connection whose peer went silent.
pub(super) struct Link {
    client: Client,
    address: String,
    /// Texts that no error may show.
    secrets: Vec<String>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    live: Option<MultiplexedConnection>,
    /// Number of the current connection, so that a broken connection is dropped only once.
    number: u64,
    failures: u32,
    /// No connection attempt before this time, and the error of the last one.
    pause: Option<(Instant, QueueError)>,
}

impl Link {
    /// Creates the link, which connects on first use.
    pub(super) fn new(client: Client) -> Self {
        let info = client.get_connection_info();
        let password = info.redis_settings().password().filter(|p| !p.is_empty());
        let encoded = |p: &str| url::form_urlencoded::byte_serialize(p.as_bytes()).collect::<String>();
        let secrets = password.map(|p| vec![p.to_owned(), encoded(p)]).unwrap_or_default();
        let address = info.addr().to_string();
        Self { client, address, secrets, state: Mutex::default() }
    }

    /// Runs a script, sending its source if the server does not have it.
    pub(super) async fn script<T: FromRedisValue>(&self, script: &ScriptInvocation<'_>) -> Result<T, QueueError> {
        let (number, mut connection) = self.connection().await?;
        let result = with_timeout(ANSWER_TIMEOUT, script.invoke_async(&mut connection)).await;
        if !self.broken(number, &result).await {
            return result.map_err(|e| self.error(&e));
        }
        // The server, or something in between, had closed the connection. Every script can safely run twice.
        let (number, mut connection) = self.connection().await?;
        let result = with_timeout(ANSWER_TIMEOUT, script.invoke_async(&mut connection)).await;
        self.broken(number, &result).await;
        result.map_err(|e| self.error(&e))
    }

    /// Runs a command that may block for `blocks`, with the usual time limit on top.
    pub(super) async fn command<T: FromRedisValue>(&self, cmd: &Cmd, blocks: Duration) -> Result<T, QueueError> {
        let (number, mut connection) = self.connection().await?;
        let result = with_timeout(blocks + ANSWER_TIMEOUT, cmd.query_async(&mut connection)).await;
        self.broken(number, &result).await;
        result.map_err(|e| self.error(&e))
    }

    /// Returns the connection and its number. While one attempt to connect is in progress, other callers wait for it
    /// and share its outcome.
    async fn connection(&self) -> Result<(u64, MultiplexedConnection), QueueError> {
        let mut state = self.state.lock().await;
        if let Some(live) = &state.live {
            return Ok((state.number, live.clone()));
        }
        if let Some((until, error)) = &state.pause
            && Instant::now() < *until
        {
            return Err(error.clone());
        }
        let config =
            AsyncConnectionConfig::new().set_connection_timeout(Some(CONNECT_TIMEOUT)).set_response_timeout(None);
        let made =
            with_timeout(CONNECT_TIMEOUT, self.client.get_multiplexed_async_connection_with_config(&config)).await;
        match made {
            Ok(live) => {
                state.number += 1;
                (state.failures, state.pause, state.live) = (0, None, Some(live.clone()));
                Ok((state.number, live))
            }
            Err(e) => {
                let error = self.error(&e);
                state.failures = state.failures.saturating_add(1);
                state.pause = Some((Instant::now() + backoff(state.failures), error.clone()));
                Err(error)
            }
        }
    }

    /// Drops a connection that returned this result if it is unusable. Returns true if the connection had already been
    /// closed when it was used, so that a new one may succeed.
    async fn broken<T>(&self, number: u64, result: &RedisResult<T>) -> bool {
        let Err(e) = result else { return false };
        // A primary that was demoted keeps its connections; a new one may lead to the new primary.
        let useless = e.is_io_error() || e.is_unrecoverable_error() || is_read_only(e);
        if useless {
            let mut state = self.state.lock().await;
            if state.number == number {
                state.live = None;
            }
        }
        useless && e.is_connection_dropped()
    }

    fn error(&self, e: &RedisError) -> QueueError {
        match (e.kind(), e.code()) {
            (ErrorKind::AuthenticationFailed, _) | (_, Some("NOAUTH" | "WRONGPASS")) => QueueError::Unfit(self.text(e)),
            (_, Some("NOPERM")) => QueueError::NotPermitted(self.text(e)),
            (_, Some(FOREIGN)) => QueueError::Unavailable(e.detail().unwrap_or_default().to_owned()),
            _ => QueueError::Unavailable(self.text(e)),
        }
    }

    fn text(&self, e: &RedisError) -> String {
        let mut text = e.to_string();
        for secret in &self.secrets {
            text = text.replace(secret.as_str(), "***");
        }
        if let Some((end, _)) = text.char_indices().nth(300) {
            text.truncate(end);
            text.push('…');
        }
        format!("{}: {text}", self.address)
    }
}

async fn with_timeout<T>(limit: Duration, work: impl Future<Output = RedisResult<T>>) -> RedisResult<T> {
    match tokio::time::timeout(limit, work).await {
        Ok(result) => result,
        Err(_) => {
            let what = format!("no answer within {} s", limit.as_secs());
            Err(RedisError::from(std::io::Error::new(std::io::ErrorKind::TimedOut, what)))
        }
    }
}

/// Returns the delay after this number of consecutive failures: doubled each time, up to half of it random.
pub(super) fn backoff(failures: u32) -> Duration {
    let whole = BACKOFF.0.saturating_mul(1 << failures.saturating_sub(1).min(10)).min(BACKOFF.1);
    whole.mul_f64(0.5 + jitter() / 2.0)
}

/// Returns an error for a reply that this program does not understand.
pub(super) fn invalid(what: &'static str) -> RedisError {
    RedisError::from((ErrorKind::UnexpectedReturnType, what))
}

/// Whether the server refused a write because it is a replica. Redis 6.2 says so inside the error of the script.
fn is_read_only(e: &RedisError) -> bool {
    e.code() == Some("READONLY") || e.detail().is_some_and(|text| text.contains("-READONLY "))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    /// The error of a server that replies with this line.
    fn error(line: &str) -> RedisError {
        let reply = redis::parse_redis_value(format!("-{line}\r\n").as_bytes()).unwrap();
        reply.extract_error().unwrap_err()
    }

    #[test]
    fn errors_are_told_apart_by_their_codes() {
        let link = Link::new(Client::open("redis://127.0.0.1").unwrap());
        for line in ["NOAUTH Authentication required.", "WRONGPASS invalid username-password pair"] {
            let got = link.error(&error(line));
            assert!(matches!(got, QueueError::Unfit(_)), "{line}: {got:?}");
        }
        let got = link.error(&error("NOPERM this user has no permissions to run the 'info' command"));
        assert!(matches!(&got, QueueError::NotPermitted(why) if why.contains("'info'")), "{got:?}");
        let got = link.error(&error("FOREIGN workers of another database have this queue"));
        assert_eq!(got, QueueError::Unavailable("workers of another database have this queue".to_owned()));
        for line in ["OOM command not allowed", "ERR NOPERM is only a word here"] {
            let got = link.error(&error(line));
            assert!(matches!(got, QueueError::Unavailable(_)), "{line}: {got:?}");
        }
    }

    #[test]
    fn a_replica_is_told_by_what_any_version_says() {
        for line in [
            "READONLY You can't write against a read only replica.",
            "ERR Error running script (call to f_0123): @user_script:3: @user_script: 3: -READONLY You can't write against \
             a read only replica.",
        ] {
            assert!(is_read_only(&error(line)), "{line}");
        }
        for line in ["ERR Error running script (call to f_0123): @user_script:3: READONLY", "OOM command not allowed"] {
            assert!(!is_read_only(&error(line)), "{line}");
        }
    }
}
