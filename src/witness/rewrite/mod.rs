//! Rewrites witness programs so that they run faster with the same results.
//!
//! circom puts the same runtime of field arithmetic, 81 functions that compute in 32-bit words, into every program, and
//! copies arrays element by element. [`runtime`] recognises it by a hash of all its instructions and by the constants
//! that it uses. [`bodies`] and [`values`] hold replacements for the functions that matter, built on [`emit`] (256-bit
//! arithmetic in WebAssembly's wide instructions) and [`inverse`] (division steps); circom's own bodies are kept for
//! operands that the replacements do not cover. [`copies`] merges rows of copies, [`clock`] bounds the run time, and
//! [`module`] takes a module apart and assembles it again, as bytes, so that whatever is not changed stays as it is. A
//! rewritten module runs in the same sandbox, under the same limits.
//!
//! # Invariants
//!
//! - The runtime is recognised as a whole, or the module is left alone.
//! - A module must be valid WebAssembly of the first version before it is rewritten. So it cannot use what only
//!   rewriting may add (the global that holds the budget, the second memory, functions after its own), nor an
//!   instruction that takes long.
//! - Except for the comparisons, each replacement in [`bodies`] leaves memory as circom's own function leaves it, apart
//!   from the runtime's scratch places. The tests compare all of memory.
//! - Replacements in [`values`] (shifts, bitwise operations, integer division, powers, inverses) and the comparisons
//!   produce the same values, but in short form where they fit. circom's own functions convert operands, constants of
//!   the program among them, to 256 bits in place. A test verifies that no function of the runtime depends on the form
//!   of a number, except for the low word of a negative number, which none of them asks for.
//!
//! # Programs with a different memory layout
//!
//! The results are the same for programs that use memory as circom lays it out: their data lies above the runtime's,
//! and two numbers either are the same or do not overlap. Rows of copies check for overlaps at run time; arithmetic
//! does not. A module that has circom's runtime but not this layout may get a different witness than it would
//! unmodified. That takes either a program written to do so, whose proofs then do not verify; or a circuit that reads
//! past the end of an array (circom does not check an index that depends on an input), if what it finds there lies
//! across two constants of the program, which is meaningless in both versions. The latter was the only difference in
//! some 70,000 witnesses and errors of 784 random circuits (eight versions of circom from 2.0.3 on) and of 115
//! published ones, on 2026-11-29.

mod bodies;
mod clock;
mod copies;
mod emit;
mod inverse;
mod module;
mod runtime;
#[cfg(test)]
mod tests;
mod values;

use wasmparser::{Operator, Validator, WasmFeatures};

use self::bodies::{Links, REPLACED};
use self::clock::Clock;
pub(super) use self::clock::{ASK, BUDGET_EXPORT};
use self::copies::{Helpers, Merged};
use self::module::{Added, Changes, Parts};
use self::runtime::{FUNCTIONS, Function, NUMBER, VALUE};

/// Changes with everything that determines the output, so that no cached module outlives it.
pub(super) const VERSION: u32 = 3;
/// Name of the custom section in which a rewritten module records what was done.
const SECTION: &str = "prover-worker.rewritten";

/// What was done to a module.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub struct Rewritten {
    /// Functions of circom's runtime that were replaced.
    pub functions: u64,
    /// Copies that were merged into calls.
    pub copies: u64,
    /// Calls that replaced the merged copies.
    pub rows: u64,
    /// Calls that were replaced by the copy itself.
    pub inlined: u64,
    /// Bytes of the second memory.
    #[serde(skip)]
    pub(super) second_memory: u64,
    /// Where the witness is, if that could be determined.
    #[serde(skip)]
    pub(super) witness: Option<WitnessPlace>,
}

/// Where a program keeps its witness.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct WitnessPlace {
    /// Address of a list of the witness's signals, 32 bits each.
    pub list: u32,
    /// Address of the signals, 40 bytes each.
    pub signals: u32,
}

/// Rewrites a module. Returns `None` if it was not written by circom 2 for this field, or if there is no space for the
/// additions.
pub(super) fn rewrite(wasm: &[u8]) -> Option<(Vec<u8>, Rewritten)> {
    let parts = Parts::read(wasm)?;
    if !runtime::is_there(&parts) {
        return None;
    }
    // circom writes WebAssembly of the first version. Nothing later is let through: neither instructions that take
    // longer than the clock would count, nor uses of what is about to be added.
    Validator::new_with_features(WasmFeatures::WASM1).validate_all(wasm).ok()?;
    let own = parts.functions.len() as u32;
    let mut free = parts.imported + own..;
    let kept = REPLACED.iter().filter(|(_, keep, _)| *keep).map(|(function, _, _)| *function);
    let kept: Vec<(Function, u32)> = kept.zip(&mut free).collect();
    let mut next = || free.next().unwrap_or(u32::MAX);
    let helpers = Helpers { same: next(), neighbours: next(), scattered: next() };
    let links = Links { imported: parts.imported, kept, ask: next() };
    let runtime = parts.imported..parts.imported + FUNCTIONS as u32;
    let clock = Clock { runtime, copy: links.number(Function::Copy), ask: links.ask };

    let mut changes = Changes::default();
    changes.budget = clock::BUDGET;
    let ty = |function: Function| parts.functions.get(function as usize).copied();
    for (function, _) in &links.kept {
        changes.added.push((ty(*function)?, Added::Kept(*function as usize)));
    }
    for body in [bodies::copy_same(&links), bodies::copy_neighbours(&links), bodies::copy_scattered(&links)] {
        changes.added.push((ty(Function::CopyN)?, Added::New(body)));
    }
    changes.added.push((parts.procedure()?, Added::New(clock::ask(parts.exception_handler?))));
    for (function, _, write) in &REPLACED {
        changes.replaced.insert(*function as usize, write(&links));
    }
    let mut merged = Merged::default();
    for (number, body) in parts.bodies.iter().enumerate() {
        let (mut edits, of_runtime) = (Vec::new(), number < FUNCTIONS);
        clock.wind(body, of_runtime, &mut edits)?;
        if !of_runtime {
            let params = parts.types.get(*parts.functions.get(number)? as usize)?.params().len() as u32;
            copies::merge(body, params, links.number(Function::Copy), &helpers, &mut merged, &mut edits)?;
        }
        changes.patch(number, body, edits)?;
    }
    let rewritten = Rewritten {
        functions: REPLACED.len() as u64,
        copies: merged.copies,
        rows: merged.rows,
        inlined: merged.inlined,
        second_memory: module::whole_pages(merged.lists.len()),
        witness: witness_place(&parts, &links),
    };
    changes.second_memory = merged.lists;
    let wasm = module::assemble(&parts, &changes, (SECTION, &rewritten.to_bytes()))?;
    // A module that was close to WebAssembly's limits (locals, the length of a function) may now exceed them.
    let with = WasmFeatures::WASM2 | WasmFeatures::MULTI_MEMORY | WasmFeatures::WIDE_ARITHMETIC;
    Validator::new_with_features(with).validate_all(&wasm).ok()?;
    Some((wasm, rewritten))
}

