//! Whole proofs, next to arkworks' own prover with the same key and witness in the same run.
//!
//! `cargo bench --bench prove` proves a chain of squarings with the sizes of the bundled circuits; with
//! `PROVER_BENCH_DIR` set, also every folder in it that holds `circuit.zkey` and `witness.wtns`. Before these, 64
//! proofs are verified one by one and together.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use ark_bn254::Bn254;
use ark_ff::{BigInteger256, Field, PrimeField};
use ark_groth16::Groth16;
use ark_groth16::r1cs_to_qap::{LibsnarkReduction, R1CSToQAP};
use ark_poly::EvaluationDomain;
use ark_relations::gr1cs::{ConstraintSystemRef, Result as R1csResult, SynthesisError};
use ark_relations::utils::matrix::Matrix;
use criterion::{Criterion, criterion_group, criterion_main};
use prover_worker::backend::cpu::CpuBackend;
use prover_worker::backend::mapped::map_file;
use prover_worker::backend::{Backend, Quiet};
use prover_worker::formats::r1cs::{Constraints, R1cs};
use prover_worker::formats::{wtns, zkey};
use prover_worker::groth16::{BatchJob, Verifier, prove, prove_batch, setup};
use prover_worker::model::{Fr, Proof, ProvingKey, StopToken, Witness, g1_raw, g2_raw};
use rayon::prelude::*;

/// The quotient as snarkjs's keys need it, with arkworks' own transforms: a·b − c on the odd coset of the double
/// domain.
struct OddCoset;

impl R1CSToQAP for OddCoset {
    fn instance_map_with_evaluation<F: PrimeField, D: EvaluationDomain<F>>(
        cs: ConstraintSystemRef<F>,
        t: &F,
    ) -> Result<(Vec<F>, Vec<F>, Vec<F>, F, usize, usize), SynthesisError> {
        LibsnarkReduction::instance_map_with_evaluation::<F, D>(cs, t)
    }

    fn witness_map_from_matrices<F: PrimeField, D: EvaluationDomain<F>>(
        matrices: &[Matrix<F>],
        num_inputs: usize,
        num_constraints: usize,
        w: &[F],
    ) -> R1csResult<Vec<F>> {
        let domain = D::new(num_constraints + num_inputs).ok_or(SynthesisError::PolynomialDegreeTooLarge)?;
        let n = domain.size();
        let product = |m: &Matrix<F>| {
            let mut out = vec![F::zero(); n];
            let rows = out.par_iter_mut().zip(m.par_iter());
            rows.for_each(|(o, row)| *o = row.iter().map(|(v, i)| *v * w[*i]).sum());
            out
        };
        let (mut a, mut b) = (product(&matrices[0]), product(&matrices[1]));
        let mut c: Vec<F> = a.par_iter().zip(&b).map(|(a, b)| *a * b).collect();
        let shift = F::get_root_of_unity(2 * n as u64).ok_or(SynthesisError::PolynomialDegreeTooLarge)?;
        for v in [&mut a, &mut b, &mut c] {
            domain.ifft_in_place(v);
            D::distribute_powers(v, shift);
            domain.fft_in_place(v);
        }
        a.par_iter_mut().zip(b).zip(c).for_each(|((a, b), c)| *a = *a * b - c);
        Ok(a)
    }

    fn h_query_scalars<F: PrimeField, D: EvaluationDomain<F>>(
        max_power: usize,
        t: F,
        zt: F,
        delta_inverse: F,
    ) -> Result<Vec<F>, SynthesisError> {
        LibsnarkReduction::h_query_scalars::<F, D>(max_power, t, zt, delta_inverse)
    }
}

/// The same key and witness in arkworks' types, decoded before the clock starts.
struct Ark {
    key: ark_groth16::ProvingKey<Bn254>,
    matrices: Vec<Matrix<Fr>>,
    inputs: usize,
    constraints: usize,
    witness: Vec<Fr>,
}

