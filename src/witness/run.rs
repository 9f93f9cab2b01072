//! A running instance of a witness program: its limits, its calls into the host, its failures.

use ark_ff::{BigInteger256, PrimeField};
use num_bigint::BigUint;
use wasmtime::{
    Caller, Engine, Error, Extern, ExternType, Instance, Linker, Memory, MemoryType, Module, ResourceLimiter, Result,
    Store, Trap, TypedFunc, UpdateDeadline, ValType, WasmParams, WasmResults,
};

use super::outline::clip;
use super::sandbox::{Machine, Sandbox};
use super::wasm::Program;
use super::{WitnessError, rewrite};
use crate::backend::pages;
use crate::model::{FR_MODULUS_DEC, Fr, StopReason, StopToken, Witness, named_prime};

/// Most elements of all tables together; circom's programs have one table, with an entry for each template.
const MAX_TABLE: usize = 1 << 20;
/// Most tables of a module.
const MAX_TABLES: u32 = 4;
/// Longest message read from a program; circom's have at most 256 characters.
const MAX_MESSAGE: usize = 1024;
/// Longest trace of messages kept.
const MAX_TRACE: usize = 8 * 1024;
/// Bytes of a page of linear memory.
const PAGE: u64 = 1 << 16;
/// Values of a witness read between two checks of the stop token.
const VALUES_PER_CHECK: u32 = 1 << 12;
/// Memory size from which huge pages are requested, bytes. Smaller memories may be touched only sparsely.
const LARGE: usize = 16 << 20;
/// Pages that circom 1's programs get, limit permitting: as many as snarkjs gives. They are only address space until
/// they are touched.
const CIRCOM1_PAGES: u64 = 32767;

/// State that the program's host calls need.
pub(super) struct Host {
    meter: Meter,
    /// circom's error messages so far.
    trace: String,
    memory: Option<Memory>,
    /// Whether circom 1's main component has begun, and whether it has ended.
    began: bool,
    ended: bool,
    message_char: Option<TypedFunc<(), i32>>,
    /// Whether the program was rewritten and therefore asks for time itself.
    rewritten: bool,
    /// Tells when to stop.
    stop: StopToken,
}

/// Counts memory and tables.
struct Meter {
    limit: u64,
    /// Bytes beyond the limit for what rewriting added.
    added: u64,
    memory: u64,
    table: usize,
    exceeded: bool,
}

impl ResourceLimiter for Meter {
    fn memory_growing(&mut self, current: usize, desired: usize, _: Option<usize>) -> Result<bool> {
        let total = self.memory.saturating_sub(current as u64).saturating_add(desired as u64);
        if total > self.limit.saturating_add(self.added) {
            // A trap, because a program may retry a −1 forever.
            self.exceeded = true;
            return Err(Error::msg("memory limit exceeded"));
        }
        self.memory = total;
        Ok(true)
    }

    fn table_growing(&mut self, current: usize, desired: usize, _: Option<usize>) -> Result<bool> {
        let total = self.table.saturating_sub(current).saturating_add(desired);
        if total > MAX_TABLE {
            return Err(Error::new(HostError::Refused(format!(
                "the module wants {total} table elements, more than {MAX_TABLE}"
            ))));
        }
        self.table = total;
        Ok(true)
    }

    fn instances(&self) -> usize {
        1
    }

    fn tables(&self) -> usize {
        MAX_TABLES as usize
    }

    // Only rewritten programs have a second.
    fn memories(&self) -> usize {
        2
    }
}

/// An exception that the program raised through circom's own import.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("exception {code}")]
pub(super) struct Exception {
    /// circom's code.
    pub code: i32,
}

/// Why the host ends a program, as wasmtime hands it on.
#[derive(Debug, thiserror::Error)]
enum HostError {
    /// The program raised an exception through circom's own import.
    #[error(transparent)]
    Exception(Exception),
    /// The program was asked to stop.
    #[error("{0}")]
    Stopped(StopReason),
    /// The module cannot be instantiated.
    #[error("{0}")]
    Refused(String),
    /// The module has more than [`MAX_TABLES`] tables.
    #[error("the module has {0} tables, more than {MAX_TABLES}")]
    TooManyTables(u32),
}

/// How a call failed.
#[derive(Debug)]
pub(super) enum Failure {
    /// circom's own exception, whose meaning depends on the function called; with the messages before it.
    Exception(Exception, String),
    /// Any other failure.
    Other(WitnessError),
}

