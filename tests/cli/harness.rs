//! Runs the program within bounds, and makes keys for the project's own circuits.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use crate::circuits::circuits;
use crate::wait::HANG;

/// The result of a run.
pub struct Ran {
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

/// Private memory that the program may use on bad files, in KiB (`ulimit -d`).
const MEMORY_KIB: u64 = 500_000;

/// Runs the program with a data folder and a module cache of its own.
pub fn run(home: &Path, args: &[&str]) -> Ran {
    run_under("", GENEROUS, home, args)
}

/// Like [`run`], under a memory limit and with tight bounds on witness programs.
pub fn run_bounded(home: &Path, args: &[&str]) -> Ran {
    run_under(&format!("ulimit -d {MEMORY_KIB};"), ("2", "256M"), home, args)
}

/// Like [`run`], under a umask.
pub fn run_masked(umask: &str, home: &Path, args: &[&str]) -> Ran {
    run_under(&format!("umask {umask};"), GENEROUS, home, args)
}

/// Time limit in seconds and memory limit of a witness program.
type Bounds = (&'static str, &'static str);
const GENEROUS: Bounds = ("60", "1G");

/// Runs `groth16-prover` with these environment variables.
pub fn prover(home: &Path, env: &[(&str, &str)], args: &[&str]) -> Ran {
    let mut program = Command::new(env!("CARGO_BIN_EXE_groth16-prover"));
    program.args(args).current_dir(home).env_remove("PROVER_CPU").env_remove("PROVER_THREADS");
    ran(program.envs(env.iter().copied()), args)
}

fn run_under(limit: &str, (seconds, memory): Bounds, home: &Path, args: &[&str]) -> Ran {
    let mut shell = Command::new("sh");
    let program = shell
        .arg("-c")
        .arg(format!("{limit} exec \"$0\" \"$@\""))
        .arg(env!("CARGO_BIN_EXE_prover-worker"))
        .args(args)
        .current_dir(home)
        .env("PROVER_DATA_DIR", home.join("data"))
        .env("PROVER_WITNESS_TIMEOUT_SECS", seconds)
        .env("PROVER_WITNESS_MEMORY_BYTES", memory)
        .env_remove("DATABASE_URL")
        .env_remove("REDIS_URL")
        .env_remove("PROVER_BACKEND");
    ran(program, args)
}

/// Runs the program to its end, which must come within [`HANG`].
fn ran(program: &mut Command, args: &[&str]) -> Ran {
    let mut child = program.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let (mut out, mut err) = (child.stdout.take().unwrap(), child.stderr.take().unwrap());
    let read_out = std::thread::spawn(move || {
        let mut s = String::new();
        out.read_to_string(&mut s).map(|_| s)
    });
    let read_err = std::thread::spawn(move || {
        let mut s = String::new();
        err.read_to_string(&mut s).map(|_| s)
    });
    let start = Instant::now();
    let code = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break status.code();
        }
        if start.elapsed() > HANG {
            child.kill().unwrap();
            child.wait().unwrap();
            panic!("{args:?} still runs after {HANG:?}");
        }
        std::thread::sleep(Duration::from_millis(5));
    };
    Ran { code, stdout: read_out.join().unwrap().unwrap(), stderr: read_err.join().unwrap().unwrap() }
}

/// Runs a line of shell in which `$P` and `$G` are the programs; returns its exit code and standard error.
pub fn shell(dir: &Path, line: &str) -> (Option<i32>, String) {
    let out = Command::new("bash")
        .args(["-c", line])
        .env("P", env!("CARGO_BIN_EXE_prover-worker"))
        .env("G", env!("CARGO_BIN_EXE_groth16-prover"))
        .env("PROVER_DATA_DIR", dir.join("data"))
        .current_dir(dir)
        .stdin(Stdio::null())
        .output()
        .unwrap();
    (out.status.code(), String::from_utf8(out.stderr).unwrap())
}

