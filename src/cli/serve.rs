//! `serve`: runs the worker until a signal.

use std::cell::Cell;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use metrics::gauge;
use rustix::process::{self, Resource, Rlimit, getpid, getrlimit, kill_process, setrlimit};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::session;
use super::{CliError, Output};
use crate::backend::{Backend, LostDevice};
use crate::config::{Config, Secret};
use crate::http::{self, Access, App, Health};
use crate::store::StoreError;
use crate::telemetry::{self, Metrics};
use crate::worker::{Faults, OpenError, Readiness, Status, View, Worker, WorkerOptions, Workspace};

/// How long a starting worker waits for its database.
const DATABASE_WAIT: Duration = Duration::from_secs(300);
/// Interval between attempts to open the database.
const DATABASE_AGAIN: Duration = Duration::from_secs(2);
/// Signals within this time of the first are the same request: `timeout` signals its child and then the child's process
/// group, and so do some supervisors.
const SAME_REQUEST: Duration = Duration::from_secs(1);
/// Time limit for open HTTP requests to finish at shutdown.
const HTTP_WAIT: Duration = Duration::from_secs(3);

/// Time limit for the process to exit once all its jobs have ended or been handed back.
const EXIT_WAIT: Duration = Duration::from_secs(30);

/// Arguments of `serve`.
#[derive(clap::Args)]
pub struct Args {
    /// Kill or suspend the worker at a named point (for tests).
    #[arg(long, hide = true, value_name = "POINT:ACT")]
    fault_at: Option<Faults>,
}

/// Runs the worker. The first signal drains it. A second signal, at least a second later, makes it hand back the
/// remaining jobs at once and fail. Dead devices, according to `PROVER_EXIT_ON_DEAD_DEVICE`, also make it drain and
/// fail.
pub fn run(args: Args, _: &Output) -> Result<(), CliError> {
    let config = session::config()?;
    telemetry::init_logs(&config.log_level, config.log_json);
    let metrics = Metrics::install(&config.queue_name);
    raise_open_files();
    let runtime = session::runtime()?;
    let done = runtime.block_on(serve(config, args.fault_at.unwrap_or_default(), metrics));
    // Proofs that did not stop in time are not waited for: their leases have been handed back.
    runtime.shutdown_background();
    done
}

async fn serve(config: Config, faults: Faults, metrics: Metrics) -> Result<(), CliError> {
    let mut signals = Signals::new()?;
    let (stop_http, stopped) = watch::channel(false);
    let mut tasks = JoinSet::new();
    // Metrics and health come first, so that a worker that waits for its database is not taken for dead.
    let readiness = Readiness::starting("waiting for its store");
    let health = Health::new(metrics.clone(), readiness.clone());
    if let Some(addr) = config.metrics_addr {
        let router = http::ops_router(health.clone());
        listen_and_serve(("metrics", addr, "METRICS_PORT"), router, &stopped, &mut tasks).await?;
    }
    // In a set of its own, because it never ends.
    let mut upkeep = JoinSet::new();
    upkeep.spawn(metrics.clone().upkeep());
    let workspace = tokio::select! {
        opened = open(config) => opened?,
        () = signals.next() => return Ok(()),
    };
    health.opened(workspace.service());
    readiness.set(Status::Starting("testing devices"));
    let view = View::default();
    if let Some(addr) = workspace.config().api_addr {
        let app = App { jobs: workspace.service(), metrics, readiness: readiness.clone(), worker: view.clone() };
        let router = api(app, addr, &workspace.config().api_tokens);
        listen_and_serve(("api", addr, "PROVER_API_ADDR"), router, &stopped, &mut tasks).await?;
    }

    let worker = tokio::select! {
        started = start(&workspace, faults) => started?,
        () = signals.next() => {
            finish_requests(&stop_http, &mut tasks).await;
            return Ok(());
        }
    };
    worker.show(&view);
    let dead = tokio::select! {
        why = worker.watch(&readiness) => Some(why),
        () = signals.next() => None,
    };
    if let Some(why) = &dead {
        tracing::error!(why, "the worker exits, to be restarted: the devices may work again in a new process");
    }

    readiness.set(Status::Draining);
    let (left, hurried) = drain(worker, &mut signals, dead.is_none()).await;
    finish_requests(&stop_http, &mut tasks).await;
    tracing::info!(handed_back = left, "worker process exits");
    exit_within(EXIT_WAIT, kill);
    match dead {
        Some(why) => Err(CliError::failed(why)),
        None if hurried => {
            Err(CliError::failed("a second signal ended the grace period: jobs in progress may have been handed back"))
        }
        None => Ok(()),
    }
}

/// Drains the worker. Returns how many jobs were handed back, and whether a second signal hurried it. `signalled` says
/// whether there has been a first one.
async fn drain(worker: Worker, signals: &mut Signals, signalled: bool) -> (usize, bool) {
    let hurried = Cell::new(false);
    let hurry = async {
        // A worker that drains because its devices are dead has had no signal yet.
        let mut asked = signalled.then(Instant::now);
        loop {
            signals.next().await;
            match asked {
                None => asked = Some(Instant::now()),
                Some(asked) if asked.elapsed() >= SAME_REQUEST => break,
                Some(_) => {}
            }
        }
        hurried.set(true);
        tracing::warn!("second signal: jobs in progress are handed back at once");
    };
    let left = worker.drain_until(hurry).await;
    (left, hurried.get())
}

