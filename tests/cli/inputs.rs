//! Inputs that are not files: standard input and pipes.

use std::fs;

use crate::harness::{range_check, run, s, scratch, shell};

/// The ways in which an input may arrive: a name, and a line of shell in which `RUN` stands for the program. `pipe` is
/// a named pipe, which the program may open before or after its writer.
const WAYS: [(&str, &str); 6] = [
    ("-", "cat input.json | RUN"),
    ("-", "RUN < input.json"),
    // What was read from it before is not read again.
    ("-", "{ read -r line; RUN; } < headed.json"),
    ("/dev/stdin", "cat input.json | RUN"),
    ("<(cat input.json)", "RUN"),
    // Detached from this test's streams, and with a time limit in case the program does not open it.
    ("pipe", "timeout 60 sh -c 'cat input.json > pipe' > /dev/null 2>&1 & RUN"),
];

/// A folder with an input of `range_check`, and the same input after a line that is not part of it.
fn folder() -> tempfile::TempDir {
    let input = fs::read(&range_check().input).unwrap();
    let dir = scratch(&[("input.json", &input), ("headed.json", &[b"# a heading\n", &input[..]].concat())]);
    assert!(std::process::Command::new("mkfifo").arg(dir.path().join("pipe")).status().unwrap().success());
    dir
}

#[test]
fn an_input_may_come_by_standard_input_or_a_pipe() {
    let f = range_check();
    let dir = folder();
    for (name, way) in WAYS {
        let witness = format!("\"$P\" witness --wasm {} --input {name} --out w.wtns", s(&f.wasm));
        let (code, stderr) = shell(dir.path(), &way.replace("RUN", &witness));
        assert_eq!((code, stderr.as_str()), (Some(0), ""), "{name}, {way}");
        assert!(fs::read(dir.path().join("w.wtns")).unwrap() == fs::read(&f.wtns).unwrap(), "{name}, {way}");
        fs::remove_file(dir.path().join("w.wtns")).unwrap();
    }
    let (zkey, wasm) = (s(&f.zkey), s(&f.wasm));
    let prove = format!("\"$P\" prove --zkey {zkey} --wasm {wasm} --input - --proof p.json --public u.json");
    let (code, stderr) = shell(dir.path(), &format!("cat input.json | {prove}"));
    assert_eq!(code, Some(0), "{stderr}");
    run(dir.path(), &["verify", "--zkey", zkey, "--proof", "p.json", "--public", "u.json"]).ok();
}

#[test]
fn a_jobs_input_may_come_so_too() {
    let f = range_check();
    let dir = folder();
    run(dir.path(), &["circuits", "add", "c", "--zkey", s(&f.zkey), "--wasm", s(&f.wasm)]).ok();
    // The same key with another input would be refused.
    let submit = |input: &str| format!("\"$P\" submit c --idempotency-key k --input {input}");
    let first = run(dir.path(), &["submit", "c", "--idempotency-key", "k", "--input", "input.json"]).ok();
    for (name, way) in WAYS {
        let line = way.replace("RUN", &format!("{} > id", submit(name)));
        let (code, stderr) = shell(dir.path(), &line);
        assert_eq!((code, stderr.as_str()), (Some(0), ""), "{name}, {way}");
        assert_eq!(fs::read_to_string(dir.path().join("id")).unwrap(), first.stdout, "{name}, {way}");
    }
    let id = first.stdout.trim();
    run(dir.path(), &["cancel", id]).ok();
    let (code, stderr) = shell(dir.path(), &format!("cat input.json | \"$P\" jobs requeue {id} --input -"));
    assert_eq!(code, Some(0), "{stderr}");
}

