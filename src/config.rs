//! The environment, read once.
//!
//! This is the only reader of environment variables in the crate, and of files that hold what they would. [`CATALOGUE`] is the
//! one list of them: it is what `doctor` prints and what the documentation's table is made from.

use std::fmt;
use std::fs::File;
use std::io::Read;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use tracing_subscriber::EnvFilter;

use crate::model::{Cloud, io_reason};

/// A variable as documented.
#[derive(Debug, Clone, Copy, serde::Serialize)]
pub struct Variable {
    /// Its name.
    pub name: &'static str,
    /// What holds when it is unset, in words.
    pub default: &'static str,
    /// What it does and what it may be.
    pub meaning: &'static str,
}

const fn var(name: &'static str, default: &'static str, meaning: &'static str) -> Variable {
    Variable { name, default, meaning }
}

/// What is logged unless told otherwise. The library for object stores reports each of its own tries, without saying of what: what comes
/// of them is in the worker's own lines.
const LOG_LEVEL: &str = "info,object_store=warn";

/// Every variable the program reads.
pub const CATALOGUE: &[Variable] = &[
    var(
        "DATABASE_URL",
        "prover-worker.db in the data folder",
        "where jobs are kept: sqlite://PATH, or postgres://USER:PASSWORD@HOST:PORT/NAME (sslmode=require for TLS)",
    ),
    var("DATABASE_URL_FILE", "none", "file of DATABASE_URL, as Docker and Kubernetes mount secrets"),
    var(
        "REDIS_URL",
        "in-process queue",
        "queue that workers share: redis://USER:PASSWORD@HOST:PORT/DB, or rediss:// for TLS; needs a Postgres DATABASE_URL",
    ),
    var("REDIS_URL_FILE", "none", "file of REDIS_URL"),
    var("QUEUE_NAME", "prove", "name of the job queue: 1 to 64 characters of A-Z a-z 0-9 . _ -"),
    var("WORKER_CONCURRENCY", "sized per device", "most jobs in hand at once, over all devices: 1 to 1024"),
    var(
        "LOG_LEVEL",
        LOG_LEVEL,
        "off, error, warn, info, debug or trace, or a filter such as info,prover_worker::worker=debug",
    ),
    var("LOG_FORMAT", "text on a terminal, else json", "text or json"),
    var("METRICS_PORT", "9101", "port of /metrics, /healthz and /readyz; 0 takes a free one, off closes it"),
    var("METRICS_ADDR", "0.0.0.0", "address that port is opened on: nothing secret is served there"),
    var(
        "PROVER_API_ADDR",
        "127.0.0.1:9180",
        "address and port of the HTTP API, or off. It stays on loopback unless told otherwise",
    ),
    var(
        "PROVER_API_TOKENS",
        "none: whoever reaches the API may use it",
        "tokens of which each request to the API has to bring one: each 16 to 256 characters of A-Z a-z 0-9 . _ ~ + / = -, several \
         parted by commas",
    ),
    var("PROVER_API_TOKENS_FILE", "none", "file of PROVER_API_TOKENS"),
    var(
        "PROVER_DATA_DIR",
        "prover-worker in the user's data folder",
        "keys, witness programs, proofs and the embedded database",
    ),
    var("PROVER_BACKEND", "auto", "auto, cuda, icicle or cpu"),
    var(
        "PROVER_CPU",
        "auto: the fastest this processor has",
        "instructions for the CPU: auto, avx512ifma, avx2 or portable",
    ),
    var(
        "PROVER_CUDA_GRAPHS",
        "auto",
        "auto: NVIDIA GPUs get the work of a small proof as one launch (a CUDA graph); off: each kernel is a launch of its own",
    ),
    var(
        "ICICLE_LIB_DIR",
        "/opt/icicle/lib",
        "folder of ICICLE's libraries: libicicle_device, libicicle_field_bn254 and libicicle_curve_bn254, of one release",
    ),
    var(
        "ICICLE_BACKEND_INSTALL_DIR",
        "backend in the folder of ICICLE's libraries",
        "folder of ICICLE's backends, of the same release",
    ),
    var(
        "PROVER_ICICLE_DEVICE",
        "auto: CUDA, METAL or VULKAN, whichever there is first",
        "type of ICICLE's devices: auto, or a name of its own such as CUDA, METAL, VULKAN or CPU (slow: for tests)",
    ),
    var(
        "PROVER_THREADS",
        "one per core",
        "most threads of a proof on the CPU; proofs that run side by side have fewer: 1 to 1024",
    ),
    var("PROVER_LEASE_SECS", "30", "a worker that is silent for so long has lost its job: 1 to 3600"),
    var(
        "PROVER_WITNESS",
        "auto",
        "auto: witness programs get a faster field arithmetic where theirs is circom's; plain: they run as they come",
    ),
    var("PROVER_WITNESS_TIMEOUT_SECS", "60", "longest witness generation: 1 to 86400"),
    var(
        "PROVER_WITNESS_MEMORY_BYTES",
        "4G",
        "most memory a witness program may have: 16M to 4G; K, M and G mean 1024, 1024², …",
    ),
    var("PROVER_PROVE_TIMEOUT_SECS", "1800", "longest proof, once its turn on the device has come: 1 to 86400"),
    var(
        "PROVER_JOB_TIMEOUT_SECS",
        "3600",
        "longest attempt at a job, all stages, without its wait for a turn on the device: 1 to 604800",
    ),
    var(
        "PROVER_QUEUE_TIMEOUT_SECS",
        "off",
        "longest wait for a worker before a job fails, under a pause too: 1 to 31536000, or off",
    ),
    var(
        "PROVER_RETENTION_SECS",
        "off",
        "how long jobs that ended are kept, with their proofs, before they are forgotten: 60 to 3153600000, or off",
    ),
    var(
        "PROVER_PROOF_FILES",
        "on",
        "on: each proof is copied to files among the artifacts; off: it is in the database alone, where commands and API find it",
    ),
    var(
        "PROVER_KEEP_FAILED_INPUT_SECS",
        "86400",
        "how long the input of a failed job is kept for `jobs requeue`; bad input never is: 0 to 31536000",
    ),
    var(
        "PROVER_ENCRYPTION_KEYS",
        "none: inputs lie in the store in the clear",
        "keys that seal inputs at rest: NAME:KEY, several parted by commas, KEY 32 bytes in base64. The first seals, all open",
    ),
    var("PROVER_ENCRYPTION_KEYS_FILE", "none", "file of PROVER_ENCRYPTION_KEYS"),
    var(
        "PROVER_ARTIFACTS_URL",
        "the data folder",
        "where keys, witness programs and proofs are shared: s3://BUCKET/PREFIX, gs://BUCKET/PREFIX (Google), \
         az://CONTAINER/PREFIX (Azure), or file:///FOLDER",
    ),
    var(
        "PROVER_ARTIFACT_CACHE_BYTES",
        "64G",
        "keys and programs kept on the local disk where artifacts are remote; K, M, G and T mean 1024, 1024², …",
    ),
    var("AWS_ENDPOINT_URL", "Amazon's", "address of another S3-compatible server, such as http://127.0.0.1:9000"),
    var("AWS_REGION", "us-east-1", "region of the bucket"),
    var("AWS_ACCESS_KEY_ID", "the machine's role", "name of the key for S3"),
    var("AWS_SECRET_ACCESS_KEY", "the machine's role", "the key for S3"),
    var("AWS_SESSION_TOKEN", "none", "token of a temporary key for S3"),
    var("AWS_ROLE_ARN", "none", "role for S3 that a token in a file stands for (EKS sets this and the next)"),
    var("AWS_WEB_IDENTITY_TOKEN_FILE", "none", "file of that token"),
    var("AWS_ROLE_SESSION_NAME", "the library's", "name of sessions in that role"),
    var("AWS_ENDPOINT_URL_STS", "Amazon's", "address of who gives keys for that token"),
    var("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI", "none", "where ECS has keys for S3 (ECS sets it)"),
    var(
        "AWS_CONTAINER_CREDENTIALS_FULL_URI",
        "none",
        "where EKS's pod identity has keys for S3 (EKS sets this and the next)",
    ),
    var("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", "none", "file of the token for that"),
    var(
        "GOOGLE_APPLICATION_CREDENTIALS",
        "gcloud's in the home folder, else the machine's account",
        "file of a service account's key, or of a user's credentials, for gs://",
    ),
    var(
        "STORAGE_EMULATOR_HOST",
        "Google's",
        "address of another server for gs://, such as 127.0.0.1:4443, which is asked without credentials",
    ),
    var("AZURE_STORAGE_ACCOUNT_NAME", "none", "storage account of az://"),
    var(
        "AZURE_STORAGE_ACCOUNT_KEY",
        "none",
        "its key; without this and the next, a client's or the machine's identity is used",
    ),
    var("AZURE_STORAGE_SAS_TOKEN", "none", "shared access signature of the container"),
    var(
        "AZURE_STORAGE_ENDPOINT",
        "https://ACCOUNT.blob.core.windows.net",
        "address of another server, or another cloud's, for az://, such as http://127.0.0.1:10000/devstoreaccount1",
    ),
    var("AZURE_TENANT_ID", "none", "tenant of the client (AKS sets these four)"),
    var("AZURE_CLIENT_ID", "the machine's identity", "client, or one of the machine's identities, for az://"),
    var("AZURE_FEDERATED_TOKEN_FILE", "none", "file of the client's token"),
    var("AZURE_AUTHORITY_HOST", "https://login.microsoftonline.com", "who gives the client access"),
    var("AZURE_CLIENT_SECRET", "none", "the client's password, where it has no such file"),
    var(
        "PROVER_BATCH_MAX",
        "what the device is best at",
        "most proofs of one circuit given to a GPU at once: 1 to 1024",
    ),
    var(
        "PROVER_BATCH_LINGER_MS",
        "0",
        "how long a device waits for more jobs of a circuit before it begins a batch that is not full: 0 to 10000",
    ),
    var(
        "PROVER_CPU_OVERFLOW",
        "off",
        "on: the CPU takes jobs too while every GPU is full; off: it is the fallback only",
    ),
    var(
        "PROVER_EXIT_ON_DEAD_DEVICE",
        "all",
        "whether the worker ends, with exit code 1, for its supervisor to start it anew, when devices other than the CPU do not \
         come back in ten minutes: all, when all of them are dead; any, when one is; off",
    ),
    var(
        "PROVER_GRACE_SECS",
        "25",
        "time that proofs begun have to finish after SIGTERM before their jobs are handed back, as those of all others are at \
         once: 0 to 86400. Ending takes a second or two more, and 25 s where a device or the database does not answer. \
         Kubernetes kills after 30 s unless told otherwise",
    ),
    var(
        "PROVER_KEY_CACHE_BYTES",
        "half of the memory there is",
        "keys kept open, on each device and in the host; K, M, G and T mean 1024, 1024², …",
    ),
    var("PROVER_MAX_INPUT_BYTES", "64M", "largest input of a job; K, M and G as above"),
];

