//! Replacements for functions of circom's runtime.
//!
//! Most leave memory as circom's own functions do, except for the runtime's scratch places: the form of a number is
//! part of the result, and where circom's own function changes the form of an operand, so does the replacement.
//! Operands that the fast path does not cover go to circom's own body, which is kept after the module's functions. Two
//! operands either are the same place or do not overlap, as circom lays them out.
//!
//! The replacements in [`values`] and the comparisons preserve values only.

use wasm_encoder::{Function as Code, InstructionSink, ValType};

use super::clock::{self, COPIED_NUMBER};
use super::emit::{Body, Limbs, Wide, at};
use super::runtime::{Function, HALF, LONG, MONTGOMERY, NUMBER, R, R_AT, R2, R3_AT, SCRATCH, VALUE};
use super::{inverse, values};

/// Byte of a number that holds the bits of its kind.
const KIND_BYTE: u64 = 7;
/// [`LONG`] in that byte.
pub(super) const IS_LONG: i32 = 0x80;
/// [`MONTGOMERY`] in that byte.
const IS_MONTGOMERY: i32 = 0x40;
/// Offset of the word that holds a number's kind.
const KIND: u64 = 4;
/// Offset of a number's long value.
pub(super) const LIMBS: u64 = VALUE as u64;

/// A replaced function; whether circom's own body is kept for what the replacement does not cover; the function that
/// writes the replacement.
type Entry = (Function, bool, fn(&Links) -> Code);

/// All replacements.
pub(super) const REPLACED: [Entry; 37] = [
    (Function::IntDiv, true, int_div),
    (Function::IntInverseMod, true, int_inverse_mod),
    (Function::MontgomeryAdd, true, montgomery_add),
    (Function::MontgomerySub, false, montgomery_sub),
    (Function::MontgomeryMul, true, montgomery_mul),
    (Function::MontgomerySquare, true, montgomery_square),
    (Function::FromMontgomery, true, from_montgomery),
    (Function::Copy, false, copy),
    (Function::CopyN, true, copy_n),
    (Function::IsTrue, false, is_true),
    (Function::ShortToLong, false, short_to_long),
    (Function::ToMontgomery, false, to_montgomery),
    (Function::ToNormal, false, to_normal),
    (Function::ToLongNormal, false, to_long_normal),
    (Function::IsNegative, false, is_negative),
    (Function::ToInt, false, to_int),
    (Function::Add, false, |links| add_or_sub(links, true)),
    (Function::Sub, false, |links| add_or_sub(links, false)),
    (Function::Equal, true, equal),
    (Function::Greater, false, greater),
    (Function::Eq, true, |links| compare(links, Function::Eq, |b| _ = b.i32_eq())),
    (Function::Neq, true, |links| compare(links, Function::Neq, |b| _ = b.i32_ne())),
    (Function::Gt, true, |links| compare(links, Function::Gt, |b| _ = b.i32_gt_s())),
    (Function::Geq, true, |links| compare(links, Function::Geq, |b| _ = b.i32_ge_s())),
    (Function::Lt, true, |links| compare(links, Function::Lt, |b| _ = b.i32_lt_s())),
    (Function::Leq, true, |links| compare(links, Function::Leq, |b| _ = b.i32_le_s())),
    (Function::Mul, false, mul),
    (Function::IntegerQuotient, true, |links| values::divide(links, true)),
    (Function::Remainder, true, |links| values::divide(links, false)),
    (Function::Inverse, true, values::inverse),
    (Function::Pow, true, values::pow),
    (Function::Shl, true, |links| values::shift(links, Function::Shl)),
    (Function::Shr, true, |links| values::shift(links, Function::Shr)),
    (Function::Band, false, |links| values::bitwise(links, |b| _ = b.i64_and())),
    (Function::Bor, false, |links| values::bitwise(links, |b| _ = b.i64_or())),
    (Function::Bxor, false, |links| values::bitwise(links, |b| _ = b.i64_xor())),
    (Function::Bnot, false, values::bnot),
];

/// Function indices in the module being written.
pub(super) struct Links {
    /// Number of functions that the module imports.
    pub imported: u32,
    /// circom's own bodies that are kept: the function, and the index of its kept body.
    pub kept: Vec<(Function, u32)>,
    /// The function that asks the host for more time.
    pub ask: u32,
}

