//! The kernels of the processor, each instruction set beside arkworks in the same run: field products, multi-scalar
//! multiplication in G1 and G2, the quotient's transforms.
//!
//! `cargo bench --bench kernels` takes sizes 2^10 to 2^16; `PROVER_BENCH_LOG_MAX=20` goes further. One thread, or
//! `PROVER_BENCH_THREADS`. `scripts/plot.py` draws the result.

use std::time::Duration;

use ark_bn254::{Fq, Fr, G1Projective, G2Projective};
use ark_ec::{CurveGroup, VariableBaseMSM};
use ark_ff::{BigInteger256, Field, PrimeField, UniformRand};
use ark_poly::{EvaluationDomain, Radix2EvaluationDomain};
use ark_std::rand::{Rng, SeedableRng, rngs::StdRng};
use criterion::{BenchmarkGroup, BenchmarkId, Criterion, criterion_group, criterion_main, measurement::WallTime};
use prover_worker::backend::cpu::lab::{Group, Lab};
use prover_worker::formats::zkey::{encode_g1, encode_g2};

fn setting(name: &str, default: usize) -> usize {
    std::env::var(name).map_or(default, |v| v.parse().unwrap_or_else(|_| panic!("{name}: a number")))
}

fn group<'a>(c: &'a mut Criterion, name: &str) -> BenchmarkGroup<'a, WallTime> {
    let mut group = c.benchmark_group(name);
    group.sample_size(10).measurement_time(Duration::from_secs(1)).warm_up_time(Duration::from_millis(200));
    group
}

/// Scalars of one kind.
type Scalars = fn(&mut StdRng, usize) -> Vec<Fr>;

/// Kinds of scalars: dense; as in a circuit of bits; and what buckets do not like: few values, all of one length.
const KINDS: [(&str, Scalars); 4] = [
    ("random", |rng, n| (0..n).map(|_| Fr::rand(rng)).collect()),
    ("0 and 1", |rng, n| (0..n).map(|_| Fr::from(rng.gen_range(0..2u64))).collect()),
    ("skewed", |rng, n| {
        let few: Vec<Fr> = (0..3).map(|_| Fr::rand(rng)).collect();
        (0..n).map(|_| few[rng.gen_range(0..3)]).collect()
    }),
    ("one value", |rng, n| vec![Fr::rand(rng); n]),
];

/// n different points, cheaply: a walk with a random step.
fn points<G: CurveGroup>(rng: &mut StdRng, n: usize) -> Vec<G::Affine> {
    let (mut at, step) = (G::rand(rng), G::rand(rng));
    let walk: Vec<G> = (0..n)
        .map(|_| {
            at += step;
            at
        })
        .collect();
    G::normalize_batch(&walk)
}

fn field(c: &mut Criterion, labs: &[Lab]) {
    let mut rng = StdRng::seed_from_u64(1);
    let log = 10;
    let mut group = group(c, "product in Fq");
    let (a, b): (Vec<Fq>, Vec<Fq>) = (0..1 << log).map(|_| (Fq::rand(&mut rng), Fq::rand(&mut rng))).unzip();
    let mut out = a.clone();
    group.bench_function(BenchmarkId::new("arkworks", log), |bench| {
        bench.iter(|| {
            for ((out, a), b) in out.iter_mut().zip(&a).zip(&b) {
                *out = *a * b;
            }
        });
    });
    for lab in labs {
        let mut products = lab.products(&a, &b);
        group.bench_function(BenchmarkId::new(lab.name(), log), |bench| bench.iter(&mut products));
    }
    group.finish();
}

fn sums<G: CurveGroup<ScalarField = Fr> + VariableBaseMSM>(
    c: &mut Criterion,
    labs: &[Lab],
    name: &str,
    which: Group,
    section: fn(&[G::Affine]) -> Vec<u8>,
    logs: &[usize],
) {
    let mut rng = StdRng::seed_from_u64(2);
    let most = 1 << logs.iter().max().copied().unwrap_or(0);
    let points = points::<G>(&mut rng, most);
    for (kind, scalars) in KINDS {
        let scalars: Vec<BigInteger256> = scalars(&mut rng, most).iter().map(|s| s.into_bigint()).collect();
        let mut group = group(c, &format!("MSM in {name}, {kind}"));
        for log in logs {
            let n = 1 << log;
            let bases: Vec<G::MulBase> = points[..n].iter().map(|p| (*p).into()).collect();
            group.bench_function(BenchmarkId::new("arkworks", log), |bench| {
                bench.iter(|| G::msm_bigint(&bases, &scalars[..n]));
            });
            let section = section(&points[..n]);
            for lab in labs {
                let product = lab.product(which, &section);
                group.bench_function(BenchmarkId::new(lab.name(), log), |bench| bench.iter(|| product(&scalars[..n])));
            }
        }
        group.finish();
    }
}

fn transforms(c: &mut Criterion, labs: &[Lab], logs: &[usize]) {
    let mut rng = StdRng::seed_from_u64(3);
    let mut group = group(c, "values on the domain to values on the coset");
    for log in logs {
        let n = 1usize << log;
        let values: Vec<Fr> = (0..n).map(|_| Fr::rand(&mut rng)).collect();
        let domain = Radix2EvaluationDomain::<Fr>::new(n).expect("a domain");
        let shift = <Fr as ark_ff::FftField>::get_root_of_unity(2 * n as u64).expect("a root");
        let coset = domain.get_coset(shift).expect("a coset");
        let mut work = values.clone();
        group.bench_function(BenchmarkId::new("arkworks", log), |bench| {
            bench.iter(|| {
                work.copy_from_slice(&values);
                domain.ifft_in_place(&mut work);
                coset.fft_in_place(&mut work);
            });
        });
        for lab in labs {
            let mut transform = lab.transform(&values);
            group.bench_function(BenchmarkId::new(lab.name(), log), |bench| bench.iter(&mut transform));
        }
    }
    group.finish();
}

fn bench(c: &mut Criterion) {
    let max = setting("PROVER_BENCH_LOG_MAX", 16);
    let threads = setting("PROVER_BENCH_THREADS", 1);
    rayon::ThreadPoolBuilder::new().num_threads(threads).build_global().expect("arkworks' pool");
    let labs = Lab::all(threads);
    println!("{threads} threads; {}", labs.iter().map(Lab::name).collect::<Vec<_>>().join(", "));
    let logs = |most: usize| (10..=max.min(most)).step_by(2).collect::<Vec<_>>();
    assert_eq!(Fq::from(2u64).inverse().map(|half| half.double()), Some(Fq::ONE));
    field(c, &labs);
    sums::<G1Projective>(c, &labs, "G1", Group::G1, encode_g1, &logs(20));
    sums::<G2Projective>(c, &labs, "G2", Group::G2, encode_g2, &logs(18));
    transforms(c, &labs, &logs(20));
}

criterion_group!(benches, bench);
criterion_main!(benches);