/// Variables whose value may lie in a file that another names.
const IN_FILES: [(&str, &str); 4] = [
    ("DATABASE_URL", "DATABASE_URL_FILE"),
    ("REDIS_URL", "REDIS_URL_FILE"),
    ("PROVER_API_TOKENS", "PROVER_API_TOKENS_FILE"),
    ("PROVER_ENCRYPTION_KEYS", "PROVER_ENCRYPTION_KEYS_FILE"),
];
/// Bytes of such a file at most: far more than any such value has.
const LARGEST_FILE: u64 = 64 << 10;

/// A variable that does not read as it should.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{name}: expected {expected}, got {got}")]
pub struct ConfigError {
    /// The variable.
    pub name: &'static str,
    /// What it may be.
    pub expected: String,
    /// What it is, with passwords masked.
    pub got: String,
}

/// A setting as it holds.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Setting {
    /// The variable.
    pub name: &'static str,
    /// Its value, with passwords masked; the default in words when it is unset.
    pub value: String,
    /// Whether the environment sets it.
    pub set: bool,
}

/// Text that is not shown.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// The text.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

/// Where jobs are kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Database {
    /// A file of this machine.
    Sqlite(PathBuf),
    /// A server, by URL.
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

/// For how many dead devices a worker ends, which only a new process may have back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExitOnDead {
    /// For all that it has beside the processor.
    All,
    /// For one.
    Any,
    /// It does not.
    Off,
}

