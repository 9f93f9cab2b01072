//! The program with ICICLE as its backend: its output and its fallbacks.

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use prover_worker::formats::{snarkjs, zkey};
use prover_worker::groth16::Verifier;

use super::run::{in_home, json};
use super::wait::HANG;
use super::{Case, PROGRAM, Twin, squarings};

/// The program with the twin as its installation, and with none of its variables in the environment.
fn program(home: &Path, twin: &Twin, backend: &str) -> Command {
    let mut command = in_home(Command::new(PROGRAM), home, backend);
    command.env("ICICLE_LIB_DIR", twin.libraries());
    command
}

/// Writes a case to files.
fn files(home: &Path, case: &Case) {
    let mut key = Vec::new();
    zkey::write(&case.key, &mut key).unwrap();
    fs::write(home.join("k.zkey"), key).unwrap();
    let mut witness = Vec::new();
    prover_worker::formats::wtns::write(&case.witness, &mut witness).unwrap();
    fs::write(home.join("w.wtns"), witness).unwrap();
}

#[test]
fn devices_says_what_was_found() {
    let (home, twin) = (tempfile::tempdir().unwrap(), Twin::new());
    let devices =
        |backend: &str| json(&program(home.path(), &twin, backend).args(["devices", "--json"]).output().unwrap());
    let found = devices("icicle");
    let summary = found["summary"].as_str().unwrap();
    let says = "proving on icicle:0, CUDA 0 by ICICLE 4.0 or later, and icicle:1, CUDA 1 by ICICLE 4.0 or later; cpu:0 is \
                the fallback; cuda: not ";
    assert!(summary.starts_with(says) && summary.lines().count() == 1, "{summary}");
    let icicle: Vec<_> = found["devices"].as_array().unwrap().iter().filter(|d| d["kind"] == "icicle").collect();
    assert!(icicle.iter().all(|d| d["used"] == true && d["status"] == "self-test passed"), "{found}");

    // There is no other GPU here, or it comes first.
    let found = devices("auto");
    let (summary, first) = (found["summary"].as_str().unwrap(), &found["devices"][0]);
    let by_cuda = first["kind"] == "cuda" && first["used"] == true;
    assert!(by_cuda || summary.starts_with("proving on icicle:0, "), "{summary}");

    twin.fault("wrong", "bn254_g2_msm", 0);
    let found = devices("auto");
    let summary = found["summary"].as_str().unwrap();
    let says = "icicle: its self-test computed a wrong sum in G2";
    assert!(by_cuda || (summary.starts_with("proving on cpu:0, ") && summary.ends_with(says)), "{summary}");

    let found = devices("cpu");
    assert!(found["summary"].as_str().unwrap().ends_with("icicle: not probed because another kind was requested"));
}

#[test]
fn a_backend_that_was_asked_for_and_is_unfit_is_an_error_in_one_line() {
    let (home, twin) = (tempfile::tempdir().unwrap(), Twin::new());
    twin.fault("abort", "bn254_msm", 0);
    let refused = program(home.path(), &twin, "icicle").arg("devices").output().unwrap();
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    let says = "error: icicle cannot be used: its process was ended by signal 6 (SIGABRT) in its start; its last output: what():  \
                a fault that was asked for\n";
    assert_eq!((refused.status.code(), said.as_str()), (Some(1), says));

    let mut elsewhere = program(home.path(), &twin, "icicle");
    let refused = elsewhere.env("ICICLE_LIB_DIR", "/nowhere").arg("devices").output().unwrap();
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    let says =
        "error: icicle cannot be used: expected ICICLE's library /nowhere/libicicle_device.so, which does not exist\n";
    assert_eq!((refused.status.code(), said.as_str()), (Some(1), says));
}

