//! Commitments through the child process equal those of the CPU backend.

use std::sync::Arc;

use prover_worker::backend::icicle::{IcicleBackend, Options, devices};
use prover_worker::backend::{Backend, DeviceKind, Quiet, selftest};
use prover_worker::groth16::{Verifier, prove};
use prover_worker::model::StopToken;

use super::{Case, Twin, circuits_of_others, commit, own_circuits, squarings};

/// Computes commitments twice in a row with one loaded key, and compares them with those of the CPU backend.
fn same_as_the_processor(backend: &dyn Backend, case: &Case) {
    let expected = case.expected();
    let loaded = backend.load(case.key.clone()).unwrap_or_else(|e| panic!("{}: {e}", case.name));
    for _ in 0..2 {
        assert!(commit(loaded.as_ref(), case) == expected, "{}", case.name);
    }
}

/// On devices with streams and so little free memory that they sum in pieces, and on the plain CPU device.
#[test]
fn the_circuits_of_the_project() {
    let twin = Twin::new();
    let cuda = twin.start();
    let (cpu, count) = IcicleBackend::start(&Options { kind: Some("CPU".into()), ..twin.options() }, 0).unwrap();
    assert_eq!((cuda.device().name.as_str(), cuda.device().memory), ("CUDA 0 by ICICLE 4.0 or later", 8 << 30));
    assert_eq!((cpu.device().name.as_str(), cpu.device().memory, count), ("CPU 0 by ICICLE 4.0 or later", 0, 1));
    assert_eq!((cuda.device().kind, cuda.device().label()), (DeviceKind::Icicle, "icicle:0".to_owned()));
    for case in own_circuits() {
        same_as_the_processor(&cuda, &case);
        same_as_the_processor(&cpu, &case);
    }
}

#[test]
fn the_circuits_of_others() {
    let twin = Twin::new();
    let backend = twin.start();
    for case in circuits_of_others() {
        same_as_the_processor(&backend, &case);
        let loaded = backend.load(case.key.clone()).unwrap();
        let verifier = Verifier::new(&case.key.header.vk);
        prove(loaded.as_ref(), &verifier, &case.witness, &StopToken::new(), &Quiet).unwrap();
    }
}

/// Domains that grow and shrink need new domains of transforms, and keys that were loaded before stay valid. The
/// largest sums in pieces.
#[test]
fn keys_of_any_size_side_by_side() {
    let twin = Twin::new();
    let backend = twin.start();
    let cases: Vec<_> = [1, 2, 60, 5000, 700].map(squarings).into();
    let loaded: Vec<_> = cases.iter().map(|case| backend.load(case.key.clone()).unwrap()).collect();
    for (case, loaded) in cases.iter().zip(&loaded).rev().chain(cases.iter().zip(&loaded)) {
        assert!(commit(loaded.as_ref(), case) == case.expected(), "{}", case.name);
    }
}

#[test]
fn every_device_of_the_type_is_found_and_passes_the_self_test() {
    let twin = Twin::new();
    let found: Vec<_> = devices(&twin.options()).unwrap().into_iter().map(Result::unwrap).collect();
    assert_eq!(found.iter().map(|d| d.device().label()).collect::<Vec<_>>(), ["icicle:0", "icicle:1"]);
    found.iter().for_each(|device| selftest::run(device.as_ref()).unwrap());
}

/// A worker runs two proofs on a device at once; the device gets them one by one.
#[test]
fn proofs_at_once_do_not_disturb_each_other() {
    let twin = Twin::new();
    let backend = twin.start();
    let cases: Vec<_> = [20, 300, 40].map(squarings).into();
    std::thread::scope(|scope| {
        for case in &cases {
            let loaded = backend.load(case.key.clone()).unwrap();
            scope.spawn(move || {
                let expected = case.expected();
                (0..3).for_each(|_| assert!(commit(loaded.as_ref(), case) == expected));
            });
        }
    });
}

#[test]
fn keys_that_do_not_hold_what_they_say_are_told_from_devices_that_fail() {
    let twin = Twin::new();
    let backend = twin.start();
    let case = squarings(9);
    let refused = |change: fn(&mut prover_worker::model::ProvingKey)| {
        let mut key = (*case.key).clone();
        change(&mut key);
        backend.load(Arc::new(key)).map(|_| ()).unwrap_err().to_string()
    };
    assert_eq!(refused(|k| k.sections.a.truncate(64)), "bytes of A's points: expected 704, got 64");
    assert_eq!(refused(|k| k.sections.b2.truncate(0)), "bytes of B's points in G2: expected 1408, got 0");
    assert!(refused(|k| k.header.domain_size = 15).starts_with("domain size"));
    assert!(refused(|k| k.header.n_public = 99).starts_with("wires of a key: expected at least 100, got 11"));
    assert!(
        refused(|k| k.sections.coefficients.truncate(43))
            .starts_with("bytes of matrix entries: expected a multiple of 44")
    );
    let rows = |k: &mut prover_worker::model::ProvingKey| {
        let mut entries = k.sections.coefficients.to_vec();
        entries[4..8].copy_from_slice(&u32::MAX.to_le_bytes());
        k.sections.coefficients = entries.into();
    };
    assert!(refused(rows).starts_with("row of a matrix entry"));
    let loaded = backend.load(case.key.clone()).unwrap();
    let short = prover_worker::model::Witness::from_canonical(case.witness.values()[1..].to_vec());
    let error = loaded.commit(&short, &StopToken::new(), &Quiet).unwrap_err();
    assert_eq!(error.to_string(), "witness values: expected 11, got 10");
    assert!(commit(loaded.as_ref(), &case) == case.expected());
}
