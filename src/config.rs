//! The configuration, read once from the environment.
//!
//! No other module reads environment variables, or the files that may hold their values. [`CATALOGUE`] is the single
//! list of them: `doctor` prints it, and the table in the documentation is generated from it.

use std::fmt;
use std::fs::File;
use std::io::Read;
use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use tracing_subscriber::EnvFilter;

use crate::model::{BackendChoice, Cloud, Instructions, clip, io_reason};

/// The documentation of a variable.
#[derive(Debug, Clone, Copy, serde::Serialize)]
pub struct Variable {
    /// Name of the variable.
    pub name: &'static str,
    /// Value when unset, or a description of it.
    pub default: &'static str,
    /// What the variable controls and the values it accepts.
    pub meaning: &'static str,
}

const fn var(name: &'static str, default: &'static str, meaning: &'static str) -> Variable {
    Variable { name, default, meaning }
}

/// Default log filter. The object store library logs each of its retries without saying what it retries; the outcome is
/// in the worker's own log lines.
const LOG_LEVEL: &str = "info,object_store=warn";

/// Every variable that the program reads.
pub const CATALOGUE: &[Variable] = &[
    var(
        "DATABASE_URL",
        "prover-worker.db in PROVER_DATA_DIR",
        "database of circuits and jobs: sqlite://PATH, or postgres://USER:PASSWORD@HOST:PORT/NAME (?sslmode=require \
         for TLS)",
    ),
    var(
        "DATABASE_URL_FILE",
        "none",
        "file that contains DATABASE_URL, such as a secret mounted by Docker or Kubernetes",
    ),
    var(
        "REDIS_URL",
        "none: each worker has an in-process queue",
        "job queue shared by all workers: redis://USER:PASSWORD@HOST:PORT/DB, or rediss:// for TLS; requires a \
         Postgres DATABASE_URL",
    ),
    var("REDIS_URL_FILE", "none", "file that contains REDIS_URL"),
    var("QUEUE_NAME", "prove", "name of the job queue: 1 to 64 characters of A-Z a-z 0-9 . _ -"),
    var(
        "WORKER_CONCURRENCY",
        "chosen for each device",
        "maximum number of jobs in progress at once, over all devices: 1 to 1024",
    ),
    var(
        "LOG_LEVEL",
        LOG_LEVEL,
        "what is logged: off, error, warn, info, debug or trace, or a filter such as info,prover_worker::worker=debug",
    ),
    var("LOG_FORMAT", "text on a terminal, json otherwise", "format of log lines: text or json"),
    var(
        "METRICS_PORT",
        "9101",
        "port of /metrics, /healthz and /readyz; 0 picks a free port, off disables the endpoints",
    ),
    var("METRICS_ADDR", "0.0.0.0", "IP address on which METRICS_PORT is opened; nothing secret is served there"),
    var(
        "PROVER_API_ADDR",
        "127.0.0.1:9180",
        "IP address and port of the HTTP API, or off. By default, only this machine can reach it",
    ),
    var(
        "PROVER_API_TOKENS",
        "none: any client that can reach the API may use it",
        "comma-separated tokens, one of which each request to the API must present: each 16 to 256 characters of A-Z \
         a-z 0-9 . _ ~ + / = -",
    ),
    var("PROVER_API_TOKENS_FILE", "none", "file that contains PROVER_API_TOKENS"),
    var(
        "PROVER_DATA_DIR",
        "prover-worker in the user's data folder",
        "folder for keys, witness programs, proofs and the embedded database",
    ),
    var(
        "PROVER_BACKEND",
        "auto",
        "backend that computes proofs: cuda, icicle or cpu, or auto for the first of these with a usable device",
    ),
    var(
        "PROVER_CPU",
        "auto: the fastest one that the CPU supports",
        "instruction set for proofs on the CPU: auto, avx512ifma, avx2 or portable",
    ),
    var(
        "PROVER_CUDA_GRAPHS",
        "auto",
        "auto: the kernels of a small proof are launched together on NVIDIA GPUs, as a CUDA graph; off: each kernel is \
         launched separately",
    ),
    var(
        "ICICLE_LIB_DIR",
        "/opt/icicle/lib",
        "folder of ICICLE's libraries, all of the same release: libicicle_device, libicicle_field_bn254 and \
         libicicle_curve_bn254",
    ),
    var(
        "ICICLE_BACKEND_INSTALL_DIR",
        "the subfolder backend of ICICLE_LIB_DIR",
        "folder of ICICLE's backends, of the same release as its libraries",
    ),
    var(
        "PROVER_ICICLE_DEVICE",
        "auto: the first available of CUDA, METAL and VULKAN",
        "type of the ICICLE devices to use: auto, or a type that ICICLE knows, such as CUDA, METAL, VULKAN or CPU \
         (slow, for tests)",
    ),
    var(
        "PROVER_THREADS",
        "one per core",
        "maximum number of threads of a proof on the CPU: 1 to 1024; proofs that run concurrently get fewer",
    ),
    var(
        "PROVER_LEASE_SECS",
        "30",
        "duration of a worker's lease on a job, in seconds: 1 to 3600; a worker that does not renew it in time loses \
         the job",
    ),
    var(
        "PROVER_WITNESS",
        "auto",
        "auto: circom's field arithmetic in a witness program is replaced with a faster implementation where it is \
         recognised; plain: witness programs run unmodified",
    ),
    var("PROVER_WITNESS_TIMEOUT_SECS", "60", "time limit for generating a witness, in seconds: 1 to 86400"),
    var(
        "PROVER_WITNESS_MEMORY_BYTES",
        "4G",
        "memory limit of a witness program, in bytes: 16M to 4G; K, M and G stand for 1024, 1024², …",
    ),
    var(
        "PROVER_PROVE_TIMEOUT_SECS",
        "1800",
        "time limit for a proof, in seconds, not counting the wait for the device: 1 to 86400",
    ),
    var(
        "PROVER_JOB_TIMEOUT_SECS",
        "3600",
        "time limit for one attempt at a job, all stages, in seconds, not counting the wait for the device: 1 to \
         604800",
    ),
    var(
        "PROVER_QUEUE_TIMEOUT_SECS",
        "off",
        "how long a job may wait for a worker (pauses included) before it fails, in seconds: 1 to 31536000, or off for \
         no limit",
    ),
    var(
        "PROVER_RETENTION_SECS",
        "off",
        "how long finished jobs are kept, with their proofs, before they are deleted, in seconds: 60 to 3153600000, or \
         off to keep them for ever",
    ),
    var(
        "PROVER_PROOF_FILES",
        "on",
        "on: each proof is also copied to files among the artifacts; off: it is kept in the database only, where the \
         commands and the API find it",
    ),
    var(
        "PROVER_KEEP_FAILED_INPUT_SECS",
        "86400",
        "how long the input of a failed job is kept for `jobs requeue`, in seconds: 0 to 31536000; invalid input is \
         never kept",
    ),
    var(
        "PROVER_ENCRYPTION_KEYS",
        "none: inputs are stored unencrypted",
        "keys that encrypt inputs at rest: comma-separated NAME:KEY pairs, each KEY 32 bytes in base64. The first one \
         encrypts, all of them decrypt",
    ),
    var("PROVER_ENCRYPTION_KEYS_FILE", "none", "file that contains PROVER_ENCRYPTION_KEYS"),
    var(
        "PROVER_ARTIFACTS_URL",
        "the data folder",
        "shared storage for keys, witness programs and proofs: s3://BUCKET/PREFIX, gs://BUCKET/PREFIX (Google), \
         az://CONTAINER/PREFIX (Azure), or file:///FOLDER",
    ),
    var(
        "PROVER_ARTIFACT_CACHE_BYTES",
        "64G",
        "size of the local disk cache for keys and witness programs in remote storage, in bytes; K, M, G and T stand \
         for 1024, 1024², …",
    ),
    var("AWS_ENDPOINT_URL", "Amazon's", "URL of another S3-compatible server, such as http://127.0.0.1:9000"),
    var("AWS_REGION", "us-east-1", "region of the bucket"),
    var("AWS_ACCESS_KEY_ID", "the machine's role", "ID of the access key for S3"),
    var("AWS_SECRET_ACCESS_KEY", "the machine's role", "secret of the access key for S3"),
    var("AWS_SESSION_TOKEN", "none", "session token of temporary credentials for S3"),
    var(
        "AWS_ROLE_ARN",
        "none",
        "IAM role to assume for S3, by the token in AWS_WEB_IDENTITY_TOKEN_FILE (EKS sets both)",
    ),
    var("AWS_WEB_IDENTITY_TOKEN_FILE", "none", "file that contains the token that AWS_ROLE_ARN is assumed with"),
    var("AWS_ROLE_SESSION_NAME", "the library's", "session name for AWS_ROLE_ARN"),
    var(
        "AWS_ENDPOINT_URL_STS",
        "Amazon's",
        "URL of the security token service (STS) that issues credentials for AWS_ROLE_ARN",
    ),
    var(
        "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
        "none",
        "path that credentials for S3 are fetched from on ECS (ECS sets it)",
    ),
    var(
        "AWS_CONTAINER_CREDENTIALS_FULL_URI",
        "none",
        "URL that credentials for S3 are fetched from with EKS Pod Identity, by the token in \
         AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE (EKS sets both)",
    ),
    var(
        "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE",
        "none",
        "file that contains the token for AWS_CONTAINER_CREDENTIALS_FULL_URI",
    ),
    var(
        "GOOGLE_APPLICATION_CREDENTIALS",
        "gcloud's in the home folder, otherwise the machine's service account",
        "file of the credentials for gs://: a service account's key or a user's credentials",
    ),
    var(
        "STORAGE_EMULATOR_HOST",
        "Google's",
        "address of another server for gs://, such as 127.0.0.1:4443; it is used without credentials",
    ),
    var("AZURE_STORAGE_ACCOUNT_NAME", "none", "storage account for az://"),
    var(
        "AZURE_STORAGE_ACCOUNT_KEY",
        "none",
        "key of the storage account; without it and AZURE_STORAGE_SAS_TOKEN, a client's or the machine's identity is \
         used",
    ),
    var("AZURE_STORAGE_SAS_TOKEN", "none", "shared access signature (SAS) for the container"),
    var(
        "AZURE_STORAGE_ENDPOINT",
        "https://ACCOUNT.blob.core.windows.net",
        "URL of another server or another cloud's endpoint for az://, such as http://127.0.0.1:10000/devstoreaccount1",
    ),
    var(
        "AZURE_TENANT_ID",
        "none",
        "tenant of the client (AKS sets this, AZURE_CLIENT_ID, AZURE_FEDERATED_TOKEN_FILE and AZURE_AUTHORITY_HOST)",
    ),
    var("AZURE_CLIENT_ID", "the machine's identity", "client for az://, or the one of the machine's identities to use"),
    var("AZURE_FEDERATED_TOKEN_FILE", "none", "file that contains the client's federated token"),
    var(
        "AZURE_AUTHORITY_HOST",
        "https://login.microsoftonline.com",
        "URL of the authority that authenticates the client",
    ),
    var("AZURE_CLIENT_SECRET", "none", "secret of the client, if it has no AZURE_FEDERATED_TOKEN_FILE"),
    var(
        "PROVER_BATCH_MAX",
        "the best size for the device",
        "maximum number of proofs of one circuit that a GPU is given at once: 1 to 1024",
    ),
    var(
        "PROVER_BATCH_LINGER_MS",
        "0",
        "how long a device waits for more jobs of a circuit before it starts a batch that is not full, in \
         milliseconds: 0 to 10000",
    ),
    var(
        "PROVER_CPU_OVERFLOW",
        "off",
        "on: the CPU also takes jobs while every GPU is full; off: the CPU is only a fallback",
    ),
    var(
        "PROVER_EXIT_ON_DEAD_DEVICE",
        "all",
        "when the worker exits, with code 1, so that its supervisor restarts it: all, when every device other than the \
         CPU has been unusable for ten minutes; any, when at least one has; off, never",
    ),
    var(
        "PROVER_GRACE_SECS",
        "25",
        "how long proofs in progress may continue after SIGTERM before their jobs are handed back, in seconds: 0 to \
         86400; all other jobs are handed back at once. Shutdown takes a second or two more, or 25 s more if a device \
         or the database does not respond. Kubernetes kills after 30 s by default",
    ),
    var(
        "PROVER_KEY_CACHE_BYTES",
        "half of the memory",
        "size of the cache of proving keys, in bytes, on each device and on the host; K, M, G and T stand for 1024, \
         1024², …",
    ),
    var(
        "PROVER_MAX_INPUT_BYTES",
        "64M",
        "maximum size of a job's input, in bytes: up to 1G; K, M and G stand for 1024, 1024², …",
    ),
];

