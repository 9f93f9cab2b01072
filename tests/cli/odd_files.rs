//! Names that are not regular files, and results that would be written where they do harm.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;

use crate::circuits::circuits;
use crate::harness::{range_check, run, run_bounded, s, scratch, shell};

fn pipe(dir: &Path) {
    assert!(Command::new("mkfifo").arg(dir.join("pipe")).status().unwrap().success());
}

#[test]
fn a_pipe_that_nobody_writes_to_keeps_nobody_waiting() {
    let f = range_check();
    let dir = scratch(&[]);
    pipe(dir.path());
    let (zkey, wtns, input) = (s(&f.zkey), s(&f.wtns), s(&f.input));
    for args in [
        &["prove", "pipe", wtns, "p", "u"][..],
        &["prove", zkey, "pipe", "p", "u"],
        &["witness", "--wasm", "pipe", "--input", input, "--out", "w"],
        &["verify", "--zkey", "pipe", "--proof", "p", "--public", "u"],
        &["setup", "pipe", "k.zkey", "--insecure-dev-only"],
        &["inspect", "pipe"],
        &["circuits", "add", "c", "--zkey", "pipe"],
        &["circuits", "add", "c", "--zkey", zkey, "--wasm", "pipe"],
    ] {
        run(dir.path(), args).failed_with("not a regular file");
    }
}

#[test]
fn a_huge_file_is_not_copied_in_before_it_is_looked_at() {
    let f = range_check();
    let dir = scratch(&[]);
    // Has no blocks on the disk; reading all of it would take minutes.
    fs::File::create(dir.path().join("huge")).unwrap().set_len(1 << 38).unwrap();
    run_bounded(dir.path(), &["circuits", "add", "c", "--zkey", "huge"]).failed_with("expected \"zkey\"");
    run_bounded(dir.path(), &["circuits", "add", "c", "--zkey", s(&f.zkey), "--wasm", "huge"])
        .failed_with("at most 268435456 bytes");
    for args in [
        &["inspect", "huge"][..],
        &["verify", "--vkey", "huge", "--proof", "p", "--public", "u"],
        &["witness", "--wasm", s(&f.wasm), "--input", "huge", "--out", "w"],
    ] {
        run_bounded(dir.path(), args).failed_with("at most");
    }
    for folder in ["zkeys", "wasms"] {
        assert_eq!(fs::read_dir(dir.path().join("data").join(folder)).unwrap().count(), 0, "{folder}");
    }
}

#[test]
fn a_document_of_many_small_values_is_inspected_within_bounds() {
    let ones = format!("[{}1]", "1,".repeat(12 << 20));
    let object = format!("{{\"x\": {ones}}}");
    let dir = scratch(&[("list.json", ones.as_bytes()), ("object.json", object.as_bytes())]);
    run_bounded(dir.path(), &["inspect", "list.json"]).failed_with("at most");
    run_bounded(dir.path(), &["inspect", "object.json"]).failed_with("not a proof");
}

#[test]
fn results_do_not_go_over_what_is_read_or_over_each_other() {
    let f = range_check();
    let zkey = fs::read(&f.zkey).unwrap();
    let dir = scratch(&[("k.zkey", &zkey), ("w.wtns", &fs::read(&f.wtns).unwrap())]);
    symlink("k.zkey", dir.path().join("link")).unwrap();
    fs::create_dir(dir.path().join("sub")).unwrap();
    let (wasm, input, r1cs) = (s(&f.wasm), s(&f.input), s(&f.r1cs));
    fs::copy(&f.input, dir.path().join("i.json")).unwrap();
    for args in [
        &["prove", "k.zkey", "w.wtns", "k.zkey", "u.json"][..],
        &["prove", "k.zkey", "w.wtns", "p.json", "sub/../w.wtns"],
        &["prove", "k.zkey", "w.wtns", "link", "u.json"],
        &["prove", "k.zkey", "w.wtns", "p.json", "./p.json"],
        &["prove", "--zkey", "k.zkey", "--wasm", wasm, "--input", "i.json", "--proof", "i.json", "--public", "u.json"],
        &["witness", "--wasm", wasm, "--input", "i.json", "--out", "i.json"],
        &["setup", r1cs, "n.zkey", "--vkey", "n.zkey", "--insecure-dev-only"],
        &["export", "vkey", "k.zkey", "k.zkey"],
    ] {
        let ran = run(dir.path(), args);
        assert_eq!(ran.code, Some(2), "{args:?}: {:?}", ran.stderr);
        assert!(ran.stderr.starts_with("error: "), "{}", ran.stderr);
    }
    assert_eq!(fs::read(dir.path().join("k.zkey")).unwrap(), zkey);
    assert_eq!(fs::read(dir.path().join("i.json")).unwrap(), fs::read(input).unwrap());
    for name in ["p.json", "u.json", "n.zkey"] {
        assert!(!dir.path().join(name).exists(), "{name}");
    }
}

#[test]
fn a_link_stays_and_its_file_gets_the_result() {
    let f = range_check();
    let dir = scratch(&[("real.json", b"old")]);
    symlink("real.json", dir.path().join("link.json")).unwrap();
    run(dir.path(), &["prove", s(&f.zkey), s(&f.wtns), "link.json", "u.json"]).ok();
    assert!(fs::symlink_metadata(dir.path().join("link.json")).unwrap().is_symlink());
    run(dir.path(), &["verify", "--zkey", s(&f.zkey), "--proof", "real.json", "--public", "u.json"]).ok();
}

