//! `doctor`: checks the installation and reports what needs fixing.

use std::io::Write;
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::time::Duration;

use serde::Serialize;

use super::session;
use super::{CliError, Output};
use crate::artifacts::{ArtifactError, private_dir};
use crate::config::{Config, Setting};
use crate::model::{JobId, StopToken, io_reason};
use crate::queue::QueueError;
use crate::registry::{RegistryError, RegistryLimits};
use crate::seal::Keyring;
use crate::store::{Scope, Store};
use crate::witness::{Inputs, WasmWitness, WitnessError};
use crate::worker::{Canary, OpenError, Workspace, module_cache, open_queue};

/// Free space below which keys and proofs may soon not fit, in bytes.
const LITTLE_SPACE: u64 = 1 << 30;
/// Size of a test file in the data folder, in bytes.
const PROBE_BYTES: usize = 64 << 10;
/// Time limit for writing a proof's files to the artifacts.
const ARTIFACTS_TIMEOUT: Duration = Duration::from_secs(15);
/// A bundled witness program, to test compiling.
const WASM: &[u8] = include_bytes!("../../circuits/multiplier.wasm");

/// Arguments of `doctor`.
#[derive(clap::Args)]
pub struct Args {}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Verdict {
    Ok,
    Warning,
    Failed,
}

#[derive(Serialize)]
struct Check {
    what: &'static str,
    verdict: Verdict,
    found: String,
}

#[derive(Serialize)]
struct Report {
    checks: Vec<Check>,
    settings: Vec<Setting>,
}

impl Report {
    fn note(&mut self, what: &'static str, verdict: Verdict, found: impl ToString) {
        self.checks.push(Check { what, verdict, found: found.to_string() });
    }

    fn result(&mut self, what: &'static str, result: Result<String, String>) {
        match result {
            Ok(found) => self.note(what, Verdict::Ok, found),
            Err(found) => self.note(what, Verdict::Failed, found),
        }
    }
}

/// Runs all checks; the exit code is 1 if any of them fails.
pub fn run(_: Args, out: &Output) -> Result<(), CliError> {
    let config = session::config()?;
    let mut report = Report { checks: Vec::new(), settings: config.settings() };
    settings(&mut report);
    report.result("data folder", data_folder(&config.data_dir));
    space(&config.data_dir, &mut report);
    session::runtime()?.block_on(services(&config, &mut report));
    report.result("witness sandbox", sandbox(&config));
    devices(&config, &mut report);
    ports(&config, &mut report);
    let failed = report.checks.iter().any(|c| c.verdict == Verdict::Failed);
    out.result(&report, || describe(&report));
    if failed { Err(CliError::Reported) } else { Ok(()) }
}

/// Looks for misspelt variables, which are otherwise ignored silently.
fn settings(report: &mut Report) {
    let unknown = Config::unknown_variables();
    if unknown.is_empty() {
        report.note("settings", Verdict::Ok, "every variable is valid");
    } else {
        report.note(
            "settings",
            Verdict::Warning,
            format!("unknown variables, which have no effect: {}", unknown.join(", ")),
        );
    }
}

fn data_folder(dir: &Path) -> Result<String, String> {
    use std::os::unix::fs::PermissionsExt;
    let with_remedy = |e: &dyn std::fmt::Display| {
        format!("{}: {e}; set PROVER_DATA_DIR to a folder you own, on a disk with free space", dir.display())
    };
    private_dir(dir).map_err(|e| match e {
        // `with_remedy` names the folder already.
        ArtifactError::Io { why, .. } => with_remedy(&io_reason(&why)),
        e => with_remedy(&e),
    })?;
    // An empty file can be written even to a full disk.
    let written = tempfile::tempfile_in(dir).and_then(|mut file| file.write_all(&[0; PROBE_BYTES]));
    written.map_err(|e| with_remedy(&io_reason(&e)))?;
    let mode = std::fs::metadata(dir).map_err(|e| with_remedy(&io_reason(&e)))?.permissions().mode() & 0o777;
    if mode & 0o077 != 0 {
        return Err(format!("{} is open to others (mode {mode:03o}); chmod 700 it", dir.display()));
    }
    Ok(format!("{} can be written to", dir.display()))
}

