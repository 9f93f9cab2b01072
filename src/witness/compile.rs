//! Compiles modules within limits, and caches the results.
//!
//! The compiler is the one part of the sandbox that an untrusted module can make slow or memory-hungry without even
//! running. A thread cannot be ended and its memory cannot be limited, so if there is a folder through which to hand
//! over the result, a child process compiles: the child fills wasmtime's own cache, and the parent loads from there. A
//! marker file records that a module has compiled within its limits here; if it exists, the parent only queries the
//! cache, and compiles again itself (at a known cost) if the cached file is missing. The child validates the module
//! too: an invalid one can be slow to refuse.

use std::fs::{DirBuilder, File, Metadata};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use sha2::{Digest, Sha256};
use wasmtime::{Engine, Module};

use super::outline::{Outline, clip};
use super::rewrite::Rewritten;
use super::sandbox::Sandbox;
use super::wasm::{Limits, ModuleCache, Program};
use super::{WitnessError, outline, rewrite};
use crate::model::io_reason;

/// Longest function compiled in this process, bytes. The longest known functions (tables of Poseidon's constants, built
/// by assigning each element) have 0.3 MB.
const MAX_FUNCTION: u64 = 8 << 20;
/// Bytes of a child's error output that are read.
const MAX_STDERR: u64 = 16 << 10;
/// Interval at which a child is polled.
const POLL: Duration = Duration::from_millis(5);
/// Maximum threads of a child's compiler. Each reserves address space, which is limited too.
const MAX_THREADS: usize = 8;
/// Address space that a child may use beyond its memory limit: its program, its stacks, its allocator's reserves.
const ADDRESS_SLACK: u64 = 4 << 30;

/// Returns the compiled program: from the cache, from a child, or compiled here.
pub(super) fn program(
    sandbox: &Sandbox,
    wasm: &[u8],
    outline: &Outline,
    limits: &Limits,
    cache: &ModuleCache,
) -> Result<Program, WitnessError> {
    // A deadline beyond what the clock can represent is no limit.
    let deadline = Instant::now().checked_add(limits.compile_time);
    let compile = |form: &Form| {
        let (engine, bytes, rewritten) = match form {
            Form::Plain => (&sandbox.plain.engine, wasm, None),
            Form::Rewritten(bytes, rewritten) => (&sandbox.rewritten.engine, &bytes[..], Some(*rewritten)),
        };
        Ok(Program { module: compile_here(engine, bytes, limits, deadline)?, rewritten })
    };
    let in_time = || deadline.is_none_or(|d| Instant::now() < d);
    if let (Some(dir), Some(compiler)) = (&sandbox.cache_dir, &cache.compiler) {
        let entry = Entry::of(sandbox, dir, wasm, cache.rewrite);
        if let Some(found) = entry.find() {
            match compile(&found) {
                // It has compiled before, so its machine code in the cache is damaged. The child must not find it.
                Err(e) if in_time() => {
                    tracing::warn!(error = %e, "a cached witness program is damaged; all are compiled again");
                    sandbox.remove_machine_code();
                }
                done => return done,
            }
        }
        outline::check_nesting(wasm)?;
        compile_by_child(compiler, dir, wasm, limits, cache.rewrite, deadline)?;
        return compile(&entry.record()?);
    }
    if outline.longest_function > MAX_FUNCTION {
        return Err(WitnessError::Compile(format!(
            "expected functions of at most {MAX_FUNCTION} bytes, got one of {}",
            outline.longest_function
        )));
    }
    outline::check_nesting(wasm)?;
    match cache.rewrite.then(|| rewrite::rewrite(wasm)).flatten() {
        Some((bytes, rewritten)) => compile(&Form::Rewritten(bytes, rewritten)),
        None => compile(&Form::Plain),
    }
}

/// The form of a module that is compiled.
enum Form {
    /// The original module.
    Plain,
    /// The rewritten module.
    Rewritten(Vec<u8>, Rewritten),
}

