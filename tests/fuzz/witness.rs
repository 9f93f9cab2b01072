//! A rewritten witness program gives the same as the original for any input: the same witness or the same error.
//!
//! `FUZZ_WITNESS_WASM` names another compilation of the circuit `operators` (`scripts/circom_versions.sh`).

use std::path::{Path, PathBuf};
use std::time::Duration;

use num_bigint::BigUint;
use proptest::prelude::*;
use prover_worker::model::{FR_MODULUS_DEC, StopToken};
use prover_worker::witness::{Inputs, Limits, ModuleCache, WasmWitness};

use crate::fuzz;

const AMPLE: Limits = Limits {
    time: Duration::from_secs(120),
    memory: 4 << 30,
    compile_time: Duration::from_secs(300),
    compile_memory: 4 << 30,
};

/// Elements of the field: at the limits of representations and comparisons, small ones, and any.
fn element() -> impl Strategy<Value = BigUint> {
    let r: BigUint = FR_MODULUS_DEC.parse().unwrap();
    let (minus, half) = (r.clone(), (&r - 1u8) >> 1u8);
    prop_oneof![
        2 => (0..4u64).prop_map(BigUint::from),
        // Refused by the circuit in one place or another.
        1 => Just(BigUint::from(13u8)),
        2 => (0..300u64).prop_map(BigUint::from),
        1 => (1..300u64).prop_map(move |x| &minus - x),
        1 => (0..4u64).prop_map(move |x| &half + x),
        1 => ((1u64 << 31) - 3..(1 << 31) + 3).prop_map(BigUint::from),
        1 => (0..254u32, 0..2u8).prop_map(|(bit, less)| (BigUint::from(1u8) << bit) - less),
        1 => any::<u64>().prop_map(BigUint::from),
        4 => any::<[u8; 40]>().prop_map(move |bytes| BigUint::from_bytes_le(&bytes) % &r),
    ]
}

#[test]
fn programs_give_the_same_both_ways() {
    let circuits = Path::new(env!("CARGO_MANIFEST_DIR")).join("circuits");
    let wasm = std::env::var_os("FUZZ_WITNESS_WASM").map_or_else(|| circuits.join("operators.wasm"), PathBuf::from);
    let wasm = std::fs::read(wasm).unwrap();
    let load = |rewrite| WasmWitness::load(&wasm, AMPLE, &ModuleCache { dir: None, compiler: None, rewrite }).unwrap();
    let (plain, rewritten) = (load(false), load(true));
    assert!(plain.info().rewritten.is_none() && rewritten.info().rewritten.is_some());
    fuzz("witness", prop::array::uniform5(element()), |[a, b, c, d, e]| {
        let json = format!(r#"{{"a": "{a}", "b": "{b}", "c": ["{c}", "{d}", "{e}"]}}"#);
        let inputs = Inputs::parse(json.as_bytes()).unwrap();
        let (x, y) = (plain.generate(&inputs, &StopToken::new()), rewritten.generate(&inputs, &StopToken::new()));
        match (x, y) {
            (Ok(x), Ok(y)) => prop_assert!(x.values() == y.values(), "{json}"),
            (x, y) => prop_assert_eq!(x.map(|_| ()), y.map(|_| ()), "{}", json),
        }
        Ok(())
    });
}