fn space(dir: &Path, report: &mut Report) {
    match rustix::fs::statvfs(dir) {
        Ok(fs) => {
            let free = fs.f_bavail.saturating_mul(fs.f_frsize);
            let verdict = if free < LITTLE_SPACE { Verdict::Warning } else { Verdict::Ok };
            report.note("disk space", verdict, format!("{:.1} GiB free", free as f64 / (1u64 << 30) as f64));
        }
        Err(e) => report.note("disk space", Verdict::Warning, format!("cannot be determined: {e}")),
    }
}

/// Checks the keys of inputs, the queue, the store, the artifacts and every registered circuit, each by itself, so that
/// a failure of one does not hide that of another.
async fn services(config: &Config, report: &mut Report) {
    let keyring = keys(config, report);
    let mut alone = config.clone();
    (alone.redis, alone.encryption_keys) = (None, None);
    let opened = Workspace::open(alone).await;
    let identity = match &opened {
        // An error of the store is reported below.
        Ok(workspace) => workspace.store().identity().await.ok().flatten(),
        Err(_) => None,
    };
    queue(config, &identity.unwrap_or_default(), report).await;
    let workspace = match opened {
        Ok(w) => w,
        Err(e) => {
            report.note(part(&e), Verdict::Failed, e);
            return report.note(
                "circuits",
                Verdict::Warning,
                "not checked, because the store or the artifacts did not open",
            );
        }
    };
    store(config, workspace.store().as_ref(), keyring.as_ref(), report).await;
    if config.proof_files {
        artifacts(&workspace, report).await;
    }
    circuits(&workspace, report).await;
}

/// Checks that a proof's files can be written where a worker writes them, which may be a folder or bucket outside the
/// data folder.
async fn artifacts(workspace: &Workspace, report: &mut Report) {
    let (artifacts, probe, text) = (workspace.artifacts(), JobId::new(), " ".repeat(PROBE_BYTES));
    let tried = async {
        let written = artifacts.put_proof(probe, &text, &text).await;
        // Files that were written in part are removed, too.
        let removed = artifacts.remove_proof(probe).await;
        written.and(removed).map_err(|e| e.to_string())
    };
    let tried = tokio::time::timeout(ARTIFACTS_TIMEOUT, tried).await;
    let tried = tried.unwrap_or_else(|_| Err(format!("no answer within {} s", ARTIFACTS_TIMEOUT.as_secs())));
    report.result("artifacts", tried.map(|()| "a proof's files can be written".to_owned()));
}

/// Returns the check that an error of opening belongs to.
fn part(e: &OpenError) -> &'static str {
    match e {
        OpenError::Store(_) => "store",
        OpenError::Queue(_) => "queue",
        OpenError::Artifacts(_) | OpenError::Folder { .. } => "artifacts",
        OpenError::Seal(_) => "inputs",
    }
}

/// Returns the keys that encrypt inputs, if they are valid.
fn keys(config: &Config, report: &mut Report) -> Option<Keyring> {
    match config.encryption_keys.as_ref().map(|keys| Keyring::parse(keys.reveal())).transpose() {
        Ok(keyring) => Some(keyring.unwrap_or_else(Keyring::none)),
        Err(e) => {
            report.note("inputs", Verdict::Failed, e);
            None
        }
    }
}

