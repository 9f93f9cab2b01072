//! Compiling modules within bounds, and keeping them.
//!
//! The compiler is the one part of the sandbox that an untrusted module can make slow or hungry without running at
//! all. A thread cannot be ended and its memory cannot be capped, so the compile runs in a child process where there
//! is a folder to hand its result over: the child fills wasmtime's own cache, and the parent loads from there. A marker
//! file says that a module has compiled within its bounds here; with one, the parent asks the cache alone, and
//! compiles again by itself (at a known cost) if the cached file is gone or damaged.

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

/// Longest function compiled in this process, bytes. The longest that are known (tables of Poseidon's constants, made
/// by assigning each element) have 0.3 MB.
const MAX_FUNCTION: u64 = 8 << 20;
/// Bytes of a child's complaint that are read.
const MAX_STDERR: u64 = 16 << 10;
/// How often a child is looked at.
const POLL: Duration = Duration::from_millis(5);
/// Threads of a child's compiler. Each reserves address space, which is limited too.
const MAX_THREADS: usize = 8;
/// Address space that a child may take beyond its memory: its program, its stacks, its allocator's reserves.
const ADDRESS_SLACK: u64 = 4 << 30;

/// The compiled program: from the cache, from a child, or compiled here.
pub(super) fn program(
    sandbox: &Sandbox,
    wasm: &[u8],
    outline: &Outline,
    limits: &Limits,
    cache: &ModuleCache,
) -> Result<Program, WitnessError> {
    // A time that no clock can tell is no bound.
    let deadline = Instant::now().checked_add(limits.compile_time);
    let compile = |module: &Made| match module {
        Made::Plain => {
            let module = compile_here(&sandbox.plain.engine, wasm, limits, deadline).map_err(|e| {
                match validate(sandbox, wasm) {
                    Err(invalid) => invalid,
                    Ok(()) => e,
                }
            })?;
            Ok(Program { module, rewritten: None })
        }
        Made::Rewritten(bytes, rewritten) => {
            let module = compile_here(&sandbox.rewritten.engine, bytes, limits, deadline)?;
            Ok(Program { module, rewritten: Some(*rewritten) })
        }
    };
    let in_time = || deadline.is_none_or(|d| Instant::now() < d);
    if let (Some(kept), Some(compiler)) = (&sandbox.cache, &cache.compiler) {
        let entry = Entry::of(sandbox, &kept.dir, wasm, cache.rewrite);
        if let Some(found) = entry.find() {
            match compile(&found) {
                // A damaged file; a child makes it anew.
                Err(e) if matches!(found, Made::Rewritten(..)) && in_time() => {
                    tracing::warn!(error = %e, "a rewritten witness program does not compile");
                }
                done => return done,
            }
        }
        outline::check_nesting(wasm)?;
        validate(sandbox, wasm)?;
        compile_by_child(compiler, &kept.dir, wasm, limits, cache.rewrite, deadline)?;
        return compile(&entry.made()?);
    }
    if outline.longest_function > MAX_FUNCTION {
        return Err(WitnessError::Compile(format!(
            "expected functions of at most {MAX_FUNCTION} bytes, got one of {}",
            outline.longest_function
        )));
    }
    outline::check_nesting(wasm)?;
    match cache.rewrite.then(|| rewrite::rewrite(wasm)).flatten() {
        Some((bytes, rewritten)) => compile(&Made::Rewritten(bytes, rewritten)),
        None => compile(&Made::Plain),
    }
}

/// What is compiled of a module.
enum Made {
    /// The module as it came.
    Plain,
    /// What it became.
    Rewritten(Vec<u8>, Rewritten),
}

/// What a cache folder has of a module.
struct Entry {
    /// Says that it compiled within its bounds, and whether it was rewritten.
    marker: PathBuf,
    /// The rewritten module.
    module: PathBuf,
}

/// In a marker of a module that was rewritten.
const REWRITTEN: &[u8] = b"rewritten\n";
/// How long a rewritten module is kept before it is made again.
const KEPT: Duration = Duration::from_secs(90 * 24 * 3600);

impl Entry {
    /// Named by the module together with everything that its compiled form depends on.
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

    /// Nothing where the module has not been compiled here, or its rewritten form is gone or damaged.
    fn find(&self) -> Option<Made> {
        match std::fs::read(&self.marker).ok()?.as_slice() {
            REWRITTEN => {
                let bytes = std::fs::read(&self.module).ok()?;
                let rewritten = Rewritten::read(&bytes)?;
                Some(Made::Rewritten(bytes, rewritten))
            }
            _ => Some(Made::Plain),
        }
    }