/// Variables whose value may be read from a file, each with the variable that names the file.
const IN_FILES: [(&str, &str); 4] = [
    ("DATABASE_URL", "DATABASE_URL_FILE"),
    ("REDIS_URL", "REDIS_URL_FILE"),
    ("PROVER_API_TOKENS", "PROVER_API_TOKENS_FILE"),
    ("PROVER_ENCRYPTION_KEYS", "PROVER_ENCRYPTION_KEYS_FILE"),
];
/// Maximum size of such a file, in bytes: far more than any of these values needs.
const LARGEST_FILE: u64 = 64 << 10;

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
        Self::read(&mut Reader { lookup: &environment, in_files: Vec::new(), settings: Vec::new() })
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
        let mut r = Reader { lookup: &lookup, in_files: Vec::new(), settings: Vec::with_capacity(CATALOGUE.len()) };
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

/// Returns [`CATALOGUE`] as a Markdown table, for the documentation.
pub fn markdown_table() -> String {
    let mut out = String::from("| variable | meaning | default |\n|---|---|---|\n");
    for v in CATALOGUE {
        out += &format!("| `{}` | {} | {} |\n", v.name, v.meaning, v.default);
    }
    out
}

/// Returns a URL or other text with the password in `user:password@` and passwords among the parameters replaced by
/// `***`. Malformed URLs are masked more rather than less: the scheme may be missing, and a password may contain any
/// character.
pub fn mask(value: &str) -> String {
    let is_scheme = |text: &str| text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '+' | '.' | '-'));
    let (scheme, rest) = match value.split_once("://") {
        // Some URL parsers accept more than two slashes.
        Some((scheme, _)) if is_scheme(scheme) => {
            let rest = value[scheme.len() + 1..].trim_start_matches('/');
            value.split_at(value.len() - rest.len())
        }
        _ => ("", value),
    };
    let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    let (authority, tail) = rest.split_at(end);
    // The last @ ends the user part: a password may contain an @ and, if it is not encoded, a slash or a question mark.
    // In that case what looks like the port is not a number, or the path contains an @.
    let port = authority.rsplit_once(':').filter(|_| !authority.contains('@')).map(|(_, port)| port);
    let open = match port {
        Some(port) if port.chars().any(|c| !c.is_ascii_digit()) => tail.contains('@'),
        _ => authority.contains(':') && tail.split('?').next().is_some_and(|path| path.contains('@')),
    };
    let (authority, tail) = match rest.rfind('@') {
        Some(at) if open => rest.split_at(rest[at..].find(['/', '?', '#']).map_or(rest.len(), |n| at + n)),
        _ => (authority, tail),
    };
    let tail = mask_parameters(tail);
    let Some((user, host)) = authority.rsplit_once('@') else { return format!("{scheme}{authority}{tail}") };
    let user = user.split_once(':').map_or(user, |(name, _)| name);
    format!("{scheme}{user}:***@{host}{tail}")
}