async fn queue(config: &Config, database: &str, report: &mut Report) {
    let answers = match open_queue(config).await {
        Ok(queue) => {
            queue.belong_to(database);
            queue.ping().await
        }
        Err(e) => Err(e),
    };
    match answers {
        Ok(()) => report.note("queue", Verdict::Ok, "responds"),
        // A worker does not start with such a queue.
        Err(e @ QueueError::Unfit(_)) => report.note("queue", Verdict::Failed, e),
        Err(e) => report.note("queue", Verdict::Failed, format!("{e}; meanwhile, workers take jobs from the store")),
    }
}

async fn store(config: &Config, store: &dyn Store, keyring: Option<&Keyring>, report: &mut Report) {
    let counts = match store.counts().await {
        Ok(c) => c,
        Err(e) => return report.note("store", Verdict::Failed, e),
    };
    let about = if counts.estimated { "about " } else { "" };
    let found = format!(
        "{}: {} queued, {} running, {about}{} done, {} failed, {} cancelled",
        config.database, counts.queued, counts.running, counts.done, counts.failed, counts.cancelled
    );
    report.result("store", store.ping().await.map(|()| found).map_err(|e| e.to_string()));
    if let Some(keyring) = keyring {
        match store.inputs_held().await {
            Ok(held) => inputs(&held, keyring, report),
            Err(e) => report.note("inputs", Verdict::Failed, e),
        }
    }
    match store.paused().await {
        Ok(paused) => pauses(&paused, &config.queue_name, report),
        Err(e) => report.note("pauses", Verdict::Failed, e),
    }
}

async fn circuits(workspace: &Workspace, report: &mut Report) {
    let circuits = match workspace.store().circuits().await {
        Ok(c) => c,
        Err(e) => return report.note("circuits", Verdict::Failed, e),
    };
    let mut broken = Vec::new();
    for c in &circuits {
        if let Err(e) = workspace.registry().open(c.content()).await {
            let what_helps = if is_of_its_files(&e) { "; register it again" } else { "" };
            broken.push(format!("{}: {e}{what_helps}", c.name));
        }
    }
    if broken.is_empty() {
        report.note("circuits", Verdict::Ok, format!("{} registered, all of them open", circuits.len()));
    } else {
        report.note("circuits", Verdict::Failed, broken.join("; "));
    }
}

/// Whether a circuit's files are at fault, rather than this machine or its settings.
fn is_of_its_files(e: &RegistryError) -> bool {
    use ArtifactError::{Damaged, Missing};
    matches!(
        e,
        RegistryError::Key(_)
            | RegistryError::Mismatch { .. }
            | RegistryError::Witness(WitnessError::Module(_))
            | RegistryError::Artifact(Missing { .. } | Damaged { .. })
    )
}

/// Counts stored inputs by encryption key, and checks that the keys are configured.
fn inputs(held: &[(String, u64)], keyring: &Keyring, report: &mut Report) {
    let missing: Vec<&str> = held
        .iter()
        .map(|(key, _)| key.as_str())
        .filter(|key| !key.is_empty() && keyring.names().all(|n| n != *key))
        .collect();
    if !missing.is_empty() {
        let missing = missing.join(", ");
        let why = format!("some are encrypted with keys that PROVER_ENCRYPTION_KEYS lacks: {missing}");
        return report.note("inputs", Verdict::Failed, why);
    }
    let by_key = held.iter().map(|(key, n)| match key.as_str() {
        "" => format!("{n} unencrypted"),
        key => format!("{n} encrypted with {key}"),
    });
    let by_key: Vec<String> = by_key.collect();
    report.note("inputs", Verdict::Ok, if by_key.is_empty() { "none stored".to_owned() } else { by_key.join(", ") });
}

/// Warns about pauses, which may have been forgotten.
fn pauses(paused: &[(Scope, i64)], queue: &str, report: &mut Report) {
    if paused.is_empty() {
        return report.note("pauses", Verdict::Ok, "nothing is paused");
    }
    let held = paused.iter().map(|(scope, since)| match scope {
        Scope::Queue => format!("queue {queue} has been paused since {} (`queue resume`)", session::time(*since)),
        Scope::Circuit(name) => {
            format!("circuit {name} has been paused since {} (`circuits resume {name}`)", session::time(*since))
        }
    });
    let held = held.collect::<Vec<_>>().join("; ");
    let found = format!("{held}; jobs wait, but no longer than PROVER_QUEUE_TIMEOUT_SECS if that is set");
    report.note("pauses", Verdict::Warning, found);
}

