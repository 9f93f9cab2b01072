//! Servers, proxies in front of them, a registered circuit, and the program run on all that.

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::sync::{Arc, Mutex};

use prover_worker::config::Config;
use prover_worker::formats::snarkjs;
use prover_worker::groth16::Verifier;
use prover_worker::model::{Job, JobId, JobState, Priority};
use prover_worker::store::JobFilter;
use prover_worker::worker::{JobService, SubmitRequest, Workspace};
use serde_json::Value;
use sqlx::{Connection, PgConnection, Row};
use tokio::runtime::Runtime;
use zeroize::Zeroizing;

use super::proxy::Proxy;
use super::schedule::Door;
use super::servers::{Postgres, Redis};
use crate::circuits::circuits;
use crate::harness::{Server, multiplier_key, program};
use crate::wait::{HANG, until};

/// Name of the fleet's queue, which is also the key of its stream.
pub const QUEUE: &str = "prove";

type Log = Arc<Mutex<Vec<String>>>;

/// The servers, files and proxies of a fleet. Workers reach the servers through the proxies, the test also directly.
pub struct Fleet {
    // Dropped before the runtime, in which they live.
    through: Workspace,
    direct: Workspace,
    pub runtime: Runtime,
    doors: [Proxy; 2],
    pub postgres: Postgres,
    pub redis: Redis,
    verifier: Verifier,
    env: Vec<(String, String)>,
    logs: Mutex<Vec<(String, Log)>>,
    dir: tempfile::TempDir,
}

/// Returns the environment of every worker and command of a fleet.
fn environment(dir: &std::path::Path, postgres: u16, redis: u16, more: &[(&str, &str)]) -> Vec<(String, String)> {
    let mut env = vec![
        ("DATABASE_URL".to_owned(), Postgres::url(postgres)),
        ("REDIS_URL".to_owned(), Redis::url(redis)),
        ("PROVER_ARTIFACTS_URL".to_owned(), format!("file://{}", dir.join("artifacts").display())),
        ("PROVER_KEEP_FAILED_INPUT_SECS".to_owned(), "0".to_owned()),
        ("PROVER_THREADS".to_owned(), "1".to_owned()),
        ("WORKER_CONCURRENCY".to_owned(), "3".to_owned()),
    ];
    env.extend(more.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())));
    env
}

fn config(env: &[(String, String)], dir: PathBuf) -> Config {
    let of = |name: &str| env.iter().rev().find(|(n, _)| n == name).map(|(_, v)| v.clone());
    Config::from_lookup(|name| of(name).or_else(|| (name == "PROVER_DATA_DIR").then(|| dir.display().to_string())))
        .unwrap()
}

impl Fleet {
    /// Starts servers and registers the circuit `multiplier` (c = a·b).
    pub fn new() -> Self {
        Self::with(&[])
    }

    /// Like [`Fleet::new`], with `more` in every environment.
    pub fn with(more: &[(&str, &str)]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (postgres, redis) = (Postgres::new(dir.path()), Redis::new(dir.path()));
        let doors = [Proxy::new(postgres.port), Proxy::new(redis.port)];
        let env = environment(dir.path(), doors[0].port, doors[1].port, more);
        let open = |env: &[(String, String)], name| Workspace::open(config(env, dir.path().join(name)));
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let (direct, through) = runtime.block_on(async {
            let direct = open(&environment(dir.path(), postgres.port, redis.port, more), "test").await.unwrap();
            (direct, open(&env, "submitter").await.unwrap())
        });
        let (file, key) = multiplier_key(dir.path());
        let (verifier, logs) = (Verifier::new(&key.header.vk), Mutex::default());
        let fleet = Self { through, direct, runtime, doors, postgres, redis, verifier, env, logs, dir };
        let wasm = circuits().join("multiplier.wasm");
        fleet.json(&[
            "circuits",
            "add",
            "multiplier",
            "--zkey",
            file.to_str().unwrap(),
            "--wasm",
            wasm.to_str().unwrap(),
        ]);
        fleet
    }

