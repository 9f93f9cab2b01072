//! The program against snarkjs, on real circuits: each reads and accepts what the other writes.
//!
//! Some circuits are the project's own (`circuits`); others are next to the checkout in `../shared/cases` and not part
//! of it. `scripts/test.sh` installs snarkjs in `target/snarkjs`; `SNARKJS` names another. If snarkjs or a case is
//! missing, the tests say so and pass; with `SNARKJS` set, a missing snarkjs is a failure.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;

/// The folder of the project's own circuits.
const OWN: &str = "circuits";
/// The folder of the cases that are not part of the project.
const SHARED: &str = "../shared/cases";

/// snarkjs, the folder of one circuit, and a folder to write to.
struct Case {
    snarkjs: PathBuf,
    dir: PathBuf,
    out: tempfile::TempDir,
}

impl Case {
    /// Returns `None`, and prints what is missing, if anything is.
    fn open(dir: &str) -> Option<Self> {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let named = std::env::var_os("SNARKJS").map(PathBuf::from);
        let snarkjs = named.clone().unwrap_or_else(|| root.join("target/snarkjs/node_modules/.bin/snarkjs"));
        let dir = root.join(dir);
        assert!(named.is_none() || snarkjs.exists(), "SNARKJS names {}, which is not there", snarkjs.display());
        for (what, path) in [("snarkjs", &snarkjs), ("the case", &dir)] {
            if !path.exists() {
                eprintln!("SKIPPED: {what} is not at {}", path.display());
                return None;
            }
        }
        Some(Self { snarkjs, dir, out: tempfile::tempdir().unwrap() })
    }

    /// A file of the case.
    fn given(&self, file: &str) -> PathBuf {
        self.dir.join(file)
    }

    /// A file that this test writes.
    fn made(&self, file: &str) -> PathBuf {
        self.out.path().join(file)
    }

    fn ours(&self, args: &[&dyn AsRef<std::ffi::OsStr>]) -> Output {
        // In an empty working directory and data folder, so that no settings of this machine reach the test.
        let mut command = Command::new(env!("CARGO_BIN_EXE_prover-worker"));
        command.args(args.iter().map(|a| a.as_ref())).current_dir(self.out.path());
        command.env("HOME", self.out.path()).env_remove("DATABASE_URL").env_remove("REDIS_URL");
        command.output().unwrap()
    }

    fn snarkjs(&self, args: &[&dyn AsRef<std::ffi::OsStr>]) -> Output {
        let mut command = Command::new(&self.snarkjs);
        command.args(args.iter().map(|a| a.as_ref())).current_dir(self.out.path());
        command.output().unwrap()
    }

