//! Files and inputs that are not what they claim to be: a clear sentence, exit code 1, within bounds of time and
//! memory, no panic, and never an invalid proof with exit code 0. The cases are those on which other provers hang,
//! crash or succeed wrongly.

use crate::circom2;
use crate::circuits::circuit_file;
use crate::harness::{Container, fixture, range_check, run_bounded as run, s, scratch};

/// Proves with a damaged key.
#[track_caller]
fn bad_zkey(says: &str, change: impl FnOnce(&mut Container)) {
    let f = range_check();
    let mut c = Container::read(&f.zkey);
    change(&mut c);
    bad_zkey_bytes(says, &c.bytes());
}

#[track_caller]
fn bad_zkey_bytes(says: &str, bytes: &[u8]) {
    let dir = scratch(&[("k.zkey", bytes)]);
    run(dir.path(), &["prove", "k.zkey", s(&range_check().wtns), "p.json", "u.json"]).failed_with(says);
    assert!(!dir.path().join("p.json").exists(), "no proof is written");
}

/// Proves with a damaged witness.
#[track_caller]
fn bad_wtns(says: &str, bytes: &[u8]) {
    let dir = scratch(&[("w.wtns", bytes)]);
    run(dir.path(), &["prove", s(&range_check().zkey), "w.wtns", "p.json", "u.json"]).failed_with(says);
    assert!(!dir.path().join("p.json").exists(), "no proof is written");
}

fn put32(b: &mut [u8], at: usize, v: u32) {
    b[at..at + 4].copy_from_slice(&v.to_le_bytes());
}

// Offsets in the zkey's section 2.
const N_VARS: usize = 72;
const N_PUBLIC: usize = 76;
const DOMAIN: usize = 80;
const ALPHA: usize = 84;

#[test]
fn zkey_lying_lengths_and_counts() {
    let f = range_check();
    let good = std::fs::read(&f.zkey).unwrap();
    let mut b = good.clone();
    put32(&mut b, 8, u32::MAX);
    bad_zkey_bytes("section", &b);
    for lie in [u64::MAX, u64::MAX - 11, 1 << 40, 1 << 63] {
        let mut b = good.clone();
        b[16..24].copy_from_slice(&lie.to_le_bytes());
        bad_zkey_bytes("section", &b);
    }
    bad_zkey("domain", |c| put32(c.section(2), DOMAIN, 1 << 31));
    bad_zkey("domain", |c| put32(c.section(2), DOMAIN, 1000));
    bad_zkey("domain", |c| put32(c.section(2), DOMAIN, 0));
    bad_zkey("", |c| put32(c.section(2), N_VARS, u32::MAX));
    bad_zkey("", |c| put32(c.section(2), N_VARS, 0));
    bad_zkey("", |c| put32(c.section(2), N_PUBLIC, u32::MAX));
    bad_zkey("section 4", |c| put32(c.section(4), 0, u32::MAX));
}

#[test]
fn zkey_numbers_that_are_not_reduced() {
    // Coordinates of single points, which the proof's arithmetic relies on, and a value of a matrix entry.
    for id in [5, 6, 7, 8, 9] {
        for at in [0, 32] {
            bad_zkey("not below q", |c| {
                let data = c.section(id);
                let last = data.len() - 128;
                data[last + at..last + at + 32].fill(0xff);
            });
        }
    }
    bad_zkey("not below r", |c| c.section(4)[16..48].fill(0xff));
}

#[test]
fn zkey_missing_short_and_double_sections() {
    for id in 1..=9 {
        bad_zkey(&format!("section {id}"), |c| c.sections.retain(|s| s.0 != id));
        bad_zkey("section", |c| {
            let data = c.section(id);
            data.truncate(data.len().saturating_sub(1));
        });
    }
    bad_zkey("twice", |c| {
        let copy = c.sections[1].clone();
        c.sections.push(copy);
    });
    bad_zkey("section 9", |c| {
        let data = c.section(9);
        data.truncate(data.len() - 64);
    });
}