impl Form {
    /// Content of the marker.
    fn marker(&self) -> String {
        match self {
            Self::Plain => "plain\n".into(),
            Self::Rewritten(bytes, _) => format!("rewritten {}\n", hex::encode(Sha256::digest(bytes))),
        }
    }
}

/// A module's files in a cache folder.
struct Entry {
    /// Records that the module compiled within its limits, and the SHA-256 of the rewritten module if there is one.
    marker: PathBuf,
    /// The rewritten module.
    module: PathBuf,
}

/// How long a rewritten module is kept before it is written again.
const MAX_REWRITTEN_AGE: Duration = Duration::from_secs(90 * 24 * 3600);

impl Entry {
    /// The names are a hash of the module and of everything that its compiled form depends on.
    fn of(sandbox: &Sandbox, dir: &Path, wasm: &[u8], rewrite: bool) -> Self {
        let mut settings = DefaultHasher::new();
        sandbox.plain.engine.precompile_compatibility_hash().hash(&mut settings);
        sandbox.rewritten.engine.precompile_compatibility_hash().hash(&mut settings);
        (rewrite, rewrite::VERSION).hash(&mut settings);
        let mut hash = Sha256::new();
        hash.update(settings.finish().to_le_bytes());
        hash.update(wasm);
        let name = hex::encode(hash.finalize());
        Self { marker: dir.join(format!("{name}.compiled")), module: dir.join(format!("{name}.wasm")) }
    }

    /// Returns `None` if the module has not been compiled here, or if its marker or its rewritten form is missing or
    /// damaged.
    fn find(&self) -> Option<Form> {
        let marker = std::fs::read(&self.marker).ok()?;
        let form = if marker == Form::Plain.marker().as_bytes() {
            Form::Plain
        } else {
            let bytes = std::fs::read(&self.module).ok()?;
            let rewritten = Rewritten::read(&bytes)?;
            Form::Rewritten(bytes, rewritten)
        };
        (form.marker().as_bytes() == marker).then_some(form)
    }

    /// Returns what a child has just compiled, and writes the marker. Without a marker, the next load merely compiles
    /// again.
    fn record(&self) -> Result<Form, WitnessError> {
        let form = match std::fs::read(&self.module) {
            Ok(bytes) => Rewritten::read(&bytes).map(|rewritten| Form::Rewritten(bytes, rewritten)),
            Err(e) if e.kind() == ErrorKind::NotFound => Some(Form::Plain),
            Err(_) => None,
        };
        let form = form.ok_or_else(|| WitnessError::Compile("the rewritten module could not be read".into()))?;
        let _ = std::fs::write(&self.marker, form.marker());
        Ok(form)
    }

    /// Writes the rewritten module atomically.
    fn put(&self, bytes: &[u8]) -> std::io::Result<()> {
        let dir = self.module.parent().unwrap_or(Path::new("."));
        let mut file = tempfile::Builder::new().prefix(TEMP_PREFIX).tempfile_in(dir)?;
        file.write_all(bytes)?;
        file.as_file().sync_all()?;
        file.persist(&self.module)?;
        Ok(())
    }
}

/// Compiles a module without limits. If that fails, finds out whether the module is at fault.
fn compile(engine: &Engine, wasm: &[u8]) -> Result<Module, WitnessError> {
    Module::new(engine, wasm).map_err(|e| match Module::validate(engine, wasm) {
        Err(e) => invalid(&e.to_string()),
        Ok(()) => WitnessError::Compile(clip(&e.to_string())),
    })
}

/// What is said of an invalid module, by a child to its parent too.
const INVALID: &str = "the module is not valid: ";

fn invalid(why: &str) -> WitnessError {
    WitnessError::Module(format!("{INVALID}{}", clip(why)))
}

