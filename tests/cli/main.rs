//! The command line, run as a user runs it: the real program on real files.
#![allow(clippy::unwrap_used, missing_docs)]

mod bad_files;
#[path = "../support/circom2.rs"]
mod circom2;
#[path = "../support/circuits.rs"]
mod circuits;
mod full;
mod happy;
mod harness;
mod inputs;
mod odd_files;
mod prover;
mod streams;
mod usage;
#[path = "../support/wait.rs"]
mod wait;
