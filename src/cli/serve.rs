//! `serve`: the worker, until a signal.

use std::cell::Cell;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use rustix::process::{self, Resource, Rlimit, getpid, getrlimit, kill_process, setrlimit};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::session;
use super::{CliError, Output};
use crate::backend::Backend;
use crate::config::{Config, Secret};
use crate::http::{self, Access, App, Health};
use crate::store::StoreError;
use crate::telemetry::{self, Metrics};
use crate::worker::{Faults, OpenError, Options, Readiness, Status, View, Worker, Workspace};

/// How long a worker that starts waits for its database.
const DATABASE_WAIT: Duration = Duration::from_secs(300);
/// How often it tries.
const DATABASE_AGAIN: Duration = Duration::from_secs(2);
/// Signals that come within this time of the first are the same wish: `timeout` signals its child and then the child's group,
/// and so do some supervisors.
const SAME_WISH: Duration = Duration::from_secs(1);
/// How long open HTTP requests have to finish at the end.
const HTTP_WAIT: Duration = Duration::from_secs(3);

/// How long the process may take to end once all its jobs have ended or been handed back.
const END_WAIT: Duration = Duration::from_secs(30);

/// Arguments of `serve`.
#[derive(clap::Args)]
pub struct Args {
    /// End or hold the worker at a named point (for tests).
    #[arg(long, hide = true, value_name = "POINT:ACT")]
    fault_at: Option<Faults>,
}

/// Runs the worker. The first signal drains it; a second one, a second later or more, has it hand back at once what is left,
/// and then it fails. Devices that do not come back drain it too, and then it fails.
pub fn run(args: Args, _: &Output) -> Result<(), CliError> {
    let config = session::config()?;
    telemetry::init_logs(&config.log_level, config.log_json);
    let metrics = Metrics::install(&config.queue_name);
    raise_open_files();
    let runtime = session::runtime()?;
    let done = runtime.block_on(serve(config, args.fault_at.unwrap_or_default(), metrics));
    // A proof that did not stop in time is not waited for: its lease has been handed back.
    runtime.shutdown_background();
    done
}

async fn serve(config: Config, faults: Faults, metrics: Metrics) -> Result<(), CliError> {
    let mut signals = Signals::new()?;
    let (stop_http, stopped) = watch::channel(false);
    let mut tasks = JoinSet::new();
    // Metrics and health come first: a worker that waits for its database is seen to, and is not taken for dead.
    let readiness = Readiness::starting("waiting for its store");
    let health = Health::new(metrics.clone(), readiness.clone());
    if let Some(addr) = config.metrics_addr {
        let router = http::ops_router(health.clone());
        open_door(("metrics", addr, "METRICS_PORT"), router, &stopped, &mut tasks).await?;
    }
    // In a set of its own: it has no end to be waited for.
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
        let tokens = workspace.config().api_tokens.iter().map(Secret::reveal);
        let access = Access::new(addr.ip().is_loopback(), tokens);
        if access.is_everybodys() {
            tracing::warn!(
                %addr,
                "the API is open to other machines and asks for no token: set PROVER_API_TOKENS, or have it reached by way of \
                 something that knows its users"
            );
        }
        let app = App { jobs: workspace.service(), metrics, readiness: readiness.clone(), worker: view.clone() };
        let router = http::api_router(app, access);
        open_door(("api", addr, "PROVER_API_ADDR"), router, &stopped, &mut tasks).await?;
    }

    let worker = tokio::select! {
        started = start(&workspace, faults) => started?,
        () = signals.next() => return Ok(()),
    };
    worker.show(&view);
    let dead = tokio::select! {
        why = worker.watch(&readiness) => Some(why),
        () = signals.next() => None,
    };
    if let Some(why) = &dead {
        tracing::error!(why, "the worker ends, to be started anew: a new process may have its devices back");
    }

    readiness.set(Status::Draining);
    let hurried = Cell::new(false);
    let hurry = async {
        // A worker that drains since its devices are dead has had no signal yet.
        let mut asked = dead.is_none().then(Instant::now);
        loop {
            signals.next().await;
            match asked {
                None => asked = Some(Instant::now()),
                Some(asked) if asked.elapsed() >= SAME_WISH => break,
                Some(_) => {}
            }
        }
        hurried.set(true);
        tracing::warn!("second signal: what is in hand is handed back at once");
    };
    let left = worker.drain_until(hurry).await;
    stop_http.send_replace(true);
    let _ = tokio::time::timeout(HTTP_WAIT, async { while tasks.join_next().await.is_some() {} }).await;
    tracing::info!(handed_back = left, "end");
    end_within(END_WAIT, kill);
    match dead {
        Some(why) => Err(CliError::failed(why)),
        None if hurried.get() => {
            Err(CliError::failed("hurried by a second signal: jobs in hand may have been handed back"))
        }
        None => Ok(()),
    }
}

/// Ends this process by force if it is still there after so long. A device that hangs may keep whoever gives its memory back
/// waiting for ever, or the driver's own end; and where devices were lost, nobody else would end a worker that ends by itself.
fn end_within(wait: Duration, by: fn()) {
    let end = move || {
        std::thread::sleep(wait);
        by();
    };
    // Without a thread it ends as it does.
    let _ = std::thread::Builder::new().name("end".into()).spawn(end);
}

fn kill() {
    tracing::error!("the worker has ended, but a device keeps its process: it is killed");
    let _ = kill_process(getpid(), process::Signal::KILL);
}

/// Opens the workspace, as soon as its database is there: who starts both at once should not have to see to their order.
async fn open(config: Config) -> Result<Workspace, CliError> {
    let begun = Instant::now();
    loop {
        match Workspace::open(config.clone()).await {
            Err(OpenError::Store(error @ StoreError::Away { .. })) if begun.elapsed() < DATABASE_WAIT => {
                tracing::warn!(%error, "the worker starts once its database is there");
            }
            opened => return opened.map_err(CliError::failed),
        }
        tokio::time::sleep(DATABASE_AGAIN).await;
    }
}

/// Asks for as many open files as it may have: by default a process gets 1,024 on most systems, which a worker with many
/// clients uses up.
fn raise_open_files() {
    let limit = getrlimit(Resource::Nofile);
    // macOS names no maximum, and refuses more than 10,240.
    let most = limit.maximum.unwrap_or(10_240);
    if limit.current.is_some_and(|now| now < most) {
        // Where that is refused, it goes on with what it has.
        let _ = setrlimit(Resource::Nofile, Rlimit { current: Some(most), maximum: limit.maximum });
    }
}

async fn start(workspace: &Workspace, faults: Faults) -> Result<Worker, CliError> {
    let config = workspace.config().clone();
    let found = tokio::task::spawn_blocking(move || session::devices(&config));
    let found = found.await.map_err(CliError::failed)??;
    tracing::info!("{}", found.summary);
    let devices: Vec<Arc<dyn Backend>> = found.devices;
    let options = Options { faults, ..Options::from(workspace.config()) };
    let rooms = workspace.rooms().await.map_err(CliError::failed)?;
    Worker::start(rooms, devices, options).await.map_err(CliError::failed)
}

/// Opens a listener, of this name and address, which that variable sets.
async fn open_door(
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
        let open = |kind| signal(kind).map_err(|e| CliError::failed(format!("signals cannot be heard: {e}")));
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

    /// Whoever is kept is not asked.
    #[test]
    fn a_process_that_a_device_keeps_is_ended_by_another_thread() {
        end_within(Duration::ZERO, || _ = ENDED.wait());
        ENDED.wait();
    }
}
