//! Set-up, proving and verification together, on circuits built on the spot.
#![allow(clippy::unwrap_used, missing_docs)]

mod batch;
#[cfg(feature = "kernels-on-host")]
mod kernels;

use std::sync::Arc;

use ark_ec::{AffineRepr, CurveGroup};
use ark_ff::{BigInteger256, Field, PrimeField};
use prover_worker::backend::cpu::{CpuBackend, Instructions};
use prover_worker::backend::{Backend, Quiet};
use prover_worker::formats::r1cs::{Constraints, R1cs};
use prover_worker::formats::{snarkjs, wtns, zkey};
use prover_worker::groth16::{ProveError, Verifier, prove, setup};
use prover_worker::model::{Fr, G1Affine, G2Affine, ProvingKey, PublicInputs, StopToken, Witness};

/// y = x^(2^n) + n·x with x public. Wires: 1, y, x, then the powers.
fn squarings(n: u32, x: u64) -> (R1cs, Vec<Fr>) {
    let one = BigInteger256::one();
    let number =
        |v: i64| if v < 0 { (-Fr::from(v.unsigned_abs())).into_bigint() } else { Fr::from(v as u64).into_bigint() };
    let mut constraints = Constraints { offsets: vec![0], terms: Vec::new() };
    let mut values = vec![Fr::from(1u64), Fr::from(0u64), Fr::from(x)];
    for i in 0..n {
        let from = 2 + i;
        values.push(values[from as usize].square());
        for row in [vec![(from, one)], vec![(from, one)], vec![(from + 1, one)]] {
            constraints.terms.extend(row);
            constraints.offsets.push(constraints.terms.len() as u64);
        }
    }
    values[1] = values[2 + n as usize] + Fr::from(n) * Fr::from(x);
    // (last + n·x)·1 = y
    for row in [vec![(2 + n, one), (2, number(i64::from(n)))], vec![(0, one)], vec![(1, one)]] {
        constraints.terms.extend(row);
        constraints.offsets.push(constraints.terms.len() as u64);
    }
    let n_wires = values.len() as u32;
    (R1cs { n_wires, n_pub_out: 1, n_pub_in: 1, n_prv_in: 0, n_labels: u64::from(n_wires), constraints }, values)
}

fn witness(values: &[Fr]) -> Witness {
    Witness::from_canonical(values.iter().map(|v| v.into_bigint()).collect())
}

fn key(circuit: &R1cs) -> Arc<ProvingKey> {
    Arc::new(setup::generate(circuit, &|_| {}).unwrap())
}

#[test]
fn proofs_of_every_small_size_verify_and_only_for_their_values() {
    for n in [1, 2, 3, 5, 6, 13, 29, 30, 125] {
        let (circuit, values) = squarings(n, 3);
        let key = key(&circuit);
        let verifier = Verifier::new(&key.header.vk);
        let loaded = CpuBackend::new(2).unwrap().load(key.clone()).unwrap();
        let proved = prove(loaded.as_ref(), &verifier, &witness(&values), &StopToken::new(), &Quiet).unwrap();
        assert_eq!(proved.public, PublicInputs(values[1..3].to_vec()));
        assert!(verifier.verify(&proved.proof, &proved.public));
        for i in 0..2 {
            let mut other = proved.public.clone();
            other.0[i] += Fr::from(1u64);
            assert!(!verifier.verify(&proved.proof, &other), "size {n}, value {i}");
        }
        let short = PublicInputs(proved.public.0[..1].to_vec());
        assert!(!verifier.verify(&proved.proof, &short));
    }
}

