//! The signals of programs that do not report how many elements each has: circom 1's, and circom 2's before 2.0.4.
//!
//! Such a program looks a name up in a table in its own memory, adds an index, and sets what is there, whichever signal
//! it belongs to. Values beyond the end of one signal would thus become values of the next, and the witness that of
//! another input than the one given. So the table is read from the module, and the input is checked against it.
//!
//! A table is used only if the function that searches it is circom's to the last instruction.

use std::collections::{BTreeMap, BTreeSet};

use sha2::{Digest, Sha256};
use wasmparser::{DataKind, ExternalKind, FunctionBody, Operator, Parser, Payload, TypeRef};

use super::circom2::hash;
use super::{InputError, Inputs};

/// Entries of a table of names, a power of two.
const SLOTS: u32 = 256;
/// Bytes of an entry: the hash of a name, and 32 bits.
const SLOT: u32 = 12;

/// The signals of a program, by the hashes of their names.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Signals(BTreeMap<u64, Signal>);

#[derive(Debug, PartialEq, Eq)]
struct Signal {
    /// Number of its first element.
    first: u32,
    /// Its elements.
    size: u32,
    /// Whether another signal has the same first element, so that one of the two has no elements at all.
    shared: bool,
}

impl Signals {
    /// Reads the input signals from a module of circom 1. Returns `None` if the table is not recognised.
    pub(super) fn of_circom1(wasm: &[u8]) -> Option<Self> {
        /// SHA-256 of the instructions of circom 1's `hash2ComponentEntry`, the same in 0.5.2 to 0.5.46.
        const SEARCH: &str = "739bd19fb24e688f96c0bd24965f297b5d1bedb57285dcaea78375253055d654";
        let parts = Parts::read(wasm)?;
        let outer = calls(parts.exported("getSignalOffset32")?)?;
        let inner = calls(parts.function(*outer.first()?)?)?;
        let (print, constants) = fingerprint(parts.function(*inner.first()?)?)?;
        let &[header, 20, 0xff, 12, 3, _, 0, 0, 0, 0, 1, 0xff, 4, 12, 12] = &constants[..] else { return None };
        if print != SEARCH {
            return None;
        }
        // The main component is the first. It has the addresses of its table of names and of its signals, which have 12
        // bytes each: number of the first element, address of the sizes, kind. Next to the address of the components is
        // that of a bit for each element of all signals, which tells whether it is an input.
        let (components, inputs) = (parts.word(header)?, parts.word(header.checked_add(4)?)?);
        let (names, entries) = (parts.word(components)?, parts.word(components.checked_add(4)?)?);
        let mut signals = BTreeMap::new();
        for (name, index) in parts.names(names)? {
            const SIGNAL: u32 = 1;
            let entry = entries.checked_add(index.checked_mul(12)?)?;
            if parts.word(entry.checked_add(8)?)? != SIGNAL {
                continue;
            }
            // The first of the sizes is the product of all dimensions.
            let size = parts.word(parts.word(entry.checked_add(4)?)?)?;
            let first = parts.word(entry)?;
            let is_input = size == 0 || parts.word(inputs.checked_add(first / 32 * 4)?)? >> (first % 32) & 1 == 1;
            if is_input && signals.insert(name, Signal { first, size, shared: false }).is_some() {
                return None;
            }
        }
        Some(Self(signals))
    }

    /// Reads the input signals from a module of circom 2 before 2.0.4; `total` is their number of elements. Returns
    /// `None` if the table is not recognised.
    pub(super) fn of_circom2(wasm: &[u8], total: u32) -> Option<Self> {
        /// SHA-256 of the instructions of circom 2.0.3's search.
        const SEARCH: &str = "5de63f40a92d068f5560411328be83a3788c40bab5557cd3d3381aa3378ddb3e";
        let parts = Parts::read(wasm)?;
        let setter = instructions(parts.exported("setInputSignal")?)?;
        // The search gets both words of a hash as one.
        let search = setter.windows(2).find_map(|pair| match pair {
            [Operator::I64Or, Operator::Call { function_index }] => Some(*function_index),
            _ => None,
        })?;
        let (print, constants) = fingerprint(parts.function(search)?)?;
        let &[0xff, table, SLOT, 0, 1, 0xff, 0, 0] = &constants[..] else { return None };
        if print != SEARCH {
            return None;
        }
        // The table has the first element of each signal. The elements of all inputs are numbered without a gap, so a
        // signal ends where the next begins.
        let names = parts.names(table)?;
        let firsts: BTreeSet<u32> = names.iter().map(|(_, first)| *first).collect();
        let end = firsts.first().map_or(Some(0), |first| first.checked_add(total))?;
        let mut signals = BTreeMap::new();
        for (name, first) in &names {
            let next = firsts.range(first.checked_add(1)?..).next().copied().unwrap_or(end);
            let shared = names.iter().filter(|(_, other)| other == first).count() > 1;
            let signal = Signal { first: *first, size: next.checked_sub(*first)?, shared };
            if next > end || signals.insert(*name, signal).is_some() {
                return None;
            }
        }
        (total == 0 || !signals.is_empty()).then_some(Self(signals))
    }

