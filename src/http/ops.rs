//! Metrics and health.

use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;

use super::Health;
use super::problem::Problem;
use crate::worker::Status;

/// Time limit for the store to respond.
const PING: Duration = Duration::from_secs(2);

pub(super) fn routes() -> Router<Health> {
    health().route("/metrics", get(metrics))
}

pub(super) fn health() -> Router<Health> {
    Router::new().route("/healthz", get(healthz)).route("/readyz", get(readyz))
}

async fn metrics(State(health): State<Health>) -> Response {
    let kind = "text/plain; version=0.0.4; charset=utf-8";
    ([(header::CONTENT_TYPE, kind)], health.metrics.render()).into_response()
}

/// Always answers: the process is alive.
async fn healthz() -> &'static str {
    "ok\n"
}

/// Whether the worker takes jobs on its own devices, not only on the CPU in their place, and its store responds and
/// accepts writes.
async fn readyz(State(health): State<Health>) -> Result<&'static str, Problem> {
    let not = |why: &str| Err(Problem::new(StatusCode::SERVICE_UNAVAILABLE, why));
    match health.readiness.get() {
        Status::Starting(at) => return not(&format!("starting: {at}")),
        Status::Draining => return not("draining: takes no more jobs"),
        Status::StandIn(why) => return not(&format!("only the CPU is available for proofs: {why}")),
        Status::Ready => {}
    }
    let Some(jobs) = health.jobs.get() else { return not("starting: opening the store") };
    match tokio::time::timeout(PING, jobs.ping()).await {
        Ok(Ok(())) => Ok("ready\n"),
        Ok(Err(_)) => not("the store fails or accepts no writes; see the server's log"),
        Err(_) => not("the store does not respond"),
    }
}