impl ExitOnDead {
    /// Whether `dead` of so many are enough.
    pub fn is_reached(self, dead: usize, of: usize) -> bool {
        match self {
            Self::All => dead > 0 && dead == of,
            Self::Any => dead > 0,
            Self::Off => false,
        }
    }
}

/// Where artifacts are shared.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ArtifactsUrl {
    /// A folder.
    Folder(PathBuf),
    /// An object store.
    Bucket {
        /// Whose.
        cloud: Cloud,
        /// The bucket, or container.
        bucket: String,
        /// What its objects' names begin with (empty, or ending in no slash).
        prefix: String,
    },
}

/// The variables that give access to it, and whether their values are secret.
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

/// Access to an object store.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct BucketAccess {
    /// Another server than the cloud's own.
    pub endpoint: Option<String>,
    /// Of the variables that give access to it, those that are set.
    pub variables: Vec<(&'static str, Secret)>,
}

/// What the environment says of proofs on the processor: all that a program needs which does nothing else.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Processor {
    /// `auto`, `avx512ifma`, `avx2` or `portable`.
    pub instructions: String,
    /// Threads of a proof; one per core when unset.
    pub threads: Option<usize>,
}

impl Processor {
    /// As the process was started with.
    pub fn from_env() -> Result<Self, ConfigError> {
        Self::read(&mut Reader { lookup: &environment, settings: Vec::new() })
    }

