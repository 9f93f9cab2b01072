//! S3 proper, by way of moto's server.
//!
//! `TEST_S3_URL` names one that runs; else one is started, from `target/moto` (see scripts/moto.sh) or the path.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use prover_worker::artifacts::{ArtifactError, Artifacts, Kind, S3Spec};
use prover_worker::model::{ContentHash, JobId};

use crate::{conformance, file, names, noise, skip};

/// A server and, if this test started it, its process.
struct Server {
    url: String,
    process: Option<Child>,
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(process) = &mut self.process {
            let _ = process.kill();
            let _ = process.wait();
        }
    }
}

fn moto_server() -> Option<PathBuf> {
    let own = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/moto/bin/moto_server");
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::iter::once(own).chain(std::env::split_paths(&path).map(|d| d.join("moto_server"))).find(|p| p.is_file())
}

fn server() -> Option<Server> {
    if let Ok(url) = std::env::var("TEST_S3_URL") {
        return Some(Server { url, process: None });
    }
    let program = moto_server()?;
    // Somebody else may get the port in between; then another is tried.
    for _ in 0..5 {
        let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port();
        let mut process = Command::new(&program)
            .args(["-H", "127.0.0.1", "-p", &port.to_string()])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let begun = Instant::now();
        while process.try_wait().unwrap().is_none() {
            if TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_ok() {
                return Some(Server { url: format!("http://127.0.0.1:{port}"), process: Some(process) });
            }
            assert!(begun.elapsed() < Duration::from_secs(120), "moto_server does not listen");
            std::thread::sleep(Duration::from_millis(50));
        }
    }
    panic!("moto_server ends at once");
}

/// Makes a bucket of an unused name.
fn bucket(server: &Server) -> String {
    let name = format!("pw-test-{}", uuid::Uuid::new_v4().simple());
    let host = server.url.trim_start_matches("http://");
    let mut connection = TcpStream::connect(host).unwrap();
    let request = format!("PUT /{name} HTTP/1.1\r\nHost: {host}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
    connection.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    connection.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    name
}

fn spec(endpoint: &str, bucket: &str, prefix: &str) -> S3Spec {
    S3Spec {
        bucket: bucket.to_owned(),
        prefix: prefix.to_owned(),
        endpoint: Some(endpoint.to_owned()),
        region: None,
        key_id: Some("test".to_owned()),
        key: Some("hunter2".to_owned()),
        token: None,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bucket_keeps_artifacts() {
    let Some(server) = server() else {
        return skip("a_bucket_keeps_artifacts", "no moto_server: run scripts/moto.sh, or set TEST_S3_URL");
    };
    let (bucket, dir) = (bucket(&server), tempfile::tempdir().unwrap());
    let open = |prefix: &str, cache: &str| {
        Artifacts::s3(&spec(&server.url, &bucket, prefix), &dir.path().join(cache), 1 << 30).unwrap()
    };

    conformance::check(&open("some/team", "a")).await;
    conformance::check(&open("", "b")).await;

    // What one machine puts there another has, by the same prefix only.
    let content = noise(40, (40 << 20) + 1);
    let (hash, _) = open("x", "c").import(Kind::Zkey, &file(dir.path(), "big", &content)).await.unwrap();
    assert!(open("x", "d").get(Kind::Zkey, hash).await.unwrap() == content);
    assert_eq!(names(&dir.path().join("d/zkeys")), [hash.to_string()]);
    assert!(matches!(open("y", "e").get(Kind::Zkey, hash).await, Err(ArtifactError::Missing { .. })));

    // A download goes on from what an earlier one left.
    let part = dir.path().join("d/zkeys").join(format!("{hash}.part#left"));
    std::fs::write(&part, &content[..20 << 20]).unwrap();
    std::fs::remove_file(dir.path().join("d/zkeys").join(hash.to_string())).unwrap();
    assert!(open("x", "d").get(Kind::Zkey, hash).await.unwrap() == content);
    assert!(!part.exists());

    // Proofs too, and a bucket that is not there is told.
    let job = JobId::new();
    open("x", "c").put_proof(job, "{}", "[]").await.unwrap();
    assert!(open("x", "d").has_proof(job).await.unwrap());
    let nowhere = Artifacts::s3(&spec(&server.url, "pw-test-no-such-bucket", ""), &dir.path().join("f"), 0).unwrap();
    let error = nowhere.put_proof(job, "{}", "[]").await.unwrap_err().to_string();
    assert!(error.contains("s3://pw-test-no-such-bucket/proofs/") && error.contains("NoSuchBucket"), "{error}");
}

#[tokio::test]
async fn a_server_that_is_not_there_is_told_in_time_and_without_secrets() {
    let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port();
    let dir = tempfile::tempdir().unwrap();
    let artifacts = Artifacts::s3(&spec(&format!("http://127.0.0.1:{port}"), "b", "p"), dir.path(), 0).unwrap();
    let error = artifacts.contains(Kind::Zkey, ContentHash::of(b"x")).await.unwrap_err();
    let ArtifactError::Store { what, why } = &error else { panic!("{error}") };
    assert!(what.starts_with("s3://b/p/zkeys/") && why.contains("127.0.0.1"), "{error}");
    assert!(!error.to_string().contains("hunter2"), "{error}");
}

/// Answers every request with this.
fn answering(status: &'static str, body: &'static str) -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let at = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for connection in listener.incoming() {
            let mut connection = connection.unwrap();
            let mut request = Vec::new();
            let mut bit = [0; 1024];
            while !request.windows(4).any(|w| w == b"\r\n\r\n") {
                match connection.read(&mut bit) {
                    Ok(0) | Err(_) => break,
                    Ok(n) => request.extend_from_slice(&bit[..n]),
                }
            }
            let head = format!("HTTP/1.1 {status}\r\nContent-Type: application/xml\r\nConnection: close\r\n");
            let _ = connection.write_all(format!("{head}Content-Length: {}\r\n\r\n{body}", body.len()).as_bytes());
        }
    });
    at
}