/// Compiles and runs a small witness program, as a job would.
fn sandbox(config: &Config) -> Result<String, String> {
    let limits = RegistryLimits::for_witness(config.witness_timeout, config.witness_memory).witness;
    let program = WasmWitness::load(WASM, limits, &module_cache(config)).map_err(|e| e.to_string())?;
    let inputs = Inputs::parse(br#"{"a": 3, "b": 11}"#).map_err(|e| e.to_string())?;
    let witness = program.generate(&inputs, &StopToken::new()).map_err(|e| e.to_string())?;
    Ok(format!("compiles and computes ({} values)", witness.len()))
}

fn devices(config: &Config, report: &mut Report) {
    let found = match session::devices(config) {
        Ok(found) => found,
        Err(CliError::Failed(e) | CliError::Usage(e)) => return report.note("devices", Verdict::Failed, e),
        Err(CliError::Reported) => return report.note("devices", Verdict::Failed, "cannot be found"),
    };
    report.note("devices", Verdict::Ok, &found.summary);
    let canary = match Canary::new() {
        Ok(c) => c,
        Err(e) => return report.note("canary", Verdict::Failed, e),
    };
    for device in &found.devices {
        let label = device.device().label();
        let result = canary.run(device.as_ref());
        report.result(
            "canary",
            result.map(|()| format!("{label} proves and verifies")).map_err(|e| format!("{label}: {e}")),
        );
    }
}

fn ports(config: &Config, report: &mut Report) {
    if let Some(addr) = config.api_addr.filter(|a| !a.ip().is_loopback() && config.api_tokens.is_empty()) {
        let why = format!("{addr} is open to other machines and requires no token: set PROVER_API_TOKENS");
        report.note("api", Verdict::Warning, why);
    }
    let doors = [("METRICS_PORT", config.metrics_addr), ("PROVER_API_ADDR", config.api_addr)];
    for (variable, addr) in doors {
        let Some(addr) = addr else { continue };
        match TcpListener::bind::<SocketAddr>(addr) {
            Ok(_) => report.note("port", Verdict::Ok, format!("{addr} is free")),
            Err(e) => {
                let why = format!("{addr}: {e}; a worker may already be running; otherwise, set {variable}");
                report.note("port", Verdict::Warning, why);
            }
        }
    }
}

fn describe(report: &Report) -> String {
    let row = |c: &Check| {
        let verdict = match c.verdict {
            Verdict::Ok => "ok",
            Verdict::Warning => "warning",
            Verdict::Failed => "FAILED",
        };
        vec![c.what.to_owned(), verdict.to_owned(), c.found.clone()]
    };
    let rows: Vec<_> = report.checks.iter().map(row).collect();
    let set = |s: &Setting| vec![s.name.to_owned(), if s.set { "set" } else { "default" }.to_owned(), s.value.clone()];
    let settings: Vec<_> = report.settings.iter().map(set).collect();
    format!(
        "{}\n\n{}",
        session::table(&["check", "verdict", "found"], &rows),
        session::table(&["variable", "from", "value"], &settings)
    )
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn config(folder: &Path, env: &[(&str, &str)]) -> Config {
        let of = |name: &str| env.iter().find(|(n, _)| *n == name).map(|(_, value)| (*value).to_owned());
        let folder_is = |name: &str| (name == "PROVER_DATA_DIR").then(|| folder.display().to_string());
        Config::from_lookup(|name| of(name).or_else(|| folder_is(name))).unwrap()
    }

    /// Returns the verdicts for these settings, without their sentences.
    async fn verdicts(env: &[(&str, &str)]) -> Vec<(&'static str, Verdict)> {
        let folder = tempfile::tempdir().unwrap();
        let config = config(folder.path(), env);
        let mut report = Report { checks: Vec::new(), settings: Vec::new() };
        services(&config, &mut report).await;
        report.checks.iter().map(|c| (c.what, c.verdict)).collect()
    }

    #[tokio::test]
    async fn a_service_that_fails_is_named_and_hides_no_other() {
        let (ok, failed, warning) = (Verdict::Ok, Verdict::Failed, Verdict::Warning);
        let sound = verdicts(&[]).await;
        let (rest, inputs) = ([("pauses", ok), ("artifacts", ok), ("circuits", ok)], ("inputs", ok));
        assert_eq!(sound, [[("queue", ok), ("store", ok), inputs].as_slice(), &rest].concat());
        let without = verdicts(&[("PROVER_PROOF_FILES", "off")]).await;
        assert!(without.iter().all(|(what, _)| *what != "artifacts"), "nothing is written there: {without:?}");
        let keys = verdicts(&[("PROVER_ENCRYPTION_KEYS", "a:short")]).await;
        assert_eq!(keys, [[("inputs", failed), ("queue", ok), ("store", ok)].as_slice(), &rest].concat());
        // Nothing listens on port 1.
        let away = [("DATABASE_URL", "postgres://127.0.0.1:1/jobs"), ("REDIS_URL", "redis://127.0.0.1:1")];
        assert_eq!(verdicts(&away).await, [("queue", failed), ("store", failed), ("circuits", warning)]);
    }

    #[test]
    fn an_api_that_is_open_to_other_machines_and_asks_for_no_token_is_a_warning() {
        let warned = |env: &[(&str, &str)]| {
            let mut report = Report { checks: Vec::new(), settings: Vec::new() };
            ports(&config(Path::new("unused"), &[env, &[("METRICS_PORT", "off")]].concat()), &mut report);
            report.checks.iter().any(|c| c.what == "api" && c.verdict == Verdict::Warning)
        };
        let (open, token) = (("PROVER_API_ADDR", "0.0.0.0:0"), ("PROVER_API_TOKENS", "0123456789abcdef"));
        assert!(warned(&[open]));
        assert!(!warned(&[open, token]) && !warned(&[("PROVER_API_ADDR", "127.0.0.1:0")]));
    }

    fn found(paused: &[(Scope, i64)]) -> (Verdict, String) {
        let mut report = Report { checks: Vec::new(), settings: Vec::new() };
        pauses(paused, "prove", &mut report);
        let check = report.checks.pop().unwrap();
        (check.verdict, check.found)
    }

    #[test]
    fn what_is_held_back_is_a_warning_with_its_time_and_its_end() {
        assert_eq!(found(&[]).0, Verdict::Ok);
        let (verdict, found) = found(&[(Scope::Queue, 0), (Scope::Circuit("transfer".parse().unwrap()), 0)]);
        assert_eq!(verdict, Verdict::Warning);
        for words in ["queue prove has been paused since 1970-01-01", "`queue resume`", "`circuits resume transfer`"] {
            assert!(found.contains(words), "{found}");
        }
    }

    #[test]
    fn registering_again_is_advice_for_files_at_fault_alone() {
        let limit = WitnessError::Compile("the cache folder /x: not a folder".into());
        assert!(!is_of_its_files(&RegistryError::Witness(limit)));
        assert!(is_of_its_files(&RegistryError::Witness(WitnessError::Module("it is none".into()))));
        let what = "zkeys/x".to_owned();
        assert!(is_of_its_files(&RegistryError::Artifact(ArtifactError::Missing { what: what.clone() })));
        let away = ArtifactError::Store { what, why: "nobody answers".into() };
        assert!(!is_of_its_files(&RegistryError::Artifact(away)));
    }
}
