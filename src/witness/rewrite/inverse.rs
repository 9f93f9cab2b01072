//! The inverse modulo r by division steps (Bernstein and Yang, "Fast constant-time gcd computation and modular
//! inversion", 2019), 62 at a time on the low words, in the variant whose time depends on the number: where the number
//! ends in zeros, many steps are taken at once.
//!
//! f and g start as r and x, and end as ±1 and 0. d and e are the factors by which x is multiplied to get f and g
//! modulo r. All four are five limbs of 62 bits, least significant first, with the sign in the last.

use super::emit::{Body, Wide};
use super::runtime::R;

/// Bits of a limb.
const LIMB: u32 = 62;
const MASK: i64 = (1 << LIMB) - 1;
/// 1/r mod 2^62.
const R_INVERSE: i64 = 0x3d1e_0a6c_1000_0001;

type Limbs = [u32; 5];

/// r in limbs of 62 bits.
const R_LIMBS: [i64; 5] = [
    R[0] as i64 & MASK,
    ((R[0] >> 62) | (R[1] << 2)) as i64 & MASK,
    ((R[1] >> 60) | (R[2] << 4)) as i64 & MASK,
    ((R[2] >> 58) | (R[3] << 6)) as i64 & MASK,
    (R[3] >> 56) as i64,
];

/// The effect of 62 steps: f becomes (u·f + v·g) / 2^62, g becomes (q·f + s·g) / 2^62.
struct Steps {
    u: u32,
    v: u32,
    q: u32,
    s: u32,
    /// Minus the difference that decides whether f and g are swapped.
    eta: u32,
}

/// The inverse of x, which is below r; the inverse of 0 is 0.
pub(super) fn write(b: &mut Body, x: Wide) -> Wide {
    let limbs = |b: &mut Body, start: [i64; 5]| -> Limbs {
        start.map(|value| {
            let limb = b.i64();
            b.op().i64_const(value).local_set(limb);
            limb
        })
    };
    let [f, d, e] = [R_LIMBS, [0; 5], [1, 0, 0, 0, 0]].map(|start| limbs(b, start));
    let g = split(b, x);
    let steps = Steps { u: b.i64(), v: b.i64(), q: b.i64(), s: b.i64(), eta: b.i64() };
    b.op().i64_const(-1).local_set(steps.eta);
    b.repeat(|b| {
        b.op().i64_const(0);
        for limb in g {
            b.op().local_get(limb).i64_or();
        }
        b.op().i64_eqz().br_if(1);
        step(b, &steps, f[0], g[0]);
        combine(b, &steps, d, e, true);
        combine(b, &steps, f, g, false);
    });
    // d · x = f = ±1, and d is above −2r and below r.
    add_r_if_negative(b, d);
    let sign = b.i64();
    b.op().local_get(f[4]).i64_const(63).i64_shr_s().local_set(sign);
    for limb in d {
        b.op().local_get(limb).local_get(sign).i64_xor().local_get(sign).i64_sub().local_set(limb);
    }
    carry(b, d);
    add_r_if_negative(b, d);
    carry(b, d);
    join(b, d)
}

/// Splits a number in 64-bit words into 62-bit limbs.
fn split(b: &mut Body, x: Wide) -> Limbs {
    std::array::from_fn(|i| {
        let limb = b.i64();
        // Bit 62i of the number is bit 64 − 2i of word i − 1.
        let (mut op, shift) = (b.op(), 2 * i as i64);
        match i {
            0 => op.local_get(x[0]),
            4 => op.local_get(x[3]).i64_const(64 - shift).i64_shr_u(),
            _ => {
                op.local_get(x[i - 1]).i64_const(64 - shift).i64_shr_u();
                op.local_get(x[i]).i64_const(shift).i64_shl().i64_or()
            }
        };
        op.i64_const(MASK).i64_and().local_set(limb);
        limb
    })
}

/// The inverse of [`split`]; no limb is negative.
fn join(b: &mut Body, x: Limbs) -> Wide {
    std::array::from_fn(|i| {
        let (word, shift) = (b.i64(), 2 * i as i64);
        b.op().local_get(x[i]).i64_const(shift).i64_shr_u();
        b.op().local_get(x[i + 1]).i64_const(62 - shift).i64_shl().i64_or().local_set(word);
        word
    })
}

/// Adds r to x, limb by limb, if x is negative.
fn add_r_if_negative(b: &mut Body, x: Limbs) {
    let negative = b.i64();
    b.op().local_get(x[4]).i64_const(63).i64_shr_s().local_set(negative);
    for (limb, r) in x.into_iter().zip(R_LIMBS) {
        b.op().local_get(negative).i64_const(r).i64_and().local_get(limb).i64_add().local_set(limb);
    }
}

/// Normalises all limbs except the last to 62 bits.
fn carry(b: &mut Body, x: Limbs) {
    for pair in x.windows(2) {
        b.op().local_get(pair[0]).i64_const(62).i64_shr_s().local_get(pair[1]).i64_add().local_set(pair[1]);
        b.op().local_get(pair[0]).i64_const(MASK).i64_and().local_set(pair[0]);
    }
}