impl Links {
    /// Index of the function, replaced or not.
    pub(super) fn number(&self, function: Function) -> u32 {
        self.imported + function as u32
    }

    /// Index of circom's own body of a function whose entry says that it is kept.
    pub(super) fn own(&self, function: Function) -> u32 {
        let kept = self.kept.iter().find(|(f, _)| *f == function);
        kept.map_or_else(|| self.number(function), |(_, number)| *number)
    }
}

impl Body {
    /// Puts the kind byte of a number into a local.
    pub(super) fn kind(&mut self, number: u32) -> u32 {
        let kind = self.i32();
        self.op().local_get(number).i32_load8_u(at(KIND_BYTE)).local_set(kind);
        kind
    }

    /// Puts a nonzero number on the stack if a bit of a kind is set.
    pub(super) fn has(&mut self, kind: u32, bit: i32) {
        self.op().local_get(kind).i32_const(bit).i32_and();
    }

    /// Writes a number's kind.
    pub(super) fn set_kind(&mut self, number: u32, kind: u32) {
        self.op().local_get(number).i32_const(kind as i32).i32_store(at(KIND));
    }

    /// The address of a number's long value, in a local.
    pub(super) fn value(&mut self, number: u32) -> u32 {
        let address = self.i32();
        self.op().local_get(number).i32_const(VALUE as i32).i32_add().local_set(address);
        address
    }

    /// Ends the function with circom's own body if any of the numbers has a bit at or above 2^254.
    fn leave_if_large(&mut self, numbers: &[Wide], own: u32, params: &[u32]) {
        self.large(numbers);
        self.when(|b| {
            b.call(own, params);
            b.op().return_();
        });
    }

    /// Writes the result of an operation on two short values, given in a 64-bit local: in short form if it fits.
    pub(super) fn store_short(&mut self, links: &Links, number: u32, result: u32) {
        self.op().local_get(result).i64_extend32_s().local_get(result).i64_eq();
        self.choose(
            |b| {
                b.op().local_get(number).local_get(result).i64_store32(at(0));
                b.set_kind(number, 0);
            },
            |b| {
                b.set_kind(number, LONG);
                b.op().local_get(number).i32_const(VALUE as i32).i32_add().local_get(result);
                b.op().call(links.number(Function::ShortToLong));
            },
        );
    }

    /// Puts two short values on the stack, each extended to 64 bits.
    fn shorts(&mut self, a: u32, b: u32) {
        self.op().local_get(a).i64_load32_s(at(0)).local_get(b).i64_load32_s(at(0));
    }

    /// Puts on the stack whether x > (r − 1)/2.
    fn above_half(&mut self, x: Wide) {
        let borrow = self.i64();
        self.difference(Limbs::Are(HALF), Limbs::Of(x), borrow);
        self.op().local_get(borrow).i64_eqz().i32_eqz();
    }

    /// If a number is long, converts it to normal form and emits `body` with its value.
    fn if_long(&mut self, links: &Links, number: u32, body: impl FnOnce(&mut Self, Wide)) {
        let kind = self.kind(number);
        self.has(kind, IS_LONG);
        self.when(|b| {
            b.call(links.number(Function::ToNormal), &[number]);
            let x = b.load(number, LIMBS);
            body(b, x);
        });
    }

