//! Several proofs at once: verified together, and made together.

use std::sync::Mutex;
use std::time::Duration;

use ark_ff::UniformRand;
use prover_worker::backend::{BackendError, Commitments, LoadedKey, Progress};
use prover_worker::groth16::{BatchJob, Proved, prove_batch};
use prover_worker::model::{Proof, StopReason};

use super::*;

type Pair = (Proof, PublicInputs);
/// A device's answer for a batch.
type Committed = Vec<Result<Commitments, BackendError>>;

/// A verifier and `n` good proofs, each of different values.
fn good(n: u64) -> (Verifier, Vec<Pair>) {
    let (circuit, _) = squarings(3, 2);
    let key = key(&circuit);
    let verifier = Verifier::new(&key.header.vk);
    let loaded = CpuBackend::new(2).unwrap().load(key).unwrap();
    let mut pairs = Vec::new();
    for x in 2..2 + n {
        let (_, values) = squarings(3, x);
        let made = prove(loaded.as_ref(), &verifier, &witness(&values), &StopToken::new(), &Quiet).unwrap();
        pairs.push((made.proof, made.public));
    }
    (verifier, pairs)
}

/// Returns the result of both ways of verifying, after checking that they agree.
fn both(verifier: &Verifier, pairs: &[Pair]) -> Vec<bool> {
    let lent: Vec<(&Proof, &PublicInputs)> = pairs.iter().map(|(p, v)| (p, v)).collect();
    let together = verifier.verify_batch(&lent);
    let singly: Vec<bool> = pairs.iter().map(|(p, v)| verifier.verify(p, v)).collect();
    assert_eq!(together, singly);
    together
}

fn all_but(n: usize, bad: &[usize]) -> Vec<bool> {
    (0..n).map(|i| !bad.contains(&i)).collect()
}

fn outside_the_group() -> G2Affine {
    let found = (1u64..).find_map(|x| {
        let p = G2Affine::get_point_from_x_unchecked(x.into(), true)?;
        (!p.is_in_correct_subgroup_assuming_on_curve()).then_some(p)
    });
    found.unwrap()
}

#[test]
fn good_proofs_pass_together_in_every_number() {
    let (verifier, pairs) = good(9);
    for n in 0..=pairs.len() {
        assert_eq!(both(&verifier, &pairs[..n]), vec![true; n]);
    }
}

#[test]
fn the_bad_ones_alone_are_found_wherever_they_are() {
    let (verifier, pairs) = good(17);
    let spoil = |pairs: &mut [Pair], i: usize| pairs[i].0.c = (pairs[i].0.c + G1Affine::generator()).into_affine();
    for i in 0..pairs.len() {
        let mut one = pairs.clone();
        spoil(&mut one, i);
        assert_eq!(both(&verifier, &one), all_but(17, &[i]));
    }
    for bad in [&[0, 16][..], &[0, 1, 2, 3], &[7, 8], &[3, 5, 7, 11, 13], &[8, 9, 10, 11, 12, 13, 14, 15, 16]] {
        let mut several = pairs.clone();
        bad.iter().for_each(|i| spoil(&mut several, *i));
        assert_eq!(both(&verifier, &several), all_but(17, bad));
    }
    let mut none = pairs.clone();
    (0..17).for_each(|i| spoil(&mut none, i));
    assert_eq!(both(&verifier, &none), vec![false; 17]);
}