#[test]
fn zkey_of_another_kind_version_protocol_or_curve() {
    bad_zkey("magic", |c| c.magic = *b"wtns");
    bad_zkey("version", |c| c.version = 2);
    bad_zkey("PLONK", |c| put32(c.section(1), 0, 2));
    bad_zkey("fflonk", |c| put32(c.section(1), 0, 10));
    bad_zkey("protocol", |c| put32(c.section(1), 0, 77));
    bad_zkey("prime", |c| c.section(2)[4] ^= 1);
    // The base field elements of BLS12-381 have 48 bytes.
    bad_zkey("48", |c| put32(c.section(2), 0, 48));
    bad_zkey_bytes("", b"");
    bad_zkey_bytes("", b"zk");
    bad_zkey_bytes("magic", b"{\"protocol\": \"groth16\"}");
}

#[test]
fn zkey_with_bad_points_and_entries() {
    bad_zkey("", |c| c.section(2)[ALPHA] ^= 1);
    bad_zkey("", |c| c.section(3)[5] ^= 1);
    // Points that proving does not check one by one: the resulting proof does not verify.
    for id in [5, 6, 7, 8, 9] {
        bad_zkey("", |c| {
            let data = c.section(id);
            let n = data.len();
            // Damage every point, so that the damage shows even if some meet a zero scalar.
            for at in (0..n).step_by(64) {
                data[at] ^= 1;
            }
        });
    }
    bad_zkey("wire", |c| put32(c.section(4), 4 + 8, u32::MAX));
    bad_zkey("wire", |c| put32(c.section(4), 4 + 8, 425));
    bad_zkey("row", |c| put32(c.section(4), 4 + 4, 1 << 30));
    bad_zkey("matrix", |c| put32(c.section(4), 4, 2));
    bad_zkey("", |c| c.section(4)[16..48].fill(0xff));
}

#[test]
fn zkey_check_finds_what_proving_does_not_look_at() {
    let f = range_check();
    for (id, says) in [(5, "section 5"), (6, "section 6"), (7, "section 7"), (8, "section 8"), (9, "section 9")] {
        let mut c = Container::read(&f.zkey);
        let data = c.section(id);
        let at = (0..data.len()).step_by(64).find(|at| data[*at..at + 64].iter().any(|b| *b != 0)).unwrap();
        data[at] ^= 1;
        let dir = scratch(&[("k.zkey", &c.bytes())]);
        run(dir.path(), &["inspect", "--check", "k.zkey"]).failed_with(says);
        run(dir.path(), &["inspect", "k.zkey"]).ok();
    }
}

#[test]
fn truncated_anywhere() {
    // The formats' own tests try every byte; here the program sees a few of each.
    let f = range_check();
    for (file, verb) in [(&f.zkey, "zkey"), (&f.wtns, "wtns"), (&f.r1cs, "r1cs"), (&f.vkey, "vkey")] {
        let good = std::fs::read(file).unwrap();
        for part in [0, 3, 4, 11, 12, 13, 23, 24, good.len() / 3, good.len() / 2, good.len() - 2] {
            let dir = scratch(&[("f", &good[..part])]);
            let ran = run(dir.path(), &["inspect", "--check", "f"]);
            assert_eq!(ran.code, Some(1), "{verb} cut to {part}: {:?}", ran.stdout);
            ran.failed_with("");
        }
    }
}

#[test]
fn wtns_of_every_wrong_kind() {
    let f = range_check();
    let good = Container::read(&f.wtns);
    let changed = |change: &dyn Fn(&mut Container)| {
        let mut c = good.clone();
        change(&mut c);
        c.bytes()
    };
    bad_wtns("magic", &changed(&|c| c.magic = *b"zkey"));
    bad_wtns("version", &changed(&|c| c.version = 1));
    bad_wtns("", &changed(&|c| c.section(1)[4] ^= 1));
    bad_wtns("", &changed(&|c| put32(c.section(1), 36, u32::MAX)));
    bad_wtns("", &changed(&|c| put32(c.section(1), 0, 48)));
    bad_wtns(
        "",
        &changed(&|c| {
            let d = c.section(2);
            d.truncate(d.len() - 32);
        }),
    );
    bad_wtns("", &changed(&|c| c.section(2)[0] = 2));
    bad_wtns("", &changed(&|c| c.section(2)[64..96].fill(0xff)));
    // One value changed: only the verifier can tell.
    bad_wtns("does not verify", &changed(&|c| c.section(2)[64] ^= 1));
    // From another circuit.
    let other = circuit_file("mimc_preimage.wtns");
    bad_wtns("different circuits", &other);
    // Of the right length, but not a witness.
    let sevens = changed(&|c| {
        for value in c.section(2).chunks_mut(32).skip(1) {
            value.fill(0);
            value[0] = 7;
        }
    });
    bad_wtns("does not verify", &sevens);
}