/// The verifier handles few public values differently than many.
#[test]
fn any_number_of_public_values_is_verified() {
    for public in [0u32, 1, 2, 8, 9, 30] {
        let (mut circuit, values) = squarings(40, 3);
        (circuit.n_pub_out, circuit.n_pub_in) = (public.min(1), public.saturating_sub(1));
        let key = key(&circuit);
        let verifier = Verifier::new(&key.header.vk);
        let loaded = CpuBackend::new(2).unwrap().load(key.clone()).unwrap();
        let proved = prove(loaded.as_ref(), &verifier, &witness(&values), &StopToken::new(), &Quiet).unwrap();
        assert_eq!(proved.public, PublicInputs(values[1..=public as usize].to_vec()));
        for i in 0..public as usize {
            let mut other = proved.public.clone();
            other.0[i] = -other.0[i];
            assert!(!verifier.verify(&proved.proof, &other), "value {i} of {public}");
        }
    }
}

/// The scalars of few wires are halved, and so are those of a small domain, each independently of the other.
#[test]
fn wires_and_domain_may_differ_in_whether_they_are_halved() {
    let on = |circuit: &R1cs, values: &[Fr], domain| {
        let key = key(circuit);
        assert_eq!(key.header.domain_size, domain);
        let verifier = Verifier::new(&key.header.vk);
        let loaded = CpuBackend::new(2).unwrap().load(key.clone()).unwrap();
        prove(loaded.as_ref(), &verifier, &witness(values), &StopToken::new(), &Quiet).unwrap();
        same_on_every_set("wires or domain", &key, &witness(values));
    };
    let (circuit, values) = squarings(4093, 3);
    assert_eq!(values.len(), 4096);
    on(&circuit, &values, 8192);
    let (mut circuit, mut values) = squarings(100, 3);
    // Wires without a constraint.
    values.resize(5000, Fr::from(17u64));
    circuit.n_wires = 5000;
    on(&circuit, &values, 128);
}

#[test]
fn a_development_key_passes_the_full_check_and_survives_its_file() {
    let (circuit, values) = squarings(40, 7);
    let key = key(&circuit);
    let mut file = Vec::new();
    zkey::write(&key, &mut file).unwrap();
    let read = zkey::parse(file.into()).unwrap();
    zkey::check(&read).unwrap();
    assert_eq!(snarkjs::vkey_to_json(&read.header.vk), snarkjs::vkey_to_json(&key.header.vk));
    let verifier = Verifier::new(&key.header.vk);
    let loaded = CpuBackend::new(1).unwrap().load(Arc::new(read)).unwrap();
    prove(loaded.as_ref(), &verifier, &witness(&values), &StopToken::new(), &Quiet).unwrap();
}

#[test]
fn two_set_ups_make_different_keys() {
    let (circuit, _) = squarings(3, 7);
    assert_ne!(key(&circuit).header.vk, key(&circuit).header.vk);
}

#[test]
fn a_witness_that_satisfies_nothing_gives_an_error_and_no_proof() {
    let (circuit, values) = squarings(20, 3);
    let key = key(&circuit);
    let verifier = Verifier::new(&key.header.vk);
    let loaded = CpuBackend::new(2).unwrap().load(key).unwrap();
    let go = |v: &[Fr]| prove(loaded.as_ref(), &verifier, &witness(v), &StopToken::new(), &Quiet).map(|_| ());
    for wire in 1..values.len() {
        let mut bad = values.clone();
        bad[wire] += Fr::from(1u64);
        assert_eq!(go(&bad), Err(ProveError::Invalid), "wire {wire}");
    }
    let mut zero = values.clone();
    zero[0] = Fr::from(0u64);
    assert_eq!(go(&zero), Err(ProveError::WitnessOne));
    assert_eq!(go(&values[..5]), Err(ProveError::WitnessLength { expected: values.len(), got: 5 }));
    assert_eq!(go(&[]), Err(ProveError::WitnessLength { expected: values.len(), got: 0 }));
}

