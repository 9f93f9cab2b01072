//! Full disks, and limits on file sizes.

use std::fs;

use crate::harness::{range_check, s, scratch, shell};

/// Returns the finding of `doctor` on the data folder, where the shell line has it write `report.json`.
fn data_folder(line: &str) -> (String, String) {
    found_of("data folder", line)
}

/// Returns the finding of `doctor` on `what`.
fn found_of(what: &str, line: &str) -> (String, String) {
    let dir = scratch(&[]);
    fs::create_dir(dir.path().join("data")).unwrap();
    let (code, stderr) = shell(dir.path(), line);
    assert_eq!(code, Some(1), "{stderr}");
    let report: serde_json::Value = serde_json::from_slice(&fs::read(dir.path().join("report.json")).unwrap()).unwrap();
    let checks = report["checks"].as_array().unwrap();
    let check = checks.iter().find(|c| c["what"] == what).unwrap();
    (check["verdict"].as_str().unwrap().to_owned(), check["found"].as_str().unwrap().to_owned())
}

#[test]
fn the_doctor_sees_that_the_disk_is_full() {
    let mount = "mount -t tmpfs -o size=64k,mode=700 tmpfs data";
    let spaces = "unshare --map-root-user --mount sh -ec";
    // Not every machine lets its users mount, not even in a namespace of their own.
    let place = scratch(&[]);
    fs::create_dir(place.path().join("data")).unwrap();
    if shell(place.path(), &format!("{spaces} '{mount}'")).0 != Some(0) {
        eprintln!("SKIPPED: no small disk can be mounted here");
        return;
    }
    let fill = "head -c 64k /dev/zero > data/junk; : > data/an-empty-file-goes-there";
    let (verdict, found) = data_folder(&format!("{spaces} '{mount}; {fill}; exec \"$P\" --json doctor' > report.json"));
    assert_eq!(verdict, "failed", "{found}");
    assert!(found.contains("no space is left on the device") && found.contains("PROVER_DATA_DIR"), "{found}");
    // Where the artifacts are elsewhere, they are on another disk.
    let mount = "mkdir shared; mount -t tmpfs -o size=64k,mode=700 tmpfs shared";
    let elsewhere = "export PROVER_ARTIFACTS_URL=\"file://$PWD/shared\"; head -c 48k /dev/zero > shared/junk";
    let (verdict, found) =
        found_of("artifacts", &format!("{spaces} '{mount}; {elsewhere}; exec \"$P\" --json doctor' > report.json"));
    assert_eq!(verdict, "failed", "{found}");
    assert!(found.contains("no space is left on the device"), "{found}");
}

#[test]
fn a_bound_on_the_size_of_files_is_an_error_like_any_other() {
    let f = range_check();
    let dir = scratch(&[("old.json", b"old")]);
    let (zkey, wtns) = (s(&f.zkey), s(&f.wtns));
    for (command, file) in [
        (format!("\"$P\" setup {} k.zkey --insecure-dev-only", s(&f.r1cs)), "k.zkey"),
        (format!("\"$P\" export vkey {zkey} old.json"), "old.json"),
        (format!("\"$P\" prove {zkey} {wtns} old.json u.json"), "old.json"),
        (format!("\"$G\" {zkey} {wtns} old.json u.json"), "old.json"),
    ] {
        let (code, stderr) = shell(dir.path(), &format!("ulimit -f 0; exec {command}"));
        let says = format!("error: {file}: the file would be larger than is allowed (ulimit -f)\n");
        assert_eq!((code, stderr), (Some(1), says), "{command}");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "{command}: nothing is left behind");
        assert_eq!(fs::read(dir.path().join("old.json")).unwrap(), b"old", "{command}");
    }
    // Here the file is that of the module cache, and then that of the folder in its place.
    let witness = format!("\"$P\" witness --wasm {} --input {} --out w.wtns", s(&f.wasm), s(&f.input));
    let (code, stderr) = shell(dir.path(), &format!("ulimit -f 0; exec {witness}"));
    assert_eq!(code, Some(1), "{stderr}");
    let lines: Vec<&str> = stderr.lines().collect();
    assert!(lines.len() == 2 && lines[1].starts_with("error: "), "{stderr}");
    assert!(lines.iter().all(|line| line.contains("(ulimit -f)")), "{stderr}");
    let (code, stderr) = shell(dir.path(), &format!("ulimit -f 0; exec \"$P\" export vkey {zkey} > out"));
    assert_eq!(code, Some(1), "{stderr}");
    assert!(stderr.starts_with("error: standard output cannot be written"), "{stderr}");
    let (verdict, found) =
        data_folder("(ulimit -f 4; exec \"$P\" --json doctor) | cat > report.json; exit ${PIPESTATUS[0]}");
    assert_eq!(verdict, "failed", "{found}");
    assert!(found.contains("(ulimit -f)"), "{found}");
}