    /// Checks that an input names signals of the program only, and gives each as many values as it has elements.
    pub(super) fn check(&self, inputs: &Inputs) -> Result<(), InputError> {
        let mut set = BTreeSet::new();
        for (name, values) in inputs.signals() {
            let signal = name.to_owned();
            let (high, low) = hash(name);
            let hash = u64::from(high as u32) << 32 | u64::from(low as u32);
            let Some(Signal { first, size, shared }) = self.0.get(&hash) else {
                return Err(InputError::Unknown { signal });
            };
            let (expected, got) = (*size as usize, values.len());
            if got == 0 && *shared {
                continue;
            }
            if got > expected {
                return Err(InputError::TooMany { signal, expected, got });
            }
            if got < expected {
                return Err(InputError::NotEnough { signal, expected, got });
            }
            if got > 0 && !set.insert(*first) {
                return Err(InputError::Misplaced { signal, index: 0 });
            }
        }
        Ok(())
    }
}

/// Checks an input for a program that does not report sizes. Without a table, only single values are safe: they are at
/// the beginning of their signals.
pub(super) fn check(signals: Option<&Signals>, inputs: &Inputs) -> Result<(), InputError> {
    match signals {
        Some(signals) => signals.check(inputs),
        None => match inputs.signals().find(|(_, values)| values.len() != 1) {
            Some((name, values)) => Err(InputError::Unsized { signal: name.to_owned(), got: values.len() }),
            None => Ok(()),
        },
    }
}

/// What is needed of a module.
#[derive(Default)]
struct Parts<'a> {
    /// Number of imported functions; the module's own are numbered from there on.
    imported: u32,
    exports: BTreeMap<&'a str, u32>,
    bodies: Vec<FunctionBody<'a>>,
    /// Initial content of the memory: address and bytes.
    data: Vec<(u32, &'a [u8])>,
}

impl<'a> Parts<'a> {
    fn read(wasm: &'a [u8]) -> Option<Self> {
        let mut parts = Self::default();
        for part in Parser::new(0).parse_all(wasm) {
            match part.ok()? {
                Payload::ImportSection(section) => {
                    for import in section.into_imports() {
                        parts.imported += u32::from(matches!(import.ok()?.ty, TypeRef::Func(_)));
                    }
                }
                Payload::ExportSection(section) => {
                    for export in section {
                        let export = export.ok()?;
                        if export.kind == ExternalKind::Func {
                            parts.exports.insert(export.name, export.index);
                        }
                    }
                }
                Payload::CodeSectionEntry(body) => parts.bodies.push(body),
                Payload::DataSection(section) => {
                    for segment in section {
                        let segment = segment.ok()?;
                        let DataKind::Active { memory_index: 0, offset_expr } = segment.kind else { return None };
                        let mut offset = offset_expr.get_operators_reader();
                        let Ok(Operator::I32Const { value }) = offset.read() else { return None };
                        parts.data.push((value as u32, segment.data));
                    }
                }
                _ => {}
            }
        }
        Some(parts)
    }

    fn function(&self, number: u32) -> Option<&FunctionBody<'a>> {
        self.bodies.get(number.checked_sub(self.imported)? as usize)
    }

    fn exported(&self, name: &str) -> Option<&FunctionBody<'a>> {
        self.function(*self.exports.get(name)?)
    }

    /// The initial memory from an address on, to the end of the segment that fills it.
    fn from(&self, at: u32) -> Option<&'a [u8]> {
        self.data.iter().find_map(|(start, bytes)| {
            let rest = bytes.get(at.checked_sub(*start)? as usize..)?;
            (!rest.is_empty()).then_some(rest)
        })
    }

    fn word(&self, at: u32) -> Option<u32> {
        self.from(at)?.first_chunk().map(|bytes| u32::from_le_bytes(*bytes))
    }

    /// A table of names: the hash and the value of each.
    fn names(&self, at: u32) -> Option<Vec<(u64, u32)>> {
        let table = self.from(at)?.get(..(SLOTS * SLOT) as usize)?;
        let slots = table.as_chunks::<{ SLOT as usize }>().0.iter().filter_map(|slot| {
            Some((u64::from_le_bytes(*slot.first_chunk()?), u32::from_le_bytes(*slot.last_chunk()?)))
        });
        Some(slots.filter(|(name, _)| *name != 0).collect())
    }
}

/// The instructions of a function; `None` if it is longer than any that circom writes for this.
fn instructions<'a>(body: &FunctionBody<'a>) -> Option<Vec<Operator<'a>>> {
    const MAX: usize = 256;
    let found: Vec<_> = body.get_operators_reader().ok()?.into_iter().take(MAX + 1).collect::<Result<_, _>>().ok()?;
    (found.len() <= MAX).then_some(found)
}

/// The functions that a function calls, in order.
fn calls(body: &FunctionBody<'_>) -> Option<Vec<u32>> {
    let called = instructions(body)?.into_iter().filter_map(|instruction| match instruction {
        Operator::Call { function_index } => Some(function_index),
        _ => None,
    });
    Some(called.collect())
}

