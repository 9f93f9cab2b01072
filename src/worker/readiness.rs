//! Whether the worker is ready for work, and whether it is still of use.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::fleet::Fleet;
use crate::config::ExitOnDead;
use crate::model::locked;

/// How often devices are checked.
const CHECK_EVERY: Duration = Duration::from_secs(1);

/// A worker's state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Status {
    /// Not ready yet, with the present step of the startup.
    Starting(&'static str),
    /// Takes jobs.
    Ready,
    /// Takes jobs on the CPU only, which stands in for the other devices, with the reason.
    StandIn(String),
    /// Takes no more jobs.
    Draining,
}

/// The state of a worker, shared with those that check its health.
#[derive(Debug, Clone)]
pub struct Readiness(Arc<Mutex<Status>>);

impl Readiness {
    /// Not ready yet.
    pub fn starting(at: &'static str) -> Self {
        Self(Arc::new(Mutex::new(Status::Starting(at))))
    }

    /// Returns the state.
    pub fn get(&self) -> Status {
        locked(&self.0).clone()
    }

    /// Sets the state. A worker that drains never becomes ready again.
    pub fn set(&self, status: Status) {
        let mut now = locked(&self.0);
        if *now != Status::Draining {
            *now = status;
        }
    }
}

/// Keeps `readiness` in line with the devices other than the CPU, including those `lost` at the start. Returns with a
/// description once enough of them are dead for the worker to exit: unfit without interruption for `dead_after`, in
/// which time a device that can recover does.
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
        tokio::time::sleep(CHECK_EVERY).await;
    }
}
