//! The rooms as a configuration opens them.

use std::path::PathBuf;
use std::sync::Arc;

use super::{JobService, Rooms};
use crate::artifacts::{ArtifactError, Artifacts, private_dir};
use crate::config::{Config, Database};
use crate::queue::{MemoryQueue, Queue};
use crate::registry::{Registry, RegistryLimits};
use crate::store::{PostgresStore, SqliteStore, Store, StoreError, StoreSettings};
use crate::witness::ModuleCache;

/// Why the rooms do not open.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The store does not.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The data folder does not.
    #[error("the data folder: {0}")]
    Artifacts(#[from] ArtifactError),
}

/// Store, artifacts and registry of one data folder.
pub struct Workspace {
    config: Config,
    store: Arc<dyn Store>,
    queue: Arc<dyn Queue>,
    artifacts: Artifacts,
    registry: Registry,
}

impl Workspace {
    /// Opens what is there and makes what is not. Any number of processes may have the same workspace open.
    pub async fn open(config: Config) -> Result<Self, OpenError> {
        private_dir(&config.data_dir)?;
        let store = open_store(&config).await?;
        let artifacts = Artifacts::local(&config.data_dir)?;
        let limits = RegistryLimits {
            key_cache_bytes: config.key_cache_bytes,
            ..RegistryLimits::for_witness(config.witness_timeout, config.witness_memory)
        };
        let registry = Registry::new(store.clone(), artifacts.clone(), module_cache(&config), limits);
        Ok(Self { config, store, queue: Arc::new(MemoryQueue::new()), artifacts, registry })
    }

    /// The configuration.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Jobs and circuits.
    pub fn store(&self) -> &Arc<dyn Store> {
        &self.store
    }

    /// Open circuits.
    pub fn registry(&self) -> &Registry {
        &self.registry
    }

    /// Submit, look, cancel. Its jobs wake a worker in this process at once, and others within about 100 ms.
    pub fn service(&self) -> JobService {
        let queue = Some(self.queue.clone());
        JobService::new(self.store.clone(), queue, self.artifacts.clone(), self.config.max_input_bytes)
    }

    /// What a worker stands on.
    pub async fn rooms(&self) -> Result<Rooms, OpenError> {
        Ok(Rooms {
            store: self.store.clone(),
            heartbeat: open_store(&self.config).await?,
            queue: self.queue.clone(),
            artifacts: self.artifacts.clone(),
            registry: self.registry.clone(),
        })
    }
}

async fn open_store(config: &Config) -> Result<Arc<dyn Store>, OpenError> {
    let settings = StoreSettings {
        queue: config.queue_name.clone(),
        keep_failed_inputs: config.keep_failed_inputs,
        notify: config.redis.is_none(),
    };
    match &config.database {
        Database::Sqlite(path) => Ok(Arc::new(SqliteStore::open(path, settings).await?)),
        Database::Postgres(url) => Ok(Arc::new(PostgresStore::open(url.reveal(), settings).await?)),
    }
}

/// Compiled witness programs lie in the data folder. This program compiles them as a child of itself.
pub fn module_cache(config: &Config) -> ModuleCache {
    // By this name the running program is found even after an upgrade put another file in its place.
    let running = PathBuf::from("/proc/self/exe");
    let compiler = if running.exists() { Some(running) } else { std::env::current_exe().ok() };
    ModuleCache { dir: Some(config.data_dir.join("modules")), compiler }
}
