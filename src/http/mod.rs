//! HTTP: metrics and health for machines, and the job API.
//!
//! There are two listeners. The one for metrics (`METRICS_PORT`) serves nothing secret. The API (`PROVER_API_ADDR`) is
//! on loopback by default; `access.rs` decides which requests it accepts. A body that is not declared as JSON or bytes
//! is rejected: pages of other sites can only send bodies of other types.

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

/// State of the API's request handlers.
#[derive(Clone)]
pub struct App {
    /// Jobs.
    pub jobs: JobService,
    /// Metrics.
    pub metrics: Metrics,
    /// Whether the worker is ready.
    pub readiness: Readiness,
    /// State of the worker.
    pub worker: View,
}

/// State of the metrics and health handlers. The jobs are added once the store is open.
#[derive(Clone)]
pub struct Health {
    metrics: Metrics,
    readiness: Readiness,
    jobs: Arc<OnceLock<JobService>>,
}

impl Health {
    /// Health of a worker whose store is not open yet.
    pub fn new(metrics: Metrics, readiness: Readiness) -> Self {
        Self { metrics, readiness, jobs: Arc::default() }
    }

    /// Makes readiness checks query the store from now on.
    pub fn opened(&self, jobs: JobService) {
        // A second call would be with the same store.
        let _ = self.jobs.set(jobs);
    }
}

impl From<App> for Health {
    fn from(app: App) -> Self {
        Self { metrics: app.metrics, readiness: app.readiness, jobs: Arc::new(OnceLock::from(app.jobs)) }
    }
}

/// Returns the router of `/metrics`, `/healthz` and `/readyz`.
pub fn ops_router(health: impl Into<Health>) -> Router {
    ops::routes().fallback(unknown).method_not_allowed_fallback(wrong_method).with_state(health.into())
}

/// Returns the router of the job API and the live page, for clients with access, and of the health endpoints, for
/// everyone.
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

/// Error of a listener that could not be opened.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {addr} ({variable}): {}", io_reason(why))]
pub struct ListenError {
    /// The address.
    pub addr: SocketAddr,
    /// The environment variable that sets the address.
    pub variable: &'static str,
    /// Cause of the failure.
    pub why: std::io::Error,
}

/// Opens a listener. Port 0 picks a free port.
pub async fn listen(addr: SocketAddr, variable: &'static str) -> Result<TcpListener, ListenError> {
    TcpListener::bind(addr).await.map_err(|why| ListenError { addr, variable, why })
}
