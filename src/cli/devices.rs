//! `devices`: the devices that were found, and which of them are used.

use serde::Serialize;

use super::session;
use super::{CliError, Output};
use crate::backend::DeviceReport;

/// Arguments of `devices`.
#[derive(clap::Args)]
pub struct Args {}

#[derive(Serialize)]
struct Report<'a> {
    summary: &'a str,
    devices: &'a [DeviceReport],
}

/// Finds, tests and lists devices.
pub fn run(_: Args, out: &Output) -> Result<(), CliError> {
    let found = session::devices(&session::config()?)?;
    let report = Report { summary: &found.summary, devices: &found.report };
    out.result(&report, || {
        let row = |r: &DeviceReport| {
            let (label, name) = r
                .device
                .as_ref()
                .map_or_else(|| (r.kind.as_str().to_owned(), "-".to_owned()), |d| (d.label(), d.name.clone()));
            vec![label, name, if r.used { "yes" } else { "no" }.to_owned(), r.status.clone()]
        };
        let rows: Vec<_> = found.report.iter().map(row).collect();
        format!("{}\n{}", session::table(&["device", "name", "used", "status"], &rows), found.summary)
    });
    Ok(())
}
