//! The suite, the instructions against their emulation, and the field against big integers at its bounds.
#![allow(clippy::unwrap_used)]

use std::array::from_fn;

use ark_bn254::{FqConfig, FrConfig};
use ark_ff::{BigInteger256, Fp, MontBackend, MontConfig, PrimeField};
use ark_std::rand::{Rng, SeedableRng, rngs::StdRng};
use num_bigint::{BigInt, BigUint};

use super::super::{Field, Lanes, outlined::Outlined, suite::conforms};
use super::constants::{Constants, MASK, Table};
use super::emulated::{Emulated, EmulatedIfma};
use super::field::{LANES, Loose, Vector};
use super::words::Words;

#[test]
fn the_emulated_instruction_set_conforms() {
    conforms(Outlined(EmulatedIfma));
}

#[test]
fn bounds_hold_emulated() {
    bounds::<Emulated>(EmulatedIfma);
}

#[cfg(target_arch = "x86_64")]
mod real {
    use super::super::super::{Isa, Kernel, Pair};
    use super::super::{Avx512Ifma, zmm::Zmm};
    use super::*;

    /// Returns the instruction set of this CPU, or reports on standard error that a test was skipped.
    fn detected(test: &str) -> Option<Avx512Ifma> {
        let isa = Avx512Ifma::detect();
        if isa.is_none() {
            eprintln!("SKIPPED, since this processor lacks AVX-512 IFMA: {test}");
        }
        isa
    }

    #[test]
    fn the_instruction_set_conforms() {
        if let Some(isa) = detected("the suite on the instructions themselves") {
            conforms(Outlined(isa));
        }
    }

    #[test]
    fn bounds_hold() {
        if let Some(isa) = detected("bounds on the instructions themselves") {
            bounds::<Zmm>(isa);
        }
    }

    #[test]
    fn instructions_are_as_emulated() {
        let Some(isa) = detected("each instruction against its emulation") else { return };
        let mut rng = StdRng::seed_from_u64(5);
        for _ in 0..2000 {
            let [a, b, c] = from_fn(|_| words(&mut rng));
            let mask = rng.r#gen();
            let real = every_operation(isa, [a, b, c].map(|x| Zmm::load(isa, &x)), mask);
            let emulated = every_operation(EmulatedIfma, [a, b, c].map(Emulated), mask);
            for ((what, real), (_, emulated)) in real.iter().zip(&emulated) {
                assert_eq!(real, emulated, "{what} of {a:x?}, {b:x?}, {c:x?} and mask {mask:x}");
            }
        }
    }

    /// Whole kernels as the compiler makes them, not only single operations.
    #[test]
    fn kernels_are_as_emulated() {
        let Some(isa) = detected("kernels against their emulation") else { return };
        let mut rng = StdRng::seed_from_u64(6);
        for _ in 0..500 {
            let pairs: Vec<Pair> =
                (0..40).map(|_| Pair(from_fn(|_| packed(&extreme::<FqConfig>(&mut rng, 256))))).collect();
            let at: Vec<u32> = (0..LANES).map(|_| rng.gen_range(0..40)).collect();
            let (from, at) = (pairs.as_slice(), at.as_slice());
            assert_eq!(isa.enter(Everything { from, at }), EmulatedIfma.enter(Everything { from, at }));
        }
    }

    /// Words of all kinds.
    fn words(rng: &mut StdRng) -> [u64; 8] {
        from_fn(|_| match rng.gen_range(0..6) {
            0 => 0,
            1 => u64::MAX,
            2 => MASK,
            3 => 1 << rng.gen_range(0..64),
            _ => rng.r#gen(),
        })
    }

