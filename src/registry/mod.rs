//! Circuits by content: registration, opening, and the keys kept loaded on each device.
//!
//! A circuit is registered once, with a look at every byte of its key. From then on jobs name content, not files: what
//! a job was submitted for is what is proved, whatever is registered under the name since.

mod cache;

use std::collections::HashMap;
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
use crate::model::{Circuit, CircuitName, ContentHash, ProvingKey, locked};
use crate::store::{Store, StoreError};
use crate::telemetry;
use crate::witness::{Limits, ModuleCache, WasmWitness, WitnessError};
use cache::{Cache, Told};

/// Removals by others that a registration outlives.
const MOST_CROSSED: usize = 5;
/// How often it is looked how much memory there is.
const LOOK_AT_MEMORY_EVERY: Duration = Duration::from_secs(10);
/// Witness programs that are loaded at once, each of which may have to be compiled.
const COMPILED_AT_ONCE: usize = 2;

/// What can go wrong with a circuit.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    /// The key is not a sound Groth16 key on BN254.
    #[error("the zkey: {0}")]
    Key(#[from] FormatError),
    /// The witness program cannot be used.
    #[error("the wasm: {0}")]
    Witness(#[from] WitnessError),
    /// Key and witness program belong to different circuits.
    #[error("the wasm computes {wasm} values, the zkey is for {zkey}: they belong to different circuits")]
    Mismatch {
        /// Wires by the witness program.
        wasm: u32,
        /// Wires by the key.
        zkey: u32,
    },
    /// The device did not take the key.
    #[error(transparent)]
    Backend(#[from] BackendError),
    /// The key is larger than the device, whatever else is there.
    #[error(
        "{device} is too small for the key: it takes {resident} bytes and {per_proof} for a proof, of {memory} for both"
    )]
    TooLarge {
        /// Which device.
        device: String,
        /// Bytes that the key takes.
        resident: u64,
        /// More for a proof.
        per_proof: u64,
        /// Bytes that the device has for keys and proofs.
        memory: u64,
    },
    /// An artifact could not be read or written.
    #[error(transparent)]
    Artifact(#[from] ArtifactError),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A loading task ended before its time.
    #[error("loading a circuit was cut short: {0}")]
    Cut(#[from] tokio::task::JoinError),
    /// Somebody else's load of the same, for which this one waited, failed for what is around the program.
    #[error("{0}")]
    Elsewhere(String),
}

impl Told for RegistryError {
    fn again(&self) -> Self {
        match self {
            Self::Key(e) => Self::Key(e.clone()),
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
            Self::Artifact(_) | Self::Store(_) | Self::Cut(_) | Self::Elsewhere(_) => Self::Elsewhere(self.to_string()),
        }
    }
}

/// What a circuit is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct CircuitContent {
    /// Its key.
    pub zkey: ContentHash,
    /// Its witness program, if it has one.
    pub wasm: Option<ContentHash>,
}

/// An open circuit.
pub struct ReadyCircuit {
    /// What it is made of.
    pub content: CircuitContent,
    /// The key, mapped.
    pub key: Arc<ProvingKey>,
    /// The verification key, prepared.
    pub verifier: Verifier,
    /// The witness program; without one, jobs bring a witness.
    pub witness: Option<WasmWitness>,
}

/// How the registry keeps to its means.
#[derive(Debug, Clone)]
pub struct RegistryLimits {
    /// Bounds on witness programs.
    pub witness: Limits,
    /// Bytes of keys kept open in the host, and of those loaded on each device; by the memory there is when unset.
    pub key_cache_bytes: Option<u64>,
}

impl RegistryLimits {
    /// The usual ones, with these bounds on the time and the memory (bytes) of a witness program's run. Its compile,
    /// which is made once, has at least a minute and 1 GiB.
    pub fn for_witness(time: Duration, memory: u64) -> Self {
        let (compile_time, compile_memory) = (time.max(Duration::from_secs(60)), memory.max(1 << 30));
        let witness = Limits { time, memory, compile_time, compile_memory };
        Self { witness, key_cache_bytes: None }
    }
}

/// Hears what a registration is at: a word and how far, 0 to 1.
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
    /// By the device's label.
    loaded: Arc<Mutex<HashMap<String, DeviceCache>>>,
    /// Held while keys go for another to come.
    making_room: Arc<tokio::sync::Mutex<()>>,
    /// Held while a witness program is compiled, which takes a child with memory of its own.
    compiling: Arc<Semaphore>,
}

impl Registry {
    /// A registry over a store and its artifacts.
    pub fn new(store: Arc<dyn Store>, artifacts: Artifacts, modules: ModuleCache, limits: RegistryLimits) -> Self {
        let host = host_keys(limits.key_cache_bytes);
        let (loaded, making_room) = Default::default();
        let compiling = Arc::new(Semaphore::new(COMPILED_AT_ONCE));
        Self { store, artifacts, modules, limits, open: Cache::new(host), loaded, making_room, compiling }
    }

