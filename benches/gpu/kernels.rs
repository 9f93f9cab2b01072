//! Products of points with scalars, transforms and whole commitments: checked against known answers and the CPU
//! backend, and timed.

use std::sync::Arc;

use ark_ec::short_weierstrass::{Projective, SWCurveConfig};
use ark_ec::{CurveGroup, PrimeGroup};
use ark_ff::{AdditiveGroup, BigInteger256, FftField, Field, One, PrimeField, UniformRand};
use ark_poly::{EvaluationDomain, Radix2EvaluationDomain};
use ark_std::rand::{Rng, SeedableRng, rngs::StdRng};
use prover_worker::backend::cpu::CpuBackend;
use prover_worker::backend::cuda::CudaBackend;
use prover_worker::backend::cuda::driver::{Driver, GraphCounts};
use prover_worker::backend::cuda::lab::{self, CapturedGraph, Group, InG1, InG2, Lab};
use prover_worker::backend::{Backend, BackendError, Commitments, LoadedKey, Quiet, selftest};
use prover_worker::model::{
    Fq, Fr, G1, G1Affine, G2, G2Affine, KeyHeader, KeySections, ProvingKey, StopToken, VerificationKey, Witness,
};

use super::{Adding, Msm, Record, Run};

/// Number of different points; larger sets repeat them.
const POINTS: usize = 1 << 12;
/// Multiples of each point: one for each window.
const ALL: u64 = 256;

/// Coordinates of a point as a key has them.
trait Raw {
    fn put(&self, out: &mut Vec<u8>);
}

impl Raw for Fq {
    fn put(&self, out: &mut Vec<u8>) {
        out.extend(self.0.0.iter().flat_map(|limb| limb.to_le_bytes()));
    }
}

impl Raw for prover_worker::model::Fq2 {
    fn put(&self, out: &mut Vec<u8>) {
        self.c0.put(out);
        self.c1.put(out);
    }
}

/// A section of `n` points, point i being (i mod POINTS + 1)·G.
fn section<C: SWCurveConfig>(n: usize) -> Vec<u8>
where
    C::BaseField: Raw,
{
    let (mut at, step) = (Projective::<C>::ZERO, Projective::<C>::generator());
    let mut walk = || {
        at += step;
        at
    };
    let points: Vec<Projective<C>> = (0..n.min(POINTS)).map(|_| walk()).collect();
    let mut bytes = Vec::new();
    for p in Projective::<C>::normalize_batch(&points) {
        p.x.put(&mut bytes);
        p.y.put(&mut bytes);
    }
    let each = bytes.len() / n.clamp(1, POINTS);
    bytes.iter().copied().cycle().take(n * each).collect()
}

/// Distribution of scalars.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Kind {
    Random,
    /// Three fifths are 0 or 1, as in the witnesses of many circuits.
    Circuit,
    ZeroOrOne,
    Equal,
    /// All equal, with small digits.
    Small,
}

const KINDS: [Kind; 5] = [Kind::Random, Kind::Circuit, Kind::ZeroOrOne, Kind::Equal, Kind::Small];

fn scalars(kind: Kind, n: usize, seed: u64) -> Vec<Fr> {
    let mut rng = StdRng::seed_from_u64(seed);
    let fixed = Fr::rand(&mut rng);
    let ones = Fr::from(0x0101_0101_0101_0101u64).square().square();
    let mut one = |_| match kind {
        Kind::Random => Fr::rand(&mut rng),
        Kind::Circuit if rng.gen_range(0..5) < 2 => Fr::rand(&mut rng),
        Kind::Circuit | Kind::ZeroOrOne => Fr::from(rng.gen_range(0..2u64)),
        Kind::Equal => fixed,
        Kind::Small => ones,
    };
    (0..n).map(&mut one).collect()
}

fn plain(scalars: &[Fr]) -> Vec<BigInteger256> {
    scalars.iter().map(|s| s.into_bigint()).collect()
}

/// Returns Σ sᵢ·Pᵢ for the points of `section`.
fn known<C: SWCurveConfig<ScalarField = Fr>>(scalars: &[Fr]) -> Projective<C> {
    let sum: Fr = scalars.iter().enumerate().map(|(i, s)| *s * Fr::from((i % POINTS) as u64 + 1)).sum();
    Projective::<C>::generator() * sum
}

