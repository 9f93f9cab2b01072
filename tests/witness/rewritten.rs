//! Rewritten programs give the same results as the originals.

use std::path::Path;
use std::time::Instant;

use prover_worker::model::StopReason;

use super::*;

/// Compiled in this process without rewriting.
const PLAIN: ModuleCache = ModuleCache { dir: None, compiler: None, rewrite: false };

/// Loads a program both ways, the original first.
fn both(wasm: &[u8]) -> [WasmWitness; 2] {
    [&PLAIN, &NO_CACHE].map(|cache| WasmWitness::load(wasm, AMPLE, cache).unwrap())
}

/// Returns the result of both, which must be the same.
fn same(programs: &[WasmWitness; 2], input: &str) -> Result<Vec<u8>, WitnessError> {
    let [plain, rewritten] = programs.each_ref().map(|program| generate(program, input).map(|w| wtns(&w)));
    assert!(plain == rewritten, "{input}: {:?}, {:?}", plain.err(), rewritten.err());
    plain
}

#[test]
fn circom_2_programs_are_rewritten() {
    for (wasm, recognised) in [
        ("multiplier.wasm", true),
        ("operators.wasm", true),
        ("bus_transfer.wasm", true),
        ("range_check.circom-2.0.3.wasm", true),
        ("range_check.circom-2.0.5.wasm", true),
        ("multiplier_v1.wasm", false),
    ] {
        let [plain, rewritten] = both(&circuit_file(wasm));
        assert_eq!(plain.info().rewritten, None);
        assert_eq!(rewritten.info().rewritten.is_some(), recognised, "{wasm}");
        assert_eq!(
            (plain.info().abi, plain.info().witness_size),
            (rewritten.info().abi, rewritten.info().witness_size)
        );
    }
    let merged = own("mimc_preimage.wasm").info().rewritten.unwrap();
    assert!(merged.functions > 0 && merged.copies > merged.rows && merged.rows > 0, "{merged:?}");
}

#[test]
fn real_circuits_give_the_same_both_ways() {
    let cases = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/cases");
    let Ok(folders) = std::fs::read_dir(&cases) else {
        eprintln!("SKIPPED: {} is not there, so no real circuit was tried", cases.display());
        return;
    };
    for folder in folders.map(|f| f.unwrap().path()).filter(|f| f.join("circuit.wasm").exists()) {
        let programs = both(&std::fs::read(folder.join("circuit.wasm")).unwrap());
        let input = std::fs::read_to_string(folder.join("input.json")).unwrap();
        assert!(same(&programs, &input).unwrap() == std::fs::read(folder.join("witness.wtns")).unwrap());
    }
}

#[test]
fn refusals_are_the_same_word_for_word() {
    let programs = both(&circuit_file("operators.wasm"));
    let operators = |c: &str| same(&programs, &format!(r#"{{"a": 5, "b": -7, "c": {c}}}"#)).map(drop);
    for (c, expected) in [
        ("[13, 1, 2]", "Assert Failed: Error in template Operators_1 line: "),
        ("[1, 13, 2]", "Assert Failed: Error in template Operators_1 line: "),
        ("[1, 1]", "not enough values for input signal c: expected 3, got 2"),
        ("[1, 1, 1, 1]", "too many values for input signal c"),
    ] {
        let e = operators(c).unwrap_err().to_string();
        assert!(e.contains(expected), "{c}: {e}");
    }
    operators("[1, 1, 1]").unwrap();
    assert!(
        same(&programs, r#"{"a": 5, "b": 7, "d": [1, 1, 1]}"#).unwrap_err().to_string().contains("signal not found")
    );
    assert!(same(&programs, r#"{"a": 5}"#).unwrap_err().to_string().contains("only 1 out of 5"));
    let programs = both(&circuit_file("range_check.wasm"));
    assert!(same(&programs, r#"{"amount": [0,0,0,0,0,0,0,0,0,0,0,4294967296], "ceiling": 5}"#).is_err());
}

/// An input that keeps the circuit `operators` counting for centuries.
const ENDLESS: &str = r#"{"a": 1, "b": 2, "c": [1000003, 1, -1]}"#;

#[test]
fn a_rewritten_program_is_stopped_in_time() {
    let limits = Limits { time: Duration::from_millis(200), ..AMPLE };
    for cache in [&PLAIN, &NO_CACHE] {
        let program = WasmWitness::load(&circuit_file("operators.wasm"), limits, cache).unwrap();
        let e = generate(&program, ENDLESS).unwrap_err();
        assert_eq!(e, WitnessError::Stopped(StopReason::TimedOut));
    }
    // And when it is told to stop, long before its time limit.
    let program = own("operators.wasm");
    let stop = StopToken::new();
    let begun = Instant::now();
    std::thread::scope(|s| {
        let running = s.spawn(|| program.generate(&Inputs::parse(ENDLESS.as_bytes()).unwrap(), &stop));
        stop.stop(StopReason::Cancelled);
        assert!(matches!(running.join().unwrap(), Err(WitnessError::Stopped(StopReason::Cancelled))));
    });
    assert!(begun.elapsed() < AMPLE.time);
}

#[test]
fn memory_is_bounded_for_a_rewritten_program() {
    let limits = Limits { memory: 1 << 18, ..AMPLE };
    for cache in [&PLAIN, &NO_CACHE] {
        let e = WasmWitness::load(&circuit_file("operators.wasm"), limits, cache).unwrap_err();
        assert_eq!(e, WitnessError::Memory { limit: 1 << 18 });
    }
}
