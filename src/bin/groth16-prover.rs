//! Entry point. The exit code is 0 for success, 1 for failure, 2 for wrong usage.

use std::process::ExitCode;

fn main() -> ExitCode {
    prover_worker::prover::main()
}
