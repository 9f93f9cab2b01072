//! The configuration, read once from the environment.
//!
//! No other module reads environment variables, or the files that may hold their values. [`CATALOGUE`] is the single
//! list of them: `doctor` prints it, and the table in the documentation is generated from it.

mod catalogue;
mod mask;
mod reader;
mod values;

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use catalogue::LOG_LEVEL;
pub use catalogue::{CATALOGUE, Variable, markdown_table};
use mask::mask;
use reader::{Reader, wrong};
use values::{
    artifacts_url, database_url, host_or_url, http_url, icicle_device, log_filter, or_off, queue_name, redis_url,
    split_tokens,
};

use crate::model::{BackendChoice, Cloud, Instructions};

/// An invalid value of a variable.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{name}: expected {expected}, got {got}")]
pub struct ConfigError {
    /// Name of the variable.
    pub name: &'static str,
    /// The values it accepts.
    pub expected: String,
    /// Its value, with passwords masked.
    pub got: String,
}

/// The effective value of a variable.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Setting {
    /// Name of the variable.
    pub name: &'static str,
    /// Its value, with passwords masked; the catalogue's default when it is unset.
    pub value: String,
    /// Whether it is set.
    pub set: bool,
}

/// Text that `Debug` does not reveal.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Returns the text.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

/// The database of circuits and jobs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Database {
    /// A local file.
    Sqlite(PathBuf),
    /// A server, by its URL.
    Postgres(Secret),
}

impl fmt::Display for Database {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sqlite(path) => path.display().fmt(f),
            Self::Postgres(url) => f.write_str(&mask(url.reveal())),
        }
    }
}

/// When a worker exits because of dead devices, which may only come back in a new process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExitOnDead {
    /// When all of its devices other than the CPU are dead.
    All,
    /// When at least one of them is dead.
    Any,
    /// Never.
    Off,
}

impl ExitOnDead {
    /// Whether the worker exits when `dead` of its `of` devices other than the CPU are dead.
    pub fn is_reached(self, dead: usize, of: usize) -> bool {
        match self {
            Self::All => dead > 0 && dead == of,
            Self::Any => dead > 0,
            Self::Off => false,
        }
    }
}

/// Shared storage for artifacts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ArtifactsUrl {
    /// A local or mounted folder.
    Folder(PathBuf),
    /// An object store.
    Bucket {
        /// The cloud that provides it.
        cloud: Cloud,
        /// Name of the bucket or container.
        bucket: String,
        /// Prefix of the objects' names; may be empty, and has no trailing slash.
        prefix: String,
    },
}

/// The variables with credentials for `cloud`, and whether their values are secret.
fn variables(cloud: Cloud) -> &'static [(&'static str, bool)] {
    match cloud {
        Cloud::Amazon => &[
            ("AWS_REGION", false),
            ("AWS_ACCESS_KEY_ID", false),
            ("AWS_SECRET_ACCESS_KEY", true),
            ("AWS_SESSION_TOKEN", true),
            ("AWS_ROLE_ARN", false),
            ("AWS_WEB_IDENTITY_TOKEN_FILE", false),
            ("AWS_ROLE_SESSION_NAME", false),
            ("AWS_ENDPOINT_URL_STS", false),
            ("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI", false),
            ("AWS_CONTAINER_CREDENTIALS_FULL_URI", false),
            ("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", false),
        ],
        Cloud::Google => &[("GOOGLE_APPLICATION_CREDENTIALS", false)],
        Cloud::Azure => &[
            ("AZURE_STORAGE_ACCOUNT_NAME", false),
            ("AZURE_STORAGE_ACCOUNT_KEY", true),
            ("AZURE_STORAGE_SAS_TOKEN", true),
            ("AZURE_TENANT_ID", false),
            ("AZURE_CLIENT_ID", false),
            ("AZURE_FEDERATED_TOKEN_FILE", false),
            ("AZURE_AUTHORITY_HOST", false),
            ("AZURE_CLIENT_SECRET", true),
        ],
    }
}

