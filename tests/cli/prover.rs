//! `groth16-prover`, a replacement for rapidsnark's prover.

use std::path::Path;

use crate::harness::{fixture, prover, range_check, run, s, scratch};

#[test]
fn proofs_verify_and_public_values_are_those_of_the_whole_program() {
    for name in ["multiplier", "range_check", "mimc_preimage"] {
        let f = fixture(name);
        let dir = scratch(&[]);
        for cpu in ["auto", "portable"] {
            let ran = prover(dir.path(), &[("PROVER_CPU", cpu)], &[s(&f.zkey), s(&f.wtns), "p.json", "u.json"]).ok();
            assert_eq!(
                (ran.stdout.as_str(), ran.stderr.as_str()),
                ("", ""),
                "it says nothing unless something is wrong"
            );
            run(dir.path(), &["verify", "--zkey", s(&f.zkey), "--public", "u.json", "--proof", "p.json"]).ok();
        }
        run(dir.path(), &["prove", s(&f.zkey), s(&f.wtns), "q.json", "v.json"]).ok();
        let read = |n: &str| std::fs::read(dir.path().join(n)).unwrap();
        assert_eq!(read("u.json"), read("v.json"), "{name}");
        assert_ne!(read("p.json"), read("q.json"), "the blinding is drawn anew");
    }
}

/// Runs it and expects one sentence, and that nothing is written.
fn refused(dir: &Path, env: &[(&str, &str)], args: &[&str], code: i32, words: &[&str]) {
    let before = std::fs::read_dir(dir).unwrap().count();
    let ran = prover(dir, env, args);
    assert_eq!((ran.code, ran.stdout.as_str()), (Some(code), ""), "{args:?}: {}", ran.stderr);
    assert!(ran.stderr.starts_with("error: ") && ran.stderr.lines().count() == 1, "{}", ran.stderr);
    for word in words {
        assert!(ran.stderr.contains(word), "expected {word:?} in {}", ran.stderr);
    }
    assert_eq!(std::fs::read_dir(dir).unwrap().count(), before, "{args:?}: nothing is written");
}

#[test]
fn what_is_wrong_is_one_sentence_and_an_exit_code() {
    let f = range_check();
    let dir = scratch(&[]);
    let (zkey, wtns) = (s(&f.zkey), s(&f.wtns));
    let all = [zkey, wtns, "p.json", "u.json"];
    for args in [&all[..0], &all[..3], &[zkey, wtns, "p.json", "u.json", "more"]] {
        refused(dir.path(), &[], args, 2, &[&format!("got {} arguments", args.len()), "--help"]);
    }
    refused(dir.path(), &[], &[zkey, wtns, "p.json", "p.json"], 2, &["p.json", "two results"]);
    refused(dir.path(), &[], &[zkey, wtns, zkey, "u.json"], 2, &["written over"]);
    refused(dir.path(), &[("PROVER_CPU", "sse2")], &all, 2, &["PROVER_CPU", "avx512ifma", "sse2"]);
    refused(dir.path(), &[("PROVER_THREADS", "0")], &all, 2, &["PROVER_THREADS", "1 to 1024"]);
    refused(dir.path(), &[], &["none.zkey", wtns, "p.json", "u.json"], 1, &["none.zkey", "no such file"]);
    refused(dir.path(), &[], &[wtns, zkey, "p.json", "u.json"], 1, &[wtns]);
    refused(dir.path(), &[], &[zkey, wtns, "none/p.json", "u.json"], 1, &["none/p.json"]);
}

/// Both programs: either both results are written or neither.
#[test]
fn public_values_that_cannot_be_written_leave_the_old_proof_as_it_was() {
    let f = range_check();
    let dir = scratch(&[("p.json", b"old")]);
    std::fs::create_dir(dir.path().join("folder")).unwrap();
    for public in ["folder", "none/u.json", "/dev/full"] {
        let all = [s(&f.zkey), s(&f.wtns), "p.json", public];
        refused(dir.path(), &[], &all, 1, &[public]);
        run(dir.path(), &[&["prove"], &all[..]].concat()).failed_with(public);
        assert_eq!(std::fs::read(dir.path().join("p.json")).unwrap(), b"old", "{public}");
    }
}

#[test]
fn a_file_name_with_control_characters_is_shown_without_them() {
    let dir = scratch(&[]);
    refused(dir.path(), &[], &["z\r\u{1b}[31m", "w", "p.json", "u.json"], 1, &["z??[31m: no such file"]);
}

#[test]
fn a_witness_that_is_not_the_circuits_is_refused_and_no_proof_is_written() {
    let (f, other) = (range_check(), fixture("multiplier"));
    let dir = scratch(&[]);
    let all = [s(&f.zkey), s(&other.wtns), "p.json", "u.json"];
    refused(dir.path(), &[], &all, 1, &["the witness has 4 values, the key is for"]);
    // Of the right size, with one private value changed: the last 32 bytes.
    let mut bytes = std::fs::read(&f.wtns).unwrap();
    let at = bytes.len() - 32;
    bytes[at] ^= 1;
    std::fs::write(dir.path().join("wrong.wtns"), bytes).unwrap();
    let all = [s(&f.zkey), "wrong.wtns", "p.json", "u.json"];
    refused(dir.path(), &[], &all, 1, &["does not satisfy"]);
}

#[test]
fn it_says_what_it_is() {
    let dir = scratch(&[]);
    for (flag, words) in [("--help", "PROVER_THREADS"), ("-h", "<ZKEY>"), ("--version", env!("CARGO_PKG_VERSION"))] {
        let ran = prover(dir.path(), &[], &[flag]).ok();
        assert!(ran.stdout.contains(words) && ran.stderr.is_empty(), "{flag}: {}", ran.stdout);
    }
}
