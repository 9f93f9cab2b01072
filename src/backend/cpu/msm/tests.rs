//! Against arkworks' own products, on every instruction set of this CPU.
#![allow(clippy::unwrap_used)]

use super::super::digits::MAX_WINDOW;
use super::super::lanes::outlined::Outlined;
use super::*;
use crate::model::{Fr, G1, G1Affine, G2};
use ark_ec::{AffineRepr, CurveGroup, PrimeGroup, VariableBaseMSM};
use ark_ff::{BigInteger, BigInteger256, One, UniformRand};
use ark_std::rand::{Rng, SeedableRng, rngs::StdRng};

/// Runs a test on each instruction set of this CPU.
macro_rules! on_every_isa {
    ($test:expr) => {
        $test(crate::backend::cpu::lanes::portable::Portable);
        #[cfg(target_arch = "x86_64")]
        match crate::backend::cpu::lanes::avx2::Avx2::detect() {
            Some(isa) => $test(isa),
            None => eprintln!("SKIPPED on avx2, which this processor does not have"),
        }
        #[cfg(target_arch = "x86_64")]
        match crate::backend::cpu::lanes::ifma::Avx512Ifma::detect() {
            Some(isa) => $test(isa),
            None => eprintln!("SKIPPED on avx512ifma, which this processor does not have"),
        }
    };
}

/// Returns a section of a key with these points.
fn section<I: Isa, C: Curve<I>>(points: &[Affine<C::Config>]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(points.len() * C::BYTES);
    for p in points {
        let mut raw = Vec::new();
        for coordinate in [p.x, p.y] {
            for element in ark_ff::Field::to_base_prime_field_elements(&coordinate) {
                // Fq for both curves; a key holds its Montgomery form.
                let element = Fq::from_le_bytes_mod_order(&element.into_bigint().to_bytes_le());
                raw.extend(element.0.0.iter().flat_map(|limb| limb.to_le_bytes()));
            }
        }
        if p.is_zero() { bytes.extend(vec![0; C::BYTES]) } else { bytes.extend(raw) }
    }
    bytes
}

fn check<I: Isa, C: Curve<I>>(isa: I, points: &[Affine<C::Config>], scalars: &[Fr], threads: usize) {
    let plain: Vec<BigInteger256> = scalars.iter().map(|s| s.into_bigint()).collect();
    let expected = Projective::<C::Config>::msm_bigint(points, &plain);
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
    let got = pool.install(|| {
        let bases = Bases::<I, C>::new(isa, &section::<I, C>(points), 0, points.len()).unwrap();
        bases.msm(&Sorted::new(&plain, bases.multiples), &Pool::new(), &StopToken::new())
    });
    assert!(got == expected, "{} points on {threads} threads, {}", points.len(), I::NAME);
}

/// Checks the product with multiples for windows of `bits` bits.
fn check_with_multiples<I: Isa, C: Curve<I>>(isa: I, points: &[Affine<C::Config>], scalars: &[Fr], bits: usize) {
    let plain: Vec<BigInteger256> = scalars.iter().map(|s| s.into_bigint()).collect();
    let expected = Projective::<C::Config>::msm_bigint(points, &plain);
    let multiples = Multiples::windows(bits, points.len()).unwrap();
    let got = rayon::ThreadPoolBuilder::new().num_threads(2).build().unwrap().install(|| {
        let mut bases =
            Bases::<I, C>::new(isa, &section::<I, C>(points), 0, points.len()).unwrap().with_capacity_for(multiples);
        for window in 1..multiples.per_point() {
            assert!(bases.fill(window), "window {window} of {bits} bits");
        }
        bases.msm(&Sorted::new(&plain, multiples), &Pool::new(), &StopToken::new())
    });
    assert!(got == expected, "{} points, windows of {bits} bits, {}", points.len(), I::NAME);
}

