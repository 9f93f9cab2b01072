//! Shared parts of subcommands that work on jobs: the configuration, the runtime and the open workspace.

use std::future::Future;

use super::CliError;
use crate::backend::{CpuOptions, CudaOptions, Discovery, IcicleOptions, discover};
use crate::config::{CATALOGUE, Config};
use crate::model::{CircuitName, JobId};
use crate::registry::host_keys;
use crate::worker::{Workspace, running_program};

/// Reads the configuration. An invalid one is a usage error.
pub fn config() -> Result<Config, CliError> {
    Config::from_env().map_err(|e| CliError::Usage(e.to_string()))
}

/// Starts a runtime.
pub fn runtime() -> Result<tokio::runtime::Runtime, CliError> {
    let built = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    built.map_err(|e| CliError::failed(format!("the runtime could not be started: {e}")))
}

/// Opens the workspace and runs `work` in it.
pub fn with_workspace<T, F>(work: impl FnOnce(Workspace) -> F) -> Result<T, CliError>
where
    F: Future<Output = Result<T, CliError>>,
{
    let config = config()?;
    runtime()?.block_on(async {
        let workspace = Workspace::open(config).await.map_err(CliError::failed)?;
        work(workspace).await
    })
}

/// Finds the devices that the configuration permits.
pub fn devices(config: &Config) -> Result<Discovery, CliError> {
    let cpu = CpuOptions {
        threads: config.processor.threads,
        instructions: config.processor.instructions,
        // In addition to the keys themselves.
        multiples: host_keys(config.key_cache_bytes) / 4,
    };
    let icicle = IcicleOptions {
        program: running_program(),
        libraries: config.icicle.libraries.clone(),
        backends: config.icicle.backends.clone(),
        kind: config.icicle.device.clone(),
        // Some of them contain passwords, and the libraries are third-party code.
        withheld: CATALOGUE.iter().map(|v| v.name).collect(),
    };
    let cuda = CudaOptions { graphs: config.cuda_graphs };
    discover(config.backend, &cpu, &cuda, &icicle).map_err(CliError::failed)
}

/// Parses a circuit's name from the command line.
pub fn circuit_name(text: &str) -> Result<CircuitName, String> {
    text.parse().map_err(|e| format!("{e}"))
}

/// Parses a job's id from the command line.
pub fn job_id(text: &str) -> Result<JobId, String> {
    text.parse()
}

/// Formats a table with aligned columns, without padding after the last one.
pub fn table(head: &[&str], rows: &[Vec<String>]) -> String {
    let width = |c: usize| rows.iter().map(|r| r[c].chars().count()).chain([head[c].len()]).max().unwrap_or(0);
    let widths: Vec<usize> = (0..head.len()).map(width).collect();
    let line = |cells: Vec<&str>| {
        let cells = cells.iter().zip(&widths).map(|(cell, w)| format!("{cell:w$}", w = *w));
        cells.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    };
    let rows = rows.iter().map(|r| line(r.iter().map(String::as_str).collect()));
    [line(head.to_vec())].into_iter().chain(rows).collect::<Vec<_>>().join("\n")
}

/// Formats milliseconds since 1970 as a date and time in UTC.
pub fn time(ms: i64) -> String {
    let (days, in_day) = (ms.div_euclid(86_400_000), ms.rem_euclid(86_400_000) / 1000);
    // Days to a date: Howard Hinnant's civil_from_days, with years that begin in March.
    let z = days + 719_468;
    let era = z.div_euclid(146_097);
    let doe = z.rem_euclid(146_097);
    let yoe = (doe - doe / 1460 + doe / 36_524 - doe / 146_096) / 365;
    let doy = doe - (365 * yoe + yoe / 4 - yoe / 100);
    let mp = (5 * doy + 2) / 153;
    let day = doy - (153 * mp + 2) / 5 + 1;
    let month = if mp < 10 { mp + 3 } else { mp - 9 };
    let year = yoe + era * 400 + i64::from(month <= 2);
    let (h, m, s) = (in_day / 3600, in_day / 60 % 60, in_day % 60);
    format!("{year:04}-{month:02}-{day:02} {h:02}:{m:02}:{s:02}Z")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_dates() {
        assert_eq!(time(0), "1970-01-01 00:00:00Z");
        assert_eq!(time(951_782_400_000), "2000-02-29 00:00:00Z");
        assert_eq!(time(1_735_689_599_999), "2024-12-31 23:59:59Z");
        assert_eq!(time(-1), "1969-12-31 23:59:59Z");
    }

    #[test]
    fn tables_line_up() {
        let rows = vec![vec!["a".to_owned(), "long".to_owned()], vec!["bcd".to_owned(), "x".to_owned()]];
        assert_eq!(table(&["n", "v"], &rows), "n    v\na    long\nbcd  x");
    }
}