    /// What a child has just made; remembers it. Without the marker the next load only compiles again.
    fn made(&self) -> Result<Made, WitnessError> {
        let made = match std::fs::read(&self.module) {
            Ok(bytes) => Rewritten::read(&bytes).map(|rewritten| Made::Rewritten(bytes, rewritten)),
            Err(e) if e.kind() == ErrorKind::NotFound => Some(Made::Plain),
            Err(_) => None,
        };
        let made = made.ok_or_else(|| WitnessError::Compile("what its compiler made could not be read".into()))?;
        let _ = std::fs::write(&self.marker, if matches!(made, Made::Plain) { &[] } else { REWRITTEN });
        Ok(made)
    }

    /// Puts the rewritten module there, whole or not at all.
    fn put(&self, bytes: &[u8]) -> std::io::Result<()> {
        let dir = self.module.parent().unwrap_or(Path::new("."));
        let mut file = tempfile::Builder::new().prefix(HANDED).tempfile_in(dir)?;
        file.write_all(bytes)?;
        file.as_file().sync_all()?;
        file.persist(&self.module)?;
        Ok(())
    }
}

fn validate(sandbox: &Sandbox, wasm: &[u8]) -> Result<(), WitnessError> {
    Module::validate(&sandbox.plain.engine, wasm)
        .map_err(|e| WitnessError::Module(format!("the module is not valid: {}", clip(&e.to_string()))))
}

/// Compiles on a thread, which is left to itself when the time is over.
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
            // Nobody listens any more when the time is over.
            let _ = done.send(Module::new(&engine, &bytes));
        })
        .map_err(|e| WitnessError::Compile(format!("no thread to compile on: {e}")))?;
    let left = deadline.map_or(Duration::MAX, |d| d.saturating_duration_since(Instant::now()));
    match result.recv_timeout(left) {
        Ok(Ok(module)) => Ok(module),
        Ok(Err(e)) => Err(WitnessError::Compile(clip(&e.to_string()))),
        Err(RecvTimeoutError::Timeout) => Err(too_slow(limits)),
        Err(RecvTimeoutError::Disconnected) => Err(WitnessError::Compile("the compiler broke".into())),
    }
}

fn too_slow(limits: &Limits) -> WitnessError {
    WitnessError::Compile(format!("it took longer than {:?}", limits.compile_time))
}

/// Ends the child, whichever way its guard is left.
struct Guarded(Child);

