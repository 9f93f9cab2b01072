//! A bound on a program's time that costs less than the engine's.
//!
//! The engine's way looks at a clock at the start of every function and loop, those of the field's arithmetic included.
//! Here a program pays for what it is about to do, from a budget in a global: at the start of each of its own functions
//! for all instructions in it, and at the start of each round of a loop for those in the loop. A call into the runtime,
//! which takes a few microseconds at the longest, is paid by its caller; where the runtime loops it pays by itself, and
//! so does its function that copies as many numbers as it is told. When the budget is gone, the program asks the host,
//! which ends it or lets it have the next.
//!
//! So between two questions no more runs than the budget and one function without its loops. That is within
//! milliseconds for what circom writes; a function as long as WebAssembly has them (7.6 MB), written to that end, may take
//! some seconds. All instructions are those of WebAssembly's first version, of which each takes next to no time.

use std::ops::Range;

use wasm_encoder::{BlockType, Function as Code, InstructionSink};
use wasmparser::{FunctionBody, Operator};

use super::emit::Body;

/// What the program asks the host with, by circom's own import for exceptions: no code of circom's.
pub(in super::super) const ASK: i32 = 0x636c_6b3f;
/// What a program may do between two questions, in instructions of a nanosecond at most: some milliseconds.
pub(super) const BUDGET: i64 = 20_000_000;
/// Price of a call into the runtime.
const RUNTIME_CALL: i64 = 1000;
/// Price of a call that copies one number: tables of constants are thousands of them.
const COPY_CALL: i64 = 10;
/// Price of growing memory, which circom's programs do for their stack.
const GROWTH: i64 = 10_000;
/// Price of a call to the host, which may ask for a message of a thousand characters one by one.
const HOST_CALL: i64 = 2000;
/// Price of each number that the runtime copies where it copies many.
pub(super) const COPIED_NUMBER: i64 = 16;
/// The export by which the host sees the budget: it answers when nothing is left, and never to a call of the module's own.
pub(in super::super) const BUDGET_EXPORT: &str = "prover-worker.budget";
/// The global that holds the budget: the module's only one.
const GLOBAL: u32 = 0;

/// Which functions are the runtime's.
pub(super) struct Clock {
    pub runtime: Range<u32>,
    /// The one among them that copies a number.
    pub copy: u32,
    /// The function made by [`ask`].
    pub ask: u32,
}

/// Bytes to put into a function's body, and what they replace.
pub(super) type Edit = (Range<usize>, Vec<u8>);

impl Clock {
    /// Adds payments to a body: at its start where it is not of the runtime, and in its loops. Nothing where it does
    /// not read.
    pub(super) fn wind(&self, body: &FunctionBody<'_>, of_runtime: bool, edits: &mut Vec<Edit>) -> Option<()> {
        let base = body.range().start;
        let mut instructions = body.get_operators_reader().ok()?;
        let begin = instructions.original_position() - base;
        // Prices of the blocks that are open, the function first, with where to pay for those that are loops.
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

/// Takes a price, which is put on the stack, from the budget, and asks for more where nothing is left.
pub(super) fn pay(op: &mut InstructionSink<'_>, price: impl FnOnce(&mut InstructionSink<'_>), ask: u32) {
    op.global_get(GLOBAL);
    price(op);
    op.i64_sub().global_set(GLOBAL);
    op.global_get(GLOBAL).i64_const(0).i64_lt_s();
    op.if_(BlockType::Empty).call(ask).end();
}

/// A function that asks the host and takes the next budget.
pub(super) fn ask(exception_handler: u32) -> Code {
    let mut b = Body::new(0);
    b.op().i32_const(ASK).call(exception_handler);
    b.op().i64_const(BUDGET).global_set(GLOBAL);
    b.finish()
}
