//! The conformance suite of every instruction set, against arkworks lane by lane.
#![allow(clippy::unwrap_used)]

use ark_ff::{AdditiveGroup, BigInteger, BigInteger256, Field as _, PrimeField, Zero};
use ark_std::rand::{Rng, SeedableRng, rngs::StdRng};

use super::{Isa, Lanes, Pair, unpack};

/// Checks both fields.
pub(in crate::backend::cpu) fn conforms<I: Isa>(isa: I) {
    field::<I::Fq>(isa);
    field::<I::Fr>(isa);
}

/// Random, with many of the values where carries and reductions go wrong.
fn element<F: PrimeField<BigInt = BigInteger256>>(rng: &mut StdRng, radix: u32) -> F {
    // Chosen in the vector's form, x·2^radix.
    let factor = F::from(2u64).pow([u64::from(radix)]).inverse().unwrap();
    let raw = |limbs: [u64; 4]| F::from_le_bytes_mod_order(&BigInteger256::new(limbs).to_bytes_le()) * factor;
    match rng.gen_range(0..10) {
        0 => raw([rng.gen_range(0..3), 0, 0, 0]),
        1 => -raw([rng.gen_range(0..3), 0, 0, 0]),
        2 => raw([u64::MAX, u64::MAX, u64::MAX, u64::MAX >> 3]),
        3 => raw(std::array::from_fn(|_| if rng.r#gen() { u64::MAX } else { 0 })),
        4 => raw(std::array::from_fn(|_| 1u64 << rng.gen_range(0..64))),
        // Near p/2 and near the boundaries of limbs of 51 and 52 bits.
        5 => F::from(2u64).inverse().unwrap() * factor + raw([rng.gen_range(0..4), 0, 0, 0]),
        6 => {
            let bit = [51, 52, 102, 104, 153, 156, 204, 208][rng.gen_range(0..8)];
            let power = F::from(2u64).pow([bit]) * factor;
            power - raw([rng.gen_range(0..3), 0, 0, 0])
        }
        _ => F::rand(rng),
    }
}

fn vector<L: Lanes>(isa: L::Isa, rng: &mut StdRng) -> (Vec<L::Element>, L) {
    let elements: Vec<L::Element> = (0..L::Isa::LANES).map(|_| element(rng, L::RADIX)).collect();
    let vector = L::encode(isa, &elements);
    (elements, vector)
}

fn check<L: Lanes>(what: &str, got: L, expected: impl Fn(usize) -> L::Element) {
    let mut out = vec![L::Element::ZERO; L::Isa::LANES];
    got.decode(&mut out);
    for (lane, got) in out.iter().enumerate() {
        assert_eq!(*got, expected(lane), "{} of lane {lane} on {}", what, L::Isa::NAME);
    }
}

fn field<L: Lanes>(isa: L::Isa) {
    let n = L::Isa::LANES;
    let all = ((1u64 << n) - 1) as u32;
    let mut rng = StdRng::seed_from_u64(7);
    for round in 0..2000 {
        let ((a, va), (b, vb), (c, vc)) =
            (vector::<L>(isa, &mut rng), vector::<L>(isa, &mut rng), vector::<L>(isa, &mut rng));
        check("encode", va, |i| a[i]);
        check("add", va.add(vb), |i| a[i] + b[i]);
        check("sub", va.sub(vb), |i| a[i] - b[i]);
        check("double", va.double(), |i| a[i].double());
        check("mul", L::mul(va, vb), |i| a[i] * b[i]);
        check("square", va.square(), |i| a[i].square());
        // Unreduced factors on both sides, and their squares.
        check("mul of differences", L::product(va.diff(vb), vb.diff(vc)), |i| (a[i] - b[i]) * (b[i] - c[i]));
        check("mul of sums", L::product(va.sum(vb), vb.sum(vc)), |i| (a[i] + b[i]) * (b[i] + c[i]));
        check("square of a difference", L::product(va.diff(vb), va.diff(vb)), |i| (a[i] - b[i]).square());
        check("square of a sum", L::product(va.sum(vb), va.sum(vb)), |i| (a[i] + b[i]).square());
        let mask = rng.r#gen::<u32>() & all;
        let bit = |i: usize| mask >> i & 1 == 1;
        check("negate_where", va.negate_where(mask), |i| if bit(i) { -a[i] } else { a[i] });
        let sign = |i: usize, x: L::Element| if bit(i) { -x } else { x };
        let (signed, minus) = (va.signed(mask), vc.signed(!mask & all));
        check("diff_signed", L::mul(L::diff_signed(signed, minus), vb), |i| (sign(i, a[i] + c[i])) * b[i]);
        check("mul_sub", L::mul_sub(va.diff(vb), vc, signed), |i| (a[i] - b[i]) * c[i] - sign(i, a[i]));
        check("square_sub", L::square_sub(va, vb, vc), |i| a[i].square() - b[i] - c[i]);
        check("select", va.select(vb, mask), |i| if bit(i) { b[i] } else { a[i] });
        check("splat", L::splat(isa, a[0]), |_| a[0]);

        // Zeros that come about in various ways.
        let zero_where = |v: L| (0..n).fold(0, |m, i| m | u32::from(v.zeros() >> i & 1 == 1) << i);
        let expected = |f: &dyn Fn(usize) -> L::Element| (0..n).fold(0, |m, i| m | u32::from(f(i).is_zero()) << i);
        assert_eq!(zero_where(va), expected(&|i| a[i]), "zeros on {}", L::Isa::NAME);
        assert_eq!(va.sub(va).zeros() & all, all, "a − a is zero on {}", L::Isa::NAME);
        assert_eq!(va.add(va.negate_where(all)).zeros() & all, all, "a + (−a) is zero on {}", L::Isa::NAME);
        let mixed = va.sub(va.select(vb, mask));
        assert_eq!(zero_where(mixed), expected(&|i| if bit(i) { a[i] - b[i] } else { L::Element::ZERO }));
        let product = L::mul(va.diff(va.select(vb, mask)), vc);
        let zero = L::Element::ZERO;
        assert_eq!(zero_where(product), expected(&|i| if bit(i) { (a[i] - b[i]) * c[i] } else { zero }));

        // Long chains without a reduction by the caller.
        let (mut chain, mut twin) = (va, a.clone());
        for step in 0..20 {
            chain = match step % 5 {
                0 => L::product(chain.sum(chain), vb.diff(chain)),
                1 => chain.add(chain),
                2 => vb.sub(chain),
                3 => chain.sub(vc).square(),
                _ => chain.sub(vc).sub(vb).double().negate_where(mask),
            };
            for (i, t) in twin.iter_mut().enumerate() {
                *t = match step % 5 {
                    0 => t.double() * (b[i] - *t),
                    1 => t.double(),
                    2 => b[i] - *t,
                    3 => (*t - c[i]).square(),
                    _ => (*t - c[i] - b[i]).double() * if bit(i) { -L::Element::ONE } else { L::Element::ONE },
                };
            }
        }
        check("a chain", chain, |i| twin[i]);

        if round % 50 == 0 {
            check("invert", va.invert(), |i| a[i].inverse().unwrap_or_default());
            assert_eq!(va.sub(va).invert().zeros() & all, all, "1/0 is 0 on {}", L::Isa::NAME);
        }

        // A square of vectors, one of them from the chain.
        let rows: Vec<(Vec<L::Element>, L)> = (0..n).map(|_| vector::<L>(isa, &mut rng)).collect();
        let mut square: Vec<L> = rows.iter().map(|(_, v)| *v).collect();
        square[n - 1] = chain;
        L::transpose(isa, &mut square);
        for (q, column) in square.iter().enumerate() {
            check("transpose", *column, |k| if k == n - 1 { twin[q] } else { rows[k].0[q] });
        }

        // Packed elements, from scattered places; then with representatives that are not the least.
        let mut packed = vec![Pair::default(); 3 * n];
        L::store([va, vb], &mut packed[n..2 * n]);
        L::store([chain, vc.sub(vb)], &mut packed[2 * n..]);
        for i in 0..n {
            assert_eq!(unpack::<L>(&packed[n + i].0[0]), a[i], "store on {}", L::Isa::NAME);
            assert_eq!(unpack::<L>(&packed[2 * n + i].0[0]), twin[i]);
            assert_eq!(unpack::<L>(&packed[2 * n + i].0[1]), c[i] - b[i]);
        }
        for pair in &mut packed {
            for limbs in &mut pair.0 {
                let mut more = BigInteger256::new(*limbs);
                if round % 3 == 0 && !more.add_with_carry(&L::Element::MODULUS) {
                    *limbs = more.0;
                }
            }
        }
        let at: Vec<u32> = (0..n).map(|_| rng.gen_range(0..3 * n) as u32).collect();
        let [x, y] = L::gather(isa, &packed, &at);
        check("gather", x, |i| unpack::<L>(&packed[at[i] as usize].0[0]));
        check("gather", y, |i| unpack::<L>(&packed[at[i] as usize].0[1]));
        check("mul of gathered", L::product(x.diff(y), y.sum(x)), |i| {
            let [x, y] = packed[at[i] as usize].0;
            unpack::<L>(&x).square() - unpack::<L>(&y).square()
        });
    }
}