fn with_multiples<I: Isa>(isa: I) {
    let mut rng = StdRng::seed_from_u64(8);
    // A size for each kind of scalars, and two batches of doublings.
    let sizes = [(1023, 13), (0, 11), (1, 15), (2, 4), (255, 8), (16, 9), (33, 16), (100, 11), (2100, 11), (300, 10)];
    for (kind, (n, bits)) in sizes.into_iter().enumerate() {
        let s = scalars(kind, n, &mut rng);
        check_with_multiples::<I, InG1>(isa, &points::<G1>(n, &mut rng), &s, bits);
        check_with_multiples::<I, InG2>(isa, &points::<G2>(n.min(50), &mut rng), &s[..n.min(50)], bits);
    }
    // Infinity, and points that are equal, opposite or multiples of each other.
    let g = G1::generator();
    let few: Vec<_> = [G1::zero(), g, -g, g * Fr::from(1u64 << 11), -(g * Fr::from(1u64 << 22))].to_vec();
    let few = G1::normalize_batch(&few);
    for n in [5, 64, 500] {
        for kind in [0, 8, 9] {
            let p: Vec<_> = (0..n).map(|_| few[rng.gen_range(0..few.len())]).collect();
            check_with_multiples::<I, InG1>(isa, &p, &scalars(kind, n, &mut rng), 11);
            check_with_multiples::<I, InG1>(isa, &vec![few[0]; n], &scalars(kind, n, &mut rng), 11);
        }
    }
}

#[test]
fn multiples_for_all_windows() {
    on_every_isa!(with_multiples);
}

fn doubled_to_infinity<I: Isa>(isa: I) {
    let mut rng = StdRng::seed_from_u64(9);
    let mut p = points::<G1>(3000, &mut rng);
    // Not on the curve: of order two, whichever curve it is on.
    p[2100] = G1Affine::new_unchecked(Fq::from(3u64), Fq::from(0u64));
    let multiples = Multiples::windows(11, p.len()).unwrap();
    let mut bases =
        Bases::<I, InG1>::new(isa, &section::<I, InG1>(&p), 0, p.len()).unwrap().with_capacity_for(multiples);
    assert!(!bases.fill(1), "twice a point with y = 0");
}

#[test]
fn a_multiple_at_infinity_is_noticed() {
    on_every_isa!(doubled_to_infinity);
}

fn points<G: CurveGroup>(n: usize, rng: &mut StdRng) -> Vec<G::Affine> {
    // Cheap and all different: a walk with a random step.
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
            8 => [Fr::zero(), Fr::one(), -Fr::one(), Fr::rand(rng)][i % 4],
            _ => [fixed, -fixed][i % 2],
        })
        .collect()
}

fn any_mix_of_scalars<I: Isa>(isa: I) {
    let mut rng = StdRng::seed_from_u64(1);
    for kind in 0..10 {
        for n in [0, 1, 2, 3, 15, 16, 17, 33, 255, 1023, 4097] {
            let s = scalars(kind, n, &mut rng);
            check::<I, InG1>(isa, &points::<G1>(n, &mut rng), &s, 1 + n % 3);
            check::<I, InG2>(isa, &points::<G2>(n.min(300), &mut rng), &s[..n.min(300)], 2);
        }
    }
}

#[test]
fn any_mix_of_scalars_at_awkward_sizes() {
    on_every_isa!(any_mix_of_scalars);
}

fn large_ones<I: Isa>(isa: I) {
    let mut rng = StdRng::seed_from_u64(2);
    let (g1, g2) = (points::<G1>(40_001, &mut rng), points::<G2>(8_000, &mut rng));
    for kind in [0, 4, 5, 8, 9] {
        for (n, threads) in [(20_000, 2), (40_001, 24)] {
            check::<I, InG1>(isa, &g1[..n], &scalars(kind, n, &mut rng), threads);
        }
        check::<I, InG2>(isa, &g2, &scalars(kind, g2.len(), &mut rng), 2);
    }
}

#[test]
fn sizes_that_make_groups_and_split() {
    on_every_isa!(large_ones);
}

fn awkward_points<I: Isa>(isa: I) {
    awkward_points_of(isa, 6_000);
}

