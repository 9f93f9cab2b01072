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
use super::signals::Signals;
use super::{Inputs, WitnessError, circom1, circom2, compile};
use crate::model::{StopReason, StopToken, Witness};

/// Limits on generating one witness and on compiling.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Maximum run time of one instance.
    pub time: Duration,
    /// Maximum linear memory, bytes. The witness read out of it has the same limit.
    pub memory: u64,
    /// Maximum compile time.
    pub compile_time: Duration,
    /// Maximum memory of a compile, bytes.
    pub compile_memory: u64,
}

impl Limits {
    /// Maximum memory of a program: all that its 32-bit addresses reach.
    pub const MAX_MEMORY: u64 = 4 << 30;
}

/// Maximum time for a program to start and describe itself: a few calls that return constants.
const INTRODUCTION: Duration = Duration::from_secs(4);

/// Where compiled modules are cached, and which program compiles them.
///
/// A compile is bounded in time and memory only in a child process, which takes both a folder and a compiler. Otherwise
/// it runs on a thread of this process, is abandoned (not ended) when its time is over, and refuses modules with
/// functions of more than 8 MiB.
#[derive(Debug, Clone)]
pub struct ModuleCache {
    /// Private folder of compiled modules: created with mode 0700 if it does not exist, refused if others can write to
    /// it, because it holds machine code. Without one, nothing is cached.
    pub dir: Option<PathBuf>,
    /// This program, run as `compile-witness --wasm FILE --cache DIR --memory BYTES [--plain]` to compile in a bounded
    /// child.
    pub compiler: Option<PathBuf>,
    /// Whether to replace field arithmetic that is circom's to the last instruction by a faster implementation.
    pub rewrite: bool,
}

impl ModuleCache {
    /// Checks that modules can be stored in the folder, which is created if it does not exist; `Ok` without a folder.
    ///
    /// Errors: the reason, as text.
    pub fn usable(&self) -> Result<(), String> {
        self.dir.as_deref().map_or(Ok(()), compile::usable_folder)
    }
}

/// The calling convention of a witness program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Abi {
    /// circom 1: the host provides the memory, and values pass through it.
    Circom1,
    /// circom 2: values pass through a shared window in the program's own memory.
    Circom2 {
        /// Version of the compiler; before 2.0.7, programs do not report minor and patch.
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

/// A witness program's description of itself.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct WasmInfo {
    /// Its calling convention.
    pub abi: Abi,
    /// Number of values it takes, over all input signals; circom 1 does not report it.
    pub inputs: Option<u32>,
    /// Number of values in the witness, including the constant 1.
    pub witness_size: u32,
    /// Size of the module, bytes.
    pub wasm_bytes: u64,
    /// What was replaced in it; `None` if it runs unmodified.
    pub rewritten: Option<Rewritten>,
}

/// A compiled module, and what was replaced in it.
pub(super) struct Program {
    pub module: Module,
    pub rewritten: Option<Rewritten>,
}

/// A compiled witness program. Each witness is computed by a fresh instance, so one program serves many threads.
///
/// The program is untrusted. It has no access to the host except circom's own error and log calls, and it cannot exceed
/// its limits on time, memory and stack depth, whatever it does.
pub struct WasmWitness {
    sandbox: Arc<Sandbox>,
    program: Program,
    limits: Limits,
    info: WasmInfo,
    /// The signals of a program that does not report their sizes, if its module shows them.
    signals: Option<Signals>,
}

impl fmt::Debug for WasmWitness {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WasmWitness").field("info", &self.info).finish_non_exhaustive()
    }
}

impl WasmWitness {
    /// Checks from its sections, imports and exports whether a module can be a witness program, without compiling it.
    pub fn precheck(wasm: &[u8]) -> Result<(), WitnessError> {
        Outline::read(wasm).map(drop)
    }

    /// Checks and compiles a module, or loads it from the cache, and queries its sizes.
    ///
    /// Errors: `Module` for anything that is not a witness program of a circom circuit on BN254, before compiling where
    /// possible; `Compile` if the limits do not suffice or the cache folder is unusable; `Silent` for a program that
    /// takes longer than 4 s to start and report its sizes, whatever time `limits` give a witness.
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
        })
        // Not `Stopped`: that would blame the job whose first use of the program this is for its own time.
        .map_err(|e| match e {
            WitnessError::Stopped(StopReason::TimedOut) => WitnessError::Silent { limit: brief.time },
            e => e,
        })?;
        let signals = match info.abi {
            Abi::Circom1 => Signals::of_circom1(wasm),
            Abi::Circom2 { .. } if program.module.get_export(circom2::SIZE_OF_SIGNAL).is_some() => None,
            Abi::Circom2 { .. } => Signals::of_circom2(wasm, info.inputs.unwrap_or(0)),
        };
        Ok(Self { sandbox, program, limits, info, signals })
    }

    /// The program's description of itself.
    pub fn info(&self) -> &WasmInfo {
        &self.info
    }

    /// Computes the witness for these inputs in a fresh instance. Ends soon after `stop` is triggered.
    pub fn generate(&self, inputs: &Inputs, stop: &StopToken) -> Result<Witness, WitnessError> {
        Self::run(&self.sandbox, &self.program, &self.limits, stop, |run| match self.info.abi {
            Abi::Circom1 => circom1::generate(run, inputs, self.info.witness_size, self.signals.as_ref()),
            Abi::Circom2 { .. } => {
                let place = self.program.rewritten.and_then(|r| r.witness);
                circom2::generate(run, inputs, self.info.witness_size, place, self.signals.as_ref())
            }
        })
    }

    /// Runs `work` on a fresh instance, within the limits.
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
        // Rewritten programs check the time themselves.
        let _ticking = program.rewritten.is_none().then(|| sandbox.tick());
        work(&mut Run::start(sandbox, program, limits.memory, stop)?)
    }
}