/// Endpoint and credentials of an object store.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct BucketAccess {
    /// URL of the server, if it is not the cloud's own.
    pub endpoint: Option<String>,
    /// The variables with credentials that are set, with their values.
    pub variables: Vec<(&'static str, Secret)>,
}

impl BucketAccess {
    /// Reads the variables of every cloud, so that all of them are checked, and returns those of the cloud in
    /// `artifacts`.
    fn read(r: &mut Reader<'_>, artifacts: Option<&ArtifactsUrl>) -> Result<Self, ConfigError> {
        let mut used = Self::default();
        for cloud in Cloud::ALL {
            let access = Self {
                endpoint: match cloud {
                    Cloud::Amazon => r.parse("AWS_ENDPOINT_URL", "an http:// or https:// address", http_url)?,
                    Cloud::Google => {
                        r.parse("STORAGE_EMULATOR_HOST", "HOST:PORT or an http:// address", host_or_url)?
                    }
                    Cloud::Azure => r.parse("AZURE_STORAGE_ENDPOINT", "an http:// or https:// address", http_url)?,
                },
                variables: variables(cloud).iter().filter_map(|v| Some((v.0, r.value(v.0, v.1)?))).collect(),
            };
            if matches!(artifacts, Some(ArtifactsUrl::Bucket { cloud: c, .. }) if *c == cloud) {
                used = access;
            }
        }
        Ok(used)
    }
}

/// The configuration of proofs on the CPU, which is all that `groth16-prover` reads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Processor {
    /// Instruction set.
    pub instructions: Instructions,
    /// Maximum number of threads of a proof; one per core when `None`.
    pub threads: Option<usize>,
}

impl Processor {
    /// Reads the environment of the process.
    pub fn from_env() -> Result<Self, ConfigError> {
        Self::read(&mut Reader::new(&environment))
    }

    fn read(r: &mut Reader<'_>) -> Result<Self, ConfigError> {
        let instructions = r.parse("PROVER_CPU", "auto, avx512ifma, avx2 or portable", |s| s.parse().ok())?;
        Ok(Self { instructions: instructions.unwrap_or_default(), threads: r.number("PROVER_THREADS", 1, 1024)? })
    }
}

/// The configuration of ICICLE.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Icicle {
    /// Folder of its libraries; where its installer puts them when `None`.
    pub libraries: Option<PathBuf>,
    /// Folder of its backends; `backend` in the folder of its libraries when `None`.
    pub backends: Option<PathBuf>,
    /// Type of its devices, in capitals; any type when `None`.
    pub device: Option<String>,
}

impl Icicle {
    fn read(r: &mut Reader<'_>) -> Result<Self, ConfigError> {
        let device = r.parse("PROVER_ICICLE_DEVICE", "auto, or a type such as CUDA or METAL", icicle_device)?;
        Ok(Self {
            libraries: r.text("ICICLE_LIB_DIR").map(PathBuf::from),
            backends: r.text("ICICLE_BACKEND_INSTALL_DIR").map(PathBuf::from),
            device: device.flatten(),
        })
    }
}

/// Returns an environment variable of the process.
fn environment(name: &str) -> Option<String> {
    std::env::var_os(name).map(|v| v.to_string_lossy().into_owned())
}

