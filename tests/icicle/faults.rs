//! Libraries that do not fit, devices that fail, child processes that die or hang: each ends in a sentence, and the
//! next proof works.

use std::fs;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};
use std::time::Duration;

use prover_worker::backend::icicle::{IcicleBackend, Limits, Options};
use prover_worker::backend::{Backend, BackendError, LoadedKey, Quiet};
use prover_worker::groth16::{ProveError, Verifier, prove};
use prover_worker::model::{StopReason, StopToken};

use super::wait::until;
use super::{Case, PROGRAM, Twin, commit, squarings};

#[test]
fn libraries_that_do_not_fit_are_refused_in_a_sentence() {
    let twin = Twin::new();
    let gone = twin.library("icicle_field_bn254");
    fs::remove_file(&gone).unwrap();
    let says = format!("icicle:0 cannot be used: expected ICICLE's library {}, which does not exist", gone.display());
    assert_eq!(twin.refused(), says);

    let twin = Twin::new();
    let text = twin.library("icicle_curve_bn254");
    fs::remove_file(&text).unwrap();
    fs::write(&text, "no library").unwrap();
    assert!(twin.refused().contains("libicicle_curve_bn254.so could not be opened: "), "{}", twin.refused());

    let twin = Twin::new();
    twin.take("icicle_curve_bn254", "bn254_g2_msm");
    let says = "libicicle_curve_bn254.so lacks the function bn254_g2_msm, which every release from 3.1 to 4.0 has";
    assert!(twin.refused().ends_with(says), "{}", twin.refused());

    let twin = Twin::new();
    twin.take("icicle_field_bn254", "bn254_vector_sum");
    assert!(twin.refused().contains("is of a release before 3.1: expected 3.1 to 4.0"), "{}", twin.refused());

    let twin = Twin::new();
    twin.take("icicle_curve_bn254", "bn254_projective_eq");
    let refused = twin.refused();
    assert!(refused.contains("expected libraries of one release, got ") && refused.contains("3.1 to 3.9"), "{refused}");
}

#[test]
fn devices_that_are_not_there_are_refused_in_a_sentence() {
    let twin = Twin::without_backends();
    let backends = twin.backends();
    let says = format!(
        "icicle:0 cannot be used: expected a device of type CUDA, METAL, VULKAN, got only CPU: {} does not exist",
        backends.display()
    );
    assert_eq!(twin.refused(), says);

    let twin = Twin::new();
    let of = |kind: &str, ordinal| {
        let options = Options { kind: Some(kind.into()), ..twin.options() };
        IcicleBackend::start(&options, ordinal).map(|_| ()).unwrap_err().to_string()
    };
    assert!(of("METAL", 0).contains("expected a device of type METAL, got only CPU, CUDA: "), "{}", of("METAL", 0));
    assert!(of("CUDA", 9).ends_with("CUDA 9: icicle_set_device failed on the device with code 1 (INVALID_DEVICE)"));
    assert!(of(&"X".repeat(64), 0).contains("expected a device of type XXX"));
}

/// Every wrong operation is named before any proof.
#[test]
fn a_device_that_computes_something_wrong_is_refused_at_its_start() {
    let twin = Twin::new();
    for (kind, function, says) in [
        ("wrong", "bn254_msm", "its self-test computed a wrong sum in G1"),
        ("wrong", "bn254_g2_msm", "its self-test computed a wrong sum in G2"),
        ("wrong", "bn254_ntt", "its self-test computed a wrong transform to coefficients"),
        ("wrong", "bn254_vector_mul", "its self-test computed a wrong product or difference of vectors"),
        ("wrong", "bn254_vector_sub", "its self-test computed a wrong product or difference of vectors"),
        ("garbage", "bn254_g2_msm", "bn254_g2_msm: expected a point on the curve, got none"),
        ("garbage", "bn254_ntt", "a vector: expected elements below r, got a larger one"),
        ("6", "bn254_msm", "its self-test of sum in G1 failed: bn254_msm failed on the device with code 6"),
        ("14", "bn254_ntt_init_domain", "bn254_ntt_init_domain failed on the device with code 14"),
        ("4", "icicle_malloc", "out of device memory: 4928 bytes needed, 8388608 free"),
        ("13", "icicle_load_backend", "icicle_load_backend failed on the device with code 13 (LICENSE_CHECK_ERROR)"),
        (
            "abort",
            "bn254_g2_msm",
            "its process was ended by signal 6 (SIGABRT) in its start; its last output: what():  a fault that was asked for",
        ),
    ] {
        twin.fault(kind, function, 0);
        let refused = twin.refused();
        assert!(
            refused.starts_with("icicle:0 cannot be used: ") && refused.ends_with(says),
            "{kind} {function}: {refused}"
        );
        assert_eq!(refused.lines().count(), 1, "{refused}");
    }
    twin.sound();
    twin.start();
}

