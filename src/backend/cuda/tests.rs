//! MSMs and whole commitments on the driver that runs kernels on the CPU, with threads in several orders.
#![allow(clippy::unwrap_used)]

use std::sync::Arc;

use ark_ec::short_weierstrass::{Affine, Projective};
use ark_ec::{AffineRepr, CurveGroup, VariableBaseMSM};
use ark_ff::{BigInteger, BigInteger256, Field, One, PrimeField, UniformRand, Zero};
use ark_std::rand::{Rng, SeedableRng, rngs::StdRng};

use super::driver::host::{HostDriver, Order};
use super::lab::{Field as OfWhat, Group, InG1, InG2, Lab};
use super::*;
use crate::backend::selftest;
use crate::model::{Fq, Fq2, Fr, G1, G2};

const ORDERS: [Order; 3] = [Order::Ascending, Order::Descending, Order::Random(7)];

fn lab(order: Order) -> Lab {
    Lab::new(Arc::new(HostDriver::new(order))).unwrap()
}

/// Returns a section of a key with these points.
fn section<G: Group>(points: &[Affine<G::Config>]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(points.len() * G::BYTES);
    for p in points {
        if p.is_zero() {
            bytes.extend(vec![0; G::BYTES]);
            continue;
        }
        for coordinate in [p.x, p.y] {
            for element in coordinate.to_base_prime_field_elements() {
                let element = Fq::from_le_bytes_mod_order(&element.into_bigint().to_bytes_le());
                bytes.extend(element.0.0.iter().flat_map(|limb| limb.to_le_bytes()));
            }
        }
    }
    bytes
}

/// Returns distinct points, computed cheaply: a walk with a random step.
fn points<G: CurveGroup>(n: usize, rng: &mut StdRng) -> Vec<G::Affine> {
    let (mut at, step) = (G::rand(rng), G::rand(rng));
    let walk: Vec<G> = (0..n)
        .map(|_| {
            at += step;
            at
        })
        .collect();
    G::normalize_batch(&walk)
}

fn scalars(kind: usize, n: usize, rng: &mut StdRng) -> Vec<Fr> {
    let fixed = Fr::rand(rng);
    let half = Fr::from(Fr::MODULUS_MINUS_ONE_DIV_TWO);
    (0..n)
        .map(|i| match kind {
            0 => Fr::rand(rng),
            1 => Fr::zero(),
            2 => Fr::one(),
            3 => -Fr::one(),
            4 => Fr::from(rng.gen_range(0..2u64)),
            5 => fixed,
            6 => Fr::from(rng.gen_range(0..1u64 << 20)),
            7 => -Fr::from(rng.gen_range(0..300u64)),
            8 => [half, half + Fr::one(), half - Fr::one(), Fr::rand(rng)][i % 4],
            _ => [fixed, -fixed][i % 2],
        })
        .collect()
}

fn check<G: Group>(lab: &Lab, points: &[Affine<G::Config>], scalars: &[Fr], multiples: u64, window: Option<(u32, u32)>)
where
    Projective<G::Config>: VariableBaseMSM<MulBase = Affine<G::Config>, ScalarField = Fr>,
{
    let plain: Vec<BigInteger256> = scalars.iter().map(|s| s.into_bigint()).collect();
    let expected = Projective::<G::Config>::msm_bigint(points, &plain);
    let product = lab.msm::<G>(&section::<G>(points), multiples, window).unwrap();
    product.scalars(&plain).unwrap();
    product.run().unwrap();
    assert!(product.read().unwrap() == expected, "{} points, {}", points.len(), product.plan());
}

