//! The command line, run as a user runs it: the real program on real files.
#![allow(clippy::unwrap_used, missing_docs)]

mod bad_files;
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
