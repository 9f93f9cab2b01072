//! NVIDIA GPUs as devices, through the C functions of NVIDIA's driver: by a twin of its library with kernels that run
//! on this CPU (`src/backend/cuda/driver/twin.rs`), which fails in any way that is asked for.
//!
//! The library is found through the environment that a process starts with, so each test runs itself again in its own
//! process.

#![allow(clippy::unwrap_used, missing_docs)]

#[path = "../support/circuits.rs"]
mod circuits;
mod program;
#[path = "../support/run.rs"]
mod run;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use prover_worker::backend::cpu::{CpuBackend, Instructions};
use prover_worker::backend::cuda::CudaBackend;
use prover_worker::backend::cuda::driver::nvidia::NvidiaDriver;
use prover_worker::backend::cuda::driver::{Driver, GraphCounts};
use prover_worker::backend::{Backend, BackendError, Commitments, LoadedKey, Quiet, selftest};
use prover_worker::formats::{r1cs, wtns};
use prover_worker::groth16::setup;
use prover_worker::model::{ProvingKey, StopToken, Witness};

/// The program.
const PROGRAM: &str = env!("CARGO_BIN_EXE_prover-worker");
/// Names the folder of the twin, in a process that uses it.
const FOLDER: &str = "CUDA_TWIN_FOLDER";

/// A folder with the twin under the name of NVIDIA's library.
struct Twin {
    dir: tempfile::TempDir,
}

impl Twin {
    fn new() -> Self {
        let built = Path::new(PROGRAM).parent().unwrap().join("examples/libcuda_twin.so");
        assert!(built.exists(), "no {}: cargo build --all-features --example cuda_twin", built.display());
        let dir = tempfile::tempdir().unwrap();
        // Not a link: the twin looks for its faults next to itself.
        fs::copy(built, dir.path().join("libcuda.so.1")).unwrap();
        Self { dir }
    }

    /// A command in whose process the twin is NVIDIA's library.
    fn command(&self, program: &Path) -> Command {
        let mut command = Command::new(program);
        let others = std::env::var_os("LD_LIBRARY_PATH").unwrap_or_default();
        let folders = [self.dir.path().into()].into_iter().chain(std::env::split_paths(&others));
        command.env("LD_LIBRARY_PATH", std::env::join_paths(folders).unwrap());
        // Kernels keep their blocks' memory in thread-local variables, which threads older than the library do not
        // have.
        command.env("LD_PRELOAD", concat!(env!("OUT_DIR"), "/libkernels_on_host.so"));
        command
    }

    fn fault(&self, words: &str) {
        fs::write(self.dir.path().join("fault"), words).unwrap();
    }
}

/// In a process with the twin, returns the folder of its faults. In any other, runs the test in such a process, and
/// returns `None` once it has passed.
fn with_twin(test: &str) -> Option<PathBuf> {
    if let Some(folder) = std::env::var_os(FOLDER) {
        return Some(folder.into());
    }
    let twin = Twin::new();
    let mut again = twin.command(&std::env::current_exe().unwrap());
    again.args(["--exact", test, "--nocapture"]).env(FOLDER, twin.dir.path());
    let done = again.output().unwrap();
    let said = [done.stdout, done.stderr].concat();
    let said = String::from_utf8_lossy(&said);
    assert!(
        done.status.success() && said.contains("1 passed"),
        "{test} in a process with the twin: {}\n{said}",
        done.status
    );
    None
}

fn driver() -> Arc<NvidiaDriver> {
    let mut found = NvidiaDriver::all().unwrap();
    assert_eq!(found.len(), 1);
    Arc::new(found.remove(0).unwrap())
}

/// A key, witnesses for it, and the commitments that the CPU computes from them.
struct Case {
    key: Arc<ProvingKey>,
    witnesses: Vec<Witness>,
    expected: Vec<Commitments>,
}

