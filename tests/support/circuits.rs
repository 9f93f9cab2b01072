//! The project's own circuits. Each test program that uses them includes this file by `#[path]`.

// No test program uses all of it.
#![allow(dead_code)]

use std::path::{Path, PathBuf};

/// Returns the folder of the circuits.
pub fn circuits() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("circuits")
}

/// Returns the content of a file of that folder.
pub fn circuit_file(name: &str) -> Vec<u8> {
    std::fs::read(circuits().join(name)).unwrap()
}
