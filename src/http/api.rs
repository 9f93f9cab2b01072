//! The job API.
//!
//! docs/api.md describes each request, its responses and their statuses. In addition, an unknown or duplicate query
//! parameter is rejected with 400, so that the client does not believe that it had an effect.

use std::time::Duration;

use axum::extract::{FromRequestParts, Request, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Extension, Router};
use serde::Serialize;
use serde::de::DeserializeOwned;
use zeroize::Zeroizing;

use super::App;
use super::problem::Problem;
use super::server::{Body, BodyBudget, Waits, body};
use crate::model::{Circuit, CircuitName, IdempotencyKey, Job, JobId, JobState, Priority, clip};
use crate::store::{Cancelled, JobFilter, Scope, Submitted};
use crate::worker::{Status, SubmitRequest, request};

/// Maximum number of jobs in a list.
const MAX_JOBS: u32 = 1000;
/// Maximum time that a request may wait for a job, in seconds.
const MAX_WAIT_SECS: u64 = 300;
/// Maximum length of a client's text that a problem repeats, in characters.
const MAX_QUOTED: usize = 60;

pub(super) fn routes(app: &App) -> Router<App> {
    let largest = app.jobs.max_input().saturating_add(request::ENVELOPE);
    Router::new()
        .route("/v1/jobs", get(list).post(submit))
        .route("/v1/jobs/{id}", get(show).delete(cancel))
        .route("/v1/jobs/{id}/proof", get(proof))
        .route("/v1/jobs/{id}/requeue", post(requeue))
        .route("/v1/queue", get(queue))
        .route("/v1/queue/{act}", post(act_on_queue))
        .route("/v1/circuits/{name}/{act}", post(act_on_circuit))
        .route("/v1/circuits", get(circuits))
        .route("/v1/worker", get(worker))
        .route("/v1/openapi.json", get(description))
        .layer(Extension(BodyBudget::for_bodies_of(largest)))
}

fn json(status: StatusCode, value: &impl Serialize) -> Result<Response, Problem> {
    let body = serde_json::to_string(value).map_err(|e| Problem::new(StatusCode::INTERNAL_SERVER_ERROR, e))?;
    Ok((status, [(header::CONTENT_TYPE, "application/json")], body).into_response())
}

fn invalid(why: impl ToString) -> Problem {
    Problem::new(StatusCode::UNPROCESSABLE_ENTITY, why)
}

async fn submit(
    State(app): State<App>,
    Extension(waits): Extension<Waits>,
    Extension(budget): Extension<BodyBudget>,
    uri: Uri,
    headers: HeaderMap,
    request: Request,
) -> Result<Response, Problem> {
    let Body { bytes, share } = body(&budget, request, app.jobs.max_input()).await?;
    let (parts, at_most) = parts_of(bytes, &uri, &headers)?;
    let idempotency_key = idempotency_key(&headers, parts.idempotency_key)?;
    let circuit: CircuitName = parts.circuit.parse().map_err(invalid)?;
    let id = parts.id.as_deref().map(str::parse::<JobId>).transpose().map_err(invalid)?;
    let request =
        SubmitRequest { id, circuit, input: parts.input, idempotency_key, priority: Priority(parts.priority) };
    let submitted = app.jobs.submit(request).await?;
    // There are no more copies of the input in memory, so its share is released before the wait.
    drop(share);
    let status = match &submitted {
        Submitted::Created(_) => StatusCode::CREATED,
        Submitted::Existing(_) => StatusCode::OK,
    };
    let job = submitted.job();
    // The job is stored: the client is told about it even if the wait fails.
    let waited = if at_most.is_zero() { None } else { wait(&app, waits, job.id, at_most).await.ok() };
    let mut answer = json(status, waited.as_ref().unwrap_or(job))?;
    if status == StatusCode::CREATED
        && let Ok(at) = format!("/v1/jobs/{}", job.id).parse()
    {
        answer.headers_mut().insert(header::LOCATION, at);
    }
    Ok(answer)
}

