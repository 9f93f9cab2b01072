//! Logs and metrics.
//!
//! Logs go to standard error. Metrics are defined in a catalogue ([`METRICS`]: name, type, labels, help), from which
//! descriptions, buckets, the documentation's table and the initial series are derived.

use std::io::IsTerminal;
use std::sync::OnceLock;
use std::time::Duration;

use metrics::{Label, counter, describe_counter, describe_gauge, describe_histogram, gauge};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use tracing_subscriber::EnvFilter;

use crate::model::{FailureClass, Stage};

/// A metric's type.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum MetricKind {
    /// A value that only grows.
    Counter,
    /// A current value.
    Gauge,
    /// A distribution, with these upper bounds of buckets.
    Histogram(&'static [f64]),
}

/// A documented metric.
#[derive(Debug, Clone, Copy)]
pub struct Metric {
    /// Name.
    pub name: &'static str,
    /// Type.
    pub kind: MetricKind,
    /// Label names.
    pub labels: &'static [&'static str],
    /// What it measures.
    pub help: &'static str,
}

/// Buckets in seconds, from the proof of a small circuit to that of a very large one.
const SECONDS: &[f64] =
    &[0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 25.0, 60.0, 120.0, 300.0, 900.0, 3600.0];

/// Buckets for counts.
const COUNTS: &[f64] = &[1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0];
/// What may happen to a producer's message.
pub const MESSAGE_OUTCOMES: [&str; 3] = ["recorded", "rejected", "set_aside"];

macro_rules! catalogue {
    ($($konst:ident $name:literal $kind:expr, [$($label:literal),*], $help:literal;)*) => {
        $(#[doc = $help] pub const $konst: &str = $name;)*
        /// Every metric of the program.
        pub const METRICS: &[Metric] = &[$(Metric { name: $name, kind: $kind, labels: &[$($label),*], help: $help }),*];
    };
}

use MetricKind::{Counter, Gauge, Histogram};

catalogue! {
    JOBS_PROCESSED "jobs_processed_total" Counter, [], "Jobs this worker ended, with a proof or failed for good.";
    JOB_DURATION "job_duration_seconds" Histogram(SECONDS), [], "Time from the claim to the end of a job, for jobs that ended with a proof or failed for good.";
    JOB_FAILURES "job_failures_total" Counter, ["class"], "Jobs that failed for good, by class of the last error.";
    QUEUE_DEPTH "queue_depth" Gauge, [], "Jobs waiting in the store, including those that wait for a retry. Above 10,000, as of the last full count, whose age is up to a hundred times its duration (about a minute for a million jobs).";
    QUEUE_OLDEST "queue_oldest_seconds" Gauge, [], "How long the oldest job that could run has waited since it was due. Above 10,000 waiting jobs, as old as `queue_depth`.";
    QUEUE_DRAIN "queue_drain_seconds" Gauge, [], "Predicted time until all waiting jobs are done, at the rate of all workers in the last minute; +Inf while jobs wait and none was done. Includes paused jobs.";
    QUEUE_PAUSED "queue_paused" Gauge, [], "1 while the queue is paused (`queue pause`). Its jobs wait, and `queue_oldest_seconds` does not include them.";
    CIRCUITS_PAUSED "circuits_paused" Gauge, [], "Paused circuits (`circuits pause`), in any queue. `queue_oldest_seconds` does not include their jobs.";
    STORE_UP "store_up" Gauge, [], "1 while the store answers and accepts writes, checked every second; absent until it has been asked. While 0, `queue_depth`, `queue_oldest_seconds`, `queue_drain_seconds` and `jobs_running` keep their last values.";
    QUEUE_UP "queue_up" Gauge, [], "1 while the queue answers; absent until it has been asked; 0 after a call that it did not answer, or refused because it serves workers of another database, until it answers again. Jobs are then taken from the store, and messages of producers wait.";
    QUEUE_ERRORS "queue_errors_total" Counter, [], "Calls the queue did not answer. It is called seldom during an outage, so watch `queue_up` for those.";
    MESSAGES "messages_total" Counter, ["outcome"], "Messages of producers taken from the queue: recorded as a job, rejected under their id, or set aside.";
    JOBS_EXPIRED "jobs_expired_total" Counter, [], "Jobs that failed because no worker claimed them in time; also counted in `job_failures_total` with class timeout.";
    JOBS_PURGED "jobs_purged_total" Counter, [], "Ended jobs deleted after the retention.";
    JOBS_RUNNING "jobs_running" Gauge, [], "Jobs running on any worker of this store.";
    JOB_WAIT "job_wait_seconds" Histogram(SECONDS), [], "Time from the moment a job was due to its claim.";
    JOB_STAGE_DURATION "job_stage_duration_seconds" Histogram(SECONDS), ["stage"], "Time a job spent in a stage.";
    JOB_RETRIES "job_retries_total" Counter, ["class"], "Attempts that failed and were queued again, by class of error.";
    JOBS_CANCELLED "jobs_cancelled_total" Counter, [], "Running jobs this worker ended because they were cancelled.";
    JOBS_RELEASED "jobs_released_total" Counter, [], "Jobs handed back without a failed attempt, as at shutdown.";
    JOBS_RECLAIMED "jobs_reclaimed_total" Counter, [], "Jobs claimed from a worker whose lease had lapsed.";
    LEASES_LOST "leases_lost_total" Counter, [], "Leases this worker lost: its result or error was not written.";
    HEARTBEAT_ERRORS "heartbeat_errors_total" Counter, [], "Heartbeats that failed because the store did.";
    DEVICE_PROOFS "device_proofs_total" Counter, ["device"], "Verified proofs made on a device.";
    DEVICE_PROOF_DURATION "device_proof_seconds" Histogram(SECONDS), ["device"], "Time a verified proof took on a device; for a batch, divided by the number of proofs.";
    BATCH_SIZE "device_batch_size" Histogram(COUNTS), ["device"], "Proofs given to a device at once.";
    DEVICE_BUSY "device_busy_seconds_total" Counter, ["device"], "Whole seconds a device spent on proofs, including failed ones; for concurrent proofs on the CPU, in proportion to their share of its threads.";
    DEVICE_FAILURES "device_failures_total" Counter, ["device", "class"], "Proofs that failed on a device, by class of error.";
    DEVICE_QUARANTINED "device_quarantined" Gauge, ["device"], "1 while a device gets no jobs because it hangs, failed its canary proof, or could not be used from the start; `device` is `cuda` where the driver itself fails.";
    WORKER_SLOTS "worker_slots" Gauge, [], "Jobs this worker can have in progress at the same time.";
    WORKER_SLOTS_BUSY "worker_slots_busy" Gauge, [], "Jobs in progress on this worker.";
    WORKER_DOUBTED "worker_doubted" Gauge, [], "1 while this worker takes jobs one at a time, with pauses, because several in a row failed due to its environment.";
    PROOF_FILES_FAILED "proof_files_failed_total" Counter, [], "Proofs whose files this worker could not write to the artifacts. The proofs are in the store, and their files are written when the API or the command line is asked for the proof.";
    KEYS_LOADED "keys_loaded_bytes" Gauge, ["device"], "Bytes of proving keys loaded on a device.";
    KEY_LOADS "key_loads_total" Counter, ["device"], "Proving keys loaded on a device.";
    BUILD_INFO "build_info" Gauge, ["version"], "1, with the program's version as a label.";
}

/// Initialises logging: as JSON or text if `json` is set, otherwise as text on a terminal only. A second call does
/// nothing.
pub fn init_logs(filter: &str, json: Option<bool>) {
    let filter = EnvFilter::try_new(filter).unwrap_or_else(|_| EnvFilter::new("info"));
    let json = json.unwrap_or_else(|| !std::io::stderr().is_terminal());
    // A line that cannot be written is lost. By default the loss is also reported on standard error, by a macro that
    // panics if that fails: closing that pipe would end the worker.
    let logs =
        tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).log_internal_errors(false);
    // An error means that a subscriber is installed already.
    let _ = if json {
        logs.json().flatten_event(true).with_current_span(false).with_span_list(false).try_init()
    } else {
        logs.with_target(false).with_ansi(std::io::stderr().is_terminal()).try_init()
    };
}

