//! What the registry keeps and what it removes, on real files.
#![allow(clippy::unwrap_used, missing_docs)]

#[path = "../support/circuits.rs"]
mod circuits;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use ark_bn254::{Fr, G1Projective};
use circuits::{circuit_file, circuits};
use prover_worker::artifacts::{Artifacts, Kind};
use prover_worker::backend::cpu::CpuBackend;
use prover_worker::backend::{
    Backend, BackendError, Commitments, DeviceInfo, DeviceKind, Footprint, LoadedKey, Progress,
};
use prover_worker::formats::{r1cs, zkey};
use prover_worker::groth16::{Verifier, setup};
use prover_worker::model::{
    Circuit, CircuitContent, ContentHash, JobId, NewJob, Priority, Proof, ProvingKey, PublicInputs, StopToken, Witness,
};
use prover_worker::registry::{Registry, RegistryError, RegistryLimits};
use prover_worker::store::{Input, SqliteStore, Store, StoreSettings};
use prover_worker::witness::ModuleCache;

struct Fixture {
    dir: tempfile::TempDir,
    store: Arc<dyn Store>,
    artifacts: Artifacts,
    registry: Registry,
}

impl Fixture {
    async fn open() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store: Arc<dyn Store> =
            Arc::new(SqliteStore::open(&dir.path().join("jobs.db"), StoreSettings::default()).await.unwrap());
        let artifacts = Artifacts::local(&dir.path().join("data")).unwrap();
        let registry = Registry::new(
            store.clone(),
            artifacts.clone(),
            ModuleCache { dir: None, compiler: None, rewrite: true },
            RegistryLimits::for_witness(Duration::from_secs(60), 1 << 30),
        );
        Self { dir, store, artifacts, registry }
    }

    /// Writes a development key of `multiplier` to a file with this name; each has different content.
    fn key(&self, name: &str) -> PathBuf {
        let circuit = r1cs::parse(&circuit_file("multiplier.r1cs")).unwrap();
        let mut bytes = Vec::new();
        zkey::write(&setup::generate(&circuit, &|_| {}).unwrap(), &mut bytes).unwrap();
        let path = self.dir.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        path
    }

    async fn add(&self, name: &str, zkey: &Path, wasm: Option<&str>) -> Result<Circuit, RegistryError> {
        let wasm = wasm.map(|w| circuits().join(w));
        self.registry.add(name.parse().unwrap(), zkey, wasm.as_deref(), Arc::new(|_, _| {})).await
    }

    async fn has(&self, kind: Kind, hash: ContentHash) -> bool {
        self.artifacts.contains(kind, hash).await.unwrap()
    }

    async fn submit(&self, circuit: &Circuit) -> JobId {
        let id = JobId::new();
        let body = ContentHash::of(b"");
        let new = NewJob {
            id,
            circuit: circuit.name.clone(),
            idempotency_key: None,
            body,
            former_bodies: Vec::new(),
            priority: Priority::default(),
            start_within: None,
        };
        self.store.submit(&new, Input { bytes: b"input", key: "" }).await.unwrap();
        id
    }
}

fn hash(file: &Path) -> ContentHash {
    ContentHash::of(&std::fs::read(file).unwrap())
}

