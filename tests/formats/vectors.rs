//! Keys, witnesses and documents written by snarkjs and others. If they are missing, the tests say so and are skipped.

use std::path::PathBuf;

use bytes::Bytes;
use prover_worker::formats::{r1cs, snarkjs, wtns, zkey};

use crate::small::split;

const CASES: [&str; 6] = ["ark_test", "mopro_mul2", "rln20", "semaphore1", "taceo_poseidon", "unirep_signup"];

/// Runs `f` on the folder of each case.
fn each_case(f: impl Fn(&str, PathBuf)) {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../shared/cases");
    if !root.is_dir() {
        eprintln!("SKIPPED: no folder of real circuits at {}", root.display());
        return;
    }
    for case in CASES {
        f(case, root.join(case));
    }
}

fn text(path: PathBuf) -> String {
    std::fs::read_to_string(path).unwrap()
}

#[test]
fn real_keys_read_and_pass_every_check() {
    each_case(|case, dir| {
        let key = zkey::parse(Bytes::from(std::fs::read(dir.join("circuit.zkey")).unwrap())).unwrap();
        zkey::check(&key).unwrap_or_else(|e| panic!("{case}: {e}"));
    });
}

#[test]
fn a_rewritten_key_has_the_same_sections_but_contributions() {
    each_case(|case, dir| {
        let file = std::fs::read(dir.join("circuit.zkey")).unwrap();
        let mut sections = split(&file);
        sections.sort_by_key(|s| s.0);
        let mut written = Vec::new();
        zkey::write(&zkey::parse(Bytes::from(file)).unwrap(), &mut written).unwrap();
        let rewritten = split(&written);
        assert_eq!(rewritten.len(), sections.len(), "{case}");
        for (a, b) in sections.iter().zip(&rewritten).take(9) {
            assert!(a == b, "{case}, section {}", a.0);
        }
    });
}

#[test]
fn verification_keys_come_out_byte_for_byte() {
    each_case(|case, dir| {
        let key = zkey::parse(Bytes::from(std::fs::read(dir.join("circuit.zkey")).unwrap())).unwrap();
        let by_snarkjs = text(dir.join("verification_key.json"));
        assert_eq!(snarkjs::vkey_to_json(&key.header.vk), by_snarkjs, "{case}");
        assert_eq!(snarkjs::vkey_from_json(&by_snarkjs).unwrap(), key.header.vk, "{case}");
        let shipped = dir.join("vkey_shipped.json");
        if shipped.exists() {
            assert_eq!(snarkjs::vkey_from_json(&text(shipped)).unwrap(), key.header.vk, "{case}");
        }
    });
}

#[test]
fn proofs_and_public_values_come_out_byte_for_byte() {
    each_case(|case, dir| {
        let proof = text(dir.join("proof.json"));
        assert_eq!(snarkjs::proof_to_json(&snarkjs::proof_from_json(&proof).unwrap()), proof, "{case}");
        let public = text(dir.join("public.json"));
        let values = snarkjs::public_from_json(&public).unwrap();
        assert_eq!(snarkjs::public_to_json(&values), public, "{case}");
        let key = snarkjs::vkey_from_json(&text(dir.join("verification_key.json"))).unwrap();
        assert_eq!(values.0.len(), key.n_public(), "{case}");
    });
}

#[test]
fn witnesses_come_out_byte_for_byte() {
    each_case(|case, dir| {
        let file = std::fs::read(dir.join("witness.wtns")).unwrap();
        let mut written = Vec::new();
        wtns::write(&wtns::parse(&file).unwrap(), &mut written).unwrap();
        assert!(file == written, "{case}");
    });
}

#[test]
fn a_real_witness_satisfies_its_constraints_and_no_other_does() {
    each_case(|case, dir| {
        let Ok(file) = std::fs::read(dir.join("circuit.r1cs")) else { return };
        let system = r1cs::parse(&file).unwrap_or_else(|e| panic!("{case}: {e}"));
        let witness = wtns::parse(&std::fs::read(dir.join("witness.wtns")).unwrap()).unwrap();
        assert_eq!(r1cs::check_witness(&system, &witness), Ok(()), "{case}");
        // The output is determined by a constraint.
        let mut values = witness.values().to_vec();
        values[1] = values[2];
        let wrong = prover_worker::model::Witness::from_canonical(values);
        assert!(matches!(r1cs::check_witness(&system, &wrong), Err(r1cs::Unsatisfied::Constraint(_))), "{case}");

        // Matrices A and B of the constraints are those of the key.
        let key = zkey::parse(Bytes::from(std::fs::read(dir.join("circuit.zkey")).unwrap())).unwrap();
        assert_eq!(key.header.n_vars, system.n_wires);
        assert_eq!(key.header.n_public, system.n_public());
        let rows = system.constraints.len() as u32;
        let (mut of_key, mut of_system) = (Vec::new(), Vec::new());
        for e in key.coefficients().filter(|e| e.row < rows) {
            of_key.push((e.matrix, e.row, e.signal, zkey::decode_coefficient(&e).unwrap()));
        }
        for row in 0..rows {
            for matrix in 0..2 {
                for (wire, value) in system.constraints.row(row as usize, matrix as usize) {
                    of_system.push((matrix, row, *wire, prover_worker::model::Fr::new(*value)));
                }
            }
        }
        of_key.sort();
        of_system.sort();
        assert!(of_key == of_system, "{case}");
    });
}
