//! File formats: against files from other programs, against files made here, and against malicious files.
#![allow(clippy::unwrap_used, missing_docs)]

mod encoders;
mod hostile;
mod json;
mod small;
mod vectors;
