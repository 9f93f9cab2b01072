//! Leases: a live worker keeps its own; a stale one changes nothing.

use rustix::process::Signal;

use crate::harness::Site;
use crate::wait::until;

/// A worker that was stopped past its lease wakes up with a finished proof: another has finished the job meanwhile, and
/// neither its result nor its files are overwritten.
#[test]
fn a_stale_worker_changes_nothing() {
    let site = Site::new();
    let id = site.submit(5, 9);
    let lease = [("PROVER_LEASE_SECS", "1")];
    let mut stale = site.serve(&["--fault-at", "before_commit:freeze"], &lease);
    stale.wait_log("fault point reached", 1);
    let _fresh = site.serve(&[], &lease);
    let done = site.wait_for(&id, "done");
    assert_eq!(done["attempt"], 2);
    site.assert_done_once(&id, 45);

    stale.signal(Signal::CONT);
    stale.wait_log("lease lost", 1);
    assert_eq!(site.job(&id), done, "the stale worker changed the job");
    site.assert_done_once(&id, 45);
    assert_eq!(site.proof_folders(), 1);
    stale.terminate();
    assert!(stale.wait().success());
}

/// A job that takes longer than its lease keeps it, while another worker looks for lapsed ones all the time.
#[test]
fn a_live_worker_keeps_its_lease() {
    let site = Site::new();
    let id = site.submit(5, 5);
    // Renewed every second; a machine that is paused for longer than the lease makes this test fail.
    let lease = [("PROVER_LEASE_SECS", "10")];
    let slow = site.serve(&["--fault-at", "after_witness:sleep"], &lease);
    slow.wait_log("fault point reached", 1);
    let other = site.serve(&[], &lease);
    other.wait_started();
    let first_term = site.job(&id)["lease_expires_at"].as_i64().unwrap();
    until("the lease to be renewed when its first term was over", || {
        let job = site.job(&id);
        assert_eq!((&job["state"], &job["attempt"]), (&"running".into(), &1.into()), "{job}");
        (job["lease_expires_at"].as_i64().unwrap() >= first_term + 10_000).then_some(())
    });
    assert_eq!(other.count("job claimed"), 0);
}