#[test]
fn commitments_do_not_depend_on_threads_and_blinding_hides_them() {
    let (circuit, values) = squarings(300, 5);
    let key = key(&circuit);
    let w = witness(&values);
    let on = |threads| CpuBackend::new(threads).unwrap().load(key.clone()).unwrap();
    let one = on(1).commit(&w, &StopToken::new(), &Quiet).unwrap();
    for threads in [2, 3, 7] {
        assert_eq!(on(threads).commit(&w, &StopToken::new(), &Quiet).unwrap(), one);
    }
    let verifier = Verifier::new(&key.header.vk);
    let loaded = on(2);
    let proofs: Vec<_> =
        (0..2).map(|_| prove(loaded.as_ref(), &verifier, &w, &StopToken::new(), &Quiet).unwrap().proof).collect();
    assert_ne!(proofs[0].a, proofs[1].a);
    assert_ne!(proofs[0].b, proofs[1].b);
    assert_ne!(proofs[0].c, proofs[1].c);
}

/// Commitments on every instruction set of this CPU equal those of the portable one.
fn same_on_every_set(name: &str, key: &Arc<ProvingKey>, w: &Witness) {
    let on = |set, threads| {
        let loaded = CpuBackend::with(threads, set).unwrap().load(key.clone()).unwrap();
        loaded.commit(w, &StopToken::new(), &Quiet).unwrap()
    };
    let portable = on(Instructions::Portable, 1);
    for set in Instructions::ALL {
        if !Instructions::available().contains(&set) {
            eprintln!("SKIPPED: this processor has no {}", set.as_str());
            continue;
        }
        for threads in [1, 2, 5] {
            assert!(on(set, threads) == portable, "{name} with {} on {threads} threads", set.as_str());
        }
    }
}

#[test]
fn every_instruction_set_gives_the_same_commitments() {
    for n in [1, 6, 29, 300, 2000] {
        let (circuit, values) = squarings(n, 5);
        same_on_every_set(&format!("{n} squarings"), &key(&circuit), &witness(&values));
    }
    let cases = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/cases");
    let Ok(folders) = std::fs::read_dir(&cases) else {
        eprintln!("SKIPPED on real circuits: {} is not there", cases.display());
        return;
    };
    for folder in folders.map(|f| f.unwrap().path()) {
        let read = |name: &str| std::fs::read(folder.join(name)).ok();
        if let (Some(zkey), Some(wtns)) = (read("circuit.zkey"), read("witness.wtns")) {
            let key = Arc::new(zkey::parse(zkey.into()).unwrap());
            same_on_every_set(&folder.display().to_string(), &key, &wtns::parse(&wtns).unwrap());
        }
    }
}

#[test]
fn a_changed_proof_does_not_verify() {
    let (circuit, values) = squarings(9, 3);
    let key = key(&circuit);
    let verifier = Verifier::new(&key.header.vk);
    let loaded = CpuBackend::new(1).unwrap().load(key).unwrap();
    let good = prove(loaded.as_ref(), &verifier, &witness(&values), &StopToken::new(), &Quiet).unwrap();
    let changes: [fn(&mut prover_worker::model::Proof); 8] = [
        |p| p.a = -p.a,
        |p| p.b = -p.b,
        |p| p.c = -p.c,
        |p| p.a = (p.a + G1Affine::generator()).into_affine(),
        |p| p.b = (p.b + G2Affine::generator()).into_affine(),
        |p| p.c = G1Affine::identity(),
        |p| p.a = G1Affine::identity(),
        |p| p.b = G2Affine::identity(),
    ];
    for (i, change) in changes.iter().enumerate() {
        let mut bad = good.proof.clone();
        change(&mut bad);
        assert!(!verifier.verify(&bad, &good.public), "change {i}");
    }
    // Off the curve, and on the twist but outside the group: refused before any pairing.
    let mut off = good.proof.clone();
    off.a.x += ark_ff::Fp::from(1u64);
    assert!(!verifier.verify(&off, &good.public));
    let outside = (1u64..)
        .find_map(|x| {
            let p = G2Affine::get_point_from_x_unchecked(x.into(), true)?;
            (!p.is_in_correct_subgroup_assuming_on_curve()).then_some(p)
        })
        .unwrap();
    let mut off = good.proof.clone();
    off.b = outside;
    assert!(!verifier.verify(&off, &good.public));
}