fn sizes(run: &Run, largest: usize) -> Vec<usize> {
    let all = [1, 2, 31, 33, 1 << 10, (1 << 12) - 1, 1 << 14, (1 << 16) + 1, 1 << 18, 1 << 20, 1 << 22];
    let most = if run.small { 1 << 10 } else { largest };
    all.into_iter().filter(|n| *n <= most).collect()
}

macro_rules! check_products {
    ($name:ident, $group:ty, $config:ty, $largest:expr) => {
        pub(super) fn $name(run: &Run) -> Result<String, String> {
            let told = |e: BackendError| e.to_string();
            let lab = Lab::new(run.driver.clone()).map_err(told)?;
            let mut done = 0;
            for n in sizes(run, $largest) {
                let section = section::<$config>(n);
                // Bundles are also tested at sizes for which they are too slow to be chosen.
                for (multiples, window) in [(ALL, None), (2, None), (ALL, Some((13, 3)))] {
                    if window.is_some() && n > 1 << 16 {
                        continue;
                    }
                    let product = lab.msm::<$group>(&section, multiples, window).map_err(told)?;
                    for kind in KINDS {
                        let s = scalars(kind, n, n as u64);
                        product.scalars(&plain(&s)).map_err(told)?;
                        product.run().map_err(told)?;
                        if product.read().map_err(told)? != known::<$config>(&s) {
                            return Err(format!("{n} points, {kind:?}, {}: a wrong sum", product.plan()));
                        }
                        done += 1;
                    }
                }
            }
            Ok(format!("{done} products"))
        }
    };
}

check_products!(products_g1, InG1, ark_bn254::g1::Config, 1 << 22);
check_products!(products_g2, InG2, ark_bn254::g2::Config, 1 << 20);

/// The device as the program would use it, or as the options say.
fn backend(run: &Run) -> CudaBackend {
    let backend = CudaBackend::new(run.driver.clone());
    if run.graphs { backend } else { backend.without_graphs() }
}

/// Returns the graphs launched since, and why others were not, if there should be some.
fn graphs_since(run: &Run, before: &GraphCounts, wanted: bool) -> String {
    let now = run.driver.graph_counts();
    let launches = now.launches - before.launches;
    let why = now.error.filter(|why| wanted && (launches == 0 || before.error.as_ref() != Some(why)));
    format!("{launches} graph launches{}", why.map_or_else(String::new, |why| format!(": {why}")))
}

/// The known-answer test that every device passes before it is used.
pub(super) fn self_test(run: &Run) -> Result<String, String> {
    selftest::run(&backend(run)).map(|()| String::new()).map_err(|e| e.to_string())
}

/// Against arkworks, forwards and back.
pub(super) fn transforms(run: &Run) -> Result<String, String> {
    let told = |e: BackendError| e.to_string();
    let lab = Lab::new(run.driver.clone()).map_err(told)?;
    let logs: Vec<u32> = if run.small { (0..12).collect() } else { (0..19).chain([20, 22, 23, 24]).collect() };
    for log in &logs {
        let n = 1usize << log;
        let x = scalars(Kind::Random, n, u64::from(*log));
        let transforms = lab.transforms(*log, 1, None).map_err(told)?;
        transforms.upload(&x).map_err(told)?;
        transforms.inverse().map_err(told)?;
        let coefficients = transforms.download().map_err(told)?;
        let domain = Radix2EvaluationDomain::<Fr>::new(n).ok_or("no domain")?;
        let expected = domain.ifft(&x);
        let reversed = |i: usize| i.reverse_bits() >> (usize::BITS - log).min(usize::BITS - 1);
        let size = Fr::from(n as u64);
        let wrong = |i: &usize| coefficients[if *log == 0 { 0 } else { reversed(*i) }] != expected[*i] * size;
        if let Some(i) = (0..n).find(wrong) {
            return Err(format!("2^{log}: coefficient {i} is wrong"));
        }
        transforms.forward(true).map_err(told)?;
        let values = transforms.download().map_err(told)?;
        let odd = Fr::get_root_of_unity(2 * n as u64).ok_or("no root")?;
        let expected = domain.get_coset(odd).ok_or("no coset")?.fft(&expected);
        if let Some(i) = (0..n).find(|i| values[*i] != expected[*i] * size) {
            return Err(format!("2^{log}: value {i} on the odd coset is wrong"));
        }
    }
    Ok(format!("{} sizes", logs.len()))
}

