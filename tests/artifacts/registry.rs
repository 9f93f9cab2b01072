//! A registry whose artifacts are in an object store.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use prover_worker::artifacts::{ArtifactError, Artifacts};
use prover_worker::formats::{r1cs, zkey};
use prover_worker::groth16::setup;
use prover_worker::model::CircuitContent;
use prover_worker::registry::{Registry, RegistryError, RegistryLimits};
use prover_worker::store::{SqliteStore, Store, StoreSettings};
use prover_worker::witness::ModuleCache;

use crate::circuits::{circuit_file, circuits};
use crate::faulty::Faulty;
use crate::names;

struct Fixture {
    dir: tempfile::TempDir,
    remote: Faulty,
    store: Arc<dyn Store>,
}

impl Fixture {
    async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let settings =
            StoreSettings { queue: "prove".to_owned(), keep_failed_inputs: Duration::from_secs(3600), notify: false };
        let store: Arc<dyn Store> = Arc::new(SqliteStore::open(&dir.path().join("jobs.db"), settings).await.unwrap());
        Self { dir, remote: Faulty::default(), store }
    }

    fn cache(&self, machine: &str) -> PathBuf {
        self.dir.path().join(machine)
    }

    /// Returns the registry of one machine, just started.
    fn registry(&self, machine: &str, cache_bytes: u64) -> Registry {
        let remote = Arc::new(self.remote.clone());
        let artifacts = Artifacts::remote(remote, "there".to_owned(), &self.cache(machine), cache_bytes).unwrap();
        Registry::new(
            self.store.clone(),
            artifacts,
            ModuleCache { dir: None, compiler: None, rewrite: true },
            RegistryLimits::for_witness(Duration::from_secs(60), 1 << 30),
        )
    }

    fn key(&self) -> PathBuf {
        let circuit = r1cs::parse(&circuit_file("multiplier.r1cs")).unwrap();
        let mut bytes = Vec::new();
        zkey::write(&setup::generate(&circuit, &|_| {}).unwrap(), &mut bytes).unwrap();
        crate::file(self.dir.path(), "key", &bytes)
    }

    async fn add(&self, machine: &str) -> CircuitContent {
        let (key, wasm) = (self.key(), circuits().join("multiplier.wasm"));
        let registry = self.registry(machine, 1 << 30);
        let circuit = registry.add("c".parse().unwrap(), &key, Some(&wasm), Arc::new(|_, _| {})).await.unwrap();
        circuit.content()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_one_machine_registers_another_opens() {
    let fixture = Fixture::new().await;
    let content = fixture.add("one").await;
    let open = fixture.registry("two", 1 << 30).open(content).await.unwrap();
    assert!(open.witness.is_some());
    assert_eq!(names(&fixture.cache("two").join("zkeys")), [content.zkey.to_string()]);
    // Without any cache space it works as well, because what is open stays open.
    fixture.registry("three", 0).open(content).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_that_rotted_is_noticed_when_it_is_opened_and_fetched_anew() {
    let fixture = Fixture::new().await;
    let content = fixture.add("one").await;
    let path = fixture.cache("one").join("zkeys").join(content.zkey.to_string());
    let sound = std::fs::read(&path).unwrap();
    let mut rotten = sound.clone();
    let middle = rotten.len() / 2;
    rotten[middle] ^= 1;
    std::fs::remove_file(&path).unwrap();
    std::fs::write(&path, rotten).unwrap();
    fixture.registry("one", 1 << 30).open(content).await.unwrap();
    assert!(std::fs::read(&path).unwrap() == sound);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_object_that_rotted_there_is_told_and_mended_by_registering_again() {
    let fixture = Fixture::new().await;
    let content = fixture.add("one").await;
    let at = format!("zkeys/{}", content.zkey);
    let size = std::fs::metadata(fixture.dir.path().join("key")).unwrap().len();
    fixture.remote.overwrite(&at, vec![0; usize::try_from(size).unwrap()]).await;
    let registry = fixture.registry("two", 1 << 30);
    let error = registry.open(content).await.err().unwrap();
    assert!(matches!(error, RegistryError::Artifact(ArtifactError::Damaged { .. })), "{error}");
    let wasm = circuits().join("multiplier.wasm");
    let on = Arc::new(|_: &'static str, _: f32| {});
    let key = fixture.dir.path().join("key");
    registry.add("c".parse().unwrap(), &key, Some(&wasm), on).await.unwrap();
    registry.open(content).await.unwrap();
    assert!(fixture.remote.names().await.contains(&at));
}
