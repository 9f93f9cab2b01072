//! Errors as `application/problem+json` (RFC 9457).

use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;

use crate::worker::ServiceError;

/// An error response: a status and one sentence.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Problem {
    /// Always `about:blank`: the status alone identifies the kind of problem.
    #[serde(rename = "type")]
    kind: &'static str,
    title: &'static str,
    status: u16,
    detail: String,
}

impl Problem {
    pub(super) fn new(status: StatusCode, detail: impl ToString) -> Self {
        let title = status.canonical_reason().unwrap_or("Error");
        Self { kind: "about:blank", title, status: status.as_u16(), detail: detail.to_string() }
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let body = serde_json::to_string(&self).unwrap_or_default();
        (status, [(header::CONTENT_TYPE, "application/problem+json")], body).into_response()
    }
}

impl From<ServiceError> for Problem {
    fn from(e: ServiceError) -> Self {
        let status = match &e {
            ServiceError::UnknownJob(_) | ServiceError::UnknownCircuit(_) => StatusCode::NOT_FOUND,
            ServiceError::Conflict(_)
            | ServiceError::NoProof { .. }
            | ServiceError::NotRequeued { .. }
            | ServiceError::InputGone(_)
            | ServiceError::CircuitGone { .. } => StatusCode::CONFLICT,
            ServiceError::TooLarge { .. } => StatusCode::PAYLOAD_TOO_LARGE,
            ServiceError::Invalid(_) => StatusCode::UNPROCESSABLE_ENTITY,
            ServiceError::Store(_) | ServiceError::Queue(_) | ServiceError::Artifact(_) | ServiceError::Seal(_) => {
                StatusCode::SERVICE_UNAVAILABLE
            }
            ServiceError::Interrupted(_) => StatusCode::INTERNAL_SERVER_ERROR,
        };
        if status.is_server_error() {
            // Paths and queries are logged, not sent to the client. The worker logs an outage once for all requests.
            if matches!(&e, ServiceError::Store(error) if error.is_outage()) {
                tracing::debug!(error = %e, "request failed");
            } else {
                tracing::error!(error = %e, "request failed");
            }
            return Self::new(status, "the request could not be completed; see the worker's log");
        }
        Self::new(status, e)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use axum::body::to_bytes;

    use super::*;

    /// It is no fault of the client, and the text of a panic may quote the input.
    #[tokio::test]
    async fn a_check_that_was_interrupted_is_answered_with_500_and_without_its_cause() {
        let check = tokio::spawn(std::future::pending::<()>());
        check.abort();
        let answer = Problem::from(ServiceError::from(check.await.unwrap_err())).into_response();
        assert_eq!(answer.status(), StatusCode::INTERNAL_SERVER_ERROR);
        let text = String::from_utf8(to_bytes(answer.into_body(), 4096).await.unwrap().to_vec()).unwrap();
        assert!(text.contains("see the worker's log"), "{text}");
    }
}
