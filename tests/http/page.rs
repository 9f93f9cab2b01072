//! The live page: what a browser receives, and what it does there, by jsdom.

use prover_worker::worker::Status;
use serde_json::json;

use super::client::request;
use super::{Site, node, node_modules};

#[tokio::test(flavor = "multi_thread")]
async fn the_page_and_its_files_are_all_that_a_browser_may_load() {
    let site = Site::open().await;
    for (path, kind) in [("/", "text/html"), ("/page.css", "text/css"), ("/page.js", "text/javascript")] {
        let answer = site.get(path).await;
        assert_eq!(answer.status, 200, "{path}");
        assert_eq!(answer.header("content-type"), Some(format!("{kind}; charset=utf-8").as_str()));
        let policy = answer.header("content-security-policy").unwrap();
        for part in ["default-src 'none'", "script-src 'self'", "connect-src 'self'", "frame-ancestors 'none'"] {
            assert!(policy.contains(part), "{policy}");
        }
        assert!(!policy.contains("unsafe"), "{policy}");
        assert_eq!(answer.header("x-content-type-options"), Some("nosniff"));
        let text = answer.text();
        // Nothing from other hosts, and nothing that turns text into markup or code.
        for never in
            ["http:", "https:", "innerHTML", "outerHTML", "insertAdjacent", "document.write", "eval(", "style="]
        {
            assert!(!text.contains(never), "{path} has {never}");
        }
    }
    // The metrics port is for machines.
    assert_eq!(request(site.ops, "GET", "/", &[], b"").await.status, 404);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_page_shows_what_there_is_and_changes_it() {
    let Some(modules) = node_modules() else { return };
    let mut site = Site::open().await;
    let worker = site.work().await;
    site.readiness.set(Status::Ready);
    let done = site.submit(6, 7).await;
    site.wait_done(&done).await;
    // Its error repeats the name of the input, and its key is text from the submitter, too.
    let body = json!({"circuit": "multiplier", "input": {"<img src=x>": 1}, "idempotency_key": "<b>&amp;</b>"});
    let failed = site.api("POST", "/v1/jobs?wait=300", &body).await.json();
    assert_eq!(failed["state"], "failed", "{failed}");
    assert_eq!(site.api("POST", "/v1/queue/pause", &json!(null)).await.status, 200);
    let queued = site.submit(1, 1).await;

    let (jsdom, url) = (modules.join("jsdom"), format!("http://{}/", site.api));
    node("page.cjs", &[jsdom.to_str().unwrap(), &url, &done, failed["id"].as_str().unwrap(), &queued]).await;

    // The effect of what was clicked there.
    assert_eq!(site.get("/v1/queue").await.json()["paused"], json!([]));
    assert_eq!(site.get(&format!("/v1/jobs/{queued}")).await.json()["state"], "cancelled");
    worker.drain().await;
}
