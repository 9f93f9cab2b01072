//! Malicious programs, and files that are not programs: each ends promptly with the right error.
//!
//! Limits are small here. What must be prompt is given far more time than it needs, so that only a hang fails.

use std::collections::BTreeMap;
use std::time::Instant;

use prover_worker::model::StopReason;
use prover_worker::witness::InputError;

use super::*;

/// Limits that a hostile program reaches soon, except for the time: an honest one has enough on the busiest machine.
const SMALL: Limits = Limits {
    time: Duration::from_secs(60),
    memory: 64 << 20,
    compile_time: Duration::from_secs(60),
    compile_memory: 1 << 30,
};

/// Like [`SMALL`], for programs that never end.
const BRIEF: Limits = Limits { time: Duration::from_millis(300), ..SMALL };

/// A program in WebAssembly text with the functions of circom 2's: one input, a witness of 1 and 0. Parts are replaced
/// to make it misbehave.
struct Program {
    functions: BTreeMap<&'static str, String>,
    imports: String,
    memory: String,
    prime: String,
    more: String,
}

impl Program {
    fn new() -> Self {
        Self {
            functions: circom2::FUNCTIONS.map(|(n, b)| (n, b.to_owned())).into(),
            imports: String::new(),
            memory: "(memory (export \"memory\") 1)".into(),
            prime: circom2::prime(),
            more: String::new(),
        }
    }

    fn with(mut self, function: &'static str, body: &str) -> Self {
        self.functions.insert(function, body.to_owned());
        self
    }

    fn without(mut self, function: &str) -> Self {
        self.functions.remove(function).unwrap();
        self
    }

    fn more(mut self, text: &str) -> Self {
        self.more.push_str(text);
        self
    }

    fn import(mut self, text: &str) -> Self {
        self.imports.push_str(text);
        self
    }

    fn memory(mut self, text: &str) -> Self {
        self.memory = text.to_owned();
        self
    }

