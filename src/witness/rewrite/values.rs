//! Replacements for functions of circom's runtime that preserve values, but not their forms.
//!
//! A result is short if it fits, and a short operand stays short. circom's own functions give long results, and convert
//! short operands to long ones in place: the bits of a number, `(x >> i) & 1`, are long, and after `1 << 121` so is the
//! constant 1 of the whole program, along with every counter that it is added to. From then on, everything is 256-bit
//! arithmetic. The functions of the runtime, circom's and the replacements, use only the value of a number, whatever
//! its form, which a test verifies (except for the low word of a negative number, which none of them asks for).

use wasm_encoder::{Function as Code, InstructionSink};

use super::bodies::{IS_LONG, LIMBS, Links};
use super::emit::{Body, Limbs, Wide, at};
use super::runtime::{Function, LONG, MONTGOMERY, ONE, R, R_AT};

/// Shifts by this many bits or more, or by a negative number, are left to circom's own function.
const TOO_FAR: i64 = 254;

impl Body {
    /// The normal value of a number of this kind. A number in Montgomery form is converted to normal form in place.
    pub(super) fn normal(&mut self, links: &Links, number: u32, kind: u32) -> Wide {
        let x = self.wide();
        self.has(kind, IS_LONG);
        self.choose(
            |b| {
                b.call(links.number(Function::ToNormal), &[number]);
                let long = b.load(number, LIMBS);
                b.set(x, long);
            },
            |b| {
                let zero = b.i64();
                b.op().local_get(number).i64_load32_s(at(0)).local_tee(x[0]).i64_const(0).i64_lt_s();
                b.when(|b| {
                    let (size, borrow) = (b.i64(), b.i64());
                    b.op().i64_const(0).local_get(x[0]).i64_sub().local_set(size);
                    let negative = b.difference(Limbs::Are(R), Limbs::Of([size, zero, zero, zero]), borrow);
                    b.set(x, negative);
                });
            },
        );
        x
    }

    /// Writes a normal number, in short form if it fits.
    fn store_normal(&mut self, number: u32, x: Wide) {
        self.op().local_get(x[0]).i64_const(31).i64_shr_u();
        for limb in &x[1..] {
            self.op().local_get(*limb).i64_or();
        }
        self.op().i64_eqz();
        self.choose(
            |b| _ = b.op().local_get(number).local_get(x[0]).i64_store(at(0)),
            |b| {
                b.set_kind(number, LONG);
                b.store(number, LIMBS, x);
            },
        );
    }

    /// The low 254 bits of x, minus r if they are at least r: how circom reduces a result that may have too many bits.
    fn adjust(&mut self, x: Wide) {
        self.op().local_get(x[3]).i64_const((1 << 62) - 1).i64_and().local_set(x[3]);
        self.reduce(x);
    }

