//! Invalid arguments: exit code 2, and nothing is written.

use crate::harness::{range_check, run, s, scratch};

#[test]
fn wrong_usage_is_exit_code_2() {
    let f = range_check();
    let dir = scratch(&[]);
    let zkey = s(&f.zkey);
    for args in [
        &["prove"][..],
        &["prove", zkey],
        &["prove", zkey, "a", "b"],
        &["prove", "--zkey", zkey, "--proof", "p", "--public", "u"],
        &["prove", "--zkey", zkey, "--wasm", "w", "--proof", "p", "--public", "u"],
        &["setup", s(&f.r1cs), "k.zkey"],
        &["verify", "--public", "u", "--proof", "p"],
        &["proof", "00000000-0000-7000-8000-000000000000", "--out", "-"],
        &["demo", "--dir", "-"],
        &["nonsense"],
        &["inspect"],
    ] {
        let ran = run(dir.path(), args);
        assert_eq!(ran.code, Some(2), "{args:?}: {:?}", ran.stderr);
        assert!(!ran.stderr.contains("panicked"), "{}", ran.stderr);
    }
    assert!(!dir.path().join("k.zkey").exists() && !dir.path().join("-").exists());
}

#[test]
fn setup_warns_that_its_key_is_unsafe() {
    let f = range_check();
    let dir = scratch(&[]);
    let ran = run(dir.path(), &["setup", s(&f.r1cs), "k.zkey", "--insecure-dev-only"]).ok();
    assert!(ran.stderr.contains("WARNING"), "{}", ran.stderr);
    assert!(ran.stdout.contains("INSECURE"), "{}", ran.stdout);
}

#[test]
fn version_and_help_work() {
    let dir = scratch(&[]);
    assert!(run(dir.path(), &["--version"]).ok().stdout.starts_with("prover-worker "));
    assert!(run(dir.path(), &["prove", "--help"]).ok().stdout.contains("WITNESS"));
    assert!(run(dir.path(), &["--help"]).ok().stdout.contains("environment"));
    // There is an alternative to a job's id, which the error names.
    let ran = run(dir.path(), &["jobs", "requeue"]);
    assert!(ran.code == Some(2) && ran.stderr.contains("--failed"), "{}", ran.stderr);
    let ran = run(dir.path(), &["verify", "--public", "u", "--proof", "p"]);
    assert!(ran.stderr.contains("--vkey") && ran.stderr.contains("--zkey"), "{}", ran.stderr);
}
