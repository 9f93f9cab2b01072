//! The interface of circom 1's witness programs.
//!
//! The memory is provided by the host. Its first word holds the address of the first free byte, from which the host
//! allocates space for a number.

use super::circom2::hash;
use super::number;
use super::run::{Exception, Failure, Interface, Run, check_field};
use super::signals::{self, Signals};
use super::wasm::Abi;
use super::{InputError, Inputs, WitnessError};
use crate::model::{Witness, limbs};

pub(super) const INTERFACE: Interface = Interface {
    name: "circom 1",
    functions: &[
        ("getFrLen", 0, 1, true),
        ("getPRawPrime", 0, 1, true),
        ("getNVars", 0, 1, true),
        ("init", 1, 0, true),
        ("getSignalOffset32", 4, 0, true),
        ("setSignal", 4, 0, true),
        ("getPWitness", 1, 1, true),
        ("getWitnessBuffer", 0, 1, false),
    ],
    // The first reports failed constraints, the second that the circuit ran: where inputs are missing, circom 1 returns
    // a witness full of zeros.
    imports: &["error", "logFinishComponent"],
};

// circom 1's error codes.
const HASH_NOT_FOUND: i32 = 3;
const NOT_ASSIGNED: i32 = 5;
const ASSIGNED_TWICE: i32 = 6;
const CONSTRAINT: i32 = 7;
const ASSERT: i32 = 9;

/// An error raised by the circuit itself. circom's own text for it is passed on.
fn circuit_error(Exception { code }: Exception, trace: &str) -> WitnessError {
    match code {
        CONSTRAINT | ASSERT => WitnessError::Assert(trace.to_owned()),
        _ => WitnessError::Trap(format!("{trace} (circom 1's error {code})")),
    }
}

/// Reads the version and the size of the witness; checks the field.
pub(super) fn describe(run: &mut Run) -> Result<(Abi, Option<u32>, u32), WitnessError> {
    let bytes = run.number("getFrLen")?;
    let words = (bytes / 4).saturating_sub(2);
    let prime = if words == 8 {
        let at = run.number("getPRawPrime")?;
        Some(run.bytes(at)?)
    } else {
        None
    };
    check_field(words, prime)?;
    let size = run.number("getNVars")?;
    run.check_size(size)?;
    Ok((Abi::Circom1, None, size))
}

/// Sets the inputs and reads the witness. `signals` are the program's, if its module shows them.
pub(super) fn generate(
    run: &mut Run,
    inputs: &Inputs,
    size: u32,
    signals: Option<&Signals>,
) -> Result<Witness, WitnessError> {
    signals::check(signals, inputs)?;
    // The flag turns on the checks of constraints.
    let init = run.function::<i32, ()>("init")?;
    run.try_call(&init, 1).map_err(outside_input)?;
    let offset_of = run.function::<(i32, i32, i32, i32), ()>("getSignalOffset32")?;
    let set = run.function::<(i32, i32, i32, i32), ()>("setSignal")?;
    let word = allocate(run, 8)?;
    let scratch = allocate(run, number::BYTES)?;

    for (name, values) in inputs.signals() {
        let (high, low) = hash(name);
        let signal = || name.to_owned();
        run.try_call(&offset_of, (word as i32, 0, high, low)).map_err(|f| match f {
            Failure::Exception(Exception { code: HASH_NOT_FOUND }, _) => {
                InputError::Unknown { signal: signal() }.into()
            }
            f => outside_input(f),
        })?;
        let offset = i32::from_le_bytes(run.bytes(word)?);
        for (i, value) in values.iter().enumerate() {
            number::write(run, scratch, value)?;
            let at = (0, 0, offset.wrapping_add(i as i32), scratch as i32);
            let set = run.try_call(&set, at);
            let began = run.has_begun();
            set.map_err(|f| match f {
                // The running circuit finds an input in the place of one of its own signals.
                Failure::Exception(Exception { code: ASSIGNED_TWICE }, _) if began => InputError::Surplus.into(),
                Failure::Exception(Exception { code: ASSIGNED_TWICE }, _) => {
                    InputError::Misplaced { signal: signal(), index: i }.into()
                }
                f => outside_input(f),
            })?;
        }
    }
    if !run.has_ended() {
        return Err(InputError::Unset { set: inputs.len() }.into());
    }

    let unset = |f| match f {
        Failure::Exception(Exception { code: NOT_ASSIGNED }, _) => InputError::Unset { set: inputs.len() }.into(),
        f => outside_input(f),
    };
    if let Some(buffer) = run.optional::<(), i32>("getWitnessBuffer") {
        let start = run.try_call(&buffer, ()).map_err(unset)? as u32;
        return run.witness(size, |run, i| {
            let at = u64::from(start) + u64::from(i) * 32;
            Ok(limbs(&run.bytes::<32>(u32::try_from(at).unwrap_or(u32::MAX))?))
        });
    }
    let get = run.function::<i32, i32>("getPWitness")?;
    run.witness(size, |run, i| {
        let at = run.try_call(&get, i as i32).map_err(unset)? as u32;
        number::read(run, at)
    })
}

fn outside_input(f: Failure) -> WitnessError {
    match f {
        Failure::Exception(e, trace) => circuit_error(e, &trace),
        Failure::Other(e) => e,
    }
}

/// Allocates from the program's free memory.
fn allocate(run: &mut Run, bytes: u32) -> Result<u32, WitnessError> {
    let at = u32::from_le_bytes(run.bytes(0)?);
    run.write(at, &vec![0; bytes as usize])?;
    run.write(0, &at.saturating_add(bytes).to_le_bytes())?;
    Ok(at)
}
