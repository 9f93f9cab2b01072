//! PostgreSQL and Redis, each a private server that can be killed and restarted at the same port.

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::wait::{HANG, until};

/// A port that was free a moment ago.
fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

fn end(child: &mut Child, signal: Signal) {
    // It may have ended by itself.
    let _ = kill_process(Pid::from_child(child), signal);
    until(format_args!("a server to end after {signal:?}"), || child.try_wait().unwrap());
}

fn wait_ready(what: &str, child: &mut Child, log: &Path, mut ready: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !ready() {
        let said = || fs::read_to_string(log).unwrap_or_default();
        if let Some(status) = child.try_wait().unwrap() {
            panic!("{what} ended at once, {status}:\n{}", said());
        }
        assert!(begun.elapsed() < HANG, "{what} does not start:\n{}", said());
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Returns the user that PostgreSQL runs as if this test is root, as which it refuses to run.
fn other_user() -> Option<(u32, u32)> {
    if !rustix::process::geteuid().is_root() {
        return None;
    }
    let users = fs::read_to_string("/etc/passwd").unwrap();
    let of = |name: &str| {
        let line = users.lines().find(|l| l.split(':').next() == Some(name))?;
        let ids: Vec<u32> = line.split(':').skip(2).take(2).filter_map(|n| n.parse().ok()).collect();
        Some((*ids.first()?, *ids.get(1)?))
    };
    Some(of("postgres").or_else(|| of("nobody")).expect("a user other than root for PostgreSQL"))
}

/// A PostgreSQL cluster that accepts any password.
pub struct Postgres {
    bin: PathBuf,
    dir: PathBuf,
    user: Option<(u32, u32)>,
    server: Option<Child>,
    pub port: u16,
}

impl Postgres {
    /// Creates a cluster in `dir` and starts it.
    pub fn new(dir: &Path) -> Self {
        let user = other_user();
        // That user must be able to reach it.
        fs::set_permissions(dir, fs::Permissions::from_mode(0o711)).unwrap();
        let (dir, bin) = (dir.join("postgres"), Self::programs());
        fs::create_dir(&dir).unwrap();
        if let Some((uid, gid)) = user {
            chown(&dir, Some(uid), Some(gid)).unwrap();
        }
        let mut postgres = Self { bin, dir, user, server: None, port: free_port() };
        let mut initdb = postgres.command("initdb");
        initdb.args(["-A", "trust", "-U", "postgres", "-E", "UTF8", "--locale=C", "--no-sync", "-D"]);
        let made = initdb.arg(postgres.data()).output().unwrap();
        assert!(made.status.success(), "initdb: {}", String::from_utf8_lossy(&made.stderr));
        postgres.start();
        postgres
    }

    /// Returns the folder with the server's programs.
    fn programs() -> PathBuf {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let mut folders: Vec<PathBuf> = std::env::split_paths(&path).collect();
        for version in fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten() {
            folders.push(version.path().join("bin"));
        }
        let has = |dir: &PathBuf| ["initdb", "postgres", "pg_isready"].iter().all(|p| dir.join(p).exists());
        folders
            .into_iter()
            .find(has)
            .expect("PostgreSQL's server is not installed (Debian: apt-get install postgresql)")
    }

    fn data(&self) -> PathBuf {
        self.dir.join("data")
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(self.bin.join(program));
        if let Some((uid, gid)) = self.user {
            command.uid(uid).gid(gid);
        }
        command.current_dir(&self.dir).stdin(Stdio::null());
        command
    }

    /// Starts the server and waits until it answers.
    pub fn start(&mut self) {
        let log = self.dir.join("log");
        let file = fs::OpenOptions::new().create(true).append(true).open(&log).unwrap();
        let mut command = self.command("postgres");
        command.arg("-D").arg(self.data()).args(["-p", &self.port.to_string(), "-c", "listen_addresses=127.0.0.1"]);
        // Only its processes are killed here, never the machine: what was written is there without a sync.
        let settings = ["fsync=off", "synchronous_commit=on", "unix_socket_directories=", "max_connections=300"];
        for setting in settings.iter().chain(&["shared_buffers=64MB", "log_min_messages=warning"]) {
            command.args(["-c", setting]);
        }
        let mut child = command.stdout(Stdio::null()).stderr(file).spawn().unwrap();
        let port = self.port.to_string();
        wait_ready("PostgreSQL", &mut child, &log, || {
            let mut asks = self.command("pg_isready");
            asks.args(["-q", "-h", "127.0.0.1", "-p", &port]).status().unwrap().success()
        });
        self.server = Some(child);
    }

    /// Stops it like `pg_ctl stop -m immediate`: every process quits at once, and the next start recovers.
    pub fn crash(&mut self) {
        if let Some(mut child) = self.server.take() {
            end(&mut child, Signal::QUIT);
        }
    }

    /// Returns its URL at this port.
    pub fn url(port: u16) -> String {
        format!("postgres://postgres:unused@127.0.0.1:{port}/postgres?sslmode=disable")
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        self.crash();
    }
}

/// A Redis server without persistence.
pub struct Redis {
    dir: PathBuf,
    server: Option<Child>,
    pub port: u16,
}

impl Redis {
    pub fn new(dir: &Path) -> Self {
        let dir = dir.join("redis");
        fs::create_dir(&dir).unwrap();
        let mut redis = Self { dir, server: None, port: free_port() };
        redis.start();
        redis
    }

    /// Starts it, empty, and waits until it answers.
    pub fn start(&mut self) {
        let log = self.dir.join("log");
        let file = fs::OpenOptions::new().create(true).append(true).open(&log).unwrap();
        let mut command = Command::new("redis-server");
        command.args(["--port", &self.port.to_string(), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]);
        command.args(["--maxmemory-policy", "noeviction", "--loglevel", "warning"]).current_dir(&self.dir);
        command.stdin(Stdio::null()).stdout(file.try_clone().unwrap()).stderr(file);
        let started = command.spawn();
        let mut child = started.expect("redis-server is not installed (Debian: apt-get install redis-server)");
        let client = redis::Client::open(Self::url(self.port)).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        wait_ready("Redis", &mut child, &log, || {
            runtime.block_on(async {
                let Ok(mut c) = client.get_multiplexed_async_connection().await else { return false };
                redis::cmd("PING").query_async::<String>(&mut c).await.is_ok()
            })
        });
        self.server = Some(child);
    }

    pub fn kill(&mut self) {
        if let Some(mut child) = self.server.take() {
            end(&mut child, Signal::KILL);
        }
    }

    /// Returns its URL at this port.
    pub fn url(port: u16) -> String {
        format!("redis://127.0.0.1:{port}/0")
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        self.kill();
    }
}