/// Reads a job from its body and query, and how long the client is willing to wait for it. The body is dropped on
/// return: the parts hold the only copy of the input from here on.
fn parts_of(bytes: Zeroizing<Vec<u8>>, uri: &Uri, headers: &HeaderMap) -> Result<(request::Parts, Duration), Problem> {
    match content_type(headers)?.as_str() {
        "application/json" => {
            let at_most = Query::of(uri, &["wait"])?.patience()?;
            Ok((request::parse(&bytes).map_err(invalid)?, at_most))
        }
        "application/octet-stream" => {
            let query = Query::of(uri, &["circuit", "priority", "idempotency_key", "wait"])?;
            let circuit = query.get("circuit").ok_or_else(|| invalid("expected ?circuit=NAME"))?.to_owned();
            let priority = match query.get("priority") {
                None => 0,
                Some(p) => p.parse().map_err(|_| {
                    invalid(format!("priority: expected -32768 to 32767, got {:?}", clip(p, MAX_QUOTED)))
                })?,
            };
            let idempotency_key = query.get("idempotency_key").map(str::to_owned);
            Ok((request::Parts { id: None, circuit, input: bytes, idempotency_key, priority }, query.patience()?))
        }
        _ => Err(unsupported(TYPES)),
    }
}

/// Returns the idempotency key of a request, which may be in the header, among the parts of the job, or in both.
fn idempotency_key(headers: &HeaderMap, among_parts: Option<String>) -> Result<Option<IdempotencyKey>, Problem> {
    let mut keys = headers.get_all("idempotency-key").iter();
    let header_key = match (keys.next(), keys.next()) {
        (None, _) => None,
        (Some(_), Some(_)) => {
            return Err(invalid("duplicate header Idempotency-Key; expected it once"));
        }
        (Some(v), None) => {
            let key = v.to_str().map_err(|_| {
                let got = clip(&String::from_utf8_lossy(v.as_bytes()), MAX_QUOTED);
                invalid(format!("Idempotency-Key: expected visible ASCII characters, got {got:?}"))
            })?;
            Some(key.to_owned())
        }
    };
    let key = match (among_parts, header_key) {
        (Some(a), Some(b)) if a != b => {
            return Err(invalid("the header Idempotency-Key and \"idempotency_key\" differ"));
        }
        (a, b) => a.or(b),
    };
    key.as_deref().map(parse_key).transpose()
}

fn parse_key(text: &str) -> Result<IdempotencyKey, Problem> {
    text.parse().map_err(|e| invalid(format!("idempotency_key: {e}")))
}

/// What a body with another Content-Type is answered.
const TYPES: &str = "expected Content-Type application/json, or application/octet-stream for a .wtns file";

fn unsupported(why: impl ToString) -> Problem {
    Problem::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, why)
}

/// Parses the query of a request that takes only `wait`.
fn patience(uri: &Uri) -> Result<Duration, Problem> {
    Query::of(uri, &["wait"])?.patience()
}

/// Returns the job once it has ended, or as it is after `at_most`, when the server is about to stop, or at once if too
/// many requests wait already.
async fn wait(app: &App, waits: Waits, id: JobId, at_most: Duration) -> Result<Job, Problem> {
    if at_most.is_zero() {
        return Ok(app.jobs.job(id).await?);
    }
    match waits.until(app.jobs.wait(id, at_most)).await {
        Some(job) => Ok(job?),
        None => Ok(app.jobs.job(id).await?),
    }
}