    /// If two numbers are both short, ends the function with their comparison. Returns their kinds.
    fn shorts_apart(&mut self, a: u32, c: u32, compare: fn(&mut InstructionSink<'_>)) -> [u32; 2] {
        let kinds = [self.kind(a), self.kind(c)];
        self.both_short(kinds[0], kinds[1]);
        self.when(|b| {
            b.op().local_get(a).i32_load(at(0)).local_get(c).i32_load(at(0));
            compare(&mut b.op());
            b.op().return_();
        });
        kinds
    }

    /// Puts on the stack whether both numbers, of kinds a and b, are short.
    fn both_short(&mut self, a: u32, b: u32) {
        self.op().local_get(a).local_get(b).i32_or().i32_const(IS_LONG).i32_and().i32_eqz();
    }
}

fn montgomery_mul(links: &Links) -> Code {
    let [x, y, r] = [0, 1, 2];
    let mut b = Body::new(3);
    let (a, c) = (b.load(x, 0), b.load(y, 0));
    b.leave_if_large(&[a, c], links.own(Function::MontgomeryMul), &[x, y, r]);
    let z = b.product(a, Limbs::Of(c));
    b.store(r, 0, z);
    b.finish()
}

fn montgomery_square(links: &Links) -> Code {
    let [x, r] = [0, 1];
    let mut b = Body::new(2);
    let a = b.load(x, 0);
    b.leave_if_large(&[a], links.own(Function::MontgomerySquare), &[x, r]);
    let z = b.product(a, Limbs::Of(a));
    b.store(r, 0, z);
    b.finish()
}

fn from_montgomery(links: &Links) -> Code {
    let [x, r] = [0, 1];
    let mut b = Body::new(2);
    let a = b.load(x, 0);
    b.leave_if_large(&[a], links.own(Function::FromMontgomery), &[x, r]);
    let z = b.reduction(a);
    b.store(r, 0, z);
    b.finish()
}

fn montgomery_add(links: &Links) -> Code {
    let [x, y, r] = [0, 1, 2];
    let mut b = Body::new(3);
    let (a, c) = (b.load(x, 0), b.load(y, 0));
    b.leave_if_large(&[a, c], links.own(Function::MontgomeryAdd), &[x, y, r]);
    let z = b.add_mod(a, c);
    b.store(r, 0, z);
    b.finish()
}

/// Correct for all operands: circom's own function adds r once, whatever they are.
fn montgomery_sub(_: &Links) -> Code {
    let [x, y, r] = [0, 1, 2];
    let mut b = Body::new(3);
    let (a, c) = (b.load(x, 0), b.load(y, 0));
    let z = b.sub_mod(a, c);
    b.store(r, 0, z);
    b.finish()
}

/// Quotient and remainder, each written only if a place is given. The replacement covers numbers below 2^64.
fn int_div(links: &Links) -> Code {
    let [x, y, quotient, remainder] = [0, 1, 2, 3];
    let mut b = Body::new(4);
    let (n, d) = (b.load(x, 0), b.load(y, 0));
    b.op().i64_const(0);
    for limb in n[1..].iter().chain(&d[1..]) {
        b.op().local_get(*limb).i64_or();
    }
    b.op().i64_eqz().local_get(d[0]).i64_eqz().i32_eqz().i32_and();
    // circom's own function copies the first operand to the remainder's place before it reads the second.
    b.op().local_get(remainder).local_get(y).i32_ne().i32_and();
    b.op().local_get(quotient).local_get(remainder).i32_ne().i32_and();
    b.when(|b| {
        let zero = b.i64();
        for (place, divide) in [(quotient, true), (remainder, false)] {
            b.op().local_get(place);
            b.when(|b| {
                let result = b.i64();
                b.op().local_get(n[0]).local_get(d[0]);
                let mut op = b.op();
                if divide { op.i64_div_u() } else { op.i64_rem_u() }.local_set(result);
                b.store(place, 0, [result, zero, zero, zero]);
            });
        }
        b.op().return_();
    });
    b.call(links.own(Function::IntDiv), &[x, y, quotient, remainder]);
    b.finish()
}

/// The inverse modulo r of a number below r.
fn int_inverse_mod(links: &Links) -> Code {
    let [x, modulus, result] = [0, 1, 2];
    let mut b = Body::new(3);
    let a = b.load(x, 0);
    let borrow = b.i64();
    b.difference(Limbs::Of(a), Limbs::Are(R), borrow);
    b.op().local_get(borrow).i64_eqz().local_get(modulus).i32_const(R_AT as i32).i32_ne().i32_or();
    b.when(|b| {
        b.call(links.own(Function::IntInverseMod), &[x, modulus, result]);
        b.op().return_();
    });
    let z = inverse::write(&mut b, a);
    b.store(result, 0, z);
    b.finish()
}

/// Copies five words in order, like circom's own function, so that overlapping places end up the same too.
fn copy(_: &Links) -> Code {
    let mut b = Body::new(2);
    for offset in (0..u64::from(NUMBER)).step_by(8) {
        b.op().local_get(0).local_get(1).i64_load(at(offset)).i64_store(at(offset));
    }
    b.finish()
}

/// Copies `count` consecutive numbers.
fn copy_n(links: &Links) -> Code {
    let [to, from, count] = [0, 1, 2];
    let mut b = Body::new(3);
    let bytes = b.i32();
    b.op().local_get(count).i32_eqz();
    b.when(|b| _ = b.op().return_());
    // More would not fit into memory, nor their size in bytes into 32 bits.
    b.op().local_get(count).i32_const((u32::MAX / NUMBER) as i32).i32_gt_u();
    b.op().local_get(count).i32_const(NUMBER as i32).i32_mul().local_set(bytes);
    overlap(&mut b, to, from, bytes, bytes);
    b.op().i32_or();
    b.when(|b| {
        b.call(links.own(Function::CopyN), &[to, from, count]);
        b.op().return_();
    });
    let price = |op: &mut InstructionSink<'_>| {
        op.local_get(count).i64_extend_i32_u().i64_const(COPIED_NUMBER).i64_mul();
    };
    clock::pay(&mut b.op(), price, links.ask);
    b.op().local_get(to).local_get(from).local_get(bytes).memory_copy(0, 0);
    b.finish()
}

