//! The interface of circom 2's witness programs.
//!
//! Values pass through a window of eight words in the program's memory. A signal is identified by the FNV-1a hash of
//! its name; setting the last input runs the circuit.

use ark_ff::BigInteger256;
use wasmtime::TypedFunc;
use zeroize::Zeroize;

use super::number;
use super::rewrite::WitnessPlace;
use super::run::{Exception, Failure, Interface, Run, check_field};
use super::signals::{self, Signals};
use super::wasm::Abi;
use super::{InputError, Inputs, WitnessError};
use crate::model::{Witness, limb_bytes, limbs};

/// Reports how many elements an input signal has, since circom 2.0.4.
pub(super) const SIZE_OF_SIGNAL: &str = "getInputSignalSize";

pub(super) const INTERFACE: Interface = Interface {
    name: "circom 2",
    functions: &[
        ("getVersion", 0, 1, true),
        ("getMinorVersion", 0, 1, false),
        ("getPatchVersion", 0, 1, false),
        ("getSharedRWMemoryStart", 0, 1, false),
        ("readSharedRWMemory", 1, 1, true),
        ("writeSharedRWMemory", 2, 0, true),
        ("init", 1, 0, true),
        ("setInputSignal", 3, 0, true),
        (SIZE_OF_SIGNAL, 2, 1, false),
        ("getRawPrime", 0, 0, true),
        ("getFieldNumLen32", 0, 1, true),
        ("getWitnessSize", 0, 1, true),
        ("getInputSize", 0, 1, true),
        ("getWitness", 1, 0, true),
        ("getMessageChar", 0, 1, false),
    ],
    // Without it, a failed assert would go unnoticed.
    imports: &["exceptionHandler"],
};

// circom's exception codes.
const NOT_FOUND: i32 = 1;
const TOO_MANY: i32 = 2;
const ALREADY_SET: i32 = 3;
const ASSERT: i32 = 4;
const NO_MEMORY: i32 = 5;
const BEYOND_INPUT: i32 = 6;
const OUT_OF_BOUNDS: i32 = 7;

/// circom's name for an exception code.
fn exception_name(code: i32) -> &'static str {
    match code {
        NOT_FOUND => "Signal not found",
        TOO_MANY => "Too many signals set",
        ALREADY_SET => "Signal already set",
        ASSERT => "Assert Failed",
        NO_MEMORY => "Not enough memory",
        BEYOND_INPUT => "Input signal array access exceeds the size",
        OUT_OF_BOUNDS => "Out of bounds array access",
        _ => "Unknown error",
    }
}

/// An error raised by the circuit itself.
fn circuit_error(Exception { code }: Exception, trace: &str) -> WitnessError {
    let name = exception_name(code);
    let text = if trace.is_empty() { name.to_owned() } else { format!("{name}: {trace}") };
    match code {
        ASSERT | OUT_OF_BOUNDS => WitnessError::Assert(text),
        _ => WitnessError::Trap(format!("{text} (circom's exception {code})")),
    }
}

/// The window through which values pass.
struct Window {
    start: Option<u32>,
    read: TypedFunc<i32, i32>,
    write: TypedFunc<(i32, i32), ()>,
}

impl Window {
    fn open(run: &mut Run) -> Result<Self, WitnessError> {
        // If its address is known, values are copied in one piece, three times as fast as word by word.
        let start = match run.optional::<(), i32>("getSharedRWMemoryStart") {
            Some(f) => Some(run.call(&f, ())? as u32).filter(|at| run.bytes::<32>(*at).is_ok()),
            None => None,
        };
        let (read, write) = (run.function("readSharedRWMemory")?, run.function("writeSharedRWMemory")?);
        Ok(Self { start, read, write })
    }

    fn get(&self, run: &mut Run) -> Result<[u8; 32], WitnessError> {
        if let Some(at) = self.start {
            return run.bytes(at);
        }
        let mut bytes = [0; 32];
        for (i, word) in (0..).zip(bytes.chunks_exact_mut(4)) {
            word.copy_from_slice(&run.call(&self.read, i)?.to_le_bytes());
        }
        Ok(bytes)
    }

    fn put(&self, run: &mut Run, value: &BigInteger256) -> Result<(), WitnessError> {
        let mut bytes = limb_bytes(value);
        let done = match self.start {
            Some(at) => run.write(at, &bytes),
            None => (0..)
                .zip(bytes.as_chunks::<4>().0)
                .try_for_each(|(i, word)| run.call(&self.write, (i, i32::from_le_bytes(*word)))),
        };
        bytes.zeroize();
        done
    }
}

/// Reads the version, the number of input values and the size of the witness; checks the field.
pub(super) fn describe(run: &mut Run) -> Result<(Abi, Option<u32>, u32), WitnessError> {
    let major = run.number("getVersion")?;
    if major != 2 {
        return Err(WitnessError::Module(format!("expected circom version 2, got {major}")));
    }
    let mut part = |name| match run.optional::<(), i32>(name) {
        Some(f) => run.call(&f, ()).map(|v| Some(v as u32)),
        None => Ok(None),
    };
    let version = (major, part("getMinorVersion")?.zip(part("getPatchVersion")?));

    let words = run.number("getFieldNumLen32")?;
    let prime = if words == 8 {
        let f = run.function::<(), ()>("getRawPrime")?;
        run.call(&f, ())?;
        Some(Window::open(run)?.get(run)?)
    } else {
        None
    };
    check_field(words, prime)?;
    let (inputs, size) = (run.number("getInputSize")?, run.number("getWitnessSize")?);
    run.check_size(size)?;
    Ok((Abi::Circom2 { version }, Some(inputs), size))
}