    fn wasm(&self) -> Vec<u8> {
        let mut text = format!(
            "(module (import \"runtime\" \"exceptionHandler\" (func $exception (param i32)))
             (import \"runtime\" \"printErrorMessage\" (func $message))
             (import \"runtime\" \"writeBufferMessage\" (func $log)) {} {} (data (i32.const 32) \"{}\") {}\n",
            self.imports, self.memory, self.prime, self.more
        );
        for (name, body) in &self.functions {
            text.push_str(&format!("(func ${name} (export \"{name}\") {body})\n"));
        }
        text.push(')');
        wat::parse_str(&text).unwrap()
    }

    fn load(&self, limits: Limits) -> Result<WasmWitness, WitnessError> {
        prompt(|| WasmWitness::load(&self.wasm(), limits, &NO_CACHE))
    }

    /// Loads and runs the program.
    fn run(&self, limits: Limits) -> Result<Witness, WitnessError> {
        let program = self.load(limits)?;
        prompt(|| generate(&program, r#"{"a": 7}"#))
    }

    /// Returns the error of loading and running it.
    fn error(&self) -> WitnessError {
        self.run(SMALL).map(|w| w.values().to_vec()).unwrap_err()
    }

    /// Returns the error of a program that never ends.
    fn endless(&self) -> WitnessError {
        self.run(BRIEF).map(|w| w.values().to_vec()).unwrap_err()
    }
}

/// Fails if `work` hangs; the bound is twenty times what any of these needs, on a busy machine.
fn prompt<T>(work: impl FnOnce() -> T) -> T {
    let start = Instant::now();
    let out = work();
    assert!(start.elapsed() < Duration::from_secs(30), "took {:?}", start.elapsed());
    out
}

fn is_module(e: &WitnessError, says: &str) {
    assert!(matches!(e, WitnessError::Module(_)), "{e:?}");
    assert!(e.to_string().contains(says), "{e}");
}

fn is_trap(e: &WitnessError, says: &str) {
    assert!(matches!(e, WitnessError::Trap(_)), "{e:?}");
    assert!(e.to_string().contains(says), "{e}");
}

const TIMED_OUT: WitnessError = WitnessError::Stopped(StopReason::TimedOut);
const NO_MEMORY: WitnessError = WitnessError::Memory { limit: SMALL.memory };
const LOOP: &str = "(loop (br 0))";

#[test]
fn the_program_of_these_tests_works_unharmed() {
    let witness = Program::new().run(SMALL).unwrap();
    assert_eq!(witness.values(), [1u64.into(), 0u64.into()]);
}

#[test]
fn the_words_of_the_window_do_where_its_address_is_not_told() {
    assert!(Program::new().without("getSharedRWMemoryStart").run(SMALL).is_ok());
    let hidden = Program::new().without("getSharedRWMemoryStart").memory("(memory 1)");
    assert_eq!(hidden.run(SMALL).unwrap().len(), 2);
}

/// However long a witness may take, `inspect` and `circuits add` run a program for no longer than this.
#[test]
fn a_program_that_never_says_what_it_is_is_given_up_soon() {
    let long = Limits { time: Duration::from_secs(3600), ..SMALL };
    let begun = Instant::now();
    let e = Program::new().with("getVersion", &format!("(result i32) {LOOP} unreachable")).load(long).unwrap_err();
    assert_eq!(e, WitnessError::Silent { limit: Duration::from_secs(4) });
    assert!(e.to_string().contains("took longer than 4s to start"), "{e}");
    assert!(begun.elapsed() < Duration::from_secs(120), "{:?}", begun.elapsed());
}

#[test]
fn an_endless_loop_ends_wherever_it_is() {
    for (function, params) in [
        ("init", "(param i32)"),
        ("setInputSignal", "(param i32 i32 i32)"),
        ("getWitness", "(param i32)"),
        ("getInputSignalSize", "(param i32 i32) (result i32)"),
    ] {
        let body = format!("{params} {LOOP} unreachable");
        assert_eq!(Program::new().with(function, &body).endless(), TIMED_OUT, "{function}");
    }
    // These are called before there is an input.
    let silent = WitnessError::Silent { limit: BRIEF.time };
    for (function, params) in [("getVersion", "(result i32)"), ("getRawPrime", ""), ("getWitnessSize", "(result i32)")]
    {
        let body = format!("{params} {LOOP} unreachable");
        assert_eq!(Program::new().with(function, &body).endless(), silent, "{function}");
    }
    let start = Program::new().more(&format!("(func $forever {LOOP}) (start $forever)"));
    assert_eq!(start.endless(), silent);
}

#[test]
fn a_long_witness_read_slowly_ends_too() {
    // Each call returns at once; there are only too many of them.
    let slow = "(param i32) (local i32) (loop (local.set 1 (i32.add (local.get 1) (i32.const 1)))
        (br_if 0 (i32.lt_u (local.get 1) (i32.const 100000)))) (i32.store (i32.const 0) (i32.const 1))";
    let many = Program::new().memory("(memory (export \"memory\") 128)");
    let many = many.with("getWitnessSize", "(result i32) i32.const 2000000").with("getWitness", slow);
    assert_eq!(many.endless(), TIMED_OUT);
}

#[test]
fn memory_is_capped() {
    let grow = "(param i32) (loop (drop (memory.grow (i32.const 16))) (br 0))";
    assert_eq!(Program::new().with("init", grow).error(), NO_MEMORY);
    let huge = Program::new().with("init", "(param i32) (drop (memory.grow (i32.const 65535)))");
    assert_eq!(huge.error(), NO_MEMORY);
    assert_eq!(Program::new().memory("(memory (export \"memory\") 65536)").error(), NO_MEMORY);
    assert_eq!(Program::new().memory("(memory (export \"memory\") 1025)").error(), NO_MEMORY);
    assert!(Program::new().memory("(memory (export \"memory\") 1024)").run(SMALL).is_ok());
}

/// circom's programs declare the memory that their signals need and grow it for variables, so a separate limit on
/// growth would refuse some of them.
#[test]
fn memory_may_grow_to_the_limit_whatever_was_declared() {
    let generous = Limits { memory: 600 << 20, ..SMALL };
    let touch = "(param i32) (loop (i32.store (i32.mul (memory.grow (i32.const 16)) (i32.const 65536)) (i32.const 1))
        (br 0))";
    let ended = Program::new().with("init", touch).run(generous).unwrap_err();
    assert_eq!(ended, WitnessError::Memory { limit: 600 << 20 });
    for (declared, grown) in [(1, 9000), (9000, 1), (9600, 0)] {
        let memory = format!("(memory (export \"memory\") {declared})");
        let grow =
            format!("(param i32) (if (i32.eq (memory.grow (i32.const {grown})) (i32.const -1)) (then unreachable))");
        let ended = Program::new().memory(&memory).with("init", &grow).run(generous);
        assert!(ended.is_ok(), "{declared} and {grown} pages: {ended:?}");
    }
}

#[test]
fn the_memory_that_circom1_imports_is_capped_as_well() {
    let wasm = circuit_file("multiplier_v1.wasm");
    let load = |memory| WasmWitness::load(&wasm, Limits { memory, ..AMPLE }, &NO_CACHE);
    // It declares 2000 pages.
    let limit = 1999 << 16;
    assert_eq!(load(limit).unwrap_err(), WitnessError::Memory { limit });
    let program = load(2000 << 16).unwrap();
    let witness = generate(&program, std::str::from_utf8(&circuit_file("multiplier_v1.input.json")).unwrap()).unwrap();
    assert!(wtns(&witness) == circuit_file("multiplier_v1.wtns"));
    let import = Program::new().memory("(import \"env\" \"memory\" (memory 65536))");
    assert_eq!(import.error(), NO_MEMORY);
}

#[test]
fn a_witness_too_large_is_refused_before_it_is_allocated() {
    for size in ["-1", "0x7fffffff", "2097153"] {
        let body = format!("(result i32) i32.const {size}");
        assert_eq!(Program::new().with("getWitnessSize", &body).error(), NO_MEMORY, "{size}");
    }
    is_module(&Program::new().with("getWitnessSize", "(result i32) i32.const 0").error(), "its witness is empty");
}

#[test]
fn deep_recursion_is_a_trap() {
    let e = Program::new().with("init", "(param i32) (call $init (local.get 0)) (call $init (local.get 0))").error();
    is_trap(&e, "call stack exhausted (as by recursion without end");
}

#[test]
fn traps_are_told() {
    is_trap(&Program::new().with("init", "(param i32) unreachable").error(), "unreachable");
    is_trap(
        &Program::new().with("getWitness", "(param i32) (drop (i32.load (i32.const -8)))").error(),
        "out of bounds memory access (as by an array in the circuit",
    );
    is_trap(
        &Program::new().with("init", "(param i32) (drop (i32.div_u (i32.const 1) (i32.const 0)))").error(),
        "divide by zero (as by \\ or % in the circuit",
    );
    is_trap(&Program::new().more("(func $t unreachable) (start $t)").error(), "unreachable");
    is_trap(
        &Program::new().more("(table 1 funcref)").with("init", "(param i32) (call_indirect (i32.const 0))").error(),
        "uninit",
    );
}

#[test]
fn tables_are_capped() {
    is_module(&Program::new().more("(table 10000000 funcref)").error(), "10000000 table elements");
    is_trap(
        &Program::new().more("(table 1 funcref)".repeat(5).as_str()).error(),
        "the module has 5 tables, more than 4",
    );
    let grow = "(param i32) (loop (drop (table.grow (ref.null func) (i32.const 100000))) (br 0))";
    is_module(&Program::new().more("(table 1 funcref)").with("init", grow).error(), "table elements, more than");
}

#[test]
fn answers_that_make_no_sense_are_traps() {
    let two = "(param i32) (i32.store (i32.const 0) (i32.const 2))";
    is_trap(&Program::new().with("getWitness", two).error(), "witness value 0 is not 1");
    let above = "(param i32) (i64.store (i32.const 24) (i64.const -1))";
    is_trap(&Program::new().with("getWitness", above).error(), "witness value 0 is not below r");
    let r = "(param i32) (if (local.get 0) (then (memory.copy (i32.const 0) (i32.const 32) (i32.const 32)))
        (else (i32.store (i32.const 0) (i32.const 1)) (memory.fill (i32.const 4) (i32.const 0) (i32.const 28))))";
    is_trap(&Program::new().with("getWitness", r).error(), "witness value 1 is not below r");
}

#[test]
fn a_window_outside_memory_is_not_used() {
    for at in ["-1", "65535", "65505"] {
        let body = format!("(result i32) i32.const {at}");
        assert_eq!(Program::new().with("getSharedRWMemoryStart", &body).run(SMALL).unwrap().len(), 2, "{at}");
    }
}

#[test]
fn exceptions_out_of_place_do_not_pass() {
    for function in ["init", "getWitness"] {
        is_trap(&Program::new().with(function, "(param i32) (call $exception (i32.const 4))").error(), "exception 4");
    }
    let code = |n: &str| {
        Program::new().with("setInputSignal", &format!("(param i32 i32 i32) (call $exception (i32.const {n}))")).error()
    };
    assert_eq!(code("4"), WitnessError::Assert("Assert Failed".into()));
    assert_eq!(code("7"), WitnessError::Assert("Out of bounds array access".into()));
    is_trap(&code("5"), "Not enough memory (circom's exception 5)");
    is_trap(&code("-99"), "Unknown error (circom's exception -99)");
}

#[test]
fn messages_are_capped() {
    // No message ends, and they keep coming.
    let talk = |call: &str| {
        Program::new()
            .with("getMessageChar", "(result i32) i32.const 65")
            .with("init", &format!("(param i32) (loop (call {call}) (br 0))"))
            .endless()
    };
    assert_eq!(talk("$message"), TIMED_OUT);
    assert_eq!(talk("$log"), TIMED_OUT);
    // A long message is cut.
    let e = Program::new()
        .with("getMessageChar", "(result i32) i32.const 65")
        .with("setInputSignal", "(param i32 i32 i32) (call $message) (call $exception (i32.const 4))")
        .error();
    assert_eq!(e, WitnessError::Assert(format!("Assert Failed: {}", "A".repeat(1024))));
    let silent = Program::new().with("getMessageChar", &format!("(result i32) {LOOP} unreachable"));
    assert_eq!(silent.with("init", "(param i32) (call $message)").endless(), TIMED_OUT);
    let none = Program::new().without("getMessageChar").with("init", "(param i32) (call $message)");
    is_trap(&none.error(), "getMessageChar");
    // Its messages cannot write to a terminal.
    let bell = Program::new()
        .more("(global $n (mut i32) (i32.const 0))")
        .with(
            "getMessageChar",
            "(result i32) (global.set $n (i32.add (global.get $n) (i32.const 1)))
            (if (result i32) (i32.lt_u (global.get $n) (i32.const 3)) (then i32.const 27) (else i32.const 0))",
        )
        .with("setInputSignal", "(param i32 i32 i32) (call $message) (call $exception (i32.const 4))");
    assert!(!bell.error().to_string().contains('\u{1b}'));
}

#[test]
fn exports_are_checked() {
    for function in ["init", "setInputSignal", "getWitness", "getRawPrime", "getInputSize", "readSharedRWMemory"] {
        is_module(&Program::new().without(function).error(), &format!("expected export {function}"));
    }
    is_module(&Program::new().with("init", "(param i64)").error(), "expected export init");
    is_module(&Program::new().with("getWitness", "(param i32) (result i32) i32.const 0").error(), "a different type");
    is_module(&Program::new().with("getVersion", "(result i64) i64.const 2").error(), "expected export getVersion");
    let global = Program::new().without("getInputSize").more("(global (export \"getInputSize\") i32 (i32.const 1))");
    is_module(&global.error(), "got an export that is not a function");
    is_module(&Program::new().without("getVersion").error(), "exports neither getVersion");
    let nothing = wat::parse_str("(module)").unwrap();
    is_module(&WasmWitness::load(&nothing, SMALL, &NO_CACHE).unwrap_err(), "exports neither getVersion");
}

#[test]
fn the_version_and_the_field_are_checked() {
    is_module(
        &Program::new().with("getVersion", "(result i32) i32.const 3").error(),
        "expected circom version 2, got 3",
    );
    is_module(&Program::new().with("getFieldNumLen32", "(result i32) i32.const 12").error(), "12 32-bit words");
    is_module(&Program::new().with("getFieldNumLen32", "(result i32) i32.const -1").error(), "32-bit words");
    let mut other = Program::new();
    let q: num_bigint::BigUint =
        "52435875175126190479447740508185965837690552500527637822603658699938581184513".parse().unwrap();
    other.prime = q.to_bytes_le().iter().map(|b| format!("\\{b:02x}")).collect();
    is_module(&other.error(), "(the scalar field of BLS12-381)");
    is_module(&Program::new().with("getRawPrime", "").error(), "got 0");
}

#[test]
fn imports_are_checked() {
    for (text, says) in [
        (r#"(import "wasi_snapshot_preview1" "fd_write" (func (param i32)))"#, "wasi_snapshot_preview1.fd_write"),
        (r#"(import "env" "abort" (func))"#, "env.abort"),
        (r#"(import "runtime" "exec" (func))"#, "runtime.exec"),
        (r#"(import "env" "table" (table 1 funcref))"#, "env.table"),
        (r#"(import "env" "g" (global i32))"#, "env.g"),
    ] {
        is_module(&Program::new().import(text).error(), says);
    }
    // A known name with another type cannot be linked.
    let bent = Program::new().import(r#"(import "runtime" "showSharedRWMemory" (func (param i64)))"#);
    is_module(&bent.error(), "the module imports runtime.showSharedRWMemory with a different signature");
    // A program that could not report a failed assert.
    let deaf = wat::parse_str("(module (func (export \"getVersion\") (result i32) i32.const 2))").unwrap();
    is_module(&WasmWitness::load(&deaf, SMALL, &NO_CACHE).unwrap_err(), "runtime.exceptionHandler");
}

#[test]
fn features_that_circom_does_not_use_are_refused() {
    let invalid = "the module is not valid";
    is_module(&Program::new().memory("(memory (export \"memory\") i64 1)").load(SMALL).unwrap_err(), invalid);
    is_module(&Program::new().memory("(memory (export \"memory\") 1 2 shared)").load(SMALL).unwrap_err(), invalid);
    is_module(&Program::new().more("(memory 1)").load(SMALL).unwrap_err(), invalid);
    let results = "(func $two (result i32 i32) i32.const 1 i32.const 2)";
    is_module(&Program::new().more(results).load(SMALL).unwrap_err(), "multi-value");
}

/// Each target of a `br_table` would be checked against all the results of its block: minutes for a module of 8 MB.
#[test]
fn a_table_of_branches_with_many_results_is_refused_at_once() {
    let (results, targets) = ("i32 ".repeat(1000), "0 ".repeat(100_000));
    let body = format!("(func (result {results}) {} (br_table {targets}))", "i32.const 0 ".repeat(1001));
    let begun = Instant::now();
    is_module(&Program::new().more(&body).load(SMALL).unwrap_err(), "multi-value");
    assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
}

#[test]
fn other_files_are_named() {
    let load = |bytes: &[u8]| prompt(|| WasmWitness::load(bytes, SMALL, &NO_CACHE)).unwrap_err();
    is_module(&load(b""), "an empty file");
    is_module(&load(b"zkey\x01\0\0\0"), "got a proving key (zkey)");
    is_module(&load(b"wtns\x02\0\0\0"), "got a witness (wtns)");
    is_module(&load(&circuit_file("multiplier.r1cs")), "got a circuit (r1cs)");
    is_module(&load(&circuit_file("multiplier.input.json")), "got JSON");
    is_module(&load(b"\x7fELF"), "begins with 7f454c46");
    // A component, and WebAssembly text.
    is_module(&load(b"\0asm\x0d\0\x01\0"), "not a version 1 module");
    is_module(&load(b"(module)"), "begins with");
}

#[test]
fn a_truncated_module_is_damaged_at_any_length() {
    let wasm = circuit_file("multiplier.wasm");
    for n in (0..wasm.len()).step_by(211).chain(wasm.len() - 40..wasm.len()) {
        let e = WasmWitness::load(&wasm[..n], SMALL, &NO_CACHE).map(|_| n).unwrap_err();
        assert!(matches!(e, WitnessError::Module(_)), "{n}: {e:?}");
    }
}

#[test]
fn a_flipped_byte_never_panics_and_never_hangs() {
    let wasm = circuit_file("multiplier.wasm");
    let input = Inputs::parse(&circuit_file("multiplier.input.json")).unwrap();
    for n in (8..wasm.len()).step_by(1009) {
        let mut bent = wasm.clone();
        bent[n] ^= 0x15;
        if let Ok(program) = prompt(|| WasmWitness::load(&bent, BRIEF, &NO_CACHE)) {
            // Any outcome but a panic or a hang.
            let _ = prompt(|| program.generate(&input, &StopToken::new()));
        }
    }
}

#[test]
fn a_long_function_is_not_compiled_in_this_process() {
    let body = format!("(param i32) {}", "(drop (i32.const 0))".repeat(3 << 20));
    let e = Program::new().with("init", &body).load(SMALL).unwrap_err();
    assert!(matches!(&e, WitnessError::Compile(t) if t.contains("functions of at most 8388608 bytes")), "{e:?}");
}

#[test]
fn blocks_nested_too_deep_are_not_compiled() {
    let nested = |n: usize| format!("(param i32) {}{}", "block ".repeat(n), "end ".repeat(n));
    let e = Program::new().with("init", &nested(500_000)).load(SMALL).unwrap_err();
    is_module(&e, "deeper than 4096");
    assert!(Program::new().with("init", &nested(4000)).load(SMALL).is_ok());
}

#[test]
fn a_compile_has_its_time() {
    let wasm = Program::new().with("init", &format!("(param i32) {}", "(drop (i32.const 0))".repeat(1 << 20))).wasm();
    let limits = Limits { compile_time: Duration::from_millis(1), ..SMALL };
    let e = prompt(|| WasmWitness::load(&wasm, limits, &NO_CACHE)).unwrap_err();
    assert_eq!(e, WitnessError::Compile("it took longer than 1ms".into()));
}

#[test]
fn a_running_program_can_be_cancelled() {
    let limits = Limits { time: Duration::from_secs(600), ..SMALL };
    let wasm = Program::new().with("init", &format!("(param i32) {LOOP}")).wasm();
    let program = WasmWitness::load(&wasm, limits, &NO_CACHE).unwrap();
    let (stop, other) = (StopToken::new(), StopToken::new());
    std::thread::scope(|s| {
        s.spawn(|| {
            std::thread::sleep(Duration::from_millis(100));
            stop.stop(StopReason::Cancelled);
        });
        let inputs = Inputs::parse(b"{\"a\": 1}").unwrap();
        let e = prompt(|| program.generate(&inputs, &stop)).unwrap_err();
        assert_eq!(e, WitnessError::Stopped(StopReason::Cancelled));
        // The token's deadline applies if it is earlier.
        let soon = other.with_deadline(Instant::now() + Duration::from_millis(50));
        assert_eq!(prompt(|| program.generate(&inputs, &soon)).unwrap_err(), TIMED_OUT);
    });
}

#[test]
fn an_older_program_that_hides_its_sizes_is_served() {
    let old = Program::new().without("getInputSignalSize").without("getMessageChar");
    assert_eq!(old.run(SMALL).unwrap().len(), 2);
}

#[test]
fn an_older_program_that_hides_its_signals_gets_no_arrays() {
    let old = Program::new().without("getInputSignalSize").load(SMALL).unwrap();
    for (input, got) in [("[7]", None), ("[7, 8]", Some(2)), ("[]", Some(0)), ("[[], []]", Some(0))] {
        match (generate(&old, &format!(r#"{{"a": {input}}}"#)), got) {
            (Ok(_), None) => {}
            (Err(WitnessError::Input(e)), Some(got)) => {
                assert_eq!(e, InputError::Unsized { signal: "a".into(), got });
                assert!(e.to_string().contains("compile the circuit with circom 2.0.4 or later"), "{e}");
            }
            (other, _) => panic!("{input}: {other:?}"),
        }
    }
}
