//! The bounds, with limbs at their limits.
#![allow(clippy::unwrap_used)]

use ark_ff::{Field as _, PrimeField};
use ark_std::rand::{Rng, SeedableRng, rngs::StdRng};
use num_bigint::BigUint;

use super::super::suite;
use super::*;

type Element<C> = Fp<MontBackend<C, 4>, 4>;

/// Returns the bounds of the four low limbs and of the highest, of reduced and of loose values.
fn bounds<C: MontConfig<4>>() -> [(i64, i64); 2] {
    let unit = (C::MODULUS.0[3] >> 12) as f64;
    [(1 << 50, (0.69 * unit) as i64), (1 << 51, (1.38 * unit) as i64)]
}

fn lanes(limbs: &Limbs) -> [[i64; 5]; 8] {
    // SAFETY: a vector of four doubles has their size, and any bits are doubles.
    let doubles: [[[f64; 4]; 5]; 2] = unsafe { std::mem::transmute(limbs.0) };
    std::array::from_fn(|k| std::array::from_fn(|j| doubles[k / 4][j][k % 4] as i64))
}

fn limbs(lanes: &[[i64; 5]; 8]) -> Limbs {
    let doubles: [[[f64; 4]; 5]; 2] =
        std::array::from_fn(|h| std::array::from_fn(|j| std::array::from_fn(|k| lanes[4 * h + k][j] as f64)));
    // SAFETY: as above.
    Limbs(unsafe { std::mem::transmute::<[[[f64; 4]; 5]; 2], [[__m256d; 5]; 2]>(doubles) })
}

/// Returns the value that limbs represent.
fn value<C: MontConfig<4>>(limbs: &[i64; 5]) -> Element<C> {
    limbs.iter().rev().fold(Element::<C>::from(0u64), |sum, limb| {
        let size = Element::<C>::from(limb.unsigned_abs());
        sum * Element::<C>::from(1u64 << 51) + if *limb < 0 { -size } else { size }
    })
}

fn assert_reduced<C: MontConfig<4>>(limbs: &[i64; 5]) {
    let (low, top) = bounds::<C>()[0];
    assert!(limbs[..4].iter().all(|limb| limb.abs() <= low), "{limbs:?}");
    assert!(limbs[4].abs() <= top + 1, "{limbs:?}");
}

/// Returns lanes within bounds, with most limbs at or next to them.
fn extreme(rng: &mut StdRng, (low, top): (i64, i64)) -> [[i64; 5]; 8] {
    std::array::from_fn(|_| {
        let kind = rng.gen_range(0..4);
        std::array::from_fn(|j| {
            // One less in the highest limb, to allow for what the lower ones add.
            let most = if j < 4 { low } else { top - 1 };
            match if kind == 0 { 0 } else { rng.gen_range(0..6) } {
                0 => most,
                1 => -most,
                2 => most - rng.gen_range(0..3),
                3 => rng.gen_range(0..3) - most,
                4 => rng.gen_range(-1..=1),
                _ => rng.gen_range(-most..=most),
            }
        })
    })
}

fn products<C: MontConfig<4>>() {
    let mut rng = StdRng::seed_from_u64(1);
    let [reduced, loose] = bounds::<C>();
    let divisor = Element::<C>::from(2u64).pow([204]).inverse().unwrap();
    for round in 0..3000 {
        let (a, b) = (extreme(&mut rng, loose), extreme(&mut rng, if round % 3 == 0 { reduced } else { loose }));
        let product = lanes(&Eight::<C>::multiplied(&limbs(&a), &limbs(&b)).0);
        let square = lanes(&Eight::<C>::squared(&limbs(&a)).0);
        for k in 0..8 {
            let (x, y) = (value::<C>(&a[k]), value::<C>(&b[k]));
            assert_eq!(value::<C>(&product[k]), x * y * divisor, "{:?} times {:?}", a[k], b[k]);
            assert_eq!(value::<C>(&square[k]), x * x * divisor, "the square of {:?}", a[k]);
            assert_reduced::<C>(&product[k]);
            assert_reduced::<C>(&square[k]);
        }
    }
}

/// The greatest limbs with all signs, where the halves of products are at the ends of their ranges.
fn corners<C: MontConfig<4>>() {
    let (low, top) = bounds::<C>()[1];
    let divisor = Element::<C>::from(2u64).pow([204]).inverse().unwrap();
    let signed =
        |bits: usize| std::array::from_fn(|j| (if j < 4 { low } else { top - 1 }) * (1 - 2 * (bits >> j & 1) as i64));
    for bits in 0..32 {
        let a = [signed(bits); 8];
        for others in 0..4 {
            let b: [[i64; 5]; 8] = std::array::from_fn(|k| signed(8 * others + k));
            let product = lanes(&Eight::<C>::multiplied(&limbs(&a), &limbs(&b)).0);
            for k in 0..8 {
                assert_eq!(value::<C>(&product[k]), value::<C>(&a[k]) * value::<C>(&b[k]) * divisor);
                assert_reduced::<C>(&product[k]);
            }
        }
    }
}