/// The configuration, parsed and validated.
#[derive(Clone, PartialEq, Eq)]
pub struct Config {
    /// The database of circuits and jobs.
    pub database: Database,
    /// URL of the shared queue; the queue is in-process when `None`.
    pub redis: Option<Secret>,
    /// Folder for keys, witness programs, proofs and the embedded database.
    pub data_dir: PathBuf,
    /// Name of the job queue.
    pub queue_name: String,
    /// Maximum number of jobs in progress at once; chosen for each device when `None`.
    pub concurrency: Option<usize>,
    /// Log filter.
    pub log_level: String,
    /// Whether log lines are JSON; when `None`, they are unless they go to a terminal.
    pub log_json: Option<bool>,
    /// Address of the metrics and health endpoints, unless they are disabled.
    pub metrics_addr: Option<SocketAddr>,
    /// Address of the API, unless it is disabled.
    pub api_addr: Option<SocketAddr>,
    /// Tokens of which each request to the API must present one; no token is required when empty.
    pub api_tokens: Vec<Secret>,
    /// The backend that computes proofs.
    pub backend: BackendChoice,
    /// Proofs on the CPU.
    pub processor: Processor,
    /// Whether the kernels of a small proof on an NVIDIA GPU may be launched as a CUDA graph.
    pub cuda_graphs: bool,
    /// ICICLE.
    pub icicle: Icicle,
    /// How long a lease lasts without a heartbeat.
    pub lease: Duration,
    /// Whether witness programs may be rewritten to run faster.
    pub witness_rewritten: bool,
    /// Time limit for generating a witness.
    pub witness_timeout: Duration,
    /// Memory limit of a witness program, in bytes.
    pub witness_memory: u64,
    /// Time limit for a proof.
    pub prove_timeout: Duration,
    /// Time limit for an attempt at a job.
    pub job_timeout: Duration,
    /// Time limit for a job's wait for a worker, if there is one.
    pub queue_timeout: Option<Duration>,
    /// How long finished jobs are kept; for ever when `None`.
    pub retention: Option<Duration>,
    /// How long the input of a failed job is kept.
    pub keep_failed_inputs: Duration,
    /// Whether proofs are copied to files.
    pub proof_files: bool,
    /// Keys that encrypt inputs, unparsed.
    pub encryption_keys: Option<Secret>,
    /// Shared storage for artifacts; the data folder when `None`.
    pub artifacts: Option<ArtifactsUrl>,
    /// Size of the local disk cache for remote artifacts, in bytes.
    pub artifact_cache_bytes: u64,
    /// Endpoint and credentials of the object store in `artifacts`, if it is one.
    pub bucket_access: BucketAccess,
    /// Maximum number of proofs given to a device at once; chosen by the device when `None`.
    pub batch_max: Option<usize>,
    /// How long a device waits for more jobs before it starts a batch that is not full.
    pub batch_linger: Duration,
    /// Whether the CPU takes jobs while every GPU is full.
    pub cpu_overflow: bool,
    /// When the worker exits because of dead devices.
    pub exit_on_dead: ExitOnDead,
    /// How long proofs in progress may continue after a shutdown signal.
    pub grace: Duration,
    /// Size of the cache of proving keys, in bytes, on the host and on each device; half of the memory when `None`.
    pub key_cache_bytes: Option<u64>,
    /// Maximum size of an input, in bytes.
    pub max_input_bytes: usize,
    settings: Vec<Setting>,
}

impl Config {
    /// Reads the environment of the process.
    pub fn from_env() -> Result<Self, ConfigError> {
        Self::from_lookup(environment)
    }

    /// Returns the names of environment variables that begin with `PROVER_` but are not in [`CATALOGUE`], sorted. A
    /// misspelt variable would otherwise be ignored silently.
    pub fn unknown_variables() -> Vec<String> {
        // Kubernetes sets PROVER_SERVICE_HOST, PROVER_PORT and the like for a service called prover.
        let ours = |n: &str| n.starts_with("PROVER_") && !n.contains("_SERVICE_") && !n.contains("_PORT");
        let names = std::env::vars_os().map(|(name, _)| name.to_string_lossy().into_owned());
        let mut unknown: Vec<String> = names.filter(|n| ours(n) && CATALOGUE.iter().all(|v| v.name != n)).collect();
        unknown.sort();
        unknown
    }

    /// Whether a variable is set.
    pub fn sets(&self, name: &str) -> bool {
        self.settings.iter().any(|s| s.name == name && s.set)
    }