/// Defines every function that circom's programs import. None of them gives access to the host.
pub(super) fn imports(engine: &Engine) -> Result<Linker<Host>> {
    let mut l = Linker::new(engine);
    l.func_wrap("runtime", "exceptionHandler", |mut caller: Caller<'_, Host>, code: i32| -> Result<()> {
        if code == rewrite::ASK && asks_for_time(&mut caller) {
            return match caller.data().stop.stopped() {
                Some(why) => Err(Error::new(HostError::Stopped(why))),
                None => Ok(()),
            };
        }
        Err(Error::new(HostError::Exception(Exception { code })))
    })?;
    l.func_wrap("runtime", "printErrorMessage", |mut caller: Caller<'_, Host>| -> Result<()> {
        let message = message(&mut caller)?;
        let trace = &mut caller.data_mut().trace;
        if trace.len() + message.len() < MAX_TRACE {
            trace.push_str(if trace.is_empty() { "" } else { "; " });
            trace.push_str(&message);
        }
        Ok(())
    })?;
    // What a circuit logs may be secret, so it is dropped unread.
    l.func_wrap("runtime", "writeBufferMessage", || {})?;
    l.func_wrap("runtime", "showSharedRWMemory", || {})?;
    l.func_wrap("runtime", "printDebug", |_: i32| {})?;
    l.func_wrap("runtime", "log", |_: i32| {})?;
    l.func_wrap("runtime", "logGetSignal", |_: i32, _: i32| {})?;
    l.func_wrap("runtime", "logSetSignal", |_: i32, _: i32| {})?;
    l.func_wrap("runtime", "logStartComponent", |mut c: Caller<'_, Host>, component: i32| {
        c.data_mut().began |= component == 0;
    })?;
    l.func_wrap("runtime", "logFinishComponent", |mut c: Caller<'_, Host>, component: i32| {
        c.data_mut().ended |= component == 0;
    })?;
    l.func_wrap(
        "runtime",
        "error",
        |mut caller: Caller<'_, Host>, code: i32, text: i32, _: i32, _: i32, c: i32, d: i32| -> Result<()> {
            // circom 1 also passes the two sides of a failed constraint, which are secret. `text`, and the place that
            // follows it, are not.
            let place = match code {
                7 => Some(d),
                9 => Some(c),
                _ => None,
            };
            let mut trace = text_at(&caller, text);
            if let Some(place) = place {
                trace.push_str(": ");
                trace.push_str(&text_at(&caller, place));
            }
            caller.data_mut().trace = trace;
            Err(Error::new(HostError::Exception(Exception { code })))
        },
    )?;
    Ok(l)
}

/// Whether the caller is a rewritten program whose budget is used up.
fn asks_for_time(caller: &mut Caller<'_, Host>) -> bool {
    let budget = caller.data().rewritten.then(|| caller.get_export(rewrite::BUDGET_EXPORT)).flatten();
    let left = budget.and_then(Extern::into_global).and_then(|budget| budget.get(&mut *caller).i64());
    left.is_some_and(|left| left < 0)
}

/// Reads the program's pending message through its `getMessageChar`.
fn message(caller: &mut Caller<'_, Host>) -> Result<String> {
    let next = match caller.data().message_char.clone() {
        Some(f) => f,
        None => {
            let export = caller.get_export("getMessageChar").and_then(Extern::into_func);
            let f = export.ok_or(Error::msg("the module prints a message but exports no getMessageChar"))?;
            let f = f.typed::<(), i32>(&caller)?;
            caller.data_mut().message_char = Some(f.clone());
            f
        }
    };
    let mut text = Vec::new();
    while text.len() < MAX_MESSAGE {
        match next.call(&mut *caller, ())? {
            0 => break,
            c => text.push(c as u8),
        }
    }
    Ok(printable(&text))
}

/// A zero-terminated text in the memory of a circom 1 program.
fn text_at(caller: &Caller<'_, Host>, at: i32) -> String {
    let Some(memory) = caller.data().memory else { return String::new() };
    let bytes = memory.data(caller).get(at as u32 as usize..).unwrap_or_default();
    let bytes = &bytes[..bytes.len().min(MAX_MESSAGE)];
    printable(bytes.split(|b| *b == 0).next().unwrap_or_default())
}

