//! `submit`, `status`, `jobs`, `proof` and `cancel`, which access the store directly. No server is needed.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde::Serialize;

use super::files::{self, about};
use super::session::{circuit_name, job_id, table, time, with_workspace};
use super::{CliError, Output};
use crate::model::{
    CircuitName, FailedAttempt, FailureClass, IdempotencyKey, Job, JobId, JobState, Priority, clip, io_reason,
};
use crate::store::{Cancelled, JobFilter, Scope};
use crate::worker::{JobService, Purged, ServiceError, SubmitRequest};

/// How often a waiting command polls.
const POLL_EVERY: Duration = Duration::from_millis(100);
/// How long a job may be queued before a waiting command suggests that no worker is running.
const PATIENCE: Duration = Duration::from_secs(5);
/// The setting of the maximum input size, for errors.
const JOB_BOUND: &str = " (PROVER_MAX_INPUT_BYTES)";

/// Arguments of `submit`.
#[derive(clap::Args)]
pub struct SubmitArgs {
    /// Name of the circuit.
    #[arg(value_parser = circuit_name)]
    circuit: CircuitName,
    /// Inputs as JSON, or a .wtns file if the circuit has no witness program; - is standard input.
    #[arg(long, value_name = "FILE", value_parser = files::input_name())]
    input: PathBuf,
    /// Wait until the job ends; the exit code is 1 unless it ends with a proof.
    #[arg(long)]
    wait: bool,
    /// Your own name for the job: the same key with the same circuit and input returns the same job.
    #[arg(long, value_name = "KEY")]
    idempotency_key: Option<IdempotencyKey>,
    /// Jobs with a higher priority run first.
    #[arg(long, value_name = "N", default_value_t = 0, allow_negative_numbers = true)]
    priority: i16,
}

/// Submits a job.
pub fn submit(args: SubmitArgs, out: &Output) -> Result<(), CliError> {
    with_workspace(|w| async move {
        let service = w.service();
        let input = files::input_copy(&args.input, service.max_input(), JOB_BOUND)?;
        let SubmitArgs { circuit, idempotency_key, priority, .. } = args;
        let request = SubmitRequest { id: None, circuit, input, idempotency_key, priority: Priority(priority) };
        let submitted = service.submit(request).await.map_err(CliError::failed)?;
        let job = submitted.job().clone();
        if !args.wait {
            out.result(&job, || job.id.to_string());
            return Ok(());
        }
        out.note(format!("job {}", job.id));
        let job = wait(&service, job.id, out).await?;
        out.result(&job, || describe(&job, &service));
        if job.state == JobState::Done { Ok(()) } else { Err(ended_badly(&job)) }
    })
}

fn ended_badly(job: &Job) -> CliError {
    let why = job.error.as_ref().map(|e| format!(": {}", e.message)).unwrap_or_default();
    CliError::failed(format!("job {} is {}{why}", job.id, job.state))
}

/// Waits until a job ends. Shows its progress on a terminal, and remarks on what delays it.
async fn wait(service: &JobService, id: JobId, out: &Output) -> Result<Job, CliError> {
    let bar = out.bar("queued");
    let begun = Instant::now();
    let (mut wondered, mut told) = (false, None);
    loop {
        let job = service.job(id).await.map_err(CliError::failed)?;
        if job.state.is_final() {
            bar.finish_and_clear();
            return Ok(job);
        }
        bar.set_message(job.stage.map_or("queued", |s| s.as_str()));
        bar.set_position((job.progress * 1000.0) as u64);
        if !wondered && job.state == JobState::Queued && job.attempt.number == 0 && begun.elapsed() > PATIENCE {
            wondered = true;
            let why = held_back(service, &job).await;
            let why = why.unwrap_or("is a worker running? `prover-worker serve` starts one".into());
            bar.suspend(|| out.note(format_args!("still queued; {why}")));
        }
        // The last failure is in the history, because the next attempt may have started already.
        if let Some(FailedAttempt { attempt, error, .. }) = job.history.last()
            && told != Some(*attempt)
        {
            told = Some(*attempt);
            bar.suspend(|| out.note(format_args!("attempt {attempt} failed: {}", error.message)));
        }
        tokio::time::sleep(POLL_EVERY).await;
    }
}

/// Returns which pause a job waits for, if any.
async fn held_back(service: &JobService, job: &Job) -> Option<String> {
    let paused = service.paused().await.ok()?;
    paused.into_iter().find_map(|(scope, _)| match scope {
        Scope::Queue => Some("its queue is paused (`prover-worker queue resume`)".to_owned()),
        Scope::Circuit(name) if name == job.circuit => {
            Some(format!("its circuit is paused (`prover-worker circuits resume {name}`)"))
        }
        Scope::Circuit(_) => None,
    })
}