    fn read(r: &mut Reader<'_>) -> Result<Self, ConfigError> {
        let instructions = r.parse("PROVER_CPU", "auto, avx512ifma, avx2 or portable", cpu)?;
        let instructions = instructions.unwrap_or_else(|| "auto".to_owned());
        Ok(Self { instructions, threads: r.number("PROVER_THREADS", 1, 1024)? })
    }
}

/// A variable of the process.
fn environment(name: &str) -> Option<String> {
    std::env::var_os(name).map(|v| v.to_string_lossy().into_owned())
}

/// The configuration: typed and checked.
#[derive(Clone)]
pub struct Config {
    /// Where jobs are kept.
    pub database: Database,
    /// The shared queue, if there is one.
    pub redis: Option<Secret>,
    /// Folder of keys, witness programs, proofs and the embedded database.
    pub data_dir: PathBuf,
    /// Name of the job queue.
    pub queue_name: String,
    /// Most jobs in hand at once; sized per device when unset.
    pub concurrency: Option<usize>,
    /// Log filter.
    pub log_level: String,
    /// Whether log lines are JSON; when unset, unless they go to a terminal.
    pub log_json: Option<bool>,
    /// Where metrics and health are served.
    pub metrics_addr: Option<SocketAddr>,
    /// Where the API is served.
    pub api_addr: Option<SocketAddr>,
    /// What requests to it have to bring one of; nothing, where there are none.
    pub api_tokens: Vec<Secret>,
    /// `auto`, `cuda`, `icicle` or `cpu`.
    pub backend: String,
    /// `auto`, `avx512ifma`, `avx2` or `portable`.
    pub cpu: String,
    /// Whether the work of a small proof on an NVIDIA GPU may be one launch.
    pub cuda_graphs: bool,
    /// Folder of ICICLE's libraries; where its installer puts them, if unset.
    pub icicle_libraries: Option<PathBuf>,
    /// Folder of ICICLE's backends; beside its libraries, if unset.
    pub icicle_backends: Option<PathBuf>,
    /// Type of ICICLE's devices, in capitals; any, if unset.
    pub icicle_device: Option<String>,
    /// Threads of a CPU proof.
    pub threads: Option<usize>,
    /// How long a lease lasts without a heartbeat.
    pub lease: Duration,
    /// Whether witness programs may be rewritten to run faster.
    pub witness_rewritten: bool,
    /// Longest witness generation.
    pub witness_timeout: Duration,
    /// Most memory of a witness program, bytes.
    pub witness_memory: u64,
    /// Longest proof.
    pub prove_timeout: Duration,
    /// Longest attempt.
    pub job_timeout: Duration,
    /// Longest wait for a worker, if it is bounded.
    pub queue_timeout: Option<Duration>,
    /// How long ended jobs are kept, if not for ever.
    pub retention: Option<Duration>,
    /// How long a failed job keeps its input.
    pub keep_failed_inputs: Duration,
    /// Whether proofs are copied to files.
    pub proof_files: bool,
    /// Keys that seal inputs, as written.
    pub encryption_keys: Option<Secret>,
    /// Where artifacts are shared; the data folder when unset.
    pub artifacts: Option<ArtifactsUrl>,
    /// Bytes of remote artifacts kept on the local disk.
    pub artifact_cache_bytes: u64,
    /// Access to the object store that has the artifacts, if one has.
    pub bucket_access: BucketAccess,
    /// Most proofs given to a device at once; the device's own when unset.
    pub batch_max: Option<usize>,
    /// How long a batch that is not full waits.
    pub batch_linger: Duration,
    /// Whether the CPU takes jobs while every GPU is full.
    pub cpu_overflow: bool,
    /// Whether the worker ends when devices do not come back.
    pub exit_on_dead: ExitOnDead,
    /// Time to finish after a signal.
    pub grace: Duration,
    /// Bytes of keys kept open, each for the host and for a device; half of the memory when unset.
    pub key_cache_bytes: Option<u64>,
    /// Largest input, bytes.
    pub max_input_bytes: usize,
    settings: Vec<Setting>,
}

impl Config {
    /// The configuration the process was started with.
    pub fn from_env() -> Result<Self, ConfigError> {
        Self::from_lookup(environment)
    }

    /// Variables of the environment that look like this program's and are none of its: a misspelt one changes nothing
    /// and says nothing.
    pub fn unknown_variables() -> Vec<String> {
        // Kubernetes makes the others for a service called prover.
        let ours = |n: &str| n.starts_with("PROVER_") && !n.contains("_SERVICE_") && !n.contains("_PORT");
        let names = std::env::vars_os().map(|(name, _)| name.to_string_lossy().into_owned());
        let mut unknown: Vec<String> = names.filter(|n| ours(n) && CATALOGUE.iter().all(|v| v.name != n)).collect();
        unknown.sort();
        unknown
    }

