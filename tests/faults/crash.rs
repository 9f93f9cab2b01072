//! Workers that die by SIGKILL at each transition of a job.

use std::os::unix::process::ExitStatusExt;

use prover_worker::worker::retry::LOST_WORKERS;

use crate::harness::Site;
use crate::wait::until;

const SHORT_LEASE: [(&str, &str); 2] = [("PROVER_LEASE_SECS", "1"), ("PROVER_KEEP_FAILED_INPUT_SECS", "0")];

/// The worker is killed at `point` and restarted: the job ends once, after `attempts` claims, `lost` of which lapsed.
fn killed_at(point: &str, attempts: u64, lost: u64) {
    let site = Site::new();
    let id = site.submit(6, 7);
    let mut first = site.serve(&["--fault-at", &format!("{point}:abort")], &SHORT_LEASE);
    let status = first.wait();
    assert_eq!(status.signal(), Some(9), "{status}; log:\n{}", first.log());
    let held = site.inputs_held();
    assert_eq!(held, u64::from(lost > 0), "an input is held exactly until its job's result is");

    let second = site.serve(&[], &SHORT_LEASE);
    let job = site.wait_for(&id, "done");
    assert_eq!(job["attempt"], attempts, "{job}");
    assert_eq!(job["tries"]["lost"], lost, "{job}");
    assert_eq!((&job["tries"]["transient"], &job["tries"]["device"]), (&0.into(), &0.into()));
    site.assert_done_once(&id, 42);
    assert_eq!(site.inputs_held(), 0);
    // Files and log are written after the store.
    until("the proof's files", || (site.proof_folders() == 1).then_some(()));
    let told = usize::from(lost > 0);
    second.wait_log("job done", told);
    assert_eq!(second.count("job done"), told, "{}", second.log());
}

#[test]
fn after_claim() {
    killed_at("after_claim", 2, 1);
}

#[test]
fn after_witness() {
    killed_at("after_witness", 2, 1);
}

#[test]
fn after_prove() {
    killed_at("after_prove", 2, 1);
}

#[test]
fn before_commit() {
    killed_at("before_commit", 2, 1);
}

/// The result is in the store, so nothing is proved again; the missing files are put back.
#[test]
fn after_commit() {
    killed_at("after_commit", 1, 0);
}

/// A job that kills every worker is set aside, with its history, and the next worker lives.
#[test]
fn a_poison_job_is_put_aside() {
    let site = Site::new();
    let poison = site.submit(2, 3);
    let fault = ["--fault-at", "after_claim:abort"];
    for death in 1..=LOST_WORKERS {
        let mut worker = site.serve(&fault, &SHORT_LEASE);
        assert_eq!(worker.wait().signal(), Some(9), "death {death}; log:\n{}", worker.log());
    }
    // The fault is still armed; only a worker that does not start the job survives.
    let survivor = site.serve(&fault, &SHORT_LEASE);
    let job = site.wait_for(&poison, "failed");
    assert_eq!(job["error"]["class"], "lost_worker");
    let message = job["error"]["message"].as_str().unwrap();
    assert!(message.contains(&format!("{LOST_WORKERS} workers died")), "{message}");
    until("its input to go", || (site.inputs_held() == 0).then_some(()));
    survivor.terminate();
}