/// AVX-512 IFMA in software: slow, but on any CPU.
#[test]
fn equal_and_opposite_points_and_infinity_on_emulated_ifma() {
    awkward_points_of(crate::backend::cpu::lanes::ifma::emulation(), 150);
}

fn awkward_points_of<I: Isa>(isa: I, n: usize) {
    let mut rng = StdRng::seed_from_u64(3);
    let g = G1::generator().into_affine();
    let walk = points::<G1>(n, &mut rng);
    let patterns: [&dyn Fn(usize) -> G1Affine; 6] = [
        &|_| g,
        &|i| if i % 2 == 0 { g } else { -g },
        &|i| if i % 3 == 0 { G1Affine::identity() } else { g },
        &|_| G1Affine::identity(),
        // Among many different points, a few that are equal or opposite to another or to a sum.
        &|i| if i % 500 == 0 && i + 1 < walk.len() { -walk[i + 1] } else { walk[i] },
        &|i| if i % 64 < 2 { walk[i / 64 * 64] } else { walk[i] },
    ];
    for (which, pattern) in patterns.into_iter().enumerate() {
        let p: Vec<_> = (0..n).map(pattern).collect();
        for kind in [0, 2, 3, 5, 6, 8, 9] {
            check::<I, InG1>(isa, &p, &scalars(kind, n, &mut rng), 1 + which % 2);
        }
    }
    let h = G2::generator().into_affine();
    let p: Vec<_> = (0..n / 3).map(|i| if i % 3 == 0 { -h } else { h }).collect();
    for kind in [0, 2, 9] {
        check::<I, InG2>(isa, &p, &scalars(kind, p.len(), &mut rng), 2);
    }
}

#[test]
fn equal_and_opposite_points_and_infinity() {
    on_every_isa!(awkward_points);
}

/// A few points and their negatives at random: sums of any two, three or four of them coincide again and vanish.
fn small_subgroup_like<I: Isa>(isa: I) {
    let mut rng = StdRng::seed_from_u64(5);
    let g = G1::generator();
    let few: Vec<_> = (1..4u64).flat_map(|k| [g * Fr::from(k), -(g * Fr::from(k))]).collect();
    let few = G1::normalize_batch(&few);
    let h = G2::generator();
    let few2: Vec<_> = (1..4u64).flat_map(|k| [h * Fr::from(k), -(h * Fr::from(k))]).collect();
    let few2 = G2::normalize_batch(&few2);
    for n in [2, 3, 4, 5, 8, 21, 100, 3000] {
        for kind in [0, 2, 4, 5, 8] {
            let s = scalars(kind, n, &mut rng);
            let p: Vec<_> = (0..n).map(|_| few[rng.gen_range(0..few.len())]).collect();
            check::<I, InG1>(isa, &p, &s, 1);
            let p: Vec<_> = (0..n).map(|_| few2[rng.gen_range(0..few2.len())]).collect();
            check::<I, InG2>(isa, &p, &s, 1);
        }
    }
}

#[test]
fn sums_that_meet_and_vanish() {
    on_every_isa!(small_subgroup_like);
}

fn private_wires_only<I: Isa>(isa: I) {
    // Scalars that are halved, and scalars that are not.
    for n in [1000, 4096, 10_000] {
        private_wires_of::<I, InG1>(isa, n);
    }
    private_wires_of::<I, InG2>(isa, 500);
}

