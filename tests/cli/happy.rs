//! What must work.

use crate::circuits::circuits;
use crate::harness::{fixture, range_check, run, run_masked, s, scratch, shell};

#[test]
fn from_inputs_to_a_proof_that_verifies_with_either_key_and_not_for_other_values() {
    let f = range_check();
    let dir = scratch(&[]);
    let args = ["prove", "--zkey", s(&f.zkey), "--wasm", s(&f.wasm), "--input", s(&f.input)];
    let ran = run(dir.path(), &[&args[..], &["--proof", "p.json", "--public", "u.json"]].concat()).ok();
    assert!(ran.stdout.contains("verified"), "{}", ran.stdout);
    for key in [["--vkey", s(&f.vkey)], ["--zkey", s(&f.zkey)]] {
        let ran = run(dir.path(), &["verify", key[0], key[1], "--public", "u.json", "--proof", "p.json"]).ok();
        assert_eq!(ran.stdout, "OK\n");
    }
    let public = std::fs::read_to_string(dir.path().join("u.json")).unwrap();
    let changed = public.replacen("50000000000", "50000000001", 1);
    assert_ne!(public, changed);
    std::fs::write(dir.path().join("changed.json"), changed).unwrap();
    let ran = run(dir.path(), &["verify", "--vkey", s(&f.vkey), "--public", "changed.json", "--proof", "p.json"]);
    assert_eq!((ran.code, ran.stdout.as_str(), ran.stderr.as_str()), (Some(1), "INVALID\n", ""));
}

#[test]
fn rapidsnarks_argument_order_and_a_proof_that_differs_each_time() {
    let f = range_check();
    let dir = scratch(&[]);
    for (p, u) in [("p1.json", "u1.json"), ("p2.json", "u2.json")] {
        run(dir.path(), &["prove", s(&f.zkey), s(&f.wtns), p, u]).ok();
        run(dir.path(), &["verify", "--vkey", s(&f.vkey), "--public", u, "--proof", p]).ok();
    }
    let read = |n: &str| std::fs::read(dir.path().join(n)).unwrap();
    assert_eq!(read("u1.json"), read("u2.json"));
    assert_ne!(read("p1.json"), read("p2.json"), "the blinding is drawn anew");
}

#[test]
fn every_own_circuit_has_the_witness_snarkjs_gives_it_and_proves() {
    for name in ["multiplier", "range_check", "mimc_preimage", "bus_transfer", "multiplier_v1", "unused_input"] {
        let f = fixture(name);
        let dir = scratch(&[]);
        run(dir.path(), &["witness", "--wasm", s(&f.wasm), "--input", s(&f.input), "--out", "x.wtns"]).ok();
        let ours = std::fs::read(dir.path().join("x.wtns")).unwrap();
        assert!(ours == std::fs::read(&f.wtns).unwrap(), "{name}: the witness differs");
        run(dir.path(), &["prove", s(&f.zkey), "x.wtns", "p.json", "u.json"]).ok();
        run(dir.path(), &["verify", "--zkey", s(&f.zkey), "--public", "u.json", "--proof", "p.json"]).ok();
    }
}

/// A cache folder that cannot be used, because others may write to it or it does not exist, costs only a compilation.
#[test]
fn a_witness_needs_no_folder_to_keep_programs_in() {
    use std::os::unix::fs::PermissionsExt;
    let f = range_check();
    for unfit in [Some(0o777), None] {
        let dir = scratch(&[]);
        let data = dir.path().join("data");
        match unfit {
            Some(mode) => {
                std::fs::create_dir_all(data.join("modules")).unwrap();
                std::fs::set_permissions(data.join("modules"), PermissionsExt::from_mode(mode)).unwrap();
            }
            None => std::fs::write(&data, "no folder").unwrap(),
        }
        // Under a umask that would make new files writable for the group.
        let args = ["witness", "--wasm", s(&f.wasm), "--input", s(&f.input), "--out", "x.wtns"];
        let ran = run_masked("002", dir.path(), &args).ok();
        assert!(!ran.stderr.contains("os error"), "{}", ran.stderr);
        assert!(ran.stderr.contains("modules") && ran.stderr.contains("PROVER_DATA_DIR"), "{}", ran.stderr);
        assert!(std::fs::read(dir.path().join("x.wtns")).unwrap() == std::fs::read(&f.wtns).unwrap());
        run(dir.path(), &["inspect", s(&f.wasm)]).ok();
    }
}

#[test]
fn a_witness_file_is_private() {
    use std::os::unix::fs::PermissionsExt;
    let f = range_check();
    let dir = scratch(&[]);
    run(dir.path(), &["witness", "--wasm", s(&f.wasm), "--input", s(&f.input), "--out", "x.wtns"]).ok();
    let mode = std::fs::metadata(dir.path().join("x.wtns")).unwrap().permissions().mode();
    assert_eq!(mode & 0o077, 0, "mode {mode:o}");
}

#[test]
fn other_files_have_the_mode_that_the_umask_leaves() {
    use std::os::unix::fs::PermissionsExt;
    let f = range_check();
    for (umask, expected) in [("022", 0o644), ("027", 0o640), ("077", 0o600)] {
        let dir = scratch(&[]);
        run_masked(umask, dir.path(), &["prove", s(&f.zkey), s(&f.wtns), "p", "u"]).ok();
        run_masked(umask, dir.path(), &["setup", s(&f.r1cs), "k", "--vkey", "v", "--insecure-dev-only"]).ok();
        for file in ["p", "u", "k", "v"] {
            let mode = std::fs::metadata(dir.path().join(file)).unwrap().permissions().mode() & 0o777;
            assert_eq!(mode, expected, "{file} under umask {umask}: {mode:o}");
        }
    }
}