/// Compiles on a thread, which is abandoned when the time is over.
fn compile_here(
    engine: &Engine,
    wasm: &[u8],
    limits: &Limits,
    deadline: Option<Instant>,
) -> Result<Module, WitnessError> {
    let (engine, bytes) = (engine.clone(), wasm.to_vec());
    let (done, result) = mpsc::channel();
    thread::Builder::new()
        .name("witness-compile".into())
        .spawn(move || {
            // If the time is over, the receiver is gone.
            let _ = done.send(compile(&engine, &bytes));
        })
        .map_err(|e| WitnessError::Compile(format!("could not start a thread to compile on: {e}")))?;
    let left = deadline.map_or(Duration::MAX, |d| d.saturating_duration_since(Instant::now()));
    match result.recv_timeout(left) {
        Ok(compiled) => compiled,
        Err(RecvTimeoutError::Timeout) => Err(too_slow(limits)),
        Err(RecvTimeoutError::Disconnected) => Err(WitnessError::Compile("the compiler panicked".into())),
    }
}

fn too_slow(limits: &Limits) -> WitnessError {
    WitnessError::Compile(format!("it took longer than {:?}", limits.compile_time))
}

/// Kills the child when dropped.
struct Guarded(Child);

impl Drop for Guarded {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Prefix of module files being handed to a child.
const TEMP_PREFIX: &str = ".compiling-";
/// Bytes written to a cache folder to check that it is writable.
const PROBE: usize = 64 << 10;
/// Age at which a handed-over module is abandoned: no compile takes that long.
const MAX_TEMP_AGE: Duration = Duration::from_secs(24 * 3600);

/// Removes modules left behind by parents that were killed, and rewritten modules past their age limit.
fn sweep(dir: &Path) {
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        let age = || entry.metadata().ok()?.modified().ok()?.elapsed().ok();
        let name = entry.file_name();
        let name = name.to_string_lossy();
        let limit = match () {
            () if name.starts_with(TEMP_PREFIX) => MAX_TEMP_AGE,
            () if name.ends_with(".wasm") => MAX_REWRITTEN_AGE,
            () => continue,
        };
        if age().is_some_and(|age| age > limit) {
            // Failure only leaves an unneeded file behind.
            let _ = std::fs::remove_file(entry.path());
        }
    }
}

fn compile_by_child(
    compiler: &Path,
    dir: &Path,
    wasm: &[u8],
    limits: &Limits,
    rewrite: bool,
    deadline: Option<Instant>,
) -> Result<(), WitnessError> {
    sweep(dir);
    let handing = |e: std::io::Error| {
        WitnessError::Compile(format!("the module could not be handed to the compiler: {}", io_reason(&e)))
    };
    let mut file = tempfile::Builder::new().prefix(TEMP_PREFIX).tempfile_in(dir).map_err(handing)?;
    file.write_all(wasm).and_then(|()| file.flush()).map_err(handing)?;

    let spawned = Command::new(compiler)
        .arg("compile-witness")
        .arg("--wasm")
        .arg(file.path())
        .arg("--cache")
        .arg(dir)
        .arg("--memory")
        .arg(limits.compile_memory.to_string())
        .args((!rewrite).then_some("--plain"))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn();
    let mut child = Guarded(spawned.map_err(|e| {
        WitnessError::Compile(format!("its compiler {} could not be started: {}", compiler.display(), io_reason(&e)))
    })?);

    // On a thread, so that a child that fills the pipe cannot delay the deadline. The thread ends when the pipe does.
    let pipe = child.0.stderr.take();
    let (send, error_output) = mpsc::channel();
    let reader = thread::Builder::new().name("witness-stderr".into()).spawn(move || {
        let Some(mut pipe) = pipe else { return };
        let mut text = Vec::new();
        let _ = pipe.by_ref().take(MAX_STDERR).read_to_end(&mut text);
        let _ = send.send(String::from_utf8_lossy(&text).into_owned());
        let _ = std::io::copy(&mut pipe, &mut std::io::sink());
    });
    reader
        .map_err(|e| WitnessError::Compile(format!("could not start a thread to read the compiler's output: {e}")))?;

    let status = loop {
        match child.0.try_wait() {
            Ok(Some(status)) => break status,
            Ok(None) if deadline.is_some_and(|d| Instant::now() >= d) => return Err(too_slow(limits)),
            Ok(None) => thread::sleep(POLL),
            Err(e) => return Err(WitnessError::Compile(format!("could not wait for its compiler: {e}"))),
        }
    };
    if status.success() {
        return Ok(());
    }
    // A grandchild may keep the pipe open, so limit the wait.
    let text = error_output.recv_timeout(Duration::from_millis(200)).unwrap_or_default();
    Err(explain(status, &text, limits.compile_memory))
}