#[tokio::test]
async fn a_replaced_key_is_removed_unless_something_needs_it() {
    let fixture = Fixture::open().await;
    let keys = ["1", "2", "3"].map(|n| fixture.key(n));
    let first = fixture.add("c", &keys[0], Some("multiplier.wasm")).await.unwrap();
    fixture.add("same_key", &keys[0], None).await.unwrap();
    let second = fixture.add("c", &keys[1], Some("multiplier.wasm")).await.unwrap();
    assert!(fixture.has(Kind::Zkey, first.zkey).await, "another circuit has it");
    assert!(fixture.has(Kind::Wasm, second.wasm.unwrap()).await, "old and new circuit have the same program");

    let job = fixture.submit(&second).await;
    fixture.add("c", &keys[2], None).await.unwrap();
    assert!(fixture.has(Kind::Zkey, second.zkey).await, "an unfinished job needs it");
    assert!(fixture.has(Kind::Wasm, second.wasm.unwrap()).await, "an unfinished job needs it");

    fixture.registry.remove_unneeded().await.unwrap();
    assert!(fixture.has(Kind::Zkey, second.zkey).await, "an unfinished job still needs it");
    fixture.store.cancel(job).await.unwrap();
    fixture.registry.remove_unneeded().await.unwrap();
    assert!(!fixture.has(Kind::Zkey, second.zkey).await, "no job needs it any more");
    assert!(!fixture.has(Kind::Wasm, second.wasm.unwrap()).await, "no job needs it any more");
    assert!(fixture.has(Kind::Zkey, first.zkey).await, "another circuit still has it");
    assert_eq!(fixture.store.removable_content().await.unwrap(), []);

    fixture.add("c", &keys[1], None).await.unwrap();
    assert!(!fixture.has(Kind::Zkey, hash(&keys[2])).await, "nothing needs it");
    fixture.add("c", &keys[1], None).await.unwrap();
    assert!(fixture.has(Kind::Zkey, hash(&keys[1])).await, "the same content again replaces nothing");

    assert!(fixture.registry.remove(&"c".parse().unwrap()).await.unwrap());
    assert!(!fixture.has(Kind::Zkey, hash(&keys[1])).await);
    assert!(fixture.has(Kind::Zkey, first.zkey).await, "another circuit has it");
}

/// As `snarkjs groth16 setup` writes it, with the same point for γ and δ.
#[tokio::test]
async fn a_key_without_a_contribution_is_for_development_only() {
    let fixture = Fixture::open().await;
    let circuit = r1cs::parse(&std::fs::read(circuits().join("multiplier.r1cs")).unwrap()).unwrap();
    let mut key = setup::generate(&circuit, &|_| {}).unwrap();
    assert!(key.header.vk.is_contributed());
    key.header.vk.gamma_g2 = key.header.vk.delta_g2;

    // The reason: a proof that nobody needs a witness for.
    let vk = &key.header.vk;
    let public = PublicInputs(vec![Fr::from(123_456_789); vk.n_public()]);
    let sum: G1Projective =
        vk.ic[1..].iter().zip(&public.0).map(|(point, x)| *point * x).sum::<G1Projective>() + vk.ic[0];
    let forged = Proof { a: vk.alpha_g1, b: vk.beta_g2, c: (-sum).into() };
    assert!(Verifier::new(vk).verify(&forged, &public));

    let path = fixture.dir.path().join("1");
    let mut bytes = Vec::new();
    zkey::write(&key, &mut bytes).unwrap();
    std::fs::write(&path, bytes).unwrap();
    let refused = fixture.add("c", &path, None).await.unwrap_err();
    assert!(matches!(refused, RegistryError::NotContributed), "{refused}");
    assert!(!fixture.has(Kind::Zkey, hash(&path)).await, "it was imported");
    let registry = fixture.registry.clone().for_development();
    registry.add("c".parse().unwrap(), &path, None, Arc::new(|_, _| {})).await.unwrap();
}

/// As after a registration that was interrupted.
#[tokio::test]
async fn what_was_imported_for_no_circuit_is_removed_in_the_end() {
    let fixture = Fixture::open().await;
    let keys = ["1", "2"].map(|n| fixture.key(n));
    let circuit = fixture.add("c", &keys[0], None).await.unwrap();
    let (interrupted, _) = fixture.artifacts.import(Kind::Zkey, &keys[1]).await.unwrap();
    for zkey in [interrupted, circuit.zkey] {
        let content = CircuitContent { zkey, wasm: None };
        fixture.store.note_imported(&circuit.name, content, Duration::ZERO).await.unwrap();
    }
    fixture.registry.remove_unneeded().await.unwrap();
    assert!(!fixture.has(Kind::Zkey, interrupted).await);
    assert!(fixture.has(Kind::Zkey, circuit.zkey).await, "a circuit has it");
    assert_eq!(fixture.store.removable_content().await.unwrap(), []);
}