fn mask_parameters(tail: &str) -> String {
    let Some((path, query)) = tail.split_once('?') else { return tail.to_owned() };
    let masked = query.split('&').map(|p| match p.split_once('=') {
        Some((name, _)) if name.to_ascii_lowercase().contains("password") => format!("{name}=***"),
        _ => p.to_owned(),
    });
    format!("{path}?{}", masked.collect::<Vec<_>>().join("&"))
}

/// Reads variables and records their effective values.
struct Reader<'a> {
    lookup: &'a dyn Fn(&str) -> Option<String>,
    /// Variables whose values lie in files.
    in_files: Vec<&'static str>,
    settings: Vec<Setting>,
}

impl Reader<'_> {
    fn text(&mut self, name: &'static str) -> Option<String> {
        let value = (self.lookup)(name).map(|v| v.trim().to_owned()).filter(|v| !v.is_empty());
        let default = CATALOGUE.iter().find(|v| v.name == name).map_or("", |v| v.default);
        let shown = match &value {
            // A file may hold something else than it should, such as a password alone.
            Some(v) if self.in_files.contains(&name) && !v.contains("://") => "***".to_owned(),
            Some(v) => mask(v),
            None => default.to_owned(),
        };
        self.settings.push(Setting { name, value: shown, set: value.is_some() });
        value
    }

    /// Returns the values of the variables that are read from files.
    fn files(&mut self) -> Result<Vec<(&'static str, String)>, ConfigError> {
        let mut found = Vec::new();
        for (name, file) in IN_FILES {
            let Some(path) = self.text(file) else { continue };
            if (self.lookup)(name).is_some_and(|v| !v.trim().is_empty()) {
                return Err(self.wrong(file, format!("no value while {name} is set")));
            }
            let wrong = |got: String| ConfigError { name: file, expected: format!("a file that contains {name}"), got };
            let text = small_file(Path::new(&path)).map_err(|e| wrong(format!("{path:?}: {}", io_reason(&e))))?;
            // The variable was meant to be set: its default would be something else.
            if text.trim().is_empty() {
                return Err(wrong(format!("{path:?}, which is empty")));
            }
            found.push((name, text));
            self.in_files.push(name);
        }
        Ok(found)
    }

    /// Reads a variable whose value is never shown.
    fn secret(&mut self, name: &'static str) -> Option<Secret> {
        self.value(name, true)
    }

    /// Reads a variable that is passed on as it is. If `secret`, its value is masked in the settings.
    fn value(&mut self, name: &'static str, secret: bool) -> Option<Secret> {
        let value = self.text(name)?;
        if let Some(shown) = self.settings.last_mut().filter(|_| secret) {
            "***".clone_into(&mut shown.value);
        }
        Some(Secret(value))
    }

    fn parse<T>(
        &mut self,
        name: &'static str,
        expected: &str,
        parse: impl Fn(&str) -> Option<T>,
    ) -> Result<Option<T>, ConfigError> {
        match self.text(name) {
            None => Ok(None),
            Some(text) => parse(&text).map(Some).ok_or_else(|| self.wrong(name, expected)),
        }
    }

    fn number<T>(&mut self, name: &'static str, low: T, high: T) -> Result<Option<T>, ConfigError>
    where
        T: FromStr + PartialOrd + fmt::Display,
    {
        let expected = format!("a whole number from {low} to {high}");
        self.parse(name, &expected, |s| s.parse::<T>().ok().filter(|n| *n >= low && *n <= high))
    }

    /// Reads a variable whose value is one of the given words, each with what it stands for.
    fn one_of<T: Copy>(&mut self, name: &'static str, words: &[(&str, T)]) -> Result<Option<T>, ConfigError> {
        let names: Vec<_> = words.iter().map(|(word, _)| *word).collect();
        let expected = match names.as_slice() {
            [others @ .., last] if !others.is_empty() => format!("{} or {last}", others.join(", ")),
            few => few.concat(),
        };
        self.parse(name, &expected, |s| words.iter().find(|(word, _)| *word == s).map(|(_, value)| *value))
    }

    fn on_off(&mut self, name: &'static str, default: bool) -> Result<bool, ConfigError> {
        Ok(self.one_of(name, &[("on", true), ("off", false)])?.unwrap_or(default))
    }

    fn secs(&mut self, name: &'static str, default: u64, low: u64, high: u64) -> Result<Duration, ConfigError> {
        Ok(Duration::from_secs(self.number(name, low, high)?.unwrap_or(default)))
    }

    /// Reads a number of seconds; `None` when it is `off` or unset.
    fn secs_or_off(&mut self, name: &'static str, low: u64, high: u64) -> Result<Option<Duration>, ConfigError> {
        let value = self.parse(name, &format!("a whole number from {low} to {high}, or off"), |s| match s {
            "off" => Some(None),
            n => n.parse().ok().filter(|n| (low..=high).contains(n)).map(Some),
        })?;
        Ok(value.flatten().map(Duration::from_secs))
    }

    fn bytes(
        &mut self,
        name: &'static str,
        expected: &str,
        range: RangeInclusive<u64>,
    ) -> Result<Option<u64>, ConfigError> {
        self.parse(name, expected, |s| byte_count(s).filter(|n| range.contains(n)))
    }

    fn wrong(&self, name: &'static str, expected: impl Into<String>) -> ConfigError {
        wrong(&self.settings, name, expected)
    }
}