fn printable(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    text.trim().chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// A running instance.
pub(super) struct Run {
    store: Store<Host>,
    instance: Instance,
    limit: u64,
}

impl Run {
    /// Instantiates the module; a start function already runs within the limits.
    pub(super) fn start(
        sandbox: &Sandbox,
        program: &Program,
        limit: u64,
        stop: StopToken,
    ) -> std::result::Result<Self, WitnessError> {
        let (rewritten, added) = (program.rewritten.is_some(), program.rewritten.map_or(0, |r| r.second_memory));
        let machine = if rewritten { &sandbox.rewritten } else { &sandbox.plain };
        let host = Host {
            meter: Meter { limit, added, memory: 0, table: 0, exceeded: false },
            trace: String::new(),
            memory: None,
            began: false,
            ended: false,
            message_char: None,
            rewritten,
            stop: stop.clone(),
        };
        let mut store = Store::new(&machine.engine, host);
        store.limiter(|h| &mut h.meter);
        if !rewritten {
            store.set_epoch_deadline(1);
            store.epoch_deadline_callback(move |_| match stop.stopped() {
                Some(why) => Err(Error::new(HostError::Stopped(why))),
                None => Ok(UpdateDeadline::Continue(1)),
            });
        }
        match Self::instantiate(machine, &program.module, &mut store, limit) {
            Ok(instance) => Ok(Self { store, instance, limit }),
            Err(e) => {
                let own = e.is::<Trap>() || matches!(e.downcast_ref(), Some(HostError::TooManyTables(_)));
                Err(match failure(&store, e) {
                    Failure::Exception(e, trace) => WitnessError::Trap(format!("{e} at its start: {trace}")),
                    // The program has not started, or has run to its end.
                    Failure::Other(WitnessError::Trap(why)) if !own => WitnessError::Host(why),
                    Failure::Other(e) => e,
                })
            }
        }
    }

    fn instantiate(machine: &Machine, module: &Module, store: &mut Store<Host>, limit: u64) -> Result<Instance> {
        let mut externs = Vec::new();
        for import in module.imports() {
            externs.push(match import.ty() {
                ExternType::Memory(ty) => {
                    let allowed = (limit / PAGE).min(CIRCOM1_PAGES).min(ty.maximum().unwrap_or(u64::MAX));
                    let pages = u32::try_from(allowed.max(ty.minimum()))?;
                    let memory = Memory::new(&mut *store, MemoryType::new(pages, ty.maximum().map(|m| m as u32)))?;
                    store.data_mut().memory = Some(memory);
                    Extern::Memory(memory)
                }
                wanted => {
                    let (module, name) = (import.module(), import.name());
                    let ours = machine.linker.get(&mut *store, module, name)?;
                    let same = match (&wanted, ours.ty(&*store)) {
                        (ExternType::Func(a), ExternType::Func(b)) => b.matches(a),
                        _ => false,
                    };
                    if !same {
                        return Err(Error::new(HostError::Refused(format!(
                            "the module imports {module}.{name} with a different signature than circom's"
                        ))));
                    }
                    ours
                }
            });
        }
        // Counted here because wasmtime's error for too many tables has no type to recognise it by.
        let tables = module.resources_required().num_tables;
        if tables > MAX_TABLES {
            return Err(Error::new(HostError::TooManyTables(tables)));
        }
        let instance = Instance::new(&mut *store, module, &externs)?;
        if store.data().memory.is_none() {
            let memory = instance.get_memory(&mut *store, "memory");
            if let Some(memory) = memory.filter(|m| m.data_size(&*store) >= LARGE) {
                pages::prefer_huge(memory.data_mut(&mut *store));
            }
            store.data_mut().memory = memory;
        }
        Ok(instance)
    }

    /// The exported function `name`, whose type [`Interface::check`] has checked.
    pub(super) fn function<P: WasmParams, R: WasmResults>(
        &mut self,
        name: &str,
    ) -> std::result::Result<TypedFunc<P, R>, WitnessError> {
        self.instance
            .get_typed_func(&mut self.store, name)
            .map_err(|_| WitnessError::Module(format!("the module exports no {name} with circom's signature")))
    }

    /// Like [`Self::function`], for functions that programs of some versions lack.
    pub(super) fn optional<P: WasmParams, R: WasmResults>(&mut self, name: &str) -> Option<TypedFunc<P, R>> {
        self.instance.get_typed_func(&mut self.store, name).ok()
    }

    /// Calls a function whose exceptions have a meaning for the caller.
    pub(super) fn try_call<P: WasmParams, R: WasmResults>(
        &mut self,
        f: &TypedFunc<P, R>,
        params: P,
    ) -> std::result::Result<R, Failure> {
        f.call(&mut self.store, params).map_err(|e| failure(&self.store, e))
    }

    /// Calls a function that must not raise an exception.
    pub(super) fn call<P: WasmParams, R: WasmResults>(
        &mut self,
        f: &TypedFunc<P, R>,
        params: P,
    ) -> std::result::Result<R, WitnessError> {
        self.try_call(f, params).map_err(|f| match f {
            Failure::Exception(e, trace) => WitnessError::Trap(format!("unexpected {e}: {trace}")),
            Failure::Other(e) => e,
        })
    }

    /// Calls the exported function `name`, which takes no parameters and returns a number.
    pub(super) fn number(&mut self, name: &str) -> std::result::Result<u32, WitnessError> {
        let f = self.function::<(), i32>(name)?;
        Ok(self.call(&f, ())? as u32)
    }

    /// Whether circom 1's main component has begun.
    pub(super) fn has_begun(&self) -> bool {
        self.store.data().began
    }

    /// Whether circom 1's main component has ended.
    pub(super) fn has_ended(&self) -> bool {
        self.store.data().ended
    }

    /// The program's memory; empty if it exports none.
    pub(super) fn memory(&self) -> &[u8] {
        self.store.data().memory.map_or(&[], |m| m.data(&self.store))
    }

    /// `N` bytes of the program's memory.
    pub(super) fn bytes<const N: usize>(&self, at: u32) -> std::result::Result<[u8; N], WitnessError> {
        let there = self.memory().get(at as usize..).and_then(|m| m.first_chunk::<N>());
        there.copied().ok_or_else(|| outside(at))
    }

    /// Writes into the program's memory.
    pub(super) fn write(&mut self, at: u32, bytes: &[u8]) -> std::result::Result<(), WitnessError> {
        let memory = self.store.data().memory;
        let data = memory.map_or(&mut [][..], |m| m.data_mut(&mut self.store));
        let place = data.get_mut(at as usize..).and_then(|d| d.get_mut(..bytes.len()));
        place.ok_or_else(|| outside(at))?.copy_from_slice(bytes);
        Ok(())
    }

    /// Checks that a witness of `n` values fits into the limit.
    pub(super) fn check_size(&self, n: u32) -> std::result::Result<(), WitnessError> {
        if n == 0 {
            return Err(WitnessError::Module("its witness is empty: even the constant 1 is missing".into()));
        }
        if u64::from(n) * 32 > self.limit {
            return Err(WitnessError::Memory { limit: self.limit });
        }
        // A program keeps a list of its witness's signals, four bytes each, so a larger claim is false.
        let there = self.memory().len() as u64;
        if there > 0 && u64::from(n) * 4 > there {
            let why = format!("it claims a witness of {n} values, but has only {there} bytes of memory");
            return Err(WitnessError::Module(why));
        }
        Ok(())
    }

    /// Reads `n` values with `value`, checking that each is below r and that the first is 1.
    pub(super) fn witness(
        &mut self,
        n: u32,
        mut value: impl FnMut(&mut Self, u32) -> std::result::Result<BigInteger256, WitnessError>,
    ) -> std::result::Result<Witness, WitnessError> {
        self.check_size(n)?;
        let mut values = Vec::with_capacity(n as usize);
        for i in 0..n {
            let stopped = (i % VALUES_PER_CHECK == 0).then(|| self.store.data().stop.stopped()).flatten();
            let wrong = match stopped.map_or_else(|| value(self, i), |why| Err(WitnessError::Stopped(why))) {
                Ok(v) if v >= Fr::MODULUS => WitnessError::Trap(format!("witness value {i} is not below r")),
                Ok(v) if i == 0 && v != BigInteger256::from(1u64) => {
                    WitnessError::Trap("witness value 0 is not 1".into())
                }
                Ok(v) => {
                    values.push(v);
                    continue;
                }
                Err(e) => e,
            };
            // Overwrites the values read so far.
            drop(Witness::from_canonical(values));
            return Err(wrong);
        }
        Ok(Witness::from_canonical(values))
    }
}

fn outside(at: u32) -> WitnessError {
    WitnessError::Trap(format!("it refers to address {at}, outside its memory"))
}

/// Classifies a wasmtime error.
fn failure(store: &Store<Host>, e: Error) -> Failure {
    let meter = &store.data().meter;
    if meter.exceeded {
        return Failure::Other(WitnessError::Memory { limit: meter.limit });
    }
    match e.downcast_ref() {
        Some(HostError::Exception(exception)) => return Failure::Exception(*exception, store.data().trace.clone()),
        Some(HostError::Stopped(why)) => return Failure::Other(WitnessError::Stopped(*why)),
        Some(HostError::Refused(why)) => return Failure::Other(WitnessError::Module(why.clone())),
        Some(HostError::TooManyTables(_)) | None => {}
    }
    Failure::Other(WitnessError::Trap(match e.downcast_ref::<Trap>() {
        Some(trap) => format!("{trap}{}", circuits_part(*trap)),
        None => clip(&e.to_string()),
    }))
}

/// The usual cause of a trap in terms of the circuit, for readers who know circuits but not WebAssembly.
fn circuits_part(trap: Trap) -> &'static str {
    match trap {
        Trap::IntegerDivisionByZero => " (as by \\ or % in the circuit, when the input makes the divisor zero)",
        Trap::MemoryOutOfBounds => {
            " (as by an array in the circuit, when the input makes an index too large, or by recursion without end)"
        }
        Trap::StackOverflow => " (as by recursion without end in the circuit)",
        _ => "",
    }
}

