//! Mutated files and documents: no reader panics, and what is read can be checked and written again.
//!
//! By default each target runs a few hundred cases (`PROPTEST_CASES` sets how many). With `FUZZ_SECONDS=60` in the
//! environment each runs for that long instead: `FUZZ_SECONDS=60 cargo test --test fuzz`.
#![allow(clippy::unwrap_used, missing_docs)]

mod files;
mod inputs;
mod json;
mod mutate;
mod witness;

use std::time::{Duration, Instant};

use proptest::strategy::Strategy;
use proptest::test_runner::{Config, TestCaseResult, TestRunner};

/// Runs `test` on inputs of `strategy`: as many as proptest is configured for, or for `FUZZ_SECONDS`.
pub fn fuzz<S: Strategy>(target: &str, strategy: S, test: impl Fn(S::Value) -> TestCaseResult) {
    let config = Config { failure_persistence: None, ..Config::default() };
    let seconds: Option<u64> = std::env::var("FUZZ_SECONDS").ok().map(|s| s.parse().unwrap());
    let until = seconds.map(|s| Instant::now() + Duration::from_secs(s));
    let mut cases = 0u64;
    loop {
        // A new runner takes a new seed.
        cases += u64::from(config.cases);
        if let Err(e) = TestRunner::new(config.clone()).run(&strategy, &test) {
            panic!("{target}: {e}");
        }
        if until.is_none_or(|until| Instant::now() >= until) {
            break;
        }
    }
    eprintln!("{target}: {cases} cases");
}