/// The error for a variable whose value is not what was expected.
fn wrong(settings: &[Setting], name: &'static str, expected: impl Into<String>) -> ConfigError {
    let got = match settings.iter().rev().find(|s| s.name == name) {
        Some(s) if s.set => format!("{:?}", clip(&s.value, 120)),
        _ => "nothing".to_owned(),
    };
    ConfigError { name, expected: expected.into(), got }
}

fn small_file(path: &Path) -> std::io::Result<String> {
    let mut text = String::new();
    File::open(path)?.take(LARGEST_FILE + 1).read_to_string(&mut text)?;
    if text.len() as u64 > LARGEST_FILE {
        return Err(std::io::Error::other(format!("more than {LARGEST_FILE} bytes")));
    }
    Ok(text)
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

/// Parses `postgres://…`, `postgresql://…`, `sqlite://PATH` or `sqlite:PATH`. An error says what was expected.
fn database_url(url: &str) -> Result<Database, &'static str> {
    let lower = url.to_ascii_lowercase();
    if lower.starts_with("postgres://") || lower.starts_with("postgresql://") {
        return Ok(Database::Postgres(Secret(url.to_owned())));
    }
    let rest = url.strip_prefix("sqlite://").or_else(|| url.strip_prefix("sqlite:"));
    match rest.unwrap_or_default() {
        "" => Err("sqlite://PATH or postgres://USER:PASSWORD@HOST:PORT/NAME"),
        // The store has one mode only, the safe one; ignoring parameters would suggest that they took effect.
        path if path.contains('?') => Err("sqlite://PATH without parameters"),
        ":memory:" => Err("sqlite://PATH of a file: jobs must outlive the process"),
        path => Ok(Database::Sqlite(PathBuf::from(path))),
    }
}

