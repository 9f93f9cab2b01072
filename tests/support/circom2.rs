//! A witness program in WebAssembly text, with the functions of circom 2's: one input, a witness of 1 and 0. Each test
//! program that uses it includes this file by `#[path]`.

/// The functions: name, then type and body. Memory has the prime at byte 32, and the shared numbers before it.
pub const FUNCTIONS: [(&str, &str); 13] = [
    ("getVersion", "(result i32) i32.const 2"),
    ("getSharedRWMemoryStart", "(result i32) i32.const 0"),
    ("readSharedRWMemory", "(param i32) (result i32) (i32.load (i32.mul (local.get 0) (i32.const 4)))"),
    ("writeSharedRWMemory", "(param i32 i32) (i32.store (i32.mul (local.get 0) (i32.const 4)) (local.get 1))"),
    ("init", "(param i32)"),
    ("setInputSignal", "(param i32 i32 i32)"),
    ("getInputSignalSize", "(param i32 i32) (result i32) i32.const 1"),
    ("getRawPrime", "(memory.copy (i32.const 0) (i32.const 32) (i32.const 32))"),
    ("getFieldNumLen32", "(result i32) i32.const 8"),
    ("getWitnessSize", "(result i32) i32.const 2"),
    ("getInputSize", "(result i32) i32.const 1"),
    (
        "getWitness",
        "(param i32) (memory.fill (i32.const 0) (i32.const 0) (i32.const 32))
         (i32.store (i32.const 0) (i32.eqz (local.get 0)))",
    ),
    ("getMessageChar", "(result i32) i32.const 0"),
];

/// The prime r, as a data string.
pub fn prime() -> String {
    let r: num_bigint::BigUint = prover_worker::model::FR_MODULUS_DEC.parse().unwrap();
    r.to_bytes_le().iter().map(|b| format!("\\{b:02x}")).collect()
}