/// Each pair of proofs satisfies the product of both equations, but neither proof its own.
#[test]
fn errors_that_cancel_do_not_pass() {
    let (verifier, pairs) = good(8);
    for k in 0..20 {
        let mut rng = ark_std::test_rng();
        let delta = (G1Affine::generator() * (Fr::rand(&mut rng) + Fr::from(k as u64))).into_affine();
        let mut shifted = pairs.clone();
        shifted[1].0.c = (shifted[1].0.c + delta).into_affine();
        shifted[6].0.c = (shifted[6].0.c - delta).into_affine();
        assert_eq!(both(&verifier, &shifted), all_but(8, &[1, 6]));
        // Also in a set of only these two.
        let two = [shifted[1].clone(), shifted[6].clone()];
        assert_eq!(both(&verifier, &two), [false, false]);
    }

    // The whole left-hand or right-hand side of one equation in the other.
    let (one, other) = (&pairs[2].0, &pairs[5].0);
    let c = Proof { c: other.c, ..one.clone() };
    let with_c = Proof { c: one.c, ..other.clone() };
    let ab = Proof { c: one.c, ..other.clone() };
    let with_ab = Proof { c: other.c, ..one.clone() };
    for (left, right) in [(c, with_c), (ab, with_ab)] {
        let mut swapped = pairs.clone();
        swapped[2].0 = left;
        swapped[5].0 = right;
        assert_eq!(both(&verifier, &swapped), all_but(8, &[2, 5]));
    }
    let mut values = pairs.clone();
    (values[2].1, values[5].1) = (pairs[5].1.clone(), pairs[2].1.clone());
    assert_eq!(both(&verifier, &values), all_but(8, &[2, 5]));
    let mut a = pairs.clone();
    (a[2].0.a, a[5].0.a) = (pairs[5].0.a, pairs[2].0.a);
    assert_eq!(both(&verifier, &a), all_but(8, &[2, 5]));
    let mut ic = pairs.clone();
    ic[0].1.0[1] += Fr::from(1u64);
    ic[1].1.0[1] -= Fr::from(1u64);
    assert_eq!(both(&verifier, &ic), all_but(8, &[0, 1]));
}

#[test]
fn duplicates_are_judged_each_for_itself() {
    let (verifier, pairs) = good(2);
    let mut bad = pairs[1].clone();
    bad.0.a = -bad.0.a;
    let set = [&pairs[0], &bad, &pairs[0], &bad, &pairs[0], &bad, &pairs[1], &pairs[1]].map(Clone::clone);
    assert_eq!(both(&verifier, &set), all_but(8, &[1, 3, 5]));
    assert_eq!(both(&verifier, &vec![pairs[0].clone(); 6]), [true; 6]);
    // The same error with both signs, and the negative of a whole proof: A and C negated negate both sides but α·β.
    let mut negated = pairs[0].clone();
    (negated.0.a, negated.0.c) = (-negated.0.a, -negated.0.c);
    assert_eq!(both(&verifier, &[pairs[0].clone(), negated]), [true, false]);
    // Two ways to write one proof: e(−A, −B) = e(A, B).
    let mut other = pairs[0].clone();
    (other.0.a, other.0.b) = (-other.0.a, -other.0.b);
    assert_eq!(both(&verifier, &[pairs[0].clone(), other]), [true, true]);
}

#[test]
fn malformed_proofs_are_false_and_take_no_part() {
    let (verifier, pairs) = good(5);
    let changes: [fn(&mut Pair); 9] = [
        |p| p.0.a = G1Affine::identity(),
        |p| p.0.b = G2Affine::identity(),
        |p| p.0.c = G1Affine::identity(),
        |p| p.0.a.x += ark_ff::Fp::from(1u64),
        |p| p.0.c.y += ark_ff::Fp::from(1u64),
        |p| p.0.b = outside_the_group(),
        |p| p.1.0.truncate(1),
        |p| p.1.0.push(Fr::from(0u64)),
        |p| p.1.0.clear(),
    ];
    for (k, change) in changes.iter().enumerate() {
        for i in [0, 2, 4] {
            let mut set = pairs.clone();
            change(&mut set[i]);
            assert_eq!(both(&verifier, &set), all_but(5, &[i]), "change {k}");
        }
    }
    let mut all: Vec<Pair> = Vec::new();
    for change in changes {
        let mut pair = pairs[0].clone();
        change(&mut pair);
        all.push(pair);
    }
    assert_eq!(both(&verifier, &all), [false; 9]);
    // Well-formed, but for another key.
    let (_, others) = good(2);
    assert_eq!(both(&verifier, &others), [false, false]);
}