impl Ran {
    /// Panics unless the run succeeded.
    #[track_caller]
    pub fn ok(self) -> Self {
        assert_eq!(self.code, Some(0), "stdout {:?} stderr {:?}", self.stdout, self.stderr);
        self
    }

    /// Panics unless the run failed as it should: exit code 1, no panic, and one sentence that says what is wrong.
    #[track_caller]
    pub fn failed_with(self, says: &str) {
        assert_eq!(self.code, Some(1), "stdout {:?} stderr {:?}", self.stdout, self.stderr);
        let lines: Vec<_> = self.stderr.lines().collect();
        assert_eq!(lines.len(), 1, "one line: {:?}", self.stderr);
        assert!(lines[0].starts_with("error: "), "{}", lines[0]);
        assert!(lines[0].contains(says), "expected {says:?} in {:?}", lines[0]);
        assert!(lines[0].len() < 600, "a sentence, not a novel: {}", lines[0]);
        assert!(!lines[0].contains("os error"), "words, not numbers: {}", lines[0]);
    }
}

/// A circuit with a development key, made once for all tests in this process.
pub struct Fixture {
    _dir: tempfile::TempDir,
    pub zkey: PathBuf,
    pub vkey: PathBuf,
    pub wasm: PathBuf,
    pub wtns: PathBuf,
    pub input: PathBuf,
    pub r1cs: PathBuf,
}

/// Returns the circuit `name` with a key made by `setup`.
pub fn fixture(name: &str) -> Fixture {
    let dir = tempfile::tempdir().unwrap();
    let at = |ext: &str| circuits().join(format!("{name}.{ext}"));
    let (zkey, vkey) = (dir.path().join("k.zkey"), dir.path().join("vk.json"));
    let args = ["setup", s(&at("r1cs")), s(&zkey), "--vkey", s(&vkey), "--insecure-dev-only"].map(str::to_owned);
    run(dir.path(), &args.iter().map(String::as_str).collect::<Vec<_>>()).ok();
    Fixture { zkey, vkey, wasm: at("wasm"), wtns: at("wtns"), input: at("input.json"), r1cs: at("r1cs"), _dir: dir }
}

/// Returns `range_check`, the fixture that most tests share.
pub fn range_check() -> &'static Fixture {
    static F: OnceLock<Fixture> = OnceLock::new();
    F.get_or_init(|| fixture("range_check"))
}

/// Returns a path as an argument.
pub fn s(p: &Path) -> &str {
    p.to_str().unwrap()
}

/// Returns a scratch folder with these files.
pub fn scratch(files: &[(&str, &[u8])]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for (name, bytes) in files {
        std::fs::write(dir.path().join(name), bytes).unwrap();
    }
    dir
}

/// Sections of a container file, to take apart and reassemble.
#[derive(Clone)]
pub struct Container {
    pub magic: [u8; 4],
    pub version: u32,
    pub sections: Vec<(u32, Vec<u8>)>,
}

impl Container {
    pub fn read(path: &Path) -> Self {
        let b = std::fs::read(path).unwrap();
        let word = |at: usize| u32::from_le_bytes(b[at..at + 4].try_into().unwrap());
        let mut at = 12;
        let mut sections = Vec::new();
        for _ in 0..word(8) {
            let len = u64::from_le_bytes(b[at + 4..at + 12].try_into().unwrap()) as usize;
            sections.push((word(at), b[at + 12..at + 12 + len].to_vec()));
            at += 12 + len;
        }
        Self { magic: b[..4].try_into().unwrap(), version: word(4), sections }
    }

    pub fn section(&mut self, id: u32) -> &mut Vec<u8> {
        &mut self.sections.iter_mut().find(|s| s.0 == id).unwrap().1
    }

    pub fn bytes(&self) -> Vec<u8> {
        let mut out = self.magic.to_vec();
        out.extend(self.version.to_le_bytes());
        out.extend((self.sections.len() as u32).to_le_bytes());
        for (id, data) in &self.sections {
            out.extend(id.to_le_bytes());
            out.extend((data.len() as u64).to_le_bytes());
            out.extend(data);
        }
        out
    }
}