/// Returns the media type of a body in lower case: media types are case-insensitive. Bodies must come uncompressed.
fn content_type(headers: &HeaderMap) -> Result<String, Problem> {
    for coding in headers.get_all(header::CONTENT_ENCODING) {
        if !coding.as_bytes().eq_ignore_ascii_case(b"identity") {
            let got = clip(&String::from_utf8_lossy(coding.as_bytes()), MAX_QUOTED);
            return Err(unsupported(format!("expected a body without Content-Encoding, got {got:?}")));
        }
    }
    let kind = headers.get(header::CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or_default();
    Ok(kind.split(';').next().unwrap_or_default().trim().to_ascii_lowercase())
}

async fn list(State(app): State<App>, uri: Uri) -> Result<Response, Problem> {
    let query = Query::of(&uri, &["state", "circuit", "idempotency_key", "limit", "before"])?;
    let state = query.get("state").map(str::parse::<JobState>).transpose().map_err(invalid)?;
    let limit = match query.get("limit") {
        None => 100,
        Some(text) => text
            .parse()
            .ok()
            .filter(|n| (1..=MAX_JOBS).contains(n))
            .ok_or_else(|| invalid(format!("limit: expected 1 to {MAX_JOBS}, got {:?}", clip(text, MAX_QUOTED))))?,
    };
    let circuit = query.get("circuit").map(str::parse::<CircuitName>).transpose().map_err(invalid)?;
    let before = query.get("before").map(str::parse::<JobId>).transpose().map_err(invalid)?;
    let idempotency_key = query.get("idempotency_key").map(parse_key).transpose()?;
    let jobs: Vec<Job> = app.jobs.jobs(JobFilter { state, circuit, idempotency_key, before, limit }).await?;
    json(StatusCode::OK, &jobs)
}

async fn show(
    State(app): State<App>,
    Extension(waits): Extension<Waits>,
    Path(id): Path<String>,
    uri: Uri,
) -> Result<Response, Problem> {
    json(StatusCode::OK, &wait(&app, waits, job_id(&id)?, patience(&uri)?).await?)
}

async fn proof(
    State(app): State<App>,
    Extension(waits): Extension<Waits>,
    Path(id): Path<String>,
    uri: Uri,
) -> Result<Response, Problem> {
    let id = job_id(&id)?;
    let at_most = patience(&uri)?;
    if !at_most.is_zero() {
        wait(&app, waits, id, at_most).await?;
    }
    let result = app.jobs.result(id).await?;
    // Both are JSON already, with their members in snarkjs's order.
    let body = format!("{{\"id\":\"{id}\",\"proof\":{},\"public\":{}}}", result.proof_json, result.public_json);
    Ok((StatusCode::OK, [(header::CONTENT_TYPE, "application/json")], body).into_response())
}

async fn cancel(State(app): State<App>, Path(id): Path<String>, _: NoQuery) -> Result<Response, Problem> {
    let id = job_id(&id)?;
    let status = match app.jobs.cancel(id).await? {
        Cancelled::Now => StatusCode::OK,
        Cancelled::Requested => StatusCode::ACCEPTED,
        Cancelled::TooLate(state) => {
            return Err(Problem::new(StatusCode::CONFLICT, format!("job {id} is already {state}")));
        }
    };
    json(status, &app.jobs.job(id).await?)
}

async fn requeue(
    State(app): State<App>,
    Extension(budget): Extension<BodyBudget>,
    Path(id): Path<String>,
    _: NoQuery,
    headers: HeaderMap,
    request: Request,
) -> Result<Response, Problem> {
    // Its share of the budget is held until the job is stored.
    let Body { bytes, share: _share } = body(&budget, request, app.jobs.max_input()).await?;
    // A browser sends these two types to another site only if that site permits it.
    let kind = content_type(&headers)?;
    if !bytes.is_empty() && !matches!(kind.as_str(), "application/json" | "application/octet-stream") {
        return Err(unsupported(TYPES));
    }
    let input = (!bytes.is_empty()).then_some(bytes);
    json(StatusCode::OK, &app.jobs.requeue(job_id(&id)?, input).await?)
}

async fn queue(State(app): State<App>, _: NoQuery) -> Result<Response, Problem> {
    let load = app.jobs.load().await?;
    // The load is reported even if the jobs could not be counted.
    let counts = app.jobs.counts().await.inspect_err(|error| tracing::warn!(%error, "jobs could not be counted")).ok();
    let since = |(scope, since)| serde_json::json!({ "scope": scope, "since": since });
    let paused: Vec<_> = app.jobs.paused().await?.into_iter().map(since).collect();
    json(StatusCode::OK, &serde_json::json!({ "counts": counts, "load": load, "paused": paused }))
}

async fn act_on_queue(State(app): State<App>, Path(act): Path<String>, _: NoQuery) -> Result<Response, Problem> {
    pause_or_resume(&app, &Scope::Queue, &act).await
}

async fn act_on_circuit(
    State(app): State<App>,
    Path((name, act)): Path<(String, String)>,
    _: NoQuery,
) -> Result<Response, Problem> {
    let name = name.parse().map_err(|e| Problem::new(StatusCode::NOT_FOUND, e))?;
    pause_or_resume(&app, &Scope::Circuit(name), &act).await
}

async fn pause_or_resume(app: &App, scope: &Scope, act: &str) -> Result<Response, Problem> {
    let (paused, changed) = match act {
        "pause" => (true, app.jobs.pause(scope).await?),
        "resume" => (false, app.jobs.resume(scope).await?),
        _ => {
            let why = format!("expected pause or resume, got {:?}", clip(act, MAX_QUOTED));
            return Err(Problem::new(StatusCode::NOT_FOUND, why));
        }
    };
    json(StatusCode::OK, &serde_json::json!({ "paused": paused, "changed": changed }))
}

async fn circuits(State(app): State<App>, _: NoQuery) -> Result<Response, Problem> {
    let circuits: Vec<Circuit> = app.jobs.circuits().await?;
    json(StatusCode::OK, &circuits)
}

async fn worker(State(app): State<App>, _: NoQuery) -> Result<Response, Problem> {
    let (status, why) = match app.readiness.get() {
        Status::Starting(at) => ("starting", Some(at.to_owned())),
        Status::Ready => ("ready", None),
        Status::StandIn(why) => ("stand_in", Some(why)),
        Status::Draining => ("draining", None),
    };
    let version = env!("CARGO_PKG_VERSION");
    let about =
        serde_json::json!({ "status": status, "why": why, "version": version, "worker": app.worker.snapshot() });
    json(StatusCode::OK, &about)
}

/// The OpenAPI description, for client generators.
async fn description(_: NoQuery) -> impl IntoResponse {
    ([(header::CONTENT_TYPE, "application/json")], include_str!("openapi.json"))
}

/// The variable parts of a path. A part that is not valid text is answered with 404.
struct Path<T>(T);

impl<S: Send + Sync, T: DeserializeOwned + Send> FromRequestParts<S> for Path<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        match axum::extract::Path::from_request_parts(parts, state).await {
            Ok(axum::extract::Path(path)) => Ok(Self(path)),
            Err(e) => Err(Problem::new(StatusCode::NOT_FOUND, e)),
        }
    }
}