/// A key of 2^log rows and wires, with points whose sums mean nothing but can be compared.
fn key(log: u32) -> ProvingKey {
    let n = 1usize << log;
    let (g1, g2) = (section::<ark_bn254::g1::Config>(n), section::<ark_bn254::g2::Config>(n));
    let mut rng = StdRng::seed_from_u64(u64::from(log));
    let mut entries = Vec::new();
    for row in 0..n as u32 {
        for matrix in 0..2u32 {
            for _ in 0..rng.gen_range(1..4) {
                let wire = rng.gen_range(0..n as u32);
                let factor = if rng.gen_range(0..4) == 0 { Fr::rand(&mut rng) } else { Fr::one() };
                for word in [matrix, row, wire] {
                    entries.extend(word.to_le_bytes());
                }
                entries.extend(factor.0.0.iter().flat_map(|limb| limb.to_le_bytes()));
            }
        }
    }
    let (one, two) = (G1Affine::from(G1::generator()), G2Affine::from(G2::generator()));
    let vk = VerificationKey { alpha_g1: one, beta_g2: two, gamma_g2: two, delta_g2: two, ic: vec![one; 2] };
    ProvingKey {
        header: KeyHeader { n_vars: n as u32, n_public: 1, domain_size: n as u32, beta_g1: one, delta_g1: one, vk },
        sections: KeySections {
            coefficients: entries.into(),
            a: g1.clone().into(),
            b1: g1.clone().into(),
            b2: g2.into(),
            c: g1[..(n - 2) * 64].to_vec().into(),
            h: g1.into(),
        },
    }
}

fn witness(kind: Kind, log: u32) -> Witness {
    Witness::from_canonical(plain(&scalars(kind, 1 << log, 5)))
}

/// Remark on a check that is only about graphs.
const LEFT_OUT: &str = "left out: --no-graphs";

/// Small products as one launch, repeatedly.
pub(super) fn batches(run: &Run) -> Result<String, String> {
    if !run.graphs {
        return Ok(LEFT_OUT.into());
    }
    let told = |e: BackendError| e.to_string();
    let mut done = 0;
    for (n, count) in [(1, 2), (33, 7), (1 << 10, 16), (1 << 12, 8)] {
        if run.small && n > 33 {
            continue;
        }
        let batch = batch::<InG1>(run, &section::<ark_bn254::g1::Config>(n), n, count).map_err(told)?;
        for round in 0..3 {
            let all: Vec<Vec<Fr>> = (0..count).map(|i| scalars(KINDS[i % 5], n, (round * count + i) as u64)).collect();
            for (product, s) in batch.parts().iter().zip(&all) {
                product.scalars(&plain(s)).map_err(told)?;
                product.wait().map_err(told)?;
            }
            batch.run().and_then(|()| batch.wait()).map_err(told)?;
            for (i, (product, s)) in batch.parts().iter().zip(&all).enumerate() {
                if product.read().map_err(told)? != known::<ark_bn254::g1::Config>(s) {
                    return Err(format!("product {i} of {count} with {n} points: a wrong sum in round {round}"));
                }
                done += 1;
            }
        }
    }
    Ok(format!("{done} products"))
}

/// `count` products with these points, each in its own stream, as one launch.
fn batch<G: Group>(
    run: &Run,
    section: &[u8],
    n: usize,
    count: usize,
) -> Result<CapturedGraph<Vec<lab::Msm<G>>>, BackendError> {
    let lab = Lab::new(run.driver.clone())?;
    let beside = (1..count).map(|_| lab.beside()).collect::<Result<Vec<_>, _>>()?;
    let labs = [&lab].into_iter().chain(&beside);
    let products =
        labs.map(|lab| product::<G>(lab, section, n, Kind::Random, ALL, None)).collect::<Result<Vec<_>, _>>()?;
    // Run each alone once, so that all code is loaded.
    for product in &products {
        product.run()?;
        product.wait()?;
    }
    lab.capture(&beside, products, |products| products.iter().try_for_each(lab::Msm::run))
}

/// Whole commitments, with each kernel a separate launch.
pub(super) fn one_by_one(run: &Run) -> Result<String, String> {
    commitments(run, &CudaBackend::new(run.driver.clone()).without_graphs())
}

/// Whole commitments, each one launch; and checks that they were.
pub(super) fn as_one_launch(run: &Run) -> Result<String, String> {
    if !run.graphs {
        return Ok(LEFT_OUT.into());
    }
    commitments(run, &CudaBackend::new(run.driver.clone()))
}