#[test]
fn a_key_of_another_circuit_with_as_many_wires() {
    // The same circuit set up twice: every size matches, but no proof verifies with the other's key.
    let (f, g) = (fixture("multiplier"), fixture("multiplier"));
    let dir = scratch(&[]);
    run(dir.path(), &["prove", s(&f.zkey), s(&f.wtns), "p.json", "u.json"]).ok();
    let ran = run(dir.path(), &["verify", "--vkey", s(&g.vkey), "--public", "u.json", "--proof", "p.json"]);
    assert_eq!((ran.code, ran.stdout.as_str()), (Some(1), "INVALID\n"));
}

/// Computes a witness from a bad input.
#[track_caller]
fn bad_input(says: &str, json: &str) {
    let f = range_check();
    let dir = scratch(&[("i.json", json.as_bytes())]);
    run(dir.path(), &["witness", "--wasm", s(&f.wasm), "--input", "i.json", "--out", "x.wtns"]).failed_with(says);
    assert!(!dir.path().join("x.wtns").exists(), "no witness is written");
}

#[test]
fn inputs_of_every_wrong_kind() {
    let amounts = "[[1,2,3,4],[5,6,7,8],[9,10,11,12]]";
    bad_input("", "");
    bad_input("", "[1,2]");
    bad_input("", "7");
    bad_input("", "{\"ceiling\": 5");
    bad_input("only 1 out of 13", "{\"ceiling\": 5}");
    bad_input("other", &format!("{{\"ceiling\": 500, \"amount\": {amounts}, \"other\": 1}}"));
    bad_input("amount", "{\"ceiling\": 500, \"amount\": [1,2,3]}");
    bad_input("amount", "{\"ceiling\": 500, \"amount\": [1,2,3,4,5,6,7,8,9,10,11,12,13]}");
    bad_input("ceiling", &format!("{{\"ceiling\": [1,2], \"amount\": {amounts}}}"));
    for value in ["true", "\"\"", "\"abc\"", "\"0x\"", "\"12z\"", "null", "1.5", "1e3", "\" \"", "{}"] {
        bad_input("ceiling", &format!("{{\"ceiling\": {value}, \"amount\": {amounts}}}"));
    }
    bad_input("ceiling", &format!("{{\"ceiling\": 1, \"ceiling\": 2, \"amount\": {amounts}}}"));
    // Violates a constraint: circom's own assert, with the template's name.
    bad_input("RangeCheck", &format!("{{\"ceiling\": 500, \"amount\": {}}}", amounts.replace("12", "4294967296")));
    bad_input("refuses", &format!("{{\"ceiling\": 77, \"amount\": {amounts}}}"));
}

#[test]
fn inputs_too_deep_or_huge() {
    let deep = format!("{{\"ceiling\": {}1{}, \"amount\": 1}}", "[".repeat(100_000), "]".repeat(100_000));
    bad_input("", &deep);
    let long = format!("{{\"ceiling\": {}}}", "9".repeat(5_000_000));
    bad_input("ceiling", &long);
    let many = format!("{{\"ceiling\": 5, \"amount\": [{}1]}}", "1,".repeat(10_000_000));
    bad_input("more than", &many);
    let names: String = (0..200_000).map(|i| format!("\"n{i}\": 1,")).collect();
    bad_input("", &format!("{{{names}\"ceiling\": 5}}"));
}

/// Computes a witness with a bad program.
#[track_caller]
fn bad_wasm(says: &str, bytes: &[u8]) {
    let f = range_check();
    let dir = scratch(&[("w.wasm", bytes)]);
    run(dir.path(), &["witness", "--wasm", "w.wasm", "--input", s(&f.input), "--out", "x.wtns"]).failed_with(says);
}