/// Arguments of `status`.
#[derive(clap::Args)]
pub struct StatusArgs {
    /// Id of the job.
    #[arg(value_parser = job_id)]
    id: JobId,
    /// Wait until it ends; the exit code is 0 even if it fails.
    #[arg(long)]
    watch: bool,
}

/// Shows a job.
pub fn status(args: StatusArgs, out: &Output) -> Result<(), CliError> {
    with_workspace(|w| async move {
        let service = w.service();
        let job = if args.watch {
            wait(&service, args.id, out).await?
        } else {
            service.job(args.id).await.map_err(CliError::failed)?
        };
        out.result(&job, || describe(&job, &service));
        Ok(())
    })
}

/// Arguments of `jobs`.
#[derive(clap::Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct JobsArgs {
    #[command(flatten)]
    list: ListArgs,
    #[command(subcommand)]
    command: Option<JobsCommand>,
}

/// Subcommands of `jobs`; without one, jobs are listed.
#[derive(clap::Subcommand)]
enum JobsCommand {
    /// List jobs, newest first; as JSON without results and histories, which `status` shows.
    List(ListArgs),
    /// List jobs that failed permanently, with their errors.
    Dead {
        /// Maximum number of jobs, newest first.
        #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=100_000))]
        limit: u32,
    },
    /// Queue failed or cancelled jobs again, with fresh retry budgets.
    Requeue(RequeueArgs),
    /// Delete jobs that ended long ago, and their proofs.
    Purge(PurgeArgs),
}

/// Runs a subcommand of `jobs`.
pub fn run(args: JobsArgs, out: &Output) -> Result<(), CliError> {
    match args.command.unwrap_or(JobsCommand::List(args.list)) {
        JobsCommand::List(a) => list(a, out),
        JobsCommand::Dead { limit } => {
            let failed = Some(JobState::Failed);
            list(ListArgs { state: failed, circuit: None, idempotency_key: None, before: None, limit }, out)
        }
        JobsCommand::Requeue(a) => requeue(a, out),
        JobsCommand::Purge(a) => purge(a, out),
    }
}

/// Arguments of `jobs requeue`.
#[derive(clap::Args)]
#[command(override_usage = "prover-worker jobs requeue <IDS>... [--input <FILE>]\n       \
                      prover-worker jobs requeue --failed [--class <CLASS>] [--circuit <CIRCUIT>] [--limit <LIMIT>]")]
struct RequeueArgs {
    /// Ids of the jobs.
    #[arg(value_parser = job_id, required_unless_present = "failed", conflicts_with = "failed")]
    ids: Vec<JobId>,
    /// A new input, for when the old one is no longer stored; for a single job only; - is standard input.
    #[arg(long, value_name = "FILE", value_parser = files::input_name(), conflicts_with = "failed")]
    input: Option<PathBuf>,
    /// Requeue all failed jobs whose input is still stored, oldest first, such as after an outage.
    #[arg(long)]
    failed: bool,
    /// With --failed, only jobs whose last error is of this class, such as transient.
    #[arg(long, requires = "failed")]
    class: Option<FailureClass>,
    /// With --failed, only jobs of this circuit.
    #[arg(long, requires = "failed", value_parser = circuit_name)]
    circuit: Option<CircuitName>,
    /// With --failed, how many failed jobs to consider, starting with the newest.
    #[arg(long, requires = "failed", default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    limit: u32,
}

fn requeue(args: RequeueArgs, out: &Output) -> Result<(), CliError> {
    if args.input.is_some() && args.ids.len() > 1 {
        return Err(CliError::Usage("--input: expected a single job, got several".to_owned()));
    }
    with_workspace(|w| async move {
        let service = w.service();
        let mut queued = Vec::new();
        let done = if args.failed {
            requeue_failed(&service, &args, &mut queued, out).await
        } else {
            requeue_each(&service, &args, &mut queued).await
        };
        // What was queued before a failure is told, too.
        if done.is_ok() || !queued.is_empty() {
            let line = |job: &Job| format!("job {} is queued", job.id);
            out.result(&queued, || queued.iter().map(line).collect::<Vec<_>>().join("\n"));
        }
        done
    })
}

async fn requeue_each(service: &JobService, args: &RequeueArgs, queued: &mut Vec<Job>) -> Result<(), CliError> {
    for id in &args.ids {
        let read = |file| files::input_copy(file, service.max_input(), JOB_BOUND);
        let input = args.input.as_deref().map(read).transpose()?;
        queued.push(service.requeue(*id, input).await.map_err(CliError::failed)?);
    }
    Ok(())
}

