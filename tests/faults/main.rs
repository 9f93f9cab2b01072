//! Faults, on the real program: killed, frozen, drained, crowded. Each test has its own data folder.
//!
//! The scenarios are those that users of such systems complain about: jobs lost or stuck, workers declared dead while
//! alive, work done twice, results overwritten by a stale worker, cancels without effect.

#![allow(clippy::unwrap_used, missing_docs)]

mod cancel;
#[path = "../support/circuits.rs"]
mod circuits;
mod crash;
mod crowd;
mod devices;
mod drain;
mod fleet;
mod harness;
mod lease;
mod neighbours;
#[path = "../support/no_work.rs"]
mod no_work;
mod purge;
mod queues;
#[path = "../support/wait.rs"]
mod wait;
