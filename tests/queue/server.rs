//! Redis servers for tests.

use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use prover_worker::queue::{QueueError, RedisQueue, RedisSettings};
use redis::{Client, Value};

use crate::conformance::Factory;
use crate::wait::{HANG, until_async, until_async_ok};

/// Long enough that nothing is reclaimed in a test that is not about reclaiming.
pub const LONG: Duration = Duration::from_secs(600);

pub fn settings(url: &str, queue: &str) -> RedisSettings {
    RedisSettings {
        url: url.into(),
        queue: queue.into(),
        consumer: uuid::Uuid::new_v4().to_string(),
        reclaim_after: LONG,
        max_message: 1 << 20,
    }
}

/// The server that tests share, each under its own queue names.
pub struct Shared(Mutex<Vec<String>>);

pub fn shared_url() -> String {
    std::env::var("TEST_REDIS_URL").unwrap_or_else(|_| "redis://127.0.0.1:6379".into())
}

impl Shared {
    pub const fn new() -> Self {
        Self(Mutex::new(Vec::new()))
    }

    /// Returns a unique queue name.
    pub fn name(&self) -> String {
        let name = format!("pw-test-{}", uuid::Uuid::new_v4());
        self.0.lock().unwrap().push(name.clone());
        name
    }
}

impl Factory for Shared {
    type Queue = RedisQueue;

    async fn fresh(&self) -> RedisQueue {
        RedisQueue::open(settings(&shared_url(), &self.name())).await.unwrap()
    }

    async fn clean(&self) {
        let names = std::mem::take(&mut *self.0.lock().unwrap());
        for name in names {
            let bands = ["", ":high", ":low", ":again", ":high:again", ":low:again"];
            let others = [":ids", ":delayed", ":delayed:priority", ":inbox", ":aside", ":ended", ":wake", ":database"];
            let keys: Vec<String> = bands.iter().chain(&others).map(|s| format!("{name}{s}")).collect();
            let left: Vec<String> = raw(&shared_url(), &["KEYS", &format!("{name}*")]).await;
            assert!(left.iter().all(|k| keys.contains(k)), "expected no key but {keys:?}, got {left:?}");
            let mut del = vec!["DEL"];
            del.extend(keys.iter().map(String::as_str));
            let _deleted: u64 = raw(&shared_url(), &del).await;
        }
    }
}

/// Runs one command on its own connection.
pub async fn try_raw<T: redis::FromRedisValue>(url: &str, parts: &[&str]) -> redis::RedisResult<T> {
    let config =
        redis::AsyncConnectionConfig::new().set_connection_timeout(Some(HANG)).set_response_timeout(Some(HANG));
    let client = Client::open(url).unwrap();
    let mut connection = client.get_multiplexed_async_connection_with_config(&config).await?;
    let mut cmd = redis::cmd(parts[0]);
    cmd.arg(&parts[1..]);
    cmd.query_async(&mut connection).await
}

pub async fn raw<T: redis::FromRedisValue>(url: &str, parts: &[&str]) -> T {
    try_raw(url, parts).await.unwrap()
}

/// A server of one test, killed when dropped.
pub struct Private {
    child: Child,
    pub port: u16,
    pub dir: tempfile::TempDir,
    args: Vec<String>,
}

impl Private {
    pub async fn start(args: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let args: Vec<String> = args.iter().map(|s| s.to_string()).collect();
        // Between the choice of a port and its use another process may take it.
        for _ in 0..20 {
            let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
            let child = spawn(port, dir.path(), &args);
            let mut server = Self { child, port, dir: tempfile::tempdir().unwrap(), args: args.clone() };
            if server.is_up().await {
                server.dir = dir;
                return server;
            }
        }
        panic!("no redis-server came up");
    }

    /// Returns whether it listens (on its port or, without TCP, its socket) before it ends.
    async fn is_up(&mut self) -> bool {
        let start = Instant::now();
        while start.elapsed() < HANG {
            if self.child.try_wait().unwrap().is_some() {
                return false;
            }
            if TcpStream::connect(("127.0.0.1", self.port)).is_ok() {
                // A server that found the port taken ends soon.
                tokio::time::sleep(Duration::from_millis(50)).await;
                return self.child.try_wait().unwrap().is_none();
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        false
    }

    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Starts it again, empty.
    pub async fn restart(&mut self) {
        self.child = spawn(self.port, self.dir.path(), &self.args);
        assert!(self.is_up().await);
    }

    /// Stops or continues it with a signal.
    pub fn signal(&self, name: &str) {
        let status = Command::new("kill").args([format!("-{name}"), self.child.id().to_string()]).status().unwrap();
        assert!(status.success());
    }

    pub async fn raw<T: redis::FromRedisValue>(&self, parts: &[&str]) -> T {
        raw(&self.url(), parts).await
    }

    pub async fn run(&self, parts: &[&str]) {
        let _reply: Value = self.raw(parts).await;
    }

    /// Waits until this many clients are in a blocking call.
    pub async fn until_blocked(&self, clients: usize) {
        let line = format!("blocked_clients:{clients}\r");
        let is_so = || async { self.raw::<String>(&["INFO", "clients"]).await.contains(&line) };
        until_async(format!("{clients} blocked clients"), is_so).await;
    }

    pub async fn open(&self, queue: &str) -> RedisQueue {
        RedisQueue::open(settings(&self.url(), queue)).await.unwrap()
    }
}

fn spawn(port: u16, dir: &Path, args: &[String]) -> Child {
    let mut command = Command::new("redis-server");
    if !args.iter().any(|a| a == "--port") {
        command.args(["--port", &port.to_string()]);
    }
    let args = args.iter().map(|a| a.replace("{port}", &port.to_string()).replace("{dir}", &dir.to_string_lossy()));
    command
        .args(["--bind", "127.0.0.1", "--save", "", "--dir"])
        .arg(dir)
        .args(args)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("redis-server is needed for this test")
}

impl Drop for Private {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Repeats `call` until it succeeds.
pub async fn soon<T, F: Future<Output = Result<T, QueueError>>>(call: impl FnMut() -> F) -> T {
    until_async_ok("the queue to answer", call).await
}
