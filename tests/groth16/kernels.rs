//! The GPU backend, with its kernels run by this CPU, against the CPU backend.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use prover_worker::backend::cpu::{CpuBackend, Instructions};
use prover_worker::backend::cuda::CudaBackend;
use prover_worker::backend::cuda::driver::host::{HostDriver, Order};
use prover_worker::backend::{Backend, LoadedKey, Quiet};
use prover_worker::formats::{r1cs, wtns, zkey};
use prover_worker::groth16::{Verifier, prove};
use prover_worker::model::{ProvingKey, StopToken, Witness};

use super::{key, squarings, witness};

/// Larger domains take minutes here. benches/gpu runs them on a GPU.
const MAX_DOMAIN: u32 = 1 << 13;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Commitments computed twice in a row with one loaded key equal those of the CPU backend, and leave nothing behind.
fn same_as_the_processor(name: &str, key: &Arc<ProvingKey>, w: &Witness) {
    let on = |backend: &dyn Backend, times: usize| {
        let loaded = backend.load(key.clone()).unwrap();
        let commit = |_| loaded.commit(w, &StopToken::new(), &Quiet).unwrap();
        (0..times).map(commit).collect::<Vec<_>>()
    };
    let expected = on(&CpuBackend::with(1, Instructions::Portable).unwrap(), 1);
    let driver = Arc::new(HostDriver::new(Order::Random(11)));
    let got = on(&CudaBackend::new(driver.clone()), 2);
    assert!(got.iter().all(|got| *got == expected[0]), "{name}");
    assert_eq!((driver.used(), driver.fault()), (0, None), "{name}");
}

#[test]
fn squarings_of_every_small_size() {
    for n in [1, 2, 5, 6, 29, 30, 300] {
        let (circuit, values) = squarings(n, 5);
        same_as_the_processor(&format!("{n} squarings"), &key(&circuit), &witness(&values));
    }
}

/// A worker runs two proofs on a GPU at once.
#[test]
fn proofs_at_once_do_not_disturb_each_other() {
    let n = 100;
    let key = key(&squarings(n, 1).0);
    let witnesses: Vec<_> = [3, 5, 7].map(|x| witness(&squarings(n, x).1)).into();
    let processor = CpuBackend::with(1, Instructions::Portable).unwrap().load(key.clone()).unwrap();
    let loaded = CudaBackend::new(Arc::new(HostDriver::new(Order::Descending))).load(key).unwrap();
    let commit = |on: &dyn LoadedKey, w| on.commit(w, &StopToken::new(), &Quiet).unwrap();
    std::thread::scope(|scope| {
        for w in &witnesses {
            let (loaded, expected) = (loaded.clone(), commit(processor.as_ref(), w));
            scope.spawn(move || (0..3).for_each(|_| assert!(commit(loaded.as_ref(), w) == expected)));
        }
    });
}

#[test]
fn the_circuits_of_the_project() {
    let mut seen = 0;
    for circuit in sorted(&root().join("circuits")).into_iter().filter(|p| p.extension().is_some_and(|e| e == "r1cs")) {
        let w = wtns::parse(&fs::read(circuit.with_extension("wtns")).unwrap()).unwrap();
        let key = key(&r1cs::parse(&fs::read(&circuit).unwrap()).unwrap());
        same_as_the_processor(&circuit.display().to_string(), &key, &w);
        seen += 1;
    }
    assert!(seen >= 5, "expected the project's circuits, found {seen}");
}

/// With keys of other projects, up to a proof that verifies.
#[test]
fn circuits_of_others() {
    let cases = root().join("../shared/cases");
    if !cases.is_dir() {
        eprintln!("SKIPPED: {} is not there", cases.display());
        return;
    }
    for folder in sorted(&cases) {
        let read = |name: &str| fs::read(folder.join(name)).ok();
        let (Some(file), Some(w)) = (read("circuit.zkey"), read("witness.wtns")) else { continue };
        let key = Arc::new(zkey::parse(file.into()).unwrap());
        if key.header.domain_size > MAX_DOMAIN {
            eprintln!("SKIPPED: {} has a domain of {}", folder.display(), key.header.domain_size);
            continue;
        }
        let w = wtns::parse(&w).unwrap();
        same_as_the_processor(&folder.display().to_string(), &key, &w);
    }
    let file = |name: &str| fs::read(cases.join("mopro_mul2").join(name)).unwrap();
    let key = Arc::new(zkey::parse(file("circuit.zkey").into()).unwrap());
    let gpu = CudaBackend::new(Arc::new(HostDriver::new(Order::Ascending)));
    let (loaded, verifier) = (gpu.load(key.clone()).unwrap(), Verifier::new(&key.header.vk));
    let w = wtns::parse(&file("witness.wtns")).unwrap();
    let proved = prove(loaded.as_ref(), &verifier, &w, &StopToken::new(), &Quiet).unwrap();
    assert!(verifier.verify(&proved.proof, &proved.public));
}

fn sorted(folder: &Path) -> Vec<PathBuf> {
    let mut found: Vec<_> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    found.sort();
    found
}
