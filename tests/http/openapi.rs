//! The API's OpenAPI description against its answers.

use prover_worker::model::{FailureClass, JobState, Stage};
use prover_worker::worker::Status;
use serde_json::{Value, json};

use super::{Site, node, node_modules};

/// Requests by the paths of the description, with their answers.
struct Record<'a> {
    site: &'a Site,
    answers: Vec<Value>,
}

impl Record<'_> {
    /// Sends a request to a path with its parameters filled in from `with`, and returns the answer.
    async fn send(&mut self, method: &str, path: &str, with: &str, body: Value) -> Value {
        let (place, query) = path.split_once('?').unwrap_or((path, ""));
        let filled = place.replace("{id}", with).replace("{name}", with);
        let answer = self.site.api(method, &format!("{filled}?{query}"), &body).await;
        let got = if answer.header("content-type").unwrap().contains("json") {
            answer.json()
        } else {
            Value::String(answer.text())
        };
        let kind = answer.header("content-type").unwrap().split(';').next().unwrap();
        self.answers.push(json!({
            "method": method.to_lowercase(), "path": place, "status": answer.status, "type": kind, "body": got,
            "sent": if method == "POST" && place == "/v1/jobs" { body } else { Value::Null },
        }));
        got
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_api_answers_is_as_its_description_says() {
    let Some(modules) = node_modules() else { return };
    let mut site = Site::open().await;
    let none = Value::Null;
    let early = site.get("/v1/worker").await.json();
    assert_eq!((&early["status"], &early["worker"]), (&json!("starting"), &none));
    let worker = site.work().await;
    site.readiness.set(Status::Ready);

    let mut record = Record { site: &site, answers: Vec::new() };
    let submit = json!({"circuit": "multiplier", "input": {"a": 6, "b": 7}, "idempotency_key": "k", "priority": -1});
    let done = record.send("POST", "/v1/jobs?wait=300", "", submit.clone()).await;
    let id = done["id"].as_str().unwrap().to_owned();
    record.send("POST", "/v1/jobs", "", submit).await;
    let wrong = json!({"circuit": "multiplier", "input": {"a": 6}});
    let failed = record.send("POST", "/v1/jobs?wait=300", "", wrong).await;
    assert_eq!((&done["state"], &failed["state"]), (&json!("done"), &json!("failed")));
    let unknown = json!({"circuit": "nobody", "input": {}});
    record.send("POST", "/v1/jobs", "", unknown).await;
    record.send("GET", "/v1/jobs/{id}", &id, none.clone()).await;
    record.send("GET", "/v1/jobs/{id}?wait=x", &id, none.clone()).await;
    record.send("GET", "/v1/jobs/{id}", "0199b0c4-7e11-7a3c-9c8e-0f4f5a3f1f22", none.clone()).await;
    record.send("GET", "/v1/jobs/{id}/proof", &id, none.clone()).await;
    record.send("DELETE", "/v1/jobs/{id}", &id, none.clone()).await;
    record.send("GET", "/v1/worker", "", none.clone()).await;

    record.send("POST", "/v1/circuits/{name}/pause", "multiplier", none.clone()).await;
    record.send("POST", "/v1/circuits/{name}/pause", "nobody", none.clone()).await;
    record.send("POST", "/v1/queue/pause", "", none.clone()).await;
    let queued = site.submit(1, 1).await;
    record.send("GET", "/v1/queue", "", none.clone()).await;
    record.send("GET", "/v1/jobs?nothing=1", "", none.clone()).await;
    record.send("DELETE", "/v1/jobs/{id}", &queued, none.clone()).await;
    record.send("POST", "/v1/jobs/{id}/requeue", &queued, none.clone()).await;
    record.send("POST", "/v1/jobs/{id}/requeue", &queued, json!({"a": 2, "b": 2})).await;
    record.send("POST", "/v1/circuits/{name}/resume", "multiplier", none.clone()).await;
    record.send("POST", "/v1/queue/resume", "", none.clone()).await;
    record.send("GET", "/v1/jobs?limit=9", "", none.clone()).await;
    record.send("GET", "/v1/circuits", "", none.clone()).await;
    record.send("GET", "/healthz", "", none.clone()).await;
    record.send("GET", "/readyz", "", none.clone()).await;

    let description = site.get("/v1/openapi.json").await.json();
    // Values that do not occur in this test.
    let states = JobState::ALL.map(|s| s.as_str());
    let classes = FailureClass::ALL.map(|c| c.as_str()).into_iter().chain(["unknown"]).collect::<Vec<_>>();
    let stages: Vec<Value> = Stage::ALL.iter().map(|s| json!(s.as_str())).chain([none]).collect();
    let schemas = &description["components"]["schemas"];
    assert_eq!(schemas["JobState"]["enum"], json!(states));
    assert_eq!(schemas["ErrorClass"]["enum"], json!(classes));
    assert_eq!(schemas["Job"]["properties"]["stage"]["enum"], json!(stages));
    assert_eq!(description["info"]["version"], env!("CARGO_PKG_VERSION"));

    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("answers.json");
    record
        .answers
        .push(json!({"method": "get", "path": "/v1/worker", "status": 200, "type": "application/json", "body": early}));
    std::fs::write(&file, json!({"description": description, "answers": record.answers}).to_string()).unwrap();
    node("openapi.mjs", &[modules.to_str().unwrap(), file.to_str().unwrap()]).await;
    worker.drain().await;
}
