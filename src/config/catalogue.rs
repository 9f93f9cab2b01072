//! Every variable, with its documentation.

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
pub(super) const LOG_LEVEL: &str = "info,object_store=warn";

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
         86400; all other jobs are handed back at once. Shutdown takes a second or two more, or 15 s more if a device \
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

/// Returns [`CATALOGUE`] as a Markdown table, for the documentation.
pub fn markdown_table() -> String {
    let mut out = String::from("| variable | meaning | default |\n|---|---|---|\n");
    for v in CATALOGUE {
        out += &format!("| `{}` | {} | {} |\n", v.name, v.meaning, v.default);
    }
    out
}