/// Puts on the stack whether `written` bytes at `to` and `read` bytes at `from` overlap, or extend beyond 32-bit
/// addresses.
fn overlap(b: &mut Body, to: u32, from: u32, written: u32, read: u32) {
    b.op().local_get(to).local_get(from).i32_sub().local_get(read).i32_lt_u();
    b.op().local_get(from).local_get(to).i32_sub().local_get(written).i32_lt_u().i32_or();
    for (start, bytes) in [(to, written), (from, read)] {
        b.op().local_get(start).local_get(bytes).i32_add().local_get(start).i32_lt_u().i32_or();
    }
}

/// Replaces a row of copies: copies one number to consecutive places. Parameters: address to write to, address to read
/// from, number of bytes to write.
pub(super) fn copy_same(links: &Links) -> Code {
    let [to, from, bytes] = [0, 1, 2];
    let mut b = Body::new(3);
    let (read, end) = (b.i32(), row_end(&mut b, to, bytes));
    b.op().i32_const(NUMBER as i32).local_set(read);
    overlap(&mut b, to, from, bytes, read);
    b.when(|b| {
        each(b, to, end, |b| b.call(links.number(Function::Copy), &[to, from]));
        b.op().return_();
    });
    let number = load_number(&mut b, from);
    each(&mut b, to, end, |b| store_number(b, to, number));
    b.finish()
}

/// Like [`copy_same`], but copies consecutive numbers.
pub(super) fn copy_neighbours(links: &Links) -> Code {
    let [to, from, bytes] = [0, 1, 2];
    let mut b = Body::new(3);
    let end = row_end(&mut b, to, bytes);
    overlap(&mut b, to, from, bytes, bytes);
    b.when(|b| {
        each(b, to, end, |b| {
            b.call(links.number(Function::Copy), &[to, from]);
            b.op().local_get(from).i32_const(NUMBER as i32).i32_add().local_set(from);
        });
        b.op().return_();
    });
    b.op().local_get(to).local_get(from).local_get(bytes).memory_copy(0, 0);
    b.finish()
}

/// Like [`copy_same`], but copies numbers from arbitrary places: the second parameter is the address of their list in
/// the second memory.
pub(super) fn copy_scattered(links: &Links) -> Code {
    let [to, list, bytes] = [0, 1, 2];
    let second = |offset| wasm_encoder::MemArg { memory_index: 1, ..at(offset) };
    let mut b = Body::new(3);
    let (low, read, from, end) = (b.i32(), b.i32(), b.i32(), row_end(&mut b, to, bytes));
    b.op().local_get(list).i32_load(second(0)).local_set(low);
    b.op().local_get(list).i32_load(second(4)).local_get(low).i32_sub().local_set(read);
    let next = |b: &mut Body| {
        b.op().local_get(list).i32_load(second(8)).local_set(from);
        b.op().local_get(list).i32_const(4).i32_add().local_set(list);
    };
    overlap(&mut b, to, low, bytes, read);
    b.when(|b| {
        each(b, to, end, |b| {
            next(b);
            b.call(links.number(Function::Copy), &[to, from]);
        });
        b.op().return_();
    });
    each(&mut b, to, end, |b| {
        next(b);
        let number = load_number(b, from);
        store_number(b, to, number);
    });
    b.finish()
}

/// The end of the range that a row writes.
fn row_end(b: &mut Body, to: u32, bytes: u32) -> u32 {
    let end = b.i32();
    b.op().local_get(to).local_get(bytes).i32_add().local_set(end);
    end
}