/// The project's circuit of this name, with a new key. Commitments are defined for any values, so there may be several
/// witnesses: all but the first have their values in another order.
fn case(name: &str, count: usize) -> Case {
    let file = circuits::circuits().join(name);
    let circuit = r1cs::parse(&fs::read(file.with_extension("r1cs")).unwrap()).unwrap();
    let witness = wtns::parse(&fs::read(file.with_extension("wtns")).unwrap()).unwrap();
    let key = Arc::new(setup::generate(&circuit, &|_| {}).unwrap());
    let turned = |by: usize| {
        let mut values = witness.values().to_vec();
        let at = by % values.len();
        values.rotate_left(at);
        Witness::from_canonical(values)
    };
    let witnesses: Vec<_> = (0..count).map(turned).collect();
    let cpu = CpuBackend::with(1, Instructions::Portable).unwrap().load(key.clone()).unwrap();
    let expected = witnesses.iter().map(|w| commit(&*cpu, w).unwrap()).collect();
    Case { key, witnesses, expected }
}

fn commit(key: &dyn LoadedKey, witness: &Witness) -> Result<Commitments, BackendError> {
    key.commit(witness, &StopToken::new(), &Quiet)
}

#[test]
fn proofs_are_the_processors_alone_and_at_once() {
    let Some(_) = with_twin("proofs_are_the_processors_alone_and_at_once") else { return };
    let driver = driver();
    for (gpu, name) in [
        (CudaBackend::new(driver.clone()), "multiplier"),
        (CudaBackend::new(driver.clone()), "mimc_preimage"),
        (CudaBackend::new(driver.clone()).without_graphs(), "multiplier"),
    ] {
        selftest::run(&gpu).unwrap();
        let case = case(name, 3);
        let key = gpu.load(case.key.clone()).unwrap();
        let before = driver.graph_counts();
        for (witness, expected) in case.witnesses.iter().zip(&case.expected) {
            assert_eq!(commit(&*key, witness).as_ref(), Ok(expected), "{name}");
        }
        // All but the first.
        let (made, launches) = if gpu.makes_graphs(&case.key) { (1, 2) } else { (0, 0) };
        let counts = GraphCounts { made: before.made + made, launches: before.launches + launches, error: None };
        assert_eq!(driver.graph_counts(), counts, "{name}");
        if name != "multiplier" {
            continue;
        }
        // Batches on two threads, as the worker makes them; larger than the preferred batch size.
        let stop = StopToken::new();
        let all: Vec<&Witness> = (0..9).map(|i| &case.witnesses[i % 3]).collect();
        let expected: Vec<_> = (0..9).map(|i| Ok(case.expected[i % 3].clone())).collect();
        std::thread::scope(|scope| {
            let threads = [(); 2].map(|()| scope.spawn(|| key.commit_batch(&all, &[&stop; 9])));
            threads.into_iter().for_each(|batch| assert_eq!(batch.join().unwrap(), expected, "{name}"));
        });
    }
}