/// A proof larger than that of the self-test, and the size above which the device fails only there.
fn large() -> (Case, usize) {
    (squarings(400), 300)
}

fn failing(loaded: &dyn LoadedKey, case: &Case) -> BackendError {
    loaded.commit(&case.witness, &StopToken::new(), &Quiet).unwrap_err()
}

#[test]
fn a_proof_that_fails_costs_that_proof_only() {
    let (case, above) = large();
    let expected = case.expected();
    let twin = Twin::new();
    let backend = twin.start();
    let loaded = backend.load(case.key.clone()).unwrap();
    for (kind, function, says) in [
        (
            "abort",
            "bn254_g2_msm",
            "was ended by signal 6 (SIGABRT) in the sum of B in G2; its last output: what():  a fault",
        ),
        ("abort", "bn254_ntt", "was ended by signal 6 (SIGABRT) in the quotient; its last output: what():  a fault"),
        ("abort", "icicle_memset", "was ended by signal 6 (SIGABRT) in "),
        ("6", "bn254_msm", "bn254_msm failed on the device with code 6"),
        ("-3", "bn254_vector_sub", "bn254_vector_sub failed on the device with code -3"),
        ("5", "icicle_copy_to_device", "icicle_copy_to_device failed on the device with code 5"),
        ("4", "icicle_malloc", "out of device memory: "),
        ("garbage", "bn254_msm", "bn254_msm: expected a point on the curve, got none"),
    ] {
        twin.fault(kind, function, above);
        let error = failing(loaded.as_ref(), &case);
        assert!(error.to_string().contains(says), "{kind} {function}: {error}");
        assert!(!error.is_callers_fault() && !matches!(error, BackendError::Stopped(_)), "{error:?}");
        twin.sound();
        assert!(commit(loaded.as_ref(), &case) == expected, "after {kind} {function}");
    }
}

/// Faults that no device can notice are found by verifying each proof.
#[test]
fn a_wrong_product_is_no_proof() {
    let (case, above) = large();
    let twin = Twin::new();
    let backend = twin.start();
    let loaded = backend.load(case.key.clone()).unwrap();
    let verifier = Verifier::new(&case.key.header.vk);
    let go = || prove(loaded.as_ref(), &verifier, &case.witness, &StopToken::new(), &Quiet).map(|_| ());
    for function in ["bn254_msm", "bn254_g2_msm", "bn254_ntt", "bn254_vector_mul", "bn254_vector_sub"] {
        twin.fault("wrong", function, above);
        assert_eq!(go(), Err(ProveError::Invalid), "{function}");
        twin.sound();
        assert_eq!(go(), Ok(()), "after {function}");
    }
}

#[test]
fn a_key_that_does_not_load_costs_that_key_only() {
    let (case, above) = large();
    let small = squarings(3);
    let twin = Twin::new();
    let backend = twin.start();
    let loaded = backend.load(small.key.clone()).unwrap();
    for (kind, function) in [("abort", "icicle_copy_to_device"), ("6", "icicle_copy_to_device"), ("2", "icicle_malloc")]
    {
        twin.fault(kind, function, 64 * above);
        let error = backend.load(case.key.clone()).map(|_| ()).unwrap_err();
        let expected = match kind {
            "abort" => "signal 6 (SIGABRT) in the loading of a key",
            "2" => "out of device memory",
            _ => "code 6",
        };
        assert!(error.to_string().contains(expected), "{error}");
        assert!(commit(loaded.as_ref(), &small) == small.expected(), "after {kind} {function}");
        twin.sound();
        assert!(commit(backend.load(case.key.clone()).unwrap().as_ref(), &case) == case.expected());
    }
}