    /// Whether the environment sets a variable.
    pub fn sets(&self, name: &str) -> bool {
        self.settings.iter().any(|s| s.name == name && s.set)
    }

    /// The configuration by any source of variables. An empty variable counts as unset.
    pub fn from_lookup(lookup: impl Fn(&str) -> Option<String>) -> Result<Self, ConfigError> {
        let mut r = Reader { lookup: &lookup, settings: Vec::with_capacity(CATALOGUE.len()) };
        let in_files = r.files()?;
        let lookup =
            |name: &str| in_files.iter().find(|(n, _)| *n == name).map(|f| f.1.clone()).or_else(|| lookup(name));
        r.lookup = &lookup;
        let database_url = r.text("DATABASE_URL");
        let redis = r.parse("REDIS_URL", "redis://HOST:PORT/DB or rediss://HOST:PORT/DB", redis_url)?;
        let queue_name = r.parse("QUEUE_NAME", "1 to 64 characters of A-Z a-z 0-9 . _ -", queue_name)?;
        let concurrency = r.number("WORKER_CONCURRENCY", 1, 1024)?;
        let log_level = r.parse("LOG_LEVEL", "off, error, warn, info, debug, trace or a filter", log_filter)?;
        let log_json = r.parse("LOG_FORMAT", "text or json", log_json)?;
        let metrics_port = r.parse("METRICS_PORT", "a port from 0 to 65535, or off", port)?.unwrap_or(Some(9101));
        let metrics_ip = r.parse("METRICS_ADDR", "an IP address, such as 0.0.0.0", |s| s.parse::<IpAddr>().ok())?;
        let api = r.parse("PROVER_API_ADDR", "an address and port, such as 127.0.0.1:9180, or off", api_addr)?;
        let api_tokens = match r.secret("PROVER_API_TOKENS").map(|list| api_tokens(&list)) {
            None => Vec::new(),
            Some(Ok(tokens)) => tokens,
            // Where one that is wrong stands is said, and nothing of what it is.
            Some(Err(nth)) => return Err(r.wrong("PROVER_API_TOKENS", wrong_token(nth))),
        };
        let data_dir = match r.text("PROVER_DATA_DIR") {
            Some(dir) => PathBuf::from(dir),
            None => default_data_dir().ok_or_else(|| r.wrong("PROVER_DATA_DIR", "a folder, since no home is known"))?,
        };
        let backend = r.parse("PROVER_BACKEND", "auto, cuda, icicle or cpu", backend)?;
        let Processor { instructions: cpu, threads } = Processor::read(&mut r)?;
        let cuda_graphs = r.parse("PROVER_CUDA_GRAPHS", "auto or off", auto_off)?;
        let icicle_libraries = r.text("ICICLE_LIB_DIR").map(PathBuf::from);
        let icicle_backends = r.text("ICICLE_BACKEND_INSTALL_DIR").map(PathBuf::from);
        let icicle_device = r.parse("PROVER_ICICLE_DEVICE", "auto, or a type such as CUDA or METAL", icicle_device)?;
        let witness_rewritten = r.parse("PROVER_WITNESS", "auto or plain", |s| match s {
            "auto" => Some(true),
            "plain" => Some(false),
            _ => None,
        })?;
        let mut secs = |name, default, low, high| -> Result<Duration, ConfigError> {
            Ok(Duration::from_secs(r.number(name, low, high)?.unwrap_or(default)))
        };
        let lease = secs("PROVER_LEASE_SECS", 30, 1, 3600)?;
        let witness_timeout = secs("PROVER_WITNESS_TIMEOUT_SECS", 60, 1, 86_400)?;
        let prove_timeout = secs("PROVER_PROVE_TIMEOUT_SECS", 1800, 1, 86_400)?;
        let job_timeout = secs("PROVER_JOB_TIMEOUT_SECS", 3600, 1, 604_800)?;
        let grace = secs("PROVER_GRACE_SECS", 25, 0, 86_400)?;
        let keep_failed_inputs = secs("PROVER_KEEP_FAILED_INPUT_SECS", 86_400, 0, 31_536_000)?;
        let mut secs_or_off = |name, low: u64, high: u64| -> Result<Option<Duration>, ConfigError> {
            let value = r.parse(name, &format!("a whole number from {low} to {high}, or off"), |s| match s {
                "off" => Some(None),
                n => n.parse().ok().filter(|n| (low..=high).contains(n)).map(Some),
            })?;
            Ok(value.flatten().map(Duration::from_secs))
        };
        let queue_timeout = secs_or_off("PROVER_QUEUE_TIMEOUT_SECS", 1, 31_536_000)?;
        let retention = secs_or_off("PROVER_RETENTION_SECS", 60, 3_153_600_000)?;
        let proof_files = r.parse("PROVER_PROOF_FILES", "on or off", on_off)?;
        let encryption_keys = r.secret("PROVER_ENCRYPTION_KEYS");
        let expected = "s3://BUCKET/PREFIX, gs://BUCKET/PREFIX, az://CONTAINER/PREFIX or file:///FOLDER";
        let artifacts = r.parse("PROVER_ARTIFACTS_URL", expected, artifacts_url)?;
        let artifact_cache_bytes = r.parse("PROVER_ARTIFACT_CACHE_BYTES", "bytes, such as 64G", byte_count)?;
        let mut bucket_access = BucketAccess::default();
        for cloud in Cloud::ALL {
            let access = BucketAccess {
                endpoint: match cloud {
                    Cloud::Amazon => r.parse("AWS_ENDPOINT_URL", "an http:// or https:// address", http_url)?,
                    Cloud::Google => {
                        r.parse("STORAGE_EMULATOR_HOST", "HOST:PORT or an http:// address", host_or_url)?
                    }
                    Cloud::Azure => r.parse("AZURE_STORAGE_ENDPOINT", "an http:// or https:// address", http_url)?,
                },
                variables: variables(cloud).iter().filter_map(|v| Some((v.0, r.value(v.0, v.1)?))).collect(),
            };
            if matches!(artifacts, Some(ArtifactsUrl::Bucket { cloud: c, .. }) if c == cloud) {
                bucket_access = access;
            }
        }
        let batch_max = r.number("PROVER_BATCH_MAX", 1, 1024)?;
        let linger_ms = r.number("PROVER_BATCH_LINGER_MS", 0, 10_000)?;
        let cpu_overflow = r.parse("PROVER_CPU_OVERFLOW", "on or off", on_off)?;
        let exit_on_dead = r.parse("PROVER_EXIT_ON_DEAD_DEVICE", "all, any or off", exit_on_dead)?;
        let witness_memory = r.parse("PROVER_WITNESS_MEMORY_BYTES", "16M to 4G, such as 512M", |s| {
            byte_count(s).filter(|n| (16 << 20..=4 << 30).contains(n))
        })?;
        let key_cache_bytes = r.parse("PROVER_KEY_CACHE_BYTES", "bytes, such as 8G", byte_count)?;
        let max_input = r.parse("PROVER_MAX_INPUT_BYTES", "1 byte to 1G, such as 64M", |s| {
            byte_count(s).filter(|n| (1..=1 << 30).contains(n)).and_then(|n| usize::try_from(n).ok())
        })?;
        let database = match database_url {
            None => Database::Sqlite(data_dir.join("prover-worker.db")),
            Some(url) => database(&url).map_err(|expected| r.wrong("DATABASE_URL", expected))?,
        };
        if redis.is_some() && matches!(database, Database::Sqlite(_)) {
            let expected = "no value while jobs are kept in SQLite: workers on one SQLite file need no other queue, and \
                            workers elsewhere could not reach it. Set DATABASE_URL=postgres://… too";
            return Err(r.wrong("REDIS_URL", expected));
        }
        let ip = metrics_ip.unwrap_or(IpAddr::from([0, 0, 0, 0]));
        Ok(Self {
            database,
            redis,
            data_dir,
            queue_name: queue_name.unwrap_or_else(|| "prove".to_owned()),
            concurrency,
            log_level: log_level.unwrap_or_else(|| LOG_LEVEL.to_owned()),
            log_json,
            metrics_addr: metrics_port.map(|p| SocketAddr::new(ip, p)),
            api_addr: api.unwrap_or(Some(SocketAddr::from(([127, 0, 0, 1], 9180)))),
            api_tokens,
            backend: backend.unwrap_or_else(|| "auto".to_owned()),
            cuda_graphs: cuda_graphs.unwrap_or(true),
            cpu,
            icicle_libraries,
            icicle_backends,
            icicle_device: icicle_device.flatten(),
            threads,
            lease,
            witness_rewritten: witness_rewritten.unwrap_or(true),
            witness_timeout,
            witness_memory: witness_memory.unwrap_or(4 << 30),
            prove_timeout,
            job_timeout,
            queue_timeout,
            retention,
            proof_files: proof_files.unwrap_or(true),
            keep_failed_inputs,
            encryption_keys,
            artifacts,
            artifact_cache_bytes: artifact_cache_bytes.unwrap_or(64 << 30),
            bucket_access,
            batch_max,
            batch_linger: Duration::from_millis(linger_ms.unwrap_or(0)),
            cpu_overflow: cpu_overflow.unwrap_or(false),
            exit_on_dead: exit_on_dead.unwrap_or(ExitOnDead::All),
            grace,
            key_cache_bytes,
            max_input_bytes: max_input.unwrap_or(64 << 20),
            settings: r.settings,
        })
    }

