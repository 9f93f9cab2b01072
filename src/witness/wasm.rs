//! Witness programs as circom compiles them to WebAssembly.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use wasmtime::Module;

use super::outline::Outline;
use super::rewrite::Rewritten;
use super::run::Run;
use super::sandbox::Sandbox;
use super::{Inputs, WitnessError, WitnessGenerator, circom1, circom2, compile};
use crate::model::{StopToken, Witness};

/// Bounds on one witness generation and on compiling.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Longest run of one instance.
    pub time: Duration,
    /// Most linear memory, bytes. The witness that is read out of it is bounded by the same number.
    pub memory: u64,
    /// Longest compile.
    pub compile_time: Duration,
    /// Most memory a compile may take, bytes.
    pub compile_memory: u64,
}

impl Limits {
    /// Most memory that a program can have: what its addresses of 32 bits reach.
    pub const MOST_MEMORY: u64 = 4 << 30;
}

/// Longest time a program may take to say what it is: a few calls that return constants.
const INTRODUCTION: Duration = Duration::from_secs(4);

/// Where compiled modules are kept, and who compiles.
///
/// A compile is bounded in time and memory only in a child process, so only with both a folder and a compiler.
/// Otherwise it runs on a thread of this process, is given up (not ended) when its time is over, and refuses modules
/// with functions of more than 8 MiB.
#[derive(Debug, Clone)]
pub struct ModuleCache {
    /// Private folder of compiled modules: made with mode 0700 if it is not there, refused if others may write to it,
    /// as it holds machine code. Without one nothing is kept.
    pub dir: Option<PathBuf>,
    /// This program, re-run as `compile-witness --wasm FILE --cache DIR --memory BYTES [--plain]` to compile as a bounded child.
    pub compiler: Option<PathBuf>,
    /// Whether programs whose field arithmetic is circom's to the last instruction get a faster one in its place.
    pub rewrite: bool,
}

impl ModuleCache {
    /// Whether modules can be kept in its folder, which is made if it is not there; true without one.
    ///
    /// Errors: the reason, in words.
    pub fn usable(&self) -> Result<(), String> {
        self.dir.as_deref().map_or(Ok(()), compile::usable_folder)
    }
}

/// How a witness program is called.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Abi {
    /// circom 1: memory comes from the host, values go through it.
    Circom1,
    /// circom 2: values go through a shared window of the program's own memory.
    Circom2 {
        /// Version of the compiler; programs of before 2.0.7 do not tell minor and patch.
        version: (u32, Option<(u32, u32)>),
    },
}

impl fmt::Display for Abi {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Circom1 => f.write_str("circom 1"),
            Self::Circom2 { version: (major, Some((minor, patch))) } => write!(f, "circom {major}.{minor}.{patch}"),
            Self::Circom2 { version: (major, None) } => write!(f, "circom {major} (before 2.0.7)"),
        }
    }
}

impl serde::Serialize for Abi {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

/// What a witness program says of itself.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct WasmInfo {
    /// Its interface.
    pub abi: Abi,
    /// Values it takes, of all input signals together; circom 1 does not say.
    pub inputs: Option<u32>,
    /// Values in the witness, the constant 1 included.
    pub witness_size: u32,
    /// Size of the module, bytes.
    pub wasm_bytes: u64,
    /// What was replaced in it; nothing where it runs as it came.
    pub rewritten: Option<Rewritten>,
}

/// A compiled module, and what was replaced in it.
pub(super) struct Program {
    pub module: Module,
    pub rewritten: Option<Rewritten>,
}

/// A compiled witness program. Each witness is made by a fresh instance, so one program serves many threads.
///
/// The program is untrusted. It has no access to the host but for circom's own error and log calls; it cannot run
/// longer, take more memory or recurse deeper than allowed, whatever it does.
pub struct WasmWitness {
    sandbox: Arc<Sandbox>,
    program: Program,
    limits: Limits,
    info: WasmInfo,
}

impl fmt::Debug for WasmWitness {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WasmWitness").field("info", &self.info).finish_non_exhaustive()
    }
}

impl WasmWitness {
    /// Sees from outside whether a module can be a witness program, without compiling it.
    pub fn glance(wasm: &[u8]) -> Result<(), WitnessError> {
        Outline::read(wasm).map(drop)
    }

    /// Checks and compiles a module, or takes it from the cache, and asks it for its sizes.
    ///
    /// Errors: `Module` for anything that is not a witness program of a circom circuit on BN254, before it is
    /// compiled where possible; `Compile` where its bounds do not suffice or the cache's folder is unfit; `Stopped` for
    /// one that takes longer than 4 s to start and tell its sizes, whatever `limits` give a witness.
    pub fn load(wasm: &[u8], limits: Limits, cache: &ModuleCache) -> Result<Self, WitnessError> {
        let outline = Outline::read(wasm)?;
        let sandbox = Sandbox::get(cache.dir.as_deref())?;
        let program = compile::program(&sandbox, wasm, &outline, &limits, cache)?;
        let interface = if outline.circom1() { circom1::INTERFACE } else { circom2::INTERFACE };
        interface.check(&program.module)?;

        let brief = Limits { time: limits.time.min(INTRODUCTION), ..limits };
        let info = Self::run(&sandbox, &program, &brief, &StopToken::new(), |run| {
            let (abi, inputs, witness_size) =
                if outline.circom1() { circom1::describe(run)? } else { circom2::describe(run)? };
            Ok(WasmInfo { abi, inputs, witness_size, wasm_bytes: wasm.len() as u64, rewritten: program.rewritten })
        })?;
        Ok(Self { sandbox, program, limits, info })
    }

    /// What the program says of itself.
    pub fn info(&self) -> &WasmInfo {
        &self.info
    }

    /// A fresh instance, within its limits, for as long as `work` takes.
    fn run<T>(
        sandbox: &Sandbox,
        program: &Program,
        limits: &Limits,
        stop: &StopToken,
        work: impl FnOnce(&mut Run) -> Result<T, WitnessError>,
    ) -> Result<T, WitnessError> {
        let stop = Instant::now().checked_add(limits.time).map_or_else(|| stop.clone(), |at| stop.with_deadline(at));
        if let Some(why) = stop.stopped() {
            return Err(WitnessError::Stopped(why));
        }
        // Rewritten programs ask for the time by themselves.
        let _ticking = program.rewritten.is_none().then(|| sandbox.tick());
        work(&mut Run::start(sandbox, program, limits.memory, stop)?)
    }
}

impl WitnessGenerator for WasmWitness {
    fn generate(&self, inputs: &Inputs, stop: &StopToken) -> Result<Witness, WitnessError> {
        Self::run(&self.sandbox, &self.program, &self.limits, stop, |run| match self.info.abi {
            Abi::Circom1 => circom1::generate(run, inputs, self.info.witness_size),
            Abi::Circom2 { .. } => {
                let place = self.program.rewritten.and_then(|r| r.witness);
                circom2::generate(run, inputs, self.info.witness_size, place)
            }
        })
    }
}
