//! File formats: against files that others wrote, against files made here, and against files made to do harm.
#![allow(clippy::unwrap_used, missing_docs)]

mod encoders;
mod hostile;
mod json;
mod small;
mod vectors;
