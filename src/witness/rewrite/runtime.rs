//! circom's field runtime as its modules contain it: how to recognise it, and where its parts are.
//!
//! circom 2 puts the same 81 functions at the start of every module for a field
//! (`code_producers/src/wasm_elements/bn128/fr-code.wat` in its sources), with their constants at fixed addresses below
//! 2048 (`fr-data.wat`). For the layout of a number, see [`crate::witness::number`].

use sha2::{Digest, Sha256};
use wasmparser::{Operator, ValType};

use super::module::Parts;
pub(super) use crate::witness::number::{BYTES as NUMBER, LONG, MONTGOMERY};

/// Functions of the runtime, by their position in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u32)]
pub(super) enum Function {
    IntDiv = 14,
    IntInverseMod = 15,
    MontgomeryAdd = 16,
    MontgomerySub = 17,
    MontgomeryMul = 20,
    MontgomerySquare = 21,
    FromMontgomery = 24,
    Copy = 33,
    CopyN = 34,
    IsTrue = 35,
    ShortToLong = 36,
    ToMontgomery = 37,
    ToNormal = 38,
    ToLongNormal = 39,
    IsNegative = 40,
    ToInt = 43,
    Add = 44,
    Sub = 45,
    Equal = 46,
    Greater = 47,
    Eq = 48,
    Neq = 49,
    Gt = 50,
    Geq = 51,
    Lt = 52,
    Leq = 53,
    Mul = 54,
    IntegerQuotient = 55,
    Remainder = 56,
    Inverse = 57,
    Pow = 59,
    Shl = 68,
    Shr = 69,
    Band = 71,
    Bor = 73,
    Bxor = 75,
    Bnot = 77,
}

/// Number of functions in the runtime.
pub(super) const FUNCTIONS: usize = 81;
/// SHA-256 of all of them, as computed by [`fingerprint`]: the same in the output of circom 2.0.3 to 2.2.3.
const FINGERPRINT: &str = "360d588e24d877cc8c107fb0cb4d1834bb57a7001973ee9835f2aee1183a7da9";

/// Offset of the long value in a number.
pub(super) const VALUE: u32 = 8;

/// Where the runtime's own sums convert a short value to a long one.
pub(super) const SCRATCH: u32 = 16;
/// r, least significant limb first.
pub(super) const R: [u64; 4] =
    [0x43e1_f593_f000_0001, 0x2833_e848_79b9_7091, 0xb850_45b6_8181_585d, 0x3064_4e72_e131_a029];
/// 2^256 modulo r: one in Montgomery form.
pub(super) const ONE: [u64; 4] =
    [0xac96_341c_4fff_fffb, 0x36fc_7695_9f60_cd29, 0x666e_a36f_7879_462e, 0x0e0a_77c1_9a07_df2f];
/// 2^512 modulo r.
pub(super) const R2: [u64; 4] =
    [0x1bb8_e645_ae21_6da7, 0x53fe_3ab1_e35c_59e3, 0x8c49_833d_53bb_8085, 0x0216_d0b1_7f4e_44a5];
/// 2^768 modulo r.
const R3: [u64; 4] = [0x5e94_d8e1_b4bf_0040, 0x2a48_9cbe_1cfb_b6b8, 0x893c_c664_a19f_cfed, 0x0cf8_594b_7fcc_657c];
/// (r − 1)/2: numbers above it count as negative.
pub(super) const HALF: [u64; 4] =
    [0xa1f0_fac9_f800_0000, 0x9419_f424_3cdc_b848, 0xdc28_22db_40c0_ac2e, 0x1832_2739_7098_d014];

/// Address of r.
pub(super) const R_AT: u32 = 608;
/// Address of 2^512 modulo r; multiplying by it converts to Montgomery form.
pub(super) const R2_AT: u32 = 672;
/// Address of 2^768 modulo r.
pub(super) const R3_AT: u32 = 704;

/// The part of the initial memory that the replacements rely on: address, and 64-bit words.
const CONSTANTS: [(u32, [u64; 4]); 5] = [(R_AT, R), (R2_AT, R2), (R3_AT, R3), (768, [0; 4]), (1920, HALF)];

/// End of the runtime's memory. Everything below it is the runtime's own, except the word at 0, which is the program's.
const END: u64 = 1952;
/// Where its constants are, by which data segments are recognised as the runtime's.
const SEGMENTS: [std::ops::Range<u64>; 4] = [88..96, 128..160, 608..992, 1920..END];

/// Whether a module has the runtime: all of its functions, its constants, and nothing else in its memory.
pub(super) fn is_there(parts: &Parts<'_>) -> bool {
    fingerprint(parts).is_some_and(|f| hex::encode(f) == FINGERPRINT)
        && parts.segments().all(|(start, end)| {
            end <= 8 || start >= END || SEGMENTS.iter().any(|known| known.start <= start && end <= known.end)
        })
        && CONSTANTS.iter().all(|(at, words)| {
            words.iter().zip((*at..).step_by(8)).all(|(word, at)| parts.initial(at) == Some(word.to_le_bytes()))
        })
}

/// Hashes the first 81 functions: types, locals and instructions. Calls are hashed relative to the first function,
/// because the number of imports before it differs between versions of circom. Returns `None` if the module has fewer
/// functions, or if one of these calls any other function.
fn fingerprint(parts: &Parts<'_>) -> Option<[u8; 32]> {
    let mut hash = Sha256::new();
    let word = |hash: &mut Sha256, n: usize| hash.update((n as u64).to_le_bytes());
    for (body, ty) in parts.bodies.get(..FUNCTIONS)?.iter().zip(&parts.functions) {
        let ty = parts.types.get(*ty as usize)?;
        for side in [ty.params(), ty.results()] {
            word(&mut hash, side.len());
            for ty in side {
                hash.update([code(*ty)?]);
            }
        }
        let locals = body.get_locals_reader().ok()?;
        word(&mut hash, locals.get_count() as usize);
        for local in locals {
            let (count, ty) = local.ok()?;
            word(&mut hash, count as usize);
            hash.update([code(ty)?]);
        }
        let mut instructions = body.get_operators_reader().ok()?;
        while !instructions.eof() {
            let start = instructions.original_position();
            if let Operator::Call { function_index } = instructions.read().ok()? {
                let callee = function_index.checked_sub(parts.imported).filter(|f| (*f as usize) < FUNCTIONS)?;
                hash.update([0x10]);
                hash.update(callee.to_le_bytes());
            } else {
                hash.update(parts.wasm.get(start..instructions.original_position())?);
            }
        }
    }
    Some(hash.finalize().into())
}

/// A byte for each type that the runtime uses.
fn code(ty: ValType) -> Option<u8> {
    match ty {
        ValType::I32 => Some(0x7f),
        ValType::I64 => Some(0x7e),
        _ => None,
    }
}