#[test]
fn inspect_names_every_kind_of_file_and_checks_a_sound_one() {
    let f = range_check();
    let dir = scratch(&[]);
    run(dir.path(), &["prove", s(&f.zkey), s(&f.wtns), "p.json", "u.json"]).ok();
    let (p, u) = (dir.path().join("p.json"), dir.path().join("u.json"));
    for (file, kind) in [
        (&f.zkey, "proving key"),
        (&f.vkey, "verification key"),
        (&f.wtns, "witness on"),
        (&f.r1cs, "R1CS"),
        (&f.wasm, "witness program"),
        (&p, "proof"),
        (&u, "public values"),
    ] {
        let ran = run(dir.path(), &["--json", "inspect", "--check", s(file)]).ok();
        let report: serde_json::Value = serde_json::from_str(&ran.stdout).unwrap();
        assert!(report["kind"].as_str().unwrap().contains(kind), "{report}");
        assert_eq!(report["checked"], true);
        assert_eq!(report["sha256"].as_str().unwrap().len(), 64);
    }
    let ran = run(dir.path(), &["inspect", s(&f.r1cs)]).ok();
    assert!(ran.stdout.contains("constraints: 424"), "{}", ran.stdout);
}

#[test]
fn export_gives_the_verification_key_and_calldata() {
    let f = range_check();
    let dir = scratch(&[]);
    run(dir.path(), &["export", "vkey", s(&f.zkey), "vk.json"]).ok();
    assert_eq!(std::fs::read(dir.path().join("vk.json")).unwrap(), std::fs::read(&f.vkey).unwrap());
    run(dir.path(), &["prove", s(&f.zkey), s(&f.wtns), "p.json", "u.json"]).ok();
    let ran = run(dir.path(), &["export", "calldata", "--proof", "p.json", "--public", "u.json"]).ok();
    let list: serde_json::Value = serde_json::from_str(&format!("[{}]", ran.stdout.trim())).unwrap();
    assert_eq!(list.as_array().unwrap().len(), 4);
    assert_eq!(list[3].as_array().unwrap().len(), 2, "two public values");
}

#[test]
fn real_circuits_prove_and_verify_with_both_of_their_keys() {
    let cases = circuits().join("../../shared/cases");
    let Ok(entries) = std::fs::read_dir(&cases) else {
        eprintln!("SKIPPED: no real circuits beside this clone");
        return;
    };
    let mut seen = 0;
    for case in entries.filter_map(Result::ok).map(|e| e.path()).filter(|p| p.is_dir()) {
        seen += 1;
        let at = |n: &str| case.join(n);
        let dir = scratch(&[]);
        if at("circuit.wasm").is_file() {
            let (wasm, input) = (at("circuit.wasm"), at("input.json"));
            run(dir.path(), &["witness", "--wasm", s(&wasm), "--input", s(&input), "--out", "x.wtns"]).ok();
            let same = std::fs::read(dir.path().join("x.wtns")).unwrap() == std::fs::read(at("witness.wtns")).unwrap();
            assert!(same, "{}: the witness differs", case.display());
        }
        let zkey = at("circuit.zkey");
        run(dir.path(), &["inspect", "--check", s(&zkey)]).ok();
        run(dir.path(), &["prove", s(&zkey), s(&at("witness.wtns")), "p.json", "u.json"]).ok();
        let json =
            |p: &std::path::Path| -> serde_json::Value { serde_json::from_slice(&std::fs::read(p).unwrap()).unwrap() };
        assert_eq!(json(&dir.path().join("u.json")), json(&at("public.json")));
        for key in ["verification_key.json", "vkey_shipped.json"].map(at).into_iter().filter(|p| p.is_file()) {
            let ran = run(dir.path(), &["verify", "--vkey", s(&key), "--public", "u.json", "--proof", "p.json"]).ok();
            assert_eq!(ran.stdout, "OK\n");
            // And the proof of snarkjs.
            let (u, p) = (at("public.json"), at("proof.json"));
            run(dir.path(), &["verify", "--vkey", s(&key), "--public", s(&u), "--proof", s(&p)]).ok();
        }
    }
    assert_eq!(seen, 6, "six cases");
}

/// A client that waits for a paused job is told of the pause, not asked to start a worker.
#[test]
fn waiting_says_what_pause_a_job_is_under() {
    let f = range_check();
    let dir = scratch(&[]);
    run(dir.path(), &["circuits", "add", "c", "--zkey", s(&f.zkey), "--wasm", s(&f.wasm)]).ok();
    run(dir.path(), &["queue", "pause"]).ok();
    let line = format!(
        "$P submit c --input {} --wait 2>said & \
         for i in $(seq 600); do grep -q 'queue is paused' said && break; sleep 0.1; done; \
         $P cancel $(sed -n 's/^job //p' said); wait $!; cat said >&2",
        s(&f.input)
    );
    let (_, said) = shell(dir.path(), &line);
    assert!(said.contains("still queued; its queue is paused") && said.contains("is cancelled"), "{said}");
}

/// Replacing the key of a circuit is reported: new jobs get proofs for the new key.
#[test]
fn registering_says_what_the_name_had_before() {
    let f = range_check();
    let dir = scratch(&[]);
    let add =
        |more: &[&str]| run(dir.path(), &[&["circuits", "add", "c", "--zkey", s(&f.zkey)], more].concat()).ok().stdout;
    let first = add(&[]);
    assert!(first.starts_with("registered\n"), "{first}");
    let again = add(&[]);
    assert!(again.starts_with("registered as before\n"), "{again}");
    let other = add(&["--wasm", s(&f.wasm)]);
    assert!(other.starts_with("registered in place of zkey ") && other.contains(", wasm none\n"), "{other}");
}