/// Checks that whole commitments equal those of the CPU backend: alone and several at a time.
fn commitments(run: &Run, gpu: &CudaBackend) -> Result<String, String> {
    let told = |e: BackendError| e.to_string();
    // Even of the small ones, the larger has more buckets than are sorted in one step, on a device with many
    // multiprocessors. The second proof reuses the memory of the first, and is one launch; the third is the same
    // launch.
    let (logs, kinds, rounds): (&[u32], _, _) =
        if run.small { (&[4, 10], &[Kind::Circuit; 2][..], 1) } else { (&[2, 6, 10, 14, 18], &KINDS[..], 3) };
    let begun = run.driver.graph_counts();
    let cpu = CpuBackend::new(std::thread::available_parallelism().map_or(1, |n| n.get())).map_err(told)?;
    for log in logs {
        let key = Arc::new(key(*log));
        let on_cpu = cpu.load(key.clone()).map_err(told)?;
        let witnesses: Vec<Witness> = kinds.iter().map(|kind| witness(*kind, *log)).collect();
        let stop = StopToken::new();
        let expected: Vec<_> = witnesses.iter().map(|w| on_cpu.commit(w, &stop, &Quiet)).collect();
        let before = run.driver.graph_counts();
        let on_gpu = gpu.load(key.clone()).map_err(told)?;
        for ((kind, w), expected) in kinds.iter().zip(&witnesses).zip(&expected) {
            for _ in 0..rounds {
                let got = on_gpu.commit(w, &stop, &Quiet);
                if got != *expected {
                    return Err(format!("2^{log} rows, {kind:?}: {}", wrong(&got)));
                }
            }
        }
        let (all, stops): (Vec<&Witness>, _) = (witnesses.iter().collect(), vec![&stop; witnesses.len()]);
        for _ in 0..rounds {
            let got = on_gpu.commit_batch(&all, &stops);
            if let Some((got, _)) = got.iter().zip(&expected).find(|(got, expected)| got != expected) {
                return Err(format!("2^{log} rows, a batch: {}", wrong(got)));
            }
        }
        // All but the first proof in each memory are one launch each.
        let least = 2 * rounds * all.len() - on_gpu.preferred_batch().min(all.len());
        let launches = run.driver.graph_counts().launches - before.launches;
        if gpu.makes_graphs(&key) && launches < least as u64 {
            let got = graphs_since(run, &before, true);
            return Err(format!("2^{log} rows: expected {least} graph launches at least, got {got}"));
        }
    }
    let kinds = if run.small { 1 } else { kinds.len() };
    Ok(format!("{} sizes, {kinds} kinds of witness, {}", logs.len(), graphs_since(run, &begun, false)))
}

/// Says how commitments differ from those of the CPU backend.
fn wrong(got: &Result<Commitments, BackendError>) -> String {
    got.as_ref().map_or_else(ToString::to_string, |_| "not the processor's commitments".into())
}

fn product<G: Group>(
    lab: &Lab,
    section: &[u8],
    n: usize,
    kind: Kind,
    multiples: u64,
    window: Option<(u32, u32)>,
) -> Result<lab::Msm<G>, BackendError> {
    let product = lab.msm::<G>(section, multiples, window)?;
    product.scalars(&plain(&scalars(kind, n, 3)))?;
    Ok(product)
}

fn time_products<G: Group>(
    run: &Run,
    name: &str,
    second: bool,
    section: impl Fn(usize) -> Vec<u8>,
) -> Result<Vec<Record>, BackendError> {
    let lab = Lab::new(run.driver.clone())?;
    let mut records = Vec::new();
    for log2 in [12, 14, 16, 18, 20, 22] {
        let n = 1usize << log2;
        let points = section(n);
        let floor = run.floor.msm(Msm { log2, second, tables: true, adding: Adding::Xyzz, density: 1.0 }).0;
        for (kind, note) in [(Kind::Random, "random"), (Kind::Circuit, "3/5 are 0 or 1"), (Kind::Equal, "all equal")] {
            if kind != Kind::Random && log2 != 20 {
                continue;
            }
            let product = product::<G>(&lab, &points, n, kind, ALL, None)?;
            let times = lab.time(run.rounds + 1, || product.run())?;
            let record = Record::of(name, Some(log2), &times).note(format!("{note}; {}", product.plan()));
            records.push(if kind == Kind::Random { record.floor(floor) } else { record });
            if run.trace {
                for (kernel, ms) in lab.trace(|| product.run())? {
                    println!("    {kernel}: {ms:.4} ms");
                }
            }
        }
        let windows: &[u32] = match log2 {
            16 => &[15, 16],
            18 => &[16, 17],
            20 => &[17, 19],
            22 => &[20],
            _ => &[],
        };
        for window in windows.iter().filter(|_| run.trace) {
            for rounds in 0..=4 {
                let product = product::<G>(&lab, &points, n, Kind::Random, ALL, Some((*window, rounds)))?;
                let times = lab.time(4, || product.run())?;
                let least = times.iter().copied().fold(f64::INFINITY, f64::min);
                println!("    2^{log2}, window {window}, {rounds} rounds of bundles: {least:.3} ms");
            }
        }
    }
    Ok(records)
}