/// Checks that a program computes in BN254's scalar field; names other fields where known.
pub(super) fn check_field(words: u32, prime: Option<[u8; 32]>) -> std::result::Result<(), WitnessError> {
    let expected = format!("expected BN254's scalar field, r = {FR_MODULUS_DEC}");
    let Some(prime) = prime.filter(|_| words == 8) else {
        let field = match words {
            2 => " (as of Goldilocks)",
            12 => " (as of BLS12-377's or BLS12-381's base field)",
            _ => "",
        };
        return Err(WitnessError::Module(format!("{expected}, got a field of {words} 32-bit words{field}")));
    };
    let prime = BigUint::from_bytes_le(&prime).to_string();
    if prime == FR_MODULUS_DEC {
        return Ok(());
    }
    Err(WitnessError::Module(format!("{expected}, got {}", named_prime(&prime))))
}

/// The functions that make up an interface.
pub(super) struct Interface {
    /// Name of the interface.
    pub name: &'static str,
    /// Exports: name, number of 32-bit parameters, number of 32-bit results, and whether the export is required.
    pub functions: &'static [(&'static str, usize, usize, bool)],
    /// Required imports.
    pub imports: &'static [&'static str],
}

impl Interface {
    /// Checks that the module has the required imports and exports, with the right types.
    pub(super) fn check(&self, module: &Module) -> std::result::Result<(), WitnessError> {
        for name in self.imports {
            if !module.imports().any(|i| i.name() == *name) {
                return Err(WitnessError::Module(format!(
                    "expected import runtime.{name} ({}), got nothing",
                    self.name
                )));
            }
        }
        for (name, params, results, required) in self.functions {
            let what = match module.get_export(name) {
                None if !required => continue,
                None => "nothing",
                Some(ExternType::Func(f)) => {
                    let words =
                        |mut types: Box<dyn Iterator<Item = ValType> + '_>| types.all(|t| matches!(t, ValType::I32));
                    let fits = f.params().len() == *params
                        && f.results().len() == *results
                        && words(Box::new(f.params()))
                        && words(Box::new(f.results()));
                    if fits {
                        continue;
                    }
                    "a function of a different type"
                }
                Some(_) => "an export that is not a function",
            };
            return Err(WitnessError::Module(format!(
                "expected export {name}, a function from {params} to {results} 32-bit numbers ({}), got {what}",
                self.name
            )));
        }
        Ok(())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn reading_a_witness_ends_when_it_is_told_to() {
        let sandbox = Sandbox::get(None).unwrap();
        let wasm = include_bytes!("../../circuits/multiplier.wasm");
        let module = Module::new(&sandbox.plain.engine, wasm).unwrap();
        let stop = StopToken::new();
        let program = Program { module, rewritten: None };
        let mut run = Run::start(&sandbox, &program, 1 << 30, stop.clone()).unwrap();
        let mut read = 0;
        let e = run.witness(5 * VALUES_PER_CHECK, |_, i| {
            read = i;
            if i == VALUES_PER_CHECK + 1 {
                stop.stop(StopReason::Cancelled);
            }
            Ok(BigInteger256::from(1u64))
        });
        assert_eq!(e.unwrap_err(), WitnessError::Stopped(StopReason::Cancelled));
        assert!(read < 3 * VALUES_PER_CHECK);
    }
}