/// Returns operands in Montgomery form, as words below twice the modulus: those around 0, p and 2p, and random ones.
fn operands<F: PrimeField<BigInt = BigInteger256>>(n: usize, rng: &mut StdRng) -> Vec<[u64; 4]> {
    let p = num_bigint::BigUint::from(F::MODULUS);
    let twice = &p * 2u8;
    let near = |x: &num_bigint::BigUint, k: u8| [x - k, x - 1u8 - k];
    let one = num_bigint::BigUint::from(1u8);
    let mut all = vec![&one - 1u8, one.clone(), &one + 1u8, p.clone(), &p + 1u8];
    all.extend(near(&p, 1).into_iter().chain(near(&twice, 1)));
    all.push((num_bigint::BigUint::from(1u8) << 254u8) - 1u8);
    while all.len() < n {
        let x = num_bigint::BigUint::from_bytes_le(&std::array::from_fn::<u8, 40, _>(|_| rng.r#gen()));
        all.push(x % &twice);
    }
    let words = |x: &num_bigint::BigUint| {
        let mut words = x.to_u64_digits();
        words.resize(4, 0);
        [words[0], words[1], words[2], words[3]]
    };
    all.iter().map(words).collect()
}

/// Returns the element that words in Montgomery form stand for.
fn element<F: PrimeField<BigInt = BigInteger256>>(words: &[u64]) -> F {
    let r = F::from(2u64).pow([256]);
    let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
    F::from_le_bytes_mod_order(&bytes) * r.inverse().unwrap()
}

fn expected<F: Field>(a: F, b: F) -> [F; 7] {
    [a * b, a.square(), a + b, a - b, -a, a * b + b * b, a.inverse().unwrap_or(F::ZERO)]
}

fn check_operations<F: PrimeField<BigInt = BigInteger256>>(field: OfWhat) {
    let mut rng = StdRng::seed_from_u64(11);
    let some = operands::<F>(40, &mut rng);
    let pairs: Vec<_> = some.iter().flat_map(|a| some.iter().map(move |b| (*a, *b))).collect();
    let [a, b] = [pairs.iter().flat_map(|p| p.0).collect::<Vec<_>>(), pairs.iter().flat_map(|p| p.1).collect()];
    let got = lab(Order::Random(1)).operations(field, &a, &b).unwrap();
    for ((a, b), got) in pairs.iter().zip(got.chunks_exact(28)) {
        let expected = expected(element::<F>(a), element::<F>(b));
        for (k, (expected, got)) in expected.iter().zip(got.chunks_exact(4)).enumerate() {
            assert_eq!(element::<F>(got), *expected, "operation {k} of {a:x?} and {b:x?}");
            assert!(
                BigInteger256::new([got[0], got[1], got[2], got[3]]) < F::MODULUS,
                "operation {k} is not canonical"
            );
        }
    }
}

#[test]
fn operations_in_fq_and_fr_are_arkworks() {
    check_operations::<Fq>(OfWhat::Fq);
    check_operations::<Fr>(OfWhat::Fr);
}

#[test]
fn operations_in_fq2_are_arkworks() {
    let mut rng = StdRng::seed_from_u64(12);
    let some = operands::<Fq>(14, &mut rng);
    let any = |rng: &mut StdRng| (some[rng.gen_range(0..some.len())], some[rng.gen_range(0..some.len())]);
    let pairs: Vec<_> = (0..300).map(|_| (any(&mut rng), any(&mut rng))).collect();
    let flat = |x: &([u64; 4], [u64; 4])| [x.0, x.1].concat();
    let [a, b] =
        [pairs.iter().flat_map(|p| flat(&p.0)).collect::<Vec<_>>(), pairs.iter().flat_map(|p| flat(&p.1)).collect()];
    let got = lab(Order::Random(1)).operations(OfWhat::Fq2, &a, &b).unwrap();
    let element = |x: &[u64]| Fq2::new(element(&x[..4]), element(&x[4..]));
    for ((a, b), got) in pairs.iter().zip(got.chunks_exact(56)) {
        let expected = expected(element(&flat(a)), element(&flat(b)));
        for (k, (expected, got)) in expected.iter().zip(got.chunks_exact(8)).enumerate() {
            assert_eq!(element(got), *expected, "operation {k} of {a:x?} and {b:x?}");
        }
    }
}

#[test]
fn any_mix_of_scalars_at_awkward_sizes() {
    let mut rng = StdRng::seed_from_u64(1);
    for kind in 0..10 {
        let lab = lab(ORDERS[kind % 3]);
        for n in [0, 1, 2, 31, 32, 33, 257] {
            let s = scalars(kind, n, &mut rng);
            check::<InG1>(&lab, &points::<G1>(n, &mut rng), &s, 64, None);
            let n = n.min(33);
            check::<InG2>(&lab, &points::<G2>(n, &mut rng), &s[..n], 64, None);
        }
    }
}

#[test]
fn any_window_and_any_number_of_multiples() {
    let mut rng = StdRng::seed_from_u64(2);
    let lab = lab(Order::Random(3));
    let (p, s) = (points::<G1>(70, &mut rng), scalars(0, 70, &mut rng));
    for window in [4, 5, 7, 8, 12, 13] {
        for multiples in [1, 2, 3, 64] {
            check::<InG1>(&lab, &p, &s, multiples, Some((window, 0)));
        }
    }
}

/// Bundles with one entry and with all, of points that are distinct, all the same, and each other's opposites.
#[test]
fn bundles_of_any_entries() {
    let mut rng = StdRng::seed_from_u64(5);
    let (p, q) = (points::<G1>(97, &mut rng), points::<G2>(40, &mut rng));
    let (same, same_q) = (vec![p[0]; 97], vec![q[0]; 40]);
    let opposite: Vec<_> = (0..97).map(|i| if i % 3 == 0 { -p[i / 6] } else { p[i / 6] }).collect();
    let opposite_q: Vec<_> = (0..40).map(|i| if i % 3 == 0 { -q[i / 6] } else { q[i / 6] }).collect();
    for kind in 0..10 {
        let lab = lab(ORDERS[kind % 3]);
        let s = scalars(kind, 97, &mut rng);
        let rounds = [1, 2, 4][kind % 3];
        check::<InG1>(&lab, &p[..1], &s[..1], 2, Some((12, rounds)));
        for p in [&p, &same, &opposite] {
            check::<InG1>(&lab, p, &s, 64, Some((13, rounds)));
        }
        for q in [&q, &same_q, &opposite_q] {
            check::<InG2>(&lab, q, &s[..40], 64, Some((13, rounds)));
        }
    }
}

/// More bundles than fit in memory at a time.
#[test]
fn many_bundles_in_every_order() {
    let mut rng = StdRng::seed_from_u64(6);
    let (p, q) = (points::<G1>(2_000, &mut rng), points::<G2>(1_000, &mut rng));
    for (order, rounds) in ORDERS.into_iter().zip([4, 2, 3]) {
        let driver = HostDriver::new(order).with_multiprocessors(1).with_memory(32 << 20);
        let lab = Lab::new(Arc::new(driver)).unwrap();
        for kind in [0, 5] {
            let s = scalars(kind, p.len(), &mut rng);
            check::<InG1>(&lab, &p, &s, 64, Some((13, rounds)));
            check::<InG2>(&lab, &q, &s[..q.len()], 64, Some((13, rounds)));
        }
    }
}

#[test]
fn many_parts_in_every_order() {
    let mut rng = StdRng::seed_from_u64(3);
    let p = points::<G1>(3_000, &mut rng);
    for order in ORDERS {
        let lab = lab(order);
        for kind in [0, 5, 9] {
            check::<InG1>(&lab, &p[..1_200], &scalars(kind, 1_200, &mut rng), 64, Some((9, 0)));
        }
        // All entries in one bucket, in 375 parts: a span of two pieces.
        check::<InG1>(&lab, &p, &scalars(2, p.len(), &mut rng), 64, Some((9, 0)));
    }
}

#[test]
fn many_points_in_every_order() {
    let mut rng = StdRng::seed_from_u64(4);
    let (p, q) = (points::<G1>(1 << 14, &mut rng), points::<G2>(1 << 11, &mut rng));
    let s = scalars(0, p.len(), &mut rng);
    for order in ORDERS {
        let lab = lab(order);
        check::<InG1>(&lab, &p, &s, 64, None);
        check::<InG2>(&lab, &q, &s[..q.len()], 64, None);
    }
}

#[test]
fn the_self_test_passes_in_every_order() {
    for order in ORDERS {
        let driver = Arc::new(HostDriver::new(order));
        selftest::run(&CudaBackend::new(driver.clone())).unwrap();
        assert_eq!((driver.used(), driver.fault()), (0, None));
    }
}

/// Kernels of the program that no proof runs, so that the self-test need not run them.
const IN_NO_PROOF: [&str; 11] = [
    // Only timed.
    "no_op",
    "bench_fq2_products",
    "bench_fq_products",
    "bench_fq_squares",
    "bench_g1_additions",
    "bench_g2_additions",
    // Only checked.
    "check_fq2_operations",
    "check_fq_operations",
    "check_fr_operations",
    // No plan has bundles in G1 (`Group::BUNDLES`).
    "msm_accumulate_bundles_g1",
    "msm_bundles_g1",
];

#[test]
fn the_self_test_runs_every_kernel_that_a_proof_may_run() {
    let driver = Arc::new(HostDriver::new(Order::Ascending));
    selftest::run(&CudaBackend::new(driver.clone())).unwrap();
    let launched = driver.launched();
    let budget = include_str!("../../../kernels/budget.txt");
    let all = budget.lines().filter(|line| !line.starts_with('#')).filter_map(|line| line.split(' ').next());
    let expected: Vec<_> = all.filter(|kernel| !IN_NO_PROOF.contains(kernel)).collect();
    assert_eq!(launched.keys().copied().collect::<Vec<_>>(), expected);
    // More than a block gets without opting in, as in the NTTs of large keys.
    assert_eq!(launched["ntt_turn_3"], 64 << 10);
}

/// Kernels whose results are numbers; others write addresses, and a GPU reports those that are wrong.
#[test]
fn a_kernel_that_does_nothing_fails_the_self_test() {
    let without = |kernel| CudaBackend::new(Arc::new(HostDriver::new(Order::Ascending).with_idle(kernel)));
    let fails = |kernel: &str, tried: Result<(), BackendError>| {
        let tried = tried.map_err(|why| why.to_string());
        assert!(tried.as_ref().is_err_and(|why| why.contains("self-test computed a wrong")), "{kernel}: {tried:?}");
    };
    for kernel in ["qap_long_parts", "qap_long_rows"] {
        fails(kernel, selftest::run(&without(kernel)));
    }
    for kernel in [
        "msm_bundles_g2",
        "msm_accumulate_bundles_g2",
        "msm_join_pieces_g1",
        "msm_join_pieces_g2",
        "msm_join_spans_g1",
        "msm_join_spans_g2",
        "ntt_forward_1",
        "ntt_inverse_2",
        "ntt_turn_3",
    ] {
        fails(kernel, without(kernel).trial());
    }
}

/// Constants that the host code and the kernels both define.
#[test]
fn the_kernels_constants_are_the_hosts() {
    let kernels = [include_str!("../../../kernels/msm.cu"), include_str!("../../../kernels/bundle.cu")];
    let sort = include_str!("../../../kernels/sort.cu");
    for (name, value) in super::msm::CONSTANTS {
        let line = format!("static constexpr uint32_t {name} = {value};");
        assert!(kernels.iter().any(|text| text.contains(&line)), "expected {line:?} in the kernels");
    }
    assert!(sort.contains("static constexpr uint32_t NEGATED = 1u << 31;"));
}

#[test]
fn a_key_whose_sections_do_not_fit_its_header_is_refused() {
    let backend = CudaBackend::new(Arc::new(HostDriver::new(Order::Ascending)));
    for change in 0..6 {
        let mut key = selftest::small_key();
        match change {
            0 => key.sections.a = key.sections.a.slice(64..),
            1 => key.sections.b2 = [&key.sections.b2[..], &[0; 128]].concat().into(),
            2 => key.sections.c = [&key.sections.c[..], &[0; 64]].concat().into(),
            3 => key.sections.h = key.sections.h.slice(..64),
            4 => key.header.n_vars = key.header.n_public,
            _ => key.header.n_vars += 1,
        }
        let refused = backend.load(Arc::new(key)).map(|_| ());
        assert!(refused.as_ref().is_err_and(BackendError::is_callers_fault), "change {change}: {refused:?}");
    }
}