#[test]
fn programs_that_are_none() {
    bad_wasm("", b"");
    bad_wasm("", b"\0asm");
    bad_wasm("", b"\0asm\x01\0\0\0");
    let f = range_check();
    let good = std::fs::read(&f.wasm).unwrap();
    bad_wasm("", &good[..good.len() / 2]);
    bad_wasm("", &std::fs::read(&f.zkey).unwrap());
    let mut garbled = good.clone();
    for (i, b) in garbled.iter_mut().enumerate().skip(8) {
        *b = b.wrapping_mul(31).wrapping_add(i as u8);
    }
    bad_wasm("", &garbled);
    // A program of another circuit: its inputs have other names.
    bad_wasm("", &circuit_file("multiplier.wasm"));
}

/// A module with the functions of circom 2's, one of which has another body.
fn program(function: &str, body: &str, memory: u32) -> Vec<u8> {
    let prime = circom2::prime();
    let mut text = format!(
        "(module (import \"runtime\" \"exceptionHandler\" (func (param i32)))
         (memory (export \"memory\") {memory}) (data (i32.const 32) \"{prime}\")\n"
    );
    for (name, usual) in circom2::FUNCTIONS {
        let body = if name == function { body } else { usual };
        text.push_str(&format!("(func (export \"{name}\") {body})\n"));
    }
    wat::parse_str(text + ")").unwrap()
}

#[test]
fn programs_that_loop_trap_recurse_or_take_memory() {
    let go = |wasm: &[u8]| {
        let dir = scratch(&[("w.wasm", wasm), ("i.json", b"{\"a\": 7}")]);
        run(dir.path(), &["witness", "--wasm", "w.wasm", "--input", "i.json", "--out", "x.wtns"])
    };
    go(&program("", "", 1)).ok();
    go(&program("init", "(param i32) (loop (br 0))", 1)).failed_with("took longer than 2 s");
    go(&program("setInputSignal", "(param i32 i32 i32) (loop (br 0))", 1)).failed_with("took longer than 2 s");
    go(&program("getVersion", "(result i32) (loop (br 0)) i32.const 2", 1)).failed_with("longer");
    go(&program("init", "(param i32) unreachable", 1)).failed_with("unreachable");
    go(&program("init", "(param i32) (call 5 (local.get 0))", 1)).failed_with("");
    let grow = "(param i32) (loop (i32.store (i32.mul (memory.grow (i32.const 16)) (i32.const 65536)) (i32.const 1))
        (br 0))";
    go(&program("init", grow, 1)).failed_with("memory");
    go(&program("init", "(param i32)", 65536)).failed_with("memory");
    go(&program("getWitnessSize", "(result i32) i32.const -1", 1)).failed_with("");
    go(&program("getFieldNumLen32", "(result i32) i32.const 12", 1)).failed_with("");
}

#[test]
fn proofs_keys_and_values_of_every_wrong_kind() {
    let f = range_check();
    let dir = scratch(&[]);
    run(dir.path(), &["prove", s(&f.zkey), s(&f.wtns), "p.json", "u.json"]).ok();
    let proof = std::fs::read_to_string(dir.path().join("p.json")).unwrap();
    let vkey = std::fs::read_to_string(&f.vkey).unwrap();
    let verify = |v: &str, u: &str, p: &str| {
        let dir = scratch(&[("v", v.as_bytes()), ("u", u.as_bytes()), ("p", p.as_bytes())]);
        run(dir.path(), &["verify", "--vkey", "v", "--public", "u", "--proof", "p"])
    };
    let public = std::fs::read_to_string(dir.path().join("u.json")).unwrap();
    verify(&vkey, &public, &proof).ok();
    verify("", &public, &proof).failed_with("v:");
    verify("{}", &public, &proof).failed_with("v:");
    verify(&vkey.replace("groth16", "plonk"), &public, &proof).failed_with("plonk");
    verify(&vkey.replace("bn128", "bls12381"), &public, &proof).failed_with("bls12381");
    verify(&vkey, "[]", &proof).failed_with("expected 2 public values, got 0");
    verify(&vkey, "{}", &proof).failed_with("u:");
    verify(&vkey, "[1, \"x\"]", &proof).failed_with("u:");
    let r = "21888242871839275222246405745257275088548364400416034343698204186575808495617";
    verify(&vkey, &format!("[\"{r}\", \"1\"]"), &proof).failed_with("u:");
    verify(&vkey, &public, "{}").failed_with("p:");
    verify(&vkey, &public, &vkey).failed_with("p:");
    let mut off: serde_json::Value = serde_json::from_str(&proof).unwrap();
    off["pi_a"][0] = "1".into();
    verify(&vkey, &public, &off.to_string()).failed_with("expected a point on");
    let mut long: serde_json::Value = serde_json::from_str(&proof).unwrap();
    long["pi_a"][0] = "9".repeat(1_000_000).into();
    verify(&vkey, &public, &long.to_string()).failed_with("p:");
    let mut short: serde_json::Value = serde_json::from_str(&proof).unwrap();
    short["pi_b"].as_array_mut().unwrap().pop();
    verify(&vkey, &public, &short.to_string()).failed_with("p:");
}

#[test]
fn a_file_of_another_kind_is_called_by_its_name() {
    let f = range_check();
    let dir = scratch(&[]);
    let go = |args: &[&str]| run(dir.path(), args);
    let (zkey, vkey, wtns, wasm, r1cs, input) =
        (s(&f.zkey), s(&f.vkey), s(&f.wtns), s(&f.wasm), s(&f.r1cs), s(&f.input));
    go(&["prove", zkey, wtns, "p.json", "u.json"]).ok();
    let verify =
        |vkey: &str, proof: &str, public: &str| go(&["verify", "--vkey", vkey, "--proof", proof, "--public", public]);
    let says = format!(
        "{zkey}: expected the JSON of a verification key, got a proving key (zkey); `prover-worker export vkey {zkey} "
    );
    verify(zkey, "p.json", "u.json").failed_with(&says);
    verify(wtns, "p.json", "u.json").failed_with("expected the JSON of a verification key, got a witness (wtns)");
    verify(r1cs, "p.json", "u.json").failed_with("expected the JSON of a verification key, got a circuit (r1cs)");
    verify(wasm, "p.json", "u.json").failed_with("got a WebAssembly module (wasm)");
    verify("p.json", "p.json", "u.json").failed_with("expected the JSON of a verification key, got that of a proof");
    verify(vkey, zkey, "u.json").failed_with("expected the JSON of a proof, got a proving key (zkey)");
    verify(vkey, "u.json", "p.json").failed_with("expected the JSON of public values, got that of a proof");
    verify(vkey, "u.json", "u.json").failed_with("expected the JSON of a proof, got that of public values");
    verify(vkey, wtns, "u.json").failed_with("got a witness (wtns)");
    go(&["verify", "--zkey", vkey, "--proof", "p.json", "--public", "u.json"])
        .failed_with("expected a proving key (zkey), got JSON; --vkey takes a verification key");
    go(&["export", "calldata", "--proof", zkey, "--public", "u.json"]).failed_with("got a proving key (zkey)");
    go(&["export", "vkey", vkey]).failed_with("expected \"zkey\", got JSON");
    go(&["prove", vkey, wtns, "p", "u"]).failed_with("expected \"zkey\", got JSON");
    go(&["prove", wtns, zkey, "p", "u"]).failed_with("expected \"zkey\", got a witness (wtns)");
    go(&["prove", zkey, input, "p", "u"]).failed_with("expected \"wtns\", got JSON");
    go(&["setup", zkey, "k", "--insecure-dev-only"]).failed_with("expected \"r1cs\", got a proving key (zkey)");
    go(&["witness", "--wasm", r1cs, "--input", input, "--out", "w"]).failed_with("got a circuit (r1cs)");
    go(&["witness", "--wasm", wasm, "--input", wtns, "--out", "w"]).failed_with("expected JSON, got a witness (wtns)");
    let other = scratch(&[("f", b"\x7fELF\xff")]);
    run(other.path(), &["inspect", "f"]).failed_with("not a file of a known kind");
    run(other.path(), &["verify", "--vkey", "f", "--proof", "p", "--public", "u"]).failed_with("nor of a known kind");
}

#[test]
fn documents_with_more_numbers_than_any_real_one() {
    let f = range_check();
    let vkey = std::fs::read_to_string(&f.vkey).unwrap();
    let point = "[0,1,0],";
    let points = format!("\"IC\":[{}[0,1,0]],\"X\"", point.repeat(8_000_000));
    let huge_key = vkey.replace("\"IC\"", &points);
    // More values than the limit on bytes allows.
    let values = format!("[{}1]", "1,".repeat(8_000_000));
    let more = format!("[{}1]", "1,".repeat(35_000_000));
    let dir = scratch(&[("k", huge_key.as_bytes()), ("u", values.as_bytes()), ("m", more.as_bytes())]);
    let inspect = |file: &str| run(dir.path(), &["inspect", file]);
    inspect("k").failed_with("at most 1048576 items");
    inspect("u").failed_with("at most 1048576 items");
    inspect("m").failed_with("expected at most 67108864 bytes");
    let verify = ["verify", "--vkey", s(&f.vkey), "--public", "u", "--proof", "p"];
    run(dir.path(), &verify).failed_with("at most 1048576 items");
}

#[test]
fn files_that_are_not_there_or_cannot_be_written() {
    let f = range_check();
    let dir = scratch(&[]);
    run(dir.path(), &["prove", "none.zkey", s(&f.wtns), "p", "u"]).failed_with("none.zkey: no such file");
    run(dir.path(), &["prove", s(&f.zkey), "none.wtns", "p", "u"]).failed_with("none.wtns: no such file");
    run(dir.path(), &["prove", s(&f.zkey), s(&f.wtns), "no/such/p", "u"]).failed_with("no/such/p");
    run(dir.path(), &["prove", ".", s(&f.wtns), "p", "u"]).failed_with("not a regular file");
    run(dir.path(), &["setup", "none.r1cs", "k", "--insecure-dev-only"]).failed_with("none.r1cs: no such file");
    let add = |zkey: &str, wasm: &str| run(dir.path(), &["circuits", "add", "c", "--zkey", zkey, "--wasm", wasm]);
    add("none.zkey", s(&f.wasm)).failed_with("none.zkey: no such file");
    add(s(&f.zkey), "none.wasm").failed_with("none.wasm: no such file");
}

#[test]
fn a_data_folder_that_cannot_be_is_named_with_the_variable_that_names_it() {
    let dir = scratch(&[("data", b"in the way")]);
    let says = format!(
        "{}: something else already exists there; set PROVER_DATA_DIR to a folder",
        s(&dir.path().join("data"))
    );
    run(dir.path(), &["circuits", "list"]).failed_with(&says);
    std::fs::remove_file(dir.path().join("data")).unwrap();
    std::fs::create_dir(dir.path().join("data")).unwrap();
    let keys = dir.path().join("data").join("zkeys");
    std::fs::write(&keys, "in the way").unwrap();
    let says = format!("{}: something else already exists there; set PROVER_DATA_DIR to a folder", s(&keys));
    run(dir.path(), &["circuits", "list"]).failed_with(&says);
}

#[test]
fn r1cs_of_every_wrong_kind() {
    let f = range_check();
    let good = Container::read(&f.r1cs);
    let setup = |says: &str, change: &dyn Fn(&mut Container)| {
        let mut c = good.clone();
        change(&mut c);
        let dir = scratch(&[("c.r1cs", &c.bytes())]);
        run(dir.path(), &["setup", "c.r1cs", "k.zkey", "--insecure-dev-only"]).failed_with(says);
        assert!(!dir.path().join("k.zkey").exists());
    };
    setup("magic", &|c| c.magic = *b"wtns");
    setup("version", &|c| c.version = 9);
    setup("section 1", &|c| c.sections.retain(|s| s.0 != 1));
    setup("section 2", &|c| c.sections.retain(|s| s.0 != 2));
    setup("", &|c| c.section(1)[4] ^= 1);
    // nWires, nConstraints.
    setup("", &|c| put32(c.section(1), 36, 3));
    // With and without labels, nWires must not decide how much is allocated.
    for wires in [1 << 20, 1 << 28, u32::MAX] {
        setup("section 3", &|c| put32(c.section(1), 36, wires));
        setup("nWires", &|c| {
            c.sections.retain(|s| s.0 != 3);
            put32(c.section(1), 36, wires);
        });
    }
    setup("", &|c| put32(c.section(1), 60, u32::MAX));
    setup("", &|c| put32(c.section(2), 0, u32::MAX));
    setup("", &|c| put32(c.section(2), 4, u32::MAX));
}