fn sums<C: MontConfig<4>>() {
    let mut rng = StdRng::seed_from_u64(2);
    let [reduced, loose] = bounds::<C>();
    for _ in 0..3000 {
        let (a, b) = (extreme(&mut rng, reduced), extreme(&mut rng, reduced));
        let (x, y) = (Eight::<C>(limbs(&a), PhantomData), Eight::<C>(limbs(&b), PhantomData));
        let (sum, difference) = (lanes(&x.add(y).0), lanes(&x.sub(y).0));
        let (negated, wide) = (lanes(&x.negate_where(0x5a).0), lanes(&x.diff(y).0));
        let mut packed = [Pair::default(); 8];
        Eight::<C>::store([x, y], &mut packed);
        for k in 0..8 {
            let (u, v) = (value::<C>(&a[k]), value::<C>(&b[k]));
            assert_eq!(value::<C>(&sum[k]), u + v);
            assert_eq!(value::<C>(&difference[k]), u - v);
            assert_eq!(value::<C>(&negated[k]), if 0x5a >> k & 1 == 1 { -u } else { u });
            for reduced in [sum[k], difference[k], negated[k]] {
                assert_reduced::<C>(&reduced);
            }
            assert!(wide[k].iter().all(|limb| limb.abs() <= loose.0));
            for (packed, expected) in packed[k].0.iter().zip([u, v]) {
                assert!(
                    BigInteger256::new(*packed) < {
                        let mut twice = C::MODULUS;
                        twice.mul2();
                        twice
                    }
                );
                assert_eq!(Element::<C>::from_le_bytes_mod_order(&BigInteger256::new(*packed).to_bytes_le()), expected);
            }
        }
    }
}

/// Packed elements need not be below p.
fn unpacked<C: MontConfig<4>>()
where
    Eight<C>: Lanes<Isa = Avx2>,
{
    let mut rng = StdRng::seed_from_u64(3);
    for _ in 0..500 {
        let limb = |rng: &mut StdRng| [0, u64::MAX, 1 << 63, rng.r#gen()][rng.gen_range(0..4)];
        let from: [Pair; 8] =
            std::array::from_fn(|_| Pair(std::array::from_fn(|_| std::array::from_fn(|_| limb(&mut rng)))));
        let at = [3, 1, 4, 1, 5, 7, 2, 6];
        for (c, vector) in Eight::<C>::gather(Avx2(()), &from, &at).iter().enumerate() {
            for (lane, at) in lanes(&vector.0).iter().zip(at) {
                let packed = BigInteger256::new(from[at as usize].0[c]);
                assert_eq!(value::<C>(lane), Element::<C>::from_le_bytes_mod_order(&packed.to_bytes_le()));
                assert_reduced::<C>(lane);
            }
        }
    }
}

fn constants<C: MontConfig<4>>() {
    let p = BigUint::from(C::MODULUS);
    // The reciprocal, with the precision that the bound of products relies on.
    let quotient = Eight::<C>::TABLE.at(Table::QUOTIENT);
    let (scaled, one) =
        (p * ((quotient * (1u64 << 52) as f64 * (1u64 << 50) as f64) as u64), BigUint::from(1u8) << 306);
    let error = if scaled > one { scaled - &one } else { &one - scaled };
    assert!(error << 55 <= one);
    // The step, times 2^51, is a multiple of p plus one, and is not above half of p.
    let step: [i64; 5] = std::array::from_fn(|j| Eight::<C>::TABLE.at(j) as i64);
    assert_eq!(value::<C>(&step) * Element::<C>::from(1u64 << 51), Element::<C>::from(1u64));
    assert!(step[4].unsigned_abs() <= C::MODULUS.0[3] >> 13);
}

macro_rules! on_both_fields {
    ($($test:ident: $check:ident;)*) => {
        $(
            #[test]
            fn $test() {
                if Avx2::detect().is_some() {
                    $check::<ark_bn254::FqConfig>();
                    $check::<ark_bn254::FrConfig>();
                }
            }
        )*
    };
}

on_both_fields! {
    products_of_limbs_at_their_limits: products;
    products_of_the_greatest_factors: corners;
    sums_of_limbs_at_their_limits: sums;
    packed_elements_up_to_256_bits: unpacked;
    constants_of_the_product: constants;
}

#[test]
fn conforms() {
    if let Some(isa) = Avx2::detect() {
        suite::conforms(isa);
    }
}