    /// Runs both verifiers on this key, public values and proof. They must agree; returns their answer.
    fn verify(&self, vkey: &Path, public: &Path, proof: &Path) -> bool {
        let ours = self.ours(&[&"verify", &"--vkey", &vkey, &"--public", &public, &"--proof", &proof]);
        let snarkjs = self.snarkjs(&[&"groth16", &"verify", &vkey, &public, &proof]);
        let said = text(&ours.stdout).trim().to_owned();
        match ours.status.code() {
            Some(0) => assert_eq!(said, "OK"),
            Some(1) => assert_eq!(said, "INVALID", "{}", all(&ours)),
            _ => panic!("verify ended with {}: {}", ours.status, all(&ours)),
        }
        let both = (ours.status.success(), snarkjs.status.success());
        assert_eq!(both.0, both.1, "ours: {}\nsnarkjs: {}", all(&ours), all(&snarkjs));
        both.0
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn all(output: &Output) -> String {
    format!("{}{}", text(&output.stdout), text(&output.stderr))
}

fn ok(output: &Output) {
    assert!(output.status.success(), "ended with {}: {}", output.status, all(output));
}

fn json(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

/// Proves the case's witness, verifies the proof with both programs and all available keys, and checks that changed
/// values are refused.
fn prove_and_verify(name: &str) {
    let Some(case) = Case::open(&format!("{SHARED}/{name}")) else { return };
    let (zkey, wtns, vkey) =
        (case.given("circuit.zkey"), case.given("witness.wtns"), case.given("verification_key.json"));
    let (proof, public) = (case.made("proof.json"), case.made("public.json"));

    ok(&case.ours(&[&"prove", &zkey, &wtns, &proof, &public]));
    assert_eq!(json(&public), json(&case.given("public.json")), "public values");
    assert!(case.verify(&vkey, &public, &proof), "our proof with the key");
    let shipped = case.given("vkey_shipped.json");
    if shipped.exists() {
        assert!(case.verify(&shipped, &public, &proof), "our proof with the author's key");
    }
    ok(&case.ours(&[&"verify", &"--zkey", &zkey, &"--public", &public, &"--proof", &proof]));
    assert!(case.verify(&vkey, &case.given("public.json"), &case.given("proof.json")), "the case's own proof");

    // Adding one makes another value, unless it is r itself, which no public value of these cases is close to.
    let mut changed = json(&public);
    let first = changed.get_mut(0).expect("each case has a public value");
    let more: num_bigint::BigUint = first.as_str().unwrap().parse::<num_bigint::BigUint>().unwrap() + 1u32;
    *first = Value::String(more.to_string());
    let wrong = case.made("wrong.json");
    fs::write(&wrong, changed.to_string()).unwrap();
    assert!(!case.verify(&vkey, &wrong, &proof), "a changed public value");

    // The key and the calldata that we export equal those of snarkjs, value for value.
    let exported = case.made("vkey.json");
    ok(&case.ours(&[&"export", &"vkey", &zkey, &exported]));
    assert_eq!(json(&exported), json(&vkey), "exported verification key");
    let ours = case.ours(&[&"export", &"calldata", &"--proof", &proof, &"--public", &public]);
    let snarkjs = case.snarkjs(&[&"zkey", &"export", &"soliditycalldata", &public, &proof]);
    ok(&ours);
    ok(&snarkjs);
    let squeeze = |o: &Output| text(&o.stdout).split_whitespace().collect::<String>();
    assert_eq!(squeeze(&ours), squeeze(&snarkjs), "calldata");
}

/// Computes the witness from the input and proves it.
fn witness_and_prove(name: &str) {
    let Some(case) = Case::open(&format!("{SHARED}/{name}")) else { return };
    let (zkey, wasm, input) = (case.given("circuit.zkey"), case.given("circuit.wasm"), case.given("input.json"));
    let (proof, public, wtns) = (case.made("proof.json"), case.made("public.json"), case.made("witness.wtns"));

    ok(&case.ours(&[&"witness", &"--wasm", &wasm, &"--input", &input, &"--out", &wtns]));
    assert!(fs::read(&wtns).unwrap() == fs::read(case.given("witness.wtns")).unwrap(), "the witness differs");
    ok(&case.ours(&[
        &"prove",
        &"--zkey",
        &zkey,
        &"--wasm",
        &wasm,
        &"--input",
        &input,
        &"--proof",
        &proof,
        &"--public",
        &public,
    ]));
    assert_eq!(json(&public), json(&case.given("public.json")), "public values");
    assert!(case.verify(&case.given("verification_key.json"), &public, &proof), "our proof from our witness");
}

/// A key of our set-up works with both programs, and both export the same verification key from it.
fn development_key(dir: &str, r1cs: &str, wtns: &str) {
    let Some(case) = Case::open(dir) else { return };
    let (r1cs, wtns) = (case.given(r1cs), case.given(wtns));
    let (zkey, vkey) = (case.made("dev.zkey"), case.made("dev.json"));
    ok(&case.ours(&[&"setup", &r1cs, &zkey, &"--vkey", &vkey, &"--insecure-dev-only"]));

    let (proof, public) = (case.made("proof.json"), case.made("public.json"));
    ok(&case.ours(&[&"prove", &zkey, &wtns, &proof, &public]));
    assert!(case.verify(&vkey, &public, &proof), "our proof with our key");

    let (proof, public) = (case.made("snarkjs-proof.json"), case.made("snarkjs-public.json"));
    ok(&case.snarkjs(&[&"groth16", &"prove", &zkey, &wtns, &proof, &public]));
    assert!(case.verify(&vkey, &public, &proof), "snarkjs's proof with our key");

    let exported = case.made("snarkjs-vkey.json");
    ok(&case.snarkjs(&[&"zkey", &"export", &"verificationkey", &zkey, &exported]));
    assert_eq!(json(&exported), json(&vkey), "verification key by snarkjs and by us");
}

macro_rules! cases {
    ($($name:ident: $($check:ident),+;)*) => { $(
        mod $name {
            $(
                #[test]
                fn $check() {
                    super::$check(stringify!($name));
                }
            )+
        }
    )* };
}

cases! {
    mopro_mul2: prove_and_verify, witness_and_prove;
    ark_test: prove_and_verify, witness_and_prove;
    taceo_poseidon: prove_and_verify;
    unirep_signup: prove_and_verify, witness_and_prove;
    semaphore1: prove_and_verify, witness_and_prove;
    rln20: prove_and_verify, witness_and_prove;
}

#[test]
fn a_development_key_for_somebody_elses_circuit_serves_both_programs() {
    development_key(&format!("{SHARED}/taceo_poseidon"), "circuit.r1cs", "witness.wtns");
}

#[test]
fn a_development_key_for_each_own_circuit_serves_both_programs() {
    for name in ["multiplier", "range_check", "mimc_preimage", "bus_transfer", "multiplier_v1", "unused_input"] {
        development_key(OWN, &format!("{name}.r1cs"), &format!("{name}.wtns"));
    }
}