pub(super) fn msm_g1(run: &Run) -> Result<Vec<Record>, BackendError> {
    time_products::<InG1>(run, "MSM in G1", false, section::<ark_bn254::g1::Config>)
}

pub(super) fn msm_g2(run: &Run) -> Result<Vec<Record>, BackendError> {
    time_products::<InG2>(run, "MSM in G2", true, section::<ark_bn254::g2::Config>)
}

pub(super) fn ntt(run: &Run) -> Result<Vec<Record>, BackendError> {
    let lab = Lab::new(run.driver.clone())?;
    let mut records = Vec::new();
    for log2 in [12, 14, 16, 18, 20, 22, 24] {
        let n = 1usize << log2;
        let floor = run.floor.ntt(log2);
        let others = [Some(1), Some(2), Some(3)].into_iter().filter(|_| run.trace);
        for stages in others.chain([None]) {
            let transforms = lab.transforms(log2, 1, stages)?;
            transforms.upload(&scalars(Kind::Random, n, 1))?;
            let inverse = lab.time(run.rounds + 1, || transforms.inverse())?;
            let forward = lab.time(run.rounds + 1, || transforms.forward(true))?;
            let both = lab.time(run.rounds + 1, || transforms.to_odd_coset())?;
            let least = |times: &[f64]| times.iter().copied().fold(f64::INFINITY, f64::min);
            if let Some(stages) = stages {
                let [a, b, c] = [&inverse, &forward, &both].map(|times| least(times));
                println!("    2^{log2}, {stages} stages: inverse {a:.4}, forward {b:.4}, to the coset {c:.4} ms");
                continue;
            }
            records.push(Record::of("NTT, inverse", Some(log2), &inverse).floor(floor));
            records.push(Record::of("NTT, forward to the odd coset", Some(log2), &forward).floor(floor));
            records.push(Record::of("from domain to odd coset", Some(log2), &both).floor(2.0 * floor));
            let three = lab.transforms(log2, 3, None)?;
            three.upload(&scalars(Kind::Random, 3 * n, 1))?;
            let both = lab.time(run.rounds + 1, || three.to_odd_coset())?;
            records.push(Record::of("the same, three vectors", Some(log2), &both).floor(6.0 * floor));
            if run.trace {
                for (kernel, ms) in lab.trace(|| three.to_odd_coset())? {
                    println!("    {kernel}: {ms:.4} ms");
                }
            }
        }
    }
    Ok(records)
}

/// Small products in G1, several as one launch.
pub(super) fn batched(run: &Run) -> Result<Vec<Record>, BackendError> {
    let lab = Lab::new(run.driver.clone())?;
    let mut records = Vec::new();
    for log2 in [8, 10, 12, 14] {
        let n = 1usize << log2;
        let points = section::<ark_bn254::g1::Config>(n);
        let alone = product::<InG1>(&lab, &points, n, Kind::Random, ALL, None)?;
        let times = lab.time(run.rounds + 1, || alone.run())?;
        records.push(Record::of("small MSM in G1, by itself", Some(log2), &times).note(alone.plan()));
        for count in [1, 4, 16, 64].into_iter().filter(|_| run.graphs) {
            let batch = batch::<InG1>(run, &points, n, count)?;
            let mut times = Vec::new();
            for _ in 0..=run.rounds {
                let start = std::time::Instant::now();
                batch.run()?;
                batch.wait()?;
                times.push(start.elapsed().as_secs_f64() * 1e3 / count as f64);
            }
            let record = Record::of(&format!("small MSM in G1, each of {count} as one launch"), Some(log2), &times);
            let rate = 1e3 / record.median_ms;
            records.push(record.note(format!("{rate:.0} a second")));
        }
    }
    Ok(records)
}