    /// Returns the result of each operation on words, with its name.
    fn every_operation<W: Words>(isa: W::Isa, [a, b, c]: [W; 3], mask: u8) -> Vec<(&'static str, [u64; 8])> {
        let mut outcomes: Vec<(&'static str, [u64; 8])> = [
            ("load", a),
            ("splat", W::splat(isa, b.to_array()[0])),
            ("add", a.add(b)),
            ("sub", a.sub(b)),
            ("and", a.and(b)),
            ("or", a.or(b)),
            ("shr", a.shr::<52>()),
            ("shr", a.shr::<12>()),
            ("sar", a.sar::<52>()),
            ("shl", a.shl::<24>()),
            ("madd_low", a.madd_low(b, c)),
            ("madd_high", a.madd_high(b, c)),
            ("look_up", a.look_up(b)),
            ("look_up_16", a.look_up_16([b, c])),
            ("rotate", a.rotate::<1>()),
            ("rotate", a.rotate::<2>()),
            ("rotate", a.rotate::<4>()),
            ("blend", a.blend(b, mask)),
        ]
        .map(|(what, words)| (what, words.to_array()))
        .into();
        let same = a.blend(b, 0x3c);
        let square = W::transpose([a, b, c, a.add(b), b.rotate::<1>(), a.sub(c), c.rotate::<2>(), b.sub(c)]);
        outcomes.extend(square.map(|words| ("transpose", words.to_array())));
        outcomes.push(("equal", [u64::from(a.equal(same, mask)); 8]));
        outcomes.push(("negative", [u64::from(a.negative()); 8]));
        let mut cleared = a;
        cleared.clear();
        outcomes.push(("clear", cleared.to_array()));

        let word = |w: W, k: usize| w.to_array()[k];
        let pairs: [Pair; 8] =
            from_fn(|k| Pair([[word(a, k), word(b, k), word(c, k), 1], [word(b, k), 2, word(a, k), 3]]));
        let limbs = W::gather(isa, pairs.each_ref());
        outcomes.extend(limbs.as_flattened().iter().map(|limb| ("gather", limb.to_array())));
        let mut back = [Pair::default(); 8];
        W::scatter(limbs, &mut back);
        assert_eq!(back, pairs, "scatter undoes gather");
        outcomes
    }

    /// Every operation of the field, each on the results of others.
    struct Everything<'a> {
        from: &'a [Pair],
        at: &'a [u32],
    }

    impl<I: Isa> Kernel<I> for Everything<'_> {
        type Out = (Vec<Pair>, u32, Vec<ark_bn254::Fq>);

        #[inline(always)]
        fn run(self, isa: I) -> Self::Out {
            let [x, y] = I::Fq::gather(isa, self.from, self.at);
            let product = I::Fq::product(x.diff(y), y.sum(x));
            let square = y.sub(product).square();
            let zeros = x.sub(y).zeros() | square.sub(square).zeros() << 16;
            let mixed = square.select(x.add(y), 0x3aa5).negate_where(0x0ff0);
            let constant = I::Fq::splat(isa, 77u64.into());
            let mut elements = vec![ark_bn254::Fq::from(0u64); I::LANES];
            I::Fq::mul(mixed, constant).decode(&mut elements);
            let encoded = I::Fq::encode(isa, &elements);
            let less =
                I::Fq::mul_sub(I::Fq::diff_signed(x.signed(0x1234), y.signed(0xf0f0)), mixed, product.signed(0x5aa5));
            let square_less = I::Fq::square_sub(less, mixed, x);
            let factor = [I::Fq::component_sum(x, y), I::Fq::component_diff(y.signed(0), less.signed(0xff))];
            let complex = I::Fq::complex_mul(factor, [square_less, x]);
            let complex_less = I::Fq::complex_mul_sub(factor, complex, [x.signed(0x0f0f), less.signed(0xff00)]);
            let complex_square = I::Fq::complex_square_sub(complex_less, complex, [less, y]);
            let mut rows = vec![y.invert(); I::LANES];
            for (k, row) in rows.iter_mut().enumerate() {
                *row = if k % 2 == 0 { *row } else { complex_square[k / 2 % 2] };
            }
            rows[3] = square_less;
            I::Fq::transpose(isa, &mut rows);
            let mut out = vec![Pair::default(); 6 * I::LANES];
            I::Fq::store([less, square_less], &mut out[2 * I::LANES..3 * I::LANES]);
            I::Fq::store(complex_less, &mut out[3 * I::LANES..4 * I::LANES]);
            I::Fq::store(complex_square, &mut out[4 * I::LANES..5 * I::LANES]);
            I::Fq::store([rows[0], rows[5]], &mut out[5 * I::LANES..]);
            I::Fq::store([product, square.double()], &mut out[..I::LANES]);
            I::Fq::store([mixed.sub(encoded), I::Fq::mul(encoded, encoded)], &mut out[I::LANES..2 * I::LANES]);
            (out, zeros, elements)
        }
    }

    fn packed(x: &BigUint) -> [u64; 4] {
        digits(x, 64)
    }
}

fn prime<C: MontConfig<4>>() -> BigUint {
    C::MODULUS.into()
}