fn private_wires_of<I: Isa, C: Curve<I>>(isa: I, n: usize) {
    let mut rng = StdRng::seed_from_u64(4);
    let p = points::<Projective<C::Config>>(n, &mut rng);
    let holes = |p: &[Affine<C::Config>]| -> Vec<Affine<C::Config>> {
        p.iter().enumerate().map(|(i, p)| if i % 5 < 2 { Affine::identity() } else { *p }).collect()
    };
    let s: Vec<BigInteger256> = scalars(8, n, &mut rng).iter().map(|s| s.into_bigint()).collect();
    let sorted = Sorted::new(&s, Multiples::at_load(n));
    let multiples = Multiples::windows(14, n).unwrap();
    let sorted_for_multiples = Sorted::new(&s, multiples);
    for first in [0, 1, 7, 2 * n / 5, n] {
        for p in [&p[first..], &holes(&p[first..]), &p[first..n - (n - first) / 2]] {
            let bases = Bases::<I, C>::new(isa, &section::<I, C>(p), first, n).unwrap();
            let expected = Projective::<C::Config>::msm_bigint(p, &s[first..first + p.len()]);
            assert!(bases.msm(&sorted, &Pool::new(), &StopToken::new()) == expected, "from wire {first} on");
            assert_eq!(bases.places.kept as usize, p.iter().filter(|p| !p.is_zero()).count());
            if n > 1000 {
                continue;
            }
            let mut with_multiples = bases.with_capacity_for(multiples);
            assert!((1..multiples.per_point()).all(|window| with_multiples.fill(window)));
            let got = with_multiples.msm(&sorted_for_multiples, &Pool::new(), &StopToken::new());
            assert!(got == expected, "with multiples, from wire {first} on");
        }
    }
}

#[test]
fn one_sort_serves_sections_with_other_wires() {
    on_every_isa!(private_wires_only);
}

fn bad_coordinates<I: Isa>(isa: I) {
    let mut rng = StdRng::seed_from_u64(6);
    let p = points::<G1>(5000, &mut rng);
    let good = section::<I, InG1>(&p);
    for at in [0, 32, 64 * 4999 + 32] {
        let mut bytes = good.clone();
        bytes[at..at + 32].copy_from_slice(&Fq::MODULUS.0.iter().flat_map(|l| l.to_le_bytes()).collect::<Vec<_>>());
        assert!(matches!(Bases::<I, InG1>::new(isa, &bytes, 0, p.len()), Err(BackendError::Shape { got: 1, .. })));
    }
}

#[test]
fn wires_without_an_index_are_refused() {
    let section = [0; 3 * crate::model::G1_BYTES];
    let new = |first| Bases::<_, InG1>::new(super::super::lanes::portable::Portable, &section, first, first + 3);
    assert!(new((1 << 30) - 3).is_ok());
    assert!(matches!(new((1 << 30) - 2), Err(BackendError::OutOfRange { got, .. }) if got == (1 << 30) + 1));
}

#[test]
fn coordinates_not_below_q_are_refused() {
    on_every_isa!(bad_coordinates);
}

#[test]
fn the_extension_agrees_with_arkworks() {
    fn extension<I: Isa>(isa: I) {
        curve::tests::extension(Outlined(isa), 300);
    }
    on_every_isa!(extension);
    curve::tests::extension(crate::backend::cpu::lanes::ifma::emulation(), 30);
}

fn stopped<I: Isa>(isa: I) {
    let mut rng = StdRng::seed_from_u64(7);
    let p = points::<G1>(5000, &mut rng);
    let s: Vec<BigInteger256> = scalars(8, p.len(), &mut rng).iter().map(|s| s.into_bigint()).collect();
    let bases = Bases::<I, InG1>::new(isa, &section::<I, InG1>(&p), 0, p.len()).unwrap();
    let stop = StopToken::new();
    stop.stop(crate::model::StopReason::Cancelled);
    assert!(bases.msm(&Sorted::new(&s, bases.multiples), &Pool::new(), &stop).is_zero(), "nothing was summed");
}

#[test]
fn a_stopped_token_ends_the_sum() {
    on_every_isa!(stopped);
}

#[test]
fn every_bucket_has_its_weight_in_its_lines() {
    for window in 3..=MAX_WINDOW {
        let grid = Grid::new(window);
        for k in 1..=1usize << (window - 1) {
            let mut weight = 0;
            grid.lines_of(k, |line| {
                assert!(line < grid.lines());
                grid.bits(line, |bit| weight += 1 << bit);
            });
            assert_eq!(weight, k, "with windows of {window}");
        }
    }
}