    pub fn dir(&self) -> &std::path::Path {
        self.dir.path()
    }

    pub fn artifacts(&self) -> PathBuf {
        self.dir.path().join("artifacts")
    }

    pub fn door(&self, door: Door) -> &Proxy {
        &self.doors[door as usize]
    }

    /// Returns the test's direct connection to the servers, past the proxies.
    pub fn direct(&self) -> &Workspace {
        &self.direct
    }

    /// Returns the jobs as a submitter sees them, through the proxies.
    pub fn service(&self) -> JobService {
        self.through.service()
    }

    pub fn block<T>(&self, what: impl Future<Output = T>) -> T {
        self.runtime.block_on(what)
    }

    /// Returns the program as worker `n` of the fleet.
    pub fn command(&self, n: usize, args: &[&str]) -> Command {
        let mut command = program(args);
        command
            .envs(self.env.iter().map(|(n, v)| (n, v)))
            .env("PROVER_DATA_DIR", self.dir.path().join(format!("worker-{n}")));
        command
    }

    pub fn json(&self, args: &[&str]) -> Value {
        let done = self.command(0, args).arg("--json").output().unwrap();
        assert!(done.status.success(), "{args:?}: {}", String::from_utf8_lossy(&done.stderr));
        serde_json::from_slice(&done.stdout).unwrap()
    }

    /// Starts worker `n`.
    pub fn serve(&self, n: usize, args: &[&str], env: &[(&str, &str)]) -> Server {
        let all: Vec<&str> = ["serve"].iter().chain(args).copied().collect();
        let mut command = self.command(n, &all);
        command.envs(env.iter().copied());
        let server = Server::start(command);
        let mut logs = self.logs.lock().unwrap();
        let name = format!("{:04} worker {n} {}", logs.len(), args.join(" "));
        logs.push((name, server.lines()));
        server
    }

    /// Returns every line that any worker of this fleet has written.
    pub fn all_logs(&self) -> String {
        let logs = self.logs.lock().unwrap();
        logs.iter().map(|(_, lines)| lines.lock().unwrap().join("\n") + "\n").collect()
    }