    /// The same on one machine, with everything kept in another folder: an SQLite database, an in-process queue.
    pub fn in_dir(mut self, dir: &Path) -> Self {
        self.database = Database::Sqlite(dir.join("prover-worker.db"));
        (self.redis, self.artifacts) = (None, None);
        self.data_dir = dir.to_path_buf();
        self
    }

    /// Every variable and what holds, in the catalogue's order, passwords masked.
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

/// The catalogue as a Markdown table, for the documentation.
pub fn markdown_table() -> String {
    let mut out = String::from("| variable | meaning | default |\n|---|---|---|\n");
    for v in CATALOGUE {
        out += &format!("| `{}` | {} | {} |\n", v.name, v.meaning, v.default);
    }
    out
}

/// A URL or other text with the password of `user:password@` and those among the parameters replaced. What is no sound
/// URL is shown less, not more: a scheme may be missing, and a password hold any character.
pub fn mask(value: &str) -> String {
    let is_scheme = |text: &str| text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '+' | '.' | '-'));
    let (scheme, rest) = match value.split_once("://") {
        // Some readers take more slashes for two.
        Some((scheme, _)) if is_scheme(scheme) => {
            let rest = value[scheme.len() + 1..].trim_start_matches('/');
            value.split_at(value.len() - rest.len())
        }
        _ => ("", value),
    };
    let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    let (authority, tail) = rest.split_at(end);
    // The last @ ends the user part: a password may hold one itself, and where it is not encoded, a slash or a question
    // mark too. Then what looks like a port is no number, or the path has an @.
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