/// Describes in one sentence how a child failed.
fn explain(status: ExitStatus, stderr: &str, memory: u64) -> WitnessError {
    // The messages of Rust's allocator when it gives up, and of a failure to allocate a thread's stack.
    if stderr.contains("memory allocation of") || stderr.contains("Cannot allocate memory") {
        return WitnessError::Compile(format!("it takes more than {memory} bytes of memory"));
    }
    let lines = || stderr.lines().map(str::trim).filter(|l| !l.is_empty());
    let said = lines().find_map(|l| l.strip_prefix("error: ")).or(lines().next_back());
    // The child's message starts with the prefix that this message will get too.
    let after = |prefix: WitnessError| said?.strip_prefix(&prefix.to_string());
    if let (Some(why), None) = (after(WitnessError::Module(INVALID.into())), status.signal()) {
        return invalid(why);
    }
    let said = after(WitnessError::Compile(String::new())).or(said).map(clip);
    WitnessError::Compile(match (said, status.signal()) {
        (Some(said), None) => said,
        (Some(said), Some(signal)) => format!("its compiler was ended by signal {signal}: {said}"),
        (None, Some(signal)) => format!("its compiler was ended by signal {signal}"),
        (None, None) => format!("its compiler failed with {status}"),
    })
}

/// Compiles a module into a cache folder, under a memory limit that it sets for the whole process: meant for a child
/// that does nothing else (`compile-witness --wasm FILE --cache DIR --memory BYTES [--plain]`). With `rewrite`, it
/// rewrites the module first where possible, and also stores the rewritten module in the folder. On Linux the process
/// ends with the thread that started it; elsewhere the limit is enforced as far as the system does.
///
/// Errors: `Module` if the file is not a witness program, `Compile` for failures of the compiler, the folder or the
/// limits. A process that reaches the memory limit aborts.
pub fn compile_into_cache(wasm: &Path, cache_dir: &Path, memory_limit: u64, rewrite: bool) -> Result<(), WitnessError> {
    end_with_parent();
    let limits = [
        (Resource::Core, 0),
        (Resource::Data, memory_limit),
        (Resource::As, memory_limit.saturating_add(ADDRESS_SLACK)),
    ];
    for (resource, to) in limits {
        match lower(resource, to) {
            // macOS may refuse some of these limits.
            Err(e) if cfg!(target_os = "linux") => {
                return Err(WitnessError::Compile(format!("the memory limit could not be set: {e}")));
            }
            _ => {}
        }
    }

    let bytes = read_module(wasm).map_err(|e| {
        WitnessError::Compile(format!("the module {} could not be read: {}", wasm.display(), io_reason(&e)))
    })?;
    Outline::read(&bytes)?;
    let sandbox = Sandbox::get(Some(cache_dir))?;
    let threads = thread::available_parallelism().map_or(1, usize::from).min(MAX_THREADS);
    let pool = rayon::ThreadPoolBuilder::new()
        .num_threads(threads)
        .build()
        .map_err(|e| WitnessError::Compile(format!("could not start threads to compile on: {e}")))?;
    let entry = sandbox.cache_dir.as_ref().map(|dir| Entry::of(&sandbox, dir, &bytes, rewrite));
    if let (Some((rewritten, _)), Some(entry)) = (rewrite.then(|| rewrite::rewrite(&bytes)).flatten(), entry) {
        pool.install(|| compile(&sandbox.rewritten.engine, &rewritten))?;
        return entry.put(&rewritten).map_err(|e| {
            WitnessError::Compile(format!("the rewritten module could not be written: {}", io_reason(&e)))
        });
    }
    pool.install(|| compile(&sandbox.plain.engine, &bytes)).map(drop)
}

