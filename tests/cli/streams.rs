//! Streams that nobody reads any more: no panic, and no lost work.

use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};

use crate::harness::{range_check, run, s, scratch};

/// Starts the program with the reading end of one of its streams closed.
fn start(home: &Path, args: &[&str], close_stdout: bool) -> Child {
    let mut child = Command::new(env!("CARGO_BIN_EXE_prover-worker"))
        .args(args)
        .current_dir(home)
        .env("PROVER_DATA_DIR", home.join("data"))
        .envs([("METRICS_PORT", "0"), ("PROVER_API_ADDR", "off")])
        .env_remove("DATABASE_URL")
        .env_remove("REDIS_URL")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    if close_stdout {
        drop(child.stdout.take());
    } else {
        drop(child.stderr.take());
    }
    child
}

fn end(child: Child) -> (ExitStatus, String) {
    let out = child.wait_with_output().unwrap();
    (out.status, String::from_utf8_lossy(&out.stderr).into_owned())
}

#[test]
fn a_closed_standard_output_is_no_error() {
    let f = range_check();
    let dir = scratch(&[]);
    for args in [&["export", "vkey", s(&f.zkey)][..], &["inspect", s(&f.r1cs)]] {
        let (status, stderr) = end(start(dir.path(), args, true));
        assert!(status.success(), "{args:?}: {status}, {stderr}");
    }
}

#[test]
fn a_closed_standard_error_changes_no_exit_code() {
    let f = range_check();
    let dir = scratch(&[]);
    assert_eq!(end(start(dir.path(), &["inspect", "none"], false)).0.code(), Some(1));
    let setup = ["setup", s(&f.r1cs), "k.zkey", "--insecure-dev-only"];
    assert_eq!(end(start(dir.path(), &setup, false)).0.code(), Some(0));
}

#[test]
fn a_worker_whose_log_is_closed_works_on() {
    let f = range_check();
    let dir = scratch(&[]);
    run(dir.path(), &["circuits", "add", "c", "--zkey", s(&f.zkey), "--wasm", s(&f.wasm)]).ok();
    let worker = start(dir.path(), &["serve"], false);
    let job = run(dir.path(), &["submit", "c", "--input", s(&f.input), "--wait"]);
    let pid = i32::try_from(worker.id()).unwrap();
    // If the worker has ended already, the exit status below shows it.
    let _ = rustix::process::kill_process(rustix::process::Pid::from_raw(pid).unwrap(), rustix::process::Signal::TERM);
    let (status, _) = end(worker);
    job.ok();
    assert!(status.success(), "{status}");
}
