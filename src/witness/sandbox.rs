//! The engines that compile and run witness programs, two per cache folder, and their clock.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

use wasmtime::{Cache, CacheConfig, Config, Engine, Linker, OptLevel, Strategy};

use super::WitnessError;
use super::run::{Host, imports};
use crate::model::locked;

/// How often running programs check whether to stop.
const TICK: Duration = Duration::from_millis(5);
/// Maximum stack of a program, bytes. A rewritten program may have larger frames, and deep recursion must not fail
/// because of that, so it gets twice as much; that is still well below the 2 MiB of a thread.
const STACK: usize = 512 << 10;
/// Bytes of compiled code kept in a cache folder before the oldest are removed.
const CACHE_BYTES: u64 = 4 << 30;

/// wasmtime's part of that folder. Its cleaner deletes every file there that is not its own.
const CACHE_FOLDER: &str = "cache";

/// An engine with its imports.
pub(super) struct Machine {
    pub engine: Engine,
    pub linker: Linker<Host>,
}

/// The machines for a cache folder, and their clock.
pub(super) struct Sandbox {
    /// For unmodified modules.
    pub plain: Machine,
    /// For rewritten modules: these use instructions and a second memory that no other module may use, and check the
    /// time themselves.
    pub rewritten: Machine,
    /// The cache folder, for our own files: modules being compiled, and markers of those that compiled.
    pub cache_dir: Option<PathBuf>,
    clock: Arc<Clock>,
}

impl Sandbox {
    /// The process's engines for a cache folder, created by the first call; every call checks the folder.
    pub(super) fn get(cache: Option<&Path>) -> Result<Arc<Self>, WitnessError> {
        static ALL: Mutex<BTreeMap<Option<PathBuf>, Arc<Sandbox>>> = Mutex::new(BTreeMap::new());
        let dir = cache.map(super::compile::private_folder).transpose()?;
        let mut all = locked(&ALL);
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
        // One thread, asleep unless an unmodified program runs; it lives as long as the process.
        std::thread::Builder::new().name("witness-clock".into()).spawn(move || ticking.run(&ticked))?;
        Ok(Self { plain, rewritten, cache_dir: dir.map(Path::to_path_buf), clock })
    }

    /// Removes all machine code from the cache folder. wasmtime names its files by a hash that it does not tell, so one
    /// of them cannot be picked. The folders stay, because others may be writing to them.
    pub(super) fn remove_machine_code(&self) {
        let mut folders: Vec<PathBuf> = self.cache_dir.iter().map(|dir| dir.join(CACHE_FOLDER)).collect();
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
                match entry.file_type() {
                    Ok(kind) if kind.is_dir() => folders.push(entry.path()),
                    // A file that cannot be removed is found to be damaged again.
                    _ => drop(std::fs::remove_file(entry.path())),
                }
            }
        }
    }

    /// Keeps the clock ticking until the guard is dropped.
    pub(super) fn tick(&self) -> Ticking<'_> {
        *locked(&self.clock.running) += 1;
        self.clock.woken.notify_one();
        Ticking(&self.clock)
    }
}

/// The compiler settings, the same in this process and in the child that compiles for it.
fn config(cache: Option<Cache>, rewritten: bool) -> Config {
    let mut c = Config::new();
    c.strategy(Strategy::Cranelift).cranelift_opt_level(OptLevel::Speed).cache(cache);
    c.epoch_interruption(!rewritten)
        .max_wasm_stack(if rewritten { 2 * STACK } else { STACK })
        .wasm_backtrace_max_frames(None);
    // circom emits WebAssembly of 2019; later features only add attack surface.
    c.wasm_memory64(false).wasm_multi_memory(rewritten).wasm_tail_call(false).wasm_relaxed_simd(false);
    c.wasm_extended_const(false).wasm_wide_arithmetic(rewritten).wasm_custom_page_sizes(false);
    // With blocks of many results, validating a module takes time in the square of its length: the types of all results
    // are compared for each target of a `br_table`.
    c.wasm_multi_value(rewritten);
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
            let mut running = locked(&self.running);
            while *running == 0 {
                running = self.woken.wait(running).unwrap_or_else(PoisonError::into_inner);
            }
            drop(running);
            std::thread::sleep(TICK);
            engine.increment_epoch();
        }
    }
}

/// Keeps the clock ticking.
pub(super) struct Ticking<'a>(&'a Clock);

impl Drop for Ticking<'_> {
    fn drop(&mut self) {
        *locked(&self.0.running) -= 1;
    }
}
