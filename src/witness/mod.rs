//! Witness generation, in a sandbox.

mod circom1;
mod circom2;
mod compile;
mod inputs;
mod json;
mod number;
mod outline;
mod rewrite;
mod run;
mod sandbox;
mod signals;
mod wasm;

pub use compile::compile_into_cache;
pub use inputs::{InputError, Inputs};
pub use rewrite::Rewritten;
pub use wasm::{Abi, Limits, ModuleCache, WasmInfo, WasmWitness};

use std::time::Duration;

use crate::model::StopReason;

/// Why a witness could not be computed. Messages name signals and counts, never values.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WitnessError {
    /// The input is not what the circuit takes.
    #[error("{0}")]
    Input(#[from] InputError),
    /// The module is not a witness program of a circom circuit on this curve.
    #[error("not a circom witness program: {0}")]
    Module(String),
    /// The module could not be compiled within its bounds.
    #[error("the witness program could not be compiled: {0}")]
    Compile(String),
    /// The circuit refuses the input: a constraint or an assert fails. Contains circom's own message and template
    /// trace.
    #[error("the circuit refuses this input: {0}")]
    Assert(String),
    /// The program failed: a trap, or a meaningless answer.
    #[error("the witness program failed: {0}")]
    Trap(String),
    /// The program needs more memory than allowed.
    #[error("the witness program needs more memory than its limit of {limit} bytes (PROVER_WITNESS_MEMORY_BYTES)")]
    Memory {
        /// Bytes allowed.
        limit: u64,
    },
    /// This machine could not set the program up, for example for lack of address space.
    #[error("the witness program could not be set up here: {0}")]
    Host(String),
    /// The program does not start and report its sizes in time.
    #[error("the witness program took longer than {limit:?} to start and report its sizes")]
    Silent {
        /// Time allowed.
        limit: Duration,
    },
    /// The program took too long or was asked to stop.
    #[error("the witness program was stopped: {0}")]
    Stopped(StopReason),
}
