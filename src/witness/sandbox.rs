//! The engines that compile and run witness programs, two for each cache folder, and their clock.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use wasmtime::{Cache, CacheConfig, Config, Engine, Linker, OptLevel, Strategy};

use super::WitnessError;
use super::run::{Host, imports};
use crate::model::locked;

/// How often running programs look whether they are to stop.
const TICK: Duration = Duration::from_millis(5);
/// Deepest stack of a program, bytes. Frames of a rewritten one may be larger, and what recurses must not fail for that, so
/// it gets twice as much; that, too, is well below the 2 MiB of a thread.
const STACK: usize = 512 << 10;
/// Bytes of compiled code kept in a cache folder before the oldest are removed.
const CACHE_BYTES: u64 = 4 << 30;

/// A folder of compiled modules.
pub(super) struct Kept {
    /// Ours: what is in hand, and markers of what compiled.
    pub dir: PathBuf,
}

/// wasmtime's part of that folder. Its cleaner deletes every file in there that is not its own.
const CACHE_FOLDER: &str = "cache";

/// An engine with its imports.
pub(super) struct Machine {
    pub engine: Engine,
    pub linker: Linker<Host>,
}

/// Machines for a cache folder, and their clock.
pub(super) struct Sandbox {
    /// For modules as they come.
    pub plain: Machine,
    /// For modules that were rewritten: these use instructions and a second memory that no other may, and ask for the
    /// time by themselves.
    pub rewritten: Machine,
    pub cache: Option<Kept>,
    clock: Arc<Clock>,
}

impl Sandbox {
    /// The process's engines for a cache folder, made at the first call; the folder is checked at each.
    pub(super) fn get(cache: Option<&Path>) -> Result<Arc<Self>, WitnessError> {
        static ALL: Mutex<BTreeMap<Option<PathBuf>, Arc<Sandbox>>> = Mutex::new(BTreeMap::new());
        let dir = cache.map(super::compile::private_folder).transpose()?;
        let mut all = lock(&ALL);
        if let Some(there) = all.get(&dir) {
            return Ok(there.clone());
        }
        let new = Arc::new(Self::new(dir.as_deref()).map_err(|e| WitnessError::Compile(e.to_string()))?);
        all.insert(dir, new.clone());
        Ok(new)
    }

    fn new(dir: Option<&Path>) -> wasmtime::Result<Self> {
        let cache = match dir {
            None => None,
            Some(dir) => {
                let mut config = CacheConfig::new();
                config.with_directory(dir.join(CACHE_FOLDER)).with_files_total_size_soft_limit(CACHE_BYTES);
                Some(Cache::new(config)?)
            }
        };
        let machine = |rewritten| -> wasmtime::Result<Machine> {
            let engine = Engine::new(&config(cache.clone(), rewritten))?;
            Ok(Machine { linker: imports(&engine)?, engine })
        };
        let (plain, rewritten) = (machine(false)?, machine(true)?);
        let clock = Arc::new(Clock::default());
        let (ticking, ticked) = (clock.clone(), plain.engine.clone());
        // One thread, asleep unless something runs as it came; it lives as long as the process.
        std::thread::Builder::new().name("witness-clock".into()).spawn(move || ticking.run(&ticked))?;
        let cache = dir.map(|dir| Kept { dir: dir.to_owned() });
        Ok(Self { plain, rewritten, cache, clock })
    }

    /// Keeps the clock ticking until the guard is dropped.
    pub(super) fn tick(&self) -> Ticking<'_> {
        *lock(&self.clock.running) += 1;
        self.clock.woken.notify_one();
        Ticking(&self.clock)
    }
}

/// How modules are compiled, in this process and in the child that compiles for it.
fn config(cache: Option<Cache>, rewritten: bool) -> Config {
    let mut c = Config::new();
    c.strategy(Strategy::Cranelift).cranelift_opt_level(OptLevel::Speed).cache(cache);
    c.epoch_interruption(!rewritten)
        .max_wasm_stack(if rewritten { 2 * STACK } else { STACK })
        .wasm_backtrace_max_frames(None);
    // circom emits WebAssembly of 2019; what came later is only more to attack.
    c.wasm_memory64(false).wasm_multi_memory(rewritten).wasm_tail_call(false).wasm_relaxed_simd(false);
    c.wasm_extended_const(false).wasm_wide_arithmetic(rewritten).wasm_custom_page_sizes(false);
    c
}

/// Counts running programs, and ticks while there are any.
#[derive(Default)]
struct Clock {
    running: Mutex<usize>,
    woken: Condvar,
}

impl Clock {
    fn run(&self, engine: &Engine) {
        loop {
            let mut running = lock(&self.running);
            while *running == 0 {
                running = self.woken.wait(running).unwrap_or_else(PoisonError::into_inner);
            }
            drop(running);
            std::thread::sleep(TICK);
            engine.increment_epoch();
        }
    }
}

/// Holds the clock awake.
pub(super) struct Ticking<'a>(&'a Clock);

impl Drop for Ticking<'_> {
    fn drop(&mut self) {
        *lock(&self.0.running) -= 1;
    }
}

/// The data under a lock; what these locks hold is whole at any time, even if a thread died with one.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    locked(&mutex)
}