async fn requeue_failed(
    service: &JobService,
    args: &RequeueArgs,
    queued: &mut Vec<Job>,
    out: &Output,
) -> Result<(), CliError> {
    let filter = JobFilter {
        state: Some(JobState::Failed),
        circuit: args.circuit.clone(),
        limit: args.limit,
        ..JobFilter::default()
    };
    let failed = service.jobs(filter).await.map_err(CliError::failed)?;
    let class_of = |job: &Job| job.error.as_ref().map(|e| e.class);
    let mut left = 0;
    for job in failed.iter().rev().filter(|job| args.class.is_none() || class_of(job) == args.class) {
        match service.requeue(job.id, None).await {
            Ok(job) => queued.push(job),
            // Its input was bad or is no longer stored, it was rejected before its circuit was known, or another client
            // has changed it meanwhile.
            Err(
                ServiceError::InputGone(_)
                | ServiceError::NotRequeued { .. }
                | ServiceError::UnknownJob(_)
                | ServiceError::UnknownCircuit(_),
            ) => left += 1,
            Err(e) => return Err(CliError::failed(e)),
        }
    }
    out.note(format!(
        "{} jobs are queued again; {left} are not, because their input or circuit is gone or their state has changed",
        queued.len()
    ));
    Ok(())
}

/// Arguments of `jobs purge`.
#[derive(clap::Args)]
struct PurgeArgs {
    /// Only jobs that ended at least this long ago: a number with s, m, h or d. At least 15s, in which the files of a
    /// proof are written.
    #[arg(long, value_name = "TIME", value_parser = span)]
    older_than: Duration,
    /// Only jobs in these final states; by default done, failed and cancelled.
    #[arg(long, value_name = "STATE")]
    state: Vec<JobState>,
}

fn purge(args: PurgeArgs, out: &Output) -> Result<(), CliError> {
    let all = [JobState::Done, JobState::Failed, JobState::Cancelled];
    let states = if args.state.is_empty() { all.to_vec() } else { args.state };
    if let Some(state) = states.iter().find(|s| !s.is_final()) {
        return Err(CliError::Usage(format!("--state: expected done, failed or cancelled, got {state}")));
    }
    with_workspace(|w| async move {
        let Purged { jobs, kept, locked } =
            w.service().purge(&states, args.older_than).await.map_err(CliError::failed)?;
        let left = kept + locked;
        let report = serde_json::json!({ "purged": jobs, "kept": kept, "locked": locked });
        out.result(&report, || format!("{jobs} jobs are deleted"));
        if left == 0 {
            return Ok(());
        }
        Err(CliError::failed(format!(
            "{left} jobs are kept: the proof files of {kept} could not be removed, and {locked} are locked by others"
        )))
    })
}

/// Parses a time such as `90s`, `15m`, `12h` or `30d`.
fn span(text: &str) -> Result<Duration, String> {
    let expected = || format!("expected a number with s, m, h or d, such as 30d, got {text:?}");
    let unit = match text.chars().last() {
        Some('s') => 1,
        Some('m') => 60,
        Some('h') => 3600,
        Some('d') => 86_400,
        _ => return Err(expected()),
    };
    let n: u64 = text[..text.len() - 1].parse().map_err(|_| expected())?;
    n.checked_mul(unit).map(Duration::from_secs).ok_or_else(expected)
}

/// Arguments of a list of jobs.
#[derive(clap::Args)]
struct ListArgs {
    /// Only jobs in this state: queued, running, done, failed or cancelled.
    #[arg(long)]
    state: Option<JobState>,
    /// Only jobs of this circuit.
    #[arg(long, value_parser = circuit_name)]
    circuit: Option<CircuitName>,
    /// Only the job with this idempotency key.
    #[arg(long, value_name = "KEY")]
    idempotency_key: Option<IdempotencyKey>,
    /// Only jobs submitted before this one; the last job of a list gives the next page.
    #[arg(long, value_name = "ID", value_parser = job_id)]
    before: Option<JobId>,
    /// Maximum number of jobs, newest first.
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    limit: u32,
}

/// Lists jobs.
fn list(args: ListArgs, out: &Output) -> Result<(), CliError> {
    with_workspace(|w| async move {
        let ListArgs { state, circuit, idempotency_key, before, limit } = args;
        let filter = JobFilter { state, circuit, idempotency_key, before, limit };
        let jobs = w.service().jobs(filter).await.map_err(CliError::failed)?;
        out.result(&jobs, || {
            if jobs.is_empty() {
                return "no jobs".to_owned();
            }
            let rows: Vec<Vec<String>> = jobs.iter().map(row).collect();
            table(&["id", "circuit", "state", "attempt", "submitted", ""], &rows)
        });
        Ok(())
    })
}

