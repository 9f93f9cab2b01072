//! A data folder with a registered circuit, and the program run on it.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use prover_worker::formats::{r1cs, snarkjs, zkey};
use prover_worker::groth16::{Verifier, setup};
use prover_worker::model::ProvingKey;
use prover_worker::store::{SqliteStore, Store, StoreSettings};
use serde_json::Value;

use crate::circuits::{circuit_file, circuits};
use crate::wait::{HANG, until};

pub struct Site {
    dir: tempfile::TempDir,
    verifier: Verifier,
}

/// Returns the program with none of its variables in the environment, and without a fixed port.
pub fn program(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_prover-worker"));
    for (name, _) in std::env::vars_os() {
        let known = prover_worker::config::CATALOGUE.iter().any(|v| name.to_str() == Some(v.name));
        if known {
            command.env_remove(name);
        }
    }
    command.args(args).env("METRICS_PORT", "0").env("METRICS_ADDR", "127.0.0.1").env("PROVER_API_ADDR", "off");
    command.env("LOG_FORMAT", "json").stdin(Stdio::null());
    command
}

/// Writes a key for the circuit `multiplier` (c = a·b) to a file in `dir`; returns both.
pub fn multiplier_key(dir: &Path) -> (PathBuf, ProvingKey) {
    let circuit = r1cs::parse(&circuit_file("multiplier.r1cs")).unwrap();
    let key = setup::generate(&circuit, &|_| {}).unwrap();
    let file = dir.join("multiplier.zkey");
    let mut bytes = Vec::new();
    zkey::write(&key, &mut bytes).unwrap();
    fs::write(&file, bytes).unwrap();
    (file, key)
}

impl Site {
    /// Registers the circuit `multiplier` (c = a·b) with a fresh key.
    pub fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (file, key) = multiplier_key(dir.path());
        let site = Self { dir, verifier: Verifier::new(&key.header.vk) };
        let (zkey, wasm) = (file.to_str().unwrap(), circuits().join("multiplier.wasm"));
        site.json(&["circuits", "add", "multiplier", "--zkey", zkey, "--wasm", wasm.to_str().unwrap()]);
        site
    }

    pub fn data(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = program(args);
        command.env("PROVER_DATA_DIR", self.data());
        command
    }

    /// Runs a subcommand that must succeed, and returns its result.
    pub fn json(&self, args: &[&str]) -> Value {
        self.json_with(args, &[])
    }

    fn json_with(&self, args: &[&str], env: &[(&str, &str)]) -> Value {
        let done = self.command(args).envs(env.iter().copied()).arg("--json").output().unwrap();
        assert!(done.status.success(), "{args:?}: {}", String::from_utf8_lossy(&done.stderr));
        serde_json::from_slice(&done.stdout).unwrap()
    }

    /// Submits c = a·b and returns the job's id.
    pub fn submit(&self, a: u32, b: u32) -> String {
        self.submit_with(a, b, &[])
    }

    /// Like [`Site::submit`], with these variables in the environment.
    pub fn submit_with(&self, a: u32, b: u32, env: &[(&str, &str)]) -> String {
        let file = self.dir.path().join(format!("{a}-{b}.json"));
        fs::write(&file, format!(r#"{{"a": "{a}", "b": {b}}}"#)).unwrap();
        let job = self.json_with(&["submit", "multiplier", "--input", file.to_str().unwrap()], env);
        job["id"].as_str().unwrap().to_owned()
    }

    pub fn job(&self, id: &str) -> Value {
        self.json(&["status", id])
    }

    /// Waits until the job is in this state.
    pub fn wait_for(&self, id: &str, state: &str) -> Value {
        until(format_args!("job {id} to be {state}"), || Some(self.job(id)).filter(|j| j["state"] == state))
    }

    pub fn serve(&self, args: &[&str], env: &[(&str, &str)]) -> Server {
        let all: Vec<&str> = ["serve"].iter().chain(args).copied().collect();
        let mut command = self.command(&all);
        command.envs(env.iter().copied());
        Server::start(command)
    }

    /// Asserts that the job is done once: one proof, which verifies for c = a·b, the same in the store and in its one
    /// folder of files, and no input left.
    pub fn assert_done_once(&self, id: &str, product: u64) {
        let job = self.job(id);
        assert_eq!(job["state"], "done", "{job}");
        let (proof, public) = (text(&job["result"]["proof_json"]), text(&job["result"]["public_json"]));
        let values = snarkjs::public_from_json(public).unwrap();
        assert!(self.verifier.verify(&snarkjs::proof_from_json(proof).unwrap(), &values));
        assert_eq!(values.0.len(), 1);
        assert_eq!(values.0[0], product.into());
        let folder = self.data().join("proofs").join(id);
        until("the proof's files", || folder.join("public.json").exists().then_some(()));
        assert_eq!(fs::read_to_string(folder.join("proof.json")).unwrap(), proof);
        assert_eq!(fs::read_to_string(folder.join("public.json")).unwrap(), public);
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 2, "nothing else lies there");
    }

    pub fn proof_folders(&self) -> usize {
        fs::read_dir(self.data().join("proofs")).unwrap().count()
    }

    pub fn inputs_held(&self) -> u64 {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let database = self.data().join("prover-worker.db");
            let store = SqliteStore::open(&database, StoreSettings::default()).await.unwrap();
            store.inputs_held().await.unwrap().iter().map(|(_, n)| n).sum()
        })
    }
}