#[test]
fn a_link_to_a_file_that_is_not_there_makes_it() {
    let f = range_check();
    let dir = scratch(&[]);
    fs::create_dir(dir.path().join("there")).unwrap();
    symlink("there/middle.json", dir.path().join("link.json")).unwrap();
    symlink("new.json", dir.path().join("there/middle.json")).unwrap();
    run(dir.path(), &["prove", s(&f.zkey), s(&f.wtns), "link.json", "u.json"]).ok();
    for link in ["link.json", "there/middle.json"] {
        assert!(fs::symlink_metadata(dir.path().join(link)).unwrap().is_symlink(), "{link}");
    }
    run(dir.path(), &["verify", "--zkey", s(&f.zkey), "--proof", "there/new.json", "--public", "u.json"]).ok();
    symlink("loop.json", dir.path().join("loop.json")).unwrap();
    run(dir.path(), &["prove", s(&f.zkey), s(&f.wtns), "loop.json", "u.json"]).failed_with("links lead nowhere");
}

#[test]
fn a_name_that_is_no_text_is_shown_as_well_as_can_be() {
    let f = range_check();
    let dir = scratch(&[]);
    for line in [
        format!("\"$P\" --json export vkey {} \"$(printf 'v\\xff.json')\" > out", s(&f.zkey)),
        format!("\"$P\" --json prove {} {} \"$(printf 'p\\xff.json')\" u.json > out", s(&f.zkey), s(&f.wtns)),
    ] {
        let (code, stderr) = shell(dir.path(), &line);
        assert_eq!(code, Some(0), "{line}: {stderr}");
        let told: serde_json::Value = serde_json::from_slice(&fs::read(dir.path().join("out")).unwrap()).unwrap();
        assert!(told.to_string().contains('\u{fffd}'), "{told}");
    }
}

#[test]
fn a_setup_leaves_both_of_its_files_or_none() {
    let dir = scratch(&[]);
    let setup = |vkey| {
        let r1cs = circuits().join("multiplier.r1cs");
        run(dir.path(), &["setup", s(&r1cs), "k.zkey", "--vkey", vkey, "--insecure-dev-only"])
    };
    setup("v.json").ok();
    let before = fs::read(dir.path().join("k.zkey")).unwrap();
    setup("nowhere/v.json").failed_with("no such file");
    assert!(
        fs::read(dir.path().join("k.zkey")).unwrap() == before,
        "the key is another one than the verification key's"
    );
    assert_eq!(fs::read_dir(dir.path()).unwrap().filter(|e| !e.as_ref().unwrap().path().is_dir()).count(), 2);
}

#[test]
fn standard_output_by_name_gets_the_result_and_nothing_else() {
    let f = range_check();
    let dir = scratch(&[]);
    let (zkey, wtns) = (s(&f.zkey), s(&f.wtns));
    for prove in [
        format!("\"$P\" prove {zkey} {wtns} /dev/stdout u.json > proof.json"),
        format!("\"$P\" prove {zkey} {wtns} - u.json > proof.json"),
        format!("\"$P\" prove --zkey {zkey} --witness {wtns} --proof - --public u.json > proof.json"),
    ] {
        let (code, stderr) = shell(dir.path(), &prove);
        assert_eq!(code, Some(0), "{stderr}");
        assert!(stderr.contains("proof verified"), "{stderr}");
        assert!(fs::symlink_metadata("/dev/stdout").unwrap().is_symlink(), "the machine's link stays");
        run(dir.path(), &["verify", "--zkey", zkey, "--proof", "proof.json", "--public", "u.json"]).ok();
        fs::remove_file(dir.path().join("proof.json")).unwrap();
    }
    for command in [
        format!("export vkey {zkey} -"),
        format!("export vkey {zkey} /dev/stdout"),
        format!("setup {} k.zkey --vkey - --insecure-dev-only", s(&f.r1cs)),
        format!("witness --wasm {} --input {} --out -", s(&f.wasm), s(&f.input)),
    ] {
        let (code, stderr) = shell(dir.path(), &format!("\"$P\" {command} > out"));
        assert_eq!(code, Some(0), "{command}: {stderr}");
        assert!(!dir.path().join("-").exists(), "{command}");
        run(dir.path(), &["inspect", "--check", "out"]).ok();
    }
}

#[test]
fn a_reader_that_goes_away_is_fine_and_a_full_disk_is_not() {
    let f = range_check();
    let dir = scratch(&[]);
    let zkey = s(&f.zkey);
    for command in [format!("export vkey {zkey}"), format!("inspect {zkey}")] {
        // The pipe is closed before the program starts.
        let (code, stderr) =
            shell(dir.path(), &format!("exec 3> >(exec true); wait $!; \"$P\" {command} >&3; exit $?"));
        assert_eq!((code, stderr.as_str()), (Some(0), ""), "{command}");
        let (code, stderr) = shell(dir.path(), &format!("\"$P\" {command} > /dev/full"));
        assert_eq!(code, Some(1), "{command}: {stderr}");
        assert!(stderr.starts_with("error: standard output cannot be written"), "{stderr}");
    }
    let (code, _) = shell(dir.path(), "\"$P\" inspect nowhere 2> /dev/full");
    assert_eq!(code, Some(1), "no panic where the error cannot be told");
}