#[test]
fn a_child_that_hangs_is_ended_in_time() {
    let (case, above) = large();
    let twin = Twin::new();
    let limits = Limits { stop: Duration::from_millis(200), ..twin.options().limits };
    let (backend, _) = IcicleBackend::start(&Options { limits, ..twin.options() }, 0).unwrap();
    let loaded = backend.load(case.key.clone()).unwrap();
    // Returns how a proof ends that is told to stop while the device hangs.
    let stopped = |why: StopReason| {
        let stop = StopToken::new();
        twin.fault("hang", "bn254_msm", above);
        let ended = std::thread::scope(|scope| {
            let proof = scope.spawn(|| loaded.commit(&case.witness, &stop, &Quiet));
            twin.wait_until_it_hangs();
            stop.stop(why);
            proof.join().unwrap().unwrap_err()
        });
        twin.sound();
        ended
    };
    let says = "icicle:0 cannot be used: its process was still in the sum of H 0.2 s after the deadline of the proof";
    assert_eq!(stopped(StopReason::TimedOut).to_string(), says);
    assert_eq!(stopped(StopReason::Cancelled), BackendError::Stopped(StopReason::Cancelled));
    assert!(commit(loaded.as_ref(), &case) == case.expected());
}

#[test]
fn a_child_that_is_silent_too_long_is_ended() {
    let (case, above) = large();
    let twin = Twin::new();
    let limits = Limits { step: Duration::from_secs(4), ..twin.options().limits };
    let (backend, _) = IcicleBackend::start(&Options { limits, ..twin.options() }, 0).unwrap();
    let loaded = backend.load(case.key.clone()).unwrap();
    twin.fault("hang", "bn254_g2_msm", above);
    let says = "icicle:0 cannot be used: its process was silent for 4 s in the sum of B in G2";
    assert_eq!(failing(loaded.as_ref(), &case).to_string(), says);

    let limits = Limits { start: Duration::from_secs(1), ..limits };
    twin.fault("hang", "bn254_msm", 0);
    let hangs = IcicleBackend::start(&Options { limits, ..twin.options() }, 0).map(|_| ()).unwrap_err();
    assert_eq!(hangs.to_string(), "icicle:0 cannot be used: its process was silent for 1 s in its start");
}

/// Between two steps a proof is stopped without ending the child: the key stays loaded.
#[test]
fn a_stopped_proof_leaves_the_child_as_it_was() {
    let case = squarings(400);
    let twin = Twin::new();
    let backend = twin.start();
    let loaded = backend.load(case.key.clone()).unwrap();
    let stopped = StopToken::new();
    stopped.stop(StopReason::Draining);
    let error = loaded.commit(&case.witness, &stopped, &Quiet).unwrap_err();
    assert_eq!(error, BackendError::Stopped(StopReason::Draining));
    assert!(commit(loaded.as_ref(), &case) == case.expected());
}

/// A parent that dies takes its child with it, even one whose device hangs.
#[test]
fn a_child_without_a_parent_ends() {
    let twin = Twin::new();
    twin.fault("hang", "bn254_msm", 0);
    let (mut ours, theirs) = UnixStream::pair().unwrap();
    let mut child = Command::new(PROGRAM)
        .args(["icicle-device", "--ordinal", "0", "--libraries"])
        .arg(twin.libraries())
        .arg("--backends")
        .arg(twin.backends())
        .stdin(OwnedFd::from(theirs))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    // Its first message: it has started.
    ours.read_exact(&mut [0; 9]).unwrap();
    assert!(child.try_wait().unwrap().is_none(), "it hangs");
    drop(ours);
    until("the child to end with its parent", || child.try_wait().unwrap());
}

#[test]
fn a_parent_that_talks_nonsense_is_told_so() {
    let twin = Twin::new();
    let (mut ours, theirs) = UnixStream::pair().unwrap();
    let mut child = Command::new(PROGRAM)
        .args(["icicle-device", "--ordinal", "0", "--libraries"])
        .arg(twin.libraries())
        .arg("--backends")
        .arg(twin.backends())
        .stdin(OwnedFd::from(theirs))
        .stderr(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    // A witness for a key that was never loaded.
    let mut message = vec![3u8];
    message.extend(16u64.to_le_bytes());
    message.extend([1; 16]);
    ours.write_all(&message).unwrap();
    let mut answers = Vec::new();
    ours.read_to_end(&mut answers).unwrap();
    let answers = String::from_utf8_lossy(&answers);
    assert!(
        answers.ends_with(&format!("expected a loaded key, got number {}", u64::from_le_bytes([1; 8]))),
        "{answers}"
    );
    assert!(!child.wait().unwrap().success());
}

#[test]
fn a_child_by_itself_says_that_it_wants_a_parent() {
    let twin = Twin::new();
    let done = Command::new(PROGRAM)
        .args(["icicle-device", "--ordinal", "0", "--libraries"])
        .arg(twin.libraries())
        .arg("--backends")
        .arg(twin.backends())
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&done.stderr);
    assert!(!done.status.success() && said.contains("expected the program itself as the parent"), "{said}");
}