/// 62 division steps on the low words of f and g.
fn step(b: &mut Body, steps: &Steps, low_f: u32, low_g: u32) {
    let Steps { u, v, q, s, eta } = *steps;
    let [f, g, left, zeros, swap, limit, w] = std::array::from_fn(|_| b.i64());
    for (local, value) in [(u, 1), (v, 0), (q, 0), (s, 1), (left, i64::from(LIMB))] {
        b.op().i64_const(value).local_set(local);
    }
    b.op().local_get(low_f).local_set(f).local_get(low_g).local_set(g);
    b.repeat(|b| {
        // All trailing zeros of g go at once, but no more than there are steps left.
        b.op().i64_const(-1).local_get(left).i64_shl().local_get(g).i64_or().i64_ctz().local_set(zeros);
        b.op().local_get(g).local_get(zeros).i64_shr_u().local_set(g);
        for local in [u, v] {
            b.op().local_get(local).local_get(zeros).i64_shl().local_set(local);
        }
        for local in [eta, left] {
            b.op().local_get(local).local_get(zeros).i64_sub().local_set(local);
        }
        b.op().local_get(left).i64_eqz().br_if(1);
        b.op().local_get(eta).i64_const(0).i64_lt_s();
        let negate = |b: &mut Body, x: u32, from: u32| {
            b.op().i64_const(0).local_get(from).i64_sub().local_set(x);
        };
        // Add a multiple of f to g that makes its low bits zero: as many as there are steps before f and g may be
        // swapped, at most six, or four with a shorter formula for −1/f.
        let bits = |b: &mut Body, most: i64| {
            b.op().local_get(eta).i64_const(1).i64_add().local_get(left);
            b.op().local_get(eta).i64_const(1).i64_add().local_get(left).i64_lt_s().select().local_set(limit);
            b.op().i64_const(-1).i64_const(64).local_get(limit).i64_sub().i64_shr_u().i64_const(most).i64_and();
        };
        b.choose(
            |b| {
                negate(b, eta, eta);
                for (x, y) in [(f, g), (u, q), (v, s)] {
                    b.op().local_get(x).local_set(swap).local_get(y).local_set(x);
                    negate(b, y, swap);
                }
                bits(b, 63);
                // −g/f modulo 2^6, because f² = 1 modulo 8.
                b.op().local_get(f).local_get(f).i64_mul().i64_const(2).i64_sub();
                b.op().local_get(f).i64_mul().local_get(g).i64_mul().i64_and().local_set(w);
            },
            |b| {
                bits(b, 15);
                b.op().local_get(f).i64_const(1).i64_add().i64_const(4).i64_and().i64_const(1).i64_shl();
                b.op().local_get(f).i64_add().local_set(w);
                b.op().i64_const(0).local_get(w).i64_sub().local_get(g).i64_mul().i64_and().local_set(w);
            },
        );
        for (x, y) in [(g, f), (q, u), (s, v)] {
            b.op().local_get(y).local_get(w).i64_mul().local_get(x).i64_add().local_set(x);
        }
    });
}

/// (u·x + v·y) / 2^62 into x and (q·x + s·y) / 2^62 into y: exact, or modulo r, for which multiples of r are added
/// first.
fn combine(b: &mut Body, steps: &Steps, x: Limbs, y: Limbs, modular: bool) {
    let rows = [(steps.u, steps.v), (steps.q, steps.s)].map(|(a, c)| {
        let (low, high, multiple) = (b.i64(), b.i64(), b.i64());
        b.op().i64_const(0).local_set(low).i64_const(0).local_set(high);
        (a, c, low, high, multiple)
    });
    if modular {
        // First, the multiple that makes a negative x or y positive.
        for (a, c, _, _, multiple) in rows {
            b.op().local_get(x[4]).i64_const(63).i64_shr_s().local_get(a).i64_and();
            b.op().local_get(y[4]).i64_const(63).i64_shr_s().local_get(c).i64_and().i64_add().local_set(multiple);
        }
    }
    for i in 0..5 {
        for (a, c, low, high, multiple) in rows {
            for (factor, limb) in [(a, x[i]), (c, y[i])] {
                b.op().local_get(low).local_get(high).local_get(factor).local_get(limb);
                b.op().i64_mul_wide_s().i64_add128().local_set(high).local_set(low);
            }
            if modular && i == 0 {
                // Then the multiple that makes the sum divisible by 2^62.
                b.op().local_get(multiple).local_get(low).i64_const(R_INVERSE).i64_mul().local_get(multiple).i64_add();
                b.op().i64_const(MASK).i64_and().i64_sub().local_set(multiple);
            }
            if modular {
                b.op().local_get(low).local_get(high).local_get(multiple).i64_const(R_LIMBS[i]);
                b.op().i64_mul_wide_s().i64_add128().local_set(high).local_set(low);
            }
        }
        for ((_, _, low, high, _), to) in rows.into_iter().zip([x, y]) {
            if i > 0 {
                b.op().local_get(low).i64_const(MASK).i64_and().local_set(to[i - 1]);
            }
            // An arithmetic shift by 62.
            b.op().local_get(low).i64_const(62).i64_shr_u().local_get(high).i64_const(2).i64_shl().i64_or();
            b.op().local_set(low).local_get(high).i64_const(62).i64_shr_s().local_set(high);
        }
    }
    for ((_, _, low, _, _), to) in rows.into_iter().zip([x, y]) {
        b.op().local_get(low).local_set(to[4]);
    }
}
