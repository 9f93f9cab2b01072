//! The kernels of the CPU backend, each instruction set next to arkworks in the same run: field products, multi-scalar
//! multiplication in G1 and G2, the quotient.
//!
//! `cargo bench --bench kernels` uses sizes 2^10 to 2^16; `PROVER_BENCH_LOG_MAX=20` goes further. One thread, or
//! `PROVER_BENCH_THREADS`. `scripts/plot.py` draws the result.

use std::time::Duration;

use ark_bn254::{Fq, Fr, G1Affine, G2Affine};
use ark_ec::short_weierstrass::Projective;
use ark_ec::{AffineRepr, CurveGroup, VariableBaseMSM};
use ark_ff::{BigInteger256, FftField, Field, PrimeField, UniformRand};
use ark_poly::{EvaluationDomain, Radix2EvaluationDomain};
use ark_std::rand::{Rng, SeedableRng, rngs::StdRng};
use bytes::Bytes;
use criterion::{BenchmarkGroup, BenchmarkId, Criterion, criterion_group, criterion_main, measurement::WallTime};
use prover_worker::backend::cpu::lab::{Lab, Product};
use prover_worker::formats::zkey::{encode_g1, encode_g2};
use prover_worker::model::{KeyHeader, KeySections, ProvingKey, VerificationKey};

fn setting(name: &str, default: usize) -> usize {
    std::env::var(name).map_or(default, |v| v.parse().unwrap_or_else(|_| panic!("{name}: a number")))
}

fn group<'a>(c: &'a mut Criterion, name: &str) -> BenchmarkGroup<'a, WallTime> {
    let mut group = c.benchmark_group(name);
    group.sample_size(10).measurement_time(Duration::from_secs(1)).warm_up_time(Duration::from_millis(200));
    group
}

type G1 = Projective<ark_bn254::g1::Config>;
type G2 = Projective<ark_bn254::g2::Config>;

/// Scalars of one kind.
type Scalars = fn(&mut StdRng, usize) -> Vec<Fr>;

/// Kinds of scalars: dense; as in a circuit of bits; and bad cases for buckets: few different values, all of one
/// length.
const KINDS: [(&str, Scalars); 4] = [
    ("random", |rng, n| (0..n).map(|_| Fr::rand(rng)).collect()),
    ("0 and 1", |rng, n| (0..n).map(|_| Fr::from(rng.gen_range(0..2u64))).collect()),
    ("skewed", |rng, n| {
        let few: Vec<Fr> = (0..3).map(|_| Fr::rand(rng)).collect();
        (0..n).map(|_| few[rng.gen_range(0..3)]).collect()
    }),
    ("one value", |rng, n| vec![Fr::rand(rng); n]),
];