/// Returns the API's routes, and warns if other machines can use them without a token.
fn api(app: App, addr: SocketAddr, tokens: &[Secret]) -> Router {
    let access = Access::new(addr.ip().is_loopback(), tokens.iter().map(Secret::reveal));
    if access.is_open() {
        tracing::warn!(
            %addr,
            "the API is open to other machines and requires no token: set PROVER_API_TOKENS, or put it behind a proxy \
             that authenticates its users"
        );
    }
    http::api_router(app, access)
}

/// Kills this process, by calling `by`, if it still exists after `wait`. A device that hangs may block the thread that
/// frees its memory, or the driver's own cleanup, for ever; and no one else kills a worker that exits by itself because
/// of lost devices.
fn exit_within(wait: Duration, by: fn()) {
    let end = move || {
        std::thread::sleep(wait);
        by();
    };
    // If no thread can be started, the process ends without this safeguard.
    let _ = std::thread::Builder::new().name("exit".into()).spawn(end);
}

fn kill() {
    tracing::error!("the worker has ended, but a device keeps the process from exiting: killing it");
    let _ = kill_process(getpid(), process::Signal::KILL);
}

/// Opens the workspace once its database is available, so that both can be started at the same time, in any order.
async fn open(config: Config) -> Result<Workspace, CliError> {
    let begun = Instant::now();
    loop {
        match Workspace::open(config.clone()).await {
            Err(OpenError::Store(error @ StoreError::Unreachable { .. })) if begun.elapsed() < DATABASE_WAIT => {
                gauge!(telemetry::STORE_UP).set(0.0);
                tracing::warn!(%error, "the worker starts once its database is available");
            }
            opened => {
                gauge!(telemetry::STORE_UP).set(f64::from(opened.is_ok()));
                return opened.map_err(CliError::failed);
            }
        }
        tokio::time::sleep(DATABASE_AGAIN).await;
    }
}

/// Raises the limit on open files to the maximum: the default is 1,024 on most systems, which a worker with many
/// clients exceeds.
fn raise_open_files() {
    let limit = getrlimit(Resource::Nofile);
    // macOS reports no maximum, and rejects more than 10,240.
    let most = limit.maximum.unwrap_or(10_240);
    if limit.current.is_some_and(|now| now < most) {
        // If that is refused, the limit stays as it is.
        let _ = setrlimit(Resource::Nofile, Rlimit { current: Some(most), maximum: limit.maximum });
    }
}

async fn start(workspace: &Workspace, faults: Faults) -> Result<Worker, CliError> {
    let config = workspace.config().clone();
    let found = tokio::task::spawn_blocking(move || session::devices(&config));
    let found = found.await.map_err(CliError::failed)??;
    tracing::info!("{}", found.summary);
    for LostDevice { label, why } in &found.lost {
        tracing::warn!(device = %label, why, "device not used");
    }
    let devices: Vec<Arc<dyn Backend>> = found.devices;
    let options = WorkerOptions { lost: found.lost, faults, ..WorkerOptions::from(workspace.config()) };
    let parts = workspace.worker_parts().await.map_err(CliError::failed)?;
    Worker::start(parts, devices, options).await.map_err(CliError::failed)
}

/// Closes the listeners, and lets open requests finish for a moment.
async fn finish_requests(stop: &watch::Sender<bool>, servers: &mut JoinSet<()>) {
    stop.send_replace(true);
    let _ = tokio::time::timeout(HTTP_WAIT, async { while servers.join_next().await.is_some() {} }).await;
}

/// Opens a listener and serves `router` on it. `what` is its name in the log, `variable` the setting of its address.
async fn listen_and_serve(
    (what, addr, variable): (&'static str, SocketAddr, &'static str),
    router: Router,
    stopped: &watch::Receiver<bool>,
    tasks: &mut JoinSet<()>,
) -> Result<(), CliError> {
    let listener = http::listen(addr, variable).await.map_err(CliError::failed)?;
    let addr = listener.local_addr().map_err(CliError::failed)?;
    tracing::info!(what, %addr, "listening");
    tasks.spawn(http::serve(listener, router, stopped.clone()));
    Ok(())
}

/// SIGTERM and SIGINT.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn new() -> Result<Self, CliError> {
        let open = |kind| signal(kind).map_err(|e| CliError::failed(format!("signals cannot be handled: {e}")));
        Ok(Self { terminate: open(SignalKind::terminate())?, interrupt: open(SignalKind::interrupt())? })
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Barrier;

    static ENDED: Barrier = Barrier::new(2);

    /// The blocked thread is not involved.
    #[test]
    fn a_process_that_a_device_keeps_is_ended_by_another_thread() {
        exit_within(Duration::ZERO, || _ = ENDED.wait());
        ENDED.wait();
    }
}