impl Ark {
    fn new(key: &ProvingKey, witness: &Witness) -> Self {
        let h = &key.header;
        let s = &key.sections;
        let g1 = |b: &[u8]| b.chunks_exact(64).map(g1_raw).collect::<Vec<_>>();
        let inputs = h.n_public as usize + 1;
        let mut matrices = vec![vec![Vec::new(); h.domain_size as usize]; 2];
        let inverse_r = montgomery_r().inverse().expect("R is not zero");
        for e in key.coefficients() {
            // Stored as v·R²: as Montgomery limbs that is v·R.
            let value = Fr::new_unchecked(e.value) * inverse_r;
            matrices[e.matrix as usize][e.row as usize].push((value, e.signal as usize));
        }
        let constraints = h.domain_size as usize - inputs;
        Self {
            key: ark_groth16::ProvingKey {
                vk: ark_groth16::VerifyingKey {
                    alpha_g1: h.vk.alpha_g1,
                    beta_g2: h.vk.beta_g2,
                    gamma_g2: h.vk.gamma_g2,
                    delta_g2: h.vk.delta_g2,
                    gamma_abc_g1: h.vk.ic.clone(),
                },
                beta_g1: h.beta_g1,
                delta_g1: h.delta_g1,
                a_query: g1(&s.a),
                b_g1_query: g1(&s.b1),
                b_g2_query: s.b2.chunks_exact(128).map(g2_raw).collect(),
                h_query: g1(&s.h),
                l_query: g1(&s.c),
            },
            matrices,
            inputs,
            constraints,
            witness: witness.values().iter().map(|w| Fr::from_bigint(*w).expect("below r")).collect(),
        }
    }

    fn prove(&self) -> ark_groth16::Proof<Bn254> {
        Groth16::<Bn254, OddCoset>::create_proof_with_reduction_and_matrices(
            &self.key,
            Fr::from(3u64),
            Fr::from(5u64),
            &self.matrices,
            self.inputs,
            self.constraints,
            &self.witness,
        )
        .expect("arkworks proves")
    }
}

/// R mod r, as a field element.
fn montgomery_r() -> Fr {
    Fr::from(2u64).pow([256u64])
}

/// x ↦ x² + w₁, n times: a dense witness of full-width values.
fn chain(n: u32) -> (ProvingKey, Witness) {
    let mut w = vec![Fr::from(1u64), Fr::from(0u64), Fr::from(0x1234_5678u64)];
    let mut constraints = Constraints { offsets: vec![0], terms: Vec::new() };
    let one = BigInteger256::one();
    let minus_one = (-Fr::from(1u64)).into_bigint();
    for i in 0..n {
        let x = 2 + i;
        let next = w[x as usize].square() + w[2];
        w.push(next);
        for row in [vec![(x, one)], vec![(x, one)], vec![(x + 1, one), (2, minus_one)]] {
            constraints.terms.extend(row);
            constraints.offsets.push(constraints.terms.len() as u64);
        }
    }
    let n_wires = w.len() as u32;
    let circuit = R1cs { n_wires, n_pub_out: 1, n_pub_in: 0, n_prv_in: 1, n_labels: u64::from(n_wires), constraints };
    let key = setup::generate(&circuit, &|_| {}).expect("a key");
    (key, Witness::from_canonical(w.iter().map(|v| v.into_bigint()).collect()))
}

fn load(dir: &Path) -> (ProvingKey, Witness) {
    let key = zkey::parse(map_file(&dir.join("circuit.zkey")).expect("zkey")).expect("zkey");
    (key, wtns::parse(&map_file(&dir.join("witness.wtns")).expect("wtns")).expect("wtns"))
}

/// Proofs to verify together.
const BATCH: usize = 64;