/// Device memory in bytes that a proof takes in addition to its footprint, measured on a batch made twice: streams, a
/// graph if it has one, and what the driver rounds up, because it allocates in pieces of some megabytes.
fn beside_footprint(run: &Run, gpu: &CudaBackend, key: &dyn LoadedKey, witness: &Witness) -> Result<i64, BackendError> {
    let (stop, batch) = (StopToken::new(), key.preferred_batch());
    let before = run.driver.free_memory()?;
    for _ in 0..2 {
        let all = key.commit_batch(&vec![witness; batch], &vec![&stop; batch]);
        all.into_iter().try_for_each(|commitments| commitments.map(drop))?;
    }
    let taken = before as i64 - run.driver.free_memory()? as i64;
    Ok(taken / batch as i64 - gpu.footprint(key.key()).per_proof as i64)
}

/// From a witness in memory to five points.
pub(super) fn commit(run: &Run) -> Result<Vec<Record>, BackendError> {
    let mut records = Vec::new();
    for log2 in [10, 12, 16, 18, 20] {
        let key = Arc::new(key(log2));
        let gpu = backend(run);
        // Larger ones are launched one by one anyway.
        let singly = gpu.makes_graphs(&key).then(|| (gpu.without_graphs(), "commitments, one by one"));
        for (gpu, how) in singly.into_iter().chain([(gpu, "commitments")]) {
            let start = std::time::Instant::now();
            let loaded = gpu.load(key.clone())?;
            println!("    2^{log2}: loaded in {:.3} s", start.elapsed().as_secs_f64());
            let beside = beside_footprint(run, &gpu, &*loaded, &witness(Kind::Random, log2))? >> 10;
            for (kind, note) in [(Kind::Random, "dense"), (Kind::Circuit, "3/5 are 0 or 1")] {
                let w = witness(kind, log2);
                let before = run.driver.graph_counts();
                // One more round, after which proofs are one launch.
                loaded.commit(&w, &StopToken::new(), &Quiet)?;
                let mut times = Vec::new();
                for _ in 0..=run.rounds {
                    let start = std::time::Instant::now();
                    loaded.commit(&w, &StopToken::new(), &Quiet)?;
                    times.push(start.elapsed().as_secs_f64() * 1e3);
                }
                let graphs = graphs_since(run, &before, gpu.makes_graphs(&key));
                let note = format!("{note}; {graphs}; {beside} KiB of memory a proof beside its footprint");
                records.push(Record::of(how, Some(log2), &times).note(note));
            }
        }
    }
    Ok(records)
}

/// Proofs per second, several at a time: threads with one each, or two threads with batches, as in the worker.
pub(super) fn throughput(run: &Run) -> Result<Vec<Record>, BackendError> {
    let gpu = backend(run);
    let mut records = Vec::new();
    for log2 in [10, 12, 14, 16, 20] {
        let key = Arc::new(key(log2));
        let loaded = gpu.load(key.clone())?;
        let w = witness(Kind::Circuit, log2);
        let each = if log2 > 18 { 6 } else { 40 };
        let best = loaded.preferred_batch();
        let mut ways = vec![(1, 1), (2, 1)];
        // For larger ones, at most two proofs' memory stays with a key, and the worker makes no more at a time: more
        // would measure how long the driver takes to allocate and free memory.
        if best > 1 {
            ways.extend([(4, 1), (1, best), (2, best)]);
        }
        for (threads, batch) in ways {
            let (all, stop) = (vec![&w; batch], StopToken::new());
            let stops = vec![&stop; batch];
            let before = run.driver.graph_counts();
            let mut times = Vec::new();
            for _ in 0..=run.rounds.min(4) {
                let start = std::time::Instant::now();
                std::thread::scope(|scope| {
                    let prove = || {
                        let batches = (0..each).map(|_| loaded.commit_batch(&all, &stops));
                        batches.flatten().try_for_each(|commitments| commitments.map(drop))
                    };
                    let all: Vec<_> = (0..threads).map(|_| scope.spawn(prove)).collect();
                    all.into_iter().try_for_each(|one| one.join().expect("a proof that does not panic"))
                })?;
                times.push(start.elapsed().as_secs_f64() * 1e3 / f64::from(each * threads) / batch as f64);
            }
            let name = match batch {
                1 => format!("a commitment, of {threads} at a time"),
                _ => format!("a commitment, of {threads} times {batch} in a batch"),
            };
            let record = Record::of(&name, Some(log2), &times);
            let rate = 1e3 / record.median_ms;
            let graphs = graphs_since(run, &before, gpu.makes_graphs(&key));
            records.push(record.note(format!("{rate:.0} a second; 3/5 are 0 or 1; {graphs}")));
        }
    }
    Ok(records)
}