    /// Reads variables from `lookup`. An empty or blank variable counts as unset.
    ///
    /// # Errors
    ///
    /// The first variable with an invalid value, or one that conflicts with another variable.
    pub fn from_lookup(lookup: impl Fn(&str) -> Option<String>) -> Result<Self, ConfigError> {
        let mut r = Reader::new(&lookup);
        let in_files = r.files()?;
        let lookup =
            |name: &str| in_files.iter().find(|(n, _)| *n == name).map(|f| f.1.clone()).or_else(|| lookup(name));
        r.lookup = &lookup;
        let data_dir = data_dir(&mut r)?;
        let expected = "s3://BUCKET/PREFIX, gs://BUCKET/PREFIX, az://CONTAINER/PREFIX or file:///FOLDER";
        let artifacts = r.parse("PROVER_ARTIFACTS_URL", expected, artifacts_url)?;
        let mut config = Self {
            database: database(&mut r, &data_dir)?,
            redis: r.parse("REDIS_URL", "redis://HOST:PORT/DB or rediss://HOST:PORT/DB", redis_url)?,
            queue_name: r
                .parse("QUEUE_NAME", "1 to 64 characters of A-Z a-z 0-9 . _ -", queue_name)?
                .unwrap_or_else(|| "prove".to_owned()),
            concurrency: r.number("WORKER_CONCURRENCY", 1, 1024)?,
            log_level: r
                .parse("LOG_LEVEL", "off, error, warn, info, debug, trace or a filter", log_filter)?
                .unwrap_or_else(|| LOG_LEVEL.to_owned()),
            log_json: r.one_of("LOG_FORMAT", &[("text", false), ("json", true)])?,
            metrics_addr: metrics_addr(&mut r)?,
            api_addr: r
                .parse("PROVER_API_ADDR", "an address and port, such as 127.0.0.1:9180, or off", or_off)?
                .unwrap_or(Some(SocketAddr::from(([127, 0, 0, 1], 9180)))),
            api_tokens: api_tokens(&mut r)?,
            backend: r.parse("PROVER_BACKEND", "auto, cuda, icicle or cpu", |s| s.parse().ok())?.unwrap_or_default(),
            processor: Processor::read(&mut r)?,
            cuda_graphs: r.one_of("PROVER_CUDA_GRAPHS", &[("auto", true), ("off", false)])?.unwrap_or(true),
            icicle: Icicle::read(&mut r)?,
            lease: r.secs("PROVER_LEASE_SECS", 30, 1, 3600)?,
            witness_rewritten: r.one_of("PROVER_WITNESS", &[("auto", true), ("plain", false)])?.unwrap_or(true),
            witness_timeout: r.secs("PROVER_WITNESS_TIMEOUT_SECS", 60, 1, 86_400)?,
            witness_memory: r
                .bytes("PROVER_WITNESS_MEMORY_BYTES", "16M to 4G, such as 512M", 16 << 20..=4 << 30)?
                .unwrap_or(4 << 30),
            prove_timeout: r.secs("PROVER_PROVE_TIMEOUT_SECS", 1800, 1, 86_400)?,
            job_timeout: r.secs("PROVER_JOB_TIMEOUT_SECS", 3600, 1, 604_800)?,
            queue_timeout: r.secs_or_off("PROVER_QUEUE_TIMEOUT_SECS", 1, 31_536_000)?,
            retention: r.secs_or_off("PROVER_RETENTION_SECS", 60, 3_153_600_000)?,
            keep_failed_inputs: r.secs("PROVER_KEEP_FAILED_INPUT_SECS", 86_400, 0, 31_536_000)?,
            proof_files: r.on_off("PROVER_PROOF_FILES", true)?,
            encryption_keys: r.secret("PROVER_ENCRYPTION_KEYS"),
            artifact_cache_bytes: r
                .bytes("PROVER_ARTIFACT_CACHE_BYTES", "bytes, such as 64G", 0..=u64::MAX)?
                .unwrap_or(64 << 30),
            bucket_access: BucketAccess::read(&mut r, artifacts.as_ref())?,
            batch_max: r.number("PROVER_BATCH_MAX", 1, 1024)?,
            batch_linger: Duration::from_millis(r.number("PROVER_BATCH_LINGER_MS", 0, 10_000)?.unwrap_or(0)),
            cpu_overflow: r.on_off("PROVER_CPU_OVERFLOW", false)?,
            exit_on_dead: r
                .one_of(
                    "PROVER_EXIT_ON_DEAD_DEVICE",
                    &[("all", ExitOnDead::All), ("any", ExitOnDead::Any), ("off", ExitOnDead::Off)],
                )?
                .unwrap_or(ExitOnDead::All),
            grace: r.secs("PROVER_GRACE_SECS", 25, 0, 86_400)?,
            key_cache_bytes: r.bytes("PROVER_KEY_CACHE_BYTES", "bytes, such as 8G", 0..=u64::MAX)?,
            max_input_bytes: r
                .bytes("PROVER_MAX_INPUT_BYTES", "1 byte to 1G, such as 64M", 1..=1 << 30)?
                .and_then(|n| usize::try_from(n).ok())
                .unwrap_or(64 << 20),
            artifacts,
            data_dir,
            settings: Vec::new(),
        };
        config.settings = r.settings;
        config.check_together()?;
        Ok(config)
    }

