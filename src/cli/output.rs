//! Output of the command line.

use std::fmt::{self, Display};
use std::io::{self, IsTerminal, Write};
use std::path::Path;
use std::sync::Mutex;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::{Serialize, Serializer};

use super::files::{FileError, on_stdout};
use crate::model::{io_reason, locked};
use crate::prover::one_line;

/// Error of a subcommand.
#[derive(Debug)]
pub enum CliError {
    /// The subcommand failed (exit code 1) for this reason.
    Failed(String),
    /// The subcommand failed (exit code 1) and has reported it already, as `verify` does with INVALID.
    Reported,
    /// The usage is wrong (exit code 2), for this reason.
    Usage(String),
}

impl From<FileError> for CliError {
    fn from(e: FileError) -> Self {
        match e {
            FileError::Failed(why) => Self::Failed(why),
            FileError::Usage(why) => Self::Usage(why),
        }
    }
}

impl CliError {
    /// Creates a failure with its reason.
    pub fn failed(why: impl Display) -> Self {
        Self::Failed(why.to_string())
    }

    /// Returns the exit code.
    pub fn code(&self) -> u8 {
        match self {
            Self::Failed(_) | Self::Reported => 1,
            Self::Usage(_) => 2,
        }
    }
}

/// Serializes a path as text, even if it is not UTF-8.
pub fn shown<S: Serializer>(path: &impl AsRef<Path>, to: S) -> Result<S::Ok, S::Error> {
    to.collect_str(&path.as_ref().display())
}

/// Serializes an optional path as [`shown`] does.
pub fn maybe_shown<S: Serializer>(path: &Option<impl AsRef<Path>>, to: S) -> Result<S::Ok, S::Error> {
    match path {
        Some(path) => shown(path, to),
        None => to.serialize_none(),
    }
}

/// Prints results, as text or as one JSON document.
pub struct Output {
    json: bool,
    /// Error of a result that could not be printed.
    lost: Mutex<Option<io::Error>>,
}

impl Output {
    /// Creates an output for text or, if `json`, JSON.
    pub fn new(json: bool) -> Self {
        Self { json, lost: Mutex::default() }
    }

    /// Whether results are printed as JSON.
    pub fn is_json(&self) -> bool {
        self.json
    }

    /// Prints a result: `value` as JSON, or `text`.
    pub fn result(&self, value: &impl Serialize, text: impl FnOnce() -> String) {
        let line = if self.json { serde_json::to_string(value).map_err(io::Error::from) } else { Ok(text()) };
        match line {
            Ok(line) if line.is_empty() => {}
            Ok(line) => self.print(format_args!("{}\n", line.trim_end_matches('\n'))),
            Err(e) => self.lose(e),
        }
    }

    /// Prints a report on written files; on standard error if one of the files is standard output.
    pub fn report(&self, files: &[&Path], value: &impl Serialize, text: impl FnOnce() -> String) {
        if on_stdout(files) { self.note(text()) } else { self.result(value, text) }
    }

    /// Prints a document as it is.
    pub fn document(&self, text: &str) {
        self.print(format_args!("{text}"));
    }

    /// A closed pipe is not an error: the reader has seen enough. Any other failure is kept for [`Self::end`].
    fn print(&self, text: fmt::Arguments<'_>) {
        let mut stdout = io::stdout().lock();
        match stdout.write_fmt(text).and_then(|()| stdout.flush()) {
            Err(e) if e.kind() != io::ErrorKind::BrokenPipe => self.lose(e),
            _ => {}
        }
    }

    fn lose(&self, why: io::Error) {
        *locked(&self.lost) = Some(why);
    }

    /// Fails if a result could not be printed.
    pub fn end(&self) -> Result<(), CliError> {
        match locked(&self.lost).take() {
            Some(e) => Err(CliError::failed(format!("standard output cannot be written: {}", io_reason(&e)))),
            None => Ok(()),
        }
    }

    /// Prints a remark on standard error, unless JSON was asked for.
    pub fn note(&self, line: impl Display) {
        if !self.json {
            let _ = writeln!(io::stderr(), "{line}");
        }
    }

    /// Prints an error as one line, even if its sources contain line breaks.
    pub fn error(&self, e: &CliError) {
        let text = match e {
            CliError::Failed(t) | CliError::Usage(t) => t,
            CliError::Reported => return,
        };
        let _ = writeln!(io::stderr(), "error: {}", one_line(text));
    }

    /// Creates a progress bar on standard error, from 0 to 1000. It is hidden with JSON or if standard error is not a
    /// terminal.
    pub fn bar(&self, what: &'static str) -> ProgressBar {
        let bar = ProgressBar::with_draw_target(Some(1000), ProgressDrawTarget::hidden());
        if !self.json && std::io::stderr().is_terminal() {
            bar.set_draw_target(ProgressDrawTarget::stderr());
            bar.enable_steady_tick(Duration::from_millis(100));
        }
        if let Ok(style) = ProgressStyle::with_template("{msg:9} [{bar:40}] {percent:>3}% {elapsed}") {
            bar.set_style(style.progress_chars("=> "));
        }
        bar.set_message(what);
        bar
    }
}
