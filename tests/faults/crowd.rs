//! Many submitters, many jobs, several workers.

use std::collections::HashSet;
use std::fs;

use serde_json::Value;

use crate::harness::Site;
use crate::wait::until;

/// Eight processes at a time submit 200 jobs while two workers serve: none is lost, none is done twice.
#[test]
fn two_hundred_jobs_from_eight_submitters_end_once_each() {
    let site = Site::new();
    let first = site.serve(&[], &[]);
    let second = site.serve(&[], &[]);
    let ids: Vec<(String, u64)> = std::thread::scope(|s| {
        let submitters: Vec<_> = (0..8u32)
            .map(|n| {
                let site = &site;
                s.spawn(move || {
                    (1..=25u32).map(|i| (site.submit(n + 1, i), u64::from((n + 1) * i))).collect::<Vec<_>>()
                })
            })
            .collect();
        submitters.into_iter().flat_map(|t| t.join().unwrap()).collect()
    });
    assert_eq!(ids.iter().map(|(id, _)| id).collect::<HashSet<_>>().len(), 200);
    let jobs = until("200 jobs to be done", || {
        let done = site.json(&["jobs", "--state", "done", "--limit", "1000"]);
        done.as_array().filter(|d| d.len() == 200).cloned()
    });
    for job in &jobs {
        assert_eq!(job["attempt"], 1, "claimed twice: {job}");
    }
    // The log is written after the store.
    let told = || first.count("job done") + second.count("job done");
    until("200 lines on jobs done", || (told() >= 200).then_some(()));
    assert_eq!(told(), 200);
    assert!(first.count("lease lost") + second.count("lease lost") == 0);
    assert_eq!(site.inputs_held(), 0);
    for (id, product) in ids.iter().step_by(10) {
        site.assert_done_once(id, *product);
    }
    until("200 folders of proof files", || (site.proof_folders() == 200).then_some(()));
}

/// The same key and body from eight processes at once make one job; another body under the key is refused.
#[test]
fn an_idempotency_key_gives_one_job() {
    let site = Site::new();
    let file = |name: &str, text: &str| {
        let path = site.data().with_file_name(name);
        fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let (same, other) = (file("same.json", r#"{"a": 2, "b": 5}"#), file("other.json", r#"{"a": 2, "b": 6}"#));
    let args = |f: &str| ["submit", "multiplier", "--input", f, "--idempotency-key", "order 7"].map(str::to_owned);
    let ids: HashSet<Value> = std::thread::scope(|s| {
        let submit = || {
            let args = args(&same);
            site.json(&args.each_ref().map(String::as_str))["id"].clone()
        };
        let all: Vec<_> = (0..8).map(|_| s.spawn(submit)).collect();
        all.into_iter().map(|t| t.join().unwrap()).collect()
    });
    assert_eq!(ids.len(), 1, "{ids:?}");
    let refused = site.command(&args(&other).each_ref().map(String::as_str)).output().unwrap();
    assert_eq!(refused.status.code(), Some(1));
    let said = String::from_utf8(refused.stderr).unwrap();
    assert!(said.contains("order 7") && said.lines().count() == 1, "{said}");
}

/// A job that the circuit refuses fails at once, is not retried, and its error contains no value.
#[test]
fn bad_input_fails_once_and_tells_no_secret() {
    let site = Site::new();
    let server = site.serve(&[], &[]);
    let file = site.data().with_file_name("bad.json");
    fs::write(&file, r#"{"a": "918273645", "c": "546372819"}"#).unwrap();
    let job = site.json(&["submit", "multiplier", "--input", file.to_str().unwrap()]);
    let failed = site.wait_for(job["id"].as_str().unwrap(), "failed");
    assert_eq!(failed["error"]["class"], "bad_input", "{failed}");
    assert_eq!(failed["attempt"], 1);
    assert_eq!(site.inputs_held(), 0);
    let everything = format!("{failed}{}", server.log());
    assert!(!everything.contains("918273645") && !everything.contains("546372819"), "{everything}");
}