/// A key whose device behaves as a test wants.
struct Odd {
    inner: Arc<dyn LoadedKey>,
    /// Witnesses of each call.
    calls: Mutex<Vec<usize>>,
    results: fn(Committed) -> Committed,
}

impl LoadedKey for Odd {
    fn key(&self) -> &Arc<ProvingKey> {
        self.inner.key()
    }

    fn commit(&self, witness: &Witness, stop: &StopToken, on: &dyn Progress) -> Result<Commitments, BackendError> {
        self.inner.commit(witness, stop, on)
    }

    fn commit_batch(&self, witnesses: &[&Witness], stops: &[&StopToken]) -> Committed {
        self.calls.lock().unwrap().push(witnesses.len());
        (self.results)(self.inner.commit_batch(witnesses, stops))
    }
}

struct Bench {
    verifier: Verifier,
    key: Odd,
    wires: usize,
}

fn bench(results: fn(Committed) -> Committed) -> Bench {
    let (circuit, values) = squarings(5, 2);
    let key = key(&circuit);
    let verifier = Verifier::new(&key.header.vk);
    let inner = CpuBackend::new(2).unwrap().load(key).unwrap();
    Bench { verifier, key: Odd { inner, calls: Mutex::default(), results }, wires: values.len() }
}

impl Bench {
    fn prove(&self, jobs: &[(&Witness, &StopToken)]) -> Vec<Result<Proved, ProveError>> {
        let jobs: Vec<BatchJob<'_>> = jobs.iter().map(|(witness, stop)| BatchJob { witness, stop }).collect();
        prove_batch(&self.key, &self.verifier, &jobs)
    }

    fn calls(&self) -> Vec<usize> {
        self.key.calls.lock().unwrap().clone()
    }
}

fn values(x: u64) -> Vec<Fr> {
    squarings(5, x).1
}

#[test]
fn each_job_of_a_batch_has_a_result_of_its_own() {
    let bench = bench(|r| r);
    let good: Vec<Witness> = (3..6).map(|x| witness(&values(x))).collect();
    let mut wrong = values(9);
    wrong[4] += Fr::from(1u64);
    let wrong = witness(&wrong);
    let short = witness(&values(9)[..4]);
    let mut zero = values(9);
    zero[0] = Fr::from(0u64);
    let zero = witness(&zero);
    let (on, stopped, late) = (StopToken::new(), StopToken::new(), StopToken::new());
    stopped.stop(StopReason::Cancelled);
    let late = late.with_deadline(std::time::Instant::now());

    let results = bench.prove(&[
        (&good[0], &on),
        (&wrong, &on),
        (&short, &on),
        (&good[1], &stopped),
        (&zero, &on),
        (&good[1], &on),
        (&good[2], &late),
        (&good[2], &on),
        (&short, &stopped),
    ]);
    assert_eq!(bench.calls(), [4], "only what fits and is not stopped goes to the device, all of it at once");
    let errors: Vec<Option<ProveError>> = results.iter().map(|r| r.as_ref().err().cloned()).collect();
    let length = ProveError::WitnessLength { expected: bench.wires, got: 4 };
    let stop = |why| Some(ProveError::Backend(BackendError::Stopped(why)));
    assert_eq!(
        errors,
        [
            None,
            Some(ProveError::Invalid),
            Some(length.clone()),
            stop(StopReason::Cancelled),
            Some(ProveError::WitnessOne),
            None,
            stop(StopReason::TimedOut),
            None,
            Some(length),
        ]
    );
    for (i, x) in [(0, 3), (5, 4), (7, 5)] {
        let made = results[i].as_ref().unwrap();
        assert_eq!(made.public, PublicInputs(values(x)[1..3].to_vec()));
        assert!(bench.verifier.verify(&made.proof, &made.public));
        assert!(made.commit_time > Duration::ZERO && made.verify_time > Duration::ZERO);
    }
}

