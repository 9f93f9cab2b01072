//! Witness generation: against snarkjs's witnesses, wrong inputs and hostile programs.
#![allow(clippy::unwrap_used)]

mod cache;
mod cases;
#[path = "../support/circom2.rs"]
mod circom2;
#[path = "../support/circuits.rs"]
mod circuits;
mod hostile;
mod rejected;
mod rewritten;

use std::time::Duration;

use circuits::circuit_file;
use prover_worker::model::{StopToken, Witness};
use prover_worker::witness::{Inputs, Limits, ModuleCache, WasmWitness, WitnessError};

/// Limits that no honest test reaches.
const AMPLE: Limits = Limits {
    time: Duration::from_secs(120),
    memory: 4 << 30,
    compile_time: Duration::from_secs(300),
    compile_memory: 4 << 30,
};

/// Compiled in this process, and not cached.
const NO_CACHE: ModuleCache = ModuleCache { dir: None, compiler: None, rewrite: true };

/// Loads one of the project's own circuits with ample limits.
fn own(wasm: &str) -> WasmWitness {
    WasmWitness::load(&circuit_file(wasm), AMPLE, &NO_CACHE).unwrap()
}

fn generate(program: &WasmWitness, input: &str) -> Result<Witness, WitnessError> {
    program.generate(&Inputs::parse(input.as_bytes()).map_err(WitnessError::from)?, &StopToken::new())
}

/// Returns the bytes of a .wtns file with this witness.
fn wtns(witness: &Witness) -> Vec<u8> {
    let r = prover_worker::model::FR_MODULUS_DEC.parse::<num_bigint::BigUint>().unwrap().to_bytes_le();
    let n = witness.len() as u32;
    let mut file = b"wtns".to_vec();
    // Version, sections; section 1 and its length, bytes of an element.
    file.extend([2u32, 2, 1, 40, 0, 32].map(u32::to_le_bytes).as_flattened());
    file.extend(r);
    file.extend(n.to_le_bytes());
    file.extend(2u32.to_le_bytes());
    file.extend((u64::from(n) * 32).to_le_bytes());
    for v in witness.values() {
        file.extend(v.0.map(u64::to_le_bytes).as_flattened());
    }
    file
}