/// Reads at most one byte more than allowed, so that a file that grows meanwhile is refused rather than read.
fn read_module(path: &Path) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(outline::MAX_MODULE as u64 + 1).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Makes the kernel kill this process when the thread that started it ends; on systems other than Linux it compiles to
/// the end.
fn end_with_parent() {
    #[cfg(target_os = "linux")]
    let _ = rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL));
}

/// Lowers a limit of this process; never raises it.
fn lower(resource: Resource, to: u64) -> rustix::io::Result<()> {
    let now = getrlimit(resource);
    let min = |limit: Option<u64>| Some(limit.map_or(to, |l| l.min(to)));
    setrlimit(resource, Rlimit { current: min(now.current), maximum: min(now.maximum) })
}

/// Checks that a cache folder is private and writable. Errors: the reason, as text.
pub(super) fn usable_folder(dir: &Path) -> Result<(), String> {
    let real = private_folder(dir).map_err(|e| match e {
        WitnessError::Compile(why) => why,
        e => e.to_string(),
    })?;
    let probe = tempfile::Builder::new().prefix(TEMP_PREFIX).tempfile_in(real);
    // An empty file can be created even on a full disk.
    let written = probe.and_then(|mut file| file.write_all(&[0; PROBE]).and_then(|()| file.flush()));
    written.map_err(|e| format!("the cache folder {}: {}", dir.display(), io_reason(&e)))
}

