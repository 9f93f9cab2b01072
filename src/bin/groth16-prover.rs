//! Exit codes only: 0 success, 1 failed, 2 usage.

use std::process::ExitCode;

fn main() -> ExitCode {
    prover_worker::prover::main()
}
