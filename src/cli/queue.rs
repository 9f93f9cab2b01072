//! `queue`: show, pause and resume the queue, and list unusable messages.

use serde::Serialize;

use super::session::{table, time, with_workspace};
use super::{CliError, Output};
use crate::queue::SetAside;
use crate::store::{Counts, Load, Scope};
use crate::worker::JobService;

/// Subcommands of `queue`.
#[derive(clap::Subcommand)]
pub enum Args {
    /// Show the load of the queue and what is paused.
    Status,
    /// Pause all queued jobs; running jobs continue.
    Pause,
    /// Resume queued jobs.
    Resume,
    /// List producers' messages that were unusable, newest first.
    Aside {
        /// Maximum number of messages.
        #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=1000))]
        limit: u32,
    },
}

#[derive(Serialize)]
struct Paused {
    #[serde(flatten)]
    scope: Held,
    since: i64,
}

/// A scope, serialized as a member named `queue` or `circuit`.
#[derive(Serialize)]
#[serde(untagged)]
enum Held {
    Queue { queue: String },
    Circuit { circuit: String },
}

#[derive(Serialize)]
struct Status {
    queue: String,
    counts: Counts,
    load: Load,
    paused: Vec<Paused>,
}

/// Runs a subcommand of `queue`.
pub fn run(args: Args, out: &Output) -> Result<(), CliError> {
    with_workspace(|w| async move {
        let service = w.service();
        let queue = w.config().queue_name.clone();
        match args {
            Args::Status => status(&service, queue, out).await,
            Args::Pause => set_paused(&service, &Scope::Queue, &format!("queue {queue}"), true, out).await,
            Args::Resume => set_paused(&service, &Scope::Queue, &format!("queue {queue}"), false, out).await,
            Args::Aside { limit } => {
                let aside = service.aside(limit as usize).await.map_err(CliError::failed)?;
                out.result(&aside, || list(&aside));
                Ok(())
            }
        }
    })
}

/// Pauses or resumes a scope, and reports whether that changed anything.
pub async fn set_paused(
    service: &JobService,
    scope: &Scope,
    what: &str,
    paused: bool,
    out: &Output,
) -> Result<(), CliError> {
    let changed = if paused { service.pause(scope).await } else { service.resume(scope).await };
    let changed = changed.map_err(CliError::failed)?;
    let state = if paused { "paused" } else { "running" };
    let already = if changed { "" } else { "already " };
    out.result(&serde_json::json!({ "paused": paused, "changed": changed }), || format!("{what} is {already}{state}"));
    Ok(())
}

async fn status(service: &JobService, queue: String, out: &Output) -> Result<(), CliError> {
    let counts = service.counts().await.map_err(CliError::failed)?;
    let load = service.load().await.map_err(CliError::failed)?;
    let paused = service.paused().await.map_err(CliError::failed)?;
    let shown = paused.into_iter().map(|(scope, since)| {
        let scope = match scope {
            Scope::Queue => Held::Queue { queue: queue.clone() },
            Scope::Circuit(name) => Held::Circuit { circuit: name.to_string() },
        };
        Paused { scope, since }
    });
    let status = Status { paused: shown.collect(), queue, counts, load };
    out.result(&status, || describe(&status));
    Ok(())
}

fn describe(s: &Status) -> String {
    let c = &s.counts;
    let about = if c.estimated { "about " } else { "" };
    let mut lines = vec![
        format!("queue      {}", s.queue),
        format!("queued     {}", c.queued),
        format!("running    {}", c.running),
        format!("done       {about}{}", c.done),
        format!("failed     {}", c.failed),
        format!("cancelled  {}", c.cancelled),
        format!("oldest     {:.1} s", s.load.oldest_ms as f64 / 1e3),
        format!("pace       {} in the last minute", s.load.ended_last_minute),
    ];
    for paused in &s.paused {
        let what = match &paused.scope {
            Held::Queue { queue } => format!("queue {queue}"),
            Held::Circuit { circuit } => format!("circuit {circuit}"),
        };
        lines.push(format!("paused     {what} since {}", time(paused.since)));
    }
    lines.join("\n")
}

fn list(aside: &[SetAside]) -> String {
    if aside.is_empty() {
        return "no message was set aside".to_owned();
    }
    let row = |a: &SetAside| vec![time(a.at), a.source.clone(), a.size.to_string(), a.why.clone()];
    table(&["when", "message", "bytes", "why"], &aside.iter().map(row).collect::<Vec<_>>())
}
