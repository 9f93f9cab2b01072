//! Compilation in a bounded child process, and the folder of compiled modules.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use tempfile::TempDir;

use super::*;

/// A private folder, and the compilers that run in tests. One at a time: a script that is still open for writing, if
/// only in a child that another test is just starting, cannot be run.
struct Fixture {
    folder: TempDir,
    _alone: MutexGuard<'static, ()>,
}

impl Fixture {
    fn new() -> Self {
        static ALONE: Mutex<()> = Mutex::new(());
        let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        Self { folder: TempDir::new().unwrap(), _alone }
    }

    fn dir(&self) -> PathBuf {
        self.folder.path().join("cache")
    }

    /// A compiler that is a shell script.
    fn script(&self, body: &str) -> PathBuf {
        let path = self.folder.path().join("compiler");
        std::fs::write(&path, format!("#!/bin/sh\n{body}\n")).unwrap();
        std::fs::set_permissions(&path, Permissions::from_mode(0o700)).unwrap();
        path
    }

    /// A compiler that is this test program's `child`, with the parameters of the real one. Each call appends a line to
    /// `calls`.
    fn real(&self) -> PathBuf {
        let calls = self.folder.path().join("calls");
        let this = std::env::current_exe().unwrap();
        self.script(&format!(
            "echo \"$1 $2 $4 $6\" >> '{}'\n\
             WITNESS_CHILD_WASM=\"$3\" WITNESS_CHILD_CACHE=\"$5\" WITNESS_CHILD_MEMORY=\"$7\" WITNESS_CHILD_WAY=\"$8\" \
             exec '{}' --exact cache::child --ignored --nocapture",
            calls.display(),
            this.display()
        ))
    }

    fn calls(&self) -> usize {
        let calls = std::fs::read_to_string(self.folder.path().join("calls")).unwrap_or_default();
        for line in calls.lines() {
            assert_eq!(line, "compile-witness --wasm --cache --memory");
        }
        calls.lines().count()
    }

    fn cache(&self, compiler: PathBuf) -> ModuleCache {
        ModuleCache { dir: Some(self.dir()), compiler: Some(compiler), rewrite: true }
    }

    /// Returns the files of compiled code; the cache's own bookkeeping is next to them, under names with dots.
    fn compiled(&self) -> Vec<PathBuf> {
        let mut found = Vec::new();
        let mut folders = vec![self.dir().join("cache")];
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(folder).into_iter().flatten() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    folders.push(path);
                } else if !path.file_name().unwrap().to_str().unwrap().contains('.') {
                    found.push(path);
                }
            }
        }
        found
    }
}

/// Not a test: the bounded child of the other tests. Its limits apply to the whole process.
#[test]
#[ignore = "run by other tests, as their child"]
fn child() {
    let get = |name: &str| std::env::var(name).unwrap();
    let memory = get("WITNESS_CHILD_MEMORY").parse().unwrap();
    let (wasm, cache) = (get("WITNESS_CHILD_WASM"), get("WITNESS_CHILD_CACHE"));
    let rewrite = match get("WITNESS_CHILD_WAY").as_str() {
        "" => true,
        "--plain" => false,
        other => panic!("{other}"),
    };
    if let Err(e) = prover_worker::witness::compile_into_cache(Path::new(&wasm), Path::new(&cache), memory, rewrite) {
        eprintln!("error: {e}");
        std::process::exit(1);
    }
}

fn right(program: &WasmWitness) {
    let input = circuit_file("mimc_preimage.input.json");
    let witness = generate(program, std::str::from_utf8(&input).unwrap()).unwrap();
    assert!(wtns(&witness) == circuit_file("mimc_preimage.wtns"));
}

#[test]
fn the_second_load_is_served_from_the_cache() {
    let fixture = Fixture::new();
    let cache = fixture.cache(fixture.real());
    let wasm = circuit_file("mimc_preimage.wasm");
    right(&WasmWitness::load(&wasm, AMPLE, &cache).unwrap());
    assert_eq!((fixture.calls(), fixture.compiled().len()), (1, 1));
    assert_eq!(fixture.dir().metadata().unwrap().permissions().mode() & 0o777, 0o700);
    let when = fixture.compiled()[0].metadata().unwrap().modified().unwrap();
    right(&WasmWitness::load(&wasm, AMPLE, &cache).unwrap());
    assert_eq!(fixture.calls(), 1, "the marker is not heeded");
    assert_eq!(fixture.compiled()[0].metadata().unwrap().modified().unwrap(), when, "compiled again");
    // Another module is compiled separately.
    WasmWitness::load(&circuit_file("multiplier.wasm"), AMPLE, &cache).unwrap();
    assert_eq!((fixture.calls(), fixture.compiled().len()), (2, 2));
    // Nothing is left of the modules passed to the compiler.
    let left = std::fs::read_dir(fixture.dir()).unwrap().map(|f| f.unwrap().file_name().into_string().unwrap());
    assert_eq!(left.filter(|n| n.starts_with(".compiling")).count(), 0);
}