    pub fn request(&self, a: u64, b: u64) -> SubmitRequest {
        request(format!(r#"{{"a": "{a}", "b": {b}}}"#))
    }

    /// Submits c = a·b.
    pub fn submit(&self, a: u64, b: u64) -> JobId {
        self.block(self.direct.service().submit(self.request(a, b))).unwrap().job().id
    }

    pub fn job(&self, id: JobId) -> Job {
        self.block(self.direct.service().job(id)).unwrap()
    }

    /// Returns every job.
    pub fn jobs(&self) -> Vec<Job> {
        let all = JobFilter { limit: u32::MAX, ..JobFilter::default() };
        // Lists have no results and histories.
        self.block(self.direct.store().jobs(all)).unwrap().iter().map(|job| self.job(job.id)).collect()
    }

    /// Waits for the job's end.
    pub fn end(&self, id: JobId) -> Job {
        let final_job = || Some(self.job(id)).filter(|j| j.state.is_final());
        until(format_args!("job {id} to end"), final_job)
    }

    /// Returns the number of jobs that are done, failed or cancelled.
    pub fn ended(&self) -> u64 {
        let counts = self.block(self.direct.store().counts()).unwrap();
        counts.done + counts.failed + counts.cancelled
    }

    /// Waits until `n` jobs have ended.
    pub fn wait_ended(&self, n: u64) {
        until(format_args!("{n} jobs to end"), || (self.ended() >= n).then_some(()));
    }

    /// Asserts that the job is done, with a proof that verifies for c = a·b.
    pub fn assert_proved(&self, job: &Job, product: u64) {
        assert_eq!(job.state, JobState::Done, "{job:?}");
        let result = job.result.as_ref().unwrap();
        let values = snarkjs::public_from_json(&result.public_json).unwrap();
        assert_eq!((values.0.len(), values.0[0]), (1, product.into()), "{job:?}");
        let proof = snarkjs::proof_from_json(&result.proof_json).unwrap();
        assert!(self.verifier.verify(&proof, &values), "{job:?}");
    }

    /// Returns the number of inputs held.
    pub fn inputs_held(&self) -> u64 {
        self.block(self.direct.store().inputs_held()).unwrap().iter().map(|(_, n)| n).sum()
    }

    /// Sends Redis a command directly, past the proxies.
    pub fn redis<T: redis::FromRedisValue>(&self, command: &redis::Cmd) -> T {
        self.block(try_redis(self.redis.port, command)).unwrap()
    }

    /// Waits until Redis has nothing left to do: no entry, none pending, none delayed, no message.
    pub fn wait_settled(&self) {
        let mut left = Vec::new();
        let begun = std::time::Instant::now();
        loop {
            left.clear();
            for (key, length) in [
                (QUEUE.to_owned(), "XLEN"),
                (format!("{QUEUE}:high"), "XLEN"),
                (format!("{QUEUE}:low"), "XLEN"),
                (format!("{QUEUE}:again"), "XLEN"),
                (format!("{QUEUE}:high:again"), "XLEN"),
                (format!("{QUEUE}:low:again"), "XLEN"),
                (format!("{QUEUE}:inbox"), "LLEN"),
                (format!("{QUEUE}:delayed"), "ZCARD"),
                (format!("{QUEUE}:ids"), "HLEN"),
            ] {
                let n: u64 = self.redis(redis::cmd(length).arg(&key));
                left.push((key, n));
            }
            if left.iter().all(|(_, n)| *n == 0) {
                return;
            }
            assert!(begun.elapsed() < HANG, "Redis does not settle: {left:?}");
            std::thread::sleep(std::time::Duration::from_millis(50));
        }
    }

    /// Returns every row of every table as text, with bytes as hexadecimal digits.
    pub fn dump(&self) -> String {
        self.block(async {
            let mut c = PgConnection::connect(&Postgres::url(self.postgres.port)).await.unwrap();
            let tables = "SELECT table_schema || '.' || table_name FROM information_schema.tables WHERE table_type = \
                          'BASE TABLE' AND table_schema NOT IN ('pg_catalog', 'information_schema')";
            let mut all = String::new();
            for table in sqlx::query(tables).fetch_all(&mut c).await.unwrap() {
                let table: String = table.get(0);
                let rows = format!("SELECT t::text FROM {table} t");
                for row in sqlx::query(sqlx::AssertSqlSafe(rows)).fetch_all(&mut c).await.unwrap() {
                    all += &format!("{table}: {}\n", row.get::<String, _>(0));
                }
            }
            all
        })
    }
}

/// Returns a submit request for the circuit `multiplier`.
pub fn request(input: String) -> SubmitRequest {
    let circuit = "multiplier".parse().unwrap();
    let input = Zeroizing::new(input.into_bytes());
    SubmitRequest { id: None, circuit, input, idempotency_key: None, priority: Priority(0) }
}

/// Sends the Redis server at this port a command.
pub async fn try_redis<T: redis::FromRedisValue>(port: u16, command: &redis::Cmd) -> redis::RedisResult<T> {
    // A hundred megabytes take a while, during which the server does not accept connections either.
    let patient =
        redis::AsyncConnectionConfig::new().set_response_timeout(Some(HANG)).set_connection_timeout(Some(HANG));
    let client = redis::Client::open(Redis::url(port))?;
    let mut connection = client.get_multiplexed_async_connection_with_config(&patient).await?;
    command.query_async(&mut connection).await
}

impl Drop for Fleet {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            return;
        }
        let dir = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("faults-{}", std::process::id()));
        if fs::create_dir_all(&dir).is_ok() {
            for (name, lines) in self.logs.lock().unwrap().iter() {
                let lines = lines.lock().map(|l| l.join("\n")).unwrap_or_default();
                let _ = fs::write(dir.join(name.replace([' ', ':'], "-")), lines);
            }
            let _ = fs::copy(self.dir.path().join("postgres/log"), dir.join("postgres"));
            eprintln!("the workers' logs are in {}", dir.display());
        }
    }
}
