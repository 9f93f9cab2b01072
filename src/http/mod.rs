//! HTTP: metrics and health for machines, and the job API.
//!
//! Two listeners. The one for metrics (`METRICS_PORT`) serves nothing secret. The API (`PROVER_API_ADDR`) is on loopback
//! by default, and [`access`] says whose requests it takes. A body that is not declared as JSON or bytes is refused: pages of
//! other sites can have no others sent.

mod access;
mod api;
mod ops;
mod page;
mod problem;
mod server;

use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};

use axum::Router;
use axum::http::StatusCode;
use tokio::net::TcpListener;

use crate::model::io_reason;
use crate::telemetry::Metrics;
use crate::worker::{JobService, Readiness, View};
pub use access::Access;
use problem::Problem;
pub use server::serve;

/// What requests are answered from.
#[derive(Clone)]
pub struct App {
    /// Jobs.
    pub jobs: JobService,
    /// Metrics.
    pub metrics: Metrics,
    /// Whether the worker is ready.
    pub readiness: Readiness,
    /// The worker.
    pub worker: View,
}

/// What metrics and health are answered from: all but the jobs is there before the store is.
#[derive(Clone)]
pub struct Health {
    metrics: Metrics,
    readiness: Readiness,
    jobs: Arc<OnceLock<JobService>>,
}

impl Health {
    /// Of a worker that has no store yet.
    pub fn new(metrics: Metrics, readiness: Readiness) -> Self {
        Self { metrics, readiness, jobs: Arc::default() }
    }

    /// Has its store asked from now on.
    pub fn opened(&self, jobs: JobService) {
        // A second one would be of the same store.
        let _ = self.jobs.set(jobs);
    }
}

impl From<App> for Health {
    fn from(app: App) -> Self {
        Self { metrics: app.metrics, readiness: app.readiness, jobs: Arc::new(OnceLock::from(app.jobs)) }
    }
}

/// `/metrics`, `/healthz` and `/readyz`.
pub fn ops_router(health: impl Into<Health>) -> Router {
    ops::routes().fallback(unknown).method_not_allowed_fallback(wrong_method).with_state(health.into())
}

/// The job API and the live page, for those who have access, with health beside them for everybody.
pub fn api_router(app: App, access: Access) -> Router {
    access
        .guard(api::routes(&app).merge(page::routes()))
        .merge(ops::health().with_state(app.clone().into()))
        .fallback(unknown)
        .method_not_allowed_fallback(wrong_method)
        .with_state(app)
}

async fn unknown() -> Problem {
    Problem::new(StatusCode::NOT_FOUND, "there is nothing here; the API begins at /v1/jobs and /v1/circuits")
}

async fn wrong_method() -> Problem {
    Problem::new(StatusCode::METHOD_NOT_ALLOWED, "this address does not take that method")
}

/// A listener that could not be opened.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {addr} ({variable}): {}", io_reason(why))]
pub struct ListenError {
    /// The address.
    pub addr: SocketAddr,
    /// The variable that names it.
    pub variable: &'static str,
    /// Why not.
    pub why: std::io::Error,
}

/// Opens a listener. Port 0 takes a free one.
pub async fn listen(addr: SocketAddr, variable: &'static str) -> Result<TcpListener, ListenError> {
    TcpListener::bind(addr).await.map_err(|why| ListenError { addr, variable, why })
}