/// Reads variables and notes what holds.
struct Reader<'a> {
    lookup: &'a dyn Fn(&str) -> Option<String>,
    settings: Vec<Setting>,
}

impl Reader<'_> {
    fn text(&mut self, name: &'static str) -> Option<String> {
        let value = (self.lookup)(name).map(|v| v.trim().to_owned()).filter(|v| !v.is_empty());
        let default = CATALOGUE.iter().find(|v| v.name == name).map_or("", |v| v.default);
        let shown = value.as_deref().map_or_else(|| default.to_owned(), mask);
        self.settings.push(Setting { name, value: shown, set: value.is_some() });
        value
    }

    /// What lies in files in place of variables.
    fn files(&mut self) -> Result<Vec<(&'static str, String)>, ConfigError> {
        let mut found = Vec::new();
        for (name, file) in IN_FILES {
            let Some(path) = self.text(file) else { continue };
            if (self.lookup)(name).is_some_and(|v| !v.trim().is_empty()) {
                return Err(self.wrong(file, format!("no value while {name} is set")));
            }
            let wrong = |got: String| ConfigError { name: file, expected: format!("a file of {name}"), got };
            let text = small_file(Path::new(&path)).map_err(|e| wrong(format!("{path:?}: {}", io_reason(&e))))?;
            // It was to be set: to go on without it would be to go on with something else.
            if text.trim().is_empty() {
                return Err(wrong(format!("{path:?}, which is empty")));
            }
            found.push((name, text));
        }
        Ok(found)
    }

    /// A variable whose value is never shown.
    fn secret(&mut self, name: &'static str) -> Option<Secret> {
        self.value(name, true)
    }

    /// A variable that goes to others as it is; whether it is shown among the settings.
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

    fn wrong(&self, name: &'static str, expected: impl Into<String>) -> ConfigError {
        let shown = self.settings.iter().rev().find(|s| s.name == name);
        let got = match shown {
            Some(s) if s.set => format!("{:?}", s.value.chars().take(120).collect::<String>()),
            _ => "nothing".to_owned(),
        };
        ConfigError { name, expected: expected.into(), got }
    }
}

fn small_file(path: &Path) -> std::io::Result<String> {
    let mut text = String::new();
    File::open(path)?.take(LARGEST_FILE + 1).read_to_string(&mut text)?;
    if text.len() as u64 > LARGEST_FILE {
        return Err(std::io::Error::other(format!("more than {LARGEST_FILE} bytes")));
    }
    Ok(text)
}

