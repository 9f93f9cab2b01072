//! The house rules that the compiler does not know: which module may use which, where `unsafe` and the environment may
//! be used, and that no stub is left. The sources are read as text, so the check needs no build of its own.

#![allow(clippy::unwrap_used)]

mod rules;
mod source;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use rules::{ARROWS, check, long_comments, may_use};

fn src() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src")
}

/// Returns every `.rs` file below `dir`, as (path below it, text).
fn files(dir: &Path) -> Vec<(String, String)> {
    let mut found = Vec::new();
    let mut left = vec![dir.to_path_buf()];
    while let Some(folder) = left.pop() {
        for entry in fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                left.push(path);
            } else if path.extension().is_some_and(|e| e == "rs") {
                let name = path.strip_prefix(dir).unwrap().to_string_lossy().replace('\\', "/");
                found.push((name, fs::read_to_string(&path).unwrap()));
            }
        }
    }
    found.sort();
    found
}

/// Returns the layer of each room, from the table in the crate's documentation.
fn layers() -> Vec<(String, u32)> {
    let lib = fs::read_to_string(src().join("lib.rs")).unwrap();
    let mut out = Vec::new();
    for line in lib.lines().filter_map(|l| l.strip_prefix("//! |")) {
        let mut cells = line.split('|');
        let Some(layer) = cells.next().and_then(|c| c.trim().parse::<u32>().ok()) else { continue };
        let rooms = cells.next().unwrap().split(',').map(|r| r.trim().trim_matches(['[', ']', '`']).to_owned());
        out.extend(rooms.map(|r| (r, layer)));
    }
    out
}

#[test]
fn the_sources_keep_the_rules() {
    let files = files(&src());
    assert!(files.len() > 20, "expected the crate's sources under src, found {} files", files.len());
    let broken: Vec<String> = files.iter().flat_map(|(name, text)| check(name, text)).collect();
    assert!(broken.is_empty(), "{} broken rules:\n{}", broken.len(), broken.join("\n"));
}

/// Tests and benches that drive a device do so through `src/backend`.
#[test]
fn what_is_not_below_src_has_no_unsafe() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut texts = vec![("build.rs".to_owned(), fs::read_to_string(root.join("build.rs")).unwrap())];
    texts.extend(["benches", "tests"].iter().flat_map(|folder| files(&root.join(folder))));
    let has_unsafe = |text: &str| source::tokens(text).iter().any(|(token, _)| *token == source::Token::Word("unsafe"));
    let found: Vec<_> = texts.iter().filter(|(_, text)| has_unsafe(text)).map(|(name, _)| name).collect();
    assert!(texts.len() > 40 && found.is_empty(), "unsafe outside src/backend: {found:?}");
}

/// Comments are no wider than code. rustfmt does not wrap them.
#[test]
fn no_comment_is_wider_than_the_code() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let folders = ["src", "tests", "benches"];
    let texts = folders.iter().flat_map(|folder| files(&root.join(folder)).into_iter().map(move |file| (folder, file)));
    let long: Vec<String> =
        texts.flat_map(|(folder, (name, text))| long_comments(&format!("{folder}/{name}"), &text)).collect();
    assert!(long.is_empty(), "{} comment lines are too long:\n{}", long.len(), long.join("\n"));
}

#[test]
fn planted_long_comments_are_caught() {
    let (words, url) = ("word ".repeat(30), format!("https://example.org/{}", "a".repeat(120)));
    let text = format!("/// {words}\nfn f() {{}}\n    // {words}\n//! {url}\n// see {url}\n// {}\n", "ö".repeat(117));
    assert_eq!(
        long_comments("src/a.rs", &text),
        ["src/a.rs:1: 153 columns", "src/a.rs:3: 156 columns", "src/a.rs:5: 147 columns"]
    );
}

#[test]
fn every_allowed_arrow_points_down() {
    let layers = layers();
    let layer = |room: &str| layers.iter().find(|(r, _)| r == room).map(|(_, l)| *l);
    for (from, to) in ARROWS {
        for to in *to {
            let (above, below) = (layer(from), layer(to));
            assert!(above > below && below.is_some(), "{from} (layer {above:?}) may use {to} (layer {below:?})");
        }
    }
}

#[test]
fn the_table_the_arrows_and_the_modules_name_the_same_rooms() {
    let lib = fs::read_to_string(src().join("lib.rs")).unwrap();
    let modules: BTreeSet<String> =
        lib.lines().filter_map(|l| l.strip_prefix("pub mod ")?.strip_suffix(';')).map(str::to_owned).collect();
    let table: BTreeSet<String> = layers().into_iter().map(|(r, _)| r).collect();
    let arrows: BTreeSet<String> = ARROWS.iter().map(|(r, _)| (*r).to_owned()).collect();
    assert_eq!(modules, table, "`pub mod` lines against the table in src/lib.rs");
    assert_eq!(modules, arrows, "`pub mod` lines against the arrows in this test");
}

/// Returns the rules that one planted file breaks.
fn planted(name: &str, text: &str) -> String {
    check(name, text).join("\n")
}