#[tokio::test]
async fn what_fails_its_check_is_not_kept_unless_a_circuit_has_it() {
    let fixture = Fixture::open().await;
    let key = fixture.key("1");
    let refused = fixture.add("c", &key, Some("range_check.wasm")).await.unwrap_err();
    assert!(matches!(refused, RegistryError::Mismatch { .. }), "{refused}");
    assert!(!fixture.has(Kind::Zkey, hash(&key)).await);
    assert!(!fixture.has(Kind::Wasm, hash(&circuits().join("range_check.wasm"))).await);
    assert_eq!(fixture.store.circuits().await.unwrap(), []);

    fixture.add("c", &key, None).await.unwrap();
    fixture.add("d", &key, Some("range_check.wasm")).await.unwrap_err();
    assert!(fixture.has(Kind::Zkey, hash(&key)).await);
}

/// While one process checks a key, another registers the same one; then the first finds its program wrong. Another
/// process removes a circuit with the same content while this one examines it.
#[tokio::test]
async fn a_removal_that_crosses_a_registration_does_it_no_harm() {
    let fixture = Fixture::open().await;
    let key = fixture.key("key");
    let wasm = circuits().join("multiplier.wasm");
    let folder = fixture.dir.path().join("data");
    let crossed = AtomicBool::new(false);
    // Between the check of the key, which exists, and that of the program.
    let on = move |at: &str, _| {
        if at == "compile" && !crossed.swap(true, Ordering::SeqCst) {
            for kind in ["zkeys", "wasms"] {
                std::fs::remove_dir_all(folder.join(kind)).unwrap();
            }
        }
    };
    let added = fixture.registry.add("c".parse().unwrap(), &key, Some(&wasm), Arc::new(on)).await.unwrap();
    assert!(fixture.has(Kind::Zkey, added.zkey).await && fixture.has(Kind::Wasm, added.wasm.unwrap()).await);
}

#[tokio::test]
async fn a_key_that_was_registered_meanwhile_is_kept() {
    let fixture = Fixture::open().await;
    let key = fixture.key("1");
    let (registry, file) = (fixture.registry.clone(), key.clone());
    let crossing = Arc::new(std::sync::Once::new());
    let handle = tokio::runtime::Handle::current();
    let listener = move |what: &'static str, _: f32| {
        if what == "check" {
            let (registry, file, handle) = (registry.clone(), file.clone(), handle.clone());
            crossing.call_once(move || {
                let added = std::thread::spawn(move || {
                    let other = registry.add("other".parse().unwrap(), &file, None, Arc::new(|_, _| {}));
                    handle.block_on(other).unwrap()
                });
                added.join().unwrap();
            });
        }
    };
    let wasm = circuits().join("range_check.wasm");
    let refused = fixture.registry.add("c".parse().unwrap(), &key, Some(&wasm), Arc::new(listener)).await;
    assert!(refused.is_err());
    assert!(fixture.has(Kind::Zkey, hash(&key)).await, "circuit other has it");
}

/// A device with memory for one key.
struct Small {
    info: DeviceInfo,
    cpu: CpuBackend,
    footprint: Footprint,
    has: Mutex<Option<Weak<dyn LoadedKey>>>,
}

impl Backend for Small {
    fn device(&self) -> &DeviceInfo {
        &self.info
    }

    fn footprint(&self, _: &ProvingKey) -> Footprint {
        self.footprint
    }

    fn load(&self, key: Arc<ProvingKey>) -> Result<Arc<dyn LoadedKey>, BackendError> {
        let mut has = self.has.lock().unwrap();
        if has.as_ref().is_some_and(|key| key.strong_count() > 0) {
            return Err(BackendError::OutOfMemory { needed: 2, free: 1 });
        }
        let loaded = self.cpu.load(key)?;
        *has = Some(Arc::downgrade(&loaded));
        Ok(loaded)
    }
}

