//! SIGTERM.

use crate::harness::Site;
use crate::wait::until;

/// A job whose proof has not begun is handed back at once: no failed attempt, and the next worker takes it.
#[test]
fn a_job_whose_proof_has_not_begun_is_handed_back_at_once() {
    let site = Site::new();
    let id = site.submit(3, 4);
    let mut worker = site.serve(&["--fault-at", "after_witness:sleep"], &[("PROVER_GRACE_SECS", "86400")]);
    worker.wait_log("fault point reached", 1);
    worker.terminate();
    let status = worker.wait();
    assert!(status.success(), "{status}; log:\n{}", worker.log());
    let job = site.job(&id);
    assert_eq!(job["state"], "queued", "{job}");
    assert_eq!(job["attempt"], 1);
    assert_eq!(job["tries"], serde_json::json!({"transient": 0, "device": 0, "lost": 0}));
    assert_eq!(site.inputs_held(), 1);

    let _next = site.serve(&[], &[]);
    let job = site.wait_for(&id, "done");
    assert_eq!(job["attempt"], 2);
    assert_eq!(job["tries"]["lost"], 0, "a hand-back is no lost worker");
    site.assert_done_once(&id, 12);
}

/// In the middle of a hundred jobs, each is done, or queued with no failure charged to it; none is in between.
#[test]
fn a_busy_worker_finishes_or_hands_back_what_it_has_and_claims_no_more() {
    let site = Site::new();
    let ids: Vec<_> = (1..=100).map(|i| site.submit(i, 3)).collect();
    let mut worker = site.serve(&[], &[]);
    worker.wait_log("job done", 3);
    worker.terminate();
    let status = worker.wait();
    assert!(status.success(), "{status}; log:\n{}", worker.log());
    let claimed = worker.count("job claimed");
    let mut done = 0;
    for id in &ids {
        let job = site.job(id);
        match job["state"].as_str().unwrap() {
            "done" => done += 1,
            "queued" => assert_eq!(job["tries"], serde_json::json!({"transient": 0, "device": 0, "lost": 0}), "{job}"),
            other => panic!("{other}: {job}"),
        }
    }
    assert_eq!(done + worker.count("job handed back"), claimed, "each claimed job was finished or handed back");
    let _next = site.serve(&[], &[]);
    until("the rest", || {
        site.json(&["jobs", "--state", "done", "--limit", "1000"]).as_array().filter(|d| d.len() == 100).map(drop)
    });
}

/// `timeout` and some supervisors signal a child and then its group: both count as one request, and no job is lost.
#[test]
fn signals_that_come_together_are_one() {
    let site = Site::new();
    let id = site.submit(3, 4);
    let mut worker = site.serve(&["--fault-at", "after_witness:sleep"], &[("PROVER_GRACE_SECS", "86400")]);
    worker.wait_log("fault point reached", 1);
    worker.terminate();
    worker.signal(rustix::process::Signal::INT);
    worker.terminate();
    let status = worker.wait();
    assert!(status.success(), "{status}; log:\n{}", worker.log());
    let job = site.job(&id);
    assert_eq!(job["state"], "queued", "{job}");
    assert_eq!(job["tries"], serde_json::json!({"transient": 0, "device": 0, "lost": 0}));
}

/// A later signal does not wait for the grace period: no job is in progress when the worker has ended.
#[test]
fn a_second_signal_hands_back_at_once() {
    let site = Site::new();
    let id = site.submit(3, 4);
    let mut worker = site.serve(&["--fault-at", "after_prove:sleep"], &[("PROVER_GRACE_SECS", "86400")]);
    worker.wait_log("fault point reached", 1);
    worker.terminate();
    worker.wait_log("draining", 1);
    // Until one signal has come late enough.
    until("the second signal", || {
        worker.terminate();
        (worker.count("second signal") > 0).then_some(())
    });
    assert_eq!(worker.wait().code(), Some(1), "log:\n{}", worker.log());
    // The proof existed: it may be recorded, or made again. No lease is left to lapse.
    let job = site.job(&id);
    assert_ne!(job["state"], "running", "{job}");
    assert_eq!(job["tries"], serde_json::json!({"transient": 0, "device": 0, "lost": 0}));
    let _next = site.serve(&[], &[]);
    site.wait_for(&id, "done");
    site.assert_done_once(&id, 12);
}