    /// Checks the rules that concern more than one variable.
    fn check_together(&self) -> Result<(), ConfigError> {
        if self.redis.is_some() && matches!(self.database, Database::Sqlite(_)) {
            let expected = "no value while jobs are kept in SQLite: workers that share an SQLite file need no other \
                            queue, and workers on other machines could not reach the file. Set \
                            DATABASE_URL=postgres://… too";
            return Err(wrong(&self.settings, "REDIS_URL", expected));
        }
        Ok(())
    }

    /// Returns the configuration with everything kept in `dir`: an SQLite database, an in-process queue, local
    /// artifacts.
    pub fn in_dir(mut self, dir: &Path) -> Self {
        self.database = Database::Sqlite(dir.join("prover-worker.db"));
        (self.redis, self.artifacts) = (None, None);
        self.data_dir = dir.to_path_buf();
        self
    }

    /// Returns the effective value of every variable, in the order of [`CATALOGUE`], with passwords masked.
    pub fn settings(&self) -> Vec<Setting> {
        let of = |v: &Variable| self.settings.iter().find(|s| s.name == v.name).cloned();
        CATALOGUE.iter().filter_map(of).collect()
    }
}

impl fmt::Debug for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.settings.iter().map(|s| (s.name, &s.value))).finish()
    }
}

fn data_dir(r: &mut Reader<'_>) -> Result<PathBuf, ConfigError> {
    match r.text("PROVER_DATA_DIR") {
        Some(dir) => Ok(PathBuf::from(dir)),
        None => {
            let dirs = directories::BaseDirs::new();
            let dirs =
                dirs.ok_or_else(|| r.wrong("PROVER_DATA_DIR", "a folder, because the home folder is unknown"))?;
            Ok(dirs.data_dir().join("prover-worker"))
        }
    }
}

fn database(r: &mut Reader<'_>, data_dir: &Path) -> Result<Database, ConfigError> {
    match r.text("DATABASE_URL") {
        None => Ok(Database::Sqlite(data_dir.join("prover-worker.db"))),
        Some(url) => database_url(&url).map_err(|expected| r.wrong("DATABASE_URL", expected)),
    }
}

fn metrics_addr(r: &mut Reader<'_>) -> Result<Option<SocketAddr>, ConfigError> {
    let port = r.parse("METRICS_PORT", "a port from 0 to 65535, or off", or_off)?.unwrap_or(Some(9101));
    let ip = r.parse("METRICS_ADDR", "an IP address, such as 0.0.0.0", |s| s.parse::<IpAddr>().ok())?;
    let ip = ip.unwrap_or(IpAddr::from([0, 0, 0, 0]));
    Ok(port.map(|port| SocketAddr::new(ip, port)))
}

fn api_tokens(r: &mut Reader<'_>) -> Result<Vec<Secret>, ConfigError> {
    let Some(list) = r.secret("PROVER_API_TOKENS") else { return Ok(Vec::new()) };
    // The error gives the position of the invalid token, not its text.
    split_tokens(&list).map_err(|nth| {
        let each = "comma-separated tokens, each 16 to 256 characters of A-Z a-z 0-9 . _ ~ + / = -";
        r.wrong("PROVER_API_TOKENS", format!("{each} (number {nth} is not)"))
    })
}

#[cfg(test)]
mod tests;