/// Sets the inputs and reads the witness, directly from the program's memory if `place` says where it is. `signals` are
/// the inputs of a program that does not report their sizes, if its module shows them.
pub(super) fn generate(
    run: &mut Run,
    inputs: &Inputs,
    size: u32,
    place: Option<WitnessPlace>,
    signals: Option<&Signals>,
) -> Result<Witness, WitnessError> {
    // The flag requests checks that were optional in circom 1; circom 2 always makes them.
    let init = run.function::<i32, ()>("init")?;
    run.call(&init, 1)?;
    let total = run.number("getInputSize")? as usize;
    let set = run.function::<(i32, i32, i32), ()>("setInputSignal")?;

    // Check all signals first, so that the circuit does not run on part of a wrong input.
    if let Some(sizes) = run.optional::<(i32, i32), i32>(SIZE_OF_SIGNAL) {
        // No value is set for an empty signal, and a size of 0 does not tell it from an unknown one, so look the name
        // up. A program without inputs answers alike for every name.
        for (name, _) in inputs.signals().filter(|(_, values)| values.is_empty() && total > 0) {
            if !is_known(run, &set, name)? {
                return Err(InputError::Unknown { signal: name.to_owned() }.into());
            }
        }
        for (name, values) in inputs.signals() {
            let (high, low) = hash(name);
            let expected = run.call(&sizes, (high, low))?;
            if usize::try_from(expected) != Ok(values.len()) {
                return Err(mismatch(run, &set, name, expected, values.len(), total)?.into());
            }
        }
    } else {
        signals::check(signals, inputs)?;
    }
    if inputs.len() < total {
        return Err(InputError::Incomplete { set: inputs.len(), total }.into());
    }

    let window = Window::open(run)?;
    let mut done = 0;
    for (name, values) in inputs.signals() {
        let (high, low) = hash(name);
        for (i, value) in values.iter().enumerate() {
            window.put(run, value)?;
            // Fewer than 2^22 values: no truncation.
            run.try_call(&set, (high, low, i as i32)).map_err(|f| match f {
                Failure::Exception(Exception { code: NOT_FOUND }, _) => {
                    InputError::Unknown { signal: name.to_owned() }.into()
                }
                // Once all inputs are set, a program raises this before it looks at the name.
                Failure::Exception(Exception { code: TOO_MANY | BEYOND_INPUT | ALREADY_SET }, _) => {
                    match (i, done == total) {
                        (0, true) => InputError::Unknown { signal: name.to_owned() },
                        _ => InputError::Misplaced { signal: name.to_owned(), index: i },
                    }
                    .into()
                }
                Failure::Exception(e, trace) => circuit_error(e, &trace),
                Failure::Other(e) => e,
            })?;
            done += 1;
        }
    }

    let get = run.function::<i32, ()>("getWitness")?;
    run.witness(size, |run, i| {
        // Anything unusual is left to the program.
        if let Some(value) = place.and_then(|place| at_place(run, place, i)) {
            return Ok(value);
        }
        run.call(&get, i as i32)?;
        Ok(limbs(&window.get(run)?))
    })
}

/// Reads a witness value directly from the program's memory.
fn at_place(run: &Run, WitnessPlace { list, signals }: WitnessPlace, i: u32) -> Option<BigInteger256> {
    let signal = u32::from_le_bytes(run.bytes(list.checked_add(i.checked_mul(4)?)?).ok()?);
    number::read(run, signals.checked_add(signal.checked_mul(number::BYTES)?)?).ok()
}

/// Whether a program that has inputs knows a signal: tries to set it at an index that no signal has.
fn is_known(run: &mut Run, set: &TypedFunc<(i32, i32, i32), ()>, name: &str) -> Result<bool, WitnessError> {
    let (high, low) = hash(name);
    match run.try_call(set, (high, low, i32::MAX)) {
        Err(Failure::Other(e)) => Err(e),
        Err(Failure::Exception(Exception { code }, _)) => Ok(code != NOT_FOUND),
        Ok(()) => Ok(true),
    }
}

/// Determines why the number of values is wrong. For an unknown name `getInputSignalSize` returns whatever is at some
/// address.
fn mismatch(
    run: &mut Run,
    set: &TypedFunc<(i32, i32, i32), ()>,
    name: &str,
    expected: i32,
    got: usize,
    total: usize,
) -> Result<InputError, WitnessError> {
    let signal = name.to_owned();
    let known = total > 0 && is_known(run, set, name)?;
    Ok(match usize::try_from(expected) {
        Ok(expected) if known && got > expected => InputError::TooMany { signal, expected, got },
        Ok(expected) if known => InputError::NotEnough { signal, expected, got },
        _ => InputError::Unknown { signal },
    })
}

/// The 64-bit FNV-1a hash of a name, as its high and low words.
pub(super) fn hash(name: &str) -> (i32, i32) {
    let h = name.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |h, b| (h ^ u64::from(b)).wrapping_mul(0x100_0000_01b3));
    ((h >> 32) as i32, h as i32)
}