/// Recognises circom's `getWitness`, which looks the signal up in a list, copies it to the window and converts it to
/// its long normal form there.
fn witness_place(parts: &Parts<'_>, links: &Links) -> Option<WitnessPlace> {
    let number = parts.exports.get("getWitness")?.checked_sub(parts.imported)?;
    let mut body = parts.bodies.get(number as usize)?.get_operators_reader().ok()?;
    let mut constants = Vec::new();
    let mut next = || -> Option<Operator<'_>> {
        let operator = body.read().ok()?;
        if let Operator::I32Const { value } = operator {
            constants.push(value as u32);
        }
        Some(operator)
    };
    use Operator as O;
    let call = |operator: Option<O<'_>>, function: Function| matches!(operator, Some(O::Call { function_index }) if function_index == links.number(function));
    let as_circom = matches!(next()?, O::I32Const { .. })
        && matches!(next()?, O::LocalGet { local_index: 0 })
        && matches!(next()?, O::I32Const { value: 2 })
        && matches!(next()?, O::I32Shl)
        && matches!(next()?, O::I32Add)
        && matches!(next()?, O::I32Load { memarg } if memarg.offset == 0)
        && matches!(next()?, O::I32Const { value } if value == NUMBER as i32)
        && matches!(next()?, O::I32Mul)
        && matches!(next()?, O::I32Const { .. })
        && matches!(next()?, O::I32Add)
        && matches!(next()?, O::LocalSet { local_index: 1 })
        && matches!(next()?, O::I32Const { .. })
        && matches!(next()?, O::LocalGet { local_index: 1 })
        && call(next(), Function::Copy)
        && matches!(next()?, O::I32Const { .. })
        && call(next(), Function::ToLongNormal)
        && matches!(next()?, O::End);
    let [list, _, _, signals, window, again] = constants[..] else { return None };
    // This is circom's memory layout; a window that overlaps what is read would change it.
    let in_order = window.checked_add(NUMBER)? <= list.min(signals);
    (as_circom && window == again && in_order && parts.shows_memory && window_is(parts, window.checked_add(VALUE)?))
        .then_some(WitnessPlace { list, signals })
}

/// Whether the module reports its window at this address.
fn window_is(parts: &Parts<'_>, at: u32) -> bool {
    let says = || {
        let number = parts.exports.get("getSharedRWMemoryStart")?.checked_sub(parts.imported)?;
        let mut body = parts.bodies.get(number as usize)?.get_operators_reader().ok()?;
        match (body.read().ok()?, body.read().ok()?) {
            (Operator::I32Const { value }, Operator::End) => Some(value as u32),
            _ => None,
        }
    };
    says() == Some(at)
}

impl Rewritten {
    fn to_bytes(self) -> Vec<u8> {
        let place = self.witness.map_or([0; 3], |w| [1, u64::from(w.list), u64::from(w.signals)]);
        let words = [u64::from(VERSION), self.functions, self.copies, self.rows, self.inlined, self.second_memory];
        words.into_iter().chain(place).flat_map(u64::to_le_bytes).collect()
    }

    /// Reads what [`rewrite`] recorded in a module that it wrote.
    pub(super) fn read(wasm: &[u8]) -> Option<Self> {
        let mut found = None;
        for part in wasmparser::Parser::new(0).parse_all(wasm) {
            if let wasmparser::Payload::CustomSection(section) = part.ok()?
                && section.name() == SECTION
            {
                found = Some(section.data());
            }
        }
        let words: Vec<u64> = found?.as_chunks::<8>().0.iter().map(|w| u64::from_le_bytes(*w)).collect();
        let &[version, functions, copies, rows, inlined, second_memory, placed, list, signals] = &words[..] else {
            return None;
        };
        let witness = match placed {
            0 => None,
            _ => Some(WitnessPlace { list: u32::try_from(list).ok()?, signals: u32::try_from(signals).ok()? }),
        };
        (version == u64::from(VERSION)).then_some(Self { functions, copies, rows, inlined, second_memory, witness })
    }
}