fn redis_url(s: &str) -> Option<Secret> {
    ["redis://", "rediss://", "redis+unix://", "unix://"]
        .iter()
        .any(|scheme| s.starts_with(scheme))
        .then(|| Secret(s.to_owned()))
}

fn http_url(s: &str) -> Option<String> {
    (s.starts_with("http://") || s.starts_with("https://")).then(|| s.to_owned())
}

fn artifacts_url(s: &str) -> Option<ArtifactsUrl> {
    if let Some(path) = s.strip_prefix("file://") {
        return path.starts_with('/').then(|| ArtifactsUrl::Folder(PathBuf::from(path)));
    }
    let (cloud, rest) = Cloud::ALL.iter().find_map(|cloud| Some((*cloud, s.strip_prefix(cloud.scheme())?)))?;
    let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
    let prefix = prefix.trim_matches('/').to_owned();
    // No cloud permits other characters in these names; text with others is something else, such as a key before the
    // name.
    let is_name = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '$');
    let sound = !bucket.is_empty() && bucket.chars().all(is_name);
    sound.then(|| ArtifactsUrl::Bucket { cloud, bucket: bucket.to_owned(), prefix })
}

/// Parses a host or a URL: Google's own libraries accept either.
fn host_or_url(s: &str) -> Option<String> {
    let is_host = |s: &str| !s.contains("://") && !s.contains(char::is_whitespace);
    http_url(s).or_else(|| is_host(s).then(|| format!("http://{s}")))
}

