//! Whether the worker is ready for work, and whether it is of any more use.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::fleet::Fleet;
use crate::config::ExitOnDead;
use crate::model::locked;

/// How often devices are looked at.
const LOOK: Duration = Duration::from_secs(1);

/// Where a worker stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Status {
    /// Not yet, and what it is at.
    Starting(&'static str),
    /// Takes jobs.
    Ready,
    /// Takes jobs on the processor only, which stands in for the devices it has, and why.
    StandIn(String),
    /// Takes no more jobs.
    Draining,
}

/// Shared between a worker and whoever asks for its health.
#[derive(Debug, Clone)]
pub struct Readiness(Arc<Mutex<Status>>);

impl Readiness {
    /// Not ready yet.
    pub fn starting(at: &'static str) -> Self {
        Self(Arc::new(Mutex::new(Status::Starting(at))))
    }

    /// Where it stands.
    pub fn get(&self) -> Status {
        locked(&self.0).clone()
    }

    /// It stands elsewhere now. A worker that drains never becomes ready again.
    pub fn set(&self, status: Status) {
        let mut now = locked(&self.0);
        if *now != Status::Draining {
            *now = status;
        }
    }
}

/// Keeps `readiness` by the devices other than the processor, those included that were `lost` at the start. Returns, with a
/// sentence, when enough of them are dead for the worker to end: without a break unfit for `dead_after`, in which time one
/// that can come back does.
pub(super) async fn watch(
    fleet: &Fleet,
    lost: &[String],
    readiness: &Readiness,
    exit: ExitOnDead,
    dead_after: Duration,
) -> String {
    let devices: Vec<_> = fleet.devices().iter().filter(|d| !d.is_cpu()).collect();
    let all = devices.len() + lost.len();
    let mut unfit_since = vec![None; all];
    loop {
        let lost = lost.iter().cloned().map(Some);
        let unfit: Vec<_> = devices.iter().map(|d| d.unfit()).chain(lost).collect();
        for (since, why) in unfit_since.iter_mut().zip(&unfit) {
            *since = why.as_ref().map(|_| since.unwrap_or_else(Instant::now));
        }
        let reasons: Vec<_> = unfit.iter().flatten().map(String::as_str).collect();
        let stands_in = all > 0 && reasons.len() == all;
        readiness.set(if stands_in { Status::StandIn(reasons.join("; ")) } else { Status::Ready });
        let dead = unfit_since.iter().flatten().filter(|since| since.elapsed() >= dead_after).count();
        if exit.is_reached(dead, all) {
            let minutes = dead_after.as_secs() / 60;
            return format!("{dead} of {all} devices did not come back in {minutes} min: {}", reasons.join("; "));
        }
        tokio::time::sleep(LOOK).await;
    }
}