/// Repeats `body`, advancing `to` by a number each time, until it reaches `end`.
fn each(b: &mut Body, to: u32, end: u32, body: impl FnOnce(&mut Body)) {
    b.repeat(|b| {
        b.op().local_get(to).local_get(end).i32_eq().br_if(1);
        body(b);
        b.op().local_get(to).i32_const(NUMBER as i32).i32_add().local_set(to);
    });
}

/// Loads the 40 bytes of a number into locals.
fn load_number(b: &mut Body, from: u32) -> (u32, u32, u32) {
    let number = (b.local(ValType::V128), b.local(ValType::V128), b.i64());
    b.op().local_get(from).v128_load(at(0)).local_set(number.0);
    b.op().local_get(from).v128_load(at(16)).local_set(number.1);
    b.op().local_get(from).i64_load(at(32)).local_set(number.2);
    number
}

/// Stores a number loaded by [`load_number`].
fn store_number(b: &mut Body, to: u32, (first, second, last): (u32, u32, u32)) {
    b.op().local_get(to).local_get(first).v128_store(at(0));
    b.op().local_get(to).local_get(second).v128_store(at(16));
    b.op().local_get(to).local_get(last).i64_store(at(32));
}

fn is_true(_: &Links) -> Code {
    let number = 0;
    let mut b = Body::new(1);
    let kind = b.kind(number);
    b.has(kind, IS_LONG);
    b.when(|b| {
        let x = b.load(number, LIMBS);
        b.is_zero(x);
        b.op().i32_eqz().return_();
    });
    b.op().local_get(number).i32_load(at(0)).i32_const(0).i32_ne();
    b.finish()
}

/// Converts a signed 64-bit value to four limbs below r.
fn short_to_long(_: &Links) -> Code {
    let [address, value] = [0, 1];
    let mut b = Body::new(2);
    let zero = b.i64();
    b.op().local_get(value).i64_const(0).i64_ge_s();
    b.choose(
        |b| b.store(address, 0, [value, zero, zero, zero]),
        |b| {
            let (size, borrow) = (b.i64(), b.i64());
            b.op().i64_const(0).local_get(value).i64_sub().local_set(size);
            let x = b.difference(Limbs::Are(R), Limbs::Of([size, zero, zero, zero]), borrow);
            b.store(address, 0, x);
        },
    );
    b.finish()
}

fn to_montgomery(links: &Links) -> Code {
    let number = 0;
    let mut b = Body::new(1);
    let kind = b.kind(number);
    b.has(kind, IS_MONTGOMERY);
    b.when(|b| _ = b.op().return_());
    let value = b.value(number);
    b.has(kind, IS_LONG);
    b.choose(
        |b| b.set_kind(number, LONG | MONTGOMERY),
        |b| {
            b.op().local_get(value).local_get(number).i64_load32_s(at(0)).call(links.number(Function::ShortToLong));
            b.set_kind(number, MONTGOMERY);
        },
    );
    let x = b.load(value, 0);
    b.large(&[x]);
    b.choose(
        |b| {
            let r2 = b.i32();
            b.op().i32_const(super::runtime::R2_AT as i32).local_set(r2);
            b.call(links.number(Function::MontgomeryMul), &[value, r2, value]);
        },
        |b| {
            let z = b.product(x, Limbs::Are(R2));
            b.store(value, 0, z);
        },
    );
    b.finish()
}

fn to_normal(links: &Links) -> Code {
    let mut b = Body::new(1);
    let kind = b.kind(0);
    b.op().local_get(kind).i32_const(IS_LONG | IS_MONTGOMERY).i32_and().i32_const(IS_LONG | IS_MONTGOMERY).i32_eq();
    b.when(|b| leave_montgomery(b, links));
    b.finish()
}

/// Converts a number from long Montgomery form to long normal form.
fn leave_montgomery(b: &mut Body, links: &Links) {
    b.set_kind(0, LONG);
    let value = b.value(0);
    b.call(links.number(Function::FromMontgomery), &[value, value]);
}

fn to_long_normal(links: &Links) -> Code {
    let number = 0;
    let mut b = Body::new(1);
    let kind = b.kind(number);
    b.has(kind, IS_LONG);
    b.choose(
        |b| {
            b.has(kind, IS_MONTGOMERY);
            b.when(|b| leave_montgomery(b, links));
        },
        |b| {
            let value = b.value(number);
            b.op().local_get(value).local_get(number).i64_load32_s(at(0)).call(links.number(Function::ShortToLong));
            b.set_kind(number, LONG);
        },
    );
    b.finish()
}