/// An error of any function is an error of the proof, or makes no difference; nothing of the proof is left on the
/// device, as the twin checks at the end, and the next proof is right. The exception is waits: one that fails ends the
/// device, and with it any copy that could still write.
#[test]
fn a_function_that_fails_costs_its_proof_and_no_more() {
    let Some(folder) = with_twin("a_function_that_fails_costs_its_proof_and_no_more") else { return };
    let fault = folder.join("fault");
    let gpu = CudaBackend::new(driver());
    let case = case("multiplier", 2);
    let (witness, expected) = (&case.witnesses[1], &case.expected[1]);
    let (mut failed, mut harmless) = (Vec::new(), Vec::new());
    for (function, code, skips) in [
        // First, because the existing ones are reused.
        ("cuEventCreate", 999, [0, 9]),
        ("cuMemAlloc_v2", 2, [0, 20]),
        ("cuMemHostAlloc", 2, [0, 1]),
        ("cuStreamCreate", 999, [0, 1]),
        ("cuEventRecord", 999, [0, 9]),
        ("cuStreamWaitEvent", 999, [0, 6]),
        ("cuFuncSetAttribute", 999, [0, 1]),
        ("cuLaunchKernel", 999, [0, 40]),
        ("cuMemcpyHtoDAsync_v2", 999, [0, 16]),
        // The second clears the first proof's memory.
        ("cuMemsetD8Async", 999, [0, 14]),
        ("cuMemcpyDtoHAsync_v2", 999, [0, 1]),
        ("cuGraphCreate", 999, [0, 1]),
        ("cuGraphAddKernelNode_v2", 999, [0, 40]),
        ("cuGraphAddMemsetNode", 999, [0, 10]),
        ("cuGraphInstantiateWithFlags", 999, [0, 1]),
        ("cuGraphLaunch", 999, [0, 1]),
    ] {
        for skip in skips {
            let what = format!("{code} {function} {skip}");
            fs::write(&fault, &what).unwrap();
            let all = gpu.load(case.key.clone()).map(|key| {
                let proofs: Vec<_> = (0..3).map(|_| commit(&*key, witness)).collect();
                fs::remove_file(&fault).unwrap();
                assert_eq!(commit(&*key, witness).as_ref(), Ok(expected), "{what}, the next proof");
                proofs
            });
            let _ = fs::remove_file(&fault);
            let errors = match all {
                Err(error) => vec![error],
                Ok(proofs) => {
                    assert!(proofs.iter().flatten().all(|proof| proof == expected), "{what}: a wrong proof");
                    proofs.into_iter().filter_map(Result::err).collect()
                }
            };
            let told = |e: &BackendError| match e {
                BackendError::Device { code: got, .. } => *got == code,
                BackendError::OutOfMemory { .. } => code == 2,
                _ => false,
            };
            // Pinned memory belongs to the host.
            let is_the_hosts = function == "cuMemHostAlloc";
            assert!(is_the_hosts || errors.iter().all(told), "{what}: {errors:?}");
            if errors.is_empty() { &mut harmless } else { &mut failed }.push(what);
        }
    }
    // If a graph cannot be made, the proof does without.
    let by_graphs = |what: &String| what.contains("cuGraph") && !what.contains("cuGraphLaunch");
    assert!(!failed.iter().any(by_graphs), "{failed:?}");
    assert!(failed.len() > 12, "{harmless:?} make no difference");
}

#[test]
fn a_fault_of_a_kernel_is_the_end_of_the_device_and_not_of_the_program() {
    let Some(folder) = with_twin("a_fault_of_a_kernel_is_the_end_of_the_device_and_not_of_the_program") else { return };
    let gpu = CudaBackend::new(driver());
    let case = case("multiplier", 1);
    let key = gpu.load(case.key.clone()).unwrap();
    assert_eq!(commit(&*key, &case.witnesses[0]).as_ref(), Ok(&case.expected[0]));
    fs::write(folder.join("fault"), "700 cuGraphLaunch 0 for-ever").unwrap();
    for _ in 0..2 {
        let error = commit(&*key, &case.witnesses[0]).unwrap_err();
        assert!(matches!(error, BackendError::Device { code: 700, .. }), "{error:?}");
    }
    let error = gpu.load(case.key.clone()).map(drop).unwrap_err();
    assert!(matches!(error, BackendError::Device { code: 700, .. }), "{error:?}");
}