/// The SHA-256 of a function's instructions without the 32-bit constants among them, in hexadecimal; and these.
fn fingerprint(body: &FunctionBody<'_>) -> Option<(String, Vec<u32>)> {
    let (mut hash, mut constants) = (Sha256::new(), Vec::new());
    let (bytes, begin) = (body.as_bytes(), body.range().start);
    let mut reader = body.get_operators_reader().ok()?;
    while !reader.eof() {
        let start = reader.original_position();
        if let Operator::I32Const { value } = reader.read().ok()? {
            constants.push(value as u32);
            hash.update([0x41]);
        } else {
            hash.update(bytes.get(start.checked_sub(begin)?..reader.original_position().checked_sub(begin)?)?);
        }
    }
    Some((hex::encode(hash.finalize()), constants))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const OLD: &[u8] = include_bytes!("../../circuits/range_check.circom-2.0.3.wasm");
    const FIRST: &[u8] = include_bytes!("../../circuits/multiplier_v1.wasm");

    fn key(name: &str) -> u64 {
        let (high, low) = hash(name);
        u64::from(high as u32) << 32 | u64::from(low as u32)
    }

    fn signals<const N: usize>(all: [(&str, u32, u32, bool); N]) -> Signals {
        Signals(all.map(|(name, first, size, shared)| (key(name), Signal { first, size, shared })).into())
    }

    /// Replaces the only occurrence of `old`.
    fn replaced(wasm: &[u8], old: &[u8], new: &[u8]) -> Vec<u8> {
        let mut at = wasm.windows(old.len()).enumerate().filter(|(_, bytes)| *bytes == old).map(|(at, _)| at);
        let (only, None) = (at.next().unwrap(), at.next()) else { panic!("it occurs twice") };
        [&wasm[..only], new, &wasm[only + old.len()..]].concat()
    }

    /// An entry of a table of names.
    fn entry(name: &str, value: u32) -> Vec<u8> {
        [&key(name).to_le_bytes()[..], &value.to_le_bytes()].concat()
    }

    #[test]
    fn the_signals_of_old_programs_are_read_from_their_modules() {
        let expected = signals([("ceiling", 2, 1, false), ("amount", 3, 12, false)]);
        assert_eq!(Signals::of_circom2(OLD, 13), Some(expected));
        let expected = signals([("a", 1, 1, false), ("b", 2, 1, false), ("k", 3, 3, false)]);
        assert_eq!(Signals::of_circom1(FIRST), Some(expected));
    }

    #[test]
    fn a_signal_without_elements_shares_its_place() {
        let wasm = replaced(OLD, &entry("ceiling", 2), &entry("ceiling", 3));
        let both = Signals::of_circom2(&wasm, 12).unwrap();
        assert_eq!(both, signals([("ceiling", 3, 12, true), ("amount", 3, 12, true)]));
        let check = |input: &str| both.check(&Inputs::parse(input.as_bytes()).unwrap());
        let twelve = "[1,2,3,4,5,6,7,8,9,10,11,12]";
        assert_eq!(check(&format!(r#"{{"amount": {twelve}, "ceiling": []}}"#)), Ok(()));
        assert_eq!(
            check(&format!(r#"{{"amount": {twelve}, "ceiling": {twelve}}}"#)),
            Err(InputError::Misplaced { signal: "ceiling".into(), index: 0 })
        );
        // At the end.
        let wasm = replaced(OLD, &entry("ceiling", 2), &entry("ceiling", 15));
        let last = signals([("ceiling", 15, 0, false), ("amount", 3, 12, false)]);
        assert_eq!(Signals::of_circom2(&wasm, 12), Some(last));
    }

    #[test]
    fn a_table_that_is_not_circoms_is_not_used() {
        // A signal beyond the end of the inputs.
        assert_eq!(Signals::of_circom2(OLD, 0), None);
        let twice = replaced(OLD, &entry("ceiling", 2), &entry("amount", 2));
        assert_eq!(Signals::of_circom2(&twice, 13), None);
        // The search steps by one: `local.get 2, i32.const 1, i32.add, i32.const 255`.
        let step = [0x20, 2, 0x41, 1, 0x6a, 0x41, 0xff, 1];
        let two = replaced(OLD, &step, &[0x20, 2, 0x41, 2, 0x6a, 0x41, 0xff, 1]);
        assert_eq!(Signals::of_circom2(&two, 13), None);
        let back = replaced(OLD, &step, &[0x20, 2, 0x41, 1, 0x6b, 0x41, 0xff, 1]);
        assert_eq!(Signals::of_circom2(&back, 13), None);
        let step = [0x20, 4, 0x41, 1, 0x6a, 0x41, 0xff, 1];
        let two = replaced(FIRST, &step, &[0x20, 4, 0x41, 2, 0x6a, 0x41, 0xff, 1]);
        assert_eq!(Signals::of_circom1(&two), None);
        // Another interface altogether.
        assert_eq!((Signals::of_circom1(OLD), Signals::of_circom2(FIRST, 5)), (None, None));
    }
}