/// Returns the number with these limbs, of 52 bits, or more, or negative.
fn number(limbs: &[u64; 5]) -> BigInt {
    limbs.iter().rev().fold(BigInt::ZERO, |sum, &limb| (sum << 52) + limb as i64)
}

/// Returns the words of a number, of `bits` bits each.
fn digits<const N: usize>(x: &BigUint, bits: u32) -> [u64; N] {
    from_fn(|i| (x >> (bits as usize * i)).iter_u64_digits().next().unwrap_or(0) & (u64::MAX >> (64 - bits)))
}

/// Makes words from the limbs of each lane.
fn join<W: Words>(isa: W::Isa, lanes: &[[u64; 5]; LANES]) -> [[W; 5]; LANES / 8] {
    from_fn(|h| from_fn(|i| W::load(isa, &from_fn(|k| lanes[8 * h + k][i]))))
}

/// Returns the limbs of a lane as a number.
fn lane<W: Words, C>(vector: &Vector<W, C>, k: usize) -> BigUint {
    number(&vector.halves[k / 8].map(|word| word.to_array()[k % 8])).try_into().unwrap()
}

/// Returns a number below 2^`bits`, often at a bound: of the range, of limbs, of multiples of p, of table ranges.
fn extreme<C: MontConfig<4>>(rng: &mut StdRng, bits: u32) -> BigUint {
    let top = BigUint::from(1u32) << bits;
    let near = BigUint::from(rng.gen_range(0..3u32)) << [0, 0, 52, 104, 156, 208][rng.gen_range(0..6)];
    let all_ones: BigUint = number(&from_fn(|_| if rng.r#gen() { MASK } else { 0 })).try_into().unwrap();
    let random: BigUint = number(&from_fn(|_| rng.r#gen::<u64>() & MASK)).try_into().unwrap();
    let x = match rng.gen_range(0..7) {
        0 => &top - 1u32 - near,
        1 => near,
        2 => prime::<C>() * rng.gen_range(0..12u32) + near,
        3 => prime::<C>() * rng.gen_range(1..12u32) - near,
        4 => (BigUint::from(rng.gen_range(1..9u32)) << rng.gen_range(252..255)) - near,
        5 => all_ones,
        _ => random,
    };
    x % top
}

fn bounds<W: Words>(isa: W::Isa) {
    sums::<W, FqConfig>(isa);
    sums::<W, FrConfig>(isa);
    products::<W, FqConfig>(isa);
    products::<W, FrConfig>(isa);
}

/// Sums, differences, negatives and zeros of representatives at their bounds.
fn sums<W: Words, C: MontConfig<4>>(isa: W::Isa)
where
    Fp<MontBackend<C, 4>, 4>: PrimeField<BigInt = BigInteger256>,
{
    let mut rng = StdRng::seed_from_u64(11);
    let p = prime::<C>();
    let sixfold = &p * 6u32;
    for _ in 0..3000 {
        let [a, b]: [[BigUint; LANES]; 2] = from_fn(|_| from_fn(|_| extreme::<C>(&mut rng, 256)));
        let [x, y] = [&a, &b].map(|n| Vector::<W, C>::new(join(isa, &from_fn(|k| digits(&n[k], 52)))));
        let [sum, difference, negated] = [x.add(y), x.sub(y), x.negate_where(0x5555)];
        let (loose_sum, loose_difference) = (x.sum(y), x.diff(y));
        let zeros = x.zeros();
        let signs = [(0, 0), (0x3c3c, 0), (0, 0x9999), (0xffff, 0x0f0f)];
        for (minus, other) in signs {
            let difference = Vector::diff_signed(x.signed(minus), y.signed(other));
            for k in 0..LANES {
                let signed = |n: &BigUint, mask: u32| {
                    let n = BigInt::from(n.clone());
                    if mask >> k & 1 == 1 { -n } else { n }
                };
                let limbs = difference.halves[k / 8].map(|word| word.to_array()[k % 8] & MASK);
                let got = number(&limbs);
                let expected = signed(&a[k], minus) - signed(&b[k], other);
                assert_eq!(
                    (&got - expected) % BigInt::from(p.clone()),
                    BigInt::ZERO,
                    "a factor of {} and {}",
                    a[k],
                    b[k]
                );
                assert!(got >= BigInt::ZERO && got <= BigInt::from(&p * 12u32), "a factor is at most 12p");
            }
        }
        for k in 0..LANES {
            let (a, b) = (&a[k], &b[k]);
            for (what, got, expected) in
                [("sum", lane(&sum, k), a + b), ("difference", lane(&difference, k), &sixfold + a - b)]
            {
                assert_eq!(&got % &p, expected % &p, "{what} of {a} and {b}");
                assert!(got * 5u32 < &p * 12u32, "the {what} of {a} and {b} is reduced to 2.4p");
            }
            if k % 2 == 0 {
                assert_eq!((lane(&negated, k) + a) % &p, BigUint::ZERO, "−{a}");
                assert!(lane(&negated, k) < &p * 3u32, "−{a} is reduced");
            } else {
                assert_eq!(lane(&negated, k), *a, "a lane that is not to be negated");
            }
            assert_eq!(zeros >> k & 1 == 1, a % &p == BigUint::ZERO, "whether {a} is zero");
            // The limbs as the multiplier reads them.
            for (loose, expected) in [(&loose_sum, a + b), (&loose_difference, &sixfold + a - b)] {
                let limbs = loose.halves[k / 8].map(|word| word.to_array()[k % 8] & MASK);
                assert_eq!(BigUint::try_from(number(&limbs)).unwrap(), expected, "a factor of {a} and {b}");
            }
        }
    }
}

/// Products and squares of factors up to 12p, with limbs that have bits to be ignored.
fn products<W: Words, C: MontConfig<4>>(isa: W::Isa)
where
    Fp<MontBackend<C, 4>, 4>: PrimeField<BigInt = BigInteger256>,
{
    let mut rng = StdRng::seed_from_u64(12);
    let p = prime::<C>();
    let bound = &p * 12u32;
    for _ in 0..3000 {
        let [a, b]: [[BigUint; LANES]; 2] = from_fn(|_| {
            from_fn(|_| match rng.gen_range(0..4) {
                0 => &bound - 1u32 - rng.gen_range(0..3u32),
                // The largest limbs below the bound.
                1 => ((&bound >> 208) << 208) - 1u32,
                _ => extreme::<C>(&mut rng, 258) % &bound,
            })
        });
        let [x, y] = [&a, &b].map(|n| {
            Loose::<W, C>::new(join(
                isa,
                &from_fn(|k| {
                    let mut limbs: [u64; 5] = digits(&n[k], 52);
                    for limb in &mut limbs[..4] {
                        *limb |= rng.r#gen::<u64>() & !MASK;
                    }
                    limbs
                }),
            ))
        });
        let mut elements: [[BigUint; LANES]; 5] = from_fn(|_| {
            from_fn(|_| match rng.gen_range(0..4) {
                0 => (BigUint::from(1u32) << 256u32) - 1u32 - rng.gen_range(0..3u32),
                1 => BigUint::from(rng.gen_range(0..3u32)),
                _ => extreme::<C>(&mut rng, 256),
            })
        });
        // The extreme case: zero, from which the greatest elements are subtracted.
        elements[0][3] = BigUint::ZERO;
        for greatest in &mut elements[1..] {
            greatest[3] = (BigUint::from(1u32) << 256u32) - 1u32;
        }
        let [c, d, e, f, g] =
            [0, 1, 2, 3, 4].map(|i| Vector::<W, C>::new(join(isa, &from_fn(|k| digits(&elements[i][k], 52)))));
        let minus = rng.r#gen::<u32>();
        let [complex, complex_less] = [
            Vector::complex_mul([x, y], [c, d]),
            Vector::complex_mul_sub([x, y], [c, d], [e.signed(minus), f.signed(!minus)]),
        ];
        let [real, imaginary] = Vector::complex_square_sub([c, d], [e, f], [g, c]);
        let got = [
            Vector::product(x, y),
            c.square(),
            Vector::mul_sub(x, c, d.signed(minus)),
            Vector::square_sub(c, d, e),
            complex[0],
            complex[1],
            complex_less[0],
            complex_less[1],
            real,
            imaginary,
        ];
        let p = BigInt::from(p.clone());
        let radix = BigInt::from(1) << 260;
        for k in 0..LANES {
            let [a, b] = [&a[k], &b[k]].map(|n| BigInt::from(n.clone()));
            let [c, d, e, f, g] = [0, 1, 2, 3, 4].map(|i| BigInt::from(elements[i][k].clone()));
            let sign = if minus >> k & 1 == 1 { BigInt::from(-1) } else { BigInt::from(1) };
            let (real, imaginary) = (&a * &c - &b * &d, &a * &d + &b * &c);
            let expected = [
                &a * &b,
                &c * &c,
                &a * &c - &sign * &d * &radix,
                &c * &c - (&d + &e) * &radix,
                real.clone(),
                imaginary.clone(),
                real - &sign * &e * &radix,
                imaginary + &sign * &f * &radix,
                &c * &c - &d * &d - (&e + &g) * &radix,
                &c * &d * 2 - (&f + &c) * &radix,
            ];
            for (i, (got, expected)) in got.iter().zip(expected).enumerate() {
                let got = lane(got, k);
                assert!(got.bits() <= 256, "{i} is below 2^256: of {a}, {b}, {c}, {d}, {e}, {f}");
                let difference = BigInt::from(got) * &radix - expected;
                assert_eq!(difference % &p, BigInt::ZERO, "{i}: of {a}, {b}, {c}, {d}, {e}, {f}");
            }
        }
    }
}

#[test]
fn constants_are_as_named() {
    constants::<FqConfig>();
    constants::<FrConfig>();
}

fn constants<C: MontConfig<4>>() {
    let p = prime::<C>();
    let unsigned = |limbs: &[u64; 5]| BigUint::try_from(number(limbs)).unwrap();
    let power = |k: u32| BigUint::from(1u32) << k;
    assert_eq!(unsigned(&Constants::<C>::P), p);
    assert_eq!(unsigned(&Constants::<C>::P6), &p * 6u32);
    assert_eq!((&p * Constants::<C>::DIGIT + 1u32) % power(52), BigUint::ZERO);
    for (k, shift) in Constants::<C>::SHIFTS.iter().enumerate() {
        assert_eq!((unsigned(shift) << (52 * (k + 1))) % &p, BigUint::from(1u32));
        assert!(unsigned(shift) < p);
    }
    assert_eq!(unsigned(&Constants::<C>::FROM_ARK), power(264) % &p);
    assert_eq!(unsigned(&Constants::<C>::TO_ARK), power(256) % &p);
    assert_eq!(unsigned(&Constants::<C>::OF_INVERSE), power(780) % &p);

    let entry = |table: &Table, k: usize| number(&from_fn(|i| table[i][k]));
    let p = BigInt::from(p);
    let power = |k: u32| BigInt::from(1) << k;
    for k in 0..8usize {
        // The remainder over the whole range of the bits, one unit of the top limb less or more included.
        let unit = power(208);
        let (low, high) = (power(254) * k, power(254) * (k + 1) + &unit);
        let sum = entry(Constants::<C>::OF_SUM, k);
        assert!(low >= sum && (high - &sum) * 5 < &p * 12, "sums {k}");

        let signed = if k < 4 { k as i64 } else { k as i64 - 8 };
        let (low, high) = (power(254) * signed - &unit, power(254) * (signed + 1));
        let difference = entry(Constants::<C>::OF_DIFFERENCE, k);
        assert!(low >= difference && (high - &difference) * 5 < &p * 12, "differences {k}");

        for (k, half) in [(k as i64, 0), (k as i64 - 8, 1)] {
            let (low, high) = (power(254) * k - &unit * 2, power(254) * (k + 1) + &unit * 40);
            let entry = k.rem_euclid(8) as usize;
            let product = number(&from_fn(|i| Constants::<C>::OF_PRODUCT[i][half][entry]));
            assert!(low >= product && (high - &product) * 5 < &p * 12, "products {k}");
            assert_eq!(product % &p, BigInt::ZERO, "multiples of p");
        }

        let (low, high) = (power(253) * k, power(253) * (k + 1));
        let element = entry(Constants::<C>::OF_ELEMENT, k);
        assert!(low >= element && high.clone() - &element < &p * 2, "elements {k}");
        let above = entry(Constants::<C>::ABOVE, k);
        assert!(high <= above && above - &low < &p * 3, "negatives {k}");
    }
    for table in [
        Constants::<C>::OF_SUM,
        Constants::<C>::OF_DIFFERENCE,
        Constants::<C>::OF_ELEMENT,
        Constants::<C>::ABOVE,
        Constants::<C>::ZEROS,
    ] {
        for k in 0..8 {
            assert_eq!(entry(table, k) % &p, BigInt::ZERO, "multiples of p");
        }
    }
}