fn default_data_dir() -> Option<PathBuf> {
    directories::BaseDirs::new().map(|d| d.data_dir().join("prover-worker"))
}

/// The database of a `postgres://…` or a `sqlite://PATH` (also `sqlite:PATH`), or what would have been right.
fn database(url: &str) -> Result<Database, &'static str> {
    let lower = url.to_ascii_lowercase();
    if lower.starts_with("postgres://") || lower.starts_with("postgresql://") {
        return Ok(Database::Postgres(Secret(url.to_owned())));
    }
    let rest = url.strip_prefix("sqlite://").or_else(|| url.strip_prefix("sqlite:"));
    match rest.unwrap_or_default() {
        "" => Err("sqlite://PATH or postgres://USER:PASSWORD@HOST:PORT/NAME"),
        // The store has the one mode it is safe in; to skip the parameters would promise another.
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
    // No cloud has others; with them it is something else, such as a key before a bucket.
    let is_name = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '$');
    let sound = !bucket.is_empty() && bucket.chars().all(is_name);
    sound.then(|| ArtifactsUrl::Bucket { cloud, bucket: bucket.to_owned(), prefix })
}

/// Google's own libraries take either.
fn host_or_url(s: &str) -> Option<String> {
    let is_host = |s: &str| !s.contains("://") && !s.contains(char::is_whitespace);
    http_url(s).or_else(|| is_host(s).then(|| format!("http://{s}")))
}

fn on_off(s: &str) -> Option<bool> {
    match s {
        "on" => Some(true),
        "off" => Some(false),
        _ => None,
    }
}

fn auto_off(s: &str) -> Option<bool> {
    match s {
        "auto" => Some(true),
        "off" => Some(false),
        _ => None,
    }
}

fn exit_on_dead(s: &str) -> Option<ExitOnDead> {
    match s {
        "all" => Some(ExitOnDead::All),
        "any" => Some(ExitOnDead::Any),
        "off" => Some(ExitOnDead::Off),
        _ => None,
    }
}

fn queue_name(s: &str) -> Option<String> {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    (s.len() <= 64 && s.chars().all(plain)).then(|| s.to_owned())
}

/// A filter in tracing's syntax. A bare word must be a level: the syntax takes any other for the name of a module,
/// and a misspelt level would then silence nothing and say nothing.
fn log_filter(s: &str) -> Option<String> {
    let level = |w: &str| matches!(w, "off" | "error" | "warn" | "info" | "debug" | "trace");
    let lower = s.to_ascii_lowercase();
    if level(&lower) {
        return Some(lower);
    }
    let parts_ok = s.split(',').all(|p| p.contains('=') || level(&p.trim().to_ascii_lowercase()));
    (parts_ok && EnvFilter::try_new(s).is_ok()).then(|| s.to_owned())
}

fn log_json(s: &str) -> Option<bool> {
    match s {
        "text" => Some(false),
        "json" => Some(true),
        _ => None,
    }
}

fn port(s: &str) -> Option<Option<u16>> {
    if s == "off" { Some(None) } else { s.parse().ok().map(Some) }
}

fn api_addr(s: &str) -> Option<Option<SocketAddr>> {
    if s == "off" { Some(None) } else { s.parse().ok().map(Some) }
}

/// The tokens of a list, or which of them, from 1 on, is none. Their characters are those that a header may bring (RFC 6750),
/// and they are as long as to be hard to guess.
fn api_tokens(list: &Secret) -> Result<Vec<Secret>, usize> {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '~' | '+' | '/' | '=' | '-');
    let token = |(n, t): (usize, &str)| {
        let sound = (16..=256).contains(&t.len()) && t.chars().all(plain);
        if sound { Ok(Secret(t.to_owned())) } else { Err(n + 1) }
    };
    list.reveal().split(',').map(str::trim).enumerate().map(token).collect()
}

fn wrong_token(nth: usize) -> String {
    format!("tokens parted by commas, each 16 to 256 characters of A-Z a-z 0-9 . _ ~ + / = - (number {nth} is not)")
}

fn cpu(s: &str) -> Option<String> {
    matches!(s, "auto" | "avx512ifma" | "avx2" | "portable").then(|| s.to_owned())
}

/// The type in capitals, as ICICLE has it; none where any will do.
fn icicle_device(s: &str) -> Option<Option<String>> {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-');
    match s {
        "auto" => Some(None),
        s => (s.len() < 64 && s.chars().all(plain)).then(|| Some(s.to_ascii_uppercase())),
    }
}

fn backend(s: &str) -> Option<String> {
    matches!(s, "auto" | "cuda" | "icicle" | "cpu").then(|| s.to_owned())
}

/// `4096`, `512M`, `8G`: powers of 1024.
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
