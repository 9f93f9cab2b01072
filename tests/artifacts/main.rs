//! Artifacts in a folder, in memory and in object stores: the rules that hold for all, then the faults of each.
#![allow(clippy::unwrap_used, missing_docs)]

#[path = "../support/circuits.rs"]
mod circuits;
mod clouds;
mod conformance;
mod disk;
mod faulty;
mod registry;
mod remote;
mod servers;
#[path = "../support/wait.rs"]
mod wait;

use std::path::{Path, PathBuf};

/// Returns bytes that look random and are the same each time.
pub fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut out = Vec::with_capacity(len + 8);
    while out.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        out.extend_from_slice(&state.to_le_bytes());
    }
    out.truncate(len);
    out
}

/// Writes a file with this content.
pub fn file(dir: &Path, name: &str, bytes: &[u8]) -> PathBuf {
    let path = dir.join(name);
    std::fs::write(&path, bytes).unwrap();
    path
}

/// Returns the names in a folder, sorted.
pub fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// Skips a test that lacks its means; panics in CI, where every test must run.
pub fn skip(test: &str, why: &str) {
    assert!(std::env::var_os("CI").is_none(), "{test}: {why}");
    eprintln!("SKIPPED {test}: {why}");
}