    /// Registers a circuit: copies its files in, checks every byte of the key, compiles the witness program, and
    /// writes it down. Other content under the same name replaces it for jobs submitted later; what nothing needs any
    /// more is removed.
    pub async fn add(
        &self,
        name: CircuitName,
        zkey: &Path,
        wasm: Option<&Path>,
        on: Listener,
    ) -> Result<Circuit, RegistryError> {
        on("copy", 0.0);
        let (key_file, program_file) = (zkey.to_path_buf(), wasm.map(Path::to_path_buf));
        blocking(move || glance(&key_file, program_file.as_deref())).await?;
        let mut content = self.import(zkey, wasm).await?;
        let mut crossed = 0;
        let circuit = loop {
            match self.examine(name.clone(), content, on.clone()).await {
                Ok(circuit) => break circuit,
                // A removal of the same content, of a circuit that another process knows, crossed: it goes in again.
                Err(RegistryError::Artifact(ArtifactError::Missing { .. })) if crossed < MOST_CROSSED => {
                    crossed += 1;
                    content = self.import(zkey, wasm).await?;
                }
                Err(e) => {
                    // What failed its check is not kept.
                    self.discard(content).await;
                    return Err(e);
                }
            }
        };
        let replaced = self.store.circuit(&circuit.name).await?;
        let stored = self.store.put_circuit(&circuit).await?;
        if let Some(old) = replaced {
            self.discard(CircuitContent { zkey: old.zkey, wasm: old.wasm }).await;
        }
        // From here on nobody removes it; but somebody may have done so just before.
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

    async fn import(&self, zkey: &Path, wasm: Option<&Path>) -> Result<CircuitContent, RegistryError> {
        let (zkey, _) = self.artifacts.import(Kind::Zkey, zkey).await?;
        let wasm = match wasm {
            Some(file) => Some(self.artifacts.import(Kind::Wasm, file).await?.0),
            None => None,
        };
        Ok(CircuitContent { zkey, wasm })
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

    /// Forgets a circuit and removes what no other circuit has. Refused while unfinished jobs need it.
    pub async fn remove(&self, name: &CircuitName) -> Result<bool, RegistryError> {
        let Some(circuit) = self.store.circuit(name).await? else { return Ok(false) };
        let removed = self.store.remove_circuit(name).await?;
        if removed {
            self.discard(CircuitContent { zkey: circuit.zkey, wasm: circuit.wasm }).await;
        }
        Ok(removed)
    }

    /// An open circuit by content.
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

    /// Whether a circuit is open.
    pub fn is_open(&self, content: CircuitContent) -> bool {
        self.open.has(&content)
    }

    /// A circuit's key on a device. When its memory does not suffice, keys that no proof uses make room, unless that would
    /// not do: then nothing is uploaded and nothing has to go.
    pub async fn load(
        &self,
        device: &Arc<dyn Backend>,
        circuit: &ReadyCircuit,
    ) -> Result<Arc<dyn LoadedKey>, RegistryError> {
        self.check_fits(device.as_ref(), circuit)?;
        let cache = self.device_cache(device.as_ref());
        let mut loaded = load_into(&cache, device, circuit).await;
        if matches!(loaded, Err(RegistryError::Backend(BackendError::OutOfMemory { .. }))) {
            // One by one: of those who were told of the same failure, the first makes room and the others find the key.
            let _room = self.making_room.lock().await;
            if cache.has(&circuit.content.zkey) || cache.forget_idle().await {
                loaded = load_into(&cache, device, circuit).await;
            }
        }
        gauge!(telemetry::KEYS_LOADED, "device" => device.device().label()).set(cache.bytes() as f64);
        loaded
    }

    /// Fails where the key is larger than the device, whatever else is there, and is not loaded; asks nothing of the device.
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

    /// Content that circuits or unfinished jobs need, sorted.
    async fn needed(&self) -> Result<Vec<ContentHash>, RegistryError> {
        let mut held = Vec::new();
        for circuit in self.store.circuits().await? {
            held.push(circuit.zkey);
            held.extend(circuit.wasm);
        }
        held.extend(self.store.content_in_use().await?);
        held.sort_unstable();
        Ok(held)
    }

    /// Removes content that no circuit and no unfinished job needs at this moment: others may have registered it since
    /// the caller began. A failure leaves a file that nobody needs, no more.
    async fn discard(&self, content: CircuitContent) {
        let needed = match self.needed().await {
            Ok(needed) => needed,
            Err(error) => return tracing::warn!(%error, "could not tell which artifacts are needed; none is removed"),
        };
        let parts = [(Kind::Zkey, Some(content.zkey)), (Kind::Wasm, content.wasm)];
        for (kind, hash) in parts {
            if let Some(hash) = hash
                && needed.binary_search(&hash).is_err()
                && let Err(e) = self.artifacts.remove(kind, hash).await
            {
                tracing::warn!(%hash, error = %e, "could not remove an artifact that no circuit needs");
            }
        }
    }
}

/// That a device whose memory is known has enough for the key and one proof. One that just does not fit would be loaded, and
/// then no proof would find memory, again and again.
fn check_fits(device: &dyn Backend, key: &ProvingKey) -> Result<(), RegistryError> {
    let (info, Footprint { resident, per_proof, .. }) = (device.device(), device.footprint(key));
    let memory = beside_driver(info.memory);
    if info.memory == 0 || resident.saturating_add(per_proof) <= memory {
        return Ok(());
    }
    Err(RegistryError::TooLarge { device: info.label(), resident, per_proof, memory })
}

/// What keys and proofs may have of a device's memory, bytes: its driver has contexts, code and stacks of kernels there, some
/// hundred megabytes, and other programs may have something. Of a small device an eighth.
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
        // What lies there now counts, and not what was guessed of it.
        let bytes = Footprint { resident: loaded.resident().unwrap_or(declared.resident), ..declared }.lasting();
        counter!(telemetry::KEY_LOADS, "device" => device.device().label()).increment(1);
        Ok((loaded, bytes))
    });
    cache.get_or_load(circuit.content.zkey, load).await
}

