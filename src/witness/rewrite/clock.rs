//! A bound on a program's run time that costs less than the engine's own.
//!
//! The engine checks a clock at the start of every function and loop, including those of the field arithmetic, which
//! would cost each field operation a tenth. Here, a program pays for what it is about to do from a budget in a global:
//! at the start of each of its own functions for all instructions in it, and at the start of each iteration of a loop
//! for those in the loop. A call into the runtime, which takes a few microseconds at most, is paid for by the caller;
//! where the runtime loops, it pays itself, and so does its function that copies a given count of numbers. When the
//! budget is used up, the program asks the host through an import that it has anyway, and the host either ends it or
//! grants the next budget.
//!
//! So at most the budget plus one function without its loops runs between two questions. For what circom writes, that
//! takes milliseconds; a function of the maximum length that WebAssembly permits (7.6 MB), written for this purpose,
//! may take some seconds. All instructions are those of WebAssembly's first version, each of which takes next to no
//! time.

use std::ops::Range;

use wasm_encoder::{BlockType, Function as Code, InstructionSink};
use wasmparser::{FunctionBody, Operator};

use super::emit::Body;

/// The code with which the program asks the host, through circom's own import for exceptions; circom does not use it.
pub(in super::super) const ASK: i32 = 0x636c_6b3f;
/// What a program may do between two questions, in instructions of at most a nanosecond: some milliseconds.
pub(super) const BUDGET: i64 = 20_000_000;
/// Price of a call into the runtime.
const RUNTIME_CALL: i64 = 1000;
/// Price of a call that copies one number: tables of constants consist of thousands of them.
const COPY_CALL: i64 = 10;
/// Price of growing memory, which circom's programs do for their stack.
const GROWTH: i64 = 10_000;
/// Price of a call to the host, which may fetch a message of a thousand characters one by one.
const HOST_CALL: i64 = 2000;
/// Price of each number in the runtime's copy of many numbers.
pub(super) const COPIED_NUMBER: i64 = 16;
/// The export through which the host reads the budget: it grants time only if none is left, and never to a call that
/// the module itself makes.
pub(in super::super) const BUDGET_EXPORT: &str = "prover-worker.budget";
/// Index of the global that holds the budget, the module's only one.
const GLOBAL: u32 = 0;

/// Indices of the functions that payments depend on.
pub(super) struct Clock {
    pub runtime: Range<u32>,
    /// The runtime's function that copies a number.
    pub copy: u32,
    /// The function made by [`ask`].
    pub ask: u32,
}

/// Bytes to put into a function's body, and the range they replace.
pub(super) type Edit = (Range<usize>, Vec<u8>);

impl Clock {
    /// Adds payments to a body: at its start, unless it is the runtime's, and in its loops. Returns `None` if the body
    /// does not parse.
    pub(super) fn wind(&self, body: &FunctionBody<'_>, of_runtime: bool, edits: &mut Vec<Edit>) -> Option<()> {
        let base = body.range().start;
        let mut instructions = body.get_operators_reader().ok()?;
        let begin = instructions.original_position() - base;
        // Prices of the open blocks, the function first, and for loops the place of the payment.
        let mut open: Vec<(i64, Option<usize>)> = vec![(0, (!of_runtime).then_some(begin))];
        while !instructions.eof() {
            let operator = instructions.read().ok()?;
            let after = instructions.original_position() - base;
            match operator {
                Operator::Loop { .. } => open.push((1, Some(after))),
                Operator::Block { .. } | Operator::If { .. } => open.push((1, None)),
                Operator::End => {
                    let (price, place) = open.pop()?;
                    if let Some(at) = place {
                        edits.push((at..at, self.payment(price)));
                    }
                    if let Some(around) = open.last_mut() {
                        around.0 += price;
                    }
                }
                Operator::Call { function_index } if function_index == self.copy => open.last_mut()?.0 += COPY_CALL,
                Operator::Call { function_index } if self.runtime.contains(&function_index) => {
                    open.last_mut()?.0 += RUNTIME_CALL;
                }
                Operator::CallIndirect { .. } => open.last_mut()?.0 += RUNTIME_CALL,
                Operator::Call { function_index } if function_index < self.runtime.start => {
                    open.last_mut()?.0 += HOST_CALL;
                }
                Operator::MemoryGrow { .. } => open.last_mut()?.0 += GROWTH,
                _ => open.last_mut()?.0 += 1,
            }
        }
        open.is_empty().then_some(())
    }

    fn payment(&self, price: i64) -> Vec<u8> {
        let mut bytes = Vec::new();
        pay(&mut InstructionSink::new(&mut bytes), |op| _ = op.i64_const(price), self.ask);
        bytes
    }
}

/// Deducts a price, which `price` puts on the stack, from the budget, and asks for more if none is left.
pub(super) fn pay(op: &mut InstructionSink<'_>, price: impl FnOnce(&mut InstructionSink<'_>), ask: u32) {
    op.global_get(GLOBAL);
    price(op);
    op.i64_sub().global_set(GLOBAL);
    op.global_get(GLOBAL).i64_const(0).i64_lt_s();
    op.if_(BlockType::Empty).call(ask).end();
}

/// A function that asks the host for time and then resets the budget.
pub(super) fn ask(exception_handler: u32) -> Code {
    let mut b = Body::new(0);
    b.op().i32_const(ASK).call(exception_handler);
    b.op().i64_const(BUDGET).global_set(GLOBAL);
    b.finish()
}
