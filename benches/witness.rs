//! Witness generation, rewritten and plain, in this process: inputs read, program run, witness read out.
//!
//! `cargo bench --bench witness` runs bundled circuits; with `PROVER_BENCH_DIR` set, also every folder in it that holds
//! `circuit.wasm` and `input.json`. Compilation is timed separately, without a cache.
#![allow(missing_docs, clippy::unwrap_used)]

use std::path::{Path, PathBuf};
use std::time::Duration;

use criterion::{Criterion, criterion_group, criterion_main};
use prover_worker::model::StopToken;
use prover_worker::witness::{Inputs, Limits, ModuleCache, WasmWitness};

const AMPLE: Limits = Limits {
    time: Duration::from_secs(120),
    memory: 4 << 30,
    compile_time: Duration::from_secs(300),
    compile_memory: 4 << 30,
};

fn load(wasm: &[u8], rewrite: bool) -> WasmWitness {
    WasmWitness::load(wasm, AMPLE, &ModuleCache { dir: None, compiler: None, rewrite }).unwrap()
}

/// Name, program and inputs.
fn circuits() -> Vec<(String, PathBuf, PathBuf)> {
    let own = Path::new(env!("CARGO_MANIFEST_DIR")).join("circuits");
    let mut found: Vec<_> = ["range_check", "mimc_preimage"]
        .map(|name| (name.to_owned(), own.join(format!("{name}.wasm")), own.join(format!("{name}.input.json"))))
        .into();
    if let Some(dir) = std::env::var_os("PROVER_BENCH_DIR") {
        let mut folders: Vec<_> = std::fs::read_dir(dir).unwrap().map(|f| f.unwrap().path()).collect();
        folders.sort();
        for folder in folders {
            let name = folder.file_name().unwrap().to_string_lossy().into_owned();
            found.push((name, folder.join("circuit.wasm"), folder.join("input.json")));
        }
    }
    found.into_iter().filter(|(_, wasm, input)| wasm.exists() && input.exists()).collect()
}

fn witness(c: &mut Criterion) {
    for (name, wasm, input) in circuits() {
        let (wasm, json) = (std::fs::read(wasm).unwrap(), std::fs::read(input).unwrap());
        let mut group = c.benchmark_group(format!("witness/{name}"));
        group.sample_size(20);
        for (way, rewrite) in [("plain", false), ("rewritten", true)] {
            let program = load(&wasm, rewrite);
            assert_eq!(program.info().rewritten.is_some(), rewrite);
            group.bench_function(way, |b| {
                b.iter(|| program.generate(&Inputs::parse(&json).unwrap(), &StopToken::new()).unwrap());
            });
        }
        group.finish();
        let mut group = c.benchmark_group(format!("compile/{name}"));
        group.sample_size(10);
        for (way, rewrite) in [("plain", false), ("rewritten", true)] {
            group.bench_function(way, |b| b.iter(|| load(&wasm, rewrite)));
        }
        group.finish();
    }
}

criterion_group!(benches, witness);
criterion_main!(benches);