/// Creates a cache folder if it does not exist and returns its resolved path; checks that this user owns it and that no
/// other can write to it.
pub(super) fn private_folder(dir: &Path) -> Result<PathBuf, WitnessError> {
    let refuse = |why: String| WitnessError::Compile(format!("the cache folder {}: {why}", dir.display()));
    match DirBuilder::new().recursive(true).mode(0o700).create(dir) {
        Err(e) if e.kind() != ErrorKind::AlreadyExists => return Err(refuse(io_reason(&e))),
        _ => {}
    }
    let real = dir.canonicalize().map_err(|e| refuse(io_reason(&e)))?;
    let found: Metadata = real.metadata().map_err(|e| refuse(io_reason(&e)))?;
    let (mode, user) = (found.mode() & 0o7777, rustix::process::geteuid().as_raw());
    if !found.is_dir() {
        return Err(refuse("not a folder".into()));
    }
    if found.uid() != user {
        return Err(refuse(format!("expected user {user} to own it, got user {}", found.uid())));
    }
    if mode & 0o022 != 0 {
        return Err(refuse(format!("expected that only its owner can write to it (mode 0700), got mode {mode:04o}")));
    }
    Ok(real)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    /// Returns machine code whose description of the module is cut off, as wasmtime writes it into its cache.
    fn damaged(mut elf: Vec<u8>) -> Vec<u8> {
        let word = |elf: &[u8], at: usize| u64::from_le_bytes(*elf[at..].first_chunk().unwrap()) as usize;
        let half = |elf: &[u8], at: usize| usize::from(u16::from_le_bytes(*elf[at..].first_chunk().unwrap()));
        // The section headers of an ELF file: 64 bytes each, with the place of the name at 0, of the content at 24 and
        // its size at 32.
        let (headers, count, names) = (word(&elf, 40), half(&elf, 60), half(&elf, 62));
        let names = word(&elf, headers + 64 * names + 24);
        let header = |i: usize| headers + 64 * i;
        let found = (0..count).map(header).find(|at| {
            let name = names + u32::from_le_bytes(*elf[*at..].first_chunk().unwrap()) as usize;
            elf[name..].starts_with(b".wasmtime.info\0")
        });
        let size = found.unwrap() + 32;
        let less = word(&elf, size) as u64 / 2;
        elf[size..size + 8].copy_from_slice(&less.to_le_bytes());

        // A zstd frame with a window of 1 MiB, of blocks that are not compressed.
        let mut file = vec![0x28, 0xb5, 0x2f, 0xfd, 0, 0x50];
        let last = elf.len().div_ceil(PROBE) - 1;
        for (i, block) in elf.chunks(PROBE).enumerate() {
            let header = (block.len() as u32) << 3 | u32::from(i == last);
            file.extend_from_slice(&header.to_le_bytes()[..3]);
            file.extend_from_slice(block);
        }
        file
    }

    fn machine_code(folder: &Path) -> Vec<PathBuf> {
        let mut found = Vec::new();
        for entry in std::fs::read_dir(folder).into_iter().flatten() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                found.extend(machine_code(&path));
            } else if path.extension().is_none() {
                found.push(path);
            }
        }
        found
    }

    #[test]
    fn damaged_machine_code_is_removed_before_a_child_compiles_again() {
        let folder = tempfile::TempDir::new().unwrap();
        let dir = folder.path().join("modules");
        let calls = folder.path().join("calls");
        // A child that only notes how many files of machine code it finds. The parent then compiles itself.
        let compiler = folder.path().join("compiler");
        let count = "find \"$5/cache\" -type f ! -name '*.*' | wc -l";
        std::fs::write(&compiler, format!("#!/bin/sh\n{count} >> '{}'\n", calls.display())).unwrap();
        std::fs::set_permissions(&compiler, std::fs::Permissions::from_mode(0o700)).unwrap();

        let wasm = include_bytes!("../../circuits/multiplier.wasm");
        let outline = Outline::read(wasm).unwrap();
        let sandbox = Sandbox::get(Some(&dir)).unwrap();
        let minute = Duration::from_secs(60);
        let limits = Limits { time: minute, memory: 1 << 30, compile_time: 5 * minute, compile_memory: 1 << 30 };
        for rewrite in [true, false] {
            let cache = ModuleCache { dir: Some(dir.clone()), compiler: Some(compiler.clone()), rewrite };
            let load = || program(&sandbox, wasm, &outline, &limits, &cache).unwrap().rewritten.is_some();
            let (engine, bytes) = match rewrite.then(|| rewrite::rewrite(wasm).unwrap()) {
                Some((bytes, _)) => {
                    Entry::of(&sandbox, &dir, wasm, rewrite).put(&bytes).unwrap();
                    (&sandbox.rewritten.engine, bytes)
                }
                None => (&sandbox.plain.engine, wasm.to_vec()),
            };
            let _ = std::fs::remove_file(&calls);
            sandbox.remove_machine_code();
            let told = || std::fs::read_to_string(&calls).unwrap_or_default().split_whitespace().collect::<String>();
            assert_eq!((load(), told().as_str()), (rewrite, "0"));
            let code = machine_code(&dir.join("cache"));
            let [file] = &code[..] else { panic!("{code:?}") };
            assert_eq!((load(), told().as_str()), (rewrite, "0"), "it is found");

            std::fs::write(file, damaged(engine.precompile_module(&bytes).unwrap())).unwrap();
            let e = compile(engine, &bytes).unwrap_err();
            assert!(e.to_string().contains("Hit the end of buffer"), "{e}");
            assert_eq!((load(), told().as_str()), (rewrite, "00"), "the child found the damaged file");
            assert_eq!((load(), told().as_str()), (rewrite, "00"), "it is found again");
        }
    }
}