/// An artifact's bytes, mapped where it is a file, verified by hash either way.
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

/// Refuses files that are plainly something else before they are copied: they may be of any size.
fn glance(key: &Path, program: Option<&Path>) -> Result<(), RegistryError> {
    let map = |file: &Path| map_file(file).map_err(|why| ArtifactError::Io { what: file.display().to_string(), why });
    zkey::parse(map(key)?)?;
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

/// Bytes that keys kept open in the host may take: `limit`, or by the memory there is.
pub fn host_keys(limit: Option<u64>) -> u64 {
    limit.unwrap_or_else(|| known_memory() / 2)
}

/// The memory there is, by a look some seconds old at most: each job asks, and a look reads half a dozen files.
fn known_memory() -> u64 {
    static KNOWN: Mutex<Option<(Instant, u64)>> = Mutex::new(None);
    let mut known = locked(&KNOWN);
    match *known {
        Some((at, memory)) if at.elapsed() < LOOK_AT_MEMORY_EVERY => memory,
        _ => known.insert((Instant::now(), host_memory())).1,
    }
}

/// Memory this process may use, bytes: the machine's or its control group's, whichever is less.
fn host_memory() -> u64 {
    let machine = std::fs::read_to_string("/proc/meminfo").ok().and_then(|text| {
        let line = text.lines().find_map(|l| l.strip_prefix("MemTotal:"))?;
        line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok().map(|kib| kib * 1024)
    });
    let groups = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let group = group_memory(&groups, |file| std::fs::read_to_string(file).ok());
    // No such files: not Linux. A modest machine.
    machine.into_iter().chain(group).min().unwrap_or(8 << 30)
}

/// The least limit of memory among a process' control groups, of either version, and the groups above them. `groups` is
/// /proc/self/cgroup. In a container it may name groups of the host, which are not to be seen there; then the container's
/// own lies at the root.
fn group_memory(groups: &str, read: impl Fn(&Path) -> Option<String>) -> Option<u64> {
    let limits = groups.lines().flat_map(|line| {
        let mut parts = line.splitn(3, ':').skip(1);
        let (controllers, path) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
        let (root, file) = match controllers {
            "" => ("/sys/fs/cgroup", "memory.max"),
            _ => ("/sys/fs/cgroup/memory", "memory.limit_in_bytes"),
        };
        let has_memory = controllers.is_empty() || controllers.split(',').any(|name| name == "memory");
        let above = Path::new(path).ancestors().filter(move |_| has_memory);
        above.map(move |group| Path::new(root).join(group.strip_prefix("/").unwrap_or(group)).join(file))
    });
    // Of no limit, version 2 says "max", and version 1 a number larger than any machine.
    limits.filter_map(|file| read(&file)?.trim().parse().ok()).min()
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

    #[test]
    fn memory_is_the_least_that_a_control_group_leaves() {
        let files = [
            ("/sys/fs/cgroup/memory.max", "900\n"),
            ("/sys/fs/cgroup/system.slice/memory.max", "700\n"),
            ("/sys/fs/cgroup/system.slice/worker.service/memory.max", "max\n"),
            ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "800\n"),
            ("/sys/fs/cgroup/memory/docker/memory.limit_in_bytes", "9223372036854771712\n"),
        ];
        let read =
            |file: &Path| files.iter().find(|(name, _)| Path::new(name) == file).map(|(_, text)| (*text).to_owned());
        for (groups, least) in [
            ("", None),
            ("3:cpu,cpuacct:/docker/0a\n", None),
            // A container of its own, and what the host calls it.
            ("0::/\n", Some(900)),
            ("12:cpu:/\n4:memory:/docker/0a\n", Some(800)),
            ("4:hugetlb,memory:/docker\n0::/none\n", Some(800)),
            ("0::/system.slice/worker.service\n", Some(700)),
        ] {
            assert_eq!(group_memory(groups, read), least, "of {groups:?}");
        }
    }
}