#[tokio::test]
async fn what_a_server_repeats_of_its_secrets_is_not_told() {
    let at = answering(
        "400 Bad Request",
        "<?xml version=\"1.0\"?><Error><Code>ExpiredToken</Code><Message>The provided token has expired.</Message>\
         <Token-0>hunter2</Token-0><AWSAccessKeyId>hunter2</AWSAccessKeyId></Error>",
    );
    let dir = tempfile::tempdir().unwrap();
    let spec = S3Spec { token: Some("hunter2".to_owned()), ..spec(&format!("http://{at}"), "b", "") };
    let artifacts = Artifacts::s3(&spec, dir.path(), 0).unwrap();
    let error = artifacts.put_proof(JobId::new(), "{}", "[]").await.unwrap_err();
    assert!(error.to_string().contains("ExpiredToken: The provided token has expired."), "{error}");
    assert!(!format!("{error} {error:?}").contains("hunter2"), "{error:?}");
}

#[tokio::test]
async fn a_server_that_refuses_is_told() {
    let denied = "<Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>";
    let at = answering("403 Forbidden", denied);
    let dir = tempfile::tempdir().unwrap();
    let artifacts = Artifacts::s3(&spec(&format!("http://{at}"), "b", ""), dir.path(), 0).unwrap();
    let error = artifacts.put_proof(JobId::new(), "{}", "[]").await.unwrap_err().to_string();
    assert!(error.starts_with("s3://b/proofs/") && error.contains("AccessDenied: Access Denied"), "{error}");
}

#[test]
fn prefixes_that_cannot_be_names_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    for prefix in ["a//b", "a/../b"] {
        let error = Artifacts::s3(&spec("http://127.0.0.1:1", "b", prefix), dir.path(), 0).map(|_| ()).unwrap_err();
        assert!(error.to_string().starts_with(&format!("s3://b/{prefix}: ")), "{error}");
    }
}
