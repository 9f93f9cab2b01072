//! Cancellation.

use crate::harness::Site;

/// A running job that is cancelled ends, and its slot takes the next job.
#[test]
fn a_cancel_frees_the_slot() {
    let site = Site::new();
    let (first, second) = (site.submit(2, 2), site.submit(2, 3));
    // One slot, and every job stays there until it is told to stop.
    let worker = site.serve(&["--fault-at", "after_witness:sleep"], &[("WORKER_CONCURRENCY", "1")]);
    worker.wait_log("fault point reached", 1);
    assert_eq!(site.job(&first)["state"], "running");
    assert_eq!(site.job(&second)["state"], "queued");
    site.json(&["cancel", &first]);
    site.wait_for(&first, "cancelled");
    worker.wait_log("fault point reached", 2);
    assert_eq!(site.job(&second)["state"], "running");
    assert_eq!(site.inputs_held(), 1, "the cancelled job's input is gone");
    assert_eq!(site.proof_folders(), 0);
}

/// A queued job is cancelled at once and never runs; an ended one cannot be.
#[test]
fn a_queued_job_never_runs_once_cancelled() {
    let site = Site::new();
    let (gone, stays) = (site.submit(2, 2), site.submit(2, 3));
    assert_eq!(site.json(&["cancel", &gone])["state"], "cancelled");
    let _worker = site.serve(&[], &[]);
    site.wait_for(&stays, "done");
    let job = site.job(&gone);
    assert_eq!((&job["state"], &job["attempt"]), (&"cancelled".into(), &0.into()));
    for (id, state) in [(&gone, "cancelled"), (&stays, "done")] {
        let late = site.command(&["cancel", id]).output().unwrap();
        assert_eq!(late.status.code(), Some(1));
        let said = String::from_utf8(late.stderr).unwrap();
        assert!(said.contains(&format!("is already {state}")), "{said}");
    }
}