#[test]
fn a_planted_arrow_is_caught_however_it_is_written() {
    assert!(!may_use("model", "store") && may_use("worker", "store"));
    for (name, text) in [
        ("model/job.rs", "use crate::store::Store;"),
        ("model/job.rs", "use crate::{\n    model::Key,\n    store::{Store, Held},\n};"),
        ("model/job.rs", "fn f() -> crate::store::Held { x() }"),
        ("model/job.rs", "use super::super::store::Held;"),
        ("model/mod.rs", "use super::store::Held;"),
        ("model/mod.rs", "mod inner { use super::super::{store::Held}; }"),
        ("model/mod.rs", "#[cfg(test)] mod tests { fn f() { let _ = crate :: store :: X; } }"),
        ("model/job.rs", "fn f<'a>(c: char) -> &'a u8 { if c == '\"' { crate::store::x() } }"),
        ("model/job.rs", "const Q: &str = r#\"\"#; use crate::store::Held;"),
        ("model/job.rs", "/* a /* nested */ comment */ use crate::store::Held;"),
    ] {
        assert!(planted(name, text).contains("model may not use store"), "{name}: {text}");
    }
    for (name, text, want) in [
        ("store/mod.rs", "use crate::queue::Queue;", "store may not use queue"),
        ("queue/redis.rs", "use crate::artifacts::Artifacts;", "queue may not use artifacts"),
        ("backend/cpu/mod.rs", "use crate::witness::Limits;", "backend may not use witness"),
        ("witness/wasm.rs", "use crate::groth16::prove;", "witness may not use groth16"),
        ("registry.rs", "use super::worker::Worker;", "registry may not use worker"),
        ("http/mod.rs", "use crate::cli::Output;", "http may not use cli"),
        ("main.rs", "fn main() { prover_worker::worker::run(); }", "main may not use worker"),
        ("model/mod.rs", "use crate::*;", "hides"),
        ("model/mod.rs", "use crate::Loose;", "Loose is no room"),
        ("bin/small.rs", "fn main() { prover_worker::worker::f() }", "bin may not use worker"),
        ("prover/mod.rs", "use crate::cli::Output;", "prover may not use cli"),
        ("attic.rs", "use crate::model::Job;", "attic is no room"),
    ] {
        let got = planted(name, text);
        assert!(got.contains(want), "{name}: {text}\nexpected {want:?}, got {got:?}");
    }
}

#[test]
fn what_is_allowed_or_not_code_is_left_alone() {
    for (name, text) in [
        ("model/job.rs", "//! [`crate::store`]\n// use crate::store::Held;\nuse super::CircuitName;"),
        (
            "model/job.rs",
            "const A: &str = \"use crate::store::X; unsafe todo!()\"; const B: &[u8] = br##\"\"# unsafe\"##;",
        ),
        ("model/job.rs", "pub(crate) fn f() {} pub(in crate::model) fn g() {} mod m { use super::super::hash::H; }"),
        ("worker/mod.rs", "use crate::{queue::Queue, store::{Held, Store}};"),
        ("cli/serve.rs", "use super::{CliError, Output}; use crate::http; fn f() { std::env::current_exe(); }"),
        ("config.rs", "fn f() { std::env::var(\"X\"); }"),
        ("witness/wasm.rs", "fn f() { std::env::current_exe(); let todo = 1; let _ = todo != 2; env!(\"X\"); }"),
        ("backend/mapped.rs", "unsafe fn f() {}"),
        ("main.rs", "fn main() -> ExitCode { prover_worker::cli::main() }"),
        ("bin/small.rs", "fn main() -> ExitCode { prover_worker::prover::main() }"),
        ("prover/mod.rs", "fn f() { std::env::args_os(); }"),
        ("lib.rs", "pub mod model;"),
    ] {
        assert_eq!(planted(name, text), "", "{name}: {text}");
    }
}

#[test]
fn planted_unsafe_environment_and_stubs_are_caught() {
    for (name, text, want) in [
        ("witness/wasm.rs", "fn f() {\n    unsafe { g() }\n}", "witness/wasm.rs:2: unsafe"),
        ("worker/mod.rs", "use std::env;", "environment"),
        ("model/job.rs", "fn f() { std::env::args_os(); }", "environment"),
        ("worker/mod.rs", "use std::{env, fs};", "environment"),
        ("worker/mod.rs", "use std::{env::{self, var}, fs};", "environment"),
        ("http/mod.rs", "fn f() { std::env::var_os(\"HOME\"); }", "environment"),
        ("cli/demo.rs", "fn f() { std::env::var_os(\"LOG_LEVEL\"); }", "environment"),
        ("telemetry.rs", "fn f() { EnvFilter::try_from_default_env(); }", "environment"),
        ("cli/demo.rs", "fn f() {\n\n    todo!()\n}", "cli/demo.rs:3: todo!"),
        ("cli/demo.rs", "fn f() { unimplemented!(\"later\") }", "unimplemented!"),
        ("cli/demo.rs", "fn f() { dbg!(1); }", "dbg!"),
    ] {
        let got = planted(name, text);
        assert!(got.contains(want), "{name}: {text}\nexpected {want:?}, got {got:?}");
    }
}
