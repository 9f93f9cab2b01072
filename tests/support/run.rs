//! Runs of the program on devices that a test provides. Each test program that needs it includes this file by
//! `#[path]`.

use std::path::Path;
use std::process::{Command, Output, Stdio};

use serde_json::Value;

/// Lets a command run in `home` with this backend, none of the program's own variables from the environment, and no
/// open port.
pub fn in_home(mut command: Command, home: &Path, backend: &str) -> Command {
    for variable in prover_worker::config::CATALOGUE {
        command.env_remove(variable.name);
    }
    command.env("PROVER_DATA_DIR", home.join("data")).env("PROVER_BACKEND", backend);
    command.env("METRICS_PORT", "off").env("PROVER_API_ADDR", "off").current_dir(home).stdin(Stdio::null());
    command
}

/// Returns the result of a run with `--json`, which must have succeeded.
pub fn json(done: &Output) -> Value {
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    serde_json::from_slice(&done.stdout).unwrap()
}
