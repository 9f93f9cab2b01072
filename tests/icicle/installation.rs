//! A real installation of ICICLE, if `ICICLE_LIB_DIR` names one: on its CPU device, or on that of
//! `PROVER_ICICLE_DEVICE`.

use std::path::PathBuf;
use std::time::Duration;

use prover_worker::backend::icicle::lab::answers_to_points_in_montgomery_form;
use prover_worker::backend::icicle::{IcicleBackend, Limits, Options, Task};
use prover_worker::backend::{Backend, selftest};

use super::{PROGRAM, Twin, circuits_of_others, commit, own_circuits, squarings};

/// Returns where the installation is, and the type of its device.
fn installation() -> Option<(PathBuf, String)> {
    let Some(libraries) = std::env::var_os("ICICLE_LIB_DIR") else {
        eprintln!("SKIPPED on a real installation of ICICLE: ICICLE_LIB_DIR is not set");
        return None;
    };
    let kind = std::env::var("PROVER_ICICLE_DEVICE").unwrap_or_else(|_| "CPU".to_owned());
    Some((libraries.into(), kind))
}

#[test]
fn an_installation_of_icicle_commits_as_the_processor_does() {
    let Some((libraries, kind)) = installation() else { return };
    let options = Options {
        program: PROGRAM.into(),
        backends: libraries.join("backend"),
        libraries,
        kind: Some(kind),
        withheld: Vec::new(),
        limits: Limits { start: Duration::from_secs(300), ..Limits::default() },
    };
    let (backend, _) = IcicleBackend::start(&options, 0).unwrap();
    selftest::run(&backend).unwrap();
    let mut cases: Vec<_> = [1, 2, 5, 60, 5000, 700].map(squarings).into();
    cases.extend(own_circuits());
    cases.extend(circuits_of_others());
    for case in cases {
        let loaded = backend.load(case.key.clone()).unwrap();
        for _ in 0..2 {
            assert!(commit(loaded.as_ref(), &case) == case.expected(), "{}", case.name);
        }
        eprintln!("{} is the same on {}", case.name, backend.device().name);
    }
}

fn forced(task: &Task) -> String {
    answers_to_points_in_montgomery_form(task).expect_err("points in Montgomery's form must be noticed")
}

/// ICICLE's CPU device accepts points in Montgomery form, reports success, and returns another sum.
#[test]
fn the_self_test_notices_points_in_montgomery_form() {
    let twin = Twin::new();
    let task = |libraries: PathBuf, kind| Task { backends: libraries.join("backend"), libraries, kind, ordinal: 0 };
    // One library at a time: a process has one ICICLE device.
    let (task, of) = match installation() {
        Some((libraries, kind)) if kind == "CPU" => (task(libraries, Some(kind)), "the installation"),
        _ => (task(twin.libraries().into(), Some("CPU".to_owned())), "the twin"),
    };
    let why = forced(&task);
    assert!(why.starts_with("its self-test ") && why.contains("sum in G1"), "of {of}: {why}");
    eprintln!("points in Montgomery's form, of {of}: {why}");
}