#[test]
fn proofs_of_one_witness_are_blinded_each_for_itself() {
    let bench = bench(|r| r);
    let (w, on) = (witness(&values(3)), StopToken::new());
    let made: Vec<Proof> = bench.prove(&[(&w, &on); 3]).into_iter().map(|r| r.unwrap().proof).collect();
    for (one, other) in [(0, 1), (1, 2), (0, 2)] {
        assert_ne!(made[one].a, made[other].a);
        assert_ne!(made[one].b, made[other].b);
        assert_ne!(made[one].c, made[other].c);
    }
}

#[test]
fn nothing_to_prove_does_not_bother_the_device() {
    let bench = bench(|r| r);
    assert!(bench.prove(&[]).is_empty());
    let (short, on) = (witness(&values(3)[..2]), StopToken::new());
    assert!(matches!(bench.prove(&[(&short, &on)])[..], [Err(ProveError::WitnessLength { .. })]));
    assert_eq!(bench.calls(), Vec::<usize>::new());
}

#[test]
fn a_device_that_fails_one_of_a_batch_leaves_the_others() {
    let failed = BackendError::Device { op: "launch", code: 700 };
    let bench = bench(|mut r| {
        r[1] = Err(BackendError::Device { op: "launch", code: 700 });
        // It also computes a wrong result.
        r[2] = r[0].clone();
        r
    });
    let ws: Vec<Witness> = (3..7).map(|x| witness(&values(x))).collect();
    let on = StopToken::new();
    let results = bench.prove(&[(&ws[0], &on), (&ws[1], &on), (&ws[2], &on), (&ws[3], &on)]);
    assert!(results[0].is_ok() && results[3].is_ok());
    assert_eq!(results[1].as_ref().err(), Some(&ProveError::Backend(failed)));
    assert_eq!(results[2].as_ref().err(), Some(&ProveError::Invalid));
}

#[test]
fn a_device_that_loses_a_result_proves_nothing() {
    let bench = bench(|mut r| {
        r.pop();
        r
    });
    let (w, short, on) = (witness(&values(3)), witness(&values(3)[..2]), StopToken::new());
    let results = bench.prove(&[(&w, &on), (&short, &on), (&w, &on)]);
    let fault = BackendError::BatchResults { expected: 2, got: 1 };
    for i in [0, 2] {
        assert_eq!(results[i].as_ref().err(), Some(&ProveError::Backend(fault.clone())));
    }
    assert!(matches!(results[1], Err(ProveError::WitnessLength { .. })));
}

#[test]
fn a_batch_is_what_its_parts_are_one_by_one() {
    let (circuit, _) = squarings(5, 2);
    let loaded = CpuBackend::new(2).unwrap().load(key(&circuit)).unwrap();
    assert_eq!(loaded.preferred_batch(), 1);
    let ws: Vec<Witness> = (3..6).map(|x| witness(&values(x))).collect();
    let short = witness(&values(3)[..2]);
    let (on, stopped) = (StopToken::new(), StopToken::new());
    stopped.stop(StopReason::Draining);
    let lent = [&ws[0], &short, &ws[1], &ws[2]];
    let stops = [&on, &on, &stopped, &on];
    let singly: Vec<_> = lent.iter().zip(stops).map(|(w, s)| loaded.commit(w, s, &Quiet)).collect();
    assert!(singly[0].is_ok() && singly[1].is_err() && singly[2].is_err() && singly[3].is_ok());
    assert_eq!(loaded.commit_batch(&lent, &stops), singly);

    let shape = BackendError::Shape { what: "stop tokens of a batch", expected: 4, got: 3 };
    assert_eq!(loaded.commit_batch(&lent, &stops[..3]), vec![Err(shape); 4]);
    assert_eq!(loaded.commit_batch(&[], &[]), []);
}