    /// x shifted right, or left modulo 2^256, by `bits` bits, fewer than 256. Changes x.
    fn shifted(&mut self, mut x: Wide, bits: u32, left: bool) -> Wide {
        let right: fn(&mut InstructionSink<'_>) = |op| _ = op.i64_shr_u();
        let mut ways = [right, |op| _ = op.i64_shl()];
        if left {
            // A left shift is a right shift with limbs and bits in reverse order.
            x.reverse();
            ways.reverse();
        }
        let zero = self.i64();
        // First by whole limbs, then by the remaining bits.
        for limbs in [2, 1] {
            self.op().local_get(bits).i64_const(64 * limbs as i64).i64_and().i64_eqz().i32_eqz();
            self.when(|b| {
                for (i, to) in x.into_iter().enumerate() {
                    b.op().local_get(*x.get(i + limbs).unwrap_or(&zero)).local_set(to);
                }
            });
        }
        let mut z = self.wide();
        for (i, to) in z.into_iter().enumerate() {
            self.op().local_get(x[i]).local_get(bits);
            ways[0](&mut self.op());
            // In two steps, because shift counts are taken modulo 64.
            self.op().local_get(*x.get(i + 1).unwrap_or(&zero)).i64_const(1);
            ways[1](&mut self.op());
            self.op().i64_const(63).local_get(bits).i64_sub();
            ways[1](&mut self.op());
            self.op().i64_or().local_set(to);
        }
        if left {
            z.reverse();
        }
        z
    }

    /// Ends the function with circom's own body if the two places of a pair are the same, in cases where that changes
    /// circom's result.
    fn leave_if_same(&mut self, pairs: &[(u32, u32)], own: u32, params: &[u32]) {
        for (place, other) in pairs {
            self.op().local_get(*place).local_get(*other).i32_eq();
            self.when(|b| {
                b.call(own, params);
                b.op().return_();
            });
        }
    }

    /// Applies an operator to each pair of limbs.
    fn limbwise(&mut self, x: Wide, y: Wide, operator: fn(&mut InstructionSink<'_>)) -> Wide {
        let z = self.wide();
        for (z, (x, y)) in z.into_iter().zip(x.into_iter().zip(y)) {
            self.op().local_get(x).local_get(y);
            operator(&mut self.op());
            self.op().local_set(z);
        }
        z
    }

    /// Puts the bitwise OR of limbs into a new local.
    fn any(&mut self, limbs: &[u32]) -> u32 {
        let any = self.i64();
        self.op().i64_const(0);
        for limb in limbs {
            self.op().local_get(*limb).i64_or();
        }
        self.op().local_set(any);
        any
    }
}

/// Shifts by a short number below 254.
pub(super) fn shift(links: &Links, which: Function) -> Code {
    let [to, a, by] = [0, 1, 2];
    let mut b = Body::new(3);
    let (kinds, bits) = ([b.kind(a), b.kind(by)], b.i64());
    // circom's own function writes some limbs before it reads others.
    b.leave_if_same(&[(to, a)], links.own(which), &[to, a, by]);
    b.has(kinds[1], IS_LONG);
    b.op().i32_eqz().local_get(by).i64_load32_u(at(0)).local_tee(bits).i64_const(TOO_FAR).i64_lt_u().i32_and();
    b.when(|b| {
        let x = b.normal(links, a, kinds[0]);
        let z = b.shifted(x, bits, which == Function::Shl);
        if which == Function::Shl {
            b.adjust(z);
        }
        b.store_normal(to, z);
        b.op().return_();
    });
    b.call(links.own(which), &[to, a, by]);
    b.finish()
}

/// A bitwise operation on two numbers.
pub(super) fn bitwise(links: &Links, operator: fn(&mut InstructionSink<'_>)) -> Code {
    let [to, a, c] = [0, 1, 2];
    let mut b = Body::new(3);
    let kinds = [b.kind(a), b.kind(c)];
    let (x, y) = (b.normal(links, a, kinds[0]), b.normal(links, c, kinds[1]));
    let z = b.limbwise(x, y, operator);
    b.adjust(z);
    b.store_normal(to, z);
    b.finish()
}

/// Inverts all bits of a number.
pub(super) fn bnot(links: &Links) -> Code {
    let [to, a] = [0, 1];
    let mut b = Body::new(2);
    let kind = b.kind(a);
    let (x, ones) = (b.normal(links, a, kind), b.i64());
    b.op().i64_const(-1).local_set(ones);
    let z = b.limbwise(x, [ones; 4], |op| _ = op.i64_xor());
    b.adjust(z);
    b.store_normal(to, z);
    b.finish()
}

/// The quotient or remainder of two numbers as integers, for dividends below 2^64 and for the divisors that programs
/// mostly use: 64-bit ones and powers of two. Other cases, division by zero among them, are left to circom's own
/// function.
pub(super) fn divide(links: &Links, quotient: bool) -> Code {
    let [to, a, c] = [0, 1, 2];
    let own = links.own(if quotient { Function::IntegerQuotient } else { Function::Remainder });
    let mut b = Body::new(3);
    let kinds = [b.kind(a), b.kind(c)];
    // circom's own function writes the remainder before it reads the divisor.
    b.leave_if_same(&[(to, c)], own, &[to, a, c]);
    let (x, y) = (b.normal(links, a, kinds[0]), b.normal(links, c, kinds[1]));
    let (zero, low) = (b.i64(), b.i64());
    let (above_x, above_y, any_y) = (b.any(&x[1..]), b.any(&y[1..]), b.any(&y));
    let give = |b: &mut Body, z: Wide| {
        b.store_normal(to, z);
        b.op().return_();
    };
    b.op().local_get(above_x).local_get(above_y).i64_or().i64_eqz().local_get(any_y).i64_eqz().i32_eqz().i32_and();
    b.when(|b| {
        b.op().local_get(x[0]).local_get(y[0]);
        let mut op = b.op();
        if quotient { op.i64_div_u() } else { op.i64_rem_u() }.local_set(low);
        give(b, [low, zero, zero, zero]);
    });
    b.op().local_get(above_x).i64_eqz().local_get(above_y).i64_eqz().i32_eqz().i32_and();
    b.when(|b| give(b, if quotient { [zero; 4] } else { x }));
    b.op().local_get(above_y).i64_eqz().local_get(y[0]).i64_eqz().i32_eqz().i32_and();
    b.when(|b| {
        let z = by_limb(b, x, y[0], low);
        give(b, if quotient { z } else { [low, zero, zero, zero] });
    });
    let (one, borrow) = ([1, 0, 0, 0], b.i64());
    let less = b.difference(Limbs::Of(y), Limbs::Are(one), borrow);
    let common = b.limbwise(y, less, |op| _ = op.i64_and());
    let in_common = b.any(&common);
    b.op().local_get(in_common).i64_eqz().local_get(any_y).i64_eqz().i32_eqz().i32_and();
    b.when(|b| {
        let z = if quotient {
            let bits = b.i64();
            for (limb, below) in y.into_iter().zip([0, 64, 128, 192]).rev() {
                b.op().local_get(limb).i64_eqz().i32_eqz();
                b.when(|b| _ = b.op().local_get(limb).i64_ctz().i64_const(below).i64_add().local_set(bits));
            }
            b.shifted(x, bits, false)
        } else {
            b.limbwise(x, less, |op| _ = op.i64_and())
        };
        give(b, z);
    });
    b.call(own, &[to, a, c]);
    b.finish()
}

/// The quotient by a 64-bit number that is not zero; the remainder goes to `rest`. Knuth's algorithm D in 32-bit digits
/// (*The Art of Computer Programming*, volume 2, 4.3.1), of which the divisor has two.
fn by_limb(b: &mut Body, x: Wide, divisor: u32, rest: u32) -> Wide {
    let (z, half, shift) = (b.wide(), b.i64(), b.i64());
    let d = Divisor { whole: b.i64(), high: b.i64(), low: b.i64() };
    // Both are shifted so that the divisor's highest bit is set.
    b.op().local_get(divisor).i64_clz().local_set(shift);
    b.op().local_get(divisor).local_get(shift).i64_shl().local_tee(d.whole).i64_const(32).i64_shr_u().local_set(d.high);
    b.op().local_get(d.whole).i64_const(LOW_HALF).i64_and().local_set(d.low);
    b.op()
        .local_get(x[3])
        .i64_const(1)
        .i64_shr_u()
        .i64_const(63)
        .local_get(shift)
        .i64_sub()
        .i64_shr_u()
        .local_set(rest);
    let x = b.shifted(x, shift, true);
    for (x, z) in x.into_iter().zip(z).rev() {
        b.op().local_get(x).i64_const(32).i64_shr_u().local_set(half);
        digit(b, &d, rest, half, z);
        b.op().local_get(x).i64_const(LOW_HALF).i64_and().local_set(half);
        digit(b, &d, rest, half, z);
    }
    b.op().local_get(rest).local_get(shift).i64_shr_u().local_set(rest);
    z
}

/// Mask of the low half of a limb.
const LOW_HALF: i64 = u32::MAX as i64;

/// A divisor whose highest bit is set, and its digits.
struct Divisor {
    whole: u32,
    high: u32,
    low: u32,
}

/// Appends a digit to a quotient: that of `rest`, which is below the divisor, followed by the digit `next`. The
/// remainder becomes the new `rest`.
fn digit(b: &mut Body, d: &Divisor, rest: u32, next: u32, quotient: u32) {
    // Estimate from the divisor's first digit, too large by two at most.
    let (q, left) = (b.i64(), b.i64());
    b.op().local_get(rest).local_get(d.high).i64_div_u().local_set(q);
    b.op().local_get(rest).local_get(q).local_get(d.high).i64_mul().i64_sub().local_set(left);
    b.repeat(|b| {
        b.op().local_get(q).i64_const(32).i64_shr_u().i64_eqz();
        b.op().local_get(q).local_get(d.low).i64_mul();
        b.op().local_get(left).i64_const(32).i64_shl().local_get(next).i64_or().i64_le_u().i32_and().br_if(1);
        b.op().local_get(q).i64_const(1).i64_sub().local_set(q);
        b.op()
            .local_get(left)
            .local_get(d.high)
            .i64_add()
            .local_tee(left)
            .i64_const(32)
            .i64_shr_u()
            .i64_eqz()
            .i32_eqz();
        b.op().br_if(1);
    });
    b.op().local_get(rest).i64_const(32).i64_shl().local_get(next).i64_or();
    b.op().local_get(q).local_get(d.whole).i64_mul().i64_sub().local_set(rest);
    b.op().local_get(quotient).i64_const(32).i64_shl().local_get(q).i64_or().local_set(quotient);
}

/// The inverse modulo r of a short number.
pub(super) fn inverse(links: &Links) -> Code {
    let [to, a] = [0, 1];
    let mut b = Body::new(2);
    let kind = b.kind(a);
    b.has(kind, IS_LONG);
    b.when(|b| {
        b.call(links.own(Function::Inverse), &[to, a]);
        b.op().return_();
    });
    let x = b.normal(links, a, kind);
    b.set_kind(to, LONG);
    b.store(to, LIMBS, x);
    let (value, modulus) = (b.value(to), b.i32());
    b.op().i32_const(R_AT as i32).local_set(modulus);
    b.call(links.number(Function::IntInverseMod), &[value, modulus, value]);
    b.finish()
}

/// Powers with exponents below 2^31; others are left to circom's own function, which always makes 256 squarings.
pub(super) fn pow(links: &Links) -> Code {
    let [to, a, exponent] = [0, 1, 2];
    let mut b = Body::new(3);
    let (kinds, e) = ([b.kind(a), b.kind(exponent)], b.i32());
    // circom's own function converts the base to Montgomery form and the exponent out of it, and writes its result
    // while it still reads the exponent.
    b.leave_if_same(&[(exponent, a), (exponent, to)], links.own(Function::Pow), &[to, a, exponent]);
    let y = b.normal(links, exponent, kinds[1]);
    let above = b.any(&y[1..]);
    b.op().local_get(y[0]).i32_wrap_i64().local_set(e);
    b.op().local_get(y[0]).i64_const(31).i64_shr_u().local_get(above).i64_or().i64_eqz();
    b.when(|b| {
        b.has(kinds[0], IS_LONG);
        b.op().i32_eqz();
        b.when(|b| return_short_power(b, links, to, a, e));
        b.call(links.number(Function::ToMontgomery), &[a]);
        let x = b.load(a, LIMBS);
        b.large(&[x]);
        b.op().i32_eqz();
        b.when(|b| {
            let z = power(b, x, e);
            b.set_kind(to, LONG | MONTGOMERY);
            b.store(to, LIMBS, z);
            b.op().return_();
        });
    });
    b.call(links.own(Function::Pow), &[to, a, exponent]);
    b.finish()
}

/// Returns the power of a short number if it and all intermediate results are short.
fn return_short_power(b: &mut Body, links: &Links, to: u32, a: u32, e: u32) {
    let (result, square, left) = (b.i64(), b.i64(), b.i32());
    let leave_if_long = |b: &mut Body, x: u32| {
        b.op().local_get(x).i64_extend32_s().local_get(x).i64_ne().br_if(1);
    };
    b.op().i64_const(1).local_set(result).local_get(a).i64_load32_s(at(0)).local_set(square);
    b.op().local_get(e).local_set(left);
    b.repeat(|b| {
        b.op().local_get(left).i32_const(1).i32_and();
        b.when(|b| _ = b.op().local_get(result).local_get(square).i64_mul().local_set(result));
        leave_if_long(b, result);
        b.op().local_get(left).i32_const(1).i32_shr_u().local_tee(left).i32_eqz();
        b.when(|b| {
            b.store_short(links, to, result);
            b.op().return_();
        });
        b.op().local_get(square).local_get(square).i64_mul().local_set(square);
        leave_if_long(b, square);
    });
}

/// Raises x to a power of at most 32 bits, from the highest bit on; x and the result are in Montgomery form.
fn power(b: &mut Body, x: Wide, e: u32) -> Wide {
    let (z, bit) = (b.wide(), b.i32());
    for (limb, one) in z.into_iter().zip(ONE) {
        b.op().i64_const(one as i64).local_set(limb);
    }
    b.op().i32_const(32).local_get(e).i32_clz().i32_sub().local_set(bit);
    b.repeat(|b| {
        b.op().local_get(bit).i32_eqz().br_if(1);
        b.op().local_get(bit).i32_const(1).i32_sub().local_set(bit);
        let square = b.product(z, Limbs::Of(z));
        b.set(z, square);
        b.op().local_get(e).local_get(bit).i32_shr_u().i32_const(1).i32_and();
        b.when(|b| {
            let product = b.product(z, Limbs::Of(x));
            b.set(z, product);
        });
    });
    z
}