fn is_negative(links: &Links) -> Code {
    let number = 0;
    let mut b = Body::new(1);
    b.if_long(links, number, |b, x| {
        b.above_half(x);
        b.op().return_();
    });
    b.op().local_get(number).i32_load(at(0)).i32_const(0).i32_lt_s();
    b.finish()
}

/// The low word of a number; for a negative number, minus the low word of its absolute value.
fn to_int(links: &Links) -> Code {
    let number = 0;
    let mut b = Body::new(1);
    b.if_long(links, number, |b, x| {
        let negative = b.i32();
        b.above_half(x);
        b.op().local_set(negative).local_get(x[0]).i32_wrap_i64();
        b.op().i32_const(R[0] as i32).i32_const(0).local_get(negative).select().i32_sub().return_();
    });
    b.op().local_get(number).i32_load(at(0));
    b.finish()
}

fn add_or_sub(links: &Links, add: bool) -> Code {
    let [to, a, c] = [0, 1, 2];
    let mut b = Body::new(3);
    let kinds = [b.kind(a), b.kind(c)];
    b.both_short(kinds[0], kinds[1]);
    b.when(|b| {
        let result = b.i64();
        b.shorts(a, c);
        let mut op = b.op();
        if add { op.i64_add() } else { op.i64_sub() }.local_set(result);
        b.store_short(links, to, result);
        b.op().return_();
    });
    // Addresses of the long values, and the kind of the result.
    let addresses = [b.value(a), b.value(c)];
    let kind = b.i32();
    let montgomery = |b: &mut Body, number: u32| {
        b.call(links.number(Function::ToMontgomery), &[number]);
        b.op().i32_const((LONG | MONTGOMERY) as i32).local_set(kind);
    };
    b.op().local_get(kinds[0]).local_get(kinds[1]).i32_and().i32_const(IS_LONG).i32_and();
    b.choose(
        |b| {
            b.op().i32_const(LONG as i32).local_set(kind);
            // If one is in Montgomery form, convert the other too.
            b.op().local_get(kinds[0]).local_get(kinds[1]).i32_or().i32_const(IS_MONTGOMERY).i32_and();
            b.when(|b| {
                montgomery(b, a);
                montgomery(b, c);
            });
        },
        |b| {
            b.has(kinds[0], IS_LONG);
            b.choose(
                |b| one_short(b, links, kinds[0], (c, addresses[1]), kind),
                |b| one_short(b, links, kinds[1], (a, addresses[0]), kind),
            );
        },
    );
    b.op().local_get(to).local_get(kind).i32_store(at(KIND));
    let (x, y) = (b.load(addresses[0], 0), b.load(addresses[1], 0));
    let result = b.value(to);
    if add {
        b.large(&[x, y]);
        b.when(|b| {
            b.call(links.number(Function::MontgomeryAdd), &[addresses[0], addresses[1], result]);
            b.op().return_();
        });
    }
    let z = if add { b.add_mod(x, y) } else { b.sub_mod(x, y) };
    b.store(result, 0, z);
    b.finish()
}

/// For the sum of a long number of kind `long` and a short one, whose form follows the long one's: sets the address of
/// the short one's long value, and the kind of the sum.
fn one_short(b: &mut Body, links: &Links, long: u32, (short, address): (u32, u32), kind: u32) {
    b.has(long, IS_MONTGOMERY);
    b.choose(
        |b| {
            b.call(links.number(Function::ToMontgomery), &[short]);
            b.op().i32_const((LONG | MONTGOMERY) as i32).local_set(kind);
        },
        |b| {
            b.op().i32_const(LONG as i32).local_set(kind);
            b.op().i32_const(SCRATCH as i32).local_tee(address);
            b.op().local_get(short).i64_load32_s(at(0)).call(links.number(Function::ShortToLong));
        },
    );
}

