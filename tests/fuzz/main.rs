//! Untrusted bytes, mutated: nothing panics, nothing hangs. `FUZZ_SECONDS` says how long each goes on.
#![allow(clippy::unwrap_used)]

mod inputs;
