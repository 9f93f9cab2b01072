//! Circuits by content: registering them, opening them, and keeping their keys loaded on each device.
//!
//! A circuit is registered once, with a check of every byte of its key. From then on jobs refer to content, not files:
//! what a job was submitted for is what is proved, whatever is registered under the name later.

mod cache;
mod host_memory;

use std::collections::{BTreeSet, HashMap, HashSet};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use metrics::{counter, gauge};
use tokio::sync::Semaphore;

use crate::artifacts::{ArtifactError, Artifacts, Content, Kind, verify};
use crate::backend::mapped::map_file;
use crate::backend::{Backend, BackendError, Footprint, LoadedKey};
use crate::formats::{FormatError, zkey};
use crate::groth16::Verifier;
use crate::model::{Circuit, CircuitContent, CircuitName, ContentHash, ProvingKey, locked};
use crate::store::{Store, StoreError};
use crate::telemetry;
use crate::witness::{self, ModuleCache, WasmWitness, WitnessError};
use cache::{Cache, LoadError};

pub use host_memory::host_keys;

/// How long content that was imported is kept without a circuit: longer than any registration takes.
const UNREGISTERED_KEPT: Duration = Duration::from_secs(24 * 3600);
/// Number of concurrent removals that a registration recovers from.
const MAX_CROSSED: usize = 5;
/// How long a key that was read again from its file is trusted.
const TRUSTED: Duration = Duration::from_secs(600);
/// Witness programs loaded at the same time, each of which may have to be compiled.
const COMPILED_AT_ONCE: usize = 2;