/// The process's metrics.
#[derive(Clone)]
pub struct Metrics {
    handle: PrometheusHandle,
}

impl Metrics {
    /// Installs the recorder once per process, with every metric described and every counter with known labels at 0: a
    /// counter that appears only with its first event hides that event from `rate()`. Every series has the queue's name
    /// as its label `queue`.
    pub fn install(queue: &str) -> Self {
        static INSTALLED: OnceLock<Metrics> = OnceLock::new();
        INSTALLED.get_or_init(|| Self::install_once(queue)).clone()
    }

    fn install_once(queue: &str) -> Self {
        let mut builder = PrometheusBuilder::new().add_global_label("queue", queue);
        for m in METRICS {
            if let Histogram(buckets) = m.kind {
                builder = match builder.set_buckets_for_metric(Matcher::Full(m.name.to_owned()), buckets) {
                    Ok(b) => b,
                    // Only an empty list of buckets is refused, which a test rules out.
                    Err(_) => PrometheusBuilder::new().add_global_label("queue", queue),
                };
            }
        }
        let recorder = builder.build_recorder();
        let handle = recorder.handle();
        // An error means that another recorder is installed; this one then stays empty.
        let _ = metrics::set_global_recorder(recorder);
        describe();
        start_at_zero();
        gauge!(BUILD_INFO, "version" => env!("CARGO_PKG_VERSION")).set(1.0);
        Self { handle }
    }

    /// Renders all metrics in the Prometheus text format.
    pub fn render(&self) -> String {
        self.handle.render()
    }