impl Small {
    fn new(footprint: Footprint) -> Self {
        let info = DeviceInfo { kind: DeviceKind::Cuda, name: "small".into(), ordinal: 0, threads: 1, memory: 1 << 30 };
        Self { info, cpu: CpuBackend::new(1).unwrap(), footprint, has: Mutex::default() }
    }
}

/// All callers that wait for a key that does not fit next to others get it, once the others' is evicted.
#[tokio::test(flavor = "multi_thread")]
async fn all_who_wait_for_room_on_a_device_get_their_key() {
    let fixture = Fixture::open().await;
    let device: Arc<dyn Backend> =
        Arc::new(Small::new(Footprint { resident: 1 << 20, per_proof: 1 << 20, proof_buffers_kept: 1 }));
    let mut circuits = Vec::new();
    for name in ["1", "2"] {
        let circuit = fixture.add(name, &fixture.key(name), None).await.unwrap();
        circuits.push(fixture.registry.open(circuit.content()).await.unwrap());
    }
    for circuit in [&circuits[0], &circuits[1], &circuits[0]] {
        let all = (0..8).map(|_| fixture.registry.load(&device, circuit));
        for loaded in futures::future::join_all(all).await {
            assert_eq!(loaded.unwrap().key().header.n_vars, circuit.key.header.n_vars);
        }
    }
}

/// Not all of a device's memory is for keys: one that barely fits is refused, and none is evicted for it.
#[tokio::test]
async fn a_key_that_would_fill_a_device_is_too_large() {
    let fixture = Fixture::open().await;
    let circuit = fixture.add("1", &fixture.key("1"), None).await.unwrap();
    let circuit = fixture.registry.open(circuit.content()).await.unwrap();
    let fits = |resident| {
        let device: Arc<dyn Backend> =
            Arc::new(Small::new(Footprint { resident, per_proof: 100 << 20, proof_buffers_kept: 1 }));
        let (registry, circuit) = (fixture.registry.clone(), circuit.clone());
        async move { registry.load(&device, &circuit).await.map(drop) }
    };
    let refused = fits(800 << 20).await;
    assert!(matches!(refused, Err(RegistryError::TooLarge { memory: 0x3800_0000, .. })), "{refused:?}");
    fits(700 << 20).await.unwrap();
}

/// A device that underestimates a key's memory before it is loaded, and then reports what it takes.
struct Guessing(Small);

struct Counted(Arc<dyn LoadedKey>);

impl Backend for Guessing {
    fn device(&self) -> &DeviceInfo {
        self.0.device()
    }

    fn footprint(&self, key: &ProvingKey) -> Footprint {
        self.0.footprint(key)
    }

    fn load(&self, key: Arc<ProvingKey>) -> Result<Arc<dyn LoadedKey>, BackendError> {
        Ok(Arc::new(Counted(self.0.cpu.load(key)?)))
    }
}

impl LoadedKey for Counted {
    fn key(&self) -> &Arc<ProvingKey> {
        self.0.key()
    }

    fn resident(&self) -> Option<u64> {
        Some(300 << 20)
    }

    fn commit(&self, witness: &Witness, stop: &StopToken, on: &dyn Progress) -> Result<Commitments, BackendError> {
        self.0.commit(witness, stop, on)
    }
}

#[tokio::test]
async fn keys_count_by_what_they_take_once_they_are_loaded() {
    let fixture = Fixture::open().await;
    let guessed = Footprint { resident: 1 << 20, per_proof: 1 << 20, proof_buffers_kept: 1 };
    let device: Arc<dyn Backend> = Arc::new(Guessing(Small::new(guessed)));
    let mut loaded = Vec::new();
    for name in ["1", "2"] {
        let circuit = fixture.add(name, &fixture.key(name), None).await.unwrap();
        let circuit = fixture.registry.open(circuit.content()).await.unwrap();
        fixture.registry.load(&device, &circuit).await.unwrap();
        loaded.push(circuit.content.zkey);
    }
    // Half of the device is for keys.
    assert_eq!([0, 1].map(|i| fixture.registry.has_loaded(&*device, loaded[i])), [false, true]);
}
