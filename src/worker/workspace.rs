//! Opens the parts of the program that a configuration describes.

use std::path::PathBuf;
use std::sync::Arc;

use super::request::ENVELOPE;
use super::{JobService, ServiceOptions, WorkerParts};
use crate::artifacts::{ArtifactError, Artifacts, BucketSpec, private_dir};
use crate::config::{ArtifactsUrl, Config, Database};
use crate::model::WorkerId;
use crate::queue::{MemoryQueue, Queue, QueueError, RedisQueue, RedisSettings};
use crate::registry::{Registry, RegistryLimits};
use crate::seal::{Keyring, SealError};
use crate::store::{PostgresStore, SqliteStore, Store, StoreError, StoreSettings};
use crate::witness::ModuleCache;

/// The variable that names the data folder.
const DATA_DIR: &str = "PROVER_DATA_DIR";

/// Why a workspace could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The store could not be opened.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The queue could not be opened.
    #[error(transparent)]
    Queue(#[from] QueueError),
    /// The artifacts could not be opened.
    #[error("the artifacts: {0}")]
    Artifacts(ArtifactError),
    /// A folder that a variable names cannot be used.
    #[error("{why}; set {variable} to a folder you own, on a disk with room")]
    Folder {
        /// The variable.
        variable: &'static str,
        /// The folder, and the reason.
        why: ArtifactError,
    },
    /// The keys that seal inputs are invalid.
    #[error(transparent)]
    Seal(#[from] SealError),
}

impl OpenError {
    /// Converts errors of artifacts in a folder that this variable names.
    fn of_folder(variable: &'static str) -> impl Fn(ArtifactError) -> Self {
        move |why| match why {
            ArtifactError::Io { .. } => Self::Folder { variable, why },
            why => Self::Artifacts(why),
        }
    }
}

/// Store, queue, artifacts and registry of one configuration.
pub struct Workspace {
    config: Config,
    store: Arc<dyn Store>,
    queue: Arc<dyn Queue>,
    artifacts: Artifacts,
    registry: Registry,
    keyring: Arc<Keyring>,
    service: JobService,
}

impl Workspace {
    /// Opens the workspace, creating what is missing. Any number of processes may have the same workspace open.
    pub async fn open(config: Config) -> Result<Self, OpenError> {
        private_dir(&config.data_dir).map_err(OpenError::of_folder(DATA_DIR))?;
        let keyring = config.encryption_keys.as_ref().map(|keys| Keyring::parse(keys.reveal())).transpose()?;
        let store = open_store(&config).await?;
        let queue = open_queue(&config).await?;
        if config.redis.is_some() {
            // A store that fails now is noticed by what needs it.
            queue.belong_to(&store.identity().await.ok().flatten().unwrap_or_default());
        }
        let artifacts = open_artifacts(&config)?;
        let limits = RegistryLimits {
            key_cache_bytes: config.key_cache_bytes,
            ..RegistryLimits::for_witness(config.witness_timeout, config.witness_memory)
        };
        let registry = Registry::new(store.clone(), artifacts.clone(), module_cache(&config), limits);
        let keyring = Arc::new(keyring.unwrap_or_else(Keyring::none));
        let options = ServiceOptions {
            max_input: config.max_input_bytes,
            start_within: config.queue_timeout,
            keyring: keyring.clone(),
        };
        let service = JobService::new(store.clone(), Some(queue.clone()), artifacts.clone(), options);
        Ok(Self { config, store, queue, artifacts, registry, keyring, service })
    }

    /// The configuration.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Jobs and circuits.
    pub fn store(&self) -> &Arc<dyn Store> {
        &self.store
    }

    /// The queue, which wakes workers.
    pub fn queue(&self) -> &Arc<dyn Queue> {
        &self.queue
    }

    /// Keys, witness programs and copies of proofs.
    pub fn artifacts(&self) -> &Artifacts {
        &self.artifacts
    }

    /// Open circuits.
    pub fn registry(&self) -> &Registry {
        &self.registry
    }

    /// Submit, inspect, cancel. Submitted jobs wake a worker at once where the queue is shared or in this process, and
    /// other workers within about 100 ms.
    pub fn service(&self) -> JobService {
        self.service.clone()
    }

    /// Returns what a worker needs, with a separate store connection for its heartbeat.
    pub async fn worker_parts(&self) -> Result<WorkerParts, OpenError> {
        Ok(WorkerParts {
            store: self.store.clone(),
            heartbeat: open_store(&self.config).await?,
            queue: self.queue.clone(),
            artifacts: self.artifacts.clone(),
            registry: self.registry.clone(),
            service: self.service(),
            keyring: self.keyring.clone(),
        })
    }
}

async fn open_store(config: &Config) -> Result<Arc<dyn Store>, OpenError> {
    let settings = StoreSettings {
        queue: config.queue_name.clone(),
        keep_failed_inputs: config.keep_failed_inputs,
        notify: config.redis.is_none(),
    };
    Ok(match &config.database {
        Database::Sqlite(path) => Arc::new(SqliteStore::open(path, settings).await?),
        Database::Postgres(url) => Arc::new(PostgresStore::open(url.reveal(), settings).await?),
    })
}

/// Opens only the queue of a configuration.
pub async fn open_queue(config: &Config) -> Result<Arc<dyn Queue>, QueueError> {
    let Some(url) = &config.redis else { return Ok(Arc::new(MemoryQueue::new())) };
    let settings = RedisSettings {
        url: url.reveal().to_owned(),
        queue: config.queue_name.clone(),
        consumer: WorkerId::of_this_process().0,
        reclaim_after: config.lease,
        max_message: config.max_input_bytes.saturating_add(ENVELOPE),
    };
    Ok(Arc::new(RedisQueue::open(settings).await?))
}

fn open_artifacts(config: &Config) -> Result<Artifacts, OpenError> {
    let artifacts = match &config.artifacts {
        None => Artifacts::local(&config.data_dir).map_err(OpenError::of_folder(DATA_DIR))?,
        Some(ArtifactsUrl::Folder(folder)) => {
            Artifacts::local(folder).map_err(OpenError::of_folder("PROVER_ARTIFACTS_URL"))?
        }
        Some(ArtifactsUrl::Bucket { cloud, bucket, prefix }) => {
            let access = &config.bucket_access;
            let spec = BucketSpec {
                cloud: *cloud,
                bucket: bucket.clone(),
                prefix: prefix.clone(),
                endpoint: access.endpoint.clone(),
                variables: access.variables.iter().map(|(name, value)| (*name, value.reveal().to_owned())).collect(),
            };
            let cache = config.data_dir.join("cache");
            let opened = Artifacts::bucket(&spec, &cache, config.artifact_cache_bytes);
            opened.map_err(OpenError::of_folder(DATA_DIR))?
        }
    };
    Ok(if config.proof_files { artifacts } else { artifacts.without_proofs() })
}

/// Returns the cache of compiled witness programs, which is in the data folder. The program compiles them in child
/// processes of itself.
pub fn module_cache(config: &Config) -> ModuleCache {
    let (dir, compiler) = (Some(config.data_dir.join("modules")), running_program());
    ModuleCache { dir, compiler, rewrite: config.witness_rewritten }
}

/// Returns the executable of the running program, for child processes.
pub fn running_program() -> Option<PathBuf> {
    // This name stays valid after an upgrade has replaced the file.
    let running = PathBuf::from("/proc/self/exe");
    if running.exists() { Some(running) } else { std::env::current_exe().ok() }
}