    /// Folds recorded samples into their buckets, forever. Without it they accumulate until the next scrape.
    pub async fn upkeep(self) {
        let mut tick = tokio::time::interval(Duration::from_secs(5));
        loop {
            tick.tick().await;
            self.handle.run_upkeep();
        }
    }
}

/// Starts a device's series at 0.
pub fn start_device(device: &str) {
    let label = || vec![Label::new("device", device.to_owned())];
    counter!(DEVICE_PROOFS, label()).increment(0);
    counter!(DEVICE_BUSY, label()).increment(0);
    counter!(KEY_LOADS, label()).increment(0);
    gauge!(DEVICE_QUARANTINED, label()).set(0.0);
    gauge!(KEYS_LOADED, label()).set(0.0);
    for name in [DEVICE_PROOF_DURATION, BATCH_SIZE] {
        drop(metrics::histogram!(name, label()));
    }
    for class in FailureClass::ALL {
        counter!(DEVICE_FAILURES, "device" => device.to_owned(), "class" => class.as_str()).increment(0);
    }
}

fn describe() {
    for m in METRICS {
        match m.kind {
            Counter => describe_counter!(m.name, m.help),
            Gauge => describe_gauge!(m.name, m.help),
            Histogram(_) => describe_histogram!(m.name, m.help),
        }
    }
}

fn start_at_zero() {
    for m in METRICS {
        match (m.kind, m.labels) {
            (Counter, []) => counter!(m.name).increment(0),
            (Counter, ["class"]) => {
                for class in FailureClass::ALL {
                    counter!(m.name, "class" => class.as_str()).increment(0);
                }
            }
            (Counter, ["outcome"]) => {
                for outcome in MESSAGE_OUTCOMES {
                    counter!(m.name, "outcome" => outcome).increment(0);
                }
            }
            // An alert would take 0 for an outage, before the first look.
            (Gauge, []) if matches!(m.name, STORE_UP | QUEUE_UP) => {}
            (Gauge, []) => gauge!(m.name).set(0.0),
            // A histogram appears when it is registered, even without a sample.
            (Histogram(_), []) => drop(metrics::histogram!(m.name)),
            (Histogram(_), ["stage"]) => {
                for stage in Stage::ALL {
                    drop(metrics::histogram!(m.name, "stage" => stage.as_str()));
                }
            }
            // The series of devices start once they are known.
            _ => {}
        }
    }
}

/// Returns the catalogue as a Markdown table, for the documentation.
pub fn markdown_table() -> String {
    let mut out = String::from(
        "Every series has the label `queue` too.\n\n| metric | type | labels | meaning |\n|---|---|---|---|\n",
    );
    for m in METRICS {
        let kind = match m.kind {
            Counter => "counter",
            Gauge => "gauge",
            Histogram(_) => "histogram",
        };
        out += &format!("| `{}` | {kind} | {} | {} |\n", m.name, m.labels.join(", "), m.help);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_series_known_at_start_is_rendered_at_zero_with_its_help() {
        let metrics = Metrics::install("prove");
        start_device("cpu:0");
        let text = metrics.render();
        for m in METRICS {
            if !matches!(m.kind, Histogram(_)) && !matches!(m.name, STORE_UP | QUEUE_UP) {
                assert!(text.contains(&format!("# HELP {} {}", m.name, m.help)), "no help for {}:\n{text}", m.name);
            }
        }
        assert!(text.contains("\njobs_processed_total{queue=\"prove\"} 0"), "{text}");
        assert!(text.contains("job_failures_total{queue=\"prove\",class=\"bad_input\"} 0"), "{text}");
        assert!(text.contains("device_failures_total{queue=\"prove\",device=\"cpu:0\",class=\"device\"} 0"), "{text}");
        assert!(text.contains("\nqueue_depth{queue=\"prove\"} 0"), "{text}");
        assert!(!text.contains("\nstore_up{") && !text.contains("\nqueue_up{"), "an outage, to an alert: {text}");
    }

    #[test]
    fn histograms_have_buckets() {
        let metrics = Metrics::install("prove");
        metrics::histogram!(JOB_DURATION).record(0.3);
        let text = metrics.render();
        assert!(text.contains("job_duration_seconds_bucket{queue=\"prove\",le=\"0.5\"} 1"), "{text}");
        assert!(text.contains("job_duration_seconds_count{queue=\"prove\"} 1"), "{text}");
    }

    #[test]
    fn names_are_unique_and_counters_end_in_total() {
        let mut names: Vec<_> = METRICS.iter().map(|m| m.name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), METRICS.len());
        for m in METRICS {
            assert_eq!(m.kind == Counter, m.name.ends_with("_total"), "{}", m.name);
            if let Histogram(b) = m.kind {
                assert!(!b.is_empty() && b.is_sorted(), "{}", m.name);
            }
            assert!(markdown_table().contains(m.name));
        }
    }
}