#[test]
fn what_verify_reads_may_come_so_too() {
    let f = range_check();
    let dir = scratch(&[]);
    assert!(std::process::Command::new("mkfifo").arg(dir.path().join("pipe")).status().unwrap().success());
    run(dir.path(), &["prove", s(&f.zkey), s(&f.wtns), "p.json", "u.json"]).ok();
    let (vkey, zkey) = (fs::read(&f.vkey).unwrap(), s(&f.zkey));
    fs::write(dir.path().join("v.json"), &vkey).unwrap();
    for (option, file) in [("--vkey", "v.json"), ("--proof", "p.json"), ("--public", "u.json")] {
        let content = fs::read(dir.path().join(file)).unwrap();
        fs::write(dir.path().join("input.json"), &content).unwrap();
        fs::write(dir.path().join("headed.json"), [b"# a heading\n", &content[..]].concat()).unwrap();
        for (name, way) in WAYS {
            let whole = "\"$P\" verify --vkey v.json --proof p.json --public u.json > out";
            let line = way.replace("RUN", &whole.replace(&format!("{option} {file}"), &format!("{option} {name}")));
            let (code, stderr) = shell(dir.path(), &line);
            assert_eq!((code, stderr.as_str()), (Some(0), ""), "{line}");
            assert_eq!(fs::read_to_string(dir.path().join("out")).unwrap(), "OK\n", "{line}");
        }
    }
    // All of them at once, each in its own way.
    let all = "cat p.json | \"$P\" verify --vkey <(cat v.json) --proof - --public <(cat u.json) > out";
    assert_eq!(shell(dir.path(), all), (Some(0), String::new()));
    let calldata = "cat p.json | \"$P\" export calldata --proof - --public u.json";
    assert_eq!(shell(dir.path(), calldata), (Some(0), String::new()));

    for (line, code, says) in [
        ("verify --vkey v.json --proof - --public - < p.json", 2, "at most one input from standard input"),
        ("verify --vkey - --proof p.json --public /dev/stdin < v.json", 2, "at most one input from standard input"),
        ("export calldata --proof - --public - < p.json", 2, "at most one input from standard input"),
        ("verify --vkey v.json --proof p.json --public - < /dev/zero", 1, "/dev/stdin: the document is too long"),
        ("verify --vkey v.json --proof p.json --public . ", 1, "error: .: it is a folder\n"),
        ("verify --vkey v.json --proof p.json --public nowhere", 1, "error: nowhere: no such file\n"),
    ] {
        let (got, stderr) = shell(dir.path(), &format!("\"$P\" {line}"));
        assert_eq!(got, Some(code), "{line}: {stderr}");
        assert!(stderr.contains(says) && stderr.lines().count() == 1, "{line}: expected {says:?} in {stderr:?}");
    }
    // A proving key is mapped, so it must be a file.
    let piped = format!("cat {zkey} | \"$P\" verify --zkey /dev/stdin --proof p.json --public u.json");
    let (code, stderr) = shell(dir.path(), &piped);
    assert!(code == Some(1) && stderr.contains("not a regular file"), "{stderr}");
}

#[test]
fn an_input_without_an_end_or_that_is_none_is_refused() {
    let f = range_check();
    let dir = folder();
    run(dir.path(), &["circuits", "add", "c", "--zkey", s(&f.zkey), "--wasm", s(&f.wasm)]).ok();
    let witness = |input: &str| format!("\"$P\" witness --wasm {} --input {input} --out w.wtns", s(&f.wasm));
    let submit = |input: &str| format!("PROVER_MAX_INPUT_BYTES=1000 \"$P\" submit c --input {input}");
    for (line, says) in [
        (witness("- < /dev/zero"), "/dev/stdin: the input is too long: expected at most 268435456 bytes, got more"),
        (witness("/dev/zero"), "/dev/zero: the input is too long: expected at most 268435456 bytes, got more"),
        (submit("- < /dev/zero"), "expected at most 1000 bytes (PROVER_MAX_INPUT_BYTES), got more"),
        (submit("nowhere"), "error: nowhere: no such file\n"),
        (witness("nowhere"), "error: nowhere: no such file\n"),
        (submit("."), "error: .: it is a folder\n"),
        (witness("."), "error: .: it is a folder\n"),
        (witness("- < /dev/null"), "/dev/stdin: invalid input"),
        // A dash is not a file of that name, and a file that is read by redirection is not overwritten either.
        (witness("- < w.wtns"), "w.wtns: is read, and would be written over"),
    ] {
        fs::write(dir.path().join("w.wtns"), b"old").unwrap();
        let (code, stderr) = shell(dir.path(), &line);
        assert_eq!(code, Some(if says.contains("written over") { 2 } else { 1 }), "{line}: {stderr}");
        assert!(stderr.contains(says) && stderr.lines().count() == 1, "{line}: expected {says:?} in {stderr:?}");
        assert_eq!(fs::read(dir.path().join("w.wtns")).unwrap(), b"old", "{line}");
    }
}