fn queue_name(s: &str) -> Option<String> {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    (s.len() <= 64 && s.chars().all(plain)).then(|| s.to_owned())
}

/// Parses a filter in tracing's syntax. A bare word must be a level: the syntax takes any other word for the name of a
/// module, so a misspelt level would be ignored silently.
fn log_filter(s: &str) -> Option<String> {
    let level = |w: &str| matches!(w, "off" | "error" | "warn" | "info" | "debug" | "trace");
    let lower = s.to_ascii_lowercase();
    if level(&lower) {
        return Some(lower);
    }
    let parts_ok = s.split(',').all(|p| p.contains('=') || level(&p.trim().to_ascii_lowercase()));
    (parts_ok && EnvFilter::try_new(s).is_ok()).then(|| s.to_owned())
}

/// Parses a value, or `off` as `Some(None)`.
fn or_off<T: FromStr>(s: &str) -> Option<Option<T>> {
    if s == "off" { Some(None) } else { s.parse().ok().map(Some) }
}

/// Splits a list into tokens. An error is the position, from 1, of the first invalid one. A token consists of the
/// characters that a bearer token may have in a header (RFC 6750), and its minimum length makes it hard to guess.
fn split_tokens(list: &Secret) -> Result<Vec<Secret>, usize> {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '~' | '+' | '/' | '=' | '-');
    let token = |(n, t): (usize, &str)| {
        let sound = (16..=256).contains(&t.len()) && t.chars().all(plain);
        if sound { Ok(Secret(t.to_owned())) } else { Err(n + 1) }
    };
    list.reveal().split(',').map(str::trim).enumerate().map(token).collect()
}

/// Parses a type of ICICLE device and returns it in capitals, as ICICLE spells it; `auto` is `Some(None)`.
fn icicle_device(s: &str) -> Option<Option<String>> {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-');
    match s {
        "auto" => Some(None),
        s => (s.len() < 64 && s.chars().all(plain)).then(|| Some(s.to_ascii_uppercase())),
    }
}

/// Parses a number of bytes such as `4096`, `512M` or `8G`; the units are powers of 1024.
fn byte_count(s: &str) -> Option<u64> {
    let digits = s.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit = match s[digits.len()..].to_ascii_uppercase().as_str() {
        "" | "B" => 1,
        "K" | "KB" | "KIB" => 1 << 10,
        "M" | "MB" | "MIB" => 1 << 20,
        "G" | "GB" | "GIB" => 1 << 30,
        "T" | "TB" | "TIB" => 1u64 << 40,
        _ => return None,
    };
    digits.parse::<u64>().ok()?.checked_mul(unit)
}

#[cfg(test)]
mod tests;