#[test]
fn a_damaged_or_lost_cache_file_is_survived() {
    let fixture = Fixture::new();
    let cache = fixture.cache(fixture.real());
    let wasm = circuit_file("mimc_preimage.wasm");
    WasmWitness::load(&wasm, AMPLE, &cache).unwrap();
    let file = fixture.compiled().pop().unwrap();
    let whole = std::fs::read(&file).unwrap();
    for damaged in [&b""[..], &b"not what it was"[..], &whole[..whole.len() / 2]] {
        std::fs::write(&file, damaged).unwrap();
        right(&WasmWitness::load(&wasm, AMPLE, &cache).unwrap());
    }
    std::fs::remove_file(&file).unwrap();
    right(&WasmWitness::load(&wasm, AMPLE, &cache).unwrap());
    assert_eq!(fixture.calls(), 1);
    assert_eq!(fixture.compiled().len(), 1, "it is kept again: {:?}", fixture.compiled());
}

#[test]
fn the_rewritten_module_is_kept_and_made_again_if_it_is_lost() {
    let fixture = Fixture::new();
    let cache = fixture.cache(fixture.real());
    let wasm = circuit_file("mimc_preimage.wasm");
    let load = |cache: &ModuleCache| {
        let program = WasmWitness::load(&wasm, AMPLE, cache).unwrap();
        right(&program);
        program.info().rewritten
    };
    let rewritten = load(&cache).unwrap();
    let module = std::fs::read_dir(fixture.dir()).unwrap().map(|f| f.unwrap().path());
    let module = module.into_iter().find(|f| f.extension().is_some_and(|e| e == "wasm")).unwrap();
    assert_eq!((load(&cache), fixture.calls()), (Some(rewritten), 1));
    // Lost: compiled again.
    std::fs::remove_file(&module).unwrap();
    assert_eq!((load(&cache), fixture.calls()), (Some(rewritten), 2));
    // Damaged: likewise, wherever the damage shows.
    let whole = std::fs::read(&module).unwrap();
    let mut invalid = whole.clone();
    // The type of the first function, which is after the frame, the section's number and its length.
    invalid[12] ^= 0x40;
    // One bit of a constant of the field, with which everything is multiplied: the module is as valid as before.
    let mut wrong = whole.clone();
    let r2 = 0x1bb8_e645_ae21_6da7_u64.to_le_bytes();
    let at = whole.windows(8).rposition(|bytes| bytes == r2).unwrap();
    wrong[at] ^= 1;
    for (damaged, calls) in
        [&b""[..], &whole[..whole.len() / 2], b"\0asm\x01\0\0\0", &invalid, &wrong].into_iter().zip(3..)
    {
        std::fs::write(&module, damaged).unwrap();
        assert_eq!((load(&cache), fixture.calls()), (Some(rewritten), calls));
        assert!(std::fs::read(&module).unwrap() == whole, "it is made again");
    }
    // So is the marker.
    let marker = module.with_extension("compiled");
    let whole = std::fs::read(&marker).unwrap();
    for (damaged, calls) in [&b""[..], &whole[..20], b"plain", b"rewritten\n"].into_iter().zip(8..) {
        std::fs::write(&marker, damaged).unwrap();
        assert_eq!((load(&cache), fixture.calls()), (Some(rewritten), calls));
        assert!(std::fs::read(&marker).unwrap() == whole);
    }
    // Without rewriting: an entry of its own.
    let plain = ModuleCache { rewrite: false, ..cache.clone() };
    assert_eq!((load(&plain), fixture.calls()), (None, 12));
    assert_eq!((load(&plain), fixture.calls()), (None, 12));
}

#[test]
fn a_folder_that_others_may_write_to_is_refused() {
    let fixture = Fixture::new();
    std::fs::create_dir(fixture.dir()).unwrap();
    let cache = ModuleCache { dir: Some(fixture.dir()), compiler: None, rewrite: true };
    let load = || WasmWitness::load(&circuit_file("multiplier.wasm"), AMPLE, &cache);
    for mode in [0o777, 0o770, 0o702, 0o1777] {
        std::fs::set_permissions(fixture.dir(), Permissions::from_mode(mode)).unwrap();
        let e = load().unwrap_err().to_string();
        assert!(e.contains("only its owner can write to it") && e.contains(&format!("{mode:04o}")), "{e}");
    }
    std::fs::set_permissions(fixture.dir(), Permissions::from_mode(0o755)).unwrap();
    load().unwrap();
    // A mode that is changed later is noticed, although the engine exists already.
    std::fs::set_permissions(fixture.dir(), Permissions::from_mode(0o722)).unwrap();
    assert!(load().is_err());
    let file = fixture.folder.path().join("file");
    std::fs::write(&file, "").unwrap();
    let at_file = ModuleCache { dir: Some(file), compiler: None, rewrite: true };
    assert!(matches!(
        WasmWitness::load(&circuit_file("multiplier.wasm"), AMPLE, &at_file),
        Err(WitnessError::Compile(_))
    ));
}