fn text(v: &Value) -> &str {
    v.as_str().unwrap()
}

/// A running `serve`; killed when dropped.
pub struct Server {
    child: Child,
    log: Arc<Mutex<Vec<String>>>,
}

impl Server {
    pub fn start(mut command: Command) -> Self {
        let mut child = command.stderr(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
        let log = Arc::new(Mutex::new(Vec::new()));
        let stderr = BufReader::new(child.stderr.take().unwrap());
        let written = log.clone();
        std::thread::spawn(move || {
            for line in stderr.lines().map_while(Result::ok) {
                written.lock().unwrap().push(line);
            }
        });
        Self { child, log }
    }

    /// Returns how it ended, if it has.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().unwrap()
    }

    /// Returns its log, which keeps growing.
    pub fn lines(&self) -> Arc<Mutex<Vec<String>>> {
        self.log.clone()
    }

    fn id(&self) -> rustix::process::Pid {
        rustix::process::Pid::from_child(&self.child)
    }

    pub fn signal(&self, signal: rustix::process::Signal) {
        rustix::process::kill_process(self.id(), signal).unwrap();
    }

    /// Waits until the process is stopped.
    pub fn wait_stopped(&self) {
        until("the process to stop", || {
            let stat = fs::read_to_string(format!("/proc/{}/stat", self.id().as_raw_nonzero())).unwrap();
            // After the name in parentheses, which may contain anything.
            stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('T')).then_some(())
        });
    }

    pub fn terminate(&self) {
        self.signal(rustix::process::Signal::TERM);
    }

    /// Waits for the process to end.
    pub fn wait(&mut self) -> ExitStatus {
        let begun = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(begun.elapsed() < HANG, "the server does not end; its log:\n{}", self.log());
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    pub fn log(&self) -> String {
        self.log.lock().unwrap().join("\n")
    }

    pub fn count(&self, words: &str) -> usize {
        self.log.lock().unwrap().iter().filter(|l| l.contains(words)).count()
    }

    /// Waits until `times` log lines contain these words.
    pub fn wait_log(&self, words: &str, times: usize) {
        let begun = Instant::now();
        while self.count(words) < times {
            assert!(begun.elapsed() < HANG, "no {words:?} in the log:\n{}", self.log());
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    pub fn wait_started(&self) {
        self.wait_log("worker started", 1);
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