/// n different points, computed cheaply: a walk whose step changes by a step that changes. With a constant step the
/// sums of many pairs would be equal, as they are in no key, and equal points take longer to add.
fn points<G: CurveGroup>(rng: &mut StdRng, n: usize) -> Vec<G::Affine> {
    let mut at: [G; 4] = std::array::from_fn(|_| G::rand(rng));
    let walk: Vec<G> = (0..n)
        .map(|_| {
            for k in 0..3 {
                let step = at[k + 1];
                at[k] += step;
            }
            at[0]
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

/// A group that both implement.
trait Curve: CurveGroup<ScalarField = Fr> + VariableBaseMSM<MulBase = Self::Affine> {
    const NAME: &'static str;
    fn section(points: &[Self::Affine]) -> Vec<u8>;
    fn ours(lab: &Lab, section: &[u8]) -> Product<Self>;
}

impl Curve for G1 {
    const NAME: &'static str = "G1";
    fn section(points: &[Self::Affine]) -> Vec<u8> {
        encode_g1(points)
    }
    fn ours(lab: &Lab, section: &[u8]) -> Product<Self> {
        lab.g1(section, None).expect("canonical")
    }
}

impl Curve for G2 {
    const NAME: &'static str = "G2";
    fn section(points: &[Self::Affine]) -> Vec<u8> {
        encode_g2(points)
    }
    fn ours(lab: &Lab, section: &[u8]) -> Product<Self> {
        lab.g2(section, None).expect("canonical")
    }
}

fn sums<G: Curve>(c: &mut Criterion, labs: &[Lab], logs: &[usize]) {
    let mut rng = StdRng::seed_from_u64(2);
    let most = 1 << logs.iter().max().copied().unwrap_or(0);
    let points = points::<G>(&mut rng, most);
    for (kind, scalars) in KINDS {
        let scalars: Vec<BigInteger256> = scalars(&mut rng, most).iter().map(|s| s.into_bigint()).collect();
        let mut group = group(c, &format!("MSM in {}, {kind}", G::NAME));
        for log in logs {
            let n = 1 << log;
            group.bench_function(BenchmarkId::new("arkworks", log), |bench| {
                bench.iter(|| G::msm_bigint(&points[..n], &scalars[..n]));
            });
            let section = G::section(&points[..n]);
            for lab in labs {
                let product = G::ours(lab, &section);
                group.bench_function(BenchmarkId::new(lab.name(), log), |bench| bench.iter(|| product(&scalars[..n])));
            }
        }
        group.finish();
    }
}

/// A key without points whose rows have one entry in A and one in B.
fn rows(n: usize) -> ProvingKey {
    let (g1, g2) = (G1Affine::generator(), G2Affine::generator());
    let mut entries = Vec::new();
    // An entry v is stored as v·R², Montgomery form of v·R.
    let one = (Fr::from(2u64).pow([256u64])).0;
    for row in 0..n as u32 {
        for matrix in 0..2u32 {
            let words = [matrix, row, (row + matrix) % n as u32];
            entries.extend(words.iter().flat_map(|word| word.to_le_bytes()));
            entries.extend(one.0.iter().flat_map(|limb| limb.to_le_bytes()));
        }
    }
    let none = || Bytes::new();
    ProvingKey {
        header: KeyHeader {
            n_vars: n as u32,
            n_public: 1,
            domain_size: n as u32,
            beta_g1: g1,
            delta_g1: g1,
            vk: VerificationKey { alpha_g1: g1, beta_g2: g2, gamma_g2: g2, delta_g2: g2, ic: vec![g1; 2] },
        },
        sections: KeySections { coefficients: entries.into(), a: none(), b1: none(), b2: none(), c: none(), h: none() },
    }
}

/// From a witness to the quotient's values: products with the rows, and three polynomials from the domain to its coset.
fn quotient(c: &mut Criterion, labs: &[Lab], logs: &[usize]) {
    let mut rng = StdRng::seed_from_u64(3);
    let mut group = group(c, "quotient");
    for log in logs {
        let n = 1usize << log;
        let key = rows(n);
        let witness: Vec<Fr> = (0..n).map(|_| Fr::rand(&mut rng)).collect();
        let domain = Radix2EvaluationDomain::<Fr>::new(n).expect("a domain");
        let shift = Fr::get_root_of_unity(2 * n as u64).expect("a root");
        let coset = domain.get_coset(shift).expect("a coset");
        let ark = || -> Vec<BigInteger256> {
            let (mut a, mut b) = (witness.clone(), witness.clone());
            b.rotate_left(1);
            let mut c: Vec<Fr> = a.iter().zip(&b).map(|(a, b)| *a * b).collect();
            for v in [&mut a, &mut b, &mut c] {
                domain.ifft_in_place(v);
                coset.fft_in_place(v);
            }
            a.iter().zip(b).zip(c).map(|((a, b), c)| (*a * b - c).into_bigint()).collect()
        };
        group.bench_function(BenchmarkId::new("arkworks", log), |bench| bench.iter(ark));
        let plain: Vec<BigInteger256> = witness.iter().map(|w| w.into_bigint()).collect();
        for lab in labs {
            let mut run = lab.quotient(&key, plain.clone()).expect("a key");
            group.bench_function(BenchmarkId::new(lab.name(), log), |bench| bench.iter(&mut run));
        }
    }
    group.finish();
}

fn bench(c: &mut Criterion) {
    let max = setting("PROVER_BENCH_LOG_MAX", 16);
    let threads = setting("PROVER_BENCH_THREADS", 1);
    rayon::ThreadPoolBuilder::new().num_threads(threads).build_global().expect("arkworks' pool");
    let labs = Lab::all(threads).expect("kernels");
    println!("{threads} threads; {}", labs.iter().map(Lab::name).collect::<Vec<_>>().join(", "));
    let logs = |most: usize| (10..=max.min(most)).step_by(2).collect::<Vec<_>>();
    field(c, &labs);
    sums::<G1>(c, &labs, &logs(20));
    sums::<G2>(c, &labs, &logs(20));
    quotient(c, &labs, &logs(20));
}

criterion_group!(benches, bench);
criterion_main!(benches);