#[test]
fn without_a_compiler_the_cache_serves_this_process() {
    let fixture = Fixture::new();
    let cache = ModuleCache { dir: Some(fixture.dir()), compiler: None, rewrite: true };
    for _ in 0..2 {
        right(&WasmWitness::load(&circuit_file("mimc_preimage.wasm"), AMPLE, &cache).unwrap());
        assert_eq!(fixture.compiled().len(), 1);
    }
}

/// Returns the error of a load with this script as compiler.
fn failed(body: &str, limits: Limits) -> String {
    let fixture = Fixture::new();
    let cache = fixture.cache(fixture.script(body));
    match WasmWitness::load(&circuit_file("multiplier.wasm"), limits, &cache) {
        Err(WitnessError::Compile(e)) => e,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_child_is_ended_at_its_deadline() {
    let limits = Limits { compile_time: Duration::from_millis(300), ..AMPLE };
    assert_eq!(failed("exec sleep 600", limits), "it took longer than 300ms");
    // Even one that prints without end.
    assert_eq!(failed("while :; do echo talk >&2; done", limits), "it took longer than 300ms");
}

#[test]
fn a_child_that_fails_is_told_in_one_sentence() {
    assert_eq!(failed("exit 3", AMPLE), "its compiler failed with exit status: 3");
    assert_eq!(failed("echo warning; echo 'error: no luck' >&2; exit 1", AMPLE), "no luck");
    let own = WitnessError::Compile("no luck".into());
    assert_eq!(failed(&format!("echo 'error: {own}' >&2; exit 1"), AMPLE), "no luck");
    assert_eq!(failed("echo one >&2; echo two >&2; exit 1", AMPLE), "two");
    assert_eq!(failed("kill -9 $$", AMPLE), "its compiler was ended by signal 9");
    let long = failed("head -c 100000 /dev/zero | tr '\\0' x >&2; exit 1", AMPLE);
    assert!(long.len() < 200, "{}", long.len());
    let control = failed("printf 'error: \\033[31mred' >&2; exit 1", AMPLE);
    assert!(!control.contains('\u{1b}'), "{control}");
    let fixture = Fixture::new();
    let cache = fixture.cache(fixture.folder.path().join("none"));
    let e = WasmWitness::load(&circuit_file("multiplier.wasm"), AMPLE, &cache).unwrap_err().to_string();
    assert!(e.contains("could not be started"), "{e}");
}

#[test]
fn a_compile_that_wants_too_much_memory_is_ended() {
    let fixture = Fixture::new();
    let cache = fixture.cache(fixture.real());
    let body = "(local.set 0 (i32.mul (i32.add (local.get 0) (i32.load (local.get 0))) (i32.const 3)))".repeat(400_000);
    let wasm = wat::parse_str(format!(
        "(module (import \"runtime\" \"exceptionHandler\" (func (param i32))) (memory (export \"memory\") 1)
         (func (export \"getVersion\") (result i32) i32.const 2) (func (export \"init\") (param i32) {body}))"
    ))
    .unwrap();
    let limits = Limits { compile_memory: 192 << 20, ..AMPLE };
    let e = WasmWitness::load(&wasm, limits, &cache).unwrap_err();
    assert_eq!(e, WitnessError::Compile("it takes more than 201326592 bytes of memory".into()));
    assert_eq!(fixture.calls(), 1);
    // This process continues, and the same limit suffices for an honest program.
    right(&WasmWitness::load(&circuit_file("mimc_preimage.wasm"), limits, &cache).unwrap());
}

/// The parent does not validate modules, because that can take long, and it has no limits.
#[test]
fn an_invalid_module_is_told_by_the_child() {
    let fixture = Fixture::new();
    let cache = fixture.cache(fixture.real());
    let wasm = circuit_file("multiplier.wasm");
    let truncated = &wasm[..wasm.len() - 1];
    assert!(matches!(WasmWitness::load(truncated, AMPLE, &cache), Err(WitnessError::Module(_))));
    assert_eq!(fixture.calls(), 0);
    let untyped = wat::parse_str("(module (func (export \"getVersion\") (result i64) i32.const 0))").unwrap();
    let e = WasmWitness::load(&untyped, AMPLE, &cache).unwrap_err();
    assert!(
        matches!(&e, WitnessError::Module(why) if why.starts_with("the module is not valid: type mismatch")),
        "{e}"
    );
    assert_eq!(fixture.calls(), 1);
    // The same without a child.
    assert_eq!(WasmWitness::load(&untyped, AMPLE, &NO_CACHE).unwrap_err(), e);
}