/// If a graph is refused, the proof does without it, which only the driver's counts show.
#[test]
fn what_became_of_graphs_is_counted() {
    let Some(folder) = with_twin("what_became_of_graphs_is_counted") else { return };
    let (driver, fault) = (driver(), folder.join("fault"));
    let gpu = CudaBackend::new(driver.clone());
    let case = case("multiplier", 1);
    let proofs_of = |count: usize, words: &str| {
        let before = driver.graph_counts();
        fs::write(&fault, words).unwrap();
        let key = gpu.load(case.key.clone()).unwrap();
        for _ in 0..count {
            assert_eq!(commit(&*key, &case.witnesses[0]).as_ref(), Ok(&case.expected[0]), "{words}");
        }
        drop(key);
        fs::remove_file(&fault).unwrap();
        let now = driver.graph_counts();
        (now.made - before.made, now.launches - before.launches, now.error)
    };
    let proofs = |words: &str| proofs_of(3, words);
    assert_eq!(proofs("0 none 0"), (1, 2, None));
    let refused = |op, code| Some(BackendError::Device { op, code });
    assert_eq!(proofs("1 cuGraphInstantiateWithFlags 0"), (0, 0, refused("cuGraphInstantiate", 1)));
    assert_eq!(proofs("1 cuGraphLaunch 1"), (1, 1, refused("cuGraphLaunch", 1)));
    // Where memory is short, memory that was released meanwhile is given back first.
    for words in ["2 cuMemAlloc_v2 2 once", "2 cuGraphInstantiateWithFlags 0 once", "2 cuGraphLaunch 1 once"] {
        assert_eq!(proofs(words), (1, 2, refused("cuGraphLaunch", 1)), "{words}");
    }
    // Where that is not enough, the next proof does without a graph, and the one after it has one again.
    for (words, counts) in [("2 cuGraphInstantiateWithFlags 0 2", (1, 2)), ("2 cuGraphLaunch 0 2", (2, 2))] {
        let (made, launches, error) = proofs_of(5, words);
        assert_eq!((made, launches), counts, "{words}");
        assert!(matches!(error, Some(BackendError::OutOfMemory { .. })), "{words}: {error:?}");
    }
    assert_eq!(proofs_of(5, "1 cuGraphInstantiateWithFlags 0 once"), (0, 0, refused("cuGraphInstantiate", 1)));
}

#[test]
fn who_waits_for_the_device_sleeps_where_cores_are_few() {
    let Some(folder) = with_twin("who_waits_for_the_device_sleeps_where_cores_are_few") else { return };
    let open = |cores| NvidiaDriver::list_for(cores).unwrap().remove(0).open().unwrap();
    assert!(open(3).card().sleeps && !open(4).card().sleeps);
    // In every place where it waits: more than pinned memory holds, and results that are not ready. The twin refuses
    // waits that do not sleep.
    let sleeping = Arc::new(open(3));
    let from = vec![7; (33 << 20) + 1];
    assert!(sleeping.echo(&from).unwrap() == from);
    let case = case("multiplier", 1);
    let key = CudaBackend::new(sleeping).load(case.key.clone()).unwrap();
    for _ in 0..2 {
        assert_eq!(commit(&*key, &case.witnesses[0]).as_ref(), Ok(&case.expected[0]));
    }
    drop(key);
    // A device that refuses is used as it is.
    fs::write(folder.join("fault"), "999 cuDevicePrimaryCtxSetFlags_v2 0").unwrap();
    let refused = open(3);
    assert!(!refused.card().sleeps && refused.echo(&[1, 2, 3]).unwrap() == [1, 2, 3]);
}

#[test]
fn what_is_sent_comes_back() {
    let Some(_) = with_twin("what_is_sent_comes_back") else { return };
    let driver = driver();
    // Around the size of a piece, of a stream's pinned memory, and more than that.
    for bytes in [1, 255, (2 << 20) + 1, (16 << 20) - 1, (16 << 20) + 3, 50 << 20] {
        let from: Vec<u8> = (0..bytes).map(|i: usize| (i ^ (i >> 8) ^ (i >> 19)) as u8).collect();
        assert!(driver.echo(&from).unwrap() == from, "{bytes} bytes");
    }
    assert_eq!(driver.time_uploads(1 << 20, 3).unwrap().len(), 3);
    assert_eq!(driver.time_launches(10, 2).unwrap().len(), 2);
}