fn row(job: &Job) -> Vec<String> {
    let remark = match (job.state, &job.error, job.stage) {
        (JobState::Running, _, Some(stage)) => format!("{} {:.0} %", stage.as_str(), job.progress * 100.0),
        (_, Some(e), _) => clip(&e.message, 80),
        _ => String::new(),
    };
    let (id, attempt) = (job.id.to_string(), job.attempt.number.to_string());
    vec![id, job.circuit.to_string(), job.state.to_string(), attempt, time(job.created_at), remark]
}

/// Arguments of `proof`.
#[derive(clap::Args)]
pub struct ProofArgs {
    /// Id of the job.
    #[arg(value_parser = job_id)]
    id: JobId,
    /// Folder for proof.json and public.json.
    #[arg(long, value_name = "DIR", value_parser = files::folder_name())]
    out: PathBuf,
}

#[derive(Serialize)]
struct Written {
    id: JobId,
    #[serde(serialize_with = "super::output::shown")]
    proof: PathBuf,
    #[serde(serialize_with = "super::output::shown")]
    public: PathBuf,
}

/// Writes a finished job's proof to files.
pub fn proof(args: ProofArgs, out: &Output) -> Result<(), CliError> {
    with_workspace(|w| async move {
        let result = w.service().result(args.id).await.map_err(CliError::failed)?;
        std::fs::create_dir_all(&args.out).map_err(|e| about(&args.out, io_reason(&e)))?;
        let written = Written { id: args.id, proof: args.out.join("proof.json"), public: args.out.join("public.json") };
        files::write_texts(&[(&written.proof, &result.proof_json), (&written.public, &result.public_json)])?;
        out.result(&written, || format!("{}\n{}", written.proof.display(), written.public.display()));
        Ok(())
    })
}

/// Arguments of `cancel`.
#[derive(clap::Args)]
pub struct CancelArgs {
    /// Id of the job.
    #[arg(value_parser = job_id)]
    id: JobId,
}

/// Cancels a job.
pub fn cancel(args: CancelArgs, out: &Output) -> Result<(), CliError> {
    with_workspace(|w| async move {
        let service = w.service();
        let said = match service.cancel(args.id).await.map_err(CliError::failed)? {
            Cancelled::Now => "is cancelled",
            Cancelled::Requested => "is running; its worker will stop it",
            Cancelled::TooLate(state) => {
                return Err(CliError::failed(format!("job {} is already {state}", args.id)));
            }
        };
        let job = service.job(args.id).await.map_err(CliError::failed)?;
        out.result(&job, || format!("job {} {said}", args.id));
        Ok(())
    })
}

/// Formats a job as text.
fn describe(job: &Job, service: &JobService) -> String {
    let mut lines = vec![
        format!("job        {}", job.id),
        format!("circuit    {}", job.circuit),
        format!("state      {}{}", job.state, if job.cancel_requested { ", cancel requested" } else { "" }),
        format!("submitted  {}", time(job.created_at)),
        format!("attempt    {}", job.attempt.number),
    ];
    if let (JobState::Running, Some(stage)) = (job.state, job.stage) {
        lines.push(format!("stage      {}, {:.0} %", stage.as_str(), job.progress * 100.0));
    }
    if let (JobState::Queued, Some(_)) = (job.state, &job.error) {
        lines.push(format!("next try   {}", time(job.run_at)));
    }
    if let Some(error) = &job.error {
        lines.push(format!("error      {} ({})", error.message, error.class.as_str()));
    }
    for past in &job.history {
        let FailedAttempt { attempt, at, error, .. } = past;
        lines.push(format!("attempt {attempt:<3}{}, {} ({})", time(*at), error.message, error.class.as_str()));
    }
    if let Some(result) = &job.result {
        let t = &result.times;
        let took = format!(
            "load {:.0} ms, witness {:.0} ms, proof {:.0} ms, verification {:.0} ms",
            t.load_ms, t.witness_ms, t.prove_ms, t.verify_ms
        );
        lines.push(format!("device     {}", result.device));
        lines.push(format!("times      {took}"));
        if let Some(dir) = service.proof_dir(job.id) {
            lines.push(format!("proof      {}", dir.display()));
        }
    }
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_have_a_unit() {
        assert_eq!(span("90s"), Ok(Duration::from_secs(90)));
        assert_eq!(span("30d"), Ok(Duration::from_secs(30 * 86_400)));
        assert_eq!(span("0m"), Ok(Duration::ZERO));
        for wrong in ["", "7", "d", "-1d", "1.5h", "1w", "9999999999999999999d", "18446744073709551615d", "7µ"] {
            assert!(span(wrong).is_err(), "{wrong}");
        }
    }
}