fn mul(links: &Links) -> Code {
    let [to, a, c] = [0, 1, 2];
    let mut b = Body::new(3);
    let kinds = [b.kind(a), b.kind(c)];
    b.both_short(kinds[0], kinds[1]);
    b.when(|b| {
        let result = b.i64();
        b.shorts(a, c);
        b.op().i64_mul().local_set(result);
        b.store_short(links, to, result);
        b.op().return_();
    });
    for (number, kind) in [a, c].into_iter().zip(kinds) {
        b.has(kind, IS_LONG);
        b.op().i32_eqz();
        b.when(|b| {
            b.call(links.number(Function::ToMontgomery), &[number]);
            b.op().i32_const(IS_MONTGOMERY).local_set(kind);
        });
    }
    // The product of two Montgomery forms is in Montgomery form; that of a Montgomery and a normal form is in normal
    // form; two normal forms need another product to get one.
    let differ = b.i32();
    b.op().local_get(kinds[0]).local_get(kinds[1]).i32_xor().i32_const(IS_MONTGOMERY).i32_and().local_set(differ);
    b.op().local_get(to).i32_const(LONG as i32).i32_const((LONG | MONTGOMERY) as i32).local_get(differ).select();
    b.op().i32_store(at(KIND));
    let (x, y) = (b.load(a, LIMBS), b.load(c, LIMBS));
    let result = b.value(to);
    b.large(&[x, y]);
    b.choose(
        |b| {
            let (x, y) = (b.value(a), b.value(c));
            b.call(links.number(Function::MontgomeryMul), &[x, y, result]);
        },
        |b| {
            let z = b.product(x, Limbs::Of(y));
            b.store(result, 0, z);
        },
    );
    b.op().local_get(kinds[0]).local_get(kinds[1]).i32_or().i32_const(IS_MONTGOMERY).i32_and().i32_eqz();
    b.when(|b| {
        let r3 = b.i32();
        b.op().i32_const(R3_AT as i32).local_set(r3);
        b.call(links.number(Function::MontgomeryMul), &[r3, result, result]);
    });
    b.finish()
}

/// Whether two numbers are equal.
fn equal(links: &Links) -> Code {
    let [a, c] = [0, 1];
    let mut b = Body::new(2);
    let kinds = b.shorts_apart(a, c, |op| _ = op.i32_eq());
    b.op().local_get(kinds[0]).local_get(kinds[1]).i32_and().i32_const(IS_LONG).i32_and().i32_eqz();
    b.when(|b| {
        let (x, y) = (b.normal(links, a, kinds[0]), b.normal(links, c, kinds[1]));
        b.same(x, y);
        b.op().return_();
    });
    b.op().local_get(kinds[0]).local_get(kinds[1]).i32_xor().i32_const(IS_MONTGOMERY).i32_and();
    b.when(|b| {
        b.call(links.own(Function::Equal), &[a, c]);
        b.op().return_();
    });
    let (x, y) = (b.load(a, LIMBS), b.load(c, LIMBS));
    b.same(x, y);
    b.finish()
}

/// Whether the first number is greater than the second, both taken as values from −(r − 1)/2 to (r − 1)/2.
fn greater(links: &Links) -> Code {
    let [a, c] = [0, 1];
    let mut b = Body::new(2);
    let kinds = b.shorts_apart(a, c, |op| _ = op.i32_gt_s());
    let (x, y) = (b.normal(links, a, kinds[0]), b.normal(links, c, kinds[1]));
    let negative = [b.i32(), b.i32()];
    for (n, x) in negative.into_iter().zip([x, y]) {
        b.above_half(x);
        b.op().local_set(n);
    }
    b.op().local_get(negative[0]).local_get(negative[1]).i32_ne();
    b.when(|b| _ = b.op().local_get(negative[1]).return_());
    let borrow = b.i64();
    b.difference(Limbs::Of(y), Limbs::Of(x), borrow);
    b.op().local_get(borrow).i64_eqz().i32_eqz();
    b.finish()
}

/// A comparison whose result is a number; the replacement covers short values only.
fn compare(links: &Links, function: Function, operator: fn(&mut InstructionSink<'_>)) -> Code {
    let [to, a, c] = [0, 1, 2];
    let mut b = Body::new(3);
    let kinds = [b.kind(a), b.kind(c)];
    b.both_short(kinds[0], kinds[1]);
    b.when(|b| {
        b.op().local_get(to).local_get(a).i32_load(at(0)).local_get(c).i32_load(at(0));
        operator(&mut b.op());
        b.op().i64_extend_i32_u().i64_store(at(0)).return_();
    });
    b.call(links.own(function), &[to, a, c]);
    b.finish()
}