/// Extractor for requests that take no query parameters: rejects any.
struct NoQuery;

impl<S: Send + Sync> FromRequestParts<S> for NoQuery {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        Query::of(&parts.uri, &[]).map(|_| Self)
    }
}

/// Parses a job's id. An invalid id is answered with 404: there is no such job.
fn job_id(text: &str) -> Result<JobId, Problem> {
    text.parse().map_err(|e| Problem::new(StatusCode::NOT_FOUND, e))
}

/// The query parameters of a request, each of them known and unique.
struct Query(Vec<(&'static str, String)>);

impl Query {
    fn of(uri: &Uri, known: &[&'static str]) -> Result<Self, Problem> {
        let refuse = |why: String| Problem::new(StatusCode::BAD_REQUEST, why);
        let mut found: Vec<(&'static str, String)> = Vec::new();
        for parameter in uri.query().unwrap_or_default().split('&').filter(|p| !p.is_empty()) {
            let (name, value) = parameter.split_once('=').unwrap_or((parameter, ""));
            let Some(name) = known.iter().copied().find(|k| *k == name) else {
                let got = clip(name, MAX_QUOTED);
                let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
                return Err(refuse(format!("unknown query parameter {got:?}; known here: {known}")));
            };
            if found.iter().any(|(n, _)| *n == name) {
                return Err(refuse(format!("duplicate query parameter {name}; expected it once")));
            }
            let Some(value) = decoded(value) else {
                let why = "expected UTF-8 with %XX for bytes, got a % without two digits or invalid UTF-8";
                return Err(refuse(format!("query parameter {name}: {why}")));
            };
            found.push((name, value));
        }
        Ok(Self(found))
    }

    fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(n, _)| *n == name).map(|(_, value)| value.as_str())
    }

    /// Returns how long the request is willing to wait for its job: `?wait=`.
    fn patience(&self) -> Result<Duration, Problem> {
        let Some(text) = self.get("wait") else { return Ok(Duration::ZERO) };
        let seconds = text.parse().ok().filter(|n| *n <= MAX_WAIT_SECS).ok_or_else(|| {
            invalid(format!("wait: expected seconds, 0 to {MAX_WAIT_SECS}, got {:?}", clip(text, MAX_QUOTED)))
        })?;
        Ok(Duration::from_secs(seconds))
    }
}

/// Decodes a form-encoded value: `+` is a space, `%XX` a byte in hexadecimal. `None` if it is malformed or not UTF-8.
fn decoded(value: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(value.len());
    let mut rest = value.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        rest = after;
        bytes.push(match first {
            b'+' => b' ',
            b'%' => {
                let (digits, after) = rest.split_at_checked(2)?;
                rest = after;
                let digit = |d: u8| char::from(d).to_digit(16);
                u8::try_from(digit(*digits.first()?)? * 16 + digit(*digits.get(1)?)?).ok()?
            }
            other => *other,
        });
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::sync::Arc;

    use axum::http::HeaderValue;
    use sqlx::ConnectOptions;
    use sqlx::sqlite::SqliteConnectOptions;
    use tokio::sync::watch;

    use super::*;
    use crate::artifacts::Artifacts;
    use crate::model::ContentHash;
    use crate::seal::Keyring;
    use crate::store::{SqliteStore, Store, StoreSettings};
    use crate::telemetry::Metrics;
    use crate::worker::{JobService, Readiness, ServiceOptions, View};

    #[tokio::test]
    async fn a_large_input_holds_its_share_until_its_job_is_written_down_and_not_while_somebody_waits() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("jobs.db");
        let store = SqliteStore::open(&file, StoreSettings::default()).await.unwrap();
        let circuit = Circuit {
            name: "c".parse().unwrap(),
            zkey: ContentHash([1; 32]),
            wasm: Some(ContentHash([2; 32])),
            n_vars: 2,
            n_public: 1,
            domain_size: 4,
            created_at: 0,
        };
        store.put_circuit(&circuit).await.unwrap();
        let options = ServiceOptions { max_input: 1 << 20, start_within: None, keyring: Arc::new(Keyring::none()) };
        let jobs = JobService::new(Arc::new(store), None, Artifacts::memory(), options);
        let (metrics, readiness) = (Metrics::install("prove"), Readiness::starting("testing devices"));
        let app = App { jobs: jobs.clone(), metrics, readiness, worker: View::default() };
        let budget = BodyBudget::for_bodies_of(1 << 20);
        let all = budget.free();
        let (stop, stopped) = watch::channel(false);

        // Nothing can be written until another connection's transaction ends.
        let mut other = SqliteConnectOptions::new().filename(&file).connect().await.unwrap();
        sqlx::query("BEGIN IMMEDIATE").execute(&mut other).await.unwrap();
        let uri = Uri::from_static("/v1/jobs?wait=300");
        let headers = HeaderMap::from_iter([(header::CONTENT_TYPE, HeaderValue::from_static("application/json"))]);
        let text = format!(r#"{{"circuit": "c", "input": {{"a": 1}}{}}}"#, " ".repeat(100 << 10));
        let request = Request::post(uri.clone()).body(text.into()).unwrap();
        let (waits, shared) = (Extension(Waits::new(stopped, 2)), Extension(budget.clone()));
        let answer = submit(State(app), waits, shared, uri, headers, request);
        tokio::pin!(answer);
        assert!(tokio::time::timeout(Duration::from_millis(200), &mut answer).await.is_err(), "not written down");
        assert!(budget.free() < all, "given back before the job was written down");
        sqlx::query("ROLLBACK").execute(&mut other).await.unwrap();

        let given_back = async {
            while budget.free() < all {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        tokio::select! {
            answer = &mut answer => panic!("answered before the job has ended: {answer:?}"),
            () = given_back => {}
        }
        let filter = JobFilter { limit: 9, ..JobFilter::default() };
        assert_eq!(jobs.jobs(filter).await.unwrap().len(), 1);
        stop.send_replace(true);
        assert_eq!(answer.await.unwrap().status(), StatusCode::CREATED);
    }
}
