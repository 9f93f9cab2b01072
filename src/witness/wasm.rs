//! x
use super::{Inputs, WitnessError, WitnessGenerator};
use crate::model::{StopToken, Witness};
use std::path::PathBuf;
use std::time::Duration;
/// Bounds on one witness generation and on compiling.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Longest run of one instance.
    pub time: Duration,
    /// Most linear memory, bytes.
    pub memory: u64,
    /// Longest compile.
    pub compile_time: Duration,
    /// Most memory a compile may take, bytes.
    pub compile_memory: u64,
}
/// Where compiled modules are kept
#[derive(Debug, Clone)]
pub struct ModuleCache {
    /// Private folder
    pub dir: Option<PathBuf>,
    /// This program, re-run as a bounded child to compile; None compiles in this process.
    pub compiler: Option<PathBuf>,
}
/// x
#[derive(Debug, Clone, serde::Serialize)]
pub struct WasmInfo {}
/// x
pub struct WasmWitness {}
impl WasmWitness {
    /// x
    pub fn load(_wasm: &[u8], _limits: Limits, _cache: &ModuleCache) -> Result<Self, WitnessError> {
        todo!()
    }
    /// x
    pub fn info(&self) -> &WasmInfo {
        todo!()
    }
}
impl WitnessGenerator for WasmWitness {
    fn generate(&self, _inputs: &Inputs, _stop: &StopToken) -> Result<Witness, WitnessError> {
        todo!()
    }
}

/// x
pub fn compile_into_cache(_w: &std::path::Path, _c: &std::path::Path, _m: u64) -> Result<(), WitnessError> {
    todo!()
}