/// Verification of proofs one by one and together.
fn bench_verify(c: &mut Criterion) {
    let (key, witness) = chain(61);
    let threads = std::thread::available_parallelism().map_or(1, |n| n.get());
    let loaded = CpuBackend::new(threads).expect("a CPU").load(Arc::new(key)).expect("loads");
    let verifier = Verifier::new(&loaded.key().header.vk);
    let stop = StopToken::new();
    let made = prove_batch(loaded.as_ref(), &verifier, &[BatchJob { witness: &witness, stop: &stop }; BATCH]);
    let made: Vec<_> = made.into_iter().map(|made| made.expect("a proof")).collect();
    let pairs: Vec<_> = made.iter().map(|made| (&made.proof, &made.public)).collect();
    let mut spoilt = pairs.clone();
    let wrong = Proof { a: -made[0].proof.a, ..made[0].proof.clone() };
    spoilt[BATCH / 3].0 = &wrong;
    let singly = || pairs.iter().all(|(proof, public)| verifier.verify(proof, public));
    let together = || verifier.verify_batch(&pairs).into_iter().all(|good| good);

    let time = |what: &dyn Fn() -> bool| {
        let best = (0..5).map(|_| {
            let start = Instant::now();
            assert!(what(), "the proofs are good");
            start.elapsed()
        });
        best.min().unwrap_or_default().as_secs_f64()
    };
    let (slow, fast) = (time(&singly), time(&together));
    let times = slow / fast;
    println!(
        "{BATCH} proofs: {:.1} ms one by one, {:.1} ms together: {times:.1} times as fast",
        slow * 1e3,
        fast * 1e3
    );

    let mut group = c.benchmark_group(format!("verify {BATCH} proofs"));
    group.sample_size(10).measurement_time(Duration::from_secs(3)).warm_up_time(Duration::from_millis(500));
    group.bench_function("one by one", |b| b.iter(singly));
    group.bench_function("together", |b| b.iter(together));
    group.bench_function("together, one of them bad", |b| b.iter(|| verifier.verify_batch(&spoilt)));
    group.finish();
}

fn bench(c: &mut Criterion) {
    let mut cases: Vec<(String, ProvingKey, Witness)> = Vec::new();
    for log in [10, 14] {
        let (key, witness) = chain((1 << log) - 3);
        cases.push((format!("chain{log}"), key, witness));
    }
    match std::env::var_os("PROVER_BENCH_DIR") {
        None => eprintln!("PROVER_BENCH_DIR is not set: the built-in circuits only"),
        Some(dir) => {
            let entries = std::fs::read_dir(dir).expect("PROVER_BENCH_DIR is a folder");
            let mut dirs: Vec<PathBuf> = entries.filter_map(|e| e.ok().map(|e| e.path())).collect();
            dirs.retain(|d| d.join("circuit.zkey").is_file() && d.join("witness.wtns").is_file());
            dirs.sort();
            for dir in dirs {
                let (key, witness) = load(&dir);
                cases.push((dir.file_name().unwrap_or_default().to_string_lossy().into_owned(), key, witness));
            }
        }
    }
    let threads = std::thread::available_parallelism().map_or(1, |n| n.get());
    let backend = CpuBackend::new(threads).expect("a CPU");
    for (name, key, witness) in cases {
        let mut group = c.benchmark_group(&name);
        group.sample_size(10).measurement_time(Duration::from_secs(5)).warm_up_time(Duration::from_millis(500));
        let ark = Ark::new(&key, &witness);
        group.bench_function("arkworks, proving alone", |b| b.iter(|| ark.prove()));
        drop(ark);
        let key = Arc::new(key);
        group.bench_function("key load", |b| b.iter(|| backend.load(key.clone()).expect("loads")));
        let loaded = backend.load(key.clone()).expect("loads");
        let verifier = Verifier::new(&key.header.vk);
        group.bench_function("prove and verify", |b| {
            b.iter(|| prove(loaded.as_ref(), &verifier, &witness, &StopToken::new(), &Quiet).expect("a proof"));
        });
        group.finish();
    }
}

criterion_group!(benches, bench_verify, bench);
criterion_main!(benches);
