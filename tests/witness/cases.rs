//! Witnesses equal those of snarkjs, byte for byte.

use std::path::Path;

use num_bigint::BigInt;

use super::*;
use crate::circuits::circuits;

fn agrees(wasm: &Path, input: &Path, wtns_file: &Path) {
    let program = WasmWitness::load(&std::fs::read(wasm).unwrap(), AMPLE, &NO_CACHE).unwrap();
    let inputs = Inputs::parse(&std::fs::read(input).unwrap()).unwrap();
    let witness = program.generate(&inputs, &StopToken::new()).unwrap();
    assert_eq!(witness.len(), program.info().witness_size as usize);
    if let Some(n) = program.info().inputs {
        assert_eq!(n as usize, inputs.len());
    }
    assert!(wtns(&witness) == std::fs::read(wtns_file).unwrap(), "{} gives another witness", wasm.display());
}

#[test]
fn own_circuits_give_the_witness_of_snarkjs() {
    for name in
        ["multiplier", "range_check", "mimc_preimage", "bus_transfer", "operators", "multiplier_v1", "unused_input"]
    {
        let file = |extension| circuits().join(format!("{name}.{extension}"));
        agrees(&file("wasm"), &file("input.json"), &file("wtns"));
    }
}

#[test]
fn programs_of_old_compilers_give_the_same_witness() {
    for version in ["2.0.3", "2.0.5"] {
        let wasm = circuits().join(format!("range_check.circom-{version}.wasm"));
        agrees(&wasm, &circuits().join("range_check.input.json"), &circuits().join("range_check.wtns"));
    }
}

#[test]
fn real_circuits_give_the_witness_of_snarkjs() {
    let cases = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/cases");
    let Ok(folders) = std::fs::read_dir(&cases) else {
        eprintln!("SKIPPED: {} is not there, so no real circuit was tried", cases.display());
        return;
    };
    let mut tried = 0;
    for folder in folders.map(|f| f.unwrap().path()).filter(|f| f.join("circuit.wasm").exists()) {
        agrees(&folder.join("circuit.wasm"), &folder.join("input.json"), &folder.join("witness.wtns"));
        tried += 1;
    }
    assert!(tried > 0, "no case has a wasm");
}

#[test]
fn a_program_tells_its_interface_and_sizes() {
    for (wasm, abi, inputs, size) in [
        ("multiplier.wasm", "circom 2.2.3", Some(2), 4),
        ("range_check.wasm", "circom 2.2.3", Some(13), 425),
        ("range_check.circom-2.0.3.wasm", "circom 2 (before 2.0.7)", Some(13), 425),
        ("multiplier_v1.wasm", "circom 1", None, 8),
    ] {
        let program = own(wasm);
        let info = program.info();
        assert_eq!((info.abi.to_string().as_str(), info.inputs, info.witness_size), (abi, inputs, size), "{wasm}");
        assert_eq!(info.wasm_bytes, circuit_file(wasm).len() as u64);
    }
}

#[test]
fn one_program_serves_many_threads() {
    let program = own("mimc_preimage.wasm");
    let inputs = Inputs::parse(&circuit_file("mimc_preimage.input.json")).unwrap();
    let expected = circuit_file("mimc_preimage.wtns");
    std::thread::scope(|s| {
        for _ in 0..4 {
            s.spawn(|| {
                for _ in 0..20 {
                    let witness = program.generate(&inputs, &StopToken::new()).unwrap();
                    assert!(wtns(&witness) == expected);
                }
            });
        }
    });
}

#[test]
fn nothing_of_one_run_reaches_the_next() {
    let program = own("multiplier.wasm");
    assert!(generate(&program, r#"{"a": 3}"#).is_err());
    let witness = generate(&program, r#"{"a": 5, "b": 7}"#).unwrap();
    assert_eq!(witness.values()[1], 35u64.into());
    assert!(generate(&program, r#"{"b": 7}"#).is_err());
}

#[test]
fn a_scalar_may_come_as_an_array_and_a_matrix_flat() {
    let program = own("range_check.wasm");
    let flat = r#"{"amount": [0,1,2,4294967295,5,6,7,8,4000000000,65535,1000,99], "ceiling": [50000000000]}"#;
    assert!(wtns(&generate(&program, flat).unwrap()) == circuit_file("range_check.wtns"));
    let sparse = r#"{"ceiling": [["0xba43b7400"]], "amount": [[[0,1],[2,"4294967295"]],[],[5,6,7,8,4e0]]}"#;
    assert!(generate(&program, sparse).unwrap_err().to_string().contains("amount, value 8"));
}

#[test]
fn circom1_numbers_go_in_and_out_in_every_form() {
    let buffered = circuit_file("multiplier_v1.wasm");
    // Older programs of circom 1 return one number at a time, each in whatever form it has.
    let mut single = buffered.clone();
    let name = b"getWitnessBuffer";
    let at = single.windows(name.len()).position(|w| w == name).unwrap();
    single[at] = b'G';
    let r: BigInt = prover_worker::model::FR_MODULUS_DEC.parse().unwrap();
    let big: BigInt = BigInt::from(7) << 250;
    let two31 = BigInt::from(1u64 << 31);
    for wasm in [buffered, single] {
        let program = WasmWitness::load(&wasm, AMPLE, &NO_CACHE).unwrap();
        for a in [
            BigInt::from(0),
            BigInt::from(-1),
            two31.clone() - 1,
            two31.clone(),
            -two31.clone(),
            -two31.clone() - 1,
            big.clone(),
        ] {
            for b in [BigInt::from(3), big.clone(), -two31.clone()] {
                let input = format!(r#"{{"a": "{a}", "b": "{b}", "k": [{a}, 0, {b}]}}"#);
                let witness = generate(&program, &input).unwrap();
                let exact = |v: BigInt| ((v % &r) + &r) % &r;
                let c = exact(&a * &b * 6);
                let expected = [BigInt::from(1), c, exact(a.clone()), BigInt::from(0), exact(b.clone())];
                let got: Vec<String> = witness.values()[..5].iter().map(ToString::to_string).collect();
                assert_eq!(got, expected.map(|v| v.to_string()), "{input}");
            }
        }
    }
}