#[test]
fn a_proof_by_files_and_its_fallback() {
    let (home, twin) = (tempfile::tempdir().unwrap(), Twin::new());
    let case = squarings(400);
    files(home.path(), &case);
    let verifier = Verifier::new(&case.key.header.vk);
    let prove = |kind: Option<&str>| {
        let mut command = program(home.path(), &twin, "icicle");
        kind.into_iter().for_each(|kind| drop(command.env("PROVER_ICICLE_DEVICE", kind).get_envs()));
        let done = command.args(["prove", "k.zkey", "w.wtns", "p.json", "u.json"]).output().unwrap();
        let said = [done.stderr, done.stdout].concat();
        let said = String::from_utf8(said).unwrap();
        assert!(done.status.success(), "{said}");
        let read = |name: &str| fs::read_to_string(home.path().join(name)).unwrap();
        let public = snarkjs::public_from_json(&read("u.json")).unwrap();
        assert!(verifier.verify(&snarkjs::proof_from_json(&read("p.json")).unwrap(), &public));
        said.lines().map(str::to_owned).collect::<Vec<_>>()
    };
    for kind in [None, Some("cpu")] {
        let said = prove(kind);
        assert!(said.len() == 1 && said[0].starts_with("proof verified on icicle:0: "), "{said:?}");
    }
    for (kind, function, says) in [
        (
            "abort",
            "bn254_g2_msm",
            "its process was ended by signal 6 (SIGABRT) in the sum of B in G2; its last output: what():  a fault",
        ),
        ("6", "bn254_ntt", "bn254_ntt failed on the device with code 6"),
        ("wrong", "bn254_msm", "verif"),
    ] {
        twin.fault(kind, function, 300);
        // Both of the twin's devices fail.
        let said = prove(None);
        assert_eq!(said.len(), 3, "{said:?}");
        for (line, device) in said.iter().zip(["icicle:0", "icicle:1"]) {
            let next = line.starts_with(device) || line.contains(&format!("{device} cannot be used: "));
            assert!(next && line.contains(says) && line.ends_with("; trying the next device"), "{said:?}");
        }
        assert!(said[2].starts_with("proof verified on cpu:0: "), "{said:?}");
    }
}

/// A running worker, killed when dropped.
struct Worker(Child);

impl Drop for Worker {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A job whose device dies under it is done anyway, and the next one is proved on the device again.
#[test]
fn a_worker_whose_device_dies_loses_an_attempt_and_no_job() {
    let (home, twin) = (tempfile::tempdir().unwrap(), Twin::new());
    let case = squarings(400);
    files(home.path(), &case);
    let run = |args: &[&str]| json(&program(home.path(), &twin, "cpu").args(args).arg("--json").output().unwrap());
    run(&["circuits", "add", "squarings", "--zkey", "k.zkey"]);
    let log = fs::File::create(home.path().join("log")).unwrap();
    let mut serve = program(home.path(), &twin, "icicle");
    serve.arg("serve").env("LOG_FORMAT", "json").stdout(Stdio::null()).stderr(log);
    let _worker = Worker(serve.spawn().unwrap());
    let proved = |key: &str| {
        let submitted = run(&["submit", "squarings", "--input", "w.wtns", "--idempotency-key", key]);
        let id = submitted["id"].as_str().unwrap().to_owned();
        let begun = Instant::now();
        loop {
            let job = run(&["status", &id]);
            if job["state"] == "done" {
                return job;
            }
            let log = || fs::read_to_string(home.path().join("log")).unwrap();
            assert!(job["state"] != "failed" && begun.elapsed() < HANG, "{job}\n{}", log());
            std::thread::sleep(Duration::from_millis(50));
        }
    };
    let first = proved("first");
    assert!(first["result"]["device"].as_str().unwrap().starts_with("icicle:"), "{first}");
    twin.fault("abort", "bn254_msm", 300);
    let second = proved("second");
    assert_eq!(second["result"]["device"], "cpu:0", "{second}");
    twin.sound();
    let third = proved("third");
    assert!(third["result"]["device"].as_str().unwrap().starts_with("icicle:"), "{third}");
    let verifier = Verifier::new(&case.key.header.vk);
    for job in [first, second, third] {
        let proof = snarkjs::proof_from_json(job["result"]["proof_json"].as_str().unwrap()).unwrap();
        let public = snarkjs::public_from_json(job["result"]["public_json"].as_str().unwrap()).unwrap();
        assert!(verifier.verify(&proof, &public));
    }
}
