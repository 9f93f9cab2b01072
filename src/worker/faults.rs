//! Named points at which a test can kill or hold a worker. Inert unless the hidden `serve --fault-at` names one.

use std::str::FromStr;

use rustix::process::{Signal, getpid, kill_process};
use tokio::signal::unix::SignalKind;

use super::POLL_EVERY;
use super::lease::Keeper;
use crate::model::StopToken;

/// A point in the processing of a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Point {
    /// A job is claimed; nothing else has happened.
    AfterClaim,
    /// The witness is made.
    AfterWitness,
    /// The proof is made and verified.
    AfterProve,
    /// The result is about to be written.
    BeforeCommit,
    /// The result is written; the proof's files are not, and the queue does not know.
    AfterCommit,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Act {
    /// The process dies at once, as after a loss of power.
    Abort,
    /// The job waits until it is told to stop.
    Sleep,
    /// The whole process stops until it gets SIGCONT, heartbeats included.
    Freeze,
}

/// The fault that is set, if any.
#[derive(Debug, Clone, Copy, Default)]
pub struct Faults(Option<(Point, Act)>);

impl FromStr for Faults {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        let expected = || {
            let points = "after_claim, after_witness, after_prove, before_commit or after_commit";
            format!("expected POINT:ACT, POINT one of {points}, ACT abort, sleep or freeze, got {s:?}")
        };
        let (point, act) = s.split_once(':').ok_or_else(expected)?;
        let point = match point {
            "after_claim" => Point::AfterClaim,
            "after_witness" => Point::AfterWitness,
            "after_prove" => Point::AfterProve,
            "before_commit" => Point::BeforeCommit,
            "after_commit" => Point::AfterCommit,
            _ => return Err(expected()),
        };
        let act = match act {
            "abort" => Act::Abort,
            "sleep" => Act::Sleep,
            "freeze" => Act::Freeze,
            _ => return Err(expected()),
        };
        Ok(Self(Some((point, act))))
    }
}

impl Faults {
    /// Passes the point, unless a fault is set there. Logs that first, for the test that waits for it.
    pub(super) async fn pass(&self, at: Point, stop: &StopToken, keeper: &Keeper) {
        let Some((_, act)) = self.0.filter(|(point, _)| *point == at) else { return };
        tracing::warn!(point = ?at, ?act, "fault point reached");
        match act {
            Act::Abort => signal(Signal::KILL),
            Act::Freeze => freeze(keeper).await,
            Act::Sleep => {
                while stop.stopped().is_none() {
                    tokio::time::sleep(POLL_EVERY).await;
                }
            }
        }
    }
}

/// Stops the process between two heartbeats: if it stopped in the middle of a write, it would keep an SQLite file
/// locked all the time. The signal takes a moment to reach every thread, so this one continues only when SIGCONT
/// arrives.
async fn freeze(keeper: &Keeper) {
    let _silence = keeper.silence().await;
    let Ok(mut resumed) = tokio::signal::unix::signal(SignalKind::from_raw(Signal::CONT.as_raw())) else {
        std::process::abort();
    };
    signal(Signal::STOP);
    resumed.recv().await;
}

fn signal(signal: Signal) {
    if kill_process(getpid(), signal).is_err() {
        std::process::abort();
    }
}
