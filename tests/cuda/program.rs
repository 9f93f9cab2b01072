//! The program with the twin as NVIDIA's library: its output, its proofs, its fallbacks.

use std::fs;
use std::path::Path;
use std::process::Command;

use prover_worker::formats::{snarkjs, zkey};
use prover_worker::groth16::Verifier;

use super::circuits::circuits;
use super::run::{in_home, json};
use super::{PROGRAM, Twin, case};

fn program(home: &Path, twin: &Twin, backend: &str) -> Command {
    in_home(twin.command(Path::new(PROGRAM)), home, backend)
}

fn status(home: &Path, twin: &Twin) -> (bool, String) {
    status_with(home, twin, "auto")
}

fn status_with(home: &Path, twin: &Twin, graphs: &str) -> (bool, String) {
    let mut devices = program(home, twin, "auto");
    let found = json(&devices.env("PROVER_CUDA_GRAPHS", graphs).args(["devices", "--json"]).output().unwrap());
    let first = found["devices"].as_array().unwrap().iter().find(|d| d["kind"] == "cuda").unwrap().clone();
    (first["used"] == true, first["status"].as_str().unwrap().to_owned())
}

#[test]
fn devices_says_what_came_of_the_self_test() {
    let (home, twin) = (tempfile::tempdir().unwrap(), Twin::new());
    let found = json(&program(home.path(), &twin, "cuda").args(["devices", "--json"]).output().unwrap());
    let summary = found["summary"].as_str().unwrap();
    assert!(summary.starts_with("proving on cuda:0, Twin of a GPU; cpu:0 is the fallback"), "{summary}");
    assert_eq!(status(home.path(), &twin), (true, "self-test passed".into()));

    // The proof does without it.
    twin.fault("1 cuGraphLaunch 0");
    assert_eq!(status(home.path(), &twin), (true, "self-test passed".into()));
    twin.fault("700 cuGraphLaunch 0 for-ever");
    let failed = "its self-test failed: cuGraphLaunch failed on the device with code 700; it may pass with \
                  PROVER_CUDA_GRAPHS=off";
    assert_eq!(status(home.path(), &twin), (false, failed.into()));
    assert_eq!(status_with(home.path(), &twin, "off"), (true, "self-test passed".into()));
    twin.fault("100 cuInit 0");
    assert_eq!(status(home.path(), &twin), (false, "the NVIDIA driver shows no GPU".into()));
    twin.fault("2 cuDevicePrimaryCtxRetain 0");
    let (used, why) = status(home.path(), &twin);
    assert!(!used && why.contains("Twin of a GPU could not be opened: CUDA_ERROR_OUT_OF_MEMORY (2)"), "{why}");
    // A driver that assembles kernels on demand does so before the self-test.
    twin.fault("222 cuModuleGetFunction 0");
    let failed = "GPU 0: Twin of a GPU did not load this build's device code: no_op failed on the device with code 222";
    assert_eq!(status(home.path(), &twin), (false, failed.into()));
}

#[test]
fn prove_proves_on_it_and_on_the_processor_where_it_fails() {
    let (home, twin) = (tempfile::tempdir().unwrap(), Twin::new());
    let case = case("multiplier", 1);
    let mut key = Vec::new();
    zkey::write(&case.key, &mut key).unwrap();
    fs::write(home.path().join("k.zkey"), key).unwrap();
    let witness = circuits().join("multiplier.wtns");
    let verifier = Verifier::new(&case.key.header.vk);
    // The self-test downloads ten results, of three proofs and seven trials, and uses 60 to 70 allocations.
    for (fault, device) in
        [("", "cuda:0"), ("700 cuMemcpyDtoHAsync_v2 10 for-ever", "cpu:0"), ("2 cuMemAlloc_v2 70", "cpu:0")]
    {
        twin.fault(fault);
        let mut prove = program(home.path(), &twin, "cuda");
        let prove = prove.args(["prove", "k.zkey"]).arg(&witness).args(["p.json", "i.json", "--json"]);
        let told = json(&prove.output().unwrap());
        assert_eq!(told["device"], device, "{fault}: {told}");
        let read = |name: &str| fs::read_to_string(home.path().join(name)).unwrap();
        let proof = snarkjs::proof_from_json(&read("p.json")).unwrap();
        assert!(verifier.verify(&proof, &snarkjs::public_from_json(&read("i.json")).unwrap()), "{fault}");
    }
}