/// Why an operation on a circuit failed.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    /// The key is not a valid Groth16 key on BN254.
    #[error("the zkey: {0}")]
    Key(#[from] FormatError),
    /// Anyone can make false proofs for the key.
    #[error(
        "the zkey: expected a key with a contribution to its phase 2, got one without (gamma and delta are equal): anyone \
         can make false proofs for it. Run `snarkjs zkey contribute`; for development, add it with --insecure-dev-only"
    )]
    NotContributed,
    /// The witness program is unusable.
    #[error("the wasm: {0}")]
    Witness(#[from] WitnessError),
    /// Key and witness program belong to different circuits.
    #[error("the wasm computes {wasm} values, the zkey is for {zkey}: they belong to different circuits")]
    Mismatch {
        /// Number of wires in the witness program.
        wasm: u32,
        /// Number of wires in the key.
        zkey: u32,
    },
    /// The device could not load the key.
    #[error(transparent)]
    Backend(#[from] BackendError),
    /// The key does not fit into the device's memory, whatever else is there.
    #[error(
        "{device} is too small for the key: {resident} bytes for the key and {per_proof} for a proof are needed, \
         {memory} are available"
    )]
    TooLarge {
        /// The device's label.
        device: String,
        /// Bytes that the key needs.
        resident: u64,
        /// Bytes that a proof needs in addition.
        per_proof: u64,
        /// Bytes that the device has for keys and proofs together.
        memory: u64,
    },
    /// An artifact could not be read or written.
    #[error(transparent)]
    Artifact(#[from] ArtifactError),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A loading task panicked or was cancelled.
    #[error("loading a circuit was interrupted: {0}")]
    Cut(#[from] tokio::task::JoinError),
    /// A concurrent load of the same content, which this call waited for, failed for a reason outside the program.
    #[error("{0}")]
    ConcurrentLoad(String),
}

impl LoadError for RegistryError {
    fn for_waiter(&self) -> Self {
        match self {
            Self::Key(e) => Self::Key(e.clone()),
            Self::NotContributed => Self::NotContributed,
            Self::Witness(e) => Self::Witness(e.clone()),
            Self::Mismatch { wasm, zkey } => Self::Mismatch { wasm: *wasm, zkey: *zkey },
            Self::Backend(e) => Self::Backend(e.clone()),
            Self::TooLarge { device, resident, per_proof, memory } => {
                let (resident, per_proof, memory) = (*resident, *per_proof, *memory);
                Self::TooLarge { device: device.clone(), resident, per_proof, memory }
            }
            Self::Artifact(ArtifactError::Missing { what }) => ArtifactError::Missing { what: what.clone() }.into(),
            Self::Artifact(ArtifactError::Damaged { what, got }) => {
                ArtifactError::Damaged { what: what.clone(), got: *got }.into()
            }
            Self::Artifact(_) | Self::Store(_) | Self::Cut(_) | Self::ConcurrentLoad(_) => {
                Self::ConcurrentLoad(self.to_string())
            }
        }
    }
}

/// An open circuit.
pub struct ReadyCircuit {
    /// Its content.
    pub content: CircuitContent,
    /// The memory-mapped key.
    pub key: Arc<ProvingKey>,
    /// The prepared verification key.
    pub verifier: Verifier,
    /// The witness program; if there is none, jobs bring a witness.
    pub witness: Option<WasmWitness>,
}

/// Limits on the resources of a registry.
#[derive(Debug, Clone)]
pub struct RegistryLimits {
    /// Limits on witness programs.
    pub witness: witness::Limits,
    /// Bytes of keys kept open in host memory, and of those loaded on each device; derived from the memory size when
    /// unset.
    pub key_cache_bytes: Option<u64>,
}

impl RegistryLimits {
    /// The defaults, with these limits on the time and the memory (in bytes) of a run of a witness program. Its
    /// compilation, which happens once, gets at least a minute and 1 GiB.
    pub fn for_witness(time: Duration, memory: u64) -> Self {
        let (compile_time, compile_memory) = (time.max(Duration::from_secs(60)), memory.max(1 << 30));
        let witness = witness::Limits { time, memory, compile_time, compile_memory };
        Self { witness, key_cache_bytes: None }
    }
}

/// Receives the progress of a registration: its step, and the fraction done from 0 to 1.
pub type Listener = Arc<dyn Fn(&'static str, f32) + Send + Sync>;

/// The keys loaded on one device, by content.
type DeviceCache = Cache<ContentHash, dyn LoadedKey, RegistryError>;

/// The circuits of a store.
#[derive(Clone)]
pub struct Registry {
    store: Arc<dyn Store>,
    artifacts: Artifacts,
    modules: ModuleCache,
    limits: RegistryLimits,
    open: Cache<CircuitContent, ReadyCircuit, RegistryError>,
    /// Caches by the device's label.
    loaded: Arc<Mutex<HashMap<String, DeviceCache>>>,
    /// Keys that were read again from their files, and when.
    read_again: Arc<Mutex<HashMap<ContentHash, Instant>>>,
    /// Held while keys are evicted to load another.
    evicting: Arc<tokio::sync::Mutex<()>>,
    /// Limits concurrent compilations of witness programs, each in a child process with memory of its own.
    compiling: Arc<Semaphore>,
    /// Whether keys without a contribution are registered.
    development: bool,
}

impl Registry {
    /// Creates a registry over a store and its artifacts.
    pub fn new(store: Arc<dyn Store>, artifacts: Artifacts, modules: ModuleCache, limits: RegistryLimits) -> Self {
        let host = host_keys(limits.key_cache_bytes);
        let (loaded, read_again, evicting) = Default::default();
        let compiling = Arc::new(Semaphore::new(COMPILED_AT_ONCE));
        let (open, development) = (Cache::new(host), false);
        Self { store, artifacts, modules, limits, open, loaded, read_again, evicting, compiling, development }
    }

    /// Registers keys without a contribution as well, for which anyone can make false proofs.
    pub fn for_development(self) -> Self {
        Self { development: true, ..self }
    }

    /// Registers a circuit: imports its files, checks every byte of the key, compiles the witness program, and records
    /// the circuit. Different content under the same name replaces it for jobs submitted later; content that nothing
    /// needs any more is removed.
    pub async fn add(
        &self,
        name: CircuitName,
        zkey: &Path,
        wasm: Option<&Path>,
        on: Listener,
    ) -> Result<Circuit, RegistryError> {
        on("copy", 0.0);
        let (key_file, program_file, development) = (zkey.to_path_buf(), wasm.map(Path::to_path_buf), self.development);
        blocking(move || precheck(&key_file, program_file.as_deref(), development)).await?;
        let mut content = self.import(&name, zkey, wasm).await?;
        let mut crossed = 0;
        let circuit = loop {
            match self.examine(name.clone(), content, on.clone()).await {
                Ok(circuit) => break circuit,
                // The same content, of a circuit that another process registered, was removed meanwhile: import it
                // again.
                Err(RegistryError::Artifact(ArtifactError::Missing { .. })) if crossed < MAX_CROSSED => {
                    crossed += 1;
                    content = self.import(&name, zkey, wasm).await?;
                }
                Err(e) => {
                    // Content that failed the check is not kept.
                    self.discard_refused(content).await;
                    return Err(e);
                }
            }
        };
        let stored = self.store.put_circuit(&circuit).await?;
        self.remove_unneeded_now().await;
        // From here on the content is safe from removal; but it may have been removed just before.
        if !self.artifacts.contains(Kind::Zkey, content.zkey).await? {
            self.artifacts.import(Kind::Zkey, zkey).await?;
        }
        if let (Some(hash), Some(file)) = (content.wasm, wasm)
            && !self.artifacts.contains(Kind::Wasm, hash).await?
        {
            self.artifacts.import(Kind::Wasm, file).await?;
        }
        Ok(stored)
    }

    /// Imports the files of a circuit. They are noted as removable, for the case that the registration never ends.
    /// (What a process leaves that is killed between a copy and its note, nothing removes.)
    async fn import(
        &self,
        name: &CircuitName,
        zkey: &Path,
        wasm: Option<&Path>,
    ) -> Result<CircuitContent, RegistryError> {
        let (zkey, _) = self.artifacts.import(Kind::Zkey, zkey).await?;
        let content = CircuitContent { zkey, wasm: None };
        self.store.note_imported(name, content, UNREGISTERED_KEPT).await?;
        let Some(file) = wasm else { return Ok(content) };
        let (wasm, _) = self.artifacts.import(Kind::Wasm, file).await?;
        let content = CircuitContent { wasm: Some(wasm), ..content };
        self.store.note_imported(name, content, UNREGISTERED_KEPT).await?;
        Ok(content)
    }

    async fn examine(
        &self,
        name: CircuitName,
        content: CircuitContent,
        on: Listener,
    ) -> Result<Circuit, RegistryError> {
        let bytes = fetch(&self.artifacts, Kind::Zkey, content.zkey).await?;
        let heard = on.clone();
        let key = blocking(move || {
            let key = zkey::parse(bytes)?;
            zkey::check_reporting(&key, &|done| heard("check", done))?;
            Ok(key)
        })
        .await?;
        if let Some(hash) = content.wasm {
            on("compile", 0.0);
            let wasm = self.load_wasm(hash).await?;
            check_sizes(&wasm, &key)?;
        }
        let header = &key.header;
        Ok(Circuit {
            name,
            zkey: content.zkey,
            wasm: content.wasm,
            n_vars: header.n_vars,
            n_public: header.n_public,
            domain_size: header.domain_size,
            created_at: 0,
        })
    }

    /// Removes a circuit, and its content unless another circuit has it. Refused while unfinished jobs need it. Returns
    /// whether there was such a circuit.
    pub async fn remove(&self, name: &CircuitName) -> Result<bool, RegistryError> {
        let removed = self.store.remove_circuit(name).await?;
        if removed {
            self.remove_unneeded_now().await;
        }
        Ok(removed)
    }

    /// Returns an open circuit by content, opening it if needed.
    pub async fn open(&self, content: CircuitContent) -> Result<Arc<ReadyCircuit>, RegistryError> {
        let me = self.clone();
        let load = async move {
            let bytes = fetch(&me.artifacts, Kind::Zkey, content.zkey).await?;
            let size = bytes.len() as u64;
            let key = blocking(move || {
                let key = zkey::parse(bytes)?;
                let verifier = Verifier::new(&key.header.vk);
                Ok((Arc::new(key), verifier))
            });
            let (key, verifier) = key.await?;
            let witness = match content.wasm {
                Some(hash) => Some(me.load_wasm(hash).await?),
                None => None,
            };
            Ok((Arc::new(ReadyCircuit { content, key, verifier, witness }), size))
        };
        self.open.get_or_load(content, load).await
    }

    /// Returns the circuit to make a proof with once more, after one with this circuit and key that did not verify:
    /// read again from its files, and verified by its hashes, with its key to be loaded again. `None` if that was
    /// done a moment ago: then what is in memory is not at fault.
    pub async fn second_opinion(
        &self,
        device: &dyn Backend,
        circuit: &Arc<ReadyCircuit>,
        loaded: &Arc<dyn LoadedKey>,
    ) -> Result<Option<Arc<ReadyCircuit>>, RegistryError> {
        let (content, cache) = (circuit.content, self.device_cache(device));
        // Another job may have had it read again meanwhile.
        if cache.holds(&content.zkey, loaded) {
            if self.was_read_again(content.zkey) {
                return Ok(None);
            }
            // What is there stays if the file is not.
            fetch(&self.artifacts, Kind::Zkey, content.zkey).await?;
            self.open.forget(&content, circuit).await;
            cache.forget(&content.zkey, loaded).await;
            locked(&self.read_again).insert(content.zkey, Instant::now());
        }
        self.open(content).await.map(Some)
    }

    fn was_read_again(&self, zkey: ContentHash) -> bool {
        let mut read_again = locked(&self.read_again);
        read_again.retain(|_, at| at.elapsed() < TRUSTED);
        read_again.contains_key(&zkey)
    }

    /// Whether a circuit is open.
    pub fn is_open(&self, content: CircuitContent) -> bool {
        self.open.has(&content)
    }

    /// Returns a circuit's key on a device, loading it if needed. If the memory does not suffice, keys that no proof
    /// uses are evicted; if even that would not suffice, nothing is loaded or evicted.
    pub async fn load(
        &self,
        device: &Arc<dyn Backend>,
        circuit: &ReadyCircuit,
    ) -> Result<Arc<dyn LoadedKey>, RegistryError> {
        self.check_fits(device.as_ref(), circuit)?;
        let cache = self.device_cache(device.as_ref());
        let mut loaded = load_into(&cache, device, circuit).await;
        if matches!(loaded, Err(RegistryError::Backend(BackendError::OutOfMemory { .. }))) {
            // One at a time: of the callers that got the same failure, the first evicts and loads, and the others find
            // the key loaded.
            let _evicting = self.evicting.lock().await;
            if cache.has(&circuit.content.zkey) || cache.forget_idle().await {
                loaded = load_into(&cache, device, circuit).await;
            }
        }
        gauge!(telemetry::KEYS_LOADED, "device" => device.device().label()).set(cache.bytes() as f64);
        loaded
    }

    /// Fails if the key is not loaded and does not fit into the device's memory, whatever else is there. Does not call
    /// the device.
    pub fn check_fits(&self, device: &dyn Backend, circuit: &ReadyCircuit) -> Result<(), RegistryError> {
        if self.has_loaded(device, circuit.content.zkey) { Ok(()) } else { check_fits(device, &circuit.key) }
    }

    /// Whether a device has this key loaded.
    pub fn has_loaded(&self, device: &dyn Backend, zkey: ContentHash) -> bool {
        self.device_cache(device).has(&zkey)
    }

    fn device_cache(&self, device: &dyn Backend) -> DeviceCache {
        let info = device.device();
        let mut caches = locked(&self.loaded);
        let limit = match (self.limits.key_cache_bytes, info.memory) {
            (limit, 0) => host_keys(limit),
            // The rest is for proofs.
            (limit, memory) => limit.unwrap_or(memory / 2),
        };
        caches.entry(info.label()).or_insert_with(|| Cache::new(limit)).clone()
    }

    async fn load_wasm(&self, hash: ContentHash) -> Result<WasmWitness, RegistryError> {
        let bytes = fetch(&self.artifacts, Kind::Wasm, hash).await?;
        let (limits, modules) = (self.limits.witness, self.modules.clone());
        let _held = self.compiling.acquire().await.ok();
        blocking(move || Ok(WasmWitness::load(&bytes, limits, &modules)?)).await
    }

    /// Returns the content that circuits have now.
    async fn registered(&self) -> Result<HashSet<ContentHash>, StoreError> {
        Ok(self.store.circuits().await?.iter().flat_map(|circuit| circuit.content().files()).collect())
    }

    /// Removes content that neither a circuit nor a job that may run needs: what circuits had before they were replaced
    /// or removed, and what registrations imported that never ended. What a job still needs is left to a later call.
    pub async fn remove_unneeded(&self) -> Result<(), StoreError> {
        // Read first: a circuit that has the content now, and is replaced meanwhile, leaves it to the next call.
        let registered = self.registered().await?;
        let records = self.store.removable_content().await?;
        if records.is_empty() {
            return Ok(());
        }
        // Only then are jobs seen whose submission read a circuit before it was replaced. Content of a circuit for
        // which that takes too long, because many jobs are submitted for it, is left to a later call.
        let mut unsettled = HashSet::new();
        for name in records.iter().map(|record| &record.name).collect::<BTreeSet<_>>() {
            match self.store.settle_circuit(name).await {
                Err(error) if error.is_lock_timeout() => {
                    unsettled.extend(records.iter().filter(|r| r.name == *name).flat_map(|r| r.content.files()));
                }
                settled => settled?,
            }
        }
        let in_use: HashSet<_> = self.store.content_in_use().await?.into_iter().collect();
        for record in records.iter().filter(|record| !record.content.files().any(|hash| unsettled.contains(&hash))) {
            // Read again: another process may have registered the content since.
            let registered: HashSet<_> = registered.union(&self.registered().await?).copied().collect();
            let for_jobs_alone = |hash| in_use.contains(&hash) && !registered.contains(&hash);
            let gone = self.discard(record.content, |h| registered.contains(&h) || in_use.contains(&h)).await;
            if gone && !record.content.files().any(for_jobs_alone) {
                self.store.forget_removable(record).await?;
            }
        }
        Ok(())
    }

    /// Like `remove_unneeded`, for callers whose own work is done: a failure only leaves files to a later call.
    async fn remove_unneeded_now(&self) {
        if let Err(error) = self.remove_unneeded().await {
            tracing::warn!(%error, "content that no circuit needs is not removed yet");
        }
    }

    /// Removes content that failed its check, unless a circuit or a job needs it. A failure only leaves a file that
    /// nothing needs.
    async fn discard_refused(&self, content: CircuitContent) {
        let needed = async {
            let registered = self.registered().await?;
            let in_use = self.store.content_in_use().await?;
            Ok::<_, StoreError>(registered.into_iter().chain(in_use).collect::<HashSet<_>>())
        };
        match needed.await {
            Ok(needed) => {
                self.discard(content, |hash| needed.contains(&hash)).await;
            }
            Err(error) => tracing::warn!(%error, "could not find out which artifacts are needed; none is removed"),
        }
    }

    /// Removes what of this content is not needed. Returns whether all of that is gone.
    async fn discard(&self, content: CircuitContent, needed: impl Fn(ContentHash) -> bool) -> bool {
        let mut gone = true;
        for (kind, hash) in [(Kind::Zkey, Some(content.zkey)), (Kind::Wasm, content.wasm)] {
            if let Some(hash) = hash.filter(|hash| !needed(*hash))
                && let Err(error) = self.artifacts.remove(kind, hash).await
            {
                tracing::warn!(%hash, %error, "could not remove an artifact that no circuit needs");
                gone = false;
            }
        }
        gone
    }
}

/// Checks that a device whose memory size is known has enough for the key and one proof. A key that just fits would be
/// loaded, and then every proof would run out of memory.
fn check_fits(device: &dyn Backend, key: &ProvingKey) -> Result<(), RegistryError> {
    let (info, Footprint { resident, per_proof, .. }) = (device.device(), device.footprint(key));
    let memory = beside_driver(info.memory);
    if info.memory == 0 || resident.saturating_add(per_proof) <= memory {
        return Ok(());
    }
    Err(RegistryError::TooLarge { device: info.label(), resident, per_proof, memory })
}

/// Returns the bytes of a device's memory available to keys and proofs. The rest is for the driver's contexts, code and
/// kernel stacks, some hundred megabytes, and for other programs: a sixteenth, but at least 512 MiB, or an eighth on a
/// small device.
fn beside_driver(memory: u64) -> u64 {
    memory - (memory / 16).max((512 << 20).min(memory / 8))
}

async fn load_into(
    cache: &DeviceCache,
    device: &Arc<dyn Backend>,
    circuit: &ReadyCircuit,
) -> Result<Arc<dyn LoadedKey>, RegistryError> {
    let (device, key) = (device.clone(), circuit.key.clone());
    let load = blocking(move || {
        let declared = device.footprint(&key);
        let loaded = device.load(key)?;
        // The actual size counts, not the estimate.
        let bytes = Footprint { resident: loaded.resident().unwrap_or(declared.resident), ..declared }.lasting();
        counter!(telemetry::KEY_LOADS, "device" => device.device().label()).increment(1);
        Ok((loaded, bytes))
    });
    cache.get_or_load(circuit.content.zkey, load).await
}

/// Returns an artifact's bytes, memory-mapped if it is a file, and verified by hash.
async fn fetch(artifacts: &Artifacts, kind: Kind, hash: ContentHash) -> Result<Bytes, RegistryError> {
    let mut tries = 3;
    loop {
        let path = match artifacts.content(kind, hash).await? {
            Content::Bytes(bytes) => return Ok(bytes),
            Content::File(path) => path,
        };
        let mapped = tokio::task::spawn_blocking(move || {
            let what = path.display().to_string();
            let bytes = map_file(&path).map_err(|why| ArtifactError::Io { what, why })?;
            verify(kind, hash, &bytes)?;
            Ok(bytes)
        });
        let why: ArtifactError = match mapped.await? {
            Ok(bytes) => return Ok(bytes),
            Err(why) => why,
        };
        tries -= 1;
        if tries == 0 || !artifacts.try_again(kind, hash, &why).await? {
            return Err(why.into());
        }
    }
}

/// Refuses files that are obviously something else, and keys without a contribution, before they are imported, because
/// they may be of any size.
fn precheck(key: &Path, program: Option<&Path>, development: bool) -> Result<(), RegistryError> {
    let map = |file: &Path| map_file(file).map_err(|why| ArtifactError::Io { what: file.display().to_string(), why });
    let key = zkey::parse(map(key)?)?;
    if !development && !key.header.vk.is_contributed() {
        return Err(RegistryError::NotContributed);
    }
    program.map_or(Ok(()), |file| Ok(WasmWitness::precheck(&map(file)?)?))
}

fn check_sizes(wasm: &WasmWitness, key: &ProvingKey) -> Result<(), RegistryError> {
    let (wasm, zkey) = (wasm.info().witness_size, key.header.n_vars);
    if wasm == zkey { Ok(()) } else { Err(RegistryError::Mismatch { wasm, zkey }) }
}

async fn blocking<T: Send + 'static>(
    f: impl FnOnce() -> Result<T, RegistryError> + Send + 'static,
) -> Result<T, RegistryError> {
    tokio::task::spawn_blocking(f).await?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_of_a_device_is_its_drivers() {
        for (memory, left) in [(0, 0), (1 << 30, 896 << 20), (8 << 30, 7680 << 20), (80 << 30, 75 << 30)] {
            assert_eq!(beside_driver(memory), left, "of {memory}");
        }
    }
}