impl Drop for Guarded {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Names of modules on their way to a child.
const HANDED: &str = ".compiling-";
/// Bytes written to a cache folder, to see that it takes them.
const PROBE: usize = 64 << 10;
/// No compile takes so long.
const ABANDONED: Duration = Duration::from_secs(24 * 3600);

/// Removes modules that a parent which was killed left behind, and rewritten ones of long ago.
fn sweep(dir: &Path) {
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        let age = || entry.metadata().ok()?.modified().ok()?.elapsed().ok();
        let name = entry.file_name();
        let name = name.to_string_lossy();
        let limit = match () {
            () if name.starts_with(HANDED) => ABANDONED,
            () if name.ends_with(".wasm") => KEPT,
            () => continue,
        };
        if age().is_some_and(|age| age > limit) {
            // A failure leaves a file that nobody needs, no more.
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
    let handing =
        |e: std::io::Error| WitnessError::Compile(format!("the module could not be written for it: {}", io_reason(&e)));
    let mut file = tempfile::Builder::new().prefix(HANDED).tempfile_in(dir).map_err(handing)?;
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

    // A thread, so that a child which fills the pipe cannot hold up the deadline. It ends when the pipe does.
    let pipe = child.0.stderr.take();
    let (send, complaint) = mpsc::channel();
    let reader = thread::Builder::new().name("witness-stderr".into()).spawn(move || {
        let Some(mut pipe) = pipe else { return };
        let mut text = Vec::new();
        let _ = pipe.by_ref().take(MAX_STDERR).read_to_end(&mut text);
        let _ = send.send(String::from_utf8_lossy(&text).into_owned());
        let _ = std::io::copy(&mut pipe, &mut std::io::sink());
    });
    reader.map_err(|e| WitnessError::Compile(format!("no thread to listen to its compiler: {e}")))?;

    let status = loop {
        match child.0.try_wait() {
            Ok(Some(status)) => break status,
            Ok(None) if deadline.is_some_and(|d| Instant::now() >= d) => return Err(too_slow(limits)),
            Ok(None) => thread::sleep(POLL),
            Err(e) => return Err(WitnessError::Compile(format!("its compiler was lost: {e}"))),
        }
    };
    if status.success() {
        return Ok(());
    }
    // A grandchild may hold the pipe open: do not wait for it.
    let text = complaint.recv_timeout(Duration::from_millis(200)).unwrap_or_default();
    Err(WitnessError::Compile(explain(status, &text, limits.compile_memory)))
}

/// One sentence for how a child failed.
fn explain(status: ExitStatus, stderr: &str, memory: u64) -> String {
    // The words of Rust's allocator as it gives up, and of a thread that gets no stack.
    if stderr.contains("memory allocation of") || stderr.contains("Cannot allocate memory") {
        return format!("it takes more than {memory} bytes of memory");
    }
    let lines = || stderr.lines().map(str::trim).filter(|l| !l.is_empty());
    let said = lines().find_map(|l| l.strip_prefix("error: ")).or(lines().next_back());
    // The child's sentence begins as the one does that this one goes into.
    let prefix = WitnessError::Compile(String::new()).to_string();
    let said = said.map(|l| clip(l.strip_prefix(&prefix).unwrap_or(l)));
    match (said, status.signal()) {
        (Some(said), None) => said,
        (Some(said), Some(signal)) => format!("its compiler was ended by signal {signal}: {said}"),
        (None, Some(signal)) => format!("its compiler was ended by signal {signal}"),
        (None, None) => format!("its compiler failed with {status}"),
    }
}

/// Compiles a module into a cache folder, under a memory limit that it sets for the whole process: for a child that
/// does nothing else (`compile-witness --wasm FILE --cache DIR --memory BYTES [--plain]`). With `rewrite`, and if it can
/// be, what is compiled is the module rewritten, which goes into the folder too. On Linux it ends with the thread that
/// started it; elsewhere the limit is kept as far as the system does.
///
/// Errors: `Module` for no witness program, `Compile` for what the compiler, the folder or the limits refuse. A
/// process that meets the memory limit aborts.
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
        .map_err(|e| WitnessError::Compile(format!("no threads to compile on: {e}")))?;
    let compile = |engine, bytes: &[u8]| pool.install(|| Module::new(engine, bytes));
    let entry = sandbox.cache.as_ref().map(|kept| Entry::of(&sandbox, &kept.dir, &bytes, rewrite));
    if let (Some((anew, _)), Some(entry)) = (rewrite.then(|| rewrite::rewrite(&bytes)).flatten(), entry) {
        let done = compile(&sandbox.rewritten.engine, &anew);
        done.map_err(|e| WitnessError::Compile(clip(&e.to_string())))?;
        return entry
            .put(&anew)
            .map_err(|e| WitnessError::Compile(format!("what it became could not be written: {}", io_reason(&e))));
    }
    match compile(&sandbox.plain.engine, &bytes) {
        Ok(_) => Ok(()),
        Err(e) => {
            validate(&sandbox, &bytes)?;
            Err(WitnessError::Compile(clip(&e.to_string())))
        }
    }
}

/// One byte more than allowed at most, so that a file which grows meanwhile is refused, not read.
fn read_module(path: &Path) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(outline::MAX_MODULE as u64 + 1).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Has this process killed when the thread that started it ends; elsewhere than on Linux it compiles to its end.
fn end_with_parent() {
    #[cfg(target_os = "linux")]
    let _ = rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL));
}

/// Lowers a limit of this process, never raises it.
fn lower(resource: Resource, to: u64) -> rustix::io::Result<()> {
    let now = getrlimit(resource);
    let min = |limit: Option<u64>| Some(limit.map_or(to, |l| l.min(to)));
    setrlimit(resource, Rlimit { current: min(now.current), maximum: min(now.maximum) })
}

/// Whether a cache folder is one, and can be written to; or in words, why not.
pub(super) fn usable_folder(dir: &Path) -> Result<(), String> {
    let real = private_folder(dir).map_err(|e| match e {
        WitnessError::Compile(why) => why,
        e => e.to_string(),
    })?;
    let probe = tempfile::Builder::new().prefix(HANDED).tempfile_in(real);
    // A full disk still takes an empty file.
    let written = probe.and_then(|mut file| file.write_all(&[0; PROBE]).and_then(|()| file.flush()));
    written.map_err(|e| format!("the cache folder {}: {}", dir.display(), io_reason(&e)))
}

/// A cache folder, made if it is not there: with its links resolved, owned by this user, and no other can write to it.
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
        return Err(refuse("it is no folder".into()));
    }
    if found.uid() != user {
        return Err(refuse(format!("expected user {user} to own it, got user {}", found.uid())));
    }
    if mode & 0o022 != 0 {
        return Err(refuse(format!("expected that nobody else can write to it (mode 0700), got mode {mode:04o}")));
    }
    Ok(real)
}
